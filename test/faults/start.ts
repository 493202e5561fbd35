/** The target, with the defect that FAULT names, or with none. */
import { dialects, faults } from './list.ts';
import { start } from './target.ts';

const { FAULT } = process.env;
const chosen = [...faults, ...dialects].find(({ name }) => name === FAULT);
if (FAULT && !chosen) {
  throw new Error(`Expected FAULT to be a name of list.ts, got '${FAULT}'.`);
}
await start(chosen?.change ?? {});

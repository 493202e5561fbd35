/**
 * The report of test/conformance.test.ts, for people, and as JSON in the file that CONFORMANCE_JSON names:
 *
 *     TARGET=… node --test --test-reporter=./test/suite/reporter.ts test/conformance.test.ts
 *
 * Node 22.18 or later: Node 20 loads a reporter before tsx.
 */
import { writeFileSync } from 'node:fs';
import { allCases } from './cases.ts';
import { ofCount, tally } from './report.ts';

interface TestEvent {
  readonly type: string;
  readonly data: {
    readonly name?: string;
    readonly nesting?: number;
    readonly message?: string;
    readonly skip?: string | boolean;
    readonly details?: { readonly error?: { readonly message?: string; readonly cause?: unknown } };
  };
}
interface Outcome {
  status: 'pass' | 'fail' | 'skip';
  observed?: string | undefined;
  reason?: string;
}

export default async function* reporter(events: AsyncIterable<TestEvent>): AsyncGenerator<string> {
  const cases = new Map(allCases().map((each) => [each.id, each]));
  const suites = new Map<string, Record<string, Outcome>>();
  let outcomes: Record<string, Outcome> = {};
  let last: Outcome | undefined;
  for await (const { type, data } of events) {
    const { name = '', message = '' } = data;
    const id = caseOf(type, name);
    if (type === 'test:diagnostic' && last) {
      last.observed ??= observedIn(message);
    } else if (id) {
      last = outcomeOf(type === 'test:pass', data);
      outcomes[id] = last;
      yield failureOf(last, `${cases.get(id)?.level} ${name}`);
    } else if (ENDS.includes(type) && data.nesting === 0) {
      suites.set(name, outcomes);
      outcomes = {};
      last = undefined;
    } else if (type === 'test:fail' && data.nesting === 1) {
      yield `\n${name}\n  ${data.details?.error?.message}\n`;
    }
  }
  yield* tables(suites);
  keep(suites);
}

function keep(suites: ReadonlyMap<string, Record<string, Outcome>>): void {
  const file = process.env.CONFORMANCE_JSON;
  if (file) {
    writeFileSync(file, `${JSON.stringify(Object.fromEntries(suites), undefined, 2)}\n`);
  }
}

const ENDS = ['test:pass', 'test:fail'];

/** The id of the case that has ended. */
const caseOf = (type: string, title: string): string | undefined =>
  ENDS.includes(type) ? /^\d+\.\d+\.\d+(?= )/.exec(title)?.[0] : undefined;
const observedIn = (message: string): string | undefined => /^\w+: (\w+)$/.exec(message)?.[1];

/** What the end of a test says of its case. */
function outcomeOf(passed: boolean, { skip, details }: TestEvent['data']): Outcome {
  if (skip) {
    return { status: 'skip', reason: `${skip}` };
  }
  if (passed) {
    return { status: 'pass' };
  }
  const { cause, message } = details?.error ?? {};
  const reason = cause instanceof Error ? cause.message : message;
  return { status: 'fail', ...(reason && { reason }) };
}

function failureOf({ status, reason }: Outcome, title: string): string {
  return status === 'fail' ? `\n${title}\n${reason?.replace(/^/gm, '  ')}\n` : '';
}

/** Of a suite of which nothing was played there is none. */
function* tables(suites: ReadonlyMap<string, Record<string, Outcome>>): Generator<string> {
  for (const [suite, outcomes] of suites) {
    if (Object.values(outcomes).some(({ status }) => status !== 'skip')) {
      yield table(suite, outcomes);
    }
  }
}

function table(suite: string, outcomes: Record<string, Outcome>): string {
  const { core, robust, behaviours } = tally(outcomes);
  const skipped = Object.values(outcomes).filter(({ status }) => status === 'skip').length;
  const rows = Object.entries(behaviours).map(
    ([dialect, value]) => `  ${dialect.padEnd(14)} ${value ?? 'not tested'}`,
  );
  return [
    `\n${suite}`,
    `  Core   (MUST)   ${ofCount(core)}`,
    `  Robust (SHOULD) ${ofCount(robust)}`,
    `  not applicable  ${skipped}`,
    ...rows,
    '',
  ].join('\n');
}

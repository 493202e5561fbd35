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
    const id = /^\d+\.\d+\.\d+(?= )/.exec(name)?.[0];
    if (type === 'test:diagnostic' && last) {
      last.observed ??= /^\w+: (\w+)$/.exec(message)?.[1];
    } else if ((type === 'test:pass' || type === 'test:fail') && id) {
      const status = data.skip ? 'skip' : type === 'test:pass' ? 'pass' : 'fail';
      last = outcomes[id] = { status };
      const { cause, message } = data.details?.error ?? {};
      const text = status === 'skip' ? `${data.skip}` : cause instanceof Error ? cause.message : message;
      if (status !== 'pass' && text) {
        last.reason = text;
      }
      if (status === 'fail') {
        yield `\n${cases.get(id)?.level} ${name}\n${text?.replace(/^/gm, '  ')}\n`;
      }
    } else if (type === 'test:fail' && data.nesting === 1) {
      yield `\n${name}\n  ${data.details?.error?.message}\n`;
    } else if ((type === 'test:pass' || type === 'test:fail') && data.nesting === 0) {
      suites.set(name, outcomes);
      outcomes = {};
      last = undefined;
    }
  }
  for (const [suite, outcomes] of suites) {
    if (Object.values(outcomes).some(({ status }) => status !== 'skip')) {
      yield table(suite, outcomes);
    }
  }
  const file = process.env.CONFORMANCE_JSON;
  if (file) {
    writeFileSync(file, `${JSON.stringify(Object.fromEntries(suites), undefined, 2)}\n`);
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

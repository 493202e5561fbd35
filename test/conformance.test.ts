/**
 * Holds a server against fixtures/conformance:
 *
 *     TARGET=http://127.0.0.1:9000 node --test test/conformance.test.ts
 *
 * With TARGET_COMMAND beside it the suite starts and ends the server itself. Without both it tests the reference, in
 * both of its dialects.
 */
import { after, before, describe, test } from 'node:test';
import { allCases } from './suite/cases.ts';
import { Failure } from './suite/harness.ts';
import { freePort, nodeCommand } from './suite/local.ts';
import { type ConformanceOptions, openSession, type Session, type Verdict } from './suite/run.ts';

const { TARGET, TARGET_COMMAND, REPEAT = '1', DEADLINE_MS = '10000' } = process.env;
const shared = { repeat: Number(REPEAT), deadlineMs: Number(DEADLINE_MS) };

if (TARGET || TARGET_COMMAND) {
  const url = TARGET || 'http://127.0.0.1:9000';
  suite('the target', { ...shared, url, ...(TARGET_COMMAND && { command: TARGET_COMMAND }) });
} else {
  const here = (path: string): URL => new URL(path, import.meta.url);
  const reference = nodeCommand(here('../server.ts'), here('../fixtures/conformance/reference.ts'));
  for (const dialect of ['continue', 'stop']) {
    const url = `http://127.0.0.1:${await freePort()}`;
    const command = `AFTER_FAILURE=${dialect} ${reference}`;
    suite(`the reference, afterFailure ${dialect}`, { ...shared, url, command });
  }
}

function suite(name: string, options: ConformanceOptions): void {
  describe(name, () => {
    let session: Session | undefined;
    let refusal: Error | undefined;
    before(async () => {
      try {
        session = await openSession(options);
      } catch (error) {
        refusal = error as Error;
      }
    });
    after(() => session?.close());

    // A `before` that throws is said once for each test, and by some reporters not at all: the first test says it.
    const opened = (): Session | undefined => {
      const first = refusal;
      refusal = undefined;
      if (first) {
        throw first instanceof Failure ? withoutStack(first.message) : first;
      }
      return session;
    };
    test('the target answers as the contract has it', () => void opened());
    for (const each of allCases()) {
      test(`${each.id} ${each.statement}: ${each.title}`, async (t) => {
        const verdict = await opened()?.run(each);
        if (!verdict) {
          return t.skip('the target does not answer as the contract has it');
        }
        if (verdict.status === 'skip') {
          return t.skip(verdict.reason);
        }
        if (verdict.observed) {
          t.diagnostic(`${verdict.dialect}: ${verdict.observed}`);
        }
        if (verdict.status === 'pass') {
          return;
        }
        if (each.level === 'SHOULD') {
          t.todo('SHOULD');
        }
        throw withoutStack(report(verdict));
      });
    }
    test('no call comes back after its case has passed', (t) => {
      const { late } = opened() ??
        t.skip('the target does not answer as the contract has it') ?? { late: [] };
      if (late.length > 0) {
        throw withoutStack(late.join('\n'));
      }
    });
  });
}

function report({ reason, transcript = [], curl }: Verdict): string {
  return [reason, '', ...transcript, '', curl].join('\n');
}

/** An error of the target's: where the suite noticed it is of no use to anybody. */
function withoutStack(message: string): Error {
  return Object.assign(new Error(message), { stack: message });
}

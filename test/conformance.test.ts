/**
 * Holds a server against fixtures/conformance: `TARGET=http://127.0.0.1:9000 node --test test/conformance.test.ts`. With TARGET_COMMAND
 * beside it the suite starts and ends the server itself. Without both it tests the reference, in both of its dialects.
 */
import net, { type AddressInfo } from 'node:net';
import { once } from 'node:events';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { allCases } from './conformance/cases.ts';
import { openSession, type ConformanceOptions, type Session } from './conformance/run.ts';

const { TARGET, TARGET_COMMAND, REPEAT = '1', DEADLINE_MS = '10000' } = process.env;
const shared = { repeat: Number(REPEAT), deadlineMs: Number(DEADLINE_MS) };

if (TARGET || TARGET_COMMAND) {
  suite('the target', { ...shared, url: TARGET ?? 'http://127.0.0.1:9000', ...(TARGET_COMMAND && { command: TARGET_COMMAND }) });
} else {
  for (const dialect of ['continue', 'stop']) {
    const port = await freePort();
    suite(`the reference, afterFailure ${dialect}`, { ...shared, url: `http://127.0.0.1:${port}`, command: reference(dialect) });
  }
}

function suite(name: string, options: ConformanceOptions): void {
  describe(name, () => {
    let session: Session | undefined;
    before(async () => { session = await openSession(options); });
    after(() => session?.close());
    for (const each of allCases()) {
      test(`${each.id} ${each.statement}: ${each.title}`, async (t) => {
        const verdict = await session!.run(each);
        if (verdict.status === 'skip') return t.skip(verdict.reason);
        if (verdict.observed) t.diagnostic(`${verdict.dialect}: ${verdict.observed}`);
        if (each.level === 'SHOULD' && verdict.status === 'fail') t.todo('SHOULD');
        if (verdict.status === 'fail') {
          throw new Error([verdict.reason, '', ...(verdict.transcript ?? []), '', verdict.curl].join('\n'));
        }
      });
    }
    test('no call comes back after its case has passed', (t) => {
      if (session!.late.length > 0) throw new Error(session!.late.join('\n'));
      void t;
    });
  });
}

function reference(dialect: string): string {
  const here = (path: string): string => JSON.stringify(fileURLToPath(new URL(path, import.meta.url)));
  const flags = process.execArgv.filter((flag) => !flag.startsWith('--test')).map((flag) => JSON.stringify(flag)).join(' ');
  return `env AFTER_FAILURE=${dialect} ${JSON.stringify(process.execPath)} ${flags} ${here('../server.ts')} ${here('../fixtures/conformance/reference.ts')}`;
}

async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  await once(server.close(), 'close');
  return port;
}

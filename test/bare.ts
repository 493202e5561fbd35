/** Starts `node server.ts` in the folder given, where nothing is installed, and has it answer one request. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';

const [folder = '.'] = process.argv.slice(2);
const args = ['server.ts', '--port', '0'];
const server = spawn(process.execPath, args, { cwd: folder, stdio: ['ignore', 'pipe', 'inherit'] });
const exited = once(server, 'exit');
try {
  const [line] = (await Promise.race([once(createInterface(server.stdout), 'line'), exited])) as [string];
  const url = /^listening on (http:\S+)$/.exec(line)?.[1];
  assert.ok(url, `Expected the address, got ${line}`);
  const response = await fetch(`${url}/order?item=a`, { method: 'POST' });
  assert.deepEqual([response.status, await response.json()], [200, { message: '주문 완료: a' }]);
  server.kill('SIGTERM');
  assert.deepEqual(await exited, [0, null]);
  console.log(`node ${process.version} server.ts answered without node_modules`);
} finally {
  server.kill('SIGKILL');
}

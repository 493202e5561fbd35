/** `background.ts`, copied alone into a service. */
import assert from 'node:assert/strict';
import { copyFile, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { child, root } from './helpers.ts';

const SERVICE = `
import { createServer } from 'node:http';
import { BackgroundTasks, responseDone } from './background.ts';
let release = () => {};
const server = createServer(async (request, response) => {
  const tasks = new BackgroundTasks({ request });
  if (request.url === '/release') release();
  else {
    tasks.addTask(() => new Promise((resolve) => { release = resolve; console.log('the first task is held'); }));
    tasks.addTask(function failing() { throw new Error('boom'); });
    tasks.addTask(function hostile() { throw { get [Symbol.toStringTag]() { throw new Error('not even this'); } }; });
    tasks.addTask(console.log, 'the last task');
  }
  response.end('accepted');
  await responseDone(response);
  await tasks.run();
});
server.listen(0, '127.0.0.1', () => console.log('listening on http://127.0.0.1:' + server.address().port));
`;

describe('background.ts, copied alone', () => {
  for (const type of ['module', 'commonjs']) {
    test(`background.ts, copied alone into a "type": "${type}" service, runs its tasks after the response`, async (t) => {
      const folder = await mkdtemp(join(tmpdir(), 'background-'));
      t.after(() => rm(folder, { recursive: true, force: true }));
      await copyFile(join(root, 'background.ts'), join(folder, 'background.ts'));
      await writeFile(join(folder, 'service.ts'), SERVICE);
      await writeFile(join(folder, 'package.json'), JSON.stringify({ type }));
      await using service = child(['service.ts'], { cwd: folder });
      const url = await service.url();
      assert.equal(await (await fetch(url)).text(), 'accepted');
      await service.until('stdout', /the first task is held/);
      assert.doesNotMatch(service.stdout, /the last task/);
      assert.equal(await (await fetch(`${url}/release`)).text(), 'accepted');
      await service.until('stdout', /the last task/);
      assert.match(await service.until('stderr', /hostile/), /failing[^]*Error: boom\n +at [^]*hostile/);
    });
  }
});

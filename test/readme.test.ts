/** The README, run: its curl session, its programs, and the links of its promises. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import http, { type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, type TestContext, test } from 'node:test';
import { pathToFileURL } from 'node:url';
import type { App } from '../server.ts';
import { child, rawClient, root } from './helpers.ts';

const readme = await readFile(join(root, 'README.md'), 'utf8');
let folder: string;

/** What a user does: the three files, and each program of the README under the name in its first line. */
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'response-first-'));
  await writeFile(join(folder, 'package.json'), '{"type":"module"}');
  for (const file of ['background.ts', 'deps.ts', 'server.ts']) {
    await cp(join(root, file), join(folder, file));
  }
  const programs = readme.matchAll(/```ts\n\/\/ (\S+)\n(.*?)```/gs);
  for (const [, name = '', code = ''] of programs) {
    await writeFile(join(folder, name), code);
  }
});
after(() => rm(folder, { recursive: true }));

/** Each test gets an app of its own: a query makes a module be loaded anew. */
async function load<T extends object>(
  name: string,
  t: TestContext,
): Promise<T & { default: App; url: string }> {
  const address = `${pathToFileURL(join(folder, name)).href}?${encodeURIComponent(t.name)}`;
  const module = (await import(address)) as T & { default: App };
  const { url } = await module.default.listen({ port: 0 });
  t.after(() => module.default.close());
  return { ...module, url };
}

/** A server that the tasks of a recipe call. */
async function hook(
  t: TestContext,
  answer: (req: IncomingMessage, res: ServerResponse) => void,
): Promise<string> {
  const server = http.createServer(answer).listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return encodeURIComponent(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`);
}

const post = (url: string): Promise<Response> => fetch(url, { method: 'POST' });

test('the curl session of the README has its real output', async () => {
  await using server = child(['server.ts', '--port', '0'], { env: { LOG_FILE: join(folder, 'log.txt') } });
  const url = await server.url();
  const session = /```console\n(.*?)```/s.exec(readme)?.[1] ?? '';
  const steps = [...session.matchAll(/^\$ curl (.*)\n(.*)$/gm)];
  assert.ok(steps.length > 5);
  for (const [, command = '', output = ''] of steps) {
    const method = /-X (\S+)/.exec(command)?.[1] ?? 'GET';
    const path = /'http:\/\/127\.0\.0\.1:8000(.*?)'/.exec(command)?.[1] ?? '';
    const body = /-d '(.*?)'/.exec(command)?.[1] ?? null;
    const headers = body === null ? {} : { 'content-type': 'application/json' };
    const ask = async (): Promise<string> => (await fetch(url + path, { method, body, headers })).text();
    let text = await ask();
    if (path !== '/task-log') {
      assert.equal(text, output, command);
      continue;
    }
    // The tasks run after the responses, those of two requests in any order: ask until all have run.
    while (text.length < output.length) {
      text = await ask();
    }
    const sorted = (log: string): string[] => (JSON.parse(log) as { entries: string[] }).entries.sort();
    assert.deepEqual(sorted(text), sorted(output));
  }
});

test('the app of one’s own is served by the command line, and answers', async () => {
  await using server = child([join(folder, 'server.ts'), 'my-app.ts', '--port', '0'], { cwd: folder });
  const url = await server.url();
  assert.deepEqual(await (await post(`${url}/users/kim?email=a`)).json(), { created: 'kim' });
  assert.deepEqual(await (await fetch(`${url}/users/kim`)).json(), { name: 'kim', email: 'a' });
  assert.deepEqual(await (await fetch(`${url}/users/lee`)).json(), { detail: 'User not found' });
  await server.until('stdout', /\[audit\] created kim\n/);
});

test('background.ts alone serves a bare node:http server', async () => {
  await using server = child([join(folder, 'bare.ts')], { env: { PORT: '0' } });
  const port = Number(/port: (\d+)/.exec(await server.until('stdout', /port: \d+/))?.[1]);
  assert.equal(await (await fetch(`http://127.0.0.1:${port}/`)).text(), 'accepted\n');
  await server.until('stdout', /after the response\n/);
});

test('back-pressure answers 503 with Retry-After while too many requests are pending, and loses none', async (t) => {
  const held: ServerResponse[] = [];
  let arrived = (): void => {};
  const to = await hook(t, (_, res) => {
    held.push(res);
    arrived();
  });
  const { url, default: app } = await load('back-pressure.ts', t);
  const { port } = new URL(url);
  using client = await rawClient(Number(port)); // one connection: fetch would open a hundred
  const all = new Promise<void>((resolve) => {
    arrived = () => {
      if (held.length === 100) {
        resolve();
      }
    };
  });
  for (let count = 1; count <= 100; count += 1) {
    client.send(`POST /jobs?hook=${to} HTTP/1.1`, 'host: a', '', '');
    await client.until('HTTP/1.1 200 OK', count);
  }
  await all;
  client.send(`POST /jobs?hook=${to} HTTP/1.1`, 'host: a', '', '');
  const refused = await client.until('Too many tasks are waiting');
  assert.match(refused, /HTTP\/1\.1 503 Service Unavailable\r\n(.*\r\n)*retry-after: 1\r\n/);
  for (const res of held) {
    res.end();
  }
  await app.idle();
  assert.equal((await post(`${url}/jobs?hook=${to}`)).status, 200);
  arrived = () => held.at(-1)?.end();
  held.at(-1)?.end();
  await app.idle();
  assert.equal(held.length, 101);
});

test('a retry ends at the first success', async (t) => {
  const statuses = [500, 503, 200];
  let calls = 0;
  const to = await hook(t, (_, res) => void res.writeHead(statuses[calls++] ?? 500).end());
  const { url, default: app } = await load('retry.ts', t);
  await post(`${url}/jobs?hook=${to}`);
  await app.idle();
  assert.equal(calls, 3);
});

test('the last error of a retry is reported', async (t) => {
  const report = t.mock.method(console, 'error', () => {});
  const to = await hook(t, (_, res) => void res.writeHead(500).end());
  const { url, default: app } = await load('retry.ts', t);
  await post(`${url}/jobs?hook=${to}`);
  await app.idle();
  const messages = report.mock.calls.map(({ arguments: [, message] }) => message);
  assert.deepEqual(messages, ['Background task failed (deliver):']);
});

test('a worker thread computes, and its result arrives', async (t) => {
  const { url, default: app, results } = await load<{ results: number[] }>('worker.ts', t);
  await post(`${url}/fibonacci?n=20`);
  await app.idle();
  assert.deepEqual(results, [6765]);
});

test('a logger gets the error, the task and the URL in place of stderr', async (t) => {
  const report = t.mock.method(console, 'error', () => {});
  const { url, default: app, logged } = await load<{ logged: object[] }>('logger.ts', t);
  await post(`${url}/charge`);
  await app.idle();
  assert.deepEqual(logged, [{ message: 'Error: card refused', task: 'charge', url: '/charge' }]);
  assert.equal(report.mock.callCount(), 0);
});

test('the test of the README passes', async () => {
  await using run = child(['--test', '--test-reporter', 'tap', join(folder, 'my-app.test.ts')], {
    cwd: folder,
    env: { NODE_TEST_CONTEXT: undefined },
  });
  const { code } = await run.exited;
  assert.equal(code, 0, run.stdout);
  assert.match(run.stdout, /a new user gets a welcome mail/);
});

test('each promise links a test that exists, by a part of its title that its file has once', async () => {
  const [, table = ''] = /^## What is promised\n(.*?)^## /ms.exec(readme) ?? [];
  const [, ...promises] = table.split('\n').filter((line) => line.startsWith('| '));
  assert.ok(promises.length >= 20, `${promises.length} rows`);
  for (const promise of promises) {
    const [, title = '', file = ''] = /\| \[([^\]]+)\]\((test\/[\w.-]+\.test\.ts)\) \|$/.exec(promise) ?? [];
    assert.notEqual(file, '', `no test is linked: ${promise}`);
    const times = (await readFile(join(root, file), 'utf8')).split(title).length - 1;
    assert.equal(times, 1, `${file} has “${title}”`);
  }
});

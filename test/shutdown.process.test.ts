/** A signal to a process of its own: what it finishes, names, and exits with. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import http, { type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { describe, test } from 'node:test';
import { type Child, child, type Gate, gate, rawClient } from './helpers.ts';
import { LARGE, refusesConnections, slowReader, submit } from './shutdown.helpers.ts';

interface Process extends AsyncDisposable {
  readonly child: Child;
  readonly url: string;
  readonly port: number;
  /** The call with that name, once it has arrived: it is held until the test ends it. */
  call(name: string): Promise<ServerResponse>;
  /** The names of all calls so far. */
  readonly calls: readonly string[];
}

/** A process that serves an app module with `routes`. There, `await call('name')` is held until the test ends it. */
async function start(routes: string, options = '{}', readStderr?: Promise<unknown>): Promise<Process> {
  const arrivals = new Map<string, Gate<ServerResponse>>();
  const arrival = (name: string): Gate<ServerResponse> => {
    const known = arrivals.get(name) ?? gate<ServerResponse>();
    arrivals.set(name, known);
    return known;
  };
  const calls: string[] = [];
  const callbacks = http
    .createServer(({ url = '' }, res) => {
      calls.push(url.slice(1));
      arrival(url.slice(1)).open(res);
    })
    .listen(0, '127.0.0.1');
  await once(callbacks, 'listening');
  const folder = await mkdtemp(path.join(tmpdir(), 'shutdown-'));
  await writeFile(path.join(folder, 'package.json'), '{ "type": "module" }');
  await writeFile(
    path.join(folder, 'app.ts'),
    `
    import { subscribe, unsubscribe } from 'node:diagnostics_channel';
    import { backgroundTasks, createApp, get, post } from '${new URL('../server.ts', import.meta.url)}';
    const address = 'http://127.0.0.1:${(callbacks.address() as AddressInfo).port}/';
    const call = async (name: string): Promise<void> => void await (await fetch(address + name)).text();
    export default createApp([${routes}], ${options});`,
  );
  const started = child(
    ['server.ts', path.join(folder, 'app.ts'), '--port', '0'],
    readStderr && { readStderr },
  );
  const url = await started.url();
  const call: Process['call'] = (name) =>
    Promise.race([
      arrival(name),
      started.exited.then(() => {
        throw new Error(`The process ended before it called ${name}. ${started.stderr}`);
      }),
    ]);
  const dispose = async (): Promise<void> => {
    await started[Symbol.asyncDispose]();
    callbacks.close().closeAllConnections();
    await rm(folder, { recursive: true });
  };
  return {
    child: started,
    url,
    port: Number(new URL(url).port),
    call,
    calls,
    [Symbol.asyncDispose]: dispose,
  };
}

const TWO_TASKS = `
  post('/items', { tasks: backgroundTasks }, ({ tasks }) => {
    tasks.addTask(async function first() { await call('first'); });
    tasks.addTask(async function second() { await call('second'); });
    return 'accepted';
  })`;

describe('a signal', () => {
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    test(`after ${signal} the process accepts nothing, finishes its tasks and exits with 0`, async () => {
      await using app = await start(TWO_TASKS);
      using silent = await rawClient(app.port);
      assert.equal(await submit(`${app.url}/items`), '"accepted"');
      const first = await app.call('first');
      app.child.kill(signal);
      await silent.closed;
      await refusesConnections(app.port);
      assert.deepEqual(app.calls, ['first']);
      first.end();
      (await app.call('second')).end();
      assert.deepEqual(await app.child.exited, { code: 0, signal: null });
      assert.equal(app.child.stderr, '');
    });
  }

  for (const [first, second, code] of [
    ['SIGTERM', 'SIGINT', 130],
    ['SIGINT', 'SIGTERM', 143],
  ] as const) {
    test(`${second} after ${first} ends the process with ${code}, and what it drops is named`, async () => {
      await using app = await start(TWO_TASKS);
      using silent = await rawClient(app.port);
      await submit(`${app.url}/items`);
      await app.call('first');
      app.child.kill(first);
      await silent.closed;
      let isOver = false;
      app.child.exited.then(() => {
        isOver = true;
      });
      while (!isOver) {
        app.child.kill(second); // those that come at once are the same stop, until one is late enough
        await new Promise(setImmediate);
      }
      assert.deepEqual(await app.child.exited, { code, signal: null });
      assert.deepEqual(app.calls, ['first']);
      assert.equal(
        app.child.stderr,
        ['first', 'second'].map((name) => `Dropped at the second signal: ${name}\n`).join(''),
      );
    });
  }

  test('a slow reader has all of its answer before the process exits, and its task has run', async () => {
    await using app = await start(`
    get('/large', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(call, 'task');
      return 'x'.repeat(${LARGE});
    })`);
    using silent = await rawClient(app.port);
    using client = await slowReader(app.port);
    app.child.kill('SIGTERM');
    await silent.closed;
    assert.deepEqual(app.calls, []);
    client.socket.resume();
    (await app.call('task')).end();
    assert.equal((await client.closed).split('\r\n\r\n')[1]?.length, LARGE + 2);
    assert.deepEqual(await app.child.exited, { code: 0, signal: null });
  });

  test('a task that fails meanwhile is reported, and the exit code stays 0', async () => {
    await using app = await start(`
    post('/items', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(async function fails() { await call('first'); throw new Error('too late'); });
    })`);
    using silent = await rawClient(app.port);
    await submit(`${app.url}/items`);
    const first = await app.call('first');
    app.child.kill('SIGTERM');
    await silent.closed;
    first.end();
    assert.deepEqual(await app.child.exited, { code: 0, signal: null });
    assert.match(app.child.stderr, /fails.*Error: too late\n {4}at fails /);
  });
});

describe('the deadline', () => {
  test('at the deadline the unfinished tasks and requests are named on stderr, and the exit code is 1', async () => {
    await using app = await start(
      `${TWO_TASKS}, get('/hangs', () => call('handler'))`,
      '{ drainTimeoutMs: 200 }',
    );
    await submit(`${app.url}/items`);
    await app.call('first');
    using client = await rawClient(app.port);
    client.send('GET /hangs HTTP/1.1', 'host: a', '', '');
    await app.call('handler');
    app.child.kill('SIGTERM');
    assert.deepEqual(await app.child.exited, { code: 1, signal: null });
    assert.match(app.child.stderr, /^.*: first\n.*: second\n.*: GET \/hangs\n$/);
    assert.deepEqual(app.calls, ['first', 'handler']);
  });

  test('the process exits when what it has written was read, however late: all names are on stderr', async () => {
    const read = gate();
    await using app = await start(
      `
    post('/items', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(async function first() { await call('first'); });
      for (let count = 1; count < 4000; count += 1) tasks.addTask(function neverStarts() {});
      Reflect.get(process.stderr, '_handle').setBlocking(false); // tsx's own process shares it, and has it block
      const later = (): void => { unsubscribe('background-tasks:dropped', later); setImmediate(call, 'dropped'); };
      subscribe('background-tasks:dropped', later);
    })`,
      '{ drainTimeoutMs: 200 }',
      read,
    );
    await submit(`${app.url}/items`);
    await app.call('first');
    app.child.kill('SIGTERM');
    await app.call('dropped');
    read.open();
    assert.deepEqual(await app.child.exited, { code: 1, signal: null });
    assert.equal(app.child.stderr.match(/: neverStarts$/gm)?.length, 3999);
  });

  test('a promise that never settles holds the process until the deadline, and is named', async () => {
    await using app = await start(
      `
    post('/items', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(function neverSettles() { return new Promise(() => {}); });
    })`,
      '{ drainTimeoutMs: 200 }',
    );
    await submit(`${app.url}/items`);
    app.child.kill('SIGTERM');
    assert.deepEqual(await app.child.exited, { code: 1, signal: null });
    assert.match(app.child.stderr, /^.*: neverSettles\n$/);
  });
});

describe('what a task leaves behind', () => {
  test('a rejected promise that a task leaves behind is logged, and the process serves on', async () => {
    await using app = await start(`
    post('/items', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(function leaves() { void Promise.reject(new Error('orphan')); });
      tasks.addTask(call, 'second');
    }),
    post('/alive', () => 'alive')`);
    await submit(`${app.url}/items`);
    (await app.call('second')).end();
    await app.child.until('stderr', /Error: orphan\n {4}at leaves /);
    assert.equal(await submit(`${app.url}/alive`), '"alive"');
    app.child.kill('SIGTERM');
    assert.deepEqual(await app.child.exited, { code: 0, signal: null });
  });

  test('a throw in a listener that a task leaves behind ends the process', async () => {
    await using app = await start(`
    post('/items', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(function leaves() { setImmediate(function listener() { throw new Error('left behind'); }); });
    })`);
    await submit(`${app.url}/items`);
    assert.deepEqual(await app.child.exited, { code: 1, signal: null });
    assert.match(app.child.stderr, /Error: left behind\n {4}at .*listener/);
  });
});

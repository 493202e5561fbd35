/** No task starts before the response is out, and the client has all of it while tasks run. */
import assert from 'node:assert/strict';
import http from 'node:http';
import { describe } from 'node:test';
import { Worker } from 'node:worker_threads';
import { backgroundTasks, get } from '../server.ts';
import { gate, rawClient } from './helpers.ts';
import { ask, bodies, fence, firstAndThen, GET, Journal, serve, TOO_MUCH, test } from './server.helpers.ts';

describe('no task starts before the response is out', () => {
  test('no task starts before the handler has returned', async () => {
    const log = new Journal();
    const held = gate();
    await using server = await serve([
      get('/', { tasks: backgroundTasks }, async ({ tasks }) => {
        tasks.addTask(log.write, 'task');
        log.write('handler');
        await held;
        log.write('handler returns');
      }),
    ]);
    const answer = ask(server.url);
    await log.until('handler');
    await fence(server.url);
    assert.deepEqual(log.entries, ['handler']);
    held.open();
    assert.equal((await answer).status, 200);
    await server.app.idle();
    assert.deepEqual(log.entries, ['handler', 'handler returns', 'task']);
  });

  test('no task starts before the last chunk of a stream', async () => {
    const log = new Journal();
    const held = gate<string>();
    await using server = await serve([
      get('/', { tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(log.write, 'task');
        return new Response(firstAndThen(() => held));
      }),
    ]);
    using client = await rawClient(server.port);
    client.send(...GET('/'));
    await client.until('first');
    await fence(server.url);
    assert.deepEqual(log.entries, []);
    held.open('second');
    await client.until('0\r\n\r\n');
    await log.until('task');
  });

  for (const [kind, response] of Object.entries<() => unknown>({
    'a JSON value': () => TOO_MUCH,
    'a Response': () => new Response(TOO_MUCH),
  })) {
    test(`no task starts while a slow reader has not taken enough of ${kind}`, async () => {
      const log = new Journal();
      await using server = await serve([
        get('/', { tasks: backgroundTasks }, ({ tasks }) => {
          tasks.addTask(log.write, 'task');
          log.write('handler');
          return response();
        }),
      ]);
      using client = await rawClient(server.port);
      client.socket.pause();
      client.send(...GET('/', 'connection: close'));
      await log.until('handler');
      await fence(server.url);
      assert.deepEqual(log.entries, ['handler']);
      client.socket.resume();
      assert.ok((await client.closed).length > TOO_MUCH.length);
      await log.until('task');
    });
  }

  test('no task of a pipelined response starts while that waits behind another', async () => {
    const log = new Journal();
    const held = gate();
    await using server = await serve([
      get('/first', () => held),
      get('/second', { tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(log.write, 'task');
        log.write('handler');
      }),
    ]);
    using client = await rawClient(server.port);
    client.send(...GET('/first'), ...GET('/second'));
    await log.until('handler');
    await fence(server.url);
    assert.deepEqual(log.entries, ['handler']);
    held.open();
    await client.until('HTTP/1.1 200', 2);
    await log.until('task');
  });
});

/** Reads to the end of file in a thread of its own, then sets the flag. */
const CLIENT = `
  const { workerData: { port, head, flag } } = require('node:worker_threads');
  const socket = require('node:net').connect(port, '127.0.0.1', () => socket.write(head));
  socket.resume().once('end', () => { Atomics.store(flag, 0, 1); Atomics.notify(flag, 0); socket.destroy(); });`;

describe('the client has its response while the first task is held', () => {
  for (const [kind, response] of Object.entries(bodies)) {
    test(`the client has the whole of ${kind}, and its end of file, while the first task is held`, async () => {
      const log = new Journal();
      const held = gate();
      await using server = await serve([
        get('/', { tasks: backgroundTasks }, ({ tasks }) => {
          tasks.addTask(async () => {
            log.write('task');
            await held;
            log.write('task ends');
          });
          return response();
        }),
      ]);
      for (const head of [GET('/', 'connection: close'), ['GET / HTTP/1.0', '', '']]) {
        using client = await rawClient(server.port);
        client.send(...head);
        const received = await client.closed;
        assert.match(received, /^HTTP\/1\.1 \d{3} [^]*\r\n\r\n/);
        assert.equal(client.socket.readableEnded, true, 'an end of file, not a reset');
        const [, length] = /content-length: (\d+)/.exec(received.slice(0, 1000)) ?? [];
        if (length) {
          assert.equal(received.slice(received.indexOf('\r\n\r\n') + 4).length, Number(length));
        } else if (kind === 'a stream') {
          assert.match(received, /first[^]*second/);
        }
      }
      const agent = new http.Agent({ keepAlive: true });
      assert.ok((await ask(server.url, { agent })).status >= 200);
      await log.until('task');
      await fence(server.url);
      assert.deepEqual(log.entries, ['task', 'task', 'task']);
      held.open();
      agent.destroy();
    });
  }

  for (const [kind, response] of Object.entries(bodies)) {
    test(`a task that blocks the thread does not delay ${kind}, nor its end of file`, async () => {
      for (const head of [GET('/', 'connection: close'), ['GET / HTTP/1.0', '', '']]) {
        const flag = new Int32Array(new SharedArrayBuffer(4));
        const waited = gate<string>();
        let over = false;
        await using server = await serve([
          get('/', { tasks: backgroundTasks }, ({ tasks }) => {
            tasks.addTask(() => waited.open(Atomics.wait(flag, 0, 0, 10_000)));
            return response();
          }),
          // A queue that keeps the shared slice fresh: the start of the other one is no turn of the event loop by chance.
          get('/busy', { tasks: backgroundTasks }, ({ tasks }) => {
            const spin = async (): Promise<void> => {
              await new Promise(setImmediate);
              if (!over) {
                tasks.addTask(spin);
              }
            };
            tasks.addTask(spin);
          }),
        ]);
        await ask(`${server.url}/busy`);
        const workerData = { port: server.port, head: head.join('\r\n'), flag };
        const worker = new Worker(CLIENT, { eval: true, execArgv: [], workerData });
        const outcome = await waited;
        over = true;
        await worker.terminate();
        assert.notEqual(outcome, 'timed-out');
      }
    });
  }
});

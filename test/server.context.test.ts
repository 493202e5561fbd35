/** The async context of pipelined requests: tasks, clean-ups, streams and channels. */
import assert from 'node:assert/strict';
import { AsyncLocalStorage } from 'node:async_hooks';
import { channel } from 'node:diagnostics_channel';
import type http from 'node:http';
import { describe } from 'node:test';
import { type BackgroundTasks, backgroundTasks, createApp, depends, get, request } from '../server.ts';
import { gate, rawClient, stderr } from './helpers.ts';
import { firstAndThen, foreign, GET, Journal, test } from './server.helpers.ts';

describe('what runs later has the context of its request', () => {
  test('the tasks of a pipelined request run in their own context, and so does onTaskError', async () => {
    const log = new Journal();
    const storage = new AsyncLocalStorage<string>();
    const held = gate();
    const leave = (tasks: BackgroundTasks): void => {
      storage.run(`that of addTask in ${storage.getStore()}`, () =>
        tasks.addTask(() => log.write(`task in ${storage.getStore()}`)),
      );
      tasks.addTask(async () => {
        await new Promise(setImmediate);
        throw new Error('expected');
      });
      tasks.addTask(() => log.write(`last in ${storage.getStore()}`));
    };
    const app = createApp(
      [
        get('/first', { tasks: backgroundTasks }, async ({ tasks }) => {
          leave(tasks);
          await held;
        }),
        get('/second', { tasks: backgroundTasks }, ({ tasks }) => {
          leave(tasks);
          log.write('second handler');
        }),
      ],
      { onTaskError: () => log.write(`error in ${storage.getStore()}`) },
    );
    await using server = await foreign((req, res) =>
      storage.run(String(req.url), () => app.listener(req, res)),
    );
    using client = await rawClient(server.port);
    client.send(...GET('/first'), ...GET('/second'));
    await log.until('second handler');
    held.open();
    await client.until('HTTP/1.1 200', 2);
    await app.idle();
    for (const which of ['/first', '/second']) {
      assert.deepEqual(
        log.entries.filter((entry) => entry.endsWith(which)),
        [`task in that of addTask in ${which}`, `error in ${which}`, `last in ${which}`],
      );
    }
  });

  test('the clean-ups of a pipelined request run in its own context', async () => {
    const log = new Journal();
    const storage = new AsyncLocalStorage<string>();
    const held = gate();
    const cleaned = depends(async function* () {
      yield 'a value';
      log.write(`cleaned up in ${storage.getStore()}`);
    });
    const app = createApp([
      get('/first', { cleaned }, () => held),
      get('/second', { cleaned }, () => {
        log.write('second handler');
      }),
    ]);
    await using server = await foreign((req, res) =>
      storage.run(String(req.url), () => app.listener(req, res)),
    );
    using client = await rawClient(server.port);
    client.send(...GET('/first'), ...GET('/second'));
    await log.until('second handler');
    held.open();
    await client.until('HTTP/1.1 200', 2);
    await app.idle();
    assert.deepEqual(log.entries.slice(1).sort(), ['cleaned up in /first', 'cleaned up in /second']);
  });

  test('the source of a stream is cancelled in the context of its request', async () => {
    const log = new Journal();
    const storage = new AsyncLocalStorage<string>();
    const app = createApp([
      get(
        '/:name',
        () =>
          new Response(
            firstAndThen(
              () => gate<string>(),
              () => log.write(`cancelled in ${storage.getStore()}`),
            ),
          ),
      ),
    ]);
    await using server = await foreign((req, res) =>
      storage.run(String(req.url), () => app.listener(req, res)),
    );
    const clients = await Promise.all(
      ['/first', '/second'].map(async (url) => {
        const client = await rawClient(server.port);
        client.send(...GET(url));
        await client.until('first');
        return client;
      }),
    );
    for (const { socket } of clients) {
      socket.destroy();
    }
    await app.idle();
    assert.deepEqual(log.entries.toSorted(), ['cancelled in /first', 'cancelled in /second']);
  });

  test('the channels tell of the tasks of a pipelined request in its own context', async (t) => {
    const log: string[] = [];
    const storage = new AsyncLocalStorage<string>();
    const app = createApp(
      [
        get('/:name', { tasks: backgroundTasks }, ({ tasks }) => {
          tasks.addTask(() => {});
          tasks.addTask(() => {
            throw new Error('expected');
          });
          tasks.addTask(() => {});
        }),
      ],
      { afterFailure: 'stop', onTaskError: () => {} },
    );
    for (const event of ['start', 'end', 'error', 'dropped']) {
      const tell = (message: unknown): void => {
        const { index, request } = message as { index: number; request: http.IncomingMessage };
        log.push(`${request.url} ${event} ${index} in ${storage.getStore()}`);
      };
      channel(`background-tasks:${event}`).subscribe(tell);
      t.after(() => channel(`background-tasks:${event}`).unsubscribe(tell));
    }
    stderr(t);
    await using server = await foreign((req, res) =>
      storage.run(String(req.url), () => app.listener(req, res)),
    );
    using client = await rawClient(server.port);
    client.send(...GET('/first'), ...GET('/second'));
    await client.until('HTTP/1.1 200', 2);
    await app.idle();
    for (const url of ['/first', '/second']) {
      assert.deepEqual(
        log.filter((line) => line.startsWith(url)),
        ['start 0', 'end 0', 'start 1', 'error 1', 'dropped 2', 'end 1'].map(
          (event) => `${url} ${event} in ${url}`,
        ),
      );
    }
  });
});

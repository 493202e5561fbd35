/** While tasks run, the connection is free for the next request. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import http from 'node:http';
import { describe } from 'node:test';
import { backgroundTasks, createApp, get, path, post, request } from '../server.ts';
import { gate, rawClient, stderr } from './helpers.ts';
import {
  ask,
  bodies,
  fence,
  firstAndThen,
  foreign,
  GET,
  Journal,
  MiB,
  serve,
  source,
  test,
} from './server.helpers.ts';

describe('the connection is free', () => {
  for (const [state, failing] of Object.entries({ 'is held': false, 'has failed': true })) {
    for (const [kind, response] of Object.entries(bodies).filter(([kind]) => !kind.includes('MiB'))) {
      test(
        `after ${kind}, while a task ${state}, ` +
          'a request is served on another connection, on the same, and pipelined',
        async (t) => {
          stderr(t);
          const log = new Journal();
          const held = gate();
          await using server = await serve([
            get('/', { tasks: backgroundTasks }, ({ tasks }) => {
              if (failing) {
                tasks.addTask(() => {
                  throw new Error('expected');
                });
              }
              tasks.addTask(() => {
                log.write('task');
                return held;
              });
              return response();
            }),
            get('/next/:id', { id: path('id') }, ({ id }) => `next ${id}`),
          ]);
          using client = await rawClient(server.port);
          client.send(...GET('/'), ...GET('/next/pipelined'));
          await client.until('"next pipelined"');
          await log.until('task');
          client.send(...GET('/next/kept'));
          await client.until('"next kept"');
          assert.equal((await ask(`${server.url}/next/other`)).body, '"next other"');
          client.send(...GET('/next/two'), ...GET('/next/three'));
          await client.until('"next three"');
          assert.equal(server.app.pending, 1);
          held.open();
        },
      );
    }
  }

  test('two responses whose client leaves while both wait: both queues run, the second without the first', async () => {
    const log = new Journal();
    const held = gate();
    await using server = await serve([
      get('/first', { request, tasks: backgroundTasks }, async ({ tasks, request }) => {
        request.socket.once('close', () => log.write('gone'));
        tasks.addTask(log.write, 'first task');
        await held;
      }),
      get('/second', { tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(log.write, 'second task');
        log.write('second handler');
      }),
    ]);
    using client = await rawClient(server.port);
    client.send(...GET('/first'), ...GET('/second'));
    await log.until('second handler');
    await fence(server.url);
    client.socket.destroy();
    await log.until('second task');
    await fence(server.url);
    assert.deepEqual(log.entries, ['second handler', 'gone', 'second task']);
    held.open();
    await server.app.idle();
    assert.equal(log.entries.at(-1), 'first task');
  });

  test('a stream behind a response whose client left settles, and its source is cancelled', async (t) => {
    const lines = stderr(t);
    const log = new Journal();
    const held = gate();
    await using server = await serve([
      get('/first', () => held),
      get('/second', { tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(log.write, 'task');
        log.write('handler');
        return new Response(
          source(
            () => 'x'.repeat(MiB),
            () => log.write('cancelled'),
          ),
        );
      }),
    ]);
    using client = await rawClient(server.port);
    client.send(...GET('/first'), ...GET('/second'));
    await log.until('handler');
    await fence(server.url);
    client.socket.destroy();
    await Promise.all([log.until('task'), log.until('cancelled')]);
    held.open();
    await server.app.idle();
    assert.equal(log.entries.length, 3);
    assert.deepEqual(lines, []);
  });

  for (const [kind, read] of Object.entries<(incoming: http.IncomingMessage) => unknown>({
    'in part': async (incoming) => {
      for await (const _ of incoming.iterator({ destroyOnReturn: false })) {
        return;
      }
    },
    'in part, and then paused,': async (incoming) => {
      await once(incoming, 'data');
      incoming.pause();
    },
    'not at all': () => {},
  })) {
    test(`a body that was read ${kind} does not block the next request of its connection`, async () => {
      await using server = await serve([
        post('/', { request }, async ({ request }) => {
          await read(request);
        }),
        get('/next', () => 'next'),
      ]);
      using client = await rawClient(server.port);
      client.send('POST / HTTP/1.1', 'host: a', `content-length: ${4 * MiB}`, '', 'x'.repeat(4 * MiB));
      client.send(...GET('/next'));
      await client.until('"next"');
    });
  }

  test('2,000 requests on one connection leave no listener behind', async () => {
    const app = createApp([
      get('/', { request, tasks: backgroundTasks }, ({ request: { socket }, tasks }) => {
        tasks.addTask(() => {});
        return Object.fromEntries(
          socket.eventNames().map((name) => [String(name), socket.listenerCount(name)]),
        );
      }),
      get('/stream', () => new Response(firstAndThen(() => 'second'))),
    ]);
    await using server = await foreign(app.listener);
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    const counts: string[] = [];
    for (let n = 0; n < 2000; n += 1) {
      counts.push((await ask(`${server.url}/${n % 10 ? '' : 'stream'}`, { agent })).body);
      await app.idle();
    }
    agent.destroy();
    assert.deepEqual([...new Set(counts)], ['firstsecond', counts[1]]);
  });
});

/** `close()` in this process. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { describe, test } from 'node:test';
import { backgroundTasks, body, createApp, depends, get, post, strings } from '../server.ts';
import { type Gate, gate, rawClient, serve, stderr } from './helpers.ts';
import { LARGE, refusesConnections, slowReader, submit } from './shutdown.helpers.ts';

const closeHeaders = (received: string): number => received.match(/^connection: close\r$/gim)?.length ?? 0;

describe('close()', () => {
  test('close() finishes the running task, the queued ones and those that they add, and resolves last', async () => {
    const [started, held] = [gate(), gate()];
    const events: string[] = [];
    await using server = await serve([
      post('/items', { tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(async function first() {
          started.open();
          await held;
          events.push('first');
        });
        tasks.addTask(function second() {
          tasks.addTask(() => events.push('third'));
          events.push('second');
        });
      }),
    ]);
    await submit(`${server.url}/items`);
    await started;
    const closed = server.app.close().finally(() => events.push('closed'));
    await refusesConnections(server.port);
    assert.deepEqual(events, []);
    held.open();
    assert.deepEqual(await closed, { unfinished: [] });
    assert.deepEqual(events, ['first', 'second', 'third', 'closed']);
    assert.equal(server.app.pending, 0);
  });

  test('close() finishes the answer of a handler that is still at work, and then its tasks', async () => {
    const [arrived, held, ran] = [gate(), gate(), gate<string>()];
    await using server = await serve([
      post('/items', { tasks: backgroundTasks }, async ({ tasks }) => {
        tasks.addTask(ran.open, 'task');
        arrived.open();
        await held;
        return 'done';
      }),
    ]);
    const answer = submit(`${server.url}/items`);
    await arrived;
    const closed = server.app.close();
    await refusesConnections(server.port);
    held.open();
    assert.equal(await answer, '"done"');
    assert.deepEqual(await closed, { unfinished: [] });
    assert.equal(await ran, 'task');
  });

  test('close() waits for the clean-up of a dependency', async () => {
    const [started, held] = [gate(), gate()];
    const events: string[] = [];
    const session = depends(async function* () {
      yield;
      started.open();
      await held;
      events.push('cleaned up');
    });
    await using server = await serve([post('/items', { session }, () => 'ok')]);
    await submit(`${server.url}/items`);
    await started;
    const closed = server.app.close().finally(() => events.push('closed'));
    await refusesConnections(server.port);
    held.open();
    assert.deepEqual(await closed, { unfinished: [] });
    assert.deepEqual(events, ['cleaned up', 'closed']);
  });

  test('a task that fails meanwhile is reported, and is not unfinished', async (t) => {
    const lines = stderr(t);
    const [started, held] = [gate(), gate()];
    await using server = await serve([
      post('/items', { tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(async function fails() {
          started.open();
          await held;
          throw new Error('too late');
        });
      }),
    ]);
    await submit(`${server.url}/items`);
    await started;
    const closed = server.app.close();
    held.open();
    assert.deepEqual(await closed, { unfinished: [] });
    assert.equal(lines.length, 1);
    assert.match(lines.join(), /fails.*Error: too late\n {4}at /);
  });

  test('close() twice is the same promise, during and after', async () => {
    const [started, held] = [gate(), gate()];
    await using server = await serve([
      post('/items', { tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(() => {
          started.open();
          return held;
        });
      }),
    ]);
    await submit(`${server.url}/items`);
    await started;
    const closed = server.app.close();
    assert.equal(server.app.close(), closed);
    held.open();
    await closed;
    assert.equal(server.app.close(), closed);
  });

  test('close() of an app that never listened resolves, and listen() is refused from then on', async () => {
    const app = createApp([]);
    const closed = app.close();
    await assert.rejects(app.listen({ port: 0 }), /before close\(\)/);
    assert.deepEqual(await closed, { unfinished: [] });
    await assert.rejects(app.listen({ port: 0 }), /before close\(\)/);
  });

  test('close() while listen() is under way ends both', async () => {
    const app = createApp([]);
    const listening = assert.rejects(
      app.listen({ port: 0 }),
      /close\(\) to be called after listen\(\) had ended/,
    );
    assert.deepEqual(await app.close(), { unfinished: [] });
    await listening;
  });

  test('close() after a listen() that failed resolves', async () => {
    await using other = await serve([]);
    const app = createApp([]);
    await assert.rejects(app.listen({ port: other.port }), { code: 'EADDRINUSE' });
    assert.deepEqual(await app.close(), { unfinished: [] });
  });

  test('a handler may call close(): its own answer arrives, with Connection: close', async () => {
    const closed = gate<object>();
    await using server = await serve([
      post('/stop', () => {
        closed.open(server.app.close());
        return 'stopping';
      }),
    ]);
    using client = await rawClient(server.port);
    client.send('POST /stop HTTP/1.1', 'host: a', 'content-length: 0', '', '');
    const received = await client.closed;
    assert.ok(received.endsWith('\r\n\r\n"stopping"'));
    assert.equal(closeHeaders(received), 1);
    assert.deepEqual(await closed, { unfinished: [] });
  });
});

/** An app with one route; each of its requests is held until the test answers it. */
async function heldRequests() {
  const requests = ['a', 'b'].map((name) => ({ name, arrived: gate(), held: gate(), ran: gate() })) as [
    Held,
    Held,
  ];
  const server = await serve(
    requests.map(({ name, arrived, held, ran }) =>
      get(`/${name}`, { tasks: backgroundTasks }, async ({ tasks }) => {
        tasks.addTask(ran.open, undefined);
        arrived.open();
        await held;
        return name;
      }),
    ),
  );
  return { server, requests, [Symbol.asyncDispose]: server[Symbol.asyncDispose] };
}

interface Held {
  readonly name: string;
  readonly arrived: Gate;
  readonly held: Gate;
  readonly ran: Gate;
}

const HALF_AN_ORDER = [
  'POST /orders HTTP/1.1',
  'host: a',
  'content-type: application/json',
  'content-length: 14',
  '',
  '{"item":',
];

describe('connections, while the app closes', () => {
  test('a kept connection, one that sent nothing and one with half a head end at once', async () => {
    const [arrived, held] = [gate(), gate()];
    await using server = await serve([
      get('/', () => 'ok'),
      get('/held', () => {
        arrived.open();
        return held;
      }),
    ]);
    using kept = await rawClient(server.port);
    using silent = await rawClient(server.port);
    using half = await rawClient(server.port);
    using busy = await rawClient(server.port);
    kept.send('GET / HTTP/1.1', 'host: a', '', '');
    half.send('GET / HTTP/1.1', 'host');
    busy.send('GET /held HTTP/1.1', 'host: a', '', '');
    assert.equal(closeHeaders(await kept.until('"ok"')), 0);
    await arrived;
    const closed = server.app.close();
    assert.ok((await kept.closed).endsWith('"ok"'));
    assert.equal(await silent.closed, '');
    assert.equal(await half.closed, '');
    held.open();
    assert.ok((await busy.closed).endsWith('null')); // at half of drainTimeoutMs it would have been cut too
    assert.deepEqual(await closed, { unfinished: [] });
  });

  test('a request that arrives on a kept connection is served, the last answer with Connection: close', async () => {
    await using app = await heldRequests();
    const [a, b] = app.requests;
    using client = await rawClient(app.server.port);
    client.send('GET /a HTTP/1.1', 'host: a', '', '');
    await a.arrived;
    const closed = app.server.app.close();
    client.send('GET /b HTTP/1.1', 'host: a', '', '');
    await b.arrived;
    a.held.open();
    assert.equal(closeHeaders(await client.until('"a"')), 0);
    await a.ran; // the server has seen the end of its answer
    b.held.open();
    const received = await client.closed;
    assert.ok(received.endsWith('"b"'));
    assert.equal(closeHeaders(received), 1);
    assert.deepEqual(await closed, { unfinished: [] });
    await b.ran;
  });

  test('pipelined answers that are ready in the other order both arrive, and the connection ends', async () => {
    await using app = await heldRequests();
    const [a, b] = app.requests;
    using client = await rawClient(app.server.port);
    client.send('GET /a HTTP/1.1', 'host: a', '', 'GET /b HTTP/1.1', 'host: a', '', '');
    await Promise.all([a.arrived, b.arrived]);
    const closed = app.server.app.close();
    b.held.open();
    await refusesConnections(app.server.port);
    a.held.open();
    assert.match(await client.closed, /\r\n\r\n"a"HTTP\/1\.1 200 OK\r\n[\s\S]*\r\n\r\n"b"$/);
    assert.deepEqual(await closed, { unfinished: [] });
    await Promise.all([a.ran, b.ran]);
  });

  test('a slow reader gets all of a large JSON answer, and then its task runs', async () => {
    const ran = gate();
    await using server = await serve([
      get('/large', { tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(ran.open, undefined);
        return 'x'.repeat(LARGE);
      }),
    ]);
    using client = await slowReader(server.port);
    const closed = server.app.close();
    await refusesConnections(server.port);
    assert.equal(server.app.pending, 1);
    client.socket.resume();
    assert.equal((await client.closed).split('\r\n\r\n')[1]?.length, LARGE + 2);
    assert.deepEqual(await closed, { unfinished: [] });
    await ran;
  });

  test('a body that was half sent may be finished: the request is served, and its task runs', async () => {
    const [arrived, ran] = [gate(), gate<string>()];
    const arrives = depends(arrived.open);
    await using server = await serve([
      post(
        '/orders',
        { arrives, order: body(strings('item')), tasks: backgroundTasks },
        ({ order: { item }, tasks }) => {
          tasks.addTask(ran.open, item);
          return item;
        },
      ),
    ]);
    using client = await rawClient(server.port);
    client.send(...HALF_AN_ORDER);
    await arrived;
    const closed = server.app.close();
    client.send('"cat"}');
    assert.ok((await client.closed).endsWith('"cat"'));
    assert.deepEqual(await closed, { unfinished: [] });
    assert.equal(await ran, 'cat');
  });
});

describe('the deadline', () => {
  test('at half of drainTimeoutMs every connection is destroyed, and the tasks have the other half', async () => {
    const [arrived, events] = [gate(), [] as string[]];
    const arrives = depends(arrived.open);
    await using server = await serve(
      [
        get('/large', { tasks: backgroundTasks }, ({ tasks }) => {
          tasks.addTask(() => events.push('after a reader that stalls'));
          return 'x'.repeat(LARGE);
        }),
        get('/endless', { tasks: backgroundTasks }, ({ tasks }) => {
          tasks.addTask(() => events.push('after a stream without end'));
          return new Response(
            new ReadableStream({ start: (controller) => controller.enqueue(Buffer.from('first')) }),
          );
        }),
        post('/orders', { arrives, order: body(strings('item')), tasks: backgroundTasks }, () =>
          events.push('handler'),
        ),
      ],
      { drainTimeoutMs: 2000 },
    );
    using _reader = await slowReader(server.port);
    using endless = await rawClient(server.port);
    endless.send('GET /endless HTTP/1.1', 'host: a', '', '');
    await endless.until('first');
    using half = await rawClient(server.port);
    half.send(...HALF_AN_ORDER);
    await arrived;
    assert.deepEqual(await server.app.close(), { unfinished: [] });
    assert.deepEqual(events.sort(), ['after a reader that stalls', 'after a stream without end']);
    assert.equal(await half.closed, '');
  });

  test('at the deadline tasks and requests are named, and what has not started never does', async (t) => {
    const lines = stderr(t);
    const [started, arrived, arrivedToo, held] = [gate(), gate(), gate(), gate()];
    const ran: string[] = [];
    await using server = await serve(
      [
        post('/tasks', { tasks: backgroundTasks }, ({ tasks }) => {
          tasks.addTask(async function running() {
            started.open();
            await held;
            ran.push('running');
          });
          tasks.addTask(function queued() {
            ran.push('queued');
          });
        }),
        post('/both', { tasks: backgroundTasks }, ({ tasks }) => {
          tasks.addTask(function queuedByHandler() {
            ran.push('queuedByHandler');
          });
          arrived.open();
          return held;
        }),
        get('/hangs', () => {
          arrivedToo.open();
          return held;
        }),
      ],
      { drainTimeoutMs: 200 },
    );
    await submit(`${server.url}/tasks`);
    await started;
    using both = await rawClient(server.port);
    both.send('POST /both HTTP/1.1', 'host: a', 'content-length: 0', '', '');
    await arrived;
    using hanging = await rawClient(server.port);
    hanging.send('GET /hangs HTTP/1.1', 'host: a', '', '');
    await arrivedToo;
    const names = ['running', 'queued', 'queuedByHandler', 'GET /hangs'];
    assert.deepEqual(await server.app.close(), { unfinished: names });
    assert.deepEqual(
      lines.map((line) => line.split(': ')[1]),
      names,
    );
    assert.deepEqual([await both.closed, await hanging.closed], ['', '']);
    held.open();
    await server.app.idle();
    assert.deepEqual(ran, ['running']);
  });
});

describe('a mounted app', () => {
  test('close() of a mounted app finishes its requests, and leaves the server to its owner', async () => {
    const [held, ran] = [gate(), gate<string>()];
    const app = createApp([
      post('/items', { tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(async () => {
          await held;
          ran.open('task');
        });
        return 'ok';
      }),
    ]);
    const owner = http.createServer(app.listener).listen(0, '127.0.0.1');
    await once(owner, 'listening');
    const { port } = owner.address() as AddressInfo;
    try {
      using kept = await rawClient(port);
      kept.send('POST /items HTTP/1.1', 'host: a', 'content-length: 0', '', '');
      await kept.until('"ok"');
      const closed = app.close();
      held.open();
      assert.deepEqual(await closed, { unfinished: [] });
      assert.equal(await ran, 'task');
      assert.equal(owner.listening, true);
      for (const client of [kept, await rawClient(port)]) {
        client.send('POST /items HTTP/1.1', 'host: a', 'content-length: 0', '', '');
        assert.equal(closeHeaders(await client.until('"ok"', client === kept ? 2 : 1)), 0);
        client.socket.destroy();
      }
      await app.idle();
    } finally {
      owner.close();
    }
  });
});

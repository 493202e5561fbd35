/** A stream that breaks, or a client that leaves, does not discard the queue. */
import assert from 'node:assert/strict';
import type { ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { describe } from 'node:test';
import {
  backgroundTasks,
  body,
  createApp,
  depends,
  get,
  path,
  post,
  request,
  route,
  strings,
} from '../server.ts';
import { gate, rawClient, stderr } from './helpers.ts';
import {
  bodies,
  fence,
  firstAndThen,
  foreign,
  GET,
  gone,
  Journal,
  serve,
  TOO_MUCH,
  test,
} from './server.helpers.ts';

const broken = { 'an error': new Error('broken'), nothing: undefined, 'a text': 'broken' };

describe('a stream that breaks', () => {
  for (const [kind, error] of Object.entries(broken)) {
    test(`a stream that breaks midway with ${kind} is reported, and does not discard the queue`, async (t) => {
      const lines = stderr(t);
      const log = new Journal();
      const held = gate();
      await using server = await serve([
        get('/', { tasks: backgroundTasks }, ({ tasks }) => {
          tasks.addTask(log.write, 'task');
          return new Response(
            firstAndThen(async () => {
              await held;
              throw error;
            }),
          );
        }),
      ]);
      using client = await rawClient(server.port);
      client.send(...GET('/?a=b'));
      await client.until('first');
      held.open();
      const received = await client.closed;
      assert.match(received, /^HTTP\/1\.1 200 OK\r\n/);
      assert.doesNotMatch(received, /\r\n0\r\n\r\n$/, 'the client can tell that it is not whole');
      await log.until('task');
      await fence(server.url);
      await server.app.idle();
      assert.deepEqual(log.entries, ['task']);
      assert.equal(lines.length, 1);
      assert.match(lines[0] ?? '', /^The response to GET \/\?a=b broke off: /);
      if (error instanceof Error) {
        assert.match(lines[0] ?? '', /Error: broken\n +at /);
      } else {
        assert.ok(lines[0]?.endsWith(`: ${String(error)}`));
      }
    });
  }

  test('a stream that breaks behind another response ends its connection, not the queue', async (t) => {
    const lines = stderr(t);
    const log = new Journal();
    const held = gate();
    await using server = await serve([
      get('/first', () => held),
      get('/second', { tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(log.write, 'task');
        return new Response(
          firstAndThen(() => {
            setImmediate(() => log.write('broken'));
            throw new Error('broken');
          }),
        );
      }),
    ]);
    using client = await rawClient(server.port);
    client.send(...GET('/first'), ...GET('/second'));
    await log.until('broken');
    held.open();
    await client.closed;
    await log.until('task');
    await server.app.idle();
    assert.match(lines.join('\n'), /^The response to GET \/second broke off: Error: broken\n/);
  });
});

const leaving: Record<string, (socket: Socket) => unknown> = {
  'closes the connection': (socket) => socket.destroy(),
  'resets it': (socket) => socket.resetAndDestroy(),
  'closes its half': (socket) => socket.end(),
};

describe('a client that leaves', () => {
  for (const [how, leave] of Object.entries(leaving)) {
    test(`a client that ${how} while the handler runs does not discard the queue`, async (t) => {
      const lines = stderr(t);
      const log = new Journal();
      await using server = await serve([
        route(
          'POST',
          '/:kind',
          { kind: path('kind'), request, tasks: backgroundTasks },
          async ({ kind, request, tasks }) => {
            tasks.addTask(log.write, `before, ${kind}`);
            log.write('handler');
            await gone(request.socket);
            tasks.addTask(log.write, `after, ${kind}`);
            return bodies[decodeURIComponent(kind)]?.();
          },
        ),
      ]);
      for (const kind of Object.keys(bodies)) {
        log.entries.length = 0;
        using client = await rawClient(server.port);
        // Of a body that nothing reads, only half has come.
        client.send(
          `POST /${encodeURIComponent(kind)} HTTP/1.1`,
          'host: a',
          'content-length: 100',
          '',
          'x'.repeat(50),
        );
        await log.until('handler');
        leave(client.socket);
        await server.app.idle();
        assert.deepEqual(log.entries, ['handler', `before, ${kind}`, `after, ${kind}`]);
      }
      assert.deepEqual(lines, []);
    });

    test(`a client that ${how} after its whole body was read does not discard the queue`, async () => {
      const log = new Journal();
      await using server = await serve([
        post(
          '/',
          { item: body(strings('item')), request, tasks: backgroundTasks },
          async ({ item: { item }, request, tasks }) => {
            tasks.addTask(log.write, item);
            log.write('handler');
            await gone(request.socket);
          },
        ),
      ]);
      using client = await rawClient(server.port);
      client.send(
        'POST / HTTP/1.1',
        'host: a',
        'content-type: application/json',
        'content-length: 14',
        '',
        '{"item":"tea"}',
      );
      await log.until('handler');
      leave(client.socket);
      await log.until('tea');
    });

    test(`a request whose body is being read when its client ${how} is not accepted: no task runs`, async (t) => {
      const lines = stderr(t);
      const log = new Journal();
      const queued = depends({ tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(log.write, 'task');
        log.write('dependency');
      });
      await using server = await serve([
        post('/', { queued, item: body(strings('item')) }, () => log.write('handler')),
      ]);
      using client = await rawClient(server.port);
      client.send(
        'POST / HTTP/1.1',
        'host: a',
        'content-type: application/json',
        'content-length: 100',
        '',
        '{"item":',
      );
      await log.until('dependency');
      leave(client.socket);
      await server.app.idle();
      await fence(server.url);
      assert.deepEqual(log.entries, ['dependency']);
      assert.deepEqual(lines, []);
    });

    test(`a client that ${how} after the response leaves the tasks alone`, async () => {
      const log = new Journal();
      await using server = await serve([
        get('/', { request, tasks: backgroundTasks }, ({ request, tasks }) => {
          tasks.addTask(() => gone(request.socket));
          tasks.addTask(log.write, 'task');
        }),
      ]);
      using client = await rawClient(server.port);
      client.send(...GET('/'));
      await client.until('null');
      leave(client.socket);
      await log.until('task');
    });

    if (how === 'closes its half') {
      continue; // and reads on, or stalls
    }
    test(`a client that ${how} in the middle of much JSON does not discard the queue`, async (t) => {
      const lines = stderr(t);
      const log = new Journal();
      await using server = await serve([
        get('/', { tasks: backgroundTasks }, ({ tasks }) => {
          tasks.addTask(log.write, 'task');
          log.write('handler');
          return TOO_MUCH;
        }),
      ]);
      using client = await rawClient(server.port);
      client.socket.pause();
      client.send(...GET('/'));
      await log.until('handler');
      await fence(server.url);
      assert.deepEqual(log.entries, ['handler']);
      leave(client.socket);
      await log.until('task');
      assert.deepEqual(lines, []);
    });

    test(`a client that ${how} midstream does not discard the queue; the source is cancelled, nothing is reported`, async (t) => {
      const lines = stderr(t);
      const log = new Journal();
      await using server = await serve([
        get('/', { tasks: backgroundTasks }, ({ tasks }) => {
          tasks.addTask(log.write, 'task');
          return new Response(
            firstAndThen(
              () => gate<string>(),
              () => log.write('cancelled'),
            ),
          );
        }),
      ]);
      using client = await rawClient(server.port);
      client.send(...GET('/'));
      await client.until('first');
      leave(client.socket);
      await Promise.all([log.until('task'), log.until('cancelled')]);
      await server.app.idle();
      assert.equal(log.entries.length, 2);
      assert.deepEqual(lines, []);
    });
  }

  test("where 'finish' comes after the 'close' of the connection, tasks and clean-ups run once", async () => {
    const log = new Journal();
    const cleaned = depends(function* () {
      yield;
      log.write('cleaned up');
    });
    const responses: ServerResponse[] = [];
    const app = createApp([
      get('/', { cleaned, request, tasks: backgroundTasks }, async ({ request, tasks }) => {
        tasks.addTask(log.write, 'task');
        log.write('handler');
        await gone(request.socket);
      }),
    ]);
    await using server = await foreign((req, res) => {
      responses.push(res);
      app.listener(req, res);
    });
    using client = await rawClient(server.port);
    client.send(...GET('/'));
    await log.until('handler');
    client.socket.destroy();
    await app.idle();
    responses[0]?.emit('finish'); // the Nodes of today do not emit it so late
    await app.idle();
    const { unfinished } = await app.close();
    assert.deepEqual([log.entries, app.pending, unfinished], [['handler', 'task', 'cleaned up'], 0, []]);
  });
});

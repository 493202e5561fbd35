/** A reader that takes nothing of its response counts as gone after `stallTimeoutMs`. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import http from 'node:http';
import type { Socket } from 'node:net';
import { describe } from 'node:test';
import { backgroundTasks, body, createApp, get, post, request, strings } from '../server.ts';
import { gate, type RawClient, rawClient, stderr } from './helpers.ts';
import {
  ask,
  firstAndThen,
  foreign,
  GET,
  Journal,
  MiB,
  serve,
  source,
  TOO_MUCH,
  test,
} from './server.helpers.ts';

/** Sends an empty line, and again; each one that the server reads starts the timer of its socket anew. */
function pester({ socket }: RawClient): Disposable {
  const timer = setInterval(() => socket.write('\r\n'), 5);
  return { [Symbol.dispose]: () => clearInterval(timer) };
}

/** Has the client read on, to `text`. It looks at the end only: the whole is large. */
const takes = ({ socket }: RawClient, text: string): Promise<void> =>
  new Promise((resolve) => {
    let end = '';
    socket
      .on('data', (chunk: string) => {
        end = (end + chunk).slice(-100);
        if (end.includes(text)) {
          resolve();
        }
      })
      .resume();
  });

describe('a reader that takes nothing', () => {
  // Above: a reader that is slow. Here: one that takes nothing at all.
  for (const [kind, response] of Object.entries<(log: Journal) => unknown>({
    'of a JSON value': () => TOO_MUCH,
    'of a stream without end': (log) =>
      new Response(
        source(
          () => 'x'.repeat(MiB),
          () => log.write('cancelled'),
        ),
      ),
    'of a head without a body': () => new Response(null, { status: 204, headers: { 'x-large': TOO_MUCH } }),
  })) {
    for (const [place, targets] of [
      ['', ['/']],
      [', pipelined behind another response,', ['/small', '/']],
    ] as const) {
      test(`a reader ${kind}${place} that takes nothing for stallTimeoutMs counts as gone`, async (t) => {
        const lines = stderr(t);
        const log = new Journal();
        await using server = await serve(
          [
            get('/small', () => null),
            get('/', { request, tasks: backgroundTasks }, ({ request, tasks }) => {
              request.socket.once('close', () => log.write('gone'));
              tasks.addTask(log.write, 'task');
              return response(log);
            }),
          ],
          { stallTimeoutMs: 20 },
        );
        using client = await rawClient(server.port);
        client.socket.pause();
        client.send(...targets.flatMap((target) => GET(target)));
        await log.until('task');
        await server.app.idle();
        assert.deepEqual(log.entries.toSorted(), [
          ...(kind.includes('stream') ? ['cancelled'] : []),
          'gone',
          'task',
        ]);
        assert.equal(log.entries.indexOf('task') > log.entries.indexOf('gone'), true);
        assert.deepEqual(lines, []);
      });
    }
  }

  for (const [kind, response] of Object.entries<() => unknown>({
    'of a JSON value': () => TOO_MUCH,
    'of a stream without end': () => new Response(source(() => 'x'.repeat(MiB))),
  })) {
    for (const place of ['', ', pipelined behind a response that it took,']) {
      test(`a reader ${kind}${place} that takes nothing, though it sends, counts as gone`, async (t) => {
        const lines = stderr(t);
        const log = new Journal();
        const arrived = gate<Socket>();
        await using server = await serve(
          [
            get('/large', { tasks: backgroundTasks }, ({ tasks }) => {
              tasks.addTask(log.write, 'the first is out');
              return TOO_MUCH;
            }),
            get('/', { request, tasks: backgroundTasks }, ({ request, tasks }) => {
              tasks.addTask(log.write, 'task');
              arrived.open(request.socket);
              return response();
            }),
          ],
          { stallTimeoutMs: 500 },
        );
        using client = await rawClient(server.port);
        client.send(...(place ? GET('/large') : []), ...GET('/'));
        const socket = await arrived;
        if (place) {
          await log.until('the first is out');
        }
        assert.equal(socket.destroyed, false);
        client.socket.pause();
        using _sending = pester(client);
        await log.until('task');
        assert.equal(socket.destroyed, true);
        assert.deepEqual(lines, []);
      });
    }
  }

  test('what a reader that stalls has sent is answered once it takes its response', async () => {
    const stalled = gate();
    await using server = await serve(
      [
        get('/', { request }, ({ request: { socket } }) => {
          socket.once('pause', stalled.open);
          return TOO_MUCH;
        }),
        post('/', { item: body(strings('item')) }, ({ item }) => item),
      ],
      { stallTimeoutMs: 500 },
    );
    using client = await rawClient(server.port);
    client.socket.pause();
    client.send(...GET('/'));
    {
      using _sending = pester(client);
      await stalled;
    }
    client.send(
      'POST / HTTP/1.1',
      'host: a',
      'content-type: application/json',
      'content-length: 14',
      '',
      '{"item":"tea"}',
    );
    await takes(client, '{"item":"tea"}');
  });

  for (const [how, leave] of Object.entries({
    closes: (socket: Socket) => socket.destroy(),
    resets: (socket: Socket) => socket.resetAndDestroy(),
    'closes its half': (socket: Socket) => socket.end(),
  })) {
    for (const when of ['while it stalls', 'once it has taken what there was of a stream']) {
      test(`a reader that ${how} ${when} is seen to be gone`, async () => {
        const log = new Journal();
        const stalled = gate();
        const parts = [TOO_MUCH, 'the last part'];
        await using server = await serve(
          [
            get('/', { request, tasks: backgroundTasks }, ({ request, tasks }) => {
              tasks.addTask(log.write, 'task');
              request.socket.once('pause', stalled.open);
              return new Response(source(() => parts.shift() ?? gate<string>()));
            }),
          ],
          { stallTimeoutMs: 500 },
        );
        using client = await rawClient(server.port);
        client.socket.pause();
        client.send(...GET('/'));
        {
          using _sending = pester(client);
          await stalled;
        }
        if (when !== 'while it stalls') {
          await takes(client, 'the last part');
        }
        leave(client.socket);
        await log.until('task');
      });
    }
  }

  test('a client that sends its request while it takes nothing of the response is read on', async () => {
    const read = gate<unknown>();
    await using server = await serve(
      [
        post('/', { request }, ({ request }) => {
          const readAll = async (): Promise<void> => {
            for await (const _ of request) {
              if (performance.now() > end) {
                client.send('0', '', '');
              } else {
                client.send('1', 'x', '');
              }
            }
          };
          readAll().then(read.open, read.open);
          return new Response(source(() => 'x'.repeat(MiB)));
        }),
      ],
      { stallTimeoutMs: 300 },
    );
    using client = await rawClient(server.port);
    client.socket.pause();
    const end = performance.now() + 1000; // three looks at the reader
    client.send('POST / HTTP/1.1', 'host: a', 'transfer-encoding: chunked', '', '1', 'x', '');
    assert.equal(await read, undefined);
  });
});

describe('the timeout of a response ends with it', () => {
  for (const how of ['kept', 'pipelined']) {
    test(`the stallTimeoutMs of a response ends with it: no ${how} one after it is cut`, async () => {
      const log = new Journal();
      const app = createApp([
        get('/first', { tasks: backgroundTasks }, ({ tasks }) => {
          tasks.addTask(log.write, 'the first is out');
          return new Response(
            firstAndThen(async () => {
              if (how === 'pipelined') {
                await log.until('second handler');
              }
              return 'rest';
            }),
          );
        }),
        get('/second', { request }, async ({ request: { socket } }) => {
          log.write('second handler');
          await log.until('the first is out');
          return { timeout: socket.timeout };
        }),
      ]);
      await using server = await foreign(app.listener, { keepAliveTimeout: 0 }); // or Node sets one of its own
      using client = await rawClient(server.port);
      client.send(...GET('/first'));
      if (how === 'kept') {
        await log.until('the first is out');
      }
      client.send(...GET('/second'));
      assert.match(await client.until('}'), /\{"timeout":0\}/);
    });
  }

  test('a timeout that a host sets on its sockets ends the connection of a slow handler, not its tasks', async () => {
    const log = new Journal();
    const slow = get('/', { request, tasks: backgroundTasks }, async ({ request: { socket }, tasks }) => {
      tasks.addTask(log.write, 'task');
      await once(socket.setTimeout(1), 'close');
      return 'slow';
    });
    await using server = await serve([slow]);
    using client = await rawClient(server.port);
    client.send(...GET('/'));
    assert.equal(await client.closed, '');
    await log.until('task');
  });

  test('the stallTimeoutMs of a response ends with it: Node closes an idle connection', async () => {
    const seen = gate<number | undefined>();
    await using server = await serve(
      [
        get('/', { request, tasks: backgroundTasks }, ({ request: { socket }, tasks }) => {
          tasks.addTask(() => seen.open(socket.timeout));
          return new Response(source(() => undefined));
        }),
      ],
      { stallTimeoutMs: 1_000 },
    );
    using client = await rawClient(server.port);
    client.send(...GET('/'));
    const timeout = await seen;
    assert.ok(timeout && timeout >= http.createServer().keepAliveTimeout, `got ${timeout}`);
  });

  test('a stream that is quiet for longer than stallTimeoutMs is not cut', async () => {
    await using server = await serve(
      [
        get(
          '/',
          { request },
          ({ request: { socket } }) =>
            new Response(
              firstAndThen(async () => {
                await once(socket, 'timeout');
                return 'second';
              }),
            ),
        ),
      ],
      { stallTimeoutMs: 20 },
    );
    assert.equal((await ask(server.url)).body, 'firstsecond');
  });
});

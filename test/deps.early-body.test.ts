/** Where a route declares `body()`, reading begins when the request arrives: the order of declaration does not matter. */
import assert from 'node:assert/strict';
import { describe } from 'node:test';
import {
  backgroundTasks,
  body,
  createApp,
  type Dependencies,
  depends,
  get,
  HTTPError,
  post,
  query,
  request,
  strings,
} from '../server.ts';
import { gate, rawClient, stderr } from './helpers.ts';
import { fence, foreign, GET, gone, Journal, serve, test } from './server.helpers.ts';

const head = (length: number): string[] => [
  'POST / HTTP/1.1',
  'host: a',
  'content-type: application/json',
  `content-length: ${length}`,
  '',
];

const TEA = '{"item":"tea"}';
const item = body(strings('item'));

/** A dependency that works until the client is gone. */
const untilGone = (log: Journal) =>
  depends({ request }, async ({ request }) => {
    const { socket } = request;
    log.write('dependency');
    await gone(socket);
    return 'gone';
  });

describe('a whole request whose client leaves while a dependency is at work', () => {
  const orders: Record<string, (log: Journal) => Dependencies> = {
    'before body()': (log) => ({ slow: untilGone(log), item }),
    'behind body()': (log) => ({ item, slow: untilGone(log) }),
    'between two of body()': (log) => ({ item, slow: untilGone(log), again: body(strings('item')) }),
    'before body() of a dependency': (log) => ({
      slow: untilGone(log),
      order: depends({ item }, (values) => values.item),
    }),
    'in the same dependency': (log) => ({ order: depends({ slow: untilGone(log), item }, () => 'order') }),
  };

  for (const [where, declared] of Object.entries(orders)) {
    test(`the tasks run where the dependency is declared ${where}`, async (t) => {
      const lines = stderr(t);
      const log = new Journal();
      const route = post('/', { ...declared(log), tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(log.write, 'task');
        log.write('handler');
      });
      await using server = await serve([route]);
      using client = await rawClient(server.port);
      client.send(...head(TEA.length), TEA);
      await log.until('dependency');
      await fence(server.url);
      client.socket.destroy();
      await log.until('task');
      await server.app.idle();
      assert.deepEqual(log.entries, ['dependency', 'handler', 'task']);
      assert.deepEqual(lines, []);
    });
  }

  test('the tasks run where only an override declares body()', async () => {
    const log = new Journal();
    const plain = depends(() => 'plain');
    const route = post('/', { slow: untilGone(log), plain, tasks: backgroundTasks }, ({ plain, tasks }) => {
      tasks.addTask(log.write, `task of ${plain}`);
    });
    await using server = await serve([route]);
    server.app.override(
      plain,
      depends({ item }, (values) => values.item.item),
    );
    using client = await rawClient(server.port);
    client.send(...head(TEA.length), TEA);
    await log.until('dependency');
    await fence(server.url);
    client.socket.destroy();
    await log.until('task of tea');
    await server.app.idle();
  });

  test('half a request is 400 for the handler, whichever comes first: its queue is discarded', async () => {
    const log = new Journal();
    const early = depends({ tasks: backgroundTasks }, ({ tasks }) => tasks.addTask(log.write, 'task'));
    const route = post('/', { early, slow: untilGone(log), item }, () => log.write('handler'));
    await using server = await serve([route]);
    using client = await rawClient(server.port);
    client.send(...head(100), TEA);
    await log.until('dependency');
    client.socket.destroy();
    await server.app.idle();
    assert.deepEqual(log.entries, ['dependency']);
  });
});

describe('reading a body early', () => {
  test('a dependency before body() is at work before the body has come', async () => {
    const log = new Journal();
    const first = depends(() => log.write('dependency'));
    await using server = await serve([post('/', { first, item }, ({ item }) => item)]);
    using client = await rawClient(server.port);
    client.send(...head(TEA.length), '');
    await log.until('dependency');
    client.send(TEA);
    await client.until(`\r\n\r\n${TEA}`);
  });

  test('a handler whose route has no body() finds the body unread', async () => {
    const route = post(
      '/',
      { request, slow: depends(() => new Promise(setImmediate)) },
      async ({ request }) => {
        let text = '';
        for await (const chunk of request) {
          text += chunk;
        }
        return text.length;
      },
    );
    await using server = await serve([route]);
    using client = await rawClient(server.port);
    client.send(...head(TEA.length), TEA);
    await client.until(`\r\n\r\n${TEA.length}`);
  });

  /** Bodies that body() answers with an error of its own. */
  const wrong: Record<string, string[]> = {
    'that is no JSON': [...head(4), 'nope'],
    'that is too large': [...head(2_000), 'x'.repeat(2_000)],
    'that is too large and comes in chunks': [
      ...head(0).map((line) => line.replace('content-length: 0', 'transfer-encoding: chunked')),
      `7d0\r\n${'x'.repeat(2_000)}\r\n0\r\n\r\n`,
    ],
  };

  for (const [kind, lines] of Object.entries(wrong)) {
    for (const status of [401, 503]) {
      test(`a dependency before body() that throws ${status} wins over a body ${kind}`, async (t) => {
        const written = stderr(t);
        const held = gate();
        const guard = depends(async () => {
          await held;
          throw new HTTPError(status, 'stop');
        });
        await using server = await serve([post('/', { guard, item }, () => 'reached')], { bodyLimit: 1_000 });
        using client = await rawClient(server.port);
        client.send(...lines);
        await fence(server.url); // the body is read, and refused
        held.open();
        assert.match(
          await client.until('{"detail":"stop"}'),
          new RegExp(`^(HTTP/1.1 100 .*\r\n\r\n)?HTTP/1.1 ${status} `),
        );
        await server.app.idle();
        assert.deepEqual(written, []);
      });
    }
  }

  test('a dependency before body() that throws at once wins too, and the connection serves on', async () => {
    const guard = depends({ allowed: query('allowed', '') }, ({ allowed }) => {
      if (!allowed) {
        throw new HTTPError(401);
      }
    });
    await using server = await serve([
      post('/', { guard, item }, () => 'reached'),
      get('/next', () => 'next'),
    ]);
    using client = await rawClient(server.port);
    client.send(...head(TEA.length), TEA);
    await client.until('{"detail":"Unauthorized"}');
    client.send(...GET('/next'));
    await client.until('"next"');
  });

  test('a client that leaves half of a body behind a 401 leaves no rejection', async () => {
    const log = new Journal();
    const guard = depends({ request }, async ({ request }) => {
      const { socket } = request;
      log.write('guard');
      await gone(socket);
      throw new HTTPError(401);
    });
    await using server = await serve([post('/', { guard, item }, () => log.write('reached'))]);
    using client = await rawClient(server.port);
    client.send(...head(100), TEA);
    await log.until('guard');
    client.socket.destroy();
    await server.app.idle();
    await fence(server.url); // an unhandled rejection would fail the test
    assert.deepEqual(log.entries, ['guard']);
  });

  test('input errors keep the order of their declaration, whatever is read first', async () => {
    const slow = depends({ q: query('q') }, () => new Promise(setImmediate));
    await using server = await serve([post('/', { slow, item }, () => 'reached')]);
    using client = await rawClient(server.port);
    client.send(...head(2), '{}');
    assert.match(await client.until(']}'), /"loc":\["query","q"\][\s\S]*"loc":\["body","item"\]/);
  });
});

describe('a request that was destroyed before the app is called', () => {
  test('its body cannot be read: the handler is not called, the tasks are discarded, nothing is pending', async (t) => {
    const lines = stderr(t);
    const log = new Journal();
    const app = createApp([
      post(
        '/',
        { audit: depends({ tasks: backgroundTasks }, ({ tasks }) => tasks.addTask(log.write, 'task')), item },
        () => log.write('handler'),
      ),
    ]);
    const arrived = gate();
    const called = gate();
    await using server = await foreign(async (req, res) => {
      arrived.open();
      await new Promise((resolve) => req.on('error', () => {}).once('close', resolve));
      app.listener(req, res);
      called.open();
    });
    using client = await rawClient(server.port);
    client.send(...head(TEA.length), TEA.slice(1));
    await arrived;
    client.socket.destroy();
    await called;
    await app.idle();
    assert.deepEqual([log.entries, lines], [[], []]);
  });
});

/** An app that is mounted on a server of its host: `close()` and the time-outs leave the connections to the host. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import http, { type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { describe } from 'node:test';
import { type App, type AppOptions, backgroundTasks, createApp, get, type Route } from '../server.ts';
import { gate, rawClient, stderr } from './helpers.ts';
import { firstAndThen, foreign, GET, Journal, TOO_MUCH, test } from './server.helpers.ts';

type Foreign = Awaited<ReturnType<typeof foreign>>;

interface Mounted extends AsyncDisposable {
  readonly app: App;
  readonly port: number;
  /** The host's own response to `/host`, once that has arrived; it has begun. */
  readonly held: Promise<ServerResponse>;
}

/** An app on the server of a host that answers `/host` itself, in its own time. */
async function mount(routes: readonly Route[], options: AppOptions = {}): Promise<Mounted> {
  const app = createApp(routes, options);
  const held = gate<ServerResponse>();
  const host: Foreign = await foreign((req, res) => {
    if (req.url === '/host') {
      res.write('begun');
      held.open(res);
    } else {
      app.listener(req, res);
    }
  });
  return { app, port: host.port, held, [Symbol.asyncDispose]: () => host[Symbol.asyncDispose]() };
}

describe('close() of a mounted app', () => {
  test('cuts the connection of a response of its own at half of the time, and no other', async (t) => {
    const lines = stderr(t);
    const log = new Journal();
    const hangs = get('/hangs', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(() => new Promise(() => {}));
      log.write('ours');
      return new Response(firstAndThen(() => new Promise(() => {})));
    });
    await using mounted = await mount([hangs], { drainTimeoutMs: 200 });
    using ours = await rawClient(mounted.port);
    using theirs = await rawClient(mounted.port);
    using silent = await rawClient(mounted.port);
    ours.send(...GET('/hangs'));
    theirs.send(...GET('/host'));
    const response = await mounted.held;
    await ours.until('first');
    const { unfinished } = await mounted.app.close();
    await ours.closed;
    response.end(', and ended');
    await theirs.until(', and ended');
    silent.send(...GET('/hangs'));
    await silent.until('first');
    assert.equal(unfinished.length, 1);
    assert.equal(lines.length, 1);
  });

  test('leaves a response of the host alone that is pipelined behind one of its own', async (t) => {
    const lines = stderr(t);
    const task = gate();
    const running = gate();
    const quick = get('/quick', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(function held() {
        running.open();
        return task;
      });
      return 'ours';
    });
    await using mounted = await mount([quick], { drainTimeoutMs: 200 });
    using client = await rawClient(mounted.port);
    client.send(...GET('/quick'), ...GET('/host'));
    const response = await mounted.held;
    await running;
    assert.deepEqual(await mounted.app.close(), { unfinished: ['held'] });
    response.end(', and ended');
    assert.match(await client.until(', and ended'), /"ours"HTTP\/1\.1 200 OK/);
    assert.equal(lines.length, 1);
    task.open();
    await mounted.app.idle();
  });

  test('leaves a kept connection open, and says nothing of it in a later answer', async () => {
    await using mounted = await mount([get('/quick', () => 'ours')]);
    using client = await rawClient(mounted.port);
    client.send(...GET('/quick'));
    await client.until('"ours"');
    assert.deepEqual(await mounted.app.close(), { unfinished: [] });
    client.send(...GET('/quick'));
    const received = await client.until('"ours"', 2);
    assert.doesNotMatch(received, /connection: close/i);
    client.send(...GET('/host'));
    (await mounted.held).end(', and ended');
    await client.until(', and ended');
  });
});

describe("the host's time-outs", () => {
  interface Times {
    readonly timeout: number;
    readonly keepAliveTimeout: number;
    /** What the host sets on the socket of each request. */
    readonly own?: number;
  }

  /** What the socket's time-out is when the response to `/` is out, and what listens for it. */
  async function timesAfter(
    { timeout, keepAliveTimeout, own }: Times,
    answer: (req: IncomingMessage, res: ServerResponse) => void,
  ): Promise<{ timeout: number | undefined; listeners: number }> {
    const socket = gate<Socket>();
    const finished = gate();
    const server = http.createServer({ keepAliveTimeout }, (req, res) => {
      if (own) {
        req.socket.setTimeout(own);
      }
      res.once('finish', finished.open);
      socket.open(req.socket);
      answer(req, res);
    });
    server.timeout = timeout;
    await once(server.listen(0, '127.0.0.1'), 'listening');
    using client = await rawClient((server.address() as AddressInfo).port);
    let length = 0;
    const whole = new Promise<void>((resolve) => {
      client.socket.on('data', (chunk: string) => {
        length += chunk.length;
        if (length > TOO_MUCH.length && chunk.endsWith('"')) {
          resolve();
        }
      });
    });
    client.socket.pause();
    client.send(...GET('/'));
    const served = await socket;
    await new Promise(setImmediate);
    client.socket.resume();
    await Promise.all([whole, finished]);
    await new Promise(setImmediate); // the app's own turn behind 'finish'
    await new Promise(setImmediate);
    const times = { timeout: served.timeout, listeners: served.listenerCount('timeout') };
    client.socket.destroy();
    await once(server.close(), 'close');
    return times;
  }

  for (const [what, times] of Object.entries<Times>({
    'server.timeout': { timeout: 54_321, keepAliveTimeout: 5_000 },
    'keepAliveTimeout: 0': { timeout: 0, keepAliveTimeout: 0 },
    'server.timeout with keepAliveTimeout: 0': { timeout: 54_321, keepAliveTimeout: 0 },
    'a time-out of the socket': { timeout: 0, keepAliveTimeout: 0, own: 43_210 },
  })) {
    test(`${what} is as before when a response that had to wait for its client is out`, async () => {
      const body = `"${TOO_MUCH}"`;
      const app = createApp([get('/', () => TOO_MUCH)]);
      const expected = await timesAfter(times, (_, res) => res.end(body));
      assert.deepEqual(await timesAfter(times, app.listener), expected);
    });
  }
});

describe('the end of the time of a mounted app', () => {
  test('cuts the connection of a request that came after half of it', async (t) => {
    stderr(t);
    const arrived = gate();
    const hang = get('/', () => {
      arrived.open();
      return new Promise(() => {});
    });
    const app = createApp([hang], { drainTimeoutMs: 2_000 });
    await using server = await foreign(app.listener);
    using first = await rawClient(server.port);
    using second = await rawClient(server.port);
    first.send(...GET('/'));
    await arrived;
    const closed = app.close();
    await first.closed;
    second.send(...GET('/'));
    await second.closed;
    assert.deepEqual(await closed, { unfinished: ['GET /', 'GET /'] });
  });
});

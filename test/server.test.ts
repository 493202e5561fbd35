/** server.ts in this process, on real sockets: what is promised on the wire, the router, what a handler may return. */
import assert from 'node:assert/strict';
import { AsyncLocalStorage } from 'node:async_hooks';
import { channel } from 'node:diagnostics_channel';
import { EventEmitter, once } from 'node:events';
import http, { type IncomingHttpHeaders, type RequestListener } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { Readable } from 'node:stream';
import { afterEach, test as nodeTest, type TestContext } from 'node:test';
import { format } from 'node:util';
import { Worker } from 'node:worker_threads';
import { backgroundTasks, body, BackgroundTasks, createApp, depends, get, HTTPError, path, post, put, query, request,
  route, strings, type App, type AppOptions, type Route } from '../server.ts';
import { gate, rawClient, serve as serveRoutes, type RawClient, type Served } from './helpers.ts';

const deadline = 30_000; // turns a hang into a failure
const test = (title: string, run: (t: TestContext) => Promise<void> | void): void =>
  void nodeTest(title, { timeout: deadline }, run);

const MiB = 2 ** 20;
const TOO_MUCH = 'x'.repeat(64 * MiB); // more than the buffers of a connection hold

/** What happened, in order. */
class Journal {
  readonly entries: string[] = [];
  readonly #events = new EventEmitter().setMaxListeners(0);
  readonly write = (entry: string): void => { this.entries.push(entry); this.#events.emit('entry'); };
  /** Resolves once `entry` is in it. */
  readonly until = async (entry: string): Promise<void> => {
    while (!this.entries.includes(entry)) await once(this.#events, 'entry');
  };
}

/** What stderr would show. */
function stderr(t: TestContext): string[] {
  const lines: string[] = [];
  t.mock.method(console, 'error', (...args: unknown[]) => void lines.push(format(...args)));
  return lines;
}

interface Answer { status: number; reason: string; headers: IncomingHttpHeaders; rawHeaders: string[]; body: string }

/** A request on a connection of its own, unless `agent` says otherwise. */
async function ask(url: string, options: http.RequestOptions = {}, content = ''): Promise<Answer> {
  const sent = http.request(url, { agent: false, ...options }).end(content);
  const [res] = await once(sent, 'response') as [http.IncomingMessage];
  let body = '';
  for await (const chunk of res.setEncoding('utf8')) body += chunk;
  const { statusCode: status = 0, statusMessage: reason = '', headers, rawHeaders } = res;
  return { status, reason, headers, rawHeaders, body };
}

const fenceRoute = get('/fence', { tasks: backgroundTasks }, async ({ tasks }) => {
  tasks.addTask(() => new Promise(setImmediate));
  tasks.addTask(() => {});
});

const open = new Set<App>();
afterEach(async () => { for (const app of open) await app.close(); open.clear(); }); // also after a deadline

/** `routes`, and one to fence with. */
async function serve(routes: readonly Route[], options: AppOptions = {}): Promise<Served> {
  const server = await serveRoutes([...routes, fenceRoute], { drainTimeoutMs: 5_000, ...options });
  open.add(server.app);
  return server;
}

/** Other requests and their tasks come and go: what was free to happen has happened. */
async function fence(url: string): Promise<void> {
  for (let round = 0; round < 5; round += 1) await ask(`${url}/fence`);
}

/** A `node:http` server that is not ours. */
async function foreign(
  listener: RequestListener, options: http.ServerOptions = {},
): Promise<{ url: string; port: number } & AsyncDisposable> {
  const server = http.createServer(options, listener).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const close = async (): Promise<void> => {
    server.closeAllConnections();
    await once(server.close(), 'close');
  };
  return { url: `http://127.0.0.1:${port}`, port, [Symbol.asyncDispose]: close };
}

const GET = (target: string, ...headers: string[]): string[] =>
  [`GET ${target} HTTP/1.1`, 'host: a', ...headers, '', ''];

/** Resolves when the server sees that the client is gone. */
const gone = (socket: Socket): Promise<void> => new Promise((resolve) => void socket.once('close', () => resolve()));

/** A source of one text per call of `next`, to its end at `undefined`. */
function source(next: () => string | undefined | Promise<string | undefined>, cancel = (): void => {}): ReadableStream {
  return new ReadableStream({
    async pull(controller) {
      const text = await next();
      if (text === undefined) controller.close();
      else controller.enqueue(new TextEncoder().encode(text));
    },
    cancel,
  });
}

/** `'first'`, and then what `rest` gives, once. */
function firstAndThen(rest: () => string | Promise<string>, cancel?: () => void): ReadableStream {
  const parts: (() => string | Promise<string>)[] = [() => 'first', rest];
  return source(() => parts.shift()?.(), cancel);
}

const without = (headers: IncomingHttpHeaders, ...names: string[]): IncomingHttpHeaders =>
  Object.fromEntries(Object.entries(headers).filter(([name]) => !['date', ...names].includes(name)));

// ---- 1: response first ----

test('1 no task starts before the handler has returned', async () => {
  const log = new Journal();
  const held = gate();
  await using server = await serve([get('/', { tasks: backgroundTasks }, async ({ tasks }) => {
    tasks.addTask(log.write, 'task');
    log.write('handler');
    await held;
    log.write('handler returns');
  })]);
  const answer = ask(server.url);
  await log.until('handler');
  await fence(server.url);
  assert.deepEqual(log.entries, ['handler']);
  held.open();
  assert.equal((await answer).status, 200);
  await server.app.idle();
  assert.deepEqual(log.entries, ['handler', 'handler returns', 'task']);
});

test('1 no task starts before the last chunk of a stream', async () => {
  const log = new Journal();
  const held = gate<string>();
  await using server = await serve([get('/', { tasks: backgroundTasks }, ({ tasks }) => {
    tasks.addTask(log.write, 'task');
    return new Response(firstAndThen(() => held));
  })]);
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
  test(`1 no task starts while a slow reader has not taken enough of ${kind}`, async () => {
    const log = new Journal();
    await using server = await serve([get('/', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(log.write, 'task');
      log.write('handler');
      return response();
    })]);
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

test('1 no task of a pipelined response starts while that waits behind another', async () => {
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

const bodies: Record<string, () => unknown> = {
  'a JSON value': () => ({ ok: true }),
  '16 MiB of JSON': () => 'x'.repeat(16 * MiB),
  'a Response': () => Response.json({ ok: true }, { status: 404 }),
  'a stream': () => new Response(firstAndThen(() => 'second')),
  'an empty Response': () => new Response(null, { status: 204 }),
};

for (const [kind, response] of Object.entries(bodies)) {
  test(`1 the client has the whole of ${kind}, and its end of file, while the first task is held`, async () => {
    const log = new Journal();
    const held = gate();
    await using server = await serve([get('/', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(async () => { log.write('task'); await held; log.write('task ends'); });
      return response();
    })]);
    for (const head of [GET('/', 'connection: close'), ['GET / HTTP/1.0', '', '']]) {
      using client = await rawClient(server.port);
      client.send(...head);
      const received = await client.closed;
      assert.match(received, /^HTTP\/1\.1 \d{3} [^]*\r\n\r\n/);
      assert.equal(client.socket.readableEnded, true, 'an end of file, not a reset');
      const [, length] = /content-length: (\d+)/.exec(received.slice(0, 1000)) ?? [];
      if (length) assert.equal(received.slice(received.indexOf('\r\n\r\n') + 4).length, Number(length));
      else if (kind === 'a stream') assert.match(received, /first[^]*second/);
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

/** Reads to the end of file in a thread of its own, then sets the flag. */
const CLIENT = `
  const { workerData: { port, head, flag } } = require('node:worker_threads');
  const socket = require('node:net').connect(port, '127.0.0.1', () => socket.write(head));
  socket.resume().once('end', () => { Atomics.store(flag, 0, 1); Atomics.notify(flag, 0); socket.destroy(); });`;

for (const [kind, response] of Object.entries(bodies)) {
  test(`1 a task that blocks the thread does not delay ${kind}, nor its end of file (fact 7.3)`, async () => {
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
            if (!over) tasks.addTask(spin);
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

// Above: a reader that is slow. Here: one that takes nothing at all.
for (const [kind, response] of Object.entries<(log: Journal) => unknown>({
  'of a JSON value': () => TOO_MUCH,
  'of a stream without end': (log) => new Response(source(() => 'x'.repeat(MiB), () => log.write('cancelled'))),
  'of a head without a body': () => new Response(null, { status: 204, headers: { 'x-large': TOO_MUCH } }),
})) {
  for (const [place, targets] of [['', ['/']], [', pipelined behind another response,', ['/small', '/']]] as const) {
    test(`1 a reader ${kind}${place} that takes nothing for stallTimeoutMs counts as gone (fact 7.10)`, async (t) => {
      const lines = stderr(t);
      const log = new Journal();
      await using server = await serve([
        get('/small', () => null),
        get('/', { request, tasks: backgroundTasks }, ({ request, tasks }) => {
          request.socket.once('close', () => log.write('gone'));
          tasks.addTask(log.write, 'task');
          return response(log);
        }),
      ], { stallTimeoutMs: 20 });
      using client = await rawClient(server.port);
      client.socket.pause();
      client.send(...targets.flatMap((target) => GET(target)));
      await log.until('task');
      await server.app.idle();
      assert.deepEqual(log.entries.toSorted(), [...(kind.includes('stream') ? ['cancelled'] : []), 'gone', 'task']);
      assert.equal(log.entries.indexOf('task') > log.entries.indexOf('gone'), true);
      assert.deepEqual(lines, []);
    });
  }
}

/** Sends an empty line, and again; each one that the server reads starts the timer of its socket anew. */
function pester({ socket }: RawClient): Disposable {
  const timer = setInterval(() => socket.write('\r\n'), 5);
  return { [Symbol.dispose]: () => clearInterval(timer) };
}

/** Has the client read on, to `text`. It looks at the end only: the whole is large. */
const takes = ({ socket }: RawClient, text: string): Promise<void> => new Promise((resolve) => {
  let end = '';
  socket.on('data', (chunk: string) => {
    end = (end + chunk).slice(-100);
    if (end.includes(text)) resolve();
  }).resume();
});

for (const [kind, response] of Object.entries<() => unknown>({
  'of a JSON value': () => TOO_MUCH,
  'of a stream without end': () => new Response(source(() => 'x'.repeat(MiB))),
})) {
  for (const place of ['', ', pipelined behind a response that it took,']) {
    test(`1 a reader ${kind}${place} that takes nothing, though it sends, counts as gone (fact 7.10)`, async (t) => {
      const lines = stderr(t);
      const log = new Journal();
      const arrived = gate<Socket>();
      await using server = await serve([
        get('/large', { tasks: backgroundTasks }, ({ tasks }) => {
          tasks.addTask(log.write, 'the first is out');
          return TOO_MUCH;
        }),
        get('/', { request, tasks: backgroundTasks }, ({ request, tasks }) => {
          tasks.addTask(log.write, 'task');
          arrived.open(request.socket);
          return response();
        }),
      ], { stallTimeoutMs: 500 });
      using client = await rawClient(server.port);
      client.send(...(place ? GET('/large') : []), ...GET('/'));
      const socket = await arrived;
      if (place) await log.until('the first is out');
      assert.equal(socket.destroyed, false);
      client.socket.pause();
      using _sending = pester(client);
      await log.until('task');
      assert.equal(socket.destroyed, true);
      assert.deepEqual(lines, []);
    });
  }
}

test('1 what a reader that stalls has sent is answered once it takes its response (fact 7.10)', async () => {
  const stalled = gate();
  await using server = await serve([
    get('/', { request }, ({ request: { socket } }) => { socket.once('pause', stalled.open); return TOO_MUCH; }),
    post('/', { item: body(strings('item')) }, ({ item }) => item),
  ], { stallTimeoutMs: 500 });
  using client = await rawClient(server.port);
  client.socket.pause();
  client.send(...GET('/'));
  {
    using _sending = pester(client);
    await stalled;
  }
  client.send('POST / HTTP/1.1', 'host: a', 'content-type: application/json', 'content-length: 14', '',
    '{"item":"tea"}');
  await takes(client, '{"item":"tea"}');
});

for (const [how, leave] of Object.entries({
  closes: (socket: Socket) => socket.destroy(),
  resets: (socket: Socket) => socket.resetAndDestroy(),
  'closes its half': (socket: Socket) => socket.end(),
})) {
  for (const when of ['while it stalls', 'once it has taken what there was of a stream']) {
    test(`1 a reader that ${how} ${when} is seen to be gone (fact 7.10)`, async () => {
      const log = new Journal();
      const stalled = gate();
      const parts = [TOO_MUCH, 'the last part'];
      await using server = await serve([get('/', { request, tasks: backgroundTasks }, ({ request, tasks }) => {
        tasks.addTask(log.write, 'task');
        request.socket.once('pause', stalled.open);
        return new Response(source(() => parts.shift() ?? gate<string>()));
      })], { stallTimeoutMs: 500 });
      using client = await rawClient(server.port);
      client.socket.pause();
      client.send(...GET('/'));
      {
        using _sending = pester(client);
        await stalled;
      }
      if (when !== 'while it stalls') await takes(client, 'the last part');
      leave(client.socket);
      await log.until('task');
    });
  }
}

test('1 a client that sends its request while it takes nothing of the response is read on (fact 7.10)', async () => {
  const read = gate<unknown>();
  await using server = await serve([post('/', { request }, ({ request }) => {
    const readAll = async (): Promise<void> => {
      for await (const _ of request) {
        if (performance.now() > end) client.send('0', '', '');
        else client.send('1', 'x', '');
      }
    };
    readAll().then(read.open, read.open);
    return new Response(source(() => 'x'.repeat(MiB)));
  })], { stallTimeoutMs: 300 });
  using client = await rawClient(server.port);
  client.socket.pause();
  const end = performance.now() + 1000; // three looks at the reader
  client.send('POST / HTTP/1.1', 'host: a', 'transfer-encoding: chunked', '', '1', 'x', '');
  assert.equal(await read, undefined);
});

for (const how of ['kept', 'pipelined']) {
  test(`1 the stallTimeoutMs of a response ends with it: no ${how} one after it is cut (fact 7.10)`, async () => {
    const log = new Journal();
    const app = createApp([
      get('/first', { tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(log.write, 'the first is out');
        return new Response(firstAndThen(async () => {
          if (how === 'pipelined') await log.until('second handler');
          return 'rest';
        }));
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
    if (how === 'kept') await log.until('the first is out');
    client.send(...GET('/second'));
    assert.match(await client.until('}'), /\{"timeout":0\}/);
  });
}

test('4 a timeout that a host sets on its sockets ends the connection of a slow handler, not its tasks', async () => {
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

test('1 the stallTimeoutMs of a response ends with it: Node closes an idle connection (fact 7.10)', async () => {
  const seen = gate<number | undefined>();
  await using server = await serve([get('/', { request, tasks: backgroundTasks }, ({ request: { socket }, tasks }) => {
    tasks.addTask(() => seen.open(socket.timeout));
    return new Response(source(() => undefined));
  })], { stallTimeoutMs: 1_000 });
  using client = await rawClient(server.port);
  client.send(...GET('/'));
  const timeout = await seen;
  assert.ok(timeout && timeout >= http.createServer().keepAliveTimeout, `got ${timeout}`);
});

test('1 a stream that is quiet for longer than stallTimeoutMs is not cut (fact 7.10)', async () => {
  await using server = await serve([get('/', { request }, ({ request: { socket } }) =>
    new Response(firstAndThen(async () => { await once(socket, 'timeout'); return 'second'; })))],
  { stallTimeoutMs: 20 });
  assert.equal((await ask(server.url)).body, 'firstsecond');
});

// ---- 2, 3, 4: order, errors, status ----

test('2 tasks run in order, one at a time, across dependencies and handler, whatever their kind', async () => {
  const log = new Journal();
  const asynchronous = async (name: string): Promise<void> => {
    log.write(`${name} starts`);
    await new Promise(setImmediate);
    log.write(`${name} ends`);
  };
  const inner = depends({ tasks: backgroundTasks }, ({ tasks }) => tasks.addTask(asynchronous, 'inner'));
  const outer = depends({ inner, tasks: backgroundTasks }, async ({ tasks }) => tasks.addTask(log.write, 'outer'));
  await using server = await serve([post('/', { outer, inner, tasks: backgroundTasks }, ({ tasks }) => {
    tasks.addTask(asynchronous, 'handler');
    tasks.addTask(log.write, 'last');
    tasks.addTask(() => tasks.addTask(log.write, 'added by a task'));
  })]);
  await ask(server.url, { method: 'POST' });
  await log.until('added by a task');
  await fence(server.url);
  assert.deepEqual(log.entries, ['inner starts', 'inner ends', 'outer', 'handler starts', 'handler ends', 'last',
    'added by a task']);
});

test('2 the tasks of different requests do not wait for one another', async () => {
  const log = new Journal();
  const held = gate();
  await using server = await serve([post('/:id', { id: path('id'), tasks: backgroundTasks }, ({ id, tasks }) => {
    if (id === 'held') tasks.addTask(() => held);
    tasks.addTask(log.write, id);
  })]);
  await ask(`${server.url}/held`, { method: 'POST' });
  await ask(`${server.url}/free`, { method: 'POST' });
  await log.until('free');
  assert.deepEqual(log.entries, ['free']);
  held.open();
  await server.app.idle();
  assert.deepEqual(log.entries, ['free', 'held']);
});

const failures: Record<string, () => unknown> = {
  'an error': () => { throw new Error('expected'); },
  'a rejection': async () => { throw new Error('expected'); },
  'an HTTPError': () => { throw new HTTPError(418, 'expected'); },
  'a thrown undefined': () => { throw undefined; },
  'a rejection with a text': () => Promise.reject('expected'),
};

for (const [kind, fail] of Object.entries(failures)) {
  test(`3 ${kind} in the first, the middle or the last task changes nothing that the client sees`, async (t) => {
    const lines = stderr(t);
    const log = new Journal();
    await using server = await serve([post('/:place', { place: path('place'), tasks: backgroundTasks },
      ({ place, tasks }) => {
        for (const each of ['first', 'middle', 'last']) tasks.addTask(each === place ? fail : () => log.write(each));
        return Response.json({ created: 'one' }, { status: 201, headers: { 'x-mark': '1' } });
      })]);
    const expected = await ask(`${server.url}/none`, { method: 'POST' });
    await server.app.idle();
    assert.equal(log.entries.length, 3);
    for (const place of ['first', 'middle', 'last']) {
      log.entries.length = lines.length = 0;
      const { headers, rawHeaders: _, ...rest } = await ask(`${server.url}/${place}`, { method: 'POST' });
      assert.deepEqual(rest, { status: 201, reason: 'Created', body: '{"created":"one"}' });
      assert.deepEqual(without(headers), without(expected.headers));
      await server.app.idle();
      assert.deepEqual(log.entries, ['first', 'middle', 'last'].filter((each) => each !== place));
      assert.equal(lines.length, 1);
      assert.match(lines[0] ?? '', /^Background task failed \(\S.*\): /);
    }
  });
}

test("3 afterFailure: 'stop' drops the rest of that request's queue, and of no other", async (t) => {
  const lines = stderr(t);
  const log = new Journal();
  await using server = await serve([post('/:id', { id: path('id'), tasks: backgroundTasks }, ({ id, tasks }) => {
    tasks.addTask(function charge() { if (id === 'failing') throw new Error('expected'); });
    tasks.addTask(log.write, id);
  })], { afterFailure: 'stop' });
  for (const id of ['failing', 'fine']) await ask(`${server.url}/${id}`, { method: 'POST' });
  await server.app.idle();
  assert.deepEqual(log.entries, ['fine']);
  assert.match(lines[0] ?? '', /^Background task failed \(charge\): Error: expected\n +at /);
  assert.match(lines[1] ?? '', /^Dropped task write/);
  assert.equal(lines.length, 2);
});

test('3 onTaskError gets the error, the task and its request, in place of stderr', async (t) => {
  const lines = stderr(t);
  const seen = gate<unknown[]>();
  await using server = await serve([post('/pay', { tasks: backgroundTasks }, ({ tasks }) => {
    tasks.addTask(() => {});
    tasks.addTask(() => { throw new Error('expected'); });
  })], { onTaskError: (error, { name, index, request }) => seen.open([String(error), name, index, request?.url]) });
  await ask(`${server.url}/pay?secret=1`, { method: 'POST' });
  assert.deepEqual(await seen, ['Error: expected', 'task 2 of POST /pay', 1, '/pay?secret=1']);
  assert.deepEqual(lines, []);
});

test('4 whatever status is returned, the tasks run, and none of them changes it', async () => {
  const log = new Journal();
  await using server = await serve([get('/:status', { status: path('status'), tasks: backgroundTasks },
    ({ status, tasks }) => {
      tasks.addTask(log.write, `${status} ran`);
      tasks.addTask(() => { throw new HTTPError(418); });
      tasks.addTask(log.write, `${status} ran on`);
      const bodiless = [204, 205, 304].includes(Number(status));
      return new Response(bodiless ? null : status, { status: Number(status), headers: { 'x-status': status } });
    })], { onTaskError: () => {} });
  const all = Array.from({ length: 400 }, (_, index) => String(200 + index));
  const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
  await Promise.all(all.map(async (status) => {
    const answer = await ask(`${server.url}/${status}`, { agent });
    assert.equal(String(answer.status), status);
    assert.equal(answer.headers['x-status'], status);
    assert.equal(answer.reason, http.STATUS_CODES[status] ?? 'unknown');
    assert.equal(answer.body, ['204', '205', '304'].includes(status) ? '' : status);
  }));
  agent.destroy();
  await server.app.idle();
  assert.deepEqual(log.entries.toSorted(), all.flatMap((status) => [`${status} ran`, `${status} ran on`]));
});

for (const method of ['GET', 'HEAD']) {
  test(`4 the tasks of a ${method} run, with a body and with 204`, async () => {
    const log = new Journal();
    await using server = await serve([get('/:status', { status: path('status'), tasks: backgroundTasks },
      ({ status, tasks }) => {
        tasks.addTask(log.write, status);
        return status === '204' ? new Response(null, { status: 204 }) : { text: 'some' };
      })]);
    for (const status of ['200', '204']) {
      const answer = await ask(`${server.url}/${status}`, { method });
      assert.equal(String(answer.status), status);
      assert.equal(answer.body, method === 'GET' && status === '200' ? '{"text":"some"}' : '');
      await log.until(status);
    }
  });
}

for (const [kind, [status, fail]] of Object.entries<[number, () => unknown]>({
  'an error': [500, failures['an error'] as () => unknown],
  'a rejection': [500, failures['a rejection'] as () => unknown],
  'an HTTPError': [418, failures['an HTTPError'] as () => unknown],
  'a thrown undefined': [500, failures['a thrown undefined'] as () => unknown],
  'a value that is not JSON': [500, () => 1n],
})) {
  test(`4 ${kind} in a handler or a dependency discards the queue, and the server serves on`, async (t) => {
    const lines = stderr(t);
    const log = new Journal();
    const queued = depends({ tasks: backgroundTasks }, ({ tasks }) => tasks.addTask(log.write, 'discarded'));
    const failing = depends(async () => { const value = await fail(); if (value) throw new Error(String(value)); });
    await using server = await serve([
      get('/handler', { queued }, fail),
      get('/dependency', { queued, failing }, () => log.write('handler')),
      get('/returned', { queued }, () => Response.json({ detail: 'returned' }, { status })),
    ]);
    for (const place of ['handler', 'dependency']) assert.equal((await ask(`${server.url}/${place}`)).status, status);
    await fence(server.url);
    await server.app.idle();
    assert.deepEqual(log.entries, []);
    assert.equal(lines.length, status === 500 ? 2 : 0);
    assert.equal((await ask(`${server.url}/returned`)).status, status);
    await server.app.idle();
    assert.deepEqual(log.entries, ['discarded'], 'returned, the same status runs them');
  });
}

test('4 a 422 discards the queue, and is not reported', async (t) => {
  const lines = stderr(t);
  const log = new Journal();
  const queued = depends({ tasks: backgroundTasks }, ({ tasks }) => tasks.addTask(log.write, 'task'));
  await using server = await serve([
    get('/query', { queued, name: query('name') }, () => log.write('handler')),
    post('/body', { queued, item: body(strings('item')) }, () => log.write('handler')),
  ]);
  assert.equal((await ask(`${server.url}/query`)).status, 422);
  assert.equal((await ask(`${server.url}/body`, { method: 'POST' })).status, 422);
  await fence(server.url);
  assert.deepEqual([log.entries, lines], [[], []]);
});

const broken = { 'an error': new Error('broken'), nothing: undefined, 'a text': 'broken' };
for (const [kind, error] of Object.entries(broken)) {
  test(`4 a stream that breaks midway with ${kind} is reported, and does not discard the queue`, async (t) => {
    const lines = stderr(t);
    const log = new Journal();
    const held = gate();
    await using server = await serve([get('/', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(log.write, 'task');
      return new Response(firstAndThen(async () => { await held; throw error; }));
    })]);
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
    if (error instanceof Error) assert.match(lines[0] ?? '', /Error: broken\n +at /);
    else assert.ok(lines[0]?.endsWith(`: ${String(error)}`));
  });
}

test('4 a stream that breaks behind another response ends its connection, not the queue', async (t) => {
  const lines = stderr(t);
  const log = new Journal();
  const held = gate();
  await using server = await serve([
    get('/first', () => held),
    get('/second', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(log.write, 'task');
      return new Response(firstAndThen(() => { setImmediate(() => log.write('broken')); throw new Error('broken'); }));
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

const leaving: Record<string, (socket: Socket) => unknown> = {
  'closes the connection': (socket) => socket.destroy(),
  'resets it': (socket) => socket.resetAndDestroy(),
  'closes its half': (socket) => socket.end(),
};

for (const [how, leave] of Object.entries(leaving)) {
  test(`4 a client that ${how} while the handler runs does not discard the queue`, async (t) => {
    const lines = stderr(t);
    const log = new Journal();
    await using server = await serve([route('POST', '/:kind', { kind: path('kind'), request, tasks: backgroundTasks },
      async ({ kind, request, tasks }) => {
        tasks.addTask(log.write, `before, ${kind}`);
        log.write('handler');
        await gone(request.socket);
        tasks.addTask(log.write, `after, ${kind}`);
        return bodies[decodeURIComponent(kind)]?.();
      })]);
    for (const kind of Object.keys(bodies)) {
      log.entries.length = 0;
      using client = await rawClient(server.port);
      // Of a body that nothing reads, only half has come.
      client.send(`POST /${encodeURIComponent(kind)} HTTP/1.1`, 'host: a', 'content-length: 100', '', 'x'.repeat(50));
      await log.until('handler');
      leave(client.socket);
      await server.app.idle();
      assert.deepEqual(log.entries, ['handler', `before, ${kind}`, `after, ${kind}`]);
    }
    assert.deepEqual(lines, []);
  });

  test(`4 a client that ${how} after its whole body was read does not discard the queue`, async () => {
    const log = new Journal();
    await using server = await serve([post('/', { item: body(strings('item')), request, tasks: backgroundTasks },
      async ({ item: { item }, request, tasks }) => {
        tasks.addTask(log.write, item);
        log.write('handler');
        await gone(request.socket);
      })]);
    using client = await rawClient(server.port);
    client.send('POST / HTTP/1.1', 'host: a', 'content-type: application/json', 'content-length: 14', '',
      '{"item":"tea"}');
    await log.until('handler');
    leave(client.socket);
    await log.until('tea');
  });

  test(`4 a request whose body is being read when its client ${how} is not accepted: no task runs`, async (t) => {
    const lines = stderr(t);
    const log = new Journal();
    const queued = depends({ tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(log.write, 'task');
      log.write('dependency');
    });
    await using server = await serve([post('/', { queued, item: body(strings('item')) }, () => log.write('handler'))]);
    using client = await rawClient(server.port);
    client.send('POST / HTTP/1.1', 'host: a', 'content-type: application/json', 'content-length: 100', '', '{"item":');
    await log.until('dependency');
    leave(client.socket);
    await server.app.idle();
    await fence(server.url);
    assert.deepEqual(log.entries, ['dependency']);
    assert.deepEqual(lines, []);
  });

  test(`4 a client that ${how} after the response leaves the tasks alone`, async () => {
    const log = new Journal();
    await using server = await serve([get('/', { request, tasks: backgroundTasks }, ({ request, tasks }) => {
      tasks.addTask(() => gone(request.socket));
      tasks.addTask(log.write, 'task');
    })]);
    using client = await rawClient(server.port);
    client.send(...GET('/'));
    await client.until('null');
    leave(client.socket);
    await log.until('task');
  });

  if (how === 'closes its half') continue; // and reads on, or stalls
  test(`4 a client that ${how} in the middle of much JSON does not discard the queue (fact 7.1)`, async (t) => {
    const lines = stderr(t);
    const log = new Journal();
    await using server = await serve([get('/', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(log.write, 'task');
      log.write('handler');
      return TOO_MUCH;
    })]);
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

  test(`4 a client that ${how} midstream does not discard the queue; the source is cancelled, nothing is reported`,
    async (t) => {
      const lines = stderr(t);
      const log = new Journal();
      await using server = await serve([get('/', { tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(log.write, 'task');
        return new Response(firstAndThen(() => gate<string>(), () => log.write('cancelled')));
      })]);
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

// ---- 5: the connection is free ----

for (const [state, failing] of Object.entries({ 'is held': false, 'has failed': true })) {
  for (const [kind, response] of Object.entries(bodies).filter(([kind]) => !kind.includes('MiB'))) {
    test(`5 after ${kind}, while a task ${state}, `
      + 'a request is served on another connection, on the same, and pipelined',
      async (t) => {
        stderr(t);
        const log = new Journal();
        const held = gate();
        await using server = await serve([
          get('/', { tasks: backgroundTasks }, ({ tasks }) => {
            if (failing) tasks.addTask(() => { throw new Error('expected'); });
            tasks.addTask(() => { log.write('task'); return held; });
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
      });
  }
}

test('5 two responses whose client leaves while both wait: both queues run, the second without the first (fact 7.2)',
  async () => {
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

test('5 a stream behind a response whose client left settles, and its source is cancelled (fact 7.15)', async (t) => {
  const lines = stderr(t);
  const log = new Journal();
  const held = gate();
  await using server = await serve([
    get('/first', () => held),
    get('/second', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(log.write, 'task');
      log.write('handler');
      return new Response(source(() => 'x'.repeat(MiB), () => log.write('cancelled')));
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
  'in part': async (incoming) => { for await (const _ of incoming.iterator({ destroyOnReturn: false })) return; },
  'in part, and then paused,': async (incoming) => { await once(incoming, 'data'); incoming.pause(); },
  'not at all': () => {},
})) {
  test(`5 a body that was read ${kind} does not block the next request of its connection (fact 7.17)`, async () => {
    await using server = await serve([post('/', { request }, async ({ request }) => { await read(request); }),
      get('/next', () => 'next')]);
    using client = await rawClient(server.port);
    client.send('POST / HTTP/1.1', 'host: a', `content-length: ${4 * MiB}`, '', 'x'.repeat(4 * MiB));
    client.send(...GET('/next'));
    await client.until('"next"');
  });
}

test('8 the tasks of a pipelined request run in their own context, and so does onTaskError (fact 7.9)', async () => {
  const log = new Journal();
  const storage = new AsyncLocalStorage<string>();
  const held = gate();
  const leave = (tasks: BackgroundTasks): void => {
    storage.run(`that of addTask in ${storage.getStore()}`, () =>
      tasks.addTask(() => log.write(`task in ${storage.getStore()}`)));
    tasks.addTask(async () => { await new Promise(setImmediate); throw new Error('expected'); });
    tasks.addTask(() => log.write(`last in ${storage.getStore()}`));
  };
  const app = createApp([
    get('/first', { tasks: backgroundTasks }, async ({ tasks }) => { leave(tasks); await held; }),
    get('/second', { tasks: backgroundTasks }, ({ tasks }) => { leave(tasks); log.write('second handler'); }),
  ], { onTaskError: () => log.write(`error in ${storage.getStore()}`) });
  await using server = await foreign((req, res) => storage.run(String(req.url), () => app.listener(req, res)));
  using client = await rawClient(server.port);
  client.send(...GET('/first'), ...GET('/second'));
  await log.until('second handler');
  held.open();
  await client.until('HTTP/1.1 200', 2);
  await app.idle();
  for (const which of ['/first', '/second']) {
    assert.deepEqual(log.entries.filter((entry) => entry.endsWith(which)),
      [`task in that of addTask in ${which}`, `error in ${which}`, `last in ${which}`]);
  }
});

test('8 the clean-ups of a pipelined request run in its own context (fact 7.9)', async () => {
  const log = new Journal();
  const storage = new AsyncLocalStorage<string>();
  const held = gate();
  const cleaned = depends(async function* () {
    yield 'a value';
    log.write(`cleaned up in ${storage.getStore()}`);
  });
  const app = createApp([
    get('/first', { cleaned }, () => held),
    get('/second', { cleaned }, () => { log.write('second handler'); }),
  ]);
  await using server = await foreign((req, res) => storage.run(String(req.url), () => app.listener(req, res)));
  using client = await rawClient(server.port);
  client.send(...GET('/first'), ...GET('/second'));
  await log.until('second handler');
  held.open();
  await client.until('HTTP/1.1 200', 2);
  await app.idle();
  assert.deepEqual(log.entries.slice(1).sort(), ['cleaned up in /first', 'cleaned up in /second']);
});

test('8 the source of a stream is cancelled in the context of its request', async () => {
  const log = new Journal();
  const storage = new AsyncLocalStorage<string>();
  const app = createApp([get('/:name', () =>
    new Response(firstAndThen(() => gate<string>(), () => log.write(`cancelled in ${storage.getStore()}`))))]);
  await using server = await foreign((req, res) => storage.run(String(req.url), () => app.listener(req, res)));
  const clients = await Promise.all(['/first', '/second'].map(async (url) => {
    const client = await rawClient(server.port);
    client.send(...GET(url));
    await client.until('first');
    return client;
  }));
  for (const { socket } of clients) socket.destroy();
  await app.idle();
  assert.deepEqual(log.entries.toSorted(), ['cancelled in /first', 'cancelled in /second']);
});

test('9 the channels tell of the tasks of a pipelined request in its own context', async (t) => {
  const log: string[] = [];
  const storage = new AsyncLocalStorage<string>();
  const app = createApp([get('/:name', { tasks: backgroundTasks }, ({ tasks }) => {
    tasks.addTask(() => {});
    tasks.addTask(() => { throw new Error('expected'); });
    tasks.addTask(() => {});
  })], { afterFailure: 'stop', onTaskError: () => {} });
  for (const event of ['start', 'end', 'error', 'dropped']) {
    const tell = (message: unknown): void => {
      const { index, request } = message as { index: number; request: http.IncomingMessage };
      log.push(`${request.url} ${event} ${index} in ${storage.getStore()}`);
    };
    channel(`background-tasks:${event}`).subscribe(tell);
    t.after(() => channel(`background-tasks:${event}`).unsubscribe(tell));
  }
  stderr(t);
  await using server = await foreign((req, res) => storage.run(String(req.url), () => app.listener(req, res)));
  using client = await rawClient(server.port);
  client.send(...GET('/first'), ...GET('/second'));
  await client.until('HTTP/1.1 200', 2);
  await app.idle();
  for (const url of ['/first', '/second']) {
    assert.deepEqual(log.filter((line) => line.startsWith(url)),
      ['start 0', 'end 0', 'start 1', 'error 1', 'dropped 2', 'end 1'].map((event) => `${url} ${event} in ${url}`));
  }
});

test('2,000 requests on one connection leave no listener behind (fact 7.14)', async () => {
  const app = createApp([get('/', { request, tasks: backgroundTasks }, ({ request: { socket }, tasks }) => {
    tasks.addTask(() => {});
    return Object.fromEntries(socket.eventNames().map((name) => [String(name), socket.listenerCount(name)]));
  }), get('/stream', () => new Response(firstAndThen(() => 'second')))]);
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

// ---- the app ----

test('pending counts requests from arrival to the end of their last task; idle() waits for that', async () => {
  const log = new Journal();
  const [handlers, tasks] = [gate(), gate()];
  await using server = await serve([post('/', { tasks: backgroundTasks }, async ({ tasks: queue }) => {
    queue.addTask(() => { log.write('task'); return tasks; });
    log.write('handler');
    await handlers;
  })]);
  const { app, url } = server;
  assert.equal(app.pending, 0);
  await app.idle();
  const answers = ask(url, { method: 'POST' });
  await log.until('handler');
  assert.equal(app.pending, 1);
  const waits = [1, 2].map(async (n) => { await app.idle(); log.write(`idle ${n}`); });
  handlers.open();
  await answers;
  await log.until('task');
  assert.equal((await ask(`${url}/missing`)).status, 404);
  await new Promise(setImmediate);
  await fence(url);
  assert.deepEqual(log.entries, ['handler', 'task']);
  assert.equal(app.pending >= 1, true);
  tasks.open();
  await Promise.all(waits);
  assert.deepEqual(log.entries, ['handler', 'task', 'idle 1', 'idle 2']);
  assert.equal(app.pending, 0);
});

test('the listener answers on a server that is not ours, and close() leaves that one alone', async () => {
  const log = new Journal();
  const app = createApp([get('/hello/:name', { name: path('name'), tasks: backgroundTasks }, ({ name, tasks }) => {
    tasks.addTask(log.write, name);
    return { hello: name };
  })]);
  await using server = await foreign((req, res) => (req.url === '/other' ? res.end('other') : app.listener(req, res)));
  const { listener } = app;
  assert.equal(listener, app.listener);
  assert.equal((await ask(`${server.url}/hello/kim`)).body, '{"hello":"kim"}');
  assert.equal((await ask(`${server.url}/other`)).body, 'other');
  await app.idle();
  assert.deepEqual(log.entries, ['kim']);
  assert.deepEqual(await app.close(), { unfinished: [] });
  assert.equal((await ask(`${server.url}/other`)).body, 'other');
});

test('listen() twice, or after close(), is refused with what was expected', async () => {
  const again = { name: 'Error', message: 'Expected listen() to be called once, and before close().' };
  const app = createApp([]);
  assert.match((await app.listen({ port: 0 })).url, /^http:\/\/127\.0\.0\.1:\d+$/);
  await assert.rejects(app.listen({ port: 0 }), again);
  await app.close();
  await assert.rejects(app.listen({ port: 0 }), again);
  const closed = createApp([]);
  await closed.close();
  await assert.rejects(closed.listen({ port: 0 }), again);
});

test('listen() on a port in use rejects, and the app still closes', async () => {
  await using server = await serve([]);
  const app = createApp([]);
  await assert.rejects(app.listen({ port: server.port }), { code: 'EADDRINUSE' });
  assert.deepEqual(await app.close(), { unfinished: [] });
});

test('an option out of range is a RangeError that names it', () => {
  for (const name of ['bodyLimit', 'drainTimeoutMs', 'stallTimeoutMs']) {
    for (const value of [-1, NaN, Infinity, 2 ** 31]) {
      assert.throws(() => createApp([], { [name]: value }),
        { name: 'RangeError', message: `Expected ${name} to be from 0 to 2 ** 31 - 1, got ${value}.` });
    }
    for (const value of [0, 0.5, 2 ** 31 - 1]) assert.doesNotThrow(() => createApp([], { [name]: value }));
  }
});

// ---- the router ----

const named = (...routes: string[]): Route[] => routes.map((text) => {
  const [method = '', pattern = ''] = text.split(' ');
  return route(method, pattern, () => text);
});

/** `routes` as given and reversed: their order has no effect. */
async function answers(routes: Route[], requests: Record<string, unknown>): Promise<void> {
  for (const order of [routes, routes.toReversed()]) {
    await using server = await serve(order);
    for (const [line, expected] of Object.entries(requests)) {
      const [method = '', target = ''] = line.split(' ');
      const { status, body, headers } = await ask(server.url, { method, path: target });
      if (status === 200) assert.equal(body && JSON.parse(body), expected, line);
      else assert.deepEqual([status, JSON.parse(body).detail, headers.allow?.split(', ').toSorted()], expected, line);
    }
  }
}

const notFound = [404, 'Not Found', undefined];
const notAllowed = (...methods: string[]): unknown[] => [405, 'Method Not Allowed', methods];

test('a literal segment comes before a parameter, whatever the order, and gives way where it leads nowhere', () =>
  answers(named('GET /items/new', 'GET /items/:id', 'GET /:kind/:id/edit', 'GET /items/new/now', 'GET /:a/:b/:c'), {
    'GET /items/new': 'GET /items/new',
    'GET /items/1': 'GET /items/:id',
    'GET /items/new/now': 'GET /items/new/now',
    'GET /items/new/edit': 'GET /:kind/:id/edit',
    'GET /items/new/later': 'GET /:a/:b/:c',
    'GET /users/new': notFound,
  }));

test('a literal segment gives way to a parameter also where it lacks the method', () =>
  answers(named('POST /items/new', 'GET /items/:id', 'PUT /items/:id', 'GET /health'), {
    'POST /items/new': 'POST /items/new',
    'GET /items/new': 'GET /items/:id',
    'PUT /items/new': 'PUT /items/:id',
    'DELETE /items/new': notAllowed('GET', 'HEAD', 'POST', 'PUT'),
    'POST /items/1': notAllowed('GET', 'HEAD', 'PUT'),
  }));

test('a method that the path lacks is 405 with Allow, OPTIONS too', () =>
  answers(named('GET /items', 'POST /items', 'DELETE /items/:id', 'HEAD /head'), {
    'DELETE /items': notAllowed('GET', 'HEAD', 'POST'),
    'OPTIONS /items': notAllowed('GET', 'HEAD', 'POST'),
    'GET /items/1': notAllowed('DELETE'),
    'GET /head': notAllowed('HEAD'),
    'OPTIONS /missing': notFound,
  }));

test('a route of any method can be declared, OPTIONS and HEAD too', () =>
  answers(named('OPTIONS /items', 'HEAD /items', 'GET /items', 'PATCH /items', 'PROPFIND /items'), {
    'OPTIONS /items': 'OPTIONS /items',
    'HEAD /items': '',
    'PROPFIND /items': 'PROPFIND /items',
    'PATCH /items': 'PATCH /items',
  }));

test('a slash at the end, or an empty segment, is a path of its own: no redirect, no parameter', () =>
  answers(named('GET /items', 'GET /items/:id', 'GET /users/', 'GET /'), {
    'GET /items/': notFound,
    'GET /items/1/': notFound,
    'GET //items': notFound,
    'GET /items//': notFound,
    'GET //': notFound,
    'GET /users': notFound,
    'GET /users/': 'GET /users/',
    'GET /': 'GET /',
  }));

test('only `?` ends the path; what stands after it is no part of the route', () =>
  answers(named('GET /items', 'GET /'), {
    'GET /items?': 'GET /items',
    'GET /items?a=/b': 'GET /items',
    'GET /items??': 'GET /items',
    'GET /?x': 'GET /',
    'GET /items;a=1': notFound,
    'GET /items&a=1': notFound,
    'GET /ITEMS': notFound,
  }));

test('names of Object.prototype are plain segments', () =>
  answers(named('GET /items', 'GET /constructor/:__proto__'), {
    'GET /__proto__': notFound,
    'GET /constructor': notFound,
    'GET /constructor/x': 'GET /constructor/:__proto__',
    'GET /toString': notFound,
  }));

test('a request target in absolute form is routed by its path; `OPTIONS *` is 404', () =>
  answers(named('GET /items', 'GET /'), {
    'GET http://example.com/items': 'GET /items',
    'GET HTTP://example.com:80/items?a=b://c': 'GET /items',
    'GET http://example.com/': 'GET /',
    'GET http://example.com/items/1': notFound,
    'POST http://example.com/items': notAllowed('GET', 'HEAD'),
    'OPTIONS *': notFound,
  }));

test('a segment is decoded after the path was split: %2F is data', async () => {
  await using server = await serve([get('/files/:name', { name: path('name'), q: query('q', '') }, (values) => values),
    get('/주문/:이름/확인', { name: path('이름') }, ({ name }) => name)]);
  const of = async (target: string): Promise<unknown> => JSON.parse((await ask(server.url, { path: target })).body);
  assert.deepEqual(await of('/files/a%2Fb'), { name: 'a/b', q: '' });
  assert.deepEqual(await of('/files/a%3Fb%23?q=%2F+%3D'), { name: 'a?b#', q: '/ =' });
  assert.deepEqual(await of('/files/a+b%20c'), { name: 'a+b c', q: '' });
  assert.deepEqual(await of('/files/%2525'), { name: '%25', q: '' });
  assert.deepEqual(await of('/files/..'), { name: '..', q: '' });
  assert.deepEqual(await of('/f%69les/:name'), { name: ':name', q: '' });
  assert.deepEqual(await of('http://example.com/files/x?q=1'), { name: 'x', q: '1' });
  assert.deepEqual(await of('/files%2Fa'), { detail: 'Not Found' });
  assert.deepEqual(await of('/files/a/b'), { detail: 'Not Found' });
  assert.equal(await of(encodeURI('/주문/김 철수/확인')), '김 철수');
});

test('a path that is not UTF-8 in percent-encoding is 400, and nothing is reported', async (t) => {
  const lines = stderr(t);
  await using server = await serve([
    get('/:name', { name: path('name'), q: query('q', '') }, ({ name, q }) => name + q)]);
  for (const target of ['/%E0%A4', '/%ff', '/%zz', '/a%', '/missing/%C3%28']) {
    const { status, body } = await ask(server.url, { path: target });
    assert.deepEqual([status, body], [400, '{"detail":"Expected a path in percent-encoded UTF-8"}'], target);
  }
  assert.equal((await ask(server.url, { path: '/a?q=%ff' })).body, '"a\uFFFD"');
  assert.deepEqual(lines, []);
});

test('HEAD answers as GET does, with the same headers and no body', async () => {
  await using server = await serve([
    get('/json', () => ({ text: '한글' })),
    get('/response', () => new Response('text', { headers: { 'content-length': '4', 'x-mark': '1' } })),
    get('/empty', () => new Response(null, { status: 404 })),
    get('/thrown', () => { throw new HTTPError(410, 'over'); }),
  ]);
  for (const target of ['/json', '/response', '/empty', '/thrown', '/missing']) {
    const [head, full] = [await ask(server.url + target, { method: 'HEAD' }), await ask(server.url + target)];
    assert.deepEqual([head.status, without(head.headers)], [full.status, without(full.headers)]);
    assert.equal(head.body, '');
    using client = await rawClient(server.port);
    const line = `HEAD ${target} HTTP/1.1`;
    client.send(line, 'host: a', '', line, 'host: a', 'connection: close', '', '');
    assert.equal((await client.closed).split(/\r\n\r\n(?=HTTP\/1\.1 |$)/).length, 3, 'two heads, nothing else');
  }
});

test('HEAD of a Response without a content-length is answered, its source is cancelled, its tasks run (fact 7.16)',
  async (t) => {
    const lines = stderr(t);
    const log = new Journal();
    await using server = await serve([get('/', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(log.write, 'task');
      return new Response(source(() => 'x'.repeat(MiB), () => { log.write('cancelled'); throw new Error('ignored'); }),
        { status: 203, headers: { 'x-mark': '1' } });
    })]);
    const { status, headers, body } = await ask(server.url, { method: 'HEAD' });
    assert.deepEqual([status, headers['x-mark'], body], [203, '1', '']);
    await log.until('task');
    assert.deepEqual(log.entries, ['cancelled', 'task']);
    assert.deepEqual(lines, []);
  });

test('two equal routes are refused, whatever their parameters are called', () => {
  assert.throws(() => createApp(named('GET /items/:id', 'GET /items/:name')),
    { name: 'Error', message: 'Expected one route for GET /items/:name, got two.' });
  assert.throws(() => createApp(named('GET /', 'GET /')), /Expected one route for GET \/, got two\./);
  assert.doesNotThrow(() => createApp(named('GET /items/:id', 'PUT /items/:name', 'GET /items/id', 'GET /items/:id/')));
});

test('a path() that its route lacks is refused by createApp, also in a dependency of a dependency', () => {
  const id = path('id');
  const outer = depends({ inner: depends({ id }, ({ id }) => id) }, ({ inner }) => inner);
  const refused = { name: 'Error', message: 'Expected GET /items/:name to have a segment :id, as path() needs it.' };
  assert.throws(() => createApp([get('/items/:name', { id }, () => {})]), refused);
  assert.throws(() => createApp([get('/items/:name', { outer }, () => {})]), refused);
  assert.doesNotThrow(() => createApp([get('/items/:id', { outer, id }, () => {})]));
});

test('a pattern without a slash, with a name twice, or with no name is refused by route()', () => {
  for (const pattern of ['', 'items', ':id', '/:id/x/:id', '/:', '/items/:/x']) {
    assert.throws(() => get(pattern, () => {}), { name: 'TypeError', message:
      `Expected a path such as '/items/:id', each name once, got '${pattern}'.` });
  }
});

test('a handler that is no function, or a dependency that is none, is refused by route()', () => {
  for (const handler of [undefined, null, {}, 'text', Promise.resolve()]) {
    const refused = { name: 'TypeError', message: 'Expected PUT /items to have a handler function.' };
    assert.throws(() => put('/items', handler as never), refused);
    assert.throws(() => put('/items', {}, handler as never), refused);
  }
  assert.throws(() => put('/items', { id: 'id' as never }, () => {}), { name: 'TypeError', message: /`id`/ });
});

// ---- what a handler returns ----

const respond = (make: () => unknown): Promise<Served> => serve([get('/', make)]);

test('a handler returns any JSON value, `undefined` as null', async () => {
  const values: [unknown, string][] = [
    [undefined, 'null'], [null, 'null'], [0, '0'], [-1.5, '-1.5'], [NaN, 'null'], [false, 'false'], ['', '""'],
    ['한글 "😀"', '"한글 \\"😀\\""'], [[], '[]'], [{ a: [{ b: null, c: undefined }] }, '{"a":[{"b":null}]}'],
    [new Date(0), '"1970-01-01T00:00:00.000Z"'], [{ toJSON: () => 'own' }, '"own"'], [Promise.resolve(1), '1'],
  ];
  const left = [...values];
  await using server = await respond(() => left.shift()?.[0]);
  for (const [, text] of values) {
    const { status, headers, body } = await ask(server.url);
    assert.deepEqual([status, body], [200, text]);
    assert.equal(headers['content-type'], 'application/json');
    assert.equal(headers['content-length'], String(Buffer.byteLength(text)));
  }
});

test('a handler returns a Response of any status, with its headers, each set-cookie on its own', async () => {
  await using server = await respond(() => {
    const headers = new Headers({ 'content-type': 'text/plain', 'x-mark': 'é' });
    headers.append('set-cookie', 'a=1; Path=/');
    headers.append('set-cookie', 'b=2; Expires=Thu, 01 Jan 1970 00:00:00 GMT');
    return new Response('한글', { status: 299, headers });
  });
  const { status, headers, body } = await ask(server.url);
  assert.deepEqual([status, body, headers['content-type'], headers['x-mark']], [299, '한글', 'text/plain', 'é']);
  assert.deepEqual(headers['set-cookie'], ['a=1; Path=/', 'b=2; Expires=Thu, 01 Jan 1970 00:00:00 GMT']);
});

test('a Response of another realm, or of a package, is sent as one; data that resembles it is data', async () => {
  const { status, headers, body, bodyUsed } = Response.json({ made: 'elsewhere' }, { status: 201 });
  await using server = await serve([
    get('/response', () => ({ status, headers, body, bodyUsed, [Symbol.toStringTag]: 'Response' })),
    get('/data', () => ({ status: 404, headers: new Headers(), body: null, bodyUsed: false })),
  ]);
  const sent = await ask(`${server.url}/response`);
  assert.deepEqual([sent.status, sent.body], [201, '{"made":"elsewhere"}']);
  const data = await ask(`${server.url}/data`);
  assert.deepEqual([data.status, data.body], [200, '{"status":404,"headers":{},"body":null,"bodyUsed":false}']);
});

test('a response that the host has ended stays as it is; the error is reported, and nothing is pending', async (t) => {
  const lines = stderr(t);
  const app = createApp([
    get('/', () => 'ours'), get('/missing', () => { throw new HTTPError(404); }), get('/pending', () => app.pending),
  ]);
  await using server = await foreign((req, res) => {
    if (req.url !== '/pending') res.writeHead(503).end('busy');
    app.listener(req, res);
  });
  for (const path of ['/', '/missing']) {
    const { status, body } = await ask(`${server.url}${path}`);
    assert.deepEqual([status, body], [503, 'busy']);
  }
  assert.equal((await ask(`${server.url}/pending`)).body, '1', 'itself');
  assert.deepEqual(lines.map((line) => line.split(':')[0]), ['GET / failed', 'GET /missing failed']);
});

test('a Response without a body, or with an empty one, leaves the connection open', async () => {
  for (const status of [200, 201, 204, 205, 304, 404, 500]) {
    for (const empty of [204, 205, 304].includes(status) ? [null] : [null, '']) {
      await using server = await respond(() => new Response(empty, { status }));
      using client = await rawClient(server.port);
      client.send(...GET('/'), ...GET('/missing'));
      const received = await client.until('{"detail":"Not Found"}');
      assert.ok(received.startsWith(`HTTP/1.1 ${status} `));
      const [head = ''] = received.split('\r\n\r\n');
      if (status === 204) assert.doesNotMatch(head, /content-length|transfer-encoding/i);
      else if (empty === null && status !== 304) assert.match(received, /content-length: 0\r\n/);
    }
  }
});

test('a Response of bytes arrives as it is', async () => {
  const bytes = Buffer.from(Array.from({ length: 3 * MiB }, (_, index) => index % 251));
  await using server = await respond(() => new Response(bytes));
  assert.ok(bytes.equals(Buffer.from(await (await fetch(server.url)).arrayBuffer())));
});

const read = new Response('read');
await read.text();
const partly = new Response('partly read');
const reader = partly.body?.getReader();
await reader?.read();
reader?.releaseLock();
const circular: Record<string, unknown> = {};
circular['self'] = circular;

for (const [kind, make] of Object.entries<() => unknown>({
  'a BigInt': () => 1n,
  'a BigInt inside an object': () => ({ n: [1n] }),
  'a function': () => () => 1,
  'a symbol': () => Symbol('s'),
  'a circular object': () => circular,
  'a toJSON that throws': () => ({ toJSON() { throw new Error('secret'); } }),
  'a Response that was read': () => read,
  'a Response that was read in part': () => partly,
  "a Response whose body is a stream of Node's": () => Object.defineProperty(new Response(), 'body', {
    value: Readable.from(['x']),
  }),
  'a Response whose body is locked': () => { const held = new Response('x'); held.body?.getReader(); return held; },
  'Response.error()': () => Response.error(),
  'a Response with a header that Node refuses': () => new Response('x', { headers: { 'x-secret': '\x01' } }),
  'a 201 with a header that Node refuses': () => new Response('x', { status: 201, headers: { 'x-secret': '\x01' } }),
  'an HTTPError with a header that Node refuses': () => {
    throw new HTTPError(404, 'x', { headers: { 'x-secret': '\n' } });
  },
  'an HTTPError whose detail is no JSON': () => { throw new HTTPError(404, { secret: 1n }); },
  'a thrown error': () => { throw new Error('secret'); },
  'a rejection': () => Promise.reject(new Error('secret')),
  'a thrown text': () => { throw 'secret'; },
  'a thrown undefined': () => { throw undefined; },
  'a thrown Response': () => { throw new Response('secret'); },
  'a thrown value that cannot be printed': () => {
    throw { get [Symbol.toStringTag]() { throw new Error('secret'); } };
  },
})) {
  test(`${kind} is 500 with nothing of it in the body; it is reported once, its queue is discarded`, async (t) => {
    const lines = stderr(t);
    const log = new Journal();
    await using server = await serve([get('/', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(log.write, 'task');
      return make();
    })]);
    using client = await rawClient(server.port);
    client.send(...GET('/?a=b'), ...GET('/missing'));
    const received = await client.until('{"detail":"Not Found"}');
    const [head = '', body] = received.split('\r\n\r\n');
    assert.match(head, /^HTTP\/1\.1 500 Internal Server Error\r\n/);
    assert.match(head, /\r\ncontent-type: application\/json\r\ncontent-length: 34\r\n/);
    assert.ok(body?.startsWith('{"detail":"Internal Server Error"}HTTP/1.1 404 '), body);
    assert.doesNotMatch(received, /secret|\n +at /);
    await fence(server.url);
    assert.deepEqual(log.entries, []);
    assert.equal(lines.length, 1);
    assert.match(lines[0] ?? '', /^GET \/\?a=b failed:/);
    if (!/text|undefined|thrown Response|printed/.test(kind)) assert.match(lines[0] ?? '', /Error(:| \[)[^]*\n +at /);
  });
}

test('an HTTPError is sent with its status, detail and headers, and is not reported', async (t) => {
  const lines = stderr(t);
  const errors = [
    new HTTPError(404, 'Item not found', { headers: { 'x-mark': '1' } }),
    new HTTPError(503, undefined, { headers: { 'Retry-After': '1' } }),
    new HTTPError(400, { code: 7 }),
    new HTTPError(204),
    new HTTPError(304, undefined, { headers: { etag: '"1"' } }),
  ];
  await using server = await respond(() => { throw errors.shift(); });
  const seen: unknown[] = [];
  while (errors.length > 0) {
    const { status, body, headers } = await ask(server.url);
    seen.push([status, body, headers['x-mark'] ?? headers['retry-after'] ?? headers.etag]);
  }
  assert.deepEqual(seen, [[404, '{"detail":"Item not found"}', '1'], [503, '{"detail":"Service Unavailable"}', '1'],
    [400, '{"detail":{"code":7}}', undefined], [204, '', undefined], [304, '', '"1"']]);
  assert.deepEqual(lines, []);
});

test('a content-type of an HTTPError replaces that of JSON, as in FastAPI', async () => {
  await using server = await respond(() => {
    throw new HTTPError(400, 'x', { headers: { 'Content-Type': 'application/problem+json' } });
  });
  const { rawHeaders } = await ask(server.url);
  assert.deepEqual(rawHeaders.filter((_, index) => /^content-type$/i.test(rawHeaders[index - 1] ?? '')),
    ['application/problem+json']);
});

// ---- left to Node ----

const echo = post('/', { item: body(strings('item')) }, ({ item }) => item);

test('CONNECT closes the socket, and the server serves on', async () => {
  await using server = await serve([echo]);
  using client = await rawClient(server.port);
  client.send('CONNECT example.com:80 HTTP/1.1', 'host: a', '', '');
  assert.equal(await client.closed, '');
  await fence(server.url);
});

test('Upgrade is ignored: the request is answered', async () => {
  await using server = await serve([get('/', () => 'answered')]);
  using client = await rawClient(server.port);
  client.send(...GET('/', 'connection: Upgrade', 'upgrade: websocket'));
  assert.match(await client.until('"answered"'), /^HTTP\/1\.1 200 /);
});

test('Expect: 100-continue is answered at once, any other Expect with 417', async () => {
  await using server = await serve([echo]);
  const head = (expect: string): string[] => ['POST / HTTP/1.1', 'host: a', 'content-type: application/json',
    'content-length: 14', `expect: ${expect}`, '', ''];
  using client = await rawClient(server.port);
  client.send(...head('100-continue'));
  await client.until('HTTP/1.1 100 Continue\r\n\r\n');
  client.send('{"item":"tea"}');
  assert.match(await client.until('{"item":"tea"}'), /\r\n\r\nHTTP\/1\.1 200 OK\r\n/);
  using other = await rawClient(server.port);
  other.send(...head('a miracle'));
  assert.match(await other.until('\r\n\r\n'), /^HTTP\/1\.1 417 Expectation Failed\r\n/);
});

for (const [kind, status, lines] of [
  ['a request that is malformed', 400, ['HELLO', '', '']],
  ['HTTP/1.1 without a host', 400, ['GET / HTTP/1.1', '', '']],
  ['two content-lengths', 400, ['POST / HTTP/1.1', 'host: a', 'content-length: 1', 'content-length: 2', '', 'x']],
  ['a header that is too large', 431, GET('/', `x-large: ${'x'.repeat(20_000)}`)],
] as [string, number, string[]][]) {
  test(`${kind} gets ${status} from Node, and nothing is left pending`, async () => {
    await using server = await serve([get('/', () => 'reached')]);
    using client = await rawClient(server.port);
    client.send(...lines);
    assert.match(await client.closed, new RegExp(`^HTTP/1\\.1 ${status} `));
    await fence(server.url);
    await server.app.idle();
    assert.equal(server.app.pending, 0);
  });
}

test('a request target in absolute form without a path is that of the root (RFC 9112, 3.2.2)', async () => {
  await using server = await serve([get('/', { q: query('q', '') }, ({ q }) => `root ${q}`)]);
  using client = await rawClient(server.port);
  client.send(...GET('http://a'), ...GET('http://a?q=1', 'connection: close'));
  assert.match(await client.closed, /"root "[^]*"root 1"/);
});

test('close() leaves a response of its host alone, on a connection that both have used', async (t) => {
  const held = gate();
  const app = createApp([get('/ours', () => 'ours')]);
  const started = gate();
  const host = http.createServer((req, res) => {
    if (req.url === '/ours') return app.listener(req, res);
    started.open();
    void held.then(() => res.end('of the host'));
  }).listen(0, '127.0.0.1');
  await once(host, 'listening');
  t.after(() => host.close());
  using client = await rawClient((host.address() as AddressInfo).port);
  client.send('GET /ours HTTP/1.1', 'host: a', '', '');
  await client.until('"ours"');
  client.send('GET /theirs HTTP/1.1', 'host: a', '', '');
  await started;
  await app.close();
  held.open();
  await client.until('of the host');
});

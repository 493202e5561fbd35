/** Clause 7: close() in this process, and signals to a process of its own. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import http, { type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test, type TestContext } from 'node:test';
import { format } from 'node:util';
import { backgroundTasks, body, createApp, depends, get, post, strings } from '../server.ts';
import { child, gate, rawClient, serve, type Child, type Gate, type RawClient } from './helpers.ts';

const submit = async (url: string): Promise<string> => (await fetch(url, { method: 'POST' })).text();
const refusesConnections = (port: number): Promise<void> => assert.rejects(rawClient(port), { code: 'ECONNREFUSED' });
const closeHeaders = (received: string): number => received.match(/^connection: close\r$/gim)?.length ?? 0;

/** Keeps stderr quiet; returns what was written to it. */
function stderrOf(t: TestContext): () => string[] {
  const error = t.mock.method(console, 'error', () => {});
  return () => error.mock.calls.map((call) => format(...call.arguments));
}

test('7 close() finishes the running task, the queued ones and those that they add, and resolves last', async () => {
  const [started, held] = [gate(), gate()];
  const events: string[] = [];
  await using server = await serve([post('/items', { tasks: backgroundTasks }, ({ tasks }) => {
    tasks.addTask(async function first() { started.open(); await held; events.push('first'); });
    tasks.addTask(function second() { tasks.addTask(() => events.push('third')); events.push('second'); });
  })]);
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

test('7 close() finishes the answer of a handler that is still at work, and then its tasks', async () => {
  const [arrived, held, ran] = [gate(), gate(), gate<string>()];
  await using server = await serve([post('/items', { tasks: backgroundTasks }, async ({ tasks }) => {
    tasks.addTask(ran.open, 'task');
    arrived.open();
    await held;
    return 'done';
  })]);
  const answer = submit(`${server.url}/items`);
  await arrived;
  const closed = server.app.close();
  await refusesConnections(server.port);
  held.open();
  assert.equal(await answer, '"done"');
  assert.deepEqual(await closed, { unfinished: [] });
  assert.equal(await ran, 'task');
});

test('7 close() waits for the clean-up of a dependency', async () => {
  const [started, held] = [gate(), gate()];
  const events: string[] = [];
  const session = depends(async function* () { yield; started.open(); await held; events.push('cleaned up'); });
  await using server = await serve([post('/items', { session }, () => 'ok')]);
  await submit(`${server.url}/items`);
  await started;
  const closed = server.app.close().finally(() => events.push('closed'));
  await refusesConnections(server.port);
  held.open();
  assert.deepEqual(await closed, { unfinished: [] });
  assert.deepEqual(events, ['cleaned up', 'closed']);
});

test('7 a task that fails meanwhile is reported, and is not unfinished', async (t) => {
  const stderr = stderrOf(t);
  const [started, held] = [gate(), gate()];
  await using server = await serve([post('/items', { tasks: backgroundTasks }, ({ tasks }) => {
    tasks.addTask(async function fails() { started.open(); await held; throw new Error('too late'); });
  })]);
  await submit(`${server.url}/items`);
  await started;
  const closed = server.app.close();
  held.open();
  assert.deepEqual(await closed, { unfinished: [] });
  assert.equal(stderr().length, 1);
  assert.match(stderr().join(), /fails.*Error: too late\n {4}at /);
});

test('7 close() twice is the same promise, during and after', async () => {
  const [started, held] = [gate(), gate()];
  await using server = await serve([post('/items', { tasks: backgroundTasks }, ({ tasks }) => {
    tasks.addTask(() => { started.open(); return held; });
  })]);
  await submit(`${server.url}/items`);
  await started;
  const closed = server.app.close();
  assert.equal(server.app.close(), closed);
  held.open();
  await closed;
  assert.equal(server.app.close(), closed);
});

test('7 close() of an app that never listened resolves, and listen() is refused from then on', async () => {
  const app = createApp([]);
  const closed = app.close();
  await assert.rejects(app.listen({ port: 0 }), /before close\(\)/);
  assert.deepEqual(await closed, { unfinished: [] });
  await assert.rejects(app.listen({ port: 0 }), /before close\(\)/);
});

test('7 close() while listen() is under way ends both', async () => {
  const app = createApp([]);
  const listening = assert.rejects(app.listen({ port: 0 }), /close\(\) to be called after listen\(\) had ended/);
  assert.deepEqual(await app.close(), { unfinished: [] });
  await listening;
});

test('7 close() after a listen() that failed resolves', async () => {
  await using other = await serve([]);
  const app = createApp([]);
  await assert.rejects(app.listen({ port: other.port }), { code: 'EADDRINUSE' });
  assert.deepEqual(await app.close(), { unfinished: [] });
});

test('7 a handler may call close(): its own answer arrives, with Connection: close', async () => {
  const closed = gate<object>();
  await using server = await serve([post('/stop', () => { closed.open(server.app.close()); return 'stopping'; })]);
  using client = await rawClient(server.port);
  client.send('POST /stop HTTP/1.1', 'host: a', 'content-length: 0', '', '');
  const received = await client.closed;
  assert.ok(received.endsWith('\r\n\r\n"stopping"'));
  assert.equal(closeHeaders(received), 1);
  assert.deepEqual(await closed, { unfinished: [] });
});

test('7 a kept connection, one that sent nothing and one with half a head end at once (fact 7.5)', async () => {
  const [arrived, held] = [gate(), gate()];
  await using server = await serve([get('/', () => 'ok'), get('/held', () => { arrived.open(); return held; })]);
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

/** An app with one route; each of its requests is held until the test answers it. */
async function heldRequests() {
  const requests = ['a', 'b'].map((name) => ({ name, arrived: gate(), held: gate(), ran: gate() })) as [Held, Held];
  const server = await serve(requests.map(({ name, arrived, held, ran }) => (
    get(`/${name}`, { tasks: backgroundTasks }, async ({ tasks }) => {
      tasks.addTask(ran.open, undefined);
      arrived.open();
      await held;
      return name;
    }))));
  return { server, requests, [Symbol.asyncDispose]: server[Symbol.asyncDispose] };
}
interface Held { readonly name: string; readonly arrived: Gate; readonly held: Gate; readonly ran: Gate }

test('7 a request that arrives on a kept connection is served, the last answer with Connection: close', async () => {
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

test('7 pipelined answers that are ready in the other order both arrive, and the connection ends', async () => {
  await using app = await heldRequests();
  const [a, b] = app.requests;
  using client = await rawClient(app.server.port);
  client.send('GET /a HTTP/1.1', 'host: a', '', 'GET /b HTTP/1.1', 'host: a', '', '');
  await Promise.all([a.arrived, b.arrived]);
  const closed = app.server.app.close();
  b.held.open();
  await refusesConnections(app.server.port);
  a.held.open();
  assert.match(await client.closed, /\r\n\r\n"a"HTTP\/1\.1 200 OK\r\n[^]*\r\n\r\n"b"$/);
  assert.deepEqual(await closed, { unfinished: [] });
  await Promise.all([a.ran, b.ran]);
});

const LARGE = 2 ** 25;

/** Asks for `LARGE` characters as JSON, and has read the first ones only. */
async function slowReader(port: number): Promise<RawClient> {
  const client = await rawClient(port);
  client.send('GET /large HTTP/1.1', 'host: a', '', '');
  await client.until('HTTP/1.1 200 OK');
  client.socket.pause();
  return client;
}

test('7 a slow reader gets all of a large JSON answer, and then its task runs (fact 7.5)', async () => {
  const ran = gate();
  await using server = await serve([get('/large', { tasks: backgroundTasks }, ({ tasks }) => {
    tasks.addTask(ran.open, undefined);
    return 'x'.repeat(LARGE);
  })]);
  using client = await slowReader(server.port);
  const closed = server.app.close();
  await refusesConnections(server.port);
  assert.equal(server.app.pending, 1);
  client.socket.resume();
  assert.equal((await client.closed).split('\r\n\r\n')[1]?.length, LARGE + 2);
  assert.deepEqual(await closed, { unfinished: [] });
  await ran;
});

const HALF_AN_ORDER = ['POST /orders HTTP/1.1', 'host: a', 'content-type: application/json', 'content-length: 14', '',
  '{"item":'];

test('7 a body that was half sent may be finished: the request is served, and its task runs', async () => {
  const [arrived, ran] = [gate(), gate<string>()];
  const arrives = depends(arrived.open);
  await using server = await serve([post('/orders', { arrives, order: body(strings('item')), tasks: backgroundTasks },
    ({ order: { item }, tasks }) => { tasks.addTask(ran.open, item); return item; })]);
  using client = await rawClient(server.port);
  client.send(...HALF_AN_ORDER);
  await arrived;
  const closed = server.app.close();
  client.send('"cat"}');
  assert.ok((await client.closed).endsWith('"cat"'));
  assert.deepEqual(await closed, { unfinished: [] });
  assert.equal(await ran, 'cat');
});

test('7 at half of drainTimeoutMs every connection is destroyed, and the tasks have the other half', async () => {
  const [arrived, events] = [gate(), [] as string[]];
  const arrives = depends(arrived.open);
  await using server = await serve([
    get('/large', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(() => events.push('after a reader that stalls'));
      return 'x'.repeat(LARGE);
    }),
    get('/endless', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(() => events.push('after a stream without end'));
      return new Response(new ReadableStream({ start: (controller) => controller.enqueue(Buffer.from('first')) }));
    }),
    post('/orders', { arrives, order: body(strings('item')), tasks: backgroundTasks }, () => events.push('handler')),
  ], { drainTimeoutMs: 2000 });
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

test('7 at the deadline tasks and requests are named, and what has not started never does', async (t) => {
  const stderr = stderrOf(t);
  const [started, arrived, arrivedToo, held] = [gate(), gate(), gate(), gate()];
  const ran: string[] = [];
  await using server = await serve([
    post('/tasks', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(async function running() { started.open(); await held; ran.push('running'); });
      tasks.addTask(function queued() { ran.push('queued'); });
    }),
    post('/both', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(function queuedByHandler() { ran.push('queuedByHandler'); });
      arrived.open();
      return held;
    }),
    get('/hangs', () => { arrivedToo.open(); return held; }),
  ], { drainTimeoutMs: 200 });
  await submit(`${server.url}/tasks`);
  await started;
  using both = await rawClient(server.port);
  both.send('POST /both HTTP/1.1', 'host: a', 'content-length: 0', '', '');
  await arrived;
  using hanging = await rawClient(server.port);
  hanging.send('GET /hangs?a=b HTTP/1.1', 'host: a', '', '');
  await arrivedToo;
  const names = ['running', 'queued', 'queuedByHandler', 'GET /hangs?a=b'];
  assert.deepEqual(await server.app.close(), { unfinished: names });
  assert.deepEqual(stderr().map((line) => line.split(': ')[1]), names);
  assert.deepEqual([await both.closed, await hanging.closed], ['', '']);
  held.open();
  await server.app.idle();
  assert.deepEqual(ran, ['running']);
});

test('7 close() of a mounted app finishes its requests, and leaves the server to its owner', async () => {
  const [held, ran] = [gate(), gate<string>()];
  const app = createApp([post('/items', { tasks: backgroundTasks }, ({ tasks }) => {
    tasks.addTask(async () => { await held; ran.open('task'); });
    return 'ok';
  })]);
  const owner = http.createServer(app.listener).listen(0, '127.0.0.1');
  await once(owner, 'listening');
  const { port } = owner.address() as AddressInfo;
  try {
    using kept = await rawClient(port);
    kept.send('POST /items HTTP/1.1', 'host: a', 'content-length: 0', '', '');
    await kept.until('"ok"');
    const closed = app.close();
    assert.equal(closeHeaders(await kept.closed), 0);
    held.open();
    assert.deepEqual(await closed, { unfinished: [] });
    assert.equal(await ran, 'task');
    assert.equal(owner.listening, true);
    using late = await rawClient(port);
    late.send('POST /items HTTP/1.1', 'host: a', 'content-length: 0', '', '');
    assert.equal(closeHeaders(await late.closed), 1);
    await app.idle();
  } finally {
    owner.close();
  }
});

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
  const callbacks = http.createServer(({ url = '' }, res) => {
    calls.push(url.slice(1));
    arrival(url.slice(1)).open(res);
  }).listen(0, '127.0.0.1');
  await once(callbacks, 'listening');
  const folder = await mkdtemp(path.join(tmpdir(), 'shutdown-'));
  await writeFile(path.join(folder, 'package.json'), '{ "type": "module" }');
  await writeFile(path.join(folder, 'app.ts'), `
    import { subscribe, unsubscribe } from 'node:diagnostics_channel';
    import { backgroundTasks, createApp, get, post } from '${new URL('../server.ts', import.meta.url)}';
    const address = 'http://127.0.0.1:${(callbacks.address() as AddressInfo).port}/';
    const call = async (name: string): Promise<void> => void await (await fetch(address + name)).text();
    export default createApp([${routes}], ${options});`);
  const started = child(['server.ts', path.join(folder, 'app.ts'), '--port', '0'], readStderr && { readStderr });
  const url = await started.url();
  const call: Process['call'] = (name) => Promise.race([arrival(name), started.exited.then(() => {
    throw new Error(`The process ended before it called ${name}. ${started.stderr}`);
  })]);
  const dispose = async (): Promise<void> => {
    await started[Symbol.asyncDispose]();
    callbacks.close().closeAllConnections();
    await rm(folder, { recursive: true });
  };
  return { child: started, url, port: Number(new URL(url).port), call, calls, [Symbol.asyncDispose]: dispose };
}

const TWO_TASKS = `
  post('/items', { tasks: backgroundTasks }, ({ tasks }) => {
    tasks.addTask(async function first() { await call('first'); });
    tasks.addTask(async function second() { await call('second'); });
    return 'accepted';
  })`;

for (const signal of ['SIGTERM', 'SIGINT'] as const) {
  test(`7 after ${signal} the process accepts nothing, finishes its tasks and exits with 0`, async () => {
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

for (const [first, second, code] of [['SIGTERM', 'SIGINT', 130], ['SIGINT', 'SIGTERM', 143]] as const) {
  test(`7 ${second} after ${first} ends the process at once, with ${code}`, async () => {
    await using app = await start(TWO_TASKS);
    using silent = await rawClient(app.port);
    await submit(`${app.url}/items`);
    await app.call('first');
    app.child.kill(first);
    await silent.closed;
    app.child.kill(second);
    assert.deepEqual(await app.child.exited, { code, signal: null });
    assert.deepEqual(app.calls, ['first']);
  });
}

test('7 a slow reader has all of its answer before the process exits, and its task has run', async () => {
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

test('7 a task that fails meanwhile is reported, and the exit code stays 0', async () => {
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

test('7 at the deadline the unfinished tasks and requests are named on stderr, and the exit code is 1', async () => {
  await using app = await start(`${TWO_TASKS}, get('/hangs', () => call('handler'))`, '{ drainTimeoutMs: 200 }');
  await submit(`${app.url}/items`);
  await app.call('first');
  using client = await rawClient(app.port);
  client.send('GET /hangs?a=b HTTP/1.1', 'host: a', '', '');
  await app.call('handler');
  app.child.kill('SIGTERM');
  assert.deepEqual(await app.child.exited, { code: 1, signal: null });
  assert.match(app.child.stderr, /^.*: first\n.*: second\n.*: GET \/hangs\?a=b\n$/);
  assert.deepEqual(app.calls, ['first', 'handler']);
});

test('7 the process exits when what it has written was read, however late: all names are on stderr', async () => {
  const read = gate();
  await using app = await start(`
    post('/items', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(async function first() { await call('first'); });
      for (let count = 1; count < 4000; count += 1) tasks.addTask(function neverStarts() {});
      Reflect.get(process.stderr, '_handle').setBlocking(false); // tsx's own process shares it, and has it block
      const later = (): void => { unsubscribe('background-tasks:dropped', later); setImmediate(call, 'dropped'); };
      subscribe('background-tasks:dropped', later);
    })`, '{ drainTimeoutMs: 200 }', read);
  await submit(`${app.url}/items`);
  await app.call('first');
  app.child.kill('SIGTERM');
  await app.call('dropped');
  read.open();
  assert.deepEqual(await app.child.exited, { code: 1, signal: null });
  assert.equal(app.child.stderr.match(/: neverStarts$/gm)?.length, 3999);
});

test('7 a promise that never settles holds the process until the deadline, and is named (fact 7.6)', async () => {
  await using app = await start(`
    post('/items', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(function neverSettles() { return new Promise(() => {}); });
    })`, '{ drainTimeoutMs: 200 }');
  await submit(`${app.url}/items`);
  app.child.kill('SIGTERM');
  assert.deepEqual(await app.child.exited, { code: 1, signal: null });
  assert.match(app.child.stderr, /^.*: neverSettles\n$/);
});

test('7 a rejected promise that a task leaves behind is logged, and the process serves on (fact 7.7)', async () => {
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

test('7 a throw in a listener that a task leaves behind ends the process (fact 7.7)', async () => {
  await using app = await start(`
    post('/items', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(function leaves() { setImmediate(function listener() { throw new Error('left behind'); }); });
    })`);
  await submit(`${app.url}/items`);
  assert.deepEqual(await app.child.exited, { code: 1, signal: null });
  assert.match(app.child.stderr, /Error: left behind\n {4}at .*listener/);
});

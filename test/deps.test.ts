/** deps.ts through real servers: how dependencies are resolved and unwound, and what the inputs of a request become. */
import assert from 'node:assert/strict';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { IncomingMessage } from 'node:http';
import { Socket } from 'node:net';
import { test, type TestContext } from 'node:test';
import { format } from 'node:util';
import { BackgroundTasks, backgroundTasks, body, depends, get, header, HTTPError, path, post, query, request, strings }
  from '../server.ts';
import type { Dependencies, Dependency, Route, StandardSchema, TaskInfo } from '../server.ts';
import { gate, rawClient, serve, type RawClient, type Served } from './helpers.ts';

/** What stderr would show. It formats, as the real one does. */
function stderr(t: TestContext): string[] {
  const lines: string[] = [];
  t.mock.method(console, 'error', (...args: unknown[]) => void lines.push(format(...args)));
  return lines;
}

/** The status and the JSON of an answer. */
async function answer({ url }: Served, target = '/', init?: RequestInit): Promise<[status: number, json: unknown]> {
  const response = await fetch(url + target, init);
  return [response.status, await response.json()];
}

/** The same for one app, one request. */
async function answerOf(routes: readonly Route[], target?: string, init?: RequestInit): ReturnType<typeof answer> {
  await using server = await serve(routes);
  return await answer(server, target, init);
}

/** A POST of bytes, so that `fetch` adds no content type of its own. */
const sent = (bytes: string | Uint8Array<ArrayBuffer>, type?: string): RequestInit => ({
  method: 'POST', body: typeof bytes === 'string' ? Buffer.from(bytes) : bytes,
  headers: type ? { 'content-type': type } : {},
});
const json = (value: unknown): RequestInit => sent(JSON.stringify(value), 'application/json');

type Validate<T> = StandardSchema<T>['~standard']['validate'];
/** A Standard Schema as a library would have it. */
const schema = <T>(validate: Validate<T>): StandardSchema<T> =>
  ({ '~standard': { version: 1, vendor: 'test', validate } });
const anything = schema<unknown>((value) => ({ value }));
const number = schema<number>((value) => typeof value === 'string' && /^\d+$/.test(value)
  ? { value: Number(value) } : { issues: [{ message: `No number: ${value}` }] });
const asyncNumber = schema<number>(async (value) => {
  await new Promise(setImmediate);
  return number['~standard'].validate(value);
});

/** Turns a hang into a failure; nothing is measured by it. */
const within = { timeout: 20_000 };

/** A client that sees bytes. A test that has timed out disconnects it, and so comes to its end. */
async function connect(t: TestContext, port: number): Promise<RawClient> {
  const client = await rawClient(port);
  t.signal.addEventListener('abort', () => client.socket.destroy());
  return client;
}

const missing = (...loc: string[]): object => ({ type: 'missing', loc, msg: 'Field required', input: null });
const rejection = (...errors: unknown[]): [number, unknown] => [422, { detail: errors }];
const internal = [500, { detail: 'Internal Server Error' }];
const NO_MODEL = { type: 'model_attributes_type', loc: ['body'],
  msg: 'Input should be a valid dictionary or object to extract fields from' };

/* Resolution */

test('10 dependencies are resolved one at a time, depth first, in the order declared, then the handler', async () => {
  const log: string[] = [];
  const step = (name: string, deps: Dependencies = {}): Dependency<string> => depends(deps, async () => {
    log.push(`${name} begins`);
    await new Promise(setImmediate);
    log.push(`${name} ends`);
    return name;
  });
  const deps = { first: step('outer', { a: step('inner a'), b: step('inner b') }), second: step('second') };
  assert.deepEqual(await answerOf([get('/', deps, (values) => (log.push('handler'), values))]),
    [200, { first: 'outer', second: 'second' }]);
  assert.deepEqual(log, ['inner a', 'inner b', 'outer', 'second']
    .flatMap((name) => [`${name} begins`, `${name} ends`]).concat('handler'));
});

test('10 a call may be sync or async, or return a thenable; it gets the values of its own dependencies', async () => {
  const deps = {
    sync: depends(() => 1),
    async: depends({ name: query('name') }, async ({ name }) => `hello ${name}`),
    thenable: depends(() => ({ then: (done: (value: string) => void) => done('settled') })),
    nothing: depends(() => {}),
  };
  const nested = depends(deps, ({ sync, async, thenable, nothing }) => [sync, async, thenable, nothing]);
  assert.deepEqual(await answerOf([get('/', { nested }, ({ nested }) => nested)], '/?name=you'),
    [200, [1, 'hello you', 'settled', null]]);
});

test('10 a dependency that is reached by several paths is resolved, and adds its tasks, once per request', async () => {
  const log: string[] = [];
  const shared = depends({ tasks: backgroundTasks }, async ({ tasks }) => {
    log.push('call');
    tasks.addTask(() => log.push('task'));
    return { an: 'object' };
  });
  const left = depends({ shared }, ({ shared }) => shared);
  const right = depends({ shared }, ({ shared }) => shared);
  await using server = await serve([
    get('/', { left, right, shared, again: shared }, ({ left, ...others }) =>
      Object.values(others).every((value) => value === left)),
  ]);
  for (const round of [1, 2]) {
    assert.deepEqual(await answer(server), [200, true]);
    await server.app.idle();
    assert.deepEqual(log, ['call', 'task', 'call', 'task'].slice(0, 2 * round));
  }
});

test('10 a dependency whose value is undefined is resolved once, too', async () => {
  const log: string[] = [];
  const nothing = depends(() => void log.push('call'));
  const validated = query('q', schema(() => { log.push('schema'); return { value: undefined }; }));
  const inner = depends({ nothing, validated }, () => {});
  await answerOf([get('/', { nothing, validated, inner }, () => {})]);
  assert.deepEqual(log, ['call', 'schema']);
});

test('10 what a schema makes of a body is made once per request, too, and each has its own', async () => {
  const log: string[] = [];
  const of = (name: string): Dependency<string> => body(schema(() => { log.push(name); return { value: name }; }));
  const [first, second] = [of('first'), of('second')];
  const inner = depends({ second, first }, ({ second, first }) => [second, first]);
  assert.deepEqual(await answerOf([post('/', { first, inner, second }, (values) => values)], '/', json({})),
    [200, { first: 'first', inner: ['second', 'first'], second: 'second' }]);
  assert.deepEqual(log, ['first', 'second']);
});

test('10 what is at hand and what is waited for are resolved in the order declared, each once', async () => {
  const log: string[] = [];
  const lazy = (name: string): object => ({ then: (done: (value: string) => void) => { log.push(name); done(name); } });
  const at = (name: string): Dependency<string> => depends(() => { log.push(name); return name; });
  const [sync, query, late] = [at('sync'), depends(() => lazy('thenable') as Promise<string>), at('late')];
  const waits = depends({ sync, query }, async ({ sync, query }) => {
    await new Promise(setImmediate);
    log.push('async');
    return [sync, query];
  });
  const yields = depends({ late, waits }, function* ({ late }) { log.push('generator'); yield Promise.resolve(late); });
  const deps = { sync, waits, yields, query, late, again: waits };
  assert.deepEqual(await answerOf([get('/', deps, ({ waits, yields }) => lazy([...waits, yields].join(' ')))]),
    [200, 'sync thenable late']);
  assert.deepEqual(log, ['sync', 'thenable', 'async', 'late', 'generator', 'sync thenable late']);
});

for (const [kind, fail] of Object.entries<() => unknown>({
  'a call that throws at once': () => { throw new HTTPError(401); },
  'a call that rejects': async () => { throw new HTTPError(401); },
  'a thenable that rejects': () => ({ then: (_: unknown, no: (error: Error) => void) => no(new HTTPError(401)) }),
})) {
  for (const [place, before] of Object.entries<() => unknown>({ synchronous() {}, async asynchronous() {} })) {
    test(`10 after ${kind}, behind ${place} dependencies, nothing is resolved, and what was is unwound`, async () => {
      const log: string[] = [];
      const yields = depends(function* () { try { yield; } finally { log.push('unwound'); } });
      const deps = { yields, before: depends(before), fails: depends(fail), after: depends(() => log.push('after')) };
      const [status] = await answerOf([get('/', deps, () => log.push('handler'))]);
      assert.deepEqual([status, ...log], [401, 'unwound']);
    });
  }
}

test('10 a second depends() of the same function is resolved separately', async () => {
  let calls = 0;
  const count = (): number => (calls += 1);
  const [first, second] = [depends(count), depends(count)];
  assert.deepEqual(await answerOf([get('/', { first, second, again: first }, (values) => values)]),
    [200, { first: 1, second: 2, again: 1 }]);
});

test('10 the handler and all dependencies share one queue, in which the tasks of dependencies come first', async () => {
  const log: string[] = [];
  const adds = (name: string, deps: Dependencies = {}): Dependency<unknown> =>
    depends({ ...deps, tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(() => log.push(name));
      return tasks;
    });
  const deps = { outer: adds('outer', { inner: adds('inner') }), second: adds('second'), tasks: backgroundTasks };
  await using server = await serve([get('/', deps, ({ tasks, outer, second }) => {
    tasks.addTask(() => log.push('handler'));
    return [tasks === outer, tasks === second];
  })]);
  assert.deepEqual(await answer(server), [200, [true, true]]);
  await server.app.idle();
  assert.deepEqual(log, ['inner', 'outer', 'second', 'handler']);
});

test('10 two interleaved requests have separate queues', within, async () => {
  const log: string[] = [];
  const [entered, held, done] = [gate(), gate(), gate()];
  const named = depends({ name: query('name'), tasks: backgroundTasks }, ({ name, tasks }) => {
    tasks.addTask(() => log.push(`${name}: dependency`));
    return name;
  });
  await using server = await serve([get('/', { name: named, tasks: backgroundTasks }, async ({ name, tasks }) => {
    if (name === 'slow') await (entered.open(), held);
    tasks.addTask(() => log.push(`${name}: handler`));
    if (name === 'fast') tasks.addTask(done.open, undefined);
  })]);
  const slow = answer(server, '/?name=slow');
  await entered;
  await answer(server, '/?name=fast');
  await done;
  assert.deepEqual(log.splice(0), ['fast: dependency', 'fast: handler']);
  held.open();
  await slow;
  await server.app.idle();
  assert.deepEqual(log, ['slow: dependency', 'slow: handler']);
});

test('request is the raw request, and path() reaches a dependency of a dependency, decoded', async () => {
  const id = depends({ inner: depends({ id: path('id') }, ({ id }) => id) }, ({ inner }) => inner);
  const deps = { id, request };
  assert.deepEqual(await answerOf([get('/items/:id', deps, ({ id, request: { method, url } }) => [id, method, url])],
    '/items/a%2Fb?q=1'), [200, ['a/b', 'GET', '/items/a%2Fb?q=1']]);
});

/* Generators */

type Leave = (error: unknown) => void;
type Making = (name: string, log: string[], leave?: Leave, deps?: Dependencies) => Dependency<string>;
const rethrow: Leave = (error) => { throw error; };
const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

const syncGenerator: Making = (name, log, leave = rethrow, deps = {}) => depends(deps, function* () {
  log.push(`enter ${name}`);
  try {
    yield name;
  } catch (error) {
    log.push(`${name} caught ${messageOf(error)}`);
    return leave(error);
  }
  log.push(`exit ${name}`);
});

const asyncGenerator: Making = (name, log, leave = rethrow, deps = {}) => depends(deps, async function* () {
  await new Promise(setImmediate);
  log.push(`enter ${name}`);
  try {
    yield name;
  } catch (error) {
    await new Promise(setImmediate);
    log.push(`${name} caught ${messageOf(error)}`);
    return leave(error);
  }
  await new Promise(setImmediate);
  log.push(`exit ${name}`);
});

/** A plain function: the value it returns decides, not its kind. */
const returnsGenerator: Making = (name, log, leave = rethrow, deps = {}) => depends(deps, () => (function* () {
  log.push(`enter ${name}`);
  try {
    yield name;
  } catch (error) {
    log.push(`${name} caught ${messageOf(error)}`);
    return leave(error);
  }
  log.push(`exit ${name}`);
})());

const makings = Object.entries({
  'a generator': syncGenerator, 'an async generator': asyncGenerator,
  'a function that returns a generator': returnsGenerator,
});

for (const [kind, making] of makings) {
  test(`10 ${kind} provides what it yields, and is unwound after the last task, the last first`, within, async () => {
    const log: string[] = [];
    const [started, held] = [gate(), gate()];
    const outer = making('outer', log);
    const inner = making('inner', log, rethrow, { outer });
    await using server = await serve([
      get('/', { inner, outer, tasks: backgroundTasks }, ({ inner, outer, tasks }) => {
        tasks.addTask(async () => { await (started.open(), held); log.push('task'); });
        return [inner, outer];
      }),
      get('/fence', { tasks: backgroundTasks }, ({ tasks }) => tasks.addTask(() => {})),
    ]);
    assert.deepEqual(await answer(server), [200, ['inner', 'outer']]);
    await started;
    for (let round = 0; round < 5; round += 1) await answer(server, '/fence');
    assert.deepEqual(log, ['enter outer', 'enter inner']);
    held.open();
    await server.app.idle();
    assert.deepEqual(log, ['enter outer', 'enter inner', 'task', 'exit inner', 'exit outer']);
  });

  test(`10 an error is thrown in at the yield of ${kind}, the last one first`, async () => {
    const log: string[] = [];
    const outer = making('outer', log);
    const inner = making('inner', log, rethrow, { outer });
    assert.deepEqual(await answerOf([get('/', { inner }, () => { throw new HTTPError(404, 'no such item'); })]),
      [404, { detail: 'no such item' }]);
    assert.deepEqual(log, ['enter outer', 'enter inner', 'inner caught no such item', 'outer caught no such item']);
  });

  test(`10 ${kind} may replace the error, also for those outside it`, async () => {
    const log: string[] = [];
    const outer = making('outer', log);
    const inner = making('inner', log, () => { throw new HTTPError(418, 'short and stout'); }, { outer });
    assert.deepEqual(await answerOf([get('/', { inner }, () => { throw new Error('secret'); })]),
      [418, { detail: 'short and stout' }]);
    assert.deepEqual(log.slice(2), ['inner caught secret', 'outer caught short and stout']);
  });

  test(`10 ${kind} that swallows the error makes it 500, and those outside it are resumed normally`, async (t) => {
    const lines = stderr(t);
    const log: string[] = [];
    const outer = making('outer', log);
    const inner = making('inner', log, () => {}, { outer });
    assert.deepEqual(await answerOf([get('/', { inner }, () => { throw new HTTPError(404, 'lost'); })]), internal);
    assert.deepEqual(log.slice(2), ['inner caught lost', 'exit outer']);
    assert.equal(lines.length, 1);
    assert.match(lines[0] ?? '', /^GET \/ failed: Error: Expected .*to throw the error again/);
    assert.match(lines[0] ?? '', /\[cause\]: HTTPError: lost/);
  });
}

test('10 a generator outside one that swallows may throw an error of its own, which is the answer', async () => {
  const outer = depends(function* () {
    yield;
    throw new HTTPError(418);
  });
  const inner = syncGenerator('inner', [], () => {}, { outer });
  assert.deepEqual(await answerOf([get('/', { inner }, () => { throw new HTTPError(404); })]),
    [418, { detail: "I'm a Teapot" }]);
});

test('10 the error is thrown in before the error response is sent', within, async (t) => {
  const [caught, held] = [gate(), gate()];
  const slow = depends(async function* () {
    try { yield; } finally { await (caught.open(), held); }
  });
  await using server = await serve([get('/', { slow }, () => { throw new HTTPError(404); }), get('/fence', () => {})]);
  using client = await connect(t, server.port);
  client.send('GET / HTTP/1.1', 'host: a', '', '');
  await caught;
  for (let round = 0; round < 5; round += 1) await answer(server, '/fence');
  assert.equal(client.received, '');
  held.open();
  assert.match(await client.until('Not Found"}'), /^HTTP\/1.1 404 /);
});

for (const [kind, making] of makings.slice(0, 2)) {
  test(`10 whatever error the request ends with is thrown in at the yield of ${kind}`, async (t) => {
    const lines = stderr(t);
    const log: string[] = [];
    const session = making('session', log);
    const refuses = (error: unknown): Dependency<never> => depends(() => { throw error; });
    const never = (): never => assert.fail('unreachable');
    await using server = await serve([
      get('/handler', { session }, () => { throw new Error('by the handler'); }),
      get('/value', { session }, () => { throw undefined; }),
      get('/dependency', { session, broken: refuses(new HTTPError(401, 'who?')), late: making('late', log) }, never),
      get('/inner', { session, outer: depends({ broken: refuses(new Error('deep')) }, never) }, never),
      get('/missing', { session, name: query('name') }, never),
      get('/json', { session }, () => 10n),
      post('/large', { session, large: body(anything) }, never),
    ], { bodyLimit: 2 });
    const expected: [target: string, status: number, caught: string, init?: RequestInit][] = [
      ['/handler', 500, 'by the handler'],
      ['/value', 500, 'undefined'],
      ['/dependency', 401, 'who?'],
      ['/inner', 500, 'deep'],
      ['/missing', 422, 'Unprocessable Entity'],
      ['/json', 500, 'Do not know how to serialize a BigInt'],
      ['/large', 413, 'Payload Too Large', json('large')],
    ];
    for (const [target, status, caught, init] of expected) {
      assert.equal((await answer(server, target, init))[0], status, target);
      assert.deepEqual(log.splice(0), ['enter session', `session caught ${caught}`], target);
    }
    assert.deepEqual(lines.map((line) => line.split(' failed:')[0]),
      ['/handler', '/value', '/inner', '/json'].map((target) => `GET ${target}`));
  });
}

test('10 a client that leaves in the middle of its body has an error thrown in, too', within, async (t) => {
  const log: string[] = [];
  const deps = { session: syncGenerator('session', log), body: body(anything) };
  await using server = await serve([post('/', deps, () => log.push('handler'))]);
  using client = await connect(t, server.port);
  client.send('POST / HTTP/1.1', 'host: a', 'expect: 100-continue', 'content-length: 9', '', '');
  await client.until('100 Continue'); // so the request has arrived, and waits for its body
  client.socket.resetAndDestroy();
  await server.app.idle();
  assert.deepEqual(log, ['enter session', 'session caught There was an error parsing the body']);
});

test('10 an async function that resolves to a generator object gives that as its value', async () => {
  const pages = depends(async () => (function* () { yield 1; yield 2; })());
  assert.deepEqual(await answerOf([get('/', { pages }, ({ pages }) => [...pages])]), [200, [1, 2]]);
});

test('10 an iterator that is no generator object is a value', async () => {
  const iterator = depends(() => ['a', 'b'].values());
  assert.deepEqual(await answerOf([get('/', { iterator }, ({ iterator }) => [...iterator])]), [200, ['a', 'b']]);
});

test('10 a promise that a generator yields is awaited, and its rejection is thrown in', async () => {
  const log: string[] = [];
  const later = depends(function* () { yield Promise.resolve('settled'); });
  const fails = depends(function* () {
    try { yield Promise.reject(new HTTPError(503, 'down')); } catch (error) { log.push(messageOf(error)); throw error; }
  });
  await using server = await serve([get('/', { later }, ({ later }) => later), get('/fails', { fails }, () => {})]);
  assert.deepEqual(await answer(server), [200, 'settled']);
  assert.deepEqual(await answer(server, '/fails'), [503, { detail: 'down' }]);
  assert.deepEqual(log, ['down']);
});

test('10 a generator that is reached by two paths is unwound once', async () => {
  const log: string[] = [];
  const session = syncGenerator('session', log);
  const inner = depends({ session }, ({ session }) => session);
  await using server = await serve([get('/', { session, inner }, () => {})]);
  await answer(server);
  await server.app.idle();
  assert.deepEqual(log, ['enter session', 'exit session']);
});

for (const [kind, never] of Object.entries({
  'a generator': depends(function* never(): Generator<void> {}),
  'an async generator': depends(async function* never(): AsyncGenerator<void> {}),
})) {
  test(`10 ${kind} that never yields is 500, and stderr says what was expected`, async (t) => {
    const lines = stderr(t);
    const log: string[] = [];
    const deps = { outer: syncGenerator('outer', log), never };
    assert.deepEqual(await answerOf([get('/', deps, () => log.push('handler'))]), internal);
    assert.match(lines.join('\n'), /^GET \/ failed: Error: Expected never to yield one value, but it returned\./);
    assert.equal(lines.length, 1);
    assert.equal(log[1]?.startsWith('outer caught Expected never to yield'), true);
  });
}

for (const [kind, twice] of Object.entries<(log: string[]) => Dependency<unknown>>({
  'a generator': (log) => depends(function* twice() {
    try { yield 1; } catch {} // so it goes on after an error, too
    try { yield 2; } finally { log.push('closed'); }
  }),
  'an async generator': (log) => depends(async function* twice() {
    try { yield 1; } catch {}
    try { yield 2; } finally { log.push('closed'); }
  }),
})) {
  test(`10 ${kind} that yields twice is reported like a failed task, and closed`, async (t) => {
    const lines = stderr(t);
    const log: string[] = [];
    await using server = await serve([
      get('/', { outer: syncGenerator('outer', log), twice: twice(log) }, ({ twice }) => twice),
    ]);
    assert.deepEqual(await answer(server), [200, 1]);
    await server.app.idle();
    assert.deepEqual(log, ['enter outer', 'closed', 'exit outer']);
    assert.equal(lines.length, 1);
    assert.match(lines[0] ?? '', /clean-up of twice\): Error: Expected .* one value, but it yielded a second/);
  });

  test(`10 ${kind} that yields again instead of throwing the error is 500, and closed`, async (t) => {
    const lines = stderr(t);
    const log: string[] = [];
    assert.deepEqual(await answerOf([
      get('/', { outer: syncGenerator('outer', log), twice: twice(log) }, () => { throw new HTTPError(404); }),
    ]), internal);
    assert.equal(log[1], 'closed');
    assert.match(log[2] ?? '', /^outer caught Expected .* one value, but it yielded a second/);
    assert.equal(lines.length, 1);
    assert.match(lines[0] ?? '', /^GET \/ failed: Error: Expected .* one value, but it yielded a second/);
  });
}

const failing = depends(function* failing() {
  yield;
  throw new Error('not closed');
});

for (const afterFailure of ['continue', 'stop'] as const) {
  test(`10 an error while unwinding is reported like a failed task, and the other clean-ups run (${afterFailure})`,
    async (t) => {
      const lines = stderr(t);
      const log: string[] = [];
      const deps = { outer: syncGenerator('outer', log), failing, inner: asyncGenerator('inner', log) };
      await using server = await serve([get('/', deps, () => 'fine')], { afterFailure });
      assert.deepEqual(await answer(server), [200, 'fine']);
      await server.app.idle();
      assert.deepEqual(log.slice(2), ['exit inner', 'exit outer']);
      assert.equal(lines.length, 1);
      assert.match(lines[0] ?? '', /clean-up of failing\): Error: not closed\n +at /);
    });
}

test('10 onTaskError gets an error while unwinding, in place of stderr', async (t) => {
  const lines = stderr(t);
  const seen: unknown[] = [];
  await using server = await serve([get('/', { failing, request }, ({ request }) => void seen.push(request))], {
    onTaskError: (error, { name, request }) => seen.push(messageOf(error), name, request),
  });
  await answer(server);
  await server.app.idle();
  const [expected, ...rest] = seen;
  assert.deepEqual(rest.slice(0, 2), ['not closed', 'clean-up of failing']);
  assert.equal(rest[2], expected);
  assert.deepEqual(lines, []);
});

for (const afterFailure of ['continue', 'stop'] as const) {
  test(`10 the error of a task is not thrown in, and the clean-ups run after it (${afterFailure})`, async (t) => {
    const lines = stderr(t);
    const log: string[] = [];
    await using server = await serve([
      get('/', { session: syncGenerator('session', log), tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(() => { throw new Error('in a task'); });
        tasks.addTask(() => log.push('second'));
      }),
    ], { afterFailure });
    await answer(server);
    await server.app.idle();
    assert.deepEqual(log, ['enter session', ...afterFailure === 'stop' ? [] : ['second'], 'exit session']);
    assert.match(lines[0] ?? '', /in a task/);
  });
}

test('10 a task that is added while unwinding after success is refused, which is reported', async (t) => {
  const lines = stderr(t);
  const log: string[] = [];
  const late = depends({ tasks: backgroundTasks }, function* late({ tasks }) {
    yield;
    tasks.addTask(function farewell() { log.push('ran'); });
  });
  const deps = { late, tasks: backgroundTasks };
  await using server = await serve([get('/', deps, ({ tasks }) => tasks.addTask(() => {}))]);
  assert.deepEqual(await answer(server), [200, null]);
  await server.app.idle();
  assert.deepEqual(log, []);
  assert.equal(lines.length, 1);
  assert.match(lines[0] ?? '', /clean-up of late\): Error: Too late to add farewell/);
});

test('4 after a throw the queue is discarded, once it is unwound: told on background-tasks:dropped, not on stderr',
  async (t) => {
    const lines = stderr(t);
    const log: string[] = [];
    const dropped: unknown[] = [];
    const listen = (message: unknown): void => {
      const { name, index, request, reason } = message as TaskInfo & { reason: string };
      dropped.push([name, index, request?.url, reason]);
    };
    subscribe('background-tasks:dropped', listen);
    t.after(() => unsubscribe('background-tasks:dropped', listen));
    const task = (name: string): (() => void) => ({ [name]: () => void log.push(name) })[name] ?? assert.fail();
    const expected = (url: string, ...names: string[]): unknown[] =>
      names.map((name, index) => [name, index, url, 'the handler or a dependency threw']);
    const session = depends({ tasks: backgroundTasks }, async function* ({ tasks }) {
      tasks.addTask(task('dependency'));
      try { yield; } finally { tasks.addTask(task('clean-up')); log.push(`${dropped.length} dropped`); }
    });
    await using server = await serve([get('/', { session, tasks: backgroundTasks, q: query('q') }, ({ tasks }) => {
      tasks.addTask(task('handler'));
      throw new HTTPError(404);
    })]);
    assert.deepEqual(await answer(server, '/?q='), [404, { detail: 'Not Found' }]);
    assert.deepEqual(dropped.splice(0), expected('/?q=', 'dependency', 'handler', 'clean-up'));
    assert.equal((await answer(server))[0], 422);
    assert.deepEqual(dropped.splice(0), expected('/', 'dependency', 'clean-up'));
    await server.app.idle();
    assert.deepEqual(log, ['0 dropped', '0 dropped']);
    assert.deepEqual(lines, []);
  });

/* Parameters */

const asQuery = (text: string): [string, RequestInit?] => [`/?p=${text}`];
const asHeader = (text: string): [string, RequestInit?] => ['/', { headers: { p: text } }];

for (const [source, parameter, withText] of [['query', query, asQuery], ['header', header, asHeader]] as const) {
  test(`${source}() is required, or has a fallback, or null, or a schema, sync or async`, async () => {
    const deps = {
      required: parameter('p'), fallback: parameter('p', 'fallback'), optional: parameter('p', null),
      schema: parameter('p', number), asyncSchema: parameter('p', asyncNumber),
    };
    await using server = await serve([get('/', deps, (values) => values)]);
    assert.deepEqual(await answer(server, ...withText('7')),
      [200, { required: '7', fallback: '7', optional: '7', schema: 7, asyncSchema: 7 }]);
    const issue = (text: string | null): object =>
      ({ type: 'value_error', loc: [source, 'p'], msg: `No number: ${text ?? undefined}`, input: text });
    assert.deepEqual(await answer(server), rejection(missing(source, 'p'), issue(null)));
    assert.deepEqual(await answer(server, ...withText('x')), rejection(issue('x')));
  });

  test(`a missing ${source} parameter is its fallback, or null, or reaches its schema as undefined`, async () => {
    const deps = {
      fallback: parameter('p', 'fallback'), empty: parameter('p', ''), optional: parameter('p', null),
      schema: parameter('p', schema((value) => ({ value: [typeof value, value === undefined] }))),
    };
    assert.deepEqual(await answerOf([get('/', deps, (values) => values)]),
      [200, { fallback: 'fallback', empty: '', optional: null, schema: ['undefined', true] }]);
  });

  test(`a ${source} parameter that is empty is an empty string, not a missing one`, async () => {
    const deps = {
      required: parameter('p'), fallback: parameter('p', 'fallback'), optional: parameter('p', null),
      schema: parameter('p', anything),
    };
    assert.deepEqual(await answerOf([get('/', deps, (values) => values)], ...withText('')),
      [200, { required: '', fallback: '', optional: '', schema: '' }]);
  });
}

test("the path of a schema's issue follows the source, each step a key or a { key }", async () => {
  const issues = [
    { message: 'keys', path: ['rows', 1, 'name'] },
    { message: 'objects', path: [{ key: 'rows' }, { key: 0 }] },
    { message: 'a symbol', path: [Symbol('tag')] },
    { message: 'nothing there', path: ['rows', 7, 'name'] },
    { message: 'no path' },
    { message: 'an undefined path', path: undefined },
  ];
  const input = { rows: ['first', { name: 'second' }] };
  const failing = [post('/', { body: body(schema(() => ({ issues }))) }, () => assert.fail('unreachable'))];
  const error = (msg: string, input: unknown, ...loc: unknown[]): object =>
    ({ type: 'value_error', loc: ['body', ...loc], msg, input });
  assert.deepEqual(await answerOf(failing, '/', json(input)), rejection(
    error('keys', 'second', 'rows', 1, 'name'),
    error('objects', 'first', 'rows', 0),
    error('a symbol', null, 'Symbol(tag)'),
    error('nothing there', null, 'rows', 7, 'name'),
    error('no path', input),
    error('an undefined path', input),
  ));
  const ofQuery = query('q', schema(() => ({ issues: issues.slice(4, 5) })));
  assert.deepEqual(await answerOf([get('/', { ofQuery }, () => assert.fail('unreachable'))], '/?q=1'),
    rejection({ ...error('no path', '1'), loc: ['query', 'q'] }));
});

test('the input of an issue is what the body holds itself, nothing that it inherits', async () => {
  const issues = ['constructor', '__proto__', 'toString'].map((key) => ({ message: 'required', path: [key] }));
  const expected = issues.map(({ message, path }) =>
    ({ type: 'value_error', loc: ['body', ...path], msg: message, input: null }));
  assert.deepEqual(await answerOf([post('/', { body: body(schema(() => ({ issues }))) }, () => {})], '/', json({})),
    rejection(...expected));
});

test('a schema may be a function, and what it throws is 500', async (t) => {
  const lines = stderr(t);
  const callable = Object.assign(() => {}, number);
  const broken = schema(() => { throw new Error('broken schema'); });
  await using server = await serve([
    get('/', { n: query('n', callable) }, ({ n }) => n), get('/broken', { n: query('n', broken) }, () => {}),
  ]);
  assert.deepEqual(await answer(server, '/?n=12'), [200, 12]);
  assert.deepEqual(await answer(server, '/broken'), internal);
  assert.equal(lines.length, 1);
  assert.match(lines[0] ?? '', /^GET \/broken failed: Error: broken schema/);
});

test('a query parameter is decoded, and of duplicates the last one counts', async () => {
  await using server = await serve([get('/', { q: query('q'), 'a b': query('a b', null) }, (values) => values)]);
  assert.deepEqual(await answer(server, '/?q=1&q=2&q=3'), [200, { q: '3', 'a b': null }]);
  assert.deepEqual(await answer(server, '/?q=%EC%95%88+1%2B1?%ff&a%20b=c=d'),
    [200, { q: '안 1+1?\ufffd', 'a b': 'c=d' }]);
});

test('a header is found in any case, and of duplicates the last one counts', within, async (t) => {
  const deps = { token: header('X-Token'), agent: header('user-agent'), length: header('Content-Length', null) };
  await using server = await serve([get('/', deps, (values) => values)]);
  using client = await connect(t, server.port);
  client.send('GET / HTTP/1.1', 'host: a', 'x-token: 1', 'X-TOKEN: 2', 'User-Agent: a', 'user-agent: b', '', '');
  assert.match(await client.until('}'), /\{"token":"2","agent":"b","length":null\}/);
});

test('a query is read as `URLSearchParams` reads it, one parameter or many, whatever it is made of', async () => {
  await using server = await serve([get('/', { a: query('a', null) }, ({ a }) => a)]);
  const queries = ['', 'a', 'a=', 'a=1', 'a=b=c', 'a=%ED%95%9C', 'a=%ED', 'a=%zz', 'a=1+2', 'a=%2B', '%61=1', 'a=?b=1',
    '?a=1', 'b=1&?a=2', 'b=1&a=2', 'a=1&a=2', 'a=1&', 'a&b', '=a', 'b?a=1', 'a=%00', `a=${'?'.repeat(4000)}`,
    '?'.repeat(8000)];
  for (const each of queries) {
    const expected = new URLSearchParams(`?${each}`).getAll('a').at(-1) ?? null;
    assert.deepEqual(await answer(server, `/?${each}`), [200, expected], each);
  }
});

test('`__proto__` and `constructor` are plain data in a query and in headers, there or not', within, async (t) => {
  const deps = (parameter: typeof query): Dependencies => ({
    proto: parameter('__proto__', null), ctor: parameter('constructor', null), other: parameter('toString', null),
  });
  await using server = await serve([get('/query', deps(query), (values) => values),
    get('/header', deps(header), (values) => values)]);
  const [absent, present] = [{ proto: null, ctor: null, other: null }, { proto: 'p', ctor: 'c', other: null }];
  assert.deepEqual(await answer(server, '/query'), [200, absent]);
  assert.deepEqual(await answer(server, '/header'), [200, absent]);
  assert.deepEqual(await answer(server, '/query?__proto__=p&constructor=c'), [200, present]);
  using client = await connect(t, server.port);
  client.send('GET /header HTTP/1.1', 'host: a', '__proto__: p', 'constructor: c', '', '');
  assert.ok((await client.until('}')).endsWith(JSON.stringify(present)));
});

/* The body */

test('a body is what its schema, sync or async, makes of the JSON; several share one read', async () => {
  const asyncKeys = schema(async (value) => {
    await new Promise(setImmediate);
    return { value: Object.keys(value as object) };
  });
  const inner = depends({ order: body(strings('item')) }, ({ order: { item } }) => item);
  const deps = { first: body(anything), second: body(anything), keys: body(asyncKeys), inner };
  await using server = await serve([
    post('/', deps, ({ first, second, keys, inner }) => [first === second, first, keys, inner])]);
  assert.deepEqual(await answer(server, '/', json({ item: 'tea', n: [1] })),
    [200, [true, { item: 'tea', n: [1] }, ['item', 'n'], 'tea']]);
});

test('any JSON value but null is a body, whatever the schema takes', async () => {
  await using server = await serve([post('/', { value: body(anything) }, ({ value }) => [value])]);
  for (const value of [0, false, '', [], {}, 'text', [null], { a: { b: null } }]) {
    assert.deepEqual(await answer(server, '/', json(value)), [200, [value]]);
  }
  assert.deepEqual(await answer(server, '/', sent(' {"안":"\\u0000é"}\r\n', 'application/json')),
    [200, [{ 안: '\0é' }]]);
});

test('strings() keeps its keys and leaves the others out', async () => {
  await using server = await serve([post('/', { order: body(strings('item', 'email')) }, ({ order }) => order)]);
  assert.deepEqual(await answer(server, '/', json({ email: '', extra: 1, item: 'tea' })),
    [200, { item: 'tea', email: '' }]);
});

test('`__proto__` and `constructor` are plain data in a body', async () => {
  const hostile = '{"__proto__":"p","constructor":"c"}';
  const echo = (value: StandardSchema<unknown>): Route[] => [post('/', { value: body(value) }, ({ value }) => [
    Object.getPrototypeOf(value) === Object.prototype, Object.entries(value as object)])];
  const entries = [['__proto__', 'p'], ['constructor', 'c']];
  for (const validator of [anything, strings('__proto__', 'constructor')]) {
    assert.deepEqual(await answerOf(echo(validator), '/', sent(hostile, 'application/json')), [200, [true, entries]]);
  }
  assert.deepEqual(await answerOf(echo(strings('__proto__', 'constructor')), '/', json({})), rejection(
    { ...missing('body', '__proto__'), input: {} }, { ...missing('body', 'constructor'), input: {} }));
  assert.deepEqual(await answerOf(echo(strings('item')), '/', sent('{"__proto__":{"item":"x"}}', 'application/json')),
    rejection({ ...missing('body', 'item'), input: JSON.parse('{"__proto__":{"item":"x"}}') }));
});

const orders = [post('/', { order: body(strings('item', 'email')) }, ({ order }) => order)];

for (const [kind, init, ...errors] of [
  ['an object that lacks a key', json({ item: 'tea' }), { ...missing('body', 'email'), input: { item: 'tea' } }],
  ['a member of a wrong type, and one that lacks', json({ item: 1 }),
    { type: 'string_type', loc: ['body', 'item'], msg: 'Input should be a valid string', input: 1 },
    { type: 'missing', loc: ['body', 'email'], msg: 'Field required', input: { item: 1 } }],
  ['a member that is null', json({ item: null, email: '' }),
    { type: 'string_type', loc: ['body', 'item'], msg: 'Input should be a valid string', input: null }],
  ['an array', json([]), { ...NO_MODEL, input: [] }],
  ['a string', json('tea'), { ...NO_MODEL, input: 'tea' }],
  ['false', json(false), { ...NO_MODEL, input: false }],
  ['an empty body', sent('', 'application/json'), missing('body')],
  ['an empty body without a content type', { method: 'POST' }, missing('body')],
  ['a body of text/plain', sent('{"item":"tea"}', 'text/plain'), { ...NO_MODEL, input: '{"item":"tea"}' }],
  ['a form', sent('item=tea', 'application/x-www-form-urlencoded'), { ...NO_MODEL, input: 'item=tea' }],
  ['a body without a content type', sent('{}'), { ...NO_MODEL, input: '{}' }],
] as [string, RequestInit, ...object[]][]) {
  test(`${kind} is 422, exactly as in FastAPI`, async () => {
    assert.deepEqual(await answerOf(orders, '/', init), rejection(...errors));
  });
}

test('`null` is a missing body', async () => {
  assert.deepEqual(await answerOf(orders, '/', json(null)), rejection(missing('body')));
});

test('a JSON content type may have parameters, a suffix `+json`, and any case', async () => {
  await using server = await serve([post('/', { value: body(anything) }, ({ value }) => value)]);
  for (const type of ['application/json', 'application/json; charset=utf-8', 'application/json ;a=b',
    'Application/JSON', 'application/problem+json', 'application/vnd.api+json;v=1']) {
    assert.deepEqual(await answer(server, '/', sent('{"a":1}', type)), [200, { a: 1 }], type);
  }
  for (const type of ['application/jsonl', 'application/json-seq', 'text/json', 'application/xml;a=application/json',
    'application/x; a=+json', 'image/svg+xml', 'json']) {
    assert.deepEqual(await answer(server, '/', sent('{"a":1}', type)),
      rejection({ ...NO_MODEL, input: '{"a":1}' }), type);
  }
});

test('a body that is no JSON is json_invalid, alone among the input errors', async () => {
  const deps = { before: query('before'), order: body(anything), again: body(strings('item')), after: header('after') };
  for (const text of ['{', '{"item":}', '\0', "{'item':1}", '1 2', 'NaN']) {
    const [status, { detail }] = await answerOf([post('/', deps, () => {})], '/', sent(text, 'application/json')) as
      [number, { detail: { ctx: { error: unknown } }[] }];
    const error = detail[0]?.ctx.error;
    assert.ok(typeof error === 'string' && error !== '');
    assert.deepEqual([status, detail], [422,
      [{ type: 'json_invalid', loc: ['body'], msg: 'JSON decode error', input: {}, ctx: { error } }]]);
  }
});

test('a body that is not UTF-8 is 400', async () => {
  await using server = await serve([post('/', { q: query('q'), value: body(anything) }, () => {})]);
  for (const bytes of [[0x22, 0xff, 0x22], [0x22, 0xed, 0xa0, 0x80, 0x22], [0x22, 0xc3]]) {
    assert.deepEqual(await answer(server, '/', sent(Uint8Array.from(bytes), 'application/json')),
      [400, { detail: 'There was an error parsing the body' }]);
  }
});

const deep = (levels: number): string => '['.repeat(levels) + ']'.repeat(levels);

test('JSON that is nested 500,000 deep is 422, wherever it stands', async () => {
  await using server = await serve(orders);
  const nested = deep(500_000);
  for (const [text, expected] of [
    [nested, NO_MODEL],
    [`{"item":${nested},"email":""}`,
      { type: 'string_type', loc: ['body', 'item'], msg: 'Input should be a valid string' }],
    [`{"item":"","other":${nested}}`, { type: 'missing', loc: ['body', 'email'], msg: 'Field required' }],
  ] as const) {
    assert.deepEqual(await answer(server, '/', sent(text, 'application/json')),
      rejection({ ...expected, input: null }));
  }
  const [status, unclosed] = await answer(server, '/', sent('['.repeat(500_000), 'application/json'));
  assert.equal(status, 422);
  assert.match(JSON.stringify(unclosed), /"json_invalid"/);
});

test('the input of an error has 100 levels at most: a deeper one is null, alone among the errors', async () => {
  await using server = await serve(orders);
  for (const levels of [1, 100, 101, 5_000]) {
    const input: unknown = levels > 100 ? null : JSON.parse(deep(levels));
    assert.deepEqual(await answer(server, '/', sent(deep(levels), 'application/json')),
      rejection({ ...NO_MODEL, input }));
    const members = sent(`{"item":${deep(levels)},"email":1}`, 'application/json');
    const [status, { detail }] = await answer(server, '/', members) as [number, { detail: { input: unknown }[] }];
    assert.deepEqual([status, ...detail.map((error) => error.input)], [422, input, 1]);
  }
});

for (const [kind, ...lines] of [
  ['Content-Length says so: before it is read', 'content-length: 11', '', ''],
  ['it is, while it is read', 'transfer-encoding: chunked', '', '6', '"12345', '5', '6789"', ''],
] as [string, ...string[]][]) {
  test(`a body over bodyLimit is 413 where ${kind}; the connection is closed (fact 7.11)`, within, async (t) => {
    const log: string[] = [];
    const session = depends({ request }, function* ({ request }) {
      try { yield; } finally { log.push(`${request.method} is still connected: ${!request.socket.destroyed}`); }
    });
    const deps = { session, q: query('q'), value: body(anything), late: depends(() => log.push('late')) };
    await using server = await serve([post('/', deps, () => log.push('handler'))], { bodyLimit: 10 });
    using client = await connect(t, server.port);
    client.send('POST / HTTP/1.1', 'host: a', 'content-type: application/json', ...lines); // and no more of it
    const received = await client.closed;
    assert.match(received, /^HTTP\/1.1 413 [^]*\{"detail":"[^"]+ Too Large"\}$/);
    assert.match(received, /\r\nconnection: close\r\n/i);
    assert.deepEqual(log, ['POST is still connected: true']);
  });
}

test('a body of exactly bodyLimit bytes is accepted, in chunks too, and its connection is kept', within, async (t) => {
  await using server = await serve([post('/', { value: body(anything) }, ({ value }) => value)], { bodyLimit: 10 });
  using client = await connect(t, server.port);
  const head = ['POST / HTTP/1.1', 'host: a', 'content-type: application/json'];
  client.send(...head, 'content-length: 10', '', '"12345678"');
  await client.until('"12345678"');
  client.send(...head, 'transfer-encoding: chunked', '', '6', '"12345', '4', '678"', '0', '', '');
  assert.doesNotMatch(await client.until('"12345678"', 2), /connection: close/i);
});

test('bodyLimit is 1 MiB unless told otherwise', within, async (t) => {
  await using server = await serve([post('/', { value: body(anything) }, ({ value }) => String(value).length)]);
  assert.deepEqual(await answer(server, '/', json('a'.repeat(2 ** 20 - 2))), [200, 2 ** 20 - 2]);
  using client = await connect(t, server.port);
  client.send('POST / HTTP/1.1', 'host: a', 'content-type: application/json', `content-length: ${2 ** 20 + 1}`, '', '');
  assert.match(await client.closed, /^HTTP\/1.1 413 /);
});

/* All input errors at once */

test('10 all input errors come in one 422, each once, in the order declared', async () => {
  const inner = depends({ twice: query('a'), token: header('x-token'), n: query('n', asyncNumber) }, () => {});
  const [order, again] = [body(strings('item', 'email')), body(strings('email'))];
  const deps = { inner, order, again, a: query('a'), b: query('b') };
  const routes = [post('/', deps, () => assert.fail('unreachable'))];
  assert.deepEqual(await answerOf(routes, '/?n=x', json({ item: 1 })), rejection(
    missing('query', 'a'),
    missing('header', 'x-token'),
    { type: 'value_error', loc: ['query', 'n'], msg: 'No number: x', input: 'x' },
    { type: 'string_type', loc: ['body', 'item'], msg: 'Input should be a valid string', input: 1 },
    { ...missing('body', 'email'), input: { item: 1 } },
    missing('query', 'b'),
  ));
});

test('10 a call whose own inputs failed is not called, nor one that depends on it; the others are', async () => {
  const log: string[] = [];
  const calls = (name: string, deps: Dependencies): Dependency<unknown> => depends(deps, () => log.push(name));
  const invalid = calls('invalid', { q: query('q') });
  const generator = syncGenerator('generator', log, rethrow, { q: query('q') });
  const deps = { outer: calls('outer', { invalid }), generator, other: calls('other', { p: query('p', null) }) };
  assert.deepEqual(await answerOf([get('/', deps, () => log.push('handler'))]), rejection(missing('query', 'q')));
  assert.deepEqual(log, ['other']);
});

test('10 an error that is thrown ends resolution and wins: a 401 beats a 422', async () => {
  const log: string[] = [];
  const guard = depends(() => { throw new HTTPError(401); });
  const deps = { q: query('q'), guard, late: depends(() => log.push('late')), p: query('p') };
  assert.deepEqual(await answerOf([get('/', deps, () => log.push('handler'))]), [401, { detail: 'Unauthorized' }]);
  assert.deepEqual(log, []);
});

/* HTTPError */

const throwing = (...made: ConstructorParameters<typeof HTTPError>): Route[] =>
  [get('/', () => { throw new HTTPError(...made); })];

test('the detail of an HTTPError is any JSON value, and the phrase of the status by default', async () => {
  assert.deepEqual(await answerOf(throwing(409)), [409, { detail: 'Conflict' }]);
  assert.deepEqual(await answerOf(throwing(500)), internal);
  for (const detail of ['', 'no such item', 0, false, [], ['a', { b: null }], { code: 7 }]) {
    assert.deepEqual(await answerOf(throwing(200, detail)), [200, { detail }]);
    assert.deepEqual(await answerOf(throwing(599, detail)), [599, { detail }]);
  }
});

test('an HTTPError is an Error that tells its status, detail and headers', () => {
  const error = new HTTPError(404, { code: 7 }, { headers: { 'x-reason': 'gone' } });
  assert.ok(error instanceof Error);
  const { name, message, status, detail, headers } = error;
  assert.deepEqual({ name, message, status, detail, headers }, { name: 'HTTPError', message: 'Not Found', status: 404,
    detail: { code: 7 }, headers: { 'x-reason': 'gone' } });
  assert.equal(new HTTPError(404, 'no such item').message, 'no such item');
  assert.deepEqual(new HTTPError(404).headers, {});
});

test('the headers of an HTTPError are sent', async () => {
  await using server = await serve(throwing(503, 'busy', { headers: { 'Retry-After': '1', 'x-reason': 'queue' } }));
  const { status, headers } = await fetch(server.url);
  assert.deepEqual([status, headers.get('retry-after'), headers.get('x-reason'), headers.get('content-type')],
    [503, '1', 'queue', 'application/json']);
});

test('a status out of 200 to 599 is a RangeError that names it', () => {
  for (const status of [NaN, -1, 0, 101, 199, 600, 999, Infinity]) {
    const message = new RegExp(`\\b200 to 599, got ${status}\\.`);
    assert.throws(() => new HTTPError(status), { name: 'RangeError', message });
  }
});

for (const status of [204, 205, 304]) {
  test(`an HTTPError of ${status} has its headers and no body, and the connection stays open`, within, async (t) => {
    const routes = throwing(status, undefined, { headers: { etag: '"1"' } });
    await using server = await serve([...routes, get('/next', () => 'next')]);
    using client = await connect(t, server.port);
    client.send('GET / HTTP/1.1', 'host: a', '', 'GET /next HTTP/1.1', 'host: a', '', '');
    const [first = '', rest = ''] = (await client.until('"next"')).split(/(?<=\r\n\r\n)/);
    assert.match(first, new RegExp(`^HTTP/1.1 ${status} `));
    assert.match(first, /\r\netag: "1"\r\n/i);
    assert.doesNotMatch(first, /content-type/i);
    assert.match(rest, /^HTTP\/1.1 200 OK\r\n/);
  });
}

for (const [kind, detail, headers] of [
  ['a header with a line break', 'x', { 'x-reason': 'a\r\nset-cookie: b' }],
  ['a header name with a space', 'x', { 'x reason': 'a' }],
  ['a detail that is a BigInt', 10n, { 'x-reason': 'a' }],
] as [string, unknown, Record<string, string>][]) {
  test(`an HTTPError with ${kind} is 500 with nothing of it, and is reported once`, async (t) => {
    const lines = stderr(t);
    await using server = await serve(throwing(404, detail, { headers }));
    const response = await fetch(server.url);
    assert.deepEqual([response.status, await response.json()], internal);
    assert.deepEqual([response.headers.get('x-reason'), response.headers.get('set-cookie')], [null, null]);
    assert.equal(lines.length, 1);
    assert.match(lines[0] ?? '', /^GET \/ failed: TypeError/);
  });
}

/* Overrides */

const named = (name: string): Dependency<string> => depends(() => name);
const around = (name: string, inside: Dependency<string>): Dependency<string> =>
  depends({ inside }, ({ inside }) => `${name}(${inside})`);

test('an override replaces a dependency wherever it is declared, in its app alone; the last one counts', async () => {
  let calls = 0;
  const database = depends({ url: query('database') }, ({ url }) => { calls += 1; return url; });
  const deps = { database, inner: around('inner', database) };
  await using server = await serve([get('/', deps, (values) => values)]);
  await using other = await serve([get('/', deps, (values) => values)]);
  server.app.override(database, named('fake'));
  assert.deepEqual(await answer(server), [200, { database: 'fake', inner: 'inner(fake)' }]);
  assert.equal(calls, 0);
  assert.deepEqual(await answer(other, '/?database=real'), [200, { database: 'real', inner: 'inner(real)' }]);
  server.app.override(database, named('newer'));
  assert.deepEqual(await answer(server), [200, { database: 'newer', inner: 'inner(newer)' }]);
});

test('undone, an override replaces nothing any more, and leaves the others alone', async () => {
  const [database, mailer] = [named('database'), named('mailer')];
  const deps = { database, mailer, inner: around('inner', database) };
  await using server = await serve([get('/', deps, (values) => values)]);
  const undo = server.app.override(database, named('fake'));
  server.app.override(mailer, named('fake'));
  assert.equal(undo(), undefined);
  assert.deepEqual(await answer(server), [200, { database: 'database', mailer: 'fake', inner: 'inner(database)' }]);
});

test('inside its replacement a dependency means the original, also further in: it can be wrapped', async () => {
  const user = named('user');
  const deps = { user, inner: around('inner', user) };
  await using server = await serve([get('/', deps, (values) => values)]);
  server.app.override(user, around('outer', around('wrapper', user)));
  assert.deepEqual(await answer(server),
    [200, { user: 'outer(wrapper(user))', inner: 'inner(outer(wrapper(user)))' }]);
});

for (const [when, pause] of Object.entries({ 'at once': () => {}, 'later': () => new Promise(setImmediate) })) {
  test(`10 of what depends on an overridden dependency there is one inside its replacement, one outside, ${when}`,
    async () => {
      const log: string[] = [];
      const slow = depends(pause);
      const a = named('a');
      const x = depends({ slow, a }, async function* ({ a }) {
        log.push(`enter x(${a})`);
        yield `x(${a})`;
        log.push(`exit x(${a})`);
      });
      const direct = around('R', x);
      for (const deps of [{ a, x, direct }, { direct, x, a }, { again: around('again', x), x, a, direct }]) {
        await using server = await serve([get('/', deps, ({ a, x, direct }) => [a, x, direct])]);
        server.app.override(a, direct);
        assert.deepEqual(await answer(server), [200, ['R(x(a))', 'x(R(x(a)))', 'R(x(a))']]);
        await server.app.idle();
        assert.deepEqual(log.splice(0), ['enter x(a)', 'enter x(R(x(a)))', 'exit x(R(x(a)))', 'exit x(a)']);
      }
    });
}

test('10 a dependency that reaches nothing replaced is resolved once, inside a replacement and outside', async () => {
  const log: string[] = [];
  const counted = (name: string, deps: Dependencies): Dependency<string> => depends(deps, () => (log.push(name), name));
  const [user, mailer] = [named('user'), named('mailer')];
  const plain = counted('plain', { q: query('q', schema(() => { log.push('schema'); return { value: '' }; })) });
  const session = counted('session', { user, plain }); // under another replacement it has the same inputs: it is one
  await using server = await serve([get('/', { plain, user, session, mailer }, (values) => values)]);
  server.app.override(user, counted('fake user', { plain, user }));
  server.app.override(mailer, counted('fake mailer', { mailer, session, plain }));
  assert.equal((await answer(server))[0], 200);
  assert.deepEqual(log, ['schema', 'plain', 'fake user', 'session', 'fake mailer']);
});

test('10 a dependency with 2 ** 30 paths to an overridden one is resolved once, and no slower', within, async () => {
  let calls = 0;
  const id = path('id');
  let deps: Record<string, Dependency> = { id };
  for (let level = 0; level < 30; level += 1) {
    deps = { left: depends(deps, () => void (calls += 1)), right: depends(deps, () => void (calls += 1)) };
  }
  await using server = await serve([get('/:id', deps, () => 'resolved')]);
  server.app.override(id, around('fake', id));
  assert.deepEqual(await answer(server, '/1'), [200, 'resolved']);
  assert.equal(calls, 60);
});

test('10 a replacement that comes after another one wraps the original, not the one before', async () => {
  const name = depends(() => 'original');
  await using server = await serve([get('/', { name }, ({ name }) => name)]);
  server.app.override(name, depends(() => 'first'));
  server.app.override(name, depends({ name }, ({ name }) => `second(${name})`));
  assert.deepEqual(await answer(server), [200, 'second(original)']);
});

test('an override that is undone takes no other with it, and the one before it counts again', async () => {
  const name = named('original');
  await using server = await serve([get('/', { name }, ({ name }) => name)]);
  const undo = ['first', 'second', 'third'].map((each) => server.app.override(name, named(each)));
  for (const [at, left] of [[1, 'third'], [2, 'first'], [1, 'first'], [0, 'original']] as const) {
    undo[at]?.();
    assert.deepEqual(await answer(server), [200, left]);
  }
});

test('two overrides that refer to each other end, whichever is declared first', async () => {
  const [a, b] = [named('a'), named('b')];
  for (const deps of [{ a, b }, { b, a }]) {
    await using wrapped = await serve([get('/', deps, (values) => values)]);
    wrapped.app.override(a, around('not a', b));
    wrapped.app.override(b, around('not b', a));
    assert.deepEqual(await answer(wrapped), [200, { a: 'not a(not b(a))', b: 'not b(not a(b))' }]);
  }
  await using swapped = await serve([get('/', { a, b }, (values) => values)]);
  swapped.app.override(a, b);
  swapped.app.override(b, a);
  assert.deepEqual(await answer(swapped), [200, { a: 'b', b: 'a' }]);
});

test('an override is one step: of a → b and b → c, a gives b', async () => {
  const [a, b, c] = [named('a'), named('b'), named('c')];
  await using server = await serve([get('/', { a, b, c }, (values) => values)]);
  server.app.override(a, b);
  server.app.override(b, c);
  assert.deepEqual(await answer(server), [200, { a: 'b', b: 'c', c: 'c' }]);
});

test('a replacement is resolved once per request, and its generator is unwound', async () => {
  const log: string[] = [];
  const original = named('original');
  const fake = syncGenerator('fake', log);
  const deps = { original, inner: around('inner', original), fake };
  await using server = await serve([get('/', deps, (values) => values)]);
  server.app.override(original, fake);
  assert.deepEqual(await answer(server), [200, { original: 'fake', inner: 'inner(fake)', fake: 'fake' }]);
  await server.app.idle();
  assert.deepEqual(log, ['enter fake', 'exit fake']);
});

test('what a replacement throws is the answer, and the dependency is replaced in the next request, too', async () => {
  const guard = named('open');
  await using server = await serve([get('/', { guard }, ({ guard }) => guard)]);
  server.app.override(guard, depends({ q: query('q') }, ({ q }) => { throw new HTTPError(403, q); }));
  for (const round of [1, 2]) assert.deepEqual(await answer(server, `/?q=${round}`), [403, { detail: `${round}` }]);
  assert.deepEqual(await answer(server), rejection(missing('query', 'q')));
});

test('built-in dependencies can be replaced', async () => {
  const [name, id, token, order] = [query('name'), path('id'), header('token'), body(strings('item'))];
  const deps = { name, id, token, order, request, tasks: backgroundTasks };
  await using server = await serve([post('/:id', deps, ({ request, tasks, ...values }) => {
    tasks.addTask(() => assert.fail('a queue that nobody runs'));
    return { ...values, method: request.method };
  })]);
  const { app } = server;
  const queue = new BackgroundTasks();
  app.override(name, named('name'));
  app.override(id, named('id'));
  app.override(token, named('token'));
  app.override(order, depends(() => ({ item: 'tea' })));
  app.override(request, depends(() => Object.assign(new IncomingMessage(new Socket()), { method: 'FAKE' })));
  app.override(backgroundTasks, depends(() => queue));
  assert.deepEqual(await answer(server, '/1', { method: 'POST' }),
    [200, { name: 'name', id: 'id', token: 'token', order: { item: 'tea' }, method: 'FAKE' }]);
  await app.idle();
  assert.equal(queue.unfinished.length, 1);
});

test('a replacement with a path() that the route lacks is 422', async () => {
  const item = named('item');
  await using server = await serve([get('/', { item }, ({ item }) => item)]);
  server.app.override(item, path('id'));
  assert.deepEqual(await answer(server), rejection(missing('path', 'id')));
});

/* What is refused */

test('depends() refuses what is no function, and says what it got', () => {
  for (const wrong of [undefined, 1, 'call', { deps: {} }, named('a')]) {
    const message = new RegExp(`^Expected .*function, got ${typeof wrong}`);
    assert.throws(() => depends(wrong as never), { name: 'TypeError', message });
    assert.throws(() => depends({}, wrong as never), { name: 'TypeError', message });
  }
});

test('what is declared and is no dependency is refused at once, by its name', () => {
  for (const wrong of [() => 'a plain function', undefined, null, 'text', {}, query]) {
    const deps = { fine: query('q'), database: wrong } as unknown as Dependencies;
    const expected = { name: 'TypeError', message: /`database` to be a dependency.*depends\(\)/ };
    assert.throws(() => depends(deps, () => {}), expected);
    assert.throws(() => get('/', deps, () => {}), expected);
  }
});

for (const [kind, wrong] of [
  ['query()', query('q', {} as StandardSchema<string>)], ['header()', header('host', {} as StandardSchema<string>)],
  ['body()', body({} as StandardSchema<string>)], ['body() without one', body(undefined as never)],
] as [string, Dependency<unknown>][]) {
  test(`a schema that is none, in ${kind}, is 500 and a TypeError on stderr`, async (t) => {
    const lines = stderr(t);
    const routes = [post('/', { wrong }, () => assert.fail('unreachable'))];
    assert.deepEqual(await answerOf(routes, '/?q=1', json({})), internal);
    assert.equal(lines.length, 1);
    assert.match(lines[0] ?? '', /^POST \/\?q=1 failed: TypeError/);
  });
}

test('a thrown thenable is an error like any other, and is not awaited (fact 7.8)', async (t) => {
  t.mock.method(console, 'error', () => {});
  const never = { then: (): void => {} };
  const rejecting = { then: (_: unknown, reject: (error: Error) => void): void => reject(new Error('thrown')) };
  await using server = await serve([...Object.entries({ never, rejecting }).map(([name, thrown]) =>
    get(`/${name}`, () => { throw thrown; }))]);
  for (const name of ['never', 'rejecting']) assert.equal((await fetch(`${server.url}/${name}`)).status, 500);
});

test('an anonymous generator that never yields is named in the report all the same', async (t) => {
  const report = t.mock.method(console, 'error', () => {});
  await using server = await serve([get('/', { none: depends(function* () {}) }, () => {})]);
  assert.equal((await fetch(server.url)).status, 500);
  assert.match(String(report.mock.calls[0]?.arguments[2]), /Expected a dependency to yield one value/);
});

/** background.ts by itself: the queue as a class, `responseDone` on a bare server, and the file copied alone. */
import assert from 'node:assert/strict';
import { AsyncLocalStorage } from 'node:async_hooks';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { once } from 'node:events';
import { copyFile, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, IncomingMessage, ServerResponse, type RequestListener } from 'node:http';
import { Socket, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { format, inspect } from 'node:util';
import { queryObjects } from 'node:v8';
import { Worker } from 'node:worker_threads';
import { BackgroundTasks, responseDone, whenDone, type BackgroundTasksOptions, type TaskInfo } from '../background.ts';
import { child, gate, rawClient, root, type RawClient } from './helpers.ts';

function queue(tasks: readonly (() => unknown)[], options?: BackgroundTasksOptions): BackgroundTasks {
  const made = new BackgroundTasks(options);
  for (const task of tasks) made.addTask(task);
  return made;
}

const request = (method: string, url: string): IncomingMessage =>
  Object.assign(new IncomingMessage(new Socket()), { method, url });

const names = (tasks: readonly TaskInfo[]): string[] => tasks.map(({ name }) => name);

/** What stderr would show. It formats, as the real one does: there a hostile value throws. */
function stderr(t: TestContext): string[] {
  const lines: string[] = [];
  t.mock.method(console, 'error', (...args: unknown[]) => void lines.push(format(...args)));
  return lines;
}

/** Other queues run to their end, through several turns of the event loop: what was free to happen has happened. */
async function otherQueues(): Promise<void> {
  for (let round = 0; round < 5; round += 1) await queue([() => {}, () => new Promise(setImmediate)]).run();
}

/** Blocks the thread, as a task that computes does. */
function busy(ms: number): void {
  const end = performance.now() + ms;
  while (performance.now() < end);
}

test('2 tasks run in the order added, synchronous or not, each with its arguments', async () => {
  const log: unknown[] = [];
  const tasks = new BackgroundTasks();
  tasks.addTask((text: string) => log.push(text), 'sync');
  tasks.addTask(async (to: string, { subject }: { subject: string }) => {
    await new Promise(setImmediate);
    log.push([to, subject]);
  }, 'a@example.com', { subject: 'hello' });
  tasks.addTask(async () => log.push('resolved'));
  tasks.addTask(() => new Promise(setImmediate).then(() => log.push('a promise')));
  tasks.addTask(() => log.push('last'));
  assert.deepEqual(log, [], 'addTask() starts nothing');
  assert.equal(await tasks.run(), undefined);
  assert.deepEqual(log, ['sync', ['a@example.com', 'hello'], 'resolved', 'a promise', 'last']);
});

test('2 run() starts no task before it returns, and a task may call it: the promise is the same', async () => {
  await queue([() => {}]).run(); // so that the next queue need not wait for a turn of the event loop
  const log: string[] = [];
  let again: Promise<void> | undefined;
  const tasks = queue([() => { if (log.push('first') === 1) again = tasks.run(); }, () => log.push('second')]);
  const running = tasks.run();
  assert.deepEqual(log, []);
  await running;
  assert.deepEqual([log, again === running], [['first', 'second'], true]);
});

test("2 a task that start() runs may call run(): that starts nothing, and resolves at the queue's end", async () => {
  await queue([() => {}]).run(); // so that the next queue need not wait for a turn of the event loop
  const log: string[] = [];
  const [second, held] = [gate(), gate()];
  const runs: Promise<void>[] = [];
  const tasks = queue([
    () => { log.push('first'); runs.push(tasks.run()); void tasks.run().then(() => log.push('run() resolves')); },
    async () => { log.push('second'); second.open(); await held; runs.push(tasks.run()); },
    () => log.push('third'),
  ]);
  const running = new Promise<void>((resolve) => tasks.start(resolve));
  await second;
  await otherQueues();
  assert.deepEqual(log, ['first', 'second']);
  held.open();
  await Promise.all([running, ...runs]);
  assert.deepEqual(log, ['first', 'second', 'third', 'run() resolves']);
  assert.deepEqual(new Set(runs), new Set([tasks.run()]), 'always the same promise');
});

test('2 start() after run() waits for its end, and run() is the same promise before and after it', async () => {
  const log: string[] = [];
  const tasks = queue([() => log.push('first'), async () => log.push('second')]);
  const running = tasks.run();
  await new Promise<void>((resolve) => tasks.start(resolve));
  assert.deepEqual(log, ['first', 'second']);
  assert.equal(tasks.run(), running);
});

for (const [kind, wrap] of Object.entries<(held: Promise<void>) => unknown>({
  'an async task': (held) => held,
  'a thenable object (fact 7.8)': (held) => ({ then: (done: () => void) => void held.then(done) }),
  'a thenable function (fact 7.8)': (held) =>
    Object.assign(() => {}, { then: (done: () => void) => void held.then(done) }),
})) {
  test(`2 one at a time: the next task of a queue waits for ${kind}, other queues do not`, async () => {
    const log: string[] = [];
    const held = gate();
    const started = gate();
    const running = queue([() => { started.open(); return wrap(held); }, () => log.push('second')]).run();
    await started;
    await otherQueues();
    assert.deepEqual(log, []);
    held.open();
    await running;
    assert.deepEqual(log, ['second']);
  });
}

test('2 run() twice is the same promise, and runs no task twice, also after the end', async () => {
  const log: string[] = [];
  const tasks = queue([async () => log.push('first'), () => log.push('second')]);
  const running = tasks.run();
  assert.equal(tasks.run(), running);
  await running;
  assert.equal(tasks.run(), running);
  await otherQueues();
  assert.deepEqual(log, ['first', 'second']);
});

test('2 a task that a running task adds joins the end of the same queue, also when the last one adds it', async () => {
  const log: string[] = [];
  const tasks = new BackgroundTasks();
  const write = (text: string, ...next: string[]) => async (): Promise<void> => {
    log.push(text);
    await new Promise(setImmediate);
    for (const each of next) tasks.addTask(write(each, ...(each === 'fourth' ? ['fifth'] : [])));
  };
  tasks.addTask(write('first', 'third', 'fourth'));
  tasks.addTask(write('second'));
  await tasks.run();
  assert.deepEqual(log, ['first', 'second', 'third', 'fourth', 'fifth']);
});

test('2 adding after the queue has finished throws, and says which task came too late', async () => {
  for (const tasks of [queue([]), queue([() => {}])]) {
    await tasks.run();
    assert.throws(() => tasks.addTask(function late() {}), { name: 'Error', message: /\blate\b.*have finished/ });
    assert.deepEqual(tasks.unfinished, []);
  }
});

test('2 adding after discard() throws, and names the reason', () => {
  const tasks = queue([]);
  tasks.discard('the server has stopped');
  assert.throws(() => tasks.addTask(function late() {}),
    { name: 'Error', message: /\blate\b.*were discarded: the server has stopped/ });
  assert.deepEqual(tasks.unfinished, []);
});

test('what is no function is refused at once, with what to pass instead', () => {
  const tasks = new BackgroundTasks();
  const wrong: [unknown, string][] = [
    [42, 'number'], [undefined, 'undefined'], [null, 'object'], [Promise.resolve(), 'object'], ['task', 'string'],
  ];
  for (const [value, type] of wrong) {
    const message = `Expected a function, got ${type}. Pass it uncalled.`;
    assert.throws(() => tasks.addTask(value as never), { name: 'TypeError', message });
  }
  assert.deepEqual(tasks.unfinished, []);
});

const refuse = (): never => { throw new Error('not even this'); };
const boom = (): Error => new Error('boom');
const failures: Record<string, () => unknown> = {
  'a throw': () => { throw boom(); },
  'a rejection': async () => { await new Promise(setImmediate); throw boom(); },
  'an immediate rejection': async () => { throw boom(); },
  'a thenable that rejects': () => ({ then: (_: unknown, reject: (error: Error) => void) => reject(boom()) }),
  'a thenable whose `then` throws': () => ({ then: () => { throw boom(); } }),
  'a `then` that cannot be read': () => ({ get then() { throw boom(); } }),
  'a thrown null': () => { throw null; },
  'a thrown undefined': () => { throw undefined; },
  'a rejection with undefined': () => Promise.reject(),
  'a thrown string': () => { throw '%s %o %'; },
  'a thrown object without prototype': () => { throw Object.create(null); },
  'a thrown object that cannot be inspected (fact 7.19)': () => { throw { [inspect.custom]: refuse }; },
  'a thrown object without a string (fact 7.19)': () => { throw { toString: refuse, [Symbol.toPrimitive]: refuse }; },
  'a thrown object whose getters throw (fact 7.19)': () => {
    throw { get [Symbol.toStringTag]() { return refuse(); } };
  },
  'an error whose stack cannot be read (fact 7.19)': () => {
    throw Object.defineProperties(boom(), { stack: { get: refuse }, message: { get: refuse }, name: { get: refuse } });
  },
  'a thrown Proxy that refuses everything (fact 7.19)': () => { throw new Proxy({}, new Proxy({}, { get: refuse })); },
};
for (const [kind, fail] of Object.entries(failures)) {
  test(`3 after ${kind} in the first, middle or last task, the others run and stderr names it once`, async (t) => {
    const lines = stderr(t);
    for (const failing of [0, 1, 2]) {
      const log: number[] = [];
      const named = Object.defineProperty(() => fail(), 'name', { value: `failing ${failing}` });
      await queue([0, 1, 2].map((index) => (index === failing ? named : () => log.push(index)))).run();
      assert.deepEqual(log, [0, 1, 2].filter((index) => index !== failing));
      const [line, ...more] = lines.splice(0);
      assert.deepEqual(more, []);
      assert.match(line ?? '', new RegExp(`failing ${failing}`));
    }
  });
}

test('3 the report shows the stack of an error, or the value where it is none', async (t) => {
  const lines = stderr(t);
  const error = boom();
  await queue([() => { throw error; }, async () => { throw error; }, () => { throw 'a string'; }]).run();
  assert.equal(lines.length, 3);
  for (const line of lines.slice(0, 2)) assert.ok(line.includes(error.stack ?? 'no stack'), line);
  assert.match(lines[2] ?? '', /a string/);
});

test("3 afterFailure 'stop' drops the rest, also what the failing task added, and reports each", async (t) => {
  const lines = stderr(t);
  const log: string[] = [];
  const tasks = new BackgroundTasks({ afterFailure: 'stop' });
  tasks.addTask(() => log.push('before'));
  tasks.addTask(async function failing() { tasks.addTask(function added() { log.push('added'); }); throw boom(); });
  tasks.addTask(function second() { log.push('second'); });
  tasks.addTask(function third() { log.push('third'); });
  await tasks.run();
  assert.deepEqual(log, ['before']);
  const reported = lines.map((line) => /failing|second|third|added/.exec(line)?.[0]);
  assert.deepEqual(reported, ['failing', 'second', 'third', 'added']);
  assert.throws(() => tasks.addTask(() => {}), /were discarded: a task failed/);
});

test("3 afterFailure 'stop' changes nothing where no task fails, and drops nothing after the last", async (t) => {
  const lines = stderr(t);
  const log: string[] = [];
  const last = (): never => { throw boom(); };
  await queue([() => log.push('first'), async () => log.push('second'), last], { afterFailure: 'stop' }).run();
  assert.deepEqual(log, ['first', 'second']);
  assert.equal(lines.length, 1);
});

test('3 onTaskError replaces the report; it is awaited, and learns the error and the task', async (t) => {
  const lines = stderr(t);
  const log: unknown[] = [];
  const held = gate();
  const called = gate();
  const req = request('POST', '/items');
  const onTaskError = async (...args: unknown[]): Promise<void> => { log.push(args); called.open(); await held; };
  const tasks = new BackgroundTasks({ request: req, onTaskError });
  tasks.addTask(() => {});
  tasks.addTask(function failing() { throw null; });
  tasks.addTask(() => log.push('next'));
  const running = tasks.run();
  await called;
  await otherQueues();
  assert.equal(log.length, 1, 'the next task waits for it');
  held.open();
  await running;
  assert.deepEqual(log, [[null, { name: 'failing', index: 1, request: req }], 'next']);
  assert.deepEqual(lines, []);
});

for (const [kind, onTaskError] of Object.entries({
  'a throw': (): never => { throw new Error('the reporter failed too'); },
  'a rejection': async (): Promise<never> => { throw new Error('the reporter failed too'); },
})) {
  test(`3 ${kind} of onTaskError puts both errors on stderr, and the rest still runs`, async (t) => {
    const lines = stderr(t);
    const log: string[] = [];
    await queue([function failing() { throw boom(); }, () => log.push('next')], { onTaskError }).run();
    assert.deepEqual(log, ['next']);
    const text = lines.join('\n');
    const parts = [/failing/, /Error: boom\n +at /, /Error: the reporter failed too\n +at /];
    for (const part of parts) assert.match(text, part);
    assert.equal(text.split('Error: boom').length, 2, 'once');
  });
}

test('3 an onTaskError that throws what cannot be printed is contained too (fact 7.19)', async (t) => {
  const lines = stderr(t);
  const log: string[] = [];
  const onTaskError = (): never => { throw { [inspect.custom]: refuse }; };
  await queue([function failing() { throw boom(); }, () => log.push('next')], { onTaskError }).run();
  assert.deepEqual(log, ['next']);
  assert.match(lines.join('\n'), /failing/);
});

test('a task is named after its function, else after its place and its request, without the query string', () => {
  const tasks = new BackgroundTasks({ request: request('POST', '/items?token=secret') });
  tasks.addTask(function writeLog() {});
  tasks.addTask(() => {});
  assert.deepEqual(names(tasks.unfinished), ['writeLog', 'task 2 of POST /items']);
  assert.deepEqual(names(queue([() => {}, () => {}].map((task) => task.bind(null))).unfinished), ['bound ', 'bound ']);
  const alone = new BackgroundTasks();
  alone.addTask(() => {});
  alone.addTask(() => {});
  assert.deepEqual(names(alone.unfinished), ['task 1', 'task 2']);
});

for (const [kind, disguise] of Object.entries<(fn: () => never) => () => unknown>({
  'that throws': (fn) => Object.defineProperty(fn, 'name', { get: refuse }),
  'that is a symbol': (fn) => Object.defineProperty(fn, 'name', { value: Symbol('name') }),
  'of a revoked Proxy': (fn) => {
    const { proxy, revoke } = Proxy.revocable(fn, {});
    setImmediate(revoke);
    return proxy;
  },
})) {
  test(`3 a task with a name ${kind} is named after its place, and its error stays inside`, async (t) => {
    const lines = stderr(t);
    const log: string[] = [];
    const tasks = queue([disguise(() => { throw boom(); }), () => log.push('next')]);
    await new Promise(setImmediate); // the Proxy is revoked
    await tasks.run();
    assert.deepEqual(log, ['next']);
    assert.equal(lines.length, 1);
    assert.match(lines[0] ?? '', /^Background task failed \(task 1\): (Error: boom|TypeError: Cannot perform)/);
  });
}

test('unfinished is what runs or has not started; discard() leaves what runs alone, and starts no other', async () => {
  const log: string[] = [];
  const held = gate();
  const started = gate();
  const tasks = new BackgroundTasks();
  tasks.addTask(function first() {});
  tasks.addTask(async function second() { started.open(); await held; log.push('second'); });
  tasks.addTask(function third() { log.push('third'); });
  assert.deepEqual(names(tasks.unfinished), ['first', 'second', 'third']);
  const running = tasks.run();
  await started;
  assert.deepEqual(names(tasks.unfinished), ['second', 'third']);
  assert.deepEqual(names(tasks.discard('a reason')), ['third']);
  assert.deepEqual(tasks.discard('another'), [], 'nothing is dropped twice');
  held.open();
  await running;
  assert.deepEqual(log, ['second']);
});

test('4 a queue that was discarded runs nothing; one that has finished has nothing to discard', async () => {
  const log: string[] = [];
  const discarded = queue([() => log.push('discarded')]);
  assert.equal(discarded.discard('the handler threw').length, 1);
  await discarded.run();
  const finished = queue([() => log.push('finished')]);
  await finished.run();
  assert.deepEqual(finished.discard('too late'), []);
  assert.deepEqual(log, ['finished']);
});

test('7 a queue that waits for its turn when it is discarded starts nothing any more', async () => {
  const log: string[] = [];
  busy(11); // no time is left in the slice: the queue has to wait
  const tasks = queue([() => log.push('started')]);
  const running = tasks.run();
  assert.equal(tasks.discard('the server has stopped').length, 1);
  await running;
  assert.deepEqual(log, []);
});

/** Counts the turns of the event loop, until the end of the test. */
function turns(t: TestContext): { readonly now: number } {
  const counter = { now: 0 };
  const next = (): void => { counter.now += 1; immediate = setImmediate(next); };
  let immediate = setImmediate(next);
  t.after(() => clearImmediate(immediate));
  return counter;
}

for (const [kind, block] of Object.entries<(ms: number) => unknown>({
  synchronous: busy, 'already-resolved': async (ms) => busy(ms),
})) {
  test(`6 an immediate that the first of three tasks (${kind}) sets fires before the third`, async () => {
    const log: string[] = [];
    const first = (): unknown => { setImmediate(() => log.push('immediate')); return block(11); };
    await queue([first, () => block(11), () => log.push('third')]).run();
    assert.deepEqual(log, ['immediate', 'third']);
  });

  test(`6 short tasks (${kind}) add up: an immediate of the first fires within ten of 1 ms each`, async () => {
    let ran = 0;
    const seen = gate<number>();
    busy(11); // so that the first task begins a slice
    const task = (): unknown => { if (ran++ === 0) setImmediate(() => seen.open(ran)); return block(1); };
    await queue(Array(30).fill(task)).run();
    const tasks = await seen;
    assert.ok(tasks <= 10, `${tasks} tasks of 1 ms`);
  });

  test(`6 thirty queues with tasks of more than 10 ms (${kind}) take thirty turns of the event loop`, async (t) => {
    const turn = turns(t);
    const seen = new Set<number>();
    const queues = Array.from({ length: 30 }, () => queue([() => { seen.add(turn.now); return block(11); }]));
    await Promise.all(queues.map((each) => each.run()));
    assert.equal(seen.size, 30);
  });

  test(`6 thirty queues with short tasks (${kind}) share the 10 ms of a turn`, async (t) => {
    const turn = turns(t);
    const seen = new Map<number, number>();
    const task = (): unknown => { seen.set(turn.now, (seen.get(turn.now) ?? 0) + 1); return block(2); };
    await Promise.all(Array.from({ length: 30 }, () => queue([task]).run()));
    for (const [number, tasks] of seen) assert.ok(tasks <= 5, `${tasks} tasks of 2 ms in turn ${number}`);
    assert.ok(seen.size < 30, 'and no queue waits for a turn of its own');
  });

  test(`6 queues with tasks of more than 10 ms (${kind}) go on first come, first served`, async () => {
    const log: string[] = [];
    busy(11); // so that the first queue waits like the others
    const queues = ['a', 'b', 'c', 'd', 'e'].map((name) => queue([1, 2, 3].map((round) => () => {
      log.push(`${name}${round}`);
      return block(11);
    })));
    await Promise.all(queues.map((each) => each.run()));
    assert.equal(log.join(' '), 'a1 b1 c1 d1 e1 a2 b2 c2 d2 e2 a3 b3 c3 d3 e3');
  });
}

test('8 a task runs in the async context of its addTask call, to its end, and so does its onTaskError', async () => {
  const context = new AsyncLocalStorage<string>();
  const log: (string | undefined)[] = [];
  const tasks = new BackgroundTasks({ onTaskError: () => log.push(context.getStore()) });
  const see = async (): Promise<void> => {
    log.push(context.getStore());
    await new Promise(setImmediate);
    log.push(context.getStore());
    if (log.length === 2) tasks.addTask(() => log.push(context.getStore()));
  };
  context.run('one', () => tasks.addTask(see));
  context.run('two', () => tasks.addTask(see));
  context.run('three', () => tasks.addTask(() => { throw boom(); }));
  tasks.addTask(see);
  await context.run('of run()', () => tasks.run());
  assert.deepEqual(log, ['one', 'one', 'two', 'two', 'three', undefined, undefined, 'one']);
});

test('8 a lazy thenable, such as a query builder, runs in the async context of its task (fact 7.8)', async () => {
  const context = new AsyncLocalStorage<string>();
  const log: (string | undefined)[] = [];
  const tasks = new BackgroundTasks();
  const lazy = { then: (done: () => void) => { log.push(context.getStore()); done(); } };
  context.run('one', () => tasks.addTask(() => lazy));
  context.run('two', () => tasks.addTask(async () => lazy));
  await context.run('of run()', () => tasks.run());
  assert.deepEqual(log, ['one', 'two']);
});

/** What the four channels say of the tasks of `req`. */
function published(t: TestContext, req: IncomingMessage | undefined): object[] {
  const log: object[] = [];
  for (const event of ['start', 'end', 'error', 'dropped']) {
    const channel = `background-tasks:${event}`;
    const listener = (message: unknown): void => {
      const { request: of, ...rest } = message as TaskInfo;
      if (of === req && 'request' in (message as TaskInfo)) log.push({ event, ...rest });
    };
    subscribe(channel, listener);
    t.after(() => unsubscribe(channel, listener));
  }
  return log;
}

test('9 the channels tell of start, end and error, with name, index, request; an end follows an error', async (t) => {
  stderr(t);
  const req = request('POST', '/items');
  const log = published(t, req);
  const error = boom();
  const tasks = new BackgroundTasks({ request: req });
  tasks.addTask(async function first() {
    await new Promise(setImmediate);
    assert.deepEqual(log, [{ event: 'start', name: 'first', index: 0 }], 'the end is not told before it comes');
  });
  tasks.addTask(() => { throw error; });
  tasks.addTask(function third() { throw undefined; });
  await tasks.run();
  assert.deepEqual(log, [
    { event: 'start', name: 'first', index: 0 },
    { event: 'end', name: 'first', index: 0 },
    { event: 'start', name: 'task 2 of POST /items', index: 1 },
    { event: 'error', name: 'task 2 of POST /items', index: 1, error },
    { event: 'end', name: 'task 2 of POST /items', index: 1 },
    { event: 'start', name: 'third', index: 2 },
    { event: 'error', name: 'third', index: 2, error: undefined },
    { event: 'end', name: 'third', index: 2 },
  ]);
});

test('9 a queue without a request is told of with `request: undefined`', async (t) => {
  const log = published(t, undefined);
  await queue([function only() {}]).run();
  assert.deepEqual(log, [{ event: 'start', name: 'only', index: 0 }, { event: 'end', name: 'only', index: 0 }]);
});

test('9 each dropped task is told of once, with the reason, and not on stderr unless a task failed', async (t) => {
  const lines = stderr(t);
  const req = request('GET', '/');
  const log = published(t, req);
  const tasks = queue([function first() {}, function second() {}], { request: req });
  tasks.discard('the handler threw');
  tasks.discard('again');
  await tasks.run();
  const reason = 'the handler threw';
  assert.deepEqual(log.splice(0), [
    { event: 'dropped', name: 'first', index: 0, reason }, { event: 'dropped', name: 'second', index: 1, reason },
  ]);
  assert.deepEqual(lines, []);
  const error = boom();
  const failing = (): never => { throw error; };
  await queue([failing, function second() {}], { request: req, afterFailure: 'stop' }).run();
  assert.deepEqual(log, [
    { event: 'start', name: 'failing', index: 0 },
    { event: 'error', name: 'failing', index: 0, error },
    { event: 'dropped', name: 'second', index: 1, reason: 'a task failed' },
    { event: 'end', name: 'failing', index: 0 },
  ]);
});

interface Bare {
  readonly port: number;
  /** Other requests go through the same server: what was free to happen has happened. */
  fence(): Promise<void>;
}

/** A server with nothing of ours in it. It ends with the test, also where the test has run into a deadline. */
async function bareServer(t: TestContext, handler: RequestListener): Promise<Bare> {
  const server = createServer({ keepAliveTimeout: 0 });
  server.on('request', (req, res) => (req.url === '/fence' ? res.end() : handler(req, res)));
  await once(server.listen(0, '127.0.0.1'), 'listening');
  t.after(() => { server.close(); server.closeAllConnections(); });
  const { port } = server.address() as AddressInfo;
  const fence = async (): Promise<void> => {
    for (let round = 0; round < 5; round += 1) {
      using other = await rawClient(port);
      other.send('GET /fence HTTP/1.0', '', '');
      await other.closed;
    }
  };
  return { port, fence };
}

interface Exchange extends Bare {
  readonly client: RawClient;
  /** The responses that the server has opened for the client; the test writes them. */
  readonly responses: ServerResponse[];
  readonly res: ServerResponse;
}

const GET = ['GET / HTTP/1.1', 'host: a', '', ''].join('\r\n');
const CLOSE = ['GET / HTTP/1.1', 'host: a', 'connection: close', '', ''].join('\r\n');

/** A client that has sent `requests` on one connection, and the responses to them, as yet unwritten. */
async function exchange(t: TestContext, ...requests: string[]): Promise<Exchange> {
  const responses: ServerResponse[] = [];
  const arrived = gate();
  const server = await bareServer(t, (_, res) => { if (responses.push(res) === requests.length) arrived.open(); });
  const client = await rawClient(server.port);
  t.after(() => client.socket.destroy());
  client.send(requests.join(''));
  await arrived;
  return { ...server, client, responses, res: responses[0] as ServerResponse };
}

function watch(promise: Promise<unknown>): { settled: boolean } {
  const state = { settled: false };
  void promise.then(() => { state.settled = true; });
  return state;
}

/** Not `once(…, 'close')`, which a reset makes reject. */
const closing = (stream: Socket | IncomingMessage): Promise<void> =>
  new Promise((resolve) => { stream.once('close', resolve); });

const deadline = 30_000; // turns a deadlock into a failure
const within = { timeout: deadline };
const MiB = 2 ** 20;

test('1 responses that are done in one turn of the event loop are told of in order, others in the next', async () => {
  const log: string[] = [];
  const gone = async (name: string): Promise<void> => {
    const res = new ServerResponse(request('GET', '/'));
    res.req.socket.destroy();
    await responseDone(res);
    log.push(name);
  };
  const last = gone('first').then(() => gone('third'));
  setImmediate(() => log.push('turn'));
  await Promise.all([gone('second'), last]);
  assert.deepEqual(log, ['first', 'second', 'turn', 'third']);
});

test('1 responseDone waits for the end of the response, and leaves the connection open', within, async (t) => {
  const { client, res, fence } = await exchange(t, GET);
  const done = [responseDone(res), responseDone(res)];
  const states = done.map(watch);
  res.write('the first part');
  await client.until('the first part');
  await fence();
  assert.deepEqual(states, [{ settled: false }, { settled: false }]);
  res.end('the last part');
  await Promise.all(done);
  await client.until('the last part\r\n0\r\n\r\n');
  assert.equal(res.req.socket.destroyed, false);
});

test('1 responseDone waits for a slow reader, until the last byte is with the system', within, async (t) => {
  const { client, res, fence } = await exchange(t, CLOSE);
  client.socket.pause();
  const done = responseDone(res);
  const state = watch(done);
  res.end('a'.repeat(16 * MiB)); // more than the buffers of two sockets hold
  await fence();
  assert.equal(state.settled, false);
  client.socket.resume();
  await done;
  const received = await client.closed;
  assert.equal(received.length - received.indexOf('\r\n\r\n') - 4, 16 * MiB);
});

test("1 whenDone calls once, also if 'finish' comes after the 'close' of the connection", within, async (t) => {
  const { client, res, fence } = await exchange(t, GET);
  let calls = 0;
  whenDone(res, () => { calls += 1; });
  const closed = closing(res.req.socket);
  client.socket.destroy();
  await closed;
  await fence();
  assert.equal(calls, 1);
  res.emit('finish'); // the Nodes of today do not emit it so late
  await fence();
  assert.equal(calls, 1);
});

test('1 responseDone resolves late, after the response of a kept connection (fact 7.1)', async (t) => {
  const { client, res, fence } = await exchange(t, GET);
  res.end('whole');
  await client.until('whole');
  await fence();
  assert.equal(res.writableFinished, true);
  const state = watch(responseDone(res));
  await fence();
  assert.equal(state.settled, true);
  assert.equal(res.req.socket.destroyed, false);
});

test('1 responseDone resolves late, after a whole response whose client has left (fact 7.1)', async (t) => {
  const { client, res, fence } = await exchange(t, GET);
  res.end('whole');
  await client.until('whole');
  const closed = closing(res.req.socket);
  client.socket.destroy();
  await closed;
  const state = watch(responseDone(res));
  await fence();
  assert.equal(state.settled, true);
});

for (const leave of ['resetAndDestroy', 'destroy', 'end'] as const) { // a half-close counts as gone
  test(`1 a client that leaves (${leave}) before the handler ends: responseDone resolves, early or late (fact 7.1)`,
    within, async (t) => {
      const { client, res, fence } = await exchange(t, GET);
      const early = responseDone(res);
      const events: string[] = [];
      res.once('finish', () => events.push('finish'));
      const closed = closing(res.req.socket);
      client.socket[leave]();
      await closed;
      res.end('nobody reads it', () => events.push('callback'));
      await early;
      const late = watch(responseDone(res));
      await fence();
      assert.equal(late.settled, true);
      assert.deepEqual(events, [], 'the fact: no event comes any more');
    });
}

test('1 a reset in the middle of a large body: responseDone resolves, early or late (fact 7.1)', within, async (t) => {
  const { client, res, fence } = await exchange(t, GET);
  const early = responseDone(res);
  res.write('the first part');
  await client.until('the first part');
  client.socket.pause();
  res.end('a'.repeat(16 * MiB));
  client.socket.resetAndDestroy();
  await early;
  const late = watch(responseDone(res));
  await fence();
  assert.equal(late.settled, true);
});

test('1 pipelined, and its client gone: responseDone resolves all the same (fact 7.2)', within, async (t) => {
  const { client, responses: [first, second], fence } = await exchange(t, GET, GET);
  assert.ok(first && second);
  const early = [first, second].map(responseDone);
  const states = early.map(watch);
  second.end('behind the first');
  await fence();
  assert.deepEqual(states, [{ settled: false }, { settled: false }]);
  client.socket.destroy();
  await Promise.all(early);
  const late = [first, second].map(responseDone).map(watch);
  await fence();
  assert.deepEqual(late, [{ settled: true }, { settled: true }]);
});

test('1 a pipelined response is done once it is out behind the one before it (fact 7.2)', within, async (t) => {
  const { client, responses: [first, second], fence } = await exchange(t, GET, GET);
  assert.ok(first && second);
  const states = [first, second].map(responseDone).map(watch);
  second.end('two');
  await fence();
  assert.deepEqual(states, [{ settled: false }, { settled: false }]);
  first.end('one');
  assert.match(await client.until('two'), /one[^]*two/);
  await fence();
  assert.deepEqual(states, [{ settled: true }, { settled: true }]);
});

for (const [when, write] of Object.entries<(res: ServerResponse) => void>({
  'before its end': (res) => res.write('two'),
  'after its end': (res) => res.end('two'),
})) {
  test(`1 a response that is destroyed ${when}, behind another, ends the connection in its turn, and is done then`,
    within, async (t) => {
      const { client, responses: [first, second], fence } = await exchange(t, GET, GET);
      assert.ok(first && second);
      const early = responseDone(second);
      write(second);
      second.destroy();
      await fence();
      const done = [early, responseDone(second)];
      const states = done.map(watch);
      await fence();
      assert.deepEqual(states, [{ settled: false }, { settled: false }]);
      first.end('one');
      await Promise.all(done);
      assert.match(await client.closed, /one$/);
    });
}

test('1 a response that was destroyed behind another is done where its turn has come before', within, async (t) => {
  const { client, responses: [first, second], fence } = await exchange(t, GET, GET);
  assert.ok(first && second);
  second.destroy();
  first.end('one');
  await responseDone(first);
  await fence();
  await responseDone(second);
  assert.match(await client.closed, /one$/);
});

test('1 the error that a response behind another is destroyed with is that of its socket', within, async (t) => {
  const { responses: [first, second] } = await exchange(t, GET, GET);
  assert.ok(first && second);
  const error = boom();
  const told: Error[] = [];
  second.req.socket.on('error', (each: Error) => { told.push(each); });
  const done = responseDone(second);
  second.destroy(error);
  first.end('one');
  await done;
  assert.deepEqual(told, [error]);
});

test('1 responseDone leaves no listener on a response that is out', within, async (t) => {
  const { client, res } = await exchange(t, CLOSE);
  res.end('whole');
  await client.closed;
  await responseDone(res);
  const listeners = (): number[] => res.eventNames().map((event) => res.listenerCount(event));
  const before = listeners();
  await Promise.all([responseDone(res), responseDone(res)]);
  assert.deepEqual(listeners(), before);
});

test('1 neither `close` of a request nor `res.destroyed` means that the client left (fact 7.4)', within, async (t) => {
  const post = ['POST / HTTP/1.1', 'host: a', 'content-length: 4', '', 'body'].join('\r\n');
  const { client, res, fence } = await exchange(t, post);
  const before = watch(responseDone(res));
  const closed = closing(res.req);
  res.req.resume();
  await closed;
  const after = responseDone(res);
  const state = watch(after);
  await fence();
  assert.deepEqual([before.settled, state.settled], [false, false]);
  res.end('whole');
  await after;
  await client.until('whole');
  await fence();
  assert.deepEqual([res.destroyed, res.req.socket.destroyed], [true, false], 'the fact');
});

test('8 the tasks of a pipelined response keep their context, also if a `finish` listener starts them (fact 7.9)',
  within, async (t) => {
    const context = new AsyncLocalStorage<string>();
    const log: (string | undefined)[] = [];
    const ends: (() => void)[] = [];
    const arrived = gate();
    const finished = gate();
    const { port } = await bareServer(t, (req, res) => context.run(req.url ?? '', () => {
      const tasks = queue([() => log.push(context.getStore()), async () => log.push(context.getStore())]);
      res.once('finish', () => void tasks.run().then(() => { if (log.length === 4) finished.open(); }));
      if (ends.push(() => res.end()) === 2) arrived.open();
    }));
    using client = await rawClient(port);
    client.send(GET.replace('/', '/one') + GET.replace('/', '/two'));
    await arrived;
    for (const end of ends.reverse()) end();
    await finished;
    assert.deepEqual(log.sort(), ['/one', '/one', '/two', '/two']);
  });

/** In a thread of its own, as that of the server is blocked: sets `shared[0]` once it has all that is due. */
const CLIENT = `
  const { connect } = require('node:net');
  const { port, head, length, shared, endOfFile } = require('node:worker_threads').workerData;
  let received = 0, whole = false;
  const release = () => { Atomics.store(shared, 0, 1); Atomics.notify(shared, 0); socket.destroy(); };
  const socket = connect(port, '127.0.0.1', () => socket.write(head));
  socket.on('data', (chunk) => {
    whole = (received += chunk.length) > length && String.fromCharCode(chunk.at(-1)) === 'z';
    if (whole && !endOfFile) release();
  });
  socket.on('end', () => { if (whole) release(); });`;

for (const [kind, head, endOfFile] of [
  ['the last of 16 MiB', GET, false],
  ['the last of 16 MiB and the end of file of `Connection: close`', CLOSE, true],
  ['the last of 16 MiB and the end of file of HTTP/1.0', 'GET / HTTP/1.0\r\n\r\n', true],
] as const) {
  for (const [when, late] of [['right after responseDone', false], ['after a late responseDone', true]] as const) {
    test(`1 what blocks the thread ${when} does not delay ${kind} (fact 7.3)`, async (t) => {
      const body = Buffer.from(`${'a'.repeat(16 * MiB)}z`);
      const shared = new Int32Array(new SharedArrayBuffer(4));
      const blocked = gate<string>();
      const { port } = await bareServer(t, async (_, res) => {
        res.writeHead(200, { 'content-length': body.length }).end(body);
        if (late) await once(res, 'finish');
        await responseDone(res);
        blocked.open(Atomics.wait(shared, 0, 0, deadline));
      });
      const workerData = { port, head, length: body.length, shared, endOfFile };
      const worker = new Worker(CLIENT, { eval: true, execArgv: [], workerData });
      t.after(() => worker.terminate());
      assert.notEqual(await blocked, 'timed-out');
    });
  }
}

test('a socket has one `close` listener of ours for all its pipelined responses, and no warning comes (fact 7.14)',
  within, async (t) => {
    const warnings: string[] = [];
    const onWarning = ({ message }: Error): void => void warnings.push(message);
    process.on('warning', onWarning);
    t.after(() => process.off('warning', onWarning));
    const { client, responses, res: { req: { socket } }, fence } = await exchange(t, ...Array<string>(20).fill(GET));
    const before = socket.listenerCount('close');
    const done = responses.map(responseDone);
    assert.equal(socket.listenerCount('close'), before + 1);
    await fence();
    for (const res of responses) res.end('whole');
    await Promise.all(done);
    await client.until('whole', 20);
    assert.ok(socket.listenerCount('close') <= before + 1);
    assert.deepEqual(warnings, []);
  });

test('a kept connection gathers neither listeners nor promises (fact 7.14)', within, async (t) => {
  const listeners = new Set<number>();
  const { port } = await bareServer(t, async (req, res) => {
    const done = responseDone(res);
    listeners.add(req.socket.eventNames().reduce((sum, name) => sum + req.socket.listenerCount(name), 0));
    res.end('whole');
    await done;
  });
  using client = await rawClient(port);
  let served = 0;
  const promisesAfter = async (requests: number): Promise<number> => {
    for (let left = requests; left > 0; left -= 1) {
      client.send(GET);
      await client.until('whole', (served += 1));
    }
    return queryObjects(Promise, { format: 'count' }); // collects the garbage first
  };
  const before = await promisesAfter(10);
  const gathered = await promisesAfter(300) - before;
  assert.ok(gathered < 100, `${gathered} promises of 300 requests`);
  assert.equal(listeners.size, 1, `listeners of the socket: ${[...listeners]}`);
});

test('a kept connection holds no response that is out, not even its first one', within, async (t) => {
  const responses: WeakRef<ServerResponse>[] = [];
  const { port } = await bareServer(t, async (_, res) => {
    responses.push(new WeakRef(res));
    const done = responseDone(res);
    res.end('whole');
    await done;
  });
  using client = await rawClient(port);
  for (let served = 1; served <= 3; served += 1) {
    client.send(GET);
    await client.until('whole', served);
  }
  await otherQueues();
  queryObjects(Promise, { format: 'count' }); // collects the garbage first
  assert.deepEqual(responses.slice(0, 2).map((each) => each.deref()), [undefined, undefined]);
});

const SERVICE = `
import { createServer } from 'node:http';
import { BackgroundTasks, responseDone } from './background.ts';
let release = () => {};
const server = createServer(async (request, response) => {
  const tasks = new BackgroundTasks({ request });
  if (request.url === '/release') release();
  else {
    tasks.addTask(() => new Promise((resolve) => { release = resolve; console.log('the first task is held'); }));
    tasks.addTask(function failing() { throw new Error('boom'); });
    tasks.addTask(function hostile() { throw { get [Symbol.toStringTag]() { throw new Error('not even this'); } }; });
    tasks.addTask(console.log, 'the last task');
  }
  response.end('accepted');
  await responseDone(response);
  await tasks.run();
});
server.listen(0, '127.0.0.1', () => console.log('listening on http://127.0.0.1:' + server.address().port));
`;

for (const type of ['module', 'commonjs']) {
  test(`background.ts, copied alone into a "type": "${type}" service, runs its tasks after the response`, async (t) => {
    const folder = await mkdtemp(join(tmpdir(), 'background-'));
    t.after(() => rm(folder, { recursive: true, force: true }));
    await copyFile(join(root, 'background.ts'), join(folder, 'background.ts'));
    await writeFile(join(folder, 'service.ts'), SERVICE);
    await writeFile(join(folder, 'package.json'), JSON.stringify({ type }));
    await using service = child(['service.ts'], { cwd: folder });
    const url = await service.url();
    assert.equal(await (await fetch(url)).text(), 'accepted');
    await service.until('stdout', /the first task is held/);
    assert.doesNotMatch(service.stdout, /the last task/);
    assert.equal(await (await fetch(`${url}/release`)).text(), 'accepted');
    await service.until('stdout', /the last task/);
    assert.match(await service.until('stderr', /hostile/), /failing[^]*Error: boom\n +at [^]*hostile/);
  });
}

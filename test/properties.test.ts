/**
 * The queue against a model of it, over random programs: a failure shows the smallest program that differs.
 *
 *     SEED=7 PROGRAMS=100000 node --import tsx --test test/properties.test.ts
 */
import assert from 'node:assert/strict';
import { channel } from 'node:diagnostics_channel';
import type { IncomingMessage } from 'node:http';
import { type TestContext, test } from 'node:test';
import { inspect } from 'node:util';
import { BackgroundTasks, type BackgroundTasksOptions, type TaskInfo } from '../background.ts';
import { type Random, random } from './endurance/shared.ts';

const HOW_TO_BE_IN_TIME =
  'Add it in the handler, in a dependency before its `yield`, or in a task; a clean-up does its work itself.';

/** What shrinks is a number, a boolean or a list: towards 0, false and nothing. */
interface Program {
  readonly stop: boolean;
  /** Every task waits for a turn of the event loop, as it does where the tasks before it took long. */
  readonly busy: boolean;
  /** onTaskError: none, one that returns, one that takes a turn of the event loop, one that throws. */
  readonly reporter: number;
  /** What its first call does, its second one, and so on. */
  readonly reported: readonly Action[];
  readonly before: readonly Action[];
  readonly after: readonly Action[];
}
type Action =
  | { readonly add: Task }
  | { readonly discard: number }
  | { readonly look: number }
  | { readonly run: number };
interface Task {
  /** It returns, rejects or resolves at once, after a turn of the event loop, or is a thenable that is no promise. */
  readonly kind: number;
  readonly named: boolean;
  readonly fails: boolean;
  readonly body: readonly Action[];
}

function programOf({ below, chance }: Random, busy: boolean): Program {
  const task = (depth: number): Task => ({
    kind: below(4),
    named: chance(0.7),
    fails: chance(0.25),
    body: depth < 2 ? actions(3, depth + 1) : [],
  });
  const action = (depth: number): Action => {
    const roll = below(10);
    if (roll < 7) {
      return { add: task(depth) };
    }
    if (roll < 8) {
      return { discard: below(3) };
    }
    return roll < 9 ? { look: 0 } : { run: 0 };
  };
  const actions = (limit: number, depth: number): Action[] =>
    Array.from({ length: below(limit + 1) }, () => action(depth));
  return {
    stop: chance(0.3),
    busy,
    reporter: below(4),
    reported: actions(2, 1),
    before: actions(5, 0),
    after: actions(2, 2),
  };
}

const named = (n: number, task: Task): string => (task.named ? `t${n}` : '');
const listed = (tasks: readonly Pick<TaskInfo, 'name' | 'index'>[]): string =>
  tasks.map(({ name, index }) => `${index} ${name}`).join(', ');

/** The model: what the program does, one after another, told in lines. */
function expected({ stop, busy, reporter, reported, before, after }: Program): string[] {
  const log: string[] = [];
  const queue: { name: string; index: number; n: number; task: Task }[] = [];
  let [made, added, started, finished, failed, closed] = [0, 0, 0, 0, 0, ''];
  let isRunning = false;
  const discard = (reason: string): string => {
    const dropped = queue.splice(started);
    closed ||= `were discarded: ${reason}`;
    for (const { name, index } of dropped) {
      log.push(`dropped ${index} ${name}: ${reason}`);
    }
    return listed(dropped);
  };
  const act = (action: Action): unknown => {
    if ('look' in action) {
      return log.push(`unfinished: ${listed(queue.slice(finished))}`);
    }
    if ('run' in action) {
      return log.push('run() is the same');
    }
    if ('discard' in action) {
      return log.push(`discarded: ${discard(`reason ${action.discard}`)}`);
    }
    const index = added;
    made += 1;
    const n = made;
    const name = named(n, action.add) || `task ${index + 1} of POST /order`;
    if (closed) {
      return log.push(`Too late to add ${name}: this request's tasks ${closed}. ${HOW_TO_BE_IN_TIME}`);
    }
    added += 1;
    return queue.push({ name, index, n, task: action.add });
  };
  const fail = (what: string): void => {
    log.push(`error ${what}`);
    if (reporter > 0) {
      log.push(`onTaskError ${what}`);
      failed += 1;
      reported.slice(failed - 1, failed).forEach(act);
    }
    if (stop) {
      discard('a task failed');
    }
  };
  for (const action of before) {
    act(action);
    isRunning ||= 'run' in action;
    if (busy && isRunning && queue.length === 0) {
      closed ||= 'have finished'; // what has no task does not wait
    }
  }
  for (; started < queue.length; finished += 1) {
    const { name, index, n, task } = queue[started++]!;
    log.push(`start ${index} ${name}`, `${n} runs`);
    task.body.forEach(act);
    if (task.fails) {
      fail(`${index} ${name}: ${n} failed`);
    }
    log.push(`end ${index} ${name}`);
  }
  closed ||= 'have finished';
  log.push('run() resolves');
  after.forEach(act);
  return log;
}

const logs = new WeakMap<object, string[]>();
for (const event of ['start', 'end', 'error', 'dropped']) {
  channel(`background-tasks:${event}`).subscribe((message) => {
    const { request, index, name, error, reason } = message as TaskInfo & { error?: Error; reason?: string };
    const more = error?.message ?? reason;
    logs.get(request ?? {})?.push(`${event} ${index} ${name}${more === undefined ? '' : `: ${more}`}`);
  });
}

/** So that a defect in the queue, and not a rejection that nobody handles, is what fails. */
function handled<T extends Promise<unknown>>(promise: T): T {
  promise.catch(() => {});
  return promise;
}

/** It hangs if it takes more turns of the event loop than ten programs have tasks. */
async function outcomeOf(running: Promise<void>): Promise<string> {
  let outcome = '';
  running.then(
    () => {
      outcome = 'resolves';
    },
    () => {
      outcome = 'rejects';
    },
  );
  for (let turns = 0; !outcome && turns < 10_000; turns += 1) {
    await new Promise(setImmediate);
  }
  return outcome || 'hangs';
}

/** Does `work` as a task of `kind` does. */
function inKind(kind: number, work: () => void): unknown {
  if (kind === 1) {
    return handled((async () => work())());
  }
  if (kind === 2) {
    return handled(new Promise(setImmediate).then(work));
  }
  if (kind === 3) {
    return {
      then: (done: () => void, fail: (error: unknown) => void) => {
        try {
          work();
        } catch (error) {
          return fail(error);
        }
        done();
      },
    };
  }
  return work();
}

const likeness = (one: unknown, other: unknown): string => (one === other ? 'the same' : 'another');

/** Some promises later, in the same turn of the event loop. */
async function someMicrotasks(): Promise<void> {
  for (let left = 9; left > 0; left -= 1) {
    await undefined;
  }
}

const clock = { now: 0, step: 0 };

/** The same of the real one. */
async function observed(program: Program, Queue: typeof BackgroundTasks): Promise<string[]> {
  const log: string[] = [];
  const request = { method: 'POST', url: '/order?item=1' } as IncomingMessage;
  logs.set(request, log);
  clock.step = 10 * Number(program.busy);
  let [made, failed] = [0, 0];
  const report = ({ message }: Error, { index, name }: TaskInfo): void => {
    log.push(`onTaskError ${index} ${name}: ${message}`);
    failed += 1;
    program.reported.slice(failed - 1, failed).forEach(act);
  };
  const onTaskError = [
    undefined,
    report,
    async (error: Error, info: TaskInfo): Promise<void> => {
      await new Promise(setImmediate);
      report(error, info);
    },
    (error: Error, info: TaskInfo): never => {
      report(error, info);
      throw error;
    },
  ][program.reporter];
  const tasks = new Queue({
    request,
    afterFailure: program.stop ? 'stop' : 'continue',
    onTaskError: onTaskError as BackgroundTasksOptions['onTaskError'],
  });
  let running: Promise<void> | undefined;
  const act = (action: Action): unknown => {
    if (log.length > 1000) {
      return undefined; // more than any program of the model: a defect must not go on for ever
    }
    if ('look' in action) {
      return log.push(`unfinished: ${listed(tasks.unfinished)}`);
    }
    if ('run' in action) {
      running ??= handled(tasks.run());
      return log.push(`run() is ${likeness(running, handled(tasks.run()))}`);
    }
    if ('discard' in action) {
      return log.push(`discarded: ${listed(tasks.discard(`reason ${action.discard}`))}`);
    }
    const { add: task } = action;
    made += 1;
    const n = made;
    const fn = (...args: Parameters<typeof perform>): unknown => perform(...args);
    try {
      return tasks.addTask(Object.defineProperty(fn, 'name', { value: named(n, task) }), n, task);
    } catch (error) {
      return log.push((error as Error).message);
    }
  };
  const perform = (n: number, { kind, fails, body }: Task): unknown => {
    const work = (): void => {
      log.push(`${n} runs`);
      body.forEach(act);
      if (fails) {
        throw new Error(`${n} failed`);
      }
    };
    return inKind(kind, work);
  };
  for (const action of program.before) {
    act(action);
    if (program.busy) {
      await someMicrotasks();
    }
  }
  log.push(`run() ${await outcomeOf(running ?? tasks.run())}`);
  program.after.forEach(act);
  return log;
}

/** The next smaller values: an action less, a body behind its task, a number or a `true` less, at whatever depth. */
function* smaller<T>(value: T): Generator<T> {
  if (Array.isArray(value)) {
    yield* smallerLists(value) as Generator<T>;
  } else if (typeof value === 'object') {
    for (const [key, each] of Object.entries(value!)) {
      for (const less of smaller(each)) {
        yield { ...value, [key]: less };
      }
    }
  } else if (value) {
    yield (typeof value === 'number' ? value - 1 : false) as T;
  }
}

function* smallerLists(list: readonly unknown[]): Generator<unknown> {
  for (const at of list.keys()) {
    yield list.toSpliced(at, 1);
  }
  for (const [at, { add }] of (list as Partial<Record<'add', Task>>[]).entries()) {
    if (add && add.body.length > 0) {
      yield list.toSpliced(at, 1, { add: { ...add, body: [] } }, ...add.body);
    }
  }
  for (const [at, each] of list.entries()) {
    for (const less of smaller(each)) {
      yield list.with(at, less);
    }
  }
}

interface Difference {
  readonly program: Program;
  readonly actual: string[];
  readonly model: string[];
}

/** The first of the next smaller programs with which `compare` finds a difference, too. */
async function smallerOne(
  { ...program }: Program,
  compare: (program: Program) => Promise<Difference | undefined>,
): Promise<Difference | undefined> {
  for (const less of smaller(program)) {
    const found = await compare(less);
    if (found) {
      return found;
    }
  }
  return undefined;
}

/** The smallest program, of `count` and what they shrink to, with which `Queue` and the model differ. */
async function difference(
  { mock }: TestContext,
  seed: number,
  count: number,
  Queue = BackgroundTasks,
): Promise<Difference | undefined> {
  mock.method(console, 'error', () => {});
  mock.method(performance, 'now', () => {
    clock.now += clock.step;
    return clock.now;
  });
  const compare = async (program: Program): Promise<Difference | undefined> => {
    const [actual, model] = [await observed(program, Queue), expected(program)];
    return `${actual}` === `${model}` ? undefined : { program, actual, model };
  };
  const numbers = random(seed);
  let found: Difference | undefined;
  for (let made = 0, busy = false; !found && made < count; made += 10, busy = !busy) {
    const programs = Array.from({ length: 10 }, () => programOf(numbers, busy));
    found = (await Promise.all(programs.map(compare))).find((each) => each !== undefined); // at the same time
  }
  for (let next = found; next !== undefined; ) {
    found = next;
    next = await smallerOne(found.program, compare);
  }
  return found;
}

const seed = Number(process.env.SEED ?? 1);
const count = Number(process.env.PROGRAMS ?? 3000);

test(`the queue does what its model does, in ${count} random programs (seed ${seed})`, async (t) => {
  const found = await difference(t, seed, count);
  if (found) {
    assert.deepEqual(found.actual, found.model, `SEED=${seed}: ${inspect(found.program, { depth: null })}`);
  }
});

const add = (more: Partial<Task> = {}): Action => ({
  add: { kind: 0, named: false, fails: false, body: [], ...more },
});
const program = (...before: Action[]): Program => ({
  stop: false,
  busy: false,
  reporter: 0,
  reported: [],
  before,
  after: [],
});

class Forgetful extends BackgroundTasks {
  override discard(reason: string): readonly TaskInfo[] {
    return super.discard(reason).slice(1);
  }
}
class Deaf extends BackgroundTasks {
  override addTask: BackgroundTasks['addTask'] = (...args) => {
    try {
      super.addTask(...args);
    } catch (error) {
      if (!/have finished/.test(String(error))) {
        throw error;
      }
    }
  };
}
class Endless extends BackgroundTasks {
  override run(): Promise<void> {
    return super.run().then(() => new Promise(() => {}));
  }
}
const defects: [what: string, Queue: typeof BackgroundTasks, smallest: Program][] = [
  ['that does not say what it has dropped', Forgetful, program(add(), { discard: 0 })],
  ['that never ends', Endless, program()],
  ['that takes no task when it has finished, without a word', Deaf, { ...program(), after: [add()] }],
];
for (const [what, Queue, smallest] of defects) {
  test(`the smallest program is found for a queue ${what}`, async (t) => {
    assert.deepEqual((await difference(t, 1, 500, Queue))?.program, smallest);
  });
}

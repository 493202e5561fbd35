/**
 * What the worst tasks can do: `node --import tsx test/endurance/hostile-tasks.ts`. They throw, reject with and return
 * whatever there is, leave rejections behind, add 100,000 tasks, block the thread, never settle. Between them, in
 * the same queue, are tasks that count; beside them, requests of others.
 */
import { inspect } from 'node:util';
import { type BackgroundTasks, backgroundTasks, createApp, get, post, query } from '../../server.ts';
import {
  connect,
  each,
  endure,
  number,
  probe,
  type Random,
  type Run,
  requestOf,
  type Server,
  size,
  startServer,
} from './shared.ts';

const counts = { accepted: 0, finished: 0, reported: 0, added: 0, turns: 0, blocked: 0, late: 0 };
const notes: string[] = [];
const turn = (): Promise<void> => new Promise(setImmediate);
const trap = (): never => {
  throw new Error('a trap');
};
const traps: ProxyHandler<object> = {
  get: trap,
  has: trap,
  ownKeys: trap,
  getPrototypeOf: trap,
  set: trap,
  getOwnPropertyDescriptor: trap,
  defineProperty: trap,
  isExtensible: trap,
  deleteProperty: trap,
};
const revoked = Proxy.revocable({}, {});
revoked.revoke();
const cycle: { self?: unknown } = {};
cycle.self = cycle;
const endless = new Error('its own cause');
endless.cause = endless;
const hide = (name: string): object => Object.defineProperty(new Error('hidden'), name, { get: trap });

/** Everything that can be thrown, or nearly. */
const VALUES: readonly unknown[] = [
  undefined,
  null,
  0,
  -0,
  NaN,
  '',
  'text',
  '%s %o',
  true,
  false,
  1n,
  Symbol('a'),
  new Error('ordinary'),
  new Error(''),
  Object.freeze(new Error('frozen')),
  Object.create(null),
  {},
  [],
  cycle,
  endless,
  trap,
  class {},
  new Proxy({}, traps),
  new Proxy(trap, traps),
  new Proxy(new Error('behind'), traps),
  revoked.proxy,
  { [inspect.custom]: trap },
  { [inspect.custom]: () => revoked.proxy },
  { toString: trap, toJSON: trap },
  {
    get message() {
      return trap();
    },
    get stack() {
      return trap();
    },
  },
  { [Symbol.toPrimitive]: trap },
  hide('stack'),
  hide('message'),
  hide('name'),
  hide('cause'),
  {
    get [Symbol.toStringTag]() {
      return trap();
    },
  },
  new DOMException(),
  new AggregateError([revoked.proxy, null]),
  new Error('nul\0 \x1b[31m'),
  Buffer.alloc(1000),
  new Date(NaN),
  /a/,
  'x'.repeat(100_000),
  Object.assign(new Error('named'), { name: Symbol('a') }),
  new Map([[cycle, revoked.proxy]]),
];

/** An object that has this `then`: a thenable, where it is a function. */
const withThen = (then: PropertyDescriptor): object => Object.defineProperty({}, 'then', then);
type Settle = (value?: unknown) => void;
/** A thenable that rejects, when it is asked. */
const rejecting = (value: unknown): object =>
  withThen({ value: (_: Settle, reject: Settle) => reject(value) });
/** A thenable that resolves, when it is asked. */
const resolving = (value?: unknown): object => withThen({ value: (resolve: Settle) => resolve(value) });

/** Ways to fail with a value; each of them is to be reported once. */
const FAILURES: readonly ((value: unknown) => unknown)[] = [
  (value) => {
    throw value;
  },
  async (value) => {
    throw value;
  },
  async (value) => {
    await turn();
    throw value;
  },
  (value) => Promise.reject(value),
  rejecting,
  (value) =>
    withThen({
      get() {
        throw value;
      },
    }),
  (value) =>
    withThen({
      value() {
        throw value;
      },
    }),
  (value) =>
    withThen({
      value(_: Settle, reject: Settle) {
        reject(value);
        reject(1);
        throw value;
      },
    }),
  (value) => Object.defineProperty(() => {}, 'then', { value: (_: Settle, reject: Settle) => reject(value) }),
  (value) =>
    new Promise((resolve) => {
      resolve(rejecting(value));
    }),
  (value) => {
    throw rejecting(value);
  },
];
/** As a task these fail too, as their body never runs; a reporter that is one has only done nothing. */
const TASK_FAILURES: typeof FAILURES = [
  ...FAILURES,
  function* (value) {
    yield value;
  },
  async function* (value) {
    yield value;
  },
];
/** Ways to be strange with a value, and yet succeed; the first three leave a rejection behind. */
const ORPHANS = 3;
const SUCCESSES: readonly ((value: unknown) => unknown)[] = [
  (value) => {
    Promise.reject(value);
  },
  async (value) => {
    Promise.reject(value);
    await turn();
  },
  (value) => {
    setImmediate(async () => {
      throw value;
    });
  },
  (value) =>
    withThen({
      value(resolve: Settle, reject: Settle) {
        resolve();
        reject(value);
        throw value;
      },
    }),
  () => resolving(resolving()),
  () => withThen({ value: 1 }),
  () => withThen({ value: null }),
  () => withThen({ value: 'then' }),
];

/** Adds `work` between tasks that count: they have to run in order, whatever it does. */
function between(tasks: BackgroundTasks, work: () => unknown): void {
  let steps = 0;
  const step = (expected: number): void => {
    if (steps !== expected) {
      notes.push(`step ${expected} came after ${steps}`);
    }
    steps += 1;
  };
  counts.accepted += 1;
  tasks.addTask(step, 0);
  tasks.addTask(Object.defineProperty(work, 'name', { value: 'hostile' }));
  tasks.addTask(step, 1);
  tasks.addTask(async () => {
    step(2);
    tasks.addTask(() => {
      step(3);
      counts.finished += 1;
    });
  });
}

const way = query('way');
const value = query('value');
const numbers = { way, value, tasks: backgroundTasks };
const onTaskError = (error: unknown): unknown => {
  counts.reported += 1;
  const behaviour = FAILURES[counts.reported % FAILURES.length];
  return behaviour?.(error);
};
export default probe(
  createApp(
    [
      get('/alive', () => 'alive'),
      post('/fails', numbers, ({ way, value, tasks }) => {
        between(tasks, () => TASK_FAILURES[Number(way)]?.(VALUES[Number(value)]));
        return 'accepted';
      }),
      post('/succeeds', numbers, ({ way, value, tasks }) => {
        between(tasks, () => SUCCESSES[Number(way)]?.(VALUES[Number(value)]));
        return 'accepted';
      }),
      post('/adds', { value, tasks: backgroundTasks }, ({ value, tasks }) => {
        let next = 0;
        between(tasks, () => {
          for (let index = 0; index < Number(value); index += 1) {
            tasks.addTask(() => {
              if (next++ !== index) {
                notes.push(`added task ${index} came as ${next - 1}`);
              }
              counts.added += 1;
            });
          }
        });
        return 'accepted';
      }),
      post('/blocks', { value, tasks: backgroundTasks }, ({ value, tasks }) => {
        // An immediate that a task sets fires before the one after the next, as each has used the slice up.
        let fired = 0;
        for (let index = 0; index < 4; index += 1) {
          tasks.addTask(() => {
            if (fired < index - 1) {
              counts.late += 1;
            }
            setImmediate(() => {
              fired += 1;
            });
            for (const end = performance.now() + Number(value); performance.now() < end; ) {}
            counts.blocked += 1;
          });
        }
        return 'accepted';
      }),
      post('/hangs', { tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(function neverSettles() {
          return new Promise(() => {});
        });
        tasks.addTask(function neverStarts() {
          notes.push('a task started after one that never settled');
        });
        return 'accepted';
      }),
    ],
    process.env.OWN_REPORT ? { onTaskError, drainTimeoutMs: 2000 } : { drainTimeoutMs: 2000 },
  ),
  counts,
  notes,
);

/** Every way with every value. */
const combine = (path: string, ways: readonly unknown[]): string[] =>
  [...ways.keys()].flatMap((way) => [...VALUES.keys()].map((value) => `${path}?way=${way}&value=${value}`));

function shuffle<T>(list: T[], random: Random): void {
  for (let at = list.length - 1; at > 0; at -= 1) {
    const other = random.below(at + 1);
    [list[at], list[other]] = [list[other]!, list[at]!];
  }
}

/** Sends them over `width` connections; gives how many answers are not 200 "accepted". */
async function postAll(server: Server, list: readonly string[], width: number): Promise<number> {
  let wrong = 0;
  await each(width, width, async (place) => {
    const client = connect(server.port);
    for (let at = place; at < list.length; at += width) {
      client.send(requestOf('POST', list[at]!));
      const answer = await client.answer();
      if (answer?.status !== 200 || answer.body !== '"accepted"') {
        wrong += 1;
      }
    }
    client.socket.destroy();
  });
  return wrong;
}

/** Every way to fail, and every way to be strange and succeed, in a random order. */
async function allWays(
  { claim, random, stage }: Run,
  how: string,
  env: Record<string, string>,
): Promise<void> {
  stage(how);
  const rounds = size(1, 20);
  const failures = combine('/fails', TASK_FAILURES);
  const targets = Array.from({ length: rounds }, () => [
    ...failures,
    ...combine('/succeeds', SUCCESSES),
  ]).flat();
  shuffle(targets, random(0));
  const failing = failures.length * rounds;

  await using server = await startServer(import.meta.url, env);
  const wrong = await postAll(server, targets, 8);
  const end = await server.until(({ pending }) => pending === 0);
  const { finished = 0, reported = 0 } = end.counts;
  claim(wrong === 0, `whatever a task does, its client sees nothing of it, ${how}`, number(targets.length));
  claim(
    finished === targets.length && end.notes.length === 0,
    `the tasks after it run, in order, ${how}`,
    [`${number(finished)} of ${number(targets.length)} queues`, ...end.notes.slice(0, 3)].join('; '),
  );
  server.kill('SIGTERM');
  const { code } = await server.exited;
  claim(code === 0, 'after SIGTERM it exits with 0', `${code}`);
  const reports = server.stderr.split('Background task failed (hostile)').length - 1;
  claim(
    reports === failing && reported === (env.OWN_REPORT ? failing : 0),
    `each failure is reported once, ${how}`,
    `${number(reports)} of ${number(failing)} on stderr, ${number(reported)} to onTaskError`,
  );
  const orphans = server.stderr.split('Unhandled rejection:').length - 1;
  claim(
    orphans === ORPHANS * VALUES.length * rounds,
    'a rejection that is left behind is logged, and no more',
    number(orphans),
  );
}

/** Somebody else, who asks again and again until `stop()`. */
function otherClient(port: number): { answers(): number; isServed(): boolean; stop(): Promise<void> } {
  const client = connect(port);
  let answers = 0;
  let isOver = false;
  const ask = async (): Promise<void> => {
    while (!isOver) {
      client.send(requestOf('GET', '/alive'));
      if ((await client.answer())?.body !== '"alive"') {
        return;
      }
      answers += 1;
    }
  };
  const asking = ask();
  return {
    answers: () => answers,
    isServed: () => !client.socket.destroyed,
    async stop() {
      isOver = true;
      await asking;
      client.socket.destroy();
    },
  };
}

async function addMany({ claim, stage }: Run, server: Server): Promise<void> {
  stage('a task that adds 100,000');
  const many = size(3, 30);
  const targets = Array.from({ length: many }, () => '/adds?value=100000');
  const wrong = await postAll(server, targets, many);
  const { counts, notes } = await server.until(
    ({ pending, counts }) => pending <= 1 && counts.finished === many,
  );
  claim(
    wrong === 0 && counts.added === many * 100_000 && notes.length === 0,
    'a task adds 100,000: they run in order',
    `${number(counts.added ?? 0)} tasks of ${many} requests`,
  );
}

async function block({ claim, stage }: Run, server: Server): Promise<void> {
  stage('tasks that block');
  const blocking = size(4, 40);
  const targets = Array.from({ length: blocking }, () => '/blocks?value=100');
  const wrong = await postAll(server, targets, 4);
  const { counts } = await server.until(({ counts }) => counts.blocked === 4 * blocking);
  claim(
    wrong === 0 && counts.late === 0,
    'the loop has a turn after each task that blocks for 100 ms',
    `${counts.blocked} tasks`,
  );
}

/** Gives how many tasks never settle. */
async function hang({ claim, stage }: Run, server: Server): Promise<number> {
  stage('tasks that never settle');
  const hanging = size(20, 200);
  const targets = Array.from({ length: hanging }, () => '/hangs');
  const wrong = await postAll(server, targets, 4);
  const { pending } = await server.until(({ pending }) => pending <= hanging + 1); // and the other client's
  claim(
    wrong === 0 && pending >= hanging,
    'tasks that never settle hold only their own queue',
    `pending ${pending}`,
  );
  return hanging;
}

/** How many lines name this task at the end. */
const namedIn = (stderr: string, name: string): number =>
  stderr.split(`Unfinished at the end of drainTimeoutMs: ${name}\n`).length - 1;

await endure(import.meta.url, size(300_000, 1_800_000), async (run) => {
  await allWays(run, 'with the report on stderr', {});
  await allWays(run, 'with an onTaskError that fails too', { OWN_REPORT: '1' });

  const { claim } = run;
  await using server = await startServer(import.meta.url);
  const other = otherClient(server.port);
  await addMany(run, server);
  claim(
    other.answers() > 0 && other.isServed(),
    'others are served meanwhile',
    `${number(other.answers())} answers`,
  );
  await block(run, server);
  const hanging = await hang(run, server);
  await other.stop();
  const held = await server.until(({ pending, open }) => pending === hanging && open === 0);
  claim(held.pending === hanging && held.open === 0, 'nobody else is pending', `pending ${held.pending}`);
  server.kill('SIGTERM');
  const { code } = await server.exited;
  const [settle, start] = ['neverSettles', 'neverStarts'].map((name) => namedIn(server.stderr, name));
  claim(
    code === 1 && settle === hanging && start === hanging,
    'past the deadline exit 1, and they are named',
    `${code}, ${settle} and ${start} names`,
  );
});

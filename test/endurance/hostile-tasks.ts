/**
 * What the worst tasks can do: `node --import tsx test/endurance/hostile-tasks.ts`. They throw, reject with and return
 * whatever there is, leave rejections behind, add 100,000 tasks, block the thread, never settle. Between them, in
 * the same queue, are tasks that count; beside them, requests of others.
 */
import { inspect } from 'node:util';
import { type BackgroundTasks, backgroundTasks, createApp, get, post, query } from '../../server.ts';
import { connect, each, endure, number, probe, requestOf, type Server, size, startServer } from './shared.ts';

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

/** A thenable that rejects, when it is asked. */
const thenable = (value: unknown): object => ({ then: (_: Settle, reject: Settle) => reject(value) });
type Settle = (value?: unknown) => void;

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
  thenable,
  (value) => ({
    get then() {
      throw value;
    },
  }),
  (value) => ({
    then() {
      throw value;
    },
  }),
  (value) => ({
    then(_: Settle, reject: Settle) {
      reject(value);
      reject(1);
      throw value;
    },
  }),
  (value) => Object.assign(() => {}, thenable(value)),
  (value) =>
    new Promise((resolve) => {
      resolve(thenable(value));
    }),
  (value) => {
    throw thenable(value);
  },
];
/** Ways to be strange with a value, and yet succeed; the first three leave a rejection behind. */
const ORPHANS = 3;
const SUCCESSES: readonly ((value: unknown) => unknown)[] = [
  (value) => void Promise.reject(value),
  async (value) => {
    void Promise.reject(value);
    await turn();
  },
  (value) => {
    setImmediate(async () => {
      throw value;
    });
  },
  (value) => ({
    then(resolve: Settle, reject: Settle) {
      resolve();
      reject(value);
      throw value;
    },
  }),
  (value) => ({ value, then: (resolve: Settle) => resolve({ then: (resolve: Settle) => resolve() }) }),
  (value) => ({ then: value === trap ? 1 : value && typeof value === 'object' ? 0 : 'then' }),
  function* (value) {
    yield value;
  },
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
        between(tasks, () => FAILURES[Number(way)]?.(VALUES[Number(value)]));
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
        // 6: an immediate that a task sets fires before the one after the next, as each has used the slice up.
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

await endure(import.meta.url, size(300_000, 1_800_000), async ({ claim, random, stage }) => {
  const combine = (path: string, ways: readonly unknown[]): string[] =>
    [...ways.keys()].flatMap((way) => [...VALUES.keys()].map((value) => `${path}?way=${way}&value=${value}`));
  const all = combine('/fails', FAILURES);
  const strange = combine('/succeeds', SUCCESSES);
  const rounds = size(1, 20);
  const targets = Array.from({ length: rounds }, () => [...all, ...strange]).flat();
  const numbers = random(0);
  for (let at = targets.length - 1; at > 0; at -= 1) {
    // in a random order
    const other = numbers.below(at + 1);
    [targets[at], targets[other]] = [targets[other]!, targets[at]!];
  }
  const failing = all.length * rounds;

  /** Every answer has to be 200 "accepted". */
  async function post(server: Server, list: readonly string[], width: number): Promise<number> {
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

  for (const own of [false, true]) {
    const how = own ? 'with an onTaskError that fails too' : 'with the report on stderr';
    stage(how);
    await using server = await startServer(import.meta.url, own ? { OWN_REPORT: '1' } : {});
    const wrong = await post(server, targets, 8);
    const end = await server.until(({ pending }) => pending === 0);
    const { finished = 0, reported = 0 } = end.counts;
    claim(
      wrong === 0,
      `3 whatever a task does, its client sees nothing of it, ${how}`,
      number(targets.length),
    );
    claim(
      finished === targets.length && end.notes.length === 0,
      `2, 3 the tasks after it run, in order, ${how}`,
      [`${number(finished)} of ${number(targets.length)} queues`, ...end.notes.slice(0, 3)].join('; '),
    );
    server.kill('SIGTERM');
    const { code } = await server.exited;
    claim(code === 0, '7 after SIGTERM it exits with 0', `${code}`);
    const reports = server.stderr.split('Background task failed (hostile)').length - 1;
    claim(
      reports === failing && reported === (own ? failing : 0),
      `3 each failure is reported once, ${how}`,
      `${number(reports)} of ${number(failing)} on stderr, ${number(reported)} to onTaskError`,
    );
    const orphans = server.stderr.split('Unhandled rejection:').length - 1;
    claim(
      orphans === ORPHANS * VALUES.length * rounds,
      '3 a rejection that is left behind is logged, and no more',
      number(orphans),
    );
  }

  stage('a task that adds 100,000');
  await using server = await startServer(import.meta.url);
  const client = connect(server.port);
  let during = 0;
  let over = false;
  const others = (async () => {
    while (!over) {
      client.send(requestOf('GET', '/alive'));
      if ((await client.answer())?.body !== '"alive"') {
        break;
      }
      during += 1;
    }
  })();
  const many = size(3, 30);
  const wrong = await post(
    server,
    Array.from({ length: many }, () => '/adds?value=100000'),
    many,
  );
  const added = await server.until(({ pending, counts }) => pending <= 1 && counts.finished === many);
  claim(
    wrong === 0 && added.counts.added === many * 100_000 && added.notes.length === 0,
    '2 a task adds 100,000: they run in order',
    `${number(added.counts.added ?? 0)} tasks of ${many} requests`,
  );
  claim(during > 0 && !client.socket.destroyed, '6 others are served meanwhile', `${number(during)} answers`);

  stage('tasks that block');
  const blocking = size(4, 40);
  const wrongToo = await post(
    server,
    Array.from({ length: blocking }, () => '/blocks?value=100'),
    4,
  );
  const blocked = await server.until(({ counts }) => counts.blocked === 4 * blocking);
  claim(
    wrongToo === 0 && blocked.counts.late === 0,
    '6 the loop has a turn after each task that blocks for 100 ms',
    `${blocked.counts.blocked} tasks`,
  );

  stage('tasks that never settle');
  const hanging = size(20, 200);
  const wrongAgain = await post(
    server,
    Array.from({ length: hanging }, () => '/hangs'),
    4,
  );
  over = true;
  await others;
  client.socket.destroy();
  const held = await server.until(({ pending, open }) => pending === hanging && open === 0);
  claim(
    wrongAgain === 0 && held.pending === hanging,
    '3 tasks that never settle hold only their own queue',
    `pending ${held.pending}`,
  );
  server.kill('SIGTERM');
  const { code } = await server.exited;
  const [settle, start] = ['neverSettles', 'neverStarts'].map(
    (name) => server.stderr.split(`Unfinished at the end of drainTimeoutMs: ${name}\n`).length - 1,
  );
  claim(
    code === 1 && settle === hanging && start === hanging,
    '7 past the deadline exit 1, and they are named',
    `${code}, ${settle} and ${start} names`,
  );
});

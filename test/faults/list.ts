/**
 * The defects that the suite is known to find: each is the target of target.ts with something else in the place of what
 * is right. `fails` is what the suite finds, no more and no less.
 */
import { constants } from 'node:os';
import { Worker } from 'node:worker_threads';
import type { Plan } from '../../fixtures/conformance/callback.ts';
import {
  type Behaviour,
  isHTTPError,
  type Job,
  Queue,
  queueTasks,
  report,
  right,
  sockets,
  state,
  type Visit,
  visits,
} from './target.ts';

/** The target, as the environment variable FAULT chooses it. */
export interface Variant {
  readonly name: string;
  /** What it does, as a statement. */
  readonly statement: string;
  readonly change: Partial<Behaviour>;
}

export interface Fault extends Variant {
  /** The ids of the cases that fail. */
  readonly fails: readonly string[];
}

const ids = (list: string): string[] => list.trim().split(/\s+/);

/** Whether this is one of the suite's own requests, by which it shows that something is absent. */
const isFence = ({ plan }: Visit): boolean => plan.handler[0]?.id === 'fence';

/** Loses the tasks of each request that `isMeant` picks, when its handler has returned. */
const dropIf = (isMeant: (visit: Visit) => boolean): Partial<Behaviour> => ({
  async returned(visit) {
    if (isMeant(visit)) {
      visit.queue.drop();
    }
  },
});

/** Runs the tasks of each request that `isMeant` picks before its response. */
const awaitIf = (isMeant: (visit: Visit) => boolean): Partial<Behaviour> => ({
  async returned(visit) {
    if (isMeant(visit)) {
      await visit.queue.run();
    }
  },
});

/** Has the queue of a request changed before its first task. */
const rearrange = (change: (waiting: Job[]) => unknown): Partial<Behaviour> => ({
  runQueue(queue) {
    change(queue.waiting);
    return right.runQueue(queue);
  },
});

/** Holds a request until those of `before` have ended, their tasks too. */
const waitFor = (before: (visit: Visit) => readonly Visit[]): Partial<Behaviour> => ({
  async arrived(visit) {
    await Promise.all(before(visit).map(({ ended }) => ended));
  },
});

const earlier = (visit: Visit): Visit[] => [...visits].slice(0, [...visits].indexOf(visit));

/** Ends the process as an error that nobody catches does. */
const crash = (error: unknown): void =>
  queueMicrotask(() => {
    throw error;
  });

const dropAll = (): void => {
  for (const { queue } of visits) {
    queue.drop();
  }
};

/** Calls from a thread of its own, and does not wait for the answer; a failure is only written to stderr. */
function callAndForget({ callback }: Plan, name: string): void {
  const code = `
    const options = { method: 'POST', agent: false };
    const { workerData } = require('node:worker_threads');
    require('node:http').request(workerData, options, (response) => response.pipe(process.stderr)).end();`;
  new Worker(code, { eval: true, execArgv: [], workerData: `${callback}/${name}` }).on('error', report);
}

/** What some defects keep between two requests, or beside one. */
const lastTask = new WeakMap<Queue, Promise<void>>();
const places = new WeakMap<Queue, number>();
const ownQueues = new WeakMap<Visit, Queue>();
const queueOfConnection = new WeakMap<object, Queue>();
const running = new Set<Promise<void>>();
let line = Promise.resolve();
let latest: Visit | undefined;

/** The queue that a request has for its dependencies, beside that of the handler. */
function ownQueue(visit: Visit): Queue {
  const queue = ownQueues.get(visit) ?? new Queue();
  ownQueues.set(visit, queue);
  return queue;
}

const responseFirst: readonly Fault[] = [
  {
    name: 'eager',
    statement: 'a task starts when it is added',
    change: {
      add(job) {
        const before = lastTask.get(job.queue) ?? Promise.resolve();
        lastTask.set(
          job.queue,
          before.then(() => right.runTask(job)),
        );
      },
    },
    fails: ids(`
      1.1.1 1.1.2 1.2.1 1.3.2 1.4.2 2.1.2 2.2.2 3.2.3 3.3.2 3.4.2 4.3.1 4.3.2 4.3.3 4.3.4 7.1.1 7.1.2 7.1.3 7.1.4
      10.3.1 10.3.2`),
  },
  {
    name: 'eager-dependency',
    statement: 'the tasks of a dependency start when it has returned',
    change: {
      entered({ queue }) {
        if (queue.waiting.length > 0) {
          queue.run();
        }
      },
    },
    fails: ['1.1.2', '10.3.1'],
  },
  {
    name: 'awaits',
    statement: 'the tasks run before the response',
    change: awaitIf((visit) => !isFence(visit)),
    fails: ids(`
      1.1.1 1.1.2 1.2.1 1.3.1 1.3.2 1.3.3 1.3.4 1.3.5 1.4.1 1.4.2 2.1.1 2.1.2 2.1.3 2.2.1 2.2.2 2.3.1 2.3.2 2.4.1
      2.4.2 2.5.1 2.5.2 2.6.1 3.2.1 3.2.2 3.2.3 3.3.1 3.3.2 3.4.1 3.4.2 4.1.1 4.1.2 4.1.3 4.1.4 4.1.5 4.1.6 4.2.1
      4.4.3 4.4.4 4.4.5 4.5.1 4.7.1 5.1.1 5.1.2 5.2.1 5.3.1 5.4.1 7.1.1 7.1.2 7.1.3 7.1.4 7.2.1 7.3.1 7.3.2 7.4.1
      7.4.2 7.5.1 10.1.1 10.1.2 10.1.3 10.2.1 10.3.1 10.3.2`),
  },
  {
    name: 'leaks-error',
    statement: 'a 201, or a stream, waits for its tasks, and is 500 if one of them fails',
    change: {
      async returned({ plan, queue }) {
        if (plan.status !== 201 && !plan.stream) {
          return;
        }
        for (let job = queue.waiting.shift(); job; job = queue.waiting.shift()) {
          await right.work(job);
        }
      },
    },
    fails: ['1.2.1', '1.3.3', '3.1.1', '3.1.2', '3.1.3', '3.1.4', '4.1.1', '4.4.3', '4.5.1', '4.7.1'],
  },
  {
    name: 'awaits-where-large',
    statement: 'a response of 1 MiB waits for the tasks',
    change: awaitIf(({ plan }) => plan.size >= 2 ** 20),
    fails: ['1.3.4'],
  },
  {
    name: 'first-byte',
    statement: 'the tasks of a streamed response start with its first byte (starlette #3458)',
    change: {
      async *pieces(visit) {
        visit.queue.run();
        yield* right.pieces(visit);
      },
    },
    fails: ['1.2.1'],
  },
  {
    name: 'last-byte',
    statement: 'the last byte of a streamed response waits for the tasks',
    change: {
      async *pieces(visit) {
        yield* right.pieces(visit);
        await visit.queue.run();
      },
    },
    fails: ['1.2.1', '1.3.3'],
  },
  {
    name: 'end-of-file',
    statement: 'the end of file waits for the tasks',
    change: {
      async arrived({ socket, ended }) {
        const end = socket.destroySoon;
        socket.destroySoon = () => ended.then(() => end.call(socket));
      },
    },
    fails: ['1.4.1', '1.4.2', '5.4.1'],
  },
];

const inOrder: readonly Fault[] = [
  {
    name: 'parallel',
    statement: 'all tasks start at once, the last one first',
    change: {
      async runQueue(queue) {
        while (queue.waiting.length > 0) {
          await Promise.all(queue.waiting.splice(0).reverse().map(right.runTask));
        }
      },
    },
    fails: ids(`
      2.1.1 2.1.2 2.1.3 2.2.1 2.3.1 2.5.1 2.6.1 3.2.1 4.1.1 4.1.2 4.1.3 4.1.4 4.1.5 4.1.6 4.2.1 4.4.1 4.4.2 4.4.3
      10.1.1 10.1.2 10.2.1 10.3.1 10.3.2`),
  },
  {
    name: 'reversed',
    statement: 'the last task added runs first',
    change: rearrange((waiting) => waiting.reverse()),
    fails: ids(`
      2.1.1 2.1.2 2.1.3 2.2.1 2.2.2 2.3.1 2.4.1 2.4.2 2.5.1 2.6.1 3.1.3 3.2.1 3.2.2 3.2.3 4.1.1 4.1.2 4.1.3 4.1.4
      4.1.5 4.1.6 4.2.1 4.4.1 4.4.2 4.4.3 4.4.4 4.4.5 7.1.1 7.1.2 7.1.4 10.1.1 10.1.2 10.2.1 10.3.1 10.3.2`),
  },
  {
    name: 'twice',
    statement: 'each task runs, and then again',
    change: {
      async work(job) {
        await right.work(job);
        await right.work(job);
      },
    },
    fails: ids(`
      1.1.1 1.1.2 1.2.1 1.3.1 1.3.2 1.3.3 1.3.4 1.3.5 1.4.1 1.4.2 2.1.1 2.1.2 2.1.3 2.2.1 2.2.2 2.3.1 2.3.2 2.4.1
      2.4.2 2.5.1 2.5.2 2.6.1 3.1.3 3.2.1 3.2.2 3.2.3 4.1.1 4.1.2 4.1.3 4.1.4 4.1.5 4.1.6 4.2.1 4.4.1 4.4.2 4.4.3
      4.4.4 4.4.5 4.5.1 4.7.1 5.1.1 5.1.2 5.2.1 5.3.1 5.4.1 7.1.1 7.1.2 7.1.3 7.1.4 7.2.1 7.3.1 7.3.2 7.4.1 7.4.2
      10.1.1 10.1.2 10.1.3 10.2.1 10.3.1 10.3.2 10.4.1`),
  },
  {
    name: 'tries-again',
    statement: 'a task that has failed is tried again',
    change: {
      async failed(job, error) {
        await right.work(job).catch(report);
        report(error);
      },
    },
    fails: ids('2.4.2 3.2.1 3.2.2 3.2.3 3.3.1 3.3.2 3.4.1 3.4.2 5.3.1 7.1.4 10.5.1'),
  },
  {
    name: 'drops',
    statement: 'no task runs',
    change: dropIf((visit) => !isFence(visit)),
    fails: ids(`
      1.1.1 1.1.2 1.2.1 1.3.1 1.3.2 1.3.3 1.3.4 1.3.5 1.4.1 1.4.2 2.1.1 2.1.2 2.1.3 2.2.1 2.2.2 2.3.1 2.3.2 2.4.1
      2.4.2 2.5.1 2.5.2 2.6.1 3.1.1 3.1.2 3.1.3 3.1.4 3.2.1 3.2.2 3.2.3 3.3.1 3.3.2 3.4.1 3.4.2 4.1.1 4.1.2 4.1.3
      4.1.4 4.1.5 4.1.6 4.2.1 4.4.1 4.4.2 4.4.3 4.4.4 4.4.5 4.5.1 4.7.1 5.1.1 5.1.2 5.2.1 5.3.1 5.4.1 7.1.1 7.1.2
      7.1.3 7.1.4 7.2.1 7.3.1 7.3.2 7.4.1 7.4.2 7.5.1 10.1.1 10.1.2 10.1.3 10.2.1 10.3.1 10.3.2 10.4.1 10.5.1`),
  },
  {
    name: 'drops-last',
    statement: 'of several tasks the last one does not run',
    change: rearrange((waiting) => waiting.splice(Math.max(1, waiting.length - 1))),
    fails: ids(`
      2.1.1 2.1.2 2.1.3 2.2.1 2.2.2 2.3.1 2.4.1 2.4.2 2.5.1 2.6.1 3.1.3 3.2.1 3.2.2 3.2.3 4.1.1 4.1.2 4.1.3 4.1.4
      4.1.5 4.1.6 4.2.1 4.4.1 4.4.2 4.4.3 4.4.4 4.4.5 7.1.1 7.1.2 7.1.4 10.1.1 10.1.2 10.2.1 10.3.1 10.3.2`),
  },
  {
    name: 'room-for-ten',
    statement: 'a queue has room for ten tasks',
    change: rearrange((waiting) => waiting.splice(10)),
    fails: ['2.1.3'],
  },
  {
    name: 'blocking-last',
    statement: 'blocking tasks run after all others',
    change: rearrange((waiting) => waiting.sort((a, b) => a.task.kind.localeCompare(b.task.kind))),
    fails: ['2.1.2', '2.2.2', '3.2.3'],
  },
  {
    name: 'blocking-twice',
    statement: 'blocking tasks run twice',
    change: {
      async work(job) {
        await right.work(job);
        if (job.task.kind === 'sync') {
          await right.work(job);
        }
      },
    },
    fails: ['1.3.2', '1.4.2', '2.1.2', '2.2.2'],
  },
  {
    name: 'blocking-not-awaited',
    statement: 'a blocking task runs in a thread that nobody waits for',
    change: {
      async work(job) {
        if (job.task.kind === 'sync') {
          callAndForget(job.visit.plan, job.task.id);
        } else {
          await right.work(job);
        }
      },
    },
    fails: ['2.1.2', '2.2.2'],
  },
  {
    name: 'one-line',
    statement: 'the tasks of all requests wait in one line',
    change: {
      runQueue(queue) {
        line = line.then(() => right.runQueue(queue));
        return line;
      },
    },
    fails: ['2.2.1', '2.4.1', '2.4.2', '2.6.1', '4.4.3', '4.4.4', '4.4.5', '5.1.1', '5.1.2', '7.1.4'],
  },
  {
    name: 'failure-drops-others',
    statement: 'a failed task drops the tasks of every other request',
    change: {
      async failed(_job, error) {
        report(error);
        dropAll();
      },
    },
    fails: ['2.4.2', '3.2.1', '3.2.2', '3.2.3', '7.1.4'],
  },
  {
    name: 'four-at-a-time',
    statement: 'the tasks of at most four requests run at a time',
    change: {
      async runQueue(queue) {
        while (running.size >= 4) {
          await Promise.race(running);
        }
        const end = right.runQueue(queue).finally(() => running.delete(end));
        running.add(end);
        await end;
      },
    },
    fails: ['5.1.2'],
  },
  {
    name: 'loses-added',
    statement: 'a task that a running task adds is lost',
    change: {
      add(job) {
        if (!job.queue.isRunning) {
          right.add(job);
        }
      },
    },
    fails: ['2.5.1', '2.5.2', '7.1.3'],
  },
  {
    name: 'added-is-next',
    statement: 'a task that a running task adds is the next one',
    change: {
      add(job) {
        if (job.queue.isRunning) {
          job.queue.waiting.unshift(job);
        } else {
          right.add(job);
        }
      },
    },
    fails: ['2.5.1'],
  },
  {
    name: 'added-starts-at-once',
    statement: 'a task that a running task adds starts at once, and nobody waits for it',
    change: {
      add(job) {
        if (job.queue.isRunning) {
          right.runTask(job);
        } else {
          right.add(job);
        }
      },
    },
    fails: ['2.5.1', '7.1.3'],
  },
  {
    name: 'last-adds-too-late',
    statement: 'a task that the last one adds is lost',
    change: {
      add(job) {
        if (!job.queue.isRunning || job.queue.waiting.length > 0) {
          right.add(job);
        }
      },
    },
    fails: ['2.5.2', '7.1.3'],
  },
];

const errorsStayInside: readonly Fault[] = [
  {
    name: 'failure-stops',
    statement: 'a failed task drops those behind it, which are to run',
    change: {
      async failed({ queue }, error) {
        report(error);
        queue.drop();
      },
    },
    fails: ['3.2.1', '3.2.2', '3.2.3'],
  },
  {
    name: 'later-failure-stops',
    statement: 'a failed task drops those behind it, unless it is the first',
    change: {
      async runTask(job) {
        places.set(job.queue, (places.get(job.queue) ?? 0) + 1);
        await right.runTask(job);
      },
      async failed({ queue }, error) {
        report(error);
        if (places.get(queue) !== 1) {
          queue.drop();
        }
      },
    },
    fails: ['3.2.2'],
  },
  {
    name: 'failure-ends-all',
    statement: 'a failed task drops those behind it, and the clean-up does not run',
    change: {
      async failed(_job, error) {
        throw error;
      },
    },
    fails: ['3.2.1', '3.2.2', '3.2.3', '10.5.1'],
  },
  {
    name: 'crashes',
    statement: 'the error of a task ends the process',
    change: {
      async failed(_job, error) {
        crash(error);
      },
    },
    fails: ids('2.4.2 3.2.1 3.2.2 3.2.3 3.3.1 3.3.2 5.3.1 7.1.4 10.5.1'),
  },
  {
    name: 'blocking-crashes',
    statement: 'the error of a blocking task ends the process',
    change: {
      async failed({ task }, error) {
        report(error);
        if (task.kind === 'sync') {
          crash(error);
        }
      },
    },
    fails: ['3.2.3', '3.3.2'],
  },
  {
    name: 'failure-closes-connection',
    statement: 'a failed task closes the connection (uvicorn)',
    change: {
      async failed({ visit }, error) {
        report(error);
        visit.socket.destroy();
      },
    },
    fails: ['5.3.1'],
  },
  {
    name: 'not-reported',
    statement: 'a failure is not reported',
    change: { async failed() {} },
    fails: ['3.4.1', '3.4.2'],
  },
  {
    name: 'reported-without-message',
    statement: 'a failure is reported without its message',
    change: {
      async failed({ task }) {
        report(`${task.id} has failed.`);
      },
    },
    fails: ['3.4.1', '3.4.2'],
  },
  {
    name: 'blocking-not-reported',
    statement: 'the failure of a blocking task is not reported',
    change: {
      async failed({ task }, error) {
        if (task.kind !== 'sync') {
          report(error);
        }
      },
    },
    fails: ['3.4.2'],
  },
];

const whateverTheResponse: readonly Fault[] = [
  {
    name: 'drops-4xx-5xx',
    statement: 'a returned 4xx or 5xx drops the tasks',
    change: dropIf(({ plan }) => plan.status >= 400),
    fails: ['4.1.3', '4.1.4', '4.1.5', '4.1.6'],
  },
  {
    name: 'drops-5xx',
    statement: 'a returned 5xx drops the tasks',
    change: dropIf(({ plan }) => plan.status >= 500),
    fails: ['4.1.5', '4.1.6'],
  },
  {
    name: 'drops-not-200',
    statement: 'a status other than 200 drops the tasks',
    change: dropIf(({ plan }) => plan.status !== 200),
    fails: ids('3.1.1 3.1.2 3.1.3 4.1.1 4.1.2 4.1.3 4.1.4 4.1.5 4.1.6'),
  },
  {
    name: 'drops-without-body',
    statement: 'a response without a body drops the tasks',
    change: dropIf(({ plan }) => plan.size === 0),
    fails: ['2.3.2', '4.1.2'],
  },
  {
    name: 'drops-204',
    statement: 'a 204 drops the tasks',
    change: dropIf(({ plan }) => plan.status === 204),
    fails: ['4.1.2'],
  },
  {
    name: 'drops-head',
    statement: 'a HEAD drops the tasks',
    change: dropIf(({ request }) => request.method === 'HEAD'),
    fails: ['4.2.1'],
  },
  {
    name: 'drops-stream',
    statement: 'a streamed response drops the tasks',
    change: dropIf(({ plan }) => plan.stream),
    fails: ['1.2.1', '1.3.3', '3.1.4', '4.4.3', '4.5.1', '4.7.1'],
  },
  {
    name: 'throw-runs',
    statement: 'a throw runs the tasks, which are to be discarded',
    change: { async thrown() {} },
    fails: ['4.3.1', '4.3.2', '4.3.3', '4.3.4'],
  },
  {
    name: 'only-http-error-discards',
    statement: 'only an HTTP error discards the tasks',
    change: {
      async thrown({ queue }, error) {
        if (isHTTPError(error)) {
          queue.drop();
        }
      },
    },
    fails: ['4.3.2', '4.3.4'],
  },
  {
    name: 'only-ordinary-error-discards',
    statement: 'only an error that is no HTTP error discards the tasks',
    change: {
      async thrown({ queue }, error) {
        if (!isHTTPError(error)) {
          queue.drop();
        }
      },
    },
    fails: ['4.3.1', '4.3.3'],
  },
  {
    name: 'throwing-dependency-runs-first',
    statement: 'where a dependency throws, the tasks run before the error response',
    change: {
      async thrown({ queue, isEntered }) {
        if (!isEntered) {
          await queue.run();
        }
        queue.drop();
      },
    },
    fails: ['4.3.3', '4.3.4'],
  },
  {
    name: 'drops-where-client-left',
    statement: 'a client that leaves before the handler returns drops the tasks (starlette #1438)',
    change: dropIf(({ socket }) => socket.destroyed),
    fails: ['4.4.1', '4.4.2'],
  },
  {
    name: 'drops-where-client-leaves-stream',
    statement: 'a client that leaves while the response is sent drops the tasks',
    change: {
      async *pieces(visit) {
        for await (const piece of right.pieces(visit)) {
          if (visit.socket.destroyed) {
            visit.queue.drop();
          }
          yield piece;
        }
      },
    },
    fails: ['4.4.3'],
  },
  {
    name: 'reset-drops',
    statement: 'the reset of a kept connection drops the tasks that have not started',
    change: {
      async finish(visit) {
        visit.socket.once('close', (isReset) => {
          if (isReset) {
            visit.queue.drop();
          }
        });
        await right.finish(visit);
      },
    },
    fails: ['4.4.5'],
  },
  {
    name: 'never-returns-where-client-left',
    statement: 'a handler whose client has left never returns',
    change: {
      async returned({ socket }) {
        if (socket.destroyed) {
          await new Promise(() => {});
        }
      },
    },
    fails: ['4.4.1', '4.4.2'],
  },
  {
    name: 'broken-stream-drops',
    statement: 'a source that breaks drops the tasks, which are to run',
    change: {
      broken(visit) {
        visit.queue.drop();
        right.broken(visit);
      },
    },
    fails: ['4.5.1', '4.7.1'],
  },
  {
    name: 'broken-stream-holds',
    statement: 'a source that breaks holds the response, and its tasks, for ever',
    change: {
      broken(visit) {
        if (!visit.response.socket) {
          right.broken(visit);
        }
      },
    },
    fails: ['4.5.1'],
  },
  {
    name: 'broken-stream-behind-holds',
    statement: 'a source that breaks behind another response holds its tasks for ever',
    change: {
      broken(visit) {
        if (visit.response.socket) {
          right.broken(visit);
        }
      },
    },
    fails: ['4.7.1'],
  },
];

const freeConnection: readonly Fault[] = [
  {
    name: 'blocks-process',
    statement: 'a request waits for the tasks of all before it',
    change: waitFor(earlier),
    fails: ids(`
      1.1.1 1.1.2 1.2.1 2.2.1 2.4.1 2.4.2 2.6.1 4.4.1 4.4.2 4.4.3 4.4.4 4.4.5 4.7.1 5.1.1 5.1.2 5.2.1 5.4.1 7.1.4
      10.3.1 10.3.2`),
  },
  {
    name: 'blocks-connection',
    statement: 'a request waits for the tasks of those before it on its connection (starlette #2093)',
    change: waitFor((visit) => earlier(visit).filter(({ socket }) => socket === visit.socket)),
    fails: ['5.2.1', '5.4.1'],
  },
  {
    name: 'closes-connection',
    statement: 'every response closes its connection',
    change: {
      async arrived({ response }) {
        response.shouldKeepAlive = false;
      },
    },
    fails: ['5.2.1', '5.3.1', '5.4.1'],
  },
];

const theStop: readonly Fault[] = [
  {
    name: 'ends-at-once',
    statement: 'the process ends at the signal, with 0',
    change: { stop: async () => process.exit(0) },
    fails: ['7.1.1', '7.1.2', '7.1.3', '7.1.4', '7.2.1'],
  },
  {
    name: 'no-signal',
    statement: 'no signal is handled',
    change: { signals: [] },
    fails: ['7.1.1', '7.1.2', '7.1.3', '7.1.4', '7.2.1', '7.4.1', '7.4.2'],
  },
  {
    name: 'no-sigint',
    statement: 'SIGINT is not handled',
    change: { signals: ['SIGTERM'] },
    fails: ['7.1.2'],
  },
  {
    name: 'ignores-sigterm',
    statement: 'SIGTERM is ignored',
    change: {
      async stop(server, signal) {
        if (signal !== 'SIGTERM') {
          await right.stop(server, signal);
        }
      },
    },
    fails: ['7.1.1', '7.1.3', '7.1.4', '7.2.1', '7.3.1', '7.3.2', '7.4.1', '7.4.2'],
  },
  {
    name: 'stop-drops',
    statement: 'a stop drops the tasks that have not started',
    change: {
      stop(server, signal) {
        dropAll();
        return right.stop(server, signal);
      },
    },
    fails: ['7.1.1', '7.1.2', '7.1.3', '7.1.4', '7.2.1'],
  },
  {
    name: 'stop-loses-added',
    statement: 'a task that is added after the signal is lost',
    change: {
      add(job) {
        if (!state.isStopping) {
          right.add(job);
        }
      },
    },
    fails: ['7.1.3'],
  },
  {
    name: 'stop-fails',
    statement: 'a task that fails after the signal ends the process',
    change: {
      async failed(_job, error) {
        report(error);
        if (state.isStopping) {
          process.exit(1);
        }
      },
    },
    fails: ['7.1.4'],
  },
  {
    name: 'stop-cuts',
    statement: 'a stop cuts the responses that are in progress',
    change: {
      stop(server, signal) {
        for (const socket of sockets) {
          socket.destroy();
        }
        return right.stop(server, signal);
      },
    },
    fails: ['7.2.1'],
  },
  {
    name: 'idle-holds',
    statement: 'an idle connection holds the process',
    change: { endIdle() {} },
    fails: ['7.3.1', '7.3.2'],
  },
  {
    name: 'silent-holds',
    statement: 'a connection that has sent nothing holds the process (node #63452)',
    change: {
      endIdle(socket) {
        if (socket.bytesRead > 0) {
          right.endIdle(socket);
        }
      },
    },
    fails: ['7.3.2'],
  },
  {
    name: 'wrong-exit-code',
    statement: 'the exit code of a stop is that of the signal',
    change: { exitCode: (signal) => 128 + constants.signals[signal] },
    fails: ['7.4.1', '7.4.2'],
  },
  {
    name: 'ignores-second-signal',
    statement: 'the second signal is ignored',
    change: { stopAgain() {} },
    fails: ['7.5.1'],
  },
];

const sharedQueue: readonly Fault[] = [
  {
    name: 'dependency-lost',
    statement: 'the tasks of a dependency go to a queue of their own, which nobody runs',
    change: { queueOf: (visit, part) => (part === 'handler' ? visit.queue : ownQueue(visit)) },
    fails: ['1.1.2', '1.3.5', '10.1.1', '10.1.2', '10.1.3', '10.2.1', '10.3.1', '10.3.2'],
  },
  {
    name: 'dependency-after-handler',
    statement: 'the tasks of a dependency go to a queue of their own, which runs after that of the handler',
    change: {
      queueOf: (visit, part) => (part === 'handler' ? visit.queue : ownQueue(visit)),
      async thrown(visit) {
        visit.queue.drop();
        ownQueue(visit).drop();
      },
      async finish(visit) {
        await visit.queue.run();
        await ownQueue(visit).run();
        await right.cleanUp(visit);
      },
    },
    fails: ['10.1.1', '10.1.2', '10.2.1', '10.3.1', '10.3.2'],
  },
  {
    name: 'no-cache',
    statement: 'a dependency that is reached by two paths runs twice',
    change: { sub: (visit) => queueTasks(visit, 'sub') },
    fails: ['10.1.2', '10.2.1'],
  },
  {
    name: 'queue-of-open-request',
    statement: 'a request joins the queue of one that has no response yet',
    change: {
      async arrived(visit) {
        const open = isFence(visit) ? undefined : earlier(visit).find(({ isOut }) => !isOut);
        visit.queue = open?.queue ?? visit.queue;
      },
    },
    fails: ['10.3.1', '10.3.2'],
  },
  {
    name: 'queue-of-latest-request',
    statement: 'a task joins the queue of the latest request',
    change: {
      async arrived(visit) {
        latest = isFence(visit) ? latest : visit;
      },
      queueOf: (visit) => (isFence(visit) ? visit : (latest ?? visit)).queue,
    },
    fails: ['10.3.2'],
  },
  {
    name: 'queue-of-connection',
    statement: 'the requests of a connection have one queue',
    change: {
      async arrived(visit) {
        visit.queue = queueOfConnection.get(visit.socket) ?? visit.queue;
        queueOfConnection.set(visit.socket, visit.queue);
      },
    },
    fails: ['5.3.1'],
  },
];

const cleanUps: readonly Fault[] = [
  {
    name: 'cleans-up-first',
    statement: 'a dependency cleans up before the tasks (fastapi 0.106)',
    change: {
      async finish(visit) {
        await right.cleanUp(visit);
        await visit.queue.run();
      },
    },
    fails: ['10.4.1', '10.5.1'],
  },
  {
    name: 'cleans-up-before-response',
    statement: 'a dependency cleans up before the response',
    change: { returned: right.cleanUp },
    fails: ['10.4.1', '10.5.1'],
  },
  {
    name: 'no-clean-up',
    statement: 'no clean-up runs',
    change: { async cleanUp() {} },
    fails: ['10.4.1', '10.5.1', '10.6.1'],
  },
  {
    name: 'failure-skips-clean-up',
    statement: 'a failed task skips the clean-up',
    change: {
      async failed({ visit }, error) {
        report(error);
        visit.isEntered = false;
      },
    },
    fails: ['10.5.1'],
  },
  {
    name: 'throw-skips-clean-up',
    statement: 'a throw skips the clean-up',
    change: {
      async thrown(visit) {
        visit.queue.drop();
        visit.isEntered = false;
      },
    },
    fails: ['10.6.1'],
  },
];

const wronglyDeclared: readonly Fault[] = [
  {
    name: 'declares-stop',
    statement: "afterFailure is declared 'stop', and the tasks run",
    change: { declares: { afterFailure: 'stop' } },
    fails: ['3.2.1', '3.2.2', '3.2.3'],
  },
  {
    name: 'declares-run',
    statement: "onThrow is declared 'run', and the tasks are discarded",
    change: { declares: { onThrow: 'run' } },
    fails: ['4.3.1', '4.3.2', '4.3.3', '4.3.4'],
  },
  {
    name: 'declares-drop',
    statement: "brokenStream is declared 'drop', and the tasks run",
    change: { declares: { brokenStream: 'drop' } },
    fails: ['4.5.1'],
  },
  {
    name: 'declares-before',
    statement: "cleanUp is declared 'before', and comes after the tasks",
    change: { declares: { cleanUp: 'before' } },
    fails: ['10.4.1'],
  },
  {
    name: 'declares-parallel',
    statement: "concurrency is declared 'parallel', and the tasks run one by one",
    change: { declares: { concurrency: 'parallel' } },
    fails: ['2.6.1'],
  },
];

export const faults: readonly Fault[] = [
  ...responseFirst,
  ...inOrder,
  ...errorsStayInside,
  ...whateverTheResponse,
  ...freeConnection,
  ...theStop,
  ...sharedQueue,
  ...cleanUps,
  ...wronglyDeclared,
];

const changeOf = (fault: string): Partial<Behaviour> =>
  faults.find(({ name }) => name === fault)?.change ?? {};

/** No defects: what one of them does is right where it is declared. */
export const dialects: readonly Variant[] = [
  {
    name: 'stop',
    statement: 'a failed task drops those behind it, as it is declared',
    change: { ...changeOf('failure-stops'), declares: { afterFailure: 'stop' } },
  },
  {
    name: 'run',
    statement: 'a throw runs the tasks, as it is declared',
    change: { ...changeOf('throw-runs'), declares: { onThrow: 'run' } },
  },
  {
    name: 'drop',
    statement: 'a source that breaks drops the tasks, as it is declared',
    change: { ...changeOf('broken-stream-drops'), declares: { brokenStream: 'drop' } },
  },
  {
    name: 'before',
    statement: 'a dependency cleans up before the tasks, as it is declared',
    change: { ...changeOf('cleans-up-first'), declares: { cleanUp: 'before' } },
  },
  {
    name: 'parallel-declared',
    statement: 'all tasks start at once, as it is declared',
    change: { ...changeOf('parallel'), declares: { concurrency: 'parallel' } },
  },
];

import { AsyncResource } from 'node:async_hooks';
import { channel } from 'node:diagnostics_channel';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { performance } from 'node:perf_hooks'; // the global is an accessor: 0.05 µs

/**
 * What `onTaskError` and the subscribers of the `background-tasks:*` channels learn of a task: the function's name, or
 * `task 2 of POST /items` where it has none; the place in its queue, from 0; and the request that queued it.
 */
export type TaskInfo = { readonly name: string; readonly index: number; readonly request: IncomingMessage | undefined };
type Task = { index: number; fn: (...args: unknown[]) => unknown; args: unknown[]; scope: AsyncResource };

export interface BackgroundTasksOptions {
  /** The request that the tasks belong to; reports and channels name it. */
  readonly request?: IncomingMessage;
  /** After a failed task, run the rest (`'continue'`, the default) or drop it (`'stop'`, as Starlette does). */
  readonly afterFailure?: 'continue' | 'stop' | undefined;
  /** Called, and awaited, in place of the report on stderr. */
  readonly onTaskError?: ((error: unknown, task: TaskInfo) => unknown) | undefined;
}

/**
 * Functions to run after the response, one after another, in the order added; an error in one stays inside.
 * Source: the chapter's §1 to §5; FastAPI's class of the same name.
 *
 * ```ts
 * const tasks = new BackgroundTasks({ request: req });
 * tasks.addTask(sendEmail, 'user@example.com', { subject: 'Welcome' });
 * res.end('accepted');
 * await responseDone(res);
 * await tasks.run();
 * ```
 */
export class BackgroundTasks {
  readonly #options: BackgroundTasksOptions;
  readonly #tasks: Task[] = [];
  #started = 0;
  #finished = 0;
  #closed: string | undefined; // why no task is accepted any more
  #running: Promise<void> | undefined; // what run() returns
  #end: Promise<void> | undefined; // what #runInOrder() returns, which is called once

  constructor(options: BackgroundTasksOptions = {}) { this.#options = options; }

  /**
   * Queues `fn(...args)`, to be run in the async context of this call. A running task may add more: they join the end.
   * Two traps, an arrow function avoids both: a method loses its `this` (`addTask(() => mailer.send(to))`),
   * and of an overloaded function only the last overload is accepted.
   * @throws TypeError if `fn` is not a function; Error if the queue has finished or was discarded.
   */
  addTask<A extends unknown[]>(fn: (...args: A) => unknown, ...args: A): void {
    if (typeof fn !== 'function') throw new TypeError(`Expected a function, got ${typeof fn}. Pass it uncalled.`);
    const task = { index: this.#tasks.length, fn: fn as Task['fn'], args, scope: new AsyncResource('BackgroundTask') };
    if (!this.#closed) return void this.#tasks.push(task);
    throw new Error(`Too late to add ${this.#info(task).name}: this request's tasks ${this.#closed}. Add it earlier.`);
  }

  /** Runs the queue. Called again, by a task too, it returns the same promise. It never rejects: see `onTaskError`. */
  run(): Promise<void> { return (this.#running ??= Promise.resolve().then(() => (this.#end ??= this.#runInOrder()))); }

  /**
   * Runs the queue, for a server that adds no more: the first task before this returns. Without the promise of `run()`
   * it takes 0.15 µs less. Calls `then` at the end, which must not throw. @internal
   */
  start(then: () => void): void { void (this.#running?.then(then) ?? (this.#end = this.#runInOrder(then))); }

  /** The tasks that are running or have not started. */
  get unfinished(): readonly TaskInfo[] { return this.#tasks.slice(this.#finished).map((task) => this.#info(task)); }

  /** Closes the queue: what has not started never will. Returns that; `:dropped` publishes each with the `reason`. */
  discard(reason: string): readonly TaskInfo[] {
    const dropped = this.#tasks.splice(this.#started).map((task) => this.#info(task));
    this.#closed ??= `were discarded: ${reason}`;
    for (const info of dropped) channels.dropped.publish({ ...info, reason });
    return dropped;
  }

  async #runInOrder(then?: () => void): Promise<void> {
    while (this.#started < this.#tasks.length) { // 2: what a task adds is met at the end
      if (performance.now() >= sliceEnd) await nextSlice();
      if (this.#closed) break;
      const task = this.#tasks[this.#started++]!; // not `for of`: 0.03 µs
      if (channels.start.hasSubscribers) task.scope.runInAsyncScope(() => channels.start.publish(this.#info(task)));
      try {
        const result = task.scope.runInAsyncScope(task.fn, undefined, ...task.args);
        if (isThenable(result)) await task.scope.runInAsyncScope(Promise.resolve, Promise, result);
      } catch (error) { await task.scope.runInAsyncScope(this.#fail, this, task, error); }
      if (channels.end.hasSubscribers) task.scope.runInAsyncScope(() => channels.end.publish(this.#info(task)));
      this.#finished += 1;
    }
    this.#closed ??= 'have finished';
    then?.();
  }

  async #fail(task: Task, error: unknown, info = this.#info(task)): Promise<void> {
    const { afterFailure, onTaskError = () => report(`Background task failed (${info.name}):`, error) } = this.#options;
    channels.error.publish({ ...info, error });
    await (async () => onTaskError(error, info))().catch((reporterError: unknown) =>
      report(`Background task failed (${info.name}), and so did onTaskError:`, error, reporterError));
    if (afterFailure === 'stop') for (const { name } of this.discard('a task failed')) report(`Dropped task ${name}`);
  }

  /** Made when it is asked for: to read a function's name takes 0.05 µs, and its getter may throw. */
  #info({ index, fn }: Task, { request } = this.#options): TaskInfo {
    const place = `task ${index + 1}${request ? ` of ${request.method} ${request.url?.split('?')[0]}` : ''}`;
    try { return { name: `${fn.name || place}`, index, request }; } catch { return { name: place, index, request }; }
  }
}

/** 7.8: what is awaited, in the context of its task as it may be lazy. To await any value costs 0.1 µs. @internal */
export const isThenable = (value: any): value is PromiseLike<unknown> => typeof value?.then === 'function';

/** Writes to stderr whatever was thrown: its own `inspect`, `toString` or getters may throw too (7.19). @internal */
export function report(message: string, ...thrown: unknown[]): void {
  try { console.error('%s', message, ...thrown); } catch { console.error('%s (it cannot be printed)', message); }
}

const channels = { start: channel('background-tasks:start'), end: channel('background-tasks:end'),
  error: channel('background-tasks:error'), dropped: channel('background-tasks:dropped') };

let [turn, sliceEnd] = [Promise.resolve(), 0];
const begin = async (): Promise<void> => { await new Promise(setImmediate); sliceEnd = performance.now() + 10; };

/** 6: the tasks of all requests share 10 ms; then the event loop has a turn, and the queues go on as they came. */
const nextSlice = (): Promise<void> => (turn = turn.then(() => (performance.now() < sliceEnd ? undefined : begin())));

const waiting = new WeakMap<IncomingMessage['socket'], (() => void)[]>();
const sent: (() => void)[] = [];

/** 7.2, 7.14: one listener for all responses of all connections: a closure would take 0.1 KB of an idle one. */
function tell(this: IncomingMessage['socket']): void { [...waiting.get(this)!].forEach((gone) => gone()); }

/** A response that was destroyed behind another: Node documents that this ends the socket; from 24 on it does not. */
function heed(this: ServerResponse): void { if (this.destroyed) this.req.socket.destroy(this.errored ?? undefined); }

/**
 * Resolves when `res` is out: its last byte was handed to the operating system, or the client is gone. A task that then
 * blocks the thread delays neither the response nor its end of file. May be called at any time, also late. A client may
 * leave before the handler ends: await the handler first, then this. A response that is destroyed while it waits behind
 * another ends the connection in its turn, and counts as out then. Source: clause 1.1.
 */
export const responseDone = (res: ServerResponse): Promise<void> => new Promise((resolve) => whenDone(res, resolve));

/**
 * Calls `then`, once, when `res` is out: without the promise of {@link responseDone}, in 0.1 µs less. The async context
 * may be that of another request. `then` must not throw: that would lose the others of its turn. @internal
 */
export function whenDone(res: ServerResponse, then: () => void): void {
  const open = waiting.get(res.req.socket) ?? waiting.set(res.req.socket.on('close', tell), []).get(res.req.socket)!;
  const done = (): void => {
    const at = open.indexOf(done);
    if (at < 0) return; // both 'close' and 'finish' came
    open[at] = open.at(-1)!; // a Set's old tables keep young garbage alive: 1 µs a request; splice() takes 0.04
    open.pop();
    // 7.3: Node ends the connection after the 'finish' listeners. One immediate for all of a turn saves 0.1 µs each.
    if (sent.push(then) === 1) setImmediate(() => sent.splice(0).forEach((f) => f()));
  };
  open.push(done);
  if (res.writableFinished || res.req.socket.destroyed) return done(); // 7.1: no 'finish' will come
  if (res.on('finish', done).socket) heed.call(res); else res.once('socket', heed);
}

/**
 * FastAPI's `BackgroundTasks` for Node: functions that run after the response, one after another, and
 * {@link responseDone}, which tells when they may. This file imports nothing but Node: copy it alone into any
 * service.
 */
import { AsyncResource } from 'node:async_hooks';
import { type Channel, channel } from 'node:diagnostics_channel';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Http2ServerResponse } from 'node:http2';
import { performance } from 'node:perf_hooks'; // the global of this name is an accessor, and slower
import type { Duplex } from 'node:stream';
import { types } from 'node:util';

/** What `onTaskError` and the subscribers of the `background-tasks:*` channels learn of a task. */
export interface TaskInfo {
  /** The function's name, or `task 2 of POST /items` where it has none. */
  readonly name: string;
  /** The place in its queue, from 0. */
  readonly index: number;
  /** The request that queued it. */
  readonly request: IncomingMessage | undefined;
}

export interface BackgroundTasksOptions {
  /** The request that the tasks belong to; reports and channels name it. */
  readonly request?: IncomingMessage | undefined;
  /**
   * After a failed task, run the rest (`'continue'`, the default) or drop it (`'stop'`, as Starlette does).
   */
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
  readonly #waiting = new TaskList();
  #added = 0;
  #current: Task | undefined;
  /** Why no task is accepted any more. */
  #closed: string | undefined;
  #end: Promise<void> | undefined;

  constructor(options: BackgroundTasksOptions = {}) {
    this.#options = options;
    if (options.request) {
      rememberConnection(options.request);
    }
  }

  /**
   * Queues `fn(...args)`, to be run in the async context of this call. A running task may add more: they join
   * the end. Two traps, an arrow function avoids both: a method loses its `this`
   * (`addTask(() => mailer.send(to))`), and of an overloaded function only the last overload is accepted.
   * @throws TypeError if `fn` is not a function; Error if the queue has finished or was discarded.
   */
  addTask<A extends unknown[]>(fn: (...args: A) => unknown, ...args: A): void {
    if (typeof fn !== 'function') {
      throw new TypeError(`Expected a function, got ${typeof fn}. Pass it uncalled.`);
    }
    const task = new Task(fn as TaskFunction, args, this.#added);
    if (this.#closed) {
      const { name } = task.info(this.#options.request);
      throw new Error(`Too late to add ${name}: this request's tasks ${this.#closed}. ${HOW_TO_BE_IN_TIME}`);
    }
    this.#added += 1;
    this.#waiting.add(task);
  }

  /**
   * Runs the queue; no task starts before this has returned. Called again, by a task too, it returns the same
   * promise. It never rejects: see `onTaskError`.
   */
  run(): Promise<void> {
    this.#end ??= this.#runInOrder();
    return this.#end;
  }

  /** The tasks that are running or have not started. */
  get unfinished(): readonly TaskInfo[] {
    const tasks = this.#current ? [this.#current, ...this.#waiting] : [...this.#waiting];
    return tasks.map((task) => task.info(this.#options.request));
  }

  /**
   * Closes the queue: what has not started never will. Returns that; `:dropped` publishes each with the
   * `reason`.
   */
  discard(reason: string): readonly TaskInfo[] {
    const dropped = [...this.#waiting].map((task) => task.info(this.#options.request));
    this.#waiting.clear();
    this.#closed ??= `were discarded: ${reason}`;
    for (const info of dropped) {
      channels.dropped.publish({ ...info, reason });
    }
    return dropped;
  }

  async #runInOrder(): Promise<void> {
    await undefined; // run() has returned, and a first task that calls it gets this promise
    while (!this.#waiting.isEmpty) {
      if (performance.now() >= sliceEnd) {
        await nextSlice();
      }
      const task = this.#waiting.take();
      if (!task) {
        break; // discarded meanwhile
      }
      this.#current = task;
      this.#tell(channels.start, task);
      try {
        const result = task.call();
        if (result !== undefined) {
          await task.settle(result);
        }
      } catch (error) {
        await task.context.runInAsyncScope(this.#fail, this, task, error);
      }
      this.#tell(channels.end, task);
      this.#current = undefined;
    }
    this.#closed ??= 'have finished';
  }

  async #fail(task: Task, error: unknown): Promise<void> {
    const { request, afterFailure, onTaskError } = this.#options;
    const info = task.info(request);
    channels.error.publish({ ...info, error });
    if (onTaskError) {
      try {
        await onTaskError(error, info);
      } catch (reporterError) {
        report(`Background task failed (${info.name}), and so did onTaskError:`, error, reporterError);
      }
    } else {
      report(`Background task failed (${info.name}):`, error);
    }
    if (afterFailure === 'stop') {
      for (const { name } of this.discard('a task failed')) {
        report(`Dropped task ${name}`);
      }
    }
  }

  /** Publishes what happens to `task` in its own context; without a subscriber, nothing is made for it. */
  #tell(event: Channel, task: Task): void {
    if (event.hasSubscribers) {
      task.context.runInAsyncScope(() => event.publish(task.info(this.#options.request)));
    }
  }
}

const HOW_TO_BE_IN_TIME =
  'Add it in the handler, in a dependency before its `yield`, or in a task; a clean-up does its work itself.';

const channels = {
  start: channel('background-tasks:start'),
  end: channel('background-tasks:end'),
  error: channel('background-tasks:error'),
  dropped: channel('background-tasks:dropped'),
};

type TaskFunction = (...args: unknown[]) => unknown;

/** A queued call, and the async context of its `addTask`. */
class Task {
  readonly #fn: TaskFunction;
  readonly #args: unknown[];
  readonly #index: number;
  /** Does what `AsyncLocalStorage.snapshot()` does, which takes 8 to 19 µs on Node 20, in 0.05 µs. */
  readonly context = new AsyncResource('BackgroundTask');
  /** The one behind it in its {@link TaskList}. */
  next: Task | undefined;

  constructor(fn: TaskFunction, args: unknown[], index: number) {
    this.#fn = fn;
    this.#args = args;
    this.#index = index;
  }

  call(): unknown {
    return this.context.runInAsyncScope(this.#fn, undefined, ...this.#args);
  }

  /**
   * Waits for what the function has returned: in the task's context, as a thenable may begin its work only
   * then.
   */
  async settle(result: unknown): Promise<void> {
    if (types.isGeneratorObject(result)) {
      throw new TypeError(
        'Expected a task that runs when it is called, got a generator: its body never ran.',
      );
    }
    if (isThenable(result)) {
      await this.context.runInAsyncScope(() => Promise.resolve(result));
    }
  }

  /** Made when it is asked for: a name's getter may throw, and to read it takes 0.05 µs. */
  info(request: IncomingMessage | undefined): TaskInfo {
    const place = request
      ? `task ${this.#index + 1} of ${describeRequest(request)}`
      : `task ${this.#index + 1}`;
    try {
      return { name: `${this.#fn.name || place}`, index: this.#index, request };
    } catch {
      return { name: place, index: this.#index, request };
    }
  }
}

/**
 * Tasks in the order added. A linked list lets go of each one that is taken; an array's `shift()` copies the
 * rest.
 */
class TaskList {
  #first: Task | undefined;
  #last: Task | undefined;

  get isEmpty(): boolean {
    return this.#first === undefined;
  }

  add(task: Task): void {
    if (this.#last) {
      this.#last.next = task;
    } else {
      this.#first = task;
    }
    this.#last = task;
  }

  take(): Task | undefined {
    const task = this.#first;
    this.#first = task?.next;
    if (!this.#first) {
      this.#last = undefined;
    }
    if (task) {
      task.next = undefined;
    }
    return task;
  }

  clear(): void {
    this.#first = undefined;
    this.#last = undefined;
  }

  *[Symbol.iterator](): Generator<Task> {
    for (let task = this.#first; task; task = task.next) {
      yield task;
    }
  }
}

/** Whether `value` is awaited. To await any value would cost 0.1 µs. @internal */
export function isThenable(value: unknown): value is PromiseLike<unknown> {
  return typeof (value as PromiseLike<unknown> | null | undefined)?.then === 'function';
}

/** Writes to stderr whatever was thrown: its own `inspect`, `toString` or getters may throw too. @internal */
export function report(message: string, ...thrown: unknown[]): void {
  try {
    console.error('%s', message, ...thrown);
  } catch {
    console.error('%s (it cannot be printed)', message);
  }
}

/** `POST /items`: without the query, which may hold what is nobody's business. @internal */
export function describeRequest({ method, url }: Pick<IncomingMessage, 'method' | 'url'>): string {
  return `${method} ${url?.split('?', 1)[0]}`;
}

// Sharing the thread

const SLICE_MS = 10;
/** Until when the tasks of all requests together may hold the thread; `performance.now()` counts so. */
let sliceEnd = 0;
let lastSlice: Promise<void> = Promise.resolve();

/** The event loop has a turn before this resolves; the queues go on in the order in which they came. */
function nextSlice(): Promise<void> {
  lastSlice = lastSlice.then(beginSlice);
  return lastSlice;
}

async function beginSlice(): Promise<void> {
  if (performance.now() < sliceEnd) {
    return; // the queue before this one has waited for the turn, and left time
  }
  await new Promise(setImmediate);
  sliceEnd = performance.now() + SLICE_MS;
}

// When a response is out

/** A response of `node:http`, of HTTP/2's compatibility API, or one that is made to look like them. */
type AnyResponse = ServerResponse | Http2ServerResponse;

const donePromises = new WeakMap<AnyResponse, Promise<void>>();

/**
 * Resolves when `res` is out: its last byte was handed to the operating system, or the client is gone. Never
 * rejects. A task that then blocks the thread delays neither the response nor its end of file. May be called
 * at any time, also late, and as often as you like. A client may leave before the handler ends: await the
 * handler first, then this.
 *
 * A response that is destroyed while it waits behind another ends the connection in its turn, and counts as
 * out then. One trap: a request that is destroyed early (`pipeline(req, …)` failed, a `for await` over it was
 * left) has no socket any more. If its response waits behind another of its connection, Node 20 and 22 tell
 * nobody that the client has left: `new BackgroundTasks({ request })`, made when the request arrives,
 * remembers the connection.
 * Source: clause 1.1 of fixtures/conformance/README.md.
 *
 * ```ts
 * res.end('accepted');
 * await responseDone(res);
 * ```
 */
export function responseDone(res: AnyResponse): Promise<void> {
  let done = donePromises.get(res);
  if (!done) {
    done = new Promise((resolve) => whenOut(res, connectionOf(res), () => resolve()));
    donePromises.set(res, done);
  }
  return done;
}

/**
 * Calls `then` once, when `response` is out, with whether the client was gone before: {@link responseDone}
 * without its promise, and with the connection that the caller remembers. `then` may run in another request's
 * async context, and must not throw, as others wait behind it. @internal
 */
export function whenOut(
  response: AnyResponse,
  connection: Duplex | undefined,
  then: (isClientGone: boolean) => void,
): void {
  let isOut = false;
  const waiting = connection && Waiting.on(connection);
  const done = (): void => {
    if (isOut) {
      return;
    }
    isOut = true;
    const isClientGone = connection?.destroyed === true;
    waiting?.remove(done);
    // Node ends a connection after the listeners of 'finish': a task that blocks must not come before that.
    callAfterThisTurn(() => then(isClientGone));
  };
  waiting?.add(done);
  if (response.writableFinished || connection?.destroyed) {
    done(); // no event will come any more
    return;
  }
  response.on('finish', done);
  if (connection && response.socket === connection) {
    endIfDestroyed(response, connection);
  } else if (connection && response.socket === null) {
    response.once('socket', () => endIfDestroyed(response, connection)); // it waits behind another
  } else if ((response as ServerResponse).closed) {
    done();
  } else {
    response.on('close', done); // its end is not that of a connection
  }
}

/**
 * A response that was destroyed while it waited behind another: Node documents that this ends the connection
 * in its turn. From 24 on Node does not, and emits 'close' before that turn, while what was written is sent
 * all the same.
 */
function endIfDestroyed(response: AnyResponse, connection: Duplex): void {
  if (response.destroyed) {
    connection.destroy(response.errored ?? undefined);
  }
}

/**
 * The calls that wait for the responses of one connection. The last one fills the gap of one that is removed:
 * a Set's old tables keep young garbage alive, which costs 0.5 µs a request. One listener a connection: with
 * one a request, pipelined requests are over the limit of listeners.
 */
class Waiting {
  static readonly #all = new WeakMap<Duplex, Waiting>();
  readonly #calls: (() => void)[] = [];

  static on(connection: Duplex): Waiting {
    let waiting = Waiting.#all.get(connection);
    if (!waiting) {
      waiting = new Waiting();
      Waiting.#all.set(connection, waiting);
      connection.on?.('close', () => Waiting.#all.get(connection)?.callAll());
    }
    return waiting;
  }

  add(call: () => void): void {
    this.#calls.push(call);
  }

  remove(call: () => void): void {
    const last = this.#calls.pop();
    const place = last === call ? -1 : this.#calls.indexOf(call);
    if (last && place >= 0) {
      this.#calls[place] = last;
    }
  }

  callAll(): void {
    for (const call of [...this.#calls]) {
      call();
    }
  }
}

let callsAfterThisTurn: (() => void)[] = [];

/** One immediate for all the responses that are out in a turn: 0.1 µs less for each. */
function callAfterThisTurn(call: () => void): void {
  callsAfterThisTurn.push(call);
  if (callsAfterThisTurn.length === 1) {
    setImmediate(callAll);
  }
}

function callAll(): void {
  const calls = callsAfterThisTurn;
  callsAfterThisTurn = [];
  for (const call of calls) {
    call();
  }
}

/** Where a request keeps its connection: in a WeakMap it would cost 0.2 µs. */
const CONNECTION = Symbol('connection');
type Remembering = IncomingMessage & { [CONNECTION]?: Duplex };

/** Called when a request arrives: one that is destroyed before its end has no socket any more. */
function rememberConnection(request: Remembering): void {
  request[CONNECTION] = request.socket;
}

/**
 * The connection of a response, also where the request has lost it; one that is injected may have none.
 * @internal
 */
export function connectionOf(response: AnyResponse): Duplex | undefined {
  const request = response.req as Remembering | undefined;
  return request?.[CONNECTION] ?? request?.socket ?? response.socket ?? undefined;
}

/**
 * A small target of the contract in fixtures/conformance/README.md, on plain `node:http`, with no code of the product.
 * It does everything right, and passes every case. Whatever can be done wrong is a member of {@link right}; a defect
 * of list.ts puts another in its place. Read `live` first: it is the whole path of a request.
 */
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import http, { type IncomingMessage, type ServerResponse } from 'node:http';
import net, { type AddressInfo, type Socket } from 'node:net';
import { constants } from 'node:os';
import { call, callSync, checkpoint, type Plan, type Task } from '../../fixtures/conformance/callback.ts';

/** A task in its queue, and the request that has added it. */
export interface Job {
  readonly visit: Visit;
  readonly queue: Queue;
  readonly task: Task;
}

/** The tasks of a request. */
export class Queue {
  /** Added, and not started. */
  readonly waiting: Job[] = [];
  /** True from the start of the first task on. */
  isRunning = false;
  isClosed = false;
  #end: Promise<void> | undefined;

  /** Runs the tasks; called again, it gives the same promise. */
  run(): Promise<void> {
    this.#end ??= does.runQueue(this).finally(() => this.drop());
    return this.#end;
  }

  /** What has not started never will, and nothing is added any more. */
  drop(): void {
    this.waiting.length = 0;
    this.isClosed = true;
  }
}

/** A request to `/run`, from its arrival to the end of its last task. */
export class Visit {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  /** Of the connection: the request forgets it when it is destroyed. */
  readonly socket: Socket;
  /** Resolves when the last byte of the response was handed to the operating system, or the client is gone. */
  readonly out: Promise<void>;
  /** Resolves at the end. */
  readonly ended: Promise<void>;
  queue = new Queue();
  /** There as soon as the body has come. */
  plan!: Plan;
  isOut = false;
  /** Whether the sub-dependency has queued its tasks. */
  hasSub = false;
  /** Whether the dependency waits for its clean-up. */
  isEntered = false;

  constructor(request: IncomingMessage, response: ServerResponse) {
    this.request = request;
    this.response = response.on('error', () => {}); // written to after the client has left
    this.socket = request.socket;
    this.out = this.#isSent();
    visits.add(this);
    this.ended = live(this)
      .catch(report)
      .finally(() => visits.delete(this));
  }

  async #isSent(): Promise<void> {
    await new Promise<unknown>((resolve) => {
      this.response.once('finish', resolve);
      this.socket.once('close', resolve);
    });
    await new Promise(setImmediate); // Node ends a connection that is to be closed after the listeners of 'finish'
    this.isOut = true;
    endIfIdle(this.socket);
  }
}

/** The requests whose last task has not ended, in the order in which they came. */
export const visits = new Set<Visit>();
/** The open connections. */
export const sockets = new Set<Socket>();
export const state = { isStopping: false };

/** The path of a request. */
async function live(visit: Visit): Promise<void> {
  visit.plan = await readPlan(visit.request);
  await does.arrived(visit);
  try {
    await handler(visit);
    await does.returned(visit);
    send(visit);
  } catch (error) {
    await does.thrown(visit, error);
    await does.cleanUp(visit);
    refuse(visit, error);
  }
  await visit.out;
  await does.finish(visit);
}

async function readPlan(request: IncomingMessage): Promise<Plan> {
  const query = request.url?.split('?plan=')[1];
  if (query !== undefined) {
    return JSON.parse(decodeURIComponent(query));
  }
  const chunks: Buffer[] = await request.toArray();
  return JSON.parse(Buffer.concat(chunks).toString());
}

/** The handler depends on the dependency and on the sub-dependency. */
async function handler(visit: Visit): Promise<void> {
  await dependency(visit);
  does.sub(visit);
  queueTasks(visit, 'handler');
  await checkpoint(visit.plan, 'handler');
}

/** The dependency depends on the sub-dependency. */
async function dependency(visit: Visit): Promise<void> {
  does.sub(visit);
  queueTasks(visit, 'dependency');
  await checkpoint(visit.plan, 'enter');
  visit.isEntered = true;
  does.entered(visit);
}

export type Part = 'sub' | 'dependency' | 'handler';

/** Queues the tasks that the plan has for a part of the request. */
export function queueTasks(visit: Visit, part: Part): void {
  const queue = does.queueOf(visit, part);
  for (const task of visit.plan[part]) {
    does.add({ visit, queue, task });
  }
}

function send(visit: Visit): void {
  const { plan, request, response } = visit;
  const length = plan.stream || plan.status === 204 ? {} : { 'content-length': plan.size };
  response.writeHead(plan.status, { 'x-plan': 'kept', 'content-type': 'text/plain', ...length });
  if (plan.stream && request.method !== 'HEAD') {
    stream(visit);
  } else {
    response.end('x'.repeat(plan.size)); // of a HEAD, Node leaves it out
  }
}

async function stream(visit: Visit): Promise<void> {
  try {
    for await (const piece of does.pieces(visit)) {
      visit.response.write(piece);
    }
    visit.response.end();
  } catch (error) {
    report(error);
    does.broken(visit);
  }
}

/** Whether the error is one that callback.ts has made of a 4xx. */
export const isHTTPError = (error: unknown): error is { status: number; message: string } =>
  error instanceof Error && 'status' in error;

function refuse({ response }: Visit, error: unknown): void {
  if (!isHTTPError(error)) {
    report(error);
  }
  response.writeHead(isHTTPError(error) ? error.status : 500).end();
}

export const report = (error: unknown): void => console.error(error);

/** At a stop a connection goes as soon as it has no response to give. */
function endIfIdle(socket: Socket): void {
  const isBusy = [...visits].some((visit) => visit.socket === socket && !visit.isOut);
  if (state.isStopping && !isBusy) {
    does.endIdle(socket);
  }
}

const DIALECTS = {
  afterFailure: 'continue',
  onThrow: 'discard',
  brokenStream: 'run',
  cleanUp: 'after',
  concurrency: 'serial',
};

/** What can be done wrong, done right. */
export const right = {
  /** The dialects that are declared other than {@link DIALECTS}. */
  declares: {} as Partial<typeof DIALECTS>,

  /** A request has come; nothing was done for it. */
  async arrived(_visit: Visit): Promise<void> {},

  /** The queue that the tasks of a part of the request join. */
  queueOf(visit: Visit, _part: Part): Queue {
    return visit.queue;
  },

  add(job: Job): void {
    if (job.queue.isClosed) {
      throw new Error(`Too late to add ${job.task.id}.`);
    }
    job.queue.waiting.push(job);
  },

  /** The sub-dependency is asked for, by the dependency and by the handler. */
  sub(visit: Visit): void {
    if (!visit.hasSub) {
      visit.hasSub = true;
      queueTasks(visit, 'sub');
    }
  },

  /** The dependency has queued its tasks, and gives way to the handler. */
  entered(_visit: Visit): void {},

  /** The handler has returned; nothing is sent. */
  async returned(_visit: Visit): Promise<void> {},

  /** The handler or a dependency has thrown; nothing is sent. */
  async thrown({ queue }: Visit, _error: unknown): Promise<void> {
    queue.drop();
  },

  /** The body of a streamed response. */
  async *pieces({ plan }: Visit): AsyncGenerator<string> {
    const half = Math.ceil(plan.size / 2);
    yield 'x'.repeat(half);
    await checkpoint(plan, 'chunk');
    yield 'x'.repeat(plan.size - half);
  },

  /** The source of a streamed body has thrown. A response behind another one has no socket until it is its turn. */
  broken({ response, socket }: Visit): void {
    if (response.socket) {
      socket.destroy();
    } else {
      response.once('socket', () => socket.destroy());
    }
  },

  /** The response is out. */
  async finish(visit: Visit): Promise<void> {
    await visit.queue.run();
    await does.cleanUp(visit);
  },

  async runQueue(queue: Queue): Promise<void> {
    queue.isRunning = true;
    for (let job = queue.waiting.shift(); job; job = queue.waiting.shift()) {
      await does.runTask(job);
    }
  },

  async runTask(job: Job): Promise<void> {
    try {
      await does.work(job);
    } catch (error) {
      await does.failed(job, error);
    }
  },

  /** What a task does: it calls, then adds what it is to add. */
  async work({ visit, queue, task }: Job): Promise<void> {
    if (task.kind === 'sync') {
      callSync(visit.plan, task.id);
    } else {
      await call(visit.plan, task.id);
    }
    for (const each of task.adds) {
      does.add({ visit, queue, task: each });
    }
  },

  async failed(_job: Job, error: unknown): Promise<void> {
    report(error);
  },

  /** The clean-up of the dependency. */
  async cleanUp(visit: Visit): Promise<void> {
    if (visit.isEntered) {
      visit.isEntered = false;
      await checkpoint(visit.plan, 'exit');
    }
  },

  signals: ['SIGTERM', 'SIGINT'] as readonly NodeJS.Signals[],

  /** The first signal: accepts no connection, finishes what it has accepted, and ends. */
  async stop(server: http.Server, signal: NodeJS.Signals): Promise<void> {
    state.isStopping = true;
    net.Server.prototype.close.call(server); // that of `http` cuts what has ended and is not flushed
    for (const socket of sockets) {
      endIfIdle(socket);
    }
    while (visits.size > 0) {
      await Promise.all([...visits].map((visit) => visit.ended));
    }
    if (sockets.size > 0) {
      await once(server, 'close');
    }
    process.exit(does.exitCode(signal));
  },

  /** Another signal. */
  stopAgain(signal: NodeJS.Signals): void {
    process.exit(128 + constants.signals[signal]);
  },

  /** At a stop, a connection without a response to give. */
  endIdle(socket: Socket): void {
    socket.destroySoon();
  },

  exitCode(_signal: NodeJS.Signals): number {
    return 0;
  },
};

export type Behaviour = typeof right;

const does: Behaviour = { ...right };

/** Starts the target with `change` in the place of what is right. */
export async function start(change: Partial<Behaviour>): Promise<void> {
  Object.assign(does, change);
  const preflight = JSON.stringify({
    contract: 1,
    name: 'faults',
    version: `node ${process.versions.node}`,
    instance: randomUUID(),
    capabilities: ['dependencies', 'yield', 'sync', 'stream', 'adds', 'head'],
    dialects: { ...DIALECTS, ...does.declares },
  });
  // Without a timeout of its own: a connection that is to be ended is not ended by waiting.
  const timeouts = { keepAliveTimeout: 0, headersTimeout: 0, requestTimeout: 0 };
  const server = http.createServer(timeouts, (request, response) => {
    if (request.url?.startsWith('/run')) {
      new Visit(request, response);
    } else {
      response.writeHead(200, { 'content-type': 'application/json' }).end(preflight);
    }
  });
  server.on('connection', (socket: Socket) => {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
  });
  for (const signal of does.signals) {
    process.on(signal, () => {
      if (state.isStopping) {
        does.stopAgain(signal);
      } else {
        does.stop(server, signal).catch(report);
      }
    });
  }
  await once(server.listen(Number(process.env.PORT ?? 8000), '127.0.0.1'), 'listening');
  console.log(`listening on port ${(server.address() as AddressInfo).port}`);
}

/** What core.ts and growth.ts share: requests and responses without a network, and a clock around them. */
import { spawn } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import { IncomingMessage, type ServerResponse } from 'node:http';
import path from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { type Spread, spread } from './result.ts';
import { counts } from './servers/work.ts';

/** What server.ts exports: the whole of what is measured. */
export type Product = typeof import('../../server.ts');

/** This checkout of the repository. */
export const HERE = fileURLToPath(new URL('../..', import.meta.url));

/**
 * What the server.ts of a checkout exports. Only that is taken from there: the requests, the clock, the
 * apps and the floor are this checkout's for both, so that nothing else can make the difference.
 */
export async function productOf(checkout: string): Promise<Product> {
  const file = pathToFileURL(path.resolve(checkout, 'server.ts'));
  return (await import(file.href)) as Product;
}

export type Listener = (req: IncomingMessage, res: ServerResponse) => void;

const HEADERS = { host: '127.0.0.1:9000' };
const RAW_HEADERS = ['Host', '127.0.0.1:9000'];

/** A socket that takes every byte at once. */
export class FakeSocket extends EventEmitter {
  readonly destroyed = false;
  readonly writable = true;
  readonly writableLength = 0;
  destroy(): void {
    throw new Error('Expected the socket to be kept.');
  }
  destroySoon(): void {
    this.destroy();
  }
  setTimeout(): this {
    return this;
  }
}

/** A POST without a body. */
export class FakeRequest extends EventEmitter {
  readonly method = 'POST';
  readonly url: string;
  readonly httpVersion = '1.1';
  readonly httpVersionMajor = 1;
  readonly httpVersionMinor = 1;
  readonly headers = HEADERS;
  readonly rawHeaders = RAW_HEADERS;
  readonly complete = true;
  readonly readableDidRead = false;
  readonly socket: FakeSocket;
  constructor(url: string, socket: FakeSocket) {
    super();
    this.url = url;
    this.socket = socket;
  }
  resume(): this {
    return this;
  }
}

/** A POST with a body of JSON, in chunks as the network gives them: Node's own class, without its parser. */
export function requestWithBody(url: string, body: Buffer, socket: FakeSocket): IncomingMessage {
  const req = new IncomingMessage(socket as never);
  const headers = { 'content-type': 'application/json', 'content-length': `${body.length}` };
  Object.assign(req, {
    method: 'POST',
    url,
    headers,
    rawHeaders: Object.entries(headers).flat(),
    complete: true,
  });
  for (let at = 0; at < body.length; at += 65_536) {
    req.push(body.subarray(at, at + 65_536));
  }
  req.push(null);
  return req;
}

/** What the last response was made of. */
export const sent: { status: number; head: unknown; body: string } = { status: 0, head: {}, body: '' };

/** As Node 24 has it: `writableFinished` turns true, and 'finish' is emitted, after the current tick. */
class FakeResponse extends EventEmitter {
  readonly req: unknown;
  readonly socket: FakeSocket;
  statusCode = 200;
  headersSent = false;
  writableEnded = false;
  writableFinished = false;
  readonly destroyed = false;
  constructor(req: unknown, socket: FakeSocket) {
    super();
    this.req = req;
    this.socket = socket;
  }
  getHeaders(): object {
    return {};
  }
  writeHead(status: number, reason?: unknown, headers?: unknown): this {
    this.statusCode = status;
    this.headersSent = true;
    sent.head = headers ?? reason;
    return this;
  }
  end(body: string): this {
    sent.status = this.statusCode;
    sent.body = body;
    this.writableEnded = true;
    process.nextTick(finish, this);
    return this;
  }
  setTimeout(): this {
    return this;
  }
}

function finish(res: FakeResponse): void {
  res.writableFinished = true;
  res.emit('finish');
}

/** A listener, the requests for it, and how many tasks each of them has. */
export interface Subject {
  readonly listener: Listener;
  readonly request: (socket: FakeSocket) => FakeRequest | IncomingMessage;
  readonly tasks: number;
  /** How many requests are in the air at once. */
  readonly connections: number;
  /** How many requests a figure is made of: enough for many collections of the garbage that they leave. */
  readonly batch: number;
}

/** ns a request: of all threads by the CPU's time, which other processes hardly change, and by a clock. */
export interface Cost {
  readonly cpu: number;
  readonly clock: number;
}

export const best = (costs: readonly Cost[]): Cost => ({
  cpu: Math.round(Math.min(...costs.map(({ cpu }) => cpu))),
  clock: Math.round(Math.min(...costs.map(({ clock }) => clock))),
});

/** What a request costs, over `requests` of them; every task must have run. */
async function run(
  { listener, request, tasks }: Subject,
  requests: number,
  sockets: FakeSocket[],
): Promise<Cost> {
  const target = counts.executed + tasks * requests;
  const before = process.cpuUsage();
  const begin = process.hrtime.bigint();
  for (let left = requests; left > 0; left -= sockets.length) {
    for (const socket of sockets.length <= left ? sockets : sockets.slice(0, left)) {
      const req = request(socket);
      listener(req as IncomingMessage, new FakeResponse(req, socket) as unknown as ServerResponse);
    }
    await new Promise(setImmediate);
    await new Promise(setImmediate);
  }
  for (let turn = 0; counts.executed < target && turn < 100_000; turn += 1) {
    await new Promise(setImmediate);
  }
  const clock = Number(process.hrtime.bigint() - begin) / requests;
  const { user, system } = process.cpuUsage(before);
  if (counts.executed !== target) {
    throw new Error(`Expected ${target} tasks to have run, got ${counts.executed}.`);
  }
  return { cpu: ((user + system) * 1_000) / requests, clock };
}

/** In a process of its own: the best of `batches`, after as many to warm up. Prints it. */
export async function measure(subject: Subject, batches: number, check: () => void): Promise<void> {
  const sockets = Array.from({ length: subject.connections }, () => new FakeSocket());
  await run(subject, 1, sockets);
  check();
  for (let round = 0; round < batches; round += 1) {
    await run(subject, Math.ceil(subject.batch / 4), sockets);
  }
  const costs: Cost[] = [];
  while (costs.length < batches) {
    costs.push(await run(subject, subject.batch, sockets));
  }
  const listeners = sockets.flatMap((socket) =>
    socket.eventNames().map((event) => socket.listenerCount(event)),
  );
  if (Math.max(0, ...listeners) > 3) {
    throw new Error(`Expected a socket's listeners not to grow, got ${listeners}.`);
  }
  console.log(JSON.stringify(best(costs)));
}

/** What each subject costs in each round. They alternate, and every round starts with another one. */
export async function alternating(
  rounds: number,
  subjects: readonly (() => Promise<Cost>)[],
): Promise<Cost[][]> {
  const series = subjects.map((measureOnce) => ({ measureOnce, costs: [] as Cost[] }));
  for (let round = 0; round < rounds; round += 1) {
    const first = round % series.length;
    for (const { measureOnce, costs } of [...series.slice(first), ...series.slice(0, first)]) {
      costs.push(await measureOnce());
    }
  }
  return series.map(({ costs }) => costs);
}

/** What `costs` are of the floor's, round by round, by the CPU's time: the median and the range. */
export const ratios = (costs: readonly Cost[], floor: readonly Cost[]): Spread =>
  spread(costs.map(({ cpu }, round) => cpu / (floor[round]?.cpu ?? NaN)));

export const ratioInWords = ({ median, min, max }: Spread): string =>
  `${median.toFixed(2)} (${min.toFixed(2)} to ${max.toFixed(2)})`;

/** Runs `file` with `args` under this Node, and gives what it prints. */
export async function inChild(file: string, ...args: string[]): Promise<Cost> {
  const child = spawn(process.execPath, [...process.execArgv, file, ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [output, [code]] = await Promise.all([text(child.stdout), once(child, 'close')]);
  if (code !== 0) {
    throw new Error(`Expected ${args.join(' ')} to exit with 0, got ${code}.`);
  }
  return JSON.parse(output) as Cost;
}

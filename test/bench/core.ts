/**
 * What the listener costs in process: ns a request with a fake request and response, against the floor's own code.
 *
 *     node test/bench/core.ts               prints both, the difference and the ratio (Node 22.18 or later)
 *     node test/bench/core.ts --limit 2.0   exits with 1 where the ratio is higher
 *
 * Each figure is the best of several processes, which alternate; each process measures one of the two.
 */
import { spawn } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { counts, lastLine } from './servers/work.ts';

type Listener = (req: IncomingMessage, res: ServerResponse) => void;

const CONNECTIONS = 32; // a request at a time on each
const BATCH = 40_000;
const URL_OF_ORDER = `/order?item=${encodeURIComponent('한글')}`;

/** A socket that takes every byte at once. */
class FakeSocket extends EventEmitter {
  readonly destroyed = false;
  readonly writable = true;
  readonly writableLength = 0;
  destroy(): void { throw new Error('Expected the socket to be kept.'); }
  destroySoon(): void { this.destroy(); }
  setTimeout(): this { return this; }
}

/** A POST without a body. */
class FakeRequest extends EventEmitter {
  readonly method = 'POST';
  readonly url = URL_OF_ORDER;
  readonly httpVersion = '1.1';
  readonly httpVersionMajor = 1;
  readonly httpVersionMinor = 1;
  readonly headers = HEADERS;
  readonly rawHeaders = RAW_HEADERS;
  readonly complete = true;
  readonly readableDidRead = false;
  readonly socket: FakeSocket;
  constructor(socket: FakeSocket) { super(); this.socket = socket; }
  resume(): this { return this; }
}
const HEADERS = { host: '127.0.0.1:9000' };
const RAW_HEADERS = ['Host', '127.0.0.1:9000'];

/** As Node 24 has it: `writableFinished` turns true, and 'finish' is emitted, after the current tick. */
class FakeResponse extends EventEmitter {
  readonly req: FakeRequest;
  readonly socket: FakeSocket;
  statusCode = 200;
  headersSent = false;
  writableEnded = false;
  writableFinished = false;
  readonly destroyed = false;
  constructor(req: FakeRequest) { super(); this.req = req; this.socket = req.socket; }

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
  setTimeout(): this { return this; }
}
const sent: { status: number; head: unknown; body: string } = { status: 0, head: {}, body: '' };

function finish(res: FakeResponse): void {
  res.writableFinished = true;
  res.emit('finish');
}

/** The ns of a request, over `requests` of them; every task must have run. */
async function measure(listener: Listener, requests: number, sockets: readonly FakeSocket[]): Promise<number> {
  const target = counts.executed + 3 * requests;
  const begin = process.hrtime.bigint();
  for (let left = requests; left > 0; left -= sockets.length) {
    for (const socket of sockets.length <= left ? sockets : sockets.slice(0, left)) {
      const req = new FakeRequest(socket);
      listener(req as unknown as IncomingMessage, new FakeResponse(req) as unknown as ServerResponse);
    }
    await new Promise(setImmediate);
    await new Promise(setImmediate);
  }
  for (let turn = 0; counts.executed < target && turn < 1_000; turn += 1) await new Promise(setImmediate);
  const ns = Number(process.hrtime.bigint() - begin) / requests;
  if (counts.executed !== target) throw new Error(`Expected ${target} tasks to have run, got ${counts.executed}.`);
  return ns;
}

/** In the child: the best batch of one listener, after it has answered what it should. */
async function child(name: string, batches: number): Promise<void> {
  const listener: Listener = name === 'floor' ? (await import('./servers/floor.ts')).listener
    : (await import('./servers/response-first.ts')).app.listener;
  const sockets = Array.from({ length: CONNECTIONS }, () => new FakeSocket());
  await measure(listener, 1, sockets);
  const raw = sent.head;
  const head = new Map(Array.isArray(raw) ? pairs(raw) : Object.entries<unknown>({ ...raw as object }));
  const seen = [sent.status, head.get('content-type'), head.get('content-length'), sent.body, lastLine()].join(' | ');
  const expected = '200 | application/json | 35 | {"message":"주문 완료: 한글"} | 알림 발송: 한글';
  if (seen !== expected) throw new Error(`Expected ${expected} of ${name}, got ${seen}.`);
  await measure(listener, BATCH, sockets);
  const figures: number[] = [];
  while (figures.length < batches) figures.push(await measure(listener, BATCH, sockets));
  const listeners = sockets.flatMap((socket) => socket.eventNames().map((event) => socket.listenerCount(event)));
  if (Math.max(0, ...listeners) > 3) throw new Error(`Expected a socket's listeners not to grow, got ${listeners}.`);
  console.log(Math.min(...figures));
}

/** The pairs of a list of names and values. */
const pairs = (list: readonly unknown[]): [string, unknown][] =>
  list.flatMap((name, at): [string, unknown][] => (at % 2 === 0 ? [[String(name), list[at + 1]]] : []));

async function inChild(name: string, batches: number): Promise<number> {
  const args = [...process.execArgv, fileURLToPath(import.meta.url), '--child', name, '--batches', `${batches}`];
  const node = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  const [output, [code]] = await Promise.all([text(node.stdout), once(node, 'close')]);
  if (code !== 0) throw new Error(`Expected the process of ${name} to exit with 0, got ${code}.`);
  return Number(output);
}

const { values } = parseArgs({ options: {
  child: { type: 'string' },
  limit: { type: 'string' },
  processes: { type: 'string', default: '5' },
  batches: { type: 'string', default: '6' },
} });
if (values.child) {
  await child(values.child, Number(values.batches));
} else {
  const best = { floor: Infinity, ours: Infinity };
  for (let round = 0; round < Number(values.processes); round += 1) {
    for (const name of ['floor', 'ours'] as const) {
      best[name] = Math.min(best[name], await inChild(name, Number(values.batches)));
    }
  }
  const ratio = best.ours / best.floor;
  const how = process.execArgv.some((flag) => flag.includes('tsx')) ? 'under tsx' : 'types stripped';
  console.log(`floor ${best.floor.toFixed(0).padStart(6)} ns a request (node ${process.versions.node}, ${how})`);
  console.log(`ours  ${best.ours.toFixed(0).padStart(6)} ns, ${(best.ours - best.floor).toFixed(0)} more`);
  console.log(`ratio ${ratio.toFixed(2).padStart(6)}`);
  if (ratio > Number(values.limit ?? Infinity)) {
    console.error(`Expected a ratio of at most ${values.limit}.`);
    process.exitCode = 1;
  }
}

/**
 * What the listener costs in process: ns a request with a fake request and response, against the floor's own code.
 *
 *     node test/bench/core.ts               prints both, the difference and the ratio (Node 22.18 or later)
 *     node test/bench/core.ts --limit 2.0   exits with 1 where the ratio, of the CPU's time, is higher
 *
 * Each figure is the best of several processes, which alternate; each process measures one of the two.
 */
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import {
  best,
  type Cost,
  FakeRequest,
  type FakeSocket,
  inChild,
  type Listener,
  measure,
  sent,
} from './inprocess.ts';
import { lastLine } from './servers/work.ts';

const FILE = fileURLToPath(import.meta.url);
const ORDER = `/order?item=${encodeURIComponent('한글')}`;

export interface Core {
  readonly floor: Cost;
  readonly ours: Cost;
}

/** What a request costs, for both. */
export async function core(processes = 5, batches = 6): Promise<Core> {
  const floor: Cost[] = [];
  const ours: Cost[] = [];
  for (let round = 0; round < processes; round += 1) {
    floor.push(await inChild(FILE, '--child', 'floor', '--batches', `${batches}`));
    ours.push(await inChild(FILE, '--child', 'ours', '--batches', `${batches}`));
  }
  return { floor: best(floor), ours: best(ours) };
}

async function listenerOf(name: string): Promise<Listener> {
  if (name === 'floor') {
    return (await import('./servers/floor.ts')).listener;
  }
  return (await import('./servers/response-first.ts')).app.listener;
}

/** Throws unless the response and the last task were what they have to be. */
function check(): void {
  const { status, head, body } = sent;
  const entries = Array.isArray(head) ? pairs(head) : Object.entries<unknown>({ ...(head as object) });
  const headers = new Map(entries);
  const [type, length] = [headers.get('content-type'), headers.get('content-length')];
  const seen = [status, type, length, body, lastLine()].join(' | ');
  const expected = '200 | application/json | 35 | {"message":"주문 완료: 한글"} | 알림 발송: 한글';
  if (seen !== expected) {
    throw new Error(`Expected ${expected}, got ${seen}.`);
  }
}

/** The pairs of a list of names and values. */
const pairs = (list: readonly unknown[]): [string, unknown][] =>
  list.flatMap((name, at): [string, unknown][] => (at % 2 === 0 ? [[String(name), list[at + 1]]] : []));

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      limit: { type: 'string' },
      processes: { type: 'string', default: '5' },
      batches: { type: 'string', default: '6' },
      child: { type: 'string' },
    },
  });
  const batches = Number(values.batches);
  if (values.child) {
    const listener = await listenerOf(values.child);
    const request = (socket: FakeSocket): FakeRequest => new FakeRequest(ORDER, socket);
    return measure({ listener, request, tasks: 3, connections: 32, batch: 40_000 }, batches, check);
  }
  const limit = Number(values.limit ?? Infinity);
  const { floor, ours } = await core(Number(values.processes), batches);
  const how = process.execArgv.some((flag) => flag.includes('tsx')) ? 'under tsx' : 'types stripped';
  console.log(`ns a request, node ${process.versions.node}, ${how}`);
  console.log(columns('', 'floor', 'ours', 'more', 'ratio'));
  for (const [name, key] of [
    ['CPU', 'cpu'],
    ['clock', 'clock'],
  ] as const) {
    console.log(
      columns(
        name,
        ...[floor[key], ours[key], ours[key] - floor[key]].map((ns) => ns.toFixed(0)),
        (ours[key] / floor[key]).toFixed(2),
      ),
    );
  }
  if (ours.cpu / floor.cpu > limit) {
    console.error(`Expected a ratio of at most ${limit}.`);
    process.exitCode = 1;
  }
}

const columns = (...cells: string[]): string => cells.map((cell) => cell.padStart(7)).join('');

if (process.argv[1] === FILE) {
  await main();
}

/**
 * What the listener costs in process: ns a request with a fake request and response, against the floor's own.
 *
 *     node test/bench/core.ts                   prints both, the difference and the ratio (Node 22.18+)
 *     node test/bench/core.ts --limit 2.0       exits with 1 where the ratio, of the CPU's time, is higher
 *     node test/bench/core.ts --against DIR     beside another checkout's server.ts (`git worktree add`)
 *     node test/bench/core.ts --processes 15    more rounds
 *
 * Each process measures one subject, and they alternate. The table has the best of the processes; the
 * ratios below it are of one round each.
 */
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import {
  alternating,
  best,
  type Cost,
  FakeRequest,
  type FakeSocket,
  HERE,
  inChild,
  type Listener,
  measure,
  productOf,
  ratioInWords,
  ratios,
  sent,
} from './inprocess.ts';
import { lastLine } from './servers/work.ts';

const FILE = fileURLToPath(import.meta.url);
const PROCESSES = 5;
const BATCHES = '6';
const ORDER = `/order?item=${encodeURIComponent('한글')}`;

export interface Core {
  readonly floor: Cost;
  readonly ours: Cost;
}

/** What a request costs, in each round: the floor, then the server.ts of each checkout. */
function rounds(processes: number, batches: string, checkouts: readonly string[]): Promise<Cost[][]> {
  const child = (...subject: string[]) => inChild(FILE, '--batches', batches, '--child', ...subject);
  return alternating(processes, [
    () => child('floor'),
    ...checkouts.map((checkout) => () => child('ours', '--checkout', checkout)),
  ]);
}

/** What a request costs at best, for both. */
export async function core(): Promise<Core> {
  const [floor = [], ours = []] = await rounds(PROCESSES, BATCHES, [HERE]);
  return { floor: best(floor), ours: best(ours) };
}

async function listenerOf(name: string, checkout: string): Promise<Listener> {
  if (name === 'floor') {
    return (await import('./servers/floor.ts')).listener;
  }
  const { appOf } = await import('./servers/response-first.ts');
  return appOf(await productOf(checkout)).listener;
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

/** Prints the best of each, and the ratios of the rounds. */
function print(names: readonly string[], [floor = [], ...others]: readonly Cost[][]): void {
  const how = process.execArgv.some((flag) => flag.includes('tsx')) ? 'under tsx' : 'types stripped';
  console.log(`ns a request, node ${process.versions.node}, ${how}`);
  others.forEach((costs, at) => {
    const [raw, own] = [best(floor), best(costs)];
    console.log(columns('', 'floor', names[at] ?? '', 'more', 'ratio'));
    for (const [name, key] of [
      ['CPU', 'cpu'],
      ['clock', 'clock'],
    ] as const) {
      const figures = [raw[key], own[key], own[key] - raw[key]].map((ns) => ns.toFixed(0));
      console.log(columns(name, ...figures, (own[key] / raw[key]).toFixed(2)));
    }
  });
  console.log(`CPU / floor, round by round: the median and the range of ${floor.length}`);
  others.forEach((costs, at) => {
    console.log(`${columns(names[at] ?? '')}  ${ratioInWords(ratios(costs, floor))}`);
  });
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      limit: { type: 'string' },
      against: { type: 'string' },
      processes: { type: 'string', default: `${PROCESSES}` },
      batches: { type: 'string', default: BATCHES },
      child: { type: 'string' },
      checkout: { type: 'string', default: HERE },
    },
  });
  if (values.child) {
    const listener = await listenerOf(values.child, values.checkout);
    const request = (socket: FakeSocket): FakeRequest => new FakeRequest(ORDER, socket);
    const subject = { listener, request, tasks: 3, connections: 32, batch: 40_000 };
    return measure(subject, Number(values.batches), check);
  }
  const there = values.against === undefined ? [] : [values.against];
  const costs = await rounds(Number(values.processes), values.batches, [HERE, ...there]);
  print(['ours', 'there'], costs);
  const [floor = [], ours = []] = costs;
  const limit = Number(values.limit ?? Infinity);
  if (best(ours).cpu / best(floor).cpu > limit) {
    console.error(`Expected a ratio of at most ${limit}.`);
    process.exitCode = 1;
  }
}

const columns = (...cells: string[]): string => cells.map((cell) => cell.padStart(7)).join('');

if (process.argv[1] === FILE) {
  await main();
}

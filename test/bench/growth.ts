/**
 * How the cost of a request grows, in process: with its tasks, the routes of the app, the levels of
 * dependencies, and its body. Each figure is the CPU time of all threads, the best of several fresh
 * processes, which alternate.
 *
 *     node test/bench/growth.ts                 prints the tables (Node 22.18 or later)
 *     node test/bench/growth.ts --processes 1   faster, and rougher
 *     node test/bench/growth.ts --against DIR   100 tasks and the bodies, beside another checkout's server.ts
 */
import type { ServerResponse } from 'node:http';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import type { Dependency } from '../../server.ts';
import {
  alternating,
  best,
  FakeRequest,
  HERE,
  inChild,
  type Listener,
  measure,
  type Product,
  productOf,
  ratioInWords,
  ratios,
  requestWithBody,
  type Subject,
  sent,
} from './inprocess.ts';
import { type Growth, growthTables } from './result.ts';
import { record } from './servers/work.ts';

const FILE = fileURLToPath(import.meta.url);
const ITEM = encodeURIComponent('한글');

const TASKS = [1, 10, 100, 1_000];
const ROUTES = [1, 10, 50, 200];
const LEVELS = [0, 1, 2, 3, 4, 5];
const BODY = [100, 2 ** 10, 10 * 2 ** 10, 100 * 2 ** 10, 2 ** 20];

/** The floor of a request with a body, or without one: it collects it, parses it and checks it. */
function floor(tasks: number, withBody: boolean): Listener {
  return (req, res) => {
    const { url = '' } = req;
    const item = decodeURIComponent(url.slice(url.indexOf('item=') + 5));
    if (!withBody) {
      answer(res, item, tasks);
      return;
    }
    const chunks: Buffer[] = [];
    req.on('data', (chunk: Buffer) => chunks.push(chunk));
    req.on('end', () => {
      const { text } = JSON.parse(Buffer.concat(chunks).toString()) as { text?: unknown };
      if (typeof text !== 'string') {
        throw new TypeError('Expected a text.');
      }
      answer(res, item, tasks);
    });
  };
}

function answer(res: ServerResponse, item: string, tasks: number): void {
  const text = JSON.stringify({ message: item });
  res.writeHead(200, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) });
  res.end(text);
  res.once('finish', () => setImmediate(runTasks, tasks, item));
}

/** As in servers/work.ts: in order, each awaited where it is async, and no error leaves. */
async function runTasks(tasks: number, item: string): Promise<void> {
  for (let task = 0; task < tasks; task += 1) {
    try {
      const pending: unknown = record(`${task}: ${item}`);
      if (typeof (pending as PromiseLike<unknown> | undefined)?.then === 'function') {
        await pending;
      }
    } catch (error) {
      console.error(error);
    }
  }
}

function tasksOf({ backgroundTasks, createApp, post, query }: Product, tasks: number): Listener {
  return createApp([
    post('/order', { item: query('item'), tasks: backgroundTasks }, (values) => {
      for (let task = 0; task < tasks; task += 1) {
        values.tasks.addTask(record, `${task}: ${values.item}`);
      }
      return { message: values.item };
    }),
  ]).listener;
}

function routesOf({ backgroundTasks, createApp, post, query }: Product, count: number): Listener {
  const routes = Array.from({ length: count }, (_, at) =>
    post(`/order-${at}`, { item: query('item'), tasks: backgroundTasks }, (values) => {
      values.tasks.addTask(record, values.item);
      return { message: values.item };
    }),
  );
  return createApp(routes).listener;
}

/** A chain: each level gets the one below. */
function levelsOf(product: Product, count: number): Listener {
  const { backgroundTasks, createApp, depends, post, query } = product;
  const item = query('item');
  let below: Dependency<unknown> = item;
  for (let level = 0; level < count; level += 1) {
    below = depends({ below }, (values) => values.below);
  }
  return createApp([
    post('/order', { item, below, tasks: backgroundTasks }, (values) => {
      values.tasks.addTask(record, values.item);
      return { message: values.item };
    }),
  ]).listener;
}

function bodyOf(product: Product): Listener {
  const { backgroundTasks, body, createApp, post, query, strings } = product;
  const dependencies = { item: query('item'), body: body(strings('text')), tasks: backgroundTasks };
  return createApp([
    post('/order', dependencies, (values) => {
      values.tasks.addTask(record, values.item);
      return { message: values.item };
    }),
  ]).listener;
}

/** What a child measures: `tasks ours 10`, `routes last 200`, `levels ours 3`, `body floor 100`. */
function subject(product: Product, kind: string, which: string, size: number): Subject {
  const plain = (listener: Listener, tasks: number, at = ''): Subject => ({
    listener,
    request: (socket) => new FakeRequest(`/order${at}?item=${ITEM}`, socket),
    tasks,
    connections: 16,
    batch: Math.ceil(60_000 / (tasks + 2)),
  });
  if (kind === 'tasks') {
    return plain(which === 'ours' ? tasksOf(product, size) : floor(size, false), size);
  }
  if (kind === 'routes') {
    return plain(routesOf(product, size), 1, `-${which === 'first' ? 0 : size - 1}`);
  }
  if (kind === 'levels') {
    return plain(levelsOf(product, size), 1);
  }
  const bytes = Buffer.from(JSON.stringify({ text: 'x'.repeat(size - '{"text":""}'.length) }));
  return {
    listener: which === 'ours' ? bodyOf(product) : floor(1, true),
    request: (socket) => requestWithBody(`/order?item=${ITEM}`, bytes, socket),
    tasks: 1,
    connections: 4,
    batch: Math.ceil(1e8 / (size + 1e4)),
  };
}

function check(): void {
  const expected = '{"message":"한글"}';
  if (sent.status !== 200 || sent.body !== expected) {
    throw new Error(`Expected ${expected}, got ${sent.body}.`);
  }
}

type Row = readonly [kind: string, size: number];

/** What each subject of a row costs in each round. */
function costsOf(processes: number, [kind, size]: Row, subjects: readonly (readonly string[])[]) {
  return alternating(
    processes,
    subjects.map(
      ([which, ...flags]) =>
        () =>
          inChild(FILE, '--child', `${kind} ${which} ${size}`, ...flags),
    ),
  );
}

export async function growth(processes = 3): Promise<Growth> {
  const cells = async (row: Row, ...subjects: string[]): Promise<number[]> => {
    const costs = await costsOf(
      processes,
      row,
      subjects.map((which) => [which]),
    );
    return costs.map((each) => best(each).cpu);
  };
  const grown: { [K in keyof Growth]: Growth[K][number][] } = { tasks: [], routes: [], levels: [], body: [] };
  for (const tasks of TASKS) {
    const [floor = NaN, ours = NaN] = await cells(['tasks', tasks], 'floor', 'ours');
    grown.tasks.push({ tasks, floor, ours });
  }
  for (const routes of ROUTES) {
    const [first = NaN, last = NaN] = await cells(['routes', routes], 'first', 'last');
    grown.routes.push({ routes, first, last });
  }
  for (const levels of LEVELS) {
    const [ours = NaN] = await cells(['levels', levels], 'ours');
    grown.levels.push({ levels, ours });
  }
  for (const bytes of BODY) {
    const [floor = NaN, ours = NaN] = await cells(['body', bytes], 'floor', 'ours');
    grown.body.push({ bytes, floor, ours });
  }
  return grown;
}

/** Prints, for 100 tasks and for each body, what both checkouts cost; each floor is this checkout's. */
async function compare(processes: number, there: string): Promise<void> {
  console.log(
    `ns of the CPU a request, the best of ${processes}; the ratios are of one round: median and range`,
  );
  const rows: Row[] = [['tasks', 100], ...BODY.map((bytes): Row => ['body', bytes])];
  for (const row of rows) {
    const subjects = [['floor'], ['ours'], ['ours', '--checkout', there]];
    const [floor = [], ...both] = await costsOf(processes, row, subjects);
    const [ours = '', theirs = ''] = both.map(
      (costs) => `${best(costs).cpu}, × ${ratioInWords(ratios(costs, floor))}`,
    );
    console.log(`${row.join(' ').padEnd(14)} floor ${best(floor).cpu}; ours ${ours}; there ${theirs}`);
  }
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      processes: { type: 'string', default: '3' },
      against: { type: 'string' },
      child: { type: 'string' },
      checkout: { type: 'string', default: HERE },
    },
  });
  const processes = Number(values.processes);
  if (values.child !== undefined) {
    const [kind = '', which = '', size] = values.child.split(' ');
    const product = await productOf(values.checkout);
    return measure(subject(product, kind, which, Number(size)), 4, check);
  }
  if (values.against !== undefined) {
    return compare(processes, values.against);
  }
  console.log(growthTables(await growth(processes)));
}

if (process.argv[1] === FILE) {
  await main();
}

/**
 * How the cost of a request grows, in process: with its tasks, the routes of the app, the levels of dependencies, and
 * its body. Each figure is the CPU time of all threads, the best of several fresh processes.
 *
 *     node test/bench/growth.ts                 prints the tables (Node 22.18 or later)
 *     node test/bench/growth.ts --processes 1   faster, and rougher
 */
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import {
  backgroundTasks,
  body,
  createApp,
  type Dependency,
  depends,
  post,
  query,
  strings,
} from '../../server.ts';
import {
  best,
  type Cost,
  FakeRequest,
  inChild,
  type Listener,
  measure,
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
  return async (req, res) => {
    const { url = '' } = req;
    const item = decodeURIComponent(url.slice(url.indexOf('item=') + 5));
    if (withBody) {
      const chunks: Buffer[] = [];
      for await (const chunk of req) {
        chunks.push(chunk);
      }
      const { text } = JSON.parse(Buffer.concat(chunks).toString()) as { text?: unknown };
      if (typeof text !== 'string') {
        throw new TypeError('Expected a text.');
      }
    }
    const answer = JSON.stringify({ message: item });
    res.writeHead(200, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(answer) });
    res.end(answer);
    res.once('finish', () => setImmediate(runTasks, tasks, item));
  };
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

const item = query('item');

function tasksOf(tasks: number): Listener {
  return createApp([
    post('/order', { item, tasks: backgroundTasks }, (values) => {
      for (let task = 0; task < tasks; task += 1) {
        values.tasks.addTask(record, `${task}: ${values.item}`);
      }
      return { message: values.item };
    }),
  ]).listener;
}

function routesOf(count: number): Listener {
  const routes = Array.from({ length: count }, (_, at) =>
    post(`/order-${at}`, { item, tasks: backgroundTasks }, (values) => {
      values.tasks.addTask(record, values.item);
      return { message: values.item };
    }),
  );
  return createApp(routes).listener;
}

/** A chain: each level gets the one below. */
function levelsOf(count: number): Listener {
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

function bodyOf(): Listener {
  return createApp([
    post('/order', { item, body: body(strings('text')), tasks: backgroundTasks }, (values) => {
      values.tasks.addTask(record, values.item);
      return { message: values.item };
    }),
  ]).listener;
}

/** What a child measures: `tasks ours 10`, `routes last 200`, `levels ours 3`, `body floor 100`. */
function subject(kind: string, which: string, size: number): Subject {
  const plain = (listener: Listener, tasks: number, at = ''): Subject => ({
    listener,
    request: (socket) => new FakeRequest(`/order${at}?item=${ITEM}`, socket),
    tasks,
    connections: 16,
    batch: Math.ceil(60_000 / (tasks + 2)),
  });
  if (kind === 'tasks') {
    return plain(which === 'ours' ? tasksOf(size) : floor(size, false), size);
  }
  if (kind === 'routes') {
    return plain(routesOf(size), 1, `-${which === 'first' ? 0 : size - 1}`);
  }
  if (kind === 'levels') {
    return plain(levelsOf(size), 1);
  }
  const bytes = Buffer.from(JSON.stringify({ text: 'x'.repeat(size - '{"text":""}'.length) }));
  return {
    listener: which === 'ours' ? bodyOf() : floor(1, true),
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

export async function growth(processes = 3): Promise<Growth> {
  const cell = async (...args: (string | number)[]): Promise<number> => {
    const costs: Cost[] = [];
    while (costs.length < processes) {
      costs.push(await inChild(FILE, '--child', args.join(' ')));
    }
    return best(costs).cpu;
  };
  const rows = async <T>(sizes: readonly number[], row: (size: number) => Promise<T>): Promise<T[]> => {
    const all: T[] = [];
    for (const size of sizes) {
      all.push(await row(size));
    }
    return all;
  };
  return {
    tasks: await rows(TASKS, async (tasks) => ({
      tasks,
      floor: await cell('tasks', 'floor', tasks),
      ours: await cell('tasks', 'ours', tasks),
    })),
    routes: await rows(ROUTES, async (routes) => ({
      routes,
      first: await cell('routes', 'first', routes),
      last: await cell('routes', 'last', routes),
    })),
    levels: await rows(LEVELS, async (levels) => ({ levels, ours: await cell('levels', 'ours', levels) })),
    body: await rows(BODY, async (bytes) => ({
      bytes,
      floor: await cell('body', 'floor', bytes),
      ours: await cell('body', 'ours', bytes),
    })),
  };
}

async function main(): Promise<void> {
  const options = { processes: { type: 'string', default: '3' }, child: { type: 'string' } } as const;
  const { values } = parseArgs({ options });
  if (!values.child) {
    return console.log(growthTables(await growth(Number(values.processes))));
  }
  const [kind = '', which = '', size] = values.child.split(' ');
  await measure(subject(kind, which, Number(size)), 4, check);
}

if (process.argv[1] === FILE) {
  await main();
}

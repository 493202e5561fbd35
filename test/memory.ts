/**
 * Whether memory stays flat: `node --expose-gc --import tsx test/memory.ts [requests]`, 200,000 by default, with three
 * tasks each, one of ten failing, on keep-alive connections. Exits with 1 if the heap after collection grew by more
 * than a tenth between the first quarter and the end, or a task was lost.
 */
import http from 'node:http';
import { backgroundTasks, createApp, post, query } from '../server.ts';

const total = Number(process.argv[2] ?? 200_000);
const CONNECTIONS = 20;
let ran = 0;
let failed = 0;

const app = createApp([
  post('/order', { item: query('item'), tasks: backgroundTasks }, ({ item, tasks }) => {
    tasks.addTask(() => { ran += 1; });
    tasks.addTask(async () => { ran += 1; });
    tasks.addTask((failing: boolean) => {
      ran += 1;
      if (failing) throw new Error('expected');
    }, item.endsWith('0'));
    return { message: item };
  }),
], { onTaskError: () => { failed += 1; } });
const { url } = await app.listen({ port: 0 });
const agent = new http.Agent({ keepAlive: true, maxSockets: CONNECTIONS });

function order(item: number): Promise<void> {
  return new Promise((resolve, reject) => {
    http.request(`${url}/order?item=${item}`, { method: 'POST', agent }, (res) => res.resume().on('end', resolve))
      .on('error', reject).end();
  });
}

async function load(from: number, to: number): Promise<number> {
  let next = from;
  await Promise.all(Array.from({ length: CONNECTIONS }, async () => {
    while (next < to) await order(next++);
  }));
  await app.idle();
  globalThis.gc?.();
  return process.memoryUsage().heapUsed;
}

const early = await load(0, total / 4);
const late = await load(total / 4, total);
agent.destroy();
await app.close();
const growth = late / early;
console.log(JSON.stringify({ requests: total, tasks: ran, failed, heapEarly: early, heapLate: late, growth }));
if (ran !== 3 * total || failed !== total / 10 || growth > 1.1) process.exitCode = 1;

/** Ours, with every default. */
import { fileURLToPath } from 'node:url';
import type { App } from '../../../server.ts';
import type { Product } from '../inprocess.ts';
import { address, counts, order, record, TASKS } from './work.ts';

/** The app, made by this checkout's server.ts or by another's. */
export function appOf({ backgroundTasks, createApp, get, post, query }: Product): App {
  return createApp([
    post('/order', { item: query('item'), tasks: backgroundTasks }, ({ item, tasks }) => {
      for (const task of TASKS) {
        tasks.addTask(record, `${task}: ${item}`);
      }
      return order(item);
    }),
    get('/counts', () => counts),
  ]);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await appOf(await import('../../../server.ts')).listen(address);
}

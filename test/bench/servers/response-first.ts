/** Ours, with every default. */
import { fileURLToPath } from 'node:url';
import { backgroundTasks, createApp, get, post, query } from '../../../server.ts';
import { address, counts, order, record, TASKS } from './work.ts';

export const app = createApp([
  post('/order', { item: query('item'), tasks: backgroundTasks }, ({ item, tasks }) => {
    for (const task of TASKS) {
      tasks.addTask(record, `${task}: ${item}`);
    }
    return order(item);
  }),
  get('/counts', () => counts),
]);

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await app.listen(address);
}

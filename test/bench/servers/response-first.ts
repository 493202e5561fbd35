/** Ours, with every default. */
import { fileURLToPath } from 'node:url';
import { backgroundTasks, createApp, get, post, query } from '../../../server.ts';
import { address, counts, record, TASKS } from './work.ts';

export const app = createApp([
  post('/order', { item: query('item'), tasks: backgroundTasks }, ({ item, tasks }) => {
    counts.answered += 1;
    for (const task of TASKS) tasks.addTask(record, `${task}: ${item}`);
    return { message: `주문 완료: ${item}` };
  }),
  get('/counts', () => counts),
]);

if (process.argv[1] === fileURLToPath(import.meta.url)) await app.listen(address);

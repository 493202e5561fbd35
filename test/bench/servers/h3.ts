/** h3 on srvx: `event.waitUntil`. https://h3.dev/guide/api/h3event#h3eventwaituntil */
import { setImmediate } from 'node:timers/promises';
import { getQuery, H3, serve } from 'h3';
import { address, counts, order, runTasks } from './work.ts';

const app = new H3()
  .get('/counts', () => counts)
  .post('/order', (event) => {
    const { item = '' } = getQuery<{ item?: string }>(event);
    event.waitUntil(setImmediate(item).then(runTasks)); // or they run before the response
    return order(item);
  });
serve(app, { hostname: address.host, port: address.port, silent: true });

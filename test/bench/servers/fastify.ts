/**
 * Fastify: the `onResponse` hook, "executed when a response has been sent".
 * https://fastify.dev/docs/latest/Reference/Hooks/#onresponse
 */
import fastify from 'fastify';
import { address, counts, order, runTasks } from './work.ts';

interface Order {
  Querystring: { item: string };
}

const app = fastify();
app.get('/counts', async () => counts);
app.post<Order>('/order', { onResponse: ({ query }) => runTasks(query.item) }, async ({ query }) =>
  order(query.item),
);
await app.listen(address);

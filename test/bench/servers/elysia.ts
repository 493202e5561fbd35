/**
 * Elysia on Bun: `afterResponse`, "executed after the response sent to the client".
 * https://elysiajs.com/essential/life-cycle#after-response
 */
import { Elysia } from 'elysia';
import { address, counts, order, runTasks } from './work.ts';

new Elysia()
  .get('/counts', () => counts)
  .post('/order', ({ query }) => order(String(query.item)), {
    afterResponse: ({ query }) => runTasks(String(query.item)),
  })
  .listen({ hostname: address.host, port: address.port });

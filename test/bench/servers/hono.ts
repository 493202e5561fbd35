/**
 * Hono on @hono/node-server: `waitUntil`, which node-server leaves to the caller.
 * https://hono.dev/docs/api/context#executionctx
 */
import { setImmediate } from 'node:timers/promises';
import { serve } from '@hono/node-server';
import { type ExecutionContext, Hono } from 'hono';
import { address, counts, order, runTasks } from './work.ts';

const context = {
  waitUntil: (promise) => {
    promise.catch(console.error);
  },
  passThroughOnException: () => {},
  props: {},
} satisfies ExecutionContext;

const app = new Hono();
app.get('/counts', (c) => c.json(counts));
app.post('/order', (c) => {
  const item = c.req.query('item') ?? '';
  c.executionCtx.waitUntil(setImmediate(item).then(runTasks)); // or they run before the response
  return c.json(order(item));
});
serve({
  fetch: (request, env) => app.fetch(request, env, context),
  hostname: address.host,
  port: address.port,
});

/** Koa with @koa/router: the response's 'finish'. https://koajs.com/#ctx-res */
import Router from '@koa/router';
import Koa from 'koa';
import { address, counts, order, runTasks } from './work.ts';

const router = new Router();
router.get('/counts', (ctx) => {
  ctx.body = counts;
});
router.post('/order', (ctx) => {
  const item = String(ctx.query.item);
  ctx.res.on('finish', () => runTasks(item));
  ctx.body = order(item);
});
new Koa().use(router.routes()).use(router.allowedMethods()).listen(address);

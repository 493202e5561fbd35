/** polka: the response's 'finish'; JSON by hand, as its own examples do. https://github.com/lukeed/polka */
import type { ServerResponse } from 'node:http';
import polka from 'polka';
import { address, counts, order, runTasks } from './work.ts';

function send(res: ServerResponse, value: unknown): void {
  const text = JSON.stringify(value);
  res.writeHead(200, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) });
  res.end(text);
}

polka()
  .get('/counts', (_req, res) => send(res, counts))
  .post('/order', (req, res) => {
    const item = String(req.query.item);
    res.on('finish', () => runTasks(item));
    send(res, order(item));
  })
  .listen(address.port, address.host);

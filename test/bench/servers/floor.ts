/** Raw `node:http`: what a program written for this one route does, and nothing more. */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { fileURLToPath } from 'node:url';
import { address, counts, order, runTasks } from './work.ts';

export function listener(req: IncomingMessage, res: ServerResponse): void {
  const { method, url = '' } = req;
  if (method === 'GET') {
    send(res, counts);
    return;
  }
  const item = decodeURIComponent(url.slice(url.indexOf('item=') + 5));
  send(res, order(item));
  res.once('finish', () => setImmediate(runTasks, item));
}

function send(res: ServerResponse, value: unknown): void {
  const text = JSON.stringify(value);
  res.writeHead(200, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) });
  res.end(text);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  createServer(listener).listen(address);
}

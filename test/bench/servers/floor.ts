/** Raw `node:http`: what a program written for this one route does, and nothing more. */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { fileURLToPath } from 'node:url';
import { address, counts, record, TASKS } from './work.ts';

export function listener(req: IncomingMessage, res: ServerResponse): void {
  const { method, url = '' } = req;
  if (method === 'GET') return send(res, counts);
  counts.answered += 1;
  const item = decodeURIComponent(url.slice(url.indexOf('item=') + 5));
  send(res, { message: `주문 완료: ${item}` });
  res.once('finish', () => setImmediate(run, item));
}

function send(res: ServerResponse, value: unknown): void {
  const text = JSON.stringify(value);
  res.writeHead(200, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) });
  res.end(text);
}

async function run(item: string): Promise<void> {
  for (const task of TASKS) {
    try {
      const pending: unknown = record(`${task}: ${item}`);
      if (typeof (pending as PromiseLike<unknown> | undefined)?.then === 'function') await pending;
    } catch (error) {
      console.error(error);
    }
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) createServer(listener).listen(address);

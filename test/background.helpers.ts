/** What the tests of background.ts share. */
import { once } from 'node:events';
import { createServer, IncomingMessage, type RequestListener } from 'node:http';
import { type AddressInfo, Socket } from 'node:net';
import type { TestContext } from 'node:test';
import { BackgroundTasks, type BackgroundTasksOptions, type TaskInfo } from '../background.ts';
import { rawClient } from './helpers.ts';

export function queue(tasks: readonly (() => unknown)[], options?: BackgroundTasksOptions): BackgroundTasks {
  const made = new BackgroundTasks(options);
  for (const task of tasks) {
    made.addTask(task);
  }
  return made;
}

export const request = (method: string, url: string): IncomingMessage =>
  Object.assign(new IncomingMessage(new Socket()), { method, url });

export const names = (tasks: readonly TaskInfo[]): string[] => tasks.map(({ name }) => name);

/** Other queues run to their end, through several turns of the event loop: what was free to happen has happened. */
export async function otherQueues(): Promise<void> {
  for (let round = 0; round < 5; round += 1) {
    await queue([() => {}, () => new Promise(setImmediate)]).run();
  }
}

/** Blocks the thread, as a task that computes does. */
export function busy(ms: number): void {
  const end = performance.now() + ms;
  while (performance.now() < end) {}
}

export const boom = (): Error => new Error('boom');

export interface Bare {
  readonly port: number;
  /** Other requests go through the same server: what was free to happen has happened. */
  fence(): Promise<void>;
}

/** A server with nothing of ours in it. It ends with the test, also where the test has run into a deadline. */
export async function bareServer(t: TestContext, handler: RequestListener): Promise<Bare> {
  const server = createServer({ keepAliveTimeout: 0 });
  server.on('request', (req, res) => (req.url === '/fence' ? res.end() : handler(req, res)));
  await once(server.listen(0, '127.0.0.1'), 'listening');
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  const { port } = server.address() as AddressInfo;
  const fence = async (): Promise<void> => {
    for (let round = 0; round < 5; round += 1) {
      using other = await rawClient(port);
      other.send('GET /fence HTTP/1.0', '', '');
      await other.closed;
    }
  };
  return { port, fence };
}

export const GET = ['GET / HTTP/1.1', 'host: a', '', ''].join('\r\n');

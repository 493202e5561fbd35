/** What the tests of server.ts share. */
import { EventEmitter, once } from 'node:events';
import http, { type IncomingHttpHeaders, type RequestListener } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { afterEach, test as nodeTest, type TestContext } from 'node:test';
import { type App, type AppOptions, backgroundTasks, get, type Route } from '../server.ts';
import { type Served, serve as serveRoutes, within } from './helpers.ts';

export const test = (title: string, run: (t: TestContext) => Promise<void> | void): void =>
  void nodeTest(title, within, run);

export const MiB = 2 ** 20;

export const TOO_MUCH = 'x'.repeat(64 * MiB); // more than the buffers of a connection hold

/** What happened, in order. */
export class Journal {
  readonly entries: string[] = [];
  readonly #events = new EventEmitter().setMaxListeners(0);
  readonly write = (entry: string): void => {
    this.entries.push(entry);
    this.#events.emit('entry');
  };
  /** Resolves once `entry` is in it. */
  readonly until = async (entry: string): Promise<void> => {
    while (!this.entries.includes(entry)) {
      await once(this.#events, 'entry');
    }
  };
}

interface Answer {
  status: number;
  reason: string;
  headers: IncomingHttpHeaders;
  rawHeaders: string[];
  body: string;
}

/** A request on a connection of its own, unless `agent` says otherwise. */
export async function ask(url: string, options: http.RequestOptions = {}, content = ''): Promise<Answer> {
  const sent = http.request(url, { agent: false, ...options }).end(content);
  const [res] = (await once(sent, 'response')) as [http.IncomingMessage];
  let body = '';
  for await (const chunk of res.setEncoding('utf8')) {
    body += chunk;
  }
  const { statusCode: status = 0, statusMessage: reason = '', headers, rawHeaders } = res;
  return { status, reason, headers, rawHeaders, body };
}

const fenceRoute = get('/fence', { tasks: backgroundTasks }, async ({ tasks }) => {
  tasks.addTask(() => new Promise(setImmediate));
  tasks.addTask(() => {});
});

const open = new Set<App>();
afterEach(async () => {
  for (const app of open) {
    await app.close();
  }
  open.clear();
}); // also after a deadline

/** `routes`, and one to fence with. */
export async function serve(routes: readonly Route[], options: AppOptions = {}): Promise<Served> {
  const server = await serveRoutes([...routes, fenceRoute], { drainTimeoutMs: 5_000, ...options });
  open.add(server.app);
  return server;
}

/** Other requests and their tasks come and go: what was free to happen has happened. */
export async function fence(url: string): Promise<void> {
  for (let round = 0; round < 5; round += 1) {
    await ask(`${url}/fence`);
  }
}

/** A `node:http` server that is not ours. */
export async function foreign(
  listener: RequestListener,
  options: http.ServerOptions = {},
): Promise<{ url: string; port: number } & AsyncDisposable> {
  const server = http.createServer(options, listener).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const close = async (): Promise<void> => {
    server.closeAllConnections();
    await once(server.close(), 'close');
  };
  return { url: `http://127.0.0.1:${port}`, port, [Symbol.asyncDispose]: close };
}

export const GET = (target: string, ...headers: string[]): string[] => [
  `GET ${target} HTTP/1.1`,
  'host: a',
  ...headers,
  '',
  '',
];

/** Resolves when the server sees that the client is gone. */
export const gone = (socket: Socket): Promise<void> =>
  new Promise((resolve) => void socket.once('close', () => resolve()));

/** A source of one text per call of `next`, to its end at `undefined`. */
export function source(
  next: () => string | undefined | Promise<string | undefined>,
  cancel = (): void => {},
): ReadableStream {
  return new ReadableStream({
    async pull(controller) {
      const text = await next();
      if (text === undefined) {
        controller.close();
      } else {
        controller.enqueue(new TextEncoder().encode(text));
      }
    },
    cancel,
  });
}

/** `'first'`, and then what `rest` gives, once. */
export function firstAndThen(rest: () => string | Promise<string>, cancel?: () => void): ReadableStream {
  const parts: (() => string | Promise<string>)[] = [() => 'first', rest];
  return source(() => parts.shift()?.(), cancel);
}

export const without = (headers: IncomingHttpHeaders, ...names: string[]): IncomingHttpHeaders =>
  Object.fromEntries(Object.entries(headers).filter(([name]) => !['date', ...names].includes(name)));

export const bodies: Record<string, () => unknown> = {
  'a JSON value': () => ({ ok: true }),
  '16 MiB of JSON': () => 'x'.repeat(16 * MiB),
  'a Response': () => Response.json({ ok: true }, { status: 404 }),
  'a stream': () => new Response(firstAndThen(() => 'second')),
  'an empty Response': () => new Response(null, { status: 204 }),
};

import { once } from 'node:events';
import { existsSync, realpathSync } from 'node:fs';
import http, { type IncomingMessage, type ServerResponse } from 'node:http';
import net, { type AddressInfo, type Socket } from 'node:net';
import { constants } from 'node:os';
import { resolve } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { isMainThread } from 'node:worker_threads';
import { BackgroundTasks, report, responseDone, type BackgroundTasksOptions } from './background.ts';
import { HTTPError, inputsOf, Scope, type Dependencies, type Dependency, type Inputs, type Values } from './deps.ts';

export { BackgroundTasks, responseDone, type BackgroundTasksOptions, type TaskInfo } from './background.ts';
export { backgroundTasks, body, depends, header, HTTPError, path, query, request, strings } from './deps.ts';
export type { Dependencies, Dependency, StandardSchema, Values } from './deps.ts';

/** A method and a path with the handler that answers it; made by {@link route}, {@link get}, {@link post} and so on. */
export interface Route {
  readonly method: string;
  readonly path: string;
  /** @internal */ readonly segments: readonly string[];
  /** @internal */ readonly inputs: Inputs;
  /** @internal */ readonly handler: (values: object) => unknown;
}

interface Verb {
  <D extends Dependencies>(path: string, dependencies: D, handler: (values: Values<D>) => unknown): Route;
  (path: string, handler: () => unknown): Route;
}

/**
 * A route: `handler` gets the values of `dependencies` and returns any JSON value (answered with 200; `undefined` as `null`)
 * or a web-standard `Response`. A `:name` segment of `path` matches one non-empty segment; a literal one is preferred to it.
 *
 * ```ts
 * route('DELETE', '/items/:id', { id: path('id') }, ({ id }) => { items.delete(id); return new Response(null, { status: 204 }); })
 * ```
 * @throws TypeError if `path` does not begin with a slash, or names a segment twice, or `handler` is not a function.
 */
export function route<D extends Dependencies>(
  method: string, path: string, dependencies: D, handler: (values: Values<D>) => unknown): Route;
export function route(method: string, path: string, handler: () => unknown): Route;
export function route(method: string, path: string, ...rest: [unknown] | [Dependencies, unknown]): Route {
  const [dependencies, handler] = rest.length === 1 ? [{}, rest[0]] : rest;
  if (typeof handler !== 'function') throw new TypeError(`Expected the handler of ${method} ${path} to be a function, got ${typeof handler}.`);
  const segments = path.split('/').slice(1);
  const names = segments.filter((segment) => segment.startsWith(':'));
  if (!path.startsWith('/') || names.includes(':') || new Set(names).size < names.length) {
    throw new TypeError(`Expected a path such as '/items/:id', each name once, got '${path}'.`);
  }
  return { method, path, segments, inputs: inputsOf(dependencies), handler: handler as Route['handler'] };
}

const verb = (method: string): Verb => (path: string, ...rest: unknown[]) => route(method, path, ...rest as [never]);
/** {@link route} with the method in its name. HEAD is answered by the GET route. */
export const get: Verb = verb('GET');
export const post: Verb = verb('POST');
export const put: Verb = verb('PUT');
export const patch: Verb = verb('PATCH');

export interface AppOptions extends Omit<BackgroundTasksOptions, 'request'> {
  /** The longest request body that `body()` accepts, in bytes (1 MiB); a longer one is answered with 413. */
  readonly bodyLimit?: number;
  /** How long `close()` waits for responses and tasks, in ms (30 000); connections have half of it. */
  readonly drainTimeoutMs?: number;
  /** How long a client may take nothing of a response that waits for it, in ms (30 000); then it counts as gone. */
  readonly stallTimeoutMs?: number;
}

export interface App {
  /** Answers a request; for any `node:http` or `node:https` server. */
  readonly listener: (req: IncomingMessage, res: ServerResponse) => void;
  /** Starts a server of its own, on 127.0.0.1:8000 unless told otherwise; port 0 is any free one. */
  listen(address?: { readonly port?: number; readonly host?: string }): Promise<{ readonly url: string }>;
  /**
   * Stops accepting, finishes every response and every task, and resolves; called again, it returns the same promise.
   * `unfinished` names what was not done within `drainTimeoutMs`: tasks, or `METHOD url` of a request that has none.
   */
  close(): Promise<{ readonly unfinished: string[] }>;
  /** Resolves when no request and no task is left: what a test awaits before it looks at what the tasks did. */
  idle(): Promise<void>;
  /** The requests that have arrived and whose last task has not ended. */
  readonly pending: number;
  /** Puts `replacement` in the place of `dependency`, as FastAPI's `dependency_overrides`; returns what undoes it. */
  override<T>(dependency: Dependency<T>, replacement: Dependency<NoInfer<T>>): () => void;
}

/**
 * An app: routes, and the options of their tasks.
 *
 * ```ts
 * const app = createApp([get('/hello', { name: query('name', 'world') }, ({ name }) => ({ hello: name }))]);
 * const { url } = await app.listen({ port: 8000 });
 * ```
 * @throws Error for two equal routes, or a `path()` that its route lacks; RangeError for an option out of range.
 */
export function createApp(routes: readonly Route[], options: AppOptions = {}): App {
  const { bodyLimit = 2 ** 20, drainTimeoutMs = 30_000, stallTimeoutMs = 30_000, ...taskOptions } = options;
  for (const [name, value] of Object.entries({ bodyLimit, drainTimeoutMs, stallTimeoutMs })) {
    if (!(value >= 0 && value < 2 ** 31)) throw new RangeError(`Expected ${name} to be from 0 to 2 ** 31 - 1, got ${value}.`);
  }
  const root = routeTree(routes);
  const overrides = new Map<Dependency<unknown>, Dependency<unknown>>();
  const scopes = new Set<Scope>();
  const connections = new Map<Socket, { open: number }>();
  const whenIdle: (() => void)[] = [];
  let server: http.Server | undefined;
  let closing: Promise<{ unfinished: string[] }> | undefined;

  async function serve(request: IncomingMessage, res: ServerResponse): Promise<void> {
    const { socket } = request;
    const scope = new Scope(request, new BackgroundTasks({ request, ...taskOptions }), bodyLimit, overrides);
    const connection = connections.get(socket) ?? connect(socket);
    scopes.add(scope);
    connection.open += 1;
    const done = responseDone(res);
    res.on('timeout', () => socket.writableLength > 0 && socket.destroy()); // 7.10: slow is the reader, not the handler
    const streamed = await answer(scope, res);
    if (!res.writableFinished) res.setTimeout(stallTimeoutMs);
    if (streamed) await stream(streamed, res, done);
    await done;
    connection.open -= 1;
    if (closing && connection.open === 0) socket.destroySoon();
    if (request.readableDidRead && !request.readableEnded) request.resume(); // 7.17
    await scope.tasks.run();
    await scope.unwind(new BackgroundTasks({ request, ...taskOptions, afterFailure: 'continue' }));
    scopes.delete(scope);
    if (scopes.size === 0) for (const resolve of whenIdle.splice(0)) resolve();
  }

  /** Sends the head, and the body unless it is a stream: that is returned. */
  async function answer(scope: Scope, res: ServerResponse): Promise<ReadableStream | undefined> {
    try {
      const { route, segments } = find(root, res.req);
      scope.route = { segments, parameters: route.parameters };
      return send(res, await route.handler(await scope.resolve(route.inputs)));
    } catch (error) {
      const left = await scope.unwindAfter(error);
      scope.tasks.discard('the handler or a dependency threw');
      return refuse(res, left);
    }
  }

  function send(res: ServerResponse, value: unknown): ReadableStream | undefined {
    if (!(value instanceof Response)) return sendJson(res, 200, value);
    const { status, headers, body } = value;
    if (body?.locked) throw new TypeError('Expected a Response whose body nobody has read.');
    if (body === null && status !== 204 && status !== 304) headers.set('content-length', '0');
    writeHead(res, status, [...headers]);
    if (body && res.req.method !== 'HEAD') return body;
    res.end();
    body?.cancel().catch(() => {});
    return undefined;
  }

  function sendJson(res: ServerResponse, status: number, value: unknown, headers: Record<string, string> = {}): undefined {
    const text = JSON.stringify(value ?? null);
    if (text === undefined) throw new TypeError(`Expected a JSON value or a Response, got ${typeof value}.`);
    writeHead(res, status, Object.entries({ 'content-type': 'application/json', 'content-length': String(Buffer.byteLength(text)), ...headers }));
    res.end(text);
  }

  function writeHead(res: ServerResponse, status: number, headers: [string, string][]): void {
    if (closing && connections.get(res.req.socket)?.open === 1) headers.push(['connection', 'close']);
    res.writeHead(status, headers.flat());
  }

  /** The response to an error. What is no HTTPError, or cannot be sent as one, is reported and stays inside. */
  function refuse(res: ServerResponse, error: unknown): undefined {
    try {
      if (error instanceof HTTPError) return sendJson(res, error.status, { detail: error.detail }, error.headers);
    } catch (unsendable) {
      error = unsendable;
    }
    report(`${res.req.method} ${res.req.url} failed:`, error);
    return sendJson(res, 500, { detail: 'Internal Server Error' });
  }

  async function stream(body: ReadableStream, res: ServerResponse, done: Promise<void>): Promise<void> {
    const abort = new AbortController();
    try {
      // 7.15: behind a response whose client has left, a pipeline never settles on Node 20.
      await Promise.race([pipeline(Readable.fromWeb(body), res, { signal: abort.signal }), done]);
    } catch (error) {
      const left = error instanceof Error && 'code' in error && error.code === 'ERR_STREAM_PREMATURE_CLOSE';
      if (!left) report(`The response to ${res.req.method} ${res.req.url} broke off:`, error);
    }
    abort.abort();
  }

  function connect(socket: Socket): { open: number } {
    const connection = { open: 0 };
    connections.set(socket, connection);
    socket.once('close', () => connections.delete(socket));
    return connection;
  }

  const disconnect = (): void => { for (const socket of connections.keys()) socket.destroy(); };

  async function idle(): Promise<void> {
    if (scopes.size > 0) await new Promise<void>((resolve) => whenIdle.push(resolve));
  }

  /** 7: the first half of the time is for the responses, the other one for the tasks of those that had to be cut. */
  async function drain(): Promise<{ unfinished: string[] }> {
    const closed = server?.listening ? once(server, 'close') : undefined;
    if (server) net.Server.prototype.close.call(server); // 7.5: that of http cuts what is still being sent
    for (const [socket, { open }] of connections) if (open === 0) socket.destroySoon();
    const half = setTimeout(disconnect, drainTimeoutMs / 2); // 7.6: the timers hold the process too
    let deadline: NodeJS.Timeout | undefined;
    const expired = new Promise((resolve) => { deadline = setTimeout(resolve, drainTimeoutMs); });
    await Promise.race([Promise.resolve(closed).then(idle), expired]);
    clearTimeout(half);
    clearTimeout(deadline);
    const unfinished = [...scopes].flatMap(({ request, tasks }) => {
      const names = tasks.unfinished.map(({ name }) => name);
      tasks.discard('the server has stopped'); // before disconnect(), which would start them
      return names.length > 0 ? names : [`${request.method} ${request.url}`];
    });
    for (const name of unfinished) report(`Unfinished at the end of drainTimeoutMs: ${name}`);
    disconnect();
    return { unfinished };
  }

  return {
    listener: (request, res) => void serve(request, res),
    async listen({ port = 8000, host = '127.0.0.1' } = {}) {
      if (server || closing) throw new Error('Expected listen() to be called once, and before close().');
      server = http.createServer(this.listener).on('connection', connect).listen(port, host);
      await once(server, 'listening');
      const { address, family, port: bound } = server.address() as AddressInfo;
      return { url: `http://${family === 'IPv6' ? `[${address}]` : address}:${bound}` };
    },
    close: () => (closing ??= drain()),
    idle,
    get pending() { return scopes.size; },
    override(dependency, replacement) {
      overrides.set(dependency, replacement);
      return () => void overrides.delete(dependency);
    },
  };
}

type Node = { readonly literals: Map<string, Node>; parameter?: Node; readonly routes: Map<string, Placed> };
type Placed = Route & { readonly parameters: ReadonlyMap<string, number> };
const node = (): Node => ({ literals: new Map(), routes: new Map() });

function routeTree(routes: readonly Route[]): Node {
  const root = node();
  for (const route of routes) {
    const parameters = new Map<string, number>();
    let at = root;
    for (const [index, segment] of route.segments.entries()) {
      const name = /^:(.+)/.exec(segment)?.[1];
      if (name) parameters.set(name, index);
      const next = (name ? at.parameter : at.literals.get(segment)) ?? node();
      if (name) at.parameter = next;
      else at.literals.set(segment, next);
      at = next;
    }
    const where = `${route.method} ${route.path}`;
    if (at.routes.has(route.method)) throw new Error(`Expected one route for ${where}, got a second one.`);
    for (const name of pathNames(route.inputs)) {
      if (!parameters.has(name)) throw new Error(`Expected ${where} to have a segment :${name}, since it uses path('${name}').`);
    }
    at.routes.set(route.method, { ...route, parameters });
  }
  return root;
}

function pathNames(inputs: Inputs): string[] {
  return inputs.flatMap(([, { segment, inputs }]) => (segment === undefined ? pathNames(inputs) : [segment]));
}

/** @throws HTTPError 400 for a path that is not percent-encoded UTF-8, 404, or 405 with the methods that are allowed. */
function find(root: Node, { method = '', url = '' }: IncomingMessage): { route: Placed; segments: string[] } {
  const [path = ''] = url.replace(/^[a-z][a-z\d+.-]*:\/\/[^/?]*/i, '').split('?', 1);
  let segments = path.split('/').slice(1); // split first: %2F is data, not a separator
  try {
    if (path.includes('%')) segments = segments.map(decodeURIComponent);
  } catch {
    throw new HTTPError(400, 'Expected a path in percent-encoded UTF-8');
  }
  const allowed = new Set<string>();
  const route = walk(root, segments, 0, method, allowed);
  if (route) return { route, segments };
  if (allowed.size === 0) throw new HTTPError(404);
  throw new HTTPError(405, undefined, { headers: { allow: [...allowed].join(', ') } });
}

/** A literal segment before a parameter, whatever the order of the routes. */
function walk(at: Node, segments: string[], index: number, method: string, allowed: Set<string>): Placed | undefined {
  const segment = segments[index];
  if (segment === undefined) {
    const route = at.routes.get(method) ?? (method === 'HEAD' ? at.routes.get('GET') : undefined);
    for (const each of at.routes.keys()) allowed.add(each).add(each === 'GET' ? 'HEAD' : each);
    return route;
  }
  const literal = at.literals.get(segment);
  return (literal && walk(literal, segments, index + 1, method, allowed))
    ?? (at.parameter && segment !== '' ? walk(at.parameter, segments, index + 1, method, allowed) : undefined);
}

const USAGE = `Usage: node --import tsx server.ts [app-module] [--port N] [--host H]

  app-module   a module whose default export is what createApp() returned (fixtures/tutorial.ts)
  --port N     the port to listen on (PORT, or 8000; 0 for any free one)
  --host H     the address to listen on (HOST, or 127.0.0.1)`;

function stop(code: number, message: string): never {
  console.error('%s', message);
  process.exit(code);
}

function settings(): { file: string; port: number; host: string } {
  try {
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: { port: { type: 'string' }, host: { type: 'string' }, help: { type: 'boolean' } },
    });
    if (values.help) { console.log(USAGE); process.exit(0); }
    const port = values.port ?? (process.env['PORT'] || '8000');
    if (!/^\d{1,5}$/.test(port) || Number(port) > 65_535) throw new Error(`Expected a port from 0 to 65535, got '${port}'.`);
    if (positionals.length > 1) throw new Error(`Expected one app module, got ${positionals.length}: ${positionals.join(' ')}`);
    const file = positionals[0] ? resolve(positionals[0]) : fileURLToPath(new URL('fixtures/tutorial.ts', import.meta.url));
    return { file, port: Number(port), host: values.host ?? (process.env['HOST'] || '127.0.0.1') };
  } catch (error) {
    return stop(2, `${(error as Error).message.split('. ')[0]}\n${USAGE}`);
  }
}

async function main(): Promise<void> {
  const { file, port, host } = settings();
  if (!existsSync(file)) stop(1, `Cannot find the app module ${file}`);
  const { default: app } = await import(pathToFileURL(file).href) as { default?: Partial<App> };
  if (!app?.listen || !app.close || !app.idle) stop(1, `Expected ${file} to default-export what createApp() returned.`);
  process.on('unhandledRejection', (error) => report('Unhandled rejection:', error)); // 7.7
  const { url } = await app.listen({ port, host }).catch((error: Error) => stop(1, error.message));
  console.log(`listening on ${url}`);
  let signals = 0;
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.on(signal, () => {
      if ((signals += 1) > 1) process.exit(128 + constants.signals[signal]);
      void app.close?.().then(({ unfinished }) => process.exit(unfinished.length > 0 ? 1 : 0));
    });
  }
}

const script = process.argv[1];
if (isMainThread && script && existsSync(script) && realpathSync(script) === fileURLToPath(import.meta.url)) {
  // Under tsx, an app module outside a "type": "module" package imports this file again, as CommonJS.
  const loaded = Symbol.for('response-first');
  if (loaded in globalThis) throw new Error('');
  Object.assign(globalThis, { [loaded]: true });
  void main();
}

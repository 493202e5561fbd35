import { Buffer } from 'node:buffer';
import { once } from 'node:events';
import { existsSync, realpathSync, statSync } from 'node:fs';
import http, { type IncomingMessage, type OutgoingHttpHeaders, type ServerResponse } from 'node:http';
import net, { type AddressInfo, type Socket } from 'node:net';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { BackgroundTasks, isThenable, report, responseDone, whenDone,
  type BackgroundTasksOptions } from './background.ts';
import { HTTPError, inputsOf, Scope, segmentsOf, type Dependencies, type Dependency, type Values } from './deps.ts';

export { BackgroundTasks, responseDone, type BackgroundTasksOptions, type TaskInfo } from './background.ts';
export { backgroundTasks, body, depends, header, HTTPError, path, query, request, strings } from './deps.ts';
export type { Dependencies, Dependency, StandardSchema, Values } from './deps.ts';

/** A method and a path with the handler that answers it; made by {@link route}, {@link get}, {@link post} and so on. */
export interface Route {
  readonly method: string;
  readonly path: string;
  /** @internal */ readonly parameters: ReadonlyMap<string, number>;
  /** @internal */ readonly inputs: ReturnType<typeof inputsOf>;
  /** @internal */ readonly handler: (values: object) => unknown;
}

type Verb = (<D extends Dependencies>(path: string, dependencies: D, handler: (values: Values<D>) => unknown) => Route)
  & ((path: string, handler: () => unknown) => Route);

/**
 * A route. `handler` gets the values of the dependencies, and returns any JSON value (sent with 200; `undefined` as
 * `null`) or a web-standard `Response`. A `:name` in `path` stands for one segment, which `path('name')` gives.
 *
 * ```ts
 * route('DELETE', '/items/:id', { id: path('id') }, ({ id }) => ({ removed: items.delete(id) }));
 * ```
 * @throws TypeError if `path` does not begin with a slash, or has a name twice, or `handler` is not a function.
 */
export function route<D extends Dependencies>(
  method: string, path: string, dependencies: D, handler: (values: Values<D>) => unknown): Route;
export function route(method: string, path: string, handler: () => unknown): Route;
export function route(method: string, path: string, ...rest: [unknown] | [Dependencies, unknown]): Route {
  const [dependencies, handler] = rest.length === 1 ? [{}, rest[0]] : rest;
  if (typeof handler !== 'function') throw new TypeError(`Expected ${method} ${path} to have a handler function.`);
  const segments = path.split('/').slice(1);
  const names = segments.filter((segment) => segment.startsWith(':'));
  const parameters = new Map(names.map((name) => [name.slice(1), segments.indexOf(name)]));
  const isPath = path.startsWith('/') && parameters.size === names.length && !parameters.has('');
  if (!isPath) throw new TypeError(`Expected a path such as '/items/:id', each name once, got '${path}'.`);
  return { method, path, parameters, inputs: inputsOf(dependencies), handler: handler as Route['handler'] };
}

const verb = (method: string): Verb => (path: string, ...rest: unknown[]) => route(method, path, ...rest as [never]);
/** {@link route} with the method in its name; `get` answers HEAD as well. */
export const [get, post, put, patch] = ['GET', 'POST', 'PUT', 'PATCH'].map(verb) as [Verb, Verb, Verb, Verb];

export interface AppOptions extends Omit<BackgroundTasksOptions, 'request'> {
  /** The longest request body that `body()` accepts, in bytes (1 MiB); a longer one is answered with 413. */
  readonly bodyLimit?: number;
  /** How long `close()` waits for responses and tasks, in ms (30 000); connections have half of it. */
  readonly drainTimeoutMs?: number;
  /**
   * How long a client may take nothing of a response that waits for it, in ms (30 000); then it counts as gone, or
   * within thrice that if it sends meanwhile.
   */
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
  /** Puts `replacement` in the place of `dependency`, as FastAPI's `dependency_overrides`; returns what undoes that. */
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
  const { bodyLimit = 2 ** 20, drainTimeoutMs = 30_000, stallTimeoutMs = 30_000, afterFailure, onTaskError } = options;
  const wrong = Object.entries({ bodyLimit, drainTimeoutMs, stallTimeoutMs }).find(([, n]) => !(n >= 0 && n < 2 ** 31));
  if (wrong) throw new RangeError(`Expected ${wrong[0]} to be from 0 to 2 ** 31 - 1, got ${wrong[1]}.`);
  const tree = routeTree(routes);
  const shared = { bodyLimit, overrides: new Set<readonly [Dependency, Dependency]>() };
  const scopes: Scope[] = []; // of the requests that are not finished; no Set: see whenDone
  const connections = new Map<Socket, { responses: number }>();
  const whenIdle: (() => void)[] = [];
  let server: http.Server | undefined;
  let closing: ReturnType<typeof drain> | undefined;

  function serve(request: IncomingMessage, res: ServerResponse): void {
    const scope = new Scope(request, new BackgroundTasks({ request, afterFailure, onTaskError }), shared);
    scope.place = scopes.push(scope) - 1;
    (scope.connection = connections.get(request.socket) ?? connect(request.socket)).responses += 1;
    try {
      const answer = scope.answer(scope.route = find(scope, tree));
      if (isThenable(answer)) return void respond(scope, res, answer);
      send(res, answer);
      runTasks(scope, res, () => leave(scope));
    } catch (error) { void respond(scope, res, Promise.reject(error)); }
  }

  /** The rest of {@link serve}, where the answer has to be waited for, or is an error. */
  async function respond(scope: Scope, res: ServerResponse, answer: PromiseLike<unknown>): Promise<void> {
    try { send(res, await answer); } catch (error) { refuse(res, (await scope.unwindAfter(error)).left); }
    await new Promise<void>((resolve) => runTasks(scope, res, resolve));
    if (scope.cleanUps.length > 0) await scope.unwind({ onTaskError });
    leave(scope);
  }

  /** Once the response is out: its connection is free, and the tasks run. Calls `then` at their end. */
  function runTasks({ request, tasks, connection }: Scope, res: ServerResponse, then: () => void): void {
    if (!res.writableEnded || res.writableLength > 0) limitStall(res);
    whenDone(res, () => {
      if ((connection.responses -= 1) === 0 && closing) request.socket.destroySoon();
      if (request.readableDidRead) request.resume(); // 7.17
      tasks.start(then);
    });
  }

  function leave(scope: Scope): void {
    const last = scopes.pop()!;
    if (last !== scope) scopes[last.place = scope.place] = last;
    if (scopes.length === 0) for (const resolve of whenIdle.splice(0)) resolve();
  }

  /**
   * 7.10: what a client sends keeps the socket's timer from firing, so it is not read while a response waits for it.
   * A request that is still arriving is: its handler may need it, and Node limits its time.
   */
  function limitStall(res: ServerResponse): void {
    const { req: { socket } } = res.setTimeout(stallTimeoutMs, () => socket.writableLength > 0 && socket.destroy());
    res.prependListener('finish', () => socket.setTimeout(0)); // before Node's own, which sets that of what comes next
    const look = (): Socket => (res.req.complete && socket.writableLength > 0 ? socket.pause() : socket.resume());
    const timer = setInterval(look, stallTimeoutMs);
    whenDone(res, () => { clearInterval(timer); socket.resume(); });
  }

  /** Sends what a handler has returned; the body of a `Response` goes on in {@link pipe}. */
  function send(res: ServerResponse, value: any): void {
    if (value?.[Symbol.toStringTag] !== 'Response') return sendJson(res, 200, value); // not instanceof: other realms
    const { status, headers, body, bodyUsed }: Response = value;
    if (bodyUsed || (body && body.locked !== false)) throw new TypeError('Expected the body as an unread web stream.');
    const length = body || status === 204 || status === 304 ? {} : { 'content-length': 0 };
    writeHead(res, status, { ...length, ...Object.fromEntries(headers), 'set-cookie': headers.getSetCookie() });
    if (body && res.req.method !== 'HEAD') return void pipe(body, res);
    res.end();
    body?.cancel().catch(() => {}); // nobody will read it
  }

  function sendJson(res: ServerResponse, status: number, value: unknown, more?: OutgoingHttpHeaders): void {
    const text = JSON.stringify(value ?? null);
    if (text === undefined) throw new TypeError(`Expected a JSON value or a Response, got ${typeof value}.`);
    const headers = { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) };
    writeHead(res, status, more ? { ...headers, ...more, 'content-length': headers['content-length'] } : headers);
    res.end(text);
  }

  function writeHead(res: ServerResponse, status: number, headers: OutgoingHttpHeaders): void {
    if (closing && connections.get(res.req.socket)?.responses === 1) headers.connection = 'close';
    res.writeHead(status, http.STATUS_CODES[status] ?? 'unknown', headers); // or a refused head's phrase stays
  }

  /** Sends the error. One that is no HTTPError, or cannot be sent, is reported and stays inside. */
  function refuse(res: ServerResponse, error: unknown): void {
    try {
      if (!(error instanceof HTTPError)) throw error;
      const { status, detail, headers } = error;
      if ([204, 205, 304].includes(status)) return send(res, new Response(null, { status, headers }));
      return sendJson(res, status, { detail }, headers);
    } catch (unexpected) {
      report(`${res.req.method} ${res.req.url} failed:`, unexpected);
      if (!res.headersSent) sendJson(res, 500, { detail: 'Internal Server Error' }); // a host may have answered
    }
  }

  async function pipe(stream: ReadableStream, res: ServerResponse): Promise<void> {
    const reader = stream.getReader();
    const over = new AbortController();
    responseDone(res).then(() => { over.abort(); return reader.cancel(); }).catch(() => {}); // gone, or all is sent
    try {
      for (let chunk = await reader.read(); !chunk.done; chunk = await reader.read())
        if (!res.write(chunk.value)) await once(res, 'drain', over); // 7.15: it may never drain
      res.end();
    } catch (error) {
      if (!over.signal.aborted) report(`The response to ${res.req.method} ${res.req.url} broke off:`, error);
      res.destroy();
    }
  }

  function forget(this: Socket): void { connections.delete(this); } // one for all: a closure takes 0.1 KB of each
  const connect = (socket: Socket) => connections.set(socket.on('close', forget), { responses: 0 }).get(socket)!;

  const disconnect = (): void => { for (const socket of connections.keys()) socket.destroy(); };

  const idle = (): Promise<void> => new Promise((resolve) => (scopes.length > 0 ? whenIdle.push(resolve) : resolve()));

  /** 7: the first half of the time is for the responses, the other one for the tasks of those that had to be cut. */
  async function drain(): Promise<{ unfinished: string[] }> {
    const closed = server && once(net.Server.prototype.close.call(server), 'close'); // 7.5: http's own cuts responses
    if (server) for (const [socket, { responses }] of connections) if (responses === 0) socket.destroySoon();
    const timers = [setTimeout(disconnect, drainTimeoutMs / 2)]; // 7.6: they hold the process too
    const expired = new Promise((resolve) => timers.push(setTimeout(resolve, drainTimeoutMs)));
    await Promise.race([Promise.resolve(closed).then(idle), expired]);
    timers.forEach(clearTimeout);
    const unfinished = [...scopes].flatMap(({ request, tasks }) => {
      const names = tasks.unfinished.map(({ name }) => name);
      tasks.discard('the server has stopped'); // before disconnect(), which would start them
      return names.length > 0 ? names : [`${request.method} ${request.url}`];
    });
    for (const name of unfinished) report(`Unfinished at the end of drainTimeoutMs: ${name}`);
    if (unfinished.length > 0) disconnect();
    server?.close(); // ends the interval by which http looks for timeouts, and would hold the server
    return { unfinished };
  }

  return {
    listener: serve,
    async listen({ port = 8000, host = '127.0.0.1' } = {}) {
      if (server || closing) throw new Error('Expected listen() to be called once, and before close().');
      server = http.createServer(serve).on('connection', connect).listen(port, host);
      await Promise.race([once(server, 'listening'), once(server, 'close')]);
      if (closing) throw new Error('Expected close() to be called after listen() had ended.');
      const { address, family, port: bound } = server.address() as AddressInfo;
      return { url: `http://${family === 'IPv6' ? `[${address}]` : address}:${bound}` };
    },
    close: () => (closing ??= drain()),
    idle,
    get pending() { return scopes.length; },
    override: (...pair) => (shared.overrides.add(pair), () => void shared.overrides.delete(pair)),
  };
}

interface Node { readonly children: Map<string, Node>; readonly routes: Map<string, Route> }

/** One node per segment; any `:name` is ':'. So the place of a route in the list has no effect. */
function routeTree(routes: readonly Route[]): { root: Node; literals: ReadonlyMap<string, Node['routes']> } {
  const root: Node = { children: new Map(), routes: new Map() };
  const literals = new Map<string, Node['routes']>(); // of a path without parameters: the quick way to most routes
  for (const route of routes) {
    const where = `${route.method} ${route.path}`;
    let node = root;
    for (const segment of route.path.split('/').slice(1)) {
      const key = segment.startsWith(':') ? ':' : segment;
      if (!node.children.has(key)) node.children.set(key, { children: new Map(), routes: new Map() });
      node = node.children.get(key)!;
    }
    if (node.routes.has(route.method)) throw new Error(`Expected one route for ${where}, got two.`);
    const missing = segmentsOf(route.inputs).find((name) => !route.parameters.has(name));
    if (missing !== undefined) throw new Error(`Expected ${where} to have a segment :${missing}, as path() needs it.`);
    node.routes.set(route.method, route);
    if (route.parameters.size === 0) literals.set(route.path, node.routes);
  }
  return { root, literals };
}

/** @throws HTTPError 400 for a path that is not percent-encoded UTF-8, 404, or 405 with the methods that there are. */
function find(scope: Scope, { root, literals }: ReturnType<typeof routeTree>): Route {
  const { method = '', url = '' } = scope.request;
  const path = url.slice(0, url.indexOf('?') >>> 0); // -1 >>> 0 is past any end
  const literal = literals.get(path)?.get(method);
  if (literal) return literal;
  try {
    const segments = path.replace(/^[a-z][a-z\d+.-]*:\/\/[^/]*\/?/i, '/').split('/').slice(1); // %2F is data
    scope.segments = path.includes('%') ? segments.map(decodeURIComponent) : segments;
  } catch { throw new HTTPError(400, 'Expected a path in percent-encoded UTF-8'); }
  const allowed: string[] = [];
  const route = match(root, scope.segments, method, allowed);
  if (!route && allowed.length === 0) throw new HTTPError(404);
  if (!route) throw new HTTPError(405, undefined, { headers: { allow: [...new Set(allowed)].join(', ') } });
  return route;
}

/** The route for `method`, a literal segment before a parameter; the methods of all that match go into `allow`. */
function match(node: Node | undefined, [key, ...rest]: string[], method: string, allow: string[]): Route | undefined {
  if (!node) return undefined;
  if (key !== undefined) return match(node.children.get(key), rest, method, allow)
    ?? match(key ? node.children.get(':') : undefined, rest, method, allow);
  for (const name of node.routes.keys()) allow.push(name, ...(name === 'GET' ? ['HEAD'] : []));
  return node.routes.get(method) ?? (method === 'HEAD' ? node.routes.get('GET') : undefined);
}

const USAGE = `Usage: node --import tsx server.ts [app-module] [--port N] [--host H]
  app-module          its default export is what createApp() returned (fixtures/tutorial.ts)
  --port N, --host H  where to listen (PORT and HOST, or 8000 and 127.0.0.1; port 0 is any free one)`;

function exit(code: number, line: string): never { report(line); process.exit(code); }

function settings(): { file: URL; port: number; host: string } {
  const options = { port: { type: 'string' }, host: { type: 'string' }, help: { type: 'boolean' } } as const;
  try {
    const { values, positionals: [module, ...more] } = parseArgs({ options, allowPositionals: true });
    const { port = process.env['PORT'] || '8000', host = process.env['HOST'] || '127.0.0.1', help } = values;
    if (help) process.exit((console.log(USAGE), 0));
    if (more.length > 0) throw new Error(`Expected one app module, got ${more.length + 1}.`);
    if (!/^\d+$/.test(port) || Number(port) > 65_535) throw new Error(`Expected a port of 0 to 65535, got '${port}'.`);
    const file = module ? pathToFileURL(module) : new URL('fixtures/tutorial.ts', import.meta.url);
    return { file, port: Number(port), host };
  } catch (error) { return exit(2, `${(error as Error).message.split('\n', 1)}\n${USAGE}`); }
}

async function main(): Promise<void> {
  const { file, port, host } = settings();
  if (!statSync(file, { throwIfNoEntry: false })?.isFile()) exit(1, `Expected a file at ${fileURLToPath(file)}.`);
  const { default: app } = await import(file.href) as { default?: App };
  if (!app?.listen || !app.idle) return exit(1, `Expected ${fileURLToPath(file)} to default-export an app.`);
  process.on('unhandledRejection', (error) => report('Unhandled rejection:', error)); // 7.7
  const { url } = await app.listen({ port, host }).catch((error: Error) => exit(1, error.message));
  let signals = 0;
  const stop = async (_signal: string, number: number): Promise<void> => {
    if (signals++ > 0) process.exit(128 + number);
    process.exitCode = (await app.close()).unfinished.length > 0 ? 1 : 0;
    process.stdout.write('', () => process.stderr.write('', () => process.exit())); // a full pipe would lose it
  };
  process.on('SIGINT', stop).on('SIGTERM', stop);
  console.log(`listening on ${url}`);
}

const script = process.argv[1];
if (script && existsSync(script) && realpathSync(script) === fileURLToPath(import.meta.url)) {
  // tsx imports this file again, as CommonJS, for an app module outside a "type": "module" package.
  const isFirst = Reflect.defineProperty(globalThis, Symbol.for('response-first'), { value: {} });
  if (!isFirst) exit(1, 'The package.json of the app module needs "type": "module".');
  void main(); // not awaited: the app module imports this one, which would wait for itself
}

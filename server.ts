/**
 * The HTTP edge: routes, the app that serves them, and the command line. It re-exports what users need of the
 * two other files, so that one import line is enough. `serve`, in {@link createApp}, is the whole path of a
 * request.
 */
import { Buffer } from 'node:buffer';
import { once } from 'node:events';
import { existsSync, realpathSync, statSync } from 'node:fs';
import http, { type IncomingMessage, type OutgoingHttpHeaders, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { constants } from 'node:os';
import { extname } from 'node:path';
import { performance } from 'node:perf_hooks';
import type { Duplex } from 'node:stream';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs, types } from 'node:util';
import {
  BackgroundTasks,
  type BackgroundTasksOptions,
  connectionOf,
  describeRequest,
  isThenable,
  report,
  responseDone,
  whenOut,
} from './background.ts';
import {
  type AppContext,
  type Dependencies,
  type Dependency,
  HTTPError,
  type Inputs,
  inputsOf,
  type Match,
  Overrides,
  reachedFrom,
  Scope,
  type Values,
} from './deps.ts';

export { BackgroundTasks, type BackgroundTasksOptions, responseDone, type TaskInfo } from './background.ts';
export {
  backgroundTasks,
  body,
  clientSignal,
  type Dependencies,
  type Dependency,
  depends,
  HTTPError,
  header,
  type Inputs,
  path,
  query,
  request,
  type Source,
  type StandardSchema,
  stopSignal,
  strings,
  type Values,
} from './deps.ts';

// Routes

/**
 * A method and a path with the handler that answers it; made by {@link route}, {@link get}, {@link post} and
 * so on.
 */
export interface Route {
  readonly method: string;
  readonly path: string;
  /** What the handler gets, in the order declared. */
  readonly inputs: Inputs;
  /** @internal */
  readonly handler: (values: object) => unknown;
}

type Verb = (<D extends Dependencies>(
  path: string,
  dependencies: D,
  handler: (values: Values<D>) => unknown,
) => Route) &
  ((path: string, handler: () => unknown) => Route);

/**
 * A route. `handler` gets the values of the dependencies, and returns any JSON value (sent with 200;
 * `undefined` as `null`) or a web-standard `Response`. A `:name` in `path` stands for one segment, which
 * `path('name')` gives.
 *
 * ```ts
 * route('DELETE', '/items/:id', { id: path('id') }, ({ id }) => ({ removed: items.delete(id) }));
 * ```
 * @throws TypeError if `method` is none that Node knows, `path` does not begin with a slash or has a name
 * twice, or `handler` is not a function.
 */
export function route<D extends Dependencies>(
  method: string,
  path: string,
  dependencies: D,
  handler: (values: Values<D>) => unknown,
): Route;
export function route(method: string, path: string, handler: () => unknown): Route;
export function route(method: string, path: string, ...rest: [unknown] | [Dependencies, unknown]): Route {
  const [dependencies, handler] = rest.length === 1 ? [{}, rest[0]] : rest;
  if (typeof handler !== 'function') {
    throw new TypeError(`Expected ${method} ${path} to have a handler function.`);
  }
  if (!http.METHODS.includes(method)) {
    throw new TypeError(`Expected a method such as 'DELETE', in upper case, got '${method}'.`);
  }
  const names = segmentsOf(path).filter(isParameter);
  if (!path.startsWith('/') || names.includes(':') || new Set(names).size < names.length) {
    throw new TypeError(`Expected a path such as '/items/:id', each name once, got '${path}'.`);
  }
  return { method, path, inputs: inputsOf(dependencies), handler: handler as Route['handler'] };
}

function verb(method: string): Verb {
  return (path: string, ...rest: unknown[]) => route(method, path, ...(rest as [never]));
}

/** {@link route} for GET, which answers HEAD as well. */
export const get: Verb = verb('GET');
/** {@link route} for POST. */
export const post: Verb = verb('POST');
/** {@link route} for PUT. */
export const put: Verb = verb('PUT');
/** {@link route} for PATCH. */
export const patch: Verb = verb('PATCH');

// The app

export interface AppOptions extends Omit<BackgroundTasksOptions, 'request'> {
  /** The longest request body that `body()` accepts, in bytes (1 MiB); a longer one is answered with 413. */
  readonly bodyLimit?: number | undefined;
  /** How long `close()` waits for responses and tasks, in ms (30 000); connections have half of it. */
  readonly drainTimeoutMs?: number | undefined;
  /**
   * How long a client may take nothing of a response that waits for it, in ms (30 000); then it counts as
   * gone, at the latest after 1.25 times that, whether it sends or not.
   */
  readonly stallTimeoutMs?: number | undefined;
  /**
   * What becomes of the tasks where the handler or a dependency throws, also an input error: `'discard'` (the
   * default, as FastAPI does), or `'run'`. Generator dependencies are unwound before the error response all
   * the same, so that tasks meet closed resources.
   */
  readonly onThrow?: 'discard' | 'run' | undefined;
  /**
   * Node's own options of the server that `listen()` makes: `keepAliveTimeout`, `requestTimeout` and so on.
   */
  readonly server?: http.ServerOptions | undefined;
}

/** Where to listen: a port (8000; 0 is any free one) and a host (127.0.0.1), or the path of a unix socket. */
export interface Address {
  readonly port?: number | undefined;
  readonly host?: string | undefined;
  readonly path?: string | undefined;
}

export interface App {
  /** Answers a request; for any `node:http` or `node:https` server. */
  readonly listener: (req: IncomingMessage, res: ServerResponse) => void;
  /**
   * Starts a server of its own; `url` is `http://…`, or `unix:PATH`. After an error, as of a port in use, it
   * may be called again. The file of a unix socket that is there already is in use, and never removed.
   */
  listen(address?: Address): Promise<{ readonly url: string }>;
  /**
   * Stops accepting, finishes every response and every task, and resolves; called again, it returns the same
   * promise. `unfinished` names what was not done within `drainTimeoutMs`: tasks, or `METHOD path` of a
   * request that has none. An app that is mounted on a server of its host leaves the connections to this, but
   * for those that hold a response of its own at half of the time.
   */
  close(): Promise<{ readonly unfinished: string[] }>;
  /**
   * Resolves when no request and no task is left: what a test awaits before it looks at what the tasks did.
   */
  idle(): Promise<void>;
  /** The requests that have arrived and whose last task has not ended. */
  readonly pending: number;
  /** The tasks that have not ended, or `METHOD path` of a request that has none. @internal */
  readonly unfinished: string[];
  /**
   * Puts `replacement` in the place of `dependency`, as FastAPI's `dependency_overrides`; returns what undoes
   * that.
   */
  override<T>(dependency: Dependency<T>, replacement: Dependency<NoInfer<T>>): () => void;
}

/**
 * An app: routes, and the options of their tasks.
 *
 * ```ts
 * const app = createApp([get('/hello', { name: query('name', 'world') }, ({ name }) => ({ hello: name }))]);
 * const { url } = await app.listen({ port: 8000 });
 * ```
 * @throws Error for two equal routes, or a `path()` that its route lacks; RangeError for an option out of
 * range.
 */
// biome-ignore lint/complexity/noExcessiveLinesPerFunction: an app is its parts and a request's path
export function createApp(routes: readonly Route[], options: AppOptions = {}): App {
  const { bodyLimit, drainTimeoutMs, stallTimeoutMs } = limitsOf(options);
  const { afterFailure, onTaskError, onThrow = 'discard' } = options;
  const router = new Router(routes);
  const pending = new PendingRequests();
  const connections = new Connections();
  const overrides = new Overrides();
  const stopping = new StopSignal();
  const context: AppContext = { bodyLimit, overrides, onThrow, stopSignal: () => stopping.signal };
  let server: http.Server | undefined;
  let closed: Promise<{ unfinished: string[] }> | undefined;

  /** The whole path of a request. */
  async function serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const connection = connections.of(connectionOf(response));
    const tasks = new BackgroundTasks({ request, afterFailure, onTaskError });
    const scope = new Scope(request, response, connection.socket, tasks, context);
    const entry = pending.enter(request, tasks);
    connection.openResponses += 1;
    const sending = answer(scope, router, response, () => headOf(connection));
    if (sending) {
      await sending;
    }
    scope.forget();
    limitStall(response, connection.socket, stallTimeoutMs);
    await new Promise<unknown>((resolve) => whenOut(response, connection.socket, resolve));
    connection.openResponses -= 1;
    release(request, connection, closed !== undefined && server !== undefined);
    await tasks.run();
    if (scope.hasCleanUps) {
      await scope.cleanUp({ onTaskError });
    }
    pending.leave(entry);
  }

  /** Whether the connection ends with the response: only where nothing else is to be sent on it. */
  function headOf({ openResponses }: Connection): OutgoingHttpHeaders | undefined {
    return closed && server && openResponses === 1 ? CLOSE : undefined;
  }

  async function listen(address: Address): Promise<{ url: string }> {
    if (server || closed) {
      throw new Error('Expected listen() to be called once, and before close().');
    }
    server = http.createServer({ ...options.server }, serve);
    server.on('connection', (socket: Socket) => connections.of(socket));
    server.on('clientError', (error, socket) => refuse(error, socket, connections.of(socket)));
    try {
      return { url: await listenAt(server, address) };
    } catch (error) {
      server = undefined;
      throw error;
    }
  }

  return {
    listener: serve,
    listen: (address = {}) => listen(address),
    close() {
      closed ??= drain(server, connections, pending, drainTimeoutMs);
      stopping.begin();
      return closed;
    },
    idle: () => pending.idle(),
    get pending() {
      return pending.count;
    },
    get unfinished() {
      return pending.unfinished;
    },
    override: (dependency, replacement) => overrides.add(dependency, replacement),
  };
}

const CLOSE = { connection: 'close' };

/**
 * A response is out: what is left of its request's body is in the way of the next one, and a stop needs no
 * next one.
 */
function release(request: IncomingMessage, connection: Connection, isStopping: boolean): void {
  if (request.readableDidRead) {
    request.resume();
  }
  if (isStopping && connection.openResponses === 0) {
    connection.end();
  }
}

type Limits = Readonly<Record<'bodyLimit' | 'drainTimeoutMs' | 'stallTimeoutMs', number>>;

/** @throws RangeError for a limit that no timer and no counter can keep. */
function limitsOf(options: AppOptions): Limits {
  const { bodyLimit = 2 ** 20, drainTimeoutMs = 30_000, stallTimeoutMs = 30_000 } = options;
  for (const [name, value] of Object.entries({ bodyLimit, drainTimeoutMs, stallTimeoutMs })) {
    const least = name === 'stallTimeoutMs' ? 1 : 0; // every client waits for a moment
    if (!(value >= least && value < 2 ** 31)) {
      throw new RangeError(`Expected ${name} to be from ${least} to 2 ** 31 - 1, got ${value}.`);
    }
  }
  return { bodyLimit, drainTimeoutMs, stallTimeoutMs };
}

/** Listens, and gives the URL. */
async function listenAt(
  server: http.Server,
  { port = 8000, host = '127.0.0.1', path }: Address,
): Promise<string> {
  const closed = once(server, 'close').then(() => {
    throw new Error('Expected close() to be called after listen() had ended.');
  });
  server.listen(path === undefined ? { port, host } : { path });
  await Promise.race([once(server, 'listening'), closed]);
  if (path !== undefined) {
    return `unix:${path}`;
  }
  const { address, family, port: bound } = server.address() as AddressInfo;
  return family === 'IPv6' ? `http://[${address}]:${bound}` : `http://${address}:${bound}`;
}

/** Stops what is accepted, finishes what was, and names what is unfinished when `drainTimeoutMs` are over. */
async function drain(
  server: http.Server | undefined,
  connections: Connections,
  pending: PendingRequests,
  drainTimeoutMs: number,
): Promise<{ unfinished: string[] }> {
  // No new connection is accepted, and one that waits for no response ends.
  const accepted = server && stopAccepting(server);
  if (server) {
    connections.endIdle();
  }
  // Half of the time is for the responses, the other half for the tasks of those that had to be cut.
  const cut = (): void => connections.cut(server !== undefined);
  const timers = [setTimeout(cut, drainTimeoutMs / 2)];
  const deadline = new Promise((resolve) => timers.push(setTimeout(resolve, drainTimeoutMs)));
  await Promise.race([Promise.resolve(accepted).then(() => pending.idle()), deadline]);
  timers.forEach(clearTimeout);
  // What has not started never will: that comes before the connections are cut, which would start it.
  const unfinished = pending.giveUp();
  if (unfinished.length > 0) {
    cut();
  }
  return { unfinished };
}

/**
 * Resolves when all connections have ended. `http.Server` closes those it thinks idle, and with them a
 * response that has ended and is not flushed: a slow reader would lose the rest.
 */
async function stopAccepting(server: http.Server): Promise<void> {
  server.closeIdleConnections = () => {};
  const closed = once(server, 'close');
  server.close();
  await closed;
}

/** A signal that is made when somebody asks for it. */
class StopSignal {
  #controller: AbortController | undefined;
  #hasBegun = false;

  get signal(): AbortSignal {
    this.#controller ??= new AbortController();
    if (this.#hasBegun) {
      this.#controller.abort();
    }
    return this.#controller.signal;
  }

  begin(): void {
    this.#hasBegun = true;
    this.#controller?.abort();
  }
}

// What is sent

/**
 * Sends what the route gives, or the error. Apart from `serve`, whose variables last as long as its tasks:
 * what was returned or thrown is to be let go of before. Gives a promise only where something has to be
 * waited for.
 */
function answer(
  scope: Scope,
  router: Router,
  response: ServerResponse,
  headOf: () => OutgoingHttpHeaders | undefined,
): Promise<void> | undefined {
  try {
    const value = scope.answer(router.find(scope.request));
    if (isThenable(value)) {
      return answerLater(scope, value, response, headOf);
    }
    send(response, value, headOf());
    return undefined;
  } catch (error) {
    return answerError(scope, error, response, headOf);
  }
}

async function answerLater(
  scope: Scope,
  value: PromiseLike<unknown>,
  response: ServerResponse,
  headOf: () => OutgoingHttpHeaders | undefined,
): Promise<void> {
  try {
    send(response, await value, headOf());
  } catch (error) {
    await answerError(scope, error, response, headOf);
  }
}

async function answerError(
  scope: Scope,
  error: unknown,
  response: ServerResponse,
  headOf: () => OutgoingHttpHeaders | undefined,
): Promise<void> {
  const { left } = await scope.cleanUpAfter(error);
  sendError(response, left, headOf());
}

/** Sends what a handler has returned. `head` comes on top of its headers. */
function send(response: ServerResponse, value: unknown, head: OutgoingHttpHeaders | undefined): void {
  if (response.headersSent || response.writableEnded) {
    report(`${describeRequest(response.req)}: the answer was not sent, as the response had begun before it.`);
    discardBody(value);
  } else if (isResponse(value)) {
    sendResponse(response, value, head);
  } else {
    sendJson(response, 200, value, head);
  }
}

/** Not by instanceof: it may be of another realm, or of a package, as test runners have it. */
function isResponse(value: unknown): value is Response {
  return (value as Partial<Response> | null | undefined)?.[Symbol.toStringTag as never] === 'Response';
}

function discardBody(value: unknown): void {
  if (isResponse(value) && value.body && !value.body.locked) {
    value.body.cancel().catch(() => {});
  }
}

function sendJson(
  response: ServerResponse,
  status: number,
  value: unknown,
  more: OutgoingHttpHeaders | undefined,
): void {
  const text = JSON.stringify(checkedJson(value ?? null));
  if (text === undefined) {
    throw new TypeError(`Expected a JSON value or a Response, got ${typeof value}.`);
  }
  const own = { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) };
  if (more) {
    writeHead(response, status, { ...own, ...more, 'content-length': own['content-length'] });
  } else {
    response.writeHead(status, phraseOf(status), own); // most answers: 0.1 µs less
  }
  end(response, text);
}

/** Ends a response whose head is written: one that cannot be ended would hold its connection for ever. */
function end(response: ServerResponse, text?: string): void {
  try {
    if (text === undefined || response.req.method === 'HEAD') {
      response.end();
    } else {
      response.end(text);
    }
  } catch (error) {
    response.destroy();
    throw error;
  }
}

/** @throws TypeError for an object of which JSON would make `{}`, or its inner workings. */
function checkedJson(value: unknown): unknown {
  if (typeof value !== 'object' || value === null || Array.isArray(value) || 'toJSON' in value) {
    return value;
  }
  const advice = adviceAgainst(value);
  if (advice) {
    throw new TypeError(`Expected a JSON value or a Response, got ${nameOfClass(value)}. ${advice}.`);
  }
  return value;
}

function adviceAgainst(value: object): string | undefined {
  if (Symbol.asyncIterator in value || ('pipe' in value && typeof value.pipe === 'function')) {
    return 'Put a web stream into a Response';
  }
  if (value instanceof Blob || value instanceof ArrayBuffer || ArrayBuffer.isView(value)) {
    return 'Put it into a Response';
  }
  if (Symbol.iterator in value || types.isNativeError(value)) {
    return 'Make a plain object or an array of it';
  }
  return undefined;
}

function nameOfClass(value: object): string {
  const name: unknown = value.constructor?.name;
  return name ? `a value of ${name}` : 'an iterator';
}

function sendResponse(
  response: ServerResponse,
  value: Response,
  more: OutgoingHttpHeaders | undefined,
): void {
  const { status, body, bodyUsed } = value;
  if (bodyUsed || (body && body.locked !== false)) {
    throw new TypeError('Expected the body as an unread web stream.');
  }
  const hasBody = body !== null && body !== undefined;
  try {
    const length = declaredLength(value, response.req.method === 'HEAD');
    writeHead(response, status, { ...headersOf(response, value), ...more });
    if (hasBody && response.req.method !== 'HEAD') {
      pipe(body, response, length);
      return;
    }
    end(response);
  } catch (error) {
    discardBody(value);
    throw error;
  }
  discardBody(value); // nobody will read it
}

const BODILESS = [204, 304];

/** The headers of `value`. Node chooses how the body is delimited. */
function headersOf(response: ServerResponse, { headers, status, body }: Response): OutgoingHttpHeaders {
  const { 'transfer-encoding': _, ...own } = Object.fromEntries(headers);
  const length = body || BODILESS.includes(status) ? {} : { 'content-length': '0' };
  return { ...length, ...own, ...allCookies(response, headers.getSetCookie()) };
}

/** The cookies of the host, which a head with cookies of its own would replace, and behind them those. */
function allCookies(response: ServerResponse, own: readonly string[]): OutgoingHttpHeaders {
  const cookies = [response.getHeader('set-cookie') ?? []].flat().map(String).concat(own);
  return cookies.length > 0 ? { 'set-cookie': cookies } : {};
}

/** The `content-length` of `value`, or undefined. @throws TypeError for one that cannot be true. */
function declaredLength({ headers, status, body }: Response, isHead: boolean): number | undefined {
  const text = headers.get('content-length');
  if (text === null) {
    return undefined;
  }
  if (!/^\d+$/.test(text)) {
    throw new TypeError(`Expected content-length to be a number, got '${text}'.`);
  }
  const length = Number(text);
  if (length > 0 && !body && !isHead && !BODILESS.includes(status)) {
    throw new TypeError(`Expected a body of ${length} bytes, as content-length says, got none.`);
  }
  return length;
}

/** Always given: a head that was refused before may have left its own. */
function phraseOf(status: number): string {
  return http.STATUS_CODES[status] ?? 'unknown';
}

/**
 * Writes the head, or leaves the headers as they were: a refused one has nothing to do with the 500 behind
 * it.
 */
function writeHead(response: ServerResponse, status: number, headers: OutgoingHttpHeaders): void {
  const before = response.getHeaders();
  try {
    response.writeHead(status, phraseOf(status), headers);
  } catch (error) {
    for (const name of response.getHeaderNames()) {
      response.removeHeader(name);
    }
    for (const [name, value] of Object.entries(before)) {
      response.setHeader(name, value as number | string | string[]);
    }
    throw error;
  }
}

/** Sends the error. One that is no HTTPError, or cannot be sent, is reported and stays inside. */
function sendError(response: ServerResponse, error: unknown, head: OutgoingHttpHeaders | undefined): void {
  if (error instanceof HTTPError && !response.headersSent) {
    try {
      sendHttpError(response, error, head);
      return;
    } catch (unsendable) {
      sendUnexpected(response, unsendable, head);
      return;
    }
  }
  sendUnexpected(response, error, head);
}

function sendHttpError(
  response: ServerResponse,
  error: HTTPError,
  head: OutgoingHttpHeaders | undefined,
): void {
  const { status, detail, headers } = error;
  if ([204, 205, 304].includes(status)) {
    sendResponse(response, new Response(null, { status, headers }), head);
  } else {
    const { 'set-cookie': cookie, ...others } = headers;
    const cookies = allCookies(response, cookie === undefined ? [] : [cookie]);
    sendJson(response, status, { detail }, { ...others, ...cookies, ...head });
  }
}

function sendUnexpected(
  response: ServerResponse,
  error: unknown,
  head: OutgoingHttpHeaders | undefined,
): void {
  report(`${describeRequest(response.req)} failed:`, error);
  if (!response.headersSent) {
    sendJson(response, 500, { detail: 'Internal Server Error' }, head);
  }
}

/**
 * Sends a stream: `length` bytes, if that is known, and never one more, which the client took for the next
 * response.
 */
async function pipe(stream: ReadableStream, response: ServerResponse, length?: number): Promise<void> {
  const reader = stream.getReader();
  let isOver = false;
  let goOn = (): void => {};
  response.on('drain', () => goOn());
  responseDone(response).then(() => {
    isOver = true; // the client is gone, or all is sent
    goOn();
    reader.cancel().catch(() => {});
  });
  // Whoever opens a stream of events waits for its head, and the first event may be far.
  const flush = setImmediate(() => response.flushHeaders());
  let sent = 0;
  try {
    for (let next = await reader.read(); !next.done && !isOver; next = await reader.read()) {
      clearImmediate(flush);
      sent += Buffer.byteLength(next.value);
      checkLength(sent <= (length ?? sent), length, 'more');
      if (!response.write(next.value)) {
        await new Promise<void>((resolve) => {
          goOn = resolve;
        });
      }
    }
    checkLength(isOver || sent === (length ?? sent), length, 'fewer');
    response.end();
  } catch (error) {
    if (!isOver) {
      report(`The response to ${describeRequest(response.req)} broke off:`, error);
    }
    response.destroy();
  } finally {
    clearImmediate(flush);
  }
}

function checkLength(isRight: boolean, length: number | undefined, got: 'more' | 'fewer'): void {
  if (!isRight) {
    throw new Error(`Expected ${length} bytes, as content-length says, got ${got}.`);
  }
}

/**
 * Answers what Node could not parse, or did not get in time; Node's own answer has no body that tells why.
 */
function refuse(
  error: Error & { code?: string; reason?: string },
  socket: Duplex,
  connection: Connection,
): void {
  if (error.code === 'ECONNRESET' || !socket.writable || connection.openResponses > 0) {
    socket.destroy();
    return;
  }
  const status = REFUSALS.get(error.code) ?? 400;
  const detail = error.reason ? `${http.STATUS_CODES[status]}: ${error.reason}` : http.STATUS_CODES[status];
  const body = JSON.stringify({ detail });
  const head = [
    `HTTP/1.1 ${status} ${http.STATUS_CODES[status]}`,
    'content-type: application/json',
    `content-length: ${Buffer.byteLength(body)}`,
    'connection: close',
  ];
  socket.end(`${head.join('\r\n')}\r\n\r\n${body}`, () => socket.destroy());
}

const REFUSALS = new Map<string | undefined, number>([
  ['HPE_HEADER_OVERFLOW', 431],
  ['HPE_CHUNK_EXTENSIONS_OVERFLOW', 413],
  ['ERR_HTTP_REQUEST_TIMEOUT', 408],
]);

// A client that takes nothing

const LOOKS_A_STALL = 8;

/**
 * Ends the connection of a client that takes nothing of a response that waits for it. Node has no time-out
 * for that, and a socket's own timer begins anew with whatever the client sends, and belongs to the host.
 */
function limitStall(response: ServerResponse, connection: Duplex | undefined, stallTimeoutMs: number): void {
  const isWaiting = !response.writableEnded || response.writableLength > 0;
  if (!connection || !isWaiting) {
    return;
  }
  let taken = takenFrom(connection);
  let looksInVain = 0; // not the time: while a task blocks the thread, no client can take anything
  const look = (): void => {
    const before = taken;
    taken = takenFrom(connection);
    const hasMoved = taken.writes !== before.writes || taken.left !== before.left;
    looksInVain = hasMoved || connection.writableLength === 0 ? 0 : looksInVain + 1;
    if (looksInVain === LOOKS_A_STALL) {
      connection.destroy();
    }
  };
  const timer = setInterval(look, stallTimeoutMs / LOOKS_A_STALL);
  whenOut(response, connection, () => clearInterval(timer));
}

/**
 * How many bytes of whole writes were taken, and what is left of the one that is under way: no API tells
 * that.
 */
function takenFrom(connection: Duplex): { writes: number; left: number } {
  const {
    bytesWritten = 0,
    writableLength,
    _handle,
  } = connection as Duplex & {
    bytesWritten?: number;
    _handle?: { writeQueueSize?: number } | null;
  };
  return { writes: bytesWritten - writableLength, left: _handle?.writeQueueSize ?? 0 };
}

// Who is connected, and pending

/** A connection, and how many responses it waits for. */
class Connection {
  readonly socket: Duplex | undefined;
  openResponses = 0;

  constructor(socket: Duplex | undefined) {
    this.socket = socket;
  }

  /** Ends it when all that was written is sent. A connection need not be a socket. */
  end(): void {
    const { socket } = this;
    if (socket && 'destroySoon' in socket) {
      (socket as Socket).destroySoon();
    } else {
      socket?.end(() => socket.destroy());
    }
  }
}

class Connections {
  readonly #all = new Map<Duplex, Connection>();
  readonly #forget: (this: Duplex) => void;

  constructor() {
    const all = this.#all;
    // One listener for all of them: a closure would take 0.1 KB of each.
    this.#forget = function forget() {
      all.delete(this);
    };
  }

  of(socket: Duplex | undefined): Connection {
    return (socket && this.#all.get(socket)) ?? this.#add(socket);
  }

  #add(socket: Duplex | undefined): Connection {
    const connection = new Connection(socket);
    if (socket && !socket.destroyed) {
      this.#all.set(socket, connection); // a closed one would stay for ever: its 'close' is past
      socket.on('close', this.#forget);
    }
    return connection;
  }

  endIdle(): void {
    for (const connection of this.#all.values()) {
      if (connection.openResponses === 0) {
        connection.end();
      }
    }
  }

  /** Ends all of them at once, or, of a host's, those that wait for a response of ours. */
  cut(areOurs: boolean): void {
    for (const { socket, openResponses } of this.#all.values()) {
      if (areOurs || openResponses > 0) {
        socket?.destroy();
      }
    }
  }
}

interface PendingRequest {
  readonly request: IncomingMessage;
  readonly tasks: BackgroundTasks;
  place: number;
}

/**
 * The requests whose last task has not ended. An array in which the last one takes the place of one that
 * leaves: a Set's old tables keep the garbage of each request alive for long.
 */
class PendingRequests {
  readonly #all: PendingRequest[] = [];
  #whenIdle: (() => void)[] = [];

  get count(): number {
    return this.#all.length;
  }

  enter(request: IncomingMessage, tasks: BackgroundTasks): PendingRequest {
    const entry = { request, tasks, place: this.#all.length };
    this.#all.push(entry);
    return entry;
  }

  leave(entry: PendingRequest): void {
    const last = this.#all.pop();
    if (last && last !== entry) {
      last.place = entry.place;
      this.#all[entry.place] = last;
    }
    if (this.#all.length === 0) {
      const whenIdle = this.#whenIdle;
      this.#whenIdle = [];
      for (const resolve of whenIdle) {
        resolve();
      }
    }
  }

  idle(): Promise<void> {
    return new Promise((resolve) => {
      if (this.#all.length === 0) {
        resolve();
      } else {
        this.#whenIdle.push(resolve);
      }
    });
  }

  get unfinished(): string[] {
    return this.#all.flatMap(({ request, tasks }) => {
      const names = tasks.unfinished.map(({ name }) => name);
      return names.length > 0 ? names : [describeRequest(request)];
    });
  }

  /** Closes the queues, and names on stderr what is unfinished. */
  giveUp(): string[] {
    const { unfinished } = this;
    for (const { tasks } of this.#all) {
      tasks.discard('the server has stopped');
    }
    for (const name of unfinished) {
      report(`Unfinished at the end of drainTimeoutMs: ${name}`);
    }
    return unfinished;
  }
}

// The router

/** What a segment leads to: `:` stands for a parameter, whatever it is called. */
interface Branch {
  readonly children: Map<string, Branch>;
  readonly routes: Map<string, Route>;
}

/**
 * Finds a route by its segments, a literal one before a parameter: the place of a route in the list has no
 * effect.
 */
class Router {
  readonly #root: Branch = { children: new Map(), routes: new Map() };
  /** The routes without a parameter by their path: one look-up takes 0.7 µs less than a walk. */
  readonly #literals = new Map<string, Map<string, Match>>();

  constructor(routes: readonly Route[]) {
    for (const route of routes) {
      this.#add(route);
    }
  }

  #add(route: Route): void {
    const { method, path } = route;
    const segments = segmentsOf(path);
    let branch = this.#root;
    for (const segment of segments) {
      const key = isParameter(segment) ? ':' : segment;
      const next = branch.children.get(key) ?? { children: new Map(), routes: new Map() };
      branch.children.set(key, next);
      branch = next;
    }
    if (branch.routes.has(method)) {
      throw new Error(`Expected one route for ${method} ${path}, got two.`);
    }
    checkParameters(route);
    branch.routes.set(method, route);
    if (!segments.some(isParameter)) {
      const matches = this.#literals.get(path) ?? new Map<string, Match>();
      this.#literals.set(path, matches.set(method, { route, parameters: undefined }));
    }
  }

  /**
   * @throws HTTPError 400 for a path that is not percent-encoded UTF-8, 404, or 405 with the methods that
   * there are.
   */
  find({ method = '', url = '' }: IncomingMessage): Match {
    const end = url.indexOf('?');
    const path = end < 0 ? url : url.slice(0, end);
    const literal = this.#literals.get(path)?.get(method);
    if (literal) {
      return literal;
    }
    const segments = decodedSegments(path);
    const found = [...walk(this.#root, segments)];
    const route = firstRoute(found, method) ?? (method === 'HEAD' ? firstRoute(found, 'GET') : undefined);
    if (route) {
      return { route, parameters: parametersOf(route, segments) };
    }
    if (found.length === 0) {
      throw new HTTPError(404);
    }
    throw new HTTPError(405, undefined, { headers: { allow: methodsOf(found).join(', ') } });
  }
}

function segmentsOf(path: string): string[] {
  return path.split('/').slice(1);
}

function isParameter(segment: string): boolean {
  return segment.startsWith(':');
}

/** @throws Error for a `path()` that the route lacks. */
function checkParameters({ method, path, inputs }: Route): void {
  const segments = segmentsOf(path);
  for (const { source, name } of reachedFrom(inputs)) {
    if (source === 'path' && !segments.includes(`:${name}`)) {
      throw new Error(`Expected ${method} ${path} to have a segment :${name}, as path() needs it.`);
    }
  }
}

/** Decoded after the path was split: `%2F` is data. A target in absolute form is routed by its path. */
function decodedSegments(path: string): string[] {
  const segments = segmentsOf(path.replace(/^[a-z][a-z\d+.-]*:\/\/[^/]*\/?/i, '/'));
  try {
    return path.includes('%') ? segments.map(decodeURIComponent) : segments;
  } catch {
    throw new HTTPError(400, 'Expected a path in percent-encoded UTF-8');
  }
}

/** The ends of all ways that `segments` can go, from `place` on; that by a literal segment first. */
function* walk(branch: Branch, segments: readonly string[], place = 0): Generator<Branch> {
  const segment = segments[place];
  if (segment === undefined) {
    if (branch.routes.size > 0) {
      yield branch;
    }
    return;
  }
  const literal = branch.children.get(segment);
  if (literal) {
    yield* walk(literal, segments, place + 1);
  }
  const parameter = segment === '' ? undefined : branch.children.get(':');
  if (parameter && parameter !== literal) {
    yield* walk(parameter, segments, place + 1);
  }
}

function firstRoute(branches: readonly Branch[], method: string): Route | undefined {
  return branches.find(({ routes }) => routes.has(method))?.routes.get(method);
}

function methodsOf(branches: readonly Branch[]): string[] {
  const methods = branches.flatMap(({ routes }) => [...routes.keys()]);
  return [...new Set(methods.flatMap((method) => (method === 'GET' ? ['GET', 'HEAD'] : [method])))];
}

function parametersOf({ path }: Route, segments: readonly string[]): ReadonlyMap<string, string> {
  const parameters = new Map<string, string>();
  for (const [place, segment] of segmentsOf(path).entries()) {
    if (isParameter(segment)) {
      parameters.set(segment.slice(1), segments[place] as string);
    }
  }
  return parameters;
}

// The command line

const USAGE = `Usage: node --import tsx server.ts [app-module] [--port N] [--host H]
  app-module          its default export is what createApp() returned (fixtures/tutorial.ts)
  --port N, --host H  where to listen (PORT and HOST, or 8000 and 127.0.0.1; port 0 is any free one)`;

function exit(code: number, line: string): never {
  report(line);
  process.exit(code);
}

interface Settings {
  readonly file: URL;
  readonly port: number;
  readonly host: string;
}

function settingsOf(args: readonly string[]): Settings {
  const options = { port: { type: 'string' }, host: { type: 'string' }, help: { type: 'boolean' } } as const;
  const { values, positionals } = parseArgs({ args: [...args], options, allowPositionals: true });
  const [module, ...more] = positionals;
  const { port = process.env.PORT || '8000', host = process.env.HOST || '127.0.0.1', help } = values;
  if (help) {
    console.log(USAGE);
    process.exit(0);
  }
  if (more.length > 0) {
    throw new Error(`Expected one app module, got ${more.length + 1}.`);
  }
  if (!/^\d+$/.test(port) || Number(port) > 65_535) {
    throw new Error(`Expected a port of 0 to 65535, got '${port}'.`);
  }
  const file = module ? pathToFileURL(module) : new URL('fixtures/tutorial.ts', import.meta.url);
  return { file, port: Number(port), host };
}

function readSettings(): Settings {
  try {
    return settingsOf(process.argv.slice(2));
  } catch (error) {
    const [line] = (error as Error).message.split('\n', 1);
    return exit(2, `${line}\n${USAGE}`);
  }
}

async function loadApp(file: URL): Promise<App> {
  const path = fileURLToPath(file);
  if (!statSync(file, { throwIfNoEntry: false })?.isFile()) {
    exit(1, `Expected a file at ${path}.`);
  }
  const { default: app }: { default?: App } = await import(file.href);
  if (!app?.listen || !app.idle) {
    exit(1, `Expected ${path} to default-export an app.`);
  }
  return app;
}

/**
 * A terminal signals the whole group, and a watcher passes the signal on a little later: that is one stop,
 * not two.
 */
const SAME_STOP_MS = 500;

/**
 * Handles SIGINT and SIGTERM from now on: before `app` is there, a signal ends the process, which has nothing
 * to lose.
 */
class StopOnSignal {
  app: App | undefined;
  #since: number | undefined;

  constructor() {
    process.on('SIGINT', this.#stop).on('SIGTERM', this.#stop);
  }

  readonly #stop = (signal: NodeJS.Signals): void => {
    if (!this.app) {
      process.exit(0);
    }
    if (this.#since === undefined) {
      this.#since = performance.now();
      this.#drain(this.app);
    } else if (performance.now() - this.#since >= SAME_STOP_MS) {
      for (const name of this.app.unfinished) {
        report(`Dropped at the second signal: ${name}`);
      }
      process.exit(128 + constants.signals[signal]);
    }
  };

  async #drain(app: App): Promise<void> {
    const { unfinished } = await app.close();
    process.exitCode = unfinished.length > 0 ? 1 : 0;
    // When all is read: where a pipe is full, exit() would lose the rest.
    process.stdout.write('', () => process.stderr.write('', () => process.exit()));
  }
}

async function main(): Promise<void> {
  const { file, port, host } = readSettings();
  // Before the module is loaded, which may take long: PID 1 has no default handlers.
  const stop = new StopOnSignal();
  const app = await loadApp(file);
  // What a task leaves behind ends no server.
  process.on('unhandledRejection', (error) => report('Unhandled rejection:', error));
  const { url } = await app.listen({ port, host }).catch((error: Error) => exit(1, error.message));
  stop.app = app;
  console.log(`listening on ${url}`);
}

/**
 * Whether this file is the program, started with or without its extension. In a bundle `import.meta.url` is
 * that of the bundle, which is the program too, or nothing: but no deps lies beside it.
 */
function isProgram(script: string | undefined, url: string | undefined): boolean {
  if (!script || !url?.startsWith('file:')) {
    return false;
  }
  const file = fileURLToPath(url);
  const extension = extname(file);
  const isScript = [script, `${script}${extension}`].some(
    (path) => existsSync(path) && realpathSync(path) === file,
  );
  return isScript && existsSync(new URL(`deps${extension}`, url));
}

if (isProgram(process.argv[1], import.meta.url)) {
  // tsx imports this file again, as CommonJS, for an app module outside a "type": "module" package.
  const isFirst = Reflect.defineProperty(globalThis, Symbol.for('response-first'), { value: {} });
  if (!isFirst) {
    exit(1, 'The package.json of the app module needs "type": "module".');
  }
  main(); // not awaited: the app module imports this one, which would wait for itself
}

/**
 * Dependencies: what a handler receives. Declared by {@link depends} and the built-in ones, resolved once per
 * request by a {@link Scope}, and unwound when the request is over.
 */
import { Buffer, isUtf8 } from 'node:buffer';
import { type IncomingMessage, type ServerResponse, STATUS_CODES } from 'node:http';
import type { Duplex } from 'node:stream';
import { types } from 'node:util';
import { BackgroundTasks, type BackgroundTasksOptions, isThenable, whenOut } from './background.ts';

/** Something that a handler or another dependency can receive: a `T`, resolved once per request. */
export interface Dependency<out T = unknown> {
  /**
   * Where the value comes from: a part of the request, the app, or `call`, the function that `depends` was
   * given.
   */
  readonly source: Source;
  /** The parameter of the query, header or path that is read. */
  readonly name?: string;
  /**
   * What stands for a parameter that is missing; a parameter without it, and without a schema, is required.
   */
  readonly fallback?: string | null;
  /** What validates the value. */
  readonly schema?: StandardSchema<unknown>;
  /** What `call` gets. */
  readonly inputs: Inputs;
  /** @internal */
  readonly read: Read<T>;
}
export type Source =
  | 'query'
  | 'header'
  | 'path'
  | 'body'
  | 'request'
  | 'tasks'
  | 'stopSignal'
  | 'clientSignal'
  | 'call';
type Read<T> = (scope: Scope, dependency: Dependency) => T | Promise<T>;

export type Dependencies = Readonly<Record<string, Dependency>>;
/** Dependencies in the order declared, each with the name that it has in the values. */
export type Inputs = readonly (readonly [name: string, dependency: Dependency])[];
/** What a handler or a `call` gets for the dependencies it declares. */
export type Values<D extends Dependencies> = {
  readonly [K in keyof D]: D[K] extends Dependency<infer T> ? T : never;
};
type Call = (values: never) => unknown;

/** What a `call` provides: the value that its generator object yields, or else its (awaited) return value. */
export type Provided<R> = Awaited<R extends Generator<infer T> | AsyncGenerator<infer T> ? T : R>;
/** What can be iterated, or is a generator that is declared as such: it would provide its first row. */
type Rows = Iterable<unknown> | AsyncIterable<unknown> | Iterator<unknown> | AsyncIterator<unknown>;
type SomeGenerator = Generator<never, unknown, never> | AsyncGenerator<never, unknown, never>;
/** Not `R` where a generator function can be declared to return it without being seen to be one. */
type Declarable<R> = [R] extends [Generator | AsyncGenerator]
  ? unknown
  : [R] extends [Rows]
    ? [Extract<SomeGenerator, R>] extends [never]
      ? unknown
      : 'Declare the return type as Generator or AsyncGenerator, or return an array.'
    : unknown;

/**
 * Declares a dependency: `call` gets the resolved values of `deps`, and may be async. If it returns a
 * generator object, the one value that this yields is the dependency's, and the rest is clean-up: it runs
 * after the last task, or before the error response, with the error thrown in at the `yield`. Source: the
 * chapter's §5; FastAPI's `Depends`.
 *
 * ```ts
 * const session = depends({ cookie: header('cookie') }, async function* ({ cookie }) {
 *   const session = await openSession(cookie);
 *   try { yield session; } finally { await session.close(); }
 * });
 * ```
 * @throws TypeError if `call` is not a function, or an entry of `deps` is not a dependency.
 */
export function depends<R>(call: (() => R) & Declarable<R>): Dependency<Provided<R>>;
export function depends<D extends Dependencies, R>(
  deps: D,
  call: ((values: Values<D>) => R) & Declarable<R>,
): Dependency<Provided<R>>;
export function depends(...args: [call: Call] | [deps: Dependencies, call: Call]): Dependency {
  const [deps, call] = args.length === 1 ? [{}, args[0]] : args;
  if (typeof call !== 'function') {
    throw new TypeError(`Expected depends() to get a function, got ${typeof call}.`);
  }
  const read = once((scope, { inputs }) => scope.provide(inputs, call));
  return { source: 'call', inputs: inputsOf(deps), read };
}

/** @internal */
export function inputsOf(deps: Dependencies): Inputs {
  const inputs = Object.entries<Dependency | undefined>(deps);
  const wrong = inputs.find(([, dependency]) => typeof dependency?.read !== 'function');
  if (wrong) {
    throw new TypeError(`Expected \`${wrong[0]}\` to be a dependency. Make one with depends().`);
  }
  return inputs as unknown as Inputs;
}

/** All that `inputs` need, themselves included, each once. @internal */
export function reachedFrom(inputs: Inputs): Set<Dependency> {
  const reached = new Set(inputs.map(([, dependency]) => dependency));
  for (const { inputs } of reached) {
    for (const [, dependency] of inputs) {
      reached.add(dependency); // a Set's iteration meets what is added meanwhile
    }
  }
  return reached;
}

/** `read`, once per request. */
function once<T>(read: Read<T>): Read<T> {
  return (scope, dependency) => scope.once(dependency, () => read(scope, dependency)) as T;
}

// Built-in dependencies

function builtIn<T>(source: Source, read: Read<T>): Dependency<T> {
  return { source, inputs: [], read };
}

/**
 * The one {@link BackgroundTasks} that the handler and all dependencies of a request share. Source: chapter
 * §5.
 */
export const backgroundTasks: Dependency<BackgroundTasks> = builtIn('tasks', (scope) => scope.tasks);

/** The raw request. */
export const request: Dependency<IncomingMessage> = builtIn('request', (scope) => scope.request);

/**
 * Aborted when the app's `close()` begins: what ends an open stream, which would hold the stop until half of
 * `drainTimeoutMs`.
 */
export const stopSignal: Dependency<AbortSignal> = builtIn('stopSignal', (scope) => scope.app.stopSignal());

/**
 * Aborted when the client is gone before its response is out; never where the response came first. One trap:
 * of a client that leaves behind a large body, Node learns only when that is read on, or something is
 * written.
 */
export const clientSignal: Dependency<AbortSignal> = builtIn(
  'clientSignal',
  once((scope) => scope.makeClientSignal()),
);

/** The segment of the URL, decoded, that stands where the route's path has `:name`. */
export function path(name: string): Dependency<string> {
  const read: Read<string> = (scope) => scope.parameters?.get(name) ?? scope.missing('path', name);
  return { ...builtIn('path', read), name };
}

/** The forms of {@link query} and {@link header}. */
export interface Parameter {
  (name: string, fallback?: string): Dependency<string>;
  (name: string, fallback: null): Dependency<string | null>;
  (name: string, fallback: string | null): Dependency<string | null>;
  <T>(name: string, schema: StandardSchema<T>): Dependency<T>;
}

/**
 * A query parameter: required (422 without it), with a fallback, optional (`null`), or what a schema makes of
 * its text, `undefined` if it is missing. Of duplicates the last one counts.
 */
export const query: Parameter = parameter('query', (name) => {
  const readAlone = readLoneParameter(name);
  return (scope) => readAlone(scope.request.url as string) ?? scope.searchParams().getAll(name).at(-1);
});

/** A request header, in the forms of {@link query}. */
export const header: Parameter = parameter('header', (name) => {
  const lowerName = name.toLowerCase();
  return ({ request: { rawHeaders } }) => {
    for (let index = rawHeaders.length - 2; index >= 0; index -= 2) {
      if (rawHeaders[index]?.toLowerCase() === lowerName) {
        return rawHeaders[index + 1];
      }
    }
    return undefined;
  };
});

/**
 * The quick way for the query that most URLs have: one parameter, without a `+`. It takes 0.1 µs, and
 * URLSearchParams 0.9. Gives undefined wherever it is not sure.
 */
function readLoneParameter(name: string): (url: string) => string | undefined {
  const begin = `?${encodeURIComponent(name)}=`;
  return (url) => {
    const start = url.indexOf('?');
    if (start < 0 || !url.startsWith(begin, start)) {
      return undefined;
    }
    const text = url.slice(start + begin.length);
    if (text.includes('&') || text.includes('+')) {
      return undefined;
    }
    try {
      return decodeURIComponent(text);
    } catch {
      return undefined; // it is not UTF-8
    }
  };
}

type ReadText = (scope: Scope) => string | undefined;

function parameter(source: 'query' | 'header', readerOf: (name: string) => ReadText): Parameter {
  return <T>(name: string, rule?: string | null | StandardSchema<T>): Dependency<never> => {
    const readText = readerOf(name);
    const make = (
      read: Read<unknown>,
      rest: Pick<Dependency, 'fallback' | 'schema'> = {},
    ): Dependency<never> => {
      return { ...builtIn(source, read as Read<never>), name, ...rest };
    };
    if (rule === undefined) {
      return make((scope) => readText(scope) ?? scope.missing(source, name));
    }
    if (rule === null || typeof rule === 'string') {
      return make((scope) => readText(scope) ?? rule, { fallback: rule });
    }
    const read = once((scope) => validate(scope, [source, name], rule, readText(scope)));
    return make(read, { schema: rule });
  };
}

// The body

/**
 * The JSON body, as `schema` makes it; several of these share one read, which begins when the request
 * arrives. 422 where there is no body, no JSON, no JSON content type, or an issue; 413 over `bodyLimit`; 400
 * if it is not UTF-8.
 */
export function body<T>(schema: StandardSchema<T>): Dependency<T> {
  const read = once<T>(async (scope) => {
    const value = await scope.body;
    return value === rejected ? rejected : validate(scope, ['body'], schema, value);
  });
  return { ...builtIn('body', read), schema };
}

const UNREADABLE = 'There was an error parsing the body';
const JSON_TYPE = /^application\/([^;\s]+\+)?json\s*(;|$)/i;
const MODEL = [
  'model_attributes_type',
  'Input should be a valid dictionary or object to extract fields from',
] as const;

function parseJson(scope: Scope, bytes: Buffer): unknown {
  if (bytes.length === 0) {
    return scope.missing('body');
  }
  if (!JSON_TYPE.test(scope.request.headers['content-type'] ?? '')) {
    return scope.reject(MODEL[0], ['body'], MODEL[1], bytes.toString());
  }
  if (!isUtf8(bytes)) {
    throw new HTTPError(400, UNREADABLE);
  }
  const text = bytes.toString();
  const hasByteOrderMark = text.startsWith('\uFEFF');
  try {
    const value: unknown = JSON.parse(hasByteOrderMark ? text.slice(1) : text);
    return value ?? scope.missing('body');
  } catch (error) {
    return scope.reject(
      'json_invalid',
      ['body'],
      'JSON decode error',
      {},
      { error: (error as Error).message },
    );
  }
}

/**
 * @throws HTTPError 413 over `limit` bytes, and 400 where the client leaves; Error if somebody has read it
 * before.
 */
function readBytes(request: IncomingMessage, limit: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    if (request.readableDidRead || request.readableEnded) {
      throw new Error('Expected a body that nobody has read; mount the app before any body parser.');
    }
    const bytes = new GrowingBuffer();
    // The request outlives its tasks: a listener that is left would keep the bytes.
    const end = (): void => settle(() => resolve(bytes.value));
    const left = (): void => settle(() => reject(new HTTPError(400, UNREADABLE)));
    const tooLarge = (): void => {
      request.pause();
      // Node would go on to read the rest on a connection that is kept.
      settle(() => reject(new HTTPError(413, undefined, { headers: { connection: 'close' } })));
    };
    const add = (chunk: Buffer): void => {
      if (bytes.length + chunk.length > limit) {
        tooLarge();
      } else {
        bytes.add(chunk);
      }
    };
    const settle = (how: () => void): void => {
      request.off('data', add).off('end', end).off('error', left).off('close', left);
      how();
    };
    if (Number(request.headers['content-length']) > limit) {
      tooLarge();
    } else if (request.destroyed) {
      left();
    } else {
      request.on('data', add).on('end', end).on('error', left).on('close', left);
    }
  });
}

/**
 * Bytes in one piece, whatever the chunks that they come in: a Buffer of each would take 400 bytes more than
 * it holds.
 */
class GrowingBuffer {
  #bytes: Buffer = Buffer.alloc(0);
  length = 0;

  add(chunk: Buffer): void {
    const length = this.length + chunk.length;
    if (this.length === 0) {
      this.#bytes = chunk; // most bodies are one chunk: it is not copied
    } else {
      this.#reserve(length);
      chunk.copy(this.#bytes, this.length);
    }
    this.length = length;
  }

  #reserve(length: number): void {
    if (length <= this.#bytes.length) {
      return;
    }
    const larger = Buffer.allocUnsafe(Math.max(length, 2 * this.#bytes.length));
    this.#bytes.copy(larger, 0, 0, this.length);
    this.#bytes = larger;
  }

  get value(): Buffer {
    return this.#bytes.subarray(0, this.length);
  }
}

// Schemas

/**
 * A validator by the Standard Schema v1 interface, as zod, valibot and arktype have it. Source:
 * standardschema.dev.
 */
export interface StandardSchema<out T> {
  readonly '~standard': { readonly version: 1; readonly vendor: string; readonly validate: Validate<T> };
}
type Validate<T> = (value: unknown) => Result<T> | Promise<Result<T>>;
type Result<T> = { readonly value: T; readonly issues?: undefined } | { readonly issues: readonly Issue[] };
interface Issue {
  readonly message: string;
  readonly path?: readonly (PropertyKey | { readonly key: PropertyKey })[] | undefined;
  readonly [fastApiIssue]?: { readonly type: string; readonly input: unknown };
}
/** In the issues of {@link strings}: the type and the input that FastAPI names. */
const fastApiIssue: unique symbol = Symbol('type and input');

/**
 * The built-in schema: an object of required strings. Other members are left out, as pydantic leaves them
 * out.
 */
export function strings<K extends string>(...keys: K[]): StandardSchema<Record<K, string>> {
  const issue = (type: string, message: string, input: unknown, ...path: K[]): Issue => {
    return { message, path, [fastApiIssue]: { type, input } };
  };
  const validate = (input: unknown): Result<Record<K, string>> => {
    if (Object(input) !== input || Array.isArray(input)) {
      return { issues: [issue(...MODEL, input)] };
    }
    const members = new Map<string, unknown>(Object.entries(input as object));
    const issues = keys
      .filter((key) => typeof members.get(key) !== 'string')
      .map((key) => {
        return members.has(key)
          ? issue('string_type', 'Input should be a valid string', members.get(key), key)
          : issue('missing', 'Field required', input, key);
      });
    if (issues.length > 0) {
      return { issues };
    }
    return { value: Object.fromEntries(keys.map((key) => [key, members.get(key)])) as Record<K, string> };
  };
  return { '~standard': { version: 1, vendor: 'response-first', validate } };
}

function validate<T>(
  scope: Scope,
  source: readonly string[],
  schema: StandardSchema<T>,
  input: unknown,
): T | Promise<T> {
  const result = schema['~standard'].validate(input);
  const accept = (settled: Result<T>): T => {
    if (!settled.issues) {
      return settled.value;
    }
    for (const issue of settled.issues) {
      rejectIssue(scope, source, issue, input);
    }
    return rejected;
  };
  return isThenable(result) ? Promise.resolve(result).then(accept) : accept(result);
}

function rejectIssue(scope: Scope, source: readonly string[], issue: Issue, input: unknown): void {
  const { message, path = [], [fastApiIssue]: fastApi } = issue;
  const keys = path.map((step) => (typeof step === 'object' ? step.key : step));
  const loc = [...source, ...keys.map((key) => (typeof key === 'symbol' ? String(key) : key))];
  if (fastApi) {
    scope.reject(fastApi.type, loc, message, fastApi.input);
    return;
  }
  const valueAt = (from: unknown, key: PropertyKey): unknown => {
    return Object.getOwnPropertyDescriptor(Object(from), key)?.value;
  };
  scope.reject('value_error', loc, message, keys.reduce(valueAt, input) ?? null);
}

// Errors

/**
 * Thrown by a handler or a dependency, it becomes the response `{"detail": detail}`, and tasks are discarded.
 * To run them on an error, return `Response.json({ detail }, { status: 404 })`. Source: FastAPI's
 * `HTTPException`.
 * @throws RangeError if `status` is not from 200 to 599.
 */
export class HTTPError extends Error {
  override readonly name = 'HTTPError';
  readonly status: number;
  /** Any JSON value; by default the status's own phrase. */
  readonly detail: unknown;
  readonly headers: Readonly<Record<string, string>>;

  constructor(
    status: number,
    detail?: unknown,
    { headers = {} }: { readonly headers?: Record<string, string> } = {},
  ) {
    const phrase = STATUS_CODES[status] ?? `Status ${status}`;
    super(typeof detail === 'string' ? detail : phrase);
    if (!(status >= 200 && status <= 599)) {
      throw new RangeError(`Expected a status from 200 to 599, got ${status}.`);
    }
    this.status = status;
    this.detail = detail ?? phrase;
    this.headers = Object.fromEntries(
      Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]),
    );
  }
}

/** Stands for a value that could not be had, so that the other input errors of the request are found too. */
const rejected = Symbol('rejected') as never;

const DEEPEST_INPUT = 100;

/** Deeper in, `JSON.stringify` takes a second for a MiB of nested arrays, and fails at some depth. */
function isShallow(value: unknown, levels = DEEPEST_INPUT): boolean {
  if (typeof value !== 'object' || value === null) {
    return true;
  }
  return levels > 0 && Object.values(value).every((each) => isShallow(each, levels - 1));
}

// The scope of a request

/** What the scopes of an app share. @internal */
export interface AppContext {
  readonly bodyLimit: number;
  readonly overrides: Overrides;
  readonly onThrow: 'discard' | 'run';
  stopSignal(): AbortSignal;
}

/** A route that was found, and its parameters, decoded. @internal */
export interface Match {
  readonly route: { readonly inputs: Inputs; readonly handler: (values: object) => unknown };
  readonly parameters: ReadonlyMap<string, string> | undefined;
}

type Resolved = Record<string, unknown>;

/** What one request resolves its dependencies in, and unwinds them from. @internal */
export class Scope {
  readonly request: IncomingMessage;
  readonly tasks: BackgroundTasks;
  readonly app: AppContext;
  readonly #response: ServerResponse;
  readonly #connection: Duplex | undefined;
  #parameters: Match['parameters'];
  #body: Promise<unknown> | undefined;
  #searchParams: URLSearchParams | undefined;
  #values: Map<Dependency, unknown> | undefined;
  #errors: Map<string, Record<string, unknown>> | undefined;
  readonly #cleanUps: CleanUp[] = [];

  constructor(
    request: IncomingMessage,
    response: ServerResponse,
    connection: Duplex | undefined,
    tasks: BackgroundTasks,
    app: AppContext,
  ) {
    this.request = request;
    this.tasks = tasks;
    this.app = app;
    this.#response = response;
    this.#connection = connection;
  }

  get parameters(): Match['parameters'] {
    return this.#parameters;
  }

  /**
   * What the handler returns for its inputs. @throws HTTPError 422 with the input errors, in the order
   * declared.
   */
  answer({ route, parameters }: Match): unknown {
    this.#parameters = parameters;
    const { inputs, readsBody } = this.app.overrides.applyTo(route.inputs);
    if (readsBody) {
      this.#startReading();
    }
    const values = this.#resolve(inputs);
    if (values instanceof Promise) {
      return values.then((resolved) => this.#handle(route.handler, resolved));
    }
    return this.#handle(route.handler, values);
  }

  #handle(handler: Match['route']['handler'], values: Resolved | typeof rejected): unknown {
    if (values !== rejected) {
      return handler(values);
    }
    const errors = [...this.#errors!.values()];
    const unparsable = errors.filter(({ type }) => type === 'json_invalid');
    throw new HTTPError(422, unparsable.length > 0 ? unparsable : errors);
  }

  /**
   * Adds no wait where nothing has to be waited for: most requests are answered in the turn in which they
   * come.
   */
  #resolve(inputs: Inputs): Resolved | Promise<Resolved> {
    const values: Resolved = {};
    for (let place = 0; place < inputs.length; place += 1) {
      const [name, dependency] = inputs[place]!;
      const value = dependency.read(this, dependency);
      if (value instanceof Promise) {
        return this.#resolveRest(inputs.slice(place), values, value);
      }
      values[name] = value;
    }
    return this.#unlessRejected(values);
  }

  /** The rest of {@link #resolve}, from the first value on that has to be waited for. */
  async #resolveRest(inputs: Inputs, values: Resolved, first: Promise<unknown>): Promise<Resolved> {
    for (const [place, [name, dependency]] of inputs.entries()) {
      values[name] = await (place === 0 ? first : dependency.read(this, dependency));
    }
    return this.#unlessRejected(values);
  }

  #unlessRejected(values: Resolved): Resolved {
    return this.#errors && Object.values(values).includes(rejected) ? rejected : values;
  }

  /** What `make` gives for `dependency`, made once. */
  once(dependency: Dependency, make: () => unknown): unknown {
    this.#values ??= new Map();
    if (!this.#values.has(dependency)) {
      this.#values.set(dependency, make());
    }
    return this.#values.get(dependency);
  }

  /** Calls what {@link depends} was given, unless an input of its own was rejected. */
  provide(inputs: Inputs, call: Call): unknown {
    const values = this.#resolve(inputs);
    return values instanceof Promise
      ? values.then((resolved) => this.#call(call, resolved))
      : this.#call(call, values);
  }

  #call(call: Call, values: Resolved | typeof rejected): unknown {
    if (values === rejected) {
      return rejected;
    }
    const result: unknown = call(values as never);
    if (types.isGeneratorObject(result)) {
      return this.#enter(result, call.name || 'a dependency');
    }
    return isThenable(result) ? Promise.resolve(result) : result;
  }

  async #enter(generator: Generator | AsyncGenerator, name: string): Promise<unknown> {
    const { value, done } = await generator.next();
    if (done) {
      throw new Error(`Expected ${name} to yield one value, but it returned.`);
    }
    this.#cleanUps.unshift(new CleanUp(generator, name));
    return value;
  }

  #startReading(): void {
    this.#body = readBytes(this.request, this.app.bodyLimit).then((bytes) => parseJson(this, bytes));
    this.#body.catch(() => {}); // it is met where `body()` is declared, or not at all
  }

  /** The value of the body; reading began when the request arrived. */
  get body(): Promise<unknown> {
    return this.#body as Promise<unknown>;
  }

  searchParams(): URLSearchParams {
    if (!this.#searchParams) {
      const { url = '' } = this.request;
      const start = url.indexOf('?');
      this.#searchParams = new URLSearchParams(start < 0 ? '' : url.slice(start));
    }
    return this.#searchParams;
  }

  makeClientSignal(): AbortSignal {
    const controller = new AbortController();
    whenOut(this.#response, this.#connection, (isClientGone) => {
      if (isClientGone) {
        controller.abort();
      }
    });
    return controller.signal;
  }

  /**
   * Records an input error in FastAPI's shape, without an input of over 100 levels; met again, it counts
   * once.
   */
  reject(type: string, loc: readonly PropertyKey[], msg: string, input: unknown, ctx?: object): never {
    this.#errors ??= new Map();
    const error = { type, loc, msg, input: isShallow(input) ? input : null, ctx };
    this.#errors.set(JSON.stringify([type, loc, msg]), error);
    return rejected;
  }

  missing(...loc: string[]): never {
    return this.reject('missing', loc, 'Field required', null);
  }

  get hasCleanUps(): boolean {
    return this.#cleanUps.length > 0;
  }

  /** Lets go of what the answer was made of: tasks may run for long. */
  forget(): void {
    this.#values = undefined;
    this.#body = undefined;
    this.#searchParams = undefined;
    this.#errors = undefined;
    this.#parameters = undefined;
  }

  /**
   * After the last task: resumes the generators, the last one first, as tasks: their errors are reported as
   * such.
   */
  cleanUp(options: BackgroundTasksOptions): Promise<void> {
    const tasks = new BackgroundTasks({ ...options, request: this.request, afterFailure: 'continue' });
    for (const cleanUp of this.#cleanUps.splice(0)) {
      tasks.addTask(cleanUp.asTask()); // only the queue has it now, and lets go of it when it has ended
    }
    return tasks.run();
  }

  /**
   * Before the error response: throws `error` in at each `yield`, the last one first; then discards the
   * tasks, or leaves them to run. Gives what is left of the error, in an object: what was thrown may be a
   * thenable.
   */
  async cleanUpAfter(error: unknown): Promise<{ readonly left: unknown }> {
    let left = error;
    let isThrown = true;
    for (const cleanUp of this.#cleanUps.splice(0)) {
      try {
        await (isThrown ? cleanUp.fail(left) : cleanUp.resume());
        if (isThrown) {
          // As in FastAPI: the generators outside of one that has swallowed the error are resumed normally.
          left = new Error(`Expected the ${cleanUp.name} to throw the error again.`, { cause: left });
          isThrown = false;
        }
      } catch (next) {
        left = next;
        isThrown = true;
      }
    }
    if (this.app.onThrow === 'discard') {
      this.tasks.discard('the handler or a dependency threw');
    }
    return { left };
  }
}

/** A generator that has yielded its value: the rest of its body. */
class CleanUp {
  readonly name: string;
  readonly #generator: Generator | AsyncGenerator;

  constructor(generator: Generator | AsyncGenerator, dependency: string) {
    this.name = `clean-up of ${dependency}`;
    this.#generator = generator;
  }

  async resume(): Promise<void> {
    await this.#end(await this.#generator.next());
  }

  async fail(error: unknown): Promise<void> {
    await this.#end(await this.#generator.throw(error));
  }

  async #end({ done }: IteratorResult<unknown>): Promise<void> {
    if (done) {
      return;
    }
    await this.#generator.return(undefined);
    throw new Error('Expected a generator to yield one value, but it yielded a second one.');
  }

  /** {@link resume}, under the name that reports give a task. */
  asTask(): () => Promise<void> {
    return Object.defineProperty(() => this.resume(), 'name', { value: this.name });
  }
}

// Overrides

interface Applied {
  readonly inputs: Inputs;
  /** Whether reading the body begins when the request arrives. */
  readonly readsBody: boolean;
}

/**
 * The replacements of an app, and the inputs of its routes with these in place, which are made once.
 * @internal
 */
export class Overrides {
  readonly #pairs = new Set<readonly [original: Dependency, replacement: Dependency]>();
  #applied = new Map<Inputs, Applied>();

  /** Returns what undoes it. The last replacement of a dependency counts. */
  add(original: Dependency, replacement: Dependency): () => void {
    const pair = [original, replacement] as const;
    this.#pairs.add(pair);
    this.#applied = new Map();
    return () => {
      this.#pairs.delete(pair);
      this.#applied = new Map();
    };
  }

  applyTo(inputs: Inputs): Applied {
    const known = this.#applied.get(inputs);
    if (known) {
      return known;
    }
    const substituted = this.#pairs.size > 0 ? new Substitution(new Map(this.#pairs)).inputs(inputs) : inputs;
    const readsBody = [...reachedFrom(substituted)].some(({ source }) => source === 'body');
    const applied = { inputs: substituted, readsBody };
    this.#applied.set(inputs, applied);
    return applied;
  }
}

/**
 * Dependencies with their replacements in place. Inside a replacement, what it replaces means the original:
 * so what reaches that is another dependency inside than outside. What has the same inputs is one, and
 * resolved once.
 */
class Substitution {
  readonly #replacements: ReadonlyMap<Dependency, Dependency>;
  readonly #numbers = new Map<Dependency, number>();
  readonly #reached = new Map<Dependency, ReadonlySet<Dependency>>();
  readonly #substitutes = new Map<string, Dependency>();
  readonly #made = new Map<string, Dependency>();

  constructor(replacements: ReadonlyMap<Dependency, Dependency>) {
    this.#replacements = replacements;
  }

  inputs(inputs: Inputs, inside: ReadonlySet<Dependency> = new Set()): Inputs {
    return inputs.map(([name, dependency]) => [name, this.#substitute(dependency, inside)]);
  }

  /** What stands for `dependency` inside the replacements of those in `inside`. */
  #substitute(dependency: Dependency, inside: ReadonlySet<Dependency>): Dependency {
    const replacement = inside.has(dependency) ? undefined : this.#replacements.get(dependency);
    const chosen = replacement ?? dependency;
    const originals = [...this.#replacements.keys()].filter(
      (each) => this.#replacements.get(each) === chosen,
    );
    // Only what can be met further in makes a difference: without that, the work doubles with each
    // replacement.
    const reached = this.#reachedFrom(chosen);
    const insideChosen = [...inside, ...originals].filter((each) => reached.has(each));
    const key = [chosen, ...new Set(insideChosen)].map((each) => this.#numberOf(each));
    const where = `${key[0]} inside ${key.slice(1).sort((a, b) => a - b)}`;
    let substitute = this.#substitutes.get(where);
    if (!substitute) {
      substitute = this.#make(chosen, this.inputs(chosen.inputs, new Set(insideChosen)));
      this.#substitutes.set(where, substitute);
    }
    return substitute;
  }

  #make(chosen: Dependency, inputs: Inputs): Dependency {
    if (inputs.every(([, input], place) => input === chosen.inputs[place]?.[1])) {
      return chosen;
    }
    const key = [chosen, ...inputs.map(([, input]) => input)].map((each) => this.#numberOf(each)).join(' ');
    const made = this.#made.get(key) ?? { ...chosen, inputs };
    this.#made.set(key, made);
    return made;
  }

  /** The dependencies that are met from `dependency` on, through originals and replacements. */
  #reachedFrom(dependency: Dependency): ReadonlySet<Dependency> {
    let reached = this.#reached.get(dependency);
    if (!reached) {
      const all = new Set([dependency]);
      for (const each of all) {
        const replacement = this.#replacements.get(each);
        for (const next of [
          ...each.inputs.map(([, input]) => input),
          ...(replacement ? [replacement] : []),
        ]) {
          all.add(next);
        }
      }
      reached = all;
      this.#reached.set(dependency, reached);
    }
    return reached;
  }

  #numberOf(dependency: Dependency): number {
    const number = this.#numbers.get(dependency) ?? this.#numbers.size;
    this.#numbers.set(dependency, number);
    return number;
  }
}

import { BackgroundTasks, isThenable, type BackgroundTasksOptions } from './background.ts';
import { isUtf8 } from 'node:buffer';
import { STATUS_CODES, type IncomingMessage } from 'node:http';
import { types } from 'node:util';

/** Something that a handler or another dependency can receive: a `T`, resolved once per request. */
export interface Dependency<out T = unknown> {
  /** @internal The segments that the path of its route must have. */ readonly segments: readonly string[];
  /** @internal */ readonly inputs: Inputs;
  /** @internal */ readonly read: (scope: Scope, inputs: Inputs) => T | Promise<T>;
}
export type Dependencies = Readonly<Record<string, Dependency>>;
export type Inputs = readonly (readonly [name: string, dependency: Dependency])[];
/** What a handler or a `call` gets for the dependencies it declares. */
export type Values<D extends Dependencies> = { readonly [K in keyof D]: D[K] extends Dependency<infer T> ? T : never };
type Call = (values: never) => unknown;
/** What a `call` provides: the value that its generator object yields, or else its (awaited) return value. */
export type Provided<R> = Awaited<R extends Generator<infer T> | AsyncGenerator<infer T> ? T : R>;

/**
 * Declares a dependency: `call` gets the resolved values of `deps`, and may be async. If it returns a generator object,
 * the one value that this yields is the dependency's, and the rest is clean-up: it runs after the last task, or before
 * the error response, with the error thrown in at the `yield`. Source: the chapter's §5; FastAPI's `Depends`.
 *
 * ```ts
 * const session = depends({ cookie: header('cookie') }, async function* ({ cookie }) {
 *   const session = await openSession(cookie);
 *   try { yield session; } finally { await session.close(); }
 * });
 * ```
 * @throws TypeError if `call` is not a function, or an entry of `deps` is not a dependency.
 */
export function depends<R>(call: () => R): Dependency<Provided<R>>;
export function depends<D extends Dependencies, R>(deps: D, call: (values: Values<D>) => R): Dependency<Provided<R>>;
export function depends(...args: [call: Call] | [deps: Dependencies, call: Call]): Dependency {
  const [deps, call] = args.length === 1 ? [{}, args[0]] : args;
  if (typeof call !== 'function') throw new TypeError(`Expected depends() to get a function, got ${typeof call}.`);
  const inputs = inputsOf(deps);
  return { segments: segmentsOf(inputs), inputs, read: once((scope, own) => scope.provide(own, call)) };
}

/** @internal */
export function inputsOf(deps: Dependencies): Inputs {
  const inputs = Object.entries<Dependency | undefined>(deps);
  const wrong = inputs.find(([, dependency]) => !dependency?.segments)?.[0];
  if (wrong !== undefined) throw new TypeError(`Expected \`${wrong}\` to be a dependency. Make one with depends().`);
  return inputs as unknown as Inputs;
}
/** @internal */
export const segmentsOf = (inputs: Inputs): string[] => [...new Set(inputs.flatMap(([, { segments }]) => segments))];

const builtIn = <T>(read: Dependency<T>['read'], ...segments: string[]) => ({ segments, inputs: [], read });

/** `read`, once per request. Every dependency has an array of inputs of its own: that is the key. */
const once = <T>(read: Dependency<T>['read']): Dependency<T>['read'] => (scope, inputs) => {
  const values = (scope.values ??= new Map<Inputs, unknown>());
  if (!values.has(inputs)) values.set(inputs, read(scope, inputs));
  return values.get(inputs) as T;
};

/** The one {@link BackgroundTasks} that the handler and all dependencies of a request share. Source: chapter §5. */
export const backgroundTasks: Dependency<BackgroundTasks> = builtIn((scope) => scope.tasks);
/** The raw request. */
export const request: Dependency<IncomingMessage> = builtIn((scope) => scope.request);

/** The segment of the URL, decoded, that stands where the route's path has `:name`. */
export const path = (name: string): Dependency<string> =>
  builtIn((scope) => scope.segments[scope.route.parameters.get(name) ?? -1] ?? scope.missing('path', name), name);

/** The forms of {@link query} and {@link header}. */
export interface Parameter {
  (name: string, fallback?: string): Dependency<string>;
  (name: string, fallback: null): Dependency<string | null>;
  <T>(name: string, schema: StandardSchema<T>): Dependency<T>;
}

/**
 * A query parameter: required (422 without it), with a fallback, optional (`null`), or what a schema makes of its text,
 * `undefined` if it is missing. Of duplicates the last one counts.
 */
export const query = parameter('query', (name, only = `?${encodeURIComponent(name)}=`) => (scope) => {
  const { url = '' } = scope.request;
  const at = url.indexOf('?');
  const text = url.startsWith(only, at) ? url.slice(at + only.length) : '&';
  if (!text.includes('&') && !text.includes('+')) // one parameter, as most URLs have it: 0.1 µs, not 0.3
    try { return decodeURIComponent(text); } catch { /* it is not UTF-8 */ }
  return (scope.query ??= new URLSearchParams(url.slice(at >>> 0))).getAll(name).at(-1);
});
/** A request header, in the forms of {@link query}. */
export const header = parameter('header', (name, lower = name.toLowerCase()) => ({ request: { rawHeaders } }) =>
  rawHeaders.findLast((_, at) => at % 2 === 1 && rawHeaders[at - 1]?.toLowerCase() === lower));

function parameter(source: string, reader: (name: string) => (scope: Scope) => string | undefined): Parameter {
  return (name: string, rule?: string | null | StandardSchema<unknown>) => {
    const read = reader(name);
    return builtIn<never>(rule && typeof rule !== 'string'
      ? once((scope) => validate(scope, [source, name], rule, read(scope)) as never)
      : (scope) => (read(scope) ?? (rule === undefined ? scope.missing(source, name) : rule)) as never);
  };
}

/**
 * The JSON body, as `schema` makes it; several of these share one read. 422 where there is no body, no JSON, no JSON
 * content type, or an issue; 413 over `bodyLimit`; 400 if it is not UTF-8.
 */
export const body = <T>(schema: StandardSchema<T>): Dependency<T> => builtIn(once((scope) =>
  after(scope.body ??= readJson(scope), (value) =>
    (value === rejected ? rejected : validate(scope, ['body'], schema, value)))));

async function readJson(scope: Scope): Promise<unknown> {
  const bytes = await readBody(scope.request, scope.app.bodyLimit);
  if (bytes.length === 0) return scope.missing('body');
  const isJson = /^application\/([^;\s]+\+)?json\s*(;|$)/i.test(scope.request.headers['content-type'] ?? '');
  if (!isJson) return scope.reject(MODEL[0], ['body'], MODEL[1], bytes.toString());
  if (!isUtf8(bytes)) throw new HTTPError(400, UNREADABLE);
  try { return (JSON.parse(bytes.toString()) as unknown) ?? scope.missing('body'); } catch (error) {
    return scope.reject('json_invalid', ['body'], 'JSON decode error', {}, { error: (error as Error).message });
  }
}

async function readBody(request: IncomingMessage, limit: number): Promise<Buffer> {
  const tooLarge = (): HTTPError => new HTTPError(413, undefined, { headers: { connection: 'close' } }); // 7.11
  if (Number(request.headers['content-length']) > limit) throw tooLarge();
  const chunks: Buffer[] = [];
  let size = 0;
  try {
    for await (const chunk of request.iterator({ destroyOnReturn: false })) {
      if ((size += chunk.length) > limit) throw tooLarge();
      chunks.push(chunk);
    }
  } catch (error) { throw error instanceof HTTPError ? error : new HTTPError(400, UNREADABLE); } // the client has left
  return Buffer.concat(chunks);
}

const UNREADABLE = 'There was an error parsing the body';
const MODEL = ['model_attributes_type', 'Input should be a valid dictionary or object to extract fields from'] as const;

/** A validator by the Standard Schema v1 interface, as zod, valibot and arktype have it. Source: standardschema.dev. */
export interface StandardSchema<out T> {
  readonly '~standard': { readonly version: 1; readonly vendor: string; readonly validate: Validate<T> };
}
type Validate<T> = (value: unknown) => Result<T> | Promise<Result<T>>;
type Result<T> = { readonly value: T; readonly issues?: undefined } | { readonly issues: readonly Issue[] };
interface Issue {
  readonly message: string;
  readonly path?: readonly (PropertyKey | { readonly key: PropertyKey })[] | undefined;
  readonly [ours]?: { readonly type: string; readonly input: unknown };
}
/** In the issues of {@link strings}: what FastAPI says of them. */
const ours = Symbol('type and input');

/** The built-in schema: an object of required strings. Other members are left out, as pydantic leaves them out. */
export function strings<K extends string>(...keys: K[]): StandardSchema<Record<K, string>> {
  const issue = (type: string, message: string, input: unknown, ...path: K[]): Issue =>
    ({ message, path, [ours]: { type, input } });
  const validate = (input: unknown): Result<Record<K, string>> => {
    if (Object(input) !== input || Array.isArray(input)) return { issues: [issue(...MODEL, input)] };
    const members = new Map<string, unknown>(Object.entries(input as object));
    const issues = keys.filter((key) => typeof members.get(key) !== 'string').map((key) => members.has(key)
      ? issue('string_type', 'Input should be a valid string', members.get(key), key)
      : issue('missing', 'Field required', input, key));
    if (issues.length > 0) return { issues };
    return { value: Object.fromEntries(keys.map((key) => [key, members.get(key)])) as Record<K, string> };
  };
  return { '~standard': { version: 1, vendor: 'response-first', validate } };
}

function validate<T>(scope: Scope, source: string[], schema: StandardSchema<T>, input: unknown): T | Promise<T> {
  return after(schema['~standard'].validate(input), (result) => {
    if (!result.issues) return result.value;
    for (const { message, path = [], [ours]: own } of result.issues) {
      const keys = path.map((step) => (typeof step === 'object' ? step.key : step));
      const at = keys.reduce((from: unknown, key) => Object.getOwnPropertyDescriptor(Object(from), key)?.value, input);
      const loc = [...source, ...keys.map((key) => (typeof key === 'symbol' ? String(key) : key))];
      scope.reject(own?.type ?? 'value_error', loc, message, own ? own.input : at ?? null);
    }
    return rejected;
  });
}

/**
 * Thrown by a handler or a dependency, it becomes the response `{"detail": detail}`, and tasks are discarded. To run
 * them on an error, return `Response.json({ detail }, { status: 404 })`. Source: FastAPI's `HTTPException`.
 * @throws RangeError if `status` is not from 200 to 599.
 */
export class HTTPError extends Error {
  override readonly name = 'HTTPError';
  readonly status: number;
  /** Any JSON value; by default the status's own phrase. */
  readonly detail: unknown;
  readonly headers: Readonly<Record<string, string>>;

  constructor(status: number, detail?: unknown, { headers = {} }: { readonly headers?: Record<string, string> } = {}) {
    super(typeof detail === 'string' ? detail : STATUS_CODES[status]);
    if (!(status >= 200 && status <= 599)) throw new RangeError(`Expected a status from 200 to 599, got ${status}.`);
    this.status = status;
    this.detail = detail ?? STATUS_CODES[status];
    this.headers = Object.fromEntries(Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]));
  }
}

/** Stands for a value that could not be had, so that the other input errors of the request are found too. */
const rejected = Symbol('rejected') as never;
/** `next(value)`: at once, unless `value` is a promise. */
const after = <T, R>(value: T | Promise<T>, next: (value: T) => R | Promise<R>): R | Promise<R> =>
  (value instanceof Promise ? value.then(next) : next(value));
/** Deeper in, `JSON.stringify` takes a second for a MiB of nested arrays, and fails at some depth. */
const isShallow = (value: unknown, levels = 100): boolean => typeof value !== 'object' || value === null
  || (levels > 0 && Object.values(value).every((each) => isShallow(each, levels - 1)));
/** What the scopes of an app share. @internal */
export type Shared = { readonly bodyLimit: number; readonly overrides: Set<readonly [Dependency, Dependency]> };
type Known = { chosen: Dependency; overrides: ReadonlySet<readonly [Dependency, Dependency]>; made: Dependency };

/**
 * `inputs` with the replacements in place. Inside a replacement, what it replaces means the original: so what reaches
 * that is another dependency inside than outside. What has the same inputs is the same object, and resolved once.
 */
function substitute(inputs: Inputs, overrides: Known['overrides'], known: Known[] = []): Inputs {
  return overrides.size === 0 ? inputs : inputs.map(([name, dependency]) => {
    const chosen = [...overrides].findLast(([from]) => from === dependency)?.[1] ?? dependency; // one step only
    const seen = known.find((each) => each.chosen === chosen && each.overrides === overrides);
    if (seen) return [name, seen.made];
    const others = new Set([...overrides].filter(([from, to]) => from !== dependency && to !== chosen));
    const own = substitute(chosen.inputs, others.size < overrides.size ? others : overrides, known);
    const made = [chosen, ...known.map(({ made }) => made)].find(({ read, inputs }) => read === chosen.read
      && inputs.every(([, input], at) => input === own[at]?.[1])) ?? { ...chosen, inputs: own };
    known.push({ chosen, overrides, made });
    return [name, made];
  });
}

/** What one request resolves its dependencies in, and unwinds them from. @internal */
export class Scope {
  readonly request: IncomingMessage;
  readonly tasks: BackgroundTasks;
  readonly app: Shared;
  place = 0; // in its app's list
  connection!: { responses: number }; // those that are not out
  segments: string[] = [];
  route!: { inputs: Inputs; handler: (values: object) => unknown; parameters: ReadonlyMap<string, number> };
  body: Promise<unknown> | undefined;
  query: URLSearchParams | undefined;
  values: Map<Inputs, unknown> | undefined; // both are made when there is one, to save 0.05 µs each
  #errors: Map<string, Record<string, unknown>> | undefined;
  readonly cleanUps: ((thrown?: { error: unknown }) => Promise<void>)[] = [];

  constructor(request: IncomingMessage, tasks: BackgroundTasks, app: Shared) {
    this.request = request; this.tasks = tasks; this.app = app;
  }

  /** Records an input error in FastAPI's shape, without an input of over 100 levels; met again, it counts once. */
  reject(type: string, loc: readonly PropertyKey[], msg: string, input: unknown, ctx?: object): never {
    const error = { type, loc, msg, input: isShallow(input) ? input : null, ctx };
    (this.#errors ??= new Map()).set(JSON.stringify([type, loc, msg]), error);
    return rejected;
  }
  missing(...loc: string[]): never { return this.reject('missing', loc, 'Field required', null); }

  /** What `handler` returns for its inputs. @throws HTTPError 422 with the input errors, in the order declared. */
  answer({ inputs, handler }: Scope['route']): unknown {
    return after(this.#resolve(substitute(inputs, this.app.overrides)), (values) => {
      if (values !== rejected) return handler(values);
      const errors = [...this.#errors!.values()];
      const unparsable = errors.filter(({ type }) => type === 'json_invalid');
      throw new HTTPError(422, unparsable.length > 0 ? unparsable : errors);
    });
  }

  /** Adds the values of `inputs`, from the place `at` on, to `values`: one after another, each once per request. */
  #resolve(inputs: Inputs, values: Record<string, unknown> = {}, at = 0): object | Promise<object> {
    for (; at < inputs.length; at += 1) {
      const { 0: name, 1: dependency } = inputs[at]!; // no iterator: 0.05 µs
      const got = dependency.read(this, dependency.inputs);
      if (got instanceof Promise) return got.then((own) => this.#resolve(inputs, { ...values, [name]: own }, at + 1));
      values[name] = got;
    }
    return this.#errors && inputs.some(([name]) => values[name] === rejected) ? rejected : values;
  }

  /** Calls what {@link depends} was given, unless an input of its own was rejected. */
  provide(inputs: Inputs, call: Call): unknown {
    return after(this.#resolve(inputs), (values) => {
      if (values === rejected) return rejected;
      const result = call(values as never);
      if (!types.isGeneratorObject(result)) return isThenable(result) ? Promise.resolve(result) : result;
      return Promise.resolve(result.next()).then(({ value, done }) => {
        if (done) throw new Error(`Expected ${call.name || 'a dependency'} to yield one value, but it returned.`);
        const name = { value: `clean-up of ${call.name || 'a dependency'}` };
        this.cleanUps.unshift(Object.defineProperty((thrown) => resume(result, thrown), 'name', name));
        return value;
      });
    });
  }

  /** After the last task: resumes the generators, the last one first, as tasks: their errors are reported as such. */
  async unwind(options: BackgroundTasksOptions): Promise<void> {
    const tasks = new BackgroundTasks({ ...options, request: this.request, afterFailure: 'continue' });
    for (const cleanUp of this.cleanUps) tasks.addTask(cleanUp);
    await tasks.run();
  }

  /**
   * Before the error response: throws `error` in at each `yield`, the last one first; then discards the tasks. Returns
   * what is left of the error.
   */
  async unwindAfter(error: unknown): Promise<{ left: unknown }> {
    let thrown: { error: unknown } | undefined = { error };
    for (const cleanUp of this.cleanUps) {
      try {
        await cleanUp(thrown);
        if (thrown) error = new Error(`Expected the ${cleanUp.name} to throw the error again.`, { cause: error });
        thrown = undefined; // swallowed: as in FastAPI, the generators outside are resumed normally
      } catch (next) { thrown = { error: error = next }; }
    }
    this.tasks.discard('the handler or a dependency threw');
    return { left: error }; // in an object: what was thrown may be a thenable
  }
}

async function resume(generator: Generator | AsyncGenerator, thrown?: { error: unknown }): Promise<void> {
  const { done } = await (thrown ? generator.throw(thrown.error) : generator.next());
  if (done) return;
  await generator.return(undefined);
  throw new Error('Expected a generator to yield one value, but it yielded a second one.');
}

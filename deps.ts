import { isUtf8 } from 'node:buffer';
import { STATUS_CODES, type IncomingMessage } from 'node:http';
import { types } from 'node:util';
import type { BackgroundTasks } from './background.ts';

/**
 * Something that a handler, or another dependency, can receive: `T`, resolved once per request.
 * Made by {@link depends} or one of the built-in ones; the fields are the resolver's own.
 */
export interface Dependency<out T> {
  /** @internal */ readonly name: string;
  /** @internal */ readonly inputs: Inputs;
  /** @internal */ readonly segment?: string;
  /** @internal */ readonly read: (scope: Scope) => T | Promise<T>;
}
export type Dependencies = Readonly<Record<string, Dependency<unknown>>>;
/** What a handler or a `call` gets for the dependencies it declared. */
export type Values<D extends Dependencies> = { readonly [K in keyof D]: D[K] extends Dependency<infer T> ? T : never };
/** What a `call` provides: the value yielded by a generator object, else the (awaited) value returned. */
export type Provided<R> = Awaited<R extends Generator<infer T> | AsyncGenerator<infer T> ? T : R>;
export type Inputs = readonly (readonly [string, Dependency<unknown>])[];

/**
 * Declares a dependency: `call` gets the resolved values of `deps`, and may be async. If it returns a generator
 * object, the one value that it yields is the dependency, and the rest of it runs as clean-up: after the last task, or
 * before the error response, with the error thrown in at the `yield`. Source: chapter §5; FastAPI's `Depends`.
 *
 * ```ts
 * const session = depends({ request }, async function* ({ request }) {
 *   const session = await openSession(request.headers.cookie);
 *   try { yield session; } finally { await session.close(); }
 * });
 * ```
 * @throws TypeError if `call` is not a function, or an entry of `deps` is not a dependency.
 */
export function depends<R>(call: () => R): Dependency<Provided<R>>;
export function depends<D extends Dependencies, R>(deps: D, call: (values: Values<D>) => R): Dependency<Provided<R>>;
export function depends(...args: [call: unknown] | [deps: Dependencies, call: unknown]): Dependency<unknown> {
  const [deps, call] = args.length === 1 ? [{}, args[0]] : args;
  if (typeof call !== 'function') throw new TypeError(`Expected depends() to get a function, got ${typeof call}.`);
  const name = call.name || 'dependency';
  const inputs = inputsOf(deps);
  return { name, inputs, read: (scope) => scope.provide(name, inputs, call as (values: object) => unknown) };
}

/** @internal */
export function inputsOf(dependencies: Dependencies): Inputs {
  return Object.entries(dependencies).map(([name, dependency]: [string, Partial<Dependency<unknown>> | undefined]) => {
    if (Array.isArray(dependency?.inputs)) return [name, dependency as Dependency<unknown>];
    throw new TypeError(`Expected \`${name}\` to be a dependency, got ${typeof dependency}. Make one with depends().`);
  });
}

const builtIn = <T>(name: string, read: Dependency<T>['read']): Dependency<T> => ({ name, inputs: [], read });

/** The one {@link BackgroundTasks} that all dependencies and the handler of a request share. Source: chapter §5. */
export const backgroundTasks: Dependency<BackgroundTasks> = builtIn('backgroundTasks', (scope) => scope.tasks);
/** The raw request. */
export const request: Dependency<IncomingMessage> = builtIn('request', (scope) => scope.request);

/** A `:name` segment of the route's path, decoded. A route without such a segment is refused by `createApp`. */
export function path(name: string): Dependency<string> {
  const read = ({ route }: Scope): string => {
    const segment = route.segments[route.parameters.get(name) ?? -1];
    if (segment === undefined) throw new Error(`path('${name}') was reached by a route without a segment :${name}.`);
    return segment;
  };
  return { ...builtIn(`path ${name}`, read), segment: name };
}

export interface Parameter {
  (name: string): Dependency<string>;
  (name: string, fallback: string): Dependency<string>;
  (name: string, fallback: null): Dependency<string | null>;
  <T>(name: string, schema: StandardSchema<T>): Dependency<T>;
}

/**
 * A query parameter: required (422 without it), with a fallback, optional (`null`), or as a schema makes it from the text,
 * which is `undefined` where the parameter is missing. Of duplicates the last one counts.
 */
export const query: Parameter = parameter('query', (scope, name) => scope.query.getAll(name).at(-1));
/** A request header, in the forms of {@link query}. */
export const header: Parameter = parameter('header', (scope, name) =>
  scope.request.headersDistinct[name.toLowerCase()]?.at(-1));

function parameter(source: string, read: (scope: Scope, name: string) => string | undefined): Parameter {
  return (name: string, rule?: string | null | StandardSchema<unknown>): Dependency<never> => {
    const schema = rule && typeof rule !== 'string' ? schemaOf(rule, `${source}('${name}', …)`) : undefined;
    return builtIn(`${source} ${name}`, (scope) => {
      const text = read(scope, name);
      if (schema) return validate(scope, [source, name], schema, text);
      return text ?? (rule !== undefined ? rule : scope.reject('missing', [source, name], 'Field required', null));
    }) as Dependency<never>;
  };
}

/**
 * The JSON body, as `schema` makes it; several of them share one read. 422 without a body, with a body that is no JSON or
 * has no JSON content type, or where the schema finds an issue; 413 over `bodyLimit`; 400 if it is not UTF-8.
 */
export function body<T>(schema: StandardSchema<T>): Dependency<T> {
  schemaOf(schema, 'body(…)');
  return builtIn('body', async (scope) => {
    const value = await (scope.body ??= readJson(scope));
    return value === rejected ? rejected : validate(scope, ['body'], schema, value);
  });
}

function schemaOf(schema: StandardSchema<unknown>, where: string): StandardSchema<unknown> {
  if (typeof schema?.['~standard']?.validate === 'function') return schema;
  throw new TypeError(`Expected ${where} to get a Standard Schema (such as strings('item') or one of zod's).`);
}

async function readJson(scope: Scope): Promise<unknown> {
  const { request, bodyLimit } = scope;
  const tooLarge = new HTTPError(413, undefined, { headers: { connection: 'close' } }); // 7.11
  if (Number(request.headers['content-length']) > bodyLimit) throw tooLarge;
  const chunks: Buffer[] = [];
  let size = 0;
  try {
    for await (const chunk of request.iterator({ destroyOnReturn: false })) {
      chunks.push(chunk);
      if ((size += chunk.length) > bodyLimit) throw tooLarge;
    }
  } catch (error) {
    throw error === tooLarge ? error : unreadable(); // the client left in the middle
  }
  if (size === 0) return scope.reject('missing', ['body'], 'Field required', null);
  const bytes = Buffer.concat(chunks);
  if (!/^application\/([^;\s]+\+)?json\s*(;|$)/i.test(request.headers['content-type'] ?? '')) {
    return scope.reject('model_attributes_type', ['body'], NOT_AN_OBJECT, bytes.toString());
  }
  if (!isUtf8(bytes)) throw unreadable();
  try {
    const value: unknown = JSON.parse(bytes.toString());
    return value === null ? scope.reject('missing', ['body'], 'Field required', null) : value;
  } catch (error) {
    return scope.reject('json_invalid', ['body'], 'JSON decode error', {}, { ctx: { error: (error as Error).message } });
  }
}

const NOT_AN_OBJECT = 'Input should be a valid dictionary or object to extract fields from';
const unreadable = (): HTTPError => new HTTPError(400, 'There was an error parsing the body');

/** A validator by the Standard Schema v1 interface: zod, valibot, arktype and others. Source: standardschema.dev. */
export interface StandardSchema<out T> {
  readonly '~standard': {
    readonly version: 1;
    readonly vendor: string;
    readonly validate: (value: unknown) => Result<T> | Promise<Result<T>>;
    readonly types?: { readonly input: unknown; readonly output: T } | undefined;
  };
}
type Result<T> = { readonly value: T; readonly issues?: undefined } | { readonly issues: readonly Issue[] };
interface Issue {
  readonly message: string;
  readonly path?: readonly (PropertyKey | { readonly key: PropertyKey })[] | undefined;
  /** What FastAPI says of it; in the issues of our own schema only. */
  readonly [ours]?: { readonly type: string; readonly input: unknown };
}
const ours = Symbol('type and input');

/** The built-in schema: an object of required strings. Other members are left out, as pydantic does. */
export function strings<K extends string>(...keys: K[]): StandardSchema<Record<K, string>> {
  const issue = (type: string, message: string, input: unknown, ...path: K[]): Issue => ({ message, path, [ours]: { type, input } });
  const validate = (value: unknown): Result<Record<K, string>> => {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      return { issues: [issue('model_attributes_type', NOT_AN_OBJECT, value)] };
    }
    const entries = keys.map((key) => [key, Object.hasOwn(value, key) ? value[key as keyof typeof value] : undefined] as const);
    const issues = entries.flatMap(([key, member]) => {
      if (member === undefined) return [issue('missing', 'Field required', value, key)];
      return typeof member === 'string' ? [] : [issue('string_type', 'Input should be a valid string', member, key)];
    });
    return issues.length > 0 ? { issues } : { value: Object.fromEntries<unknown>(entries) as Record<K, string> };
  };
  return { '~standard': { version: 1, vendor: 'response-first', validate } };
}

function validate<T>(scope: Scope, source: string[], schema: StandardSchema<T>, input: unknown): T | Promise<T> {
  const settle = (result: Result<T>): T => {
    if (!result.issues) return result.value;
    for (const { message, path = [], [ours]: own } of result.issues) {
      const keys = path.map((step) => (typeof step === 'object' ? step.key : step));
      const found = keys.reduce<unknown>((value, key) => (value as Record<PropertyKey, unknown> | undefined)?.[key], input);
      const loc = [...source, ...keys.map((key) => (typeof key === 'symbol' ? String(key) : key))];
      scope.reject(own?.type ?? 'value_error', loc, message, (own ? own.input : found) ?? null);
    }
    return rejected;
  };
  const result = schema['~standard'].validate(input);
  return result instanceof Promise ? result.then(settle) : settle(result);
}

/**
 * Thrown by a handler or a dependency, it is the response: `{"detail": detail}` with its status and headers. The tasks
 * of the request are discarded. To run them on an error, return `Response.json(…, { status: 404 })` instead.
 * Source: FastAPI's `HTTPException`.
 * @throws RangeError if `status` is not an integer from 200 to 599.
 */
export class HTTPError extends Error {
  override readonly name = 'HTTPError';
  readonly status: number;
  /** Any JSON value; the status's own phrase by default. */
  readonly detail: unknown;
  readonly headers: Readonly<Record<string, string>>;

  constructor(status: number, detail?: unknown, options: { readonly headers?: Readonly<Record<string, string>> } = {}) {
    super(typeof detail === 'string' ? detail : STATUS_CODES[status]);
    if (!Number.isInteger(status) || status < 200 || status > 599) {
      throw new RangeError(`Expected the status of an HTTPError to be an integer from 200 to 599, got ${status}.`);
    }
    this.status = status;
    this.detail = detail ?? STATUS_CODES[status];
    this.headers = options.headers ?? {};
  }
}

const rejected = Symbol('an input was rejected') as never;
type Suspended = { readonly name: string; readonly generator: Generator | AsyncGenerator };
export type Overrides = ReadonlyMap<Dependency<unknown>, Dependency<unknown>>;

/** What one request resolves its dependencies in, and unwinds them from. @internal */
export class Scope {
  readonly request: IncomingMessage;
  readonly tasks: BackgroundTasks;
  readonly bodyLimit: number;
  /** Set when the route is known. */
  route: { segments: readonly string[]; parameters: ReadonlyMap<string, number> } = { segments: [], parameters: new Map() };
  body: Promise<unknown> | undefined;
  #query: URLSearchParams | undefined;
  readonly #values = new Map<Dependency<unknown>, unknown>();
  readonly #suspended: Suspended[] = [];
  readonly #errors = new Map<string, { type: string; [member: string]: unknown }>();
  readonly #overrides: Overrides;
  readonly #replaced = new Set<Dependency<unknown>>();

  constructor(request: IncomingMessage, tasks: BackgroundTasks, bodyLimit: number, overrides: Overrides) {
    this.request = request;
    this.tasks = tasks;
    this.bodyLimit = bodyLimit;
    this.#overrides = overrides;
  }

  get query(): URLSearchParams {
    const { url = '' } = this.request;
    return (this.#query ??= new URLSearchParams(url.includes('?') ? url.slice(url.indexOf('?')) : ''));
  }

  /** Records an input error, in the shape of FastAPI's. Each counts once, however many dependencies meet it. */
  reject(type: string, loc: readonly PropertyKey[], msg: string, input: unknown, more?: object): never {
    const key = JSON.stringify([type, loc, msg]);
    if (!this.#errors.has(key)) this.#errors.set(key, { type, loc, msg, input, ...more });
    return rejected;
  }

  /** The values of a handler's dependencies, in the order declared. @throws HTTPError 422 with all input errors. */
  async resolve(inputs: Inputs): Promise<object> {
    const values = await this.#resolve(inputs);
    if (values !== rejected) return values;
    const errors = [...this.#errors.values()];
    const unparsable = errors.filter(({ type }) => type === 'json_invalid');
    throw new HTTPError(422, unparsable.length > 0 ? unparsable : errors);
  }

  async #resolve(inputs: Inputs): Promise<object> {
    const values: Record<string, unknown> = {};
    let complete = true;
    for (const [name, dependency] of inputs) {
      const value = this.#valueOf(dependency);
      values[name] = value instanceof Promise ? await value : value;
      if (values[name] === rejected) complete = false; // 10: an input error does not stop resolution
    }
    return complete ? values : rejected;
  }

  #valueOf(dependency: Dependency<unknown>): unknown {
    const replacement = this.#replaced.has(dependency) ? undefined : this.#overrides.get(dependency);
    if (!replacement) return this.#once(dependency);
    return this.#replace(dependency, replacement);
  }

  /** Inside its replacement, a dependency means itself. */
  async #replace(dependency: Dependency<unknown>, replacement: Dependency<unknown>): Promise<unknown> {
    this.#replaced.add(dependency);
    try {
      return await this.#once(replacement);
    } finally {
      this.#replaced.delete(dependency);
    }
  }

  #once(dependency: Dependency<unknown>): unknown {
    if (!this.#values.has(dependency)) this.#values.set(dependency, dependency.read(this));
    return this.#values.get(dependency);
  }

  /** Calls what {@link depends} was given, unless one of its own inputs was rejected. */
  async provide(name: string, inputs: Inputs, call: (values: object) => unknown): Promise<unknown> {
    const values = await this.#resolve(inputs);
    if (values === rejected) return rejected;
    const result = call(values);
    if (!types.isGeneratorObject(result)) return result;
    const generator = result as Generator | AsyncGenerator;
    const { value, done } = await generator.next();
    if (done) throw new Error(`Expected ${name} to yield exactly one value, but it returned without.`);
    this.#suspended.push({ name, generator });
    return value;
  }

  /** After the last task: lets each generator run on, the last one first, as one more queue, so that errors are reported. */
  async unwind(cleanUps: BackgroundTasks): Promise<void> {
    if (this.#suspended.length === 0) return;
    for (const { name, generator } of this.#suspended.reverse()) {
      const cleanUp = (): Promise<void> => resume(name, generator);
      cleanUps.addTask(Object.defineProperty(cleanUp, 'name', { value: `clean-up of ${name}` }));
    }
    await cleanUps.run();
  }

  /** Before an error response: throws the error in at each `yield`, the last one first. Returns what is left to answer. */
  async unwindAfter(error: unknown): Promise<unknown> {
    let failure: { error: unknown } | undefined = { error };
    let left: unknown;
    for (const { name, generator } of this.#suspended.splice(0).reverse()) {
      try {
        await resume(name, generator, failure);
        if (failure) left = new Error(`Expected ${name} to throw the error again, but it swallowed it.`, { cause: failure.error });
        failure = undefined; // as in FastAPI, the generators outside this one are resumed normally
      } catch (thrown) {
        failure = { error: thrown };
      }
    }
    return failure ? failure.error : left;
  }
}

async function resume(name: string, generator: Suspended['generator'], failure?: { error: unknown }): Promise<void> {
  const { done } = await (failure ? generator.throw(failure.error) : generator.next());
  if (done) return;
  await generator.return(undefined);
  throw new Error(`Expected ${name} to yield exactly one value, but it yielded a second one.`);
}

/**
 * The types of the API, for `npm run typecheck`: compiled, never run. Each `@ts-expect-error` stands beside a positive
 * twin, which shows that it is the mistake that is refused.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type {
  App,
  AppOptions,
  BackgroundTasksOptions,
  Dependencies,
  Dependency,
  Route,
  StandardSchema,
  TaskInfo,
  Values,
} from '../server.ts';
import {
  BackgroundTasks,
  backgroundTasks,
  body,
  createApp,
  depends,
  get,
  HTTPError,
  header,
  patch,
  path,
  post,
  put,
  query,
  request,
  type responseDone,
  route,
  strings,
} from '../server.ts';

/** Compiles only where the two types are the same: `any`, a wider and a narrower one are refused. */
type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const same = <A, B>(..._: Same<A, B> extends true ? [] : ['the types differ']): void => {};
same<string, string>();
// @ts-expect-error: a union is not one of its members
same<string, string | null>();
// @ts-expect-error: nor is `any`, which would hide every mistake
same<string, ReturnType<typeof JSON.parse>>();

declare const text: Dependency<string>;
declare const count: Dependency<number>;
declare const optional: Dependency<string | null>;
declare const order: StandardSchema<{ item: string; amount: number }>;
declare const tasks: BackgroundTasks;
declare const app: App;

/* addTask: the arguments are those of the function */

declare function sendEmail(to: string, options: { subject: string }): Promise<void>;
declare function log(message: string, level?: number): void;
declare function logAll(...messages: string[]): number;
declare function overloaded(value: string): void;
declare function overloaded(value: number): void;

tasks.addTask(sendEmail, 'user@example.com', { subject: 'hello' });
// @ts-expect-error: a wrong type
tasks.addTask(sendEmail, 1, { subject: 'hello' });
// @ts-expect-error: too few
tasks.addTask(sendEmail, 'user@example.com');
// @ts-expect-error: too many
tasks.addTask(sendEmail, 'user@example.com', { subject: 'hello' }, 'more');
// @ts-expect-error: a wrong member of the trailing object
tasks.addTask(sendEmail, 'user@example.com', { subject: 1 });
// @ts-expect-error: a member that lacks
tasks.addTask(sendEmail, 'user@example.com', {});

tasks.addTask(log, 'message');
tasks.addTask(log, 'message', 1);
// @ts-expect-error: an optional argument of a wrong type
tasks.addTask(log, 'message', '1');

tasks.addTask(logAll);
tasks.addTask(logAll, 'a', 'b', 'c');
// @ts-expect-error: a rest argument of a wrong type
tasks.addTask(logAll, 'a', 2);

tasks.addTask(() => log('message'));
// @ts-expect-error: the result of the task, not the task
tasks.addTask(log('message'));

tasks.addTask(overloaded, 1);
tasks.addTask(() => overloaded('text'));
// @ts-expect-error: of an overloaded function only the last overload is accepted, as its documentation says
tasks.addTask(overloaded, 'text');

same<ReturnType<typeof tasks.addTask>, void>();
same<ReturnType<typeof tasks.run>, Promise<void>>();
same<ReturnType<typeof tasks.discard>, readonly TaskInfo[]>();
same<typeof tasks.unfinished, readonly TaskInfo[]>();
same<
  TaskInfo,
  { readonly name: string; readonly index: number; readonly request: IncomingMessage | undefined }
>();

/* What a call provides */

class Session {
  readonly user = 'someone';
}

const plain = depends(() => 'text');
const asynchronous = depends(async () => 7);
const generator = depends(function* () {
  yield new Session();
});
const asyncGenerator = depends(async function* () {
  yield new Session();
});
const returned = depends(() =>
  (function* (): Generator<Session, void, undefined> {
    yield new Session();
  })(),
);
const promised = depends(function* () {
  yield Promise.resolve(7);
});
const asValue = depends(async () =>
  (function* (): Generator<number> {
    yield 1;
  })(),
);
const nothing = depends(() => {});
const union = depends(() => 'text' as string | null);
same<typeof plain, Dependency<string>>();
same<typeof asynchronous, Dependency<number>>();
same<typeof generator, Dependency<Session>>();
same<typeof asyncGenerator, Dependency<Session>>();
same<typeof returned, Dependency<Session>>();
same<typeof promised, Dependency<number>>();
same<typeof asValue, Dependency<Generator<number>>>();
same<typeof nothing, Dependency<void>>();
same<typeof union, Dependency<string | null>>();

const session: Dependency<Session> = asyncGenerator;
// @ts-expect-error: it is what the generator yields, not the generator
const notTheGenerator: Dependency<AsyncGenerator<Session>> = asyncGenerator;
// @ts-expect-error: it is what the promise gives, not the promise
const notThePromise: Dependency<Promise<number>> = asynchronous;
const number: Dependency<number> = asynchronous;

/* What a handler or a call receives, with no annotation */

const nested = depends(
  {
    session,
    outer: depends({ plain, number }, (values) => {
      same<typeof values, { readonly plain: string; readonly number: number }>();
      return [values.plain, values.number] as const;
    }),
  },
  async ({ session, outer }) => ({ user: session.user, first: outer[0], second: outer[1] }),
);
same<typeof nested, Dependency<{ user: string; first: string; second: number }>>();

const all = {
  required: query('q'),
  fallback: query('q', 'none'),
  optional: query('q', null),
  output: query('q', order),
  token: header('x-token'),
  agent: header('user-agent', ''),
  cookie: header('cookie', null),
  length: header('length', order),
  id: path('id'),
  order: body(order),
  named: body(strings('item', 'email')),
  request,
  tasks: backgroundTasks,
  plain,
  number,
  session,
  nested,
  nothing,
};
interface Received {
  readonly required: string;
  readonly fallback: string;
  readonly optional: string | null;
  readonly output: { item: string; amount: number };
  readonly token: string;
  readonly agent: string;
  readonly cookie: string | null;
  readonly length: { item: string; amount: number };
  readonly id: string;
  readonly order: { item: string; amount: number };
  readonly named: Record<'item' | 'email', string>;
  readonly request: IncomingMessage;
  readonly tasks: BackgroundTasks;
  readonly plain: string;
  readonly number: number;
  readonly session: Session;
  readonly nested: { user: string; first: string; second: number };
  readonly nothing: void;
}
same<{ [K in keyof Values<typeof all>]: Values<typeof all>[K] }, { [K in keyof Received]: Received[K] }>();

post('/:id', all, ({ required, optional, named, order, session }) => {
  same<typeof required, string>();
  same<typeof optional, string | null>();
  log(named.item);
  // @ts-expect-error: no such key among those of strings()
  log(named.name);
  log(order.item, order.amount);
  // @ts-expect-error: the output of a schema is not text
  log(order.amount);
  log(optional ?? 'none');
  // @ts-expect-error: it may be null
  log(optional);
  log(session.user);
});
get('/', { plain }, ({ plain }) => log(plain));
// @ts-expect-error: not declared
get('/', { plain }, ({ other }) => log(other));
// @ts-expect-error: a wrong annotation
get('/', { plain }, ({ plain }: { plain: number }) => plain);
get('/', { plain }, (values) => {
  log(values.plain);
  // @ts-expect-error: the values are read-only
  values.plain = 'other';
});
depends({ optional }, ({ optional }) => optional?.length);
// @ts-expect-error: it may be null
depends({ optional }, ({ optional }) => optional.length);

/* query, header, path, body, strings */

query('q', 'fallback');
// @ts-expect-error: a fallback is a string, or null
query('q', 1);
header('x-token', null);
// @ts-expect-error: `undefined` is not null: what is missing is `null`
header('x-token', null, undefined);
query('q', order);
// @ts-expect-error: a schema has `~standard`
query('q', { validate: (value: unknown) => value });
body(order);
// @ts-expect-error: a body has a schema
body();
// @ts-expect-error: a function is none
body((value: unknown) => value);
strings('item', 'email');
// @ts-expect-error: keys are strings
strings('item', 1);
path('id');
// @ts-expect-error: a segment has no fallback
path('id', null);

const asSchema: StandardSchema<number> = {
  '~standard': { version: 1, vendor: 'x', validate: () => ({ value: 1 }) },
};
const later: StandardSchema<number> = {
  '~standard': { version: 1, vendor: 'x', validate: async () => ({ value: 1 }) },
};
const issues: StandardSchema<number> = {
  '~standard': {
    version: 1,
    vendor: 'x',
    validate: () => ({
      issues: [{ message: 'no', path: ['a', 0, Symbol('b'), { key: 'c' }] }, { message: 'no' }],
    }),
  },
};
// @ts-expect-error: another output
const otherOutput: StandardSchema<string> = asSchema;
const version: StandardSchema<number> = {
  // @ts-expect-error: another version
  '~standard': { version: 2, vendor: 'x', validate: () => ({ value: 1 }) },
};
const silent: StandardSchema<number> = {
  // @ts-expect-error: an issue has a message
  '~standard': { version: 1, vendor: 'x', validate: () => ({ issues: [{}] }) },
};
const output: StandardSchema<string | number> = later;

/* Dependency<T> */

const itself: Dependency<string> = text;
// @ts-expect-error: another type
const other: Dependency<number> = text;
const wider: Dependency<string | number> = text;
const unknownValue: Dependency<unknown> = text;
// @ts-expect-error: a narrower type
const narrower: Dependency<string> = wider;
// @ts-expect-error: `null` is not text
const nonNull: Dependency<string> = optional;

depends({ text, count }, () => {});
// @ts-expect-error: a plain function is no dependency
depends({ text, count: () => 1 }, () => {});
// @ts-expect-error: nor is a value
get('/', { text, count: 1 }, () => {});
depends({ text }, ({ text }) => text);
// @ts-expect-error: nothing to call
depends({ text });
// @ts-expect-error: a value, not a call
depends({ text }, 'text');
const declared: Dependencies = { text, count, optional };
// @ts-expect-error: the builder, not what it makes
const undeclared: Dependencies = { text: query };

/* app.override */

app.override(
  text,
  depends(() => 'other'),
);
app.override(
  text,
  // @ts-expect-error: another type than that of the dependency
  depends(() => 1),
);
app.override(
  optional,
  depends(() => null),
);
app.override(optional, text);
// @ts-expect-error: wider than the dependency: `T` is not inferred from the replacement
app.override(text, optional);
app.override(
  session,
  depends(async function* () {
    yield new Session();
  }),
);
app.override(
  session,
  // @ts-expect-error: a generator of something else
  depends(async function* () {
    yield 'someone';
  }),
);
app.override(
  backgroundTasks,
  depends(() => new BackgroundTasks()),
);
// @ts-expect-error: a replacement is a dependency, not a function
app.override(text, () => 'other');
same<ReturnType<typeof app.override>, () => void>();

/* Routes and handlers */

for (const verb of [get, post, put, patch]) {
  same<ReturnType<typeof verb>, Route>();
  verb('/', () => ({ any: 'value' }));
  verb('/', async () => new Response(null, { status: 204 }));
  verb('/', () => {});
  verb('/', () => 10n); // the return type is `unknown`
  verb('/', { text }, ({ text }) => text);
  // @ts-expect-error: no handler
  verb('/', { text });
  // @ts-expect-error: no handler either
  verb('/');
  // @ts-expect-error: without dependencies there are no values
  verb('/', ({ text }) => text);
  // @ts-expect-error: the handler comes last
  verb('/', () => {}, { text });
  // @ts-expect-error: a second value
  verb('/', { text }, ({ text }, more) => [text, more]);
}
route('DELETE', '/items/:id', { id: path('id') }, ({ id }) => log(id));
route('DELETE', '/items', () => null);
// @ts-expect-error: no path
route('DELETE', () => null);
// @ts-expect-error: no handler
route('DELETE', '/items', { text });
// @ts-expect-error: a value that is not declared
route('DELETE', '/items', { text }, ({ id }) => id);
same<ReturnType<typeof route>, Route>();

/* Apps and options */

createApp([get('/', () => 'hello')]);
// @ts-expect-error: a list of routes
createApp(get('/', () => 'hello'));
createApp([], {
  afterFailure: 'stop',
  bodyLimit: 1,
  drainTimeoutMs: 1,
  stallTimeoutMs: 1,
  onTaskError: () => {},
});
// @ts-expect-error: no such choice
createApp([], { afterFailure: 'retry' });
// @ts-expect-error: in bytes, as a number
createApp([], { bodyLimit: '1mb' });
// @ts-expect-error: no such option
createApp([], { timeout: 1 });
// @ts-expect-error: an app has many requests; `request` is an option of one queue
createApp([], { request: new Object() as IncomingMessage });
createApp([], {
  onTaskError: async (error, task) => {
    same<typeof error, unknown>();
    log(task.name, task.index);
  },
});
// @ts-expect-error: an error may be anything
createApp([], { onTaskError: (error) => log(error.message) });
const options: AppOptions = { afterFailure: 'continue' };
// @ts-expect-error: options are read-only
options.bodyLimit = 1;
const queueOptions: BackgroundTasksOptions = {
  afterFailure: 'stop',
  request: new Object() as IncomingMessage,
};
new BackgroundTasks(queueOptions);
// @ts-expect-error: an option of the app
new BackgroundTasks({ bodyLimit: 1 });

app.listen({ port: 0, host: '::1' });
// @ts-expect-error: a port is a number
app.listen({ port: '0' });
same<Awaited<ReturnType<typeof app.listen>>, { readonly url: string }>();
same<Awaited<ReturnType<typeof app.close>>, { readonly unfinished: string[] }>();
same<Awaited<ReturnType<typeof app.idle>>, void>();
same<typeof app.pending, number>();
// @ts-expect-error: it is counted, not set
app.pending = 0;
same<typeof app.listener, (req: IncomingMessage, res: ServerResponse) => void>();
same<ReturnType<typeof responseDone>, Promise<void>>();

/* HTTPError */

new HTTPError(404);
new HTTPError(404, { any: ['JSON', 1] }, { headers: { 'x-reason': 'gone' } });
// @ts-expect-error: a status is a number
new HTTPError('404');
// @ts-expect-error: the value of a header is a string
new HTTPError(503, 'busy', { headers: { 'retry-after': 1 } });
// @ts-expect-error: headers stand in the options
new HTTPError(503, 'busy', { 'retry-after': '1' });
// @ts-expect-error: read-only
new HTTPError(404).status = 500;

export {
  declared,
  issues,
  itself,
  narrower,
  nonNull,
  notTheGenerator,
  notThePromise,
  other,
  otherOutput,
  output,
  silent,
  undeclared,
  unknownValue,
  version,
};

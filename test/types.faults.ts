/**
 * More types of the API, for `npm run typecheck`: mistakes that once were found only when the app ran, and what was
 * refused though it is right. Each `@ts-expect-error` stands beside a positive twin.
 */
import type { AppOptions, Dependency, Inputs, Source, StandardSchema, Values } from '../server.ts';
import {
  backgroundTasks,
  body,
  clientSignal,
  createApp,
  depends,
  get,
  header,
  query,
  stopSignal,
} from '../server.ts';

/** Compiles only where the two types are the same: `any`, a wider and a narrower one are refused. */
type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const same = <A, B>(..._: Same<A, B> extends true ? [] : ['the types differ']): void => {};

/* depends: of what can be iterated, the first row would be the value */

declare const rows: Iterable<string>;
declare const asyncRows: AsyncIterable<string>;
declare const iterator: Iterator<string>;
declare const asyncIterator: AsyncIterator<string>;
declare const iterableIterator: IterableIterator<string>;
declare const asyncIterableIterator: AsyncIterableIterator<string>;

// @ts-expect-error: an Iterable may be a generator
depends((): Iterable<string> => rows);
// @ts-expect-error: so may an AsyncIterable
depends((): AsyncIterable<string> => asyncRows);
// @ts-expect-error: with inputs, too
depends({ tasks: backgroundTasks }, (): Iterable<string> => rows);
// @ts-expect-error: with inputs, too
depends({ tasks: backgroundTasks }, (): AsyncIterable<string> => asyncRows);
// @ts-expect-error: an Iterator
depends((): Iterator<string> => iterator);
// @ts-expect-error: an AsyncIterator
depends((): AsyncIterator<string> => asyncIterator);
// @ts-expect-error: an IterableIterator
depends((): IterableIterator<string> => iterableIterator);
// @ts-expect-error: an AsyncIterableIterator
depends((): AsyncIterableIterator<string> => asyncIterableIterator);
// @ts-expect-error: a generator function that is declared so
depends(function* (): Iterable<string> {
  yield 'row';
});
// @ts-expect-error: an async one
depends(async function* (): AsyncIterable<string> {
  yield 'row';
});

const array = depends((): string[] => [...rows]);
same<typeof array, Dependency<string[]>>();
const readonlyArray = depends((): readonly string[] => []);
same<typeof readonlyArray, Dependency<readonly string[]>>();
const map = depends(() => new Map([['a', 1]]));
same<typeof map, Dependency<Map<string, number>>>();
const text = depends(() => 'text');
same<typeof text, Dependency<string>>();
const bytes = depends(async () => Buffer.from('a'));
same<typeof bytes, Dependency<Buffer<ArrayBuffer>>>();
const generated = depends(function* () {
  yield 1;
});
same<typeof generated, Dependency<number>>();
const declared = depends(function* (): Generator<number> {
  yield 1;
});
same<typeof declared, Dependency<number>>();
const asyncDeclared = depends({ tasks: backgroundTasks }, async function* (): AsyncGenerator<number> {
  yield 1;
});
same<typeof asyncDeclared, Dependency<number>>();

/* query and header: a fallback that is a string or null */

declare const fallback: string | null;
const maybe = query('q', fallback);
same<typeof maybe, Dependency<string | null>>();
const maybeHeader = header('x-mark', fallback);
same<typeof maybeHeader, Dependency<string | null>>();
const sure = query('q', 'fallback');
same<typeof sure, Dependency<string>>();
// @ts-expect-error: a fallback is a string, as the value is
query('q', 1);

/* options: undefined is the default */

createApp([], {
  bodyLimit: undefined,
  drainTimeoutMs: undefined,
  stallTimeoutMs: undefined,
  afterFailure: undefined,
  onTaskError: undefined,
  onThrow: undefined,
  server: undefined,
});
// @ts-expect-error: a limit is a number
createApp([], { bodyLimit: '1 MiB' });
createApp([], { onThrow: 'run', server: { keepAliveTimeout: 65_000 } });
// @ts-expect-error: no third way
createApp([], { onThrow: 'keep' });
same<AppOptions['onThrow'], 'discard' | 'run' | undefined>();

/* the signals */

get('/', { stopSignal, clientSignal }, (values) => {
  same<
    typeof values,
    Values<{ stopSignal: Dependency<AbortSignal>; clientSignal: Dependency<AbortSignal> }>
  >();
  same<typeof values.stopSignal, AbortSignal>();
  same<typeof values.clientSignal, AbortSignal>();
});
// @ts-expect-error: a signal is no controller
get('/', { stopSignal }, ({ stopSignal }) => stopSignal.abort());

/* what a dependency tells of itself */

declare const order: StandardSchema<{ item: string }>;
const posted = body(order);
same<typeof posted.source, Source>();
same<typeof posted.name, string | undefined>();
same<typeof posted.fallback, string | null | undefined>();
same<typeof posted.schema, StandardSchema<unknown> | undefined>();
same<typeof posted.inputs, Inputs>();
// @ts-expect-error: it is told, and not to be changed
posted.source = 'query';

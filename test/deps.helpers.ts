/** What the tests of deps.ts share. */
import type { TestContext } from 'node:test';
import type { Dependencies, Dependency, Route, StandardSchema } from '../server.ts';
import { depends } from '../server.ts';
import { type RawClient, rawClient, type Served, serve } from './helpers.ts';

/** The status and the JSON of an answer. */
export async function answer(
  { url }: Served,
  target = '/',
  init?: RequestInit,
): Promise<[status: number, json: unknown]> {
  const response = await fetch(url + target, init);
  return [response.status, await response.json()];
}

/** The same for one app, one request. */
export async function answerOf(
  routes: readonly Route[],
  target?: string,
  init?: RequestInit,
): ReturnType<typeof answer> {
  await using server = await serve(routes);
  return await answer(server, target, init);
}

/** A POST of bytes, so that `fetch` adds no content type of its own. */
export const sent = (bytes: string | Uint8Array<ArrayBuffer>, type?: string): RequestInit => ({
  method: 'POST',
  body: typeof bytes === 'string' ? Buffer.from(bytes) : bytes,
  headers: type ? { 'content-type': type } : {},
});

export const json = (value: unknown): RequestInit => sent(JSON.stringify(value), 'application/json');

type Validate<T> = StandardSchema<T>['~standard']['validate'];

/** A Standard Schema as a library would have it. */
export const schema = <T>(validate: Validate<T>): StandardSchema<T> => ({
  '~standard': { version: 1, vendor: 'test', validate },
});

export const anything = schema<unknown>((value) => ({ value }));

export const number = schema<number>((value) =>
  typeof value === 'string' && /^\d+$/.test(value)
    ? { value: Number(value) }
    : { issues: [{ message: `No number: ${value}` }] },
);

export const asyncNumber = schema<number>(async (value) => {
  await new Promise(setImmediate);
  return number['~standard'].validate(value);
});

/** A client that sees bytes. A test that has timed out disconnects it, and so comes to its end. */
export async function connect(t: TestContext, port: number): Promise<RawClient> {
  const client = await rawClient(port);
  t.signal.addEventListener('abort', () => client.socket.destroy());
  return client;
}

export const missing = (...loc: string[]): object => ({
  type: 'missing',
  loc,
  msg: 'Field required',
  input: null,
});

export const rejection = (...errors: unknown[]): [number, unknown] => [422, { detail: errors }];

export const internal = [500, { detail: 'Internal Server Error' }];

type Leave = (error: unknown) => void;

export type Making = (name: string, log: string[], leave?: Leave, deps?: Dependencies) => Dependency<string>;

export const rethrow: Leave = (error) => {
  throw error;
};

export const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

export const syncGenerator: Making = (name, log, leave = rethrow, deps = {}) =>
  depends(deps, function* () {
    log.push(`enter ${name}`);
    try {
      yield name;
    } catch (error) {
      log.push(`${name} caught ${messageOf(error)}`);
      return leave(error);
    }
    log.push(`exit ${name}`);
  });

export const named = (name: string): Dependency<string> => depends(() => name);

/** Input errors, `HTTPError`, and what `depends()` refuses. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { Dependencies, Dependency, Route, StandardSchema } from '../server.ts';
import { body, depends, get, HTTPError, header, post, query, strings } from '../server.ts';
import {
  answerOf,
  asyncNumber,
  connect,
  internal,
  json,
  missing,
  named,
  rejection,
  rethrow,
  syncGenerator,
} from './deps.helpers.ts';
import { serve, stderr, within } from './helpers.ts';

describe('input errors', () => {
  test('all input errors come in one 422, each once, in the order declared', async () => {
    const inner = depends(
      { twice: query('a'), token: header('x-token'), n: query('n', asyncNumber) },
      () => {},
    );
    const [order, again] = [body(strings('item', 'email')), body(strings('email'))];
    const deps = { inner, order, again, a: query('a'), b: query('b') };
    const routes = [post('/', deps, () => assert.fail('unreachable'))];
    assert.deepEqual(
      await answerOf(routes, '/?n=x', json({ item: 1 })),
      rejection(
        missing('query', 'a'),
        missing('header', 'x-token'),
        { type: 'value_error', loc: ['query', 'n'], msg: 'No number: x', input: 'x' },
        { type: 'string_type', loc: ['body', 'item'], msg: 'Input should be a valid string', input: 1 },
        { ...missing('body', 'email'), input: { item: 1 } },
        missing('query', 'b'),
      ),
    );
  });

  test('a call whose own inputs failed is not called, nor one that depends on it; the others are', async () => {
    const log: string[] = [];
    const calls = (name: string, deps: Dependencies): Dependency<unknown> =>
      depends(deps, () => log.push(name));
    const invalid = calls('invalid', { q: query('q') });
    const generator = syncGenerator('generator', log, rethrow, { q: query('q') });
    const deps = {
      outer: calls('outer', { invalid }),
      generator,
      other: calls('other', { p: query('p', null) }),
    };
    assert.deepEqual(
      await answerOf([get('/', deps, () => log.push('handler'))]),
      rejection(missing('query', 'q')),
    );
    assert.deepEqual(log, ['other']);
  });

  test('an error that is thrown ends resolution and wins: a 401 beats a 422', async () => {
    const log: string[] = [];
    const guard = depends(() => {
      throw new HTTPError(401);
    });
    const deps = { q: query('q'), guard, late: depends(() => log.push('late')), p: query('p') };
    assert.deepEqual(await answerOf([get('/', deps, () => log.push('handler'))]), [
      401,
      { detail: 'Unauthorized' },
    ]);
    assert.deepEqual(log, []);
  });
});

const throwing = (...made: ConstructorParameters<typeof HTTPError>): Route[] => [
  get('/', () => {
    throw new HTTPError(...made);
  }),
];

describe('an HTTPError', () => {
  test('the detail of an HTTPError is any JSON value, and the phrase of the status by default', async () => {
    assert.deepEqual(await answerOf(throwing(409)), [409, { detail: 'Conflict' }]);
    assert.deepEqual(await answerOf(throwing(500)), internal);
    for (const detail of ['', 'no such item', 0, false, [], ['a', { b: null }], { code: 7 }]) {
      assert.deepEqual(await answerOf(throwing(200, detail)), [200, { detail }]);
      assert.deepEqual(await answerOf(throwing(599, detail)), [599, { detail }]);
    }
  });

  test('an HTTPError is an Error that tells its status, detail and headers', () => {
    const error = new HTTPError(404, { code: 7 }, { headers: { 'x-reason': 'gone' } });
    assert.ok(error instanceof Error);
    const { name, message, status, detail, headers } = error;
    assert.deepEqual(
      { name, message, status, detail, headers },
      {
        name: 'HTTPError',
        message: 'Not Found',
        status: 404,
        detail: { code: 7 },
        headers: { 'x-reason': 'gone' },
      },
    );
    assert.equal(new HTTPError(404, 'no such item').message, 'no such item');
    assert.deepEqual(new HTTPError(404).headers, {});
  });

  test('the headers of an HTTPError are sent', async () => {
    await using server = await serve(
      throwing(503, 'busy', { headers: { 'Retry-After': '1', 'x-reason': 'queue' } }),
    );
    const { status, headers } = await fetch(server.url);
    assert.deepEqual(
      [status, headers.get('retry-after'), headers.get('x-reason'), headers.get('content-type')],
      [503, '1', 'queue', 'application/json'],
    );
  });

  test('a status out of 200 to 599 is a RangeError that names it', () => {
    for (const status of [NaN, -1, 0, 101, 199, 600, 999, Infinity]) {
      const message = new RegExp(`\\b200 to 599, got ${status}\\.`);
      assert.throws(() => new HTTPError(status), { name: 'RangeError', message });
    }
  });

  for (const status of [204, 205, 304]) {
    test(
      `an HTTPError of ${status} has its headers and no body, and the connection stays open`,
      within,
      async (t) => {
        const routes = throwing(status, undefined, { headers: { etag: '"1"' } });
        await using server = await serve([...routes, get('/next', () => 'next')]);
        using client = await connect(t, server.port);
        client.send('GET / HTTP/1.1', 'host: a', '', 'GET /next HTTP/1.1', 'host: a', '', '');
        const [first = '', rest = ''] = (await client.until('"next"')).split(/(?<=\r\n\r\n)/);
        assert.match(first, new RegExp(`^HTTP/1.1 ${status} `));
        assert.match(first, /\r\netag: "1"\r\n/i);
        assert.doesNotMatch(first, /content-type/i);
        assert.match(rest, /^HTTP\/1.1 200 OK\r\n/);
      },
    );
  }

  for (const [kind, detail, headers] of [
    ['a header with a line break', 'x', { 'x-reason': 'a\r\nset-cookie: b' }],
    ['a header name with a space', 'x', { 'x reason': 'a' }],
    ['a detail that is a BigInt', 10n, { 'x-reason': 'a' }],
  ] as [string, unknown, Record<string, string>][]) {
    test(`an HTTPError with ${kind} is 500 with nothing of it, and is reported once`, async (t) => {
      const lines = stderr(t);
      await using server = await serve(throwing(404, detail, { headers }));
      const response = await fetch(server.url);
      assert.deepEqual([response.status, await response.json()], internal);
      assert.deepEqual([response.headers.get('x-reason'), response.headers.get('set-cookie')], [null, null]);
      assert.equal(lines.length, 1);
      assert.match(lines[0] ?? '', /^GET \/ failed: TypeError/);
    });
  }
});

describe('what is refused', () => {
  test('depends() refuses what is no function, and says what it got', () => {
    for (const wrong of [undefined, 1, 'call', { deps: {} }, named('a')]) {
      const message = new RegExp(`^Expected .*function, got ${typeof wrong}`);
      assert.throws(() => depends(wrong as never), { name: 'TypeError', message });
      assert.throws(() => depends({}, wrong as never), { name: 'TypeError', message });
    }
  });

  test('what is declared and is no dependency is refused at once, by its name', () => {
    for (const wrong of [() => 'a plain function', undefined, null, 'text', {}, query]) {
      const deps = { fine: query('q'), database: wrong } as unknown as Dependencies;
      const expected = { name: 'TypeError', message: /`database` to be a dependency.*depends\(\)/ };
      assert.throws(() => depends(deps, () => {}), expected);
      assert.throws(() => get('/', deps, () => {}), expected);
    }
  });

  for (const [kind, wrong] of [
    ['query()', query('q', {} as StandardSchema<string>)],
    ['header()', header('host', {} as StandardSchema<string>)],
    ['body()', body({} as StandardSchema<string>)],
    ['body() without one', body(undefined as never)],
  ] as [string, Dependency<unknown>][]) {
    test(`a schema that is none, in ${kind}, is 500 and a TypeError on stderr`, async (t) => {
      const lines = stderr(t);
      const routes = [post('/', { wrong }, () => assert.fail('unreachable'))];
      assert.deepEqual(await answerOf(routes, '/?q=1', json({})), internal);
      assert.equal(lines.length, 1);
      assert.match(lines[0] ?? '', /^POST \/\?q=1 failed: TypeError/);
    });
  }

  test('a thrown thenable is an error like any other, and is not awaited', async (t) => {
    t.mock.method(console, 'error', () => {});
    const never = { then: (): void => {} };
    const rejecting = {
      then: (_: unknown, reject: (error: Error) => void): void => reject(new Error('thrown')),
    };
    await using server = await serve([
      ...Object.entries({ never, rejecting }).map(([name, thrown]) =>
        get(`/${name}`, () => {
          throw thrown;
        }),
      ),
    ]);
    for (const name of ['never', 'rejecting']) {
      assert.equal((await fetch(`${server.url}/${name}`)).status, 500);
    }
  });

  test('an anonymous generator that never yields is named in the report all the same', async (t) => {
    const report = t.mock.method(console, 'error', () => {});
    await using server = await serve([get('/', { none: depends(function* () {}) }, () => {})]);
    assert.equal((await fetch(server.url)).status, 500);
    assert.match(String(report.mock.calls[0]?.arguments[2]), /Expected a dependency to yield one value/);
  });
});

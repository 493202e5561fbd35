/** `query()` and `header()`: what a handler gets for the parameters of a request. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { Dependencies } from '../server.ts';
import { body, get, header, post, query } from '../server.ts';
import {
  answer,
  answerOf,
  anything,
  asyncNumber,
  connect,
  internal,
  json,
  missing,
  number,
  rejection,
  schema,
} from './deps.helpers.ts';
import { serve, stderr, within } from './helpers.ts';

const asQuery = (text: string): [string, RequestInit?] => [`/?p=${text}`];

const asHeader = (text: string): [string, RequestInit?] => ['/', { headers: { p: text } }];

describe('parameters', () => {
  for (const [source, parameter, withText] of [
    ['query', query, asQuery],
    ['header', header, asHeader],
  ] as const) {
    test(`${source}() is required, or has a fallback, or null, or a schema, sync or async`, async () => {
      const deps = {
        required: parameter('p'),
        fallback: parameter('p', 'fallback'),
        optional: parameter('p', null),
        schema: parameter('p', number),
        asyncSchema: parameter('p', asyncNumber),
      };
      await using server = await serve([get('/', deps, (values) => values)]);
      assert.deepEqual(await answer(server, ...withText('7')), [
        200,
        { required: '7', fallback: '7', optional: '7', schema: 7, asyncSchema: 7 },
      ]);
      const issue = (text: string | null): object => ({
        type: 'value_error',
        loc: [source, 'p'],
        msg: `No number: ${text ?? undefined}`,
        input: text,
      });
      assert.deepEqual(await answer(server), rejection(missing(source, 'p'), issue(null)));
      assert.deepEqual(await answer(server, ...withText('x')), rejection(issue('x')));
    });

    test(`a missing ${source} parameter is its fallback, or null, or reaches its schema as undefined`, async () => {
      const deps = {
        fallback: parameter('p', 'fallback'),
        empty: parameter('p', ''),
        optional: parameter('p', null),
        schema: parameter(
          'p',
          schema((value) => ({ value: [typeof value, value === undefined] })),
        ),
      };
      assert.deepEqual(await answerOf([get('/', deps, (values) => values)]), [
        200,
        { fallback: 'fallback', empty: '', optional: null, schema: ['undefined', true] },
      ]);
    });

    test(`a ${source} parameter that is empty is an empty string, not a missing one`, async () => {
      const deps = {
        required: parameter('p'),
        fallback: parameter('p', 'fallback'),
        optional: parameter('p', null),
        schema: parameter('p', anything),
      };
      assert.deepEqual(await answerOf([get('/', deps, (values) => values)], ...withText('')), [
        200,
        { required: '', fallback: '', optional: '', schema: '' },
      ]);
    });
  }

  test("the path of a schema's issue follows the source, each step a key or a { key }", async () => {
    const issues = [
      { message: 'keys', path: ['rows', 1, 'name'] },
      { message: 'objects', path: [{ key: 'rows' }, { key: 0 }] },
      { message: 'a symbol', path: [Symbol('tag')] },
      { message: 'nothing there', path: ['rows', 7, 'name'] },
      { message: 'no path' },
      { message: 'an undefined path', path: undefined },
    ];
    const input = { rows: ['first', { name: 'second' }] };
    const failing = [post('/', { body: body(schema(() => ({ issues }))) }, () => assert.fail('unreachable'))];
    const error = (msg: string, input: unknown, ...loc: unknown[]): object => ({
      type: 'value_error',
      loc: ['body', ...loc],
      msg,
      input,
    });
    assert.deepEqual(
      await answerOf(failing, '/', json(input)),
      rejection(
        error('keys', 'second', 'rows', 1, 'name'),
        error('objects', 'first', 'rows', 0),
        error('a symbol', null, 'Symbol(tag)'),
        error('nothing there', null, 'rows', 7, 'name'),
        error('no path', input),
        error('an undefined path', input),
      ),
    );
    const ofQuery = query(
      'q',
      schema(() => ({ issues: issues.slice(4, 5) })),
    );
    assert.deepEqual(
      await answerOf([get('/', { ofQuery }, () => assert.fail('unreachable'))], '/?q=1'),
      rejection({ ...error('no path', '1'), loc: ['query', 'q'] }),
    );
  });

  test('the input of an issue is what the body holds itself, nothing that it inherits', async () => {
    const issues = ['constructor', '__proto__', 'toString'].map((key) => ({
      message: 'required',
      path: [key],
    }));
    const expected = issues.map(({ message, path }) => ({
      type: 'value_error',
      loc: ['body', ...path],
      msg: message,
      input: null,
    }));
    assert.deepEqual(
      await answerOf([post('/', { body: body(schema(() => ({ issues }))) }, () => {})], '/', json({})),
      rejection(...expected),
    );
  });

  test('a schema may be a function, and what it throws is 500', async (t) => {
    const lines = stderr(t);
    const callable = Object.assign(() => {}, number);
    const broken = schema(() => {
      throw new Error('broken schema');
    });
    await using server = await serve([
      get('/', { n: query('n', callable) }, ({ n }) => n),
      get('/broken', { n: query('n', broken) }, () => {}),
    ]);
    assert.deepEqual(await answer(server, '/?n=12'), [200, 12]);
    assert.deepEqual(await answer(server, '/broken'), internal);
    assert.equal(lines.length, 1);
    assert.match(lines[0] ?? '', /^GET \/broken failed: Error: broken schema/);
  });

  test('a query parameter is decoded, and of duplicates the last one counts', async () => {
    await using server = await serve([
      get('/', { q: query('q'), 'a b': query('a b', null) }, (values) => values),
    ]);
    assert.deepEqual(await answer(server, '/?q=1&q=2&q=3'), [200, { q: '3', 'a b': null }]);
    assert.deepEqual(await answer(server, '/?q=%EC%95%88+1%2B1?%ff&a%20b=c=d'), [
      200,
      { q: '안 1+1?\ufffd', 'a b': 'c=d' },
    ]);
  });

  test('a header is found in any case, and of duplicates the last one counts', within, async (t) => {
    const deps = {
      token: header('X-Token'),
      agent: header('user-agent'),
      length: header('Content-Length', null),
    };
    await using server = await serve([get('/', deps, (values) => values)]);
    using client = await connect(t, server.port);
    client.send(
      'GET / HTTP/1.1',
      'host: a',
      'x-token: 1',
      'X-TOKEN: 2',
      'User-Agent: a',
      'user-agent: b',
      '',
      '',
    );
    assert.match(await client.until('}'), /\{"token":"2","agent":"b","length":null\}/);
  });

  test('a query is read as `URLSearchParams` reads it, one parameter or many, whatever it is made of', async () => {
    await using server = await serve([get('/', { a: query('a', null) }, ({ a }) => a)]);
    const queries = [
      '',
      'a',
      'a=',
      'a=1',
      'a=b=c',
      'a=%ED%95%9C',
      'a=%ED',
      'a=%zz',
      'a=1+2',
      'a=%2B',
      '%61=1',
      'a=?b=1',
      '?a=1',
      'b=1&?a=2',
      'b=1&a=2',
      'a=1&a=2',
      'a=1&',
      'a&b',
      '=a',
      'b?a=1',
      'a=%00',
      `a=${'?'.repeat(4000)}`,
      '?'.repeat(8000),
    ];
    for (const each of queries) {
      const expected = new URLSearchParams(`?${each}`).getAll('a').at(-1) ?? null;
      assert.deepEqual(await answer(server, `/?${each}`), [200, expected], each);
    }
  });

  test(
    '`__proto__` and `constructor` are plain data in a query and in headers, there or not',
    within,
    async (t) => {
      const deps = (parameter: typeof query): Dependencies => ({
        proto: parameter('__proto__', null),
        ctor: parameter('constructor', null),
        other: parameter('toString', null),
      });
      await using server = await serve([
        get('/query', deps(query), (values) => values),
        get('/header', deps(header), (values) => values),
      ]);
      const [absent, present] = [
        { proto: null, ctor: null, other: null },
        { proto: 'p', ctor: 'c', other: null },
      ];
      assert.deepEqual(await answer(server, '/query'), [200, absent]);
      assert.deepEqual(await answer(server, '/header'), [200, absent]);
      assert.deepEqual(await answer(server, '/query?__proto__=p&constructor=c'), [200, present]);
      using client = await connect(t, server.port);
      client.send('GET /header HTTP/1.1', 'host: a', '__proto__: p', 'constructor: c', '', '');
      assert.ok((await client.until('}')).endsWith(JSON.stringify(present)));
    },
  );
});

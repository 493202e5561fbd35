/** `body()`: what a handler gets for the body of a request, and what is refused. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { Route, StandardSchema } from '../server.ts';
import { body, depends, header, post, query, request, strings } from '../server.ts';
import {
  answer,
  answerOf,
  anything,
  connect,
  json,
  missing,
  rejection,
  schema,
  sent,
} from './deps.helpers.ts';
import { serve, within } from './helpers.ts';

const NO_MODEL = {
  type: 'model_attributes_type',
  loc: ['body'],
  msg: 'Input should be a valid dictionary or object to extract fields from',
};

const orders = [post('/', { order: body(strings('item', 'email')) }, ({ order }) => order)];

describe('the body', () => {
  test('a body is what its schema, sync or async, makes of the JSON; several share one read', async () => {
    const asyncKeys = schema(async (value) => {
      await new Promise(setImmediate);
      return { value: Object.keys(value as object) };
    });
    const inner = depends({ order: body(strings('item')) }, ({ order: { item } }) => item);
    const deps = { first: body(anything), second: body(anything), keys: body(asyncKeys), inner };
    await using server = await serve([
      post('/', deps, ({ first, second, keys, inner }) => [first === second, first, keys, inner]),
    ]);
    assert.deepEqual(await answer(server, '/', json({ item: 'tea', n: [1] })), [
      200,
      [true, { item: 'tea', n: [1] }, ['item', 'n'], 'tea'],
    ]);
  });

  test('any JSON value but null is a body, whatever the schema takes', async () => {
    await using server = await serve([post('/', { value: body(anything) }, ({ value }) => [value])]);
    for (const value of [0, false, '', [], {}, 'text', [null], { a: { b: null } }]) {
      assert.deepEqual(await answer(server, '/', json(value)), [200, [value]]);
    }
    assert.deepEqual(await answer(server, '/', sent(' {"안":"\\u0000é"}\r\n', 'application/json')), [
      200,
      [{ 안: '\0é' }],
    ]);
  });

  test('strings() keeps its keys and leaves the others out', async () => {
    await using server = await serve([
      post('/', { order: body(strings('item', 'email')) }, ({ order }) => order),
    ]);
    assert.deepEqual(await answer(server, '/', json({ email: '', extra: 1, item: 'tea' })), [
      200,
      { item: 'tea', email: '' },
    ]);
  });

  test('strings() is a Standard Schema of version 1, which names its vendor', () => {
    const { version, vendor } = strings('item')['~standard'];
    assert.deepEqual({ version, vendor }, { version: 1, vendor: 'response-first' });
  });

  test('`__proto__` and `constructor` are plain data in a body', async () => {
    const hostile = '{"__proto__":"p","constructor":"c"}';
    const echo = (value: StandardSchema<unknown>): Route[] => [
      post('/', { value: body(value) }, ({ value }) => [
        Object.getPrototypeOf(value) === Object.prototype,
        Object.entries(value as object),
      ]),
    ];
    const entries = [
      ['__proto__', 'p'],
      ['constructor', 'c'],
    ];
    for (const validator of [anything, strings('__proto__', 'constructor')]) {
      assert.deepEqual(await answerOf(echo(validator), '/', sent(hostile, 'application/json')), [
        200,
        [true, entries],
      ]);
    }
    assert.deepEqual(
      await answerOf(echo(strings('__proto__', 'constructor')), '/', json({})),
      rejection(
        { ...missing('body', '__proto__'), input: {} },
        { ...missing('body', 'constructor'), input: {} },
      ),
    );
    assert.deepEqual(
      await answerOf(echo(strings('item')), '/', sent('{"__proto__":{"item":"x"}}', 'application/json')),
      rejection({ ...missing('body', 'item'), input: JSON.parse('{"__proto__":{"item":"x"}}') }),
    );
  });

  for (const [kind, init, ...errors] of [
    [
      'an object that lacks a key',
      json({ item: 'tea' }),
      { ...missing('body', 'email'), input: { item: 'tea' } },
    ],
    [
      'a member of a wrong type, and one that lacks',
      json({ item: 1 }),
      { type: 'string_type', loc: ['body', 'item'], msg: 'Input should be a valid string', input: 1 },
      { type: 'missing', loc: ['body', 'email'], msg: 'Field required', input: { item: 1 } },
    ],
    [
      'a member that is null',
      json({ item: null, email: '' }),
      { type: 'string_type', loc: ['body', 'item'], msg: 'Input should be a valid string', input: null },
    ],
    ['an array', json([]), { ...NO_MODEL, input: [] }],
    ['a string', json('tea'), { ...NO_MODEL, input: 'tea' }],
    ['false', json(false), { ...NO_MODEL, input: false }],
    ['an empty body', sent('', 'application/json'), missing('body')],
    ['an empty body without a content type', { method: 'POST' }, missing('body')],
    ['a body of text/plain', sent('{"item":"tea"}', 'text/plain'), { ...NO_MODEL, input: '{"item":"tea"}' }],
    ['a form', sent('item=tea', 'application/x-www-form-urlencoded'), { ...NO_MODEL, input: 'item=tea' }],
    ['a body without a content type', sent('{}'), { ...NO_MODEL, input: '{}' }],
  ] as [string, RequestInit, ...object[]][]) {
    test(`${kind} is 422, exactly as in FastAPI`, async () => {
      assert.deepEqual(await answerOf(orders, '/', init), rejection(...errors));
    });
  }

  test('`null` is a missing body', async () => {
    assert.deepEqual(await answerOf(orders, '/', json(null)), rejection(missing('body')));
  });
});

describe('what is JSON', () => {
  test('a JSON content type may have parameters, a suffix `+json`, and any case', async () => {
    await using server = await serve([post('/', { value: body(anything) }, ({ value }) => value)]);
    for (const type of [
      'application/json',
      'application/json; charset=utf-8',
      'application/json ;a=b',
      'Application/JSON',
      'application/problem+json',
      'application/vnd.api+json;v=1',
    ]) {
      assert.deepEqual(await answer(server, '/', sent('{"a":1}', type)), [200, { a: 1 }], type);
    }
    for (const type of [
      'application/jsonl',
      'application/json-seq',
      'text/json',
      'application/xml;a=application/json',
      'application/x; a=+json',
      'image/svg+xml',
      'json',
    ]) {
      assert.deepEqual(
        await answer(server, '/', sent('{"a":1}', type)),
        rejection({ ...NO_MODEL, input: '{"a":1}' }),
        type,
      );
    }
  });

  test('a body that is no JSON is json_invalid, alone among the input errors', async () => {
    const deps = {
      before: query('before'),
      order: body(anything),
      again: body(strings('item')),
      after: header('after'),
    };
    for (const text of ['{', '{"item":}', '\0', "{'item':1}", '1 2', 'NaN']) {
      const [status, { detail }] = (await answerOf(
        [post('/', deps, () => {})],
        '/',
        sent(text, 'application/json'),
      )) as [number, { detail: { ctx: { error: unknown } }[] }];
      const error = detail[0]?.ctx.error;
      assert.ok(typeof error === 'string' && error !== '');
      assert.deepEqual(
        [status, detail],
        [422, [{ type: 'json_invalid', loc: ['body'], msg: 'JSON decode error', input: {}, ctx: { error } }]],
      );
    }
  });

  test('a body that is not UTF-8 is 400', async () => {
    await using server = await serve([post('/', { q: query('q'), value: body(anything) }, () => {})]);
    for (const bytes of [
      [0x22, 0xff, 0x22],
      [0x22, 0xed, 0xa0, 0x80, 0x22],
      [0x22, 0xc3],
    ]) {
      assert.deepEqual(await answer(server, '/', sent(Uint8Array.from(bytes), 'application/json')), [
        400,
        { detail: 'There was an error parsing the body' },
      ]);
    }
  });
});

const deep = (levels: number): string => '['.repeat(levels) + ']'.repeat(levels);

describe('the input of an error', () => {
  test('JSON that is nested 500,000 deep is 422, wherever it stands', async () => {
    await using server = await serve(orders);
    const nested = deep(500_000);
    for (const [text, expected] of [
      [nested, NO_MODEL],
      [
        `{"item":${nested},"email":""}`,
        { type: 'string_type', loc: ['body', 'item'], msg: 'Input should be a valid string' },
      ],
      [`{"item":"","other":${nested}}`, { type: 'missing', loc: ['body', 'email'], msg: 'Field required' }],
    ] as const) {
      assert.deepEqual(
        await answer(server, '/', sent(text, 'application/json')),
        rejection({ ...expected, input: null }),
      );
    }
    const [status, unclosed] = await answer(server, '/', sent('['.repeat(500_000), 'application/json'));
    assert.equal(status, 422);
    assert.match(JSON.stringify(unclosed), /"json_invalid"/);
  });

  test('the input of an error has 100 levels at most: a deeper one is null, alone among the errors', async () => {
    await using server = await serve(orders);
    for (const levels of [1, 100, 101, 5_000]) {
      const input: unknown = levels > 100 ? null : JSON.parse(deep(levels));
      assert.deepEqual(
        await answer(server, '/', sent(deep(levels), 'application/json')),
        rejection({ ...NO_MODEL, input }),
      );
      const members = sent(`{"item":${deep(levels)},"email":1}`, 'application/json');
      const [status, { detail }] = (await answer(server, '/', members)) as [
        number,
        { detail: { input: unknown }[] },
      ];
      assert.deepEqual([status, ...detail.map((error) => error.input)], [422, input, 1]);
    }
  });
});

describe('the limit of a body', () => {
  for (const [kind, ...lines] of [
    ['Content-Length says so: before it is read', 'content-length: 11', '', ''],
    ['it is, while it is read', 'transfer-encoding: chunked', '', '6', '"12345', '5', '6789"', ''],
  ] as [string, ...string[]][]) {
    test(`a body over bodyLimit is 413 where ${kind}; the connection is closed`, within, async (t) => {
      const log: string[] = [];
      const session = depends({ request }, function* ({ request }) {
        try {
          yield;
        } finally {
          log.push(`${request.method} is still connected: ${!request.socket.destroyed}`);
        }
      });
      const deps = { session, q: query('q'), value: body(anything), late: depends(() => log.push('late')) };
      await using server = await serve([post('/', deps, () => log.push('handler'))], { bodyLimit: 10 });
      using client = await connect(t, server.port);
      client.send('POST / HTTP/1.1', 'host: a', 'content-type: application/json', ...lines); // and no more of it
      const received = await client.closed;
      assert.match(received, /^HTTP\/1.1 413 [\s\S]*\{"detail":"[^"]+ Too Large"\}$/);
      assert.match(received, /\r\nconnection: close\r\n/i);
      assert.deepEqual(log, ['POST is still connected: true']);
    });
  }

  test(
    'a body of exactly bodyLimit bytes is accepted, in chunks too, and its connection is kept',
    within,
    async (t) => {
      await using server = await serve([post('/', { value: body(anything) }, ({ value }) => value)], {
        bodyLimit: 10,
      });
      using client = await connect(t, server.port);
      const head = ['POST / HTTP/1.1', 'host: a', 'content-type: application/json'];
      client.send(...head, 'content-length: 10', '', '"12345678"');
      await client.until('"12345678"');
      client.send(...head, 'transfer-encoding: chunked', '', '6', '"12345', '4', '678"', '0', '', '');
      assert.doesNotMatch(await client.until('"12345678"', 2), /connection: close/i);
    },
  );

  test('bodyLimit is 1 MiB unless told otherwise', within, async (t) => {
    await using server = await serve([
      post('/', { value: body(anything) }, ({ value }) => String(value).length),
    ]);
    assert.deepEqual(await answer(server, '/', json('a'.repeat(2 ** 20 - 2))), [200, 2 ** 20 - 2]);
    using client = await connect(t, server.port);
    client.send(
      'POST / HTTP/1.1',
      'host: a',
      'content-type: application/json',
      `content-length: ${2 ** 20 + 1}`,
      '',
      '',
    );
    assert.match(await client.closed, /^HTTP\/1.1 413 /);
  });
});

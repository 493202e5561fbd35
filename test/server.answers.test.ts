/** What a handler may return or throw, and what the client gets for it. */
import assert from 'node:assert/strict';
import { Readable } from 'node:stream';
import { describe } from 'node:test';
import { backgroundTasks, createApp, get, HTTPError } from '../server.ts';
import { rawClient, type Served, stderr } from './helpers.ts';
import { ask, fence, foreign, GET, Journal, MiB, serve, test } from './server.helpers.ts';

const respond = (make: () => unknown): Promise<Served> => serve([get('/', make)]);

const partly = new Response('partly read');

const reader = partly.body?.getReader();
await reader?.read();
reader?.releaseLock();

describe('what a handler returns', () => {
  test('a handler returns any JSON value, `undefined` as null', async () => {
    const values: [unknown, string][] = [
      [undefined, 'null'],
      [null, 'null'],
      [0, '0'],
      [-1.5, '-1.5'],
      [NaN, 'null'],
      [false, 'false'],
      ['', '""'],
      ['한글 "😀"', '"한글 \\"😀\\""'],
      [[], '[]'],
      [{ a: [{ b: null, c: undefined }] }, '{"a":[{"b":null}]}'],
      [new Date(0), '"1970-01-01T00:00:00.000Z"'],
      [{ toJSON: () => 'own' }, '"own"'],
      [Promise.resolve(1), '1'],
    ];
    const left = [...values];
    await using server = await respond(() => left.shift()?.[0]);
    for (const [, text] of values) {
      const { status, headers, body } = await ask(server.url);
      assert.deepEqual([status, body], [200, text]);
      assert.equal(headers['content-type'], 'application/json');
      assert.equal(headers['content-length'], String(Buffer.byteLength(text)));
    }
  });

  test('a handler returns a Response of any status, with its headers, each set-cookie on its own', async () => {
    await using server = await respond(() => {
      const headers = new Headers({ 'content-type': 'text/plain', 'x-mark': 'é' });
      headers.append('set-cookie', 'a=1; Path=/');
      headers.append('set-cookie', 'b=2; Expires=Thu, 01 Jan 1970 00:00:00 GMT');
      return new Response('한글', { status: 299, headers });
    });
    const { status, headers, body } = await ask(server.url);
    assert.deepEqual(
      [status, body, headers['content-type'], headers['x-mark']],
      [299, '한글', 'text/plain', 'é'],
    );
    assert.deepEqual(headers['set-cookie'], ['a=1; Path=/', 'b=2; Expires=Thu, 01 Jan 1970 00:00:00 GMT']);
  });

  test('a Response of another realm, or of a package, is sent as one; data that resembles it is data', async () => {
    const { status, headers, body, bodyUsed } = Response.json({ made: 'elsewhere' }, { status: 201 });
    await using server = await serve([
      get('/response', () => ({ status, headers, body, bodyUsed, [Symbol.toStringTag]: 'Response' })),
      get('/data', () => ({ status: 404, headers: new Headers(), body: null, bodyUsed: false })),
    ]);
    const sent = await ask(`${server.url}/response`);
    assert.deepEqual([sent.status, sent.body], [201, '{"made":"elsewhere"}']);
    const data = await ask(`${server.url}/data`);
    assert.deepEqual(
      [data.status, data.body],
      [200, '{"status":404,"headers":{},"body":null,"bodyUsed":false}'],
    );
  });

  test('a response that the host has ended stays as it is; the error is reported, and nothing is pending', async (t) => {
    const lines = stderr(t);
    const app = createApp([
      get('/', () => 'ours'),
      get('/missing', () => {
        throw new HTTPError(404);
      }),
      get('/pending', () => app.pending),
    ]);
    await using server = await foreign((req, res) => {
      if (req.url !== '/pending') {
        res.writeHead(503).end('busy');
      }
      app.listener(req, res);
    });
    for (const path of ['/', '/missing']) {
      const { status, body } = await ask(`${server.url}${path}`);
      assert.deepEqual([status, body], [503, 'busy']);
    }
    assert.equal((await ask(`${server.url}/pending`)).body, '1', 'itself');
    assert.deepEqual(
      lines.map((line) => line.split(':')[0]),
      ['GET / failed', 'GET /missing failed'],
    );
  });

  test('a Response without a body, or with an empty one, leaves the connection open', async () => {
    for (const status of [200, 201, 204, 205, 304, 404, 500]) {
      for (const empty of [204, 205, 304].includes(status) ? [null] : [null, '']) {
        await using server = await respond(() => new Response(empty, { status }));
        using client = await rawClient(server.port);
        client.send(...GET('/'), ...GET('/missing'));
        const received = await client.until('{"detail":"Not Found"}');
        assert.ok(received.startsWith(`HTTP/1.1 ${status} `));
        const [head = ''] = received.split('\r\n\r\n');
        if (status === 204) {
          assert.doesNotMatch(head, /content-length|transfer-encoding/i);
        } else if (empty === null && status !== 304) {
          assert.match(received, /content-length: 0\r\n/);
        }
      }
    }
  });

  test('a Response of bytes arrives as it is', async () => {
    const bytes = Buffer.from(Array.from({ length: 3 * MiB }, (_, index) => index % 251));
    await using server = await respond(() => new Response(bytes));
    assert.ok(bytes.equals(Buffer.from(await (await fetch(server.url)).arrayBuffer())));
  });
});

const read = new Response('read');
await read.text();

const circular: Record<string, unknown> = {};
circular.self = circular;

describe('what cannot be sent', () => {
  for (const [kind, make] of Object.entries<() => unknown>({
    'a BigInt': () => 1n,
    'a BigInt inside an object': () => ({ n: [1n] }),
    'a function': () => () => 1,
    'a symbol': () => Symbol('s'),
    'a circular object': () => circular,
    'a toJSON that throws': () => ({
      toJSON() {
        throw new Error('secret');
      },
    }),
    'a Response that was read': () => read,
    'a Response that was read in part': () => partly,
    "a Response whose body is a stream of Node's": () =>
      Object.defineProperty(new Response(), 'body', {
        value: Readable.from(['x']),
      }),
    'a Response whose body is locked': () => {
      const held = new Response('x');
      held.body?.getReader();
      return held;
    },
    'Response.error()': () => Response.error(),
    'a Response with a header that Node refuses': () =>
      new Response('x', { headers: { 'x-secret': '\x01' } }),
    'a 201 with a header that Node refuses': () =>
      new Response('x', { status: 201, headers: { 'x-secret': '\x01' } }),
    'an HTTPError with a header that Node refuses': () => {
      throw new HTTPError(404, 'x', { headers: { 'x-secret': '\n' } });
    },
    'an HTTPError whose detail is no JSON': () => {
      throw new HTTPError(404, { secret: 1n });
    },
    'a thrown error': () => {
      throw new Error('secret');
    },
    'a rejection': () => Promise.reject(new Error('secret')),
    'a thrown text': () => {
      throw 'secret';
    },
    'a thrown undefined': () => {
      throw undefined;
    },
    'a thrown Response': () => {
      throw new Response('secret');
    },
    'a thrown value that cannot be printed': () => {
      throw {
        get [Symbol.toStringTag]() {
          throw new Error('secret');
        },
      };
    },
  })) {
    test(`${kind} is 500 with nothing of it in the body; it is reported once, its queue is discarded`, async (t) => {
      const lines = stderr(t);
      const log = new Journal();
      await using server = await serve([
        get('/', { tasks: backgroundTasks }, ({ tasks }) => {
          tasks.addTask(log.write, 'task');
          return make();
        }),
      ]);
      using client = await rawClient(server.port);
      client.send(...GET('/?a=b'), ...GET('/missing'));
      const received = await client.until('{"detail":"Not Found"}');
      const [head = '', body] = received.split('\r\n\r\n');
      assert.match(head, /^HTTP\/1\.1 500 Internal Server Error\r\n/);
      assert.match(head, /\r\ncontent-type: application\/json\r\ncontent-length: 34\r\n/);
      assert.ok(body?.startsWith('{"detail":"Internal Server Error"}HTTP/1.1 404 '), body);
      assert.doesNotMatch(received, /secret|\n +at /);
      await fence(server.url);
      assert.deepEqual(log.entries, []);
      assert.equal(lines.length, 1);
      assert.match(lines[0] ?? '', /^GET \/\?a=b failed:/);
      if (!/text|undefined|thrown Response|printed/.test(kind)) {
        assert.match(lines[0] ?? '', /Error(:| \[)[^]*\n +at /);
      }
    });
  }
});

describe('what a handler throws', () => {
  test('an HTTPError is sent with its status, detail and headers, and is not reported', async (t) => {
    const lines = stderr(t);
    const errors = [
      new HTTPError(404, 'Item not found', { headers: { 'x-mark': '1' } }),
      new HTTPError(503, undefined, { headers: { 'Retry-After': '1' } }),
      new HTTPError(400, { code: 7 }),
      new HTTPError(204),
      new HTTPError(304, undefined, { headers: { etag: '"1"' } }),
    ];
    await using server = await respond(() => {
      throw errors.shift();
    });
    const seen: unknown[] = [];
    while (errors.length > 0) {
      const { status, body, headers } = await ask(server.url);
      seen.push([status, body, headers['x-mark'] ?? headers['retry-after'] ?? headers.etag]);
    }
    assert.deepEqual(seen, [
      [404, '{"detail":"Item not found"}', '1'],
      [503, '{"detail":"Service Unavailable"}', '1'],
      [400, '{"detail":{"code":7}}', undefined],
      [204, '', undefined],
      [304, '', '"1"'],
    ]);
    assert.deepEqual(lines, []);
  });

  test('a content-type of an HTTPError replaces that of JSON, as in FastAPI', async () => {
    await using server = await respond(() => {
      throw new HTTPError(400, 'x', { headers: { 'Content-Type': 'application/problem+json' } });
    });
    const { rawHeaders } = await ask(server.url);
    assert.deepEqual(
      rawHeaders.filter((_, index) => /^content-type$/i.test(rawHeaders[index - 1] ?? '')),
      ['application/problem+json'],
    );
  });
});

/** The head and the length of a streamed Response. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import http, { type IncomingMessage } from 'node:http';
import { describe } from 'node:test';
import { gzipSync } from 'node:zlib';
import { backgroundTasks, get } from '../server.ts';
import { gate, rawClient, stderr } from './helpers.ts';
import { ask, fence, foreign, GET, Journal, serve, source, test } from './server.helpers.ts';

describe('the head of a streamed Response', () => {
  test('goes out where the first chunk is not there', async () => {
    const first = gate<string>();
    const parts = [first, undefined];
    await using server = await serve([
      get(
        '/',
        () =>
          new Response(
            source(() => parts.shift()),
            { headers: { 'x-mark': 'open' } },
          ),
      ),
    ]);
    using client = await rawClient(server.port);
    client.send(...GET('/', 'connection: close'));
    const head = await client.until('\r\n\r\n');
    assert.match(head, /^HTTP\/1\.1 200 OK\r\nx-mark: open\r\n/);
    assert.ok(head.endsWith('\r\n\r\n'));
    first.open('data: 1');
    assert.match(await client.closed, /data: 1\r\n0\r\n\r\n$/);
  });

  test('goes out where the first chunk is empty', async () => {
    const second = gate<string>();
    const parts = ['', second, undefined];
    await using server = await serve([get('/', () => new Response(source(() => parts.shift())))]);
    using client = await rawClient(server.port);
    client.send(...GET('/', 'connection: close'));
    await client.until('\r\n\r\n');
    second.open('late');
    assert.match(await client.closed, /late/);
  });

  test('goes out behind another response of its connection, in its turn', async () => {
    const held = gate();
    const first = gate<string>();
    const parts = [first, undefined];
    await using server = await serve([
      get('/held', () => held),
      get('/', () => new Response(source(() => parts.shift()))),
    ]);
    using client = await rawClient(server.port);
    client.send(...GET('/held'), ...GET('/', 'connection: close'));
    held.open();
    const both = await client.until('\r\n\r\n', 2);
    assert.ok(both.endsWith('\r\n\r\n'));
    first.open('late');
    assert.match(await client.closed, /late/);
  });

  test('goes out with the first chunk where that is there, also where the second one is far', async (t) => {
    const second = gate<string>();
    const parts = ['first', second, undefined];
    await using server = await serve([get('/', () => new Response(source(() => parts.shift())))]);
    const flush = t.mock.method(http.OutgoingMessage.prototype, 'flushHeaders');
    using client = await rawClient(server.port);
    client.send(...GET('/', 'connection: close'));
    await client.until('first');
    await fence(server.url);
    second.open('second');
    assert.match(await client.closed, /second/);
    const ofServer = flush.mock.calls.filter((call) => call.this instanceof http.ServerResponse);
    assert.equal(ofServer.length, 0);
  });

  test('is not sent anew where the stream fails before its first chunk', async (t) => {
    const lines = stderr(t);
    const fail = gate<string>();
    await using server = await serve([
      get('/', () => new Response(source(() => fail.then(() => Promise.reject(new Error('no events')))))),
    ]);
    using client = await rawClient(server.port);
    client.send(...GET('/'));
    await client.until('\r\n\r\n');
    fail.open('');
    const received = await client.closed;
    assert.equal(received.split('HTTP/1.1').length, 2);
    assert.ok(!received.endsWith('0\r\n\r\n'));
    assert.match(lines.join('\n'), /GET \/ broke off: Error: no events/);
  });
});

/** A stream of `chunks`. */
function streamOf(...chunks: string[]): ReadableStream {
  const left = [...chunks];
  return source(() => left.shift());
}

describe('a content-length that is wrong never shifts the next response', () => {
  const wrong: Record<string, [() => Response, atMost: string, reported: RegExp]> = {
    'where the body is longer, in one chunk': [
      () => new Response('0123456789', { headers: { 'content-length': '4' } }),
      '',
      /Expected 4 bytes, as content-length says, got more/,
    ],
    'where the body is longer, in a later chunk': [
      () => new Response(streamOf('0123', '456789'), { headers: { 'content-length': '4' } }),
      '0123',
      /Expected 4 bytes, as content-length says, got more/,
    ],
    'where the body is there and the length 0': [
      () => new Response('0123', { headers: { 'content-length': '0' } }),
      '',
      /Expected 0 bytes, as content-length says, got more/,
    ],
    'where the body is shorter': [
      () => new Response('0123', { headers: { 'content-length': '10' } }),
      '0123',
      /Expected 10 bytes, as content-length says, got fewer/,
    ],
    'where the stream is empty': [
      () => new Response(streamOf(), { headers: { 'content-length': '10' } }),
      '',
      /Expected 10 bytes, as content-length says, got fewer/,
    ],
  };
  for (const [title, [make, atMost, reported]] of Object.entries(wrong)) {
    test(title, async (t) => {
      const lines = stderr(t);
      const journal = new Journal();
      await using server = await serve([
        get('/', { tasks: backgroundTasks }, ({ tasks }) => {
          tasks.addTask(journal.write, 'the task ran');
          return make();
        }),
        get('/next', () => 'next'),
      ]);
      using client = await rawClient(server.port);
      client.send(...GET('/'), ...GET('/next'));
      const received = await client.closed;
      await journal.until('the task ran');
      assert.ok(!received.includes('"next"'), received);
      const [, ...bytes] = received.split('\r\n\r\n');
      assert.ok(atMost.startsWith(bytes.join('')), received);
      assert.match(lines.join('\n'), reported);
    });
  }

  test('where it is the length of what an upstream had compressed', async (t) => {
    const lines = stderr(t);
    const text = 'x'.repeat(5008);
    await using upstream = await foreign((_, res) => {
      const bytes = gzipSync(text);
      res.writeHead(200, { 'content-encoding': 'gzip', 'content-length': bytes.length }).end(bytes);
    });
    await using server = await serve([
      get('/', () => fetch(upstream.url)),
      get('/proxied', async () => {
        const { body, headers, status } = await fetch(upstream.url);
        const kept = new Headers(headers);
        kept.delete('content-length');
        kept.delete('content-encoding');
        return new Response(body, { status, headers: kept });
      }),
    ]);
    using client = await rawClient(server.port);
    client.send(...GET('/'), ...GET('/proxied'));
    const received = await client.closed;
    assert.ok(!received.includes('x'));
    assert.match(lines.join('\n'), /got more/);
    assert.equal((await ask(`${server.url}/proxied`)).body, text);
  });

  test('where there is no body: that is a 500, and the connection is kept', async (t) => {
    const lines = stderr(t);
    await using server = await serve([
      get('/', () => new Response(null, { headers: { 'content-length': '10' } })),
      get('/next', () => 'next'),
    ]);
    using client = await rawClient(server.port);
    client.send(...GET('/'), ...GET('/next', 'connection: close'));
    const received = await client.closed;
    assert.deepEqual(received.match(/HTTP\/1\.1 \d+/g), ['HTTP/1.1 500', 'HTTP/1.1 200']);
    assert.match(lines.join('\n'), /Expected a body of 10 bytes, as content-length says, got none/);
  });

  for (const length of ['four', '-4', '4, 4', '4 bytes']) {
    test(`where it is '${length}': that is a 500, and the connection is kept`, async (t) => {
      const lines = stderr(t);
      await using server = await serve([
        get('/', () => new Response('text', { headers: { 'content-length': length } })),
        get('/next', () => 'next'),
      ]);
      using client = await rawClient(server.port);
      client.send(...GET('/'), ...GET('/next', 'connection: close'));
      const received = await client.closed;
      assert.deepEqual(received.match(/HTTP\/1\.1 \d+/g), ['HTTP/1.1 500', 'HTTP/1.1 200']);
      assert.equal(lines.length, 1);
      assert.ok(lines[0]?.includes(`Expected content-length to be a number, got '${length}'.`), lines[0]);
    });
  }

  test('where it is right, or the answer to a HEAD: then the connection is kept', async () => {
    await using server = await serve([
      get('/', () => new Response('0123', { headers: { 'content-length': '4' } })),
      get('/large', () => new Response(null, { headers: { 'content-length': '10' } })),
    ]);
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    const ports = new Set<number | undefined>();
    for (const [method, path, length] of [
      ['GET', '/', '4'],
      ['HEAD', '/', '4'],
      ['HEAD', '/large', '10'],
      ['GET', '/', '4'],
    ] as const) {
      const sent = http.request(server.url + path, { method, agent }).end();
      const [answer] = (await once(sent, 'response')) as [IncomingMessage];
      assert.equal(answer.headers['content-length'], length);
      ports.add(sent.socket?.localPort);
      await once(answer.resume(), 'end');
    }
    assert.equal(ports.size, 1);
    agent.destroy();
  });
});

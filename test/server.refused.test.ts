/** What Node cannot parse, or does not get in time: a server of `listen()` says why, a mounted app leaves it to its host. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { describe } from 'node:test';
import { backgroundTasks, body, createApp, get, post, strings } from '../server.ts';
import { gate, type RawClient, rawClient, stderr } from './helpers.ts';
import { ask, fence, foreign, GET, Journal, serve, test } from './server.helpers.ts';

const RAW_QUERY = 'GET /?name=책 HTTP/1.1\r\nhost: a\r\n\r\n';

const hello = get('/', () => 'hello');

/** Asserts that the only response is this, and well-formed; returns its detail. */
async function refusal(client: RawClient, status: number): Promise<string> {
  const received = await client.closed;
  const [head = '', content = ''] = received.split('\r\n\r\n');
  const [first, ...headers] = head.split('\r\n');
  assert.equal(first, `HTTP/1.1 ${status} ${http.STATUS_CODES[status]}`);
  assert.deepEqual(headers, [
    'content-type: application/json',
    `content-length: ${Buffer.byteLength(content)}`,
    'connection: close',
  ]);
  const { detail, ...rest } = JSON.parse(content);
  assert.deepEqual(rest, {});
  return detail;
}

describe('a request that cannot be parsed', () => {
  const refused: [what: string, text: string, status: number, detail: RegExp][] = [
    ['a query in raw UTF-8', RAW_QUERY, 400, /^Bad Request: .*char.*/],
    ['a path in raw UTF-8', 'GET /책 HTTP/1.1\r\nhost: a\r\n\r\n', 400, /^Bad Request: .*char.*/],
    ['no HTTP at all', 'hello?\r\n\r\n', 400, /^Bad Request: ./],
    ['a method that there is not', 'FETCH / HTTP/1.1\r\nhost: a\r\n\r\n', 400, /^Bad Request: .*method/],
    [
      'a head that is too long',
      `GET / HTTP/1.1\r\nhost: a\r\nx-long: ${'x'.repeat(17_000)}\r\n\r\n`,
      431,
      /^Request Header Fields Too Large/,
    ],
  ];
  for (const [what, text, status, detail] of refused) {
    test(`${what} is answered with ${status}, and JSON that says why`, async (t) => {
      const lines = stderr(t);
      await using server = await serve([hello]);
      using client = await rawClient(server.port);
      client.send(text);
      assert.match(await refusal(client, status), detail);
      assert.equal((await ask(server.url)).body, '"hello"');
      assert.deepEqual(lines, []);
    });
  }

  test('a head that does not come in time is answered with 408', async () => {
    const options = { headersTimeout: 50, requestTimeout: 100, connectionsCheckingInterval: 10 };
    await using server = await serve([hello], { server: options });
    using client = await rawClient(server.port);
    client.send('GET / HTTP/1.1', 'host: a');
    assert.equal(await refusal(client, 408), 'Request Timeout');
  });

  test('a chunk with an extension that is too long, behind a response that is out, gets 413', async () => {
    await using server = await serve([hello]);
    using client = await rawClient(server.port);
    client.send('POST / HTTP/1.1', 'host: a', 'transfer-encoding: chunked', '', '');
    await client.until('"Method Not Allowed"}');
    await fence(server.url);
    client.send(`1;${'x'.repeat(20_000)}`);
    assert.match(await client.closed, /\}HTTP\/1\.1 413 Payload Too Large\r\n/);
  });

  test('behind a response that is out, while its task runs, is answered all the same', async () => {
    const log = new Journal();
    const held = gate();
    const quick = get('/quick', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(async () => {
        log.write('begun');
        await held;
        log.write('ended');
      });
    });
    await using server = await serve([quick]);
    using client = await rawClient(server.port);
    client.send(...GET('/quick'));
    await client.until('null');
    await log.until('begun');
    client.send(RAW_QUERY);
    assert.match(await client.closed, /nullHTTP\/1\.1 400 Bad Request\r\n[\s\S]*\{"detail":"Bad Request: /);
    held.open();
    await server.app.idle();
    assert.deepEqual(log.entries, ['begun', 'ended']);
  });
});

describe('while a response is open', () => {
  test('what cannot be parsed behind it ends the connection without a byte, and its task runs', async () => {
    const log = new Journal();
    const held = gate();
    const slow = get('/slow', { tasks: backgroundTasks }, async ({ tasks }) => {
      tasks.addTask(log.write, 'task');
      log.write('handler');
      await held;
    });
    await using server = await serve([slow]);
    using client = await rawClient(server.port);
    client.send(...GET('/slow'));
    await log.until('handler');
    client.send(RAW_QUERY);
    assert.equal(await client.closed, '');
    held.open();
    await server.app.idle();
    assert.deepEqual(log.entries, ['handler', 'task']);
  });

  test('a body that is no chunk ends the connection without a byte', async () => {
    const reads = post('/', { item: body(strings('item')) }, () => 'never');
    await using server = await serve([reads]);
    using client = await rawClient(server.port);
    client.send('POST / HTTP/1.1', 'host: a', 'transfer-encoding: chunked', '', 'zz', '');
    assert.equal(await client.closed, '');
    await server.app.idle();
  });
});

describe('a client that resets the connection', () => {
  test('in the middle of a head disturbs nobody', async (t) => {
    const lines = stderr(t);
    await using server = await serve([hello]);
    using client = await rawClient(server.port);
    client.send('GET / HTTP/1.1', 'host: a');
    client.socket.resetAndDestroy();
    await fence(server.url);
    assert.deepEqual(lines, []);
  });
});

describe('a mounted app', () => {
  test("leaves Node's own answer as it is", async () => {
    const app = createApp([hello]);
    await using host = await foreign(app.listener);
    using client = await rawClient(host.port);
    client.send(...GET('/'));
    await client.until('"hello"');
    client.send(RAW_QUERY);
    assert.match(await client.closed, /"hello"HTTP\/1\.1 400 Bad Request\r\nConnection: close\r\n\r\n$/);
  });

  test("leaves it to the host's own listener, which is called once", async () => {
    const app = createApp([hello]);
    const codes: unknown[] = [];
    const server = http.createServer(app.listener);
    server.on('clientError', (error: Error & { code?: string }, socket) => {
      codes.push(error.code);
      socket.end('the host says no');
    });
    await once(server.listen(0, '127.0.0.1'), 'listening');
    using client = await rawClient((server.address() as AddressInfo).port);
    client.send(RAW_QUERY);
    assert.equal(await client.closed, 'the host says no');
    assert.deepEqual(codes, ['HPE_INVALID_URL']);
    client.socket.destroy();
    await once(server.close(), 'close');
  });
});

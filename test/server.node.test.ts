/** What is left to Node's HTTP server. */
import assert from 'node:assert/strict';
import { describe } from 'node:test';
import { body, get, post, query, strings } from '../server.ts';
import { rawClient } from './helpers.ts';
import { fence, GET, serve, test } from './server.helpers.ts';

const echo = post('/', { item: body(strings('item')) }, ({ item }) => item);

describe('what is left to Node', () => {
  test('CONNECT closes the socket, and the server serves on', async () => {
    await using server = await serve([echo]);
    using client = await rawClient(server.port);
    client.send('CONNECT example.com:80 HTTP/1.1', 'host: a', '', '');
    assert.equal(await client.closed, '');
    await fence(server.url);
  });

  test('Upgrade is ignored: the request is answered', async () => {
    await using server = await serve([get('/', () => 'answered')]);
    using client = await rawClient(server.port);
    client.send(...GET('/', 'connection: Upgrade', 'upgrade: websocket'));
    assert.match(await client.until('"answered"'), /^HTTP\/1\.1 200 /);
  });

  test('Expect: 100-continue is answered at once, any other Expect with 417', async () => {
    await using server = await serve([echo]);
    const head = (expect: string): string[] => [
      'POST / HTTP/1.1',
      'host: a',
      'content-type: application/json',
      'content-length: 14',
      `expect: ${expect}`,
      '',
      '',
    ];
    using client = await rawClient(server.port);
    client.send(...head('100-continue'));
    await client.until('HTTP/1.1 100 Continue\r\n\r\n');
    client.send('{"item":"tea"}');
    assert.match(await client.until('{"item":"tea"}'), /\r\n\r\nHTTP\/1\.1 200 OK\r\n/);
    using other = await rawClient(server.port);
    other.send(...head('a miracle'));
    assert.match(await other.until('\r\n\r\n'), /^HTTP\/1\.1 417 Expectation Failed\r\n/);
  });

  for (const [kind, status, lines] of [
    ['a request that is malformed', 400, ['HELLO', '', '']],
    ['HTTP/1.1 without a host', 400, ['GET / HTTP/1.1', '', '']],
    [
      'two content-lengths',
      400,
      ['POST / HTTP/1.1', 'host: a', 'content-length: 1', 'content-length: 2', '', 'x'],
    ],
    ['a header that is too large', 431, GET('/', `x-large: ${'x'.repeat(20_000)}`)],
  ] as [string, number, string[]][]) {
    test(`${kind} gets ${status} from Node, and nothing is left pending`, async () => {
      await using server = await serve([get('/', () => 'reached')]);
      using client = await rawClient(server.port);
      client.send(...lines);
      assert.match(await client.closed, new RegExp(`^HTTP/1\\.1 ${status} `));
      await fence(server.url);
      await server.app.idle();
      assert.equal(server.app.pending, 0);
    });
  }

  test('a request target in absolute form without a path is that of the root (RFC 9112, 3.2.2)', async () => {
    await using server = await serve([get('/', { q: query('q', '') }, ({ q }) => `root ${q}`)]);
    using client = await rawClient(server.port);
    client.send(...GET('http://a'), ...GET('http://a?q=1', 'connection: close'));
    assert.match(await client.closed, /"root "[^]*"root 1"/);
  });
});

/** Where an app listens: again after an error, on a unix socket, and with Node's own server options. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { lstat, mkdtemp, rm, writeFile } from 'node:fs/promises';
import type { ServerOptions } from 'node:http';
import net, { type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { describe } from 'node:test';
import { type App, backgroundTasks, createApp, get, request } from '../server.ts';
import { rawClient } from './helpers.ts';
import { ask, fence, GET, Journal, serve, test } from './server.helpers.ts';

const hello = get('/', () => 'hello');

/** A port that somebody else has until the end of the test. */
async function taken(): Promise<{ port: number } & AsyncDisposable> {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const close = async (): Promise<void> => {
    await once(server.close(), 'close');
  };
  return { port, [Symbol.asyncDispose]: close };
}

async function folder(): Promise<{ socket: string } & AsyncDisposable> {
  const made = await mkdtemp(path.join(tmpdir(), 'listen-'));
  return { socket: path.join(made, 'app.sock'), [Symbol.asyncDispose]: () => rm(made, { recursive: true }) };
}

async function isThere(file: string): Promise<boolean> {
  try {
    await lstat(file);
    return true;
  } catch {
    return false;
  }
}

/** Asserts that `app` serves on the port that it is given, and ends. */
async function assertServes(app: App): Promise<void> {
  const { url } = await app.listen({ port: 0 });
  assert.equal((await ask(url)).body, '"hello"');
  assert.deepEqual(await app.close(), { unfinished: [] });
}

describe('listen() after an error', () => {
  test('of a port in use may be called again, as often as it fails', async () => {
    await using other = await taken();
    const app = createApp([hello]);
    for (const _ of [1, 2]) {
      await assert.rejects(app.listen({ port: other.port }), { code: 'EADDRINUSE' });
    }
    await assertServes(app);
  });

  test('of a port that has become free may be called with the same port', async () => {
    const app = createApp([hello]);
    let port = 0;
    {
      await using other = await taken();
      port = other.port;
      await assert.rejects(app.listen({ port }), { code: 'EADDRINUSE' });
    }
    const { url } = await app.listen({ port });
    assert.equal((await ask(url)).body, '"hello"');
    await app.close();
  });

  test('of an address that is not of this machine, or a port that is none, may be called again', async () => {
    const app = createApp([hello]);
    await assert.rejects(app.listen({ port: 0, host: '192.0.2.1' }), { code: 'EADDRNOTAVAIL' });
    await assert.rejects(app.listen({ port: 65_536 }), { code: 'ERR_SOCKET_BAD_PORT' });
    await assertServes(app);
  });

  test('close() resolves at once, and listen() is refused then', async () => {
    await using other = await taken();
    const app = createApp([hello]);
    await assert.rejects(app.listen({ port: other.port }), { code: 'EADDRINUSE' });
    assert.deepEqual(await app.close(), { unfinished: [] });
    await assert.rejects(app.listen({ port: 0 }), /before close\(\)/);
  });

  test('that was none is refused: an app listens once', async () => {
    await using server = await serve([hello]);
    await assert.rejects(server.app.listen({ port: 0 }), /Expected listen\(\) to be called once/);
    assert.equal((await ask(server.url)).body, '"hello"');
  });
});

describe('listen({ path })', () => {
  test('serves on a unix socket, gives unix:PATH, and close() removes the file', async () => {
    await using made = await folder();
    const log = new Journal();
    const app = createApp([
      get('/', { tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(log.write, 'task');
        return 'hello';
      }),
    ]);
    assert.deepEqual(await app.listen({ path: made.socket }), { url: `unix:${made.socket}` });
    assert.equal((await ask('http://a/', { socketPath: made.socket })).body, '"hello"');
    await app.idle();
    assert.deepEqual(log.entries, ['task']);
    assert.deepEqual(await app.close(), { unfinished: [] });
    assert.equal(await isThere(made.socket), false);
  });

  test('fails where a file is, never removes it, and may be called again', async () => {
    await using made = await folder();
    await writeFile(made.socket, 'stale');
    const app = createApp([hello]);
    await assert.rejects(app.listen({ path: made.socket }), { code: 'EADDRINUSE' });
    assert.equal(await isThere(made.socket), true);
    await assertServes(app);
    assert.equal(await isThere(made.socket), true);
  });

  test('fails where somebody listens, who is not disturbed', async () => {
    await using made = await folder();
    const first = createApp([hello]);
    await first.listen({ path: made.socket });
    const second = createApp([hello]);
    await assert.rejects(second.listen({ path: made.socket }), { code: 'EADDRINUSE' });
    await second.close();
    assert.equal((await ask('http://a/', { socketPath: made.socket })).body, '"hello"');
    await first.close();
  });

  test('wins over a port', async () => {
    await using made = await folder();
    await using other = await taken();
    const app = createApp([hello]);
    const { url } = await app.listen({ path: made.socket, port: other.port });
    assert.equal(url, `unix:${made.socket}`);
    await app.close();
  });
});

describe('the option server', () => {
  test('hands Node its time-outs', async () => {
    const server = { keepAliveTimeout: 7_000 };
    await using served = await serve([hello], { server });
    using client = await rawClient(served.port);
    client.send(...GET('/'));
    assert.match(await client.until('"hello"'), /\r\nKeep-Alive: timeout=7\r\n/);
    assert.deepEqual(server, { keepAliveTimeout: 7_000 });
  });

  test('hands Node its limit of a head', async () => {
    await using served = await serve([hello], { server: { maxHeaderSize: 1_000 } });
    assert.equal((await ask(served.url, { headers: { 'x-long': 'x'.repeat(2_000) } })).status, 431);
    assert.equal((await ask(served.url, { headers: { 'x-long': 'x'.repeat(500) } })).status, 200);
  });

  test('hands Node its class of a request', async () => {
    const { IncomingMessage } = await import('node:http');
    class Request extends IncomingMessage {}
    const server: ServerOptions<typeof Request> = { IncomingMessage: Request };
    const isOurs = get('/ours', { request }, ({ request }) => request instanceof Request);
    await using served = await serve([isOurs], { server: server as ServerOptions });
    assert.equal((await ask(`${served.url}/ours`)).body, 'true');
  });

  test('that is undefined, or empty, is as if it were not there', async () => {
    for (const server of [undefined, {}]) {
      await using served = await serve([hello], { server });
      await fence(served.url);
      assert.equal((await ask(served.url)).body, '"hello"');
    }
  });
});

/** What `createApp` returns: `pending`, `idle()`, `listener`, `listen()`, and its options. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { describe } from 'node:test';
import { backgroundTasks, createApp, get, path, post } from '../server.ts';
import { gate, rawClient } from './helpers.ts';
import { ask, fence, foreign, Journal, serve, test } from './server.helpers.ts';

describe('the app', () => {
  test('pending counts requests from arrival to the end of their last task; idle() waits for that', async () => {
    const log = new Journal();
    const [handlers, tasks] = [gate(), gate()];
    await using server = await serve([
      post('/', { tasks: backgroundTasks }, async ({ tasks: queue }) => {
        queue.addTask(() => {
          log.write('task');
          return tasks;
        });
        log.write('handler');
        await handlers;
      }),
    ]);
    const { app, url } = server;
    assert.equal(app.pending, 0);
    await app.idle();
    const answers = ask(url, { method: 'POST' });
    await log.until('handler');
    assert.equal(app.pending, 1);
    const waits = [1, 2].map(async (n) => {
      await app.idle();
      log.write(`idle ${n}`);
    });
    handlers.open();
    await answers;
    await log.until('task');
    assert.equal((await ask(`${url}/missing`)).status, 404);
    await new Promise(setImmediate);
    await fence(url);
    assert.deepEqual(log.entries, ['handler', 'task']);
    assert.equal(app.pending >= 1, true);
    tasks.open();
    await Promise.all(waits);
    assert.deepEqual(log.entries, ['handler', 'task', 'idle 1', 'idle 2']);
    assert.equal(app.pending, 0);
  });

  test('the listener answers on a server that is not ours, and close() leaves that one alone', async () => {
    const log = new Journal();
    const app = createApp([
      get('/hello/:name', { name: path('name'), tasks: backgroundTasks }, ({ name, tasks }) => {
        tasks.addTask(log.write, name);
        return { hello: name };
      }),
    ]);
    await using server = await foreign((req, res) =>
      req.url === '/other' ? res.end('other') : app.listener(req, res),
    );
    const { listener } = app;
    assert.equal(listener, app.listener);
    assert.equal((await ask(`${server.url}/hello/kim`)).body, '{"hello":"kim"}');
    assert.equal((await ask(`${server.url}/other`)).body, 'other');
    await app.idle();
    assert.deepEqual(log.entries, ['kim']);
    assert.deepEqual(await app.close(), { unfinished: [] });
    assert.equal((await ask(`${server.url}/other`)).body, 'other');
  });

  test('listen() twice, or after close(), is refused with what was expected', async () => {
    const again = { name: 'Error', message: 'Expected listen() to be called once, and before close().' };
    const app = createApp([]);
    assert.match((await app.listen({ port: 0 })).url, /^http:\/\/127\.0\.0\.1:\d+$/);
    await assert.rejects(app.listen({ port: 0 }), again);
    await app.close();
    await assert.rejects(app.listen({ port: 0 }), again);
    const closed = createApp([]);
    await closed.close();
    await assert.rejects(closed.listen({ port: 0 }), again);
  });

  test('listen() on a port in use rejects, and the app still closes', async () => {
    await using server = await serve([]);
    const app = createApp([]);
    await assert.rejects(app.listen({ port: server.port }), { code: 'EADDRINUSE' });
    assert.deepEqual(await app.close(), { unfinished: [] });
  });

  test('an option out of range is a RangeError that names it', () => {
    for (const name of ['bodyLimit', 'drainTimeoutMs']) {
      for (const value of [-1, NaN, Infinity, 2 ** 31]) {
        assert.throws(() => createApp([], { [name]: value }), {
          name: 'RangeError',
          message: `Expected ${name} to be from 0 to 2 ** 31 - 1, got ${value}.`,
        });
      }
      for (const value of [0, 0.5, 2 ** 31 - 1, undefined]) {
        assert.doesNotThrow(() => createApp([], { [name]: value }));
      }
    }
  });

  test('close() leaves a response of its host alone, on a connection that both have used', async (t) => {
    const held = gate();
    const app = createApp([get('/ours', () => 'ours')]);
    const started = gate();
    const host = http
      .createServer((req, res) => {
        if (req.url === '/ours') {
          return app.listener(req, res);
        }
        started.open();
        held.then(() => res.end('of the host'));
      })
      .listen(0, '127.0.0.1');
    await once(host, 'listening');
    t.after(() => host.close());
    using client = await rawClient((host.address() as AddressInfo).port);
    client.send('GET /ours HTTP/1.1', 'host: a', '', '');
    await client.until('"ours"');
    client.send('GET /theirs HTTP/1.1', 'host: a', '', '');
    await started;
    await app.close();
    held.open();
    await client.until('of the host');
  });
});

/** The signals that a handler may declare: `stopSignal`, and `clientSignal`. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import net from 'node:net';
import { describe } from 'node:test';
import {
  backgroundTasks,
  clientSignal,
  createApp,
  depends,
  get,
  post,
  request,
  stopSignal,
} from '../server.ts';
import { gate, rawClient } from './helpers.ts';
import { ask, fence, foreign, GET, Journal, serve, source, TOO_MUCH, test } from './server.helpers.ts';

/** Resolves when `signal` is aborted, also where it is already. */
async function aborted(signal: AbortSignal): Promise<undefined> {
  if (!signal.aborted) {
    await once(signal, 'abort');
  }
  return undefined;
}

describe('stopSignal', () => {
  test('is aborted when close() begins, and ends an open stream of events', async () => {
    await using server = await serve([
      get('/', { stopSignal }, ({ stopSignal }) => {
        const parts = ['event', aborted(stopSignal)];
        return new Response(source(() => parts.shift()));
      }),
    ]);
    using client = await rawClient(server.port);
    client.send(...GET('/'));
    await client.until('event');
    const { unfinished } = await server.app.close();
    assert.deepEqual(unfinished, []);
    assert.match(await client.closed, /0\r\n\r\n$/);
  });

  test('is aborted once, for all requests, for dependencies and for running tasks', async () => {
    const journal = new Journal();
    const reached = gate();
    const noticed = depends({ stopSignal }, ({ stopSignal }) => {
      stopSignal.addEventListener('abort', () => journal.write('the dependency'));
    });
    await using server = await serve([
      get('/', { noticed, stopSignal, tasks: backgroundTasks }, ({ stopSignal, tasks }) => {
        tasks.addTask(async () => {
          reached.open();
          await aborted(stopSignal);
          journal.write('the task');
        });
      }),
      get('/other', { stopSignal }, ({ stopSignal }) => {
        stopSignal.addEventListener('abort', () => journal.write('the other request'));
        return stopSignal.aborted;
      }),
    ]);
    await ask(server.url);
    await reached;
    assert.equal((await ask(`${server.url}/other`)).body, 'false');
    assert.deepEqual(journal.entries, []);
    await Promise.all([server.app.close(), server.app.close()]);
    assert.deepEqual(journal.entries.toSorted(), ['the dependency', 'the other request', 'the task']);
  });

  test('is aborted from the beginning in a request that comes while the app closes', async () => {
    const held = gate();
    const reached = gate();
    const arrived = gate();
    await using server = await serve([
      get('/held', () => {
        reached.open();
        return held;
      }),
      get('/', { stopSignal }, ({ stopSignal }) => {
        arrived.open();
        return stopSignal.aborted;
      }),
    ]);
    using client = await rawClient(server.port);
    client.send(...GET('/held'));
    await reached;
    const closed = server.app.close();
    client.send(...GET('/'));
    await arrived;
    held.open();
    assert.match(await client.closed, /true$/);
    await closed;
  });

  test('is aborted where the app is mounted', async () => {
    const app = createApp([
      get('/', { stopSignal }, async ({ stopSignal }) => {
        reached.open();
        await aborted(stopSignal);
        return 'stopped';
      }),
    ]);
    const reached = gate();
    await using host = await foreign(app.listener);
    const answer = ask(host.url);
    await reached;
    await app.close();
    assert.equal((await answer).body, '"stopped"');
  });

  test('is made only where it is declared', async (t) => {
    const abort = t.mock.method(AbortController.prototype, 'abort');
    const { listener, close } = createApp([get('/', () => 'none')]);
    await using host = await foreign(listener);
    await ask(host.url);
    await close();
    assert.equal(abort.mock.callCount(), 0);
  });
});

describe('clientSignal', () => {
  test('is aborted when the client leaves while the handler runs, and the tasks run all the same', async () => {
    const journal = new Journal();
    const reached = gate();
    await using server = await serve([
      get('/', { clientSignal, tasks: backgroundTasks }, async ({ clientSignal, tasks }) => {
        tasks.addTask(journal.write, 'the task ran');
        reached.open();
        await aborted(clientSignal);
        journal.write('aborted');
      }),
    ]);
    using client = await rawClient(server.port);
    client.send(...GET('/'));
    await reached;
    client.socket.destroy();
    await journal.until('the task ran');
    assert.deepEqual(journal.entries, ['aborted', 'the task ran']);
  });

  test('is aborted when the client leaves while a response is on its way', async () => {
    const journal = new Journal();
    await using server = await serve([
      get('/', { clientSignal }, ({ clientSignal }) => {
        clientSignal.addEventListener('abort', () => journal.write('aborted'));
        return TOO_MUCH;
      }),
    ]);
    using client = await rawClient(server.port);
    client.send(...GET('/'));
    await client.until('HTTP/1.1 200');
    client.socket.destroy();
    await journal.until('aborted');
  });

  test('is aborted for each request that the connection holds', async () => {
    const journal = new Journal();
    const reached = gate();
    await using server = await serve([
      get('/first', { clientSignal }, async ({ clientSignal }) => {
        await aborted(clientSignal);
        journal.write('first');
      }),
      get('/second', { clientSignal }, async ({ clientSignal }) => {
        reached.open();
        await aborted(clientSignal);
        journal.write('second');
      }),
    ]);
    using client = await rawClient(server.port);
    client.send(...GET('/first'), ...GET('/second'));
    await reached;
    client.socket.destroy();
    await journal.until('first');
    await journal.until('second');
  });

  test('is aborted when the connection is reset behind a large body, once that is read on', async () => {
    const journal = new Journal();
    const reached = gate();
    const left = gate();
    await using server = await serve([
      post('/', { clientSignal, request }, async ({ clientSignal, request }) => {
        reached.open();
        await left;
        request.resume();
        await aborted(clientSignal);
        journal.write('aborted');
      }),
    ]);
    using client = await rawClient(server.port);
    client.send('POST / HTTP/1.1', 'host: a', `content-length: ${TOO_MUCH.length}`, '', '');
    await reached;
    client.socket.write(TOO_MUCH.slice(0, TOO_MUCH.length / 2));
    client.socket.resetAndDestroy();
    await client.closed;
    left.open();
    await journal.until('aborted');
  });

  test('is aborted when the connection is reset behind a large body that was read', async () => {
    const journal = new Journal();
    const read = gate();
    await using server = await serve([
      post('/', { clientSignal, request }, async ({ clientSignal, request }) => {
        await once(request.resume(), 'end');
        read.open();
        await aborted(clientSignal);
        journal.write('aborted');
      }),
    ]);
    using client = await rawClient(server.port);
    client.send('POST / HTTP/1.1', 'host: a', `content-length: ${TOO_MUCH.length}`, '', TOO_MUCH);
    await read;
    client.socket.resetAndDestroy();
    await journal.until('aborted');
  });

  test('is aborted when the connection is reset in the middle of a large body that is read', async () => {
    const journal = new Journal();
    await using server = await serve([
      post('/', { clientSignal, request }, async ({ clientSignal, request }) => {
        clientSignal.addEventListener('abort', () => journal.write('aborted'));
        for await (const _ of request) {
          journal.write('a chunk');
        }
      }),
    ]);
    using client = await rawClient(server.port);
    client.send('POST / HTTP/1.1', 'host: a', `content-length: ${TOO_MUCH.length}`, '', 'x');
    await journal.until('a chunk');
    client.socket.write(TOO_MUCH.slice(0, TOO_MUCH.length / 2));
    client.socket.resetAndDestroy();
    await journal.until('aborted');
  });

  test('is never aborted where the response came first', async () => {
    const journal = new Journal();
    await using server = await serve([
      get('/', { clientSignal }, ({ clientSignal }) => {
        clientSignal.addEventListener('abort', () => journal.write('aborted'));
        return 'text';
      }),
    ]);
    await ask(server.url);
    using client = await rawClient(server.port);
    client.send(...GET('/'));
    await client.until('"text"');
    client.socket.destroy();
    const half = net.connect({ port: server.port, host: '127.0.0.1' });
    half.write(GET('/', 'connection: close').join('\r\n'));
    await once(half.resume(), 'close');
    await fence(server.url);
    assert.deepEqual(journal.entries, []);
  });

  test('is one signal for all that declare it in a request', async () => {
    const other = depends({ clientSignal }, ({ clientSignal }) => clientSignal);
    await using server = await serve([
      get('/', { clientSignal, other }, ({ clientSignal, other }) => clientSignal === other),
    ]);
    assert.equal((await ask(server.url)).body, 'true');
  });
});

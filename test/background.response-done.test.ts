/** `responseDone` on a bare server: when a response is out. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { describe, type TestContext, test } from 'node:test';
import { queryObjects } from 'node:v8';
import { Worker } from 'node:worker_threads';
import { responseDone } from '../background.ts';
import { type Bare, bareServer, boom, GET, otherQueues } from './background.helpers.ts';
import { gate, type RawClient, rawClient, within } from './helpers.ts';

interface Exchange extends Bare {
  readonly client: RawClient;
  /** The responses that the server has opened for the client; the test writes them. */
  readonly responses: ServerResponse[];
  readonly res: ServerResponse;
}

const CLOSE = ['GET / HTTP/1.1', 'host: a', 'connection: close', '', ''].join('\r\n');

/** A client that has sent `requests` on one connection, and the responses to them, as yet unwritten. */
async function exchange(t: TestContext, ...requests: string[]): Promise<Exchange> {
  const responses: ServerResponse[] = [];
  const arrived = gate();
  const server = await bareServer(t, (_, res) => {
    if (responses.push(res) === requests.length) {
      arrived.open();
    }
  });
  const client = await rawClient(server.port);
  t.after(() => client.socket.destroy());
  client.send(requests.join(''));
  await arrived;
  return { ...server, client, responses, res: responses[0] as ServerResponse };
}

function watch(promise: Promise<unknown>): { settled: boolean } {
  const state = { settled: false };
  promise.then(() => {
    state.settled = true;
  });
  return state;
}

/** Not `once(…, 'close')`, which a reset makes reject. */
const closing = (stream: Socket | IncomingMessage): Promise<void> =>
  new Promise((resolve) => {
    stream.once('close', resolve);
  });

const MiB = 2 ** 20;

describe('responseDone', () => {
  test(
    'responseDone waits for the end of the response, and leaves the connection open',
    within,
    async (t) => {
      const { client, res, fence } = await exchange(t, GET);
      const done = [responseDone(res), responseDone(res)];
      const states = done.map(watch);
      res.write('the first part');
      await client.until('the first part');
      await fence();
      assert.deepEqual(states, [{ settled: false }, { settled: false }]);
      res.end('the last part');
      await Promise.all(done);
      await client.until('the last part\r\n0\r\n\r\n');
      assert.equal(res.req.socket.destroyed, false);
    },
  );

  test('responseDone waits for a slow reader, until the last byte is with the system', within, async (t) => {
    const { client, res, fence } = await exchange(t, CLOSE);
    client.socket.pause();
    const done = responseDone(res);
    const state = watch(done);
    res.end('a'.repeat(16 * MiB)); // more than the buffers of two sockets hold
    await fence();
    assert.equal(state.settled, false);
    client.socket.resume();
    await done;
    const received = await client.closed;
    assert.equal(received.length - received.indexOf('\r\n\r\n') - 4, 16 * MiB);
  });

  test('responseDone resolves late, after the response of a kept connection', async (t) => {
    const { client, res, fence } = await exchange(t, GET);
    res.end('whole');
    await client.until('whole');
    await fence();
    assert.equal(res.writableFinished, true);
    const state = watch(responseDone(res));
    await fence();
    assert.equal(state.settled, true);
    assert.equal(res.req.socket.destroyed, false);
  });

  test('responseDone resolves late, after a whole response whose client has left', async (t) => {
    const { client, res, fence } = await exchange(t, GET);
    res.end('whole');
    await client.until('whole');
    const closed = closing(res.req.socket);
    client.socket.destroy();
    await closed;
    const state = watch(responseDone(res));
    await fence();
    assert.equal(state.settled, true);
  });

  for (const leave of ['resetAndDestroy', 'destroy', 'end'] as const) {
    // a half-close counts as gone
    test(
      `a client that leaves (${leave}) before the handler ends: responseDone resolves, early or late`,
      within,
      async (t) => {
        const { client, res, fence } = await exchange(t, GET);
        const early = responseDone(res);
        const events: string[] = [];
        res.once('finish', () => events.push('finish'));
        const closed = closing(res.req.socket);
        client.socket[leave]();
        await closed;
        res.end('nobody reads it', () => events.push('callback'));
        await early;
        const late = watch(responseDone(res));
        await fence();
        assert.equal(late.settled, true);
        assert.deepEqual(events, [], 'Node emits no event any more');
      },
    );
  }

  test('a reset in the middle of a large body: responseDone resolves, early or late', within, async (t) => {
    const { client, res, fence } = await exchange(t, GET);
    const early = responseDone(res);
    res.write('the first part');
    await client.until('the first part');
    client.socket.pause();
    res.end('a'.repeat(16 * MiB));
    client.socket.resetAndDestroy();
    await early;
    const late = watch(responseDone(res));
    await fence();
    assert.equal(late.settled, true);
  });

  test('responseDone leaves no listener on a response that is out', within, async (t) => {
    const { client, res } = await exchange(t, CLOSE);
    res.end('whole');
    await client.closed;
    await responseDone(res);
    const listeners = (): number[] => res.eventNames().map((event) => res.listenerCount(event));
    const before = listeners();
    await Promise.all([responseDone(res), responseDone(res)]);
    assert.deepEqual(listeners(), before);
  });

  test('neither `close` of a request nor `res.destroyed` means that the client left', within, async (t) => {
    const post = ['POST / HTTP/1.1', 'host: a', 'content-length: 4', '', 'body'].join('\r\n');
    const { client, res, fence } = await exchange(t, post);
    const before = watch(responseDone(res));
    const closed = closing(res.req);
    res.req.resume();
    await closed;
    const after = responseDone(res);
    const state = watch(after);
    await fence();
    assert.deepEqual([before.settled, state.settled], [false, false]);
    res.end('whole');
    await after;
    await client.until('whole');
    await fence();
    assert.deepEqual([res.destroyed, res.req.socket.destroyed], [true, false], 'what Node says of them');
  });
});

describe('responses on one connection', () => {
  test('pipelined, and its client gone: responseDone resolves all the same', within, async (t) => {
    const {
      client,
      responses: [first, second],
      fence,
    } = await exchange(t, GET, GET);
    assert.ok(first && second);
    const early = [first, second].map(responseDone);
    const states = early.map(watch);
    second.end('behind the first');
    await fence();
    assert.deepEqual(states, [{ settled: false }, { settled: false }]);
    client.socket.destroy();
    await Promise.all(early);
    const late = [first, second].map(responseDone).map(watch);
    await fence();
    assert.deepEqual(late, [{ settled: true }, { settled: true }]);
  });

  test('a pipelined response is done once it is out behind the one before it', within, async (t) => {
    const {
      client,
      responses: [first, second],
      fence,
    } = await exchange(t, GET, GET);
    assert.ok(first && second);
    const states = [first, second].map(responseDone).map(watch);
    second.end('two');
    await fence();
    assert.deepEqual(states, [{ settled: false }, { settled: false }]);
    first.end('one');
    assert.match(await client.until('two'), /one[\s\S]*two/);
    await fence();
    assert.deepEqual(states, [{ settled: true }, { settled: true }]);
  });

  for (const [when, write] of Object.entries<(res: ServerResponse) => void>({
    'before its end': (res) => res.write('two'),
    'after its end': (res) => res.end('two'),
  })) {
    test(
      `a response that is destroyed ${when}, behind another, ends the connection in its turn, and is done then`,
      within,
      async (t) => {
        const {
          client,
          responses: [first, second],
          fence,
        } = await exchange(t, GET, GET);
        assert.ok(first && second);
        const early = responseDone(second);
        write(second);
        second.destroy();
        await fence();
        const done = [early, responseDone(second)];
        const states = done.map(watch);
        await fence();
        assert.deepEqual(states, [{ settled: false }, { settled: false }]);
        first.end('one');
        await Promise.all(done);
        assert.match(await client.closed, /one$/);
      },
    );
  }

  test(
    'a response that was destroyed behind another is done where its turn has come before',
    within,
    async (t) => {
      const {
        client,
        responses: [first, second],
        fence,
      } = await exchange(t, GET, GET);
      assert.ok(first && second);
      second.destroy();
      first.end('one');
      await responseDone(first);
      await fence();
      await responseDone(second);
      assert.match(await client.closed, /one$/);
    },
  );

  test(
    'the error that a response behind another is destroyed with is that of its socket',
    within,
    async (t) => {
      const {
        responses: [first, second],
      } = await exchange(t, GET, GET);
      assert.ok(first && second);
      const error = boom();
      const told: Error[] = [];
      second.req.socket.on('error', (each: Error) => {
        told.push(each);
      });
      const done = responseDone(second);
      second.destroy(error);
      first.end('one');
      await done;
      assert.deepEqual(told, [error]);
    },
  );
});

/** In a thread of its own, as that of the server is blocked: sets `shared[0]` once it has all that is due. */
const CLIENT = `
  const { connect } = require('node:net');
  const { port, head, length, shared, endOfFile } = require('node:worker_threads').workerData;
  let received = 0, whole = false;
  const release = () => { Atomics.store(shared, 0, 1); Atomics.notify(shared, 0); socket.destroy(); };
  const socket = connect(port, '127.0.0.1', () => socket.write(head));
  socket.on('data', (chunk) => {
    whole = (received += chunk.length) > length && String.fromCharCode(chunk.at(-1)) === 'z';
    if (whole && !endOfFile) release();
  });
  socket.on('end', () => { if (whole) release(); });`;

describe('a blocked thread', () => {
  for (const [kind, head, endOfFile] of [
    ['the last of 16 MiB', GET, false],
    ['the last of 16 MiB and the end of file of `Connection: close`', CLOSE, true],
    ['the last of 16 MiB and the end of file of HTTP/1.0', 'GET / HTTP/1.0\r\n\r\n', true],
  ] as const) {
    for (const [when, late] of [
      ['right after responseDone', false],
      ['after a late responseDone', true],
    ] as const) {
      test(`what blocks the thread ${when} does not delay ${kind}`, async (t) => {
        const body = Buffer.from(`${'a'.repeat(16 * MiB)}z`);
        const shared = new Int32Array(new SharedArrayBuffer(4));
        const blocked = gate<string>();
        const { port } = await bareServer(t, async (_, res) => {
          res.writeHead(200, { 'content-length': body.length }).end(body);
          if (late) {
            await once(res, 'finish');
          }
          await responseDone(res);
          blocked.open(Atomics.wait(shared, 0, 0, within.timeout));
        });
        const workerData = { port, head, length: body.length, shared, endOfFile };
        const worker = new Worker(CLIENT, { eval: true, execArgv: [], workerData });
        t.after(() => worker.terminate());
        assert.notEqual(await blocked, 'timed-out');
      });
    }
  }
});

describe('what a connection keeps', () => {
  test(
    'twenty pipelined responses leave no listener on their socket, and make no warning',
    within,
    async (t) => {
      const warnings: string[] = [];
      const onWarning = ({ message }: Error): void => {
        warnings.push(message);
      };
      process.on('warning', onWarning);
      t.after(() => process.off('warning', onWarning));
      const {
        client,
        responses,
        res: {
          req: { socket },
        },
        fence,
      } = await exchange(t, ...Array<string>(20).fill(GET));
      const before = socket.listenerCount('close');
      const done = responses.map(responseDone);
      await fence();
      for (const res of responses) {
        res.end('whole');
      }
      await Promise.all(done);
      await client.until('whole', 20);
      assert.ok(socket.listenerCount('close') <= before + 1, 'one for all of them, at most');
      assert.deepEqual(warnings, []);
    },
  );

  test('a kept connection gathers neither listeners nor promises', within, async (t) => {
    const listeners = new Set<number>();
    const { port } = await bareServer(t, async (req, res) => {
      const done = responseDone(res);
      listeners.add(req.socket.eventNames().reduce((sum, name) => sum + req.socket.listenerCount(name), 0));
      res.end('whole');
      await done;
    });
    using client = await rawClient(port);
    let served = 0;
    const promisesAfter = async (requests: number): Promise<number> => {
      for (let left = requests; left > 0; left -= 1) {
        client.send(GET);
        served += 1;
        await client.until('whole', served);
      }
      return queryObjects(Promise, { format: 'count' }); // collects the garbage first
    };
    const before = await promisesAfter(10);
    const gathered = (await promisesAfter(300)) - before;
    assert.ok(gathered < 100, `${gathered} promises of 300 requests`);
    assert.equal(listeners.size, 1, `listeners of the socket: ${[...listeners]}`);
  });

  test('a kept connection holds no response that is out, not even its first one', within, async (t) => {
    const responses: WeakRef<ServerResponse>[] = [];
    const { port } = await bareServer(t, async (_, res) => {
      responses.push(new WeakRef(res));
      const done = responseDone(res);
      res.end('whole');
      await done;
    });
    using client = await rawClient(port);
    for (let served = 1; served <= 3; served += 1) {
      client.send(GET);
      await client.until('whole', served);
    }
    await otherQueues();
    queryObjects(Promise, { format: 'count' }); // collects the garbage first
    assert.deepEqual(
      responses.slice(0, 2).map((each) => each.deref()),
      [undefined, undefined],
    );
  });
});

describe('responseDone, asked more than once', () => {
  test('adds one listener, and gives one promise', async (t) => {
    const { res } = await exchange(t, GET);
    const first = responseDone(res);
    const listeners = res.listenerCount('finish');
    assert.equal(responseDone(res), first);
    assert.equal(res.listenerCount('finish'), listeners);
    res.end();
    await first;
  });

  test('asked for the first time when the response is out, it adds none', async (t) => {
    const { res } = await exchange(t, GET);
    const finished = once(res, 'finish');
    res.end();
    await finished;
    const before = res.eventNames().map((name) => [name, res.listenerCount(name)]);
    await responseDone(res);
    assert.deepEqual(
      res.eventNames().map((name) => [name, res.listenerCount(name)]),
      before,
    );
  });
});

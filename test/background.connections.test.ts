/** Responses whose connection is no socket: a plain Duplex, a stream of HTTP/2, and responses that are injected. */
import assert from 'node:assert/strict';
import { EventEmitter, once } from 'node:events';
import http, { ServerResponse } from 'node:http';
import http2, { type Http2ServerRequest, type Http2ServerResponse } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { type Duplex, duplexPair, Writable } from 'node:stream';
import { describe, type TestContext } from 'node:test';
import { BackgroundTasks, responseDone } from '../background.ts';
import { backgroundTasks, createApp, get, HTTPError, request } from '../server.ts';
import { otherQueues } from './background.helpers.ts';
import { gate, stderr } from './helpers.ts';
import { ask, firstAndThen, GET, gone, Journal, serve, test } from './server.helpers.ts';

interface Plugged {
  readonly client: Duplex;
  readonly connection: Duplex;
  /** Everything received, once `text` is in it. */
  until(text: string): Promise<string>;
}

/** A client on the other end of a connection that is a plain Duplex. */
function plug(t: TestContext, server: http.Server): Plugged {
  const [client, connection] = duplexPair();
  t.after(() => {
    client.destroy();
    connection.destroy();
  });
  let received = '';
  client.setEncoding('utf8').on('data', (chunk: string) => {
    received += chunk;
  });
  server.emit('connection', connection);
  const until = async (text: string): Promise<string> => {
    while (!received.includes(text)) {
      await once(client, 'data');
    }
    return received;
  };
  return { client, connection, until };
}

const lines = (...targets: string[]): string => targets.map((target) => GET(target).join('\r\n')).join('');

const answers: Record<string, [() => unknown, string]> = {
  'a JSON value': [() => ({ ok: true }), '{"ok":true}'],
  'an error': [
    () => {
      throw new HTTPError(418, 'a pot');
    },
    '{"detail":"a pot"}',
  ],
  'a Response': [() => Response.json({ ok: true }), '{"ok":true}'],
  'a stream': [() => new Response(firstAndThen(() => 'second')), 'second\r\n0\r\n\r\n'],
};

describe('a connection that is a plain Duplex', () => {
  for (const [kind, [answer, last]] of Object.entries(answers)) {
    test(`${kind} is sent, its tasks run, and the connection is kept`, async (t) => {
      const log = new Journal();
      const route = get('/', { tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(log.write, 'task');
        return answer();
      });
      const app = createApp([route, get('/next', () => 'next')], { onThrow: 'run' });
      const { client, until } = plug(t, http.createServer(app.listener));
      client.write(lines('/'));
      await until(last);
      await log.until('task');
      client.write(lines('/next'));
      await until('"next"');
      await app.idle();
      assert.deepEqual(await app.close(), { unfinished: [] });
    });
  }

  test('the tasks of two pipelined requests run where the connection breaks while the first is at work', async (t) => {
    const log = new Journal();
    const held = gate();
    const app = createApp([
      get('/first', { tasks: backgroundTasks }, async ({ tasks }) => {
        tasks.addTask(log.write, 'first task');
        await held;
      }),
      get('/second', { tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(log.write, 'second task');
        log.write('second handler');
      }),
    ]);
    const { client, connection } = plug(t, http.createServer(app.listener));
    client.write(lines('/first', '/second'));
    await log.until('second handler');
    await otherQueues();
    assert.deepEqual(log.entries, ['second handler']);
    connection.destroy();
    await log.until('second task');
    held.open();
    await log.until('first task');
    await app.idle();
  });

  for (const state of ['waits for a request', 'waits for a response'] as const) {
    test(`close() resolves and ends the connection that ${state}`, async (t) => {
      const log = new Journal();
      const held = gate();
      const hosts: http.Server[] = [];
      await using server = await serve([
        get('/server', { request }, ({ request }) => {
          const { server: own } = request.socket as typeof request.socket & { server: http.Server };
          hosts.push(own);
        }),
        get('/', { tasks: backgroundTasks }, async ({ tasks }) => {
          tasks.addTask(log.write, 'task');
          log.write('handler');
          await held;
          return 'whole';
        }),
      ]);
      await ask(`${server.url}/server`);
      const { client, connection, until } = plug(t, hosts[0] as http.Server);
      const ended = once(connection, 'close');
      const closed = (): Promise<{ unfinished: string[] }> => server.app.close();
      if (state === 'waits for a response') {
        client.write(lines('/'));
        await log.until('handler');
        const closing = closed();
        held.open();
        await until('"whole"');
        await log.until('task');
        assert.deepEqual(await closing, { unfinished: [] });
      } else {
        assert.deepEqual(await closed(), { unfinished: [] });
      }
      await ended;
    });
  }

  for (const when of ['early', 'late'] as const) {
    test(`responseDone, asked ${when}, resolves where the response is whole`, async (t) => {
      const log = new Journal();
      const host = http.createServer(async (_req, res) => {
        const early = when === 'early' ? responseDone(res) : once(res, 'finish');
        res.end('whole');
        await early;
        await responseDone(res);
        log.write('done');
      });
      const { client, until } = plug(t, host);
      client.write(lines('/'));
      await until('whole');
      await log.until('done');
    });

    test(`responseDone, asked ${when}, resolves where the connection breaks before the answer`, async (t) => {
      const log = new Journal();
      const host = http.createServer(async (req, res) => {
        const left = gone(req.socket);
        const early = when === 'early' ? responseDone(res) : left;
        log.write('arrived');
        await left;
        res.end('nobody reads it');
        await early;
        await responseDone(res);
        log.write('done');
      });
      const { client, connection } = plug(t, host);
      client.write(lines('/'));
      await log.until('arrived');
      connection.destroy();
      await log.until('done');
    });
  }
});

interface Session {
  readonly client: http2.ClientHttp2Session;
}

/** A server of HTTP/2 with `handler`, and a client's session with it. */
async function session(
  t: TestContext,
  handler: (req: Http2ServerRequest, res: Http2ServerResponse) => unknown,
): Promise<Session> {
  const server = http2.createServer(handler).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const client = http2.connect(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  client.on('error', () => {});
  t.after(() => {
    client.destroy();
    server.close();
  });
  return { client };
}

const askings: Record<string, (res: Http2ServerResponse) => () => Promise<void>> = {
  'asked early': (res) => {
    const done = responseDone(res);
    return () => done;
  },
  'asked late': (res) => () => responseDone(res),
  'asked late, in another turn': (res) => async () => {
    await otherQueues();
    await responseDone(res);
  },
};

describe('a response of HTTP/2', () => {
  for (const [when, asked] of Object.entries(askings)) {
    test(`responseDone, ${when}, resolves for a response that is whole`, async (t) => {
      const log = new Journal();
      const { client } = await session(t, async (_req, res) => {
        const whenDone = asked(res);
        res.end('whole');
        await whenDone();
        log.write('done');
      });
      let received = '';
      for await (const chunk of client.request({ ':path': '/' }).setEncoding('utf8')) {
        received += chunk;
      }
      assert.equal(received, 'whole');
      await log.until('done');
    });

    for (const [how, destroy] of Object.entries<(res: Http2ServerResponse) => void>({
      'is destroyed': (res) => res.destroy(),
      'is destroyed behind a part': (res) => {
        res.write('a part');
        res.destroy();
      },
      'has its stream closed': (res) => res.stream.close(http2.constants.NGHTTP2_CANCEL),
    })) {
      test(`responseDone, ${when}, resolves for a response that ${how}`, async (t) => {
        const log = new Journal();
        const { client } = await session(t, async (_req, res) => {
          const whenDone = asked(res);
          destroy(res);
          await whenDone();
          log.write('done');
        });
        client.request({ ':path': '/' }).on('error', () => {});
        await log.until('done');
      });
    }

    for (const [how, leave] of Object.entries<(stream: http2.ClientHttp2Stream) => void>({
      'resets the stream': (stream) => stream.close(http2.constants.NGHTTP2_CANCEL),
      'leaves the session': (stream) => stream.session?.destroy(),
    })) {
      test(`responseDone, ${when}, resolves where the client ${how} before the answer`, async (t) => {
        const log = new Journal();
        const { client } = await session(t, async (_req, res) => {
          const whenDone = asked(res);
          const left = once(res.stream, 'close');
          res.write('a part');
          log.write('arrived');
          await left;
          res.end('nobody reads it');
          await whenDone();
          log.write('done');
        });
        const stream = client.request({ ':path': '/' }).on('error', () => {});
        await log.until('arrived');
        leave(stream);
        await log.until('done');
      });
    }
  }

  test('responseDone waits for the end of one response, while another of the session is whole', async (t) => {
    const log = new Journal();
    const held = gate();
    const { client } = await session(t, async (req, res) => {
      const done = responseDone(res);
      if (req.url === '/held') {
        res.write('a part');
        log.write('held');
        await held;
      }
      res.end();
      await done;
      log.write(`done ${req.url}`);
    });
    client.request({ ':path': '/held' }).resume();
    await log.until('held');
    client.request({ ':path': '/other' }).resume();
    await log.until('done /other');
    await otherQueues();
    assert.deepEqual(log.entries, ['held', 'done /other']);
    held.open();
    await log.until('done /held');
  });
});

/** As injection libraries have it: the response writes into nothing, and the request's socket is an EventEmitter. */
class InjectedResponse extends ServerResponse {
  constructor() {
    const socket = new EventEmitter();
    super(Object.assign(new http.IncomingMessage(socket as never), { method: 'GET', url: '/' }));
    const nowhere = new Writable({ write: (_chunk, _encoding, callback) => callback() });
    this.assignSocket(nowhere as never);
  }
}

/** As mocking libraries have it: an EventEmitter with as much of a response as is asked for. */
class MockedResponse extends EventEmitter {
  writableEnded = false;
  writableFinished = false;

  end(): void {
    this.writableEnded = true;
    this.writableFinished = true;
    this.emit('end');
    this.emit('finish');
  }

  destroy(): void {
    this.emit('close');
  }
}

describe('a response that is injected or mocked', () => {
  const kinds: Record<string, () => ServerResponse> = {
    'an injected response': () => new InjectedResponse(),
    'a mocked response': () => new MockedResponse() as unknown as ServerResponse,
    'a mocked response whose request has no socket': () =>
      Object.assign(new MockedResponse(), { req: { method: 'GET', url: '/' } }) as unknown as ServerResponse,
  };

  for (const [kind, make] of Object.entries(kinds)) {
    test(`responseDone of ${kind} waits for its finish`, async () => {
      const res = make();
      const log = new Journal();
      const done = responseDone(res).then(() => log.write('done'));
      await otherQueues();
      assert.deepEqual(log.entries, []);
      res.end();
      await done;
    });

    test(`responseDone of ${kind}, asked late, resolves`, async () => {
      const res = make();
      res.end();
      await otherQueues();
      await responseDone(res);
    });

    test(`responseDone of ${kind} resolves where it is destroyed before its end`, async () => {
      const res = make();
      const done = responseDone(res);
      res.destroy();
      await done;
    });
  }

  test('responseDone of an injected response that was destroyed before resolves', async () => {
    const res = new InjectedResponse();
    res.destroy();
    await otherQueues();
    await responseDone(res);
  });

  test('a queue that knows an injected request runs behind its response', async () => {
    const res = new InjectedResponse();
    const log = new Journal();
    const tasks = new BackgroundTasks({ request: res.req });
    tasks.addTask(log.write, 'task');
    res.end();
    await responseDone(res);
    await tasks.run();
    assert.deepEqual(log.entries, ['task']);
  });

  for (const [kind, [answer]] of Object.entries(answers)) {
    test(`the app answers an injected request with ${kind}, and its tasks run`, async (t) => {
      const written = stderr(t);
      const log = new Journal();
      const route = get('/', { tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(log.write, 'task');
        return answer();
      });
      const app = createApp([route], { onThrow: 'run' });
      const res = new InjectedResponse();
      app.listener(res.req, res);
      await log.until('task');
      await app.idle();
      assert.deepEqual(await app.close(), { unfinished: [] });
      assert.deepEqual(written, []);
    });
  }
});

/** A request that ends before its body does: Node takes its socket away, and the response is as good as any. */
import assert from 'node:assert/strict';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { Readable, Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { describe } from 'node:test';
import { BackgroundTasks, responseDone } from '../background.ts';
import { backgroundTasks, depends, get, HTTPError, post, request } from '../server.ts';
import { gate, rawClient, stderr } from './helpers.ts';
import { fence, firstAndThen, foreign, GET, gone, Journal, serve, test } from './server.helpers.ts';

/** More is announced than is sent: the handler is done with it before its end. */
const upload = (target: string): string[] => [
  `POST ${target} HTTP/1.1`,
  'host: a',
  'content-length: 100000',
  '',
  'a part',
];

const refusing = (): Writable =>
  new Writable({ write: (_chunk, _encoding, callback) => callback(new Error('too much')) });

/** How an upload handler ends a request early. */
const endings: Record<string, (req: IncomingMessage) => Promise<void>> = {
  'whose pipeline fails': (req) => pipeline(req, refusing()).catch(() => {}),
  'whose loop is left': async (req) => {
    for await (const _ of req) {
      break;
    }
  },
  'whose loop throws': async (req) => {
    const loop = async (): Promise<void> => {
      for await (const chunk of req) {
        throw new Error(`too much: ${chunk}`);
      }
    };
    await loop().catch(() => {});
  },
  'whose web stream is cancelled': async (req) => {
    const reader = Readable.toWeb(req).getReader();
    await reader.read();
    await reader.cancel();
  },
};

/** What the handler then answers, and the last that the client sees of it. */
const answers: Record<string, [() => unknown, string]> = {
  'a JSON value': [() => ({ ok: true }), '{"ok":true}'],
  'a 413': [
    () => {
      throw new HTTPError(413, 'too much');
    },
    '{"detail":"too much"}',
  ],
  'a Response': [() => Response.json({ ok: true }, { status: 413 }), '{"ok":true}'],
  'a stream': [() => new Response(firstAndThen(() => 'second')), 'second\r\n0\r\n\r\n'],
};

describe('a request that ends early', () => {
  for (const [how, endEarly] of Object.entries(endings)) {
    for (const [kind, [answer, last]] of Object.entries(answers)) {
      test(`a request ${how} is answered with ${kind}, and its tasks run`, async () => {
        const log = new Journal();
        const route = post('/', { request, tasks: backgroundTasks }, async ({ request, tasks }) => {
          tasks.addTask(log.write, 'task');
          await endEarly(request);
          assert.equal(request.socket, null, 'what Node does');
          return answer();
        });
        await using server = await serve([route], { onThrow: 'run' });
        using client = await rawClient(server.port);
        client.send(...upload('/'));
        await client.until(last);
        await log.until('task');
        await server.app.idle();
        assert.deepEqual(log.entries, ['task']);
      });
    }

    test(`a request ${how}, and whose client then leaves, has its tasks run`, async () => {
      const log = new Journal();
      const route = post('/', { request, tasks: backgroundTasks }, async ({ request, tasks }) => {
        const { socket } = request;
        tasks.addTask(log.write, 'task');
        await endEarly(request);
        log.write('ended early');
        await gone(socket);
      });
      await using server = await serve([route]);
      using client = await rawClient(server.port);
      client.send(...upload('/'));
      await log.until('ended early');
      client.socket.destroy();
      await log.until('task');
      await server.app.idle();
    });

    for (const [kind, [answer, last]] of Object.entries(answers)) {
      test(`a request ${how}, behind another, is answered with ${kind} in its turn, and its tasks run then`, async () => {
        const log = new Journal();
        const held = gate();
        await using server = await serve(
          [
            get('/first', () => held),
            post('/second', { request, tasks: backgroundTasks }, async ({ request, tasks }) => {
              tasks.addTask(log.write, 'task');
              await endEarly(request);
              log.write('ended early');
              return answer();
            }),
          ],
          { onThrow: 'run' },
        );
        using client = await rawClient(server.port);
        client.send(...GET('/first'), ...upload('/second'));
        await log.until('ended early');
        await fence(server.url);
        assert.deepEqual(log.entries, ['ended early']);
        held.open();
        await client.until(last);
        await log.until('task');
        await server.app.idle();
      });
    }

    test(`a request ${how}, behind another, whose client leaves meanwhile, has its tasks run`, async () => {
      const log = new Journal();
      const held = gate();
      await using server = await serve([
        get('/first', () => held),
        post('/second', { request, tasks: backgroundTasks }, async ({ request, tasks }) => {
          tasks.addTask(log.write, 'task');
          await endEarly(request);
          log.write('ended early');
        }),
      ]);
      using client = await rawClient(server.port);
      client.send(...GET('/first'), ...upload('/second'));
      await log.until('ended early');
      await fence(server.url);
      client.socket.destroy();
      await log.until('task');
      held.open();
      await server.app.idle();
    });

    test(`a dependency ends a request early (${how}): the handler answers, and tasks and clean-up follow`, async () => {
      const log = new Journal();
      const receiver = depends({ request, tasks: backgroundTasks }, async function* receive(values) {
        values.tasks.addTask(log.write, 'task');
        await endEarly(values.request);
        yield 'received in part';
        log.write('clean-up');
      });
      await using server = await serve([post('/', { receiver }, ({ receiver }) => receiver)]);
      using client = await rawClient(server.port);
      client.send(...upload('/'));
      await client.until('"received in part"');
      await log.until('clean-up');
      await server.app.idle();
      assert.deepEqual(log.entries, ['task', 'clean-up']);
    });
  }

  test('a request that is destroyed by the handler ends its connection, and its tasks run', async () => {
    const log = new Journal();
    const route = post('/', { request, tasks: backgroundTasks }, ({ request, tasks }) => {
      tasks.addTask(log.write, 'task');
      request.destroy();
    });
    await using server = await serve([route]);
    using client = await rawClient(server.port);
    client.send(...upload('/'));
    assert.equal(await client.closed, '');
    await log.until('task');
    await server.app.idle();
  });

  test('close() ends the connection of a request that has ended early, once it is answered', async (t) => {
    const lines = stderr(t);
    const log = new Journal();
    const held = gate();
    const route = post('/', { request, tasks: backgroundTasks }, async ({ request, tasks }) => {
      tasks.addTask(log.write, 'task');
      await endings['whose pipeline fails']?.(request);
      log.write('ended early');
      await held;
    });
    await using server = await serve([route]);
    using client = await rawClient(server.port);
    client.send(...upload('/'));
    await log.until('ended early');
    const closed = server.app.close();
    held.open();
    assert.match(await client.closed, /connection: close[\s\S]*null$/i);
    assert.deepEqual(await closed, { unfinished: [] });
    assert.deepEqual(log.entries, ['ended early', 'task']);
    assert.deepEqual(lines, []);
  });
});

describe('a request that ends early, without an app', () => {
  type Asked = (req: IncomingMessage, res: ServerResponse) => () => Promise<void>;
  /** When `responseDone` is asked, or who remembers the connection. */
  const askings: Record<string, Asked> = {
    'asked when the request arrives': (_req, res) => {
      const done = responseDone(res);
      return () => done;
    },
    'asked late': (_req, res) => () => responseDone(res),
    'asked late, with a queue that knows the request': (req, res) => {
      const tasks = new BackgroundTasks({ request: req });
      return () => responseDone(res).then(() => tasks.run());
    },
  };

  for (const [how, endEarly] of Object.entries(endings)) {
    for (const [when, asked] of Object.entries(askings)) {
      test(`responseDone, ${when}, resolves after the answer to a request ${how}`, async () => {
        const log = new Journal();
        await using server = await foreign(async (req, res) => {
          const whenDone = asked(req, res);
          await endEarly(req);
          res.writeHead(413).end('too much');
          await whenDone();
          log.write(`done, finished: ${res.writableFinished}`);
        });
        using client = await rawClient(server.port);
        client.send(...upload('/'));
        await client.until('too much');
        await log.until('done, finished: true');
      });

      test(`responseDone, ${when}, resolves behind another response for a request ${how}`, async () => {
        const log = new Journal();
        const held = gate();
        await using server = await foreign(async (req, res) => {
          if (req.url === '/first') {
            await held;
            res.end('one');
            return;
          }
          const whenDone = asked(req, res);
          await endEarly(req);
          res.end('two');
          log.write('ended');
          await whenDone();
          log.write('done');
        });
        using client = await rawClient(server.port);
        client.send(...GET('/first'), ...upload('/second'));
        await log.until('ended');
        assert.deepEqual(log.entries, ['ended']);
        held.open();
        assert.match(await client.until('two'), /one[\s\S]*two/);
        await log.until('done');
      });
    }

    for (const when of [
      'asked when the request arrives',
      'asked late, with a queue that knows the request',
    ]) {
      test(`responseDone, ${when}, resolves where the client of a request ${how} leaves behind another`, async () => {
        const log = new Journal();
        const held = gate();
        await using server = await foreign(async (req, res) => {
          if (req.url === '/first') {
            await held;
            res.end('one');
            return;
          }
          const whenDone = askings[when]?.(req, res);
          const { socket } = req;
          await endEarly(req);
          log.write('ended');
          await gone(socket);
          res.end('two');
          await whenDone?.();
          log.write('done');
        });
        using client = await rawClient(server.port);
        client.send(...GET('/first'), ...upload('/second'));
        await log.until('ended');
        client.socket.destroy();
        await log.until('done');
        held.open();
      });
    }
  }
});

/** A host and an app on one response: who answers first, what the host's server allows, and what it wraps. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { describe } from 'node:test';
import { queryObjects } from 'node:v8';
import { createGzip } from 'node:zlib';
import { responseDone } from '../background.ts';
import { backgroundTasks, createApp, depends, get, HTTPError, post } from '../server.ts';
import { gate, rawClient, stderr } from './helpers.ts';
import { ask, firstAndThen, foreign, GET, gone, Journal, source, test } from './server.helpers.ts';

const NOT_SENT = /^GET \/: the answer was not sent, as the response had begun before it\.$/;

const answers: Record<string, () => unknown> = {
  'a JSON value': () => ({ ok: true }),
  nothing: () => undefined,
  'a Response': () => Response.json({ ok: true }),
  'a stream': () => new Response(firstAndThen(() => 'second')),
  'an empty Response': () => new Response(null, { status: 204 }),
};

describe('a host that answers first', () => {
  for (const [kind, answer] of Object.entries(answers)) {
    test(`the tasks of a handler that returns ${kind} run behind the host's 503`, async (t) => {
      const lines = stderr(t);
      const log = new Journal();
      const held = gate();
      const route = get('/', { tasks: backgroundTasks }, async ({ tasks }) => {
        tasks.addTask(log.write, 'task');
        await held;
        tasks.addTask(log.write, 'late task');
        return answer();
      });
      const app = createApp([route]);
      await using host = await foreign((req, res) => {
        app.listener(req, res);
        res.writeHead(503).end('too late');
      });
      assert.deepEqual(await ask(host.url).then(({ status, body }) => ({ status, body })), {
        status: 503,
        body: 'too late',
      });
      held.open();
      await log.until('late task');
      await app.idle();
      assert.deepEqual(log.entries, ['task', 'late task']);
      assert.equal(lines.length, 1);
      assert.match(lines[0] ?? '', NOT_SENT);
    });
  }

  test('a stream that is not sent is cancelled', async (t) => {
    stderr(t);
    const log = new Journal();
    const stream = source(
      () => 'part',
      () => log.write('cancelled'),
    );
    const app = createApp([get('/', () => new Response(stream))]);
    await using host = await foreign((req, res) => {
      res.end('first');
      app.listener(req, res);
    });
    await ask(host.url);
    await log.until('cancelled');
    await app.idle();
  });

  test('the tasks wait for the end of an answer that the host has only begun', async (t) => {
    const lines = stderr(t);
    const log = new Journal();
    const held = gate();
    const route = get('/', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(log.write, 'task');
      return { ok: true };
    });
    const app = createApp([route]);
    await using host = await foreign(async (req, res) => {
      if (req.url === '/other') {
        res.end();
        return;
      }
      res.write('the first part');
      app.listener(req, res);
      await held;
      log.write('end');
      res.end('the last part');
    });
    using client = await rawClient(host.port);
    client.send(...GET('/'));
    await client.until('the first part');
    await ask(`${host.url}/other`);
    assert.deepEqual(log.entries, []);
    held.open();
    await client.until('the last part\r\n0\r\n\r\n');
    await log.until('task');
    await app.idle();
    assert.deepEqual(log.entries, ['end', 'task']);
    assert.match(lines.join('\n'), NOT_SENT);
  });

  test('a host that destroys the response has the tasks of the handler run', async (t) => {
    const lines = stderr(t);
    const log = new Journal();
    const held = gate();
    const route = get('/', { tasks: backgroundTasks }, async ({ tasks }) => {
      tasks.addTask(log.write, 'task');
      await held;
    });
    const app = createApp([route]);
    await using host = await foreign((req, res) => {
      app.listener(req, res);
      res.destroy();
    });
    using client = await rawClient(host.port);
    client.send(...GET('/'));
    assert.equal(await client.closed, '');
    held.open();
    await log.until('task');
    await app.idle();
    assert.doesNotMatch(lines.join('\n'), /failed/);
  });

  for (const [kind, error] of Object.entries({
    'an error': new Error('broken'),
    'an HTTPError': new HTTPError(418),
  })) {
    test(`a handler that throws ${kind} behind the host's answer is reported, and its queue discarded`, async (t) => {
      const lines = stderr(t);
      const log = new Journal();
      const held = gate();
      const route = get('/', { tasks: backgroundTasks }, async ({ tasks }) => {
        tasks.addTask(log.write, 'task');
        await held;
        throw error;
      });
      const app = createApp([route]);
      await using host = await foreign((req, res) => {
        app.listener(req, res);
        res.writeHead(503).end('too late');
      });
      assert.equal((await ask(host.url)).body, 'too late');
      held.open();
      await app.idle();
      assert.deepEqual(log.entries, []);
      assert.match(lines.join('\n'), /^GET \/ failed: (HTTP)?Error/);
    });
  }

  test('a clean-up runs behind the tasks, though the host has answered', async (t) => {
    stderr(t);
    const log = new Journal();
    const resource = depends(function* open() {
      yield 'resource';
      log.write('clean-up');
    });
    const route = get('/', { resource, tasks: backgroundTasks }, ({ tasks }) =>
      tasks.addTask(log.write, 'task'),
    );
    const app = createApp([route]);
    await using host = await foreign((req, res) => {
      res.end('first');
      app.listener(req, res);
    });
    await ask(host.url);
    await log.until('clean-up');
    await app.idle();
    assert.deepEqual(log.entries, ['task', 'clean-up']);
  });
});

describe('a host that refuses a body where HTTP has none', () => {
  const bodiless: Record<string, () => unknown> = {
    ...answers,
    'an empty 304': () => new Response(null, { status: 304 }),
    'a 204 that is thrown': () => {
      throw new HTTPError(204);
    },
    'a 404 that is thrown': () => {
      throw new HTTPError(404);
    },
    'an error': () => {
      throw new Error('broken');
    },
    'what is no JSON': () => 1n,
  };

  for (const [kind, answer] of Object.entries(bodiless)) {
    test(`HEAD of ${kind} answers as GET does, without a body`, async (t) => {
      stderr(t);
      const log = new Journal();
      const route = get('/', { tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(log.write, 'task');
        return answer();
      });
      const app = createApp([route], { onThrow: 'run' });
      await using host = await foreign(app.listener, { rejectNonStandardBodyWrites: true });
      const whole = await ask(host.url);
      await app.idle();
      const head = await ask(host.url, { method: 'HEAD' });
      await app.idle();
      assert.deepEqual([head.status, head.body], [whole.status, '']);
      assert.equal(head.headers['content-type'], whole.headers['content-type']);
      assert.deepEqual(log.entries, ['task', 'task']);
    });
  }

  for (const [path, status] of [
    ['/nowhere', 404],
    ['/%ff', 400],
  ] as const) {
    test(`HEAD of ${path} gets ${status}, without a body`, async () => {
      const app = createApp([get('/', () => 'root')]);
      await using host = await foreign(app.listener, { rejectNonStandardBodyWrites: true });
      const { status: got, body } = await ask(`${host.url}${path}`, { method: 'HEAD' });
      assert.deepEqual([got, body], [status, '']);
      await app.idle();
    });
  }

  for (const method of ['write', 'end'] as const) {
    test(`a host whose ${method} throws behind the head has the response end, and nothing stays pending`, async (t) => {
      const lines = stderr(t);
      const answer = method === 'end' ? 'a JSON value' : 'a stream';
      const app = createApp([get('/', () => answers[answer]?.())]);
      await using host = await foreign((req, res) => {
        t.mock.method(res, method, () => {
          throw new Error('refused');
        });
        app.listener(req, res);
      });
      using client = await rawClient(host.port);
      client.send(...GET('/'));
      await client.closed;
      await app.idle();
      assert.match(lines.join('\n'), /Error: refused/);
    });
  }
});

/** Does to a response what compression middleware does: 'drain' is that of the stream in between. */
function compress(res: ServerResponse): { readonly drainListeners: number } {
  const gzip = createGzip();
  const { write, end, on } = res;
  gzip.on('data', (chunk: Buffer) => {
    if (!write.call(res, chunk, 'utf8')) {
      gzip.pause();
    }
  });
  gzip.on('end', () => end.call(res, '', 'utf8'));
  on.call(res, 'drain', () => gzip.resume());
  const listening = (event: string, listener: () => void): ServerResponse => {
    if (event === 'drain') {
      gzip.on('drain', listener);
      return res;
    }
    return on.call(res, event, listener);
  };
  Object.assign(res, {
    write: (chunk: Uint8Array) => gzip.write(chunk),
    end: (chunk?: Uint8Array) => gzip.end(chunk),
    on: listening,
    once: listening,
  });
  res.setHeader('content-encoding', 'gzip');
  return {
    get drainListeners() {
      return gzip.listenerCount('drain');
    },
  };
}

function warningsOf(t: { after(fn: () => void): void }): string[] {
  const warnings: string[] = [];
  const onWarning = ({ message }: Error): void => {
    warnings.push(message);
  };
  process.on('warning', onWarning);
  t.after(() => process.off('warning', onWarning));
  return warnings;
}

describe('a host that wraps the response', () => {
  test('a stream of many parts leaves one drain listener on the stream in between', async (t) => {
    const warnings = warningsOf(t);
    const counts = new Set<number>();
    const part = Buffer.from(Array.from({ length: 65_536 }, (_, place) => (place * 7_919) % 251));
    const whole: Buffer[] = [];
    const app = createApp([
      get('/', () => {
        let left = 50;
        const stream = new ReadableStream<Uint8Array>({
          pull(controller) {
            counts.add(wrapped?.drainListeners ?? 0);
            left -= 1;
            if (left < 0) {
              controller.close();
            } else {
              controller.enqueue(part);
            }
          },
        });
        return new Response(stream);
      }),
    ]);
    let wrapped: { readonly drainListeners: number } | undefined;
    await using host = await foreign((req, res) => {
      wrapped = compress(res);
      app.listener(req, res);
    });
    const res = await fetch(host.url);
    whole.push(Buffer.from(await res.arrayBuffer()));
    await app.idle();
    assert.deepEqual(Buffer.concat(whole), Buffer.concat(Array<Buffer>(50).fill(part)));
    assert.ok(Math.max(...counts) <= 1, `drain listeners: ${[...counts]}`);
    await new Promise(setImmediate); // a warning comes a turn later
    assert.deepEqual(warnings, []);
  });

  for (const when of ['before the end', 'late'] as const) {
    test(`fifty calls of responseDone on one response, ${when}, make no warning`, async (t) => {
      const warnings = warningsOf(t);
      const log = new Journal();
      await using host = await foreign(async (_req, res) => {
        if (when === 'late') {
          res.end('whole');
          await once(res, 'finish');
        }
        const done = Array.from({ length: 50 }, () => responseDone(res));
        const listeners = res.eventNames().map((event) => res.listenerCount(event));
        assert.ok(Math.max(...listeners) < 5, `${listeners}`);
        res.end('whole');
        await Promise.all(done);
        log.write('done');
      });
      await ask(host.url);
      await log.until('done');
      await new Promise(setImmediate); // a warning comes a turn later
      assert.deepEqual(warnings, []);
    });
  }

  test('fifty streamed responses on one connection leave no listener on it', async (t) => {
    const warnings = warningsOf(t);
    const counts = new Set<number>();
    const app = createApp([get('/', () => new Response(firstAndThen(() => 'second')))]);
    await using host = await foreign((req, res) => {
      app.listener(req, res);
      counts.add(req.socket.eventNames().reduce((sum, name) => sum + req.socket.listenerCount(name), 0));
    });
    using client = await rawClient(host.port);
    for (let served = 1; served <= 50; served += 1) {
      client.send(...GET('/'));
      await client.until('second\r\n0\r\n\r\n', served);
    }
    await app.idle();
    assert.equal(counts.size, 1, `listeners of the socket: ${[...counts]}`);
    assert.deepEqual(warnings, []);
  });
});

describe('a host that is asynchronous', () => {
  /** Clients that have left before the host hands their requests on, and what is then left of their sockets. */
  async function leftSockets(
    handOn: (req: IncomingMessage, res: ServerResponse) => unknown,
    log: Journal,
    lines: readonly string[] = GET('/'),
  ): Promise<(Socket | undefined)[]> {
    const sockets: WeakRef<Socket>[] = [];
    await using host = await foreign(async (req, res) => {
      const { socket } = req;
      sockets.push(new WeakRef(socket));
      const left = gone(socket);
      log.write(`arrived ${sockets.length}`);
      await left;
      await handOn(req, res);
    });
    for (let place = 1; place <= 5; place += 1) {
      using client = await rawClient(host.port);
      client.send(...lines);
      await log.until(`arrived ${place}`);
      client.socket.destroy();
      await log.until(`task ${place}`);
    }
    await new Promise(setImmediate);
    await new Promise(setImmediate);
    queryObjects(Promise, { format: 'count' }); // collects the garbage first
    return sockets.slice(0, -1).map((each) => each.deref()); // the last one may still be on a stack
  }

  for (const [kind, answer] of Object.entries(answers)) {
    test(`no socket of a client that has left before is kept, nor its tasks lost, behind ${kind}`, async (t) => {
      stderr(t);
      const log = new Journal();
      let tasksRun = 0;
      const app = createApp([
        get('/', { tasks: backgroundTasks }, ({ tasks }) => {
          tasks.addTask(() => {
            tasksRun += 1;
            log.write(`task ${tasksRun}`);
          });
          return answer();
        }),
      ]);
      assert.deepEqual(await leftSockets(app.listener, log), Array(4).fill(undefined));
      await app.idle();
    });
  }

  test('responseDone keeps no socket of a client that has left before', async () => {
    const log = new Journal();
    let done = 0;
    const handOn = async (_req: IncomingMessage, res: ServerResponse): Promise<void> => {
      res.end('nobody reads it');
      await responseDone(res);
      done += 1;
      log.write(`task ${done}`);
    };
    assert.deepEqual(await leftSockets(handOn, log), Array(4).fill(undefined));
  });

  test('a request whose client has left before counts as pending until its tasks have run, and close() ends', async (t) => {
    stderr(t);
    const log = new Journal();
    const held = gate();
    const app = createApp([
      post('/', { tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(() => {
          log.write('task 1');
          return held;
        });
      }),
    ]);
    await using host = await foreign(async (req, res) => {
      const left = gone(req.socket);
      log.write('arrived');
      await left;
      app.listener(req, res);
    });
    using client = await rawClient(host.port);
    client.send('POST / HTTP/1.1', 'host: a', 'content-length: 0', '', '');
    await log.until('arrived');
    client.socket.destroy();
    await log.until('task 1');
    assert.equal(app.pending, 1);
    held.open();
    assert.deepEqual(await app.close(), { unfinished: [] });
  });
});

/** Dependencies that yield: what they provide, and how they are unwound. */
import assert from 'node:assert/strict';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { describe, test } from 'node:test';
import type { Dependency, TaskInfo } from '../server.ts';
import { backgroundTasks, body, depends, get, HTTPError, post, query, request } from '../server.ts';
import {
  answer,
  answerOf,
  anything,
  connect,
  internal,
  json,
  type Making,
  messageOf,
  rethrow,
  syncGenerator,
} from './deps.helpers.ts';
import { gate, serve, stderr, within } from './helpers.ts';

const asyncGenerator: Making = (name, log, leave = rethrow, deps = {}) =>
  depends(deps, async function* () {
    await new Promise(setImmediate);
    log.push(`enter ${name}`);
    try {
      yield name;
    } catch (error) {
      await new Promise(setImmediate);
      log.push(`${name} caught ${messageOf(error)}`);
      return leave(error);
    }
    await new Promise(setImmediate);
    log.push(`exit ${name}`);
  });

/** A plain function: the value it returns decides, not its kind. */
const returnsGenerator: Making = (name, log, leave = rethrow, deps = {}) =>
  depends(deps, () =>
    (function* () {
      log.push(`enter ${name}`);
      try {
        yield name;
      } catch (error) {
        log.push(`${name} caught ${messageOf(error)}`);
        return leave(error);
      }
      log.push(`exit ${name}`);
    })(),
  );

const makings = Object.entries({
  'a generator': syncGenerator,
  'an async generator': asyncGenerator,
  'a function that returns a generator': returnsGenerator,
});

describe('a generator', () => {
  for (const [kind, making] of makings) {
    test(
      `${kind} provides what it yields, and is unwound after the last task, the last first`,
      within,
      async () => {
        const log: string[] = [];
        const [started, held] = [gate(), gate()];
        const outer = making('outer', log);
        const inner = making('inner', log, rethrow, { outer });
        await using server = await serve([
          get('/', { inner, outer, tasks: backgroundTasks }, ({ inner, outer, tasks }) => {
            tasks.addTask(async () => {
              await (started.open(), held);
              log.push('task');
            });
            return [inner, outer];
          }),
          get('/fence', { tasks: backgroundTasks }, ({ tasks }) => tasks.addTask(() => {})),
        ]);
        assert.deepEqual(await answer(server), [200, ['inner', 'outer']]);
        await started;
        for (let round = 0; round < 5; round += 1) {
          await answer(server, '/fence');
        }
        assert.deepEqual(log, ['enter outer', 'enter inner']);
        held.open();
        await server.app.idle();
        assert.deepEqual(log, ['enter outer', 'enter inner', 'task', 'exit inner', 'exit outer']);
      },
    );

    test(`an error is thrown in at the yield of ${kind}, the last one first`, async () => {
      const log: string[] = [];
      const outer = making('outer', log);
      const inner = making('inner', log, rethrow, { outer });
      assert.deepEqual(
        await answerOf([
          get('/', { inner }, () => {
            throw new HTTPError(404, 'no such item');
          }),
        ]),
        [404, { detail: 'no such item' }],
      );
      assert.deepEqual(log, [
        'enter outer',
        'enter inner',
        'inner caught no such item',
        'outer caught no such item',
      ]);
    });

    test(`${kind} may replace the error, also for those outside it`, async () => {
      const log: string[] = [];
      const outer = making('outer', log);
      const inner = making(
        'inner',
        log,
        () => {
          throw new HTTPError(418, 'short and stout');
        },
        { outer },
      );
      assert.deepEqual(
        await answerOf([
          get('/', { inner }, () => {
            throw new Error('secret');
          }),
        ]),
        [418, { detail: 'short and stout' }],
      );
      assert.deepEqual(log.slice(2), ['inner caught secret', 'outer caught short and stout']);
    });

    test(`${kind} that swallows the error makes it 500, and those outside it are resumed normally`, async (t) => {
      const lines = stderr(t);
      const log: string[] = [];
      const outer = making('outer', log);
      const inner = making('inner', log, () => {}, { outer });
      assert.deepEqual(
        await answerOf([
          get('/', { inner }, () => {
            throw new HTTPError(404, 'lost');
          }),
        ]),
        internal,
      );
      assert.deepEqual(log.slice(2), ['inner caught lost', 'exit outer']);
      assert.equal(lines.length, 1);
      assert.match(lines[0] ?? '', /^GET \/ failed: Error: Expected .*to throw the error again/);
      assert.match(lines[0] ?? '', /\[cause\]: HTTPError: lost/);
    });
  }
});

describe('an error that is thrown in', () => {
  test('a generator outside one that swallows may throw an error of its own, which is the answer', async () => {
    const outer = depends(function* () {
      yield;
      throw new HTTPError(418);
    });
    const inner = syncGenerator('inner', [], () => {}, { outer });
    assert.deepEqual(
      await answerOf([
        get('/', { inner }, () => {
          throw new HTTPError(404);
        }),
      ]),
      [418, { detail: "I'm a Teapot" }],
    );
  });

  test('the error is thrown in before the error response is sent', within, async (t) => {
    const [caught, held] = [gate(), gate()];
    const slow = depends(async function* () {
      try {
        yield;
      } finally {
        await (caught.open(), held);
      }
    });
    await using server = await serve([
      get('/', { slow }, () => {
        throw new HTTPError(404);
      }),
      get('/fence', () => {}),
    ]);
    using client = await connect(t, server.port);
    client.send('GET / HTTP/1.1', 'host: a', '', '');
    await caught;
    for (let round = 0; round < 5; round += 1) {
      await answer(server, '/fence');
    }
    assert.equal(client.received, '');
    held.open();
    assert.match(await client.until('Not Found"}'), /^HTTP\/1.1 404 /);
  });

  for (const [kind, making] of makings.slice(0, 2)) {
    test(`whatever error the request ends with is thrown in at the yield of ${kind}`, async (t) => {
      const lines = stderr(t);
      const log: string[] = [];
      const session = making('session', log);
      const refuses = (error: unknown): Dependency<never> =>
        depends(() => {
          throw error;
        });
      const never = (): never => assert.fail('unreachable');
      await using server = await serve(
        [
          get('/handler', { session }, () => {
            throw new Error('by the handler');
          }),
          get('/value', { session }, () => {
            throw undefined;
          }),
          get(
            '/dependency',
            { session, broken: refuses(new HTTPError(401, 'who?')), late: making('late', log) },
            never,
          ),
          get('/inner', { session, outer: depends({ broken: refuses(new Error('deep')) }, never) }, never),
          get('/missing', { session, name: query('name') }, never),
          get('/json', { session }, () => 10n),
          post('/large', { session, large: body(anything) }, never),
        ],
        { bodyLimit: 2 },
      );
      const expected: [target: string, status: number, caught: string, init?: RequestInit][] = [
        ['/handler', 500, 'by the handler'],
        ['/value', 500, 'undefined'],
        ['/dependency', 401, 'who?'],
        ['/inner', 500, 'deep'],
        ['/missing', 422, 'Unprocessable Entity'],
        ['/json', 500, 'Do not know how to serialize a BigInt'],
        ['/large', 413, 'Payload Too Large', json('large')],
      ];
      for (const [target, status, caught, init] of expected) {
        assert.equal((await answer(server, target, init))[0], status, target);
        assert.deepEqual(log.splice(0), ['enter session', `session caught ${caught}`], target);
      }
      assert.deepEqual(
        lines.map((line) => line.split(' failed:')[0]),
        ['/handler', '/value', '/inner', '/json'].map((target) => `GET ${target}`),
      );
    });
  }

  test('a client that leaves in the middle of its body has an error thrown in, too', within, async (t) => {
    const log: string[] = [];
    const deps = { session: syncGenerator('session', log), body: body(anything) };
    await using server = await serve([post('/', deps, () => log.push('handler'))]);
    using client = await connect(t, server.port);
    client.send('POST / HTTP/1.1', 'host: a', 'expect: 100-continue', 'content-length: 9', '', '');
    await client.until('100 Continue'); // so the request has arrived, and waits for its body
    client.socket.resetAndDestroy();
    await server.app.idle();
    assert.deepEqual(log, ['enter session', 'session caught There was an error parsing the body']);
  });
});

describe('what is a generator, and what is a value', () => {
  test('an async function that resolves to a generator object gives that as its value', async () => {
    const pages = depends(async () =>
      (function* () {
        yield 1;
        yield 2;
      })(),
    );
    assert.deepEqual(await answerOf([get('/', { pages }, ({ pages }) => [...pages])]), [200, [1, 2]]);
  });

  test('an iterator that is no generator object is a value', async () => {
    const iterator = depends(() => ['a', 'b'].values());
    assert.deepEqual(await answerOf([get('/', { iterator }, ({ iterator }) => [...iterator])]), [
      200,
      ['a', 'b'],
    ]);
  });

  test('a promise that a generator yields is awaited, and its rejection is thrown in', async () => {
    const log: string[] = [];
    const later = depends(function* () {
      yield Promise.resolve('settled');
    });
    const fails = depends(function* () {
      try {
        yield Promise.reject(new HTTPError(503, 'down'));
      } catch (error) {
        log.push(messageOf(error));
        throw error;
      }
    });
    await using server = await serve([
      get('/', { later }, ({ later }) => later),
      get('/fails', { fails }, () => {}),
    ]);
    assert.deepEqual(await answer(server), [200, 'settled']);
    assert.deepEqual(await answer(server, '/fails'), [503, { detail: 'down' }]);
    assert.deepEqual(log, ['down']);
  });

  test('a generator that is reached by two paths is unwound once', async () => {
    const log: string[] = [];
    const session = syncGenerator('session', log);
    const inner = depends({ session }, ({ session }) => session);
    await using server = await serve([get('/', { session, inner }, () => {})]);
    await answer(server);
    await server.app.idle();
    assert.deepEqual(log, ['enter session', 'exit session']);
  });
});

describe('a generator that yields too little or too much', () => {
  for (const [kind, never] of Object.entries({
    'a generator': depends(function* never(): Generator<void> {}),
    'an async generator': depends(async function* never(): AsyncGenerator<void> {}),
  })) {
    test(`${kind} that never yields is 500, and stderr says what was expected`, async (t) => {
      const lines = stderr(t);
      const log: string[] = [];
      const deps = { outer: syncGenerator('outer', log), never };
      assert.deepEqual(await answerOf([get('/', deps, () => log.push('handler'))]), internal);
      assert.match(
        lines.join('\n'),
        /^GET \/ failed: Error: Expected never to yield one value, but it returned\./,
      );
      assert.equal(lines.length, 1);
      assert.equal(log[1]?.startsWith('outer caught Expected never to yield'), true);
    });
  }

  for (const [kind, twice] of Object.entries<(log: string[]) => Dependency<unknown>>({
    'a generator': (log) =>
      depends(function* twice() {
        try {
          yield 1;
        } catch {} // so it goes on after an error, too
        try {
          yield 2;
        } finally {
          log.push('closed');
        }
      }),
    'an async generator': (log) =>
      depends(async function* twice() {
        try {
          yield 1;
        } catch {}
        try {
          yield 2;
        } finally {
          log.push('closed');
        }
      }),
  })) {
    test(`${kind} that yields twice is reported like a failed task, and closed`, async (t) => {
      const lines = stderr(t);
      const log: string[] = [];
      await using server = await serve([
        get('/', { outer: syncGenerator('outer', log), twice: twice(log) }, ({ twice }) => twice),
      ]);
      assert.deepEqual(await answer(server), [200, 1]);
      await server.app.idle();
      assert.deepEqual(log, ['enter outer', 'closed', 'exit outer']);
      assert.equal(lines.length, 1);
      assert.match(
        lines[0] ?? '',
        /clean-up of twice\): Error: Expected .* one value, but it yielded a second/,
      );
    });

    test(`${kind} that yields again instead of throwing the error is 500, and closed`, async (t) => {
      const lines = stderr(t);
      const log: string[] = [];
      assert.deepEqual(
        await answerOf([
          get('/', { outer: syncGenerator('outer', log), twice: twice(log) }, () => {
            throw new HTTPError(404);
          }),
        ]),
        internal,
      );
      assert.equal(log[1], 'closed');
      assert.match(log[2] ?? '', /^outer caught Expected .* one value, but it yielded a second/);
      assert.equal(lines.length, 1);
      assert.match(lines[0] ?? '', /^GET \/ failed: Error: Expected .* one value, but it yielded a second/);
    });
  }
});

const failing = depends(function* failing() {
  yield;
  throw new Error('not closed');
});

describe('an error while unwinding', () => {
  for (const afterFailure of ['continue', 'stop'] as const) {
    test(`an error while unwinding is reported like a failed task, and the other clean-ups run (${afterFailure})`, async (t) => {
      const lines = stderr(t);
      const log: string[] = [];
      const deps = { outer: syncGenerator('outer', log), failing, inner: asyncGenerator('inner', log) };
      await using server = await serve([get('/', deps, () => 'fine')], { afterFailure });
      assert.deepEqual(await answer(server), [200, 'fine']);
      await server.app.idle();
      assert.deepEqual(log.slice(2), ['exit inner', 'exit outer']);
      assert.equal(lines.length, 1);
      assert.match(lines[0] ?? '', /clean-up of failing\): Error: not closed\n +at /);
    });
  }

  test('onTaskError gets an error while unwinding, in place of stderr', async (t) => {
    const lines = stderr(t);
    const seen: unknown[] = [];
    await using server = await serve(
      [get('/', { failing, request }, ({ request }) => void seen.push(request))],
      {
        onTaskError: (error, { name, request }) => seen.push(messageOf(error), name, request),
      },
    );
    await answer(server);
    await server.app.idle();
    const [expected, ...rest] = seen;
    assert.deepEqual(rest.slice(0, 2), ['not closed', 'clean-up of failing']);
    assert.equal(rest[2], expected);
    assert.deepEqual(lines, []);
  });

  for (const afterFailure of ['continue', 'stop'] as const) {
    test(`the error of a task is not thrown in, and the clean-ups run after it (${afterFailure})`, async (t) => {
      const lines = stderr(t);
      const log: string[] = [];
      await using server = await serve(
        [
          get('/', { session: syncGenerator('session', log), tasks: backgroundTasks }, ({ tasks }) => {
            tasks.addTask(() => {
              throw new Error('in a task');
            });
            tasks.addTask(() => log.push('second'));
          }),
        ],
        { afterFailure },
      );
      await answer(server);
      await server.app.idle();
      assert.deepEqual(log, [
        'enter session',
        ...(afterFailure === 'stop' ? [] : ['second']),
        'exit session',
      ]);
      assert.match(lines[0] ?? '', /in a task/);
    });
  }

  test('a task that is added while unwinding after success is refused, which is reported', async (t) => {
    const lines = stderr(t);
    const log: string[] = [];
    const late = depends({ tasks: backgroundTasks }, function* late({ tasks }) {
      yield;
      tasks.addTask(function farewell() {
        log.push('ran');
      });
    });
    const deps = { late, tasks: backgroundTasks };
    await using server = await serve([get('/', deps, ({ tasks }) => tasks.addTask(() => {}))]);
    assert.deepEqual(await answer(server), [200, null]);
    await server.app.idle();
    assert.deepEqual(log, []);
    assert.equal(lines.length, 1);
    assert.match(lines[0] ?? '', /clean-up of late\): Error: Too late to add farewell/);
  });

  test('after a throw the queue is discarded, once it is unwound: told on background-tasks:dropped, not on stderr', async (t) => {
    const lines = stderr(t);
    const log: string[] = [];
    const dropped: unknown[] = [];
    const listen = (message: unknown): void => {
      const { name, index, request, reason } = message as TaskInfo & { reason: string };
      dropped.push([name, index, request?.url, reason]);
    };
    subscribe('background-tasks:dropped', listen);
    t.after(() => unsubscribe('background-tasks:dropped', listen));
    const task = (name: string): (() => void) =>
      ({ [name]: () => void log.push(name) })[name] ?? assert.fail();
    const expected = (url: string, ...names: string[]): unknown[] =>
      names.map((name, index) => [name, index, url, 'the handler or a dependency threw']);
    const session = depends({ tasks: backgroundTasks }, async function* ({ tasks }) {
      tasks.addTask(task('dependency'));
      try {
        yield;
      } finally {
        tasks.addTask(task('clean-up'));
        log.push(`${dropped.length} dropped`);
      }
    });
    await using server = await serve([
      get('/', { session, tasks: backgroundTasks, q: query('q') }, ({ tasks }) => {
        tasks.addTask(task('handler'));
        throw new HTTPError(404);
      }),
    ]);
    assert.deepEqual(await answer(server, '/?q='), [404, { detail: 'Not Found' }]);
    assert.deepEqual(dropped.splice(0), expected('/?q=', 'dependency', 'handler', 'clean-up'));
    assert.equal((await answer(server))[0], 422);
    assert.deepEqual(dropped.splice(0), expected('/', 'dependency', 'clean-up'));
    await server.app.idle();
    assert.deepEqual(log, ['0 dropped', '0 dropped']);
    assert.deepEqual(lines, []);
  });
});

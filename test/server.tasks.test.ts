/** Tasks in a server: their order, their errors, and the status that they run after. */
import assert from 'node:assert/strict';
import http from 'node:http';
import { describe } from 'node:test';
import { backgroundTasks, body, depends, get, HTTPError, path, post, query, strings } from '../server.ts';
import { gate, stderr } from './helpers.ts';
import { ask, fence, Journal, serve, test, without } from './server.helpers.ts';

describe('tasks run in order', () => {
  test('tasks run in order, one at a time, across dependencies and handler, whatever their kind', async () => {
    const log = new Journal();
    const asynchronous = async (name: string): Promise<void> => {
      log.write(`${name} starts`);
      await new Promise(setImmediate);
      log.write(`${name} ends`);
    };
    const inner = depends({ tasks: backgroundTasks }, ({ tasks }) => tasks.addTask(asynchronous, 'inner'));
    const outer = depends({ inner, tasks: backgroundTasks }, async ({ tasks }) =>
      tasks.addTask(log.write, 'outer'),
    );
    await using server = await serve([
      post('/', { outer, inner, tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(asynchronous, 'handler');
        tasks.addTask(log.write, 'last');
        tasks.addTask(() => tasks.addTask(log.write, 'added by a task'));
      }),
    ]);
    await ask(server.url, { method: 'POST' });
    await log.until('added by a task');
    await fence(server.url);
    assert.deepEqual(log.entries, [
      'inner starts',
      'inner ends',
      'outer',
      'handler starts',
      'handler ends',
      'last',
      'added by a task',
    ]);
  });

  test("a task may call run() of its own queue: that starts nothing, and resolves at the queue's end", async () => {
    const log = new Journal();
    const held = gate();
    const runs: Promise<void>[] = [];
    await using server = await serve([
      get('/', { tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(() => {
          log.write('first');
          runs.push(tasks.run());
          runs[0]?.then(() => log.write('run() resolves'));
        });
        tasks.addTask(async () => {
          log.write('second');
          await held;
          runs.push(tasks.run());
        });
        tasks.addTask(log.write, 'third');
      }),
    ]);
    await ask(server.url);
    await log.until('second');
    await fence(server.url);
    assert.deepEqual(log.entries, ['first', 'second']);
    held.open();
    await server.app.idle();
    await Promise.all(runs);
    assert.deepEqual(log.entries, ['first', 'second', 'third', 'run() resolves']);
    assert.equal(new Set(runs).size, 1, 'always the same promise');
  });

  test('where a handler runs its queue itself, the server waits for the end of it, and runs nothing twice', async () => {
    const log = new Journal();
    const held = gate();
    const runs: Promise<void>[] = [];
    await using server = await serve([
      get('/', { tasks: backgroundTasks }, async ({ tasks }) => {
        tasks.addTask(log.write, 'first');
        tasks.addTask(() => held);
        tasks.addTask(log.write, 'last');
        runs.push(tasks.run());
        await log.until('first');
        return 'answered';
      }),
      get('/pending', () => server.app.pending),
    ]);
    assert.equal((await ask(server.url)).body, '"answered"');
    await fence(server.url);
    assert.equal((await ask(`${server.url}/pending`)).body, '2', 'it, and the one that asks');
    held.open();
    await Promise.all([...runs, server.app.idle()]);
    await fence(server.url);
    assert.deepEqual(log.entries, ['first', 'last']);
  });

  test('the tasks of different requests do not wait for one another', async () => {
    const log = new Journal();
    const held = gate();
    await using server = await serve([
      post('/:id', { id: path('id'), tasks: backgroundTasks }, ({ id, tasks }) => {
        if (id === 'held') {
          tasks.addTask(() => held);
        }
        tasks.addTask(log.write, id);
      }),
    ]);
    await ask(`${server.url}/held`, { method: 'POST' });
    await ask(`${server.url}/free`, { method: 'POST' });
    await log.until('free');
    assert.deepEqual(log.entries, ['free']);
    held.open();
    await server.app.idle();
    assert.deepEqual(log.entries, ['free', 'held']);
  });
});

const failures: Record<string, () => unknown> = {
  'an error': () => {
    throw new Error('expected');
  },
  'a rejection': async () => {
    throw new Error('expected');
  },
  'an HTTPError': () => {
    throw new HTTPError(418, 'expected');
  },
  'a thrown undefined': () => {
    throw undefined;
  },
  'a rejection with a text': () => Promise.reject('expected'),
};

describe('an error in a task stays inside', () => {
  for (const [kind, fail] of Object.entries(failures)) {
    test(`${kind} in the first, the middle or the last task changes nothing that the client sees`, async (t) => {
      const lines = stderr(t);
      const log = new Journal();
      await using server = await serve([
        post('/:place', { place: path('place'), tasks: backgroundTasks }, ({ place, tasks }) => {
          for (const each of ['first', 'middle', 'last']) {
            tasks.addTask(each === place ? fail : () => log.write(each));
          }
          return Response.json({ created: 'one' }, { status: 201, headers: { 'x-mark': '1' } });
        }),
      ]);
      const expected = await ask(`${server.url}/none`, { method: 'POST' });
      await server.app.idle();
      assert.equal(log.entries.length, 3);
      for (const place of ['first', 'middle', 'last']) {
        log.entries.length = lines.length = 0;
        const { headers, rawHeaders: _, ...rest } = await ask(`${server.url}/${place}`, { method: 'POST' });
        assert.deepEqual(rest, { status: 201, reason: 'Created', body: '{"created":"one"}' });
        assert.deepEqual(without(headers), without(expected.headers));
        await server.app.idle();
        assert.deepEqual(
          log.entries,
          ['first', 'middle', 'last'].filter((each) => each !== place),
        );
        assert.equal(lines.length, 1);
        assert.match(lines[0] ?? '', /^Background task failed \(\S.*\): /);
      }
    });
  }

  test("afterFailure: 'stop' drops the rest of that request's queue, and of no other", async (t) => {
    const lines = stderr(t);
    const log = new Journal();
    await using server = await serve(
      [
        post('/:id', { id: path('id'), tasks: backgroundTasks }, ({ id, tasks }) => {
          tasks.addTask(function charge() {
            if (id === 'failing') {
              throw new Error('expected');
            }
          });
          tasks.addTask(log.write, id);
        }),
      ],
      { afterFailure: 'stop' },
    );
    for (const id of ['failing', 'fine']) {
      await ask(`${server.url}/${id}`, { method: 'POST' });
    }
    await server.app.idle();
    assert.deepEqual(log.entries, ['fine']);
    assert.match(lines[0] ?? '', /^Background task failed \(charge\): Error: expected\n +at /);
    assert.match(lines[1] ?? '', /^Dropped task write/);
    assert.equal(lines.length, 2);
  });

  test('onTaskError gets the error, the task and its request, in place of stderr', async (t) => {
    const lines = stderr(t);
    const seen = gate<unknown[]>();
    await using server = await serve(
      [
        post('/pay', { tasks: backgroundTasks }, ({ tasks }) => {
          tasks.addTask(() => {});
          tasks.addTask(() => {
            throw new Error('expected');
          });
        }),
      ],
      {
        onTaskError: (error, { name, index, request }) =>
          seen.open([String(error), name, index, request?.url]),
      },
    );
    await ask(`${server.url}/pay?secret=1`, { method: 'POST' });
    assert.deepEqual(await seen, ['Error: expected', 'task 2 of POST /pay', 1, '/pay?secret=1']);
    assert.deepEqual(lines, []);
  });
});

describe('whatever status is returned, the tasks run', () => {
  test('whatever status is returned, the tasks run, and none of them changes it', async () => {
    const log = new Journal();
    await using server = await serve(
      [
        get('/:status', { status: path('status'), tasks: backgroundTasks }, ({ status, tasks }) => {
          tasks.addTask(log.write, `${status} ran`);
          tasks.addTask(() => {
            throw new HTTPError(418);
          });
          tasks.addTask(log.write, `${status} ran on`);
          const bodiless = [204, 205, 304].includes(Number(status));
          return new Response(bodiless ? null : status, {
            status: Number(status),
            headers: { 'x-status': status },
          });
        }),
      ],
      { onTaskError: () => {} },
    );
    const all = Array.from({ length: 400 }, (_, index) => String(200 + index));
    const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
    await Promise.all(
      all.map(async (status) => {
        const answer = await ask(`${server.url}/${status}`, { agent });
        assert.equal(String(answer.status), status);
        assert.equal(answer.headers['x-status'], status);
        assert.equal(answer.reason, http.STATUS_CODES[status] ?? 'unknown');
        assert.equal(answer.body, ['204', '205', '304'].includes(status) ? '' : status);
      }),
    );
    agent.destroy();
    await server.app.idle();
    assert.deepEqual(
      log.entries.toSorted(),
      all.flatMap((status) => [`${status} ran`, `${status} ran on`]),
    );
  });

  for (const method of ['GET', 'HEAD']) {
    test(`the tasks of a ${method} run, with a body and with 204`, async () => {
      const log = new Journal();
      await using server = await serve([
        get('/:status', { status: path('status'), tasks: backgroundTasks }, ({ status, tasks }) => {
          tasks.addTask(log.write, status);
          return status === '204' ? new Response(null, { status: 204 }) : { text: 'some' };
        }),
      ]);
      for (const status of ['200', '204']) {
        const answer = await ask(`${server.url}/${status}`, { method });
        assert.equal(String(answer.status), status);
        assert.equal(answer.body, method === 'GET' && status === '200' ? '{"text":"some"}' : '');
        await log.until(status);
      }
    });
  }
});

describe('a throw discards the queue', () => {
  for (const [kind, [status, fail]] of Object.entries<[number, () => unknown]>({
    'an error': [500, failures['an error'] as () => unknown],
    'a rejection': [500, failures['a rejection'] as () => unknown],
    'an HTTPError': [418, failures['an HTTPError'] as () => unknown],
    'a thrown undefined': [500, failures['a thrown undefined'] as () => unknown],
    'a value that is not JSON': [500, () => 1n],
  })) {
    test(`${kind} in a handler or a dependency discards the queue, and the server serves on`, async (t) => {
      const lines = stderr(t);
      const log = new Journal();
      const queued = depends({ tasks: backgroundTasks }, ({ tasks }) =>
        tasks.addTask(log.write, 'discarded'),
      );
      const failing = depends(async () => {
        const value = await fail();
        if (value) {
          throw new Error(String(value));
        }
      });
      await using server = await serve([
        get('/handler', { queued }, fail),
        get('/dependency', { queued, failing }, () => log.write('handler')),
        get('/returned', { queued }, () => Response.json({ detail: 'returned' }, { status })),
      ]);
      for (const place of ['handler', 'dependency']) {
        assert.equal((await ask(`${server.url}/${place}`)).status, status);
      }
      await fence(server.url);
      await server.app.idle();
      assert.deepEqual(log.entries, []);
      assert.equal(lines.length, status === 500 ? 2 : 0);
      assert.equal((await ask(`${server.url}/returned`)).status, status);
      await server.app.idle();
      assert.deepEqual(log.entries, ['discarded'], 'returned, the same status runs them');
    });
  }

  test('a 422 discards the queue, and is not reported', async (t) => {
    const lines = stderr(t);
    const log = new Journal();
    const queued = depends({ tasks: backgroundTasks }, ({ tasks }) => tasks.addTask(log.write, 'task'));
    await using server = await serve([
      get('/query', { queued, name: query('name') }, () => log.write('handler')),
      post('/body', { queued, item: body(strings('item')) }, () => log.write('handler')),
    ]);
    assert.equal((await ask(`${server.url}/query`)).status, 422);
    assert.equal((await ask(`${server.url}/body`, { method: 'POST' })).status, 422);
    await fence(server.url);
    assert.deepEqual([log.entries, lines], [[], []]);
  });
});

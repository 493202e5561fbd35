/** How dependencies are resolved: in order, once per request, with one queue. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { Dependencies, Dependency } from '../server.ts';
import { backgroundTasks, body, depends, get, HTTPError, path, post, query, request } from '../server.ts';
import { answer, answerOf, json, schema } from './deps.helpers.ts';
import { gate, serve, within } from './helpers.ts';

describe('resolution', () => {
  test('dependencies are resolved one at a time, depth first, in the order declared, then the handler', async () => {
    const log: string[] = [];
    const step = (name: string, deps: Dependencies = {}): Dependency<string> =>
      depends(deps, async () => {
        log.push(`${name} begins`);
        await new Promise(setImmediate);
        log.push(`${name} ends`);
        return name;
      });
    const deps = { first: step('outer', { a: step('inner a'), b: step('inner b') }), second: step('second') };
    assert.deepEqual(await answerOf([get('/', deps, (values) => (log.push('handler'), values))]), [
      200,
      { first: 'outer', second: 'second' },
    ]);
    assert.deepEqual(
      log,
      ['inner a', 'inner b', 'outer', 'second']
        .flatMap((name) => [`${name} begins`, `${name} ends`])
        .concat('handler'),
    );
  });

  test('a call may be sync or async, or return a thenable; it gets the values of its own dependencies', async () => {
    const deps = {
      sync: depends(() => 1),
      async: depends({ name: query('name') }, async ({ name }) => `hello ${name}`),
      thenable: depends(() => ({ then: (done: (value: string) => void) => done('settled') })),
      nothing: depends(() => {}),
    };
    const nested = depends(deps, ({ sync, async, thenable, nothing }) => [sync, async, thenable, nothing]);
    assert.deepEqual(await answerOf([get('/', { nested }, ({ nested }) => nested)], '/?name=you'), [
      200,
      [1, 'hello you', 'settled', null],
    ]);
  });

  test('a dependency that is reached by several paths is resolved, and adds its tasks, once per request', async () => {
    const log: string[] = [];
    const shared = depends({ tasks: backgroundTasks }, async ({ tasks }) => {
      log.push('call');
      tasks.addTask(() => log.push('task'));
      return { an: 'object' };
    });
    const left = depends({ shared }, ({ shared }) => shared);
    const right = depends({ shared }, ({ shared }) => shared);
    await using server = await serve([
      get('/', { left, right, shared, again: shared }, ({ left, ...others }) =>
        Object.values(others).every((value) => value === left),
      ),
    ]);
    for (const round of [1, 2]) {
      assert.deepEqual(await answer(server), [200, true]);
      await server.app.idle();
      assert.deepEqual(log, ['call', 'task', 'call', 'task'].slice(0, 2 * round));
    }
  });

  test('a dependency whose value is undefined is resolved once, too', async () => {
    const log: string[] = [];
    const nothing = depends(() => void log.push('call'));
    const validated = query(
      'q',
      schema(() => {
        log.push('schema');
        return { value: undefined };
      }),
    );
    const inner = depends({ nothing, validated }, () => {});
    await answerOf([get('/', { nothing, validated, inner }, () => {})]);
    assert.deepEqual(log, ['call', 'schema']);
  });

  test('what a schema makes of a body is made once per request, too, and each has its own', async () => {
    const log: string[] = [];
    const of = (name: string): Dependency<string> =>
      body(
        schema(() => {
          log.push(name);
          return { value: name };
        }),
      );
    const [first, second] = [of('first'), of('second')];
    const inner = depends({ second, first }, ({ second, first }) => [second, first]);
    assert.deepEqual(
      await answerOf([post('/', { first, inner, second }, (values) => values)], '/', json({})),
      [200, { first: 'first', inner: ['second', 'first'], second: 'second' }],
    );
    assert.deepEqual(log, ['first', 'second']);
  });

  test('what is at hand and what is waited for are resolved in the order declared, each once', async () => {
    const log: string[] = [];
    const lazy = (name: string): object => ({
      then: (done: (value: string) => void) => {
        log.push(name);
        done(name);
      },
    });
    const at = (name: string): Dependency<string> =>
      depends(() => {
        log.push(name);
        return name;
      });
    const [sync, query, late] = [at('sync'), depends(() => lazy('thenable') as Promise<string>), at('late')];
    const waits = depends({ sync, query }, async ({ sync, query }) => {
      await new Promise(setImmediate);
      log.push('async');
      return [sync, query];
    });
    const yields = depends({ late, waits }, function* ({ late }) {
      log.push('generator');
      yield Promise.resolve(late);
    });
    const deps = { sync, waits, yields, query, late, again: waits };
    assert.deepEqual(
      await answerOf([get('/', deps, ({ waits, yields }) => lazy([...waits, yields].join(' ')))]),
      [200, 'sync thenable late'],
    );
    assert.deepEqual(log, ['sync', 'thenable', 'async', 'late', 'generator', 'sync thenable late']);
  });

  for (const [kind, fail] of Object.entries<() => unknown>({
    'a call that throws at once': () => {
      throw new HTTPError(401);
    },
    'a call that rejects': async () => {
      throw new HTTPError(401);
    },
    'a thenable that rejects': () => ({
      then: (_: unknown, no: (error: Error) => void) => no(new HTTPError(401)),
    }),
  })) {
    for (const [place, before] of Object.entries<() => unknown>({
      synchronous() {},
      async asynchronous() {},
    })) {
      test(`after ${kind}, behind ${place} dependencies, nothing is resolved, and what was is unwound`, async () => {
        const log: string[] = [];
        const yields = depends(function* () {
          try {
            yield;
          } finally {
            log.push('unwound');
          }
        });
        const deps = {
          yields,
          before: depends(before),
          fails: depends(fail),
          after: depends(() => log.push('after')),
        };
        const [status] = await answerOf([get('/', deps, () => log.push('handler'))]);
        assert.deepEqual([status, ...log], [401, 'unwound']);
      });
    }
  }

  test('a second depends() of the same function is resolved separately', async () => {
    let calls = 0;
    const count = (): number => (calls += 1);
    const [first, second] = [depends(count), depends(count)];
    assert.deepEqual(await answerOf([get('/', { first, second, again: first }, (values) => values)]), [
      200,
      { first: 1, second: 2, again: 1 },
    ]);
  });

  test('the handler and all dependencies share one queue, in which the tasks of dependencies come first', async () => {
    const log: string[] = [];
    const adds = (name: string, deps: Dependencies = {}): Dependency<unknown> =>
      depends({ ...deps, tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(() => log.push(name));
        return tasks;
      });
    const deps = {
      outer: adds('outer', { inner: adds('inner') }),
      second: adds('second'),
      tasks: backgroundTasks,
    };
    await using server = await serve([
      get('/', deps, ({ tasks, outer, second }) => {
        tasks.addTask(() => log.push('handler'));
        return [tasks === outer, tasks === second];
      }),
    ]);
    assert.deepEqual(await answer(server), [200, [true, true]]);
    await server.app.idle();
    assert.deepEqual(log, ['inner', 'outer', 'second', 'handler']);
  });

  test('two interleaved requests have separate queues', within, async () => {
    const log: string[] = [];
    const [entered, held, done] = [gate(), gate(), gate()];
    const named = depends({ name: query('name'), tasks: backgroundTasks }, ({ name, tasks }) => {
      tasks.addTask(() => log.push(`${name}: dependency`));
      return name;
    });
    await using server = await serve([
      get('/', { name: named, tasks: backgroundTasks }, async ({ name, tasks }) => {
        if (name === 'slow') {
          await (entered.open(), held);
        }
        tasks.addTask(() => log.push(`${name}: handler`));
        if (name === 'fast') {
          tasks.addTask(done.open, undefined);
        }
      }),
    ]);
    const slow = answer(server, '/?name=slow');
    await entered;
    await answer(server, '/?name=fast');
    await done;
    assert.deepEqual(log.splice(0), ['fast: dependency', 'fast: handler']);
    held.open();
    await slow;
    await server.app.idle();
    assert.deepEqual(log, ['slow: dependency', 'slow: handler']);
  });

  test('request is the raw request, and path() reaches a dependency of a dependency, decoded', async () => {
    const id = depends({ inner: depends({ id: path('id') }, ({ id }) => id) }, ({ inner }) => inner);
    const deps = { id, request };
    assert.deepEqual(
      await answerOf(
        [get('/items/:id', deps, ({ id, request: { method, url } }) => [id, method, url])],
        '/items/a%2Fb?q=1',
      ),
      [200, ['a/b', 'GET', '/items/a%2Fb?q=1']],
    );
  });
});

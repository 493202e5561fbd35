/** `app.override()`: a dependency is replaced, in one app and one step. */
import assert from 'node:assert/strict';
import { IncomingMessage } from 'node:http';
import { Socket } from 'node:net';
import { describe, test } from 'node:test';
import type { Dependencies, Dependency } from '../server.ts';
import {
  BackgroundTasks,
  backgroundTasks,
  body,
  depends,
  get,
  HTTPError,
  header,
  path,
  post,
  query,
  request,
  strings,
} from '../server.ts';
import { answer, missing, named, rejection, schema, syncGenerator } from './deps.helpers.ts';
import { serve, within } from './helpers.ts';

const around = (name: string, inside: Dependency<string>): Dependency<string> =>
  depends({ inside }, ({ inside }) => `${name}(${inside})`);

describe('an override', () => {
  test('an override replaces a dependency wherever it is declared, in its app alone; the last one counts', async () => {
    let calls = 0;
    const database = depends({ url: query('database') }, ({ url }) => {
      calls += 1;
      return url;
    });
    const deps = { database, inner: around('inner', database) };
    await using server = await serve([get('/', deps, (values) => values)]);
    await using other = await serve([get('/', deps, (values) => values)]);
    server.app.override(database, named('fake'));
    assert.deepEqual(await answer(server), [200, { database: 'fake', inner: 'inner(fake)' }]);
    assert.equal(calls, 0);
    assert.deepEqual(await answer(other, '/?database=real'), [
      200,
      { database: 'real', inner: 'inner(real)' },
    ]);
    server.app.override(database, named('newer'));
    assert.deepEqual(await answer(server), [200, { database: 'newer', inner: 'inner(newer)' }]);
  });

  test('undone, an override replaces nothing any more, and leaves the others alone', async () => {
    const [database, mailer] = [named('database'), named('mailer')];
    const deps = { database, mailer, inner: around('inner', database) };
    await using server = await serve([get('/', deps, (values) => values)]);
    const undo = server.app.override(database, named('fake'));
    server.app.override(mailer, named('fake'));
    assert.equal(undo(), undefined);
    assert.deepEqual(await answer(server), [
      200,
      { database: 'database', mailer: 'fake', inner: 'inner(database)' },
    ]);
  });

  test('inside its replacement a dependency means the original, also further in: it can be wrapped', async () => {
    const user = named('user');
    const deps = { user, inner: around('inner', user) };
    await using server = await serve([get('/', deps, (values) => values)]);
    server.app.override(user, around('outer', around('wrapper', user)));
    assert.deepEqual(await answer(server), [
      200,
      { user: 'outer(wrapper(user))', inner: 'inner(outer(wrapper(user)))' },
    ]);
  });

  for (const [when, pause] of Object.entries({
    'at once': () => {},
    later: () => new Promise(setImmediate),
  })) {
    test(`of what depends on an overridden dependency there is one inside its replacement, one outside, ${when}`, async () => {
      const log: string[] = [];
      const slow = depends(pause);
      const a = named('a');
      const x = depends({ slow, a }, async function* ({ a }) {
        log.push(`enter x(${a})`);
        yield `x(${a})`;
        log.push(`exit x(${a})`);
      });
      const direct = around('R', x);
      for (const deps of [
        { a, x, direct },
        { direct, x, a },
        { again: around('again', x), x, a, direct },
      ]) {
        await using server = await serve([get('/', deps, ({ a, x, direct }) => [a, x, direct])]);
        server.app.override(a, direct);
        assert.deepEqual(await answer(server), [200, ['R(x(a))', 'x(R(x(a)))', 'R(x(a))']]);
        await server.app.idle();
        assert.deepEqual(log.splice(0), ['enter x(a)', 'enter x(R(x(a)))', 'exit x(R(x(a)))', 'exit x(a)']);
      }
    });
  }

  test('a dependency that reaches nothing replaced is resolved once, inside a replacement and outside', async () => {
    const log: string[] = [];
    const counted = (name: string, deps: Dependencies): Dependency<string> =>
      depends(deps, () => (log.push(name), name));
    const [user, mailer] = [named('user'), named('mailer')];
    const plain = counted('plain', {
      q: query(
        'q',
        schema(() => {
          log.push('schema');
          return { value: '' };
        }),
      ),
    });
    const session = counted('session', { user, plain }); // under another replacement it has the same inputs: it is one
    await using server = await serve([get('/', { plain, user, session, mailer }, (values) => values)]);
    server.app.override(user, counted('fake user', { plain, user }));
    server.app.override(mailer, counted('fake mailer', { mailer, session, plain }));
    assert.equal((await answer(server))[0], 200);
    assert.deepEqual(log, ['schema', 'plain', 'fake user', 'session', 'fake mailer']);
  });

  test(
    'a dependency with 2 ** 30 paths to an overridden one is resolved once, and no slower',
    within,
    async () => {
      let calls = 0;
      const id = path('id');
      let deps: Record<string, Dependency> = { id };
      for (let level = 0; level < 30; level += 1) {
        deps = {
          left: depends(deps, () => void (calls += 1)),
          right: depends(deps, () => void (calls += 1)),
        };
      }
      await using server = await serve([get('/:id', deps, () => 'resolved')]);
      server.app.override(id, around('fake', id));
      assert.deepEqual(await answer(server, '/1'), [200, 'resolved']);
      assert.equal(calls, 60);
    },
  );

  test('a replacement that comes after another one wraps the original, not the one before', async () => {
    const name = depends(() => 'original');
    await using server = await serve([get('/', { name }, ({ name }) => name)]);
    server.app.override(
      name,
      depends(() => 'first'),
    );
    server.app.override(
      name,
      depends({ name }, ({ name }) => `second(${name})`),
    );
    assert.deepEqual(await answer(server), [200, 'second(original)']);
  });

  test('an override that is undone takes no other with it, and the one before it counts again', async () => {
    const name = named('original');
    await using server = await serve([get('/', { name }, ({ name }) => name)]);
    const undo = ['first', 'second', 'third'].map((each) => server.app.override(name, named(each)));
    for (const [at, left] of [
      [1, 'third'],
      [2, 'first'],
      [1, 'first'],
      [0, 'original'],
    ] as const) {
      undo[at]?.();
      assert.deepEqual(await answer(server), [200, left]);
    }
  });

  test('two overrides that refer to each other end, whichever is declared first', async () => {
    const [a, b] = [named('a'), named('b')];
    for (const deps of [
      { a, b },
      { b, a },
    ]) {
      await using wrapped = await serve([get('/', deps, (values) => values)]);
      wrapped.app.override(a, around('not a', b));
      wrapped.app.override(b, around('not b', a));
      assert.deepEqual(await answer(wrapped), [200, { a: 'not a(not b(a))', b: 'not b(not a(b))' }]);
    }
    await using swapped = await serve([get('/', { a, b }, (values) => values)]);
    swapped.app.override(a, b);
    swapped.app.override(b, a);
    assert.deepEqual(await answer(swapped), [200, { a: 'b', b: 'a' }]);
  });

  test('an override is one step: of a → b and b → c, a gives b', async () => {
    const [a, b, c] = [named('a'), named('b'), named('c')];
    await using server = await serve([get('/', { a, b, c }, (values) => values)]);
    server.app.override(a, b);
    server.app.override(b, c);
    assert.deepEqual(await answer(server), [200, { a: 'b', b: 'c', c: 'c' }]);
  });

  test('a replacement is resolved once per request, and its generator is unwound', async () => {
    const log: string[] = [];
    const original = named('original');
    const fake = syncGenerator('fake', log);
    const deps = { original, inner: around('inner', original), fake };
    await using server = await serve([get('/', deps, (values) => values)]);
    server.app.override(original, fake);
    assert.deepEqual(await answer(server), [200, { original: 'fake', inner: 'inner(fake)', fake: 'fake' }]);
    await server.app.idle();
    assert.deepEqual(log, ['enter fake', 'exit fake']);
  });

  test('what a replacement throws is the answer, and the dependency is replaced in the next request, too', async () => {
    const guard = named('open');
    await using server = await serve([get('/', { guard }, ({ guard }) => guard)]);
    server.app.override(
      guard,
      depends({ q: query('q') }, ({ q }) => {
        throw new HTTPError(403, q);
      }),
    );
    for (const round of [1, 2]) {
      assert.deepEqual(await answer(server, `/?q=${round}`), [403, { detail: `${round}` }]);
    }
    assert.deepEqual(await answer(server), rejection(missing('query', 'q')));
  });

  test('built-in dependencies can be replaced', async () => {
    const [name, id, token, order] = [query('name'), path('id'), header('token'), body(strings('item'))];
    const deps = { name, id, token, order, request, tasks: backgroundTasks };
    await using server = await serve([
      post('/:id', deps, ({ request, tasks, ...values }) => {
        tasks.addTask(() => assert.fail('a queue that nobody runs'));
        return { ...values, method: request.method };
      }),
    ]);
    const { app } = server;
    const queue = new BackgroundTasks();
    app.override(name, named('name'));
    app.override(id, named('id'));
    app.override(token, named('token'));
    app.override(
      order,
      depends(() => ({ item: 'tea' })),
    );
    app.override(
      request,
      depends(() => Object.assign(new IncomingMessage(new Socket()), { method: 'FAKE' })),
    );
    app.override(
      backgroundTasks,
      depends(() => queue),
    );
    assert.deepEqual(await answer(server, '/1', { method: 'POST' }), [
      200,
      { name: 'name', id: 'id', token: 'token', order: { item: 'tea' }, method: 'FAKE' },
    ]);
    await app.idle();
    assert.equal(queue.unfinished.length, 1);
  });

  test('a replacement with a path() that the route lacks is 422', async () => {
    const item = named('item');
    await using server = await serve([get('/', { item }, ({ item }) => item)]);
    server.app.override(item, path('id'));
    assert.deepEqual(await answer(server), rejection(missing('path', 'id')));
  });
});

/** Mistakes of the app's author, and inputs that look like mistakes and are none, get a clear answer. */
import assert from 'node:assert/strict';
import { Readable } from 'node:stream';
import { describe } from 'node:test';
import vm from 'node:vm';
import {
  BackgroundTasks,
  backgroundTasks,
  body,
  createApp,
  depends,
  get,
  HTTPError,
  header,
  post,
  query,
  route,
  type StandardSchema,
  strings,
  type TaskInfo,
} from '../server.ts';
import { answerOf, anything, internal, schema, sent } from './deps.helpers.ts';
import { gate, stderr } from './helpers.ts';
import { ask, fence, Journal, serve, test } from './server.helpers.ts';

describe('a returned object of which JSON would make {}', () => {
  const values: Record<string, [make: () => unknown, named: RegExp]> = {
    'a Node stream': [
      () => Readable.from(['a']),
      /got a value of Readable\. Put a web stream into a Response/,
    ],
    'a stream of the first kind': [
      () => ({ pipe() {} }),
      /got a value of Object\. Put a web stream into a Response/,
    ],
    'a web stream': [
      () => new Response('a').body,
      /got a value of ReadableStream\. Put a web stream into a Response/,
    ],
    'an async generator': [
      () => (async function* () {})(),
      /Expected a JSON value or a Response, got .*\. Put a web stream into a Response/,
    ],
    'an async iterable': [
      () => ({ async *[Symbol.asyncIterator]() {} }),
      /got a value of Object\. Put a web stream into a Response/,
    ],
    'a Map': [() => new Map([['a', 1]]), /got a value of Map\. Make a plain object or an array of it/],
    'a Set': [() => new Set([1]), /got a value of Set\. Make a plain object or an array of it/],
    'a generator': [() => (function* () {})(), /Make a plain object or an array of it/],
    'a Map of another realm': [() => vm.runInNewContext('new Map()'), /got a value of Map/],
    URLSearchParams: [() => new URLSearchParams('a=1'), /got a value of URLSearchParams/],
    'an Error': [() => new Error('boom'), /got a value of Error\. Make a plain object/],
    'a Blob': [() => new Blob(['a']), /got a value of Blob\. Put it into a Response/],
    'an ArrayBuffer': [() => new ArrayBuffer(8), /got a value of ArrayBuffer\. Put it into a Response/],
    'a Uint8Array': [() => new Uint8Array(8), /got a value of Uint8Array\. Put it into a Response/],
  };
  for (const [title, [make, named]] of Object.entries(values)) {
    test(`${title} is a clear error, and the queue is discarded`, async (t) => {
      const lines = stderr(t);
      const journal = new Journal();
      await using server = await serve([
        get('/', { tasks: backgroundTasks }, ({ tasks }) => {
          tasks.addTask(journal.write, 'ran');
          return make();
        }),
      ]);
      const { status, body } = await ask(server.url);
      assert.deepEqual([status, JSON.parse(body)], internal);
      await fence(server.url);
      assert.equal(lines.length, 1);
      assert.match(lines[0] ?? '', named);
      assert.deepEqual(journal.entries, []);
    });
  }

  test('an object that says itself what its JSON is, and an empty one, are sent', async () => {
    const values = [
      new Date(0),
      Object.assign(new Map(), { toJSON: () => 'own' }),
      {},
      Object.create(null),
      new (class A {})(),
      { pipe: 'of steel' },
    ];
    const left = [...values];
    await using server = await serve([get('/', () => left.shift())]);
    for (const value of values) {
      assert.equal((await ask(server.url)).body, JSON.stringify(value));
    }
  });
});

describe('a status that has no phrase', () => {
  test('has a detail all the same', async () => {
    for (const status of [299, 499, 599]) {
      const fail = (): never => {
        throw new HTTPError(status);
      };
      assert.deepEqual(await answerOf([get('/', fail)]), [status, { detail: `Status ${status}` }]);
      assert.equal(new HTTPError(status).message, `Status ${status}`);
    }
    assert.deepEqual(new HTTPError(499, 'gone').detail, 'gone');
  });
});

describe('no query is shown', () => {
  test('on stderr, in the names of tasks, in what is dropped, or in what is unfinished', async (t) => {
    const lines = stderr(t);
    const names: string[] = [];
    const held = gate();
    const reached = gate();
    const started = gate();
    await using server = await serve(
      [
        get('/throws', () => {
          throw new Error('boom');
        }),
        get(
          '/broken',
          () => new Response(new ReadableStream({ pull: () => Promise.reject(new Error('broken')) })),
        ),
        get('/tasks', { tasks: backgroundTasks }, ({ tasks }) => {
          tasks.addTask(() => Promise.reject(new Error('failed')));
          tasks.addTask(() => {});
          names.push(...tasks.unfinished.map(({ name }) => name));
        }),
        get('/held', () => {
          reached.open();
          return held;
        }),
        get('/task', { tasks: backgroundTasks }, ({ tasks }) => {
          tasks.addTask(() => {
            started.open();
            return held;
          });
        }),
      ],
      { afterFailure: 'stop', drainTimeoutMs: 0 },
    );
    await ask(`${server.url}/throws?secret=1`);
    await ask(`${server.url}/broken?secret=1`).catch(() => {});
    await ask(`${server.url}/tasks?secret=1`);
    await ask(`${server.url}/task?secret=1`);
    const cut = ask(`${server.url}/held?secret=1`).catch(() => {});
    await reached;
    await started;
    const { unfinished } = await server.app.close();
    await cut;
    held.open();
    await server.app.idle();
    assert.deepEqual(unfinished.toSorted(), ['GET /held', 'task 1 of GET /task']);
    assert.deepEqual(names, ['task 1 of GET /tasks', 'task 2 of GET /tasks']);
    for (const shown of [
      'GET /throws failed:',
      'GET /broken broke off:',
      'task 1 of GET /tasks',
      'Dropped task task 2 of GET /tasks',
      'Unfinished at the end of drainTimeoutMs: GET /held',
    ]) {
      assert.ok(
        lines.some((line) => line.includes(shown)),
        `${shown} in ${lines.join('\n')}`,
      );
    }
    assert.doesNotMatch(lines.join('\n'), /secret/);
  });

  test('where a task is added too late, or is refused', async () => {
    await using server = await serve([
      get('/', { tasks: backgroundTasks }, ({ tasks }) => {
        late = tasks;
      }),
    ]);
    let late = new BackgroundTasks();
    await ask(`${server.url}/?secret=1`);
    await server.app.idle();
    assert.throws(
      () => late.addTask(() => {}),
      (error: Error) => /task 1 of GET \//.test(error.message) && !error.message.includes('secret'),
    );
  });
});

describe('a task whose body never ran', () => {
  const tasks: Record<string, () => unknown> = {
    'of a generator function': function* work() {},
    'of an async generator function': async function* work() {},
    'of a function that returns a generator': function work() {
      return (function* () {})();
    },
  };
  for (const [title, task] of Object.entries(tasks)) {
    test(`${title} fails with an error that says so, and the next one runs`, async () => {
      const failed: [unknown, TaskInfo][] = [];
      const journal = new Journal();
      const queue = new BackgroundTasks({ onTaskError: (error, info) => failed.push([error, info]) });
      queue.addTask(task);
      queue.addTask(journal.write, 'the next ran');
      await queue.run();
      assert.equal(failed.length, 1);
      assert.match(
        String(failed[0]?.[0]),
        /TypeError: Expected a task .*, got a generator: its body never ran/,
      );
      assert.equal(failed[0]?.[1].name, 'work');
      assert.deepEqual(journal.entries, ['the next ran']);
    });
  }
});

describe('a method or an option that is wrong', () => {
  test('a method in lower case, or one that is none, is refused', () => {
    for (const method of ['delete', 'Delete', 'REMOVE', '']) {
      assert.throws(
        () => route(method, '/', () => {}),
        /Expected a method such as 'DELETE', in upper case, got '/,
      );
    }
    assert.equal(route('DELETE', '/', () => {}).method, 'DELETE');
  });

  test('an option of undefined is its default', async () => {
    const options = { bodyLimit: undefined, drainTimeoutMs: undefined, stallTimeoutMs: undefined };
    await using server = await serve([post('/', { value: body(anything) }, ({ value }) => value)], options);
    const headers = { 'content-type': 'application/json' };
    assert.equal((await ask(server.url, { method: 'POST', headers }, '[1]')).body, '[1]');
    assert.throws(() => createApp([], { bodyLimit: NaN }), RangeError);
  });
});

describe('a byte order mark', () => {
  const mark = '\uFEFF';
  const route = post('/', { value: body(anything) }, ({ value }) => value);
  const posted = (text: string): ReturnType<typeof answerOf> =>
    answerOf([route], '/', sent(text, 'application/json'));

  test('before JSON is left out', async () => {
    assert.deepEqual(await posted(`${mark}{"a":"책"}`), [200, { a: '책' }]);
    assert.deepEqual(await posted(`${mark} [1]`), [200, [1]]);
  });

  test('within a string is data', async () => {
    assert.deepEqual(await posted(`{"a":"${mark}"}`), [200, { a: mark }]);
  });

  test('counts once, and alone is no JSON', async () => {
    for (const text of [`${mark}${mark}{}`, mark, ` ${mark}{}`]) {
      const [status, answer] = await posted(text);
      assert.equal(status, 422);
      assert.match(JSON.stringify(answer), /"json_invalid"/);
    }
  });
});

type Validated = Awaited<ReturnType<StandardSchema<string>['~standard']['validate']>>;

/** A promise as libraries have their own: it has nothing but `then`. */
function thenable(result: Validated): Promise<Validated> {
  const then: Promise<Validated>['then'] = (...args) => Promise.resolve(result).then(...args);
  return { then } as Promise<Validated>;
}

describe('a schema whose validate gives a promise', () => {
  const anotherRealm = vm.runInNewContext('(result) => Promise.resolve(result)') as typeof thenable;
  const kinds: Record<string, typeof thenable> = {
    'that is a thenable': thenable,
    'of another realm': anotherRealm,
    'of this realm': (result) => Promise.resolve(result),
  };
  for (const [title, promise] of Object.entries(kinds)) {
    const text = schema((value) =>
      promise(
        value === undefined ? { issues: [{ message: 'No text' }] } : { value: `<${JSON.stringify(value)}>` },
      ),
    );
    const route = post(
      '/',
      { parameter: query('q', text), mark: header('x-mark', text), value: body(text) },
      ({ parameter, mark, value }) => [parameter, mark, value],
    );

    test(`${title} is awaited: the handler gets what it gives`, async () => {
      const init = sent('{"a":1}', 'application/json');
      const headers = { ...init.headers, 'x-mark': 'm' };
      assert.deepEqual(await answerOf([route], '/?q=a', { ...init, headers }), [
        200,
        ['<"a">', '<"m">', '<{"a":1}>'],
      ]);
    });

    test(`${title} is awaited: its issues are a 422`, async () => {
      const [status, answer] = await answerOf([route], '/', sent('{"a":1}', 'application/json'));
      assert.equal(status, 422);
      const { detail } = answer as { detail: { loc: unknown; msg: unknown }[] };
      assert.deepEqual(
        detail.map(({ loc, msg }) => [loc, msg]),
        [
          [['query', 'q'], 'No text'],
          [['header', 'x-mark'], 'No text'],
        ],
      );
    });
  }

  test('that rejects is a 500', async (t) => {
    const lines = stderr(t);
    const failing = schema<string>(() => Promise.reject(new Error('the database is away')));
    const route = get('/', { q: query('q', failing) }, ({ q }) => q);
    assert.deepEqual(await answerOf([route], '/?q=a'), internal);
    assert.match(lines.join('\n'), /the database is away/);
  });
});

describe('what a dependency gives', () => {
  test('where it is a thenable or a promise of another realm, is awaited', async () => {
    const anotherRealm = vm.runInNewContext('(value) => Promise.resolve(value)') as (
      value: string,
    ) => Promise<string>;
    const first = depends(() => thenable({ value: 'a' }));
    const second = depends(() => anotherRealm('b'));
    const third = depends({ second }, ({ second }) => `${second}c`);
    assert.deepEqual(await answerOf([get('/', { first, second, third }, (values) => values)]), [
      200,
      { first: { value: 'a' }, second: 'b', third: 'bc' },
    ]);
  });
});

describe('a dependency tells', () => {
  const order = strings('item');
  const told: Record<string, [dependency: object, expected: object]> = {
    'that it is a required parameter': [query('q'), { source: 'query', name: 'q' }],
    'its fallback': [query('q', 'x'), { source: 'query', name: 'q', fallback: 'x' }],
    'an empty fallback': [query('q', ''), { source: 'query', name: 'q', fallback: '' }],
    'that it is optional': [header('X-Mark', null), { source: 'header', name: 'X-Mark', fallback: null }],
    'its schema': [query('q', anything), { source: 'query', name: 'q', schema: anything }],
    'the schema of the body': [body(order), { source: 'body', schema: order }],
    'that the tasks are its source': [backgroundTasks, { source: 'tasks' }],
  };
  for (const [title, [dependency, expected]] of Object.entries(told)) {
    test(title, () => {
      const { inputs, read, ...rest } = dependency as { inputs: unknown; read: unknown };
      assert.deepEqual(rest, expected);
      assert.deepEqual([inputs, typeof read], [[], 'function']);
    });
  }

  test('what it needs, and a route what its handler gets, in the order declared', () => {
    const q = query('q');
    const outer = depends({ q, tasks: backgroundTasks }, () => 1);
    assert.equal(outer.source, 'call');
    assert.deepEqual(outer.inputs, [
      ['q', q],
      ['tasks', backgroundTasks],
    ]);
    assert.deepEqual(get('/', { outer }, () => 1).inputs, [['outer', outer]]);
    assert.equal(outer.name, undefined);
  });
});

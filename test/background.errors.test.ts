/** An error in a task stays inside: who is told, and of which task. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { inspect } from 'node:util';
import { BackgroundTasks } from '../background.ts';
import { boom, names, otherQueues, queue, request } from './background.helpers.ts';
import { gate, stderr } from './helpers.ts';

const refuse = (): never => {
  throw new Error('not even this');
};

const failures: Record<string, () => unknown> = {
  'a throw': () => {
    throw boom();
  },
  'a rejection': async () => {
    await new Promise(setImmediate);
    throw boom();
  },
  'an immediate rejection': async () => {
    throw boom();
  },
  'a thenable that rejects': () => ({ then: (_: unknown, reject: (error: Error) => void) => reject(boom()) }),
  'a thenable whose `then` throws': () => ({
    then: () => {
      throw boom();
    },
  }),
  'a `then` that cannot be read': () => ({
    get then() {
      throw boom();
    },
  }),
  'a thrown null': () => {
    throw null;
  },
  'a thrown undefined': () => {
    throw undefined;
  },
  'a rejection with undefined': () => Promise.reject(),
  'a thrown string': () => {
    throw '%s %o %';
  },
  'a thrown object without prototype': () => {
    throw Object.create(null);
  },
  'a thrown object that cannot be inspected': () => {
    throw { [inspect.custom]: refuse };
  },
  'a thrown object without a string': () => {
    throw { toString: refuse, [Symbol.toPrimitive]: refuse };
  },
  'a thrown object whose getters throw': () => {
    throw {
      get [Symbol.toStringTag]() {
        return refuse();
      },
    };
  },
  'an error whose stack cannot be read': () => {
    throw Object.defineProperties(boom(), {
      stack: { get: refuse },
      message: { get: refuse },
      name: { get: refuse },
    });
  },
  'a thrown Proxy that refuses everything': () => {
    throw new Proxy({}, new Proxy({}, { get: refuse }));
  },
};

describe('an error stays inside', () => {
  for (const [kind, fail] of Object.entries(failures)) {
    test(`after ${kind} in the first, middle or last task, the others run and stderr names it once`, async (t) => {
      const lines = stderr(t);
      for (const failing of [0, 1, 2]) {
        const log: number[] = [];
        const named = Object.defineProperty(() => fail(), 'name', { value: `failing ${failing}` });
        await queue([0, 1, 2].map((index) => (index === failing ? named : () => log.push(index)))).run();
        assert.deepEqual(
          log,
          [0, 1, 2].filter((index) => index !== failing),
        );
        const [line, ...more] = lines.splice(0);
        assert.deepEqual(more, []);
        assert.match(line ?? '', new RegExp(`failing ${failing}`));
      }
    });
  }
});

describe('the report', () => {
  test('the report shows the stack of an error, or the value where it is none', async (t) => {
    const lines = stderr(t);
    const error = boom();
    await queue([
      () => {
        throw error;
      },
      async () => {
        throw error;
      },
      () => {
        throw 'a string';
      },
    ]).run();
    assert.equal(lines.length, 3);
    for (const line of lines.slice(0, 2)) {
      assert.ok(line.includes(error.stack ?? 'no stack'), line);
    }
    assert.match(lines[2] ?? '', /a string/);
  });
});

describe('afterFailure', () => {
  test("afterFailure 'stop' drops the rest, also what the failing task added, and reports each", async (t) => {
    const lines = stderr(t);
    const log: string[] = [];
    const tasks = new BackgroundTasks({ afterFailure: 'stop' });
    tasks.addTask(() => log.push('before'));
    tasks.addTask(async function failing() {
      tasks.addTask(function added() {
        log.push('added');
      });
      throw boom();
    });
    tasks.addTask(function second() {
      log.push('second');
    });
    tasks.addTask(function third() {
      log.push('third');
    });
    await tasks.run();
    assert.deepEqual(log, ['before']);
    const reported = lines.map((line) => /failing|second|third|added/.exec(line)?.[0]);
    assert.deepEqual(reported, ['failing', 'second', 'third', 'added']);
    assert.throws(() => tasks.addTask(() => {}), /were discarded: a task failed/);
  });

  test("afterFailure 'stop' changes nothing where no task fails, and drops nothing after the last", async (t) => {
    const lines = stderr(t);
    const log: string[] = [];
    const last = (): never => {
      throw boom();
    };
    await queue([() => log.push('first'), async () => log.push('second'), last], {
      afterFailure: 'stop',
    }).run();
    assert.deepEqual(log, ['first', 'second']);
    assert.equal(lines.length, 1);
  });
});

describe('onTaskError', () => {
  test('onTaskError replaces the report; it is awaited, and learns the error and the task', async (t) => {
    const lines = stderr(t);
    const log: unknown[] = [];
    const held = gate();
    const called = gate();
    const req = request('POST', '/items');
    const onTaskError = async (...args: unknown[]): Promise<void> => {
      log.push(args);
      called.open();
      await held;
    };
    const tasks = new BackgroundTasks({ request: req, onTaskError });
    tasks.addTask(() => {});
    tasks.addTask(function failing() {
      throw null;
    });
    tasks.addTask(() => log.push('next'));
    const running = tasks.run();
    await called;
    await otherQueues();
    assert.equal(log.length, 1, 'the next task waits for it');
    held.open();
    await running;
    assert.deepEqual(log, [[null, { name: 'failing', index: 1, request: req }], 'next']);
    assert.deepEqual(lines, []);
  });

  for (const [kind, onTaskError] of Object.entries({
    'a throw': (): never => {
      throw new Error('the reporter failed too');
    },
    'a rejection': async (): Promise<never> => {
      throw new Error('the reporter failed too');
    },
  })) {
    test(`${kind} of onTaskError puts both errors on stderr, and the rest still runs`, async (t) => {
      const lines = stderr(t);
      const log: string[] = [];
      await queue(
        [
          function failing() {
            throw boom();
          },
          () => log.push('next'),
        ],
        { onTaskError },
      ).run();
      assert.deepEqual(log, ['next']);
      const text = lines.join('\n');
      const parts = [/failing/, /Error: boom\n +at /, /Error: the reporter failed too\n +at /];
      for (const part of parts) {
        assert.match(text, part);
      }
      assert.equal(text.split('Error: boom').length, 2, 'once');
    });
  }

  test('an onTaskError that throws what cannot be printed is contained too', async (t) => {
    const lines = stderr(t);
    const log: string[] = [];
    const onTaskError = (): never => {
      throw { [inspect.custom]: refuse };
    };
    await queue(
      [
        function failing() {
          throw boom();
        },
        () => log.push('next'),
      ],
      { onTaskError },
    ).run();
    assert.deepEqual(log, ['next']);
    assert.deepEqual(lines, [
      'Background task failed (failing), and so did onTaskError: (it cannot be printed)',
    ]);
  });
});

describe('the name of a task', () => {
  test('a task is named after its function, else after its place and its request, without the query string', () => {
    const tasks = new BackgroundTasks({ request: request('POST', '/items?token=secret') });
    tasks.addTask(function writeLog() {});
    tasks.addTask(() => {});
    assert.deepEqual(names(tasks.unfinished), ['writeLog', 'task 2 of POST /items']);
    assert.deepEqual(names(queue([() => {}, () => {}].map((task) => task.bind(null))).unfinished), [
      'bound ',
      'bound ',
    ]);
    const alone = new BackgroundTasks();
    alone.addTask(() => {});
    alone.addTask(() => {});
    assert.deepEqual(names(alone.unfinished), ['task 1', 'task 2']);
  });

  for (const [kind, disguise] of Object.entries<(fn: () => never) => () => unknown>({
    'that throws': (fn) => Object.defineProperty(fn, 'name', { get: refuse }),
    'that is a symbol': (fn) => Object.defineProperty(fn, 'name', { value: Symbol('name') }),
    'of a revoked Proxy': (fn) => {
      const { proxy, revoke } = Proxy.revocable(fn, {});
      setImmediate(revoke);
      return proxy;
    },
  })) {
    test(`a task with a name ${kind} is named after its place, and its error stays inside`, async (t) => {
      const lines = stderr(t);
      const log: string[] = [];
      const tasks = queue([
        disguise(() => {
          throw boom();
        }),
        () => log.push('next'),
      ]);
      await new Promise(setImmediate); // the Proxy is revoked
      await tasks.run();
      assert.deepEqual(log, ['next']);
      assert.equal(lines.length, 1);
      assert.match(
        lines[0] ?? '',
        /^Background task failed \(task 1\): (Error: boom|TypeError: Cannot perform)/,
      );
    });
  }
});

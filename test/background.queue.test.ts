/** `BackgroundTasks`: the order of tasks, and when it is too late to add one. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { BackgroundTasks } from '../background.ts';
import { busy, names, otherQueues, queue } from './background.helpers.ts';
import { gate } from './helpers.ts';

describe('tasks run in order, one at a time', () => {
  test('tasks run in the order added, synchronous or not, each with its arguments', async () => {
    const log: unknown[] = [];
    const tasks = new BackgroundTasks();
    tasks.addTask((text: string) => log.push(text), 'sync');
    tasks.addTask(
      async (to: string, { subject }: { subject: string }) => {
        await new Promise(setImmediate);
        log.push([to, subject]);
      },
      'a@example.com',
      { subject: 'hello' },
    );
    tasks.addTask(async () => log.push('resolved'));
    tasks.addTask(() => new Promise(setImmediate).then(() => log.push('a promise')));
    tasks.addTask(() => log.push('last'));
    assert.deepEqual(log, [], 'addTask() starts nothing');
    assert.equal(await tasks.run(), undefined);
    assert.deepEqual(log, ['sync', ['a@example.com', 'hello'], 'resolved', 'a promise', 'last']);
  });

  test('run() starts no task before it returns, and a task may call it: the promise is the same', async () => {
    await queue([() => {}]).run(); // so that the next queue need not wait for a turn of the event loop
    const log: string[] = [];
    let again: Promise<void> | undefined;
    const tasks = queue([
      () => {
        if (log.push('first') === 1) {
          again = tasks.run();
        }
      },
      () => log.push('second'),
    ]);
    const running = tasks.run();
    assert.deepEqual(log, []);
    await running;
    assert.deepEqual([log, again === running], [['first', 'second'], true]);
  });

  for (const [kind, wrap] of Object.entries<(held: Promise<void>) => unknown>({
    'an async task': (held) => held,
    'a thenable object': (held) => ({ then: (done: () => void) => void held.then(done) }),
    'a thenable function': (held) =>
      Object.assign(() => {}, { then: (done: () => void) => void held.then(done) }),
  })) {
    test(`one at a time: the next task of a queue waits for ${kind}, other queues do not`, async () => {
      const log: string[] = [];
      const held = gate();
      const started = gate();
      const running = queue([
        () => {
          started.open();
          return wrap(held);
        },
        () => log.push('second'),
      ]).run();
      await started;
      await otherQueues();
      assert.deepEqual(log, []);
      held.open();
      await running;
      assert.deepEqual(log, ['second']);
    });
  }

  test('run() twice is the same promise, and runs no task twice, also after the end', async () => {
    const log: string[] = [];
    const tasks = queue([async () => log.push('first'), () => log.push('second')]);
    const running = tasks.run();
    assert.equal(tasks.run(), running);
    await running;
    assert.equal(tasks.run(), running);
    await otherQueues();
    assert.deepEqual(log, ['first', 'second']);
  });

  test('a task that a running task adds joins the end of the same queue, also when the last one adds it', async () => {
    const log: string[] = [];
    const tasks = new BackgroundTasks();
    const write =
      (text: string, ...next: string[]) =>
      async (): Promise<void> => {
        log.push(text);
        await new Promise(setImmediate);
        for (const each of next) {
          tasks.addTask(write(each, ...(each === 'fourth' ? ['fifth'] : [])));
        }
      };
    tasks.addTask(write('first', 'third', 'fourth'));
    tasks.addTask(write('second'));
    await tasks.run();
    assert.deepEqual(log, ['first', 'second', 'third', 'fourth', 'fifth']);
  });
});

describe('what cannot be added', () => {
  test('adding after the queue has finished throws, and says which task came too late', async () => {
    for (const tasks of [queue([]), queue([() => {}])]) {
      await tasks.run();
      assert.throws(() => tasks.addTask(function late() {}), {
        name: 'Error',
        message: /\blate\b.*have finished/,
      });
      assert.deepEqual(tasks.unfinished, []);
    }
  });

  test('adding after discard() throws, and names the reason', () => {
    const tasks = queue([]);
    tasks.discard('the server has stopped');
    assert.throws(() => tasks.addTask(function late() {}), {
      name: 'Error',
      message: /\blate\b.*were discarded: the server has stopped/,
    });
    assert.deepEqual(tasks.unfinished, []);
  });

  test('what is no function is refused at once, with what to pass instead', () => {
    const tasks = new BackgroundTasks();
    const wrong: [unknown, string][] = [
      [42, 'number'],
      [undefined, 'undefined'],
      [null, 'object'],
      [Promise.resolve(), 'object'],
      ['task', 'string'],
    ];
    for (const [value, type] of wrong) {
      const message = `Expected a function, got ${type}. Pass it uncalled.`;
      assert.throws(() => tasks.addTask(value as never), { name: 'TypeError', message });
    }
    assert.deepEqual(tasks.unfinished, []);
  });
});

describe('what has not finished', () => {
  test('unfinished is what runs or has not started; discard() leaves what runs alone, and starts no other', async () => {
    const log: string[] = [];
    const held = gate();
    const started = gate();
    const tasks = new BackgroundTasks();
    tasks.addTask(function first() {});
    tasks.addTask(async function second() {
      started.open();
      await held;
      log.push('second');
    });
    tasks.addTask(function third() {
      log.push('third');
    });
    assert.deepEqual(names(tasks.unfinished), ['first', 'second', 'third']);
    const running = tasks.run();
    await started;
    assert.deepEqual(names(tasks.unfinished), ['second', 'third']);
    assert.deepEqual(names(tasks.discard('a reason')), ['third']);
    assert.deepEqual(tasks.discard('another'), [], 'nothing is dropped twice');
    held.open();
    await running;
    assert.deepEqual(log, ['second']);
  });

  test('a queue that was discarded runs nothing; one that has finished has nothing to discard', async () => {
    const log: string[] = [];
    const discarded = queue([() => log.push('discarded')]);
    assert.equal(discarded.discard('the handler threw').length, 1);
    await discarded.run();
    const finished = queue([() => log.push('finished')]);
    await finished.run();
    assert.deepEqual(finished.discard('too late'), []);
    assert.deepEqual(log, ['finished']);
  });

  test('a queue that waits for its turn when it is discarded starts nothing any more', async () => {
    const log: string[] = [];
    busy(11); // no time is left in the slice: the queue has to wait
    const tasks = queue([() => log.push('started')]);
    const running = tasks.run();
    assert.equal(tasks.discard('the server has stopped').length, 1);
    await running;
    assert.deepEqual(log, []);
  });
});

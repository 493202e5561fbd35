/** The async context that a task runs in, and what the diagnostics channels tell of it. */
import assert from 'node:assert/strict';
import { AsyncLocalStorage } from 'node:async_hooks';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import type { IncomingMessage } from 'node:http';
import { describe, type TestContext, test } from 'node:test';
import { BackgroundTasks, type TaskInfo } from '../background.ts';
import { bareServer, boom, GET, queue, request } from './background.helpers.ts';
import { gate, rawClient, stderr, within } from './helpers.ts';

describe('the async context', () => {
  test('a task runs in the async context of its addTask call, to its end, and so does its onTaskError', async () => {
    const context = new AsyncLocalStorage<string>();
    const log: (string | undefined)[] = [];
    const tasks = new BackgroundTasks({ onTaskError: () => log.push(context.getStore()) });
    const see = async (): Promise<void> => {
      log.push(context.getStore());
      await new Promise(setImmediate);
      log.push(context.getStore());
      if (log.length === 2) {
        tasks.addTask(() => log.push(context.getStore()));
      }
    };
    context.run('one', () => tasks.addTask(see));
    context.run('two', () => tasks.addTask(see));
    context.run('three', () =>
      tasks.addTask(() => {
        throw boom();
      }),
    );
    tasks.addTask(see);
    await context.run('of run()', () => tasks.run());
    assert.deepEqual(log, ['one', 'one', 'two', 'two', 'three', undefined, undefined, 'one']);
  });

  test('a lazy thenable, such as a query builder, runs in the async context of its task', async () => {
    const context = new AsyncLocalStorage<string>();
    const log: (string | undefined)[] = [];
    const tasks = new BackgroundTasks();
    const lazy = {
      then: (done: () => void) => {
        log.push(context.getStore());
        done();
      },
    };
    context.run('one', () => tasks.addTask(() => lazy));
    context.run('two', () => tasks.addTask(async () => lazy));
    await context.run('of run()', () => tasks.run());
    assert.deepEqual(log, ['one', 'two']);
  });

  test(
    'the tasks of a pipelined response keep their context, also if a `finish` listener starts them',
    within,
    async (t) => {
      const context = new AsyncLocalStorage<string>();
      const log: (string | undefined)[] = [];
      const ends: (() => void)[] = [];
      const arrived = gate();
      const finished = gate();
      const { port } = await bareServer(t, (req, res) =>
        context.run(req.url ?? '', () => {
          const tasks = queue([() => log.push(context.getStore()), async () => log.push(context.getStore())]);
          res.once(
            'finish',
            () =>
              void tasks.run().then(() => {
                if (log.length === 4) {
                  finished.open();
                }
              }),
          );
          if (ends.push(() => res.end()) === 2) {
            arrived.open();
          }
        }),
      );
      using client = await rawClient(port);
      client.send(GET.replace('/', '/one') + GET.replace('/', '/two'));
      await arrived;
      for (const end of ends.reverse()) {
        end();
      }
      await finished;
      assert.deepEqual(log.sort(), ['/one', '/one', '/two', '/two']);
    },
  );
});

/** What the four channels say of the tasks of `req`. */
function published(t: TestContext, req: IncomingMessage | undefined): object[] {
  const log: object[] = [];
  for (const event of ['start', 'end', 'error', 'dropped']) {
    const channel = `background-tasks:${event}`;
    const listener = (message: unknown): void => {
      const { request: of, ...rest } = message as TaskInfo;
      if (of === req && 'request' in (message as TaskInfo)) {
        log.push({ event, ...rest });
      }
    };
    subscribe(channel, listener);
    t.after(() => unsubscribe(channel, listener));
  }
  return log;
}

describe('the diagnostics channels', () => {
  test('the channels tell of start, end and error, with name, index, request; an end follows an error', async (t) => {
    stderr(t);
    const req = request('POST', '/items');
    const log = published(t, req);
    const error = boom();
    const tasks = new BackgroundTasks({ request: req });
    tasks.addTask(async function first() {
      await new Promise(setImmediate);
      assert.deepEqual(
        log,
        [{ event: 'start', name: 'first', index: 0 }],
        'the end is not told before it comes',
      );
    });
    tasks.addTask(() => {
      throw error;
    });
    tasks.addTask(function third() {
      throw undefined;
    });
    await tasks.run();
    assert.deepEqual(log, [
      { event: 'start', name: 'first', index: 0 },
      { event: 'end', name: 'first', index: 0 },
      { event: 'start', name: 'task 2 of POST /items', index: 1 },
      { event: 'error', name: 'task 2 of POST /items', index: 1, error },
      { event: 'end', name: 'task 2 of POST /items', index: 1 },
      { event: 'start', name: 'third', index: 2 },
      { event: 'error', name: 'third', index: 2, error: undefined },
      { event: 'end', name: 'third', index: 2 },
    ]);
  });

  test('a queue without a request is told of with `request: undefined`', async (t) => {
    const log = published(t, undefined);
    await queue([function only() {}]).run();
    assert.deepEqual(log, [
      { event: 'start', name: 'only', index: 0 },
      { event: 'end', name: 'only', index: 0 },
    ]);
  });

  test('each dropped task is told of once, with the reason, and not on stderr unless a task failed', async (t) => {
    const lines = stderr(t);
    const req = request('GET', '/');
    const log = published(t, req);
    const tasks = queue([function first() {}, function second() {}], { request: req });
    tasks.discard('the handler threw');
    tasks.discard('again');
    await tasks.run();
    const reason = 'the handler threw';
    assert.deepEqual(log.splice(0), [
      { event: 'dropped', name: 'first', index: 0, reason },
      { event: 'dropped', name: 'second', index: 1, reason },
    ]);
    assert.deepEqual(lines, []);
    const error = boom();
    const failing = (): never => {
      throw error;
    };
    await queue([failing, function second() {}], { request: req, afterFailure: 'stop' }).run();
    assert.deepEqual(log, [
      { event: 'start', name: 'failing', index: 0 },
      { event: 'error', name: 'failing', index: 0, error },
      { event: 'dropped', name: 'second', index: 1, reason: 'a task failed' },
      { event: 'end', name: 'failing', index: 0 },
    ]);
  });
});

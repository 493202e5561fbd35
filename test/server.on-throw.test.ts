/** What becomes of the tasks of a request whose handler or dependency throws: `onThrow`. */
import assert from 'node:assert/strict';
import { describe } from 'node:test';
import {
  type AppOptions,
  backgroundTasks,
  body,
  depends,
  get,
  HTTPError,
  post,
  query,
  type Route,
} from '../server.ts';
import { syncGenerator } from './deps.helpers.ts';
import { gate, rawClient, type Served, stderr } from './helpers.ts';
import { ask, fence, GET, Journal, serve, test } from './server.helpers.ts';

const failures: Record<string, [error: () => unknown, status: number]> = {
  'an HTTPError': [() => new HTTPError(404), 404],
  'an error': [() => new Error('boom'), 500],
  'what is no error': [() => undefined, 500],
};

/** An app whose dependency and handler add a task each, and whose handler then throws. */
function throwing(journal: Journal, error: () => unknown, options: AppOptions): Promise<Served> {
  const resource = syncGenerator('resource', journal.entries);
  const early = depends({ tasks: backgroundTasks }, ({ tasks }) => {
    tasks.addTask(journal.write, 'the task of the dependency');
  });
  const route: Route = get('/', { resource, early, tasks: backgroundTasks }, ({ tasks }) => {
    tasks.addTask(journal.write, 'the task of the handler');
    throw error();
  });
  return serve([route], options);
}

const inOrder = [
  'enter resource',
  'resource caught',
  'the task of the dependency',
  'the task of the handler',
];

describe("with onThrow: 'run'", () => {
  for (const [title, [error, status]] of Object.entries(failures)) {
    test(`after ${title}, generators are unwound with it, and then the queue runs in order`, async (t) => {
      stderr(t);
      const journal = new Journal();
      await using server = await throwing(journal, error, { onThrow: 'run' });
      assert.equal((await ask(server.url)).status, status);
      await server.app.idle();
      assert.deepEqual(
        journal.entries.map((entry) => entry.replace(/caught.*/, 'caught')),
        inOrder,
      );
    });
  }

  test('after an input error the tasks of the dependencies before it run', async () => {
    const journal = new Journal();
    const early = depends({ tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(journal.write, 'the task ran');
    });
    await using server = await serve([get('/', { early, wanted: query('wanted') }, () => 'never')], {
      onThrow: 'run',
    });
    assert.equal((await ask(server.url)).status, 422);
    await journal.until('the task ran');
  });

  test('a clean-up may add a task while the error goes through it', async () => {
    const journal = new Journal();
    const audited = depends({ tasks: backgroundTasks }, function* ({ tasks }) {
      try {
        yield;
      } catch (error) {
        tasks.addTask(journal.write, `audit: ${error}`);
        throw error;
      }
    });
    const fail = (): never => {
      throw new HTTPError(409, 'taken');
    };
    await using server = await serve([get('/', { audited }, fail)], { onThrow: 'run' });
    assert.equal((await ask(server.url)).status, 409);
    await journal.until('audit: HTTPError: taken');
  });

  test('no task starts before the error response is out', async () => {
    const held = gate();
    const journal = new Journal();
    await using server = await serve(
      [
        get('/', { tasks: backgroundTasks }, ({ tasks }) => {
          tasks.addTask(() => held.then(() => journal.write('the task ran')));
          throw new HTTPError(503, 'later');
        }),
      ],
      { onThrow: 'run' },
    );
    using client = await rawClient(server.port);
    client.send(...GET('/', 'connection: close'));
    assert.match(await client.closed, /503.*\{"detail":"later"\}$/s);
    assert.deepEqual(journal.entries, []);
    held.open();
    await journal.until('the task ran');
  });

  test('a failed task is reported, and the tasks after it run, or are dropped by afterFailure', async (t) => {
    const lines = stderr(t);
    for (const afterFailure of ['continue', 'stop'] as const) {
      const journal = new Journal();
      await using server = await serve(
        [
          get('/', { tasks: backgroundTasks }, ({ tasks }) => {
            tasks.addTask(() => Promise.reject(new Error('task failed')));
            tasks.addTask(journal.write, 'the next ran');
            throw new HTTPError(409);
          }),
        ],
        { onThrow: 'run', afterFailure },
      );
      assert.equal((await ask(server.url)).status, 409);
      await server.app.idle();
      assert.deepEqual(journal.entries, afterFailure === 'continue' ? ['the next ran'] : []);
    }
    assert.equal(lines.filter((line) => line.includes('task failed')).length, 2);
  });

  test('a client that leaves in the middle of its body does not stop them', async () => {
    const journal = new Journal();
    const reached = gate();
    const early = depends({ tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(journal.write, 'the task ran');
      reached.open();
    });
    const anything = {
      '~standard': { version: 1, vendor: 'test', validate: (value: unknown) => ({ value }) },
    } as const;
    await using server = await serve([post('/', { early, value: body(anything) }, () => 'never')], {
      onThrow: 'run',
    });
    using client = await rawClient(server.port);
    client.send('POST / HTTP/1.1', 'host: a', 'content-type: application/json', 'content-length: 9', '', '{');
    await reached;
    client.socket.destroy();
    await journal.until('the task ran');
  });
});

describe("with onThrow: 'discard', and without the option", () => {
  const forms: Record<string, AppOptions> = {
    'where it is said': { onThrow: 'discard' },
    'where it is not': {},
    'where it is undefined': { onThrow: undefined },
  };
  for (const [title, options] of Object.entries(forms)) {
    test(`generators are unwound, and no task runs, ${title}`, async () => {
      const journal = new Journal();
      await using server = await throwing(journal, () => new HTTPError(404), options);
      assert.equal((await ask(server.url)).status, 404);
      await server.app.idle();
      await fence(server.url);
      assert.deepEqual(journal.entries, ['enter resource', 'resource caught Not Found']);
    });
  }
});

describe('a task added in a clean-up behind the last task', () => {
  test('is refused with what to do, and the clean-ups after it still run', async (t) => {
    const lines = stderr(t);
    const journal = new Journal();
    const outer = syncGenerator('outer', journal.entries);
    const late = depends({ outer, tasks: backgroundTasks }, function* late({ tasks }) {
      try {
        yield;
        tasks.addTask(function audit() {});
      } finally {
        journal.write('its own finally');
      }
    });
    await using server = await serve([
      get('/', { late, tasks: backgroundTasks }, ({ tasks }) => tasks.addTask(journal.write, 'the task ran')),
    ]);
    assert.equal((await ask(server.url)).status, 200);
    await server.app.idle();
    assert.deepEqual(journal.entries, ['enter outer', 'the task ran', 'its own finally', 'exit outer']);
    assert.equal(lines.length, 1);
    assert.match(
      lines[0] ?? '',
      /^Background task failed \(clean-up of late\): Error: Too late to add audit: /,
    );
    assert.match(lines[0] ?? '', /Add it in the handler, in a dependency before its `yield`, or in a task/);
  });

  test('is refused where the request has no other task', async (t) => {
    const lines = stderr(t);
    const late = depends({ tasks: backgroundTasks }, async function* ({ tasks }) {
      yield;
      tasks.addTask(() => {});
    });
    await using server = await serve([get('/', { late }, () => 'text')]);
    assert.equal((await ask(`${server.url}/?secret=1`)).status, 200);
    await server.app.idle();
    assert.equal(lines.length, 1);
    assert.match(
      lines[0] ?? '',
      /Too late to add task 1 of GET \/: this request's tasks have finished\. Add it/,
    );
  });

  test('is refused with afterFailure: stop, too, and the clean-ups after it still run', async (t) => {
    stderr(t);
    const journal = new Journal();
    const outer = syncGenerator('outer', journal.entries);
    const late = depends({ outer, tasks: backgroundTasks }, function* ({ tasks }) {
      yield;
      tasks.addTask(() => {});
    });
    await using server = await serve([get('/', { late }, () => 'text')], { afterFailure: 'stop' });
    await ask(server.url);
    await server.app.idle();
    assert.deepEqual(journal.entries, ['enter outer', 'exit outer']);
  });
});

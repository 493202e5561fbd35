/** When a client that takes nothing counts as gone: on a clock that the test moves, with a connection in its hands. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import http from 'node:http';
import { Duplex } from 'node:stream';
import { describe, type TestContext } from 'node:test';
import { type AppOptions, backgroundTasks, createApp, get } from '../server.ts';
import { gate } from './helpers.ts';
import { Journal, test } from './server.helpers.ts';

const STALL_MS = 1000;

/** A connection whose other end takes a chunk when `takeOne` is called, and nothing else. */
class Connection extends Duplex {
  readonly #waiting: (() => void)[] = [];
  #whenWritten = (): void => {};

  override _read(): void {}

  override _write(_chunk: unknown, _encoding: string, done: () => void): void {
    this.#waiting.push(done);
    this.#whenWritten();
  }

  /** Resolves when something waits to be taken. */
  async written(): Promise<void> {
    if (this.#waiting.length === 0) {
      await new Promise<void>((resolve) => {
        this.#whenWritten = resolve;
      });
    }
  }

  async takeOne(): Promise<void> {
    await this.written();
    this.#waiting.shift()?.();
  }
}

interface Clock {
  now: number;
  /** Moves on by `ms`, and calls `each` at every millisecond. */
  pass(ms: number, each?: () => void): void;
}

function clockOf(t: TestContext): Clock {
  t.mock.timers.enable({ apis: ['setInterval'] });
  const clock: Clock = {
    now: performance.now(),
    pass(ms, each = () => {}) {
      for (let count = 0; count < ms; count += 1) {
        clock.now += 1;
        t.mock.timers.tick(1);
        each();
      }
    },
  };
  t.mock.method(performance, 'now', () => clock.now);
  return clock;
}

/** A request whose client has taken nothing so far, of a response that comes in many chunks. */
async function begin(log: Journal): Promise<Connection> {
  const begun = gate();
  const app = createApp(
    [
      get('/', { tasks: backgroundTasks }, ({ tasks }) => {
        tasks.addTask(log.write, 'task');
        begun.open();
        return new Response(
          new ReadableStream({ pull: (controller) => controller.enqueue(new Uint8Array(2 ** 16)) }),
        );
      }),
    ],
    { stallTimeoutMs: STALL_MS },
  );
  const server = http.createServer(app.listener);
  const connection = new Connection();
  server.emit('connection', connection);
  connection.push('GET / HTTP/1.1\r\nhost: a\r\n\r\n');
  await begun;
  await connection.written();
  return connection;
}

describe('a client that takes nothing', () => {
  for (const [what, each] of Object.entries<(connection: Connection) => void>({
    'is silent': () => {},
    'sends all the time': (connection) => connection.push('\r\n'),
  })) {
    test(`and ${what} is gone after stallTimeoutMs, at the latest after 1.25 times that`, async (t) => {
      const clock = clockOf(t);
      const log = new Journal();
      const connection = await begin(log);
      const closed = once(connection, 'close');
      clock.pass(STALL_MS - 1, () => each(connection));
      assert.equal(connection.destroyed, false);
      clock.pass(STALL_MS / 4 + 1, () => each(connection));
      assert.equal(connection.destroyed, true);
      await closed;
      await log.until('task');
    });
  }

  for (const takenAt of [1, STALL_MS / 2, STALL_MS - 1]) {
    test(`since it took something after ${takenAt} ms has all of the time again`, async (t) => {
      const clock = clockOf(t);
      const log = new Journal();
      const connection = await begin(log);
      clock.pass(takenAt);
      await connection.takeOne();
      await connection.written();
      clock.pass(STALL_MS - 1);
      assert.equal(connection.destroyed, false);
      clock.pass(STALL_MS / 4 + 1);
      assert.equal(connection.destroyed, true);
      await log.until('task');
    });
  }
});

describe('stallTimeoutMs', () => {
  for (const value of [0, -1, 0.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 31]) {
    test(`of ${value} is refused`, () => {
      assert.throws(() => createApp([], { stallTimeoutMs: value }), {
        name: 'RangeError',
        message: `Expected stallTimeoutMs to be from 1 to 2 ** 31 - 1, got ${value}.`,
      });
    });
  }

  test('that is undefined is as if it were not there', () => {
    const options: AppOptions = {
      stallTimeoutMs: undefined,
      drainTimeoutMs: undefined,
      bodyLimit: undefined,
    };
    assert.equal(createApp([], options).pending, 0);
  });
});

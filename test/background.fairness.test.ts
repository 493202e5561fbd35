/** The event loop has a turn whenever the tasks of all queues together have held it for 10 ms. */
import assert from 'node:assert/strict';
import { describe, type TestContext, test } from 'node:test';
import { busy, queue } from './background.helpers.ts';
import { gate } from './helpers.ts';

/** Counts the turns of the event loop, until the end of the test. */
function turns(t: TestContext): { readonly now: number } {
  const counter = { now: 0 };
  const next = (): void => {
    counter.now += 1;
    immediate = setImmediate(next);
  };
  let immediate = setImmediate(next);
  t.after(() => clearImmediate(immediate));
  return counter;
}

describe('the event loop has its turns', () => {
  for (const [kind, block] of Object.entries<(ms: number) => unknown>({
    synchronous: busy,
    'already-resolved': async (ms) => busy(ms),
  })) {
    test(`an immediate that the first of three tasks (${kind}) sets fires before the third`, async () => {
      const log: string[] = [];
      const first = (): unknown => {
        setImmediate(() => log.push('immediate'));
        return block(11);
      };
      await queue([first, () => block(11), () => log.push('third')]).run();
      assert.deepEqual(log, ['immediate', 'third']);
    });

    test(`short tasks (${kind}) add up: an immediate of the first fires within ten of 1 ms each`, async () => {
      let ran = 0;
      const seen = gate<number>();
      busy(11); // so that the first task begins a slice
      const task = (): unknown => {
        if (ran++ === 0) {
          setImmediate(() => seen.open(ran));
        }
        return block(1);
      };
      await queue(Array(30).fill(task)).run();
      const tasks = await seen;
      assert.ok(tasks <= 10, `${tasks} tasks of 1 ms`);
    });

    test(`thirty queues with tasks of more than 10 ms (${kind}) take thirty turns of the event loop`, async (t) => {
      const turn = turns(t);
      const seen = new Set<number>();
      const queues = Array.from({ length: 30 }, () =>
        queue([
          () => {
            seen.add(turn.now);
            return block(11);
          },
        ]),
      );
      await Promise.all(queues.map((each) => each.run()));
      assert.equal(seen.size, 30);
    });

    test(`thirty queues with short tasks (${kind}) share the 10 ms of a turn`, async (t) => {
      const turn = turns(t);
      const seen = new Map<number, number>();
      const task = (): unknown => {
        seen.set(turn.now, (seen.get(turn.now) ?? 0) + 1);
        return block(2);
      };
      await Promise.all(Array.from({ length: 30 }, () => queue([task]).run()));
      for (const [number, tasks] of seen) {
        assert.ok(tasks <= 5, `${tasks} tasks of 2 ms in turn ${number}`);
      }
      assert.ok(seen.size < 30, 'and no queue waits for a turn of its own');
    });

    test(`queues with tasks of more than 10 ms (${kind}) go on first come, first served`, async () => {
      const log: string[] = [];
      busy(11); // so that the first queue waits like the others
      const queues = ['a', 'b', 'c', 'd', 'e'].map((name) =>
        queue(
          [1, 2, 3].map((round) => () => {
            log.push(`${name}${round}`);
            return block(11);
          }),
        ),
      );
      await Promise.all(queues.map((each) => each.run()));
      assert.equal(log.join(' '), 'a1 b1 c1 d1 e1 a2 b2 c2 d2 e2 a3 b3 c3 d3 e3');
    });
  }
});

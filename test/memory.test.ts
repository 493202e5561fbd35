/** What has finished is let go of while the tasks of a request run: looked at after a full collection. */
import assert from 'node:assert/strict';
import { describe } from 'node:test';
import { child } from './helpers.ts';
import { test } from './server.helpers.ts';

interface Seen {
  readonly made: string[];
  readonly left: string[];
  readonly pending: number;
}

async function seen(target: string): Promise<Seen> {
  await using process = child(['--expose-gc', 'test/memory.app.ts', target]);
  const { code } = await process.exited;
  assert.equal(code, 0, process.stderr);
  return JSON.parse(process.stdout) as Seen;
}

describe('while a task or a clean-up is held, nothing is kept', () => {
  const kinds = {
    '/arguments': 'of the tasks before it: arguments, results, errors and contexts',
    '/values': 'of the answered request: its body, its values and its answer',
    '/clean-ups': 'of the last task, and of the clean-ups before the one that is held',
    '/responses': 'of a Response that was sent',
    '/errors': 'of an error that was sent, and of the values before it',
  };
  for (const [target, what] of Object.entries(kinds)) {
    test(what, async () => {
      const { made, left, pending } = await seen(target);
      assert.equal(pending, 1);
      assert.ok(made.length > 0);
      assert.deepEqual(left, []);
    });
  }
});

/** Many overrides that wrap one another: the work grows with their number, and not with the paths through them. */
import assert from 'node:assert/strict';
import { describe } from 'node:test';
import { type Dependencies, type Dependency, depends, get } from '../server.ts';
import { answer } from './deps.helpers.ts';
import { serve } from './helpers.ts';
import { test } from './server.helpers.ts';

const MANY = 24;

type Numbers = Readonly<Record<string, Dependency<number>>>;

const sum = (values: Readonly<Record<string, number>>): number =>
  Object.values(values).reduce((total, value) => total + value, 0);

const asInputs = (dependencies: readonly Dependency<number>[]): Numbers =>
  Object.fromEntries(dependencies.map((dependency, place) => [`input${place}`, dependency]));

interface Layers {
  /** What the original at a place depends on, of those behind it. */
  readonly originals: (later: readonly Dependency<number>[]) => readonly Dependency<number>[];
  /** What its replacement wraps beside it. */
  readonly replacements: (later: readonly Dependency<number>[]) => readonly Dependency<number>[];
}

/** How often the replacements and the originals are called in one request, and the sum that the first one gives. */
async function callsAndSum({ originals, replacements }: Layers): Promise<[calls: unknown, sum: unknown]> {
  const calls = { originals: 0, replacements: 0 };
  const count = (what: keyof typeof calls, deps: Dependencies & Numbers): Dependency<number> =>
    depends(deps, (values) => {
      calls[what] += 1;
      return 1 + sum(values);
    });
  const all: Dependency<number>[] = [];
  for (let place = 0; place < MANY; place += 1) {
    all.unshift(count('originals', asInputs(originals(all))));
  }
  await using server = await serve([get('/', { first: all[0]! }, ({ first }) => first)]);
  for (const [place, original] of all.entries()) {
    const wrapped = [original, ...replacements(all.slice(place + 1))];
    server.app.override(original, count('replacements', asInputs(wrapped)));
  }
  const [status, json] = await answer(server);
  assert.equal(status, 200);
  return [calls, json];
}

/** The sum of the first one, where each adds those of the `behind` behind it, and `own` of its own. */
function expectedSum(own: number, behind: number): number {
  const sums: number[] = [];
  for (let place = 0; place < MANY; place += 1) {
    sums.unshift(own + sums.slice(0, behind).reduce((total, value) => total + value, 0));
  }
  return sums[0]!;
}

const none = (): readonly Dependency<number>[] => [];
const nextTwo: Layers['originals'] = (later) => later.slice(0, 2);
const next: Layers['originals'] = (later) => later.slice(0, 1);
const allLater: Layers['originals'] = (later) => later;
const once = { originals: MANY, replacements: MANY };

describe('of 24 overrides, each replacement and each original is called once', () => {
  test('where each replacement wraps its original and the next one', async () => {
    const seen = await callsAndSum({ originals: none, replacements: next });
    assert.deepEqual(seen, [once, expectedSum(2, 1)]);
  });

  test('where each replacement wraps its original and the next two, in diamonds', async () => {
    const seen = await callsAndSum({ originals: none, replacements: nextTwo });
    assert.deepEqual(seen, [once, expectedSum(2, 2)]);
  });

  test('where each replacement wraps its original and all behind it', async () => {
    const seen = await callsAndSum({ originals: none, replacements: allLater });
    assert.deepEqual(seen, [once, expectedSum(2, MANY)]);
  });

  test('where the originals are layers, each upon the next two, and each replacement wraps one of them', async () => {
    const seen = await callsAndSum({ originals: nextTwo, replacements: none });
    assert.deepEqual(seen, [once, expectedSum(2, 2)]);
  });

  test('where both the originals and the replacements reach the next two', async () => {
    const [calls, total] = await callsAndSum({ originals: nextTwo, replacements: nextTwo });
    assert.deepEqual(calls, once);
    assert.equal(total, expectedBoth());
  });
});

/** Original and replacement each add the next two, so that these count twice. */
function expectedBoth(): number {
  const sums: number[] = [];
  for (let place = 0; place < MANY; place += 1) {
    sums.unshift(2 + 2 * ((sums[0] ?? 0) + (sums[1] ?? 0)));
  }
  return sums[0]!;
}

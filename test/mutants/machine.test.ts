import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { describe, test } from 'node:test';
import { applyMutant, type Mutant, makeMutants, parseSource } from './make.ts';
import { findModules } from './modules.ts';
import { drawSample } from './sample.ts';

/** The mutated sources of one kind, in the order of their ids. */
async function mutations(source: string, operator: string): Promise<string[]> {
  const mutants = await makeMutants('a.ts', source);
  return mutants
    .filter(({ id }) => id.includes(`:${operator}:`))
    .map((mutant) => applyMutant(source, mutant));
}

const ids = (mutants: readonly Mutant[]): string[] => mutants.map(({ id }) => id);

describe('a mutant', () => {
  test('of each of the three files has an id of its own, and is a program', async () => {
    for (const { file } of await findModules()) {
      const source = await readFile(new URL(`../../${file}`, import.meta.url), 'utf8');
      const mutants = await makeMutants(file, source);
      assert.ok(mutants.length > 0);
      assert.equal(new Set(ids(mutants)).size, mutants.length);
      for (const mutant of mutants) {
        assert.doesNotThrow(() => parseSource(applyMutant(source, mutant)), mutant.id);
      }
    }
  });

  test('has the same id when another function changes', async () => {
    const method =
      'class Queue { async #run(f?: () => void) { if (this.size > 0) { await f?.(); } return 1; } }';
    const before = ids(await makeMutants('a.ts', `function first() { return 1; } ${method}`));
    const after = ids(await makeMutants('a.ts', `const other = () => [1, 'a']; ${method}`));
    const ofMethod = (id: string): boolean => id.startsWith('a.ts:Queue.#run:');
    assert.ok(before.filter(ofMethod).length > 5);
    assert.deepEqual(after.filter(ofMethod), before.filter(ofMethod));
  });

  test('is named after the functions around it', async () => {
    const source =
      'export function outer() { const inner = () => [].map(() => 5); return { member() { return 6; } }; }';
    const numbers = ids(await makeMutants('a.ts', source)).filter((id) => id.includes(':Number:'));
    assert.deepEqual(numbers, [
      'a.ts:outer.inner:Number:1',
      'a.ts:outer.inner:Number:2',
      'a.ts:outer.member:Number:1',
      'a.ts:outer.member:Number:2',
    ]);
  });

  test('loses an await', async () => {
    assert.deepEqual(await mutations('async () => { await f(); for await (const a of b) g(a); };', 'Await'), [
      'async () => { (f()); for await (const a of b) g(a); };',
      'async () => { await f(); for (const a of b) g(a); };',
    ]);
  });

  test('loses a statement, unless it is the only one of its block, which is emptied', async () => {
    assert.deepEqual(await mutations('function f() { a(); return b; }', 'Statement'), [
      'function f() { ; return b; }',
      'function f() { a(); ; }',
    ]);
    assert.deepEqual(await mutations('function f() { a(); }', 'Statement'), []);
    assert.deepEqual(await mutations('function f() { a(); }', 'BlockStatement'), ['function f() {}']);
  });

  test('has another number, but not another key or type', async () => {
    assert.deepEqual(await mutations('const a: 1 | 2 = { 3: 0 }[5];', 'Number'), [
      'const a: 1 | 2 = { 3: (1) }[5];',
      'const a: 1 | 2 = { 3: 0 }[(0)];',
      'const a: 1 | 2 = { 3: 0 }[(6)];',
    ]);
    assert.deepEqual(await mutations('f(30_000);', 'Number'), ['f((0));']);
  });

  test('keeps the other operators of its expression as they were', async () => {
    assert.deepEqual(await mutations('x = a && b && c;', 'LogicalOperator'), [
      'x = (a && b || c);',
      'x = (a || b) && c;',
    ]);
  });

  test('has one side of a condition', async () => {
    assert.deepEqual(await mutations('x = a ? b : c;', 'Ternary'), [
      'x = (true) ? b : c;',
      'x = (false) ? b : c;',
    ]);
  });

  test('is made once where two operators would do the same', async () => {
    assert.deepEqual(await mutations('if (a) { b = 1; }', 'BlockStatement'), []);
    assert.equal((await mutations('if (a()) { b = 1; }', 'BlockStatement')).length, 1);
  });
});

describe('a sample', () => {
  const all = Array.from({ length: 1000 }, (_, place) => place);

  test('is the same for the same seed, and another for another', () => {
    assert.deepEqual(drawSample(all, 20, 1), drawSample(all, 20, 1));
    assert.notDeepEqual(drawSample(all, 20, 1), drawSample(all, 20, 2));
  });

  test('has each element once, in order, from all of them', () => {
    const drawn = drawSample(all, 100, 7);
    assert.equal(drawn.length, 100);
    assert.deepEqual(
      drawn,
      [...new Set(drawn)].sort((a, b) => a - b),
    );
    assert.ok(drawn[0]! < 100 && drawn.at(-1)! > 900);
    assert.deepEqual(drawSample(all, 2000, 7), all);
  });
});

test('every module has tests', async () => {
  for (const { file, tests } of await findModules()) {
    assert.ok(tests.length > 0, file);
  }
});

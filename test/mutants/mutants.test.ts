/**
 * Holds each mutant of list.ts against the suite or the unit tests, so that these are known to find what they should:
 *
 *     node --import tsx --test test/mutants/mutants.test.ts
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { cp, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { describe, test, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { allCases, type Level } from '../suite/cases.ts';
import { freePort } from '../suite/local.ts';
import { openSession, type Verdict } from '../suite/run.ts';
import { mutants, unitMutants, type Change, type UnitMutant } from './list.ts';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const TSC = path.join(ROOT, 'node_modules/typescript/bin/tsc');
const cases = allCases();
const killed = new Set(mutants.flatMap(({ fails }) => fails));

/** A case that is to fail waits so long. A busy machine can hide that it would pass; no failure is invented. */
const FAILING_MS = 1000;
/** A case that passes has so long for each step. */
const PASSING_MS = 20_000;

test('the lists name cases that there are, and each mutant once', () => {
  assert.deepEqual([...killed].filter((id) => !cases.some((each) => each.id === id)), []);
  const names = [...mutants, ...unitMutants].map(({ name }) => name);
  assert.deepEqual(names.filter((name, place) => names.indexOf(name) < place), []);
});

test('every mutant of the suite is found by a case', () => {
  assert.deepEqual(mutants.filter(({ fails }) => fails.length === 0).map(({ name }) => name), []);
});

for (const level of ['MUST', 'SHOULD', 'DIALECT'] satisfies Level[]) {
  test(`every ${level} case finds a mutant`, () => {
    assert.deepEqual(cases.filter((each) => each.level === level && !killed.has(each.id)).map(({ id }) => id), []);
  });
}

describe('mutants', { concurrency: 4 }, () => {
  // The slow ones first: a failing case takes its deadline.
  for (const mutant of mutants.toSorted((a, b) => b.fails.length - a.fails.length)) {
    const { name, fails } = mutant;
    const found = fails.length > 8 ? `the ${fails.length} cases that it should` : fails.join(', ');
    test(`${name}: fails exactly ${found}`, async (t) => {
      const folder = await copyWith(t, mutant);
      await compile(folder);
      const failed = await failures(folder, fails);
      const wrong = [
        ...failed.filter(({ id }) => !fails.includes(id)).map(({ id, reason }) => `${id} fails: ${reason}`),
        ...fails.filter((id) => !failed.some((each) => each.id === id)).map((id) => `${id} does not fail`),
      ];
      assert.equal(wrong.join('\n'), '');
    });
  }

  for (const mutant of unitMutants) {
    const { name, tests, pattern } = mutant;
    test(`${name}: fails '${pattern}' of ${tests}`, { timeout: 120_000 }, async (t) => {
      const failed = await failedTests(t, await copyWith(t, mutant), mutant);
      assert.ok(failed.some((title) => new RegExp(pattern).test(title)), `Failed are ${JSON.stringify(failed)}`);
    });
  }
});

/** A folder with a copy of the repository that has the defect, until the end of the test. */
async function copyWith(t: TestContext, { name, file, from, to }: Change): Promise<string> {
  const folder = await mkdtemp(path.join(tmpdir(), 'mutant-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const isWanted = (source: string): boolean => !/^test.(mutants|bench|suite)/.test(path.relative(ROOT, source));
  for (const each of ['background.ts', 'deps.ts', 'server.ts', 'package.json', 'fixtures/conformance', 'test']) {
    await cp(path.join(ROOT, each), path.join(folder, each), { recursive: true, filter: isWanted });
  }
  await symlink(path.join(ROOT, 'node_modules'), path.join(folder, 'node_modules'), 'junction');
  const parts = (await readFile(path.join(folder, file), 'utf8')).split(from);
  if (parts.length !== 2) {
    const times = parts.length - 1;
    const advice = `the mutant '${name}' needs to follow the code`;
    throw new Error(`Expected \`${from}\` once in ${file}, found it ${times} times; ${advice}.`);
  }
  await writeFile(path.join(folder, file), parts.join(to));
  return folder;
}

/** Makes JavaScript of it, which starts in a third of the time: a mutant is started some twenty times. */
async function compile(folder: string): Promise<void> {
  const options = '--noCheck --module nodenext --target es2023 --rewriteRelativeImportExtensions --outDir .';
  const args = ['--ignoreConfig', ...options.split(' '), 'server.ts', 'fixtures/conformance/reference.ts'];
  const child = spawn(process.execPath, [TSC, ...args], { cwd: folder, stdio: ['ignore', 'pipe', 'ignore'] });
  let output = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => { output += text; });
  const [code] = await once(child, 'close');
  if (code !== 0) throw new Error(`Expected the mutant to compile: ${output}`);
}

/** Plays all cases against the reference in `folder`. The [process] cases are last: each of them restarts it. */
async function failures(folder: string, fails: readonly string[]): Promise<Verdict[]> {
  const command = `${JSON.stringify(process.execPath)} server.js fixtures/conformance/reference.js`;
  const url = `http://127.0.0.1:${await freePort()}`;
  const session = await openSession({ url, command, cwd: folder, deadlineMs: PASSING_MS });
  const [wire, restarting] = ['wire', 'process'].map((tag) => cases.filter((each) => each.tag === tag));
  try {
    const verdicts: Verdict[] = [];
    for (const each of [...wire!, ...restarting!]) {
      verdicts.push(await session.run(each, fails.includes(each.id) ? FAILING_MS : PASSING_MS));
    }
    return verdicts.filter(({ status }) => status === 'fail');
  } finally {
    await session.close();
  }
}

/** The titles of the tests that fail in `folder`, of those that match the pattern. */
async function failedTests(t: TestContext, folder: string, { tests, pattern }: UnitMutant): Promise<string[]> {
  const { NODE_TEST_CONTEXT: _, ...env } = process.env; // or the child believes that it is one of ours
  const args = ['--import', 'tsx', '--test', '--test-reporter=tap', `--test-name-pattern=${pattern}`, tests];
  const options = { cwd: folder, env, signal: t.signal } as const;
  const child = spawn(process.execPath, args, { ...options, stdio: ['ignore', 'pipe', 'ignore'] });
  let output = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => { output += text; });
  await once(child, 'close');
  return [...output.matchAll(/^ *not ok \d+ - (.*)$/gm)].map(([, title = '']) => title.replaceAll('\\', ''));
}

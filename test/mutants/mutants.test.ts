/**
 * Holds each mutant of list.ts against the unit tests, so that these are known to find what they should:
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
import { unitMutants, type Change, type UnitMutant } from './list.ts';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));

test('each mutant is there once', () => {
  const names = unitMutants.map(({ name }) => name);
  assert.deepEqual(names.filter((name, place) => names.indexOf(name) < place), []);
});

describe('mutants', { concurrency: 4 }, () => {
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
  const isWanted = (source: string): boolean => !/^test.(mutants|bench|conformance)/.test(path.relative(ROOT, source));
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

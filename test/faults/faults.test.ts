/**
 * Holds the target of target.ts, with each defect of list.ts, against the suite, so that this is known to find what it
 * should, and nothing where there is nothing to find:
 *
 *     node --import tsx --test test/faults/faults.test.ts
 *
 * `--test-name-pattern='eager:'` plays one.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { allCases, type Level } from '../suite/cases.ts';
import { freePort } from '../suite/local.ts';
import { openSession, type Verdict } from '../suite/run.ts';
import { dialects, faults } from './list.ts';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const cases = allCases();
const killed = new Set(faults.flatMap(({ fails }) => fails));

/** A case that is to fail waits so long. A busy machine can hide that it would pass; no failure is invented. */
const FAILING_MS = 1000;
/** A case that passes has so long for each step. */
const PASSING_MS = 20_000;

test('the list names cases that there are', () => {
  const known = new Set(cases.map(({ id }) => id));
  assert.deepEqual(
    [...killed].filter((id) => !known.has(id)),
    [],
  );
});

test('every name is there once', () => {
  const names = [...faults, ...dialects].map(({ name }) => name);
  assert.deepEqual(
    names.filter((name, place) => names.indexOf(name) < place),
    [],
  );
});

test('every defect is found by a case', () => {
  const missed = faults.filter(({ fails }) => fails.length === 0);
  assert.deepEqual(
    missed.map(({ name }) => name),
    [],
  );
});

for (const level of ['MUST', 'SHOULD', 'DIALECT'] satisfies Level[]) {
  test(`every ${level} case finds a defect`, () => {
    const idle = cases.filter((each) => each.level === level && !killed.has(each.id));
    assert.deepEqual(
      idle.map(({ id }) => id),
      [],
    );
  });
}

describe('the target', { concurrency: 4 }, () => {
  let folder = '';
  before(async () => {
    folder = await compile();
  });
  after(() => rm(folder, { recursive: true, force: true }));

  // The slow ones first: a failing case takes its deadline.
  for (const { name, statement, fails } of faults.toSorted((a, b) => b.fails.length - a.fails.length)) {
    const found = fails.length > 8 ? `the ${fails.length} cases that it should` : fails.join(', ');
    test(`${name}: ${statement}: fails exactly ${found}`, async () => {
      const failed = await failures(folder, name, fails);
      const wrong = [
        ...failed.filter(({ id }) => !fails.includes(id)).map(({ id, reason }) => `${id} fails: ${reason}`),
        ...fails.filter((id) => !failed.some((each) => each.id === id)).map((id) => `${id} does not fail`),
      ];
      assert.equal(wrong.join('\n'), '');
    });
  }

  for (const { name, statement } of [{ name: '', statement: 'without a defect' }, ...dialects]) {
    test(`${name || 'right'}: ${statement}: passes`, async () => {
      const failed = await failures(folder, name, []);
      assert.deepEqual(
        failed.map(({ id, reason }) => `${id} fails: ${reason}`),
        [],
      );
    });
  }
});

/** Makes JavaScript of the target, once for all: it starts in a third of the time, some twenty times a defect. */
async function compile(): Promise<string> {
  const folder = await mkdtemp(path.join(tmpdir(), 'faults-'));
  await writeFile(path.join(folder, 'package.json'), JSON.stringify({ type: 'module' }));
  const tsc = path.join(ROOT, 'node_modules/typescript/bin/tsc');
  const options =
    '--ignoreConfig --noCheck --module nodenext --target es2023 --rewriteRelativeImportExtensions';
  const places = ['--rootDir', '.', '--outDir', folder, 'test/faults/start.ts'];
  const child = spawn(process.execPath, [tsc, ...options.split(' '), ...places], {
    cwd: ROOT,
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  let output = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    output += text;
  });
  const [code] = await once(child, 'close');
  assert.equal(code, 0, `Expected the target to compile: ${output}`);
  return folder;
}

/** Plays all cases against the target in `folder`. The [process] cases are last: each of them restarts it. */
async function failures(folder: string, name: string, fails: readonly string[]): Promise<Verdict[]> {
  const command = `FAULT=${name} ${JSON.stringify(process.execPath)} test/faults/start.js`;
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

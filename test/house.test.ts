/** The house of the tests: the commands that run them forget none. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { describe, test } from 'node:test';
import { root } from './helpers.ts';

const read = (file: string): string => readFileSync(path.join(root, file), 'utf8');

/** Whether the shell expands `pattern` to `file`, among others. A star stands for a part of one name. */
function expandsTo(pattern: string, file: string): boolean {
  const parts = pattern.split('*').map((part) => part.replaceAll(/[.+?^${}()|[\]\\]/g, '\\$&'));
  return new RegExp(`^${parts.join('[^/]*')}$`).test(file);
}

/** Those of `files` that no line of `commands` runs. */
function forgotten(files: readonly string[], commands: string): string[] {
  const lines = commands.split('\n').filter((line) => !line.trimStart().startsWith('#'));
  const patterns = lines.flatMap((line) => line.match(/(?<!\S)[\w./*-]+\.test\.ts(?![^\s'";])/g) ?? []);
  return files.filter((file) => !patterns.some((pattern) => expandsTo(pattern, file)));
}

const commands = [...Object.values<string>(JSON.parse(read('package.json')).scripts), read('.ci/run')];

describe('the commands', () => {
  test('a script of package.json or .ci/run runs every test file', () => {
    const files = execFileSync('git', ['ls-files', '*.test.ts'], { cwd: root, encoding: 'utf8' });
    assert.deepEqual(forgotten(files.trim().split('\n'), commands.join('\n')), []);
  });

  test('a test file in a folder that no command names, or names in a comment, is found', () => {
    const files = ['test/a.test.ts', 'test/suite/b.test.ts', 'test/c/c.test.ts', 'test/d/d.test.ts'];
    const some = 'node --test test/*.test.ts test/suite/*.test.ts\n  # node --test test/c/c.test.ts\n';
    assert.deepEqual(forgotten(files, some), ['test/c/c.test.ts', 'test/d/d.test.ts']);
    assert.deepEqual(
      forgotten(files, `${some}node --test test/c/c.test.ts; node --test test/d/*.test.ts`),
      [],
    );
  });

  test('what `npm test` runs, .ci/run runs on every version of Node', () => {
    const { test: command } = JSON.parse(read('package.json')).scripts as { test: string };
    assert.ok(read('.ci/run').includes(`--package="node@$version" ${command}\n`), command);
  });
});

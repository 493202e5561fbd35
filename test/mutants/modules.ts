/** The files that are mutated, and the tests of each. */
import { readdir } from 'node:fs/promises';
import path from 'node:path';
import { ROOT } from './play.ts';

export interface Module {
  readonly file: string;
  /** Paths from the root. */
  readonly tests: readonly string[];
  /** What the outcome of a mutant depends on. */
  readonly dependsOn: readonly string[];
}

/** By the beginning of the name of its test files, up to a dot. */
const TESTS: Record<string, readonly string[]> = {
  'background.ts': ['background', 'properties'],
  'deps.ts': ['deps'],
  'server.ts': ['server', 'shutdown', 'cli'],
};

export async function findModules(): Promise<Module[]> {
  const names = (await readdir(path.join(ROOT, 'test'))).filter((name) => name.endsWith('.ts')).sort();
  const inTest = (name: string): string => `test/${name}`;
  const helpers = names.filter((name) => !name.endsWith('.test.ts')).map(inTest);
  return Object.entries(TESTS).map(([file, subjects]) => {
    const isOurs = (name: string): boolean =>
      name.endsWith('.test.ts') && subjects.includes(name.split('.')[0]!);
    const tests = names.filter(isOurs).map(inTest);
    return { file, tests, dependsOn: [...Object.keys(TESTS), 'fixtures/tutorial.ts', ...helpers, ...tests] };
  });
}

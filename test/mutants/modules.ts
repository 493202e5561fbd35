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

/** How the names of its test files begin, up to a dot. What some of them hold is in more than one of the three files. */
const TESTS: Record<string, readonly string[]> = {
  'background.ts': ['background', 'properties', 'memory'],
  'deps.ts': ['deps', 'memory', 'server.clear-errors', 'server.on-throw', 'server.signals'],
  'server.ts': ['server', 'shutdown', 'signals', 'cli', 'deps.overrides', 'memory'],
};

export async function findModules(): Promise<Module[]> {
  const names = (await readdir(path.join(ROOT, 'test'))).filter((name) => name.endsWith('.ts')).sort();
  const inTest = (name: string): string => `test/${name}`;
  const helpers = names.filter((name) => !name.endsWith('.test.ts')).map(inTest);
  return Object.entries(TESTS).map(([file, subjects]) => {
    const isTest = (name: string): boolean => name.endsWith('.test.ts');
    const isOurs = (name: string): boolean => subjects.some((subject) => name.startsWith(`${subject}.`));
    const tests = names.filter((name) => isTest(name) && isOurs(name)).map(inTest);
    return { file, tests, dependsOn: [...Object.keys(TESTS), 'fixtures/tutorial.ts', ...helpers, ...tests] };
  });
}

/** A copy of the repository in which test files are run, with a mutant or without. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { cp, mkdir, mkdtemp, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

export const ROOT = fileURLToPath(new URL('../../', import.meta.url));

/** What the tests of the three files do not need, and what a clone lacks. */
const NOT_COPIED = ['.git', 'coverage', 'fixtures/peers', 'node_modules', 'test/bench', 'test/mutants'];

/** A mutant that asks for memory without end finds one sooner. */
const HEAP_MEGABYTES = 1024;

/** What a test file did without a mutant: what another run of it is compared with. */
export interface Usual {
  readonly passed: number;
  readonly tookMs: number;
  /** How long it took up to the first result, then up to the next, and so on; the last is up to its end. */
  readonly pauses: readonly number[];
}

/** A run of one test file. `failure` is the title of the first test that failed, or what happened instead. */
export interface Run extends Usual {
  readonly failure: string | undefined;
}

export interface Copy {
  /** Writes a file of it. */
  write(file: string, text: string): Promise<void>;
  /** Runs one of its test files, up to the first failure. Without `usual` the file has as long as it needs. */
  run(testFile: string, usual?: Usual): Promise<Run>;
  remove(): void;
}

const running = new Set<ChildProcess>();

/** Ends everything that is running: for a process that is told to stop. */
export function killAll(): void {
  for (const child of running) {
    killGroup(child);
  }
}

export async function makeCopy(): Promise<Copy> {
  const folder = await mkdtemp(path.join(tmpdir(), 'mutants-'));
  const isWanted = (source: string): boolean => !NOT_COPIED.includes(path.relative(ROOT, source));
  await cp(ROOT, path.join(folder, 'copy'), { recursive: true, filter: isWanted });
  await symlink(path.join(ROOT, 'node_modules'), path.join(folder, 'copy/node_modules'), 'junction');
  await mkdir(path.join(folder, 'tmp')); // what a killed test leaves behind, and tsx's cache of each mutant
  return {
    write: (file, text) => writeFile(path.join(folder, 'copy', file), text),
    run: (testFile, usual) => runFile(folder, testFile, usual),
    remove: () => rmSync(folder, { recursive: true, force: true, maxRetries: 5 }),
  };
}

async function runFile(folder: string, testFile: string, usual: Usual | undefined): Promise<Run> {
  const started = performance.now();
  const child = spawn(process.execPath, ['--import', 'tsx', '--test-reporter=tap', testFile], {
    cwd: path.join(folder, 'copy'),
    env: environment(path.join(folder, 'tmp')),
    stdio: ['ignore', 'pipe', 'ignore'],
    detached: true, // a group of its own: the processes that the tests start end with it
  });
  running.add(child);
  const lines = createInterface({ input: child.stdout! });
  const exited = once(child, 'exit').finally(() => {
    killGroup(child); // or a process left behind keeps the pipe open
    setTimeout(() => lines.close(), 5000).unref(); // one that has left the group
  });
  let failure: string | undefined;
  const fail = (what: string): void => {
    failure ??= what;
    killGroup(child);
  };
  const watch = watchTime(usual, fail);
  let passed = 0;
  for await (const line of lines) {
    if (/^ *(not )?ok /.test(line)) {
      watch.seeResult();
    }
    passed = Number(/^# pass (\d+)/.exec(line)?.[1] ?? passed);
    const title = failedTest(line);
    if (title !== undefined) {
      fail(title);
    }
  }
  const [code] = await exited;
  const pauses = watch.end();
  running.delete(child);
  if (code !== 0) {
    failure ??= `it exits with ${code}`;
  }
  if (usual && passed !== usual.passed) {
    failure ??= `${passed} of ${usual.passed} tests were run`;
  }
  return { failure, passed, tookMs: performance.now() - started, pauses };
}

function environment(temporary: string): NodeJS.ProcessEnv {
  const { NODE_TEST_CONTEXT: _context, NODE_V8_COVERAGE: _coverage, ...inherited } = process.env;
  return { ...inherited, TMPDIR: temporary, NODE_OPTIONS: `--max-old-space-size=${HEAP_MEGABYTES}` };
}

/** The title of the test that this line of TAP says has failed. */
function failedTest(line: string): string | undefined {
  const [, title] = /^ *not ok \d+ - (.*)$/.exec(line) ?? [];
  return title === undefined || / # (TODO|SKIP)/.test(title) ? undefined : title.replaceAll('\\', '');
}

interface Watch {
  /** A test has ended: the next has its own deadline. */
  seeResult(): void;
  /** Returns the pauses between the results. */
  end(): readonly number[];
}

/** A deadline for each test turns a hang into a failure: some seconds, and four times what the test usually takes. */
function watchTime(usual: Usual | undefined, fail: (what: string) => void): Watch {
  const pauses: number[] = [];
  let last = performance.now();
  let timer: NodeJS.Timeout | undefined;
  const setDeadline = (): void => {
    clearTimeout(timer);
    const usualMs = usual ? (usual.pauses[pauses.length] ?? 0) : 60_000;
    timer = setTimeout(() => fail('it hangs'), 5000 + 4 * usualMs);
  };
  const seePause = (): void => {
    const now = performance.now();
    pauses.push(now - last);
    last = now;
  };
  setDeadline();
  return {
    seeResult: () => {
      seePause();
      setDeadline();
    },
    end: () => {
      seePause();
      clearTimeout(timer);
      return pauses;
    },
  };
}

function killGroup({ pid }: ChildProcess): void {
  try {
    process.kill(-pid!, 'SIGKILL');
  } catch {
    // it has ended
  }
}

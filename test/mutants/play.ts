/** A copy of the repository in which test files are run, with a mutant or without. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { cp, mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
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
  /** The longest time in which it printed nothing. */
  readonly silentMs: number;
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
  remove(): Promise<void>;
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
    remove: () => rm(folder, { recursive: true, force: true, maxRetries: 5 }),
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
    watch.hasPrinted();
    passed = Number(/^# pass (\d+)/.exec(line)?.[1] ?? passed);
    const title = failedTest(line);
    if (title !== undefined) {
      fail(title);
    }
  }
  const [code] = await exited;
  watch.end();
  running.delete(child);
  if (code !== 0) {
    failure ??= `it exits with ${code}`;
  }
  if (usual && passed !== usual.passed) {
    failure ??= `${passed} of ${usual.passed} tests were run`;
  }
  return { failure, passed, tookMs: performance.now() - started, silentMs: watch.silentMs() };
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
  hasPrinted(): void;
  silentMs(): number;
  end(): void;
}

/** Deadlines that turn a hang into a failure: for the next line, and for the whole file. */
function watchTime(usual: Usual | undefined, fail: (what: string) => void): Watch {
  let last = performance.now();
  let longest = 0;
  const { silentMs, tookMs } = usual ?? { silentMs: 60_000, tookMs: 300_000 };
  const silence = setTimeout(() => fail('it hangs'), 10_000 + 4 * silentMs);
  const whole = setTimeout(() => fail('it does not end'), 30_000 + 4 * tookMs);
  const hasPrinted = (): void => {
    const now = performance.now();
    longest = Math.max(longest, now - last);
    last = now;
    silence.refresh();
  };
  return {
    hasPrinted,
    silentMs: () => longest,
    end: () => {
      clearTimeout(silence);
      clearTimeout(whole);
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

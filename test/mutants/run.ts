/**
 * Holds the unit tests to account: each mutant of background.ts, deps.ts and server.ts (one operator, condition, await,
 * statement or literal is another) has to fail one of the tests of its module.
 *
 *     npm run mutants                            all of them, which takes hours; goes on where it was stopped
 *     npm run mutants -- --sample 60 --seed 1    as many, drawn by chance, the same for the same seed
 *     npm run mutants -- --file deps.ts          those of one file
 *     npm run mutants -- --only deps.ts:Scope    those whose id begins so, whatever is known of them
 *     npm run mutants -- --survivors             those that survived when they were last run
 *     npm run mutants -- --list                  prints them, and runs nothing
 *     npm run mutants -- --parallel 4            as many at a time; 2 unless told otherwise
 *
 * StrykerJS's instrumenter makes the mutants, and make.ts those that it lacks. StrykerJS's own runner is not used: it
 * draws no sample by a seed, has no id of a mutant that outlives an edit elsewhere, and takes no list of the tests of
 * each file. Nor is its instrumented source, in which the names of functions, stacks and times differ: a mutant is a
 * copy of the repository in which one place of one file is another. The tests of each file are in modules.ts.
 *
 * An id is file, functions, operator and ordinal: `deps.ts:Scope.resolve:ConditionalExpression:2` is the second change
 * of this kind in that method. It stays as long as the function does.
 *
 * Where no test can tell a mutant from the original, equivalent.json says why: `[{ "mutant": id, "reason": sentence }]`.
 * Any other survivor fails the run; so does an entry that names no mutant, or one that a test finds.
 */
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { applyMutant, type Mutant, makeMutants } from './make.ts';
import { findModules, type Module } from './modules.ts';
import { type Copy, killAll, makeCopy, ROOT, type Usual } from './play.ts';
import { hashOf, type Outcome, readProgress, writeProgress } from './progress.ts';
import { drawSample } from './sample.ts';

interface Equivalent {
  readonly mutant: string;
  readonly reason: string;
}

/** A module with its mutants. */
interface Target extends Module {
  readonly source: string;
  readonly mutants: readonly Mutant[];
  readonly key: string;
}

/** A mutant that is still to be run. */
interface Play {
  readonly mutant: Mutant;
  readonly target: Target;
}

const { values: options } = parseArgs({
  options: {
    sample: { type: 'string' },
    seed: { type: 'string', default: '1' },
    file: { type: 'string' },
    only: { type: 'string' },
    survivors: { type: 'boolean' },
    list: { type: 'boolean' },
    parallel: { type: 'string', default: '2' },
  },
});
const copies: Copy[] = [];
/** What each test file does without a mutant. */
const usual = new Map<string, Usual>();
/** How many mutants a test file has found of a function, of a file. */
const finds = new Map<string, number>();

process.once('exit', end);
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => process.exit(130)); // at once: a run that is cut off has found nothing
}

const targets = await findTargets();
const equivalents = await readEquivalents();
const progress = await readProgress();
const chosen = choose();
rememberProgress();
if (options.list) {
  for (const { mutant, target } of chosen) {
    console.log(`${mutant.id}\n    ${describe(mutant, target)}`);
  }
} else {
  const begun = performance.now();
  process.exitCode = (await playChosen()) ? 0 : 1;
  console.log(`in ${Math.round((performance.now() - begun) / 1000)} s`);
}

async function findTargets(): Promise<Target[]> {
  const machine = ['make.ts', 'play.ts', 'modules.ts', 'package-lock.json'].map(
    (name) => `test/mutants/${name}`,
  );
  const modules = await findModules();
  return Promise.all(
    modules.map(async (module) => {
      const source = await readFile(path.join(ROOT, module.file), 'utf8');
      const key = await hashOf([...module.dependsOn, ...machine]);
      return { ...module, source, mutants: await makeMutants(module.file, source), key };
    }),
  );
}

/** The reasons, by the id of the mutant. */
async function readEquivalents(): Promise<Map<string, string>> {
  const text = await readFile(new URL('equivalent.json', import.meta.url), 'utf8');
  const entries: Equivalent[] = JSON.parse(text);
  return new Map(entries.map(({ mutant, reason }) => [mutant, reason]));
}

function choose(): Play[] {
  const { file, only, survivors, sample } = options;
  const all = targets.flatMap((target) => target.mutants.map((mutant) => ({ mutant, target })));
  const wanted = all.filter(({ mutant: { id, ...mutant } }) => {
    const isWanted = (!file || mutant.file === file) && (!only || id.startsWith(only));
    return isWanted && (!survivors || progress[id]?.killedBy === null);
  });
  return sample ? drawSample(wanted, Number(sample), Number(options.seed)) : wanted;
}

/** Whether all is as it should be. */
async function playChosen(): Promise<boolean> {
  const isKnown = ({ mutant, target }: Play): boolean =>
    progress[mutant.id]?.key === target.key && !options.only;
  const plays = chosen.filter((play) => !isKnown(play));
  const drawn = options.sample ? `, a sample drawn with --seed ${options.seed}` : '';
  console.log(
    `${chosen.length} mutants${drawn}; ${chosen.length - plays.length} are known from an earlier run`,
  );
  if (plays.length > 0 && !(await prepare(plays))) {
    return false;
  }
  await share(plays, playOne);
  return summary();
}

/** Makes the copies, and runs the tests without a mutant. Whether they pass. */
async function prepare(plays: readonly Play[]): Promise<boolean> {
  for (let number = 0; number < Number(options.parallel); number += 1) {
    copies.push(await makeCopy());
  }
  const files = new Set(plays.flatMap(({ target }) => target.tests));
  console.log(`without a mutant: ${[...files].join(' ')}`);
  let passes = true;
  await share([...files], async (file, copy) => {
    const run = await copy.run(file);
    usual.set(file, run);
    if (run.failure !== undefined) {
      console.log(`${file} fails without a mutant: ${run.failure}`);
      passes = false;
    }
  });
  return passes;
}

/** Does that with each: in every copy one at a time. */
async function share<T>(all: readonly T[], work: (each: T, copy: Copy) => Promise<void>): Promise<void> {
  const waiting = [...all];
  const workers = copies.map(async (copy) => {
    for (let each = waiting.shift(); each !== undefined; each = waiting.shift()) {
      await work(each, copy);
    }
  });
  await Promise.all(workers);
}

async function playOne(play: Play, copy: Copy): Promise<void> {
  const { mutant, target } = play;
  const begun = performance.now();
  let killedBy = await findKiller(play, copy);
  if (killedBy && equivalents.has(mutant.id)) {
    killedBy = await findKiller(play, copy); // it takes two to say that the list is wrong
  }
  progress[mutant.id] = { key: target.key, killedBy };
  writeProgress(progress);
  const seconds = ((performance.now() - begun) / 1000).toFixed(1);
  const end = killedBy ? `killed by ${killedBy.file}: ${killedBy.failure}` : 'SURVIVED';
  console.log(`${seconds.padStart(6)} s  ${mutant.id}  ${end}`);
}

async function findKiller({ mutant, target }: Play, copy: Copy): Promise<Outcome['killedBy']> {
  await copy.write(target.file, applyMutant(target.source, mutant));
  try {
    for (const file of inOrder(target.tests, mutant)) {
      const { failure } = await copy.run(file, usual.get(file));
      if (failure !== undefined) {
        remember(file, mutant);
        return { file, failure };
      }
    }
    return null;
  } finally {
    await copy.write(target.file, target.source);
  }
}

/** First what has found the others of this function, then what finds most of this file in its time. */
function inOrder(tests: readonly string[], mutant: Mutant): string[] {
  const inFunction = (test: string): number => finds.get(`${test} ${mutant.file}:${mutant.function}`) ?? 0;
  const rate = (test: string): number =>
    (1 + (finds.get(`${test} ${mutant.file}`) ?? 0)) / usual.get(test)!.tookMs;
  return tests.toSorted((a, b) => inFunction(b) - inFunction(a) || rate(b) - rate(a));
}

function remember(test: string, mutant: Mutant): void {
  for (const of of [mutant.file, `${mutant.file}:${mutant.function}`]) {
    finds.set(`${test} ${of}`, (finds.get(`${test} ${of}`) ?? 0) + 1);
  }
}

/** What earlier runs found, with other tests too, tells this one where to begin. */
function rememberProgress(): void {
  for (const mutant of targets.flatMap(({ mutants }) => mutants)) {
    const file = progress[mutant.id]?.killedBy?.file;
    if (file !== undefined) {
      remember(file, mutant);
    }
  }
}

/** Says what is wrong with the mutants, or with the list of equivalent ones. Whether nothing is. */
function summary(): boolean {
  const survived = chosen.filter(({ mutant }) => !progress[mutant.id]?.killedBy);
  const unlisted = survived.filter(({ mutant }) => !equivalents.has(mutant.id));
  const wrong = [
    ...unlisted.map(({ mutant, target }) => `survived: ${mutant.id}\n    ${describe(mutant, target)}`),
    ...wrongEntries(),
  ];
  for (const line of wrong) {
    console.log(line);
  }
  const counts = [
    `${chosen.length - survived.length} killed`,
    `${survived.length - unlisted.length} equivalent`,
  ];
  console.log([`${chosen.length} mutants`, ...counts, `${unlisted.length} survived`].join(', '));
  return wrong.length === 0;
}

function wrongEntries(): string[] {
  const known = new Set(targets.flatMap(({ mutants }) => mutants.map(({ id }) => id)));
  const killed = new Set(
    chosen.filter(({ mutant }) => progress[mutant.id]?.killedBy).map(({ mutant }) => mutant.id),
  );
  return [...equivalents].flatMap(([id, reason]) => {
    const problems = [
      known.has(id) ? '' : `equivalent.json names ${id}: there is no such mutant`,
      killed.has(id)
        ? `equivalent.json names ${id}: a test finds it (${progress[id]?.killedBy?.failure})`
        : '',
      reason ? '' : `equivalent.json names ${id} without a reason`,
    ];
    return problems.filter((problem) => problem !== '');
  });
}

/** Where it is today, and what it changes. */
function describe({ file, start, end, replacement }: Mutant, { source }: Target): string {
  const line = source.slice(0, start).split('\n').length;
  const inLine = (text: string): string => text.replace(/\s+/g, ' ').slice(0, 100);
  return `${file}:${line}  ${inLine(source.slice(start, end))}  →  ${inLine(replacement)}`;
}

/** Leaves nothing behind: no process, and no copy. */
function end(): void {
  killAll();
  for (const copy of copies) {
    copy.remove();
  }
}

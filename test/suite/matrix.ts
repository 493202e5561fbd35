/**
 * Holds the reference and the peers against the suite, writes their results, and from these the tables of the pages.
 *
 *     npm run matrix                      all of them
 *     npm run matrix -- fastapi koa       these
 *     npm run matrix -- --check fastapi   fails where the committed result differs; writes nothing
 *     npm run matrix -- --tables          the tables only
 */
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { allCases, allClauses, clauseFiles } from './cases.ts';
import { freePort, nodeCommand } from './local.ts';
import { type Outcomes, ofCount, tally } from './report.ts';
import { openSession, type Verdict } from './run.ts';

const ROOT = new URL('../../', import.meta.url);
const PEERS = new URL('fixtures/peers/', ROOT);
const REFERENCE = 'response-first';

interface Peer {
  readonly name: string;
  readonly language: string;
  readonly idiom: string;
  readonly docs: string;
  /** Failing cases that are known, by id. */
  readonly deviations: Readonly<Record<string, { readonly reason: string; readonly link: string }>>;
}
interface Result {
  readonly version: string;
  readonly date: string;
  /** The hash of the cases. */
  readonly cases: string;
  readonly outcomes: Outcomes;
}

/** Changes with every change of a case. */
export function casesHash(): string {
  const hash = createHash('sha256');
  for (const [name, text] of clauseFiles()) {
    hash.update(`${name}\0${text}\0`);
  }
  return hash.digest('hex').slice(0, 16);
}

export const peerFolders = (): string[] =>
  readdirSync(PEERS)
    .filter((name) => existsSync(new URL(`${name}/peer.json`, PEERS)))
    .sort();

export const folderOf = (name: string): URL =>
  name === REFERENCE ? new URL('fixtures/conformance/', ROOT) : new URL(`${name}/`, PEERS);

const read = <T>(url: URL): T => JSON.parse(readFileSync(url, 'utf8')) as T;
export const peerOf = (name: string): Peer => read(new URL('peer.json', folderOf(name)));
export const resultOf = (name: string): Result | undefined => {
  const url = new URL('result.json', folderOf(name));
  return existsSync(url) ? read(url) : undefined;
};

/** Plays all cases against a peer, started by its own command. */
async function play(name: string): Promise<{ result: Result; verdicts: Verdict[] }> {
  const url = `http://127.0.0.1:${await freePort()}`;
  const reference = nodeCommand(new URL('server.ts', ROOT), new URL('reference.ts', folderOf(REFERENCE)));
  const target = {
    url,
    cwd: fileURLToPath(folderOf(name)),
    command: name === REFERENCE ? reference : './run',
  };
  const session = await openSession(target);
  const { version } = session.preflight;
  const verdicts: Verdict[] = [];
  try {
    for (const each of allCases()) {
      const verdict = await session.run(each);
      verdicts.push(verdict);
      const { level, id, title, reason, curl } = verdict;
      if (verdict.status === 'fail') {
        console.log(`${name}: ${level} ${id} ${title}: ${reason}\n    ${curl}`);
      }
    }
    if (session.late.length > 0) {
      throw new Error(`${name}: ${session.late.join('; ')}`);
    }
  } finally {
    await session.close();
  }
  const outcomes = Object.fromEntries(verdicts.map(({ id, status, observed }) => [id, { status, observed }]));
  return {
    result: { version, date: new Date().toISOString().slice(0, 10), cases: casesHash(), outcomes },
    verdicts,
  };
}

/** What differs between a result and the one that is committed; nothing if they are equal. */
function differences(result: Result, committed: Result | undefined): string[] {
  if (!committed) {
    return ['there is no committed result'];
  }
  if (committed.cases !== result.cases) {
    return ['the committed result is of other cases'];
  }
  return Object.entries(result.outcomes).flatMap(([id, { status, observed }]) => {
    const before = committed.outcomes[id];
    const same = before?.status === status && before.observed === observed;
    const show = (outcome?: { status: string; observed?: string | undefined }): string =>
      [outcome?.status, outcome?.observed].filter(Boolean).join(', ');
    return same ? [] : [`${id}: committed ${show(before)}, now ${show({ status, observed })}`];
  });
}

/** The dialects, and what the matrix calls them. */
const BEHAVIOURS = {
  afterFailure: 'After a failure',
  onThrow: 'On a throw',
  brokenStream: 'Broken stream',
  cleanUp: 'Clean-up',
  concurrency: 'Tasks run',
};

/** The matrix of the README: one row a server. */
export function matrixTable(): string {
  const rows = [REFERENCE, ...peerFolders()].flatMap((name) => {
    const result = resultOf(name);
    if (!result) {
      return [];
    }
    const { core, robust, behaviours: b } = tally(result.outcomes);
    const label =
      name === REFERENCE ? '**response-first** (this)' : `[${peerOf(name).name}](fixtures/peers/${name})`;
    const idiom = name === REFERENCE ? '`BackgroundTasks`' : peerOf(name).idiom;
    const seen = Object.keys(BEHAVIOURS).map((dialect) => b[dialect] ?? '–');
    return [[label, idiom, result.version, ofCount(core), ofCount(robust), ...seen]];
  });
  const head = ['Server', 'Idiom', 'Versions', 'Core', 'Robust', ...Object.values(BEHAVIOURS)];
  return [head, head.map(() => '---'), ...rows].map((cells) => `| ${cells.join(' | ')} |`).join('\n');
}

/** What fails, where, and why: the known deviations; cases of one server with the same reason share a row. */
export function deviationsTable(): string {
  const cases = new Map<string, string[]>();
  for (const peer of peerFolders().map(peerOf)) {
    for (const [id, { reason, link }] of Object.entries(peer.deviations)) {
      const row = `| ${peer.name} | CASES | ${reason} | [source](${link}) |`;
      cases.set(row, [...(cases.get(row) ?? []), id]);
    }
  }
  const rows = [...cases].map(([row, ids]) => row.replace('CASES', ids.join(', ')));
  return ['| Server | Case | What happens | |', '| --- | --- | --- | --- |', ...rows].join('\n');
}

/** The clauses that have cases, from their files. */
export function clauseTable(): string {
  const rows = allClauses().map(({ clause, tag, level, title, source, why, bugs = [], cases }) => {
    const name = (url: string): string => url.replace(/.*github.com\/[^/]+\/([^/]+)\/\w+\//, '$1 #');
    const links = bugs.map((url) => `[${name(url)}](${url})`).join(', ');
    const reason = `${why}${links && ` Seen in ${links}.`}`;
    return [clause, level, tag, `${title}.`, reason, source, cases.length];
  });
  const head = ['Clause', 'Level', 'Tag', 'Statement', 'Why', 'Source', 'Cases'];
  return [head, head.map(() => '---'), ...rows].map((cells) => `| ${cells.join(' | ')} |`).join('\n');
}

/** The text with the part between `<!-- name -->` and `<!-- /name -->` replaced. */
export function withPart(text: string, name: string, part: string): string {
  const [begin, end] = [`<!-- ${name} -->`, `<!-- /${name} -->`];
  const [before, rest] = text.split(begin);
  const after = rest?.split(end)[1];
  if (before === undefined || after === undefined) {
    throw new Error(`Expected ${begin} … ${end} in the page.`);
  }
  return `${before}${begin}\n${part}\n${end}${after}`;
}

/** Both pages, as they have to be. */
export function pages(): Map<URL, string> {
  const readme = new URL('README.md', ROOT);
  const spec = new URL('fixtures/conformance/README.md', ROOT);
  const text = withPart(readFileSync(readme, 'utf8'), 'matrix', matrixTable());
  return new Map([
    [readme, withPart(text, 'deviations', deviationsTable())],
    [spec, withPart(readFileSync(spec, 'utf8'), 'clauses', clauseTable())],
  ]);
}

async function main(): Promise<void> {
  const options = { check: { type: 'boolean' }, tables: { type: 'boolean' } } as const;
  const { values, positionals } = parseArgs({ options, allowPositionals: true });
  const all = [REFERENCE, ...peerFolders()];
  const unknown = positionals.find((name) => !all.includes(name));
  if (unknown) {
    throw new Error(`Expected one of ${all.join(', ')}, got ${unknown}.`);
  }
  for (const name of values.tables ? [] : positionals.length > 0 ? positionals : all) {
    const { result, verdicts } = await play(name);
    const failed = verdicts.filter(({ status }) => status === 'fail').length;
    console.log(`${name}: ${verdicts.length} cases, ${failed} failed (${result.version})`);
    const different = differences(result, resultOf(name));
    if (!values.check) {
      writeFileSync(new URL('result.json', folderOf(name)), serialised(result));
    } else {
      for (const each of different) {
        console.log(`${name}: ${each}`);
        process.exitCode = 1;
      }
    }
  }
  if (!values.check) {
    for (const [url, text] of pages()) {
      writeFileSync(url, text);
    }
  }
}

/** One outcome a line. */
function serialised({ outcomes, ...head }: Result): string {
  const line = (value: unknown): string => JSON.stringify(value);
  const lines = Object.entries(outcomes).map(([id, outcome]) => `    ${line(id)}: ${line(outcome)}`);
  const start = JSON.stringify(head, undefined, 2).replace(/\n}$/, '');
  return `${start},\n  "outcomes": {\n${lines.join(',\n')}\n  }\n}\n`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await main();
}

/** What a run of the benchmark leaves, what follows from it, and the README's part that is made of it. */
import { existsSync, readFileSync } from 'node:fs';
import type { Cost } from './inprocess.ts';

/** A measurement: one fresh process, under load for `seconds`. */
export interface Sample {
  readonly requests: number;
  readonly seconds: number;
  /** Of the latency, in ms. */
  readonly p50: number;
  readonly p99: number;
  /** Of the server, user and system, for a request with its tasks, in µs. */
  readonly cpu: number;
  /** What the hypervisor took of both cores, in percent. */
  readonly steal: number;
}
/** A server, with a sample of each round. */
export interface Row {
  readonly name: string;
  readonly version: string;
  readonly samples: readonly Sample[];
}

export interface Machine {
  readonly cpu: string;
  readonly cores: number;
  readonly kernel: string;
  readonly node: string;
  readonly client: string;
}
/** In process, in ns of the CPU a request. */
export interface Growth {
  readonly tasks: readonly { readonly tasks: number; readonly floor: number; readonly ours: number }[];
  readonly routes: readonly { readonly routes: number; readonly first: number; readonly last: number }[];
  readonly levels: readonly { readonly levels: number; readonly ours: number }[];
  readonly body: readonly { readonly bytes: number; readonly floor: number; readonly ours: number }[];
}
export interface Result {
  readonly date: string;
  readonly command: string;
  readonly machine: Machine;
  readonly seconds: number;
  readonly connections: number;
  readonly core: { readonly floor: Cost; readonly ours: Cost };
  readonly servers: readonly Row[];
  readonly growth: Growth;
}

/** The two floors: the same program, twice. */
export const FLOOR = 'raw node:http';
export const CONTROL = 'raw node:http (control)';
export const OURS = 'response-first';
/** The same as the floor, by Deno's own server. */
export const DENO_SERVE = 'Deno.serve';

export const RESULT = new URL('result.json', import.meta.url);
export const CHART = new URL('chart.svg', import.meta.url);

/** The committed result; `undefined` while no valid run has been committed. */
export const committed = (): Result | undefined =>
  existsSync(RESULT) ? (JSON.parse(readFileSync(RESULT, 'utf8')) as Result) : undefined;

export interface Spread {
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

export function spread(values: readonly number[]): Spread {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (sorted.length - 1) / 2;
  const [low = NaN, high = NaN] = [sorted[Math.floor(at)], sorted[Math.ceil(at)]];
  return { median: (low + high) / 2, min: sorted[0] ?? NaN, max: sorted.at(-1) ?? NaN };
}

const perSecond = ({ requests, seconds }: Sample): number => requests / seconds;

function rowOf(servers: readonly Row[], name: string): Row {
  const row = servers.find((each) => each.name === name);
  if (!row) {
    throw new Error(`Expected a row ${name}, got ${servers.map((each) => each.name).join(', ')}.`);
  }
  return row;
}

/** `measure` of a row, over the mean of the two floors in the same round. */
function ratio(servers: readonly Row[], row: Row, measure: (sample: Sample) => number): Spread {
  const floors = [FLOOR, CONTROL].map((name) => rowOf(servers, name).samples);
  return spread(
    row.samples.map((sample, round) => {
      const [floor, control] = floors.map((samples) => samples[round]);
      if (!floor || !control) {
        throw new Error(`Expected ${row.name} to have as many rounds as the floors.`);
      }
      return measure(sample) / ((measure(floor) + measure(control)) / 2);
    }),
  );
}

export interface Line {
  readonly name: string;
  readonly version: string;
  /** Requests a second, and the same over the floor's. */
  readonly rate: Spread;
  readonly ratio: Spread;
  readonly cpu: Spread;
  readonly p99: Spread;
  readonly p99Ratio: Spread;
}

/** The floor, the control, then the others, the most requests a second first. */
export function lines(servers: readonly Row[]): Line[] {
  const all = servers.map(
    (row): Line => ({
      name: row.name,
      version: row.version,
      rate: spread(row.samples.map(perSecond)),
      ratio: ratio(servers, row, perSecond),
      cpu: spread(row.samples.map(({ cpu }) => cpu)),
      p99: spread(row.samples.map(({ p99 }) => p99)),
      p99Ratio: ratio(servers, row, ({ p99 }) => p99),
    }),
  );
  const floors = [FLOOR, CONTROL].flatMap((name) => all.filter((line) => line.name === name));
  const others = all.filter((line) => !floors.includes(line));
  return [...floors, ...others.sort((a, b) => b.ratio.median - a.ratio.median)];
}

/** Two processes of one program: what they differ by is the noise. */
export function control(servers: readonly Row[]): Spread & { readonly valid: boolean } {
  const [floor, again] = [FLOOR, CONTROL].map((name) => rowOf(servers, name).samples.map(perSecond));
  const all = spread((again ?? []).map((rate, round) => rate / (floor?.[round] ?? NaN)));
  return { ...all, valid: all.median >= 0.97 && all.median <= 1.03 };
}

const whole = (value: number): string => value.toLocaleString('en-US', { maximumFractionDigits: 0 });
const three = (value: number): string => value.toFixed(3);
const range = ({ min, max }: Spread): string => `${min.toFixed(2)}–${max.toFixed(2)}`;

/** Words to the left, figures to the right. */
function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const rule = head.map((name) => (['Server', 'Versions'].includes(name) ? '---' : '---:'));
  return [head, rule, ...rows].map((cells) => `| ${cells.join(' | ')} |`).join('\n');
}

/** One row a server. Call it for a valid result only. */
export function serverTable(servers: readonly Row[]): string {
  const rows = lines(servers).map(({ name, version, rate, ratio, cpu, p99, p99Ratio }) => [
    name.startsWith(OURS) ? `**${name}**` : name,
    version,
    whole(rate.median),
    ratio.median.toFixed(2),
    range(ratio),
    cpu.median.toFixed(1),
    p99.median.toFixed(2),
    p99Ratio.median.toFixed(2),
  ]);
  const head = [
    'Server',
    'Versions',
    'Requests a second',
    '× raw',
    'range',
    'CPU a request, µs',
    'p99, ms',
    '× raw',
  ];
  return table(head, rows);
}

export function growthTables({ tasks, routes, levels, body }: Growth): string {
  const none = levels[0]?.ours ?? NaN;
  return [
    table(
      ['Tasks a request', 'raw, ns', 'ours, ns', '× raw', 'ours, ns a task'],
      tasks.map((row) => [
        whole(row.tasks),
        whole(row.floor),
        whole(row.ours),
        quotient(row),
        whole(row.ours / row.tasks),
      ]),
    ),
    table(
      ['Routes', 'the first one, ns', 'the last one, ns'],
      routes.map((row) => [whole(row.routes), whole(row.first), whole(row.last)]),
    ),
    table(
      ['Levels of dependencies', 'ours, ns', 'more than none, ns'],
      levels.map((row) => [whole(row.levels), whole(row.ours), whole(row.ours - none)]),
    ),
    table(
      ['JSON body', 'raw, ns', 'ours, ns', '× raw'],
      body.map((row) => [bytesOf(row.bytes), whole(row.floor), whole(row.ours), quotient(row)]),
    ),
  ].join('\n\n');
}

const quotient = ({ floor, ours }: { floor: number; ours: number }): string => (ours / floor).toFixed(2);

function bytesOf(bytes: number): string {
  if (bytes < 2 ** 10) {
    return `${bytes} B`;
  }
  return bytes < 2 ** 20 ? `${bytes / 2 ** 10} KiB` : `${bytes / 2 ** 20} MiB`;
}

const CAVEAT = `Read it with care. The client is on the same machine, the handler does nothing else, and the tasks next
to nothing: behind a database, the server is a small part of a request. *Raw* is a program for this one route, without a
router, checks of the input, or a stop that waits for the tasks. The others promise different things about those tasks,
which [the matrix](#the-conformance-suite) shows and this table does not. FastAPI is in another language, and like all
of them it can use more cores by more processes. The figures are of one machine on one day, and hold for no other.`;

/** Follows where that row is in the table. */
const DENO_CAVEAT = `
\`Deno.serve\` is, like raw, a program for this one route: it is to ours on Deno what raw is to ours on Node.`;

/** The part of the README; while no valid run is committed, the sentence that says so. */
export function benchPart(result: Result | undefined): string {
  if (!result) {
    return 'No valid run is committed. `npm run bench`, on a machine that does nothing else, makes one.';
  }
  const {
    date,
    command,
    machine,
    servers,
    core: { floor, ours },
    seconds,
    connections,
    growth,
  } = result;
  const noise = control(servers);
  const rounds = servers[0]?.samples.length ?? 0;
  const steal = Math.max(...servers.flatMap(({ samples }) => samples.map((sample) => sample.steal)));
  return `![Requests a second of each server, as a share of raw node:http's](test/bench/chart.svg)

${serverTable(servers)}

Made by \`${command}\` on ${date}: ${machine.cpu}, ${machine.cores} cores, Linux ${machine.kernel},
Node ${machine.node}, ${machine.client}. \`POST /order?item=…\` on ${connections} kept connections, answered with
35 bytes of JSON, then three tasks. A fresh process for each measurement, the server on one core and the client on the
other; ${rounds} rounds of ${seconds} s after a warm-up, in rotated order; medians, and the range of the ratio to the
mean of both raw rows of the same round. The control is ${three(noise.median)} of raw
(${three(noise.min)}–${three(noise.max)}; a table counts from 0.97 to 1.03), and the hypervisor took at most
${steal.toFixed(1)} % of a measurement. Each server had run exactly three tasks for every answer.

In process, without a network, a request costs ${whole(ours.cpu)} ns of the CPU, raw ${whole(floor.cpu)} ns:
${quotient({ floor: floor.cpu, ours: ours.cpu })} × (\`npm run bench:core\`).

${CAVEAT}${servers.some(({ name }) => name === DENO_SERVE) ? DENO_CAVEAT : ''}

<details><summary>How the cost grows, in process (<code>node test/bench/growth.ts</code>)</summary>

${growthTables(growth)}

</details>`;
}

/** One sample a line. */
export function serialised({ servers, growth, ...head }: Result): string {
  const list = (values: readonly unknown[], indent: string): string =>
    `[\n${values.map((value) => `${indent}  ${JSON.stringify(value)}`).join(',\n')}\n${indent}]`;
  const rows = servers.map(
    ({ samples, ...row }) => `    ${JSON.stringify(row).slice(0, -1)},"samples":${list(samples, '    ')}}`,
  );
  const grown = Object.entries(growth).map(([name, values]) => `    "${name}": ${list(values, '    ')}`);
  const start = JSON.stringify(head, undefined, 2).replace(/\n}$/, '');
  return `${start},\n  "servers": [\n${rows.join(',\n')}\n  ],\n  "growth": {\n${grown.join(',\n')}\n  }\n}\n`;
}

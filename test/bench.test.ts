/** The benchmark's result, its table and its chart: current in form, and valid by its own rule. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { describe, test } from 'node:test';
import { chart } from './bench/chart.ts';
import { alternating, ratioInWords, ratios } from './bench/inprocess.ts';
import {
  benchPart,
  CHART,
  CONTROL,
  committed,
  control,
  DENO_SERVE,
  FLOOR,
  lines,
  OURS,
  RESULT,
  type Result,
  type Row,
  type Sample,
  serialised,
  serverTable,
} from './bench/result.ts';
import { servers } from './bench/servers.ts';
import { withPart } from './suite/matrix.ts';

const readme = readFileSync(new URL('../README.md', import.meta.url), 'utf8');
const result = committed();

/** The servers that joined after the committed result was made. */
const NEWER: readonly string[] = [DENO_SERVE, 'Elysia (Bun)', `${OURS} (Bun)`, `${OURS} (Deno)`];

const sample = (rate: number): Sample => ({
  requests: rate * 4,
  seconds: 4,
  p50: 0.5,
  p99: 1,
  cpu: 20,
  steal: 0,
});
const row = (name: string, ...rates: number[]): Row => ({ name, version: 'v1', samples: rates.map(sample) });

const made: Result = {
  date: '2020-01-01',
  command: 'npm run bench',
  machine: { cpu: 'A <fast> & cheap CPU', cores: 2, kernel: '6.1', node: '24.0.0', client: 'wrk 4.1.0' },
  seconds: 4,
  connections: 16,
  core: { floor: { cpu: 1_000, clock: 900 }, ours: { cpu: 1_500, clock: 1_400 } },
  servers: [
    row('slow', 10, 20, 30),
    row(OURS, 90, 95, 99),
    row(CONTROL, 100, 102, 99),
    row(FLOOR, 100, 98, 101),
  ],
  growth: {
    tasks: [{ tasks: 10, floor: 1_000, ours: 2_000 }],
    routes: [{ routes: 200, first: 1_500, last: 1_501 }],
    levels: [
      { levels: 0, ours: 1_500 },
      { levels: 1, ours: 1_700 },
    ],
    body: [
      { bytes: 100, floor: 5_000, ours: 6_000 },
      { bytes: 2 ** 20, floor: 1e6, ours: 2e6 },
    ],
  },
};

test('the part of the README is the one that `npm run bench -- --tables` writes', () => {
  assert.equal(withPart(readme, 'bench', benchPart(result)), readme);
});

test('the chart is the one that `npm run bench -- --tables` draws', () => {
  assert.equal(existsSync(CHART), result !== undefined);
  if (result) {
    assert.equal(readFileSync(CHART, 'utf8'), chart(result));
  }
});

test('the committed result is of a valid run of all servers, six rounds or more', { skip: !result }, () => {
  assert.ok(result);
  assert.equal(readFileSync(RESULT, 'utf8'), serialised(result));
  assert.deepEqual(Object.keys(result).sort(), Object.keys(made).sort());
  assert.deepEqual(Object.keys(result.machine).sort(), Object.keys(made.machine).sort());
  assert.ok(control(result.servers).valid);
  const names = result.servers.map(({ name }) => name);
  const known = servers().map(({ name }) => name);
  assert.deepEqual(
    names.filter((name) => !known.includes(name)),
    [],
  );
  assert.deepEqual(
    known.filter((name) => !names.includes(name) && !NEWER.includes(name)),
    [],
  );
  for (const { name, version, samples } of result.servers) {
    assert.match(version, /\d/, name);
    assert.ok(samples.length >= 6 && samples.length === result.servers[0]?.samples.length, name);
    for (const each of samples) {
      assert.deepEqual(Object.keys(each).sort(), Object.keys(sample(1)).sort());
      assert.ok(
        Object.values(each).every((value) => value >= 0),
        name,
      );
    }
  }
});

describe('a table', () => {
  test('has the floor in its first row, the control in the second, and then the others by their share', () => {
    assert.deepEqual(
      lines(made.servers).map(({ name }) => name),
      [FLOOR, CONTROL, OURS, 'slow'],
    );
    const first = serverTable(made.servers)
      .split('\n')
      .slice(2)
      .map((each) => each.split(' | ')[0]);
    assert.deepEqual(first, [`| ${FLOOR}`, `| ${CONTROL}`, `| **${OURS}**`, '| slow']);
  });

  test('compares with the mean of both floors in the same round', () => {
    const ours = lines(made.servers).find(({ name }) => name === OURS);
    assert.deepEqual(ours?.ratio, { median: 0.95, min: 0.9, max: 0.99 });
    assert.equal(ours?.rate.median, 95);
    assert.equal(ours?.p99Ratio.median, 1);
  });

  for (const [rate, valid] of [
    [96.9, false],
    [97, true],
    [100, true],
    [103, true],
    [103.1, false],
  ] as const) {
    test(`is ${valid ? 'valid' : 'not valid'} where the control is at ${rate} % of the floor`, () => {
      const noise = control([row(FLOOR, 100, 100, 100), row(CONTROL, rate, 50, 200)]);
      assert.equal(noise.valid, valid);
      assert.deepEqual([noise.min, noise.max], [0.5, 2]);
    });
  }

  test('cannot be made without the floors, or of unequal rounds', () => {
    assert.throws(() => lines([row(OURS, 1)]), /Expected a row raw node:http, got response-first\./);
    assert.throws(
      () => lines([row(FLOOR, 1), row(CONTROL, 1), row(OURS, 1, 2)]),
      /as many rounds as the floors/,
    );
  });
});

test('the part of the README names the machine, the command, the noise and how the cost grows', () => {
  const part = benchPart(made);
  for (const each of [
    'A <fast> & cheap CPU',
    'npm run bench',
    'Linux 6.1',
    '24.0.0',
    'wrk 4.1.0',
    '2020-01-01',
    '1.000 of raw',
    '(0.980–1.041',
    '3 rounds of 4 s',
    '1.50 ×',
    '| 1 MiB | 1,000,000 | 2,000,000 | 2.00 |',
    '| 1 | 1,700 | 200 |',
    '| 200 | 1,500 | 1,501 |',
    '| 10 | 1,000 | 2,000 | 2.00 | 200 |',
  ]) {
    assert.ok(part.includes(each), `${each} in ${part}`);
  }
});

test('the part of the README says what Deno.serve is, where it is in the table', () => {
  const withDeno = { ...made, servers: [...made.servers, row(DENO_SERVE, 200, 200, 200)] };
  const sentence = '`Deno.serve` is, like raw, a program for this one route';
  assert.ok(benchPart(withDeno).includes(sentence));
  assert.ok(!benchPart(made).includes(sentence));
});

describe('rounds in process', () => {
  const cost = (cpu: number) => ({ cpu, clock: 2 * cpu });

  test('alternate between the subjects, and each starts with another one', async () => {
    const order: string[] = [];
    const subject = (name: string, cpu: number) => async () => {
      order.push(name);
      return cost(cpu);
    };
    const costs = await alternating(3, [subject('a', 1), subject('b', 2)]);
    assert.equal(order.join(' '), 'a b b a a b');
    assert.deepEqual(
      costs.map((each) => each.map(({ cpu }) => cpu)),
      [
        [1, 1, 1],
        [2, 2, 2],
      ],
    );
  });

  test('give a ratio each, to the floor of the same round', () => {
    const found = ratios([15, 40, 18].map(cost), [10, 20, 10].map(cost));
    assert.deepEqual(found, { median: 1.8, min: 1.5, max: 2 });
    assert.equal(ratioInWords(found), '1.80 (1.50 to 2.00)');
  });
});

test('every server of the benchmark has its own name, and packages whose versions can be named', () => {
  const all = servers();
  assert.equal(new Set(all.map(({ name }) => name)).size, all.length);
  const read = (name: string): string => readFileSync(new URL(name, import.meta.url), 'utf8');
  const locked = ['bench/package-lock.json', '../package-lock.json'].flatMap((name) => {
    const lock = JSON.parse(read(name)) as { packages: Record<string, object> };
    return Object.keys(lock.packages).map((folder) => folder.replace('node_modules/', ''));
  });
  const required = read('bench/requirements.txt').match(/^\w+/gm) ?? [];
  const pinned = ['node', ...locked, ...required];
  for (const { name, packages } of all) {
    assert.ok(packages.length > 0, name);
    for (const each of packages) {
      assert.ok(pinned.includes(each), `${each} of ${name}`);
    }
  }
});

test('the chart has a bar for each server, as long as its share, and escapes what it names', () => {
  const svg = chart(made);
  const bars = [...svg.matchAll(/<rect class="(\w+)" .*? width="([\d.]+)"/g)];
  assert.deepEqual(
    bars.map(([, kind]) => kind),
    ['raw', 'raw', 'ours', 'other'],
  );
  const [floor = NaN, , ours = NaN] = bars.map(([, , width]) => Number(width));
  assert.ok(Math.abs(ours / floor - 0.95 / 1) < 0.02);
  assert.ok(svg.includes('A &#60;fast&#62; &#38; cheap CPU') && !svg.includes('<fast>'));
});

test('what the benchmark needs is pinned, in versions that are exact', () => {
  const read = (name: string): string => readFileSync(new URL(`bench/${name}`, import.meta.url), 'utf8');
  const manifest = JSON.parse(read('package.json')) as Record<string, Record<string, string>>;
  const { dependencies, devDependencies } = manifest;
  for (const [name, version] of Object.entries({ ...dependencies, ...devDependencies })) {
    assert.match(version, /^\d+\.\d+\.\d+$/, name);
  }
  for (const line of read('requirements.txt').trim().split('\n')) {
    assert.match(line, /^[\w[\]]+==\d[\d.]+$/);
  }
  assert.ok(!read('package-lock.json').includes('"resolved"'));
});

test('a result survives being written', () => {
  assert.deepEqual(JSON.parse(serialised(made)), made);
});

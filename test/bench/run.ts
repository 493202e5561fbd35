/**
 * The benchmark on the wire, then in process: what each server makes of the same work, against raw
 * `node:http`.
 *
 *     npm run bench                             all servers; writes result.json, chart.svg, the README's part
 *     npm run bench -- --only polka,fastapi     those whose names begin so, and both floors; writes nothing
 *     npm run bench -- --rounds 2 --seconds 1   shorter; fewer than six rounds write nothing
 *     npm run bench -- --tables                 the chart and the README's part only, from result.json
 *
 * Needs Linux, two cores and taskset; takes Debian's wrk where it is, else autocannon. A fresh process for
 * each measurement, the server on core 0 and the client on core 1; the order rotates. Where the control,
 * the same program as the floor, differs from it by more than 3 %, the machine was not quiet: no ranking,
 * nothing written, exit code 1.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import net, { type AddressInfo } from 'node:net';
import os from 'node:os';
import { text } from 'node:stream/consumers';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { withPart } from '../suite/matrix.ts';
import { chart } from './chart.ts';
import { core } from './core.ts';
import { growth } from './growth.ts';
import {
  benchPart,
  CHART,
  CONTROL,
  committed,
  control,
  FLOOR,
  type Machine,
  RESULT,
  type Result,
  type Row,
  type Sample,
  serialised,
  serverTable,
} from './result.ts';
import {
  type Environment,
  FOLDER,
  installPackages,
  installPython,
  isPython,
  type Server,
  servers,
  versionIn,
  versions,
} from './servers.ts';

const README = new URL('../../README.md', import.meta.url);
const FEWEST_ROUNDS = 6;
const CONNECTIONS = 16;
const SERVER_CORE = '0';
const CLIENT_CORE = '1';
const WARM_UP = 0.4; // of the time of the measurement

const wrk = spawnable('wrk');
function spawnable(program: string): boolean {
  return (process.env.PATH ?? '').split(':').some((folder) => existsSync(`${folder}/${program}`));
}

function machine(): Machine {
  const version = wrk ? execFileSync('sh', ['-c', 'wrk --version; true'], { encoding: 'utf8' }) : '';
  return {
    cpu: os.cpus()[0]?.model.trim() ?? 'unknown',
    cores: os.availableParallelism(),
    kernel: os.release(),
    node: process.versions.node,
    client: wrk
      ? `wrk ${/\d+\.\d+\.\d+/.exec(version)?.[0]}`
      : `autocannon ${versionIn('node_modules', 'autocannon')}`,
  };
}

interface Load {
  readonly requests: number;
  readonly seconds: number;
  readonly p50: number;
  readonly p99: number;
}

/** Holds the server under load, from the other core. */
async function load(url: string, seconds: number): Promise<Load> {
  const time = `${Math.max(1, Math.round(seconds))}`;
  const common = ['-c', `${CONNECTIONS}`, '-d', time, url];
  const client = wrk
    ? ['wrk', '-t', '1', '-s', 'post.lua', ...common]
    : [process.execPath, 'node_modules/autocannon/autocannon.js', '--json', '--method', 'POST', ...common];
  const child = started(['taskset', '-c', CLIENT_CORE, ...client], {}, 'pipe');
  const [output, [code]] = await Promise.all([
    text(child.stdout as NodeJS.ReadableStream),
    once(child, 'close'),
  ]);
  if (code !== 0) {
    throw new Error(`Expected ${client[0]} to exit with 0, got ${code}: ${output}`);
  }
  const { errors, ...seen } = wrk ? fromWrk(output) : fromAutocannon(output);
  if (errors > 0) {
    throw new Error(`Expected no request to fail, got ${errors}.`);
  }
  return seen;
}

const fromWrk = (output: string): Load & { errors: number } =>
  JSON.parse(output.trim().split('\n').at(-1) ?? '') as Load & { errors: number };

function fromAutocannon(output: string): Load & { errors: number } {
  const { requests, latency, duration, errors, non2xx } = JSON.parse(output) as Autocannon;
  return {
    requests: requests.total,
    seconds: duration,
    p50: latency.p50,
    p99: latency.p99,
    errors: errors + non2xx,
  };
}
interface Autocannon {
  readonly requests: { readonly total: number };
  readonly latency: { readonly p50: number; readonly p99: number };
  readonly duration: number;
  readonly errors: number;
  readonly non2xx: number;
}

const children = new Set<ChildProcess>();

function started(command: readonly string[], env: Environment, stdout: 'pipe' | 'ignore'): ChildProcess {
  const [program = '', ...args] = command;
  const options = { cwd: FOLDER, env: { ...process.env, ...env } };
  const child = spawn(program, args, { ...options, stdio: ['ignore', stdout, 'inherit'] });
  children.add(child);
  return child.once('exit', () => children.delete(child));
}

async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  await once(server.close(), 'close');
  return port;
}

interface Counts {
  readonly answered: number;
  readonly executed: number;
}

async function countsOf(url: string): Promise<Counts> {
  const response = await fetch(`${url}/counts`, { headers: { connection: 'close' } });
  return (await response.json()) as Counts;
}

async function ready(url: string, name: string, child: ChildProcess): Promise<void> {
  for (const deadline = performance.now() + 20_000; ; await setTimeout(20)) {
    if (child.exitCode !== null) {
      throw new Error(`Expected ${name} to serve, but it exited with ${child.exitCode}.`);
    }
    if (performance.now() > deadline) {
      throw new Error(`Expected ${name} to listen within 20 s.`);
    }
    if (await countsOf(url).catch(() => undefined)) {
      return;
    }
  }
}

/**
 * Waits until nothing changes any more.
 * @throws Error unless three tasks were executed for every request answered.
 */
async function idle(url: string, name: string): Promise<Counts> {
  let before = await countsOf(url);
  for (const deadline = performance.now() + 10_000; performance.now() < deadline; ) {
    await setTimeout(50);
    const now = await countsOf(url);
    if (now.answered === before.answered && now.executed === 3 * now.answered) {
      return now;
    }
    before = now;
  }
  throw new Error(`Expected ${name} to execute 3 × ${before.answered} tasks, got ${before.executed}.`);
}

const TICKS_PER_SECOND = Number(execFileSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }));

/** What the process has had of the CPU, in µs. */
function cpuOf({ pid }: ChildProcess): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const afterTheName = stat.replace(/^.*\) /, ''); // which may have spaces
  const fields = afterTheName.split(' ');
  const [userTime, systemTime] = [Number(fields[11]), Number(fields[12])];
  return ((userTime + systemTime) / TICKS_PER_SECOND) * 1e6;
}

function timeOfAllCores(): { steal: number; total: number } {
  const [line = ''] = readFileSync('/proc/stat', 'utf8').split('\n', 1);
  // user nice system idle iowait irq softirq steal
  const ticks = line.trim().split(/\s+/).slice(1, 9).map(Number);
  return { steal: ticks[7] ?? 0, total: ticks.reduce((sum, each) => sum + each, 0) };
}

async function measure(server: Server, seconds: number): Promise<Sample> {
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const command = isPython(server) ? [...server.command, `${port}`] : server.command;
  const env = { ...server.env, PORT: `${port}`, NODE_ENV: 'production', PYTHONDONTWRITEBYTECODE: '1' };
  // taskset becomes the server
  const child = started(['taskset', '-c', SERVER_CORE, ...command], env, 'ignore');
  try {
    await ready(url, server.name, child);
    const target = `${url}/order?item=${encodeURIComponent('한글')}`;
    const answer = (await (await fetch(target, { method: 'POST' })).json()) as { message?: string };
    if (answer.message !== '주문 완료: 한글') {
      throw new Error(`Expected ${server.name} to answer an order, got ${JSON.stringify(answer)}.`);
    }
    await load(target, seconds * WARM_UP);
    const before = { ...(await idle(url, server.name)), cpu: cpuOf(child), ...timeOfAllCores() };
    const seen = await load(target, seconds);
    const after = { ...(await idle(url, server.name)), cpu: cpuOf(child), ...timeOfAllCores() };
    const answered = after.answered - before.answered;
    const most = seen.requests + CONNECTIONS; // the last answers found no client any more
    if (answered < seen.requests || answered > most) {
      throw new Error(`Expected ${server.name} to have answered ${seen.requests} requests, got ${answered}.`);
    }
    return {
      ...seen,
      cpu: Number(((after.cpu - before.cpu) / answered).toFixed(2)),
      steal: Number(((100 * (after.steal - before.steal)) / (after.total - before.total)).toFixed(2)),
    };
  } finally {
    const exited = child.exitCode === null && child.signalCode === null ? once(child, 'exit') : undefined;
    child.kill('SIGKILL');
    await exited;
  }
}

/** Each server once a round; every round starts further on in the list. */
async function onTheWire(meant: readonly Server[], rounds: number, seconds: number): Promise<Row[]> {
  const samples = new Map(meant.map(({ name }) => [name, [] as Sample[]]));
  for (let round = 0; round < rounds; round += 1) {
    const first = Math.floor((round * meant.length) / rounds);
    for (const server of [...meant.slice(first), ...meant.slice(0, first)]) {
      const sample = await measure(server, seconds);
      samples.get(server.name)?.push(sample);
      const { requests, p99, cpu, steal } = sample;
      const which = `${round + 1}/${rounds} ${server.name.padEnd(32)}`;
      const rate = Math.round(requests / sample.seconds);
      console.error(`${which} ${rate}/s, ${cpu} µs, p99 ${p99} ms, steal ${steal} %`);
    }
  }
  return meant.map((server) => ({
    name: server.name,
    version: versions(server),
    samples: samples.get(server.name) ?? [],
  }));
}

function writePages(result: Result | undefined): void {
  if (result) {
    writeFileSync(CHART, chart(result));
  }
  writeFileSync(README, withPart(readFileSync(README, 'utf8'), 'bench', benchPart(result)));
}

/** All servers, or both floors and those whose names begin so. */
function chosen(only: readonly string[] | undefined): readonly Server[] {
  const all = servers();
  const isMeant = ({ name }: Server, start: string): boolean =>
    name.toLowerCase().startsWith(start.toLowerCase());
  const unknown = only?.find((start) => !all.some((server) => isMeant(server, start)));
  if (unknown !== undefined) {
    throw new Error(`Expected one of ${all.map(({ name }) => name).join(', ')}, got ${unknown}.`);
  }
  const starts = [FLOOR, CONTROL, ...(only ?? [''])];
  return all.filter((server) => starts.some((start) => isMeant(server, start)));
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      rounds: { type: 'string', default: '6' },
      seconds: { type: 'string', default: '4' },
      only: { type: 'string' },
      tables: { type: 'boolean' },
    },
  });
  if (values.tables) {
    return writePages(committed());
  }
  const [rounds, seconds, only] = [Number(values.rounds), Number(values.seconds), values.only?.split(',')];
  if (!(rounds >= 1 && seconds >= 1)) {
    throw new Error('Expected --rounds and --seconds to be at least 1.');
  }
  if (os.availableParallelism() < 2 || !spawnable('taskset')) {
    throw new Error('Expected two cores, and taskset.');
  }
  if (!Reflect.get(process.features, 'typescript')) {
    throw new Error('Expected Node 22.18 or later.');
  }
  installPackages();
  const meant = chosen(only);
  if (meant.some(isPython)) {
    installPython();
  }
  const rows = await onTheWire(meant, rounds, seconds);
  const { median, min, max, valid } = control(rows);
  console.log(`control/raw ${median.toFixed(3)} (${min.toFixed(3)} to ${max.toFixed(3)})`);
  if (!valid) {
    console.log(
      'Outside 0.97 to 1.03: the machine was not quiet. There is no ranking, and nothing was written.',
    );
    process.exitCode = 1;
    return;
  }
  console.log(serverTable(rows));
  if (only || rounds < FEWEST_ROUNDS) {
    return console.log(`Nothing was written: that takes all servers and ${FEWEST_ROUNDS} rounds.`);
  }
  const flags = process.argv.slice(2);
  const result: Result = {
    date: new Date().toISOString().slice(0, 10),
    command: ['npm run bench', ...(flags.length > 0 ? ['--', ...flags] : [])].join(' '),
    machine: machine(),
    seconds,
    connections: CONNECTIONS,
    core: await core(),
    servers: rows,
    growth: await growth(),
  };
  writeFileSync(RESULT, serialised(result));
  writePages(result);
}

const end = (): never => {
  for (const child of children) {
    child.kill('SIGKILL');
  }
  process.exit(130);
};

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  process.once('SIGINT', end).once('SIGTERM', end);
  await main();
}

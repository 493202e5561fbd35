/**
 * The benchmark on the wire, then in process: what each server makes of the same work, against raw `node:http`.
 *
 *     npm run bench                                   all servers; writes result.json, chart.svg and the README's part
 *     npm run bench -- --only polka,fastapi           those whose names begin so, and both floors; writes nothing
 *     npm run bench -- --rounds 2 --seconds 1         shorter; fewer than six rounds write nothing
 *     npm run bench -- --tables                       the chart and the README's part only, from result.json
 *
 * Needs Linux, two cores and taskset; takes Debian's wrk where it is, else autocannon. A fresh process for each
 * measurement, the server on core 0 and the client on core 1; the order rotates. Where the control, the same program
 * as the floor, differs from it by more than 3 %, the machine was not quiet: no ranking, nothing written, exit code 1.
 */
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
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
  benchPart, CHART, committed, CONTROL, control, FLOOR, OURS, RESULT, serialised, serverTable,
  type Machine, type Result, type Row, type Sample,
} from './result.ts';

const HERE = fileURLToPath(new URL('.', import.meta.url));
const README = new URL('../../README.md', import.meta.url);
const FEWEST_ROUNDS = 6;
const CONNECTIONS = 16;
const SERVER_CORE = '0';
const CLIENT_CORE = '1';
const WARM_UP = 0.4; // of the time of the measurement

interface Server {
  readonly name: string;
  /** Whose versions the table names, as package managers call them. */
  readonly packages: readonly string[];
  readonly command: readonly string[];
  readonly env?: Environment;
}
type Environment = Readonly<Record<string, string>>;

const node = (file: string, ...flags: string[]): string[] => [process.execPath, ...flags, `servers/${file}.ts`];
const uvicorn = ['.venv/bin/uvicorn', 'fastapi_app:app', '--app-dir', 'servers', '--log-level', 'warning', '--port'];

/** The two floors stand apart, so that a machine that slows down shows in their ratio. */
const SERVERS: readonly Server[] = [
  { name: FLOOR, packages: ['node'], command: node('floor') },
  { name: OURS, packages: ['node'], command: node('response-first') },
  { name: 'polka', packages: ['polka'], command: node('polka') },
  { name: 'Fastify', packages: ['fastify'], command: node('fastify') },
  { name: 'h3', packages: ['h3', 'srvx'], command: node('h3') },
  { name: 'Koa', packages: ['koa', '@koa/router'], command: node('koa') },
  { name: CONTROL, packages: ['node'], command: node('floor') },
  { name: `${OURS} (tsx)`, packages: ['node', 'tsx'], command: node('response-first', '--import', 'tsx') },
  { name: 'Hono', packages: ['hono', '@hono/node-server'], command: node('hono') },
  { name: 'Express', packages: ['express'], command: node('express') },
  { name: 'FastAPI (async tasks)', packages: ['fastapi', 'uvicorn'], command: uvicorn, env: { TASK_KIND: 'async' } },
  { name: 'FastAPI (sync tasks)', packages: ['fastapi', 'uvicorn'], command: uvicorn, env: { TASK_KIND: 'sync' } },
];
const isPython = ({ packages }: Server): boolean => packages.includes('fastapi');

const read = <T>(file: string): T => JSON.parse(readFileSync(`${HERE}${file}`, 'utf8')) as T;
const versionIn = (folder: string, name: string): string | undefined =>
  (existsSync(`${HERE}${folder}/${name}/package.json`)
    ? read<{ version: string }>(`${folder}/${name}/package.json`).version : undefined);

/** Installs what is not there yet, or not in the version that is pinned. */
function install(servers: readonly Server[]): void {
  const { dependencies } = read<{ dependencies: Record<string, string> }>('package.json');
  if (Object.entries(dependencies).some(([name, version]) => versionIn('node_modules', name) !== version)) {
    execFileSync('npm', ['ci', '--no-audit', '--no-fund'], { cwd: HERE, stdio: 'inherit' });
  }
  const [marker, pinned] = [`${HERE}.venv/installed`, readFileSync(`${HERE}requirements.txt`, 'utf8')];
  if (!servers.some(isPython) || (existsSync(marker) && readFileSync(marker, 'utf8') === pinned)) return;
  const pip = ['install', '--quiet', '--disable-pip-version-check', '-r', 'requirements.txt'];
  execFileSync('python3', ['-m', 'venv', '.venv'], { cwd: HERE, stdio: 'inherit' });
  execFileSync('.venv/bin/pip', pip, { cwd: HERE, stdio: 'inherit' });
  writeFileSync(marker, pinned);
}

function versions(server: Server): string {
  return server.packages.map((name) => {
    if (name === 'node') return `node ${process.versions.node}`;
    if (!isPython(server)) return `${name} ${versionIn('node_modules', name) ?? versionIn('../../node_modules', name)}`;
    const program = `from importlib.metadata import version; print(version("${name}"))`;
    return `${name} ${execFileSync('.venv/bin/python', ['-c', program], { cwd: HERE, encoding: 'utf8' }).trim()}`;
  }).join(', ');
}

const wrk = spawnable('wrk');
function spawnable(program: string): boolean {
  return (process.env['PATH'] ?? '').split(':').some((folder) => existsSync(`${folder}/${program}`));
}

function machine(): Machine {
  const version = wrk ? execFileSync('sh', ['-c', 'wrk --version; true'], { encoding: 'utf8' }) : '';
  return {
    cpu: os.cpus()[0]?.model.trim() ?? 'unknown',
    cores: os.availableParallelism(),
    kernel: os.release(),
    node: process.versions.node,
    client: wrk ? `wrk ${/\d+\.\d+\.\d+/.exec(version)?.[0]}` : `autocannon ${versionIn('node_modules', 'autocannon')}`,
  };
}

interface Load { readonly requests: number; readonly seconds: number; readonly p50: number; readonly p99: number }

/** Holds the server under load, from the other core. */
async function load(url: string, seconds: number): Promise<Load> {
  const time = `${Math.max(1, Math.round(seconds))}`;
  const common = ['-c', `${CONNECTIONS}`, '-d', time, url];
  const client = wrk ? ['wrk', '-t', '1', '-s', 'post.lua', ...common]
    : [process.execPath, 'node_modules/autocannon/autocannon.js', '--json', '--method', 'POST', ...common];
  const child = started(['taskset', '-c', CLIENT_CORE, ...client], {}, 'pipe');
  const [output, [code]] = await Promise.all([text(child.stdout as NodeJS.ReadableStream), once(child, 'close')]);
  if (code !== 0) throw new Error(`Expected ${client[0]} to exit with 0, got ${code}: ${output}`);
  const { errors, ...seen } = wrk ? fromWrk(output) : fromAutocannon(output);
  if (errors > 0) throw new Error(`Expected no request to fail, got ${errors}.`);
  return seen;
}

const fromWrk = (output: string): Load & { errors: number } =>
  JSON.parse(output.trim().split('\n').at(-1) ?? '') as Load & { errors: number };

function fromAutocannon(output: string): Load & { errors: number } {
  const { requests, latency, duration, errors, non2xx } = JSON.parse(output) as Autocannon;
  return { requests: requests.total, seconds: duration, p50: latency.p50, p99: latency.p99, errors: errors + non2xx };
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
  const options = { cwd: HERE, env: { ...process.env, ...env } };
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

interface Counts { readonly answered: number; readonly executed: number }

async function countsOf(url: string): Promise<Counts> {
  const response = await fetch(`${url}/counts`, { headers: { connection: 'close' } });
  return await response.json() as Counts;
}

async function ready(url: string, name: string, child: ChildProcess): Promise<void> {
  for (const deadline = performance.now() + 20_000; ; await setTimeout(20)) {
    if (child.exitCode !== null) throw new Error(`Expected ${name} to serve, but it exited with ${child.exitCode}.`);
    if (performance.now() > deadline) throw new Error(`Expected ${name} to listen within 20 s.`);
    if (await countsOf(url).catch(() => undefined)) return;
  }
}

/** Waits until nothing changes any more. @throws Error unless three tasks were executed for every request answered. */
async function idle(url: string, name: string): Promise<Counts> {
  let before = await countsOf(url);
  for (const deadline = performance.now() + 10_000; performance.now() < deadline;) {
    await setTimeout(50);
    const now = await countsOf(url);
    if (now.answered === before.answered && now.executed === 3 * now.answered) return now;
    before = now;
  }
  throw new Error(`Expected ${name} to execute 3 × ${before.answered} tasks, got ${before.executed}.`);
}

const TICKS_PER_SECOND = Number(execFileSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }));

/** What the process has had of the CPU, in µs. */
function cpuOf({ pid }: ChildProcess): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\) /, '').split(' '); // a name may have spaces
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND * 1e6; // utime, stime
}

function systemTime(): { steal: number; total: number } {
  const [line = ''] = readFileSync('/proc/stat', 'utf8').split('\n', 1);
  const ticks = line.trim().split(/\s+/).slice(1, 9).map(Number); // user nice system idle iowait irq softirq steal
  return { steal: ticks[7] ?? 0, total: ticks.reduce((sum, each) => sum + each, 0) };
}

async function measure(server: Server, seconds: number): Promise<Sample> {
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const command = isPython(server) ? [...server.command, `${port}`] : server.command;
  const env = { ...server.env, PORT: `${port}`, NODE_ENV: 'production', PYTHONDONTWRITEBYTECODE: '1' };
  const child = started(['taskset', '-c', SERVER_CORE, ...command], env, 'ignore'); // taskset becomes the server
  try {
    await ready(url, server.name, child);
    const target = `${url}/order?item=${encodeURIComponent('한글')}`;
    const answer = await (await fetch(target, { method: 'POST' })).json() as { message?: string };
    if (answer.message !== '주문 완료: 한글') {
      throw new Error(`Expected ${server.name} to answer an order, got ${JSON.stringify(answer)}.`);
    }
    await load(target, seconds * WARM_UP);
    const before = { ...await idle(url, server.name), cpu: cpuOf(child), ...systemTime() };
    const seen = await load(target, seconds);
    const after = { ...await idle(url, server.name), cpu: cpuOf(child), ...systemTime() };
    const answered = after.answered - before.answered;
    if (answered < seen.requests || answered > seen.requests + CONNECTIONS) { // the last ones found no client any more
      throw new Error(`Expected ${server.name} to have answered ${seen.requests} requests, got ${answered}.`);
    }
    return {
      ...seen,
      cpu: Number(((after.cpu - before.cpu) / answered).toFixed(2)),
      steal: Number((100 * (after.steal - before.steal) / (after.total - before.total)).toFixed(2)),
    };
  } finally {
    const exited = child.exitCode === null && child.signalCode === null ? once(child, 'exit') : undefined;
    child.kill('SIGKILL');
    await exited;
  }
}

/** Each server once a round; every round starts further on in the list. */
async function onTheWire(servers: readonly Server[], rounds: number, seconds: number): Promise<Row[]> {
  const samples = new Map(servers.map(({ name }) => [name, [] as Sample[]]));
  for (let round = 0; round < rounds; round += 1) {
    const first = Math.floor(round * servers.length / rounds);
    for (const server of [...servers.slice(first), ...servers.slice(0, first)]) {
      const sample = await measure(server, seconds);
      samples.get(server.name)?.push(sample);
      const { requests, p99, cpu, steal } = sample;
      const [which, rate] = [`${round + 1}/${rounds} ${server.name.padEnd(32)}`, Math.round(requests / sample.seconds)];
      console.error(`${which} ${rate}/s, ${cpu} µs, p99 ${p99} ms, steal ${steal} %`);
    }
  }
  return servers.map((server) => (
    { name: server.name, version: versions(server), samples: samples.get(server.name) ?? [] }));
}

function writePages(result: Result | undefined): void {
  if (result) writeFileSync(CHART, chart(result));
  writeFileSync(README, withPart(readFileSync(README, 'utf8'), 'bench', benchPart(result)));
}

async function main(): Promise<void> {
  const { values } = parseArgs({ options: {
    rounds: { type: 'string', default: '6' },
    seconds: { type: 'string', default: '4' },
    only: { type: 'string' },
    tables: { type: 'boolean' },
  } });
  if (values.tables) return writePages(committed());
  const [rounds, seconds, only] = [Number(values.rounds), Number(values.seconds), values.only?.split(',')];
  if (!(rounds >= 1 && seconds >= 1)) throw new Error('Expected --rounds and --seconds to be at least 1.');
  const isMeant = (server: Server, start: string): boolean => server.name.toLowerCase().startsWith(start.toLowerCase());
  const unknown = only?.find((start) => !SERVERS.some((server) => isMeant(server, start)));
  if (unknown) throw new Error(`Expected one of ${SERVERS.map(({ name }) => name).join(', ')}, got ${unknown}.`);
  if (os.availableParallelism() < 2 || !spawnable('taskset')) throw new Error('Expected two cores, and taskset.');
  if (!Reflect.get(process.features, 'typescript')) throw new Error('Expected Node 22.18 or later.');
  const servers = SERVERS.filter((server) => [FLOOR, CONTROL, ...only ?? ['']].some((start) => isMeant(server, start)));
  install(servers);
  const rows = await onTheWire(servers, rounds, seconds);
  const { median, min, max, valid } = control(rows);
  console.log(`control/raw ${median.toFixed(3)} (${min.toFixed(3)} to ${max.toFixed(3)})`);
  if (!valid) {
    console.log('Outside 0.97 to 1.03: the machine was not quiet. There is no ranking, and nothing was written.');
    process.exitCode = 1;
    return;
  }
  console.log(serverTable(rows));
  if (only || rounds < FEWEST_ROUNDS) {
    return console.log(`Nothing was written: that takes all servers and ${FEWEST_ROUNDS} rounds.`);
  }
  const result: Result = {
    date: new Date().toISOString().slice(0, 10),
    command: ['npm run bench', ...(process.argv.length > 2 ? ['--', ...process.argv.slice(2)] : [])].join(' '),
    machine: machine(), seconds, connections: CONNECTIONS, core: await core(), servers: rows, growth: await growth(),
  };
  writeFileSync(RESULT, serialised(result));
  writePages(result);
}

const end = (): never => {
  for (const child of children) child.kill('SIGKILL');
  process.exit(130);
};

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  process.once('SIGINT', end).once('SIGTERM', end);
  await main();
}

/** The servers of the benchmark on the wire: how each is started, and what it needs. */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { CONTROL, DENO_SERVE, FLOOR, OURS } from './result.ts';

/** The folder that the commands are run in. */
export const FOLDER = fileURLToPath(new URL('.', import.meta.url));

export type Environment = Readonly<Record<string, string>>;

export interface Server {
  readonly name: string;
  /** Whose versions the table names, as package managers call them. */
  readonly packages: readonly string[];
  /** The program itself, and no starter that stays its parent: what is measured is this process. */
  readonly command: readonly string[];
  readonly env?: Environment;
}

const node = (file: string, ...flags: string[]): string[] => [
  process.execPath,
  ...flags,
  `servers/${file}.ts`,
];

/** The npm package `deno` starts this file as its child. */
const DENO = `node_modules/@deno/linux-${process.arch}-glibc/deno`;
const deno = (file: string): string[] => [DENO, 'run', '--allow-all', '--no-lock', `servers/${file}.ts`];

/** The npm package `bun` moves its program here when its install script runs, which is not always. */
const MOVED_BUN = 'node_modules/bun/bin/bun.exe';
const bun = (file: string): string[] => {
  const unmoved = `node_modules/@oven/bun-linux-${process.arch === 'arm64' ? 'aarch64' : 'x64'}/bin/bun`;
  return [existsSync(`${FOLDER}${unmoved}`) ? unmoved : MOVED_BUN, `servers/${file}.ts`];
};

const uvicorn = [
  '.venv/bin/uvicorn',
  'fastapi_app:app',
  '--app-dir',
  'servers',
  '--log-level',
  'warning',
  '--port',
];

/**
 * All servers, once what they need is installed. The two floors stand apart, so that a machine that slows
 * down shows in their ratio.
 */
export const servers = (): readonly Server[] => [
  { name: FLOOR, packages: ['node'], command: node('floor') },
  { name: OURS, packages: ['node'], command: node('response-first') },
  { name: 'polka', packages: ['polka'], command: node('polka') },
  { name: 'Fastify', packages: ['fastify'], command: node('fastify') },
  { name: DENO_SERVE, packages: ['deno'], command: deno('deno-serve') },
  { name: `${OURS} (Deno)`, packages: ['deno'], command: deno('response-first') },
  { name: 'h3', packages: ['h3', 'srvx'], command: node('h3') },
  { name: 'Koa', packages: ['koa', '@koa/router'], command: node('koa') },
  { name: CONTROL, packages: ['node'], command: node('floor') },
  { name: `${OURS} (tsx)`, packages: ['node', 'tsx'], command: node('response-first', '--import', 'tsx') },
  { name: 'Hono', packages: ['hono', '@hono/node-server'], command: node('hono') },
  { name: 'Elysia (Bun)', packages: ['elysia', 'bun'], command: bun('elysia') },
  { name: `${OURS} (Bun)`, packages: ['bun'], command: bun('response-first') },
  { name: 'Express', packages: ['express'], command: node('express') },
  {
    name: 'FastAPI (async tasks)',
    packages: ['fastapi', 'uvicorn'],
    command: uvicorn,
    env: { TASK_KIND: 'async' },
  },
  {
    name: 'FastAPI (sync tasks)',
    packages: ['fastapi', 'uvicorn'],
    command: uvicorn,
    env: { TASK_KIND: 'sync' },
  },
];

export const isPython = ({ packages }: Server): boolean => packages.includes('fastapi');

const read = <T>(file: string): T => JSON.parse(readFileSync(`${FOLDER}${file}`, 'utf8')) as T;

/** The version of a package in a `node_modules`, where it is there. */
export const versionIn = (folder: string, name: string): string | undefined =>
  existsSync(`${FOLDER}${folder}/${name}/package.json`)
    ? read<{ version: string }>(`${folder}/${name}/package.json`).version
    : undefined;

/** Installs the packages of npm that are not there yet, or not in the version that is pinned. */
export function installPackages(): void {
  const { dependencies } = read<{ dependencies: Record<string, string> }>('package.json');
  if (Object.entries(dependencies).some(([name, version]) => versionIn('node_modules', name) !== version)) {
    execFileSync('npm', ['ci', '--no-audit', '--no-fund'], { cwd: FOLDER, stdio: 'inherit' });
  }
}

/** Installs the packages of Python, likewise. */
export function installPython(): void {
  const marker = `${FOLDER}.venv/installed`;
  const pinned = readFileSync(`${FOLDER}requirements.txt`, 'utf8');
  if (existsSync(marker) && readFileSync(marker, 'utf8') === pinned) {
    return;
  }
  const pip = ['install', '--quiet', '--disable-pip-version-check', '-r', 'requirements.txt'];
  execFileSync('python3', ['-m', 'venv', '.venv'], { cwd: FOLDER, stdio: 'inherit' });
  execFileSync('.venv/bin/pip', pip, { cwd: FOLDER, stdio: 'inherit' });
  writeFileSync(marker, pinned);
}

/** What the table says of a server's versions. */
export function versions(server: Server): string {
  return server.packages
    .map((name) => {
      if (name === 'node') {
        return `node ${process.versions.node}`;
      }
      if (!isPython(server)) {
        return `${name} ${versionIn('node_modules', name) ?? versionIn('../../node_modules', name)}`;
      }
      const program = `from importlib.metadata import version; print(version("${name}"))`;
      const version = execFileSync('.venv/bin/python', ['-c', program], { cwd: FOLDER, encoding: 'utf8' });
      return `${name} ${version.trim()}`;
    })
    .join(', ');
}

/** `server.ts` as a process: what it serves, its flags, one clear line for each mistake. Its import starts nothing. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import net, { type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { child, root } from './helpers.ts';

const SERVER = new URL('../server.ts', import.meta.url).href;
/** Neither the port nor the host of whoever runs the tests. */
const env = { PORT: '', HOST: '' };

interface Folder extends AsyncDisposable {
  readonly path: string;
  /** Writes `files`, by name, and the folders that they are in; returns the path of the first. */
  write(files: Readonly<Record<string, string>>): Promise<string>;
}

/** A folder for app modules; unlike the rest of the temporary folder, a `"type": "module"` package. */
async function packageFolder(): Promise<Folder> {
  const folder = await mkdtemp(path.join(tmpdir(), 'cli-'));
  const write: Folder['write'] = async (files) => {
    const paths = Object.keys(files).map((name) => path.join(folder, name));
    for (const [at, text] of Object.values(files).entries()) {
      const file = paths[at] ?? '';
      await mkdir(path.dirname(file), { recursive: true });
      await writeFile(file, text);
    }
    return paths[0] ?? '';
  };
  await write({ 'package.json': '{ "type": "module" }' });
  return { path: folder, write, [Symbol.asyncDispose]: () => rm(folder, { recursive: true }) };
}

const HELLO = `
  import { createApp, get } from '${SERVER}';
  export default createApp([get('/', () => 'hello')]);`;

interface Ended {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** What a process that ends by itself has to say. */
async function run(args: readonly string[], variables: NodeJS.ProcessEnv = {}): Promise<Ended> {
  await using started = child(args, { env: { ...env, ...variables } });
  const { code } = await started.exited;
  return { code, stdout: started.stdout, stderr: started.stderr };
}

/** The body of `GET path` of a process that serves; it must have said nothing but where it listens. */
async function answer(args: readonly string[], target: string, cwd = root): Promise<string> {
  await using started = child(args, { env, cwd });
  const url = await started.url();
  const text = await (await fetch(url + target)).text();
  assert.equal(started.stdout, `listening on ${url}\n`);
  assert.equal(started.stderr, '');
  return text;
}

/** Clear means: one line, which is no stack, and which says `message`. */
function assertOneLine({ code, stdout, stderr }: Ended, message: string): void {
  assert.equal(code, 1);
  assert.equal(stdout, '');
  assert.match(stderr, /^[^\n]+\n$/);
  assert.ok(stderr.includes(message), stderr);
}

test('without an app module it serves the tutorial', async () => {
  assert.equal(await answer(['server.ts', '--port', '0'], '/task-log'), '{"entries":[]}');
});

test('it serves the default export of an app module, by an absolute path', async () => {
  await using folder = await packageFolder();
  const file = await folder.write({ 'app.ts': HELLO });
  assert.equal(await answer(['server.ts', file, '--port', '0'], '/'), '"hello"');
});

test('a relative path of an app module is relative to the current folder; any character is allowed', async () => {
  await using folder = await packageFolder();
  const name = 'an app #1?, 100% 한글.ts';
  await folder.write({ [name]: HELLO });
  const server = path.join(root, 'server.ts');
  assert.equal(await answer([server, '--port', '0', name], '/', folder.path), '"hello"');
});

test('it serves when it is run through a symbolic link', async () => {
  await using folder = await packageFolder();
  const link = path.join(folder.path, 'linked');
  await symlink(root, link);
  assert.equal(await answer([path.join(link, 'server.ts'), '--port', '0'], '/task-log'), '{"entries":[]}');
});

test('without a port it listens on 127.0.0.1:8000', async () => {
  await using started = child(['server.ts'], { env });
  await started.url().catch(() => {}); // somebody else may have that port: stderr names it then
  assert.match(started.stdout + started.stderr, /127\.0\.0\.1:8000\n/);
});

test('PORT and HOST say where to listen', async () => {
  await using started = child(['server.ts'], { env: { PORT: '0', HOST: '0.0.0.0' } });
  assert.match(await started.url(), /^http:\/\/0\.0\.0\.0:(?!8000$)\d+$/);
});

test('--port and --host win over PORT and HOST', async () => {
  await using started = child(['server.ts', '--port=0', '--host=0.0.0.0'], {
    env: { PORT: 'none', HOST: 'none' },
  });
  assert.match(await started.url(), /^http:\/\/0\.0\.0\.0:\d+$/);
});

test('--help prints the usage, and serves nothing', async () => {
  const { code, stdout, stderr } = await run(['server.ts', '--help']);
  assert.equal(code, 0);
  assert.match(stdout, /^Usage: node --import tsx server\.ts \[app-module\] \[--port N\] \[--host H\]\n/);
  assert.equal(stderr, '');
});

for (const [args, message] of [
  [['--nope'], /'--nope'/],
  [['--port', 'http'], /port.*'http'/],
  [['--port', '65536'], /port.*'65536'/],
  [['--port', '1.5'], /port.*'1\.5'/],
  [['--port='], /port.*''/],
  [['--port'], /'--port/],
  [['--host'], /'--host/],
  [['one.ts', 'two.ts'], /one app module, got 2/],
] as const) {
  test(`${args.join(' ')} is a usage error: one line, the usage, exit code 2`, async () => {
    const { code, stdout, stderr } = await run(['server.ts', ...args]);
    assert.equal(code, 2);
    assert.equal(stdout, '');
    assert.match(stderr, /^[^\n]+\nUsage: [^]*\n$/);
    assert.match(stderr.split('\n')[0] ?? '', message);
    assert.doesNotMatch(stderr, /^ +at /m);
  });
}

test('a PORT that is no port is a usage error too', async () => {
  const { code, stderr } = await run(['server.ts'], { PORT: 'http' });
  assert.equal(code, 2);
  assert.match(stderr, /^[^\n]*port[^\n]*'http'[^\n]*\nUsage: /);
});

test('a port in use is one clear line', async () => {
  const other = net.createServer().listen(0, '127.0.0.1');
  await once(other, 'listening');
  const { port } = other.address() as AddressInfo;
  try {
    assertOneLine(
      await run(['server.ts', '--port', String(port)]),
      `address already in use 127.0.0.1:${port}`,
    );
  } finally {
    other.close();
  }
});

test('an app module that is missing is one clear line', async () => {
  await using folder = await packageFolder();
  const file = path.join(folder.path, 'missing.ts');
  assertOneLine(await run(['server.ts', file, '--port', '0']), file);
});

for (const [what, source, name = 'app.ts'] of [
  ['no default export', 'export const app = 1;'],
  ['null', 'export default null;'],
  ['an object that is no app', 'export default { listener() {} };'],
  ['a function', 'export default function app() {}'],
  [
    'what a compiler made of an ES module',
    'module.exports = Object.assign({}, { __esModule: true });',
    'app.cjs',
  ],
] as const) {
  test(`an app module that exports ${what} is one clear line`, async () => {
    await using folder = await packageFolder();
    const file = await folder.write({ [name]: source });
    assertOneLine(await run(['server.ts', file, '--port', '0']), file);
  });
}

test('an app module that throws keeps its stack, and the exit code is 1', async () => {
  await using folder = await packageFolder();
  const file = await folder.write({
    'app.ts': `${HELLO}
    (function configure() { throw new Error('no config'); })();`,
  });
  const { code, stdout, stderr } = await run(['server.ts', file, '--port', '0']);
  assert.equal(code, 1);
  assert.equal(stdout, '');
  assert.match(stderr, /Error: no config\n {4}at configure .*app\.ts/);
});

test('an app module outside a "type": "module" package is refused in one clear line', async () => {
  await using folder = await packageFolder();
  const file = await folder.write({ 'plain/app.ts': HELLO, 'plain/package.json': '{}' });
  // Not measured: the coverage of the CommonJS form of server.ts would be laid over that of the ES module.
  assertOneLine(await run(['server.ts', file, '--port', '0'], { NODE_V8_COVERAGE: '' }), '"type": "module"');
});

test('an app module that loads a second copy of server.ts is refused in the same line', async () => {
  await using folder = await packageFolder();
  const file = await folder.write({ 'app.ts': `import '${SERVER}?second';` });
  assertOneLine(await run(['server.ts', file, '--port', '0']), '"type": "module"');
});

test('an app.mts needs no "type": "module"', async () => {
  await using folder = await packageFolder();
  const file = await folder.write({ 'plain/app.mts': HELLO, 'plain/package.json': '{}' });
  assert.equal(await answer(['server.ts', file, '--port', '0'], '/'), '"hello"');
});

/** Ends by itself only if nothing listens. */
const IMPORTS = `import { createApp } from '${SERVER}'; console.log(typeof createApp);`;
const IMPORTED = { code: 0, stdout: 'function\n', stderr: '' };

test('an import of server.ts starts nothing', async () => {
  await using folder = await packageFolder();
  assert.deepEqual(await run([await folder.write({ 'imports.ts': IMPORTS })]), IMPORTED);
});

for (const [what, args] of [
  ['no script', []],
  ['an argument that is no file', ['no-such-file']],
  ['an argument that is a folder', [tmpdir()]],
] as const) {
  test(`an import of server.ts starts nothing where there is ${what}`, async () => {
    assert.deepEqual(await run(['--input-type=module', '-e', IMPORTS, '--', ...args]), IMPORTED);
  });
}

test('a worker thread of an app that is served may import server.ts', async () => {
  await using folder = await packageFolder();
  const file = await folder.write({
    'app.ts': `
      import { once } from 'node:events';
      import { Worker } from 'node:worker_threads';
      import { createApp, get } from '${SERVER}';
      const worker = () => new Worker(new URL('worker.mjs', import.meta.url));
      export default createApp([get('/', async () => (await once(worker(), 'message'))[0])]);`,
    'worker.mjs': `
      import { parentPort } from 'node:worker_threads';
      import { register } from '${import.meta.resolve('tsx/esm/api')}';
      register(); // on Node 20 a worker does not have what --import registered
      const { createApp } = await import('${SERVER}');
      parentPort.postMessage(typeof createApp);`,
  });
  assert.equal(await answer(['server.ts', file, '--port', '0'], '/'), '"function"');
});

test('the address of an IPv6 host is printed in brackets', async () => {
  await using started = child(['server.ts', '--host', '::1', '--port', '0'], { env });
  const url = await started.url();
  assert.match(url, /^http:\/\/\[::1\]:\d+$/);
  assert.equal((await fetch(`${url}/task-log`)).status, 200);
  started.kill('SIGTERM');
  assert.deepEqual(await started.exited, { code: 0, signal: null });
});

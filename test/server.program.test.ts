/** When `server.ts` is the command line: as the program itself, with `deps.ts` beside it, and never in a bundle. */
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { describe } from 'node:test';
import { child, root } from './helpers.ts';
import { test } from './server.helpers.ts';

const CORE = ['background', 'deps', 'server'];

type Folder = { readonly path: string } & AsyncDisposable;

/** A folder of a `"type": "module"` package, with `files` by their names. */
async function folderOf(files: Readonly<Record<string, string>>): Promise<Folder> {
  const folder = await mkdtemp(path.join(tmpdir(), 'program-'));
  await writeFile(path.join(folder, 'package.json'), '{ "type": "module" }');
  for (const [name, text] of Object.entries(files)) {
    await mkdir(path.dirname(path.join(folder, name)), { recursive: true });
    await writeFile(path.join(folder, name), text);
  }
  return { path: folder, [Symbol.asyncDispose]: () => rm(folder, { recursive: true }) };
}

/** A file of the core whose own imports are in `place`, with another extension. */
async function coreText(name: string, place: string, extension: string): Promise<string> {
  const text = await readFile(path.join(root, `${name}.ts`), 'utf8');
  return text.replaceAll(/from '\.\/(\w+)\.ts'/g, `from '${place}/$1${extension}'`);
}

/** A folder with `server.ts` and an app behind it in a file called `name`, which has no other of ours beside it. */
async function bundle(name: string): Promise<Folder> {
  const extension = path.extname(name);
  const text = await coreText('server', './elsewhere', extension);
  const app = `
    const bundled = createApp([get('/', () => 'bundled')]);
    bundled.listen({ port: 0 }).then(async ({ url }) => {
      console.log('the bundle has', await (await fetch(url)).text());
      await bundled.close();
    });`;
  return folderOf({
    [name]: text + app,
    [`elsewhere/background${extension}`]: await coreText('background', '.', extension),
    [`elsewhere/deps${extension}`]: await coreText('deps', '.', extension),
  });
}

/** What a process says that ends by itself. */
async function run(cwd: string, args: readonly string[]): Promise<string[]> {
  await using started = child(args, { cwd, env: { PORT: '', HOST: '' } });
  const { code } = await started.exited;
  return [`exit code ${code}`, started.stdout, started.stderr];
}

describe('a bundle', () => {
  for (const name of ['bundle.ts', 'bundle.mts', 'bundle.cts', 'server.ts', 'index.ts']) {
    test(`called ${name} is its own program, whatever its arguments are`, async () => {
      await using folder = await bundle(name);
      const said = await run(folder.path, [name, '--unknown', 'no-module.ts']);
      assert.deepEqual(said, ['exit code 0', 'the bundle has "bundled"\n', '']);
    });
  }

  test('that is started without its extension is its own program, too', async () => {
    await using folder = await bundle('bundle.ts');
    assert.deepEqual(await run(folder.path, ['bundle', '--unknown']), [
      'exit code 0',
      'the bundle has "bundled"\n',
      '',
    ]);
  });
});

describe('an app module that is started itself', () => {
  test('beside the three files does nothing', async () => {
    await using folder = await folderOf({
      'my-app.ts': "import { createApp } from './server.ts'; export default createApp([]);",
    });
    for (const name of CORE) {
      await writeFile(path.join(folder.path, `${name}.ts`), await coreText(name, '.', '.ts'));
    }
    assert.deepEqual(await run(folder.path, ['my-app.ts', '--unknown']), ['exit code 0', '', '']);
  });
});

describe('the command line', () => {
  const APP =
    "import { createApp, get } from './server.EXT'; export default createApp([get('/', () => 'hello')]);";

  for (const [extension, script] of [
    ['.ts', 'server.ts'],
    ['.ts', 'server'],
    ['.ts', './server'],
    ['.mts', 'server.mts'],
  ] as const) {
    test(`is that of a copy with ${extension} files, started as ${script}`, async () => {
      await using folder = await folderOf({ 'my-app.ts': APP.replace('.EXT', extension) });
      for (const name of CORE) {
        const text = await coreText(name, '.', extension);
        await writeFile(path.join(folder.path, `${name}${extension}`), text);
      }
      await using started = child([script, 'my-app.ts', '--port', '0'], { cwd: folder.path });
      assert.equal(await (await fetch(await started.url())).text(), '"hello"');
      assert.equal(started.stderr, '');
    });
  }
});

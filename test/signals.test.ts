/** When a signal is a repeat, a second one, or too early for a server: on a clock that the test moves. */
import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { describe } from 'node:test';
import { type Child, child } from './helpers.ts';
import { test } from './server.helpers.ts';
import { submit } from './shutdown.helpers.ts';

const SERVER = new URL('../server.ts', import.meta.url);

interface Program extends AsyncDisposable {
  readonly child: Child;
  /** Sends `signal`, once `lines` lines on stderr say that the handlers of the signals before it have run. */
  signal(signal: NodeJS.Signals, lines: number): Promise<void>;
}

/** `server.ts` with an app module that consists of `text`. */
async function start(text: string): Promise<Program> {
  const folder = await mkdtemp(path.join(tmpdir(), 'signals-'));
  await writeFile(path.join(folder, 'package.json'), '{ "type": "module" }');
  const file = path.join(folder, 'app.ts');
  await writeFile(file, text);
  const started = child(['server.ts', file, '--port', '0']);
  return {
    child: started,
    async signal(signal, lines) {
      await started.until('stderr', new RegExp(`^(.+\\n){${lines}}`));
      started.kill(signal);
    },
    async [Symbol.asyncDispose]() {
      await started[Symbol.asyncDispose]();
      await rm(folder, { recursive: true });
    },
  };
}

/**
 * Its first task is held until a SIGUSR2. The clock moves by 250 ms at every SIGWINCH. Each signal writes a line when its
 * handlers have run.
 */
const HELD = `
  import { backgroundTasks, createApp, get, post } from '${SERVER}';
  let now = 1000;
  performance.now = () => now;
  let release = () => {};
  const held = new Promise<void>((resolve) => { release = resolve; });
  process.on('SIGUSR2', () => { release(); });
  process.on('SIGWINCH', () => { now += 250; console.error('250 ms later'); });
  for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => { console.error('got ' + signal); });
  export default createApp([
    post('/items', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask(async function first() { await held; });
      tasks.addTask(function second() { console.error('the second task'); });
    }),
    get('/hangs', () => { console.error('hangs'); return new Promise(() => {}); }),
  ]);`;

describe('a repeated signal', () => {
  const repeats: [what: string, signals: NodeJS.Signals[], lines: string[]][] = [
    ['at once', ['SIGINT', 'SIGINT'], ['got SIGINT', 'got SIGINT']],
    ['of the other kind', ['SIGINT', 'SIGTERM'], ['got SIGINT', 'got SIGTERM']],
    [
      'twice, up to 250 ms later,',
      ['SIGTERM', 'SIGTERM', 'SIGWINCH', 'SIGTERM'],
      ['got SIGTERM', 'got SIGTERM', '250 ms later', 'got SIGTERM'],
    ],
  ];
  for (const [what, signals, lines] of repeats) {
    test(`${what} is the same stop: every task runs, and the exit code is 0`, async () => {
      await using program = await start(HELD);
      await submit(`${await program.child.url()}/items`);
      for (const [place, signal] of signals.entries()) {
        await program.signal(signal, place);
      }
      await program.signal('SIGUSR2', signals.length);
      assert.deepEqual(await program.child.exited, { code: 0, signal: null });
      assert.equal(program.child.stderr, [...lines, 'the second task', ''].join('\n'));
    });
  }
});

describe('a second signal', () => {
  const seconds: [what: string, signals: NodeJS.Signals[], code: number][] = [
    ['500 ms later', ['SIGINT', 'SIGWINCH', 'SIGWINCH', 'SIGINT'], 130],
    ['of the other kind, 500 ms later,', ['SIGINT', 'SIGWINCH', 'SIGWINCH', 'SIGTERM'], 143],
    ['500 ms after the first of two', ['SIGINT', 'SIGWINCH', 'SIGINT', 'SIGWINCH', 'SIGINT'], 130],
  ];
  for (const [what, signals, code] of seconds) {
    test(`${what} ends the process at once, and names what it drops`, async () => {
      await using program = await start(HELD);
      const url = await program.child.url();
      await submit(`${url}/items`);
      const hanging = assert.rejects(fetch(`${url}/hangs?secret=1`));
      for (const [place, signal] of signals.entries()) {
        await program.signal(signal, place + 1);
      }
      assert.deepEqual(await program.child.exited, { code, signal: null });
      await hanging;
      const dropped = program.child.stderr.split('\n').slice(signals.length);
      assert.deepEqual(dropped, [
        'Dropped at the second signal: first',
        'Dropped at the second signal: second',
        'Dropped at the second signal: GET /hangs',
        '',
      ]);
    });
  }
});

describe('a signal before the server listens', () => {
  const forEver = 'setInterval(() => {}, 2 ** 30);';
  for (const [what, text] of Object.entries({
    'while the app module hangs in a top-level await': `${forEver} console.error('here'); await new Promise(() => {});`,
    'while a module that the app module imports hangs': `
      await import('data:text/javascript,' + encodeURIComponent(
        ${JSON.stringify(`${forEver} console.error('here'); await new Promise(() => {});`)},
      ));`,
    'while listen() is under way': `
      const listen = () => { ${forEver} console.error('here'); return new Promise(() => {}); };
      export default { listen, idle() {} };`,
  })) {
    for (const signal of ['SIGTERM', 'SIGINT'] as const) {
      test(`${signal} ${what} ends the process with 0`, async () => {
        await using program = await start(text);
        await program.signal(signal, 1);
        assert.deepEqual(await program.child.exited, { code: 0, signal: null });
        assert.deepEqual([program.child.stdout, program.child.stderr], ['', 'here\n']);
      });
    }
  }
});

/** What the tests share: a server per test, gates instead of sleeps, raw sockets, real child processes. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import net from 'node:net';
import type { TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { format } from 'node:util';
import { type App, type AppOptions, createApp, type Route } from '../server.ts';

export const root = fileURLToPath(new URL('..', import.meta.url));

const deadline = 30_000; // turns a hang into a failure; nothing is measured by it

/** For a test that would hang if it failed. */
export const within = { timeout: deadline };

/** A promise that the test resolves: what a task or a handler is held at. */
export interface Gate<T = void> extends Promise<T> {
  open(value: T): void;
}

export function gate<T = void>(): Gate<T> {
  let open!: (value: T) => void;
  const promise = new Promise<T>((resolve) => {
    open = resolve;
  });
  return Object.assign(promise, { open });
}

/** What stderr would show. It formats, as the real one does: there a hostile value throws. */
export function stderr(t: TestContext): string[] {
  const lines: string[] = [];
  t.mock.method(console, 'error', (...args: unknown[]) => void lines.push(format(...args)));
  return lines;
}

export interface Served extends AsyncDisposable {
  readonly app: App;
  readonly url: string;
  readonly port: number;
}

/** Serves `routes` on a port of their own until the end of the test: `await using server = await serve([…])`. */
export async function serve(routes: readonly Route[], options?: AppOptions): Promise<Served> {
  const app = createApp(routes, options);
  const { url } = await app.listen({ port: 0 });
  const close = async (): Promise<void> => void (await app.close());
  return { app, url, port: Number(new URL(url).port), [Symbol.asyncDispose]: close };
}

/** A client that sees bytes. */
export interface RawClient extends Disposable {
  readonly socket: net.Socket;
  readonly received: string;
  /** Everything received, once `text` is in it, `times` times. Rejects if the connection ends before. */
  until(text: string, times?: number): Promise<string>;
  /** Resolves, with everything received, at the server's end of file or a reset. */
  readonly closed: Promise<string>;
  send(...lines: string[]): void;
}

/** Connects to `port`. `send('GET / HTTP/1.1', 'host: a', '', '')` joins its lines by CRLF. */
export async function rawClient(
  port: number,
  options: Partial<net.TcpNetConnectOpts> = {},
): Promise<RawClient> {
  const socket = net.connect({ port, host: '127.0.0.1', ...options });
  await once(socket, 'connect');
  let received = '';
  let over = false;
  const waiting = new Set<() => void>();
  const check = (): void => {
    for (const each of waiting) {
      each();
    }
  };
  socket.setEncoding('utf8').on('data', (chunk: string) => {
    received += chunk;
    check();
  });
  socket.on('error', () => {});
  const closed = new Promise<string>((resolve) => {
    const end = (): void => {
      over = true;
      check();
      resolve(received);
    };
    socket.once('end', end).once('close', end);
  });
  return {
    socket,
    get received() {
      return received;
    },
    closed,
    until: (text, times = 1) =>
      new Promise((resolve, reject) => {
        const look = (): void => {
          if (received.split(text).length > times) {
            resolve(received);
          } else if (over) {
            reject(new Error(`The connection ended before ${times} × '${text}'; received: ${received}`));
          } else {
            return;
          }
          waiting.delete(look);
        };
        waiting.add(look);
        look();
      }),
    send: (...lines) => void socket.write(lines.join('\r\n')),
    [Symbol.dispose]: () => void socket.destroy(),
  };
}

export interface Child extends AsyncDisposable {
  readonly pid: number;
  readonly stdout: string;
  readonly stderr: string;
  /** Everything on that stream, once it matches. Rejects if the process ends before. */
  until(stream: 'stdout' | 'stderr', pattern: RegExp): Promise<string>;
  /** The address that `server.ts` printed. */
  url(): Promise<string>;
  kill(signal: NodeJS.Signals): void;
  readonly exited: Promise<{ readonly code: number | null; readonly signal: NodeJS.Signals | null }>;
}

interface ChildOptions {
  readonly env?: NodeJS.ProcessEnv;
  readonly cwd?: string;
  /** Until then, or until it has exited, little more of its stderr is read than a pipe holds. */
  readonly readStderr?: Promise<unknown>;
}

/** A real process: this Node with `--import tsx` and `args`, in the root of the repository or in `cwd`. */
export function child(args: readonly string[], options: ChildOptions = {}): Child {
  const tsx = import.meta.resolve('tsx');
  const started = spawn(process.execPath, ['--import', tsx, ...args], {
    cwd: options.cwd ?? root,
    env: { ...process.env, ...options.env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const output = { stdout: '', stderr: '' };
  let over = false;
  const waiting = new Set<() => void>();
  const check = (): void => {
    for (const each of waiting) {
      each();
    }
  };
  for (const name of ['stdout', 'stderr'] as const) {
    started[name].setEncoding('utf8').on('data', (chunk: string) => {
      output[name] += chunk;
      check();
    });
  }
  if (options.readStderr) {
    started.stderr.pause();
    void Promise.race([options.readStderr, once(started, 'exit')]).then(() => started.stderr.resume());
  }
  const exited = once(started, 'close').then(([code, signal]) => {
    over = true;
    check();
    return { code, signal };
  });
  const until: Child['until'] = (stream, pattern) =>
    new Promise((resolve, reject) => {
      const look = (): void => {
        if (pattern.test(output[stream])) {
          resolve(output[stream]);
        } else if (over) {
          reject(new Error(`The process ended before ${pattern} on ${stream}: ${JSON.stringify(output)}`));
        } else {
          return;
        }
        waiting.delete(look);
      };
      waiting.add(look);
      look();
    });
  return {
    pid: started.pid ?? 0,
    get stdout() {
      return output.stdout;
    },
    get stderr() {
      return output.stderr;
    },
    until,
    url: async () => /listening on (\S+)/.exec(await until('stdout', /listening on \S+\n/))?.[1] ?? '',
    kill: (signal) => void started.kill(signal),
    exited,
    async [Symbol.asyncDispose]() {
      if (!over) {
        started.kill('SIGKILL');
      }
      await exited;
    },
  };
}

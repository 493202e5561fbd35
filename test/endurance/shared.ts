/** What the endurance scripts share: claims, a seed, a deadline, a server in a process of its own, clients of bytes. */
import { spawn } from 'node:child_process';
import { subscribe } from 'node:diagnostics_channel';
import { once } from 'node:events';
import net from 'node:net';
import { fileURLToPath } from 'node:url';
import type { App } from '../../server.ts';

const isLong = process.env.ENDURANCE === 'long';
const isServer = process.env.ENDURANCE_SERVER === '1';

/** One of two sizes: of the short form, which CI runs, and of the long one (`ENDURANCE=long`). */
export const size = (short: number, long: number): number => (isLong ? long : short);

/** A number that a reader can take in: 1,000,000. */
export const number = (n: number): string => n.toLocaleString('en');
export const megabytes = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

export interface Random {
  /** An integer from 0 to `limit - 1`. */
  below(limit: number): number;
  chance(probability: number): boolean;
  pick<T>(list: readonly T[]): T;
}

/** Mulberry32: the same seed gives the same numbers on every machine. */
export function random(seed: number): Random {
  let state = seed >>> 0;
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let bits = Math.imul(state ^ (state >>> 15), state | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  };
  const below = (limit: number): number => Math.floor(next() * limit);
  return { below, chance: (probability) => next() < probability, pick: (list) => list[below(list.length)]! };
}

export interface Run {
  readonly seed: number;
  /** The numbers of the `index`-th part of the run: they depend on the seed and on `index` alone. */
  random(index: number): Random;
  /** Prints a line; where the claim does not hold, the script goes on, and exits with 1 at its end. */
  claim(holds: boolean, sentence: string, figures?: string): void;
  /** Where the run is: what the deadline names. */
  stage(name: string): void;
}

/**
 * Runs `body` where `url`, the module's own, is the process; in the server's process the same module is the app.
 * Exits with 1, and one sentence that has the seed, for a claim that does not hold, an error or the deadline.
 */
export async function endure(
  url: string,
  deadline: number,
  body: (run: Run) => Promise<void>,
): Promise<void> {
  if (isServer || process.argv[1] !== fileURLToPath(url)) {
    return;
  }
  const name = url.split('/').at(-1)?.replace('.ts', '') ?? '';
  const seed = Number(process.env.SEED || Math.floor(Math.random() * 2 ** 32));
  const replay = `Replay with ${isLong ? 'ENDURANCE=long ' : ''}SEED=${seed} and this file.`;
  const broken: string[] = [];
  let stage = 'the start';
  const fail = (why: string): void => {
    console.error(`${name} failed: ${why} ${replay}`);
    process.exit(1);
  };
  const timer = setTimeout(() => fail(`the deadline of ${deadline / 1000} s passed at ${stage}.`), deadline);
  console.log(`${name}: ${isLong ? 'long' : 'short'} form, seed ${seed}, Node ${process.versions.node}`);
  const begin = performance.now();
  try {
    await body({
      seed,
      random: (index) => random(seed ^ Math.imul(index + 1, 0x9e3779b1)),
      claim(holds, sentence, figures) {
        console.log(`  ${holds ? 'ok  ' : 'NOT '} ${sentence}${figures ? `: ${figures}` : ''}`);
        if (!holds) {
          broken.push(sentence);
        }
      },
      stage(name) {
        stage = name;
      },
    });
  } catch (error) {
    console.error(error);
    fail(`an error at ${stage}.`);
  }
  clearTimeout(timer);
  if (broken.length > 0) {
    fail(`it does not hold that ${broken.join('; nor that ')}.`);
  }
  console.log(`  ${((performance.now() - begin) / 1000).toFixed(1)} s`);
  process.exit(0);
}

/** What the server's process tells of itself. */
export interface Figures {
  readonly pending: number;
  readonly heap: number;
  readonly rss: number;
  /** User and system time, in µs. */
  readonly cpu: number;
  /** The connections that are open. */
  readonly open: number;
  /** The sockets and the requests that have not been collected as garbage. */
  readonly alive: { readonly sockets: number; readonly requests: number };
  /** What the app itself counts. */
  readonly counts: Readonly<Record<string, number>>;
  /** What the app itself has to say, the first hundred only. */
  readonly notes: readonly string[];
}

const alive = { sockets: 0, requests: 0 };
const collected = new FinalizationRegistry((kind: keyof typeof alive) => {
  alive[kind] -= 1;
});
const watch = (kind: keyof typeof alive, object: object): void => {
  alive[kind] += 1;
  collected.register(object, kind);
};

/** In the server's process: answers the script's questions about `app`, and ends when the script does. */
export function probe(app: App, counts: Record<string, number> = {}, notes: readonly string[] = []): App {
  if (!isServer) {
    return app;
  }
  subscribe('net.server.socket', (message) => watch('sockets', (message as { socket: object }).socket));
  subscribe('http.server.request.start', (message) =>
    watch('requests', (message as { request: object }).request),
  );
  process.on('disconnect', () => process.exit(1));
  process.on('message', async (question: 'now' | 'collected') => {
    for (let round = 0; question === 'collected' && round < 4; round += 1) {
      globalThis.gc?.();
      await new Promise((resolve) => setTimeout(resolve, 1)); // what is finalized is told in a later turn
    }
    const { heapUsed: heap, rss } = process.memoryUsage();
    const { user, system } = process.cpuUsage();
    const open = process.getActiveResourcesInfo().filter((name) => name === 'TCPSocketWrap').length;
    const told = notes.slice(0, 100);
    const figures: Figures = {
      pending: app.pending,
      heap,
      rss,
      cpu: user + system,
      open,
      alive,
      counts,
      notes: told,
    };
    process.send?.(figures);
  });
  return app;
}

export interface Server extends AsyncDisposable {
  readonly port: number;
  readonly stderr: string;
  /** What the process tells of itself; `'collected'` has the garbage collected first. */
  figures(question?: 'now' | 'collected'): Promise<Figures>;
  /** Asks until `condition` holds, or for a minute: the answer tells. */
  until(condition: (figures: Figures) => boolean, question?: 'now' | 'collected'): Promise<Figures>;
  kill(signal: NodeJS.Signals): void;
  readonly exited: Promise<{ readonly code: number | null; readonly signal: NodeJS.Signals | null }>;
}

export const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Has `server.ts`, in a process of its own, serve the app module at `url`. */
export async function startServer(url: string, env: Record<string, string> = {}): Promise<Server> {
  const root = fileURLToPath(new URL('../..', import.meta.url));
  const flags = process.execArgv.filter((flag) => flag !== '--expose-gc');
  const child = spawn(
    process.execPath,
    [...flags, '--expose-gc', 'server.ts', fileURLToPath(url), '--port', '0'],
    {
      cwd: root,
      env: { ...process.env, ...env, ENDURANCE_SERVER: '1' },
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    },
  );
  const end = (): void => {
    child.kill('SIGKILL');
  };
  process.once('exit', end);
  let stderr = '';
  let stdout = '';
  let over = false;
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  const exited = once(child, 'close').then(([code, signal]) => {
    over = true;
    process.removeListener('exit', end);
    return { code, signal };
  });
  const early = exited.then(({ code, signal }): never => {
    throw new Error(`The server ended with ${code ?? signal}; on stderr: ${stderr.slice(-2000)}`);
  });
  early.catch(() => {}); // it is what others are raced with
  const listening = new Promise<number>((resolve) =>
    child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
      const port = /listening on \S+:(\d+)\n/.exec(stdout)?.[1];
      if (port) {
        resolve(Number(port));
      }
    }),
  );
  const waiting: ((figures: Figures) => void)[] = [];
  child.on('message', (figures: Figures) => waiting.shift()?.(figures));
  const figures: Server['figures'] = (question = 'now') =>
    Promise.race([
      early,
      new Promise<Figures>((resolve) => {
        waiting.push(resolve);
        child.send(question, () => {}); // where it fails, the process has ended
      }),
    ]);
  return {
    port: await Promise.race([listening, early]),
    get stderr() {
      return stderr;
    },
    figures,
    async until(condition, question) {
      for (const end = performance.now() + 60_000; ; ) {
        const now = await figures(question);
        if (condition(now) || performance.now() > end) {
          return now;
        }
        await pause(20);
      }
    },
    kill(signal) {
      child.kill(signal);
    },
    exited,
    async [Symbol.asyncDispose]() {
      if (!over) {
        end();
      }
      await exited;
    },
  };
}

/** Ends the server: it exits with 0, as it has lost nothing, and nothing had to be said on stderr. */
export async function claimCleanEnd(server: Server, claim: Run['claim']): Promise<void> {
  server.kill('SIGTERM');
  const { code } = await server.exited;
  claim(
    code === 0 && server.stderr === '',
    'after SIGTERM it exits with 0, and wrote nothing to stderr',
    `${code}${server.stderr.slice(0, 500)}`,
  );
}

export interface Answer {
  readonly status: number;
  readonly head: string;
  readonly body: string;
}

/** A client of bytes. It never throws: where the connection ends, there is no answer. */
export interface Client {
  readonly socket: net.Socket;
  send(bytes: string | Buffer): void;
  /** The next whole answer, or `undefined` if the connection ended before. */
  answer(): Promise<Answer | undefined>;
  /** Resolves when the connection is over, with the bytes that make no whole answer. */
  readonly closed: Promise<string>;
}

export function connect(port: number): Client {
  const socket = net.connect({ port, host: '127.0.0.1', noDelay: true });
  const answers: Answer[] = [];
  const waiting: ((answer: Answer | undefined) => void)[] = [];
  let rest = '';
  let over = false;
  const parse = answersIn((answer) => {
    const next = waiting.shift();
    if (next) {
      next(answer);
    } else {
      answers.push(answer);
    }
  });
  const closed = new Promise<string>((resolve) =>
    socket.on('close', () => {
      over = true;
      for (const each of waiting.splice(0)) {
        each(undefined);
      }
      resolve(rest);
    }),
  );
  socket
    .setEncoding('latin1')
    .on('error', () => {})
    .on('data', (text: string) => {
      rest = parse(text);
    });
  return {
    socket,
    send(bytes) {
      socket.write(bytes);
    },
    answer: () =>
      new Promise((resolve) => {
        const next = answers.shift();
        if (next || over) {
          resolve(next);
        } else {
          waiting.push(resolve);
        }
      }),
    closed,
  };
}

/** Takes the text of a connection as it comes, calls `take` with each whole answer, and gives what is left. */
function answersIn(take: (answer: Answer) => void): (text: string) => string {
  let rest = '';
  let needed = 0; // where the answer ends, if that is known
  return (text) => {
    rest += text;
    while (rest.length > 0 && rest.length >= needed) {
      const first = firstAnswer(rest);
      if (!first) {
        break;
      }
      needed = first.end;
      if (rest.length < needed) {
        break;
      }
      take(first.answer(rest));
      rest = rest.slice(needed);
      needed = 0;
    }
    return rest;
  };
}

/** Where the first answer of `text` ends, and how to read it then; nothing as long as that cannot be told. */
function firstAnswer(text: string): { end: number; answer: (text: string) => Answer } | undefined {
  const headEnd = text.indexOf('\r\n\r\n');
  if (headEnd < 0) {
    return undefined;
  }
  const head = text.slice(0, headEnd);
  const status = Number(head.slice(9, 12));
  const from = headEnd + 4;
  if (/\r\ntransfer-encoding: chunked/i.test(head)) {
    const last = /(^|\r\n)0\r\n\r\n/.exec(text.slice(from));
    if (!last) {
      return undefined;
    }
    const body = text.slice(from, from + last.index).replace(/(^|\r\n)[\da-f]+\r\n/gi, '');
    return { end: from + last.index + last[0].length, answer: () => ({ status, head, body }) };
  }
  const end = from + Number(/\r\ncontent-length: (\d+)/i.exec(head)?.[1] ?? 0);
  return { end, answer: (text) => ({ status, head, body: text.slice(from, end) }) };
}

/** A request without a body, or with one of JSON. */
export function requestOf(method: string, target: string, json?: string): string {
  const start = `${method} ${target} HTTP/1.1\r\nhost: a\r\n`;
  if (json !== undefined) {
    const length = Buffer.byteLength(json);
    return `${start}content-type: application/json\r\ncontent-length: ${length}\r\n\r\n${json}`;
  }
  return method === 'POST' ? `${start}content-length: 0\r\n\r\n` : `${start}\r\n`;
}

/** Runs `work` for 0 to `count - 1`, `width` of them at once. */
export async function each(
  count: number,
  width: number,
  work: (index: number) => Promise<void>,
): Promise<void> {
  let next = 0;
  await Promise.all(
    Array.from({ length: width }, async () => {
      while (next < count) {
        await work(next++);
      }
    }),
  );
}

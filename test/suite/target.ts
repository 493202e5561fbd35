/** The server under test: an address, and, where the suite is to start and end it, the command. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import net from 'node:net';
import { addressOf, getText } from './client.ts';
import { Failure, within } from './harness.ts';

export interface TargetOptions {
  /** Where it answers, e.g. `http://127.0.0.1:9000`. */
  readonly url: string;
  /** A shell command that starts it there, and whose process it is; it has the port in PORT. */
  readonly command?: string;
  readonly cwd?: string;
  readonly deadlineMs: number;
  /** How long the command has until it listens, in ms (120 000). */
  readonly startDeadlineMs?: number;
}

/** What `GET /` answers. */
export interface Preflight {
  readonly contract: 1;
  readonly name: string;
  readonly version: string;
  readonly instance: string;
  readonly capabilities: readonly string[];
  readonly dialects: Readonly<Record<string, string>>;
}

export const CAPABILITIES = ['dependencies', 'yield', 'sync', 'stream', 'adds', 'head'];
export const DIALECTS: Readonly<Record<string, { values: readonly string[]; needs?: string }>> = {
  afterFailure: { values: ['continue', 'stop'] },
  onThrow: { values: ['discard', 'run'] },
  brokenStream: { values: ['run', 'drop'], needs: 'stream' },
  cleanUp: { values: ['before', 'after'], needs: 'yield' },
  concurrency: { values: ['serial', 'parallel'] },
};

export class Target {
  readonly #options: TargetOptions;
  #process: ChildProcess | undefined;
  /** What the process wrote to stderr. */
  stderr = '';
  /** Resolves when the process is over. */
  exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }> | undefined;
  /** True while the process is there and no case has ended it. */
  running = false;

  constructor(options: TargetOptions) {
    this.#options = { ...options, url: originOf(options.url) };
  }

  get url(): string {
    return this.#options.url;
  }
  get canRestart(): boolean {
    return this.#options.command !== undefined;
  }

  /** Starts the command, where it is not running, and waits until the address accepts a connection. True if it did. */
  async start(): Promise<boolean> {
    const { url, command, cwd, startDeadlineMs = 120_000 } = this.#options;
    if (!command) {
      return false;
    }
    if (this.running && (await accepts(url))) {
      return false;
    }
    await this.stop(); // one that runs and does not listen is about to end, or of no use
    if (await within(startDeadlineMs, `a connection to ${url}, or its refusal,`, accepts(url))) {
      throw new Failure(
        `${url} is in use before \`${command}\` has started: end what listens there, or choose another port`,
      );
    }
    const { host, port } = addressOf(url);
    const started = spawn(shellLine(command), {
      cwd,
      shell: true,
      detached: true,
      env: { ...process.env, PORT: `${port}`, HOST: host },
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    this.#process = started;
    endWith(started);
    this.stderr = '';
    this.running = true;
    started.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.stderr += text;
    });
    this.exited = once(started, 'close')
      .then(
        ([code, signal]) => ({ code, signal }),
        (error: Error) => {
          this.stderr += error.message; // the shell was not started, e.g. as the folder is not there
          return { code: null, signal: null };
        },
      )
      .finally(() => {
        this.running = false;
      });
    const accepting = async (): Promise<void> => {
      while (this.running && !(await accepts(url))) {
        await pause();
      }
      if (this.running) {
        return;
      }
      const end = await this.exited;
      const how = end?.signal ?? `exit code ${end?.code ?? 'unknown'}`;
      throw new Failure(`\`${command}\` ended (${how}) before it listened on ${url}; ${this.#lastWords}`);
    };
    try {
      await within(startDeadlineMs, `a server on ${url}, as \`${command}\` should start it,`, accepting());
    } catch (error) {
      const { running } = this;
      await this.stop();
      if (running && error instanceof Failure) {
        error.message += `; ${this.#lastWords}`;
      }
      throw error;
    }
    return true;
  }

  get #lastWords(): string {
    const text = this.stderr.trim();
    return text ? `its stderr: ${text.slice(-600)}` : 'it wrote nothing to stderr';
  }

  /** Resolves when `found` holds of what stderr has. */
  onStderr(found: () => boolean): Promise<void> {
    return new Promise((resolve) => {
      const look = (): void => {
        if (found()) {
          this.#process?.stderr?.off('data', look);
          resolve();
        }
      };
      this.#process?.stderr?.on('data', look);
      look();
    });
  }

  signal(name: NodeJS.Signals): void {
    if (!this.#process || !this.running) {
      throw new Failure('the process is over already');
    }
    this.#process.kill(name);
  }

  /** Ends the process and its children, if any. */
  async stop(): Promise<void> {
    if (!this.#process?.pid) {
      return;
    }
    try {
      process.kill(-this.#process.pid, 'SIGKILL');
    } catch {
      /* it is over, with its group */
    }
    this.#process.stderr?.destroy(); // a process that has left the group may hold it
    await this.exited;
    this.#process = undefined;
    const { url, deadlineMs } = this.#options;
    const deadline = performance.now() + deadlineMs;
    while (performance.now() < deadline && (await accepts(url))) {
      await pause(); // a child of it may still be dying
    }
  }

  /** @throws Failure in one sentence if the address does not answer the contract's `GET /`. */
  async preflight(): Promise<Preflight> {
    const { url, deadlineMs } = this.#options;
    const asked = `GET ${url}/`;
    const leave = new AbortController();
    const answered = getText(`${url}/`, leave.signal);
    const { status, text } = await within(deadlineMs, `the answer to ${asked}`, answered)
      .catch((error: Failure) => {
        throw new Failure(`${error.message}. Is the target running there?`);
      })
      .finally(() => leave.abort());
    const got = JSON.stringify(text.length > 200 ? `${text.slice(0, 200)}…` : text);
    const failure = (what: string): Failure =>
      new Failure(
        `${asked} answered ${status} ${got}, not the preflight of fixtures/conformance/README.md: ${what}`,
      );
    const wrong = (key: string, expected: string, value: unknown): Failure =>
      failure(`expected \`${key}\` to be ${expected}, got ${JSON.stringify(value) ?? 'nothing'}`);
    if (status !== 200) {
      throw failure('expected the status 200');
    }
    let answer: Partial<Preflight> | null;
    try {
      answer = JSON.parse(text);
    } catch {
      throw failure('expected JSON');
    }
    const { contract, name, version, instance, capabilities, dialects } = answer ?? {};
    if (contract !== 1) {
      throw wrong('contract', '1', contract);
    }
    for (const [key, value] of Object.entries({ name, version, instance })) {
      if (typeof value !== 'string' || value === '') {
        throw wrong(key, 'a text', value);
      }
    }
    if (!Array.isArray(capabilities)) {
      throw wrong('capabilities', 'a list', capabilities);
    }
    const unknown = capabilities.find((each) => !CAPABILITIES.includes(each));
    if (unknown !== undefined) {
      throw wrong('capabilities', `of ${CAPABILITIES.join(', ')}`, unknown);
    }
    for (const [dialect, { values, needs }] of Object.entries(DIALECTS)) {
      const value = dialects?.[dialect];
      if (value === undefined && needs && !capabilities.includes(needs)) {
        continue;
      }
      if (!value || !values.includes(value)) {
        throw wrong(`dialects.${dialect}`, values.join(' or '), value);
      }
    }
    return answer as Preflight;
  }
}

/** The address without a path. @throws Failure if it has one, or is no address. */
function originOf(url: string): string {
  const { protocol, pathname, search, origin } = URL.canParse(url) ? new URL(url) : {};
  if (protocol === 'http:' && pathname === '/' && search === '') {
    return `${origin}`;
  }
  throw new Failure(
    `Expected the target's address to be like http://127.0.0.1:9000, without a path, got '${url}'.`,
  );
}

/** The command, so that the shell becomes its process; what is set before it (`A=b node app.js`) stays before. */
const shellLine = (command: string): string =>
  command.replace(/^\s*(?:\w+=(?:"[^"]*"|'[^']*'|[^\s"'])*\s+)*/, (before) => `${before}exec `);

/** A target does not outlive the suite, however that ends. */
function endWith(target: ChildProcess): void {
  const kill = (): void => {
    try {
      process.kill(-(target.pid ?? NaN), 'SIGKILL');
    } catch {
      /* it is over */
    }
  };
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  const end = (signal: NodeJS.Signals): void => {
    kill();
    process.kill(process.pid, signal);
  };
  for (const signal of signals) {
    process.once(signal, end);
  }
  process.once('exit', kill);
  target.once('exit', () => {
    for (const signal of signals) {
      process.off(signal, end);
    }
    process.off('exit', kill);
  });
}

/** Whether a connection to `url` is accepted. */
async function accepts(url: string): Promise<boolean> {
  const socket = net.connect(addressOf(url));
  try {
    await once(socket, 'connect');
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

/** Between two looks at a process that starts: until it listens, or the deadline. */
const pause = (): Promise<void> =>
  new Promise((resolve) => {
    setTimeout(resolve, 20);
  }); // bounded by the deadline

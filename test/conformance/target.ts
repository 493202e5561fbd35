/** The server under test: an address, and, where the suite is to start and end it, the command. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import net from 'node:net';
import { getText } from './client.ts';
import { Failure, within } from './harness.ts';

export interface TargetOptions {
  /** Where it answers, e.g. `http://127.0.0.1:9000`. */
  readonly url: string;
  /** A shell command that starts it there, and whose process it is; it has the port in PORT. */
  readonly command?: string;
  readonly cwd?: string;
  readonly deadlineMs: number;
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

  constructor(options: TargetOptions) { this.#options = options; }

  get url(): string { return this.#options.url; }
  get canRestart(): boolean { return this.#options.command !== undefined; }

  /** Starts the command, where it is not running, and waits until the address accepts a connection. True if it did. */
  async start(): Promise<boolean> {
    const { url, command, cwd, deadlineMs } = this.#options;
    if (!command || this.running) return false;
    const { port, hostname } = new URL(url);
    if (await accepts(url)) throw new Failure(`${url} is in use already; is an old target still running?`);
    const started = spawn(`exec ${command}`, {
      cwd, shell: true, detached: true, env: { ...process.env, PORT: port, HOST: hostname }, stdio: ['ignore', 'ignore', 'pipe'],
    });
    this.#process = started;
    this.stderr = '';
    this.running = true;
    started.stderr.setEncoding('utf8').on('data', (text: string) => { this.stderr += text; });
    this.exited = once(started, 'close').then(([code, signal]) => { this.running = false; return { code, signal }; });
    const accepting = async (): Promise<void> => {
      while (this.running && !await accepts(url)) await pause();
      if (!this.running) throw new Failure(`\`${command}\` ended before it listened on ${url}: ${this.stderr.trim().slice(-600)}`);
    };
    await within(Math.max(deadlineMs, 120_000), `${url} after \`${command}\``, accepting());
    return true;
  }

  /** Resolves when `found` holds of what stderr has. */
  onStderr(found: () => boolean): Promise<void> {
    return new Promise((resolve) => {
      const look = (): void => { if (found()) { this.#process?.stderr?.off('data', look); resolve(); } };
      this.#process?.stderr?.on('data', look);
      look();
    });
  }

  signal(name: NodeJS.Signals): void {
    if (!this.#process || !this.running) throw new Failure('the process is over already');
    this.#process.kill(name);
  }

  /** Ends the process and its children, if any. */
  async stop(): Promise<void> {
    if (!this.#process?.pid) return;
    try { process.kill(-this.#process.pid, 'SIGKILL'); } catch { /* it is over, with its group */ }
    await this.exited;
    this.#process = undefined;
  }

  /** @throws Failure in one sentence if the address does not answer the contract's `GET /`. */
  async preflight(): Promise<Preflight> {
    const { url, deadlineMs } = this.#options;
    const asked = `GET ${url}/`;
    const { status, text } = await within(deadlineMs, asked, getText(url)).catch((error: Error) => {
      throw error instanceof Failure ? error : new Failure(`${asked} failed: ${error.message || error}. Is the target running there?`);
    });
    const expected = 'expected the preflight of the contract, as fixtures/conformance/README.md has it';
    if (status !== 200) throw new Failure(`${asked} answered ${status}; ${expected}`);
    const wrong = (what: string): Failure => new Failure(`${asked} answered ${text.slice(0, 200)}; ${expected}: ${what}`);
    let answer: Partial<Preflight> | null;
    try { answer = JSON.parse(text); } catch { throw wrong('it is not JSON'); }
    const { contract, name, version, instance, capabilities, dialects } = answer ?? {};
    if (contract !== 1) throw wrong(`\`contract\` is ${JSON.stringify(contract)}, this suite speaks contract 1`);
    for (const [key, value] of Object.entries({ name, version, instance })) {
      if (typeof value !== 'string' || value === '') throw wrong(`\`${key}\` is no text`);
    }
    if (!Array.isArray(capabilities)) throw wrong('`capabilities` is no list');
    const unknown = capabilities.find((each) => !CAPABILITIES.includes(each));
    if (unknown !== undefined) throw wrong(`it has no capability \`${unknown}\`, but ${CAPABILITIES.join(', ')}`);
    for (const [dialect, { values, needs }] of Object.entries(DIALECTS)) {
      const value = dialects?.[dialect];
      if (value === undefined && needs && !capabilities.includes(needs)) continue;
      if (!values.includes(`${value}`)) throw wrong(`\`dialects.${dialect}\` is ${JSON.stringify(value)}, not ${values.join(' or ')}`);
    }
    return answer as Preflight;
  }
}

/** Whether a connection to `url` is accepted. */
async function accepts(url: string): Promise<boolean> {
  const { hostname, port } = new URL(url);
  const socket = net.connect(Number(port), hostname);
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
const pause = (): Promise<void> => new Promise((resolve) => { setTimeout(resolve, 20); }); // bounded by the deadline

/** The runner: plays the cases against a target, one verb after another, and gives a verdict for each. */
import type { Plan } from '../../fixtures/conformance/callback.ts';
import { allCases, planOf, type Case, type Level, type Names, type Send, type Step } from './cases.ts';
import { exchange, getText, keep, RawConnection, type Exchange } from './client.ts';
import { Failure, startHarness, within, type Callbacks, type Harness } from './harness.ts';
import { CAPABILITIES, Target, type Preflight } from './target.ts';

export interface ConformanceOptions {
  /** Where the target answers, e.g. `http://127.0.0.1:9000`. */
  readonly url: string;
  /** A shell command that starts the target there; without it, the [process] cases are skipped. */
  readonly command?: string;
  /** The folder in which the command runs. */
  readonly cwd?: string;
  /** How long a step waits before it is a failure, in ms (10 000). */
  readonly deadlineMs?: number;
  /** How often each case is played (1); the first failure is the verdict. */
  readonly repeat?: number;
}

export interface Verdict {
  readonly id: string;
  readonly clause: string;
  readonly level: Level;
  readonly title: string;
  readonly status: 'pass' | 'fail' | 'skip';
  /** Of a clause that is a dialect: its name and the value that was seen. */
  readonly dialect?: string;
  readonly observed?: string;
  /** Why it failed, or was skipped, in one sentence. */
  readonly reason?: string;
  /** Of a failure: what was done and seen, step by step, and a `curl` line that sends the same plan. */
  readonly transcript?: readonly string[];
  readonly curl?: string;
}

export interface Session {
  readonly preflight: Preflight;
  run(each: Case): Promise<Verdict>;
  /** Calls that came back after their case had passed, which no verdict could count. */
  readonly late: readonly string[];
  close(): Promise<void>;
}

/** How many no-op requests go through the target before the suite says that something is absent. */
const FENCE = 3;

/**
 * Holds a target against the specification: `for await (const verdict of conformance({ url })) …`.
 * @throws Failure in one sentence if the target cannot be started, or does not speak the contract.
 */
export async function* conformance(options: ConformanceOptions): AsyncGenerator<Verdict> {
  const session = await openSession(options);
  try {
    for (const each of allCases()) yield await session.run(each);
  } finally {
    await session.close();
  }
}

/** Starts the target, if there is a command, and asks for its preflight. */
export async function openSession(options: ConformanceOptions): Promise<Session> {
  const { deadlineMs = 10_000, repeat = 1 } = options;
  const target = new Target({ ...options, url: new URL(options.url).origin, deadlineMs });
  const harness = await startHarness();
  const played: { id: string; plans: Iterable<Callbacks>; counts: number[] }[] = [];
  const close = async (): Promise<void> => { harness.close(); await target.stop(); };
  try {
    await target.start();
    const preflight = await target.preflight();
    let { instance } = preflight;
    const others = await Promise.all(Array.from({ length: 8 }, () => target.preflight()));
    if (others.some(({ instance }) => instance !== preflight.instance)) {
      throw new Failure(`${target.url} is more than one process (two instances answered): run one worker`);
    }
    const late = (): string[] => played.flatMap(({ id, plans, counts }) => [...plans].flatMap(({ arrived }, place) =>
      arrived.slice(counts[place]).map((name) => `${name} called back after case ${id} had passed`)));
    return { preflight, run, close, get late() { return late(); } };

    async function run(each: Case): Promise<Verdict> {
      const { id, clause, level, title, dialect } = each;
      const base = { id, clause, level, title, ...(dialect && { dialect }) };
      const missing = lacking(each, preflight, target.canRestart);
      if (missing) return { ...base, status: 'skip', reason: missing };
      for (let time = 1; ; time += 1) {
        const play = new Play(each, target, harness, preflight, deadlineMs, () => instance);
        try {
          if (each.tag === 'process') await target.stop();
          if (await target.start()) instance = (await target.preflight()).instance;
          const observed = await play.all();
          if (time >= repeat) return { ...base, status: 'pass', ...(observed && { observed }) };
        } catch (error) {
          if (!(error instanceof Failure)) throw error;
          const { transcript, curl, observed } = play;
          return { ...base, status: 'fail', reason: error.message, transcript, curl, ...(observed && { observed }) };
        } finally {
          const plans = play.end();
          played.push({ id, plans, counts: plans.map(({ arrived }) => arrived.length) });
          if (each.tag === 'process') await target.stop();
        }
      }
    }
  } catch (error) {
    await close();
    throw error;
  }
}

/** Why a case cannot be played against this target. */
function lacking({ needs, tag }: Case, { capabilities, dialects }: Preflight, canRestart: boolean): string | undefined {
  if (tag === 'process' && !canRestart) return 'needs the command that starts the target';
  if (needs.includes('serial') && dialects['concurrency'] !== 'serial') return 'the target runs the tasks of a request at the same time, as it declares';
  if (needs.includes('after') && dialects['cleanUp'] === 'before') return 'the target cleans up before the tasks, as it declares';
  const missing = needs.find((need) => CAPABILITIES.includes(need) && !capabilities.includes(need));
  return missing && `the target does not have the capability \`${missing}\``;
}

interface Sent { readonly plan: Plan; readonly callbacks: Callbacks; readonly exchange: Exchange }

/** One case being played. */
class Play {
  readonly transcript: string[] = [];
  #observed: { readonly declared: string; readonly other: string } | undefined;
  curl = '';
  readonly #case: Case;
  readonly #target: Target;
  readonly #harness: Harness;
  readonly #preflight: Preflight;
  readonly #deadlineMs: number;
  readonly #sent = new Map<string, Sent>();
  readonly #fences: Callbacks[] = [];
  readonly #kept = keep();
  #raw: RawConnection | undefined;
  readonly #expected = new Set<string>();
  readonly #instance: () => string;

  constructor(each: Case, target: Target, harness: Harness, preflight: Preflight, deadlineMs: number,
    instance: () => string) {
    this.#case = each;
    this.#target = target;
    this.#harness = harness;
    this.#preflight = preflight;
    this.#deadlineMs = deadlineMs;
    this.#instance = instance;
  }

  /** Plays all steps. Returns the value of the dialect that was seen. @throws Failure */
  async all(): Promise<string | undefined> {
    for (const step of this.#case.steps) {
      const [[verb, argument]] = Object.entries(step) as [[string, unknown]];
      const line = `${verb} ${JSON.stringify(argument)}`;
      this.transcript.push(line);
      try {
        await this.#step(step);
      } catch (error) {
        if (!(error instanceof Failure)) throw error;
        this.transcript.push(`  ${error.message}`);
        throw error;
      }
      this.#twice();
    }
    return this.#observed?.declared;
  }

  /** After a failure: the value of the dialect that was seen. */
  get observed(): string | undefined { return this.#observed?.other; }

  /** Lets go of everything: what is held is answered, connections are closed. */
  end(): Callbacks[] {
    const plans = [...[...this.#sent.values()].map(({ callbacks }) => callbacks), ...this.#fences];
    for (const callbacks of plans) callbacks.end();
    this.#kept.agent.destroy();
    this.#raw?.close();
    return plans;
  }

  #step(step: Step): Promise<void> | void {
    if ('send' in step) return this.#send(step.send);
    if ('response' in step) return this.#response(step.response);
    if ('arrive' in step) return this.#arrive(step.arrive);
    if ('absent' in step) return this.#absent(step.absent);
    if ('release' in step) return this.#answer(step.release, 200);
    if ('fail' in step) return this.#answer(step.fail.name, step.fail.status ?? 500);
    if ('alive' in step) return this.#alive();
    if ('disconnect' in step) return this.#disconnect(step.disconnect);
    if ('end' in step) return this.#end(step.end);
    if ('terminate' in step) return this.#terminate(step.terminate);
    if ('exited' in step) return this.#exited(step.exited);
    return this.#stderr(step.stderr);
  }

  #send({ as = 'a', method, connection, ...form }: Send): void {
    const callbacks = this.#harness.plan();
    const plan = planOf(form, callbacks.url);
    const { url } = this.#target;
    this.curl ||= curlLine(url, method ?? 'POST', plan);
    if (connection === 'pipelined' || connection === 'closing') {
      const last = connection === 'closing' || this.#raw !== undefined;
      this.#raw ??= new RawConnection(url);
      this.#sent.set(as, { plan, callbacks, exchange: this.#raw.send(plan, last) });
    } else {
      const kept = connection === 'kept' ? this.#kept : undefined;
      this.#sent.set(as, { plan, callbacks, exchange: exchange(url, method ?? 'POST', plan, kept) });
    }
  }

  async #response({ of = 'a', status }: { of?: string; status?: number }): Promise<void> {
    const { plan, exchange } = this.#of(of);
    const answer = await this.#within(`the response to ${of}`, exchange.answer);
    if (answer.status !== (status ?? plan.status)) {
      throw new Failure(`expected the status ${status ?? plan.status}, got ${answer.status}`);
    }
    if (status !== undefined) return;
    if (answer.mark !== 'kept') throw new Failure(`expected the header x-plan: kept, got ${answer.mark ?? 'none'}`);
    const isHead = this.#case.needs.includes('head');
    const body = 'x'.repeat(isHead ? 0 : plan.size);
    if (answer.body !== body) {
      throw new Failure(`expected a body of ${body.length} bytes 'x', got ${answer.body.length} bytes: ${answer.body.slice(0, 80)}`);
    }
  }

  async #arrive(names: Names): Promise<void> {
    for (const name of this.#declared(names)) {
      this.#expected.add(name);
      const { callbacks, id } = this.#find(name);
      await this.#within(`the call of ${name}`, callbacks.until(() => callbacks.arrived.includes(id)));
    }
  }

  async #absent(names: Names): Promise<void> {
    await this.#fence();
    const early = this.#declared(names).find((name) => {
      const { callbacks, id } = this.#find(name);
      return callbacks.arrived.includes(id);
    });
    if (early) throw new Failure(`${early} has called already`);
  }

  #answer(name: string, status: number): void {
    const { callbacks, id } = this.#find(name);
    callbacks.answer(id, status);
  }

  async #alive(): Promise<void> {
    await this.#fence(1);
    const { instance } = await this.#target.preflight();
    if (instance !== this.#instance()) throw new Failure('the process is another one than before');
  }

  async #disconnect({ of = 'a', how = 'close' }: { of?: string; how?: 'close' | 'reset' }): Promise<void> {
    this.#of(of).exchange.leave(how);
    await this.#fence(); // so that the target has had occasion to notice
  }

  async #end(names: Names): Promise<void> {
    for (const name of this.#held()) if (this.#expected.has(name)) this.#answer(name, 200);
    for (const name of this.#declared(names)) {
      this.#expected.add(name);
      const { callbacks, id } = this.#find(name);
      const isThere = (): boolean => callbacks.arrived.includes(id);
      const early = (): string | undefined => (this.#preflight.dialects['concurrency'] === 'serial'
        ? this.#held().find((other) => !this.#expected.has(other)) : undefined);
      await this.#within(`the call of ${name}`, callbacks.until(() => isThere() || early() !== undefined));
      const other = early();
      const state = isThere() ? 'is still running' : 'has not called yet';
      if (other) throw new Failure(`${other} has called, and ${name}, which comes before it, ${state}`);
      this.#answer(name, 200);
    }
    await this.#fence();
    const more = [...this.#sent].flatMap(([as, { callbacks }]) => callbacks.arrived.map((id) => label(as, id)))
      .filter((name) => !this.#expected.has(name));
    if (more.length > 0) throw new Failure(`${more.join(', ')} called too, and nothing else was to call`);
  }

  async #terminate(signal: NodeJS.Signals): Promise<void> {
    this.#target.signal(signal);
    // Until it accepts no more; a server that still does has had occasion to notice the signal (a connect alone proves nothing).
    const served = (): Promise<boolean> => getText(`${this.#target.url}/`).then(() => true, () => false);
    for (let look = 0; look < 20 && await this.#within('an answer, or a refusal', served(), true); look += 1);
  }

  async #exited({ code }: { code?: number }): Promise<void> {
    const { exited } = this.#target;
    if (!exited) throw new Failure('the target was not started by the suite');
    const end = await this.#within('the end of the process', exited, true);
    if (code !== undefined && end.code !== code) {
      throw new Failure(`expected the exit code ${code}, got ${end.code ?? `the signal ${end.signal}`}`);
    }
  }

  /** Each failure that a name was answered with is on stderr. */
  async #stderr(names: readonly string[]): Promise<void> {
    await this.#fence();
    for (const name of names) {
      const { callbacks, id } = this.#find(name);
      const text = callbacks.failures.get(id) ?? '';
      const found = (): boolean => this.#target.stderr.includes(text);
      await this.#within(`the report of ${name} ('${text}') on stderr`, this.#target.onStderr(found));
    }
  }

  /** Requests without a meaning, one after another, each with a task. What was to come before has come, if it ever does. */
  async #fence(times = FENCE): Promise<void> {
    for (let time = 0; time < times; time += 1) {
      const callbacks = this.#harness.plan();
      this.#fences.push(callbacks);
      const plan = planOf({ handler: ['fence'] }, callbacks.url);
      const { answer } = exchange(this.#target.url, 'POST', plan);
      const { status } = await this.#within('the response to another request', answer);
      if (status !== 200) throw new Failure(`another request was answered with ${status}`);
      await this.#within('the task of another request', callbacks.until(() => callbacks.arrived.length > 0));
      callbacks.answer('fence', 200);
    }
  }

  /** The names for the value that the target declares. Until all steps are done, another one is what was seen. */
  #declared(names: Names): readonly string[] {
    if (Array.isArray(names)) return names;
    const lists = names as Readonly<Record<string, readonly string[]>>;
    const declared = this.#preflight.dialects[this.#case.dialect ?? ''] ?? '';
    this.#observed = { declared, other: Object.keys(lists).find((value) => value !== declared) ?? '' };
    return lists[declared] ?? [];
  }

  #held(): string[] {
    return [...this.#sent].flatMap(([as, { callbacks }]) => callbacks.held.map((id) => label(as, id)));
  }

  /** A task or checkpoint that called more than once. @throws Failure */
  #twice(): void {
    for (const [as, { callbacks: { arrived } }] of this.#sent) {
      const again = arrived.find((id, place) => arrived.indexOf(id) < place);
      if (again) throw new Failure(`${label(as, again)} called a second time`);
    }
  }

  #of(as: string): Sent {
    const sent = this.#sent.get(as);
    if (!sent) throw new Error(`Expected case ${this.#case.id} to send ${as} first.`);
    return sent;
  }

  #find(name: string): { callbacks: Callbacks; id: string } {
    const [, as = 'a', id = ''] = /^(?:([a-z]):)?(.*)$/.exec(name) ?? [];
    return { callbacks: this.#of(as).callbacks, id };
  }

  /** Waits at most the deadline; a target that dies meanwhile is a failure at once. */
  async #within<T>(what: string, promise: Promise<T>, ending = false): Promise<T> {
    const { exited } = this.#target;
    if (!exited || ending) return within(this.#deadlineMs, what, promise);
    const died = exited.then(({ code, signal }): never => {
      throw new Failure(`${what} did not come: the process ended (${signal ?? `exit code ${code}`})`);
    });
    died.catch(() => {});
    return within(this.#deadlineMs, what, Promise.race([promise, died]));
  }
}

const label = (as: string, id: string): string => (as === 'a' ? id : `${as}:${id}`);

/** The same plan by hand: its calls go to any server that answers POST with 200, e.g. the one of the page. */
function curlLine(url: string, method: string, plan: Plan): string {
  const text = JSON.stringify(plan);
  if (method === 'HEAD') return `curl -I '${url}/run?plan=${encodeURIComponent(text)}'`;
  return `curl -i ${url}/run -H 'content-type: application/json' -d '${text}'`;
}

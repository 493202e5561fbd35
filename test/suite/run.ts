/** The runner: plays the cases against a target, one verb after another, and gives a verdict for each. */
import { once } from 'node:events';
import net from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import type { Plan } from '../../fixtures/conformance/callback.ts';
import {
  allCases,
  type Case,
  type Level,
  type Names,
  planOf,
  type Send,
  type Step,
  type Terminate,
  tasksOf,
} from './cases.ts';
import {
  type Answer,
  addressOf,
  type Exchange,
  exchange,
  getText,
  keep,
  type Method,
  RawConnection,
} from './client.ts';
import { type Callbacks, Failure, type Harness, startHarness, within, withResolvers } from './harness.ts';
import { CAPABILITIES, type Preflight, Target } from './target.ts';

export interface ConformanceOptions {
  /** Where the target answers, e.g. `http://127.0.0.1:9000`. */
  readonly url: string;
  /** A shell command that starts the target there; without it, the [process] cases are skipped. */
  readonly command?: string;
  /** The folder in which the command runs. */
  readonly cwd?: string;
  /** How long a step waits before it is a failure, in ms (10 000). */
  readonly deadlineMs?: number;
  /** How long the command has until it listens, in ms (120 000). */
  readonly startDeadlineMs?: number;
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
  /** Plays a case; `deadlineMs` is that of the session unless it is given. */
  run(each: Case, deadlineMs?: number): Promise<Verdict>;
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
    for (const each of allCases()) {
      yield await session.run(each);
    }
  } finally {
    await session.close();
  }
}

/**
 * Starts the target, if there is a command, asks for its preflight, and sends it an empty plan.
 * @throws Failure in one sentence, as {@link conformance}.
 */
export async function openSession(options: ConformanceOptions): Promise<Session> {
  const { deadlineMs = 10_000, repeat = 1 } = options;
  for (const [name, value] of Object.entries({ deadlineMs, repeat })) {
    if (!Number.isInteger(value) || value < 1) {
      throw new Failure(`Expected \`${name}\` to be 1 or more, got ${value}.`);
    }
  }
  const target = new Target({ ...options, deadlineMs });
  const harness = await startHarness();
  const played: { id: string; plans: Iterable<Callbacks>; counts: number[] }[] = [];
  const close = async (): Promise<void> => {
    harness.close();
    await target.stop();
  };
  try {
    await target.start();
    const preflight = await target.preflight();
    let { instance } = preflight;
    const others = await Promise.all(Array.from({ length: 8 }, () => target.preflight()));
    if (others.some(({ instance }) => instance !== preflight.instance)) {
      throw new Failure(`${target.url} is more than one process (two instances answered): run one worker`);
    }
    await tryOut(target, harness, deadlineMs);
    const late = (): string[] =>
      played.flatMap(({ id, plans, counts }) =>
        [...plans].flatMap(({ arrived }, place) =>
          arrived.slice(counts[place]).map((name) => `${name} called back after case ${id} had passed`),
        ),
      );
    return {
      preflight,
      run,
      close,
      get late() {
        return late();
      },
    };

    async function run(each: Case, stepMs = deadlineMs): Promise<Verdict> {
      const { id, clause, level, title, dialect } = each;
      const base = { id, clause, level, title, ...(dialect && { dialect }) };
      const missing = lacking(each, preflight, target.canRestart);
      if (missing) {
        return { ...base, status: 'skip', reason: missing };
      }
      let outcome = await playOnce(each, stepMs);
      for (let time = 2; time <= repeat && outcome.status === 'pass'; time += 1) {
        outcome = await playOnce(each, stepMs);
      }
      return { ...base, ...outcome };
    }

    async function playOnce(each: Case, stepMs: number): Promise<Outcome> {
      const play = new Play(each, target, harness, preflight, stepMs, () => instance);
      try {
        if (each.tag === 'process') {
          await target.stop();
        }
        if (await target.start()) {
          instance = (await target.preflight()).instance;
        }
        const observed = await play.all();
        return { status: 'pass', ...(observed && { observed }) };
      } catch (error) {
        if (error instanceof Failure) {
          return await failure(each, play, error, preflight);
        }
        throw error;
      } finally {
        await cleanUp(each, play);
      }
    }

    async function cleanUp(each: Case, play: Play): Promise<void> {
      const plans = play.end();
      if (play.passed) {
        played.push({ id: each.id, plans, counts: plans.map(({ arrived }) => arrived.length) });
      }
      if (target.canRestart && (each.tag === 'process' || !(await play.leavesWell()))) {
        await target.stop();
      }
    }
  } catch (error) {
    await close();
    throw error;
  }
}

type Outcome = Pick<Verdict, 'status' | 'reason' | 'transcript' | 'curl' | 'observed'>;

/** What is said of a case that was played, and failed. */
async function failure(
  { dialect }: Case,
  play: Play,
  error: Failure,
  preflight: Preflight,
): Promise<Outcome> {
  const { transcript, curl } = play;
  const observed = await play.other();
  const declared = dialect ? `the target declares ${dialect}: ${preflight.dialects[dialect]}` : '';
  const shown = [declared, observed && `and shows ${observed}`].filter(Boolean).join(', ');
  const reason = [shown, error.message].filter(Boolean).join('; ');
  return { status: 'fail', reason, transcript, curl, ...(observed && { observed }) };
}

/** One plan without a task, so that an address that is no adapter fails here, and not in each case. @throws Failure */
async function tryOut(target: Target, harness: Harness, deadlineMs: number): Promise<void> {
  const callbacks = harness.plan();
  callbacks.end();
  const plan = planOf({}, callbacks.url);
  const { answer, leave } = exchange(target.url, 'POST', plan);
  try {
    const wrong = mismatch(await within(deadlineMs, `the response to POST ${target.url}/run`, answer), plan);
    if (wrong) {
      throw new Failure(wrong);
    }
  } catch (error) {
    if (!(error instanceof Failure)) {
      throw error;
    }
    throw new Failure(
      `An empty plan is not answered as fixtures/conformance/README.md has it: ${error.message}`,
    );
  } finally {
    leave('close');
  }
}

/** Why a case cannot be played against this target. */
function lacking(
  { needs, tag }: Case,
  { capabilities, dialects }: Preflight,
  canRestart: boolean,
): string | undefined {
  if (tag === 'process' && !canRestart) {
    return 'needs the command that starts the target';
  }
  if (needs.includes('serial') && dialects.concurrency !== 'serial') {
    return 'the target runs the tasks of a request at the same time, as it declares';
  }
  if (needs.includes('after') && dialects.cleanUp === 'before') {
    return 'the target cleans up before the tasks, as it declares';
  }
  if (needs.includes('runBroken') && dialects.brokenStream === 'drop') {
    return 'the target drops the tasks of a broken stream, as it declares';
  }
  const missing = needs.find((need) => CAPABILITIES.includes(need) && !capabilities.includes(need));
  return missing && `the target does not have the capability \`${missing}\``;
}

/** What of a response is not as the plan has it. */
function mismatch({ status, mark, body }: Answer, plan: Plan, method = 'POST'): string | undefined {
  const got = body && ` with ${JSON.stringify(body.slice(0, 80))}`;
  if (status !== plan.status) {
    return `expected the status ${plan.status}, got ${status}${got}`;
  }
  if (mark !== 'kept') {
    return `expected the header x-plan: kept, got ${mark ?? `none (status ${status}${got})`}`;
  }
  const size = method === 'HEAD' ? 0 : plan.size;
  if (body === 'x'.repeat(size)) {
    return undefined;
  }
  return `expected a body of ${size} bytes 'x', got ${body.length} bytes: ${JSON.stringify(body.slice(0, 80))}`;
}

interface Sent {
  readonly plan: Plan;
  readonly method: Method;
  readonly callbacks: Callbacks;
  readonly exchange: Exchange;
  /** It is on the connection of requests in raw bytes, whose responses are read when that has ended. */
  readonly isRaw: boolean;
  /** False once a step had the client leave, or made a checkpoint fail: the response may then be any. */
  undisturbed: boolean;
}

/** One case being played. */
class Play {
  readonly transcript: string[] = [];
  passed = false;
  curl = '';
  /** Of a dialect's step that is being played: what the target declares, the other value, and its names. */
  #choice:
    | { readonly other: string; readonly names: readonly string[]; readonly all: readonly string[] }
    | undefined;
  #observed: string | undefined;
  readonly #case: Case;
  readonly #target: Target;
  readonly #harness: Harness;
  readonly #preflight: Preflight;
  readonly #deadlineMs: number;
  readonly #sent = new Map<string, Sent>();
  readonly #fences: Callbacks[] = [];
  readonly #kept = keep();
  #raw: RawConnection | undefined;
  readonly #silent: net.Socket[] = [];
  #isSignalled = false;
  readonly #expected = new Set<string>();
  readonly #instance: () => string;
  readonly #strays: number;

  constructor(
    each: Case,
    target: Target,
    harness: Harness,
    preflight: Preflight,
    deadlineMs: number,
    instance: () => string,
  ) {
    this.#case = each;
    this.#target = target;
    this.#harness = harness;
    this.#preflight = preflight;
    this.#deadlineMs = deadlineMs;
    this.#instance = instance;
    this.#strays = harness.strays.length;
  }

  /** Plays all steps. Returns the value of the dialect that was seen. @throws Failure */
  async all(): Promise<string | undefined> {
    for (const step of this.#case.steps) {
      const members = Object.entries(step).map(([name, argument]) => `${name} ${JSON.stringify(argument)}`);
      this.transcript.push(members.join(' '));
      this.#choice = undefined;
      try {
        await this.#step(step);
        this.#odd();
      } catch (error) {
        if (!(error instanceof Failure)) {
          throw error;
        }
        const [stray] = this.#harness.strays.slice(this.#strays);
        if (stray) {
          error.message += `; the harness got ${stray}, which is no POST {callback}/{name} of a plan`;
        }
        this.transcript.push(`  ${error.message}`);
        throw error;
      }
    }
    this.passed = true;
    return this.#observed;
  }

  /**
   * After a failure: the other value of the dialect, if that is what was seen: the calls that came are how it begins,
   * and the target serves on.
   */
  async other(): Promise<string | undefined> {
    const choice = this.#choice;
    if (!choice) {
      return undefined;
    }
    const arrived = [...this.#sent]
      .flatMap(([as, { callbacks }]) => callbacks.arrived.map((id) => label(as, id)))
      .filter((name) => choice.all.includes(name));
    if (arrived.some((name, place) => name !== choice.names[place])) {
      return undefined;
    }
    return this.#fence(1).then(
      () => choice.other,
      () => undefined,
    );
  }

  /** Lets go of everything: what is held is answered, connections are closed. */
  end(): Callbacks[] {
    const sent = [...this.#sent.values()];
    for (const { callbacks, exchange } of sent) {
      callbacks.end();
      exchange.leave('close');
    }
    this.#kept.agent.destroy();
    this.#raw?.close();
    for (const socket of this.#silent) {
      socket.destroy();
    }
    return [...sent.map(({ callbacks }) => callbacks), ...this.#fences];
  }

  #step(step: Step): Promise<void> | void {
    if ('send' in step) {
      return this.#send(step.send);
    }
    if ('response' in step) {
      return this.#response(step.response);
    }
    if ('arrive' in step) {
      return this.#arrive(step.arrive);
    }
    if ('absent' in step) {
      return this.#absent(step.absent);
    }
    if ('release' in step) {
      return this.#answer(step.release);
    }
    if ('fail' in step) {
      return this.#fail(step.fail);
    }
    if ('alive' in step) {
      return this.#alive();
    }
    if ('connect' in step) {
      return this.#connect();
    }
    if ('disconnect' in step) {
      return this.#disconnect(step.disconnect);
    }
    if ('end' in step) {
      return this.#end(step.end);
    }
    if ('terminate' in step) {
      return this.#terminate(step);
    }
    if ('exited' in step) {
      return this.#exited(step.exited);
    }
    return this.#stderr(step.stderr);
  }

  #send({ as = 'a', method: verb, connection, ...form }: Send): void {
    const method: Method = verb ?? 'POST';
    const callbacks = this.#harness.plan();
    const plan = planOf(form, callbacks.url);
    const { url } = this.#target;
    this.curl ||= curlLine(url, method, plan);
    const isRaw = connection === 'pipelined' || connection === 'closing';
    let exchanged: Exchange;
    if (isRaw) {
      const last = connection === 'closing' || this.#raw !== undefined;
      this.#raw ??= new RawConnection(url);
      exchanged = this.#raw.send(plan, last);
    } else {
      exchanged = exchange(url, method, plan, connection === 'kept' ? this.#kept : undefined);
    }
    this.#sent.set(as, { plan, method, callbacks, exchange: exchanged, isRaw, undisturbed: true });
  }

  async #response({ of = 'a', status }: { of?: string; status?: number }): Promise<void> {
    const { plan, method, exchange } = this.#of(of);
    const what = (): string => `the whole response to ${of} (${exchange.seen} so far)`;
    const answer = await this.#within(what, exchange.answer);
    const wrong = mismatch(answer, { ...plan, status: status ?? plan.status }, method);
    if (wrong && (status === undefined || answer.status !== status)) {
      throw new Failure(wrong);
    }
  }

  async #arrive(names: Names): Promise<void> {
    for (const name of this.#declared(names)) {
      this.#expected.add(name);
      const { callbacks, id } = this.#find(name);
      await this.#within(
        () => `the call of ${name}`,
        this.#until(callbacks, () => callbacks.arrived.includes(id)),
      );
    }
  }

  async #absent(names: Names): Promise<void> {
    await (this.#isBlocked() ? this.#ownFence() : this.#fence());
    const early = this.#declared(names, true).find((name) => {
      const { callbacks, id } = this.#find(name);
      return callbacks.arrived.includes(id);
    });
    if (early) {
      throw new Failure(`${early} has called already`);
    }
  }

  #answer(name: string): void {
    const { callbacks, id } = this.#find(name);
    callbacks.answer(id, 200);
  }

  #fail({ name, status = 500, ahead = false }: { name: string; status?: number; ahead?: boolean }): void {
    const { sent, callbacks, id } = this.#find(name);
    if (CHECKPOINTS.includes(id)) {
      this.#disturb(sent);
    }
    if (ahead) {
      callbacks.answerAhead(id, status);
    } else {
      callbacks.answer(id, status);
    }
  }

  /** Its response may be any from now on, and so may the others of a connection that this may end too early. */
  #disturb(sent: Sent): void {
    sent.undisturbed = false;
    if (sent.isRaw) {
      for (const other of this.#sent.values()) {
        if (other.isRaw) {
          other.undisturbed = false;
        }
      }
    }
  }

  async #alive(): Promise<void> {
    await this.#fence(1);
    const { instance } = await this.#target.preflight();
    if (instance !== this.#instance()) {
      throw new Failure('the process is another one than before');
    }
  }

  async #connect(): Promise<void> {
    const socket = net.connect(addressOf(this.#target.url));
    this.#silent.push(socket.on('error', () => {})); // it may be reset: the target is to get rid of it
    await this.#within(
      () => `a connection to ${this.#target.url}`,
      once(socket, 'connect').catch((error: Error) => {
        throw new Failure(`a connection to ${this.#target.url} was refused: ${error.message}`);
      }),
    );
  }

  async #disconnect({ of = 'a', how = 'close' }: { of?: string; how?: 'close' | 'reset' }): Promise<void> {
    const sent = this.#of(of);
    this.#disturb(sent);
    sent.exchange.leave(how);
    await this.#fence(); // so that the target has had occasion to notice
  }

  async #end(names: Names): Promise<void> {
    for (const name of this.#held()) {
      if (this.#expected.has(name)) {
        this.#answer(name);
      }
    }
    for (const name of this.#declared(names)) {
      this.#expected.add(name);
      const { callbacks, id } = this.#find(name);
      const isThere = (): boolean => callbacks.arrived.includes(id);
      const early = (): string | undefined =>
        this.#preflight.dialects.concurrency === 'serial'
          ? this.#held().find((other) => !this.#expected.has(other))
          : undefined;
      await this.#within(
        () => `the call of ${name}`,
        this.#until(callbacks, () => isThere() || early() !== undefined),
      );
      const other = early();
      const state = isThere() ? 'is still running' : 'has not called yet';
      if (other) {
        throw new Failure(`${other} has called, and ${name}, which comes before it, ${state}`);
      }
      this.#answer(name);
    }
    await this.#fence();
    const more = [...this.#sent]
      .flatMap(([as, { callbacks }]) => callbacks.arrived.map((id) => label(as, id)))
      .filter((name) => !this.#expected.has(name));
    if (more.length > 0) {
      throw new Failure(`${more.join(', ')} called too, and nothing else was to call`);
    }
  }

  async #terminate({ terminate: signal, afterMs }: Terminate): Promise<void> {
    if (afterMs !== undefined) {
      await delay(afterMs); // afterMs of a second signal: the case says how long, and no deadline can stand for it
    }
    if (this.#isSignalled && !this.#target.running) {
      return; // the signal before was enough
    }
    this.#isSignalled = true;
    this.#target.signal(signal);
    // Until it accepts no more; a server that still does has had occasion to notice (a connect alone proves nothing).
    const leave = new AbortController();
    const served = (): Promise<boolean> =>
      getText(`${this.#target.url}/`, leave.signal).then(
        () => true,
        () => false,
      );
    try {
      for (
        let look = 0;
        look < 20 && (await this.#within(() => 'an answer, or a refusal,', served(), true));
        look += 1
      ) {}
    } finally {
      leave.abort();
    }
  }

  async #exited({ code }: { code?: number }): Promise<void> {
    const { exited } = this.#target;
    if (!exited) {
      throw new Failure('the target was not started by the suite');
    }
    const end = await this.#within(() => 'the end of the process', exited, true);
    if (code !== undefined && end.code !== code) {
      throw new Failure(`expected the exit code ${code}, got ${end.code ?? `the signal ${end.signal}`}`);
    }
  }

  /** Each failure that a name was answered with is on stderr. */
  async #stderr(names: readonly string[]): Promise<void> {
    for (const name of names) {
      const { callbacks, id } = this.#find(name);
      const text = callbacks.failures.get(id) ?? '';
      const found = (): boolean => this.#target.stderr.includes(text);
      await this.#within(
        () => `the report of ${name} ('${text}') on stderr`,
        this.#target.onStderr(found),
        true,
      );
    }
  }

  /** Whether the target is fit for the next case: a failed task may be ending it. */
  async leavesWell(): Promise<boolean> {
    const failed = this.#case.steps.some((step) => 'fail' in step);
    return (
      this.passed &&
      (!failed ||
        (await this.#fence().then(
          () => true,
          () => false,
        )))
    );
  }

  /**
   * Requests without a meaning, one after another, each with a task. What was to come before has come, if it ever does.
   */
  async #fence(times = FENCE): Promise<void> {
    for (let time = 0; time < times; time += 1) {
      const callbacks = this.#harness.plan();
      const plan = planOf({ handler: ['fence'] }, callbacks.url);
      const sent = exchange(this.#target.url, 'POST', plan);
      this.#fences.push(callbacks);
      try {
        const what = (): string => `the response to another request (${sent.seen} so far)`;
        const { status } = await this.#within(what, sent.answer);
        if (status !== 200) {
          throw new Failure(`another request was answered with ${status}`);
        }
        const arrived = callbacks.until(() => callbacks.arrived.includes('fence'));
        await this.#within(() => 'the task of another request', arrived);
      } finally {
        callbacks.end();
        sent.leave('close');
      }
    }
  }

  /** While a blocking task is held, the thread of the target may be, too: then the fence is the harness's alone. */
  async #ownFence(): Promise<void> {
    for (let time = 0; time < FENCE; time += 1) {
      await getText(this.#harness.url);
    }
  }

  #isBlocked(): boolean {
    return [...this.#sent.values()].some(({ plan, callbacks: { held } }) =>
      tasksOf(plan).some(({ id, kind }) => kind === 'sync' && held.includes(id)),
    );
  }

  /** The names for the value that the target declares; `absence` turns what they mean. */
  #declared(names: Names, absence = false): readonly string[] {
    if (Array.isArray(names)) {
      return names;
    }
    const lists = names as Readonly<Record<string, readonly string[]>>;
    const declared = this.#preflight.dialects[this.#case.dialect ?? ''] ?? '';
    const other = Object.keys(lists).find((value) => value !== declared) ?? '';
    this.#observed = declared;
    this.#choice = {
      other,
      names: lists[absence ? declared : other] ?? [],
      all: Object.values(lists).flat(),
    };
    return lists[declared] ?? [];
  }

  #held(): string[] {
    return [...this.#sent].flatMap(([as, { callbacks }]) => callbacks.held.map((id) => label(as, id)));
  }

  /** A call that no plan has: of another name, a second time, or no POST. @throws Failure */
  #odd(): void {
    for (const [
      as,
      {
        plan,
        callbacks: { arrived, refused },
      },
    ] of this.#sent) {
      const of = as === 'a' ? '' : ` of ${as}`;
      const unknown = arrived.find((id) => !namesOf(plan).has(id));
      if (unknown !== undefined) {
        throw new Failure(`called back '${unknown}', which the plan${of} does not have`);
      }
      const again = arrived.find((id, place) => arrived.indexOf(id) < place);
      if (again) {
        throw new Failure(`${label(as, again)} called a second time`);
      }
      if (refused[0]) {
        throw new Failure(`called back with ${refused[0]}: a call is POST {callback}/{name}`);
      }
    }
  }

  /** Until `found` holds. @throws Failure at a call that no plan has, and at a response that is not the plan's. */
  async #until(callbacks: Callbacks, found: () => boolean): Promise<void> {
    const wrong = withResolvers<never>();
    let failure: unknown;
    const look = (): boolean => {
      try {
        this.#odd();
      } catch (error) {
        failure = error;
      }
      return failure !== undefined || found();
    };
    for (const sent of this.#sent.values()) {
      sent.exchange.answer
        .then(
          (answer) => mismatch(answer, sent.plan, sent.method),
          (error: Error) => error.message,
        )
        .then((message) => {
          if (message && sent.undisturbed) {
            wrong.reject(new Failure(message));
          }
        });
    }
    wrong.promise.catch(() => {});
    await Promise.race([callbacks.until(look), wrong.promise]);
    if (failure) {
      throw failure;
    }
  }

  #of(as: string): Sent {
    const sent = this.#sent.get(as);
    if (!sent) {
      throw new Error(`Expected case ${this.#case.id} to send ${as} first.`);
    }
    return sent;
  }

  #find(name: string): { sent: Sent; callbacks: Callbacks; id: string } {
    const [, as = 'a', id = ''] = /^(?:([a-z]):)?(.*)$/.exec(name) ?? [];
    const sent = this.#of(as);
    return { sent, callbacks: sent.callbacks, id };
  }

  /** Waits at most the deadline; a target that dies meanwhile is a failure at once. */
  async #within<T>(what: () => string, promise: Promise<T>, ending = false): Promise<T> {
    const { exited } = this.#target;
    if (!exited || ending) {
      return within(this.#deadlineMs, what, promise);
    }
    const died = exited.then(({ code, signal }): never => {
      throw new Failure(`${what()} did not come: the process ended (${signal ?? `exit code ${code}`})`);
    });
    died.catch(() => {});
    return within(this.#deadlineMs, what, Promise.race([promise, died]));
  }
}

const CHECKPOINTS: readonly string[] = ['enter', 'exit', 'handler', 'chunk'];

/** Every name that a plan lets the target call. */
const namesOf = (plan: Plan): Set<string> =>
  new Set([...tasksOf(plan).map(({ id }) => id), ...plan.checkpoints]);

const label = (as: string, id: string): string => (as === 'a' ? id : `${as}:${id}`);

/** The same plan by hand: its calls go to any server that answers POST with 200, e.g. the one of the page. */
function curlLine(url: string, method: string, plan: Plan): string {
  const text = JSON.stringify(plan);
  if (method === 'HEAD') {
    return `curl -I '${url}/run?plan=${encodeURIComponent(text)}'`;
  }
  return `curl -i ${url}/run -H 'content-type: application/json' -d '${text}'`;
}

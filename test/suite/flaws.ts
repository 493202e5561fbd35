/** What no schema can say of a case: whether it can pass, and only where it has business to. */
import type { Plan } from '../../fixtures/conformance/callback.ts';
import { type Case, type Names, planOf, type Step, tasksOf } from './cases.ts';
import { DIALECTS } from './target.ts';

/** What is wrong with a case, so that it can never pass, or passes where it has no business to. */
export function flaws(each: Case): string[] {
  const reading = new Reading(each);
  for (const step of each.steps) {
    reading.step(step);
  }
  reading.whole();
  return reading.found;
}

/** A case, read step by step. */
class Reading {
  readonly found: string[] = [];
  readonly #case: Case;
  readonly #verbs = new Set<string>();
  /** What the plans and their lists ask of a target. */
  readonly #uses = new Set<string>();
  /** The names of the calls in all plans so far, and the labels of these plans. */
  readonly #known = new Set<string>();
  readonly #labels = new Set<string>();
  readonly #held = new Set<string>();
  readonly #answered = new Set<string>();
  readonly #failed = new Set<string>();
  /** What is to fail as soon as it comes. */
  readonly #ahead = new Set<string>();

  constructor(each: Case) {
    this.#case = each;
  }

  step(step: Step): void {
    const [verb = ''] = Object.keys(step);
    this.#verbs.add(verb);
    const expect = (holds: boolean, flaw: string): void => {
      if (!holds) {
        this.found.push(`${verb}: ${flaw}`);
      }
    };
    this.#send(step, expect);
    this.#names(step, expect);
    this.#end(step, expect);
    this.#arrive(step);
    this.#release(step, expect);
    this.#fail(step, expect);
    this.#stderr(step, expect);
  }

  #send(step: Step, expect: Expect): void {
    if (!('send' in step)) {
      return;
    }
    const { as = 'a', method } = step.send;
    const plan = planOf(step.send, '');
    const names = namesOf(plan);
    expect(!this.#labels.has(as), `${as} was sent before`);
    const again = names.find((each, place) => names.indexOf(each) < place);
    expect(again === undefined, `${again} is there twice`);
    expect(plan.stream || !plan.checkpoints.includes('chunk'), 'chunk without a stream');
    addAll(
      this.#known,
      names.map((name) => (as === 'a' ? name : `${as}:${name}`)),
    );
    this.#labels.add(as);
    addAll(this.#uses, [...capabilitiesOf(plan), ...(method ? ['head'] : [])]);
  }

  #names(step: Step, expect: Expect): void {
    const of = labelIn(step);
    expect(of === undefined || this.#labels.has(of), `${of} was not sent before`);
    const lists = listsOf(step);
    if (lists) {
      const { dialect } = this.#case;
      const values = dialect ? DIALECTS[dialect]?.values.toSorted() : [];
      const got = Object.keys(lists).toSorted();
      this.#uses.add('lists');
      expect(`${values}` === `${got}`, `expected lists for ${values}, got ${got}`);
    }
    for (const name of namesIn(step)) {
      expect(this.#known.has(name), `${name} is not in a plan before`);
    }
  }

  #end(step: Step, expect: Expect): void {
    if (!('end' in step)) {
      return;
    }
    for (const name of namesIn(step)) {
      expect(!this.#answered.has(name), `${name} was answered before`);
    }
    addAll(this.#answered, [...namesIn(step), ...this.#held]);
    this.#held.clear();
  }

  #arrive(step: Step): void {
    if (!('arrive' in step)) {
      return;
    }
    for (const name of namesIn(step)) {
      if (this.#ahead.delete(name)) {
        this.#failed.add(name);
      } else if (!this.#answered.has(name)) {
        this.#held.add(name);
      }
    }
  }

  #release(step: Step, expect: Expect): void {
    if ('release' in step) {
      expect(this.#held.delete(step.release), `${step.release} is not held`);
      this.#answered.add(step.release);
    }
  }

  #fail(step: Step, expect: Expect): void {
    if (!('fail' in step)) {
      return;
    }
    const { name, ahead } = step.fail;
    const isHeld = this.#held.delete(name);
    if (ahead) {
      expect(!isHeld && !this.#answered.has(name), `${name} is no call that may come`);
      this.#ahead.add(name);
    } else {
      expect(isHeld, `${name} is not held`);
      this.#failed.add(name);
    }
    this.#answered.add(name);
  }

  #stderr(step: Step, expect: Expect): void {
    for (const name of 'stderr' in step ? step.stderr : []) {
      expect(this.#failed.has(name), `${name} has not failed`);
    }
  }

  /** What can be said once all steps were read. */
  whole(): void {
    const { tag, needs, dialect } = this.#case;
    const expect = (holds: boolean, flaw: string): void => {
      if (!holds) {
        this.found.push(flaw);
      }
    };
    for (const name of this.#ahead) {
      expect(false, `${name} fails ahead, and is not to arrive`);
    }
    const has = (...verbs: string[]): boolean => verbs.some((verb) => this.#verbs.has(verb));
    // After a failure the rest of the world is another clause's subject.
    expect(has('end', 'exited') || this.#failed.size > 0, 'expected an end, an exited, or a failed task');
    const seen = has('terminate', 'exited', 'stderr') ? 'process' : 'wire';
    expect(tag === seen, `expected the tag ${seen}`);
    const hasLists = this.#uses.delete('lists');
    expect(hasLists || !dialect, `expected lists for ${dialect}`);
    const breaks = [...this.#failed].some((name) => name.endsWith('chunk'));
    expect(breaks || !needs.includes('runBroken'), 'needs: runBroken without a broken stream');
    const needed = needs.filter((need) => !['serial', 'after', 'runBroken'].includes(need)).toSorted();
    const used = [...this.#uses].toSorted();
    expect(`${used}` === `${needed}`, `needs: expected ${used}, got ${needed}`);
  }
}

type Expect = (holds: boolean, flaw: string) => void;

function addAll(set: Set<string>, names: readonly string[]): void {
  for (const name of names) {
    set.add(name);
  }
}

const namesOf = (plan: Plan): string[] => [...tasksOf(plan).map(({ id }) => id), ...plan.checkpoints];

function capabilitiesOf(plan: Plan): string[] {
  const cleansUp = plan.checkpoints.some((name) => name === 'enter' || name === 'exit');
  const uses = {
    dependencies: plan.sub.length + plan.dependency.length > 0 || cleansUp,
    yield: cleansUp,
    sync: tasksOf(plan).some(({ kind }) => kind === 'sync'),
    adds: tasksOf(plan).some(({ adds }) => adds.length > 0),
    stream: plan.stream || plan.checkpoints.includes('chunk'),
  };
  return Object.entries(uses).flatMap(([capability, used]) => (used ? [capability] : []));
}

/** The label of the request that a step is about, where it is about one. */
function labelIn(step: Step): string | undefined {
  if ('response' in step) {
    return step.response.of ?? 'a';
  }
  return 'disconnect' in step ? (step.disconnect.of ?? 'a') : undefined;
}

/** The names that a step lists, of whatever dialect. */
function listed(step: Step): Names {
  if ('arrive' in step) {
    return step.arrive;
  }
  if ('absent' in step) {
    return step.absent;
  }
  return 'end' in step ? step.end : [];
}

/** The names of a step, of whatever dialect. */
function namesIn(step: Step): readonly string[] {
  if ('release' in step) {
    return [step.release];
  }
  if ('fail' in step) {
    return [step.fail.name];
  }
  if ('stderr' in step) {
    return step.stderr;
  }
  const names = listed(step);
  return isList(names) ? names : Object.values(names).flat();
}

/** The lists of a step, where it has one for each value of a dialect. */
function listsOf(step: Step): Readonly<Record<string, readonly string[]>> | undefined {
  const names = listed(step);
  return isList(names) ? undefined : names;
}

const isList = (names: Names): names is readonly string[] => Array.isArray(names);

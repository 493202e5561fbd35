/** The clauses and cases of fixtures/conformance, read and validated. */
import { readdirSync, readFileSync } from 'node:fs';
import type { Plan, Task } from '../../fixtures/conformance/callback.ts';
import { problems } from './schema.ts';

export type Level = 'MUST' | 'SHOULD' | 'DIALECT';

export interface Clause {
  readonly clause: string;
  readonly title: string;
  readonly tag: 'wire' | 'process';
  readonly level: Level;
  readonly dialect?: string;
  readonly source: string;
  readonly why: string;
  readonly bugs?: readonly string[];
  readonly cases: readonly { id: string; title: string; needs?: readonly string[]; steps: readonly Step[] }[];
}

/** A case, with what it has of its clause. */
export interface Case extends Omit<Clause, 'cases'> {
  readonly id: string;
  /** The title of the clause. */
  readonly statement: string;
  readonly needs: readonly string[];
  readonly steps: readonly Step[];
}

type TaskForm =
  | string
  | { readonly id: string; readonly kind?: 'async' | 'sync'; readonly adds?: readonly TaskForm[] };
type PlanForm = { readonly [Key in 'sub' | 'dependency' | 'handler']?: readonly TaskForm[] } & Partial<
  Pick<Plan, 'checkpoints' | 'status' | 'size' | 'stream'>
>;
export type Send = PlanForm & {
  readonly as?: string;
  readonly method?: 'HEAD';
  readonly connection?: 'closing' | 'kept' | 'pipelined';
};

/** Names of tasks and checkpoints; or a list of them for each value of the clause's dialect. */
export type Names = readonly string[] | Readonly<Record<string, readonly string[]>>;

/** A signal to the process, `afterMs` after the step before. */
export interface Terminate {
  readonly terminate: 'SIGTERM' | 'SIGINT';
  readonly afterMs?: number;
}

/** One verb, as case.schema.json has them. */
export type Step =
  | { readonly send: Send }
  | { readonly response: { readonly of?: string; readonly status?: number } }
  | { readonly arrive: Names }
  | { readonly absent: Names }
  | { readonly release: string }
  | { readonly fail: { readonly name: string; readonly status?: number; readonly ahead?: true } }
  | { readonly alive: true }
  | { readonly connect: true }
  | { readonly disconnect: { readonly of?: string; readonly how?: 'close' | 'reset' } }
  | { readonly end: Names }
  | Terminate
  | { readonly exited: { readonly code?: number } }
  | { readonly stderr: readonly string[] };

const FOLDER = new URL('../../fixtures/conformance/', import.meta.url);
const schema = JSON.parse(readFileSync(new URL('case.schema.json', FOLDER), 'utf8'));

/** The text of every file of a clause, by its name. */
export function clauseFiles(): Map<string, string> {
  const names = readdirSync(FOLDER).filter((name) => /^\d.*\.json$/.test(name));
  names.sort(new Intl.Collator('en', { numeric: true }).compare);
  return new Map(names.map((name) => [name, readFileSync(new URL(name, FOLDER), 'utf8')]));
}

/** @throws Error that names the file and each place that is not as the schema has it. */
export function parseClause(file: string, text: string): Clause {
  const value: unknown = JSON.parse(text);
  const found = problems(value, schema);
  const list = found.map((each) => `  ${each}`).join('\n');
  if (list) {
    throw new Error(`${file} is no valid case file:\n${list}`);
  }
  return value as Clause;
}

export const allClauses = (): Clause[] => [...clauseFiles()].map(([file, text]) => parseClause(file, text));

/** Every case, in the order of its number. */
export function allCases(): Case[] {
  return allClauses().flatMap(({ cases, ...clause }) =>
    cases.map((each) => ({ ...clause, statement: clause.title, needs: [], ...each })),
  );
}

/** The plan that a `send` stands for. */
export function planOf(form: PlanForm, callback: string): Plan {
  const tasks = (forms: readonly TaskForm[] = []): Task[] =>
    forms.map((each) => {
      const { id, kind = 'async', adds = [] } = typeof each === 'string' ? { id: each } : each;
      return { id, kind, adds: tasks(adds) };
    });
  const { checkpoints = [], status = 200, size = 2, stream = false } = form;
  const [sub, dependency, handler] = [form.sub, form.dependency, form.handler].map(tasks) as [
    Task[],
    Task[],
    Task[],
  ];
  return { callback, sub, dependency, handler, checkpoints, status, size, stream };
}

/** Every task of a plan, those that are added by others too. */
export function tasksOf({ sub, dependency, handler }: Plan): Task[] {
  const all = (tasks: readonly Task[]): Task[] => tasks.flatMap((task) => [task, ...all(task.adds)]);
  return all([...sub, ...dependency, ...handler]);
}

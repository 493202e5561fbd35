/** Verdicts, counted: what a framework's author would publish. */
import { allCases, type Level } from './cases.ts';
import { DIALECTS } from './target.ts';

/** What a verdict comes to: `pass`, `fail`, `skip`; of a dialect the value that was seen. */
export type Outcomes = Readonly<
  Record<string, { readonly status: string; readonly observed?: string | undefined }>
>;

export interface Tally {
  readonly core: Count;
  readonly robust: Count;
  /** The value of each dialect that was seen, or undefined where no case could look. */
  readonly behaviours: Readonly<Record<string, string | undefined>>;
  readonly failed: readonly string[];
}
interface Count {
  readonly passed: number;
  readonly of: number;
}

/** Counts per level, without the cases that do not apply; there is no overall score. */
export function tally(outcomes: Outcomes): Tally {
  const cases = allCases();
  const count = (level: Level): Count => {
    const statuses = cases.filter((each) => each.level === level).map(({ id }) => outcomes[id]?.status);
    const of = statuses.filter((status) => status === 'pass' || status === 'fail').length;
    return { passed: statuses.filter((status) => status === 'pass').length, of };
  };
  const seen = (dialect: string): string | undefined => {
    const values = cases.filter((each) => each.dialect === dialect).map(({ id }) => outcomes[id]?.observed);
    return [...new Set(values.filter((value) => value !== undefined))].join(', ') || undefined;
  };
  return {
    core: count('MUST'),
    robust: count('SHOULD'),
    behaviours: Object.fromEntries(Object.keys(DIALECTS).map((dialect) => [dialect, seen(dialect)])),
    failed: cases.filter(({ id }) => outcomes[id]?.status === 'fail').map(({ id }) => id),
  };
}

export const ofCount = ({ passed, of }: Count): string => `${passed} of ${of}`;

/** JSON Schema, as much of it as fixtures/conformance/case.schema.json uses. A keyword that is not known is refused. */
export interface Schema {
  readonly [keyword: string]: unknown;
}

type Members = Readonly<Record<string, unknown>>;
type Check = (
  value: unknown,
  rule: unknown,
  context: { schema: Schema; root: Schema; at: string },
) => string[];

/** What is wrong with `value`, each with its place; nothing if it is valid. */
export function problems(value: unknown, schema: Schema, root: Schema = schema, at = ''): string[] {
  return Object.entries(schema).flatMap(([keyword, rule]) => {
    const check = CHECKS[keyword];
    if (!check) {
      throw new Error(`Expected a known keyword of JSON Schema at '${at}', got '${keyword}'.`);
    }
    return check(value, rule, { schema, root, at });
  });
}

const typeOf = (value: unknown): string => {
  if (value === null) {
    return 'null';
  }
  if (Array.isArray(value)) {
    return 'array';
  }
  return Number.isInteger(value) ? 'integer' : typeof value;
};
const isObject = (value: unknown): value is Members => typeOf(value) === 'object';
const show = (value: unknown): string => JSON.stringify(value);

const CHECKS: Readonly<Record<string, Check>> = {
  $schema: () => [],
  $defs: () => [],
  title: () => [],
  description: () => [],
  $ref: (value, rule, { root, at }) =>
    problems(
      value,
      (root.$defs as Record<string, Schema>)[`${rule}`.slice('#/$defs/'.length)] ?? {},
      root,
      at,
    ),
  type: (value, rule, { at }) =>
    typeOf(value) === rule ? [] : [`${at}: expected a value of type ${rule}, got ${typeOf(value)}`],
  const: (value, rule, { at }) =>
    value === rule ? [] : [`${at}: expected ${show(rule)}, got ${show(value)}`],
  enum: (value, rule, { at }) =>
    (rule as unknown[]).includes(value) ? [] : [`${at}: expected one of ${show(rule)}, got ${show(value)}`],
  pattern: (value, rule, { at }) =>
    typeof value !== 'string' || new RegExp(`${rule}`, 'u').test(value)
      ? []
      : [`${at}: '${value}' does not match ${rule}`],
  minimum: (value, rule, { at }) =>
    Number(value) < Number(rule) ? [`${at}: expected ${rule} or more, got ${value}`] : [],
  minItems: (value, rule, { at }) =>
    Array.isArray(value) && value.length < Number(rule) ? [`${at}: expected ${rule} or more items`] : [],
  minProperties: (value, rule, { at }) =>
    isObject(value) && Object.keys(value).length < Number(rule) ? [`${at}: expected a member`] : [],
  maxProperties: (value, rule, { at }) =>
    isObject(value) && Object.keys(value).length > Number(rule)
      ? [`${at}: expected at most ${rule} member, got ${Object.keys(value).join(', ')}`]
      : [],
  required: (value, rule, { at }) =>
    (isObject(value) ? (rule as string[]) : [])
      .filter((name) => !Object.hasOwn(value as object, name))
      .map((name) => `${at}: expected a member '${name}'`),
  dependentRequired: (value, rule, { at }) =>
    Object.entries(rule as Record<string, string[]>).flatMap(([name, others]) =>
      isObject(value) && Object.hasOwn(value, name)
        ? others
            .filter((other) => !Object.hasOwn(value, other))
            .map((other) => `${at}: expected a member '${other}' beside '${name}'`)
        : [],
    ),
  items: (value, rule, { root, at }) =>
    (Array.isArray(value) ? value : []).flatMap((each, place) =>
      problems(each, rule as Schema, root, `${at}/${place}`),
    ),
  properties: (value, rule, { root, at }) =>
    Object.entries(rule as Record<string, Schema>).flatMap(([name, each]) =>
      isObject(value) && Object.hasOwn(value, name) ? problems(value[name], each, root, `${at}/${name}`) : [],
    ),
  additionalProperties: (value, rule, { schema, root, at }) =>
    (isObject(value) ? Object.keys(value) : [])
      .filter((name) => !Object.hasOwn((schema.properties ?? {}) as object, name))
      .flatMap((name) =>
        rule === false
          ? [`${at}: '${name}' is not known here`]
          : problems((value as Members)[name], rule as Schema, root, `${at}/${name}`),
      ),
  anyOf: (value, rule, { root, at }) => {
    const tries = (rule as Schema[]).map((each) => problems(value, each, root, at));
    if (tries.some((found) => found.length === 0)) {
      return [];
    }
    return [`${at}: none of the forms fits: ${tries.flat().join('; ')}`];
  },
};

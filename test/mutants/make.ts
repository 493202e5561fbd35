/** Makes the mutants of a file by its syntax: StrykerJS's operators, and those that it lacks. */
import { parse } from '@babel/parser';
import types, { type Node } from '@babel/types';
import { Instrumenter } from '@stryker-mutator/instrumenter';

/** One change of one place of a file. */
export interface Mutant {
  /** `deps.ts:Scope.resolve:ConditionalExpression:2`; the same as long as that function is. */
  readonly id: string;
  readonly file: string;
  /** The names of the functions and classes around the place; `module` where there is none. */
  readonly function: string;
  /** The place, in characters from the beginning of the file. */
  readonly start: number;
  readonly end: number;
  /** What stands there instead. */
  readonly replacement: string;
}

type Change = Pick<Mutant, 'start' | 'end' | 'replacement'> & { readonly operator: string };

/** A node and the nodes around it, the outermost first. */
interface Place {
  readonly node: Node;
  readonly around: readonly Node[];
}

/** All mutants of `source`, in the order of their places. `file` is its name in their ids. */
export async function makeMutants(file: string, source: string): Promise<Mutant[]> {
  const places = placesOf(source);
  const changes = [
    ...(await strykerChanges(file, source)),
    ...places.flatMap((place) => ownChanges(source, place)),
  ];
  changes.sort((a, b) => a.start - b.start || b.end - a.end); // a stable sort: the operators keep their order
  const counts = new Map<string, number>();
  const seen = new Set<string>();
  const mutants: Mutant[] = [];
  for (const change of changes) {
    const { start, end, operator } = change;
    const place = placeAt(places, start, end);
    const replacement = isExpressionHere(place) ? `(${change.replacement})` : change.replacement;
    const same = [start, end, replacement].join();
    if (seen.has(same) || isCovered(place)) {
      continue;
    }
    seen.add(same);
    const path = functionPath(place.around);
    const group = `${file}:${path}:${operator}`;
    const ordinal = (counts.get(group) ?? 0) + 1;
    counts.set(group, ordinal);
    mutants.push({ id: `${group}:${ordinal}`, file, function: path, start, end, replacement });
  }
  return mutants;
}

/** The file with the defect. */
export function applyMutant(source: string, { start, end, replacement }: Mutant): string {
  return source.slice(0, start) + replacement + source.slice(end);
}

export function parseSource(source: string): Node {
  return parse(source, { sourceType: 'module', plugins: ['typescript', 'explicitResourceManagement'] });
}

/** Every node of the program but types. */
function placesOf(source: string): Place[] {
  const places: Place[] = [];
  types.traverse(parseSource(source), (node, ancestors) => {
    const around = ancestors.map((ancestor) => ancestor.node);
    if (![...around, node].some(isType)) {
      places.push({ node, around });
    }
  });
  return places;
}

function isType(node: Node): boolean {
  return types.isTSType(node) || types.isTSTypeAnnotation(node) || types.isTSTypeElement(node);
}

/** The innermost node that stands exactly there. */
function placeAt(places: readonly Place[], start: number, end: number): Place {
  const place = places.findLast(({ node }) => node.start === start && node.end === end);
  if (place === undefined) {
    throw new Error(`Expected a node from ${start} to ${end}, found none.`);
  }
  return place;
}

/** What StrykerJS would change, by its instrumenter; the instrumented source itself is not used. */
async function strykerChanges(file: string, source: string): Promise<Change[]> {
  const ignore = (): void => {};
  const isEnabled = (): boolean => false;
  const instrumenter = new Instrumenter({
    isTraceEnabled: isEnabled,
    isDebugEnabled: isEnabled,
    isInfoEnabled: isEnabled,
    isWarnEnabled: isEnabled,
    isErrorEnabled: isEnabled,
    isFatalEnabled: isEnabled,
    trace: ignore,
    debug: ignore,
    info: ignore,
    warn: console.warn,
    error: console.error,
    fatal: console.error,
  });
  const options = { plugins: null, excludedMutations: [], ignorers: [] };
  const { mutants } = await instrumenter.instrument([{ name: file, mutate: true, content: source }], options);
  const lines = lineStarts(source);
  return mutants.map(({ location, mutatorName, replacement }) => ({
    start: lines[location.start.line]! + location.start.column,
    end: lines[location.end.line]! + location.end.column,
    operator: mutatorName,
    replacement,
  }));
}

function lineStarts(source: string): number[] {
  const starts = [0];
  for (const { index } of source.matchAll(/\n/g)) {
    starts.push(index + 1);
  }
  return starts;
}

/** What StrykerJS does not change: awaits, single statements, numbers, and the conditions of `a ? b : c`. */
function ownChanges(source: string, place: Place): Change[] {
  const { node, around } = place;
  const parent = around.at(-1);
  const at = { start: node.start!, end: node.end! };
  if (types.isAwaitExpression(node)) {
    const { start, end } = node.argument;
    return [{ ...at, operator: 'Await', replacement: source.slice(start!, end!) }];
  }
  if (types.isForOfStatement(node) && node.await) {
    const replacement = source.slice(at.start, at.end).replace(/^for\s+await/, 'for');
    return [{ ...at, operator: 'Await', replacement }];
  }
  if (isRemovable(node, parent)) {
    return [{ ...at, operator: 'Statement', replacement: ';' }];
  }
  if (types.isNumericLiteral(node) && !isKey(node, parent)) {
    return otherNumbers(node.value).map((number) => ({
      ...at,
      operator: 'Number',
      replacement: `${number}`,
    }));
  }
  if (types.isConditionalExpression(parent) && parent.test === node) {
    return ['true', 'false'].map((replacement) => ({ ...at, operator: 'Ternary', replacement }));
  }
  return [];
}

/** The only statement of a block is left to StrykerJS, which empties the block. */
function isRemovable(node: Node, parent: Node | undefined): boolean {
  if (types.isBlockStatement(parent) && parent.body.length === 1) {
    return false;
  }
  if (types.isExpressionStatement(node)) {
    return !(types.isCallExpression(node.expression) && types.isSuper(node.expression.callee));
  }
  return (
    types.isThrowStatement(node) ||
    types.isReturnStatement(node) ||
    types.isBreakStatement(node) ||
    types.isContinueStatement(node)
  );
}

/** 0 and one more. One more of a number over 600, which is a time or a size, is seen by nobody. */
function otherNumbers(value: number): number[] {
  if (value === 0) {
    return [1];
  }
  return value > 600 ? [0] : [0, value + 1];
}

/** Parentheses keep an operator that binds less from taking its neighbours; not all places allow them. */
function isExpressionHere({ node, around }: Place): boolean {
  const parent = around.at(-1);
  const isPart = types.isTaggedTemplateExpression(parent) && parent.quasi === node;
  return types.isExpression(node) && !isPart && !isKey(node, parent);
}

function isKey(node: Node, parent: Node | undefined): boolean {
  if (types.isClassPrivateProperty(parent) || !(types.isProperty(parent) || types.isMethod(parent))) {
    return false;
  }
  return parent.key === node && !parent.computed;
}

/**
 * Whether another mutant does the same: an `if` without `else` whose block is emptied is one whose condition is false,
 * where the condition does nothing.
 */
function isCovered({ node, around }: Place): boolean {
  const parent = around.at(-1);
  if (!types.isBlockStatement(node) || !types.isIfStatement(parent) || parent.consequent !== node) {
    return false;
  }
  return !parent.alternate && !doesAnything(parent.test);
}

function doesAnything(expression: Node): boolean {
  let does = false;
  types.traverse(expression, (node) => {
    does ||=
      types.isCallExpression(node) ||
      types.isOptionalCallExpression(node) ||
      types.isNewExpression(node) ||
      types.isAwaitExpression(node) ||
      types.isAssignmentExpression(node) ||
      types.isUpdateExpression(node);
  });
  return does;
}

/** `Scope.resolve` for what stands in that method, however deep; a function without a name counts as its parent. */
function functionPath(around: readonly Node[]): string {
  const names: string[] = [];
  for (const node of around) {
    const name = nameOf(node, names.length === 0);
    if (name !== undefined) {
      names.push(name);
    }
  }
  return names.join('.') || 'module';
}

function nameOf(node: Node, isOutside: boolean): string | undefined {
  if (types.isClass(node) || types.isFunctionDeclaration(node)) {
    return node.id?.name;
  }
  if (types.isMethod(node) || types.isClassProperty(node) || types.isClassPrivateProperty(node)) {
    return keyName(node.key);
  }
  if (types.isObjectProperty(node)) {
    return types.isFunction(node.value) ? keyName(node.key) : undefined;
  }
  if (types.isVariableDeclarator(node) && (isOutside || types.isFunction(node.init))) {
    return Object.keys(types.getBindingIdentifiers(node.id)).join('+');
  }
  return undefined;
}

function keyName(key: Node): string {
  if (types.isIdentifier(key)) {
    return key.name;
  }
  if (types.isPrivateName(key)) {
    return `#${key.id.name}`;
  }
  return types.isStringLiteral(key) ? key.value : '[computed]';
}

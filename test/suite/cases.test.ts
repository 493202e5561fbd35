/** The case files themselves: what case.schema.json says of one, and what no schema can say. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, test } from 'node:test';
import { allCases, allClauses, type Case, clauseFiles, parseClause, type Step } from './cases.ts';
import { flaws } from './flaws.ts';
import { problems } from './schema.ts';
import { CAPABILITIES, DIALECTS } from './target.ts';

interface Ids {
  readonly cases: readonly string[];
  readonly withdrawn: Readonly<Record<string, string>>;
}
const ids: Ids = JSON.parse(
  readFileSync(new URL('../../fixtures/conformance/ids.json', import.meta.url), 'utf8'),
);

const sends = { send: { handler: ['h1'] } };
const cases = [{ id: '9.1.1', title: 'a task runs', steps: [sends, { end: ['h1'] }] }];
const clause = {
  clause: '9.1',
  title: 'Tasks run',
  tag: 'wire',
  level: 'MUST',
  source: 'A test',
  why: 'A test needs it.',
  cases,
};

/** The file that `change` makes of a good one. */
const parse = (change: object): unknown =>
  parseClause('9.1-a.json', JSON.stringify({ ...clause, ...change }));
/** The file with one case, of `steps`. */
const parseSteps = (...steps: object[]): unknown =>
  parse({ cases: [{ ...cases[0], steps: [sends, ...steps] }] });
const parseCase = (change: object): unknown => parse({ cases: [{ ...cases[0], ...change }] });

describe('the schema', () => {
  test('accepts a case of every verb', () => {
    parseSteps(
      { send: { as: 'b', sub: ['s1'], dependency: [{ id: 'd1', kind: 'sync', adds: [{ id: 'd2' }] }] } },
      { send: { as: 'c', method: 'HEAD', checkpoints: ['exit'], status: 204, size: 0 } },
      { response: { of: 'b', status: 404 } },
      { arrive: ['b:s1'] },
      { absent: { serial: [], parallel: ['h1'] } },
      { release: 'b:s1' },
      { fail: { name: 'h1', status: 500 } },
      { alive: true },
      { connect: true },
      { disconnect: { how: 'reset' } },
      { terminate: 'SIGTERM' },
      { terminate: 'SIGINT', afterMs: 700 },
      { exited: { code: 0 } },
      { stderr: ['h1'] },
      { end: [] },
    );
  });

  const refused: [what: string, parse: () => unknown, message: RegExp][] = [
    [
      'a verb that is not known',
      () => parseSteps({ wait: 10 }),
      /\/cases\/0\/steps\/1: 'wait' is not known here/,
    ],
    [
      'a step of two verbs',
      () => parseSteps({ alive: true, end: [] }),
      /steps\/1: .* at most 1 .*got alive, end/,
    ],
    [
      'a wait without a signal',
      () => parseSteps({ afterMs: 700 }),
      /steps\/1: expected a member 'terminate' beside 'afterMs'/,
    ],
    [
      'a wait beside another verb',
      () => parseSteps({ alive: true, afterMs: 700 }),
      /steps\/1: .* at most 1 .*got alive, afterMs/,
    ],
    [
      'a signal and a wait beside another verb',
      () => parseSteps({ terminate: 'SIGINT', afterMs: 700, alive: true }),
      /steps\/1: .* at most 2 .*got terminate, afterMs, alive/,
    ],
    [
      'a wait of no time',
      () => parseSteps({ terminate: 'SIGINT', afterMs: 0 }),
      /steps\/1\/afterMs: expected 1 or more, got 0/,
    ],
    ['a step without a verb', () => parseSteps({}), /steps\/1: expected a member/],
    ['a member of a clause that is not known', () => parse({ levle: 'MUST' }), /: 'levle' is not known here/],
    [
      'a member of a case that is not known',
      () => parseCase({ need: [] }),
      /\/cases\/0: 'need' is not known here/,
    ],
    [
      'a member of a plan that is not known',
      () => parseSteps({ send: { hander: [] } }),
      /'hander' is not known here/,
    ],
    [
      'a member of a task that is not known',
      () => parseSteps({ send: { sub: [{ id: 'a', sync: true }] } }),
      /steps\/1\/send\/sub\/0: none of the forms fits: .*'sync' is not known here/,
    ],
    ['a clause without a level', () => parse({ level: undefined }), /: expected a member 'level'/],
    ['a case without an id', () => parseCase({ id: undefined }), /\/cases\/0: expected a member 'id'/],
    ['a failure without a name', () => parseSteps({ fail: {} }), /steps\/1\/fail: expected a member 'name'/],
    ['a level that is not known', () => parse({ level: 'MAY' }), /\/level: expected one of .*got "MAY"/],
    ['a capability that is not known', () => parseCase({ needs: ['tls'] }), /\/needs\/0: .*got "tls"/],
    [
      'a title of a clause that says should',
      () => parse({ title: 'Tasks should run' }),
      /\/title: 'Tasks should run'/,
    ],
    [
      'a title of a case that says should',
      () => parseCase({ title: 'it should run' }),
      /\/title: 'it should run'/,
    ],
    ['a number that is none', () => parseCase({ id: '9.1' }), /\/id: '9\.1' does not match/],
    [
      'a status below 200',
      () => parseSteps({ send: { status: 100 } }),
      /status: expected 200 or more, got 100/,
    ],
    ['a status that is a text', () => parseSteps({ send: { status: '200' } }), /status: .* of type integer/],
    ['a clause without a case', () => parse({ cases: [] }), /\/cases: expected 1 or more items/],
    [
      'a file that is a list',
      () => parseClause('9.1-a.json', '[]'),
      /expected a value of type object, got array/,
    ],
  ];
  for (const [what, refuse, message] of refused) {
    test(`refuses ${what}, and names the file`, () => {
      assert.throws(
        refuse,
        (error: Error) =>
          (/^9\.1-a\.json is no valid case file:\n/.test(error.message) && message.test(error.message)) ||
          assert.fail(error.message),
      );
    });
  }

  test('names every place that is wrong', () => {
    assert.throws(
      () => parseSteps({ wait: 1 }, { sleep: 1 }),
      /'wait' is not known here\n.*'sleep' is not known here/,
    );
  });

  test('is refused itself where it has a keyword that the checker does not know', () => {
    assert.throws(() => problems(1, { multipleOf: 2 }), /Expected a known keyword .* got 'multipleOf'/);
  });
});

describe('the case files', () => {
  for (const [file, text] of clauseFiles()) {
    test(`${file} is valid, and its name begins with its clause`, () => {
      const parsed = parseClause(file, text);
      assert.ok(file.startsWith(`${parsed.clause}-`), `Expected ${file} to begin with ${parsed.clause}-`);
    });
  }

  test('a clause has one file', () => {
    const clauses = allClauses().map(({ clause }) => clause);
    assert.deepEqual(clauses, [...new Set(clauses)]);
  });

  test('a case begins with the number of its clause', () => {
    for (const { id, clause } of allCases()) {
      assert.ok(id.startsWith(`${clause}.`), `${id} is in ${clause}`);
    }
  });

  test('the cases are those of ids.json, in the order of their numbers', () => {
    assert.deepEqual(
      allCases().map(({ id }) => id),
      ids.cases,
    );
  });

  test('the cases of a clause, with those withdrawn, are numbered from 1', () => {
    const given = [...ids.cases, ...Object.keys(ids.withdrawn)];
    for (const each of new Set(given.map((id) => id.replace(/\.\d+$/, '')))) {
      const numbers = given
        .filter((id) => id.startsWith(`${each}.`))
        .map((id) => Number(id.slice(each.length + 1)));
      assert.deepEqual(
        numbers.toSorted((a, b) => a - b),
        numbers.map((_, place) => place + 1),
        each,
      );
    }
  });

  test('a case that is withdrawn has a reason', () => {
    for (const [id, reason] of Object.entries(ids.withdrawn)) {
      assert.match(reason, /\w/, id);
    }
  });

  test('no two cases of a clause have the same title', () => {
    const titles = allCases().map(({ clause, title }) => `${clause} ${title}`);
    assert.deepEqual(titles, [...new Set(titles)]);
  });

  test('a clause names a dialect where its level is DIALECT, and nowhere else', () => {
    for (const { clause, level, dialect } of allClauses()) {
      assert.equal(dialect !== undefined, level === 'DIALECT', clause);
      assert.ok(dialect === undefined || dialect in DIALECTS, `${clause}: ${dialect}`);
    }
  });

  test('every dialect has a clause', () => {
    const named = new Set(
      allClauses()
        .map(({ dialect }) => dialect)
        .filter((each) => each !== undefined),
    );
    assert.deepEqual([...named].toSorted(), Object.keys(DIALECTS).toSorted());
  });

  test('every capability has a case', () => {
    const needed = new Set(allCases().flatMap(({ needs }) => needs));
    assert.deepEqual(
      CAPABILITIES.filter((each) => !needed.has(each)),
      [],
    );
  });

  for (const each of allCases()) {
    test(`${each.id} is sound`, () => {
      assert.deepEqual(flaws(each), []);
    });
  }
});

describe('a case is not sound', () => {
  const unsound: [what: string, steps: Step[], flaw: string, more?: Partial<Case>][] = [
    [
      'that looks for a task that no plan has',
      [{ send: { handler: ['h1'] } }, { end: ['h1', 'h2'] }],
      'end: h2 is not in a plan before',
    ],
    [
      'that looks for a task of a plan that is sent later',
      [{ send: { handler: ['h1'] } }, { end: ['b:h1'] }, { send: { as: 'b', handler: ['h1'] } }],
      'end: b:h1 is not in a plan before',
    ],
    [
      'that looks for a checkpoint that its plan does not ask for',
      [{ send: {} }, { arrive: ['handler'] }, { end: [] }],
      'arrive: handler is not in a plan before',
    ],
    [
      'that looks for the response of a request that was not sent',
      [{ send: {} }, { response: { of: 'b' } }, { end: [] }],
      'response: b was not sent before',
    ],
    [
      'that has the client leave a request that was not sent',
      [{ send: {} }, { disconnect: { of: 'b' } }, { end: [] }],
      'disconnect: b was not sent before',
    ],
    [
      'that releases a task before it has arrived',
      [{ send: { handler: ['h1'] } }, { release: 'h1' }, { end: [] }],
      'release: h1 is not held',
    ],
    [
      'that lets a task fail after its release',
      [
        { send: { handler: ['h1'] } },
        { arrive: ['h1'] },
        { release: 'h1' },
        { fail: { name: 'h1' } },
        { end: [] },
      ],
      'fail: h1 is not held',
    ],
    [
      'that lets a call fail ahead that is held',
      [
        { send: { handler: ['h1'] } },
        { arrive: ['h1'] },
        { fail: { name: 'h1', ahead: true } },
        { arrive: ['h1'] },
      ],
      'fail: h1 is no call that may come',
    ],
    [
      'that lets a call fail ahead that was released',
      [
        { send: { handler: ['h1'] } },
        { arrive: ['h1'] },
        { release: 'h1' },
        { fail: { name: 'h1', ahead: true } },
        { arrive: ['h1'] },
      ],
      'fail: h1 is no call that may come',
    ],
    [
      'that looks for the report of a call before it has failed',
      [
        { send: { handler: ['h1'] } },
        { fail: { name: 'h1', ahead: true } },
        { stderr: ['h1'] },
        { arrive: ['h1'] },
      ],
      'stderr: h1 has not failed',
      { tag: 'process' },
    ],
    [
      'that releases a call that has failed ahead, though it looks for it twice',
      [
        { send: { handler: ['h1'] } },
        { fail: { name: 'h1', ahead: true } },
        { arrive: ['h1'] },
        { arrive: ['h1'] },
        { release: 'h1' },
      ],
      'release: h1 is not held',
    ],
    [
      'that releases a call after its end',
      [{ send: { handler: ['h1'] } }, { arrive: ['h1'] }, { end: ['h1'] }, { release: 'h1' }],
      'release: h1 is not held',
    ],
    [
      'that lets a call of its end fail ahead',
      [
        { send: { handler: ['h1'] } },
        { end: ['h1'] },
        { fail: { name: 'h1', ahead: true } },
        { arrive: ['h1'] },
      ],
      'fail: h1 is no call that may come',
    ],
    [
      'that needs a broken stream to run, and breaks none',
      [{ send: {} }, { end: [] }],
      'needs: runBroken without a broken stream',
      { needs: ['runBroken'] },
    ],
    [
      'that has a call at its end that was answered before',
      [
        { send: { handler: ['h1'] } },
        { fail: { name: 'h1', ahead: true } },
        { arrive: ['h1'] },
        { end: ['h1'] },
      ],
      'end: h1 was answered before',
    ],
    [
      'that lets a call fail ahead, and does not wait for it',
      [{ send: { handler: ['h1'] } }, { fail: { name: 'h1', ahead: true } }, { end: [] }],
      'h1 fails ahead, and is not to arrive',
    ],
    [
      'that looks for a report of what has not failed',
      [{ send: { handler: ['h1'] } }, { arrive: ['h1'] }, { stderr: ['h1'] }, { end: [] }],
      'stderr: h1 has not failed',
      { tag: 'process' },
    ],
    [
      'with two tasks of the same name in a plan',
      [{ send: { sub: ['h1'], handler: ['h1'] } }, { end: ['h1'] }],
      'send: h1 is there twice',
      { needs: ['dependencies'] },
    ],
    [
      'with two requests of the same label',
      [{ send: {} }, { send: {} }, { end: [] }],
      'send: a was sent before',
    ],
    [
      'that does not say what comes',
      [{ send: { handler: ['h1'] } }, { response: {} }],
      'expected an end, an exited, or a failed task',
    ],
    [
      'of a process, tagged wire',
      [{ send: {} }, { terminate: 'SIGTERM' }, { exited: {} }],
      'expected the tag process',
    ],
    ['of the wire, tagged process', [{ send: {} }, { end: [] }], 'expected the tag wire', { tag: 'process' }],
    [
      'with lists for a dialect that its clause does not have',
      [{ send: { handler: ['h1'] } }, { end: { run: ['h1'], discard: [] } }],
      'end: expected lists for , got discard,run',
    ],
    [
      'with a list for one value of the dialect',
      [{ send: { handler: ['h1'] } }, { end: { run: ['h1'] } }],
      'end: expected lists for discard,run, got run',
      { dialect: 'onThrow' },
    ],
    [
      'of a dialect, without a list for it',
      [{ send: {} }, { end: [] }],
      'expected lists for onThrow',
      { dialect: 'onThrow' },
    ],
    [
      'that streams without the capability',
      [{ send: { stream: true } }, { end: [] }],
      'needs: expected stream, got ',
    ],
    [
      'that has a checkpoint of a stream without one',
      [{ send: { checkpoints: ['chunk'] } }, { end: [] }],
      'send: chunk without a stream',
      { needs: ['stream'] },
    ],
    [
      'that blocks without the capability',
      [{ send: { handler: [{ id: 'h1', kind: 'sync' }] } }, { end: ['h1'] }],
      'needs: expected sync, got ',
    ],
    [
      'that adds without the capability',
      [{ send: { handler: [{ id: 'h1', adds: ['h2'] }] } }, { end: ['h1', 'h2'] }],
      'needs: expected adds, got ',
    ],
    [
      'that blocks in an added task without the capability',
      [{ send: { handler: [{ id: 'h1', adds: [{ id: 'h2', kind: 'sync' }] }] } }, { end: ['h1', 'h2'] }],
      'needs: expected adds,sync, got adds',
      { needs: ['adds'] },
    ],
    [
      'that fills a dependency without the capability',
      [{ send: { dependency: ['d1'] } }, { end: ['d1'] }],
      'needs: expected dependencies, got ',
    ],
    [
      'that looks at a clean-up without the capability',
      [{ send: { checkpoints: ['exit'] } }, { end: ['exit'] }],
      'needs: expected dependencies,yield, got dependencies',
      { needs: ['dependencies'] },
    ],
    [
      'that asks by HEAD without the capability',
      [{ send: { method: 'HEAD' } }, { end: [] }],
      'needs: expected head, got ',
    ],
    [
      'that needs more than it uses',
      [{ send: {} }, { end: [] }],
      'needs: expected , got sync',
      { needs: ['sync'] },
    ],
  ];
  for (const [what, steps, flaw, more = {}] of unsound) {
    test(what, () => {
      const { cases, ...rest } = parseClause('9.1-a.json', JSON.stringify(clause));
      assert.ok(cases[0]);
      assert.deepEqual(flaws({ ...rest, ...cases[0], statement: rest.title, needs: [], steps, ...more }), [
        flaw,
      ]);
    });
  }
});

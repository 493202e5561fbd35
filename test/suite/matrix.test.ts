import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, test } from 'node:test';
import { casesHash, pages, peerFolders, peerOf, resultOf, withPart } from './matrix.ts';
import { tally } from './report.ts';

describe('the committed results', () => {
  for (const name of ['response-first', ...peerFolders()]) {
    test(`${name} was held against the cases as they are`, () => {
      assert.equal(resultOf(name)?.cases, casesHash(), `run: npm run matrix -- ${name}`);
    });
  }

  for (const name of peerFolders()) {
    test(`the deviations of ${name} are its failing cases, each with a reason and a link`, () => {
      const { deviations } = peerOf(name);
      const { failed } = tally(resultOf(name)?.outcomes ?? {});
      assert.deepEqual(Object.keys(deviations).sort(), [...failed].sort());
      for (const [id, { reason, link }] of Object.entries(deviations)) {
        assert.match(reason, /\S \S/, id);
        assert.match(link, /^https:\/\//, id);
      }
    });
  }

  test('the reference fails nothing, and lacks nothing', () => {
    const statuses = Object.values(resultOf('response-first')?.outcomes ?? {}).map(({ status }) => status);
    assert.ok(statuses.length > 0 && statuses.every((status) => status === 'pass'));
  });

  test('FastAPI, which the levels come from, passes every MUST', () => {
    const { core } = tally(resultOf('fastapi')?.outcomes ?? {});
    assert.ok(core.of > 0);
    assert.equal(core.passed, core.of);
  });
});

test('the tables of both pages are those that `npm run matrix -- --tables` writes', () => {
  for (const [url, text] of pages()) {
    assert.equal(readFileSync(url, 'utf8'), text, url.pathname);
  }
});

test('a part of a page is replaced between its marks, and a page without marks is refused', () => {
  assert.equal(
    withPart('a\n<!-- x -->\nold\n<!-- /x -->\nb', 'x', 'new'),
    'a\n<!-- x -->\nnew\n<!-- /x -->\nb',
  );
  assert.throws(() => withPart('a', 'x', 'new'), /Expected <!-- x --> … <!-- \/x --> in the page/);
});

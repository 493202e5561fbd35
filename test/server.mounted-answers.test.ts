/** An app behind a host that has set headers, or has read the body, before. */
import assert from 'node:assert/strict';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { describe } from 'node:test';
import { backgroundTasks, body, createApp, get, HTTPError, post, type Route, request } from '../server.ts';
import { anything } from './deps.helpers.ts';
import { stderr } from './helpers.ts';
import { ask, foreign, Journal, source, test } from './server.helpers.ts';

type Middleware = (req: IncomingMessage, res: ServerResponse) => unknown;

/** The app, and before it `middleware`, as Express runs it. */
function behind(middleware: Middleware, routes: readonly Route[]): ReturnType<typeof foreign> {
  const { listener } = createApp(routes);
  return foreign(async (req, res) => {
    await middleware(req, res);
    listener(req, res);
  });
}

const withCookie = (value: string): Headers => new Headers({ 'set-cookie': value });

describe("the host's cookies", () => {
  const answers: Record<string, [() => unknown, status: number, cookies: string[]]> = {
    'are sent with a Response that has none': [() => new Response('text'), 200, ['host=1']],
    'are sent beside those of a Response': [
      () => new Response('text', { headers: withCookie('own=2') }),
      200,
      ['host=1', 'own=2'],
    ],
    'are sent beside several of a Response without a body': [
      () => {
        const headers = withCookie('own=2');
        headers.append('set-cookie', 'own=3');
        return new Response(null, { status: 204, headers });
      },
      204,
      ['host=1', 'own=2', 'own=3'],
    ],
    'are sent with JSON': [() => ({}), 200, ['host=1']],
    'are sent beside that of an HTTPError': [
      () => {
        throw new HTTPError(401, 'who?', { headers: { 'Set-Cookie': 'own=2' } });
      },
      401,
      ['host=1', 'own=2'],
    ],
    'are sent beside that of an HTTPError without a body': [
      () => {
        throw new HTTPError(304, undefined, { headers: { 'set-cookie': 'own=2' } });
      },
      304,
      ['host=1', 'own=2'],
    ],
  };
  for (const [title, [make, status, cookies]] of Object.entries(answers)) {
    test(title, async () => {
      await using server = await behind((_, res) => res.setHeader('Set-Cookie', 'host=1'), [get('/', make)]);
      const answer = await ask(server.url);
      assert.deepEqual([answer.status, answer.headers['set-cookie']], [status, cookies]);
    });
  }

  test('are sent in the order in which the host has set several', async () => {
    await using server = await behind(
      (_, res) => res.setHeader('set-cookie', ['host=1', 'host=2']),
      [get('/', () => new Response('text', { headers: withCookie('own=3') }))],
    );
    const { headers } = await ask(server.url);
    assert.deepEqual(headers['set-cookie'], ['host=1', 'host=2', 'own=3']);
  });
});

describe('a head that Node refuses', () => {
  const refused = (): Headers =>
    new Headers({
      'content-encoding': 'gzip',
      'cache-control': 'max-age=9',
      'set-cookie': 'own=2',
      'x-refused': '\x01',
    });
  const hosts: Record<string, [Middleware, mark: string | undefined, cookies: string[] | undefined]> = {
    'where the host has set no header': [() => {}, undefined, undefined],
    'where the host has set headers': [
      (_, res) => res.setHeader('x-host', 'mark').setHeader('Set-Cookie', ['host=1', 'host=2']),
      'mark',
      ['host=1', 'host=2'],
    ],
  };
  for (const [title, [middleware, mark, cookies]] of Object.entries(hosts)) {
    test(`leaves nothing of itself in the 500, and its stream is cancelled, ${title}`, async (t) => {
      const lines = stderr(t);
      const journal = new Journal();
      const cancel = (): void => journal.write('cancelled');
      const stream = (): ReadableStream => source(() => 'chunk', cancel);
      await using server = await behind(middleware, [
        get('/', () => new Response(stream(), { headers: refused(), status: 299 })),
      ]);
      const { status, reason, headers, body } = await ask(server.url);
      assert.deepEqual([status, reason], [500, 'Internal Server Error']);
      assert.equal(body, '{"detail":"Internal Server Error"}');
      assert.equal(headers['content-encoding'], undefined);
      assert.equal(headers['cache-control'], undefined);
      assert.equal(headers['x-host'], mark);
      assert.deepEqual(headers['set-cookie'], cookies);
      await journal.until('cancelled');
      assert.match(lines.join('\n'), /x-refused/);
    });
  }

  test('leaves nothing of itself where it is that of an HTTPError', async (t) => {
    stderr(t);
    await using server = await behind(
      (_, res) => res.setHeader('x-host', 'mark'),
      [
        get('/', () => {
          throw new HTTPError(401, 'who?', {
            headers: { 'cache-control': 'max-age=9', 'x-refused': '\x01' },
          });
        }),
      ],
    );
    const { status, headers } = await ask(server.url);
    assert.deepEqual([status, headers['cache-control'], headers['x-host']], [500, undefined, 'mark']);
  });
});

/** A body parser, as a host has it. */
async function parse(req: IncomingMessage): Promise<void> {
  let text = '';
  for await (const chunk of req) {
    text += chunk;
  }
  Object.assign(req, { body: JSON.parse(text) });
}

const asJson = { method: 'POST', headers: { 'content-type': 'application/json' } };

describe('a body that the host has read', () => {
  const readers: Record<string, Middleware> = {
    'by a parser': parse,
    'and thrown away': (req) => new Promise((resolve) => req.resume().on('end', resolve)),
    'in part': (req) => new Promise((resolve) => req.once('data', () => resolve(req.pause()))),
  };
  for (const [title, middleware] of Object.entries(readers)) {
    test(`${title} gives a 500, no 422 that blames the client, and a line that says so`, async (t) => {
      const lines = stderr(t);
      const journal = new Journal();
      await using server = await behind(middleware, [
        post('/', { tasks: backgroundTasks, value: body(anything) }, ({ tasks, value }) => {
          tasks.addTask(journal.write, 'ran');
          return value;
        }),
      ]);
      const { status, body: text } = await ask(`${server.url}/?secret=1`, asJson, '{"a":1}');
      assert.deepEqual([status, text], [500, '{"detail":"Internal Server Error"}']);
      assert.equal(lines.length, 1);
      assert.match(
        lines[0] ?? '',
        /^POST \/ failed: Error: Expected a body that nobody has read; mount the app/,
      );
      assert.deepEqual(journal.entries, []);
    });
  }

  test('is free for a route that does not declare it, and reads what the host made of it', async () => {
    await using server = await behind(parse, [
      post('/', { request }, ({ request }) => (request as IncomingMessage & { body: unknown }).body),
    ]);
    assert.equal((await ask(server.url, asJson, '{"a":1}')).body, '{"a":1}');
  });
});

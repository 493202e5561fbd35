/** The harness, held against targets that misbehave: each gets one sentence, nothing hangs, no verdict is wrong. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import http, { type ServerResponse } from 'node:http';
import net, { type AddressInfo, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { describe, type TestContext, test } from 'node:test';
import { call, checkpoint, type Plan } from '../../fixtures/conformance/callback.ts';
import { child, gate } from '../helpers.ts';
import { allCases, type Case, type Step } from './cases.ts';
import { Failure, startHarness, within } from './harness.ts';
import { freePort } from './local.ts';
import { type ConformanceOptions, conformance, openSession, type Session, type Verdict } from './run.ts';

/** For a step that waits in vain: the option under test, and long enough for the steps before on a busy machine. */
const SHORT = 1000;
/** So few at once that a step which is to come does come before SHORT. */
const FEW = { concurrency: 4 };
/** No port of ours: nothing listens there. */
const DEAD = 'http://127.0.0.1:1';

const dialects = { afterFailure: 'continue', onThrow: 'discard', concurrency: 'serial' };
const preflight = { contract: 1, name: 'a test', version: '1', instance: 'one', capabilities: [], dialects };

type Run = (plan: Plan, response: ServerResponse, socket: Socket) => unknown;
interface Answers {
  /** Answers `GET /`. */
  readonly get?: http.RequestListener;
  /** Answers the plans of cases. */
  readonly run?: Run;
  /** Answers every plan: also the empty one, and those of a fence. */
  readonly every?: Run;
}
interface Listening extends AsyncDisposable {
  readonly url: string;
}

const send = (response: ServerResponse, { status, size }: Plan): unknown =>
  response.writeHead(status, { 'x-plan': 'kept' }).end(status === 204 ? '' : 'x'.repeat(size));
/** What the contract asks for: the handler, the response, then the tasks, one by one. */
const good: Run = async (plan, response) => {
  await checkpoint(plan, 'handler');
  send(response, plan);
  for (const { id } of plan.handler) {
    await call(plan, id).catch(() => {});
  }
};
const json =
  (value: unknown): http.RequestListener =>
  (_, response) =>
    response.end(JSON.stringify(value));
const isOfFence = ({ handler }: Plan): boolean => handler[0]?.id === 'fence';
const isEmpty = ({ handler, checkpoints }: Plan): boolean => handler.length + checkpoints.length === 0;

async function listening(server: Server): Promise<Listening> {
  const sockets = new Set<Socket>();
  server.on('connection', (socket: Socket) => {
    sockets.add(socket.on('error', () => {}));
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const { port } = server.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}`,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) {
        socket.destroy();
      }
      await once(server.close(), 'close');
    },
  };
}

/** A target that is as the contract has it, but for `answers`. */
function target({ get = json(preflight), run = good, every }: Answers): Promise<Listening> {
  return listening(
    http.createServer(async (request, response) => {
      if (request.method === 'GET') {
        return get(request, response);
      }
      const plan: Plan = JSON.parse(Buffer.concat(await request.toArray()).toString());
      const answer = every ?? (isEmpty(plan) || isOfFence(plan) ? good : run);
      await answer(plan, response, request.socket);
    }),
  );
}

/** A case that no file has. */
const caseOf = (...steps: Step[]): Case => ({
  id: '9.1.1',
  clause: '9.1',
  title: 'a case',
  statement: 'A clause',
  tag: 'wire',
  level: 'MUST',
  source: 'A test',
  why: 'A test.',
  needs: [],
  steps,
});
const caseById = (id: string): Case =>
  allCases().find((each) => each.id === id) ?? assert.fail(`no case ${id}`);
const oneTask: Step = { send: { handler: ['h1'] } };
const whole = caseOf(oneTask, { response: {} }, { end: ['h1'] });

interface Opened extends AsyncDisposable {
  readonly session: Session;
}
async function open(options: ConformanceOptions): Promise<Opened> {
  const session = await openSession(options);
  return { session, [Symbol.asyncDispose]: () => session.close() };
}

/** The verdict of one case against a target with these answers. */
async function verdictOf(answers: Answers, each: Case, deadlineMs?: number): Promise<Verdict> {
  await using server = await target(answers);
  await using opened = await open({ url: server.url });
  const verdict = await opened.session.run(each, deadlineMs);
  if (verdict.status === 'fail') {
    isSentence(verdict.reason);
  }
  return { ...verdict, ...(verdict.reason && { reason: verdict.reason.replaceAll(server.url, '') }) };
}

/** Asserts that this is why a case failed. */
async function failsWith(
  reason: string | RegExp,
  answers: Answers,
  each: Case,
  deadlineMs?: number,
): Promise<void> {
  const verdict = await verdictOf(answers, each, deadlineMs);
  assert.equal(verdict.status, 'fail');
  if (typeof reason === 'string') {
    assert.equal(verdict.reason, reason);
  } else {
    assert.match(verdict.reason ?? '', reason);
  }
}

/** Why these options are refused, in one sentence. */
async function refusalOf(options: ConformanceOptions): Promise<string> {
  const error: unknown = await openSession(options).then(
    async (session) => {
      await session.close();
      assert.fail('the target was accepted');
    },
    (error: unknown) => error,
  );
  assert.ok(error instanceof Failure, String(error));
  isSentence(error.message);
  return error.message;
}
async function refusalBy(server: Promise<Listening>, deadlineMs?: number): Promise<string> {
  await using started = await server;
  const refusal = await refusalOf({ url: started.url, ...(deadlineMs && { deadlineMs }) });
  return refusal.replaceAll(started.url, '');
}

function isSentence(text: string | undefined): void {
  assert.ok(text);
  assert.doesNotMatch(text, /\n| at \S+ \(|undefined|\[object/);
  assert.ok(text.length < 800, text);
}

describe('an address is refused', FEW, () => {
  test('where nothing listens', async () => {
    assert.equal(
      await refusalOf({ url: DEAD }),
      `GET ${DEAD}/ was refused: connect ECONNREFUSED 127.0.0.1:1. Is the target running there?`,
    );
  });

  test('that accepts a connection, and does not answer', async () => {
    assert.equal(
      await refusalBy(listening(net.createServer()), 200),
      'the answer to GET / did not come within 200 ms. Is the target running there?',
    );
  });

  test('that does not speak HTTP', async () => {
    const server = listening(net.createServer((socket) => socket.end('SSH-2.0-OpenSSH_9.2\r\n')));
    assert.match(
      await refusalBy(server),
      /^the connection of GET \/ broke: Parse Error: .*Is the target running/,
    );
  });

  test('that closes each connection', async () => {
    assert.equal(
      await refusalBy(listening(net.createServer((socket) => socket.destroy()))),
      'the connection of GET / broke: socket hang up. Is the target running there?',
    );
  });

  const answers: [what: string, get: http.RequestListener, refusal: string | RegExp][] = [
    [
      'with HTML',
      (_, response) => response.end('<!doctype html>\n<title>Hello</title>'),
      /^GET \/ answered 200 "<!doctype html>\\n<title>Hello<\/title>", not the preflight of .*\.md: expected JSON$/,
    ],
    [
      'with 404',
      (_, response) => response.writeHead(404).end('{"detail":"Not Found"}'),
      /^GET \/ answered 404 "{\\"detail\\":\\"Not Found\\"}", not the preflight .*: expected the status 200$/,
    ],
    [
      'with a redirect',
      (_, response) => response.writeHead(302, { location: '/a' }).end(),
      /expected the status 200$/,
    ],
    ['with nothing', (_, response) => response.end(), /^GET \/ answered 200 "", .*: expected JSON$/],
    ['with null', json(null), /: expected `contract` to be 1, got nothing$/],
    ['with a list', json([]), /: expected `contract` to be 1, got nothing$/],
    ['with another contract', json({ ...preflight, contract: 2 }), /: expected `contract` to be 1, got 2$/],
    [
      'with a contract that is a text',
      json({ ...preflight, contract: '1' }),
      /expected `contract` to be 1, got "1"$/,
    ],
    [
      'without a name',
      json({ ...preflight, name: undefined }),
      /: expected `name` to be a text, got nothing$/,
    ],
    [
      'without a version',
      json({ ...preflight, version: undefined }),
      /expected `version` to be a text, got nothing$/,
    ],
    [
      'without an instance',
      json({ ...preflight, instance: '' }),
      /: expected `instance` to be a text, got ""$/,
    ],
    [
      'without capabilities',
      json({ ...preflight, capabilities: undefined }),
      /: expected `capabilities` to be a list, got nothing$/,
    ],
    [
      'with a capability that is not known',
      json({ ...preflight, capabilities: ['sync', 'tls'] }),
      /: expected `capabilities` to be of dependencies, yield, sync, stream, adds, head, got "tls"$/,
    ],
    [
      'without dialects',
      json({ ...preflight, dialects: undefined }),
      /: expected `dialects\.afterFailure` to be continue or stop, got nothing$/,
    ],
    [
      'with a value of a dialect that is not known',
      json({ ...preflight, dialects: { ...dialects, onThrow: 'keep' } }),
      /: expected `dialects\.onThrow` to be discard or run, got "keep"$/,
    ],
    [
      'without a dialect that a capability needs',
      json({ ...preflight, capabilities: ['yield'] }),
      /: expected `dialects\.cleanUp` to be before or after, got nothing$/,
    ],
    [
      'with two instances in turn',
      (() => {
        let count = 0;
        return (request, response) =>
          json({ ...preflight, instance: `process ${count++ % 2}` })(request, response);
      })(),
      ' is more than one process (two instances answered): run one worker',
    ],
    [
      'with a body that breaks off',
      (_, response) => {
        response.writeHead(200, { 'content-length': 100 }).write('{', () => response.destroy());
      },
      /^the response to GET \/ broke off after [01] bytes\. Is the target running there\?$/,
    ],
    [
      'with a body that has no end',
      (_, response) => endless(response),
      'GET / is answered without an end: more than 1 MiB has come. Is the target running there?',
    ],
  ];
  for (const [what, get, refusal] of answers) {
    test(`that answers ${what}`, async () => {
      const message = await refusalBy(target({ get }));
      if (typeof refusal === 'string') {
        assert.equal(message, refusal);
      } else {
        assert.match(message, refusal);
      }
    });
  }

  test('that begins its answer, and does not go on', async () => {
    const get: http.RequestListener = (_, response) => response.write('{');
    assert.equal(
      await refusalBy(target({ get }), 200),
      'the answer to GET / did not come within 200 ms. Is the target running there?',
    );
  });

  const runs: [what: string, every: Run, refusal: RegExp][] = [
    [
      '500',
      (_, response) => response.writeHead(500).end('Internal\nServer Error'),
      /: expected the status 200, got 500 with "Internal\\nServer Error"$/,
    ],
    [
      '404',
      (_, response) => response.writeHead(404).end('<h1>No</h1>'),
      /status 200, got 404 with "<h1>No<\/h1>"$/,
    ],
    [
      'HTML',
      (_, response) => response.end('<h1>Hi</h1>'),
      /: expected the header x-plan: kept, got none \(status 200 with "<h1>Hi<\/h1>"\)$/,
    ],
    [
      'another body',
      (_, response) => response.writeHead(200, { 'x-plan': 'kept' }).end('xy'),
      /: expected a body of 2 bytes 'x', got 2 bytes: "xy"$/,
    ],
    [
      'a body that has no end',
      (_, response) => endless(response),
      /: the response to POST \/run has no end: 2 bytes were asked for, got the status 200 and \d+ bytes$/,
    ],
    [
      'a body that breaks off',
      (_, response) => response.writeHead(200, { 'content-length': 2 }).write('x', () => response.destroy()),
      /: the response to POST \/run broke off after the status 200 and [01] bytes$/,
    ],
    [
      'nothing, and the connection ends',
      (_, response) => response.destroy(),
      /: the connection of POST \/run broke: socket hang up$/,
    ],
    [
      'no HTTP',
      (_, __, socket) => socket.end('220 ready\r\n'),
      /: the connection of POST \/run broke: Parse Error: /,
    ],
    [
      'an upgrade',
      (_, __, socket) => socket.end('HTTP/1.1 101 A\r\nUpgrade: a\r\nConnection: upgrade\r\n\r\n'),
      /: the connection of POST \/run was closed without a response$/,
    ],
  ];
  for (const [what, every, refusal] of runs) {
    test(`whose /run answers ${what}`, async () => {
      const message = await refusalBy(target({ every }));
      assert.match(message, /^An empty plan is not answered as fixtures\/conformance\/README\.md has it: /);
      assert.match(message, refusal);
    });
  }

  test('whose /run does not answer', async () => {
    assert.match(
      await refusalBy(target({ every: () => {} }), 2 * SHORT),
      /: the response to POST \/run did not come within 2000 ms$/,
    );
  });

  for (const url of [
    '',
    'nonsense',
    'localhost:9000',
    'https://127.0.0.1:9000',
    'http://127.0.0.1:9000/api',
    'http://127.0.0.1:9000/?a',
    'ftp://127.0.0.1',
  ]) {
    test(`that is '${url}'`, async () => {
      assert.equal(
        await refusalOf({ url }),
        `Expected the target's address to be like http://127.0.0.1:9000, without a path, got '${url}'.`,
      );
    });
  }

  for (const [option, value] of [
    ['repeat', NaN],
    ['repeat', 0],
    ['deadlineMs', NaN],
    ['deadlineMs', -1],
  ] as const) {
    test(`with ${option} ${value}`, async () => {
      const refusal = await refusalOf({ url: DEAD, [option]: value });
      assert.equal(refusal, `Expected \`${option}\` to be 1 or more, got ${value}.`);
    });
  }
});

describe('an address is accepted', { concurrency: true }, () => {
  test('with a slash at its end', async () => {
    await using server = await target({});
    await using opened = await open({ url: `${server.url}/` });
    assert.equal((await opened.session.run(whole)).status, 'pass');
  });

  test('of IPv6, also for a connection in raw bytes', async (t) => {
    const server = http.createServer(async (request, response) => {
      if (request.method === 'GET') {
        return json(preflight)(request, response);
      }
      await good(JSON.parse(Buffer.concat(await request.toArray()).toString()), response, request.socket);
    });
    try {
      await once(server.listen(0, '::1'), 'listening');
    } catch {
      return t.skip('this machine has no IPv6');
    }
    try {
      await using opened = await open({ url: `http://[::1]:${(server.address() as AddressInfo).port}` });
      assert.equal((await opened.session.run(caseById('1.4.1'))).reason, undefined);
    } finally {
      server.close();
    }
  });

  test('and what the target does not have is skipped, with the reason', async () => {
    await using server = await target({});
    await using opened = await open({ url: server.url });
    const { run } = opened.session;
    const [blocking, process] = [await run(caseById('1.3.2')), await run(caseById('3.4.1'))];
    assert.deepEqual(
      [blocking.status, blocking.reason],
      ['skip', 'the target does not have the capability `sync`'],
    );
    assert.deepEqual([process.status, process.reason], ['skip', 'needs the command that starts the target']);
  });

  test('and a case that its dialects make no sense of is skipped, with the reason', async () => {
    const capabilities = ['dependencies', 'yield', 'stream'];
    const [concurrency, cleanUp, brokenStream] = ['parallel', 'before', 'drop'];
    const declared = {
      ...preflight,
      capabilities,
      dialects: { ...dialects, concurrency, cleanUp, brokenStream },
    };
    await using server = await target({ get: json(declared) });
    await using opened = await open({ url: server.url });
    const reasons = Object.entries({
      '2.1.1': 'the target runs the tasks of a request at the same time, as it declares',
      '10.5.1': 'the target cleans up before the tasks, as it declares',
      '4.7.1': 'the target drops the tasks of a broken stream, as it declares',
    });
    for (const [id, expected] of reasons) {
      const { status, reason } = await opened.session.run(caseById(id));
      assert.deepEqual([status, reason], ['skip', expected]);
    }
  });

  test('and the cases come one after another, each with its verdict', async () => {
    await using server = await target({});
    const ids: string[] = [];
    for await (const { id } of conformance({ url: server.url })) {
      ids.push(id);
      if (id === '1.1.2') {
        break;
      }
    }
    assert.deepEqual(ids, ['1.1.1', '1.1.2']);
  });
});

describe('a case fails', FEW, () => {
  /** A target that answers, and then calls as `act` does. */
  const caller =
    (act: (plan: Plan) => Promise<unknown>): Run =>
    async (plan, response) => {
      send(response, plan);
      await act(plan).catch(() => {});
    };
  const get = (plan: Plan, name: string): Promise<unknown> =>
    fetch(`${plan.callback}/${name}`).then((response) => response.text());

  test('where a task does not call', () =>
    failsWith(
      'the call of h1 did not come within 1000 ms',
      { run: (plan, response) => send(response, plan) },
      whole,
      SHORT,
    ));

  test('where a task calls twice', () =>
    failsWith(
      'h1 called a second time',
      {
        run: caller(async (plan) => {
          await Promise.all([call(plan, 'h1'), call(plan, 'h1')]);
        }),
      },
      caseOf(oneTask, { response: {} }, { arrive: ['h1'] }, { absent: [] }, { end: [] }),
    ));

  test('where a task calls a second time instead of the next one', () =>
    failsWith(
      'h1 called a second time',
      {
        run: caller(async (plan) => {
          await call(plan, 'h1');
          await call(plan, 'h1');
        }),
      },
      caseOf({ send: { handler: ['h1', 'h2'] } }, { response: {} }, { end: ['h1', 'h2'] }),
    ));

  test('where a task calls that the plan does not have', () =>
    failsWith(
      "called back 'h9', which the plan does not have",
      { run: caller((plan) => call(plan, 'h9')) },
      whole,
    ));

  test('where a task calls that the plan of a second request does not have', () =>
    failsWith(
      "called back 'h9', which the plan of b does not have",
      { run: (plan, ...rest) => (plan.size === 3 ? caller(() => call(plan, 'h9')) : good)(plan, ...rest) },
      caseOf(oneTask, { send: { as: 'b', handler: ['h1'], size: 3 } }, { arrive: ['b:h1'] }),
    ));

  test('where a checkpoint calls that the plan does not ask for', () =>
    failsWith(
      "called back 'exit', which the plan does not have",
      { run: caller((plan) => call(plan, 'exit')) },
      whole,
    ));

  test('where a name is sent with a query', () =>
    failsWith(
      "called back 'h1?a', which the plan does not have",
      { run: caller((plan) => call(plan, 'h1?a')) },
      whole,
    ));

  test('where a task calls with GET', () =>
    failsWith(
      /^called back with GET \/\w+\/\d+\/h1: a call is POST \{callback\}\/\{name\}$/,
      { run: caller((plan) => get(plan, 'h1')) },
      whole,
    ));

  test('where a task calls without a name', () =>
    failsWith(
      /^called back with POST \/\w+\/\d+\/: a call is POST/,
      { run: caller((plan) => call(plan, '')) },
      whole,
    ));

  /** Calls at another address of the harness. */
  const astray = (plan: Plan, folder: string): Promise<void> =>
    call({ ...plan, callback: `${new URL(plan.callback).origin}${folder}` }, 'h1');
  test('where a task calls at an address that no plan has', () =>
    failsWith(
      'the call of h1 did not come within 1000 ms; ' +
        'the harness got POST /nobody/h1, which is no POST {callback}/{name} of a plan',
      { run: caller((plan) => astray(plan, '/nobody')) },
      whole,
      SHORT,
    ));

  test('where a task calls at an address that is not well formed', () =>
    failsWith(
      /^the call of h1 did not come within 1000 ms; the harness got POST \/%zz\/h1, which/,
      { run: caller((plan) => astray(plan, '/%zz')) },
      whole,
      SHORT,
    ));

  test('where a task calls out of order', () =>
    failsWith(
      'h2 has called, and h1, which comes before it, has not called yet',
      {
        run: caller(async (plan) => {
          await call(plan, 'h2');
          await call(plan, 'h1');
        }),
      },
      caseOf({ send: { handler: ['h1', 'h2'] } }, { response: {} }, { end: ['h1', 'h2'] }),
    ));

  const blocking: Step = { send: { handler: [{ id: 'h1', kind: 'sync' }, 'h2'] } };
  test('where a task does not wait for a blocking one, although nothing else is served meanwhile', () =>
    failsWith(
      'h2 has called already',
      {
        every: (plan, response) => {
          if (isOfFence(plan)) {
            return undefined;
          }
          send(response, plan);
          return Promise.allSettled(plan.handler.toReversed().map(({ id }) => call(plan, id)));
        },
      },
      caseOf(
        blocking,
        { response: {} },
        { arrive: ['h1'] },
        { absent: ['h2'] },
        { release: 'h1' },
        { end: ['h2'] },
      ),
    ));

  test('where a connection is refused', () =>
    failsWith(
      /^a connection to +was refused: connect ECONNREFUSED /,
      {
        run: (plan, response, socket) => {
          Reflect.get(socket, 'server').close();
          send(response, plan);
        },
      },
      caseOf(oneTask, { response: {} }, { connect: true }, { end: ['h1'] }),
    ));

  test('where more calls come than the end has', () =>
    failsWith(
      'h2 called too, and nothing else was to call',
      {},
      caseOf({ send: { handler: ['h1', 'h2'] } }, { response: {} }, { end: ['h1'] }),
    ));

  test('where the status is another one, although a call is waited for', () =>
    failsWith(
      'expected the status 200, got 500 with "Oops"',
      { run: (_, response) => response.writeHead(500).end('Oops') },
      caseOf(oneTask, { arrive: ['h1'] }, { response: {} }, { end: [] }),
    ));

  test('where the response is not there', () =>
    failsWith(
      'the whole response to a (nothing so far) did not come within 1000 ms',
      { run: () => {} },
      whole,
      SHORT,
    ));

  test('where the response has no last byte', () =>
    failsWith(
      'the whole response to a (the status 200 and 1 bytes so far) did not come within 1000 ms',
      { run: (_, response) => response.writeHead(200, { 'content-length': 2 }).write('x') },
      whole,
      SHORT,
    ));

  test('where the response breaks off', () =>
    failsWith(
      /^the response to POST \/run broke off after the status 200 and [01] bytes$/,
      {
        run: (_, response) =>
          response.writeHead(200, { 'content-length': 2 }).write('x', () => response.destroy()),
      },
      whole,
    ));

  test('where the body has no end', () =>
    failsWith(
      /^the response to POST \/run has no end: 2 bytes were asked for, got the status 200 and \d+ bytes$/,
      { run: (_, response) => endless(response) },
      whole,
    ));

  test('where the body is longer', () =>
    failsWith(
      'expected a body of 2 bytes \'x\', got 3 bytes: "xxx"',
      { run: (_, response) => response.writeHead(200, { 'x-plan': 'kept' }).end('xxx') },
      whole,
    ));

  test('where the header is not there', () =>
    failsWith(
      'expected the header x-plan: kept, got none (status 200 with "xx")',
      { run: (_, response) => response.end('xx') },
      whole,
    ));

  test('where the connection is reset', () =>
    failsWith(
      'the connection of POST /run broke: read ECONNRESET',
      { run: (_, __, socket) => socket.resetAndDestroy() },
      whole,
    ));

  test('where a kept connection is not kept', () =>
    failsWith(
      'the connection was not kept open',
      { run: (plan, response) => good(plan, response.setHeader('connection', 'close'), response.socket!) },
      caseOf(
        { send: { handler: ['h1'], connection: 'kept' } },
        { response: {} },
        { send: { as: 'b', connection: 'kept' } },
        { response: { of: 'b' } },
        { end: ['h1'] },
      ),
    ));

  test('where other requests are not answered meanwhile', () =>
    failsWith(
      'the response to another request (nothing so far) did not come within 1000 ms',
      { every: (plan, ...rest) => !isOfFence(plan) && good(plan, ...rest) },
      whole,
      SHORT,
    ));

  test('where other requests are answered with 503 meanwhile', () =>
    failsWith(
      'another request was answered with 503',
      {
        every: (plan, response, socket) =>
          isOfFence(plan) ? response.writeHead(503).end() : good(plan, response, socket),
      },
      whole,
    ));

  test('where the tasks of other requests do not run meanwhile', () =>
    failsWith(
      'the task of another request did not come within 1000 ms',
      {
        every: (plan, response, socket) =>
          isOfFence(plan) ? send(response, plan) : good(plan, response, socket),
      },
      whole,
      SHORT,
    ));

  test('where another process answers than before', async () => {
    let instance = 'one';
    const get: http.RequestListener = (request, response) =>
      json({ ...preflight, instance })(request, response);
    const run: Run = (plan, response, socket) => {
      instance = 'two';
      return good(plan, response, socket);
    };
    await failsWith(
      'the process is another one than before',
      { get, run },
      caseOf(oneTask, { response: {} }, { alive: true }, { end: ['h1'] }),
    );
  });

  const raw = caseById('1.4.1');
  const rawHead = 'HTTP/1.1 200 OK\r\nx-plan: kept\r\ncontent-length: 2\r\n\r\n';
  test('where a connection in raw bytes is reset', () =>
    failsWith(
      'the connection of POST /run broke: read ECONNRESET, after nothing',
      { run: (_, __, socket) => socket.resetAndDestroy() },
      raw,
    ));

  test('where a connection in raw bytes ends without a response', () =>
    failsWith(
      'the connection ended without response 1; received: nothing',
      { run: (_, __, socket) => socket.end() },
      raw,
    ));

  test('where a connection in raw bytes breaks off', () =>
    failsWith(
      'expected a body of 2 bytes \'x\', got 1 bytes: "x"',
      { run: (_, __, socket) => socket.end(`${rawHead}x`) },
      raw,
    ));

  test('where a connection in raw bytes has no end of file', () =>
    failsWith(
      'the whole response to a (54 bytes and no end of file so far) did not come within 1000 ms',
      {
        run: (plan, _, socket) => {
          socket.write(`${rawHead}xx`);
          return call(plan, 'h1').catch(() => {});
        },
      },
      raw,
      SHORT,
    ));

  test('where a connection in raw bytes has no end of data', () =>
    failsWith(
      /^the response to POST \/run has no end, after \d+ bytes and no end of file$/,
      {
        run: (_, __, socket) => {
          socket.write(rawHead);
          endless(socket);
        },
      },
      raw,
    ));

  test('and the transcript ends with the step and the reason, and the curl line has the plan', async () => {
    const { transcript, curl, reason } = await verdictOf({ run: caller((plan) => call(plan, 'h9')) }, whole);
    assert.deepEqual(transcript, ['send {"handler":["h1"]}', 'response {}', 'end ["h1"]', `  ${reason}`]);
    assert.match(curl ?? '', /^curl -i http:\S+\/run -H 'content-type: application\/json' -d '\{.*"id":"h1"/);
  });
});

describe('a dialect', FEW, () => {
  const failing: Step[] = [{ response: {} }, { arrive: ['h1'] }, { fail: { name: 'h1' } }];
  const lists = { continue: ['h2', 'h3'], stop: [] };
  const each: Case = {
    ...caseOf({ send: { handler: ['h1', 'h2', 'h3'] } }, ...failing, { end: lists }),
    level: 'DIALECT',
    dialect: 'afterFailure',
  };
  const stops: Run = async (plan, response) => {
    send(response, plan);
    try {
      for (const { id } of plan.handler) {
        await call(plan, id);
      }
    } catch {
      /* and no more */
    }
  };
  const declaring = (afterFailure: string): http.RequestListener =>
    json({ ...preflight, dialects: { ...dialects, afterFailure } });

  test('that is shown as it is declared passes, and is observed', async () => {
    const { status, observed } = await verdictOf({ get: declaring('stop'), run: stops }, each);
    assert.deepEqual([status, observed], ['pass', 'stop']);
  });

  test('that is shown as the other one fails, and the other one is observed', async () => {
    const [stopping, going] = await Promise.all([
      verdictOf({ get: declaring('continue'), run: stops }, each, SHORT),
      verdictOf({ get: declaring('stop'), run: good }, each),
    ]);
    assert.deepEqual([stopping.status, stopping.observed], ['fail', 'stop']);
    assert.match(stopping.reason ?? '', /the call of h2 did not come within 1000 ms$/);
    assert.deepEqual([going.status, going.observed], ['fail', 'continue']);
    assert.match(going.reason ?? '', /h2 called too, and nothing else was to call$/);
  });

  test('that is shown as neither of the two fails, and nothing is observed', async () => {
    const swapped: Run = async (plan, response) => {
      send(response, plan);
      for (const name of ['h1', 'h3', 'h2']) {
        await call(plan, name).catch(() => {});
      }
    };
    const { status, observed, reason } = await verdictOf({ get: declaring('continue'), run: swapped }, each);
    assert.deepEqual([status, observed], ['fail', undefined]);
    assert.match(reason ?? '', /h3 has called, and h2, which comes before it, has not called yet$/);
  });

  test('of a target that does not serve on fails, and nothing is observed', async () => {
    const state = { dead: false };
    const every: Run = async (plan, response) => {
      if (state.dead) {
        response.destroy();
      } else {
        send(response, plan);
      }
      try {
        for (const { id } of plan.handler) {
          await call(plan, id);
        }
      } catch {
        state.dead = true;
      }
    };
    const { status, observed } = await verdictOf({ get: declaring('continue'), every }, each, SHORT);
    assert.deepEqual([status, observed], ['fail', undefined]);
  });

  test('whose case fails before it comes to it is not observed', async () => {
    const run: Run = (_, response) => response.writeHead(500).end();
    const { status, observed } = await verdictOf({ get: declaring('continue'), run }, each);
    assert.deepEqual([status, observed], ['fail', undefined]);
  });
});

describe('a call after its case', { concurrency: true }, () => {
  /** A target that gives its plans to the test. */
  async function played(each: Case): Promise<{ late: readonly string[]; verdict: Verdict }> {
    const plans: Plan[] = [];
    await using server = await target({
      run: (plan, ...rest) => {
        plans.push(plan);
        return good(plan, ...rest);
      },
    });
    await using opened = await open({ url: server.url });
    const verdict = await opened.session.run(each);
    assert.ok(plans[0]);
    await call(plans[0], 'h2');
    return { verdict, late: [...opened.session.late] };
  }

  test('is answered, and is late where the case had passed', async () => {
    const { verdict, late } = await played(whole);
    assert.deepEqual([verdict.status, late], ['pass', ['h2 called back after case 9.1.1 had passed']]);
  });

  test('is answered, and is not late where the case had failed', async () => {
    const { verdict, late } = await played(
      caseOf({ send: { handler: ['h1', 'h2'] } }, { response: {} }, { end: [] }),
    );
    assert.deepEqual([verdict.status, late], ['fail', []]);
  });

  test('in the case that follows is none of the latter', async () => {
    const first = gate<Plan>();
    const run: Run = async (plan, response, socket) => {
      if (plan.size === 3) {
        await call(await first, 'h1');
      } else {
        first.open(plan);
      }
      await good(plan, response, socket);
    };
    await using server = await target({ run });
    await using opened = await open({ url: server.url });
    assert.equal((await opened.session.run(whole)).status, 'pass');
    const following = caseOf({ send: { handler: ['h1'], size: 3 } }, { response: {} }, { end: ['h1'] });
    const next = await opened.session.run(following);
    assert.deepEqual(
      [next.status, opened.session.late],
      ['pass', ['h1 called back after case 9.1.1 had passed']],
    );
  });
});

/** A target in a process of its own, in JavaScript, so that any Node runs it: one that a failed task ends. */
const MORTAL = `
  const http = require('node:http');
  const instance = String(process.pid);
  const preflight = ${JSON.stringify(preflight)};
  const server = http.createServer(async (request, response) => {
    if (request.method === 'GET') return response.end(JSON.stringify({ ...preflight, instance }));
    const plan = JSON.parse(Buffer.concat(await request.toArray()).toString());
    response.writeHead(plan.status, { 'x-plan': 'kept' }).end('x'.repeat(plan.size));
    for (const { id } of plan.handler) {
      const address = plan.callback + '/' + id;
      const status = await new Promise((resolve) => {
        http.request(address, { method: 'POST', agent: false }, (answer) => resolve(answer.resume().statusCode)).end();
      });
      if (status !== 200) process.exit(7);
    }
  });
  server.listen(process.env.PORT, '127.0.0.1', () => console.log(server.address().port));
`;
async function mortal(t: TestContext): Promise<string> {
  const folder = await mkdtemp(path.join(tmpdir(), 'harness-'));
  t.after(() => rm(folder, { recursive: true }));
  const file = path.join(folder, 'mortal.cjs');
  await writeFile(file, MORTAL);
  return file;
}
const NODE = JSON.stringify(process.execPath);
const node = (script: string): string => `${NODE} --eval ${JSON.stringify(script)}`;
const ended =
  /^(POST \S+\/run was refused: connect ECONNREFUSED \S+|the connection of POST \S+\/run broke: .*)$/;

describe('a target that dies in the middle of a case', { concurrency: true }, () => {
  test('fails this case and those after it, each in a sentence', async (t) => {
    const started = spawn(process.execPath, [await mortal(t)], { env: { ...process.env, PORT: '0' } });
    t.after(() => started.kill('SIGKILL'));
    const [port] = await once(started.stdout.setEncoding('utf8'), 'data');
    await using opened = await open({ url: `http://127.0.0.1:${String(port).trim()}` });
    const verdicts = [
      await opened.session.run(whole),
      await opened.session.run(caseById('3.3.1')),
      await opened.session.run(whole),
      await opened.session.run(caseOf(oneTask, { arrive: ['h1'] }, { end: [] })),
    ];
    assert.deepEqual(
      verdicts.map(({ status }) => status),
      ['pass', 'fail', 'fail', 'fail'],
    );
    for (const { reason } of verdicts.slice(1)) {
      isSentence(reason);
      assert.match(reason ?? '', ended);
    }
    assert.match(verdicts[2]?.reason ?? '', /was refused: connect ECONNREFUSED/);
  });

  test('is started again for the next case, where there is a command', async (t) => {
    const options = { url: await freeUrl(), command: `${NODE} ${JSON.stringify(await mortal(t))}` };
    await using opened = await open(options);
    const first = await opened.session.run(caseById('3.3.1'));
    isSentence(first.reason);
    assert.equal(first.status, 'fail');
    assert.match(first.reason ?? '', /the process ended \(exit code 7\)$|was refused|broke: /);
    const next = await opened.session.run(
      caseOf(oneTask, { response: {} }, { alive: true }, { end: ['h1'] }),
    );
    assert.deepEqual([next.status, next.reason], ['pass', undefined]);
  });

  test('may be over before the second of two signals', async (t) => {
    await using opened = await open({
      url: await freeUrl(),
      command: `${NODE} ${JSON.stringify(await mortal(t))}`,
    });
    const ends: Step[] = [{ terminate: 'SIGINT' }, { exited: {} }];
    const verdict = await opened.session.run(
      caseOf(oneTask, { response: {} }, { arrive: ['h1'] }, ...ends, ...ends),
    );
    assert.equal(verdict.status, 'pass');
  });

  test('that takes two signals at once as one ends at a second one that comes afterMs later', async (t) => {
    const file = await mortal(t);
    const onceMore = `
      let since;
      process.on('SIGINT', () => {
        since ??= performance.now();
        if (performance.now() - since >= 200) process.exit(4);
      });`;
    await writeFile(file, MORTAL + onceMore);
    await using opened = await open({ url: await freeUrl(), command: `${NODE} ${JSON.stringify(file)}` });
    const again: Step = { terminate: 'SIGINT', afterMs: 300 };
    const verdict = await opened.session.run(
      caseOf(oneTask, { response: {} }, { terminate: 'SIGINT' }, again, { exited: { code: 0 } }),
      1000,
    );
    assert.equal(verdict.reason, 'expected the exit code 0, got 4');
    assert.deepEqual(verdict.transcript?.slice(2, 4), [
      'terminate "SIGINT"',
      'terminate "SIGINT" afterMs 300',
    ]);
  });

  test('is over when the session is closed, where there is a command', async (t) => {
    const url = await freeUrl();
    const { session } = await open({ url, command: `${NODE} ${JSON.stringify(await mortal(t))}` });
    await session.close();
    assert.match(await refusalOf({ url }), /was refused/);
  });
});

describe('a command is refused', { concurrency: true }, () => {
  test('that ends at once, with what it wrote to stderr', async () => {
    const url = await freeUrl();
    const command = node("console.error('no module named app'); process.exit(3)");
    assert.equal(
      await refusalOf({ url, command }),
      `\`${command}\` ended (exit code 3) before it listened on ${url}; its stderr: no module named app`,
    );
  });

  test('that ends at once, and says nothing', async () => {
    const url = await freeUrl();
    assert.equal(
      await refusalOf({ url, command: 'true' }),
      `\`true\` ended (exit code 0) before it listened on ${url}; it wrote nothing to stderr`,
    );
  });

  test('that ends by a signal', async () => {
    const command = node("process.kill(process.pid, 'SIGKILL')");
    assert.match(await refusalOf({ url: await freeUrl(), command }), /ended \(SIGKILL\) before it listened/);
  });

  test('that is not there', async () => {
    const refusal = await refusalOf({ url: await freeUrl(), command: 'no-such-command --port 1' });
    assert.match(
      refusal,
      /^`no-such-command --port 1` ended \(exit code 127\) .*stderr: .*no-such-command.*not found/,
    );
  });

  test('in a folder that is not there', async () => {
    const refusal = await refusalOf({ url: await freeUrl(), command: 'true', cwd: '/no/such/folder' });
    assert.match(refusal, /^`true` ended \(.*\) before it listened on .*; its stderr: spawn .*ENOENT$/);
  });

  test('for an address that is in use', async () => {
    await using server = await target({});
    assert.equal(
      await refusalOf({ url: server.url, command: 'true' }),
      `${server.url} is in use before \`true\` has started: end what listens there, or choose another port`,
    );
  });

  test('that does not listen, and its process is ended', async () => {
    const url = await freeUrl();
    const command = "sh -c 'echo pid $$ >&2; exec sleep 600'";
    const refusal = await refusalOf({ url, command, startDeadlineMs: SHORT });
    assert.match(
      refusal,
      /^a server on \S+, as `.*` should start it, did not come within 1000 ms; .*stderr: pid \d+$/,
    );
    assert.throws(() => process.kill(Number(/\d+$/.exec(refusal)?.[0]), 0), { code: 'ESRCH' });
  });

  test('that starts a server which is no target', async () => {
    const server = "require('node:http').createServer((_, response) => response.end('Hi'))";
    const command = node(`${server}.listen(process.env.PORT)`);
    assert.match(
      await refusalOf({ url: await freeUrl(), command }),
      /^GET \S+ answered 200 "Hi", not the preflight/,
    );
  });

  test('and one that sets variables before it is not', async (t) => {
    const url = await freeUrl();
    const file = JSON.stringify(await mortal(t));
    const { session } = await open({
      url,
      command: `A='b c' D="e" PORT=${new URL(url).port} ${NODE} ${file}`,
    });
    const verdict = await session.run(caseOf(oneTask, { response: {} }, { alive: true }, { end: ['h1'] }));
    await session.close();
    assert.equal(verdict.status, 'pass');
    assert.match(await refusalOf({ url }), /was refused/);
  });
});

describe('after its end, the suite holds nothing open', { concurrency: true }, () => {
  const modules = ['run', 'cases'].map((name) => JSON.stringify(new URL(`${name}.ts`, import.meta.url)));
  /** The sockets and timers that `act` leaves behind in a process of its own. */
  async function leftBy(url: string, act: string): Promise<unknown> {
    await using started = child([
      '--input-type=module',
      '--eval',
      `
      import { openSession } from ${modules[0]};
      const url = ${JSON.stringify(url)};
      const whole = ${JSON.stringify(whole)};
      ${act}
      for (let turn = 0; turn < 5; turn += 1) await new Promise(setImmediate);
      const left = process.getActiveResourcesInfo().filter((name) => /TCP|Timeout|Process/.test(name));
      console.log(JSON.stringify(left));
      process.exit();
    `,
    ]);
    await started.exited;
    assert.equal(started.stderr, '');
    return JSON.parse(started.stdout);
  }

  test('of a target that does not answer', async () => {
    await using server = await listening(net.createServer());
    assert.deepEqual(
      await leftBy(server.url, 'await openSession({ url, deadlineMs: 100 }).catch(() => {});'),
      [],
    );
  });

  const silent: [what: string, run: Run][] = [
    ['a response', () => {}],
    ['the end of a response', (_, response) => response.writeHead(200).write('x')],
    ['a call', (plan, response) => send(response, plan)],
  ];
  for (const [what, run] of silent) {
    test(`of a case that waits in vain for ${what}`, async () => {
      await using server = await target({ run });
      assert.deepEqual(
        await leftBy(
          server.url,
          `
        const session = await openSession({ url });
        const { status } = await session.run(whole, ${SHORT});
        await session.close();
        if (status !== 'fail') throw new Error(status);
      `,
        ),
        [],
      );
    });
  }

  test('of a case whose task the target holds', async () => {
    await using server = await target({});
    assert.deepEqual(
      await leftBy(
        server.url,
        `
      const session = await openSession({ url });
      const steps = [...whole.steps.slice(0, 2), { arrive: ['h1'] }, { release: 'h9' }];
      const { status } = await session.run({ ...whole, steps });
      await session.close();
      if (status !== 'fail') throw new Error(status);
    `,
      ),
      [],
    );
  });
});

describe('a call that fails ahead', { concurrency: true }, () => {
  const asked = { connection: 'pipelined', handler: ['h1'], checkpoints: ['handler'] } as const;
  const each = caseOf(
    { send: asked },
    { send: { ...asked, as: 'b' } },
    { arrive: ['handler'] },
    { fail: { name: 'b:handler', ahead: true } },
    { alive: true },
    { release: 'handler' },
    { arrive: ['b:handler', 'h1'] },
    { end: ['b:h1'] },
  );
  /** Ends the connection where the second handler fails; that may have to wait for the first response. */
  const breaks = (isSerial: boolean, onFailure: () => void): Run => {
    const [sent, over] = [gate(), gate()];
    let requests = 0;
    return async (plan, response, socket) => {
      if (requests++ > 0 && isSerial) {
        await sent;
      }
      try {
        await checkpoint(plan, 'handler');
        send(response, plan);
        sent.open();
      } catch {
        onFailure();
        socket.resetAndDestroy();
        await over;
      }
      await call(plan, 'h1').catch(() => {}); // the case may have failed
      over.open();
    };
  };

  test('fails while the one before is held, whose response may be lost with the connection', async () => {
    let failures = 0;
    const { status } = await verdictOf(
      {
        run: breaks(false, () => {
          failures += 1;
        }),
      },
      each,
    );
    assert.deepEqual([status, failures], ['pass', 1]);
  });

  test('fails when it comes, of a target that serves the requests of a connection one by one', async () => {
    let failures = 0;
    const { status } = await verdictOf(
      {
        run: breaks(true, () => {
          failures += 1;
        }),
      },
      each,
    );
    assert.deepEqual([status, failures], ['pass', 1]);
  });

  test('says nothing of a response on another connection', () => {
    const broken = gate();
    const first = breaks(false, broken.open);
    const run: Run = async (...args) => {
      if (args[0].checkpoints.length > 0) {
        return first(...args);
      }
      await broken;
      return args[1].writeHead(500).end();
    };
    const other: Step = { send: { as: 'c', handler: ['h1'] } };
    return failsWith('expected the status 200, got 500', { run }, caseOf(other, ...each.steps));
  });

  test('has to come', () => {
    let requests = 0;
    const run: Run = (...args) => (requests++ > 0 ? undefined : good(...args));
    return failsWith('the call of b:handler did not come within 1000 ms', { run }, each, SHORT);
  });
});

describe('the callback server', () => {
  test('answers a call ahead of it, also one that it holds by then', async () => {
    const harness = await startHarness();
    const callbacks = harness.plan();
    const plan = { callback: callbacks.url } as Plan;
    try {
      callbacks.answerAhead('h1', 500);
      const failing = within(10 * SHORT, 'the answer to the first call', call(plan, 'h1'));
      await assert.rejects(failing, ({ message }: Error) => message === callbacks.failures.get('h1'));
      const held = call(plan, 'h2');
      await callbacks.until(() => callbacks.held.includes('h2'));
      callbacks.answerAhead('h2', 200);
      await within(10 * SHORT, 'the answer to the second call', held);
    } finally {
      harness.close();
    }
  });

  test('holds the first call where a second one of the same name comes, and answers the second', async () => {
    const harness = await startHarness();
    const callbacks = harness.plan();
    const first = gate();
    const plan = { callback: callbacks.url } as Plan;
    call(plan, 'h1').then(
      () => first.open(),
      () => {},
    );
    await callbacks.until(() => callbacks.arrived.length === 1);
    try {
      await within(10 * SHORT, 'the answer to the second call', call(plan, 'h1'));
      assert.deepEqual([callbacks.arrived, callbacks.held], [['h1', 'h1'], ['h1']]);
      callbacks.answer('h1', 200);
      await first;
      assert.throws(() => callbacks.answer('h1', 200), /^Error: h1 is not being held$/);
    } finally {
      harness.close();
    }
  });
});

describe('test/conformance.test.ts', { concurrency: true }, () => {
  interface Ended {
    readonly code: number | null;
    readonly output: string;
  }
  async function suite(url: string, pattern: string): Promise<Ended> {
    const args = [
      '--test',
      '--test-reporter=tap',
      `--test-name-pattern=${pattern}`,
      'test/conformance.test.ts',
    ];
    const env = { TARGET: url, TARGET_COMMAND: undefined, NODE_TEST_CONTEXT: undefined };
    await using started = child(args, { env });
    const { code } = await started.exited;
    return { code, output: started.stdout + started.stderr };
  }
  test('ends with 0 where all pass', async () => {
    await using server = await target({});
    const { code, output } = await suite(server.url, '^2\\.3\\.');
    assert.deepEqual([code, /^# pass 2$/m.test(output)], [0, true], output);
  });

  test('ends with 1 where a MUST fails, with the reason, the steps, and a curl line', async () => {
    await using server = await target({ run: (_, response) => response.writeHead(202).end() });
    const { code, output } = await suite(server.url, '^2\\.3\\.1');
    assert.equal(code, 1);
    assert.match(output, /^# fail 1$/m);
    assert.match(
      output,
      /expected the status 200, got 202\n\s*\n *send {"handler":.*\n *response {}\n *expected the/,
    );
    assert.match(output, /^ *curl -i http/m);
    assert.doesNotMatch(output, /test\/conformance\/\w+\.ts/);
  });

  test('ends with 0 where a SHOULD fails, and reports it', async () => {
    await using server = await target({ run: (_, response) => response.writeHead(202).end() });
    const { code, output } = await suite(server.url, '^2\\.4\\.1');
    assert.deepEqual([code, /^# todo 1$/m.test(output)], [0, true], output);
    assert.match(output, /not ok \d+ - 2\.4\.1 .* # TODO SHOULD/);
  });

  for (const pattern of ['.', '^3\\.2']) {
    test(`ends with 1, and says once why, where the target is not there, for the pattern ${pattern}`, async () => {
      const { code, output } = await suite(DEAD, pattern);
      assert.equal(code, 1);
      const said = `GET ${DEAD}/ was refused: connect ECONNREFUSED 127.0.0.1:1. Is the target running there?`;
      assert.equal(output.split(said).length, 2, output);
      assert.match(output, /^# fail 1$/m);
      assert.doesNotMatch(output, /test\/conformance\/\w+\.ts|cancelled [1-9]/);
    });
  }
});

/** Writes for as long as it can. */
function endless(to: ServerResponse | Socket): void {
  const chunk = 'x'.repeat(2 ** 16);
  const more = (): void => {
    while (!to.destroyed && to.write(chunk)) {}
  };
  to.on('drain', more);
  more();
}

/** An address where nothing listens. */
const freeUrl = async (): Promise<string> => `http://127.0.0.1:${await freePort()}`;

/** What an adapter in Node copies: fixtures/conformance/callback.ts. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { describe, test } from 'node:test';
import { call, checkpoint, type Plan } from '../../fixtures/conformance/callback.ts';
import { type Child, child, gate } from '../helpers.ts';

interface Caller extends AsyncDisposable {
  readonly plan: Plan;
  /** The requests that came: `POST /plan/h1`. */
  readonly requests: string[];
  readonly connections: number;
}

/** A server that is called back, and answers each request by `answer`. */
async function called(answer: http.RequestListener): Promise<Caller> {
  const requests: string[] = [];
  let connections = 0;
  const server = http.createServer((request, response) => {
    requests.push(`${request.method} ${request.url}`);
    answer(request, response);
  });
  server.on('connection', () => {
    connections += 1;
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const callback = `http://127.0.0.1:${(server.address() as AddressInfo).port}/plan`;
  const plan: Plan = {
    callback,
    sub: [],
    dependency: [],
    handler: [],
    checkpoints: ['handler'],
    status: 200,
    size: 2,
    stream: false,
  };
  return {
    plan,
    requests,
    get connections() {
      return connections;
    },
    async [Symbol.asyncDispose]() {
      const closed = once(server, 'close');
      server.close();
      server.closeAllConnections();
      await closed;
    },
  };
}

const status =
  (code: number, text = ''): http.RequestListener =>
  (_, response) =>
    void response.writeHead(code).end(text);
/** A server that answers h1, h2 … in turn by these. */
const inTurn =
  (...answers: http.RequestListener[]): http.RequestListener =>
  (request, response) =>
    answers.shift()?.(request, response);

/** `callSync` blocks its thread, so it has a process of its own, which ends with what `body` returns as JSON. */
function blocking(plan: Plan, body: string): Child {
  const module = JSON.stringify(new URL('../../fixtures/conformance/callback.ts', import.meta.url));
  return child([
    '--input-type=module',
    '--eval',
    `
    import { callSync } from ${module};
    const plan = ${JSON.stringify(plan)};
    const caught = (act) => { try { act(); } catch (error) { return { message: error.message, ...error }; } };
    const result = (() => { ${body} })();
    console.log(JSON.stringify(result));
  `,
  ]);
}
async function resultOf(started: Child): Promise<unknown> {
  await started.exited;
  return JSON.parse(started.stdout);
}

describe('call', () => {
  test('is one POST of the name, with an empty body, and goes on after 200', async () => {
    let body = '';
    await using caller = await called((request, response) => {
      request
        .on('data', (chunk: Buffer) => {
          body += chunk;
        })
        .on('end', () => response.end());
    });
    await call(caller.plan, 'h1');
    assert.deepEqual([caller.requests, body], [['POST /plan/h1'], '']);
  });

  test('waits for the answer', async () => {
    const [asked, answer] = [gate(), gate()];
    await using caller = await called((_, response) => {
      asked.open();
      void answer.then(() => response.end());
    });
    const order: string[] = [];
    const returned = call(caller.plan, 'h1').then(() => order.push('returned'));
    await asked;
    order.push('answered');
    answer.open();
    await returned;
    assert.deepEqual(order, ['answered', 'returned']);
  });

  test('waits for the end of the answer', async () => {
    const [begun, answer] = [gate(), gate()];
    await using caller = await called((_, response) => {
      response.writeHead(500).write('half', () => begun.open());
      void answer.then(() => response.end(' and half'));
    });
    const failed = assert.rejects(call(caller.plan, 'h1'), { message: 'half and half' });
    await begun;
    answer.open();
    await failed;
  });

  test('throws an ordinary error with the text after 500', async () => {
    await using caller = await called(status(500, 'failure 주문'));
    const error: Error = await call(caller.plan, 'h1').then(
      () => assert.fail('it went on'),
      (error: Error) => error,
    );
    assert.deepEqual([error.message, Object.keys(error), error.name], ['failure 주문', [], 'Error']);
  });

  test('throws an error with the status after 404', async () => {
    await using caller = await called(status(404, 'failure 1'));
    await assert.rejects(call(caller.plan, 'handler'), {
      message: 'failure 1',
      status: 404,
      statusCode: 404,
    });
  });

  test('has a new connection each time', async () => {
    await using caller = await called(status(200));
    await call(caller.plan, 'h1');
    await call(caller.plan, 'h2');
    assert.deepEqual([caller.requests.length, caller.connections], [2, 2]);
  });

  test('follows no redirect', async () => {
    await using caller = await called(
      (_, response) => void response.writeHead(307, { location: '/plan/h2' }).end(),
    );
    await assert.rejects(call(caller.plan, 'h1'), { status: 307 });
    assert.deepEqual(caller.requests, ['POST /plan/h1']);
  });

  test('throws, and does not try again, where the connection breaks', async () => {
    await using caller = await called((request) => void request.socket.destroy());
    await assert.rejects(call(caller.plan, 'h1'), { code: 'ECONNRESET' });
    assert.deepEqual(caller.requests, ['POST /plan/h1']);
  });

  test('throws where the answer breaks off', async () => {
    await using caller = await called((_, response) => {
      response.writeHead(200, { 'content-length': 9 }).write('half', () => response.destroy());
    });
    await assert.rejects(call(caller.plan, 'h1'), { code: 'ECONNRESET' });
  });
});

describe('checkpoint', () => {
  test('calls the name that the plan has', async () => {
    await using caller = await called(status(200));
    await checkpoint(caller.plan, 'handler');
    assert.deepEqual(caller.requests, ['POST /plan/handler']);
  });

  test('does nothing for a name that the plan does not have', async () => {
    await using caller = await called(status(200));
    await checkpoint(caller.plan, 'exit');
    await call(caller.plan, 'fence');
    assert.deepEqual(caller.requests, ['POST /plan/fence']);
  });

  test('throws as the call does', async () => {
    await using caller = await called(inTurn(status(404, 'failure 1'), status(500, 'failure 2')));
    await assert.rejects(checkpoint(caller.plan, 'handler'), { message: 'failure 1', status: 404 });
    await assert.rejects(checkpoint(caller.plan, 'handler'), { message: 'failure 2' });
  });
});

describe('callSync', () => {
  test('is one POST of the name, and goes on after 200', async () => {
    await using caller = await called(status(200));
    await using started = blocking(caller.plan, "callSync(plan, 'h1'); return 'went on';");
    assert.equal(await resultOf(started), 'went on');
    assert.deepEqual(caller.requests, ['POST /plan/h1']);
  });

  test('blocks its thread until the answer is there', async () => {
    const [asked, answer] = [gate(), gate()];
    await using caller = await called((_, response) => {
      asked.open();
      void answer.then(() => response.end());
    });
    await using started = blocking(
      caller.plan,
      `
      const order = [];
      setImmediate(() => order.push('a turn of the loop'));
      process.nextTick(() => order.push('a tick'));
      callSync(plan, 'h1');
      return order;
    `,
    );
    await asked;
    assert.equal(started.stdout, '');
    answer.open();
    assert.deepEqual(await resultOf(started), []);
  });

  test('throws an ordinary error with the text after 500', async () => {
    await using caller = await called(status(500, 'failure 주문'));
    await using started = blocking(caller.plan, "return caught(() => callSync(plan, 'h1'));");
    assert.deepEqual(await resultOf(started), { message: 'failure 주문' });
  });

  test('throws an error with the status after 404', async () => {
    await using caller = await called(status(404, 'failure 1'));
    await using started = blocking(caller.plan, "return caught(() => callSync(plan, 'h1'));");
    assert.deepEqual(await resultOf(started), { message: 'failure 1', status: 404, statusCode: 404 });
  });

  test('has a new connection each time', async () => {
    await using caller = await called(status(200));
    await using started = blocking(caller.plan, "callSync(plan, 'h1'); callSync(plan, 'h2'); return true;");
    assert.equal(await resultOf(started), true);
    assert.deepEqual([caller.requests, caller.connections], [['POST /plan/h1', 'POST /plan/h2'], 2]);
  });

  test('throws where the connection breaks', async () => {
    await using caller = await called((request) => void request.socket.destroy());
    await using started = blocking(caller.plan, "return caught(() => callSync(plan, 'h1'));");
    assert.deepEqual(await resultOf(started), { message: 'Error: socket hang up' });
  });
});

/** The chapter's endpoints byte for byte: the answers, and what the tasks log after them. */
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { format } from 'node:util';
import type { App } from '../server.ts';
import { child, root, type Served } from './helpers.ts';

interface Folder extends AsyncDisposable {
  readonly path: string;
}

async function temporaryFolder(): Promise<Folder> {
  const folder = await mkdtemp(path.join(tmpdir(), 'tutorial-'));
  return { path: folder, [Symbol.asyncDispose]: () => rm(folder, { recursive: true }) };
}

interface Tutorial extends Served {
  /** `POST /items?name=` or the like; a second argument is a JSON body. */
  request(line: string, json?: string): Promise<Response>;
  /** The entries of the task log, once no task is left. */
  log(): Promise<string[]>;
  readonly logFile: string;
}

let copies = 0;

/** A copy of the tutorial's app, with a task log and a log file of its own. */
async function tutorial(): Promise<Tutorial> {
  const folder = await temporaryFolder();
  const logFile = path.join(folder.path, 'log.txt');
  Object.assign(process.env, { LOG_FILE: logFile, EMAIL_DELAY_MS: '0' });
  const { default: app } = (await import(`../fixtures/tutorial.ts?copy=${(copies += 1)}`)) as {
    default: App;
  };
  const { url } = await app.listen({ port: 0 });
  const request: Tutorial['request'] = (line, json) => {
    const [method = '', target = ''] = line.split(' ');
    return fetch(url + target, {
      method,
      ...(json && { body: json, headers: { 'content-type': 'application/json' } }),
    });
  };
  const log = async (): Promise<string[]> => {
    await app.idle();
    const { entries } = (await (await request('GET /task-log')).json()) as { entries: string[] };
    return entries;
  };
  const dispose = async (): Promise<void> => {
    await app.close();
    await folder[Symbol.asyncDispose]();
  };
  return { app, url, port: Number(new URL(url).port), request, log, logFile, [Symbol.asyncDispose]: dispose };
}

const rows: readonly { line: string; json?: string; answer: string; log: readonly string[] }[] = [
  {
    line: 'POST /items?name=노트북',
    answer: '{"message":"아이템 \'노트북\' 생성됨","status":"ok"}',
    log: ['아이템 생성: 노트북'],
  },
  {
    line: 'POST /welcome-email?to=user@example.com',
    answer: '{"message":"\'user@example.com\' 가입 완료"}',
    log: ['이메일 발송: user@example.com (가입 환영)'],
  },
  {
    line: 'POST /register?name=철수',
    answer: '{"message":"\'철수\' 등록 완료"}',
    log: ['환영 이메일: 철수', '신규 가입: 철수', '사용자 등록: 철수'],
  },
  {
    line: 'POST /audited/items?name=키보드',
    answer: '{"message":"아이템 \'키보드\' 생성됨"}',
    log: ['[감사] 아이템 생성: 키보드'],
  },
  {
    line: 'POST /send-notification?email=a@b.kr',
    answer: '{"message":"\'a@b.kr\'에 알림 발송 예정"}',
    log: ['알림 발송: a@b.kr'],
  },
  {
    line: 'POST /order?item=마우스',
    answer: '{"message":"주문 완료: 마우스"}',
    log: ['주문 확인: 마우스', '재고 차감: 마우스', '알림 발송: 마우스'],
  },
  {
    line: 'POST /important?data=결제',
    answer: '{"message":"처리 예정: 결제"}',
    log: ["백그라운드 작업 실패: '결제' 처리 불가"],
  },
  {
    line: 'POST /send-notification/a%2Fb@c.kr',
    answer: '{"message":"알림이 a/b@c.kr에 발송됩니다","status":"accepted"}',
    log: ['알림 발송: a/b@c.kr'],
  },
  {
    line: 'POST /orders',
    json: '{"item":"책","email":"a@b.kr"}',
    answer: '{"message":"주문 완료: 책","verification":"verified"}',
    log: ['요청 검증 완료', '주문 생성: 책', '알림: a@b.kr - 주문 확인: 책'],
  },
];

for (const { line, json, answer, log } of rows) {
  test(`${line} answers ${answer}, then logs ${log.join(' · ')}`, async () => {
    await using app = await tutorial();
    const response = await app.request(line, json);
    assert.equal(await response.text(), answer);
    assert.equal(response.status, 200);
    assert.equal(response.headers.get('content-type'), 'application/json');
    assert.equal(response.headers.get('content-length'), String(Buffer.byteLength(answer)));
    assert.deepEqual(await app.log(), log);
  });
}

test('POST /items appends one line for each item to the file', async () => {
  await using app = await tutorial();
  for (const name of ['책', '공책', '']) {
    await app.request(`POST /items?name=${name}`);
    await app.app.idle();
  }
  assert.equal(await readFile(app.logFile, 'utf8'), '아이템 생성: 책\n아이템 생성: 공책\n아이템 생성: \n');
  assert.deepEqual(await app.log(), ['아이템 생성: 책', '아이템 생성: 공책', '아이템 생성: ']);
});

test('no other endpoint writes to the file', async () => {
  await using app = await tutorial();
  for (const { line, json } of rows.slice(1)) {
    await app.request(line, json);
  }
  await app.app.idle();
  await assert.rejects(readFile(app.logFile), { code: 'ENOENT' });
});

test('POST /important?guard=no leaves the error to the server: stderr has the task and the stack', async (t) => {
  const error = t.mock.method(console, 'error', () => {});
  await using app = await tutorial();
  const response = await app.request('POST /important?data=결제&guard=no');
  assert.equal(await response.text(), '{"message":"처리 예정: 결제"}');
  assert.equal(response.status, 200);
  assert.deepEqual(await app.log(), []);
  assert.equal(error.mock.callCount(), 1);
  const report = format(...(error.mock.calls[0]?.arguments ?? []));
  assert.match(
    report,
    /^Background task failed \(processData\): Error: '결제' 처리 불가\n +at processData .*tutorial\.ts/,
  );
});

test('POST /important with any other guard catches the error itself, and stderr stays empty', async (t) => {
  const error = t.mock.method(console, 'error', () => {});
  await using app = await tutorial();
  await app.request('POST /important?data=a&guard=yes');
  assert.deepEqual(await app.log(), ["백그라운드 작업 실패: 'a' 처리 불가"]);
  assert.equal(error.mock.callCount(), 0);
});

test('the task log has the tasks of all requests, and DELETE /task-log empties it', async () => {
  await using app = await tutorial();
  assert.equal(await (await app.request('GET /task-log')).text(), '{"entries":[]}');
  await app.request('POST /send-notification?email=a');
  await app.app.idle();
  await app.request('POST /send-notification/b');
  assert.deepEqual(await app.log(), ['알림 발송: a', '알림 발송: b']);
  const deleted = await app.request('DELETE /task-log');
  assert.equal(deleted.status, 204);
  assert.equal(await deleted.text(), '');
  assert.deepEqual(await app.log(), []);
});

test('the task log keeps its last 1000 entries', async () => {
  await using app = await tutorial();
  const numbers = Array.from({ length: 334 }, (_, number) => number);
  for (const number of numbers) {
    await (await app.request(`POST /register?name=${number}`)).text();
    await app.app.idle();
  }
  const all = numbers.flatMap((number) => [
    `환영 이메일: ${number}`,
    `신규 가입: ${number}`,
    `사용자 등록: ${number}`,
  ]);
  assert.equal(all.length, 1002);
  assert.deepEqual(await app.log(), all.slice(2));
});

const missing = (...loc: string[]): object => ({ type: 'missing', loc, msg: 'Field required', input: null });
const refused: readonly { line: string; json?: string; detail: readonly object[] }[] = [
  { line: 'POST /items', detail: [missing('query', 'name')] },
  { line: 'POST /items?Name=a', detail: [missing('query', 'name')] },
  { line: 'POST /welcome-email?name=a', detail: [missing('query', 'to')] },
  { line: 'POST /register', detail: [missing('query', 'name')] },
  { line: 'POST /audited/items', detail: [missing('query', 'name')] },
  { line: 'POST /send-notification', detail: [missing('query', 'email')] },
  { line: 'POST /order', detail: [missing('query', 'item')] },
  { line: 'POST /important?guard=no', detail: [missing('query', 'data')] },
  { line: 'POST /orders', detail: [missing('body')] },
  {
    line: 'POST /orders',
    json: '{"item":"a"}',
    detail: [{ type: 'missing', loc: ['body', 'email'], msg: 'Field required', input: { item: 'a' } }],
  },
  {
    line: 'POST /orders',
    json: '{"item":1,"email":"a"}',
    detail: [{ type: 'string_type', loc: ['body', 'item'], msg: 'Input should be a valid string', input: 1 }],
  },
];

for (const { line, json, detail } of refused) {
  test(`${line}${json ? ` with ${json}` : ''} is 422, and nothing is logged`, async () => {
    await using app = await tutorial();
    const response = await app.request(line, json);
    assert.equal(response.status, 422);
    assert.deepEqual(await response.json(), { detail });
    assert.deepEqual(await app.log(), []);
    await assert.rejects(readFile(app.logFile), { code: 'ENOENT' });
  });
}

/** The task log of a process, once it has an entry. */
async function logOf(url: string): Promise<string> {
  let entries = '';
  for (let trips = 0; trips < 20_000; trips += 1) {
    entries = await (await fetch(`${url}/task-log`)).text();
    if (entries !== '{"entries":[]}') {
      break;
    }
  }
  return entries;
}

test('as a process of its own, without LOG_FILE, it appends to log.txt in the current folder', async () => {
  await using folder = await temporaryFolder();
  await using app = child([path.join(root, 'server.ts'), '--port', '0'], {
    cwd: folder.path,
    env: { LOG_FILE: '' },
  });
  const url = await app.url();
  const response = await fetch(`${url}/items?name=${encodeURIComponent('책')}`, { method: 'POST' });
  assert.equal(await response.text(), '{"message":"아이템 \'책\' 생성됨","status":"ok"}');
  assert.equal(await logOf(url), '{"entries":["아이템 생성: 책"]}');
  assert.equal(await readFile(path.join(folder.path, 'log.txt'), 'utf8'), '아이템 생성: 책\n');
  assert.equal(app.stderr, '');
});

test('the welcome is answered before the e-mail is sent, which takes EMAIL_DELAY_MS', async () => {
  await using app = child(['server.ts', '--port', '0'], { env: { EMAIL_DELAY_MS: '2000000000' } });
  const url = await app.url();
  const response = await fetch(`${url}/welcome-email?to=a`, { method: 'POST' });
  assert.equal(await response.text(), '{"message":"\'a\' 가입 완료"}');
  await fetch(`${url}/send-notification?email=b`, { method: 'POST' });
  assert.equal(await logOf(url), '{"entries":["알림 발송: b"]}');
});

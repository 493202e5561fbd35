/**
 * What bytes can do that no client should send: `node --import tsx test/endurance/bad-input.ts`. Seeded random heads,
 * paths, queries, headers, bodies and JSON, several on a connection, in random pieces, whole, cut or with bytes
 * changed; then JSON as deep as it can be answered, and heads made to be slow.
 */
import {
  backgroundTasks,
  body,
  createApp,
  depends,
  get,
  header,
  path,
  post,
  put,
  query,
  type StandardSchema,
  strings,
} from '../../server.ts';
import {
  type Client,
  claimCleanEnd,
  connect,
  endure,
  number,
  probe,
  type Random,
  requestOf,
  type Server,
  size,
  startServer,
} from './shared.ts';

const counts = { handled: 0, ran: 0, opened: 0, closed: 0 };
const done = (): void => {
  counts.ran += 1;
};
const session = depends(function* () {
  counts.opened += 1;
  try {
    yield;
  } finally {
    counts.closed += 1;
  }
});
const handled = depends({ session, tasks: backgroundTasks }, ({ tasks }) => (): void => {
  counts.handled += 1;
  tasks.addTask(done);
});

/** Whatever it is. */
const anything: StandardSchema<unknown> = {
  '~standard': { version: 1, vendor: 'test', validate: (value) => ({ value }) },
};
/** Finds fault with every member, at places that exist and at some that do not. */
const picky: StandardSchema<unknown> = {
  '~standard': {
    version: 1,
    vendor: 'test',
    validate: (value) => ({
      issues: Object.keys(Object(value))
        .slice(0, 20)
        .flatMap((key) => [
          { message: `not ${key}`, path: [key] },
          { message: 'nor what is in it', path: [{ key }, '__proto__', 0] },
          { message: 'nor this', path: [Symbol(key)] },
        ]),
    }),
  },
};
const digits: StandardSchema<number> = {
  '~standard': {
    version: 1,
    vendor: 'test',
    validate: (value) =>
      /^\d+$/.test(String(value)) ? { value: Number(value) } : { issues: [{ message: 'Expected digits' }] },
  },
};

const server = createApp([
  get('/alive', () => 'alive'),
  get('/items/:id', { handled, id: path('id'), q: query('q', '') }, ({ handled, ...values }) => {
    handled();
    return values;
  }),
  put(
    '/search',
    {
      handled,
      q: query('q'),
      page: query('page', digits),
      n: header('n', null),
      p: header('__proto__', ''),
    },
    ({ handled, ...values }) => {
      handled();
      return values;
    },
  ),
  post('/orders', { handled, order: body(strings('item', '__proto__')) }, ({ handled, order }) => {
    handled();
    return order;
  }),
  post('/any', { handled, value: body(anything) }, ({ handled, value }) => {
    handled();
    return typeof value;
  }),
  post(
    '/picky',
    { handled, q: query('q'), value: body(picky), order: body(strings('item')) },
    ({ handled }) => handled(),
  ),
]);
export default probe(server, counts);

/** Of each list, what Node's parser passes on, and what it refuses: then the connection ends with 400. */
const METHODS = [
  ['GET', 'GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'HEAD', 'OPTIONS', 'TRACE', 'M-SEARCH'],
  ['CONNECT', 'PRI', 'get', 'G\0T', ''],
] as const;
const PATHS = [
  [
    '/alive',
    '/items/',
    '/items/1',
    '/items/1',
    '/search',
    '/search',
    '/orders',
    '/any',
    '/picky',
    '/',
    '//',
    '/..',
    '*',
    'http://a/items/1',
    'http://a',
    'HTTP://u:p@[::1]:1/items/%31',
    'ftp://a/alive',
    '/items/:id',
    '/__proto__',
  ],
  ['', 'a:80', 'http://', '/ '],
] as const;
const WORDS = [
  [
    '%',
    '%0',
    '%00',
    '%ff',
    '%c0%af',
    '%ed%a0%80',
    '%F0%9F%98%80',
    '%2F',
    '%3F',
    '%20',
    '+',
    '&',
    '=',
    '?',
    ';',
    '/',
    '..',
    ':',
    ',',
    '"',
    "'",
    '[]',
    '[0]',
    '__proto__',
    'constructor',
    'toString',
    'q',
    'page',
    'item',
    '1',
    '\\',
    '<b>',
    '$' + '{1}',
    '%s',
    '%o',
    '\xc3\xa9',
    '\xff\xfe',
  ],
  ['#', '\t', ' ', '\0', '\x7f', '\r', '\n'],
] as const;
const HEADERS = [
  [
    'host: b',
    'connection: close',
    'connection: keep-alive, upgrade',
    'upgrade: websocket',
    'n: 1',
    'n:',
    'expect: 100-continue',
    'expect: a',
    'te: trailers',
    'trailer: a',
    '__proto__: a',
    '__proto__: \xe9',
    'cookie: a=b; c',
    'range: bytes=0-',
    'if-none-match: *',
    'content-encoding: gzip',
    'content-type: text/plain',
  ],
  [
    'content-length: 0',
    'content-length: 1',
    'content-length: -1',
    'content-length: 99999999999999999999',
    ': n',
    'n',
    'content-length: 2000000',
    'content-length: 1, 1',
    'transfer-encoding: chunked',
    'transfer-encoding: gzip',
    ' folded',
    'transfer-encoding: chunked, chunked',
  ],
] as const;
const JSON_TYPE = 'application/json';
const TYPES = [
  JSON_TYPE,
  JSON_TYPE,
  JSON_TYPE,
  JSON_TYPE,
  JSON_TYPE,
  'APPLICATION/JSON ; charset=latin1',
  'text/plain',
  'application/problem+json',
  'application/+json',
  'application/jsonx',
  'multipart/form-data',
  'json',
  '',
];

const repeat = (count: number, part: () => string): string => Array.from({ length: count }, part).join('');
const bytes = (random: Random, count: number): string =>
  repeat(count, () => String.fromCharCode(random.below(256)));

/** What is wild may be what the parser refuses. */
function some(random: Random, [tame, refused]: readonly (readonly string[])[], wild: boolean): string {
  return random.pick((wild && random.chance(0.3) ? refused : tame) ?? []);
}

function words(random: Random, limit: number, wild: boolean): string {
  const word = (): string => (wild && random.chance(0.1) ? bytes(random, 2) : some(random, WORDS, wild));
  return repeat(random.below(limit), word);
}

function target(random: Random, wild: boolean): string {
  const base = random.chance(0.1) ? '/' : some(random, PATHS, wild);
  const path = base + (random.chance(0.4) ? words(random, 5, wild) : '');
  const name = (): string => random.pick(['q', 'q', 'page', 'page', 'item', '__proto__', '']);
  const pair = (): string => `${name()}=${random.chance(0.3) ? random.below(1000) : words(random, 4, wild)}`;
  const query = random.chance(0.6) ? `?${Array.from({ length: random.below(5) }, pair).join('&')}` : '';
  return path + query + (random.chance(0.01) ? some(random, WORDS, wild).repeat(random.below(20_000)) : '');
}

/** Mostly JSON: any value, with keys and strings that may surprise. */
function json(random: Random, depth = 0): string {
  const kind = random.below(depth > 4 ? 6 : 10);
  const list = (part: () => string): string => Array.from({ length: random.below(5) }, part).join(',');
  if (kind === 0) {
    return random.pick(['null', 'true', 'false', '0', '-0', '1e999', '-1', '1.5', '9007199254740993']);
  }
  if (kind < 6) {
    return random.pick([
      '""',
      '"a"',
      '"b"',
      '"\\ud800"',
      '"\\u0000"',
      '"\\ud83d\\ude00"',
      '"\xc3\xa9"',
      '"__proto__"',
    ]);
  }
  if (kind === 6) {
    return `[${list(() => json(random, depth + 1))}]`;
  }
  const keys = [
    'item',
    'item',
    '__proto__',
    'constructor',
    'toString',
    'length',
    '',
    '0',
    '~standard',
    '\\u0000',
  ];
  return `{${list(() => `"${random.pick(keys)}":${json(random, depth + 1)}`)}}`;
}

function anyBody(random: Random): string {
  const kind = random.below(20);
  const [open, close] = random.pick([
    ['[', ']'],
    ['{"item":', '}'],
    ['[{"a":', '}]'],
  ] as const);
  if (kind === 0) {
    return bytes(random, random.below(200));
  }
  if (kind === 1) {
    return `\xef\xbb\xbf${json(random)}`;
  }
  if (kind === 2) {
    return json(random).slice(0, -1);
  }
  if (kind === 3 && random.chance(0.1)) {
    const depth = random.below(20_000);
    return `{"item":${open.repeat(depth)}1${close.repeat(random.chance(0.9) ? depth : depth + 1)}}`;
  }
  if (kind === 4 && random.chance(0.01)) {
    return `"${'x'.repeat(2 ** 20 - 50 + random.below(100))}"`;
  }
  return json(random);
}

/** The body in chunks, as they should be or nearly. */
function chunked(random: Random, body: string, wild: boolean): string {
  let text = '';
  for (let at = 0; at < body.length; ) {
    const length = 1 + random.below(body.length);
    const said = wild && random.chance(0.1) ? random.below(2 ** 31) : Math.min(length, body.length - at);
    text += `${said.toString(16)}${random.pick(['', '', '', ';a=b', ' '])}\r\n${body.slice(at, at + length)}\r\n`;
    at += length;
  }
  return `${text}0\r\n${random.pick(['', '', '', 'a: b\r\n', 'content-length: 3\r\n'])}\r\n`;
}

/** Heads that say what the request is, or lie about it. */
function anyHeaders(random: Random, wild: boolean): string[] {
  const headers = Array.from({ length: random.below(4) }, () => some(random, HEADERS, wild));
  return wild ? [...headers, ...wildHeaders(random)] : headers;
}

function wildHeaders(random: Random): string[] {
  const headers: string[] = [];
  if (random.chance(0.05)) {
    headers.push(`x-long: ${'x'.repeat(random.below(20_000))}`);
  }
  if (random.chance(0.05)) {
    headers.push(...Array.from({ length: random.below(2500) }, () => 'a: b'));
  }
  if (random.chance(0.1)) {
    headers.push(`${words(random, 3, true)}: ${words(random, 5, true)}`);
  }
  return headers;
}

/** A body, and the heads that belong to it. */
function anyContent(random: Random, wild: boolean): { headers: string[]; content: string } {
  const body = anyBody(random);
  const type = `content-type: ${random.pick(TYPES)}`;
  if (random.chance(0.2)) {
    return { headers: [type, 'transfer-encoding: chunked'], content: chunked(random, body, wild) };
  }
  return { headers: [type, `content-length: ${body.length}`], content: body };
}

function anyRequest(random: Random): string {
  const wild = random.chance(0.3);
  const isSimple = random.chance(0.4); // then only the body is bad
  const method = isSimple ? 'POST' : some(random, METHODS, wild);
  const where = isSimple ? random.pick(['/orders', '/any', '/picky?q=1', '/picky']) : target(random, wild);
  const versions = ['HTTP/1.0', 'HTTP/2.0', 'HTTP/0.9', 'HTTP/1.1 ', 'ICE/1.0', ''];
  const version = wild && random.chance(0.2) ? random.pick(versions) : 'HTTP/1.1';
  const host = random.chance(0.97) ? ['host: a'] : [];
  const hasContent = isSimple || random.chance(0.3);
  const { headers, content } = hasContent ? anyContent(random, wild) : { headers: [], content: '' };
  const more = isSimple ? [] : anyHeaders(random, wild);
  const lines = [`${method} ${where} ${version}`, ...host, ...headers, ...more];
  const text = `${lines.join('\r\n')}\r\n\r\n${content}`;
  return wild && random.chance(0.3) ? mutated(random, text) : text;
}

/** A few bytes are changed, taken out, doubled, or all that follows is. */
function mutated(random: Random, original: string): string {
  let text = original;
  for (let times = 1 + random.below(3); times > 0; times -= 1) {
    const at = random.below(text.length);
    text =
      text.slice(0, at) +
      random.pick([
        () => bytes(random, 1) + text.slice(at + 1),
        () => text.slice(at + random.below(8)),
        () => '',
        () => text.slice(at, at + 20) + text.slice(at),
      ])();
  }
  return text;
}

/** What is nested, and the route and the member that it is sent to. */
interface DeepWay {
  readonly open: string;
  readonly close: string;
  readonly where: string;
  readonly key: string;
}
const DEEP_WAYS: readonly DeepWay[] = [
  { open: '[', close: ']' },
  { open: '{"a":', close: '}' },
  { open: '[{"a":', close: '}]' },
].flatMap((nested) => [
  { ...nested, where: '/orders', key: 'item' },
  { ...nested, where: '/picky?q=1', key: 'a' },
  { ...nested, where: '/picky?q=1', key: 'item' },
]);

/** Heads of about 15,000 bytes, that a parser may take long over; the first is an ordinary one. */
const SLOW: readonly string[] = [
  `/search?q=${'x'.repeat(15_000)}`,
  `/search${'?'.repeat(15_000)}`,
  `/search${'?q='.repeat(5_000)}&`,
  `/search${'?'.repeat(15_000)}=&`,
  `/search?${'&'.repeat(15_000)}`,
  `/search?${'='.repeat(15_000)}`,
  `/search?${'q=&'.repeat(5_000)}`,
  `/search?${'%'.repeat(15_000)}`,
  `/search?q=${'%C3%A9'.repeat(2_500)}`,
  `/search?${'+'.repeat(15_000)}`,
  '/'.repeat(15_000),
  '/items'.repeat(2_500),
  `/items/${'%2F'.repeat(5_000)}`,
  `${'a'.repeat(15_000)}://`,
  `http://${'a'.repeat(15_000)}`,
  `a${'://'.repeat(5_000)}`,
];

/** An honest client, that looks whether the server is alive, again and again; and what all of them have seen. */
class Watch {
  readonly #port: number;
  readonly #waiting = new Set<() => void>();
  #isOver = false;
  /** How often the server was looked at. */
  turns = 0;
  /** Connections that got a 5xx or a stack, or that did not end. */
  readonly bad: string[] = [];
  readonly statuses = new Map<string, number>();

  constructor(port: number) {
    this.#port = port;
  }

  async look(): Promise<void> {
    while (!this.#isOver) {
      const client = connect(this.#port);
      client.send(requestOf('GET', '/alive'));
      const answer = await client.answer();
      if (answer?.body !== '"alive"') {
        this.bad.push(`the honest client got ${answer?.status} in turn ${this.turns}`);
      }
      client.socket.destroy();
      this.turns += 1;
      for (const wake of this.#waiting) {
        wake();
      }
    }
  }

  stop(): void {
    this.#isOver = true;
  }

  /** Resolves two turns later: what was sent before has been looked at by then. */
  looked(): Promise<void> {
    const after = this.turns + 2;
    return new Promise((resolve) => {
      const wake = (): void => {
        if (this.turns >= after && this.#waiting.delete(wake)) {
          resolve();
        }
      };
      this.#waiting.add(wake);
    });
  }

  /** Reads what a connection has got. */
  judge(index: number, text: string): void {
    for (const [, status = ''] of text.matchAll(/HTTP\/1\.1 (\d{3}) /g)) {
      this.statuses.set(status, (this.statuses.get(status) ?? 0) + 1);
      if (status.startsWith('5')) {
        this.bad.push(`connection ${index} got ${status}`);
      }
    }
    if (/\n\s*at .*:\d|node:internal|\.ts:\d/.test(text)) {
      this.bad.push(`connection ${index} got a stack`);
    }
  }

  summary(): string {
    const statuses = [...this.statuses].sort().map(([status, times]) => `${number(times)} × ${status}`);
    const bad = [...new Set(this.bad)].slice(0, 5).join('; ');
    return `${statuses.join(', ')}${bad && `; ${this.bad.length} times not: ${bad}`}`;
  }
}

interface Connection {
  readonly index: number;
  readonly requests: number;
  readonly numbers: Random;
}

/** Sends random requests, in random pieces, and reads what comes. */
async function connection(port: number, plan: Connection, watch: Watch): Promise<void> {
  const { index, requests, numbers } = plan;
  const { socket } = connect(port);
  const received: string[] = [];
  socket.on('data', (text) => received.push(`${text}`));
  const closed = new Promise<boolean>((resolve) => socket.on('close', () => resolve(true)));
  const garbage = numbers.chance(0.03) ? bytes(numbers, numbers.below(500)) : '';
  let left = repeat(requests, () => anyRequest(numbers)) + garbage;
  while (left !== '') {
    const length = numbers.chance(0.5) ? left.length : 1 + numbers.below(left.length);
    socket.write(left.slice(0, length), 'latin1');
    left = left.slice(length);
    if (left !== '') {
      await new Promise(setImmediate);
    }
  }
  await Promise.race([closed, watch.looked()]);
  socket.end(); // now it can wait for nothing more
  let deadline: NodeJS.Timeout | undefined;
  const hangs = new Promise<boolean>((resolve) => {
    deadline = setTimeout(resolve, 60_000, false);
  });
  if (!(await Promise.race([closed, hangs]))) {
    watch.bad.push(`connection ${index} did not end within 60 s`);
  }
  clearTimeout(deadline);
  socket.destroy();
  watch.judge(index, received.join(''));
}

/** Asks for JSON of all depths around the one from which on it is not sent back; gives how many were tried. */
async function deepest(client: Client, way: DeepWay, around: number, watch: Watch): Promise<number> {
  const { open, close, where, key } = way;
  let depths = 0;
  const isEchoed = async (depth: number): Promise<boolean> => {
    depths += 1;
    client.send(requestOf('POST', where, `{"${key}":${open.repeat(depth)}1${close.repeat(depth)}}`));
    const answer = await client.answer();
    if (answer?.status !== 422) {
      watch.bad.push(`${open} ${depth} deep, to ${where}, got ${answer?.status}`);
    }
    return answer?.body.includes(open.repeat(depth)) ?? false;
  };
  let [low, high] = [1, 16_000];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (await isEchoed(middle)) {
      low = middle;
    } else {
      high = middle;
    }
  }
  for (let depth = low - around; depth < low + around; depth += 1) {
    await isEchoed(depth);
  }
  return depths;
}

/** The time that each of the {@link SLOW} heads takes the server, in ms of CPU. */
async function costsOfSlow(server: Server, client: Client): Promise<number[]> {
  const costs: number[] = [];
  for (const where of SLOW) {
    const { cpu } = await server.figures();
    for (let times = 0; times < 5; times += 1) {
      client.send(requestOf('PUT', where));
      await client.answer();
    }
    costs.push(((await server.figures()).cpu - cpu) / 5000);
  }
  return costs;
}

await endure(import.meta.url, size(300_000, 3_600_000), async ({ claim, random, stage }) => {
  const total = size(20_000, 1_000_000);
  await using server = await startServer(import.meta.url);
  const watch = new Watch(server.port);
  const asking = watch.look();

  stage('the random requests');
  let sent = 0;
  let connections = 0;
  const sendAll = async (): Promise<void> => {
    while (sent < total) {
      const index = connections;
      connections += 1;
      const numbers = random(index);
      const requests = 1 + numbers.below(6);
      sent += requests;
      await connection(server.port, { index, requests, numbers }, watch);
    }
  };
  await Promise.all(Array.from({ length: 64 }, sendAll));

  stage('JSON as deep as it can be');
  let depths = 0;
  const client = connect(server.port);
  for (const way of DEEP_WAYS) {
    depths += await deepest(client, way, size(8, 30), watch);
  }

  stage('heads made to be slow');
  const costs = await costsOfSlow(server, client);
  const worst = costs.indexOf(Math.max(...costs));
  client.socket.destroy();
  watch.stop();
  await asking;
  stage('the end of all tasks');
  const end = await server.until(
    ({ pending, open, alive }) => pending + open + alive.requests === 0,
    'collected',
  );
  const { handled = 0, ran = 0, opened = 0, closed = 0 } = end.counts;
  claim(
    watch.bad.length === 0,
    'no 5xx, no stack, no hang, no death',
    `${number(sent)} requests on ${number(connections)} connections, ${depths} deep ones; ${watch.summary()}`,
  );
  claim(watch.turns > 2, 'an honest client had every answer meanwhile', number(watch.turns));
  claim(
    handled === ran && opened === closed,
    'the tasks of every request that was handled ran once; generators ended',
    `${number(ran)} tasks of ${number(handled)}, ${number(closed)} generators of ${number(opened)}`,
  );
  claim(
    end.pending + end.open + end.alive.requests === 0,
    '`pending` is back to 0, and no connection is left',
    `${end.pending}, ${end.open}`,
  );
  const [ordinary = 0] = costs;
  claim(
    costs[worst]! <= 20 * Math.max(ordinary, 1),
    'no head costs more than 20 × an ordinary one of its length',
    `${ordinary.toFixed(1)} ms of CPU, and at most ${costs[worst]?.toFixed(1)} ms, for ${SLOW[worst]?.slice(0, 12)}…`,
  );
  await claimCleanEnd(server, claim);
});

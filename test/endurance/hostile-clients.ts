/**
 * What clients that misbehave do to the others, and to their own tasks: `node --import tsx
 * test/endurance/hostile-clients.ts`. They reset, half-close, stall, send slowly, pipeline and leave, each as its own
 * seeded numbers say; honest clients ask meanwhile.
 */
import { once } from 'node:events';
import {
  type BackgroundTasks,
  backgroundTasks,
  body,
  createApp,
  depends,
  get,
  post,
  query,
  request,
  strings,
} from '../../server.ts';
import {
  type Client,
  claimCleanEnd,
  connect,
  each,
  endure,
  megabytes,
  number,
  pause,
  probe,
  type Random,
  requestOf,
  size,
  startServer,
} from './shared.ts';

/** How far each request is: 0 unknown, 1 accepted, 2 to 4 so many of its tasks have ended. By its number. */
const progress = new Uint8Array(2 ** 24);
const HONEST = 2 ** 23; // the numbers from here on
const counts = { accepted: 0, finished: 0, honest: 0, halfClosed: 0, listeners: 0 };
const notes: string[] = [];
const turn = (): Promise<void> => new Promise(setImmediate);

function step(id: number, expected: number): void {
  if (progress[id] !== expected) {
    notes.push(`request ${id} has step ${expected} after ${progress[id]}`);
  }
  progress[id] = expected + 1;
}

const socket = depends({ request }, ({ request: { socket } }) => socket);
const accept = depends(
  { socket, kind: query('kind', ''), tasks: backgroundTasks },
  ({ socket, kind, tasks }) =>
    (text: string): string => {
      const id = Number(text);
      step(id, 0);
      counts.accepted += 1;
      if (kind === 'halfClose') {
        counts.halfClosed += 1;
      }
      if (id >= HONEST) {
        counts.honest += 1;
      }
      const listeners = socket.eventNames().map((event) => socket.listenerCount(event));
      counts.listeners = Math.max(counts.listeners, ...listeners);
      addTasks(id, tasks);
      return text;
    },
);

function addTasks(id: number, tasks: BackgroundTasks): void {
  tasks.addTask(step, id, 1);
  tasks.addTask(async () => {
    await turn();
    step(id, 2);
    tasks.addTask(() => {
      step(id, 3);
      counts.finished += 1;
    });
  });
}

const id = query('id');
const CHUNK = Buffer.alloc(4096, 'x');
export default probe(
  createApp(
    [
      post('/order', { id, accept }, ({ id, accept }) => accept(id)),
      post('/later', { id, accept }, async ({ id, accept }) => {
        await turn();
        accept(id);
        await turn();
        return id;
      }),
      post('/body', { accept, order: body(strings('id')) }, ({ accept, order: { id } }) => accept(id)),
      get('/large', { id, accept }, ({ id, accept }) => accept(id).padEnd(2 ** 18)),
      get('/stalls', { id, accept }, ({ id, accept }) => accept(id).padEnd(2 ** 23)),
      get('/stream', { id, accept }, ({ id, accept }) => {
        accept(id);
        let left = 16;
        return new Response(
          new ReadableStream({
            async pull(controller) {
              await turn();
              if (left-- > 0) {
                controller.enqueue(CHUNK);
              } else {
                controller.close();
              }
            },
          }),
        );
      }),
    ],
    { stallTimeoutMs: 2000 },
  ),
  counts,
  notes,
);

/** A hostile client: its connection, its numbers, and up to eight numbers for its requests. */
interface Hostile {
  readonly client: Client;
  readonly random: Random;
  readonly first: number;
  /** Resolves when honest clients have had some more answers. */
  readonly meanwhile: () => Promise<void>;
}
type Kind = (hostile: Hostile) => Promise<void>;

function anyRequest(random: Random, id: number, kind: string): string {
  const path = random.pick(['order', 'order', 'later', 'body', 'large', 'stream']);
  if (path === 'body') {
    return requestOf('POST', `/body?kind=${kind}`, `{"id":"${id}"}`);
  }
  return requestOf(path === 'large' || path === 'stream' ? 'GET' : 'POST', `/${path}?id=${id}&kind=${kind}`);
}

function leave({ client: { socket }, random }: Hostile): void {
  random.pick([() => socket.destroy(), () => socket.resetAndDestroy(), () => socket.end().destroySoon()])();
}

const KINDS: Record<string, Kind> = {
  /** A reset at whatever moment: before, in or after the request, or in the answer. */
  async reset({ client, random, first }) {
    const request = anyRequest(random, first, 'reset');
    const moment = random.below(4);
    if (moment > 0) {
      client.send(moment === 1 ? request.slice(0, random.below(request.length)) : request);
    }
    if (moment === 3) {
      await Promise.race([once(client.socket, 'data').catch(() => {}), client.closed]);
    } else {
      for (let turns = random.below(4); turns > 0; turns -= 1) {
        await turn();
      }
    }
    client.socket.resetAndDestroy();
  },
  /** A whole request and the end of file behind it. */
  async halfClose({ client, random, first }) {
    client.socket.end(anyRequest(random, first, 'halfClose'));
  },
  /** Asks for much, and reads nothing of it or only the first bytes. */
  async stall(hostile) {
    const { client, random, first, meanwhile } = hostile;
    const path = random.chance(0.05) ? 'stalls' : random.pick(['large', 'stream']);
    client.send(requestOf('GET', `/${path}?id=${first}&kind=stall`));
    if (random.chance(0.5)) {
      await Promise.race([once(client.socket, 'data').catch(() => {}), client.closed]);
    }
    client.socket.pause();
    if (random.chance(0.3)) {
      client.send(anyRequest(random, first + 1, 'stall'));
    }
    await meanwhile();
    leave(hostile);
  },
  /** Half of a head, or of a body, and then nothing. */
  async half(hostile) {
    const { client, random, first, meanwhile } = hostile;
    const request = requestOf('POST', '/body?kind=half', `{"id":"${first}"}`);
    client.send(request.slice(0, random.below(request.length)));
    await meanwhile();
    leave(hostile);
  },
  /** Byte by byte, or nearly; it stays for its answer. */
  async slow({ client, random, first }) {
    let left = anyRequest(random, first, 'slow');
    while (left !== '') {
      const length = 1 + random.below(40);
      client.send(left.slice(0, length));
      left = left.slice(length);
      await (random.chance(0.2) ? pause(random.below(3)) : turn());
    }
    if (!(await client.answer())) {
      throw new Error(`A slow client has no answer to request ${first}.`);
    }
    client.socket.end();
  },
  /** Several requests at once; it leaves after some of the answers. */
  async pipelineAndLeave(hostile) {
    const { client, random, first } = hostile;
    const length = 2 + random.below(7);
    client.send(Array.from({ length }, (_, at) => anyRequest(random, first + at, 'pipeline')).join(''));
    for (let answers = random.below(length + 1); answers > 0; answers -= 1) {
      await client.answer();
    }
    leave(hostile);
  },
};

/** Honest clients, which ask again and again until they are told to stop. */
class Honest {
  readonly #port: number;
  #waiting: { at: number; resolve: () => void }[] = [];
  #isOver = false;
  sent = 0;
  answered = 0;
  readonly missing: number[] = [];

  constructor(port: number) {
    this.#port = port;
  }

  /** Resolves when they have had so many more answers. */
  more(answers: number): Promise<void> {
    return new Promise((resolve) => {
      this.#waiting.push({ at: this.answered + answers, resolve });
    });
  }

  stop(): void {
    this.#isOver = true;
  }

  /** Asks on a connection that it keeps. */
  async askOnOne(): Promise<void> {
    let client = connect(this.#port);
    while (!this.#isOver) {
      if (!(await this.#ask(client))) {
        client.socket.end();
        client = connect(this.#port);
      }
    }
    client.socket.end();
    await client.closed;
  }

  /** Asks on a new connection each time. */
  async askOnMany(): Promise<void> {
    while (!this.#isOver) {
      const client = connect(this.#port);
      await this.#ask(client);
      client.socket.end();
    }
  }

  /** False where there was no answer. */
  async #ask(client: Client): Promise<boolean> {
    const id = HONEST + this.sent;
    this.sent += 1;
    const isShort = id % 3 > 0;
    client.send(
      isShort ? requestOf('POST', `/order?id=${id}`) : requestOf('POST', '/body', `{"id":"${id}"}`),
    );
    const answer = await client.answer();
    if (answer?.status === 200 && answer.body === `"${id}"`) {
      this.answered += 1;
    } else {
      this.missing.push(id);
    }
    const due = this.#waiting.filter(({ at }) => this.answered >= at);
    this.#waiting = this.#waiting.filter(({ at }) => this.answered < at);
    for (const { resolve } of due) {
      resolve();
    }
    return answer !== undefined;
  }
}

/** The hostile client `index` comes and goes; gives its kind. */
async function attack(port: number, index: number, numbers: Random, honest: Honest): Promise<string> {
  const client = connect(port);
  const kind = numbers.pick(Object.keys(KINDS));
  const meanwhile = (): Promise<void> => honest.more(1 + numbers.below(50));
  await KINDS[kind]?.({ client, random: numbers, first: index * 8, meanwhile });
  if (!client.socket.isPaused()) {
    await client.closed;
  }
  return kind;
}

/** A client that asks for much, and has read the first bytes of it. */
async function stallForEver(port: number, id: number): Promise<Client> {
  const client = connect(port);
  const begun = once(client.socket, 'data');
  client.socket.once('data', () => client.socket.pause());
  client.send(requestOf('GET', `/stalls?id=${id}`));
  await begun;
  return client;
}

await endure(import.meta.url, size(300_000, 3_600_000), async ({ claim, random, stage }) => {
  const total = size(3_000, 100_000);
  await using server = await startServer(import.meta.url);
  const honest = new Honest(server.port);
  const { missing } = honest;
  let halfClosers = 0;
  const attacks = (from: number, to: number): Promise<void> =>
    each(to - from, 64, async (at) => {
      const index = from + at;
      stage(`hostile client ${number(index)}`);
      const kind = await attack(server.port, index, random(index), honest);
      halfClosers += kind === 'halfClose' ? 1 : 0;
    });

  const asking = Promise.all([honest.askOnOne(), honest.askOnOne(), honest.askOnMany()]);
  await attacks(0, total / 4);
  const early = await server.figures('collected');
  await attacks(total / 4, total);

  stage('readers that stall for ever');
  const stalled = await Promise.all(
    Array.from({ length: 32 }, (_, at) => stallForEver(server.port, (total + at) * 8)),
  );
  honest.stop();
  await asking;
  stage('the end of all tasks, while the readers stall');
  const idle = await server.until(({ pending }) => pending === 0);
  for (const { socket } of stalled) {
    socket.destroy();
  }
  stage('the end of all connections');
  const end = await server.until(
    ({ open, alive }) => open === 0 && alive.sockets + alive.requests === 0,
    'collected',
  );

  const { accepted = 0, finished = 0, listeners = 0, halfClosed = 0 } = end.counts;
  claim(
    end.notes.length === 0 && accepted === finished,
    'every accepted request ran its tasks once, in order',
    `${number(total)} connections, ${number(accepted)} accepted, ${number(finished)} finished${
      end.notes.length > 0 ? `; ${end.notes.slice(0, 5).join('; ')}` : ''
    }`,
  );
  claim(
    missing.length === 0 && honest.answered === end.counts.honest,
    'honest clients had every answer meanwhile',
    `${number(honest.answered)} of ${number(honest.sent)}${missing.length > 0 ? `; not ${missing.slice(0, 5)}` : ''}`,
  );
  claim(
    halfClosed === halfClosers,
    'a whole request before a half-close is accepted',
    `${number(halfClosed)} of ${number(halfClosers)}`,
  );
  claim(idle.pending === 0, 'readers that stall for ever hold no task', `${stalled.length} readers`);
  const { sockets, requests } = end.alive;
  claim(
    end.open + sockets + requests === 0,
    'no socket and no request is left',
    `${end.open} open, ${sockets} sockets and ${requests} requests in memory`,
  );
  claim(listeners <= 10, 'no event of a socket has more than ten listeners', `${listeners} at most`);
  const heap = end.heap / early.heap;
  const most = size(1.25, 1.1);
  claim(
    heap <= most,
    `the heap after collection is at most ${most} × that of the first quarter, also under attack`,
    `${megabytes(early.heap)}, ${megabytes(end.heap)} (${heap.toFixed(3)}); RSS ${megabytes(early.rss)}, ${megabytes(
      end.rss,
    )}`,
  );
  await claimCleanEnd(server, claim);
});

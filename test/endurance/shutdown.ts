/**
 * What SIGTERM in the middle of load does: `node --import tsx test/endurance/shutdown.ts`. In each round a process of
 * its own serves clients that keep their connection, pipeline, send or read slowly, or have sent half a request; after
 * a random number of answers it gets the signal. Its handlers and tasks write to a file, each line in one call.
 */
import { openSync, writeSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  type BackgroundTasks,
  backgroundTasks,
  body,
  createApp,
  get,
  post,
  query,
  strings,
} from '../../server.ts';
import {
  type Client,
  connect,
  each,
  endure,
  number,
  pause,
  probe,
  type Random,
  requestOf,
  size,
  startServer,
} from './shared.ts';

const { LOG, DRAIN } = process.env;
const log = LOG ? openSync(LOG, 'a') : undefined;
const write = (line: string): void => {
  if (log) {
    writeSync(log, `${line}\n`);
  }
};
const turn = (): Promise<void> => new Promise(setImmediate);

/** Adds a task under the name that it writes when it ends. */
function add(tasks: BackgroundTasks, name: string, work: () => unknown = () => {}): void {
  tasks.addTask(
    Object.defineProperty(
      async () => {
        await work();
        write(name);
      },
      'name',
      { value: name },
    ),
  );
}

/** Accepts the request: `0 id` and then, by its tasks, `1 id`, `2 id` and `3 id`. */
function accept(tasks: BackgroundTasks, id: string, work: () => unknown = turn): void {
  write(`0 ${id}`);
  add(tasks, `1 ${id}`, () => add(tasks, `3 ${id}`));
  add(tasks, `2 ${id}`, work);
}

const LARGE = 2 ** 21;
const id = query('id');
export default probe(
  createApp(
    [
      post('/order', { id, tasks: backgroundTasks }, ({ id, tasks }) => {
        accept(tasks, id);
        return id;
      }),
      post('/later', { id, tasks: backgroundTasks }, async ({ id, tasks }) => {
        accept(tasks, id);
        for (let turns = 0; turns < 10; turns += 1) {
          await turn();
        }
        return id;
      }),
      post('/body', { order: body(strings('id')), tasks: backgroundTasks }, ({ order: { id }, tasks }) => {
        accept(tasks, id);
        return id;
      }),
      get('/large', { id, tasks: backgroundTasks }, ({ id, tasks }) => {
        accept(tasks, id);
        return id.padEnd(LARGE);
      }),
      post('/stuck', { id, tasks: backgroundTasks }, ({ id, tasks }) => {
        accept(tasks, id, () => new Promise(() => {}));
        return id;
      }),
    ],
    { drainTimeoutMs: Number(DRAIN ?? 0) },
  ),
);

/** What the clients of a round share. */
interface Round {
  readonly port: number;
  readonly signalled: Promise<void>;
  readonly random: Random;
  /** A name that no other request has. */
  id(): string;
  /** Notes an answer; false where it is not `id`'s, or the connection ends with it. */
  took(id: string, answer: Awaited<ReturnType<Client['answer']>>): boolean;
}
type Role = (round: Round) => Promise<void>;

const kept: Role = async ({ port, random, id, took }) => {
  const client = connect(port);
  for (let name = id(), more = true; more; name = id()) {
    client.send(requestOf('POST', `/${random.pick(['order', 'later'])}?id=${name}`));
    more = took(name, await client.answer());
  }
  await client.closed;
};

const pipelined: Role = async ({ port, random, id, took }) => {
  const client = connect(port);
  for (let more = true; more; ) {
    const names = Array.from({ length: 2 + random.below(8) }, id);
    client.send(
      names.map((name) => requestOf('POST', `/${random.pick(['order', 'later'])}?id=${name}`)).join(''),
    );
    for (const name of names) {
      more = took(name, await client.answer()) && more;
    }
  }
  await client.closed;
};

const slowSender: Role = async ({ port, random, id, took }) => {
  const client = connect(port);
  for (let name = id(), more = true; more; name = id()) {
    let left = requestOf('POST', '/body', `{"id":"${name}"}`);
    while (left !== '' && !client.socket.destroyed) {
      const length = 1 + random.below(60);
      client.send(left.slice(0, length));
      left = left.slice(length);
      await pause(random.below(4));
    }
    more = took(name, await client.answer());
  }
  await client.closed;
};

const slowReader: Role = async ({ port, random, id, took }) => {
  const client = connect(port);
  const slowly = async (): Promise<void> => {
    client.socket.pause();
    await pause(random.below(4));
    client.socket.resume();
  };
  client.socket.on('data', slowly);
  for (let name = id(), more = true; more; name = id()) {
    client.send(requestOf('GET', `/large?id=${name}`));
    more = took(name, await client.answer());
  }
  await client.closed;
};

const halfHead: Role = async ({ port, random }) => {
  const client = connect(port);
  const request = requestOf('POST', '/order?id=never');
  client.send(request.slice(0, random.below(request.length - 2)));
  await client.closed;
};

/** Has sent half of a body, and sends the rest when the signal is on its way. */
const halfBody: Role = async ({ port, id, took, signalled }) => {
  const client = connect(port);
  const name = id();
  const request = requestOf('POST', '/body', `{"id":"${name}"}`);
  client.send(request.slice(0, -5));
  await signalled;
  client.send(request.slice(-5));
  took(name, await client.answer());
  client.socket.end();
  await client.closed;
};

/** Has sent half of a body, and holds its request until connections are cut, at half of the time. */
const halfBodyForEver: Role = async ({ port, id }) => {
  const client = connect(port);
  client.send(requestOf('POST', '/body', `{"id":"${id()}"}`).slice(0, -5));
  await client.closed;
};

const stuck: Role = async ({ port, id, took }) => {
  const client = connect(port);
  const name = id();
  client.send(requestOf('POST', `/stuck?id=${name}`));
  took(name, await client.answer());
  await client.closed;
};

const ROLES = [kept, pipelined, slowSender, slowReader, halfHead, halfBody];

await endure(import.meta.url, size(300_000, 3_600_000), async ({ claim, random, stage }) => {
  const folder = await mkdtemp(join(tmpdir(), 'endurance-'));
  const sum = { accepted: 0, answered: 0, tasks: 0, cut: 0, named: 0, longest: 0 };
  const lost: string[] = []; // what the rounds saw that must not be
  const codes = new Map<string, number>();

  async function round(index: number, drain: number, roles: readonly Role[]): Promise<void> {
    const file = join(folder, `${index}`);
    await using server = await startServer(import.meta.url, { LOG: file, DRAIN: `${drain}` });
    const answered = new Set<string>();
    const goal = random(-1000 - index).below(200);
    let ids = 0;
    let signalledAt = 0;
    let signal = (): void => {};
    const signalled = new Promise<void>((resolve) => {
      signal = () => {
        server.kill('SIGTERM');
        signalledAt ||= performance.now();
        resolve();
      };
    });
    const wrong = (what: string): void => void lost.push(`round ${index}: ${what}`);
    const everybody = Promise.all(
      roles.map((role, place) =>
        role({
          port: server.port,
          random: random(index * 100 + place),
          signalled,
          id: () => `${index}-${ids++}`,
          took(id, answer) {
            if (!answer && signalledAt === 0) {
              wrong(`${id} has no answer, before the signal`);
            }
            if (!answer) {
              return false;
            }
            if (answer.status !== 200 || answer.body.trimEnd().replace(/ *"$/, '"') !== `"${id}"`) {
              wrong(`${id} got ${answer.status} ${answer.body.slice(0, 80)}`);
            }
            answered.add(id);
            if (answered.size === goal) {
              signal();
            }
            return !/\r\nconnection: close/i.test(answer.head);
          },
        }),
      ),
    );
    if (goal === 0) {
      signal();
    }
    const { code, signal: killedBy } = await server.exited;
    sum.longest = Math.max(sum.longest, performance.now() - signalledAt);
    await everybody;

    const seen = new Map<string, string[]>();
    const lines = (await readFile(file, 'utf8')).split('\n').filter((line) => line !== '');
    for (const line of lines) {
      const [step = '', id = ''] = line.split(' ');
      seen.set(id, [...(seen.get(id) ?? []), step]);
    }
    const left = server.stderr.split('\n').filter((line) => line !== '');
    const named = left.map((line) => line.replace('Unfinished at the end of drainTimeoutMs: ', ''));
    for (const [id, steps] of seen) {
      const names = ['1', '2', '3'].filter((step) => named.includes(`${step} ${id}`));
      const isStuck = names.length > 0 && roles.includes(stuck);
      if (steps.join('') + (isStuck ? names.join('') : '') !== '0123') {
        wrong(`${id} has ${steps}, and ${names} named`);
      }
      if (!answered.has(id)) {
        sum.cut += 1;
      }
    }
    for (const id of answered) {
      if (!seen.has(id)) {
        wrong(`${id} is answered, and not accepted`);
      }
    }
    const others = left.filter(
      (line) => !/^Unfinished at the end of drainTimeoutMs: [123] \d+-\d+$/.test(line),
    );
    if (others.length > 0 || (left.length > 0 && !roles.includes(stuck))) {
      wrong(`on stderr: ${left.slice(0, 5)}`);
    }
    const how = `${roles.includes(stuck) ? 'stuck' : 'all settle'}: ${code ?? killedBy}`;
    codes.set(how, (codes.get(how) ?? 0) + 1);
    sum.accepted += seen.size;
    sum.answered += answered.size;
    sum.tasks += lines.length - seen.size;
    sum.named += named.length;
  }

  const rounds = size(6, 100);
  stage('a round of SIGTERM');
  await each(rounds, 2, (index) => {
    const numbers = random(-1 - index);
    const more = Array.from({ length: 6 }, () => numbers.pick(ROLES));
    return round(index, 8000, [kept, pipelined, ...more, ...(index % 4 === 3 ? [halfBodyForEver] : [])]);
  });
  const [accepted, tasks] = [sum.accepted, sum.tasks];
  stage('a round that passes the deadline');
  const late = size(2, 10);
  await each(late, 2, (index) => round(rounds + index, 1500, [kept, pipelined, slowSender, stuck, stuck]));
  await rm(folder, { recursive: true });

  claim(
    lost.length === 0,
    'every accepted request ran its tasks once, in order, or they are named; answers are whole',
    lost.length === 0
      ? `${rounds + late} rounds, ${number(sum.accepted)} accepted, ${number(sum.answered)} answered`
      : `${lost.length}: ${lost.slice(0, 5).join('; ')}`,
  );
  claim(
    tasks === 3 * accepted,
    'within the deadline no task is left',
    `${number(tasks)} = 3 × ${number(accepted)}`,
  );
  claim(sum.cut === 0, 'every accepted request of a client that stayed is answered', `${sum.cut} are not`);
  const exits = [...codes].map(([how, times]) => `${how}, ${times} times`).join('; ');
  claim(
    codes.get('all settle: 0') === rounds,
    `exit 0 within the deadline, in ${rounds} rounds`,
    `${exits}; the longest took ${(sum.longest / 1000).toFixed(1)} s`,
  );
  claim(
    codes.get('stuck: 1') === late && sum.named >= 2 * late,
    `past the deadline exit 1, in ${late} rounds, and the tasks are named`,
    `${sum.named} names`,
  );
});

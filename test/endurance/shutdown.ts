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
  type Answer,
  type Client,
  connect,
  each,
  endure,
  number,
  pause,
  probe,
  type Random,
  type Run,
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

interface Sum {
  accepted: number;
  answered: number;
  tasks: number;
  cut: number;
  named: number;
  longest: number;
  /** What the rounds saw that must not be. */
  readonly wrong: string[];
  /** How often a server ended in which way. */
  readonly codes: Map<string, number>;
}

interface Plan {
  readonly index: number;
  readonly drain: number;
  readonly roles: readonly Role[];
}

/** What is wrong with the answer to `id`, if anything. */
function faultOf(id: string, answer: Answer): string | undefined {
  const isOwn = answer.body.trimEnd().replace(/ *"$/, '"') === `"${id}"`;
  return answer.status === 200 && isOwn
    ? undefined
    : `${id} got ${answer.status} ${answer.body.slice(0, 80)}`;
}

/** The clients of a round play their roles; `signal` is called at their `goal`-th answer. Gives who has an answer. */
function play(
  plan: Plan,
  port: number,
  signal: { readonly goal: number; readonly send: () => void; readonly sent: Promise<void> },
  { random, wrong }: { random: Run['random']; wrong: (what: string) => void },
): { answered: ReadonlySet<string>; over: Promise<unknown> } {
  const answered = new Set<string>();
  let ids = 0;
  let isSignalled = false;
  signal.sent.then(() => {
    isSignalled = true;
  });
  const id = (): string => {
    ids += 1;
    return `${plan.index}-${ids}`;
  };
  const took: Round['took'] = (id, answer) => {
    if (!answer) {
      if (!isSignalled) {
        wrong(`${id} has no answer, before the signal`);
      }
      return false;
    }
    const fault = faultOf(id, answer);
    if (fault) {
      wrong(fault);
    }
    answered.add(id);
    if (answered.size === signal.goal) {
      signal.send();
    }
    return !/\r\nconnection: close/i.test(answer.head);
  };
  const clients = plan.roles.map((role, place) =>
    role({ port, random: random(plan.index * 100 + place), signalled: signal.sent, id, took }),
  );
  return { answered, over: Promise.all(clients) };
}

/** The steps that each request has written to the file, and how many there are. */
async function stepsIn(file: string): Promise<{ seen: Map<string, string[]>; count: number }> {
  const seen = new Map<string, string[]>();
  const lines = linesOf(await readFile(file, 'utf8'));
  for (const line of lines) {
    const [step = '', id = ''] = line.split(' ');
    seen.set(id, [...(seen.get(id) ?? []), step]);
  }
  return { seen, count: lines.length };
}

const linesOf = (text: string): string[] => text.split('\n').filter((line) => line !== '');

/** Each request that wrote has to have all its steps, or tasks that are named on stderr where one is stuck. */
function checkSteps(
  seen: ReadonlyMap<string, readonly string[]>,
  named: readonly string[],
  isStuck: boolean,
  wrong: (what: string) => void,
): void {
  for (const [id, steps] of seen) {
    const names = ['1', '2', '3'].filter((step) => named.includes(`${step} ${id}`));
    if ([...steps, ...(isStuck ? names : [])].join('') !== '0123') {
      wrong(`${id} has ${steps}, and ${names} named`);
    }
  }
}

const UNFINISHED = /^Unfinished at the end of drainTimeoutMs: (?=[123] \d+-\d+$)/;

/** A server of its own gets the signal amid its clients, and ends; what it did is added to `sum`. */
async function playRound(plan: Plan, folder: string, random: Run['random'], sum: Sum): Promise<void> {
  const file = join(folder, `${plan.index}`);
  await using server = await startServer(import.meta.url, { LOG: file, DRAIN: `${plan.drain}` });
  const isStuck = plan.roles.includes(stuck);
  const wrong = (what: string): void => {
    sum.wrong.push(`round ${plan.index}: ${what}`);
  };
  const goal = random(-1000 - plan.index).below(200);
  const { promise: sent, resolve: told } = withResolvers();
  let signalledAt = 0;
  const send = (): void => {
    server.kill('SIGTERM');
    signalledAt ||= performance.now();
    told();
  };
  const { answered, over } = play(plan, server.port, { goal, send, sent }, { random, wrong });
  if (goal === 0) {
    send();
  }
  const { code, signal: killedBy } = await server.exited;
  sum.longest = Math.max(sum.longest, performance.now() - signalledAt);
  await over;

  const { seen, count } = await stepsIn(file);
  const left = linesOf(server.stderr);
  const named = left.filter((line) => UNFINISHED.test(line)).map((line) => line.replace(UNFINISHED, ''));
  checkSteps(seen, named, isStuck, wrong);
  for (const id of answered) {
    if (!seen.has(id)) {
      wrong(`${id} is answered, and not accepted`);
    }
  }
  if (left.length > (isStuck ? named.length : 0)) {
    wrong(`on stderr: ${left.slice(0, 5)}`);
  }
  const how = `${isStuck ? 'stuck' : 'all settle'}: ${code ?? killedBy}`;
  sum.codes.set(how, (sum.codes.get(how) ?? 0) + 1);
  sum.cut += [...seen.keys()].filter((id) => !answered.has(id)).length;
  sum.accepted += seen.size;
  sum.answered += answered.size;
  sum.tasks += count - seen.size;
  sum.named += named.length;
}

function withResolvers(): { promise: Promise<void>; resolve: () => void } {
  let resolve = (): void => {};
  const promise = new Promise<void>((settle) => {
    resolve = settle;
  });
  return { promise, resolve };
}

await endure(import.meta.url, size(300_000, 3_600_000), async ({ claim, random, stage }) => {
  const folder = await mkdtemp(join(tmpdir(), 'endurance-'));
  const sum: Sum = {
    accepted: 0,
    answered: 0,
    tasks: 0,
    cut: 0,
    named: 0,
    longest: 0,
    wrong: [],
    codes: new Map(),
  };
  const { wrong, codes } = sum;
  const round = (index: number, drain: number, roles: readonly Role[]): Promise<void> =>
    playRound({ index, drain, roles }, folder, random, sum);

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
    wrong.length === 0,
    'every accepted request ran its tasks once, in order, or they are named; answers are whole',
    wrong.length === 0
      ? `${rounds + late} rounds, ${number(sum.accepted)} accepted, ${number(sum.answered)} answered`
      : `${wrong.length}: ${wrong.slice(0, 5).join('; ')}`,
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

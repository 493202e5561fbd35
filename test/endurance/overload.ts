/**
 * What the README's back-pressure recipe does under ten times of what it can take: `node --import tsx
 * test/endurance/overload.ts`. The recipe itself is run; its tasks call this process, which lets one of them go on for
 * every ten requests that were sent, and so sets the capacity.
 */
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import http, { type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { App } from '../../server.ts';
import {
  type Answer,
  type Client,
  claimCleanEnd,
  connect,
  endure,
  type Figures,
  megabytes,
  number,
  pause,
  probe,
  requestOf,
  type Server,
  size,
  startServer,
} from './shared.ts';

const { RECIPE } = process.env;
const recipe = RECIPE ? ((await import(pathToFileURL(RECIPE).href)) as { default: App }) : undefined;
export default recipe && probe(recipe.default);

/** The recipe as the README has it, but for where it finds server.ts; and its bound. */
async function writeRecipe(folder: string): Promise<{ file: string; bound: number }> {
  const readme = await readFile(new URL('../../README.md', import.meta.url), 'utf8');
  const code = /```ts\n\/\/ back-pressure\.ts\n(.*?)```/s.exec(readme)?.[1];
  const bound = Number(/MAX_PENDING = (\d+)/.exec(code ?? '')?.[1]);
  if (!code || !bound) {
    throw new Error('Expected the README to have back-pressure.ts, with MAX_PENDING.');
  }
  const file = join(folder, 'back-pressure.ts');
  await writeFile(join(folder, 'package.json'), '{"type":"module"}');
  await writeFile(
    file,
    code.replace("'./server.ts'", `'${new URL('../../server.ts', import.meta.url).href}'`),
  );
  return { file, bound };
}

interface Hooks {
  readonly url: string;
  /** The tasks that have called and wait for their answer. */
  readonly held: ServerResponse[];
  /** How often each has called. */
  readonly calls: ReadonlyMap<string, number>;
  /** From now on nobody waits. */
  open(): void;
  close(): void;
}

/** What the tasks call: each waits for its answer. */
async function startHooks(): Promise<Hooks> {
  const held: ServerResponse[] = [];
  const calls = new Map<string, number>();
  let isOpen = false;
  const server = http.createServer((req, res) => {
    calls.set(req.url ?? '', (calls.get(req.url ?? '') ?? 0) + 1);
    if (isOpen) {
      res.end();
    } else {
      held.push(res);
    }
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    held,
    calls,
    open() {
      isOpen = true;
      for (const res of held.splice(0)) {
        res.end();
      }
    },
    close() {
      server.close().closeAllConnections();
    },
  };
}

/** What became of the requests that were sent. */
class Jobs {
  readonly #hook: string;
  readonly accepted: string[] = [];
  readonly wrong: string[] = [];
  sent = 0;
  refused = 0;

  constructor(hook: string) {
    this.#hook = hook;
  }

  /** Sends the next request; true if it was accepted. */
  async send(client: Client): Promise<boolean> {
    const name = `/${this.sent}`;
    this.sent += 1;
    client.send(requestOf('POST', `/jobs?hook=${encodeURIComponent(this.#hook + name)}`));
    const answer = await client.answer();
    if (answer?.status === 200) {
      this.accepted.push(name);
    } else if (isRefusal(answer)) {
      this.refused += 1;
    } else {
      this.wrong.push(`${name} got ${answer?.head.split('\r\n', 1) ?? 'no answer'}`);
    }
    return answer?.status === 200;
  }
}

/** After `ms` of load: the figures with the middle heap of eleven, as a client has no request in memory, or more. */
async function settle(server: Server, ms: number): Promise<Figures> {
  for (const end = performance.now() + ms; performance.now() < end; await pause(50)) {
    await server.figures();
  }
  const seen = [await server.figures('collected')];
  for (; seen.length < 11; await pause(50)) {
    seen.push(await server.figures('collected'));
  }
  return seen.toSorted((a, b) => a.heap - b.heap)[5]!;
}

await endure(import.meta.url, size(300_000, 600_000), async ({ claim, stage }) => {
  const folder = await mkdtemp(join(tmpdir(), 'endurance-'));
  const { file, bound } = await writeRecipe(folder);
  const seconds = size(3, 30);

  const hooks = await startHooks();
  const { held, calls } = hooks;

  await using server = await startServer(import.meta.url, { RECIPE: file });
  const jobs = new Jobs(hooks.url);
  const { accepted, wrong } = jobs;

  stage('the first requests, while every task is held');
  const first = connect(server.port);
  while (await jobs.send(first)) {}
  const full = accepted.length;
  for (let times = 1; times < 10 * bound; times += 1) {
    await jobs.send(first);
  }
  claim(
    full === bound && jobs.refused === 10 * bound && accepted.length === full,
    'while every task is held, requests over the bound have 503 at once, with Retry-After',
    `${full} accepted, ${number(jobs.refused)} refused`,
  );

  stage('ten times of what it can take');
  const clients = Array.from({ length: 10 * bound }, () => connect(server.port));
  // Each is accepted before the load: under it, as a turn of the event loop accepts one, the heap would grow by them.
  await server.until(({ open }) => open > clients.length + full); // the first one; and each held task has a connection
  let over = false;
  let released = 0;
  const begin = jobs.sent;
  const load = Promise.all(
    clients.map(async (client) => {
      while (!over) {
        await jobs.send(client);
        for (; released < (jobs.sent - begin) / 10 && held.length > 0; released += 1) {
          held.shift()?.end();
        }
      }
    }),
  );
  const early = await settle(server, (seconds * 1000) / 3);
  const late = await settle(server, (seconds * 2000) / 3);
  over = true;
  await load;
  const under = { sent: jobs.sent - begin, accepted: accepted.length - full };
  claim(
    wrong.length === 0,
    'under load every answer is 200, or 503 with Retry-After',
    wrong.length > 0
      ? `${wrong.length} are not: ${wrong.slice(0, 3).join('; ')}`
      : `${clients.length} clients, ${number(under.sent)} sent, ${number(under.accepted)} accepted in ${seconds} s`,
  );
  claim(
    under.accepted > 0 && under.accepted <= released + bound,
    'it accepts as much as it can do, and no more',
    `${number(under.accepted)} accepted, ${number(released)} tasks let go on`,
  );
  claim(
    late.heap <= 1.2 * early.heap,
    'the heap after collection, under load, is at most 1.2 × that after a third',
    `${megabytes(early.heap)}, ${megabytes(late.heap)} (${(late.heap / early.heap).toFixed(3)}); RSS ${megabytes(
      early.rss,
    )}, ${megabytes(late.rss)}`,
  );

  stage('the end of all tasks');
  hooks.open();
  await server.until(({ pending }) => pending === 0);
  const last = connect(server.port); // the first one has been idle, and may have been ended
  const again = await jobs.send(last);
  await server.until(({ pending }) => pending === 0);
  claim(again, 'when the load is over, the next request is accepted, by itself');
  const lost = accepted.filter((name) => calls.get(name) !== 1);
  claim(
    lost.length === 0 && calls.size === accepted.length,
    'every accepted request ran its task once, no other did',
    `${number(accepted.length)} accepted, ${number(calls.size)} called ${lost.slice(0, 5)}`,
  );
  for (const { socket } of [first, last, ...clients]) {
    socket.destroy();
  }
  await claimCleanEnd(server, claim);
  hooks.close();
  await rm(folder, { recursive: true });
});

function isRefusal(answer: Answer | undefined): boolean {
  return answer?.status === 503 && /\r\nretry-after: 1(\r|$)/i.test(answer.head);
}

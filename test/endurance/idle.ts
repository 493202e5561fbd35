/**
 * What a connection costs that has sent a request, and is kept: `node --import tsx test/endurance/idle.ts`. Beside it
 * the same of raw `node:http` with the same work, each server in a process of its own, in turn.
 */
import { subscribe } from 'node:diagnostics_channel';
import { once } from 'node:events';
import http, { type Server as HttpServer, type RequestListener } from 'node:http';
import type { AddressInfo } from 'node:net';
import { type App, backgroundTasks, createApp, post, query } from '../../server.ts';
import { connect, each, endure, megabytes, number, probe, requestOf, size, startServer } from './shared.ts';

const counts = { ran: 0 };
const task = (): void => {
  counts.ran += 1;
};
const laterTask = async (): Promise<void> => task();

const raw: RequestListener = (request, response) => {
  const item = decodeURIComponent(request.url!.slice('/order?item='.length));
  const text = JSON.stringify({ message: item });
  response
    .writeHead(200, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) })
    .end(text);
  response.on('finish', async () => {
    task();
    await laterTask();
    task();
  });
};

/** What the command of server.ts needs of an app, around raw `node:http`. */
function rawApp(): App {
  const server = http.createServer(raw);
  return {
    ...createApp([]),
    listener: raw,
    async listen({ port = 8000 } = {}) {
      await once(server.listen(port, '127.0.0.1'), 'listening');
      return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` };
    },
    async close() {
      server.close();
      return { unfinished: [] };
    },
  };
}

export default probe(
  process.env.RAW
    ? rawApp()
    : createApp([
        post('/order', { item: query('item'), tasks: backgroundTasks }, ({ item, tasks }) => {
          tasks.addTask(task);
          tasks.addTask(laterTask);
          tasks.addTask(task);
          return { message: item };
        }),
      ]),
  counts,
);

// No connection of either server is closed because it is idle.
subscribe('http.server.request.start', (message) => {
  (message as { server: HttpServer }).server.keepAliveTimeout = 0;
});

interface Measured {
  readonly heap: number;
  readonly rss: number;
}

await endure(import.meta.url, size(120_000, 900_000), async ({ claim, stage }) => {
  const wanted = size(3000, 10_000);
  const allowed = openFiles();
  const count = Math.min(wanted, allowed - 100); // the rest is for what Node itself has open
  const isMany = count >= 5000; // fewer are little beside the noise
  const isFew = count < 1000; // and these would tell nothing
  const warmUp = Math.ceil(count / 10); // of more, the memory that is left over would hide what is measured
  const rounds = size(3, 11); // the rss of a single one is up to a tenth off
  if (count < wanted) {
    console.log(
      `  a process may open ${number(allowed)} files here (ulimit -n):` +
        ` ${number(count)} connections, not ${number(wanted)}${isFew ? ', which are too few to compare' : ''}`,
    );
  }

  // Room for 1 MiB of young objects: more of it would come and go with the garbage, and be the most of the noise.
  const NODE_OPTIONS = `${process.env.NODE_OPTIONS ?? ''} --max-semi-space-size=1`;

  async function measure(name: string, env: Record<string, string>): Promise<Measured> {
    await using server = await startServer(import.meta.url, { ...env, NODE_OPTIONS });
    let wrong = 0;
    async function open(count: number, requests: number): Promise<ReturnType<typeof connect>[]> {
      const clients: ReturnType<typeof connect>[] = [];
      await each(count, 50, async (index) => {
        const client = connect(server.port);
        clients.push(client);
        for (let left = requests; left > 0; left -= 1) {
          client.send(requestOf('POST', `/order?item=${index}`));
          if ((await client.answer())?.status !== 200) {
            wrong += 1;
          }
        }
      });
      return clients;
    }
    async function leave(clients: ReturnType<typeof connect>[]): ReturnType<typeof server.until> {
      for (const { socket } of clients) {
        socket.destroy();
      }
      await server.until(({ open, alive: { sockets } }) => open === 0 && sockets === 0, 'collected');
      return server.figures('collected');
    }
    stage(`the warm-up of ${name}`);
    const before = await leave(await open(warmUp, 10));
    stage(`${number(count)} connections of ${name}`);
    const clients = await open(count, 1);
    const during = await server.until(({ pending }) => pending === 0, 'collected');
    const after = await leave(clients);
    const left = (after.heap - before.heap) / (during.heap - before.heap);
    const isFree =
      left < (isMany ? 0.05 : 0.3) &&
      after.open + after.alive.sockets + after.alive.requests + after.pending === 0;
    const isWhole = wrong === 0 && during.open === count && after.counts.ran === 3 * (10 * warmUp + count);
    claim(
      isWhole && isFree,
      `${name}: every connection is kept, and nothing of it is left in the end`,
      `${megabytes(before.heap)}, ${megabytes(during.heap)}, ${megabytes(after.heap)}`,
    );
    return { heap: (during.heap - before.heap) / count, rss: (during.rss - before.rss) / count };
  }

  const [ours, raws]: [Measured[], Measured[]] = [[], []];
  for (let round = 0; round < rounds; round += 1) {
    ours.push(await measure('ours', {}));
    raws.push(await measure('raw', { RAW: '1' }));
  }
  const limits = [
    ['heap', isMany ? 1.25 : 1.4],
    ['rss', isMany ? 1.15 : 2],
  ] as const;
  for (const [what, most] of isFew ? [] : limits) {
    const [own, floor] = [ours, raws].map((list) => median(list.map((each) => each[what]))) as [
      number,
      number,
    ];
    claim(
      own <= most * floor,
      `the ${what} of a connection is at most ${most} × that of raw node:http`,
      `${number(Math.round(own))} and ${number(Math.round(floor))} bytes (${(own / floor).toFixed(3)})`,
    );
  }
});

/** How many files a process may have open; its children may, too. Node has raised it to the hard limit. */
function openFiles(): number {
  const { userLimits } = process.report.getReport() as {
    userLimits?: { open_files: { soft: number | 'unlimited' } };
  };
  return Number(userLimits?.open_files.soft) || Infinity;
}

function median(list: readonly number[]): number {
  return list.toSorted((a, b) => a - b)[list.length >> 1]!;
}

/**
 * Whether memory stays flat, and no task is lost, over many requests with three tasks each, one in ten failing:
 * `node --import tsx test/endurance/soak.ts`. Every way to have tasks is among them, and requests that are refused.
 */
import {
  backgroundTasks,
  body,
  createApp,
  depends,
  get,
  HTTPError,
  post,
  query,
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
  probe,
  requestOf,
  size,
  startServer,
} from './shared.ts';

const counts = { handled: 0, ran: 0, failed: 0, cleanedUp: 0 };
const item = query('item');
const ran = (): void => {
  counts.ran += 1;
};
const ranLater = async (): Promise<void> => ran();
const last = (item: string): void => {
  ran();
  if (item.endsWith('0')) {
    throw new Error('expected');
  }
};

const audit = depends({ tasks: backgroundTasks }, ({ tasks }) => tasks.addTask(ran));
const session = depends(async function* () {
  yield 'session';
  counts.cleanedUp += 1;
});

export default probe(
  createApp(
    [
      post('/order', { item, tasks: backgroundTasks }, ({ item, tasks }) => {
        counts.handled += 1;
        tasks.addTask(ran);
        tasks.addTask(ranLater);
        tasks.addTask(last, item);
        return { message: item };
      }),
      post(
        '/orders',
        { order: body(strings('item')), tasks: backgroundTasks },
        async ({ order: { item }, tasks }) => {
          counts.handled += 1;
          tasks.addTask(ran);
          await undefined;
          tasks.addTask(ranLater);
          tasks.addTask(last, item);
          return { message: item };
        },
      ),
      post('/audited', { item, audit, session, tasks: backgroundTasks }, ({ item, tasks }) => {
        counts.handled += 1;
        tasks.addTask(() => {
          ran();
          tasks.addTask(last, item);
        });
        return { message: item };
      }),
      get('/export', { item, tasks: backgroundTasks }, ({ item, tasks }) => {
        counts.handled += 1;
        tasks.addTask(ran);
        tasks.addTask(ranLater);
        tasks.addTask(last, item);
        return new Response(item);
      }),
      post('/refused', { audit }, () => {
        throw new HTTPError(409);
      }),
    ],
    {
      onTaskError: () => {
        counts.failed += 1;
      },
    },
  ),
  counts,
);

/** The `index`-th request. */
function order(index: number): string {
  const kind = index % 20;
  if (kind === 3 || kind === 10) {
    return requestOf('POST', '/orders', `{"item":"${index}"}`);
  }
  if (kind === 5 || kind === 17) {
    return requestOf('POST', `/audited?item=${index}`);
  }
  if (kind === 7 || kind === 0) {
    return requestOf('GET', `/export?item=${index}`);
  }
  return requestOf('POST', `/order?item=${index}`);
}

interface Tally {
  refused: number;
  wrong: number;
}

/** Sends request `index`; one in fifty is followed by one that is refused. */
async function sendOne(client: Client, index: number, tally: Tally): Promise<void> {
  client.send(order(index));
  const answer = await client.answer();
  if (answer?.status !== 200 || !answer.body.includes(`${index}`)) {
    tally.wrong += 1;
  }
  if (index % 50 > 0) {
    return;
  }
  client.send(requestOf('POST', index % 100 === 0 ? '/refused' : '/order'));
  const refusal = await client.answer();
  if (refusal?.status !== 409 && refusal?.status !== 422) {
    tally.wrong += 1;
  }
  tally.refused += 1;
}

await endure(import.meta.url, size(300_000, 3_600_000), async ({ claim, stage }) => {
  const total = size(40_000, 1_000_000);
  const early = size(0.25, 0.1) * total;
  // V8's young generation takes long to grow to its size: where it is small, RSS tells earlier.
  const flags = size(1, 0) === 1 ? { NODE_OPTIONS: '--max-semi-space-size=1' } : {};
  await using server = await startServer(import.meta.url, flags);
  const tally: Tally = { refused: 0, wrong: 0 };

  /** Twenty clients, each on a connection that it keeps for a thousand requests. */
  async function load(from: number, to: number): ReturnType<typeof server.until> {
    stage(`requests ${number(from)} to ${number(to)}`);
    await each((to - from) / 1000, 20, async (block) => {
      const client = connect(server.port);
      const begin = from + block * 1000;
      for (let index = begin; index < begin + 1000; index += 1) {
        await sendOne(client, index, tally);
      }
      client.socket.end();
      await client.closed;
    });
    await server.until(({ pending }) => pending === 0);
    return server.figures('collected');
  }

  const first = await load(0, early);
  const middle = await load(early, total / 2);
  const end = await load(total / 2, total);
  claim(
    tally.wrong === 0,
    'every request has its answer',
    `${number(total)} and ${number(tally.refused)} refused`,
  );
  claim(
    end.counts.handled === total && end.counts.ran === 3 * total,
    'tasks run = 3 × answered',
    `${number(end.counts.ran ?? 0)} = 3 × ${number(total)}`,
  );
  claim(end.counts.failed === total / 10, 'each failure is reported once', number(end.counts.failed ?? 0));
  claim(
    end.counts.cleanedUp === total / 10,
    'each generator is resumed once',
    number(end.counts.cleanedUp ?? 0),
  );
  const heap = end.heap / first.heap;
  const most = size(1.25, 1.05); // code and caches are still growing in the short form
  claim(
    heap <= most,
    `the heap after collection is at most ${most} × that at ${number(early)}`,
    `${megabytes(first.heap)}, ${megabytes(middle.heap)}, ${megabytes(end.heap)} (${heap.toFixed(3)})`,
  );
  const rss = end.rss / middle.rss;
  const limit = size(1.25, 1.05); // V8's code and young generation are still growing in the short form
  claim(
    rss <= limit,
    `RSS is at most ${limit} × that at ${number(total / 2)}`,
    `${megabytes(first.rss)}, ${megabytes(middle.rss)}, ${megabytes(end.rss)} (${rss.toFixed(3)})`,
  );
  const { sockets, requests } = end.alive;
  claim(
    end.open === 0 && sockets === 0 && requests === 0,
    'no socket and no request is left',
    `${end.open} open, ${sockets} sockets and ${requests} requests in memory`,
  );
  await claimCleanEnd(server, claim);
});

/**
 * What a body costs until it is parsed, whatever the chunks that it comes in: `node --import tsx
 * test/endurance/body-memory.ts`. All but the last byte of each body is sent, and then the memory is looked at.
 */
import { body, createApp, depends, post, request, type StandardSchema } from '../../server.ts';
import {
  type Client,
  claimCleanEnd,
  connect,
  endure,
  megabytes,
  number,
  probe,
  type Random,
  type Run,
  type Server,
  size,
  startServer,
} from './shared.ts';

const BODY_SIZE = 2 ** 20; // the default of `bodyLimit`
const MOST = 3;

const counts = {
  received: 0,
  get external(): number {
    return process.memoryUsage().external;
  },
};
const text: StandardSchema<string> = {
  '~standard': { version: 1, vendor: 'endurance', validate: (value) => ({ value: String(value) }) },
};
const counted = depends({ request }, ({ request }) => {
  request.on('data', (chunk: Buffer) => {
    counts.received += chunk.length;
  });
});

export default probe(
  createApp([post('/', { counted, value: body(text) }, ({ value }) => value.length)]),
  counts,
);

type ChunkLength = (left: number, numbers: Random) => number;

const CHUNKS: readonly (readonly [name: string, length: ChunkLength])[] = [
  ['chunks of 1 byte', () => 1],
  ['chunks of 1 to 100 bytes', (_, numbers) => 1 + numbers.below(100)],
  ['chunks of 70,000 bytes', () => 70_000],
  ['one chunk', (left) => left],
];

const HEAD =
  'POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n';
const END = '1\r\n"\r\n0\r\n\r\n';

/** A JSON string of `BODY_SIZE` bytes, without its last one. */
function chunked(length: ChunkLength, numbers: Random): Buffer {
  const body = `"${'x'.repeat(BODY_SIZE - 2)}`;
  const chunks: string[] = [HEAD];
  let from = 0;
  while (from < body.length) {
    const chunk = body.slice(from, from + length(body.length - from, numbers));
    chunks.push(chunk.length.toString(16), '\r\n', chunk, '\r\n');
    from += chunk.length;
  }
  return Buffer.from(chunks.join(''));
}

interface Memory {
  /** Of the heap and beside it, in bytes, after a collection. */
  readonly held: number;
  /** User and system time, in µs. */
  readonly cpu: number;
  readonly received: number;
}

async function memoryOf(server: Server, received: number): Promise<Memory> {
  await server.until(({ counts }) => counts.received! >= received);
  const { heap, cpu, counts } = await server.figures('collected');
  return { held: heap + counts.external!, cpu, received: counts.received! };
}

/** Opens `count` connections, sends all but the end of a body on each, and gives the memory then. */
async function hold(
  server: Server,
  bytes: Buffer,
  count: number,
  { received }: Memory,
): Promise<{ clients: Client[]; during: Memory }> {
  const clients = Array.from({ length: count }, () => connect(server.port));
  for (const client of clients) {
    client.send(bytes);
  }
  return { clients, during: await memoryOf(server, received + count * (BODY_SIZE - 1)) };
}

/** Sends the rest, and tells whether every answer was right. */
async function finish(clients: readonly Client[]): Promise<boolean> {
  let areRight = true;
  for (const client of clients) {
    client.send(END);
    const answer = await client.answer();
    areRight &&= answer?.status === 200 && answer.body === String(BODY_SIZE - 2);
    client.socket.destroy();
  }
  return areRight;
}

async function measure(server: Server, name: string, bytes: Buffer, { claim, stage }: Run): Promise<void> {
  const count = size(2, 6);
  stage(`the warm-up of ${name}`);
  const warmUp = await hold(server, bytes, 1, await memoryOf(server, 0));
  const isWarm = await finish(warmUp.clients);
  await server.until(({ open }) => open === 0, 'collected');
  stage(`${count} bodies in ${name}`);
  const before = await memoryOf(server, 0);
  const { clients, during } = await hold(server, bytes, count, before);
  const each = (during.held - before.held) / count;
  claim(
    each <= MOST * BODY_SIZE && each >= BODY_SIZE / 2,
    `in ${name}, a body of ${megabytes(BODY_SIZE)} holds at most ${MOST} times its size`,
    `${megabytes(each)}, for ${number(Math.round((during.cpu - before.cpu) / count / 1000))} ms of the CPU`,
  );
  const areRight = await finish(clients);
  await server.until(({ open, pending }) => open + pending === 0, 'collected');
  const after = await memoryOf(server, 0);
  claim(
    isWarm && areRight && after.held - before.held < BODY_SIZE / 2,
    `and is answered, and let go of`,
    megabytes(after.held - before.held),
  );
}

await endure(import.meta.url, size(120_000, 600_000), async (run) => {
  await using server = await startServer(import.meta.url, {
    NODE_OPTIONS: `${process.env.NODE_OPTIONS ?? ''} --max-old-space-size=256`,
  });
  for (const [index, [name, length]] of CHUNKS.entries()) {
    await measure(server, name, chunked(length, run.random(index)), run);
  }
  await claimCleanEnd(server, run.claim);
});

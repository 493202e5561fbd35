/** What starts a target of this repository: a free port, and the command of a server. */
import { randomInt } from 'node:crypto';
import { once } from 'node:events';
import net from 'node:net';
import { fileURLToPath } from 'node:url';

/** Below the ports that a system gives out by itself: between two starts of a target nobody else is given its port. */
let last = randomInt(20_000, 29_000);

/** A port that was free a moment ago. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = (last += 1);
    const server = net.createServer().listen(port, '127.0.0.1');
    try {
      await once(server, 'listening');
      await once(server.close(), 'close');
      return port;
    } catch {
      /* in use */
    }
  }
}

/** A shell command that runs `files` by this Node, which needs tsx only where it does not read TypeScript itself. */
export function nodeCommand(...files: readonly URL[]): string {
  const reads = (process.features as { typescript?: unknown }).typescript;
  const loader = reads ? [] : ['--import', import.meta.resolve('tsx')];
  const words = [process.execPath, ...loader, ...files.map((file) => fileURLToPath(file))];
  return words.map((word) => JSON.stringify(word)).join(' ');
}

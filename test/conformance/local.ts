/** What starts a target of this repository: a free port, and the command of a server. */
import { once } from 'node:events';
import net, { type AddressInfo } from 'node:net';
import { fileURLToPath } from 'node:url';

/** A port that was free a moment ago. */
export async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  await once(server.close(), 'close');
  return port;
}

/** A shell command that runs `files` by this Node, which needs tsx only where it does not read TypeScript itself. */
export function nodeCommand(...files: readonly URL[]): string {
  const reads = (process.features as { typescript?: unknown }).typescript;
  const loader = reads ? [] : ['--import', import.meta.resolve('tsx')];
  const words = [process.execPath, ...loader, ...files.map((file) => fileURLToPath(file))];
  return words.map((word) => JSON.stringify(word)).join(' ');
}

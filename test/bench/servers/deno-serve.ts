/**
 * Raw `Deno.serve`: what a program written for this one route does, and nothing more.
 * https://docs.deno.com/api/deno/~/Deno.ServeHandlerInfo
 */
import { address, counts, order, runTasks } from './work.ts';

/** The part of Deno that is used here; its types are not those of Node. */
declare const Deno: {
  serve(
    options: { readonly hostname: string; readonly port: number; readonly onListen: () => void },
    handler: (request: Request, info: { readonly completed: Promise<void> }) => Response,
  ): void;
};

const options = { hostname: address.host, port: address.port, onListen: () => {} };
Deno.serve(options, ({ method, url }, { completed }) => {
  if (method === 'GET') {
    return Response.json(counts);
  }
  const item = decodeURIComponent(url.slice(url.indexOf('item=') + 5));
  const run = () => runTasks(item);
  completed.then(run, run); // it rejects where the client has left
  return Response.json(order(item));
});

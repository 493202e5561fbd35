/**
 * Holds one task of each kind of request, collects all garbage and tells what is still there. A process of its own, for
 * `--expose-gc`: test/memory.test.ts starts it.
 */
import { AsyncLocalStorage } from 'node:async_hooks';
import { once } from 'node:events';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import {
  backgroundTasks,
  body,
  createApp,
  depends,
  HTTPError,
  post,
  query,
  type StandardSchema,
} from '../server.ts';

const kept = new Map<string, WeakRef<object>>();

/** An object that nobody but the server can keep. */
function made(name: string): object {
  const value = { name };
  kept.set(name, new WeakRef(value));
  return value;
}

let reach: (() => void) | undefined;
const held = new Promise<void>((resolve) => {
  reach = resolve;
});
let release: (() => void) | undefined;
const released = new Promise<void>((resolve) => {
  release = resolve;
});

async function hold(): Promise<void> {
  reach?.();
  await released;
}

const context = new AsyncLocalStorage<object>();
const parsed: StandardSchema<object> = {
  '~standard': {
    version: 1,
    vendor: 'test',
    validate: (value) => {
      kept.set('the body, parsed', new WeakRef(value as object));
      return { value: made('what the schema made of the body') };
    },
  },
};
const resolved = depends(() => made('the value of a dependency'));
const awaited = depends(async () => made('the value of an async dependency'));
const cleanedUp = depends(function* () {
  yield made('the value of a generator');
});
const outer = depends(async function* () {
  yield made('the value of a generator that is cleaning up');
  await hold();
});
const inner = depends(async function* () {
  const resource = made('what a clean-up that has ended held');
  yield resource;
  await Promise.resolve(resource);
});
const text: StandardSchema<object> = {
  '~standard': { version: 1, vendor: 'test', validate: () => ({ value: made('the value of a parameter') }) },
};

const app = createApp(
  [
    post('/arguments', { tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask((_) => {}, made('the argument of a task'));
      tasks.addTask(async (_) => {}, made('the argument of an async task'));
      tasks.addTask(() => made('what a task returned'));
      tasks.addTask(async () => made('what an async task returned'));
      tasks.addTask((_) => {
        throw made('what a task threw');
      }, made('the argument of a failed task'));
      context.run(made('the context of a task'), () => tasks.addTask(() => {}));
      tasks.addTask(hold);
    }),
    post(
      '/values',
      {
        tasks: backgroundTasks,
        parsed: body(parsed),
        resolved,
        awaited,
        cleanedUp,
        text: query('text', text),
      },
      ({ tasks }) => {
        tasks.addTask(hold);
        return made('what the handler returned');
      },
    ),
    post('/clean-ups', { outer, inner, tasks: backgroundTasks }, ({ tasks }) => {
      tasks.addTask((_) => {}, made('the argument of the last task'));
    }),
    post('/responses', { tasks: backgroundTasks }, async ({ tasks }) => {
      tasks.addTask(hold);
      const response = new Response('text');
      kept.set('the Response', new WeakRef(response));
      return response;
    }),
    post('/errors', { tasks: backgroundTasks, parsed: body(parsed), resolved }, ({ tasks }) => {
      tasks.addTask(hold);
      const error = new HTTPError(409, made('the detail of an error'));
      kept.set('what the handler threw', new WeakRef(error));
      throw error;
    }),
  ],
  { onThrow: 'run', onTaskError: () => {} },
);

const server = http.createServer((request, response) => {
  const { push } = request;
  request.push = (chunk: object | null, ...rest) => {
    if (chunk) {
      kept.set('the bytes of the body', new WeakRef(chunk));
    }
    return push.call(request, chunk, ...rest);
  };
  app.listener(request, response);
});
await once(server.listen(0, '127.0.0.1'), 'listening');
const { port } = server.address() as AddressInfo;
const headers = { 'content-type': 'application/json' };
const sent = http.request({ port, method: 'POST', path: `${process.argv[2]}?text=a`, headers, agent: false });
sent.end('{"a":1}');
const [answer] = (await once(sent, 'response')) as [http.IncomingMessage];
await once(answer.resume(), 'end');
await held;
// A reference that was followed in a turn is kept until its end.
for (let turn = 0; turn < 3; turn += 1) {
  await new Promise(setImmediate);
  globalThis.gc?.();
}
const names = [...kept.keys()];
const left = names.filter((name) => kept.get(name)?.deref());
console.log(JSON.stringify({ made: names, left, pending: app.pending }));
release?.();
await app.idle();
server.close();

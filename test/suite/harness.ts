/** The callback server: each task and checkpoint of a plan calls it, and is held until a step of the case answers. */
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import http, { type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

/** What a case did not get: the message of its verdict. */
export class Failure extends Error {}

/** Waits for `promise`, at most `ms`. The one timer of the suite: it turns a hang into a verdict. */
export async function within<T>(ms: number, what: string | (() => string), promise: Promise<T>): Promise<T> {
  const { promise: deadline, reject } = withResolvers<never>();
  const late = (): void =>
    reject(new Failure(`${typeof what === 'string' ? what : what()} did not come within ${ms} ms`));
  const timer = setTimeout(late, ms); // the deadline
  return Promise.race([promise, deadline]).finally(() => clearTimeout(timer));
}

interface Resolvers<T> {
  promise: Promise<T>;
  resolve: (value: T) => void;
  reject: (error: Error) => void;
}

/** `Promise.withResolvers`, which Node 20 does not have. */
export function withResolvers<T = void>(): Resolvers<T> {
  let resolve!: Resolvers<T>['resolve'];
  let reject!: Resolvers<T>['reject'];
  const promise = new Promise<T>((...both) => {
    [resolve, reject] = both;
  });
  return { promise, resolve, reject };
}

/** The callbacks of one plan. */
export class Callbacks {
  /** The address that the plan carries. */
  readonly url: string;
  /** The names, in the order in which they arrived. */
  readonly arrived: string[] = [];
  /** The texts that failures were answered with; each is unique. */
  readonly failures = new Map<string, string>();
  /** Calls that are none, because they are no POST to a name. */
  readonly refused: string[] = [];
  readonly #held = new Map<string, ServerResponse>();
  readonly #ahead = new Map<string, number>();
  readonly #waiting = new Set<() => void>();
  #ended = false;

  constructor(url: string) {
    this.url = url;
  }

  /** The names that arrived and were not answered. */
  get held(): string[] {
    return [...this.#held.keys()];
  }

  /** Resolves when `found` holds; it is asked now, and after each call. */
  until(found: () => boolean): Promise<void> {
    return new Promise((resolve) => {
      const look = (): void => {
        if (found() && this.#waiting.delete(look)) {
          resolve();
        }
      };
      this.#waiting.add(look);
      look();
    });
  }

  /** Answers a held call. @throws Failure if it is not held. */
  answer(name: string, status: number): void {
    const response = this.#held.get(name);
    if (!response) {
      throw new Failure(`${name} is not being held`);
    }
    this.#held.delete(name);
    const text = status === 200 ? '' : `failure ${randomBytes(6).toString('hex')}`;
    if (text) {
      this.failures.set(name, text);
    }
    reply(response, status, text);
  }

  /** Answers a call that may not have come, as soon as it does. */
  answerAhead(name: string, status: number): void {
    if (this.#held.has(name)) {
      this.answer(name, status);
    } else {
      this.#ahead.set(name, status);
    }
  }

  /** Answers what is held, and whatever still comes, so that nothing of this plan outlives its case. */
  end(): void {
    this.#ended = true;
    for (const name of this.held) {
      this.answer(name, 200);
    }
  }

  /** @internal */
  receive(name: string, response: ServerResponse): void {
    const again = this.arrived.includes(name);
    this.arrived.push(name);
    const ahead = this.#ahead.get(name);
    if (this.#ended || again) {
      reply(response, 200);
    } else {
      this.#held.set(name, response);
      if (ahead !== undefined) {
        this.answer(name, ahead);
      }
    }
    for (const look of this.#waiting) {
      look();
    }
  }

  /** @internal */
  refuse(call: string, response: ServerResponse): void {
    this.refused.push(call);
    reply(response, 404, `${call} is no call: a call is POST {callback}/{name}`);
    for (const look of this.#waiting) {
      look();
    }
  }
}

const reply = (response: ServerResponse, status: number, text = ''): void =>
  void response
    .writeHead(status, { connection: 'close', 'content-length': Buffer.byteLength(text) })
    .end(text);

export interface Harness {
  /** Answers `GET`: by then, what had called before has been counted. */
  readonly url: string;
  /** Makes the callbacks of a plan. */
  plan(): Callbacks;
  /** Requests that belong to no plan. */
  readonly strays: readonly string[];
  close(): void;
}

/** Starts the callback server on a free port of 127.0.0.1. */
export async function startHarness(): Promise<Harness> {
  const plans = new Map<string, Callbacks>();
  const strays: string[] = [];
  const secret = randomBytes(4).toString('hex');
  const server = http.createServer({ requestTimeout: 0 }, (request, response) => {
    const { method, url = '' } = request;
    if (url === `/${secret}`) {
      return reply(response, 200);
    }
    const [, token, number, name, ...more] = url.split('/');
    const callbacks = plans.get(`${token}/${number}`);
    if (callbacks && method === 'POST' && name && more.length === 0) {
      return callbacks.receive(name, response);
    }
    if (callbacks) {
      return callbacks.refuse(`${method} ${url}`, response);
    }
    strays.push(`${method} ${url}`);
    reply(response, 404, `${method} ${url} belongs to no plan`);
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const { port } = server.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}/${secret}`,
    strays,
    plan() {
      const key = `${secret}/${plans.size + 1}`;
      const callbacks = new Callbacks(`http://127.0.0.1:${port}/${key}`);
      plans.set(key, callbacks);
      return callbacks;
    },
    close() {
      server.close();
      server.closeAllConnections();
    },
  };
}

/** The client's side: requests to the target, each on a connection that its case chooses. */
import http, { type IncomingMessage } from 'node:http';
import net, { type Socket } from 'node:net';
import type { Plan } from '../../fixtures/conformance/callback.ts';
import { Failure, withResolvers } from './harness.ts';

export interface Answer {
  readonly status: number;
  /** The header `x-plan`. */
  readonly mark: string | undefined;
  readonly body: string;
}

export interface Exchange {
  /** The whole response; on a connection that closes, with its end of file. */
  readonly answer: Promise<Answer>;
  /** What has come so far, e.g. `the status 200 and 17 bytes`. */
  readonly seen: string;
  /** Leaves: closes the connection, or resets it. */
  leave(how: 'close' | 'reset'): void;
}

export type Method = 'POST' | 'HEAD';

/** Bytes of a body beyond those asked for, until it counts as endless. */
const MARGIN = 2 ** 20;

const target = (method: Method, plan: Plan): { path: string; body: string } => {
  const text = JSON.stringify(plan);
  return method === 'HEAD'
    ? { path: `/run?plan=${encodeURIComponent(text)}`, body: '' }
    : { path: '/run', body: text };
};

/** The host and port of an address as `net.connect` has them, e.g. `::1` and 80 of `http://[::1]`. */
export function addressOf(url: string): { host: string; port: number } {
  const { hostname, port } = new URL(url);
  return { host: hostname.replace(/^\[|\]$/g, ''), port: Number(port || 80) };
}

const broken = (asked: string, { message, code }: NodeJS.ErrnoException): Failure =>
  new Failure(
    `${code === 'ECONNREFUSED' ? `${asked} was refused` : `the connection of ${asked} broke`}: ${message}`,
  );

/** One request by `node:http`. `kept` makes it use the connection of an agent that keeps one. */
export function exchange(url: string, method: Method, plan: Plan, kept?: Kept): Exchange {
  const { path, body } = target(method, plan);
  const asked = `${method} ${url}/run`;
  const headers = body
    ? { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) }
    : {};
  const { promise: answer, resolve, reject } = withResolvers<Answer>();
  const request = http.request(new URL(path, url), { method, headers, agent: kept?.agent ?? false });
  let seen = 'nothing';
  request.on('error', (error) => reject(broken(asked, error)));
  request.on('close', () => {
    if (seen === 'nothing') {
      reject(new Failure(`the connection of ${asked} was closed without a response`));
    }
  });
  request.on('socket', (socket) => {
    if (kept?.socket && kept.socket !== socket) {
      reject(new Failure('the connection was not kept open'));
    }
    if (kept) {
      kept.socket = socket;
    }
  });
  request.on('response', (response: IncomingMessage) => {
    const { statusCode: status = 0 } = response;
    let body = '';
    seen = `the status ${status} and 0 bytes`;
    response.setEncoding('latin1').on('data', (chunk: string) => {
      body += chunk;
      seen = `the status ${status} and ${body.length} bytes`;
      if (body.length <= plan.size + MARGIN) {
        return;
      }
      reject(
        new Failure(`the response to ${asked} has no end: ${plan.size} bytes were asked for, got ${seen}`),
      );
      request.destroy();
    });
    response.on('error', () => reject(new Failure(`the response to ${asked} broke off after ${seen}`)));
    response.on('end', () => resolve({ status, mark: response.headers['x-plan']?.toString(), body }));
  });
  request.end(body);
  answer.catch(() => {}); // a case may not ask for it
  const leave = (how: 'close' | 'reset'): void =>
    void (how === 'reset' ? request.socket?.resetAndDestroy() : request.destroy());
  return {
    answer,
    leave,
    get seen() {
      return seen;
    },
  };
}

/** A connection that is kept between two requests of a case. */
export interface Kept {
  readonly agent: http.Agent;
  socket?: Socket;
}

export const keep = (): Kept => ({ agent: new http.Agent({ keepAlive: true, maxSockets: 1 }) });

/** Requests in raw bytes on one connection, the last of which asks to close it; the answers come with end of file. */
export class RawConnection {
  readonly #socket: Socket;
  readonly #url: string;
  readonly #end = withResolvers<string>();
  #text = '';
  #allowed = MARGIN;
  #sent = 0;

  constructor(url: string) {
    this.#url = url;
    this.#socket = net.connect(addressOf(url));
    const failed = (what: string): void => {
      this.#end.reject(new Failure(`${what}, after ${this.#seen}`));
      this.#socket.destroy();
    };
    this.#socket.setEncoding('latin1').on('data', (chunk: string) => {
      this.#text += chunk;
      if (this.#text.length > this.#allowed) {
        failed(`the response to ${this.#asked} has no end`);
      }
    });
    this.#socket.on('error', (error) => failed(broken(this.#asked, error).message));
    this.#socket.on('end', () => this.#end.resolve(this.#text));
    this.#socket.on('close', () => failed(`the connection of ${this.#asked} was closed`));
    this.#end.promise.catch(() => {});
  }

  get #asked(): string {
    return `POST ${this.#url}/run`;
  }
  get #seen(): string {
    return this.#text ? `${this.#text.length} bytes and no end of file` : 'nothing';
  }

  send(plan: Plan, last: boolean): Exchange {
    const body = JSON.stringify(plan);
    const place = this.#sent++;
    this.#allowed += plan.size;
    this.#socket.write(
      [
        'POST /run HTTP/1.1',
        `host: ${new URL(this.#url).host}`,
        'content-type: application/json',
        `content-length: ${Buffer.byteLength(body)}`,
        `connection: ${last ? 'close' : 'keep-alive'}`,
        '',
        body,
      ].join('\r\n'),
    );
    const answer = this.#end.promise.then((text) => parse(text, place));
    answer.catch(() => {});
    const seen = (): string => this.#seen;
    const leave = (how: 'close' | 'reset'): void =>
      void (how === 'reset' ? this.#socket.resetAndDestroy() : this.#socket.destroy());
    return {
      answer,
      leave,
      get seen() {
        return seen();
      },
    };
  }

  close(): void {
    this.#socket.destroy();
  }
}

/** The response at `place`. Bodies of the suite are made of `x`, so they never look like a head. */
function parse(text: string, place: number): Answer {
  const response = text.split(/(?=HTTP\/1\.1 \d{3})/)[place];
  if (!response) {
    const received = text ? JSON.stringify(text.slice(0, 400)) : 'nothing';
    throw new Failure(`the connection ended without response ${place + 1}; received: ${received}`);
  }
  const [head = '', ...rest] = response.split('\r\n\r\n');
  const mark = /^x-plan: *(.*)$/im.exec(head)?.[1];
  return { status: Number(head.slice(9, 12)), mark, body: rest.join('').replace(/[^x]/g, '') };
}

/** `GET url`, for the preflight; `signal` gives it up. */
export function getText(url: string, signal?: AbortSignal): Promise<{ status: number; text: string }> {
  const { promise, resolve, reject } = withResolvers<{ status: number; text: string }>();
  const request = http.get(url, { agent: false, ...(signal && { signal }) }, (response) => {
    let text = '';
    response.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk;
      if (text.length <= MARGIN) {
        return;
      }
      reject(new Failure(`GET ${url} is answered without an end: more than 1 MiB has come`));
      request.destroy();
    });
    response.on('error', () =>
      reject(new Failure(`the response to GET ${url} broke off after ${text.length} bytes`)),
    );
    response.on('end', () => resolve({ status: response.statusCode ?? 0, text }));
  });
  request.on('error', (error) => reject(broken(`GET ${url}`, error)));
  return promise;
}

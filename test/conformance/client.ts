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
  /** Leaves: closes the connection, or resets it. */
  leave(how: 'close' | 'reset'): void;
}

export type Method = 'POST' | 'HEAD';

const target = (method: Method, plan: Plan): { path: string; body: string } => {
  const text = JSON.stringify(plan);
  return method === 'HEAD' ? { path: `/run?plan=${encodeURIComponent(text)}`, body: '' } : { path: '/run', body: text };
};

/** One request by `node:http`. `kept` makes it use the connection of an agent that keeps one. */
export function exchange(url: string, method: Method, plan: Plan, kept?: Kept): Exchange {
  const { path, body } = target(method, plan);
  const headers = body ? { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) } : {};
  const { promise: answer, resolve, reject } = withResolvers<Answer>();
  const request = http.request(new URL(path, url), { method, headers, agent: kept?.agent ?? false });
  request.on('error', (error) => reject(new Failure(`the connection broke: ${error.message}`)));
  request.on('socket', (socket) => {
    if (kept?.socket && kept.socket !== socket) reject(new Failure('the connection was not kept open'));
    if (kept) kept.socket = socket;
  });
  request.on('response', (response: IncomingMessage) => {
    let body = '';
    response.setEncoding('latin1').on('data', (chunk: string) => { body += chunk; });
    response.on('error', () => reject(new Failure(`the response broke off after ${body.length} bytes`)));
    response.on('end', () => {
      resolve({ status: response.statusCode ?? 0, mark: response.headers['x-plan']?.toString(), body });
    });
  });
  request.end(body);
  answer.catch(() => {}); // a case may not ask for it
  return { answer, leave: (how) => void (how === 'reset' ? request.socket?.resetAndDestroy() : request.destroy()) };
}

/** A connection that is kept between two requests of a case. */
export interface Kept { readonly agent: http.Agent; socket?: Socket }

export const keep = (): Kept => ({ agent: new http.Agent({ keepAlive: true, maxSockets: 1 }) });

/** Requests in raw bytes on one connection, the last of which asks to close it; the answers come with end of file. */
export class RawConnection {
  readonly #socket: Socket;
  readonly #host: string;
  readonly #text = withResolvers<string>();
  #sent = 0;

  constructor(url: string) {
    const { hostname, port, host } = new URL(url);
    this.#host = host;
    this.#socket = net.connect(Number(port), hostname);
    let text = '';
    this.#socket.setEncoding('latin1').on('data', (chunk: string) => { text += chunk; });
    this.#socket.on('error', (error) => this.#text.reject(new Failure(`the connection broke: ${error.message}`)));
    this.#socket.on('end', () => this.#text.resolve(text));
    this.#text.promise.catch(() => {});
  }

  send(plan: Plan, last: boolean): Exchange {
    const body = JSON.stringify(plan);
    const place = this.#sent++;
    this.#socket.write([
      'POST /run HTTP/1.1', `host: ${this.#host}`, 'content-type: application/json',
      `content-length: ${Buffer.byteLength(body)}`, `connection: ${last ? 'close' : 'keep-alive'}`, '', body,
    ].join('\r\n'));
    const answer = this.#text.promise.then((text) => parse(text, place));
    answer.catch(() => {});
    return { answer, leave: (how) => void (how === 'reset' ? this.#socket.resetAndDestroy() : this.#socket.destroy()) };
  }

  close(): void { this.#socket.destroy(); }
}

/** The response at `place`. Bodies of the suite are made of `x`, so they never look like a head. */
function parse(text: string, place: number): Answer {
  const response = text.split(/(?=HTTP\/1\.1 \d{3})/)[place];
  if (!response) throw new Failure(`the connection ended without response ${place + 1}; received: ${text.slice(0, 400)}`);
  const [head = '', ...rest] = response.split('\r\n\r\n');
  const mark = /^x-plan: *(.*)$/im.exec(head)?.[1];
  return { status: Number(head.slice(9, 12)), mark, body: rest.join('').replace(/[^x]/g, '') };
}

/** `GET path`, for the preflight. */
export function getText(url: string): Promise<{ status: number; text: string }> {
  const { promise, resolve, reject } = withResolvers<{ status: number; text: string }>();
  http.get(url, { agent: false }, (response) => {
    let text = '';
    response.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk;
      if (text.length > 2 ** 20) response.destroy(new Error('more than 1 MiB'));
    });
    response.on('error', reject).on('end', () => resolve({ status: response.statusCode ?? 0, text }));
  }).on('error', reject);
  return promise;
}

/** What the tests of a shutdown share. */
import assert from 'node:assert/strict';
import { type RawClient, rawClient } from './helpers.ts';

export const submit = async (url: string): Promise<string> => (await fetch(url, { method: 'POST' })).text();

export const refusesConnections = (port: number): Promise<void> =>
  assert.rejects(rawClient(port), { code: 'ECONNREFUSED' });

export const LARGE = 2 ** 25;

/** Asks for `LARGE` characters as JSON, and has read the first ones only. */
export async function slowReader(port: number): Promise<RawClient> {
  const client = await rawClient(port);
  client.send('GET /large HTTP/1.1', 'host: a', '', '');
  await client.until('HTTP/1.1 200 OK');
  client.socket.pause();
  return client;
}

/** What is known of the mutants from earlier runs: a file that git ignores, written after each mutant. */
import { createHash } from 'node:crypto';
import { renameSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { ROOT } from './play.ts';

const FILE = fileURLToPath(new URL('.progress.json', import.meta.url));

export interface Outcome {
  /** A hash of all that the outcome depends on. */
  readonly key: string;
  /** What found the mutant: a test file, and what failed there; `null` where all tests passed. */
  readonly killedBy: { readonly file: string; readonly failure: string } | null;
}

/** By the id of the mutant. */
export type Progress = Record<string, Outcome>;

export async function readProgress(): Promise<Progress> {
  try {
    return JSON.parse(await readFile(FILE, 'utf8'));
  } catch {
    return {};
  }
}

/** Whoever stops the process meanwhile finds the old file or the new one. */
export function writeProgress(progress: Progress): void {
  writeFileSync(`${FILE}.new`, JSON.stringify(progress, null, 1));
  renameSync(`${FILE}.new`, FILE);
}

/** Changes when one of the files does. */
export async function hashOf(files: readonly string[]): Promise<string> {
  const hash = createHash('sha256');
  for (const file of files) {
    hash.update(`${file}\n`).update(await readFile(path.join(ROOT, file)));
  }
  return hash.digest('hex').slice(0, 16);
}

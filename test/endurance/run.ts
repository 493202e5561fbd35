/**
 * Runs the endurance scripts one after another: `npm run endurance`, all of them in their short form;
 * `npm run endurance -- soak shutdown`, these two; `ENDURANCE=long npm run endurance`, the long form; `SEED=…`, a
 * replay. Exits with 1 if one of them failed.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const ALL = readdirSync(new URL('.', import.meta.url))
  .map((file) => file.replace(/\.ts$/, ''))
  .filter((name) => name !== 'run' && name !== 'shared');
const names = process.argv.length > 2 ? process.argv.slice(2) : ALL;
const unknown = names.filter((name) => !ALL.includes(name));
if (unknown.length > 0) {
  console.error(`Expected some of ${ALL.join(', ')}, got ${unknown.join(', ')}.`);
  process.exit(2);
}

const failed: string[] = [];
for (const name of names) {
  const file = fileURLToPath(new URL(`${name}.ts`, import.meta.url));
  const [code] = await once(
    spawn(process.execPath, [...process.execArgv, file], { stdio: 'inherit' }),
    'close',
  );
  if (code !== 0) {
    failed.push(name);
  }
}
if (failed.length > 0) {
  console.error(`Failed: ${failed.join(', ')}.`);
  process.exitCode = 1;
}

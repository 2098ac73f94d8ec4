// What the scripts beside this file share: reading a body, and failing loudly.

import { readFileSync } from 'node:fs';

/** The bytes of FILE, or of standard input when no file is named. */
export function readBody(file) {
  return readFileSync(file ?? 0);
}

/** Says how to call the script and leaves with 2, as the daemon does for wrong usage. */
export function usage(text) {
  console.error(`usage: ${text}`);
  process.exit(2);
}

/** Whole seconds since the epoch. The SDK would read 0 and NaN as "now", so neither may pass. */
export function seconds(text) {
  if (!/^[1-9][0-9]*$/.test(text)) usage(`a time in whole seconds, not ${JSON.stringify(text)}`);
  return Number(text);
}

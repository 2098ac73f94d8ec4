// Where this machine's Chromium is. Run by itself it prints that, or leaves with 1.

import { spawnSync } from 'node:child_process';
import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';
import { pathToFileURL } from 'node:url';

/** What the packages of Debian, of Google and of others call it; the smallest comes first. */
const NAMES = ['chromium-headless-shell', 'chromium', 'google-chrome', 'chromium-browser'];

function isExecutable(path) {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** The path of the first Chromium in PATH that starts; null if there is none. */
export function findChromium() {
  const folders = (process.env.PATH ?? '').split(delimiter);
  const paths = NAMES.flatMap((name) => folders.map((folder) => join(folder, name)));
  // Ubuntu's chromium-browser is a stand-in that only asks for a snap.
  const starts = (path) => spawnSync(path, ['--version'], { stdio: 'ignore' }).status === 0;
  return paths.find((path) => isExecutable(path) && starts(path)) ?? null;
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const path = findChromium();
  if (path) console.log(path);
  process.exit(path ? 0 : 1);
}

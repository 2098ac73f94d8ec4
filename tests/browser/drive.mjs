// A browser that does as it is told: one command a line on standard input, as JSON, and one answer
// a line on standard output, {"ok": …} or {"error": "…"}. It ends when its input does.
//
//     node drive.mjs ORIGIN...
//
// The page may ask these origins and no other. One that asks elsewhere, that writes an error to the
// console (as it does when its Content-Security-Policy is violated) or throws, has a fault.

import { createInterface } from 'node:readline';
import puppeteer from 'puppeteer-core';
import { findChromium } from './chromium.mjs';
import { judge, PHONE, putOn } from './judge.mjs';

/** How long a page may take to come. */
const PATIENCE_MS = 30_000;

const origins = process.argv.slice(2);
const executablePath = findChromium();
if (!executablePath) {
  console.error('there is no Chromium here that starts: run scripts/test');
  process.exit(1);
}

// Without a profile's name it gets a fresh one in the folder for temporary files, which is removed
// at the end. Through a pipe, so that it ends with this process, however that ends.
const browser = await puppeteer.launch({
  executablePath,
  headless: 'shell',
  pipe: true,
  // Chromium refuses to sandbox what root runs; containers give it little shared memory.
  args: ['--disable-dev-shm-usage', ...(process.getuid() === 0 ? ['--no-sandbox'] : [])],
});
const [page] = await browser.pages();
let faults = [];
let loads = 0; // how many documents were loaded so far
let status = null; // of the newest

function watch() {
  page.on('load', () => {
    loads += 1;
  });
  page.on('response', (response) => {
    const isDocument = response.request().isNavigationRequest() && response.frame() === page.mainFrame();
    if (isDocument) status = response.status();
  });
  page.on('request', (request) => {
    const { origin, protocol } = new URL(request.url());
    if (protocol === 'data:' || origins.includes(origin)) return request.continue();
    faults.push(`asks another host: ${request.method()} ${request.url()}`);
    return request.abort();
  });
  page.on('console', (message) => {
    // That a document's own status is no success is for the story to judge; and some browsers ask
    // for an icon that no page speaks of.
    const { url } = message.location();
    const isStatus = message.text().startsWith('Failed to load resource');
    if (isStatus && (url === page.url() || url.endsWith('/favicon.ico'))) return;
    if (message.type() === 'error') faults.push(`console: ${message.text()}`);
  });
  page.on('pageerror', (error) => faults.push(`throws: ${error.message}`));
}

/** Waits until more documents than so many were loaded. */
function loadAfter(count) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no other page came within ${PATIENCE_MS} ms`)), PATIENCE_MS);
    const look = () => {
      if (loads <= count) return;
      page.off('load', look);
      clearTimeout(timer);
      resolve();
    };
    page.on('load', look);
    look();
  });
}

/** Whether the document sends the browser on by itself. One that is being left has just done so. */
function sendsOn() {
  const asked = page.evaluate(() => document.querySelector('meta[http-equiv=refresh]') !== null);
  return asked.catch(() => true);
}

/** Does what leads to another document; answers the status of the one where that ends. */
async function arrive(leave) {
  let before = loads;
  await leave();
  do {
    await loadAfter(before);
    before = loads;
  } while (await sendsOn());
  return status;
}

/** The visible thing that a person would call by this name. */
async function find(selector, name) {
  const handle = await page.evaluateHandle(
    (selector, name) => {
      const named = (element) => (element.labels?.[0] ?? element).innerText.trim() === name;
      const seen = [...document.querySelectorAll(selector)].filter((it) => it.checkVisibility());
      const found = seen.filter(named);
      return found.length === 1 ? found[0] : `${found.length} of ${seen.length} are called that`;
    },
    selector,
    name,
  );
  const element = handle.asElement();
  if (!element) throw new Error(`${JSON.stringify(name)}: ${await handle.jsonValue()}`);
  return element;
}

/** Buttons, and the links that are drawn as one: filled, or alone in a cell that is. */
function drawnAsButtons() {
  const filled = (element) => getComputedStyle(element).backgroundColor !== 'rgba(0, 0, 0, 0)';
  const alone = ({ parentElement: cell, offsetWidth }) => cell.clientWidth - offsetWidth < 8;
  const isButton = (element) =>
    element.matches('button, input[type=submit], [role=button]') ||
    filled(element) ||
    (filled(element.parentElement) && alone(element));
  return [...document.querySelectorAll('a[href], button, input[type=submit], [role=button]')]
    .filter((element) => element.checkVisibility() && isButton(element))
    .map((element) => (element.innerText || element.value).trim());
}

const commands = {
  /** Opens an address, with these headers, and answers its status. */
  async open({ url, headers }) {
    await page.setExtraHTTPHeaders(headers);
    return arrive(() => page.goto(url));
  },
  text: () => page.evaluate(() => document.body.innerText),
  address: () => page.url(),
  buttons: () => page.evaluate(drawnAsButtons),
  /** Clicks the link or button of this name, which leads on, and answers the next page's status. */
  async follow({ name }) {
    const element = await find('a[href], button, [role=button]', name);
    return arrive(() => element.click());
  },
  /** Writes into the field with this label. */
  async fill({ label, text }) {
    const element = await find('input, textarea', label);
    await element.type(text);
  },
  /** All that was wrong since the last time, and what is wrong with the page that is shown. */
  async faults() {
    const found = await judge(page);
    const before = faults;
    faults = [];
    return [...before, ...found];
  },
};

process.stdout.on('error', () => {}); // whoever asked has gone, and the browser goes too
await page.setRequestInterception(true);
watch();
await putOn(page, PHONE, 'light');
for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...details } = JSON.parse(line);
  const ok = async () => ({ ok: (await commands[command](details)) ?? null });
  const answer = await ok().catch((error) => ({ error: error.message }));
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();

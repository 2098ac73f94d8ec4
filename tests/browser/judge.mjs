// What is wrong with the page that a browser shows, as a person who uses it would find.

import { readFileSync } from 'node:fs';

const AXE = readFileSync(new URL('node_modules/axe-core/axe.min.js', import.meta.url), 'utf8');

/** A small phone, in pixels of CSS. Every page begins on it. */
export const PHONE = { name: 'phone', width: 360, height: 740 };
const DESKTOP = { name: 'desktop', width: 1280, height: 800 };

/** Changes the screen under the page, without loading it again. */
export async function putOn(page, { width, height }, scheme) {
  // Always as a mobile browser, which believes the page's <meta name=viewport> and nothing else;
  // and because to change this would load the page again.
  await page.setViewport({ width, height, isMobile: true });
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }]);
}

/** All faults of the page as sentences, on a phone and a desktop, in light and dark. */
export async function judge(page) {
  const faults = new Set(await keyboardFaults(page));
  const texts = new Set();
  for (const screen of [DESKTOP, PHONE]) {
    for (const scheme of ['dark', 'light']) {
      await putOn(page, screen, scheme);
      const found = [...(await widthFaults(page, screen)), ...(await axeFaults(page))];
      for (const fault of found) faults.add(`${screen.name}, ${scheme}: ${fault}`);
      texts.add(await page.evaluate(() => document.body.innerText.replace(/\s+/g, ' ').trim()));
    }
  }
  if (texts.size > 1) faults.add(`says ${texts.size} different things on different screens`);
  return [...faults];
}

async function widthFaults(page, screen) {
  return page.evaluate((width) => {
    const root = document.documentElement;
    if (root.clientWidth !== width) return [`is laid out for ${root.clientWidth} pixels of width`];
    if (root.scrollWidth <= width) return [];
    const right = (element) => element.getBoundingClientRect().right;
    const widest = [...document.body.querySelectorAll('*')].sort((a, b) => right(b) - right(a))[0];
    return [`scrolls sideways by ${root.scrollWidth - width} pixels: ${widest?.outerHTML.slice(0, 160)}`];
  }, screen.width);
}

/** What axe finds that keeps people out: poor contrast, fields without a name and the like. */
async function axeFaults(page) {
  // Past the page's policy, which lets no script in, as a browser's extension would be.
  await page.evaluate(`window.axe ?? (() => { ${AXE} })()`);
  return page.evaluate(async () => {
    // Where a page paints nothing the browser paints its own, which axe takes for white.
    const bare = (element) => getComputedStyle(element).backgroundColor === 'rgba(0, 0, 0, 0)';
    const root = document.documentElement;
    if (bare(root) && bare(document.body)) root.style.backgroundColor = 'Canvas';
    const { violations } = await window.axe.run(document, { resultTypes: ['violations'] });
    const grave = violations.filter(({ impact }) => ['serious', 'critical'].includes(impact));
    return grave.map(({ id, nodes: [first, ...others] }) => {
      const why = first.failureSummary.replace(/\s+/g, ' ');
      const more = others.length > 0 ? `, and ${others.length} more` : '';
      return `${id}: ${first.html.slice(0, 160)}: ${why}${more}`;
    });
  });
}

/** Goes through the page by the Tab key: it must reach whatever can be used, and show where it is. */
async function keyboardFaults(page) {
  const controls = await page.evaluate(() => {
    const usable = 'a[href], button, input:not([type=hidden]), select, textarea, summary';
    const left = new Set([...document.querySelectorAll(usable)].filter((it) => it.checkVisibility()));
    const hidden = [];
    window.tour = { left, hidden };
    document.addEventListener('focusin', ({ target }) => {
      const { outlineStyle, boxShadow } = getComputedStyle(target);
      if (outlineStyle === 'none' && boxShadow === 'none') hidden.push(target);
      left.delete(target);
    });
    return left.size;
  });
  // Regions that scroll are stops too.
  for (let presses = 0; presses < 2 * controls + 10; presses += 1) {
    if ((await page.evaluate(() => window.tour.left.size)) === 0) break;
    await page.keyboard.press('Tab');
  }
  return page.evaluate(() => {
    const name = (element) => element.outerHTML.slice(0, 120);
    const { left, hidden } = window.tour;
    document.activeElement?.blur();
    return [
      ...[...left].map((element) => `the keyboard does not reach ${name(element)}`),
      ...hidden.map((element) => `does not show that it has the focus: ${name(element)}`),
    ];
  });
}

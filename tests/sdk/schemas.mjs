// JSON Schemas of Stripe's requests and replies, made from the types of the official SDK.
//
// Making them takes seconds, so they are kept in node_modules, under a name that changes with the
// SDK, the generator and the list of types. What is adjusted is what TypeScript cannot say:
// - `OtherString`, which keeps enumerations open for what Stripe may add, becomes "no more": so a
//   misspelt word is found.
// - `Decimal` is a class in the SDK and a text on the wire.
// - The API knows hashes and arrays by their form; descriptions are left out for their size.

import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { ROUTES } from './routes.mjs';

const HERE = dirname(fileURLToPath(import.meta.url));
const CACHE = join(HERE, 'node_modules', '.schemas');

/** Types that no route names: what events carry, and what a fault looks like. */
const MORE_TYPES = ['StripeRawError'];

/** The types in `Customer|DeletedCustomer`, `[Customer]`, `{Customer}` or `<Customer>`. */
export function typesOf(reply) {
  return reply.replace(/^[[{<]|[\]}>]$/g, '').split('|');
}

function allTypes() {
  const named = ROUTES.flatMap(([, params, reply]) => [params, ...typesOf(reply)]);
  return [...new Set([...named, ...MORE_TYPES])].filter(Boolean).sort();
}

/** The name under which a type's schema is kept: `Billing.Meter` is `Billing_Meter`. */
export function nameOf(type) {
  return type.replaceAll('.', '_');
}

async function generate(folder) {
  const { default: TJS } = await import('typescript-json-schema');
  const source = join(folder, 'types.ts');
  const aliases = allTypes().map((type) => `export type ${nameOf(type)} = Stripe.${type};`);
  writeFileSync(source, ["import Stripe from 'stripe';", ...aliases, ''].join('\n'));
  const program = TJS.getProgramFromFiles([source], {
    target: 'es2022',
    module: 'nodenext',
    moduleResolution: 'nodenext',
    strict: true,
    skipLibCheck: true,
    types: [],
  });
  const settings = { required: true, noExtraProps: true, ignoreErrors: true };
  return TJS.generateSchema(program, '*', settings).definitions;
}

/** Short names for the definitions, because the generator's are not fit for a URI. */
function rename(definitions) {
  const wanted = new Set(allTypes().map(nameOf));
  const names = new Map();
  for (const name of Object.keys(definitions)) {
    names.set(name, wanted.has(name) ? name : `_${names.size}`);
  }
  const referred = (ref) => {
    const name = decodeURIComponent(ref.slice('#/definitions/'.length));
    if (!names.has(name)) throw new Error(`no definition of ${name}`);
    return `#/definitions/${names.get(name)}`;
  };
  const clean = (node) => {
    if (Array.isArray(node)) return node.map(clean);
    if (node === null || typeof node !== 'object') return node;
    const kept = Object.entries(node).filter(
      ([key, value]) => !(key === 'description' && typeof value === 'string'),
    );
    return Object.fromEntries(
      kept.map(([key, value]) => [
        key,
        key === '$ref' && typeof value === 'string' ? referred(value) : clean(value),
      ]),
    );
  };
  const renamed = {};
  for (const [name, definition] of Object.entries(definitions)) {
    renamed[names.get(name)] = adjusted(name, clean(definition));
  }
  return renamed;
}

function adjusted(name, definition) {
  if (/\)\.OtherString$/.test(name)) return { not: {} };
  if (/\)\.Decimal$/.test(name)) return { type: 'string', pattern: '^-?[0-9]+(\\.[0-9]+)?$' };
  // An alternative without alternatives can never be met; ajv wants that said otherwise.
  return JSON.parse(JSON.stringify(definition).replaceAll('"anyOf":[]', '"not":{}'));
}

/** One schema with a definition for every type of the routes. */
export async function schemas() {
  const lock = readFileSync(join(HERE, 'package-lock.json'));
  const self = readFileSync(fileURLToPath(import.meta.url));
  const key = createHash('sha256').update(lock).update(self).update(JSON.stringify(allTypes()));
  const path = join(CACHE, `${key.digest('hex').slice(0, 16)}.json`);
  if (existsSync(path)) return JSON.parse(readFileSync(path, 'utf8'));
  const folder = join(CACHE, `making-${process.pid}`);
  mkdirSync(folder, { recursive: true });
  const made = { $id: 'stripe', definitions: rename(await generate(folder)) };
  const whole = join(folder, 'schemas.json');
  writeFileSync(whole, JSON.stringify(made));
  // Whoever else makes them at the same time makes the same ones.
  renameSync(whole, path);
  return made;
}

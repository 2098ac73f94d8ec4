// Judges what goes over the wire between anybody and the simulator by the types of the official
// SDK. Reads one JSON object a line, and prints for each one line with a list of what is wrong.
//
//     {"method":…,"path":…,"query":…,"body":…,"status":…,"answer":…}   one call and its answer
//     {"event":{…}}                                                    one event and its object

import { createInterface } from 'node:readline';

import { Ajv } from 'ajv';

import { ROUTES } from './routes.mjs';
import { nameOf, schemas, typesOf } from './schemas.mjs';

/** The types that an event may carry, by the object's own word for itself. */
const OBJECTS = new Map(
  ROUTES.flatMap(([, , reply]) => typesOf(reply))
    .filter((type) => !/^Deleted|^EventBase$|^V2/.test(type))
    .map((type) => [type.replace(/([a-z])([A-Z])/g, '$1_$2').toLowerCase(), type]),
);
// The one word that is not made like the others.
OBJECTS.set('invoiceitem', 'InvoiceItem');

const schema = await schemas();
// A form carries texts only; a reply is judged as it is.
const strict = new Ajv({ strict: false, allErrors: true }).addSchema(schema);
const form = new Ajv({ strict: false, allErrors: true, coerceTypes: true }).addSchema(schema);

/** What is wrong with a value as one of these types; the first that fits will do. */
function mistakes(ajv, types, value, where) {
  let shortest = null;
  for (const type of types) {
    const check = ajv.getSchema(`stripe#/definitions/${nameOf(type)}`);
    if (check(value)) return [];
    // Of alternatives each complains: what says only that there are some is left out.
    const telling = check.errors.filter(
      ({ keyword, params }) => !['anyOf', 'not'].includes(keyword) && params.type !== 'null',
    );
    const found = (telling.length > 0 ? telling : check.errors).map((error) => {
      const detail = error.params.additionalProperty ?? error.params.allowedValues ?? '';
      return `${where} is no ${type}: ${error.instancePath || '/'} ${error.message} ${detail}`.trim();
    });
    if (!shortest || found.length < shortest.length) shortest = found;
  }
  return shortest.slice(0, 8);
}

/** `items[0][price]=p` as `{items: [{price: 'p'}]}`. */
export function decodeForm(text) {
  const root = {};
  for (const [name, value] of new URLSearchParams(text)) {
    const steps = name.split('[').map((step) => step.replace(/\]$/, ''));
    let node = root;
    steps.forEach((step, place) => {
      const key = step === '' ? String(Object.keys(node).length) : step;
      if (place === steps.length - 1) node[key] = value;
      else node = node[key] ??= {};
    });
  }
  return arrays(root);
}

/** A hash whose keys count up from zero is an array. */
function arrays(node) {
  if (typeof node !== 'object') return node;
  const keys = Object.keys(node);
  const values = keys.map((key) => arrays(node[key]));
  if (keys.length > 0 && keys.every((key) => /^[0-9]+$/.test(key))) return values;
  return Object.fromEntries(keys.map((key, place) => [key, values[place]]));
}

function routeOf(method, path) {
  const steps = path.split('/');
  return ROUTES.find(([pattern]) => {
    const [verb, wanted] = pattern.split(' ');
    const parts = wanted.split('/');
    const fits = (part, place) => part === steps[place] || (part.startsWith(':') && steps[place]);
    return verb === method && parts.length === steps.length && parts.every(fits);
  });
}

/** Whether the parameters are what the SDK would send. What a 400 refuses need not be. */
function judgeParameters({ method, path, query, body, status, answer }, type) {
  const json = path.startsWith('/v2/') && body !== '';
  const sent = method === 'GET' || json ? '' : body;
  const params = { ...decodeForm([query, sent].filter(Boolean).join('&')), ...(json && JSON.parse(body)) };
  const found = type
    ? mistakes(json ? strict : form, [type], params, 'the request')
    : Object.keys(params).map((name) => `the request has a parameter where none is: ${name}`);
  if (status !== 400) return found;
  const { code } = answer.error ?? {};
  const slandered = code === 'parameter_unknown' && found.length === 0;
  return slandered ? [`a parameter that the SDK knows is called unknown: ${body || query}`] : [];
}

function judgeObject(types, object, where) {
  return types[0] === 'EventBase' ? judgeEvent(object) : mistakes(strict, types, object, where);
}

function judgeAnswer({ status, answer }, reply) {
  if (status >= 400) return mistakes(strict, ['StripeRawError'], answer.error, 'the error');
  if (!/^[[{<]/.test(reply)) return judgeObject(typesOf(reply), answer, 'the answer');
  const { data, ...rest } = answer;
  if (!isList(reply[0], rest) || !Array.isArray(data)) return ['the answer is no list'];
  return data.flatMap((row) => judgeObject(typesOf(reply), row, 'a row of the list'));
}

/** Whether what stands around the rows is all that Stripe puts there. */
function isList(kind, { object, has_more: more, url, ...rest }) {
  const { next_page: next, next_page_url: nextUrl, previous_page_url: previousUrl, ...others } = rest;
  const text = (value) => value === null || typeof value === 'string';
  if (Object.keys(others).length > 0) return false;
  if (kind === '<') return object === undefined && text(nextUrl) && text(previousUrl);
  const cursor = kind === '{' ? text(next) && object === 'search_result' : object === 'list';
  return cursor && typeof more === 'boolean' && typeof url === 'string';
}

function judgeCall(call) {
  const route = routeOf(call.method, call.path);
  if (!route) return call.status === 404 ? [] : ['the SDK knows no such call'];
  const [, params, reply] = route;
  const found = judgeParameters(call, params);
  // Cut off, or from a proxy: there is no answer of Stripe's to judge.
  const json = typeof call.answer === 'object' && call.answer !== null;
  return json ? [...found, ...judgeAnswer(call, reply)] : found;
}

/** The SDK types what an event carries as empty hashes: they are judged by themselves. */
function judgeEvent(event) {
  const { object, previous_attributes: previous, ...data } = event.data;
  const type = OBJECTS.get(object.object);
  if (!type) return [`an event carries an unknown object: ${object.object}`];
  const envelope = { ...event, data: { ...data, object: {} } };
  const invented = Object.keys(previous ?? {}).filter((field) => !(field in object));
  return [
    ...mistakes(strict, ['EventBase'], envelope, 'the event'),
    ...mistakes(strict, [type], object, 'the event’s object'),
    ...invented.map((field) => `what changed is no field of the object: ${field}`),
  ];
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

// Whoever asks waits for a line: a fault of the judge's own is told in one as well.
process.on('uncaughtException', (error) => {
  console.log(JSON.stringify([`the judge: ${error.stack}`]));
  process.exit(1);
});

for await (const line of createInterface({ input: process.stdin })) {
  const { event, ...call } = JSON.parse(line);
  const found = event ? judgeEvent(event) : judgeCall({ ...call, answer: parsed(call.answer) });
  const what = event ? event.type : `${call.method} ${call.path} ${call.status}`;
  console.log(JSON.stringify(found.map((mistake) => `${what}: ${mistake}`)));
}

// Prints the Stripe-Signature header that the official SDK makes for a body.

import Stripe from 'stripe';

import { readBody, seconds, usage } from './input.mjs';

const [secret, timestamp, file] = process.argv.slice(2);
if (!secret || !timestamp) usage('sign.mjs SECRET TIMESTAMP_SECONDS [BODY_FILE]');

// The SDK signs a string; bytes that are not UTF-8 would be signed as something else.
const payload = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(readBody(file));
const header = Stripe.webhooks.generateTestHeaderString({
  payload,
  secret,
  timestamp: seconds(timestamp),
});
console.log(header);

// Asks the official SDK whether it accepts a Stripe-Signature header for a body, and prints its
// verdict as one JSON line: {"accepted":true,"id":…,"type":…} or {"accepted":false,"message":…}.
// A refusal is an answer and leaves with 0; anything else that goes wrong does not.

import Stripe from 'stripe';

import { readBody, seconds, usage } from './input.mjs';

const [secret, header, receivedAt, file] = process.argv.slice(2);
if (!secret || header === undefined || !receivedAt) {
  usage('verify.mjs SECRET HEADER RECEIVED_AT_SECONDS [BODY_FILE]');
}

function verdict(body, receivedAtMs) {
  try {
    const { id, type } = Stripe.webhooks.constructEvent(
      body,
      header,
      secret,
      Stripe.webhooks.DEFAULT_TOLERANCE,
      undefined, // the SDK's own HMAC
      receivedAtMs,
    );
    return { accepted: true, id, type };
  } catch (error) {
    if (error instanceof Stripe.errors.StripeSignatureVerificationError) {
      return { accepted: false, message: error.message.split('\n')[0] };
    }
    throw error;
  }
}

console.log(JSON.stringify(verdict(readBody(file), seconds(receivedAt) * 1000)));

// Walks the official SDK through one customer's life against any server that speaks Stripe's API:
// meter, product, prices, customer, subscription, upgrade, usage. Every answer is checked; the
// first surprise ends the walk with 1. On success the last line is a JSON summary.
//
// Names carry a random tail, because a lookup key and a meter's event name are unique in an
// account, and the walk may be taken twice.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';

import { connect } from './connect.mjs';
import { usage } from './input.mjs';

const [baseUrl, key] = process.argv.slice(2);
if (!baseUrl || !key) usage('drive.mjs BASE_URL KEY');

/** A product with a metered and two flat prices: one plan to start on and one to move to. */
async function catalogue(stripe, tail) {
  const meter = await stripe.billing.meters.create({
    display_name: 'AI runs',
    event_name: `ai_runs_${tail}`,
    default_aggregation: { formula: 'sum' },
  });
  assert.equal(meter.object, 'billing.meter');
  assert.equal(meter.status, 'active');

  const product = await stripe.products.create({ name: 'Starter' });
  assert.equal(product.object, 'product');

  const flat = (name, amount) =>
    stripe.prices.create({
      product: product.id,
      currency: 'usd',
      unit_amount: amount,
      recurring: { interval: 'month' },
      lookup_key: `${name}_monthly_${tail}`,
    });
  const starter = await flat('starter', 2900);
  const pro = await flat('pro', 9900);
  assert.equal(starter.unit_amount, 2900);
  assert.equal(starter.lookup_key, `starter_monthly_${tail}`);

  const found = await stripe.prices.list({ lookup_keys: [pro.lookup_key] });
  assert.deepEqual(found.data.map((price) => price.id), [pro.id]);
  return { meter, product, starter, pro };
}

async function customer(stripe, tail) {
  const created = await stripe.customers.create({
    name: 'Ada Example',
    email: 'ada@example.com',
    metadata: { tollgate_customer_id: `acme_${tail}` },
  });
  const read = await stripe.customers.retrieve(created.id);
  assert.equal(read.id, created.id);
  assert.equal(read.email, 'ada@example.com');
  assert.equal(read.metadata.tollgate_customer_id, `acme_${tail}`);
  return read;
}

/** By invoice, because Stripe refuses an automatic charge of a customer without a card. */
async function subscribe(stripe, customerId, { starter, pro }) {
  const created = await stripe.subscriptions.create({
    customer: customerId,
    items: [{ price: starter.id }],
    billing_mode: { type: 'flexible' },
    collection_method: 'send_invoice',
    days_until_due: 30,
  });
  assert.equal(created.status, 'active');
  const [item] = created.items.data;
  assert.ok(item.current_period_end > item.current_period_start, 'the period is on the item');

  const listed = await stripe.subscriptions.list({ customer: customerId, status: 'all' });
  assert.deepEqual(listed.data.map((subscription) => subscription.id), [created.id]);

  // The item is named: without its id the new price would be added beside the old one.
  const upgraded = await stripe.subscriptions.update(created.id, {
    items: [{ id: item.id, price: pro.id }],
    proration_behavior: 'none',
  });
  assert.deepEqual(upgraded.items.data.map((each) => each.price.id), [pro.id]);
  assert.equal(upgraded.items.data[0].id, item.id);
  assert.equal(upgraded.items.data[0].current_period_end, item.current_period_end);
  return upgraded;
}

/** Sends usage, and sends it again: the same identifier is refused, even with a new request. */
async function meter(stripe, customerId, eventName) {
  const event = {
    event_name: eventName,
    identifier: randomUUID(),
    payload: { stripe_customer_id: customerId, value: '3' },
  };
  const sent = await stripe.billing.meterEvents.create(event);
  assert.equal(sent.identifier, event.identifier);

  const refusal = await stripe.billing.meterEvents.create(event).then(
    () => assert.fail('the same identifier was taken twice'),
    (error) => error,
  );
  assert.equal(refusal.type, 'StripeInvalidRequestError', String(refusal));
  assert.equal(refusal.statusCode, 400);
  assert.equal(refusal.code, undefined);
  assert.match(refusal.message, new RegExp(`already exists with identifier ${event.identifier}`));
  return { identifier: event.identifier, refusal: refusal.message };
}

const tail = randomUUID().slice(0, 8);
const stripe = connect(baseUrl, key);
const plans = await catalogue(stripe, tail);
const { id: customerId } = await customer(stripe, tail);
const subscription = await subscribe(stripe, customerId, plans);
const usageSent = await meter(stripe, customerId, plans.meter.event_name);

console.log(
  JSON.stringify({
    customer: customerId,
    product: plans.product.id,
    meter: plans.meter.id,
    event_name: plans.meter.event_name,
    prices: { starter: plans.starter.id, pro: plans.pro.id },
    subscription: subscription.id,
    identifier: usageSent.identifier,
    duplicate_message: usageSent.refusal,
  }),
);

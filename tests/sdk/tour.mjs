// Leads the official SDK through everything that provisioning and upgrades need of a server that
// speaks Stripe's API: meters, prices and their keys, webhook endpoints, Checkout, the portal,
// previews, changes that wait for a payment, schedules, test clocks, lists, and thin events. Every
// answer is checked; the first surprise ends the tour with 1.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';

import { connect } from './connect.mjs';
import { usage } from './input.mjs';

const [baseUrl, key] = process.argv.slice(2);
if (!baseUrl || !key) usage('tour.mjs BASE_URL KEY');

const stripe = connect(baseUrl, key);
const tail = randomUUID().slice(0, 8);

/** Without a card a subscription that is charged by itself is refused. */
const card = {
  payment_method: 'pm_card_visa',
  invoice_settings: { default_payment_method: 'pm_card_visa' },
};

async function refusal(promise) {
  return promise.then(
    () => assert.fail('it was not refused'),
    (error) => error,
  );
}

async function meters() {
  const meter = await stripe.billing.meters.create({
    display_name: 'Runs',
    event_name: `tour_${tail}`,
    default_aggregation: { formula: 'sum' },
    customer_mapping: { event_payload_key: 'stripe_customer_id', type: 'by_id' },
    value_settings: { event_payload_key: 'value' },
  });
  await stripe.billing.meters.update(meter.id, { display_name: 'AI runs' });
  assert.equal((await stripe.billing.meters.deactivate(meter.id)).status, 'inactive');
  const inactive = await stripe.billing.meters.list({ status: 'inactive' });
  assert.ok(inactive.data.some(({ id }) => id === meter.id));
  assert.equal((await stripe.billing.meters.reactivate(meter.id)).display_name, 'AI runs');
  const again = { display_name: 'x', event_name: `tour_${tail}`, default_aggregation: { formula: 'sum' } };
  assert.equal((await refusal(stripe.billing.meters.create(again))).statusCode, 400);
  return meter;
}

async function prices() {
  const make = async (name, amount) => {
    const product = await stripe.products.create({ id: `${name}_${tail}`, name });
    return stripe.prices.create({
      product: product.id,
      currency: 'usd',
      unit_amount: amount,
      recurring: { interval: 'month' },
      lookup_key: `${name}_${tail}`,
    });
  };
  const [starter, pro] = [await make('starter', 2900), await make('pro', 9900)];
  const dearer = await stripe.prices.create({
    product: pro.product,
    currency: 'usd',
    unit_amount: 12_900,
    recurring: { interval: 'month' },
    lookup_key: `pro_${tail}`,
    transfer_lookup_key: true,
  });
  assert.equal((await stripe.prices.retrieve(pro.id)).lookup_key, null);
  const found = await stripe.prices.list({ lookup_keys: [`pro_${tail}`], expand: ['data.product'] });
  assert.deepEqual(found.data.map(({ id, product }) => [id, product.name]), [[dearer.id, 'pro']]);
  return { starter, pro: dearer };
}

async function endpoints() {
  const endpoint = await stripe.webhookEndpoints.create({
    url: 'http://127.0.0.1:9/hook',
    enabled_events: ['customer.subscription.updated'],
    api_version: '2026-09-30.endive',
    metadata: { tollgate: 'yes' },
  });
  assert.match(endpoint.secret, /^whsec_/);
  const changed = await stripe.webhookEndpoints.update(endpoint.id, { enabled_events: ['invoice.paid'] });
  assert.deepEqual(changed.enabled_events, ['invoice.paid']);
  assert.equal((await stripe.webhookEndpoints.retrieve(endpoint.id)).secret, undefined);
  assert.equal((await stripe.webhookEndpoints.del(endpoint.id)).deleted, true);
}

async function destinations() {
  const { eventDestinations } = stripe.v2.core;
  const made = await eventDestinations.create({
    name: 'Tollgate',
    type: 'webhook_endpoint',
    event_payload: 'thin',
    enabled_events: ['v1.billing.meter.error_report_triggered'],
    webhook_endpoint: { url: 'http://127.0.0.1:9/hook' },
    include: ['webhook_endpoint.signing_secret', 'webhook_endpoint.url'],
  });
  assert.match(made.webhook_endpoint.signing_secret, /^whsec_/);
  const changed = await eventDestinations.update(made.id, { name: 'Tollgate 2' });
  assert.deepEqual([changed.name, changed.webhook_endpoint.url], ['Tollgate 2', undefined]);
  const listed = await eventDestinations.list({ include: ['webhook_endpoint.url'] });
  assert.ok(listed.data.some((row) => row.webhook_endpoint.url === 'http://127.0.0.1:9/hook'));
  await eventDestinations.del(made.id);
  assert.equal((await refusal(eventDestinations.retrieve(made.id))).statusCode, 404);
}

async function checkout(customer, price) {
  const session = await stripe.checkout.sessions.create({
    mode: 'subscription',
    customer,
    client_reference_id: `acme_${tail}`,
    success_url: 'https://example.com/done',
    cancel_url: 'https://example.com/back',
    line_items: [{ price, quantity: 1 }],
    subscription_data: { metadata: { a: 'b' }, billing_mode: { type: 'flexible' } },
  });
  assert.equal(session.status, 'open');
  const paid = await fetch(`${session.url}/pay`, { method: 'POST', redirect: 'manual' });
  assert.equal(paid.headers.get('location'), 'https://example.com/done');
  const done = await stripe.checkout.sessions.retrieve(session.id, { expand: ['subscription'] });
  assert.deepEqual([done.status, done.subscription.status], ['complete', 'active']);
  return done.subscription;
}

async function portal(customer, subscription, { starter, pro }) {
  const configuration = await stripe.billingPortal.configurations.create({
    business_profile: { headline: 'Plans' },
    features: {
      subscription_update: {
        enabled: true,
        default_allowed_updates: ['price'],
        proration_behavior: 'always_invoice',
        products: [starter, pro].map((price) => ({ product: price.product, prices: [price.id] })),
      },
    },
  });
  await stripe.billingPortal.configurations.update(configuration.id, { metadata: { tollgate: 'yes' } });
  const flow = (price) => ({
    customer,
    configuration: configuration.id,
    return_url: 'https://example.com/account',
    flow_data: {
      type: 'subscription_update_confirm',
      subscription_update_confirm: {
        subscription: subscription.id,
        items: [{ id: subscription.items.data[0].id, price, quantity: 1 }],
      },
    },
  });
  const session = await stripe.billingPortal.sessions.create(flow(pro.id));
  await fetch(`${session.url}/confirm`, { method: 'POST', redirect: 'manual' });
  const changed = await stripe.subscriptions.retrieve(subscription.id);
  assert.equal(changed.items.data[0].price.id, pro.id);
  const foreign = await refusal(stripe.billingPortal.sessions.create(flow('price_none')));
  assert.equal(foreign.statusCode, 400);
}

/** The price changes only once the holder of the card has confirmed the payment. */
async function confirmation(customer, subscription, { starter, pro }) {
  const item = subscription.items.data[0].id;
  await stripe.subscriptions.update(subscription.id, {
    items: [{ id: item, price: starter.id, quantity: 1 }],
    proration_behavior: 'none',
  });
  const card = await stripe.paymentMethods.attach('pm_card_authenticationRequired', { customer });
  await stripe.subscriptions.update(subscription.id, { default_payment_method: card.id });
  const change = { items: [{ id: item, price: pro.id, quantity: 1 }], proration_behavior: 'always_invoice' };
  const preview = await stripe.invoices.createPreview({
    subscription: subscription.id,
    subscription_details: change,
  });
  const waiting = await stripe.subscriptions.update(subscription.id, {
    ...change,
    payment_behavior: 'pending_if_incomplete',
    expand: ['latest_invoice'],
  });
  assert.equal(waiting.items.data[0].price.id, starter.id);
  assert.equal(waiting.pending_update.subscription_items[0].price.id, pro.id);
  assert.equal(waiting.latest_invoice.amount_due, preview.amount_due);
  await fetch(`${waiting.latest_invoice.hosted_invoice_url}/pay`, { method: 'POST' });
  const paid = await stripe.subscriptions.retrieve(subscription.id);
  assert.equal(paid.items.data[0].price.id, pro.id);
}

async function downgrade(subscription, { starter, pro }) {
  const schedule = await stripe.subscriptionSchedules.create({ from_subscription: subscription.id });
  const [{ start_date, end_date }] = schedule.phases;
  const changed = await stripe.subscriptionSchedules.update(schedule.id, {
    end_behavior: 'release',
    phases: [
      { items: [{ price: pro.id, quantity: 1 }], start_date, end_date },
      { items: [{ price: starter.id, quantity: 1 }], proration_behavior: 'none' },
    ],
  });
  assert.equal(changed.phases[1].items[0].price, starter.id);
  assert.equal((await stripe.subscriptionSchedules.release(schedule.id)).status, 'released');
}

async function clock(price) {
  const made = await stripe.testHelpers.testClocks.create({ frozen_time: 1_800_000_000 });
  const customer = await stripe.customers.create({ test_clock: made.id, ...card });
  const subscription = await stripe.subscriptions.create({ customer: customer.id, items: [{ price }] });
  await stripe.testHelpers.testClocks.advance(made.id, { frozen_time: 1_800_000_000 + 40 * 86_400 });
  assert.equal((await stripe.testHelpers.testClocks.retrieve(made.id)).status, 'ready');
  const [item] = (await stripe.subscriptions.retrieve(subscription.id)).items.data;
  assert.ok(item.current_period_start > subscription.created);
  await stripe.testHelpers.testClocks.del(made.id);
}

async function lists() {
  for (let n = 0; n < 12; n += 1) await stripe.customers.create({ email: `c${n}@${tail}.example.com` });
  const first = await stripe.customers.list();
  assert.deepEqual([first.data.length, first.has_more], [10, true]);
  let seen = 0;
  for await (const customer of stripe.customers.list({ limit: 5 })) seen += customer.object === 'customer';
  assert.ok(seen >= 12, `${seen}`);
  const unknown = await refusal(stripe.customers.list({ color: 'red' }));
  assert.equal(unknown.code, 'parameter_unknown');
  assert.ok((await stripe.events.list({ delivery_success: false, limit: 3 })).data);
  assert.equal((await stripe.accounts.retrieveCurrent()).object, 'account');
}

const meter = await meters();
const plans = await prices();
await endpoints();
await destinations();
const customer = await stripe.customers.create({ email: 'ada@example.com' });
const subscription = await checkout(customer.id, plans.starter.id);
await portal(customer.id, subscription, plans);
await confirmation(customer.id, subscription, plans);
await downgrade(subscription, plans);
await clock(plans.starter.id);
await lists();
await stripe.customers.del(customer.id);
assert.equal((await stripe.customers.retrieve(customer.id)).deleted, true);
console.log(JSON.stringify({ meter: meter.id, customer: customer.id, subscription: subscription.id }));

"""Leads Stripe's SDK for Python through the essentials of a server that speaks Stripe's API: create,
retrieve, list, delete, refusals, usage, and a signature. The first surprise ends it with 1."""

import json
import sys
import time
import uuid

import stripe

base_url, key = sys.argv[1:3]
tail = uuid.uuid4().hex[:8]
client = stripe.StripeClient(key, base_addresses={"api": base_url}, max_network_retries=0)

meter = client.v1.billing.meters.create(
    {
        "display_name": "Runs",
        "event_name": f"py_{tail}",
        "default_aggregation": {"formula": "sum"},
    }
)
product = client.v1.products.create({"name": "Starter"})
price = client.v1.prices.create(
    {
        "product": product.id,
        "currency": "usd",
        "unit_amount": 2900,
        "recurring": {"interval": "month"},
        "lookup_key": f"py_{tail}",
    }
)
found = client.v1.prices.list({"lookup_keys": [f"py_{tail}"]})
assert [row.id for row in found.data] == [price.id], found

customer = client.v1.customers.create(
    {
        "email": "ada@example.com",
        "payment_method": "pm_card_visa",
        "invoice_settings": {"default_payment_method": "pm_card_visa"},
    }
)
subscription = client.v1.subscriptions.create(
    {"customer": customer.id, "items": [{"price": price.id}]}
)
assert subscription.status == "active", subscription
read = client.v1.subscriptions.retrieve(subscription.id, {"expand": ["latest_invoice"]})
assert read.latest_invoice.status == "paid", read
listed = client.v1.subscriptions.list({"customer": customer.id, "status": "all"})
assert [row.id for row in listed.auto_paging_iter()] == [subscription.id], listed

event = {
    "event_name": f"py_{tail}",
    "identifier": f"py_{tail}",
    "payload": {"stripe_customer_id": customer.id, "value": "3"},
}
client.v1.billing.meter_events.create(event)
try:
    client.v1.billing.meter_events.create(event)
    raise AssertionError("the same identifier was taken twice")
except stripe.InvalidRequestError as error:
    assert error.http_status == 400 and error.code is None, error
day_s = 86_400
today_s = int(time.time()) // day_s * day_s
summaries = client.v1.billing.meters.event_summaries.list(
    meter.id,
    {"customer": customer.id, "start_time": today_s - 400 * day_s, "end_time": today_s + 400 * day_s},
)
assert sum(row.aggregated_value for row in summaries.data) == 3, summaries

try:
    client.v1.customers.retrieve("cus_none")
    raise AssertionError("there is no such customer")
except stripe.InvalidRequestError as error:
    assert error.code == "resource_missing", error
canceled = client.v1.subscriptions.cancel(subscription.id)
assert canceled.status == "canceled", canceled
assert client.v1.customers.delete(customer.id).deleted is True
kinds = {row.type for row in client.v1.events.list({"limit": 100}).data}
assert {"customer.subscription.deleted", "customer.deleted"} <= kinds, kinds

print(json.dumps({"customer": customer.id, "subscription": subscription.id}))

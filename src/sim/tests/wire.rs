//! What the simulator says is understood by the types our own client parses with.

use stripe_shared::SubscriptionStatus;
use stripe_types::List;

use super::*;

fn parsed<T: miniserde::Deserialize>(json: &Value) -> T {
    let text = json.to_string();
    miniserde::json::from_str(&text).unwrap_or_else(|_| panic!("does not parse: {json:#}"))
}

#[tokio::test]
async fn customers_and_the_catalog_parse() {
    let desk = desk().await;
    let made = desk.make("/v1/customers", &[("email", "ada@example.com")]).await;
    let customer: stripe_shared::Customer = parsed(&made);
    assert_eq!(customer.email.as_deref(), Some("ada@example.com"));
    let customers: List<stripe_shared::Customer> =
        parsed(&desk.get("/v1/customers", &[]).await.json);
    assert_eq!(customers.data.len(), 1);
    let deleted = desk.delete(&format!("/v1/customers/{}", id(&made))).await.json;
    let deleted: stripe_shared::DeletedCustomer = parsed(&deleted);
    assert_eq!(deleted.id.as_str(), id(&made));
    let prices: List<stripe_shared::Price> = parsed(&desk.get("/v1/prices", &[]).await.json);
    assert_eq!(prices.data.len(), 3);
    assert!(!prices.has_more);
    let products: List<stripe_shared::Product> = parsed(&desk.get("/v1/products", &[]).await.json);
    assert_eq!(products.data.len(), 3);
}

#[tokio::test]
async fn subscriptions_parse_in_every_shape() {
    let desk = desk().await;
    let trial = [("trial_period_days", "14")];
    let trialing = desk.subscribe("pro_monthly", &trial).await;
    let trialing: stripe_shared::Subscription = parsed(&trialing);
    assert_eq!(trialing.status, SubscriptionStatus::Trialing);
    let made = desk.subscribe("pro_monthly", &[]).await;
    let path = format!("/v1/subscriptions/{}", id(&made));
    let active: stripe_shared::Subscription = parsed(&made);
    let item = &active.items.data[0];
    assert_eq!(item.price.lookup_key.as_deref(), Some("pro_monthly"));
    assert_eq!(item.current_period_end, seconds("2026-12-01T00:00:00Z"));
    let wide = [("expand[]", "customer"), ("expand[]", "latest_invoice")];
    let wide: stripe_shared::Subscription = parsed(&desk.get(&path, &wide).await.json);
    assert!(wide.customer.is_object());
    let canceled: stripe_shared::Subscription = parsed(&desk.delete(&path).await.json);
    assert_eq!(canceled.status, SubscriptionStatus::Canceled);
    let all = desk.get("/v1/subscriptions", &[("status", "all")]).await.json;
    let all: List<stripe_shared::Subscription> = parsed(&all);
    assert_eq!(all.data.len(), 2);
}

#[tokio::test]
async fn invoices_and_events_parse() {
    let desk = desk().await;
    desk.subscribe("pro_monthly", &[]).await;
    let invoices: List<stripe_shared::Invoice> = parsed(&desk.get("/v1/invoices", &[]).await.json);
    assert_eq!(invoices.data[0].amount_paid, 9_900);
    let events: List<stripe_shared::Event> = parsed(&desk.get("/v1/events", &[]).await.json);
    assert_eq!(events.data[0].type_.as_str(), "invoice.payment_succeeded");
}

#[tokio::test]
async fn meter_events_parse() {
    let desk = desk().await;
    let customer = desk.customer().await;
    let form = [
        ("event_name", "ai_runs"),
        ("payload[stripe_customer_id]", customer.as_str()),
        ("payload[value]", "2"),
        ("identifier", "w1"),
    ];
    let event = desk.make("/v1/billing/meter_events", &form).await;
    let event: stripe_billing::BillingMeterEvent = parsed(&event);
    assert_eq!((event.identifier.as_str(), event.payload["value"].as_str()), ("w1", "2"));
}

#[tokio::test]
async fn checkouts_schedules_clocks_and_cards_parse() {
    let desk = desk().await;
    let subscription = desk.subscribe("starter_monthly", &[]).await;
    let customer = subscription["customer"].as_str().unwrap();
    let price = desk.price("pro_monthly").await;
    let form = [
        ("mode", "subscription"),
        ("customer", customer),
        ("success_url", "https://example.com/done"),
        ("line_items[0][price]", &price),
        ("line_items[0][quantity]", "1"),
    ];
    let session = desk.make("/v1/checkout/sessions", &form).await;
    let open: stripe_shared::CheckoutSession = parsed(&session);
    assert!(open.url.is_some());
    let form = [("from_subscription", &*id(&subscription))];
    let schedule: stripe_shared::SubscriptionSchedule =
        parsed(&desk.make("/v1/subscription_schedules", &form).await);
    assert_eq!(schedule.phases.len(), 1);
    let form = [("frozen_time", "1800000000")];
    let clock: stripe_shared::TestHelpersTestClock =
        parsed(&desk.make("/v1/test_helpers/test_clocks", &form).await);
    assert_eq!(clock.frozen_time, 1_800_000_000);
    let path = "/v1/payment_methods/pm_card_visa/attach";
    let card: stripe_shared::PaymentMethod =
        parsed(&desk.make(path, &[("customer", customer)]).await);
    assert!(card.card.is_some());
    let _account: stripe_shared::Account = parsed(&desk.get("/v1/account", &[]).await.json);
}

#[tokio::test]
async fn a_subscription_with_a_waiting_change_parses_and_so_does_a_preview() {
    let desk = desk().await;
    let made = desk.subscribe("starter_monthly", &[]).await;
    desk.sim.set_card(made["customer"].as_str().unwrap(), crate::sim::Card::Declines).unwrap();
    let item = id(&made["items"]["data"][0]);
    let price = desk.price("pro_monthly").await;
    let form = [
        ("items[0][id]", item.as_str()),
        ("items[0][price]", &price),
        ("proration_behavior", "always_invoice"),
        ("payment_behavior", "pending_if_incomplete"),
    ];
    let path = format!("/v1/subscriptions/{}", id(&made));
    let waiting: stripe_shared::Subscription = parsed(&desk.make(&path, &form).await);
    assert!(waiting.pending_update.is_some());
    let form = [("subscription", &*id(&made))];
    let preview: stripe_shared::Invoice =
        parsed(&desk.make("/v1/invoices/create_preview", &form).await);
    assert_eq!(preview.amount_due, 2_900);
    let paused: stripe_shared::Subscription =
        parsed(&desk.make(&format!("{path}/pause"), &[]).await);
    assert_eq!(paused.status, SubscriptionStatus::Paused);
}

#[tokio::test]
async fn meters_their_summaries_and_the_portal_parse() {
    let desk = desk().await;
    let meters: List<stripe_billing::BillingMeter> =
        parsed(&desk.get("/v1/billing/meters", &[]).await.json);
    assert_eq!(meters.data[0].event_name, "ai_runs");
    let customer = desk.customer().await;
    let form = [
        ("event_name", "ai_runs"),
        ("payload[stripe_customer_id]", customer.as_str()),
        ("payload[value]", "2"),
    ];
    desk.make("/v1/billing/meter_events", &form).await;
    let path = format!("/v1/billing/meters/{}/event_summaries", desk.meter().await);
    let (from, to) = (seconds(START).to_string(), (seconds(START) + 60).to_string());
    let query = [("customer", customer.as_str()), ("start_time", &from), ("end_time", &to)];
    let summaries: List<stripe_billing::BillingMeterEventSummary> =
        parsed(&desk.get(&path, &query).await.json);
    assert_eq!(summaries.data.len(), 1);
    let form = [("features[invoice_history][enabled]", "true")];
    let made = desk.make("/v1/billing_portal/configurations", &form).await;
    let configuration: stripe_billing::BillingPortalConfiguration = parsed(&made);
    assert!(!configuration.is_default, "that is for the Dashboard to say");
    let form = [("customer", customer.as_str()), ("configuration", &*id(&made))];
    let made = desk.make("/v1/billing_portal/sessions", &form).await;
    let session: stripe_billing::BillingPortalSession = parsed(&made);
    assert_eq!(session.customer, customer);
}

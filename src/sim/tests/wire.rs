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

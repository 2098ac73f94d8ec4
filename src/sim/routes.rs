//! The way from an address to the function that answers it.

use serde_json::Value;

use super::answer::ApiError;
use super::params::Params;
use super::state::Call;
use super::{
    account, catalog, checkout, clocks, customers, destinations, events, invoices, meters, one_off,
    payments, portal, preview, schedules, search, subscriptions, thin, updates, webhooks,
};

type Answered = Result<Value, ApiError>;

/// Answers a call, or `None` if Stripe has no such address.
pub(super) fn route(
    call: &mut Call<'_>,
    method: &str,
    path: &str,
    params: Params,
) -> Option<Answered> {
    let steps: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match steps.as_slice() {
        ["v2", "core", steps @ ..] => version_2(call, method, steps, params),
        ["v1", "billing", steps @ ..] => billing(call, method, steps, params),
        ["v1", "billing_portal", steps @ ..] => billing_portal(call, method, steps, params),
        ["v1", "test_helpers", "test_clocks", steps @ ..] => {
            test_clocks(call, method, steps, params)
        }
        ["v1", "subscriptions", steps @ ..] => subscription(call, method, steps, params),
        ["v1", "subscription_schedules", steps @ ..] => schedule(call, method, steps, params),
        ["v1", "invoices", steps @ ..] => invoice(call, method, steps, params),
        ["v1", "checkout", "sessions", steps @ ..] => checkout(call, method, steps, params),
        ["v1", steps @ ..] => rest(call, method, steps, params),
        _ => None,
    }
}

fn version_2(
    call: &mut Call<'_>,
    method: &str,
    steps: &[&str],
    params: Params,
) -> Option<Answered> {
    Some(match (method, steps) {
        ("GET", ["events", id]) => thin::retrieve(call, id, params),
        ("POST", ["event_destinations"]) => destinations::create(call, params),
        ("GET", ["event_destinations"]) => destinations::list(call, params),
        ("GET", ["event_destinations", id]) => destinations::retrieve(call, id, params),
        ("POST", ["event_destinations", id]) => destinations::update(call, id, params),
        ("POST", ["event_destinations", id, "enable"]) => {
            destinations::set_enabled(call, id, true, params)
        }
        ("POST", ["event_destinations", id, "ping"]) => destinations::ping(call, id, params),
        ("POST", ["event_destinations", id, "disable"]) => {
            destinations::set_enabled(call, id, false, params)
        }
        ("DELETE", ["event_destinations", id]) => destinations::delete(call, id, params),
        _ => return None,
    })
}

fn rest(call: &mut Call<'_>, method: &str, steps: &[&str], params: Params) -> Option<Answered> {
    Some(match (method, steps) {
        ("GET", ["account"]) => account::retrieve(call, params),
        ("POST", ["customers"]) => customers::create(call, params),
        ("GET", ["customers"]) => customers::list(call, params),
        ("GET", ["customers", "search"]) => search::customers(call, params),
        ("GET", ["customers", id]) => customers::retrieve(call, id, params),
        ("POST", ["customers", id]) => customers::update(call, id, params),
        ("DELETE", ["customers", id]) => customers::delete(call, id, params),
        ("POST", ["products"]) => catalog::create_product(call, params),
        ("GET", ["products"]) => catalog::list_products(call, params),
        ("GET", ["products", id]) => catalog::retrieve_product(call, id, params),
        ("POST", ["products", id]) => catalog::update_product(call, id, params),
        ("DELETE", ["products", id]) => catalog::delete_product(call, id, params),
        ("POST", ["prices"]) => catalog::create_price(call, params),
        ("GET", ["prices"]) => catalog::list_prices(call, params),
        ("GET", ["prices", id]) => catalog::retrieve_price(call, id, params),
        ("POST", ["prices", id]) => catalog::update_price(call, id, params),
        ("GET", ["payment_methods"]) => payments::list(call, params),
        ("GET", ["payment_methods", id]) => payments::retrieve(call, id, params),
        ("POST", ["payment_methods", id, "attach"]) => payments::attach(call, id, params),
        ("POST", ["payment_methods", id, "detach"]) => payments::detach(call, id, params),
        ("POST", ["invoiceitems"]) => one_off::create_item(call, params),
        ("GET", ["events"]) => events::list(call, params),
        ("GET", ["events", id]) => events::retrieve(call, id, params),
        ("POST", ["webhook_endpoints"]) => webhooks::create(call, params),
        ("GET", ["webhook_endpoints"]) => webhooks::list(call, params),
        ("GET", ["webhook_endpoints", id]) => webhooks::retrieve(call, id, params),
        ("POST", ["webhook_endpoints", id]) => webhooks::update(call, id, params),
        ("DELETE", ["webhook_endpoints", id]) => webhooks::delete(call, id, params),
        _ => return None,
    })
}

fn subscription(
    call: &mut Call<'_>,
    method: &str,
    steps: &[&str],
    params: Params,
) -> Option<Answered> {
    Some(match (method, steps) {
        ("POST", []) => subscriptions::create(call, params),
        ("GET", []) => subscriptions::list(call, params),
        ("GET", ["search"]) => search::subscriptions(call, params),
        ("GET", [id]) => subscriptions::retrieve(call, id, params),
        ("POST", [id]) => updates::update(call, id, params),
        ("DELETE", [id]) => subscriptions::cancel(call, id, params),
        ("POST", [id, "pause"]) => subscriptions::pause(call, id, params),
        ("POST", [id, "resume"]) => subscriptions::resume(call, id, params),
        _ => return None,
    })
}

fn schedule(call: &mut Call<'_>, method: &str, steps: &[&str], params: Params) -> Option<Answered> {
    Some(match (method, steps) {
        ("POST", []) => schedules::create(call, params),
        ("GET", []) => schedules::list(call, params),
        ("GET", [id]) => schedules::retrieve(call, id, params),
        ("POST", [id]) => schedules::update(call, id, params),
        ("POST", [id, "release"]) => schedules::release(call, id, params),
        ("POST", [id, "cancel"]) => schedules::cancel(call, id, params),
        _ => return None,
    })
}

fn invoice(call: &mut Call<'_>, method: &str, steps: &[&str], params: Params) -> Option<Answered> {
    Some(match (method, steps) {
        ("POST", []) => one_off::create(call, params),
        ("GET", []) => invoices::list(call, params),
        ("POST", ["create_preview"]) => preview::create(call, params),
        ("GET", [id]) => invoices::retrieve(call, id, params),
        ("POST", [id, "pay"]) => invoices::pay(call, id, params),
        ("POST", [id, "finalize"]) => invoices::finalize_now(call, id, params),
        ("POST", [id, "void"]) => invoices::void_now(call, id, params),
        _ => return None,
    })
}

fn checkout(call: &mut Call<'_>, method: &str, steps: &[&str], params: Params) -> Option<Answered> {
    Some(match (method, steps) {
        ("POST", []) => checkout::create(call, params),
        ("GET", []) => checkout::list(call, params),
        ("GET", [id]) => checkout::retrieve(call, id, params),
        ("POST", [id, "expire"]) => checkout::expire(call, id, params),
        _ => return None,
    })
}

fn billing(call: &mut Call<'_>, method: &str, steps: &[&str], params: Params) -> Option<Answered> {
    Some(match (method, steps) {
        ("POST", ["meters"]) => meters::create(call, params),
        ("GET", ["meters"]) => meters::list(call, params),
        ("GET", ["meters", id]) => meters::retrieve(call, id, params),
        ("POST", ["meters", id]) => meters::update(call, id, params),
        ("POST", ["meters", id, "deactivate"]) => meters::set_active(call, id, false, params),
        ("POST", ["meters", id, "reactivate"]) => meters::set_active(call, id, true, params),
        ("GET", ["meters", id, "event_summaries"]) => meters::list_summaries(call, id, params),
        ("POST", ["meter_events"]) => meters::create_event(call, params),
        _ => return None,
    })
}

fn billing_portal(
    call: &mut Call<'_>,
    method: &str,
    steps: &[&str],
    params: Params,
) -> Option<Answered> {
    Some(match (method, steps) {
        ("POST", ["configurations"]) => portal::create_configuration(call, params),
        ("GET", ["configurations"]) => portal::list_configurations(call, params),
        ("GET", ["configurations", id]) => portal::retrieve_configuration(call, id, params),
        ("POST", ["configurations", id]) => portal::update_configuration(call, id, params),
        ("POST", ["sessions"]) => portal::create_session(call, params),
        _ => return None,
    })
}

fn test_clocks(
    call: &mut Call<'_>,
    method: &str,
    steps: &[&str],
    params: Params,
) -> Option<Answered> {
    Some(match (method, steps) {
        ("POST", []) => clocks::create(call, params),
        ("GET", []) => clocks::list(call, params),
        ("GET", [id]) => clocks::retrieve(call, id, params),
        ("POST", [id, "advance"]) => clocks::advance(call, id, params),
        ("DELETE", [id]) => clocks::delete(call, id, params),
        _ => return None,
    })
}

//! Subscription schedules: phases that follow one another, enough for a change at a period's end.

use serde_json::{Value, json};

use super::answer::ApiError;
use super::calendar::Interval;
use super::events::{record, record_update};
use super::life::{self, Status, Subscription};
use super::params::{MetadataChange, Params};
use super::state::{Call, Due, Page, text};
use super::{subscriptions, updates};

/// Stripe's parameters of a schedule that the simulator refuses.
const NOT_SIMULATED: [&str; 5] =
    ["billing_mode", "customer_account", "default_settings", "pause_schedules", "start_date"];
const PHASE_NOT_SIMULATED: [&str; 14] = [
    "add_invoice_items",
    "application_fee_percent",
    "automatic_tax",
    "billing_cycle_anchor",
    "billing_thresholds",
    "currency",
    "default_tax_rates",
    "description",
    "discounts",
    "duration",
    "iterations",
    "on_behalf_of",
    "transfer_data",
    "trial_end",
];
const ITEM_NOT_SIMULATED: [&str; 7] =
    ["billing_thresholds", "discounts", "plan", "price_data", "tax_rates", "trial", "trial_offer"];
const END_BEHAVIORS: [&str; 2] = ["cancel", "release"];
const PRORATIONS: [&str; 3] = ["always_invoice", "create_prorations", "none"];

/// A schedule over a subscription whose first phase is the running period as it is.
fn around(call: &mut Call<'_>, mut subscription: Subscription) -> Value {
    let start_s = subscription.items.iter().map(|item| item.period_start_s).max();
    let start_s = start_s.unwrap_or(subscription.created_s);
    let end_s = subscription.last_period_end_s();
    let items: Vec<Value> = subscription
        .items
        .iter()
        .map(|item| render_item(&item.price, item.quantity, &json!(item.metadata)))
        .collect();
    let mut phase =
        render_phase(&subscription.currency, start_s, end_s, items, "create_prorations");
    phase["collection_method"] = subscription.collection_method.into();
    phase["default_payment_method"] = subscription.default_payment_method.clone();
    let schedule = json!({
        "id": call.id("sub_sched"),
        "object": "subscription_schedule",
        "application": null,
        "billing_mode": { "flexible": null, "type": subscription.billing_mode },
        "canceled_at": null,
        "completed_at": null,
        "created": call.now_s(),
        "current_phase": { "end_date": end_s, "start_date": start_s },
        "customer": subscription.customer,
        "customer_account": null,
        "default_settings": {
            "application_fee_percent": null,
            "automatic_tax": { "disabled_reason": null, "enabled": false, "liability": null },
            "billing_cycle_anchor": "automatic",
            "billing_thresholds": null,
            "collection_method": "charge_automatically",
            "default_payment_method": null,
            "description": null,
            "invoice_settings": {
                "account_tax_ids": null, "custom_fields": null, "days_until_due": null,
                "description": null, "footer": null, "issuer": { "type": "self" },
            },
            "on_behalf_of": null,
            "transfer_data": null,
        },
        "end_behavior": "release",
        "livemode": false,
        "metadata": {},
        "phases": [phase],
        "released_at": null,
        "released_subscription": null,
        "status": "active",
        "subscription": subscription.id,
        "test_clock": subscription.test_clock,
    });
    subscription.schedule = Some(text(&schedule, "id").to_owned());
    record(call, "subscription_schedule.created", &schedule, None);
    save(call, schedule.clone());
    life::change(call, subscription);
    schedule
}

fn render_item(price: &str, quantity: Option<u64>, metadata: &Value) -> Value {
    let mut item = json!({
        "billing_thresholds": null, "discounts": [], "metadata": metadata, "plan": price,
        "price": price, "tax_rates": [],
    });
    if let Some(quantity) = quantity {
        item["quantity"] = quantity.into();
    }
    item
}

fn render_phase(
    currency: &str,
    start_s: i64,
    end_s: i64,
    items: Vec<Value>,
    proration: &str,
) -> Value {
    json!({
        "add_invoice_items": [],
        "application_fee_percent": null,
        "billing_cycle_anchor": null,
        "billing_thresholds": null,
        "collection_method": null,
        "currency": currency,
        "default_payment_method": null,
        "default_tax_rates": [],
        "description": null,
        "discounts": [],
        "end_date": end_s,
        "invoice_settings": null,
        "items": items,
        "metadata": {},
        "on_behalf_of": null,
        "proration_behavior": proration,
        "start_date": start_s,
        "transfer_data": null,
        "trial_end": null,
    })
}

/// Stores a schedule and plans the end of its current phase.
fn save(call: &mut Call<'_>, schedule: Value) {
    let id = text(&schedule, "id").to_owned();
    let customer = text(&schedule, "customer").to_owned();
    let end_of = |schedule: &Value| {
        let runs = schedule["status"] == "active";
        schedule["current_phase"]["end_date"].as_i64().filter(|_| runs)
    };
    let planned_at_s = call.state.schedules.get(&id).and_then(end_of);
    let timetable = call.state.timetable_of(&customer);
    if let Some(at_s) = planned_at_s {
        timetable.remove(&(at_s, Due::Schedule(id.clone())));
    }
    if let Some(at_s) = end_of(&schedule) {
        timetable.insert((at_s, Due::Schedule(id)));
    }
    call.state.schedules.put(schedule);
}

pub(super) fn create(call: &mut Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let from = params.text("from_subscription")?;
    let metadata = params.metadata()?;
    let others = params.names().any(|name| name != "expand");
    let Some(id) = from else {
        params.finish(&[&NOT_SIMULATED[..], &["customer", "end_behavior", "phases"]].concat())?;
        return Err(ApiError::missing("from_subscription"));
    };
    if others || metadata.is_some() {
        let message = "You cannot set other parameters when `from_subscription` is set.";
        return Err(ApiError::invalid("from_subscription", message));
    }
    let subscription = subscriptions::find(call, &id)
        .map_err(|_| ApiError::no_such_param("subscription", &id, "from_subscription"))?;
    call.enter_time_of(&subscription.customer);
    if subscription.status.is_terminal() || subscription.schedule.is_some() {
        let message = "You cannot migrate a subscription that is already attached to a schedule \
                       or has ended.";
        return Err(ApiError::invalid("from_subscription", message));
    }
    Ok(around(call, subscription))
}

fn find(call: &Call<'_>, id: &str) -> Result<Value, ApiError> {
    let schedule = call.state.schedules.get(id).cloned();
    schedule.ok_or_else(|| ApiError::no_such("subscription schedule", id))
}

pub(super) fn retrieve(call: &Call<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish(&[])?;
    find(call, id)
}

pub(super) fn list(call: &Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::read_with_created(&mut params)?;
    let customer = params.text("customer")?;
    params.finish(&[
        "canceled_at",
        "completed_at",
        "customer_account",
        "released_at",
        "scheduled",
    ])?;
    let schedules = call.state.schedules.iter().rev().cloned();
    page.cut("/v1/subscription_schedules", "subscription schedule", schedules, |schedule| {
        customer.as_ref().is_none_or(|id| schedule["customer"] == id.as_str())
    })
}

/// Replaces the phases from the current one on; the current one keeps its start.
pub(super) fn update(call: &mut Call<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let before = find(call, id)?;
    call.enter_time_of(text(&before, "customer"));
    if before["status"] != "active" {
        let message = "You can only update a subscription schedule that is active.";
        return Err(ApiError::refused(message));
    }
    let end_behavior = params.word("end_behavior", &END_BEHAVIORS)?;
    params.word("proration_behavior", &PRORATIONS)?;
    let metadata = params.metadata()?;
    let phases = read_phases(call, &mut params, &before)?;
    params.finish(&NOT_SIMULATED)?;
    let mut after = before.clone();
    if let Some(phases) = phases {
        let (start, end) = (phases[0]["start_date"].clone(), phases[0]["end_date"].clone());
        after["current_phase"] = json!({ "end_date": end, "start_date": start });
        after["phases"] = phases.into();
    }
    let changes = vec![("end_behavior", end_behavior.map(Value::from))];
    super::catalog::apply(&mut after, changes, metadata.as_ref());
    record_update(call, "subscription_schedule.updated", &before, &after);
    save(call, after.clone());
    Ok(after)
}

fn read_phases(
    call: &Call<'_>,
    params: &mut Params,
    schedule: &Value,
) -> Result<Option<Vec<Value>>, ApiError> {
    let current = &schedule["phases"][0];
    let mut start_s = current["start_date"].as_i64().unwrap_or_default();
    let mut phases: Vec<Value> = Vec::new();
    for mut phase in params.sections("phases")? {
        let mut items = Vec::new();
        for mut item in phase.sections("items")? {
            let price = item.required_text("price")?;
            if call.state.prices.get(&price).is_none() {
                return Err(ApiError::no_such_param("price", &price, "phases[items][price]"));
            }
            let metadata = MetadataChange::fresh(item.metadata()?);
            items.push(render_item(&price, item.count("quantity")?, &json!(metadata)));
            item.finish(&ITEM_NOT_SIMULATED)?;
        }
        if items.is_empty() {
            return Err(phase.missing("items"));
        }
        let named_start_s = phase.integer("start_date")?;
        if named_start_s.is_some_and(|named_s| named_s != start_s) {
            let message = "Phases must follow one another; the current phase keeps its start.";
            return Err(ApiError::invalid("phases[start_date]", message));
        }
        let proration = phase.word("proration_behavior", &PRORATIONS)?;
        let end_s = phase.integer("end_date")?.unwrap_or(i64::MAX);
        let metadata = MetadataChange::fresh(phase.metadata()?);
        let ways = ["charge_automatically", "send_invoice"];
        let way = phase.word("collection_method", &ways)?;
        let method = phase.text("default_payment_method")?;
        if let Some(mut settings) = phase.section("invoice_settings")? {
            settings.count("days_until_due")?;
            settings.finish(&["account_tax_ids", "issuer"])?;
        }
        phase.finish(&PHASE_NOT_SIMULATED)?;
        if end_s <= start_s {
            return Err(ApiError::invalid("phases[end_date]", "A phase must end after its start."));
        }
        let proration = proration.unwrap_or("create_prorations");
        let currency = text(current, "currency");
        let mut shown = render_phase(currency, start_s, end_s, items, proration);
        shown["metadata"] = metadata.into();
        shown["collection_method"] = way.into();
        shown["default_payment_method"] = method.into();
        phases.push(shown);
        start_s = end_s;
    }
    close_open_phase(call, &mut phases)?;
    Ok((!phases.is_empty()).then_some(phases))
}

/// Only the last phase may lack an end; it then lasts for one interval of its first price.
fn close_open_phase(call: &Call<'_>, phases: &mut [Value]) -> Result<(), ApiError> {
    let open = phases.iter().position(|phase| phase["end_date"] == i64::MAX);
    match open {
        None => Ok(()),
        Some(place) if place + 1 == phases.len() => {
            let phase = &mut phases[place];
            let start_s = phase["start_date"].as_i64().unwrap_or_default();
            let price = call.state.prices.get(text(&phase["items"][0], "price"));
            let recurring = price.map(|price| price["recurring"].clone()).unwrap_or_default();
            let count = recurring["interval_count"].as_i64().unwrap_or(1);
            let interval = Interval::new(text(&recurring, "interval"), count);
            phase["end_date"] = interval.next_boundary(start_s, start_s).into();
            Ok(())
        }
        Some(_) => Err(ApiError::missing("phases[end_date]")),
    }
}

/// Lets the subscription go on without the schedule.
pub(super) fn release(
    call: &mut Call<'_>,
    id: &str,
    mut params: Params,
) -> Result<Value, ApiError> {
    params.boolean("preserve_cancel_date")?;
    params.finish(&[])?;
    let schedule = running(call, id)?;
    call.enter_time_of(text(&schedule, "customer"));
    Ok(let_go(call, schedule))
}

/// Cancels the schedule and its subscription at once.
pub(super) fn cancel(call: &mut Call<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    params.boolean("invoice_now")?;
    params.boolean("prorate")?;
    params.finish(&[])?;
    let mut schedule = running(call, id)?;
    call.enter_time_of(text(&schedule, "customer"));
    let subscription = call.state.subscriptions.get(text(&schedule, "subscription")).cloned();
    schedule["status"] = "canceled".into();
    schedule["canceled_at"] = call.now_s().into();
    schedule["current_phase"] = Value::Null;
    record(call, "subscription_schedule.canceled", &schedule, None);
    save(call, schedule.clone());
    if let Some(mut subscription) = subscription {
        subscription.schedule = None;
        life::end(call, subscription);
    }
    Ok(schedule)
}

fn running(call: &Call<'_>, id: &str) -> Result<Value, ApiError> {
    let schedule = find(call, id)?;
    if schedule["status"] == "active" {
        return Ok(schedule);
    }
    let status = text(&schedule, "status");
    Err(ApiError::refused(format!("You cannot change a subscription schedule that is {status}.")))
}

fn let_go(call: &mut Call<'_>, mut schedule: Value) -> Value {
    let subscription = call.state.subscriptions.get(text(&schedule, "subscription")).cloned();
    schedule["status"] = "released".into();
    schedule["released_at"] = call.now_s().into();
    schedule["released_subscription"] = schedule["subscription"].take();
    schedule["current_phase"] = Value::Null;
    record(call, "subscription_schedule.released", &schedule, None);
    save(call, schedule.clone());
    if let Some(mut subscription) = subscription {
        subscription.schedule = None;
        life::change(call, subscription);
    }
    schedule
}

/// The current phase ends: the next one begins, or the schedule is over.
pub(super) fn take_next_step(call: &mut Call<'_>, id: &str) {
    let Some(before) = call.state.schedules.get(id).cloned() else { return };
    let mut after = before.clone();
    let now_s = call.now_s();
    let phases = before["phases"].as_array().cloned().unwrap_or_default();
    let subscription = call.state.subscriptions.get(text(&before, "subscription")).cloned();
    let Some(subscription) = subscription.filter(|found| !found.status.is_terminal()) else {
        return;
    };
    let next = phases.iter().find(|phase| phase["start_date"] == now_s);
    let Some(next) = next else {
        if before["end_behavior"] == "cancel" {
            life::end(call, subscription);
        } else {
            let_go(call, before);
        }
        return;
    };
    after["current_phase"] =
        json!({ "end_date": next["end_date"], "start_date": next["start_date"] });
    record_update(call, "subscription_schedule.updated", &before, &after);
    save(call, after);
    enter_phase(call, subscription, next);
}

/// Gives the subscription the items of a phase. A phase that begins with a period is due before
/// the renewal, so that the new period is billed at the new price.
fn enter_phase(call: &mut Call<'_>, subscription: Subscription, phase: &Value) {
    let wanted = phase["items"].as_array().cloned().unwrap_or_default();
    let mut form: Vec<(String, String)> = Vec::new();
    for place in 0..wanted.len().max(subscription.items.len()) {
        let name = |field: &str| format!("items[{place}][{field}]");
        if let Some(item) = subscription.items.get(place) {
            form.push((name("id"), item.id.clone()));
        }
        match wanted.get(place) {
            Some(item) => form.push((name("price"), text(item, "price").to_owned())),
            None => form.push((name("deleted"), "true".to_owned())),
        }
        if let Some(quantity) = wanted.get(place).and_then(|item| item["quantity"].as_u64()) {
            form.push((name("quantity"), quantity.to_string()));
        }
    }
    // What a phase does not say of it is as its customer pays.
    let method = phase["default_payment_method"].as_str().unwrap_or_default();
    form.push(("default_payment_method".into(), method.to_owned()));
    form.push(("proration_behavior".into(), text(phase, "proration_behavior").to_owned()));
    let pairs: Vec<(&str, &str)> =
        form.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    // A phase that cannot be entered, for its price is gone, leaves everything as it is.
    let _ = updates::update(call, &subscription.id, Params::from_pairs(&pairs));
}

/// Moves a subscription with one item to another price when its period ends.
pub(super) fn change_at_period_end(
    call: &mut Call<'_>,
    subscription: Subscription,
    price: &str,
) -> Result<(), ApiError> {
    if subscription.status == Status::Canceled {
        return Err(ApiError::refused("The subscription has ended."));
    }
    let quantity = subscription.items.first().and_then(|item| item.quantity);
    let before = around(call, subscription);
    let mut after = before.clone();
    let end_s = before["current_phase"]["end_date"].as_i64().unwrap_or_default();
    let items = vec![render_item(price, quantity, &json!({}))];
    let currency = text(&before["phases"][0], "currency");
    let mut phases = before["phases"].as_array().cloned().unwrap_or_default();
    let mut next = render_phase(currency, end_s, i64::MAX, items, "none");
    for name in ["collection_method", "default_payment_method"] {
        next[name] = phases[0][name].clone();
    }
    phases.push(next);
    close_open_phase(call, &mut phases)?;
    after["phases"] = phases.into();
    record_update(call, "subscription_schedule.updated", &before, &after);
    save(call, after);
    Ok(())
}

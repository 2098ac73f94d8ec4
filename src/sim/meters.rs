//! Meters, meter events and their summaries.
//!
//! A 200 for a meter event means "received": an event for an unknown customer or meter is accepted
//! and comes to nothing, which a thin event tells some seconds later.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use serde_json::{Value, json};

use super::answer::ApiError;
use super::decimal::{Decimal, NotDecimal};
use super::events::{record, record_update};
use super::params::Params;
use super::state::{Call, Page, State, exists, text};
use super::thin;
use crate::clock::Timestamp;

const MINUTE_S: i64 = 60;
const HOUR_S: i64 = 3600;
const DAY_S: i64 = 86_400;
/// How old an event may be.
const PAST_S: i64 = 35 * DAY_S;
/// How far ahead of now an event may be.
const AHEAD_S: i64 = 5 * MINUTE_S;
/// How long an identifier is remembered.
const IDENTIFIER_KEPT_S: i64 = DAY_S;

/// A meter event that Stripe received.
#[derive(Clone, Debug, PartialEq)]
pub struct MeterEvent {
    pub identifier: String,
    pub event_name: String,
    /// The Stripe customer the payload names.
    pub customer: String,
    /// 1 if the payload has no value, which only counting meters allow.
    pub value: Decimal,
    /// The event's own time, in seconds; billing follows this.
    pub timestamp_s: i64,
    pub received_at: Timestamp,
    /// Stripe's code if the event failed after it was accepted, so that it counts for nothing.
    pub failure: Option<&'static str>,
}

/// Everything received, and the identifiers that are still remembered.
#[derive(Default)]
pub(super) struct MeterEvents {
    pub received: Vec<MeterEvent>,
    received_at_s: HashMap<String, i64>,
}

pub(super) fn create(call: &mut Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let display_name = params.required_text("display_name")?;
    let event_name = params.required_text("event_name")?;
    let aggregation = params.section("default_aggregation")?;
    let mut aggregation = aggregation.ok_or_else(|| params.missing("default_aggregation"))?;
    let formula = aggregation.word("formula", &["sum", "count", "last"])?;
    let formula = formula.ok_or_else(|| aggregation.missing("formula"))?;
    aggregation.finish(&[])?;
    let customer_key = read_payload_key(&mut params, "customer_mapping", "stripe_customer_id")?;
    let value_key = read_payload_key(&mut params, "value_settings", "value")?;
    params.finish(&["event_time_window"])?;
    if event_name.chars().count() > 100 {
        return Err(ApiError::invalid("event_name", "event_name may be at most 100 characters."));
    }
    // One meter owns an event name for good; the wording is ours, Stripe's is not known.
    if call.state.meters.iter().any(|meter| text(meter, "event_name") == event_name) {
        let message = format!("A meter already exists with event name {event_name}.");
        return Err(ApiError::already_exists(&message));
    }
    let now_s = call.now_s();
    let meter = json!({
        "id": call.id("mtr"),
        "object": "billing.meter",
        "created": now_s,
        "customer_mapping": { "event_payload_key": customer_key, "type": "by_id" },
        "default_aggregation": { "formula": formula },
        "display_name": display_name,
        "event_name": event_name,
        "event_time_window": null,
        "livemode": false,
        "status": "active",
        "status_transitions": { "deactivated_at": null },
        "updated": now_s,
        "value_settings": { "event_payload_key": value_key },
    });
    record(call, "billing.meter.created", &meter, None);
    call.state.meters.put(meter.clone());
    Ok(meter)
}

fn read_payload_key(params: &mut Params, name: &str, default: &str) -> Result<String, ApiError> {
    let Some(mut section) = params.section(name)? else { return Ok(default.to_owned()) };
    let key = section.required_text("event_payload_key")?;
    if name == "customer_mapping" && section.word("type", &["by_id"])?.is_none() {
        return Err(section.missing("type"));
    }
    section.finish(&[])?;
    Ok(key)
}

fn find(call: &Call<'_>, id: &str) -> Result<Value, ApiError> {
    call.state.meters.get(id).cloned().ok_or_else(|| ApiError::no_such("billing meter", id))
}

pub(super) fn retrieve(call: &Call<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish(&[])?;
    find(call, id)
}

/// Only the display name of a meter can change.
pub(super) fn update(call: &mut Call<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let display_name = params.text("display_name")?;
    params.finish(&[])?;
    let before = find(call, id)?;
    let mut meter = before.clone();
    if let Some(name) = display_name {
        meter["display_name"] = name.into();
    }
    Ok(store_change(call, "billing.meter.updated", &before, meter))
}

/// Switches a meter off (`active` false) or on again.
pub(super) fn set_active(
    call: &mut Call<'_>,
    id: &str,
    active: bool,
    params: Params,
) -> Result<Value, ApiError> {
    params.finish(&[])?;
    let before = find(call, id)?;
    let mut meter = before.clone();
    let (status, deactivated_at, event) = if active {
        ("active", Value::Null, "billing.meter.reactivated")
    } else {
        ("inactive", call.now_s().into(), "billing.meter.deactivated")
    };
    if before["status"] == status {
        return Err(ApiError::refused(format!("The meter is already {status}.")));
    }
    meter["status"] = status.into();
    meter["status_transitions"]["deactivated_at"] = deactivated_at;
    Ok(store_change(call, event, &before, meter))
}

fn store_change(call: &mut Call<'_>, event: &str, before: &Value, mut meter: Value) -> Value {
    if *before != meter {
        meter["updated"] = call.now_s().into();
    }
    record_update(call, event, before, &meter);
    call.state.meters.put(meter.clone());
    meter
}

pub(super) fn list(call: &Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::read(&mut params)?;
    let status = params.word("status", &["active", "inactive"])?;
    params.finish(&[])?;
    let meters = call.state.meters.iter().rev().cloned();
    page.cut("/v1/billing/meters", "billing meter", meters, |meter| {
        status.is_none_or(|status| text(meter, "status") == status)
    })
}

pub(super) fn create_event(call: &mut Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let event_name = params.required_text("event_name")?;
    let identifier = params.text("identifier")?.unwrap_or_else(|| call.id("mev"));
    let timestamp_s = params.integer("timestamp")?.unwrap_or(call.now_s());
    let payload = params.text_map("payload")?.ok_or_else(|| params.missing("payload"))?;
    params.finish(&[])?;
    for (name, value) in [("event_name", &event_name), ("identifier", &identifier)] {
        if value.chars().count() > 100 {
            let message = format!("{name} may be at most 100 characters.");
            return Err(ApiError::invalid(name, message));
        }
    }
    check_time(timestamp_s, call.now_s())?;
    let meter = meter_of(call.state, &event_name).cloned();
    let (customer, value) = read_payload(meter.as_ref(), &payload)?;
    let failure = failure_of(call, meter.as_ref(), &customer);
    if let Some(code) = failure.filter(|_| call.faults.refuse_meter_events_at_once) {
        return Err(match code {
            "meter_event_customer_not_found" => {
                ApiError::no_such_param("customer", &customer, "payload[stripe_customer_id]")
            }
            _ => ApiError::refused(format!("No active meter found for event name {event_name}.")),
        });
    }
    let now_s = call.now_s();
    let events = &mut call.state.meter_events;
    let seen_at_s = events.received_at_s.get(&identifier);
    if seen_at_s.is_some_and(|seen_at_s| now_s - seen_at_s < IDENTIFIER_KEPT_S) {
        return Err(ApiError::duplicate_identifier(&identifier));
    }
    events.received_at_s.insert(identifier.clone(), now_s);
    events.received.push(MeterEvent {
        identifier: identifier.clone(),
        event_name: event_name.clone(),
        customer,
        value,
        timestamp_s,
        received_at: call.now,
        failure,
    });
    if failure.is_some() {
        thin::plan_report(call);
    }
    Ok(json!({
        "object": "billing.meter_event",
        "created": now_s,
        "event_name": event_name,
        "identifier": identifier,
        "livemode": false,
        "payload": payload,
        "timestamp": timestamp_s,
    }))
}

fn meter_of<'a>(state: &'a State, event_name: &str) -> Option<&'a Value> {
    state.meters.iter().find(|meter| text(meter, "event_name") == event_name)
}

/// The window is 35 days back and five minutes ahead, both ends included. The text for the past
/// is known from reports, the one for the future is ours.
fn check_time(timestamp_s: i64, now_s: i64) -> Result<(), ApiError> {
    let earliest_s = now_s - PAST_S;
    let message = if timestamp_s < earliest_s {
        format!(
            "The event timestamp cannot be more than 35 days in past. Expected a timestamp \
             greater than or equal to {earliest_s}."
        )
    } else if timestamp_s > now_s + AHEAD_S {
        "The event timestamp cannot be more than 5 minutes in the future.".to_owned()
    } else {
        return Ok(());
    };
    Err(ApiError::invalid("timestamp", message))
}

/// The customer and the value that the payload names under the meter's keys.
fn read_payload(
    meter: Option<&Value>,
    payload: &BTreeMap<String, String>,
) -> Result<(String, Decimal), ApiError> {
    let key = |settings: &str, default: &'static str| match meter {
        Some(meter) => text(&meter[settings], "event_payload_key").to_owned(),
        None => default.to_owned(),
    };
    let customer_key = key("customer_mapping", "stripe_customer_id");
    let value_key = key("value_settings", "value");
    let param = |key: &str| format!("payload[{key}]");
    let customer = payload.get(&customer_key);
    let customer = customer.ok_or_else(|| ApiError::missing(&param(&customer_key)))?;
    let counts_only = meter.is_some_and(|meter| meter["default_aggregation"]["formula"] == "count");
    let value = match payload.get(&value_key) {
        None if counts_only => Ok(Decimal::from_count(1)),
        None => return Err(ApiError::missing(&param(&value_key))),
        Some(value) => Decimal::parse(value),
    };
    let value = value.map_err(|reason| {
        let message = match reason {
            NotDecimal::Malformed => "The meter event value must be a decimal number.",
            NotDecimal::TooManyDigits => {
                "The meter event value may have at most 15 significant digits."
            }
        };
        ApiError::invalid(&param(&value_key), message)
    })?;
    Ok((customer.clone(), value))
}

/// Why an accepted event will come to nothing.
fn failure_of(call: &Call<'_>, meter: Option<&Value>, customer: &str) -> Option<&'static str> {
    let Some(meter) = meter else { return Some("no_meter") };
    if meter["status"] != "active" {
        return Some("archived_meter");
    }
    let known = call.state.customers.get(customer).filter(exists).is_some();
    (!known).then_some("meter_event_customer_not_found")
}

/// What a meter makes of the events of one customer in a span of event time; `None` without any.
pub(super) fn usage(
    state: &State,
    meter: &Value,
    customer: &str,
    span_s: Range<i64>,
) -> Option<Decimal> {
    usage_received_by(state, meter, customer, span_s, i64::MAX)
}

fn usage_received_by(
    state: &State,
    meter: &Value,
    customer: &str,
    span_s: Range<i64>,
    received_by_s: i64,
) -> Option<Decimal> {
    let of_span: Vec<&MeterEvent> = state
        .meter_events
        .received
        .iter()
        .filter(|event| event.failure.is_none() && event.customer == customer)
        .filter(|event| event.event_name == text(meter, "event_name"))
        .filter(|event| span_s.contains(&event.timestamp_s))
        .filter(|event| event.received_at.seconds() <= received_by_s)
        .collect();
    // The latest by the event's own time; of several at one second, the one received last.
    let last = of_span.iter().max_by_key(|event| event.timestamp_s)?;
    Some(match text(&meter["default_aggregation"], "formula") {
        "count" => Decimal::from_count(of_span.len()),
        "last" => last.value,
        _ => of_span.iter().map(|event| event.value).sum(),
    })
}

pub(super) fn list_summaries(
    call: &Call<'_>,
    id: &str,
    mut params: Params,
) -> Result<Value, ApiError> {
    let page = Page::read(&mut params)?;
    let customer = params.required_text("customer")?;
    let start_s = params.integer("start_time")?.ok_or_else(|| params.missing("start_time"))?;
    let end_s = params.integer("end_time")?.ok_or_else(|| params.missing("end_time"))?;
    let grouping = params.word("value_grouping_window", &["hour", "day"])?;
    params.finish(&[])?;
    let (step_s, unit) = match grouping {
        Some("hour") => (HOUR_S, "hour"),
        Some(_) => (DAY_S, "day"),
        None => (MINUTE_S, "minute"),
    };
    for (name, at_s) in [("start_time", start_s), ("end_time", end_s)] {
        if at_s.rem_euclid(step_s) != 0 {
            let message = format!("{name} must be aligned with {unit} boundaries.");
            return Err(ApiError::invalid(name, message));
        }
    }
    if start_s >= end_s {
        return Err(ApiError::invalid("end_time", "end_time must be after start_time."));
    }
    let meter = find(call, id)?;
    call.customer(&customer, "customer")?;
    let window_s = if grouping.is_some() { step_s } else { end_s - start_s };
    let lag_s = i64::try_from(call.faults.summary_lag_seconds).unwrap_or(i64::MAX);
    let received_by_s = call.now_s().saturating_sub(lag_s);
    // Only windows in which something happened, newest first.
    let mut starts: Vec<i64> = call
        .state
        .meter_events
        .received
        .iter()
        .map(|event| event.timestamp_s)
        .filter(|at_s| (start_s..end_s).contains(at_s))
        .map(|at_s| start_s + (at_s - start_s) / window_s * window_s)
        .collect();
    starts.sort_unstable_by(|a, b| b.cmp(a));
    starts.dedup();
    let summaries = starts.into_iter().filter_map(|from_s| {
        let span_s = from_s..from_s + window_s;
        let value = usage_received_by(call.state, &meter, &customer, span_s, received_by_s)?;
        Some(json!({
            "id": format!("mtrusg_{id}_{customer}_{from_s}_{window_s}"),
            "object": "billing.meter_event_summary",
            "aggregated_value": value.to_f64(),
            "end_time": from_s + window_s,
            "livemode": false,
            "meter": id,
            "start_time": from_s,
        }))
    });
    let url = format!("/v1/billing/meters/{id}/event_summaries");
    page.cut(&url, "billing meter event summary", summaries, |_| true)
}

//! Thin events (API v2): what happened, without the object.
//!
//! They are rendered in RFC 3339 times, delivered without their `data`, and fetched whole by id.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Simulator;
use super::answer::ApiError;
use super::meters::MeterEvent;
use super::params::Params;
use super::state::{Call, Due, text};
use super::webhooks;
use crate::clock::Timestamp;

/// How long Stripe collects failed meter events before it reports them.
const REPORT_WINDOW_S: i64 = 10;
/// How many failures a report names as examples; ours.
const MAX_SAMPLES: usize = 5;

/// What one thin event says.
struct Told {
    kind: String,
    related: Value,
    snapshot: Option<String>,
    data: Value,
}

/// Stores a thin event and plans its delivery. Without a destination that wants it, it is stored
/// only if it has data, which no snapshot event has.
fn tell(call: &mut Call<'_>, told: Told) {
    let destinations = webhooks::thin_listeners(call.state, &told.kind);
    if destinations.is_empty() && told.data.is_null() {
        return;
    }
    let mut event = json!({
        "id": call.id("evt"),
        "object": "v2.core.event",
        "created": rfc3339(call.now),
        "livemode": false,
        "type": told.kind,
    });
    if let Some(request) = &call.origin.request_id {
        let key = call.origin.idempotency_key.as_deref().unwrap_or_default();
        event["reason"] =
            json!({ "request": { "id": request, "idempotency_key": key }, "type": "request" });
    }
    if let Some(snapshot) = told.snapshot {
        event["snapshot_event"] = snapshot.into();
    }
    if !told.related.is_null() {
        event["related_object"] = told.related;
    }
    webhooks::plan(call, &event, destinations);
    if !told.data.is_null() {
        event["data"] = told.data;
    }
    call.state.thin_events.put(event);
}

/// Whole seconds with milliseconds, as API v2 writes times.
pub(super) fn rfc3339(at: Timestamp) -> String {
    format!(
        "{}.{:03}Z",
        Timestamp::from_seconds(at.seconds()).to_string().trim_end_matches('Z'),
        at.ms().rem_euclid(1000)
    )
}

/// The thin twin of a snapshot event.
pub(super) fn echo(call: &mut Call<'_>, event: &Value) {
    let object = &event["data"]["object"];
    let kind = text(object, "object");
    let id = text(object, "id");
    let url = format!("/v1/{}s/{id}", kind.replace('.', "/"));
    tell(
        call,
        Told {
            kind: format!("v1.{}", text(event, "type")),
            related: json!({ "id": id, "type": kind, "url": url }),
            snapshot: Some(text(event, "id").to_owned()),
            data: Value::Null,
        },
    );
}

/// The event by which an owner sees that a destination is reached.
pub(super) fn ping(call: &mut Call<'_>, destination: &str) -> Value {
    let kind = "v2.core.event_destination";
    let event = json!({
        "id": call.id("evt"),
        "object": "v2.core.event",
        "created": rfc3339(call.now),
        "livemode": false,
        "type": format!("{kind}.ping"),
        "related_object": {
            "id": destination, "type": kind, "url": format!("/v2/core/event_destinations/{destination}"),
        },
    });
    webhooks::plan(call, &event, vec![destination.to_owned()]);
    call.state.thin_events.put(event.clone());
    event
}

/// A meter event has failed after it was accepted: it is reported at the end of its window.
pub(super) fn plan_report(call: &mut Call<'_>) {
    let now_s = call.real_now.seconds();
    let ends_at_s = now_s - now_s.rem_euclid(REPORT_WINDOW_S) + REPORT_WINDOW_S;
    call.state.timetable.insert((ends_at_s, Due::MeterReport));
}

/// Reports every failure of the window that ends now: by meter, and those without a meter.
pub(super) fn report_meter_failures(call: &mut Call<'_>) {
    let end_s = call.now_s();
    let window_s = end_s - REPORT_WINDOW_S..end_s;
    let mut failures: BTreeMap<Option<String>, Vec<MeterEvent>> = BTreeMap::new();
    for event in &call.state.meter_events.received {
        if event.failure.is_none() || !window_s.contains(&event.received_at.seconds()) {
            continue;
        }
        let meter =
            call.state.meters.iter().find(|meter| text(meter, "event_name") == event.event_name);
        let meter = meter.map(|meter| text(meter, "id").to_owned());
        failures.entry(meter).or_default().push(event.clone());
    }
    for (meter, events) in failures {
        let data = report(call, &events, window_s.start, end_s);
        let (kind, related) = match meter {
            Some(id) => {
                let url = format!("/v1/billing/meters/{id}");
                let meter = json!({ "id": id, "type": "billing.meter", "url": url });
                ("v1.billing.meter.error_report_triggered", meter)
            }
            None => ("v1.billing.meter.no_meter_found", Value::Null),
        };
        tell(call, Told { kind: kind.to_owned(), related, snapshot: None, data });
    }
}

fn report(call: &Call<'_>, events: &[MeterEvent], start_s: i64, end_s: i64) -> Value {
    let mut by_code: BTreeMap<&str, Vec<&MeterEvent>> = BTreeMap::new();
    for event in events {
        by_code.entry(event.failure.unwrap_or_default()).or_default().push(event);
    }
    let samples = if call.faults.error_reports_without_samples { 0 } else { MAX_SAMPLES };
    let types: Vec<Value> = by_code
        .iter()
        .map(|(code, events)| {
            let named: Vec<Value> =
                events.iter().take(samples).map(|event| sample(code, event)).collect();
            json!({ "code": code, "error_count": events.len(), "sample_errors": named })
        })
        .collect();
    let noun = if events.len() == 1 { "error" } else { "errors" };
    json!({
        "developer_message_summary": format!("There is {} invalid event {noun}", events.len()),
        "reason": { "error_count": events.len(), "error_types": types },
        "validation_end": rfc3339(Timestamp::from_seconds(end_s)),
        "validation_start": rfc3339(Timestamp::from_seconds(start_s)),
    })
}

fn sample(code: &str, event: &MeterEvent) -> Value {
    let message = match code {
        "meter_event_customer_not_found" => {
            format!("No such customer: '{}'", event.customer)
        }
        "archived_meter" => "The meter is inactive.".to_owned(),
        _ => format!("No meter found for event name {}", event.event_name),
    };
    json!({ "error_message": message, "request": { "identifier": event.identifier } })
}

pub(super) fn retrieve(call: &Call<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish(&[])?;
    let event = call.state.thin_events.get(id).cloned();
    event.ok_or_else(|| ApiError::no_such("event", id).code("not_found"))
}

impl Simulator {
    /// Every thin event so far, in the order they happened.
    pub fn thin_events(&self) -> Vec<Value> {
        self.with_call(|call| call.state.thin_events.iter().cloned().collect())
    }
}

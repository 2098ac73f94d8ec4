//! Stripe's events: every change to the account, frozen as it was, and who is to hear of it.

use serde_json::{Map, Value, json};

use super::answer::ApiError;
use super::params::Params;
use super::state::{API_VERSION, Call, Page, text};
use super::{Simulator, thin, webhooks};

/// Stores an event and plans its delivery to every endpoint that wants it.
pub(super) fn record(call: &mut Call<'_>, kind: &str, object: &Value, previous: Option<Value>) {
    let mut data = json!({ "object": object });
    if let Some(previous) = previous {
        data["previous_attributes"] = previous;
    }
    let copies = if call.faults.twin_events { 2 } else { 1 };
    for _ in 0..copies {
        let endpoints = webhooks::listeners(call.state, kind);
        let event = json!({
            "id": call.id("evt"),
            "object": "event",
            "api_version": API_VERSION,
            "created": call.now_s(),
            "data": data,
            "livemode": false,
            "pending_webhooks": endpoints.len(),
            "request": {
                "id": call.origin.request_id,
                "idempotency_key": call.origin.idempotency_key,
            },
            "type": kind,
        });
        webhooks::plan(call, &event, endpoints);
        thin::echo(call, &event);
        call.state.events.put(event);
    }
}

/// Stores an event of a change, unless nothing can be seen of it.
pub(super) fn record_update(call: &mut Call<'_>, kind: &str, before: &Value, after: &Value) {
    if let Some(previous) = previous_attributes(before, after) {
        record(call, kind, after, Some(previous));
    }
}

/// The former values of what differs: hashes are compared field by field, lists as a whole, and
/// a field that is new was null.
fn previous_attributes(before: &Value, after: &Value) -> Option<Value> {
    let (Value::Object(before), Value::Object(after)) = (before, after) else { return None };
    let mut previous = Map::new();
    for field in before.keys().chain(after.keys()) {
        let old = before.get(field).unwrap_or(&Value::Null);
        let new = after.get(field).unwrap_or(&Value::Null);
        if old != new {
            let value = previous_attributes(old, new).unwrap_or_else(|| old.clone());
            previous.insert(field.clone(), value);
        }
    }
    (!previous.is_empty()).then_some(Value::Object(previous))
}

/// An event as it is shown now: `pending_webhooks` counts down as it is delivered.
fn shown(call: &Call<'_>, event: &Value) -> Value {
    let mut event = event.clone();
    event["pending_webhooks"] = call.state.deliveries.pending_for(text(&event, "id")).into();
    event
}

pub(super) fn retrieve(call: &Call<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish(&[])?;
    match call.state.events.get(id) {
        Some(event) => Ok(shown(call, event)),
        None => Err(ApiError::no_such("event", id)),
    }
}

pub(super) fn list(call: &Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::read_with_created(&mut params)?;
    let mut types = params.texts("types")?;
    types.extend(params.text("type")?);
    let delivered = params.boolean("delivery_success")?;
    params.finish(&[])?;
    let undelivered = call.state.deliveries.undelivered_events();
    let events = call.state.events.iter().rev().map(|event| shown(call, event));
    page.cut("/v1/events", "event", events, |event| {
        let of_type = types.is_empty() || types.iter().any(|kind| is_of_type(event, kind));
        let was_delivered = !undelivered.contains(text(event, "id"));
        of_type && delivered.is_none_or(|wanted| wanted == was_delivered)
    })
}

/// `customer.*` stands for everything that begins so.
fn is_of_type(event: &Value, wanted: &str) -> bool {
    let kind = text(event, "type");
    match wanted.strip_suffix('*') {
        Some(prefix) => kind.starts_with(prefix),
        None => kind == wanted,
    }
}

impl Simulator {
    /// Tells of something that the simulator does not do itself: an event of any type, of an
    /// object as Stripe would show it.
    pub fn tell(&self, kind: &str, object: &Value) {
        self.with_call(|call| record(call, kind, object, None));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn previous_attributes_hold_the_old_values_of_what_differs() {
        let before = json!({
            "status": "trialing",
            "metadata": { "kept": "1", "changed": "old", "gone": "x" },
            "items": { "object": "list", "data": [1, 2] },
        });
        let after = json!({
            "status": "active",
            "metadata": { "kept": "1", "changed": "new", "added": "y" },
            "items": { "object": "list", "data": [1, 3] },
        });
        let previous = json!({
            "status": "trialing",
            "metadata": { "changed": "old", "gone": "x", "added": null },
            "items": { "data": [1, 2] },
        });
        assert_eq!(previous_attributes(&before, &after), Some(previous));
        assert_eq!(previous_attributes(&after, &after), None);
    }
}

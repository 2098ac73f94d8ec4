//! The planned end of a subscription, and why it is to end.

use serde_json::Value;

use super::answer::ApiError;
use super::life::Subscription;
use super::params::Params;

/// Fields of `cancellation_details` and their new values.
pub(super) type Details = Vec<(&'static str, Value)>;

pub(super) fn read_details(params: &mut Params) -> Result<Details, ApiError> {
    let Some(mut section) = params.section("cancellation_details")? else {
        return Ok(Vec::new());
    };
    let mut details = Vec::new();
    for field in ["comment", "feedback"] {
        if let Some(value) = section.clearable(field)? {
            details.push((field, value));
        }
    }
    section.finish(&["feedback_option"])?;
    Ok(details)
}

pub(super) fn apply_details(subscription: &mut Subscription, details: Details) {
    for (field, value) in details {
        subscription.cancellation_details[field] = value;
    }
}

pub(super) fn cancel_at_period_end(subscription: &mut Subscription, now_s: i64) {
    subscription.cancel_at_period_end = true;
    subscription.cancel_at_s = Some(subscription.last_period_end_s());
    subscription.canceled_at_s = Some(now_s);
    subscription.cancellation_details["reason"] = "cancellation_requested".into();
}

/// Withdraws a planned cancellation.
fn keep(subscription: &mut Subscription) {
    subscription.cancel_at_period_end = false;
    subscription.cancel_at_s = None;
    subscription.canceled_at_s = None;
    subscription.cancellation_details["reason"] = Value::Null;
    subscription.end_periods();
}

/// A `cancel_at` in the future; `Some(None)` unsets it.
pub(super) fn read_cancel_at(
    params: &mut Params,
    now_s: i64,
) -> Result<Option<Option<i64>>, ApiError> {
    let Some(value) = params.clearable("cancel_at")? else { return Ok(None) };
    let Some(text) = value.as_str() else { return Ok(Some(None)) };
    match text.parse() {
        Ok(at_s) if at_s > now_s => Ok(Some(Some(at_s))),
        Ok(_) => Err(ApiError::invalid("cancel_at", "cancel_at must be in the future.")),
        Err(_) => Err(ApiError::invalid_integer("cancel_at", text)),
    }
}

/// Plans the end that an update asks for, or withdraws it.
pub(super) fn apply_cancellation(
    after: &mut Subscription,
    at_period_end: Option<bool>,
    cancel_at_s: Option<Option<i64>>,
    now_s: i64,
) {
    match cancel_at_s {
        Some(Some(at_s)) => {
            after.cancel_at_s = Some(at_s);
            after.cancel_at_period_end = false;
            after.canceled_at_s = Some(now_s);
            after.cancellation_details["reason"] = "cancellation_requested".into();
            after.end_periods();
        }
        Some(None) => keep(after),
        None => {}
    }
    match at_period_end {
        Some(true) if !after.cancel_at_period_end => {
            keep(after);
            cancel_at_period_end(after, now_s);
        }
        Some(false) if after.cancel_at_period_end => keep(after),
        _ => {}
    }
}

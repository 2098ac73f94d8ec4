//! Test clocks: customers whose time goes by only when a test says so.

use serde_json::{Value, json};

use super::answer::ApiError;
use super::customers;
use super::events::record;
use super::life;
use super::params::Params;
use super::state::{Call, Due, Page, exists, text};
use crate::clock::Timestamp;

/// Stripe deletes a test clock by itself after this.
const KEPT_FOR_S: i64 = 30 * 86_400;
/// How many intervals of the shortest subscription one advance may cross.
const MAX_INTERVALS: i64 = 2;

pub(super) fn create(call: &mut Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let frozen_s = params.integer("frozen_time")?.ok_or_else(|| params.missing("frozen_time"))?;
    let name = params.text("name")?;
    params.finish(&[])?;
    let clock = json!({
        "id": call.id("clock"),
        "object": "test_helpers.test_clock",
        "created": call.now_s(),
        "deletes_after": call.now_s() + KEPT_FOR_S,
        "frozen_time": frozen_s,
        "livemode": false,
        "name": name,
        "status": "ready",
        "status_details": {},
    });
    record(call, "test_helpers.test_clock.created", &clock, None);
    call.state.test_clocks.put(clock.clone());
    Ok(clock)
}

fn find(call: &Call<'_>, id: &str) -> Result<Value, ApiError> {
    call.state.test_clocks.get(id).cloned().ok_or_else(|| ApiError::no_such("test clock", id))
}

pub(super) fn retrieve(call: &Call<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish(&[])?;
    find(call, id)
}

pub(super) fn list(call: &Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::read(&mut params)?;
    params.finish(&[])?;
    let clocks = call.state.test_clocks.iter().rev().cloned();
    page.cut("/v1/test_helpers/test_clocks", "test clock", clocks, |_| true)
}

/// Sends a clock forward. It arrives later: until then its status is `advancing`.
pub(super) fn advance(
    call: &mut Call<'_>,
    id: &str,
    mut params: Params,
) -> Result<Value, ApiError> {
    let target_s = params.integer("frozen_time")?.ok_or_else(|| params.missing("frozen_time"))?;
    params.finish(&[])?;
    let mut clock = find(call, id)?;
    let frozen_s = clock["frozen_time"].as_i64().unwrap_or_default();
    if clock["status"] != "ready" {
        let message = "The test clock is advancing; wait until it is ready.";
        return Err(ApiError::refused(message));
    }
    if target_s <= frozen_s {
        let message = "A test clock can only be advanced to a later time.";
        return Err(ApiError::invalid("frozen_time", message));
    }
    if latest_s(call, id, frozen_s).is_some_and(|latest_s| target_s > latest_s) {
        let message = "A test clock can be advanced by at most two intervals of the shortest \
                       subscription on it.";
        return Err(ApiError::invalid("frozen_time", message));
    }
    clock["status"] = "advancing".into();
    clock["status_details"] = json!({ "advancing": { "target_frozen_time": target_s } });
    record(call, "test_helpers.test_clock.advancing", &clock, None);
    call.state.test_clocks.put(clock.clone());
    let lag_s = i64::try_from(call.faults.test_clock_lag_seconds).unwrap_or(i64::MAX);
    let arrives_at_s = call.real_now.seconds().saturating_add(lag_s);
    call.state.timetable.insert((arrives_at_s, Due::TestClock(id.to_owned())));
    Ok(clock)
}

/// How far the clock may be sent in one go; anywhere, without a subscription on it.
fn latest_s(call: &Call<'_>, id: &str, frozen_s: i64) -> Option<i64> {
    let on_it = call.state.subscriptions.iter().filter(|subscription| {
        subscription.test_clock.as_deref() == Some(id) && !subscription.status.is_terminal()
    });
    on_it
        .flat_map(|subscription| &subscription.items)
        .map(|item| {
            (0..MAX_INTERVALS).fold(frozen_s, |at_s, _| item.interval.next_boundary(at_s, at_s))
        })
        .min()
}

/// The clock arrives: everything that was due on the way happens, each at its own moment.
pub(super) fn arrive(call: &mut Call<'_>, id: &str) {
    let Some(mut clock) = call.state.test_clocks.get(id).cloned() else { return };
    let target = &clock["status_details"]["advancing"]["target_frozen_time"];
    let Some(target_s) = target.as_i64() else { return };
    let real = call.now;
    while let Some(timetable) = call.state.test_timetables.get_mut(id)
        && let Some((at_s, _)) = timetable.first()
        && *at_s <= target_s
        && let Some((at_s, due)) = timetable.pop_first()
    {
        // What looks at the clock on the way sees the moment that it passes.
        clock["frozen_time"] = at_s.into();
        call.state.test_clocks.put(clock.clone());
        call.now = Timestamp::from_seconds(at_s);
        life::run(call, due);
    }
    call.now = real;
    clock["frozen_time"] = target_s.into();
    clock["status"] = "ready".into();
    clock["status_details"] = json!({});
    call.state.test_clocks.put(clock.clone());
    record(call, "test_helpers.test_clock.ready", &clock, None);
}

/// Deletes a clock with every customer on it.
pub(super) fn delete(call: &mut Call<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish(&[])?;
    let clock = find(call, id)?;
    let on_it = |customer: &&Value| exists(customer) && customer["test_clock"] == id;
    let customers: Vec<String> = call
        .state
        .customers
        .iter()
        .filter(on_it)
        .map(|customer| text(customer, "id").to_owned())
        .collect();
    for customer in customers {
        customers::delete(call, &customer, Params::default())?;
    }
    call.now = call.real_now;
    record(call, "test_helpers.test_clock.deleted", &clock, None);
    call.state.test_clocks.remove(id);
    call.state.test_timetables.remove(id);
    Ok(json!({ "id": id, "object": "test_helpers.test_clock", "deleted": true }))
}

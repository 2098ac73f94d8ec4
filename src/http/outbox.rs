//! `/admin/api/v1/outbox/{identifier}/replay`: support sends one meter event again.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::Daemon;
use super::admin::sync_failed;
use super::error::{ApiError, ErrorBody};
use crate::domain::ids::printable_ascii;
use crate::store::outbox::MeterEvent;
use crate::sync::replay::{self, NotReplayed, Replayed};

/// How the audit trail names whoever holds the admin token.
const ACTOR: &str = "admin";
/// The longest identifier that Stripe takes.
const MAX_IDENTIFIER: usize = 100;

/// What a replay came to.
#[derive(Serialize, ToSchema)]
pub struct ReplayBody {
    outcome: Outcome,
    /// The meter event that has the units now.
    meter_event: MeterEvent,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It waits to be sent.
    Waits,
    /// Stripe has not counted it: its units wait to be sent under a new identifier.
    Replaced,
    /// Stripe has counted it: there is nothing to send.
    Delivered,
}

/// Sends a meter event again, if Stripe cannot count it twice by that. Again, it does nothing more.
///
/// What was never sent, or first sent less than a day ago, goes out as it is. Of anything else
/// Stripe's sum must show that it was not counted; then its units go out under a new identifier.
#[utoipa::path(post, path = "/admin/api/v1/outbox/{identifier}/replay", tag = "support", operation_id = "replay_meter_event",
    params(("identifier" = String, Path, description = "`identifier` of the meter event")),
    responses(
        (status = 200, description = "What came of it", body = ReplayBody),
        (status = 404, description = "No such meter event", body = ErrorBody),
        (status = 409, description = "It is not sent, as it might count twice, is too old, or its \
            customer's sending is frozen: the message says why", body = ErrorBody),
    ))]
pub async fn replay(
    State(daemon): State<Daemon>,
    Path(identifier): Path<String>,
) -> Result<Json<ReplayBody>, ApiError> {
    printable_ascii(&identifier, MAX_IDENTIFIER).map_err(|_| refused(NotReplayed::Unknown))?;
    let replayed = replay::replay(&daemon.app, &identifier, ACTOR).await.map_err(refused)?;
    let (outcome, meter_event) = match replayed {
        Replayed::Waits(row) => (Outcome::Waits, *row),
        Replayed::Replaced(row) => (Outcome::Replaced, *row),
        Replayed::Delivered(row) => (Outcome::Delivered, *row),
    };
    Ok(Json(ReplayBody { outcome, meter_event }))
}

fn refused(why: NotReplayed) -> ApiError {
    let code = match why {
        NotReplayed::Sync(error) => return sync_failed(error),
        NotReplayed::Unknown => {
            return ApiError::not_found("unknown_meter_event", why.to_string()).param("identifier");
        }
        NotReplayed::TooOld => "too_old",
        NotReplayed::Frozen(_) => "sending_frozen",
        NotReplayed::TooEarly => "too_early",
        NotReplayed::MayCountTwice(_) => "may_count_twice",
    };
    ApiError::new(StatusCode::CONFLICT, code, why.to_string()).param("identifier")
}

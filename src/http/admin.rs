//! `/admin/api/v1`: what support and the founder may ask and do.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};

use super::Daemon;
use super::body::{CustomerPath, Fields, Pairs};
use super::error::{ApiError, unknown_customer};
use crate::domain::ids::CustomerId;
use crate::domain::notice::NoticeState;
use crate::sync::{Mode, SyncError, SyncReport, sync_customer};

/// How many rows a list shows.
const ROWS: i64 = 200;

/// Makes a customer equal to Stripe and says what was different; `dry_run` only says it.
pub async fn sync(
    State(daemon): State<Daemon>,
    CustomerPath(id): CustomerPath,
    query: Pairs,
) -> Result<Json<SyncReport>, ApiError> {
    let mut fields = Fields::query(query)?;
    let mode = fields.word("dry_run", &[("true", Mode::DryRun), ("false", Mode::Apply)])?;
    fields.finish()?;
    let mode = mode.unwrap_or(Mode::Apply);
    let report =
        sync_customer(&daemon.app, &id, mode).await.map_err(|error| not_synced(&id, error))?;
    Ok(Json(report))
}

fn not_synced(id: &CustomerId, error: SyncError) -> ApiError {
    tracing::warn!(customer_id = %id, %error, "support's sync did not come through");
    match error {
        SyncError::UnknownCustomer => unknown_customer(),
        SyncError::Busy => ApiError::unavailable("busy", error.to_string()),
        SyncError::NotConfigured => ApiError::unavailable("not_configured", error.to_string()),
        SyncError::Store(error) => error.into(),
        SyncError::NoTier(_) => ApiError::new(StatusCode::CONFLICT, "no_tier", error.to_string()),
        SyncError::NoSuchStripeCustomer { .. } => {
            ApiError::new(StatusCode::CONFLICT, "no_such_stripe_customer", error.to_string())
        }
        SyncError::Stripe(_) => ApiError::unavailable("stripe_unavailable", error.to_string()),
    }
}

/// Which rows of a list are wanted.
struct Wanted {
    customer_id: Option<CustomerId>,
    state: Option<&'static str>,
}

impl Wanted {
    /// `states` are those that rows of this list can be in.
    fn parse(query: Pairs, states: &[&'static str]) -> Result<Self, ApiError> {
        let mut fields = Fields::query(query)?;
        let customer_id = fields.id("customer_id")?;
        let words: Vec<_> = states.iter().map(|state| (*state, *state)).collect();
        let state = if words.is_empty() { None } else { fields.word("state", &words)? };
        fields.finish()?;
        Ok(Self { customer_id, state })
    }

    fn customer_id(&self) -> Option<&str> {
        self.customer_id.as_ref().map(CustomerId::as_str)
    }
}

fn list(rows: Vec<impl Serialize>) -> Json<Value> {
    Json(json!({"data": rows}))
}

pub async fn audit(State(daemon): State<Daemon>, query: Pairs) -> Result<Json<Value>, ApiError> {
    let wanted = Wanted::parse(query, &[])?;
    Ok(list(daemon.app.store.list_audit(wanted.customer_id(), ROWS).await?))
}

pub async fn notices(State(daemon): State<Daemon>, query: Pairs) -> Result<Json<Value>, ApiError> {
    let wanted = Wanted::parse(query, &NoticeState::ALL.map(NoticeState::as_str))?;
    let store = &daemon.app.store;
    Ok(list(store.list_notices(wanted.customer_id(), wanted.state, ROWS).await?))
}

pub async fn inbox(State(daemon): State<Daemon>, query: Pairs) -> Result<Json<Value>, ApiError> {
    let wanted = Wanted::parse(query, &["pending", "applied", "ignored", "parked"])?;
    let store = &daemon.app.store;
    Ok(list(store.list_events(wanted.customer_id(), wanted.state, ROWS).await?))
}

pub async fn outbox(State(daemon): State<Daemon>, query: Pairs) -> Result<Json<Value>, ApiError> {
    let wanted = Wanted::parse(query, &["pending", "delivered", "parked"])?;
    let store = &daemon.app.store;
    Ok(list(store.list_meter_events(wanted.customer_id(), wanted.state, ROWS).await?))
}

/// How each job's last run went.
pub async fn jobs(State(daemon): State<Daemon>) -> Json<Value> {
    list(daemon.jobs.status())
}

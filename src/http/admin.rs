//! `/admin/api/v1`: what support and the founder may ask and do.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Daemon;
use super::customers::customer_id;
use super::error::{ApiError, unknown_customer};
use crate::domain::ids::CustomerId;
use crate::sync::{Mode, SyncError, SyncReport, sync_customer};

/// How many rows a list shows.
const ROWS: i64 = 200;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncQuery {
    #[serde(default)]
    dry_run: bool,
}

/// Makes a customer equal to Stripe and says what was different; `dry_run` only says it.
pub async fn sync(
    State(daemon): State<Daemon>,
    Path(id): Path<String>,
    query: Result<Query<SyncQuery>, QueryRejection>,
) -> Result<Json<SyncReport>, ApiError> {
    let id = customer_id(id)?;
    let Query(query) = query.map_err(bad_query)?;
    let mode = if query.dry_run { Mode::DryRun } else { Mode::Apply };
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
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    customer_id: Option<String>,
    state: Option<String>,
}

type Wanted = Result<Query<ListQuery>, QueryRejection>;

fn wanted(query: Wanted) -> Result<ListQuery, ApiError> {
    let Query(query) = query.map_err(bad_query)?;
    if let Some(id) = &query.customer_id {
        customer_id(id.clone())?;
    }
    Ok(query)
}

fn bad_query(rejection: QueryRejection) -> ApiError {
    ApiError::malformed(rejection.body_text())
}

fn list(rows: Vec<impl Serialize>) -> Json<Value> {
    Json(json!({"data": rows}))
}

pub async fn audit(State(daemon): State<Daemon>, query: Wanted) -> Result<Json<Value>, ApiError> {
    let query = wanted(query)?;
    Ok(list(daemon.app.store.list_audit(query.customer_id.as_deref(), ROWS).await?))
}

pub async fn notices(State(daemon): State<Daemon>, query: Wanted) -> Result<Json<Value>, ApiError> {
    let query = wanted(query)?;
    let store = &daemon.app.store;
    Ok(list(store.list_notices(query.customer_id.as_deref(), query.state.as_deref(), ROWS).await?))
}

pub async fn inbox(State(daemon): State<Daemon>, query: Wanted) -> Result<Json<Value>, ApiError> {
    let query = wanted(query)?;
    let store = &daemon.app.store;
    Ok(list(store.list_events(query.customer_id.as_deref(), query.state.as_deref(), ROWS).await?))
}

pub async fn outbox(State(daemon): State<Daemon>, query: Wanted) -> Result<Json<Value>, ApiError> {
    let query = wanted(query)?;
    let store = &daemon.app.store;
    Ok(list(
        store.list_meter_events(query.customer_id.as_deref(), query.state.as_deref(), ROWS).await?,
    ))
}

/// How each job's last run went.
pub async fn jobs(State(daemon): State<Daemon>) -> Json<Value> {
    list(daemon.jobs.status())
}

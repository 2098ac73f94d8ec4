//! `/admin/api/v1`: what support and the founder may ask and do.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::Daemon;
use super::body::{CustomerPath, Fields, Pairs};
use super::error::{ApiError, ErrorBody, unknown_customer};
use crate::domain::ids::CustomerId;
use crate::domain::notice::NoticeState;
use crate::jobs::JobStatus;
use crate::store::audit::AuditEntry;
use crate::store::inbox::StoredEvent;
use crate::store::notices::Notice;
use crate::store::outbox::MeterEvent;
use crate::sync::{Mode, SyncError, SyncReport, sync_customer};

/// How many rows a list shows.
const ROWS: i64 = 200;

/// Makes a customer equal to Stripe and says what was different; `dry_run` only says it.
#[utoipa::path(post, path = "/admin/api/v1/customers/{id}/sync", tag = "support", operation_id = "sync",
    params(
        ("id" = CustomerId, Path, description = "The product's own id of the customer"),
        ("dry_run" = Option<bool>, Query, description = "`true` only says what differs"),
    ),
    responses(
        (status = 200, description = "What was different", body = SyncReport),
        (status = 404, description = "No such customer", body = ErrorBody),
        (status = 409, description = "Stripe's side cannot be followed: the message says why", body = ErrorBody),
    ))]
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
    sync_failed(error)
}

/// Why nothing came of asking Stripe, in the API's words.
pub(super) fn sync_failed(error: SyncError) -> ApiError {
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
        let mut fields = Fields::query(query)?.without_empty();
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

/// The newest rows of a list, at most 200.
#[derive(Serialize, ToSchema)]
pub struct Rows<T> {
    data: Vec<T>,
}

fn list<T>(data: Vec<T>) -> Json<Rows<T>> {
    Json(Rows { data })
}

/// What was changed by hand, the newest first.
#[utoipa::path(get, path = "/admin/api/v1/audit", tag = "support", operation_id = "list_audit",
    params(
        ("customer_id" = Option<String>, Query, max_length = 128, pattern = "^[ -~]*$",
            description = "Only this customer's; everybody's, if empty"),
    ),
    responses((status = 200, description = "The entries", body = Rows<AuditEntry>)))]
pub async fn audit(
    State(daemon): State<Daemon>,
    query: Pairs,
) -> Result<Json<Rows<AuditEntry>>, ApiError> {
    let wanted = Wanted::parse(query, &[])?;
    Ok(list(daemon.app.store.list_audit(wanted.customer_id(), ROWS).await?))
}

/// The mails that are due, sent or in doubt, the newest first.
#[utoipa::path(get, path = "/admin/api/v1/notices", tag = "support", operation_id = "list_notices",
    params(
        ("customer_id" = Option<String>, Query, max_length = 128, pattern = "^[ -~]*$",
            description = "Only this customer's; everybody's, if empty"),
        ("state" = Option<String>, Query, pattern = "^(due|sending|sent|dropped|failed|unknown)?$",
            description = "Only those in this state; all, if empty"),
    ),
    responses((status = 200, description = "The notices", body = Rows<Notice>)))]
pub async fn notices(
    State(daemon): State<Daemon>,
    query: Pairs,
) -> Result<Json<Rows<Notice>>, ApiError> {
    let wanted = Wanted::parse(query, &NoticeState::ALL.map(NoticeState::as_str))?;
    let store = &daemon.app.store;
    Ok(list(store.list_notices(wanted.customer_id(), wanted.state, ROWS).await?))
}

/// Stripe's events and what became of them, the newest first.
#[utoipa::path(get, path = "/admin/api/v1/inbox", tag = "support", operation_id = "list_inbox",
    params(
        ("customer_id" = Option<String>, Query, max_length = 128, pattern = "^[ -~]*$",
            description = "Only this customer's; everybody's, if empty"),
        ("state" = Option<String>, Query, pattern = "^(pending|applied|ignored|parked)?$",
            description = "Only those in this state; all, if empty"),
    ),
    responses((status = 200, description = "The events", body = Rows<StoredEvent>)))]
pub async fn inbox(
    State(daemon): State<Daemon>,
    query: Pairs,
) -> Result<Json<Rows<StoredEvent>>, ApiError> {
    let wanted = Wanted::parse(query, &["pending", "applied", "ignored", "parked"])?;
    let store = &daemon.app.store;
    Ok(list(store.list_events(wanted.customer_id(), wanted.state, ROWS).await?))
}

/// Usage on its way to Stripe, the newest first.
#[utoipa::path(get, path = "/admin/api/v1/outbox", tag = "support", operation_id = "list_outbox",
    params(
        ("customer_id" = Option<String>, Query, max_length = 128, pattern = "^[ -~]*$",
            description = "Only this customer's; everybody's, if empty"),
        ("state" = Option<String>, Query, pattern = "^(pending|delivered|parked|replaced)?$",
            description = "Only those in this state; all, if empty"),
    ),
    responses((status = 200, description = "The meter events", body = Rows<MeterEvent>)))]
pub async fn outbox(
    State(daemon): State<Daemon>,
    query: Pairs,
) -> Result<Json<Rows<MeterEvent>>, ApiError> {
    let wanted = Wanted::parse(query, &["pending", "delivered", "parked", "replaced"])?;
    let store = &daemon.app.store;
    Ok(list(store.list_meter_events(wanted.customer_id(), wanted.state, ROWS).await?))
}

/// How each job's last run went.
#[utoipa::path(get, path = "/admin/api/v1/jobs", tag = "support", operation_id = "list_jobs",
    responses((status = 200, description = "The jobs", body = Rows<JobStatus>)))]
pub async fn jobs(State(daemon): State<Daemon>) -> Json<Rows<JobStatus>> {
    list(daemon.jobs.status())
}

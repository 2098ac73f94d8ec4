//! `/admin/api/v1`: what support and the founder may ask and do.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::Daemon;
use super::body::{CustomerPath, Fields, Pairs};
use super::error::{ApiError, ErrorBody, unknown_customer};
use crate::domain::ids::{CustomerId, printable_ascii};
use crate::domain::notice::NoticeState;
use crate::jobs::JobStatus;
use crate::store::audit::AuditEntry;
use crate::store::inbox::StoredEvent;
use crate::store::notices::Notice;
use crate::store::outbox::MeterEvent;
use crate::sync::all::{SyncedPage, sync_page};
use crate::sync::{Mode, SyncError, SyncReport, sync_customer};

/// How many rows a list shows.
const ROWS: i64 = 200;
/// How many customers one call syncs: some seconds' worth.
const SYNCED_AT_ONCE: i64 = 25;

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
    let mode = mode(&mut fields)?;
    fields.finish()?;
    let report = sync_customer(&daemon.app, &id, mode).await.map_err(|error| {
        tracing::warn!(customer_id = %id, %error, "support's sync did not come through");
        sync_failed(error)
    })?;
    Ok(Json(report))
}

/// Makes the customers that have a Stripe customer equal to Stripe, 25 at a time in order of id:
/// `next` says after whom to go on, and is null after the last.
#[utoipa::path(post, path = "/admin/api/v1/sync", tag = "support", operation_id = "sync_all",
    params(
        ("dry_run" = Option<bool>, Query, description = "`true` only says what differs"),
        ("after" = Option<CustomerId>, Query, description = "Only those after this id; from the first on, if left out"),
    ),
    responses((status = 200, description = "What was different, and with whom it failed", body = SyncedPage)))]
pub async fn sync_all(
    State(daemon): State<Daemon>,
    query: Pairs,
) -> Result<Json<SyncedPage>, ApiError> {
    let mut fields = Fields::query(query)?;
    let mode = mode(&mut fields)?;
    let after = fields.id::<CustomerId>("after")?;
    fields.finish()?;
    let page = sync_page(&daemon.app, mode, after.as_ref(), SYNCED_AT_ONCE).await;
    Ok(Json(page.map_err(sync_failed)?))
}

fn mode(fields: &mut Fields) -> Result<Mode, ApiError> {
    let said = fields.word("dry_run", &[("true", Mode::DryRun), ("false", Mode::Apply)])?;
    Ok(said.unwrap_or(Mode::Apply))
}

/// Why nothing came of asking Stripe, in the API's words.
pub(super) fn sync_failed(error: SyncError) -> ApiError {
    match error {
        SyncError::UnknownCustomer => unknown_customer(),
        SyncError::Busy => ApiError::unavailable("busy", error.to_string()),
        SyncError::NotConfigured => ApiError::unavailable("not_configured", error.to_string()),
        SyncError::Store(error) => error.into(),
        SyncError::NoTier(_) => ApiError::new(StatusCode::CONFLICT, "no_tier", error.to_string()),
        SyncError::NoSuchStripeCustomer => {
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

/// Makes a stored event pending again, as if it had just come, whatever became of it before.
#[utoipa::path(post, path = "/admin/api/v1/inbox/{event_id}/replay", tag = "support", operation_id = "replay_event",
    params(("event_id" = String, Path, description = "Stripe's id of the event")),
    responses(
        (status = 200, description = "The event, pending; it is applied a moment later", body = StoredEvent),
        (status = 404, description = "No such event in the inbox", body = ErrorBody),
    ))]
pub async fn replay_event(
    State(daemon): State<Daemon>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<StoredEvent>, ApiError> {
    let app = &daemon.app;
    let unknown =
        || ApiError::not_found("unknown_event", "the inbox has no such event").param("event_id");
    let event_id = path.map(|Path(id)| id).ok().filter(|id| is_event_id(id)).ok_or_else(unknown)?;
    let before = app.store.stored_event(&event_id).await?.ok_or_else(unknown)?;
    let mut tx = app.store.begin().await?;
    if tx.replay_event(&event_id).await? {
        let detail = json!({
            "event_id": before.event_id, "event_type": before.event_type, "state": before.state,
            "detail": before.detail,
        });
        let audit_id = app.entropy.id("aud", tx.now);
        let customer_id = before.customer_id.as_deref();
        tx.insert_audit(&audit_id, "admin", "replay_event", customer_id, &detail).await?;
    }
    tx.commit().await?;
    app.nudges.inbox.notify_one();
    app.store.stored_event(&event_id).await?.map(Json).ok_or_else(unknown)
}

/// What no event's id can be is not looked for: one of the databases refuses it.
fn is_event_id(text: &str) -> bool {
    printable_ascii(text, 255).is_ok()
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

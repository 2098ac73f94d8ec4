//! The gate over HTTP: `POST /v1/check`, `/v1/track`, and the end of reservations.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::Daemon;
use super::bodies::{CheckBody, CommitBody, ReleaseBody, TrackBatchBody, TrackBody};
use super::body::{Fields, ReservationPath};
use super::error::{ApiError, ErrorBody, ErrorDetail};
use super::incoming::Body;
use crate::domain::answer::Answer;
use crate::domain::customer::Profile;
use crate::domain::decision::Intent;
use crate::domain::ids::ReservationId;
use crate::domain::run::{RunFacts, Tokens};
use crate::domain::usage::MAX_QUANTITY;
use crate::gate::{Request, RequestKey, Said, Settlement};

/// What the caller says of a run is kept with it; this is plenty for a model and token counts.
const MAX_PROPERTIES: usize = 4096;
/// How long units are held if the caller does not say, in seconds.
const HOLD_SECONDS: i64 = 900;
/// The longest that units are held: a week, in seconds.
const MAX_HOLD_SECONDS: i64 = 604_800;
/// How many runs one batch may tell of.
const MAX_BATCH: usize = 1000;

/// What became of each run of a batch.
#[derive(Serialize, ToSchema)]
pub struct BatchBody {
    results: Vec<BatchResult>,
}

/// What the run alone would have been answered.
#[derive(Serialize, ToSchema)]
struct BatchResult {
    /// 200 with an answer, or what its error would have come with.
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<Answer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorDetail>,
}

/// May this customer run? Read-only, unless `send_event` asks for the run to be counted at once or
/// `reserve` for its units to be held.
#[utoipa::path(post, path = "/v1/check", tag = "gate", operation_id = "check", request_body = CheckBody,
    responses(
        (status = 200, description = "The decision", body = Answer, links(
            ("commit" = (operation_id = "commit", parameters(("id" = "$response.body#/reservation/id")))),
            ("release" = (operation_id = "release", parameters(("id" = "$response.body#/reservation/id")))),
        )),
        (status = 404, description = "No such customer, or no such feature", body = ErrorBody),
        (status = 409, description = "The idempotency key was used with another request", body = ErrorBody),
    ))]
pub async fn check(State(daemon): State<Daemon>, body: Body) -> Result<Json<Answer>, ApiError> {
    let mut fields = Fields::parse(&body)?;
    let key = request_key("check", &mut fields)?;
    let value = fields.quantity("required_balance")?;
    let send_event = fields.boolean("send_event")?;
    let hold = hold_seconds(&mut fields)?;
    let intent = match (send_event, hold) {
        (true, Some(_)) => {
            let wanted = "cannot be had together with send_event: a run is held or counted";
            return Err(ApiError::invalid("reserve", wanted));
        }
        (true, None) => Intent::Consume,
        (false, Some(_)) => Intent::Reserve,
        (false, None) => Intent::Check,
    };
    let request = request(fields, key, value, intent, hold.unwrap_or_default())?;
    Ok(Json(daemon.gate.ask(request).await?))
}

/// Counts a run that has already happened.
#[utoipa::path(post, path = "/v1/track", tag = "gate", operation_id = "track", request_body = TrackBody,
    responses(
        (status = 200, description = "What was counted", body = Answer),
        (status = 404, description = "No such customer, or no such feature", body = ErrorBody),
        (status = 409, description = "The idempotency key was used with another request", body = ErrorBody),
    ))]
pub async fn track(State(daemon): State<Daemon>, body: Body) -> Result<Json<Answer>, ApiError> {
    Ok(Json(daemon.gate.ask(tracked(Fields::parse(&body)?)?).await?))
}

/// Counts up to a thousand runs that have already happened, in their order, and answers each by
/// itself.
#[utoipa::path(post, path = "/v1/track/batch", tag = "gate", operation_id = "track_batch",
    request_body = TrackBatchBody,
    responses((status = 200, description = "One result for each run, in their order", body = BatchBody)))]
pub async fn track_batch(
    State(daemon): State<Daemon>,
    body: Body,
) -> Result<Json<BatchBody>, ApiError> {
    let mut fields = Fields::parse(&body)?;
    let events = fields.list("events")?;
    fields.finish()?;
    let events =
        events.filter(|events| (1..=MAX_BATCH).contains(&events.len())).ok_or_else(|| {
            ApiError::invalid("events", format!("must be a list of 1 to {MAX_BATCH} runs"))
        })?;
    let requests: Vec<_> = events
        .into_iter()
        .enumerate()
        .map(|(place, event)| Fields::event(event, place).and_then(tracked))
        .collect();
    let asked = daemon.gate.ask_all(requests.iter().flatten().cloned().collect()).await?;
    let mut answers = asked.into_iter();
    let results = requests.into_iter().map(|request| {
        let answer = match request {
            Ok(_) => answers.next().expect("each request has an answer").map_err(ApiError::from),
            Err(refused) => Err(refused),
        };
        match answer {
            Ok(answer) => BatchResult { status: 200, answer: Some(answer), error: None },
            Err(error) => BatchResult {
                status: error.status.as_u16(),
                answer: None,
                error: Some(error.body().error),
            },
        }
    });
    Ok(Json(BatchBody { results: results.collect() }))
}

fn tracked(mut fields: Fields) -> Result<Request, ApiError> {
    let key = request_key("track", &mut fields)?;
    let value = fields.quantity("value")?;
    let behavior = fields
        .word("overage_behavior", &[("allow", Intent::Record), ("cap", Intent::RecordCapped)])?;
    request(fields, key, value, behavior.unwrap_or(Intent::Record), 0)
}

/// Counts a run whose units were held: the number given, or what was held.
#[utoipa::path(post, path = "/v1/reservations/{id}/commit", tag = "gate", operation_id = "commit",
    params(("id" = ReservationId, Path, description = "`reservation.id` of the check's answer")),
    request_body = Option<CommitBody>,
    responses(
        (status = 200, description = "What was counted, and whether it was late or over the limit", body = Answer),
        (status = 404, description = "No such reservation", body = ErrorBody),
        (status = 409, description = "The reservation has another end already", body = ErrorBody),
    ))]
pub async fn commit(
    State(daemon): State<Daemon>,
    ReservationPath(id): ReservationPath,
    body: Body,
) -> Result<Json<Answer>, ApiError> {
    let mut fields = Fields::parse_or_empty(&body)?;
    let request_hash = request_hash("commit", &fields);
    let value = fields.integer("value", 0..=MAX_QUANTITY)?;
    let said = said(&mut fields)?;
    fields.finish()?;
    settle(&daemon, id, Intent::Commit, value, said, request_hash).await
}

/// Gives the units back; nothing is counted.
#[utoipa::path(post, path = "/v1/reservations/{id}/release", tag = "gate", operation_id = "release",
    params(("id" = ReservationId, Path, description = "`reservation.id` of the check's answer")),
    request_body = Option<ReleaseBody>,
    responses(
        (status = 200, description = "The units are free again", body = Answer),
        (status = 404, description = "No such reservation", body = ErrorBody),
        (status = 409, description = "The reservation has another end already", body = ErrorBody),
    ))]
pub async fn release(
    State(daemon): State<Daemon>,
    ReservationPath(id): ReservationPath,
    body: Body,
) -> Result<Json<Answer>, ApiError> {
    let fields = Fields::parse_or_empty(&body)?;
    let request_hash = request_hash("release", &fields);
    fields.finish()?;
    settle(&daemon, id, Intent::Release, None, Said::default(), request_hash).await
}

async fn settle(
    daemon: &Daemon,
    reservation_id: ReservationId,
    intent: Intent,
    value: Option<i64>,
    said: Said,
    request_hash: String,
) -> Result<Json<Answer>, ApiError> {
    let settlement = Settlement { reservation_id, intent, value, said, request_hash };
    Ok(Json(daemon.gate.settle(settlement).await?))
}

/// The fields that a check and a tracked run share.
fn request(
    mut fields: Fields,
    key: Option<RequestKey>,
    value: Option<i64>,
    intent: Intent,
    hold_seconds: u32,
) -> Result<Request, ApiError> {
    let request = Request {
        customer_id: fields.required_id("customer_id")?,
        feature_id: fields.required_id("feature_id")?,
        entity_id: fields.id("entity_id")?,
        value,
        intent,
        hold_seconds,
        key,
        own_id: None,
        said: said(&mut fields)?,
        customer_data: customer_data(&mut fields)?,
    };
    fields.finish()?;
    Ok(request)
}

fn hold_seconds(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let Some(mut reserve) = fields.object("reserve")? else { return Ok(None) };
    let seconds = reserve.integer("expires_in_seconds", 1..=MAX_HOLD_SECONDS)?;
    reserve.finish()?;
    let seconds = seconds.unwrap_or(HOLD_SECONDS);
    Ok(Some(u32::try_from(seconds).expect("a week of seconds fits")))
}

/// What the caller says of the run.
fn said(fields: &mut Fields) -> Result<Said, ApiError> {
    let Some(properties) = fields.object("properties")? else { return Ok(Said::default()) };
    let properties = properties.into_map();
    let tokens = Tokens::said_by(&properties);
    let (run, rest) = RunFacts::from_properties(properties).map_err(|bad| {
        let name = format!("properties.{}", bad.field);
        match bad.wrong_type {
            true => ApiError::malformed(format!("{name} must be {}", bad.wanted)).param(name),
            false => ApiError::invalid(name, format!("must be {}", bad.wanted)),
        }
    })?;
    if rest.is_empty() {
        return Ok(Said { run, tokens, properties: None });
    }
    let rest = Value::Object(rest);
    let json = rest.to_string();
    // PostgreSQL's JSON cannot hold a NUL, and nothing sensible has one.
    if json.len() > MAX_PROPERTIES || has_nul(&rest) {
        let wanted =
            format!("must be an object of at most {MAX_PROPERTIES} bytes without NUL characters");
        return Err(ApiError::invalid("properties", wanted));
    }
    Ok(Said { run, tokens, properties: Some(json) })
}

/// Whether a text or a name in it has a NUL character, not merely the text of its escape.
fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(fields) => {
            fields.iter().any(|(name, value)| name.contains('\0') || has_nul(value))
        }
        _ => false,
    }
}

fn customer_data(fields: &mut Fields) -> Result<Option<Profile>, ApiError> {
    let Some(mut data) = fields.object("customer_data")? else { return Ok(None) };
    let (email, name) = (data.email("email")?, data.person_name("name")?);
    let profile = Profile { email, name, email_is_stripes: false };
    data.finish()?;
    Ok(Some(profile))
}

/// The idempotency key, if the request has one, with a hash of all that stands beside it.
fn request_key(call: &str, fields: &mut Fields) -> Result<Option<RequestKey>, ApiError> {
    if !fields.has("idempotency_key") {
        return Ok(None);
    }
    let request_hash = request_hash(call, fields);
    let key = fields.id("idempotency_key")?;
    Ok(key.map(|key| RequestKey { key, request_hash }))
}

/// A hash over the call and its whole body. 64 bits are plenty: only requests under one customer's
/// one key are ever compared.
fn request_hash(call: &str, fields: &Fields) -> String {
    let digest = Sha256::digest(format!("{call}\n{}", fields.canonical()).as_bytes());
    hex::encode(&digest[..8])
}

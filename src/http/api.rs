//! `POST /v1/check` and `POST /v1/track`: the gate over HTTP.

use axum::Json;
use axum::extract::State;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::Daemon;
use super::body::{Body, Fields, canonical};
use super::error::ApiError;
use crate::domain::answer::Answer;
use crate::domain::customer::Profile;
use crate::domain::decision::Intent;
use crate::gate::{Request, RequestKey};

/// What the caller says of a run is kept with it; this is plenty for a model and token counts.
const MAX_PROPERTIES: usize = 4096;

/// May this customer run? Read-only, unless `send_event` asks for the run to be counted at once.
pub async fn check(
    State(daemon): State<Daemon>,
    Body(body): Body,
) -> Result<Json<Answer>, ApiError> {
    let mut fields = Fields::parse(&body)?;
    let value = fields.quantity("required_balance")?;
    let intent = if fields.boolean("send_event")? { Intent::Consume } else { Intent::Check };
    let request = request("check", &body, fields, value, intent)?;
    Ok(Json(daemon.gate.ask(request).await?))
}

/// Counts a run that has already happened.
pub async fn track(
    State(daemon): State<Daemon>,
    Body(body): Body,
) -> Result<Json<Answer>, ApiError> {
    let mut fields = Fields::parse(&body)?;
    let value = fields.quantity("value")?;
    let behavior = fields
        .word("overage_behavior", &[("allow", Intent::Record), ("cap", Intent::RecordCapped)])?;
    let request = request("track", &body, fields, value, behavior.unwrap_or(Intent::Record))?;
    Ok(Json(daemon.gate.ask(request).await?))
}

/// The fields that both calls share.
fn request(
    call: &str,
    body: &[u8],
    mut fields: Fields,
    value: i64,
    intent: Intent,
) -> Result<Request, ApiError> {
    let key = fields.id("idempotency_key")?;
    let request = Request {
        customer_id: fields.required_id("customer_id")?,
        feature_id: fields.required_id("feature_id")?,
        entity_id: fields.id("entity_id")?,
        value,
        intent,
        key: key.map(|key| RequestKey { key, request_hash: request_hash(call, body) }),
        properties: properties(&mut fields)?,
        customer_data: customer_data(&mut fields)?,
    };
    fields.finish()?;
    Ok(request)
}

fn properties(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let Some(properties) = fields.object("properties")? else { return Ok(None) };
    let json = properties.into_json();
    // PostgreSQL's JSON cannot hold a NUL, and nothing sensible has one.
    if json.len() > MAX_PROPERTIES || json.contains("\\u0000") {
        let wanted =
            format!("must be an object of at most {MAX_PROPERTIES} bytes without NUL characters");
        return Err(ApiError::invalid("properties", wanted));
    }
    Ok(Some(json))
}

fn customer_data(fields: &mut Fields) -> Result<Option<Profile>, ApiError> {
    let Some(mut data) = fields.object("customer_data")? else { return Ok(None) };
    let profile = Profile { email: data.email("email")?, name: data.person_name("name")? };
    data.finish()?;
    Ok(Some(profile))
}

/// A hash over the call and its whole body, alike for bodies that differ only in white space or
/// the order of their fields.
fn request_hash(call: &str, body: &[u8]) -> String {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let digest = Sha256::digest(format!("{call}\n{}", canonical(&json)).as_bytes());
    // Half of it: only requests under one customer's one key are ever compared.
    hex::encode(&digest[..16])
}

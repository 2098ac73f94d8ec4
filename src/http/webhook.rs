//! `POST /webhooks/stripe`: verify, store, acknowledge. Applying is the inbox's job.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use super::Daemon;
use super::error::{ApiError, ErrorBody};
use super::incoming::Unread;
use crate::store::intake::NewStripeEvent;
use crate::stripe::event;
use crate::stripe::signature::{Claim, SignatureError};

/// The event is stored, now or before.
#[derive(Serialize, ToSchema)]
pub struct Received {
    received: bool,
}

/// Takes an event of Stripe's: verified, stored, applied a moment later.
#[utoipa::path(post, path = "/webhooks/stripe", tag = "links", operation_id = "stripe_webhook",
    params(("Stripe-Signature" = String, Header, description = "Stripe's, over the raw body; at most 300 s old")),
    request_body(content = Object, description = "A snapshot or thin event", content_type = "application/json"),
    responses(
        (status = 200, description = "Stored", body = Received),
        (status = 400, description = "Not signed by Stripe, of the other mode, or not an event", body = ErrorBody),
        (status = 503, description = "No STRIPE_WEBHOOK_SECRET, too many large bodies at a time, or the database cannot answer", body = ErrorBody),
    ))]
pub async fn stripe(
    State(daemon): State<Daemon>,
    headers: HeaderMap,
    mut body: Unread,
) -> Result<Json<Received>, ApiError> {
    let app = &daemon.app;
    let secrets = &app.credentials.webhook_secrets;
    if secrets.is_empty() {
        let message = "no STRIPE_WEBHOOK_SECRET is configured";
        return Err(body.refuse(ApiError::unavailable("not_configured", message)));
    }
    let header = headers.get("stripe-signature").and_then(|value| value.to_str().ok());
    // Nobody's body is read who could not have had it signed.
    let claim = Claim::parse(header).map_err(|error| body.refuse(not_stripes(error)))?;
    let (body, _seat) = body.read(&daemon.seats.strangers).await?.into_parts();
    claim.verify(&body, secrets, app.clock.now()).map_err(not_stripes)?;
    let event = event::parse(&body).map_err(|error| {
        refused("body");
        ApiError::malformed(error.to_string())
    })?;
    let ours = app.stripe.as_ref().and_then(crate::stripe::Stripe::live_mode);
    if let (Some(ours), Some(theirs)) = (ours, event.livemode)
        && ours != theirs
    {
        refused("mode");
        let message = "this event is of the other mode (test or live) than STRIPE_SECRET_KEY";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "wrong_mode", message).param("livemode"));
    }
    let body =
        String::from_utf8(body).map_err(|_| ApiError::malformed("the body must be UTF-8"))?;
    let new = app
        .store
        .take_in(NewStripeEvent {
            customer_id: event.names_customer().map(str::to_owned),
            event_id: event.id,
            event_type: event.event_type,
            stripe_customer_id: event.stripe_customer_id,
            body,
        })
        .await?;
    metrics::counter!("tollgate_webhooks_received_total", "new" => if new { "true" } else { "false" }).increment(1);
    if new {
        app.nudges.inbox.notify_one();
    }
    Ok(Json(Received { received: true }))
}

fn not_stripes(error: SignatureError) -> ApiError {
    refused("signature");
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_signature", error.to_string())
        .param("Stripe-Signature")
}

fn refused(why: &'static str) {
    metrics::counter!("tollgate_webhooks_refused_total", "why" => why).increment(1);
}

//! Whether webhooks arrive, found out by sending some: an event of our own making, signed with each
//! secret, to our own public address, and a ping of Stripe's to its destination of thin events.
//!
//! The first shows address, TLS, routing, and that the daemon there has these secrets; it is stored,
//! ignored, and removed again. The second shows that Stripe itself comes through, with the
//! destination's secret. For an endpoint of snapshot events Stripe offers no such thing, and tells
//! its secret to nobody twice, so whether that is among ours only its deliveries show.

use std::time::Duration;

use reqwest::redirect::Policy;
use serde_json::{Value, json};

use super::{Finding, Level};
use crate::cli::provision::is_loopback;
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::domain::provision::{Kind, State, Step};
use crate::entropy::Entropy;
use crate::store::{Store, StoreError};
use crate::stripe::{Stripe, signature};

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often, and how many times, to look whether a ping has arrived: ten seconds.
const PAUSE: Duration = Duration::from_millis(250);
const LOOKS: usize = 40;

/// The latest events that are looked through for one that came by itself.
const LATEST: i64 = 100;
/// An event that came later than this after it was made may have been fetched, not sent: what was
/// missed is asked for from this age on.
const SENT_WITHIN: Duration = Duration::from_secs(5 * 60);

const ROUND_TRIP: &str = "round trip";
const PING: &str = "stripe's ping";
const DELIVERY: &str = "deliveries";
/// What our own event says it is.
const OWN_TYPE: &str = "tollgate.doctor";

pub async fn examine(
    config: &Config,
    stripe: &Stripe,
    store: Option<&Store>,
    steps: &[Step],
) -> Vec<Finding> {
    if config.stripe_webhook_secrets.is_empty() {
        return Vec::new();
    }
    let clock = Clock::system();
    let id = Entropy::system().id("evt_tollgate", clock.now());
    let mut finding = round_trip(config, &clock, &id, store).await;
    if let Some(store) = store
        && let Err(error) = store.forget_event(&id).await
    {
        finding = Finding::of(ROUND_TRIP, Level::Fault, error.to_string());
    }
    let arrives = finding.level == Level::Ok;
    let mut findings = vec![finding];
    let Some(store) = store else { return findings };
    let right = |kind: Kind| {
        let step = steps.iter().find(|step| step.kind == kind);
        step.and_then(|step| match &step.state {
            State::Right { id } => Some(id),
            _ => None,
        })
    };
    if let (Some(destination), true) = (right(Kind::Destination), arrives) {
        findings.push(ping(stripe, store, destination).await);
    }
    if let Some(endpoint) = right(Kind::Endpoint) {
        findings.push(deliveries(store, endpoint).await);
    }
    findings
}

/// Sends one event, once for each secret, and looks for it in the database.
async fn round_trip(config: &Config, clock: &Clock, id: &str, store: Option<&Store>) -> Finding {
    let url = format!("{}/webhooks/stripe", config.public_url);
    let event = json!({
        "id": id, "object": "event", "type": OWN_TYPE, "livemode": config.livemode(),
        "created": clock.now().seconds(), "data": {"object": {}},
    });
    let body = event.to_string();
    // Stripe follows no redirect either.
    let http = reqwest::Client::builder().redirect(Policy::none()).timeout(PATIENCE).build();
    let http = match http {
        Ok(http) => http,
        Err(error) => return Finding::of(ROUND_TRIP, Level::Fault, error.to_string()),
    };
    for secret in &config.stripe_webhook_secrets {
        let signed = signature::sign(secret, body.as_bytes(), clock.now());
        let request = http.post(&url).header("stripe-signature", signed).body(body.clone());
        let answer = async {
            let answer = request.send().await?;
            Ok((answer.status().as_u16(), answer.text().await?))
        };
        match answer.await {
            Ok((200, said)) if is_received(&said) => {}
            Ok((status, said)) => {
                return Finding::of(ROUND_TRIP, Level::Fault, why(&url, status, &said));
            }
            Err(error) => return unreachable(&url, &error),
        }
    }
    let Some(store) = store else {
        return Finding::of(ROUND_TRIP, Level::Ok, format!("{url} takes events signed by us"));
    };
    match store.event_body(id).await {
        Ok(Some(_)) => {
            Finding::of(ROUND_TRIP, Level::Ok, format!("{url} stores events signed by us"))
        }
        Ok(None) => {
            let detail = format!("the daemon at {url} stores into another database than this one");
            Finding::of(ROUND_TRIP, Level::Fault, detail)
        }
        Err(error) => Finding::of(ROUND_TRIP, Level::Fault, error.to_string()),
    }
}

/// Whether an answer is the daemon's own word for stored: anybody says 200.
fn is_received(said: &str) -> bool {
    let said: Value = serde_json::from_str(said).unwrap_or_default();
    said["received"] == true
}

/// On this machine a daemon may simply not run yet; a public address that is silent is silent to
/// Stripe too.
fn unreachable(url: &str, error: &reqwest::Error) -> Finding {
    let level = if is_loopback(url) { Level::Note } else { Level::Fault };
    let what = if error.is_timeout() { "does not answer in time" } else { "is not reached" };
    let detail = format!("not tried: {url} {what}; does the daemon run there?");
    Finding::of(ROUND_TRIP, level, detail)
}

/// What an answer that is no success says about the daemon.
fn why(url: &str, status: u16, said: &str) -> String {
    let said: Value = serde_json::from_str(said).unwrap_or_default();
    let message = said["error"]["message"].as_str().unwrap_or_default();
    match said["error"]["code"].as_str() {
        Some("invalid_signature") => {
            format!("the daemon at {url} has other secrets in STRIPE_WEBHOOK_SECRET: {message}")
        }
        Some("not_configured" | "wrong_mode") => format!("the daemon at {url} says: {message}"),
        Some(code) => format!("the daemon at {url} answers {status} {code}: {message}"),
        None => format!("{url} answers {status}: that is no Tollgate"),
    }
}

/// Has Stripe send its own, and looks for it in the database.
async fn ping(stripe: &Stripe, store: &Store, destination: &str) -> Finding {
    let id = match stripe.ping(destination).await {
        Ok(id) => id,
        Err(error) => return Finding::of(PING, Level::Note, format!("not tried: {error}")),
    };
    for _ in 0..LOOKS {
        match store.event_body(&id).await {
            Ok(Some(_)) => {
                return match store.forget_event(&id).await {
                    Ok(()) => Finding::of(PING, Level::Ok, "arrives, signed with a secret of ours"),
                    Err(error) => Finding::of(PING, Level::Fault, error.to_string()),
                };
            }
            Ok(None) => tokio::time::sleep(PAUSE).await,
            Err(error) => return Finding::of(PING, Level::Fault, error.to_string()),
        }
    }
    // Stripe promises no speed.
    let detail = format!(
        "{id} was sent and has not arrived in ten seconds: is the secret of {destination} in \
         STRIPE_WEBHOOK_SECRET?"
    );
    Finding::of(PING, Level::Note, detail)
}

/// What the database knows of the endpoint's own secret.
async fn deliveries(store: &Store, endpoint: &str) -> Finding {
    let proof = format!("that the secret of {endpoint} is ours only its own events show");
    match last_delivered(store).await {
        Ok(Some(at)) => {
            Finding::of(DELIVERY, Level::Note, format!("{proof}: the last came at {at}"))
        }
        Ok(None) => Finding::of(DELIVERY, Level::Note, format!("{proof}: none has come lately")),
        Err(error) => Finding::of(DELIVERY, Level::Fault, error.to_string()),
    }
}

/// When the last snapshot event came that Stripe sent by itself.
async fn last_delivered(store: &Store) -> Result<Option<Timestamp>, StoreError> {
    for event in store.list_events(None, None, LATEST).await? {
        // Thin events are named with the version of their API, and come from the destination.
        let kind = event.event_type.as_str();
        if ["v1.", "v2.", "tollgate."].iter().any(|not_sent| kind.starts_with(not_sent)) {
            continue;
        }
        let body = store.event_body(&event.event_id).await?.unwrap_or_default();
        let body: Value = serde_json::from_str(&body).unwrap_or_default();
        let made_at = body["created"].as_i64().map(Timestamp::from_seconds);
        if made_at.is_some_and(|at| event.received_at.since(at) < SENT_WITHIN) {
            return Ok(Some(event.received_at));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_daemons_own_word_says_that_an_event_is_stored() {
        assert!(is_received(r#"{"received":true}"#));
        for other in ["", "ok", "{}", "[true]", r#"{"received":"true"}"#] {
            assert!(!is_received(other), "{other}");
        }
    }
}

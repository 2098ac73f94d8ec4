//! Whether webhooks arrive, found out by sending some: an event of our own making, signed with each
//! secret, to our own public address, and a ping of Stripe's to its destination of thin events.
//!
//! The first shows address, TLS, routing, and that the daemon there has these secrets; it is stored
//! and ignored. The second shows that Stripe itself comes through, with the destination's secret.
//! For an endpoint of snapshot events Stripe offers no such thing, and tells its secret to nobody
//! twice, so whether that is among ours only its deliveries show.

use std::time::Duration;

use reqwest::redirect::Policy;
use serde_json::{Value, json};

use super::{Finding, Level};
use crate::cli::provision::is_loopback;
use crate::clock::Clock;
use crate::config::Config;
use crate::domain::provision::{Kind, State, Step};
use crate::entropy::Entropy;
use crate::store::Store;
use crate::stripe::{Stripe, signature};

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often, and how many times, to look whether a ping has arrived: ten seconds.
const PAUSE: Duration = Duration::from_millis(250);
const LOOKS: usize = 40;

const ROUND_TRIP: &str = "round trip";
const PING: &str = "stripe's ping";

pub async fn examine(
    config: &Config,
    stripe: &Stripe,
    store: Option<&Store>,
    steps: &[Step],
) -> Vec<Finding> {
    if config.stripe_webhook_secrets.is_empty() {
        return Vec::new();
    }
    let finding = round_trip(config, store).await;
    let arrives = finding.level == Level::Ok;
    let mut findings = vec![finding];
    let destination = steps.iter().find(|step| step.kind == Kind::Destination);
    if let (Some(State::Right { id }), true, Some(store)) =
        (destination.map(|step| &step.state), arrives, store)
    {
        findings.push(ping(stripe, store, id).await);
    }
    findings
}

/// Sends one event, once for each secret.
async fn round_trip(config: &Config, store: Option<&Store>) -> Finding {
    let url = format!("{}/webhooks/stripe", config.public_url);
    let clock = Clock::system();
    let id = Entropy::system().id("evt_tollgate", clock.now());
    let event = json!({
        "id": id, "object": "event", "type": "tollgate.doctor", "livemode": config.livemode(),
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
            Ok((200, _)) => {}
            Ok((status, said)) => {
                return Finding::of(ROUND_TRIP, Level::Fault, why(&url, status, &said));
            }
            Err(error) => return unreachable(&url, &error),
        }
    }
    let Some(store) = store else {
        return Finding::of(ROUND_TRIP, Level::Ok, format!("{url} takes events signed by us"));
    };
    match store.event_body(&id).await {
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
                return Finding::of(PING, Level::Ok, "arrives, signed with a secret of ours");
            }
            Ok(None) => tokio::time::sleep(PAUSE).await,
            Err(error) => return Finding::of(PING, Level::Fault, error.to_string()),
        }
    }
    let detail = format!(
        "{id} was sent and has not arrived: is the secret of {destination} in STRIPE_WEBHOOK_SECRET?"
    );
    Finding::of(PING, Level::Fault, detail)
}

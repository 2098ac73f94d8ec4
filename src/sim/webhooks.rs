//! Webhook endpoints, and the deliveries of events to them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use super::Simulator;
use super::answer::ApiError;
use super::catalog::apply;
use super::faults::WebhookDamage;
use super::params::{MetadataChange, Params};
use super::state::{API_VERSION, Call, Page, State, Table, text};
use crate::clock::Timestamp;

/// Stripe gives up on a live delivery after three days.
const RETRIED_FOR: Duration = Duration::from_secs(3 * 86_400);
/// The first wait and the longest; the waits between are ours, Stripe says only "exponential".
const FIRST_RETRY: Duration = Duration::from_secs(5 * 60);
const LONGEST_RETRY: Duration = Duration::from_secs(12 * 3600);

/// How long a rolled secret goes on signing beside the new one.
const BOTH_SIGN_FOR: Duration = Duration::from_secs(86_400);

/// One event on its way to one endpoint.
struct Delivery {
    event: String,
    endpoint: String,
    /// Frozen when the event happened.
    body: Arc<str>,
    planned_at: Timestamp,
    attempts: u32,
    outcome: Outcome,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Pending,
    Delivered,
    GivenUp,
}

/// All deliveries there ever were, and the secrets they are signed with.
#[derive(Default)]
pub(super) struct Deliveries {
    rows: Vec<Delivery>,
    /// Due moment in milliseconds, and the place in `rows`.
    pending: BTreeSet<(i64, usize)>,
    /// By endpoint or destination.
    secrets: HashMap<String, Secret>,
}

/// What an endpoint's webhooks are signed with.
struct Secret {
    current: String,
    /// The one before it, which signs as well until this moment.
    former: Option<(String, Timestamp)>,
}

/// One post to be made now.
pub(super) struct Posting {
    pub place: usize,
    pub url: String,
    pub secrets: Vec<String>,
    pub body: Arc<str>,
}

/// How long to wait after the `attempts`th failure.
fn retry_delay(attempts: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(attempts.saturating_sub(1));
    FIRST_RETRY.saturating_mul(doubled).min(LONGEST_RETRY)
}

impl Secret {
    /// Those that sign at this moment, the current one first.
    fn valid_at(&self, now: Timestamp) -> Vec<String> {
        let former = self.former.iter().filter(|(_, until)| now < *until);
        let former = former.map(|(secret, _)| secret.clone());
        std::iter::once(self.current.clone()).chain(former).collect()
    }
}

impl Deliveries {
    pub fn set_secret(&mut self, endpoint: &str, secret: String) {
        let secret = Secret { current: secret, former: None };
        self.secrets.insert(endpoint.to_owned(), secret);
    }

    /// Replaces a secret; the former one signs too for a while. False if there is none.
    fn roll_secret(&mut self, endpoint: &str, new: String, now: Timestamp) -> bool {
        let Some(secret) = self.secrets.get_mut(endpoint) else { return false };
        let former = std::mem::replace(&mut secret.current, new);
        secret.former = Some((former, now.plus(BOTH_SIGN_FOR)));
        true
    }

    pub fn next_due(&self) -> Option<Timestamp> {
        self.pending.first().map(|(at_ms, _)| Timestamp::from_ms(*at_ms))
    }

    /// How many endpoints still wait for the event.
    pub fn pending_for(&self, event: &str) -> usize {
        let waits = |row: &&Delivery| row.event == event && row.outcome == Outcome::Pending;
        self.rows.iter().filter(waits).count()
    }

    /// Events that at least one endpoint has not got.
    pub fn undelivered_events(&self) -> HashSet<&str> {
        let undelivered = self.rows.iter().filter(|row| row.outcome != Outcome::Delivered);
        undelivered.map(|row| row.event.as_str()).collect()
    }

    /// Notes how a posting went: a failed one is tried again later, for three days.
    pub fn finish(&mut self, place: usize, delivered: bool, now: Timestamp) {
        let row = &mut self.rows[place];
        row.attempts += 1;
        if delivered {
            row.outcome = Outcome::Delivered;
            return;
        }
        let again_at = now.plus(retry_delay(row.attempts));
        if again_at.since(row.planned_at) > RETRIED_FOR {
            row.outcome = Outcome::GivenUp;
        } else {
            self.pending.insert((again_at.ms(), place));
        }
    }
}

/// Takes everything due, in the order it became due.
pub(super) fn take_due(state: &mut State, now: Timestamp) -> Vec<Posting> {
    let mut postings = Vec::new();
    while let Some((at_ms, _)) = state.deliveries.pending.first()
        && *at_ms <= now.ms()
        && let Some((_, place)) = state.deliveries.pending.pop_first()
    {
        let row = &mut state.deliveries.rows[place];
        let tables = [&state.webhook_endpoints, &state.event_destinations];
        let endpoint = tables.iter().find_map(|table| table.get(&row.endpoint));
        let secret = state.deliveries.secrets.get(&row.endpoint);
        let (Some(endpoint), Some(secret)) = (endpoint.filter(is_enabled), secret) else {
            row.outcome = Outcome::GivenUp;
            continue;
        };
        postings.push(Posting {
            place,
            url: text(endpoint, "url").to_owned(),
            secrets: secret.valid_at(now),
            body: row.body.clone(),
        });
    }
    postings
}

/// Whether an endpoint was told of an event of this kind about this object, and did not take it.
pub(super) fn was_refused(state: &State, kind: &str, object: &str) -> bool {
    let about = |event: &&Value| event["type"] == kind && event["data"]["object"]["id"] == object;
    let Some(event) = state.events.iter().rev().find(about) else { return false };
    let rows = state.deliveries.rows.iter().rev();
    let mut rows = rows.filter(|row| row.event == text(event, "id"));
    rows.any(|row| row.attempts > 0 && row.outcome != Outcome::Delivered)
}

fn is_enabled(endpoint: &&Value) -> bool {
    endpoint["status"] == "enabled"
}

/// The endpoints that want snapshot events of this kind.
pub(super) fn listeners(state: &State, kind: &str) -> Vec<String> {
    listeners_in(&state.webhook_endpoints, kind)
}

/// The destinations that want thin events of this kind.
pub(super) fn thin_listeners(state: &State, kind: &str) -> Vec<String> {
    listeners_in(&state.event_destinations, kind)
}

fn listeners_in(table: &Table, kind: &str) -> Vec<String> {
    let wants = |endpoint: &&Value| {
        let kinds = endpoint["enabled_events"].as_array();
        kinds.into_iter().flatten().any(|wanted| wanted == "*" || wanted == kind)
    };
    let endpoints = table.iter().filter(is_enabled).filter(wants);
    endpoints.map(|endpoint| text(endpoint, "id").to_owned()).collect()
}

/// Plans an event's delivery. The body is frozen here: later changes do not show in it.
pub(super) fn plan(call: &mut Call<'_>, event: &Value, endpoints: Vec<String>) {
    let body: Arc<str> = format!("{event:#}").into();
    let deliveries = &mut call.state.deliveries;
    for endpoint in endpoints {
        let place = deliveries.rows.len();
        if !call.faults.drop_webhooks {
            deliveries.pending.insert((call.real_now.ms(), place));
        }
        deliveries.rows.push(Delivery {
            event: text(event, "id").to_owned(),
            endpoint,
            body: body.clone(),
            planned_at: call.real_now,
            attempts: 0,
            outcome: if call.faults.drop_webhooks { Outcome::GivenUp } else { Outcome::Pending },
        });
    }
}

/// The header `Stripe-Signature`: for each secret HMAC-SHA256 over the second, a point and the
/// body.
pub(super) fn signature(secrets: &[String], at: Timestamp, body: &str) -> String {
    let at_s = at.seconds();
    let v1 = secrets.iter().map(|secret| {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes())
            .expect("HMAC takes keys of any length");
        mac.update(format!("{at_s}.{body}").as_bytes());
        format!(",v1={}", hex::encode(mac.finalize().into_bytes()))
    });
    format!("t={at_s}{}", v1.collect::<String>())
}

impl Posting {
    /// The signature and the body as they arrive.
    pub fn arrives(&self, now: Timestamp, damage: Option<WebhookDamage>) -> (String, String) {
        /// Twice as old as the official libraries accept.
        const STALE: Duration = Duration::from_secs(600);
        let body = self.body.to_string();
        match damage {
            None => (signature(&self.secrets, now, &body), body),
            Some(WebhookDamage::StaleSignature) => {
                let then = Timestamp::from_ms(now.ms() - STALE.as_millis() as i64);
                (signature(&self.secrets, then, &body), body)
            }
            Some(WebhookDamage::ForeignSecret) => {
                (signature(&["whsec_of_another_endpoint".to_owned()], now, &body), body)
            }
            Some(WebhookDamage::AlteredWhitespace) => {
                let event: Value = serde_json::from_str(&body).unwrap_or_default();
                (signature(&self.secrets, now, &body), event.to_string())
            }
            Some(WebhookDamage::OldApiVersion) => {
                let event = serde_json::from_str(&body).unwrap_or_default();
                let body = format!("{:#}", as_in_old_version(event));
                (signature(&self.secrets, now, &body), body)
            }
        }
    }
}

/// A snapshot event as an endpoint of a version before 2025-03-31 gets it.
fn as_in_old_version(mut event: Value) -> Value {
    if event["object"] != "event" {
        return event;
    }
    event["api_version"] = "2024-06-20".into();
    let object = &mut event["data"]["object"];
    if object["object"] == "subscription" {
        for field in ["current_period_end", "current_period_start"] {
            let items = object["items"]["data"].as_array_mut().into_iter().flatten();
            let moved: Vec<Value> =
                items.filter_map(|item| item.as_object_mut()?.remove(field)).collect();
            object[field] = moved.into_iter().next().unwrap_or_default();
        }
        if let Some(fields) = object.as_object_mut() {
            fields.remove("billing_mode");
        }
    }
    event
}

/// Adds an endpoint that hears of the given kinds of events.
pub(super) fn add(
    call: &mut Call<'_>,
    url: &str,
    secret: String,
    enabled_events: &[String],
) -> Value {
    let endpoint = json!({
        "id": call.id("we"),
        "object": "webhook_endpoint",
        "api_version": API_VERSION,
        "application": null,
        "created": call.now_s(),
        "description": null,
        "enabled_events": enabled_events,
        "livemode": false,
        "metadata": {},
        "status": "enabled",
        "url": url,
    });
    call.state.deliveries.set_secret(text(&endpoint, "id"), secret);
    call.state.webhook_endpoints.put(endpoint.clone());
    endpoint
}

fn read_url(params: &mut Params) -> Result<Option<String>, ApiError> {
    let Some(url) = params.text("url")? else { return Ok(None) };
    match reqwest::Url::parse(&url) {
        Ok(parsed) if matches!(parsed.scheme(), "http" | "https") => Ok(Some(url)),
        _ => Err(ApiError::invalid("url", "Not a valid URL")),
    }
}

pub(super) fn create(call: &mut Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let url = read_url(&mut params)?.ok_or_else(|| params.missing("url"))?;
    let enabled_events = params.texts("enabled_events")?;
    let version = params.text("api_version")?;
    let description = params.clearable("description")?.unwrap_or_default();
    let metadata = MetadataChange::fresh(params.metadata()?);
    if enabled_events.is_empty() {
        return Err(params.missing("enabled_events"));
    }
    params.finish(&["connect"])?;
    if let Some(version) = version.filter(|version| version != API_VERSION) {
        return Err(ApiError::other_version(&version));
    }
    let secret = format!("whsec_{}", hex::encode(call.entropy.secret()));
    let mut endpoint = add(call, &url, secret.clone(), &enabled_events);
    endpoint["description"] = description;
    endpoint["metadata"] = metadata.into();
    call.state.webhook_endpoints.put(endpoint.clone());
    // Shown this once, never again.
    endpoint["secret"] = secret.into();
    Ok(endpoint)
}

fn find(call: &Call<'_>, id: &str) -> Result<Value, ApiError> {
    let endpoint = call.state.webhook_endpoints.get(id).cloned();
    endpoint.ok_or_else(|| ApiError::no_such("webhook endpoint", id))
}

pub(super) fn retrieve(call: &Call<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish(&[])?;
    find(call, id)
}

pub(super) fn update(call: &mut Call<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let url = read_url(&mut params)?.map(Value::from);
    let enabled_events = params.texts("enabled_events")?;
    let disabled = params.boolean("disabled")?;
    let description = params.clearable("description")?;
    let metadata = params.metadata()?;
    params.finish(&[])?;
    let mut endpoint = find(call, id)?;
    let enabled_events = (!enabled_events.is_empty()).then(|| enabled_events.into());
    let status = disabled.map(|disabled| if disabled { "disabled" } else { "enabled" }.into());
    let changes = vec![
        ("url", url),
        ("enabled_events", enabled_events),
        ("status", status),
        ("description", description),
    ];
    apply(&mut endpoint, changes, metadata.as_ref());
    call.state.webhook_endpoints.put(endpoint.clone());
    Ok(endpoint)
}

pub(super) fn list(call: &Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::read(&mut params)?;
    params.finish(&[])?;
    let endpoints = call.state.webhook_endpoints.iter().rev().cloned();
    page.cut("/v1/webhook_endpoints", "webhook endpoint", endpoints, |_| true)
}

pub(super) fn delete(call: &mut Call<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish(&[])?;
    find(call, id)?;
    call.state.webhook_endpoints.remove(id);
    call.state.deliveries.secrets.remove(id);
    Ok(json!({ "id": id, "object": "webhook_endpoint", "deleted": true }))
}

impl Simulator {
    /// Makes an endpoint one of another API version, as one that an older program has made. What it
    /// is sent stays as it is. Fails if there is no such endpoint.
    pub fn set_webhook_version(&self, endpoint: &str, version: &str) -> anyhow::Result<()> {
        self.with_call(|call| {
            let found = call.state.webhook_endpoints.get(endpoint).cloned();
            let Some(mut row) = found else { anyhow::bail!("there is no endpoint {endpoint}") };
            row["api_version"] = version.into();
            call.state.webhook_endpoints.put(row);
            Ok(())
        })
    }

    /// Gives an endpoint or a destination a new secret, as the Dashboard's "roll secret" does: for
    /// a day both sign. Fails if there is no such endpoint.
    pub fn roll_webhook_secret(&self, endpoint: &str, secret: &str) -> anyhow::Result<()> {
        let rolled = self.with_call(|call| {
            call.state.deliveries.roll_secret(endpoint, secret.to_owned(), call.real_now)
        });
        anyhow::ensure!(rolled, "there is no webhook endpoint {endpoint}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_an_hmac_of_second_and_body() {
        // Computed with: printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac whsec_test
        assert_eq!(
            signature(
                &["whsec_test".to_owned()],
                Timestamp::from_seconds(1_700_000_000),
                r#"{"a":1}"#
            ),
            "t=1700000000,v1=38877139021993b830af32feea6e18a8da83eb2f6e49ee50bd9e4cf4ca4d3789"
        );
    }

    #[test]
    fn retries_double_up_to_half_a_day() {
        let minutes: Vec<u64> = (1..=9).map(|n| retry_delay(n).as_secs() / 60).collect();
        assert_eq!(minutes, [5, 10, 20, 40, 80, 160, 320, 640, 720]);
    }
}

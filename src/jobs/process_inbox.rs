//! Applies stored Stripe events: each is a hint to fetch its customer's subscription anew.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Progress;
use crate::app::App;
use crate::domain::ids::CustomerId;
use crate::store::StoreError;
use crate::store::inbox::{EventOutcome, StoredEvent};
use crate::stripe::event::{concerns_tier, parse};
use crate::sync::link::{LINKED, LinkError, link_from_stripe};
use crate::sync::rejections::{self, concerns_meter_events};
use crate::sync::{SyncError, sync_tier};

/// How many events one step takes.
const AT_ONCE: i64 = 200;
/// The longest wait between two tries, so that all is well again minutes after Stripe is.
const LONGEST_WAIT: Duration = Duration::from_secs(5 * 60);
/// After this many tries, some three days, an event waits for a person. Stripe itself would go on
/// delivering for as long.
const MAX_ATTEMPTS: i64 = 1000;

/// This many failures of Stripe's in a row mean that it is at fault, not the customers asked for:
/// the others wait for the next step, instead of each for a timeout.
const GIVE_UP_AFTER: u32 = 3;

/// Whom an event concerns.
enum Concerned {
    Customer(CustomerId),
    /// Someone who is not known yet, or not tied yet; says so for people.
    Nobody(String),
    Settled(EventOutcome),
}

pub(super) async fn step(app: &App) -> anyhow::Result<Progress> {
    let events = app.store.pending_events(app.clock.now(), AT_ONCE).await?;
    let taken = events.len();
    let mut trouble = Trouble::default();
    let mut by_customer: BTreeMap<CustomerId, Vec<StoredEvent>> = BTreeMap::new();
    for event in events {
        match concerned(app, &event).await {
            Ok(Concerned::Customer(id)) => by_customer.entry(id).or_default().push(event),
            Ok(Concerned::Nobody(reason)) => park_until_known(app, &event, reason).await?,
            Ok(Concerned::Settled(outcome)) => {
                settle(app, None, &[event], |_| outcome.clone()).await?;
            }
            Err(error) => {
                settle(app, None, &[event], |event| after_failure(app, event, &error)).await?;
                if trouble.is_stripes(&error) {
                    return Ok(trouble.end());
                }
            }
        }
    }
    // One fetch serves all of a customer's events: each of them only says that something changed.
    for (id, events) in by_customer {
        match sync_tier(app, &id).await {
            Ok(()) => {
                settle(app, Some(&id), &events, |_| EventOutcome::Applied).await?;
                trouble = Trouble::default();
            }
            Err(error) => {
                tracing::warn!(customer_id = %id, %error, "a webhook could not be applied yet");
                settle(app, Some(&id), &events, |event| after_failure(app, event, &error)).await?;
                if trouble.is_stripes(&error) {
                    return Ok(trouble.end());
                }
            }
        }
    }
    Ok(Progress { done: taken, more: i64::try_from(taken).is_ok_and(|n| n >= AT_ONCE), note: None })
}

/// How often in a row Stripe itself has failed.
#[derive(Default)]
struct Trouble(u32);

impl Trouble {
    /// Counts a failure; answers whether Stripe is not worth asking any more now.
    fn is_stripes(&mut self, error: &SyncError) -> bool {
        self.0 = match error {
            SyncError::Stripe(_) if error.is_transient() => self.0 + 1,
            _ => 0,
        };
        self.0 >= GIVE_UP_AFTER
    }

    fn end(self) -> Progress {
        let note = Some("Stripe does not answer now: the rest waits".to_owned());
        Progress { note, ..Progress::default() }
    }
}

/// Finds the customer an event is about, tying it to its Stripe customer if the event or Stripe's
/// metadata says they are one.
async fn concerned(app: &App, event: &StoredEvent) -> Result<Concerned, SyncError> {
    let named = event.customer_id.as_deref();
    if event.event_type == LINKED {
        let id = named.and_then(|id| id.parse().ok());
        return Ok(id.map_or_else(|| parked("it names no customer"), Concerned::Customer));
    }
    if concerns_meter_events(&event.event_type) {
        return rejections::apply(app, event).await.map(Concerned::Settled);
    }
    if !concerns_tier(&event.event_type) {
        return Ok(Concerned::Settled(EventOutcome::Ignored));
    }
    match &event.stripe_customer_id {
        Some(stripe_id) => customer_of(app, event, stripe_id, named).await,
        None => match by_subscription(app, event).await? {
            Some((stripe_id, found)) => {
                customer_of(app, event, &stripe_id, named.or(found.as_deref())).await
            }
            None => Ok(parked("it names no Stripe customer")),
        },
    }
}

/// The customer tied to this Stripe customer, or the one `named` to be, which is tied to it now.
async fn customer_of(
    app: &App,
    event: &StoredEvent,
    stripe_id: &str,
    named: Option<&str>,
) -> Result<Concerned, SyncError> {
    if let Some(customer) = app.store.customer_by_stripe_id(stripe_id).await? {
        return Ok(Concerned::Customer(customer.id));
    }
    let named = match named {
        Some(id) => Some(id.to_owned()),
        None => named_in_metadata(app, stripe_id).await?,
    };
    // For the parked: whoever creates or links this customer must find it.
    note_names(app, event, stripe_id, named.as_deref()).await?;
    let Some(id) = named.and_then(|id| id.parse::<CustomerId>().ok()) else {
        return Ok(Concerned::Nobody("no customer is tied to its Stripe customer".to_owned()));
    };
    match link_from_stripe(app, &id, stripe_id).await {
        Ok(()) => Ok(Concerned::Customer(id)),
        Err(LinkError::Store(error)) => Err(error.into()),
        Err(error @ LinkError::UnknownCustomer) => {
            Ok(Concerned::Nobody(format!("it cannot be tied to customer {id}: {error}")))
        }
        Err(error) => Ok(parked(&format!("it cannot be tied to customer {id}: {error}"))),
    }
}

async fn note_names(
    app: &App,
    event: &StoredEvent,
    stripe_id: &str,
    named: Option<&str>,
) -> Result<(), StoreError> {
    let mut tx = app.store.begin().await?;
    tx.name_event(&event.event_id, stripe_id, named).await?;
    tx.commit().await
}

fn parked(reason: &str) -> Concerned {
    Concerned::Settled(EventOutcome::Parked { reason: reason.to_owned() })
}

/// Thin events of subscriptions name nothing but the subscription: Stripe says whose it is, and
/// which customer of ours its metadata names.
async fn by_subscription(
    app: &App,
    event: &StoredEvent,
) -> Result<Option<(String, Option<String>)>, SyncError> {
    let body = app.store.event_body(&event.event_id).await?.unwrap_or_default();
    let Some(id) = parse(body.as_bytes()).ok().and_then(|event| event.subscription_id) else {
        return Ok(None);
    };
    let stripe = app.stripe.as_ref().ok_or(SyncError::NotConfigured)?;
    let Some(found) = stripe.subscription(&id).await? else { return Ok(None) };
    Ok(Some((found.stripe_customer_id, found.tollgate_customer_id)))
}

async fn named_in_metadata(app: &App, stripe_id: &str) -> Result<Option<String>, SyncError> {
    let stripe = app.stripe.as_ref().ok_or(SyncError::NotConfigured)?;
    Ok(stripe.customer(stripe_id).await?.and_then(|found| found.tollgate_customer_id))
}

/// Tries again later what may pass by itself; parks the rest.
fn after_failure(app: &App, event: &StoredEvent, error: &SyncError) -> EventOutcome {
    let reason = error.to_string();
    match next_wait(event.attempts).filter(|_| error.is_transient()) {
        Some(wait) => {
            EventOutcome::TryAgain { at: app.clock.now().plus(app.entropy.jitter(wait)), reason }
        }
        None => EventOutcome::Parked { reason },
    }
}

/// How long to wait after a try that failed, `earlier` ones before it: twice as long each time.
/// `None` after the last.
fn next_wait(earlier: i64) -> Option<Duration> {
    let doublings = u32::try_from(earlier.clamp(0, 12)).unwrap_or(12);
    let wait = Duration::from_secs(2_u64.pow(doublings)).min(LONGEST_WAIT);
    (earlier + 1 < MAX_ATTEMPTS).then_some(wait)
}

/// Parks an event until its customer is created or tied, which puts it back. Whoever did that
/// while we looked found nothing parked yet, so we look once more.
async fn park_until_known(
    app: &App,
    event: &StoredEvent,
    reason: String,
) -> Result<(), StoreError> {
    let mut tx = app.store.begin().await?;
    let parked = EventOutcome::Parked { reason: reason.clone() };
    tx.settle_event(&event.event_id, None, &parked).await?;
    let known = tx.unpark_if_known(&event.event_id).await?;
    tx.commit().await?;
    if !known {
        note_parked(event, &reason);
    }
    Ok(())
}

fn note_parked(event: &StoredEvent, reason: &str) {
    tracing::warn!(event_id = event.event_id, reason, "a webhook is parked");
    metrics::counter!("tollgate_webhooks_parked_total").increment(1);
}

/// Settles events, found to concern `customer_id` or nobody known.
async fn settle(
    app: &App,
    customer_id: Option<&CustomerId>,
    events: &[StoredEvent],
    outcome: impl Fn(&StoredEvent) -> EventOutcome,
) -> Result<(), StoreError> {
    let mut tx = app.store.begin().await?;
    for event in events {
        let outcome = outcome(event);
        if let EventOutcome::Parked { reason } = &outcome {
            note_parked(event, reason);
        }
        tx.settle_event(&event.event_id, customer_id, &outcome).await?;
    }
    tx.commit().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_five_minutes_and_end_after_days() {
        let seconds = |earlier| next_wait(earlier).map(|wait| wait.as_secs());
        assert_eq!([0, 1, 2, 8, 9, 998].map(seconds), [1, 2, 4, 256, 300, 300].map(Some));
        assert_eq!([999, 1000].map(seconds), [None; 2]);
        let all: Duration = (0..).map_while(next_wait).sum();
        // Each is cut by up to a half at random.
        assert!(all > Duration::from_secs(3 * 86_400) && all < Duration::from_secs(4 * 86_400));
    }
}

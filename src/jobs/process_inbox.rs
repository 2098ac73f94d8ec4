//! Applies stored Stripe events: each is a hint to fetch its customer's subscription anew.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Progress;
use crate::app::App;
use crate::domain::ids::CustomerId;
use crate::store::StoreError;
use crate::store::inbox::{About, EventOutcome, StoredEvent};
use crate::stripe::Stripe;
use crate::stripe::event::concerns_tier;
use crate::sync::link::{LINKED, LinkError, link_from_stripe};
use crate::sync::{SyncError, sync_tier};

/// How many events one step takes.
const AT_ONCE: i64 = 200;
/// For how long an event is tried: as long as Stripe itself tries to deliver one. Then it waits for
/// a person, who puts it back with a sync.
const TRY_FOR: Duration = Duration::from_secs(3 * 24 * 60 * 60);
const LONGEST_WAIT: Duration = Duration::from_secs(15 * 60);

/// Whom an event concerns.
enum Concerned {
    Customer(CustomerId),
    Settled(EventOutcome),
}

pub(super) async fn step(app: &App) -> anyhow::Result<Progress> {
    let events = app.store.pending_events(app.clock.now(), AT_ONCE).await?;
    let taken = events.len();
    let mut by_customer: BTreeMap<CustomerId, Vec<StoredEvent>> = BTreeMap::new();
    for event in events {
        match concerned(app, &event).await {
            Ok(Concerned::Customer(id)) => by_customer.entry(id).or_default().push(event),
            Ok(Concerned::Settled(outcome)) => settle(app, &[event], |_| outcome.clone()).await?,
            // Without a database there is nothing to do; any other fault is this event's own.
            Err(SyncError::Store(error @ StoreError::Unavailable(_))) => return Err(error.into()),
            Err(error) => settle(app, &[event], |event| after_failure(app, event, &error)).await?,
        }
    }
    // One fetch serves all of a customer's events: each of them only says that something changed.
    for (id, events) in by_customer {
        match sync_tier(app, &id).await {
            Ok(()) => {
                settle(app, &events, |_| EventOutcome::Applied { customer_id: id.clone() }).await?;
            }
            Err(error) => {
                tracing::warn!(customer_id = %id, %error, "a webhook could not be applied yet");
                settle(app, &events, |event| after_failure(app, event, &error)).await?;
            }
        }
    }
    Ok(Progress { done: taken, more: i64::try_from(taken).is_ok_and(|n| n >= AT_ONCE), note: None })
}

/// Finds the customer an event is about, tying it to its Stripe customer if the event or Stripe's
/// metadata says they are one.
async fn concerned(app: &App, event: &StoredEvent) -> Result<Concerned, SyncError> {
    if event.event_type != LINKED && !concerns_tier(&event.event_type) {
        return Ok(Concerned::Settled(EventOutcome::Ignored));
    }
    let (stripe_id, mut named) = match (&event.stripe_customer_id, &event.subscription_id) {
        (Some(stripe_id), _) => (stripe_id.clone(), event.customer_id.clone()),
        (None, Some(subscription_id)) => match stripe(app)?.subscription(subscription_id).await? {
            Some(found) => (found.stripe_customer_id, found.tollgate_customer_id),
            None => return Ok(parked("Stripe knows no such subscription")),
        },
        (None, None) => return Ok(parked("it names no Stripe customer")),
    };
    if let Some(customer) = app.store.customer_by_stripe_id(&stripe_id).await? {
        return Ok(Concerned::Customer(customer.id));
    }
    if named.is_none() {
        named =
            stripe(app)?.customer(&stripe_id).await?.and_then(|found| found.tollgate_customer_id);
    }
    let mut tx = app.store.begin().await?;
    let about = About {
        stripe_customer_id: Some(&stripe_id),
        customer_id: named.as_deref(),
        ..About::default()
    };
    tx.complete_event(&event.event_id, &about).await?;
    tx.commit().await?;
    let Some(id) = named.and_then(|id| id.parse::<CustomerId>().ok()) else {
        return Ok(parked("no customer is tied to its Stripe customer"));
    };
    match link_from_stripe(app, &id, &stripe_id).await {
        Ok(()) => Ok(Concerned::Customer(id)),
        Err(LinkError::Store(error)) => Err(error.into()),
        Err(error) => Ok(parked(&format!("it cannot be tied to customer {id}: {error}"))),
    }
}

fn stripe(app: &App) -> Result<&Stripe, SyncError> {
    app.stripe.as_ref().ok_or(SyncError::NotConfigured)
}

fn parked(reason: &str) -> Concerned {
    Concerned::Settled(EventOutcome::Parked { reason: reason.to_owned() })
}

/// Tries again later, with doubling waits, what may pass by itself; parks the rest.
fn after_failure(app: &App, event: &StoredEvent, error: &SyncError) -> EventOutcome {
    let now = app.clock.now();
    if !error.is_transient() || now.since(event.received_at) >= TRY_FOR {
        return EventOutcome::Parked { reason: error.to_string() };
    }
    let doublings = u32::try_from(event.attempts.clamp(0, 11)).unwrap_or(11);
    let wait = Duration::from_secs(2_u64.pow(doublings)).min(LONGEST_WAIT);
    EventOutcome::TryAgain { at: now.plus(app.entropy.jitter(wait)), reason: error.to_string() }
}

async fn settle(
    app: &App,
    events: &[StoredEvent],
    outcome: impl Fn(&StoredEvent) -> EventOutcome,
) -> Result<(), StoreError> {
    let mut tx = app.store.begin().await?;
    for event in events {
        let outcome = outcome(event);
        if let EventOutcome::Parked { reason } = &outcome {
            tracing::warn!(event_id = event.event_id, reason, "a webhook is parked");
            metrics::counter!("tollgate_webhooks_parked_total").increment(1);
        }
        tx.settle_event(&event.event_id, &outcome).await?;
    }
    tx.commit().await
}

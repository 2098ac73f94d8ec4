//! Applies stored Stripe events: each is a hint to fetch its customer's subscription anew. What that,
//! or the product, has put out of force at Stripe is closed there.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Progress;
use crate::app::App;
use crate::domain::ids::CustomerId;
use crate::store::StoreError;
use crate::store::inbox::{EventOutcome, StoredEvent};
use crate::stripe::Whose;
use crate::stripe::event::{concerns_meter_events, concerns_tier, parse};
use crate::sync::link::{LINKED, LinkError, link_from_stripe};
use crate::sync::rejections;
use crate::sync::upgrade::close_left;
use crate::sync::{SyncError, Trouble, sync_tier};

/// How many events one step takes.
const AT_ONCE: i64 = 200;
/// The longest wait between two tries, so that all is well again minutes after Stripe is.
const LONGEST_WAIT: Duration = Duration::from_secs(5 * 60);
/// After this many tries, some three days, an event waits for a person. Stripe itself would go on
/// delivering for as long.
const MAX_ATTEMPTS: i64 = 1000;

/// Whom an event concerns.
enum Concerned {
    Customer(CustomerId),
    Settled(EventOutcome),
}

pub(super) async fn step(app: &App) -> anyhow::Result<Progress> {
    put_back_those_of_known(app).await?;
    let events = app.store.pending_events(app.clock.now(), AT_ONCE).await?;
    let taken = events.len();
    let (mut trouble, mut rest_waits) = (Trouble::default(), false);
    let mut by_customer: BTreeMap<CustomerId, Vec<StoredEvent>> = BTreeMap::new();
    for event in events {
        let found = concerned(app, &event).await;
        // One that names its customer is found without asking Stripe, which says nothing about it.
        let tells = found.is_err() || event.stripe_customer_id.is_none();
        let stripe_fails = tells && trouble.is_stripes(&found);
        match found {
            Ok(Concerned::Customer(id)) => by_customer.entry(id).or_default().push(event),
            Ok(Concerned::Settled(outcome)) => {
                settle(app, None, &[event], |_| outcome.clone()).await?;
            }
            Err(error) => {
                settle(app, None, &[event], |event| after_failure(app, event, &error)).await?;
            }
        }
        if stripe_fails {
            // What stands in the way of these need not stand in the way of tiers.
            rest_waits = true;
            break;
        }
    }
    // One fetch serves all of a customer's events: each of them only says that something changed.
    for (id, events) in by_customer {
        let synced = sync_tier(app, &id).await;
        let stripe_fails = trouble.is_stripes(&synced);
        match synced {
            Ok(()) => settle(app, Some(&id), &events, |_| EventOutcome::Applied).await?,
            Err(error) => {
                tracing::warn!(customer_id = %id, %error, "a webhook could not be applied yet");
                settle(app, Some(&id), &events, |event| after_failure(app, event, &error)).await?;
            }
        }
        if stripe_fails {
            return Ok(the_rest_waits());
        }
    }
    if rest_waits {
        return Ok(the_rest_waits());
    }
    if let Err(error) = close_left(app).await {
        tracing::warn!(%error, "a Checkout page that nobody should pay on is not closed yet");
    }
    Ok(Progress { done: taken, more: i64::try_from(taken).is_ok_and(|n| n >= AT_ONCE), note: None })
}

fn the_rest_waits() -> Progress {
    let note = Some("Stripe does not answer now: the rest waits".to_owned());
    Progress { note, ..Progress::default() }
}

/// Whoever creates or ties a customer puts back what waits for it. An event that was on its way to
/// being parked meanwhile, for want of that very customer, is put back here.
async fn put_back_those_of_known(app: &App) -> Result<(), StoreError> {
    let waiting = app.store.waiting_events_of_known(AT_ONCE).await?;
    if waiting.is_empty() {
        return Ok(());
    }
    let mut tx = app.store.begin().await?;
    for event_id in &waiting {
        tx.replay_event(event_id).await?;
    }
    tx.commit().await
}

/// What is to be done about an event. What concerns neither a tier nor anything else here is only
/// kept.
async fn concerned(app: &App, event: &StoredEvent) -> Result<Concerned, SyncError> {
    match event.event_type.as_str() {
        LINKED => {
            let id = event.customer_id.as_deref().and_then(|id| id.parse().ok());
            Ok(id.map_or_else(|| parked("it names no customer"), Concerned::Customer))
        }
        tells_of_tier if concerns_tier(tells_of_tier) => whose_tier(app, event).await,
        tells_of_usage if concerns_meter_events(tells_of_usage) => {
            rejections::apply(app, event).await.map(Concerned::Settled)
        }
        _ => Ok(Concerned::Settled(EventOutcome::Ignored)),
    }
}

/// Finds the customer whose tier an event is about, tying it to its Stripe customer if the event or
/// Stripe's metadata says they are one.
async fn whose_tier(app: &App, event: &StoredEvent) -> Result<Concerned, SyncError> {
    let named = event.customer_id.as_deref();
    if let Some(stripe_id) = &event.stripe_customer_id {
        return customer_of(app, event, stripe_id, named).await;
    }
    // A snapshot without one is about nobody. A thin event names nothing but its object, and
    // Stripe says whose that is.
    let Some(object_id) = thin_object(app, event).await? else {
        return Ok(Concerned::Settled(EventOutcome::Ignored));
    };
    let stripe = app.stripe.as_ref().ok_or(SyncError::NotConfigured)?;
    match stripe.whose(&object_id).await? {
        Some(Whose { stripe_customer_id: Some(stripe_id), tollgate_customer_id }) => {
            let named = named.or(tollgate_customer_id.as_deref());
            customer_of(app, event, &stripe_id, named).await
        }
        Some(_) => Ok(Concerned::Settled(EventOutcome::Ignored)),
        None => Ok(parked("Stripe does not have the object that it is about")),
    }
}

async fn thin_object(app: &App, event: &StoredEvent) -> Result<Option<String>, StoreError> {
    if !event.event_type.starts_with("v1.") {
        return Ok(None);
    }
    let body = app.store.event_body(&event.event_id).await?.unwrap_or_default();
    let event = parse(body.as_bytes()).ok();
    Ok(event.and_then(|event| event.subscription_id.or(event.object_id)))
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
        return Ok(waiting("no customer is tied to its Stripe customer".to_owned()));
    };
    match link_from_stripe(app, &id, stripe_id).await {
        Ok(()) => Ok(Concerned::Customer(id)),
        Err(LinkError::Store(error)) => Err(error.into()),
        Err(error @ LinkError::UnknownCustomer) => {
            Ok(waiting(format!("it cannot be tied to customer {id}: {error}")))
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

fn waiting(reason: String) -> Concerned {
    Concerned::Settled(EventOutcome::Waiting { reason })
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
        if let EventOutcome::Parked { reason } | EventOutcome::Waiting { reason } = &outcome {
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

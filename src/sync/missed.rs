//! Webhooks that never came: Stripe is asked which events it could not deliver.
//!
//! Stripe delivers for three days, and lists for thirty what it could not. The list is read from
//! where it was read before, a bounded number of pages at a time, and what is found goes into the
//! inbox as if it had come. What the list does not know of (an endpoint that was not there yet, a
//! database restored from yesterday, a thin event) is found by the sweep.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::SyncError;
use crate::app::App;
use crate::clock::Timestamp;
use crate::store::StoreError;
use crate::stripe::EventPage;

/// How far back Stripe can tell. <https://docs.stripe.com/api/events/list>
const REMEMBERED: Duration = Duration::from_secs(30 * 86_400);
/// A younger event may simply be on its way.
const ON_ITS_WAY: Duration = Duration::from_secs(5 * 60);
/// Where the list was read to its end before, this much is read again, because an event may be
/// listed later than it was made.
const OVERLAP: Duration = Duration::from_secs(3600);
/// Neither the list is asked for oftener than this, nor about anyone whose renewal is late, however
/// often someone looks.
pub(super) const ASK_EVERY: Duration = Duration::from_secs(50 * 60);
/// How many pages of 100 events are read at a time. Once an hour that is at most 7,200 reads a
/// month, and while all is well 720, of the 10,000 that Stripe allows at the least.
const PAGES_AT_ONCE: usize = 10;
/// Where it is kept how far the list was read.
const SETTING: &str = "missed_webhooks";

/// How far the list was read. It begins with the newest, so a reading that stopped half-way goes
/// on after the last event it saw, and only its end moves `read_to`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
struct Reading {
    /// Everything before this moment has been seen; `None` before the first reading.
    read_to: Option<Timestamp>,
    /// A reading that has not come to its end: up to which moment, and after which event.
    under_way: Option<(Timestamp, String)>,
    /// When Stripe was asked last.
    asked_at: Option<Timestamp>,
}

impl Reading {
    /// Without what a clock noted that was ahead of this one.
    fn seen_at(self, now: Timestamp) -> Self {
        Self {
            read_to: self.read_to.filter(|read_to| *read_to <= now),
            under_way: self.under_way.filter(|(to, _)| *to <= now),
            asked_at: self.asked_at.filter(|asked_at| *asked_at <= now),
        }
    }
}

/// Puts into the inbox what Stripe could not deliver since the last time; answers how many of it
/// were not there.
///
/// # Errors
/// When Stripe or the database cannot answer. What was read until then is kept, and the next time
/// it goes on from there.
pub async fn fetch_missed(app: &App) -> Result<usize, SyncError> {
    let stripe = app.stripe.as_ref().ok_or(SyncError::NotConfigured)?;
    let now = app.clock.now();
    let kept = app.store.setting(SETTING).await?;
    // Whatever cannot be read any more is a reason to begin again, not to stop.
    let reading: Reading =
        kept.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let reading = reading.seen_at(now);
    if reading.asked_at.is_some_and(|asked_at| now.since(asked_at) < ASK_EVERY) {
        return Ok(0);
    }
    let oldest = now.minus(REMEMBERED);
    let from = reading.read_to.map_or(oldest, |read_to| read_to.minus(OVERLAP).max(oldest));
    let (to, mut after) = match reading.under_way {
        Some((to, after)) => (to, Some(after)),
        None => (now.minus(ON_ITS_WAY), None),
    };
    let (mut new, mut failed) = (0, None);
    for _ in 0..PAGES_AT_ONCE {
        let page = match stripe.undelivered_events(from, to, after.as_deref()).await {
            // The event to go on after is older than Stripe remembers, and so is all after it.
            Err(error) if after.is_some() && error.is_missing() => EventPage::default(),
            Err(error) => {
                failed = Some(error);
                break;
            }
            Ok(page) => page,
        };
        new += store(app, &page).await?;
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let asked_at = Some(now);
    let reading = match after {
        Some(after) => Reading { under_way: Some((to, after)), asked_at, ..reading },
        None if failed.is_some() => Reading { under_way: None, asked_at, ..reading },
        None => Reading { read_to: Some(to), under_way: None, asked_at },
    };
    let text = serde_json::to_string(&reading).expect("times and an id are plain JSON");
    app.store.put_setting(SETTING, &text).await?;
    if new > 0 {
        tracing::warn!(new, "Stripe could not deliver webhooks: they were fetched");
        metrics::counter!("tollgate_webhooks_missed_total").increment(new as u64);
        app.nudges.inbox.notify_one();
    }
    failed.map_or(Ok(new), |error| Err(error.into()))
}

/// Stores a page's events; answers how many were not known.
async fn store(app: &App, page: &EventPage) -> Result<usize, StoreError> {
    let ours = app.stripe.as_ref().and_then(crate::stripe::Stripe::live_mode);
    let mut new = 0;
    let mut tx = app.store.begin().await?;
    for (event, body) in &page.events {
        let other_mode = ours.is_some() && event.livemode.is_some() && ours != event.livemode;
        if other_mode {
            continue;
        }
        let (stripe_id, named) = (event.stripe_customer_id.as_deref(), event.names_customer());
        let is_new = tx.insert_event(&event.id, &event.event_type, stripe_id, named, body).await?;
        new += usize::from(is_new);
    }
    tx.commit().await?;
    Ok(new)
}

//! Looks after what webhooks may have missed, so that a tier is right again without anyone doing
//! anything, whatever was lost:
//!
//! 1. Stripe is asked which events it could not deliver ([`super::missed`]).
//! 2. Customers whose period or time to pay ended without anything having been heard are looked at.
//! 3. The sweep looks at everyone else who has a Stripe customer, the longest ago first, once in a
//!    day, spread over the day.
//!
//! Stripe allows about 500 reads per transaction over 30 days, and 10,000 a month at the least. A
//! look is two reads, so the sweep takes 60 a month for each customer: an eighth of what one who
//! pays monthly brings, and 166 who bring nothing fit into the 10,000. Who stays overtaken for good,
//! as one that is paused does, is left to the sweep after two hours.

use std::time::Duration;

use super::missed::{ASK_EVERY, fetch_missed};
use super::{SyncError, Trouble, sync_tier};
use crate::app::App;
use crate::clock::Timestamp;
use crate::domain::ids::CustomerId;
use crate::store::StoreError;

/// How many customers are listed, and swept, at once.
const AT_ONCE: i64 = 100;
/// A customer about whom Stripe was not asked for this long is looked at by the sweep.
const LOOK_EVERY: Duration = Duration::from_secs(86_400);
/// One about whom Stripe could not be asked comes again after this long, and not before others.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(3600);
/// A renewal that is not to be seen this long after it was due is left to the sweep.
const LATE_FOR: Duration = Duration::from_secs(2 * 3600);
/// Up to which moment the sweep has done its share.
const SWEPT_TO: &str = "swept_to";

/// What one round has come to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Looked {
    /// Customers looked at and webhooks found.
    pub done: usize,
    /// Whether more is due at once.
    pub more: bool,
    /// What went wrong or was found, for people.
    pub note: Option<String>,
}

/// Does a bounded amount of what is due of all three.
///
/// # Errors
/// When the database cannot answer. What Stripe cannot is in the note.
pub async fn look_after_tiers(app: &App) -> Result<Looked, StoreError> {
    let mut looks = Looks::default();
    match fetch_missed(app).await {
        Ok(new) => looks.missed = new,
        Err(error) => {
            tracing::warn!(%error, "Stripe could not be asked for undelivered webhooks");
            looks.problem = Some("undelivered webhooks could not be listed".to_owned());
        }
    }
    look_at_overtaken(app, &mut looks).await?;
    let more = !looks.stopped && sweep(app, &mut looks).await?;
    Ok(looks.told(more))
}

/// The round so far.
#[derive(Default)]
struct Looks {
    done: usize,
    failed: usize,
    missed: usize,
    problem: Option<String>,
    trouble: Trouble,
    /// Stripe does not answer now.
    stopped: bool,
}

impl Looks {
    async fn at(&mut self, app: &App, id: &CustomerId) -> Result<(), StoreError> {
        let began = app.clock.now();
        let synced = sync_tier(app, id).await;
        self.stopped = self.trouble.is_stripes(&synced);
        match synced {
            Ok(()) => self.done += 1,
            // Whoever is at it already does the same; and who is gone needs nothing.
            Err(SyncError::Busy | SyncError::UnknownCustomer) => {}
            Err(error) => {
                self.failed += 1;
                tracing::warn!(customer_id = %id, %error, "a customer could not be synced");
                let soon = began.plus(LOOK_AGAIN_AFTER).minus(LOOK_EVERY);
                let looked_at = if error.is_transient() { soon } else { began };
                app.store.note_look(id, looked_at).await?;
            }
        }
        Ok(())
    }

    fn told(self, more: bool) -> Looked {
        let missed = (self.missed > 0).then(|| format!("{} missed webhooks found", self.missed));
        let failed =
            (self.failed > 0).then(|| format!("{} customers could not be synced", self.failed));
        let stopped = self.stopped.then(|| "Stripe does not answer now: the rest waits".to_owned());
        let said: Vec<_> = [missed, self.problem, failed, stopped].into_iter().flatten().collect();
        let note = (!said.is_empty()).then(|| said.join("; "));
        Looked { done: self.done + self.missed, more, note }
    }
}

async fn look_at_overtaken(app: &App, looks: &mut Looks) -> Result<(), StoreError> {
    let moment = app.clock.now();
    let mut after = String::new();
    // Through to the last: those that fail must not stand in the way of the others.
    loop {
        let again_before = moment.minus(ASK_EVERY);
        let page = app.store.overtaken_customers(moment, LATE_FOR, again_before, &after, AT_ONCE);
        let page = page.await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.to_string();
        for id in &page {
            looks.at(app, id).await?;
            if looks.stopped {
                return Ok(());
            }
        }
    }
}

/// Looks at those who are next; answers whether more are due at once.
async fn sweep(app: &App, looks: &mut Looks) -> Result<bool, StoreError> {
    let now = app.clock.now();
    let swept_to = app.store.setting(SWEPT_TO).await?.and_then(|text| text.parse().ok());
    let share = share(app.store.count_tied_customers().await?, swept_to, now);
    let at_once = share.looks.min(AT_ONCE);
    let ids = app.store.customers_to_sweep(now.minus(LOOK_EVERY), now, at_once).await?;
    for id in &ids {
        looks.at(app, id).await?;
        if looks.stopped {
            return Ok(false);
        }
    }
    let nobody_else = i64::try_from(ids.len()).is_ok_and(|looked| looked < at_once);
    let swept_to = if nobody_else { now } else { share.swept_to_after(at_once, now) };
    app.store.put_setting(SWEPT_TO, &swept_to.to_string()).await?;
    Ok(!nobody_else && share.looks > AT_ONCE)
}

/// How many looks are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Share {
    looks: i64,
    since: Timestamp,
}

/// The part of all customers that falls to the time since the sweep's last look, a day's being all
/// of them, rounded up. A first sweep begins with an hour's, so that nobody is asked for everyone
/// at once.
fn share(customers: i64, swept_to: Option<Timestamp>, now: Timestamp) -> Share {
    const HOUR: Duration = Duration::from_secs(3600);
    let since = match swept_to {
        Some(swept_to) => swept_to.clamp(now.minus(LOOK_EVERY), now),
        None => now.minus(HOUR),
    };
    let (elapsed_ms, day_ms) = (now.since(since).as_millis(), LOOK_EVERY.as_millis());
    let customers = u128::try_from(customers).unwrap_or_default();
    let looks = (customers * elapsed_ms).div_ceil(day_ms);
    Share { looks: i64::try_from(looks).unwrap_or(i64::MAX), since }
}

impl Share {
    /// Up to when the share is done after this many of its looks.
    fn swept_to_after(self, looked: i64, now: Timestamp) -> Timestamp {
        if looked >= self.looks {
            return now;
        }
        let ms = |looks: i64| u128::try_from(looks).unwrap_or_default();
        let done_ms = now.since(self.since).as_millis() * ms(looked) / ms(self.looks).max(1);
        self.since.plus(Duration::from_millis(u64::try_from(done_ms).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn now() -> Timestamp {
        "2026-11-18T15:00:00Z".parse().unwrap()
    }

    #[test]
    fn a_share_is_a_days_part_of_all_and_never_more_than_all() {
        let looks = |customers, ago| share(customers, Some(now().minus(ago)), now()).looks;
        assert_eq!(looks(2400, HOUR), 100);
        assert_eq!(looks(2400, 24 * HOUR), 2400);
        assert_eq!(looks(2400, 24 * 7 * HOUR), 2400);
        assert_eq!(looks(2400, Duration::ZERO), 0);
        assert_eq!((looks(1, HOUR), looks(25, HOUR), looks(0, HOUR)), (1, 2, 0), "rounded up");
        assert_eq!(share(2400, None, now()).looks, 100, "an hour's at first");
        assert_eq!(share(2400, Some(now().plus(HOUR)), now()).looks, 0, "a clock set back");
    }

    #[test]
    fn what_is_left_of_a_share_is_still_due() {
        let whole = share(2400, Some(now().minus(4 * HOUR)), now());
        let swept_to = whole.swept_to_after(100, now());
        assert_eq!(swept_to, now().minus(3 * HOUR));
        assert_eq!(share(2400, Some(swept_to), now()).looks, 300);
        assert_eq!(whole.swept_to_after(400, now()), now());
    }
}

//! Forgets usage history that is older than the plans file keeps it.

use super::Progress;
use crate::app::App;
use crate::clock::Timestamp;
use crate::domain::customer::Customer;
use crate::store::StoreError;
use crate::store::retention::Pruned;
use crate::store::usage::CounterKey;

/// How many counters one step takes.
const AT_ONCE: i64 = 200;
/// How many of a customer's events one transaction goes through: few enough that its runs, and on
/// SQLite everyone's, wait for some milliseconds only.
const ROWS: i64 = 2000;

pub(super) async fn step(app: &App) -> anyhow::Result<Progress> {
    let (_, catalog) = app.plans.active();
    let Some(until) = catalog.retention.usage_forgotten_until(app.clock.now()) else {
        return Ok(Progress::default());
    };
    let due = app.store.counters_to_prune(until, AT_ONCE).await?;
    let (mut forgotten, mut finished, mut begun) = (0, 0, 0);
    for key in &due {
        if let Some(pruned) = prune(app, key, until).await? {
            forgotten += pruned.deleted + pruned.stripped;
            finished += usize::from(pruned.finished);
            begun += 1;
        }
    }
    if forgotten > 0 {
        tracing::info!(events = forgotten, periods = finished, "usage history was forgotten");
    }
    let all = begun == finished && i64::try_from(due.len()).is_ok_and(|due| due < AT_ONCE);
    Ok(Progress { done: finished, more: begun > 0 && !all, note: None })
}

async fn prune(
    app: &App,
    key: &CounterKey,
    until: Timestamp,
) -> Result<Option<Pruned>, StoreError> {
    let mut tx = app.store.begin().await?;
    let customer = tx.lock_customer_or_deleted(&key.customer_id).await?;
    let pruned = match customer.is_some_and(|customer| is_open(&customer, key, tx.now)) {
        true => None,
        false => tx.prune(key, until, ROWS).await?,
    };
    tx.commit().await?;
    Ok(pruned)
}

/// A period may go on beyond the end that it had when its counter began, if Stripe has moved it.
fn is_open(customer: &Customer, key: &CounterKey, now: Timestamp) -> bool {
    let cycle = customer.tier.cycle;
    cycle.series == key.series && cycle.period_at(now).start == key.period_start
}

//! Usage held against Stripe's sums: what is in doubt is settled, and periods are proven.

use super::doubts::{SUSPECTED_READINGS, Settled, settle_due, settle_of};
use super::proof::{
    AT_ONCE, Line, Proven, Sums, Unreadable, accounts_of, compare, note_differences, prove_due,
};
use super::{Difference, Mode, NOTHING, SyncError};
use crate::app::App;
use crate::domain::ids::CustomerId;
use crate::domain::proof::TAKEN_FOR;
use crate::store::StoreError;

/// How many rounds one call takes, so that it leaves something of an hour's readings to others.
const ROUNDS: usize = 20;
/// From when on it is said that Stripe will soon take usage no more: five days before it does not.
const EXPIRES_FROM: std::time::Duration = std::time::Duration::from_secs(30 * 86_400);

/// What came of comparing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reconciled {
    pub settled: usize,
    pub proven: usize,
    /// Left for someone to look at.
    pub differing: usize,
    /// Stripe does not answer now: the rest waits.
    pub stopped: bool,
}

/// Settles what is in doubt and compares periods that have ended.
///
/// # Errors
/// When the database cannot answer. Stripe's not answering stops it without one.
pub async fn usage(app: &App) -> Result<Reconciled, SyncError> {
    let mut all = Reconciled::default();
    let Some(stripe) = &app.stripe else { return Ok(all) };
    let sums = Sums::of(stripe);
    let mut readings = SUSPECTED_READINGS;
    for _ in 0..ROUNDS {
        let Settled { counted, replaced, parked, stopped, .. } =
            settle_due(app, &sums, &mut readings).await?;
        all.settled += counted + replaced;
        all.differing += parked;
        all.stopped = stopped;
        if stopped || counted + replaced + parked == 0 {
            break;
        }
    }
    for _ in 0..ROUNDS {
        if all.stopped {
            break;
        }
        let Proven { periods, differing, stopped } = prove_due(app, &sums).await?;
        all.proven += periods;
        all.differing += differing;
        all.stopped = stopped;
        if i64::try_from(periods + differing).is_ok_and(|compared| compared < AT_ONCE) {
            break;
        }
    }
    Ok(all)
}

/// Says of usage that is not at Stripe a month after it was used: in five days Stripe will take it
/// no more. Answers how many units it is.
///
/// # Errors
/// When the database cannot answer.
pub async fn warn_of_expiring(app: &App) -> Result<i64, StoreError> {
    let now = app.clock.now();
    let expiring = app.store.undelivered(&(now.minus(TAKEN_FOR)..now.minus(EXPIRES_FROM))).await?;
    #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
    metrics::gauge!("tollgate_expiring_units").set(expiring.units as f64);
    if expiring.units > 0 {
        tracing::error!(
            customers = expiring.customers,
            meter_events = expiring.meter_events,
            units = expiring.units,
            "usage is not at Stripe yet and more than 30 days old: at 35 days it can be billed no more"
        );
    }
    Ok(expiring.units)
}

/// What came of comparing one customer's sums.
#[derive(Debug, Default)]
pub(super) struct Compared {
    pub differences: Vec<Difference>,
    /// Those of the parked meter events that wait to be sent since.
    pub put_back: Vec<String>,
    /// Whether nothing may be sent for the customer now.
    pub frozen: bool,
}

/// What support's sync does about one customer's sums. Sending that was frozen before goes on if
/// Stripe has nowhere more than we have.
pub(super) async fn customer(
    app: &App,
    id: &CustomerId,
    mode: Mode,
) -> Result<Compared, SyncError> {
    let frozen =
        async || Ok::<_, StoreError>(app.store.frozen_because(id.as_str()).await?.is_some());
    let frozen_before = frozen().await?;
    let Some(stripe) = &app.stripe else {
        return Ok(Compared { frozen: frozen_before, ..Compared::default() });
    };
    let sums = Sums::of(stripe);
    let mut settled = settle_of(app, &sums, id, mode).await?;
    let lines = lines_of(app, &sums, id).await?;
    let ahead = settled.ahead || lines.iter().any(Line::may_be_ahead);
    let differing: Vec<_> = lines.into_iter().filter(Line::is_unexplained).collect();
    if mode == Mode::Apply {
        note_differences(app, &differing).await?;
        if frozen_before && !ahead {
            let mut tx = app.store.begin().await?;
            tx.thaw_sending(id).await?;
            tx.commit().await?;
            // What could not be sent anew while it was frozen.
            settled.add(settle_of(app, &sums, id, mode).await?);
        }
    }
    let frozen = match mode {
        Mode::Apply => frozen().await?,
        Mode::DryRun => ahead && (frozen_before || settled.ahead),
    };
    let differences = differences(&settled, &differing);
    Ok(Compared { differences, put_back: settled.put_back, frozen })
}

fn differences(settled: &Settled, differing: &[Line]) -> Vec<Difference> {
    let in_doubt = [
        (settled.counted, "delivered, by Stripe's sum"),
        (settled.replaced, "sent anew, as Stripe's sum lacks them"),
    ];
    let in_doubt = in_doubt.into_iter().filter(|(count, _)| *count > 0);
    let in_doubt = in_doubt.map(|(count, action)| Difference {
        what: "meter events in doubt",
        local: Some(count.to_string()),
        stripe: None,
        action,
    });
    let differing = differing.iter().map(|line| Difference {
        what: "usage at Stripe",
        local: Some(format!(
            "{} units of {} from {}",
            line.ledger,
            line.meter.as_deref().unwrap_or_default(),
            line.period.start
        )),
        stripe: line.stripe.map(|stripe| format!("{stripe} units")),
        action: NOTHING,
    });
    in_doubt.chain(differing).collect()
}

/// The sums of the customer's periods whose usage Stripe still takes.
async fn lines_of(app: &App, sums: &Sums<'_>, id: &CustomerId) -> Result<Vec<Line>, SyncError> {
    let now = app.clock.now();
    let (_, catalog) = app.plans.active();
    let mut lines = Vec::new();
    for account in accounts_of(&app.store, &catalog, id, now).await? {
        if account.period.end < now.minus(TAKEN_FOR) {
            continue;
        }
        let line = compare(&app.store, sums, &catalog, id, &account, now).await?;
        match line.unreadable {
            Some(Unreadable::Stripe(error)) if error.is_outage() => return Err(error.into()),
            _ => lines.push(line),
        }
    }
    Ok(lines)
}

//! Finds what was missed: tiers that changed without a webhook having told so, and usage that is
//! not at Stripe as it was sent.

use super::Progress;
use crate::app::App;
use crate::sync::looks::{Looked, look_after_tiers};
use crate::sync::reconcile::{self, Reconciled};

pub(super) async fn step(app: &App) -> anyhow::Result<Progress> {
    if app.stripe.is_none() {
        let note = Some("no Stripe key is configured".to_owned());
        return Ok(Progress { note: joined([note, expiring(app).await?]), ..Progress::default() });
    }
    let Looked { done, more, note } = look_after_tiers(app).await?;
    if more {
        // The next step comes at once. How many sums a run reads at most holds for all its steps,
        // so they are read in the last.
        return Ok(Progress { done, more, note });
    }
    let expiring = expiring(app).await?;
    let Reconciled { settled, proven, differing, stopped } = reconcile::usage(app).await?;
    let note = joined([
        note,
        (differing > 0).then(|| format!("{differing} sums of usage need someone to look")),
        stopped.then(|| "Stripe's sums cannot be read now".to_owned()),
        expiring,
    ]);
    Ok(Progress { done: done + settled + proven, more, note })
}

async fn expiring(app: &App) -> anyhow::Result<Option<String>> {
    let units = reconcile::warn_of_expiring(app).await?;
    let words = || format!("{units} units of usage are over 30 days old and not at Stripe");
    Ok((units > 0).then(words))
}

fn joined<const N: usize>(notes: [Option<String>; N]) -> Option<String> {
    let notes: Vec<_> = notes.into_iter().flatten().collect();
    (!notes.is_empty()).then(|| notes.join("; "))
}

//! Finds what was missed: tiers that changed without a webhook having told so.

use super::Progress;
use crate::app::App;
use crate::sync::looks::{Looked, look_after_tiers};

pub(super) async fn step(app: &App) -> anyhow::Result<Progress> {
    if app.stripe.is_none() {
        return Ok(Progress {
            note: Some("no Stripe key is configured".to_owned()),
            ..Progress::default()
        });
    }
    let Looked { done, more, note } = look_after_tiers(app).await?;
    Ok(Progress { done, more, note })
}

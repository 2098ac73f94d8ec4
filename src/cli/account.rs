//! Which Stripe account and mode a database belongs to. What is linked in it has the ids of that
//! account: with another one's key every customer would look deleted, and lose its plan.

use std::time::Duration;

use super::start::StartError;
use crate::config::Config;
use crate::store::{Store, StoreError};
use crate::stripe::Stripe;

const MODE: &str = "stripe_mode";
const ACCOUNT: &str = "stripe_account";

/// How long a start waits to hear whose key it has.
const PATIENCE: Duration = Duration::from_secs(5);

const ADVICE: &str = "give this account a database of its own, or set the key that belongs to it";

pub fn mode(live: bool) -> &'static str {
    if live { "live" } else { "test" }
}

/// Remembers the key's mode at the first start with one, and holds every later one to it.
///
/// # Errors
/// [`StartError::Config`] when the database belongs to the other mode.
pub async fn pin_mode(config: &Config, store: &Store) -> Result<(), StartError> {
    let Some(live) = config.livemode() else { return Ok(()) };
    let ours = mode(live);
    let pinned = store.setting_or(MODE, || ours.to_owned()).await?;
    match pinned == ours {
        true => Ok(()),
        false => Err(StartError::Config(other_mode(ours, &pinned))),
    }
}

/// The same for the account. Where Stripe cannot be asked, or the key may not ask, nothing is
/// known and nothing refused: a start must not depend on Stripe.
///
/// # Errors
/// [`StartError::Config`] when the database belongs to another account.
pub async fn pin_account(stripe: &Stripe, store: &Store) -> Result<(), StartError> {
    let account = match tokio::time::timeout(PATIENCE, stripe.account()).await {
        Ok(Ok((account, _))) => account.id,
        Ok(Err(error)) => {
            tracing::warn!(%error, "the key's account is not known and not compared");
            return Ok(());
        }
        Err(_) => {
            tracing::warn!("the key's account is not known in time and not compared");
            return Ok(());
        }
    };
    let pinned = store.setting_or(ACCOUNT, || account.clone()).await?;
    match pinned == account {
        true => Ok(()),
        false => Err(StartError::Config(other_account(&account, &pinned))),
    }
}

/// Whether a key of this mode and account fits the database, without writing to it.
///
/// # Errors
/// When the database cannot be read. The inner one says in what the key does not fit.
pub async fn compare(
    store: &Store,
    live: bool,
    account: Option<&str>,
) -> Result<Result<String, String>, StoreError> {
    let ours = mode(live);
    let (pinned_mode, pinned_account) = (store.setting(MODE).await?, store.setting(ACCOUNT).await?);
    if let Some(pinned) = pinned_mode.as_deref().filter(|pinned| *pinned != ours) {
        return Ok(Err(other_mode(ours, pinned)));
    }
    Ok(match (pinned_account.as_deref(), account) {
        (Some(pinned), Some(account)) if pinned != account => Err(other_account(account, pinned)),
        (Some(pinned), Some(_)) => Ok(format!("{ours} mode of {pinned}, as the key")),
        (Some(pinned), None) => Ok(format!("{ours} mode, as the key; {pinned} is not compared")),
        (None, _) if pinned_mode.is_some() => Ok(format!("{ours} mode, as the key")),
        (None, _) => Ok("belongs to no account yet".to_owned()),
    })
}

fn other_mode(ours: &str, pinned: &str) -> String {
    format!(
        "STRIPE_SECRET_KEY: is a {ours} key, and the database belongs to {pinned} mode: {ADVICE}"
    )
}

fn other_account(ours: &str, pinned: &str) -> String {
    format!("STRIPE_SECRET_KEY: is of {ours}, and the database belongs to {pinned}: {ADVICE}")
}

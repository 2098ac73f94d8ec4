//! Stripe: the key, its account and mode, the clocks, and what `stripe push` would have to do.

use std::time::Duration;

use super::{Finding, Level, finding, webhook, words};
use crate::cli::account;
use crate::cli::provision::wanted;
use crate::cli::push::{described, told};
use crate::cli::start::{connect_stripe, open_store, read_plans};
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::domain::provision::found::Account;
use crate::domain::provision::{Kind, State, Step, plan, secret_missing, senders};
use crate::entropy::Entropy;
use crate::store::Store;
use crate::stripe::{Stripe, StripeError, StripeErrorKind};

/// How far apart the clocks may be: a signature is good for five minutes of both.
const SKEW: Duration = Duration::from_secs(60);

/// Everything about Stripe. Where it cannot be asked at all, one fault says so.
pub async fn examine(config: &Config) -> Vec<Finding> {
    let clock = Clock::system();
    let stripe = match connect_stripe(config, &clock, &Entropy::system()) {
        Ok(Some(stripe)) => stripe,
        Ok(None) => {
            let problem = "STRIPE_SECRET_KEY is not set: nothing is synced or reported";
            return vec![finding("stripe key", Err(problem.to_owned())), secrets(config, &[])];
        }
        Err(error) => return vec![finding("stripe key", Err(words(error)))],
    };
    let accepted = key(&stripe, config).await;
    let is_heard = accepted.as_ref().map_or_else(is_forbidden, |_| true);
    let mut findings = vec![finding("stripe key", accepted.map_err(|error| error.to_string()))];
    if !is_heard {
        findings.push(secrets(config, &[]));
        return findings;
    }
    let store = existing_store(config).await;
    let account = stripe.account().await;
    findings.push(whose(config, &account));
    let id = account.as_ref().ok().map(|(account, _)| account.id.as_str());
    if let Some(store) = &store {
        let live = config.livemode() == Some(true);
        let fits = account::compare(store, live, id).await;
        let fits = fits.unwrap_or_else(|error| Err(error.to_string()));
        findings.push(finding("stripe mode", fits));
    }
    if let Ok((_, Some(theirs))) = account {
        findings.push(finding("clock", compare_clocks(clock.now(), theirs)));
    }
    let (mut steps, mut sending) = (Vec::new(), Vec::new());
    if let Ok((_, catalog)) = read_plans(config) {
        let wanted = wanted(config, &catalog);
        let found = stripe.find(&wanted).await;
        (steps, sending) = (plan(&wanted, &found), senders(&wanted, &found));
    }
    findings.extend(steps.iter().flat_map(provisioned));
    findings.push(secrets(config, &sending));
    findings.extend(webhook::examine(config, &stripe, store.as_ref(), &steps).await);
    if let Some(store) = store {
        store.close().await;
    }
    findings
}

/// The database, if there is one that can be read; what is wrong with it is another finding.
async fn existing_store(config: &Config) -> Option<Store> {
    if Store::file_to_create(&config.database_url).is_some() {
        return None;
    }
    let store = open_store(config, Clock::system()).await.ok()?;
    match store.is_migrated().await {
        Ok(true) => Some(store),
        _ => {
            store.close().await;
            None
        }
    }
}

fn is_forbidden(error: &StripeError) -> bool {
    matches!(error.kind, StripeErrorKind::Unauthorized { status: 403, .. })
}

async fn key(stripe: &Stripe, config: &Config) -> Result<String, StripeError> {
    // Any id will do: a key that may read gets "no such customer", a bad one is refused.
    stripe.customer("cus_tollgate_doctor").await?;
    let mode = account::mode(config.livemode() == Some(true));
    Ok(format!("accepted, {mode} mode"))
}

fn whose(config: &Config, read: &Result<(Account, Option<Timestamp>), StripeError>) -> Finding {
    const WHAT: &str = "stripe account";
    match read {
        Ok((account, _)) if account.charges_enabled => {
            Finding::of(WHAT, Level::Ok, format!("{}, takes payments", described(account)))
        }
        Ok((account, _)) => {
            // A test account is of use before anybody may be charged.
            let live = config.livemode() == Some(true);
            let level = if live { Level::Fault } else { Level::Note };
            Finding::of(WHAT, level, format!("{}, takes no payments yet", described(account)))
        }
        Err(error) if is_forbidden(error) => {
            Finding::of(WHAT, Level::Note, format!("not compared, nor the clocks: {error}"))
        }
        Err(error) => Finding::of(WHAT, Level::Fault, error.to_string()),
    }
}

fn compare_clocks(ours: Timestamp, theirs: Timestamp) -> Result<String, String> {
    let (later, apart) = match ours.ms() >= theirs.ms() {
        true => ("ahead of", ours.since(theirs)),
        false => ("behind", theirs.since(ours)),
    };
    let seconds = apart.as_secs();
    if apart <= SKEW {
        return Ok(format!("{seconds} s {later} Stripe's"));
    }
    Err(format!(
        "{seconds} s {later} Stripe's: webhooks are refused from 300 s on; let the machine keep time"
    ))
}

/// What `stripe push` would do, as a finding.
fn provisioned(step: &Step) -> Vec<Finding> {
    let label = step.kind.label();
    let what = match step.kind {
        Kind::Meter | Kind::Product | Kind::Price => format!("{label} {}", step.name),
        Kind::Portal | Kind::Endpoint | Kind::Destination => label.to_owned(),
    };
    let what = what.trim_end().to_owned();
    // Without it, usage that Stripe dropped is found by comparing sums, only later.
    let optional = step.kind == Kind::Destination;
    let amiss = if optional { Level::Note } else { Level::Fault };
    let push = "`tollgate stripe push`";
    let (level, detail) = match &step.state {
        State::Right { id } => (Level::Ok, format!("{} ({id})", step.detail)),
        State::Missing => (amiss, format!("is missing: {push} makes it ({})", step.detail)),
        State::Different { id, differences } => {
            (amiss, format!("{id}: {}; {push} mends it", told(differences)))
        }
        State::Refused { reason, remedy } => (amiss, format!("{reason}; {remedy}")),
        // The daemon does without: a key that may do no more than it needs is a good one.
        State::Unseen { reason, forbidden: true } => {
            let permission = step.kind.permission();
            (Level::Note, format!("not examined, the key may not read {permission}: {reason}"))
        }
        State::Unseen { reason, forbidden: false } => (amiss, reason.clone()),
    };
    let note = step.note.iter().filter(|_| matches!(step.state, State::Right { .. }));
    let note: Vec<Finding> = note.map(|note| Finding::of(&what, Level::Note, note)).collect();
    std::iter::once(Finding::of(&what, level, detail)).chain(note).collect()
}

/// Whether there can be a secret of each sender's; whether they are the right ones is found out by
/// sending.
fn secrets(config: &Config, senders: &[String]) -> Finding {
    let held = config.stripe_webhook_secrets.len();
    let examined = match (secret_missing(senders, held), held) {
        (Some(missing), _) => Err(missing),
        (None, 0) => Err("STRIPE_WEBHOOK_SECRET is not set: webhooks are refused".to_owned()),
        (None, 1) => Ok("one is accepted".to_owned()),
        (None, n) => Ok(format!("{n} are accepted")),
    };
    finding("webhook secret", examined)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_a_minute_apart_are_a_fault_either_way() {
        let at = Timestamp::from_seconds;
        for (ours, theirs, verdict) in [
            (100, 100, Ok("0 s ahead of Stripe's")),
            (160, 100, Ok("60 s ahead of Stripe's")),
            (100, 160, Ok("60 s behind Stripe's")),
            (161, 100, Err("61 s ahead of Stripe's: ")),
            (100, 500, Err("400 s behind Stripe's: ")),
        ] {
            match (compare_clocks(at(ours), at(theirs)), verdict) {
                (Ok(said), Ok(wanted)) => assert_eq!(said, wanted),
                (Err(said), Err(wanted)) => assert!(said.starts_with(wanted), "{said}"),
                (said, _) => panic!("{ours} and {theirs}: {said:?}"),
            }
        }
    }
}

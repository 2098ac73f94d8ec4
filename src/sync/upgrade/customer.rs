//! A customer's Stripe customer: made once, whoever asks at the same time and whatever crashes.

use std::time::Duration;

use super::{Survey, UpgradeError};
use crate::app::App;
use crate::domain::ids::CustomerId;
use crate::store::upgrades::StripeCustomerClaim;
use crate::stripe::Stripe;
use crate::sync::link::{LinkError, link_from_stripe};

/// How long a key is relied on. Stripe keeps one for at least 24 hours.
const KEY_FOR: Duration = Duration::from_secs(23 * 3600);

/// The customer's Stripe customer, made if there is none; `None` if it was tied to another one
/// meanwhile.
///
/// All who try share one claim and so one idempotency key. A key that is of no more use, because it
/// is old or Stripe repeats a failure under it, is changed only after Stripe's list has shown that
/// nothing was made under it.
pub(super) async fn ensure(app: &App, survey: &Survey<'_>) -> Result<Option<String>, UpgradeError> {
    let customer = &survey.customer;
    if let Some(stripe_id) = &customer.stripe_customer_id {
        return Ok(Some(stripe_id.clone()));
    }
    let fresh = fresh_claim(app);
    let claim = app.store.claim_stripe_customer(&customer.id, &fresh).await?;
    let is_old = app.clock.now().since(claim.claimed_at) >= KEY_FOR;
    let made = match is_old {
        true => None,
        false => {
            let key = &claim.idempotency_key;
            let made =
                survey.stripe.create_customer(customer.id.as_str(), &customer.profile, key).await;
            match made {
                Err(error) if Stripe::key_is_spent(&error) => None,
                made => Some(made?),
            }
        }
    };
    let stripe_id = match made {
        Some(made) => made,
        None => match find_or_renew(app, survey, &claim).await? {
            Some(found) => found,
            None => return Ok(None),
        },
    };
    tie(app, &customer.id, stripe_id).await
}

fn fresh_claim(app: &App) -> StripeCustomerClaim {
    let now = app.clock.now();
    StripeCustomerClaim { idempotency_key: app.entropy.id("customer", now), claimed_at: now }
}

/// What was made under a claim whose key is of no more use; if nothing was, the claim gets a new
/// key, and it is for another try.
async fn find_or_renew(
    app: &App,
    survey: &Survey<'_>,
    claim: &StripeCustomerClaim,
) -> Result<Option<String>, UpgradeError> {
    let id = &survey.customer.id;
    let found = survey.stripe.find_customer(id.as_str(), claim.claimed_at, KEY_FOR).await?;
    if found.is_none() {
        let fresh = fresh_claim(app);
        app.store.renew_stripe_customer_claim(id, &claim.idempotency_key, &fresh).await?;
    }
    Ok(found)
}

async fn tie(
    app: &App,
    id: &CustomerId,
    stripe_id: String,
) -> Result<Option<String>, UpgradeError> {
    match link_from_stripe(app, id, &stripe_id).await {
        Ok(()) => Ok(Some(stripe_id)),
        Err(LinkError::Store(error)) if error.is_conflict() => Ok(None),
        Err(LinkError::Store(error)) => Err(error.into()),
        Err(LinkError::UnknownCustomer) => Err(UpgradeError::UnknownCustomer),
        Err(error @ (LinkError::Taken | LinkError::Elsewhere)) => {
            tracing::warn!(customer_id = %id, %error, "a new Stripe customer was not needed");
            Ok(None)
        }
    }
}

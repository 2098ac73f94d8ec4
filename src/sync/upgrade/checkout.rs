//! The way of a first subscription. Two of Stripe's Checkout pages, both paid, would be two
//! subscriptions; so a customer has one that can be paid, or none.
//!
//! That rests on one row per customer. Nobody is shown a page before its session is noted in the
//! row, and a session that was noted is closed at Stripe before the row takes another. A row that has
//! to go before that leaves its session to be closed, and that is done before another is made. Calls
//! that ask for the same, at once or in turn, find the same row and so the same idempotency key and
//! the same session.

use std::time::Duration;

use super::{Survey, UpgradeError, customer, price_of};
use crate::app::App;
use crate::domain::customer::Customer;
use crate::domain::ids::CustomerId;
use crate::domain::returning::{Return, ReturnUrl};
use crate::store::upgrades::Checkout;
use crate::stripe::{
    CheckoutSession, CheckoutState, NewCheckout, Stripe, StripeError, StripeErrorKind,
};

/// How long a session can be paid. Stripe takes half an hour to a day; the shorter, the less can
/// happen to the customer meanwhile.
const OPEN_FOR: Duration = Duration::from_secs(3600);
/// A session with less time left is replaced.
const MIN_LEFT: Duration = Duration::from_secs(15 * 60);
/// How many sessions are closed at once.
const AT_ONCE: i64 = 50;
/// A claim without a session is taken over after this long. Until then its owner may be at it.
const CLAIM_FOR: Duration = Duration::from_secs(60);

/// The page on which the customer pays for the wanted plan; `None` if a session was paid
/// meanwhile, or another call was faster, and it is to be looked again.
///
/// `over` is the session that was found to be over by the look before. A survey that was made while
/// a session could still be paid says nothing of what came of that; so it is not built upon.
pub(super) async fn open(
    app: &App,
    survey: &Survey<'_>,
    back: &ReturnUrl,
    over: &mut Option<String>,
) -> Result<Option<String>, UpgradeError> {
    let price_id = price_of(&survey.stripe, survey.wanted).await?;
    // Whoever goes to this page gives up what was begun elsewhere and not finished: paid beside it
    // that would be a second subscription.
    close_all(app, &survey.stripe, Some(&survey.customer.id)).await?;
    for unfinished in &survey.incomplete {
        if !survey.stripe.give_up_first_payment(unfinished).await? {
            return Ok(None);
        }
    }
    let Some(stripe_customer_id) = customer::ensure(app, survey).await? else { return Ok(None) };
    let now = app.clock.now();
    let wanted = Checkout {
        customer_id: survey.customer.id.clone(),
        checkout_id: app.entropy.id("checkout", now),
        plan_id: survey.wanted.id.clone(),
        price_id,
        stripe_customer_id,
        return_url: back.as_str().to_owned(),
        claimed_at: now,
        expires_at: now.plus(OPEN_FOR),
        session_id: None,
    };
    let known = survey.customer.tier.subscription.as_ref().map(|live| live.id.as_str());
    let Some(held) = app.store.claim_checkout(&wanted, known).await? else { return Ok(None) };
    let serves = serves(app, &held, &wanted);
    let Some(session_id) = &held.session_id else {
        return match serves {
            true => make(app, survey, &held, back).await,
            false => replace(app, survey, &held, &wanted, back).await,
        };
    };
    if over.as_ref() == Some(session_id) {
        return replace(app, survey, &held, &wanted, back).await;
    }
    let state = match serves {
        true => survey.stripe.checkout_session(session_id).await?,
        false => survey.stripe.expire_checkout(session_id).await?,
    };
    if let CheckoutState::Open { url } = state {
        return Ok(Some(url));
    }
    *over = Some(session_id.clone());
    Ok(None)
}

/// Closes the page that a customer with the live subscription `subscription_id` may still have open:
/// it would sell a second one.
///
/// The row goes only when the subscription is known here. Until then its session, which is over, is
/// what tells a survey of before the subscription to look again; afterwards the subscription is.
pub(super) async fn close(
    app: &App,
    stripe: &Stripe,
    customer: &Customer,
    subscription_id: &str,
) -> Result<(), UpgradeError> {
    let Some(held) = app.store.checkout(&customer.id).await? else { return Ok(()) };
    if let Some(session_id) = &held.session_id {
        stripe.expire_checkout(session_id).await?;
    }
    match &customer.tier.subscription {
        Some(known) if known.id == subscription_id => Ok(app.store.drop_checkout(&held).await?),
        _ => Ok(()),
    }
}

/// Closes the sessions that have outlived what they were made for. Losing this to a crash costs
/// time only: they are looked for again.
pub async fn close_left(app: &App) -> Result<(), UpgradeError> {
    match &app.stripe {
        Some(stripe) => close_all(app, stripe, None).await,
        None => Ok(()),
    }
}

async fn close_all(
    app: &App,
    stripe: &Stripe,
    id: Option<&CustomerId>,
) -> Result<(), UpgradeError> {
    for session_id in app.store.checkouts_to_close(id, AT_ONCE).await? {
        // Most have been paid, which is why the customer has a subscription.
        if let CheckoutState::Open { .. } = stripe.checkout_session(&session_id).await? {
            stripe.expire_checkout(&session_id).await?;
        }
        app.store.note_checkout_closed(&session_id).await?;
    }
    Ok(())
}

/// Takes the place of `held`. Whoever loses a race looks again and finds what the winner claimed.
async fn replace(
    app: &App,
    survey: &Survey<'_>,
    held: &Checkout,
    wanted: &Checkout,
    back: &ReturnUrl,
) -> Result<Option<String>, UpgradeError> {
    match app.store.replace_checkout(held, wanted).await? {
        true => make(app, survey, wanted, back).await,
        false => Ok(None),
    }
}

/// Whether `held` is what is wanted, and will be for a while.
fn serves(app: &App, held: &Checkout, wanted: &Checkout) -> bool {
    let same = held.plan_id == wanted.plan_id
        && held.price_id == wanted.price_id
        && held.stripe_customer_id == wanted.stripe_customer_id
        && held.return_url == wanted.return_url;
    let now = app.clock.now();
    let lasts = match held.session_id {
        Some(_) => held.expires_at.since(now) >= MIN_LEFT,
        None => now.since(held.claimed_at) < CLAIM_FOR,
    };
    same && lasts
}

/// Makes the session that `held` stands for and notes it.
async fn make(
    app: &App,
    survey: &Survey<'_>,
    held: &Checkout,
    back: &ReturnUrl,
) -> Result<Option<String>, UpgradeError> {
    let new = NewCheckout {
        customer_id: held.customer_id.as_str(),
        stripe_customer_id: &held.stripe_customer_id,
        price_id: &held.price_id,
        success_url: &back.with(Return::Done),
        cancel_url: &back.with(Return::Canceled),
        expires_at: held.expires_at,
    };
    let session = match survey.stripe.open_checkout(new, &held.checkout_id).await {
        Ok(session) => session,
        Err(error) => {
            give_up(app, held, &error).await?;
            return Err(error.into());
        }
    };
    if !app.store.note_checkout_session(held, &session.id).await? {
        // Another call has begun something else meanwhile: this page must not be shown.
        survey.stripe.expire_checkout(&session.id).await?;
        return Ok(None);
    }
    match session {
        CheckoutSession { state: CheckoutState::Open { url }, .. } => Ok(Some(url)),
        _ => Ok(None),
    }
}

/// Frees a claim under which Stripe will give no other answer. A session that was made all the same
/// was shown to nobody.
async fn give_up(app: &App, held: &Checkout, error: &StripeError) -> Result<(), UpgradeError> {
    let may_come_yet = matches!(
        error.kind,
        StripeErrorKind::Unreachable { .. } | StripeErrorKind::RateLimited { .. }
    );
    if !may_come_yet {
        app.store.drop_checkout(held).await?;
    }
    Ok(())
}

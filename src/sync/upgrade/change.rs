//! What the button on our own page does.

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{
    Lead, Patience, Survey, UpgradeError, Wish, buyable, lead, page, set_out, survey, sync_now,
};
use crate::app::App;
use crate::clock::Timestamp;
use crate::domain::link::{Quoted, Ticket};
use crate::domain::money::Money;
use crate::domain::upgrade::{Current, NoWay, Way};
use crate::stripe::{PlanChange, StripeError, StripeErrorKind};

/// How long what the page says about money holds. After that it is shown anew.
const QUOTE_FOR: Duration = Duration::from_secs(30 * 60);

/// Where the customer goes after pressing the button.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// To a page of Stripe's.
    Away { url: String },
    /// To our page, which says what is so now, with this token.
    Look { token: String },
    /// The card was refused; nothing has changed.
    Declined,
}

/// Goes the way that the ticket's holder has agreed to on our page.
///
/// # Errors
/// When there is no way, or Stripe cannot be asked.
pub async fn proceed(app: &App, ticket: &Ticket) -> Result<Step, UpgradeError> {
    let mut patience = Patience::default();
    loop {
        match go(app, ticket).await {
            // Stripe locks a subscription while it is changed, be it by the same button in another
            // tab. All is looked at anew then: what that one has done is not done again.
            Err(UpgradeError::Stripe(error)) if is_locked(&error) && patience.is_left() => {
                patience.wait(app).await;
            }
            done => return done,
        }
    }
}

async fn go(app: &App, ticket: &Ticket) -> Result<Step, UpgradeError> {
    let (_, catalog) = app.plans.active();
    let Some(plan_id) = page::plan_of(app, &catalog, ticket).await? else {
        return Ok(Step::Look { token: app.links.upgrade_token(ticket) });
    };
    let wish = Wish::of(app, ticket, &plan_id);
    let look = Step::Look { token: app.links.upgrade_token(&wish.ticket()) };
    let wanted = buyable(&catalog, &plan_id)?;
    let survey = survey(app, &catalog, &ticket.customer_id, wanted, ticket.here).await?;
    match (survey.way, agreed(app, &survey, ticket).await?) {
        (Err(NoWay::AlreadyOnPlan), _) => {
            sync_now(app, &ticket.customer_id).await;
            Ok(look)
        }
        (Ok(way @ (Way::Confirm | Way::AtPeriodEnd | Way::Keep)), Some(quoted)) => {
            match carry_out(app, &survey, way, quoted.at).await? {
                Outcome::Declined => Ok(Step::Declined),
                Outcome::AsStripeSays => Ok(look),
            }
        }
        // What it costs must be seen before it is agreed to.
        (Ok(Way::Confirm | Way::AtPeriodEnd | Way::Keep | Way::Pending), _) => Ok(look),
        (way, _) => {
            way?;
            let lead = match set_out(app, &survey, &wish, &mut None).await? {
                Some(lead) => lead,
                None => lead(app, &wish).await?,
            };
            Ok(match lead {
                Lead::Stripe(start) => Step::Away { url: start.url },
                Lead::Ours(ticket) => Step::Look { token: app.links.upgrade_token(&ticket) },
            })
        }
    }
}

/// What the page has shown, if it is what is about to happen, at that cost.
async fn agreed<'t>(
    app: &App,
    survey: &Survey<'_>,
    ticket: &'t Ticket,
) -> Result<Option<&'t Quoted>, UpgradeError> {
    let fresh = |quoted: &&Quoted| app.clock.now().since(quoted.at) < QUOTE_FOR;
    let Some(quoted) = ticket.quoted.as_ref().filter(fresh) else { return Ok(None) };
    let due_now = match due_now(survey, quoted.at).await {
        // Stripe reckons nothing for a period that is over.
        Err(UpgradeError::Stripe(error))
            if matches!(error.kind, StripeErrorKind::Refused { .. }) =>
        {
            return Ok(None);
        }
        due_now => due_now?,
    };
    Ok((quoted.change == fingerprint(survey, survey.way, due_now)).then_some(quoted))
}

/// What is charged when the survey's way is agreed to at `at`; `None` where that is for Stripe's
/// pages to say, or nothing is.
pub(super) async fn due_now(
    survey: &Survey<'_>,
    at: Timestamp,
) -> Result<Option<Money>, UpgradeError> {
    let (Some(current), Ok(Way::Confirm)) = (&survey.current, survey.way) else { return Ok(None) };
    let change = plan_change(current, &survey.price_id, at);
    Ok(Some(survey.stripe.due_now(change).await?))
}

/// What going `way` would do: another seat or another price since the page was made is another
/// change, and so are another cost and another period. What later periods cost follows from the
/// items, and from usage that goes on while the page is read. Whoever gives up what is planned gives
/// up just that.
pub(super) fn fingerprint(
    survey: &Survey<'_>,
    way: Result<Way, NoWay>,
    due_now: Option<Money>,
) -> String {
    let Some(current) = &survey.current else { return String::new() };
    let (item, terms) = (&current.item, &current.terms);
    let what = match way {
        Ok(Way::Keep) => format!("{:?}", terms.schedule),
        _ => format!("{:?} {}", terms.items, survey.price_id),
    };
    let goes = format!("{way:?} {due_now:?} {}", item.period_end.seconds());
    let parts = [&goes, &terms.subscription_id, &item.id, &what];
    hex::encode(&Sha256::digest(parts.map(String::as_str).join("\n"))[..8])
}

enum Outcome {
    /// Done, planned, or waiting for a payment: the page asks.
    AsStripeSays,
    Declined,
}

async fn carry_out(
    app: &App,
    survey: &Survey<'_>,
    way: Way,
    quoted_at: Timestamp,
) -> Result<Outcome, UpgradeError> {
    let Some(current) = &survey.current else { return Err(UpgradeError::Overtaken) };
    let id = &survey.customer.id;
    let change = plan_change(current, &survey.price_id, quoted_at);
    // The same button pressed twice is one change.
    let key = key(id.as_str(), &change);
    if let (Some(schedule), Way::Confirm | Way::Keep) = (&current.terms.schedule, way) {
        // On the way up it is one that plans nothing; see [`crate::domain::upgrade::way`].
        survey.stripe.release_schedule(&schedule.id).await?;
    }
    match way {
        Way::Confirm => {
            let changed = survey.stripe.change_plan(change, &key).await;
            judge(app, survey, current, changed).await
        }
        Way::AtPeriodEnd => {
            let stripe = &survey.stripe;
            if !stripe.change_plan_later(&current.terms, change, id.as_str(), &key).await? {
                return Err(UpgradeError::Overtaken);
            }
            tracing::info!(customer_id = %id, plan = survey.wanted.id.as_str(), "a change of plan is scheduled");
            Ok(Outcome::AsStripeSays)
        }
        _ => Ok(Outcome::AsStripeSays),
    }
}

pub(super) fn plan_change<'a>(
    current: &'a Current<'_>,
    price_id: &'a str,
    quoted_at: Timestamp,
) -> PlanChange<'a> {
    PlanChange {
        subscription_id: &current.terms.subscription_id,
        item_id: &current.item.id,
        price_id,
        quantity: current.item.quantity,
        proration_at: quoted_at,
    }
}

/// Every part of it is what one pressing of the button is about.
fn key(customer_id: &str, change: &PlanChange<'_>) -> String {
    let parts = [
        customer_id,
        change.subscription_id,
        change.item_id,
        change.price_id,
        &format!("{:?}", change.quantity),
        &change.proration_at.seconds().to_string(),
    ];
    format!("change_{}", hex::encode(Sha256::digest(parts.join("\n"))))
}

/// What came of a change, by what Stripe says of the subscription now: an answer may be lost, or be
/// an older one of the same key.
async fn judge(
    app: &App,
    survey: &Survey<'_>,
    before: &Current<'_>,
    changed: Result<(), StripeError>,
) -> Result<Outcome, UpgradeError> {
    let id = &survey.customer.id;
    let now = survey.stripe.terms(&before.terms.subscription_id).await?;
    let item = now.items.iter().find(|item| item.id == before.item.id);
    if item.is_some_and(|item| item.price_id == survey.price_id) {
        sync_now(app, id).await;
        return Ok(Outcome::AsStripeSays);
    }
    if now.pending_until.is_some() {
        tracing::info!(customer_id = %id, "an upgrade waits for its payment");
        return Ok(Outcome::AsStripeSays);
    }
    match changed {
        Err(error) if is_decline(&error) => Ok(Outcome::Declined),
        changed => {
            changed?;
            Err(UpgradeError::Overtaken)
        }
    }
}

/// 429, be it for a lock or for our pace: nothing was done.
fn is_locked(error: &StripeError) -> bool {
    matches!(error.kind, StripeErrorKind::RateLimited { .. })
}

/// 402: the payment itself was refused.
fn is_decline(error: &StripeError) -> bool {
    matches!(error.kind, StripeErrorKind::Refused { status: 402, .. })
}

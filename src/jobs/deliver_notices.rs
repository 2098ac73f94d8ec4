//! Sends the mails that are due, after asking whether they are still true.
//!
//! `sending` is committed before the mail server is spoken to. If its answer is lost, nobody can
//! know whether the mail went out: it is not sent again, and support decides. So a mail goes out
//! at most once, and exactly once unless the server's answer was lost.

use std::time::Duration;

use super::Progress;
use crate::app::App;
use crate::clock::Timestamp;
use crate::domain::answer::offer;
use crate::domain::customer::Customer;
use crate::domain::decision::{Crossing, Mark, reached};
use crate::domain::link::Purpose;
use crate::domain::notice::{
    NoticeKind, NoticeMail, NoticeState, Standpoint, UpgradeFacts, UpgradeOffer, UsageFacts,
    overtaken_by,
};
use crate::domain::plan::{Catalog, Enforcement, Feature};
use crate::domain::usage::pace;
use crate::gate::{quotas_of, terms_of};
use crate::mail::{Delivery, Mailer, OutgoingMail, RenderedMail};
use crate::store::StoreError;
use crate::store::notices::Notice;
use crate::store::usage::CounterKey;

/// How many notices one step takes.
const AT_ONCE: i64 = 100;
/// After this long in `sending` the process that sent it must be gone: longer than the mail
/// module lets one attempt last.
const SENDING_FOR: Duration = Duration::from_secs(30 * 60);
/// This many mails in a row that cannot be sent now mean that the server is at fault, not they.
const GIVE_UP_AFTER: u32 = 3;

pub(super) async fn step(app: &App) -> anyhow::Result<Progress> {
    let Some(mailer) = &app.mailer else {
        return Ok(Progress {
            note: Some("no SMTP_URL is configured".to_owned()),
            ..Progress::default()
        });
    };
    settle_abandoned(app).await?;
    let due = app.store.due_notices(app.clock.now(), AT_ONCE).await?;
    if app.store.active_plans().await?.is_some_and(|(newest, _)| newest > app.plans.active().0) {
        // By the file of before, what is true by the new one may look overtaken, and the other way round.
        let note = Some("a changed plans file is read first".to_owned());
        return Ok(Progress { note, ..Progress::default() });
    }
    let taken = due.len();
    let (mut sent, mut later_in_a_row) = (0, 0);
    for notice in due {
        match deliver(app, mailer, &notice).await? {
            Outcome::Sent => (sent, later_in_a_row) = (sent + 1, 0),
            Outcome::Settled => later_in_a_row = 0,
            Outcome::Later => later_in_a_row += 1,
        }
        if later_in_a_row == GIVE_UP_AFTER {
            let note = Some("the mail server takes nothing now".to_owned());
            return Ok(Progress { done: sent, more: false, note });
        }
    }
    let more = later_in_a_row == 0 && i64::try_from(taken).is_ok_and(|taken| taken >= AT_ONCE);
    Ok(Progress { done: sent, more, note: None })
}

async fn settle_abandoned(app: &App) -> Result<(), StoreError> {
    let mut tx = app.store.begin().await?;
    let before = tx.now.minus(SENDING_FOR);
    let abandoned =
        tx.give_up_sending(before, "the process that sent it died before the answer").await?;
    tx.commit().await?;
    if abandoned > 0 {
        tracing::error!(
            notices = abandoned,
            "whether these mails went out is unknown: support decides"
        );
    }
    Ok(())
}

enum Outcome {
    Sent,
    /// Dropped, refused or in doubt.
    Settled,
    Later,
}

async fn deliver(app: &App, mailer: &Mailer, notice: &Notice) -> anyhow::Result<Outcome> {
    let drop = |why| settle(app, notice, NoticeState::Due, NoticeState::Dropped, Some(why));
    let Some(customer) = app.store.customer(&notice.customer_id).await? else {
        return drop("the customer is gone").await;
    };
    let limit = limit_now(app, notice, &customer).await?;
    if let Some(why) = overtaken(app, notice, &customer, &limit) {
        return drop(why).await;
    }
    if notice.kind != NoticeKind::PlanUpgraded && app.store.is_told_anew(notice).await? {
        return drop("it is told under the limit that holds now").await;
    }
    let catalog = app.plans.version(notice.plan_version, &app.store).await?;
    let (to_address, to_name, rendered) =
        match compose(app, notice, &customer, &catalog, limit.granted) {
            Ok(composed) => composed,
            // The fault of this mail alone, so the others go out.
            Err(why) => {
                return settle(app, notice, NoticeState::Due, NoticeState::Failed, Some(&why))
                    .await;
            }
        };
    let mut tx = app.store.begin().await?;
    let ours =
        tx.move_notice(&notice.notice_id, NoticeState::Due, NoticeState::Sending, None).await?;
    let date = tx.now;
    tx.commit().await?;
    if !ours {
        return Ok(Outcome::Settled);
    }
    let delivery = mailer
        .send(&OutgoingMail {
            message_id: format!("{}@{}", notice.notice_id, mailer.domain()),
            to_address,
            to_name,
            date,
            rendered,
        })
        .await;
    conclude(app, notice, delivery).await
}

/// Address, name and words of a notice's mail, or why there can be none.
fn compose(
    app: &App,
    notice: &Notice,
    customer: &Customer,
    catalog: &Catalog,
    granted: Option<i64>,
) -> Result<(String, Option<String>, RenderedMail), String> {
    let address = customer.profile.email.clone().ok_or("the customer has no e-mail address")?;
    let mail = word(app, notice, customer, catalog, granted)
        .ok_or("its plan or feature is not in the plans file it arose under")?;
    let rendered =
        app.templates.render(&mail).map_err(|error| format!("its template fails: {error}"))?;
    Ok((address, customer.profile.name.clone(), rendered))
}

async fn conclude(app: &App, notice: &Notice, delivery: Delivery) -> anyhow::Result<Outcome> {
    let sending = NoticeState::Sending;
    metrics::counter!("tollgate_mails_total", "outcome" => match &delivery {
        Delivery::Accepted => "sent",
        Delivery::TryLater { .. } => "later",
        Delivery::Refused { .. } => "refused",
        Delivery::Unknown { .. } => "unknown",
    })
    .increment(1);
    match delivery {
        Delivery::Accepted => {
            settle(app, notice, sending, NoticeState::Sent, None).await?;
            Ok(Outcome::Sent)
        }
        Delivery::Refused { reason } => {
            settle(app, notice, sending, NoticeState::Failed, Some(&reason)).await
        }
        Delivery::Unknown { reason } => {
            settle(app, notice, sending, NoticeState::Unknown, Some(&reason)).await
        }
        Delivery::TryLater { reason } => {
            let mut tx = app.store.begin().await?;
            let due_at = tx.now.plus(retry_wait(notice.attempts));
            tx.postpone_notice(&notice.notice_id, due_at, &reason).await?;
            tx.commit().await?;
            Ok(Outcome::Later)
        }
    }
}

async fn settle(
    app: &App,
    notice: &Notice,
    from: NoticeState,
    to: NoticeState,
    why: Option<&str>,
) -> anyhow::Result<Outcome> {
    let mut tx = app.store.begin().await?;
    tx.move_notice(&notice.notice_id, from, to, why).await?;
    tx.commit().await?;
    tracing::info!(
        notice_id = notice.notice_id, customer_id = %notice.customer_id, kind = notice.kind.as_str(),
        state = to.as_str(), why, "a notice is settled"
    );
    Ok(Outcome::Settled)
}

/// The first retry comes at the next tick, then after minutes that double up to an hour.
fn retry_wait(attempts: i64) -> Duration {
    match u32::try_from(attempts) {
        Ok(0) | Err(_) => Duration::ZERO,
        Ok(n) => Duration::from_secs(60 * 2_u64.pow(n.min(6))).min(Duration::from_secs(3600)),
    }
}

/// The limit on what a notice is about, as things are now.
struct LimitNow {
    /// `None` where there is no number.
    granted: Option<i64>,
    /// The highest threshold that usage in the notice's period has reached.
    reached: Option<Crossing>,
}

async fn limit_now(
    app: &App,
    notice: &Notice,
    customer: &Customer,
) -> Result<LimitNow, StoreError> {
    let key = CounterKey {
        customer_id: notice.customer_id.clone(),
        feature_id: notice.feature_id.clone(),
        series: notice.series,
        period_start: notice.period.start,
    };
    let counter = app.store.counter(&key).await?;
    let terms = terms_of(app, customer).await?;
    let quotas = quotas_of(app, customer, &notice.feature_id).await?;
    let (feature_id, now) = (notice.feature_id.as_str(), app.clock.now());
    let allowance = customer.tier.allowance(&terms, feature_id, &quotas, counter.from_grants, now);
    Ok(LimitNow {
        granted: allowance.and_then(|allowance| allowance.enforcement.number()),
        reached: allowance.and_then(|allowance| reached(&allowance, counter.usage)),
    })
}

/// Why the notice is no longer true, if it is not.
fn overtaken(
    app: &App,
    notice: &Notice,
    customer: &Customer,
    limit: &LimitNow,
) -> Option<&'static str> {
    let standpoint = Standpoint {
        same_plan: notice.entitlement_version >= customer.tier.plan_since_version
            && notice.series == customer.tier.cycle.series,
        period_over: app.clock.now() >= notice.period.end,
        reached: limit.reached,
    };
    overtaken_by(notice.kind, notice.mark, standpoint)
}

/// Words a notice from its facts and the plans it arose under.
fn word(
    app: &App,
    notice: &Notice,
    customer: &Customer,
    catalog: &Catalog,
    granted: Option<i64>,
) -> Option<NoticeMail> {
    let feature = catalog.features.get(&notice.feature_id)?;
    Some(match notice.kind {
        NoticeKind::UsageNudge => {
            NoticeMail::UsageNudge(usage_facts(app, notice, customer, catalog, feature, granted)?)
        }
        NoticeKind::CapReached => {
            NoticeMail::CapReached(usage_facts(app, notice, customer, catalog, feature, granted)?)
        }
        NoticeKind::PlanUpgraded => {
            NoticeMail::PlanUpgraded(upgrade_facts(app, notice, customer, catalog, feature)?)
        }
    })
}

fn usage_facts(
    app: &App,
    notice: &Notice,
    customer: &Customer,
    catalog: &Catalog,
    feature: &Feature,
    granted: Option<i64>,
) -> Option<UsageFacts> {
    let plan = catalog.plan(notice.plan_id.as_ref()?.as_str())?;
    let (percent, at_units) = match notice.mark {
        Mark::Percent(percent) => (Some(percent), None),
        Mark::Units(units) => (None, Some(units)),
    };
    let next = plan.way_up(catalog, &feature.id);
    let link = |purpose| Some(app.links.url(purpose, &customer.id, notice.period.end));
    let pace = pace(notice.usage_units, notice.period, notice.created_at);
    Some(UsageFacts {
        customer_name: customer.profile.name.clone(),
        feature_name: feature.name.clone(),
        unit: feature.unit.clone(),
        plan_name: plan.name.clone(),
        percent,
        at_units,
        usage: notice.usage_units,
        granted,
        elapsed_days: pace.elapsed_days,
        period_days: pace.period_days,
        projected: pace.projected,
        resets_at: notice.period.end,
        upgrade: next
            .map(|next| UpgradeOffer { url: link(Purpose::Upgrade), ..offer(feature, next) }),
        usage_url: link(Purpose::Usage),
    })
}

fn upgrade_facts(
    app: &App,
    notice: &Notice,
    customer: &Customer,
    catalog: &Catalog,
    feature: &Feature,
) -> Option<UpgradeFacts> {
    let plan = catalog.plan(notice.plan_id.as_ref()?.as_str())?;
    let from = notice.from_plan_id.as_ref().and_then(|id| catalog.plan(id.as_str()));
    // Good until the period that runs now ends, like every link in a mail.
    let now: Timestamp = app.clock.now();
    let period_end = customer.tier.cycle.period_at(now).end;
    Some(UpgradeFacts {
        customer_name: customer.profile.name.clone(),
        feature_name: feature.name.clone(),
        unit: feature.unit.clone(),
        from_plan_name: from.map(|plan| plan.name.clone()),
        plan_name: plan.name.clone(),
        granted: match plan.limits.get(&feature.id)?.enforcement {
            Enforcement::Hard { granted } => Some(granted),
            Enforcement::Soft { .. } | Enforcement::Unlimited => None,
        },
        unlocks: plan.unlocks.clone(),
        usage_url: Some(app.links.url(Purpose::Usage, &customer.id, period_end)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::Timeouts;

    #[test]
    fn a_mail_that_is_still_being_sent_is_never_taken_for_abandoned() {
        let clocks_differ_by = Duration::from_secs(60);
        assert!(Timeouts::default().longest_attempt() + clocks_differ_by < SENDING_FOR);
    }
}

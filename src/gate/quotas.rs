//! Changing what is particular to a customer: its own quotas, grants, and the terms it keeps.
//!
//! Each change is one transaction with its entry in the audit trail. It begins a new entitlement
//! version, so that thresholds are told again when usage comes to them under the new number; if the
//! change itself puts the customer at a threshold, that is told at once. What is due and still true
//! is sent all the same.

use std::collections::HashMap;

use serde_json::{Value, json};
use utoipa::ToSchema;

use super::batch::{counter_key, notice};
use super::terms_of;
use crate::app::App;
use crate::clock::Timestamp;
use crate::domain::answer::{Facts, Remark};
use crate::domain::customer::Customer;
use crate::domain::decision::{Crossing, Intent, Reason, reached};
use crate::domain::ids::{CustomerId, FeatureId};
use crate::domain::plan::{Catalog, Enforcement};
use crate::domain::quota::{DrawOrder, Grant, Override, Quotas};
use crate::domain::usage::Counter;
use crate::store::quotas::QuotaKey;
use crate::store::{StoreError, Tx};

/// What support can change about a customer, and what the clock does.
#[derive(Debug, Clone)]
pub enum Change {
    SetOverride {
        feature_id: FeatureId,
        own: NewOverride,
    },
    ClearOverride {
        feature_id: FeatureId,
    },
    AddGrant {
        feature_id: FeatureId,
        grant: NewGrant,
    },
    RevokeGrant {
        grant_id: String,
    },
    /// The limits of this version of the plans file, also if it is the one in force; `None` for
    /// those that are in force at any time.
    KeepTerms {
        version: Option<i64>,
    },
    /// What has a time that has passed is over.
    Ended,
}

/// An own quota as it is asked for.
#[derive(Debug, Clone)]
pub struct NewOverride {
    /// `None`: as the plan enforces its own number, or hard if it has none.
    pub kind: Option<Kind>,
    /// Units; `None` only where the kind is unlimited.
    pub granted: Option<i64>,
    pub ends_at: Option<Timestamp>,
    pub note: Option<String>,
}

/// What happens at an own quota's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum Kind {
    Hard,
    Soft,
    Unlimited,
}

/// A grant as it is asked for.
#[derive(Debug, Clone)]
pub struct NewGrant {
    /// Follows from the caller's idempotency key, so that asking twice grants once.
    pub grant_id: String,
    pub units: i64,
    pub draw: DrawOrder,
    pub expires_at: Option<Timestamp>,
    pub note: Option<String>,
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error("there is no such customer")]
    UnknownCustomer,
    #[error("the plans file has no such feature")]
    UnknownFeature,
    #[error("the customer has no override of this feature")]
    NoOverride,
    #[error("the customer has no such grant, or it is over")]
    NoGrant,
    #[error("there is no such version of the plans file, or it lacks the customer's plan")]
    UnknownTerms,
    #[error("granted is needed unless enforcement is \"unlimited\"")]
    NumberMissing,
    #[error("the end must lie in the future")]
    EndsInThePast,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes the change; answers whether it changed anything.
pub async fn change(
    app: &App,
    id: &CustomerId,
    actor: &str,
    change: Change,
) -> Result<bool, ChangeError> {
    let mut tx = app.store.begin().await?;
    let found = tx.lock_customer(id).await?.ok_or(ChangeError::UnknownCustomer)?;
    // What the clock has ended is told and written down as that, whoever is here before the job.
    let settled = make(app, &mut tx, &found, "clock", &Change::Ended).await?;
    let asked = match &change {
        Change::Ended => None,
        asked => make(app, &mut tx, settled.as_ref().unwrap_or(&found), actor, asked).await?,
    };
    let changed = if matches!(change, Change::Ended) { settled.is_some() } else { asked.is_some() };
    if let Some(after) = asked.or(settled) {
        tx.update_customer(&after).await?;
        tx.commit().await?;
    }
    Ok(changed)
}

/// Makes one change in a transaction that has locked its customer; answers the customer as it is to
/// be written, if that changed anything.
async fn make(
    app: &App,
    tx: &mut Tx,
    before: &Customer,
    actor: &str,
    change: &Change,
) -> Result<Option<Customer>, ChangeError> {
    let (plan_version, active) = app.plans.active();
    let id = &before.id;
    let old_terms = terms_of(app, before).await?;
    let old_quotas = undying(change, tx.quotas(&[id]).await?);
    let mut after = before.clone();
    let old = (&*old_terms, &old_quotas);
    let Some((action, detail)) = apply(app, tx, &mut after, old, &active, change).await? else {
        return Ok(None);
    };
    after.has_quotas = true;
    after.tier.entitlement_version += 1;
    let new_terms = terms_of(app, &after).await?;
    let new_quotas = tx.quotas(&[id]).await?;
    for feature_id in active.features.keys() {
        let counter = current(tx, &after, feature_id).await?;
        let was = threshold_of(&after, &old_terms, feature_id, &old_quotas, &counter, tx.now);
        let is = threshold_of(&after, &new_terms, feature_id, &new_quotas, &counter, tx.now);
        if let Some(crossed) = is.filter(|is| is.is_news_after(was)) {
            let facts = facts(&after, &new_terms, feature_id, &counter, tx.now);
            // A run since then may have told of what the clock ended, before it was seen here.
            let told_as = if matches!(change, Change::Ended) { before } else { &after };
            tx.insert_notice(&notice(app, told_as, &facts, crossed, plan_version)).await?;
        }
    }
    let audit_id = app.entropy.id("aud", tx.now);
    tx.insert_audit(&audit_id, actor, action, Some(id.as_str()), &detail).await?;
    Ok(Some(after))
}

/// What has just ended still counted a moment ago.
fn undying(change: &Change, mut quotas: HashMap<QuotaKey, Quotas>) -> HashMap<QuotaKey, Quotas> {
    if matches!(change, Change::Ended) {
        for quotas in quotas.values_mut() {
            quotas.grants.iter_mut().for_each(|grant| grant.expires_at = None);
            quotas.own.iter_mut().for_each(|own| own.ends_at = None);
        }
    }
    quotas
}

/// Writes the change itself; answers how the audit trail puts it, or `None` if it was made before.
async fn apply(
    app: &App,
    tx: &mut Tx,
    customer: &mut Customer,
    (terms, quotas): (&Catalog, &HashMap<QuotaKey, Quotas>),
    active: &Catalog,
    change: &Change,
) -> Result<Option<(&'static str, Value)>, ChangeError> {
    let known = |feature_id: &FeatureId| {
        active.features.contains_key(feature_id).then_some(()).ok_or(ChangeError::UnknownFeature)
    };
    let id = customer.id.clone();
    match change {
        Change::SetOverride { feature_id, own } => {
            known(feature_id)?;
            let own = resolve(customer, terms, feature_id, own, tx.now)?;
            let key = (id, feature_id.clone());
            let before = quotas.get(&key).and_then(|quotas| quotas.own.as_ref());
            // Said twice, it must not tell the customer of its thresholds twice.
            if before.is_some_and(|before| before.same_as(&own)) {
                return Ok(None);
            }
            tx.put_override(&key, &own).await?;
            let ends_at = own.ends_at.map(|end| end.to_string());
            let detail = json!({"feature_id": feature_id, "enforcement": own.enforcement.as_str(),
                "granted": own.enforcement.number(), "ends_at": ends_at, "note": own.note});
            Ok(Some(("override.set", detail)))
        }
        Change::ClearOverride { feature_id } => {
            match tx.delete_override(&(id, feature_id.clone())).await? {
                true => Ok(Some(("override.cleared", json!({"feature_id": feature_id})))),
                false => Err(ChangeError::NoOverride),
            }
        }
        Change::AddGrant { feature_id, grant } => {
            known(feature_id)?;
            if grant.expires_at.is_some_and(|end| end <= tx.now) {
                return Err(ChangeError::EndsInThePast);
            }
            let row = Grant {
                grant_id: grant.grant_id.clone(),
                units: grant.units,
                used: 0,
                draw: grant.draw,
                expires_at: grant.expires_at,
                created_at: tx.now,
                note: grant.note.clone(),
            };
            let added = tx.insert_grant(&(id, feature_id.clone()), &row).await?;
            let detail = json!({"feature_id": feature_id, "grant_id": row.grant_id,
                "units": row.units, "draw": row.draw, "note": row.note,
                "expires_at": row.expires_at.map(|end| end.to_string())});
            Ok(added.then_some(("grant.added", detail)))
        }
        Change::RevokeGrant { grant_id } => {
            let feature_id = tx.revoke_grant(&id, grant_id).await?.ok_or(ChangeError::NoGrant)?;
            let detail = json!({"feature_id": feature_id, "grant_id": grant_id});
            Ok(Some(("grant.revoked", detail)))
        }
        Change::KeepTerms { version } => keep_terms(app, customer, *version).await,
        Change::Ended => {
            let features = tx.settle_ended_quotas(&id).await?;
            let detail = json!({"feature_ids": features});
            Ok((!features.is_empty()).then_some(("quotas.ended", detail)))
        }
    }
}

async fn keep_terms(
    app: &App,
    customer: &mut Customer,
    version: Option<i64>,
) -> Result<Option<(&'static str, Value)>, ChangeError> {
    if let Some(version) = version {
        let terms = app.plans.version(version, &app.store).await;
        let has_plan = terms.is_ok_and(|terms| customer.tier.plan(&terms).is_some());
        if !has_plan {
            return Err(ChangeError::UnknownTerms);
        }
    }
    if customer.terms_version == version {
        return Ok(None);
    }
    let detail = json!({"from": customer.terms_version, "to": version});
    customer.terms_version = version;
    Ok(Some(("terms.moved", detail)))
}

/// An own quota with nothing left open.
fn resolve(
    customer: &Customer,
    terms: &Catalog,
    feature_id: &FeatureId,
    own: &NewOverride,
    now: Timestamp,
) -> Result<Override, ChangeError> {
    if own.ends_at.is_some_and(|end| end <= now) {
        return Err(ChangeError::EndsInThePast);
    }
    let plan = customer.tier.plan(terms);
    let limit = plan.and_then(|plan| plan.limits.get(feature_id)).map(|limit| limit.enforcement);
    let as_the_plan = match limit {
        Some(Enforcement::Soft { .. }) => Kind::Soft,
        Some(Enforcement::Hard { .. } | Enforcement::Unlimited) | None => Kind::Hard,
    };
    let number = || own.granted.ok_or(ChangeError::NumberMissing);
    let enforcement = match own.kind.unwrap_or(as_the_plan) {
        Kind::Hard => Enforcement::Hard { granted: number()? },
        Kind::Soft => Enforcement::Soft { granted: number()? },
        Kind::Unlimited => Enforcement::Unlimited,
    };
    Ok(Override {
        plan_id: plan.map(|plan| plan.id.clone()),
        enforcement,
        ends_at: own.ends_at,
        created_at: now,
        note: own.note.clone(),
    })
}

/// The counter of the period in force.
async fn current(
    tx: &mut Tx,
    customer: &Customer,
    feature_id: &FeatureId,
) -> Result<Counter, StoreError> {
    let period = customer.tier.cycle.period_at(tx.now);
    let found = tx.counter_and_end(&counter_key(customer, feature_id, period)).await?;
    Ok(found.map(|(_, counter)| counter).unwrap_or_default())
}

/// The highest threshold that the usage so far has reached.
pub(super) fn threshold_of(
    customer: &Customer,
    terms: &Catalog,
    feature_id: &FeatureId,
    quotas: &HashMap<QuotaKey, Quotas>,
    counter: &Counter,
    now: Timestamp,
) -> Option<Crossing> {
    let none = Quotas::default();
    let quotas = quotas.get(&(customer.id.clone(), feature_id.clone())).unwrap_or(&none);
    let tier = &customer.tier;
    let allowance = tier.allowance(terms, feature_id.as_str(), quotas, counter.from_grants, now)?;
    // Who has used nothing is told nothing, however small the number.
    reached(&allowance, counter.usage).filter(|_| counter.usage > 0)
}

/// What a notice is made from when no run has brought it about.
pub(super) fn facts(
    customer: &Customer,
    terms: &Catalog,
    feature_id: &FeatureId,
    counter: &Counter,
    now: Timestamp,
) -> Facts {
    Facts {
        customer_id: customer.id.clone(),
        feature_id: feature_id.clone(),
        plan_id: customer.tier.plan(terms).map(|plan| plan.id.clone()),
        intent: Intent::Check,
        asked: 0,
        counted: 0,
        reason: Reason::WithinLimit,
        particular: None,
        usage: counter.usage,
        reserved: counter.reserved,
        period: customer.tier.cycle.period_at(now),
        decided_at: now,
        event_id: None,
        hold: None,
        remark: Remark::None,
    }
}

//! The end of a reservation: its run is counted, or its units go back.
//!
//! A finished run is always counted. It belongs to the period in which its units were held while
//! that period's usage can still be reported, and else to the one in force, as when a subscription
//! has begun or ended since; the answer says when it came late, and when it exceeds the limit. What
//! was settled once gives the same answer again.

use super::batch::{Batch, counter_key, particular};
use super::request::{Settlement, units_of};
use super::{Decided, GateError};
use crate::domain::answer::{Facts, Hold, HoldState, Remark};
use crate::domain::decision::{Intent, decide};
use crate::domain::period::{BillingPeriod, REPORTABLE_FOR};
use crate::domain::quota::Quotas;
use crate::domain::run::RunFacts;
use crate::store::events::{EventKey, NewEvent, Remembered};
use crate::store::reservations::Reservation;
use crate::store::usage::CounterKey;

impl Batch {
    pub(super) fn settle(&mut self, settlement: &Settlement) -> Result<Decided, GateError> {
        let reservation = self.reservations.get(&settlement.reservation_id).cloned();
        let mut reservation = reservation.ok_or(GateError::UnknownReservation)?;
        let key = EventKey::Reservation {
            id: settlement.reservation_id.clone(),
            request_hash: settlement.request_hash.clone(),
        };
        let remembered = (reservation.counter.customer_id.clone(), key.request_key());
        if let Some(known) = self.remembered.get(&remembered) {
            return again(known, &reservation.hold, settlement);
        }
        let (counter, facts) = self.outcome(settlement, &reservation, &key)?;
        let pending = reservation.hold.state == HoldState::Pending;
        reservation.settled_at = Some(self.now);
        reservation.hold.state = ended_as(settlement.intent);
        let (held, request_key) = (reservation.counter.clone(), key.request_key());
        let released = pending.then_some(&reservation);
        let metered = self.apply(&counter, &facts, &request_key, released);
        if pending && held != counter {
            self.give_back(&held, reservation.hold.units);
        }
        self.holds.insert(reservation.hold.id.clone());
        let entity_id = reservation.entity_id.clone();
        self.reservations.insert(reservation.hold.id.clone(), reservation);
        self.remember(NewEvent {
            series: counter.series,
            key,
            entity_id,
            plan_version: self.plan_version,
            metered,
            run: settlement.said.run.clone(),
            cost_picodollars: self.cost(&settlement.said.run, facts.counted),
            properties: settlement.said.properties.clone(),
            facts: facts.clone(),
        });
        Ok((facts, self.plan_version))
    }

    /// Which counter the run is counted on, and what is to be said of it.
    fn outcome(
        &self,
        settlement: &Settlement,
        reservation: &Reservation,
        event_key: &EventKey,
    ) -> Result<(CounterKey, Facts), GateError> {
        let Reservation { hold, counter: held, .. } = reservation;
        let account = self.books.get(&held.customer_id).ok_or(GateError::UnknownCustomer)?;
        let customer = &account.customer;
        let current = account.period_at(self.now);
        let current_key = counter_key(customer, &held.feature_id, current);
        let own = account.entry(held).map_or(reservation.period_end, |entry| entry.period_end);
        let releases = settlement.intent == Intent::Release;
        // Another series has begun since: what is reported now is the new subscription's. So it is of
        // another period if this one turned out to have ended before the units were held: what was
        // pending then has moved, and what had expired has not.
        let reportable = held.series == current_key.series
            && self.now < own.plus(REPORTABLE_FOR)
            && reservation.created_at < own;
        let in_own = releases || reportable || *held == current_key;
        let (key, period) = if in_own && *held != current_key {
            (held.clone(), BillingPeriod { start: held.period_start, end: own })
        } else {
            (current_key, current)
        };
        let terms = self.terms(account);
        let value = match settlement.intent {
            Intent::Release => 0,
            _ => units_of(
                terms.rates(&self.catalog, &held.feature_id),
                settlement.value,
                &settlement.said,
                settlement.intent,
                hold.units,
            )?,
        };
        let counter = account.entry(&key).map(|entry| entry.counter.clone()).unwrap_or_default();
        let pending = hold.state == HoldState::Pending;
        let held_here = if pending && in_own { hold.units } else { 0 };
        let reserved = counter.reserved - held_here;
        let quotas = account.quotas.get(&held.feature_id);
        let quotas = quotas.map_or_else(Quotas::default, |quotas| quotas.of_period(period.end));
        let feature_id = held.feature_id.as_str();
        let allowance =
            customer.tier.allowance(terms, feature_id, &quotas, counter.from_grants, self.now);
        let entitlement = customer.tier.entitlement(terms, allowance, self.now);
        let verdict = decide(entitlement, counter.usage, reserved, value, settlement.intent);
        let usage = counter.usage.saturating_add(verdict.counted);
        let late = settlement.intent == Intent::Commit
            && (!in_own || self.now >= hold.expires_at || !pending);
        let facts = Facts {
            customer_id: held.customer_id.clone(),
            feature_id: held.feature_id.clone(),
            plan_id: customer.tier.plan(terms).map(|plan| plan.id.clone()),
            intent: settlement.intent,
            asked: value,
            counted: verdict.counted,
            reason: verdict.reason,
            particular: particular(customer, allowance, usage),
            usage,
            reserved,
            period,
            decided_at: self.now,
            event_id: (verdict.counted > 0).then(|| event_key.event_id(&held.customer_id)),
            hold: Some(Hold { state: ended_as(settlement.intent), ..hold.clone() }),
            remark: if late { Remark::Late } else { Remark::None },
        };
        Ok((key, facts))
    }

    /// Frees units of a counter other than the one that the run was counted on.
    fn give_back(&mut self, key: &CounterKey, units: i64) {
        let Some(account) = self.books.get_mut(&key.customer_id) else { return };
        let Some(mut entry) = account.entry(key).cloned() else { return };
        entry.counter.reserved -= units;
        account.put(key, entry);
        self.touched.insert(key.clone());
    }
}

fn ended_as(intent: Intent) -> HoldState {
    if intent == Intent::Release { HoldState::Released } else { HoldState::Committed }
}

/// The first answer, if this is the same settlement once more.
fn again(known: &Remembered, hold: &Hold, settlement: &Settlement) -> Result<Decided, GateError> {
    let facts = &known.facts;
    let says_nothing = settlement.value.is_none() && settlement.said.run == RunFacts::default();
    let value = if says_nothing { Some(hold.units) } else { settlement.value };
    let same_value = facts.intent == Intent::Release
        || known.request_hash.as_ref() == Some(&settlement.request_hash)
        || value == Some(facts.counted);
    if facts.intent == settlement.intent && same_value {
        let hold = Hold { state: ended_as(facts.intent), ..hold.clone() };
        Ok((Facts { hold: Some(hold), ..facts.clone() }, known.plan_version))
    } else {
        Err(GateError::Settled(ended_as(facts.intent)))
    }
}

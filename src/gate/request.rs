//! What the gate is asked, every field checked for its form.

use std::sync::Arc;

use crate::domain::credit::{CreditError, credits_drawn};
use crate::domain::customer::Profile;
use crate::domain::decision::Intent;
use crate::domain::ids::{CustomerId, EntityId, FeatureId, IdempotencyKey, ReservationId};
use crate::domain::plan::{Catalog, Rates};
use crate::domain::run::{RunFacts, Tokens};
use crate::gate::GateError;
use crate::store::events::{EventKey, NewEvent};

/// A question to the gate, or a run to count.
#[derive(Debug, Clone)]
pub struct Request {
    pub customer_id: CustomerId,
    pub feature_id: FeatureId,
    pub entity_id: Option<EntityId>,
    /// Units, 1 to `domain::usage::MAX_QUANTITY`; `None` leaves it to [`Said`] or is one.
    pub value: Option<i64>,
    pub intent: Intent,
    /// How long units are held; only of interest to [`Intent::Reserve`].
    pub hold_seconds: u32,
    /// With a key, this request's answer is remembered for ever.
    pub key: Option<RequestKey>,
    /// What the run is known by if it has no key: made once, so that a run that is tried twice is
    /// the same run.
    pub own_id: Option<String>,
    pub said: Said,
    /// Creates the customer if it is unknown.
    pub customer_data: Option<Profile>,
}

impl Request {
    /// What its run is known by, if it has a key or an id.
    pub(super) fn event_key(&self) -> Option<EventKey> {
        match (&self.key, &self.own_id) {
            (Some(RequestKey { key, request_hash }), _) => {
                Some(EventKey::Request { key: key.to_string(), request_hash: request_hash.clone() })
            }
            (None, Some(id)) => Some(EventKey::Own(id.clone())),
            (None, None) => None,
        }
    }

    /// The units it takes of a customer with these `terms`, the `active` ones unless it keeps others.
    ///
    /// # Errors
    /// When it is of no feature that there is, or the run's credits cannot be told.
    pub(super) fn units(&self, active: &Catalog, terms: &Catalog) -> Result<i64, GateError> {
        if !active.features.contains_key(&self.feature_id) {
            return Err(GateError::UnknownFeature);
        }
        let rates = terms.rates(active, &self.feature_id);
        Ok(units_of(rates, self.value, &self.said, self.intent, 1)?)
    }
}

/// What the caller says of a run.
#[derive(Debug, Clone, Default)]
pub struct Said {
    /// Model and tokens.
    pub run: RunFacts,
    pub tokens: Tokens,
    /// All else, as a JSON object.
    pub properties: Option<String>,
}

/// The caller's idempotency key, and a hash of all it asked under it.
#[derive(Debug, Clone)]
pub struct RequestKey {
    pub key: IdempotencyKey,
    pub request_hash: String,
}

/// The end of a run that units were held for.
#[derive(Debug, Clone)]
pub struct Settlement {
    pub reservation_id: ReservationId,
    /// [`Intent::Commit`] or [`Intent::Release`].
    pub intent: Intent,
    /// Units, 0 to `domain::usage::MAX_QUANTITY`; `None` leaves it to [`Said`] or is what was held.
    pub value: Option<i64>,
    pub said: Said,
    pub request_hash: String,
}

/// What the writer takes.
#[derive(Debug, Clone)]
pub(super) enum Ask {
    Run(Arc<Request>),
    Settle(Settlement),
    /// A run that was let through in an outage, as it was answered then.
    Journalled(Box<NewEvent>),
}

/// The units a run takes: those the caller states, else the credits its model and tokens draw if
/// there are `rates`, else `otherwise`. A stated number wins, because an estimate is
/// the caller's to make.
///
/// # Errors
/// When the run's credits cannot be told.
pub(super) fn units_of(
    rates: Option<Rates<'_>>,
    stated: Option<i64>,
    said: &Said,
    intent: Intent,
    otherwise: i64,
) -> Result<i64, CreditError> {
    let (Some(rates), None) = (rates, stated) else {
        return Ok(stated.unwrap_or(otherwise));
    };
    // A question may leave the tokens open; what is counted would be one credit without them.
    let is_question = intent == Intent::Check;
    if said.run == RunFacts::default() && (is_question || said.tokens == Tokens::Unsaid) {
        // Who says nothing of the run asks whether there is any balance at all.
        return Ok(otherwise);
    }
    let drawn = credits_drawn(rates, &said.run)?;
    let left_out = said.tokens == Tokens::LeftOut && !is_question;
    if left_out { Err(CreditError::NoTokens) } else { Ok(drawn) }
}

//! Usage events: one immutable row for each accepted run, each hold, and each answer that is remembered.
//! A row is also the record of its idempotency key.

use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::any::AnyRow;

use super::rowset::{Cell, Column, Insert, SetStatement, names};
use super::usage::CounterKey;
use super::{Dialect, Kind, Result, Store, StoreError, Tx, customers, time, time_or_none};
use crate::clock::Timestamp;
use crate::domain::answer::{Facts, Hold, HoldState, Particular, Remark};
use crate::domain::decision::{Intent, Reason, ThresholdState};
use crate::domain::ids::{CustomerId, ReservationId, derived_id};
use crate::domain::period::BillingPeriod;
use crate::domain::plan::Enforcement;
use crate::domain::run::RunFacts;

/// What an event is known by, beside its customer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKey {
    /// The caller's idempotency key, and a hash of what it asked under it.
    Request { key: String, request_hash: String },
    /// The reservation that this event settled, and a hash of how.
    Reservation { id: ReservationId, request_hash: String },
    /// Nothing but its own id: no caller will ask for it again.
    Own(String),
}

impl EventKey {
    /// The hash of what was asked, where something is compared.
    pub fn request_hash(&self) -> Option<&str> {
        match self {
            Self::Request { request_hash, .. } | Self::Reservation { request_hash, .. } => {
                Some(request_hash)
            }
            Self::Own(_) => None,
        }
    }

    /// As the row has it. The marks keep a caller's key from meeting an id of ours.
    pub fn request_key(&self) -> String {
        match self {
            Self::Request { key, .. } => format!("k:{key}"),
            Self::Reservation { id, .. } => format!("r:{id}"),
            Self::Own(id) => id.clone(),
        }
    }

    /// The id of a run that is known by this key.
    pub fn event_id(&self, customer_id: &CustomerId) -> String {
        event_id(customer_id, &self.request_key())
    }
}

/// Follows from the key, or is it.
fn event_id(customer_id: &CustomerId, request_key: &str) -> String {
    match request_key.starts_with("k:") || request_key.starts_with("r:") {
        true => derived_id("evt", customer_id, request_key),
        false => request_key.to_owned(),
    }
}

/// A remembered answer, and the hash of the request it was given to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    pub facts: Facts,
    pub request_hash: Option<String>,
    pub plan_version: i64,
}

/// A usage event about to be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewEvent {
    pub facts: Facts,
    pub series: i64,
    pub key: EventKey,
    pub entity_id: Option<String>,
    pub plan_version: i64,
    /// Whether the units go to a meter.
    pub metered: bool,
    /// Model and tokens, as far as the caller said.
    pub run: RunFacts,
    /// What the run cost, if its model has a price.
    pub cost_picodollars: Option<i64>,
    /// What else the caller said of the run, as JSON.
    pub properties: Option<String>,
}

const COLUMNS: &[Column] = &[
    ("customer_id", Kind::Text),
    ("request_key", Kind::Text),
    ("request_hash", Kind::Text),
    ("outcome", Kind::Text),
    ("feature_id", Kind::Text),
    ("entity_id", Kind::Text),
    ("plan_id", Kind::Text),
    ("plan_version", Kind::BigInt),
    ("asked_units", Kind::BigInt),
    ("counted_units", Kind::BigInt),
    ("granted_units", Kind::BigInt),
    ("usage_after", Kind::BigInt),
    ("reserved_after", Kind::BigInt),
    ("series", Kind::BigInt),
    ("period_start_ms", Kind::BigInt),
    ("period_end_ms", Kind::BigInt),
    ("recorded_at_ms", Kind::BigInt),
    ("hold_until_ms", Kind::BigInt),
    ("model", Kind::Text),
    ("input_tokens", Kind::BigInt),
    ("cached_input_tokens", Kind::BigInt),
    ("output_tokens", Kind::BigInt),
    ("cost_picodollars", Kind::BigInt),
    ("properties", Kind::Text),
];

const KEY_COLUMNS: &[Column] = &[("customer_id", Kind::Text), ("request_key", Kind::Text)];

/// How runs are written (`usage::Statements`, with the counters they move).
pub(super) const INSERT: Insert<'_> =
    Insert { table: "usage_events", columns: COLUMNS, on_conflict: "" };

/// The statements of the hot path, put together once.
pub(crate) struct Statements {
    remembered: SetStatement,
}

impl Statements {
    pub(crate) fn new(dialect: Dialect) -> Self {
        let selected = format!("t.event_id, {}", prefixed("t"));
        Self {
            remembered: SetStatement::lookup(
                dialect,
                KEY_COLUMNS,
                "usage_events",
                &selected,
                ("", ""),
            ),
        }
    }
}

fn prefixed(table: &str) -> String {
    names(COLUMNS).split(", ").map(|name| format!("{table}.{name}")).collect::<Vec<_>>().join(", ")
}

impl Store {
    /// The sum of all units accepted from this customer in the period, from the events themselves.
    pub async fn sum_of_events(&self, key: &CounterKey) -> Result<i64> {
        let row = sqlx::query(
            "SELECT CAST(COALESCE(SUM(counted_units), 0) AS BIGINT) AS v FROM usage_events \
             WHERE customer_id = $1 AND feature_id = $2 AND series = $3 \
             AND COALESCE(counted_from_ms, period_start_ms) = $4",
        )
        .bind(key.customer_id.as_str())
        .bind(key.feature_id.as_str())
        .bind(key.series)
        .bind(key.period_start.ms())
        .fetch_one(&self.readers)
        .await?;
        Ok(row.try_get("v")?)
    }
}

impl Tx {
    /// The answers already given under these customers and request keys.
    pub async fn remembered(
        &mut self,
        keys: &[(&CustomerId, String)],
    ) -> Result<Vec<((CustomerId, String), Remembered)>> {
        let rows: Vec<_> = keys
            .iter()
            .map(|(id, key)| vec![Cell::text(id.as_str()), Cell::text(key.as_str())])
            .collect();
        let statements = self.statements.clone();
        let found = statements.events.remembered.fetch(self.connection(), &rows).await?;
        found.iter().map(read_remembered).collect()
    }
}

/// The cells of [`COLUMNS`], in their order.
pub(super) fn cells(event: &NewEvent) -> Vec<Cell<'_>> {
    let facts = &event.facts;
    let hash = event.key.request_hash();
    let granted = facts.particular.and_then(|particular| particular.enforcement.number());
    let hold_until = facts.hold.as_ref().filter(|_| facts.intent == Intent::Reserve);
    let tokens = |count: i64| Cell::int_or_null((count > 0).then_some(count));
    vec![
        Cell::text(facts.customer_id.as_str()),
        Cell::text(event.key.request_key()),
        Cell::text_or_null(hash),
        Cell::text(outcome(facts, event.metered)),
        Cell::text(facts.feature_id.as_str()),
        Cell::text_or_null(event.entity_id.as_deref()),
        Cell::text_or_null(facts.plan_id.as_ref().map(|id| id.as_str())),
        Cell::Int(event.plan_version),
        Cell::Int(facts.asked),
        Cell::Int(facts.counted),
        Cell::int_or_null(granted),
        Cell::Int(facts.usage),
        Cell::Int(facts.reserved),
        Cell::Int(event.series),
        Cell::Int(facts.period.start.ms()),
        Cell::Int(facts.period.end.ms()),
        Cell::Int(facts.decided_at.ms()),
        Cell::int_or_null(hold_until.map(|hold| hold.expires_at.ms())),
        Cell::text_or_null(event.run.model.as_deref()),
        tokens(event.run.input_tokens),
        tokens(event.run.cached_input_tokens),
        tokens(event.run.output_tokens),
        Cell::int_or_null(event.cost_picodollars),
        Cell::text_or_null(event.properties.as_deref()),
    ]
}

// --- the letters of `outcome` -------------------------------------------------------------------

const INTENTS: &[(Intent, char)] = &[
    (Intent::Check, 'c'),
    (Intent::Consume, 'u'),
    (Intent::Record, 't'),
    (Intent::RecordCapped, 'm'),
    (Intent::Reserve, 'h'),
    (Intent::Commit, 'f'),
    (Intent::Release, 'r'),
];

const REASONS: &[(Reason, char)] = &[
    (Reason::WithinLimit, 'w'),
    (Reason::OverSoftLimit, 's'),
    (Reason::Unlimited, 'u'),
    (Reason::LimitReached, 'l'),
    (Reason::HeldByRunningJobs, 'h'),
    (Reason::PastDue, 'd'),
    (Reason::Paused, 'p'),
    (Reason::NoPlan, 'n'),
    (Reason::FeatureNotInPlan, 'f'),
];

const THRESHOLDS: &[(ThresholdState, char)] = &[
    (ThresholdState::Ok, 'o'),
    (ThresholdState::Nudge, 'n'),
    (ThresholdState::LimitReached, 'l'),
    (ThresholdState::OverSoftLimit, 's'),
];

const REMARKS: &[(Remark, char)] =
    &[(Remark::None, '-'), (Remark::Late, 'l'), (Remark::Degraded, 'd')];

/// Stands where the plan itself says what is in force.
const PLANS_OWN: char = '-';

fn letter<T: Copy + PartialEq>(letters: &[(T, char)], value: T) -> char {
    letters.iter().find(|(known, _)| *known == value).map_or('?', |(_, letter)| *letter)
}

fn value<T: Copy>(letters: &[(T, char)], letter: Option<char>) -> Result<T> {
    let found = letters.iter().find(|(_, known)| Some(*known) == letter);
    found.map(|(value, _)| *value).ok_or(corrupt("outcome"))
}

/// Six letters: intent, reason, limit and threshold (if not the plan's own), metered, remark. Where
/// only the record of the key is left, retention adds a seventh.
fn outcome(facts: &Facts, metered: bool) -> String {
    let (limit, state) = match facts.particular {
        None => (PLANS_OWN, PLANS_OWN),
        Some(Particular { enforcement, threshold }) => {
            let limit = match enforcement {
                Enforcement::Hard { .. } => 'h',
                Enforcement::Soft { .. } => 's',
                Enforcement::Unlimited => 'u',
            };
            (limit, letter(THRESHOLDS, threshold))
        }
    };
    let metered = if metered { 'm' } else { '-' };
    let (intent, reason) = (letter(INTENTS, facts.intent), letter(REASONS, facts.reason));
    String::from_iter([intent, reason, limit, state, metered, letter(REMARKS, facts.remark)])
}

fn particular(
    limit: Option<char>,
    state: Option<char>,
    granted: Option<i64>,
) -> Result<Option<Particular>> {
    let number = || granted.ok_or(corrupt("granted_units"));
    let enforcement = match limit {
        Some(PLANS_OWN) => return Ok(None),
        Some('h') => Enforcement::Hard { granted: number()? },
        Some('s') => Enforcement::Soft { granted: number()? },
        Some('u') => Enforcement::Unlimited,
        _ => return Err(corrupt("outcome")),
    };
    Ok(Some(Particular { enforcement, threshold: value(THRESHOLDS, state)? }))
}

// --- reading ------------------------------------------------------------------------------------

fn corrupt(column: &'static str) -> StoreError {
    StoreError::Corrupt { table: "usage_events", column }
}

fn read_remembered(row: &AnyRow) -> Result<((CustomerId, String), Remembered)> {
    let customer_id = customers::parse_id(row.try_get("customer_id")?)?;
    let request_key: String = row.try_get("request_key")?;
    let plan_id: Option<String> = row.try_get("plan_id")?;
    let feature_id: String = row.try_get("feature_id")?;
    let letters: Vec<char> = row.try_get::<String, _>("outcome")?.chars().collect();
    let at = |place: usize| letters.get(place).copied();
    let counted: i64 = row.try_get("counted_units")?;
    let event_id = (counted > 0).then(|| event_id(&customer_id, &request_key));
    let facts = Facts {
        customer_id: customer_id.clone(),
        feature_id: feature_id.try_into().map_err(|_| corrupt("feature_id"))?,
        plan_id: plan_id.map(|id| id.try_into().map_err(|_| corrupt("plan_id"))).transpose()?,
        intent: value(INTENTS, at(0))?,
        asked: row.try_get("asked_units")?,
        counted,
        reason: value(REASONS, at(1))?,
        particular: particular(at(2), at(3), row.try_get("granted_units")?)?,
        usage: row.try_get("usage_after")?,
        reserved: row.try_get("reserved_after")?,
        period: BillingPeriod {
            start: time(row, "period_start_ms")?,
            end: time(row, "period_end_ms")?,
        },
        decided_at: time(row, "recorded_at_ms")?,
        event_id: row.try_get::<Option<String>, _>("event_id")?.or(event_id),
        hold: read_hold(row, &customer_id, &request_key)?,
        remark: value(REMARKS, at(5))?,
    };
    let remembered = Remembered {
        facts,
        request_hash: row.try_get("request_hash")?,
        plan_version: row.try_get("plan_version")?,
    };
    Ok(((customer_id, request_key), remembered))
}

/// What a reservation's own answer said of it; a settled one's is read from its row.
fn read_hold(row: &AnyRow, customer_id: &CustomerId, request_key: &str) -> Result<Option<Hold>> {
    let Some(expires_at) = time_or_none(row, "hold_until_ms")? else { return Ok(None) };
    let units = row.try_get("asked_units")?;
    Ok(Some(hold(customer_id, request_key, units, expires_at)))
}

/// The hold that a request makes: its id follows from the request's key.
pub fn hold(
    customer_id: &CustomerId,
    request_key: &str,
    units: i64,
    expires_at: Timestamp,
) -> Hold {
    let id = derived_id("res", customer_id, request_key);
    let id = id.try_into().expect("a derived id is printable and short");
    Hold { id, state: HoldState::Pending, units, expires_at }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(particular: Option<Particular>, intent: Intent, reason: Reason) -> Facts {
        let now = Timestamp::from_seconds(0);
        Facts {
            customer_id: "c".parse().unwrap(),
            feature_id: "f".parse().unwrap(),
            plan_id: None,
            intent,
            asked: 1,
            counted: 0,
            reason,
            particular,
            usage: 0,
            reserved: 0,
            period: BillingPeriod { start: now, end: now },
            decided_at: now,
            event_id: None,
            hold: None,
            remark: Remark::Late,
        }
    }

    #[test]
    fn an_outcome_is_read_as_it_was_written() {
        let thresholds = THRESHOLDS.iter().map(|(state, _)| *state);
        let hard = |threshold| {
            Some(Particular { enforcement: Enforcement::Hard { granted: 7 }, threshold })
        };
        for stated in std::iter::once(None).chain(thresholds.map(hard)) {
            for (intent, _) in INTENTS {
                for (reason, _) in REASONS {
                    let text = outcome(&facts(stated, *intent, *reason), true);
                    let letters: Vec<char> = text.chars().collect();
                    assert_eq!(value(INTENTS, Some(letters[0])).unwrap(), *intent);
                    assert_eq!(value(REASONS, Some(letters[1])).unwrap(), *reason);
                    let read = particular(Some(letters[2]), Some(letters[3]), Some(7)).unwrap();
                    assert_eq!((read, &text[4..]), (stated, "ml"));
                }
            }
        }
    }

    #[test]
    fn each_meaning_has_a_letter_of_its_own() {
        fn distinct<T>(letters: &[(T, char)]) -> bool {
            let set: std::collections::BTreeSet<char> = letters.iter().map(|(_, c)| *c).collect();
            set.len() == letters.len() && !set.contains(&'?')
        }
        assert!(
            distinct(INTENTS) && distinct(REASONS) && distinct(THRESHOLDS) && distinct(REMARKS)
        );
    }

    #[test]
    fn a_row_has_a_cell_for_each_column_of_its_kind() {
        let event = NewEvent {
            facts: facts(None, Intent::Consume, Reason::WithinLimit),
            series: 0,
            key: EventKey::Own("evt_1".to_owned()),
            entity_id: None,
            plan_version: 1,
            metered: false,
            run: RunFacts::default(),
            cost_picodollars: None,
            properties: None,
        };
        let cells = cells(&event);
        assert_eq!(cells.len(), COLUMNS.len());
        for (cell, (name, kind)) in cells.iter().zip(COLUMNS) {
            let is_text = matches!(cell, Cell::Text(_) | Cell::NullText);
            assert_eq!(is_text, *kind == Kind::Text, "{name}");
        }
    }
}

//! What Stripe may or may not have counted, settled by Stripe's own sums.
//!
//! A meter event that was sent and not answered for good is sent again for a day, because that long
//! Stripe knows its identifier. After it, and after failures that Stripe told of without naming
//! them, the sum of the minute in which the usage lies is read. If it has what is in doubt, that is
//! delivered. If it has none of it, a new meter event for the same units is written down and sent.
//! If it fits neither, nothing is sent: the meter event stays parked and says so.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use super::proof::{GIVE_UP_AFTER, Sums, Unreadable, freeze, is_stripes};
use super::usage::{IN_DOUBT_AFTER, in_doubt};
use super::{Mode, SyncError};
use crate::app::App;
use crate::clock::Timestamp;
use crate::domain::ids::CustomerId;
use crate::domain::proof::{Expected, Place, SETTLED_AFTER, TAKEN_FOR, Told, minute_of};
use crate::store::doubts::Shown;
use crate::store::outbox::MeterEvent as Row;
use crate::store::{StoreError, Tx};

/// How many meter events one call takes up.
const AT_ONCE: i64 = 100;
/// How long something that the sum did not settle waits for the next reading.
const AGAIN_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
const NEVER: Timestamp = Timestamp::from_ms(i64::MAX);
/// How many sums one run of the hourly job reads because of failures that Stripe did not name. One
/// such failure puts all in doubt that arrived at the meter at its time, whosever it is.
pub(super) const SUSPECTED_READINGS: usize = 1_000;
/// How much earlier than Stripe refuses it usage is not sent any more.
const SENDING_TAKES: Duration = Duration::from_secs(60 * 60);
/// Stripe's code, in our words, for a failure that it did not name.
const UNNAMED: &str = "unnamed";

/// What came of settling doubts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settled {
    /// Stripe had counted them.
    pub counted: usize,
    /// Written down anew, to be sent.
    pub replaced: usize,
    /// Left for someone to look at.
    pub parked: usize,
    /// Stripe does not answer now.
    pub stopped: bool,
}

/// What a sum of Stripe's told about a minute.
pub(super) struct Answer {
    pub told: Told,
    /// In doubt, and in this minute.
    pub doubtful: Vec<Row>,
    /// Both numbers, for people.
    pub words: String,
}

/// Settles what is in doubt and due to be compared, with at most `readings` sums of what is only
/// suspected; takes off those that it has read.
pub(super) async fn settle_due(
    app: &App,
    sums: &Sums<'_>,
    readings: &mut usize,
) -> Result<Settled, SyncError> {
    let due = doubtful(app, None, app.clock.now()).await?;
    settle_all(app, sums, due, readings, Mode::Apply).await
}

/// The same for what one customer has in doubt, whenever it was to be compared. A dry run only
/// answers what it would come to.
pub(super) async fn settle_of(
    app: &App,
    sums: &Sums<'_>,
    customer_id: &CustomerId,
    mode: Mode,
) -> Result<Settled, SyncError> {
    let any_time = app.clock.now().plus(2 * AGAIN_AFTER);
    let due = doubtful(app, Some(customer_id), any_time).await?;
    settle_all(app, sums, due, &mut { SUSPECTED_READINGS }, mode).await
}

async fn doubtful(
    app: &App,
    customer_id: Option<&CustomerId>,
    due_by: Timestamp,
) -> Result<Vec<Row>, StoreError> {
    let now = app.clock.now();
    let (in_doubt_before, settled_by) = (now.minus(IN_DOUBT_AFTER), now.minus(SETTLED_AFTER));
    let store = &app.store;
    store.doubtful_meter_events(customer_id, in_doubt_before, settled_by, due_by, AT_ONCE).await
}

async fn settle_all(
    app: &App,
    sums: &Sums<'_>,
    mut due: Vec<Row>,
    readings: &mut usize,
    mode: Mode,
) -> Result<Settled, SyncError> {
    let mut settled = clear_suspected(app, sums, &mut due, readings, mode).await?;
    let (mut asked, mut trouble) = (Vec::new(), 0);
    for row in &due {
        // One reading settles everything in its minute.
        let minute = (place_of(row), minute_of(row.timestamp).start);
        if asked.contains(&minute) || !may_read(row, readings) {
            continue;
        }
        match ask(app, sums, row).await {
            Ok(answer) => {
                settle_answer(app, &answer, mode, &mut settled).await?;
                asked.push(minute);
            }
            Err(Unsettled::Store(error)) if error.is_outage() => return Err(error.into()),
            Err(Unsettled::Unreadable(Unreadable::Stripe(error))) if is_stripes(&error) => {
                trouble += 1;
                if trouble == GIVE_UP_AFTER || !error.is_transient() {
                    tracing::warn!(%error, "Stripe's sums cannot be read now: the rest waits");
                    settled.stopped = true;
                    break;
                }
                if mode == Mode::Apply {
                    wait(app, row).await?;
                }
                continue;
            }
            Err(_) if mode == Mode::DryRun => {}
            // Nobody can have counted it, but the key may be of another account.
            Err(Unsettled::Unreadable(Unreadable::NoMeter)) if row.state == "delivered" => {
                let reason = "Stripe has no meter for it".to_owned();
                park(app, row, Shown::Rejected { code: "no_meter".to_owned(), reason }).await?;
            }
            // One customer's trouble is no other's.
            Err(error) => {
                postpone(app, row, &format!("Stripe's sum cannot be read: {error}")).await?;
                settled.parked += 1;
            }
        }
        trouble = 0;
    }
    Ok(settled)
}

/// Clears all that is suspected of a customer and meter by one sum, if that has all of it, and takes
/// it off what is due. The rest is for its minutes to tell.
async fn clear_suspected(
    app: &App,
    sums: &Sums<'_>,
    due: &mut Vec<Row>,
    readings: &mut usize,
    mode: Mode,
) -> Result<Settled, SyncError> {
    let mut settled = Settled::default();
    let mut spans: BTreeMap<Place, (Range<Timestamp>, Row)> = BTreeMap::new();
    for row in due.iter().filter(|row| is_suspected(row)) {
        let minute = minute_of(row.timestamp);
        let (span, _) = spans.entry(place_of(row)).or_insert_with(|| (minute.clone(), row.clone()));
        *span = span.start.min(minute.start)..span.end.max(minute.end);
    }
    for (span, first) in spans.into_values() {
        if span == minute_of(first.timestamp) || !may_read(&first, readings) {
            continue;
        }
        match ask_of(app, sums, &first, span).await {
            Ok(answer) if answer.told == Told::Counted => {
                settle_answer(app, &answer, mode, &mut settled).await?;
                let told_of = |row: &Row| {
                    answer.doubtful.iter().any(|other| other.identifier == row.identifier)
                };
                due.retain(|row| !told_of(row));
            }
            Err(Unsettled::Store(error)) if error.is_outage() => return Err(error.into()),
            // Whatever is the matter, a minute's reading meets it too and says so.
            Err(Unsettled::Unreadable(Unreadable::Stripe(error))) if is_stripes(&error) => break,
            Ok(_) | Err(_) => {}
        }
    }
    Ok(settled)
}

/// Delivered, and perhaps among failures that Stripe did not name.
fn is_suspected(row: &Row) -> bool {
    row.state == "delivered"
}

/// Whether a sum may be read for something in doubt; takes a reading off if it is suspected only.
fn may_read(row: &Row, readings: &mut usize) -> bool {
    match (is_suspected(row), *readings) {
        (false, _) => true,
        (true, 0) => false,
        (true, left) => {
            *readings = left - 1;
            true
        }
    }
}

async fn settle_answer(
    app: &App,
    answer: &Answer,
    mode: Mode,
    settled: &mut Settled,
) -> Result<(), SyncError> {
    for row in &answer.doubtful {
        settled.count(row, answer.told, app.clock.now());
        if mode == Mode::Apply {
            settle(app, row, answer).await?;
        }
    }
    Ok(())
}

/// Why a sum says nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unsettled {
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Reads the sum of the minute in which a meter event lies. The event itself counts as in doubt.
pub(super) async fn ask(app: &App, sums: &Sums<'_>, asked: &Row) -> Result<Answer, Unsettled> {
    ask_of(app, sums, asked, minute_of(asked.timestamp)).await
}

/// The same of a span of whole minutes around it.
async fn ask_of(
    app: &App,
    sums: &Sums<'_>,
    asked: &Row,
    span: Range<Timestamp>,
) -> Result<Answer, Unsettled> {
    let place = place_of(asked);
    // Stripe's sum first: what is sent meanwhile is then known to us and not to it.
    let stripe = sums.units(&place, span.clone()).await?;
    let rows = app.store.meter_events_at(&place, &span).await?;
    let now = app.clock.now();
    let (mut expected, mut doubtful) = (Expected::default(), Vec::new());
    for row in rows {
        match part_of(&row, asked, now) {
            Part::None => {}
            Part::Certain => expected.certain += row.units,
            Part::UnderWay => expected.under_way += row.units,
            Part::Doubtful => {
                expected.doubtful += row.units;
                doubtful.push(row);
            }
        }
    }
    let words = format!(
        "Stripe's sum of its minute is {stripe}, ours {} with what is in doubt and {} without",
        expected.certain + expected.doubtful,
        expected.certain
    );
    Ok(Answer { told: expected.held_against(stripe), doubtful, words })
}

/// How a meter event bears on the sum of its minute.
enum Part {
    /// Certainly not in it.
    None,
    Certain,
    UnderWay,
    Doubtful,
}

fn part_of(row: &Row, asked: &Row, now: Timestamp) -> Part {
    let moved_lately = row.settled_at.is_none_or(|at| now.since(at) < SETTLED_AFTER);
    match row.state.as_str() {
        "pending" if row.first_sent_at.is_none() && !in_doubt(row, now) => Part::None,
        "pending" => Part::UnderWay,
        _ if row.first_sent_at.is_none() => Part::None,
        _ if row.identifier == asked.identifier && !moved_lately => Part::Doubtful,
        "parked" if row.rejected_code.is_some() && row.identifier != asked.identifier => Part::None,
        _ if moved_lately => Part::UnderWay,
        _ if is_doubtful(row, now) => Part::Doubtful,
        "delivered" => Part::Certain,
        // Refused after it had been sent without an answer: it may be sent again, and be known.
        _ => Part::UnderWay,
    }
}

/// Whether only Stripe's sum can tell if a meter event was counted.
fn is_doubtful(row: &Row, now: Timestamp) -> bool {
    match row.state.as_str() {
        "parked" => in_doubt(row, now) && row.rejected_code.is_none(),
        "delivered" => row.suspected_at.is_some(),
        _ => false,
    }
}

fn place_of(row: &Row) -> Place {
    Place { stripe_customer_id: row.stripe_customer_id.clone(), meter: row.event_name.clone() }
}

/// Does what follows for one meter event.
async fn settle(app: &App, row: &Row, answer: &Answer) -> Result<(), SyncError> {
    let now = app.clock.now();
    match answer.told {
        Told::Counted => show(app, row, &Shown::Counted, None).await?,
        Told::Missing if row.state == "delivered" => {
            let reason =
                format!("Stripe told of failures without naming them, and {}", answer.words);
            park(app, row, Shown::Rejected { code: UNNAMED.to_owned(), reason }).await?;
        }
        Told::Missing if is_too_old(row, now) => {
            let reason = "Stripe has not counted it and takes no usage older than 35 days";
            park(app, row, Shown::TooLate { reason: reason.to_owned() }).await?;
        }
        Told::Missing => {
            replace(app, row, None).await?;
        }
        Told::TooEarly => wait(app, row).await?,
        Told::Ahead { .. } if !is_too_old(row, now) => {
            if let Ok(customer_id) = row.customer_id.parse() {
                freeze(app, &customer_id, &answer.words).await?;
            }
            postpone(app, row, &answer.words).await?;
        }
        Told::Ahead { .. } | Told::Neither => postpone(app, row, &answer.words).await?,
    }
    Ok(())
}

impl Settled {
    fn count(&mut self, row: &Row, told: Told, now: Timestamp) {
        match told {
            Told::Counted => self.counted += 1,
            Told::Missing if row.state == "parked" && !is_too_old(row, now) => self.replaced += 1,
            Told::TooEarly => {}
            _ => self.parked += 1,
        }
    }
}

pub(super) fn is_too_old(row: &Row, now: Timestamp) -> bool {
    now.since(row.timestamp) + SENDING_TAKES >= TAKEN_FOR
}

/// Leaves a meter event as it is for a while.
async fn wait(app: &App, row: &Row) -> Result<(), StoreError> {
    let again_at = app.clock.now().plus(SETTLED_AFTER);
    show(app, row, &Shown::Unclear { again_at, reason: None }, None).await
}

/// Leaves a meter event as it is, with the reason, for a day; or for good, once Stripe takes its
/// usage no more, whatever its sums may say.
async fn postpone(app: &App, row: &Row, reason: &str) -> Result<(), StoreError> {
    let now = app.clock.now();
    let (again_at, reason) = match is_too_old(row, now) {
        true => (NEVER, format!("{reason}, and it takes no usage older than 35 days")),
        false => (now.plus(AGAIN_AFTER), reason.to_owned()),
    };
    park(app, row, Shown::Unclear { again_at, reason: Some(reason) }).await
}

/// Settles a meter event in a way that leaves its usage unbilled, and says so.
async fn park(app: &App, row: &Row, shown: Shown) -> Result<(), StoreError> {
    let reason = match &shown {
        Shown::Rejected { reason, .. } | Shown::TooLate { reason } => Some(reason),
        Shown::Unclear { reason, .. } => reason.as_ref(),
        Shown::Counted => None,
    };
    tracing::error!(
        customer_id = row.customer_id,
        identifier = row.identifier,
        units = row.units,
        reason,
        "a meter event is in doubt: its usage may not be billed until someone acts"
    );
    show(app, row, &shown, None).await
}

/// Settles a meter event by what sums have shown; `by` names whoever asked for it.
pub(super) async fn show(
    app: &App,
    row: &Row,
    shown: &Shown,
    by: Option<&str>,
) -> Result<(), StoreError> {
    let mut tx = app.store.begin().await?;
    if tx.settle_doubt(&row.identifier, &row.state, shown).await? {
        audit(app, &mut tx, row, by, "found in Stripe's sum").await?;
    }
    tx.commit().await
}

/// Writes down a new meter event for the units of one that Stripe has not counted, unless somebody
/// else settled the old one meanwhile; `by` names whoever asked for it.
pub(super) async fn replace(app: &App, row: &Row, by: Option<&str>) -> Result<(), StoreError> {
    let replacement = app.entropy.id("tg", app.clock.now());
    let mut tx = app.store.begin().await?;
    if let Ok(customer_id) = row.customer_id.parse() {
        tx.lock_customer_or_deleted(&customer_id).await?;
    }
    if tx.replace_meter_event(&row.identifier, &row.state, &replacement).await? {
        audit(app, &mut tx, row, by, &format!("sent anew as {replacement}")).await?;
        tracing::info!(
            customer_id = row.customer_id,
            identifier = row.identifier,
            replacement,
            units = row.units,
            "Stripe has not counted a meter event: its units are sent anew"
        );
    }
    tx.commit().await?;
    app.nudges.meter_events.notify_one();
    Ok(())
}

/// Notes in the audit trail what somebody has done to a meter event.
pub(super) async fn audit(
    app: &App,
    tx: &mut Tx,
    row: &Row,
    by: Option<&str>,
    done: &str,
) -> Result<(), StoreError> {
    let Some(actor) = by else { return Ok(()) };
    let detail = serde_json::json!({
        "identifier": row.identifier, "meter": row.event_name, "units": row.units, "done": done,
    });
    let audit_id = app.entropy.id("aud", tx.now);
    tx.insert_audit(&audit_id, actor, "replay", Some(&row.customer_id), &detail).await
}

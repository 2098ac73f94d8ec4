//! What Stripe may or may not have counted, settled by Stripe's own sums.
//!
//! A meter event that was sent and not answered for good is sent again for a day, because that long
//! Stripe knows its identifier. After it, and after failures that Stripe told of without naming
//! them, a sum of Stripe's is read: of all that is in doubt of a customer and meter, and where that
//! does not tell, of the minute in which the usage lies. If it has what is in doubt, that is
//! delivered. If it has none of it, a new meter event for the same units is written down and sent.
//! If it fits neither, nothing is sent: the meter event stays parked and says so.
//!
//! What Stripe refused at once is no doubt of its own, and only support's sync asks about it: a
//! backup may have been restored since. If the sum has none of it, it is sent as it is.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::time::Duration;

use super::proof::{Sums, Unreadable, freeze};
use super::usage::{IN_DOUBT_AFTER, in_doubt, sendable};
use super::{Mode, SyncError, Trouble};
use crate::app::App;
use crate::clock::Timestamp;
use crate::domain::ids::CustomerId;
use crate::domain::proof::{Expected, Place, SETTLED_AFTER, TAKEN_FOR, Told, minute_of};
use crate::store::doubts::Shown;
use crate::store::outbox::MeterEvent as Row;
use crate::store::{StoreError, Tx};
use crate::stripe::StripeError;

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
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settled {
    /// Stripe had counted them.
    pub counted: usize,
    /// Written down anew, to be sent.
    pub replaced: usize,
    /// Those that wait to be sent as they are, by their identifiers.
    pub put_back: Vec<String>,
    /// Left for someone to look at.
    pub parked: usize,
    /// Stripe has counted more than we know of.
    pub ahead: bool,
    /// Stripe does not answer now.
    pub stopped: bool,
    /// All of these, by their identifiers: a dry run may meet one twice.
    met: HashSet<String>,
}

/// What a sum of Stripe's told about a minute.
pub(super) struct Answer {
    pub told: Told,
    /// In doubt, and in this minute or span.
    pub doubtful: Vec<Row>,
    /// Whether what is in doubt is all that could be in the sum.
    pub nothing_else: bool,
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
    let due_by = app.clock.now();
    let due = doubtful(app, None, due_by).await?;
    let mut settled = Settled::default();
    settle_all(app, sums, (due, due_by), readings, Mode::Apply, &mut settled).await?;
    Ok(settled)
}

/// The same for what one customer has in doubt, whenever it was to be compared, and after it for
/// what Stripe never took. A dry run only answers what it would come to.
pub(super) async fn settle_of(
    app: &App,
    sums: &Sums<'_>,
    customer_id: &CustomerId,
    mode: Mode,
) -> Result<Settled, SyncError> {
    let any_time = app.clock.now().plus(2 * AGAIN_AFTER);
    let due = doubtful(app, Some(customer_id), any_time).await?;
    let readings = &mut { SUSPECTED_READINGS };
    let mut settled = Settled::default();
    settle_all(app, sums, (due, any_time), readings, mode, &mut settled).await?;
    let sendable = sendable(app.clock.now());
    let untaken = app.store.untaken_meter_events(customer_id, sendable, AT_ONCE).await?;
    if !settled.stopped {
        settle_all(app, sums, (untaken, any_time), readings, mode, &mut settled).await?;
    }
    Ok(settled)
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

/// Settles what is `due` by a time: of each place by one sum if that can tell, else by minutes.
async fn settle_all(
    app: &App,
    sums: &Sums<'_>,
    (mut due, due_by): (Vec<Row>, Timestamp),
    readings: &mut usize,
    mode: Mode,
    settled: &mut Settled,
) -> Result<(), SyncError> {
    settle_places(app, sums, (&mut due, due_by), readings, mode, settled).await?;
    let (mut asked, mut trouble) = (Vec::new(), Trouble::default());
    let in_question = in_question(&due);
    for row in &due {
        // One reading settles everything in its minute.
        let (place, minute) = (place_of(row), minute_of(row.timestamp));
        if asked.contains(&(place.clone(), minute.start)) || !may_read(row, readings) {
            continue;
        }
        let error = match ask_of(app, sums, &place, minute.clone(), &in_question).await {
            Ok(answer) => {
                trouble.after(None);
                settle_answer(app, &answer, mode, settled).await?;
                asked.push((place, minute.start));
                continue;
            }
            Err(Unsettled::Store(error)) if error.is_outage() => return Err(error.into()),
            Err(error) => error,
        };
        if trouble.after(error.stripes()) {
            tracing::warn!(%error, "Stripe's sums cannot be read now: the rest waits");
            settled.stopped = true;
            break;
        }
        match error {
            _ if mode == Mode::DryRun => {}
            error if error.may_pass() => wait(app, row).await?,
            // Nobody can have counted it, but the key may be of another account.
            Unsettled::Unreadable(Unreadable::NoMeter) if row.state == "delivered" => {
                let reason = "Stripe has no meter for it".to_owned();
                park(app, row, Shown::Rejected { code: "no_meter".to_owned(), reason }).await?;
            }
            // One customer's trouble is no other's.
            error => {
                postpone(app, row, &format!("Stripe's sum cannot be read: {error}")).await?;
                settled.parked += 1;
            }
        }
    }
    Ok(())
}

/// Settles all that is in doubt of a customer and meter by one sum, if that can tell, and takes it
/// off what is due: the sum has all of it, or it has nothing and there is nothing else that it
/// should have. The rest is for its minutes to tell.
async fn settle_places(
    app: &App,
    sums: &Sums<'_>,
    (due, due_by): (&mut Vec<Row>, Timestamp),
    readings: &mut usize,
    mode: Mode,
    settled: &mut Settled,
) -> Result<(), SyncError> {
    let mut trouble = Trouble::default();
    let in_question = in_question(due);
    for (place, (due_span, first)) in spans(due) {
        let span = match is_doubtful(&first, app.clock.now()) && !is_suspected(&first) {
            true => whole_span(app, &place, due_span, due_by).await?,
            false => due_span,
        };
        if span == minute_of(first.timestamp) || !may_read(&first, readings) {
            continue;
        }
        match ask_of(app, sums, &place, span, &in_question).await {
            Ok(answer)
                if answer.told == Told::Counted
                    || answer.told == Told::Missing && answer.nothing_else =>
            {
                trouble.after(None);
                settle_answer(app, &answer, mode, settled).await?;
                let told_of: HashSet<_> =
                    answer.doubtful.iter().map(|row| row.identifier.as_str()).collect();
                due.retain(|row| !told_of.contains(row.identifier.as_str()));
            }
            Err(Unsettled::Store(error)) if error.is_outage() => return Err(error.into()),
            // Whatever is the matter, a minute's reading meets it too and says so.
            Err(error) if trouble.after(error.stripes()) => break,
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

/// The whole minutes of what is due of each place, and the first of it.
fn spans(due: &[Row]) -> BTreeMap<Place, (Range<Timestamp>, Row)> {
    let mut spans: BTreeMap<Place, (Range<Timestamp>, Row)> = BTreeMap::new();
    for row in due {
        let minute = minute_of(row.timestamp);
        let (span, _) = spans.entry(place_of(row)).or_insert_with(|| (minute.clone(), row.clone()));
        *span = span.start.min(minute.start)..span.end.max(minute.end);
    }
    spans
}

/// The span in which all lies that is parked and in doubt of a place, also what is not among the
/// first that are taken up: after an outage each customer has much of it.
async fn whole_span(
    app: &App,
    place: &Place,
    due: Range<Timestamp>,
    due_by: Timestamp,
) -> Result<Range<Timestamp>, StoreError> {
    let now = app.clock.now();
    let (in_doubt_before, settled_by) = (now.minus(IN_DOUBT_AFTER), now.minus(SETTLED_AFTER));
    let found = app.store.doubtful_span(place, in_doubt_before, settled_by, due_by).await?;
    Ok(found.map_or(due.clone(), |(first, last)| {
        due.start.min(minute_of(first).start)..due.end.max(minute_of(last).end)
    }))
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
        let follows = follows(app, row, answer.told).await?;
        settled.count(row, follows);
        if mode == Mode::Apply {
            settle(app, row, answer, follows).await?;
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

impl Unsettled {
    /// What Stripe said instead.
    fn stripes(&self) -> Option<&StripeError> {
        match self {
            Self::Unreadable(Unreadable::Stripe(error)) => Some(error),
            _ => None,
        }
    }

    /// Whether the same sum may be read a moment later.
    fn may_pass(&self) -> bool {
        self.stripes().is_some_and(|error| error.is_outage() || error.is_transient())
    }
}

/// Reads the sum of the minute in which a meter event lies. The event itself counts as in doubt.
pub(super) async fn ask(app: &App, sums: &Sums<'_>, asked: &Row) -> Result<Answer, Unsettled> {
    let in_question = in_question(std::slice::from_ref(asked));
    ask_of(app, sums, &place_of(asked), minute_of(asked.timestamp), &in_question).await
}

/// The identifiers of what counts as in doubt because it is asked about.
fn in_question(rows: &[Row]) -> HashSet<String> {
    rows.iter().map(|row| row.identifier.clone()).collect()
}

/// Reads the sum of a span of whole minutes.
async fn ask_of(
    app: &App,
    sums: &Sums<'_>,
    place: &Place,
    span: Range<Timestamp>,
    in_question: &HashSet<String>,
) -> Result<Answer, Unsettled> {
    // Stripe's sum first: what is sent meanwhile is then known to us and not to it.
    let stripe = sums.units(place, span.clone()).await?;
    let rows = app.store.meter_events_at(place, &span).await?;
    let now = app.clock.now();
    let (mut expected, mut doubtful) = (Expected::default(), Vec::new());
    for row in rows {
        match part_of(&row, in_question.contains(&row.identifier), now) {
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
    let nothing_else = expected.certain == 0;
    Ok(Answer { told: expected.held_against(stripe), doubtful, nothing_else, words })
}

/// How a meter event bears on the sum of its minute.
enum Part {
    /// Certainly not in it.
    None,
    Certain,
    UnderWay,
    Doubtful,
}

fn part_of(row: &Row, is_asked: bool, now: Timestamp) -> Part {
    let moved_lately = row.settled_at.is_none_or(|at| now.since(at) < SETTLED_AFTER);
    match row.state.as_str() {
        "pending" if row.first_sent_at.is_none() && !in_doubt(row, now) => Part::None,
        "pending" => Part::UnderWay,
        _ if is_asked && !moved_lately => Part::Doubtful,
        _ if row.first_sent_at.is_none() => Part::None,
        "parked" if row.rejected_code.is_some() && !is_asked => Part::None,
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

/// What a sum comes to for one meter event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follows {
    Delivered,
    /// Delivered once, and not counted.
    Rejected,
    TooLate,
    /// It was not counted, and nothing is sent for its customer.
    Held,
    /// It is sent as it is.
    PutBack,
    /// Its units are sent anew.
    Replaced,
    Waits,
    /// Nothing is sent for its customer from now on.
    Ahead,
    Unclear,
}

async fn follows(app: &App, row: &Row, told: Told) -> Result<Follows, StoreError> {
    let too_old = is_too_old(row, app.clock.now());
    Ok(match told {
        Told::Counted => Follows::Delivered,
        Told::TooEarly => Follows::Waits,
        Told::Ahead { .. } if !too_old => Follows::Ahead,
        Told::Ahead { .. } | Told::Neither => Follows::Unclear,
        Told::Missing if row.state == "delivered" => Follows::Rejected,
        Told::Missing if too_old => Follows::TooLate,
        // Written down anew it would only be parked again.
        Told::Missing if app.store.frozen_because(&row.customer_id).await?.is_some() => {
            Follows::Held
        }
        Told::Missing if was_refused(row) => Follows::PutBack,
        Told::Missing => Follows::Replaced,
    })
}

/// Whether a meter event is parked because Stripe refused every send of it at once, so that Stripe
/// does not know its identifier.
pub(super) fn was_refused(row: &Row) -> bool {
    row.state == "parked"
        && row.rejected_code.is_none()
        && row.first_sent_at.is_none()
        && row.attempts > 0
}

/// Does what follows for one meter event.
async fn settle(app: &App, row: &Row, answer: &Answer, follows: Follows) -> Result<(), SyncError> {
    match follows {
        Follows::Delivered => show(app, row, &Shown::Counted, None).await?,
        Follows::Rejected => {
            let reason =
                format!("Stripe told of failures without naming them, and {}", answer.words);
            park(app, row, Shown::Rejected { code: UNNAMED.to_owned(), reason }).await?;
        }
        Follows::TooLate => {
            let reason = "Stripe has not counted it and takes no usage older than 35 days";
            park(app, row, Shown::TooLate { reason: reason.to_owned() }).await?;
        }
        Follows::Held => {
            let reason = "Stripe has not counted it, and nothing is sent for this customer until \
                someone has looked";
            postpone(app, row, reason).await?;
        }
        Follows::PutBack => put_back_cleared(app, row, None).await?,
        Follows::Replaced => replace(app, row, None).await?,
        Follows::Waits => wait(app, row).await?,
        Follows::Ahead => {
            if let Ok(customer_id) = row.customer_id.parse() {
                freeze(app, &customer_id, &answer.words).await?;
            }
            postpone(app, row, &answer.words).await?;
        }
        Follows::Unclear => postpone(app, row, &answer.words).await?,
    }
    Ok(())
}

impl Settled {
    fn count(&mut self, row: &Row, follows: Follows) {
        if !self.met.insert(row.identifier.clone()) {
            return;
        }
        match follows {
            Follows::Delivered => self.counted += 1,
            Follows::Replaced => self.replaced += 1,
            Follows::PutBack => self.put_back.push(row.identifier.clone()),
            Follows::Waits => {}
            Follows::Rejected
            | Follows::TooLate
            | Follows::Held
            | Follows::Ahead
            | Follows::Unclear => self.parked += 1,
        }
        self.ahead |= follows == Follows::Ahead;
    }

    pub(super) fn add(&mut self, more: Self) {
        self.counted += more.counted;
        self.replaced += more.replaced;
        self.put_back.extend(more.put_back);
        self.parked += more.parked;
        self.ahead |= more.ahead;
        self.stopped |= more.stopped;
    }
}

pub(super) fn is_too_old(row: &Row, now: Timestamp) -> bool {
    row.timestamp <= taken_after(now)
}

/// Usage from after this can still be sent.
pub(super) fn taken_after(now: Timestamp) -> Timestamp {
    now.minus(TAKEN_FOR.saturating_sub(SENDING_TAKES))
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

/// Lets a meter event that Stripe refused, and of which its sum has nothing, be sent as it is; `by`
/// names whoever asked for it.
pub(super) async fn put_back_cleared(
    app: &App,
    row: &Row,
    by: Option<&str>,
) -> Result<(), StoreError> {
    let mut tx = app.store.begin().await?;
    if tx.put_back_cleared(&row.identifier).await? {
        audit(app, &mut tx, row, by, "put back").await?;
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

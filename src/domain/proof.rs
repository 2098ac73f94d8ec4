//! Stripe's sums held against the ledger.
//!
//! Stripe adds up by its own customer, meter and time; we count by customer, feature and period.
//! So what is compared is an [`Account`]: all that one customer of ours used in one period and
//! reported to one Stripe customer and meter, whichever features it was for.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::domain::ids::FeatureId;
use crate::domain::period::BillingPeriod;

/// How long after it has arrived at Stripe usage may be missing from Stripe's sums. Stripe
/// promises no time; others have seen two minutes.
pub const SETTLED_AFTER: Duration = Duration::from_secs(30 * 60);

/// Stripe takes usage that is at most this old, by its documentation of meter events.
pub const TAKEN_FOR: Duration = Duration::from_secs(35 * 86_400);

/// The step of the bounds between which Stripe adds up.
const MINUTE_MS: i64 = 60_000;

/// Where usage is reported to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub stripe_customer_id: String,
    /// The meter's event name.
    pub meter: String,
}

/// How much of a counter has to be at Stripe, in whole units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metered {
    pub feature_id: FeatureId,
    pub series: i64,
    pub period: BillingPeriod,
    /// What its usage events say went to a meter, those included that retention has deleted.
    /// `None` where they are older than the note of it.
    pub units: Option<i64>,
    /// Of the open metering window, and the meter it is for.
    pub open: i64,
    pub open_meter: Option<String>,
}

/// How much of a counter is in meter events for one place, in whole units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported {
    pub feature_id: FeatureId,
    pub series: i64,
    pub period_start: Timestamp,
    pub place: Place,
    /// In all meter events but those whose units another one sends.
    pub units: i64,
    /// Delivered so short a time ago that Stripe's sums may lack them.
    pub fresh: i64,
    pub waiting: i64,
    pub parked: i64,
    pub parked_because: Option<String>,
    /// Of those that wait or are parked, never sent or rejected: Stripe cannot have them.
    pub unsent: i64,
    pub first_at: Timestamp,
    pub last_at: Timestamp,
}

/// What is held against one sum of Stripe's, in whole units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// `None` if nothing says where its units should have gone.
    pub place: Option<Place>,
    pub series: i64,
    pub period: BillingPeriod,
    /// What Stripe has to have.
    pub ledger: i64,
    pub fresh: i64,
    pub waiting: i64,
    /// In metering windows that are still open.
    pub open: i64,
    pub parked: i64,
    pub parked_because: Option<String>,
    /// Of those that wait or are parked, never sent or rejected: Stripe cannot have them.
    pub unsent: i64,
    /// Counted as metered, and in no window and no meter event. Below zero if it is the other way
    /// round.
    pub lost: i64,
    /// First and last time of its meter events.
    reported_at: Option<(Timestamp, Timestamp)>,
    /// Nothing of the customer's was reported there in an earlier period.
    is_first: bool,
}

/// Puts a customer's counters and meter events together into accounts, in order of time.
///
/// A usage event does not say which meter it went to, its counter's meter events do. So what is in
/// no meter event is expected where the counter's window is open, else where its usage went last,
/// else `elsewhere`: where it would go today. `now_in` is the series and the period that the
/// customer is in.
pub fn accounts(
    metered: &[Metered],
    reported: &[Reported],
    now_in: Option<(i64, BillingPeriod)>,
    elsewhere: impl Fn(&FeatureId) -> Option<Place>,
) -> Vec<Account> {
    let mut accounts: BTreeMap<(Timestamp, i64, Option<Place>), Account> = BTreeMap::new();
    for row in reported {
        let key = (row.period_start, row.series, Some(row.place.clone()));
        accounts.entry(key.clone()).or_insert_with(|| Account::empty(key)).take(row);
    }
    for counter in metered {
        let of_counter = || reported.iter().filter(|row| row.is_of(counter));
        let frozen: i64 = of_counter().map(|row| row.units).sum();
        let lost = counter.units.map_or(0, |units| units - frozen - counter.open);
        if lost == 0 && counter.open == 0 {
            continue;
        }
        let last = of_counter().max_by_key(|row| row.last_at).map(|row| row.place.clone());
        let today = elsewhere(&counter.feature_id);
        let place = match (&counter.open_meter, today.clone().or_else(|| last.clone())) {
            (Some(meter), Some(place)) => Some(Place { meter: meter.clone(), ..place }),
            _ => last.or(today),
        };
        let key = (counter.period.start, counter.series, place);
        let account = accounts.entry(key.clone()).or_insert_with(|| Account::empty(key));
        account.ledger += lost + counter.open;
        account.open += counter.open;
        account.lost += lost;
    }
    let mut accounts: Vec<_> = accounts.into_values().collect();
    let mut places = BTreeSet::new();
    for account in &mut accounts {
        account.period.end = end_of(account, metered, now_in);
        account.is_first = places.insert(account.place.clone());
    }
    accounts
}

impl Reported {
    fn is_of(&self, counter: &Metered) -> bool {
        self.feature_id == counter.feature_id
            && self.series == counter.series
            && self.period_start == counter.period.start
    }
}

/// When an account's period ended: where its counters say, unless a later series began before
/// that, as when the customer's first subscription did. The period in force has the end it has now.
fn end_of(
    account: &Account,
    metered: &[Metered],
    now_in: Option<(i64, BillingPeriod)>,
) -> Timestamp {
    let (series, start) = (account.series, account.period.start);
    if let Some((_, period)) =
        now_in.filter(|(now, period)| (*now, period.start) == (series, start))
    {
        return period.end;
    }
    let own = metered.iter().filter(|c| c.series == series && c.period.start == start);
    let told = own.map(|counter| counter.period.end).max();
    let last = account.reported_at.map_or(start, |(_, last)| last);
    let told = told.unwrap_or_else(|| last.plus(Duration::from_millis(1)));
    let others = metered.iter().map(|counter| (counter.series, counter.period.start));
    let next = others
        .chain(now_in.map(|(series, period)| (series, period.start)))
        .filter(|(other, began)| *other >= series && *began > start)
        .map(|(_, began)| began)
        .min();
    next.map_or(told, |next| told.min(next))
}

impl Account {
    fn empty((start, series, place): (Timestamp, i64, Option<Place>)) -> Self {
        Self {
            place,
            series,
            period: BillingPeriod { start, end: start },
            ledger: 0,
            fresh: 0,
            waiting: 0,
            open: 0,
            parked: 0,
            parked_because: None,
            unsent: 0,
            lost: 0,
            reported_at: None,
            is_first: false,
        }
    }

    fn take(&mut self, row: &Reported) {
        self.ledger += row.units;
        self.fresh += row.fresh;
        self.waiting += row.waiting;
        self.parked += row.parked;
        self.unsent += row.unsent;
        if row.parked_because.is_some() {
            self.parked_because.clone_from(&row.parked_because);
        }
        let (first, last) = self.reported_at.unwrap_or((row.first_at, row.last_at));
        self.reported_at = Some((first.min(row.first_at), last.max(row.last_at)));
    }

    /// Whether both are held against the same sum.
    pub fn is_same(&self, other: &Self) -> bool {
        let key = |account: &Self| (account.place.clone(), account.series, account.period.start);
        key(self) == key(other)
    }

    /// Whether nobody can use anything in it any more.
    pub fn is_closed(&self, now: Timestamp) -> bool {
        self.period.end <= now
    }

    /// The whole minutes in which all its usage lies. Usage of other accounts may lie there too:
    /// periods begin and end at any second, and a new series may begin within an old one's period.
    ///
    /// Usage is reported from the day a customer is tied to Stripe on. What Stripe has from before
    /// that, of whatever counted until then, is not ours to account for.
    pub fn span(&self) -> Range<Timestamp> {
        let BillingPeriod { start, end } = self.period;
        let (first, last) = self.reported_at.unwrap_or((start, start));
        let start = if self.is_first { first } else { start.min(first) };
        minute_of(start).start..whole_minute_after(end.max(last.plus(Duration::from_millis(1))))
    }

    /// The most that Stripe can have of it. What waits to be sent does not hide a surplus: it is
    /// still to be added.
    pub fn most(&self) -> i64 {
        self.ledger - self.unsent - self.open
    }

    /// How many units Stripe has too many, below zero too few, when it has `stripe` and `moving`
    /// of what it should have need not show yet.
    pub fn difference(&self, stripe: i64, moving: i64) -> i64 {
        let settled = self.ledger - moving;
        match stripe {
            more if more > self.most() => more - self.most(),
            less if less < settled => less - settled,
            _ => 0,
        }
    }

    /// What is known of why Stripe may have another number, for people.
    pub fn remarks(&self) -> Vec<String> {
        let because = self.parked_because.as_deref().unwrap_or("no reason is noted");
        [
            (self.waiting, "units wait to be sent".to_owned()),
            (self.open, "units are in a metering window that is still open".to_owned()),
            (self.parked, format!("units are parked: {because}")),
            (self.lost, "units were metered and are in no meter event".to_owned()),
        ]
        .into_iter()
        .filter(|(units, _)| *units != 0)
        .map(|(units, words)| format!("{units} {words}"))
        .collect()
    }
}

/// The minute around a moment.
pub fn minute_of(moment: Timestamp) -> Range<Timestamp> {
    let start = moment.ms().div_euclid(MINUTE_MS) * MINUTE_MS;
    Timestamp::from_ms(start)..Timestamp::from_ms(start + MINUTE_MS)
}

/// The first whole minute at `moment` or after it.
fn whole_minute_after(moment: Timestamp) -> Timestamp {
    let minute = minute_of(moment);
    if minute.start == moment { moment } else { minute.end }
}

/// What we know to be, or may be, in one of Stripe's sums, in whole units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expected {
    /// Delivered, and long enough ago to show.
    pub certain: i64,
    /// Delivered a moment ago, or being tried: whether it shows is a matter of time.
    pub under_way: i64,
    /// What the sum is to tell about.
    pub doubtful: i64,
}

/// What a sum of Stripe's says about what is in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// All of it is in the sum.
    Counted,
    /// None of it is.
    Missing,
    /// Something else may yet move the sum.
    TooEarly,
    /// Stripe has this many units more than all that we know of.
    Ahead { by: i64 },
    /// The sum is neither with what is in doubt nor without it.
    Neither,
}

impl Expected {
    pub fn held_against(self, stripe: i64) -> Told {
        let with = self.certain + self.doubtful;
        match stripe {
            more if more > with + self.under_way => {
                Told::Ahead { by: more - with - self.under_way }
            }
            _ if self.under_way > 0 => Told::TooEarly,
            all if all == with => Told::Counted,
            rest if rest == self.certain => Told::Missing,
            _ => Told::Neither,
        }
    }
}

#[cfg(test)]
mod tests;

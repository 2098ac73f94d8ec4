//! The simulated account: every object in it, lists of them, and how ids are expanded.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::{Value, json};

use super::answer::ApiError;
use super::checkout::Order;
use super::faults::Faults;
use super::idempotency::Keys;
use super::life::Subscriptions;
use super::limits::Limits;
use super::meters::MeterEvents;
use super::params::Params;
use super::payments::Card;
use super::webhooks::Deliveries;
use crate::clock::Timestamp;
use crate::entropy::Entropy;

/// The one API version the simulator speaks.
pub const API_VERSION: &str = "2026-09-30.endive";

/// Objects of one kind as the JSON Stripe shows, in the order they were made.
#[derive(Default)]
pub(super) struct Table {
    /// A removed row leaves a null behind, so that the others keep their places.
    rows: Vec<Value>,
    places: HashMap<String, usize>,
}

impl Table {
    /// Adds an object or replaces the one of the same id.
    pub fn put(&mut self, object: Value) {
        let id = text(&object, "id").to_owned();
        if let Some(place) = self.places.get(&id) {
            self.rows[*place] = object;
        } else {
            self.places.insert(id, self.rows.len());
            self.rows.push(object);
        }
    }

    pub fn get(&self, id: &str) -> Option<&Value> {
        self.places.get(id).map(|place| &self.rows[*place])
    }

    pub fn remove(&mut self, id: &str) -> Option<Value> {
        let place = self.places.remove(id)?;
        Some(self.rows[place].take())
    }

    /// In the order they were made.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Value> {
        self.rows.iter().filter(|row| row.is_object())
    }
}

/// A text field of a stored object; empty if it has none.
pub(super) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_default()
}

/// Whether the object is still there: Stripe keeps a stub of a deleted customer.
pub(super) fn exists(object: &&Value) -> bool {
    object["deleted"] != true
}

/// Something that happens by itself when its moment comes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    /// A phase of a subscription schedule ends. First, so that a renewal of the same moment is
    /// billed by the next phase.
    Schedule(String),
    Subscription(String),
    /// A draft invoice to be finalized.
    Invoice(String),
    /// An unpaid invoice to be charged again.
    Retry(String),
    /// A Checkout session that nobody completed.
    Checkout(String),
    /// A test clock arrives at the time it was sent to.
    TestClock(String),
    /// What became of the meter events of the last seconds is told.
    MeterReport,
}

/// What is due when, by moment in whole seconds.
pub(super) type Timetable = BTreeSet<(i64, Due)>;

/// One API call as the simulator saw it, for tests to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedRequest {
    pub at: Timestamp,
    pub request_id: String,
    pub method: String,
    pub path: String,
    /// As it was sent: encoded, without the question mark.
    pub query: String,
    /// As it was sent; what is no text in it is replaced.
    pub body: Arc<str>,
    pub idempotency_key: Option<String>,
    /// `None` while it is being worked on, and if the connection was cut instead of answered.
    pub status: Option<u16>,
    /// The body of the answer; `None` where there is no status.
    pub answer: Option<Arc<str>>,
}

/// The account.
#[derive(Default)]
pub(super) struct State {
    /// `None` until it is given another one.
    pub account_id: Option<String>,
    pub customers: Table,
    pub products: Table,
    pub prices: Table,
    pub invoices: Table,
    /// Amounts that were put on a customer's next invoice by hand.
    pub invoice_items: Table,
    pub meters: Table,
    pub events: Table,
    pub thin_events: Table,
    pub webhook_endpoints: Table,
    pub event_destinations: Table,
    pub payment_methods: Table,
    /// How each payment method behaves when it is charged.
    pub cards: HashMap<String, Card>,
    pub checkout_sessions: Table,
    /// What each session sells.
    pub checkout_orders: HashMap<String, Order>,
    pub portal_configurations: Table,
    pub portal_sessions: Table,
    pub schedules: Table,
    pub test_clocks: Table,
    /// By test clock.
    pub test_timetables: HashMap<String, Timetable>,
    pub subscriptions: Subscriptions,
    pub meter_events: MeterEvents,
    pub deliveries: Deliveries,
    /// By the simulator's own clock.
    pub timetable: Timetable,
    pub keys: Keys,
    pub limits: Limits,
    pub requests: Vec<LoggedRequest>,
}

/// The request that caused a change; absent when time did.
#[derive(Clone, Default)]
pub(super) struct Origin {
    pub request_id: Option<String>,
    pub idempotency_key: Option<String>,
}

/// One change to the account at one moment.
pub(super) struct Call<'a> {
    pub state: &'a mut State,
    pub entropy: &'a Entropy,
    /// The moment of what is being done: that of a test clock, if it concerns one.
    pub now: Timestamp,
    /// The moment by the simulator's own clock.
    pub real_now: Timestamp,
    pub origin: Origin,
    /// The switches as they are.
    pub faults: Faults,
    /// Where the simulator listens, for the pages it links to.
    pub base_url: &'a str,
}

impl Call<'_> {
    pub fn id(&self, prefix: &str) -> String {
        self.entropy.id(prefix, self.now)
    }

    pub fn now_s(&self) -> i64 {
        self.now.seconds()
    }

    /// A customer that can be used, named by a parameter.
    pub fn customer(&self, id: &str, param: &str) -> Result<&Value, ApiError> {
        let customer = self.state.customers.get(id).filter(exists);
        customer.ok_or_else(|| ApiError::no_such_param("customer", id, param))
    }

    /// Goes over to the time of a customer's test clock, if it has one, for the rest of the call.
    pub fn enter_time_of(&mut self, customer: &str) {
        let frozen_s = self.state.clock_of(customer).and_then(|clock| {
            self.state.test_clocks.get(clock).and_then(|clock| clock["frozen_time"].as_i64())
        });
        if let Some(frozen_s) = frozen_s {
            self.now = Timestamp::from_seconds(frozen_s);
        }
    }
}

/// Which part of a list was asked for.
pub(super) struct Page {
    limit: usize,
    starting_after: Option<String>,
    ending_before: Option<String>,
    created_from_s: i64,
    created_to_s: i64,
}

impl Page {
    pub fn read(params: &mut Params) -> Result<Self, ApiError> {
        let limit = params.integer("limit")?.unwrap_or(10);
        if !(1..=100).contains(&limit) {
            return Err(ApiError::invalid_integer("limit", &limit.to_string()));
        }
        Ok(Self {
            limit: usize::try_from(limit).unwrap_or(10),
            starting_after: params.text("starting_after")?,
            ending_before: params.text("ending_before")?,
            created_from_s: i64::MIN,
            created_to_s: i64::MAX,
        })
    }

    /// As [`Page::read`], with the filter `created`: a second, or bounds `gt`, `gte`, `lt`, `lte`.
    pub fn read_with_created(params: &mut Params) -> Result<Self, ApiError> {
        let mut page = Self::read(params)?;
        if !params.is_section("created") {
            if let Some(exact_s) = params.integer("created")? {
                (page.created_from_s, page.created_to_s) = (exact_s, exact_s);
            }
        } else if let Some(mut bounds) = params.section("created")? {
            let after_s = bounds.integer("gt")?.map(|at_s| at_s.saturating_add(1));
            let before_s = bounds.integer("lt")?.map(|at_s| at_s.saturating_sub(1));
            let from_s = [bounds.integer("gte")?, after_s].into_iter().flatten().max();
            let to_s = [bounds.integer("lte")?, before_s].into_iter().flatten().min();
            bounds.finish(&[])?;
            page.created_from_s = from_s.unwrap_or(i64::MIN);
            page.created_to_s = to_s.unwrap_or(i64::MAX);
        }
        Ok(page)
    }

    /// The list object over `rows`, which come newest first and unfiltered: a cursor may point at
    /// an object that `keep` leaves out.
    pub fn cut(
        &self,
        url: &str,
        noun: &str,
        rows: impl Iterator<Item = Value>,
        keep: impl Fn(&Value) -> bool,
    ) -> Result<Value, ApiError> {
        let rows: Vec<Value> = rows.collect();
        let place = |cursor: &Option<String>, param| match cursor {
            None => Ok(None),
            Some(id) => match rows.iter().position(|row| text(row, "id") == id) {
                None => Err(ApiError::no_such_param(noun, id, param)),
                found => Ok(found),
            },
        };
        let after = place(&self.starting_after, "starting_after")?.map_or(0, |place| place + 1);
        let before = place(&self.ending_before, "ending_before")?;
        let end = before.unwrap_or(rows.len()).max(after);
        let in_time = |row: &&Value| {
            row["created"]
                .as_i64()
                .is_none_or(|at_s| (self.created_from_s..=self.created_to_s).contains(&at_s))
        };
        let kept: Vec<&Value> =
            rows[after..end].iter().filter(in_time).filter(|row| keep(row)).collect();
        let has_more = kept.len() > self.limit;
        let data = if before.is_some() {
            &kept[kept.len().saturating_sub(self.limit)..]
        } else {
            &kept[..kept.len().min(self.limit)]
        };
        Ok(json!({ "object": "list", "data": data, "has_more": has_more, "url": url }))
    }
}

impl State {
    /// The test clock that a customer lives by.
    pub fn clock_of(&self, customer: &str) -> Option<&str> {
        self.customers.get(customer)?["test_clock"].as_str()
    }

    /// The timetable that a customer's objects are on.
    pub fn timetable_of(&mut self, customer: &str) -> &mut Timetable {
        match self.clock_of(customer).map(str::to_owned) {
            Some(clock) => self.test_timetables.entry(clock).or_default(),
            None => &mut self.timetable,
        }
    }

    /// Replaces the id at `path` by the object, as `expand[]` asks. What is already an object, or
    /// null, stays.
    pub fn expand(&self, object: &mut Value, path: &str) -> Result<(), ApiError> {
        let steps: Vec<&str> = path.split('.').collect();
        if self.expand_steps(object, &steps) {
            return Ok(());
        }
        Err(ApiError::not_expandable(path))
    }

    fn expand_steps(&self, node: &mut Value, steps: &[&str]) -> bool {
        if let Value::Array(entries) = node {
            return entries.iter_mut().all(|entry| self.expand_steps(entry, steps));
        }
        if let Value::String(id) = node {
            match self.find(id) {
                Some(object) => *node = object,
                None => return false,
            }
        }
        match (steps.split_first(), node) {
            (None, _) | (_, Value::Null) => true,
            (Some((step, rest)), Value::Object(fields)) => {
                fields.get_mut(*step).is_some_and(|field| self.expand_steps(field, rest))
            }
            _ => false,
        }
    }

    fn find(&self, id: &str) -> Option<Value> {
        let tables = [
            &self.customers,
            &self.products,
            &self.prices,
            &self.invoices,
            &self.payment_methods,
            &self.portal_configurations,
            &self.schedules,
            &self.test_clocks,
        ];
        let found = tables.iter().find_map(|table| table.get(id)).cloned();
        found.or_else(|| self.subscriptions.get(id).map(|found| found.render(&self.prices)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(query: &str) -> Page {
        Page::read_with_created(&mut Params::parse(&[query])).unwrap()
    }

    fn ids(list: &Value) -> Vec<&str> {
        list["data"].as_array().unwrap().iter().map(|row| text(row, "id")).collect()
    }

    /// Objects `x5` to `x1`, made at the seconds 5 to 1.
    fn rows() -> impl Iterator<Item = Value> {
        (1..=5).rev().map(|n| json!({"id": format!("x{n}"), "created": n}))
    }

    #[test]
    fn pages_follow_one_another_in_both_directions() {
        let cut = |query: &str| page(query).cut("/v1/x", "x", rows(), |_| true).unwrap();
        let first = cut("limit=2");
        assert_eq!((ids(&first), &first["has_more"]), (vec!["x5", "x4"], &json!(true)));
        let last = cut("limit=3&starting_after=x4");
        assert_eq!((ids(&last), &last["has_more"]), (vec!["x3", "x2", "x1"], &json!(false)));
        let back = cut("limit=2&ending_before=x2");
        assert_eq!((ids(&back), &back["has_more"]), (vec!["x4", "x3"], &json!(true)));
    }

    #[test]
    fn a_cursor_may_point_at_what_the_filter_leaves_out_but_not_at_nothing() {
        let odd = |row: &Value| row["created"].as_i64().unwrap() % 2 == 1;
        let list = page("starting_after=x4").cut("/v1/x", "x", rows(), odd).unwrap();
        assert_eq!(ids(&list), ["x3", "x1"]);
        assert!(page("starting_after=x9").cut("/v1/x", "x", rows(), odd).is_err());
    }

    #[test]
    fn created_is_a_second_or_bounds() {
        let cut = |query: &str| page(query).cut("/v1/x", "x", rows(), |_| true).unwrap();
        assert_eq!(ids(&cut("created=3")), ["x3"]);
        assert_eq!(ids(&cut("created[gt]=2&created[lte]=4")), ["x4", "x3"]);
        assert_eq!(ids(&cut("created[gte]=4&created[lt]=5")), ["x4"]);
        assert!(Page::read(&mut Params::parse(&["limit=101"])).is_err());
        assert!(Page::read(&mut Params::parse(&["limit=0"])).is_err());
    }
}

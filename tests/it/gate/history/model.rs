//! What the gate should say and keep, said once more in the plainest way: month by month, unit by
//! unit, without a rule of the daemon's own.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use tollgate::clock::Timestamp;

pub const FEATURES: [&str; 3] = ["runs", "pages", "calls"];
pub const PLANS: &str = r#"
default_plan = "only"

[features.runs]
name = "Runs"
unit = "run"
stripe_meter = "ai_runs"

[features.pages]
name = "Pages"
unit = "page"

[features.calls]
name = "Calls"
unit = "call"

[[plans]]
id = "only"
name = "Only"
rank = 1
limits.runs = { granted = 30, enforcement = "hard", nudge_at_percent = [80] }
limits.pages = { granted = 20, enforcement = "soft", nudge_at_percent = [80, 150] }
limits.calls = { enforcement = "unlimited", nudge_at = [10, 40] }
"#;

/// Half an hour after its end a month can still be counted in.
const REPORTABLE_MS: i64 = 30 * 60_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cap {
    Hard(i64),
    Soft(i64),
    Open,
}

/// What the plan says of a feature, as [`PLANS`] does.
fn of_plan(feature: &str) -> Cap {
    match feature {
        "runs" => Cap::Hard(30),
        "pages" => Cap::Soft(20),
        _ => Cap::Open,
    }
}

#[derive(Debug, Clone)]
pub struct Grant {
    pub id: String,
    pub units: i64,
    pub used: i64,
    pub before: bool,
    pub made_ms: i64,
    pub ends_ms: Option<i64>,
    pub state: &'static str,
}

impl Grant {
    fn left(&self, month_end: i64, now_ms: i64) -> i64 {
        let over = self.state != "live" || self.ends_ms.is_some_and(|end| end <= now_ms);
        if over || self.made_ms >= month_end { 0 } else { self.units - self.used }
    }
}

/// The months that the stories play in: where each starts.
fn months() -> Vec<i64> {
    let month = |n: i64| format!("{}-{:02}-01T00:00:00Z", 2026 + n / 12, n % 12 + 1);
    (10..200).map(|n| month(n).parse::<Timestamp>().expect("a time").ms()).collect()
}

fn end_of(month: i64) -> i64 {
    months().into_iter().find(|start| *start > month).expect("before the last month")
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Month {
    pub usage: i64,
    pub reserved: i64,
    pub from_grants: i64,
}

/// One customer's feature.
#[derive(Debug, Clone, Default)]
pub struct Pot {
    pub own: Option<(Cap, Option<i64>)>,
    pub grants: Vec<Grant>,
    /// By where they start, in milliseconds.
    pub months: BTreeMap<i64, Month>,
}

#[derive(Debug, Clone)]
pub struct Hold {
    pub customer: String,
    pub feature: String,
    pub month: i64,
    pub units: i64,
    pub ends_ms: i64,
    pub state: &'static str,
}

/// How a run comes to be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Ask,
    Consume,
    Track,
    TrackCapped,
    Reserve { seconds: i64 },
}

pub struct Model {
    pub pots: BTreeMap<(String, String), Pot>,
    pub versions: BTreeMap<String, i64>,
    /// Customer, feature, month, kind, mark, version.
    pub told: BTreeSet<(String, String, i64, &'static str, i64, i64)>,
    pub holds: BTreeMap<String, Hold>,
    months: Vec<i64>,
}

impl Pot {
    fn base(&self, feature: &str, now_ms: i64) -> Cap {
        match self.own {
            Some((cap, ends)) if ends.is_none_or(|end| now_ms < end) => cap,
            _ => of_plan(feature),
        }
    }

    /// The number in force in a month: what grants paid there and what is left of them on top.
    fn cap(&self, feature: &str, month: i64, now_ms: i64) -> Cap {
        let paid = self.months.get(&month).map_or(0, |month| month.from_grants);
        let end = end_of(month);
        let more = paid + self.grants.iter().map(|grant| grant.left(end, now_ms)).sum::<i64>();
        match self.base(feature, now_ms) {
            Cap::Hard(granted) => Cap::Hard(granted + more),
            Cap::Soft(granted) => Cap::Soft(granted + more),
            Cap::Open => Cap::Open,
        }
    }

    /// Counts one unit more, and has a grant pay for it if it is a grant's turn.
    fn count_one(&mut self, feature: &str, month: i64, now_ms: i64) {
        let so_far = self.months.get(&month).copied().unwrap_or_default();
        // Without a number there is nothing that anybody need pay for.
        let number = match self.base(feature, now_ms) {
            Cap::Open => None,
            Cap::Hard(granted) | Cap::Soft(granted) => Some(granted),
        };
        let plans_turn = number.is_some_and(|n| so_far.usage - so_far.from_grants < n);
        let end = end_of(month);
        let mut payers: Vec<_> =
            self.grants.iter_mut().filter(|g| g.left(end, now_ms) > 0).collect();
        payers.sort_by_key(|g| (!g.before, g.ends_ms.unwrap_or(i64::MAX), g.id.clone()));
        let payer = payers.into_iter().next();
        let payer = payer.filter(|grant| number.is_some() && (grant.before || !plans_turn));
        let month = self.months.entry(month).or_default();
        month.usage += 1;
        if let Some(payer) = payer {
            payer.used += 1;
            month.from_grants += 1;
        }
    }
}

/// The highest threshold that is reached: its kind and mark, and what it ranks as.
fn reached(feature: &str, cap: Cap, usage: i64) -> Option<(i64, &'static str, i64)> {
    let (percents, numbers): (&[i64], &[i64]) = match feature {
        "runs" => (&[80], &[]),
        "pages" => (&[80, 150], &[]),
        _ => (&[], &[10, 40]),
    };
    match cap {
        Cap::Hard(granted) if usage >= granted => Some((i64::MAX, "cap_reached", 100)),
        Cap::Hard(granted) | Cap::Soft(granted) => {
            let at = percents.iter().rfind(|percent| usage * 100 >= granted * **percent)?;
            Some((*at, "usage_nudge", *at))
        }
        Cap::Open => {
            let at = numbers.iter().rfind(|number| usage >= **number)?;
            Some((10_000 + at, "usage_nudge", -at))
        }
    }
}

impl Model {
    pub fn new(customers: &[&str]) -> Self {
        Self {
            pots: BTreeMap::new(),
            versions: customers.iter().map(|customer| ((*customer).to_owned(), 1)).collect(),
            told: BTreeSet::new(),
            holds: BTreeMap::new(),
            months: months(),
        }
    }

    /// Where the month of a moment starts.
    pub fn month_of(&self, now_ms: i64) -> i64 {
        *self.months.iter().rfind(|start| **start <= now_ms).expect("after the first month")
    }

    pub fn end_of(&self, month: i64) -> i64 {
        *self.months.iter().find(|start| **start > month).expect("before the last month")
    }

    fn pot(&mut self, customer: &str, feature: &str) -> &mut Pot {
        self.pots.entry((customer.to_owned(), feature.to_owned())).or_default()
    }

    /// Decides on a run, counts or holds what is allowed, and answers what must be answered.
    pub fn run(
        &mut self,
        customer: &str,
        feature: &str,
        units: i64,
        how: How,
        now_ms: i64,
    ) -> Value {
        let month = self.month_of(now_ms);
        let pot = self.pot(customer, feature);
        let here = pot.months.get(&month).copied().unwrap_or_default();
        let reason = judge(pot.cap(feature, month, now_ms), here, units);
        let allowed = allows(reason);
        let counted = match how {
            How::Ask | How::Reserve { .. } => 0,
            How::Consume => {
                if allowed {
                    units
                } else {
                    0
                }
            }
            How::Track => units,
            How::TrackCapped => {
                let cap = pot.cap(feature, month, now_ms);
                (0..=units).rfind(|n| allows(judge(cap, here, *n))).unwrap_or(0)
            }
        };
        self.count(customer, feature, month, counted, now_ms);
        let held = matches!(how, How::Reserve { .. }) && allowed;
        if held {
            self.pot(customer, feature).months.entry(month).or_default().reserved += units;
        }
        let mut answer = self.answer(customer, feature, month, now_ms);
        answer["allowed"] = json!(allowed);
        answer["reason"] = json!(reason);
        answer["required_balance"] = json!(units);
        answer["counts"] = json!(counted > 0);
        answer["reservation"] = match how {
            How::Reserve { seconds } if held => {
                let ends_at = Timestamp::from_ms(now_ms + seconds * 1000);
                json!({"state": "pending", "units": units, "expires_at": ends_at})
            }
            _ => Value::Null,
        };
        if matches!(how, How::Track | How::TrackCapped) {
            answer["value"] = json!(counted);
        }
        answer
    }

    /// Ends a hold that has no end yet: `None` gives it back.
    pub fn settle(&mut self, id: &str, value: Option<i64>, now_ms: i64) -> Value {
        let hold = self.holds[id].clone();
        let (customer, feature) = (hold.customer.as_str(), hold.feature.as_str());
        let in_own = value.is_none() || now_ms < self.end_of(hold.month) + REPORTABLE_MS;
        let month = if in_own { hold.month } else { self.month_of(now_ms) };
        let pending = hold.state == "pending";
        if pending {
            self.pot(customer, feature).months.entry(hold.month).or_default().reserved -=
                hold.units;
        }
        let pot = self.pot(customer, feature);
        let here = pot.months.get(&month).copied().unwrap_or_default();
        let reason = judge(pot.cap(feature, month, now_ms), here, value.unwrap_or(0));
        self.count(customer, feature, month, value.unwrap_or(0), now_ms);
        let state = if value.is_some() { "committed" } else { "released" };
        self.holds.get_mut(id).expect("it is known").state = state;
        let mut answer = self.answer(customer, feature, month, now_ms);
        answer["allowed"] = json!(allows(reason));
        answer["reason"] = json!(reason);
        answer["required_balance"] = json!(value.unwrap_or(0));
        answer["counts"] = json!(value.unwrap_or(0) > 0);
        let ends_at = Timestamp::from_ms(hold.ends_ms);
        answer["reservation"] = json!({"state": state, "units": hold.units, "expires_at": ends_at});
        if let Some(value) = value {
            let pot = self.pot(customer, feature);
            let now = pot.months.get(&month).copied().unwrap_or_default();
            let over = matches!(pot.cap(feature, month, now_ms), Cap::Hard(g) if now.usage + now.reserved > g);
            answer["value"] = json!(value);
            answer["over_limit"] = json!(over);
            answer["late"] = json!(!in_own || !pending || now_ms >= hold.ends_ms);
        }
        answer
    }

    /// Counts units one by one, and notes the threshold that they cross.
    fn count(&mut self, customer: &str, feature: &str, month: i64, units: i64, now_ms: i64) {
        let told_now = month == self.month_of(now_ms);
        let version = self.versions[customer];
        let pot = self.pot(customer, feature);
        let level = |pot: &Pot| {
            let usage = pot.months.get(&month).map_or(0, |month| month.usage);
            reached(feature, pot.cap(feature, month, now_ms), usage)
        };
        let before = level(pot);
        for _ in 0..units {
            pot.count_one(feature, month, now_ms);
        }
        let after = level(pot);
        if after > before && told_now {
            self.tell(customer, feature, month, after, version);
        }
    }

    fn tell(
        &mut self,
        customer: &str,
        feature: &str,
        month: i64,
        what: Option<(i64, &'static str, i64)>,
        version: i64,
    ) {
        if let Some((_, kind, mark)) = what {
            self.told.insert((customer.to_owned(), feature.to_owned(), month, kind, mark, version));
        }
    }

    /// What is said of a month whatever was asked.
    fn answer(&mut self, customer: &str, feature: &str, month: i64, now_ms: i64) -> Value {
        let end = Timestamp::from_ms(self.end_of(month));
        let pot = self.pot(customer, feature);
        let Month { usage, reserved, .. } = pot.months.get(&month).copied().unwrap_or_default();
        let cap = pot.cap(feature, month, now_ms);
        let (granted, soft) = match cap {
            Cap::Hard(granted) => (Some(granted), None),
            Cap::Soft(granted) => (Some(granted), Some(granted)),
            Cap::Open => (None, None),
        };
        let state = match (cap, reached(feature, cap, usage)) {
            (Cap::Hard(granted), _) if usage >= granted => "limit_reached",
            (Cap::Soft(granted), _) if usage > granted => "over_soft_limit",
            (_, Some(_)) => "nudge",
            (_, None) => "ok",
        };
        let percent = granted.map(|granted| if granted == 0 { 100 } else { usage * 100 / granted });
        json!({
            "customer_id": customer, "feature_id": feature, "plan_id": "only",
            "balance": {
                "granted": granted, "usage": usage, "reserved": reserved,
                "remaining": granted.map(|granted| (granted - usage - reserved).max(0)),
                "unlimited": cap == Cap::Open, "overage_allowed": soft.is_some(), "soft_limit": soft,
                "next_reset_at": end,
            },
            "period": {"start": Timestamp::from_ms(month), "end": end},
            "threshold": {"state": state, "percent": percent},
        })
    }

    /// A change of a pot by support: a new version, and whoever it puts at a threshold is told. What
    /// the clock has ended before is over and told by then.
    pub fn change(
        &mut self,
        customer: &str,
        feature: &str,
        now_ms: i64,
        change: impl FnOnce(&mut Pot),
    ) {
        self.end_quotas(customer, now_ms);
        let month = self.month_of(now_ms);
        let version = self.versions.get_mut(customer).expect("it is known");
        *version += 1;
        let version = *version;
        let pot = self.pot(customer, feature);
        let usage = pot.months.get(&month).map_or(0, |month| month.usage);
        let was = reached(feature, pot.cap(feature, month, now_ms), usage);
        change(pot);
        let is = reached(feature, pot.cap(feature, month, now_ms), usage);
        if is > was && usage > 0 {
            self.tell(customer, feature, month, is, version);
        }
    }

    /// What the clock ends: holds, own quotas and grants.
    pub fn jobs(&mut self, now_ms: i64) {
        for hold in self.holds.values_mut() {
            if hold.state == "pending" && hold.ends_ms <= now_ms {
                hold.state = "expired";
                let pot = self.pots.get_mut(&(hold.customer.clone(), hold.feature.clone()));
                pot.expect("it is known").months.entry(hold.month).or_default().reserved -=
                    hold.units;
            }
        }
        for customer in self.versions.keys().cloned().collect::<Vec<_>>() {
            self.end_quotas(&customer, now_ms);
        }
    }

    /// What the clock ends of one customer's own quotas and grants: a new version if that is anything,
    /// and whoever is at a threshold by it is told as of the version before.
    pub fn end_quotas(&mut self, customer: &str, now_ms: i64) {
        let month = self.month_of(now_ms);
        let over = |end: Option<i64>| end.is_some_and(|end| end <= now_ms);
        let mut any = false;
        let mut told = Vec::new();
        for ((_, feature), pot) in self.pots.iter_mut().filter(|((whose, _), _)| whose == customer)
        {
            let usage = pot.months.get(&month).map_or(0, |month| month.usage);
            // As it was while all of that still counted.
            let mut undying = pot.clone();
            undying.own = undying.own.map(|(cap, _)| (cap, None));
            undying.grants.iter_mut().for_each(|grant| grant.ends_ms = None);
            if pot.own.is_some_and(|(_, end)| over(end)) {
                pot.own = None;
                any = true;
            }
            for grant in pot.grants.iter_mut().filter(|g| g.state == "live" && over(g.ends_ms)) {
                grant.state = "expired";
                any = true;
            }
            let was = reached(feature, undying.cap(feature, month, now_ms), usage);
            let is = reached(feature, pot.cap(feature, month, now_ms), usage);
            if is > was && usage > 0 {
                told.push((feature.clone(), is));
            }
        }
        if !any {
            return;
        }
        for (feature, what) in told {
            self.tell(customer, &feature, month, what, self.versions[customer]);
        }
        *self.versions.get_mut(customer).expect("it is known") += 1;
    }
}

fn allows(reason: &str) -> bool {
    !matches!(reason, "limit_reached" | "held_by_running_jobs")
}

/// The word for a run of so many units more.
fn judge(cap: Cap, here: Month, units: i64) -> &'static str {
    match cap {
        Cap::Open => "unlimited",
        Cap::Soft(granted) if here.usage + units > granted => "over_soft_limit",
        Cap::Soft(_) => "within_limit",
        Cap::Hard(granted) => {
            let free = (granted - here.usage - here.reserved).max(0);
            if units <= free {
                "within_limit"
            } else if here.usage + units <= granted {
                "held_by_running_jobs"
            } else {
                "limit_reached"
            }
        }
    }
}

//! A long history of everything that can happen to a balance, made up from a seed and played to a
//! real daemon over HTTP; after each step its answers, its books and whom it told are held against
//! a model that shares no code with it.
//!
//! `HISTORY_STEPS` and `HISTORY_SEEDS` say how long and how many, `HISTORY_FIRST_SEED` from which on.
//! A failure prints its seed and the steps that led to it.

mod model;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tollgate::clock::Timestamp;
use tollgate::domain::quota::DrawOrder;
use tollgate::gate::quotas::{Change, Kind, NewGrant, NewOverride};
use tollgate::jobs::Job;

use self::model::{Cap, FEATURES, Grant, Hold, How, Model};
use super::*;

const CUSTOMERS: [&str; 2] = ["ann", "bob"];
const STEPS: usize = 150;
const FIRST_SEED: u64 = 1;
const SEEDS: u64 = 2;

/// A request that has been answered for good: whoever makes it again gets this.
struct Given {
    path: String,
    body: Value,
    answer: Value,
}

struct History {
    world: World,
    url: String,
    dice: StdRng,
    model: Model,
    given: Vec<Given>,
    /// The ids of all holds, the oldest first: ids differ from run to run, and dice must not.
    held: Vec<String>,
    /// Numbers keys and grants.
    names: u32,
    ann_at_stripe: String,
}

impl History {
    async fn begin(db: &TestDb, seed: u64) -> Self {
        let world = World::with_plans(db, model::PLANS).await;
        let ann_at_stripe = world.link("ann").await;
        world.customer("bob").await;
        Self {
            world,
            url: db.url.clone(),
            dice: StdRng::seed_from_u64(seed),
            model: Model::new(&CUSTOMERS),
            given: Vec::new(),
            held: Vec::new(),
            names: 0,
            ann_at_stripe,
        }
    }

    fn now_ms(&self) -> i64 {
        self.world.now().ms()
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.dice.random_range(0..choices.len())]
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.dice.random_range(0..100) < percent
    }

    /// Mostly a few, now and then a lot.
    fn units(&mut self) -> i64 {
        if self.chance(10) { self.dice.random_range(7..30) } else { self.dice.random_range(1..7) }
    }

    fn name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what}-{}", self.names)
    }

    fn somebody(&mut self) -> (&'static str, &'static str) {
        (self.one_of(&CUSTOMERS), self.one_of(&FEATURES))
    }

    async fn step(&mut self) {
        match self.dice.random_range(0..100) {
            0..8 => self.run(How::Ask).await,
            8..28 => self.run(How::Consume).await,
            28..36 => self.run(How::Track).await,
            36..42 => self.run(How::TrackCapped).await,
            42..56 => {
                let seconds = self.one_of(&[1, 60, 900, 86_400, 604_800]);
                self.run(How::Reserve { seconds }).await;
            }
            56..68 => self.settle().await,
            68..71 => self.batch().await,
            71..76 => self.again().await,
            76..79 => self.same_key_with_another_body().await,
            79..83 => self.add_grant().await,
            83..85 => self.revoke_grant().await,
            85..88 => self.set_own().await,
            88..96 => self.wait().await,
            96..98 => self.jobs().await,
            _ => self.world.restart().await,
        }
    }

    // --- runs ------------------------------------------------------------------------------------

    async fn run(&mut self, how: How) {
        let (customer, feature) = self.somebody();
        let units = self.units();
        let (path, mut body) = request(customer, feature, units, how);
        if self.chance(30) {
            body["idempotency_key"] = json!(self.name("key"));
        }
        println!("{path} {body}");
        let now_ms = self.now_ms();
        let expected = self.model.run(customer, feature, units, how, now_ms);
        let answer = self.world.call("POST", path, &body).await.ok();
        assert_answers(&answer, &expected);
        if let (Some(id), How::Reserve { seconds }) = (answer["reservation"]["id"].as_str(), how) {
            let hold = Hold {
                customer: customer.to_owned(),
                feature: feature.to_owned(),
                month: self.model.month_of(now_ms),
                units,
                ends_ms: now_ms + seconds * 1000,
                state: "pending",
            };
            self.model.holds.insert(id.to_owned(), hold);
            self.held.push(id.to_owned());
        }
        if body.get("idempotency_key").is_some() {
            self.given.push(Given { path: path.to_owned(), body, answer });
        }
    }

    async fn settle(&mut self) {
        let open = |id: &&String| matches!(self.model.holds[*id].state, "pending" | "expired");
        let ids: Vec<String> = self.held.iter().filter(open).cloned().collect();
        if ids.is_empty() {
            return;
        }
        let id = ids[self.dice.random_range(0..ids.len())].clone();
        let held = self.model.holds[&id].units;
        let value = match self.dice.random_range(0..10) {
            0..3 => None,
            3..6 => Some(held),
            6 => Some(0),
            _ => Some(self.units()),
        };
        let path =
            format!("/v1/reservations/{id}/{}", if value.is_some() { "commit" } else { "release" });
        let body = value.map_or_else(|| json!({}), |value| json!({"value": value}));
        println!("{path} {body}");
        let expected = self.model.settle(&id, value, self.world.now().ms());
        let answer = self.world.call("POST", &path, &body).await.ok();
        assert_answers(&answer, &expected);
        self.given.push(Given { path, body, answer });
    }

    async fn batch(&mut self) {
        let now_ms = self.now_ms();
        let (mut events, mut expected) = (Vec::new(), Vec::new());
        for _ in 0..self.dice.random_range(1..12) {
            let (customer, feature) = self.somebody();
            let units = self.units();
            let how = self.one_of(&[How::Track, How::TrackCapped]);
            events.push(request(customer, feature, units, how).1);
            expected.push(self.model.run(customer, feature, units, how, now_ms));
        }
        println!("batch {}", json!(events));
        let body = json!({"events": events});
        let reply = self.world.call("POST", "/v1/track/batch", &body).await.ok();
        for (result, expected) in reply["results"].as_array().unwrap().iter().zip(&expected) {
            assert_answers(&result["answer"], expected);
        }
    }

    /// Somebody asks once more what has been answered for good.
    async fn again(&mut self) {
        if self.given.is_empty() {
            return;
        }
        let given = &self.given[self.dice.random_range(0..self.given.len())];
        println!("again {} {}", given.path, given.body);
        let answer = self.world.call("POST", &given.path, &given.body).await.ok();
        assert_eq!(answer, given.answer);
    }

    async fn same_key_with_another_body(&mut self) {
        if self.given.is_empty() {
            return;
        }
        let given = &self.given[self.dice.random_range(0..self.given.len())];
        let mut body = given.body.clone();
        let (path, field) = match given.path.as_str() {
            path if path.ends_with("/release") => (path.replace("/release", "/commit"), "value"),
            "/v1/check" => (given.path.clone(), "required_balance"),
            path => (path.to_owned(), "value"),
        };
        body[field] = json!(body[field].as_i64().unwrap_or(0) + 1);
        println!("other {path} {body}");
        let refused = self.world.call("POST", &path, &body).await;
        assert_eq!(refused.status, 409, "{}", refused.body);
    }

    // --- support ---------------------------------------------------------------------------------

    /// Now and then never, else in a minute or a month.
    fn some_end(&mut self) -> Option<Timestamp> {
        let seconds = self.one_of(&[0, 60, 3600, 86_400, 2_592_000]);
        (seconds > 0).then(|| self.world.now().plus(Duration::from_secs(seconds)))
    }

    async fn add_grant(&mut self) {
        let ((customer, feature), id, units) = (self.somebody(), self.name("grant"), self.units());
        let (before, ends_at) = (self.chance(50), self.some_end());
        println!("grant {id} to {customer} {feature}: {units}, before {before}, until {ends_at:?}");
        let grant = Grant {
            id: id.clone(),
            units,
            used: 0,
            before,
            made_ms: self.now_ms(),
            ends_ms: ends_at.map(Timestamp::ms),
            state: "live",
        };
        self.model.change(customer, feature, self.world.now().ms(), |pot| pot.grants.push(grant));
        let draw = if before { DrawOrder::Before } else { DrawOrder::After };
        let grant = NewGrant { grant_id: id, units, draw, expires_at: ends_at, note: None };
        let change = Change::AddGrant { feature_id: feature.parse().unwrap(), grant };
        assert!(self.world.change(customer, change).await.unwrap());
    }

    async fn revoke_grant(&mut self) {
        let (customer, feature) = self.somebody();
        let now_ms = self.now_ms();
        let pot = self.model.pots.get(&(customer.to_owned(), feature.to_owned()));
        let live = pot.and_then(|pot| {
            pot.grants
                .iter()
                .find(|grant| grant.state == "live" && grant.ends_ms.is_none_or(|end| now_ms < end))
        });
        let Some(id) = live.map(|grant| grant.id.clone()) else { return };
        println!("revoke {id}");
        self.model.change(customer, feature, self.world.now().ms(), |pot| {
            pot.grants.iter_mut().filter(|g| g.id == id).for_each(|g| g.state = "revoked");
        });
        assert!(self.world.change(customer, Change::RevokeGrant { grant_id: id }).await.unwrap());
    }

    async fn set_own(&mut self) {
        let (customer, feature) = self.somebody();
        let feature_id = feature.parse().unwrap();
        let granted = self.dice.random_range(0..60);
        let cap = self.one_of(&[Cap::Hard(granted), Cap::Soft(granted), Cap::Open]);
        let ends_at = self.some_end();
        let pot = self.model.pots.get(&(customer.to_owned(), feature.to_owned()));
        let now_ms = self.world.now().ms();
        let has = |(_, end): (Cap, Option<i64>)| end.is_none_or(|end| now_ms < end);
        let clears =
            self.dice.random_range(0..3) == 0 && pot.and_then(|pot| pot.own).is_some_and(has);
        let own = (!clears).then_some((cap, ends_at.map(Timestamp::ms)));
        println!("own quota of {customer} {feature}: {own:?}");
        self.model.change(customer, feature, self.world.now().ms(), |pot| pot.own = own);
        let (kind, granted) = match cap {
            Cap::Hard(granted) => (Kind::Hard, Some(granted)),
            Cap::Soft(granted) => (Kind::Soft, Some(granted)),
            Cap::Open => (Kind::Unlimited, None),
        };
        let new = NewOverride { kind: Some(kind), granted, ends_at, note: None };
        let change = match clears {
            true => Change::ClearOverride { feature_id },
            false => Change::SetOverride { feature_id, own: new },
        };
        assert!(self.world.change(customer, change).await.unwrap());
    }

    // --- time ------------------------------------------------------------------------------------

    async fn wait(&mut self) {
        let now_ms = self.now_ms();
        let to_months_end = self.model.end_of(self.model.month_of(now_ms)) - now_ms;
        let ms = match self.dice.random_range(0..20) {
            0..8 => self.dice.random_range(1..120_000),
            8..14 => self.dice.random_range(120_000..3_600_000),
            14..16 => self.dice.random_range(1..3) * 86_400_000,
            16 => (to_months_end - 600_000).max(1),
            17 => to_months_end,
            18 => to_months_end + 1_799_999,
            _ => to_months_end + 1_800_000,
        };
        // What is open then may be frozen by now and may be sent. What waits for a day after it was
        // frozen may have been sent, for all that anybody knows: only Stripe's sum tells.
        let job = self.one_of(&[
            None,
            Some(Job::PushMeterEvents),
            Some(Job::CloseWindows),
            Some(Job::CloseWindows),
        ]);
        if let Some(job) = job {
            println!("{}, and", job.name());
            self.world.run_job(job).await;
        }
        self.world.clock.advance(Duration::from_millis(ms.unsigned_abs())).unwrap();
        println!("now {}", self.world.now());
        // Stripe takes no usage that is a month old.
        if ms > 3_600_000 {
            self.jobs_until_all_is_sent().await;
        }
    }

    /// What is parked because only Stripe's sum can tell is held against it half an hour later, and
    /// what that lacks is written down anew and goes out.
    async fn jobs_until_all_is_sent(&mut self) {
        for _ in 0..4 {
            self.jobs().await;
            self.jobs().await;
            let waiting = "SELECT state FROM meter_events WHERE state IN ('pending', 'parked')";
            if rows(&self.url, waiting).await.is_empty() {
                return;
            }
            self.world.clock.advance(Duration::from_secs(1860)).unwrap();
            println!("now {}", self.world.now());
        }
    }

    async fn jobs(&mut self) {
        println!("jobs");
        self.model.jobs(self.now_ms());
        for job in [Job::Expire, Job::CloseWindows, Job::PushMeterEvents, Job::Reconcile] {
            self.world.run_job(job).await;
        }
    }

    // --- what must be true after each step -------------------------------------------------------

    async fn assert_books(&self) {
        let counters = rows(&self.url, LEDGER).await;
        let mut expected = Vec::new();
        for ((customer, feature), pot) in &self.model.pots {
            for (month, here) in
                pot.months.iter().filter(|(_, here)| here.usage + here.reserved > 0)
            {
                let model::Month { usage, reserved, from_grants } = here;
                let metered = if customer == "ann" && feature == "runs" { *usage } else { 0 };
                let column = format!("{usage}|{reserved}|{from_grants}");
                expected.push(format!("{customer}|{feature}|{month}|{column}|{column}|{metered}"));
            }
        }
        expected.sort();
        assert_eq!(
            sorted(counters),
            expected,
            "counters, what they are made of, and what is metered"
        );
        let grants = self.model.pots.iter().flat_map(|((customer, _), pot)| {
            pot.grants
                .iter()
                .map(move |g| format!("{customer}|{}|{}|{}|{}", g.id, g.used, g.used, g.state))
        });
        assert_eq!(sorted(rows(&self.url, GRANTS).await), sorted(grants.collect()));
        let told = self.model.told.iter().map(|(customer, feature, month, kind, mark, version)| {
            format!("{customer}|{feature}|{month}|{kind}|{mark}|{version}")
        });
        assert_eq!(sorted(rows(&self.url, NOTICES).await), sorted(told.collect()));
    }

    /// Time passes until nothing is open: every answer still stands, and Stripe has every unit once.
    async fn assert_end(&mut self) {
        self.world.clock.advance(Duration::from_secs(604_800)).unwrap();
        self.jobs_until_all_is_sent().await;
        self.assert_books().await;
        for given in &self.given {
            let answer = self.world.call("POST", &given.path, &given.body).await.ok();
            assert_eq!(answer, given.answer, "{} {}", given.path, given.body);
        }
        let runs = &self.model.pots.get(&("ann".to_owned(), "runs".to_owned()));
        let used: i64 =
            runs.iter().flat_map(|pot| pot.months.values()).map(|month| month.usage).sum();
        let sent = "SELECT state, units, detail FROM meter_events ORDER BY created_at_ms";
        let (billed, sent) = (self.world.billed(&self.ann_at_stripe), rows(&self.url, sent).await);
        assert_eq!(billed, used.to_string(), "{sent:#?}");
        assert_books_balance(&self.url).await;
    }
}

const LEDGER: &str = "SELECT customer_id, feature_id, period_start_ms, \
    usage_units, reserved_units, from_grants_units, \
    (SELECT CAST(COALESCE(SUM(counted_units), 0) AS BIGINT) FROM usage_events AS e \
     WHERE e.customer_id = c.customer_id AND e.feature_id = c.feature_id AND e.period_start_ms = c.period_start_ms), \
    (SELECT CAST(COALESCE(SUM(units), 0) AS BIGINT) FROM reservations AS r WHERE r.state = 'pending' \
     AND r.customer_id = c.customer_id AND r.feature_id = c.feature_id AND r.period_start_ms = c.period_start_ms), \
    (SELECT CAST(COALESCE(SUM(units), 0) AS BIGINT) FROM grant_draws AS d \
     WHERE d.customer_id = c.customer_id AND d.feature_id = c.feature_id AND d.period_start_ms = c.period_start_ms), \
    (SELECT CAST(COALESCE(SUM(units), 0) AS BIGINT) FROM meter_events AS m WHERE m.state <> 'replaced' \
     AND m.customer_id = c.customer_id AND m.feature_id = c.feature_id AND m.period_start_ms = c.period_start_ms) \
    + COALESCE(open_units, 0) \
    FROM usage_counters AS c WHERE usage_units + reserved_units > 0";

const GRANTS: &str = "SELECT customer_id, grant_id, used_units, \
    (SELECT CAST(COALESCE(SUM(units), 0) AS BIGINT) FROM grant_draws AS d \
     WHERE d.customer_id = g.customer_id AND d.grant_id = g.grant_id), state FROM grants AS g";

const NOTICES: &str = "SELECT customer_id, feature_id, period_start_ms, kind, percent, entitlement_version FROM notices";

fn sorted(mut rows: Vec<String>) -> Vec<String> {
    rows.sort();
    rows
}

/// Where a run is asked for, and how.
fn request(customer: &str, feature: &str, units: i64, how: How) -> (&'static str, Value) {
    let mut body = json!({"customer_id": customer, "feature_id": feature});
    let (path, field) = match how {
        How::Track | How::TrackCapped => ("/v1/track", "value"),
        _ => ("/v1/check", "required_balance"),
    };
    body[field] = json!(units);
    match how {
        How::Ask | How::Track => {}
        How::Consume => body["send_event"] = json!(true),
        How::TrackCapped => body["overage_behavior"] = json!("cap"),
        How::Reserve { seconds } => body["reserve"] = json!({"expires_in_seconds": seconds}),
    }
    (path, body)
}

/// The answer says all that the model says; ids are the daemon's to choose.
fn assert_answers(answer: &Value, expected: &Value) {
    let mut expected = expected.clone();
    let fields = expected.as_object_mut().expect("an object");
    let counts = fields.remove("counts").expect("the model says whether it counts");
    assert_eq!(json!(!answer["event_id"].is_null()), counts, "{answer}");
    let mut told = answer.clone();
    if let Some(hold) = told["reservation"].as_object_mut() {
        hold.remove("id").expect("a hold has an id");
    }
    let told = told.as_object_mut().expect("an object");
    told.retain(|name, _| !["event_id", "pace", "upgrade"].contains(&name.as_str()));
    assert_eq!(Value::Object(told.clone()), expected, "the answer, and what the model says");
}

fn from_environment<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// The seeds to play, and how long each.
fn extent() -> (std::ops::Range<u64>, usize) {
    let steps = from_environment("HISTORY_STEPS").unwrap_or(STEPS);
    let first = from_environment("HISTORY_FIRST_SEED").unwrap_or(FIRST_SEED);
    let count = from_environment("HISTORY_SEEDS").unwrap_or(SEEDS);
    (first..first + count, steps)
}

both_databases! {
    async fn a_random_history_agrees_with_the_model_at_every_step(db: TestDb) {
        let (seeds, steps) = extent();
        for seed in seeds {
            let db = if db.is_postgres() { TestDb::postgres().await } else { TestDb::sqlite() };
            let mut history = History::begin(&db, seed).await;
            for step in 0..steps {
                print!("seed {seed}, step {step}: ");
                history.step().await;
                history.assert_books().await;
            }
            println!("seed {seed}: the end");
            history.assert_end().await;
            history.world.stop().await;
        }
    }
}

//! Billing periods from end to end: whose runs they are, what Stripe bills for each, and what
//! happens when they turn out to be others than was thought.

mod moved;
mod month_ends;

use std::time::Duration;

use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tollgate::clock::{Clock, Timestamp};
use tollgate::domain::period::{BillingPeriod, Cycle};
use tollgate::domain::plan::Interval;
use tollgate::domain::recount;
use tollgate::entropy::Entropy;
use tollgate::jobs::Job;
use tollgate::sim::{self, FaultKind};
use tollgate::store::usage::CounterKey;

use crate::harness::postgres::TestDb;
use crate::harness::sql::{assert_books_balance, rows};
use crate::harness::stripe::METER_EVENTS;
use crate::harness::world::{World, reserve};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

// --- Thirty years of anchors --------------------------------------------------------------------

/// Every day of a leap year at some times of day, in thirty years of months and of years: our
/// periods are those of the simulator's calendar, which shares no code with them. Each is told
/// rightly from its first instant to its last, and a renewal that is late finds the period there.
#[test]
fn the_periods_of_thirty_years_are_stripes_for_every_anchor() {
    let new_year = at("2028-01-01T00:00:00Z");
    for day in 0..366 {
        let times: &[u64] = if day % 28 < 3 { &[0, 34_215, 86_399] } else { &[34_215] };
        for time in times {
            let anchor = new_year.plus(day * DAY + Duration::from_secs(*time));
            for (interval, unit, count) in
                [(Interval::Month, "month", 360), (Interval::Year, "year", 30)]
            {
                let cycle = Cycle { interval, ..Cycle::local(0, anchor) };
                let stripes = sim::Interval::new(unit, 1);
                let mut start = anchor;
                for _ in 0..count {
                    let end_s = stripes.next_boundary(anchor.seconds(), start.seconds());
                    let period = BillingPeriod { start, end: Timestamp::from_seconds(end_s) };
                    assert_eq!(cycle.period_at(start), period, "{anchor} {unit}");
                    let late = Cycle { stripe: Some(period), ..cycle };
                    assert_eq!(late.period_at(Timestamp::from_ms(period.end.ms() - 1)), period);
                    assert_eq!(
                        late.period_at(period.end),
                        cycle.period_at(period.end),
                        "{anchor} {unit}"
                    );
                    start = period.end;
                }
            }
        }
    }
}

// --- What the stories are told in ---------------------------------------------------------------

/// A customer whose subscription has a plan's price and one by the meter; its ids at Stripe.
struct Subscriber {
    stripe_id: String,
    subscription: String,
}

async fn subscriber(world: &World, customer: &str, more: &[(&str, &str)]) -> Subscriber {
    world.customer(customer).await;
    let stripe_id = world.link(customer).await;
    let metered = world.metered_price().await;
    let plan = world.price("starter_monthly").await;
    let mut form = vec![
        ("customer", stripe_id.as_str()),
        ("items[0][price]", &plan),
        ("items[1][price]", &metered),
    ];
    form.extend(more);
    let subscription = world.stripe("POST", "/v1/subscriptions", &form).await;
    world.settle().await;
    let subscription = subscription["id"].as_str().unwrap().to_owned();
    Subscriber { stripe_id, subscription }
}

impl Subscriber {
    /// Changes the subscription at Stripe; what arrives of it is the story's affair.
    async fn change(&self, world: &World, form: &[(&str, &str)]) {
        world.stripe("POST", &format!("/v1/subscriptions/{}", self.subscription), form).await;
    }

    /// What Stripe's final invoices bill by the meter, as `units from start to end`, oldest first.
    async fn billed(&self, world: &World) -> Vec<String> {
        let path = format!("/v1/invoices?subscription={}&limit=100", self.subscription);
        let invoices = world.stripe("GET", &path, &[]).await;
        let mut billed = Vec::new();
        for invoice in invoices["data"].as_array().unwrap().iter().rev() {
            for line in invoice["lines"]["data"].as_array().unwrap() {
                if line["quantity"].is_null() && invoice["status"] != "draft" {
                    let day = |field: &str| {
                        let seconds = line["period"][field].as_i64().unwrap();
                        Timestamp::from_seconds(seconds).to_string()
                    };
                    let units = line["quantity_decimal"].as_str().unwrap_or("0");
                    billed.push(format!("{units} from {} to {}", day("start"), day("end")));
                }
            }
        }
        billed
    }
}

/// What is counted now, and of what period: `3 from start to end`.
async fn stand(world: &World, customer: &str) -> String {
    let answer = world.check(customer).await;
    let period = &answer["period"];
    let text = |field: &str| period[field].as_str().unwrap().to_owned();
    format!("{} from {} to {}", answer["balance"]["usage"], text("start"), text("end"))
}

/// What the counter of the period that began then says.
async fn counted(world: &World, customer: &str, start: &str) -> i64 {
    let id = customer.parse().unwrap();
    let customer = world.app().store.customer(&id).await.unwrap().unwrap();
    let key = CounterKey {
        customer_id: id,
        feature_id: "ai_runs".parse().unwrap(),
        series: customer.tier.cycle.series,
        period_start: at(start),
    };
    let counter = world.app().store.counter(&key).await.unwrap();
    assert_eq!(world.app().store.sum_of_events(&key).await.unwrap(), counter.usage);
    counter.usage
}

/// Units and times of what Stripe has counted, in order of time.
fn at_stripe(world: &World, subscriber: &Subscriber) -> Vec<String> {
    let mut events = world.sim.meter_events();
    events.retain(|event| event.customer == subscriber.stripe_id);
    events.sort_by_key(|event| event.timestamp_s);
    let told = |event: &sim::MeterEvent| {
        format!("{} at {}", event.value, Timestamp::from_seconds(event.timestamp_s))
    };
    events.iter().map(told).collect()
}

/// Moves the clock while nothing arrives and no job runs.
fn jump(world: &World, moment: &str) {
    world.clock.advance_to(at(moment));
}

/// Support asks Stripe how things are.
async fn learn(world: &World, customer: &str) {
    world.sync(customer).await.ok();
}

/// Fails unless every counter is the sum of its rows, open windows included.
async fn assert_adds_up(world: &World, customer: &str) {
    assert_books_balance(world.config.database_url.expose_secret()).await;
    let id = customer.parse().unwrap();
    for counter in world.app().store.recounted(&id, &id).await.unwrap().counters {
        assert_eq!(recount::differences(counter.stored, &counter.parts), [], "{counter:?}");
    }
}

/// One run under a key; answers all that was said.
async fn keyed_run(world: &World, key: &str) -> Value {
    let body = json!({"customer_id": "acme", "feature_id": "ai_runs", "send_event": true,
        "idempotency_key": key});
    world.call("POST", "/v1/check", &body).await.ok()
}

// --- What Stripe bills for a period is what was counted in it -----------------------------------

both_databases! {
    async fn a_renewals_invoice_bills_what_was_counted_to_the_last_second(db: TestDb) {
        let world = World::start(&db).await;
        let acme = subscriber(&world, "acme", &[]).await;
        world.runs("acme", 40).await;
        world.advance_to("2026-12-01T08:59:59Z").await;
        world.runs("acme", 2).await;
        world.advance(SECOND).await;
        world.runs("acme", 5).await;
        world.advance(HOUR + MINUTE).await;
        assert_eq!(acme.billed(&world).await, ["42 from 2026-11-01T09:00:00Z to 2026-12-01T09:00:00Z"]);
        assert_eq!(counted(&world, "acme", "2026-11-01T09:00:00Z").await, 42);
        assert_eq!(stand(&world, "acme").await, "5 from 2026-12-01T09:00:00Z to 2027-01-01T09:00:00Z");
    }

    async fn a_renewal_that_is_told_late_loses_and_doubles_nothing(db: TestDb) {
        let world = World::start(&db).await;
        let acme = subscriber(&world, "acme", &[]).await;
        world.runs("acme", 40).await;
        world.lose_webhooks();
        jump(&world, "2026-12-01T08:59:59Z");
        world.runs("acme", 2).await;
        jump(&world, "2026-12-01T09:20:00Z");
        world.runs("acme", 7).await;
        world.run_job(Job::PushMeterEvents).await;
        jump(&world, "2026-12-03T09:00:00Z");
        world.runs("acme", 1).await;
        let provisional = stand(&world, "acme").await;
        learn(&world, "acme").await;
        assert_eq!(stand(&world, "acme").await, provisional);
        assert_eq!(provisional, "8 from 2026-12-01T09:00:00Z to 2027-01-01T09:00:00Z");
        world.advance_to("2027-01-01T08:00:00Z").await;
        world.advance_to("2027-01-01T10:01:00Z").await;
        assert_eq!(acme.billed(&world).await, [
            "42 from 2026-11-01T09:00:00Z to 2026-12-01T09:00:00Z",
            "8 from 2026-12-01T09:00:00Z to 2027-01-01T09:00:00Z",
        ]);
        assert_adds_up(&world, "acme").await;
    }

    async fn an_upgrade_in_the_middle_bills_the_whole_period_once(db: TestDb) {
        let world = World::start(&db).await;
        let acme = subscriber(&world, "acme", &[]).await;
        world.runs("acme", 200).await;
        world.advance_to("2026-11-15T12:02:00Z").await;
        world.change_price(&acme.subscription, "pro_monthly").await;
        world.runs("acme", 100).await;
        world.advance(HOUR).await;
        world.advance_to("2026-12-01T10:01:00Z").await;
        assert_eq!(acme.billed(&world).await, ["300 from 2026-11-01T09:00:00Z to 2026-12-01T09:00:00Z"]);
        assert_eq!(counted(&world, "acme", "2026-11-01T09:00:00Z").await, 300);
    }

    async fn a_subscription_that_ends_with_its_period_is_billed_to_its_last_seconds(db: TestDb) {
        let world = World::start(&db).await;
        let acme = subscriber(&world, "acme", &[]).await;
        acme.change(&world, &[("cancel_at_period_end", "true")]).await;
        world.settle().await;
        world.runs("acme", 40).await;
        world.advance_to("2026-12-01T08:59:20Z").await;
        world.runs("acme", 3).await;
        for _ in 0..39 {
            world.clock.advance(SECOND).unwrap();
            world.run_job(Job::FlushPeriods).await;
            world.runs("acme", 1).await;
        }
        // The very last run: a second before the end, and sent within it.
        world.run_job(Job::FlushPeriods).await;
        world.advance(SECOND).await;
        assert_eq!(world.tier("acme").await, "starter -");
        assert_eq!(acme.billed(&world).await, ["82 from 2026-11-01T09:00:00Z to 2026-12-01T09:00:00Z"]);
        assert!(world.list("/outbox").await.iter().all(|row| row["late"] == false));
        assert_adds_up(&world, "acme").await;
    }
}

// --- Bounds that turn out to be others ----------------------------------------------------------

both_databases! {
    async fn runs_since_an_anchor_was_reset_are_of_the_period_that_began_then(db: TestDb) {
        let world = World::start(&db).await;
        let acme = subscriber(&world, "acme", &[]).await;
        world.runs("acme", 100).await;
        world.advance_to("2026-11-10T12:00:00Z").await;
        world.lose_webhooks();
        world.runs("acme", 10).await;
        jump(&world, "2026-11-10T12:02:00Z");
        acme.change(&world, &[("billing_cycle_anchor[type]", "now")]).await;
        jump(&world, "2026-11-10T12:03:00Z");
        let told = keyed_run(&world, "k").await;
        jump(&world, "2026-11-12T12:00:00Z");
        world.runs("acme", 4).await;
        let hold = world.reserve("acme", 6, 3600).await;
        assert_eq!(counted(&world, "acme", "2026-11-01T09:00:00Z").await, 115);
        learn(&world, "acme").await;
        // Of the window from 12:00 to 12:05, frozen when the next run came, the run at 12:03 stays.
        assert_eq!(stand(&world, "acme").await, "4 from 2026-11-10T12:02:00Z to 2026-12-10T12:02:00Z");
        assert_eq!(counted(&world, "acme", "2026-11-01T09:00:00Z").await, 111);
        assert_eq!(world.commit(&hold, &Value::Null).await.ok()["balance"]["usage"], 10);
        assert_eq!(keyed_run(&world, "k").await, told, "what was answered stays its answer");
        assert_adds_up(&world, "acme").await;
        world.advance(HOUR).await;
        world.advance_to("2026-12-10T13:10:00Z").await;
        assert_eq!(at_stripe(&world, &acme), ["100 at 2026-11-01T09:00:00Z", "11 at 2026-11-10T12:00:00Z",
            "10 at 2026-11-12T12:00:00Z"]);
        assert_eq!(acme.billed(&world).await.last().unwrap(),
            "10 from 2026-11-10T12:02:00Z to 2026-12-10T12:02:00Z");
        assert_adds_up(&world, "acme").await;
    }

    async fn an_open_window_is_split_where_the_new_period_began(db: TestDb) {
        let world = World::start(&db).await;
        let acme = subscriber(&world, "acme", &[]).await;
        world.lose_webhooks();
        jump(&world, "2026-11-10T12:00:00Z");
        world.runs("acme", 10).await;
        jump(&world, "2026-11-10T12:02:00Z");
        acme.change(&world, &[("billing_cycle_anchor[type]", "now")]).await;
        jump(&world, "2026-11-10T12:03:00Z");
        world.runs("acme", 4).await;
        learn(&world, "acme").await;
        assert_eq!(at_stripe(&world, &acme), ["10 at 2026-11-10T12:00:00Z"], "sent at once");
        assert_eq!(world.list("/outbox").await[0]["late"], true, "and yet its invoice was final");
        assert_eq!(stand(&world, "acme").await, "4 from 2026-11-10T12:02:00Z to 2026-12-10T12:02:00Z");
        world.runs("acme", 1).await;
        world.advance(HOUR).await;
        assert_eq!(at_stripe(&world, &acme), ["10 at 2026-11-10T12:00:00Z", "5 at 2026-11-10T12:02:00Z"]);
        assert_adds_up(&world, "acme").await;
    }

    async fn a_changed_interval_starts_a_counter_of_its_own_at_once(db: TestDb) {
        let plans = include_str!("../../plans.example.toml").replace("[models.claude-haiku]",
            "[[plans]]\nid = \"yearly\"\nname = \"Yearly\"\nrank = 4\n\
             price = { amount = \"900.00\", currency = \"usd\", interval = \"year\", lookup_key = \"yearly\" }\n\
             limits.ai_runs = { granted = 9000, enforcement = \"hard\" }\n[models.claude-haiku]");
        let world = World::with_plans(&db, &plans).await;
        let form = [("product_data[name]", "Yearly"), ("lookup_key", "yearly"), ("unit_amount", "90000"),
            ("currency", "usd"), ("recurring[interval]", "year")];
        world.stripe("POST", "/v1/prices", &form).await;
        world.customer("acme").await;
        let stripe_id = world.link("acme").await;
        let subscription = world.subscribe(&stripe_id, "starter_monthly").await;
        world.runs("acme", 200).await;
        world.advance_to("2026-11-10T12:00:00Z").await;
        world.change_price(&subscription, "yearly").await;
        assert_eq!(stand(&world, "acme").await, "0 from 2026-11-10T12:00:00Z to 2027-11-10T12:00:00Z");
        world.lose_webhooks();
        jump(&world, "2027-11-10T12:00:00Z");
        world.runs("acme", 1).await;
        assert_eq!(stand(&world, "acme").await, "1 from 2027-11-10T12:00:00Z to 2028-11-10T12:00:00Z");
    }

    async fn a_trial_that_ends_before_its_time_starts_the_first_paid_period(db: TestDb) {
        let world = World::start(&db).await;
        let until = at("2026-11-15T09:00:00Z").seconds().to_string();
        let acme = subscriber(&world, "acme", &[("trial_end", &until)]).await;
        world.runs("acme", 50).await;
        world.lose_webhooks();
        jump(&world, "2026-11-05T10:00:00Z");
        acme.change(&world, &[("trial_end", "now")]).await;
        jump(&world, "2026-11-16T10:00:00Z");
        world.runs("acme", 7).await;
        assert_eq!(stand(&world, "acme").await, "7 from 2026-11-15T09:00:00Z to 2026-12-15T09:00:00Z");
        learn(&world, "acme").await;
        assert_eq!(stand(&world, "acme").await, "7 from 2026-11-05T10:00:00Z to 2026-12-05T10:00:00Z");
        assert_eq!(counted(&world, "acme", "2026-11-01T09:00:00Z").await, 50);
        world.advance(HOUR).await;
        world.advance_to("2026-12-05T11:01:00Z").await;
        assert_eq!(acme.billed(&world).await.last().unwrap(),
            "7 from 2026-11-05T10:00:00Z to 2026-12-05T10:00:00Z");
        assert_adds_up(&world, "acme").await;
    }

    async fn a_period_that_was_longer_than_thought_is_one_period_with_one_cap(db: TestDb) {
        let world = World::start(&db).await;
        let until = at("2026-11-15T09:00:00Z").seconds().to_string();
        let acme = subscriber(&world, "acme", &[("trial_end", &until)]).await;
        world.runs("acme", 150).await;
        world.lose_webhooks();
        let longer = at("2026-11-20T09:00:00Z").seconds().to_string();
        acme.change(&world, &[("trial_end", &longer)]).await;
        jump(&world, "2026-11-15T09:01:00Z");
        world.runs("acme", 60).await;
        assert_eq!(stand(&world, "acme").await, "60 from 2026-11-15T09:00:00Z to 2026-12-15T09:00:00Z");
        learn(&world, "acme").await;
        assert_eq!(stand(&world, "acme").await, "210 from 2026-11-01T09:00:00Z to 2026-11-20T09:00:00Z");
        assert_eq!(world.run("acme").await["reason"], "limit_reached");
        assert_eq!(counted(&world, "acme", "2026-11-15T09:00:00Z").await, 0);
        assert_adds_up(&world, "acme").await;
    }

    async fn a_period_that_began_before_the_provisional_one_takes_over_both(db: TestDb) {
        let world = World::start(&db).await;
        let acme = subscriber(&world, "acme", &[]).await;
        world.runs("acme", 100).await;
        world.lose_webhooks();
        jump(&world, "2026-11-20T09:00:00Z");
        acme.change(&world, &[("billing_cycle_anchor[type]", "now")]).await;
        jump(&world, "2026-11-25T09:00:00Z");
        world.runs("acme", 30).await;
        jump(&world, "2026-12-02T09:00:00Z");
        world.runs("acme", 20).await;
        assert_eq!(stand(&world, "acme").await, "20 from 2026-12-01T09:00:00Z to 2027-01-01T09:00:00Z");
        learn(&world, "acme").await;
        assert_eq!(stand(&world, "acme").await, "50 from 2026-11-20T09:00:00Z to 2026-12-20T09:00:00Z");
        assert_eq!(counted(&world, "acme", "2026-11-01T09:00:00Z").await, 100);
        learn(&world, "acme").await;
        assert_eq!(stand(&world, "acme").await, "50 from 2026-11-20T09:00:00Z to 2026-12-20T09:00:00Z");
        world.advance(HOUR).await;
        world.advance_to("2026-12-20T10:01:00Z").await;
        assert_eq!(acme.billed(&world).await.last().unwrap(),
            "50 from 2026-11-20T09:00:00Z to 2026-12-20T09:00:00Z");
        assert_adds_up(&world, "acme").await;
    }

    async fn a_planned_end_shortens_the_period_and_keeps_its_counter(db: TestDb) {
        let world = World::start(&db).await;
        let acme = subscriber(&world, "acme", &[]).await;
        world.runs("acme", 10).await;
        let end = at("2026-11-10T09:02:00Z").seconds().to_string();
        acme.change(&world, &[("cancel_at", &end)]).await;
        world.settle().await;
        assert_eq!(stand(&world, "acme").await, "10 from 2026-11-01T09:00:00Z to 2026-11-10T09:02:00Z");
        world.advance_to("2026-11-10T09:01:55Z").await;
        world.runs("acme", 5).await;
        world.advance(SECOND).await;
        world.advance(4 * SECOND).await;
        assert_eq!(acme.billed(&world).await, ["15 from 2026-11-01T09:00:00Z to 2026-11-10T09:02:00Z"]);
        assert_eq!(stand(&world, "acme").await, "0 from 2026-11-10T09:02:00Z to 2026-12-10T09:02:00Z");
    }
}

/// Units at Stripe with a time in each period, beside what the gate has counted in it.
async fn periods_and_stripe(world: &World, subscriber: &Subscriber) -> Vec<(String, i64, i64)> {
    let url = world.config.database_url.expose_secret();
    let query = "SELECT period_start_ms, period_end_ms, usage_units FROM usage_counters \
        WHERE series > 0 ORDER BY period_start_ms";
    let mut found = Vec::new();
    for row in rows(url, query).await {
        let [start, end, usage] =
            <[i64; 3]>::try_from(row.split('|').map(|v| v.parse().unwrap()).collect::<Vec<i64>>())
                .unwrap();
        let events = world.sim.meter_events().into_iter().filter(|event| {
            event.customer == subscriber.stripe_id
                && (start..end).contains(&(event.timestamp_s * 1000))
        });
        let units = events.map(|event| event.value.to_string().parse::<i64>().unwrap()).sum();
        found.push((
            format!("{} to {}", Timestamp::from_ms(start), Timestamp::from_ms(end)),
            usage,
            units,
        ));
    }
    found
}

both_databases! {
    async fn whatever_stripe_does_and_however_late_it_is_told_each_period_has_its_own_runs(db: TestDb) {
        let world = World::start(&db).await;
        let acme = subscriber(&world, "acme", &[]).await;
        let dice = Entropy::seeded(41);
        let throw = |sides: u64| {
            u64::from_le_bytes(dice.secret()[..8].try_into().unwrap()) % sides
        };
        let (mut total, mut holds) = (0, Vec::new());
        for _ in 0..120 {
            match throw(10) {
                0 => acme.change(&world, &[("billing_cycle_anchor[type]", "now")]).await,
                1 => {
                    let end = world.now().plus(Duration::from_secs(3600 + throw(20 * 86_400)));
                    acme.change(&world, &[("trial_end", &end.seconds().to_string())]).await;
                }
                2 => learn(&world, "acme").await,
                3 => world.settle().await,
                4 => world.sim.change_faults(|faults| faults.drop_webhooks = !faults.drop_webhooks),
                5 => {
                    let hold = world.call("POST", "/v1/check", &reserve("acme", 3, 7_200)).await.ok();
                    holds.extend(hold["reservation"]["id"].as_str().map(str::to_owned));
                }
                6 => {
                    if let Some(hold) = holds.pop() {
                        world.commit(&hold, &json!({"value": 5})).await.ok();
                        total += 5;
                    }
                }
                _ => {}
            }
            let units = 1 + i64::try_from(throw(9)).unwrap();
            let body = json!({"customer_id": "acme", "feature_id": "ai_runs", "value": units});
            world.call("POST", "/v1/track", &body).await.ok();
            total += units;
            let steps = [throw(300), throw(7_200), throw(3 * 86_400)];
            world.clock.advance(Duration::from_secs(steps[usize::try_from(throw(3)).unwrap()])).unwrap();
        }
        learn(&world, "acme").await;
        world.advance(HOUR).await;
        world.advance(HOUR).await;
        let periods = periods_and_stripe(&world, &acme).await;
        for (period, counted, at_stripe) in &periods {
            assert_eq!(counted, at_stripe, "{period} of {periods:#?}");
        }
        assert_eq!(periods.iter().map(|(_, counted, _)| counted).sum::<i64>(), total);
        assert!(periods.len() >= 10, "{}", periods.len());
        assert_adds_up(&world, "acme").await;
    }
}

// --- The end of a subscription, and of a period -------------------------------------------------

both_databases! {
    async fn what_a_cancelled_subscription_can_bill_no_more_is_sent_and_said_to_be_late(db: TestDb) {
        let world = World::start(&db).await;
        let acme = subscriber(&world, "acme", &[]).await;
        world.lose_webhooks();
        jump(&world, "2026-11-10T12:01:00Z");
        world.runs("acme", 9).await;
        jump(&world, "2026-11-10T12:02:00Z");
        world.stripe("DELETE", &format!("/v1/subscriptions/{}", acme.subscription), &[]).await;
        jump(&world, "2026-11-10T12:03:00Z");
        world.runs("acme", 4).await;
        learn(&world, "acme").await;
        assert_eq!(at_stripe(&world, &acme), ["9 at 2026-11-10T12:00:00Z", "4 at 2026-11-10T12:02:00Z"]);
        for row in world.list("/outbox?customer_id=acme").await {
            assert_eq!((&row["billable_until"], &row["late"], &row["state"]),
                (&json!("2026-11-10T12:02:00Z"), &json!(true), &json!("delivered")));
        }
        assert_eq!(stand(&world, "acme").await, "0 from 2026-11-10T12:02:00Z to 2026-12-10T12:02:00Z");
        assert_adds_up(&world, "acme").await;
    }

    async fn usage_that_waits_half_an_hour_after_its_period_is_an_alarm_told_once(db: TestDb) {
        let world = World::start(&db).await;
        let acme = subscriber(&world, "acme", &[]).await;
        world.advance_to("2026-12-01T08:50:00Z").await;
        world.sim.fail_next(METER_EVENTS, 1000, FaultKind::DropBeforeEffect);
        world.runs("acme", 5).await;
        world.advance(6 * MINUTE).await;
        world.advance_to("2026-12-01T09:29:59Z").await;
        assert_eq!(world.app().store.overdue_units().await.unwrap(), (0, 0));
        world.advance(SECOND).await;
        assert_eq!(world.app().store.overdue_units().await.unwrap(), (5, 0), "the job has told it");
        let mut tx = world.app().store.begin().await.unwrap();
        assert_eq!(tx.tell_overdue().await.unwrap(), [], "and does so once");
        tx.commit().await.unwrap();
        world.sim.change_faults(|faults| faults.api.clear());
        world.advance_to("2026-12-01T10:05:00Z").await;
        world.advance(HOUR).await;
        // Too late for its invoice, at its own time all the same.
        assert_eq!(at_stripe(&world, &acme), ["5 at 2026-12-01T08:50:00Z"]);
        assert_eq!(acme.billed(&world).await, ["0 from 2026-11-01T09:00:00Z to 2026-12-01T09:00:00Z"]);
        let row = &world.list("/outbox?customer_id=acme").await[0];
        assert_eq!((&row["billable_until"], &row["late"]), (&json!("2026-12-01T10:00:00Z"), &json!(true)));
        assert_eq!(world.app().store.overdue_units().await.unwrap(), (0, 0));
    }

    async fn a_renewal_sends_what_is_open_of_the_period_before_without_a_tick(db: TestDb) {
        let world = World::start(&db).await;
        let acme = subscriber(&world, "acme", &[]).await;
        world.advance_to("2026-12-01T08:58:00Z").await;
        world.runs("acme", 6).await;
        jump(&world, "2026-12-01T09:00:01Z");
        world.runs("acme", 1).await;
        world.sim.deliver_pending().await;
        world.run_job(Job::ProcessInbox).await;
        assert_eq!(at_stripe(&world, &acme), ["6 at 2026-12-01T08:55:00Z"]);
    }

    async fn the_period_that_is_billed_first_is_sent_first(db: TestDb) {
        let world = World::start(&db).await;
        let early = subscriber(&world, "early", &[]).await;
        world.advance(DAY).await;
        let late = subscriber(&world, "late", &[]).await;
        world.advance_to("2026-12-01T08:50:00Z").await;
        world.lose_webhooks();
        world.runs("late", 1).await;
        jump(&world, "2026-12-01T08:56:00Z");
        world.runs("late", 2).await;
        world.runs("early", 3).await;
        jump(&world, "2026-12-01T09:00:01Z");
        world.runs("early", 4).await;
        jump(&world, "2026-12-01T09:10:00Z");
        world.run_job(Job::PushMeterEvents).await;
        let order: Vec<_> = world.sim.meter_events().iter().map(|event| {
            (event.customer == early.stripe_id, event.value.to_string())
        }).collect();
        assert_ne!(early.stripe_id, late.stripe_id);
        let told = |early: bool, units: &str| (early, units.to_owned());
        assert_eq!(order, [told(true, "3"), told(false, "1"), told(false, "2"), told(true, "4")]);
    }

    async fn all_windows_of_an_ending_period_are_closed_though_stripe_takes_nothing(db: TestDb) {
        let world = World::start(&db).await;
        let customers = ["a", "b", "c", "d", "e", "f", "g"];
        for id in customers {
            subscriber(&world, id, &[]).await;
        }
        world.advance_to("2026-12-01T08:59:45Z").await;
        for id in customers {
            world.runs(id, 1).await;
        }
        world.sim.fail_next(METER_EVENTS, 1000, FaultKind::DropBeforeEffect);
        world.run_job(Job::FlushPeriods).await;
        let open = "SELECT COUNT(*) FROM usage_counters WHERE open_end_ms IS NOT NULL";
        let tried = "SELECT COUNT(*) FROM meter_events WHERE attempts > 0";
        assert_eq!((rows(&db.url, open).await, rows(&db.url, tried).await), (vec!["0".into()], vec!["5".into()]));
        world.sim.change_faults(|faults| faults.api.clear());
        world.run_job(Job::FlushPeriods).await;
        assert_eq!(world.sim.meter_events().len(), 2, "they do not wait behind those that failed");
    }

    async fn a_clock_that_goes_back_reopens_neither_period_nor_window(db: TestDb) {
        let mut world = World::start(&db).await;
        let acme = subscriber(&world, "acme", &[]).await;
        world.advance_to("2026-12-01T09:00:00Z").await;
        world.runs("acme", 1).await;
        // The renewal is known already when the daemon comes back with a clock that is behind.
        let stripes = std::mem::replace(&mut world.clock, Clock::manual(at("2026-12-01T08:59:30Z")));
        world.restart().await;
        assert_eq!(world.runs("acme", 2).await["period"]["start"], "2026-12-01T09:00:00Z");
        world.settle().await;
        stripes.advance(6 * MINUTE).unwrap();
        world.advance_to("2026-12-01T09:05:00Z").await;
        assert_eq!(at_stripe(&world, &acme), ["3 at 2026-12-01T09:00:00Z"]);
        world.clock = Clock::manual(at("2026-12-01T09:01:00Z"));
        world.restart().await;
        world.runs("acme", 4).await;
        stripes.advance(6 * MINUTE).unwrap();
        world.advance_to("2026-12-01T09:10:00Z").await;
        assert_eq!(at_stripe(&world, &acme), ["3 at 2026-12-01T09:00:00Z", "4 at 2026-12-01T09:05:00Z"]);
        assert_adds_up(&world, "acme").await;
    }
}

/// Two replicas by clocks of their own, one of which has seen the renewal: what each counts is in
/// the period it says, and no window is reopened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_whose_clocks_differ_by_a_minute_agree_on_the_books() {
    let db = TestDb::postgres().await;
    let world = World::start(&db).await;
    let acme = subscriber(&world, "acme", &[]).await;
    world.advance_to("2026-12-01T08:59:00Z").await;
    let behind = world.replica(Clock::manual(at("2026-12-01T08:58:00Z"))).await;
    for _ in 0..6 {
        world.runs("acme", 1).await;
        Job::FlushPeriods.step(&behind.app).await.unwrap();
        world.clock.advance(20 * SECOND).unwrap();
        world.run_job(Job::FlushPeriods).await;
        world.run_job(Job::CloseWindows).await;
    }
    world.advance(10 * MINUTE).await;
    assert_eq!(counted(&world, "acme", "2026-11-01T09:00:00Z").await, 3);
    assert_eq!(counted(&world, "acme", "2026-12-01T09:00:00Z").await, 3);
    world.advance(HOUR).await;
    assert_eq!(acme.billed(&world).await, ["3 from 2026-11-01T09:00:00Z to 2026-12-01T09:00:00Z"]);
    assert_adds_up(&world, "acme").await;
    behind.stop().await.unwrap();
}

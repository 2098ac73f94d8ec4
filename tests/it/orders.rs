//! A life of seven events, told in any order, some of it twice: it comes to one end.
//!
//! One in forty-one of the 5,040 orders is lived in every run of the tests. All of them:
//! `EVENT_ORDERS=all scripts/test orders`.

use std::collections::HashMap;

use serde_json::{Value, json};
use tollgate::jobs::Job;
use tollgate::sim::CheckoutPayment;

use crate::harness::postgres::TestDb;
use crate::harness::world::World;

/// How many events a life has.
const EVENTS: usize = 7;
/// How many ways to end there are.
const WAYS: usize = 3;
/// Of how many orders one is lived where not all are; a prime, so that every way to end and every
/// first event are among them.
const SAMPLE: usize = 41;
/// How many lives there are in one world.
const AT_ONCE: usize = 120;

/// All orders of seven things.
fn orders() -> Vec<[usize; EVENTS]> {
    let mut orders: Vec<Vec<usize>> = vec![Vec::new()];
    for _ in 0..EVENTS {
        orders = orders.iter().flat_map(|order| longer(order)).collect();
    }
    orders.into_iter().map(|order| order.try_into().expect("seven")).collect()
}

fn longer(order: &[usize]) -> Vec<Vec<usize>> {
    (0..EVENTS).filter(|n| !order.contains(n)).map(|n| [order, &[n]].concat()).collect()
}

/// Those to live, each with its number among all.
fn chosen() -> Vec<(usize, [usize; EVENTS])> {
    let all = std::env::var("EVENT_ORDERS").is_ok_and(|wish| wish == "all");
    let orders = orders().into_iter().enumerate();
    orders.filter(|(number, _)| all || number % SAMPLE == SAMPLE / 2).collect()
}

/// A customer's life: a Checkout with a trial, which is over, an upgrade, a trouble that passes, of
/// which there are two, and an end, of which there are three.
struct Life {
    number: usize,
    customer: String,
    stripe_id: String,
    subscription: String,
    /// In which its events arrive; one that has not happened yet arrives at the end.
    order: [usize; EVENTS],
    late: Vec<usize>,
}

impl Life {
    /// The customer is not tied to Stripe: one of the events does that.
    async fn begin(world: &World, number: usize, order: [usize; EVENTS]) -> Self {
        let customer = format!("c{number}");
        world.customer(&customer).await;
        let stripe = world.stripe("POST", "/v1/customers", &[]).await;
        let stripe_id = stripe["id"].as_str().unwrap().to_owned();
        Self { number, customer, stripe_id, subscription: String::new(), order, late: Vec::new() }
    }

    /// Lives one step at Stripe. The first is told in two events, the second in none of its own.
    async fn step(&mut self, world: &World, step: usize) {
        let path = format!("/v1/subscriptions/{}", self.subscription);
        let post = async |name, value| drop(world.stripe("POST", &path, &[(name, value)]).await);
        let status = |status| world.sim.set_subscription_status(&self.subscription, status);
        match (step, self.trouble(), self.way()) {
            (0, ..) => self.subscription = self.check_out(world).await,
            (1, ..) => {}
            (2, ..) => post("trial_end", "now").await,
            (3, ..) => world.change_price_quietly(&self.subscription, "pro_monthly").await,
            // A payment fails, and comes.
            (4, 0, _) => status("past_due").unwrap(),
            (5, 0, _) => status("active").unwrap(),
            // The customer wants to leave, and stays.
            (4, ..) => post("cancel_at_period_end", "true").await,
            (5, ..) => post("cancel_at_period_end", "false").await,
            (_, _, 0) => drop(world.stripe("DELETE", &path, &[]).await),
            (_, _, 1) => world.change_price_quietly(&self.subscription, "team_monthly").await,
            _ => status("unpaid").unwrap(),
        }
    }

    fn trouble(&self) -> usize {
        self.number / WAYS % 2
    }

    /// In which of the ways it ends.
    fn way(&self) -> usize {
        self.number % WAYS
    }

    async fn check_out(&self, world: &World) -> String {
        let price = world.price("starter_monthly").await;
        let form = [
            ("mode", "subscription"),
            ("customer", &self.stripe_id),
            ("client_reference_id", &self.customer),
            ("line_items[0][price]", &price),
            ("line_items[0][quantity]", "1"),
            ("subscription_data[trial_period_days]", "14"),
            ("success_url", "https://example.com"),
        ];
        let session = world.stripe("POST", "/v1/checkout/sessions", &form).await;
        let session = session["id"].as_str().unwrap();
        world.sim.complete_checkout(session, CheckoutPayment::Card).unwrap();
        let session = world.stripe("GET", &format!("/v1/checkout/sessions/{session}"), &[]).await;
        session["subscription"].as_str().unwrap().to_owned()
    }

    /// What arrives after this step, some of it twice.
    async fn arrive(&mut self, world: &World, step: usize, told: &[Value]) {
        assert_eq!(told.len(), (step + 1).max(2), "each step is told: {told:?}");
        match self.order[step] {
            event if event < told.len() => {
                for _ in 0..1 + (self.number + step) % 2 {
                    world.deliver(&told[event]).await.ok();
                }
            }
            not_yet => self.late.push(not_yet),
        }
    }

    /// What the product is shown in the end, without what differs from life to life.
    async fn end(&self, world: &World) -> Value {
        let mut shown = world.shown(&self.customer).await;
        for own in ["customer_id", "email", "name", "stripe_customer_id"] {
            shown[own] = Value::Null;
        }
        shown["subscription"]["id"] = Value::Null;
        shown
    }
}

/// The events of each life's subscription and Checkout, in the order they happened.
fn told(world: &World) -> HashMap<String, Vec<Value>> {
    let mut told: HashMap<String, Vec<Value>> = HashMap::new();
    for event in world.sim.events() {
        let object = &event["data"]["object"];
        let kind = event["type"].as_str().unwrap_or_default();
        let is_life = kind == "checkout.session.completed"
            || kind.starts_with("customer.subscription.") && !kind.ends_with("trial_will_end");
        if is_life && let Some(stripe_id) = object["customer"].as_str() {
            told.entry(stripe_id.to_owned()).or_default().push(event);
        }
    }
    told
}

/// Lives some lives beside each other; answers in which way and after which trouble each ended, and
/// what it came to.
async fn live(db: &TestDb, some: &[(usize, [usize; EVENTS])]) -> Vec<(usize, usize, Value)> {
    let world = World::start(db).await;
    world.lose_webhooks();
    let mut lives = Vec::new();
    for (number, order) in some {
        lives.push(Life::begin(&world, *number, *order).await);
    }
    for step in 0..EVENTS {
        for life in &mut lives {
            life.step(&world, step).await;
        }
        let told = told(&world);
        for life in &mut lives {
            life.arrive(&world, step, &told[&life.stripe_id]).await;
        }
        world.run_job(Job::ProcessInbox).await;
    }
    let told = told(&world);
    for life in &lives {
        let told = &told[&life.stripe_id];
        let created = |event: &Value| event["created"].clone();
        assert!(
            told.iter().all(|event| created(event) == created(&told[0])),
            "all in the same second, so that no time could put them in order"
        );
        for late in &life.late {
            world.deliver(&told[*late]).await.ok();
        }
    }
    world.run_job(Job::ProcessInbox).await;
    assert_eq!(world.list("/inbox?state=parked").await, [Value::Null; 0]);
    let mut ends = Vec::new();
    for life in &lives {
        let truth = world.tier_at_stripe(&life.stripe_id).await;
        assert_eq!(world.tier(&life.customer).await, truth, "{:?}", life.order);
        ends.push((life.way(), life.trouble(), life.end(&world).await));
    }
    ends
}

both_databases! {
    async fn a_life_told_in_any_order_comes_to_one_end(db: TestDb) {
        let chosen = chosen();
        let mut found: HashMap<usize, (Value, [usize; 2])> = HashMap::new();
        for some in chosen.chunks(AT_ONCE) {
            let fresh =
                if db.is_postgres() { TestDb::postgres().await } else { TestDb::sqlite() };
            for (way, trouble, end) in live(&fresh, some).await {
                let (first, counts) = found.entry(way).or_insert((end.clone(), [0; 2]));
                assert_eq!(*first, end, "ending {way}");
                counts[trouble] += 1;
            }
        }
        let counts: Vec<usize> = found.values().flat_map(|(_, counts)| *counts).collect();
        assert_eq!(counts.iter().sum::<usize>(), chosen.len());
        assert!(counts.len() == 2 * WAYS && !counts.contains(&0), "each trouble before each end: {counts:?}");
        let words = |way: usize| {
            let end = &found[&way].0;
            json!([end["plan_id"], end["subscription"]["status"]])
        };
        assert_eq!([words(0), words(1), words(2)],
            [json!(["starter", null]), json!(["team", "active"]), json!(["pro", "unpaid"])]);
    }
}

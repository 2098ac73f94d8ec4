//! Plans that change under a running daemon: whole or not at all, and the same on every replica.

use std::time::Duration;

use serde_json::{Value, json};
use tollgate::cli::start::{Drive, Running, StartError, start};
use tollgate::clock::Clock;
use tollgate::config::Config;
use tollgate::entropy::Entropy;
use tollgate::gate::quotas::{Change, change};
use tollgate::jobs::Job;
use tollgate::sim::SeedPrice;

use crate::harness::postgres::TestDb;
use crate::harness::process::{Machine, wait_for};
use crate::harness::sql::rows;
use crate::harness::world::{ADMIN_TOKEN, API_KEY, World};

const EXAMPLE: &str = include_str!("../../plans.example.toml");

/// The example with another number for Starter.
fn starter_grants(runs: i64) -> String {
    let changed = EXAMPLE.replace("granted = 200,", &format!("granted = {runs},"));
    assert_ne!(changed, EXAMPLE);
    changed
}

/// The example without Pro.
fn without_pro() -> String {
    let (before, rest) = EXAMPLE.split_once("[[plans]]\nid = \"pro\"").expect("Pro is there");
    let (_, after) = rest.split_once("[[plans]]").expect("Team follows");
    let plans = format!("{before}[[plans]]{after}");
    plans.replace("upgrade_to = \"pro\"", "upgrade_to = \"team\"").replace("pro = \"5.00\", ", "")
}

async fn granted(world: &World) -> i64 {
    world.check("acme").await["balance"]["granted"].as_i64().expect("a number")
}

/// Runs the job once; the error is what its status would say.
async fn reload(world: &World) -> Result<usize, String> {
    let step = Job::ReloadPlans.step(world.app()).await;
    step.map(|progress| progress.done).map_err(|error| format!("{error:#}"))
}

both_databases! {
    async fn a_changed_file_is_in_force_and_old_answers_stay_as_they_were(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let body = json!({
            "customer_id": "acme", "feature_id": "ai_runs", "send_event": true,
            "idempotency_key": "first",
        });
        let first = world.call("POST", "/v1/check", &body).await.ok();
        std::fs::write(world.plans_file(), starter_grants(3)).unwrap();
        assert_eq!(granted(&world).await, 200);
        assert_eq!(reload(&world).await, Ok(1));
        assert_eq!(granted(&world).await, 3);
        assert_eq!(reload(&world).await, Ok(0), "nothing has changed since");
        assert_eq!(world.call("POST", "/v1/check", &body).await.ok(), first);
    }

    async fn a_broken_file_keeps_the_old_plans_and_says_why(db: TestDb) {
        let mut world = World::start(&db).await;
        world.customer("acme").await;
        let broken = starter_grants(3).replace("rank = 2", "rank = \"high\"");
        let line = 1 + broken.lines().position(|line| line == "rank = \"high\"").unwrap();
        std::fs::write(world.plans_file(), broken).unwrap();
        let why = reload(&world).await.unwrap_err();
        let place = format!("{}:{line}: plans.pro.rank", world.plans_file().display());
        assert!(why.contains(&place), "{why}");
        assert_eq!(granted(&world).await, 200);
        std::fs::remove_file(world.plans_file()).unwrap();
        assert!(reload(&world).await.unwrap_err().contains("cannot be read"));
        std::fs::write(world.plans_file(), starter_grants(4)).unwrap();
        assert_eq!(reload(&world).await, Ok(1));
        assert_eq!(granted(&world).await, 4);
        world.restart().await;
        assert_eq!(granted(&world).await, 4);
    }

    async fn a_plan_in_use_cannot_be_taken_away(db: TestDb) {
        let mut world = World::start(&db).await;
        world.customer("acme").await;
        let stripe_id = world.link("acme").await;
        let subscription = world.subscribe(&stripe_id, "pro_monthly").await;
        std::fs::write(world.plans_file(), without_pro()).unwrap();
        let why = reload(&world).await.unwrap_err();
        assert!(why.ends_with("lacks plans that customers are on: pro"), "{why}");
        assert_eq!(world.check("acme").await["plan_id"], "pro");

        // Nor by a restart, and the refused one must leave nothing in force.
        let (version, _) = world.app().plans.active();
        world.stop().await;
        let refused = format!("{:?}", world.try_boot().await.unwrap_err());
        assert!(refused.contains("TOLLGATE_PLANS: ") && refused.contains("pro"), "{refused}");
        std::fs::write(world.plans_file(), EXAMPLE).unwrap();
        world.try_boot().await.unwrap();
        assert_eq!(world.app().plans.active().0, version);

        std::fs::write(world.plans_file(), without_pro()).unwrap();
        world.change_price_quietly(&subscription, "team_monthly").await;
        world.admin("POST", "/customers/acme/sync").await.ok();
        assert_eq!(reload(&world).await, Ok(1), "nobody is on Pro any more");
    }
}

/// The example with a second feature on Starter.
fn with_images() -> String {
    let feature =
        "[features.ai_images]\nname = \"AI images\"\nunit = \"image\"\n\n[features.ai_runs]";
    let limit = "limits.ai_images = { granted = 5, enforcement = \"hard\" }\nlimits.ai_runs = { granted = 200,";
    EXAMPLE.replacen("[features.ai_runs]", feature, 1).replacen(
        "limits.ai_runs = { granted = 200,",
        limit,
        1,
    )
}

both_databases! {
    async fn a_feature_that_customers_are_to_keep_cannot_be_taken_away(db: TestDb) {
        let world = World::with_plans(&db, &with_images()).await;
        world.customer("acme").await;
        let keeping = EXAMPLE.replacen("id = \"starter\"", "id = \"starter\"\ngrandfather = true", 1);
        std::fs::write(world.plans_file(), &keeping).unwrap();
        let why = reload(&world).await.unwrap_err();
        let what = "lacks features that customers keep from an older one, or have an override or a grant of: ai_images";
        assert!(why.ends_with(what), "{why}");
        std::fs::write(world.plans_file(), EXAMPLE).unwrap();
        assert_eq!(reload(&world).await, Ok(1), "here they do not keep it");
    }

    async fn a_feature_that_support_has_given_cannot_be_taken_away(db: TestDb) {
        let world = World::with_plans(&db, &with_images()).await;
        world.customer("acme").await;
        let grant = json!({"feature_id": "ai_images", "units": 5, "draw": "after", "idempotency_key": "a"});
        let path = "/admin/api/v1/customers/acme/grants";
        let granted = world.call_as(ADMIN_TOKEN, "POST", path, &grant).await.ok();
        std::fs::write(world.plans_file(), EXAMPLE).unwrap();
        let why = reload(&world).await.unwrap_err();
        assert!(why.ends_with("a grant of: ai_images (given to acme)"), "{why}");
        let path = format!("{path}/{}", granted["grant_id"].as_str().unwrap());
        assert_eq!(world.call_as(ADMIN_TOKEN, "DELETE", &path, &Value::Null).await.status, 204);
        assert_eq!(reload(&world).await, Ok(1));
    }

    async fn a_default_plan_that_customers_keep_cannot_be_taken_away(db: TestDb) {
        let mut world = World::start(&db).await;
        world.customer("acme").await;
        let (version, _) = world.app().plans.active();
        let without_starter = {
            let (before, rest) = EXAMPLE.split_once("[[plans]]\nid = \"starter\"").unwrap();
            let (_, after) = rest.split_once("[[plans]]").unwrap();
            format!("{before}[[plans]]{after}")
                .replace("default_plan = \"starter\"", "default_plan = \"pro\"")
                .replace("starter = \"3.00\", ", "")
        };
        std::fs::write(world.plans_file(), starter_grants(50)).unwrap();
        assert_eq!(reload(&world).await, Ok(1));
        world.change("acme", Change::KeepTerms { version: Some(version) }).await.unwrap();
        std::fs::write(world.plans_file(), without_starter).unwrap();
        let why = reload(&world).await.unwrap_err();
        assert!(why.ends_with("lacks plans that customers are on: starter"), "{why}");
        world.change("acme", Change::KeepTerms { version: None }).await.unwrap();
        assert_eq!(reload(&world).await, Ok(1));
        // A build that did not look had put it in force; that is no reason not to start.
        rows(&db.url, &format!("UPDATE customers SET terms_version = {version}")).await;
        world.restart().await;
        assert_eq!(granted(&world).await, 200);
    }
}

// --- replicas ----------------------------------------------------------------------------------

/// Another daemon on the world's database, with a plans file of its own.
async fn replica(world: &World, plans: &std::path::Path) -> Result<Running, StartError> {
    let mut config = world.config.clone();
    config.listen.set_port(0);
    config.plans_path = plans.to_owned();
    start(&config, world.clock.clone(), Entropy::system(), Drive::Steps).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_follows_the_database_even_when_its_own_file_is_broken() {
    let db = TestDb::postgres().await;
    let world = World::start(&db).await;
    world.customer("acme").await;
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("plans.toml");
    std::fs::write(&own, EXAMPLE).unwrap();
    let other = replica(&world, &own).await.unwrap();

    std::fs::write(&own, starter_grants(3)).unwrap();
    Job::ReloadPlans.step(&other.app).await.unwrap();
    std::fs::write(world.plans_file(), "default_plan = ").unwrap();
    let why = reload(&world).await.unwrap_err();
    assert!(why.contains("plans.toml:1"), "{why}");
    assert_eq!(granted(&world).await, 3);

    // The same file arriving here later changes nothing.
    std::fs::write(world.plans_file(), starter_grants(3)).unwrap();
    reload(&world).await.unwrap();
    assert_eq!(world.app().plans.active().0, other.app.plans.active().0);
    other.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_start_changes_nothing_for_the_replicas_that_run() {
    let db = TestDb::postgres().await;
    let world = World::start(&db).await;
    world.customer("acme").await;
    let stripe_id = world.link("acme").await;
    world.subscribe(&stripe_id, "pro_monthly").await;
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("plans.toml");
    std::fs::write(&own, without_pro()).unwrap();
    let Err(StartError::Config(why)) = replica(&world, &own).await else {
        panic!("a plan in use was taken away");
    };
    assert!(why.starts_with("TOLLGATE_PLANS: "), "{why}");
    assert_eq!(reload(&world).await, Ok(0));
    assert_eq!(world.check("acme").await["plan_id"], "pro");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_at_once_agree_on_a_new_file() {
    let db = TestDb::postgres().await;
    let folder = tempfile::tempdir().unwrap();
    let plans = folder.path().join("plans.toml");
    // The first round begins with an empty database, which they all want to migrate.
    for round in 1..=5 {
        std::fs::write(&plans, starter_grants(round)).unwrap();
        let starts = (0..4).map(|_| {
            let config = config(&db, &plans);
            tokio::spawn(async move {
                start(&config, Clock::system(), Entropy::system(), Drive::Steps).await
            })
        });
        let mut versions = Vec::new();
        for start in starts.collect::<Vec<_>>() {
            let running = start.await.unwrap().expect("it starts");
            versions.push(running.app.plans.active().0);
            running.stop().await.unwrap();
        }
        assert_eq!(versions, [round; 4]);
    }
}

fn config(db: &TestDb, plans: &std::path::Path) -> Config {
    let env = [
        ("DATABASE_URL", db.url.as_str()),
        ("TOLLGATE_LISTEN", "127.0.0.1:0"),
        ("TOLLGATE_PLANS", plans.to_str().expect("a path of UTF-8")),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Config::load(&env.into(), None).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

// --- the loop ----------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_daemon_notices_by_itself_and_its_status_says_what_is_wrong() {
    let db = TestDb::sqlite();
    let machine = Machine::on(&db);
    let daemon = machine.serve().await;
    machine.write("plans.toml", &starter_grants(3).replace("[[plans]]", "[[plan]]"));
    wait_for("the status says what is wrong", async || {
        let path = "/admin/api/v1/jobs";
        let jobs = daemon.api.call_as(ADMIN_TOKEN, "GET", path, &Value::Null).await.unwrap().ok();
        let jobs = jobs["data"].as_array().unwrap();
        let job = jobs.iter().find(|job| job["job"] == "reload_plans").expect("the job");
        let note = job["note"].as_str().unwrap_or_default();
        (job["ok"] == false && note.contains("plans.toml:")).then_some(())
    })
    .await;
    machine.write("plans.toml", &starter_grants(3));
    let body = json!({
        "customer_id": "acme", "feature_id": "ai_runs", "customer_data": {"name": "Acme"},
    });
    wait_for("the mended file is in force", async || {
        let answer = daemon.api.ok("POST", "/v1/check", &body).await;
        (answer["balance"]["granted"] == 3).then_some(())
    })
    .await;
    daemon.stop().await;
}

/// Starter with another number, which leaves those who are on it as they are.
fn starter_grants_newcomers(runs: i64) -> String {
    starter_grants(runs).replacen("id = \"starter\"", "id = \"starter\"\ngrandfather = true", 1)
}

both_databases! {
    async fn who_is_on_a_grandfathered_plan_keeps_its_number_until_moved(db: TestDb) {
        let mut world = World::start(&db).await;
        world.customer("acme").await;
        world.run("acme").await;
        std::fs::write(world.plans_file(), starter_grants_newcomers(50)).unwrap();
        assert_eq!(reload(&world).await, Ok(1));
        assert_eq!(granted(&world).await, 200);
        assert_eq!(world.run("acme").await["balance"]["granted"], 200, "the writer knows it too");
        world.restart().await;
        assert_eq!(granted(&world).await, 200);
        let newcomer = json!({
            "customer_id": "new", "feature_id": "ai_runs", "send_event": true, "customer_data": {},
        });
        let answer = world.call("POST", "/v1/check", &newcomer).await.ok();
        assert_eq!(answer["balance"]["granted"], 50);
        let moved = Change::KeepTerms { version: None };
        assert!(change(world.app(), &"acme".parse().unwrap(), "test", moved).await.unwrap());
        assert_eq!(granted(&world).await, 50);
        assert_eq!(world.run("acme").await["balance"]["granted"], 50);
        let mut actions: Vec<_> =
            world.list("/audit").await.iter().map(|row| row["action"].to_string()).collect();
        actions.sort();
        assert_eq!(actions, ["\"plan.grandfathered\"", "\"terms.moved\""]);
    }

    async fn a_change_of_plan_ends_what_was_kept(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let stripe_id = world.link("acme").await;
        let subscription = world.subscribe(&stripe_id, "starter_monthly").await;
        std::fs::write(world.plans_file(), starter_grants_newcomers(50)).unwrap();
        assert_eq!(reload(&world).await, Ok(1));
        assert_eq!(granted(&world).await, 200);
        world.change_price(&subscription, "team_monthly").await;
        world.change_price(&subscription, "starter_monthly").await;
        assert_eq!(granted(&world).await, 50);
    }

    async fn a_changed_number_is_told_again_when_usage_comes_to_it(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        world.runs("acme", 160).await;
        world.settle().await;
        std::fs::write(world.plans_file(), starter_grants(400)).unwrap();
        assert_eq!(reload(&world).await, Ok(1));
        world.runs("acme", 160).await;
        world.settle().await;
        let nudge = "You've used 80% of your AI runs this month.";
        assert_eq!(world.subjects(), [nudge, nudge], "of 200, and of 400");
    }
}

// --- who is past a threshold by a changed file --------------------------------------------------

/// As the file is changed everywhere, and every replica has followed.
async fn changed_to(world: &World, plans: &str) {
    std::fs::write(world.plans_file(), plans).unwrap();
    world.settle().await;
    world.advance(Duration::from_secs(15)).await;
}

async fn used(world: &World, customer: &str, runs: i64) {
    world.customer(customer).await;
    world.runs(customer, runs).await;
}

/// Whom the notices tell of what, in order.
async fn told(world: &World) -> Vec<String> {
    let list = world.list("/notices").await;
    let word =
        |n: &Value| format!("{} {} {}", n["customer_id"], n["kind"], n["percent"]).replace('"', "");
    let mut told: Vec<_> = list.iter().map(word).collect();
    told.sort();
    told
}

both_databases! {
    async fn whose_number_a_changed_file_lowers_to_its_usage_is_told_once(db: TestDb) {
        let mut world = World::with_plans(&db, &starter_grants(100)).await;
        for (customer, runs) in [("at-the-cap", 70), ("below", 50), ("near", 60), ("unused", 0), ("told", 85)] {
            world.customer(customer).await;
            if runs > 0 {
                world.runs(customer, runs).await;
            }
        }
        world.settle().await;
        assert_eq!(told(&world).await, ["told usage_nudge 80"]);
        changed_to(&world, &starter_grants(70)).await;
        let expected = ["at-the-cap cap_reached 100", "near usage_nudge 80", "told cap_reached 100", "told usage_nudge 80"];
        assert_eq!(told(&world).await, expected);
        assert_eq!(world.run("at-the-cap").await["reason"], "limit_reached");
        world.restart().await;
        changed_to(&world, &(starter_grants(70) + "\n")).await;
        assert_eq!(told(&world).await, expected, "another file, and the same numbers");
        assert_eq!(world.subjects().len(), 4);
    }

    async fn who_came_past_both_numbers_before_anyone_looked_is_told_all_the_same(db: TestDb) {
        let world = World::with_plans(&db, &starter_grants(10)).await;
        used(&world, "acme", 7).await;
        std::fs::write(world.plans_file(), starter_grants(7)).unwrap();
        let text = std::fs::read_to_string(world.plans_file()).unwrap();
        let catalog = tollgate::domain::plan::Catalog::parse(&text).unwrap();
        let app = world.app();
        let version = tollgate::gate::terms::activate(&app.store, &app.entropy, &text, &catalog).await.unwrap();
        app.plans.activate(version, catalog);
        let past = json!({"customer_id": "acme", "feature_id": "ai_runs", "value": 5});
        world.call("POST", "/v1/track", &past).await.ok();
        assert_eq!(told(&world).await, Vec::<String>::new());
        world.advance(Duration::from_secs(15)).await;
        assert_eq!(told(&world).await, ["acme cap_reached 100"]);
    }

    /// Of no number of units can it be said that it is above or below a percentage.
    async fn who_was_told_of_units_is_told_of_percents_once_there_are_some(db: TestDb) {
        let pro = "{ granted = 2000, enforcement = \"soft\", nudge_at_percent = [80] }";
        let of = |limit: &str| {
            let on_pro = EXAMPLE.replace("default_plan = \"starter\"", "default_plan = \"pro\"");
            assert!(on_pro.contains(pro));
            on_pro.replace(pro, limit)
        };
        let unlimited = of("{ enforcement = \"unlimited\", nudge_at = [1000] }");
        let world = World::with_plans(&db, &unlimited).await;
        world.customer("acme").await;
        world.runs("acme", 1500).await;
        world.settle().await;
        changed_to(&world, &of("{ granted = 1800, enforcement = \"soft\", nudge_at_percent = [80] }")).await;
        assert_eq!(told(&world).await.len(), 2);
    }

    async fn who_keeps_its_terms_is_told_nothing_until_it_is_moved(db: TestDb) {
        let world = World::with_plans(&db, &starter_grants(100)).await;
        used(&world, "acme", 60).await;
        changed_to(&world, &starter_grants_newcomers(50)).await;
        assert_eq!(told(&world).await, Vec::<String>::new());
        world.change("acme", Change::KeepTerms { version: None }).await.unwrap();
        assert_eq!(told(&world).await, ["acme cap_reached 100"]);
    }

    async fn many_are_told_page_by_page_and_a_stop_in_between_loses_nobody(db: TestDb) {
        let mut world = World::with_plans(&db, &starter_grants(10)).await;
        crowd(&world, 450).await;
        std::fs::write(world.plans_file(), starter_grants(7)).unwrap();
        let mut told = Vec::new();
        reload(&world).await.unwrap();
        told.push(rows(&db.url, "SELECT notice_id FROM notices").await.len());
        world.clock.advance(Duration::from_secs(15)).unwrap();
        while told.last() != Some(&450) && told.len() < 5 {
            Job::ReloadPlans.step(world.app()).await.unwrap();
            told.push(rows(&db.url, "SELECT notice_id FROM notices").await.len());
            world.restart().await;
        }
        assert!(told.ends_with(&[200, 400, 450]), "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_that_tell_at_once_tell_each_customer_once() {
    let db = TestDb::postgres().await;
    let world = World::with_plans(&db, &starter_grants(10)).await;
    let other = world.replica(world.clock.clone()).await;
    crowd(&world, 450).await;
    std::fs::write(world.plans_file(), starter_grants(7)).unwrap();
    reload(&world).await.unwrap();
    Job::ReloadPlans.step(&other.app).await.unwrap();
    assert_eq!(
        rows(&db.url, "SELECT * FROM notices").await,
        Vec::<String>::new(),
        "not all had followed"
    );
    world.clock.advance(Duration::from_secs(15)).unwrap();
    for _ in 0..6 {
        let (here, there) =
            tokio::join!(Job::ReloadPlans.step(world.app()), Job::ReloadPlans.step(&other.app));
        here.and(there).unwrap();
    }
    let told = "SELECT COUNT(*), COUNT(DISTINCT customer_id) FROM notices";
    assert_eq!(rows(&db.url, told).await, ["450|450"]);
    other.stop().await.unwrap();
}

/// For some seconds it decides by the file of before, and takes 160 of 400 for four fifths.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_replica_that_is_behind_takes_for_a_threshold_is_told_when_it_is_one() {
    let db = TestDb::postgres().await;
    let (world, other) = with_one_behind(&db, 400).await;
    let runs = json!({"customer_id": "acme", "feature_id": "ai_runs", "value": 160});
    let url = format!("http://{}/v1/track", other.address);
    let tracked = world.http.post(url).bearer_auth(API_KEY).body(runs.to_string());
    assert_eq!(tracked.send().await.unwrap().status(), 200);
    let notices = "SELECT state, usage_units FROM notices ORDER BY created_at_ms";
    Job::DeliverNotices.step(&other.app).await.unwrap();
    assert_eq!(rows(&db.url, notices).await, ["due|160"], "nor does it send by that file");
    world.settle().await;
    Job::ReloadPlans.step(&other.app).await.unwrap();
    assert_eq!(rows(&db.url, notices).await, ["dropped|160"]);
    world.runs("acme", 160).await;
    world.settle().await;
    assert_eq!(rows(&db.url, notices).await, ["sent|320"]);
    assert_eq!(world.subjects(), ["You've used 80% of your AI runs this month."]);
    other.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_behind_keeps_a_customer_on_the_version_that_it_is_told() {
    let db = TestDb::postgres().await;
    let (world, other) = with_one_behind(&db, 50).await;
    let acme = "acme".parse().unwrap();
    for (version, runs) in [(Some(1), 200), (Some(2), 50), (Some(1), 200), (None, 50)] {
        let keep = Change::KeepTerms { version };
        assert!(change(&other.app, &acme, "test", keep).await.unwrap());
        assert_eq!(terms(&world).await, (json!("starter"), json!(version), runs));
    }
    let trail = world.list("/audit?customer_id=acme").await;
    assert_eq!(trail.iter().filter(|entry| entry["action"] == "terms.moved").count(), 4);
    other.stop().await.unwrap();
}

/// A world whose file grants acme so many by now, and a replica that has not read it.
async fn with_one_behind(db: &TestDb, runs: i64) -> (World, Running) {
    let world = World::start(db).await;
    world.customer("acme").await;
    let other = world.replica(world.clock.clone()).await;
    std::fs::write(world.plans_file(), starter_grants(runs)).unwrap();
    assert_eq!(reload(&world).await, Ok(1));
    (world, other)
}

/// So many customers who have used seven.
async fn crowd(world: &World, customers: usize) {
    let run = |n| json!({"customer_id": format!("c-{n}"), "feature_id": "ai_runs", "value": 7, "customer_data": {}});
    let body = json!({"events": (0..customers).map(run).collect::<Vec<_>>()});
    world.call("POST", "/v1/track/batch", &body).await.ok();
}

// --- terms that are kept, and another plan -----------------------------------------------------

/// The example after a change of heart: Starter has 50 for newcomers, and who has no subscription is
/// on Lite, which can be had for money too.
fn lite_is_the_default(lite_runs: i64) -> String {
    let plans = starter_grants_newcomers(50)
        .replace("default_plan = \"starter\"", "default_plan = \"lite\"");
    plans + &lite(lite_runs)
}

fn lite(runs: i64) -> String {
    format!(
        "\n[[plans]]\nid = \"lite\"\nname = \"Lite\"\nrank = 9\n\
         price = {{ amount = \"9.00\", currency = \"usd\", interval = \"month\", lookup_key = \"lite_monthly\" }}\n\
         limits.ai_runs = {{ granted = {runs}, enforcement = \"hard\" }}\n"
    )
}

/// `acme`, tied to Stripe, on the Starter of the first plans file although another is in force.
async fn on_old_terms(db: &TestDb, first: &str, second: &str) -> (World, String) {
    let world = World::with_plans(db, first).await;
    let price = SeedPrice {
        lookup_key: "lite_monthly",
        amount_minor: 900,
        currency: "usd",
        interval: "month",
    };
    world.sim.seed_catalog(&[price], &[]).unwrap();
    let stripe_id = world.link("acme").await;
    std::fs::write(world.plans_file(), second).unwrap();
    assert_eq!(reload(&world).await, Ok(1));
    assert_eq!(terms(&world).await, (json!("starter"), json!(1), 200));
    (world, stripe_id)
}

/// Plan, version of the terms that are kept, and the number in force.
async fn terms(world: &World) -> (Value, Value, i64) {
    let quotas = world.admin("GET", "/customers/acme/quotas").await.ok();
    (quotas["plan_id"].clone(), quotas["terms_version"].clone(), granted(world).await)
}

/// Has what was announced of Stripe applied, and the customer synced by support as well.
async fn synced(world: &World) -> Value {
    world.settle().await;
    world.admin("POST", "/customers/acme/sync").await.ok()
}

/// What the trail says became of the terms of `acme`.
async fn moves(world: &World) -> Vec<Value> {
    let trail = world.list("/audit?customer_id=acme").await;
    trail.iter().filter(|e| e["action"] == "terms.moved").map(|e| e["detail"].clone()).collect()
}

both_databases! {
    async fn who_subscribes_to_a_plan_that_its_old_terms_lack_is_on_it(db: TestDb) {
        let (world, stripe_id) = on_old_terms(&db, EXAMPLE, &lite_is_the_default(120)).await;
        world.subscribe(&stripe_id, "lite_monthly").await;
        assert_eq!(synced(&world).await["differences"], json!([]), "a webhook was enough");
        assert_eq!(terms(&world).await, (json!("lite"), json!(null), 120));
        assert_eq!(world.run("acme").await["reason"], "within_limit");
        assert_eq!(moves(&world).await, [json!({"from": 1, "to": null, "from_plan_id": "starter", "to_plan_id": "lite"})]);
    }

    async fn who_subscribes_to_another_plan_than_it_had_takes_it_as_it_is_now(db: TestDb) {
        let first = format!("{EXAMPLE}{}", lite(300));
        let (world, stripe_id) = on_old_terms(&db, &first, &lite_is_the_default(120)).await;
        let subscription = world.subscribe(&stripe_id, "lite_monthly").await;
        assert_eq!(terms(&world).await, (json!("lite"), json!(null), 120), "not the 300 of then");
        world.change_price(&subscription, "starter_monthly").await;
        assert_eq!(terms(&world).await, (json!("starter"), json!(null), 50));
        assert_eq!(moves(&world).await.len(), 1);
    }

    async fn who_subscribes_to_the_plan_it_keeps_keeps_it_and_loses_it_with_the_subscription(db: TestDb) {
        let (world, stripe_id) = on_old_terms(&db, EXAMPLE, &lite_is_the_default(120)).await;
        let before = rows(&db.url, "SELECT entitlement_version FROM customers").await;
        let subscription = world.subscribe(&stripe_id, "starter_monthly").await;
        assert_eq!(terms(&world).await, (json!("starter"), json!(1), 200));
        assert_eq!(rows(&db.url, "SELECT entitlement_version FROM customers").await, before, "nothing changed");
        world.stripe("DELETE", &format!("/v1/subscriptions/{subscription}"), &[]).await;
        synced(&world).await;
        assert_eq!(terms(&world).await, (json!("lite"), json!(null), 120), "what others have for nothing");
    }

    async fn a_customer_whose_terms_were_kept_too_long_is_healed_by_a_sync(db: TestDb) {
        let (world, stripe_id) = on_old_terms(&db, EXAMPLE, &lite_is_the_default(120)).await;
        world.subscribe(&stripe_id, "lite_monthly").await;
        // As a former build left it.
        rows(&db.url, "UPDATE customers SET terms_version = 1, revision = revision + 1 RETURNING 1").await;
        let mut world = world;
        world.restart().await;
        assert_eq!(world.gate("acme").await, "false no_plan");
        let found = world.admin("POST", "/customers/acme/sync?dry_run=true").await.ok();
        assert_eq!(found["differences"], json!([
            {"what": "plan", "local": null, "stripe": "lite", "action": "set"},
            {"what": "terms", "local": "version 1 of the plans file", "stripe": null, "action": "set"},
        ]));
        synced(&world).await;
        assert_eq!(terms(&world).await, (json!("lite"), json!(null), 120));
    }
}

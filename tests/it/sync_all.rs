//! `tollgate sync`, and support's sync of everyone.

use serde_json::{Value, json};
use tollgate::sim::FaultKind;

use crate::harness::postgres::TestDb;
use crate::harness::process::{Finished, Machine};
use crate::harness::sql::rows;
use crate::harness::world::{API_KEY, STRIPE_KEY, World};

/// Customers `c00`, `c01` and so on with a subscription to Starter, which has changed to Pro since
/// without anybody having been told.
async fn changed_unheard(world: &World, customers: usize) -> Vec<String> {
    let mut stripe_ids = Vec::new();
    for n in 0..customers {
        let customer = format!("c{n:02}");
        world.customer(&customer).await;
        let stripe_id = world.link(&customer).await;
        let subscription = world.subscribe(&stripe_id, "starter_monthly").await;
        world.lose_webhooks();
        world.change_price_quietly(&subscription, "pro_monthly").await;
        world.sim.change_faults(|faults| faults.drop_webhooks = false);
        stripe_ids.push(stripe_id);
    }
    stripe_ids
}

/// The command where this world's daemon runs.
fn machine(db: &TestDb, world: &World) -> Machine {
    let mut machine = Machine::on(db);
    machine.set("TOLLGATE_LISTEN", &world.config.listen.to_string());
    machine.set("STRIPE_SECRET_KEY", STRIPE_KEY);
    machine.set("STRIPE_API_BASE", &world.sim.base_url());
    machine
}

/// Every line, its columns one space apart.
fn lines(finished: &Finished) -> Vec<String> {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    finished.stdout.lines().map(words).collect()
}

both_databases! {
    async fn a_customer_is_synced_from_the_command_line_while_the_daemon_runs(db: TestDb) {
        let world = World::start(&db).await;
        changed_unheard(&world, 1).await;
        let machine = machine(&db, &world);
        let dry = machine.run(&["sync", "c00", "--dry-run"]).await;
        assert_eq!((dry.code, lines(&dry)), (Some(0), vec![
            "c00 plan starter -> pro set".to_owned(),
            "c00: 1 difference; nothing was changed".to_owned(),
        ]), "{dry:?}");
        assert_eq!(world.tier("c00").await, "starter active");
        let done = machine.run(&["sync", "c00"]).await;
        assert_eq!((done.code, lines(&done).pop().unwrap()), (Some(0), "c00: 1 difference, put right".to_owned()));
        assert_eq!(world.tier("c00").await, "pro active");
        let again = machine.run(&["sync", "c00"]).await;
        assert_eq!((again.code, lines(&again)), (Some(0), vec!["c00 is as Stripe says".to_owned()]));
        let json = machine.run(&["sync", "c00", "--json"]).await;
        let report: Value = serde_json::from_str(&json.stdout).expect("JSON");
        assert_eq!((&report["customer_id"], &report["differences"]), (&json!("c00"), &json!([])));
        let nobody = machine.run(&["sync", "nobody"]).await;
        assert_eq!(nobody.code, Some(1));
        assert!(nobody.stderr.contains("nobody could not be synced: there is no such customer"), "{nobody:?}");
    }

    async fn everyone_is_synced_and_who_could_not_be_is_named(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("local").await;
        let stripe_ids = changed_unheard(&world, 27).await;
        let machine = machine(&db, &world);
        world.sim.fail_next(&format!("/v1/customers/{}", stripe_ids[3]), 1, FaultKind::RateLimited);
        let dry = machine.run(&["sync", "--all", "--dry-run"]).await;
        assert_eq!(dry.code, Some(1), "{dry:?}");
        let said = lines(&dry);
        assert!(said[24].starts_with("c03 FAILED Stripe did not answer"), "{said:#?}");
        let last = "27 customers looked at: 26 differ; nothing was changed";
        assert_eq!((said.len(), said[27].as_str()), (28, last), "{said:#?}");
        assert!(dry.stderr.contains("27 customers done") && dry.stderr.contains("1 customer could not be synced"));
        let json = machine.run(&["sync", "--all", "--json"]).await;
        assert_eq!(json.code, Some(0), "{json:?}");
        let all: Value = serde_json::from_str(&json.stdout).expect("JSON");
        assert_eq!((&all["customers"], &all["failures"]), (&json!(27), &json!([])));
        assert_eq!(all["reports"].as_array().unwrap().len(), 27);
        assert_eq!(world.tier("c26").await, "pro active");
        let again = machine.run(&["sync", "--all"]).await;
        assert_eq!((again.code, lines(&again)),
            (Some(0), vec!["27 customers looked at: none differs from Stripe".to_owned()]));
    }

    async fn without_a_daemon_the_command_does_it_itself(db: TestDb) {
        let mut world = World::start(&db).await;
        changed_unheard(&world, 1).await;
        let mut machine = machine(&db, &world);
        world.stop().await;
        machine.unset("TOLLGATE_ADMIN_TOKEN");
        let done = machine.run(&["sync", "--all"]).await;
        assert_eq!((done.code, lines(&done)), (Some(0), vec![
            "c00 plan starter -> pro set".to_owned(),
            "1 customer looked at: 1 differed and are put right".to_owned(),
        ]), "{done:?}");
        world.try_boot().await.unwrap();
        assert_eq!(world.tier("c00").await, "pro active");
        machine.set("TOLLGATE_LISTEN", &world.config.listen.to_string());
        let refused = machine.run(&["sync", "--all"]).await;
        assert_eq!(refused.code, Some(78), "a daemon asks who wants it: {refused:?}");
        machine.set("TOLLGATE_ADMIN_TOKEN", "some-other-token-0123456789");
        let refused = machine.run(&["sync", "--all"]).await;
        assert_eq!(refused.code, Some(1));
        assert!(refused.stderr.contains("TOLLGATE_ADMIN_TOKEN"), "{refused:?}");
    }

    async fn a_command_without_a_daemon_goes_by_the_plans_in_force_and_not_by_its_own_file(db: TestDb) {
        let mut world = World::start(&db).await;
        changed_unheard(&world, 1).await;
        let machine = machine(&db, &world);
        world.stop().await;
        let versions = "SELECT version, source FROM plan_versions";
        let before = rows(&db.url, versions).await;
        let older = include_str!("../../plans.example.toml").replace("pro_monthly", "pro_old");
        machine.write("plans.toml", &older);
        for arguments in [&["sync", "c00", "--dry-run"][..], &["sync", "--all"]] {
            let done = machine.run(arguments).await;
            assert_eq!((done.code, lines(&done)[0].as_str()),
                (Some(0), "c00 plan starter -> pro set"), "{done:?}");
            assert_eq!(rows(&db.url, versions).await, before);
        }
    }

    async fn a_sync_of_everyone_goes_page_by_page_and_leaves_its_trail(db: TestDb) {
        let world = World::start(&db).await;
        changed_unheard(&world, 27).await;
        let first = world.admin("POST", "/sync").await.ok();
        assert_eq!((&first["customers"], &first["next"]), (&json!(25), &json!("c24")));
        let last = world.admin("POST", "/sync?after=c24").await.ok();
        assert_eq!((&last["customers"], &last["next"]), (&json!(2), &Value::Null));
        let audit = world.list("/audit").await;
        let count = |action: &str| audit.iter().filter(|row| row["action"] == action).count();
        assert_eq!((count("sync_all"), count("sync")), (2, 27));
        world.admin("POST", "/sync").await.ok();
        assert_eq!(world.list("/audit").await.len(), 30, "one of the page, none of those who were right");
        assert_eq!(world.admin("POST", "/sync?after=zz").await.ok()["customers"], 0);
    }

    async fn three_in_a_row_whom_nobody_can_read_are_not_stripe_being_away(db: TestDb) {
        let world = World::start(&db).await;
        let stripe_ids = changed_unheard(&world, 5).await;
        for odd in &stripe_ids[..3] {
            world.sim.fail_next(&format!("/v1/customers/{odd}"), 1, FaultKind::OtherShape);
        }
        let page = world.admin("POST", "/sync").await.ok();
        assert_eq!((&page["stopped"], &page["next"]), (&json!(false), &Value::Null), "{page}");
        let failures = page["failures"].as_array().unwrap();
        assert_eq!((failures.len(), &failures[2]["customer_id"]), (3, &json!("c02")));
        assert_eq!(world.tier("c04").await, "pro active");
    }

    async fn a_row_that_cannot_be_read_is_one_customers_trouble(db: TestDb) {
        let world = World::start(&db).await;
        changed_unheard(&world, 3).await;
        rows(&db.url, "UPDATE customers SET standing = 'odd' WHERE customer_id = 'c01'").await;
        let page = world.admin("POST", "/sync").await.ok();
        assert_eq!(page["failures"][0]["customer_id"], "c01", "{page}");
        assert_eq!((&page["customers"], &page["next"]), (&json!(3), &Value::Null));
        assert_eq!(world.tier("c02").await, "pro active");
    }

    async fn when_stripe_is_down_a_sync_of_everyone_stops_and_says_where(db: TestDb) {
        let world = World::start(&db).await;
        changed_unheard(&world, 5).await;
        let before = world.everything().await;
        world.sim.fail_next("/v1/customers", 1000, FaultKind::RateLimited);
        let page = world.admin("POST", "/sync").await.ok();
        assert_eq!((&page["stopped"], &page["next"], &page["customers"]),
            (&json!(true), &json!("c02"), &json!(3)));
        let stopped = machine(&db, &world).run(&["sync", "--all"]).await;
        assert_eq!(stopped.code, Some(1));
        assert!(stopped.stderr.contains("Stripe does not answer now"), "{stopped:?}");
        assert_eq!(world.everything().await, before);
    }

    async fn a_sync_of_everyone_is_for_support(db: TestDb) {
        let world = World::start(&db).await;
        let path = "/admin/api/v1/sync";
        assert_eq!(world.call_as(API_KEY, "POST", path, &Value::Null).await.status, 403);
        assert_eq!(world.call_as("wrong-key", "POST", path, &Value::Null).await.status, 401);
        for (query, status, error) in [
            ("dry_run=maybe", 422, "invalid_value: dry_run"),
            ("dryrun=true", 422, "unknown_field: dryrun"),
            ("after=", 422, "invalid_value: after"),
            ("after=a%00b", 422, "invalid_value: after"),
            ("after=a&after=b", 400, "malformed: after"),
        ] {
            let reply = world.admin("POST", &format!("/sync?{query}")).await;
            assert_eq!((reply.status, reply.error().as_str()), (status, error), "{query}");
        }
        assert_eq!(world.list("/audit").await, [Value::Null; 0]);
    }
}

#[tokio::test]
async fn the_command_wants_a_customer_or_all() {
    let machine = Machine::bare();
    for wrong in [&["sync"][..], &["sync", "acme", "--all"], &["sync", "a\nb"]] {
        let refused = machine.run(wrong).await;
        assert_eq!(refused.code, Some(2), "{wrong:?}: {refused:?}");
    }
}

//! What support sets for one customer: its own quota, one-off grants, the terms it keeps; and that
//! whoever comes to a threshold by it is told exactly once.

use tokio::task::JoinSet;
use tollgate::domain::quota::DrawOrder;
use tollgate::gate::quotas::{Change, ChangeError, Kind, NewGrant, NewOverride};
use tollgate::jobs::Job;

use super::*;
use crate::harness::sql::TABLES;

const NUDGE: &str = "You've used 80% of your AI runs this month.";
const CAP: &str = "You've used all of your AI runs this month.";
const HOUR: Duration = Duration::from_secs(3600);

fn ai_runs() -> tollgate::domain::ids::FeatureId {
    "ai_runs".parse().unwrap()
}

/// A quota of so many runs, enforced as the plan enforces its own.
fn own(granted: i64) -> Change {
    own_until(granted, None)
}

fn own_until(granted: i64, ends_at: Option<&str>) -> Change {
    let ends_at = ends_at.map(|moment| moment.parse().unwrap());
    let own = NewOverride { kind: None, granted: Some(granted), ends_at, note: None };
    Change::SetOverride { feature_id: ai_runs(), own }
}

fn own_kind(kind: Kind, granted: Option<i64>) -> Change {
    let own = NewOverride { kind: Some(kind), granted, ends_at: None, note: None };
    Change::SetOverride { feature_id: ai_runs(), own }
}

fn grant(id: &str, units: i64, draw: DrawOrder, expires_at: Option<&str>) -> Change {
    let grant = NewGrant {
        grant_id: id.to_owned(),
        units,
        draw,
        expires_at: expires_at.map(|moment| moment.parse().unwrap()),
        note: Some("sorry for Monday".to_owned()),
    };
    Change::AddGrant { feature_id: ai_runs(), grant }
}

fn before(id: &str, units: i64) -> Change {
    grant(id, units, DrawOrder::Before, None)
}

fn after(id: &str, units: i64) -> Change {
    grant(id, units, DrawOrder::After, None)
}

fn revoke(id: &str) -> Change {
    Change::RevokeGrant { grant_id: id.to_owned() }
}

/// A change that must change something.
async fn set(world: &World, customer: &str, change: Change) {
    assert!(world.change(customer, change).await.expect("it can be changed"));
}

/// What is granted, used and left.
async fn numbers(world: &World, customer: &str) -> (i64, i64, i64) {
    let balance = world.check(customer).await["balance"].clone();
    let number = |name: &str| balance[name].as_i64().expect("a number");
    (number("granted"), number("usage"), number("remaining"))
}

/// Each grant with what was used of it and its state.
async fn grants(db: &TestDb) -> Vec<String> {
    rows(&db.url, "SELECT grant_id, used_units, state FROM grants ORDER BY grant_id").await
}

/// A customer on Starter's 200 who has used so many, and whoever was told of it.
async fn used(world: &World, customer: &str, runs: i64) {
    world.customer(customer).await;
    world.runs(customer, runs).await;
    world.settle().await;
}

// --- own quotas --------------------------------------------------------------------------------

both_databases! {
    async fn an_own_quota_holds_on_its_plan_and_until_its_end(db: TestDb) {
        let mut world = World::start(&db).await;
        let stripe_id = world.link("acme").await;
        let subscription = world.subscribe(&stripe_id, "team_monthly").await;
        set(&world, "acme", own_until(20_000, Some("2026-11-20T00:00:00Z"))).await;
        assert_eq!(numbers(&world, "acme").await, (20_000, 0, 20_000));
        let run = world.runs("acme", 16_000).await;
        assert_eq!(run["threshold"], json!({"state": "ok", "percent": 80}), "Team has no nudges");
        world.change_price(&subscription, "pro_monthly").await;
        assert_eq!(numbers(&world, "acme").await, (2000, 16_000, 0), "it sleeps on another plan");
        world.change_price(&subscription, "team_monthly").await;
        world.restart().await;
        assert_eq!(numbers(&world, "acme").await, (20_000, 16_000, 4000));
        // From its end on the plan's number holds, whether or not a job has looked.
        world.clock.advance("2026-11-20T00:00:00Z".parse::<tollgate::clock::Timestamp>().unwrap().since(world.now())).unwrap();
        assert_eq!(numbers(&world, "acme").await, (6000, 16_000, 0));
        assert_eq!(world.run("acme").await["reason"], "limit_reached");
        world.settle().await;
        assert_eq!(rows(&db.url, "SELECT * FROM overrides").await, Vec::<String>::new());
        assert_eq!(numbers(&world, "acme").await, (6000, 16_000, 0));
        assert_eq!(notices(&world, "acme").await.last().unwrap(), "cap_reached 100");
    }

    async fn an_own_quota_may_be_of_another_kind_than_the_plans(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 150).await;
        set(&world, "acme", own_kind(Kind::Soft, Some(100))).await;
        let over = world.run("acme").await;
        assert_eq!((&over["reason"], &over["balance"]["soft_limit"]), (&json!("over_soft_limit"), &json!(100)));
        assert_eq!(over["threshold"], json!({"state": "over_soft_limit", "percent": 151}));
        set(&world, "acme", own_kind(Kind::Unlimited, None)).await;
        let open = world.runs("acme", 1_000_000).await;
        assert_eq!((&open["reason"], &open["balance"]["granted"]), (&json!("unlimited"), &Value::Null));
        set(&world, "acme", own(300)).await;
        assert_eq!(world.run("acme").await["reason"], "limit_reached", "hard, as the plan's own");
        set(&world, "acme", Change::ClearOverride { feature_id: ai_runs() }).await;
        assert_eq!(numbers(&world, "acme").await, (200, 1_000_151, 0));
    }

    async fn a_new_own_quota_takes_the_place_of_the_old(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 10).await;
        for (granted, usage) in [(500, 11), (50, 12), (5, 12)] {
            set(&world, "acme", own(granted)).await;
            world.run("acme").await;
            assert_eq!(numbers(&world, "acme").await, (granted, usage, (granted - usage).max(0)));
        }
        assert_eq!(rows(&db.url, "SELECT granted_units FROM overrides").await, ["5"]);
    }

    async fn a_first_answer_keeps_the_number_it_was_given_under(db: TestDb) {
        let mut world = World::start(&db).await;
        used(&world, "acme", 10).await;
        set(&world, "acme", own(20)).await;
        set(&world, "acme", before("sorry", 5)).await;
        let run = body("acme", json!({"send_event": true, "required_balance": 9, "idempotency_key": "a"}));
        let first = bytes(&world, "/v1/check", &run).await;
        assert!(first.1.contains("\"granted\":25") && first.1.contains("\"percent\":76"), "{}", first.1);
        set(&world, "acme", own_kind(Kind::Unlimited, None)).await;
        set(&world, "acme", revoke("sorry")).await;
        world.restart().await;
        assert_eq!(bytes(&world, "/v1/check", &run).await, first);
    }
}

// --- grants ------------------------------------------------------------------------------------

both_databases! {
    async fn a_grant_is_used_before_the_plan_or_after_it_and_what_is_left_stays(db: TestDb) {
        let mut world = World::start(&db).await;
        used(&world, "acme", 1).await;
        set(&world, "acme", after("after", 10)).await;
        set(&world, "acme", before("before", 10)).await;
        assert_eq!(numbers(&world, "acme").await, (220, 1, 219));
        world.runs("acme", 15).await;
        assert_eq!(grants(&db).await, ["after|0|live", "before|10|live"]);
        assert_eq!(numbers(&world, "acme").await, (220, 16, 204), "what is used stays granted");
        world.restart().await;
        world.runs("acme", 198).await;
        assert_eq!(grants(&db).await, ["after|4|live", "before|10|live"]);
        assert_eq!(world.run("acme").await["balance"]["remaining"], 5);
        world.advance_to("2026-12-01T00:00:00Z").await;
        assert_eq!(numbers(&world, "acme").await, (205, 0, 205));
        world.runs("acme", 205).await;
        assert_eq!(world.run("acme").await["reason"], "limit_reached");
        world.advance_to("2027-01-01T00:00:00Z").await;
        assert_eq!(numbers(&world, "acme").await, (200, 0, 200));
        assert_books_balance(&db.url).await;
    }

    async fn of_grants_the_one_that_ends_sooner_is_used_first(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 1).await;
        set(&world, "acme", before("a-keeps", 5)).await;
        set(&world, "acme", grant("b-ends", 5, DrawOrder::Before, Some("2026-11-20T00:00:00Z"))).await;
        world.runs("acme", 7).await;
        assert_eq!(grants(&db).await, ["a-keeps|2|live", "b-ends|5|live"]);
        assert_books_balance(&db.url).await;
    }

    async fn what_ends_or_is_revoked_leaves_granted_what_was_used_of_it(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 1).await;
        set(&world, "acme", grant("ends", 50, DrawOrder::Before, Some("2026-11-10T00:00:00Z"))).await;
        set(&world, "acme", after("revoked", 30)).await;
        world.runs("acme", 20).await;
        assert_eq!(numbers(&world, "acme").await, (280, 21, 259));
        set(&world, "acme", revoke("revoked")).await;
        assert_eq!(numbers(&world, "acme").await, (250, 21, 229));
        world.advance_to("2026-11-09T23:59:59.999Z").await;
        world.runs("acme", 1).await;
        world.clock.advance(Duration::from_millis(1)).unwrap();
        assert_eq!(numbers(&world, "acme").await, (221, 22, 199), "before a job has looked");
        assert_eq!(world.runs("acme", 1).await["balance"]["remaining"], 198);
        world.settle().await;
        assert_eq!(grants(&db).await, ["ends|21|expired", "revoked|0|revoked"]);
        assert_eq!(numbers(&world, "acme").await, (221, 23, 198));
        for gone in ["ends", "revoked", "nobody's"] {
            assert!(matches!(world.change("acme", revoke(gone)).await, Err(ChangeError::NoGrant)), "{gone}");
        }
        assert_books_balance(&db.url).await;
    }

    async fn a_grant_opens_a_feature_that_the_plan_lacks_until_it_is_used_up(db: TestDb) {
        let exports = "[features.exports]\nname = \"Exports\"\nunit = \"export\"\n\n[features.ai_runs]";
        let world = World::with_plans(&db, &plans("[features.ai_runs]", exports)).await;
        world.customer("acme").await;
        let Change::AddGrant { grant, .. } = after("taste", 3) else { unreachable!() };
        set(&world, "acme", Change::AddGrant { feature_id: "exports".parse().unwrap(), grant }).await;
        let export = json!({"customer_id": "acme", "feature_id": "exports", "send_event": true});
        for left in [2, 1, 0] {
            let run = world.call("POST", "/v1/check", &export).await.ok();
            assert_eq!((&run["allowed"], &run["balance"]["remaining"]), (&json!(true), &json!(left)));
        }
        let over = world.call("POST", "/v1/check", &export).await.ok();
        assert_eq!((&over["reason"], &over["balance"]["granted"]), (&json!("limit_reached"), &json!(3)));
        assert_eq!(over["threshold"], json!({"state": "limit_reached", "percent": 100}));
        world.settle().await;
        assert_eq!(world.subjects(), ["You've used all of your Exports this month."]);
        world.advance_to("2026-12-01T00:00:00Z").await;
        assert_eq!(world.call("POST", "/v1/check", &export).await.ok()["reason"], "feature_not_in_plan");
    }

    async fn a_run_that_held_a_grants_units_is_counted_though_the_grant_has_ended(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 190).await;
        set(&world, "acme", grant("ends", 50, DrawOrder::After, Some("2026-11-01T10:00:00Z"))).await;
        let (early, late) = (world.reserve("acme", 30, 7200).await, world.reserve("acme", 30, 7200).await);
        assert_eq!(world.commit(&early, &Value::Null).await.ok()["over_limit"], false);
        world.advance(2 * HOUR - Duration::from_secs(1)).await;
        assert_eq!(numbers(&world, "acme").await, (220, 220, 0), "30 of it were used");
        let done = world.commit(&late, &Value::Null).await.ok();
        assert_eq!((&done["over_limit"], &done["balance"]["usage"]), (&json!(true), &json!(250)));
        assert_eq!(grants(&db).await, ["ends|20|expired"]);
        assert_books_balance(&db.url).await;
    }

    async fn the_same_grant_comes_once(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 1).await;
        set(&world, "acme", before("sorry", 10)).await;
        assert!(!world.change("acme", before("sorry", 10)).await.unwrap());
        assert_eq!(numbers(&world, "acme").await, (210, 1, 209));
        assert_eq!(world.list("/audit?customer_id=acme").await.len(), 1);
    }
}

// --- thresholds --------------------------------------------------------------------------------

both_databases! {
    async fn who_was_nudged_and_has_more_is_nudged_again_at_the_new_number(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 160).await;
        set(&world, "acme", own(400)).await;
        world.runs("acme", 159).await;
        world.settle().await;
        assert_eq!(world.subjects(), [NUDGE]);
        world.run("acme").await;
        world.settle().await;
        assert_eq!(world.subjects(), [NUDGE, NUDGE]);
        assert!(world.mail.mails()[1].text.contains("320 AI runs"));
        set(&world, "acme", after("more", 1)).await;
        world.runs("acme", 81).await;
        world.settle().await;
        assert_eq!(world.subjects(), [NUDGE, NUDGE, CAP], "81 % of 401, then all");
    }

    async fn whose_number_falls_to_its_usage_is_told_at_once(db: TestDb) {
        let world = World::start(&db).await;
        for (customer, granted, subjects) in
            [("nudged", 180, vec![NUDGE]), ("capped", 150, vec![CAP]), ("below", 188, vec![])]
        {
            let told = world.subjects().len();
            used(&world, customer, 150).await;
            set(&world, customer, own(granted)).await;
            world.settle().await;
            assert_eq!(world.subjects()[told..], subjects, "150 of {granted}");
            world.call("POST", "/v1/check", &body(customer, json!({"send_event": true}))).await.ok();
            world.settle().await;
            let now = if granted == 188 { vec![NUDGE] } else { subjects };
            assert_eq!(world.subjects()[told..], now, "and by the next run only if that crosses");
        }
    }

    async fn who_has_used_nothing_is_told_nothing(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        set(&world, "acme", own(0)).await;
        world.settle().await;
        assert_eq!((world.subjects().len(), &world.run("acme").await["reason"]), (0, &json!("limit_reached")));
    }

    async fn a_nudge_that_waits_is_sent_once_if_it_is_still_true(db: TestDb) {
        let mut world = World::start(&db).await;
        world.restart_with(&[("SMTP_URL", ""), ("MAIL_FROM", "")]).await;
        for (customer, runs) in [("true", 170), ("untrue", 160)] {
            world.customer(customer).await;
            world.runs(customer, runs).await;
            set(&world, customer, after("little", 1)).await;
        }
        world.restart_with(&[]).await;
        world.settle().await;
        world.runs("true", 1).await;
        world.settle().await;
        assert_eq!(world.subjects(), [NUDGE], "170 of 201 are 80 %, 160 are not");
        world.run("untrue").await;
        world.settle().await;
        assert_eq!(world.subjects(), [NUDGE, NUDGE]);
    }

    async fn a_number_raised_and_lowered_again_while_a_nudge_waits_is_told_once(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        world.runs("acme", 160).await;
        set(&world, "acme", own(400)).await;
        set(&world, "acme", Change::ClearOverride { feature_id: ai_runs() }).await;
        world.settle().await;
        assert_eq!(world.subjects(), [NUDGE]);
    }

    async fn an_upgrades_mail_is_not_lost_by_a_grant_on_its_day(db: TestDb) {
        let world = World::start(&db).await;
        let stripe_id = world.link("acme").await;
        world.subscribe(&stripe_id, "pro_monthly").await;
        world.advance(HOUR).await;
        set(&world, "acme", before("welcome", 100)).await;
        world.advance(24 * HOUR).await;
        assert_eq!(world.subjects(), ["Your AI runs are now uncapped."]);
    }

    async fn the_end_of_a_grant_that_leaves_the_customer_at_its_cap_is_told_once(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 150).await;
        set(&world, "acme", grant("ends", 100, DrawOrder::After, Some("2026-11-02T00:00:00Z"))).await;
        world.runs("acme", 60).await;
        world.settle().await;
        assert_eq!(world.subjects(), Vec::<String>::new(), "210 of 300");
        world.advance_to("2026-11-02T00:00:00Z").await;
        assert_eq!(world.subjects(), [CAP]);
        world.advance(HOUR).await;
        world.run("acme").await;
        world.advance(HOUR).await;
        assert_eq!(world.subjects(), [CAP]);
    }

    async fn a_run_between_a_grants_end_and_the_job_that_sees_it_is_told_of_once(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 150).await;
        set(&world, "acme", grant("ends", 100, DrawOrder::After, Some("2026-11-02T00:00:00Z"))).await;
        world.clock.advance(15 * HOUR).unwrap();
        world.runs("acme", 10).await;
        assert_eq!(notices(&world, "acme").await, ["usage_nudge 80"], "160 of 200");
        world.run_job(Job::Expire).await;
        world.settle().await;
        assert_eq!(world.subjects(), [NUDGE]);
    }
}

both_databases! {
    async fn what_ended_is_told_and_in_the_trail_though_support_was_there_before_the_job(db: TestDb) {
        let world = World::with_plans(&db, &plans("granted = 200,", "granted = 100,")).await;
        for (n, change) in [Some(own(120)), None, Some(after("g", 5))].into_iter().enumerate() {
            let customer = format!("acme-{n}");
            world.customer(&customer).await;
            let end = world.now().plus(HOUR).to_string();
            set(&world, &customer, own_until(1000, Some(&end))).await;
            world.runs(&customer, 150).await;
            world.clock.advance(HOUR).unwrap();
            match change {
                Some(change) => set(&world, &customer, change).await,
                None => {
                    let gone = world.change(&customer, Change::ClearOverride { feature_id: ai_runs() }).await;
                    assert!(matches!(gone, Err(ChangeError::NoOverride)), "{gone:?}");
                }
            }
            world.settle().await;
            assert_eq!(notices(&world, &customer).await, ["cap_reached 100"], "{n}");
            let trail = world.list(&format!("/audit?customer_id={customer}")).await;
            assert!(trail.iter().any(|entry| entry["action"] == "quotas.ended" && entry["actor"] == "clock"), "{n}");
        }
        assert_eq!(world.subjects(), [CAP, CAP, CAP]);
    }

    async fn a_grant_is_not_drawn_where_it_buys_nothing(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        set(&world, "acme", before("sorry", 10)).await;
        set(&world, "acme", own_kind(Kind::Unlimited, None)).await;
        world.runs("acme", 7).await;
        assert_eq!(grants(&db).await, ["sorry|0|live"]);
        set(&world, "acme", own(7)).await;
        world.runs("acme", 1).await;
        assert_eq!(grants(&db).await, ["sorry|1|live"]);
        assert_books_balance(&db.url).await;
    }

    async fn a_grant_does_not_pay_for_a_period_that_was_over_when_it_was_made(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 190).await;
        world.advance_to("2026-11-30T23:50:00Z").await;
        let held = world.reserve("acme", 10, 7200).await;
        world.advance_to("2026-12-01T00:05:00Z").await;
        set(&world, "acme", before("december", 50)).await;
        let done = world.commit(&held, &json!({"value": 15})).await.ok();
        assert_eq!((&done["balance"]["granted"], &done["over_limit"]), (&json!(200), &json!(true)));
        assert_eq!(grants(&db).await, ["december|0|live"]);
        assert_eq!(numbers(&world, "acme").await, (250, 0, 250));
        assert_books_balance(&db.url).await;
    }
}

// --- terms, errors and the trail ---------------------------------------------------------------

both_databases! {
    async fn kept_terms_hold_until_the_customer_is_moved(db: TestDb) {
        let mut world = World::start(&db).await;
        used(&world, "acme", 70).await;
        std::fs::write(world.plans_file(), plans("granted = 200,", "granted = 100,")).unwrap();
        world.settle().await;
        assert_eq!(numbers(&world, "acme").await, (100, 70, 30));
        set(&world, "acme", Change::KeepTerms { version: Some(1) }).await;
        assert!(!world.change("acme", Change::KeepTerms { version: Some(1) }).await.unwrap());
        assert_eq!(numbers(&world, "acme").await, (200, 70, 130));
        world.restart().await;
        let run = world.runs("acme", 90).await;
        assert_eq!(run["threshold"], json!({"state": "nudge", "percent": 80}));
        assert_eq!(notices(&world, "acme").await, ["usage_nudge 80"]);
        set(&world, "acme", Change::KeepTerms { version: None }).await;
        assert_eq!(numbers(&world, "acme").await, (100, 160, 0));
        assert_eq!(notices(&world, "acme").await, ["usage_nudge 80", "cap_reached 100"], "told at once");
    }

    async fn who_changes_plan_takes_it_as_it_is_now(db: TestDb) {
        let world = World::start(&db).await;
        let stripe_id = world.link("acme").await;
        let subscription = world.subscribe(&stripe_id, "starter_monthly").await;
        let smaller = plans("granted = 200,", "granted = 100,").replace("granted = 2000,", "granted = 1000,");
        std::fs::write(world.plans_file(), smaller).unwrap();
        world.settle().await;
        set(&world, "acme", Change::KeepTerms { version: Some(1) }).await;
        assert_eq!(numbers(&world, "acme").await.0, 200);
        world.change_price(&subscription, "pro_monthly").await;
        assert_eq!(numbers(&world, "acme").await.0, 1000);
        world.change_price(&subscription, "starter_monthly").await;
        assert_eq!(numbers(&world, "acme").await.0, 100);
    }

    async fn what_cannot_be_changed_is_refused_and_leaves_no_trace(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 1).await;
        let all = async || {
            let mut all = Vec::new();
            for table in TABLES {
                all.push(rows(&db.url, &format!("SELECT * FROM {table}")).await);
            }
            all
        };
        let untouched = all().await;
        let now = Some("2026-11-01T09:00:00Z");
        let unknown = Change::ClearOverride { feature_id: "imports".parse().unwrap() };
        let Change::SetOverride { own: quota, .. } = own(5) else { unreachable!() };
        for (customer, change, refused) in [
            ("nobody", own(5), "there is no such customer"),
            ("acme", own_until(5, now), "the end must lie in the future"),
            ("acme", grant("g", 5, DrawOrder::After, now), "the end must lie in the future"),
            ("acme", own_kind(Kind::Soft, None), "granted is needed unless enforcement is \"unlimited\""),
            ("acme", Change::SetOverride { feature_id: "imports".parse().unwrap(), own: quota }, "the plans file has no such feature"),
            ("acme", unknown, "the customer has no override of this feature"),
            ("acme", revoke("g"), "the customer has no such grant, or it is over"),
            ("acme", Change::KeepTerms { version: Some(7) }, "there is no such version of the plans file, or it lacks the customer's plan"),
        ] {
            assert_eq!(world.change(customer, change).await.unwrap_err().to_string(), refused);
        }
        assert!(!world.change("acme", Change::Ended).await.unwrap(), "nothing had");
        assert_eq!(all().await, untouched);
    }

    async fn each_change_stands_in_the_trail_with_who_made_it(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 1).await;
        set(&world, "acme", own_until(300, Some("2026-11-02T00:00:00Z"))).await;
        set(&world, "acme", before("sorry", 10)).await;
        set(&world, "acme", revoke("sorry")).await;
        world.advance(24 * HOUR).await;
        set(&world, "acme", own(400)).await;
        set(&world, "acme", Change::ClearOverride { feature_id: ai_runs() }).await;
        let mut trail = world.list("/audit?customer_id=acme").await;
        trail.sort_by_key(|entry| entry["audit_id"].to_string());
        let told: Vec<_> = trail.iter().map(|e| (e["actor"].as_str().unwrap(), e["action"].as_str().unwrap())).collect();
        assert_eq!(told.iter().filter(|(actor, _)| *actor == "support").count(), 5);
        assert!(told.contains(&("clock", "quotas.ended")), "{told:?}");
        let find = |action: &str| trail.iter().find(|e| e["action"] == action).unwrap()["detail"].clone();
        assert_eq!(find("grant.added"), json!({
            "feature_id": "ai_runs", "grant_id": "sorry", "units": 10, "draw": "before",
            "note": "sorry for Monday", "expires_at": null,
        }));
        assert_eq!(find("grant.revoked"), json!({"feature_id": "ai_runs", "grant_id": "sorry"}));
        assert_eq!(find("override.cleared"), json!({"feature_id": "ai_runs"}));
        assert_eq!(find("quotas.ended"), json!({"feature_ids": ["ai_runs"]}));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_never_use_a_grant_twice() {
    let db = TestDb::postgres().await;
    let world = World::start(&db).await;
    let other = world.replica(world.clock.clone()).await;
    used(&world, "acme", 200).await;
    for (id, units) in [("a", 7), ("b", 11)] {
        set(&world, "acme", after(id, units)).await;
    }
    let run = body("acme", json!({"send_event": true}));
    let mut callers = JoinSet::new();
    for caller in 0..64 {
        let address = if caller % 2 == 0 { world.config.listen } else { other.address };
        let request = world.http.post(format!("http://{address}/v1/check")).bearer_auth(API_KEY);
        let request = request.body(run.to_string());
        callers.spawn(async move { request.send().await.unwrap().text().await.unwrap() });
    }
    let answers = callers.join_all().await;
    assert_eq!(answers.iter().filter(|answer| answer.contains("\"allowed\":true")).count(), 18);
    assert_eq!(grants(&db).await, ["a|7|live", "b|11|live"]);
    assert_books_balance(&db.url).await;
    other.stop().await.unwrap();
}

//! The three mails, from the run or the upgrade that makes them due to the customer's inbox.

use std::time::Duration;

use serde_json::{Value, json};
use tollgate::domain::notice::NoticeState;
use tollgate::jobs::Job;

use crate::harness::postgres::TestDb;
use crate::harness::smtp_sink::{Fault, SinkMail};
use crate::harness::world::World;

const EXAMPLE: &str = include_str!("../../plans.example.toml");
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

const NUDGE: &str = "You've used 80% of your AI runs this month.";
const CAP: &str = "You've used all of your AI runs this month.";
const UNCAPPED: &str = "Your AI runs are now uncapped.";

// --- What the stories are told in --------------------------------------------------------------

/// A customer on Starter who has used so many runs, before any job has looked.
async fn used(world: &World, customer: &str, runs: i64) {
    world.customer(customer).await;
    world.runs(customer, runs).await;
}

/// Kind, state and reason of a customer's notices, in no order.
async fn notices(world: &World, customer: &str) -> Vec<(String, String, String)> {
    let rows = world.list(&format!("/notices?customer_id={customer}")).await;
    let text = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
    rows.iter().map(|row| (text(row, "kind"), text(row, "state"), text(row, "detail"))).collect()
}

/// The customer's only notice: its state and the reason for it.
async fn notice(world: &World, customer: &str) -> (String, String) {
    let all = notices(world, customer).await;
    assert_eq!(all.len(), 1, "{all:?}");
    let (_, state, detail) = all.into_iter().next().unwrap();
    (state, detail)
}

/// State of the customer's one nudge, whatever else there is, and the reason for it.
async fn nudge(world: &World, customer: &str) -> (String, String) {
    let mut all = notices(world, customer).await;
    all.retain(|(kind, ..)| kind == "usage_nudge");
    assert_eq!(all.len(), 1, "{all:?}");
    let (_, state, detail) = all.remove(0);
    (state, detail)
}

/// One tick of the schedule: a minute later, one round of sending.
async fn tick(world: &World) {
    world.clock.advance(MINUTE).unwrap();
    world.run_job(Job::DeliverNotices).await;
}

/// Both bodies say all of this.
fn assert_says(mail: &SinkMail, facts: &[&str]) {
    for fact in facts {
        assert!(mail.text.contains(fact), "the text lacks {fact:?}:\n{}", mail.text);
        let html = mail.html.replace("&#x27;", "'").replace("&#39;", "'").replace("&amp;", "&");
        assert!(html.contains(fact), "the HTML lacks {fact:?}:\n{html}");
    }
}

/// Every address in a mail that leads to us.
fn links(mail: &SinkMail) -> Vec<String> {
    let words = mail.text.split_whitespace().chain(mail.html.split('"'));
    let links = words.filter(|word| word.starts_with("http") && word.contains("token="));
    links.map(str::to_owned).collect()
}

/// The subjects that a customer of Pro's soft 2,000 gets on the way to 2,500, on its first day.
async fn mails_of_a_soft_limit(db: &TestDb, percents: &str) -> Vec<String> {
    let soft = "granted = 2000, enforcement = \"soft\", nudge_at_percent =";
    let plans = EXAMPLE.replace(&format!("{soft} [80]"), &format!("{soft} {percents}"));
    let world = World::with_plans(db, &plans).await;
    world.customer("acme").await;
    let acme = world.link("acme").await;
    world.subscribe(&acme, "pro_monthly").await;
    for count in [1599, 1, 399, 1, 500] {
        world.runs("acme", count).await;
        world.advance(MINUTE).await;
    }
    world.subjects()
}

// --- What is sent, to whom, and when -----------------------------------------------------------

both_databases! {
    async fn a_starter_customers_three_mails(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 159).await;
        world.advance(17 * DAY).await;
        assert_eq!(world.subjects().len(), 0);
        world.run("acme").await;
        world.settle().await;
        let nudge = world.mail.mail();
        assert_eq!((nudge.subject.as_str(), nudge.to.as_str()), (NUDGE, "acme@example.com"));
        assert_eq!(nudge.envelope_to, ["acme@example.com"]);
        assert_eq!(nudge.from, "billing@example.com");
        assert_eq!(nudge.to_name.as_deref(), Some("acme Inc"));
        assert_says(&nudge, &["acme Inc", "160 AI runs in the first 18 days"]);
        assert_says(&nudge, &["unlimited runs", "$99/month"]);

        world.runs("acme", 40).await;
        world.settle().await;
        let cap = world.mail.mails().pop().unwrap();
        assert_eq!((cap.subject.as_str(), cap.to.as_str()), (CAP, "acme@example.com"));
        assert_says(&cap, &["200 AI runs in the first 18 days", "333", "$99/month", "December 1"]);
        for mail in [&nudge, &cap] {
            assert_eq!(links(mail).len(), 2, "one in the text, one in the HTML");
            let ours = "https://billing.example.com/upgrade?token=";
            assert!(links(mail).iter().all(|link| link.starts_with(ours)), "{:?}", links(mail));
        }

        let acme = world.link("acme").await;
        world.subscribe(&acme, "pro_monthly").await;
        world.advance(DAY - MINUTE).await;
        assert_eq!(world.subjects(), [NUDGE, CAP]);
        world.advance(MINUTE).await;
        assert_eq!(world.subjects(), [NUDGE, CAP, UNCAPPED]);
        let upgraded = world.mail.mails().pop().unwrap();
        assert_eq!(upgraded.to, "acme@example.com");
        assert_says(&upgraded, &[
            "Starter",
            "Pro",
            "Run whole folders at once",
            "https://example.com/docs/batch",
            "https://example.com/docs/team",
        ]);
        let usage = "https://billing.example.com/usage?token=";
        assert!(links(&upgraded).iter().all(|link| link.starts_with(usage)));
        assert_eq!(links(&upgraded).len(), 2);
    }

    async fn each_mail_goes_out_once_in_a_period_and_again_in_the_next(db: TestDb) {
        let mut world = World::start(&db).await;
        used(&world, "acme", 160).await;
        for _ in 0..10 {
            world.run("acme").await;
            world.advance(MINUTE).await;
        }
        world.restart().await;
        world.advance(DAY).await;
        assert_eq!(world.subjects(), [NUDGE]);

        world.advance_to("2026-12-01T00:00:00Z").await;
        world.runs("acme", 160).await;
        world.settle().await;
        assert_eq!(world.subjects(), [NUDGE, NUDGE]);
    }

    async fn one_leap_over_80_percent_to_the_cap_tells_of_the_cap_alone(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 200).await;
        world.advance(MINUTE).await;
        assert_eq!(world.subjects(), [CAP]);
        assert_eq!(notices(&world, "acme").await.len(), 1);
    }

    async fn a_nudge_overtaken_by_the_cap_is_dropped(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 160).await;
        world.runs("acme", 40).await;
        world.settle().await;
        assert_eq!(world.subjects(), [CAP]);
        let (state, why) = nudge(&world, "acme").await;
        assert_eq!(state, "dropped");
        assert!(why.contains("cap"), "{why}");
    }

    async fn a_nudge_overtaken_by_an_upgrade_is_dropped(db: TestDb) {
        let mut world = World::start(&db).await;
        world.customer("acme").await;
        let acme = world.link("acme").await;
        world.restart_with(&[("SMTP_URL", ""), ("MAIL_FROM", "")]).await;
        world.runs("acme", 160).await;
        world.subscribe(&acme, "pro_monthly").await;
        world.restart_with(&[]).await;
        world.settle().await;
        assert_eq!(world.subjects().len(), 0);
        let (state, why) = nudge(&world, "acme").await;
        assert_eq!(state, "dropped");
        assert!(why.contains("plan"), "{why}");
    }

    async fn a_nudge_of_a_period_that_is_over_is_dropped(db: TestDb) {
        let mut world = World::start(&db).await;
        used(&world, "acme", 160).await;
        world.restart_with(&[("SMTP_URL", ""), ("MAIL_FROM", "")]).await;
        world.advance_to("2026-12-01T00:00:00Z").await;
        world.restart_with(&[]).await;
        world.settle().await;
        let (state, why) = notice(&world, "acme").await;
        assert_eq!((state.as_str(), world.subjects().len()), ("dropped", 0));
        assert!(why.contains("period"), "{why}");
    }

    async fn a_cap_mail_is_dropped_when_the_cap_was_raised_meanwhile(db: TestDb) {
        let mut world = World::start(&db).await;
        used(&world, "acme", 200).await;
        let raised = EXAMPLE.replace("granted = 200,", "granted = 300,");
        std::fs::write(world.plans_file(), raised).unwrap();
        world.restart().await;
        world.settle().await;
        let (state, why) = notice(&world, "acme").await;
        assert_eq!((state.as_str(), world.subjects().len()), ("dropped", 0));
        assert!(why.contains("raised"), "{why}");
    }

    async fn a_downgrade_before_its_day_is_over_takes_the_upgrade_mail_back(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let acme = world.link("acme").await;
        let subscription = world.subscribe(&acme, "pro_monthly").await;
        world.advance(DAY / 2).await;
        world.change_price(&subscription, "starter_monthly").await;
        world.advance(3 * DAY).await;
        assert_eq!(world.subjects().len(), 0);
        let (state, why) = notice(&world, "acme").await;
        assert_eq!(state, "dropped");
        assert!(why.contains("plan"), "{why}");
    }

    async fn the_upgrade_mail_waits_for_the_configured_delay(db: TestDb) {
        let plans = EXAMPLE.replace("post_upgrade_delay = \"24h\"", "post_upgrade_delay = \"90m\"");
        let world = World::with_plans(&db, &plans).await;
        world.customer("acme").await;
        let acme = world.link("acme").await;
        world.subscribe(&acme, "team_monthly").await;
        world.advance(89 * MINUTE).await;
        assert_eq!(world.subjects().len(), 0);
        world.advance(MINUTE).await;
        assert_eq!(world.subjects(), ["You now have 6,000 AI runs a month."]);
    }

    async fn a_soft_limit_nudges_and_has_no_cap_mail(db: TestDb) {
        assert_eq!(mails_of_a_soft_limit(&db, "[80]").await, [NUDGE]);
    }

    async fn a_soft_limit_nudges_at_all_its_percents(db: TestDb) {
        let all = "You've used 100% of your AI runs this month.";
        assert_eq!(mails_of_a_soft_limit(&db, "[80, 100]").await, [NUDGE, all]);
    }

    async fn a_soft_limit_nudges_beyond_its_number(db: TestDb) {
        let beyond = "You've used 125% of your AI runs this month.";
        assert_eq!(mails_of_a_soft_limit(&db, "[80, 125, 1000]").await, [NUDGE, beyond]);
    }

    async fn a_hard_limit_above_is_told_as_its_number(db: TestDb) {
        let plans = EXAMPLE.replace("enforcement = \"soft\"", "enforcement = \"hard\"");
        let world = World::with_plans(&db, &plans).await;
        world.customer("acme").await;
        let acme = world.link("acme").await;
        world.subscribe(&acme, "pro_monthly").await;
        world.advance(DAY).await;
        assert_eq!(world.subjects(), ["You now have 2,000 AI runs a month."]);
    }

    async fn name_and_percent_come_from_the_plans_file(db: TestDb) {
        let plans = EXAMPLE
            .replace("name = \"AI runs\"", "name = \"Images\"")
            .replace("unit = \"run\"", "unit = \"image\"")
            .replace("granted = 200, enforcement = \"hard\", nudge_at_percent = [80]",
                "granted = 200, enforcement = \"hard\", nudge_at_percent = [75]");
        let world = World::with_plans(&db, &plans).await;
        used(&world, "acme", 149).await;
        world.advance(MINUTE).await;
        assert_eq!(world.subjects().len(), 0);
        world.run("acme").await;
        world.advance(MINUTE).await;
        assert_eq!(world.subjects(), ["You've used 75% of your Images this month."]);
        assert_says(&world.mail.mail(), &["150 Images"]);
    }

    async fn an_own_template_replaces_one_part_of_one_mail(db: TestDb) {
        let mut world = World::start(&db).await;
        let own = tempfile::tempdir().unwrap();
        let subject = own.path().join("mail/usage_nudge/subject.txt");
        std::fs::create_dir_all(subject.parent().unwrap()).unwrap();
        std::fs::write(subject, "{{ plan_name }}: {{ percent }} % of {{ granted }} gone").unwrap();
        let folder = own.path().to_str().unwrap();
        world.restart_with(&[("TOLLGATE_TEMPLATES", folder)]).await;
        used(&world, "acme", 160).await;
        world.settle().await;
        world.runs("acme", 40).await;
        world.settle().await;
        assert_eq!(world.subjects(), ["Starter: 80 % of 200 gone", CAP]);
        assert_says(&world.mail.mails()[0], &["160 AI runs"]);
    }
}

// --- What may go wrong on the way --------------------------------------------------------------

both_databases! {
    async fn a_server_that_is_down_is_tried_at_the_next_tick(db: TestDb) {
        let mut world = World::start(&db).await;
        used(&world, "acme", 160).await;
        // Nobody listens there: the port was free a moment ago.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        world.restart_with(&[("SMTP_URL", &format!("smtp://{free}"))]).await;
        world.run_job(Job::DeliverNotices).await;
        assert_eq!(notice(&world, "acme").await.0, "due");
        world.restart_with(&[]).await;
        tick(&world).await;
        tick(&world).await;
        assert_eq!(world.subjects(), [NUDGE]);
        assert_eq!(notice(&world, "acme").await.0, "sent");
    }

    async fn a_server_that_is_busy_is_tried_at_the_next_tick(db: TestDb) {
        let world = World::start(&db).await;
        for (n, fault) in
            [Fault::Greeting("421 4.3.2 busy"), Fault::Rcpt("450 4.2.1 later"), Fault::DropAtRcpt]
                .into_iter()
                .enumerate()
        {
            let customer = format!("c{n}");
            used(&world, &customer, 160).await;
            world.mail.set_fault(fault);
            tick(&world).await;
            let (state, why) = notice(&world, &customer).await;
            assert_eq!((state.as_str(), world.mail.mails().len()), ("due", n));
            assert!(!why.is_empty() && !why.contains("@example.com"), "{why}");
            world.mail.set_fault(None);
            tick(&world).await;
            assert_eq!(world.mail.mails().len(), n + 1, "at the very next tick after {fault:?}");
            assert_eq!(notice(&world, &customer).await.0, "sent");
        }
    }

    async fn a_server_that_is_down_for_hours_gets_the_mail_once_it_is_back(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 160).await;
        world.mail.set_fault(Fault::Rcpt("450 4.2.1 later"));
        for _ in 0..300 {
            tick(&world).await;
        }
        world.mail.set_fault(None);
        for _ in 0..61 {
            tick(&world).await;
        }
        assert_eq!(world.subjects(), [NUDGE]);
    }

    async fn a_final_no_is_failed_with_its_reason_and_stops_nobody_else(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 160).await;
        world.mail.set_fault(Fault::Rcpt("550 5.1.1 no such mailbox"));
        world.settle().await;
        let (state, why) = notice(&world, "acme").await;
        assert_eq!(state, "failed");
        assert!(why.contains("550") || why.contains("no such mailbox"), "{why}");
        world.mail.set_fault(None);
        used(&world, "globex", 160).await;
        world.advance(DAY).await;
        assert_eq!(world.mail.mail().to, "globex@example.com");
    }

    async fn a_lost_answer_is_unknown_shown_to_support_and_never_sent_again(db: TestDb) {
        let mut world = World::start(&db).await;
        used(&world, "acme", 160).await;
        world.mail.set_fault(Fault::DropAfterContent);
        world.settle().await;
        world.mail.set_fault(None);
        world.advance(DAY).await;
        world.restart().await;
        world.advance(DAY).await;
        assert_eq!(world.subjects(), [NUDGE], "the one whose answer was lost");
        let unknown = world.list("/notices?state=unknown").await;
        assert_eq!(unknown.len(), 1);
        assert_eq!(unknown[0]["customer_id"], "acme");
        assert!(unknown[0]["detail"].as_str().is_some_and(|why| !why.is_empty()));
    }

    async fn a_mail_whose_sender_died_is_unknown_after_half_an_hour(db: TestDb) {
        let mut world = World::start(&db).await;
        used(&world, "acme", 160).await;
        let due = world.app().store.due_notices(world.now(), 10).await.unwrap().remove(0);
        let mut tx = world.app().store.begin().await.unwrap();
        tx.move_notice(&due.notice_id, NoticeState::Due, NoticeState::Sending, None).await.unwrap();
        tx.commit().await.unwrap();
        world.restart().await;
        world.advance(30 * MINUTE).await;
        assert_eq!(notice(&world, "acme").await.0, "sending", "someone may still be at it");
        world.advance(SECOND).await;
        let (state, why) = notice(&world, "acme").await;
        assert_eq!(state, "unknown");
        assert!(why.contains("died"), "{why}");
        world.advance(DAY).await;
        assert_eq!(world.subjects().len(), 0);
    }

    async fn a_customer_without_an_address_fails_with_that_reason(db: TestDb) {
        let world = World::start(&db).await;
        world.call("PUT", "/v1/customers/acme", &json!({})).await.ok();
        world.runs("acme", 160).await;
        used(&world, "globex", 160).await;
        world.settle().await;
        let (state, why) = notice(&world, "acme").await;
        assert_eq!(state, "failed");
        assert_eq!(why, "the customer has no e-mail address");
        assert_eq!(world.mail.mail().to, "globex@example.com");
    }

    async fn without_a_mail_server_notices_wait(db: TestDb) {
        let mut world = World::start(&db).await;
        world.restart_with(&[("SMTP_URL", ""), ("MAIL_FROM", "")]).await;
        used(&world, "acme", 160).await;
        world.advance(3 * DAY).await;
        assert_eq!(notice(&world, "acme").await.0, "due");
        world.restart_with(&[]).await;
        world.settle().await;
        assert_eq!(world.subjects(), [NUDGE]);
    }

    async fn mail_can_go_into_a_directory(db: TestDb) {
        let mut world = World::start(&db).await;
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        world.restart_with(&[("SMTP_URL", &url)]).await;
        used(&world, "acme", 160).await;
        world.advance(DAY).await;
        let files = std::fs::read_dir(folder.path()).unwrap();
        let files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].extension().unwrap(), "eml");
        let mail = std::fs::read(&files[0]).unwrap();
        let mail = mail_parser::MessageParser::default().parse(&mail).unwrap();
        assert_eq!(mail.subject(), Some(NUDGE));
        assert_eq!(notice(&world, "acme").await.0, "sent");
    }

    async fn two_rounds_of_sending_at_once_send_each_mail_once(db: TestDb) {
        let world = World::start(&db).await;
        for n in 0..12 {
            used(&world, &format!("c{n}"), 160).await;
        }
        let round = || Job::DeliverNotices.step(world.app());
        let (a, b, c) = tokio::join!(round(), round(), round());
        assert!(a.is_ok() && b.is_ok() && c.is_ok());
        world.settle().await;
        let mut to: Vec<_> = world.mail.mails().into_iter().map(|mail| mail.to).collect();
        to.sort();
        let mut expected: Vec<_> = (0..12).map(|n| format!("c{n}@example.com")).collect();
        expected.sort();
        assert_eq!(to, expected);
    }

    async fn while_one_sender_hangs_another_sends_the_rest_and_no_mail_twice(db: TestDb) {
        let world = World::start(&db).await;
        for n in 0..5 {
            used(&world, &format!("c{n}"), 160).await;
        }
        // The first mail's server falls silent, long enough for its job's lease to run out.
        world.mail.set_fault(Fault::SilentAtRcpt);
        let app = world.app().clone();
        let hanging = tokio::spawn(async move { Job::DeliverNotices.step(&app).await.is_ok() });
        while world.mail.silent() == 0 {
            world.list("/notices?state=sending").await;
        }
        world.mail.set_fault(None);
        world.clock.advance(2 * MINUTE).unwrap();
        world.run_job(Job::DeliverNotices).await;
        assert_eq!(world.mail.mails().len(), 4);

        // It dies of it; whether its mail went out nobody can tell.
        hanging.abort();
        world.advance(31 * MINUTE).await;
        world.advance(DAY).await;
        assert_eq!(world.mail.mails().len(), 4);
        assert_eq!(world.list("/notices?state=unknown").await.len(), 1);
        assert_eq!(world.list("/notices?state=sent").await.len(), 4);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_that_look_at_once_send_each_mail_once() {
    let db = TestDb::postgres().await;
    let world = World::start(&db).await;
    let other = world.replica(world.clock.clone()).await;
    for n in 0..12 {
        used(&world, &format!("c{n}"), 160).await;
    }
    let (here, there) =
        tokio::join!(Job::DeliverNotices.step(world.app()), Job::DeliverNotices.step(&other.app));
    assert!(here.is_ok() && there.is_ok());
    world.settle().await;
    let mut to: Vec<_> = world.mail.mails().into_iter().map(|mail| mail.to).collect();
    to.sort();
    to.dedup();
    assert_eq!((to.len(), world.mail.mails().len()), (12, 12));
    other.stop().await.unwrap();
}

//! The command line as operators and scripts meet it: exit codes, what is said and where.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};
use tollgate::clock::Clock;

use crate::harness::postgres::TestDb;
use crate::harness::process::{Api, Finished, Machine, wait_for};
use crate::harness::world::API_KEY;

const BAD_CONFIGURATION: Option<i32> = Some(78);
const USAGE: Option<i32> = Some(2);

/// Ready to serve on a new SQLite file.
fn machine() -> (TestDb, Machine) {
    let db = TestDb::sqlite();
    let machine = Machine::on(&db);
    (db, machine)
}

/// Whether a key opens the API.
async fn opens(api: &Api, key: &str) -> bool {
    let body = json!({"customer_id": "nobody", "feature_id": "ai_runs"});
    let reply = api.call_as(key, "POST", "/v1/check", &body).await.expect("the daemon answers");
    assert!([401, 404].contains(&reply.status), "{reply:?}");
    reply.status == 404
}

// --- help and usage ----------------------------------------------------------------------------

#[tokio::test]
async fn help_lists_the_commands_and_usage_errors_are_exit_2() {
    let machine = Machine::bare();
    let help = machine.run(&["--help"]).await;
    assert_eq!(help.code, Some(0));
    for command in
        ["serve", "sandbox", "migrate", "keys", "report", "sync", "recount", "stripe", "doctor"]
    {
        let is_listed = |line: &str| line.trim_start().starts_with(command);
        assert!(help.stdout.lines().any(is_listed), "{command}: {}", help.stdout);
    }
    let version = machine.run(&["--version"]).await;
    assert_eq!(version.stdout, format!("tollgate {}\n", env!("CARGO_PKG_VERSION")));
    for wrong in [&["serv"][..], &["serve", "--fast"], &["keys"], &["keys", "revoke"], &[]] {
        let refused = machine.run(wrong).await;
        assert_eq!(refused.code, USAGE, "{wrong:?}: {refused:?}");
        assert!(refused.stdout.is_empty() && refused.stderr.contains("Usage:"), "{refused:?}");
    }
}

// --- configuration -----------------------------------------------------------------------------

#[tokio::test]
async fn every_mistake_in_the_environment_is_named_at_once_and_none_repeats_its_value() {
    let mut machine = Machine::bare();
    machine.write(".env", "# mine\nSTRIPE_SECRET_KEY=pk_live_canary\nTOLLGATE_RATE_LIMIT=canary\n");
    machine.set("DATABASE_URL", "mysql://root:canary@db");
    machine.set("TOLLGATE_LISTEN", "canary");
    machine.set("TOLLGATE_LISTN", "canary");
    machine.set("SMTP_URL", "smtp://mail.example.com");
    machine.set("TOLLGATE_API_KEY_FILE", "/no/such/canary");
    let mut named = [
        "TOLLGATE_LISTN: is not a known variable; did you mean TOLLGATE_LISTEN?",
        "DATABASE_URL: must be",
        "TOLLGATE_LISTEN: must be",
        "TOLLGATE_API_KEY_FILE: must name a file that can be read",
        ".env:2: STRIPE_SECRET_KEY: must be",
        ".env:3: TOLLGATE_RATE_LIMIT: must be",
        "MAIL_FROM: is needed where SMTP_URL is set",
    ];
    named.sort_unstable();
    for command in [&["serve"][..], &["migrate"], &["keys", "list"]] {
        let refused = machine.run(command).await;
        assert_eq!(refused.code, BAD_CONFIGURATION, "{refused:?}");
        let mut lines: Vec<&str> = refused.stderr.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines.len(), named.len(), "{lines:#?}");
        for (line, start) in lines.iter().zip(named) {
            assert!(line.starts_with(start), "{line}\nis not\n{start}");
        }
        assert!(!refused.stderr.contains("canary") && refused.stdout.is_empty(), "{refused:?}");
    }
    let doctor = machine.run(&["doctor"]).await;
    assert_eq!(doctor.code, Some(1), "{doctor:?}");
    assert_eq!(doctor.stdout.lines().filter(|l| l.starts_with("FAULT")).count(), named.len());
}

#[tokio::test]
async fn mistakes_in_the_files_it_names_are_reported_together() {
    let (_db, mut machine) = machine();
    let plans = include_str!("../../plans.example.toml");
    machine.write("plans.toml", &plans.replace("rank = 2", "rnk = 2").replace("\"5m\"", "\"5 m\""));
    std::fs::create_dir_all(machine.path("templates/mail/usage_nudge")).unwrap();
    machine.write("templates/mail/usage_nudge/subject.txt", "{{ customer.nmae }}");
    machine.set("TOLLGATE_TEMPLATES", "templates");
    machine.set("SMTP_URL", "smtp://me:canary@mail.example.com");
    machine.set("MAIL_FROM", "billing@example.com");
    let refused = machine.run(&["serve"]).await;
    assert_eq!(refused.code, BAD_CONFIGURATION, "{refused:?}");
    for (key, line) in
        [("rnk", line_of(plans, "rank = 2")), ("metering.window", line_of(plans, "\"5m\""))]
    {
        let start = format!("plans.toml:{line}: ");
        let found = refused.stderr.lines().any(|l| l.starts_with(&start) && l.contains(key));
        assert!(found, "{start}… {key}\n{}", refused.stderr);
    }
    for variable in ["TOLLGATE_TEMPLATES: ", "SMTP_URL: sends the password unencrypted"] {
        assert!(refused.stderr.contains(variable), "{variable}\n{}", refused.stderr);
    }
    assert!(!refused.stderr.contains("canary"), "{}", refused.stderr);
}

fn line_of(text: &str, part: &str) -> usize {
    text.lines().position(|line| line.contains(part)).expect("the example has it") + 1
}

#[tokio::test]
async fn a_missing_plans_file_is_told_where_to_start_from() {
    let (_db, mut machine) = machine();
    machine.set("TOLLGATE_PLANS", "elsewhere.toml");
    let refused = machine.run(&["serve"]).await;
    assert_eq!(refused.code, BAD_CONFIGURATION, "{refused:?}");
    let line = refused.stderr.lines().last().unwrap_or_default();
    assert!(line.starts_with("TOLLGATE_PLANS: elsewhere.toml cannot be read"), "{line}");
    assert!(line.contains("plans.example.toml"), "{line}");
}

#[tokio::test]
async fn values_come_from_the_environment_then_a_dotenv_file_and_secrets_from_files() {
    let (_db, mut machine) = machine();
    machine.unset("TOLLGATE_API_KEY");
    machine.write("key", "key-from-a-file-0123\n");
    machine.write(
        ".env",
        "TOLLGATE_API_KEY_FILE=key\nTOLLGATE_ADMIN_TOKEN=\"the environment's wins\"\n",
    );
    let daemon = machine.serve().await;
    assert!(opens(&daemon.api, "key-from-a-file-0123").await);
    let jobs = daemon.api.call_as(
        crate::harness::world::ADMIN_TOKEN,
        "GET",
        "/admin/api/v1/jobs",
        &Value::Null,
    );
    assert_eq!(jobs.await.unwrap().status, 200);
    daemon.stop().await;

    machine.set("TOLLGATE_API_KEY", "key-of-the-environment");
    machine.set("TOLLGATE_API_KEY_FILE", "key");
    let refused = machine.run(&["serve"]).await;
    assert_eq!(refused.code, BAD_CONFIGURATION, "{refused:?}");
    assert!(refused.stderr.contains("must not be set beside TOLLGATE_API_KEY"), "{refused:?}");
}

#[tokio::test]
async fn without_a_database_url_a_private_file_is_created() {
    let (_db, mut machine) = machine();
    machine.unset("DATABASE_URL");
    let daemon = machine.serve().await;
    daemon.api.ok("PUT", "/v1/customers/acme", &json!({"email": "ada@acme.example"})).await;
    for file in ["tollgate.db", "tollgate.db-wal"] {
        let mode = machine.path(file).metadata().expect("the file is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_file_whose_name_needs_encoding_in_a_url_is_the_file_meant() {
    let (_db, mut machine) = machine();
    machine.set("DATABASE_URL", "sqlite://my%20usage.db");
    let daemon = machine.serve().await;
    assert!(machine.path("my usage.db").exists() && machine.path("my usage.db.lock").exists());
    daemon.stop().await;
}

#[tokio::test]
async fn a_signal_while_it_still_waits_for_its_database_ends_it_too() {
    let (_db, mut machine) = machine();
    // Nobody listens on port 1, and a database that is not up yet is waited for.
    machine.set("DATABASE_URL", "postgres://127.0.0.1:1/tollgate");
    let process = machine.spawn(&["serve"]);
    wait_for("it has begun to start", async || {
        process.stderr().contains("STRIPE_SECRET_KEY is not set").then_some(())
    })
    .await;
    process.signal("TERM");
    assert_eq!(process.finish().await.code, Some(0));
}

// --- keys and migrate --------------------------------------------------------------------------

both_databases! {
    async fn a_key_opens_the_gate_until_it_is_revoked(db: TestDb) {
        let machine = Machine::on(&db);
        let daemon = machine.serve().await;
        let (key_id, key) = create_key(&machine, "staging").await;
        assert!(opens(&daemon.api, &key).await);
        let (_, other_key) = create_key(&machine, "production").await;

        let listed = machine.run(&["keys", "list"]).await.stdout;
        assert!(listed.contains(&key_id) && listed.contains("staging"), "{listed}");
        assert!(!listed.contains(&key), "{listed}");

        let revoked = machine.run(&["keys", "revoke", &key_id]).await;
        assert_eq!(revoked.code, Some(0), "{revoked:?}");
        let began = Clock::system().now();
        wait_for("the key is refused", async || (!opens(&daemon.api, &key).await).then_some(()))
            .await;
        let took = Clock::system().now().since(began);
        assert!(took.as_secs() < 7, "a revoked key was good for {took:?}");
        assert!(opens(&daemon.api, &other_key).await && opens(&daemon.api, API_KEY).await);

        let again = machine.run(&["keys", "revoke", &key_id]).await;
        assert_eq!(again.code, Some(1), "{again:?}");
        assert!(again.stderr.contains("there is no live key"), "{again:?}");
        let listed: Value = from_json(&machine.run(&["keys", "list", "--json"]).await);
        let revoked: Vec<bool> =
            listed.as_array().unwrap().iter().map(|key| key["revoked_at"].is_string()).collect();
        assert_eq!(revoked, [true, false], "{listed}");
        daemon.stop().await;
    }

    async fn migrating_twice_is_migrating_once_and_it_serves_after(db: TestDb) {
        let machine = Machine::on(&db);
        for _ in 0..2 {
            let migrated = machine.run(&["migrate"]).await;
            assert_eq!(migrated.code, Some(0), "{migrated:?}");
            assert_eq!(migrated.stdout, "the schema is up to date\n");
        }
        let daemon = machine.serve().await;
        assert_eq!(machine.run(&["migrate"]).await.code, Some(0));
        daemon.stop().await;
    }
}

/// Answers the new key's id and the key.
async fn create_key(machine: &Machine, name: &str) -> (String, String) {
    let created = from_json(&machine.run(&["keys", "create", "--name", name, "--json"]).await);
    assert_eq!(created["name"], name);
    let text = |field: &str| created[field].as_str().expect("text").to_owned();
    (text("key_id"), text("key"))
}

#[track_caller]
fn from_json(finished: &Finished) -> Value {
    assert_eq!(finished.code, Some(0), "{finished:?}");
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:?}"))
}

#[tokio::test]
async fn a_key_for_people_is_printed_on_a_line_of_its_own() {
    let (_db, machine) = machine();
    let created = machine.run(&["keys", "create"]).await;
    let lines: Vec<&str> = created.stdout.lines().collect();
    assert!(lines.len() == 2 && lines[0].ends_with("  default"), "{created:?}");
    assert!(lines[1].starts_with("tgk_") && !lines[1].contains(' '), "{created:?}");
    let daemon = machine.serve().await;
    assert!(opens(&daemon.api, lines[1]).await);
    daemon.stop().await;
}

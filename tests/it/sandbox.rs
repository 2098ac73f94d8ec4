//! `tollgate sandbox` from the outside: what it prints, what it leaves running, what it leaves
//! behind.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tollgate::clock::Timestamp;

use crate::harness::process::{Api, Machine, Process, wait_for};

/// The story, as far as its wording matters to those who read it.
const TIMELINE: [&str; 12] = [
    "subscribes to Starter",
    "160 runs",
    "mail: You've used 80% of your AI runs this month.",
    "run 201 is denied: limit_reached",
    "Pro gives you unlimited runs at $99/month.",
    "mail: You've used all of your AI runs this month.",
    "upgrades to Pro",
    "the gate is open again",
    "mail: Your AI runs are now uncapped.",
    "Stripe has 201 AI runs of 201",
    "sync finds no difference",
    "Every step was seen to happen.",
];

/// A machine whose folder for temporary files is its own, to see what is left there.
fn machine() -> Machine {
    let mut machine = Machine::bare();
    std::fs::create_dir(machine.path("tmp")).unwrap();
    machine.set("TMPDIR", &machine.path("tmp").display().to_string());
    machine
}

#[track_caller]
fn assert_nothing_left(machine: &Machine) {
    let left: Vec<_> = std::fs::read_dir(machine.path("tmp")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The addresses printed, by name.
fn addresses(stdout: &str) -> BTreeMap<&str, &str> {
    let lines = stdout.lines().take_while(|line| !line.is_empty());
    lines.map(|line| line.split_once(' ').expect("name  URL")).map(|(n, u)| (n, u.trim())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_story_is_told_to_its_end_and_nothing_is_left() {
    let machine = machine();
    let told = machine.run(&["sandbox", "--exit", "--any-port"]).await;
    assert_eq!(told.code, Some(0), "{told:?}");
    assert_eq!(told.stderr, "");
    let names: Vec<&str> = addresses(&told.stdout).into_keys().collect();
    assert_eq!(names, ["admin", "api", "clock", "mail", "stripe"]);
    let mut rest = told.stdout.as_str();
    for line in TIMELINE {
        let after = rest.split_once(line).unwrap_or_else(|| panic!("{line}: {}", told.stdout));
        rest = after.1;
    }
    assert_nothing_left(&machine);
}

/// Waits for a word on standard output.
async fn says(process: &Process, words: &str) -> String {
    wait_for(words, async || Some(process.stdout()).filter(|said| said.contains(words))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_stays_up_for_whoever_wants_to_try() {
    let machine = machine();
    let process = machine.spawn(&["sandbox", "--any-port"]);
    let said = says(&process, "It stays up").await;
    let said = if said.contains("/v1/subscriptions") {
        said
    } else {
        says(&process, "/v1/subscriptions").await
    };
    let at = addresses(&said);
    let visitor = Visitor { api_key: bearer(&said, "/v1/check"), admin: bearer(&said, "/sync") };
    visitor.tries_the_gate(at["api"]).await;
    visitor.moves_the_clock(at["clock"]).await;
    visitor.reads_mail(at["mail"]).await;
    visitor.looks_into_stripe(at["stripe"], &bearer(&said, "/v1/subscriptions")).await;
    visitor.asks_support(at["admin"]).await;
    process.signal("TERM");
    let finished = process.finish().await;
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{finished:?}");
    assert_nothing_left(&machine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_story_cut_short_leaves_nothing_either_and_is_no_success() {
    for (args, code) in
        [(&["sandbox", "--any-port"][..], 0), (&["sandbox", "--any-port", "--exit"], 1)]
    {
        let machine = machine();
        let process = machine.spawn(args);
        says(&process, "subscribes to Starter").await;
        process.signal("TERM");
        let finished = process.finish().await;
        assert_eq!(finished.code, Some(code), "{finished:?}");
        assert!(!finished.stdout.contains("Every step"), "{finished:?}");
        assert_nothing_left(&machine);
    }
}

/// The key in the invitation's example for this path, so that what is printed is what works.
fn bearer(said: &str, path: &str) -> String {
    let (_, after) = said.split_once(path).expect("an example");
    let (_, key) = after.split_once("Bearer ").expect("a key");
    key.split_once('\'').expect("quoted").0.to_owned()
}

struct Visitor {
    api_key: String,
    admin: String,
}

/// Calls any URL with any key; the body is sent as it is.
async fn curl(key: &str, method: &str, url: &str, body: &Value) -> (u16, Value) {
    let (address, path) = url.strip_prefix("http://").and_then(|u| u.split_once('/')).expect(url);
    let path = format!("/{path}");
    let reply = Api::at(address).call_as(key, method, &path, body).await.expect("it answers");
    (reply.status, reply.body)
}

impl Visitor {
    async fn tries_the_gate(&self, api: &str) {
        let url = format!("{api}/v1/check");
        let body = json!({"customer_id": "acme", "feature_id": "ai_runs", "send_event": true});
        let (status, run) = curl(&self.api_key, "POST", &url, &body).await;
        assert_eq!((status, &run["allowed"]), (200, &json!(true)), "{run}");
        let body = json!({
            "customer_id": "new", "feature_id": "ai_runs", "required_balance": 201,
            "customer_data": {"email": "new@example.com"},
        });
        let (_, denied) = curl(&self.api_key, "POST", &url, &body).await;
        assert_eq!(denied["reason"], "limit_reached", "{denied}");
        let link = denied["upgrade"]["url"].as_str().expect("a link");
        assert!(link.starts_with(api), "{link} leads away from {api}");
    }

    async fn moves_the_clock(&self, clock: &str) {
        let now = |body: Value| body["now"].as_str().unwrap().parse::<Timestamp>().unwrap();
        let before = now(curl("", "GET", clock, &Value::Null).await.1);
        let after = now(curl("", "POST", clock, &json!({"advance": "1d"})).await.1);
        let passed = after.since(before).as_secs();
        assert!((86_400..86_460).contains(&passed), "{passed}");
        for wrong in [json!({"advance": "-1d"}), json!({"advance": "367d"}), json!({}), json!("1d")]
        {
            assert_eq!(curl("", "POST", clock, &wrong).await.0, 422, "{wrong}");
        }
    }

    async fn reads_mail(&self, mail: &str) {
        let (_, list) = curl("", "GET", mail, &Value::Null).await;
        let mails = list["data"].as_array().expect("a list");
        let subjects: Vec<_> = mails.iter().map(|mail| mail["subject"].as_str().unwrap()).collect();
        assert_eq!(
            subjects,
            [
                "You've used 80% of your AI runs this month.",
                "You've used all of your AI runs this month.",
                "Your AI runs are now uncapped.",
            ]
        );
        let file = mails[0]["file"].as_str().expect("a file");
        let (_, raw) = curl("", "GET", &format!("{mail}/{file}"), &Value::Null).await;
        assert!(raw.as_str().is_some_and(|raw| raw.contains("To: ")), "{raw}");
        let outside = format!("{mail}/..%2Fplans.toml");
        assert_eq!(curl("", "GET", &outside, &Value::Null).await.0, 404);
    }

    async fn looks_into_stripe(&self, stripe: &str, key: &str) {
        let url = format!("{stripe}/v1/subscriptions");
        let (status, list) = curl(key, "GET", &url, &Value::Null).await;
        assert_eq!((status, list["data"].as_array().map(Vec::len)), (200, Some(1)), "{list}");
        assert_eq!(curl("sk_test_wrong", "GET", &url, &Value::Null).await.0, 401);
    }

    async fn asks_support(&self, admin: &str) {
        let url = format!("{admin}/customers/acme/sync?dry_run=true");
        // The daemon may be at the same: it says so, and support asks once more.
        let (status, report) = wait_for("a sync", async || {
            Some(curl(&self.admin, "POST", &url, &Value::Null).await)
                .filter(|(code, _)| *code != 503)
        })
        .await;
        assert_eq!((status, &report["dry_run"]), (200, &json!(true)), "{report}");
    }
}

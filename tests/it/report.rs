//! The pricing report as founders and scripts meet it: the command as a process of its own, and
//! the daemon's answers.

use serde_json::{Value, json};

use crate::harness::process::{Finished, Machine};
use crate::harness::world::{ADMIN_TOKEN, API_KEY, World};

const TIERS: &str = include_str!("../../examples/three-tiers.toml");
const SCHEMA: &str = include_str!("../../docs/pricing-report.schema.json");
const HEADER: &str = "customer,timestamp,model,input_tokens,output_tokens,plan\n";

/// A machine with nothing but the example's plans: no database, no account, no configuration.
fn founder() -> Machine {
    let machine = Machine::bare();
    machine.write("plans.toml", TIERS);
    machine
}

/// So many runs of a customer, one every six minutes, each at $0.0125.
fn runs(customer: &str, plan: &str, count: usize) -> String {
    let row = |n: usize| {
        let (day, hour, minute) = (1 + n / 240, n / 10 % 24, n % 10 * 6);
        format!(
            "{customer},2026-11-{day:02}T{hour:02}:{minute:02}:00Z,example-model,3000,500,{plan}\n"
        )
    };
    (0..count).map(row).collect()
}

async fn pricing(machine: &Machine, options: &[&str]) -> Finished {
    let command = [&["report", "pricing", "--csv", "usage.csv"], options].concat();
    machine.run(&command).await
}

fn json_of(finished: &Finished) -> Value {
    assert_eq!(finished.code, Some(0), "{finished:?}");
    serde_json::from_str(&finished.stdout).expect("JSON on standard output")
}

fn margin(report: &Value, plan: usize, at: &str) -> i64 {
    let margins = report["plans"][plan]["margins"].as_array().expect("margins");
    let row = margins.iter().find(|row| row["at"] == at).expect("such a margin");
    row["margin_basis_points"].as_i64().expect("a margin")
}

#[tokio::test]
async fn the_three_tiers_from_a_file_leave_what_their_comment_says() {
    let machine = founder();
    let usage = [runs("a", "starter", 200), runs("b", "pro", 1500), runs("c", "team", 6000)];
    machine.write("usage.csv", &(HEADER.to_owned() + &usage.concat()));
    let report = json_of(&pricing(&machine, &["--json"]).await);
    assert_eq!(margin(&report, 0, "cap"), 8103);
    assert_eq!(margin(&report, 1, "p50"), 7601);
    assert_eq!(margin(&report, 1, "cap"), 6970);
    assert_eq!(margin(&report, 2, "cap"), 7870);
    assert_eq!(report["totals"]["inference_cost_usd"], "96.25");

    let table = pricing(&machine, &[]).await;
    let starter = table.stdout.lines().find(|line| line.trim_start().starts_with("Starter   $29"));
    assert!(starter.is_some_and(|line| line.contains("81.0 %")), "{}", table.stdout);
}

#[tokio::test]
async fn the_json_is_as_its_schema_says() {
    let machine = founder();
    machine.write("changed.toml", &TIERS.replace("granted = 200,", "granted = 100,"));
    machine.write("everybody.csv", "customer,plan\na,starter\nidle,pro\n");
    let unknown = "a,2026-11-20T00:00:00Z,gpt-9,1,1,starter\n";
    machine.write("usage.csv", &(HEADER.to_owned() + &runs("a", "starter", 150) + unknown));
    let options = ["--json", "--against", "changed.toml", "--customers", "everybody.csv"];
    let report = json_of(&pricing(&machine, &options).await);
    let schema: Value = serde_json::from_str(SCHEMA).expect("the schema is JSON");
    assert_eq!(unlike(&schema, &schema, &report, "report"), Vec::<String>::new());

    assert_eq!(report["unpriced"], json!({"runs": 1, "models": [{"model": "gpt-9", "runs": 1}]}));
    assert_eq!(report["all"]["zero_usage_customers"], 1);
    assert_eq!(report["today"]["gated_customers"], 0);
    assert_eq!(report["changed"]["gated"][0]["at"], "2026-11-01T10:00:00Z");
    let mut other = report;
    other["surprise"] = json!(1);
    other["all"]["customers"] = json!("many");
    assert_eq!(unlike(&schema, &schema, &other, "report").len(), 2);
}

/// Where a value is not what the schema says: types, and exactly the properties it names.
fn unlike(root: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    if let Some(name) = schema["$ref"].as_str().and_then(|r| r.strip_prefix("#/$defs/")) {
        return unlike(root, &root["$defs"][name], value, at);
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        let fits = choices.iter().any(|choice| unlike(root, choice, value, at).is_empty());
        return if fits { Vec::new() } else { vec![format!("{at} fits no choice")] };
    }
    let is = |kind: &str| match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("the test does not know the type {other}"),
    };
    let fits = match &schema["type"] {
        Value::String(kind) => is(kind),
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).any(is),
        other => panic!("{at} has no type in the schema: {other}"),
    };
    if !fits {
        return vec![format!("{at} is not {}", schema["type"])];
    }
    let mut found = Vec::new();
    for (index, member) in value.as_array().into_iter().flatten().enumerate() {
        found.extend(unlike(root, &schema["items"], member, &format!("{at}[{index}]")));
    }
    if let (Some(fields), Some(known)) = (value.as_object(), schema["properties"].as_object()) {
        for name in fields.keys().filter(|name| !known.contains_key(*name)) {
            found.push(format!("{at}.{name} is not in the schema"));
        }
        for (name, schema) in known {
            match fields.get(name) {
                Some(value) => found.extend(unlike(root, schema, value, &format!("{at}.{name}"))),
                None => found.push(format!("{at}.{name} is missing")),
            }
        }
    }
    found
}

#[tokio::test]
async fn a_bad_line_stops_the_reading_and_is_named() {
    let machine = founder();
    let good = "a,2026-11-01T00:00:00Z,example-model,1,1,starter\n";
    for (bad, wanted) in [
        ("a,yesterday,m,1,1,starter", "timestamp must be a time"),
        ("a,2026-11-01T00:00:00Z,m,one,1,starter", "input_tokens must be an integer"),
        ("a,2026-11-01T00:00:00Z,m,1,-1,starter", "output_tokens must be an integer"),
        ("a,2026-11-01T00:00:00Z,m,1,1,gold", "plan must be the id of a plan"),
        (",2026-11-01T00:00:00Z,m,1,1,starter", "customer must be 1 to 128 bytes"),
        ("a,2026-11-01T00:00:00Z,m,1", "has 4 fields where the header has 6"),
    ] {
        machine.write("usage.csv", &format!("{HEADER}{good}{bad}\n{good}"));
        let stopped = pricing(&machine, &["--json"]).await;
        assert_eq!((stopped.code, stopped.stdout.as_str()), (Some(1), ""), "{stopped:?}");
        let named = format!("usage.csv:3: {wanted}");
        assert!(stopped.stderr.contains(&named), "{named}: {}", stopped.stderr);

        let skipped = pricing(&machine, &["--json", "--skip-bad"]).await;
        assert_eq!(json_of(&skipped)["all"]["units"], 2);
        let told = skipped.stderr.contains(&named) && skipped.stderr.contains("1 of them left out");
        assert!(told, "{}", skipped.stderr);
    }
}

#[tokio::test]
async fn columns_go_by_any_name_and_a_missing_one_is_named() {
    let machine = founder();
    let header = "when,who,llm,in,cached,out\n";
    machine.write("usage.csv", &format!("{header}1793491200,a,example-model,3000,0,500\n"));
    let missing = pricing(&machine, &["--column", "customer=who"]).await;
    assert_eq!(missing.code, Some(1));
    let told = "no column \"timestamp\" for timestamp; it has when, who, llm";
    assert!(missing.stderr.contains(told), "{}", missing.stderr);
    let names = [
        "customer=who",
        "timestamp=when",
        "model=llm",
        "input_tokens=in",
        "output_tokens=out",
        "cached_input_tokens=cached",
    ];
    let options: Vec<_> = names.into_iter().flat_map(|name| ["--column", name]).collect();
    let report = json_of(&pricing(&machine, &[&options[..], &["--json"]].concat()).await);
    assert_eq!(report["totals"]["inference_cost_usd"], "0.0125");
    let unknown = pricing(&machine, &["--column", "price=who"]).await;
    assert_eq!(unknown.code, Some(2), "{unknown:?}");
}

#[tokio::test]
async fn the_page_stands_alone_and_escapes_what_it_is_given() {
    let machine = founder();
    machine.write("plans.toml", &TIERS.replace("\"Starter\"", "\"<b>Starter</b>\""));
    let usage = runs("<i>a</i>", "starter", 250) + &runs("b", "pro", 100);
    machine.write("usage.csv", &(HEADER.to_owned() + &usage));
    let drawn = pricing(&machine, &["--html", "page.html"]).await;
    assert_eq!((drawn.code, drawn.stdout.as_str()), (Some(0), ""), "{drawn:?}");
    let page = std::fs::read_to_string(machine.path("page.html")).expect("the page");
    // Two charts per plan that somebody is on, and the margins.
    assert_eq!(page.matches("<svg ").count(), 5);
    for there in ["&lt;i&gt;a&lt;/i&gt;", "cap 200", "price $29.00", "prefers-color-scheme: dark"] {
        assert!(page.contains(there), "{there}");
    }
    for absent in ["<i>a", "<b>Starter", "<script", "http:", "https:", "\"#0"] {
        assert!(!page.replace("http://www.w3.org/2000/svg", "").contains(absent), "{absent}");
    }
}

#[tokio::test]
async fn the_example_is_the_same_file_each_time_and_reads_whole() {
    let machine = founder();
    machine.write("plans.toml", include_str!("../../plans.example.toml"));
    let command = ["report", "example-csv", "--rows", "20000"];
    let (first, second) = (machine.run(&command).await, machine.run(&command).await);
    assert_eq!(first.stdout, second.stdout);
    machine.write("usage.csv", &first.stdout);
    let report = json_of(&pricing(&machine, &["--json"]).await);
    assert_eq!((&report["all"]["units"], &report["months"]), (&json!(20_000), &json!(1)));
}

#[tokio::test]
async fn what_cannot_be_reported_on_is_said() {
    let machine = founder();
    machine.write("usage.csv", HEADER);
    let empty = pricing(&machine, &[]).await;
    assert_eq!((empty.code, empty.stderr.contains("no runs in the period")), (Some(1), true));
    machine.write("plans.toml", &TIERS.replacen("\"usd\"", "\"eur\"", 1));
    let euros = pricing(&machine, &[]).await;
    assert_eq!(euros.code, Some(78), "{euros:?}");
    assert!(euros.stderr.contains("plans.starter.price.currency: the report"), "{euros:?}");
    let absent = pricing(&machine, &["--plans", "nowhere.toml"]).await;
    assert_eq!(absent.code, Some(78), "{absent:?}");
}

// --- from the daemon's own database ------------------------------------------------------------

/// A run of 2,000 tokens afresh, 1,000 cached and 500 written: $0.0046 at the example's prices.
async fn priced_run(world: &World, customer: &str, model: &str) {
    let tokens = json!({"model": model, "input_tokens": 3000, "cached_input_tokens": 1000,
                        "output_tokens": 500});
    let body = json!({"customer_id": customer, "feature_id": "ai_runs", "send_event": true,
                      "properties": tokens});
    assert_eq!(world.call("POST", "/v1/check", &body).await.ok()["allowed"], true);
}

const REPORT: &str = "/admin/api/v1/report/pricing";

both_databases! {
    async fn runs_are_priced_as_they_are_recorded_and_reported(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("idle").await;
        world.customer("acme").await;
        for model in ["claude-haiku", "claude-haiku", "gpt-9"] {
            priced_run(&world, "acme", model).await;
        }
        world.run("acme").await;
        let report = world.call_as(ADMIN_TOKEN, "GET", REPORT, &Value::Null).await.ok();
        assert_eq!((&report["from"], &report["to"]), (&json!("2026-10-02T00:00:00Z"), &json!("2026-11-02T00:00:00Z")));
        assert_eq!((&report["months"], &report["all"]["customers"]), (&json!(1), &json!(2)));
        assert_eq!(report["all"]["zero_usage_customers"], 1);
        assert_eq!(report["totals"]["inference_cost_usd"], "0.0092");
        assert_eq!(report["all"]["cost_per_unit_usd"], "0.0046");
        let unpriced = json!({"runs": 2, "models": [{"model": "", "runs": 1}, {"model": "gpt-9", "runs": 1}]});
        assert_eq!(report["unpriced"], unpriced);
        let schema: Value = serde_json::from_str(SCHEMA).expect("the schema is JSON");
        assert_eq!(unlike(&schema, &schema, &report, "report"), Vec::<String>::new());

        let page = world.http.get(world.url("/admin/report/pricing")).bearer_auth(ADMIN_TOKEN);
        let page = page.send().await.expect("the daemon answers");
        assert!(page.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
        let page = page.text().await.expect("text");
        assert!(page.contains("<svg ") && page.contains("gpt-9 (1)"), "{page}");
    }

    async fn the_command_reads_the_daemons_database_too(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        world.runs("acme", 150).await;
        priced_run(&world, "acme", "claude-haiku").await;
        let machine = Machine::on(&db);
        let plans = include_str!("../../plans.example.toml");
        machine.write("changed.toml", &plans.replace("granted = 200,", "granted = 100,"));
        let span = ["report", "pricing", "--json", "--from", "2026-11-01", "--to", "2026-12-01"];
        let report = json_of(&machine.run(&[&span[..], &["--against", "changed.toml"]].concat()).await);
        assert_eq!(report["all"]["units"], 151);
        assert_eq!(report["today"]["gated_customers"], 0);
        assert_eq!(report["changed"]["gated"][0]["customer_id"], "acme");
        assert_eq!(report["totals"]["inference_cost_usd"], "0.0046");
    }

    async fn the_report_is_the_founders_alone_and_its_questions_are_checked(db: TestDb) {
        let world = World::start(&db).await;
        for path in [REPORT, "/admin/report/pricing"] {
            let as_product = world.call_as(API_KEY, "GET", path, &Value::Null).await;
            let as_nobody = world.call_as("nobody", "GET", path, &Value::Null).await;
            assert_eq!((as_product.status, as_nobody.status), (403, 401), "{path}");
            assert_eq!(world.call_as(ADMIN_TOKEN, "GET", path, &Value::Null).await.error(), "no_runs");
        }
        for (query, error) in [
            ("from=yesterday", "invalid_value: from"),
            ("from=2026-11-02&to=2026-11-01", "invalid_value: to"),
            ("feature_id=seats", "invalid_value: feature_id"),
            ("target_margin=100", "invalid_value: target_margin"),
            ("month=11", "unknown_field: month"),
        ] {
            let reply = world.call_as(ADMIN_TOKEN, "GET", &format!("{REPORT}?{query}"), &Value::Null).await;
            assert_eq!((reply.status, reply.error().as_str()), (422, error), "{query}");
        }
    }
}

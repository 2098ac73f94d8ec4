//! Every rule of the plans file, by the mistake it reports.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::clock::Timestamp;

mod terms;

const EXAMPLE: &str = include_str!("../../../plans.example.toml");

/// A small valid file, whose lines the tests replace. Line numbers matter: the rank is on 6.
const SMALL: &str = r#"[features.runs]
name = "Runs"
unit = "run"
[[plans]]
id = "free"
rank = 1
name = "Free"
limits.runs = { granted = 5, enforcement = "hard" }
[[plans]]
id = "pro"
rank = 2
name = "Pro"
limits.runs = { granted = 50, enforcement = "soft" }
"#;

/// `source` with the first `old` replaced by `new`.
fn changed(source: &str, old: &str, new: &str) -> String {
    assert!(source.contains(old), "{old} is not in the file");
    source.replacen(old, new, 1)
}

fn mistakes(source: &str) -> String {
    Catalog::parse(source).expect_err("the file has a mistake").to_string()
}

/// What parsing `SMALL` with one change complains about, without the file's name.
fn complaint(old: &str, new: &str) -> String {
    mistakes(&changed(SMALL, old, new)).replace("plans.toml:", "")
}

/// `SMALL` with `lines` before its first table (line 1 on) or after its last (line 14 on).
fn complaint_before(lines: &str) -> String {
    mistakes(&format!("{lines}\n{SMALL}")).replace("plans.toml:", "")
}

fn complaint_after(lines: &str) -> String {
    mistakes(&format!("{SMALL}{lines}\n")).replace("plans.toml:", "")
}

fn usd(minor: i64) -> Money {
    Money { minor, currency: "usd".parse().unwrap() }
}

#[test]
fn the_example_is_read_whole() {
    let catalog = Catalog::parse(EXAMPLE).unwrap();
    assert_eq!(catalog.default_plan, Some("starter".parse().unwrap()));
    let runs = &catalog.features["ai_runs"];
    assert_eq!(
        (runs.name.as_str(), runs.unit.as_str(), runs.stripe_meter.as_deref()),
        ("AI runs", "run", Some("ai_runs"))
    );

    let ids: Vec<_> = catalog.plans.iter().map(|plan| plan.id.as_str()).collect();
    assert_eq!(ids, ["starter", "pro", "team"]);
    let limit = |plan: &str| catalog.plan(plan).unwrap().limits["ai_runs"].clone();
    let limit_of = |enforcement, percents: &[u16], custom| Limit {
        enforcement,
        nudge_at_percent: percents.to_vec(),
        nudge_at_units: Vec::new(),
        custom,
    };
    assert_eq!(limit("starter"), limit_of(Enforcement::Hard { granted: 200 }, &[80], false));
    assert_eq!(limit("pro"), limit_of(Enforcement::Soft { granted: 2000 }, &[80], false));
    assert_eq!(limit("team"), limit_of(Enforcement::Hard { granted: 6000 }, &[], true));

    let pro = catalog.plan_by_lookup_key("pro_monthly").unwrap();
    assert_eq!((pro.name.as_str(), pro.rank), ("Pro", 2));
    assert_eq!(pro.upgrade_to, Some("team".parse().unwrap()));
    let price = pro.price.as_ref().unwrap();
    assert_eq!((price.amount, price.interval), (usd(9900), Interval::Month));
    assert_eq!(price.display(), "$99/month");
    assert_eq!(pro.unlocks.len(), 2);
    assert_eq!(pro.unlocks[1].url, "https://example.com/docs/team");
}

#[test]
fn the_examples_costs_and_policies_are_exact() {
    let catalog = Catalog::parse(EXAMPLE).unwrap();
    assert_eq!(
        catalog.models["claude-haiku"],
        ModelPrices::always(ModelPrice {
            input_picodollars_per_token: 1_000_000,
            output_picodollars_per_token: 5_000_000,
            cached_input_picodollars_per_token: 100_000,
        })
    );
    assert_eq!(
        catalog.credits["ai_credits"].rates["claude-haiku"],
        CreditRate {
            input_nanocredits_per_token: 200_000,
            output_nanocredits_per_token: 1_000_000,
            cached_input_nanocredits_per_token: 200_000,
        }
    );
    assert_eq!(catalog.metering_window, Duration::from_secs(300));
    assert_eq!(catalog.schedule.meter_events, "*/5 * * * *");
    assert_eq!(catalog.policy.post_upgrade_delay, Duration::from_secs(86_400));
    assert_eq!(catalog.policy.past_due_grace, Duration::from_secs(604_800));
    assert_eq!(catalog.policy.cost_overhead["team"], usd(1000));
}

#[test]
fn what_a_file_leaves_out_is_as_the_example_says() {
    let small = Catalog::parse(SMALL).unwrap();
    let example = Catalog::parse(EXAMPLE).unwrap();
    assert_eq!(small.default_plan, None);
    assert_eq!(small.schedule, example.schedule);
    assert_eq!(small.metering_window, example.metering_window);
    assert_eq!(small.policy.post_upgrade_delay, example.policy.post_upgrade_delay);
    assert_eq!(small.policy.past_due_grace, example.policy.past_due_grace);
    assert_eq!((small.retention, example.retention), (Retention::default(), Retention::default()));
    assert!(small.models.is_empty() && small.credits.is_empty());
    let free = small.plan("free").unwrap();
    assert_eq!((&free.price, &free.upgrade_to), (&None, &None));
    assert_eq!((free.on_outage, free.grandfather), (OnOutage::Deny, false));
    assert!(free.unlocks.is_empty() && free.limits["runs"].nudge_at_percent.is_empty());
}

#[test]
fn plans_are_ordered_by_rank() {
    let catalog = Catalog::parse(&changed(SMALL, "rank = 1", "rank = 3")).unwrap();
    assert_eq!(catalog.plans[1].id.as_str(), "free");
}

#[test]
fn a_yearly_price_in_another_currency_is_shown_so() {
    let price = "price = { amount = \"3000\", currency = \"JPY\", interval = \"year\", lookup_key = \"k\" }";
    let catalog = Catalog::parse(&format!("{SMALL}{price}\n")).unwrap();
    assert_eq!(
        catalog.plan_by_lookup_key("k").unwrap().price.as_ref().unwrap().display(),
        "¥3000/year"
    );
}

#[test]
fn unknown_keys_are_named_with_their_line_and_the_key_that_was_meant() {
    assert_eq!(
        complaint("unit =", "uint = 1\nunit ="),
        "3: features.runs.uint: is not a known key; did you mean \"unit\"?"
    );
    assert_eq!(
        complaint("unit =", "colour = 1\nunit ="),
        "3: features.runs.colour: is not a known key; known here: name, unit, stripe_meter, count_unknown_models_as"
    );
    assert_eq!(
        complaint_before("defualt_plan = \"free\""),
        "1: defualt_plan: is not a known key; did you mean \"default_plan\"?"
    );
    assert_eq!(
        complaint("granted = 5,", "granted = 5, percent = 80,"),
        "8: plans.free.limits.runs.percent: is not a known key; known here: granted, enforcement, nudge_at_percent, nudge_at, custom"
    );
    assert_eq!(
        complaint_after("unlocks = [\n  { title = \"A\", url = \"http://a\", ulr = 1 },\n]"),
        "15: plans.pro.unlocks[0].ulr: is not a known key; did you mean \"url\"?"
    );
    assert_eq!(
        complaint_after("[policy]\n\"a key\\nof two lines\" = 1"),
        "15: policy.\"a key\\nof two lines\": is not a known key; known here: post_upgrade_delay, past_due_grace, pause_collection, cost_overhead"
    );
}

#[test]
fn text_that_is_not_toml_is_refused_with_its_line() {
    assert_eq!(complaint("rank = 1", "rank = = 1"), "6: is not TOML: extra `=`, expected nothing");
    assert!(
        complaint("rank = 1", "rank = 1\nrank = 1").starts_with("7: is not TOML: duplicate key")
    );
    assert!(complaint("id = \"free\"", "id = \"free").starts_with("5: is not TOML: "));
    assert!(complaint("id = \"free\"", "id = \"fr\0ee\"").starts_with("5: is not TOML: "));
    let both = changed(&changed(SMALL, "rank = 1", "rank = = 1"), "rank = 2", "rank");
    assert_eq!(mistakes(&both).lines().count(), 2, "{}", mistakes(&both));
}

#[test]
fn features_are_checked() {
    let name = "must be text of 1 to 100 characters, none of them a control character";
    for (old, new, wanted) in [
        ("name = \"Runs\"\n", "", "1: features.runs.name: is missing; it must be text of 1 to 100 characters, none of them a control character".to_owned()),
        ("name = \"Runs\"", "name = \" \"", format!("2: features.runs.name: {name}")),
        ("name = \"Runs\"", "name = \"a\\nb\"", format!("2: features.runs.name: {name}")),
        ("unit = \"run\"", "unit = 7", format!("3: features.runs.unit: {name}")),
        ("unit = \"run\"", "unit = \"run\"\nstripe_meter = \"\"", "4: features.runs.stripe_meter: must be the event_name of a Stripe meter: text of 1 to 100 characters".to_owned()),
    ] {
        assert_eq!(complaint(old, new), wanted, "{new}");
    }
    assert_eq!(
        complaint_before("features.\"Big Runs\" = { name = \"Big\", unit = \"run\" }"),
        "1: features.\"Big Runs\": its name must be 1 to 64 of the characters a-z, 0-9, _ and -"
    );
    let long = format!("name = \"{}\"", "ü".repeat(101));
    assert_eq!(complaint("name = \"Runs\"", &long), format!("2: features.runs.name: {name}"));
    assert!(Catalog::parse(&changed(SMALL, "Runs", &"ü".repeat(100))).is_ok());
    assert_eq!(complaint_before("features = 3").lines().count(), 1);
}

#[test]
fn two_features_cannot_share_a_meter() {
    let two = "stripe_meter = \"m\"\n[features.other]\nname = \"Other\"\nunit = \"o\"\nstripe_meter = \"m\"\n[[plans]]";
    assert_eq!(
        complaint("[[plans]]", two),
        "8: features.other.stripe_meter: must be unique; line 4 has the same"
    );
}

#[test]
fn plans_are_checked() {
    let id = "1 to 64 of the characters a-z, 0-9, _ and -";
    for (old, new, wanted) in [
        ("id = \"pro\"", "id = \"free\"", "10: plans.free.id: must be unique; line 5 has the same".to_owned()),
        ("rank = 2", "rank = 1", "11: plans.pro.rank: must be unique; line 6 has the same".to_owned()),
        ("rank = 2", "rank = 2.5", "11: plans.pro.rank: must be a whole number".to_owned()),
        ("rank = 2\n", "", "9: plans.pro.rank: is missing; it must be a whole number".to_owned()),
        ("rank = 2", "rank = 99999999999999999999", "11: plans.pro.rank: must be a whole number".to_owned()),
        ("id = \"pro\"\n", "", format!("9: plans[1].id: is missing; it must be {id}")),
        ("id = \"pro\"", "id = \"Pro!\"", format!("10: plans[1].id: must be {id}")),
        ("rank = 1", "rank = 1\nupgrade_to = \"team\"", "7: plans.free.upgrade_to: must be the id of a plan; there is no \"team\"".to_owned()),
        ("rank = 2", "rank = 2\nupgrade_to = \"free\"", "12: plans.pro.upgrade_to: must be a plan of higher rank; \"free\" has rank 1, this one 2".to_owned()),
        ("rank = 2", "rank = 2\nupgrade_to = \"pro\"", "12: plans.pro.upgrade_to: must be a plan of higher rank; \"pro\" has rank 2, this one 2".to_owned()),
    ] {
        assert_eq!(complaint(old, new), wanted, "{new}");
    }
    assert_eq!(
        complaint_before("default_plan = \"gratis\""),
        "1: default_plan: must be the id of a plan; there is no \"gratis\""
    );
    assert_eq!(mistakes(""), "plans.toml:1: plans: must be at least one [[plans]] table");
    assert_eq!(
        mistakes("\nplans = []"),
        "plans.toml:2: plans: must be at least one [[plans]] table"
    );
    assert_eq!(mistakes("plans = 1"), "plans.toml:1: plans: must be a list, not a number");
    assert_eq!(
        mistakes("plans = [1]"),
        "plans.toml:1: plans[0]: must be a table of keys and values, not a number"
    );
}

#[test]
fn prices_are_checked() {
    let price = |amount: &str, currency: &str, interval: &str, key: &str| {
        format!(
            "price = {{ amount = {amount}, currency = {currency}, interval = {interval}, lookup_key = {key} }}"
        )
    };
    let good = ["\"29.00\"", "\"usd\"", "\"month\"", "\"k\""];
    assert!(
        Catalog::parse(&format!("{SMALL}{}", price(good[0], good[1], good[2], good[3]))).is_ok()
    );
    for (field, text, wanted) in [
        (0, "29.00", "amount: must be a decimal amount in quotes such as \"29.00\""),
        (
            0,
            "\"29.001\"",
            "amount: must be a decimal amount in quotes such as \"29.00\": usd has 2 decimals",
        ),
        (
            0,
            "\"-1\"",
            "amount: must be a decimal amount in quotes such as \"29.00\": usd has 2 decimals",
        ),
        (
            0,
            "\"99999999999999999999\"",
            "amount: must be a decimal amount in quotes such as \"29.00\": usd has 2 decimals",
        ),
        (1, "\"dollars\"", "currency: must be a three-letter currency code such as \"usd\""),
        (
            1,
            "\"jpy\"",
            "amount: must be a whole amount in quotes such as \"3000\": jpy has no decimals",
        ),
        (2, "\"week\"", "interval: must be \"month\" or \"year\""),
        (
            3,
            "\"\"",
            "lookup_key: must be the lookup key of a Stripe price: text of 1 to 200 characters",
        ),
    ] {
        let mut fields = good;
        fields[field] = text;
        let line = price(fields[0], fields[1], fields[2], fields[3]);
        assert_eq!(complaint_after(&line), format!("14: plans.pro.price.{wanted}"), "{text}");
    }
    let same = price(good[0], good[1], good[2], good[3]);
    let twice = changed(SMALL, "rank = 1", &format!("rank = 1\n{same}")) + &same;
    assert_eq!(
        mistakes(&twice),
        "plans.toml:15: plans.pro.price.lookup_key: must be unique; line 7 has the same"
    );
    assert_eq!(complaint_after("price = {}").lines().count(), 4);
    assert_eq!(
        complaint_after("price = \"99\""),
        "14: plans.pro.price: must be a table of keys and values, not text"
    );
}

#[test]
fn links_are_checked() {
    assert_eq!(
        complaint_after("unlocks = [{ title = \"A\", url = \"javascript:alert(1)\" }]"),
        "14: plans.pro.unlocks[0].url: must be a web address such as \"https://example.com/docs\""
    );
    assert_eq!(
        complaint_after("unlocks = [\n{ url = \"https://a.example\" }]").split(": is").next(),
        Some("15: plans.pro.unlocks[0].title")
    );
}

#[test]
fn costs_are_checked() {
    let rate =
        "a decimal number in quotes such as \"0.25\", at most 1000000, with at most 6 decimals";
    for (lines, wanted) in [
        ("[models.m]\ninput = \"1\"", format!("14: models.m.output: is missing; it must be {rate}")),
        ("[models.m]\ninput = 1.0\noutput = \"1\"", format!("15: models.m.input: must be {rate}")),
        ("[models.m]\ninput = \"1\"\noutput = \"0.0000001\"", format!("16: models.m.output: must be {rate}")),
        ("[models.m]\ninput = \"1\"\noutput = \"1000000.000001\"", format!("16: models.m.output: must be {rate}")),
        ("[models.\"gpt 4\"]\ninput = \"1\"\noutput = \"1\"", "14: models.\"gpt 4\": its name must be 1 to 100 printable ASCII characters without spaces".to_owned()),
        ("[credits.c]\nm = { per_1k_input = \"1\", per_1k_output = \"1\" }", "15: credits.c.m: names a model that has no [models] table".to_owned()),
        ("[models.\"m.1\"]\ninput = \"1\"\noutput = \"1\"\n[credits.c]\n\"m.1\" = { per_1k_input = \"1\" }", format!("18: credits.c.\"m.1\".per_1k_output: is missing; it must be {rate}")),
        ("[policy]\ncost_overhead = { team = \"1\" }", "15: policy.cost_overhead.team: must be the id of a plan; there is no \"team\"".to_owned()),
        ("[policy]\ncost_overhead = { pro = 1 }", "15: policy.cost_overhead.pro: must be a decimal amount in quotes such as \"29.00\"".to_owned()),
        ("[policy]\ncost_overhead = { pro = \"1.001\" }", "15: policy.cost_overhead.pro: must be a decimal amount in quotes such as \"29.00\": usd has 2 decimals".to_owned()),
    ] {
        assert_eq!(complaint_after(lines), wanted, "{lines}");
    }
    assert_eq!(
        complaint_after("[models.gpt-4.1]\ninput = \"1\"\noutput = \"1\""),
        "14: models.gpt-4: needs quotes if its name has a dot: \"gpt-4.1\""
    );
    let edge = format!("{SMALL}[models.m]\ninput = \"1000000\"\noutput = \"0.000001\"\n");
    let catalog = Catalog::parse(&edge).unwrap();
    let model = catalog.models["m"].at(Timestamp::from_ms(0)).unwrap();
    assert_eq!(
        (model.input_picodollars_per_token, model.output_picodollars_per_token),
        (1_000_000_000_000, 1)
    );
    assert_eq!(model.cached_input_picodollars_per_token, model.input_picodollars_per_token);
}

#[test]
fn models_without_credits_count_as_the_one_that_the_feature_names() {
    let credits = "[models.m]\ninput = \"1\"\noutput = \"1\"\n[credits.runs]\nm = { per_1k_input = \"1\", per_1k_output = \"2\" }\n";
    let unit = "unit = \"run\"";
    let counted_as = |model: &str| format!("{unit}\ncount_unknown_models_as = {model}");
    let named = changed(SMALL, unit, &counted_as("\"m\"")) + credits;
    let table = &Catalog::parse(&named).unwrap().credits["runs"];
    assert_eq!(table.unknown_models, Some(table.rates["m"]));
    let silent = Catalog::parse(&(SMALL.to_owned() + credits)).unwrap();
    assert_eq!(silent.credits["runs"].unknown_models, None);

    let key = "plans.toml:4: features.runs.count_unknown_models_as";
    let unknown = changed(SMALL, unit, &counted_as("\"n\"")) + credits;
    assert_eq!(
        mistakes(&unknown),
        format!("{key}: must be a model of [credits.runs]; there is no \"n\"")
    );
    let nowhere = changed(SMALL, unit, &counted_as("\"m\""));
    assert_eq!(
        mistakes(&nowhere),
        format!("{key}: must be a model of [credits.runs]; there is no \"m\"")
    );
    let no_name = changed(SMALL, unit, &counted_as("\"\""));
    assert_eq!(
        mistakes(&no_name),
        format!("{key}: must be 1 to 100 printable ASCII characters without spaces")
    );
    let bad_rate = changed(&named, "per_1k_input = \"1\"", "per_1k_input = 1");
    assert_eq!(mistakes(&bad_rate).lines().count(), 1, "{}", mistakes(&bad_rate));
}

#[test]
fn a_models_price_is_the_one_in_force_at_the_moment() {
    let source = format!(
        "{SMALL}[models.m]\ninput = \"1\"\noutput = \"2\"\n\
         [[models.m.prices]]\nfrom = \"2027-01-01\"\ninput = \"3\"\noutput = \"4\"\n\
         [[models.m.prices]]\nfrom = \"2026-10-01\"\ninput = \"5\"\noutput = \"6\"\n\
         [models.late]\nprices = [{{ from = \"2026-10-01\", input = \"7\", output = \"8\" }}]\n"
    );
    let catalog = Catalog::parse(&source).unwrap();
    let input_at = |model: &str, at: &str| {
        let price = catalog.models[model].at(at.parse().unwrap());
        price.map(|price| price.input_picodollars_per_token / 1_000_000)
    };
    assert_eq!(input_at("m", "2000-01-01T00:00:00Z"), Some(1));
    assert_eq!(input_at("m", "2026-09-30T23:59:59.999Z"), Some(1));
    assert_eq!(input_at("m", "2026-10-01T00:00:00Z"), Some(5));
    assert_eq!(input_at("m", "2027-01-01T00:00:00Z"), Some(3));
    assert_eq!(input_at("late", "2026-09-30T23:59:59.999Z"), None);
    assert_eq!(input_at("late", "2026-10-01T00:00:00Z"), Some(7));
}

#[test]
fn dated_prices_are_checked() {
    let dated = |prices: &str| complaint_after(&format!("[models.m]\nprices = {prices}"));
    assert_eq!(dated("[]"), "15: models.m.prices: must have at least one price");
    assert_eq!(
        dated("[{ from = \"2026-02-30\", input = \"1\", output = \"1\" }]"),
        "15: models.m.prices[0].from: must be a day in quotes such as \"2026-10-01\"; it begins at 00:00 UTC"
    );
    let twice = "[{ from = \"2026-10-01\", input = \"1\", output = \"1\" }, \
                  { from = \"2026-10-01\", input = \"2\", output = \"1\" }]";
    assert_eq!(
        dated(twice),
        "15: models.m.prices[1].from: must be unique; another price holds from the same day"
    );
}

#[test]
fn times_are_checked() {
    let window = "must be a duration from \"1s\" to \"1h\", such as \"5m\"";
    let delay =
        "must be a duration of at most \"365d\": a whole number and s, m, h or d, such as \"24h\"";
    let kept = "must be a duration from \"62d\" to \"36500d\", such as \"400d\"";
    let cron = "must be a cron expression in UTC with five fields, or six with seconds first, such as \"*/5 * * * *\", that comes to pass";
    for (table, line, wanted) in [
        ("metering", "window = \"0s\"", format!("window: {window}")),
        ("metering", "window = \"61m\"", format!("window: {window}")),
        ("metering", "window = 300", format!("window: {window}")),
        ("policy", "past_due_grace = \"1w\"", format!("past_due_grace: {delay}")),
        ("policy", "post_upgrade_delay = \"366d\"", format!("post_upgrade_delay: {delay}")),
        (
            "policy",
            "pause_collection = \"void\"",
            "pause_collection: must be \"allow\" or \"deny\"".to_owned(),
        ),
        ("retention", "usage_events = \"61d\"", format!("usage_events: {kept}")),
        ("retention", "usage_events = \"36501d\"", format!("usage_events: {kept}")),
        ("retention", "usage_events = 400", format!("usage_events: {kept}")),
        ("schedule", "reconcile = \"hourly\"", format!("reconcile: {cron}")),
        ("schedule", "notices = \"0 0 31 4 *\"", format!("notices: {cron}")),
    ] {
        let found = complaint_after(&format!("[{table}]\n{line}"));
        assert_eq!(found, format!("15: {table}.{wanted}"), "{line}");
    }
    for edge in [
        "[metering]\nwindow = \"1s\"",
        "[metering]\nwindow = \"1h\"",
        "[policy]\npast_due_grace = \"0s\"",
        "[policy]\npast_due_grace = \"365d\"",
        "[policy]\npause_collection = \"deny\"",
        "[schedule]\nnotices = \"*/10 * * * * *\"",
        "[retention]\nusage_events = \"62d\"",
        "[retention]\nusage_events = \"36500d\"",
    ] {
        assert!(Catalog::parse(&format!("{SMALL}{edge}\n")).is_ok(), "{edge}");
    }
}

#[test]
fn all_mistakes_are_reported_at_once_in_the_order_of_the_file() {
    let mut source = changed(EXAMPLE, "default_plan = \"starter\"", "default_plan = \"gratis\"");
    for (old, new) in [
        ("unit = \"run\"", "unit = \"\""),
        ("amount = \"29.00\"", "amount = \"29,00\""),
        ("granted = 2000", "granted = 2_000_000_000"),
        ("rank = 3", "rank = 1"),
        ("output = \"5.00\"", "output = 5.00"),
        ("window = \"5m\"", "windows = \"5m\""),
        ("reconcile = \"17 * * * *\"", "reconcile = \"17 * * *\""),
        ("team = \"10.00\"", "teams = \"10.00\""),
    ] {
        source = changed(&source, old, new);
    }
    let errors = Catalog::parse(&source).unwrap_err();
    let keys: Vec<_> = errors.mistakes().iter().map(|mistake| mistake.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "default_plan",
            "features.ai_runs.unit",
            "plans.starter.price.amount",
            "plans.pro.upgrade_to",
            "plans.pro.limits.ai_runs.granted",
            "plans.team.rank",
            "models.claude-haiku.output",
            "metering.windows",
            "schedule.reconcile",
            "policy.cost_overhead.teams",
        ]
    );
    for mistake in errors.mistakes() {
        let line = source.lines().nth(mistake.line - 1).unwrap();
        let leaf = mistake.key.rsplit('.').next().unwrap();
        assert!(line.contains(leaf), "line {} is {line:?}, not {leaf}", mistake.line);
    }
}

/// On a stack as small as a worker thread's, where a recursive walk would end the process.
#[test]
fn files_nested_beyond_reason_are_refused() {
    let dotted = vec!["a"; 75].join(".");
    let nested = format!("{}b = 1{}", format!("{dotted} = {{ ").repeat(75), " }".repeat(75));
    let twice = format!("x = {{ {nested} }}\nx = {{ {nested} }}");
    let endless_key = vec!["a"; 100_000].join(".") + " = 1";
    let endless_list = format!("plans = {}{}", "[".repeat(100_000), "]".repeat(100_000));
    for source in [nested, twice, endless_key, endless_list] {
        let small_stack = std::thread::Builder::new().stack_size(1 << 20);
        let parsed = small_stack.spawn(move || Catalog::parse(&source)).unwrap().join().unwrap();
        assert!(parsed.is_err());
    }
}

#[test]
fn hostile_files_are_refused() {
    let huge = format!("{SMALL}#{}", "x".repeat(10 << 20));
    assert_eq!(mistakes(&huge), "plans.toml:1: must be at most 1 MiB");
    assert!(Catalog::parse(&format!("{SMALL}#{}", "x".repeat(1_000_000))).is_ok());
    assert!(Catalog::parse("\0").is_err());
    assert!(Catalog::parse(&"\n\0".repeat(1000)).is_err());
    let many: String = (0..50_000).map(|n| format!("k{n} = 1\n")).collect();
    assert_eq!(Catalog::parse(&many).unwrap_err().mistakes().len(), 50_001);
    let long_key = format!("{} = 1\n{SMALL}", "k".repeat(500_000));
    assert!(mistakes(&long_key).len() < 300, "a message stays readable");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Bytes cut out, doubled or replaced anywhere: either a catalog or mistakes on lines that exist.
    #[test]
    fn no_mutation_of_the_example_makes_parsing_panic(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0..60_usize, "\\PC{0,6}|[\\[\\]{}\",=.\\n\\x00]{0,6}"), 1..6)
    ) {
        let mut chars: Vec<char> = EXAMPLE.lines().filter(|l| !l.starts_with('#')).flat_map(|l| l.chars().chain(['\n'])).collect();
        for (at, length, text) in cuts {
            let start = at.index(chars.len());
            let end = (start + length).min(chars.len());
            chars.splice(start..end, text.chars());
            if chars.is_empty() {
                chars.push('\n');
            }
        }
        let source: String = chars.into_iter().collect();
        if let Err(errors) = Catalog::parse(&source) {
            prop_assert!(!errors.mistakes().is_empty());
            for mistake in errors.mistakes() {
                prop_assert!((1..=source.split('\n').count()).contains(&mistake.line));
            }
        }
    }
}

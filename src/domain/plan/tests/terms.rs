//! The terms a plan gives: its limits, what happens in an outage, whom a change of them reaches.

use super::*;

/// The plans of `SMALL` that other limits hold for after one change of it.
fn changed_by(old: &str, new: &str) -> Vec<String> {
    let before = Catalog::parse(SMALL).unwrap();
    let after = Catalog::parse(&changed(SMALL, old, new)).unwrap();
    Catalog::changed_limits(&before, &after).iter().map(ToString::to_string).collect()
}

fn runs_of_free(limit: &str) -> Limit {
    let source = changed(SMALL, "granted = 5, enforcement = \"hard\"", limit);
    Catalog::parse(&source).unwrap().plan("free").unwrap().limits["runs"].clone()
}

#[test]
fn percents_ascend_and_go_beyond_a_hundred_where_usage_may() {
    let hard =
        runs_of_free("granted = 5, enforcement = \"hard\", nudge_at_percent = [100, 50, 80]");
    assert_eq!(hard.nudge_at_percent, [50, 80, 100]);
    let soft =
        runs_of_free("granted = 5, enforcement = \"soft\", nudge_at_percent = [1000, 1, 300]");
    assert_eq!(soft.nudge_at_percent, [1, 300, 1000]);
    assert!(soft.nudge_at_units.is_empty());
}

#[test]
fn an_unlimited_plan_has_no_number_and_nudges_at_units() {
    let silent = runs_of_free("enforcement = \"unlimited\"");
    assert_eq!(silent.enforcement, Enforcement::Unlimited);
    assert!(silent.nudge_at_percent.is_empty() && silent.nudge_at_units.is_empty());
    let told = runs_of_free("enforcement = \"unlimited\", nudge_at = [5000, 1000, 1_000_000_000]");
    assert_eq!(told.nudge_at_units, [1000, 5000, 1_000_000_000]);
}

/// What is wrong with this limit of the free plan, from the feature's name on.
fn complaint_about(limit: &str) -> String {
    let complaint = complaint("granted = 5, enforcement = \"hard\"", limit);
    complaint.strip_prefix("8: plans.free.limits.").unwrap_or(&complaint).to_owned()
}

#[test]
fn limits_are_checked() {
    let quantity = "a whole number from 0 to 1000000000";
    for (limit, wanted) in [
        ("enforcement = \"hard\"", format!(".granted: is missing; it must be {quantity}")),
        ("enforcement = \"soft\"", format!(".granted: is missing; it must be {quantity}")),
        ("granted = -1, enforcement = \"hard\"", format!(".granted: must be {quantity}")),
        ("granted = 1000000001, enforcement = \"soft\"", format!(".granted: must be {quantity}")),
        ("granted = \"5\", enforcement = \"soft\"", format!(".granted: must be {quantity}")),
        (
            "granted = 5",
            ".enforcement: is missing; it must be \"hard\", \"soft\" or \"unlimited\"".to_owned(),
        ),
        (
            "granted = 5, enforcement = \"firm\"",
            ".enforcement: must be \"hard\", \"soft\" or \"unlimited\"".to_owned(),
        ),
        (
            "granted = 5, enforcement = \"unlimited\"",
            ".granted: must be left out where enforcement is \"unlimited\"".to_owned(),
        ),
        (
            "granted = 5, enforcement = \"hard\", custom = 1",
            ".custom: must be true or false".to_owned(),
        ),
    ] {
        assert_eq!(complaint_about(limit), format!("runs{wanted}"), "{limit}");
    }
    assert_eq!(
        complaint("limits.runs", "limits.seats"),
        "8: plans.free.limits.seats: must name a feature; there is no [features.seats]"
    );
    for granted in ["0", "1000000000", "0x10", "1_000"] {
        assert!(
            Catalog::parse(&changed(SMALL, "granted = 5,", &format!("granted = {granted},")))
                .is_ok()
        );
    }
}

#[test]
fn nudges_are_checked() {
    for (limit, wanted) in [
        (
            "nudge_at_percent = [80], enforcement = \"unlimited\"",
            ".nudge_at_percent: must be left out where enforcement is \"unlimited\"",
        ),
        (
            "granted = 5, enforcement = \"hard\", nudge_at_percent = 80",
            ".nudge_at_percent: must be a list, not a number",
        ),
        (
            "granted = 5, enforcement = \"hard\", nudge_at_percent = [0]",
            ".nudge_at_percent[0]: must be a whole number from 1 to 100",
        ),
        (
            "granted = 5, enforcement = \"hard\", nudge_at_percent = [50, 101]",
            ".nudge_at_percent[1]: must be a whole number from 1 to 100",
        ),
        (
            "granted = 5, enforcement = \"hard\", nudge_at_percent = [80, 80]",
            ".nudge_at_percent[1]: must not repeat 80",
        ),
        (
            "granted = 5, enforcement = \"soft\", nudge_at_percent = [1000, 1001]",
            ".nudge_at_percent[1]: must be a whole number from 1 to 1000",
        ),
        (
            "granted = 5, enforcement = \"soft\", nudge_at = [4]",
            ".nudge_at: must be left out unless enforcement is \"unlimited\"",
        ),
        ("enforcement = \"unlimited\", nudge_at = 1000", ".nudge_at: must be a list, not a number"),
        (
            "enforcement = \"unlimited\", nudge_at = [0]",
            ".nudge_at[0]: must be a whole number from 1 to 1000000000",
        ),
        (
            "enforcement = \"unlimited\", nudge_at = [5, 1000000001]",
            ".nudge_at[1]: must be a whole number from 1 to 1000000000",
        ),
        ("enforcement = \"unlimited\", nudge_at = [5, 9, 5]", ".nudge_at[2]: must not repeat 5"),
    ] {
        assert_eq!(complaint_about(limit), format!("runs{wanted}"), "{limit}");
    }
    let all_wrong = complaint_about("nudge_at_percent = [0], nudge_at = [0]");
    assert_eq!(all_wrong.lines().count(), 3, "and the enforcement: {all_wrong}");
}

fn terms_of_pro(lines: &str) -> (OnOutage, bool) {
    let catalog = Catalog::parse(&format!("{SMALL}{lines}\n")).unwrap();
    let pro = catalog.plan("pro").unwrap();
    (pro.on_outage, pro.grandfather)
}

#[test]
fn a_plan_says_what_happens_in_an_outage_and_to_those_who_are_on_it() {
    let allow = "on_outage = \"allow\"\noutage_allowance = 20";
    assert_eq!(terms_of_pro(allow), (OnOutage::Allow { units: 20 }, false));
    assert_eq!(terms_of_pro("on_outage = \"deny\""), (OnOutage::Deny, false));
    assert_eq!(terms_of_pro("grandfather = true"), (OnOutage::Deny, true));
    assert_eq!(terms_of_pro("grandfather = false"), (OnOutage::Deny, false));
}

#[test]
fn outages_are_checked() {
    let units = "a whole number from 1 to 1000000000";
    let stray = "outage_allowance: must be left out unless on_outage is \"allow\"".to_owned();
    for (lines, line, wanted) in [
        ("on_outage = \"open\"", 14, "on_outage: must be \"deny\" or \"allow\"".to_owned()),
        ("on_outage = true", 14, "on_outage: must be \"deny\" or \"allow\"".to_owned()),
        ("on_outage = \"allow\"", 9, format!("outage_allowance: is missing; it must be {units}")),
        (
            "on_outage = \"allow\"\noutage_allowance = 0",
            15,
            format!("outage_allowance: must be {units}"),
        ),
        ("on_outage = \"deny\"\noutage_allowance = 20", 15, stray.clone()),
        ("outage_allowance = 20", 14, stray),
        ("grandfather = \"yes\"", 14, "grandfather: must be true or false".to_owned()),
    ] {
        assert_eq!(complaint_after(lines), format!("{line}: plans.pro.{wanted}"), "{lines}");
    }
    let both_wrong = complaint_after("on_outage = \"open\"\noutage_allowance = -1");
    assert_eq!(both_wrong.lines().count(), 2, "{both_wrong}");
}

#[test]
fn usage_events_are_kept_for_as_long_as_the_file_says() {
    let source = format!("{SMALL}[retention]\nusage_events = \"400d\"\n");
    let kept = Catalog::parse(&source).unwrap().retention.usage_events;
    assert_eq!(kept, Some(Duration::from_secs(400 * 86_400)));
    let silent = Catalog::parse(&format!("{SMALL}[retention]\n")).unwrap();
    assert_eq!(silent.retention.usage_events, None);
    assert_eq!(
        complaint_after("[retention]\nevents = \"400d\""),
        "15: retention.events: is not a known key; known here: usage_events"
    );
}

#[test]
fn another_number_another_enforcement_or_another_feature_changes_a_plans_limits() {
    assert_eq!(changed_by("granted = 5,", "granted = 6,"), ["free"]);
    assert_eq!(changed_by("\"hard\"", "\"soft\""), ["free"]);
    assert_eq!(
        changed_by("granted = 50, enforcement = \"soft\"", "enforcement = \"unlimited\""),
        ["pro"]
    );
    assert_eq!(changed_by("limits.runs = { granted = 5, enforcement = \"hard\" }\n", ""), ["free"]);
    let seats = "[features.seats]\nname = \"Seats\"\nunit = \"seat\"\n[[plans]]\nlimits.seats = { granted = 1, enforcement = \"hard\" }";
    assert_eq!(changed_by("[[plans]]", seats), ["free"]);
}

#[test]
fn changed_plans_are_named_by_their_old_rank() {
    let before = Catalog::parse(SMALL).unwrap();
    let turned = changed(SMALL, "rank = 1", "rank = 3").replace("granted = 5", "granted = 6");
    let after = Catalog::parse(&turned).unwrap();
    let changed: Vec<_> = Catalog::changed_limits(&before, &after);
    assert_eq!(changed, ["free".parse().unwrap(), "pro".parse().unwrap()]);
}

#[test]
fn a_plan_that_is_gone_has_changed_and_a_new_one_has_not() {
    let renamed = |new: &str| changed_by("id = \"pro\"", &format!("id = \"{new}\""));
    assert_eq!(renamed("pro"), [""; 0]);
    assert_eq!(renamed("max"), ["pro"]);
}

#[test]
fn what_is_no_limit_changes_none() {
    for (old, new) in [
        ("\"hard\"", "\"hard\", nudge_at_percent = [80]"),
        ("\"hard\"", "\"hard\", custom = true"),
        ("name = \"Free\"", "name = \"Gratis\""),
        ("rank = 1", "rank = 7"),
        ("rank = 2", "rank = 2\ngrandfather = true\non_outage = \"allow\"\noutage_allowance = 9"),
    ] {
        assert_eq!(changed_by(old, new), [""; 0], "{new}");
    }
}

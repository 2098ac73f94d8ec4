//! What each kind of value in the plans file must look like.

use std::time::Duration;

use toml::de::DeValue;

use super::reader::Rule;
use super::{Interval, PauseCollection};
use crate::clock::Timestamp;
use crate::domain::ids::{FeatureId, PlanId};
use crate::domain::money::{Currency, parse_decimal};
use crate::domain::run;

/// How many decimals a price per million tokens or a number of credits may have.
const RATE_DECIMALS: u32 = 6;
/// The largest such price or number: a million, in millionths.
const MAX_RATE: i64 = 1_000_000 * 10_i64.pow(RATE_DECIMALS);
/// The largest quantity anywhere in Tollgate.
const MAX_QUANTITY: i64 = 1_000_000_000;
/// Stripe's limit for a meter's `event_name`.
const MAX_METER_NAME: usize = 100;
/// Stripe's limit for a price's `lookup_key`.
const MAX_LOOKUP_KEY: usize = 200;

pub(super) const FEATURE_ID: Rule<FeatureId> =
    Rule { wanted: ID_WANTED, read: |value| as_id(value.as_str()?)?.parse().ok() };
pub(super) const PLAN_ID: Rule<PlanId> =
    Rule { wanted: ID_WANTED, read: |value| as_id(value.as_str()?)?.parse().ok() };
const ID_WANTED: &str = "1 to 64 of the characters a-z, 0-9, _ and -";

pub(super) const MODEL_NAME: Rule<String> = Rule {
    wanted: run::MODEL_NAME_WANTED,
    read: |value| value.as_str().filter(|text| run::is_model_name(text)).map(str::to_owned),
};

pub(super) const NAME: Rule<String> = Rule {
    wanted: "text of 1 to 100 characters, none of them a control character",
    read: |value| line(value, 100),
};

pub(super) const METER_NAME: Rule<String> = Rule {
    wanted: "the event_name of a Stripe meter: text of 1 to 100 characters",
    read: |value| line(value, MAX_METER_NAME),
};

pub(super) const LOOKUP_KEY: Rule<String> = Rule {
    wanted: "the lookup key of a Stripe price: text of 1 to 200 characters",
    read: |value| line(value, MAX_LOOKUP_KEY),
};

pub(super) const URL: Rule<String> = Rule {
    wanted: "a web address such as \"https://example.com/docs\"",
    read: |value| value.as_str().filter(|text| is_web_address(text)).map(str::to_owned),
};

pub(super) const WHOLE_NUMBER: Rule<i64> = Rule { wanted: "a whole number", read: integer };

pub(super) const QUANTITY: Rule<i64> = Rule {
    wanted: "a whole number from 0 to 1000000000",
    read: |value| integer(value).filter(|n| (0..=MAX_QUANTITY).contains(n)),
};

/// A number of units that is worth writing down.
pub(super) const UNITS: Rule<i64> = Rule {
    wanted: "a whole number from 1 to 1000000000",
    read: |value| integer(value).filter(|n| (1..=MAX_QUANTITY).contains(n)),
};

pub(super) const PERCENT: Rule<u16> = Rule {
    wanted: "a whole number from 1 to 100",
    read: |value| u16::try_from(integer(value)?).ok().filter(|n| (1..=100).contains(n)),
};

/// The percent of a number that may be exceeded.
pub(super) const PERCENT_AND_BEYOND: Rule<u16> = Rule {
    wanted: "a whole number from 1 to 1000",
    read: |value| u16::try_from(integer(value)?).ok().filter(|n| (1..=1000).contains(n)),
};

pub(super) const YES_OR_NO: Rule<bool> =
    Rule { wanted: "true or false", read: |value| value.as_bool() };

/// The text of an amount; what it means depends on the currency.
pub(super) const AMOUNT: Rule<String> = Rule {
    wanted: "a decimal amount in quotes such as \"29.00\"",
    read: |value| value.as_str().map(str::to_owned),
};

pub(super) const CURRENCY: Rule<Currency> = Rule {
    wanted: "a three-letter currency code such as \"usd\"",
    read: |value| value.as_str()?.parse().ok(),
};

pub(super) const INTERVAL: Rule<Interval> = Rule {
    wanted: "\"month\" or \"year\"",
    read: |value| match value.as_str()? {
        "month" => Some(Interval::Month),
        "year" => Some(Interval::Year),
        _ => None,
    },
};

/// The word alone; the amount that belongs to it is read beside it.
#[derive(Clone, Copy)]
pub(super) enum EnforcementWord {
    Hard,
    Soft,
    Unlimited,
}

pub(super) const ENFORCEMENT: Rule<EnforcementWord> = Rule {
    wanted: "\"hard\", \"soft\" or \"unlimited\"",
    read: |value| match value.as_str()? {
        "hard" => Some(EnforcementWord::Hard),
        "soft" => Some(EnforcementWord::Soft),
        "unlimited" => Some(EnforcementWord::Unlimited),
        _ => None,
    },
};

/// The word alone; the allowance that belongs to it is read beside it.
#[derive(Clone, Copy)]
pub(super) enum OutageWord {
    Deny,
    Allow,
}

pub(super) const ON_OUTAGE: Rule<OutageWord> = Rule {
    wanted: "\"deny\" or \"allow\"",
    read: |value| match value.as_str()? {
        "deny" => Some(OutageWord::Deny),
        "allow" => Some(OutageWord::Allow),
        _ => None,
    },
};

pub(super) const PAUSE_COLLECTION: Rule<PauseCollection> = Rule {
    wanted: "\"allow\" or \"deny\"",
    read: |value| match value.as_str()? {
        "allow" => Some(PauseCollection::Allow),
        "deny" => Some(PauseCollection::Deny),
        _ => None,
    },
};

/// Millionths of what is written: micro-dollars or micro-credits.
pub(super) const RATE: Rule<i64> = Rule {
    wanted: "a decimal number in quotes such as \"0.25\", at most 1000000, with at most 6 decimals",
    read: |value| parse_decimal(value.as_str()?, RATE_DECIMALS).filter(|rate| *rate <= MAX_RATE),
};

/// Midnight (00:00 UTC) of the day.
pub(super) const DAY: Rule<Timestamp> = Rule {
    wanted: "a day in quotes such as \"2026-10-01\"; it begins at 00:00 UTC",
    read: |value| {
        let day: jiff::civil::Date = value.as_str()?.parse().ok()?;
        let midnight = day.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
        Some(Timestamp::from_jiff(midnight.timestamp()))
    },
};

pub(super) const METERING_WINDOW: Rule<Duration> = Rule {
    wanted: "a duration from \"1s\" to \"1h\", such as \"5m\"",
    read: |value| {
        let window = parse_duration(value.as_str()?)?;
        (1..=3600).contains(&window.as_secs()).then_some(window)
    },
};

pub(super) const DELAY: Rule<Duration> = Rule {
    wanted: "a duration of at most \"365d\": a whole number and s, m, h or d, such as \"24h\"",
    read: |value| {
        let delay = parse_duration(value.as_str()?)?;
        (delay <= Duration::from_secs(365 * DAY_SECONDS)).then_some(delay)
    },
};

/// Two of the longest months at least, so that a month's usage can still be compared with its
/// invoice; at most a hundred years, so that adding it to a time cannot overflow.
pub(super) const RETENTION: Rule<Duration> = Rule {
    wanted: "a duration from \"62d\" to \"36500d\", such as \"400d\"",
    read: |value| {
        let kept = parse_duration(value.as_str()?)?;
        let bounds =
            Duration::from_secs(62 * DAY_SECONDS)..=Duration::from_secs(36_500 * DAY_SECONDS);
        bounds.contains(&kept).then_some(kept)
    },
};

pub(super) const CRON: Rule<String> = Rule {
    wanted: "a cron expression in UTC with five fields, or six with seconds first, such as \
             \"*/5 * * * *\", that comes to pass",
    read: |value| value.as_str().filter(|text| is_schedule(text)).map(str::to_owned),
};

const DAY_SECONDS: u64 = 86_400;

/// Reads a duration such as `90s`, `5m`, `24h` or `7d`; a day is 24 hours.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => DAY_SECONDS,
        _ => return None,
    };
    if !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(seconds).map(Duration::from_secs)
}

/// The text, if it can be the id of a feature or a plan.
pub(super) fn as_id(text: &str) -> Option<&str> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    ((1..=64).contains(&text.len()) && text.bytes().all(allowed)).then_some(text)
}

/// A text on one line: something visible in it, no control characters (so that it can stand in a
/// mail's subject), at most `max` characters.
fn line(value: &DeValue<'_>, max: usize) -> Option<String> {
    let text = value.as_str()?;
    let fits = !text.trim().is_empty() && text.chars().count() <= max;
    (fits && !text.chars().any(char::is_control)).then(|| text.to_owned())
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// Whether the text can stand in a mail as a link: http or https, a host, and no character that
/// would end the link or hide its target.
fn is_web_address(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let Some(rest) = rest else { return false };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let unfit = |c: char| c.is_control() || c.is_whitespace() || "\"'<>\\`".contains(c);
    !host.is_empty()
        && !host.starts_with(':')
        && !host.contains('@')
        && text.len() <= 2000
        && !text.chars().any(unfit)
}

/// Whether a cron expression can be read and ever comes to pass; the 30th of February does not.
fn is_schedule(text: &str) -> bool {
    use croner::parser::{CronParser, Year};
    let fields = text.split_whitespace().count();
    if !text.is_ascii() || text.len() > 100 || !(5..=6).contains(&fields) {
        return false;
    }
    // Any day will do as the start: a schedule without a year comes round for ever or never.
    let start = jiff::Timestamp::UNIX_EPOCH.to_zoned(jiff::tz::TimeZone::UTC);
    CronParser::builder()
        .year(Year::Disallowed)
        .build()
        .parse(text)
        .is_ok_and(|cron| cron.find_next_occurrence(&start, true).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_a_whole_number_and_one_unit() {
        for (text, seconds) in
            [("90s", 90), ("5m", 300), ("24h", 86_400), ("7d", 604_800), ("0s", 0)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for bad in [
            "",
            "s",
            "5",
            "5w",
            "5 m",
            "-5m",
            "+5m",
            "1.5h",
            "5ms",
            "1h30m",
            "5µ",
            "99999999999999999999d",
            "18446744073709551615d",
        ] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn schedules_have_five_or_six_fields_and_come_to_pass() {
        for good in ["* * * * *", "*/5 * * * *", "*/10 * * * * *", "0 9 * * MON", "0 0 29 2 *"] {
            assert!(is_schedule(good), "{good}");
        }
        for bad in [
            "",
            "*",
            "* * * *",
            "@hourly",
            "61 * * * *",
            "0 0 30 2 *",
            "* * * * * * *",
            "0 0 1 1 * 2030 *",
            "every day",
            "* * * * \0",
            "× * * * *",
            "*/0 * * * *",
        ] {
            assert!(!is_schedule(bad), "{bad}");
        }
    }

    #[test]
    fn links_lead_to_a_host_and_cannot_break_out_of_a_mail() {
        for good in
            ["https://example.com", "http://localhost:3000/docs?a=b#c", "https://bücher.example/ü"]
        {
            assert!(is_web_address(good), "{good}");
        }
        for bad in [
            "example.com",
            "ftp://example.com",
            "javascript:alert(1)",
            "https://",
            "https:///x",
            "https://a b",
            "https://a\nb",
            "https://a\"b",
            "https://a<b",
            "https://you@evil.example",
            "https://:80/",
        ] {
            assert!(!is_web_address(bad), "{bad}");
        }
    }
}

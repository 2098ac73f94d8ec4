//! What Stripe has counted: its meters, and the sums it makes of their events.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use stripe_client_core::{RequestBuilder, StripeMethod};

use super::objects::path_segment;
use super::{Stripe, StripeError};
use crate::clock::Timestamp;

/// The most Stripe gives on one page.
const PAGE: i64 = 100;
/// Ten thousand meters: a list that goes on longer does not end.
const MAX_PAGES: usize = 100;

/// A meter, in force or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meter {
    pub id: String,
    pub event_name: String,
    /// How it makes one number of its events: `sum`, `count` or `last`.
    pub formula: String,
}

/// What a meter made of a customer's events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sum {
    Units(i64),
    /// No whole number that we can hold: someone else reports to this meter too.
    NotWhole(String),
}

#[derive(Deserialize)]
struct Page<T> {
    data: Vec<T>,
    has_more: bool,
}

impl Stripe {
    /// All meters, switched off ones too.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses to answer.
    pub async fn meters(&self) -> Result<Vec<Meter>, StripeError> {
        #[derive(Serialize)]
        struct Query<'a> {
            limit: i64,
            #[serde(skip_serializing_if = "Option::is_none")]
            starting_after: Option<&'a str>,
        }
        #[derive(Deserialize)]
        struct Found {
            id: String,
            event_name: String,
            default_aggregation: Aggregation,
        }
        #[derive(Deserialize)]
        struct Aggregation {
            formula: String,
        }
        let mut meters: Vec<Meter> = Vec::new();
        for _ in 0..MAX_PAGES {
            let starting_after = meters.last().map(|meter| meter.id.as_str());
            let query = Query { limit: PAGE, starting_after };
            let request = RequestBuilder::new(StripeMethod::Get, "/billing/meters").query(&query);
            let page: Page<Found> = self.transport.read(request).await?;
            let more = page.has_more && !page.data.is_empty();
            meters.extend(page.data.into_iter().map(|found| Meter {
                id: found.id,
                event_name: found.event_name,
                formula: found.default_aggregation.formula,
            }));
            if !more {
                return Ok(meters);
            }
        }
        Err(StripeError::unreachable("a list of Stripe's does not end"))
    }

    /// What a meter has made of one Stripe customer's events in a span of event time, whose bounds
    /// must be whole minutes. Events that were received a moment ago may be missing from it.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses to answer, as it does for a customer it never had.
    pub async fn units(
        &self,
        meter_id: &str,
        stripe_customer_id: &str,
        span: Range<Timestamp>,
    ) -> Result<Sum, StripeError> {
        #[derive(Serialize)]
        struct Query<'a> {
            customer: &'a str,
            start_time: i64,
            end_time: i64,
            limit: i64,
        }
        #[derive(Deserialize)]
        struct Summary {
            // Written as a float. It is read as it stands there: no float ever holds it.
            aggregated_value: Box<RawValue>,
        }
        let path =
            format!("/billing/meters/{}/event_summaries", path_segment(meter_id, "meter id")?);
        let query = Query {
            customer: stripe_customer_id,
            start_time: span.start.seconds(),
            end_time: span.end.seconds(),
            limit: PAGE,
        };
        let request = RequestBuilder::new(StripeMethod::Get, path).query(&query);
        let page: Page<Summary> = self.transport.read(request).await?;
        // One for the whole span, or none if nothing happened in it.
        let mut sum = 0_i64;
        for summary in &page.data {
            let text = summary.aggregated_value.get();
            match whole_units(text).and_then(|units| sum.checked_add(units)) {
                Some(more) => sum = more,
                None => return Ok(Sum::NotWhole(text.to_owned())),
            }
        }
        Ok(Sum::Units(sum))
    }
}

/// A JSON number as whole units: `7`, `7.0`, `7e2`. `None` for `7.5` and what is too large.
fn whole_units(number: &str) -> Option<i64> {
    let (mantissa, exponent) = match number.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (number, 0),
    };
    let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let fraction = fraction.trim_end_matches('0');
    let digits: i128 = format!("{integer}{fraction}").parse().ok()?;
    // The point stands this many places left of the digits' end.
    let places = i32::try_from(fraction.len()).ok()?.checked_sub(exponent)?;
    let power = 10_i128.checked_pow(places.unsigned_abs());
    let units = match (digits, power) {
        (0, _) => 0,
        (_, None) => return None,
        (digits, Some(power)) if places <= 0 => digits.checked_mul(power)?,
        (digits, Some(power)) if digits % power == 0 => digits / power,
        _ => return None,
    };
    i64::try_from(units).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stripe::testing::{FakeStripe, Turn};
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    async fn read(body: &str) -> Result<Sum, StripeError> {
        let fake = FakeStripe::start([Turn::json(200, body)]).await;
        let span = at("2026-11-01T00:00:00Z")..at("2026-12-01T00:00:00Z");
        let sum = fake.stripe().units("mtr_1", "cus_1", span).await;
        assert_eq!(
            fake.seen()[0].line,
            "GET /v1/billing/meters/mtr_1/event_summaries?customer=cus_1&start_time=1793491200\
             &end_time=1796083200&limit=100 HTTP/1.1"
        );
        sum
    }

    #[tokio::test]
    async fn a_sum_is_read_digit_by_digit() {
        for (number, sum) in [
            ("7.0", Sum::Units(7)),
            ("9007199254740993", Sum::Units(9_007_199_254_740_993)),
            ("9007199254740993.0", Sum::Units(9_007_199_254_740_993)),
            ("7.5", Sum::NotWhole("7.5".to_owned())),
        ] {
            let body = format!(
                r#"{{"object":"list","data":[{{"id":"s","aggregated_value":{number}}}],"has_more":false}}"#
            );
            assert_eq!(read(&body).await, Ok(sum), "{number}");
        }
        assert_eq!(read(r#"{"data":[],"has_more":false}"#).await, Ok(Sum::Units(0)));
        let odd = read(r#"{"data":[{}],"has_more":false}"#).await.unwrap_err();
        assert_eq!((odd.is_transient(), odd.is_outage()), (false, false), "{odd}");
    }

    #[test]
    fn numbers_are_whole_units_however_they_are_written() {
        for (number, units) in [
            ("0", Some(0)),
            ("0.000", Some(0)),
            ("0e999999999", Some(0)),
            ("-3.0", Some(-3)),
            ("1.2e1", Some(12)),
            ("120e-1", Some(12)),
            ("1E+3", Some(1000)),
            ("9223372036854775807", Some(i64::MAX)),
            ("9223372036854775808", None),
            ("1e40", None),
            ("12e-1", None),
            ("-0.5", None),
            ("1e-999999999", None),
            ("1e99999999999", None),
            ("true", None),
            ("\"7\"", None),
            ("", None),
        ] {
            assert_eq!(whole_units(number), units, "{number}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_with_a_point_is_read_back(units: i64, zeros in 0_usize..4) {
            prop_assert_eq!(whole_units(&format!("{units}.{}", "0".repeat(zeros))), Some(units));
        }

        #[test]
        fn no_text_panics(text in "[-+0-9.eE]{0,20}") {
            let _ = whole_units(&text);
        }
    }

    #[tokio::test]
    async fn meters_come_from_every_page_switched_off_ones_too() {
        let page = |id: &str, more: bool| {
            let body = format!(
                r#"{{"data":[{{"id":"{id}","event_name":"{id}_runs","status":"inactive",
                "default_aggregation":{{"formula":"sum"}}}}],"has_more":{more}}}"#
            );
            Turn::json(200, &body)
        };
        let fake = FakeStripe::start([page("mtr_1", true), page("mtr_2", false)]).await;
        let meters = fake.stripe().meters().await.unwrap();
        let names: Vec<_> = meters.iter().map(|meter| meter.event_name.as_str()).collect();
        assert_eq!(names, ["mtr_1_runs", "mtr_2_runs"]);
        let asked: Vec<_> = fake.seen().into_iter().map(|seen| seen.line).collect();
        assert_eq!(
            asked,
            [
                "GET /v1/billing/meters?limit=100 HTTP/1.1",
                "GET /v1/billing/meters?limit=100&starting_after=mtr_1 HTTP/1.1",
            ]
        );
    }
}

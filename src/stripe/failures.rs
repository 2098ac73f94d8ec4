//! Meter events that failed after Stripe had received them: thin events tell of them some seconds
//! later, without saying which; what they mean has to be fetched.

use serde::Deserialize;
use stripe_client_core::{RequestBuilder, StripeMethod};

use super::objects::{path_segment, unless_missing};
use super::{Stripe, StripeError};
use crate::clock::Timestamp;

/// What Stripe tells of a few seconds' failures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeterFailures {
    /// The meter's id; `None` for events whose name no meter has.
    pub meter_id: Option<String>,
    /// Those that are named. They may be examples only.
    pub named: Vec<Failure>,
    /// How many there were besides.
    pub unnamed: i64,
    /// When Stripe looked at them.
    pub from: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

/// A meter event that came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The meter event's identifier, or the idempotency key of the request that brought it: the
    /// documentation says the one, an example in it the other.
    pub request: String,
    /// Such as `meter_event_customer_not_found`.
    pub code: String,
}

#[derive(Deserialize)]
struct Fetched {
    related_object: Option<Related>,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Related {
    id: String,
}

#[derive(Deserialize)]
struct Data {
    reason: Reason,
    validation_start: Option<String>,
    validation_end: Option<String>,
}

#[derive(Deserialize)]
struct Reason {
    #[serde(default)]
    error_types: Vec<ErrorType>,
}

#[derive(Deserialize)]
struct ErrorType {
    code: String,
    #[serde(default)]
    error_count: i64,
    #[serde(default)]
    sample_errors: Vec<Sample>,
}

#[derive(Deserialize)]
struct Sample {
    request: Option<SampleRequest>,
}

#[derive(Deserialize)]
struct SampleRequest {
    identifier: Option<String>,
    idempotency_key: Option<String>,
}

impl Stripe {
    /// What a thin event about failed meter events has to tell; `None` if Stripe has no such event
    /// or none with such data.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses to answer.
    pub async fn meter_failures(
        &self,
        event_id: &str,
    ) -> Result<Option<MeterFailures>, StripeError> {
        let path = format!("/v2/core/events/{}", path_segment(event_id, "event id")?);
        let request = RequestBuilder::new(StripeMethod::Get, path);
        let fetched: Option<Fetched> = unless_missing(self.transport.read(request).await)?;
        Ok(fetched.and_then(read))
    }
}

fn read(fetched: Fetched) -> Option<MeterFailures> {
    let data = fetched.data?;
    let time = |text: Option<String>| text.and_then(|text| text.parse().ok());
    let (mut named, mut count) = (Vec::new(), 0_i64);
    for kind in data.reason.error_types {
        count = count.saturating_add(kind.error_count);
        let requests = kind.sample_errors.into_iter().filter_map(|sample| sample.request);
        let names = requests.filter_map(|request| request.identifier.or(request.idempotency_key));
        named.extend(names.map(|request| Failure { request, code: kind.code.clone() }));
    }
    let told = i64::try_from(named.len()).unwrap_or(i64::MAX);
    Some(MeterFailures {
        meter_id: fetched.related_object.map(|meter| meter.id),
        named,
        unnamed: count.saturating_sub(told).max(0),
        from: time(data.validation_start),
        until: time(data.validation_end),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stripe::testing::{FakeStripe, Turn};

    /// Fetches an event with this data, of a meter or of none.
    async fn fetched(related: &str, data: &str) -> Option<MeterFailures> {
        let body = format!(
            r#"{{"id":"evt_1","object":"v2.core.event","type":"v1.billing.meter.error_report_triggered",
            "related_object":{related},"data":{data}}}"#
        );
        let fake = FakeStripe::start([Turn::json(200, &body)]).await;
        let failures = fake.stripe().meter_failures("evt_1").await.unwrap();
        assert_eq!(fake.seen()[0].line, "GET /v2/core/events/evt_1 HTTP/1.1");
        failures
    }

    #[tokio::test]
    async fn samples_name_the_events_by_either_name_and_the_rest_is_counted() {
        let data = r#"{"developer_message_summary":"There are 5 invalid events",
            "reason":{"error_count":5,"error_types":[
                {"code":"archived_meter","error_count":4,"sample_errors":[
                    {"error_message":"x","request":{"identifier":"tg_1"}},
                    {"error_message":"x","request":{"idempotency_key":"tg_2-send"}},
                    {"error_message":"x"}]},
                {"code":"meter_event_customer_not_found","error_count":1,"sample_errors":[]}]},
            "validation_start":"2026-11-01T09:00:00.000Z","validation_end":"2026-11-01T09:00:10.000Z"}"#;
        let failure = |request: &str| Failure {
            request: request.to_owned(),
            code: "archived_meter".to_owned(),
        };
        assert_eq!(
            fetched(r#"{"id":"mtr_1","type":"billing.meter"}"#, data).await,
            Some(MeterFailures {
                meter_id: Some("mtr_1".to_owned()),
                named: vec![failure("tg_1"), failure("tg_2-send")],
                unnamed: 3,
                from: Some("2026-11-01T09:00:00Z".parse().unwrap()),
                until: Some("2026-11-01T09:00:10Z".parse().unwrap()),
            })
        );
    }

    #[tokio::test]
    async fn an_event_without_data_or_of_another_account_tells_nothing() {
        assert_eq!(fetched("null", "null").await, None);
        let bare = fetched("null", r#"{"reason":{}}"#).await.unwrap();
        assert_eq!((bare.meter_id, bare.named, bare.unnamed), (None, Vec::new(), 0));
        let missing =
            r#"{"error":{"type":"invalid_request_error","code":"not_found","message":"x"}}"#;
        let fake = FakeStripe::start([Turn::json(404, missing)]).await;
        assert_eq!(fake.stripe().meter_failures("evt_1").await, Ok(None));
    }
}

//! Reporting usage: one meter event out, one verdict back.

use std::collections::HashMap;
use std::time::Duration;

use stripe_billing::billing_meter_event::CreateBillingMeterEvent;
use stripe_client_core::{IdempotencyKey, RequestStrategy, StripeRequest};

use super::{Stripe, StripeError, StripeErrorKind};
use crate::clock::Timestamp;

/// A quantity to report, as the outbox keeps it. Every attempt sends exactly this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeterEvent {
    /// Stripe counts one identifier once within at least 24 hours. At most 100 characters.
    pub identifier: String,
    /// 1 to 255 characters that a header can carry.
    pub idempotency_key: String,
    /// The meter's event name.
    pub event_name: String,
    pub stripe_customer_id: String,
    /// In whole units.
    pub value: i64,
    /// Decides the billing period. Sent in whole seconds.
    pub timestamp: Timestamp,
}

/// What one attempt came to, by what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MeterOutcome {
    /// Stripe received it, which is not yet that it counted it: a wrong customer or meter may be
    /// reported later by an event.
    Delivered,
    /// An earlier attempt had arrived after all.
    AlreadyDelivered,
    /// It may or may not have arrived: send the same again, under the same key.
    Retry { reason: String },
    /// Stripe gives an earlier failure again, and will for a day, because it keeps the first answer
    /// under a key: send the same under another key. The identifier keeps it from counting twice.
    KeySpent { reason: String },
    /// Send the same again, more slowly.
    RateLimited { retry_after: Option<Duration> },
    /// Older than Stripe takes (35 days). No later attempt can succeed.
    TooOld,
    /// Stripe will not take it as it stands; others may pass.
    Refused { code: Option<String>, message: String },
    /// Our key does not work: nothing will pass until somebody mends it.
    PauseReporter { reason: String },
}

impl Stripe {
    /// Sends one meter event, once; the outbox decides about another attempt.
    pub async fn send_meter_event(&self, event: &MeterEvent) -> MeterOutcome {
        judge(self.post_meter_event(event).await)
    }

    async fn post_meter_event(&self, event: &MeterEvent) -> Result<(), StripeError> {
        /// All we need of the answer. More would be more that a later version could break, and an
        /// event that was received must not be sent again because its echo changed shape.
        #[derive(miniserde::Deserialize)]
        struct Receipt {
            identifier: String,
        }
        let key = IdempotencyKey::new(&event.idempotency_key)
            .map_err(|_| StripeError::unsendable("idempotency key"))?;
        // The payload keys every meter has unless it was made with others.
        let payload = HashMap::from([
            ("stripe_customer_id".to_owned(), event.stripe_customer_id.clone()),
            ("value".to_owned(), event.value.to_string()),
        ]);
        let receipt = CreateBillingMeterEvent::new(event.event_name.as_str(), payload)
            .identifier(event.identifier.as_str())
            .timestamp(event.timestamp.seconds())
            .build()
            .customize::<Receipt>()
            .request_strategy(RequestStrategy::Idempotent(key))
            .send(&self.transport)
            .await?;
        if receipt.identifier != event.identifier {
            return Err(StripeError::unreachable("the answer is about another meter event"));
        }
        Ok(())
    }
}

/// What follows from an answer.
///
/// Stripe gives the two cases that are not plain refusals no code, only words: a repeated
/// identifier ("An event already exists with identifier …", seen in production by others) and a
/// timestamp out of reach ("The event timestamp cannot be more than 35 days in past. …").
fn judge(answer: Result<(), StripeError>) -> MeterOutcome {
    let Err(error) = answer else { return MeterOutcome::Delivered };
    match &error.kind {
        StripeErrorKind::RateLimited { retry_after } => {
            MeterOutcome::RateLimited { retry_after: *retry_after }
        }
        StripeErrorKind::Unauthorized { .. } => {
            MeterOutcome::PauseReporter { reason: error.to_string() }
        }
        StripeErrorKind::Server { replayed: true, .. } => {
            MeterOutcome::KeySpent { reason: error.to_string() }
        }
        // That of an answer nothing could be read is no reason to bill nothing: whether it was
        // counted shows when it is sent again.
        StripeErrorKind::Unreadable { .. } => MeterOutcome::Retry { reason: error.to_string() },
        _ if error.is_transient() => MeterOutcome::Retry { reason: error.to_string() },
        StripeErrorKind::Refused { status: 400, message, .. }
            if message.starts_with("An event already exists with identifier") =>
        {
            MeterOutcome::AlreadyDelivered
        }
        StripeErrorKind::Refused { status: 400, code, message, .. }
            if code.as_deref() == Some("timestamp_too_far_in_past")
                || message.contains("timestamp") && message.contains("days in past") =>
        {
            MeterOutcome::TooOld
        }
        StripeErrorKind::Refused { code, .. } => {
            MeterOutcome::Refused { code: code.clone(), message: error.to_string() }
        }
        _ => MeterOutcome::Refused { code: None, message: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stripe::testing::{FakeStripe, Turn};

    fn event() -> MeterEvent {
        MeterEvent {
            identifier: "win_1".to_owned(),
            idempotency_key: "key_1".to_owned(),
            event_name: "ai_runs".to_owned(),
            stripe_customer_id: "cus_1".to_owned(),
            value: 42,
            timestamp: Timestamp::from_ms(1_800_000_000_999),
        }
    }

    fn refusal(status: u16, code: &str, message: &str) -> Turn {
        let code = if code.is_empty() { String::new() } else { format!(r#""code":"{code}","#) };
        let body = format!(
            r#"{{"error":{{"type":"invalid_request_error",{code}"message":"{message}"}}}}"#
        );
        Turn::json(status, &body)
    }

    fn receipt(identifier: &str) -> Turn {
        let body = format!(
            r#"{{"object":"billing.meter_event","created":1800000001,"event_name":"ai_runs",
            "identifier":"{identifier}","livemode":false,"timestamp":1800000000,
            "payload":{{"stripe_customer_id":"cus_1","value":"42"}}}}"#
        );
        Turn::json(200, &body)
    }

    /// Names the outcome; what it carries is for other tests.
    fn name(outcome: &MeterOutcome) -> &'static str {
        match outcome {
            MeterOutcome::Delivered => "delivered",
            MeterOutcome::AlreadyDelivered => "already delivered",
            MeterOutcome::Retry { .. } => "retry",
            MeterOutcome::KeySpent { .. } => "key spent",
            MeterOutcome::RateLimited { .. } => "rate limited",
            MeterOutcome::TooOld => "too old",
            MeterOutcome::Refused { .. } => "refused",
            MeterOutcome::PauseReporter { .. } => "pause",
        }
    }

    #[tokio::test]
    async fn each_answer_has_its_outcome_and_none_is_asked_for_twice() {
        const TWICE: &str = "An event already exists with identifier win_1.";
        const OLD: &str = "The event timestamp cannot be more than 35 days in past. Expected a \
            timestamp greater than or equal to 1796976000.";
        const AHEAD: &str = "The event timestamp cannot be more than 5 minutes in the future.";
        for (turn, outcome) in [
            (receipt("win_1"), "delivered"),
            (receipt("win_1").with("idempotent-replayed", "true"), "delivered"),
            (receipt("win_2"), "retry"),
            (Turn::html(200), "retry"),
            (Turn::json(200, "{}"), "retry"),
            (Turn::json(302, "").with("location", "/v1/elsewhere"), "retry"),
            (Turn::Hangup, "retry"),
            (Turn::Stall, "retry"),
            (refusal(409, "idempotency_key_in_use", "in use"), "retry"),
            (refusal(424, "", "a dependency failed"), "retry"),
            (refusal(500, "", "sorry"), "retry"),
            (refusal(500, "", "sorry").with("stripe-should-retry", "false"), "retry"),
            (Turn::html(502), "retry"),
            (refusal(500, "", "sorry").with("idempotent-replayed", "true"), "key spent"),
            (Turn::html(400), "retry"),
            (refusal(429, "", "slow down"), "rate limited"),
            (refusal(429, "lock_timeout", "locked"), "rate limited"),
            (refusal(400, "", TWICE).with("stripe-should-retry", "false"), "already delivered"),
            (refusal(400, "", OLD), "too old"),
            (refusal(400, "timestamp_too_far_in_past", "too old"), "too old"),
            (refusal(400, "", AHEAD), "refused"),
            (refusal(400, "", "No active meter found for event name ai_runs."), "refused"),
            (refusal(404, "resource_missing", "No such customer: 'cus_1'"), "refused"),
            (refusal(404, "", TWICE), "refused"),
            (refusal(401, "", "Invalid API Key provided: sk_test_1"), "pause"),
            (refusal(403, "", "This key may not do this"), "pause"),
        ] {
            let fake = FakeStripe::start([turn]).await;
            let got = fake.stripe().send_meter_event(&event()).await;
            assert_eq!(name(&got), outcome, "{got:?}");
            assert_eq!(fake.seen().len(), 1, "{got:?}");
        }
    }

    #[tokio::test]
    async fn every_attempt_sends_the_same() {
        let fake = FakeStripe::start([Turn::html(502), receipt("win_1")]).await;
        let stripe = fake.stripe();
        stripe.send_meter_event(&event()).await;
        assert_eq!(stripe.send_meter_event(&event()).await, MeterOutcome::Delivered);
        for seen in fake.seen() {
            assert_eq!(seen.line, "POST /v1/billing/meter_events HTTP/1.1");
            assert_eq!(seen.header("idempotency-key"), "key_1");
            let form = seen.form();
            let fields: Vec<_> = form.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            assert_eq!(
                fields,
                [
                    ("event_name", "ai_runs"),
                    ("identifier", "win_1"),
                    ("payload[stripe_customer_id]", "cus_1"),
                    ("payload[value]", "42"),
                    ("timestamp", "1800000000"),
                ]
            );
        }
    }

    #[tokio::test]
    async fn a_wait_that_stripe_names_is_passed_on() {
        let turn = refusal(429, "", "slow down").with("retry-after", "30");
        let fake = FakeStripe::start([turn]).await;
        assert_eq!(
            fake.stripe().send_meter_event(&event()).await,
            MeterOutcome::RateLimited { retry_after: Some(Duration::from_secs(30)) }
        );
    }

    #[tokio::test]
    async fn a_refusal_says_why_and_a_key_never_shows() {
        let fake = FakeStripe::start([
            refusal(400, "", "No active meter found for event name ai_runs."),
            refusal(401, "", "Invalid API Key provided: sk_test_1"),
        ])
        .await;
        let stripe = fake.stripe();
        assert_eq!(
            stripe.send_meter_event(&event()).await,
            MeterOutcome::Refused {
                code: Some("invalid_request_error".to_owned()),
                message: "Stripe refused (400, invalid_request_error): No active meter found for \
                    event name ai_runs. [req_1]"
                    .to_owned(),
            }
        );
        assert_eq!(
            stripe.send_meter_event(&event()).await,
            MeterOutcome::PauseReporter {
                reason: "Stripe does not accept our key (401): Invalid API Key provided: [key] \
                    [req_1]"
                    .to_owned(),
            }
        );
    }

    #[tokio::test]
    async fn an_event_that_cannot_be_sent_is_refused_here() {
        let fake = FakeStripe::start([]).await;
        for key in ["", "two\nlines", &"k".repeat(256)] {
            let broken = MeterEvent { idempotency_key: key.to_owned(), ..event() };
            let outcome = fake.stripe().send_meter_event(&broken).await;
            assert_eq!(name(&outcome), "refused", "{outcome:?}");
        }
        assert_eq!(fake.seen().len(), 0);
    }
}

//! The switches that make the simulator misbehave as Stripe and the network can.

use serde::{Deserialize, Serialize};

/// Everything that can go wrong, all off by default. Over HTTP: `GET` and `POST /_sim/faults`,
/// where a `POST` replaces the whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Every webhook is posted twice.
    pub duplicate_webhooks: bool,
    /// Every change makes two events that differ only in their ids.
    pub twin_events: bool,
    /// Webhooks are held; [`super::Simulator::deliver_pending`] sends what is held newest first,
    /// and switching this off sends it in order.
    pub shuffle_webhooks: bool,
    /// New events are stored, but never posted to anybody.
    pub drop_webhooks: bool,
    /// Webhooks arrive before the call that caused them is answered; held ones newest first.
    pub webhooks_before_answers: bool,
    /// What is wrong with each webhook that is posted.
    pub webhook_damage: Option<WebhookDamage>,
    /// Meter events for an unknown customer or meter are refused in the answer, as third parties
    /// report, instead of failing later.
    pub refuse_meter_events_at_once: bool,
    /// Reports of failed meter events name none of them, as they may when there are many.
    pub error_reports_without_samples: bool,
    /// How long after a meter event was received summaries begin to show it, in seconds.
    pub summary_lag_seconds: u64,
    /// How long after an object changed searches begin to show it, in seconds.
    pub search_lag_seconds: u64,
    /// How long a test clock takes to advance, in seconds.
    pub test_clock_lag_seconds: u64,
    /// What becomes of a subscription when the last retry of a payment has failed.
    pub after_retries: AfterRetries,
    /// How many calls each endpoint takes in one second by the simulator's clock: 25 on Stripe.
    /// Off by default, because a clock that stands still never lets another call in.
    pub calls_per_second: Option<u32>,
    /// What the key may not do, as a restricted one: method and beginning of the path, such as
    /// `POST /v1/prices`.
    pub not_permitted: Vec<String>,
    /// Faults of the API, used up in order; the first whose prefix matches is applied.
    pub api: Vec<ApiFault>,
}

/// A fault of the next `times` API calls whose path begins with `path_prefix`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiFault {
    pub path_prefix: String,
    pub times: u32,
    pub kind: FaultKind,
}

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// 500 without any effect, kept and replayed under the idempotency key.
    ServerError,
    /// 500 although the work was done, kept and replayed under the idempotency key.
    ServerErrorAfterEffect,
    /// 500 without effect that says by `Stripe-Should-Retry` whether to try again.
    ShouldRetry(bool),
    /// 400 without effect; the key stays free.
    Refused,
    /// 429 with `Stripe-Rate-Limited-Reason: endpoint-rate`, without effect; the key stays free.
    RateLimited,
    /// The same with another of Stripe's reasons.
    LimitedBy(Limit),
    /// 429 `lock_timeout` without the reason header, without effect; the key stays free.
    LockTimeout,
    /// A proxy's 502 in HTML, without effect; the key stays free.
    BadGateway,
    /// The connection is closed without a byte of answer, and nothing was done.
    DropBeforeEffect,
    /// The connection is closed without a byte of answer, and the work was done.
    DropAfterEffect,
    /// The work was done, and the connection is closed in the middle of the answer.
    CutBody,
    /// The work was done, and the answer is JSON of a shape that nobody knows.
    OtherShape,
    /// The work was done; the answer's head comes at once, its body this many milliseconds later,
    /// by the simulator's clock.
    SlowBodyMs(u64),
    /// The work is done this many milliseconds later, by the simulator's clock. Meanwhile the
    /// object that the call writes is locked.
    DelayMs(u64),
}

/// Stripe's reasons for a 429.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    GlobalRate,
    EndpointRate,
    GlobalConcurrency,
    EndpointConcurrency,
    ResourceSpecific,
}

impl Limit {
    /// As the header says it.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::GlobalRate => "global-rate",
            Self::EndpointRate => "endpoint-rate",
            Self::GlobalConcurrency => "global-concurrency",
            Self::EndpointConcurrency => "endpoint-concurrency",
            Self::ResourceSpecific => "resource-specific",
        }
    }
}

/// What can be wrong with a webhook on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WebhookDamage {
    /// Signed ten minutes ago.
    StaleSignature,
    /// Signed with a secret of another endpoint.
    ForeignSecret,
    /// The same JSON with other white space than was signed.
    AlteredWhitespace,
    /// An event of another API version: its subscriptions have their period at the top, where it
    /// was before 2025-03-31.
    OldApiVersion,
}

/// The account's setting for a subscription that nobody pays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AfterRetries {
    #[default]
    Cancel,
    MarkUnpaid,
    LeavePastDue,
}

impl Faults {
    /// The fault to apply to a call of this path, which is thereby used up.
    pub(super) fn take(&mut self, path: &str) -> Option<FaultKind> {
        let at = self.api.iter().position(|fault| path.starts_with(&fault.path_prefix))?;
        let fault = &mut self.api[at];
        let kind = fault.kind;
        fault.times = fault.times.saturating_sub(1);
        if fault.times == 0 {
            self.api.remove(at);
        }
        Some(kind)
    }

    /// The switches without the faults that wait for calls.
    pub(super) fn switches(&self) -> Self {
        Self { api: Vec::new(), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_used_up_by_the_calls_it_names() {
        let mut faults: Faults = serde_json::from_str(
            r#"{"api": [
                {"path_prefix": "/v1/billing", "times": 2, "kind": "rate_limited"},
                {"path_prefix": "/v1", "times": 1, "kind": {"delay_ms": 5}}
            ]}"#,
        )
        .unwrap();
        assert_eq!(faults.take("/v1/billing/meters"), Some(FaultKind::RateLimited));
        assert_eq!(faults.take("/v1/customers"), Some(FaultKind::DelayMs(5)));
        assert_eq!(faults.take("/v1/customers"), None);
        assert_eq!(faults.take("/v1/billing/meters"), Some(FaultKind::RateLimited));
        assert_eq!(faults, Faults::default());
    }

    #[test]
    fn a_misspelt_switch_is_an_error() {
        assert!(serde_json::from_str::<Faults>(r#"{"duplicate_webhook": true}"#).is_err());
    }
}

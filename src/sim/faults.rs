//! The switches that make the simulator misbehave as Stripe and the network can.

use serde::{Deserialize, Serialize};

/// Everything that can go wrong, all off by default. Over HTTP: `GET` and `POST /_sim/faults`,
/// where a `POST` replaces the whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Every webhook is posted twice.
    pub duplicate_webhooks: bool,
    /// Webhooks are held; [`super::Simulator::deliver_pending`] sends what is held newest first,
    /// and switching this off sends it in order.
    pub shuffle_webhooks: bool,
    /// New events are stored, but never posted to anybody.
    pub drop_webhooks: bool,
    /// Meter events for an unknown customer or meter are refused in the answer, as third parties
    /// report, instead of failing later.
    pub refuse_meter_events_at_once: bool,
    /// How long after a meter event was received summaries begin to show it, in seconds.
    pub summary_lag_seconds: u64,
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
    /// 429 with `Stripe-Rate-Limited-Reason`, without effect; the key stays free.
    RateLimited,
    /// 429 `lock_timeout` without the reason header, without effect; the key stays free.
    LockTimeout,
    /// A proxy's 502 in HTML, without effect; the key stays free.
    BadGateway,
    /// The connection is closed without a byte of answer, and nothing was done.
    DropBeforeEffect,
    /// The connection is closed without a byte of answer, and the work was done.
    DropAfterEffect,
    /// The work is done this many milliseconds later, by the simulator's clock.
    DelayMs(u64),
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

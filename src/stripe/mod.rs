//! Everything that speaks to Stripe or listens to it; the only module that knows async-stripe.
//!
//! Requests are built and answers are read with async-stripe's types, but sent by our own client
//! (`transport`): it keeps the status, the headers and the bodies that are not JSON, pools its
//! connections, and never sends the same write twice on its own account. Webhooks are checked by
//! [`signature`] and reduced by [`event`] to the few names worth knowing; what they claim about a
//! subscription is not believed but fetched again through [`Stripe`].

mod calls;
mod change;
mod checkout;
mod error;
pub mod event;
mod events;
mod failures;
mod meter;
mod objects;
mod portal;
mod provision;
pub mod signature;
mod sums;
#[cfg(test)]
mod testing;
mod transport;

use secrecy::SecretString;

use crate::clock::Clock;
use crate::entropy::Entropy;

pub use change::PlanChange;
pub use checkout::{CheckoutSession, CheckoutState, NewCheckout};
pub use error::{StripeError, StripeErrorKind};
pub use events::{EventPage, Whose};
pub use failures::{Failure, MeterFailures};
pub use meter::{MeterEvent, MeterOutcome};
pub use portal::PortalFlow;
pub use provision::{Made, Secret, api_version};
pub use sums::{Meter, Sum};
pub use transport::SetupError;

use transport::{Patience, Transport};

/// One Stripe account, spoken to with one key. Clones share their connections.
#[derive(Clone)]
pub struct Stripe {
    transport: Transport,
}

impl Stripe {
    /// Prepares the client; nothing is sent yet.
    ///
    /// `base` is where the API lives without `/v1`: `https://api.stripe.com`, or a simulator on
    /// this machine, which alone may be spoken to over plain http.
    ///
    /// # Errors
    /// When the base is not an address a key may be sent to, when the key cannot be a header, or
    /// when no certificate roots are found on this machine.
    pub fn new(
        base: &str,
        key: SecretString,
        clock: Clock,
        entropy: Entropy,
    ) -> Result<Self, SetupError> {
        Self::with_patience(base, &key, clock, entropy, Patience::default())
    }

    fn with_patience(
        base: &str,
        key: &SecretString,
        clock: Clock,
        entropy: Entropy,
        patience: Patience,
    ) -> Result<Self, SetupError> {
        Ok(Self { transport: Transport::new(base, key, clock, entropy, patience)? })
    }

    /// Whether the key is for live mode; `None` when its prefix does not say. An event of the
    /// other mode is none of ours.
    pub fn live_mode(&self) -> Option<bool> {
        self.transport.live_mode()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    fn stripe(base: &str, key: &str) -> Result<Stripe, SetupError> {
        let clock = Clock::manual(Timestamp::from_seconds(1_800_000_000));
        Stripe::new(base, SecretString::from(key), clock, Entropy::seeded(1))
    }

    #[test]
    fn a_client_is_made_for_a_simulator_and_knows_its_mode() {
        assert_eq!(stripe("http://127.0.0.1:1", "sk_test_1").unwrap().live_mode(), Some(false));
        assert!(matches!(stripe("http://example.com", "sk_test_1"), Err(SetupError::Base(_))));
        assert!(matches!(stripe("http://127.0.0.1:1", ""), Err(SetupError::Key)));
    }

    #[test]
    fn every_call_may_run_in_a_task_of_its_own() {
        fn check(_: impl Future + Send) {}
        let stripe = stripe("http://127.0.0.1:1", "sk_test_1").unwrap();
        check(stripe.customer("cus_1"));
        check(stripe.subscriptions_of("cus_1"));
        check(stripe.subscription("sub_1"));
        check(stripe.whose("sub_1"));
        let epoch = Timestamp::from_seconds(0);
        check(stripe.undelivered_events(epoch, epoch, None));
        let event = MeterEvent {
            identifier: "win_1".to_owned(),
            idempotency_key: "key_1".to_owned(),
            event_name: "ai_runs".to_owned(),
            stripe_customer_id: "cus_1".to_owned(),
            value: 1,
            timestamp: Timestamp::from_seconds(1_800_000_000),
        };
        check(stripe.send_meter_event(&event));
        check(stripe.meters());
        check(stripe.units("mtr_1", "cus_1", event.timestamp..event.timestamp));
        check(stripe.meter_failures("evt_1"));
    }
}

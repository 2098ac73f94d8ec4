//! Everything that speaks to Stripe or listens to it; the only module that knows async-stripe.
//!
//! Requests are built and answers are read with async-stripe's types, but sent by our own client
//! (`transport`): it keeps the status, the headers and the bodies that are not JSON, pools its
//! connections, and never sends the same write twice on its own account. Webhooks are checked by
//! [`signature`] and reduced by [`event`] to the few names worth knowing; what they claim about a
//! subscription is not believed but fetched again through [`Stripe`].

mod error;
pub mod event;
mod meter;
mod objects;
pub mod signature;
#[cfg(test)]
mod testing;
mod transport;

use secrecy::SecretString;

use crate::clock::Clock;
use crate::entropy::Entropy;

pub use error::{StripeError, StripeErrorKind};
pub use meter::{MeterEvent, MeterOutcome};
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

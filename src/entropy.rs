//! The only maker of randomness: ids, secrets and jitter.
//!
//! Seeded in tests, so that a run can be repeated; from the operating system otherwise.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::clock::Timestamp;

/// Makes ids, secrets and jitter. Clones share one generator.
#[derive(Clone)]
pub struct Entropy(Arc<Mutex<StdRng>>);

impl Entropy {
    /// Seeded by the operating system.
    #[expect(clippy::disallowed_methods, reason = "the one reader of the system's randomness")]
    pub fn system() -> Self {
        Self(Arc::new(Mutex::new(rand::make_rng())))
    }

    /// The same seed gives the same sequence. Never for production: secrets would be guessable.
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    fn fill(&self, bytes: &mut [u8]) {
        // A panic while the lock was held cannot leave a generator half-written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(bytes);
    }

    /// A new id, `prefix_` and a version 7 UUID, so ids sort by the time they were made.
    pub fn id(&self, prefix: &str, now: Timestamp) -> String {
        let mut random = [0; 10];
        self.fill(&mut random);
        let ms = u64::try_from(now.ms()).unwrap_or(0);
        let uuid = uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid();
        format!("{prefix}_{}", uuid.simple())
    }

    /// A secret of 256 bits.
    pub fn secret(&self) -> [u8; 32] {
        let mut secret = [0; 32];
        self.fill(&mut secret);
        secret
    }

    /// Between half of `full` and all of it, as Stripe's own clients spread their retries.
    pub fn jitter(&self, full: Duration) -> Duration {
        let mut random = [0; 4];
        self.fill(&mut random);
        let share = f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX);
        full.mul_f64(0.5 + share / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_differ() {
        let entropy = Entropy::seeded(1);
        let early = entropy.id("evt", Timestamp::from_seconds(1_000));
        let late = entropy.id("evt", Timestamp::from_seconds(2_000));
        assert!(early < late, "{early} {late}");
        assert_ne!(late, entropy.id("evt", Timestamp::from_seconds(2_000)));
        assert_eq!(late.len(), 4 + 32);
    }

    #[test]
    fn jitter_stays_between_half_and_all() {
        let entropy = Entropy::seeded(2);
        for _ in 0..1000 {
            let wait = entropy.jitter(Duration::from_secs(8));
            assert!(wait >= Duration::from_secs(4) && wait <= Duration::from_secs(8));
        }
    }
}

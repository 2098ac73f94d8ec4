//! How often one customer's links may be followed: each time costs several calls to Stripe, whose
//! own limit is for the whole account, and a link may be in the hands of a program.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::domain::ids::CustomerId;

/// So often at once, and then once in [`EVERY`].
const BURST: u32 = 10;
const EVERY: Duration = Duration::from_secs(3);
/// So many customers are kept in mind at most.
const MAX_CUSTOMERS: usize = 10_000;

/// Of each customer the moment from which on it has its whole burst again.
#[derive(Debug, Default)]
pub struct Pace(Mutex<HashMap<CustomerId, Timestamp>>);

impl Pace {
    /// Whether a link of the customer's may be followed at `now`; if so, it is counted.
    pub fn allows(&self, id: &CustomerId, now: Timestamp) -> bool {
        let mut whole_at = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if whole_at.len() >= MAX_CUSTOMERS {
            whole_at.retain(|_, at| *at > now);
        }
        if whole_at.len() >= MAX_CUSTOMERS {
            // Each of them holds a link that was signed here. To forget is better than to refuse.
            whole_at.clear();
        }
        let at = whole_at.get(id).map_or(now, |at| (*at).max(now)).plus(EVERY);
        let allowed = at.since(now) <= EVERY * BURST;
        if allowed {
            whole_at.insert(id.clone(), at);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_nobody_is_refused_for_others() {
        let (pace, now) = (Pace::default(), Timestamp::from_seconds(1_000));
        for number in 0..=MAX_CUSTOMERS {
            assert!(pace.allows(&format!("c{number}").parse().unwrap(), now));
        }
        assert!(pace.0.lock().unwrap().len() <= MAX_CUSTOMERS);
    }
}

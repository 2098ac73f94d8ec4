//! Stripe's idempotency layer: the first answer under a key is the answer for at least a day.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use super::answer::{Answer, ApiError};
use super::params::Params;
use crate::clock::Timestamp;

/// Keys are forgotten at this age (Stripe: "after at least 24 hours").
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);

/// Every key that is remembered or in use.
#[derive(Default)]
pub(super) struct Keys(HashMap<String, Record>);

struct Record {
    first_seen_at: Timestamp,
    request_id: String,
    path: String,
    params: Params,
    /// `None` while the first request is still being worked on.
    answer: Option<Answer>,
}

/// What to do with a request that carries a key.
#[derive(Debug, PartialEq)]
pub(super) enum Start {
    /// The first of its kind: do the work, then [`Keys::finish`].
    Fresh,
    /// Answered before.
    Replay(Answer),
    Refuse(ApiError),
}

impl Keys {
    pub fn start(
        &mut self,
        key: &str,
        request_id: &str,
        path: &str,
        params: &Params,
        now: Timestamp,
    ) -> Start {
        if key.chars().count() > 255 {
            return Start::Refuse(ApiError::key_too_long());
        }
        // A request still in flight holds its key however long it takes.
        self.0.retain(|_, kept| kept.answer.is_none() || now.since(kept.first_seen_at) < KEPT_FOR);
        let kept = match self.0.entry(key.to_owned()) {
            Entry::Vacant(slot) => {
                slot.insert(Record {
                    first_seen_at: now,
                    request_id: request_id.to_owned(),
                    path: path.to_owned(),
                    params: params.clone(),
                    answer: None,
                });
                return Start::Fresh;
            }
            Entry::Occupied(slot) => slot.into_mut(),
        };
        match &kept.answer {
            None => Start::Refuse(ApiError::key_in_use(key)),
            Some(_) if kept.path != path || kept.params != *params => {
                Start::Refuse(ApiError::key_reused(key))
            }
            Some(answer) => Start::Replay(
                answer
                    .clone()
                    .with_header("idempotent-replayed", "true")
                    .with_header("original-request", kept.request_id.as_str()),
            ),
        }
    }

    /// Keeps the answer, or frees the key if the request never began to execute.
    pub fn finish(&mut self, key: &str, answer: Option<&Answer>) {
        match answer {
            None => {
                self.0.remove(key);
            }
            Some(answer) => {
                if let Some(record) = self.0.get_mut(key) {
                    record.answer = Some(answer.clone());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PATH: &str = "/v1/customers";

    fn start(keys: &mut Keys, path: &str, body: &str, now_s: i64) -> Start {
        keys.start("k", "req_1", path, &Params::parse(&[body]), Timestamp::from_seconds(now_s))
    }

    #[test]
    fn the_first_answer_is_replayed_for_a_day_and_then_forgotten() {
        let mut keys = Keys::default();
        let answer = Answer::json(500, &json!({"error": {}}));
        assert_eq!(start(&mut keys, PATH, "a=1&b=2", 0), Start::Fresh);
        keys.finish("k", Some(&answer));
        let Start::Replay(replay) = start(&mut keys, PATH, "b=2&a=1", 86_399) else { panic!() };
        assert_eq!((replay.status, &replay.body), (500, &answer.body));
        assert!(replay.headers.contains(&("idempotent-replayed", "true".into())));
        assert_eq!(start(&mut keys, PATH, "a=1&b=2", 86_400), Start::Fresh);
    }

    #[test]
    fn another_request_under_the_same_key_is_refused() {
        let mut keys = Keys::default();
        start(&mut keys, PATH, "a=1", 0);
        keys.finish("k", Some(&Answer::json(200, &json!({}))));
        let refused = Start::Refuse(ApiError::key_reused("k"));
        assert_eq!(start(&mut keys, PATH, "a=2", 1), refused);
        assert_eq!(start(&mut keys, "/v1/products", "a=1", 1), refused);
    }

    #[test]
    fn a_key_in_flight_is_refused_however_old_it_is() {
        let mut keys = Keys::default();
        start(&mut keys, PATH, "a=1", 0);
        let refused = Start::Refuse(ApiError::key_in_use("k"));
        assert_eq!(start(&mut keys, PATH, "a=1", 90_000), refused);
    }

    #[test]
    fn a_request_that_never_began_frees_its_key() {
        let mut keys = Keys::default();
        start(&mut keys, PATH, "a=1", 0);
        keys.finish("k", None);
        assert_eq!(start(&mut keys, PATH, "a=2", 1), Start::Fresh);
    }
}

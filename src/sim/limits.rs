//! Rate limits per endpoint, and the lock on what a call writes.

use std::collections::{HashMap, HashSet};

/// Calls of this second, and objects that are being written.
#[derive(Default)]
pub(super) struct Limits {
    second_s: i64,
    calls: HashMap<String, u32>,
    locked: HashSet<String>,
}

/// An endpoint is a method and a path without its ids.
fn endpoint(method: &str, path: &str) -> String {
    let steps =
        path.split('/').map(|step| if step.contains('_') && is_id(step) { ":id" } else { step });
    format!("{method} {}", steps.collect::<Vec<_>>().join("/"))
}

/// Ids end in many characters without a meaning; names of resources do not.
fn is_id(step: &str) -> bool {
    step.rsplit('_').next().is_some_and(|tail| tail.bytes().any(|byte| byte.is_ascii_digit()))
}

impl Limits {
    /// Counts a call and answers whether its endpoint still takes it.
    pub fn admit(&mut self, method: &str, path: &str, now_s: i64, per_second: u32) -> bool {
        if self.second_s != now_s {
            self.second_s = now_s;
            self.calls.clear();
        }
        let calls = self.calls.entry(endpoint(method, path)).or_default();
        *calls = calls.saturating_add(1);
        *calls <= per_second
    }

    /// Locks what a call writes; false if another call is writing it. Stripe's text speaks of
    /// "another API request or Stripe process", so reading takes no lock.
    pub fn lock(&mut self, object: &str) -> bool {
        self.locked.insert(object.to_owned())
    }

    pub fn unlock(&mut self, object: &str) {
        self.locked.remove(object);
    }
}

/// The object that a call would write, if it is one that exists already.
pub(super) fn written(method: &str, path: &str) -> Option<String> {
    if method == "GET" {
        return None;
    }
    let steps: Vec<&str> = path.trim_start_matches("/v1/").split('/').collect();
    match steps.as_slice() {
        [kind @ ("subscriptions" | "customers" | "invoices"), id, ..] => {
            Some(format!("{kind}/{id}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_takes_so_many_calls_a_second_and_its_neighbours_too() {
        let mut limits = Limits::default();
        for id in ["sub_1a", "sub_2b"] {
            assert!(limits.admit("GET", &format!("/v1/subscriptions/{id}"), 7, 2));
        }
        assert!(!limits.admit("GET", "/v1/subscriptions/sub_3c", 7, 2));
        assert!(limits.admit("POST", "/v1/subscriptions/sub_3c", 7, 2));
        assert!(limits.admit("GET", "/v1/webhook_endpoints", 7, 2));
        assert!(limits.admit("GET", "/v1/subscriptions/sub_3c", 8, 2));
    }

    #[test]
    fn who_writes_an_object_keeps_others_from_writing_it() {
        let mut limits = Limits::default();
        let object = written("POST", "/v1/subscriptions/sub_1").unwrap();
        assert!(limits.lock(&object));
        assert!(!limits.lock(&object));
        limits.unlock(&object);
        assert!(limits.lock(&object));
        assert_eq!(written("GET", "/v1/subscriptions/sub_1"), None);
        assert_eq!(written("POST", "/v1/subscriptions"), None);
    }
}

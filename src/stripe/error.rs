//! Why a call to Stripe gave no answer that can be used.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use stripe_client_core::StripeClientErr;

use super::transport::Reply;

/// A call that failed. Safe to log: keys and mail addresses are taken out of Stripe's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StripeError {
    pub kind: StripeErrorKind,
    /// Stripe's own name of the request, for its logs and its support.
    pub request_id: Option<String>,
}

/// What went wrong, by what can be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StripeErrorKind {
    /// No answer, or none of Stripe's. Whether the call took effect is unknown.
    Unreachable { reason: String },
    /// A success of a shape that this build does not know. Asked again, it will be the same.
    Unreadable { reason: String },
    /// 429. Stripe documents no Retry-After, but what is sent is honoured.
    RateLimited { retry_after: Option<Duration> },
    /// 401 or 403: the key is wrong, expired, or may not do this.
    Unauthorized { status: u16, message: String },
    /// Any other 4xx.
    Refused {
        status: u16,
        /// Stripe's error code; where it gives none, its error type.
        code: Option<String>,
        param: Option<String>,
        message: String,
    },
    /// 5xx. Whether the call took effect is unknown.
    Server {
        status: u16,
        /// The same answer as before, kept by Stripe under the idempotency key: under this key
        /// there will be no other for a day.
        replayed: bool,
    },
    /// Never sent: the named value cannot be part of a request.
    Unsendable { what: &'static str },
}

impl StripeError {
    pub(super) fn unreachable(reason: impl Into<String>) -> Self {
        Self { kind: StripeErrorKind::Unreachable { reason: reason.into() }, request_id: None }
    }

    pub(super) fn unreadable(reason: impl Into<String>) -> Self {
        Self { kind: StripeErrorKind::Unreadable { reason: reason.into() }, request_id: None }
    }

    pub(super) fn unsendable(what: &'static str) -> Self {
        Self { kind: StripeErrorKind::Unsendable { what }, request_id: None }
    }

    /// Whether the same call may succeed later, with nobody doing anything about it.
    pub fn is_transient(&self) -> bool {
        match self.kind {
            StripeErrorKind::Unreachable { .. }
            | StripeErrorKind::RateLimited { .. }
            | StripeErrorKind::Server { .. } => true,
            // A request with the same key is under way, or a step it depends on failed.
            StripeErrorKind::Refused { status, .. } => matches!(status, 409 | 424),
            StripeErrorKind::Unreadable { .. }
            | StripeErrorKind::Unauthorized { .. }
            | StripeErrorKind::Unsendable { .. } => false,
        }
    }

    /// Whether Stripe cannot be asked about anything now, as far as one call can tell; else it is
    /// what this call named, or did, that is at fault.
    pub fn is_outage(&self) -> bool {
        self.is_key_unknown()
            || matches!(
                self.kind,
                StripeErrorKind::Unreachable { .. }
                    | StripeErrorKind::RateLimited { .. }
                    | StripeErrorKind::Server { .. }
            )
    }

    /// Whether Stripe knows nothing of our key, so that no call at all can succeed. A key may lack
    /// the permission for one kind of object (403), and have others.
    pub fn is_key_unknown(&self) -> bool {
        matches!(self.kind, StripeErrorKind::Unauthorized { status: 401, .. })
    }

    /// Whether Stripe says that what the call names does not exist.
    pub fn is_missing(&self) -> bool {
        // The one is API v1's word, the other v2's.
        matches!(&self.kind, StripeErrorKind::Refused { code: Some(code), .. }
            if code == "resource_missing" || code == "not_found")
    }

    /// Reads an answer that is not a success.
    pub(super) fn of(reply: &Reply) -> Self {
        let status = reply.status;
        let said = serde_json::from_slice::<Envelope>(&reply.body).map(|said| said.error).ok();
        let message = said
            .as_ref()
            .and_then(|said| said.message.as_deref())
            .map_or_else(|| "no message".to_owned(), presentable);
        let kind = match (status, said) {
            (429, _) => StripeErrorKind::RateLimited { retry_after: reply.retry_after },
            (401 | 403, _) => StripeErrorKind::Unauthorized { status, message },
            (500.., _) => StripeErrorKind::Server { status, replayed: reply.replayed },
            (400..=499, Some(said)) => StripeErrorKind::Refused {
                status,
                code: said.code.or(said.kind).as_deref().map(presentable),
                param: said.param.as_deref().map(presentable),
                message,
            },
            // Not Stripe's words: a proxy's page, or a redirect, which we never follow.
            _ => StripeErrorKind::Unreachable {
                reason: format!("status {status} without an error of Stripe's"),
            },
        };
        Self { kind, request_id: reply.request_id.clone() }
    }
}

impl StripeClientErr for StripeError {
    fn deserialize_err(msg: impl fmt::Display) -> Self {
        Self::unreadable(msg.to_string())
    }
}

impl fmt::Display for StripeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            StripeErrorKind::Unreachable { reason } => write!(f, "Stripe is unreachable: {reason}"),
            StripeErrorKind::Unreadable { reason } => {
                write!(f, "Stripe's answer cannot be read: {reason}")
            }
            StripeErrorKind::RateLimited { .. } => write!(f, "Stripe limits our rate (429)"),
            StripeErrorKind::Unauthorized { status, message } => {
                write!(f, "Stripe does not accept our key ({status}): {message}")
            }
            StripeErrorKind::Refused { status, code, param, message } => {
                write!(f, "Stripe refused ({status}")?;
                for part in [code, param].into_iter().flatten() {
                    write!(f, ", {part}")?;
                }
                write!(f, "): {message}")
            }
            StripeErrorKind::Server { status, .. } => write!(f, "Stripe failed ({status})"),
            StripeErrorKind::Unsendable { what } => {
                write!(f, "not sent to Stripe: unusable {what}")
            }
        }?;
        match &self.request_id {
            Some(id) => write!(f, " [{id}]"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for StripeError {}

/// The body of every refusal. <https://docs.stripe.com/api/errors>
#[derive(Deserialize)]
struct Envelope {
    error: Said,
}

#[derive(Deserialize)]
struct Said {
    #[serde(rename = "type")]
    kind: Option<String>,
    code: Option<String>,
    param: Option<String>,
    message: Option<String>,
}

/// Stripe's words on one short line, without keys and mail addresses, which it likes to repeat.
fn presentable(text: &str) -> String {
    const MAX_CHARS: usize = 300;
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty());
    let mut line = String::new();
    for word in words {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(match word {
            _ if ["sk_", "rk_", "pk_", "whsec_"].iter().any(|p| word.contains(p)) => "[key]",
            _ if word.contains('@') => "[address]",
            _ => word,
        });
    }
    line.chars().take(MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, body: &str) -> Reply {
        Reply {
            status,
            should_retry: None,
            retry_after: None,
            replayed: false,
            request_id: Some("req_1".to_owned()),
            date: None,
            body: body.as_bytes().to_vec(),
        }
    }

    #[test]
    fn every_status_has_its_kind_and_says_whether_to_come_back() {
        const JSON: &str = r#"{"error":{"type":"invalid_request_error","message":"no"}}"#;
        const HTML: &str = "<html>Bad gateway</html>";
        for (status, body, kind, transient, outage) in [
            (302, "", "Unreachable", true, true),
            (400, JSON, "Refused", false, false),
            (400, HTML, "Unreachable", true, true),
            (401, JSON, "Unauthorized", false, true),
            (402, JSON, "Refused", false, false),
            (403, HTML, "Unauthorized", false, false),
            (404, JSON, "Refused", false, false),
            (404, HTML, "Unreachable", true, true),
            (409, JSON, "Refused", true, false),
            (424, JSON, "Refused", true, false),
            (429, HTML, "RateLimited", true, true),
            (500, JSON, "Server", true, true),
            (502, HTML, "Server", true, true),
        ] {
            let error = StripeError::of(&reply(status, body));
            let name = format!("{:?}", error.kind);
            assert!(name.starts_with(kind), "{status}: {name}");
            let told = (error.is_transient(), error.is_outage());
            assert_eq!(told, (transient, outage), "{status}: {name}");
            assert_eq!(error.request_id.as_deref(), Some("req_1"));
        }
    }

    #[test]
    fn stripes_code_param_and_message_are_kept() {
        let body = r#"{"error":{"type":"invalid_request_error","code":"resource_missing",
            "param":"id","message":"No such customer: 'cus_1'","charge":null}}"#;
        let error = StripeError::of(&reply(404, body));
        assert!(error.is_missing());
        assert_eq!(
            error.to_string(),
            "Stripe refused (404, resource_missing, id): No such customer: 'cus_1' [req_1]"
        );
    }

    #[test]
    fn a_404_of_an_unknown_address_is_not_a_missing_object() {
        let body = r#"{"error":{"type":"invalid_request_error","message":"Unrecognized URL"}}"#;
        assert!(!StripeError::of(&reply(404, body)).is_missing());
    }

    #[test]
    fn keys_and_addresses_do_not_survive_in_a_message() {
        assert_eq!(
            presentable("Invalid API Key provided: sk_test_****1234\nfor jo@example.com, sorry"),
            "Invalid API Key provided: [key] for [address] sorry"
        );
        assert_eq!(presentable(&"é".repeat(1000)).chars().count(), 300);
    }
}

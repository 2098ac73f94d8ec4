//! Calls without async-stripe's types: for objects of which we read a few fields, so that a field
//! that changes its shape concerns us only if it is one of those, and for version 2 of the API,
//! which async-stripe cannot address.

use reqwest::Method;
use serde_json::Value;

use super::{FORM, Outgoing, READ_ATTEMPTS, Transport};
use crate::clock::Timestamp;
use crate::stripe::StripeError;

/// An answer that is a success.
pub(in crate::stripe) struct Answered {
    pub body: Value,
    /// It was given before, under the same idempotency key: what it says may no longer be so.
    pub replayed: bool,
    pub date: Option<Timestamp>,
}

/// Why there is none.
pub(in crate::stripe) struct Failed {
    pub error: StripeError,
    /// Stripe said so before and would say so again under the same idempotency key.
    pub replayed: bool,
}

impl From<StripeError> for Failed {
    fn from(error: StripeError) -> Self {
        Self { error, replayed: false }
    }
}

/// What a write carries.
pub(in crate::stripe) enum Body {
    /// Version 1: bracketed names, in order.
    Form(Vec<(String, String)>),
    /// Version 2.
    Json(Value),
}

impl Body {
    /// The content type and the text, the same for the same content.
    fn encoded(&self) -> (&'static str, String) {
        match self {
            Self::Form(fields) => (FORM, encoded(fields)),
            Self::Json(body) => ("application/json", body.to_string()),
        }
    }

    /// The text alone.
    pub fn text(&self) -> String {
        self.encoded().1
    }
}

impl Transport {
    /// Reads what stands at a path such as `/v1/account`.
    pub async fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Answered, StripeError> {
        let mut url = self.url(path)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let outgoing = Outgoing { method: Method::GET, url, body: None, idempotency_key: None };
        self.ask(&outgoing).await.map_err(|failed| failed.error)
    }

    /// Writes, again if need be: the key makes it one write, however often it is sent.
    pub async fn post(&self, path: &str, body: &Body, key: &str) -> Result<Answered, Failed> {
        let outgoing = Outgoing {
            method: Method::POST,
            url: self.url(path)?,
            body: Some(body.encoded()),
            idempotency_key: Some(key.to_owned()),
        };
        self.ask(&outgoing).await
    }

    /// An idempotency key that nobody has used.
    pub fn fresh_key(&self) -> String {
        self.entropy.id("tollgate", self.clock.now())
    }

    async fn ask(&self, outgoing: &Outgoing) -> Result<Answered, Failed> {
        let reply = self.attempt(outgoing, READ_ATTEMPTS).await.map_err(|none| none.error)?;
        let replayed = reply.replayed;
        if !(200..300).contains(&reply.status) {
            return Err(Failed { error: StripeError::of(&reply), replayed });
        }
        let body = serde_json::from_slice(&reply.body)
            .map_err(|_| StripeError::unreachable("the answer is not JSON"))?;
        Ok(Answered { body, replayed, date: reply.date })
    }
}

fn encoded(fields: &[(String, String)]) -> String {
    let mut url = reqwest::Url::parse("http://form/").expect("a constant address");
    url.query_pairs_mut().extend_pairs(fields);
    url.query().unwrap_or_default().to_owned()
}

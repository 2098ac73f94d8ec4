//! The HTTP client under async-stripe's types.
//!
//! async-stripe's own client loses the status of answers that are not JSON, hides the headers and
//! opens a connection per request; this one does not. Reads are tried three times, by Stripe's
//! official rule for retries; writes are sent once, because their schedule and their idempotency
//! key are kept in the outbox, where a crash cannot lose them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

// async-stripe's trait answers in this type (of the bytes crate), which axum passes on.
use axum::body::Bytes;
use reqwest::header::{
    AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use reqwest::{Method, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::de::{DeserializeOwned, IgnoredAny};
use stripe_client_core::{
    CustomizedStripeRequest, IdempotencyKey, RequestBuilder, StripeClient, StripeClientErr as _,
    StripeMethod, VERSION,
};

use super::error::StripeError;
use crate::clock::{Clock, Timestamp};
use crate::entropy::Entropy;

pub(super) mod direct;

/// Far above any page of subscriptions; an answer beyond it is not Stripe's.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;

const READ_ATTEMPTS: u32 = 3;

const FORM: &str = "application/x-www-form-urlencoded";

const USER_AGENT: &str = concat!("tollgate/", env!("CARGO_PKG_VERSION"));

const STRIPE_VERSION: HeaderName = HeaderName::from_static("stripe-version");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const STRIPE_SHOULD_RETRY: HeaderName = HeaderName::from_static("stripe-should-retry");
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// Why no client can be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("the Stripe API base {0}")]
    Base(&'static str),
    #[error("the Stripe key is empty or holds characters a header cannot carry")]
    Key,
    #[error("the HTTP client cannot be set up")]
    Client(#[source] reqwest::Error),
}

/// How long to wait for Stripe.
pub(super) struct Patience {
    pub connect: Duration,
    /// One attempt from connecting to the last byte of the answer.
    pub attempt: Duration,
    /// Before the second attempt of a read; doubled before each further one.
    pub first_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            attempt: Duration::from_secs(30),
            first_pause: Duration::from_millis(500),
        }
    }
}

/// Sends one request at a time over pooled connections.
#[derive(Clone)]
pub(super) struct Transport {
    http: reqwest::Client,
    base: Arc<str>,
    live_mode: Option<bool>,
    first_pause: Duration,
    clock: Clock,
    entropy: Entropy,
}

/// An answer as it came, whatever its status.
pub(super) struct Reply {
    pub status: u16,
    /// `Stripe-Should-Retry`: Stripe knows better than any status.
    pub should_retry: Option<bool>,
    pub retry_after: Option<Duration>,
    /// `Idempotent-Replayed`: the answer to an earlier request under the same key, given again.
    pub replayed: bool,
    pub request_id: Option<String>,
    /// When Stripe wrote the answer, by its own clock.
    pub date: Option<Timestamp>,
    pub body: Vec<u8>,
}

/// A request, ready to go.
struct Outgoing {
    method: Method,
    url: Url,
    /// Its type and its text.
    body: Option<(&'static str, String)>,
    idempotency_key: Option<String>,
}

/// No answer, or not a whole one.
struct NoReply {
    error: StripeError,
    /// Failed fast enough that trying again is not asking too much of the caller's patience.
    fast: bool,
}

impl From<StripeError> for NoReply {
    fn from(error: StripeError) -> Self {
        Self { error, fast: false }
    }
}

impl Transport {
    pub fn new(
        base: &str,
        key: &SecretString,
        clock: Clock,
        entropy: Entropy,
        patience: Patience,
    ) -> Result<Self, SetupError> {
        // Fails when a provider is already installed, and then there is nothing to do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = check_base(base)?;
        let builder = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .default_headers(default_headers(key)?)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(patience.connect)
            .timeout(patience.attempt);
        let builder = if url.scheme() == "https" {
            builder.https_only(true)
        } else {
            // The simulator on this machine: no proxy stands between, and no certificates are
            // needed, so a machine that has none installed can still run it.
            builder.no_proxy().tls_certs_only([])
        };
        Ok(Self {
            http: builder.build().map_err(SetupError::Client)?,
            base: base.trim_end_matches('/').into(),
            live_mode: live_mode(key.expose_secret()),
            first_pause: patience.first_pause,
            clock,
            entropy,
        })
    }

    pub fn live_mode(&self) -> Option<bool> {
        self.live_mode
    }

    /// Between half of `pause` and all of it.
    pub fn jitter(&self, pause: Duration) -> Duration {
        self.entropy.jitter(pause)
    }

    /// Sends `request` once and reads the whole answer.
    async fn exchange(&self, request: &Outgoing) -> Result<Reply, NoReply> {
        let started = self.clock.now();
        let mut http = self.http.request(request.method.clone(), request.url.clone());
        if let Some((kind, body)) = &request.body {
            http = http.header(CONTENT_TYPE, *kind).body(body.clone());
        }
        if let Some(key) = &request.idempotency_key {
            let value = HeaderValue::from_str(key)
                .map_err(|_| StripeError::unsendable("idempotency key"))?;
            http = http.header(IDEMPOTENCY_KEY, value);
        }
        let answer = async { read_whole(http.send().await.map_err(no_reply)?).await }.await;
        tracing::debug!(
            method = %request.method,
            path = request.url.path(),
            status = answer.as_ref().ok().map(|reply| reply.status),
            request_id = answer.as_ref().ok().and_then(|reply| reply.request_id.as_deref()),
            took_ms = self.clock.now().since(started).as_millis(),
            "asked Stripe"
        );
        answer
    }

    /// Sends `request`, at most so many times while that is worth it.
    async fn attempt(&self, request: &Outgoing, attempts: u32) -> Result<Reply, NoReply> {
        let mut pause = self.first_pause;
        for _ in 1..attempts {
            let answer = self.exchange(request).await;
            if !worth_another_attempt(&answer) {
                return answer;
            }
            // Machine time, not the clock's: it lets Stripe recover within this one call, and a
            // clock that stands still must not leave a call hanging.
            tokio::time::sleep(self.entropy.jitter(pause)).await;
            pause *= 2;
        }
        self.exchange(request).await
    }

    /// Reads what async-stripe has no types for, or whose numbers its types would round.
    ///
    /// # Errors
    /// When Stripe cannot be asked, refuses to answer, or its answer has another shape.
    pub async fn read<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> Result<T, StripeError> {
        let body = settle(self.attempt(&self.outgoing(request, None)?, READ_ATTEMPTS).await)?;
        serde_json::from_slice(&body).map_err(StripeError::deserialize_err)
    }

    /// A request as async-stripe builds it: its body a form, its path one of version 1 unless it
    /// says otherwise.
    fn outgoing(
        &self,
        request: RequestBuilder,
        key: Option<IdempotencyKey>,
    ) -> Result<Outgoing, StripeError> {
        let version = if request.path.starts_with("/v2/") { "" } else { "/v1" };
        let mut url = self.url(&format!("{version}{}", request.path))?;
        url.set_query(request.query.as_deref().filter(|query| !query.is_empty()));
        Ok(Outgoing {
            method: method(request.method),
            url,
            body: request.body.map(|form| (FORM, form)),
            idempotency_key: key.map(|key| key.as_str().to_owned()),
        })
    }

    /// `path` begins with the API's version: `/v1/prices`.
    fn url(&self, path: &str) -> Result<Url, StripeError> {
        let url = Url::parse(&format!("{}{path}", self.base));
        url.map_err(|_| StripeError::unsendable("address"))
    }
}

impl StripeClient for Transport {
    type Err = StripeError;

    async fn execute(&self, request: CustomizedStripeRequest) -> Result<Bytes, StripeError> {
        let (request, options) = request.into_pieces();
        let key = options.request_strategy.and_then(|strategy| strategy.get_key());
        let attempts = if matches!(request.method, StripeMethod::Get) { READ_ATTEMPTS } else { 1 };
        let outgoing = self.outgoing(request, key)?;
        settle(self.attempt(&outgoing, attempts).await)
    }
}

/// What the caller gets of an answer.
fn settle(answer: Result<Reply, NoReply>) -> Result<Bytes, StripeError> {
    let reply = answer.map_err(|none| none.error)?;
    if (200..300).contains(&reply.status) {
        // Not Stripe's words, but those of something in between that finds all in order.
        serde_json::from_slice::<IgnoredAny>(&reply.body)
            .map_err(|_| StripeError::unreachable("the answer is not JSON"))?;
        return Ok(reply.body.into());
    }
    Err(StripeError::of(&reply))
}

/// The rule of Stripe's official clients: what Stripe says goes, and without a word conflicts and
/// server errors are tried again. A 429 is not, nor anything that names a time to come back:
/// waiting that long is for the caller's schedule.
fn worth_another_attempt(answer: &Result<Reply, NoReply>) -> bool {
    match answer {
        Ok(Reply { retry_after: Some(_), .. }) => false,
        Ok(Reply { status: 200..=299, .. }) => false,
        Ok(Reply { should_retry: Some(said), .. }) => *said,
        Ok(Reply { status, .. }) => matches!(status, 409 | 424 | 500..),
        Err(none) => none.fast,
    }
}

async fn read_whole(mut response: reqwest::Response) -> Result<Reply, NoReply> {
    let mut reply = Reply {
        status: response.status().as_u16(),
        should_retry: header(&response, &STRIPE_SHOULD_RETRY).and_then(|text| text.parse().ok()),
        retry_after: header(&response, &RETRY_AFTER)
            .and_then(|text| text.parse().ok())
            .map(Duration::from_secs),
        replayed: header(&response, &IDEMPOTENT_REPLAYED) == Some("true"),
        request_id: header(&response, &REQUEST_ID).map(str::to_owned),
        date: header(&response, &DATE).and_then(moment),
        body: Vec::new(),
    };
    while let Some(chunk) = response.chunk().await.map_err(no_reply)? {
        if reply.body.len() + chunk.len() > MAX_BODY_BYTES {
            return Err(StripeError::unreachable("the answer is too large").into());
        }
        reply.body.extend_from_slice(&chunk);
    }
    Ok(reply)
}

fn header<'a>(response: &'a reqwest::Response, name: &HeaderName) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// `Wed, 25 Nov 2026 07:15:25 GMT`.
fn moment(text: &str) -> Option<Timestamp> {
    let read = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(Timestamp::from_jiff(read))
}

fn no_reply(error: reqwest::Error) -> NoReply {
    let reason = if error.is_connect() {
        "no connection"
    } else if error.is_timeout() {
        "no answer in time"
    } else {
        "the connection broke"
    };
    NoReply {
        fast: error.is_connect() || !error.is_timeout(),
        error: StripeError::unreachable(format!("{reason}: {}", root_cause(&error))),
    }
}

/// The innermost words of an HTTP error: the outer ones only repeat the address.
fn root_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => root_cause(source),
        None => error.to_string(),
    }
}

fn method(method: StripeMethod) -> Method {
    match method {
        StripeMethod::Get => Method::GET,
        StripeMethod::Post => Method::POST,
        StripeMethod::Delete => Method::DELETE,
    }
}

/// Refuses a base over which the key would travel in the clear.
fn check_base(base: &str) -> Result<Url, SetupError> {
    let url = Url::parse(base).map_err(|_| SetupError::Base("is not a URL"))?;
    let host = url.host_str().unwrap_or_default();
    let loopback = host == "localhost"
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if !(url.scheme() == "https" || url.scheme() == "http" && loopback) {
        return Err(SetupError::Base("must be https, or http on this machine's loopback"));
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
        return Err(SetupError::Base("must be an address only, without user, query or fragment"));
    }
    Ok(url)
}

fn default_headers(key: &SecretString) -> Result<HeaderMap, SetupError> {
    let key = key.expose_secret();
    if key.trim().is_empty() {
        return Err(SetupError::Key);
    }
    let mut bearer =
        HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| SetupError::Key)?;
    bearer.set_sensitive(true);
    // Not the account's default version: the one async-stripe's types are made from.
    let version = HeaderValue::from_str(VERSION.as_str()).expect("a version is plain text");
    Ok(HeaderMap::from_iter([(AUTHORIZATION, bearer), (STRIPE_VERSION, version)]))
}

/// `sk_live_…`, `rk_live_…`, `sk_test_…`, `rk_test_…`. <https://docs.stripe.com/keys>
fn live_mode(key: &str) -> Option<bool> {
    if key.contains("_live_") {
        return Some(true);
    }
    key.contains("_test_").then_some(false)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use stripe_client_core::RequestStrategy;

    use super::*;
    use crate::stripe::StripeErrorKind;
    use crate::stripe::testing::{FakeStripe, Turn};

    /// Stands for any read; its answer must be `null`.
    async fn read(fake: &FakeStripe) -> Result<(), StripeError> {
        let request = RequestBuilder::new(StripeMethod::Get, "/thing").customize();
        request.send(&fake.stripe().transport).await
    }

    /// Stands for any write; its answer must be `null`.
    async fn write(fake: &FakeStripe, key: &str) -> Result<(), StripeError> {
        let key = IdempotencyKey::new(key).unwrap();
        RequestBuilder::new(StripeMethod::Post, "/thing")
            .form(&BTreeMap::from([("a", "b c")]))
            .customize()
            .request_strategy(RequestStrategy::Idempotent(key))
            .send(&fake.stripe().transport)
            .await
    }

    #[tokio::test]
    async fn a_request_carries_our_name_the_pinned_version_the_key_and_the_form() {
        let fake = FakeStripe::start([Turn::json(200, "null")]).await;
        assert_eq!(write(&fake, "key-1").await, Ok(()));
        let seen = fake.seen();
        assert_eq!(seen[0].line, "POST /v1/thing HTTP/1.1");
        assert_eq!(seen[0].header("authorization"), "Bearer sk_test_fake");
        assert_eq!(seen[0].header("stripe-version"), "2026-09-30.endive");
        assert_eq!(seen[0].header("idempotency-key"), "key-1");
        assert_eq!(seen[0].header("user-agent"), USER_AGENT);
        assert_eq!(seen[0].header("content-type"), "application/x-www-form-urlencoded");
        assert_eq!(seen[0].form(), [("a".to_owned(), "b c".to_owned())]);
    }

    #[tokio::test]
    async fn a_read_is_tried_three_times_and_then_given_up() {
        let fake = FakeStripe::start([Turn::html(502), Turn::Hangup, Turn::html(503)]).await;
        let error = read(&fake).await.unwrap_err();
        assert_eq!(error.kind, StripeErrorKind::Server { status: 503, replayed: false });
        assert_eq!(fake.seen().len(), 3);
    }

    #[tokio::test]
    async fn a_read_recovers_on_a_later_attempt() {
        let fake = FakeStripe::start([Turn::html(502), Turn::json(200, "null")]).await;
        assert_eq!(read(&fake).await, Ok(()));
    }

    #[tokio::test]
    async fn a_write_is_sent_once_whatever_comes_back() {
        for turn in [
            Turn::html(502),
            Turn::Hangup,
            Turn::json(500, "{}").with("stripe-should-retry", "true"),
        ] {
            let fake = FakeStripe::start([turn, Turn::json(200, "null")]).await;
            assert!(write(&fake, "key-1").await.unwrap_err().is_transient());
            assert_eq!(fake.seen().len(), 1);
        }
    }

    #[tokio::test]
    async fn a_write_lost_on_a_used_connection_is_not_sent_again_either() {
        let fake =
            FakeStripe::start([Turn::json(200, "null"), Turn::Hangup, Turn::json(200, "null")])
                .await;
        let stripe = fake.stripe();
        let send = async || {
            RequestBuilder::new(StripeMethod::Post, "/thing")
                .customize()
                .send(&stripe.transport)
                .await
        };
        assert_eq!(send().await, Ok(()));
        let lost: Result<(), StripeError> = send().await;
        assert!(matches!(lost.unwrap_err().kind, StripeErrorKind::Unreachable { .. }));
        assert_eq!((fake.seen().len(), fake.connections()), (2, 1));
    }

    #[tokio::test]
    async fn stripes_word_on_retrying_goes_before_the_status() {
        let fake = FakeStripe::start([
            Turn::json(400, "{}").with("stripe-should-retry", "true"),
            Turn::json(500, "{}").with("stripe-should-retry", "false"),
        ])
        .await;
        let server = StripeErrorKind::Server { status: 500, replayed: false };
        assert_eq!(read(&fake).await.unwrap_err().kind, server);
        assert_eq!(fake.seen().len(), 2);
    }

    #[tokio::test]
    async fn a_rate_limit_goes_back_to_the_callers_schedule_at_once() {
        let fake = FakeStripe::start([Turn::json(429, "{}")
            .with("retry-after", "7")
            .with("stripe-should-retry", "true")])
        .await;
        let wait = Some(Duration::from_secs(7));
        let error = read(&fake).await.unwrap_err();
        assert_eq!(error.kind, StripeErrorKind::RateLimited { retry_after: wait });
    }

    #[tokio::test]
    async fn an_answer_that_never_ends_is_given_up_after_one_attempt() {
        let fake = FakeStripe::start([Turn::Stall]).await;
        let error = read(&fake).await.unwrap_err();
        assert!(error.to_string().contains("no answer in time"), "{error}");
        assert_eq!(fake.seen().len(), 1);
    }

    #[tokio::test]
    async fn a_success_that_is_not_json_is_not_stripes() {
        let fake = FakeStripe::start([Turn::html(200), Turn::json(200, r#"{"a":1}"#)]).await;
        assert!(read(&fake).await.unwrap_err().is_outage());
        let odd: Result<String, _> =
            fake.stripe().transport.read(RequestBuilder::new(StripeMethod::Get, "/thing")).await;
        assert!(matches!(odd.unwrap_err().kind, StripeErrorKind::Unreadable { .. }));
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let fake = FakeStripe::start([
            Turn::json(302, "").with("location", "/v1/elsewhere"),
            Turn::json(200, "null"),
        ])
        .await;
        assert!(matches!(read(&fake).await.unwrap_err().kind, StripeErrorKind::Unreachable { .. }));
        assert_eq!(fake.seen().len(), 1);
    }

    #[tokio::test]
    async fn an_answer_beyond_all_measure_is_not_read_to_its_end() {
        let fake = FakeStripe::start([Turn::json(200, &"x".repeat(MAX_BODY_BYTES + 1))]).await;
        let error = read(&fake).await.unwrap_err();
        assert!(error.to_string().contains("too large"), "{error}");
    }

    #[tokio::test]
    async fn an_idempotency_key_that_is_no_header_is_never_sent() {
        let fake = FakeStripe::start([]).await;
        let error = write(&fake, "two\nlines").await.unwrap_err();
        assert_eq!(error.kind, StripeErrorKind::Unsendable { what: "idempotency key" });
        assert_eq!(fake.seen().len(), 0);
    }

    #[test]
    fn the_key_is_never_sent_in_the_clear_over_a_network() {
        for good in [
            "https://api.stripe.com",
            "http://127.0.0.1:1/",
            "http://[::1]:1",
            "http://localhost:1/stripe",
        ] {
            assert!(check_base(good).is_ok(), "{good}");
        }
        for bad in [
            "http://api.stripe.com",
            "http://127.0.0.1.example.com",
            "http://user@127.0.0.1",
            "https://api.stripe.com/?a=b",
            "ftp://127.0.0.1",
            "api.stripe.com",
            "",
        ] {
            assert!(check_base(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_keys_prefix_tells_its_mode() {
        assert_eq!(live_mode("sk_live_1"), Some(true));
        assert_eq!(live_mode("rk_test_1"), Some(false));
        assert_eq!(live_mode("secret"), None);
    }

    #[test]
    fn an_unusable_key_is_refused_without_repeating_it() {
        for key in ["", "  ", "sk_test_\n"] {
            let error = default_headers(&SecretString::from(key)).unwrap_err();
            assert!(!error.to_string().contains("sk_test"), "{error}");
        }
    }
}

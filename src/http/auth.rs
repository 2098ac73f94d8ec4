//! Who is calling: API keys for the product, the admin token for support.
//!
//! Keys are 256 random bits, so their SHA-256 is kept and compared, and nothing slower is needed.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use governor::DefaultDirectRateLimiter;
use governor::{Quota, RateLimiter};
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use super::Daemon;
use super::error::ApiError;
use crate::app::Credentials;
use crate::clock::Timestamp;
use crate::gate::outage;

/// A revoked key may still be let in for this long.
const REMEMBER_KEY: Duration = Duration::from_secs(5);

/// SHA-256 of a key or token, in hex.
pub fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

/// Knows the keys that were good a moment ago, so that the hot path needs no database.
pub struct KeyRing {
    /// Hash of the admin token, if there is one.
    admin: Option<String>,
    known: RwLock<HashMap<String, Known>>,
    /// One look-up at a time: a flood of wrong keys cannot take the database's connections.
    strangers: Semaphore,
    /// The same for keys that were good before, which do not wait behind strangers.
    acquaintances: Semaphore,
    rate_limit: Option<NonZeroU32>,
}

#[derive(Clone)]
struct Known {
    good_until: Option<Timestamp>,
    limiter: Option<Arc<DefaultDirectRateLimiter>>,
}

impl KeyRing {
    /// `rate_limit` is in requests per second and key.
    pub fn new(credentials: &Credentials, rate_limit: Option<u32>) -> Self {
        let rate_limit = rate_limit.and_then(NonZeroU32::new);
        let admin = credentials.admin_token.as_ref().map(|token| hash(token.expose_secret()));
        let ring = Self {
            admin,
            known: RwLock::default(),
            strangers: Semaphore::new(1),
            acquaintances: Semaphore::new(1),
            rate_limit,
        };
        if let Some(key) = &credentials.api_key {
            ring.remember(hash(key.expose_secret()), None);
        }
        ring
    }

    fn remember(&self, hash: String, good_until: Option<Timestamp>) -> Known {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let limiter =
            || self.rate_limit.map(|rate| Arc::new(RateLimiter::direct(Quota::per_second(rate))));
        let entry = known.entry(hash).or_insert_with(|| Known { good_until, limiter: limiter() });
        entry.good_until = good_until;
        entry.clone()
    }

    fn recall(&self, hash: &str, now: Timestamp) -> Option<Known> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(hash).filter(|key| key.good_until.is_none_or(|until| now < until)).cloned()
    }

    fn is_admin(&self, hash: &str) -> bool {
        self.admin.as_ref().is_some_and(|admin| admin.as_bytes().ct_eq(hash.as_bytes()).into())
    }

    /// The key as it was last known, if it was good then.
    fn was_good(&self, hash: &str) -> Option<Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(hash).cloned()
    }

    async fn admit(&self, daemon: &Daemon, hash: String) -> Result<(), ApiError> {
        match self.recall(&hash, daemon.app.clock.now()) {
            Some(known) => known.within_rate(),
            None => self.look_up(daemon, hash).await?.within_rate(),
        }
    }

    async fn look_up(&self, daemon: &Daemon, hash: String) -> Result<Known, ApiError> {
        let was_good = self.was_good(&hash);
        outage::look_again(&daemon.app).await;
        if daemon.app.outages.lasts() {
            // To ask would take long, one after another, and be in vain.
            let away = "the database cannot answer";
            return was_good.ok_or_else(|| ApiError::unavailable("unavailable", away));
        }
        let line = if was_good.is_some() { &self.acquaintances } else { &self.strangers };
        let _turn = line.acquire().await;
        if let Some(known) = self.recall(&hash, daemon.app.clock.now()) {
            // Someone who asked with the same key was here first.
            return Ok(known);
        }
        let found = daemon.app.store.live_key(&hash).await;
        let until = Some(daemon.app.clock.now().plus(REMEMBER_KEY));
        match found {
            Ok(Some(_)) => Ok(self.remember(hash, until)),
            Ok(None) => {
                self.known.write().unwrap_or_else(PoisonError::into_inner).remove(&hash);
                Err(unauthorized())
            }
            // Whether it was revoked since cannot be asked now; what an outage lets through is for
            // the plans to say.
            Err(_) if was_good.is_some() => Ok(self.remember(hash, until)),
            Err(error) => Err(error.into()),
        }
    }
}

impl Known {
    fn within_rate(&self) -> Result<(), ApiError> {
        match &self.limiter {
            Some(limiter) if limiter.check().is_err() => Err(ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limited",
                "this key asks more often than TOLLGATE_RATE_LIMIT allows",
            )),
            _ => Ok(()),
        }
    }
}

/// Lets in who holds a live API key.
pub async fn require_api_key(
    State(daemon): State<Daemon>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let hash = hash(bearer(request.headers())?);
    if daemon.keys.is_admin(&hash) {
        return Err(forbidden("this is the admin token; an API key is wanted here"));
    }
    daemon.keys.admit(&daemon, hash).await?;
    Ok(next.run(request).await)
}

/// Lets in who holds the admin token.
pub async fn require_admin(
    State(daemon): State<Daemon>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let hash = hash(bearer(request.headers())?);
    if daemon.keys.is_admin(&hash) {
        return Ok(next.run(request).await);
    }
    daemon.keys.admit(&daemon, hash).await?;
    Err(forbidden("this is an API key; the admin token is wanted here"))
}

fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let (scheme, token) = value.and_then(|value| value.split_once(' ')).ok_or_else(unauthorized)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim()) } else { Err(unauthorized()) }
}

fn unauthorized() -> ApiError {
    ApiError::new(
        StatusCode::UNAUTHORIZED,
        "unauthorized",
        "the header Authorization: Bearer <key> is missing, or the key is not valid",
    )
}

fn forbidden(message: &str) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "forbidden", message)
}

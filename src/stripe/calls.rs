//! Calls of our own making: their parameters are small types of ours, and of the answer only what
//! is used is read. So nothing that a later version adds or leaves out elsewhere can break an
//! upgrade. That both are as Stripe has them, the official SDK's types say in the tests.

use std::time::Duration;

use serde::Serialize;
use stripe_client_core::{IdempotencyKey, RequestBuilder, RequestStrategy, StripeMethod};

use super::{Stripe, StripeError, StripeErrorKind};

/// How often a write with a key is sent at most.
const ATTEMPTS: u32 = 7;
/// How long to wait for a twin of the same key to be done, at first.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

impl Stripe {
    pub(super) async fn get<T: miniserde::Deserialize>(
        &self,
        path: &str,
        query: &impl Serialize,
    ) -> Result<T, StripeError> {
        let request = RequestBuilder::new(StripeMethod::Get, path).query(query);
        request.customize().send(&self.transport).await
    }

    /// A write that does no harm when it is done twice.
    pub(super) async fn post<T: miniserde::Deserialize>(
        &self,
        path: &str,
        form: &impl Serialize,
    ) -> Result<T, StripeError> {
        let request = RequestBuilder::new(StripeMethod::Post, path).form(form);
        request.customize().send(&self.transport).await
    }

    /// A write that is done once, however often it is sent under `key`. So it is sent again at
    /// once where the answer was lost, and while a twin of it is being worked on: somebody waits
    /// for it in front of a page.
    pub(super) async fn post_once<T: miniserde::Deserialize>(
        &self,
        path: &str,
        form: &impl Serialize,
        key: &str,
    ) -> Result<T, StripeError> {
        let mut pause = FIRST_PAUSE;
        let mut lost = false;
        for _ in 1..ATTEMPTS {
            let answer = self.send_once(path, form, key).await;
            match answer.as_ref().map_err(|error| &error.kind) {
                Err(StripeErrorKind::Unreachable { .. }) if !lost => lost = true,
                Err(StripeErrorKind::Refused { status: 409, .. }) => {}
                _ => return answer,
            }
            // Machine time, as between the attempts of a read.
            tokio::time::sleep(self.transport.jitter(pause)).await;
            pause *= 2;
        }
        self.send_once(path, form, key).await
    }

    async fn send_once<T: miniserde::Deserialize>(
        &self,
        path: &str,
        form: &impl Serialize,
        key: &str,
    ) -> Result<T, StripeError> {
        let key =
            IdempotencyKey::new(key).map_err(|_| StripeError::unsendable("idempotency key"))?;
        let request = RequestBuilder::new(StripeMethod::Post, path).form(form).customize();
        let request = request.request_strategy(RequestStrategy::Idempotent(key));
        request.send(&self.transport).await
    }
}

/// A list's page.
#[derive(miniserde::Deserialize)]
pub(super) struct Page<T> {
    pub data: Vec<T>,
    pub has_more: bool,
}

/// Nothing that is read.
#[derive(miniserde::Deserialize)]
pub(super) struct Unread {}

/// No parameters.
#[derive(Serialize)]
pub(super) struct Nothing {}

/// Metadata that names our customer.
#[derive(Serialize)]
pub(super) struct OurMetadata<'a> {
    pub tollgate_customer_id: &'a str,
}

//! The account itself, and what of ours stands in it: read for [`crate::domain::provision`], and
//! written as that decides. Nothing here decides anything.

mod read;
#[cfg(test)]
mod tests;
mod write;

use serde_json::{Value, json};

use super::transport::direct::{Answered, Body};
use super::{Stripe, StripeError};
use crate::clock::Timestamp;
use crate::domain::provision::found::Account;

pub use write::{Made, Secret};

/// The version of the API that this build speaks, and that its webhooks are to be rendered in.
pub fn api_version() -> &'static str {
    stripe_client_core::VERSION.as_str()
}

/// In which metadata our objects name what they are.
const MARK: &str = "tollgate";
/// The portal's configuration among others; whoever makes portal sessions finds it by this.
const PORTAL_MARK: &str = "portal";
const WEBHOOKS_MARK: &str = "webhooks";
pub(super) const PLAN_MARK: &str = "tollgate_plan_id";
/// On a price: the one it was made to replace.
const REPLACES_MARK: &str = "tollgate_replaces";

impl Stripe {
    /// The account that the key belongs to, and the time there, if Stripe says it.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses to answer, as it does to a key that may not read it.
    pub async fn account(&self) -> Result<(Account, Option<Timestamp>), StripeError> {
        let Answered { body, date, .. } = self.transport.get("/v1/account", &[]).await?;
        let account = Account {
            id: read::required(&body, "id")?,
            country: read::text(&body["country"]),
            default_currency: read::text(&body["default_currency"]),
            charges_enabled: body["charges_enabled"] == Value::Bool(true),
        };
        Ok((account, date))
    }

    /// Has Stripe send an event that says nothing to a destination; answers the event's id.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses. That it was sent says nothing of its arrival.
    pub async fn ping(&self, destination: &str) -> Result<String, StripeError> {
        let path = format!("/v2/core/event_destinations/{}/ping", read::segment(destination)?);
        let key = self.transport.fresh_key();
        let sent = self.transport.post(&path, &Body::Json(json!({})), &key).await;
        read::required(&sent.map_err(|failed| failed.error)?.body, "id")
    }
}

//! Links for one customer and one purpose, signed, with an end.
//!
//! A token is `v1.<payload>.<signature>`: base64url of a small JSON object, and HMAC-SHA256 over
//! `v1.<payload>`. There is one algorithm and no way to choose another.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::clock::Timestamp;
use crate::domain::ids::{CustomerId, PlanId};

/// What a link lets its holder see or do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    Upgrade,
    Usage,
    /// Reading a customer's numbers from within the product's pages, and nothing else.
    Embed,
}

impl Purpose {
    fn path(self) -> &'static str {
        match self {
            Self::Upgrade => "upgrade",
            Self::Usage => "usage",
            Self::Embed => "embed",
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Payload {
    customer_id: CustomerId,
    purpose: Purpose,
    expires_at_s: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    plan_id: Option<PlanId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    return_url: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    here: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    quoted_at_s: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    quoted: Option<String>,
}

/// What a link to the upgrade page, or the button on it, is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    pub customer_id: CustomerId,
    /// The plan to change to; `None` for the next one above whatever the customer is on.
    pub plan_id: Option<PlanId>,
    /// Where to go afterwards, as the product said.
    pub return_url: Option<String>,
    /// The change is confirmed on our own page even where Stripe's portal offers it, because the
    /// portal has refused.
    pub here: bool,
    /// On a button: what the page said beside it.
    pub quoted: Option<Quoted>,
    /// In whole seconds.
    pub expires_at: Timestamp,
}

/// What a page said of a change when it was made. Signed, so that nobody chooses what he pays for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quoted {
    /// When that was, in whole seconds: what the change costs was reckoned then.
    pub at: Timestamp,
    /// From what to what: a fingerprint.
    pub change: String,
}

/// Makes links and checks them. The first key signs, all of them are accepted.
#[derive(Clone)]
pub struct Links {
    public_url: String,
    keys: Vec<SecretString>,
}

/// Why a token is not accepted. Callers tell the holder no more than that it is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    #[error("this link is not valid")]
    Forged,
    #[error("this link has expired")]
    Expired,
}

impl Links {
    /// `public_url` is where customers reach the daemon, without a trailing slash. `keys` must
    /// not be empty.
    pub fn new(public_url: impl Into<String>, keys: Vec<SecretString>) -> Self {
        assert!(!keys.is_empty(), "links need a signing key");
        Self { public_url: public_url.into(), keys }
    }

    /// The address for `customer_id` and `purpose`, good until `expires_at`.
    pub fn url(&self, purpose: Purpose, customer_id: &CustomerId, expires_at: Timestamp) -> String {
        self.address(purpose, &self.token(purpose, customer_id, expires_at))
    }

    /// The token alone.
    pub fn token(
        &self,
        purpose: Purpose,
        customer_id: &CustomerId,
        expires_at: Timestamp,
    ) -> String {
        self.sign(&Payload {
            customer_id: customer_id.clone(),
            purpose,
            expires_at_s: expires_at.seconds(),
            plan_id: None,
            return_url: None,
            here: false,
            quoted_at_s: None,
            quoted: None,
        })
    }

    /// The token of an upgrade's link or button. The same ticket gives the same token.
    pub fn upgrade_token(&self, ticket: &Ticket) -> String {
        self.sign(&Payload {
            customer_id: ticket.customer_id.clone(),
            purpose: Purpose::Upgrade,
            expires_at_s: ticket.expires_at.seconds(),
            plan_id: ticket.plan_id.clone(),
            return_url: ticket.return_url.clone(),
            here: ticket.here,
            quoted_at_s: ticket.quoted.as_ref().map(|quoted| quoted.at.seconds()),
            quoted: ticket.quoted.as_ref().map(|quoted| quoted.change.clone()),
        })
    }

    /// The address of the upgrade page for a ticket.
    pub fn upgrade_url(&self, ticket: &Ticket) -> String {
        self.address(Purpose::Upgrade, &self.upgrade_token(ticket))
    }

    fn address(&self, purpose: Purpose, token: &str) -> String {
        format!("{}/{}?token={token}", self.public_url, purpose.path())
    }

    fn sign(&self, payload: &Payload) -> String {
        let json = serde_json::to_vec(payload).expect("a payload is plain JSON");
        let signed = format!("v1.{}", URL_SAFE_NO_PAD.encode(json));
        let signature = URL_SAFE_NO_PAD.encode(mac(&self.keys[0], &signed).finalize().into_bytes());
        format!("{signed}.{signature}")
    }

    /// The ticket that a token of the upgrade page is, if it is good at `now`.
    pub fn verify_upgrade(&self, token: &str, now: Timestamp) -> Result<Ticket, InvalidToken> {
        let payload = self.payload(Purpose::Upgrade, token, now)?;
        let quoted_at = payload.quoted_at_s.map(Timestamp::from_seconds);
        Ok(Ticket {
            customer_id: payload.customer_id,
            plan_id: payload.plan_id,
            return_url: payload.return_url,
            here: payload.here,
            quoted: quoted_at.zip(payload.quoted).map(|(at, change)| Quoted { at, change }),
            expires_at: Timestamp::from_seconds(payload.expires_at_s),
        })
    }

    /// Whose token this is, if it is good for `purpose` at `now`.
    pub fn verify(
        &self,
        purpose: Purpose,
        token: &str,
        now: Timestamp,
    ) -> Result<CustomerId, InvalidToken> {
        self.payload(purpose, token, now).map(|payload| payload.customer_id)
    }

    fn payload(
        &self,
        purpose: Purpose,
        token: &str,
        now: Timestamp,
    ) -> Result<Payload, InvalidToken> {
        let (signed, signature) = token.rsplit_once('.').ok_or(InvalidToken::Forged)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| InvalidToken::Forged)?;
        let genuine = self.keys.iter().any(|key| mac(key, signed).verify_slice(&signature).is_ok());
        let payload = signed.strip_prefix("v1.").filter(|_| genuine).ok_or(InvalidToken::Forged)?;
        let json = URL_SAFE_NO_PAD.decode(payload).map_err(|_| InvalidToken::Forged)?;
        let payload: Payload = serde_json::from_slice(&json).map_err(|_| InvalidToken::Forged)?;
        if payload.purpose != purpose {
            return Err(InvalidToken::Forged);
        }
        if now.seconds() >= payload.expires_at_s {
            return Err(InvalidToken::Expired);
        }
        Ok(payload)
    }
}

fn mac(key: &SecretString, signed: &str) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose_secret().as_bytes())
        .expect("HMAC takes keys of any length");
    mac.update(signed.as_bytes());
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(keys: &[&str]) -> Links {
        Links::new("https://billing.example.com", keys.iter().map(|k| (*k).into()).collect())
    }

    fn token(url: &str) -> &str {
        url.split_once("token=").unwrap().1
    }

    #[test]
    fn a_link_is_good_for_its_customer_purpose_and_time_only() {
        let (acme, end) = ("acme".parse().unwrap(), Timestamp::from_seconds(1_000));
        let links = links(&["new", "old"]);
        let url = links.url(Purpose::Upgrade, &acme, end);
        assert!(url.starts_with("https://billing.example.com/upgrade?token=v1."), "{url}");
        let before = Timestamp::from_seconds(999);
        assert_eq!(links.verify(Purpose::Upgrade, token(&url), before), Ok(acme));
        assert_eq!(links.verify(Purpose::Usage, token(&url), before), Err(InvalidToken::Forged));
        assert_eq!(links.verify(Purpose::Upgrade, token(&url), end), Err(InvalidToken::Expired));
    }

    #[test]
    fn a_ticket_says_the_same_on_both_sides_and_opens_only_the_upgrade_page() {
        let ticket = Ticket {
            customer_id: "acme".parse().unwrap(),
            plan_id: Some("pro".parse().unwrap()),
            return_url: Some("https://app.example.com/settings".to_owned()),
            here: true,
            quoted: Some(Quoted {
                at: Timestamp::from_seconds(900),
                change: "from this to that".to_owned(),
            }),
            expires_at: Timestamp::from_seconds(1_000),
        };
        let (links, now) = (links(&["key"]), Timestamp::from_seconds(999));
        let url = links.upgrade_url(&ticket);
        assert_eq!(links.verify_upgrade(token(&url), now), Ok(ticket.clone()));
        assert_eq!(links.upgrade_url(&ticket), url);
        let end = ticket.expires_at;
        assert_eq!(links.verify_upgrade(token(&url), end), Err(InvalidToken::Expired));
        assert_eq!(links.verify(Purpose::Usage, token(&url), now), Err(InvalidToken::Forged));
        for purpose in [Purpose::Usage, Purpose::Embed] {
            let other = links.token(purpose, &ticket.customer_id, end);
            assert_eq!(links.verify_upgrade(&other, now), Err(InvalidToken::Forged));
        }
    }

    #[test]
    fn the_link_in_a_mail_is_a_ticket_without_a_plan() {
        let (acme, end) = ("acme".parse().unwrap(), Timestamp::from_seconds(1_000));
        let links = links(&["key"]);
        let url = links.url(Purpose::Upgrade, &acme, end);
        let ticket = links.verify_upgrade(token(&url), Timestamp::from_seconds(0)).unwrap();
        assert_eq!((&ticket.plan_id, &ticket.quoted), (&None, &None));
        assert_eq!(links.upgrade_url(&ticket), url);
    }

    #[test]
    fn a_link_of_the_key_before_still_works_and_a_strangers_does_not() {
        let (acme, end) = ("acme".parse().unwrap(), Timestamp::from_seconds(1_000));
        let old = links(&["old"]).url(Purpose::Usage, &acme, end);
        let now = Timestamp::from_seconds(0);
        assert!(links(&["new", "old"]).verify(Purpose::Usage, token(&old), now).is_ok());
        assert_eq!(
            links(&["new"]).verify(Purpose::Usage, token(&old), now),
            Err(InvalidToken::Forged)
        );
        for bad in ["", ".", "v1..", "v1.e30.AA", "v2.e30.AA"] {
            assert_eq!(links(&["new"]).verify(Purpose::Usage, bad, now), Err(InvalidToken::Forged));
        }
    }
}

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
use crate::domain::ids::CustomerId;

/// What a link lets its holder see or do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    Upgrade,
    Usage,
}

impl Purpose {
    fn path(self) -> &'static str {
        match self {
            Self::Upgrade => "upgrade",
            Self::Usage => "usage",
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Payload {
    customer_id: CustomerId,
    purpose: Purpose,
    expires_at_s: i64,
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
        let payload = Payload {
            customer_id: customer_id.clone(),
            purpose,
            expires_at_s: expires_at.seconds(),
        };
        let json = serde_json::to_vec(&payload).expect("a payload is plain JSON");
        let signed = format!("v1.{}", URL_SAFE_NO_PAD.encode(json));
        let signature = URL_SAFE_NO_PAD.encode(mac(&self.keys[0], &signed).finalize().into_bytes());
        format!("{}/{}?token={signed}.{signature}", self.public_url, purpose.path())
    }

    /// Whose token this is, if it is good for `purpose` at `now`.
    pub fn verify(
        &self,
        purpose: Purpose,
        token: &str,
        now: Timestamp,
    ) -> Result<CustomerId, InvalidToken> {
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
        Ok(payload.customer_id)
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

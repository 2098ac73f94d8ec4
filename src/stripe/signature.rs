//! Is a webhook really Stripe's? <https://docs.stripe.com/webhooks#verify-manually>
//!
//! The header is `t=<seconds>,v1=<hex>[,v1=<hex>…]`, where each `v1` is the HMAC-SHA256 of
//! `<t>.<body>` under one of the endpoint's secrets: two while a secret is being rolled. Other
//! schemes are ignored, so that nobody can choose a weaker one.

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};

use crate::clock::Timestamp;

/// How far Stripe's clock and ours may be apart, in both directions.
const TOLERANCE_MS: u64 = 300_000;

/// Why a body is not taken for Stripe's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("the Stripe-Signature header is missing")]
    Missing,
    #[error("the Stripe-Signature header has no time or no v1 signature")]
    Malformed,
    /// Rightly signed, but not now: a replay, or one of the two clocks is wrong.
    #[error("the signature was made more than five minutes from now")]
    Stale,
    #[error("no signature matches")]
    Mismatch,
}

/// The header for a body that we sign ourselves, as Stripe would now.
pub fn sign(secret: &SecretString, body: &[u8], now: Timestamp) -> String {
    let time = now.seconds().to_string();
    format!("t={time},v1={}", expected(secret.expose_secret(), &time, body))
}

/// What a header claims: that a body was signed then, and with these results.
pub struct Claim<'a> {
    /// As written: this text was signed, not the number.
    time: &'a str,
    signed_at: Timestamp,
    /// Whatever is given as `v1`; one that is not hex simply matches nothing.
    signatures: Vec<&'a str>,
}

impl<'a> Claim<'a> {
    /// Reads the `Stripe-Signature` header, for which no body is needed.
    ///
    /// # Errors
    /// There is none, or not of this form.
    pub fn parse(header: Option<&'a str>) -> Result<Self, SignatureError> {
        let mut time = None;
        let mut signatures = Vec::new();
        for part in header.ok_or(SignatureError::Missing)?.split(',') {
            match part.split_once('=') {
                Some(("t", _)) if time.is_some() => return Err(SignatureError::Malformed),
                Some(("t", value)) => time = Some(value),
                Some(("v1", value)) => signatures.push(value),
                _ => {}
            }
        }
        let time = time.filter(|time| time.bytes().all(|b| b.is_ascii_digit()));
        let seconds = time.and_then(|time| time.parse().ok());
        match (time, seconds) {
            (Some(time), Some(seconds)) if !signatures.is_empty() => {
                Ok(Self { time, signed_at: Timestamp::from_seconds(seconds), signatures })
            }
            _ => Err(SignatureError::Malformed),
        }
    }

    /// Checks that `body`, byte for byte as it came, was signed with one of `secrets` just now.
    ///
    /// An empty secret is never accepted: anybody can sign with it.
    ///
    /// # Errors
    /// The signature is another one, or not of now.
    pub fn verify(
        &self,
        body: &[u8],
        secrets: &[SecretString],
        now: Timestamp,
    ) -> Result<(), SignatureError> {
        // Every pair is compared, so that the time taken says nothing about which one matched.
        let mut matches = Choice::from(0);
        for secret in secrets.iter().map(ExposeSecret::expose_secret) {
            if secret.trim().is_empty() {
                continue;
            }
            let expected = expected(secret, self.time, body);
            for given in &self.signatures {
                matches |= expected.as_bytes().ct_eq(given.as_bytes());
            }
        }
        if !bool::from(matches) {
            return Err(SignatureError::Mismatch);
        }
        if now.ms().abs_diff(self.signed_at.ms()) > TOLERANCE_MS {
            return Err(SignatureError::Stale);
        }
        Ok(())
    }
}

fn expected(secret: &str, time: &str, body: &[u8]) -> String {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(time.as_bytes());
    mac.update(b".");
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
    const BODY: &[u8] = br#"{"id":"evt_1"}"#;

    fn secrets(texts: &[&str]) -> Vec<SecretString> {
        texts.iter().map(|text| SecretString::from(*text)).collect()
    }

    fn header(secret: &str, seconds: i64, body: &[u8]) -> String {
        sign(&SecretString::from(secret), body, Timestamp::from_seconds(seconds))
    }

    fn verify(
        header: Option<&str>,
        body: &[u8],
        secrets: &[SecretString],
        now: Timestamp,
    ) -> Result<(), SignatureError> {
        Claim::parse(header)?.verify(body, secrets, now)
    }

    fn check(header: &str, secrets_in_use: &[&str]) -> Result<(), SignatureError> {
        verify(Some(header), BODY, &secrets(secrets_in_use), NOW)
    }

    /// Made with OpenSSL: `printf '1800000000.{"id":"evt_1"}' | openssl dgst -sha256 -hmac whsec_a`
    const KNOWN: &str =
        "t=1800000000,v1=a55079840ea2399121b7cc9ddcc2d7f3eadb4e93e38ab7d315482aa8d4846852";

    #[test]
    fn a_signature_made_by_other_software_is_accepted() {
        assert_eq!(check(KNOWN, &["whsec_a"]), Ok(()));
    }

    #[test]
    fn any_v1_and_any_secret_may_match_and_other_schemes_never() {
        let good = header("whsec_a", NOW.seconds(), BODY);
        let (time, v1) = good.split_once(',').unwrap();
        assert_eq!(check(&good, &["whsec_b", "whsec_a"]), Ok(()), "the older of two secrets");
        assert_eq!(check(&format!("{time},v1=00,{v1},v1=,v0=ff"), &["whsec_a"]), Ok(()));
        assert_eq!(check(&format!("{v1},{time}"), &["whsec_a"]), Ok(()), "in any order");
        assert_eq!(check(&good, &["whsec_b"]), Err(SignatureError::Mismatch));
        assert_eq!(check(&good, &[]), Err(SignatureError::Mismatch));
        let v0 = good.replace("v1", "v0");
        assert_eq!(check(&v0, &["whsec_a"]), Err(SignatureError::Malformed));
        assert_eq!(check(&format!("{v0},v1=00"), &["whsec_a"]), Err(SignatureError::Mismatch));
    }

    #[test]
    fn five_minutes_either_way_are_accepted_and_no_more() {
        for (offset, verdict) in [
            (-301, Err(SignatureError::Stale)),
            (-300, Ok(())),
            (300, Ok(())),
            (301, Err(SignatureError::Stale)),
        ] {
            let signed = header("whsec_a", NOW.seconds() + offset, BODY);
            assert_eq!(check(&signed, &["whsec_a"]), verdict, "{offset} s");
        }
        let later = Timestamp::from_ms(NOW.ms() + 300_001);
        let signed = header("whsec_a", NOW.seconds(), BODY);
        let late = verify(Some(&signed), BODY, &secrets(&["whsec_a"]), later);
        assert_eq!(late, Err(SignatureError::Stale), "by a millisecond");
        let never = header("whsec_a", i64::MAX, BODY);
        assert_eq!(check(&never, &["whsec_a"]), Err(SignatureError::Stale));
    }

    #[test]
    fn an_empty_secret_is_never_accepted() {
        for empty in ["", " "] {
            let forged = header(empty, NOW.seconds(), BODY);
            assert_eq!(check(&forged, &[empty]), Err(SignatureError::Mismatch));
        }
    }

    #[test]
    fn a_header_that_says_too_little_is_malformed() {
        assert_eq!(verify(None, BODY, &[], NOW), Err(SignatureError::Missing));
        for text in [
            "",
            "t=1",
            "v1=00",
            "t=,v1=00",
            "t=+1,v1=00",
            "t=-1,v1=00",
            "t=1,t=1,v1=00",
            "t=1.5,v1=00",
        ] {
            assert_eq!(check(text, &["whsec_a"]), Err(SignatureError::Malformed), "{text}");
        }
        assert_eq!(
            check(&format!("t={},v1=00", "9".repeat(30)), &["whsec_a"]),
            Err(SignatureError::Malformed)
        );
    }

    proptest! {
        #[test]
        fn no_header_panics_or_passes(text in "(t=|v1=|v0=|[0-9a-f]{0,4}|,|=|\\PC){0,24}") {
            prop_assert!(check(&text, &["whsec_a"]).is_err());
        }

        #[test]
        fn one_altered_byte_of_the_header_is_refused(at in 0usize..80, to in 0x20u8..0x7f) {
            let mut altered = header("whsec_a", NOW.seconds(), BODY).into_bytes();
            prop_assume!(altered[at] != to);
            altered[at] = to;
            let altered = String::from_utf8(altered).unwrap();
            prop_assert!(check(&altered, &["whsec_a"]).is_err(), "{altered}");
        }

        #[test]
        fn one_altered_byte_of_the_body_is_refused(
            body in proptest::collection::vec(any::<u8>(), 1..200),
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
        ) {
            let signed = header("whsec_a", NOW.seconds(), &body);
            let secrets = secrets(&["whsec_a"]);
            prop_assert_eq!(verify(Some(&signed), &body, &secrets, NOW), Ok(()));
            let at = at.index(body.len());
            let mut altered = body;
            altered[at] ^= flip;
            let verdict = verify(Some(&signed), &altered, &secrets, NOW);
            prop_assert_eq!(verdict, Err(SignatureError::Mismatch));
        }
    }
}

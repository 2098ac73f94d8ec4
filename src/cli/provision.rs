//! What `stripe push`, `doctor` and the sandbox have in common: what the account is to hold, and
//! making it so.

use std::net::IpAddr;

use reqwest::Url;

use crate::config::Config;
use crate::domain::plan::Catalog;
use crate::domain::provision::{Step, Wanted};
use crate::stripe::event::{CONCERN_TIER, TELL_OF_METERS};
use crate::stripe::{Made, Stripe, StripeError, api_version};

/// What the account is to hold for these plans and this address of ours.
pub fn wanted(config: &Config, catalog: &Catalog) -> Wanted {
    let url = webhook_url(&config.public_url, &config.stripe_api_base);
    let (events, thin_events) = (CONCERN_TIER.to_vec(), TELL_OF_METERS.to_vec());
    Wanted::of(catalog, config.livemode(), url, api_version(), events, thin_events)
}

/// Where Stripe is to send its events. A simulator on this machine reaches what is on it; Stripe
/// reaches neither this machine's own addresses nor anything without TLS.
fn webhook_url(public_url: &str, stripe: &str) -> Result<String, String> {
    let reachable = if is_loopback(public_url) {
        is_loopback(stripe)
    } else {
        public_url.starts_with("https://")
    };
    match reachable {
        true => Ok(format!("{public_url}/webhooks/stripe")),
        false => Err(format!("Stripe cannot send webhooks to {public_url}")),
    }
}

/// Whether an address is one of this machine to itself.
pub fn is_loopback(url: &str) -> bool {
    let host = Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned));
    host.is_some_and(|host| {
        let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
        host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
    })
}

/// Does the steps in order and tells of each once it is done, with what was made so far.
///
/// # Errors
/// At the first write that fails, with the step that it belongs to. What was told of is done; the
/// rest is found missing by the next run.
pub async fn apply<'a>(
    stripe: &Stripe,
    steps: &'a [Step],
    made: &mut Made,
    mut done: impl FnMut(&Step, &Made),
) -> Result<(), (&'a Step, StripeError)> {
    for step in steps {
        for write in &step.writes {
            stripe.write(write, made).await.map_err(|error| (step, error))?;
        }
        done(step, made);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripe_reaches_https_addresses_and_a_simulator_this_machine_too() {
        let at = |public: &str, stripe: &str| webhook_url(public, stripe).ok();
        const STRIPE: &str = "https://api.stripe.com";
        const SIMULATOR: &str = "http://127.0.0.1:8081";
        assert_eq!(
            at("https://billing.example.com/usage", STRIPE).as_deref(),
            Some("https://billing.example.com/usage/webhooks/stripe")
        );
        assert!(at("http://[::1]:8080", SIMULATOR).is_some());
        for (public, stripe) in [
            ("http://billing.example.com", STRIPE),
            ("http://billing.example.com", SIMULATOR),
            ("http://127.0.0.1:8080", STRIPE),
            ("https://localhost", STRIPE),
        ] {
            assert_eq!(at(public, stripe), None, "{public} from {stripe}");
        }
    }
}

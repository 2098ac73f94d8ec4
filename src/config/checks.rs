//! What each variable's value must look like. Pure, except for the one that looks for a directory.

use std::net::IpAddr;
use std::path::PathBuf;

use reqwest::Url;
use secrecy::SecretString;

use super::LogFormat;

/// Shorter keys can be guessed.
const MIN_KEY_CHARACTERS: usize = 16;

pub(super) fn database_url(text: &str) -> Option<SecretString> {
    let known =
        ["sqlite:", "postgres:", "postgresql:"].iter().any(|scheme| text.starts_with(scheme));
    (known && !has_control(text)).then(|| text.into())
}

pub(super) fn public_url(text: &str) -> Option<String> {
    if text.ends_with('/') {
        return None;
    }
    Some(web_url(text)?.as_str().trim_end_matches('/').to_owned())
}

pub(super) fn stripe_api_base(text: &str) -> Option<String> {
    let url = web_url(text).filter(|_| !text.ends_with('/'))?;
    let allowed = url.scheme() == "https" || is_loopback(&url);
    allowed.then(|| url.as_str().trim_end_matches('/').to_owned())
}

pub(super) fn otel_endpoint(text: &str) -> Option<String> {
    web_url(text).map(|url| url.as_str().trim_end_matches('/').to_owned())
}

/// Origins in the form in which browsers send them.
pub(super) fn return_origins(text: &str) -> Option<Vec<String>> {
    let origin = |text: &str| {
        let url = web_url(text).filter(|url| url.path() == "/" && !text.ends_with('/'))?;
        Some(url.origin().ascii_serialization())
    };
    text.split(',').map(|part| origin(part.trim())).collect()
}

pub(super) fn key(text: &str) -> Option<SecretString> {
    (text.len() >= MIN_KEY_CHARACTERS && is_one_word(text)).then(|| text.into())
}

pub(super) fn signing_keys(text: &str) -> Option<Vec<SecretString>> {
    let keys: Vec<SecretString> =
        text.split(',').map(|part| key(part.trim())).collect::<Option<_>>()?;
    (keys.len() <= 2).then_some(keys)
}

pub(super) fn stripe_secret_key(text: &str) -> Option<SecretString> {
    let prefixes = ["sk_test_", "sk_live_", "rk_test_", "rk_live_"];
    let rest = prefixes.iter().find_map(|prefix| text.strip_prefix(prefix))?;
    is_one_word(rest).then(|| text.into())
}

pub(super) fn webhook_secrets(text: &str) -> Option<Vec<SecretString>> {
    let secret = |text: &str| {
        let rest = text.strip_prefix("whsec_")?;
        is_one_word(rest).then(|| SecretString::from(text))
    };
    text.split(',').map(|part| secret(part.trim())).collect()
}

/// The scheme only: the mail module reads the rest.
pub(super) fn smtp_url(text: &str) -> Option<SecretString> {
    let server = text.strip_prefix("smtps://").or_else(|| text.strip_prefix("smtp://"));
    let fits = match server {
        Some(server) => is_one_word(server),
        // A directory may have spaces in its name.
        None => {
            text.strip_prefix("file:///").is_some_and(|path| !path.is_empty() && !has_control(path))
        }
    };
    fits.then(|| text.into())
}

/// One address, alone or in angle brackets after a name.
pub(super) fn mail_from(text: &str) -> Option<String> {
    let address = match text.split_once('<') {
        Some((_, rest)) => rest.strip_suffix('>')?,
        None => text,
    };
    let (local, domain) = address.split_once('@')?;
    let part = |part: &str| {
        !part.is_empty() && !part.contains(|c: char| c.is_whitespace() || "<>@,;".contains(c))
    };
    (part(local) && part(domain) && !has_control(text)).then(|| text.to_owned())
}

pub(super) fn path(text: &str) -> Option<PathBuf> {
    (!has_control(text)).then(|| text.into())
}

pub(super) fn directory(text: &str) -> Option<PathBuf> {
    path(text).filter(|path| path.is_dir())
}

pub(super) fn rate_limit(text: &str) -> Option<u32> {
    text.parse().ok().filter(|limit| (1..=1_000_000).contains(limit))
}

pub(super) fn log_filter(text: &str) -> Option<String> {
    // The parser of tracing-subscriber 0.3 panics on some texts outside ASCII.
    if !text.is_ascii() || has_control(text) {
        return None;
    }
    let parsed = tracing_subscriber::EnvFilter::builder().parse(text);
    parsed.is_ok().then(|| text.to_owned())
}

pub(super) fn log_format(text: &str) -> Option<LogFormat> {
    match text {
        "text" => Some(LogFormat::Text),
        "json" => Some(LogFormat::Json),
        _ => None,
    }
}

/// An absolute http or https URL with neither password, query nor fragment. The parser forgives
/// more than we do: it would drop tabs and mend missing slashes.
fn web_url(text: &str) -> Option<Url> {
    let strict = ["http://", "https://"].iter().any(|scheme| text.starts_with(scheme));
    if !strict
        || text.contains('\\')
        || text.contains(|c: char| c.is_whitespace() || c.is_control())
    {
        return None;
    }
    let url = Url::parse(text).ok()?;
    let bare = url.username().is_empty() && url.password().is_none();
    (bare && url.query().is_none() && url.fragment().is_none()).then_some(url)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Not empty, printable ASCII, no spaces.
fn is_one_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())
}

fn has_control(text: &str) -> bool {
    text.chars().any(char::is_control)
}

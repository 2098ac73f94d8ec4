//! Where support's calls are answered: by the daemon that runs here, or, where none does, by one
//! that is started for this command alone.
//!
//! The daemon does the work, because on SQLite it alone may write about customers, and because the
//! plans that are in force are the ones it has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use crate::cli::start::{Drive, Running, StartError, open_store, start};
use crate::clock::Clock;
use crate::config::Config;
use crate::entropy::Entropy;

/// How long a daemon on this machine may take to say that it is there.
const PATIENCE: Duration = Duration::from_secs(5);

pub struct Desk {
    http: reqwest::Client,
    base: Url,
    token: SecretString,
    /// The daemon that was started for this.
    own: Option<Running>,
}

impl Desk {
    /// # Errors
    /// When no daemon answers at `TOLLGATE_LISTEN` and none can be started.
    pub async fn open(config: &Config) -> Result<Self, StartError> {
        // Fails only if there is one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Never over TLS, so a machine without certificates will do.
        let client = reqwest::Client::builder().connect_timeout(PATIENCE);
        let http = client.no_proxy().tls_certs_only([]).build()?;
        let there = base(reachable(config.listen))?;
        let asked = http.get(there.join("healthz")?).timeout(PATIENCE).send().await;
        if asked.is_ok_and(|answer| answer.status().is_success()) {
            let token = config.admin_token.clone().ok_or_else(|| {
                StartError::Config("TOLLGATE_ADMIN_TOKEN: is needed to ask the daemon".to_owned())
            })?;
            return Ok(Self { http, base: there, token, own: None });
        }
        let (running, token) = start_own(config).await?;
        Ok(Self { http, base: base(running.address)?, token, own: Some(running) })
    }

    /// Posts to a path of the admin API, given in parts that may hold anything.
    ///
    /// # Errors
    /// When the daemon does not answer, or answers with an error, which is in its own words.
    pub async fn post(&self, path: &[&str], query: &[(&str, &str)]) -> anyhow::Result<Value> {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .map_err(|()| anyhow!("the daemon has no address"))?
            .extend(["admin", "api", "v1"].iter().chain(path));
        url.query_pairs_mut().extend_pairs(query);
        let request = self.http.post(url).bearer_auth(self.token.expose_secret());
        let answer = request.send().await.context("the daemon does not answer")?;
        let status = answer.status();
        let text = answer.text().await.context("the daemon's answer broke off")?;
        let body: Value = serde_json::from_str(&text).unwrap_or_default();
        if status.is_success() {
            return Ok(body);
        }
        match body["error"]["message"].as_str() {
            _ if status.as_u16() == 401 => bail!("the daemon does not take TOLLGATE_ADMIN_TOKEN"),
            Some(message) => bail!("{message}"),
            None => bail!("the daemon answers {status}"),
        }
    }

    pub async fn close(self) -> anyhow::Result<()> {
        match self.own {
            Some(running) => running.stop().await,
            None => Ok(()),
        }
    }
}

/// A daemon on a port of its own that runs no job and takes a token that nobody else knows.
async fn start_own(config: &Config) -> Result<(Running, SecretString), StartError> {
    let store = open_store(config, Clock::system()).await?;
    let migrated = store.is_migrated().await;
    store.close().await;
    if !migrated? {
        return Err(anyhow!("the schema is not up to date: run `tollgate migrate`").into());
    }
    let entropy = Entropy::system();
    let token = SecretString::from(hex::encode(entropy.secret()));
    let config = Config {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        admin_token: Some(token.clone()),
        ..config.clone()
    };
    let running = start(&config, Clock::system(), entropy, Drive::Command).await?;
    Ok((running, token))
}

/// Where to reach what listens on `listen`: on every address is also on this machine's own.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn base(address: SocketAddr) -> anyhow::Result<Url> {
    Url::parse(&format!("http://{address}/")).context("the daemon's address cannot be a URL")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_everywhere_is_reached_on_this_machine() {
        for (listen, reached) in [
            ("0.0.0.0:8080", "127.0.0.1:8080"),
            ("[::]:8080", "[::1]:8080"),
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("10.0.0.7:80", "10.0.0.7:80"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()).to_string(), reached);
        }
    }
}

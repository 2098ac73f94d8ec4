//! The environment, read once and checked whole: every mistake is reported at once, each naming
//! its variable and none repeating its value.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

mod checks;
mod sources;
#[cfg(test)]
mod tests;
mod variables;

pub use sources::ConfigMistake;
use sources::Sources;
pub use variables::{VARIABLES, Variable};

/// How the daemon was told to run. Secrets are hidden in its debug form.
#[derive(Debug, Clone)]
pub struct Config {
    /// `sqlite:` or `postgres:`. Secret, because it may hold a password.
    pub database_url: SecretString,
    pub listen: SocketAddr,
    /// Where browsers and mail links reach us: no slash at the end, a path is possible.
    pub public_url: String,
    /// Not yet looked for.
    pub plans_path: PathBuf,
    /// Where runs are written down that are let through while the database cannot answer.
    pub outage_journal: PathBuf,
    /// A first API key, valid beside those in the database.
    pub api_key: Option<SecretString>,
    /// A first admin credential, valid beside those in the database; never equal to `api_key`.
    pub admin_token: Option<SecretString>,
    /// Keys for customer tokens, at most two: the first signs, all are accepted.
    pub signing_keys: Vec<SecretString>,
    pub stripe_secret_key: Option<SecretString>,
    /// All are accepted, so that a secret can be rotated without a gap.
    pub stripe_webhook_secrets: Vec<SecretString>,
    /// Without a slash at the end.
    pub stripe_api_base: String,
    /// `smtps:`, `smtp:` or `file:`. Secret, because it may hold a password.
    pub smtp_url: Option<SecretString>,
    /// The sender of all mails; always there if `smtp_url` is.
    pub mail_from: Option<String>,
    /// A directory whose files replace the built-in templates of the same name.
    pub templates_dir: Option<PathBuf>,
    /// A `tracing` filter that has been read successfully.
    pub log_filter: String,
    pub log_format: LogFormat,
    /// Requests per second and API key; `None` means unlimited.
    pub rate_limit: Option<u32>,
    /// Where an upgrade may return to beside our own origin: `https://app.example.com`.
    pub return_origins: Vec<String>,
    pub otel_endpoint: Option<String>,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Every mistake in the configuration; never empty. Displayed as one line each:
/// `.env:3: STRIPE_SECRET_KEY: must be …`, without the file for the process environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigMistake>);

impl ConfigErrors {
    pub fn mistakes(&self) -> &[ConfigMistake] {
        &self.0
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl Config {
    /// Reads the process environment and the `.env` file in the working directory, if there is
    /// one. What the environment sets, the file cannot change.
    ///
    /// # Errors
    /// Every mistake in both.
    pub fn from_process() -> Result<Self, ConfigErrors> {
        let path = Path::new(".env");
        Self::gather(std::env::vars_os(), path, std::fs::read_to_string(path))
    }

    fn gather(
        process: impl Iterator<Item = (OsString, OsString)>,
        dotenv_path: &Path,
        dotenv: io::Result<String>,
    ) -> Result<Self, ConfigErrors> {
        let mut environment = BTreeMap::new();
        let mut mistakes = Vec::new();
        let mut wrong = |variable: &str, wanted: String| {
            let variable = variable.to_owned();
            mistakes.push(ConfigMistake { variable, dotenv: None, wanted });
        };
        for (name, value) in process {
            // A name that is not UTF-8 is none of ours.
            let Some(name) = name.to_str() else { continue };
            match value.into_string() {
                Ok(value) => {
                    environment.insert(name.to_owned(), value);
                }
                Err(_) if variables::is_known(name) => wrong(name, "must be UTF-8 text".to_owned()),
                Err(_) => {}
            }
        }
        if let Err(error) = &dotenv
            && error.kind() != io::ErrorKind::NotFound
        {
            let wanted = format!("must be a file that can be read: {}", error.kind());
            wrong(&dotenv_path.display().to_string(), wanted);
        }
        let dotenv = dotenv.as_deref().ok().map(|text| (dotenv_path, text));
        Self::read(Sources::new(&environment, dotenv, mistakes))
    }

    /// Reads the given environment and `.env` file, the latter as its path (for messages) and
    /// its text. Files that `_FILE` twins name are read from disk; `$NAME` in the `.env` file
    /// stands for an earlier line or, because dotenvy has it so, the process's own variable.
    ///
    /// # Errors
    /// Every mistake in both.
    pub fn load(
        environment: &BTreeMap<String, String>,
        dotenv: Option<(&Path, &str)>,
    ) -> Result<Self, ConfigErrors> {
        Self::read(Sources::new(environment, dotenv, Vec::new()))
    }

    fn read(mut from: Sources) -> Result<Self, ConfigErrors> {
        let mail_from_is_missing =
            from.has(&variables::SMTP_URL) && !from.has(&variables::MAIL_FROM);
        let database_url = from.read(&variables::DATABASE_URL, checks::database_url);
        let listen = from.read(&variables::TOLLGATE_LISTEN, |text| text.parse().ok());
        let listen = listen.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)));
        let public_url = from.read(&variables::TOLLGATE_PUBLIC_URL, checks::public_url);
        let plans_path = from.read(&variables::TOLLGATE_PLANS, checks::path);
        let outage_journal = from.read(&variables::TOLLGATE_OUTAGE_JOURNAL, checks::path);
        let config = Self {
            database_url: database_url.unwrap_or_else(|| "sqlite://tollgate.db".into()),
            listen,
            public_url: public_url.unwrap_or_else(|| format!("http://{listen}")),
            plans_path: plans_path.unwrap_or_else(|| "plans.toml".into()),
            outage_journal: outage_journal.unwrap_or_else(|| "tollgate.outage".into()),
            api_key: from.read(&variables::TOLLGATE_API_KEY, checks::key),
            admin_token: from.read(&variables::TOLLGATE_ADMIN_TOKEN, checks::key),
            signing_keys: from
                .read(&variables::TOLLGATE_SIGNING_KEY, checks::signing_keys)
                .unwrap_or_default(),
            stripe_secret_key: from.read(&variables::STRIPE_SECRET_KEY, checks::stripe_secret_key),
            stripe_webhook_secrets: from
                .read(&variables::STRIPE_WEBHOOK_SECRET, checks::webhook_secrets)
                .unwrap_or_default(),
            stripe_api_base: from
                .read(&variables::STRIPE_API_BASE, checks::stripe_api_base)
                .unwrap_or_else(|| "https://api.stripe.com".to_owned()),
            smtp_url: from.read(&variables::SMTP_URL, checks::smtp_url),
            mail_from: from.read(&variables::MAIL_FROM, checks::mail_from),
            templates_dir: from.read(&variables::TOLLGATE_TEMPLATES, checks::directory),
            rate_limit: from.read(&variables::TOLLGATE_RATE_LIMIT, checks::rate_limit),
            return_origins: from
                .read(&variables::TOLLGATE_RETURN_ORIGINS, checks::return_origins)
                .unwrap_or_default(),
            log_filter: from
                .read(&variables::RUST_LOG, checks::log_filter)
                .unwrap_or_else(|| "info".to_owned()),
            log_format: from
                .read(&variables::TOLLGATE_LOG_FORMAT, checks::log_format)
                .unwrap_or(LogFormat::Text),
            otel_endpoint: from
                .read(&variables::OTEL_EXPORTER_OTLP_ENDPOINT, checks::otel_endpoint),
        };
        if mail_from_is_missing {
            let wanted =
                format!("is needed where SMTP_URL is set: {}", variables::MAIL_FROM.wanted);
            from.wrong(variables::MAIL_FROM.name, None, wanted);
        }
        if let (Some(key), Some(token)) = (&config.api_key, &config.admin_token)
            && key.expose_secret() == token.expose_secret()
        {
            let wanted = "must differ from TOLLGATE_API_KEY".to_owned();
            from.wrong(variables::TOLLGATE_ADMIN_TOKEN.name, None, wanted);
        }
        if from.mistakes.is_empty() { Ok(config) } else { Err(ConfigErrors(from.mistakes)) }
    }

    /// Whether the Stripe key is a live one; `None` without a key.
    pub fn livemode(&self) -> Option<bool> {
        let key = self.stripe_secret_key.as_ref()?.expose_secret();
        Some(key.starts_with("sk_live_") || key.starts_with("rk_live_"))
    }

    /// What lies idle because its variable is not set, as sentences for the start-up log.
    pub fn idle_parts(&self) -> Vec<&'static str> {
        let mut idle = Vec::new();
        if self.stripe_secret_key.is_none() {
            idle.push(
                "STRIPE_SECRET_KEY is not set: Stripe is never called, and usage stays local",
            );
        }
        if self.stripe_webhook_secrets.is_empty() {
            idle.push("STRIPE_WEBHOOK_SECRET is not set: no webhook is accepted");
        }
        if self.smtp_url.is_none() {
            idle.push("SMTP_URL is not set: no mail is sent");
        }
        if self.otel_endpoint.is_some() {
            idle.push("OTEL_EXPORTER_OTLP_ENDPOINT is set, but this build sends no traces");
        }
        idle
    }
}

//! The story's actors: the product, which asks the gate; the customer, who pays at Stripe and reads
//! mail. Each goes through the front door, over HTTP or from the mail folder.

use std::path::Path;

use anyhow::{Context as _, ensure};
use reqwest::StatusCode;
use serde_json::Value;

use super::{ADMIN_TOKEN, API_KEY, STRIPE_KEY, Sandbox};

/// A mail as it lies in the folder.
pub struct CaughtMail {
    pub file: String,
    pub subject: String,
    pub to: String,
}

/// The mails in the folder, the oldest first.
pub fn caught_mails(folder: &Path) -> Vec<CaughtMail> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut mails: Vec<_> = entries
        .filter(|entry| entry.path().extension().is_some_and(|ending| ending == "eml"))
        .filter_map(|entry| {
            let modified = entry.metadata().and_then(|m| m.modified()).ok()?;
            let text = std::fs::read_to_string(entry.path()).ok()?;
            let mail = CaughtMail {
                file: entry.file_name().into_string().ok()?,
                subject: header(&text, "Subject"),
                to: header(&text, "To"),
            };
            Some((modified, mail))
        })
        .collect();
    mails.sort_by(|(a, left), (b, right)| a.cmp(b).then_with(|| left.file.cmp(&right.file)));
    mails.into_iter().map(|(_, mail)| mail).collect()
}

/// The value of a header, with its folded lines joined.
fn header(mail: &str, name: &str) -> String {
    let mut lines = mail.lines().take_while(|line| !line.is_empty());
    let first =
        lines.find_map(|line| line.strip_prefix(name).and_then(|rest| rest.strip_prefix(": ")));
    let folded = lines.take_while(|line| line.starts_with([' ', '\t']));
    first.map(|first| folded.fold(first.to_owned(), |text, line| text + line)).unwrap_or_default()
}

/// What a call was answered, if it succeeded.
async fn answer(response: reqwest::Response) -> anyhow::Result<Value> {
    let status = response.status();
    let text = response.text().await?;
    ensure!(status.is_success(), "{status}: {text}");
    serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
}

/// Calls over HTTP.
pub struct Actors<'a> {
    sandbox: &'a Sandbox,
    http: reqwest::Client,
}

impl<'a> Actors<'a> {
    pub fn new(sandbox: &'a Sandbox) -> Self {
        Self { sandbox, http: reqwest::Client::new() }
    }

    fn at(&self, path: &str) -> String {
        format!("http://{}{path}", self.sandbox.daemon.address)
    }

    /// The product calls the gate.
    pub async fn product(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.http.request(method.parse()?, self.at(path)).bearer_auth(API_KEY);
        let request = if body.is_null() { request } else { request.body(body.to_string()) };
        answer(request.send().await?).await
    }

    /// Support asks for a sync; nothing is answered while the daemon is syncing this customer on
    /// its own.
    pub async fn support_syncs(&self, customer: &str) -> anyhow::Result<Option<Value>> {
        let path = self.at(&format!("/admin/api/v1/customers/{customer}/sync?dry_run=true"));
        let request = self.http.post(path).bearer_auth(ADMIN_TOKEN);
        let response = request.send().await?;
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            return Ok(None);
        }
        answer(response).await.map(Some)
    }

    /// The customer's card is charged, or its plan changed, at Stripe.
    pub async fn stripe(&self, method: &str, path: &str, form: &str) -> anyhow::Result<Value> {
        let request = self
            .http
            .request(method.parse()?, format!("{}{path}", self.sandbox.stripe.base_url()))
            .bearer_auth(STRIPE_KEY);
        let form = form.to_owned();
        let encoded = "application/x-www-form-urlencoded";
        let request = if form.is_empty() {
            request
        } else {
            request.header("content-type", encoded).body(form)
        };
        answer(request.send().await?).await
    }
}

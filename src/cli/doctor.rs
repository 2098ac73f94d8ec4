//! `tollgate doctor`: one line per thing that has to be right, exit 1 if one is not.

use std::path::Path;

use serde::Serialize;

use super::start::{
    StartError, connect_mailer, connect_stripe, load_templates, open_store, read_plans,
};
use crate::clock::Clock;
use crate::config::Config;
use crate::entropy::Entropy;
use crate::store::Store;

#[derive(Serialize)]
struct Finding {
    what: &'static str,
    ok: bool,
    detail: String,
}

pub async fn run(json: bool) -> Result<(), StartError> {
    let findings = match Config::from_process() {
        Err(errors) => {
            let mistakes = errors.mistakes().iter();
            mistakes.map(|mistake| finding("configuration", Err(mistake.to_string()))).collect()
        }
        Ok(config) => examine(&config).await,
    };
    let faults = findings.iter().filter(|finding| !finding.ok).count();
    if json {
        println!("{}", serde_json::to_string(&findings)?);
    } else {
        for finding in &findings {
            let mark = if finding.ok { "ok   " } else { "FAULT" };
            println!("{mark}  {:<14}  {}", finding.what, finding.detail);
        }
    }
    if faults > 0 {
        return Err(anyhow::anyhow!("{faults} of {} checks found a fault", findings.len()).into());
    }
    Ok(())
}

fn finding(what: &'static str, examined: Result<String, String>) -> Finding {
    let ok = examined.is_ok();
    Finding { what, ok, detail: examined.unwrap_or_else(|problem| problem) }
}

async fn examine(config: &Config) -> Vec<Finding> {
    vec![
        finding("configuration", Ok("every variable can be read".to_owned())),
        finding("plans", plans(config)),
        finding("database", database(config).await),
        finding("stripe key", stripe(config).await),
        finding("stripe webhook", webhook_secret(config)),
        finding("mail", mail(config).await),
        finding("templates", templates(config)),
    ]
}

fn words(error: StartError) -> String {
    match error {
        StartError::Config(problem) => problem,
        StartError::Failed(error) => format!("{error:#}"),
    }
}

fn plans(config: &Config) -> Result<String, String> {
    let (_, catalog) = read_plans(config).map_err(words)?;
    let (plans, features) = (catalog.plans.len(), catalog.features.len());
    Ok(format!("{plans} plans, {features} features in {}", config.plans_path.display()))
}

async fn database(config: &Config) -> Result<String, String> {
    // Looking must not leave a file behind, which might then belong to the wrong user.
    if let Some(file) = Store::file_to_create(&config.database_url) {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        return match folder.is_none_or(Path::is_dir) {
            true => Ok(format!("{} is created at the first start", file.display())),
            false => Err(format!("DATABASE_URL: {} is in no existing folder", file.display())),
        };
    }
    let store = open_store(config, Clock::system()).await.map_err(words)?;
    let migrated = store.is_migrated().await.map_err(|error| error.to_string())?;
    let dialect = store.dialect();
    store.close().await;
    Ok(match migrated {
        true => format!("{dialect:?}, schema up to date"),
        false => format!("{dialect:?}, schema to be migrated at the next start"),
    })
}

async fn stripe(config: &Config) -> Result<String, String> {
    let stripe = connect_stripe(config, &Clock::system(), &Entropy::system()).map_err(words)?;
    let stripe = stripe.ok_or("STRIPE_SECRET_KEY is not set: nothing is synced or reported")?;
    // Any id will do: a key that may read gets "no such customer", a bad one is refused.
    stripe.customer("cus_tollgate_doctor").await.map_err(|error| error.to_string())?;
    Ok(match config.livemode() {
        Some(true) => "accepted, live mode".to_owned(),
        _ => "accepted, test mode".to_owned(),
    })
}

fn webhook_secret(config: &Config) -> Result<String, String> {
    match config.stripe_webhook_secrets.len() {
        0 => Err("STRIPE_WEBHOOK_SECRET is not set: webhooks are refused".to_owned()),
        1 => Ok("one secret is accepted".to_owned()),
        n => Ok(format!("{n} secrets are accepted")),
    }
}

async fn mail(config: &Config) -> Result<String, String> {
    let mailer = connect_mailer(config).map_err(words)?;
    let mailer = mailer.ok_or("SMTP_URL is not set: notices wait and nobody is told")?;
    mailer.check().await?;
    Ok("the server takes mail from us".to_owned())
}

fn templates(config: &Config) -> Result<String, String> {
    load_templates(config).map_err(words)?.check().map_err(|error| error.to_string())?;
    Ok("every mail renders with sample facts".to_owned())
}

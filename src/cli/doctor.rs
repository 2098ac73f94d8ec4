//! `tollgate doctor`: one line per thing that has to be right, exit 1 if one is not.

mod stripe;
mod webhook;

use std::path::Path;

use serde::Serialize;

use super::start::{StartError, connect_mailer, load_templates, open_store, read_plans};
use crate::clock::Clock;
use crate::config::Config;
use crate::store::Store;

#[derive(Serialize)]
struct Finding {
    what: String,
    ok: bool,
    level: Level,
    detail: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    Ok,
    /// Worth knowing, and nothing that has to be mended.
    Note,
    Fault,
}

impl Finding {
    fn of(what: impl Into<String>, level: Level, detail: impl Into<String>) -> Self {
        let (what, detail) = (what.into(), detail.into());
        Self { what, ok: level != Level::Fault, level, detail }
    }

    fn line(&self, width: usize) -> String {
        let mark = match self.level {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Fault => "FAULT",
        };
        format!("{mark:<5}  {:<width$}  {}", self.what, self.detail)
    }
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
        let width = findings.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
        findings.iter().for_each(|finding| println!("{}", finding.line(width)));
    }
    if faults > 0 {
        return Err(anyhow::anyhow!("{faults} of {} checks found a fault", findings.len()).into());
    }
    Ok(())
}

fn finding(what: &'static str, examined: Result<String, String>) -> Finding {
    let level = if examined.is_ok() { Level::Ok } else { Level::Fault };
    Finding::of(what, level, examined.unwrap_or_else(|problem| problem))
}

async fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = vec![
        finding("configuration", Ok("every variable can be read".to_owned())),
        finding("plans", plans(config)),
        finding("database", database(config).await),
    ];
    findings.extend(stripe::examine(config).await);
    findings.push(finding("mail", mail(config).await));
    findings.push(finding("templates", templates(config)));
    findings
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

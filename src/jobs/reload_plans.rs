//! Keeps the plans in force: a changed file is checked whole before it replaces the running one,
//! and replicas agree because the newest version in the database is the one that holds. Customers
//! whom it puts at a threshold are told.

use super::Progress;
use crate::app::{App, check_plans_in_use};
use crate::domain::plan::Catalog;
use crate::gate::terms;

pub(super) async fn step(app: &App) -> anyhow::Result<Progress> {
    // A file that cannot be taken must not keep this replica from what the others agree on.
    let taken = take_changed_file(app).await;
    let followed = follow_the_database(app).await?;
    let more = terms::tell_some(app).await?;
    let done = usize::from(taken? || followed);
    Ok(Progress { done, more, note: None })
}

/// Puts the plans file in force if it has changed; answers whether it did.
async fn take_changed_file(app: &App) -> anyhow::Result<bool> {
    let Some(changed) = app.plans_file.changed()? else { return Ok(false) };
    let name = app.plans_file.path().display().to_string();
    let catalog = Catalog::parse(&changed).map_err(|mistakes| mistakes.in_file(name))?;
    check_plans_in_use(&app.store, &changed, &catalog).await?;
    let version = terms::activate(&app.store, &app.entropy, &changed, &catalog).await?;
    app.plans_file.accept(changed);
    app.plans.activate(version, catalog);
    tracing::info!(version, "a changed plans file is in force");
    Ok(true)
}

/// Takes over plans that another replica put in force; answers whether there were any.
async fn follow_the_database(app: &App) -> anyhow::Result<bool> {
    let (running, _) = app.plans.active();
    match app.store.active_plans().await? {
        Some((version, source)) if version > running => {
            app.plans.activate(version, Catalog::parse(&source)?);
            tracing::info!(version, "plans that another replica put in force hold here too");
            Ok(true)
        }
        _ => Ok(false),
    }
}

//! Keeps the plans in force: a changed file is checked whole before it replaces the running one,
//! and replicas agree because the newest version in the database is the one that holds.

use super::Progress;
use crate::app::App;
use crate::domain::plan::Catalog;

pub(super) async fn step(app: &App) -> anyhow::Result<Progress> {
    if let Some(changed) = app.plans_file.changed()? {
        let catalog = Catalog::parse(&changed)?;
        app.check_plans_in_use(&catalog).await?;
        let mut tx = app.store.begin().await?;
        let version = tx.activate_plans(&changed).await?;
        tx.commit().await?;
        app.plans_file.accept(changed);
        app.plans.activate(version, catalog);
        tracing::info!(version, "a changed plans file is in force");
        return Ok(Progress { done: 1, ..Progress::default() });
    }
    let (running, _) = app.plans.active();
    match app.store.active_plans().await? {
        Some((version, source)) if version > running => {
            app.plans.activate(version, Catalog::parse(&source)?);
            tracing::info!(
                version,
                "plans that another replica put in force are in force here too"
            );
            Ok(Progress { done: 1, ..Progress::default() })
        }
        _ => Ok(Progress::default()),
    }
}

//! Support's sync of everyone: customer by customer, a bounded number at a time.

use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::{Asker, Mode, SyncError, SyncReport, Trouble, sync_for};
use crate::app::App;
use crate::domain::ids::CustomerId;
use crate::store::StoreError;

/// What came of some of all customers that have a Stripe customer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct SyncedPage {
    pub dry_run: bool,
    /// How many there were.
    pub customers: usize,
    /// Of those that were not as Stripe says, or about whom there is an alert.
    pub reports: Vec<SyncReport>,
    /// Those that could not be synced.
    pub failures: Vec<Failure>,
    /// After whom to go on; null after the last.
    #[schema(required)]
    pub next: Option<CustomerId>,
    /// Whether this ended early because Stripe does not answer now. Going on is for later.
    pub stopped: bool,
}

/// Why a customer could not be synced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Failure {
    pub customer_id: CustomerId,
    pub error: String,
}

/// Syncs the customers with a Stripe customer that come after `after` in order of id, at most
/// `limit` of them. Writes one entry about it to the audit trail, beside those of the customers in
/// whom something differed.
///
/// # Errors
/// When the database cannot answer. What is wrong with one customer is in the page.
pub async fn sync_page(
    app: &App,
    mode: Mode,
    after: Option<&CustomerId>,
    limit: i64,
) -> Result<SyncedPage, SyncError> {
    if app.stripe.is_none() {
        return Err(SyncError::NotConfigured);
    }
    let after_id = after.map(CustomerId::as_str).unwrap_or_default();
    let ids = app.store.tied_customers(after_id, limit).await?;
    let is_last = i64::try_from(ids.len()).is_ok_and(|found| found < limit);
    let mut page = SyncedPage {
        dry_run: mode == Mode::DryRun,
        customers: 0,
        reports: Vec::new(),
        failures: Vec::new(),
        next: ids.last().filter(|_| !is_last).cloned(),
        stopped: false,
    };
    let mut trouble = Trouble::default();
    for id in &ids {
        let done = sync_for(app, id, Asker::SupportForAll(mode)).await;
        page.stopped = trouble.is_stripes(&done);
        page.take(id, done)?;
        if page.stopped {
            page.next = Some(id.clone());
            break;
        }
    }
    audit(app, after, &page).await?;
    Ok(page)
}

impl SyncedPage {
    fn take(
        &mut self,
        id: &CustomerId,
        done: Result<SyncReport, SyncError>,
    ) -> Result<(), StoreError> {
        match done {
            // Deleted since it was listed.
            Err(SyncError::UnknownCustomer) => return Ok(()),
            Err(SyncError::Store(error)) if error.is_outage() => return Err(error),
            Err(error) => {
                self.failures.push(Failure { customer_id: id.clone(), error: error.to_string() });
            }
            Ok(report) if report.differences.is_empty() && report.alerts.is_empty() => {}
            Ok(report) => self.reports.push(report),
        }
        self.customers += 1;
        Ok(())
    }
}

async fn audit(app: &App, after: Option<&CustomerId>, page: &SyncedPage) -> Result<(), StoreError> {
    let detail = json!({
        "dry_run": page.dry_run, "after": after, "customers": page.customers,
        "differing": page.reports.len(), "failed": page.failures.len(),
    });
    let mut tx = app.store.begin().await?;
    let audit_id = app.entropy.id("aud", tx.now);
    tx.insert_audit(&audit_id, "admin", "sync_all", None, &detail).await?;
    tx.commit().await
}

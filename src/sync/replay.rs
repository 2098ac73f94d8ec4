//! Support's replay of one meter event: sent again if that cannot count twice.

use super::SyncError;
use super::doubts::{
    Unsettled, ask, audit, is_too_old, put_back_cleared, replace, show, was_refused,
};
use super::proof::{Sums, Unreadable};
use super::usage::sendable;
use crate::app::App;
use crate::domain::proof::Told;
use crate::store::StoreError;
use crate::store::doubts::Shown;
use crate::store::outbox::MeterEvent as Row;

/// What a replay came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replayed {
    /// It waits to be sent, by this call or since before.
    Waits(Box<Row>),
    /// Its units wait under another identifier, by this call or since before.
    Replaced(Box<Row>),
    /// Stripe's sum has it.
    Delivered(Box<Row>),
}

/// Why a meter event is not sent again.
#[derive(Debug, thiserror::Error)]
pub enum NotReplayed {
    #[error("there is no such meter event")]
    Unknown,
    #[error("Stripe takes no usage older than 35 days")]
    TooOld,
    #[error("nothing is sent for this customer until someone has looked: {0}")]
    Frozen(String),
    #[error("Stripe's sums may not show everything yet: ask again in half an hour")]
    TooEarly,
    #[error("it might count twice: {0}")]
    MayCountTwice(String),
    #[error(transparent)]
    Sync(#[from] SyncError),
}

impl From<StoreError> for NotReplayed {
    fn from(error: StoreError) -> Self {
        Self::Sync(error.into())
    }
}

/// Sends a meter event again. What was first sent, or written down, so short a time ago that Stripe
/// knows its identifier, goes out as it is; of anything else Stripe's sum has to show that it was
/// not counted, and its units go out under a new identifier, unless Stripe has refused the old one.
/// Again, it does nothing more.
///
/// # Errors
/// Why it is not sent, be it that it might count twice.
pub async fn replay(app: &App, identifier: &str, actor: &str) -> Result<Replayed, NotReplayed> {
    let row = app.store.meter_event(identifier).await?.ok_or(NotReplayed::Unknown)?;
    match row.state.as_str() {
        "pending" => return Ok(Replayed::Waits(Box::new(row))),
        "replaced" => return replaced(app, identifier).await,
        _ => {}
    }
    if let Some(reason) = app.store.frozen_because(&row.customer_id).await? {
        return Err(NotReplayed::Frozen(reason));
    }
    if row.state == "parked" && put_back(app, &row, actor).await? {
        return again(app, identifier).await.map(Replayed::Waits);
    }
    let stripe = app.stripe.as_ref().ok_or(SyncError::NotConfigured)?;
    let answer = ask(app, &Sums::of(stripe), &row).await.map_err(|error| match error {
        Unsettled::Store(error) => error.into(),
        Unsettled::Unreadable(Unreadable::Stripe(error))
            if error.is_outage() || error.is_transient() =>
        {
            SyncError::from(error).into()
        }
        why => NotReplayed::MayCountTwice(format!("Stripe's sum cannot be read: {why}")),
    })?;
    match answer.told {
        Told::TooEarly => Err(NotReplayed::TooEarly),
        Told::Ahead { .. } | Told::Neither => Err(NotReplayed::MayCountTwice(answer.words)),
        Told::Counted => {
            if row.state != "delivered" {
                show(app, &row, &Shown::Counted, Some(actor)).await?;
            }
            again(app, identifier).await.map(Replayed::Delivered)
        }
        Told::Missing if is_too_old(&row, app.clock.now()) => Err(NotReplayed::TooOld),
        Told::Missing if was_refused(&row) => {
            put_back_cleared(app, &row, Some(actor)).await?;
            again(app, identifier).await.map(Replayed::Waits)
        }
        Told::Missing => {
            replace(app, &row, Some(actor)).await?;
            replaced(app, identifier).await
        }
    }
}

/// Makes a meter event pending as it is, if Stripe cannot count it twice.
async fn put_back(app: &App, row: &Row, actor: &str) -> Result<bool, NotReplayed> {
    let now = app.clock.now();
    if row.rejected_code.is_none() && row.first_sent_at.is_none() && is_too_old(row, now) {
        return Err(NotReplayed::TooOld);
    }
    let mut tx = app.store.begin().await?;
    let done = tx.unpark_meter_event(&row.identifier, sendable(now)).await?;
    if done {
        audit(app, &mut tx, row, Some(actor), "put back").await?;
    }
    tx.commit().await?;
    app.nudges.meter_events.notify_one();
    Ok(done)
}

async fn again(app: &App, identifier: &str) -> Result<Box<Row>, NotReplayed> {
    let row = app.store.meter_event(identifier).await?;
    row.map(Box::new).ok_or(NotReplayed::Unknown)
}

async fn replaced(app: &App, identifier: &str) -> Result<Replayed, NotReplayed> {
    let row = app.store.replacement_of(identifier).await?;
    row.map(|row| Replayed::Replaced(Box::new(row))).ok_or(NotReplayed::Unknown)
}

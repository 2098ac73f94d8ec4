//! Which local customer a Stripe customer is.

use crate::app::App;
use crate::domain::customer::Customer;
use crate::domain::ids::CustomerId;
use crate::gate::windows;
use crate::store::{StoreError, Tx};

/// The type of the inbox's own event: a customer was tied to its Stripe customer by hand, and may
/// have had a subscription long before. It names the customer, whatever it is tied to by then.
pub const LINKED: &str = "tollgate.customer.linked";

/// Why a link was not made.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("there is no such customer")]
    UnknownCustomer,
    /// One Stripe customer pays for one customer.
    #[error("this Stripe customer is tied to another customer already")]
    Taken,
    #[error("the customer is tied to another Stripe customer already")]
    Elsewhere,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Ties `customer` to `stripe_id` within the caller's transaction, which holds its lock, and makes
/// what was parked for either pending again. Usage up to now is reported as before; from now on
/// it is reported under the new id.
pub async fn link(
    app: &App,
    tx: &mut Tx,
    customer: &mut Customer,
    stripe_id: &str,
) -> Result<(), LinkError> {
    if customer.stripe_customer_id.as_deref() == Some(stripe_id) {
        return Ok(());
    }
    if tx.customer_id_of_stripe(stripe_id).await?.is_some() {
        return Err(LinkError::Taken);
    }
    windows::cut(app, tx, customer).await?;
    // What is paid there would be the other one's.
    tx.leave_checkout(&customer.id).await?;
    customer.stripe_customer_id = Some(stripe_id.to_owned());
    tx.unpark_events(&customer.id, Some(stripe_id)).await?;
    Ok(())
}

/// Ties a customer that has no Stripe customer yet to the one an event names beside it.
pub async fn link_from_stripe(
    app: &App,
    id: &CustomerId,
    stripe_id: &str,
) -> Result<(), LinkError> {
    let mut tx = app.store.begin().await?;
    let mut customer = tx.lock_customer(id).await?.ok_or(LinkError::UnknownCustomer)?;
    if customer.stripe_customer_id.as_deref() == Some(stripe_id) {
        return Ok(());
    }
    if customer.stripe_customer_id.is_some() {
        return Err(LinkError::Elsewhere);
    }
    link(app, &mut tx, &mut customer, stripe_id).await?;
    match tx.update_customer(&customer).await {
        Err(error) if error.is_duplicate() => return Err(LinkError::Taken),
        updated => updated?,
    }
    tx.commit().await?;
    tracing::info!(customer_id = %id, "tied to a Stripe customer");
    Ok(())
}

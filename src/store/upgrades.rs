//! What is claimed before an upgrade asks Stripe: the making of a Stripe customer, and the one
//! Checkout session that may be open.

use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Result, Store, StoreError, Tx, assembled, time};
use crate::clock::Timestamp;
use crate::domain::ids::{CustomerId, PlanId};

/// The right to make a customer's Stripe customer, shared by all who try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StripeCustomerClaim {
    pub idempotency_key: String,
    pub claimed_at: Timestamp,
}

/// A Checkout session before and after it was made; nothing about it changes but `session_id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkout {
    pub customer_id: CustomerId,
    /// Also the idempotency key with which the session is made.
    pub checkout_id: String,
    pub plan_id: PlanId,
    pub price_id: String,
    pub stripe_customer_id: String,
    /// Where the customer goes afterwards.
    pub return_url: String,
    pub claimed_at: Timestamp,
    /// When the session ends by itself.
    pub expires_at: Timestamp,
    /// `None` until it is known; until then nobody was shown the session.
    pub session_id: Option<String>,
}

const COLUMNS: &str = "customer_id, checkout_id, plan_id, price_id, stripe_customer_id, return_url, \
    claimed_at_ms, expires_at_ms, session_id";

impl Store {
    /// The claim in force for `id`: the given one, unless another was there before.
    pub async fn claim_stripe_customer(
        &self,
        id: &CustomerId,
        claim: &StripeCustomerClaim,
    ) -> Result<StripeCustomerClaim> {
        let mut held = self.hold(&self.line()).await?;
        sqlx::query(
            "INSERT INTO stripe_customer_claims (customer_id, idempotency_key, claimed_at_ms) \
             VALUES ($1, $2, $3) ON CONFLICT (customer_id) DO NOTHING",
        )
        .bind(id.as_str())
        .bind(claim.idempotency_key.as_str())
        .bind(claim.claimed_at.ms())
        .execute(held.connection())
        .await?;
        let row = sqlx::query(
            "SELECT idempotency_key, claimed_at_ms FROM stripe_customer_claims WHERE customer_id = $1",
        )
        .bind(id.as_str())
        .fetch_optional(held.connection())
        .await?;
        let row = row.ok_or(StoreError::Conflict { what: "the claim" })?;
        Ok(StripeCustomerClaim {
            idempotency_key: row.try_get("idempotency_key")?,
            claimed_at: time(&row, "claimed_at_ms")?,
        })
    }

    /// Puts `claim` in the place of the one with the key `spent`, if that is still in force.
    pub async fn renew_stripe_customer_claim(
        &self,
        id: &CustomerId,
        spent: &str,
        claim: &StripeCustomerClaim,
    ) -> Result<()> {
        sqlx::query(
            "UPDATE stripe_customer_claims SET idempotency_key = $3, claimed_at_ms = $4 \
             WHERE customer_id = $1 AND idempotency_key = $2",
        )
        .bind(id.as_str())
        .bind(spent)
        .bind(claim.idempotency_key.as_str())
        .bind(claim.claimed_at.ms())
        .execute(self.hold(&self.line()).await?.connection())
        .await?;
        Ok(())
    }

    /// The customer's Checkout in force: the given one, unless another was there before. `None` if
    /// the customer has another Stripe customer than the given one's by now, or another subscription
    /// than `subscription_id`: whoever asks has looked before that, and another Checkout beside that
    /// subscription would sell a second one.
    pub async fn claim_checkout(
        &self,
        wanted: &Checkout,
        subscription_id: Option<&str>,
    ) -> Result<Option<Checkout>> {
        let mut tx = self.begin().await?;
        let is_as_seen = tx.lock_customer(&wanted.customer_id).await?.is_some_and(|customer| {
            let subscription = customer.tier.subscription.as_ref().map(|live| live.id.as_str());
            let stripe_id = customer.stripe_customer_id.as_deref();
            subscription == subscription_id && stripe_id == Some(&wanted.stripe_customer_id)
        });
        if !is_as_seen {
            return Ok(None);
        }
        let insert = format!(
            "INSERT INTO checkouts ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
             ON CONFLICT (customer_id) DO NOTHING"
        );
        bind(sqlx::query(assembled(insert)), wanted).execute(tx.connection()).await?;
        let select = format!("SELECT {COLUMNS} FROM checkouts WHERE customer_id = $1");
        let row = sqlx::query(assembled(select))
            .bind(wanted.customer_id.as_str())
            .fetch_optional(tx.connection())
            .await?;
        let held = read(&row.ok_or(StoreError::Conflict { what: "the Checkout" })?)?;
        tx.commit().await?;
        Ok(Some(held))
    }

    /// The customer's Checkout in force, if there is one.
    pub async fn checkout(&self, id: &CustomerId) -> Result<Option<Checkout>> {
        let select = format!("SELECT {COLUMNS} FROM checkouts WHERE customer_id = $1");
        let row =
            sqlx::query(assembled(select)).bind(id.as_str()).fetch_optional(&self.readers).await?;
        row.as_ref().map(read).transpose()
    }

    /// Sessions that are to be closed at Stripe, one customer's or all, at most `limit`.
    pub async fn checkouts_to_close(
        &self,
        id: Option<&CustomerId>,
        limit: i64,
    ) -> Result<Vec<String>> {
        let rows = sqlx::query(
            "SELECT session_id FROM checkouts_to_close WHERE $1 = '' OR customer_id = $1 \
             ORDER BY session_id LIMIT $2",
        )
        .bind(id.map_or("", CustomerId::as_str))
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| Ok(row.try_get("session_id")?)).collect()
    }

    /// Notes that nobody can pay in a session any more.
    pub async fn note_checkout_closed(&self, session_id: &str) -> Result<()> {
        sqlx::query("DELETE FROM checkouts_to_close WHERE session_id = $1")
            .bind(session_id)
            .execute(self.hold(&self.line()).await?.connection())
            .await?;
        Ok(())
    }

    /// Puts `wanted` in the place of `held`, if that is still in force as it was read; answers
    /// whether it did.
    pub async fn replace_checkout(&self, held: &Checkout, wanted: &Checkout) -> Result<bool> {
        let done = bind(
            sqlx::query(
                "UPDATE checkouts SET checkout_id = $2, plan_id = $3, price_id = $4, \
                 stripe_customer_id = $5, return_url = $6, claimed_at_ms = $7, expires_at_ms = $8, \
                 session_id = $9 WHERE customer_id = $1 AND checkout_id = $10 \
                 AND COALESCE(session_id, '') = $11",
            ),
            wanted,
        )
        .bind(held.checkout_id.as_str())
        .bind(held.session_id.as_deref().unwrap_or_default())
        .execute(self.hold(&self.line()).await?.connection())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Notes the session that was made for `held`, if that is still in force; answers whether it
    /// did. Only then may the customer be sent there.
    pub async fn note_checkout_session(&self, held: &Checkout, session_id: &str) -> Result<bool> {
        let done = sqlx::query(
            "UPDATE checkouts SET session_id = $3 WHERE customer_id = $1 AND checkout_id = $2 \
             AND COALESCE(session_id, $3) = $3",
        )
        .bind(held.customer_id.as_str())
        .bind(held.checkout_id.as_str())
        .bind(session_id)
        .execute(self.hold(&self.line()).await?.connection())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Forgets `held`, in which nobody can pay, if it is still in force as it was read.
    pub async fn drop_checkout(&self, held: &Checkout) -> Result<()> {
        sqlx::query(
            "DELETE FROM checkouts WHERE customer_id = $1 AND checkout_id = $2 \
             AND COALESCE(session_id, '') = $3",
        )
        .bind(held.customer_id.as_str())
        .bind(held.checkout_id.as_str())
        .bind(held.session_id.as_deref().unwrap_or_default())
        .execute(self.hold(&self.line()).await?.connection())
        .await?;
        Ok(())
    }
}

impl Tx {
    /// Forgets what a customer that is deleted had claimed: should it come back, it is another one
    /// to Stripe.
    pub async fn forget_upgrades(&mut self, id: &CustomerId) -> Result<()> {
        self.leave_checkout(id).await?;
        sqlx::query("DELETE FROM stripe_customer_claims WHERE customer_id = $1")
            .bind(id.as_str())
            .execute(self.connection())
            .await?;
        Ok(())
    }

    /// Puts the customer's Checkout out of force: its session is to be closed, and one that is about
    /// to be made will not be shown.
    pub async fn leave_checkout(&mut self, id: &CustomerId) -> Result<()> {
        for sql in [
            "INSERT INTO checkouts_to_close (session_id, customer_id) \
             SELECT session_id, customer_id FROM checkouts \
             WHERE customer_id = $1 AND session_id IS NOT NULL ON CONFLICT (session_id) DO NOTHING",
            "DELETE FROM checkouts WHERE customer_id = $1",
        ] {
            sqlx::query(sql).bind(id.as_str()).execute(self.connection()).await?;
        }
        Ok(())
    }
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Any, sqlx::any::AnyArguments>;

/// Binds [`COLUMNS`], in their order.
fn bind<'q>(query: Query<'q>, checkout: &'q Checkout) -> Query<'q> {
    query
        .bind(checkout.customer_id.as_str())
        .bind(checkout.checkout_id.as_str())
        .bind(checkout.plan_id.as_str())
        .bind(checkout.price_id.as_str())
        .bind(checkout.stripe_customer_id.as_str())
        .bind(checkout.return_url.as_str())
        .bind(checkout.claimed_at.ms())
        .bind(checkout.expires_at.ms())
        .bind(checkout.session_id.as_deref())
}

/// Reads a row of [`COLUMNS`].
fn read(row: &AnyRow) -> Result<Checkout> {
    let corrupt = |column| StoreError::Corrupt { table: "checkouts", column };
    let customer_id: String = row.try_get("customer_id")?;
    let plan_id: String = row.try_get("plan_id")?;
    Ok(Checkout {
        customer_id: customer_id.try_into().map_err(|_| corrupt("customer_id"))?,
        checkout_id: row.try_get("checkout_id")?,
        plan_id: plan_id.try_into().map_err(|_| corrupt("plan_id"))?,
        price_id: row.try_get("price_id")?,
        stripe_customer_id: row.try_get("stripe_customer_id")?,
        return_url: row.try_get("return_url")?,
        claimed_at: time(row, "claimed_at_ms")?,
        expires_at: time(row, "expires_at_ms")?,
        session_id: row.try_get("session_id")?,
    })
}

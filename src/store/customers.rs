//! Customers and their tiers.

use std::time::Duration;

use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Result, Store, StoreError, Tx, assembled, time, time_or_none};
use crate::clock::Timestamp;
use crate::domain::customer::{Customer, LiveSubscription, Profile, Tier};
use crate::domain::decision::Standing;
use crate::domain::ids::CustomerId;
use crate::domain::period::{BillingPeriod, Cycle};
use crate::domain::plan::Interval;
use crate::domain::subscription::SubscriptionStatus;

pub(crate) const COLUMNS: &str = "customer_id, email, email_is_stripes, name, stripe_customer_id, created_at_ms, plan_id, \
    subscription_id, subscription_status, cancels_at_ms, collection_paused, standing, grace_ends_at_ms, series, anchor_ms, cycle_interval, \
    stripe_start_ms, stripe_end_ms, entitlement_version, plan_since_version, \
    terms_version, has_quotas, revision";

impl Store {
    pub async fn customer(&self, id: &CustomerId) -> Result<Option<Customer>> {
        self.customer_by("customer_id", id.as_str()).await
    }

    pub async fn customer_by_stripe_id(&self, stripe_id: &str) -> Result<Option<Customer>> {
        self.customer_by("stripe_customer_id", stripe_id).await
    }

    async fn customer_by(&self, column: &'static str, value: &str) -> Result<Option<Customer>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM customers WHERE {column} = $1 AND deleted_at_ms IS NULL"
        );
        let row = sqlx::query(assembled(sql)).bind(value).fetch_optional(&self.readers).await?;
        row.as_ref().map(read).transpose()
    }

    /// Customers whose tier the clock has overtaken: their Stripe period ended without a renewal
    /// having been seen, or their time to pay did, and Stripe has not been asked since. About a
    /// renewal it is asked again for `patience` after the end, if it was last before `again_before`.
    /// In order of id, after `after`, at most `limit`.
    pub async fn overtaken_customers(
        &self,
        moment: Timestamp,
        patience: Duration,
        again_before: Timestamp,
        after: &str,
        limit: i64,
    ) -> Result<Vec<CustomerId>> {
        let rows = sqlx::query(
            "SELECT customer_id FROM customers WHERE deleted_at_ms IS NULL AND customer_id > $3 AND ( \
             stripe_end_ms <= $1 AND (looked_at_ms < stripe_end_ms OR looked_at_ms > $1 \
             OR looked_at_ms < stripe_end_ms + $2 AND looked_at_ms < $5) \
             OR standing = 'grace' AND grace_ends_at_ms <= $1 \
             AND (looked_at_ms < grace_ends_at_ms OR looked_at_ms > $1)) \
             ORDER BY customer_id LIMIT $4",
        )
        .bind(moment.ms())
        .bind(i64::try_from(patience.as_millis()).unwrap_or(i64::MAX))
        .bind(after)
        .bind(limit)
        .bind(again_before.ms())
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| parse_id(row.try_get("customer_id")?)).collect()
    }

    /// Customers with a Stripe customer about whom Stripe was last asked before `moment`, the
    /// longest ago first, at most `limit`. A note from beyond `now` is of a clock that was ahead,
    /// and says nothing.
    pub async fn customers_to_sweep(
        &self,
        moment: Timestamp,
        now: Timestamp,
        limit: i64,
    ) -> Result<Vec<CustomerId>> {
        let rows = sqlx::query(
            "SELECT customer_id FROM customers WHERE stripe_customer_id IS NOT NULL \
             AND deleted_at_ms IS NULL AND (looked_at_ms < $1 OR looked_at_ms > $3) \
             ORDER BY looked_at_ms, customer_id LIMIT $2",
        )
        .bind(moment.ms())
        .bind(limit)
        .bind(now.ms())
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| parse_id(row.try_get("customer_id")?)).collect()
    }

    /// Customers with a Stripe customer, in order of id, after `after`, at most `limit`.
    pub async fn tied_customers(&self, after: &str, limit: i64) -> Result<Vec<CustomerId>> {
        let rows = sqlx::query(
            "SELECT customer_id FROM customers WHERE stripe_customer_id IS NOT NULL \
             AND deleted_at_ms IS NULL AND customer_id > $1 ORDER BY customer_id LIMIT $2",
        )
        .bind(after)
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| parse_id(row.try_get("customer_id")?)).collect()
    }

    /// How many customers have a Stripe customer.
    pub async fn count_tied_customers(&self) -> Result<i64> {
        let row = sqlx::query(
            "SELECT COUNT(*) AS n FROM customers WHERE stripe_customer_id IS NOT NULL \
             AND deleted_at_ms IS NULL",
        )
        .fetch_one(&self.readers)
        .await?;
        Ok(row.try_get("n")?)
    }

    /// Notes when Stripe was last asked about a customer. No revision goes up: nothing that anyone
    /// decides on has changed.
    pub async fn note_look(&self, id: &CustomerId, at: Timestamp) -> Result<()> {
        sqlx::query("UPDATE customers SET looked_at_ms = $2 WHERE customer_id = $1")
            .bind(id.as_str())
            .bind(at.ms())
            .execute(self.hold(&self.line()).await?.connection())
            .await?;
        Ok(())
    }
}

impl Tx {
    /// The customer, locked until the transaction ends.
    pub async fn lock_customer(&mut self, id: &CustomerId) -> Result<Option<Customer>> {
        self.lock_one(id, " AND deleted_at_ms IS NULL").await
    }

    /// The same for one that may have been deleted: its usage is still there, and it may come back.
    pub async fn lock_customer_or_deleted(&mut self, id: &CustomerId) -> Result<Option<Customer>> {
        self.lock_one(id, "").await
    }

    async fn lock_one(&mut self, id: &CustomerId, only: &str) -> Result<Option<Customer>> {
        self.may_change(id);
        let lock = self.dialect.lock_rows();
        let sql = format!("SELECT {COLUMNS} FROM customers WHERE customer_id = $1{only}{lock}");
        let row =
            sqlx::query(assembled(sql)).bind(id.as_str()).fetch_optional(self.connection()).await?;
        row.as_ref().map(read).transpose()
    }

    /// Inserts a customer unless it exists (a deleted one comes back with its new profile
    /// and its old usage: forgetting who it was is no way to a fresh allowance); answers whether a row was written.
    pub async fn insert_customer(&mut self, customer: &Customer) -> Result<bool> {
        self.changes(&customer.id);
        let done = sqlx::query(
            "INSERT INTO customers (customer_id, email, name, stripe_customer_id, created_at_ms, standing, \
             series, anchor_ms, cycle_interval, entitlement_version, revision) \
             VALUES ($1, $2, $3, $4, $5, 'good', $6, $7, 'month', $8, 1) \
             ON CONFLICT (customer_id) DO UPDATE SET deleted_at_ms = NULL, email = excluded.email, \
             email_is_stripes = 0, name = excluded.name, revision = customers.revision + 1 \
             WHERE customers.deleted_at_ms IS NOT NULL",
        )
        .bind(customer.id.as_str())
        .bind(customer.profile.email.as_deref())
        .bind(customer.profile.name.as_deref())
        .bind(customer.stripe_customer_id.as_deref())
        .bind(customer.created_at.ms())
        .bind(customer.tier.cycle.series)
        .bind(customer.tier.cycle.anchor.ms())
        .bind(customer.tier.entitlement_version)
        .execute(self.connection())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Writes the customer as given, if it is still at the revision it was read at.
    pub async fn update_customer(&mut self, customer: &Customer) -> Result<()> {
        self.changes(&customer.id);
        let tier = &customer.tier;
        let subscription = tier.subscription.as_ref();
        let done = sqlx::query(
            "UPDATE customers SET email = $3, name = $4, stripe_customer_id = $5, plan_id = $6, \
             subscription_id = $7, subscription_status = $8, standing = $9, grace_ends_at_ms = $10, \
             series = $11, anchor_ms = $12, cycle_interval = $13, stripe_start_ms = $14, \
             stripe_end_ms = $15, entitlement_version = $16, terms_version = $17, has_quotas = $18, plan_since_version = $19, \
             cancels_at_ms = $20, collection_paused = $21, email_is_stripes = $22, revision = revision + 1 \
             WHERE customer_id = $1 AND revision = $2",
        )
        .bind(customer.id.as_str())
        .bind(customer.revision)
        .bind(customer.profile.email.as_deref())
        .bind(customer.profile.name.as_deref())
        .bind(customer.stripe_customer_id.as_deref())
        .bind(tier.plan_id.as_ref().map(|plan| plan.as_str()))
        .bind(subscription.map(|s| s.id.as_str()))
        .bind(subscription.map(|s| s.status.as_str()))
        .bind(standing_word(tier.standing))
        .bind(tier.grace_ends_at.map(Timestamp::ms))
        .bind(tier.cycle.series)
        .bind(tier.cycle.anchor.ms())
        .bind(interval_word(tier.cycle.interval))
        .bind(tier.cycle.stripe.map(|period| period.start.ms()))
        .bind(tier.cycle.stripe.map(|period| period.end.ms()))
        .bind(tier.entitlement_version)
        .bind(customer.terms_version)
        .bind(i64::from(customer.has_quotas))
        .bind(tier.plan_since_version)
        .bind(subscription.and_then(|s| s.cancels_at).map(Timestamp::ms))
        .bind(i64::from(subscription.is_some_and(|s| s.collection_paused)))
        .bind(i64::from(customer.profile.email_is_stripes))
        .execute(self.connection())
        .await?;
        if done.rows_affected() == 1 {
            Ok(())
        } else {
            Err(StoreError::Conflict { what: "the customer" })
        }
    }

    /// Forgets who the customer is and takes it out of use. Its usage stays in the ledger.
    pub async fn delete_customer(&mut self, id: &CustomerId) -> Result<bool> {
        self.changes(id);
        let done = sqlx::query(
            "UPDATE customers SET deleted_at_ms = $2, email = NULL, email_is_stripes = 0, name = NULL, \
             stripe_customer_id = NULL, plan_id = NULL, subscription_id = NULL, \
             subscription_status = NULL, cancels_at_ms = NULL, collection_paused = 0, \
             standing = 'good', grace_ends_at_ms = NULL, looked_at_ms = 0, \
             stripe_start_ms = NULL, stripe_end_ms = NULL, cycle_interval = 'month', terms_version = NULL, \
             series = series + CASE WHEN subscription_id IS NULL THEN 0 ELSE 1 END, \
             anchor_ms = CASE WHEN subscription_id IS NULL THEN anchor_ms ELSE $3 END, entitlement_version = entitlement_version + 1, \
             plan_since_version = entitlement_version + 1, \
             revision = revision + 1 WHERE customer_id = $1 AND deleted_at_ms IS NULL",
        )
        .bind(id.as_str())
        .bind(self.now.ms())
        .bind(self.now.start_of_day().ms())
        .execute(self.connection())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// The customer tied to this Stripe customer, if any.
    pub async fn customer_id_of_stripe(&mut self, stripe_id: &str) -> Result<Option<CustomerId>> {
        let row = sqlx::query("SELECT customer_id FROM customers WHERE stripe_customer_id = $1")
            .bind(stripe_id)
            .fetch_optional(self.connection())
            .await?;
        row.map(|row| parse_id(row.try_get("customer_id")?)).transpose()
    }
}

pub(crate) fn parse_id(text: String) -> Result<CustomerId> {
    text.try_into().map_err(|_| corrupt("customer_id"))
}

fn corrupt(column: &'static str) -> StoreError {
    StoreError::Corrupt { table: "customers", column }
}

/// Reads a row of [`COLUMNS`].
pub(crate) fn read(row: &AnyRow) -> Result<Customer> {
    let status: Option<String> = row.try_get("subscription_status")?;
    let subscription = match (row.try_get::<Option<String>, _>("subscription_id")?, status) {
        (Some(id), Some(status)) => Some(LiveSubscription {
            id,
            status: SubscriptionStatus::from(status.as_str()),
            cancels_at: time_or_none(row, "cancels_at_ms")?,
            collection_paused: row.try_get::<i64, _>("collection_paused")? != 0,
        }),
        _ => None,
    };
    let plan_id: Option<String> = row.try_get("plan_id")?;
    let stripe = match (time_or_none(row, "stripe_start_ms")?, time_or_none(row, "stripe_end_ms")?)
    {
        (Some(start), Some(end)) => Some(BillingPeriod { start, end }),
        _ => None,
    };
    Ok(Customer {
        id: parse_id(row.try_get("customer_id")?)?,
        profile: Profile {
            email: row.try_get("email")?,
            name: row.try_get("name")?,
            email_is_stripes: row.try_get::<i64, _>("email_is_stripes")? != 0,
        },
        stripe_customer_id: row.try_get("stripe_customer_id")?,
        created_at: time(row, "created_at_ms")?,
        tier: Tier {
            plan_id: plan_id.map(|id| id.try_into().map_err(|_| corrupt("plan_id"))).transpose()?,
            subscription,
            standing: read_standing(row)?,
            grace_ends_at: time_or_none(row, "grace_ends_at_ms")?,
            cycle: Cycle {
                series: row.try_get("series")?,
                anchor: time(row, "anchor_ms")?,
                interval: read_interval(row.try_get("cycle_interval")?)?,
                stripe,
            },
            entitlement_version: row.try_get("entitlement_version")?,
            plan_since_version: row.try_get("plan_since_version")?,
        },
        terms_version: row.try_get("terms_version")?,
        has_quotas: row.try_get::<i64, _>("has_quotas")? != 0,
        revision: row.try_get("revision")?,
    })
}

/// The end of a grace has a column of its own, because it is remembered beyond it.
fn standing_word(standing: Standing) -> &'static str {
    match standing {
        Standing::Good => "good",
        Standing::Grace { .. } => "grace",
        Standing::PastDue => "past_due",
        Standing::Paused => "paused",
    }
}

fn read_standing(row: &AnyRow) -> Result<Standing> {
    match row.try_get("standing")? {
        "good" => Ok(Standing::Good),
        "grace" => {
            let ends_at =
                time_or_none(row, "grace_ends_at_ms")?.ok_or(corrupt("grace_ends_at_ms"))?;
            Ok(Standing::Grace { ends_at })
        }
        "past_due" => Ok(Standing::PastDue),
        "paused" => Ok(Standing::Paused),
        _ => Err(corrupt("standing")),
    }
}

fn interval_word(interval: Interval) -> &'static str {
    match interval {
        Interval::Month => "month",
        Interval::Year => "year",
    }
}

fn read_interval(word: &str) -> Result<Interval> {
    match word {
        "month" => Ok(Interval::Month),
        "year" => Ok(Interval::Year),
        _ => Err(corrupt("cycle_interval")),
    }
}

//! Leases: who is at work on what, so that two replicas do not do the same thing at once.
//!
//! A lease spares work; it does not make it correct. Whatever is done under one is also guarded by
//! a conditional write, because a process can stall past the end of its lease and wake up later.

use std::time::Duration;

use super::{Result, Store, Tx};
use crate::clock::Timestamp;

impl Store {
    /// Takes the lease `name` for `holder` if it is free, expired or the holder's already;
    /// answers whether it is now theirs.
    pub async fn take_lease(
        &self,
        name: &str,
        holder: &str,
        now: Timestamp,
        lasts: Duration,
    ) -> Result<bool> {
        let done = sqlx::query(
            "INSERT INTO leases (name, holder, expires_at_ms) VALUES ($1, $2, $4) \
             ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at_ms = excluded.expires_at_ms \
             WHERE leases.expires_at_ms <= $3 OR leases.holder = excluded.holder",
        )
        .bind(name)
        .bind(holder)
        .bind(now.ms())
        .bind(now.plus(lasts).ms())
        .execute(self.hold(&self.line()).await?.connection())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Gives the lease back, if it is still the holder's.
    pub async fn release_lease(&self, name: &str, holder: &str) -> Result<()> {
        sqlx::query("DELETE FROM leases WHERE name = $1 AND holder = $2")
            .bind(name)
            .bind(holder)
            .execute(self.hold(&self.line()).await?.connection())
            .await?;
        Ok(())
    }
}

impl Tx {
    /// Whether nobody has taken the lease from its holder, be it that its time is up. Asked within
    /// the transaction that is about to write, so that one who stalled writes nothing stale.
    pub async fn holds_lease(&mut self, name: &str, holder: &str) -> Result<bool> {
        let row = sqlx::query("SELECT holder FROM leases WHERE name = $1 AND holder = $2")
            .bind(name)
            .bind(holder)
            .fetch_optional(self.connection())
            .await?;
        Ok(row.is_some())
    }
}

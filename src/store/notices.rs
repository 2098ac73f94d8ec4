//! Notices: mails that are due, on their way or settled.

use serde::{Serialize, Serializer};
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, Row};
use utoipa::ToSchema;

use super::{Result, Store, StoreError, Tx, assembled, customers, time};
use crate::clock::Timestamp;
use crate::domain::decision::Mark;
use crate::domain::ids::{CustomerId, FeatureId, PlanId};
use crate::domain::notice::{NoticeKind, NoticeState};
use crate::domain::period::BillingPeriod;

/// One mail: why, to whom, and what has become of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Notice {
    pub notice_id: String,
    pub customer_id: CustomerId,
    pub feature_id: FeatureId,
    pub series: i64,
    #[serde(skip)]
    pub period: BillingPeriod,
    pub kind: NoticeKind,
    /// What was crossed; 100 % for the cap, 0 % for an upgrade.
    #[serde(flatten, serialize_with = "mark_fields")]
    #[schema(value_type = MarkFields)]
    pub mark: Mark,
    pub entitlement_version: i64,
    pub state: NoticeState,
    /// Usage at the crossing, in whole units.
    pub usage_units: i64,
    #[schema(required)]
    pub plan_id: Option<PlanId>,
    #[schema(required)]
    pub from_plan_id: Option<PlanId>,
    /// The plans file in force when the notice became due.
    pub plan_version: i64,
    pub created_at: Timestamp,
    pub due_at: Timestamp,
    /// When it entered its state.
    pub state_since: Timestamp,
    pub attempts: i64,
    /// Why it was dropped, refused or is in doubt.
    #[schema(required)]
    pub detail: Option<String>,
}

/// What was crossed, as the list has it.
#[derive(Serialize, ToSchema)]
struct MarkFields {
    #[schema(required)]
    percent: Option<u16>,
    #[schema(required)]
    at_units: Option<i64>,
}

impl Store {
    /// Notices due at `moment`, the longest due first, at most `limit`.
    pub async fn due_notices(&self, moment: Timestamp, limit: i64) -> Result<Vec<Notice>> {
        let rows = sqlx::query(
            "SELECT * FROM notices WHERE state = 'due' AND due_at_ms <= $1 ORDER BY due_at_ms, notice_id LIMIT $2",
        )
        .bind(moment.ms())
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(read).collect()
    }

    /// Whether there is a later notice of the same threshold in the same period, which has not come
    /// to nothing.
    pub async fn is_told_anew(&self, notice: &Notice) -> Result<bool> {
        let row = told(notice, notice.entitlement_version).fetch_one(&self.readers).await?;
        Ok(row.try_get::<i64, _>("n")? > 0)
    }

    /// A customer's notices, or everyone's, in one state or any; the newest first.
    pub async fn list_notices(
        &self,
        customer_id: Option<&str>,
        state: Option<&str>,
        limit: i64,
    ) -> Result<Vec<Notice>> {
        let rows = sqlx::query(
            "SELECT * FROM notices WHERE ($1 = '' OR customer_id = $1) AND ($2 = '' OR state = $2) \
             ORDER BY created_at_ms DESC, notice_id DESC LIMIT $3",
        )
        .bind(customer_id.unwrap_or_default())
        .bind(state.unwrap_or_default())
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(read).collect()
    }
}

impl Tx {
    /// Adds a notice unless its like is there already: one per customer, feature, period, kind,
    /// percent and entitlement version. In the place of one that was dropped it is put if its plans
    /// file is a later one: a replica that had not read that yet may have told of what was none.
    pub async fn insert_notice(&mut self, notice: &Notice) -> Result<bool> {
        let done = sqlx::query(
            "INSERT INTO notices (notice_id, customer_id, feature_id, series, period_start_ms, period_end_ms, \
             kind, percent, entitlement_version, state, usage_units, plan_id, from_plan_id, plan_version, \
             created_at_ms, due_at_ms, state_since_ms, attempts) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'due', $10, $11, $12, $13, $14, $15, $14, 0) \
             ON CONFLICT (customer_id, feature_id, series, period_start_ms, kind, percent, entitlement_version) \
             DO UPDATE SET notice_id = excluded.notice_id, period_end_ms = excluded.period_end_ms, state = 'due', \
             usage_units = excluded.usage_units, plan_id = excluded.plan_id, \
             from_plan_id = excluded.from_plan_id, plan_version = excluded.plan_version, \
             created_at_ms = excluded.created_at_ms, due_at_ms = excluded.due_at_ms, \
             state_since_ms = excluded.state_since_ms, attempts = 0, detail = NULL \
             WHERE notices.state = 'dropped' AND notices.plan_version < excluded.plan_version",
        )
        .bind(&notice.notice_id)
        .bind(notice.customer_id.as_str())
        .bind(notice.feature_id.as_str())
        .bind(notice.series)
        .bind(notice.period.start.ms())
        .bind(notice.period.end.ms())
        .bind(notice.kind.as_str())
        .bind(mark_column(notice.mark))
        .bind(notice.entitlement_version)
        .bind(notice.usage_units)
        .bind(notice.plan_id.as_ref().map(|id| id.as_str()))
        .bind(notice.from_plan_id.as_ref().map(|id| id.as_str()))
        .bind(notice.plan_version)
        .bind(notice.created_at.ms())
        .bind(notice.due_at.ms())
        .execute(self.connection())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Whether the customer has been told of this threshold in this period before, or is about to be.
    pub async fn is_told(&mut self, notice: &Notice) -> Result<bool> {
        let row = told(notice, i64::MIN).fetch_one(self.connection()).await?;
        Ok(row.try_get::<i64, _>("n")? > 0)
    }

    /// The notice, locked to the end of the transaction.
    pub async fn lock_notice(&mut self, notice_id: &str) -> Result<Option<Notice>> {
        let lock = self.dialect.lock_rows();
        let sql = format!("SELECT * FROM notices WHERE notice_id = $1{lock}");
        let row =
            sqlx::query(assembled(sql)).bind(notice_id).fetch_optional(self.connection()).await?;
        row.as_ref().map(read).transpose()
    }

    /// Moves a notice from one state to another; answers whether it was in the first.
    pub async fn move_notice(
        &mut self,
        notice_id: &str,
        from: NoticeState,
        to: NoticeState,
        detail: Option<&str>,
    ) -> Result<bool> {
        let now = self.now.ms();
        let done = sqlx::query(
            "UPDATE notices SET state = $3, detail = $4, state_since_ms = $5, \
             attempts = attempts + CASE WHEN $3 = 'sending' THEN 1 ELSE 0 END \
             WHERE notice_id = $1 AND state = $2",
        )
        .bind(notice_id)
        .bind(from.as_str())
        .bind(to.as_str())
        .bind(detail)
        .bind(now)
        .execute(self.connection())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Puts a notice that was being sent back to wait until `due_at`.
    pub async fn postpone_notice(
        &mut self,
        notice_id: &str,
        due_at: Timestamp,
        detail: &str,
    ) -> Result<()> {
        let now = self.now.ms();
        sqlx::query(
            "UPDATE notices SET state = 'due', due_at_ms = $2, detail = $3, state_since_ms = $4 \
             WHERE notice_id = $1 AND state = 'sending'",
        )
        .bind(notice_id)
        .bind(due_at.ms())
        .bind(detail)
        .bind(now)
        .execute(self.connection())
        .await?;
        Ok(())
    }

    /// Settles as `unknown` what has been `sending` since before `moment`: the process that sent it
    /// is gone, and whether the mail went out with it only the recipient knows.
    pub async fn give_up_sending(&mut self, moment: Timestamp, detail: &str) -> Result<u64> {
        let now = self.now.ms();
        let done = sqlx::query(
            "UPDATE notices SET state = 'unknown', detail = $1, state_since_ms = $2 \
             WHERE state = 'sending' AND state_since_ms < $3",
        )
        .bind(detail)
        .bind(now)
        .bind(moment.ms())
        .execute(self.connection())
        .await?;
        Ok(done.rows_affected())
    }
}

/// Counts the notices of the same threshold in the same period that are of a later entitlement version
/// than this one and have not come to nothing.
fn told(notice: &Notice, version: i64) -> Query<'_, Any, AnyArguments> {
    sqlx::query(
        "SELECT COUNT(*) AS n FROM notices WHERE customer_id = $1 AND feature_id = $2 AND series = $3 \
         AND period_start_ms = $4 AND kind = $5 AND percent = $6 AND entitlement_version > $7 \
         AND state NOT IN ('dropped', 'failed')",
    )
    .bind(notice.customer_id.as_str())
    .bind(notice.feature_id.as_str())
    .bind(notice.series)
    .bind(notice.period.start.ms())
    .bind(notice.kind.as_str())
    .bind(mark_column(notice.mark))
    .bind(version)
}

/// One column holds both kinds, so that one constraint keeps notices unique: percents as they
/// are, units below zero.
fn mark_column(mark: Mark) -> i64 {
    match mark {
        Mark::Percent(percent) => percent.into(),
        Mark::Units(units) => -units,
    }
}

fn read_mark(column: i64) -> Mark {
    u16::try_from(column).map_or(Mark::Units(column.saturating_neg()), Mark::Percent)
}

/// `percent`, and `at_units` where there is nothing that percents could be of.
fn mark_fields<S: Serializer>(mark: &Mark, serializer: S) -> Result<S::Ok, S::Error> {
    let (percent, at_units) = match *mark {
        Mark::Percent(percent) => (Some(percent), None),
        Mark::Units(units) => (None, Some(units)),
    };
    MarkFields { percent, at_units }.serialize(serializer)
}

fn read(row: &AnyRow) -> Result<Notice> {
    let corrupt = |column| StoreError::Corrupt { table: "notices", column };
    let plan = |column: &'static str| -> Result<Option<PlanId>> {
        let id: Option<String> = row.try_get(column)?;
        id.map(|id| id.try_into().map_err(|_| corrupt(column))).transpose()
    };
    let feature: String = row.try_get("feature_id")?;
    Ok(Notice {
        notice_id: row.try_get("notice_id")?,
        customer_id: customers::parse_id(row.try_get("customer_id")?)?,
        feature_id: feature.try_into().map_err(|_| corrupt("feature_id"))?,
        series: row.try_get("series")?,
        period: BillingPeriod {
            start: time(row, "period_start_ms")?,
            end: time(row, "period_end_ms")?,
        },
        kind: NoticeKind::from_word(row.try_get("kind")?).ok_or(corrupt("kind"))?,
        mark: read_mark(row.try_get("percent")?),
        entitlement_version: row.try_get("entitlement_version")?,
        state: NoticeState::from_word(row.try_get("state")?).ok_or(corrupt("state"))?,
        usage_units: row.try_get("usage_units")?,
        plan_id: plan("plan_id")?,
        from_plan_id: plan("from_plan_id")?,
        plan_version: row.try_get("plan_version")?,
        created_at: time(row, "created_at_ms")?,
        due_at: time(row, "due_at_ms")?,
        state_since: time(row, "state_since_ms")?,
        attempts: row.try_get("attempts")?,
        detail: row.try_get("detail")?,
    })
}

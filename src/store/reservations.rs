//! Reservations: units held while a run is in flight. A row changes only under its customer's lock.

use sqlx::Row;
use sqlx::any::AnyRow;

use super::rowset::{Cell, Column, Insert, SetStatement};
use super::usage::CounterKey;
use super::{Dialect, Kind, Result, Store, StoreError, Tx, customers, time, time_or_none};
use crate::clock::Timestamp;
use crate::domain::answer::{Hold, HoldState};
use crate::domain::ids::{CustomerId, ReservationId};

/// A hold, and the counter it holds units of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    pub hold: Hold,
    pub counter: CounterKey,
    pub period_end: Timestamp,
    pub entity_id: Option<String>,
    pub created_at: Timestamp,
    pub settled_at: Option<Timestamp>,
}

const COLUMNS: &[Column] = &[
    ("reservation_id", Kind::Text),
    ("customer_id", Kind::Text),
    ("feature_id", Kind::Text),
    ("entity_id", Kind::Text),
    ("series", Kind::BigInt),
    ("period_start_ms", Kind::BigInt),
    ("period_end_ms", Kind::BigInt),
    ("units", Kind::BigInt),
    ("state", Kind::Text),
    ("created_at_ms", Kind::BigInt),
    ("expires_at_ms", Kind::BigInt),
    ("settled_at_ms", Kind::BigInt),
];

const ID_COLUMNS: &[Column] = &[("reservation_id", Kind::Text)];

/// The statements of the hot path, put together once.
pub(crate) struct Statements {
    wanted: SetStatement,
    put: SetStatement,
}

impl Statements {
    pub(crate) fn new(dialect: Dialect) -> Self {
        Self {
            wanted: SetStatement::lookup(dialect, ID_COLUMNS, "reservations", "t.*", ("", "")),
            put: SetStatement::insert(
                dialect,
                Insert {
                    table: "reservations",
                    columns: COLUMNS,
                    on_conflict: "ON CONFLICT (reservation_id) DO UPDATE SET \
                        state = excluded.state, settled_at_ms = excluded.settled_at_ms",
                },
            ),
        }
    }
}

impl Store {
    /// Customers with reservations that are pending past `moment`, at most `limit`.
    pub async fn customers_with_expired_holds(
        &self,
        moment: Timestamp,
        limit: i64,
    ) -> Result<Vec<CustomerId>> {
        let rows = sqlx::query(
            "SELECT DISTINCT customer_id FROM reservations \
             WHERE state = 'pending' AND expires_at_ms <= $1 ORDER BY customer_id LIMIT $2",
        )
        .bind(moment.ms())
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| customers::parse_id(row.try_get("customer_id")?)).collect()
    }
}

impl Tx {
    /// The reservations of these ids that exist.
    pub async fn reservations(&mut self, ids: &[&ReservationId]) -> Result<Vec<Reservation>> {
        let rows: Vec<_> = ids.iter().map(|id| vec![Cell::text(id.as_str())]).collect();
        let statements = self.statements.clone();
        let found = statements.reservations.wanted.fetch(self.connection(), &rows).await?;
        found.iter().map(read).collect()
    }

    /// A customer's reservations that are pending past `moment`, the oldest first, at most `limit`.
    pub async fn expired_holds_of(
        &mut self,
        customer_id: &CustomerId,
        moment: Timestamp,
        limit: i64,
    ) -> Result<Vec<Reservation>> {
        let rows = sqlx::query(
            "SELECT * FROM reservations WHERE state = 'pending' AND expires_at_ms <= $1 \
             AND customer_id = $2 ORDER BY expires_at_ms, reservation_id LIMIT $3",
        )
        .bind(moment.ms())
        .bind(customer_id.as_str())
        .bind(limit)
        .fetch_all(self.connection())
        .await?;
        rows.iter().map(read).collect()
    }

    /// Writes reservations that are new, and the state of those that are there.
    pub async fn put_reservations(&mut self, reservations: &[Reservation]) -> Result<()> {
        let rows: Vec<_> = reservations.iter().map(cells).collect();
        let statements = self.statements.clone();
        statements.reservations.put.execute(self.connection(), &rows).await
    }
}

/// The cells of [`COLUMNS`], in their order.
fn cells(reservation: &Reservation) -> Vec<Cell<'_>> {
    let Reservation { hold, counter, period_end, entity_id, created_at, settled_at } = reservation;
    vec![
        Cell::text(hold.id.as_str()),
        Cell::text(counter.customer_id.as_str()),
        Cell::text(counter.feature_id.as_str()),
        Cell::text_or_null(entity_id.as_deref()),
        Cell::Int(counter.series),
        Cell::Int(counter.period_start.ms()),
        Cell::Int(period_end.ms()),
        Cell::Int(hold.units),
        Cell::text(hold.state.as_str()),
        Cell::Int(created_at.ms()),
        Cell::Int(hold.expires_at.ms()),
        Cell::int_or_null(settled_at.map(Timestamp::ms)),
    ]
}

fn read(row: &AnyRow) -> Result<Reservation> {
    let corrupt = |column| StoreError::Corrupt { table: "reservations", column };
    let feature_id: String = row.try_get("feature_id")?;
    let id: String = row.try_get("reservation_id")?;
    let state = match row.try_get::<&str, _>("state")? {
        "pending" => HoldState::Pending,
        "committed" => HoldState::Committed,
        "released" => HoldState::Released,
        "expired" => HoldState::Expired,
        _ => return Err(corrupt("state")),
    };
    Ok(Reservation {
        hold: Hold {
            id: id.try_into().map_err(|_| corrupt("reservation_id"))?,
            state,
            units: row.try_get("units")?,
            expires_at: time(row, "expires_at_ms")?,
        },
        counter: CounterKey {
            customer_id: customers::parse_id(row.try_get("customer_id")?)?,
            feature_id: feature_id.try_into().map_err(|_| corrupt("feature_id"))?,
            series: row.try_get("series")?,
            period_start: time(row, "period_start_ms")?,
        },
        period_end: time(row, "period_end_ms")?,
        entity_id: row.try_get("entity_id")?,
        created_at: time(row, "created_at_ms")?,
        settled_at: time_or_none(row, "settled_at_ms")?,
    })
}

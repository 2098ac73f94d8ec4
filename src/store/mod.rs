//! The database: SQLite or PostgreSQL behind one set of SQL.
//!
//! This file alone knows which of the two it is. What differs by necessity is a method of
//! [`Dialect`], each with its reason. Every write happens in a [`Tx`] (`transaction`).

pub mod audit;
pub mod customers;
pub mod doubts;
pub mod events;
pub mod history;
pub mod inbox;
pub mod intake;
pub mod journal;
pub mod keys;
pub mod leases;
pub mod notices;
pub mod outbox;
pub mod periods;
pub mod plans;
pub mod proof;
pub mod quotas;
pub mod recount;
pub mod reports;
pub mod reservations;
pub mod retention;
mod rowset;
pub mod transaction;
pub mod upgrades;
pub mod usage;

use std::borrow::Cow;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::any::{AnyPoolOptions, AnyRow};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AnyPool, AssertSqlSafe, Executor, Row, SqlSafeStr};

use crate::clock::{Clock, Timestamp};
use transaction::Changed;

pub use transaction::{Line, Tx};

/// The oldest SQLite without the WAL-reset bug, which can lose committed writes.
const MIN_SQLITE: [u32; 3] = [3, 51, 3];
/// PostgreSQL 15, as `server_version_num` says it.
const MIN_POSTGRES: i64 = 150_000;

/// How long to wait for a connection.
const TURN: Duration = Duration::from_secs(10);
/// The same for a long read: who asks for one can ask again.
const LONG_READ_TURN: Duration = Duration::from_secs(3);

/// Schema changes in order; numbers never change once released. One that names a database is for that
/// one alone: the other notes that it had its turn.
const MIGRATIONS: &[(i64, &str, Option<Dialect>, &str)] = &[
    (1, "start", None, include_str!("../../migrations/0001_start.sql")),
    (2, "gate", None, include_str!("../../migrations/0002_gate.sql")),
    (3, "keep", None, include_str!("../../migrations/0003_keep.sql")),
    (4, "inbox", None, include_str!("../../migrations/0004_inbox.sql")),
    (5, "proof", None, include_str!("../../migrations/0005_proof.sql")),
    (6, "upgrades", None, include_str!("../../migrations/0006_upgrades.sql")),
    (7, "periods", None, include_str!("../../migrations/0007_periods.sql")),
    (8, "checkouts", None, include_str!("../../migrations/0008_checkouts.sql")),
    (9, "books", None, include_str!("../../migrations/0009_books.sql")),
    (10, "clustered", Some(Dialect::Sqlite), include_str!("../../migrations/0010_clustered.sql")),
    (11, "untold", None, include_str!("../../migrations/0011_untold.sql")),
    (12, "named_holds", None, include_str!("../../migrations/0012_named_holds.sql")),
    (13, "by_bytes", Some(Dialect::Postgres), include_str!("../../migrations/0013_by_bytes.sql")),
];

/// What the database could not do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Busy, unreachable or full: the same call may succeed later.
    #[error("the database cannot answer: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// A row holds what this build cannot read.
    #[error("table {table} holds a {column} that cannot be read")]
    Corrupt { table: &'static str, column: &'static str },
    /// The row was changed by someone else since it was read.
    #[error("{what} was changed meanwhile")]
    Conflict { what: &'static str },
    #[error("{0}")]
    Unfit(String),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Unavailable(error)
    }
}

impl StoreError {
    /// Whether the database itself asks for the whole transaction to be run again: a deadlock, a
    /// serialization failure, a lock not had in time. Nothing of it took effect.
    pub fn asks_for_retry(&self) -> bool {
        // PostgreSQL's SQLSTATEs, and SQLite's SQLITE_BUSY and SQLITE_BUSY_SNAPSHOT.
        const CODES: [&str; 5] = ["40001", "40P01", "55P03", "5", "517"];
        match self {
            Self::Unavailable(sqlx::Error::Database(error)) => {
                error.code().is_some_and(|code| CODES.contains(&code.as_ref()))
            }
            _ => false,
        }
    }

    /// Whether the database itself is at fault, and not one row or one statement's content.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Unavailable(sqlx::Error::Database(error)) => {
                !error.code().is_some_and(|code| is_of_content(&code))
            }
            Self::Unavailable(_) => true,
            Self::Corrupt { .. } | Self::Conflict { .. } | Self::Unfit(_) => false,
        }
    }

    /// Whether the row was changed by someone else since it was read.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }

    /// Whether no connection became free in time.
    pub fn is_without_turn(&self) -> bool {
        matches!(self, Self::Unavailable(sqlx::Error::PoolTimedOut))
    }

    /// Whether a unique constraint refused the write.
    pub fn is_duplicate(&self) -> bool {
        matches!(self, Self::Unavailable(sqlx::Error::Database(error)) if error.is_unique_violation())
    }
}

/// Whether an error's code says that what was to be written is at fault: PostgreSQL's classes 22
/// (data) and 23 (constraints), whose codes have five places, or SQLite's TOOBIG, CONSTRAINT and
/// MISMATCH, with which the low byte of its extended codes ends.
fn is_of_content(code: &str) -> bool {
    match code.parse::<u32>() {
        _ if code.len() == 5 => code.starts_with("22") || code.starts_with("23"),
        Ok(code) => matches!(code & 0xff, 18..=20),
        Err(_) => false,
    }
}

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Which database this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Sqlite,
    Postgres,
}

impl Dialect {
    fn of(url: &str) -> Self {
        if url.starts_with("sqlite:") { Self::Sqlite } else { Self::Postgres }
    }

    /// SQLite has one writer: taking its lock first avoids the failed upgrade from reading to
    /// writing, which no busy timeout covers. PostgreSQL locks rows as it meets them; but it keeps
    /// the plan it once made for a prepared statement, and one made while a table was small reads
    /// the whole table ever after. Write transactions look up a few rows by their keys, so they
    /// are told not to.
    fn begin(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN IMMEDIATE",
            Self::Postgres => {
                "BEGIN; SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; \
                 SET LOCAL enable_mergejoin = off"
            }
        }
    }

    /// The same for all statements of a connection that does nothing else.
    fn by_keys(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Postgres => {
                "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off"
            }
        }
    }

    /// How many write transactions of the gate there are at a time. SQLite has one writer.
    /// PostgreSQL commits side by side, so that one can decide while another's commit is on its
    /// way to the disk.
    fn lines(self) -> usize {
        match self {
            Self::Sqlite => 1,
            Self::Postgres => 2,
        }
    }

    /// Locks the selected rows to the end of the transaction. On SQLite the write transaction
    /// already excludes everyone else.
    pub(crate) fn lock_rows(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Postgres => " FOR UPDATE",
        }
    }
}

/// The two column types of the portable subset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    BigInt,
}

/// A handle on the database. Clones share its connections.
#[derive(Clone)]
pub struct Store {
    readers: AnyPool,
    /// For reads that go through many rows: history, reports, recounts. However many ask for them, a
    /// check never waits for a connection behind one.
    long_readers: AnyPool,
    /// What lines get their connections from. On SQLite there is a single one, so that writers queue
    /// in order instead of polling the lock.
    for_lines: AnyPool,
    lines: Arc<[Line]>,
    intake: Arc<intake::Intake>,
    dialect: Dialect,
    clock: Clock,
    statements: Arc<Statements>,
    changed: Arc<Changed>,
}

/// The statements of the hot path, put together once.
struct Statements {
    usage: usage::Statements,
    events: events::Statements,
    reservations: reservations::Statements,
    quotas: quotas::Statements,
}

impl Statements {
    fn new(dialect: Dialect) -> Self {
        Self {
            usage: usage::Statements::new(dialect),
            events: events::Statements::new(dialect),
            reservations: reservations::Statements::new(dialect),
            quotas: quotas::Statements::new(dialect),
        }
    }
}

/// Holds the exclusive right to serve from a SQLite file; the right ends with the value or the
/// process.
pub struct ServeLock(#[expect(dead_code, reason = "held for its lock")] Option<File>);

impl Store {
    /// Connects, creating a SQLite file if there is none, and checks the database's version.
    pub async fn open(url: &SecretString, clock: Clock) -> Result<Self> {
        sqlx::any::install_default_drivers();
        let dialect = Dialect::of(url.expose_secret());
        let url = connection_url(url.expose_secret());
        let (readers, for_lines, long_readers) = match dialect {
            Dialect::Sqlite => {
                private_file(&url)?;
                let for_lines = pool(dialect, 1, TURN).connect(&url).await?;
                let readers = pool(dialect, 4, TURN).connect(&url).await?;
                (readers, for_lines, pool(dialect, 2, LONG_READ_TURN))
            }
            Dialect::Postgres => {
                let shared = pool(dialect, 13, TURN).connect(&url).await?;
                (shared.clone(), shared, pool(dialect, 3, LONG_READ_TURN))
            }
        };
        let long_readers = long_readers.connect_lazy(&url)?;
        let lines: Arc<[Line]> =
            std::iter::repeat_with(Line::default).take(dialect.lines()).collect();
        let for_intake =
            if dialect == Dialect::Sqlite { lines[0].clone() } else { Line::default() };
        let intake = Arc::new(intake::Intake::new(dialect, for_intake));
        let statements = Arc::new(Statements::new(dialect));
        let changed = Arc::default();
        let store = Self {
            readers,
            long_readers,
            for_lines,
            lines,
            intake,
            dialect,
            clock,
            statements,
            changed,
        };
        store.check_version().await?;
        Ok(store)
    }

    /// The SQLite file that [`Store::open`] would create, if it is not there yet.
    pub fn file_to_create(url: &SecretString) -> Option<PathBuf> {
        sqlite_path(url.expose_secret()).filter(|path| !path.exists())
    }

    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Brings the schema up to date. Safe to call again.
    pub async fn migrate(&self) -> Result<()> {
        migrator(self.dialect)
            .run(&self.for_lines)
            .await
            .map_err(|error| StoreError::Unfit(format!("the schema cannot be migrated: {error}")))
    }

    /// Whether the schema is the one this build was made for, or a newer one.
    pub async fn is_migrated(&self) -> Result<bool> {
        let applied = sqlx::query("SELECT COUNT(*) AS n FROM _sqlx_migrations")
            .fetch_one(&self.readers)
            .await
            .and_then(|row| row.try_get::<i64, _>("n"));
        Ok(applied.is_ok_and(|n| usize::try_from(n).is_ok_and(|n| n >= MIGRATIONS.len())))
    }

    /// Makes this process the one that serves from a SQLite file; PostgreSQL needs no such lock.
    pub fn lock_for_serving(&self, url: &SecretString) -> Result<ServeLock> {
        let Some(path) = sqlite_path(url.expose_secret()) else { return Ok(ServeLock(None)) };
        // A link to the file must not lead to another lock.
        let path = path.canonicalize().unwrap_or(path).display().to_string();
        let file = File::create(format!("{path}.lock")).map_err(|error| {
            StoreError::Unfit(format!("{path}.lock cannot be written: {error}"))
        })?;
        match file.try_lock() {
            Ok(()) => Ok(ServeLock(Some(file))),
            Err(TryLockError::WouldBlock) => Err(StoreError::Unfit(format!(
                "{path} is served by another process already; several replicas need PostgreSQL"
            ))),
            Err(TryLockError::Error(error)) => {
                Err(StoreError::Unfit(format!("{path}.lock cannot be locked: {error}")))
            }
        }
    }

    /// Whether this process alone writes to the database, so that what it remembers is true.
    pub fn is_ours_alone(&self) -> bool {
        self.dialect == Dialect::Sqlite
    }

    pub async fn close(&self) {
        for line in self.lines.iter().chain([&self.intake.line]) {
            line.leave().await;
        }
        self.for_lines.close().await;
        self.readers.close().await;
        self.long_readers.close().await;
    }

    async fn check_version(&self) -> Result<()> {
        match self.dialect {
            Dialect::Sqlite => {
                let version: String = one(&self.readers, "SELECT sqlite_version() AS v").await?;
                let parts: Vec<u32> = version.split('.').filter_map(|p| p.parse().ok()).collect();
                if parts.as_slice() < MIN_SQLITE.as_slice() {
                    return Err(StoreError::Unfit(format!(
                        "SQLite {version} can lose committed writes; 3.51.3 or later is needed"
                    )));
                }
            }
            Dialect::Postgres => {
                let query = "SELECT CAST(current_setting('server_version_num') AS BIGINT) AS v";
                let version: i64 = one(&self.readers, query).await?;
                if version < MIN_POSTGRES {
                    return Err(StoreError::Unfit(format!(
                        "PostgreSQL {} is too old; 15 or later is needed",
                        version / 10_000
                    )));
                }
            }
        }
        Ok(())
    }
}

fn migrator(dialect: Dialect) -> Migrator {
    let migrations = MIGRATIONS
        .iter()
        .map(|(version, name, only, sql)| {
            let sql = if only.is_none_or(|only| only == dialect) { *sql } else { "SELECT 1" };
            let (name, kind) = (Cow::Borrowed(*name), MigrationType::Simple);
            Migration::new(*version, name, kind, SqlSafeStr::into_sql_str(sql), false)
        })
        .collect();
    let mut migrator = Migrator::with_migrations(migrations);
    // A binary that is rolled back meets a schema newer than its own. Migrations only ever expand
    // within a release, so it can go on.
    migrator.set_ignore_missing(true);
    migrator
}

/// At most so many connections; who finds none free within `turn` is told so.
fn pool(dialect: Dialect, connections: u32, turn: Duration) -> AnyPoolOptions {
    AnyPoolOptions::new().max_connections(connections).acquire_timeout(turn).after_connect(
        move |connection, _| {
            Box::pin(async move {
                for statement in session_settings(dialect) {
                    connection.execute(*statement).await?;
                }
                Ok(())
            })
        },
    )
}

/// What makes an acknowledged write survive a lost power supply, and a stuck session end.
fn session_settings(dialect: Dialect) -> &'static [&'static str] {
    match dialect {
        Dialect::Sqlite => &[
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "PRAGMA busy_timeout = 10000",
            // What a statement would take back if it failed half-way goes to memory: a batch is one
            // statement, and a file made and deleted for each costs a quarter of its time.
            "PRAGMA temp_store = MEMORY",
            // The pages that are written to most: 8 MB instead of 2.
            "PRAGMA cache_size = -8000",
            // Checkpoints at 80 MB instead of 4 cost less under load; measured at 1.2 to 1.5 times
            // the decisions per second.
            "PRAGMA wal_autocheckpoint = 20000",
        ],
        Dialect::Postgres => &[
            "SET synchronous_commit = on",
            "SET idle_in_transaction_session_timeout = '60s'",
            "SET lock_timeout = '10s'",
        ],
    }
}

/// The file of a SQLite URL as sqlx will read it; `None` for PostgreSQL and for a database in
/// memory.
fn sqlite_path(url: &str) -> Option<PathBuf> {
    let rest = url.strip_prefix("sqlite:")?;
    if rest.trim_start_matches('/').starts_with(":memory:") || url.contains("mode=memory") {
        return None;
    }
    let options = SqliteConnectOptions::from_str(url).ok()?;
    Some(options.get_filename().to_owned())
}

/// SQLite creates the file only if the URL asks for it.
fn connection_url(url: &str) -> String {
    if sqlite_path(url).is_none() || url.contains("mode=") {
        return url.to_owned();
    }
    let separator = if url.contains('?') { '&' } else { '?' };
    format!("{url}{separator}mode=rwc")
}

/// A new SQLite file is made readable by its owner alone: it holds addresses and usage.
fn private_file(url: &str) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let Some(path) = sqlite_path(url) else { return Ok(()) };
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => {
            let path = path.display();
            Err(StoreError::Unfit(format!("{path} cannot be created: {error}")))
        }
    }
}

async fn one<T>(pool: &AnyPool, query: &'static str) -> Result<T>
where
    T: for<'r> sqlx::Decode<'r, sqlx::Any> + sqlx::Type<sqlx::Any>,
{
    Ok(sqlx::query(query).fetch_one(pool).await?.try_get("v")?)
}

/// A statement put together from constants and [`Dialect`] parts only, never from input.
pub(crate) fn assembled(sql: impl Into<Arc<str>>) -> AssertSqlSafe<Arc<str>> {
    AssertSqlSafe(sql.into())
}

pub(crate) fn time(row: &AnyRow, column: &str) -> Result<Timestamp> {
    Ok(Timestamp::from_ms(row.try_get(column)?))
}

pub(crate) fn time_or_none(row: &AnyRow, column: &str) -> Result<Option<Timestamp>> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(Timestamp::from_ms))
}

#[cfg(test)]
mod tests {
    use super::is_of_content;

    #[test]
    fn what_cannot_be_written_is_no_outage() {
        for (code, said) in [
            ("22021", "a character that PostgreSQL does not keep"),
            ("23514", "a check"),
            ("2067", "SQLite: a unique index"),
            ("18", "SQLite: too big"),
        ] {
            assert!(is_of_content(code), "{said}");
        }
        for (code, said) in [
            ("57P01", "PostgreSQL shuts down"),
            ("53100", "its disk is full"),
            ("25006", "it only reads"),
            ("42P01", "a table is away"),
            ("13", "SQLite's disk is full"),
            ("778", "SQLite: a write to the disk failed"),
            ("1", "SQLite: a table is away"),
        ] {
            assert!(!is_of_content(code), "{said}");
        }
    }
}

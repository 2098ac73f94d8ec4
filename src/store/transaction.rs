//! Write transactions, and the connections that they follow one another on.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{Any, AnyConnection, Executor};
use tokio::sync::OwnedMutexGuard;

use super::{Dialect, Result, Statements, Store, StoreError};
use crate::clock::Timestamp;
use crate::domain::ids::CustomerId;

/// How long a transaction waits for the one before it.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection on which write transactions follow one another. It is kept from one to the next,
/// because the pool asks it twice for each whether it is still there.
#[derive(Clone, Default)]
pub struct Line(Arc<tokio::sync::Mutex<Option<PoolConnection<Any>>>>);

impl Line {
    /// Gives the connection back when the transaction under way has ended.
    pub(super) async fn leave(&self) {
        self.0.lock().await.take();
    }
}

/// How many changed customers are noted: beyond that it may be everyone.
const NOTED: usize = 20_000;

/// Which customers may have been changed by someone other than the gate since it last asked;
/// everyone, if that is not known.
#[derive(Default)]
pub(super) struct Changed(Mutex<Option<HashSet<CustomerId>>>);

impl Changed {
    fn set(&self) -> MutexGuard<'_, Option<HashSet<CustomerId>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, ids: impl IntoIterator<Item = CustomerId>) {
        let mut changed = self.set();
        if let Some(set) = changed.as_mut() {
            set.extend(ids);
        }
        changed.take_if(|set| set.len() > NOTED);
    }
}

/// A write transaction, and the moment it began: it sees no other.
pub struct Tx {
    line: Option<OwnedMutexGuard<Option<PoolConnection<Any>>>>,
    /// Whether there is something to roll back.
    open: bool,
    pub now: Timestamp,
    pub(super) dialect: Dialect,
    changed: Arc<Changed>,
    /// Whom it has changed, on PostgreSQL: that is told when it is committed. `None` is everyone.
    own: Option<HashSet<CustomerId>>,
    pub(super) statements: Arc<Statements>,
}

impl Store {
    /// The lines of the gate's writers, on each of which transactions follow one another.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Begins a write transaction. It must be run to its end in a task of its own or one that
    /// nothing cancels: dropping it half-way on PostgreSQL can leave a connection unusable.
    pub async fn begin(&self) -> Result<Tx> {
        self.begin_on(&self.line()).await
    }

    /// On PostgreSQL, the customers that this process has changed since the last call; everyone, if
    /// that is not known. What other replicas change is told nowhere. On SQLite it is
    /// [`Tx::take_changed`] that says so.
    pub fn take_told(&self) -> Option<HashSet<CustomerId>> {
        match self.dialect {
            Dialect::Sqlite => Some(HashSet::new()),
            Dialect::Postgres => self.changed.set().replace(HashSet::new()),
        }
    }

    /// The line for a transaction that none is to follow.
    pub fn line(&self) -> Line {
        match self.dialect {
            Dialect::Sqlite => self.lines[0].clone(),
            Dialect::Postgres => Line::default(),
        }
    }

    /// The same on a line, when the transaction before it has ended.
    pub async fn begin_on(&self, line: &Line) -> Result<Tx> {
        let tx = self.hold(line).await?;
        self.begin_held(tx, line).await
    }

    /// Begins a transaction that has the line already, and keeps it meanwhile.
    pub(crate) async fn begin_held(&self, mut tx: Tx, line: &Line) -> Result<Tx> {
        match tx.begin().await {
            Err(error) if !error.asks_for_retry() => {
                // The connection has died since the transaction before. Nothing is lost with it.
                tx.hang_up();
                let connection = self.connect(line).await?;
                tx.line.as_mut().expect("it is held").replace(connection);
                tx.now = self.clock.now();
                tx.begin().await?;
            }
            begun => begun?,
        }
        Ok(tx)
    }

    /// Has the line for a transaction that is yet to begin, or for statements that are one each. On
    /// SQLite nobody else writes meanwhile.
    pub async fn hold(&self, line: &Line) -> Result<Tx> {
        let mut held = tokio::time::timeout(PATIENCE, line.0.clone().lock_owned())
            .await
            .map_err(|_| StoreError::Unavailable(sqlx::Error::PoolTimedOut))?;
        if held.is_none() {
            *held = Some(self.connect(line).await?);
        }
        Ok(Tx {
            line: Some(held),
            open: false,
            now: self.clock.now(),
            dialect: self.dialect,
            changed: self.changed.clone(),
            own: Some(HashSet::new()),
            statements: self.statements.clone(),
        })
    }

    async fn connect(&self, line: &Line) -> Result<PoolConnection<Any>> {
        let mut connection = self.for_lines.acquire().await?;
        // The gate's writers send statements that are a transaction each on theirs.
        if self.lines.iter().any(|kept| Arc::ptr_eq(&kept.0, &line.0)) {
            connection.execute(self.dialect.by_keys()).await?;
        }
        Ok(connection)
    }
}

impl Tx {
    /// Begins it, if it was only held.
    pub async fn begin(&mut self) -> Result<()> {
        let statement = self.dialect.begin();
        // Where that fails, a connection that has died must not be left on the line.
        self.begins();
        self.connection().execute(statement).await?;
        Ok(())
    }

    pub async fn commit(mut self) -> Result<()> {
        let done = self.connection().execute("COMMIT").await;
        // It may have been done though its answer was lost.
        match self.own.take() {
            Some(own) if own.is_empty() => {}
            Some(own) => self.changed.add(own),
            None => *self.changed.set() = None,
        }
        done?;
        self.has_ended();
        Ok(())
    }

    /// From here on there is something to roll back.
    pub(super) fn begins(&mut self) {
        self.open = true;
    }

    pub(super) fn has_ended(&mut self) {
        self.open = false;
    }

    /// The customers that others may have changed since the last call, and from now on keeps
    /// track of more. Whoever holds the line on SQLite knows that nobody else is in the middle of
    /// a transaction, so that what it is told here is all there is. On PostgreSQL nobody is told:
    /// what was decided before is compared when it is written.
    pub fn take_changed(&mut self) -> Option<HashSet<CustomerId>> {
        if self.dialect == Dialect::Postgres {
            return Some(HashSet::new());
        }
        self.changed.set().replace(HashSet::new())
    }

    /// Notes that this transaction may change a customer, on SQLite. Too early is no harm; the gate
    /// reads the row again.
    pub(super) fn may_change(&self, id: &CustomerId) {
        if self.dialect == Dialect::Sqlite {
            self.changed.add([id.clone()]);
        }
    }

    /// The same for customers whose rows were locked as a set.
    pub fn note_changes<'i>(&self, ids: impl IntoIterator<Item = &'i CustomerId>) {
        ids.into_iter().for_each(|id| self.may_change(id));
    }

    /// Notes that it does change one, on PostgreSQL: what is read again there is compared anyway.
    pub(super) fn changes(&mut self, id: &CustomerId) {
        if let (Dialect::Postgres, Some(own)) = (self.dialect, &mut self.own) {
            own.insert(id.clone());
        }
    }

    /// The same for everyone.
    pub(super) fn changes_all(&mut self) {
        match self.dialect {
            Dialect::Sqlite => *self.changed.set() = None,
            Dialect::Postgres => self.own = None,
        }
    }

    pub(crate) fn connection(&mut self) -> &mut AnyConnection {
        let connection = self.line.as_mut().and_then(|line| line.as_mut());
        connection.expect("a line has its connection while it is held")
    }

    fn hang_up(&mut self) {
        self.has_ended();
        if let Some(mut connection) = self.line.as_mut().and_then(|line| line.take()) {
            connection.close_on_drop();
        }
    }
}

/// Rolls back what was not committed; whoever is next on the line waits for that.
impl Drop for Tx {
    fn drop(&mut self) {
        let Some(mut line) = self.line.take().filter(|_| self.open) else { return };
        tokio::spawn(async move {
            let Some(mut connection) = line.take() else { return };
            match connection.execute("ROLLBACK").await {
                Ok(_) => *line = Some(connection),
                // Whatever it is in the middle of ends with it.
                Err(_) => connection.close_on_drop(),
            }
        });
    }
}

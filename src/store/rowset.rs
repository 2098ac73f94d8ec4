//! Statements that take a whole set of rows, so that a batch costs a handful of statements however
//! many runs are in it.
//!
//! The two databases take a set in different ways by necessity. PostgreSQL reads it from one JSON
//! parameter, so that there is one statement to plan. SQLite would parse that JSON once for each
//! value it takes out, which was measured to cost more than the insert itself; so it gets a parameter
//! for each value, in statements of a few fixed sizes. What is not bound is NULL there, so a set that
//! is smaller than its statement ends with rows of nothing, which are left out again.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, AnyConnection, Row};

use super::{Dialect, Kind, Result, assembled};

/// One value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cell<'a> {
    Text(Cow<'a, str>),
    Int(i64),
    NullText,
    NullInt,
}

impl<'a> Cell<'a> {
    pub(crate) fn text(text: impl Into<Cow<'a, str>>) -> Self {
        Self::Text(text.into())
    }

    pub(crate) fn text_or_null(text: Option<impl Into<Cow<'a, str>>>) -> Self {
        text.map_or(Self::NullText, Self::text)
    }

    pub(crate) fn int_or_null(number: Option<i64>) -> Self {
        number.map_or(Self::NullInt, Self::Int)
    }
}

/// A column's name and type.
pub(crate) type Column = (&'static str, Kind);

/// How many rows one statement of SQLite takes: a set goes into the smallest it fits, and one that
/// fits none is cut.
const SIZES: [usize; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];
const LARGEST: usize = SIZES[SIZES.len() - 1];

/// A statement over a set of rows.
pub(crate) struct SetStatement {
    dialect: Dialect,
    columns: &'static [Column],
    /// One for each of [`SIZES`] on SQLite, the one there is on PostgreSQL.
    texts: Vec<Arc<str>>,
}

/// Where rows go, and what happens to those that are there already.
#[derive(Clone, Copy)]
pub(crate) struct Insert<'a> {
    pub table: &'a str,
    pub columns: &'static [Column],
    pub on_conflict: &'a str,
}

impl SetStatement {
    /// Reads the rows `t` of a table whose columns have the given values: `selected` of them, and
    /// `only` those. With `lock` they are locked in the order of the set.
    ///
    /// All of these are constants of the program or parts of [`Dialect`], never input.
    pub(crate) fn lookup(
        dialect: Dialect,
        columns: &'static [Column],
        table: &str,
        selected: &str,
        (only, lock): (&str, &str),
    ) -> Self {
        let same: Vec<_> = columns.iter().map(|(name, _)| format!("t.{name} = w.{name}")).collect();
        let same = same.join(" AND ");
        let after = match dialect {
            // CROSS JOIN makes SQLite start from the few wanted rows, not from the table.
            Dialect::Sqlite => format!("CROSS JOIN {table} AS t WHERE {same}{only}"),
            // PostgreSQL would go through a table that it takes for a small one, long after it has
            // grown. What has an OFFSET is looked up row by row.
            Dialect::Postgres => format!(
                "CROSS JOIN LATERAL (SELECT * FROM {table} AS t WHERE {same}{only} \
                 OFFSET 0{lock}) AS t"
            ),
        };
        Self::new(dialect, columns, &format!("SELECT {selected} FROM"), &after)
    }

    /// Inserts rows.
    pub(crate) fn insert(dialect: Dialect, insert: Insert<'_>) -> Self {
        Self::insert_by(dialect, "INSERT", insert)
    }

    fn insert_by(dialect: Dialect, verb: &str, insert: Insert<'_>) -> Self {
        let (before, after) = insert.around(verb, "true");
        Self::new(dialect, insert.columns, &before, &after)
    }

    fn new(dialect: Dialect, columns: &'static [Column], before: &str, after: &str) -> Self {
        debug_assert!(!columns.is_empty(), "the first column is what tells a row from none");
        let text = |set: String| Arc::from(format!("{before} {set} AS w {after}"));
        let texts = match dialect {
            Dialect::Sqlite => SIZES.iter().map(|size| text(values(columns, *size))).collect(),
            Dialect::Postgres => vec![text(recordset(columns, 1))],
        };
        Self { dialect, columns, texts }
    }

    pub(crate) async fn execute(
        &self,
        connection: &mut AnyConnection,
        rows: &[Vec<Cell<'_>>],
    ) -> Result<()> {
        for query in self.queries(rows) {
            query.execute(&mut *connection).await?;
        }
        Ok(())
    }

    pub(crate) async fn fetch(
        &self,
        connection: &mut AnyConnection,
        rows: &[Vec<Cell<'_>>],
    ) -> Result<Vec<AnyRow>> {
        let mut found = Vec::new();
        for query in self.queries(rows) {
            found.extend(query.fetch_all(&mut *connection).await?);
        }
        Ok(found)
    }

    fn queries(&self, rows: &[Vec<Cell<'_>>]) -> Vec<Query<'static, Any, AnyArguments>> {
        if self.dialect == Dialect::Postgres {
            let all = sqlx::query(assembled(self.texts[0].clone())).bind(json(rows));
            return if rows.is_empty() { Vec::new() } else { vec![all] };
        }
        let query = |(text, rows, _): (&Arc<str>, &[Vec<Cell<'_>>], usize)| {
            rows.iter().flatten().fold(sqlx::query(assembled(text.clone())), bind)
        };
        self.cut(rows).map(query).collect()
    }

    /// The statements of SQLite that a set goes into, each with its rows and how many values are
    /// missing to its size.
    fn cut<'r, 'c>(
        &self,
        rows: &'r [Vec<Cell<'c>>],
    ) -> impl Iterator<Item = (&Arc<str>, &'r [Vec<Cell<'c>>], usize)> {
        debug_assert!(rows.iter().all(|row| row.len() == self.columns.len()));
        rows.chunks(LARGEST).map(|rows| {
            let fits = SIZES.iter().position(|size| rows.len() <= *size);
            let fits = fits.unwrap_or(SIZES.len() - 1);
            (&self.texts[fits], rows, (SIZES[fits] - rows.len()) * self.columns.len())
        })
    }
}

impl Insert<'_> {
    /// The statement before and after the set of rows.
    fn around(&self, verb: &str, condition: &str) -> (String, String) {
        let names = names(self.columns);
        // SQLite would take the ON of a conflict clause for a join's without the WHERE.
        let before = format!("{verb} INTO {} ({names}) SELECT {names} FROM", self.table);
        (before, format!("WHERE {condition} {}", self.on_conflict))
    }
}

/// Two inserts in one call of the driver: for a few rows the call costs more than they do. What fails
/// leaves the transaction good for nothing but to be rolled back.
pub(crate) struct Inserts {
    dialect: Dialect,
    each: [SetStatement; 2],
    /// Both in one statement, of PostgreSQL.
    together: Arc<str>,
    /// The same for the case that a set of rows is found as it was read.
    compared: Arc<str>,
}

/// Rows that a write was decided on. PostgreSQL locks them in the order of the set and compares them
/// within the statement that writes: others may have changed them since they were read.
pub(crate) struct Basis {
    pub columns: &'static [Column],
    /// What of the row `w` of the set is looked up and locked.
    pub found: &'static str,
    /// Whether that is as the set has it.
    pub same: String,
}

/// Whether SQLite begins and ends the transaction in the same call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame {
    Whole,
    Part,
}

impl Inserts {
    pub(crate) fn new(
        dialect: Dialect,
        first: Insert<'_>,
        second: Insert<'_>,
        basis: &Basis,
    ) -> Self {
        let text = |insert: Insert<'_>, parameter, condition| {
            let (before, after) = insert.around("INSERT", condition);
            format!("{before} {} AS w {after}", recordset(insert.columns, parameter))
        };
        let always = "true";
        let together =
            format!("WITH first AS ({}) {}", text(first, 1, always), text(second, 2, always));
        let (set, Basis { found, same, .. }) = (recordset(basis.columns, 3), basis);
        // What is not there any more is not found, so that there are fewer that are the same.
        let holds = "(SELECT holds FROM basis)";
        let compared = format!(
            "WITH found AS (SELECT {same} AS same FROM {set} AS w {found}), \
             basis AS (SELECT COUNT(*) FILTER (WHERE same) = json_array_length(CAST($3 AS json)) AS holds \
             FROM found), first AS ({}), second AS ({}) SELECT holds FROM basis",
            text(first, 1, holds),
            text(second, 2, holds),
        );
        // A statement that may fail half-way keeps a copy of each page that it changes, to take back
        // what it has done. Nobody goes on in a transaction that failed here, so it need not.
        let verb = match dialect {
            Dialect::Sqlite => "INSERT OR FAIL",
            Dialect::Postgres => "INSERT",
        };
        let each = [first, second].map(|insert| SetStatement::insert_by(dialect, verb, insert));
        Self { dialect, each, together: Arc::from(together), compared: Arc::from(compared) }
    }

    /// Writes both sets if each row of `basis` is found as it says, and answers whether that was so.
    /// On SQLite, where nobody else writes, there is nothing to compare.
    pub(crate) async fn execute_on(
        &self,
        connection: &mut AnyConnection,
        basis: &[Vec<Cell<'_>>],
        rows: [&[Vec<Cell<'_>>]; 2],
        frame: Frame,
    ) -> Result<bool> {
        if basis.is_empty() {
            self.execute(connection, rows, frame).await?;
            return Ok(true);
        }
        let [first, second] = rows;
        let query = sqlx::query(assembled(self.compared.clone()));
        let query = [first, second, basis].iter().fold(query, |query, rows| query.bind(json(rows)));
        // All that the database says, not only the row: it comes before the commit, which may yet fail.
        let answer = query.fetch_all(connection).await?;
        Ok(answer.first().ok_or(sqlx::Error::RowNotFound)?.try_get("holds")?)
    }

    pub(crate) async fn execute(
        &self,
        connection: &mut AnyConnection,
        rows: [&[Vec<Cell<'_>>]; 2],
        frame: Frame,
    ) -> Result<()> {
        if rows.iter().all(|rows| rows.is_empty()) {
            return Ok(());
        }
        let query = match self.dialect {
            Dialect::Sqlite => self.chain(rows, frame),
            Dialect::Postgres => {
                rows.iter().fold(sqlx::query(assembled(self.together.clone())), |query, rows| {
                    query.bind(json(rows))
                })
            }
        };
        query.execute(connection).await?;
        Ok(())
    }

    /// All statements as one text, which the driver runs one after another. It deals the values out
    /// in order, so that those that are missing are bound too.
    fn chain(
        &self,
        rows: [&[Vec<Cell<'_>>]; 2],
        frame: Frame,
    ) -> Query<'static, Any, AnyArguments> {
        let [first, second] = &self.each;
        let pieces: Vec<_> = first.cut(rows[0]).chain(second.cut(rows[1])).collect();
        let mut text = String::with_capacity(pieces.iter().map(|piece| piece.0.len() + 64).sum());
        let (begin, commit) = match frame {
            Frame::Whole => (self.dialect.begin(), "COMMIT"),
            Frame::Part => ("", ""),
        };
        text.push_str(begin);
        for (statement, ..) in &pieces {
            text.push_str("; ");
            text.push_str(statement);
        }
        text.push_str("; ");
        text.push_str(commit);
        let text = text.trim_matches([';', ' ']);
        pieces.into_iter().fold(sqlx::query(assembled(text)), |query, (_, rows, missing)| {
            let query = rows.iter().flatten().fold(query, bind);
            (0..missing).fold(query, |query, _| bind(query, &Cell::NullInt))
        })
    }
}

pub(crate) fn names(columns: &[Column]) -> String {
    columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

fn bind(
    query: Query<'static, Any, AnyArguments>,
    cell: &Cell<'_>,
) -> Query<'static, Any, AnyArguments> {
    match cell {
        Cell::Text(text) => query.bind(text.clone().into_owned()),
        Cell::Int(number) => query.bind(*number),
        Cell::NullText => query.bind(None::<String>),
        Cell::NullInt => query.bind(None::<i64>),
    }
}

fn values(columns: &[Column], rows: usize) -> String {
    let width = columns.len();
    let named: Vec<_> = columns
        .iter()
        .enumerate()
        .map(|(at, (name, _))| format!("column{} AS {name}", at + 1))
        .collect();
    // Marks without a number are the quickest to bind.
    let row = format!("({})", vec!["?"; width].join(","));
    let rows = vec![row; rows].join(",");
    format!("(SELECT {} FROM (VALUES {rows}) WHERE column1 IS NOT NULL)", named.join(", "))
}

/// The keys of the JSON are numbers: their names would be most of its length.
fn recordset(columns: &[Column], parameter: usize) -> String {
    let named: Vec<_> =
        columns.iter().enumerate().map(|(at, (name, _))| format!("\"{at}\" AS {name}")).collect();
    let typed: Vec<_> = columns
        .iter()
        .enumerate()
        .map(|(at, (_, kind))| match kind {
            Kind::Text => format!("\"{at}\" TEXT"),
            Kind::BigInt => format!("\"{at}\" BIGINT"),
        })
        .collect();
    format!(
        "(SELECT {} FROM json_to_recordset(CAST(${parameter} AS json)) AS r({}))",
        named.join(", "),
        typed.join(", ")
    )
}

/// The rows as one parameter of PostgreSQL.
fn json(rows: &[Vec<Cell<'_>>]) -> String {
    let mut out = String::with_capacity(rows.len() * 256);
    out.push('[');
    for (n, row) in rows.iter().enumerate() {
        out.push_str(if n == 0 { "{" } else { ",{" });
        let mut first = true;
        for (at, cell) in row.iter().enumerate() {
            if matches!(cell, Cell::NullText | Cell::NullInt) {
                continue;
            }
            let comma = if first { "" } else { "," };
            first = false;
            // Writing to a String cannot fail.
            let _ = match cell {
                Cell::Int(number) => write!(out, "{comma}\"{at}\":{number}"),
                Cell::Text(text) => {
                    write!(out, "{comma}\"{at}\":{}", serde_json::Value::from(text.as_ref()))
                }
                Cell::NullText | Cell::NullInt => Ok(()),
            };
        }
        out.push('}');
    }
    out.push(']');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[("name", Kind::Text), ("units", Kind::BigInt)];
    const INTO_T: Insert<'_> = Insert { table: "t", columns: COLUMNS, on_conflict: "" };

    #[test]
    fn a_set_goes_into_one_statement_until_it_fits_none() {
        let statement = SetStatement::insert(Dialect::Sqlite, INTO_T);
        let queries = |rows| statement.queries(&vec![vec![Cell::text("a"), Cell::Int(1)]; rows]);
        for (rows, statements) in [(0, 0), (1, 1), (5, 1), (256, 1), (257, 2), (600, 3)] {
            assert_eq!(queries(rows).len(), statements, "{rows}");
        }
    }

    #[test]
    fn json_leaves_out_nulls_and_escapes_text() {
        let rows = [vec![Cell::text("a\"b"), Cell::NullInt], vec![Cell::NullText, Cell::Int(-3)]];
        assert_eq!(json(&rows), r#"[{"0":"a\"b"},{"1":-3}]"#);
    }

    #[test]
    fn each_database_gets_its_own_words() {
        let text = |dialect| {
            let insert = Insert { on_conflict: "ON CONFLICT DO NOTHING", ..INTO_T };
            SetStatement::insert(dialect, insert).texts.into_iter().next()
        };
        assert_eq!(
            text(Dialect::Sqlite).as_deref(),
            Some(
                "INSERT INTO t (name, units) SELECT name, units FROM (SELECT column1 AS name, \
                 column2 AS units FROM (VALUES (?,?)) WHERE column1 IS NOT NULL) AS w WHERE true ON CONFLICT DO NOTHING"
            )
        );
        assert!(text(Dialect::Postgres).unwrap().contains("json_to_recordset(CAST($1 AS json))"));
    }
}

//! Usage from a CSV file: read once from front to back, nothing of it kept but the ledger.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use csv::{ByteRecord, Reader, ReaderBuilder};

use crate::clock::Timestamp;
use crate::domain::cost::{self, Tokens};
use crate::domain::margin::{Ledger, Run};
use crate::domain::plan::ModelPrices;
use crate::domain::run::MAX_TOKENS;

/// The columns, by the names they have unless told otherwise. The last two may be absent.
pub const COLUMNS: [&str; 7] = [
    "customer",
    "timestamp",
    "model",
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "plan",
];
const CUSTOMER: usize = 0;
const TIMESTAMP: usize = 1;
const MODEL: usize = 2;
const INPUT: usize = 3;
const OUTPUT: usize = 4;
const CACHED: usize = 5;
const PLAN: usize = 6;
/// How many of [`COLUMNS`] a usage file must have.
const REQUIRED: usize = 5;

/// Progress is told this often, in rows.
const ROWS_PER_TICK: u64 = 1 << 16;

/// What the columns are called in a file; by default as in [`COLUMNS`].
#[derive(Debug, Clone)]
pub struct Names([Name; COLUMNS.len()]);

#[derive(Debug, Clone)]
struct Name {
    text: String,
    /// Whether it was given: then the column must be there.
    is_given: bool,
}

impl Default for Names {
    fn default() -> Self {
        Self(COLUMNS.map(|column| Name { text: column.to_owned(), is_given: false }))
    }
}

impl Names {
    /// `column` is one of [`COLUMNS`], `name` what the file calls it.
    ///
    /// # Errors
    /// What was wanted, if there is no such column.
    pub fn set(&mut self, column: &str, name: &str) -> Result<(), String> {
        let at = COLUMNS.iter().position(|known| *known == column);
        let at = at.ok_or_else(|| format!("COLUMN must be one of {}", COLUMNS.join(", ")))?;
        self.0[at] = Name { text: name.to_owned(), is_given: true };
        Ok(())
    }
}

/// Why a file could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum CsvError {
    #[error("{} cannot be read: {error}", path.display())]
    Unreadable { path: PathBuf, error: std::io::Error },
    #[error("{}: there is no column {name:?} for {column}; it has {header}", path.display())]
    NoColumn { path: PathBuf, column: &'static str, name: String, header: String },
    #[error("{}:{line}: {wanted}", path.display())]
    BadLine { path: PathBuf, line: u64, wanted: String },
}

/// How the reader tells what it meets.
pub trait Progress {
    /// So many bytes of the file are read.
    fn at(&mut self, bytes: u64);
    /// A line could not be used; the reader goes on to the next.
    ///
    /// # Errors
    /// The error it was told, if the reader is to stop there.
    fn bad_line(&mut self, error: CsvError) -> Result<(), CsvError>;
}

/// Books every row of a usage file as one run and answers how many there were.
///
/// # Errors
/// A file or a header that cannot be read, or a bad line that `progress` does not let pass.
pub fn read_usage(
    path: &Path,
    names: &Names,
    models: &BTreeMap<String, ModelPrices>,
    ledger: &mut Ledger,
    progress: &mut dyn Progress,
) -> Result<u64, CsvError> {
    let mut rows = Rows::open(path, names, |at| at < REQUIRED || names.0[at].is_given)?;
    let mut moments = Moments::default();
    let mut count = 0;
    loop {
        match rows.next() {
            Ok(false) => break,
            Ok(true) => {
                let booked = book(&rows, models, &mut moments, ledger);
                if let Err(wanted) = booked {
                    progress.bad_line(rows.bad_line(wanted))?;
                }
            }
            Err(error @ CsvError::BadLine { .. }) => progress.bad_line(error)?,
            Err(error) => return Err(error),
        }
        count += 1;
        if count % ROWS_PER_TICK == 0 {
            progress.at(rows.reader.position().byte());
        }
    }
    progress.at(rows.reader.position().byte());
    Ok(count)
}

/// Makes the customers of a file known, which may have no runs: one per row, with its plan if there
/// is such a column.
///
/// # Errors
/// As [`read_usage`].
pub fn read_customers(
    path: &Path,
    names: &Names,
    ledger: &mut Ledger,
    progress: &mut dyn Progress,
) -> Result<(), CsvError> {
    let mut rows = Rows::open(path, names, |at| at == CUSTOMER)?;
    loop {
        match rows.next() {
            Ok(false) => return Ok(()),
            Ok(true) => match customer(&rows, ledger) {
                Ok((id, plan)) => {
                    ledger.customer(id, plan);
                }
                Err(wanted) => progress.bad_line(rows.bad_line(wanted))?,
            },
            Err(error @ CsvError::BadLine { .. }) => progress.bad_line(error)?,
            Err(error) => return Err(error),
        }
    }
}

/// A file, its header understood, at one of its rows.
struct Rows {
    path: PathBuf,
    reader: Reader<Box<dyn Read>>,
    record: ByteRecord,
    /// Where each of [`COLUMNS`] stands.
    places: [Option<usize>; COLUMNS.len()],
}

impl Rows {
    fn open(
        path: &Path,
        names: &Names,
        is_needed: impl Fn(usize) -> bool,
    ) -> Result<Self, CsvError> {
        let unreadable = |error| CsvError::Unreadable { path: path.to_owned(), error };
        let file: Box<dyn Read> = Box::new(File::open(path).map_err(unreadable)?);
        let mut reader = ReaderBuilder::new().buffer_capacity(1 << 20).from_reader(file);
        let header = reader.byte_headers().map_err(|error| unreadable(error.into()))?.clone();
        let mut places = [None; COLUMNS.len()];
        for (at, column) in COLUMNS.into_iter().enumerate() {
            let name = &names.0[at].text;
            places[at] = header.iter().position(|field| field.trim_ascii() == name.as_bytes());
            if places[at].is_none() && is_needed(at) {
                let header: Vec<_> = header.iter().map(String::from_utf8_lossy).collect();
                let (path, name) = (path.to_owned(), name.clone());
                return Err(CsvError::NoColumn { path, column, name, header: header.join(", ") });
            }
        }
        Ok(Self { path: path.to_owned(), reader, record: ByteRecord::new(), places })
    }

    /// Goes to the next row; false at the end.
    fn next(&mut self) -> Result<bool, CsvError> {
        let read = self.reader.read_byte_record(&mut self.record);
        read.map_err(|error| match error.kind() {
            csv::ErrorKind::UnequalLengths { pos, expected_len, len } => CsvError::BadLine {
                path: self.path.clone(),
                line: pos.as_ref().map_or(0, csv::Position::line),
                wanted: format!("has {len} fields where the header has {expected_len}"),
            },
            _ => CsvError::Unreadable { path: self.path.clone(), error: error.into() },
        })
    }

    /// The text of a column in this row; empty if the file lacks it.
    fn field(&self, column: usize) -> &[u8] {
        self.places[column].and_then(|at| self.record.get(at)).unwrap_or_default()
    }

    fn bad_line(&self, wanted: String) -> CsvError {
        let line = self.record.position().map_or(0, csv::Position::line);
        CsvError::BadLine { path: self.path.clone(), line, wanted }
    }
}

fn book(
    rows: &Rows,
    models: &BTreeMap<String, ModelPrices>,
    moments: &mut Moments,
    ledger: &mut Ledger,
) -> Result<(), String> {
    let (customer_id, plan) = customer(rows, ledger)?;
    let at = moments.read(rows.field(TIMESTAMP)).ok_or_else(|| {
        format!(
            "{} must be a time such as 2026-11-18T09:30:00Z, or seconds or milliseconds since 1970",
            COLUMNS[TIMESTAMP]
        )
    })?;
    let model = std::str::from_utf8(rows.field(MODEL)).map_err(|_| "model must be UTF-8")?;
    let tokens = Tokens {
        input: tokens(rows, INPUT)?,
        output: tokens(rows, OUTPUT)?,
        cached_input: if rows.field(CACHED).is_empty() { 0 } else { tokens(rows, CACHED)? },
    };
    if tokens.cached_input > tokens.input {
        return Err("cached_input_tokens must be at most input_tokens, which include them".into());
    }
    let cost = cost::cost(models, model, tokens, at).ok();
    ledger.record(&Run { customer_id, plan, at, units: 1, model, tokens, cost });
    Ok(())
}

fn customer<'a>(rows: &'a Rows, ledger: &Ledger) -> Result<(&'a str, Option<usize>), String> {
    let id = std::str::from_utf8(rows.field(CUSTOMER)).ok();
    let is_fit = |id: &&str| (1..=128).contains(&id.len()) && !id.chars().any(char::is_control);
    let id = id.filter(is_fit).ok_or("customer must be 1 to 128 bytes of text")?;
    let plan = match rows.field(PLAN) {
        b"" => None,
        plan => {
            let known = std::str::from_utf8(plan).ok().and_then(|plan| ledger.tariff().find(plan));
            Some(known.ok_or("plan must be the id of a plan in the plans file")?)
        }
    };
    Ok((id, plan))
}

fn tokens(rows: &Rows, column: usize) -> Result<i64, String> {
    let field = rows.field(column);
    let append = |sum: i64, digit: &u8| {
        let sum = digit.is_ascii_digit().then(|| sum * 10 + i64::from(digit - b'0'));
        sum.filter(|tokens| *tokens <= MAX_TOKENS)
    };
    let number = field.iter().try_fold(0, append).filter(|_| !field.is_empty());
    number.ok_or_else(|| format!("{} must be an integer from 0 to {MAX_TOKENS}", COLUMNS[column]))
}

/// Reads times. The day that was read last is remembered: rows mostly come day by day, and the
/// calendar costs more than the rest of a row.
#[derive(Default)]
struct Moments {
    day: [u8; 10],
    midnight_ms: i64,
}

const DAY_MS: i64 = 86_400_000;

impl Moments {
    /// RFC 3339, the same without a zone (then it is UTC) or with a space, or a number of seconds or
    /// milliseconds since 1970.
    fn read(&mut self, text: &[u8]) -> Option<Timestamp> {
        if let Some(moment) = self.in_known_day(text) {
            return Some(moment);
        }
        let text = std::str::from_utf8(text).ok()?;
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            let number = text.parse::<i64>().ok()?;
            // As seconds this is the year 5138, as milliseconds 1973.
            let is_seconds = number < 100_000_000_000;
            return Some(if is_seconds {
                Timestamp::from_seconds(number)
            } else {
                Timestamp::from_ms(number)
            });
        }
        let moment = match text.parse::<jiff::Timestamp>() {
            Ok(moment) => moment,
            Err(_) => {
                let civil: jiff::civil::DateTime = text.parse().ok()?;
                civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp()
            }
        };
        let moment = Timestamp::from_jiff(moment);
        self.remember(text, moment);
        Some(moment)
    }

    /// Only a time in UTC begins with its UTC day.
    fn remember(&mut self, text: &str, moment: Timestamp) {
        let midnight = moment.start_of_day();
        if let Some(day) = text.as_bytes().first_chunk()
            && midnight.to_jiff().strftime("%Y-%m-%d").to_string().as_bytes() == day
            && !text[10..].contains(['+', '-'])
        {
            (self.day, self.midnight_ms) = (*day, midnight.ms());
        }
    }

    /// `HH:MM:SS`, with up to three decimals, in UTC, of the day that was read last.
    fn in_known_day(&self, text: &[u8]) -> Option<Timestamp> {
        let (day, time) = text.split_first_chunk::<10>()?;
        let time = time.strip_suffix(b"Z").unwrap_or(time);
        let [b'T' | b' ', h1, h2, b':', m1, m2, b':', s1, s2, rest @ ..] = time else {
            return None;
        };
        if *day != self.day {
            return None;
        }
        let two = |tens: &u8, ones: &u8| {
            let is_number = tens.is_ascii_digit() && ones.is_ascii_digit();
            is_number.then(|| i64::from(tens - b'0') * 10 + i64::from(ones - b'0'))
        };
        let ms = match rest {
            [] => 0,
            [b'.', a, b, c] if c.is_ascii_digit() => two(a, b)? * 10 + i64::from(c - b'0'),
            _ => return None,
        };
        let (hour, minute, second) = (two(h1, h2)?, two(m1, m2)?, two(s1, s2)?);
        let is_time = hour < 24 && minute < 60 && second < 60;
        let ms = ((hour * 60 + minute) * 60 + second) * 1000 + ms;
        (is_time && ms < DAY_MS).then(|| Timestamp::from_ms(self.midnight_ms + ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_come_in_several_forms() {
        let mut moments = Moments::default();
        for (text, expected) in [
            ("2026-11-18T09:30:00Z", "2026-11-18T09:30:00Z"),
            ("2026-11-18T09:30:01Z", "2026-11-18T09:30:01Z"),
            ("2026-11-18 09:30:02", "2026-11-18T09:30:02Z"),
            ("2026-11-18T09:30:00.250Z", "2026-11-18T09:30:00.25Z"),
            ("2026-11-18T09:30:00.250123Z", "2026-11-18T09:30:00.25Z"),
            ("2026-11-18T00:30:00+02:00", "2026-11-17T22:30:00Z"),
            ("2026-11-17T23:00:00Z", "2026-11-17T23:00:00Z"),
            ("2026-11-18T00:30:00-02:00", "2026-11-18T02:30:00Z"),
            ("2026-11-18", "2026-11-18T00:00:00Z"),
            ("1795000000", "2026-11-18T11:06:40Z"),
            ("1795000000123", "2026-11-18T11:06:40.123Z"),
        ] {
            let read = moments.read(text.as_bytes()).map(|moment| moment.to_string());
            assert_eq!(read.as_deref(), Some(expected), "{text}");
        }
        for bad in
            ["", "yesterday", "2026-11-18T25:00:00Z", "2026-11-18T09:60:00Z", "-5", "2026-02-30"]
        {
            assert_eq!(moments.read(bad.as_bytes()), None, "{bad}");
        }
    }

    proptest! {
        /// The shortcut says what the calendar says, whatever was read before.
        #[test]
        fn a_remembered_day_reads_as_a_calendar_would(moments_ms in prop::collection::vec(0_i64..200_000_000_000, 2..20)) {
            let mut remembering = Moments::default();
            for ms in moments_ms {
                let moment = Timestamp::from_ms(1_700_000_000_000 + ms);
                let text = moment.to_string();
                prop_assert_eq!(remembering.read(text.as_bytes()), Some(moment));
            }
        }
    }
}

//! What stands in for the database while it cannot answer: a file of runs that were let through,
//! each written and synced before its answer, and counted when the database is back. It belongs to
//! the process that has runs in it.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::events::NewEvent;
use crate::clock::Timestamp;
use crate::domain::answer::Facts;
use crate::domain::ids::{CustomerId, FeatureId};

/// How long after one look at a database that was away the next may be taken: to ask it in vain
/// takes longer than a caller should have to wait.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How many customers' last answers are kept per generation: some 20 MB at most.
const GENERATION: usize = 20_000;

/// Runs let through in the present outage, and what was last known of customers before it.
pub struct Outages {
    path: PathBuf,
    /// Whoever counts the journal does so alone.
    pub counting: tokio::sync::Mutex<()>,
    /// When somebody may next look whether the database is back, in ms since the epoch; 0 while it
    /// answers.
    next_look_at_ms: AtomicI64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Held while there are runs in the file.
    lock: Option<File>,
    /// In the order of the file.
    entries: Vec<NewEvent>,
    by_key: HashMap<(CustomerId, String), usize>,
    drawn: HashMap<(CustomerId, FeatureId), i64>,
    young: HashMap<(CustomerId, FeatureId), NewEvent>,
    old: HashMap<(CustomerId, FeatureId), NewEvent>,
}

impl Outages {
    /// Takes up what an earlier process left. A last line that was not written whole was never
    /// answered, and is cut off, so that nothing is ever written behind it.
    ///
    /// # Errors
    /// When the file is there and cannot be read, holds what this build does not understand, or is
    /// another process's: starting without it would lose runs.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let mut state = State::default();
        if path.exists() {
            let lock = lock(&path)?;
            for entry in read(&path)? {
                state.add(entry);
            }
            state.lock = Some(lock).filter(|_| !state.entries.is_empty());
        }
        let next_look_at_ms = AtomicI64::new(0);
        Ok(Self {
            path,
            counting: tokio::sync::Mutex::default(),
            next_look_at_ms,
            state: state.into(),
        })
    }

    /// The database has failed. If it answered until now somebody may look again at once: it may
    /// have been one connection.
    pub fn began(&self, now: Timestamp) {
        let next = &self.next_look_at_ms;
        if next.compare_exchange(0, now.ms(), Ordering::Relaxed, Ordering::Relaxed).is_err() {
            next.store(now.plus(LOOK_EVERY).ms(), Ordering::Relaxed);
        }
    }

    /// The database answers. From now on nobody is let through on what was known before.
    pub fn ended(&self) {
        if self.lasts() {
            // Whoever is being let through at this moment is written down first.
            let _state = self.state();
            self.next_look_at_ms.store(0, Ordering::Relaxed);
        }
    }

    /// Whether the database is taken to be away.
    pub fn lasts(&self) -> bool {
        self.next_look_at_ms.load(Ordering::Relaxed) != 0
    }

    /// Whether the caller is the one to look whether the database is back; of all who ask, one is
    /// told so every [`LOOK_EVERY`].
    pub fn may_look_at(&self, now: Timestamp) -> bool {
        let (next, due) = (&self.next_look_at_ms, self.next_look_at_ms.load(Ordering::Relaxed));
        let after = now.plus(LOOK_EVERY).ms();
        due != 0
            && now.ms() >= due
            && next.compare_exchange(due, after, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the last that was decided for a customer and feature. Two writers of PostgreSQL come to
    /// one customer where a reservation is settled, and whoever says so last need not have decided
    /// last; but within a period usage only grows.
    pub fn remember(&self, mut event: NewEvent) {
        let mut state = self.state();
        let key = (event.facts.customer_id.clone(), event.facts.feature_id.clone());
        let of = |event: &NewEvent| (event.series, event.facts.period.start);
        if let Some(known) = state.known(&key).filter(|known| of(known) == of(&event)) {
            event.facts.usage = event.facts.usage.max(known.facts.usage);
        }
        state.young.insert(key, event);
        if state.young.len() > GENERATION {
            state.old = std::mem::take(&mut state.young);
        }
    }

    /// The last that was decided for a customer and feature, if it is still known, and the units that
    /// were let through since.
    pub fn last_known(&self, key: &(CustomerId, FeatureId)) -> Option<(NewEvent, i64)> {
        let state = self.state();
        Some((state.known(key)?.clone(), state.drawn(key)))
    }

    /// Forgets what was known of customers that have changed since; of everyone, if it is not known
    /// who has.
    pub fn forget(&self, changed: Option<&HashSet<CustomerId>>) {
        let mut state = self.state();
        let State { young, old, .. } = &mut *state;
        for known in [young, old] {
            if !known.is_empty() {
                known.retain(|(id, _), _| changed.is_some_and(|changed| !changed.contains(id)));
            }
        }
    }

    /// The answer that a run was given in an outage and that waits to be counted.
    pub fn answered(&self, id: &CustomerId, request_key: &str) -> Option<NewEvent> {
        let state = self.state();
        let at = state.by_key.get(&(id.clone(), request_key.to_owned()))?;
        state.entries.get(*at).cloned()
    }

    /// The units let through in this outage that wait to be counted.
    pub fn drawn(&self, key: &(CustomerId, FeatureId)) -> i64 {
        self.state().drawn(key)
    }

    /// Whether nothing waits to be counted.
    pub fn is_empty(&self) -> bool {
        self.state().entries.is_empty()
    }

    /// Lets one run through while the outage lasts, if `judge` says so: it is given what is known of
    /// the customer and the units drawn so far, neither of which changes meanwhile, and answers what
    /// to write down. A run that was let through before is answered as before.
    ///
    /// Blocks on the disk; a failure to write lets nothing through.
    pub fn let_through(
        &self,
        key: &(CustomerId, FeatureId),
        request_key: &str,
        judge: impl FnOnce(&NewEvent, i64) -> Option<NewEvent>,
    ) -> io::Result<Option<NewEvent>> {
        let mut state = self.state();
        let before = state.by_key.get(&(key.0.clone(), request_key.to_owned()));
        if let Some(entry) = before.and_then(|at| state.entries.get(*at)) {
            return Ok(Some(entry.clone()));
        }
        let known = state.known(key).filter(|_| self.lasts());
        let Some(entry) = known.and_then(|known| judge(known, state.drawn(key))) else {
            return Ok(None);
        };
        if state.lock.is_none() {
            state.lock = Some(lock_to_begin(&self.path)?);
        }
        append(&self.path, &entry)?;
        state.add(entry.clone());
        Ok(Some(entry))
    }

    /// Sets aside the first entry, which can never be counted, for a person to look at: in a file
    /// beside the journal.
    pub fn set_aside(&self) -> io::Result<()> {
        let first = self.state().entries.first().cloned();
        if let Some(entry) = first {
            append(&self.path.with_extension("refused"), &entry)?;
        }
        self.counted(1)
    }

    /// The runs that wait to be counted.
    pub fn waiting(&self) -> Vec<NewEvent> {
        self.state().entries.clone()
    }

    /// Forgets the first `count` entries, which have been counted: the file ends with the last.
    /// Should the process die before, they are found counted already. From now on they are in what
    /// is known of their customers, or the next outage would let the same units through again.
    pub fn counted(&self, count: usize) -> io::Result<()> {
        let mut state = self.state();
        let rest = state.entries[count.min(state.entries.len())..].to_vec();
        // What cannot be written is still in the old file, and still here.
        rewrite(&self.path, &rest)?;
        for NewEvent { facts, .. } in std::mem::take(&mut state.entries).into_iter().take(count) {
            state.know(facts);
        }
        state.by_key.clear();
        state.drawn.clear();
        state.lock.take_if(|_| rest.is_empty());
        for entry in rest {
            state.add(entry);
        }
        Ok(())
    }
}

impl State {
    fn known(&self, key: &(CustomerId, FeatureId)) -> Option<&NewEvent> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    fn drawn(&self, key: &(CustomerId, FeatureId)) -> i64 {
        self.drawn.get(key).copied().unwrap_or_default()
    }

    fn know(&mut self, counted: Facts) {
        let key = (counted.customer_id, counted.feature_id);
        if let Some(known) = self.young.get_mut(&key).or_else(|| self.old.get_mut(&key)) {
            known.facts.usage = known.facts.usage.saturating_add(counted.counted);
        }
    }

    fn add(&mut self, entry: NewEvent) {
        let facts = &entry.facts;
        let key = (facts.customer_id.clone(), facts.feature_id.clone());
        *self.drawn.entry(key).or_default() += facts.counted;
        let key = (facts.customer_id.clone(), entry.key.request_key());
        self.by_key.insert(key, self.entries.len());
        self.entries.push(entry);
    }
}

/// Two processes that write into one journal would each take the other's runs out of it.
fn lock(path: &Path) -> io::Result<File> {
    let file =
        private(OpenOptions::new().write(true).create(true)).open(path.with_extension("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(io::Error::other(
            "it is another process's: give each its own TOLLGATE_OUTAGE_JOURNAL",
        )),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The lock of a journal in which this process has nothing yet. What is found there all the same
/// was left by another one after this one started, and is for the next start to take up.
fn lock_to_begin(path: &Path) -> io::Result<File> {
    let lock = lock(path)?;
    match path.exists() {
        true => Err(io::Error::other("it holds another process's runs: a restart counts them")),
        false => Ok(lock),
    }
}

fn read(path: &Path) -> io::Result<Vec<NewEvent>> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        bytes => bytes?,
    };
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    if whole < bytes.len() {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(whole as u64)?;
        file.sync_all()?;
    }
    let lines = bytes[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).map_err(io::Error::from)).collect()
}

fn append(path: &Path, entry: &NewEvent) -> io::Result<()> {
    let is_new = !path.exists();
    let mut file = private(OpenOptions::new().append(true).read(true).create(true)).open(path)?;
    let before = file.metadata()?.len();
    if before > 0 {
        let mut last = [0];
        file.seek(io::SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            return Err(io::Error::other("the journal ends in half a line"));
        }
    }
    let mut line = serde_json::to_vec(entry)?;
    line.push(b'\n');
    let written = file.write_all(&line).and_then(|()| file.sync_data());
    if written.is_err() {
        // Should even this fail, nothing more is written until a start has cut the half line off.
        let _ = file.set_len(before);
        return written;
    }
    if is_new { sync_folder(path) } else { Ok(()) }
}

/// A file's name is as durable as its folder.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn rewrite(path: &Path, entries: &[NewEvent]) -> io::Result<()> {
    if entries.is_empty() {
        return match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    let new = path.with_extension("new");
    let mut file =
        private(OpenOptions::new().write(true).create(true).truncate(true)).open(&new)?;
    for entry in entries {
        serde_json::to_writer(&mut file, entry)?;
        file.write_all(b"\n")?;
    }
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    sync_folder(path)
}

/// Readable by its owner alone: it holds usage.
fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::answer::Remark;
    use crate::domain::decision::{Intent, Reason};
    use crate::domain::period::BillingPeriod;
    use crate::domain::run::RunFacts;
    use crate::store::events::EventKey;

    fn run(key: &str) -> NewEvent {
        let now = Timestamp::from_seconds(0);
        NewEvent {
            facts: Facts {
                customer_id: "acme".parse().unwrap(),
                feature_id: "ai_runs".parse().unwrap(),
                plan_id: None,
                intent: Intent::Consume,
                asked: 2,
                counted: 2,
                reason: Reason::WithinLimit,
                particular: None,
                usage: 2,
                reserved: 0,
                period: BillingPeriod { start: now, end: now },
                decided_at: now,
                event_id: None,
                hold: None,
                remark: Remark::Degraded,
            },
            series: 0,
            key: EventKey::Request { key: key.to_owned(), request_hash: "h".to_owned() },
            entity_id: Some("é".to_owned()).filter(|_| key == "a"),
            plan_version: 1,
            metered: false,
            run: RunFacts::default(),
            cost_picodollars: None,
            properties: Some("{\"note\": \"naïve\"}".to_owned()),
        }
    }

    fn subject() -> (CustomerId, FeatureId) {
        ("acme".parse().unwrap(), "ai_runs".parse().unwrap())
    }

    /// An outage, and a customer who was known before.
    fn begin(outages: &Outages) {
        outages.remember(run("known"));
        outages.began(Timestamp::from_seconds(1));
    }

    fn let_through(outages: &Outages, key: &str) -> Option<NewEvent> {
        let request_key = format!("k:{key}");
        begin(outages);
        outages.let_through(&subject(), &request_key, |_, _| Some(run(key))).unwrap()
    }

    #[test]
    fn a_line_cut_short_anywhere_spoils_nothing_that_is_written_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let line = serde_json::to_vec(&run("torn")).unwrap();
        for cut in 1..line.len() {
            let outages = Outages::open(path.clone()).unwrap();
            let_through(&outages, "a");
            drop(outages);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes.extend(&line[..cut]);
            std::fs::write(&path, bytes).unwrap();
            let outages = Outages::open(path.clone()).unwrap();
            let_through(&outages, "b");
            drop(outages);
            let again = Outages::open(path.clone()).unwrap();
            assert_eq!(again.waiting(), [run("a"), run("b")], "cut at {cut}");
            again.counted(2).unwrap();
        }
    }

    #[test]
    fn what_is_counted_is_forgotten_and_the_rest_stays_with_what_it_drew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let outages = Outages::open(path.clone()).unwrap();
        for key in ["a", "b", "a"] {
            let_through(&outages, key);
        }
        assert_eq!(outages.drawn(&subject()), 4, "the same run once more draws nothing");
        outages.counted(1).unwrap();
        assert_eq!((outages.waiting(), outages.drawn(&subject())), (vec![run("b")], 2));
        drop(outages);
        let outages = Outages::open(path.clone()).unwrap();
        assert_eq!(outages.waiting(), [run("b")]);
        outages.counted(1).unwrap();
        assert!(outages.is_empty() && !path.exists());
    }

    #[test]
    fn what_cannot_be_rewritten_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let outages = Outages::open(path.clone()).unwrap();
        for key in ["a", "b"] {
            let_through(&outages, key);
        }
        std::fs::create_dir(path.with_extension("new")).unwrap();
        assert!(outages.counted(1).is_err());
        assert_eq!(outages.waiting(), [run("a"), run("b")]);
        drop(outages);
        assert_eq!(Outages::open(path).unwrap().waiting(), [run("a"), run("b")]);
    }

    #[test]
    fn a_journal_with_runs_in_it_is_one_processs_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let [one, other] = [(); 2].map(|()| Outages::open(path.clone()).unwrap());
        let_through(&one, "a");
        begin(&other);
        let through = || other.let_through(&subject(), "k:b", |_, _| Some(run("b")));
        assert!(through().is_err(), "nothing is let through by the other");
        assert!(Outages::open(path.clone()).is_err(), "nor does a third start");
        drop(one);
        assert!(through().is_err(), "what died with runs in it is for a start to take up");
        let heir = Outages::open(path.clone()).unwrap();
        assert_eq!(heir.waiting(), [run("a")]);
        heir.counted(1).unwrap();
        assert!(through().unwrap().is_some());
    }

    #[test]
    fn who_comes_when_the_outage_is_over_is_not_let_through_on_what_was_known_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let outages = Outages::open(folder.path().join("journal")).unwrap();
        let_through(&outages, "a");
        outages.ended();
        let through = |key| outages.let_through(&subject(), key, |_, _| Some(run("b")));
        assert!(through("k:b").unwrap().is_none());
        assert_eq!(through("k:a").unwrap(), Some(run("a")), "what was answered stays so");
    }

    #[test]
    fn it_is_judged_by_what_was_counted_of_the_outage_before_and_by_the_most_that_was_told() {
        let folder = tempfile::tempdir().unwrap();
        let outages = Outages::open(folder.path().join("journal")).unwrap();
        let_through(&outages, "a");
        outages.counted(1).unwrap();
        outages.remember(run("told late"));
        let mut seen = None;
        let judge = |known: &NewEvent, drawn| {
            seen = Some((known.facts.usage, drawn));
            None
        };
        assert!(outages.let_through(&subject(), "k:b", judge).unwrap().is_none());
        assert_eq!(seen, Some((4, 0)), "2 before the outage and 2 in it");
    }
}

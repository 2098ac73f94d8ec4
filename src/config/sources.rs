//! Where values come from: the process environment, a `.env` file, and the files that `_FILE`
//! twins name. A variable's value is never put into a message.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::Path;

use super::variables::{FILE_SUFFIX, PREFIX, VARIABLES, Variable, is_known};
use crate::domain::plan::nearest;

/// More than any key, certificate or URL needs.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// One mistake in the configuration. It never holds a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigMistake {
    /// The variable as it was given, twins by their own name; empty for a line of a `.env` file
    /// that names none.
    pub variable: String,
    /// The `.env` file and the line in it, counted from 1, if the value came from there.
    pub dotenv: Option<(String, usize)>,
    /// What was wanted: `must be …`.
    pub wanted: String,
}

/// `.env:3: STRIPE_SECRET_KEY: must be …`
impl fmt::Display for ConfigMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((file, line)) = &self.dotenv {
            write!(f, "{file}:{line}: ")?;
        }
        if !self.variable.is_empty() {
            write!(f, "{}: ", self.variable)?;
        }
        f.write_str(&self.wanted)
    }
}

/// A value as it was given, under a variable's name or its twin's.
struct Given {
    value: String,
    dotenv: Option<(String, usize)>,
}

type Layer = BTreeMap<String, Given>;

/// All given values, and the mistakes found so far.
pub(super) struct Sources {
    /// The environment, then the `.env` file: a variable is taken from the first layer that has
    /// it under either of its names.
    layers: [Layer; 2],
    pub mistakes: Vec<ConfigMistake>,
}

impl Sources {
    pub fn new(
        environment: &BTreeMap<String, String>,
        dotenv: Option<(&Path, &str)>,
        mistakes: Vec<ConfigMistake>,
    ) -> Self {
        let mut sources = Self { layers: [Layer::new(), Layer::new()], mistakes };
        for (name, value) in environment {
            sources.add(0, name, Given { value: value.clone(), dotenv: None });
        }
        if let Some((path, text)) = dotenv {
            sources.add_dotenv(&path.display().to_string(), text);
        }
        sources
    }

    /// Whether the variable or its twin has a value.
    pub fn has(&self, variable: &Variable) -> bool {
        let twin = twin(variable);
        self.layers.iter().any(|l| l.contains_key(variable.name) || l.contains_key(&twin))
    }

    pub fn wrong(&mut self, variable: &str, dotenv: Option<(String, usize)>, wanted: String) {
        self.mistakes.push(ConfigMistake { variable: variable.to_owned(), dotenv, wanted });
    }

    /// Reads a variable by `check`. `None` if it is unset, or if it is wrong, which is noted.
    pub fn read<T>(
        &mut self,
        variable: &Variable,
        check: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let twin = twin(variable);
        let layer = self
            .layers
            .iter_mut()
            .find(|layer| layer.contains_key(variable.name) || layer.contains_key(&twin))?;
        match (layer.remove(variable.name), layer.remove(&twin)) {
            (Some(_), Some(file)) => {
                let wanted = format!("must not be set beside {}; choose one", variable.name);
                self.wrong(&twin, file.dotenv, wanted);
                None
            }
            (Some(given), None) => {
                let checked = check(&given.value);
                if checked.is_none() {
                    let wanted = format!("must be {}", variable.wanted);
                    self.wrong(variable.name, given.dotenv, wanted);
                }
                checked
            }
            (None, file) => {
                let file = file?;
                let checked = read_file(Path::new(&file.value)).and_then(|text| {
                    check(&text).ok_or_else(|| {
                        format!("must name a file whose content is {}", variable.wanted)
                    })
                });
                checked.map_err(|wanted| self.wrong(&twin, file.dotenv, wanted)).ok()
            }
        }
    }

    /// Takes a value into a layer; an empty one counts as unset.
    fn add(&mut self, layer: usize, name: &str, given: Given) {
        if given.value.is_empty() {
            return;
        }
        if !is_known(name) {
            if name.starts_with(PREFIX) {
                self.wrong(name, given.dotenv, unknown(name));
            }
            return;
        }
        if let Some(first) = self.layers[layer].get(name) {
            let line = first.dotenv.as_ref().map_or(0, |(_, line)| *line);
            self.wrong(name, given.dotenv, format!("must be set once; line {line} sets it too"));
            return;
        }
        self.layers[layer].insert(name.to_owned(), given);
    }

    fn add_dotenv(&mut self, file: &str, text: &str) {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines: Vec<&str> = text.lines().collect();
        let delivered = Cell::new(0);
        let reader = LineByLine { rest: text.as_bytes(), delivered: &delivered };
        let mut entries = dotenvy::from_read_iter(reader);
        loop {
            let before = delivered.get();
            let Some(entry) = entries.next() else { return };
            let starts = |line: &&usize| {
                let text = lines.get(**line).map_or("", |text| text.trim());
                !text.is_empty() && !text.starts_with('#')
            };
            let consumed: Vec<usize> = (before..delivered.get()).collect();
            let line = consumed.iter().find(starts).copied().unwrap_or(before) + 1;
            let dotenv = Some((file.to_owned(), line));
            match entry {
                Ok((name, value)) => self.add(1, &name, Given { value, dotenv }),
                // dotenvy's own message repeats the line, and with it perhaps a secret.
                Err(_) => {
                    let wanted = "must be NAME=value; a value with spaces needs quotes, and a \
                                  quote its end";
                    self.wrong("", dotenv, wanted.to_owned());
                }
            }
        }
    }
}

fn twin(variable: &Variable) -> String {
    format!("{}{FILE_SUFFIX}", variable.name)
}

fn unknown(name: &str) -> String {
    let twins: Vec<String> = VARIABLES.iter().map(twin).collect();
    let names = VARIABLES.iter().map(|variable| variable.name).chain(twins.iter().map(|t| &**t));
    match nearest(name, names) {
        Some(near) => format!("is not a known variable; did you mean {near}?"),
        None => "is not a known variable; see .env.example".to_owned(),
    }
}

/// Reads the file that a twin names, without the newline at its end. The error says what was
/// wanted and never what the file holds.
fn read_file(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("must name a file that can be read: {}", error.kind()))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err("must name a file of at most 64 KiB".to_owned());
    }
    let text = String::from_utf8(bytes).map_err(|_| "must name a file of UTF-8 text".to_owned())?;
    let text = text.strip_suffix('\n').map_or(&*text, |t| t.strip_suffix('\r').unwrap_or(t));
    if text.is_empty() {
        return Err("must name a file that is not empty".to_owned());
    }
    Ok(text.to_owned())
}

/// Hands out at most one line per read, so that the parser's buffer never runs ahead and
/// `delivered`, the number of lines handed out, tells where the parser stands.
struct LineByLine<'a> {
    rest: &'a [u8],
    delivered: &'a Cell<usize>,
}

impl Read for LineByLine<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let line = self.rest.iter().position(|b| *b == b'\n').map_or(self.rest.len(), |at| at + 1);
        let (now, rest) = self.rest.split_at(line.min(buffer.len()));
        buffer[..now.len()].copy_from_slice(now);
        self.rest = rest;
        if now.ends_with(b"\n") || (rest.is_empty() && !now.is_empty()) {
            self.delivered.set(self.delivered.get() + 1);
        }
        Ok(now.len())
    }
}

//! Walks a TOML tree, remembers where everything stands, and collects mistakes instead of
//! stopping at the first.

use std::fmt::Write as _;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::mistakes::{PlanFileMistake, nearest};

/// Where a value stands in the file.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub line: usize,
    /// `plans.pro.price.amount`.
    pub key: String,
}

/// A value not yet read.
#[derive(Clone)]
pub(super) struct Node<'a> {
    pub place: Place,
    value: &'a DeValue<'a>,
}

/// A table whose keys are known.
pub(super) struct Section<'a> {
    pub place: Place,
    table: &'a DeTable<'a>,
}

/// A value that was read, and where it stands, for the rules between keys.
#[derive(Clone)]
pub(super) struct Found<T> {
    pub value: T,
    pub place: Place,
}

/// How one kind of value is read.
pub(super) struct Rule<T> {
    /// Goes after "must be": `a whole number`.
    pub wanted: &'static str,
    pub read: fn(&DeValue<'_>) -> Option<T>,
}

pub(super) struct Reader {
    /// The byte offset at which each line starts.
    line_starts: Vec<usize>,
    pub mistakes: Vec<PlanFileMistake>,
}

impl Reader {
    pub fn new(source: &str) -> Self {
        let after_newlines =
            source.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1);
        Self {
            line_starts: std::iter::once(0).chain(after_newlines).collect(),
            mistakes: Vec::new(),
        }
    }

    /// The line, counted from 1, of a byte offset.
    pub fn line_of(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    pub fn wrong(&mut self, place: &Place, wanted: impl Into<String>) {
        self.mistakes.push(PlanFileMistake {
            line: place.line,
            key: place.key.clone(),
            wanted: wanted.into(),
        });
    }

    /// The whole file as a section.
    pub fn root<'a>(&mut self, table: &'a DeTable<'a>, known: &[&str]) -> Section<'a> {
        let place = Place { line: 1, key: String::new() };
        self.refuse_unknown_keys(&place, table, known);
        Section { place, table }
    }

    /// Reads a table in which only `known` keys may stand.
    pub fn section<'a>(&mut self, node: &Node<'a>, known: &[&str]) -> Option<Section<'a>> {
        let table = self.table(node)?;
        self.refuse_unknown_keys(&node.place, table, known);
        Some(Section { place: node.place.clone(), table })
    }

    /// Reads a table whose keys are names chosen by the author and checked by `name`.
    pub fn entries<'a, T>(&mut self, node: &Node<'a>, name: &Rule<T>) -> Vec<(T, Node<'a>)> {
        let Some(table) = self.table(node) else {
            return Vec::new();
        };
        let mut entries = Vec::new();
        for (key, value) in table {
            let place = self.key_place(&node.place, key);
            match (name.read)(&DeValue::String(key.get_ref().clone())) {
                Some(name) => entries.push((name, Node { place, value: value.get_ref() })),
                None => self.wrong(&place, format!("its name must be {}", name.wanted)),
            }
        }
        entries
    }

    /// Reads a list. Its members are placed as `key[0]`, `key[1]`.
    pub fn list<'a>(&mut self, node: &Node<'a>) -> Option<Vec<Node<'a>>> {
        let DeValue::Array(members) = node.value else {
            self.wrong(&node.place, format!("must be a list, not {}", kind(node.value)));
            return None;
        };
        let place = |index, at| Place {
            line: self.line_of(at),
            key: format!("{}[{index}]", node.place.key),
        };
        let node = |(index, member): (usize, &'a Spanned<DeValue<'a>>)| Node {
            place: place(index, member.span().start),
            value: member.get_ref(),
        };
        Some(members.iter().enumerate().map(node).collect())
    }

    pub fn optional<'a>(&self, section: &Section<'a>, key: &str) -> Option<Node<'a>> {
        let (key, value) = section.table.get_key_value(key)?;
        Some(Node { place: self.key_place(&section.place, key), value: value.get_ref() })
    }

    pub fn value<T>(&mut self, node: &Node<'_>, rule: &Rule<T>) -> Option<Found<T>> {
        let Some(value) = (rule.read)(node.value) else {
            self.wrong(&node.place, format!("must be {}", rule.wanted));
            return None;
        };
        Some(Found { value, place: node.place.clone() })
    }

    pub fn optional_value<T>(
        &mut self,
        section: &Section<'_>,
        key: &str,
        rule: &Rule<T>,
    ) -> Option<Found<T>> {
        let node = self.optional(section, key)?;
        self.value(&node, rule)
    }

    pub fn required_value<T>(
        &mut self,
        section: &Section<'_>,
        key: &str,
        rule: &Rule<T>,
    ) -> Option<Found<T>> {
        match self.optional(section, key) {
            Some(node) => self.value(&node, rule),
            None => {
                let place = Place { key: join(&section.place.key, key), ..section.place };
                self.wrong(&place, format!("is missing; it must be {}", rule.wanted));
                None
            }
        }
    }

    /// Refuses a key that means nothing here; `when` goes after "must be left out".
    pub fn left_out(&mut self, section: &Section<'_>, key: &str, when: &str) {
        if let Some(node) = self.optional(section, key) {
            self.wrong(&node.place, format!("must be left out {when}"));
        }
    }

    fn table<'a>(&mut self, node: &Node<'a>) -> Option<&'a DeTable<'a>> {
        if let DeValue::Table(table) = node.value {
            return Some(table);
        }
        self.wrong(
            &node.place,
            format!("must be a table of keys and values, not {}", kind(node.value)),
        );
        None
    }

    fn key_place(&self, parent: &Place, key: &Spanned<DeString<'_>>) -> Place {
        Place { line: self.line_of(key.span().start), key: join(&parent.key, key.get_ref()) }
    }

    fn refuse_unknown_keys(&mut self, place: &Place, table: &DeTable<'_>, known: &[&str]) {
        for key in table.keys().filter(|key| !known.contains(&&**key.get_ref())) {
            let hint = match nearest(key.get_ref(), known.iter().copied()) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("known here: {}", known.join(", ")),
            };
            let place = self.key_place(place, key);
            self.wrong(&place, format!("is not a known key; {hint}"));
        }
    }
}

impl Node<'_> {
    /// The same value, placed under another name.
    pub fn renamed(self, key: String) -> Self {
        Self { place: Place { key, ..self.place }, ..self }
    }

    /// The first key, if this is a table, at which another table stands.
    pub fn first_table(&self) -> Option<&str> {
        let mut entries = self.value.as_table()?.iter();
        entries.find(|(_, value)| value.get_ref().is_table()).map(|(key, _)| &**key.get_ref())
    }

    /// The text at `key`, if this is a table with a text there; nothing is reported.
    pub fn peek(&self, key: &str) -> Option<&str> {
        self.value.as_table()?.get(key)?.get_ref().as_str()
    }
}

/// Appends a key as it would be written in the file: quoted unless it is a bare one, and cut
/// short if it is absurdly long, so that a message stays one readable line.
fn join(parent: &str, key: &str) -> String {
    const LONGEST: usize = 64;
    let mut path = parent.to_owned();
    if !path.is_empty() {
        path.push('.');
    }
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !key.is_empty() && key.len() <= LONGEST && key.chars().all(bare) {
        path.push_str(key);
    } else {
        let shown: String = key.chars().take(LONGEST).collect();
        let rest = if shown.len() < key.len() { "…" } else { "" };
        let _ = write!(path, "{:?}{rest}", shown);
    }
    path
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

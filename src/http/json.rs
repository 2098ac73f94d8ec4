//! JSON in which every name of an object stands once.
//!
//! Of two fields with one name each reader picks its own, so a proxy or a log may see another
//! customer than we count: such a body is refused instead of guessed at.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Why a body is not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum NotJson {
    /// Line and column of what is wrong, from 1.
    Syntax { line: usize, column: usize },
    /// An object has a name twice: where it stands, such as `events[3].customer_id`.
    Twice(String),
}

/// Reads a whole body.
pub fn parse(body: &[u8]) -> Result<Value, NotJson> {
    let twice = RefCell::new(None);
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let parsed = Unique(&twice)
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    parsed.map_err(|error| match twice.take() {
        Some(path) => NotJson::Twice(path),
        None => NotJson::Syntax { line: error.line(), column: error.column() },
    })
}

/// Reads a value, noting the path of the first name that comes twice.
#[derive(Clone, Copy)]
struct Unique<'a>(&'a RefCell<Option<String>>);

impl Unique<'_> {
    /// Puts where a value stands before the path that was noted in it: the path is put together on the
    /// way out, so that a body without fault pays nothing for it.
    fn within(self, place: impl fmt::Display) {
        if let Some(path) = &mut *self.0.borrow_mut() {
            let dot = if path.starts_with('[') { "" } else { "." };
            *path = format!("{place}{dot}{path}");
        }
    }
}

impl<'de> DeserializeSeed<'de> for Unique<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        loop {
            match access.next_element_seed(self) {
                Ok(Some(value)) => values.push(value),
                Ok(None) => return Ok(values.into()),
                Err(error) => {
                    self.within(format_args!("[{}]", values.len()));
                    return Err(error);
                }
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = access.next_key::<String>()? {
            if fields.contains_key(&name) {
                self.0.replace(Some(name));
                return Err(A::Error::custom("a name comes twice"));
            }
            let value = access.next_value_seed(self).inspect_err(|_| self.within(&name))?;
            fields.insert(name, value);
        }
        Ok(fields.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_that_comes_twice_is_told_wherever_it_stands() {
        let twice = |name: &str| Err(NotJson::Twice(name.to_owned()));
        assert_eq!(parse(br#"{"a": 1, "b": 2, "a": 3}"#), twice("a"));
        assert_eq!(parse(br#"[{"x": {"y": [{"z": 1, "z": null}]}}]"#), twice("[0].x.y[0].z"));
        assert_eq!(parse(br#"{"a": 1, "\u0061": 1}"#), twice("a"), "however it is spelled");
        assert!(parse(br#"{"a": {"a": 1}, "b": {"a": 1}}"#).is_ok());
    }

    #[test]
    fn what_is_wrong_is_found_by_line_and_column() {
        assert_eq!(parse(b"{\n \"a\" 1}"), Err(NotJson::Syntax { line: 2, column: 6 }));
        assert_eq!(parse(b"{} x"), Err(NotJson::Syntax { line: 1, column: 4 }));
    }

    proptest! {
        /// Whatever serde_json takes for a value is the same value here, unless a name comes twice.
        #[test]
        fn bodies_are_read_as_serde_json_reads_them(text in r#"[\[\]{}:,"0-9.eE+\-a-c\\ntrufalsn ]{0,40}"#) {
            match (parse(text.as_bytes()), serde_json::from_str::<Value>(&text)) {
                (Ok(ours), theirs) => prop_assert_eq!(ours, theirs.unwrap()),
                (Err(NotJson::Twice(_)), _) => {}
                (Err(NotJson::Syntax { .. }), theirs) => prop_assert!(theirs.is_err(), "{text}"),
            }
        }
    }
}

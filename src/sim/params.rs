//! Stripe's form encoding: bracketed names in, a tree out.
//!
//! Whoever handles a request takes what it understands out of [`Params`]; what is left at
//! [`Params::finish`] was not understood and is refused by name, as Stripe does.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::answer::ApiError;

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Text(String),
    Branch(Fields),
}

type Fields = BTreeMap<String, Node>;

/// Decoded parameters. Equal if they say the same, in whatever order they were written.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Params {
    path: String,
    fields: Fields,
}

/// A change to an object's metadata: `metadata=` clears it, an empty value removes one key.
#[derive(Clone, Debug, Default)]
pub(super) struct MetadataChange {
    clear: bool,
    set: BTreeMap<String, String>,
}

impl MetadataChange {
    pub fn apply(&self, metadata: &mut Map<String, Value>) {
        if self.clear {
            metadata.clear();
        }
        for (key, value) in &self.set {
            if value.is_empty() {
                metadata.remove(key);
            } else {
                metadata.insert(key.clone(), value.as_str().into());
            }
        }
    }

    /// The metadata of an object that is made with this.
    pub fn fresh(change: Option<Self>) -> Map<String, Value> {
        let mut metadata = Map::new();
        change.unwrap_or_default().apply(&mut metadata);
        metadata
    }
}

/// Splits `items[0][price]` into its steps. A name with unbalanced brackets is one step.
fn steps(name: &str) -> Vec<&str> {
    let Some((head, rest)) = name.split_once('[') else { return vec![name] };
    let Some(rest) = rest.strip_suffix(']') else { return vec![name] };
    std::iter::once(head).chain(rest.split("][")).collect()
}

fn insert(fields: &mut Fields, steps: &[&str], value: String) {
    let Some((step, rest)) = steps.split_first() else { return };
    // `expand[]=a&expand[]=b` counts up by itself.
    let key = if step.is_empty() { fields.len().to_string() } else { (*step).to_owned() };
    if rest.is_empty() {
        fields.insert(key, Node::Text(value));
        return;
    }
    let node = fields.entry(key).or_insert_with(|| Node::Branch(Fields::new()));
    if let Node::Text(_) = node {
        *node = Node::Branch(Fields::new());
    }
    if let Node::Branch(branch) = node {
        insert(branch, rest, value);
    }
}

impl Params {
    /// From a query string or a form body.
    pub fn parse(encoded: &[&str]) -> Self {
        let mut params = Self::default();
        for text in encoded {
            let mut url = reqwest::Url::parse("http://form/").expect("a constant address");
            url.set_query(Some(text));
            for (name, value) in url.query_pairs() {
                params.add(&name, &value);
            }
        }
        params
    }

    /// From a query string and a JSON object, as version 2 of the API takes them. A number or a
    /// truth value is read as its text; null is as good as absent.
    pub fn parse_json(query: &str, body: &str) -> Result<Self, ApiError> {
        /// Deeper nesting than any Stripe parameter has; bounds the recursion.
        const MAX_DEPTH: usize = 10;
        fn branch(value: &Value, depth: usize) -> Option<Node> {
            let entries: Vec<(String, &Value)> = match value {
                Value::Null => return None,
                Value::String(text) => return Some(Node::Text(text.clone())),
                Value::Bool(_) | Value::Number(_) => return Some(Node::Text(value.to_string())),
                _ if depth == 0 => return None,
                Value::Array(rows) => {
                    rows.iter().enumerate().map(|(place, row)| (place.to_string(), row)).collect()
                }
                Value::Object(fields) => {
                    fields.iter().map(|(name, value)| (name.clone(), value)).collect()
                }
            };
            let fields = entries.into_iter();
            let fields = fields.filter_map(|(name, value)| Some((name, branch(value, depth - 1)?)));
            Some(Node::Branch(fields.collect()))
        }
        let mut params = Self::parse(&[query]);
        if body.is_empty() {
            return Ok(params);
        }
        match serde_json::from_str(body).ok().and_then(|body: Value| branch(&body, MAX_DEPTH)) {
            Some(Node::Branch(fields)) => {
                params.fields.extend(fields);
                Ok(params)
            }
            _ => Err(ApiError::refused("The request's body is no JSON object.")),
        }
    }

    /// From names and values that are not encoded.
    pub fn from_pairs(pairs: &[(&str, &str)]) -> Self {
        let mut params = Self::default();
        for (name, value) in pairs {
            params.add(name, value);
        }
        params
    }

    fn add(&mut self, name: &str, value: &str) {
        /// Deeper nesting than any Stripe parameter has; bounds the recursion.
        const MAX_STEPS: usize = 10;
        let mut steps = steps(name);
        steps.truncate(MAX_STEPS);
        if !name.is_empty() {
            insert(&mut self.fields, &steps, value.to_owned());
        }
    }

    /// Where in the request these fields stand: empty, or `items[0]`.
    pub fn path(&self) -> &str {
        &self.path
    }

    fn name_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}[{name}]", self.path) }
    }

    /// A text, possibly empty.
    fn raw(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.fields.remove(name) {
            None => Ok(None),
            Some(Node::Text(text)) => Ok(Some(text)),
            Some(Node::Branch(_)) => {
                let name = self.name_of(name);
                Err(ApiError::invalid(&name, format!("Invalid string for '{name}'")))
            }
        }
    }

    pub fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.raw(name)? {
            Some(text) if text.is_empty() => Err(ApiError::empty(&self.name_of(name))),
            text => Ok(text),
        }
    }

    pub fn required_text(&mut self, name: &str) -> Result<String, ApiError> {
        self.text(name)?.ok_or_else(|| self.missing(name))
    }

    pub fn missing(&self, name: &str) -> ApiError {
        ApiError::missing(&self.name_of(name))
    }

    /// A text that an empty string unsets: `Some(Value::Null)` then.
    pub fn clearable(&mut self, name: &str) -> Result<Option<Value>, ApiError> {
        Ok(self.raw(name)?.map(|text| if text.is_empty() { Value::Null } else { text.into() }))
    }

    pub fn integer(&mut self, name: &str) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(ApiError::invalid_integer(&self.name_of(name), &text)),
        }
    }

    /// An integer from zero up.
    pub fn count(&mut self, name: &str) -> Result<Option<u64>, ApiError> {
        let Some(number) = self.integer(name)? else { return Ok(None) };
        match u64::try_from(number) {
            Ok(count) => Ok(Some(count)),
            Err(_) => Err(ApiError::invalid_integer(&self.name_of(name), &number.to_string())),
        }
    }

    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.text(name)?.as_deref() {
            None => Ok(None),
            Some("true" | "1") => Ok(Some(true)),
            Some("false" | "0") => Ok(Some(false)),
            Some(other) => {
                let name = self.name_of(name);
                Err(ApiError::invalid(&name, format!("Invalid boolean: {other}")))
            }
        }
    }

    /// One of a closed set of words.
    pub fn word(
        &mut self,
        name: &str,
        words: &[&'static str],
    ) -> Result<Option<&'static str>, ApiError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match words.iter().find(|word| **word == text) {
            Some(word) => Ok(Some(word)),
            None => {
                let name = self.name_of(name);
                let words = words.join(", ");
                Err(ApiError::invalid(&name, format!("Invalid {name}: must be one of {words}")))
            }
        }
    }

    /// The names that are not taken yet.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.fields.keys().cloned()
    }

    /// Whether a hash or an array was sent under this name.
    pub fn is_section(&self, name: &str) -> bool {
        matches!(self.fields.get(name), Some(Node::Branch(_)))
    }

    /// A nested hash, to be finished on its own.
    pub fn section(&mut self, name: &str) -> Result<Option<Self>, ApiError> {
        let path = self.name_of(name);
        match self.fields.remove(name) {
            None => Ok(None),
            Some(Node::Branch(fields)) => Ok(Some(Self { path, fields })),
            Some(Node::Text(_)) => {
                Err(ApiError::invalid(&path, format!("Invalid object: '{path}' must be a hash")))
            }
        }
    }

    /// An array of hashes, in the order of their indexes.
    pub fn sections(&mut self, name: &str) -> Result<Vec<Self>, ApiError> {
        let Some(mut all) = self.section(name)? else { return Ok(Vec::new()) };
        let mut indexes: Vec<String> = all.fields.keys().cloned().collect();
        indexes.sort_by_key(|index| index.parse::<usize>().unwrap_or(usize::MAX));
        let entries = indexes.iter().map(|index| all.section(index));
        Ok(entries.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    /// An array of texts, in the order of their indexes.
    pub fn texts(&mut self, name: &str) -> Result<Vec<String>, ApiError> {
        let Some(mut all) = self.section(name)? else { return Ok(Vec::new()) };
        let mut indexes: Vec<String> = all.fields.keys().cloned().collect();
        indexes.sort_by_key(|index| index.parse::<usize>().unwrap_or(usize::MAX));
        indexes.iter().map(|index| all.required_text(index)).collect()
    }

    /// A hash of texts with names of the caller's choice.
    pub fn text_map(&mut self, name: &str) -> Result<Option<BTreeMap<String, String>>, ApiError> {
        let Some(mut all) = self.section(name)? else { return Ok(None) };
        let names: Vec<String> = all.fields.keys().cloned().collect();
        let mut map = BTreeMap::new();
        for name in names {
            if let Some(text) = all.raw(&name)? {
                map.insert(name, text);
            }
        }
        Ok(Some(map))
    }

    /// Metadata within Stripe's limits: 50 keys of 40 characters, values of 500.
    pub fn metadata(&mut self) -> Result<Option<MetadataChange>, ApiError> {
        if let Some(Node::Text(text)) = self.fields.get("metadata")
            && text.is_empty()
        {
            self.fields.remove("metadata");
            return Ok(Some(MetadataChange { clear: true, ..MetadataChange::default() }));
        }
        let Some(set) = self.text_map("metadata")? else { return Ok(None) };
        let fits = |(key, value): (&String, &String)| {
            key.chars().count() <= 40 && value.chars().count() <= 500
        };
        if set.len() > 50 || !set.iter().all(fits) {
            let name = self.name_of("metadata");
            let message = "Metadata can have up to 50 keys of up to 40 characters, with values of \
                           up to 500 characters.";
            return Err(ApiError::invalid(&name, message));
        }
        Ok(Some(MetadataChange { clear: false, set }))
    }

    /// Ends the reading: anything not taken is refused. `not_simulated` are names that Stripe
    /// knows here and the simulator does not; they are refused with a text that says so.
    pub fn finish(self, not_simulated: &[&str]) -> Result<(), ApiError> {
        let known = self.fields.keys().find(|name| not_simulated.contains(&name.as_str()));
        if let Some(name) = known {
            return Err(ApiError::not_simulated(&self.name_of(name)));
        }
        let unknown: Vec<String> = self.fields.keys().map(|name| self.name_of(name)).collect();
        if unknown.is_empty() { Ok(()) } else { Err(ApiError::unknown_parameters(&unknown)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bracketed_names_become_a_tree() {
        let body = "items[0][price]=p0&items[10][price]=p10&items[2][price]=p2&expand[]=a\
                    &expand[]=b&metadata[a%5Bb]=1+2";
        let mut params = Params::parse(&[body]);
        let prices: Vec<String> = params
            .sections("items")
            .unwrap()
            .into_iter()
            .map(|mut item| item.required_text("price").unwrap())
            .collect();
        assert_eq!(prices, ["p0", "p2", "p10"]);
        assert_eq!(params.texts("expand").unwrap(), ["a", "b"]);
    }

    #[test]
    fn the_order_of_the_fields_does_not_matter() {
        let one = Params::parse(&["a=1&b[x]=2&b[y]=%20"]);
        assert_eq!(one, Params::parse(&["b%5By%5D=+&b[x]=2", "a=1"]));
        assert_ne!(one, Params::parse(&["a=1&b[x]=2&b[y]=3"]));
    }

    #[test]
    fn what_nobody_reads_is_named() {
        let mut params = Params::parse(&["name=n&foo=1&items[0][bar]=2&tiers[0][x]=1"]);
        params.text("name").unwrap();
        let item = params.sections("items").unwrap().remove(0);
        assert_eq!(
            item.finish(&[]).unwrap_err(),
            ApiError::unknown_parameters(&["items[0][bar]".into()])
        );
        assert_eq!(
            params.clone().finish(&["tiers"]).unwrap_err(),
            ApiError::not_simulated("tiers")
        );
        params.section("tiers").unwrap();
        assert_eq!(params.finish(&[]).unwrap_err(), ApiError::unknown_parameters(&["foo".into()]));
    }

    #[test]
    fn a_json_body_says_what_a_form_says() {
        let json = r#"{"name": "n", "on": true, "none": null, "list": ["a", "b"], "x": {"y": 1}}"#;
        let form = Params::parse(&["name=n&on=true&list[0]=a&list[1]=b&x[y]=1&limit=3"]);
        assert_eq!(Params::parse_json("limit=3", json).unwrap(), form);
        assert!(Params::parse_json("", "[]").is_ok());
        assert!(Params::parse_json("", "nonsense").is_err());
    }

    #[test]
    fn values_are_read_strictly() {
        let mut params = Params::parse(&["n=1.5&b=yes&empty=&deep[x]=1&neg=-1&word=no"]);
        assert_eq!(params.integer("n").unwrap_err(), ApiError::invalid_integer("n", "1.5"));
        assert!(params.boolean("b").is_err());
        assert_eq!(params.text("empty").unwrap_err(), ApiError::empty("empty"));
        assert!(params.text("deep").is_err());
        assert!(params.count("neg").is_err());
        assert!(params.word("word", &["yes"]).is_err());
        assert_eq!(params.required_text("none").unwrap_err(), ApiError::missing("none"));
    }

    #[test]
    fn metadata_is_merged_emptied_and_bounded() {
        let mut metadata = Map::from_iter([("a".to_owned(), "1".into()), ("b".into(), "2".into())]);
        let change = Params::parse(&["metadata[a]=&metadata[c]=3"]).metadata().unwrap().unwrap();
        change.apply(&mut metadata);
        assert_eq!(Value::Object(metadata.clone()), serde_json::json!({"b": "2", "c": "3"}));
        Params::parse(&["metadata="]).metadata().unwrap().unwrap().apply(&mut metadata);
        assert!(metadata.is_empty());
        let long = format!("metadata[{}]=1", "k".repeat(41));
        assert!(Params::parse(&[&long]).metadata().is_err());
    }
}

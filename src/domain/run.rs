//! A run as the product reports it: which model, how many tokens.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

/// The most tokens of one kind in a run: beyond any model's, and few enough that tokens times a
/// rate of the plans file (at most 10¹²) always fit an `i128`.
pub const MAX_TOKENS: i64 = 1_000_000_000_000;

/// What a model may be called. Goes after "must be".
pub const MODEL_NAME_WANTED: &str = "1 to 100 printable ASCII characters without spaces";

/// The integer that a JSON number is, however it is written: `1.0` and `1e3` are whole numbers as well
/// (JSON Schema, "integer"). A number is the double nearest to what is written, as RFC 8259, section 6,
/// would have it; doubles hold every integer up to 2⁵³, which is more than any field of ours takes.
pub fn whole(number: &Number) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    number.as_i64().or_else(|| {
        let value = number.as_f64()?;
        (value.fract() == 0.0 && value.abs() <= EXACT).then_some(value as i64)
    })
}

/// Whether a model may be called so, in the plans file and by a run.
pub fn is_model_name(text: &str) -> bool {
    (1..=100).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// What a run says of itself in its `properties`; all that its cost and its credits depend on.
///
/// Cached tokens are a *part* of the input, as OpenAI and Gemini count them. Anthropic's API
/// reports them beside the input; whoever forgets to add them up is told so as soon as more was
/// cached than read, while under the other convention the same slip would bill tokens twice and
/// never show.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RunFacts {
    /// The model's name as the plans file has it; see [`is_model_name`].
    pub model: Option<String>,
    /// All tokens read, whether from the provider's cache or not: 0 to [`MAX_TOKENS`].
    pub input_tokens: i64,
    /// Those of `input_tokens` that came from the cache.
    pub cached_input_tokens: i64,
    /// All tokens written, those of its reasoning included: 0 to [`MAX_TOKENS`].
    pub output_tokens: i64,
}

const TOKEN_FIELDS: [&str; 3] = ["input_tokens", "cached_input_tokens", "output_tokens"];

/// What providers' APIs call them, where that is another name.
const ELSEWHERE: [(&str, &str); 6] = [
    ("prompt_tokens", "input_tokens"),
    ("inputTokens", "input_tokens"),
    ("promptTokenCount", "input_tokens"),
    ("completion_tokens", "output_tokens"),
    ("outputTokens", "output_tokens"),
    ("candidatesTokenCount", "output_tokens"),
];
/// Where they put them.
const USAGE: [&str; 3] = ["usage", "usageMetadata", "usage_metadata"];

/// What a run's properties say of its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tokens {
    /// Neither tokens nor a model.
    #[default]
    Unsaid,
    /// They speak of a model or of tokens, and yet do not count these, or not all of them: most likely
    /// they are named as a provider's API names them.
    LeftOut,
    /// How many there were, be it none.
    Counted,
}

impl Tokens {
    /// As the properties have them.
    pub fn said_by(properties: &Map<String, Value>) -> Self {
        let is_said = |field: &str| properties.get(field).is_some_and(|value| !value.is_null());
        let is_counted =
            |field: &str| properties.get(field).is_some_and(|n| n.as_f64() > Some(0.0));
        let mut elsewhere = ELSEWHERE.into_iter();
        let is_misnamed = elsewhere.any(|(theirs, ours)| is_counted(theirs) && !is_said(ours));
        match TOKEN_FIELDS.into_iter().any(is_said) {
            true if !is_misnamed => Self::Counted,
            false if !is_said("model") && !speaks_of_tokens(properties) => Self::Unsaid,
            _ => Self::LeftOut,
        }
    }
}

/// Whether something in them is called tokens, or in what providers call the usage of a run.
fn speaks_of_tokens(properties: &Map<String, Value>) -> bool {
    let is_of_tokens = |name: &String| name.to_ascii_lowercase().contains("token");
    let mut usage = USAGE.into_iter().filter_map(|name| properties.get(name)?.as_object());
    properties.keys().any(is_of_tokens) || usage.any(|usage| usage.keys().any(is_of_tokens))
}

/// A property of a run that is not what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field} must be {wanted}")]
pub struct BadProperty {
    pub field: &'static str,
    /// Goes after "must be".
    pub wanted: &'static str,
    /// The value has another JSON type than the one wanted.
    pub wrong_type: bool,
}

const TOKENS_WANTED: &str = "an integer from 0 to 1000000000000";

impl RunFacts {
    /// Takes the facts out of a run's properties, and hands back the rest, which is the caller's
    /// own and stays as it is. A property that is absent or `null` counts nothing.
    ///
    /// # Errors
    /// The first property that has the wrong type or an impossible value.
    pub fn from_properties(
        mut properties: Map<String, Value>,
    ) -> Result<(Self, Map<String, Value>), BadProperty> {
        let run = Self {
            model: take_model(&mut properties)?,
            input_tokens: take_tokens(&mut properties, TOKEN_FIELDS[0])?,
            cached_input_tokens: take_tokens(&mut properties, TOKEN_FIELDS[1])?,
            output_tokens: take_tokens(&mut properties, TOKEN_FIELDS[2])?,
        };
        if run.cached_input_tokens > run.input_tokens {
            return Err(BadProperty {
                field: "cached_input_tokens",
                wanted: "at most input_tokens, of which it is a part",
                wrong_type: false,
            });
        }
        Ok((run, properties))
    }

    /// The tokens read afresh.
    pub fn uncached_input_tokens(&self) -> i64 {
        self.input_tokens - self.cached_input_tokens
    }
}

fn take_model(properties: &mut Map<String, Value>) -> Result<Option<String>, BadProperty> {
    let bad = |wrong_type| BadProperty { field: "model", wanted: MODEL_NAME_WANTED, wrong_type };
    match properties.remove("model") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) if is_model_name(&name) => Ok(Some(name)),
        Some(Value::String(_)) => Err(bad(false)),
        Some(_) => Err(bad(true)),
    }
}

fn take_tokens(
    properties: &mut Map<String, Value>,
    field: &'static str,
) -> Result<i64, BadProperty> {
    let bad = |wrong_type| BadProperty { field, wanted: TOKENS_WANTED, wrong_type };
    match properties.remove(field) {
        None | Some(Value::Null) => Ok(0),
        Some(Value::Number(number)) => {
            whole(&number).filter(|n| (0..=MAX_TOKENS).contains(n)).ok_or(bad(false))
        }
        Some(_) => Err(bad(true)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(properties: Value) -> Result<(RunFacts, Value), String> {
        let Value::Object(properties) = properties else { panic!("a test passes an object") };
        let read = RunFacts::from_properties(properties);
        read.map(|(run, rest)| (run, Value::Object(rest))).map_err(|bad| bad.to_string())
    }

    #[test]
    fn the_facts_are_taken_out_and_the_rest_stays_as_it_is() {
        let properties = json!({
            "model": "claude-haiku", "input_tokens": 1200, "cached_input_tokens": 1000,
            "output_tokens": 80, "prompt": {"id": [1, null, 2.5]}, "Model": "mine",
        });
        let (run, rest) = read(properties).unwrap();
        assert_eq!(run.model.as_deref(), Some("claude-haiku"));
        assert_eq!(
            (run.input_tokens, run.cached_input_tokens, run.output_tokens),
            (1200, 1000, 80)
        );
        assert_eq!(run.uncached_input_tokens(), 200);
        assert_eq!(rest, json!({"prompt": {"id": [1, null, 2.5]}, "Model": "mine"}));
    }

    #[test]
    fn what_is_absent_or_null_counts_nothing() {
        assert_eq!(read(json!({})).unwrap(), (RunFacts::default(), json!({})));
        let nulls = json!({"model": null, "input_tokens": null, "output_tokens": null});
        assert_eq!(read(nulls).unwrap(), (RunFacts::default(), json!({})));
    }

    #[test]
    fn tokens_by_other_names_are_left_out() {
        let left_out =
            |properties: Value| Tokens::said_by(properties.as_object().unwrap()) == Tokens::LeftOut;
        for said in [
            json!({"model": "m", "prompt_tokens": 5, "completion_tokens": 9}),
            json!({"inputTokens": 5}),
            json!({"model": "m", "input_tokens": null}),
            json!({"model": "m", "input_tokens": 5, "completion_tokens": 9}),
            json!({"model": "m", "input_tokens": 5, "outputTokens": 9}),
            json!({"usage": {"input_tokens": 5}}),
        ] {
            assert!(left_out(said.clone()), "{said}");
        }
        for said in [
            json!({}),
            json!({"request": 7}),
            json!({"model": "m", "output_tokens": 0}),
            json!({"model": "m", "max_tokens": 4000, "input_tokens": 5}),
            json!({"input_tokens": 5, "output_tokens": 9, "prompt_tokens": 5, "completion_tokens": 9}),
            json!({"input_tokens": 5, "cache_read_input_tokens": 4, "completion_tokens": 0}),
            json!({"usage": {"seconds": 5}}),
            json!({"params": {"max_tokens": 4000}}),
        ] {
            assert!(!left_out(said.clone()), "{said}");
        }
    }

    #[test]
    fn tokens_are_integers_up_to_a_million_million() {
        let most = json!({"input_tokens": MAX_TOKENS, "cached_input_tokens": MAX_TOKENS});
        assert_eq!(read(most).unwrap().0.uncached_input_tokens(), 0);
        for bad in [json!(-1), json!(MAX_TOKENS + 1), json!(1.5), json!(1e300), json!("5")] {
            let complaint = read(json!({"output_tokens": bad})).unwrap_err();
            assert_eq!(complaint, format!("output_tokens must be {TOKENS_WANTED}"), "{bad}");
        }
    }

    #[test]
    fn a_number_is_whole_or_it_is_not() {
        let whole = |text: &str| whole(&serde_json::from_str(text).unwrap());
        for (text, value) in [
            ("7", 7),
            ("-0", 0),
            ("-0.0", 0),
            ("1.0", 1),
            ("1E3", 1000),
            ("0.5e1", 5),
            ("-20e-1", -2),
            ("9007199254740992.0", 1 << 53),
            ("9223372036854775807", i64::MAX),
        ] {
            assert_eq!(whole(text), Some(value), "{text}");
        }
        for text in ["1.5", "0.1", "1e-1", "1e300", "9007199254740994.0", "9223372036854775808"] {
            assert_eq!(whole(text), None, "{text}");
        }
    }

    #[test]
    fn more_cached_than_read_is_refused() {
        let anthropics_count = json!({"input_tokens": 200, "cached_input_tokens": 1000});
        assert_eq!(
            read(anthropics_count).unwrap_err(),
            "cached_input_tokens must be at most input_tokens, of which it is a part"
        );
    }

    #[test]
    fn a_model_is_called_as_in_the_plans_file() {
        assert!(read(json!({"model": "m".repeat(100)})).is_ok());
        for bad in [json!(""), json!("gpt 4"), json!("m\n"), json!("m".repeat(101)), json!("ü")] {
            let complaint = read(json!({"model": bad})).unwrap_err();
            assert_eq!(complaint, format!("model must be {MODEL_NAME_WANTED}"), "{bad}");
        }
    }

    #[test]
    fn a_wrong_type_is_told_from_a_wrong_value() {
        let wrong_type = |properties: Value| {
            let properties = properties.as_object().unwrap().clone();
            RunFacts::from_properties(properties).unwrap_err().wrong_type
        };
        assert!(wrong_type(json!({"input_tokens": "5"})) && wrong_type(json!({"model": 5})));
        assert!(!wrong_type(json!({"input_tokens": 0.5})) && !wrong_type(json!({"model": ""})));
    }
}

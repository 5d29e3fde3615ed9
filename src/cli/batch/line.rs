//! A line of a batch: which text, and how.

use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::cli::infill::around;
use crate::cli::marks::{self, Piece};
use crate::cli::sampling::Sampling;
use crate::error::{Error, Result};

/// What a line asks to be written.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// From nothing, or on from a prompt.
    Prompt(Option<String>),
    /// The gaps of a text.
    Gaps(Vec<Piece>),
}

/// A line of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Given back with the result.
    pub id: Option<Value>,
    pub source: Source,
    pub choices: Sampling,
}

/// The `id` of a line, if so much of it can be read.
pub fn id_of(text: &str) -> Option<Value> {
    serde_json::from_str::<Map<String, Value>>(text).ok()?.remove("id")
}

/// Reads a line. `origin` names it in errors.
///
/// # Errors
/// [`Error::Input`] for what is not an object, an unknown key, a value of the wrong type, or
/// texts that exclude one another.
pub fn parse(text: &str, origin: &str) -> Result<Line> {
    let wrong = |what: &str, expected: &str, got: String| Error::Input {
        origin: origin.to_owned(),
        what: what.to_owned(),
        expected: expected.to_owned(),
        got,
    };
    let Object(mut object) = serde_json::from_str(text)
        .map_err(|e| wrong("the line", "a JSON object such as {\"prompt\": \"To be\"}", format!("{e}")))?;
    let id = object.remove("id");
    let mut string = |key: &str| match object.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s)),
        Some(other) => Err(wrong(&format!("`{key}`"), "a string", other.to_string())),
    };
    let (prompt, prefix, suffix, marked) =
        (string("prompt")?, string("prefix")?, string("suffix")?, string("text")?);
    let gap = match object.remove("gap") {
        None | Some(Value::Null) => None,
        Some(value) => Some(
            length(&value)
                .ok_or_else(|| wrong("`gap`", "tokens as N or \"A-B\", 1 or more", value.to_string()))?,
        ),
    };
    let choices: Sampling = serde_json::from_value(Value::Object(object))
        .map_err(|e| wrong("the choices", "known keys with values of their type", e.to_string()))?;
    let source = match (prompt, marked, gap, prefix.is_some() || suffix.is_some()) {
        (prompt, None, None, false) => Source::Prompt(prompt),
        (None, Some(text), None, false) => Source::Gaps(marks::parse(&text)?),
        (None, None, Some(gap), _) => Source::Gaps(around(prefix.as_deref(), gap, suffix.as_deref())),
        (None, None, None, true) => {
            return Err(wrong("`prefix`, `suffix`", "a `gap` between them", "none".into()));
        }
        _ => {
            return Err(wrong(
                "the text",
                "one of `prompt`, `text` with gap marks, or `gap` with `prefix` and `suffix`",
                "several".into(),
            ));
        }
    };
    if choices.length.is_some() && matches!(source, Source::Gaps(_)) {
        return Err(wrong("`length`", "it with a prompt only; a gap has its own length", "a gap".into()));
    }
    Ok(Line { id, source, choices })
}

/// A JSON object in which no key appears twice: of two values one would be ignored unseen.
struct Object(Map<String, Value>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Object;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Object, A::Error> {
                let mut map = Map::new();
                while let Some((key, value)) = entries.next_entry::<String, Value>()? {
                    if map.contains_key(&key) {
                        return Err(A::Error::custom(format_args!("the key `{key}` twice")));
                    }
                    map.insert(key, value);
                }
                Ok(Object(map))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A gap length: a number, or a string as in a mark.
fn length(value: &Value) -> Option<RangeInclusive<usize>> {
    match value {
        Value::Number(_) => marks::length(&value.to_string()).ok(),
        Value::String(s) => marks::length(s).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::OrderName;

    fn refused(text: &str) -> String {
        let error = parse(text, "in.jsonl line 3").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn all_three_kinds_of_text() {
        let line =
            parse(r#"{"id": 7, "prompt": "To be", "length": 5, "order": "margin", "seed": 3}"#, "x").unwrap();
        assert_eq!((line.id, line.source), (Some(7.into()), Source::Prompt(Some("To be".into()))));
        assert_eq!((line.choices.length, line.choices.order), (Some(5), Some(OrderName::Margin)));
        assert_eq!(line.choices.seed, Some(3));
        assert_eq!(parse("{}", "x").unwrap().source, Source::Prompt(None));
        let gaps = Source::Gaps(vec![Piece::Text("a".into()), Piece::Gap(2..=4), Piece::Text("b".into())]);
        assert_eq!(parse(r#"{"text": "a[[gap:2-4]]b"}"#, "x").unwrap().source, gaps);
        assert_eq!(parse(r#"{"prefix": "a", "gap": "2-4", "suffix": "b"}"#, "x").unwrap().source, gaps);
        assert_eq!(parse(r#"{"gap": 3}"#, "x").unwrap().source, Source::Gaps(vec![Piece::Gap(3..=3)]));
    }

    #[test]
    fn wrong_lines_name_line_and_key() {
        for (text, key) in [
            (r#"{"lenght": 3}"#, "lenght"),
            (r#"{"prompt": 3}"#, "prompt"),
            (r#"{"steps": "many"}"#, "many"),
            (r#"{"gap": 0}"#, "gap"),
            (r#"{"gap": 2.5}"#, "gap"),
            (r#"{"prefix": "a"}"#, "gap"),
            (r#"{"prompt": "a", "text": "b[[gap:1]]"}"#, "several"),
            (r#"{"text": "b[[gap:1]]", "length": 3}"#, "length"),
            (r#"{"order": "sideways"}"#, "sideways"),
            (r#"{"length": 3, "length": 4}"#, "`length` twice"),
            ("[1]", "object"),
            ("{\"a\"", "object"),
        ] {
            let message = refused(text);
            assert!(message.contains("line 3") && message.contains(key), "{message}");
        }
    }

    #[test]
    fn id_is_found_in_lines_that_are_wrong_otherwise() {
        assert_eq!(id_of(r#"{"id": "a", "lenght": 3}"#), Some("a".into()));
        assert_eq!(id_of("nonsense"), None);
    }
}

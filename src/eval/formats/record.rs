//! An object of a file: where it stands, and its fields.

use serde_json::{Map, Value};

use super::{fault, is_blank};
use crate::error::{Error, Result};

/// An object that was read. A field that is `null` counts as absent where it may be absent.
pub(super) struct Record {
    origin: String,
    fields: Map<String, Value>,
}

impl Record {
    pub fn new(origin: String, fields: Map<String, Value>) -> Self {
        Self { origin, fields }
    }

    /// File and place, as errors name them.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// An error about a field of this object.
    pub fn fault(
        &self,
        what: impl Into<String>,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) -> Error {
        fault(&self.origin, what, expected, got)
    }

    /// Takes the value of the first of `names` that is there.
    pub fn take<'a>(&mut self, names: &[&'a str]) -> Option<(&'a str, Value)> {
        names.iter().find_map(|&name| {
            let value = self.fields.get_mut(name).filter(|v| !v.is_null())?;
            // What is left in its place keeps the order of the names, which errors list.
            Some((name, value.take()))
        })
    }

    /// As [`Record::take`], for what must be there.
    pub fn require<'a>(&mut self, names: &[&'a str], expected: &str) -> Result<(&'a str, Value)> {
        self.take(names).ok_or_else(|| {
            let got = match names.iter().any(|name| self.fields.contains_key(*name)) {
                true => "null".into(),
                false => others(self.fields.keys().map(String::as_str), "field"),
            };
            self.fault(list(names), expected, got)
        })
    }

    /// A string, which may be blank.
    pub fn string(&mut self, names: &[&str]) -> Result<String> {
        match self.require(names, "a string")? {
            (_, Value::String(text)) => Ok(text),
            (name, other) => Err(self.fault(list(&[name]), "a string", shown(&other))),
        }
    }

    /// A string if it is there.
    pub fn string_if_present(&mut self, names: &[&str]) -> Result<Option<String>> {
        match self.take(names) {
            None => Ok(None),
            Some((_, Value::String(text))) => Ok(Some(text)),
            Some((name, other)) => Err(self.fault(list(&[name]), "a string", shown(&other))),
        }
    }

    /// A string that is not blank.
    pub fn text(&mut self, names: &[&str]) -> Result<String> {
        let text = self.string(names)?;
        match is_blank(&text) {
            true => Err(self.fault(list(names), "a text", quoted(&text))),
            false => Ok(text),
        }
    }

    /// A list of strings.
    pub fn strings(&mut self, names: &[&str]) -> Result<Vec<String>> {
        let (name, value) = self.require(names, "a list of strings")?;
        let Value::Array(values) = value else {
            return Err(self.fault(list(&[name]), "a list of strings", shown(&value)));
        };
        let text = |(i, value)| match value {
            Value::String(text) => Ok(text),
            other => Err(self.fault(format!("`{name}[{i}]`"), "a string", shown(&other))),
        };
        values.into_iter().enumerate().map(text).collect()
    }

    /// A list of objects; their origin is this object's, with name and index behind it.
    pub fn records(&mut self, name: &str) -> Result<Vec<Record>> {
        let values = match self.require(&[name], "a list of objects")?.1 {
            Value::Array(values) => values,
            other => return Err(self.fault(list(&[name]), "a list of objects", shown(&other))),
        };
        let record = |(i, value)| match value {
            Value::Object(fields) => Ok(Record::new(format!("{}.{name}[{i}]", self.origin), fields)),
            other => Err(self.fault(format!("`{name}[{i}]`"), "an object", shown(&other))),
        };
        values.into_iter().enumerate().map(record).collect()
    }

    /// The object's own id: a string or a number. A blank one is none.
    pub fn id(&mut self, names: &[&str]) -> Result<Option<String>> {
        match self.take(names) {
            None => Ok(None),
            Some((_, Value::String(id))) => Ok(Some(id).filter(|id| !is_blank(id))),
            Some((_, Value::Number(id))) => Ok(Some(id.to_string())),
            Some((name, other)) => Err(self.fault(list(&[name]), "a string or a number", shown(&other))),
        }
    }
}

/// Names of fields, any of which will do.
fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ")
}

/// Says that something is not there, and what is: `thing` is a field, a column.
pub(super) fn others<'a>(names: impl Iterator<Item = &'a str>, thing: &str) -> String {
    let mut names: Vec<String> = names.take(13).map(|name| name.chars().take(40).collect()).collect();
    if names.len() > 12 {
        names.truncate(12);
        names.push("...".into());
    }
    match names.is_empty() {
        true => format!("no such {thing}"),
        false => format!("no such {thing}; others are: {}", names.join(", ")),
    }
}

/// A value as an error shows it: short.
pub(super) fn shown(value: &Value) -> String {
    short(&value.to_string())
}

/// A text as an error shows it: in quotes, short.
pub(super) fn quoted(text: &str) -> String {
    short(&format!("{text:?}"))
}

fn short(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(json: &str) -> Record {
        Record::new("F line 3".into(), serde_json::from_str(json).unwrap())
    }

    #[test]
    fn strings_and_what_is_there_instead() {
        let mut r = record(r#"{"a": "x", "b": 4, "c": null, "d": " ", "e": ["y", 5], "f": {}}"#);
        assert_eq!(r.string(&["z", "a"]).unwrap(), "x");
        let error = |r: Result<String>| r.unwrap_err().to_string();
        assert_eq!(error(r.string(&["b"])), "F line 3: `b`: expected a string, got 4");
        assert_eq!(error(r.string(&["c"])), "F line 3: `c`: expected a string, got null");
        assert_eq!(error(r.text(&["d"])), "F line 3: `d`: expected a text, got \" \"");
        assert_eq!(
            error(r.string(&["y", "z"])),
            "F line 3: `y` or `z`: expected a string, got no such field; others are: a, b, c, d, e, f"
        );
        assert_eq!(r.strings(&["e"]).unwrap_err().to_string(), "F line 3: `e[1]`: expected a string, got 5");
        assert_eq!(
            r.strings(&["f"]).unwrap_err().to_string(),
            "F line 3: `f`: expected a list of strings, got {}"
        );
        assert_eq!(r.string_if_present(&["c", "z"]).unwrap(), None);
        assert_eq!(error(record("{}").string(&["z"])), "F line 3: `z`: expected a string, got no such field");
    }

    #[test]
    fn ids_are_text() {
        let mut r = record(r#"{"a": "x-1", "b": 24, "c": "", "d": [1]}"#);
        assert_eq!(r.id(&["a"]).unwrap().as_deref(), Some("x-1"));
        assert_eq!(r.id(&["b"]).unwrap().as_deref(), Some("24"));
        assert_eq!(r.id(&["c"]).unwrap(), None);
        assert_eq!(r.id(&["z"]).unwrap(), None);
        assert_eq!(
            r.id(&["d"]).err().unwrap().to_string(),
            "F line 3: `d`: expected a string or a number, got [1]"
        );
    }

    #[test]
    fn nested_objects_say_where_they_are() {
        let mut r = record(r#"{"qas": [{"id": 1}, 2]}"#);
        assert_eq!(
            r.records("qas").err().unwrap().to_string(),
            "F line 3: `qas[1]`: expected an object, got 2"
        );
        let mut r = record(r#"{"qas": [{}, {"id": 1}]}"#);
        assert_eq!(r.records("qas").unwrap()[1].origin(), "F line 3.qas[1]");
    }

    #[test]
    fn long_values_are_cut() {
        assert_eq!(shown(&Value::String("é".repeat(100))).chars().count(), 63);
        let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        assert!(others(names.iter().map(String::as_str), "column").ends_with("10, 11, ..."));
    }
}

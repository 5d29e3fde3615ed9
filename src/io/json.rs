//! Typed access to the fields of a JSON object, with errors that name file and field.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::read_limited;
use crate::error::{Error, Result};

/// The largest configuration file that is read, in bytes.
const MAX_JSON: u64 = 64 << 20;

/// A JSON object and the file it came from.
#[derive(Clone, Debug)]
pub(super) struct Object {
    path: PathBuf,
    /// Names of the objects around this one, with a dot behind each.
    prefix: String,
    map: Map<String, Value>,
}

impl Object {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&read_limited(path, MAX_JSON)?, path)
    }

    /// Reads a file if it is there.
    pub fn read_if_present(path: &Path) -> Result<Option<Self>> {
        if path.exists() { Self::read(path).map(Some) } else { Ok(None) }
    }

    /// Reads from memory; `path` is named in errors.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let fail = |got: String| Error::Config {
            path: path.to_path_buf(),
            field: "file".into(),
            expected: "a JSON object".into(),
            got,
        };
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(map)) => Ok(Self { path: path.to_path_buf(), prefix: String::new(), map }),
            Ok(other) => Err(fail(describe(&other))),
            Err(e) => Err(fail(e.to_string())),
        }
    }

    /// An error about a field of this object.
    pub fn error(&self, field: &str, expected: impl Into<String>, got: impl Into<String>) -> Error {
        Error::Config {
            path: self.path.clone(),
            field: format!("{}{field}", self.prefix),
            expected: expected.into(),
            got: got.into(),
        }
    }

    /// The value of a field; `null` counts as absent.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    /// The value of the first of several names of one field.
    pub fn first<'a>(&self, names: &[&'a str]) -> Option<(&'a str, &Value)> {
        names.iter().find_map(|&name| self.get(name).map(|v| (name, v)))
    }

    /// Names and values, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.map.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// A field that is an object itself.
    pub fn object(&self, field: &str) -> Result<Option<Object>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Object {
                path: self.path.clone(),
                prefix: format!("{}{field}.", self.prefix),
                map: map.clone(),
            })),
            Some(other) => Err(self.error(field, "an object", describe(other))),
        }
    }

    pub fn string(&self, field: &str) -> Result<Option<&str>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.error(field, "a string", describe(other))),
        }
    }

    pub fn bool(&self, field: &str) -> Result<Option<bool>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(self.error(field, "true or false", describe(other))),
        }
    }

    pub fn number(&self, field: &str) -> Result<Option<f64>> {
        match self.get(field) {
            None => Ok(None),
            Some(v) => match v.as_f64().filter(|x| x.is_finite()) {
                Some(x) => Ok(Some(x)),
                None => Err(self.error(field, "a finite number", describe(v))),
            },
        }
    }

    /// A count of at least 1 and at most `most`, under the first of its names that is there.
    pub fn count(&self, names: &[&str], most: usize) -> Result<Option<usize>> {
        let Some((name, value)) = self.first(names) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..=most).contains(&n) => Ok(Some(n)),
            _ => Err(self.error(name, format!("a whole number from 1 to {most}"), describe(value))),
        }
    }

    /// As [`Object::count`], for a field that must be there.
    pub fn required_count(&self, names: &[&str], most: usize) -> Result<usize> {
        self.count(names, most)?.ok_or_else(|| {
            let field = names.first().copied().unwrap_or_default();
            self.error(field, format!("a whole number from 1 to {most}"), "no such field")
        })
    }
}

/// A value as an error message shows it: short.
pub(super) fn describe(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

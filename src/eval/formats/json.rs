//! Files of one JSON value, of which the elements of a list are handed out one by one, so that the file is never in
//! memory as a whole.

use std::fmt;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::record::{Record, others};
use super::{fault, whole};
use crate::error::{Error, Result};

/// Hands the objects of a list to `each`, in order: of the list that the file is, or, if there are `names`, of every
/// list under one of them in the object that the file is. `each` is given the name, which is empty for the file
/// itself; `expected` says in errors what the file should be.
pub(super) fn elements(
    path: &Path,
    names: &[&str],
    expected: &str,
    each: impl FnMut(&str, Record) -> Result<()>,
) -> Result<()> {
    let mut reader = serde_json::Deserializer::from_reader(whole(path)?);
    let mut file = Elements {
        file: path.display().to_string(),
        names,
        under: String::new(),
        expected,
        each,
        fault: None,
    };
    let read = (&mut file).deserialize(&mut reader).and_then(|()| reader.end());
    match (file.fault.take(), read) {
        (Some(fault), _) => Err(fault),
        (None, Ok(())) => Ok(()),
        (None, Err(e)) if e.is_io() => Err(Error::io("read", path, e.into())),
        (None, Err(e)) => {
            Err(fault(format!("{} line {}", file.file, e.line()), "the file", expected, e.to_string()))
        }
    }
}

/// What is read of the file.
struct Elements<'a, F> {
    file: String,
    names: &'a [&'a str],
    /// The name of the list that is read.
    under: String,
    expected: &'a str,
    each: F,
    /// What stopped the reading, other than the JSON itself.
    fault: Option<Error>,
}

impl<F: FnMut(&str, Record) -> Result<()>> Elements<'_, F> {
    /// Keeps an error that the parser cannot carry.
    fn stop<E: serde::de::Error>(&mut self, error: Error) -> E {
        self.fault = Some(error);
        E::custom("stopped")
    }
}

impl<'de, F: FnMut(&str, Record) -> Result<()>> DeserializeSeed<'de> for &mut Elements<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        match self.names.is_empty() || !self.under.is_empty() {
            true => from.deserialize_seq(self),
            false => from.deserialize_map(self),
        }
    }
}

impl<'de, F: FnMut(&str, Record) -> Result<()>> Visitor<'de> for &mut Elements<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.under.is_empty() {
            true => f.write_str(self.expected),
            false => write!(f, "a list under `{}`", self.under),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut found, mut passed) = (false, Vec::new());
        while let Some(name) = map.next_key::<String>()? {
            if self.names.contains(&name.as_str()) {
                found = true;
                self.under = name;
                map.next_value_seed(&mut *self)?;
                self.under.clear();
            } else {
                map.next_value::<IgnoredAny>()?;
                passed.push(name);
                passed.truncate(20);
            }
        }
        if found {
            return Ok(());
        }
        let names: Vec<String> = self.names.iter().map(|name| format!("`{name}`")).collect();
        let got = others(passed.iter().map(String::as_str), "field");
        let error = fault(&self.file, names.join(" or "), self.expected, got);
        Err(self.stop(error))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let mut index = 0_usize;
        while let Some(fields) = list.next_element::<Map<String, Value>>()? {
            let place = match self.under.is_empty() {
                true => format!("{} element {}", self.file, index + 1),
                false => format!("{} {}[{index}]", self.file, self.under),
            };
            (self.each)(&self.under, Record::new(place, fields)).map_err(|e| self.stop(e))?;
            index += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names and origins of the elements, or the error, without the folder.
    fn read(text: impl AsRef<[u8]>, names: &[&str]) -> Result<Vec<(String, String)>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.json");
        std::fs::write(&path, text).unwrap();
        let place = |text: &str| text.replace(&format!("{}/", folder.path().display()), "");
        let mut found = Vec::new();
        let each = |name: &str, mut record: Record| {
            if let Some(bad) = record.string_if_present(&["bad"])? {
                return Err(record.fault("`bad`", "nothing", bad));
            }
            found.push((name.to_owned(), place(record.origin())));
            Ok(())
        };
        elements(&path, names, "a list", each).map_err(|e| place(&e.to_string()))?;
        Ok(found)
    }

    fn pairs(pairs: &[(&str, &str)]) -> Result<Vec<(String, String)>, String> {
        Ok(pairs.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect())
    }

    #[test]
    fn elements_say_where_they_are() {
        assert_eq!(read("[{}, {}]", &[]), pairs(&[("", "f.json element 1"), ("", "f.json element 2")]));
        assert_eq!(read("\u{feff} []", &[]), pairs(&[]));
        assert_eq!(
            read(r#"{"v": [[1]], "data": [{}], "Data": [{}]}"#, &["data", "Data"]),
            pairs(&[("data", "f.json data[0]"), ("Data", "f.json Data[0]")])
        );
    }

    #[test]
    fn what_is_wrong_comes_with_its_line() {
        let error = |text: &str, names: &[&str]| read(text, names).unwrap_err();
        assert_eq!(
            error("[{},\n{", &[]),
            "f.json line 2: the file: expected a list, got EOF while parsing an object at line 2 column 1"
        );
        assert!(error("[{}] x", &[]).contains("trailing characters at line 1"));
        assert!(error("", &[]).contains("EOF while parsing a value"));
        assert!(error("{}", &[]).contains("invalid type: map, expected a list at line 1"));
        assert!(error("[{}, 7]", &[]).contains("invalid type: integer `7`, expected a map"));
        assert!(error("[]", &["data"]).contains("invalid type: sequence, expected a list"));
        assert!(error(r#"{"data": 4}"#, &["data"]).contains("expected a list under `data`"));
        assert_eq!(
            error(r#"{"version": 1, "dta": []}"#, &["data", "Data"]),
            "f.json: `data` or `Data`: expected a list, got no such field; others are: version, dta"
        );
        assert_eq!(
            error(r#"{"data": [{}, {"bad": "x"}, {"bad": "y"}]}"#, &["data"]),
            "f.json data[1]: `bad`: expected nothing, got x"
        );
        let bytes = read(b"[{\"a\":\n \"\xff\"}]", &[]).unwrap_err();
        assert!(bytes.contains("f.json line 2: ") && bytes.contains("unicode"), "{bytes}");
        let deep = "[".repeat(100_000);
        assert!(error(&format!("[{{\"a\": {deep}"), &[]).contains("recursion limit"));
        // What is passed over is not followed.
        assert!(error(&format!("{{\"a\": {deep}"), &["data"]).contains("EOF"));
    }
}

//! The plain files of evaluation tasks: multiple choice, last words, stories, questions and problems.
//!
//! Every item has an id by which results are paired: the one that the file gives it, as text, or else its number in
//! the file, from 1. Two items of a file with one id are an error.
//!
//! Lines of JSON (`.jsonl`, `.ndjson`) and of text (`.txt`) may be packed (`.gz`, `.zst`); `.json` and `.csv` are
//! plain files of at most 2 GiB.

pub mod choice;
pub mod cloze;
mod json;
pub mod problems;
pub mod questions;
mod record;
pub mod stories;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use self::record::Record;
use crate::error::{Error, Result};
use crate::io::Lines;

/// Most bytes of a line.
const LONGEST_LINE: usize = 64 << 20;
/// Most bytes of a file that is read as a whole.
const LARGEST_FILE: u64 = 2 << 30;

/// The first `limit` items; all of them where there is no limit.
pub fn limit<T>(mut items: Vec<T>, limit: Option<usize>) -> Vec<T> {
    items.truncate(limit.unwrap_or(usize::MAX));
    items
}

/// The ids of a file's items, of which no two are alike.
#[derive(Default)]
struct Ids {
    /// The number of the item that has the id.
    given: HashMap<String, usize>,
    items: usize,
}

impl Ids {
    /// The id of the next item: its own or its number.
    fn next(&mut self, own: Option<String>, origin: &str) -> Result<String> {
        self.items += 1;
        let id = own.unwrap_or_else(|| self.items.to_string());
        match self.given.insert(id.clone(), self.items) {
            None => Ok(id),
            Some(other) => {
                let got = format!("{}, as item {other} of the file", record::quoted(&id));
                Err(fault(origin, "the item's id", "one that no other item has", got))
            }
        }
    }
}

/// Hands the objects of a file of JSON lines to `each`, in order; `kinds` are the endings that an error names.
fn objects(path: &Path, kinds: &str, mut each: impl FnMut(Record) -> Result<()>) -> Result<()> {
    let mut lines = lines(path, kinds)?;
    while let Some(fields) = lines.next_object()? {
        each(Record::new(lines.origin(), fields))?;
    }
    Ok(())
}

/// Opens a file of lines; `kinds` are the endings that an error names.
fn lines(path: &Path, kinds: &str) -> Result<Lines> {
    Lines::open(path, LONGEST_LINE).map_err(|e| match e {
        Error::Input { origin, what, got, .. } => Error::Input { origin, what, expected: kinds.into(), got },
        other => other,
    })
}

/// Opens a file that is read as a whole, behind its byte order mark.
fn whole(path: &Path) -> Result<BufReader<File>> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let meta = file.metadata().map_err(|e| Error::io("open", path, e))?;
    let name = path.display().to_string();
    if !meta.is_file() {
        let got = if meta.is_dir() { "a folder; name its files" } else { "a stream; save it first" };
        return Err(fault(name, "kind of file", "a plain file", got));
    }
    if meta.len() > LARGEST_FILE {
        let got = format!("{}; split it, or make it JSON lines", meta.len());
        return Err(fault(name, "bytes of the file", format!("at most {LARGEST_FILE}"), got));
    }
    let mut reader = BufReader::with_capacity(256 << 10, file);
    let start = reader.fill_buf().map_err(|e| Error::io("read", path, e))?;
    if start.starts_with(b"\xef\xbb\xbf") {
        reader.consume(3);
    }
    Ok(reader)
}

/// Whether the name of a file ends so, in large or small letters.
fn ends(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending))
}

/// An error about a place in a file.
fn fault(
    origin: impl Into<String>,
    what: impl Into<String>,
    expected: impl Into<String>,
    got: impl Into<String>,
) -> Error {
    Error::Input { origin: origin.into(), what: what.into(), expected: expected.into(), got: got.into() }
}

/// The error about a file without items.
fn none(path: &Path, expected: &str) -> Error {
    Error::request(format_args!("no items in {}: expected {expected}", path.display()))
}

/// White space as Python has it, whose `strip` and `split` the published evaluators use.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// A text of nothing but white space.
fn is_blank(text: &str) -> bool {
    text.chars().all(is_space)
}

#[cfg(test)]
mod testing {
    use std::path::PathBuf;

    use tempfile::TempDir;

    use crate::error::Error;

    /// A file of `tests/fixtures/eval`.
    pub fn fixture(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/eval").join(name)
    }

    /// A file of its own.
    pub fn file(name: &str, text: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    /// An error as it reads where the file lies.
    pub fn place(folder: &TempDir, error: Error) -> String {
        error.to_string().replace(&format!("{}/", folder.path().display()), "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_keeps_the_first() {
        assert_eq!(limit(vec![1, 2, 3], Some(2)), [1, 2]);
        assert_eq!(limit(vec![1, 2, 3], Some(9)), [1, 2, 3]);
        assert_eq!(limit(vec![1, 2, 3], Some(0)), [0; 0]);
        assert_eq!(limit(vec![1, 2, 3], None), [1, 2, 3]);
    }

    #[test]
    fn ids_are_the_files_own_or_numbers() {
        let mut ids = Ids::default();
        assert_eq!(ids.next(Some("a".into()), "F line 1").unwrap(), "a");
        assert_eq!(ids.next(None, "F line 2").unwrap(), "2");
        assert_eq!(
            ids.next(Some("a".into()), "F line 3").unwrap_err().to_string(),
            "F line 3: the item's id: expected one that no other item has, got \"a\", as item 1 of the file"
        );
    }

    #[test]
    fn a_file_that_is_too_large_is_refused_unread() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large.json");
        File::create(&path).unwrap().set_len(LARGEST_FILE + 1).unwrap();
        let error = whole(&path).unwrap_err().to_string();
        assert!(error.contains("large.json: bytes of the file: expected at most 2147483648, got 2147483649"));
        let error = whole(folder.path()).unwrap_err().to_string();
        assert!(error.contains("expected a plain file, got a folder"), "{error}");
    }

    #[test]
    fn endings() {
        assert!(ends(Path::new("a/B.JSON"), "json"));
        assert!(!ends(Path::new("b.json.gz"), "json") && !ends(Path::new("json"), "json"));
    }
}

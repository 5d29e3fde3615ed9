//! Lines of a text or of JSON, each at most so long.

use std::fmt;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use serde_json::{Map, Value};

use super::source::{Kind, STDIN};
use crate::error::{Error, Result};
use crate::io::json::describe;

/// The lines of a file (or of standard input, `-`), unpacked if its name ends in `.gz` or `.zst`.
pub struct Lines {
    path: PathBuf,
    from: Box<dyn BufRead + Send>,
    buffer: Vec<u8>,
    /// The number of the line in `buffer`, from 1.
    line: u64,
    longest: usize,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("path", &self.path).field("line", &self.line).finish_non_exhaustive()
    }
}

impl Lines {
    /// Whether a file is one of JSON lines, by its name.
    pub fn are_objects(path: &Path) -> bool {
        matches!(Kind::by_name(path), Some(Kind::Json(_)))
    }

    /// Opens a file of JSON lines or plain text; a line has `longest` bytes at most.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened; [`Error::Input`] when its name ends otherwise than
    /// `.jsonl`, `.ndjson` or `.txt`, each with or without `.gz` or `.zst`.
    pub fn open(path: &Path, longest: usize) -> Result<Self> {
        match Kind::of(path)? {
            Kind::Parquet => Err(Error::Input {
                origin: path.display().to_string(),
                what: "kind of file".into(),
                expected: ".jsonl, also with .gz or .zst behind".into(),
                got: ".parquet".into(),
            }),
            kind => Self::counted(path, kind, longest, Arc::default()),
        }
    }

    pub(super) fn counted(path: &Path, kind: Kind, longest: usize, read: Arc<AtomicU64>) -> Result<Self> {
        let from = kind.bytes(path, read)?;
        Ok(Self { path: path.to_owned(), from, buffer: Vec::new(), line: 0, longest })
    }

    /// Most bytes of a line.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    fn name(&self) -> String {
        if self.path.as_os_str() == STDIN { "standard input".into() } else { self.path.display().to_string() }
    }

    /// File and line, as errors name them.
    pub fn origin(&self) -> String {
        format!("{} line {}", self.name(), self.line)
    }

    /// The next line, without its end and without a byte order mark; `None` behind the last one.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Input`] for a line that is too long or not UTF-8.
    pub fn next_line(&mut self) -> Result<Option<&str>> {
        self.buffer.clear();
        self.line += 1;
        // The line end does not count: two bytes more may be read.
        let most = self.longest as u64 + 2;
        let mut limited = (&mut self.from).take(most);
        let n = limited
            .read_until(b'\n', &mut self.buffer)
            .map_err(|e| Error::io("read", self.path.clone(), e))?;
        if n == 0 {
            return Ok(None);
        }
        if self.buffer.ends_with(b"\n") {
            self.buffer.pop();
            if self.buffer.ends_with(b"\r") {
                self.buffer.pop();
            }
        }
        if self.buffer.len() > self.longest {
            return Err(too_long(self.origin(), "the line", self.longest));
        }
        let mark = if self.line == 1 { bom(&self.buffer) } else { 0 };
        let bytes = self.buffer.get(mark..).unwrap_or_default();
        std::str::from_utf8(bytes).map(Some).map_err(|e| {
            let byte = bytes.get(e.valid_up_to()).copied().unwrap_or_default();
            Error::Input {
                origin: self.origin(),
                what: format!("byte {} of the line", e.valid_up_to() + mark + 1),
                expected: "UTF-8".into(),
                got: format!("0x{byte:02x}"),
            }
        })
    }

    /// The next line as a JSON object; blank lines are passed over.
    ///
    /// # Errors
    /// As [`Lines::next_line`]; [`Error::Input`] for a line that is no object.
    pub fn next_object(&mut self) -> Result<Option<Map<String, Value>>> {
        let parsed = loop {
            let Some(line) = self.next_line()? else { return Ok(None) };
            if !line.trim().is_empty() {
                break serde_json::from_str::<Map<String, Value>>(line);
            }
        };
        parsed.map(Some).map_err(|e| Error::Input {
            origin: self.origin(),
            what: "the line".into(),
            expected: "a JSON object".into(),
            got: e.to_string(),
        })
    }

    /// Takes the string under the first of `names` that `object`, read from this line, has.
    ///
    /// # Errors
    /// [`Error::Input`], naming file and line, when it has none of them or the value is no string.
    pub fn string(&self, object: &mut Map<String, Value>, names: &[&str]) -> Result<String> {
        let got = match names.iter().find_map(|name| Some((name, object.remove(*name)?))) {
            Some((_, Value::String(text))) => return Ok(text),
            Some((name, other)) => (format!("`{name}`"), describe(&other)),
            None => {
                let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
                (names.join(" or "), others(object))
            }
        };
        Err(Error::Input { origin: self.origin(), what: got.0, expected: "a string".into(), got: got.1 })
    }

    /// Everything that is left as one text; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Input`] for more than is allowed, or what is not UTF-8.
    pub(super) fn rest(&mut self) -> Result<Option<String>> {
        let mut bytes = Vec::new();
        let most = self.longest as u64 + 1;
        (&mut self.from)
            .take(most)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io("read", self.path.clone(), e))?;
        if bytes.is_empty() {
            return Ok(None);
        }
        if bytes.len() > self.longest {
            return Err(too_long(self.name(), "the document", self.longest));
        }
        bytes.drain(..bom(&bytes));
        String::from_utf8(bytes).map(Some).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            let before = e.as_bytes().get(..at).unwrap_or_default();
            let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
            let column = at - before.iter().rposition(|&b| b == b'\n').map_or(0, |n| n + 1);
            Error::Input {
                origin: format!("{} line {line}", self.name()),
                what: format!("byte {} of the line", column + 1),
                expected: "UTF-8".into(),
                got: format!("0x{:02x}", e.as_bytes().get(at).copied().unwrap_or_default()),
            }
        })
    }
}

/// Says that an object lacks a field, and what it has instead.
fn others(object: &Map<String, Value>) -> String {
    let mut names: Vec<String> = object.keys().take(8).map(|k| k.chars().take(40).collect()).collect();
    if object.len() > names.len() {
        names.push("...".into());
    }
    match names.is_empty() {
        true => "no such field".into(),
        false => format!("no such field; others are: {}", names.join(", ")),
    }
}

/// Bytes of the byte order mark that `bytes` begin with.
fn bom(bytes: &[u8]) -> usize {
    if bytes.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 }
}

pub(super) fn too_long(origin: String, what: &str, longest: usize) -> Error {
    Error::Input {
        origin,
        what: format!("{what}'s length"),
        expected: format!("at most {longest} bytes"),
        got: "more; split a plain text at its lines or blank lines".into(),
    }
}

//! Documents out of text files, one after the other: plain text, JSON lines (both also compressed),
//! Parquet columns, standard input. Memory is bounded by the longest document allowed, whatever a
//! compressed file claims or unpacks to.

mod lines;
mod parquet;
mod source;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use self::lines::Lines;
use self::parquet::Column;
use self::source::{Kind, STDIN};
use crate::error::{Error, Result};

/// Where a document of a plain text ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Split {
    /// With the file.
    #[default]
    Document,
    /// With the line. Blank lines are no documents.
    Lines,
    /// With one or more blank lines (white space at most).
    BlankLines,
}

/// How texts are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextOptions {
    /// The field of a JSON line, or the column of a Parquet file, that holds the text.
    pub field: String,
    /// Where a document of a plain text ends; JSON lines and Parquet rows are documents.
    pub split: Split,
    /// Most bytes of a document, and of a line.
    pub longest: usize,
}

impl Default for TextOptions {
    /// Field `text`, a document a file, 64 MiB.
    fn default() -> Self {
        Self { field: "text".into(), split: Split::Document, longest: 64 << 20 }
    }
}

/// The documents of several files, in order. Empty ones are left out.
#[derive(Debug)]
pub struct Texts {
    files: VecDeque<(PathBuf, Kind)>,
    current: Option<Current>,
    options: TextOptions,
    read: Arc<AtomicU64>,
    size: Option<u64>,
}

#[derive(Debug)]
enum Current {
    Text(Lines),
    Json(Lines),
    Rows(Box<Column>),
}

impl Texts {
    /// Whether a file is one of texts, by its name.
    pub fn are_named(path: &Path) -> bool {
        Kind::by_name(path).is_some()
    }

    /// Prepares to read `paths`, `-` being standard input as plain text. The kind of a file follows
    /// from its name: `.txt`, `.jsonl` (`.ndjson`), both also with `.gz` or `.zst` behind,
    /// `.parquet`.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that is not there, [`Error::Input`] for a name that tells no kind,
    /// [`Error::Request`] for no path or standard input twice.
    pub fn open(paths: &[PathBuf], options: TextOptions) -> Result<Self> {
        if paths.is_empty() {
            return Err(Error::request("no text was named: give files, or - for standard input"));
        }
        if paths.iter().filter(|p| p.as_os_str() == STDIN).count() > 1 {
            return Err(Error::request("standard input (-) can be read once only"));
        }
        let mut size = Some(0);
        let mut files = VecDeque::with_capacity(paths.len());
        for path in paths {
            let kind = Kind::of(path)?;
            size = match (size, kind.size(path)?) {
                (Some(all), Some(one)) => Some(all + one),
                _ => None,
            };
            files.push_back((path.clone(), kind));
        }
        Ok(Self { files, current: None, options, read: Arc::default(), size })
    }

    /// Bytes of all files as they lie on the disk; `None` if one is a stream.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// How many of [`size`](Self::size) have been read, kept up to date while reading.
    pub fn read(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.read)
    }

    /// The next document; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read or unpacked; [`Error::Input`], naming file and line or row,
    /// for text that is not UTF-8 or too long, a line that is no JSON object, a field that is
    /// missing or no string, a column that is missing, nested or no string, a null.
    pub fn next_document(&mut self) -> Result<Option<String>> {
        loop {
            let document = match &mut self.current {
                None => {
                    let Some((path, kind)) = self.files.pop_front() else { return Ok(None) };
                    self.current = Some(self.begin(&path, kind)?);
                    continue;
                }
                Some(Current::Text(lines)) => text(lines, self.options.split)?,
                Some(Current::Json(lines)) => json(lines, &self.options.field)?,
                Some(Current::Rows(column)) => column.next_document()?,
            };
            match document {
                None => self.current = None,
                Some(document) if document.is_empty() => {}
                Some(document) => return Ok(Some(document)),
            }
        }
    }

    fn begin(&self, path: &Path, kind: Kind) -> Result<Current> {
        let longest = self.options.longest;
        Ok(match kind {
            Kind::Parquet => {
                Current::Rows(Box::new(Column::open(path, &self.options.field, longest, self.read())?))
            }
            Kind::Text(_) => Current::Text(Lines::counted(path, kind, longest, self.read())?),
            Kind::Json(_) => Current::Json(Lines::counted(path, kind, longest, self.read())?),
        })
    }
}

impl Iterator for Texts {
    type Item = Result<String>;

    /// [`Texts::next_document`]. After an error nothing more comes.
    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_document().transpose();
        if matches!(next, Some(Err(_))) {
            self.files.clear();
            self.current = None;
        }
        next
    }
}

/// The next document of a plain text.
fn text(lines: &mut Lines, split: Split) -> Result<Option<String>> {
    match split {
        Split::Document => lines.rest(),
        Split::Lines => loop {
            match lines.next_line()? {
                None => return Ok(None),
                Some(line) if line.trim().is_empty() => {}
                Some(line) => return Ok(Some(line.to_owned())),
            }
        },
        Split::BlankLines => {
            let longest = lines.longest();
            let mut document = String::new();
            let origin = loop {
                let Some(line) = lines.next_line()? else {
                    return Ok(Some(document).filter(|d| !d.is_empty()));
                };
                match (line.trim().is_empty(), document.is_empty()) {
                    (true, true) => {}
                    (true, false) => return Ok(Some(document)),
                    (false, first) => {
                        if document.len() + line.len() >= longest {
                            break lines.origin();
                        }
                        if !first {
                            document.push('\n');
                        }
                        document.push_str(line);
                    }
                }
            };
            Err(lines::too_long(origin, "the document", longest))
        }
    }
}

/// The next document of JSON lines; blank lines are none.
fn json(lines: &mut Lines, field: &str) -> Result<Option<String>> {
    let Some(mut object) = lines.next_object()? else { return Ok(None) };
    lines.string(&mut object, &[field]).map(Some)
}

/// Adds to the count of bytes read.
fn count(read: &AtomicU64, bytes: u64) {
    read.fetch_add(bytes, Ordering::Relaxed);
}

//! Where the results of a batch go: to a stream, or by a journal to a file.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cli::journal::Journal;
use crate::cli::terminal::println;
use crate::error::{Error, Result};

/// Where results go.
pub enum Sink {
    /// A stream, which cannot be taken back; with `waiting`, in the order of the input.
    Stream { to: Stream, waiting: Option<InOrder> },
    /// A journal that becomes a file.
    File(Journal),
}

/// What results flow to.
pub enum Stream {
    Stdout,
    /// A pipe, a terminal, `/dev/null`.
    Device(File, PathBuf),
}

impl Stream {
    fn line(&mut self, line: &str) -> Result<()> {
        match self {
            Stream::Stdout => println(line),
            Stream::Device(file, path) => {
                file.write_all(format!("{line}\n").as_bytes()).map_err(|e| Error::io("write", &*path, e))
            }
        }
    }
}

impl Sink {
    /// Standard output.
    pub fn stdout(unordered: bool) -> Self {
        Sink::Stream { to: Stream::Stdout, waiting: (!unordered).then(InOrder::default) }
    }

    /// What is at `path`: results flow into it at once.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written to.
    pub fn device(path: &Path, unordered: bool) -> Result<Self> {
        let file = OpenOptions::new().write(true).open(path).map_err(|e| Error::io("open", path, e))?;
        let to = Stream::Device(file, path.to_owned());
        Ok(Sink::Stream { to, waiting: (!unordered).then(InOrder::default) })
    }

    /// Takes the result of input line `index` (0-based; blank lines do not count).
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn put(&mut self, index: usize, value: &Value) -> Result<()> {
        match self {
            Sink::Stream { to, waiting: None } => to.line(&value.to_string()),
            Sink::Stream { to, waiting: Some(order) } => {
                order.put(index, value.to_string()).iter().try_for_each(|l| to.line(l))
            }
            Sink::File(journal) => journal.put(index, value),
        }
    }

    /// All results are in: the file appears.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(self) -> Result<()> {
        match self {
            Sink::Stream { .. } => Ok(()),
            Sink::File(journal) => journal.finish(),
        }
    }

    /// The work was stopped: what is done is kept. Returns where, if in a file; to a stream
    /// results that waited for an earlier line are written now.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn stop(self) -> Result<Option<PathBuf>> {
        match self {
            Sink::Stream { mut to, waiting } => {
                let rest = waiting.map(|w| w.waiting).unwrap_or_default();
                rest.values().try_for_each(|l| to.line(l)).map(|()| None)
            }
            Sink::File(journal) => {
                journal.sync()?;
                Ok(Some(journal.path().to_owned()))
            }
        }
    }
}

/// Puts results in the order of the input.
#[derive(Default)]
pub struct InOrder {
    next: usize,
    waiting: BTreeMap<usize, String>,
}

impl InOrder {
    /// Takes a result; returns those whose turn it is.
    fn put(&mut self, index: usize, line: String) -> Vec<String> {
        self.waiting.insert(index, line);
        let mut ready = Vec::new();
        while let Some(line) = self.waiting.remove(&self.next) {
            ready.push(line);
            self.next += 1;
        }
        ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_wait_for_their_turn() {
        let mut order = InOrder::default();
        assert!(order.put(2, "c".into()).is_empty());
        assert_eq!(order.put(0, "a".into()), ["a"]);
        assert_eq!(order.put(1, "b".into()), ["b", "c"]);
    }
}

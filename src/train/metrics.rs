//! The log of a run: `log.jsonl`, TensorBoard events and a plot.
//!
//! A line of the log is a step, or a validation:
//!
//! ```text
//! {"step":1,"examples":8,"tokens":1024,"loss":6.9,...}
//! {"step":100,"validation":{"nelbo":5.1,"unweighted":4.2,"standard_error":0.03}}
//! ```
//!
//! Steps are counted from 1: step N is the one after which a checkpoint is called `step-N`. A number that is not finite
//! is `null`.

use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use super::events::Events;
use super::files::RunFolder;
use super::plot;
use crate::error::{Error, Result};
use crate::io::AtomicFile;

/// Most bytes of a line of the log.
const MAX_LINE: u64 = 1 << 16;

/// What a step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepRecord {
    pub step: u64,
    /// Sequences of this step.
    pub examples: u64,
    /// Tokens of this step.
    pub tokens: u64,
    /// The paper's loss, whatever was minimised: nats per masked token, weighted 1/t.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Nats per masked token.
    #[serde(deserialize_with = "number")]
    pub unweighted: f64,
    /// Bound on the negative log-likelihood, nats per token.
    #[serde(deserialize_with = "number")]
    pub nelbo: f64,
    pub lr: f64,
    /// Norm of the gradient before clipping.
    #[serde(deserialize_with = "number")]
    pub grad_norm: f64,
    pub tokens_per_second: f64,
    /// No update: the gradient was not finite.
    pub skipped: bool,
}

/// What a validation found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validation {
    /// Bound on the negative log-likelihood, nats per token.
    #[serde(deserialize_with = "number")]
    pub nelbo: f64,
    /// Nats per masked token.
    #[serde(deserialize_with = "number")]
    pub unweighted: f64,
    /// Of `nelbo`, over the sequences.
    #[serde(deserialize_with = "number")]
    pub standard_error: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ValidationLine {
    step: u64,
    validation: Validation,
}

/// A number, or NaN for `null`.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// A line of a log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Entry {
    Step(StepRecord),
    Validation(u64, Validation),
}

impl Entry {
    /// The step it belongs to.
    pub fn step(&self) -> u64 {
        match self {
            Entry::Step(record) => record.step,
            Entry::Validation(step, _) => *step,
        }
    }

    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(line: &str) -> Result<Self, serde_json::Error> {
        // Which of the two it is, so that the error is about that one.
        if line.contains("\"validation\"") {
            serde_json::from_str(line)
                .map(|ValidationLine { step, validation }| Entry::Validation(step, validation))
        } else {
            serde_json::from_str(line).map(Entry::Step)
        }
    }
}

/// What a plot shows of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Step and training NELBO, on the scale of the validations; NaN where there was none.
    pub training: Vec<(u64, f64)>,
    pub validation: Vec<(u64, Validation)>,
}

impl History {
    pub fn add(&mut self, entry: &Entry) {
        match *entry {
            Entry::Step(record) => self.training.push((record.step, record.nelbo)),
            Entry::Validation(step, validation) => self.validation.push((step, validation)),
        }
    }
}

/// Reads the lines of a log up to step `last`, and calls `each` with the text and the meaning of one.
///
/// A last line that is cut short, as a killed process leaves it, counts as not there.
///
/// # Errors
/// [`Error::Input`] naming the line that is no line of a log; [`Error::Io`]; what `each` returns.
pub fn read_log(path: &Path, last: u64, mut each: impl FnMut(&str, Entry) -> Result<()>) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let (mut reader, mut line) = (BufReader::new(file), Vec::new());
    for number in 1_u64.. {
        line.clear();
        let mut part = std::io::Read::take(&mut reader, MAX_LINE);
        let read = part.read_until(b'\n', &mut line).map_err(|e| Error::io("read", path, e))?;
        let fail = |got: String| Error::Input {
            origin: format!("{}, line {number}", path.display()),
            what: "log".into(),
            expected: "a step or a validation as JSON".into(),
            got,
        };
        if line.pop() != Some(b'\n') {
            if read as u64 == MAX_LINE {
                return Err(fail(format!("more than {MAX_LINE} bytes")));
            }
            return Ok(());
        }
        let text = std::str::from_utf8(&line).map_err(|e| fail(e.to_string()))?;
        let entry = Entry::parse(text).map_err(|e| fail(e.to_string()))?;
        if entry.step() <= last {
            each(text, entry)?;
        }
    }
    Ok(())
}

/// `log.jsonl`, open at its end.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Begins an empty log.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|e| Error::io("create", path, e))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Goes on with a log behind step `last`: lines of later steps are removed. Gives what is left.
    ///
    /// # Errors
    /// As [`read_log`]; the log is then as it was.
    pub fn resume(path: &Path, last: u64) -> Result<(Self, History)> {
        let mut history = History::default();
        let fail = |e| Error::io("write", path, e);
        let mut kept = AtomicFile::create(path)?;
        if path.exists() {
            let mut out = std::io::BufWriter::new(&mut kept);
            read_log(path, last, |text, entry| {
                history.add(&entry);
                writeln!(out, "{text}").map_err(fail)
            })?;
            out.flush().map_err(fail)?;
        }
        kept.commit()?;
        let file = File::options().append(true).open(path).map_err(|e| Error::io("open", path, e))?;
        Ok((Self { path: path.to_path_buf(), file }, history))
    }

    /// Appends a line, which is in the file when this returns.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append(&mut self, entry: &Entry) -> Result<()> {
        let line = match *entry {
            Entry::Step(record) => serde_json::to_string(&record),
            Entry::Validation(step, validation) => {
                serde_json::to_string(&ValidationLine { step, validation })
            }
        };
        let line = line.map_err(Error::request)? + "\n";
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io("write", &self.path, e))
    }
}

/// All records of a run at once.
#[derive(Debug)]
pub struct Metrics {
    log: Log,
    events: Events,
    history: History,
    plot: PathBuf,
}

impl Metrics {
    /// Begins those of a new run.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(run: &RunFolder) -> Result<Self> {
        let (log, events) = (Log::create(&run.log())?, Events::create(&run.tensorboard(), None)?);
        Ok(Self { log, events, history: History::default(), plot: run.plot() })
    }

    /// Goes on behind step `last`; what was recorded of later steps is removed.
    ///
    /// # Errors
    /// As [`Log::resume`].
    pub fn resume(run: &RunFolder, last: u64) -> Result<Self> {
        let (log, history) = Log::resume(&run.log(), last)?;
        let events = Events::create(&run.tensorboard(), Some(last + 1))?;
        Ok(Self { log, events, history, plot: run.plot() })
    }

    /// Records a step.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn step(&mut self, record: &StepRecord) -> Result<()> {
        self.add(Entry::Step(*record))?;
        let r = record;
        self.events.scalars(
            r.step,
            &[
                ("train/loss", r.loss),
                ("train/unweighted", r.unweighted),
                ("train/nelbo", r.nelbo),
                ("train/lr", r.lr),
                ("train/grad_norm", r.grad_norm),
                ("train/tokens_per_second", r.tokens_per_second),
            ],
        )
    }

    /// Records a validation after step `step`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn validation(&mut self, step: u64, validation: &Validation) -> Result<()> {
        self.add(Entry::Validation(step, *validation))?;
        let v = validation;
        self.events.scalars(
            step,
            &[
                ("validation/nelbo", v.nelbo),
                ("validation/unweighted", v.unweighted),
                ("validation/standard_error", v.standard_error),
            ],
        )
    }

    fn add(&mut self, entry: Entry) -> Result<()> {
        self.log.append(&entry)?;
        self.history.add(&entry);
        Ok(())
    }

    /// What was recorded so far.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Writes `loss.svg`.
    ///
    /// # Errors
    /// [`Error::Io`]; an older plot is then as it was.
    pub fn draw(&self) -> Result<()> {
        plot::write(&self.history, &self.plot)
    }
}

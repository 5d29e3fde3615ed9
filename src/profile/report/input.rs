//! What a report is made of: files of JSON lines and folders of training runs, told apart by what is in them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;

use serde_json::{Map, Value};

use super::numbers::short;
use crate::error::{Error, Result};
use crate::train::metrics::{Entry, History};

/// Most bytes of a line.
const MAX_LINE: u64 = 4 << 20;
/// Most lines of a run that are told to be unusable.
const MAX_FAULTS: usize = 5;

/// What a line measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Generate,
    Step,
    Kernel,
    Train,
    Serve,
    Ceiling,
    /// An operation, a kernel or the whole of a profile.
    Profile,
    Eval,
    /// `lacuna flops --json`.
    Flops,
}

impl Kind {
    pub const ALL: [Kind; 9] = [
        Self::Generate,
        Self::Step,
        Self::Kernel,
        Self::Train,
        Self::Serve,
        Self::Ceiling,
        Self::Profile,
        Self::Eval,
        Self::Flops,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Generate => "generations",
            Self::Step => "denoising steps",
            Self::Kernel => "kernels",
            Self::Train => "training steps",
            Self::Serve => "simulated serving",
            Self::Ceiling => "ceilings",
            Self::Profile => "profile",
            Self::Eval => "evaluations",
            Self::Flops => "counts of operations",
        }
    }
}

/// A measurement.
#[derive(Clone, Debug)]
pub struct Line {
    pub kind: Kind,
    fields: Map<String, Value>,
}

impl Line {
    /// The value of a field; a dot goes into an object. `null` counts as absent.
    pub fn get(&self, path: &str) -> Option<&Value> {
        let mut parts = path.split('.');
        let first = self.fields.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(part)).filter(|v| !v.is_null())
    }

    /// A finite number.
    pub fn number(&self, path: &str) -> Option<f64> {
        self.get(path)?.as_f64().filter(|x| x.is_finite())
    }

    /// A number above 0.
    pub fn positive(&self, path: &str) -> Option<f64> {
        self.number(path).filter(|x| *x > 0.0)
    }

    pub fn text(&self, path: &str) -> Option<&str> {
        self.get(path)?.as_str().filter(|s| !s.is_empty())
    }

    /// A field as words, whatever it is.
    pub fn words(&self, path: &str) -> Option<String> {
        self.get(path).map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
    }

    /// The network it is about.
    pub fn network(&self) -> Option<&str> {
        self.text("model").or_else(|| self.text("shape").filter(|_| self.kind != Kind::Kernel))
    }

    /// Median time of a run.
    pub fn seconds(&self) -> Option<f64> {
        self.positive("median_s")
            .or_else(|| self.positive("median_us").map(|us| us * 1e-6))
            .filter(|s| *s > 0.0)
    }

    /// Operations a second: as told, or by the median time; of a profile as told only.
    pub fn flops_per_s(&self) -> Option<f64> {
        let by_time = || Some(self.positive("flops")? / self.seconds()?);
        self.positive("flops_per_s")
            .or_else(|| by_time().filter(|x| x.is_finite() && self.kind != Kind::Profile))
    }

    /// Bytes a second, as [`flops_per_s`](Self::flops_per_s).
    pub fn bytes_per_s(&self) -> Option<f64> {
        let by_time = || Some(self.positive("bytes")? / self.seconds()?);
        self.positive("bytes_per_s")
            .or_else(|| by_time().filter(|x| x.is_finite() && self.kind != Kind::Profile))
    }

    /// Operations a byte.
    pub fn intensity(&self) -> Option<f64> {
        let made = || Some(self.positive("flops")? / self.positive("bytes")?).filter(|x| x.is_finite());
        self.positive("intensity").or_else(made)
    }

    /// Useful tokens a second.
    pub fn tokens_per_s(&self) -> Option<f64> {
        let made = || Some(self.positive("tokens")? / self.seconds()?).filter(|x| x.is_finite());
        self.positive("tokens_per_s").or_else(made)
    }

    /// Whether it is a ceiling.
    pub fn is_ceiling(&self) -> bool {
        self.kind == Kind::Ceiling || self.text("profile") == Some("ceiling")
    }
}

/// What a file or folder holds.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// The name of the file or folder, apart from those of the others.
    pub label: String,
    pub lines: Vec<Line>,
    pub training: Option<Training>,
    /// Lines that could not be used, and why: the first few.
    pub faults: Vec<String>,
    /// All of them.
    pub unusable: usize,
}

/// The log of a training run.
#[derive(Clone, Debug, Default)]
pub struct Training {
    pub history: History,
    /// Tokens a second, of each step.
    pub speed: Vec<f64>,
}

impl Run {
    /// Reads a file, the log in the folder of a training run, or the results in that of an evaluation.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Input`] naming the first line of a file without a usable one.
    pub fn read(path: &Path) -> Result<Self> {
        let mut file_path = path.to_path_buf();
        if path.is_dir() {
            let there =
                ["results.jsonl", "log.jsonl"].map(|name| path.join(name)).into_iter().find(|p| p.exists());
            file_path = there.ok_or_else(|| Error::Input {
                origin: path.display().to_string(),
                what: "folder".into(),
                expected:
                    "that of a training run, with a log.jsonl, or of an evaluation, with a results.jsonl"
                        .into(),
                got: "neither file in it".into(),
            })?;
        }
        let file = File::open(&file_path).map_err(|e| Error::io("open", &file_path, e))?;
        let name = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let name = name.file_name().map_or_else(|| path.to_string_lossy(), |n| n.to_string_lossy());
        let mut run = Run { label: short(&name, 60), ..Self::default() };
        let mut first = None;
        let (mut reader, mut line) = (BufReader::new(file), Vec::new());
        for number in 1_u64.. {
            line.clear();
            let mut part = (&mut reader).take(MAX_LINE);
            let read = part.read_until(b'\n', &mut line).map_err(|e| Error::io("read", &file_path, e))?;
            if read == 0 {
                break;
            }
            let fault = if read as u64 == MAX_LINE {
                reader.skip_until(b'\n').map_err(|e| Error::io("read", &file_path, e))?;
                Some(format!("more than {MAX_LINE} bytes"))
            } else {
                match std::str::from_utf8(&line) {
                    Ok(text) if text.trim().is_empty() => None,
                    Ok(text) => run.add(text.trim().trim_start_matches('\u{feff}')).err(),
                    Err(e) => Some(e.to_string()),
                }
            };
            if let Some(fault) = fault {
                run.unusable += 1;
                if run.faults.len() < MAX_FAULTS {
                    run.faults.push(format!("line {number}: {fault}"));
                }
                first.get_or_insert((number, fault));
            }
        }
        if run.lines.is_empty() && run.training.is_none() {
            let (number, got) = first.unwrap_or((1, "nothing".into()));
            return Err(Error::Input {
                origin: format!("{}, line {number}", file_path.display()),
                what: "measurement".into(),
                expected: "a JSON object with \"bench\", \"profile\", \"eval\" or \"account\", or a line of a training log"
                    .into(),
                got,
            });
        }
        Ok(run)
    }

    /// Takes a line in, or says what is wrong with it.
    fn add(&mut self, text: &str) -> Result<(), String> {
        let value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let Value::Object(fields) = value else { return Err(format!("no object: {}", short(text, 40))) };
        if let Some(schema) = fields.get("schema").filter(|s| s.as_u64() != Some(1)) {
            return Err(format!("schema {schema}; this program reads schema 1"));
        }
        let word = |key: &str| fields.get(key).and_then(Value::as_str);
        let kind = match (word("bench"), word("profile"), word("eval"), word("account")) {
            (Some("generate"), ..) => Kind::Generate,
            (Some("step"), ..) => Kind::Step,
            (Some("kernel"), ..) => Kind::Kernel,
            (Some("train"), ..) => Kind::Train,
            (Some("serve-sim"), ..) => Kind::Serve,
            (Some("ceiling"), ..) => Kind::Ceiling,
            (Some(other), ..) => return Err(format!("\"bench\": \"{}\" is not known", short(other, 40))),
            (None, Some("op" | "kernel" | "total" | "ceiling"), ..) => Kind::Profile,
            (None, Some(other), ..) => {
                return Err(format!("\"profile\": \"{}\" is not known", short(other, 40)));
            }
            (None, None, Some(_), _) => Kind::Eval,
            (None, None, None, Some(_)) => Kind::Flops,
            (None, None, None, None) => return self.add_training(text, &fields),
        };
        self.lines.push(Line { kind, fields });
        Ok(())
    }

    fn add_training(&mut self, text: &str, fields: &Map<String, Value>) -> Result<(), String> {
        if !fields.contains_key("step") {
            let keys: Vec<&str> = fields.keys().map(String::as_str).take(4).collect();
            return Err(format!("an object of no known kind, with {}", short(&keys.join(", "), 60)));
        }
        let entry = Entry::parse(text).map_err(|e| e.to_string())?;
        let training = self.training.get_or_insert_default();
        if let Entry::Step(record) = entry {
            training.speed.push(record.tokens_per_second);
        }
        training.history.add(&entry);
        Ok(())
    }

    /// How many lines of each kind there are.
    pub fn counts(&self) -> BTreeMap<Kind, usize> {
        let mut counts = BTreeMap::new();
        for line in &self.lines {
            *counts.entry(line.kind).or_insert(0) += 1;
        }
        counts
    }

    /// Different values of a field, in the order in which they come.
    pub fn values(&self, path: &str) -> Vec<String> {
        let mut seen = Vec::new();
        for value in self.lines.iter().filter_map(|line| line.words(path)) {
            if !seen.contains(&value) && seen.len() < 8 {
                seen.push(value);
            }
        }
        seen
    }
}

/// Reads runs, whose labels are then apart.
///
/// # Errors
/// [`Error::Request`] without any; those of [`Run::read`].
pub fn read<P: AsRef<Path>>(paths: &[P]) -> Result<Vec<Run>> {
    if paths.is_empty() {
        return Err(Error::request("a report is made of runs: name a file or a folder at least"));
    }
    let mut runs: Vec<Run> = paths.iter().map(|p| Run::read(p.as_ref())).collect::<Result<_>>()?;
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for run in &mut runs {
        let times = seen.entry(run.label.clone()).or_insert(0);
        *times += 1;
        if *times > 1 {
            run.label = format!("{} ({times})", run.label);
        }
    }
    Ok(runs)
}

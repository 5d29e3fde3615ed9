//! What a checkpoint holds beside the model: `optimizer.safetensors` and `trainer.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::files::write_whole;
use crate::backend::MomentFormat;
use crate::element::{Dtype, StoredTensor};
use crate::error::{Error, Result};
use crate::io::Checkpoint;
use crate::io::write_safetensors::{SafetensorsWriter, TensorFormat, TensorSpec};

/// The optimiser's file.
pub const OPTIMIZER: &str = "optimizer.safetensors";
/// The trainer's file.
pub const TRAINER: &str = "trainer.json";
/// The form of both.
const FORMAT: u64 = 1;
/// Most bytes of `trainer.json`.
const MAX_TRAINER: u64 = 16 << 20;
/// What the moments of a parameter are padded to.
const WORD: usize = 4;

/// What the optimiser keeps of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptimizerEntry {
    pub name: String,
    pub shape: Vec<usize>,
    pub moments: MomentFormat,
    /// Whether there is a master copy.
    pub master: bool,
}

impl OptimizerEntry {
    /// Its tensors: `m.NAME`, `v.NAME` and, in f32, `master.NAME`. In this order each is aligned to its size, the two
    /// moments together being a whole number of words. A moment in 8 bits is bytes: the codes, the scales in f32, zeros up to
    /// a whole number of words.
    fn tensors(&self) -> impl Iterator<Item = TensorSpec<TensorFormat>> {
        let master = Some(("master", Dtype::F32.into(), self.shape.clone())).filter(|_| self.master);
        let (format, shape) = match self.moments {
            MomentFormat::F32 => (Dtype::F32.into(), self.shape.clone()),
            MomentFormat::Bf16 => (Dtype::Bf16.into(), self.shape.clone()),
            MomentFormat::Q8 => (TensorFormat::Bytes, vec![self.moment_bytes().next_multiple_of(WORD)]),
        };
        let parts = [Some(("m", format, shape.clone())), Some(("v", format, shape)), master];
        parts.into_iter().flatten().map(|(part, format, shape)| TensorSpec {
            name: format!("{part}.{}", self.name),
            dtype: format,
            shape,
        })
    }

    /// Bytes of either moment, as [`Optimise`](crate::backend::Optimise) reads them.
    fn moment_bytes(&self) -> usize {
        self.moments.bytes(self.shape.iter().fold(1, |n: usize, &d| n.saturating_mul(d)))
    }
}

/// The numbers of an [`OptimizerEntry`], as [`Optimise`](crate::backend::Optimise) reads them.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerNumbers {
    /// Little-endian.
    pub moments: [Vec<u8>; 2],
    pub master: Option<Vec<f32>>,
}

/// Writes `optimizer.safetensors` into `folder`. The numbers of each entry are asked for when it is their turn, and
/// let go of before the next.
///
/// # Errors
/// [`Error::Io`]; [`Error::Checkpoint`] when numbers do not fit their entry; what `numbers` returns.
pub fn write_optimizer(
    folder: &Path,
    entries: &[OptimizerEntry],
    mut numbers: impl FnMut(usize) -> Result<OptimizerNumbers>,
) -> Result<()> {
    let path = folder.join(OPTIMIZER);
    let file = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
    let specs: Vec<_> = entries.iter().flat_map(OptimizerEntry::tensors).collect();
    let mut writer = SafetensorsWriter::new(BufWriter::new(file), &path, &specs)?;
    for (i, entry) in entries.iter().enumerate() {
        let numbers = numbers(i)?;
        for (part, bytes) in ["m", "v"].into_iter().zip(&numbers.moments) {
            let name = format!("{part}.{}", entry.name);
            writer.write(&name, bytes)?;
            let padding = bytes.len().next_multiple_of(WORD) - bytes.len();
            if entry.moments == MomentFormat::Q8 && padding > 0 {
                writer.write(&name, &[0; WORD][..padding])?;
            }
        }
        for part in numbers.master.iter().flat_map(|master| master.chunks(1 << 16)) {
            let bytes: Vec<u8> = part.iter().flat_map(|x| x.to_le_bytes()).collect();
            writer.write(&format!("master.{}", entry.name), &bytes)?;
        }
    }
    writer.finish().map(drop)
}

/// An `optimizer.safetensors`, mapped.
#[derive(Debug)]
pub struct OptimizerFile {
    checkpoint: Checkpoint,
    path: PathBuf,
}

impl OptimizerFile {
    /// Opens the file in `folder`; it holds the tensors of `entries` and no others.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Checkpoint`] naming the tensor that is missing, left over, or of another shape or
    /// format.
    pub fn open(folder: &Path, entries: &[OptimizerEntry]) -> Result<Self> {
        let path = folder.join(OPTIMIZER);
        let checkpoint = Checkpoint::open(&path)?;
        let fail = |name: &str, expected: String, got: String| Error::Checkpoint {
            path: path.clone(),
            what: format!("tensor {name}"),
            expected,
            got,
        };
        let mut wanted = BTreeSet::new();
        for spec in entries.iter().flat_map(OptimizerEntry::tensors) {
            let other = checkpoint.other(&spec.name).filter(|_| spec.dtype == TensorFormat::Bytes);
            let (fits, got) = match other {
                Some(other) => {
                    let fits = (other.dtype.as_str(), &other.shape) == (spec.dtype.name(), &spec.shape);
                    (fits, format!("{} {:?}", other.dtype, other.shape))
                }
                None => {
                    let tensor = checkpoint.require(&spec.name)?;
                    let fits = (TensorFormat::from(tensor.dtype()), tensor.shape())
                        == (spec.dtype, spec.shape.as_slice());
                    (fits, format!("{tensor:?}"))
                }
            };
            if !fits {
                let expected = format!("{} {:?}", spec.dtype.name(), spec.shape);
                return Err(fail(&spec.name, expected, got));
            }
            wanted.insert(spec.name);
        }
        let names = checkpoint.iter().map(|(name, _)| name).chain(checkpoint.others().map(|(name, _)| name));
        if let Some(name) = names.into_iter().find(|name| !wanted.contains(*name)) {
            return Err(fail(
                name,
                "a tensor of a parameter that is trained".into(),
                "one of no such".into(),
            ));
        }
        Ok(Self { checkpoint, path })
    }

    /// The moments of an entry: the bytes in the map.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when the file was opened for others.
    pub fn moments(&self, entry: &OptimizerEntry) -> Result<[&[u8]; 2]> {
        let part = |part: &str| {
            let bytes = match self.checkpoint.other(&format!("{part}.{}", entry.name)) {
                Some(other) if entry.moments == MomentFormat::Q8 => other.data(),
                _ => self.tensor(part, entry)?.bytes(),
            };
            Ok::<_, Error>(&bytes[..entry.moment_bytes().min(bytes.len())])
        };
        Ok([part("m")?, part("v")?])
    }

    /// The master copy of an entry that has one.
    ///
    /// # Errors
    /// As [`moments`](Self::moments).
    pub fn master(&self, entry: &OptimizerEntry) -> Result<Option<Vec<f32>>> {
        if !entry.master {
            return Ok(None);
        }
        Ok(Some(self.tensor("master", entry)?.to_vec()))
    }

    fn tensor(&self, part: &str, entry: &OptimizerEntry) -> Result<&StoredTensor> {
        self.checkpoint.require(&format!("{part}.{}", entry.name))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// `trainer.json`: where a run stands.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainerState {
    /// Steps done.
    pub step: u64,
    /// Updates done: the steps but for those skipped.
    pub updates: u64,
    /// Steps without an update.
    pub skipped: u64,
    pub seed: u64,
    /// Where the data stand.
    pub cursor: Value,
    /// Numbers by name that go on with the run, finite.
    pub losses: BTreeMap<String, f64>,
}

impl TrainerState {
    /// Writes `trainer.json` into `folder`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::NonFinite`] for a loss that is not finite, which JSON cannot hold.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(TRAINER);
        if let Some((name, x)) = self.losses.iter().find(|(_, x)| !x.is_finite()) {
            return Err(Error::NonFinite {
                place: format!("{}: losses.{name}", path.display()),
                found: x.to_string(),
                hint: "save before the run diverges".into(),
            });
        }
        let value = json!({
            "format": FORMAT,
            "lacuna": env!("CARGO_PKG_VERSION"),
            "step": self.step,
            "updates": self.updates,
            "skipped": self.skipped,
            "seed": self.seed,
            "cursor": self.cursor,
            // As text, which is read back exactly; JSON numbers are read to within a unit in the last place.
            "losses": self.losses.iter().map(|(name, x)| (name, x.to_string())).collect::<BTreeMap<_, _>>(),
        });
        let text = serde_json::to_string_pretty(&value).map_err(Error::request)? + "\n";
        write_whole(&path, text.as_bytes())
    }

    /// Reads `trainer.json` from `folder`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Config`] naming the field that is missing, unknown, or holds something else.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(TRAINER);
        let bytes = crate::io::read_limited(&path, MAX_TRAINER)?;
        let fields = match serde_json::from_slice(&bytes) {
            Ok(Value::Object(map)) => Ok(map),
            Ok(other) => Err(describe(&other)),
            Err(e) => Err(e.to_string()),
        };
        let map = fields.map_err(|got| config(&path, "file", "a JSON object", got))?;
        let mut fields = Fields { path: &path, map };
        let format = fields.whole("format")?;
        if format != FORMAT {
            let expected = format!("{FORMAT}, the form that this version writes");
            return Err(config(&path, "format", &expected, format.to_string()));
        }
        let version = fields.take("lacuna", "a version")?;
        if !version.is_string() {
            return Err(config(&path, "lacuna", "a version", describe(&version)));
        }
        let state = TrainerState {
            step: fields.whole("step")?,
            updates: fields.whole("updates")?,
            skipped: fields.whole("skipped")?,
            seed: fields.whole("seed")?,
            cursor: fields.take("cursor", "where the data stand")?,
            losses: fields.numbers("losses")?,
        };
        if let Some((field, value)) = fields.map.iter().next() {
            return Err(config(&path, field, "no such field", describe(value)));
        }
        if state.updates.checked_add(state.skipped) != Some(state.step) {
            let expected = format!("step - skipped, of {} - {}", state.step, state.skipped);
            return Err(config(&path, "updates", &expected, state.updates.to_string()));
        }
        Ok(state)
    }
}

fn config(path: &Path, field: &str, expected: &str, got: String) -> Error {
    Error::Config { path: path.to_path_buf(), field: field.into(), expected: expected.into(), got }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Array(_) => "an array".into(),
        Value::Object(_) => "an object".into(),
        other => other.to_string().chars().take(80).collect(),
    }
}

/// The fields of a file that have not been read.
struct Fields<'a> {
    path: &'a Path,
    map: Map<String, Value>,
}

impl Fields<'_> {
    fn take(&mut self, field: &str, expected: &str) -> Result<Value> {
        self.map.remove(field).ok_or_else(|| config(self.path, field, expected, "nothing".into()))
    }

    fn whole(&mut self, field: &str) -> Result<u64> {
        const EXPECTED: &str = "a whole number from 0 to 2^64 - 1";
        let value = self.take(field, EXPECTED)?;
        value.as_u64().ok_or_else(|| config(self.path, field, EXPECTED, describe(&value)))
    }

    fn numbers(&mut self, field: &str) -> Result<BTreeMap<String, f64>> {
        const EXPECTED: &str = "an object of numbers as text";
        let map = match self.take(field, EXPECTED)? {
            Value::Object(map) => map,
            other => return Err(config(self.path, field, EXPECTED, describe(&other))),
        };
        let number = |value: &Value| value.as_str()?.parse().ok().filter(|x: &f64| x.is_finite());
        map.into_iter()
            .map(|(name, value)| {
                number(&value).map(|x| (name.clone(), x)).ok_or_else(|| {
                    let field = format!("{field}.{name}");
                    config(self.path, &field, "a finite number as text", describe(&value))
                })
            })
            .collect()
    }
}

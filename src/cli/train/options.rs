//! What the four training commands can be told: on the command line, in a TOML file, or by a run that is resumed.
//!
//! All three are tables of the same keys, the flags' names. Defaults are overlaid by the file, the file by the flags;
//! the result is saved with the run. A resumed run starts from its saved table instead, and a flag that says something
//! else there is an error that shows both, except for the keys in [`FREE`].

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::error::{Error, Result};

/// Which recipe is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    Adapt,
    Pretrain,
    Sft,
    TrainAr,
}

impl Command {
    pub const fn name(self) -> &'static str {
        match self {
            Command::Adapt => "adapt",
            Command::Pretrain => "pretrain",
            Command::Sft => "sft",
            Command::TrainAr => "train-ar",
        }
    }
}

/// Everything, resolved.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Options {
    pub command: Command,
    #[serde(default)]
    pub model: Option<String>,
    #[serde(default)]
    pub data: Vec<String>,
    #[serde(default)]
    pub validation: Option<PathBuf>,
    #[serde(default)]
    pub steps: Option<u64>,
    pub batch: usize,
    pub accumulate: usize,
    #[serde(default)]
    pub length: Option<usize>,
    #[serde(default)]
    pub lr: Option<f64>,
    pub schedule: String,
    #[serde(default)]
    pub warmup: Option<u64>,
    pub final_lr: f64,
    pub weight_decay: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub clip: f64,
    pub moments: String,
    pub weights: String,
    pub recompute: bool,
    pub seed: u64,
    pub document_attention: bool,
    #[serde(default)]
    pub validate_every: Option<u64>,
    pub validation_sequences: usize,
    pub validation_draws: usize,
    #[serde(default)]
    pub save_every: Option<u64>,
    pub keep_last: usize,
    pub max_skipped: u64,
    #[serde(default)]
    pub mask_id: Option<u32>,
    #[serde(default)]
    pub add_mask_token: bool,
    #[serde(default)]
    pub no_shift: bool,
    pub time_weight: String,
    pub loss_norm: String,
    pub mask_rule: String,
    pub focal_alpha: f64,
    pub focal_gamma: f64,
    #[serde(default)]
    pub anneal_steps: Option<u64>,
    #[serde(default)]
    pub no_anneal: bool,
    #[serde(default)]
    pub prompt_field: Option<String>,
    #[serde(default)]
    pub answer_field: Option<String>,
    pub pad: String,
    pub too_long: String,
    pub lora_rank: usize,
    #[serde(default)]
    pub lora_alpha: Option<f64>,
    #[serde(default)]
    pub lora_targets: Vec<String>,
    #[serde(default)]
    pub freeze_embedding: bool,
    #[serde(default)]
    pub from_scratch: bool,
}

const DEFAULTS: &str = r#"
batch = 8
accumulate = 1
schedule = "cosine"
final-lr = 0.1
weight-decay = 0.1
beta1 = 0.9
beta2 = 0.95
eps = 1e-8
clip = 1.0
moments = "f32"
weights = "f32"
recompute = false
seed = 0
document-attention = false
validation-sequences = 64
validation-draws = 4
keep-last = 2
max-skipped = 10
time-weight = "elbo"
loss-norm = "masked-tokens"
mask-rule = "explicit"
focal-alpha = 1.0
focal-gamma = 0.0
pad = "eos"
too-long = "error"
lora-rank = 0
"#;

/// Keys that a resumed run may be given anew: they do not change what is learnt.
pub const FREE: [&str; 5] = ["save-every", "keep-last", "max-skipped", "recompute", "validate-every"];

/// The defaults of a command.
///
/// # Errors
/// None for the defaults as they are.
pub fn defaults(command: Command) -> Result<Table> {
    let mut table: Table = DEFAULTS.parse().map_err(|e| Error::request(format!("defaults: {e}")))?;
    table.insert("command".into(), Value::String(command.name().into()));
    Ok(table)
}

/// The keys that were typed.
///
/// # Errors
/// [`Error::Request`] for a number that TOML cannot hold.
pub fn typed(groups: &[&dyn Typed]) -> Result<Table> {
    let mut all = Table::new();
    for group in groups {
        all.extend(group.table()?);
    }
    Ok(all)
}

/// A group of flags as a table.
pub trait Typed {
    fn table(&self) -> Result<Table>;
}

impl<T: Serialize> Typed for T {
    fn table(&self) -> Result<Table> {
        Table::try_from(self).map_err(|e| Error::request(format!("a flag cannot be written as TOML: {e}")))
    }
}

/// Reads a TOML file of options.
///
/// # Errors
/// [`Error::Io`], or [`Error::Input`] for what is no table of options.
pub fn file(path: &Path) -> Result<Table> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    text.parse().map_err(|e: toml::de::Error| Error::Input {
        origin: path.display().to_string(),
        what: "options".into(),
        expected: "a TOML table of flag names, such as batch = 8".into(),
        got: e.to_string().lines().collect::<Vec<_>>().join(" "),
    })
}

/// The options that a table holds; `origin` is named in errors.
///
/// # Errors
/// [`Error::Input`] naming a key that is unknown or has the wrong type.
pub fn options(table: &Table, origin: &str) -> Result<Options> {
    Options::deserialize(table.clone()).map_err(|e| Error::Input {
        origin: origin.to_owned(),
        what: "options".into(),
        expected: "the flags' names with values of their kind".into(),
        got: e.to_string().lines().collect::<Vec<_>>().join(" "),
    })
}

/// What `typed` says otherwise than the table of the run that is resumed.
pub fn differences(saved: &Table, typed: &Table) -> Vec<String> {
    let differ = |(key, value): (&String, &Value)| {
        let same = saved.get(key).is_some_and(|old| same(old, value));
        let old = saved.get(key).map_or("not set".to_owned(), Value::to_string);
        (!same && !FREE.contains(&key.as_str())).then(|| format!("{key}: the run has {old}, now {value}"))
    };
    typed.iter().filter_map(differ).collect()
}

/// Whether two values are the same, 1 and 1.0 included.
fn same(a: &Value, b: &Value) -> bool {
    let number = |v: &Value| v.as_float().or(v.as_integer().map(|i| i as f64));
    a == b || matches!((number(a), number(b)), (Some(a), Some(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::super::flags::CommonArgs;
    use super::*;

    #[test]
    fn flags_overlay_defaults() {
        let common = CommonArgs { batch: Some(3), lr: Some(1.0), ..CommonArgs::default() };
        let mut table = defaults(Command::Adapt).unwrap();
        table.extend(typed(&[&common]).unwrap());
        let options = options(&table, "flags").unwrap();
        assert_eq!((options.batch, options.accumulate, options.lr), (3, 1, Some(1.0)));
    }

    #[test]
    fn an_unknown_key_is_named() {
        let mut table = defaults(Command::Adapt).unwrap();
        table.insert("bacth".into(), Value::Integer(3));
        assert!(options(&table, "a.toml").unwrap_err().to_string().contains("bacth"));
    }

    #[test]
    fn a_difference_shows_both_sides_and_free_keys_do_not_count() {
        let saved: Table = "lr = 1\nsave-every = 5\nseed = 1".parse().unwrap();
        let typed: Table = "lr = 1.0\nsave-every = 9\nseed = 2".parse().unwrap();
        assert_eq!(differences(&saved, &typed), ["seed: the run has 1, now 2"]);
    }
}

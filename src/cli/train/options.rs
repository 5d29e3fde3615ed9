//! What the four training commands can be told: on the command line, in a TOML file, or by a run that is resumed.
//!
//! All three are tables of the same keys, the flags' names. Defaults are overlaid by the file, the file by the flags;
//! the result is saved with the run. A resumed run starts from its saved table instead, and a flag that says something
//! else there is an error that shows both, except for the keys in [`FREE`].

use std::path::{Path, PathBuf};

use clap::Args;
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

/// Flags of every training command.
#[derive(Args, Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CommonArgs {
    /// Model folder or Hugging Face id to start from [default: the bundled model]
    #[arg(long, short, value_name = "DIR|ID", env = "LACUNA_MODEL", help_heading = "What")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,

    /// Training data; FILE=WEIGHT to mix several (--data a.tokens=3 --data b.tokens=1)
    #[arg(long, value_name = "FILE[=WEIGHT]", help_heading = "What")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<String>,

    /// Data that is not trained on, to measure progress by
    #[arg(long, value_name = "FILE", help_heading = "What")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<PathBuf>,

    /// Optimiser steps in all
    #[arg(long, value_name = "N", help_heading = "How long")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,

    /// Sequences of a forward pass [default: 8]
    #[arg(long, value_name = "N", help_heading = "How long")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,

    /// Passes whose gradients are averaged for a step [default: 1]
    #[arg(long, value_name = "N", help_heading = "How long")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accumulate: Option<usize>,

    /// Tokens of a sequence [default: the model's positions, at most 1024]
    #[arg(long, value_name = "N", help_heading = "How long")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<usize>,

    /// Peak learning rate [default: 3e-4; with --lora-rank 1e-3]
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Optimiser")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,

    /// How the learning rate falls: cosine, linear or constant [default: cosine]
    #[arg(long, value_name = "KIND", help_heading = "Optimiser")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,

    /// Steps of rising learning rate at the start [default: a twentieth of --steps]
    #[arg(long, value_name = "N", help_heading = "Optimiser")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup: Option<u64>,

    /// Learning rate at the end, as a share of the peak [default: 0.1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Optimiser")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_lr: Option<f64>,

    /// Decoupled weight decay of matrices; norms and biases have none [default: 0.1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Optimiser")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,

    /// [default: 0.9]
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Optimiser")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta1: Option<f64>,

    /// [default: 0.95]
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Optimiser")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta2: Option<f64>,

    /// [default: 1e-8]
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Optimiser")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eps: Option<f64>,

    /// Longest gradient, over all weights together; 0 does not clip [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Optimiser")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,

    /// Moments in f32 (8 bytes a weight), or in bf16, rounded stochastically (4) [default: f32]
    #[arg(long, value_name = "FORMAT", help_heading = "Memory")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moments: Option<String>,

    /// Weights in f32, or in bf16 beside an f32 master copy [default: f32]
    #[arg(long, value_name = "FORMAT", help_heading = "Memory")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,

    /// Keep the input of each layer only and compute its inside again on the way back
    #[arg(long, help_heading = "Memory")]
    #[serde(skip_serializing_if = "is_false")]
    pub recompute: bool,

    /// Decides data order, times, masks and initial weights [default: 0]
    #[arg(long, value_name = "N", help_heading = "How long")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,

    /// Documents that share a sequence do not see one another
    #[arg(long, help_heading = "What")]
    #[serde(skip_serializing_if = "is_false")]
    pub document_attention: bool,

    /// Measure on --validation every N steps [default: a tenth of --steps]
    #[arg(long, value_name = "N", help_heading = "Measuring")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validate_every: Option<u64>,

    /// Sequences to measure on, spread over the file [default: 64]
    #[arg(long, value_name = "N", help_heading = "Measuring")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_sequences: Option<usize>,

    /// Times and masks drawn for each of them, the same at every measurement [default: 4]
    #[arg(long, value_name = "N", help_heading = "Measuring")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_draws: Option<usize>,

    /// Save a checkpoint every N steps [default: a tenth of --steps]
    #[arg(long, value_name = "N", help_heading = "Saving")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub save_every: Option<u64>,

    /// Checkpoints to keep, besides the best on --validation [default: 2]
    #[arg(long, value_name = "N", help_heading = "Saving")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_last: Option<usize>,

    /// Stop after so many steps in a row whose loss or gradient is not finite [default: 10]
    #[arg(long, value_name = "N", help_heading = "Measuring")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_skipped: Option<u64>,
}

/// Flags of commands that train on masked tokens.
#[derive(Args, Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiffusionArgs {
    /// The token that masks [default: the model's]
    #[arg(long, value_name = "N", help_heading = "Diffusion", conflicts_with = "add_mask_token")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_id: Option<u32>,

    /// Mask with a new token: the embedding grows by a row, the mean of the others
    #[arg(long, help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "is_false")]
    pub add_mask_token: bool,

    /// Logits of row i predict position i, not i + 1
    #[arg(long, help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "is_false")]
    pub no_shift: bool,

    /// How a time t counts: elbo (1/t), linear (1 - t) or constant [default: elbo]
    #[arg(long, value_name = "KIND", help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_weight: Option<String>,

    /// What the loss is divided by: masked-tokens (the paper's) or maskable-tokens (the bound's) [default: masked-tokens]
    #[arg(long, value_name = "KIND", help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_norm: Option<String>,

    /// What counts as masked: explicit (what was hidden), or by-id (whatever is the mask id) [default: explicit]
    #[arg(long, value_name = "KIND", help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_rule: Option<String>,

    /// Weigh tokens by how badly they are predicted: loss u counts alpha (1 - e^-u)^gamma u [default: 1]
    #[arg(long, value_name = "ALPHA", allow_negative_numbers = true, help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub focal_alpha: Option<f64>,

    /// [default: 0, which weighs all the same]
    #[arg(long, value_name = "GAMMA", allow_negative_numbers = true, help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub focal_gamma: Option<f64>,
}

/// Flags of adaptation.
#[derive(Args, Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct AnnealArgs {
    /// Steps over which attention goes from causal to bidirectional [default: a fifth of --steps]
    #[arg(long, value_name = "N", help_heading = "Diffusion", conflicts_with = "no_anneal")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anneal_steps: Option<u64>,

    /// Bidirectional attention from the first step on
    #[arg(long, help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "is_false")]
    pub no_anneal: bool,
}

/// Flags of fine-tuning.
#[derive(Args, Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SftArgs {
    /// The key of the prompt in a line [default: prompt, or question]
    #[arg(long, value_name = "KEY", help_heading = "What")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_field: Option<String>,

    /// The key of the answer [default: answer]
    #[arg(long, value_name = "KEY", help_heading = "What")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_field: Option<String>,

    /// What follows an answer: eos (up to --length, learnt, so that texts end) or none [default: eos]
    #[arg(long, value_name = "RULE", help_heading = "What")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pad: Option<String>,

    /// An example longer than --length: error, skip, or truncate (the prompt, from its start) [default: error]
    #[arg(long, value_name = "RULE", help_heading = "What")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub too_long: Option<String>,

    /// Train low-rank adapters of this rank instead of the weights
    #[arg(long, value_name = "N", help_heading = "Adapters")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_rank: Option<usize>,

    /// Scale of the adapters times their rank [default: twice the rank]
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Adapters")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_alpha: Option<f64>,

    /// Linear layers that get one, by the last part of their names [default: all]
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',', help_heading = "Adapters")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lora_targets: Vec<String>,

    /// Leave the embedding as it is
    #[arg(long, help_heading = "Adapters")]
    #[serde(skip_serializing_if = "is_false")]
    pub freeze_embedding: bool,
}

/// Flags of causal training.
#[derive(Args, Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ArArgs {
    /// New weights in the shape of --model
    #[arg(long, help_heading = "What")]
    #[serde(skip_serializing_if = "is_false")]
    pub from_scratch: bool,
}

fn is_false(on: &bool) -> bool {
    !on
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

//! The flags that several subcommands share, as they are typed. What they mean is settled in
//! `common.rs` and `sampling.rs`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::sampling::Sampling;
use crate::element::Dtype;
use crate::sample::CountSchedule;

/// Which model, and where it runs.
#[derive(Args, Clone, Debug, Default)]
pub struct ModelArgs {
    /// A folder, a safetensors file, or a Hugging Face id such as diffusionfamily/diffugpt-s
    /// (optionally @revision) [default: the bundled model]
    #[arg(long, short, value_name = "DIR|ID", help_heading = "Model", env = "LACUNA_MODEL")]
    pub model: Option<String>,

    /// Token id of the mask, instead of the one the model names
    #[arg(long, value_name = "ID", help_heading = "Model")]
    pub mask_id: Option<u32>,

    /// Row i predicts position i+1 (as DiffuGPT and DiffuLLaMA do), whatever the model says
    #[arg(long, help_heading = "Model", conflicts_with = "no_shift")]
    pub shift: bool,

    /// Row i predicts position i, whatever the model says
    #[arg(long, help_heading = "Model")]
    pub no_shift: bool,

    #[command(flatten)]
    pub device: DeviceArgs,
}

/// The machine to run on.
#[derive(Args, Clone, Debug, Default)]
pub struct DeviceArgs {
    /// Where to compute: cpu; cuda or cuda:N, an NVIDIA card; simt, the card's kernels on the CPU, for tests
    #[arg(long, value_name = "NAME", default_value = "cpu", help_heading = "Model", env = "LACUNA_DEVICE")]
    pub device: String,

    /// What a card computes in: bf16, f16 or f32 [default: bf16 on a card, f32 on simt; the CPU has f32 alone]
    #[arg(long, value_name = "NAME", value_enum, hide_possible_values = true, help_heading = "Model")]
    pub dtype: Option<DtypeName>,

    /// What multiplies matrices in bf16 and f16: own, our kernels; cublaslt, NVIDIA's library; auto, that where it is
    /// found. With own a text does not depend on what shares its batch
    #[arg(
        long,
        value_name = "NAME",
        value_enum,
        default_value_t,
        hide_possible_values = true,
        help_heading = "Model"
    )]
    pub gemm: GemmName,

    /// Say on standard error what computes, how fast the weights were loaded, and what takes how much memory
    #[arg(long, short, help_heading = "Output")]
    pub verbose: bool,

    /// Threads to compute with [default: one a core]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub threads: Option<NonZeroUsize>,
}

/// A number format of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DtypeName {
    F32,
    F16,
    Bf16,
}

impl From<DtypeName> for Dtype {
    fn from(name: DtypeName) -> Self {
        match name {
            DtypeName::F32 => Dtype::F32,
            DtypeName::F16 => Dtype::F16,
            DtypeName::Bf16 => Dtype::Bf16,
        }
    }
}

/// What multiplies matrices on a card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum GemmName {
    /// The library where it is found.
    #[default]
    Auto,
    Own,
    #[value(name = "cublaslt")]
    CublasLt,
}

/// In which order positions are committed. (Doc comments on the variants would make `--help` long;
/// the examples of `generate` explain them.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OrderName {
    // The paper's: every position draws its step beforehand.
    Random,
    // The positions whose drawn token is most probable first (MaskGIT).
    Confidence,
    // The positions with the lowest entropy first.
    Entropy,
    // The positions whose best token leads the second best by most first.
    Margin,
}

/// How many positions are committed by when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScheduleName {
    // The same number each step.
    Linear,
    // Few at first, many at last.
    Cosine,
}

/// Whether a beginning-of-sequence token opens the canvas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bos {
    // As the tokenizer says, and where the text would otherwise start with a gap that nothing predicts.
    #[default]
    Auto,
    Always,
    Never,
}

/// How to denoise.
#[derive(Args, Clone, Debug, Default)]
pub struct SamplingArgs {
    /// Denoising steps T: more steps, fewer tokens a step [default: 64]
    #[arg(long, allow_negative_numbers = true, short = 'T', value_name = "T", help_heading = "Denoising")]
    pub steps: Option<usize>,

    /// Which masked positions are committed first [default: random]
    #[arg(
        long,
        value_enum,
        value_name = "random|confidence|entropy|margin",
        hide_possible_values = true,
        help_heading = "Denoising"
    )]
    pub order: Option<OrderName>,

    /// How many positions a step commits, for the confidence orders [default: linear]
    #[arg(
        long,
        value_enum,
        value_name = "linear|cosine",
        hide_possible_values = true,
        help_heading = "Denoising"
    )]
    pub schedule: Option<ScheduleName>,

    /// Gumbel noise on the confidences, falling to zero at the last step [default: 0]
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Denoising")]
    pub confidence_noise: Option<f32>,

    /// Score committed tokens again at each step; the least confident return to the mask
    #[arg(long, help_heading = "Denoising")]
    pub remask: bool,

    /// Commit whatever is surer than this (a probability, for --order confidence), at least one
    /// position a step, as many steps as it takes
    #[arg(long, value_name = "TAU", allow_negative_numbers = true, help_heading = "Denoising")]
    pub threshold: Option<f32>,

    /// Fill blocks of N tokens from left to right (semi-autoregressive)
    #[arg(long, allow_negative_numbers = true, value_name = "N", help_heading = "Denoising")]
    pub block_length: Option<usize>,

    /// Decode the same weights from left to right, one token a forward, with a KV cache
    #[arg(long, help_heading = "Denoising",
        conflicts_with_all = ["order", "schedule", "confidence_noise", "remask", "threshold", "block_length"])]
    pub ar: bool,

    /// Divides the logits; 0 takes the most probable token [default: 1]
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Drawing tokens")]
    pub temperature: Option<f32>,

    /// Draw from the most probable tokens that make up this much probability; 1 keeps all [default: 0.9]
    #[arg(long, allow_negative_numbers = true, value_name = "P", help_heading = "Drawing tokens")]
    pub top_p: Option<f32>,

    /// Draw from the K most probable tokens; 0 keeps all [default: 0]
    #[arg(long, allow_negative_numbers = true, value_name = "K", help_heading = "Drawing tokens")]
    pub top_k: Option<u32>,

    /// The most probable token always: the same as --temperature 0
    #[arg(long, help_heading = "Drawing tokens", conflicts_with = "temperature")]
    pub greedy: bool,

    /// Same seed, same text, on any number of threads [default: 0]
    #[arg(long, allow_negative_numbers = true, value_name = "N", help_heading = "Drawing tokens")]
    pub seed: Option<u64>,

    /// Let the mask token itself be drawn
    #[arg(long, help_heading = "Drawing tokens", conflicts_with = "suppress_mask")]
    pub allow_mask_token: bool,

    /// Never draw the mask token [default where the mask is a token of its own]
    #[arg(long, help_heading = "Drawing tokens")]
    pub suppress_mask: bool,

    /// Fill the whole length: the text does not end at an end-of-sequence token
    #[arg(long, help_heading = "Text")]
    pub ignore_eos: bool,

    /// A beginning-of-sequence token before the text [default: auto]
    #[arg(
        long,
        value_enum,
        value_name = "auto|always|never",
        hide_possible_values = true,
        help_heading = "Text"
    )]
    pub bos: Option<Bos>,
}

impl SamplingArgs {
    /// The same choices in the form that JSON lines use too; what was not typed is `None`.
    pub fn sampling(&self, model: &ModelArgs) -> Sampling {
        let flag = |on: bool| on.then_some(true);
        Sampling {
            length: None,
            steps: self.steps,
            order: self.order,
            schedule: self.schedule.map(|s| match s {
                ScheduleName::Linear => CountSchedule::Linear,
                ScheduleName::Cosine => CountSchedule::Cosine,
            }),
            confidence_noise: self.confidence_noise,
            remask: flag(self.remask),
            threshold: self.threshold,
            block_length: self.block_length,
            ar: flag(self.ar),
            temperature: self.temperature,
            greedy: flag(self.greedy),
            top_p: self.top_p,
            top_k: self.top_k,
            seed: self.seed,
            sequence: None,
            suppress_mask: flag(self.suppress_mask).or(self.allow_mask_token.then_some(false)),
            mask_id: model.mask_id,
            shift: flag(model.shift).or(model.no_shift.then_some(false)),
            ignore_eos: flag(self.ignore_eos),
            bos: self.bos,
        }
    }
}

/// What is shown, and what is written beside the text.
#[derive(Args, Clone, Debug, Default)]
pub struct OutputArgs {
    /// One JSON object a line on standard output, errors too
    #[arg(long, help_heading = "Output")]
    pub json: bool,

    /// Nothing on standard error but errors
    #[arg(long, short, help_heading = "Output", conflicts_with = "watch")]
    pub quiet: bool,

    /// Show the canvas being filled, live
    #[arg(long, short, help_heading = "Output")]
    pub watch: bool,

    /// Most frames a second of --watch; the run is slowed down to it, 0 does not slow down
    #[arg(long, value_name = "N", default_value_t = 20.0, value_parser = frames, allow_negative_numbers = true, help_heading = "Output")]
    pub fps: f64,

    /// Record every step: .html is a page that replays it, .jsonl the same as data
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub trace: Option<PathBuf>,
}

/// Frames a second: a number that a pause can be made of.
fn frames(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(n) if n.is_finite() && n >= 0.0 => Ok(n),
        _ => Err("expected frames a second, 0 or more".into()),
    }
}

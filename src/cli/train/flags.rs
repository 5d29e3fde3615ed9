//! The flags of the four training commands, as they are typed; what was not typed is left out of the table.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

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
    #[arg(long, value_name = "N", value_parser = whole(), help_heading = "How long")]
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
    #[arg(long, value_name = "N", value_parser = whole(), help_heading = "Optimiser")]
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

    /// Memory of the mean of gradients [default: 0.9]
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Optimiser")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta1: Option<f64>,

    /// Memory of the mean of their squares [default: 0.95]
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Optimiser")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta2: Option<f64>,

    /// Added to the root of the mean of squares [default: 1e-8]
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Optimiser")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eps: Option<f64>,

    /// Longest gradient, over all weights together; 0 does not clip [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Optimiser")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,

    /// Moments in f32 (8 bytes a weight), or, rounded stochastically, in bf16 (4) or 8bit (2) [default: f32]
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
    #[arg(long, value_name = "N", value_parser = whole(), help_heading = "How long")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,

    /// Documents that share a sequence do not see one another
    #[arg(long, help_heading = "What")]
    #[serde(skip_serializing_if = "is_false")]
    pub document_attention: bool,

    /// Measure on --validation every N steps [default: a tenth of --steps]
    #[arg(long, value_name = "N", value_parser = whole(), help_heading = "Measuring")]
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
    #[arg(long, value_name = "N", value_parser = whole(), help_heading = "Saving")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub save_every: Option<u64>,

    /// Checkpoints to keep, besides the best on --validation [default: 2]
    #[arg(long, value_name = "N", help_heading = "Saving")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_last: Option<usize>,

    /// Stop after so many steps in a row whose loss or gradient is not finite [default: 10]
    #[arg(long, value_name = "N", value_parser = whole(), help_heading = "Measuring")]
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

    /// Weigh tokens by how badly they are predicted: loss u counts alpha (1 - e^-u)^gamma u. This alpha [default: 1]
    #[arg(long, value_name = "ALPHA", allow_negative_numbers = true, help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub focal_alpha: Option<f64>,

    /// The gamma of it [default: 0, which weighs all the same]
    #[arg(long, value_name = "GAMMA", allow_negative_numbers = true, help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub focal_gamma: Option<f64>,
}

/// Flags of adaptation.
#[derive(Args, Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct AnnealArgs {
    /// Steps over which attention goes from causal to bidirectional [default: a fifth of --steps]
    #[arg(long, value_name = "N", value_parser = whole(), help_heading = "Diffusion", conflicts_with = "no_anneal")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anneal_steps: Option<u64>,

    /// Bidirectional attention from the first step on
    #[arg(long, help_heading = "Diffusion")]
    #[serde(skip_serializing_if = "is_false")]
    pub no_anneal: bool,
}

/// Flags of commands that read prompts with answers.
#[derive(Args, Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PairArgs {
    /// The key of the prompt in a line of .jsonl [default: prompt, or question]
    #[arg(long, value_name = "KEY", help_heading = "What")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_field: Option<String>,

    /// The key of the answer in a line of .jsonl [default: answer]
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
}

/// Flags of fine-tuning.
#[derive(Args, Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SftArgs {
    /// New weights in the shape of --model: to learn a task from its examples alone
    #[arg(long, help_heading = "What", conflicts_with = "lora_rank")]
    #[serde(skip_serializing_if = "is_false")]
    pub from_scratch: bool,

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

/// A whole number that a TOML file can hold.
fn whole() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(..1 << 63)
}

fn is_false(on: &bool) -> bool {
    !on
}

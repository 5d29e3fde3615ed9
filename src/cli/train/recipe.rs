//! From options to a recipe: defaults that depend on the model, and every value checked.

use toml::{Table, Value};

use super::options::{Command, Options};
use crate::backend::{MomentFormat, TokenWeight};
use crate::diffusion::corrupt::MaskRule;
use crate::diffusion::loss::LossNorm;
use crate::element::Dtype;
use crate::error::{Error, Result};
use crate::io::ModelFiles;
use crate::train::batch::{Objective, TimeWeight};
use crate::train::learner::{Attention, Recipe};
use crate::train::lr::{Schedule, ScheduleKind as Kind};
use crate::train::trainer::Pace;

/// Longest sequence by default.
const DEFAULT_LENGTH: usize = 1024;

/// What a run does.
#[derive(Clone, Debug)]
pub struct Plan {
    pub recipe: Recipe,
    pub pace: Pace,
    pub length: usize,
    pub weights: Dtype,
    pub recompute: bool,
    pub validation_sequences: usize,
    pub validation_draws: usize,
    pub lora: Option<Lora>,
}

/// Adapters instead of weights.
#[derive(Clone, Debug)]
pub struct Lora {
    pub rank: usize,
    pub alpha: f64,
    pub targets: Vec<String>,
    pub embedding: bool,
}

/// Puts defaults that depend on the model, or on other options, into the table of a run.
///
/// # Errors
/// [`Error::Request`] when the number of steps is missing.
pub fn complete(table: &mut Table, options: &Options, files: &ModelFiles) -> Result<()> {
    let Some(steps) = options.steps else {
        return Err(Error::request("--steps N is needed: how many optimiser steps to train for"));
    };
    if steps == 0 {
        return Err(Error::request("--steps 0: expected 1 or more"));
    }
    let mut default = |key: &str, value: Value| {
        table.entry(key).or_insert(value);
    };
    let whole = |n: u64| Value::Integer(i64::try_from(n).unwrap_or(i64::MAX));
    default("warmup", whole(steps / 20));
    default("validate-every", whole((steps / 10).max(1)));
    default("save-every", whole((steps / 10).max(1)));
    default("length", whole(files.config.max_positions.min(DEFAULT_LENGTH) as u64));
    let lora = options.lora_rank > 0;
    default("lr", Value::Float(if lora { 1e-3 } else { 3e-4 }));
    if lora {
        default("lora-alpha", Value::Float(2.0 * options.lora_rank as f64));
    }
    if options.command == Command::Adapt && !options.no_anneal {
        default("anneal-steps", whole(steps / 5));
    }
    Ok(())
}

/// One of several words.
fn word<T: Copy>(flag: &str, given: &str, known: &[(&str, T)]) -> Result<T> {
    known.iter().find(|(name, _)| *name == given).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        Error::request(format!("--{flag} {given}: expected one of {}", names.join(", ")))
    })
}

/// A finite number in a range.
fn within(flag: &str, x: f64, range: std::ops::RangeInclusive<f64>, expected: &str) -> Result<f64> {
    if range.contains(&x) { Ok(x) } else { Err(Error::request(format!("--{flag} {x}: expected {expected}"))) }
}

fn at_least_one(flag: &str, n: usize) -> Result<usize> {
    if n == 0 { Err(Error::request(format!("--{flag} 0: expected 1 or more"))) } else { Ok(n) }
}

/// The plan that complete options describe.
///
/// # Errors
/// [`Error::Request`] naming the flag that is out of range.
pub fn plan(options: &Options, files: &ModelFiles, mask_id: Option<u32>) -> Result<Plan> {
    let steps = options.steps.unwrap_or(0);
    let length = at_least_one("length", options.length.unwrap_or(0))?;
    if length > files.config.max_positions {
        return Err(Error::request(format!(
            "--length {length}: expected at most {}, the positions of {}",
            files.config.max_positions, files.name
        )));
    }
    foreign(options)?;
    let diffusion = options.command != Command::TrainAr;
    let time = word(
        "time-weight",
        &options.time_weight,
        &[("elbo", TimeWeight::Elbo), ("linear", TimeWeight::Linear), ("constant", TimeWeight::Constant)],
    )?;
    let norms = [("masked-tokens", LossNorm::MaskedTokens), ("maskable-tokens", LossNorm::MaskableTokens)];
    let norm = word("loss-norm", &options.loss_norm, &norms)?;
    let rules = [("explicit", MaskRule::Explicit), ("by-id", MaskRule::ById)];
    let rule = word("mask-rule", &options.mask_rule, &rules)?;
    let objective = if diffusion {
        let mask_id = mask_id.ok_or_else(|| {
            Error::request(format!(
                "{} names no mask token: give --mask-id N to use an ordinary token, or --add-mask-token",
                files.name
            ))
        })?;
        let shift = if options.command == Command::Sft { files.shift } else { true };
        Objective::Diffusion { mask_id, shift: shift && !options.no_shift, norm, time, rule }
    } else {
        Objective::Autoregressive
    };
    if objective.shift() && length < 2 {
        return Err(Error::request(
            "--length 1: expected 2 or more: a token is predicted from the row before it",
        ));
    }
    let attention = match options.command {
        Command::TrainAr => Attention::Causal,
        Command::Adapt if !options.no_anneal => {
            Attention::Annealed { steps: options.anneal_steps.unwrap_or(0) }
        }
        _ => Attention::Full,
    };
    let kinds = [("cosine", Kind::Cosine), ("linear", Kind::Linear), ("constant", Kind::Constant)];
    let lr = options.lr.unwrap_or(f64::NAN);
    let share = within("final-lr", options.final_lr, 0.0..=1.0, "a share of the peak, 0 to 1")?;
    let schedule = Schedule {
        kind: word("schedule", &options.schedule, &kinds)?,
        warmup: options.warmup.unwrap_or(0),
        steps,
        peak: lr,
        floor: share * lr,
    };
    schedule.check()?;
    let below_one = 0.0..=1.0 - f64::EPSILON;
    let beta = |flag, x| within(flag, x, below_one.clone(), "a number from 0 to below 1");
    let large = f64::MAX;
    let token = TokenWeight {
        alpha: within("focal-alpha", options.focal_alpha, f64::MIN_POSITIVE..=large, "a number above 0")?,
        gamma: within("focal-gamma", options.focal_gamma, 0.0..=large, "a number from 0 on")?,
    };
    let recipe = Recipe {
        objective,
        attention,
        batch: at_least_one("batch", options.batch)?,
        accumulate: at_least_one("accumulate", options.accumulate)?,
        documents: options.document_attention,
        schedule,
        betas: [beta("beta1", options.beta1)?, beta("beta2", options.beta2)?],
        eps: within("eps", options.eps, f64::from(f32::MIN_POSITIVE)..=1.0, "a small number above 0")?,
        decay: within("weight-decay", options.weight_decay, 0.0..=large, "a number from 0 on")?,
        clip: within("clip", options.clip, 0.0..=large, "a length, or 0 for no clipping")?,
        token,
        moments: word("moments", &options.moments, &MomentFormat::NAMED)?,
        seed: options.seed,
    };
    let every = |flag, n: Option<u64>| match n {
        Some(0) => Err(Error::request(format!("--{flag} 0: expected 1 or more"))),
        n => Ok(n.unwrap_or(u64::MAX)),
    };
    let pace = Pace {
        steps,
        save_every: every("save-every", options.save_every)?,
        validate_every: every("validate-every", options.validate_every)?,
        keep_last: at_least_one("keep-last", options.keep_last)?,
        max_skipped: options.max_skipped.max(1),
    };
    let lora = match options.lora_rank {
        0 => None,
        rank => {
            let alpha = options.lora_alpha.unwrap_or(2.0 * rank as f64);
            Some(Lora {
                rank: lora_rank(rank, files)?,
                alpha: within("lora-alpha", alpha, f64::MIN_POSITIVE..=1e6, "a number above 0")?,
                targets: options.lora_targets.clone(),
                embedding: !options.freeze_embedding,
            })
        }
    };
    Ok(Plan {
        recipe,
        pace,
        length,
        weights: word("weights", &options.weights, &[("f32", Dtype::F32), ("bf16", Dtype::Bf16)])?,
        recompute: options.recompute,
        validation_sequences: at_least_one("validation-sequences", options.validation_sequences)?,
        validation_draws: at_least_one("validation-draws", options.validation_draws)?,
        lora,
    })
}

/// Options that have no say in this recipe, which a file may hold or a flag that it belongs to is missing.
fn foreign(options: &Options) -> Result<()> {
    let Options { command, lora_rank, lora_alpha, lora_targets, freeze_embedding, .. } = options;
    let adapters = lora_alpha.is_some() || !lora_targets.is_empty() || *freeze_embedding;
    let fail = |what: &str| Err(Error::request(format!("lacuna {}: {what}", command.name())));
    if *lora_rank == 0 && adapters {
        return fail(
            "--lora-alpha, --lora-targets and --freeze-embedding are of adapters; give --lora-rank N too",
        );
    }
    if *lora_rank > 0 && *command != Command::Sft {
        return fail("lora-rank is an option of lacuna sft; leave it out");
    }
    if *lora_rank > 0 && options.add_mask_token {
        return fail(
            "--add-mask-token changes the weights that an adapter is for; adapt the model first, or give --mask-id",
        );
    }
    if options.from_scratch && !matches!(command, Command::TrainAr | Command::Sft) {
        return fail("from-scratch is an option of lacuna train-ar and sft; lacuna pretrain always is");
    }
    if options.from_scratch && *lora_rank > 0 {
        return fail("--from-scratch makes new weights, --lora-rank keeps given ones; leave one out");
    }
    if (options.no_anneal || options.anneal_steps.is_some()) && *command != Command::Adapt {
        return fail("anneal-steps and no-anneal are options of lacuna adapt; leave them out");
    }
    Ok(())
}

fn lora_rank(rank: usize, files: &ModelFiles) -> Result<usize> {
    if rank > files.config.width {
        return Err(Error::request(format!(
            "--lora-rank {rank}: expected at most {}, the width of {}",
            files.config.width, files.name
        )));
    }
    Ok(rank)
}

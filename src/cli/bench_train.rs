//! `lacuna bench train`: how long a training step takes, and how much memory.

use std::time::Instant;

use clap::Args as ClapArgs;
use serde_json::json;

use super::Context;
use super::args::DeviceArgs;
use super::device::{self, Training};
use super::terminal::println;
use crate::backend::{Backend, Backward, MomentFormat, Optimise, TokenWeight};
use crate::diffusion::corrupt::{Corrupted, MaskRule};
use crate::diffusion::loss::LossNorm;
use crate::element::Dtype;
use crate::error::{Error, Result};
use crate::io::{ModelFiles, SpecialIds};
use crate::model::{Adapters, Model, NetworkShape, parameters_of};
use crate::profile::{flops, median};
use crate::rng::{Purpose, Rng};
use crate::train::batch::{Objective, TimeWeight};
use crate::train::learner::{Attention, Learner, Recipe, Shape};
use crate::train::lr::{Schedule, ScheduleKind};
use crate::train::{Cursor, Example};

#[derive(Debug, ClapArgs)]
pub struct TrainArgs {
    /// A folder, or a Hugging Face id [default: the bundled model]
    #[arg(long, short, value_name = "DIR|ID", env = "LACUNA_MODEL", help_heading = "Model")]
    model: Option<String>,
    /// Made-up weights in the shape of diffugpt-s, diffugpt-m, diffullama-7b, smollm2-135m, or of a config.json
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "model", help_heading = "Model")]
    shape: Option<NetworkShape>,
    /// Sequences of a step
    #[arg(long, short, value_name = "N", default_value_t = 4, help_heading = "Work")]
    batch: usize,
    /// Tokens of a sequence
    #[arg(long, short, value_name = "N", default_value_t = 128, help_heading = "Work")]
    length: usize,
    /// Share of the tokens that is masked
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, help_heading = "Work")]
    masked: f32,
    /// Steps that are timed
    #[arg(long, value_name = "N", default_value_t = 5, help_heading = "Work")]
    repeat: usize,
    /// Steps before: the second one records the operations of a step, on a card
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = "Work")]
    warmup: usize,
    /// Keep the input of each layer only, and compute its inside again
    #[arg(long, help_heading = "Work")]
    recompute: bool,
    /// Format of the moments: f32, bf16 or 8bit
    #[arg(long, value_name = "NAME", default_value_t, help_heading = "Work")]
    moments: MomentFormat,
    /// Rank of adapters that are trained instead of the weights
    #[arg(long, value_name = "N", help_heading = "Work")]
    lora_rank: Option<usize>,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// One JSON object instead of a line for people
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// Runs it.
///
/// # Errors
/// [`Error::Request`] for work that cannot be done with the model; [`Error::Memory`]; [`Error::Cancelled`] after Ctrl-C.
pub fn run(args: &TrainArgs, context: &Context) -> Result<()> {
    for (flag, n) in [("batch", args.batch), ("length", args.length), ("repeat", args.repeat)] {
        if n == 0 {
            return Err(Error::request(format!("--{flag} 0: expected 1 or more")));
        }
    }
    if !(0.0..=1.0).contains(&args.masked) {
        return Err(Error::request(format!("--masked {}: expected a share, 0 to 1", args.masked)));
    }
    device::train(&args.device, Bench { args, context })
}

/// Steps to be timed on some machine.
struct Bench<'a> {
    args: &'a TrainArgs,
    context: &'a Context,
}

impl Training for Bench<'_> {
    fn run<B: Optimise + Backward + Backend<Elem = f32>>(self, backend: B, device: &str) -> Result<()> {
        let Bench { args, context } = self;
        let free = backend.free_memory();
        let (name, mut learner) = learner(args, backend.clone())?;
        let config = learner.model().config().clone();
        let parameters: usize =
            parameters_of(&config).iter().map(|e| e.shape.iter().product::<usize>()).sum();
        let hidden = (args.masked * args.length as f32).round() as usize;
        let (seconds, loss) = time(args, hidden, &mut learner, context)?;
        let taken = free.zip(backend.free_memory()).map(|(before, after)| before.saturating_sub(after));
        let tokens = args.batch * args.length;
        let scored = hidden * args.batch;
        let lengths = vec![args.length; args.batch];
        let flops = flops::training(&config, &lengths, scored, args.lora_rank.is_none());
        let (middle, least) = (median(&seconds), seconds.iter().copied().fold(f64::INFINITY, f64::min));
        let peak = peak_memory();
        let threads = args.device.threads.map(std::num::NonZeroUsize::get);
        let dtype = device::dtype_of_card(&args.device)?.unwrap_or(Dtype::F32);
        if args.json {
            return println(
                &json!({
                    "bench": "train", "model": name, "parameters": parameters, "batch": args.batch, "length": args.length,
                    "masked": scored, "device": device, "dtype": dtype.to_string(), "threads": threads, "seconds": middle,
                    "min_seconds": least, "runs": seconds.len(), "tokens_per_second": tokens as f64 / middle,
                    "flops": flops, "flops_per_second": flops / middle, "peak_rss_bytes": peak, "device_bytes": taken,
                    "loss": loss, "recompute": args.recompute, "moments": args.moments.to_string(), "lora_rank": args.lora_rank,
                })
                .to_string(),
            );
        }
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let memory = match (taken, peak) {
            (Some(bytes), _) => format!(", {:.0} MiB of the card", mib(bytes)),
            (None, Some(bytes)) => format!(", at most {:.0} MiB", mib(bytes)),
            (None, None) => String::new(),
        };
        println(&format!(
            "{name}, {parameters} parameters, a step of {} x {} tokens, {scored} masked, {device}: median {middle:.4} s of {} \
             (least {least:.4} s), {:.1} tokens/s, {:.1} GFLOP/s{memory}",
            args.batch,
            args.length,
            seconds.len(),
            tokens as f64 / middle,
            flops / middle / 1e9
        ))
    }
}

fn learner<B: Optimise + Backward>(args: &TrainArgs, backend: B) -> Result<(String, Learner<B>)> {
    // Adapters leave the weights as they are.
    let trained = args.lora_rank.is_none();
    let (name, model) = match &args.shape {
        Some(shape) => {
            let special = SpecialIds::default();
            let model = if trained {
                Model::untrained(backend.clone(), shape.config.clone(), special, true, 0, Dtype::F32)?
            } else {
                Model::synthetic(backend.clone(), shape.clone(), 0)?
            };
            (shape.to_string(), model)
        }
        None => {
            let files = ModelFiles::find(args.model.as_deref())?;
            let dtype = |_: &str| trained.then_some(Dtype::F32);
            (files.name.clone(), Model::load_trainable(backend.clone(), &files, dtype)?)
        }
    };
    let entries = parameters_of(model.config());
    let adapters = match args.lora_rank {
        None => None,
        Some(rank) => {
            let layouts = |linear: &str| model.layout_of(linear);
            Some(Adapters::new(&backend, &entries, layouts, rank, 2.0 * rank as f64, &[], 0)?)
        }
    };
    let trained: Vec<(String, usize)> = if trained {
        entries.iter().map(|e| (e.parameter.clone(), e.shape.iter().product())).collect()
    } else {
        Vec::new()
    };
    let steps = (args.repeat + args.warmup) as u64;
    let recipe = Recipe {
        objective: objective(model.config().vocab_size as u32 - 1),
        attention: Attention::Full,
        batch: args.batch,
        accumulate: 1,
        documents: false,
        schedule: Schedule { kind: ScheduleKind::Constant, warmup: 0, steps, peak: 1e-5, floor: 0.0 },
        betas: [0.9, 0.95],
        eps: 1e-8,
        decay: 0.1,
        clip: 1.0,
        token: TokenWeight::NONE,
        moments: args.moments,
        seed: 0,
    };
    let shape = Shape { trained, narrow: false, length: args.length, checkpoint: args.recompute };
    let cursor = Cursor { examples: 0, per_source: Vec::new() };
    Ok((name, Learner::new(model, adapters, shape, recipe, cursor)?))
}

fn objective(mask_id: u32) -> Objective {
    Objective::Diffusion {
        mask_id,
        shift: true,
        norm: LossNorm::MaskedTokens,
        time: TimeWeight::Elbo,
        rule: MaskRule::Explicit,
    }
}

/// Seconds of each step, and the last loss.
fn time<B: Optimise + Backward>(
    args: &TrainArgs,
    hidden: usize,
    learner: &mut Learner<B>,
    context: &Context,
) -> Result<(Vec<f64>, f64)> {
    let vocab = learner.model().config().vocab_size as u32;
    let objective = learner.recipe.objective;
    let rng = Rng::new(0);
    let steps = (args.repeat + args.warmup) as u64;
    let (mut seconds, mut loss) = (Vec::new(), 0.0);
    let bar = context.progress(steps, args.json);
    for step in 0..steps as u32 {
        context.interrupt.check()?;
        let start = Instant::now();
        let report = learner.step_with(|_, prepared| {
            for row in 0..args.batch as u32 {
                let ids: Vec<u32> = (0..args.length as u32)
                    .map(|i| rng.below(vocab, Purpose::Weights, row, step, i))
                    .collect();
                // The last positions: every one of them is predicted by a row.
                let masked: Vec<bool> = (0..args.length).map(|i| i + hidden >= args.length).collect();
                let noised = ids
                    .iter()
                    .zip(&masked)
                    .map(|(&id, &masked)| if masked { vocab - 1 } else { id })
                    .collect();
                let example = Example { fixed: vec![false; ids.len()], documents: vec![ids.len()], ids };
                let t = args.masked.max(1e-3);
                prepared.add_corrupted(&example, &Corrupted { ids: noised, masked }, t, objective, false);
            }
            Ok(())
        })?;
        loss = report.loss.unweighted();
        if step as usize >= args.warmup {
            seconds.push(start.elapsed().as_secs_f64());
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok((seconds, loss))
}

/// The most memory that the process ever had in use, in bytes, where the system says so.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| 1024 * kib)
}

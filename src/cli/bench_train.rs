//! `lacuna bench train`: how long a training step takes, and how much memory.

use std::time::Instant;

use clap::Args as ClapArgs;
use serde_json::json;

use super::args::{DeviceArgs, GemmName};
use super::terminal::println;
use super::{Context, device};
use crate::backend::{MomentFormat, TokenWeight};
use crate::diffusion::corrupt::{Corrupted, MaskRule};
use crate::diffusion::loss::LossNorm;
use crate::element::Dtype;
use crate::error::{Error, Result};
use crate::io::{ModelFiles, SpecialIds};
use crate::model::{Model, SyntheticShape, parameters_of};
use crate::profile::median;
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
    /// Made-up weights in the shape of diffugpt-s, diffugpt-m or diffullama-7b
    #[arg(long, value_name = "NAME", conflicts_with = "model", help_heading = "Model")]
    shape: Option<SyntheticShape>,
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
    /// Steps before
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Work")]
    warmup: usize,
    /// Keep the input of each layer only, and compute its inside again
    #[arg(long, help_heading = "Work")]
    recompute: bool,
    /// Moments in bf16 instead of f32
    #[arg(long, help_heading = "Work")]
    bf16_moments: bool,
    /// Threads to compute with [default: one a core]
    #[arg(long, value_name = "N", help_heading = "Model")]
    threads: Option<std::num::NonZeroUsize>,
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
    let place = DeviceArgs {
        device: "cpu".into(),
        dtype: None,
        gemm: GemmName::default(),
        verbose: false,
        threads: args.threads,
    };
    let backend = device::training(&place)?;
    let threads = backend.threads();
    let (name, model) = match args.shape {
        Some(shape) => {
            let special = SpecialIds::default();
            let model = Model::untrained(backend, shape.config(), special, true, 0, Dtype::F32)?;
            (shape.to_string(), model)
        }
        None => {
            let files = ModelFiles::find(args.model.as_deref())?;
            (files.name.clone(), Model::load_trainable(backend, &files, |_| Some(Dtype::F32))?)
        }
    };
    let config = model.config().clone();
    let vocab = config.vocab_size as u32;
    let objective = Objective::Diffusion {
        mask_id: vocab - 1,
        shift: true,
        norm: LossNorm::MaskedTokens,
        time: TimeWeight::Elbo,
        rule: MaskRule::Explicit,
    };
    let steps = (args.repeat + args.warmup) as u64;
    let schedule = Schedule { kind: ScheduleKind::Constant, warmup: 0, steps, peak: 1e-5, floor: 0.0 };
    let recipe = Recipe {
        objective,
        attention: Attention::Full,
        batch: args.batch,
        accumulate: 1,
        documents: false,
        schedule,
        betas: [0.9, 0.95],
        eps: 1e-8,
        decay: 0.1,
        clip: 1.0,
        token: TokenWeight::NONE,
        moments: if args.bf16_moments { MomentFormat::Bf16 } else { MomentFormat::F32 },
        seed: 0,
    };
    let entries = parameters_of(&config);
    let trained: Vec<(String, usize)> =
        entries.iter().map(|e| (e.parameter.clone(), e.shape.iter().product())).collect();
    let parameters: usize = trained.iter().map(|(_, n)| n).sum();
    let shape = Shape { trained, narrow: false, length: args.length, checkpoint: args.recompute };
    let cursor = Cursor { examples: 0, per_source: Vec::new() };
    let mut learner = Learner::new(model, None, shape, recipe, cursor)?;
    let rng = Rng::new(0);
    let hidden = (args.masked * args.length as f32).round() as usize;
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
    let tokens = args.batch * args.length;
    let (middle, least) = (median(&seconds), seconds.iter().copied().fold(f64::INFINITY, f64::min));
    let peak = peak_memory();
    if args.json {
        return println(
            &json!({
                "bench": "train", "model": name, "parameters": parameters, "batch": args.batch, "length": args.length,
                "masked": hidden * args.batch, "threads": threads, "seconds": middle, "min_seconds": least,
                "runs": seconds.len(), "tokens_per_second": tokens as f64 / middle, "peak_rss_bytes": peak, "loss": loss,
                "recompute": args.recompute, "moments": if args.bf16_moments { "bf16" } else { "f32" },
            })
            .to_string(),
        );
    }
    let memory =
        peak.map_or(String::new(), |bytes| format!(", at most {:.0} MiB", bytes as f64 / f64::from(1 << 20)));
    println(&format!(
        "{name}, {parameters} parameters, a step of {} x {} tokens, {} masked, {threads} threads: median {middle:.4} s of {} \
         (least {least:.4} s), {:.1} tokens/s{memory}",
        args.batch,
        args.length,
        hidden * args.batch,
        seconds.len(),
        tokens as f64 / middle
    ))
}

/// The most memory that the process ever had in use, in bytes, where the system says so.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| 1024 * kib)
}

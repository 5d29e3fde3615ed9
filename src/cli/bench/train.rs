//! `lacuna bench train`: how long a training step takes, and how much memory.

use std::time::Instant;

use clap::Args as ClapArgs;

use super::super::Context;
use super::super::device::{self, Training};
use super::cases::at_least_one;
use super::line::{Kind, Line, Machine};
use super::output::{OutputArgs, Sheet};
use super::work::{Traffic, WeightsArgs, forget_peak, peak_memory, room_for_weights};
use crate::backend::{Backend, Backward, MomentFormat, Optimise, TokenWeight};
use crate::config::ModelConfig;
use crate::diffusion::corrupt::{Corrupted, MaskRule};
use crate::diffusion::loss::LossNorm;
use crate::element::Dtype;
use crate::error::{Error, Result};
use crate::io::{ModelFiles, SpecialIds};
use crate::model::{Adapters, Model, parameters_of};
use crate::profile::{self, flops};
use crate::rng::{Purpose, Rng};
use crate::train::batch::{Objective, TimeWeight};
use crate::train::learner::{Attention, Learner, Recipe, Shape};
use crate::train::lr::{Schedule, ScheduleKind};
use crate::train::{Cursor, Example};

#[derive(Debug, ClapArgs)]
pub struct TrainArgs {
    #[command(flatten)]
    weights: WeightsArgs,
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
    pub output: OutputArgs,
}

/// Runs it.
///
/// # Errors
/// [`Error::Request`] for work that cannot be done with the model; [`Error::Memory`]; [`Error::Cancelled`] after Ctrl-C.
pub fn run(args: &TrainArgs, sheet: &mut Sheet<'_>) -> Result<()> {
    at_least_one([("batch", args.batch), ("length", args.length), ("repeat", args.repeat)])?;
    if !(0.0..=1.0).contains(&args.masked) {
        return Err(Error::request(format!("--masked {}: expected a share, 0 to 1", args.masked)));
    }
    if let (Some(shape), Some(_)) = (&args.weights.shape, device::threads(&args.weights.device)?) {
        // Trained weights are f32, as are their gradients.
        let size = if args.lora_rank.is_none() { 8 } else { 2 };
        room_for_weights(&shape.to_string(), &shape.config, size)?;
    }
    device::train(&args.weights.device, Bench { args, sheet })
}

/// Steps to be timed on some machine.
struct Bench<'a, 'b> {
    args: &'a TrainArgs,
    sheet: &'a mut Sheet<'b>,
}

impl Training for Bench<'_, '_> {
    fn run<B: Optimise + Backward + Backend<Elem = f32>>(self, backend: B, device: &str) -> Result<()> {
        let Bench { args, sheet } = self;
        let (context, device_args) = (sheet.context, &args.weights.device);
        let ceilings = if args.output.no_ceilings { None } else { Some(profile::ceilings(&backend)?) };
        let machine = Machine {
            device: device.to_owned(),
            dtype: device::dtype_of_card(device_args)?.unwrap_or(Dtype::F32).to_string(),
            threads: device::threads(device_args)?,
            // The line of a card names its library.
            gemm: device.split_once(", products by ").map_or("own", |(_, library)| library).to_owned(),
            ceilings,
        };
        forget_peak();
        let free = backend.free_memory();
        let start = Instant::now();
        let (name, mut learner) = learner(args, backend.clone())?;
        let load_s = start.elapsed().as_secs_f64();
        let config = learner.model().config().clone();
        let parameters: usize =
            parameters_of(&config).iter().map(|e| e.shape.iter().product::<usize>()).sum();
        sheet.ceilings(&machine)?;
        context.interrupt.hold();
        let hidden = (args.masked * args.length as f32).round() as usize;
        let (seconds, loss) = time(args, hidden, &mut learner, context)?;
        if seconds.is_empty() {
            return Err(Error::Cancelled);
        }
        let taken = free.zip(backend.free_memory()).map(|(before, after)| before.saturating_sub(after));
        let (tokens, scored) = (args.batch * args.length, hidden * args.batch);
        let flops =
            flops::training(&config, &vec![args.length; args.batch], scored, args.lora_rank.is_none());
        let words = [
            args.recompute.then(|| ", recompute".to_owned()),
            (args.moments != MomentFormat::F32).then(|| format!(", moments {}", args.moments)),
            args.lora_rank.map(|rank| format!(", adapters of rank {rank}")),
        ];
        let words: String = words.into_iter().flatten().collect();
        let named = format!("train {name}, {} x {}, {scored} masked{words}", args.batch, args.length);
        let mut line = Line::new(Kind::Train, &named, &machine);
        let bytes = bytes(args, &config, backend.number_bytes()[0], parameters, tokens, scored);
        line.times(&seconds).tokens(tokens, tokens).work(flops, bytes, ceilings);
        let middle = line.number("median_s").unwrap_or(f64::NAN);
        line.set("model", name)
            .set("shape", args.weights.shape.as_ref().map(|s| s.name.clone()))
            .set("parameters", parameters)
            .set("batch", args.batch)
            .set("length", args.length)
            .set("masked", scored)
            .set("recompute", args.recompute)
            .set("moments", args.moments.to_string())
            .set("lora_rank", args.lora_rank)
            .set("loss", loss)
            .set("ms_per_step", 1e3 * middle)
            .set("peak_memory_bytes", peak_memory())
            .set("device_bytes", taken)
            .set("load_s", load_s);
        sheet.add(line)?;
        context.interrupt.check()
    }
}

/// Bytes that a step must move, estimated: weights read on the way there and back, gradients added to, then read by clipping and
/// by AdamW, which reads and writes parameters and moments; activations written and read, and three times as much on the way back.
fn bytes(
    args: &TrainArgs,
    config: &ModelConfig,
    number: usize,
    parameters: usize,
    tokens: usize,
    scored: usize,
) -> f64 {
    let traffic = Traffic { weight: number as f64, number: number as f64 };
    let weights = 2.0 * traffic.weights(config, true);
    let updates = match args.lora_rank {
        None => parameters as f64 * 4.0 * (2.0 + 2.0 + 2.0) + 4.0 * args.moments.bytes(parameters) as f64,
        Some(_) => 0.0,
    };
    weights + updates + 4.0 * traffic.activations(config, tokens as f64, scored as f64)
}

fn learner<B: Optimise + Backward>(args: &TrainArgs, backend: B) -> Result<(String, Learner<B>)> {
    // Adapters leave the weights as they are.
    let trained = args.lora_rank.is_none();
    let (name, model) = match &args.weights.shape {
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
            let files = ModelFiles::find(args.weights.model.as_deref())?;
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
    let bar = context.progress(steps, args.output.json());
    for step in 0..steps as u32 {
        // The steps that are done count.
        if context.interrupt.raised() {
            break;
        }
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

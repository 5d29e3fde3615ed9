//! `lacuna bench`: how long the work takes on a machine.

use std::ops::ControlFlow;
use std::time::Instant;

use clap::{Args as ClapArgs, Subcommand};
use serde_json::json;

use super::Context;
use super::args::DeviceArgs;
use super::bench_train::{self, TrainArgs};
use super::device;
use super::terminal::{note, println};
use crate::error::{Error, Result};
use crate::io::ModelFiles;
use crate::model::NetworkShape;
use crate::profile::{self, Timing, median};
use crate::sample::{Canvas, Limits, Observer, Pace, Request, Step};

/// Measure this machine: the denoising loop, a training step, or each kernel of a card.
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Whole generations: a beginning, and the rest of the length to be filled, with no early end.
    ///
    /// The first run is not timed. Floating-point operations are those of the products and the attention that the engine
    /// does; tokens are the ones filled in.
    Denoise(Denoise),
    /// Each kernel of a card at the shapes of the paper's models, with the caches cold.
    ///
    /// Products are timed by our own kernels, and with --gemm cublaslt by that library.
    Kernels(Kernels),
    /// A training step: forward, backward, clipping, AdamW, all in f32, on made-up tokens.
    Train(TrainArgs),
}

const EXAMPLES: &str = "\
--shape makes up weights from a seed: near-normal numbers of standard deviation
0.02, the same on every machine. What they generate is noise; the time is that
of trained ones.

Examples:
  lacuna bench denoise                                     the bundled model on the CPU
  lacuna bench denoise --device cuda --shape diffugpt-s --length 512 --batch 32
  lacuna bench denoise --device cuda --shape diffullama-7b --ar --json
  lacuna bench kernels --device cuda --filter attention
  lacuna bench train --shape diffugpt-s --batch 4 --length 128";

#[derive(Debug, ClapArgs)]
struct Denoise {
    /// A folder, a safetensors file, or a Hugging Face id [default: the bundled model]
    #[arg(long, short, value_name = "DIR|ID", env = "LACUNA_MODEL", help_heading = "Model")]
    model: Option<String>,
    /// Made-up weights in the shape of diffugpt-s, diffugpt-m, diffullama-7b, smollm2-135m, or of a config.json
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "model", help_heading = "Model")]
    shape: Option<NetworkShape>,
    /// Tokens of a canvas [default: 512, or all that the model has]
    #[arg(long, short, value_name = "N", help_heading = "Work")]
    length: Option<usize>,
    /// Denoising steps T
    #[arg(long, short = 'T', value_name = "T", default_value_t = 64, help_heading = "Work")]
    steps: usize,
    /// Canvases at a time
    #[arg(long, short, value_name = "N", default_value_t = 1, help_heading = "Work")]
    batch: usize,
    /// Decode from left to right with a KV cache instead
    #[arg(long, help_heading = "Work")]
    ar: bool,
    /// Draw from the most probable tokens that make up this much probability
    #[arg(long, value_name = "P", default_value_t = 0.9, help_heading = "Work")]
    top_p: f32,
    /// Of the weights that are made up, and of the drawing
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Work")]
    seed: u64,
    /// Runs that are timed
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = "Work")]
    repeat: usize,
    /// One JSON object instead of a line for people
    #[arg(long, help_heading = "Output")]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Debug, ClapArgs)]
struct Kernels {
    /// Only kernel files, kernels and shapes that contain this; inference or training: only what is part of that
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// A few small shapes: whether it works
    #[arg(long)]
    quick: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Args {
    /// Whether errors are wanted as objects.
    pub fn json(&self) -> bool {
        match &self.what {
            What::Denoise(args) => args.json,
            What::Kernels(args) => args.json,
            What::Train(args) => args.json,
        }
    }
}

/// Runs the subcommand.
///
/// # Errors
/// [`Error::Request`] for work that cannot be done with the model; those of the machine; [`Error::Cancelled`] after Ctrl-C.
pub fn run(args: Args, context: &Context) -> Result<()> {
    match args.what {
        What::Denoise(args) => denoise(&args, context),
        What::Kernels(args) => kernels(&args, context),
        What::Train(args) => bench_train::run(&args, context),
    }
}

/// Looks now and then whether Ctrl-C was pressed; otherwise nothing is shown, as nothing is to be waited for.
struct Interruptible<'a>(&'a Context, Pace);

impl Observer for Interruptible<'_> {
    fn pace(&self) -> Pace {
        self.1
    }

    fn step(&mut self, _: Step<'_>) -> ControlFlow<()> {
        if self.0.interrupt.raised() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

fn denoise(args: &Denoise, context: &Context) -> Result<()> {
    if args.batch == 0 || args.repeat == 0 {
        return Err(Error::request(format!(
            "--batch {} --repeat {}: expected at least 1 each",
            args.batch, args.repeat
        )));
    }
    device::check(&args.device)?;
    let start = Instant::now();
    let (name, engine, first) = match &args.shape {
        Some(shape) => (shape.to_string(), device::synthetic(&args.device, shape, args.seed, context)?, 0),
        None => {
            let files = ModelFiles::find(args.model.as_deref())?;
            let first = files.special.bos.as_ref().map_or(0, |id| id.id);
            (files.name.clone(), device::load(&args.device, &files, context)?, first)
        }
    };
    let load_s = start.elapsed().as_secs_f64();
    let config = engine.config();
    let length = args.length.unwrap_or(512.min(config.max_positions));
    if length < 2 || length > config.max_positions {
        return Err(Error::request(format!(
            "--length {length}: expected 2 to {} (the positions of the model)",
            config.max_positions
        )));
    }
    let mut request = Request::new(Canvas::prefix(&[first], length - 1));
    request.steps = args.steps;
    request.top_p = args.top_p;
    request.seed = args.seed;
    request.stop_at_eos = false;
    request.autoregressive = args.ar;
    let count = u32::try_from(args.batch).map_err(|_| Error::request("--batch: too many"))?;
    let requests: Vec<Request> = (0..count).map(|sequence| Request { sequence, ..request.clone() }).collect();
    let tokens = args.batch.checked_mul(length).ok_or_else(|| Error::request("--batch: too many"))?;
    let limits = Limits { sequences: args.batch, tokens };
    let mut sampler = engine.sampler(limits)?;
    let (mut seconds, mut nfe, mut filled) = (Vec::new(), 0, 0);
    context.interrupt.hold();
    let bar = context.progress(args.repeat as u64 + 1, args.json);
    for run in 0..=args.repeat {
        // The run that warms up can be stopped; those that are timed are as fast as they can be.
        let pace = if run == 0 { Pace::Often } else { Pace::Never };
        let start = Instant::now();
        let results = sampler.generate_with(&requests, &mut Interruptible(context, pace))?;
        let taken = start.elapsed().as_secs_f64();
        context.interrupt.check()?;
        (nfe, filled) = (0, 0);
        for result in results {
            let generation = result?;
            nfe += generation.nfe;
            filled += generation.tokens;
        }
        if run > 0 {
            seconds.push(taken);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let mean_nfe = nfe as f64 / args.batch as f64;
    let flops = if args.ar {
        None
    } else {
        Some(profile::generation(engine.config(), args.batch, length, length - 1, mean_nfe))
    };
    let (median_s, min_s) = (median(&seconds), seconds.iter().copied().fold(f64::INFINITY, f64::min));
    let tokens_per_s = filled as f64 / median_s;
    let tflop_per_s = flops.map(|flops| flops / median_s / 1e12);
    if args.json {
        println(
            &json!({
                "bench": "denoise", "model": name, "shape": args.shape.as_ref().map(|s| &s.name), "length": length,
                "steps": args.steps, "batch": args.batch, "ar": args.ar, "dtype": engine.dtype(),
                "median_s": median_s, "min_s": min_s, "runs": seconds.len(), "nfe": mean_nfe, "tokens": filled,
                "tokens_per_s": tokens_per_s, "flops": flops, "tflop_per_s": tflop_per_s, "load_s": load_s,
                "device": engine.device(), "gemm": engine.gemm(),
            })
            .to_string(),
        )?;
    } else {
        let rate = tflop_per_s.map_or(String::new(), |rate| format!(", {rate:.2} TFLOP/s"));
        println(&format!(
            "{name}, {} x {length} tokens, {}, {}: median {median_s:.4} s of {} runs (least {min_s:.4} s), \
             {mean_nfe:.1} forward passes, {tokens_per_s:.1} tokens/s{rate}",
            args.batch,
            if args.ar { "left to right".to_owned() } else { format!("T = {}", args.steps) },
            engine.device(),
            seconds.len()
        ))?;
    }
    Ok(())
}

fn kernels(args: &Kernels, context: &Context) -> Result<()> {
    let mut shown = 0;
    let mut broken = None;
    context.interrupt.hold();
    let mut each = |device: &str, timing: &Timing| {
        let line = if args.json {
            timing.json(device).to_string()
        } else {
            let rate = match (timing.tflop_per_s(), timing.gb_per_s()) {
                (Some(rate), _) => format!("{rate:.2} TFLOP/s"),
                (None, Some(rate)) => format!("{rate:.1} GB/s"),
                (None, None) => String::new(),
            };
            format!("{:<28} {:<56} {:>10.1} us  {rate}", timing.kernel, timing.shape, timing.median_us())
        };
        shown += 1;
        broken = println(&line).err();
        if broken.is_some() || context.interrupt.raised() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    device::kernels(&args.device, &args.filter, args.quick, &mut each)?;
    if let Some(error) = broken {
        return Err(error);
    }
    context.interrupt.check()?;
    if shown == 0 && !args.json {
        note(&format!("no kernel file or shape contains \"{}\"", args.filter));
    }
    Ok(())
}

//! `lacuna bench`: how long the work takes on a machine. docs/benchmarks.md says what is measured, and how.

mod cases;
mod compare;
mod generate;
mod kernels;
mod line;
mod output;
mod serve;
mod step;
mod train;
mod work;

use clap::{Args as ClapArgs, Subcommand};

use self::output::Sheet;
use super::Context;
use crate::error::Result;

/// Measure this machine: generations, a denoising step, a training step, requests that arrive, or each kernel.
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Each kernel by itself, with the caches cold: the CPU's operations, or the kernels of a card.
    ///
    /// A card's products are timed by our own kernels, and with --gemm cublaslt by that library.
    Kernels(Box<kernels::KernelsArgs>),
    /// One denoising step of half-filled canvases: forward pass, head, draws, commit.
    ///
    /// The step is one in the middle of a generation of T steps; with --steps 1 it commits all that is masked. In random order only
    /// the logits of what is committed are computed, in the others those of all that is masked.
    Step(Box<step::StepArgs>),
    /// Whole generations: a token, and the rest of the length to be filled, with no early end.
    ///
    /// The first run is not timed. Lists, as in --length 128,512 --steps 32,128, give a line for every combination. Tokens are
    /// those filled in; useful ones stand before the first end-of-sequence token.
    #[command(visible_alias = "denoise")]
    Generate(Box<generate::GenerateArgs>),
    /// A training step: forward, backward, clipping, AdamW, on made-up tokens; f32 on the CPU.
    Train(Box<train::TrainArgs>),
    /// Requests that arrive over time, through one sampler: latency, waiting, tokens a second.
    ///
    /// In rounds: whatever has arrived when the sampler is free goes in together, up to --max-batch.
    ServeSim(Box<serve::ServeArgs>),
    /// What became faster or slower between two files of measurements.
    ///
    /// Measurements of the same bench and name are compared by the ratio of their medians, with an interval from all runs of both.
    /// The exit code is 9 when one is slower.
    Compare(compare::CompareArgs),
}

const EXAMPLES: &str = "\
--shape makes up weights from a seed: near-normal numbers of standard deviation
0.02, the same on every machine. What they generate is noise; the time is that
of trained ones.

Before anything else the machine's ceilings are measured: a copy and a matrix
product. A line's roofline share is the time that they allow for its operations
and bytes over the time taken.

Examples:
  lacuna bench generate                                    the bundled model on the CPU
  lacuna bench generate --shape smollm2-135m --length 128,512 --steps 32,128
  lacuna bench generate --device cuda --shape diffullama-7b --order ar --json
  lacuna bench step --shape diffugpt-s --length 512 --order random,confidence
  lacuna bench kernels --filter attention
  lacuna bench train --shape diffugpt-s --batch 4 --length 128
  lacuna bench serve-sim --requests 64 --rate 4 --length 64,128
  lacuna bench generate --output before.jsonl
  lacuna bench compare before.jsonl after.jsonl --threshold 1.05";

impl Args {
    /// Whether errors are wanted as objects.
    pub fn json(&self) -> bool {
        match &self.what {
            What::Kernels(args) => args.output.json(),
            What::Step(args) => args.output.json(),
            What::Generate(args) => args.output.json(),
            What::Train(args) => args.output.json(),
            What::ServeSim(args) => args.output.json(),
            What::Compare(args) => args.json,
        }
    }
}

/// Runs the subcommand.
///
/// # Errors
/// [`Error::Request`](crate::Error::Request) for work that cannot be done with the model; those of the machine;
/// [`Error::Cancelled`](crate::Error::Cancelled) after Ctrl-C, when what was measured by then is shown.
pub fn run(args: Args, context: &Context) -> Result<()> {
    let output = match &args.what {
        What::Kernels(args) => &args.output,
        What::Step(args) => &args.output,
        What::Generate(args) => &args.output,
        What::Train(args) => &args.output,
        What::ServeSim(args) => &args.output,
        What::Compare(args) => return compare::run(args, context),
    };
    let mut sheet = Sheet::open(output, context)?;
    let done = match &args.what {
        What::Kernels(args) => kernels::run(args, &mut sheet),
        What::Step(args) => step::run(args, &mut sheet),
        What::Generate(args) => generate::run(args, &mut sheet),
        What::Train(args) => train::run(args, &mut sheet),
        What::ServeSim(args) => serve::run(args, &mut sheet),
        What::Compare(_) => Ok(()),
    };
    sheet.end(done)
}

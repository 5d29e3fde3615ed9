//! `lacuna adapt`, `pretrain`, `sft` and `train-ar`: one loop, four recipes.

mod flags;
mod options;
mod recipe;
mod setup;
mod show;

use std::path::PathBuf;

use clap::Args as ClapArgs;
use toml::Table;

use self::flags::{AnnealArgs, ArArgs, CommonArgs, DiffusionArgs, PairArgs, SftArgs};
use self::options::{Command, defaults, differences, typed};
use super::Context;
use super::args::DeviceArgs;
use super::terminal::note;
use crate::error::{Error, Result};
use crate::train::files::RunFolder;

/// Flags that are no part of what is learnt.
#[derive(ClapArgs, Clone, Debug, Default)]
pub struct RunArgs {
    /// Folder of the run: configuration, log, loss.svg, TensorBoard events, checkpoints/step-N
    #[arg(long, short, value_name = "DIR", required = true, help_heading = "Saving")]
    output: PathBuf,

    /// Go on with the run in --output from its last checkpoint; options come from the run
    #[arg(long, help_heading = "Saving")]
    resume: bool,

    /// Options from a TOML file: the flags' names as keys, such as batch = 8; flags win over it
    #[arg(long, value_name = "FILE", help_heading = "What")]
    config: Option<PathBuf>,

    #[command(flatten)]
    device: DeviceArgs,

    /// Nothing on standard error but errors
    #[arg(long, short, help_heading = "Output")]
    quiet: bool,

    /// One JSON object about the finished run on standard output, errors too
    #[arg(long, help_heading = "Output")]
    json: bool,
}

const ADAPT: &str = "\
Attention goes from causal to bidirectional over --anneal-steps, row i keeps
predicting token i + 1, and the loss is the masked cross-entropy weighted 1/t
(Gong et al., 2025, section 3). --no-anneal and --no-shift leave either out.

Examples:
  lacuna pack --tokenizer DIR --output text.tokens --held-out 5 text.txt
  lacuna adapt --model DIR --data text.tokens --validation text-held-out.tokens \\
      --output run --steps 2000 --batch 32 --lr 1e-3 --anneal-steps 400
  lacuna generate --model run/checkpoints/step-2000
  lacuna adapt --output run --resume              go on after Ctrl-C or a kill";

/// Turn a left-to-right model into a diffusion model
#[derive(ClapArgs, Debug)]
#[command(after_help = ADAPT)]
pub struct Adapt {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    diffusion: DiffusionArgs,
    #[command(flatten)]
    anneal: AnnealArgs,
    #[command(flatten)]
    run: RunArgs,
}

const PRETRAIN: &str = "\
Of --model the configuration and the tokenizer are used, not the weights: a folder
with config.json will do. New weights are near-normal with deviation 0.02, made
from --seed.

Example:
  lacuna pretrain --model DIR --data text.tokens --output run --steps 5000 --batch 32";

/// Train a diffusion model from scratch
#[derive(ClapArgs, Debug)]
#[command(after_help = PRETRAIN)]
pub struct Pretrain {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    diffusion: DiffusionArgs,
    #[command(flatten)]
    run: RunArgs,
}

const SFT: &str = "\
--data is JSON lines (also .gz, .zst) with a prompt and an answer:
  {\"prompt\": \"What is 2 + 2?\", \"answer\": \"4\"}
They become [bos] prompt [sep] answer [eos] and padding; the prompt is never masked.

Examples:
  lacuna sft --model DIR --data train.jsonl --output run --steps 1000 --length 256
  lacuna sft --model DIR --data train.jsonl --output run --steps 1000 --length 256 --lora-rank 16
  lacuna merge --model DIR --adapter run/checkpoints/step-1000 --output merged
  lacuna sft --from-scratch --model SHAPE --data train.jsonl --output run --steps 5000";

/// Fine-tune a diffusion model on prompts with answers
#[derive(ClapArgs, Debug)]
#[command(after_help = SFT)]
pub struct Sft {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    diffusion: DiffusionArgs,
    #[command(flatten)]
    pairs: PairArgs,
    #[command(flatten)]
    sft: SftArgs,
    #[command(flatten)]
    run: RunArgs,
}

const TRAIN_AR: &str = "\
Plain next-token training under causal attention: the start of an adaptation, and
the baseline that a diffusion model is compared with. --validation gives nats a
token under nelbo. --data is a token file (lacuna pack), or JSON lines with prompts
and answers as lacuna sft reads them, of which the answers are learnt.

Examples:
  lacuna train-ar --model DIR --from-scratch --data text.tokens --output run --steps 5000
  lacuna train-ar --model DIR --data train.jsonl --pad none --output run --steps 1000";

/// Train a left-to-right model
#[derive(ClapArgs, Debug)]
#[command(after_help = TRAIN_AR)]
pub struct TrainAr {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    pairs: PairArgs,
    #[command(flatten)]
    ar: ArArgs,
    #[command(flatten)]
    run: RunArgs,
}

impl Adapt {
    pub fn json(&self) -> bool {
        self.run.json
    }

    /// # Errors
    /// Those of [`run`].
    pub fn run(&self, context: &Context) -> Result<()> {
        run(Command::Adapt, &self.run, typed(&[&self.common, &self.diffusion, &self.anneal])?, context)
    }
}

impl Pretrain {
    pub fn json(&self) -> bool {
        self.run.json
    }

    /// # Errors
    /// Those of [`run`].
    pub fn run(&self, context: &Context) -> Result<()> {
        run(Command::Pretrain, &self.run, typed(&[&self.common, &self.diffusion])?, context)
    }
}

impl Sft {
    pub fn json(&self) -> bool {
        self.run.json
    }

    /// # Errors
    /// Those of [`run`].
    pub fn run(&self, context: &Context) -> Result<()> {
        run(
            Command::Sft,
            &self.run,
            typed(&[&self.common, &self.diffusion, &self.pairs, &self.sft])?,
            context,
        )
    }
}

impl TrainAr {
    pub fn json(&self) -> bool {
        self.run.json
    }

    /// # Errors
    /// Those of [`run`].
    pub fn run(&self, context: &Context) -> Result<()> {
        run(Command::TrainAr, &self.run, typed(&[&self.common, &self.pairs, &self.ar])?, context)
    }
}

/// A run, new or resumed.
///
/// # Errors
/// [`Error::Request`] for options that are out of range, or other ones than those of the run that is resumed; those of
/// the files, the data and the training.
fn run(command: Command, args: &RunArgs, mut typed: Table, context: &Context) -> Result<()> {
    if let Some(path) = &args.config {
        let mut table = options::file(path)?;
        // A saved configuration of a run names its command.
        if let Some(named) = table.get("command").filter(|c| c.as_str() != Some(command.name())) {
            return Err(Error::request(format!(
                "{}: command = {named}, but this is lacuna {}",
                path.display(),
                command.name()
            )));
        }
        table.extend(typed);
        typed = table;
    }
    if !args.resume {
        let mut table = defaults(command)?;
        table.extend(typed);
        return setup::start(args, table, context);
    }
    let folder = RunFolder::resume(&args.output)?;
    let path = folder.config();
    let mut saved = options::file(&path)?;
    typed.entry("command").or_insert(command.name().into());
    // The variable is a default, not something that was typed.
    let from_variable = std::env::var("LACUNA_MODEL").ok();
    if typed.get("model").and_then(|m| m.as_str()) == from_variable.as_deref() {
        typed.remove("model");
    }
    let different = differences(&saved, &typed);
    if !different.is_empty() {
        return Err(Error::request(format!(
            "{}: the run was started with other options: {}; leave them out to go on with the run's own, or start \
             another run with another --output",
            path.display(),
            different.join("; ")
        )));
    }
    for key in options::FREE {
        if let Some(value) = typed.remove(key) {
            saved.insert(key.into(), value);
        }
    }
    setup::resume(args, folder, saved, context)
}

/// Says something to the person at the keyboard.
fn tell(args: &RunArgs, text: &str) {
    if !args.quiet {
        note(text);
    }
}

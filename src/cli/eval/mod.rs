//! `lacuna eval`: what a model knows and can do, with intervals. docs/evaluation.md says what is measured, and how.

mod args;
mod compare;
mod completions;
pub(super) mod countdown;
mod generated;
mod gsm8k;
mod harness;
mod infill;
mod lambada;
mod mc;
mod nelbo;
mod plot;
mod prompts;
mod qa;
mod results;
mod task;
mod unconditional;

use clap::{Args as ClapArgs, Subcommand};
use serde_json::Value;

use self::args::{MOST_SAMPLES, RunArgs, at_most};
use self::generated::{Exam, Generated, Manner, check_corrections};
use self::prompts::Prompts;
use self::results::{About, Summary};
use self::task::{Setting, Task};
use super::Context;
use super::args::ModelArgs;
use super::common::{Speller, check_mask};
use super::engine::Engine;
use super::journal::{Journal, fingerprint};
use super::sampling::{Sampling, order_name};
use super::trace::{Form as TraceForm, Recording};
use super::{device, terminal};
use crate::error::Result;
use crate::io::{AtomicFile, ModelFiles};
use crate::sample::{Canvas, Order};

const EXAMPLES: &str = "\
Every task reads a plain file (docs/evaluation.md has the forms), takes --limit,
--trials and --t-sweep, and with --output keeps what is done: after Ctrl-C or a
kill, --resume goes on. Same seed, same results, on any number of threads.

Examples:
  lacuna eval nelbo --data mine.txt                       the bound, in nats and bits
  lacuna eval mc --format hellaswag --data hellaswag_val.jsonl --model DIR
  lacuna eval lambada --data lambada_test.txt --model DIR --limit 200
  lacuna eval infill --format humaneval --data tasks.jsonl.gz --model DIR -o out --execute
  lacuna eval gsm8k --data test.jsonl --model tuned --samples 5
  lacuna eval unconditional --under gpt2 --t-sweep 8,16,32,64 -o swept
  lacuna eval compare a b                                 is the difference real?
  lacuna report swept --output report.html";

/// Evaluate a model: likelihood, multiple choice, infilling, reasoning, planning
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The bound on the negative log-likelihood of texts, by sampled times and masks
    Nelbo(Box<nelbo::Args>),
    /// Multiple choice: HellaSwag, Winogrande, SIQA, PIQA, or questions of your own
    Mc(Box<mc::Args>),
    /// The last word of a passage (LAMBADA)
    Lambada(Box<lambada::Args>),
    /// The middle of a story (ROUGE), or of a program (HumanEval infilling)
    Infill(Box<infill::Args>),
    /// Questions with short answers (SQuAD, TriviaQA): substring match and F1
    Qa(Box<qa::Args>),
    /// Word problems whose answer stands behind ####
    Gsm8k(Box<gsm8k::Args>),
    /// The countdown game: reach a target with given numbers
    Countdown(Box<countdown::Args>),
    /// Texts from nothing, judged by a left-to-right model
    Unconditional(Box<unconditional::Args>),
    /// Whether two evaluations of the same items differ: paired bootstrap and t-test
    Compare(compare::Args),
}

impl Args {
    /// Whether errors are wanted as objects.
    pub fn json(&self) -> bool {
        match &self.what {
            What::Nelbo(args) => args.run.json,
            What::Mc(args) => args.run.json,
            What::Lambada(args) => args.exam.run.json,
            What::Infill(args) => args.exam.run.json,
            What::Qa(args) => args.exam.run.json,
            What::Gsm8k(args) => args.exam.run.json,
            What::Countdown(args) => args.exam.run.json,
            What::Unconditional(args) => args.run.json,
            What::Compare(args) => args.json,
        }
    }
}

/// Runs `eval`.
///
/// # Errors
/// Any [`Error`](crate::Error); [`Error::Cancelled`](crate::Error::Cancelled) after Ctrl-C, when what is done has been kept.
pub fn run(args: Args, context: &Context) -> Result<()> {
    match args.what {
        What::Nelbo(args) => nelbo::run(&args, context),
        What::Mc(args) => mc::run(&args, context),
        What::Lambada(args) => lambada::run(&args, context),
        What::Infill(args) => infill::run(&args, context),
        What::Qa(args) => qa::run(&args, context),
        What::Gsm8k(args) => gsm8k::run(&args, context),
        What::Countdown(args) => countdown::run(&args, context),
        What::Unconditional(args) => unconditional::run(&args, context),
        What::Compare(args) => compare::run(&args, context),
    }
}

/// Runs a task under its settings, writes and shows what came of it.
///
/// # Errors
/// Those of [`harness::run`] and of the files.
fn finish(
    task: &mut dyn Task,
    settings: &[Setting],
    args: &RunArgs,
    context: &Context,
    about: &About,
) -> Result<()> {
    let ran = harness::run(task, settings, &work(about), args, context)?;
    conclude(ran, args, about, |_| Ok(()))
}

/// Writes and shows what came of a run: its journal ends when all else is written, so that until then `--resume` goes on.
fn conclude(
    (summaries, journal): (Vec<Summary>, Option<Journal>),
    args: &RunArgs,
    about: &About,
    also: impl FnOnce(&mut Journal) -> Result<()>,
) -> Result<()> {
    if let Some(dir) = &args.output {
        results::write(dir, about, &summaries)?;
        if plot::is_sweep(&summaries) {
            plot::write(&dir.join(harness::PLOT), about, &summaries)?;
        }
    }
    if let Some(mut journal) = journal {
        also(&mut journal)?;
        journal.finish()?;
    }
    results::show(about, &summaries, args.json)
}

/// What is said about an evaluation beside its numbers.
fn about(
    task: &dyn Task,
    engine: &dyn Engine,
    files: &ModelFiles,
    order: Option<String>,
    choices: Value,
    seed: u64,
) -> About {
    About {
        task: task.name().to_owned(),
        model: files.name.clone(),
        source: source(files),
        device: engine.device().to_owned(),
        dtype: engine.dtype().to_string(),
        order,
        choices,
        seed,
    }
}

/// What results are of: the model, and what it computes on and in.
fn work(about: &About) -> String {
    let device = about.device.split(',').next().unwrap_or_default();
    format!("{}, {device}, {}", about.source, about.dtype)
}

/// Where a model lies, how large its weights are, and a hash of some of them: what tells checkpoints of one name apart.
fn source(files: &ModelFiles) -> String {
    let path = files.path.as_ref().map_or_else(
        || files.name.clone(),
        |path| path.canonicalize().unwrap_or_else(|_| path.clone()).display().to_string(),
    );
    let (mut bytes, mut ends) = (0, Vec::new());
    for (_, tensor) in files.checkpoint.iter() {
        let all: &[u8] = tensor.bytes();
        bytes += all.len();
        ends.extend([&all[..all.len().min(64)], &all[all.len().saturating_sub(64)..]]);
    }
    format!("{path}, {bytes} bytes, {:016x}", fingerprint(&ends))
}

/// How an exam is taken.
struct Taking<'a> {
    run: &'a RunArgs,
    model: &'a ModelArgs,
    sampling: Sampling,
    manner: Manner,
    /// With and without remasking.
    both: bool,
    /// Steps where nothing is said; `None`: as the item has it.
    steps: Option<usize>,
    trace: Option<&'a std::path::Path>,
    choices: Value,
}

/// Takes an exam that is made from the model's files: the whole of a command. `also` writes what goes to --output beside
/// results.
///
/// # Errors
/// Any [`Error`](crate::Error).
fn take<'f, E: Exam>(
    files: &'f ModelFiles,
    taking: &Taking<'_>,
    context: &Context,
    exam: impl FnOnce(Prompts<'f>) -> Result<E>,
    also: impl FnOnce(&mut Journal, &[Setting]) -> Result<()>,
) -> Result<()> {
    let Taking { run, model, sampling, manner, both, steps, trace, choices } = taking;
    check_mask(files, sampling)?;
    at_most("samples", manner.samples as usize, MOST_SAMPLES)?;
    if *both {
        check_corrections(sampling)?;
    }
    // What makes no sense is found out before the model is loaded.
    let sample = sampling.request(Canvas::prefix(&[0], 1))?;
    if let Some(path) = trace {
        TraceForm::of(path)?;
        AtomicFile::probe(path)?;
    }
    let exam = exam(Prompts::new(files)?)?;
    let engine = device::load(&model.device, files, context)?;
    let mut task = Generated::new(exam, &*engine, context, sampling.clone(), *manner);
    let remask: &[Option<bool>] = if *both { &[Some(false), Some(true)] } else { &[None] };
    let seed = sampling.seed.unwrap_or(0);
    let settings = harness::settings(run, *steps, remask, seed)?;
    // Where there are runs of both kinds, each result says itself which it is of.
    let remasks = !both && matches!(sample.order, Order::Confidence { remask: true, .. });
    let order = results::order_of(order_name(&sample), remasks);
    let about = about(&task, &*engine, files, Some(order), choices.clone(), seed);
    let ran = harness::run(&mut task, &settings, &work(&about), run, context);
    // A run that went on where nothing was left to draw leaves the recording of the one before.
    if let (Some(path), Some(runs)) = (trace, task.recorded.as_ref().filter(|runs| !runs.is_empty())) {
        let speller = Speller::new(files);
        let (piece, special) = (|id| speller.piece(id), |id| speller.is_special(id));
        Recording { model: &files.name, runs, piece: &piece, special: &special }.write(path)?;
        if !run.quiet {
            terminal::note(&format!("{} samples recorded in {}", runs.len(), path.display()));
        }
    }
    conclude(ran?, run, &about, |journal| also(journal, &settings))
}

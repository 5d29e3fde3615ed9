//! The command line: one file a subcommand. What is typed lives in `args.rs`, what it means in
//! `sampling.rs` and `common.rs`, the machine in `device.rs`.

mod args;
mod batch;
mod bench;
mod common;
mod data;
mod device;
mod engine;
mod eval;
mod findings;
mod flops;
mod generate;
mod infill;
mod inspect;
mod interrupt;
mod journal;
mod marks;
mod merge;
mod pack;
mod plan;
mod profile;
mod record;
mod replay;
mod replay_loss;
mod report;
mod run;
mod sampling;
mod selftest;
mod tally;
mod terminal;
mod tokenize;
mod trace;
mod train;
mod watch;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::interrupt::Interrupt;
use self::terminal::Terminal;
use crate::error::{Error, Result};

/// Runs and trains masked diffusion language models: texts appear out of masks, many tokens a step
#[derive(Parser, Debug)]
#[command(name = "lacuna", version, arg_required_else_help = true, max_term_width = 100, after_help = AFTER)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER: &str = "\
Start with:
  lacuna generate --watch

Exit codes:
    0  done
    1  a failure inside the program
    2  wrong flags, request or input line
    3  a file cannot be read or written
    4  model files are missing or malformed
    5  weights or logits that are not finite
    6  a model cannot be fetched from a hub
    7  not enough memory
    8  a device is missing, too old or failed, or a self-test did
    9  bench compare found something slower than its threshold allows
  130  stopped by Ctrl-C
With --json an error is also an object on standard output:
{\"error\": \"...\", \"code\": 2}. Ctrl-C stops after the step at hand and keeps
what there is; a second one stops at once, as does the first before there is
anything to keep. NO_COLOR turns colours off.
LACUNA_MODEL is the default of --model, LACUNA_DEVICE that of --device.";

#[derive(Subcommand, Debug)]
enum Command {
    /// Write a text from nothing, or on from a prompt
    Generate(Box<generate::Args>),
    /// Fill the gaps of a text, seeing both sides
    Infill(Box<infill::Args>),
    /// Run many requests from JSON lines, each with parameters of its own
    Batch(Box<batch::Args>),
    /// Turn a left-to-right model into a diffusion model
    Adapt(Box<train::Adapt>),
    /// Train a diffusion model from scratch
    Pretrain(Box<train::Pretrain>),
    /// Fine-tune a diffusion model on prompts with answers
    Sft(Box<train::Sft>),
    /// Train a left-to-right model
    TrainAr(Box<train::TrainAr>),
    /// Solve a problem of the countdown game with the built-in planner
    Plan(Box<plan::Args>),
    /// Evaluate a model: likelihood, multiple choice, infilling, reasoning, planning
    Eval(Box<eval::Args>),
    /// Make up training and test data: problems of the countdown game
    Data(data::Args),
    /// Add a low-rank adapter to the weights it was trained on
    Merge(merge::Args),
    /// Show what a model's files hold, what of it is used, and what is odd
    Inspect(inspect::Args),
    /// Turn text into token ids, or ids into text
    Tokenize(tokenize::Args),
    /// Turn texts into a token file, which training reads
    Pack(pack::Args),
    /// Run explicit inputs, to compare with another implementation
    Replay(Box<replay::Args>),
    /// Measure generations, steps, training, kernels; compare measurements
    Bench(Box<bench::Args>),
    /// Run a command and show where its time goes
    Profile(profile::Args),
    /// Count the arithmetic of a generation or a training step, by operation
    Flops(Box<flops::Args>),
    /// Put measurements on one page: rooflines, speeds, latencies, quality, training curves
    Report(report::Args),
    /// Test the kernels on this machine against the CPU
    Selftest(selftest::Args),
}

impl Command {
    /// Whether errors are wanted as objects.
    fn json(&self) -> bool {
        match self {
            Command::Generate(args) => args.output.json,
            Command::Infill(args) => args.output.json,
            Command::Batch(args) => args.json,
            Command::Adapt(args) => args.json(),
            Command::Pretrain(args) => args.json(),
            Command::Sft(args) => args.json(),
            Command::TrainAr(args) => args.json(),
            Command::Plan(args) => args.json(),
            Command::Eval(args) => args.json(),
            Command::Data(args) => args.json(),
            Command::Merge(_) => false,
            Command::Inspect(args) => args.json,
            Command::Tokenize(args) => args.json,
            Command::Pack(args) => args.json,
            Command::Replay(args) => args.json(),
            Command::Bench(args) => args.json(),
            Command::Profile(args) => args.command.iter().any(|word| word == "--json"),
            Command::Flops(args) => args.json,
            Command::Report(_) => false,
            Command::Selftest(args) => args.json,
        }
    }
}

/// What every subcommand is given beside its arguments.
pub struct Context {
    pub interrupt: Interrupt,
    pub terminal: Terminal,
    reported: AtomicBool,
}

impl Context {
    /// Says that the failure has been written to standard output as an object already.
    pub fn set_reported(&self, reported: bool) {
        self.reported.store(reported, Ordering::Relaxed);
    }

    /// A progress bar over `len` things on standard error; hidden where that is no terminal.
    pub fn progress(&self, len: u64, quiet: bool) -> ProgressBar {
        let bar = ProgressBar::new(len);
        if quiet || !self.terminal.live {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  {eta} left") {
            bar.set_style(style.progress_chars("█░░"));
        }
        bar
    }
}

/// Runs the command given by the process arguments.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let json = cli.command.json();
    let interrupt = match Interrupt::install() {
        Ok(interrupt) => interrupt,
        Err(error) => return fail(&error, json),
    };
    let context = Context { interrupt, terminal: Terminal::detect(), reported: AtomicBool::new(false) };
    match dispatch(cli.command, &context) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, json && !context.reported.load(Ordering::Relaxed)),
    }
}

/// What is wrong with a command line, without hints and the usage, which come after an empty line.
fn what_is_wrong(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let what: Vec<&str> = text.lines().map(str::trim).take_while(|l| !l.is_empty()).collect();
    let what = what.join(" ");
    what.strip_prefix("error: ").unwrap_or(&what).to_owned()
}

/// Says how the program is used; what asked for objects is told by one too.
fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && std::env::args_os().any(|a| a == "--json") {
        let what = Error::request(what_is_wrong(error));
        // Nothing better can be done when this fails.
        let _ = terminal::println(&record::failure(&what).to_string());
    }
    // Neither can it here.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

fn dispatch(command: Command, context: &Context) -> Result<()> {
    match command {
        Command::Generate(args) => generate::run(*args, context),
        Command::Infill(args) => infill::run(*args, context),
        Command::Batch(args) => batch::run(*args, context),
        Command::Adapt(args) => args.run(context),
        Command::Pretrain(args) => args.run(context),
        Command::Sft(args) => args.run(context),
        Command::TrainAr(args) => args.run(context),
        Command::Plan(args) => plan::run(&args, context),
        Command::Eval(args) => eval::run(*args, context),
        Command::Data(args) => data::run(&args, context),
        Command::Merge(args) => merge::run(&args, context),
        Command::Inspect(args) => inspect::run(args, context),
        Command::Tokenize(args) => tokenize::run(args, context),
        Command::Pack(args) => pack::run(args, context),
        Command::Replay(args) => replay::run(*args, context),
        Command::Bench(args) => bench::run(*args, context),
        Command::Profile(args) => profiled(&args, context),
        Command::Flops(args) => flops::run(&args),
        Command::Report(args) => report::run(&args, context),
        Command::Selftest(args) => selftest::run(&args, context),
    }
}

/// Runs the command that `lacuna profile` was given.
fn profiled(args: &profile::Args, context: &Context) -> Result<()> {
    let words = std::iter::once("lacuna".into()).chain(args.command.iter().cloned());
    let wrong = |error: clap::Error| -> Error {
        if !error.use_stderr() {
            // Help was asked for.
            error.exit();
        }
        Error::request(format!("the command to profile: {}", what_is_wrong(&error)))
    };
    let matches = Cli::command().try_get_matches_from(words).map_err(wrong)?;
    let command = Cli::from_arg_matches(&matches).map_err(wrong)?.command;
    if matches!(command, Command::Profile(_) | Command::Selftest(_)) {
        return Err(Error::request(
            "profile: expected a command that computes, such as generate or bench train",
        ));
    }
    let mut innermost = &matches;
    while let Some((_, inner)) = innermost.subcommand() {
        innermost = inner;
    }
    // The flag has a default: it is among the arguments of every command that knows it.
    let has_device = innermost.ids().any(|id| id == "device");
    let machine =
        has_device.then(|| args::DeviceArgs::from_arg_matches(innermost)).transpose().map_err(wrong)?;
    let ceilings = machine.map(|machine| move || device::ceilings(&machine));
    let ceilings = ceilings.as_ref().map(|measure| measure as &dyn Fn() -> Result<crate::profile::Ceilings>);
    profile::run(args, context, ceilings, || dispatch(command, context))
}

/// Says what went wrong; a reader that has gone away is no failure.
fn fail(error: &Error, json: bool) -> ExitCode {
    if terminal::is_closed_pipe(error) {
        return ExitCode::SUCCESS;
    }
    if json {
        // Nothing better can be done when this fails too.
        let _ = terminal::println(&record::failure(error).to_string());
    }
    match error {
        Error::Cancelled => terminal::note("interrupted"),
        error => terminal::note(&format!("error: {}", one_line(&error.to_string()))),
    }
    ExitCode::from(error.exit_code())
}

/// `message` on one line, harmless to a terminal.
fn one_line(message: &str) -> String {
    terminal::printable(message).split(['\n', '\t']).map(str::trim).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn names_that_stay() {
        let mut cli = Cli::command();
        cli.build();
        let flags = |command: &str| -> Vec<String> {
            let found = cli.find_subcommand(command).expect(command);
            found.get_arguments().filter_map(|a| a.get_long().map(str::to_owned)).collect()
        };
        let generate = flags("generate");
        for name in
            "model prompt length steps temperature top-p top-k order seed mask-id threads device batch json \
                     quiet watch trace ar greedy"
                .split_whitespace()
        {
            assert!(generate.iter().any(|f| f == name), "--{name} is gone");
        }
        for command in ["adapt", "pretrain", "sft", "train-ar"] {
            let flags = flags(command);
            for name in "model data output batch length steps lr seed save-every resume threads device"
                .split_whitespace()
            {
                assert!(flags.iter().any(|f| f == name), "{command} --{name} is gone");
            }
        }
        assert!(flags("adapt").iter().any(|f| f == "anneal-steps"));
        let infill = flags("infill");
        for name in ["prefix", "suffix", "gap"] {
            assert!(infill.iter().any(|f| f == name), "--{name} is gone");
        }
        let pack = flags("pack");
        for name in ["tokenizer", "output"] {
            assert!(pack.iter().any(|f| f == name), "--{name} is gone");
        }
    }

    #[test]
    fn errors_fit_on_a_line() {
        assert_eq!(one_line("a\n  b\x1b[0m"), "a b\u{FFFD}[0m");
    }
}

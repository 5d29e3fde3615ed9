//! `lacuna data`: makes up data of tasks that can be made up.

use std::collections::HashSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use serde_json::json;

use super::Context;
use super::terminal::{note, print, println};
use crate::error::{Error, Result};
use crate::eval::countdown::{FEWEST, LARGEST, MOST, Problems, Rules, Split, written};
use crate::io::AtomicFile;

/// Make up training and test data
#[derive(ClapArgs, Debug)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Problems of the countdown game with solutions, for lacuna sft, train-ar and eval countdown
    Countdown(CountdownArgs),
}

impl Args {
    /// Whether errors are wanted as objects.
    pub fn json(&self) -> bool {
        let What::Countdown(args) = &self.what;
        args.json
    }
}

/// Which of two disjoint sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum SplitName {
    #[default]
    Train,
    Test,
}

const EXAMPLES: &str = "\
Numbers and targets are drawn until a problem has a solution; the solution that is
written is the first that a search in fixed order finds, every number used once:
  {\"prompt\": \"86,28,13,31,96\", \"answer\": \"86+28=114,31-13=18,114-18=96\"}
Which split a problem is in depends on its target and its numbers, whatever their
order, and on nothing else: no seed and no count puts a problem into both.

Examples:
  lacuna data countdown --numbers 3 --count 500000 -o train.jsonl
  lacuna data countdown --numbers 3 --split test --count 1000 -o test.jsonl
  lacuna sft --from-scratch --model SHAPE --data train.jsonl -o planner --steps 20000";

#[derive(ClapArgs, Debug)]
#[command(after_help = EXAMPLES)]
struct CountdownArgs {
    /// Numbers of a problem, 2 to 6
    #[arg(long, value_name = "N", default_value_t = 4, allow_negative_numbers = true)]
    numbers: usize,

    /// Which of two sets, which have no problem in common: one problem in 16 is for tests
    #[arg(long, value_enum, value_name = "train|test", default_value_t, hide_possible_values = true)]
    split: SplitName,

    /// Problems to write
    #[arg(long, value_name = "N", default_value_t = 1000, allow_negative_numbers = true)]
    count: usize,

    /// Decides which problems
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Largest number that is given; targets are results and may be larger on the way
    #[arg(long, value_name = "N", default_value_t = 99)]
    largest: u32,

    /// Least target
    #[arg(long, value_name = "N", default_value_t = 10)]
    least_target: u32,

    /// Greatest target
    #[arg(long, value_name = "N", default_value_t = 100)]
    greatest_target: u32,

    /// JSON lines to write, whole or not at all; - is standard output
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    output: PathBuf,

    /// One JSON object about the data on standard output (with -o FILE), errors too
    #[arg(long)]
    json: bool,

    /// Nothing on standard error but errors
    #[arg(long, short)]
    quiet: bool,
}

/// Candidates without a new problem, after which there are taken to be no more.
const PATIENCE: u32 = 5_000_000;

/// Candidates between two looks at the clock and at Ctrl-C: with six numbers one takes milliseconds.
const LOOK: u32 = 64;

/// Runs `data`.
///
/// # Errors
/// [`Error::Request`] for rules that make no sense, or that have fewer problems than were asked for; [`Error::Io`];
/// [`Error::Cancelled`] after Ctrl-C, with no file left.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let What::Countdown(args) = &args.what;
    countdown(args, context)
}

fn rules(args: &CountdownArgs) -> Result<Rules> {
    let CountdownArgs { numbers, largest, least_target, greatest_target, count, .. } = *args;
    let fail = |what: String| Err(Error::request(what));
    if !(FEWEST..=MOST).contains(&numbers) {
        return fail(format!("--numbers {numbers}: expected {FEWEST} to {MOST}"));
    }
    if !(1..=LARGEST).contains(&largest) {
        return fail(format!("--largest {largest}: expected 1 to {LARGEST}"));
    }
    if least_target > greatest_target || greatest_target > 100 * LARGEST {
        return fail(format!(
            "--least-target {least_target} --greatest-target {greatest_target}: expected the first not above the second, \
             and that at most {}",
            100 * LARGEST
        ));
    }
    if count == 0 {
        return fail("--count 0: expected 1 problem or more".into());
    }
    Ok(Rules { numbers, largest, targets: (least_target, greatest_target) })
}

fn countdown(args: &CountdownArgs, context: &Context) -> Result<()> {
    let rules = rules(args)?;
    let split = match args.split {
        SplitName::Train => Split::Train,
        SplitName::Test => Split::Test,
    };
    let to_file = args.output != Path::new("-");
    if args.json && !to_file {
        return Err(Error::request("--json is about a file; name it with -o FILE"));
    }
    // From here on there is a file to be cleared away.
    context.interrupt.hold();
    let mut file = if to_file { Some(AtomicFile::create(&args.output)?) } else { None };
    let mut problems = Problems::new(rules, split, args.seed);
    let mut seen: HashSet<(Vec<u64>, u64)> = HashSet::new();
    let bar = context.progress(args.count as u64, args.quiet);
    let mut last = 0;
    let mut lines = String::new();
    while seen.len() < args.count {
        let candidate = problems.candidate();
        let looked = problems.looked_at();
        if looked.is_multiple_of(LOOK) {
            context.interrupt.check()?;
            bar.set_position(seen.len() as u64);
        }
        let found = match candidate {
            Some(found) if looked - last <= PATIENCE => found,
            _ => {
                return Err(Error::request(format!(
                    "--count {}: only {} different problems were found among {looked} candidates; ask for fewer, or \
                     widen --largest or the targets",
                    args.count,
                    seen.len()
                )));
            }
        };
        let Some((problem, solution)) = found else { continue };
        let (prompt, answer) = (problem.to_string(), written(&solution));
        if !seen.insert((problem.numbers, problem.target)) {
            continue;
        }
        last = looked;
        lines.push_str(&json!({"prompt": prompt, "answer": answer}).to_string());
        lines.push('\n');
        if lines.len() > 1 << 16 || seen.len() == args.count {
            match &mut file {
                Some(file) => {
                    file.write_all(lines.as_bytes()).map_err(|e| Error::io("write", &args.output, e))?;
                }
                None => print(&lines)?,
            }
            lines.clear();
        }
    }
    bar.finish_and_clear();
    if let Some(file) = file {
        file.commit()?;
    }
    let looked = problems.looked_at();
    if args.json {
        let about = json!({
            "problems": seen.len(), "candidates": looked, "numbers": rules.numbers, "seed": args.seed,
            "output": args.output.display().to_string(),
        });
        println(&about.to_string())?;
    } else if to_file && !args.quiet {
        note(&format!("{} problems out of {looked} candidates in {}", seen.len(), args.output.display()));
    }
    Ok(())
}

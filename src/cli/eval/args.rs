//! The flags that all evaluations share.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

use crate::cli::args::{ModelArgs, SamplingArgs};
use crate::error::{Error, Result};

/// How much is run, and where results go.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// The first N items only
    #[arg(long, value_name = "N", help_heading = "How much")]
    pub limit: Option<NonZeroUsize>,

    /// Runs with seeds --seed, --seed + 1, ..: mean, standard deviation and interval over them
    #[arg(long, value_name = "N", default_value = "1", help_heading = "How much")]
    pub trials: NonZeroUsize,

    /// Values of T to run one after the other: quality, NFE and time of each, and a plot in --output
    #[arg(long, value_name = "T,T,..", value_delimiter = ',', help_heading = "How much")]
    pub t_sweep: Vec<NonZeroUsize>,

    /// Folder for results.jsonl (a line a metric), items.jsonl (a line an item) and quality.svg
    #[arg(long, short, value_name = "DIR", help_heading = "Output")]
    pub output: Option<PathBuf>,

    /// Go on with what an earlier run with the same flags left in --output
    #[arg(long, help_heading = "Output", requires = "output")]
    pub resume: bool,

    /// The lines of results.jsonl on standard output, errors too
    #[arg(long, help_heading = "Output")]
    pub json: bool,

    /// Nothing on standard error but errors
    #[arg(long, short, help_heading = "Output")]
    pub quiet: bool,
}

/// Most of several things, beyond which a number is taken for a slip of the keyboard.
pub const MOST_SAMPLES: usize = 1 << 16;
pub const MOST_DRAWS: usize = 1 << 14;
pub const MOST_UNITS: usize = 20_000_000;

/// `n` where it is at most `most`.
///
/// # Errors
/// [`Error::Request`] naming the flag.
pub fn at_most(flag: &str, n: usize, most: usize) -> Result<usize> {
    if n <= most { Ok(n) } else { Err(Error::request(format!("--{flag} {n}: expected at most {most}"))) }
}

/// What becomes of an item that the context does not hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum TooLong {
    // An error that names it.
    #[default]
    Error,
    // It is left out, counted and told.
    Skip,
    // The beginning of what is given is cut off.
    Truncate,
}

/// What to do with items that do not fit.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct FitArgs {
    /// An item that is longer than the context: error, skip, or truncate (what is given, from its start)
    #[arg(
        long,
        value_enum,
        value_name = "RULE",
        default_value_t,
        hide_possible_values = true,
        help_heading = "How much"
    )]
    pub too_long: TooLong,
}

/// The flags of evaluations by generated texts.
#[derive(Args, Clone, Debug)]
pub struct ExamArgs {
    #[command(flatten)]
    pub fit: FitArgs,
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub model: ModelArgs,
}

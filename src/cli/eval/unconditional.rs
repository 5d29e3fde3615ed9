//! `lacuna eval unconditional`: texts from nothing, judged by a left-to-right model.

use std::num::NonZeroUsize;

use clap::Args as ClapArgs;
use serde_json::{Map, Value, json};

use super::args::{MOST_SAMPLES, RunArgs, at_most};
use super::generated::{Exam, Manner, Sampled};
use super::prompts::Prompts;
use super::task::{Answer, Better, Metric, Unit};
use super::{Taking, source, take};
use crate::cli::args::{ModelArgs, SamplingArgs};
use crate::cli::sampling::{DEFAULT_LENGTH, DEFAULT_STEPS};
use crate::cli::{Context, device};
use crate::error::{Error, Result};
use crate::eval::score::{Likelihood, Probe};
use crate::eval::text::{distinct, entropy};
use crate::io::ModelFiles;
use crate::sample::{Canvas, Part};

const EXAMPLES: &str = "\
Texts of --length tokens are generated from nothing. perplexity is that of the texts
under --under, a left-to-right model with its own tokenizer (the paper uses GPT-2
large); entropy, in nats, is that of the tokens within a text, and distinct-n the share
of its n-grams that are different: a text that repeats itself has a low perplexity and
little of either.

Examples:
  lacuna eval unconditional --under gpt2 --samples 64 --t-sweep 8,16,32,64,128 -o swept
  lacuna eval unconditional --model DIR --under DIR2 --length 512 --trials 3";

#[derive(ClapArgs, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A left-to-right model to judge the texts by: folder or Hugging Face id
    #[arg(long, value_name = "DIR|ID", help_heading = "What")]
    under: Option<String>,

    /// Texts
    #[arg(long, value_name = "N", default_value = "32", help_heading = "What")]
    samples: NonZeroUsize,

    /// Tokens of a text [default: up to 128, as the context allows]
    #[arg(long, short, value_name = "N", help_heading = "What")]
    length: Option<NonZeroUsize>,

    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// A model that judges.
struct Judge<'a> {
    /// Where it lies.
    source: String,
    model: Box<dyn Likelihood + 'a>,
    prompts: Prompts<'a>,
}

struct Unconditional<'a, 'j> {
    prompts: Prompts<'a>,
    judge: Option<Judge<'j>>,
    samples: usize,
    length: usize,
    opening: u32,
}

impl<'a, 'j> Unconditional<'a, 'j> {
    fn new(args: &Args, prompts: Prompts<'a>, judge: Option<Judge<'j>>) -> Result<Self> {
        let name = &prompts.files.name;
        let room = prompts.context().saturating_sub(1);
        let length = args.length.map_or(room.min(DEFAULT_LENGTH), NonZeroUsize::get);
        if length == 0 || length > room {
            return Err(Error::request(format!(
                "--length {length}: expected 1 to {room}, as the context of {name} allows"
            )));
        }
        let opening = prompts.opening(true).ok_or_else(|| {
            Error::request(format!("{name} names neither bos_token_id nor eos_token_id to begin from"))
        })?;
        let samples = args.run.limit.map_or(args.samples, |limit| limit.min(args.samples)).get();
        Ok(Self { prompts, judge, samples, length, opening })
    }
}

impl Exam for Unconditional<'_, '_> {
    fn name(&self) -> &str {
        "unconditional"
    }

    fn metrics(&self) -> Vec<Metric> {
        let mut metrics = Vec::new();
        if self.judge.is_some() {
            metrics.push(Metric { name: "perplexity", better: Better::Lower, unit: Unit::Exp });
        }
        metrics.push(Metric::plain("entropy", Better::Higher));
        metrics.extend(["distinct-1", "distinct-2", "distinct-3"].map(Metric::share));
        metrics
    }

    fn ids(&self) -> Vec<String> {
        (1..=self.samples).map(|n| n.to_string()).collect()
    }

    fn choices(&self) -> Value {
        json!({"length": self.length, "under": self.judge.as_ref().map(|judge| &judge.source)})
    }

    fn canvas(&self, _: usize) -> (Canvas, Option<usize>) {
        (Canvas::new(&[Part::Fixed(vec![self.opening]), Part::Gap(self.length)]), None)
    }

    fn judge(&mut self, _: usize, samples: &[Sampled]) -> Result<Answer> {
        let ids = samples.first().map(Sampled::ids).unwrap_or_default();
        let text = self.prompts.decode(&ids)?;
        let mut values = Vec::new();
        if let Some(judge) = &mut self.judge {
            let mut seen = judge.prompts.opening(true).into_iter().collect::<Vec<u32>>();
            let first = seen.len();
            seen.extend(judge.prompts.encode(&text)?);
            // A text longer than the judge's context is judged as far as that goes.
            seen.truncate(judge.prompts.context());
            let nll = judge.model.nll(&[Probe::causal(&seen, first)], true)?;
            let nll = nll.first().map(Vec::as_slice).unwrap_or_default();
            values.push((nll.iter().sum(), nll.len() as f64));
        }
        values.push((entropy(&ids), 1.0));
        let one = [ids];
        values.extend((1..=3).map(|n| (distinct(&one, n), 1.0)));
        let record = Map::from_iter([("output".to_owned(), json!(text))]);
        Ok(Answer { values, record, ..Answer::default() })
    }
}

/// Runs it.
///
/// # Errors
/// [`Error::Request`] for a length beyond the context; any other [`Error`].
pub fn run(args: &Args, context: &Context) -> Result<()> {
    device::check(&args.model.device)?;
    at_most("samples", args.samples.get(), MOST_SAMPLES)?;
    let sampling = args.sampling.sampling(&args.model);
    let judge_files = args.under.as_deref().map(|under| ModelFiles::find(Some(under))).transpose()?;
    if let Some(files) = &judge_files {
        Prompts::new(files)?;
    }
    let judge_engine =
        judge_files.as_ref().map(|files| device::load(&args.model.device, files, context)).transpose()?;
    let judge = match (&judge_files, &judge_engine) {
        (Some(files), Some(engine)) => {
            Some(Judge { source: source(files), model: engine.likelihood(), prompts: Prompts::new(files)? })
        }
        _ => None,
    };
    let taking = Taking {
        run: &args.run,
        model: &args.model,
        manner: Manner { samples: 1, ..Manner::default() },
        both: false,
        steps: Some(sampling.steps.unwrap_or(DEFAULT_STEPS)),
        sampling,
        trace: None,
        choices: json!({"under": args.under, "length": args.length}),
    };
    let files = ModelFiles::find(args.model.model.as_deref())?;
    take(&files, &taking, context, |prompts| Unconditional::new(args, prompts, judge), |_, _| Ok(()))
}

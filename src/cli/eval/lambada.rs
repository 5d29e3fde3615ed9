//! `lacuna eval lambada`: the last word of a passage.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde_json::{Map, Value, json};

use super::args::ExamArgs;
use super::generated::{Exam, Manner, Sampled};
use super::prompts::{Form, Prompts, fingerprint_of, left_out};
use super::task::{Answer, Metric};
use super::{Taking, take};
use crate::cli::Context;
use crate::cli::sampling::Sampling;
use crate::error::Result;
use crate::eval::formats::{cloze, limit};
use crate::io::ModelFiles;
use crate::sample::{Canvas, Part};

const EXAMPLES: &str = "\
--data has a passage a line; its last word is filled in, with as many masks as the
word has tokens and as many steps. The most probable tokens are taken, unless the
flags say otherwise; --parity draws as the paper's released evaluator does
(temperature 1, top-p 0.9).

Examples:
  lacuna eval lambada --data lambada_test.txt --model DIR
  lacuna eval lambada --data lambada_test.txt --model DIR --parity --trials 5
  lacuna eval lambada --data lambada_test.txt --model gpt2 --ar --greedy";

#[derive(ClapArgs, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Passages: a line each, or JSON lines with \"text\"
    #[arg(long, value_name = "FILE", help_heading = "What")]
    data: PathBuf,

    /// As the paper's released evaluator
    #[arg(long, help_heading = "What", conflicts_with_all = ["temperature", "greedy", "top_p"])]
    parity: bool,

    #[command(flatten)]
    pub exam: ExamArgs,
}

struct Item {
    id: String,
    word: String,
    given: Vec<u32>,
    /// Tokens of the word.
    free: usize,
}

struct Lambada<'a> {
    prompts: Prompts<'a>,
    items: Vec<Item>,
}

impl<'a> Lambada<'a> {
    fn new(args: &Args, prompts: Prompts<'a>) -> Result<Self> {
        let (mut items, mut skipped) = (Vec::new(), 0);
        for passage in limit(cloze::read(&args.data)?, args.exam.run.limit.map(NonZeroUsize::get)) {
            let context = prompts.encode(&passage.context)?;
            let whole = prompts.encode(&format!("{} {}", passage.context, passage.word))?;
            // The tokens of the whole that the context does not have: the word, as it stands behind the context.
            let free = whole.len().saturating_sub(context.len()).max(1);
            let given = prompts.given(&passage.context, Form::Plain)?;
            match prompts.fit(&passage.id, given, free, args.exam.fit.too_long)? {
                Some(given) => items.push(Item { id: passage.id, word: passage.word, given, free }),
                None => skipped += 1,
            }
        }
        left_out(skipped, args.exam.run.quiet);
        Ok(Self { prompts, items })
    }
}

impl Exam for Lambada<'_> {
    fn name(&self) -> &str {
        "lambada"
    }

    fn metrics(&self) -> Vec<Metric> {
        vec![Metric::share("accuracy")]
    }

    fn ids(&self) -> Vec<String> {
        self.items.iter().map(|item| item.id.clone()).collect()
    }

    fn choices(&self) -> Value {
        let item = |item: &Item| json!([item.word, fingerprint_of(item.given.iter().copied())]);
        json!(self.items.iter().map(item).collect::<Vec<_>>())
    }

    fn canvas(&self, item: usize) -> (Canvas, Option<usize>) {
        let item = &self.items[item];
        (Canvas::new(&[Part::Fixed(item.given.clone()), Part::Gap(item.free)]), Some(item.free))
    }

    fn judge(&mut self, item: usize, samples: &[Sampled]) -> Result<Answer> {
        let word = &self.items[item].word;
        let (mut right, mut outputs) = (0, Vec::new());
        for sample in samples {
            let text = self.prompts.decode(&sample.ids())?;
            right += usize::from(text.trim() == word.trim());
            outputs.push(text);
        }
        let record =
            Map::from_iter([("outputs".to_owned(), json!(outputs)), ("word".to_owned(), json!(word))]);
        Ok(Answer { values: vec![(right as f64, samples.len() as f64)], record, ..Answer::default() })
    }
}

/// Greedy where nothing is said about drawing.
pub(super) fn greedy_unless_told(sampling: &mut Sampling) {
    if sampling.temperature.is_none() && sampling.greedy.is_none() {
        sampling.greedy = Some(true);
    }
}

/// Runs it.
///
/// # Errors
/// Any [`Error`](crate::Error).
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let mut sampling = args.exam.sampling.sampling(&args.exam.model);
    if args.parity {
        (sampling.temperature, sampling.top_p) = (Some(1.0), Some(0.9));
        sampling.suppress_mask = Some(false);
        sampling.ignore_eos = Some(true);
    }
    greedy_unless_told(&mut sampling);
    let taking = Taking {
        run: &args.exam.run,
        model: &args.exam.model,
        manner: Manner { samples: 1, ..Manner::default() },
        both: false,
        steps: sampling.steps,
        sampling,
        trace: None,
        choices: json!({"parity": args.parity}),
    };
    let files = ModelFiles::find(args.exam.model.model.as_deref())?;
    take(&files, &taking, context, |prompts| Lambada::new(args, prompts), |_, _| Ok(()))
}

//! `lacuna eval qa`: questions with short answers.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde_json::{Map, Value, json};

use super::args::ExamArgs;
use super::generated::{Exam, Manner, Sampled};
use super::lambada::greedy_unless_told;
use super::prompts::{Form, Prompts, fingerprint_of, left_out};
use super::task::{Answer, Metric};
use super::{Taking, take};
use crate::cli::Context;
use crate::cli::terminal::note;
use crate::error::Result;
use crate::eval::formats::{limit, questions};
use crate::eval::text::{best_f1, contains_answer, exact_match};
use crate::io::ModelFiles;
use crate::sample::{Canvas, Part};

const EXAMPLES: &str = "\
--data is SQuAD or TriviaQA .json, or JSON lines with question, answers and, if there
is one, context. The answer has as many masks as the longest of the right answers has
tokens, and as many steps, unless --length and --steps say otherwise. contains: a right
answer stands in the output; f1: shared words; both without case, punctuation and
articles, as in SQuAD.

Examples:
  lacuna eval qa --data dev-v1.1.json --model DIR --limit 500
  lacuna eval qa --data trivia.jsonl --model DIR --length 16 --steps 16";

#[derive(ClapArgs, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Questions with answers
    #[arg(long, value_name = "FILE", help_heading = "What")]
    data: PathBuf,

    /// New tokens of an answer [default: those of the longest right answer]
    #[arg(long, short, value_name = "N", help_heading = "What")]
    length: Option<NonZeroUsize>,

    /// As the paper's released evaluator
    #[arg(long, help_heading = "What", conflicts_with_all = ["temperature", "greedy", "top_p", "length"])]
    parity: bool,

    #[command(flatten)]
    pub exam: ExamArgs,
}

struct Item {
    id: String,
    answers: Vec<String>,
    given: Vec<u32>,
    free: usize,
}

struct Questions<'a> {
    prompts: Prompts<'a>,
    items: Vec<Item>,
}

impl<'a> Questions<'a> {
    fn new(args: &Args, prompts: Prompts<'a>) -> Result<Self> {
        let (mut items, mut skipped) = (Vec::new(), 0);
        let read = questions::read(&args.data)?;
        if read.unanswerable > 0 && !args.exam.run.quiet {
            note(&format!("{} questions have no answer and are left out", read.unanswerable));
        }
        for read in limit(read.items, args.exam.run.limit.map(NonZeroUsize::get)) {
            let before = read.context.map_or(String::new(), |c| format!("{c}\n"));
            let text = match args.parity {
                // Spelled as the released evaluator spells it.
                true => format!("{before}Quesion{}?\nAnswer: ", read.question),
                false => format!("{before}Question: {}\nAnswer:", read.question),
            };
            let mut longest = 1;
            for answer in &read.answers {
                let answer = if args.parity { answer.clone() } else { format!(" {answer}") };
                longest = prompts.encode(&answer)?.len().max(longest);
            }
            let free = args.length.map_or(longest, NonZeroUsize::get);
            let given = prompts.given(&text, Form::Plain)?;
            match prompts.fit(&read.id, given, free, args.exam.fit.too_long)? {
                Some(given) => items.push(Item { id: read.id, answers: read.answers, given, free }),
                None => skipped += 1,
            }
        }
        left_out(skipped, args.exam.run.quiet);
        Ok(Self { prompts, items })
    }
}

impl Exam for Questions<'_> {
    fn name(&self) -> &str {
        "qa"
    }

    fn metrics(&self) -> Vec<Metric> {
        vec![Metric::share("contains"), Metric::share("f1"), Metric::share("exact")]
    }

    fn ids(&self) -> Vec<String> {
        self.items.iter().map(|item| item.id.clone()).collect()
    }

    fn choices(&self) -> Value {
        let item = |item: &Item| json!([item.free, item.answers, fingerprint_of(item.given.iter().copied())]);
        json!(self.items.iter().map(item).collect::<Vec<_>>())
    }

    fn canvas(&self, item: usize) -> (Canvas, Option<usize>) {
        let item = &self.items[item];
        (Canvas::new(&[Part::Fixed(item.given.clone()), Part::Gap(item.free)]), Some(item.free))
    }

    fn judge(&mut self, item: usize, samples: &[Sampled]) -> Result<Answer> {
        let answers = &self.items[item].answers;
        let (mut sums, mut outputs) = ([0.0; 3], Vec::new());
        for sample in samples {
            let text = self.prompts.decode(&sample.ids())?;
            let yes = |right: bool| f64::from(u8::from(right));
            sums[0] += yes(contains_answer(&text, answers));
            sums[1] += best_f1(&text, answers);
            sums[2] += yes(exact_match(&text, answers));
            outputs.push(text);
        }
        let values = sums.map(|sum| (sum, samples.len() as f64)).to_vec();
        let record =
            Map::from_iter([("outputs".to_owned(), json!(outputs)), ("answers".to_owned(), json!(answers))]);
        Ok(Answer { values, record, ..Answer::default() })
    }
}

/// Runs it.
///
/// # Errors
/// Any [`Error`](crate::Error).
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let mut sampling = args.exam.sampling.sampling(&args.exam.model);
    if args.parity {
        (sampling.temperature, sampling.top_p) = (Some(0.95), Some(0.9));
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
        choices: json!({"parity": args.parity, "length": args.length}),
    };
    let files = ModelFiles::find(args.exam.model.model.as_deref())?;
    take(&files, &taking, context, |prompts| Questions::new(args, prompts), |_, _| Ok(()))
}

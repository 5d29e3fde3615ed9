//! `lacuna eval gsm8k`: word problems whose answer stands behind `####`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde_json::{Map, Value, json};

use super::args::ExamArgs;
use super::countdown::{reference, room};
use super::generated::{Exam, Manner, Sampled};
use super::lambada::greedy_unless_told;
use super::prompts::{Form, Prompts, fingerprint_of, left_out};
use super::task::{Answer, Better, Metric};
use super::{Taking, take};
use crate::cli::Context;
use crate::cli::sampling::DEFAULT_STEPS;
use crate::error::{Error, Result};
use crate::eval::formats::{limit, problems};
use crate::eval::text::{final_answer, hit_at_k, last_number, majority, parity_answer, same_answer};
use crate::io::ModelFiles;
use crate::sample::{Canvas, Part};

const EXAMPLES: &str = "\
--data is JSON lines with question and answer, or a .json array with instruction and
output. An answer is right if the first number behind #### is that of the reference:
18 apples is 18.00. Where no number is behind it, the text there counts, and where
there is no ####, the last number.

--shots N puts N worked examples from --shots-from before the question, chain of
thought included; with --direct they have the final answer alone. --samples K draws K
answers: accuracy is their mean, majority that of the most frequent one, hit@k that at
least one is right.

Examples:
  lacuna eval gsm8k --data test.jsonl --model tuned
  lacuna eval gsm8k --data test.jsonl --model DIR --shots 4 --shots-from train.jsonl
  lacuna eval gsm8k --data test.jsonl --model tuned --samples 8 --temperature 0.8
  lacuna eval gsm8k --data test.jsonl --model tuned --order confidence --self-correction";

#[derive(ClapArgs, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Problems with answers
    #[arg(long, value_name = "FILE", help_heading = "What")]
    data: PathBuf,

    /// Samples of each problem
    #[arg(long, value_name = "K", default_value = "1", help_heading = "What")]
    samples: NonZeroUsize,

    /// Worked examples before the question
    #[arg(long, value_name = "N", default_value_t = 0, requires = "shots_from", help_heading = "What")]
    shots: usize,

    /// Where they are from: the first of this file, which should not be the one that is tested
    #[arg(long, value_name = "FILE", help_heading = "What")]
    shots_from: Option<PathBuf>,

    /// Worked examples without their chain of thought
    #[arg(long, help_heading = "What", requires = "shots_from")]
    direct: bool,

    /// How a prompt stands in the canvas: sft, [bos] prompt [sep] answer; plain, Question: and Answer:
    /// [default: plain with --shots, else sft where the model names sep]
    #[arg(long, value_enum, value_name = "sft|plain", hide_possible_values = true, help_heading = "What")]
    form: Option<Form>,

    /// New tokens of an answer [default: the rest of the context, at most 128. An item that leaves less than 128, and less
    /// than half of the context, is too long]
    #[arg(long, short, value_name = "N", help_heading = "What")]
    length: Option<NonZeroUsize>,

    /// As the paper's released evaluator: the text behind #### without commas must be the reference's
    #[arg(long, help_heading = "What")]
    parity: bool,

    /// Run with and without remasking, and count what became of first thoughts
    #[arg(long, help_heading = "What")]
    self_correction: bool,

    /// Record the first samples: .html is a page that replays them, .jsonl the same as data
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    trace: Option<PathBuf>,

    #[command(flatten)]
    pub exam: ExamArgs,
}

struct Item {
    id: String,
    reference: String,
    given: Vec<u32>,
    length: usize,
}

struct Gsm8k<'a> {
    prompts: Prompts<'a>,
    items: Vec<Item>,
    samples: usize,
    parity: bool,
    form: Form,
}

/// How the samples of a problem were answered.
struct Marked {
    answers: Vec<Option<String>>,
    gold: String,
    right: usize,
    /// Whether the most frequent answer is right.
    most: bool,
}

/// Takes the answers from texts and compares them with the reference's; under `parity` as the released evaluator does.
fn mark(texts: &[String], reference: &str, parity: bool) -> Marked {
    let take = |text: &str| match parity {
        true => Some(parity_answer(text)),
        false => final_answer(text).or_else(|| last_number(text)),
    };
    let same = |a: &str, b: &str| if parity { a == b } else { same_answer(a, b) };
    let gold = take(reference).unwrap_or_default();
    let answers: Vec<Option<String>> = texts.iter().map(|text| take(text)).collect();
    let right = answers.iter().flatten().filter(|answer| same(answer, &gold)).count();
    let most = majority(&answers, same).is_some_and(|answer| same(answer, &gold));
    Marked { answers, gold, right, most }
}

/// The worked examples as a text.
fn shots(args: &Args) -> Result<String> {
    let (Some(path), true) = (&args.shots_from, args.shots > 0) else { return Ok(String::new()) };
    let all = problems::read(path)?;
    if all.len() < args.shots {
        return Err(Error::request(format!(
            "--shots {}: {} has only {} problems",
            args.shots,
            path.display(),
            all.len()
        )));
    }
    let one = |p: &problems::Problem| {
        let answer = match (args.direct, final_answer(&p.answer)) {
            (true, Some(last)) => format!("#### {last}"),
            _ => p.answer.clone(),
        };
        format!("Question: {}\nAnswer: {answer}\n\n", p.question)
    };
    Ok(all.iter().take(args.shots).map(one).collect())
}

impl<'a> Gsm8k<'a> {
    fn new(args: &Args, prompts: Prompts<'a>) -> Result<Self> {
        let form = match args.form {
            None if args.shots > 0 => Form::Plain,
            asked => prompts.form(asked),
        };
        let before = shots(args)?;
        let (mut items, mut skipped) = (Vec::new(), 0);
        for read in limit(problems::read(&args.data)?, args.exam.run.limit.map(NonZeroUsize::get)) {
            let text = match form {
                Form::Sft => format!("{before}{}", read.question),
                Form::Plain => format!("{before}Question: {}\nAnswer:", read.question),
            };
            let given = prompts.given(&text, form)?;
            let length = room(prompts.context(), given.len(), args.length);
            match prompts.fit(&read.id, given, length, args.exam.fit.too_long)? {
                Some(given) => items.push(Item { id: read.id, reference: read.answer, given, length }),
                None => skipped += 1,
            }
        }
        left_out(skipped, args.exam.run.quiet);
        Ok(Self { prompts, items, samples: args.samples.get(), parity: args.parity, form })
    }
}

impl Exam for Gsm8k<'_> {
    fn name(&self) -> &str {
        "gsm8k"
    }

    fn metrics(&self) -> Vec<Metric> {
        let mut metrics = vec![Metric::share("accuracy")];
        if self.samples > 1 {
            metrics.extend([Metric::share("majority"), Metric::share("hit@k")]);
        }
        metrics.extend([Metric::share("answered"), Metric::plain("tokens", Better::Neither)]);
        metrics
    }

    fn ids(&self) -> Vec<String> {
        self.items.iter().map(|item| item.id.clone()).collect()
    }

    fn choices(&self) -> Value {
        let item = |i: &Item| json!([i.length, fingerprint_of(i.given.iter().copied()), i.reference]);
        let items: Vec<Value> = self.items.iter().map(item).collect();
        json!({"form": format!("{:?}", self.form), "parity": self.parity, "items": items})
    }

    fn canvas(&self, item: usize) -> (Canvas, Option<usize>) {
        let item = &self.items[item];
        (Canvas::new(&[Part::Fixed(item.given.clone()), Part::Gap(item.length)]), None)
    }

    fn judge(&mut self, item: usize, samples: &[Sampled]) -> Result<Answer> {
        let item = &self.items[item];
        let texts = samples.iter().map(|s| self.prompts.decode(&s.ids())).collect::<Result<Vec<String>>>()?;
        let answered = texts.iter().filter(|text| final_answer(text).is_some()).count();
        let tokens: usize = samples.iter().map(|s| s.generation.tokens).sum();
        let Marked { answers, gold, right, most } = mark(&texts, &item.reference, self.parity);
        let n = samples.len() as f64;
        let mut values = vec![(right as f64, n)];
        if self.samples > 1 {
            values.push((f64::from(u8::from(most)), 1.0));
            values.push((hit_at_k(samples.len(), right, samples.len()), 1.0));
        }
        values.extend([(answered as f64, n), (tokens as f64, n)]);
        let record = Map::from_iter([
            ("outputs".to_owned(), json!(texts)),
            ("answers".to_owned(), json!(answers)),
            ("gold".to_owned(), json!(gold)),
        ]);
        Ok(Answer { values, record, ..Answer::default() })
    }

    fn right(&self, item: usize, sample: &Sampled) -> Result<Option<Vec<u32>>> {
        let item = &self.items[item];
        reference(&self.prompts, &item.given, &item.reference, sample.generation.ids.len())
    }
}

/// Runs it.
///
/// # Errors
/// Any [`Error`].
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let mut sampling = args.exam.sampling.sampling(&args.exam.model);
    if args.samples.get() == 1 {
        greedy_unless_told(&mut sampling);
    }
    let taking = Taking {
        run: &args.exam.run,
        model: &args.exam.model,
        manner: Manner {
            samples: u32::try_from(args.samples.get()).unwrap_or(u32::MAX),
            corrections: args.self_correction,
            record: args.trace.is_some(),
        },
        both: args.self_correction,
        steps: Some(sampling.steps.unwrap_or(DEFAULT_STEPS)),
        sampling,
        trace: args.trace.as_deref(),
        choices: json!({
            "samples": args.samples, "shots": args.shots, "direct": args.direct, "parity": args.parity,
            "length": args.length,
        }),
    };
    let files = ModelFiles::find(args.exam.model.model.as_deref())?;
    take(&files, &taking, context, |prompts| Gsm8k::new(args, prompts), |_, _| Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(texts: &[&str], reference: &str, parity: bool) -> Marked {
        let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
        mark(&texts, reference, parity)
    }

    #[test]
    fn numbers_count_with_whatever_stands_beside_them() {
        let texts = ["#### 18 apples", "#### 18%", "#### $18/hour", "so it is 18.00", "#### 17", "none"];
        for reference in ["9 + 9 = 18\n#### 18", "#### 18 dollars"] {
            let got = marked(&texts, reference, false);
            assert_eq!((got.right, got.most, got.gold.as_str()), (4, true, "18"));
            let answers: Vec<_> = got.answers.iter().map(Option::as_deref).collect();
            assert_eq!(
                answers,
                [Some("18"), Some("18"), Some("18"), Some("18.00"), Some("17"), None],
                "{reference}"
            );
        }
    }

    #[test]
    fn under_parity_answers_are_texts() {
        // As numbers three of five are 18; as texts one is, and 18.0 is the most frequent.
        let texts = ["#### 18.0", "#### 18", "#### 18.0", "#### 1,7", "so it is 5"];
        let got = marked(&texts, "x\n#### 18", true);
        assert_eq!((got.right, got.most, got.gold.as_str()), (1, false, "18"));
        let answers: Vec<_> = got.answers.iter().flatten().map(String::as_str).collect();
        assert_eq!(answers, ["18.0", "18", "18.0", "17", "so it is 5"]);
        let got = marked(&texts, "x\n#### 18", false);
        assert_eq!((got.right, got.most), (3, true));
    }

    #[test]
    fn other_given_tokens_are_other_work() {
        let files = ModelFiles::bundled().unwrap();
        let choices = |given: &[u32]| {
            let (id, reference) = ("1".to_owned(), "#### 1".to_owned());
            let items = vec![Item { id, reference, given: given.to_vec(), length: 4 }];
            let prompts = Prompts::new(&files).unwrap();
            Gsm8k { prompts, items, samples: 1, parity: false, form: Form::Plain }.choices()
        };
        assert_eq!(choices(&[5, 6]), choices(&[5, 6]));
        assert_ne!(choices(&[5, 6]), choices(&[6, 5]));
    }
}

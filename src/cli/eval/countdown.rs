//! `lacuna eval countdown`: problems of the countdown game, each solution checked.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde_json::{Map, Value, json};

use super::args::ExamArgs;
use super::generated::{Exam, Manner, Sampled};
use super::prompts::{Form, Prompts, fingerprint_of, left_out};
use super::task::{Answer, Better, Metric};
use super::{Taking, take};
use crate::cli::Context;
use crate::cli::args::OrderName;
use crate::cli::sampling::Sampling;
use crate::error::{Error, Result};
use crate::eval::countdown::{self, Problem};
use crate::eval::formats::{limit, problems};
use crate::eval::text::hit_at_k;
use crate::io::ModelFiles;
use crate::sample::{Canvas, Part};

const EXAMPLES: &str = "\
--data is JSON lines with \"prompt\": \"86,28,13,31,96\", as lacuna data countdown
writes them; \"answer\" is used for counting corrections alone. An answer is right
if every equation is true, uses numbers that are given or found before, each once,
and the last result is the target.

Unless the flags say otherwise: 20 steps, the surest positions first, committed tokens
may return to the mask, confidence noise 0.5, the most probable tokens.

Examples:
  lacuna data countdown --numbers 3 --split test --count 500 -o test.jsonl
  lacuna eval countdown --data test.jsonl
  lacuna eval countdown --data test.jsonl --trials 3 --t-sweep 1,2,4,8,16,20 -o swept
  lacuna eval countdown --data test.jsonl --self-correction
  lacuna eval countdown --model twin --ar --greedy --data test.jsonl";

#[derive(ClapArgs, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Problems: JSON lines
    #[arg(long, value_name = "FILE", help_heading = "What")]
    pub data: PathBuf,

    /// Samples of each problem: accuracy is then their mean, and hit@k is that at least one of k is right
    #[arg(long, value_name = "N", default_value = "1", help_heading = "What")]
    pub samples: NonZeroUsize,

    /// How a prompt stands in the canvas: sft, [bos] prompt [sep] answer; plain [default: sft where the model names sep]
    #[arg(long, value_enum, value_name = "sft|plain", hide_possible_values = true, help_heading = "What")]
    pub form: Option<Form>,

    /// New tokens of an answer [default: the rest of the context, at most 128. An item that leaves less than 128, and less
    /// than half of the context, is too long]
    #[arg(long, short, value_name = "N", help_heading = "What")]
    pub length: Option<NonZeroUsize>,

    /// Run with and without remasking, and count what became of first thoughts
    #[arg(long, help_heading = "What")]
    pub self_correction: bool,

    /// Record the first samples: .html is a page that replays them, .jsonl the same as data
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub trace: Option<PathBuf>,

    #[command(flatten)]
    pub exam: ExamArgs,
}

/// A problem in tokens.
struct Item {
    id: String,
    problem: Problem,
    reference: String,
    given: Vec<u32>,
    length: usize,
}

/// The exam.
pub struct Countdown<'a> {
    prompts: Prompts<'a>,
    items: Vec<Item>,
    samples: usize,
    form: Form,
}

/// New tokens, where nothing is said and the context allows.
const LENGTH: usize = 128;

/// How many tokens are filled in behind given ones: those asked for, or what is left of the context. Where that is too
/// little for an answer, it is as many as an answer needs, and the item is too long.
pub(super) fn room(context: usize, given: usize, asked: Option<NonZeroUsize>) -> usize {
    let least = (context / 2).clamp(1, LENGTH);
    asked.map_or(context.saturating_sub(given).clamp(least, LENGTH), NonZeroUsize::get)
}

impl<'a> Countdown<'a> {
    /// # Errors
    /// Those of the file; [`Error::Input`] for a line that is no problem.
    pub fn new(args: &Args, prompts: Prompts<'a>) -> Result<Self> {
        let form = prompts.form(args.form);
        let (mut items, mut skipped) = (Vec::new(), 0);
        for read in limit(problems::read(&args.data)?, args.exam.run.limit.map(NonZeroUsize::get)) {
            let problem: Problem = read.question.parse().map_err(|expected: String| Error::Input {
                origin: format!("{} item {}", args.data.display(), read.id),
                what: "the problem".into(),
                expected,
                got: read.question.chars().take(80).collect(),
            })?;
            let given = prompts.given(&problem.to_string(), form)?;
            let length = room(prompts.context(), given.len(), args.length);
            match prompts.fit(&read.id, given, length, args.exam.fit.too_long)? {
                Some(given) => {
                    items.push(Item { id: read.id, problem, reference: read.answer, given, length })
                }
                None => skipped += 1,
            }
        }
        left_out(skipped, args.exam.run.quiet);
        Ok(Self { prompts, items, samples: args.samples.get(), form })
    }
}

impl Exam for Countdown<'_> {
    fn name(&self) -> &str {
        "countdown"
    }

    fn metrics(&self) -> Vec<Metric> {
        let mut metrics = vec![Metric::share("accuracy"), Metric::share("true equations")];
        if self.samples > 1 {
            metrics.push(Metric::share("hit@k"));
        }
        metrics.push(Metric::plain("tokens", Better::Neither));
        metrics
    }

    fn ids(&self) -> Vec<String> {
        self.items.iter().map(|item| item.id.clone()).collect()
    }

    fn choices(&self) -> Value {
        let item = |i: &Item| {
            json!([i.problem.to_string(), i.length, fingerprint_of(i.given.iter().copied()), i.reference])
        };
        let problems: Vec<Value> = self.items.iter().map(item).collect();
        json!({"form": format!("{:?}", self.form), "problems": problems})
    }

    fn canvas(&self, item: usize) -> (Canvas, Option<usize>) {
        let item = &self.items[item];
        (Canvas::new(&[Part::Fixed(item.given.clone()), Part::Gap(item.length)]), None)
    }

    fn judge(&mut self, item: usize, samples: &[Sampled]) -> Result<Answer> {
        let item = &self.items[item];
        let (mut right, mut equations, mut holding, mut tokens) = (0, 0.0, 0.0, 0.0);
        let (mut outputs, mut faults) = (Vec::new(), Vec::new());
        for sample in samples {
            let text = self.prompts.decode(&sample.ids())?;
            let fault = countdown::check(&item.problem, &text).err();
            right += usize::from(fault.is_none());
            faults.push(fault.map_or(Value::Null, |f| json!(f.kind())));
            for part in text.split(',') {
                let equation = part.trim().parse::<countdown::Equation>();
                equations += 1.0;
                holding += f64::from(u8::from(equation.is_ok_and(|e| e.holds())));
            }
            tokens += sample.generation.tokens as f64;
            outputs.push(text);
        }
        let n = samples.len() as f64;
        let mut values = vec![(right as f64, n), (holding, equations)];
        if self.samples > 1 {
            values.push((hit_at_k(samples.len(), right, samples.len()), 1.0));
        }
        values.push((tokens, n));
        let record = Map::from_iter([
            ("prompt".to_owned(), json!(item.problem.to_string())),
            ("outputs".to_owned(), json!(outputs)),
            ("faults".to_owned(), json!(faults)),
        ]);
        Ok(Answer { values, record, ..Answer::default() })
    }

    /// The sample itself where it is a solution, else the reference solution.
    fn right(&self, item: usize, sample: &Sampled) -> Result<Option<Vec<u32>>> {
        let item = &self.items[item];
        let text = self.prompts.decode(&sample.ids())?;
        if countdown::check(&item.problem, &text).is_ok() {
            return Ok(Some(sample.generation.ids.clone()));
        }
        reference(&self.prompts, &item.given, &item.reference, sample.generation.ids.len())
    }
}

/// The canvas with the reference answer in it, filled up by the end token; `None` where it is longer.
pub(super) fn reference(
    prompts: &Prompts<'_>,
    given: &[u32],
    answer: &str,
    length: usize,
) -> Result<Option<Vec<u32>>> {
    let Some(eos) = prompts.files.special.eos.as_ref().map(|s| s.id) else { return Ok(None) };
    let mut ids = given.to_vec();
    ids.extend(prompts.encode(answer)?);
    if ids.len() > length {
        return Ok(None);
    }
    ids.resize(length, eos);
    Ok(Some(ids))
}

/// Runs it.
///
/// # Errors
/// Any [`Error`].
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let mut sampling = args.exam.sampling.sampling(&args.exam.model);
    surest_first(&mut sampling);
    let taking = Taking {
        run: &args.exam.run,
        model: &args.exam.model,
        manner: Manner {
            samples: u32::try_from(args.samples.get()).unwrap_or(u32::MAX),
            corrections: args.self_correction,
            record: args.trace.is_some(),
        },
        both: args.self_correction,
        steps: Some(sampling.steps.unwrap_or(STEPS)),
        sampling,
        trace: args.trace.as_deref(),
        choices: json!({"samples": args.samples, "length": args.length}),
    };
    let files = ModelFiles::find(args.exam.model.model.as_deref().or(Some("planner")))?;
    take(&files, &taking, context, |prompts| Countdown::new(args, prompts), |_, _| Ok(()))
}

/// Denoising steps, as in "Beyond autoregression".
pub(in crate::cli) const STEPS: usize = 20;

/// Without a word on it: the surest token, the surest positions first, second thoughts allowed.
pub(in crate::cli) fn surest_first(sampling: &mut Sampling) {
    let drawing = sampling.temperature.is_some() || sampling.greedy.is_some();
    let order = sampling.order.is_some() || sampling.threshold.is_some() || sampling.autoregressive();
    if !drawing {
        sampling.greedy = Some(true);
    }
    if !order {
        sampling.order = Some(OrderName::Confidence);
        sampling.remask = sampling.remask.or(Some(true));
        sampling.confidence_noise = sampling.confidence_noise.or(Some(0.5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_half_of_the_context_or_128_at_least() {
        let free = |context, given| room(context, given, None);
        assert_eq!([0, 1000, 1999, 5000].map(|given| free(2048, given)), [128; 4]);
        // 128 tokens: what is left, down to half.
        assert_eq!(
            [0, 60, 64, 100, 127, 128, 300].map(|given| free(128, given)),
            [128, 68, 64, 64, 64, 64, 64]
        );
        assert_eq!((free(38, 13), free(38, 30), free(1, 5), free(0, 0)), (25, 19, 1, 1));
        assert_eq!(room(128, 100, NonZeroUsize::new(3)), 3);
    }

    #[test]
    fn other_given_tokens_are_other_work() {
        let files = ModelFiles::bundled().unwrap();
        let choices = |given: &[u32], reference: &str| {
            let (id, reference) = ("1".to_owned(), reference.to_owned());
            let problem: Problem = "90,1,5,96".parse().unwrap();
            let items = vec![Item { id, problem, reference, given: given.to_vec(), length: 4 }];
            Countdown { prompts: Prompts::new(&files).unwrap(), items, samples: 1, form: Form::Plain }
                .choices()
        };
        assert_eq!(choices(&[5, 6], "a"), choices(&[5, 6], "a"));
        assert_ne!(choices(&[5, 6], "a"), choices(&[6, 5], "a"));
        assert_ne!(choices(&[5, 6], "a"), choices(&[5, 6], "b"));
    }
}

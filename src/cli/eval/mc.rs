//! `lacuna eval mc`: multiple choice by likelihood.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use serde_json::{Map, Value, json};

use super::args::{FitArgs, MOST_DRAWS, RunArgs, at_most};
use super::prompts::{Prompts, fingerprint_of, left_out};
use super::task::{Answer, Better, Metric, Setting, Task};
use super::{about, finish, harness};
use crate::cli::args::ModelArgs;
use crate::cli::{Context, device};
use crate::diffusion::corrupt::MaskRule;
use crate::error::{Error, Result};
use crate::eval::choice::{Rule, Scoring, Tokens, best};
use crate::eval::formats::choice::{Choice, ChoiceFormat, read};
use crate::eval::formats::limit;
use crate::eval::score::Likelihood;
use crate::io::ModelFiles;
use crate::rng::Rng;

const EXAMPLES: &str = "\
--scoring paper: the mean over t = T, .., 1 of the unweighted loss of what is masked
with probability t / T, one mask a level and option. --scoring elbo: the bound (weight
1 / t), with the same times and masks for all options of a question. --ar: the
likelihood from left to right. The option with the least score is the answer;
accuracy/token has it divided by the option's tokens.

--parity does as the paper's released evaluator does where it differs from the paper
(docs/evaluation.md lists what).

Examples:
  lacuna eval mc --format hellaswag --data hellaswag_val.jsonl --model DIR --limit 500
  lacuna eval mc --format piqa --data valid.jsonl --labels valid-labels.lst --model DIR
  lacuna eval mc --data mine.jsonl --scoring elbo --t-sweep 4,16,64 -o swept
  lacuna eval mc --data mine.jsonl --ar --model gpt2";

/// Formats as they are typed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum FormatName {
    #[value(name = "hellaswag")]
    HellaSwag,
    Winogrande,
    Siqa,
    Piqa,
    #[default]
    Plain,
}

impl From<FormatName> for ChoiceFormat {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::HellaSwag => ChoiceFormat::HellaSwag,
            FormatName::Winogrande => ChoiceFormat::Winogrande,
            FormatName::Siqa => ChoiceFormat::Siqa,
            FormatName::Piqa => ChoiceFormat::Piqa,
            FormatName::Plain => ChoiceFormat::Plain,
        }
    }
}

/// Ways of scoring as they are typed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum ScoringName {
    #[default]
    Paper,
    Elbo,
}

#[derive(ClapArgs, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Questions
    #[arg(long, value_name = "FILE", help_heading = "What")]
    data: PathBuf,

    /// Form of the questions: hellaswag, winogrande, siqa, piqa, plain
    #[arg(
        long,
        value_enum,
        value_name = "NAME",
        default_value_t,
        hide_possible_values = true,
        help_heading = "What"
    )]
    format: FormatName,

    /// A line a question, for data whose labels are apart
    #[arg(long, value_name = "FILE", help_heading = "What")]
    labels: Option<PathBuf>,

    /// How an option is scored: paper, or elbo
    #[arg(
        long,
        value_enum,
        value_name = "RULE",
        default_value_t,
        hide_possible_values = true,
        help_heading = "What"
    )]
    scoring: ScoringName,

    /// T: masks of each option; --t-sweep has lists of it
    #[arg(long, short = 'T', value_name = "T", default_value = "32", help_heading = "What")]
    levels: NonZeroUsize,

    /// Score from left to right
    #[arg(long, help_heading = "What", conflicts_with_all = ["scoring", "t_sweep", "parity"])]
    ar: bool,

    /// As the paper's released evaluator
    #[arg(long, help_heading = "What", conflicts_with = "scoring")]
    parity: bool,

    /// Decides what is masked
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "What")]
    seed: u64,

    #[command(flatten)]
    fit: FitArgs,
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// A question in tokens.
struct Item {
    id: String,
    options: Vec<Tokens>,
    gold: usize,
}

impl Item {
    /// All that it consists of.
    fn numbers(&self) -> impl Iterator<Item = u32> {
        let option = |o: &'_ Tokens| [&[o.given as u32, o.ids.len() as u32], o.ids.as_slice()].concat();
        self.options.iter().flat_map(option).chain([self.gold as u32])
    }
}

struct MultipleChoice<'a> {
    model: Box<dyn Likelihood + 'a>,
    items: Vec<Item>,
    rule: Rule,
    metrics: Vec<Metric>,
    round: usize,
    choices: Value,
}

impl Task for MultipleChoice<'_> {
    fn name(&self) -> &str {
        "mc"
    }

    fn metrics(&self) -> &[Metric] {
        &self.metrics
    }

    fn ids(&self) -> Vec<String> {
        self.items.iter().map(|item| item.id.clone()).collect()
    }

    fn choices(&self) -> Value {
        self.choices.clone()
    }

    fn round(&self) -> usize {
        self.round
    }

    fn run(&mut self, setting: &Setting, items: &[usize]) -> Result<Vec<Answer>> {
        let levels = setting.steps.map_or(Ok(self.rule.levels), u32::try_from);
        let levels = levels.map_err(|_| Error::request("T: expected a smaller number of levels"))?;
        let rule = Rule { levels, ..self.rule };
        let questions: Vec<(u32, &[Tokens])> =
            items.iter().map(|&i| (i as u32, self.items[i].options.as_slice())).collect();
        let scores = rule.scores(&mut *self.model, &Rng::new(setting.seed), &questions)?;
        let answer = |(scores, &i): (&Vec<(f64, f64)>, &usize)| {
            let item = &self.items[i];
            let chosen = best(scores.iter().map(|s| s.0));
            let by_token = best(scores.iter().map(|s| s.1));
            let right = |chosen: Option<usize>| f64::from(u8::from(chosen == Some(item.gold)));
            let margin = |at: usize| scores.get(at).map_or(0.0, |s| s.1);
            let wrong = (0..scores.len()).filter(|&at| at != item.gold).map(margin).fold(f64::MAX, f64::min);
            let mut values = vec![(right(chosen), 1.0)];
            if rule.scoring != Scoring::Paper {
                values.push((right(by_token), 1.0));
            }
            values.push((wrong - margin(item.gold), 1.0));
            let passes = match rule.scoring {
                Scoring::Autoregressive => scores.len(),
                _ => scores.len() * levels as usize,
            };
            let record = Map::from_iter([
                ("scores".to_owned(), json!(scores.iter().map(|s| s.0).collect::<Vec<_>>())),
                ("chosen".to_owned(), json!(chosen)),
                ("gold".to_owned(), json!(item.gold)),
            ]);
            Answer { values, nfe: passes, samples: 1, record }
        };
        Ok(scores.iter().zip(items).map(answer).collect())
    }
}

/// The options of a question in tokens; `None` where the context does not hold them and the item is left out.
fn tokens(prompts: &Prompts<'_>, question: &Choice, args: &Args) -> Result<Option<Vec<Tokens>>> {
    let opening = prompts.opening(question.prefix.is_empty());
    // The released evaluator leaves it to the tokenizer in these two, before the options as well, and out in the others.
    let with_options = args.parity && matches!(args.format, FormatName::HellaSwag | FormatName::Piqa);
    let mut given: Vec<u32> = opening.filter(|_| !args.parity || with_options).into_iter().collect();
    given.extend(prompts.encode(&question.prefix)?);
    let suffix = prompts.encode(&question.suffix)?;
    let options: Vec<Vec<u32>> = question
        .options
        .iter()
        .map(|option| {
            let mut ids: Vec<u32> = opening.filter(|_| with_options).into_iter().collect();
            ids.extend(prompts.encode(option)?);
            if ids.is_empty() {
                return Err(Error::request(format!(
                    "item {}: the option {option:?} has no tokens",
                    question.id
                )));
            }
            ids.extend(&suffix);
            Ok(ids)
        })
        .collect::<Result<_>>()?;
    let longest = options.iter().map(Vec::len).max().unwrap_or(0);
    let Some(given) = prompts.fit(&question.id, given, longest, args.fit.too_long)? else { return Ok(None) };
    let whole = |option: Vec<u32>| {
        let ids = given.iter().chain(&option).copied().collect();
        Tokens { ids, given: given.len() }
    };
    Ok(Some(options.into_iter().map(whole).collect()))
}

/// Runs it.
///
/// # Errors
/// Those of the file, [`Error::Request`] for a model without a mask token; any other [`Error`].
pub fn run(args: &Args, context: &Context) -> Result<()> {
    device::check(&args.model.device)?;
    let files = ModelFiles::find(args.model.model.as_deref())?;
    let prompts = Prompts::new(&files)?;
    let mask_id = args.model.mask_id.or(files.special.mask.as_ref().map(|s| s.id));
    let mask_id = match mask_id {
        Some(id) if (id as usize) < files.config.vocab_size => id,
        Some(id) => {
            let last = files.config.vocab_size.saturating_sub(1);
            return Err(Error::request(format!(
                "--mask-id {id}: expected 0 to {last}, the ids of {}",
                files.name
            )));
        }
        None if args.ar => 0,
        None => {
            return Err(Error::request(format!(
                "{} names no mask token; give one with --mask-id, or score from left to right with --ar",
                files.name
            )));
        }
    };
    for &levels in args.run.t_sweep.iter().chain([&args.levels]) {
        at_most("levels", levels.get(), MOST_DRAWS)?;
    }
    let scoring = match (args.ar, args.scoring) {
        (true, _) => Scoring::Autoregressive,
        (_, ScoringName::Paper) => Scoring::Paper,
        (_, ScoringName::Elbo) => Scoring::Elbo,
    };
    let read = read(&args.data, args.format.into(), args.labels.as_deref(), args.parity)?;
    let (mut items, mut skipped) = (Vec::new(), 0);
    for question in limit(read, args.run.limit.map(NonZeroUsize::get)) {
        match tokens(&prompts, &question, args)? {
            Some(options) => items.push(Item { id: question.id, options, gold: question.gold }),
            None => skipped += 1,
        }
    }
    left_out(skipped, args.run.quiet);
    let engine = device::load(&args.model.device, &files, context)?;
    let shift = args.model.shift || (files.shift && !args.model.no_shift);
    let masked = if args.parity { MaskRule::ById } else { MaskRule::Explicit };
    let levels = u32::try_from(args.levels.get()).unwrap_or(u32::MAX);
    let rule = Rule { scoring, levels, mask_id, shift, masked };
    let mut metrics = vec![Metric::share("accuracy")];
    if scoring != Scoring::Paper {
        metrics.push(Metric::share("accuracy/token"));
    }
    metrics.push(Metric::plain("margin", Better::Higher));
    let positions: usize =
        items.iter().flat_map(|i| i.options.iter().map(|o| o.ids.len())).sum::<usize>() / items.len().max(1);
    let most = args.run.t_sweep.iter().max().unwrap_or(&args.levels).get();
    let passes = if args.ar { 1 } else { most };
    let round = (4 * engine.worthwhile_rows() / (positions * passes).max(1)).max(1);
    let choices = json!({
        "format": format!("{:?}", args.format), "scoring": format!("{scoring:?}"), "parity": args.parity,
        "mask_id": mask_id, "shift": shift, "data": args.data.display().to_string(),
        "items": fingerprint_of(items.iter().flat_map(Item::numbers)),
    });
    let mut task =
        MultipleChoice { model: engine.likelihood(), items, rule, metrics, round, choices: choices.clone() };
    let steps = if args.ar { None } else { Some(args.levels.get()) };
    let settings = harness::settings(&args.run, steps, &[None], args.seed)?;
    let order = args.ar.then(|| "autoregressive".to_owned());
    let about = about(&task, &*engine, &files, order, choices, args.seed);
    finish(&mut task, &settings, &args.run, context, &about)
}

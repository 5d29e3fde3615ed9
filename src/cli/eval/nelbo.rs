//! `lacuna eval nelbo`: the bound on the negative log-likelihood of texts.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use serde_json::{Map, Value, json};

use super::args::{MOST_DRAWS, RunArgs, at_most};
use super::prompts::{Prompts, fingerprint_of};
use super::task::{Answer, Better, Metric, Setting, Task, Unit};
use super::{about, finish, harness};
use crate::cli::args::ModelArgs;
use crate::cli::terminal::note;
use crate::cli::{Context, device};
use crate::error::{Error, Result};
use crate::eval::bound::{Estimator, Scored, Text, Times, total};
use crate::eval::score::{Likelihood, Probe};
use crate::io::{ModelFiles, TextOptions, Texts, TokenFile};
use crate::rng::Rng;

const EXAMPLES: &str = "\
For each sequence and each of T draws, a time t and a mask: the bound is the mean of
(1 / t) times the negative log-likelihoods of what is masked, in nats. Stratified
times, one from each of T equal parts, vary less than independent ones and agree with
them. With --ar it is the negative log-likelihood itself, from left to right. The
unweighted loss is that of masked tokens, without 1 / t.

--data is text (.txt, or .jsonl with \"text\"; also .gz, .zst) or a token file of
lacuna pack. Texts are cut into sequences of --length tokens.

Examples:
  lacuna eval nelbo --data mine.txt
  lacuna eval nelbo --data mine.tok --times independent --draws 64 --trials 5
  lacuna eval nelbo --model gpt2 --ar --data mine.txt";

/// How times are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum TimesName {
    // One from each of equal parts of the range.
    #[default]
    Stratified,
    // Each from the whole range (Monte Carlo).
    Independent,
}

#[derive(ClapArgs, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Texts, or a token file
    #[arg(long, value_name = "FILE", help_heading = "What")]
    data: PathBuf,

    /// Times and masks for each sequence; --t-sweep has lists of it
    #[arg(long, value_name = "T", default_value = "8", help_heading = "What")]
    draws: NonZeroUsize,

    /// How times are drawn: stratified or independent
    #[arg(
        long,
        value_enum,
        value_name = "KIND",
        default_value_t,
        hide_possible_values = true,
        help_heading = "What"
    )]
    times: TimesName,

    /// Tokens of a sequence [default: the context, at most 1024]
    #[arg(long, short, value_name = "N", help_heading = "What")]
    length: Option<NonZeroUsize>,

    /// From left to right instead
    #[arg(long, help_heading = "What")]
    ar: bool,

    /// Decides times and masks
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "What")]
    seed: u64,

    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// Longest sequence by default.
const LENGTH: usize = 1024;

/// A sequence of a text.
struct Sequence {
    text: Text,
    /// Bytes of what is scored; 0 where it is not known.
    bytes: usize,
}

struct Nelbo<'a> {
    model: Box<dyn Likelihood + 'a>,
    sequences: Vec<Sequence>,
    metrics: Vec<Metric>,
    estimator: Estimator,
    ar: bool,
    round: usize,
    data: String,
    /// A fingerprint of all sequences.
    tokens: u64,
    /// What was scored under the last setting, for the part of the error that is of draws.
    scored: Vec<Scored>,
    /// That setting.
    under: Option<Setting>,
}

/// Tokens of a text in a sequence of `length`, which an opening token begins.
fn tokens_of(length: usize) -> usize {
    length.saturating_sub(1).max(1)
}

/// Cuts ids into sequences, each opened by `opening`, and says how many bytes of text each has.
fn cut(ids: &[u32], length: usize, opening: u32, bytes: impl Fn(&[u32]) -> usize) -> Vec<Sequence> {
    let one = |part: &[u32]| {
        let mut all = Vec::with_capacity(part.len() + 1);
        all.push(opening);
        all.extend_from_slice(part);
        let fixed = (0..all.len()).map(|at| at == 0).collect();
        Sequence { text: Text { ids: all, fixed }, bytes: bytes(part) }
    };
    ids.chunks(tokens_of(length)).map(one).collect()
}

/// The sequences of the data; with a limit the first ones, and of the data no more than they need.
fn sequences(args: &Args, files: &ModelFiles, length: usize) -> Result<Vec<Sequence>> {
    let special = &files.special;
    let opening = special.bos.as_ref().or(special.eos.as_ref()).map(|s| s.id).ok_or_else(|| {
        Error::request(format!(
            "{} names neither bos_token_id nor eos_token_id, and a sequence needs a first token to predict from",
            files.name
        ))
    })?;
    let most = args.run.limit.map_or(usize::MAX, NonZeroUsize::get);
    if !Texts::are_named(&args.data) {
        let tokens = TokenFile::open(&args.data)?;
        if let Some(tokenizer) = &files.tokenizer {
            tokens.check_tokenizer(tokenizer.sha256(), &files.name)?;
        }
        let prompts = Prompts::new(files).ok();
        // What ends a document in a token file is no part of a text.
        let text = |part: &[u32]| part.iter().copied().filter(|&id| id != tokens.eos()).collect::<Vec<u32>>();
        let bytes = |part: &[u32]| prompts.as_ref().map_or(0, |p| p.bytes(&text(part)));
        let wanted = most.saturating_mul(tokens_of(length)).min(tokens.len());
        return Ok(cut(&tokens.slice(0..wanted), length, opening, bytes));
    }
    let prompts = Prompts::new(files)?;
    let mut all = Vec::new();
    let mut texts = Texts::open(std::slice::from_ref(&args.data), TextOptions::default())?;
    while all.len() < most {
        let Some(text) = texts.next_document()? else { break };
        let ids = prompts.encode(&text)?;
        let wanted = (most - all.len()).saturating_mul(tokens_of(length)).min(ids.len());
        all.extend(cut(&ids[..wanted], length, opening, |part| prompts.bytes(part)));
    }
    Ok(all)
}

impl Task for Nelbo<'_> {
    fn name(&self) -> &str {
        "nelbo"
    }

    fn metrics(&self) -> &[Metric] {
        &self.metrics
    }

    fn ids(&self) -> Vec<String> {
        (1..=self.sequences.len()).map(|n| n.to_string()).collect()
    }

    fn choices(&self) -> Value {
        json!({"times": format!("{:?}", self.estimator.times), "ar": self.ar, "data": self.data,
            "tokens": self.tokens, "shift": self.estimator.shift, "mask_id": self.estimator.mask_id})
    }

    fn round(&self) -> usize {
        self.round
    }

    fn run(&mut self, setting: &Setting, items: &[usize]) -> Result<Vec<Answer>> {
        let rng = Rng::new(setting.seed);
        let texts: Vec<(u32, &Text)> = items.iter().map(|&i| (i as u32, &self.sequences[i].text)).collect();
        let draws = u32::try_from(setting.steps.unwrap_or(1)).unwrap_or(u32::MAX);
        let estimator = Estimator { draws, ..self.estimator };
        let scored = if self.ar {
            let probes: Vec<Probe> = texts.iter().map(|(_, t)| Probe::causal(&t.ids, 1)).collect();
            let nll = self.model.nll(&probes, true)?;
            nll.iter()
                .map(|nll| Scored {
                    weighted: vec![nll.iter().sum()],
                    unweighted: nll.iter().sum(),
                    masked: nll.len(),
                    maskable: nll.len(),
                })
                .collect()
        } else {
            estimator.score(&mut *self.model, &rng, &texts)?
        };
        let answer = |(scored, &item): (&Scored, &usize)| {
            let (bound, bytes) = (scored.bound(), self.sequences[item].bytes as f64);
            let tokens = scored.maskable as f64;
            let mut values = vec![(bound, tokens), (bound, tokens)];
            if bytes > 0.0 {
                values.push((bound / std::f64::consts::LN_2, bytes));
            } else {
                values.push((0.0, 0.0));
            }
            values.push((scored.unweighted, scored.masked as f64));
            let record = Map::from_iter([("tokens".to_owned(), json!(scored.maskable))]);
            Answer { values, nfe: scored.weighted.len(), samples: 1, record }
        };
        let answers = scored.iter().zip(items).map(answer).collect();
        if self.under.replace(*setting) != Some(*setting) {
            self.scored.clear();
        }
        self.scored.extend(scored);
        Ok(answers)
    }
}

/// Runs it.
///
/// # Errors
/// [`Error::Request`] for an empty file or a length beyond the context; any other [`Error`].
pub fn run(args: &Args, context: &Context) -> Result<()> {
    device::check(&args.model.device)?;
    let files = ModelFiles::find(args.model.model.as_deref())?;
    let most = files.config.max_positions;
    let length = args.length.map_or(most.min(LENGTH), NonZeroUsize::get);
    if length > most || length < 2 {
        return Err(Error::request(format!(
            "--length {length}: expected 2 to {most}, the context of {}",
            files.name
        )));
    }
    let mask_id = args.model.mask_id.or(files.special.mask.as_ref().map(|s| s.id));
    let mask_id = match mask_id {
        Some(id) => id,
        None if args.ar => 0,
        None => {
            return Err(Error::request(format!(
                "{} names no mask token; give one with --mask-id, or score from left to right with --ar",
                files.name
            )));
        }
    };
    let sequences = sequences(args, &files, length)?;
    if sequences.is_empty() {
        return Err(Error::request(format!("{}: there is no text in it", args.data.display())));
    }
    let engine = device::load(&args.model.device, &files, context)?;
    let times = match args.times {
        TimesName::Stratified => Times::Stratified,
        TimesName::Independent => Times::MonteCarlo,
    };
    let shift = if args.model.shift { true } else { files.shift && !args.model.no_shift };
    let estimator = Estimator { times, draws: 1, mask_id, shift };
    let draws = if args.ar { 1 } else { args.draws.get() };
    for &draws in args.run.t_sweep.iter().chain([&args.draws]) {
        at_most("draws", draws.get(), MOST_DRAWS)?;
    }
    let metrics = vec![
        Metric::plain("nats/token", Better::Lower),
        Metric { name: "perplexity", better: Better::Lower, unit: Unit::Exp },
        Metric::plain("bits/byte", Better::Lower),
        Metric::plain("unweighted", Better::Lower),
    ];
    let most = args.run.t_sweep.iter().map(|t| t.get()).max().unwrap_or(draws);
    let passes = if args.ar { 1 } else { most };
    let round = (8 * engine.worthwhile_rows() / length / passes).max(1);
    let data = args.data.display().to_string();
    let tokens = fingerprint_of(sequences.iter().flat_map(|s| s.text.ids.iter().copied()));
    let mut task = Nelbo {
        model: engine.likelihood(),
        sequences,
        metrics,
        estimator,
        ar: args.ar,
        round,
        data,
        tokens,
        scored: Vec::new(),
        under: None,
    };
    let settings = harness::settings(&args.run, Some(draws), &[None], args.seed)?;
    let choices = task.choices();
    let order = args.ar.then(|| "autoregressive".to_owned());
    let about = about(&task, &*engine, &files, order, choices, args.seed);
    finish(&mut task, &settings, &args.run, context, &about)?;
    if !args.ar && !args.run.quiet && !args.run.json && task.scored.len() == task.sequences.len() {
        let bound = total(&task.scored, times);
        if let Some(of_draws) = bound.of_draws {
            note(&format!(
                "{} tokens; of the last setting the draws alone leave ± {of_draws:.4} nats a token, the texts being given",
                bound.tokens
            ));
        }
    }
    Ok(())
}

//! `lacuna generate`: a text from nothing, or on from a prompt.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde_json::Value;

use super::Context;
use super::args::{ModelArgs, OutputArgs, SamplingArgs};
use super::common::{Speller, argument_or_stdin, check_mask, prompt_canvas, text_file};
use super::device;
use super::record::{Record, failure, unfinished};
use super::run::{self, Outcome, summary};
use super::terminal::{note, print, println};
use super::trace::{Recording, Run};
use crate::error::{Error, Result};
use crate::io::ModelFiles;
use crate::sample::Request;

/// The arguments of `generate`.
#[derive(ClapArgs, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Text to go on from; - reads standard input [default: a text from nothing]
    #[arg(long, short, value_name = "TEXT", help_heading = "Text", conflicts_with = "prompt_file")]
    pub prompt: Option<String>,

    /// File with the text to go on from
    #[arg(long, value_name = "FILE", help_heading = "Text")]
    pub prompt_file: Option<PathBuf>,

    /// New tokens; a diffusion model fixes the length beforehand [default: up to 128, as the context allows]
    #[arg(long, short, value_name = "N", help_heading = "Text")]
    pub length: Option<usize>,

    /// Number of samples; sample i of a seed is the same whatever the number
    #[arg(long, short, value_name = "N", default_value_t = 1, help_heading = "Text")]
    pub batch: u32,

    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub model: ModelArgs,
}

const EXAMPLES: &str = "\
How it works: the text starts as --length masks. Each of T steps runs the
network once and turns some masks into tokens, seeing both sides. Fewer steps
are faster, more steps read better; T beyond the length gains nothing.

Which order:
  random       what the models were trained for, and the cheapest by far: which
               positions come when is drawn beforehand, so that only their rows
               are ever finished
  confidence   where the drawn token is most probable first (MaskGIT)
  margin       where the best token leads the second best by most first
  entropy      where the distribution is sharpest first
The last three often read better at low T. --bos auto puts the token where the
tokenizer does, and wherever the text would open with a gap nothing predicts.

Examples:
  lacuna generate                             a text from nothing
  lacuna generate --watch                     see it appear out of masks
  lacuna generate -p 'ROMEO:' -l 60 -T 30     go on from a prompt
  lacuna generate --order confidence --remask surest first, second thoughts
  lacuna generate --batch 4 --seed 7 --json   four samples as JSON lines
  lacuna generate --ar --greedy -p 'To be'    the same weights, left to right
  lacuna generate --trace run.html            a page that replays the run";

/// Runs `generate`.
///
/// # Errors
/// Any [`Error`]; [`Error::Cancelled`] after Ctrl-C, when what there is has been printed.
pub fn run(args: Args, context: &Context) -> Result<()> {
    let choices = {
        let mut choices = args.sampling.sampling(&args.model);
        choices.length = args.length;
        choices
    };
    if args.batch == 0 {
        return Err(Error::request("--batch 0: expected 1 sample or more"));
    }
    let prompt = match (&args.prompt, &args.prompt_file) {
        (Some(text), _) => Some(argument_or_stdin(text)?),
        (None, Some(path)) => Some(text_file(path)?),
        (None, None) => None,
    };
    device::machine(&args.model.device)?;
    let files = ModelFiles::find(args.model.model.as_deref())?;
    check_mask(&files, &choices)?;
    let speller = Speller::new(&files);
    let request = choices.request(prompt_canvas(&files, &choices, prompt.as_deref())?)?;
    let requests: Vec<Request> =
        (0..args.batch).map(|sequence| Request { sequence, ..request.clone() }).collect();
    let model = device::load(&args.model.device, &files, context)?;
    let outcome = run::run(&model, &requests, speller, &args.output, context)?;
    let show = Show { args: &args, files: &files, speller, requests: &requests, context };
    show.all(outcome, prompt.as_deref())
}

struct Show<'a> {
    args: &'a Args,
    files: &'a ModelFiles,
    speller: Speller<'a>,
    requests: &'a [Request],
    context: &'a Context,
}

impl Show<'_> {
    fn all(&self, outcome: Outcome, prompt: Option<&str>) -> Result<()> {
        let (mut tokens, mut nfe) = (0, 0);
        let mut values: Vec<Value> = Vec::with_capacity(self.requests.len());
        let mut failed = None;
        let rest = self.requests.iter().zip(&outcome.seconds).zip(&outcome.last);
        for (i, (result, ((request, &seconds), last))) in outcome.results.into_iter().zip(rest).enumerate() {
            let value = match result {
                Ok(generation) => {
                    tokens += generation.tokens;
                    nfe += generation.nfe;
                    let name = &self.files.name;
                    let record = Record::new(self.speller, name, request, &generation, prompt, seconds)?;
                    if !self.args.output.json {
                        self.text(i, &record.text)?;
                    }
                    record.value()
                }
                Err(Error::Cancelled) => {
                    if let (false, Some(last)) = (self.args.output.json, last) {
                        self.text(i, &self.speller.unfinished(&last.canvas, &last.masked))?;
                        note(&format!("stopped after step {} of {}", last.step, last.steps));
                    }
                    unfinished(self.speller, request, last.as_ref())
                }
                Err(error) => {
                    let value = failure(&error);
                    failed = failed.or(Some(error));
                    value
                }
            };
            if self.args.output.json {
                println(&value.to_string())?;
            }
            values.push(value);
        }
        if let Some(path) = &self.args.output.trace {
            let runs = self.requests.iter().zip(&outcome.traces).zip(values).enumerate();
            let runs = runs.map(|(i, ((request, trace), result))| Run {
                label: format!("sample {}", i + 1),
                request,
                trace,
                result,
            });
            Recording {
                model: &self.files.name,
                runs: runs.collect(),
                piece: &|id| self.speller.piece(id),
                special: &|id| self.speller.is_special(id),
            }
            .write(path)?;
        }
        if !self.args.output.quiet && tokens > 0 {
            let seed = self.requests.first().map_or(0, |r| r.seed);
            note(&summary(tokens, nfe, outcome.total, seed));
        }
        match failed {
            None if !outcome.interrupted => Ok(()),
            error => {
                // Every failure has its line already.
                self.context.set_reported(self.args.output.json);
                Err(error.unwrap_or(Error::Cancelled))
            }
        }
    }

    /// A text on standard output, with a line between samples.
    fn text(&self, i: usize, text: &str) -> Result<()> {
        if self.requests.len() > 1 {
            println(&format!("{}--- sample {} ---", if i > 0 { "\n" } else { "" }, i + 1))?;
        }
        print(text)?;
        if text.ends_with('\n') { Ok(()) } else { println("") }
    }
}

//! `lacuna generate`: a text from nothing, or on from a prompt.

use std::path::PathBuf;

use super::Context;
use super::args::{ModelArgs, OutputArgs, SamplingArgs};
use super::common::{Speller, argument_or_stdin, check_mask, prompt_canvas, text_file};
use super::device;
use super::record::{Record, failure, unfinished};
use super::run::{Outcome, Session};
use super::tally::Tally;
use super::terminal::{note, println, show_text};
use super::trace::Run;
use crate::error::{Error, Result};
use crate::io::ModelFiles;
use crate::sample::Request;
use clap::Args as ClapArgs;

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
are faster, more steps commit fewer tokens at once; no text takes more
forward passes than it has tokens to fill, however large T is.

Which order:
  random       what the models were trained for, and the cheapest by far: which
               positions come when is drawn beforehand, so that only their rows
               are ever finished
  confidence   where the drawn token is most probable first (MaskGIT)
  margin       where the best token leads the second best by most first
  entropy      where the distribution is sharpest first
The last three finish every masked row at every step. --bos auto puts the token
where the tokenizer does, and wherever the text would open with a gap that
nothing predicts.

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
    device::check(&args.model.device)?;
    let files = ModelFiles::find(args.model.model.as_deref())?;
    check_mask(&files, &choices)?;
    let speller = Speller::new(&files);
    let request = choices.request(prompt_canvas(&files, &choices, prompt.as_deref())?)?;
    let engine = device::load(&args.model.device, &files, context)?;
    let tokens = u64::from(args.batch) * request.canvas.maskable() as u64;
    let mut session = Session::new(&*engine, speller, &args.output, context, tokens)?;
    let mut show = Show { args: &args, files: &files, speller, prompt, context, tally: Tally::default() };
    let round = u32::try_from(session.round(request.canvas.len())).unwrap_or(u32::MAX);
    let mut next = 0;
    while next < args.batch && show.tally.failed.is_none() {
        let upto = args.batch.min(next.saturating_add(round));
        let requests: Vec<Request> =
            (next..upto).map(|sequence| Request { sequence, ..request.clone() }).collect();
        let outcome = session.run(&requests)?;
        show.round(requests, outcome)?;
        next = upto;
    }
    let seconds = session.seconds();
    drop(session);
    show.tally.end(&args.output, context, &files.name, speller, seconds, request.seed)
}

/// Shows samples, round by round.
struct Show<'a> {
    args: &'a Args,
    files: &'a ModelFiles,
    speller: Speller<'a>,
    prompt: Option<String>,
    context: &'a Context,
    tally: Tally,
}

impl Show<'_> {
    fn round(&mut self, requests: Vec<Request>, outcome: Outcome) -> Result<()> {
        let mut traces = outcome.traces.into_iter();
        let rest = requests.into_iter().zip(outcome.seconds).zip(outcome.last);
        for (result, ((request, seconds), last)) in outcome.results.into_iter().zip(rest) {
            let trace = traces.next();
            let value = match result {
                Ok(generation) => {
                    self.tally.tokens += generation.tokens;
                    self.tally.nfe += generation.nfe;
                    let (name, prompt) = (&self.files.name, self.prompt.as_deref());
                    let record = Record::new(self.speller, name, &request, &generation, prompt, seconds)?;
                    if !self.args.output.json {
                        self.text(&record.text)?;
                    }
                    record.value()
                }
                Err(Error::Cancelled) => {
                    // Of a sample that was not begun there is nothing to say.
                    let Some(last) = last else { continue };
                    if !self.args.output.json {
                        self.text(&self.speller.unfinished(&last.canvas, &last.masked))?;
                        note(&format!("stopped after step {} of {}", last.step, last.steps));
                    }
                    unfinished(self.speller, &request, Some(&last))
                }
                Err(error) => {
                    let value = failure(&error);
                    self.tally.fail(error);
                    value
                }
            };
            self.tally.shown += 1;
            if self.args.output.json {
                println(&value.to_string())?;
            }
            if let Some(trace) = trace {
                let label = format!("sample {}", request.sequence + 1);
                self.tally.runs.push(Run { label, request, trace, result: value });
            }
        }
        if outcome.interrupted {
            self.tally.fail(Error::Cancelled);
        }
        Ok(())
    }

    /// A text on standard output, with a line between samples.
    fn text(&self, text: &str) -> Result<()> {
        if self.args.batch > 1 {
            let between = if self.tally.shown > 0 { "\n" } else { "" };
            println(&format!("{between}--- sample {} ---", self.tally.shown + 1))?;
        }
        show_text(text, self.context.terminal)?;
        if text.ends_with('\n') { Ok(()) } else { println("") }
    }
}

//! `lacuna batch`: many requests from JSON lines, each with parameters of its own.

mod line;
mod sink;
mod tap;

use std::collections::HashSet;
use std::io::Read;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde_json::{Value, json};

use self::line::{Line, Source};
use self::sink::Sink;
use self::tap::{Job, Tap};
use super::Context;
use super::args::{ModelArgs, SamplingArgs};
use super::common::{Speller, check_mask, gap_canvases, prompt_canvas};
use super::engine::Held;
use super::journal::{Journal, fingerprint};
use super::sampling::Sampling;
use super::terminal::{note, println};
use super::{device, run as driver};
use crate::error::{Error, Result};
use crate::io::{ModelFiles, is_device, is_same};
use crate::sample::Request;

/// The arguments of `batch`.
#[derive(ClapArgs, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// JSON lines to read; - is standard input
    #[arg(value_name = "IN.jsonl", default_value = "-")]
    pub input: PathBuf,

    /// JSON lines to write; - is standard output. A file appears whole, at the end
    #[arg(long, short, value_name = "OUT.jsonl", default_value = "-", help_heading = "Output")]
    pub output: PathBuf,

    /// Most sequences to denoise at a time, as memory allows [default: as many as 2048 tokens hold]
    #[arg(long, short, value_name = "N", help_heading = "Batch")]
    pub batch: Option<NonZeroUsize>,

    /// New tokens for lines that do not say [default: up to 128, as the context allows]
    #[arg(long, short, value_name = "N", help_heading = "Batch")]
    pub length: Option<usize>,

    /// Write results as they are done, not in the order of the input
    #[arg(long, help_heading = "Batch")]
    pub unordered: bool,

    /// Check every line before the work, and stop at the first that is wrong
    #[arg(long, help_heading = "Batch")]
    pub strict: bool,

    /// Go on where an earlier run with the same input and flags was stopped
    #[arg(long, help_heading = "Batch")]
    pub resume: bool,

    /// Most combinations of lengths to try for a line whose gaps are ranges
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Batch")]
    pub max_candidates: usize,

    /// With -o FILE: the totals as one JSON object on standard output, errors too
    #[arg(long, help_heading = "Output")]
    pub json: bool,

    /// Nothing on standard error but errors
    #[arg(long, short, help_heading = "Output")]
    pub quiet: bool,

    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub model: ModelArgs,
}

const EXAMPLES: &str = "\
A line is an object with one of
  \"prompt\": \"To be\"                        go on from it (none: from nothing)
  \"text\": \"To be, or[[gap:6]] question\"    a text with gaps
  \"prefix\": ..., \"gap\": 6 or \"4-9\", \"suffix\": ...
and any of id, length, steps, order, schedule, confidence_noise, remask,
threshold, block_length, ar, temperature, greedy, top_p, top_k, seed, sequence,
suppress_mask, mask_id, shift, ignore_eos, bos. What a line does not say, the
flags say. An unknown key is an error. A result holds what generate --json
holds, with `id` and `line`; a line that is wrong gives an object with `error`
and `code`, and the exit code is 2 at the end. What a line gives does not
depend on the lines beside it.

Results for a file are kept in OUT.jsonl.part until all are done; after Ctrl-C
or a crash, --resume goes on from there.

Examples:
  lacuna batch in.jsonl -o out.jsonl
  lacuna batch in.jsonl -o out.jsonl --resume
  echo '{\"prompt\": \"KING:\", \"length\": 20}' | lacuna batch --seed 3";

/// Requests are prepared and run in rounds, so that memory does not grow with the number of lines:
/// so many positions make a round,
const ROUND: usize = 1 << 20;
/// and a request counts as so many beside its own.
const REQUEST: usize = 64;

/// Runs `batch`.
///
/// # Errors
/// Any [`Error`]; [`Error::Request`] at the end when a line failed, [`Error::Cancelled`] after
/// Ctrl-C, when what is done has been kept.
pub fn run(args: Args, context: &Context) -> Result<()> {
    let to_file = args.output != Path::new("-");
    if args.resume && (!to_file || is_device(&args.output)) {
        return Err(Error::request("--resume goes on with a file; name it with -o OUT.jsonl"));
    }
    let (name, text) = read(&args.input)?;
    let mut defaults = args.sampling.sampling(&args.model);
    defaults.length = args.length;
    device::check(&args.model.device)?;
    let files = ModelFiles::find(args.model.model.as_deref())?;
    let speller = Speller::new(&files);
    let lines: Vec<(usize, &str)> =
        text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()).map(|(n, l)| (n + 1, l)).collect();
    let prepare = |number: usize, text: &str| {
        prepare(text, &format!("{name} line {number}"), &files, &defaults, args.max_candidates)
    };

    if args.strict {
        for &(number, text) in &lines {
            prepare(number, text).map_err(|error| match error {
                Error::Request(message) => Error::request(format!("{name} line {number}: {message}")),
                error => error,
            })?;
        }
    }

    context.interrupt.hold();
    let kept = to_file && !is_device(&args.output);
    let mut sink = if kept {
        if is_same(&args.input, &args.output) {
            return Err(Error::request(format!(
                "{} is the input: it would be lost; write to another file",
                args.output.display()
            )));
        }
        let choices = format!("{defaults:?} {}", args.max_candidates);
        let work = fingerprint(&[text.as_bytes(), files.name.as_bytes(), choices.as_bytes()]);
        Sink::File(Journal::open(&args.output, work, args.resume, args.unordered)?)
    } else if to_file {
        Sink::device(&args.output, args.unordered)?
    } else {
        Sink::stdout(args.unordered)
    };
    let (done, mut failed): (HashSet<usize>, usize) = match &sink {
        Sink::File(journal) => (journal.done().iter().copied().collect(), journal.failed()),
        Sink::Stream { .. } => Default::default(),
    };
    if !args.quiet && !done.is_empty() {
        note(&format!("{} of {} results are there already", done.len(), lines.len()));
    }

    let mut totals = tap::Totals::default();
    let mut bad = 0;
    let (mut engine, mut held) = (None, Held::default());
    let bar = context.progress((lines.len() - done.len().min(lines.len())) as u64, args.quiet);
    let mut rest = lines.iter().enumerate().filter(|(index, _)| !done.contains(index)).peekable();
    while rest.peek().is_some() && !totals.interrupted {
        let mut requests: Vec<Request> = Vec::new();
        let mut jobs: Vec<Job> = Vec::new();
        let mut weight = 0;
        while weight < ROUND
            && let Some((index, &(number, text))) = rest.next()
        {
            match prepare(number, text) {
                Ok((line, mine)) => {
                    weight += mine.iter().map(|r| r.canvas.len() + REQUEST).sum::<usize>();
                    jobs.push(Job::new(index, number, line, requests.len(), mine.len()));
                    requests.extend(mine);
                }
                Err(error) => {
                    bad += 1;
                    bar.inc(1);
                    sink.put(index, &tap::failure(line::id_of(text), number, &error))?;
                }
            }
        }
        if requests.is_empty() || context.interrupt.raised() {
            totals.interrupted = context.interrupt.raised();
            continue;
        }
        let engine = match &engine {
            Some(engine) => engine,
            None => engine.insert(device::load(&args.model.device, &files, context)?),
        };
        let most = args.batch.map(NonZeroUsize::get);
        let sampler = held.for_requests(&**engine, &requests, most)?;
        let mut tap = Tap::new(&requests, jobs, speller, &files.name, context, &mut sink, &bar, &mut totals);
        sampler.generate_with(&requests, &mut tap)?;
        tap.finish()?;
    }
    bar.finish_and_clear();
    failed += bad + totals.failed;
    if totals.interrupted {
        let written = done.len() + bad + totals.done + totals.failed;
        if let Some(part) = sink.stop()? {
            note(&format!(
                "{written} of {} results are kept in {}; go on with --resume",
                lines.len(),
                part.display()
            ));
        }
        return Err(Error::Cancelled);
    }
    sink.finish()?;
    report(&args, &totals, failed, lines.len(), to_file)
}

/// The last words: totals for people or programs, and failure if a line failed.
fn report(args: &Args, totals: &tap::Totals, failed: usize, lines: usize, to_file: bool) -> Result<()> {
    let (tokens, nfe, seconds) = (totals.tokens, totals.nfe, totals.seconds);
    if args.json && to_file {
        println(&summary(args, totals, failed).to_string())?;
    }
    if !args.quiet {
        note(&format!(
            "{} of {lines} lines, {tokens} tokens, {nfe} forward passes (NFE), {:.2} tokens/forward, \
             {seconds:.2} s, {:.1} tokens/s",
            lines - failed,
            driver::rate(tokens, nfe as f64),
            driver::rate(tokens, seconds)
        ));
    }
    if failed == 0 {
        return Ok(());
    }
    let place = if to_file { args.output.display().to_string() } else { "the output".to_owned() };
    Err(Error::request(format!("{failed} of {lines} lines failed; see \"error\" in {place}")))
}

fn summary(args: &Args, totals: &tap::Totals, failed: usize) -> Value {
    json!({
        "output": args.output, "done": totals.done, "failed": failed, "tokens": totals.tokens, "nfe": totals.nfe,
        "tokens_per_forward": driver::rate(totals.tokens, totals.nfe as f64), "seconds": totals.seconds,
        "tokens_per_s": driver::rate(totals.tokens, totals.seconds),
    })
}

/// A line with its requests: one, or one for each combination of gap lengths.
fn prepare(
    text: &str,
    origin: &str,
    files: &ModelFiles,
    defaults: &Sampling,
    most: usize,
) -> Result<(Line, Vec<Request>)> {
    let mut line = line::parse(text, origin)?;
    line.choices = line.choices.over(defaults);
    let choices = &line.choices;
    check_mask(files, choices)?;
    let canvases = match &line.source {
        Source::Prompt(prompt) => vec![prompt_canvas(files, choices, prompt.as_deref())?],
        Source::Gaps(_) if choices.autoregressive() => {
            return Err(Error::request(format!(
                "{origin}: \"ar\" decodes from left to right and fills no gaps"
            )));
        }
        Source::Gaps(pieces) => gap_canvases(files, choices, pieces, most)?,
    };
    let requests = canvases.into_iter().map(|canvas| choices.request(canvas)).collect::<Result<_>>()?;
    Ok((line, requests))
}

/// The whole input, without a byte order mark, and its name for errors.
fn read(path: &Path) -> Result<(String, String)> {
    let (name, mut text) = if path == Path::new("-") {
        let mut text = String::new();
        let read = std::io::stdin().lock().read_to_string(&mut text);
        read.map_err(|e| Error::io("read", "standard input", e))?;
        ("standard input".to_owned(), text)
    } else {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        (path.display().to_string(), text)
    };
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    Ok((name, text))
}

//! Running requests with somebody looking on: progress, the live canvas, recordings, Ctrl-C.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Context;
use super::args::OutputArgs;
use super::common::Speller;
use super::device::Machine;
use super::trace::Form;
use super::watch::Watch;
use crate::error::Result;
use crate::io::AtomicFile;
use crate::model::Model;
use crate::sample::{Generation, Limits, Observer, Request, Sampler, Step, Trace};
use std::sync::Arc;

/// Rows of a forward pass up to which more sequences are taken in, as long as there are any.
const ROWS: usize = 2048;

/// The canvas of a request as it was last seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LastSeen {
    pub canvas: Vec<u32>,
    pub masked: Vec<bool>,
    pub step: usize,
    pub steps: usize,
}

/// What came of a run.
pub struct Outcome {
    /// One a request.
    pub results: Vec<Result<Generation>>,
    /// Seconds from the start of the run until each request was done; what `--watch` slept is left out.
    pub seconds: Vec<f64>,
    /// Seconds of the whole run.
    pub total: f64,
    /// Recordings, one a request, when they were asked for.
    pub traces: Vec<Trace>,
    /// For each request the canvas after its last step, if it got to one.
    pub last: Vec<Option<LastSeen>>,
    /// The run was stopped.
    pub interrupted: bool,
}

/// How much is worked on at a time: `most` sequences, or as many as fill [`ROWS`] rows.
pub fn limits(requests: &[Request], most: Option<usize>) -> Limits {
    let longest = requests.iter().map(|r| r.canvas.len()).max().unwrap_or(1).max(1);
    Limits::for_requests(requests, most.unwrap_or((ROWS / longest).max(1)))
}

/// Runs `requests` on `model` while showing what `output` asks for.
///
/// # Errors
/// Those of the sampler as a whole; what befalls one request is in its result.
pub fn run(
    model: &Arc<Model<Machine>>,
    requests: &[Request],
    speller: Speller<'_>,
    output: &OutputArgs,
    context: &Context,
) -> Result<Outcome> {
    if let Some(path) = &output.trace {
        // Whether it can be written is found out before the work, not after it.
        Form::of(path)?;
        drop(AtomicFile::create(path)?);
    }
    let mut sampler = Sampler::new(Arc::clone(model), limits(requests, None))?;
    let mut tap = Tap::new(requests, speller, output, context);
    let results = sampler.generate_with(requests, &mut tap)?;
    Ok(tap.finish(results))
}

/// The observer of a run.
struct Tap<'a> {
    requests: &'a [Request],
    context: &'a Context,
    watch: Option<Watch<'a>>,
    bar: ProgressBar,
    started: Instant,
    slept: Duration,
    done: Vec<Option<f64>>,
    traces: Option<Vec<Trace>>,
    last: Vec<Option<LastSeen>>,
    left: Vec<usize>,
    broken: bool,
}

impl<'a> Tap<'a> {
    fn new(requests: &'a [Request], speller: Speller<'a>, output: &OutputArgs, context: &'a Context) -> Self {
        let n = requests.len();
        let left: Vec<usize> = requests.iter().map(|r| r.canvas.maskable()).collect();
        let bar = ProgressBar::new(left.iter().sum::<usize>() as u64);
        if output.watch || output.quiet || !context.terminal.live {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} tokens  {msg}") {
            bar.set_style(style.progress_chars("█░░"));
        }
        let watch =
            output.watch.then(|| Watch::new(move |id| speller.piece(id), context.terminal, output.fps));
        Self {
            requests,
            context,
            watch,
            bar,
            started: Instant::now(),
            slept: Duration::ZERO,
            done: vec![None; n],
            traces: output.trace.as_ref().map(|_| requests.iter().map(|r| Trace::new(&r.canvas)).collect()),
            last: vec![None; n],
            left,
            broken: false,
        }
    }

    fn seconds(&self) -> f64 {
        self.started.elapsed().saturating_sub(self.slept).as_secs_f64()
    }

    fn finish(mut self, results: Vec<Result<Generation>>) -> Outcome {
        let total = self.seconds();
        self.bar.finish_and_clear();
        if let (Some(watch), true) = (&mut self.watch, self.context.terminal.stdout) {
            watch.clear();
        }
        Outcome {
            seconds: self.done.iter().map(|s| s.unwrap_or(total)).collect(),
            total,
            traces: self.traces.take().unwrap_or_default(),
            last: std::mem::take(&mut self.last),
            interrupted: self.broken,
            results,
        }
    }
}

impl Observer for Tap<'_> {
    fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        let at = step.request;
        if let Some(trace) = self.traces.as_mut().and_then(|t| t.get_mut(at)) {
            trace.record(&step);
        }
        if let Some(last) = self.last.get_mut(at) {
            let last = last.get_or_insert_default();
            last.canvas.clear();
            last.canvas.extend_from_slice(step.canvas);
            last.masked.clear();
            last.masked.extend_from_slice(step.masked);
            (last.step, last.steps) = (step.step, step.steps);
        }
        // The canvas on the screen is that of the first sample that is not done.
        let shown = self.done.iter().position(Option::is_none) == Some(at);
        if let (true, Some(watch), Some(request)) = (shown, &mut self.watch, self.requests.get(at)) {
            self.slept += watch.show(&step, request.canvas.fixed());
        }
        if let Some(left) = self.left.get_mut(at) {
            *left = step.masked.iter().filter(|m| **m).count();
        }
        if !self.bar.is_hidden() {
            let total = self.bar.length().unwrap_or(0);
            self.bar.set_position(total.saturating_sub(self.left.iter().sum::<usize>() as u64));
            self.bar.set_message(format!("step {}/{}  nfe {}", step.step, step.steps, step.nfe));
        }
        if self.context.interrupt.raised() {
            self.broken = true;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn done(&mut self, request: usize, _result: &Result<Generation>) {
        let seconds = self.seconds();
        if let Some(done) = self.done.get_mut(request) {
            *done = Some(seconds);
        }
        if let Some(left) = self.left.get_mut(request) {
            *left = 0;
        }
    }
}

/// The last line of a run: `127 tokens, 60 forward passes (2.1 tokens a forward), ...`.
pub fn summary(tokens: usize, nfe: usize, seconds: f64, seed: u64) -> String {
    let per_forward = if nfe == 0 { 0.0 } else { tokens as f64 / nfe as f64 };
    format!(
        "{tokens} tokens, {nfe} forward passes (NFE), {per_forward:.2} tokens/forward, {seconds:.2} s, \
         {:.1} tokens/s, seed {seed}",
        rate(tokens, seconds)
    )
}

/// Tokens a second; 0 for no time at all.
pub fn rate(tokens: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
}

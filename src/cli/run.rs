//! Running requests with somebody looking on: progress, the live canvas, recordings, Ctrl-C.
//!
//! Many requests are run in rounds, so that results come out while there is more to do and memory
//! does not grow with their number.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Context;
use super::args::OutputArgs;
use super::common::Speller;
use super::engine::{Engine, Held};
use super::trace::Form;
use super::watch::Watch;
use crate::error::Result;
use crate::io::AtomicFile;
use crate::sample::{Generation, Observer, Pace, Request, Step, Trace};

/// How many times the sequences that are worked on at a time make a round.
const ROUND: usize = 8;

/// The canvas of a request as it was last seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LastSeen {
    pub canvas: Vec<u32>,
    pub masked: Vec<bool>,
    pub step: usize,
    pub steps: usize,
}

/// What came of a round.
pub struct Outcome {
    /// One a request.
    pub results: Vec<Result<Generation>>,
    /// Seconds from the start of the run until each request was done; what `--watch` slept is left out.
    pub seconds: Vec<f64>,
    /// Recordings, one a request, when they were asked for.
    pub traces: Vec<Trace>,
    /// For each request the canvas after its last step, if it got to one.
    pub last: Vec<Option<LastSeen>>,
    /// The run was stopped.
    pub interrupted: bool,
}

/// A run: rounds of requests on one model, shown as one.
pub struct Session<'a> {
    engine: &'a dyn Engine,
    held: Held,
    context: &'a Context,
    watch: Option<Watch<'a>>,
    /// The live canvas while it is not shown.
    aside: Option<Watch<'a>>,
    /// There may be a progress bar.
    live: bool,
    tracing: bool,
    bar: ProgressBar,
    started: Instant,
    slept: Duration,
    /// Tokens filled in by earlier rounds.
    filled: u64,
}

impl<'a> Session<'a> {
    /// Prepares to fill `tokens` tokens while showing what `output` asks for. From here on Ctrl-C
    /// stops after the step at hand.
    ///
    /// # Errors
    /// Those of [`Form::of`] and [`AtomicFile::probe`], for a trace that cannot be written.
    pub fn new(
        engine: &'a dyn Engine,
        speller: Speller<'a>,
        output: &OutputArgs,
        context: &'a Context,
        tokens: u64,
    ) -> Result<Self> {
        if let Some(path) = &output.trace {
            // Whether it can be written is found out before the work, not after it.
            Form::of(path)?;
            AtomicFile::probe(path)?;
        }
        context.interrupt.hold();
        let bar = ProgressBar::new(tokens);
        let live = context.terminal.live && !output.quiet;
        if output.watch || !live {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} tokens  {msg}") {
            bar.set_style(style.progress_chars("█░░"));
        }
        let spell = move |id| speller.piece(id);
        let watch = || Watch::new(spell, context.terminal, output.fps, context.interrupt.clone());
        Ok(Self {
            engine,
            held: Held::default(),
            context,
            watch: output.watch.then(watch),
            aside: None,
            live,
            tracing: output.trace.is_some(),
            bar,
            started: Instant::now(),
            slept: Duration::ZERO,
            filled: 0,
        })
    }

    /// Whether what `--watch` asks for is shown of the rounds to come, as it is at first; a progress bar otherwise.
    pub fn show(&mut self, shown: bool) {
        if shown == self.watch.is_some() || (self.watch.is_none() && self.aside.is_none()) {
            return;
        }
        std::mem::swap(&mut self.watch, &mut self.aside);
        let bar_is_seen = self.watch.is_none() && self.live;
        self.bar.set_draw_target(if bar_is_seen {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        });
    }

    /// How many requests of at most `longest` positions make a round.
    pub fn round(&self, longest: usize) -> usize {
        ROUND * (self.engine.worthwhile_rows() / longest.max(1)).max(1)
    }

    /// Runs a round.
    ///
    /// # Errors
    /// Those of the sampler as a whole; what befalls one request is in its result.
    pub fn run(&mut self, requests: &[Request]) -> Result<Outcome> {
        let mut held = std::mem::take(&mut self.held);
        let sampler = held.for_requests(self.engine, requests, None)?;
        let mut tap = Tap::new(requests, self);
        let results = sampler.generate_with(requests, &mut tap)?;
        let outcome = tap.finish(results);
        self.held = held;
        Ok(outcome)
    }

    /// Seconds since the start, less what `--watch` slept.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().saturating_sub(self.slept).as_secs_f64()
    }
}

/// The observer of a round.
struct Tap<'a, 'b> {
    session: &'b mut Session<'a>,
    requests: &'b [Request],
    done: Vec<Option<f64>>,
    /// The first request that is not done: its canvas is on the screen.
    shown: usize,
    traces: Option<Vec<Trace>>,
    last: Vec<Option<LastSeen>>,
    /// Positions that are masked, of each request and of all.
    left: Vec<usize>,
    masked: usize,
    maskable: usize,
    broken: bool,
}

impl<'a, 'b> Tap<'a, 'b> {
    fn new(requests: &'b [Request], session: &'b mut Session<'a>) -> Self {
        let n = requests.len();
        let left: Vec<usize> = requests.iter().map(|r| r.canvas.maskable()).collect();
        let maskable = left.iter().sum();
        let traces = session.tracing.then(|| requests.iter().map(|r| Trace::new(&r.canvas)).collect());
        Self {
            session,
            requests,
            done: vec![None; n],
            shown: 0,
            traces,
            last: vec![None; n],
            left,
            masked: maskable,
            maskable,
            broken: false,
        }
    }

    /// Takes note that `left` positions of a request are masked now.
    fn count(&mut self, request: usize, left: usize) {
        if let Some(before) = self.left.get_mut(request) {
            self.masked = (self.masked + left).saturating_sub(*before);
            *before = left;
        }
    }

    fn finish(mut self, results: Vec<Result<Generation>>) -> Outcome {
        let total = self.session.seconds();
        self.session.filled += self.maskable as u64;
        self.session.bar.set_position(self.session.filled);
        if let (Some(watch), true) = (&mut self.session.watch, self.session.context.terminal.stdout) {
            watch.clear();
        }
        Outcome {
            seconds: self.done.iter().map(|s| s.unwrap_or(total)).collect(),
            traces: self.traces.take().unwrap_or_default(),
            last: std::mem::take(&mut self.last),
            interrupted: self.broken,
            results,
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Tap<'_, '_> {
    fn pace(&self) -> Pace {
        let every = self.traces.is_some() || self.session.watch.is_some();
        if every { Pace::EveryStep } else { Pace::Often }
    }

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
        if let (true, Some(request)) = (at == self.shown, self.requests.get(at))
            && let Some(watch) = &mut self.session.watch
        {
            self.session.slept += watch.show(&step, request.canvas.fixed());
        }
        self.count(at, step.masked.iter().filter(|m| **m).count());
        let bar = &self.session.bar;
        if !bar.is_hidden() {
            bar.set_position(self.session.filled + (self.maskable - self.masked.min(self.maskable)) as u64);
            bar.set_message(format!("step {}/{}  nfe {}", step.step, step.steps, step.nfe));
        }
        if self.session.context.interrupt.raised() {
            self.broken = true;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn done(&mut self, request: usize, _result: &Result<Generation>) {
        let seconds = self.session.seconds();
        if let Some(done) = self.done.get_mut(request) {
            *done = Some(seconds);
        }
        while self.done.get(self.shown).is_some_and(Option::is_some) {
            self.shown += 1;
        }
        self.count(request, 0);
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

//! Looking on while a batch runs: results are written as soon as their line is done.

use std::ops::ControlFlow;
use std::time::Instant;

use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::line::{Line, Source};
use super::sink::Sink;
use crate::cli::Context;
use crate::cli::common::Speller;
use crate::cli::infill::{best, candidates};
use crate::cli::record::{self, Record};
use crate::cli::run::rate;
use crate::error::{Error, Result};
use crate::sample::{Generation, Observer, Pace, Request, Step};

/// A line of the input and the requests it became.
pub struct Job {
    /// Place among the results.
    index: usize,
    /// Number of the line in the input, from 1.
    number: usize,
    line: Line,
    first: usize,
    count: usize,
    /// What is known so far: the request, its text or the object of its failure, seconds.
    results: Vec<(usize, Result<Generation, Value>, f64)>,
}

impl Job {
    /// A line whose requests are `first .. first + count`.
    pub fn new(index: usize, number: usize, line: Line, first: usize, count: usize) -> Self {
        Self { index, number, line, first, count, results: Vec::new() }
    }
}

/// What a batch has come to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub done: usize,
    pub failed: usize,
    pub tokens: usize,
    pub nfe: usize,
    pub seconds: f64,
    pub interrupted: bool,
}

/// The object for a line that failed.
pub fn failure(id: Option<Value>, number: usize, error: &Error) -> Value {
    labelled(id, number, record::failure(error))
}

/// A result with its line's `id` and number in front.
fn labelled(id: Option<Value>, number: usize, result: Value) -> Value {
    let mut value = match id {
        Some(id) => json!({"id": id, "line": number}),
        None => json!({"line": number}),
    };
    if let (Value::Object(into), Value::Object(from)) = (&mut value, result) {
        into.extend(from);
    }
    value
}

/// The observer of a round of a batch.
pub struct Tap<'a> {
    requests: &'a [Request],
    jobs: Vec<Job>,
    /// The job of each request.
    owner: Vec<usize>,
    speller: Speller<'a>,
    model: &'a str,
    context: &'a Context,
    sink: &'a mut Sink,
    bar: &'a ProgressBar,
    /// Earlier rounds included.
    totals: &'a mut Totals,
    started: Instant,
    clock: Clock,
    broken: Option<Error>,
}

impl<'a> Tap<'a> {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        requests: &'a [Request],
        jobs: Vec<Job>,
        speller: Speller<'a>,
        model: &'a str,
        context: &'a Context,
        sink: &'a mut Sink,
        bar: &'a ProgressBar,
        totals: &'a mut Totals,
    ) -> Self {
        let owner = jobs.iter().enumerate().flat_map(|(j, job)| std::iter::repeat_n(j, job.count)).collect();
        Self {
            requests,
            jobs,
            owner,
            speller,
            model,
            context,
            sink,
            bar,
            totals,
            started: Instant::now(),
            clock: Clock::new(requests.len()),
            broken: None,
        }
    }

    /// Adds the round's time.
    ///
    /// # Errors
    /// [`Error::Io`] when results could not be written.
    pub fn finish(self) -> Result<()> {
        self.totals.seconds += self.started.elapsed().as_secs_f64();
        match self.broken {
            None => Ok(()),
            Some(Error::Cancelled) => {
                self.totals.interrupted = true;
                Ok(())
            }
            Some(error) => Err(error),
        }
    }

    /// Takes what came of a request, and writes the result of its line when that is whole.
    fn take(&mut self, request: usize, result: Result<Generation, Value>) {
        let Some(job) = self.owner.get(request).and_then(|&j| self.jobs.get_mut(j)) else { return };
        job.results.push((request, result, self.clock.seconds(request)));
        if job.results.len() < job.count {
            return;
        }
        let mut results = std::mem::take(&mut job.results);
        results.sort_by_key(|(r, ..)| *r);
        let seconds = results.iter().map(|(.., s)| *s).fold(0.0, f64::max);
        let generations: Result<Vec<Generation>, Value> = results.into_iter().map(|(_, g, _)| g).collect();
        let (first, index, number, id) = (job.first, job.index, job.number, job.line.id.clone());
        let prompt = match &job.line.source {
            Source::Prompt(prompt) => prompt.clone(),
            Source::Gaps(_) => None,
        };
        let record = |g: Vec<Generation>| {
            self.record(first, &g, prompt.as_deref(), seconds).map_err(|e| record::failure(&e))
        };
        let value = match generations.and_then(record) {
            Ok(value) => {
                self.totals.done += 1;
                value
            }
            Err(failure) => {
                self.totals.failed += 1;
                failure
            }
        };
        if let Err(error) = self.sink.put(index, &labelled(id, number, value)) {
            self.broken = Some(error);
        }
        self.bar.inc(1);
    }

    fn record(
        &mut self,
        first: usize,
        generations: &[Generation],
        prompt: Option<&str>,
        seconds: f64,
    ) -> Result<Value> {
        let requests = self.requests.get(first..first + generations.len()).unwrap_or_default();
        let (Some(at), nfe) = (best(generations), generations.iter().map(|g| g.nfe).sum::<usize>()) else {
            return Ok(Value::Null);
        };
        let mut record =
            Record::new(self.speller, self.model, &requests[at], &generations[at], prompt, seconds)?;
        if generations.len() > 1 {
            record.nfe = nfe;
            record.tokens_per_forward = rate(record.tokens, nfe as f64);
            record.candidates = candidates(self.speller, requests, generations)?;
        }
        self.totals.nfe += nfe;
        self.totals.tokens += record.tokens;
        Ok(record.value())
    }
}

impl Observer for Tap<'_> {
    fn pace(&self) -> Pace {
        Pace::Often
    }

    fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        self.clock.seen(step.request);
        if !self.bar.is_hidden() {
            let seconds = self.totals.seconds + self.started.elapsed().as_secs_f64();
            self.bar.set_message(format!("{:.0} tokens/s", rate(self.totals.tokens, seconds)));
        }
        if self.context.interrupt.raised() && self.broken.is_none() {
            self.broken = Some(Error::Cancelled);
        }
        if self.broken.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn done(&mut self, request: usize, result: &Result<Generation>) {
        match result {
            // What was stopped is left for another run; after a failure to write nothing more is written.
            _ if self.broken.as_ref().is_some_and(|e| !matches!(e, Error::Cancelled)) => {}
            Err(Error::Cancelled) => {}
            Ok(generation) => self.take(request, Ok(generation.clone())),
            Err(error) => self.take(request, Err(record::failure(error))),
        }
    }
}

/// How long each request was worked on. Sequences that are denoised together report one after the
/// other; the round in which a request is first seen began when the round before it ended.
struct Clock {
    round: u32,
    seen: Vec<u32>,
    began: Vec<Option<Instant>>,
    round_began: Instant,
    last: Instant,
}

impl Clock {
    fn new(requests: usize) -> Self {
        let now = Instant::now();
        Self { round: 1, seen: vec![0; requests], began: vec![None; requests], round_began: now, last: now }
    }

    fn seen(&mut self, request: usize) {
        let Some(seen) = self.seen.get_mut(request) else { return };
        if *seen == self.round {
            self.round += 1;
            self.round_began = self.last;
        }
        *seen = self.round;
        self.last = Instant::now();
        if let Some(began) = self.began.get_mut(request) {
            began.get_or_insert(self.round_began);
        }
    }

    fn seconds(&self, request: usize) -> f64 {
        let began = self.began.get(request).copied().flatten().unwrap_or(self.round_began);
        began.elapsed().as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_enters_later_began_later() {
        let mut clock = Clock::new(3);
        [0, 1, 0, 1].into_iter().for_each(|r| clock.seen(r));
        std::thread::sleep(std::time::Duration::from_millis(2));
        [0, 2].into_iter().for_each(|r| clock.seen(r));
        assert_eq!(clock.began[0], clock.began[1]);
        assert!(clock.began[2] > clock.began[0]);
        assert!(clock.seconds(2) <= clock.seconds(0));
    }

    #[test]
    fn results_carry_id_and_line() {
        let value = failure(Some("a".into()), 3, &Error::request("no"));
        assert_eq!(value.to_string(), r#"{"id":"a","line":3,"error":"no","code":2}"#);
        assert_eq!(labelled(None, 1, json!({"text": ""})).to_string(), r#"{"line":1,"text":""}"#);
    }
}

//! Evaluations by generated texts: requests through the engine, samples back, and what became of first thoughts.

use std::ops::ControlFlow;

use serde_json::{Value, json};

use super::task::{Answer, Better, Metric, Setting, Task};
use crate::cli::Context;
use crate::cli::common::filled_ids;
use crate::cli::engine::{Engine, Held};
use crate::cli::record::failure;
use crate::cli::sampling::Sampling;
use crate::cli::trace::Run;
use crate::error::{Error, Result};
use crate::eval::corrections::Corrections;
use crate::sample::{Canvas, Generation, Observer, Order, Pace, Request, Step, Trace};

/// A sample of an item.
pub struct Sampled {
    pub canvas: Canvas,
    pub generation: Generation,
    /// The token that was committed first at each position, where that was looked at.
    pub first: Vec<Option<u32>>,
}

impl Sampled {
    /// The tokens that were filled in and belong to the text.
    pub fn ids(&self) -> Vec<u32> {
        filled_ids(&self.canvas, &self.generation)
    }
}

/// What is asked by generating, and how answers are judged.
pub trait Exam {
    fn name(&self) -> &str;
    fn metrics(&self) -> Vec<Metric>;
    fn ids(&self) -> Vec<String>;
    fn choices(&self) -> Value;

    /// The canvas of an item, and the steps that it has of itself.
    fn canvas(&self, item: usize) -> (Canvas, Option<usize>);

    /// Judges the samples of an item: values in the order of the metrics, and what is kept.
    ///
    /// # Errors
    /// [`Error::Tokenizer`]; those of what is run to judge.
    fn judge(&mut self, item: usize, samples: &[Sampled]) -> Result<Answer>;

    /// Judges the samples of several items, as many for each.
    ///
    /// # Errors
    /// As [`judge`](Self::judge).
    fn judge_round(&mut self, items: &[usize], samples: &[Sampled]) -> Result<Vec<Answer>> {
        let each = (samples.len() / items.len().max(1)).max(1);
        items.iter().zip(samples.chunks(each)).map(|(&item, mine)| self.judge(item, mine)).collect()
    }

    /// The canvas as it should be, for counting corrections; `None` where there is no telling.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    fn right(&self, item: usize, sample: &Sampled) -> Result<Option<Vec<u32>>> {
        let _ = (item, sample);
        Ok(None)
    }
}

/// What became of tokens: columns behind those of the task.
const CORRECTED: [Metric; 5] = [
    Metric::plain("changed", Better::Neither),
    Metric::plain("fixed", Better::Higher),
    Metric::plain("broken", Better::Lower),
    Metric::plain("kept right", Better::Higher),
    Metric::plain("left wrong", Better::Lower),
];

/// Recorded samples, at most.
const MOST_RECORDED: usize = 64;

/// An exam on a model.
pub struct Generated<'a, E> {
    pub exam: E,
    engine: &'a dyn Engine,
    context: &'a Context,
    sampling: Sampling,
    /// Samples an item.
    samples: u32,
    corrections: bool,
    metrics: Vec<Metric>,
    held: Held,
    /// What was recorded, where it is wanted.
    pub recorded: Option<Vec<Run>>,
}

/// How samples are made, beside the sampling itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    pub samples: u32,
    pub corrections: bool,
    pub record: bool,
}

impl<'a, E: Exam> Generated<'a, E> {
    pub fn new(
        exam: E,
        engine: &'a dyn Engine,
        context: &'a Context,
        sampling: Sampling,
        manner: Manner,
    ) -> Self {
        let Manner { samples, corrections, record } = manner;
        let mut metrics = exam.metrics();
        if corrections {
            metrics.extend(CORRECTED);
        }
        let recorded = record.then(Vec::new);
        let held = Held::default();
        Self { exam, engine, context, sampling, samples, corrections, metrics, held, recorded }
    }

    /// The requests of an item under a setting.
    ///
    /// # Errors
    /// [`Error::Request`] for choices that make no sense.
    pub fn requests(&self, setting: &Setting, item: usize) -> Result<Vec<Request>> {
        let (canvas, own) = self.exam.canvas(item);
        let mut request = self.sampling.request(canvas)?;
        if let Some(steps) = setting.steps.or(own) {
            request.steps = steps;
        }
        if let (Some(wanted), Order::Confidence { remask, .. }) = (setting.remask, &mut request.order) {
            *remask = wanted;
        }
        request.seed = setting.seed;
        let one = |n: u32| {
            let sequence = (item as u64 * u64::from(self.samples) + u64::from(n)) as u32;
            Request { sequence, ..request.clone() }
        };
        Ok((0..self.samples).map(one).collect())
    }

    fn samples(&mut self, requests: Vec<Request>, ids: &[String]) -> Result<Vec<Sampled>> {
        let record = self.recorded.as_ref().is_some_and(|r| r.len() < MOST_RECORDED);
        let traced = record || self.corrections;
        let traces = traced.then(|| requests.iter().map(|r| Trace::new(&r.canvas)).collect());
        let sampler = self.held.for_requests(self.engine, &requests, None)?;
        let mut tap = Tap { traces, context: self.context };
        let results = sampler.generate_with(&requests, &mut tap)?;
        let mut traces = tap.traces.unwrap_or_default().into_iter();
        let mut out = Vec::with_capacity(requests.len());
        for ((request, result), id) in requests.into_iter().zip(results).zip(ids) {
            let trace = traces.next();
            let first = trace.as_ref().filter(|_| self.corrections).map(Trace::first_commits);
            let canvas = request.canvas.clone();
            if let (Some(trace), Some(recorded)) = (trace, self.recorded.as_mut().filter(|_| record))
                && recorded.len() < MOST_RECORDED
            {
                let value = match &result {
                    Ok(g) => json!({"text": "", "tokens": g.tokens, "nfe": g.nfe, "end": g.end}),
                    Err(error) => failure(error),
                };
                recorded.push(Run { label: id.clone(), request, trace, result: value });
            }
            out.push(Sampled { canvas, generation: result?, first: first.unwrap_or_default() });
        }
        Ok(out)
    }

    /// What became of the first thoughts of an item's samples.
    fn corrected(&self, item: usize, samples: &[Sampled]) -> Result<Vec<(f64, f64)>> {
        let (mut all, mut counted) = ([0.0; 5], 0.0);
        for sample in samples {
            let Some(right) = self.exam.right(item, sample)? else { continue };
            let c = Corrections::count(&sample.first, &sample.generation.ids, &right);
            let counts = [c.changed, c.fixed, c.broken, c.kept_right, c.left_wrong];
            all.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n as f64);
            counted += 1.0;
        }
        Ok(all.map(|sum| (sum, counted)).to_vec())
    }
}

impl<E: Exam> Task for Generated<'_, E> {
    fn name(&self) -> &str {
        self.exam.name()
    }

    fn metrics(&self) -> &[Metric] {
        &self.metrics
    }

    fn ids(&self) -> Vec<String> {
        self.exam.ids()
    }

    fn choices(&self) -> Value {
        json!({
            "task": self.exam.choices(), "sampling": format!("{:?}", self.sampling), "samples": self.samples,
            "corrections": self.corrections,
        })
    }

    fn round(&self) -> usize {
        let items = self.exam.ids().len();
        let longest = (0..items).map(|i| self.exam.canvas(i).0.len()).max().unwrap_or(1).max(1);
        let at_once = (self.engine.worthwhile_rows() / longest).max(1);
        (2 * at_once / self.samples.max(1) as usize).max(1)
    }

    fn run(&mut self, setting: &Setting, items: &[usize]) -> Result<Vec<Answer>> {
        let (mut requests, mut names) = (Vec::new(), Vec::new());
        let ids = self.exam.ids();
        for &item in items {
            let mine = self.requests(setting, item)?;
            names.extend(mine.iter().map(|_| ids.get(item).cloned().unwrap_or_default()));
            requests.extend(mine);
        }
        let samples = self.samples(requests, &names)?;
        let mut answers = self.exam.judge_round(items, &samples)?;
        let of_item = samples.chunks(self.samples.max(1) as usize);
        for ((answer, &item), mine) in answers.iter_mut().zip(items).zip(of_item) {
            if self.corrections {
                answer.values.extend(self.corrected(item, mine)?);
            }
            answer.nfe = mine.iter().map(|s| s.generation.nfe).sum();
            answer.samples = mine.len();
        }
        Ok(answers)
    }
}

/// Records steps, and listens for Ctrl-C.
struct Tap<'a> {
    traces: Option<Vec<Trace>>,
    context: &'a Context,
}

impl Observer for Tap<'_> {
    fn pace(&self) -> Pace {
        if self.traces.is_some() { Pace::EveryStep } else { Pace::Often }
    }

    fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        if let Some(trace) = self.traces.as_mut().and_then(|t| t.get_mut(step.request)) {
            trace.record(&step);
        }
        if self.context.interrupt.raised() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// Checks that a comparison with and without remasking can be made.
///
/// # Errors
/// [`Error::Request`] where the order is none that remasks.
pub fn check_corrections(sampling: &Sampling) -> Result<()> {
    use crate::backend::Confidence;

    match sampling.order()? {
        Order::Confidence { by: Confidence::MaxProb, .. } if !sampling.autoregressive() => Ok(()),
        _ => Err(Error::request(
            "--self-correction compares runs with and without remasking; add --order confidence",
        )),
    }
}

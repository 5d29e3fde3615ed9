//! The loop of a training run: steps, measurements, checkpoints. What is written where is the watcher's part.

use std::time::Instant;

use super::data::{Example, Examples};
use super::evaluate::summary;
use super::learner::{Learner, StepReport};
use super::metrics::Validation;
use crate::backend::{Backward, Optimise};
use crate::error::{Error, Result};

/// When what happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Steps in all.
    pub steps: u64,
    pub save_every: u64,
    pub validate_every: u64,
    pub keep_last: usize,
    /// Steps in a row that may be skipped.
    pub max_skipped: u64,
}

/// Who looks on, writes down and saves.
pub trait Watcher<B: Optimise + Backward> {
    /// After each step, with the seconds it took.
    ///
    /// # Errors
    /// Those of writing it down.
    fn step(&mut self, report: &StepReport, seconds: f64) -> Result<()>;
    /// Before each pass of a measurement, of which `total` are made.
    fn measuring(&mut self, pass: usize, total: usize);
    /// After a measurement.
    ///
    /// # Errors
    /// Those of writing it down.
    fn validated(&mut self, step: u64, validation: Validation) -> Result<()>;
    /// Saves a checkpoint.
    ///
    /// # Errors
    /// Those of writing it.
    fn save(&mut self, learner: &mut Learner<B>) -> Result<()>;
    /// Whether to stop after the step at hand.
    fn stop(&self) -> bool;
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Done,
    /// The watcher said so; what was done is saved.
    Stopped,
}

/// Trains until `pace.steps` steps are done or the watcher stops. A learner that has done some steps goes on from there.
///
/// # Errors
/// Those of the data, the backend and the watcher; [`Error::NonFinite`] after too many skipped steps in a row, saying
/// where the first number is that is not finite. Nothing is saved then: the last checkpoint stands.
pub fn train<B: Optimise + Backward>(
    learner: &mut Learner<B>,
    data: &dyn Examples,
    validation: &[Example],
    draws: usize,
    pace: Pace,
    watcher: &mut dyn Watcher<B>,
) -> Result<End> {
    if learner.step == 0 && !validation.is_empty() {
        measure(learner, validation, draws, watcher)?;
    }
    let mut saved = learner.step;
    while learner.step < pace.steps {
        if watcher.stop() {
            if learner.step > saved {
                watcher.save(learner)?;
            }
            return Ok(End::Stopped);
        }
        let start = Instant::now();
        let report = learner.step(data)?;
        watcher.step(&report, start.elapsed().as_secs_f64())?;
        if learner.skipped_in_row >= pace.max_skipped {
            return Err(Error::NonFinite {
                place: format!(
                    "training, step {}: {} steps in a row were skipped",
                    report.step, pace.max_skipped
                ),
                found: learner.diagnose()?,
                hint: "lower --lr, lengthen --warmup, or look at the data; the last checkpoint is intact"
                    .into(),
            });
        }
        let last = learner.step == pace.steps;
        if !validation.is_empty()
            && (last || learner.step.is_multiple_of(pace.validate_every))
            && !watcher.stop()
        {
            measure(learner, validation, draws, watcher)?;
        }
        if last || learner.step.is_multiple_of(pace.save_every) {
            watcher.save(learner)?;
            saved = learner.step;
        }
    }
    Ok(End::Done)
}

fn measure<B: Optimise + Backward>(
    learner: &mut Learner<B>,
    examples: &[Example],
    draws: usize,
    watcher: &mut dyn Watcher<B>,
) -> Result<()> {
    let total = (examples.len() * draws.max(1)).div_ceil(learner.recipe.batch.max(1));
    let mut pass = 0;
    let losses = learner.evaluate(examples, draws, || {
        pass += 1;
        watcher.measuring(pass, total);
        // A measurement that is broken off measures something else, so it is not written down.
        if watcher.stop() { Err(Error::Cancelled) } else { Ok(()) }
    });
    let losses = match losses {
        Err(Error::Cancelled) if watcher.stop() => return Ok(()),
        losses => losses?,
    };
    let (nelbo, standard_error, unweighted) = summary(&losses);
    watcher.validated(learner.step, Validation { nelbo, unweighted, standard_error })
}

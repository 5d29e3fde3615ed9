//! What a run shows and writes down: the progress bar, the records, the checkpoints.

use std::path::PathBuf;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::recipe::Plan;
use super::{RunArgs, tell};
use crate::backend::{Backward, Optimise};
use crate::cli::Context;
use crate::diffusion::loss::LossNorm;
use crate::error::Result;
use crate::train::checkpoint;
use crate::train::export::Export;
use crate::train::files::{Best, RunFolder};
use crate::train::learner::{Learner, StepReport};
use crate::train::metrics::{Metrics, StepRecord, Validation};
use crate::train::trainer::Watcher;

/// How fast the shown loss forgets.
const MEMORY: f64 = 0.95;

/// The watcher of a run.
pub struct Show<'a> {
    args: &'a RunArgs,
    context: &'a Context,
    folder: &'a RunFolder,
    export: &'a Export,
    plan: &'a Plan,
    adapter: Option<(String, bool)>,
    metrics: Metrics,
    bar: ProgressBar,
    /// Running means of loss and NELBO.
    means: Option<[f64; 2]>,
    validation: Option<(u64, Validation)>,
    best: Option<Best>,
    saved: Option<PathBuf>,
    started: Instant,
    first: u64,
    tokens: u64,
    seconds: f64,
}

impl<'a> Show<'a> {
    /// Prepares to show a run; what was recorded behind the step it resumes from is removed.
    ///
    /// # Errors
    /// Those of the records.
    pub fn new(
        args: &'a RunArgs,
        folder: &'a RunFolder,
        export: &'a Export,
        plan: &'a Plan,
        adapter: Option<(String, bool)>,
        resumed: Option<u64>,
        context: &'a Context,
    ) -> Result<Self> {
        let metrics = match resumed {
            Some(step) => Metrics::resume(folder, step)?,
            None => Metrics::create(folder)?,
        };
        let bar = context.progress(plan.pace.steps, args.quiet);
        let template = "{bar:24} step {pos}/{len}  {msg}  {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("█░░"));
        }
        let first = resumed.unwrap_or(0);
        bar.set_position(first);
        bar.reset_eta();
        Ok(Self {
            args,
            context,
            folder,
            export,
            plan,
            adapter,
            metrics,
            bar,
            means: None,
            validation: None,
            best: folder.best()?,
            saved: resumed.map(|step| folder.checkpoint(step)),
            started: Instant::now(),
            first,
            tokens: 0,
            seconds: 0.0,
        })
    }

    /// Ends the bar, and says what there is to say.
    pub fn finish<B: Optimise + Backward>(self, learner: &Learner<B>) -> Summary {
        self.bar.finish_and_clear();
        Summary {
            steps: learner.step,
            total: self.plan.pace.steps,
            done: learner.step - self.first,
            skipped: learner.skipped,
            seconds: self.started.elapsed().as_secs_f64(),
            tokens_per_second: rate(self.tokens, self.seconds),
            loss: self.means.map(|m| m[0]),
            validation: self.validation,
            best: self.best,
            saved: self.saved,
            output: self.folder.root().to_path_buf(),
        }
    }

    fn say(&self, text: &str) {
        self.bar.suspend(|| tell(self.args, text));
    }
}

fn rate(tokens: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
}

impl<B: Optimise + Backward> Watcher<B> for Show<'_> {
    fn step(&mut self, report: &StepReport, seconds: f64) -> Result<()> {
        self.tokens += report.tokens as u64;
        self.seconds += seconds;
        let (loss, nelbo) = (report.loss.weighted(LossNorm::MaskedTokens), report.loss.nelbo());
        self.metrics.step(&StepRecord {
            step: report.step,
            examples: (self.plan.recipe.batch * self.plan.recipe.accumulate) as u64,
            tokens: report.tokens as u64,
            loss,
            unweighted: report.loss.unweighted(),
            nelbo,
            lr: report.lr,
            grad_norm: report.gradient,
            tokens_per_second: rate(report.tokens as u64, seconds),
            skipped: report.skipped,
        })?;
        if report.skipped {
            let why = if report.overflowed {
                format!("f16 overflowed; the loss scale becomes {}", report.loss_scale)
            } else {
                "loss or gradient is not finite".into()
            };
            self.say(&format!("step {}: {why}; the weights stay as they are", report.step));
        } else {
            let mix = |old: f64, new: f64| MEMORY * old + (1.0 - MEMORY) * new;
            self.means = Some(match self.means {
                Some([a, b]) => [mix(a, loss), mix(b, nelbo)],
                None => [loss, nelbo],
            });
        }
        self.bar.set_position(report.step);
        if let Some([loss, nelbo]) = self.means {
            let speed = rate(self.tokens, self.seconds);
            let held_out =
                self.validation.map_or(String::new(), |(_, v)| format!("  held-out {:.3}", v.nelbo));
            self.bar.set_message(format!("loss {loss:.3}  nelbo {nelbo:.3}{held_out}  {speed:.0} tokens/s"));
        }
        Ok(())
    }

    fn measuring(&mut self, pass: usize, total: usize) {
        self.bar.set_message(format!("measuring, pass {pass}/{total}"));
    }

    fn validated(&mut self, step: u64, validation: Validation) -> Result<()> {
        self.metrics.validation(step, &validation)?;
        self.validation = Some((step, validation));
        let Validation { nelbo, standard_error, .. } = validation;
        self.say(&format!("step {step}: held-out NELBO {nelbo:.4} +- {standard_error:.4} nats a token"));
        Ok(())
    }

    fn save(&mut self, learner: &mut Learner<B>) -> Result<()> {
        let step = learner.step;
        let pending = self.folder.begin_checkpoint(step)?;
        let adapter = self.adapter.as_ref().map(|(base, embedding)| (base.as_str(), *embedding));
        checkpoint::write(pending.path(), learner, self.export, self.plan.weights, adapter)?;
        self.saved = Some(pending.commit()?);
        if let Some((_, validation)) = self.validation.filter(|(at, _)| *at == step)
            && self.best.is_none_or(|best| validation.nelbo < best.nelbo)
            && validation.nelbo.is_finite()
        {
            let best = Best { step, nelbo: validation.nelbo };
            self.folder.write_best(best)?;
            self.best = Some(best);
        }
        self.folder.prune(self.plan.pace.keep_last, self.best.map(|best| best.step))?;
        self.metrics.draw()
    }

    fn stop(&self) -> bool {
        self.context.interrupt.raised()
    }
}

/// What came of a run.
pub struct Summary {
    steps: u64,
    total: u64,
    done: u64,
    skipped: u64,
    seconds: f64,
    tokens_per_second: f64,
    loss: Option<f64>,
    validation: Option<(u64, Validation)>,
    best: Option<Best>,
    saved: Option<PathBuf>,
    output: PathBuf,
}

impl Summary {
    /// For programs.
    pub fn json(&self) -> Value {
        let validation = self
            .validation
            .map(|(step, v)| json!({"step": step, "nelbo": v.nelbo, "standard_error": v.standard_error}));
        json!({
            "steps": self.steps,
            "of": self.total,
            "skipped": self.skipped,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "loss": self.loss,
            "validation": validation,
            "best": self.best,
            "checkpoint": self.saved,
        })
    }

    /// For people.
    pub fn text(&self, stopped: bool) -> String {
        let mut text = format!(
            "{} of {} steps done, {} of them now in {:.1} s ({:.0} tokens/s)",
            self.steps, self.total, self.done, self.seconds, self.tokens_per_second
        );
        if self.skipped > 0 {
            text += &format!(", {} skipped", self.skipped);
        }
        if let Some(path) = &self.saved {
            text += &format!("; checkpoint {}", path.display());
        }
        if let Some(best) = self.best.filter(|best| best.step != self.steps) {
            text += &format!("; best is step {} with {:.4}", best.step, best.nelbo);
        }
        if stopped {
            text += &format!("; go on with --output {} --resume", self.output.display());
        }
        text
    }
}

//! `lacuna bench step`: one denoising step of canvases that are half filled.

use std::ops::ControlFlow;
use std::time::Instant;

use clap::Args as ClapArgs;

use super::super::Context;
use super::cases::{Case, CasesArgs, OrderName};
use super::line::{Kind, Line};
use super::output::{OutputArgs, Sheet};
use super::work::{Subject, Traffic, WeightsArgs, forget_peak, peak_memory};
use crate::error::{Error, Result};
use crate::profile::flops;
use crate::rng::{Purpose, Rng};
use crate::sample::{Canvas, Observer, Pace, Step};

#[derive(Debug, ClapArgs)]
pub struct StepArgs {
    #[command(flatten)]
    weights: WeightsArgs,
    #[command(flatten)]
    cases: CasesArgs,
    /// Steps that are timed, each from the same canvases
    #[arg(long, value_name = "N", default_value_t = 10, help_heading = "Work")]
    repeat: usize,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Steps before those that are timed.
const WARM_UP: usize = 2;

/// Ends a generation after its first step, and counts what that committed.
#[derive(Default)]
struct First {
    tokens: usize,
    /// Canvases with something to commit.
    canvases: usize,
}

impl Observer for First {
    fn pace(&self) -> Pace {
        Pace::EveryStep
    }

    fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        self.tokens += step.committed.len();
        self.canvases += usize::from(!step.committed.is_empty());
        ControlFlow::Break(())
    }
}

/// Runs it.
///
/// # Errors
/// [`Error::Request`] for work that cannot be done with the model; [`Error::Memory`]; [`Error::Cancelled`] after Ctrl-C.
pub fn run(args: &StepArgs, sheet: &mut Sheet<'_>) -> Result<()> {
    let context = sheet.context;
    args.cases.check(args.repeat)?;
    if args.cases.order.contains(&OrderName::Ar) {
        return Err(Error::request(
            "--order ar: a step from left to right is no denoising step; bench generate has it",
        ));
    }
    let mut subject = Subject::load(&args.weights, args.cases.seed, context)?;
    let cases = args.cases.cases(&subject, &args.cases.order)?;
    subject.begin(&args.output, sheet)?;
    let bar = context.progress((cases.len() * (args.repeat + WARM_UP)) as u64, args.output.json());
    for case in cases {
        let line = measure(args, &subject, case, context, &bar)?;
        bar.suspend(|| sheet.add(line))?;
    }
    bar.finish_and_clear();
    Ok(())
}

/// A canvas of `length`, half of it given: which half, and what, is drawn for each `sequence`.
fn half_filled(rng: &Rng, vocab: usize, length: usize, sequence: u32) -> Result<Canvas> {
    let mut places: Vec<u32> = (1..length as u32).collect();
    places.sort_by_key(|&p| rng.words(Purpose::Plan, sequence, 0, p)[0]);
    let mut fixed = vec![true; length];
    for &place in &places[..length / 2] {
        fixed[place as usize] = false;
    }
    let ids = (0..length as u32).map(|p| rng.below(vocab as u32, Purpose::Weights, sequence, 0, p)).collect();
    Canvas::from_flags(ids, fixed)
}

fn measure(
    args: &StepArgs,
    subject: &Subject,
    case: Case,
    context: &Context,
    bar: &indicatif::ProgressBar,
) -> Result<Line> {
    let Case { batch, length, steps, order } = case;
    let name = format!("step {}, {batch} x {length}, T = {steps}, {}", subject.name, order.name());
    bar.set_message(name.clone());
    forget_peak();
    let free = subject.engine.free_memory();
    let limits = subject.limits(batch, length, false)?;
    let mut sampler = subject.engine.sampler(limits)?;
    let config = subject.engine.config();
    let CasesArgs { top_p, seed, .. } = args.cases;
    let rng = Rng::new(seed);
    let requests = (0..batch as u32)
        .map(|sequence| {
            let canvas = half_filled(&rng, config.vocab_size, length, sequence)?;
            // The second half of the steps fills the second half of the positions.
            Ok(order.request(canvas, steps.div_ceil(2), top_p, seed, sequence))
        })
        .collect::<Result<Vec<_>>>()?;
    let (mut seconds, mut first) = (Vec::new(), First::default());
    for run in 0..args.repeat + WARM_UP {
        first = First::default();
        let start = Instant::now();
        let results = sampler.generate_with(&requests, &mut first)?;
        let taken = start.elapsed().as_secs_f64();
        context.interrupt.check()?;
        // Stopped after the step, as it was meant to be; anything else is a failure.
        let failed = results.into_iter().filter_map(Result::err).find(|e| !matches!(e, Error::Cancelled));
        if let Some(error) = failed {
            return Err(error);
        }
        if run >= WARM_UP {
            seconds.push(taken);
        }
        bar.inc(1);
    }
    let masked = batch * (length / 2);
    let rows = if order == OrderName::Random { first.tokens } else { masked };
    let canvases = if order == OrderName::Random { first.canvases } else { batch };
    let traffic = Traffic { weight: subject.weight_bytes(), number: subject.engine.number_bytes() as f64 };
    let flops = flops::pass(config, &vec![length; canvases], rows);
    let bytes =
        traffic.weights(config, true) + traffic.activations(config, (canvases * length) as f64, rows as f64);
    let mut line = subject.line(Kind::Step, &name);
    line.times(&seconds).tokens(first.tokens, first.tokens).work(flops, bytes, subject.machine.ceilings);
    let middle = line.number("median_s").unwrap_or(f64::NAN);
    case.tell(&mut line);
    line.set("top_p", top_p)
        .set("masked", masked)
        .set("nfe", 1.0)
        .set("tokens_per_forward", first.tokens as f64 / batch as f64)
        .set("ms_per_step", 1e3 * middle)
        .set("peak_memory_bytes", peak_memory())
        .set("device_bytes", subject.device_bytes(free));
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_a_canvas_is_masked_and_never_its_first_token() {
        for length in [2, 3, 8, 33] {
            let canvas = half_filled(&Rng::new(1), 50, length, 3).unwrap();
            assert_eq!((canvas.len(), canvas.maskable()), (length, length / 2));
            assert!(canvas.fixed()[0] && canvas.ids().iter().all(|&id| id < 50));
        }
        let [a, b] = [0, 1].map(|sequence| half_filled(&Rng::new(1), 50, 33, sequence).unwrap());
        assert_ne!(a, b);
    }
}

//! `lacuna bench generate`: whole generations, from masks to text.

use std::ops::ControlFlow;
use std::time::Instant;

use clap::Args as ClapArgs;

use super::super::Context;
use super::cases::{Case, CasesArgs, OrderName};
use super::line::{Kind, Line};
use super::output::{OutputArgs, Sheet};
use super::work::{Subject, Traffic, WeightsArgs, forget_peak, peak_memory};
use crate::error::Result;
use crate::profile::flops;
use crate::sample::{Canvas, Generation, Observer, Pace, Request, Step};

#[derive(Debug, ClapArgs)]
pub struct GenerateArgs {
    #[command(flatten)]
    weights: WeightsArgs,
    #[command(flatten)]
    cases: CasesArgs,
    /// The same as --order ar
    #[arg(long, help_heading = "Work", conflicts_with = "order")]
    ar: bool,
    /// Runs that are timed, of each combination
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = "Work")]
    repeat: usize,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Looks now and then whether Ctrl-C was pressed; otherwise nothing is shown, as nothing is to be waited for.
struct Interruptible<'a>(&'a Context, Pace);

impl Observer for Interruptible<'_> {
    fn pace(&self) -> Pace {
        self.1
    }

    fn step(&mut self, _: Step<'_>) -> ControlFlow<()> {
        if self.0.interrupt.raised() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// Runs it.
///
/// # Errors
/// [`Error::Request`](crate::Error::Request) for work that cannot be done with the model;
/// [`Error::Memory`](crate::Error::Memory); [`Error::Cancelled`](crate::Error::Cancelled) after Ctrl-C.
pub fn run(args: &GenerateArgs, sheet: &mut Sheet<'_>) -> Result<()> {
    let context = sheet.context;
    args.cases.check(args.repeat)?;
    let mut subject = Subject::load(&args.weights, args.cases.seed, context)?;
    let orders = if args.ar { &[OrderName::Ar][..] } else { &args.cases.order };
    let cases = args.cases.cases(&subject, orders)?;
    subject.begin(&args.output, sheet)?;
    let bar = context.progress((cases.len() * (args.repeat + 1)) as u64, args.output.json());
    for case in cases {
        let line = measure(args, &subject, case, context, &bar)?;
        bar.suspend(|| sheet.add(line))?;
    }
    bar.finish_and_clear();
    Ok(())
}

fn measure(
    args: &GenerateArgs,
    subject: &Subject,
    case: Case,
    context: &Context,
    bar: &indicatif::ProgressBar,
) -> Result<Line> {
    let Case { batch, length, steps, order } = case;
    let ar = order == OrderName::Ar;
    let how = if ar { "ar".to_owned() } else { format!("T = {steps}, {}", order.name()) };
    let name = format!("generate {}, {batch} x {length}, {how}", subject.name);
    bar.set_message(name.clone());
    forget_peak();
    let free = subject.engine.free_memory();
    let limits = subject.limits(batch, length, ar)?;
    let mut sampler = subject.engine.sampler(limits)?;
    let CasesArgs { top_p, seed, .. } = args.cases;
    let canvas = Canvas::prefix(&[subject.first], length - 1);
    let requests: Vec<Request> = (0..batch as u32)
        .map(|sequence| order.request(canvas.clone(), steps, top_p, seed, sequence))
        .collect();
    let (mut seconds, mut count) = (Vec::new(), Count::default());
    for run in 0..=args.repeat {
        // The run that warms up can be stopped; those that are timed are as fast as they can be.
        let pace = if run == 0 { Pace::Often } else { Pace::Never };
        let start = Instant::now();
        let results = sampler.generate_with(&requests, &mut Interruptible(context, pace))?;
        let taken = start.elapsed().as_secs_f64();
        context.interrupt.check()?;
        count = Count::default();
        for (request, result) in requests.iter().zip(results) {
            count.add(request, &result?, subject.eos);
        }
        if run > 0 {
            seconds.push(taken);
        }
        bar.inc(1);
    }
    let config = subject.engine.config();
    let nfe = count.nfe as f64 / batch as f64;
    let traffic = Traffic { weight: subject.weight_bytes(), number: subject.engine.number_bytes() as f64 };
    let (flops, bytes) = if ar {
        (flops::autoregressive(config, batch, length), traffic.autoregressive(config, batch, length))
    } else {
        let bytes = count.most as f64 * traffic.weights(config, true)
            + count.nfe as f64 * traffic.activations(config, length as f64, (length - 1) as f64 / nfe);
        (flops::generation(config, batch, length, length - 1, nfe), bytes)
    };
    let mut line = subject.line(Kind::Generate, &name);
    line.times(&seconds).tokens(count.useful, count.raw).work(flops, bytes, subject.machine.ceilings);
    let middle = line.number("median_s").unwrap_or(f64::NAN);
    case.tell(&mut line);
    line.set("top_p", top_p)
        .set("nfe", nfe)
        .set("tokens_per_forward", count.useful as f64 / count.nfe as f64)
        .set("ms_per_step", 1e3 * middle / count.most as f64)
        .set("peak_memory_bytes", peak_memory())
        .set("device_bytes", subject.device_bytes(free));
    Ok(line)
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    /// Positions filled in, and those of them before the end of the text.
    pub raw: usize,
    pub useful: usize,
    /// Forward passes, of all sequences together and of the one that had most.
    pub nfe: usize,
    pub most: usize,
}

impl Count {
    /// Takes in a generation that did not stop at `eos`.
    pub fn add(&mut self, request: &Request, generation: &Generation, eos: Option<u32>) {
        let filled = generation.ids.iter().zip(request.canvas.fixed()).filter(|(_, fixed)| !**fixed);
        self.raw += request.canvas.maskable();
        self.useful += filled.take_while(|(id, _)| Some(**id) != eos).count();
        self.nfe += generation.nfe;
        self.most = self.most.max(generation.nfe);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_after_the_end_are_not_useful() {
        let request = Request::new(Canvas::prefix(&[2], 4));
        let generation = Generation {
            ids: vec![2, 5, 6, 2, 7],
            committed_at: vec![0, 1, 1, 1, 1],
            log_prob: vec![0.0; 5],
            nfe: 3,
            tokens: 4,
            end: 5,
            finish: crate::sample::Finish::Length,
        };
        let mut count = Count::default();
        count.add(&request, &generation, Some(2));
        // The given one does not end the text.
        assert_eq!((count.useful, count.raw, count.nfe, count.most), (2, 4, 3, 3));
        count.add(&request, &generation, None);
        assert_eq!((count.useful, count.raw, count.nfe, count.most), (6, 8, 6, 3));
    }
}

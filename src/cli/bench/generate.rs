//! `lacuna bench generate`: whole generations, from masks to text.

use std::ops::ControlFlow;
use std::time::Instant;

use clap::{Args as ClapArgs, ValueEnum};

use super::super::Context;
use super::line::{Kind, Line};
use super::output::{OutputArgs, Sheet};
use super::work::{Subject, Traffic, WeightsArgs, forget_peak, peak_memory};
use crate::backend::Confidence;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::profile::flops;
use crate::sample::{Canvas, CountSchedule, Generation, Observer, Order, Pace, Request, Step};

/// In which order positions are filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OrderName {
    // The paper's: every position draws its step beforehand.
    Random,
    // The positions whose drawn token is most probable first (MaskGIT).
    Confidence,
    // The positions with the lowest entropy first.
    Entropy,
    // The positions whose best token leads the second best by most first.
    Margin,
    // From left to right with a KV cache, a token a pass.
    Ar,
}

impl OrderName {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Confidence => "confidence",
            Self::Entropy => "entropy",
            Self::Margin => "margin",
            Self::Ar => "ar",
        }
    }

    /// Makes a request one of this order.
    pub fn apply(self, request: &mut Request) {
        let by = match self {
            Self::Random | Self::Ar => None,
            Self::Confidence => Some(Confidence::MaxProb),
            Self::Entropy => Some(Confidence::Entropy),
            Self::Margin => Some(Confidence::Margin),
        };
        request.autoregressive = self == Self::Ar;
        if let Some(by) = by {
            request.order =
                Order::Confidence { by, schedule: CountSchedule::Linear, noise: 0.0, remask: false };
        }
    }
}

#[derive(Debug, ClapArgs)]
pub struct GenerateArgs {
    #[command(flatten)]
    weights: WeightsArgs,
    /// Tokens of a canvas, the first of which is given; or several, as in 128,512 [default: 512, or all that the model has]
    #[arg(long, short, value_name = "N,...", value_delimiter = ',', help_heading = "Work")]
    length: Vec<usize>,
    /// Denoising steps T
    #[arg(
        long,
        short = 'T',
        value_name = "T,...",
        value_delimiter = ',',
        default_value = "64",
        help_heading = "Work"
    )]
    steps: Vec<usize>,
    /// Canvases at a time
    #[arg(
        long,
        short,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "1",
        help_heading = "Work"
    )]
    batch: Vec<usize>,
    /// Which masked positions are committed first: random, confidence, entropy, margin; ar: from left to right with a KV cache
    #[arg(
        long,
        value_name = "NAME,...",
        value_enum,
        hide_possible_values = true,
        value_delimiter = ',',
        default_value = "random",
        help_heading = "Work"
    )]
    order: Vec<OrderName>,
    /// The same as --order ar
    #[arg(long, help_heading = "Work", conflicts_with = "order")]
    ar: bool,
    /// Draw from the most probable tokens that make up this much probability
    #[arg(long, value_name = "P", default_value_t = 0.9, help_heading = "Work")]
    top_p: f64,
    /// Of the weights that are made up, and of the drawing
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Work")]
    seed: u64,
    /// Runs that are timed, of each combination
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = "Work")]
    repeat: usize,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// One combination.
#[derive(Clone, Copy)]
struct Case {
    batch: usize,
    length: usize,
    steps: usize,
    order: OrderName,
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

/// Refuses numbers of 0.
///
/// # Errors
/// [`Error::Request`].
pub fn at_least_one<'a>(numbers: impl IntoIterator<Item = (&'a str, usize)>) -> Result<()> {
    match numbers.into_iter().find(|&(_, n)| n == 0) {
        Some((flag, _)) => Err(Error::request(format!("--{flag} 0: expected 1 or more"))),
        None => Ok(()),
    }
}

/// Runs it.
///
/// # Errors
/// [`Error::Request`] for work that cannot be done with the model; [`Error::Memory`]; [`Error::Cancelled`] after Ctrl-C.
pub fn run(args: &GenerateArgs, sheet: &mut Sheet<'_>) -> Result<()> {
    let context = sheet.context;
    let each = |flag: &'static str, numbers: &[usize]| numbers.iter().map(|&n| (flag, n)).collect::<Vec<_>>();
    let counts =
        [each("batch", &args.batch), each("length", &args.length), each("steps", &args.steps)].concat();
    at_least_one(counts.into_iter().chain([("repeat", args.repeat)]))?;
    let mut subject = Subject::load(&args.weights, args.seed, context)?;
    let whole = vec![512.min(subject.engine.config().max_positions)];
    let lengths = if args.length.is_empty() { &whole } else { &args.length };
    let orders = if args.ar { &vec![OrderName::Ar] } else { &args.order };
    let mut cases = Vec::new();
    for &length in lengths {
        subject.check_length(length)?;
        for &batch in &args.batch {
            for &order in orders {
                subject.limits(batch, length, order == OrderName::Ar)?;
                // From left to right there are no steps to choose from.
                let steps = if order == OrderName::Ar { &args.steps[..1] } else { &args.steps };
                cases.extend(steps.iter().map(|&steps| Case { batch, length, steps, order }));
            }
        }
    }
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
    let mut request = Request::new(Canvas::prefix(&[subject.first], length - 1));
    request.steps = steps;
    request.top_p = args.top_p as f32;
    request.seed = args.seed;
    request.stop_at_eos = false;
    order.apply(&mut request);
    let requests: Vec<Request> =
        (0..batch).map(|sequence| Request { sequence: sequence as u32, ..request.clone() }).collect();
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
        (flops_ar(config, batch, length), bytes_ar(config, traffic, batch, length))
    } else {
        let bytes = count.most as f64 * traffic.weights(config, true)
            + count.nfe as f64 * traffic.activations(config, length as f64, (length - 1) as f64 / nfe);
        (flops::generation(config, batch, length, length - 1, nfe), bytes)
    };
    let mut line = subject.line(Kind::Generate, &name);
    line.times(&seconds).tokens(count.useful, count.raw).work(flops, bytes, subject.machine.ceilings);
    let middle = line.number("median_s").unwrap_or(f64::NAN);
    line.set("batch", batch)
        .set("length", length)
        .set("steps", (!ar).then_some(steps))
        .set("order", order.name())
        .set("top_p", args.top_p)
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

/// Operations of decoding `length - 1` tokens after a given one, a token a pass: token i looks at i keys.
pub fn flops_ar(config: &ModelConfig, batch: usize, length: usize) -> f64 {
    let passes = length - 1;
    let others = passes as f64 * (passes as f64 - 1.0) / 2.0;
    let attention = config.layers as f64 * others * 4.0 * config.query_width() as f64;
    batch as f64 * (flops::pass(config, &vec![1; passes], passes) + attention)
}

/// Bytes of the same: the weights once a pass, the keys and values of what stands before.
pub fn bytes_ar(config: &ModelConfig, traffic: Traffic, batch: usize, length: usize) -> f64 {
    let passes = (length - 1) as f64;
    let cached = config.layers as f64 * passes * (passes - 1.0) / 2.0 * 2.0 * config.kv_width() as f64;
    let one = traffic.activations(config, 1.0, 1.0);
    passes * traffic.weights(config, true) + batch as f64 * (passes * one + cached * traffic.number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SyntheticShape;

    #[test]
    fn decoding_costs_the_pairs_below_the_diagonal() {
        let config = SyntheticShape::DiffuGptS.config();
        let (layers, q) = (config.layers as f64, config.query_width() as f64);
        // Against a full pass over the same tokens: all pairs, where decoding has half of them and the diagonal.
        let full = flops::pass(&config, &[8], 8);
        let expected = full - layers * 4.0 * q * (64.0 - 36.0);
        let got = flops_ar(&config, 1, 9);
        assert!((got / expected - 1.0).abs() < 1e-12, "{got} {expected}");
        assert_eq!(flops_ar(&config, 3, 9), 3.0 * got);
    }

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

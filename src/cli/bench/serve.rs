//! `lacuna bench serve-sim`: requests that arrive over time, through one sampler.
//!
//! In rounds: what has arrived when the sampler is free goes in together, up to `--max-batch`, first come first served. Within a
//! round a request is done when its own canvas is. In real time.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use serde::Deserialize;

use super::super::Context;
use super::cases::{OrderName, at_least_one};
use super::generate::Count;
use super::line::{Kind, Line, percentiles};
use super::output::{OutputArgs, Sheet};
use super::work::{Subject, Traffic, WeightsArgs, forget_peak, peak_memory};
use crate::error::{Error, Result};
use crate::io::read_limited;
use crate::profile::flops;
use crate::rng::{Purpose, Rng};
use crate::sample::{Canvas, Generation, Observer, Pace, Request};

#[derive(Debug, ClapArgs)]
pub struct ServeArgs {
    #[command(flatten)]
    weights: WeightsArgs,
    /// Requests that arrive
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = "Work")]
    requests: usize,
    /// Requests a second, on average: the times between them are exponential (Poisson arrivals); 0: all are there at the start
    #[arg(long, value_name = "R", default_value_t = 2.0, help_heading = "Work")]
    rate: f64,
    /// None arrives later than this
    #[arg(long, value_name = "SECONDS", help_heading = "Work")]
    duration: Option<f64>,
    /// Arrivals of a file in place of these: lines {"at": seconds, "length": N, "steps": T, "order": "random"}, the last two
    /// if they differ from --steps and --order
    #[arg(long, value_name = "FILE", conflicts_with_all = ["requests", "rate", "duration", "length"], help_heading = "Work")]
    trace: Option<PathBuf>,
    /// Canvases at a time
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Work")]
    max_batch: usize,
    /// Tokens of a canvas: one of these for each request
    #[arg(
        long,
        short,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "64",
        help_heading = "Work"
    )]
    length: Vec<usize>,
    /// Denoising steps T: one of these for each request
    #[arg(
        long,
        short = 'T',
        value_name = "T,...",
        value_delimiter = ',',
        default_value = "32",
        help_heading = "Work"
    )]
    steps: Vec<usize>,
    /// Which masked positions are committed first: random, confidence, entropy, margin; ar: from left to right
    #[arg(
        long,
        value_name = "NAME",
        value_enum,
        hide_possible_values = true,
        default_value = "random",
        help_heading = "Work"
    )]
    order: OrderName,
    /// Draw from the most probable tokens that make up this much probability
    #[arg(long, value_name = "P", default_value_t = 0.9, help_heading = "Work")]
    top_p: f64,
    /// Of the weights that are made up, the arrivals and the drawing
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Work")]
    seed: u64,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// A request and when it comes, in seconds from the start.
#[derive(Clone, Debug, PartialEq)]
struct Arrival {
    at: f64,
    length: usize,
    steps: usize,
    order: OrderName,
}

/// A line of a trace.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TraceLine {
    at: f64,
    length: usize,
    steps: Option<usize>,
    order: Option<String>,
}

/// Bytes of a trace at most.
const TRACE_LIMIT: u64 = 1 << 26;

/// Longest pause before looking whether Ctrl-C was pressed.
const NAP: Duration = Duration::from_millis(20);

fn read_trace(path: &Path, args: &ServeArgs) -> Result<Vec<Arrival>> {
    let text = String::from_utf8_lossy(&read_limited(path, TRACE_LIMIT)?).into_owned();
    let mut arrivals = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |what: &str, expected: &str, got: String| Error::Input {
            origin: format!("{}:{}", path.display(), number + 1),
            what: what.into(),
            expected: expected.into(),
            got,
        };
        let form = "{\"at\": seconds, \"length\": N} and, if wanted, \"steps\" and \"order\"";
        let found: TraceLine = serde_json::from_str(line).map_err(|e| wrong("line", form, e.to_string()))?;
        if !(found.at >= 0.0 && found.at.is_finite()) {
            return Err(wrong("at", "seconds from the start, 0 or more", found.at.to_string()));
        }
        if found.steps == Some(0) {
            return Err(wrong("steps", "1 or more", "0".into()));
        }
        let order = match found.order {
            None => args.order,
            Some(name) => <OrderName as clap::ValueEnum>::from_str(&name, false)
                .map_err(|_| wrong("order", "random, confidence, entropy, margin or ar", name))?,
        };
        let steps = found.steps.or(args.steps.first().copied()).unwrap_or(1);
        arrivals.push(Arrival { at: found.at, length: found.length, steps, order });
    }
    if arrivals.is_empty() {
        return Err(Error::Input {
            origin: path.display().to_string(),
            what: "requests".into(),
            expected: "at least one line".into(),
            got: "none".into(),
        });
    }
    arrivals.sort_by(|a, b| a.at.total_cmp(&b.at));
    Ok(arrivals)
}

/// Poisson arrivals; lengths and steps drawn from the lists.
fn draw(args: &ServeArgs) -> Vec<Arrival> {
    let rng = Rng::new(args.seed);
    let one_of = |list: &[usize], what: u32, i: u32| {
        list[rng.below(list.len() as u32, Purpose::Measure, what, 0, i) as usize]
    };
    let mut at = 0.0;
    let mut arrivals = Vec::new();
    for i in 0..args.requests as u32 {
        if args.rate > 0.0 {
            let uniform = f64::from(rng.uniform(Purpose::Measure, 0, 0, i));
            at -= (1.0 - uniform).ln() / args.rate;
        }
        if args.duration.is_some_and(|most| at > most) {
            break;
        }
        let (length, steps) = (one_of(&args.length, 1, i), one_of(&args.steps, 2, i));
        arrivals.push(Arrival { at, length, steps, order: args.order });
    }
    arrivals
}

/// Notes when each request of a round was done.
struct Ends {
    start: Instant,
    at: Vec<f64>,
}

impl Observer for Ends {
    fn pace(&self) -> Pace {
        Pace::Never
    }

    fn done(&mut self, request: usize, _: &Result<Generation>) {
        self.at[request] = self.start.elapsed().as_secs_f64();
    }
}

/// Runs it.
///
/// # Errors
/// [`Error::Request`] for work that cannot be done with the model; [`Error::Input`] for a trace that is none; [`Error::Memory`];
/// [`Error::Cancelled`] after Ctrl-C.
pub fn run(args: &ServeArgs, sheet: &mut Sheet<'_>) -> Result<()> {
    let context = sheet.context;
    let each = |flag: &'static str, numbers: &[usize]| numbers.iter().map(|&n| (flag, n)).collect::<Vec<_>>();
    let counts = [each("length", &args.length), each("steps", &args.steps)].concat();
    at_least_one(counts.into_iter().chain([("requests", args.requests), ("max-batch", args.max_batch)]))?;
    let seconds = [("rate", Some(args.rate)), ("duration", args.duration)];
    if let Some((flag, Some(n))) =
        seconds.into_iter().find(|(_, n)| n.is_some_and(|n| !(n >= 0.0 && n.is_finite())))
    {
        return Err(Error::request(format!("--{flag} {n}: expected a number, 0 or more")));
    }
    if u32::try_from(args.requests).is_err() {
        return Err(Error::request(format!("--requests {}: expected fewer than 2^32", args.requests)));
    }
    let arrivals = match &args.trace {
        Some(path) => read_trace(path, args)?,
        None => draw(args),
    };
    if arrivals.is_empty() {
        return Err(Error::request(
            "--duration: no request arrives in that time; give more of it, or a higher --rate",
        ));
    }
    let mut subject = Subject::load(&args.weights, args.seed, context)?;
    for arrival in &arrivals {
        subject.check_length(arrival.length)?;
    }
    subject.begin(&args.output, sheet)?;
    let bar = context.progress(arrivals.len() as u64, args.output.json());
    let served = serve(args, &subject, &arrivals, context, &bar);
    bar.finish_and_clear();
    let line = served?;
    // What was served before Ctrl-C counts.
    if let Some(line) = line {
        sheet.add(line)?;
    }
    context.interrupt.check()
}

/// Serves until all are done, or Ctrl-C was pressed; `None` when nothing was done by then.
fn serve(
    args: &ServeArgs,
    subject: &Subject,
    arrivals: &[Arrival],
    context: &Context,
    bar: &indicatif::ProgressBar,
) -> Result<Option<Line>> {
    let longest = arrivals.iter().map(|a| a.length).max().unwrap_or(1);
    let ar = arrivals.iter().any(|a| a.order == OrderName::Ar);
    forget_peak();
    let free = subject.engine.free_memory();
    let together = args.max_batch.min(arrivals.len());
    let mut sampler = subject.engine.sampler(subject.limits(together, longest, ar)?)?;
    let requests: Vec<Request> = (0_u32..)
        .zip(arrivals)
        .map(|(sequence, arrival)| request(args, subject, sequence, arrival))
        .collect();
    // A request of each kind that does not count: buffers and recordings are made once.
    let mut kinds: Vec<usize> = Vec::new();
    for (i, a) in arrivals.iter().enumerate() {
        if !kinds.iter().any(|&k| (arrivals[k].length, arrivals[k].order) == (a.length, a.order)) {
            kinds.push(i);
        }
    }
    for kind in kinds {
        let brief = Request { steps: requests[kind].steps.min(2), ..requests[kind].clone() };
        for result in sampler.generate_with(std::slice::from_ref(&brief), &mut ())? {
            result?;
        }
        if context.interrupt.raised() {
            return Ok(None);
        }
    }
    let config = subject.engine.config();
    let traffic = Traffic { weight: subject.weight_bytes(), number: subject.engine.number_bytes() as f64 };
    let (mut waiting, mut next) = (VecDeque::new(), 0);
    let (mut latency, mut queue) = (Vec::new(), Vec::new());
    let (mut count, mut flops, mut bytes, mut end) = (Count::default(), 0.0, 0.0, 0.0);
    let start = Instant::now();
    while latency.len() < arrivals.len() && !context.interrupt.raised() {
        let now = start.elapsed().as_secs_f64();
        while next < arrivals.len() && arrivals[next].at <= now {
            waiting.push_back(next);
            next += 1;
        }
        if waiting.is_empty() {
            let pause = Duration::from_secs_f64((arrivals[next].at - now).clamp(0.0, NAP.as_secs_f64()));
            std::thread::sleep(pause);
            continue;
        }
        let round: Vec<usize> = waiting.drain(..waiting.len().min(together)).collect();
        let batch: Vec<Request> = round.iter().map(|&i| requests[i].clone()).collect();
        let mut ends = Ends { start, at: vec![now; batch.len()] };
        let results = sampler.generate_with(&batch, &mut ends)?;
        end = start.elapsed().as_secs_f64();
        let mut passes = 0;
        for ((&i, result), done) in round.iter().zip(results).zip(&ends.at) {
            let (generation, arrival) = (result?, &arrivals[i]);
            count.add(&requests[i], &generation, subject.eos);
            latency.push(done - arrival.at);
            queue.push(now - arrival.at);
            let (length, filled) = (arrival.length, arrival.length - 1);
            if arrival.order == OrderName::Ar {
                flops += flops::autoregressive(config, 1, length);
                bytes +=
                    traffic.autoregressive(config, 1, length) - filled as f64 * traffic.weights(config, true);
            } else {
                let nfe = generation.nfe as f64;
                flops += flops::generation(config, 1, length, filled, nfe);
                bytes += nfe * traffic.activations(config, length as f64, filled as f64 / nfe);
            }
            passes = passes.max(generation.nfe);
        }
        bytes += passes as f64 * traffic.weights(config, true);
        bar.inc(round.len() as u64);
    }
    if latency.is_empty() {
        return Ok(None);
    }
    Ok(Some(line(args, subject, arrivals, Served { latency, queue, count, flops, bytes, end, free })))
}

fn request(args: &ServeArgs, subject: &Subject, sequence: u32, arrival: &Arrival) -> Request {
    let canvas = Canvas::prefix(&[subject.first], arrival.length - 1);
    arrival.order.request(canvas, arrival.steps, args.top_p, args.seed, sequence)
}

/// What came of all requests.
struct Served {
    latency: Vec<f64>,
    queue: Vec<f64>,
    count: Count,
    flops: f64,
    bytes: f64,
    /// When the last was done.
    end: f64,
    free: Option<u64>,
}

fn line(args: &ServeArgs, subject: &Subject, arrivals: &[Arrival], served: Served) -> Line {
    let Served { latency, queue, count, flops, bytes, end, free } = served;
    let done = latency.len();
    let source = match &args.trace {
        Some(path) => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        None if args.rate > 0.0 => format!("{} a second", args.rate),
        None => "all at once".to_owned(),
    };
    // One value where all have the same.
    let same = |of: fn(&Arrival) -> usize| {
        arrivals.iter().all(|a| of(a) == of(&arrivals[0])).then(|| of(&arrivals[0]))
    };
    let (length, steps) = (same(|a| a.length), same(|a| a.steps));
    let order = arrivals.iter().all(|a| a.order == arrivals[0].order).then(|| arrivals[0].order.name());
    let list = |numbers: &[usize]| numbers.iter().map(usize::to_string).collect::<Vec<_>>().join("|");
    let work = match &args.trace {
        Some(_) => String::new(),
        None => format!(", length {}, T = {}, {}", list(&args.length), list(&args.steps), args.order.name()),
    };
    let name = format!(
        "serve-sim {}, {} requests, {source}, at most {} at a time{work}",
        subject.name,
        arrivals.len(),
        args.max_batch
    );
    let mut line = subject.line(Kind::Serve, &name);
    line.times(&[end]).tokens(count.useful, count.raw).work(flops, bytes, subject.machine.ceilings);
    line.set("batch", args.max_batch)
        .set("length", length)
        .set("steps", steps)
        .set("order", order)
        .set("top_p", args.top_p)
        .set("requests", done)
        .set("rate_per_s", (args.trace.is_none() && args.rate > 0.0).then_some(args.rate))
        .set("nfe", count.nfe as f64 / done as f64)
        .set("tokens_per_forward", count.useful as f64 / count.nfe as f64)
        .set("requests_per_s", done as f64 / end)
        .set("latency_s", percentiles(&latency))
        .set("queue_s", percentiles(&queue))
        .set("peak_memory_bytes", peak_memory())
        .set("device_bytes", subject.device_bytes(free));
    line
}

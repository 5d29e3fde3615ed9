//! What the samplers promise: the same tokens whatever the batch, the thread count and the order;
//! the plan's distribution is the plain loop's; every order does what it says.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::common::{bundled, fixture, load};
use lacuna::backend::cpu::Cpu;
use lacuna::backend::{Confidence, Mask};
use lacuna::model::{Arena, ArenaSize, Batch, Model};
use lacuna::rng::{Purpose, Rng};
use lacuna::sample::{
    Canvas, CountSchedule, Finish, Generation, Limits, Observer, Order, Part, PlainInput, PlainOptions,
    Request, Sampler, Step, plain_loop,
};
use lacuna::{Error, Result};
use statrs::distribution::{ChiSquared, ContinuousCDF};

const CONFIDENT: Order =
    Order::Confidence { by: Confidence::MaxProb, schedule: CountSchedule::Linear, noise: 0.0, remask: false };

fn request(given: &[u32], length: usize) -> Request {
    let mut request = Request::new(Canvas::prefix(given, length));
    request.stop_at_eos = false;
    request
}

/// Seven requests that differ in everything that can differ.
fn mixed() -> Vec<Request> {
    let mut all = vec![
        request(&[1], 40),
        request(&[1, 70, 80, 90], 17),
        request(&[1, 5], 1),
        request(&[1], 64),
        request(&[1, 300, 301], 33),
        Request::new(Canvas::new(&[
            Part::Fixed(vec![1, 44, 45]),
            Part::Gap(9),
            Part::Fixed(vec![99, 98]),
            Part::Gap(7),
            Part::Fixed(vec![12]),
        ])),
        request(&[1, 7, 8, 9], 25),
    ];
    all[0].steps = 8;
    (all[1].seed, all[1].temperature, all[1].top_p) = (u64::MAX, 0.7, 0.5);
    all[2].steps = 3;
    (all[3].order, all[3].steps, all[3].seed) = (CONFIDENT, 9, 11);
    (all[4].order, all[4].top_k) = (Order::Threshold { by: Confidence::MaxProb, tau: 0.2 }, 50);
    (all[5].order, all[5].steps, all[5].sequence) = (
        Order::Confidence {
            by: Confidence::MaxProb,
            schedule: CountSchedule::Cosine,
            noise: 0.5,
            remask: true,
        },
        12,
        3,
    );
    all[6].autoregressive = true;
    all
}

fn run(model: &Arc<Model<Cpu<f32>>>, requests: &[Request], sequences: usize) -> Vec<Generation> {
    let limits = Limits::for_requests(requests, sequences);
    let mut sampler = Sampler::new(model.clone(), limits).unwrap();
    sampler.generate_with(requests, &mut ()).unwrap().into_iter().map(Result::unwrap).collect()
}

#[test]
fn tokens_do_not_depend_on_batch_threads_or_order() {
    let requests = mixed();
    let model = bundled(1);
    let alone: Vec<_> = requests.iter().flat_map(|r| run(&model, std::slice::from_ref(r), 1)).collect();
    for threads in [1, 2, 4] {
        let model = bundled(threads);
        for sequences in [1, 3, 7] {
            assert_eq!(run(&model, &requests, sequences), alone, "{threads} threads, {sequences} at once");
        }
        let reversed: Vec<_> = requests.iter().rev().cloned().collect();
        let mut back = run(&model, &reversed, 7);
        back.reverse();
        assert_eq!(back, alone, "{threads} threads, reversed");
    }
    // The requests differ, so the texts must.
    assert_ne!(alone[0].ids[1..18], alone[1].ids[4..21]);
}

#[test]
fn another_seed_or_sequence_gives_another_text() {
    let model = bundled(2);
    let base = request(&[1], 40);
    let (mut seed, mut sequence) = (base.clone(), base.clone());
    seed.seed = 1;
    sequence.sequence = 1;
    let out = run(&model, &[base.clone(), base, seed, sequence], 4);
    assert_eq!(out[0], out[1]);
    assert_ne!(out[0].ids, out[2].ids);
    assert_ne!(out[0].ids, out[3].ids);
    assert_ne!(out[2].ids, out[3].ids);
}

/// Two-sample chi-square test; the p-value.
fn same_distribution(a: &BTreeMap<u64, [f64; 2]>) -> f64 {
    // Rare outcomes are pooled, as the test needs expected counts of some size.
    let mut pooled = [0.0; 2];
    let mut bins: Vec<[f64; 2]> = Vec::new();
    for counts in a.values() {
        if counts[0] + counts[1] < 20.0 {
            pooled[0] += counts[0];
            pooled[1] += counts[1];
        } else {
            bins.push(*counts);
        }
    }
    if pooled[0] + pooled[1] > 0.0 {
        bins.push(pooled);
    }
    let total = [0, 1].map(|i| bins.iter().map(|b| b[i]).sum::<f64>());
    let mut chi2 = 0.0;
    for bin in &bins {
        for i in 0..2 {
            let expected = (bin[0] + bin[1]) * total[i] / (total[0] + total[1]);
            chi2 += (bin[i] - expected).powi(2) / expected;
        }
    }
    assert!(bins.len() > 10, "too few outcomes to compare: {}", bins.len());
    1.0 - ChiSquared::new((bins.len() - 1) as f64).unwrap().cdf(chi2)
}

/// Final texts of the commit plan (steps drawn uniformly) and of the plain loop (revealed with
/// probability 1/s) on a tiny model: the counts of pairs of neighbouring tokens, cut into classes.
fn outcomes(model: &Arc<Model<Cpu<f32>>>, steps: usize, plan_steps: usize) -> BTreeMap<u64, [f64; 2]> {
    const RUNS: usize = 6000;
    let (length, mask_id) = (6, 96);
    let mut request = Request::new(Canvas::prefix(&[1], length - 1));
    (request.steps, request.temperature, request.top_p) = (plan_steps, 1.0, 0.8);
    (request.mask_id, request.suppress_mask, request.stop_at_eos) = (Some(mask_id), Some(false), false);
    let requests: Vec<_> = (0..RUNS as u32).map(|i| Request { sequence: i, ..request.clone() }).collect();
    let mut bins: BTreeMap<u64, [f64; 2]> = BTreeMap::new();
    let mut count = |ids: &[u32], side: usize| {
        let class = |t: u32| u64::from(t % 7);
        let key = (1..length).fold(0, |k, p| if p == 2 || p == 3 { k * 7 + class(ids[p]) } else { k });
        bins.entry(key).or_default()[side] += 1.0;
    };
    for out in run(model, &requests, 500) {
        count(&out.ids, 0);
    }
    let rng = Rng::new(99);
    let n = RUNS * length;
    let uniforms = |purpose, slices: usize| -> Vec<f32> {
        (0..slices * n)
            .map(|i| rng.uniform(purpose, (i % n / length) as u32, (i / n) as u32, (i % length) as u32))
            .collect()
    };
    let input = PlainInput {
        batch: RUNS,
        length,
        x: [1, 0, 0, 0, 0, 0].repeat(RUNS),
        src: [true, false, false, false, false, false].repeat(RUNS),
        u_cat: uniforms(Purpose::Token, steps),
        u_unmask: uniforms(Purpose::Reveal, steps - 1),
    };
    let options =
        PlainOptions { steps, temperature: 1.0, top_p: 0.8, shift: true, mask_id, confidence: false };
    let out = plain_loop(model, &input, &options).unwrap();
    for row in out.x0[(steps - 1) * n..].chunks(length) {
        count(row, 1);
    }
    bins
}

#[test]
fn plan_and_plain_loop_agree_in_distribution() {
    let model = load(&fixture("golden/gpt2-tiny"), 2);
    let p = same_distribution(&outcomes(&model, 4, 4));
    assert!(p > 1e-4, "plan and plain loop differ: p = {p:e}");
    // The test has power: one step instead of four is another distribution.
    let p = same_distribution(&outcomes(&model, 4, 1));
    assert!(p < 1e-4, "the test cannot tell T = 1 from T = 4: p = {p:e}");
}

/// Records every step.
#[derive(Default)]
struct Log {
    steps: Vec<(usize, Vec<u32>, Vec<u32>)>,
    masked: Vec<usize>,
    stop_after: Option<usize>,
}

impl Observer for Log {
    fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        let committed = step.committed.iter().map(|c| c.position).collect();
        self.steps.push((step.step, committed, step.remasked.to_vec()));
        self.masked.push(step.masked.iter().filter(|m| **m).count());
        if self.stop_after == Some(self.steps.len()) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

fn logged(model: &Arc<Model<Cpu<f32>>>, request: &Request) -> (Generation, Log) {
    let mut log = Log::default();
    let limits = Limits::for_requests(std::slice::from_ref(request), 1);
    let mut sampler = Sampler::new(model.clone(), limits).unwrap();
    let mut out = sampler.generate_with(std::slice::from_ref(request), &mut log).unwrap();
    (out.pop().unwrap().unwrap(), log)
}

#[test]
fn random_order_skips_empty_steps_and_commits_everything_once() {
    let model = bundled(2);
    let mut request = request(&[1], 30);
    request.steps = 200;
    let (out, log) = logged(&model, &request);
    assert!(out.nfe <= 30, "{} forward passes for 30 positions", out.nfe);
    assert_eq!(out.nfe, log.steps.len());
    let mut committed: Vec<u32> = log.steps.iter().flat_map(|s| s.1.clone()).collect();
    committed.sort_unstable();
    assert_eq!(committed, (1..=30).collect::<Vec<_>>());
    assert!(log.steps.windows(2).all(|w| w[0].0 < w[1].0));
    assert!(log.steps.iter().all(|s| s.0 <= 200 && !s.1.is_empty()));
}

#[test]
fn counted_orders_follow_their_schedule() {
    let model = bundled(2);
    for by in [Confidence::MaxProb, Confidence::Entropy, Confidence::Margin] {
        let mut request = request(&[1], 40);
        request.steps = 8;
        request.order = Order::Confidence { by, schedule: CountSchedule::Linear, noise: 0.0, remask: false };
        let (out, log) = logged(&model, &request);
        assert_eq!(log.masked, [35, 30, 25, 20, 15, 10, 5, 0], "{by:?}");
        assert_eq!(out.nfe, 8);
    }
    let mut request = request(&[1], 40);
    request.steps = 8;
    request.order = Order::Confidence {
        by: Confidence::MaxProb,
        schedule: CountSchedule::Cosine,
        noise: 0.0,
        remask: false,
    };
    let (_, log) = logged(&model, &request);
    let taken: Vec<_> = log.steps.iter().map(|s| s.1.len()).collect();
    assert!(taken.first() < taken.last(), "cosine starts slowly: {taken:?}");
    assert_eq!(log.masked.last(), Some(&0));
}

#[test]
fn most_confident_positions_come_first() {
    let model = bundled(2);
    let mut request = request(&[1, 66, 67], 24);
    (request.order, request.steps, request.temperature) = (CONFIDENT, 6, 0.0);
    let (out, log) = logged(&model, &request);
    // At step 1 every position was scored: those committed beat those that were not.
    let canvas: Vec<u32> = [1, 66, 67]
        .into_iter()
        .chain(std::iter::repeat_n(model.special().mask.as_ref().unwrap().id, 24))
        .collect();
    let size = ArenaSize { tokens: 27, rows: 27 };
    let mut batch = Batch::with_capacity(size, 1);
    batch.push(&canvas, 0..27);
    let mut arena = Arena::new(model.backend(), model.config(), size, 27).unwrap();
    let logits = model.logits(&batch, &mut arena, Mask::Full).unwrap();
    let v = model.config().vocab_size;
    let best = |p: u32| {
        let row = &logits[(p as usize - 1) * v..p as usize * v];
        // The mask token has an id of its own here and is never drawn.
        let row = row.iter().enumerate().filter(|(i, _)| *i != 0).map(|(_, x)| f64::from(*x));
        let max = row.clone().fold(f64::NEG_INFINITY, f64::max);
        -row.map(|x| (x - max).exp()).sum::<f64>().ln()
    };
    let first = &log.steps[0].1;
    let worst_in = first.iter().map(|&p| best(p)).fold(f64::INFINITY, f64::min);
    let best_out = (3..27).filter(|p| !first.contains(p)).map(best).fold(f64::NEG_INFINITY, f64::max);
    assert!(worst_in >= best_out - 1e-4, "{worst_in} < {best_out}");
    assert!(first.iter().all(|&p| f64::from(out.log_prob[p as usize]) - best(p) < 1e-4));
}

#[test]
fn threshold_commits_at_least_one_and_all_above() {
    let model = bundled(2);
    let mut all = request(&[1], 20);
    all.order = Order::Threshold { by: Confidence::MaxProb, tau: 0.0 };
    assert_eq!(logged(&model, &all).0.nfe, 1);
    let mut one = request(&[1], 20);
    one.order = Order::Threshold { by: Confidence::MaxProb, tau: 1.0 };
    let (out, log) = logged(&model, &one);
    assert_eq!(out.nfe, 20);
    assert!(log.steps.iter().all(|s| s.1.len() == 1));
}

#[test]
fn remasking_lets_tokens_return_and_still_ends() {
    let model = bundled(2);
    let mut request = request(&[1], 48);
    (request.steps, request.seed) = (24, 5);
    request.order = Order::Confidence {
        by: Confidence::MaxProb,
        schedule: CountSchedule::Linear,
        noise: 0.0,
        remask: true,
    };
    let (out, log) = logged(&model, &request);
    assert_eq!(log.masked, (0..24).rev().map(|n| 2 * n).collect::<Vec<_>>());
    assert!(log.steps.iter().any(|s| !s.2.is_empty()), "nothing was ever remasked");
    let mask = model.special().mask.as_ref().unwrap().id;
    assert!(out.ids.iter().all(|&t| t != mask));
}

#[test]
fn blocks_are_filled_from_left_to_right() {
    let model = bundled(2);
    for order in [Order::Random, CONFIDENT, Order::Threshold { by: Confidence::Margin, tau: 0.5 }] {
        let mut request = request(&[1, 2], 22);
        (request.block_length, request.steps, request.order) = (Some(8), 12, order);
        let (_, log) = logged(&model, &request);
        let blocks: Vec<u32> = log.steps.iter().flat_map(|s| s.1.iter().map(|p| (p - 2) / 8)).collect();
        assert!(blocks.windows(2).all(|w| w[0] <= w[1]), "{order:?}: {blocks:?}");
        assert_eq!(blocks.len(), 22);
    }
}

#[test]
fn end_of_sequence_stops_early_without_changing_the_answer() {
    // Random weights over 97 tokens: the end of sequence comes up often.
    let model = load(&fixture("golden/gpt2-tiny"), 2);
    let eos = model.special().eos.as_ref().unwrap().id;
    let mut saved = 0;
    for seed in 0..40 {
        for (order, block_length) in [(Order::Random, None), (CONFIDENT, None), (Order::Random, Some(10))] {
            let mut full = request(&[1, 40], 60);
            (full.seed, full.steps, full.order, full.top_p) = (seed, 30, order, 1.0);
            (full.mask_id, full.block_length) = (Some(96), block_length);
            let stopping = Request { stop_at_eos: true, ..full.clone() };
            let (full, _) = logged(&model, &full);
            let (short, _) = logged(&model, &stopping);
            let end = full.ids[2..].iter().position(|&t| t == eos).map_or(62, |p| p + 2);
            assert_eq!(short.end, end);
            assert_eq!(short.ids[..end], full.ids[..end]);
            assert_eq!(short.tokens, end - 2);
            assert_eq!(short.finish, if end < 62 { Finish::Eos } else { Finish::Length });
            assert!(short.nfe <= full.nfe);
            saved += full.nfe - short.nfe;
        }
    }
    assert!(saved > 0, "no text ended early, so nothing was tested");
}

#[test]
fn cached_decoding_equals_a_pass_over_the_whole_text() {
    for dir in ["golden/gpt2-tiny", "golden/llama-tiny"] {
        let model = load(&fixture(dir), 2);
        let mut request = request(&[5, 17, 23], 12);
        (request.autoregressive, request.temperature) = (true, 0.0);
        let out = run(&model, std::slice::from_ref(&request), 1).pop().unwrap();
        let mut ids = vec![5, 17, 23];
        let v = model.config().vocab_size;
        while ids.len() < 15 {
            let n = ids.len();
            let size = ArenaSize { tokens: n, rows: n };
            let mut batch = Batch::with_capacity(size, 1);
            batch.push(&ids, 0..n as u32);
            let mut arena = Arena::new(model.backend(), model.config(), size, n).unwrap();
            let logits = model.logits(&batch, &mut arena, Mask::Causal).unwrap();
            let last = &logits[(n - 1) * v..];
            let best = (0..v).fold(0, |b, i| if last[i] > last[b] { i } else { b });
            ids.push(best as u32);
        }
        assert_eq!(out.ids, ids, "{dir}");
        assert_eq!(out.nfe, 12);
    }
}

#[test]
fn wanted_rows_alone_have_the_bits_they_have_among_all() {
    for dir in ["golden/gpt2-hd64", "golden/llama-tiny"] {
        let model = load(&fixture(dir), 2);
        let ids: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % 250).collect();
        let size = ArenaSize { tokens: 40, rows: 40 };
        let mut arena = Arena::new(model.backend(), model.config(), size, 40).unwrap();
        let mut batch = Batch::with_capacity(size, 1);
        batch.push(&ids, 0..40);
        let all = model.logits(&batch, &mut arena, Mask::Full).unwrap();
        let v = model.config().vocab_size;
        for rows in [vec![0], vec![39], vec![3, 4, 20], (0..39).collect()] {
            batch.clear();
            batch.push(&ids, rows.iter().copied());
            let some = model.logits(&batch, &mut arena, Mask::Full).unwrap();
            for (got, &row) in some.chunks(v).zip(&rows) {
                let want = &all[row as usize * v..(row as usize + 1) * v];
                assert!(
                    got.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits()),
                    "{dir} row {row} of {rows:?}"
                );
            }
        }
    }
}

#[test]
fn a_callback_stops_the_work() {
    let model = bundled(2);
    let requests = [request(&[1], 40), request(&[1], 50), request(&[1], 60)];
    let mut log = Log { stop_after: Some(4), ..Log::default() };
    let mut sampler = Sampler::new(model, Limits { sequences: 2, tokens: 128 }).unwrap();
    let out = sampler.generate_with(&requests, &mut log).unwrap();
    assert!(out.iter().all(|r| matches!(r, Err(Error::Cancelled))));
    assert_eq!(log.steps.len(), 4);
}

#[test]
fn requests_that_cannot_be_honoured_say_why_and_spare_the_others() {
    let model = bundled(2);
    let bad = |change: &dyn Fn(&mut Request)| {
        let mut r = request(&[1], 8);
        change(&mut r);
        r
    };
    let requests = [
        (bad(&|r| r.steps = 0), "steps must be 1"),
        (bad(&|r| r.temperature = f32::NAN), "temperature"),
        (bad(&|r| r.top_p = 0.0), "top-p"),
        (bad(&|r| r.canvas = Canvas::prefix(&[], 8)), "--bos"),
        (bad(&|r| r.canvas = Canvas::prefix(&[], 0)), "empty"),
        (bad(&|r| r.canvas = Canvas::prefix(&[1], 500)), "128 positions"),
        (bad(&|r| r.canvas = Canvas::prefix(&[1, 5000], 8)), "token id 5000"),
        (bad(&|r| r.mask_id = Some(1024)), "mask id 1024"),
        (bad(&|r| r.block_length = Some(0)), "block length"),
        (bad(&|r| (r.autoregressive, r.canvas) = (true, Canvas::prefix(&[], 8))), "at least one given token"),
        (
            bad(&|r| {
                r.order = Order::Confidence {
                    by: Confidence::Entropy,
                    schedule: CountSchedule::Linear,
                    noise: 0.0,
                    remask: true,
                }
            }),
            "remasking",
        ),
    ];
    let mut all: Vec<Request> = requests.iter().map(|(r, _)| r.clone()).collect();
    all.push(request(&[1], 8));
    let mut sampler = Sampler::new(model, Limits { sequences: 4, tokens: 128 }).unwrap();
    let mut out = sampler.generate_with(&all, &mut ()).unwrap();
    assert!(out.pop().unwrap().is_ok());
    for ((_, expected), got) in requests.iter().zip(out) {
        let error = got.unwrap_err();
        assert!(matches!(error, Error::Request(_)), "{error:?}");
        assert!(error.to_string().contains(expected), "expected `{expected}` in: {error}");
    }
}

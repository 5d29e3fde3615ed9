//! The whole engine on the host SIMT machine: the golden cases, and the bundled model's tokens, which are the CPU's.

use std::path::Path;
use std::sync::Arc;

use crate::common::GOLDEN;
use lacuna::backend::cpu::Cpu;
use lacuna::backend::cuda::simt::{Limits as SimtLimits, Options, Simt};
use lacuna::backend::cuda::{Counts, Cuda, Device};
use lacuna::backend::{Backend, Confidence, Forward, Mask};
use lacuna::io::ModelFiles;
use lacuna::model::{Arena, ArenaSize, Batch, LoadOptions, Model, SyntheticShape};
use lacuna::sample::{
    Canvas, CountSchedule, Finish, Generation, Limits, MemoryPlan, Order, Part, Request, Sampler,
};

/// A machine that does not watch every access: `lacuna selftest` and `kernels.rs` do that.
fn machine() -> Cuda<Simt> {
    Cuda::new(Simt::new(Options { seed: 0, check: false }))
}

fn load(dir: &Path) -> Arc<Model<Cuda<Simt>>> {
    let files = ModelFiles::open(dir).unwrap();
    Arc::new(Model::load(machine(), &files, LoadOptions::default()).unwrap())
}

fn bundled() -> Arc<Model<Cuda<Simt>>> {
    let files = ModelFiles::bundled().unwrap();
    Arc::new(Model::load(machine(), &files, LoadOptions::default()).unwrap())
}

#[test]
fn golden_logits_under_every_mask() {
    crate::golden_cases::logits_under_every_mask(&load);
}

#[test]
fn golden_samplers_token_for_token() {
    crate::golden_cases::samplers_token_for_token(&load, &[GOLDEN[0].0, GOLDEN[2].0], 1);
}

#[test]
fn golden_losses() {
    crate::golden_cases::losses(&load);
}

#[test]
fn golden_scores() {
    crate::golden_cases::multiple_choice_scores(&load);
}

const CONFIDENT: Order =
    Order::Confidence { by: Confidence::MaxProb, schedule: CountSchedule::Linear, noise: 0.0, remask: false };

/// Short canvases of every kind, each with a seed of its own.
fn requests(seeds: std::ops::Range<u64>) -> Vec<Request> {
    let remasking = Order::Confidence {
        by: Confidence::MaxProb,
        schedule: CountSchedule::Cosine,
        noise: 0.5,
        remask: true,
    };
    let margin = Order::Threshold { by: Confidence::Margin, tau: 0.3 };
    let orders = [Order::Random, CONFIDENT, Order::Random, remasking, margin];
    seeds
        .map(|seed| {
            let n = seed as usize;
            let canvas = match n % 3 {
                0 => Canvas::prefix(&[1], 12 + n % 5),
                1 => Canvas::prefix(&[1, 20, 300, 7], 9),
                _ => Canvas::new(&[
                    Part::Fixed(vec![1, 50]),
                    Part::Gap(7),
                    Part::Fixed(vec![60, 70]),
                    Part::Gap(3),
                ]),
            };
            let mut request = Request::new(canvas);
            request.seed = seed;
            request.order = orders[n % orders.len()];
            request.steps = 2 + n % 4;
            request.temperature = [1.0, 0.7, 0.0, 1.3][n % 4];
            request.top_p = [0.9, 1.0, 0.5][n % 3];
            request.top_k = [0, 0, 40][n % 3];
            request.block_length = if n % 4 == 3 { Some(5) } else { None };
            request
        })
        .collect()
}

/// Twenty seeds, alone and in batches: every number of the result but log probabilities is the CPU's.
#[test]
fn tokens_are_those_of_the_cpu_alone_and_in_batches() {
    let requests = requests(0..20);
    let mut cpu = Sampler::new(crate::common::bundled(2), Limits { sequences: 1, tokens: 128 }).unwrap();
    let expected = cpu.generate_with(&requests, &mut ()).unwrap();
    let model = bundled();
    for sequences in [1, 5] {
        let mut sampler = Sampler::new(model.clone(), Limits { sequences, tokens: 128 }).unwrap();
        let got = sampler.generate_with(&requests, &mut ()).unwrap();
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let (got, expected) = (got.as_ref().unwrap(), expected.as_ref().unwrap());
            assert_eq!(got.ids, expected.ids, "request {i}, {sequences} at a time");
            assert_eq!(got.committed_at, expected.committed_at, "request {i}, {sequences} at a time");
            assert_eq!(
                (got.nfe, got.tokens, got.finish),
                (expected.nfe, expected.tokens, expected.finish),
                "request {i}"
            );
            for (p, (a, b)) in got.log_prob.iter().zip(&expected.log_prob).enumerate() {
                assert!((a - b).abs() < 1e-3, "request {i}, position {p}: log probability {a}, expected {b}");
            }
        }
    }
}

fn counts(sampler: &Sampler<Cuda<Simt>>) -> Counts {
    sampler.model().backend().device().counts()
}

/// A canvas of one length, at the machine's full pace.
fn fixed_steps(order: Order, steps: usize) -> Vec<Request> {
    [9, 9]
        .iter()
        .enumerate()
        .map(|(i, &length)| {
            let mut request = Request::new(Canvas::prefix(&[1], length));
            (request.order, request.steps, request.seed) = (order, steps, 70 + i as u64);
            request.stop_at_eos = false;
            request
        })
        .collect()
}

/// Where the number of steps is known, a step is one replay: no launch of its own, no allocation, no copy, and the host
/// waits for nothing until all are done.
#[test]
fn a_step_of_a_known_plan_is_a_replay_and_nothing_else() {
    let remasking = Order::Confidence {
        by: Confidence::MaxProb,
        schedule: CountSchedule::Linear,
        noise: 0.2,
        remask: true,
    };
    let mut sampler = Sampler::new(bundled(), Limits { sequences: 2, tokens: 20 }).unwrap();
    for order in [CONFIDENT, remasking] {
        let mut seen = Vec::new();
        for steps in [3, 3, 9] {
            let before = counts(&sampler);
            let results = sampler.generate_with(&fixed_steps(order, steps), &mut ()).unwrap();
            assert!(results.iter().all(|r| r.as_ref().unwrap().nfe == steps), "{order:?}");
            seen.push(counts(&sampler) - before);
        }
        // All shapes of 3 steps were seen in the first run; of the nine steps some are new.
        assert_eq!((seen[1].launches, seen[1].replays), (0, 3), "{order:?}: {seen:?}");
        for counts in &seen {
            assert_eq!((counts.allocations, counts.uploads), (0, 0), "{order:?}: {counts:?}");
            assert_eq!((counts.downloads, counts.synchronizations), (5, 5), "{order:?}: the canvases, once");
            assert_eq!(counts.sends, seen[0].sends, "{order:?}: {counts:?}");
        }
    }
    // The paper's order, whose rows vary: by the second run every step is a replay.
    for seed in [4, 5] {
        let mut requests = fixed_steps(Order::Random, 5);
        requests.iter_mut().for_each(|r| r.seed = seed);
        sampler.generate_with(&requests, &mut ()).unwrap();
        let before = counts(&sampler);
        let results = sampler.generate_with(&requests, &mut ()).unwrap();
        let nfe = results.iter().map(|r| r.as_ref().unwrap().nfe).max().unwrap() as u64;
        let counts = counts(&sampler) - before;
        assert_eq!(
            (counts.launches, counts.allocations, counts.uploads),
            (0, 0, 0),
            "seed {seed}: {counts:?}"
        );
        assert_eq!(counts.replays, nfe, "{counts:?}");
    }
}

/// A threshold needs to know what it committed: one small copy a step.
#[test]
fn a_step_of_a_threshold_is_looked_at_once() {
    let mut sampler = Sampler::new(bundled(), Limits { sequences: 2, tokens: 20 }).unwrap();
    let order = Order::Threshold { by: Confidence::MaxProb, tau: 0.2 };
    let before = counts(&sampler);
    let results = sampler.generate_with(&fixed_steps(order, 1), &mut ()).unwrap();
    let counts = counts(&sampler) - before;
    let steps = results.iter().map(|r| r.as_ref().unwrap().nfe as u64).max().unwrap();
    // Five more for the canvases, each time that a sequence is done.
    assert!(counts.downloads <= steps + 2 * 5, "{steps} steps: {counts:?}");
    assert_eq!(counts.allocations, 0, "{counts:?}");
}

/// A driver that is lost in the middle: an error that says so, at once, whenever it happens.
#[test]
fn a_machine_that_is_lost_is_an_error() {
    for lose_after in [0, 1, 37, 100, 250] {
        let limits = SimtLimits { memory: None, lose_after: Some(lose_after) };
        let machine = Simt::with_limits(Options { seed: 0, check: false }, limits);
        let files = ModelFiles::bundled().unwrap();
        let error = match Model::load(Cuda::new(machine), &files, LoadOptions::default()) {
            Err(error) => error,
            Ok(model) => {
                let sampler = Sampler::new(Arc::new(model), Limits { sequences: 2, tokens: 20 });
                let done = sampler.and_then(|mut s| s.generate_with(&fixed_steps(Order::Random, 8), &mut ()));
                done.map(|_| ()).expect_err("the machine was lost")
            }
        };
        assert_eq!(error.exit_code(), 8, "{error}");
        assert!(error.to_string().contains("CUDA_ERROR_LAUNCH_FAILED"), "{error}");
    }
}

/// What does not fit is said before anything is computed, with what would.
#[test]
fn too_little_memory_says_what_would_fit() {
    let files = ModelFiles::bundled().unwrap();
    let machine = |memory: u64| {
        Cuda::new(Simt::with_limits(
            Options { seed: 0, check: false },
            SimtLimits { memory: Some(memory), lose_after: None },
        ))
    };
    // Not even the weights.
    let error = Model::load(machine(1 << 20), &files, LoadOptions::default()).map(|_| ()).unwrap_err();
    assert_eq!(error.exit_code(), 7, "{error}");
    let model = Arc::new(Model::load(machine(24 << 20), &files, LoadOptions::default()).unwrap());
    let refused = |sequences: usize| {
        let limits = Limits { sequences, tokens: 128 * sequences };
        Sampler::new(model.clone(), limits).map(|_| ()).unwrap_err().to_string()
    };
    let message = refused(64);
    let (_, rest) = message.split_once("of that length, ").expect(&message);
    let most: usize = rest.split(' ').next().unwrap().parse().unwrap();
    assert!((1..64).contains(&most), "{message}");
    // As many do fit, and one more does not.
    Sampler::new(model.clone(), Limits { sequences: most, tokens: 128 * most }).unwrap();
    refused(most + 1);
}

/// The plan of memory is what is allocated.
#[test]
fn the_memory_plan_is_what_is_allocated() {
    for dir in ["golden/gpt2-tiny", "golden/llama-tiny"] {
        let model = load(&crate::common::fixture(dir));
        for limits in [Limits { sequences: 1, tokens: 33 }, Limits { sequences: 4, tokens: 100 }] {
            let device = model.backend().device();
            let before = device.free_memory().unwrap();
            let sampler = Sampler::new(model.clone(), limits).unwrap();
            let taken = u128::from(before - device.free_memory().unwrap());
            let plan = MemoryPlan::new(&model, limits);
            assert_eq!(taken, plan.of_generating(), "{dir} {limits:?}: {plan:?}");
            drop(sampler);
            assert_eq!(device.free_memory().unwrap(), before);
        }
    }
}

/// Made-up weights are the same numbers on every machine, and others for another seed.
#[test]
fn synthetic_weights_give_the_logits_of_the_cpu() {
    fn logits<B: Forward + Backend<Elem = f32>>(backend: B, shape: SyntheticShape, seed: u64) -> Vec<f32> {
        let model = Model::synthetic(backend, shape, seed).unwrap();
        let size = ArenaSize { tokens: 9, rows: 9 };
        let mut arena = Arena::new(model.backend(), model.config(), size, 9).unwrap();
        let mut batch = Batch::with_capacity(size, 1);
        batch.push(&[5, 100, 3, 3, 7, 8, 9, 3, 60], 0..9);
        model.logits(&batch, &mut arena, Mask::Full).unwrap()
    }
    for shape in [SyntheticShape::TinyGpt2, SyntheticShape::TinyLlama] {
        let expected = logits(crate::common::backend(2), shape, 4);
        let error = crate::common::relative(&logits(machine(), shape, 4), &expected);
        assert!(error < 1e-4, "{shape}: {error:e}");
        let other = crate::common::relative(&logits(crate::common::backend(1), shape, 5), &expected);
        assert!(other > 0.5, "{shape}: another seed differs by {other:e} only");
    }
}

/// Text that ends before all is filled: the machine runs ahead of what is looked at, and yet commits nothing more than the
/// CPU does, nor counts more forward passes.
#[test]
fn an_early_end_is_that_of_the_cpu() {
    let request = |seed: u64| {
        let mut request = Request::new(Canvas::prefix(&[1, 40, 41], 12));
        // From left to right, so that nothing before an end of sequence is masked.
        (request.seed, request.steps, request.block_length) = (seed, 12, Some(1));
        request.order = if seed.is_multiple_of(2) { Order::Random } else { CONFIDENT };
        request
    };
    // Made-up weights, which find any token likely; the bundled model's texts never end.
    let shape = SyntheticShape::TinyGpt2;
    let made_up = Arc::new(Model::synthetic(Cpu::<f32>::new(None).unwrap(), shape, 5).unwrap());
    let mut cpu = Sampler::new(made_up, Limits { sequences: 1, tokens: 15 }).unwrap();
    let early: Vec<(Request, Generation)> = (0..400)
        .map(|seed| (request(seed), cpu.generate(&request(seed)).unwrap()))
        .filter(|(_, g)| g.finish == Finish::Eos && (1..10).contains(&g.nfe))
        .take(6)
        .collect();
    assert!(early.len() == 6, "only {} of 400 texts end early", early.len());
    let requests: Vec<Request> = early.iter().map(|(request, _)| request.clone()).collect();
    let made_up = Arc::new(Model::synthetic(machine(), shape, 5).unwrap());
    let mut sampler = Sampler::new(made_up, Limits { sequences: 3, tokens: 45 }).unwrap();
    let results = sampler.generate_with(&requests, &mut ()).unwrap();
    for (got, (request, expected)) in results.into_iter().zip(early) {
        let got = got.unwrap();
        assert_eq!(got.ids, expected.ids, "seed {}", request.seed);
        assert_eq!((got.nfe, got.tokens, got.end), (expected.nfe, expected.tokens, expected.end));
        assert_eq!(got.committed_at, expected.committed_at);
    }
}

/// Numbers that are none end the work, also where a step would otherwise be repeated for ever.
#[test]
fn logits_that_are_no_numbers_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let source = crate::common::fixture("golden/gpt2-tiny");
    std::fs::copy(source.join("config.json"), folder.path().join("config.json")).unwrap();
    let mut bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let (header, parsed) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let (at, end) = parsed.info("transformer.ln_f.weight").unwrap().data_offsets;
    bytes[header + 8 + at..header + 8 + end].fill(0xff);
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    let files = ModelFiles::open(folder.path()).unwrap();
    let model = Arc::new(Model::load(machine(), &files, LoadOptions { check_finite: false }).unwrap());
    let mut sampler = Sampler::new(model, Limits { sequences: 2, tokens: 20 }).unwrap();
    for order in [Order::Random, CONFIDENT, Order::Threshold { by: Confidence::MaxProb, tau: 0.9 }] {
        let mut requests = fixed_steps(order, 3);
        requests.iter_mut().for_each(|r| r.mask_id = Some(3));
        let error = sampler.generate_with(&requests, &mut ()).unwrap_err();
        assert_eq!(error.exit_code(), 5, "{order:?}: {error}");
    }
}

/// Token by token with a cache of keys and values: the CPU's tokens, a step that is one replay from the third on, and a
/// wait for its draws.
#[test]
fn decoding_from_left_to_right_is_that_of_the_cpu() {
    let requests: Vec<Request> = [(4, 12), (1, 9), (3, 12)]
        .iter()
        .enumerate()
        .map(|(i, &(given, gap))| {
            let prefix: Vec<u32> = (0..given).map(|p| 1 + 31 * p).collect();
            let mut request = Request::new(Canvas::prefix(&prefix, gap));
            (request.autoregressive, request.seed, request.temperature) = (true, 40 + i as u64, 0.9);
            request.stop_at_eos = false;
            request
        })
        .collect();
    let limits = Limits { sequences: 3, tokens: 48 };
    let mut cpu = Sampler::new(crate::common::bundled(2), limits).unwrap();
    let expected = cpu.generate_with(&requests, &mut ()).unwrap();
    let mut sampler = Sampler::new(bundled(), limits).unwrap();
    let before = counts(&sampler);
    let got = sampler.generate_with(&requests, &mut ()).unwrap();
    for (got, expected) in got.iter().zip(&expected) {
        let (got, expected) = (got.as_ref().unwrap(), expected.as_ref().unwrap());
        assert_eq!((&got.ids, got.nfe), (&expected.ids, expected.nfe));
    }
    // 9 steps of three sequences, then 3 of two. The prefixes, then one more, are asked for launch by launch; and one when
    // a sequence has left.
    let seen = counts(&sampler) - before;
    assert_eq!((seen.replays, seen.downloads), (7 + 2, 12), "{seen:?}");
    let mut half = requests[..1].to_vec();
    half[0].canvas = Canvas::prefix(&[1], 12);
    let before = counts(&sampler);
    sampler.generate_with(&half, &mut ()).unwrap();
    let seen = counts(&sampler) - before;
    assert_eq!((seen.replays, seen.downloads), (11, 12), "{seen:?}");
    let layers = sampler.model().config().layers as u64;
    assert_eq!(seen.allocations, layers, "a cache a layer, and nothing a step: {seen:?}");
}

//! The whole engine on the host SIMT machine: the golden cases, and the bundled model's tokens, which are the CPU's.
#![cfg(feature = "simt")]

mod common;
#[path = "support/golden_cases.rs"]
mod golden_cases;

use std::path::Path;
use std::sync::Arc;

use lacuna::backend::Confidence;
use lacuna::backend::cuda::Cuda;
use lacuna::backend::cuda::simt::{Options, Simt};
use lacuna::io::ModelFiles;
use lacuna::model::{LoadOptions, Model};
use lacuna::sample::{Canvas, CountSchedule, Limits, Order, Part, Request, Sampler};

/// A machine that does not watch every access: `lacuna selftest` and `tests/simt.rs` do that.
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
    golden_cases::logits_under_every_mask(&load);
}

#[test]
fn golden_samplers_token_for_token() {
    golden_cases::samplers_token_for_token(&load);
}

#[test]
fn golden_losses() {
    golden_cases::losses(&load);
}

#[test]
fn golden_scores() {
    golden_cases::multiple_choice_scores(&load);
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
    let mut cpu = Sampler::new(common::bundled(2), Limits { sequences: 1, tokens: 128 }).unwrap();
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

//! Gradients and optimiser steps against vectors of an independent PyTorch implementation.

use crate::common::{GOLDEN, fixture};
use lacuna::backend::cpu::Cpu;
use lacuna::element::Dtype;
use lacuna::io::ModelFiles;
use lacuna::model::{Model, TrainSize};

fn trainable(folder: &str) -> Model<Cpu<f32>> {
    let files = ModelFiles::open(&fixture("golden").join(folder)).unwrap();
    Model::load_trainable(Cpu::new(None).unwrap(), &files, |_| Some(Dtype::F32)).unwrap()
}

#[test]
fn losses_and_every_gradient() {
    let (losses, gradients) =
        crate::train_cases::losses_and_every_gradient(&trainable, &GOLDEN, crate::train_cases::EXACT);
    assert!(losses >= 40 && gradients >= 400, "only {losses} losses, {gradients} gradients");
}

#[test]
fn steps_of_adamw() {
    let checked = crate::train_cases::steps_of_adamw(&trainable, &GOLDEN);
    assert!(checked > 100_000, "only {checked} numbers");
}

/// The logits of a pass are formed a chunk at a time: 4 Mi numbers at most, however much goes through the network.
#[test]
fn the_workspace_of_the_head_is_bounded() {
    let files = ModelFiles::open(&fixture("golden/gpt2-tiny")).unwrap();
    let backend = Cpu::<f32>::new(None).unwrap();
    let logits = |vocab_size: usize, tokens: usize| {
        let config = lacuna::config::ModelConfig { vocab_size, ..files.config.clone() };
        let size = TrainSize { tokens, rows: tokens, length: 64, checkpoint: false, rank: 0 };
        size.bytes(&backend, &config)[1] / 4
    };
    for vocab in [97, 1024, 8192, 50_257, 128_256, 262_144, 500_000] {
        let bound = 4 << 20;
        let largest = logits(vocab, 1 << 10);
        assert!(largest >= vocab as u128 && largest <= bound, "{vocab}: {largest}");
        for tokens in [1 << 12, 1 << 16, 1 << 24, 1 << 40] {
            assert_eq!(logits(vocab, tokens), largest, "{vocab} tokens, {tokens} rows");
        }
        assert_eq!(logits(vocab, 1), vocab as u128);
    }
    // The activations do grow, and fewer are kept where layers are computed again.
    let numbers = |tokens, checkpoint| {
        TrainSize { tokens, rows: tokens, length: 64, checkpoint, rank: 0 }.bytes(&backend, &files.config)[0]
    };
    let bits = 4 * 64 * 64 / 32;
    assert_eq!(numbers(4096, false) - bits, 2 * (numbers(2048, false) - bits), "but for the mask's bits");
    assert!(numbers(4096, true) < numbers(4096, false));
}

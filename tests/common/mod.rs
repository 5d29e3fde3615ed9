//! Shared by the integration tests: fixtures and loaded models.
#![allow(dead_code)] // each test target uses its own part of this

#[path = "../support/golden.rs"]
pub mod golden;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lacuna::backend::cpu::Cpu;
use lacuna::io::ModelFiles;
use lacuna::model::{LoadOptions, Model};

/// The four golden models, each with the folders that hold the same weights.
pub const GOLDEN: [(&str, &[&str]); 4] = [
    ("gpt2-tiny", &[".", "diffu"]),
    ("gpt2-hd64", &["."]),
    ("llama-tiny", &[".", "diffu"]),
    ("llama-hd128", &["."]),
];

pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

pub fn backend(threads: usize) -> Cpu<f32> {
    Cpu::new(NonZeroUsize::new(threads)).unwrap()
}

pub fn load(dir: &Path, threads: usize) -> Arc<Model<Cpu<f32>>> {
    let files = ModelFiles::open(dir).unwrap();
    Arc::new(Model::load(backend(threads), &files, LoadOptions::default()).unwrap())
}

pub fn bundled(threads: usize) -> Arc<Model<Cpu<f32>>> {
    let files = ModelFiles::bundled().unwrap();
    Arc::new(Model::load(backend(threads), &files, LoadOptions::default()).unwrap())
}

/// `||got - want|| / ||want||`.
pub fn relative(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let sq = |x: f64| x * x;
    let diff: f64 = got.iter().zip(want).map(|(g, w)| sq(f64::from(*g) - f64::from(*w))).sum();
    let norm: f64 = want.iter().map(|w| sq(f64::from(*w))).sum();
    (diff / norm).sqrt()
}

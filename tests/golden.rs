//! The engine on the CPU against vectors of an independent PyTorch implementation.

mod common;
#[path = "support/golden_cases.rs"]
mod golden_cases;

use std::path::Path;
use std::sync::Arc;

use lacuna::backend::cpu::Cpu;
use lacuna::model::Model;

fn load(dir: &Path) -> Arc<Model<Cpu<f32>>> {
    common::load(dir, 2)
}

#[test]
fn logits_under_every_mask() {
    golden_cases::logits_under_every_mask(&load);
}

#[test]
fn samplers_token_for_token() {
    golden_cases::samplers_token_for_token(&load, &common::golden::MODELS, usize::MAX);
}

#[test]
fn losses() {
    golden_cases::losses(&load);
}

#[test]
fn multiple_choice_scores() {
    golden_cases::multiple_choice_scores(&load);
}

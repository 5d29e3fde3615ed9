//! The engine on the CPU against vectors of an independent PyTorch implementation.

use std::path::Path;
use std::sync::Arc;

use lacuna::backend::cpu::Cpu;
use lacuna::model::Model;

fn load(dir: &Path) -> Arc<Model<Cpu<f32>>> {
    crate::common::load(dir, 2)
}

#[test]
fn logits_under_every_mask() {
    crate::golden_cases::logits_under_every_mask(&load);
}

#[test]
fn samplers_token_for_token() {
    crate::golden_cases::samplers_token_for_token(&load, &crate::common::golden::MODELS, usize::MAX);
}

#[test]
fn losses() {
    crate::golden_cases::losses(&load);
}

#[test]
fn multiple_choice_scores() {
    crate::golden_cases::multiple_choice_scores(&load);
}

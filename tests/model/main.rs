//! Models on the CPU: golden vectors, sampling, a real checkpoint, and what once went wrong.

#[path = "../common/mod.rs"]
mod common;
#[path = "../support/golden_cases.rs"]
mod golden_cases;
#[path = "../support/train_cases.rs"]
mod train_cases;

mod golden;
mod regressions;
mod sampling;
mod smollm2;
mod train_golden;

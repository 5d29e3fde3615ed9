//! The CUDA kernels on the host SIMT machine. One program: each that holds the kernels, and the engine over them, takes a
//! minute to build and 80 MB.
#![cfg(feature = "simt")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../support/golden_cases.rs"]
mod golden_cases;
#[path = "../support/train_cases.rs"]
mod train_cases;

mod engine;
mod kernels;
mod machine;
mod plants;
mod train;
mod unmask;

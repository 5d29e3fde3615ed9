//! Training: what is learnt from and in which order, batches, optimiser steps, runs.

pub mod adapter;
pub mod batch;
pub mod checkpoint;
mod data;
mod events;
pub mod export;
pub mod files;
pub mod learner;
pub mod lr;
pub mod metrics;
mod order;
mod packed;
mod plot;
mod sft;
pub mod state;
pub mod trainer;

pub use data::{Cursor, Example, Examples};
pub use packed::Packed;
pub use sft::{LongRule, PadRule, SftData, SftIds, SftOptions};

//! Training: what is learnt from and in which order, batches, optimiser steps, runs.

pub mod adapter;
mod ahead;
pub mod batch;
pub mod checkpoint;
mod data;
mod evaluate;
mod events;
pub mod export;
pub mod files;
pub mod learner;
mod loss_scale;
pub mod lr;
mod memory;
pub mod metrics;
mod order;
mod packed;
pub(crate) mod plot;
mod recorded;
mod sft;
pub mod state;
pub mod trainer;

pub use data::{Cursor, Example, Examples};
pub use evaluate::summary;
pub use loss_scale::LossScale;
pub use memory::TrainMemory;
pub use packed::Packed;
pub use sft::{LongRule, PadRule, SftData, SftIds, SftOptions};

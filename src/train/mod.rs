//! Training: data, batches, optimiser steps, runs.

pub mod adapter;
pub mod batch;
pub mod checkpoint;
mod data;
pub mod events;
pub mod export;
pub mod files;
pub mod learner;
pub mod lr;
pub mod metrics;
pub mod plot;
pub mod state;
pub mod trainer;

pub use data::{Cursor, Example, Examples};

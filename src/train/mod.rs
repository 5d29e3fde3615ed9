//! Training.

pub mod events;
pub mod files;
pub mod lr;
pub mod metrics;
pub mod plot;
pub mod state;

//! The pure mathematics of masked diffusion, on the host.

pub mod reveal;
pub mod schedule;
pub mod shift;

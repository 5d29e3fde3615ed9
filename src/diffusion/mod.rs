//! The mathematics of masked diffusion, on the host: which tokens are hidden, when they are
//! revealed, and how a prediction is scored. Nothing here knows a network.
//!
//! The formulas are those of Gong et al., "Scaling diffusion language models via adaptation from
//! autoregressive models" (ICLR 2025), which builds on MDLM (Sahoo et al., NeurIPS 2024).

pub use crate::anneal;
pub mod corrupt;
pub mod loss;
pub mod reveal;
pub mod schedule;

pub use crate::shift;

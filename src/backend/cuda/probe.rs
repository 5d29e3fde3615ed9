//! Launches of `cuda/probe.cu`.

//! Launches of `cuda/compact.cu`.

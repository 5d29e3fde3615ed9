//! Launches of `cuda/unmask.cu`.

//! Launches of `cuda/activation.cu`.

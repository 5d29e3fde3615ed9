//! Launches of `cuda/mask.cu`.

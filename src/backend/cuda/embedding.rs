//! Launches of `cuda/embedding.cu`.

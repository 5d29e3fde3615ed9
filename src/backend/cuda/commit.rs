//! Launches of `cuda/commit.cu`.

//! Launches of `cuda/matmul.cu`.

//! Launches of `cuda/rope.cu`.

//! Launches of `cuda/attention_fwd.cu`.

//! Files: checkpoints, configurations, tokenizers, hubs.

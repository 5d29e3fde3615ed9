//! Feeds bytes to the readers of checkpoints and configurations: nothing may panic, overflow or
//! read out of bounds, and what is accepted must be readable to the last number.
//!
//! Needs `cargo install cargo-fuzz`; then, in the root of the repository:
//!
//! ```text
//! cargo +nightly fuzz run checkpoint -- -max_total_time=60
//! ```
//!
//! or without a nightly toolchain `RUSTC_BOOTSTRAP=1 cargo fuzz run checkpoint -- -max_total_time=60`.

#![no_main]

use std::path::Path;

use bytes::Bytes;
use lacuna::io::{Checkpoint, checkpoint::non_finite, hf_config};
use libfuzzer_sys::fuzz_target;

fn open(bytes: Vec<u8>) {
    let size = bytes.len();
    let Ok(checkpoint) = Checkpoint::from_bytes(Bytes::from(bytes), Path::new("fuzz")) else { return };
    let mut held = 0;
    for (_, tensor) in checkpoint.iter() {
        let numbers = tensor.to_vec::<f32>();
        assert_eq!(numbers.iter().position(|x| !x.is_finite()), non_finite(tensor));
        held += tensor.bytes().len();
    }
    held += checkpoint.others().map(|(_, t)| t.bytes as usize).sum::<usize>();
    assert!(held <= size, "{held} bytes of tensors in a file of {size}");
}

fuzz_target!(|data: &[u8]| {
    // As a whole file, ...
    open(data.to_vec());
    // ... as a header (up to a zero byte) and data behind a length that is right, ...
    let at = data.iter().position(|b| *b == 0).unwrap_or(data.len());
    let mut file = (at as u64).to_le_bytes().to_vec();
    file.extend_from_slice(&data[..at]);
    file.extend_from_slice(data.get(at + 1..).unwrap_or_default());
    open(file);
    // ... and as a configuration.
    if let Ok(config) = hf_config::parse(data, Path::new("fuzz")) {
        assert_eq!(config.heads % config.kv_heads, 0);
        assert!(config.qkv_width() >= config.query_width());
        if let Some(rope) = config.rope {
            assert!(rope.frequencies(config.head_dim).iter().all(|f| f.is_finite()));
        }
    }
});

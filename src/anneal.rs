//! Attention on its way from causal to bidirectional: query q may see key k if k <= q, or if the
//! random bit of (q, k) is set. This module makes the random bits; the attention adds the causal
//! part. One draw serves all sequences, heads and layers of a forward pass.
//!
//! A row of bits is packed into words: bit `k % 32` of `words[q * stride + k / 32]`, with
//! `stride = ceil(len / 32)`; bits of keys beyond the length are 0.

use crate::error::{Error, Result};
use crate::rng::{Purpose, Rng};

/// Bits of resolution of a ratio.
const RESOLUTION: u32 = 16;

/// The share of future keys that may be seen at training step `step` (from 0), rising evenly to 1:
/// `min(1, (step + 1) / anneal_steps)`; 1 without annealing steps.
pub fn ratio(step: u64, anneal_steps: u64) -> f32 {
    if step + 1 >= anneal_steps { 1.0 } else { ((step + 1) as f64 / anneal_steps as f64) as f32 }
}

/// Words a query has.
pub fn stride(len: usize) -> usize {
    len.div_ceil(32)
}

/// The bits of 32 keys, `32 * word ..`, for one query: each is 1 with probability
/// `round(65536 ratio) / 65536`, independently.
///
/// Defined bit for bit, for kernels that make the same mask: let R be the rounded numerator. If
/// R is 0 or 65536 the word is all 0 or all 1. Otherwise let w(0)..w(15) be the words of the four
/// Philox blocks with counters `[query, step, 4 word + b, Purpose::Attention]`, b = 0..3, in order.
/// Start from 0; for i = 0..15 (the least significant bit of R first) replace the word by
/// `w(i) | word` where bit i of R is 1 and by `w(i) & word` where it is 0. Each replacement halves
/// the probability of a 1 and adds one half where the bit is 1, which spells out R in binary.
pub fn annealed_word(rng: &Rng, step: u32, query: u32, word: u32, ratio: f32) -> u32 {
    let scaled = (f64::from(ratio).clamp(0.0, 1.0) * f64::from(1u32 << RESOLUTION)).round() as u32;
    if scaled == 0 || scaled >= 1 << RESOLUTION {
        return if scaled == 0 { 0 } else { u32::MAX };
    }
    let mut bits = 0;
    for block in 0..RESOLUTION / 4 {
        let words = rng.words(Purpose::Attention, 4 * word + block, step, query);
        for (i, random) in words.into_iter().enumerate() {
            let digit = (scaled >> (4 * block + i as u32)) & 1;
            bits = if digit == 1 { random | bits } else { random & bits };
        }
    }
    bits
}

/// The random bits of all pairs at one step, `[len, stride(len)]`.
pub fn annealed_words(rng: &Rng, step: u32, len: usize, ratio: f32) -> Vec<u32> {
    let stride = stride(len);
    let mut words = Vec::with_capacity(len * stride);
    for query in 0..len {
        for word in 0..stride {
            let keys = len - 32 * word;
            let inside = if keys >= 32 { u32::MAX } else { (1 << keys) - 1 };
            words.push(annealed_word(rng, step, query as u32, word as u32, ratio) & inside);
        }
    }
    words
}

/// Packs an explicit `[len, len]` mask (query, key), not 0 where the key may be seen.
///
/// # Errors
/// [`Error::Shape`] when `allow` is not `len * len` long.
pub fn pack(allow: &[u8], len: usize) -> Result<Vec<u32>> {
    if len.checked_mul(len) != Some(allow.len()) {
        let expected = len.saturating_mul(len);
        return Err(Error::Shape { op: "pack", what: "attention mask", expected, got: allow.len() });
    }
    let pack_word = |keys: &[u8]| {
        keys.iter().enumerate().fold(0u32, |word, (bit, allow)| word | u32::from(*allow != 0) << bit)
    };
    Ok(allow.chunks(len.max(1)).flat_map(|row| row.chunks(32).map(pack_word)).collect())
}

//! What the masks of attention say.

use super::check;
use crate::backend::{Mask, Segment};
use crate::error::Result;

/// A [`Mask`] with its own memory.
#[derive(Clone, Debug)]
pub enum OwnedMask {
    Full,
    Causal,
    Annealed { words: Vec<u32>, stride: usize },
    Explicit { allow: Vec<u8>, len: usize, shared: bool },
}

impl From<Mask<'_>> for OwnedMask {
    fn from(mask: Mask<'_>) -> Self {
        match mask {
            Mask::Full => OwnedMask::Full,
            Mask::Causal => OwnedMask::Causal,
            Mask::Annealed { words, stride } => OwnedMask::Annealed { words: words.to_vec(), stride },
            Mask::Explicit { allow, len, shared } => {
                OwnedMask::Explicit { allow: allow.to_vec(), len, shared }
            }
        }
    }
}

impl<'a> From<&'a OwnedMask> for Mask<'a> {
    fn from(mask: &'a OwnedMask) -> Self {
        match mask {
            OwnedMask::Full => Mask::Full,
            OwnedMask::Causal => Mask::Causal,
            OwnedMask::Annealed { words, stride } => Mask::Annealed { words, stride: *stride },
            OwnedMask::Explicit { allow, len, shared } => {
                Mask::Explicit { allow, len: *len, shared: *shared }
            }
        }
    }
}

/// The mask says something about every query and key of a segment.
pub(super) fn check(mask: Mask<'_>, index: usize, segment: &Segment, positions: &[u32]) -> Result<()> {
    const OP: &str = "attention";
    let Some(&last) = positions.iter().max() else { return Ok(()) };
    let (last, keys) = (last as usize, segment.k_len);
    match mask {
        Mask::Full | Mask::Causal => Ok(()),
        Mask::Annealed { words, stride } => {
            let words_a_row = keys.div_ceil(32);
            check::at_least(OP, "words of a row of the annealed mask", words_a_row, stride)?;
            let needed = check::product(OP, "words", last, stride)?.saturating_add(words_a_row);
            check::at_least(OP, "words of the annealed mask", needed, words.len())
        }
        Mask::Explicit { allow, len, shared } => {
            check::at_least(OP, "keys of the explicit mask", keys, len)?;
            check::at_least(OP, "queries of the explicit mask", last + 1, len)?;
            let square = check::product(OP, "explicit mask", len, len)?;
            let matrices = if shared { 1 } else { index + 1 };
            let needed = check::product(OP, "explicit mask", square, matrices)?;
            check::at_least(OP, "bytes of the explicit mask", needed, allow.len())
        }
    }
}

/// Bit i is set where the query at `position` of segment number `segment` may see key `key + i`, for
/// `lanes <= 16` keys; `key` is a multiple of `lanes`, which divides 32.
#[inline(always)]
pub(super) fn visible(mask: Mask<'_>, segment: usize, position: usize, key: usize, lanes: usize) -> u32 {
    let causal = low_bits((position + 1).saturating_sub(key).min(lanes));
    match mask {
        Mask::Full => u32::MAX,
        Mask::Causal => causal,
        Mask::Annealed { words, stride } => {
            let word = words.get(position * stride + key / 32).copied().unwrap_or(0);
            causal | (word >> (key % 32))
        }
        Mask::Explicit { allow, len, shared } => {
            let row = (if shared { 0 } else { segment } * len + position) * len;
            let seen = allow.get(row + key..row + (key + lanes).min(len)).unwrap_or(&[]);
            seen.iter().enumerate().fold(0, |bits, (i, &a)| bits | (u32::from(a != 0) << i))
        }
    }
}

/// The lowest `n <= 16` bits.
#[inline(always)]
pub(super) fn low_bits(n: usize) -> u32 {
    (1 << n) - 1
}

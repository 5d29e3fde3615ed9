//! What the operations of the traits have to do at least, for the meter: floating-point operations of products and attention, and bytes
//! that must move, each once. `number` is the bytes of an activation.
//!
//! Attention is counted over all pairs of a query and a key of its sequence, masked or not.

use super::{HeadShape, MomentFormat, Segment};
use crate::meter::Op;

fn op(dims: [usize; 3], flops: usize, bytes: usize) -> Op {
    Op { name: "", dims, flops: flops as u64, bytes: bytes as u64 }
}

/// Reads and writes `numbers` numbers of `number` bytes in all.
pub(super) fn moves(dims: [usize; 3], numbers: usize, number: usize) -> Op {
    op(dims, 0, numbers.saturating_mul(number))
}

pub(super) fn embed(rows: usize, width: usize, tables: usize, weight: usize, number: usize) -> Op {
    op([rows, width, 0], 0, rows * (width * (number + tables * weight) + 4 * tables))
}

/// `weight`: bytes of a number of the weight.
pub(super) fn linear(
    rows: usize,
    [inputs, outputs]: [usize; 2],
    weight: usize,
    number: usize,
    accumulate: bool,
) -> Op {
    let written = if accumulate { 2 } else { 1 };
    let bytes = rows * (inputs + written * outputs) * number + inputs * outputs * weight;
    op([rows, inputs, outputs], 2 * rows * inputs * outputs, bytes)
}

/// Gradients of a weight and a bias; they grow, in `gradient` bytes a number.
pub(super) fn weight_gradient(
    rows: usize,
    [inputs, outputs]: [usize; 2],
    weight: bool,
    number: usize,
    gradient: usize,
) -> Op {
    let read = if weight { inputs + outputs } else { outputs };
    let (flops, grown) = if weight { (2 * rows * inputs * outputs, inputs * outputs) } else { (0, outputs) };
    op([rows, inputs, outputs], flops, rows * read * number + 2 * grown * gradient)
}

pub(super) fn queries(segments: &[Segment]) -> usize {
    segments.iter().map(|s| s.q_len).sum()
}

/// Keys of the sequences that have queries.
pub(super) fn keys(segments: &[Segment]) -> usize {
    segments.iter().filter(|s| s.q_len > 0).map(|s| s.k_len).sum()
}

/// Pairs of a query and a key.
pub(super) fn pairs(segments: &[Segment]) -> usize {
    segments.iter().map(|s| s.q_len * s.k_len).sum()
}

/// `products` of the size of scores, over packed queries and keys; `passes`: how often q, and as often k and v, move.
fn attend(
    shape: HeadShape,
    [queries, keys, pairs]: [usize; 3],
    products: usize,
    [q_moves, kv_moves]: [usize; 2],
    number: usize,
) -> Op {
    let HeadShape { heads, kv_heads, head_dim, .. } = shape;
    let numbers = q_moves * queries * heads * head_dim + kv_moves * keys * kv_heads * head_dim;
    let mean = pairs.checked_div(queries).unwrap_or(0);
    op([queries, mean, heads * head_dim], 2 * products * pairs * heads * head_dim, numbers * number)
}

/// Two products; q and the output, k and v.
pub(super) fn attention(shape: HeadShape, sizes: [usize; 3], number: usize) -> Op {
    attend(shape, sizes, 2, [2, 2], number)
}

/// Four products, without the scores that are formed again; q, the output, its gradient and that of q; k, v and theirs.
pub(super) fn attention_backward(shape: HeadShape, sizes: [usize; 3], number: usize) -> Op {
    attend(shape, sizes, 4, [4, 4], number)
}

/// A step of AdamW on `len` numbers, in f32 or in 16 bits with a master copy.
pub(super) fn adamw(len: usize, master: bool, moments: MomentFormat, gradient: usize) -> Op {
    let (weight, masters) = if master { (2, 8) } else { (4, 0) };
    op([len, 0, 0], 0, len * (2 * weight + masters + gradient) + 4 * moments.bytes(len))
}

//! What the operations of the traits have to do at least, for the meter: floating-point operations of products and attention, and bytes
//! that must move, each once. Each function begins the operation of its name ([`meter::op`]); nothing is reckoned while the meter
//! is off. `number` is the bytes of an activation, `gradient` those of a gradient of a weight.
//!
//! Attention is counted over all pairs of a query and a key of its sequence, masked or not.

use super::{Canvases, HeadShape, MomentFormat, Segment, StepShape, Unmask};
use crate::anneal;
use crate::meter::{self, Op, Span};

fn op(dims: [usize; 3], flops: usize, bytes: usize) -> Op {
    Op { name: "", dims, flops: flops as u64, bytes: bytes as u64 }
}

/// An operation that reads and writes `numbers` numbers of `number` bytes in all.
fn moves(name: &'static str, dims: [usize; 3], numbers: impl FnOnce() -> usize, number: usize) -> Span {
    meter::op(name, || op(dims, 0, numbers().saturating_mul(number)))
}

/// Defines operations that move `numbers` numbers.
macro_rules! moving {
    ($($name:ident($($arg:ident),*), [$($dim:expr),*]: $numbers:expr;)*) => {$(
        pub(super) fn $name($($arg: usize,)* number: usize) -> Span {
            moves(stringify!($name), [$($dim),*], || $numbers, number)
        }
    )*};
}

moving! {
    norm(rows, width), [rows, width, 0]: (2 * rows + 1) * width;
    norm_backward(rows, width), [rows, width, 0]: (4 * rows + 1) * width;
    rope(rows, heads, head_dim), [rows, heads, head_dim]: 2 * rows * heads * head_dim;
    rope_backward(rows, heads, head_dim), [rows, heads, head_dim]: 2 * rows * heads * head_dim;
    swiglu(rows, width), [rows, width, 0]: 3 * rows * width;
    swiglu_backward(rows, width), [rows, width, 0]: 5 * rows * width;
    activation(len), [len, 0, 0]: 2 * len;
    activation_backward(len), [len, 0, 0]: 3 * len;
    gather(rows, width), [rows, width, 0]: 2 * rows * width;
    scatter(rows, width), [rows, width, 0]: 2 * rows * width;
    cross_entropy(rows, vocab), [rows, vocab, 0]: rows * vocab;
    cross_entropy_backward(rows, vocab), [rows, vocab, 0]: 2 * rows * vocab;
    unmask(rows, vocab), [rows, vocab, 0]: rows * vocab;
    zero(len), [len, 0, 0]: len;
    copy(len), [len, 0, 0]: 2 * len;
    scale(len), [len, 0, 0]: 2 * len;
    sum_of_squares(len), [len, 0, 0]: len;
    measure(len), [len, 0, 0]: len;
}

pub(super) fn read_draws(rows: usize) -> Span {
    moves("read_draws", [rows, 0, 0], || 5 * rows, 4)
}

pub(super) fn draw_annealed(length: usize) -> Span {
    moves("draw_annealed", [length, length, 0], || length * anneal::stride(length), 4)
}

pub(super) fn watch(rows: usize) -> Span {
    moves("watch", [rows, 0, 0], || rows, 4)
}

pub(super) fn settle(gradients: usize) -> Span {
    moves("settle", [gradients, 0, 0], || gradients, 8)
}

pub(super) fn stage_step<B: Unmask>(canvases: &Canvases<B>) -> Span {
    moves("stage_step", [canvases.sequences, 0, 0], || 2 * canvases.layout().words(), 4)
}

pub(super) fn select_needs<B: Unmask>(canvases: &Canvases<B>, shape: StepShape) -> Span {
    let dims = [canvases.sequences, canvases.tokens, shape.rows];
    moves("select_needs", dims, || 3 * canvases.tokens + 14 * shape.rows, 4)
}

pub(super) fn commit<B: Unmask>(canvases: &Canvases<B>, shape: StepShape) -> Span {
    let dims = [canvases.sequences, canvases.tokens, shape.rows];
    moves("commit", dims, || 4 * shape.rows, 4)
}

/// `weight`: bytes of a number of a table; with positions there are two.
pub(super) fn embed(rows: usize, width: usize, positions: bool, weight: usize, number: usize) -> Span {
    let tables = 1 + usize::from(positions);
    meter::op("embed", || op([rows, width, 0], 0, rows * (width * (number + tables * weight) + 4 * tables)))
}

/// The gradients of the tables grow.
pub(super) fn embed_backward(
    rows: usize,
    width: usize,
    tables: [bool; 2],
    gradient: usize,
    number: usize,
) -> Span {
    let tables = tables.into_iter().filter(|&there| there).count();
    meter::op("embed_backward", || {
        op([rows, width, 0], 0, rows * (width * (number + 2 * tables * gradient) + 4 * tables))
    })
}

/// `weight`: bytes of a number of the weight.
fn product(
    name: &'static str,
    rows: usize,
    [inputs, outputs]: [usize; 2],
    weight: usize,
    number: usize,
    accumulate: bool,
) -> Span {
    meter::op(name, || {
        let written = if accumulate { 2 } else { 1 };
        let bytes = rows * (inputs + written * outputs) * number + inputs * outputs * weight;
        op([rows, inputs, outputs], 2 * rows * inputs * outputs, bytes)
    })
}

pub(super) fn linear(rows: usize, sizes: [usize; 2], weight: usize, number: usize, accumulate: bool) -> Span {
    product("linear", rows, sizes, weight, number, accumulate)
}

/// `sizes`: outputs and inputs of the layer.
pub(super) fn linear_backward_input(
    rows: usize,
    sizes: [usize; 2],
    weight: usize,
    number: usize,
    accumulate: bool,
) -> Span {
    product("linear_backward_input", rows, sizes, weight, number, accumulate)
}

/// Gradients of a weight, if it has one, and of a bias; they grow.
pub(super) fn linear_backward_weight(
    rows: usize,
    [inputs, outputs]: [usize; 2],
    weight: bool,
    number: usize,
    gradient: usize,
) -> Span {
    meter::op("linear_backward_weight", || {
        let read = if weight { inputs + outputs } else { outputs };
        let (flops, grown) =
            if weight { (2 * rows * inputs * outputs, inputs * outputs) } else { (0, outputs) };
        op([rows, inputs, outputs], flops, rows * read * number + 2 * grown * gradient)
    })
}

/// Queries, keys of the sequences that have queries, and pairs of the two.
pub(super) fn sizes(segments: &[Segment]) -> [usize; 3] {
    segments.iter().filter(|s| s.q_len > 0).fold([0; 3], |[queries, keys, pairs], s| {
        [queries + s.q_len, keys + s.k_len, pairs + s.q_len * s.k_len]
    })
}

/// `products` of the size of scores; `moves`: how often q, and as often k and v, are read or written.
fn attend(
    name: &'static str,
    shape: HeadShape,
    sizes: impl FnOnce() -> [usize; 3],
    products: usize,
    moves: usize,
    number: usize,
) -> Span {
    meter::op(name, || {
        let HeadShape { heads, kv_heads, head_dim, .. } = shape;
        let [queries, keys, pairs] = sizes();
        let numbers = moves * (queries * heads + keys * kv_heads) * head_dim;
        let mean = pairs.checked_div(queries).unwrap_or(0);
        op([queries, mean, heads * head_dim], 2 * products * pairs * heads * head_dim, numbers * number)
    })
}

/// Two products; q and the output, k and v.
pub(super) fn attention(shape: HeadShape, sizes: impl FnOnce() -> [usize; 3], number: usize) -> Span {
    attend("attention", shape, sizes, 2, 2, number)
}

pub(super) fn attention_saving(shape: HeadShape, sizes: impl FnOnce() -> [usize; 3], number: usize) -> Span {
    attend("attention_saving", shape, sizes, 2, 2, number)
}

/// Four products, without the scores that are formed again; q, the output, its gradient and that of q; k, v and theirs.
pub(super) fn attention_backward(
    shape: HeadShape,
    sizes: impl FnOnce() -> [usize; 3],
    number: usize,
) -> Span {
    attend("attention_backward", shape, sizes, 4, 4, number)
}

/// A step of AdamW on `len` numbers, in f32 or in 16 bits with a master copy.
pub(super) fn step(len: usize, master: bool, moments: MomentFormat) -> Span {
    meter::op("step", || {
        let (weight, masters) = if master { (2, 8) } else { (4, 0) };
        op([len, 0, 0], 0, len * (2 * weight + masters + 4) + 4 * moments.bytes(len))
    })
}

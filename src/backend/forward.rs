//! The operations of a forward pass. All matrices are row-major; `T`, `R` are numbers of rows
//! (tokens), packed: sequences of different lengths lie one behind the other without padding.

use std::ops::Range;

use super::Backend;
use crate::config::{Activation, NormKind};
use crate::error::Result;

/// Columns `at .. at + width` of a matrix whose rows lie `stride` numbers apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// First number of row 0.
    pub at: usize,
    /// Numbers from a row to the next.
    pub stride: usize,
}

impl Rows {
    /// Rows of exactly `width` numbers, from the start of the buffer.
    pub const fn dense(width: usize) -> Self {
        Self { at: 0, stride: width }
    }
}

/// What happens to a matrix product before it is stored:
/// `out = activation(x W + bias)`, or `out += x W + bias` with `accumulate`.
pub struct Epilogue<'a, B: Backend> {
    /// One number an output column of the *whole* matrix (the `outputs` range is applied to it).
    pub bias: Option<&'a B::Buffer>,
    /// Applied after the bias; not together with `accumulate`.
    pub activation: Option<Activation>,
    /// Adds to what `out` holds (the residual stream) instead of overwriting it.
    pub accumulate: bool,
}

impl<B: Backend> Epilogue<'_, B> {
    /// `out = x W`.
    pub const NONE: Self = Self { bias: None, activation: None, accumulate: false };
}

/// The heads of an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadShape {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; query head h reads key/value head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Factor on q·k.
    pub scale: f64,
}

/// Where the queries and the keys of one sequence lie in packed rows. An empty query range is
/// allowed (the sequence has nothing to compute).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Segment {
    pub q_start: usize,
    pub q_len: usize,
    pub k_start: usize,
    pub k_len: usize,
}

/// Upper bounds of places that are written on the machine itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentBounds {
    pub sequences: usize,
    /// Most queries of a sequence, and the end of the last one's.
    pub queries: usize,
    pub q_rows: usize,
    /// Most keys of a sequence, and the end of the last one's.
    pub keys: usize,
    pub k_rows: usize,
}

/// What a forward pass reads beside the weights: packed tokens, and the rows whose outputs are wanted.
pub struct Inputs<B: Backend> {
    /// Token ids `[T]`.
    pub ids: B::Index,
    /// Position of each token within its sequence `[T]`.
    pub positions: B::Index,
    pub segments: B::Segments,
    /// Rows of the packed tokens whose outputs are wanted `[R]`.
    pub wanted: B::Index,
    /// The position of each of them within its sequence `[R]`.
    pub wanted_positions: B::Index,
    /// Queries: the wanted rows; keys: whole sequences.
    pub wanted_segments: B::Segments,
    /// Each token's row in the KV cache, where there is one `[T]`.
    pub cache_rows: B::Index,
}

/// Which keys a query may see. Positions are counted within the sequence; the position of each
/// query row comes from `q_pos`.
#[derive(Clone, Copy, Debug)]
pub enum Mask<'a> {
    /// All keys of the sequence.
    Full,
    /// Keys at positions up to the query's.
    Causal,
    /// Causal, or the bit of (query, key) is set: bit `key % 32` of
    /// `words[query * stride + key / 32]`. One draw shared by all sequences, heads and layers.
    Annealed { words: &'a [u32], stride: usize },
    /// `allow[(segment * len + query) * len + key] != 0`, or with `shared` the same `[len, len]`
    /// for every segment. A query that sees no key gets zeros.
    Explicit { allow: &'a [u8], len: usize, shared: bool },
}

/// The operations of a forward pass. Shapes that do not fit are [`Error::Shape`](crate::Error),
/// an id or a row number out of range too.
pub trait Forward: Backend {
    /// `out[t, :] = table[ids[t], :] (+ positions.0[positions.1[t], :])` for `rows` rows.
    /// `table` is `[V, width]` and the position table `[P, width]`, both `OutIn`.
    fn embed(
        &self,
        table: &Self::Matrix,
        ids: &Self::Index,
        positions: Option<(&Self::Matrix, &Self::Index)>,
        rows: usize,
        width: usize,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// Normalises each of `rows` rows of `x` `[rows, width]` into `out`: LayerNorm
    /// `(x - mean) / sqrt(var + eps) * weight + bias`, or RMSNorm `x / sqrt(mean(x^2) + eps) * weight`.
    #[allow(clippy::too_many_arguments)]
    fn norm(
        &self,
        kind: NormKind,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        bias: Option<&Self::Buffer>,
        eps: f64,
        rows: usize,
        width: usize,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// Matrix product with the columns `outputs` of the weight: `out[t, j] = sum_k x[t, k] W[k, outputs.start + j]`
    /// for `rows` rows, where `x` is `[rows, in]` dense from number `x.1` of `x.0` on and `out` is placed by `out_rows`.
    /// The reduction order of an output number depends on nothing but `in`.
    #[allow(clippy::too_many_arguments)]
    fn linear(
        &self,
        x: (&Self::Buffer, usize),
        rows: usize,
        weight: &Self::Matrix,
        outputs: Range<usize>,
        epilogue: Epilogue<'_, Self>,
        out: &mut Self::Buffer,
        out_rows: Rows,
    ) -> Result<()>;

    /// Rotates `heads` heads of width `head_dim`, placed by `at`, in place: pair `(i, i + head_dim / 2)`
    /// of row t turns by the angle whose cosine is `table[positions[t], i]` and whose sine is
    /// `table[positions[t], head_dim / 2 + i]`; `table` is `[P, head_dim]`.
    #[allow(clippy::too_many_arguments)]
    fn rope(
        &self,
        x: &mut Self::Buffer,
        at: Rows,
        rows: usize,
        heads: usize,
        head_dim: usize,
        positions: &Self::Index,
        table: &Self::Buffer,
    ) -> Result<()>;

    /// `out[t, j] = silu(gate_up[t, j]) * gate_up[t, width + j]` for `gate_up` `[rows, 2 * width]`.
    fn swiglu(&self, gate_up: &Self::Buffer, rows: usize, width: usize, out: &mut Self::Buffer)
    -> Result<()>;

    /// Softmax attention, blockwise with an online softmax: no `[L, L]` matrix is formed.
    /// `q`, `k`, `v` are (buffer, placement); `q_pos[row]` is the position within its sequence of
    /// query row `row`; `out` is `[q rows, heads * head_dim]` dense.
    /// The result of a query depends only on its own sequence.
    #[allow(clippy::too_many_arguments)]
    fn attention(
        &self,
        q: (&Self::Buffer, Rows),
        k: (&Self::Buffer, Rows),
        v: (&Self::Buffer, Rows),
        shape: HeadShape,
        segments: &Self::Segments,
        q_pos: &Self::Index,
        mask: &Self::Mask,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// `dst[r, :] = src[rows[r], :]` for `count` rows of `width` columns; `dst` is dense.
    fn gather(
        &self,
        src: (&Self::Buffer, Rows),
        rows: &Self::Index,
        count: usize,
        width: usize,
        dst: &mut Self::Buffer,
    ) -> Result<()>;

    /// `dst[rows[r], :] = src[r, :]` for `count` rows of `width` columns (the KV cache).
    fn scatter(
        &self,
        src: (&Self::Buffer, Rows),
        rows: &Self::Index,
        count: usize,
        width: usize,
        dst: (&mut Self::Buffer, Rows),
    ) -> Result<()>;

    /// Negative log-likelihood in nats of `targets[r]` under `logits[r, 0..vocab]`, for
    /// `targets.len()` rows.
    fn cross_entropy(
        &self,
        logits: &Self::Buffer,
        vocab: usize,
        targets: &[u32],
        out: &mut [f64],
    ) -> Result<()>;
}

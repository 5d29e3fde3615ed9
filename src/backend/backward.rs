//! The operations of a backward pass, and those that only a training pass asks for. Explicit: there is no tape, a
//! caller names what it kept.
//!
//! A gradient of a weight is a flat buffer in the weight's own stored orientation. Gradients of weights are added to
//! (`+=`), those of activations are written (`=`) unless an operation says otherwise. Every sum has one fixed order,
//! whatever the number of threads.

use std::ops::Range;

use super::{Backend, Forward, HeadShape, Layout, Rows};
use crate::config::{Activation, NormKind};
use crate::error::Result;

/// How the loss `u` of a token counts beside its weight: `alpha (1 - e^-u)^gamma u`, the focal weight of Ye et al.,
/// "Beyond autoregression: discrete diffusion for complex reasoning and planning" (2024), section 3.3. The gradient
/// goes through the factor too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenWeight {
    pub alpha: f64,
    pub gamma: f64,
}

impl TokenWeight {
    /// `u` itself.
    pub const NONE: Self = Self { alpha: 1.0, gamma: 0.0 };

    /// What the loss `u` of a token becomes.
    pub fn value(self, u: f64) -> f64 {
        if self == Self::NONE { u } else { self.alpha * (-(-u).exp_m1()).max(0.0).powf(self.gamma) * u }
    }

    /// The derivative of [`value`](Self::value) by `u`.
    pub fn slope(self, u: f64) -> f64 {
        if self == Self::NONE {
            return 1.0;
        }
        if self.gamma == 0.0 {
            return self.alpha;
        }
        let (miss, hit) = ((-(-u).exp_m1()).max(0.0), (-u).exp());
        // An infinite loss has a slope too. u (1 - e^-u)^(gamma - 1) tends to 0 or a finite number with u, except for gamma < 1.
        let second =
            if miss == 0.0 || hit == 0.0 { 0.0 } else { self.gamma * miss.powf(self.gamma - 1.0) * hit * u };
        self.alpha * (miss.powf(self.gamma) + second)
    }
}

/// What an attention kept for its backward pass, and where queries, keys and values lie.
pub struct Attended<'a, B: Backend> {
    pub q: (&'a B::Buffer, Rows),
    pub k: (&'a B::Buffer, Rows),
    pub v: (&'a B::Buffer, Rows),
    /// What the attention gave, `[q rows, heads * head_dim]` dense.
    pub out: &'a B::Buffer,
    /// Logarithm of each softmax's sum ([`Backward::attention_saving`]).
    pub log_sum: &'a B::Buffer,
}

/// The largest sizes of a pass: what a [`Backward::Workspace`] has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkSize {
    /// Packed rows.
    pub rows: usize,
    /// Columns of the widest linear layer, and twice those of the stream that norms see.
    pub columns: usize,
    /// Query heads.
    pub heads: usize,
}

/// One draw of the random bits of annealed attention ([`crate::anneal`]).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AnnealedDraw {
    /// Of the generator.
    pub seed: u64,
    /// Which draw of the generator's.
    pub pass: u32,
    /// Probability that a future key is seen.
    pub ratio: f32,
    /// Positions.
    pub length: usize,
}

/// The operations of a backward pass. Shapes that do not fit are [`Error::Shape`](crate::Error).
pub trait Backward: Forward {
    /// Room for sums on their way.
    type Workspace: Send + Sync;

    /// A workspace for passes of at most `size`.
    fn workspace(&self, size: WorkSize) -> Result<Self::Workspace>;

    /// Bytes of one.
    fn workspace_bytes(&self, _size: WorkSize) -> u128 {
        0
    }

    /// Zeros for `len` numbers of a weight's gradient: as exact as sums are.
    fn alloc_gradient(&self, len: usize) -> Result<Self::Buffer> {
        self.alloc(len)
    }

    /// Bytes of one number of a weight's gradient.
    fn gradient_bytes(&self) -> usize {
        self.number_bytes()[0]
    }

    /// Whether activations have so small a range that gradients need a factor on the loss (f16).
    fn scales_losses(&self) -> bool {
        false
    }

    /// Numbers from a row of logits to the next, with which the head's products are fastest.
    fn logits_stride(&self, vocab: usize) -> usize {
        vocab
    }

    /// How many logits, and how many rows of them, are formed at a time.
    fn logits_at_once(&self) -> [usize; 2] {
        [4 << 20, 512]
    }

    /// Room for the bits of [`draw_annealed`](Self::draw_annealed) of up to `length` positions.
    fn annealed_mask(&self, length: usize) -> Result<Self::Mask>;

    /// Makes `mask`, which [`annealed_mask`](Self::annealed_mask) gave, that of a draw.
    fn draw_annealed(&self, mask: &mut Self::Mask, draw: AnnealedDraw) -> Result<()>;

    /// Sets the first `len` numbers to 0.
    fn zero(&self, x: &mut Self::Buffer, len: usize) -> Result<()>;

    /// Copies the first `len` numbers of `src` to the start of `dst`.
    fn copy(&self, src: &Self::Buffer, dst: &mut Self::Buffer, len: usize) -> Result<()>;

    /// Multiplies the first `len` numbers by `factor`.
    fn scale(&self, x: &mut Self::Buffer, len: usize, factor: f64) -> Result<()>;

    /// `dx[t, i] = sum_j dy[t, j] W[i, outputs.start + j]`, or `+=` with `accumulate`, for `rows` rows: the gradient
    /// of a product's input. `dy` is placed by its `Rows`; `dx` is `[rows, in]` dense from number `dx.1` of `dx.0` on.
    /// The reduction order of a number depends on nothing but `outputs.len()`.
    #[allow(clippy::too_many_arguments)]
    fn linear_backward_input(
        &self,
        dy: (&Self::Buffer, Rows),
        rows: usize,
        weight: &Self::Matrix,
        outputs: Range<usize>,
        accumulate: bool,
        dx: (&mut Self::Buffer, usize),
    ) -> Result<()>;

    /// `dW[i, j] += sum_t x[t, i] dy[t, j]` and `dbias[j] += sum_t dy[t, j]` for `rows` rows: `x` is `[rows, inputs]`
    /// dense from number `x.1` of `x.0` on, `dy` is `[rows, outputs]` placed by its `Rows`, `dweight` is laid out as
    /// `layout` says.
    #[allow(clippy::too_many_arguments)]
    fn linear_backward_weight(
        &self,
        x: (&Self::Buffer, usize),
        dy: (&Self::Buffer, Rows),
        rows: usize,
        inputs: usize,
        outputs: usize,
        layout: Layout,
        dweight: Option<&mut Self::Buffer>,
        dbias: Option<&mut Self::Buffer>,
        work: &mut Self::Workspace,
    ) -> Result<()>;

    /// The gradient of [`Forward::norm`]: `dx += ...` for `rows` rows, `dweight += ...`, `dbias += ...`. Mean and
    /// deviation are computed again from `x`.
    #[allow(clippy::too_many_arguments)]
    fn norm_backward(
        &self,
        kind: NormKind,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        dy: &Self::Buffer,
        eps: f64,
        rows: usize,
        width: usize,
        dx: &mut Self::Buffer,
        dweight: Option<&mut Self::Buffer>,
        dbias: Option<&mut Self::Buffer>,
        work: &mut Self::Workspace,
    ) -> Result<()>;

    /// `out[i] = activation(x[i])` for `len` numbers.
    fn activation(
        &self,
        kind: Activation,
        x: &Self::Buffer,
        len: usize,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// `d[i] = d[i] activation'(x[i])` for `len` numbers, in place.
    fn activation_backward(
        &self,
        kind: Activation,
        x: &Self::Buffer,
        len: usize,
        d: &mut Self::Buffer,
    ) -> Result<()>;

    /// The gradient of [`Forward::swiglu`]: from `gate_up` `[rows, 2 * width]` and `d_out` `[rows, width]`,
    /// `d_gate_up` `[rows, 2 * width]`.
    fn swiglu_backward(
        &self,
        gate_up: &Self::Buffer,
        d_out: &Self::Buffer,
        rows: usize,
        width: usize,
        d_gate_up: &mut Self::Buffer,
    ) -> Result<()>;

    /// The gradient of [`Forward::rope`], in place: every pair turns back.
    #[allow(clippy::too_many_arguments)]
    fn rope_backward(
        &self,
        dx: &mut Self::Buffer,
        at: Rows,
        rows: usize,
        heads: usize,
        head_dim: usize,
        positions: &Self::Index,
        table: &Self::Buffer,
    ) -> Result<()>;

    /// As [`Forward::attention`], the same bits; `log_sum`, one number a query row and head in the machine's own order, becomes the
    /// logarithms of the sums of exponentials of the rows' scores, `-inf` for a query that sees no key. It comes from
    /// [`alloc_logits`](Backend::alloc_logits).
    #[allow(clippy::too_many_arguments)]
    fn attention_saving(
        &self,
        q: (&Self::Buffer, Rows),
        k: (&Self::Buffer, Rows),
        v: (&Self::Buffer, Rows),
        shape: HeadShape,
        segments: &Self::Segments,
        q_pos: &Self::Index,
        mask: &Self::Mask,
        out: &mut Self::Buffer,
        log_sum: &mut Self::Buffer,
    ) -> Result<()>;

    /// The gradient of attention: from `d_out` `[q rows, heads * head_dim]` dense, the gradients of queries, keys and
    /// values, written (`=`) into `d_qkv` at the three places given. Segments' queries and keys lie apart from those of
    /// other segments. Scores are computed again blockwise (Dao et al., "FlashAttention", 2022, appendix B).
    #[allow(clippy::too_many_arguments)]
    fn attention_backward(
        &self,
        kept: Attended<'_, Self>,
        d_out: &Self::Buffer,
        shape: HeadShape,
        segments: &Self::Segments,
        q_pos: &Self::Index,
        mask: &Self::Mask,
        d_qkv: &mut Self::Buffer,
        places: [Rows; 3],
        work: &mut Self::Workspace,
    ) -> Result<()>;

    /// The gradient of [`Forward::embed`]: `d_table[ids[t], :] += dx[t, :]`, and the same for positions, for `rows`
    /// rows in order. The tables are `[d.1, width]`: `d.1` is how many rows a table has.
    fn embed_backward(
        &self,
        dx: &Self::Buffer,
        rows: usize,
        width: usize,
        table: Option<(&mut Self::Buffer, usize, &Self::Index)>,
        positions: Option<(&mut Self::Buffer, usize, &Self::Index)>,
    ) -> Result<()>;

    /// Cross-entropy of `rows.len()` rows of `vocab` logits, placed by their `Rows`, and its gradient in their place: with
    /// `u` the negative log-likelihood of `targets[rows.start + r]`, row r becomes
    /// `weights[rows.start + r] token'(u) (softmax(logits[r]) - onehot)`, what lies between two rows 0, and
    /// `nll[rows.start + r] = u`. A weight may be 0. A row with a NaN gives NaN.
    #[allow(clippy::too_many_arguments)]
    fn cross_entropy_backward(
        &self,
        logits: (&mut Self::Buffer, Rows),
        vocab: usize,
        rows: Range<usize>,
        targets: &Self::Index,
        weights: &Self::Floats,
        token: TokenWeight,
        nll: &mut Self::Floats,
    ) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_that_of_the_value() {
        for token in [
            TokenWeight::NONE,
            TokenWeight { alpha: 0.25, gamma: 2.0 },
            TokenWeight { alpha: 2.0, gamma: 0.5 },
        ] {
            for u in [1e-3, 0.1, 1.0, 5.0, 40.0] {
                let h = 1e-6 * u;
                let difference = (token.value(u + h) - token.value(u - h)) / (2.0 * h);
                assert!(
                    (token.slope(u) - difference).abs() < 1e-6 * difference.abs().max(1e-3),
                    "{token:?} at {u}"
                );
            }
            assert_eq!(token.slope(f64::INFINITY), token.alpha);
        }
        assert_eq!(TokenWeight { alpha: 1.0, gamma: 2.0 }.slope(0.0), 0.0);
    }
}

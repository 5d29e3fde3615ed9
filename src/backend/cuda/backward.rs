//! [`Backward`] by the kernels; each launch lives in the file of its stem.
//!
//! Activations and their gradients are in the machine's format, gradients of weights in f32. Logits are formed in the machine's
//! format too, a bounded number of rows at a time, and become their own gradients in place.

use std::ops::Range;

use super::{Buffer, Cuda, Device, Format, MaskOnDevice, Matrix, Segments};
use crate::anneal;
use crate::backend::{
    AnnealedDraw, Attended, Backend, Backward, HeadShape, Layout, Rows, TokenWeight, WorkSize, work,
};
use crate::config::{Activation, NormKind};
use crate::element::Dtype;
use crate::error::{Error, Result};

/// Logits that are formed at a time, and rows of them: enough for products that fill a card.
pub(crate) const LOGITS_AT_ONCE: [usize; 2] = [1 << 28, 4096];

/// Numbers from a row of logits to the next: rows begin on 128 bytes.
pub(crate) fn logits_stride(vocab: usize) -> usize {
    vocab.next_multiple_of(64)
}

/// Sums on their way.
#[derive(Debug)]
pub struct Workspace<D: Device> {
    /// Partial sums over rows, f32.
    partial: Buffer<D>,
    /// Of each query row and head what its gradient and its output have in common, f32.
    dots: Buffer<D>,
}

impl<D: Device> Backward for Cuda<D> {
    type Workspace = Workspace<D>;

    fn workspace(&self, size: WorkSize) -> Result<Workspace<D>> {
        let WorkSize { rows, columns, heads } = size;
        let product = |what, a, b| super::product("workspace", what, a, b);
        let partial = product("partial sums", Self::column_parts(rows), columns)?;
        let dots = product("query rows", rows, heads)?;
        Ok(Workspace {
            partial: Buffer::new(&self.device, Dtype::F32, partial)?,
            dots: Buffer::new(&self.device, Dtype::F32, dots)?,
        })
    }

    fn workspace_bytes(&self, size: WorkSize) -> u128 {
        let WorkSize { rows, columns, heads } = size;
        4 * (Self::column_parts(rows) as u128 * columns as u128 + rows as u128 * heads as u128)
    }

    fn alloc_gradient(&self, len: usize) -> Result<Buffer<D>> {
        self.alloc_floats(len)
    }

    fn gradient_bytes(&self) -> usize {
        Dtype::F32.size()
    }

    fn scales_losses(&self) -> bool {
        self.dtype == Dtype::F16
    }

    fn logits_stride(&self, vocab: usize) -> usize {
        logits_stride(vocab)
    }

    fn logits_at_once(&self) -> [usize; 2] {
        LOGITS_AT_ONCE
    }

    fn annealed_mask(&self, length: usize) -> Result<MaskOnDevice<D>> {
        let stride = anneal::stride(length);
        let words = super::product("mask", "words", length, stride)?;
        Ok(MaskOnDevice::Annealed { words: Buffer::new(&self.device, Format::U32, words)?, stride })
    }

    fn draw_annealed(&self, mask: &mut MaskOnDevice<D>, draw: AnnealedDraw) -> Result<()> {
        let _op = work::draw_annealed(draw.length);
        let MaskOnDevice::Annealed { words, stride } = mask else {
            return Err(Error::Shape { op: "mask_annealed", what: "masks with bits", expected: 1, got: 0 });
        };
        let AnnealedDraw { seed, pass, ratio, length } = draw;
        Cuda::annealed_mask(self, seed, pass, ratio, length, *stride, words)
    }

    fn zero(&self, x: &mut Buffer<D>, len: usize) -> Result<()> {
        let _op = work::zero(len, 4);
        self.zero(x, len)
    }

    fn copy(&self, src: &Buffer<D>, dst: &mut Buffer<D>, len: usize) -> Result<()> {
        let _op = work::copy(len, self.dtype.size());
        self.copy(self.dtype, src, 0, dst, 0, len)
    }

    fn scale(&self, x: &mut Buffer<D>, len: usize, factor: f64) -> Result<()> {
        let _op = work::scale(len, self.dtype.size());
        self.scale(self.dtype, x, len, factor as f32)
    }

    fn linear_backward_input(
        &self,
        dy: (&Buffer<D>, Rows),
        rows: usize,
        weight: &Matrix<D>,
        outputs: Range<usize>,
        accumulate: bool,
        (dx, at): (&mut Buffer<D>, usize),
    ) -> Result<()> {
        let _op = work::linear_backward_input(
            rows,
            [outputs.len(), weight.inputs()],
            weight.dtype().size(),
            self.dtype.size(),
            accumulate,
        );
        let dx = (dx, Rows { at, stride: weight.inputs() });
        // Gradients of logits: zeros lie between their rows.
        let padded = dy.1.at == 0 && dy.1.stride == logits_stride(outputs.len());
        self.linear_backward_input(self.dtype, dy, padded, rows, weight, outputs, accumulate, dx)
    }

    fn linear_backward_weight(
        &self,
        (x, at): (&Buffer<D>, usize),
        dy: (&Buffer<D>, Rows),
        rows: usize,
        inputs: usize,
        outputs: usize,
        layout: Layout,
        dweight: Option<&mut Buffer<D>>,
        dbias: Option<&mut Buffer<D>>,
        work: &mut Workspace<D>,
    ) -> Result<()> {
        let _op =
            work::linear_backward_weight(rows, [inputs, outputs], dweight.is_some(), self.dtype.size(), 4);
        if let Some(dweight) = dweight {
            let x = (x, Rows { at, stride: inputs });
            self.linear_backward_weight(self.dtype, x, dy, rows, inputs, outputs, layout, dweight)?;
        }
        match dbias {
            Some(dbias) => self.column_sums(self.dtype, dy, rows, outputs, &mut work.partial, dbias),
            None => Ok(()),
        }
    }

    fn norm_backward(
        &self,
        kind: NormKind,
        x: &Buffer<D>,
        weight: &Buffer<D>,
        dy: &Buffer<D>,
        eps: f64,
        rows: usize,
        width: usize,
        dx: &mut Buffer<D>,
        dweight: Option<&mut Buffer<D>>,
        dbias: Option<&mut Buffer<D>>,
        work: &mut Workspace<D>,
    ) -> Result<()> {
        let _op = work::norm_backward(rows, width, self.dtype.size());
        let (dtype, partial) = (self.dtype, &mut work.partial);
        self.norm_backward(dtype, kind, x, weight, dy, eps as f32, rows, width, dx, partial, dweight, dbias)
    }

    fn activation(&self, kind: Activation, x: &Buffer<D>, len: usize, out: &mut Buffer<D>) -> Result<()> {
        let _op = work::activation(len, self.dtype.size());
        self.activate(self.dtype, kind, Some(x), out, len)
    }

    fn activation_backward(
        &self,
        kind: Activation,
        x: &Buffer<D>,
        len: usize,
        d: &mut Buffer<D>,
    ) -> Result<()> {
        let _op = work::activation_backward(len, self.dtype.size());
        self.activation_backward(self.dtype, kind, x, len, d)
    }

    fn swiglu_backward(
        &self,
        gate_up: &Buffer<D>,
        d_out: &Buffer<D>,
        rows: usize,
        width: usize,
        d_gate_up: &mut Buffer<D>,
    ) -> Result<()> {
        let _op = work::swiglu_backward(rows, width, self.dtype.size());
        self.swiglu_backward(self.dtype, gate_up, d_out, rows, width, d_gate_up)
    }

    fn rope_backward(
        &self,
        dx: &mut Buffer<D>,
        at: Rows,
        rows: usize,
        heads: usize,
        head_dim: usize,
        positions: &Buffer<D>,
        table: &Buffer<D>,
    ) -> Result<()> {
        let _op = work::rope_backward(rows, heads, head_dim, self.dtype.size());
        self.rope_backward(self.dtype, dx, at, rows, heads, head_dim, positions, table)
    }

    fn attention_saving(
        &self,
        q: (&Buffer<D>, Rows),
        k: (&Buffer<D>, Rows),
        v: (&Buffer<D>, Rows),
        shape: HeadShape,
        segments: &Segments<D>,
        q_pos: &Buffer<D>,
        mask: &MaskOnDevice<D>,
        out: &mut Buffer<D>,
        log_sum: &mut Buffer<D>,
    ) -> Result<()> {
        let _op = work::attention_saving(shape, || segments.sizes(), self.dtype.size());
        self.attention(self.dtype, q, k, v, shape, segments, q_pos, mask.into(), out, Some(log_sum))
    }

    fn attention_backward(
        &self,
        kept: Attended<'_, Self>,
        d_out: &Buffer<D>,
        shape: HeadShape,
        segments: &Segments<D>,
        q_pos: &Buffer<D>,
        mask: &MaskOnDevice<D>,
        d_qkv: &mut Buffer<D>,
        places: [Rows; 3],
        work: &mut Workspace<D>,
    ) -> Result<()> {
        let _op = work::attention_backward(shape, || segments.sizes(), self.dtype.size());
        let Attended { q, k, v, out, log_sum } = kept;
        let (dtype, mask, dots) = (self.dtype, mask.into(), &mut work.dots);
        self.attention_backward(
            dtype, q, k, v, out, log_sum, d_out, shape, segments, q_pos, mask, dots, d_qkv, places,
        )
    }

    fn embed_backward(
        &self,
        dx: &Buffer<D>,
        rows: usize,
        width: usize,
        table: Option<(&mut Buffer<D>, usize, &Buffer<D>)>,
        positions: Option<(&mut Buffer<D>, usize, &Buffer<D>)>,
    ) -> Result<()> {
        let _op =
            work::embed_backward(rows, width, [table.is_some(), positions.is_some()], 4, self.dtype.size());
        for (d_table, table_rows, ids) in [table, positions].into_iter().flatten() {
            self.embed_backward(self.dtype, dx, rows, width, d_table, table_rows, ids)?;
        }
        Ok(())
    }

    fn cross_entropy_backward(
        &self,
        logits: (&mut Buffer<D>, Rows),
        vocab: usize,
        rows: Range<usize>,
        targets: &Buffer<D>,
        weights: &Buffer<D>,
        token: TokenWeight,
        nll: &mut Buffer<D>,
    ) -> Result<()> {
        let _op = work::cross_entropy_backward(rows.len(), vocab, self.dtype.size());
        self.cross_entropy_backward(self.dtype, logits, vocab, rows, targets, weights, token, nll)
    }
}

//! [`Backward`] for the CPU; each operation lives in the file of its stem.

use std::ops::Range;

use super::{Buffer, Cpu, CpuElement, Matrix, OwnedMask};
use crate::anneal;
use crate::backend::{
    AnnealedDraw, Attended, Backward, HeadShape, Layout, Rows, Segment, TokenWeight, WorkSize, work,
};
use crate::config::{Activation, NormKind};
use crate::error::Result;
use crate::rng::Rng;

impl<E: CpuElement> Backward for Cpu<E> {
    type Workspace = ();

    fn workspace(&self, _: WorkSize) -> Result<()> {
        Ok(())
    }

    fn annealed_mask(&self, _: usize) -> Result<OwnedMask> {
        Ok(OwnedMask::Causal)
    }

    fn draw_annealed(&self, mask: &mut OwnedMask, draw: AnnealedDraw) -> Result<()> {
        let _op = work::draw_annealed(draw.length);
        let words = anneal::annealed_words(&Rng::new(draw.seed), draw.pass, draw.length, draw.ratio);
        *mask = OwnedMask::Annealed { words, stride: anneal::stride(draw.length) };
        Ok(())
    }

    fn zero(&self, x: &mut Buffer<E>, len: usize) -> Result<()> {
        let _op = work::zero(len, size_of::<E>());
        self.zero_impl(x, len)
    }

    fn copy(&self, src: &Buffer<E>, dst: &mut Buffer<E>, len: usize) -> Result<()> {
        let _op = work::copy(len, size_of::<E>());
        self.copy_impl(src, dst, len)
    }

    fn scale(&self, x: &mut Buffer<E>, len: usize, factor: f64) -> Result<()> {
        let _op = work::scale(len, size_of::<E>());
        self.scale_impl(x, len, factor)
    }

    fn linear_backward_input(
        &self,
        dy: (&Buffer<E>, Rows),
        rows: usize,
        weight: &Matrix,
        outputs: Range<usize>,
        accumulate: bool,
        dx: (&mut Buffer<E>, usize),
    ) -> Result<()> {
        let _op = work::linear_backward_input(
            rows,
            [outputs.len(), weight.inputs()],
            weight.dtype().size(),
            size_of::<E>(),
            accumulate,
        );
        self.linear_backward_input_impl(dy, rows, weight, outputs, accumulate, dx)
    }

    fn linear_backward_weight(
        &self,
        x: (&Buffer<E>, usize),
        dy: (&Buffer<E>, Rows),
        rows: usize,
        inputs: usize,
        outputs: usize,
        layout: Layout,
        dweight: Option<&mut Buffer<E>>,
        dbias: Option<&mut Buffer<E>>,
        _: &mut (),
    ) -> Result<()> {
        let _op = work::linear_backward_weight(
            rows,
            [inputs, outputs],
            dweight.is_some(),
            size_of::<E>(),
            size_of::<E>(),
        );
        self.linear_backward_weight_impl(x, dy, rows, inputs, outputs, layout, dweight, dbias)
    }

    fn norm_backward(
        &self,
        kind: NormKind,
        x: &Buffer<E>,
        weight: &Buffer<E>,
        dy: &Buffer<E>,
        eps: f64,
        rows: usize,
        width: usize,
        dx: &mut Buffer<E>,
        dweight: Option<&mut Buffer<E>>,
        dbias: Option<&mut Buffer<E>>,
        _: &mut (),
    ) -> Result<()> {
        let _op = work::norm_backward(rows, width, size_of::<E>());
        self.norm_backward_impl(kind, x, weight, dy, eps, rows, width, dx, dweight, dbias)
    }

    fn activation(&self, kind: Activation, x: &Buffer<E>, len: usize, out: &mut Buffer<E>) -> Result<()> {
        let _op = work::activation(len, size_of::<E>());
        self.activation_impl(kind, x, len, out)
    }

    fn activation_backward(
        &self,
        kind: Activation,
        x: &Buffer<E>,
        len: usize,
        d: &mut Buffer<E>,
    ) -> Result<()> {
        let _op = work::activation_backward(len, size_of::<E>());
        self.activation_backward_impl(kind, x, len, d)
    }

    fn swiglu_backward(
        &self,
        gate_up: &Buffer<E>,
        d_out: &Buffer<E>,
        rows: usize,
        width: usize,
        d_gate_up: &mut Buffer<E>,
    ) -> Result<()> {
        let _op = work::swiglu_backward(rows, width, size_of::<E>());
        self.swiglu_backward_impl(gate_up, d_out, rows, width, d_gate_up)
    }

    fn rope_backward(
        &self,
        dx: &mut Buffer<E>,
        at: Rows,
        rows: usize,
        heads: usize,
        head_dim: usize,
        positions: &Buffer<u32>,
        table: &Buffer<E>,
    ) -> Result<()> {
        let _op = work::rope_backward(rows, heads, head_dim, size_of::<E>());
        self.rope_backward_impl(dx, at, rows, heads, head_dim, positions, table)
    }

    fn attention_saving(
        &self,
        q: (&Buffer<E>, Rows),
        k: (&Buffer<E>, Rows),
        v: (&Buffer<E>, Rows),
        shape: HeadShape,
        segments: &Vec<Segment>,
        q_pos: &Buffer<u32>,
        mask: &OwnedMask,
        out: &mut Buffer<E>,
        log_sum: &mut Buffer<E>,
    ) -> Result<()> {
        let _op = work::attention_saving(shape, || work::sizes(segments), size_of::<E>());
        self.attention_impl(q, k, v, shape, segments, q_pos, mask.into(), out, Some(log_sum))
    }

    fn attention_backward(
        &self,
        kept: Attended<'_, Self>,
        d_out: &Buffer<E>,
        shape: HeadShape,
        segments: &Vec<Segment>,
        q_pos: &Buffer<u32>,
        mask: &OwnedMask,
        d_qkv: &mut Buffer<E>,
        places: [Rows; 3],
        _: &mut (),
    ) -> Result<()> {
        let _op = work::attention_backward(shape, || work::sizes(segments), size_of::<E>());
        self.attention_backward_impl(kept, d_out, shape, segments, q_pos, mask.into(), d_qkv, places)
    }

    fn embed_backward(
        &self,
        dx: &Buffer<E>,
        rows: usize,
        width: usize,
        table: Option<(&mut Buffer<E>, usize, &Buffer<u32>)>,
        positions: Option<(&mut Buffer<E>, usize, &Buffer<u32>)>,
    ) -> Result<()> {
        let _op = work::embed_backward(
            rows,
            width,
            [table.is_some(), positions.is_some()],
            size_of::<E>(),
            size_of::<E>(),
        );
        self.embed_backward_impl(dx, rows, width, table, positions)
    }

    fn cross_entropy_backward(
        &self,
        logits: (&mut Buffer<E>, Rows),
        vocab: usize,
        rows: Range<usize>,
        targets: &Buffer<u32>,
        weights: &Buffer<f32>,
        token: TokenWeight,
        nll: &mut Buffer<f32>,
    ) -> Result<()> {
        let _op = work::cross_entropy_backward(rows.len(), vocab, size_of::<E>());
        self.cross_entropy_backward_impl(logits, vocab, rows, targets, weights, token, nll)
    }
}

//! [`Forward`] for the CPU; each operation lives in the file of its name.

use std::ops::Range;

use super::{Buffer, Cpu, CpuElement, Matrix, OwnedMask};
use crate::backend::{Epilogue, Forward, HeadShape, Rows, Segment, work};
use crate::config::NormKind;
use crate::error::Result;

impl<E: CpuElement> Forward for Cpu<E> {
    fn embed(
        &self,
        table: &Matrix,
        ids: &Buffer<u32>,
        positions: Option<(&Matrix, &Buffer<u32>)>,
        rows: usize,
        width: usize,
        out: &mut Buffer<E>,
    ) -> Result<()> {
        let _op = work::embed(rows, width, positions.is_some(), table.dtype().size(), size_of::<E>());
        self.embed_impl(table, ids, positions, rows, width, out)
    }

    fn norm(
        &self,
        kind: NormKind,
        x: &Buffer<E>,
        weight: &Buffer<E>,
        bias: Option<&Buffer<E>>,
        eps: f64,
        rows: usize,
        width: usize,
        out: &mut Buffer<E>,
    ) -> Result<()> {
        let _op = work::norm(rows, width, size_of::<E>());
        self.norm_impl(kind, x, weight, bias, eps, rows, width, out)
    }

    fn linear(
        &self,
        (x, at): (&Buffer<E>, usize),
        rows: usize,
        weight: &Matrix,
        outputs: Range<usize>,
        epilogue: Epilogue<'_, Self>,
        out: &mut Buffer<E>,
        out_rows: Rows,
    ) -> Result<()> {
        let _op = work::linear(
            rows,
            [weight.inputs(), outputs.len()],
            weight.dtype().size(),
            size_of::<E>(),
            epilogue.accumulate,
        );
        self.linear_impl(x, at, rows, weight, outputs, epilogue, out, out_rows)
    }

    fn rope(
        &self,
        x: &mut Buffer<E>,
        at: Rows,
        rows: usize,
        heads: usize,
        head_dim: usize,
        positions: &Buffer<u32>,
        table: &Buffer<E>,
    ) -> Result<()> {
        let _op = work::rope(rows, heads, head_dim, size_of::<E>());
        self.rope_impl(x, at, rows, heads, head_dim, positions, table)
    }

    fn swiglu(&self, gate_up: &Buffer<E>, rows: usize, width: usize, out: &mut Buffer<E>) -> Result<()> {
        let _op = work::swiglu(rows, width, size_of::<E>());
        self.swiglu_impl(gate_up, rows, width, out)
    }

    fn attention(
        &self,
        q: (&Buffer<E>, Rows),
        k: (&Buffer<E>, Rows),
        v: (&Buffer<E>, Rows),
        shape: HeadShape,
        segments: &Vec<Segment>,
        q_pos: &Buffer<u32>,
        mask: &OwnedMask,
        out: &mut Buffer<E>,
    ) -> Result<()> {
        let _op = work::attention(shape, || work::sizes(segments), size_of::<E>());
        self.attention_impl(q, k, v, shape, segments, q_pos, mask.into(), out, None)
    }

    fn gather(
        &self,
        src: (&Buffer<E>, Rows),
        rows: &Buffer<u32>,
        count: usize,
        width: usize,
        dst: &mut Buffer<E>,
    ) -> Result<()> {
        let _op = work::gather(count, width, size_of::<E>());
        self.gather_impl(src, rows, count, width, dst)
    }

    fn scatter(
        &self,
        src: (&Buffer<E>, Rows),
        rows: &Buffer<u32>,
        count: usize,
        width: usize,
        dst: (&mut Buffer<E>, Rows),
    ) -> Result<()> {
        let _op = work::scatter(count, width, size_of::<E>());
        self.scatter_impl(src, rows, count, width, dst)
    }

    fn cross_entropy(
        &self,
        logits: &Buffer<E>,
        vocab: usize,
        targets: &[u32],
        out: &mut [f64],
    ) -> Result<()> {
        let _op = work::cross_entropy(targets.len(), vocab, size_of::<E>());
        self.cross_entropy_impl(logits, vocab, targets, out)
    }
}

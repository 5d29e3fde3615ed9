//! [`Forward`] by the kernels; each launch lives in the file of its stem.

use std::ops::Range;

use super::{Buffer, Cuda, Device, Format, LinearEpilogue, MaskOnDevice, Matrix, Segments};
use crate::backend::{Epilogue, Forward, HeadShape, Rows, work};
use crate::config::NormKind;
use crate::element::Dtype;
use crate::error::{Error, Result};

impl<D: Device> Forward for Cuda<D> {
    fn embed(
        &self,
        table: &Matrix<D>,
        ids: &Buffer<D>,
        positions: Option<(&Matrix<D>, &Buffer<D>)>,
        rows: usize,
        width: usize,
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let _op = work::embed(rows, width, positions.is_some(), table.dtype().size(), self.dtype.size());
        let positions = positions.map(|(table, ids)| (table.buffer(), ids));
        self.embed(self.dtype, table.buffer(), ids, positions, rows, width, out)
    }

    fn norm(
        &self,
        kind: NormKind,
        x: &Buffer<D>,
        weight: &Buffer<D>,
        bias: Option<&Buffer<D>>,
        eps: f64,
        rows: usize,
        width: usize,
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let _op = work::norm(rows, width, self.dtype.size());
        self.norm(self.dtype, kind, x, None, weight, bias, eps as f32, rows, width, out)
    }

    fn linear(
        &self,
        (x, at): (&Buffer<D>, usize),
        rows: usize,
        weight: &Matrix<D>,
        outputs: Range<usize>,
        epilogue: Epilogue<'_, Self>,
        out: &mut Buffer<D>,
        out_rows: Rows,
    ) -> Result<()> {
        let _op = work::linear(
            rows,
            [weight.inputs(), outputs.len()],
            weight.dtype().size(),
            self.dtype.size(),
            epilogue.accumulate,
        );
        let Epilogue { bias, activation, accumulate } = epilogue;
        let epilogue = LinearEpilogue { bias, activation, accumulate };
        let x = (x, Rows { at, stride: weight.inputs() });
        let out_dtype = match out.format() {
            Format::Float(Dtype::F32) => Dtype::F32,
            _ => self.dtype,
        };
        self.linear(self.dtype, x, rows, weight, outputs, epilogue, (out, out_rows), out_dtype)
    }

    fn rope(
        &self,
        x: &mut Buffer<D>,
        at: Rows,
        rows: usize,
        heads: usize,
        head_dim: usize,
        positions: &Buffer<D>,
        table: &Buffer<D>,
    ) -> Result<()> {
        let _op = work::rope(rows, heads, head_dim, self.dtype.size());
        self.rope(self.dtype, x, at, rows, heads, head_dim, positions, table)
    }

    fn swiglu(&self, gate_up: &Buffer<D>, rows: usize, width: usize, out: &mut Buffer<D>) -> Result<()> {
        let _op = work::swiglu(rows, width, self.dtype.size());
        self.swiglu(self.dtype, gate_up, rows, width, out)
    }

    fn attention(
        &self,
        q: (&Buffer<D>, Rows),
        k: (&Buffer<D>, Rows),
        v: (&Buffer<D>, Rows),
        shape: HeadShape,
        segments: &Segments<D>,
        q_pos: &Buffer<D>,
        mask: &MaskOnDevice<D>,
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let _op = work::attention(shape, || segments.sizes(), self.dtype.size());
        self.attention(self.dtype, q, k, v, shape, segments, q_pos, mask.into(), out, None)
    }

    fn gather(
        &self,
        src: (&Buffer<D>, Rows),
        rows: &Buffer<D>,
        count: usize,
        width: usize,
        dst: &mut Buffer<D>,
    ) -> Result<()> {
        let _op = work::gather(count, width, self.dtype.size());
        self.gather(self.dtype, src, rows, count, width, dst)
    }

    fn scatter(
        &self,
        src: (&Buffer<D>, Rows),
        rows: &Buffer<D>,
        count: usize,
        width: usize,
        dst: (&mut Buffer<D>, Rows),
    ) -> Result<()> {
        let _op = work::scatter(count, width, self.dtype.size());
        self.scatter(self.dtype, src, rows, count, width, dst)
    }

    fn cross_entropy(
        &self,
        logits: &Buffer<D>,
        vocab: usize,
        targets: &[u32],
        out: &mut [f64],
    ) -> Result<()> {
        let _op = work::cross_entropy(targets.len(), vocab, self.dtype.size());
        const OP: &str = "cross_entropy";
        if out.len() != targets.len() {
            return Err(Error::Shape { op: OP, what: "out", expected: targets.len(), got: out.len() });
        }
        if let Some(target) = targets.iter().find(|&&t| t as usize >= vocab) {
            return Err(Error::Request(format!(
                "{OP}: target: expected a token id below {vocab}, got {target}"
            )));
        }
        let rows = targets.len();
        let targets = Buffer::of(&self.device, Format::U32, targets)?;
        let mut nll = Buffer::new(&self.device, Dtype::F32, rows)?;
        self.cross_entropy(Dtype::F32, (logits, Rows::dense(vocab)), vocab, &targets, rows, &mut nll)?;
        let mut narrow = vec![0.0_f32; rows];
        nll.read(&self.device, 0, &mut narrow)?;
        out.iter_mut().zip(narrow).for_each(|(out, nll)| *out = nll.into());
        Ok(())
    }
}

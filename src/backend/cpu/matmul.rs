//! `out = activation(x W + bias)` and `out += x W + bias`, on weights as they are stored.
//!
//! Contract: `x` `[rows, k]` dense; `W` `[k, n]` in f32, f16 or bf16, in either layout, at any
//! alignment; `out` `[rows, n]` placed by a stride. Order of arithmetic of one output number: k is cut
//! into blocks of [`KC`]; a block is one chain of fused multiply-adds from zero; block sums are added in
//! order; then the bias is added, then the activation applied or the old value added. Nothing else
//! (rows in the call, tiles, tasks, threads, instruction set) has a say.
//!
//! A block of weights, [`KC`] x a panel of columns, is widened and (where stored `[n, k]`) transposed
//! into a panel of the first-level cache on its way to the registers, so no widened copy of a weight
//! exists. The loop structure is that of Goto and van de Geijn, "Anatomy of High-Performance Matrix
//! Multiplication" (2008), without the copy of `x`.

use std::ops::Range;

use super::buffer::Shared;
use super::check;
use super::gemm::{Cut, tile, with_rows};
use super::simd::{CpuElement, Kernel, Simd, activate, load_one};
use super::{Buffer, Cpu, Matrix};
use crate::backend::{Epilogue, Layout, Rows};
use crate::config::Activation;
use crate::element::{Dtype, Element};
use crate::error::{Error, Result};

/// Numbers of k in a block. Part of the definition of the result: see above.
const KC: usize = 256;
/// Columns are shared out in units of this many, a multiple of every panel's width.
const UNIT: usize = 32;
/// Most rows of a task: their part of `x` stays in the second-level cache.
const ROW_BLOCK: usize = 240;
/// Most columns that a task keeps block sums of.
const CHUNK: usize = 256;
/// Fewer multiplications than this are not worth another task.
const MIN_WORK: usize = 1 << 19;

impl<E: CpuElement> Cpu<E> {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn linear_impl(
        &self,
        x: &Buffer<E>,
        rows: usize,
        weight: &Matrix,
        outputs: Range<usize>,
        epilogue: Epilogue<'_, Self>,
        out: &mut Buffer<E>,
        out_rows: Rows,
    ) -> Result<()> {
        const OP: &str = "linear";
        let k = weight.inputs();
        if outputs.start > outputs.end || outputs.end > weight.outputs() {
            let (expected, got) = (weight.outputs(), outputs.end.max(outputs.start));
            return Err(Error::Shape { op: OP, what: "columns of the weight", expected, got });
        }
        let n = outputs.len();
        check::at_least(OP, "x", check::product(OP, "x", rows, k)?, x.len())?;
        check::placed(OP, "out", out_rows, rows, n, out.len(), true)?;
        if let Some(bias) = epilogue.bias {
            check::equal(OP, "bias", weight.outputs(), bias.len())?;
        }
        if epilogue.accumulate && epilogue.activation.is_some() {
            return Err(Error::Shape { op: OP, what: "activations of an accumulation", expected: 0, got: 1 });
        }
        if rows == 0 || n == 0 {
            return Ok(());
        }

        let units = Cut::new(n, UNIT).parts;
        let row_blocks = Cut::new(rows, ROW_BLOCK);
        // Packing a weight costs about as much as eight rows of multiplications.
        let work = (rows + 8).saturating_mul(k).saturating_mul(n);
        let wanted = (work / MIN_WORK).clamp(1, 8 * self.threads()).div_ceil(row_blocks.parts);
        let groups = Cut::new(units, units.div_ceil(wanted.min(units)));
        let shared = Shared::new(out.as_mut_slice());
        self.for_each_with_scratch(row_blocks.parts * groups.parts, true, |task, scratch| {
            // Neighbouring tasks read the same weights.
            let (group, block) = (task / row_blocks.parts, task % row_blocks.parts);
            let (first, end) = (row_blocks.start(block), row_blocks.start(block + 1));
            let columns = UNIT * groups.start(group)..(UNIT * groups.start(group + 1)).min(n);
            self.dispatch(Block {
                x: &x.as_slice()[first * k..end * k],
                rows: end - first,
                weight: Weight::new(weight, outputs.start),
                columns,
                bias: epilogue.bias.map(|b| &b.as_slice()[outputs.clone()]),
                activation: epilogue.activation,
                accumulate: epilogue.accumulate,
                out: shared.at(out_rows.at + first * out_rows.stride),
                stride: out_rows.stride,
                scratch,
            });
        });
        Ok(())
    }
}

/// A stored weight, `[k, n]` or `[n, k]`.
#[derive(Clone, Copy)]
struct Weight {
    /// Column 0 (of the columns in use).
    start: *const u8,
    dtype: Dtype,
    layout: Layout,
    k: usize,
    /// Bytes from a row of the stored tensor to the next.
    row_bytes: usize,
}

impl Weight {
    /// The columns of `matrix` from `first` on.
    fn new(matrix: &Matrix, first: usize) -> Self {
        let dtype = matrix.tensor().dtype();
        let (row, column) = match matrix.layout() {
            Layout::OutIn => (matrix.inputs(), matrix.inputs()),
            Layout::InOut => (matrix.outputs(), 1),
        };
        let start = matrix.tensor().bytes().as_ptr().wrapping_add(first * column * dtype.size());
        let (k, row_bytes) = (matrix.inputs(), row * dtype.size());
        Weight { start, dtype, layout: matrix.layout(), k, row_bytes }
    }

    /// Widens rows `from .. from + k` of columns `column .. column + valid` into `panel`, `[k, width]`
    /// with `width` columns in vectors; columns from `valid` on hold anything.
    ///
    /// # Safety
    /// The rows and columns exist, and `panel` takes `k * width` numbers; `valid >= 1`.
    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    unsafe fn pack<E: Element, S: Simd<E>>(
        self,
        s: S,
        from: usize,
        k: usize,
        column: usize,
        valid: usize,
        panel: *mut E,
        width: usize,
    ) {
        let size = self.dtype.size();
        for at in (0..valid).step_by(S::LANES) {
            let lanes = S::LANES.min(valid - at);
            // SAFETY: rows `from .. from + k` and columns `column + at ..` plus `lanes` exist, so
            // their bytes do; vector `at / LANES` lies within the panel's width.
            unsafe {
                match self.layout {
                    Layout::OutIn => {
                        let src = self.start.add((column + at) * self.row_bytes + from * size);
                        let next = width * self.row_bytes;
                        s.pack_rows(self.dtype, src, self.row_bytes, lanes, k, panel.add(at), width, next);
                    }
                    Layout::InOut => {
                        let mut src = self.start.add(from * self.row_bytes + (column + at) * size);
                        let mut dst = panel.add(at);
                        for _ in 0..k {
                            s.prefetch(src.wrapping_add(width * size));
                            if lanes == S::LANES {
                                s.store(dst, s.load_stored(self.dtype, src));
                            } else {
                                for lane in 0..lanes {
                                    *dst.add(lane) = load_one(self.dtype, src.add(lane * size));
                                }
                            }
                            src = src.wrapping_add(self.row_bytes);
                            dst = dst.wrapping_add(width);
                        }
                    }
                }
            }
        }
    }
}

/// One task: some rows by some columns.
struct Block<'a, E> {
    /// `[rows, k]`.
    x: &'a [E],
    rows: usize,
    weight: Weight,
    columns: Range<usize>,
    /// A number for each column of the product.
    bias: Option<&'a [E]>,
    activation: Option<Activation>,
    accumulate: bool,
    /// Row 0 of this task, column 0 of the product.
    out: *mut E,
    stride: usize,
    scratch: &'a mut [E],
}

/// One panel of one block of k.
struct Panel<E> {
    /// `[k, width]`.
    start: *const E,
    k: usize,
    width: usize,
    /// First number of k.
    from: usize,
    /// First column of the product, and how many are real.
    column: usize,
    valid: usize,
    /// Block sums so far, `[rows, width]`.
    sums: *mut E,
    first: bool,
    last: bool,
}

impl<E: Element> Kernel<E> for Block<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<E>>(mut self, s: S) {
        let width = S::LANES * S::TILE_VECTORS;
        let k = self.weight.k;
        let (panel, sums) = std::mem::take(&mut self.scratch).split_at_mut(KC * width);
        // With few rows whole columns of the weight are read at once, as they lie in memory.
        let chunk = if self.rows <= 16 { width } else { CHUNK.min(sums.len() / self.rows / width * width) };
        let blocks = k.div_ceil(KC).max(1);
        for chunk_start in self.columns.clone().step_by(chunk) {
            let chunk_end = (chunk_start + chunk).min(self.columns.end);
            for block in 0..blocks {
                let from = block * KC;
                for column in (chunk_start..chunk_end).step_by(width) {
                    let valid = width.min(chunk_end - column);
                    let part = Panel {
                        start: panel.as_ptr(),
                        k: KC.min(k - from),
                        width,
                        from,
                        column,
                        valid,
                        sums: sums.as_mut_ptr().wrapping_add((column - chunk_start) * self.rows),
                        first: block == 0,
                        last: block + 1 == blocks,
                    };
                    // SAFETY: `from + part.k <= k`, the columns exist, and the panel takes
                    // `KC * width` numbers; the sums of the chunk's columns fit `sums`.
                    unsafe {
                        self.weight.pack(s, from, part.k, column, valid, panel.as_mut_ptr(), width);
                        self.panel(s, &part);
                    }
                }
            }
        }
    }
}

impl<E: Element> Block<'_, E> {
    /// All row tiles of a panel.
    ///
    /// # Safety
    /// `part` describes a packed panel, columns of this task, and sums for `rows * width` numbers.
    #[inline(always)]
    unsafe fn panel<S: Simd<E>>(&self, s: S, part: &Panel<E>) {
        let cut = Cut::new(self.rows, S::TILE_ROWS);
        for i in 0..cut.parts {
            let (row, end) = (cut.start(i), cut.start(i + 1));
            // SAFETY: the caller's promise; rows `row .. end` exist.
            unsafe {
                with_rows!(end - row, S::TILE_ROWS, M => {
                    if S::TILE_VECTORS == 2 {
                        self.tile::<S, M, 2>(s, part, row)
                    } else {
                        self.tile::<S, M, 1>(s, part, row)
                    }
                });
            }
        }
        if let (Some(kind), true) = (self.activation, part.last) {
            for row in 0..self.rows {
                for at in (0..part.valid).step_by(S::LANES) {
                    let n = S::LANES.min(part.valid - at);
                    // SAFETY: `n` columns of this row of `out` belong to this task.
                    unsafe {
                        let p = self.out.add(row * self.stride + part.column + at);
                        s.store_part(p, activate(s, kind, s.load_part(p, n)), n);
                    }
                }
            }
        }
    }

    /// One tile: the product, then the block sums, bias and old value.
    ///
    /// # Safety
    /// As [`panel`](Self::panel); rows `row .. row + M` exist.
    #[inline(always)]
    unsafe fn tile<S: Simd<E>, const M: usize, const NV: usize>(&self, s: S, part: &Panel<E>, row: usize) {
        let k = self.weight.k;
        // SAFETY: `x` has `M` rows of `k` numbers from `row` on, of which `part.from ..` plus
        // `part.k` exist; the panel is `[part.k, part.width]` with `NV` vectors a row; the sums hold
        // `rows * width`; the rows and columns of `out` belong to this task alone.
        unsafe {
            let a = self.x.as_ptr().add(row * k + part.from);
            let mut acc = tile::<E, S, M, NV>(s, part.k, a, k, part.start, part.width);
            let sums = part.sums.add(row * part.width);
            if !part.first {
                for (i, v) in acc.iter_mut().flatten().enumerate() {
                    *v = s.add(s.load(sums.add(i * S::LANES)), *v);
                }
            }
            if !part.last {
                for (i, v) in acc.iter().flatten().enumerate() {
                    s.store(sums.add(i * S::LANES), *v);
                }
                return;
            }
            for j in 0..NV {
                if j * S::LANES >= part.valid {
                    break;
                }
                let n = S::LANES.min(part.valid - j * S::LANES);
                let column = part.column + j * S::LANES;
                let mut bias = None;
                if let Some(all) = self.bias {
                    bias = Some(s.load_part(all.as_ptr().add(column), n));
                }
                for (i, line) in acc.iter().enumerate() {
                    let p = self.out.add((row + i) * self.stride + column);
                    let mut v = line[j];
                    if let Some(bias) = bias {
                        v = s.add(v, bias);
                    }
                    if self.accumulate {
                        v = s.add(s.load_part(p, n), v);
                    }
                    s.store_part(p, v, n);
                }
            }
        }
    }
}

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
//! Multiplication" (2008), without the copy of `x`; at most a tile of rows goes the way of [`few`](super::few).

use std::ops::Range;

use super::buffer::Shared;
use super::check;
use super::few::Few;
use super::gemm::{Cut, tile, with_rows};
use super::simd::{CpuElement, Isa, Kernel, Simd, activate};
use super::weight::{Pack, Region, Weight};
use super::{Buffer, Cpu, Matrix};
use crate::backend::{Epilogue, Rows};
use crate::config::Activation;
use crate::element::Element;
use crate::error::{Error, Result};

/// Numbers of k in a block. Part of the definition of the result: see above.
pub(super) const KC: usize = 256;
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
        at: usize,
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
        let x_end = check::product(OP, "x", rows, k)?.saturating_add(at);
        check::at_least(OP, "x", x_end, x.len())?;
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
        self.product(
            Product {
                x: &x.as_slice()[at..x_end],
                x_stride: k,
                rows,
                weight: Weight::new(weight, outputs.start),
                columns: n,
                bias: epilogue.bias.map(|b| &b.as_slice()[outputs]),
                activation: epilogue.activation,
                accumulate: epilogue.accumulate,
            },
            Shared::new(out.as_mut_slice()),
            out_rows,
        );
        Ok(())
    }

    /// A matrix product, shared out over the pool. Shapes were checked: `x` holds `rows` rows of `weight.k` numbers
    /// `x_stride` apart, the columns exist, and `out_rows` places as many rows of `columns` numbers apart in `out`.
    pub(super) fn product(&self, of: Product<'_, E>, out: Shared<'_, E>, out_rows: Rows) {
        let Product { x, x_stride, rows, weight, columns: n, .. } = of;
        let k = weight.k;
        let units = Cut::new(n, UNIT).parts;
        let row_blocks = Cut::new(rows, ROW_BLOCK);
        // Packing a weight costs about as much as eight rows of multiplications.
        let work = (rows + 8).saturating_mul(k).saturating_mul(n);
        let wanted = (work / MIN_WORK).clamp(1, 16 * self.threads()).div_ceil(row_blocks.parts);
        let groups = Cut::new(units, units.div_ceil(wanted.min(units)));
        let tile_rows = self.dispatch(TileRows);
        self.for_each_with_scratch(row_blocks.parts * groups.parts, true, |task, scratch| {
            // Neighbouring tasks read the same weights.
            let (group, block) = (task / row_blocks.parts, task % row_blocks.parts);
            let (first, end) = (row_blocks.start(block), row_blocks.start(block + 1));
            let columns = UNIT * groups.start(group)..(UNIT * groups.start(group + 1)).min(n);
            let part = Block {
                isa: self.shared.isa,
                x: &x[first * x_stride..(end - 1) * x_stride + k],
                x_stride,
                rows: end - first,
                weight,
                columns,
                bias: of.bias,
                activation: of.activation,
                accumulate: of.accumulate,
                out: out.at(out_rows.at + first * out_rows.stride),
                stride: out_rows.stride,
                scratch,
            };
            if part.rows <= tile_rows {
                with_rows!(part.rows, 12, M => self.dispatch(Few::<E, M>(part)));
            } else {
                self.dispatch(part);
            }
        });
    }
}

/// What is multiplied, and what happens to it.
pub(super) struct Product<'a, E> {
    /// From the first row on.
    pub x: &'a [E],
    pub x_stride: usize,
    pub rows: usize,
    pub weight: Weight,
    /// Columns of the product.
    pub columns: usize,
    /// A number for each column.
    pub bias: Option<&'a [E]>,
    pub activation: Option<Activation>,
    pub accumulate: bool,
}

/// The height of a tile on this machine.
struct TileRows;

impl<E: Element> Kernel<E> for TileRows {
    type Out = usize;

    #[inline(always)]
    fn run<S: Simd<E>>(self, _: S) -> usize {
        S::TILE_ROWS
    }
}

/// One task: some rows by some columns.
pub(super) struct Block<'a, E> {
    pub isa: Isa,
    /// `[rows, k]`, rows `x_stride` apart.
    pub x: &'a [E],
    pub x_stride: usize,
    pub rows: usize,
    pub weight: Weight,
    pub columns: Range<usize>,
    /// A number for each column of the product.
    pub bias: Option<&'a [E]>,
    pub activation: Option<Activation>,
    pub accumulate: bool,
    /// Row 0 of this task, column 0 of the product.
    pub out: *mut E,
    pub stride: usize,
    pub scratch: &'a mut [E],
}

/// One panel of one block of k.
pub(super) struct Panel<E> {
    /// `[k, width]`.
    pub start: *const E,
    pub k: usize,
    pub width: usize,
    /// First number of k.
    pub from: usize,
    /// First column of the product, and how many are real.
    pub column: usize,
    pub valid: usize,
    /// Block sums so far, `[rows, width]`.
    pub sums: *mut E,
    pub first: bool,
    pub last: bool,
    /// The panel after this one, to be fetched while this one is multiplied.
    pub next: Option<Region>,
}

impl<E: CpuElement> Kernel<E> for Block<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<E>>(mut self, s: S) {
        let width = S::LANES * S::TILE_VECTORS;
        let k = self.weight.k;
        let (panel, sums) = std::mem::take(&mut self.scratch).split_at_mut(KC * width);
        let chunk = CHUNK.min(sums.len() / self.rows / width * width);
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
                        next: Some(self.next(chunk_start..chunk_end, column + width, from, width)),
                    };
                    // SAFETY: `from + part.k <= k`, the columns exist, and the panel takes
                    // `KC * width` numbers; the sums of the chunk's columns fit `sums`.
                    unsafe {
                        let to = panel.as_mut_ptr();
                        let rows = from..from + part.k;
                        E::dispatch(self.isa, Pack::new(self.weight, rows, column, valid, to, width, false));
                        self.panel(s, &part);
                    }
                }
            }
        }
    }
}

impl<E: CpuElement> Block<'_, E> {
    /// The panel that follows: the columns from `column` on of this block of k, or the first of the
    /// chunk in the next block, or the first behind the chunk.
    #[inline(always)]
    fn next(&self, chunk: Range<usize>, column: usize, from: usize, width: usize) -> Region {
        let k = self.weight.k;
        let (from, column) = match (column < chunk.end, from + KC < k) {
            (true, _) => (from, column),
            (false, true) => (from + KC, chunk.start),
            (false, false) => (0, chunk.end),
        };
        Region::new(self.weight, from, KC.min(k - from), column, width)
    }

    /// All row tiles of a panel.
    ///
    /// # Safety
    /// `part` describes a packed panel, columns of this task, and sums for `rows * width` numbers.
    #[inline(always)]
    unsafe fn panel<S: Simd<E>>(&self, s: S, part: &Panel<E>) {
        let cut = Cut::new(self.rows, S::TILE_ROWS);
        for i in 0..cut.parts {
            let (row, end) = (cut.start(i), cut.start(i + 1));
            if let Some(next) = part.next {
                next.prefetch(s, i, cut.parts);
            }
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
        if part.last {
            self.activate_panel(part);
        }
    }

    /// The activation, in place, of the finished columns of `part`.
    #[inline(always)]
    pub fn activate_panel(&self, part: &Panel<E>) {
        if let Some(kind) = self.activation {
            let out = self.out.wrapping_add(part.column);
            let (rows, columns, stride) = (self.rows, part.valid, self.stride);
            E::dispatch(self.isa, Activate { kind, rows, columns, out, stride });
        }
    }

    /// One tile.
    ///
    /// # Safety
    /// As [`panel`](Self::panel); rows `row .. row + M` exist.
    #[inline(always)]
    unsafe fn tile<S: Simd<E>, const M: usize, const NV: usize>(&self, s: S, part: &Panel<E>, row: usize) {
        let stride = self.x_stride;
        // SAFETY: `x` has `M` rows of `k` numbers from `row` on, of which `part.from ..` plus
        // `part.k` exist; the panel is `[part.k, part.width]` with `NV` vectors a row.
        unsafe {
            let a = self.x.as_ptr().add(row * stride + part.from);
            let acc = tile::<E, S, M, NV>(s, part.k, a, stride, part.start, NV * S::LANES);
            self.finish(s, acc, part, row);
        }
    }

    /// What follows a tile of products: the block sums, and after the last block the bias and the old
    /// value.
    ///
    /// # Safety
    /// Rows `row .. row + M` and the columns of `part` exist, and are this task's alone; the sums of
    /// `part` hold `rows * width` numbers.
    #[inline(always)]
    pub unsafe fn finish<S: Simd<E>, const M: usize, const NV: usize>(
        &self,
        s: S,
        mut acc: [[S::V; NV]; M],
        part: &Panel<E>,
        row: usize,
    ) {
        // SAFETY: the caller's promise; `NV` vectors are the width of `part`.
        unsafe {
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

/// The activation of a part of `out` that belongs to this task alone.
struct Activate<E> {
    kind: Activation,
    rows: usize,
    columns: usize,
    out: *mut E,
    stride: usize,
}

impl<E: Element> Kernel<E> for Activate<E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        for row in 0..self.rows {
            for at in (0..self.columns).step_by(S::LANES) {
                let n = S::LANES.min(self.columns - at);
                // SAFETY: `n` columns of this row of `out` belong to this task.
                unsafe {
                    let p = self.out.add(row * self.stride + at);
                    s.store_part(p, activate(s, self.kind, s.load_part(p, n)), n);
                }
            }
        }
    }
}

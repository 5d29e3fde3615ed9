//! The gradients of a matrix product: of its input, and of its weight and bias.
//!
//! Contract: `dx[t, i] (+)= sum_j dy[t, j] W[i, j]` is the product of [`super::matmul`] with the weight read the other
//! way round. `dW[i, j] += sum_t x[t, i] dy[t, j]`: rows are cut into blocks of [`KC`]; a block is one chain of fused
//! multiply-adds from zero, and is added to `dW`; blocks in order. `dbias[j] += sum_t dy[t, j]`: rows in order from
//! zero, then added. Tiles, tasks, threads and instruction set have no say.
//!
//! Both factors of `dW` have rows as their outer index, so one is packed into strips of a tile's height, which stay in
//! the second-level cache, the other into panels of the first-level cache.

use std::ops::Range;

use super::buffer::Shared;
use super::check;
use super::gemm::{Cut, tile_across, with_rows};
use super::matmul::{KC, Product};
use super::simd::{CpuElement, Kernel, Simd};
use super::weight::Weight;
use super::{Buffer, Cpu, Matrix, SCRATCH};
use crate::backend::{Layout, Rows};
use crate::element::Element;
use crate::error::{Error, Result};

/// Most rows of `dW` in a task: their strips stay in the second-level cache.
const ROW_BLOCK: usize = 240;
/// Columns are shared out in units of this many, a multiple of every panel's width.
const UNIT: usize = 32;
/// Fewer multiplications than this are not worth another task.
const MIN_WORK: usize = 1 << 19;
const _: () = assert!(ROW_BLOCK * KC + KC * UNIT <= SCRATCH);

impl<E: CpuElement> Cpu<E> {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn linear_backward_input_impl(
        &self,
        (dy, dy_at): (&Buffer<E>, Rows),
        rows: usize,
        weight: &Matrix,
        outputs: Range<usize>,
        accumulate: bool,
        (dx, at): (&mut Buffer<E>, usize),
    ) -> Result<()> {
        const OP: &str = "linear_backward_input";
        if outputs.start > outputs.end || outputs.end > weight.outputs() {
            let (expected, got) = (weight.outputs(), outputs.end.max(outputs.start));
            return Err(Error::Shape { op: OP, what: "columns of the weight", expected, got });
        }
        let (k, n) = (outputs.len(), weight.inputs());
        check::placed(OP, "dy", dy_at, rows, k, dy.len(), false)?;
        check::placed(OP, "dx", Rows { at, stride: n }, rows, n, dx.len(), true)?;
        if rows == 0 || n == 0 {
            return Ok(());
        }
        if k == 0 {
            if !accumulate {
                dx.as_mut_slice()[at..at + rows * n].fill(E::zero());
            }
            return Ok(());
        }
        let product = Product {
            x: &dy.as_slice()[dy_at.at..],
            x_stride: dy_at.stride,
            rows,
            weight: Weight::transposed(weight, outputs),
            columns: n,
            bias: None,
            activation: None,
            accumulate,
        };
        self.product(product, Shared::new(dx.as_mut_slice()), Rows { at, stride: n });
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn linear_backward_weight_impl(
        &self,
        (x, x_at): (&Buffer<E>, usize),
        (dy, dy_at): (&Buffer<E>, Rows),
        rows: usize,
        inputs: usize,
        outputs: usize,
        layout: Layout,
        dweight: Option<&mut Buffer<E>>,
        dbias: Option<&mut Buffer<E>>,
    ) -> Result<()> {
        const OP: &str = "linear_backward_weight";
        let x_rows = Rows { at: x_at, stride: inputs };
        check::placed(OP, "x", x_rows, rows, inputs, x.len(), false)?;
        check::placed(OP, "dy", dy_at, rows, outputs, dy.len(), false)?;
        if let Some(dweight) = &dweight {
            check::equal(OP, "dweight", check::product(OP, "dweight", inputs, outputs)?, dweight.len())?;
        }
        if let Some(dbias) = &dbias {
            check::equal(OP, "dbias", outputs, dbias.len())?;
        }
        if rows == 0 || outputs == 0 {
            return Ok(());
        }
        if let Some(dbias) = dbias {
            self.column_sums(&dy.as_slice()[dy_at.at..], dy_at.stride, rows, outputs, dbias.as_mut_slice());
        }
        let Some(dweight) = dweight.filter(|_| inputs > 0) else { return Ok(()) };
        let x = Factor { start: &x.as_slice()[x_at..], stride: inputs, width: inputs };
        let dy = Factor { start: &dy.as_slice()[dy_at.at..], stride: dy_at.stride, width: outputs };
        let (a, b) = match layout {
            Layout::InOut => (x, dy),
            Layout::OutIn => (dy, x),
        };
        self.outer(a, b, rows, Shared::new(dweight.as_mut_slice()));
        Ok(())
    }

    /// `out[i, j] += sum_t a[t, i] b[t, j]`, dense.
    fn outer(&self, a: Factor<'_, E>, b: Factor<'_, E>, rows: usize, out: Shared<'_, E>) {
        let row_blocks = Cut::new(a.width, ROW_BLOCK);
        let units = Cut::new(b.width, UNIT).parts;
        let work = rows.saturating_mul(a.width).saturating_mul(b.width);
        let wanted = (work / MIN_WORK).clamp(1, 4 * self.threads()).div_ceil(row_blocks.parts);
        let groups = Cut::new(units, units.div_ceil(wanted.min(units)));
        self.for_each_with_scratch(row_blocks.parts * groups.parts, true, |task, scratch| {
            let (block, group) = (task / groups.parts, task % groups.parts);
            self.dispatch(Outer {
                a,
                b,
                rows,
                first: row_blocks.start(block),
                end: row_blocks.start(block + 1),
                columns: UNIT * groups.start(group)..(UNIT * groups.start(group + 1)).min(b.width),
                out: out.at(0),
                scratch,
            });
        });
    }

    /// `out[j] += sum_t x[t, j]` for `columns` columns of `rows` rows `stride` apart; rows in order.
    pub(super) fn column_sums(&self, x: &[E], stride: usize, rows: usize, columns: usize, out: &mut [E]) {
        let out = Shared::new(&mut out[..columns]);
        self.for_column_blocks(rows, columns, |from, to| {
            // SAFETY: columns `from .. to` are this task's alone, and exist.
            let out = unsafe { out.part(from, to - from) };
            self.dispatch(ColumnSums { x: &x[from..], stride, rows, out });
        });
    }
}

/// One factor of an outer product: rows of `width` numbers, `stride` apart.
#[derive(Clone, Copy)]
struct Factor<'a, E> {
    start: &'a [E],
    stride: usize,
    width: usize,
}

/// One task: rows `first .. end` of the result by some columns.
struct Outer<'a, E> {
    a: Factor<'a, E>,
    b: Factor<'a, E>,
    rows: usize,
    first: usize,
    end: usize,
    columns: Range<usize>,
    out: *mut E,
    scratch: &'a mut [E],
}

impl<E: Element> Kernel<E> for Outer<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<E>>(mut self, s: S) {
        let width = S::LANES * S::TILE_VECTORS;
        let cut = Cut::new(self.end - self.first, S::TILE_ROWS);
        let scratch = std::mem::take(&mut self.scratch);
        let (strips, scratch) = scratch.split_at_mut(ROW_BLOCK * KC);
        let panel = &mut scratch[..KC * width];
        for from in (0..self.rows).step_by(KC) {
            let k = KC.min(self.rows - from);
            // Strip i, `[k, height]`, begins where the rows before it end.
            for i in 0..cut.parts {
                let (start, end) = (cut.start(i), cut.start(i + 1));
                for p in 0..k {
                    let (row, to) =
                        ((from + p) * self.a.stride + self.first + start, start * k + p * (end - start));
                    // SAFETY: a strip is at most a tile high, which is less than a vector.
                    unsafe { copy_ahead(s, &self.a.start[row..], end - start, &mut strips[to..]) };
                }
            }
            for column in self.columns.clone().step_by(width) {
                let valid = width.min(self.columns.end - column);
                for (p, to) in panel.chunks_exact_mut(width).take(k).enumerate() {
                    let row = &self.b.start[(from + p) * self.b.stride + column..][..valid];
                    for (row, to) in row.chunks(S::LANES).zip(to.chunks_exact_mut(S::LANES)) {
                        // SAFETY: `to` holds a vector, and `row` at most as many numbers. What lies behind them is of
                        // another row: anything, never stored to the result.
                        unsafe { copy(s, row, to) };
                    }
                }
                for i in 0..cut.parts {
                    let (start, end) = (cut.start(i), cut.start(i + 1));
                    let strip = strips[start * k..].as_ptr();
                    // SAFETY: a strip of `k` times its height and a panel of `k` rows are packed; rows
                    // `first + start .. first + end` and columns `column ..` plus `valid` of the result exist and are
                    // this task's alone.
                    unsafe {
                        let out = self.out.add((self.first + start) * self.b.width + column);
                        with_rows!(end - start, S::TILE_ROWS, M => {
                            if S::TILE_VECTORS == 2 {
                                add_tile::<E, S, M, 2>(s, k, strip, panel.as_ptr(), out, self.b.width, valid)
                            } else {
                                add_tile::<E, S, M, 1>(s, k, strip, panel.as_ptr(), out, self.b.width, valid)
                            }
                        });
                    }
                }
            }
        }
    }
}

/// Copies `n` numbers, and where there is room a whole vector: what lies behind the first `n` at `to` is written to later.
/// (A store of a part of a vector takes some dozen cycles on CPUs without AVX-512.)
///
/// # Safety
/// `n` is at most a vector, and both have so many numbers.
#[inline(always)]
unsafe fn copy_ahead<E: Element, S: Simd<E>>(s: S, from: &[E], n: usize, to: &mut [E]) {
    let whole = from.len().min(to.len()) >= S::LANES;
    let n = if whole { S::LANES } else { n };
    // SAFETY: the caller's promise, or both have a vector.
    unsafe { copy(s, &from[..n], &mut to[..n]) };
}

/// Copies at most a vector of numbers.
///
/// # Safety
/// `to` is as long as `from` at least, and `from` at most a vector long.
#[inline(always)]
unsafe fn copy<E: Element, S: Simd<E>>(s: S, from: &[E], to: &mut [E]) {
    let n = from.len();
    // SAFETY: the caller's promise.
    unsafe { s.store_part(to.as_mut_ptr(), s.load_part(from.as_ptr(), n), n) };
}

/// Adds a tile of products to `M` rows of `valid` numbers at `out`, `stride` apart.
///
/// # Safety
/// As [`tile_across`] with panels of `NV` vectors; the numbers at `out` can be read and written.
#[inline(always)]
unsafe fn add_tile<E: Element, S: Simd<E>, const M: usize, const NV: usize>(
    s: S,
    k: usize,
    strip: *const E,
    panel: *const E,
    out: *mut E,
    stride: usize,
    valid: usize,
) {
    for i in 0..M {
        s.prefetch(out.wrapping_add(i * stride).cast());
        s.prefetch(out.wrapping_add(i * stride + S::LANES).cast());
    }
    // SAFETY: the caller's promise.
    unsafe {
        let acc = tile_across::<E, S, M, NV>(s, k, strip, M, panel, NV * S::LANES);
        for (i, line) in acc.iter().enumerate() {
            for (j, v) in line.iter().enumerate() {
                if j * S::LANES >= valid {
                    break;
                }
                let n = S::LANES.min(valid - j * S::LANES);
                let p = out.add(i * stride + j * S::LANES);
                s.store_part(p, s.add(s.load_part(p, n), *v), n);
            }
        }
    }
}

struct ColumnSums<'a, E> {
    x: &'a [E],
    stride: usize,
    rows: usize,
    out: &'a mut [E],
}

impl<E: Element> Kernel<E> for ColumnSums<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let columns = self.out.len();
        for at in (0..columns).step_by(S::LANES) {
            let n = S::LANES.min(columns - at);
            let mut sum = s.splat(E::zero());
            for row in 0..self.rows {
                let line = &self.x[row * self.stride + at..][..n];
                // SAFETY: `line` holds `n` numbers.
                sum = s.add(sum, unsafe { s.load_part(line.as_ptr(), n) });
            }
            // SAFETY: `n` numbers from `at` on exist in `out`.
            unsafe {
                let p = self.out.as_mut_ptr().add(at);
                s.store_part(p, s.add(s.load_part(p, n), sum), n);
            }
        }
    }
}

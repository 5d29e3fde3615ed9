//! The matrix product for at most a tile of rows: decoding, and the few rows whose logits are wanted.
//!
//! Here every weight is used once or twice, so the time goes into reading it. Columns of the weight are
//! read to the end of k, as they lie in memory. Weights stored `[k, n]` go straight to the registers,
//! several vectors at a time; others pass through a small panel, so that packing overlaps with the
//! multiplications. The order of arithmetic is that of [`super::matmul`].

use super::gemm::{tile_onto, tile_stored};
use super::matmul::{Block, KC, Panel};
use super::simd::{CpuElement, Kernel, Simd};
use super::weight::{Pack, Weight};
use crate::backend::Layout;
use crate::element::Dtype;

/// Rows of k that are packed at once.
const STRIP: usize = 32;

/// A task of exactly `M` rows, at most [`Simd::TILE_ROWS`].
pub(super) struct Few<'a, E, const M: usize>(pub Block<'a, E>);

impl<E: CpuElement, const M: usize> Kernel<E> for Few<'_, E, M> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        // As many vectors of columns as the registers of a tile hold; enough of packed ones to keep
        // the multipliers busy, each number being one chain.
        match S::TILE_ROWS * S::TILE_VECTORS / M {
            8.. => self.columns::<S, 8, 4>(s),
            4.. => self.columns::<S, 4, 2>(s),
            2.. if S::TILE_VECTORS == 2 => self.columns::<S, 2, 2>(s),
            2.. => self.columns::<S, 2, 1>(s),
            _ => self.columns::<S, 1, 1>(s),
        }
    }
}

impl<E: CpuElement, const M: usize> Few<'_, E, M> {
    /// All columns: `WIDE` vectors at a time where weights go straight to the registers, else `PACKED`.
    #[inline(always)]
    fn columns<S: Simd<E>, const WIDE: usize, const PACKED: usize>(mut self, s: S) {
        let (panel, sums) = std::mem::take(&mut self.0.scratch).split_at_mut(STRIP * PACKED * S::LANES);
        let block = &self.0;
        let k = block.weight.k;
        let blocks = k.div_ceil(KC).max(1);
        let mut column = block.columns.start;
        while column < block.columns.end {
            let left = block.columns.end - column;
            let direct = block.weight.layout == Layout::InOut && left >= WIDE * S::LANES;
            let width = S::LANES * if direct { WIDE } else { PACKED };
            let mut part = Panel {
                start: panel.as_ptr(),
                k: 0,
                width,
                from: 0,
                column,
                valid: left.min(width),
                sums: sums.as_mut_ptr(),
                first: true,
                last: false,
                next: None,
            };
            for i in 0..blocks {
                part.from = i * KC;
                part.k = KC.min(k - part.from);
                part.first = i == 0;
                part.last = i + 1 == blocks;
                // SAFETY: these rows of k and columns exist; the panel and the sums hold
                // `STRIP * width` and `M * width` numbers; `M` is the number of rows.
                unsafe {
                    if direct {
                        block.finish(s, self.direct::<S, WIDE>(s, &part), &part, 0);
                    } else {
                        block.finish(s, self.packed::<S, PACKED>(s, &part, panel), &part, 0);
                    }
                }
            }
            block.activate_panel(&part);
            column += part.valid;
        }
    }

    /// The tile of `part` on weights stored `[k, n]`.
    ///
    /// # Safety
    /// The rows of k and `NV` vectors of columns of `part` exist; `M` is the number of rows.
    #[inline(always)]
    unsafe fn direct<S: Simd<E>, const NV: usize>(&self, s: S, part: &Panel<E>) -> [[S::V; NV]; M] {
        let (Weight { start, dtype, row_bytes, .. }, stride) = (self.0.weight, self.0.x_stride);
        // SAFETY: the caller's promise; each arm has a constant dtype.
        unsafe {
            let a = self.0.x.as_ptr().add(part.from);
            let b = start.add(part.from * row_bytes + part.column * dtype.size());
            match dtype {
                Dtype::F32 => tile_stored(s, part.k, a, stride, Dtype::F32, b, row_bytes),
                Dtype::F16 => tile_stored(s, part.k, a, stride, Dtype::F16, b, row_bytes),
                Dtype::Bf16 => tile_stored(s, part.k, a, stride, Dtype::Bf16, b, row_bytes),
            }
        }
    }

    /// The tile of `part`, packed [`STRIP`] rows of k at a time.
    ///
    /// # Safety
    /// The rows of k and the columns of `part` exist; `panel` takes `STRIP * NV` vectors, and `NV`
    /// vectors are the width of `part`; `M` is the number of rows.
    #[inline(always)]
    unsafe fn packed<S: Simd<E>, const NV: usize>(
        &self,
        s: S,
        part: &Panel<E>,
        panel: &mut [E],
    ) -> [[S::V; NV]; M] {
        let Block { weight, isa, x_stride, .. } = self.0;
        let width = NV * S::LANES;
        let mut acc = [[s.splat(E::zero()); NV]; M];
        for at in (0..part.k).step_by(STRIP) {
            // The last strip begins early rather than being short: short ones pack slowly.
            let packed = at.min(part.k.saturating_sub(STRIP));
            let (rows, skip) = (STRIP.min(part.k - packed), at - packed);
            // SAFETY: the caller's promise; the strip ends with the block.
            unsafe {
                let from = part.from + packed;
                let to = panel.as_mut_ptr();
                let rows_of_k = from..from + rows;
                let (column, valid) = (part.column, part.valid);
                E::dispatch(isa, Pack::new(weight, rows_of_k, column, valid, to, width, true));
                let a = self.0.x.as_ptr().add(from + skip);
                tile_onto(s, &mut acc, rows - skip, a, x_stride, panel.as_ptr().add(skip * width), width);
            }
        }
        acc
    }
}

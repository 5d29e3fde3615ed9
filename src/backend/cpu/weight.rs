//! Weights as they are stored, and their way into a panel of the first-level cache.

use super::Matrix;
use super::simd::{Kernel, Simd, load_one};
use crate::backend::Layout;
use crate::element::{Dtype, Element};

/// A stored weight, `[k, n]` or `[n, k]`.
#[derive(Clone, Copy)]
pub(super) struct Weight {
    /// Column 0 (of the columns in use).
    pub start: *const u8,
    pub dtype: Dtype,
    pub layout: Layout,
    pub k: usize,
    /// Bytes from a row of the stored tensor to the next.
    pub row_bytes: usize,
}

// SAFETY: it is only read through, like the `&Matrix` that it is made of and that outlives the operation.
unsafe impl Send for Weight {}
// SAFETY: as above.
unsafe impl Sync for Weight {}

impl Weight {
    /// The columns of `matrix` from `first` on.
    pub fn new(matrix: &Matrix, first: usize) -> Self {
        let dtype = matrix.dtype();
        let (row, column) = match matrix.layout() {
            Layout::OutIn => (matrix.inputs(), matrix.inputs()),
            Layout::InOut => (matrix.outputs(), 1),
        };
        let start = matrix.bytes().as_ptr().wrapping_add(first * column * dtype.size());
        let (k, row_bytes) = (matrix.inputs(), row * dtype.size());
        Weight { start, dtype, layout: matrix.layout(), k, row_bytes }
    }

    /// The transpose of the columns `outputs` of `matrix`: k is their number.
    pub fn transposed(matrix: &Matrix, outputs: std::ops::Range<usize>) -> Self {
        let Weight { start, dtype, layout, row_bytes, .. } = Self::new(matrix, outputs.start);
        let layout = match layout {
            Layout::OutIn => Layout::InOut,
            Layout::InOut => Layout::OutIn,
        };
        Weight { start, dtype, layout, k: outputs.len(), row_bytes }
    }
}

/// Where some rows of k of some columns lie: runs of `bytes` bytes, `row_bytes` apart.
#[derive(Clone, Copy)]
pub(super) struct Region {
    start: *const u8,
    runs: usize,
    bytes: usize,
    row_bytes: usize,
}

impl Region {
    /// Rows `from .. from + k` of columns `column .. column + width`, which need not exist.
    #[inline(always)]
    pub fn new(weight: Weight, from: usize, k: usize, column: usize, width: usize) -> Self {
        let size = weight.dtype.size();
        let (run, at, runs, length) = match weight.layout {
            Layout::OutIn => (column, from, width, k),
            Layout::InOut => (from, column, k, width),
        };
        let start = weight.start.wrapping_add(run * weight.row_bytes + at * size);
        Region { start, runs, bytes: length * size, row_bytes: weight.row_bytes }
    }

    /// Asks for part `i` of `parts` of it.
    #[inline(always)]
    pub fn prefetch<E, S: Simd<E>>(self, s: S, i: usize, parts: usize) {
        for run in i * self.runs / parts..(i + 1) * self.runs / parts {
            for at in (0..self.bytes).step_by(64) {
                s.prefetch(self.start.wrapping_add(run * self.row_bytes + at));
            }
        }
    }
}

/// Widens rows `from .. from + k` of columns `column .. column + valid` into `panel`, `[k, width]` with
/// `width` columns in vectors; columns from `valid` on hold anything.
pub(super) struct Pack<E> {
    weight: Weight,
    from: usize,
    k: usize,
    column: usize,
    valid: usize,
    panel: *mut E,
    width: usize,
    ahead: bool,
}

impl<E> Pack<E> {
    /// With `ahead` the columns behind are asked for, line by line, while these are packed.
    ///
    /// # Safety
    /// The rows and columns of the weight exist, and `panel` takes `k * width` numbers; `valid` is
    /// in `1..=width`. All of it still holds when the kernel runs.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn new(
        weight: Weight,
        rows: std::ops::Range<usize>,
        column: usize,
        valid: usize,
        panel: *mut E,
        width: usize,
        ahead: bool,
    ) -> Self {
        Pack { weight, from: rows.start, k: rows.len(), column, valid, panel, width, ahead }
    }
}

impl<E: Element> Kernel<E> for Pack<E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let Weight { start, dtype, layout, row_bytes, .. } = self.weight;
        let Pack { from, k, column, valid, panel, width, ahead, .. } = self;
        let size = dtype.size();
        for at in (0..valid).step_by(S::LANES) {
            let lanes = S::LANES.min(valid - at);
            // SAFETY: rows `from .. from + k` and columns `column + at ..` plus `lanes` exist, so
            // their bytes do (`new`); vector `at / LANES` lies within the panel's width.
            unsafe {
                match layout {
                    Layout::OutIn => {
                        let src = start.add((column + at) * row_bytes + from * size);
                        let next = if ahead { width * row_bytes } else { 0 };
                        s.pack_rows(dtype, src, row_bytes, lanes, k, panel.add(at), width, next);
                    }
                    Layout::InOut => {
                        let mut src = start.add(from * row_bytes + (column + at) * size);
                        let mut dst = panel.add(at);
                        for _ in 0..k {
                            if ahead {
                                s.prefetch(src.wrapping_add(width * size));
                            }
                            if lanes == S::LANES {
                                s.store(dst, s.load_stored(dtype, src));
                            } else {
                                for lane in 0..lanes {
                                    *dst.add(lane) = load_one(dtype, src.add(lane * size));
                                }
                            }
                            src = src.wrapping_add(row_bytes);
                            dst = dst.wrapping_add(width);
                        }
                    }
                }
            }
        }
    }
}

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

impl Weight {
    /// The columns of `matrix` from `first` on.
    pub fn new(matrix: &Matrix, first: usize) -> Self {
        let dtype = matrix.tensor().dtype();
        let (row, column) = match matrix.layout() {
            Layout::OutIn => (matrix.inputs(), matrix.inputs()),
            Layout::InOut => (matrix.outputs(), 1),
        };
        let start = matrix.tensor().bytes().as_ptr().wrapping_add(first * column * dtype.size());
        let (k, row_bytes) = (matrix.inputs(), row * dtype.size());
        Weight { start, dtype, layout: matrix.layout(), k, row_bytes }
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
}

impl<E> Pack<E> {
    /// # Safety
    /// The rows and columns of the weight exist, and `panel` takes `k * width` numbers; `valid` is
    /// in `1..=width`. All of it still holds when the kernel runs.
    pub unsafe fn new(
        weight: Weight,
        rows: std::ops::Range<usize>,
        column: usize,
        valid: usize,
        panel: *mut E,
        width: usize,
    ) -> Self {
        Pack { weight, from: rows.start, k: rows.len(), column, valid, panel, width }
    }
}

impl<E: Element> Kernel<E> for Pack<E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let Weight { start, dtype, layout, row_bytes, .. } = self.weight;
        let Pack { from, k, column, valid, panel, width, .. } = self;
        let size = dtype.size();
        for at in (0..valid).step_by(S::LANES) {
            let lanes = S::LANES.min(valid - at);
            // SAFETY: rows `from .. from + k` and columns `column + at ..` plus `lanes` exist, so
            // their bytes do (`new`); vector `at / LANES` lies within the panel's width.
            unsafe {
                match layout {
                    Layout::OutIn => {
                        let src = start.add((column + at) * row_bytes + from * size);
                        let next = width * row_bytes;
                        s.pack_rows(dtype, src, row_bytes, lanes, k, panel.add(at), width, next);
                    }
                    Layout::InOut => {
                        let mut src = start.add(from * row_bytes + (column + at) * size);
                        let mut dst = panel.add(at);
                        for _ in 0..k {
                            s.prefetch(src.wrapping_add(width * size));
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

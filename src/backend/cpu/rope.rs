//! Rotary position embedding (Su et al., "RoFormer", 2021), in the half-split layout of Hugging Face.
//!
//! Contract: pair `(i, i + D/2)` of each head of row t turns, in place, by the angle whose cosine is
//! `table[p[t], i]` and whose sine is `table[p[t], D/2 + i]`; `table` `[P, D]`. The gradient turns back, by the negative angle.

use super::buffer::Shared;
use super::check;
use super::simd::{CpuElement, Kernel, Simd};
use super::{Buffer, Cpu};
use crate::backend::Rows;
use crate::element::Element;
use crate::error::{Error, Result};

impl<E: CpuElement> Cpu<E> {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn rope_impl(
        &self,
        x: &mut Buffer<E>,
        at: Rows,
        rows: usize,
        heads: usize,
        head_dim: usize,
        positions: &Buffer<u32>,
        table: &Buffer<E>,
    ) -> Result<()> {
        self.turn("rope", x, at, rows, heads, head_dim, positions, table, false)
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn rope_backward_impl(
        &self,
        dx: &mut Buffer<E>,
        at: Rows,
        rows: usize,
        heads: usize,
        head_dim: usize,
        positions: &Buffer<u32>,
        table: &Buffer<E>,
    ) -> Result<()> {
        self.turn("rope_backward", dx, at, rows, heads, head_dim, positions, table, true)
    }

    #[allow(clippy::too_many_arguments)]
    fn turn(
        &self,
        op: &'static str,
        x: &mut Buffer<E>,
        at: Rows,
        rows: usize,
        heads: usize,
        head_dim: usize,
        positions: &Buffer<u32>,
        table: &Buffer<E>,
        back: bool,
    ) -> Result<()> {
        if !head_dim.is_multiple_of(2) {
            let what = "head width, which must be even";
            return Err(Error::Shape { op, what, expected: head_dim + 1, got: head_dim });
        }
        let width = check::product(op, "heads", heads, head_dim)?;
        check::placed(op, "x", at, rows, width, x.len(), true)?;
        if width == 0 {
            return Ok(());
        }
        let limit = table.len() / head_dim;
        let positions = check::indices(op, "position", positions.as_slice(), rows, limit)?;
        let shared = Shared::new(x.as_mut_slice());
        self.for_row_blocks(rows, width, |first, end| {
            for (t, &position) in (first..end).zip(&positions[first..end]) {
                // SAFETY: row t is this task's alone; `placed` checked that it lies in `x`.
                let row = unsafe { shared.part(at.at + t * at.stride, width) };
                let angles = &table.as_slice()[position as usize * head_dim..][..head_dim];
                self.dispatch(Rope { row, angles, back });
            }
        });
        Ok(())
    }
}

struct Rope<'a, E> {
    row: &'a mut [E],
    /// Cosines, then sines.
    angles: &'a [E],
    /// By the negative angle.
    back: bool,
}

impl<E: Element> Kernel<E> for Rope<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let half = self.angles.len() / 2;
        let (cosines, sines) = self.angles.split_at(half);
        for head in self.row.chunks_exact_mut(2 * half) {
            let (a, b) = head.split_at_mut(half);
            for i in (0..half).step_by(S::LANES) {
                let n = S::LANES.min(half - i);
                // SAFETY: the four slices hold `half` numbers each, of which `i .. i + n` exist.
                unsafe {
                    let (cos, sin) =
                        (s.load_part(cosines.as_ptr().add(i), n), s.load_part(sines.as_ptr().add(i), n));
                    let sin = if self.back { s.sub(s.splat(E::zero()), sin) } else { sin };
                    let (x, y) = (s.load_part(a.as_ptr().add(i), n), s.load_part(b.as_ptr().add(i), n));
                    s.store_part(a.as_mut_ptr().add(i), s.sub(s.mul(x, cos), s.mul(y, sin)), n);
                    s.store_part(b.as_mut_ptr().add(i), s.fma(y, cos, s.mul(x, sin)), n);
                }
            }
        }
    }
}

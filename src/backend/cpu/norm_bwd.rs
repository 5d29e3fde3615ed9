//! The gradients of LayerNorm and RMSNorm.
//!
//! Contract: with `n = (x - mean) r` (RMSNorm: `x r`), `r` the inverse deviation, and `g = dy w`:
//! `dx += r (g - mean(g) - n mean(g n))` (RMSNorm: without `mean(g)`), `dweight += sum_t dy n`, `dbias += sum_t dy`.
//! Mean and deviation come from the forward's own sums. Sums over a row are taken in four vectors of partial sums, four
//! vectors of a row at a time, then as a balanced tree; sums over rows in their order, from zero, for each column.

use super::buffer::Shared;
use super::check;
use super::norm::{Term, total};
use super::simd::{CpuElement, Kernel, Simd};
use super::{Buffer, Cpu};
use crate::config::NormKind;
use crate::element::Element;
use crate::error::Result;

impl<E: CpuElement> Cpu<E> {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn norm_backward_impl(
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
    ) -> Result<()> {
        const OP: &str = "norm_backward";
        let size = check::product(OP, "x", rows, width)?;
        check::at_least(OP, "x", size, x.len())?;
        check::at_least(OP, "dy", size, dy.len())?;
        check::at_least(OP, "dx", size, dx.len())?;
        check::equal(OP, "weight", width, weight.len())?;
        for (what, buffer) in [("dweight", &dweight), ("dbias", &dbias)] {
            if let Some(buffer) = buffer {
                check::equal(OP, what, width, buffer.len())?;
            }
        }
        if size == 0 {
            return Ok(());
        }
        let (x, dy) = (x.as_slice(), dy.as_slice());
        // Mean and inverse deviation of each row.
        let mut moments = vec![E::zero(); 2 * rows];
        {
            let (shared, kept) = (Shared::new(dx.as_mut_slice()), Shared::new(&mut moments));
            self.for_row_blocks(rows, 4 * width, |first, end| {
                self.dispatch(RowsBackward {
                    kind,
                    x: &x[first * width..end * width],
                    weight: weight.as_slice(),
                    dy: &dy[first * width..end * width],
                    eps,
                    width,
                    // SAFETY: rows `first .. end` are this task's alone, and exist.
                    dx: unsafe { shared.part(first * width, (end - first) * width) },
                    // SAFETY: as above.
                    moments: unsafe { kept.part(2 * first, 2 * (end - first)) },
                });
            });
        }
        if let Some(dbias) = dbias {
            self.column_sums(dy, width, rows, width, dbias.as_mut_slice());
        }
        if let Some(dweight) = dweight {
            let shared = Shared::new(dweight.as_mut_slice());
            self.for_column_blocks(rows, width, |from, to| {
                // SAFETY: columns `from .. to` are this task's alone, and exist.
                let out = unsafe { shared.part(from, to - from) };
                self.dispatch(Columns {
                    x: &x[from..],
                    dy: &dy[from..],
                    moments: &moments,
                    stride: width,
                    out,
                });
            });
        }
        Ok(())
    }
}

struct RowsBackward<'a, E> {
    kind: NormKind,
    x: &'a [E],
    weight: &'a [E],
    dy: &'a [E],
    eps: f64,
    width: usize,
    dx: &'a mut [E],
    moments: &'a mut [E],
}

impl<E: Element> Kernel<E> for RowsBackward<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let width = self.width;
        let count = E::from_f64(width as f64);
        let weight = self.weight.as_ptr();
        let rows = self.x.chunks_exact(width).zip(self.dy.chunks_exact(width));
        let out = self.dx.chunks_exact_mut(width).zip(self.moments.chunks_exact_mut(2));
        for ((x, dy), (dx, moments)) in rows.zip(out) {
            let mean = match self.kind {
                NormKind::LayerNorm => total(s, x, Term::Value) / count,
                NormKind::RmsNorm => E::zero(),
            };
            let variance = total(s, x, Term::Deviation(s.splat(mean))) / count;
            let scale = E::one() / (variance + E::from_f64(self.eps)).sqrt();
            moments.copy_from_slice(&[mean, scale]);
            let (mean, scale) = (s.splat(mean), s.splat(scale));
            // Of g, and of g n.
            let mut sums = [[s.splat(E::zero()); 4]; 2];
            for (i, at) in (0..width).step_by(S::LANES).enumerate() {
                let n = S::LANES.min(width - at);
                // SAFETY: `n` numbers from `at` on exist in each. Beyond them `g` is 0.
                unsafe {
                    let g = s.mul(s.load_part(dy.as_ptr().add(at), n), s.load_part(weight.add(at), n));
                    let normed = s.mul(s.sub(s.load_part(x.as_ptr().add(at), n), mean), scale);
                    sums[0][i % 4] = s.add(sums[0][i % 4], g);
                    sums[1][i % 4] = s.fma(g, normed, sums[1][i % 4]);
                }
            }
            // No closure: it would be compiled without the instructions.
            let [a, b] = sums;
            let all = s.sum(s.add(s.add(a[0], a[1]), s.add(a[2], a[3]))) / count;
            let along = s.sum(s.add(s.add(b[0], b[1]), s.add(b[2], b[3]))) / count;
            let all = match self.kind {
                NormKind::LayerNorm => s.splat(all),
                NormKind::RmsNorm => s.splat(E::zero()),
            };
            let along = s.splat(along);
            for at in (0..width).step_by(S::LANES) {
                let n = S::LANES.min(width - at);
                // SAFETY: as above, `dx` too.
                unsafe {
                    let g = s.mul(s.load_part(dy.as_ptr().add(at), n), s.load_part(weight.add(at), n));
                    let normed = s.mul(s.sub(s.load_part(x.as_ptr().add(at), n), mean), scale);
                    let v = s.sub(s.sub(g, all), s.mul(normed, along));
                    let to = dx.as_mut_ptr().add(at);
                    s.store_part(to, s.fma(v, scale, s.load_part(to, n)), n);
                }
            }
        }
    }
}

/// The gradient of the weight in some columns.
struct Columns<'a, E> {
    /// From the first of the columns on.
    x: &'a [E],
    dy: &'a [E],
    moments: &'a [E],
    stride: usize,
    out: &'a mut [E],
}

impl<E: Element> Kernel<E> for Columns<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let columns = self.out.len();
        for at in (0..columns).step_by(S::LANES) {
            let n = S::LANES.min(columns - at);
            let mut sum = s.splat(E::zero());
            for (row, moments) in self.moments.chunks_exact(2).enumerate() {
                let from = row * self.stride + at;
                let (x, dy) = (&self.x[from..][..n], &self.dy[from..][..n]);
                // SAFETY: both hold `n` numbers.
                unsafe {
                    let centred = s.sub(s.load_part(x.as_ptr(), n), s.splat(moments[0]));
                    let normed = s.mul(centred, s.splat(moments[1]));
                    sum = s.fma(s.load_part(dy.as_ptr(), n), normed, sum);
                }
            }
            // SAFETY: `n` numbers from `at` on exist in `out`.
            unsafe {
                let to = self.out.as_mut_ptr().add(at);
                s.store_part(to, s.add(s.load_part(to, n), sum), n);
            }
        }
    }
}

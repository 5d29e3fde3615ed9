//! LayerNorm and RMSNorm of rows.
//!
//! Contract: `x`, `out` `[rows, width]` dense; `weight`, `bias` `[width]`. LayerNorm reads a row three
//! times (mean, then the variance around it, then the result), so that nothing cancels. A sum is
//! taken in four vectors of partial sums, four vectors of a row at a time, then as a balanced tree:
//! the order depends on the width alone.

use super::buffer::Shared;
use super::check;
use super::simd::{CpuElement, Kernel, Simd};
use super::{Buffer, Cpu};
use crate::config::NormKind;
use crate::element::Element;
use crate::error::Result;

impl<E: CpuElement> Cpu<E> {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn norm_impl(
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
        const OP: &str = "norm";
        let total = check::product(OP, "x", rows, width)?;
        check::at_least(OP, "x", total, x.len())?;
        check::at_least(OP, "out", total, out.len())?;
        check::equal(OP, "weight", width, weight.len())?;
        if let Some(bias) = bias {
            check::equal(OP, "bias", width, bias.len())?;
        }
        let shared = Shared::new(out.as_mut_slice());
        self.for_row_blocks(rows, width, |first, end| {
            // SAFETY: rows `first .. end` of `out` are this task's alone, and lie in it.
            let out = unsafe { shared.part(first * width, (end - first) * width) };
            self.dispatch(Norm {
                kind,
                x: &x.as_slice()[first * width..end * width],
                weight: weight.as_slice(),
                bias: bias.map(|b| b.as_slice()),
                eps,
                width,
                out,
            });
        });
        Ok(())
    }
}

struct Norm<'a, E> {
    kind: NormKind,
    x: &'a [E],
    weight: &'a [E],
    bias: Option<&'a [E]>,
    eps: f64,
    width: usize,
    out: &'a mut [E],
}

/// What is summed over a row.
#[derive(Clone, Copy)]
enum Term<V> {
    /// x
    Value,
    /// (x - mean)^2
    Deviation(V),
}

/// Sum of a term over a row, in a fixed order.
#[inline(always)]
fn total<E: Element, S: Simd<E>>(s: S, row: &[E], term: Term<S::V>) -> E {
    let zero = s.splat(E::zero());
    let mut sums = [zero; 4];
    for chunk in row.chunks(4 * S::LANES) {
        for (part, sum) in chunk.chunks(S::LANES).zip(&mut sums) {
            let n = part.len();
            // SAFETY: `part` holds `n <= LANES` numbers, and exactly LANES where a whole vector
            // is read.
            let v =
                unsafe { if n == S::LANES { s.load(part.as_ptr()) } else { s.load_part(part.as_ptr(), n) } };
            *sum = match term {
                Term::Value => s.add(*sum, v),
                Term::Deviation(mean) => {
                    let mut d = s.sub(v, mean);
                    if n < S::LANES {
                        d = s.select((1u32 << n) - 1, d, zero);
                    }
                    s.fma(d, d, *sum)
                }
            };
        }
    }
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}

impl<E: Element> Kernel<E> for Norm<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        if self.width == 0 {
            return;
        }
        let zero = s.splat(E::zero());
        let count = E::from_f64(self.width as f64);
        for (row, out) in self.x.chunks_exact(self.width).zip(self.out.chunks_exact_mut(self.width)) {
            let mean = match self.kind {
                NormKind::LayerNorm => s.splat(total(s, row, Term::Value) / count),
                NormKind::RmsNorm => zero,
            };
            let variance = total(s, row, Term::Deviation(mean)) / count;
            let scale = s.splat(E::one() / (variance + E::from_f64(self.eps)).sqrt());
            for at in (0..self.width).step_by(S::LANES) {
                let n = S::LANES.min(self.width - at);
                // SAFETY: `n` numbers from `at` on exist in the row, `weight`, `bias` and `out`,
                // each of `width` numbers.
                unsafe {
                    let v = s.mul(s.sub(s.load_part(row.as_ptr().add(at), n), mean), scale);
                    let w = s.load_part(self.weight.as_ptr().add(at), n);
                    let v = match self.bias {
                        Some(bias) => s.fma(v, w, s.load_part(bias.as_ptr().add(at), n)),
                        None => s.mul(v, w),
                    };
                    s.store_part(out.as_mut_ptr().add(at), v, n);
                }
            }
        }
    }
}

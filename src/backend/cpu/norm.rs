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
pub(super) enum Term<V> {
    /// x
    Value,
    /// (x - mean)^2
    Deviation(V),
}

impl<V: Copy> Term<V> {
    /// Adds the term of `v` to `sum`; of the first `n` lanes, where a row ends within the vector.
    #[inline(always)]
    fn add<E: Element, S: Simd<E, V = V>>(self, s: S, sum: V, v: V, n: usize) -> V {
        match self {
            Term::Value => s.add(sum, v),
            Term::Deviation(mean) => {
                let d = s.sub(v, mean);
                let d = if n < S::LANES { s.select((1 << n) - 1, d, s.splat(E::zero())) } else { d };
                s.fma(d, d, sum)
            }
        }
    }
}

/// Sum of a term over a row, in a fixed order.
#[inline(always)]
pub(super) fn total<E: Element, S: Simd<E>>(s: S, row: &[E], term: Term<S::V>) -> E {
    let mut sums = [s.splat(E::zero()); 4];
    let mut chunks = row.chunks_exact(4 * S::LANES);
    for chunk in &mut chunks {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: a chunk holds four vectors.
            let v = unsafe { s.load(chunk.as_ptr().add(i * S::LANES)) };
            *sum = term.add(s, *sum, v, S::LANES);
        }
    }
    for (part, sum) in chunks.remainder().chunks(S::LANES).zip(&mut sums) {
        // SAFETY: `part` holds `part.len() <= LANES` numbers.
        let v = unsafe { s.load_part(part.as_ptr(), part.len()) };
        *sum = term.add(s, *sum, v, part.len());
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

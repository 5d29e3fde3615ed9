//! Cross-entropy of rows of logits, and its gradient in their place.
//!
//! Contract: with `u` the negative log-likelihood of the target, row r becomes
//! `weights[r] token'(u) (softmax(logits[r]) - onehot)` and `nll[r] = u`. Order of arithmetic: that of
//! [`super::head`] for `u`; then each number is `exp(x - maximum)` times one factor. A row is read twice and written
//! once.

use std::ops::Range;

use super::buffer::Shared;
use super::check;
use super::head::LogSum;
use super::simd::{CpuElement, Kernel, Simd};
use super::{Buffer, Cpu};
use crate::backend::{Rows, TokenWeight};
use crate::element::Element;
use crate::error::{Error, Result};

impl<E: CpuElement> Cpu<E> {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn cross_entropy_backward_impl(
        &self,
        (logits, at): (&mut Buffer<E>, Rows),
        vocab: usize,
        rows: Range<usize>,
        targets: &Buffer<u32>,
        weights: &Buffer<f32>,
        token: TokenWeight,
        nll: &mut Buffer<f32>,
    ) -> Result<()> {
        const OP: &str = "cross_entropy_backward";
        if rows.start > rows.end {
            let (expected, got) = (rows.start, rows.end);
            return Err(Error::Shape { op: OP, what: "end of the rows", expected, got });
        }
        let count = rows.len();
        let Rows { at, stride } = at;
        if stride < vocab {
            return Err(Error::Shape { op: OP, what: "stride of the logits", expected: vocab, got: stride });
        }
        let end = check::product(OP, "logits", count, stride)?.saturating_add(at);
        check::at_least(OP, "logits", end, logits.len())?;
        check::at_least(OP, "weights", rows.end, weights.len())?;
        check::at_least(OP, "nll", rows.end, nll.len())?;
        let targets = check::indices(OP, "target", targets.as_slice(), rows.end, vocab)?;
        let (targets, weights) = (&targets[rows.clone()], &weights.as_slice()[rows.clone()]);
        let shared = Shared::new(logits.as_mut_slice());
        let losses = Shared::new(&mut nll.as_mut_slice()[rows]);
        self.for_row_blocks(count, vocab, |first, end| {
            for r in first..end {
                // SAFETY: row r is this task's alone, and exists; so does number r.
                let (row, loss) = unsafe { (shared.part(at + r * stride, stride), losses.part(r, 1)) };
                let (row, between) = row.split_at_mut(vocab);
                between.fill(E::from_f64(0.0));
                let target = targets[r] as usize;
                let (max, sum) = self.dispatch(LogSum { row: &*row });
                let u = sum.to_f64().ln() + (max.to_f64() - row[target].to_f64());
                loss.fill(u as f32);
                let factor = f64::from(weights[r]) * token.slope(u);
                let share = E::from_f64(factor / sum.to_f64());
                self.dispatch(Exponentials { row: &mut *row, max, share });
                row[target] = row[target] - E::from_f64(factor);
            }
        });
        Ok(())
    }
}

/// `row[i] = share exp(row[i] - max)`.
struct Exponentials<'a, E> {
    row: &'a mut [E],
    max: E,
    share: E,
}

impl<E: Element> Kernel<E> for Exponentials<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let (p, len) = (self.row.as_mut_ptr(), self.row.len());
        let (max, share) = (s.splat(self.max), s.splat(self.share));
        for i in (0..len).step_by(S::LANES) {
            let n = S::LANES.min(len - i);
            // SAFETY: `n` numbers from `i` on exist.
            unsafe {
                let v = s.exp(s.sub(s.load_part(p.add(i), n), max));
                s.store_part(p.add(i), s.mul(v, share), n);
            }
        }
    }
}

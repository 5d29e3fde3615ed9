//! Cross-entropy of rows of logits.
//!
//! Contract: `logits` `[rows, vocab]` dense; `out[r]` is `ln sum_j exp(logits[r, j]) - logits[r, target]`
//! in nats. The maximum is subtracted first; the sum is taken in four vectors of partial sums, then in
//! f64 as the logarithm. A row with a NaN gives NaN.

use super::buffer::Shared;
use super::check;
use super::simd::{CpuElement, Kernel, Simd};
use super::{Buffer, Cpu};
use crate::element::Element;
use crate::error::{Error, Result};

impl<E: CpuElement> Cpu<E> {
    pub(super) fn cross_entropy_impl(
        &self,
        logits: &Buffer<E>,
        vocab: usize,
        targets: &[u32],
        out: &mut [f64],
    ) -> Result<()> {
        const OP: &str = "cross_entropy";
        let rows = targets.len();
        check::equal(OP, "out", rows, out.len())?;
        check::at_least(OP, "logits", check::product(OP, "logits", rows, vocab)?, logits.len())?;
        if let Some(target) = targets.iter().find(|&&t| t as usize >= vocab) {
            return Err(Error::Request(format!(
                "{OP}: target: expected a token id below {vocab}, got {target}"
            )));
        }
        let shared = Shared::new(out);
        self.for_row_blocks(rows, vocab, |first, end| {
            for r in first..end {
                let row = &logits.as_slice()[r * vocab..][..vocab];
                let (max, sum) = self.dispatch(LogSum { row });
                let target = row[targets[r] as usize].to_f64();
                // SAFETY: number r is this task's alone.
                let nll = unsafe { shared.part(r, 1) };
                nll.fill(sum.to_f64().ln() + (max.to_f64() - target));
            }
        });
        Ok(())
    }
}

/// Maximum of a row, and the sum of `exp(x - maximum)`.
pub(super) struct LogSum<'a, E> {
    pub row: &'a [E],
}

impl<E: Element> Kernel<E> for LogSum<'_, E> {
    type Out = (E, E);

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) -> (E, E) {
        let lowest = s.splat(E::neg_infinity());
        let mut highest = [lowest; 4];
        for chunk in self.row.chunks(4 * S::LANES) {
            for (part, max) in chunk.chunks(S::LANES).zip(&mut highest) {
                *max = s.max(load_or(s, part, lowest), *max);
            }
        }
        let max = s.maximum(s.max(s.max(highest[0], highest[1]), s.max(highest[2], highest[3])));
        let mut sums = [s.splat(E::zero()); 4];
        for chunk in self.row.chunks(4 * S::LANES) {
            for (part, sum) in chunk.chunks(S::LANES).zip(&mut sums) {
                let v = s.sub(load_or(s, part, lowest), s.splat(max));
                *sum = s.add(*sum, s.exp(v));
            }
        }
        (max, s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]))))
    }
}

/// The numbers of `part`, at most a vector of them; `rest` in the lanes beyond.
#[inline(always)]
fn load_or<E: Element, S: Simd<E>>(s: S, part: &[E], rest: S::V) -> S::V {
    let n = part.len().min(S::LANES);
    // SAFETY: `part` holds at least `n` numbers, and LANES where a whole vector is read.
    unsafe {
        if n == S::LANES {
            s.load(part.as_ptr())
        } else {
            s.select((1u32 << n) - 1, s.load_part(part.as_ptr(), n), rest)
        }
    }
}

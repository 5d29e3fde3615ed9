//! The gate of SwiGLU (Shazeer, "GLU Variants Improve Transformer", 2020).
//!
//! Contract: `gate_up` `[rows, 2 * width]`, `out` `[rows, width]`, both dense:
//! `out[t, j] = silu(gate_up[t, j]) * gate_up[t, width + j]`. Other activations are part of the matrix
//! product before them.

use super::buffer::Shared;
use super::check;
use super::simd::{CpuElement, Kernel, Simd, activate};
use super::{Buffer, Cpu};
use crate::config::Activation;
use crate::element::Element;
use crate::error::Result;

impl<E: CpuElement> Cpu<E> {
    pub(super) fn swiglu_impl(
        &self,
        gate_up: &Buffer<E>,
        rows: usize,
        width: usize,
        out: &mut Buffer<E>,
    ) -> Result<()> {
        const OP: &str = "swiglu";
        let total = check::product(OP, "out", rows, width)?;
        check::at_least(OP, "gate_up", check::product(OP, "gate_up", total, 2)?, gate_up.len())?;
        check::at_least(OP, "out", total, out.len())?;
        let shared = Shared::new(out.as_mut_slice());
        self.for_row_blocks(rows, 4 * width, |first, end| {
            // SAFETY: rows `first .. end` of `out` are this task's alone, and lie in it.
            let out = unsafe { shared.part(first * width, (end - first) * width) };
            let gate_up = &gate_up.as_slice()[2 * first * width..2 * end * width];
            self.dispatch(SwiGlu { gate_up, width, out });
        });
        Ok(())
    }
}

struct SwiGlu<'a, E> {
    gate_up: &'a [E],
    width: usize,
    out: &'a mut [E],
}

impl<E: Element> Kernel<E> for SwiGlu<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let width = self.width;
        if width == 0 {
            return;
        }
        for (both, out) in self.gate_up.chunks_exact(2 * width).zip(self.out.chunks_exact_mut(width)) {
            let (gate, up) = both.split_at(width);
            for i in (0..width).step_by(S::LANES) {
                let n = S::LANES.min(width - i);
                // SAFETY: `gate`, `up` and `out` hold `width` numbers each, of which `i .. i + n` exist.
                unsafe {
                    let g = activate(s, Activation::Silu, s.load_part(gate.as_ptr().add(i), n));
                    let u = s.load_part(up.as_ptr().add(i), n);
                    s.store_part(out.as_mut_ptr().add(i), s.mul(g, u), n);
                }
            }
        }
    }
}

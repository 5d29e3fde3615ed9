//! Operations on numbers one by one: activations and their gradients, and the small change of a training pass.
//!
//! Contract: buffers are flat. `activation`: `out[i] = f(x[i])`. `activation_backward`: `d[i] *= f'(x[i])`.
//! `swiglu_backward`: from gate | up and `d` of the product, the gradients of gate | up.
//! No sum is taken, so no order matters.

use super::buffer::Shared;
use super::check;
use super::simd::{CpuElement, Kernel, Simd, activate, activation_slope};
use super::{Buffer, Cpu};
use crate::config::Activation;
use crate::element::Element;
use crate::error::Result;

/// What happens to a number.
#[derive(Clone, Copy)]
enum Map {
    /// `out = f(x)`
    Activate(Activation),
    /// `out *= f'(x)`
    Slope(Activation),
    /// `out *= factor`
    Scale(f64),
}

impl<E: CpuElement> Cpu<E> {
    pub(super) fn zero_impl(&self, x: &mut Buffer<E>, len: usize) -> Result<()> {
        check::at_least("zero", "x", len, x.len())?;
        let shared = Shared::new(&mut x.as_mut_slice()[..len]);
        self.for_row_blocks(len, 1, |first, end| {
            // SAFETY: numbers `first .. end` are this task's alone, and exist.
            unsafe { shared.part(first, end - first) }.fill(E::zero());
        });
        Ok(())
    }

    pub(super) fn copy_impl(&self, src: &Buffer<E>, dst: &mut Buffer<E>, len: usize) -> Result<()> {
        check::at_least("copy", "src", len, src.len())?;
        check::at_least("copy", "dst", len, dst.len())?;
        let (src, shared) = (src.as_slice(), Shared::new(&mut dst.as_mut_slice()[..len]));
        self.for_row_blocks(len, 1, |first, end| {
            // SAFETY: numbers `first .. end` are this task's alone, and exist.
            unsafe { shared.part(first, end - first) }.copy_from_slice(&src[first..end]);
        });
        Ok(())
    }

    pub(super) fn scale_impl(&self, x: &mut Buffer<E>, len: usize, factor: f64) -> Result<()> {
        check::at_least("scale", "x", len, x.len())?;
        self.map(Map::Scale(factor), &[], &mut x.as_mut_slice()[..len]);
        Ok(())
    }

    pub(super) fn activation_impl(
        &self,
        kind: Activation,
        x: &Buffer<E>,
        len: usize,
        out: &mut Buffer<E>,
    ) -> Result<()> {
        check::at_least("activation", "x", len, x.len())?;
        check::at_least("activation", "out", len, out.len())?;
        self.map(Map::Activate(kind), &x.as_slice()[..len], &mut out.as_mut_slice()[..len]);
        Ok(())
    }

    pub(super) fn activation_backward_impl(
        &self,
        kind: Activation,
        x: &Buffer<E>,
        len: usize,
        d: &mut Buffer<E>,
    ) -> Result<()> {
        check::at_least("activation_backward", "x", len, x.len())?;
        check::at_least("activation_backward", "d", len, d.len())?;
        self.map(Map::Slope(kind), &x.as_slice()[..len], &mut d.as_mut_slice()[..len]);
        Ok(())
    }

    /// `x` is empty where the map does not read it.
    fn map(&self, map: Map, x: &[E], out: &mut [E]) {
        let len = out.len();
        let shared = Shared::new(out);
        self.for_row_blocks(len, 4, |first, end| {
            // SAFETY: numbers `first .. end` are this task's alone, and exist.
            let out = unsafe { shared.part(first, end - first) };
            let x = if x.is_empty() { x } else { &x[first..end] };
            self.dispatch(Mapped { map, x, out });
        });
    }

    pub(super) fn swiglu_backward_impl(
        &self,
        gate_up: &Buffer<E>,
        d_out: &Buffer<E>,
        rows: usize,
        width: usize,
        d_gate_up: &mut Buffer<E>,
    ) -> Result<()> {
        const OP: &str = "swiglu_backward";
        let total = check::product(OP, "d_out", rows, width)?;
        let both = check::product(OP, "gate_up", total, 2)?;
        check::at_least(OP, "gate_up", both, gate_up.len())?;
        check::at_least(OP, "d_out", total, d_out.len())?;
        check::at_least(OP, "d_gate_up", both, d_gate_up.len())?;
        if total == 0 {
            return Ok(());
        }
        let shared = Shared::new(d_gate_up.as_mut_slice());
        self.for_row_blocks(rows, 8 * width, |first, end| {
            self.dispatch(SwiGluBackward {
                gate_up: &gate_up.as_slice()[2 * first * width..2 * end * width],
                d_out: &d_out.as_slice()[first * width..end * width],
                width,
                // SAFETY: rows `first .. end` are this task's alone, and exist.
                out: unsafe { shared.part(2 * first * width, 2 * (end - first) * width) },
            });
        });
        Ok(())
    }
}

struct Mapped<'a, E> {
    map: Map,
    x: &'a [E],
    out: &'a mut [E],
}

impl<E: Element> Kernel<E> for Mapped<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let (x, out, len) = (self.x.as_ptr(), self.out.as_mut_ptr(), self.out.len());
        for i in (0..len).step_by(S::LANES) {
            let n = S::LANES.min(len - i);
            // SAFETY: `out`, and `x` where it is read, hold `len` numbers, of which `i .. i + n` exist.
            unsafe {
                let to = out.add(i);
                let v = match self.map {
                    Map::Activate(kind) => activate(s, kind, s.load_part(x.add(i), n)),
                    Map::Slope(kind) => {
                        s.mul(s.load_part(to, n), activation_slope(s, kind, s.load_part(x.add(i), n)))
                    }
                    Map::Scale(factor) => s.mul(s.load_part(to, n), s.splat(E::from_f64(factor))),
                };
                s.store_part(to, v, n);
            }
        }
    }
}

struct SwiGluBackward<'a, E> {
    gate_up: &'a [E],
    d_out: &'a [E],
    width: usize,
    out: &'a mut [E],
}

impl<E: Element> Kernel<E> for SwiGluBackward<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let width = self.width;
        let rows = self.gate_up.chunks_exact(2 * width).zip(self.d_out.chunks_exact(width));
        for ((both, d), out) in rows.zip(self.out.chunks_exact_mut(2 * width)) {
            let (gate, up) = both.split_at(width);
            let (d_gate, d_up) = out.split_at_mut(width);
            for i in (0..width).step_by(S::LANES) {
                let n = S::LANES.min(width - i);
                // SAFETY: all five hold `width` numbers, of which `i .. i + n` exist.
                unsafe {
                    let (g, u) = (s.load_part(gate.as_ptr().add(i), n), s.load_part(up.as_ptr().add(i), n));
                    let d = s.load_part(d.as_ptr().add(i), n);
                    let slope = activation_slope(s, Activation::Silu, g);
                    s.store_part(d_gate.as_mut_ptr().add(i), s.mul(s.mul(d, u), slope), n);
                    let active = activate(s, Activation::Silu, g);
                    s.store_part(d_up.as_mut_ptr().add(i), s.mul(d, active), n);
                }
            }
        }
    }
}

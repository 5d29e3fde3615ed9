//! The passes of the optimiser over a range of elements.

use super::BLOCK;
use crate::backend::cpu::buffer::Shared;
use crate::backend::cpu::simd::{Kernel, Simd, load_one};
use crate::backend::{AdamW, AdamWFactors};
use crate::element::Dtype;
use crate::rng::Purpose;

/// The little-endian form of a number, or the number of a little-endian form.
pub fn little(x: f32) -> f32 {
    f32::from_bits(x.to_bits().to_le())
}

#[inline(always)]
pub fn widen(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// The nearest bf16, ties to even.
#[inline(always)]
pub fn nearest(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
    (if x.is_nan() { bits >> 16 | 0x40 } else { rounded }) as u16
}

/// One of the two bf16 around `x`, the one above with the probability of its nearness when `random` is uniform.
/// A finite number stays finite.
#[inline(always)]
fn stochastic(x: f32, random: u16) -> u16 {
    const EXPONENT: u32 = 0x7F80_0000;
    let bits = x.to_bits();
    let up = bits.wrapping_add(random.into());
    let over = up & EXPONENT == EXPONENT || bits & EXPONENT == EXPONENT;
    let quiet = if x.is_nan() { 0x40 } else { 0 };
    (if over { bits >> 16 | quiet } else { up >> 16 }) as u16
}

/// Numbers in one of two formats.
pub enum Part<A, B> {
    F32(A),
    Bf16(B),
}

impl<'a> Part<Shared<'a, f32>, Shared<'a, u16>> {
    /// # Safety
    /// As [`Shared::part`].
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, at: usize, n: usize) -> Part<&mut [f32], &mut [u16]> {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Part::F32(x) => Part::F32(x.part(at, n)),
                Part::Bf16(x) => Part::Bf16(x.part(at, n)),
            }
        }
    }
}

impl Part<&mut [f32], &mut [u16]> {
    /// Where elements `at .. at + n` are as f32: in place, or widened in `block`.
    #[inline(always)]
    fn open(&mut self, at: usize, n: usize, block: &mut [f32; BLOCK]) -> *mut f32 {
        match self {
            Part::F32(x) => x[at..at + n].as_mut_ptr(),
            Part::Bf16(x) => {
                for (to, x) in block.iter_mut().zip(&x[at..at + n]) {
                    *to = widen(*x);
                }
                block.as_mut_ptr()
            }
        }
    }

    /// Rounds what `open` widened, with the 16 bits from bit `shift` on of each word.
    #[inline(always)]
    fn close(&mut self, at: usize, n: usize, block: &[f32; BLOCK], words: &[u32; BLOCK], shift: u32) {
        if let Part::Bf16(x) = self {
            for ((to, x), word) in x[at..at + n].iter_mut().zip(block).zip(words) {
                *to = stochastic(*x, (word >> shift) as u16);
            }
        }
    }
}

/// A step of a range of elements, the first of which is element `at` of the parameter; `at` is a multiple of
/// [`BLOCK`].
pub struct Step<'a> {
    pub at: usize,
    pub weights: &'a mut [f32],
    /// The weights as bf16.
    pub rounded: Option<&'a mut [u16]>,
    pub gradient: &'a [f32],
    pub m: Part<&'a mut [f32], &'a mut [u16]>,
    pub v: Part<&'a mut [f32], &'a mut [u16]>,
    pub factors: AdamWFactors,
    pub step: AdamW,
    /// The weights are in the other byte order.
    pub swap: bool,
}

impl Kernel<f32> for Step<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<f32>>(mut self, s: S) {
        let f = self.factors;
        let [keep, scale, rate, unbias, eps] = [f.keep, f.scale, f.rate, f.unbias, f.eps].map(|x| s.splat(x));
        let ([b1, b2], [c1, c2]) = (f.betas.map(|x| s.splat(x)), f.rest.map(|x| s.splat(x)));
        let swap = |weights: &mut [f32]| weights.iter_mut().for_each(|x| *x = little(*x));
        if self.swap {
            swap(self.weights);
        }
        let random = matches!(self.m, Part::Bf16(_)) || matches!(self.v, Part::Bf16(_));
        let (mut m_block, mut v_block, mut words) = ([0.0; BLOCK], [0.0; BLOCK], [0; BLOCK]);
        for at in (0..self.gradient.len()).step_by(BLOCK) {
            let n = BLOCK.min(self.gradient.len() - at);
            let m_at = self.m.open(at, n, &mut m_block);
            let v_at = self.v.open(at, n, &mut v_block);
            let weights = &mut self.weights[at..at + n];
            for i in (0..n).step_by(S::LANES) {
                let lanes = S::LANES.min(n - i);
                // SAFETY: `lanes` numbers from `i` on exist in the `n` of the weights and of the gradient, and where
                // `open` pointed.
                unsafe {
                    let g = s.mul(scale, s.load_part(self.gradient.as_ptr().add(at + i), lanes));
                    let p = s.load_part(weights.as_ptr().add(i), lanes);
                    let m = s.fma(b1, s.load_part(m_at.add(i), lanes), s.mul(c1, g));
                    let v = s.fma(b2, s.load_part(v_at.add(i), lanes), s.mul(s.mul(c2, g), g));
                    let root = s.add(s.sqrt(s.mul(v, unbias)), eps);
                    let p = s.sub(s.mul(p, keep), s.div(s.mul(rate, m), root));
                    s.store_part(m_at.add(i), m, lanes);
                    s.store_part(v_at.add(i), v, lanes);
                    s.store_part(weights.as_mut_ptr().add(i), p, lanes);
                }
            }
            if let Some(rounded) = &mut self.rounded {
                for (to, x) in rounded[at..at + n].iter_mut().zip(&*weights) {
                    *to = nearest(*x).to_le();
                }
            }
            if random {
                rounding_words(&self.step, self.at + at, &mut words);
                self.m.close(at, n, &m_block, &words, 0);
                self.v.close(at, n, &v_block, &words, 16);
            }
        }
        if self.swap {
            swap(self.weights);
        }
    }
}

/// The words of [`AdamW::rounding`] for elements `at .. at + 64`, `at` a multiple of 64.
#[inline(always)]
fn rounding_words(step: &AdamW, at: usize, words: &mut [u32; BLOCK]) {
    let first = (at / 4) as u32;
    let blocks = std::array::from_fn(|i| first.wrapping_add(i as u32));
    let wide = step.rng.words_wide(Purpose::Rounding, step.parameter, step.step as u32, blocks);
    for (words, wide) in words.chunks_exact_mut(16).zip(wide) {
        words.copy_from_slice(&wide);
    }
}

/// Sum of squares, each exact: 32 partial sums, then those in order.
pub struct Squares<'a>(pub &'a [f32]);

impl Kernel<f32> for Squares<'_> {
    type Out = f64;

    #[inline(always)]
    fn run<S: Simd<f32>>(self, _: S) -> f64 {
        const WAYS: usize = 32;
        let mut sums = [0.0_f64; WAYS];
        let (chunks, rest) = self.0.as_chunks::<WAYS>();
        for chunk in chunks {
            for (sum, &x) in sums.iter_mut().zip(chunk) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
        for (sum, &x) in sums.iter_mut().zip(rest) {
            *sum += f64::from(x) * f64::from(x);
        }
        sums.iter().sum()
    }
}

/// Stored numbers from number `at` on in another format, little-endian as they were.
pub struct Convert<'a> {
    pub from: (Dtype, &'a [u8]),
    pub at: usize,
    pub to: Part<&'a mut [f32], &'a mut [u16]>,
}

impl Kernel<f32> for Convert<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<f32>>(self, s: S) {
        let (dtype, bytes) = self.from;
        let len = match &self.to {
            Part::F32(to) => to.len(),
            Part::Bf16(to) => to.len(),
        };
        let size = dtype.size();
        let from = &bytes[self.at * size..(self.at + len) * size];
        let mut block = [0.0; BLOCK];
        let mut to = self.to;
        for at in (0..len).step_by(BLOCK) {
            let n = BLOCK.min(len - at);
            // SAFETY: `n` numbers from `at` on exist in `from`; full vectors lie within them, and in the block.
            unsafe {
                let mut i = 0;
                while i + S::LANES <= n {
                    s.store(
                        block.as_mut_ptr().add(i),
                        s.load_stored(dtype, from.as_ptr().add((at + i) * size)),
                    );
                    i += S::LANES;
                }
                while i < n {
                    block[i] = load_one(dtype, from.as_ptr().add((at + i) * size));
                    i += 1;
                }
            }
            match &mut to {
                Part::F32(to) => to[at..at + n].iter_mut().zip(&block).for_each(|(to, &x)| *to = little(x)),
                Part::Bf16(to) => {
                    to[at..at + n].iter_mut().zip(&block).for_each(|(to, &x)| *to = nearest(x).to_le())
                }
            }
        }
    }
}

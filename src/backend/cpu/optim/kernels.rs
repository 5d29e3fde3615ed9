//! The passes of the optimiser over a range of elements.

use super::BLOCK;
use super::moments::MomentPart;
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

/// Numbers in one of two formats.
pub enum Part<A, B> {
    F32(A),
    Bf16(B),
}

/// A step of a range of elements, the first of which is element `at` of the parameter; `at` is a multiple of
/// [`BLOCK`].
pub struct Step<'a> {
    pub at: usize,
    pub weights: &'a mut [f32],
    /// The weights as bf16.
    pub rounded: Option<&'a mut [u16]>,
    pub gradient: &'a [f32],
    pub m: MomentPart<'a>,
    pub v: MomentPart<'a>,
    pub factors: AdamWFactors,
    /// On the gradient.
    pub scale: f32,
    pub step: AdamW,
    /// Its number.
    pub parameter: u32,
    /// The weights are in the other byte order.
    pub swap: bool,
}

impl Kernel<f32> for Step<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<f32>>(mut self, s: S) {
        let f = self.factors;
        let [keep, scale, rate, unbias, eps] =
            [f.keep, self.scale, f.rate, f.unbias, f.eps].map(|x| s.splat(x));
        let ([b1, b2], [c1, c2]) = (f.betas.map(|x| s.splat(x)), f.rest.map(|x| s.splat(x)));
        let swap = |weights: &mut [f32]| weights.iter_mut().for_each(|x| *x = little(*x));
        if self.swap {
            swap(self.weights);
        }
        let random = self.m.is_rounded() || self.v.is_rounded();
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
                rounding_words(&self.step, self.parameter, self.at + at, n, &mut words);
                self.m.close(at, n, &m_block, &words, 0);
                self.v.close(at, n, &v_block, &words, 16);
            }
        }
        if self.swap {
            swap(self.weights);
        }
    }
}

/// The words of [`AdamW::rounding`] for elements `at .. at + n`, and of what else 64 elements share; `at` is a multiple of
/// [`BLOCK`].
#[inline(always)]
fn rounding_words(step: &AdamW, parameter: u32, at: usize, n: usize, words: &mut [u32; BLOCK]) {
    for (group, words) in words.chunks_exact_mut(64).take(n.div_ceil(64)).enumerate() {
        let first = ((at + 64 * group) / 4) as u32;
        let blocks = std::array::from_fn(|i| first.wrapping_add(i as u32));
        let wide = step.rng.words_wide(Purpose::Rounding, parameter, step.step as u32, blocks);
        for (words, wide) in words.chunks_exact_mut(16).zip(wide) {
            words.copy_from_slice(&wide);
        }
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

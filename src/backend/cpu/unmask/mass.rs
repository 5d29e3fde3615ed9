//! The passes over a whole row of logits: block maxima, masses, entropy.
//!
//! A token's *mass* is `exp((z - max) / temperature)` in fixed point, [`ONE`] = 2^40 being the most
//! probable token's. Sums of masses are integer sums, so they do not depend on the order of
//! addition: the same row gives the same token however the work is cut up. A token less probable
//! than 2^-40 times the best has mass 0.
//!
//! The single-precision exponential is a fixed sequence of additions and fused multiply-adds, each
//! exactly rounded, so its bits are the same with AVX-512, AVX2 or neither.

use std::cell::RefCell;

use super::row::Scratch;
use crate::element::Element;

/// Logits a block. A row is cut into blocks, the last one padded with minus infinity.
pub(super) const BLOCK: usize = 64;

/// The mass of the most probable token.
pub(super) const ONE: u64 = 1 << 40;

/// `exp((z - max) / temperature)` with what can be computed beforehand.
#[derive(Clone, Copy, Debug)]
pub struct Temper<E> {
    pub max: E,
    /// 1 / temperature.
    pub inverse: f64,
    /// log2(e) / temperature, and what rounding it to `E` lost.
    scale: E,
    scale_low: E,
    /// Differences from the maximum are cut off here, where the mass has long been 0.
    lowest: E,
}

impl<E: Element> Temper<E> {
    /// `temperature` is a normal number of at most 1e30, `max` is finite.
    pub fn new(max: E, temperature: f32) -> Self {
        let inverse = 1.0 / f64::from(temperature);
        let exact = std::f64::consts::LOG2_E * inverse;
        let scale = E::from_f64(exact);
        let scale_low = E::from_f64(exact - scale.to_f64());
        Self { max, inverse, scale, scale_low, lowest: E::from_f64(-64.0 / exact) }
    }

    /// `z - max`, at least [`Self::lowest`] and at most 0. For numbers that are not NaN.
    #[inline(always)]
    fn below_max(&self, z: E) -> E {
        let d = z - self.max;
        let d = if d > self.lowest { d } else { self.lowest };
        if d < E::zero() { d } else { E::zero() }
    }

    /// The least logit that can have a mass.
    pub fn floor(&self) -> E {
        self.max + self.lowest
    }
}

/// A number format that tokens can be drawn from: the vector passes over a row, and this thread's
/// memory. A token `suppress` counts as minus infinity. Implemented for f32 and f64.
pub trait UnmaskElement: Element {
    /// Runs `f` with this thread's scratch memory; `f` must not call this again.
    fn with_scratch<R>(f: impl FnOnce(&mut Scratch<Self>) -> R) -> R;
    /// The maximum of each block; `false` when a logit other than `suppress` is NaN or +inf (the
    /// maxima are then meaningless).
    fn peaks(row: &[Self], suppress: usize, peaks: &mut [Self]) -> bool;
    /// The sum of the masses of each block.
    fn block_masses(row: &[Self], suppress: usize, temper: &Temper<Self>, sums: &mut [u64]);
    /// The mass of each logit.
    fn masses(z: &[Self], temper: &Temper<Self>, out: &mut [u64]);
    /// The sum over tokens of `exp(d / temperature) * d`, where `d = z - max`; always added up in
    /// the same order.
    fn weighted_depth(row: &[Self], suppress: usize, temper: &Temper<Self>) -> f64;
}

/// What differs between number formats: the exponential.
trait Exp: Element {
    /// `exp(d / temperature)` for `d` from [`Temper::below_max`].
    fn weight(d: Self, temper: &Temper<Self>) -> Self;
    /// `floor(w * ONE)` for `w` in [0, 1].
    fn fixed(w: Self) -> u64;
}

/// ln(2)^k / k!: the Taylor coefficients of 2^f, which at degree 7 are exact to 6e-9 for |f| <= 1/2.
const TAYLOR: [f32; 7] = [
    0.693_147_2,
    0.240_226_5,
    0.055_504_11,
    0.009_618_129,
    0.001_333_355_8,
    0.000_154_035_3,
    0.000_015_252_734,
];

impl Exp for f32 {
    /// 2^(n + f), with the integer n and f in [-1/2, 1/2]; n is found by adding 1.5 * 2^23, which
    /// rounds to an integer and leaves it in the low bits.
    #[inline(always)]
    fn weight(d: f32, temper: &Temper<f32>) -> f32 {
        const MAGIC: f32 = 12_582_912.0;
        let shifted = d.mul_add(temper.scale, MAGIC);
        let n = shifted - MAGIC;
        let f = d.mul_add(temper.scale_low, d.mul_add(temper.scale, -n));
        let mut p = TAYLOR[6];
        p = p.mul_add(f, TAYLOR[5]);
        p = p.mul_add(f, TAYLOR[4]);
        p = p.mul_add(f, TAYLOR[3]);
        p = p.mul_add(f, TAYLOR[2]);
        p = p.mul_add(f, TAYLOR[1]);
        p = p.mul_add(f, TAYLOR[0]);
        p = p.mul_add(f, 1.0);
        // n is in -64..=0 and p in [0.7, 1.42], so the exponent stays that of a normal number.
        let n = shifted.to_bits().wrapping_sub(MAGIC.to_bits());
        f32::from_bits(p.to_bits().wrapping_add(n << 23))
    }

    #[inline(always)]
    fn fixed(w: f32) -> u64 {
        let bits = w.to_bits();
        let mantissa = u64::from((bits & 0x007f_ffff) | 0x0080_0000);
        // w <= 1, so its biased exponent is at most 127.
        let shift = 127u32.wrapping_sub(bits >> 23);
        (mantissa << 17) >> if shift < 63 { shift } else { 63 }
    }
}

impl Exp for f64 {
    #[inline(always)]
    fn weight(d: f64, temper: &Temper<f64>) -> f64 {
        (d * temper.inverse).exp()
    }

    #[inline(always)]
    fn fixed(w: f64) -> u64 {
        (w * ONE as f64) as u64
    }
}

/// Calls `f` with each block of the row, whole; the last block and the one that holds `suppress`
/// are completed with minus infinity in a copy.
#[inline(always)]
fn for_blocks<E: Element>(row: &[E], suppress: usize, mut f: impl FnMut(usize, &[E; BLOCK])) {
    let (whole, rest) = row.as_chunks::<BLOCK>();
    for (b, block) in whole.iter().enumerate() {
        let at = suppress.wrapping_sub(b * BLOCK);
        if at < BLOCK {
            let mut copy = *block;
            copy[at] = E::neg_infinity();
            f(b, &copy);
        } else {
            f(b, block);
        }
    }
    if !rest.is_empty() {
        let mut copy = [E::neg_infinity(); BLOCK];
        for (to, from) in copy.iter_mut().zip(rest) {
            *to = *from;
        }
        if let Some(z) = copy.get_mut(suppress.wrapping_sub(whole.len() * BLOCK)) {
            *z = E::neg_infinity();
        }
        f(whole.len(), &copy);
    }
}

#[inline(always)]
fn peaks_body<E: Exp>(row: &[E], suppress: usize, peaks: &mut [E]) -> bool {
    const LANES: usize = 16;
    let mut bad = 0u32;
    for_blocks(row, suppress, |b, block| {
        let mut lanes = [E::neg_infinity(); LANES];
        for part in block.as_chunks::<LANES>().0 {
            for (lane, &z) in lanes.iter_mut().zip(part) {
                *lane = if z > *lane { z } else { *lane };
                let finite = z < E::infinity();
                bad |= u32::from(!finite);
            }
        }
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] = if lanes[i + half] > lanes[i] { lanes[i + half] } else { lanes[i] };
            }
        }
        if let Some(peak) = peaks.get_mut(b) {
            *peak = lanes[0];
        }
    });
    bad == 0
}

#[inline(always)]
fn block_masses_body<E: Exp>(row: &[E], suppress: usize, temper: &Temper<E>, sums: &mut [u64]) {
    for_blocks(row, suppress, |b, block| {
        let mut sum = 0u64;
        for &z in block {
            sum += E::fixed(E::weight(temper.below_max(z), temper));
        }
        if let Some(s) = sums.get_mut(b) {
            *s = sum;
        }
    });
}

#[inline(always)]
fn masses_body<E: Exp>(z: &[E], temper: &Temper<E>, out: &mut [u64]) {
    for (mass, &z) in out.iter_mut().zip(z) {
        *mass = E::fixed(E::weight(temper.below_max(z), temper));
    }
}

#[inline(always)]
fn weighted_depth_body<E: Exp>(row: &[E], suppress: usize, temper: &Temper<E>) -> f64 {
    const LANES: usize = 16;
    let mut lanes = [0.0f64; LANES];
    for_blocks(row, suppress, |_, block| {
        for part in block.as_chunks::<LANES>().0 {
            for (lane, &z) in lanes.iter_mut().zip(part) {
                let d = temper.below_max(z);
                *lane += E::weight(d, temper).to_f64() * d.to_f64();
            }
        }
    });
    lanes.iter().sum()
}

/// Compiles a body for AVX-512, for AVX2 with FMA and for the build's own target, and picks the
/// best that the processor has.
macro_rules! vectorised {
    ($name:ident, $body:ident, $t:ty, ($($arg:ident: $ty:ty),*) $(-> $ret:ty)?) => {
        fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $body::<$t>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body::<$t>($($arg),*)
                }
                match isa() {
                    // SAFETY: `isa` found all features that this function is compiled for.
                    Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: `isa` found all features that this function is compiled for.
                    Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    Isa::Portable => {}
                }
            }
            $body::<$t>($($arg),*)
        }
    };
}

#[cfg(target_arch = "x86_64")]
enum Isa {
    Avx512,
    Avx2,
    Portable,
}

#[cfg(target_arch = "x86_64")]
fn isa() -> Isa {
    if is_x86_feature_detected!("fma") {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            return Isa::Avx512;
        }
        if is_x86_feature_detected!("avx2") {
            return Isa::Avx2;
        }
    }
    Isa::Portable
}

macro_rules! lane {
    ($t:ty) => {
        impl UnmaskElement for $t {
            fn with_scratch<R>(f: impl FnOnce(&mut Scratch<$t>) -> R) -> R {
                thread_local! {
                    static SCRATCH: RefCell<Scratch<$t>> = RefCell::default();
                }
                SCRATCH.with_borrow_mut(f)
            }

            vectorised!(peaks, peaks_body, $t, (row: &[$t], suppress: usize, peaks: &mut [$t]) -> bool);
            vectorised!(block_masses, block_masses_body, $t,
                (row: &[$t], suppress: usize, temper: &Temper<$t>, sums: &mut [u64]));
            vectorised!(masses, masses_body, $t, (z: &[$t], temper: &Temper<$t>, out: &mut [u64]));
            vectorised!(weighted_depth, weighted_depth_body, $t,
                (row: &[$t], suppress: usize, temper: &Temper<$t>) -> f64);
        }
    };
}
lane!(f32);
lane!(f64);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Rng, unit};

    fn row(n: usize, spread: f32) -> Vec<f32> {
        let rng = Rng::new(11);
        (0..n).map(|i| (unit(rng.words(Purpose::Token, 0, 0, i as u32)[0]) - 0.5) * spread).collect()
    }

    #[test]
    fn mass_follows_the_exponential() {
        for temperature in [0.05f32, 0.7, 1.0, 3.0, 1e30] {
            let temper = Temper::new(0.0f32, temperature);
            for i in 0..20_000 {
                let d = -(i as f32) * 0.0016 * temperature;
                let mut mass = [0];
                f32::masses(&[d], &temper, &mut mass);
                let exact = (f64::from(d) / f64::from(temperature)).exp() * ONE as f64;
                let error = (mass[0] as f64 - exact).abs();
                assert!(error <= 1.0 + 2e-7 * exact, "exp({d} / {temperature}): {} for {exact}", mass[0]);
            }
        }
    }

    #[test]
    fn extremes_have_their_limits() {
        let temper = Temper::new(5.0f32, 0.5);
        let mut mass = [7; 5];
        f32::masses(&[5.0, f32::NEG_INFINITY, f32::MIN, 9.0, -9.0], &temper, &mut mass);
        assert_eq!(mass[..4], [ONE, 0, 0, ONE]);
        assert!(mass[4] == 0 || mass[4] == 1);
        let cold = Temper::new(5.0f32, f32::MIN_POSITIVE);
        f32::masses(&[5.0, 4.999_999_5], &cold, &mut mass[..2]);
        assert_eq!(mass[..2], [ONE, 0]);
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        for n in [1, 15, 63, 64, 65, 1000] {
            for suppress in [0, n / 2, n - 1, usize::MAX] {
                let row = row(n, 40.0);
                let blocks = n.div_ceil(BLOCK);
                let (mut peaks, mut sums, mut each) = (vec![0.0; blocks], vec![1; blocks], vec![1; n]);
                let (mut peaks2, mut sums2, mut each2) = (vec![1.0; blocks], vec![2; blocks], vec![2; n]);
                assert!(f32::peaks(&row, suppress, &mut peaks));
                assert!(peaks_body::<f32>(&row, suppress, &mut peaks2));
                assert_eq!(peaks, peaks2);
                let temper = Temper::new(19.0f32, 0.9);
                f32::block_masses(&row, suppress, &temper, &mut sums);
                block_masses_body::<f32>(&row, suppress, &temper, &mut sums2);
                assert_eq!(sums, sums2);
                f32::masses(&row, &temper, &mut each);
                masses_body::<f32>(&row, &temper, &mut each2);
                assert_eq!(each, each2);
                if let Some(mass) = each.get_mut(suppress) {
                    *mass = 0;
                }
                assert_eq!(each.iter().sum::<u64>(), sums.iter().sum::<u64>());
                let depth = f32::weighted_depth(&row, suppress, &temper);
                assert_eq!(depth, weighted_depth_body::<f32>(&row, suppress, &temper));
                let wide: Vec<f64> = row.iter().map(|&z| f64::from(z)).collect();
                let exact = f64::weighted_depth(&wide, suppress, &Temper::new(19.0, 0.9));
                assert!((depth - exact).abs() <= 1e-6 * exact.abs() + 1e-9, "{depth} for {exact}");
            }
        }
    }

    #[test]
    fn nan_and_infinity_are_seen_wherever_they_are() {
        for n in [1, 64, 100] {
            for i in 0..n {
                for bad in [f32::NAN, -f32::NAN, f32::INFINITY] {
                    let mut row = row(n, 1.0);
                    row[i] = bad;
                    let mut peaks = vec![0.0; n.div_ceil(BLOCK)];
                    assert!(!f32::peaks(&row, usize::MAX, &mut peaks));
                    assert!(f32::peaks(&row, i, &mut peaks));
                }
            }
        }
    }
}

//! Masses: probabilities as integers.
//!
//! A token's *mass* is `exp((z - max) / temperature)` in fixed point, [`ONE`] = 2^40 being the most
//! probable token's. Sums of masses are integer sums, so they do not depend on the order of
//! addition: the same row gives the same token however the work is cut up. A token less probable
//! than 2^-40 times the best has mass 0.
//!
//! The single-precision exponential is a fixed sequence of additions and fused multiply-adds, each
//! exactly rounded, so its bits are the same with AVX-512, AVX2 or neither.

use crate::element::Element;

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
    pub fn below_max(&self, z: E) -> E {
        let d = z - self.max;
        let d = if d > self.lowest { d } else { self.lowest };
        if d < E::zero() { d } else { E::zero() }
    }

    /// The least logit that can have a mass.
    pub fn floor(&self) -> E {
        self.max + self.lowest
    }
}

/// What differs between number formats: the exponential.
pub trait Exp: Element {
    /// `exp(d / temperature)` for `d` from [`Temper::below_max`].
    fn weight(d: Self, temper: &Temper<Self>) -> Self;
    /// `floor(w * ONE)` for `w` in [0, 1], as a multiple of [`SPLIT`] and what is left over, both at most that: numbers of 32
    /// bits, as many to a vector as there are logits.
    fn halves(w: Self) -> [u32; 2];

    /// `floor(w * ONE)` for `w` in [0, 1].
    #[inline(always)]
    fn fixed(w: Self) -> u64 {
        let [high, low] = Self::halves(w);
        whole(u64::from(high), u64::from(low))
    }
}

/// Where a mass is cut in two: the square root of [`ONE`].
const SPLIT: u32 = 1 << 20;

/// A mass, or a sum of masses, of its halves or their sums.
#[inline(always)]
pub(super) fn whole(high: u64, low: u64) -> u64 {
    high * u64::from(SPLIT) + low
}

/// ln(2)^k / k!: the Taylor coefficients of 2^f, which at degree 7 are exact to 6e-9 for |f| <= 1/2.
const TAYLOR: [f32; 7] = [
    std::f32::consts::LN_2,
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
    fn halves(w: f32) -> [u32; 2] {
        const MOST: f32 = SPLIT as f32;
        // Whatever `w` is, a NaN too, this is from 0 to `MOST`.
        let scaled = w * MOST;
        let scaled = if scaled > 0.0 { scaled } else { 0.0 };
        let scaled = if scaled < MOST { scaled } else { MOST };
        // SAFETY: it is finite and fits, see above.
        let high: i32 = unsafe { scaled.to_int_unchecked() };
        let rest = (scaled - high as f32) * MOST;
        // SAFETY: truncation left less than 1, so that this is from 0 to `MOST`.
        let low: i32 = unsafe { rest.to_int_unchecked() };
        [high as u32, low as u32]
    }
}

impl Exp for f64 {
    #[inline(always)]
    fn weight(d: f64, temper: &Temper<f64>) -> f64 {
        (d * temper.inverse).exp()
    }

    #[inline(always)]
    fn halves(w: f64) -> [u32; 2] {
        let scaled = w * f64::from(SPLIT);
        let high = scaled as u32;
        [high, ((scaled - f64::from(high)) * f64::from(SPLIT)) as u32]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masses(z: &[f32], temper: &Temper<f32>) -> Vec<u64> {
        z.iter().map(|&z| f32::fixed(f32::weight(temper.below_max(z), temper))).collect()
    }

    #[test]
    fn mass_follows_the_exponential() {
        for temperature in [0.05f32, 0.7, 1.0, 3.0, 1e30] {
            let temper = Temper::new(0.0f32, temperature);
            for i in 0..20_000 {
                let d = -(i as f32) * 0.0016 * temperature;
                let mass = masses(&[d], &temper);
                let exact = (f64::from(d) / f64::from(temperature)).exp() * ONE as f64;
                let error = (mass[0] as f64 - exact).abs();
                assert!(error <= 1.0 + 2e-7 * exact, "exp({d} / {temperature}): {} for {exact}", mass[0]);
            }
        }
    }

    #[test]
    fn halves_make_up_the_floor() {
        for i in 0..=4096u32 {
            let w = (i as f32 / 4096.0).powi(5);
            let exact = (f64::from(w) * ONE as f64) as u64;
            assert_eq!(f32::fixed(w), exact, "{w}");
            assert_eq!(f64::fixed(f64::from(w)), exact, "{w}");
        }
        for (w, mass) in
            [(f32::NAN, 0), (-1.0, 0), (f32::MIN, 0), (2.0, ONE), (f32::INFINITY, ONE), (1e-45, 0)]
        {
            assert_eq!(f32::fixed(w), mass, "{w}");
        }
    }

    #[test]
    fn extremes_have_their_limits() {
        let temper = Temper::new(5.0f32, 0.5);
        let mass = masses(&[5.0, f32::NEG_INFINITY, f32::MIN, 9.0, -9.0], &temper);
        assert_eq!(mass[..4], [ONE, 0, 0, ONE]);
        assert!(mass[4] == 0 || mass[4] == 1);
        let cold = Temper::new(5.0f32, f32::MIN_POSITIVE);
        assert_eq!(masses(&[5.0, 4.999_999_5], &cold), [ONE, 0]);
    }
}

//! Exponential, complementary error function and the activations, in vectors.

use super::Simd;
use crate::config::Activation;
use crate::element::Element;

/// e^x as `2^n * e^r` with `n = round(x / ln 2)`: the classic reduction with ln 2 in two parts, then
/// a polynomial `1 + r (1 + r q(r))`. `q` interpolates at Chebyshev nodes (relative error 1.1e-8).
/// `round` and `scale` (times 2^n, n whole, results below the normal range included) come with the
/// instruction set.
#[inline(always)]
pub(super) fn exp_f32<S: Simd<f32>>(
    s: S,
    x: S::V,
    round: impl Fn(S, S::V) -> S::V,
    scale: impl Fn(S, S::V, S::V) -> S::V,
) -> S::V {
    const LN2_HI: f32 = 0.693_359_4; // 355 / 512: n * LN2_HI is exact
    const LN2_LO: f32 = -2.121_944_4e-4;
    const Q: [f32; 5] = [0.5, 0.166_665_77, 0.041_666_554, 0.008_363_203, 0.001_392_621_3];
    // NaN passes through both: min and max give their second operand then.
    let x = s.min(s.splat(89.0), x);
    let x = s.max(s.splat(-105.0), x);
    let n = round(s, s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-LN2_HI), x);
    let r = s.fma(n, s.splat(-LN2_LO), r);
    let q = s.fma(s.splat(Q[4]), r, s.splat(Q[3]));
    let q = s.fma(q, r, s.splat(Q[2]));
    let q = s.fma(q, r, s.splat(Q[1]));
    let q = s.fma(q, r, s.splat(Q[0]));
    let one = s.splat(1.0);
    let p = s.fma(s.fma(q, r, one), r, one);
    scale(s, p, n)
}

/// erfc(x) for x >= 0 as `t * exp(P(t) - x^2)` with `t = 1 / (1 + x / 2)` (the form of Numerical
/// Recipes, section 6.2); `P` interpolates at Chebyshev nodes on x in 0..=12 (relative error 6.5e-8).
#[inline(always)]
pub(super) fn erfc_f32<S: Simd<f32>>(s: S, x: S::V) -> S::V {
    const P: [f32; 10] = [
        -1.265_488_7,
        0.999_499,
        0.378_886_07,
        0.073_040_37,
        -0.115_397_915,
        0.145_437_68,
        -0.975_716_9,
        1.371_054_8,
        -0.773_530_85,
        0.162_216_51,
    ];
    let one = s.splat(1.0);
    let t = s.div(one, s.fma(x, s.splat(0.5), one));
    let mut p = s.splat(P[9]);
    for c in P[..9].iter().rev() {
        p = s.fma(p, t, s.splat(*c));
    }
    let minus_x = s.sub(s.splat(0.0), x);
    s.mul(t, s.exp(s.fma(minus_x, x, p)))
}

/// x / (1 + e^-z), that is x * sigmoid(z).
#[inline(always)]
fn times_sigmoid<E: Element, S: Simd<E>>(s: S, x: S::V, z: S::V) -> S::V {
    let e = s.exp(s.sub(s.splat(E::zero()), z));
    s.div(x, s.add(s.splat(E::one()), e))
}

/// The activation of each lane.
///
/// GELU by tanh is `x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))`, the same function as
/// `x/2 (1 + tanh(...))` without its cancellation; GELU by erf is `x * erfc(-x / sqrt 2) / 2`.
#[inline(always)]
pub(in crate::backend::cpu) fn activate<E: Element, S: Simd<E>>(s: S, kind: Activation, x: S::V) -> S::V {
    match kind {
        Activation::Silu => times_sigmoid(s, x, x),
        Activation::GeluTanh => {
            let c = (8.0 / std::f64::consts::PI).sqrt();
            let cube = s.mul(s.mul(x, x), x);
            let u = s.fma(cube, s.splat(E::from_f64(0.044715)), x);
            times_sigmoid(s, x, s.mul(u, s.splat(E::from_f64(c))))
        }
        Activation::GeluErf => {
            let z = s.mul(s.abs(x), s.splat(E::from_f64(std::f64::consts::FRAC_1_SQRT_2)));
            let half = s.mul(s.erfc(z), s.splat(E::from_f64(0.5)));
            let phi = s.where_negative(x, half, s.sub(s.splat(E::one()), half));
            s.mul(x, phi)
        }
    }
}

/// The derivative of `x s(u)` by x, with `slope` that of `u`.
#[inline(always)]
fn sigmoid_slope<E: Element, S: Simd<E>>(s: S, x: S::V, u: S::V, slope: S::V) -> S::V {
    let one = s.splat(E::one());
    let y = s.div(one, s.add(one, s.exp(s.sub(s.splat(E::zero()), u))));
    s.fma(s.mul(x, s.mul(y, s.sub(one, y))), slope, y)
}

/// The derivative of the activation at each lane. With `f(x) = x s(u)` for a sigmoid s it is `s + x s (1 - s) u'`; GELU by
/// erf has the normal distribution's `phi(x) + x phi'(x)`.
#[inline(always)]
pub(in crate::backend::cpu) fn activation_slope<E: Element, S: Simd<E>>(
    s: S,
    kind: Activation,
    x: S::V,
) -> S::V {
    let (zero, one) = (s.splat(E::zero()), s.splat(E::one()));
    match kind {
        Activation::Silu => sigmoid_slope(s, x, x, one),
        Activation::GeluTanh => {
            let c = (8.0 / std::f64::consts::PI).sqrt();
            let square = s.mul(x, x);
            let inner = s.fma(square, s.splat(E::from_f64(0.044715)), one);
            let slope = s.fma(square, s.splat(E::from_f64(3.0 * 0.044715)), one);
            let c = s.splat(E::from_f64(c));
            // Far out the sigmoid is 0 or 1 and its slope 0, and a product of 0 and an infinite square must not be seen.
            let slope = s.min(s.mul(slope, c), s.splat(E::from_f64(1e30)));
            sigmoid_slope(s, x, s.mul(s.mul(x, inner), c), slope)
        }
        Activation::GeluErf => {
            let z = s.mul(s.abs(x), s.splat(E::from_f64(std::f64::consts::FRAC_1_SQRT_2)));
            let half = s.mul(s.erfc(z), s.splat(E::from_f64(0.5)));
            let phi = s.where_negative(x, half, s.sub(one, half));
            let bell = s.exp(s.sub(zero, s.mul(z, z)));
            let scale = 1.0 / (2.0 * std::f64::consts::PI).sqrt();
            s.fma(s.mul(x, bell), s.splat(E::from_f64(scale)), phi)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CpuElement, Isa, Kernel, Simd, SimdLevel};

    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        Erfc,
    }

    /// The function of each of 16 numbers.
    struct Apply(Function, [f32; 16]);

    impl Kernel<f32> for Apply {
        type Out = [f32; 16];

        #[inline(always)]
        fn run<S: Simd<f32>>(self, s: S) -> [f32; 16] {
            let mut out = [0.0; 16];
            // SAFETY: both arrays hold the 16 numbers of a vector.
            unsafe {
                let v = s.load(self.1.as_ptr());
                let v = match self.0 {
                    Function::Exp => s.exp(v),
                    Function::Erfc => s.erfc(v),
                };
                s.store(out.as_mut_ptr(), v);
            }
            out
        }
    }

    fn apply(level: SimdLevel, function: Function, x: &[f32]) -> Vec<f32> {
        let isa = Isa::new(level).expect("an available level");
        x.chunks(16)
            .flat_map(|chunk| {
                let mut lanes = [0.0; 16];
                lanes[..chunk.len()].copy_from_slice(chunk);
                f32::dispatch(isa, Apply(function, lanes))[..chunk.len()].to_vec()
            })
            .collect()
    }

    fn levels() -> impl Iterator<Item = SimdLevel> {
        SimdLevel::ALL.into_iter().filter(|l| l.is_available())
    }

    /// |y - expected| in units in the last place of `expected` (of the smallest number, if smaller).
    fn units(y: f32, expected: f64) -> f64 {
        let rounded = (expected as f32).abs();
        let unit = f64::from(f32::from_bits(rounded.to_bits() + 1)) - f64::from(rounded);
        (f64::from(y) - expected).abs() / unit
    }

    #[test]
    fn exp_is_within_a_unit_and_a_tenth() {
        let x: Vec<f32> = (-1_050_000..887_000).map(|i| i as f32 * 1e-4).collect();
        for level in levels() {
            for (&x, y) in x.iter().zip(apply(level, Function::Exp, &x)) {
                let error = units(y, f64::from(x).exp());
                assert!(error < 1.1, "exp({x}) = {y:e} is {error} units off ({level})");
            }
        }
    }

    #[test]
    fn exp_at_the_ends() {
        let x = [f32::NEG_INFINITY, f32::INFINITY, f32::NAN, 0.0, -0.0, 1e30, -1e30, 88.8, -104.5, f32::MIN];
        for level in levels() {
            let y = apply(level, Function::Exp, &x);
            assert!(y[2].is_nan());
            let rest = [&y[..2], &y[3..]].concat();
            assert_eq!(rest, [0.0, f32::INFINITY, 1.0, 1.0, f32::INFINITY, 0.0, f32::INFINITY, 0.0, 0.0]);
        }
    }

    #[test]
    fn erfc_is_accurate_until_it_vanishes() {
        let x: Vec<f32> = (0..100_000).map(|i| i as f32 * 1e-4).collect();
        for level in levels() {
            for (&x, y) in x.iter().zip(apply(level, Function::Erfc, &x)) {
                let expected = libm::erfc(f64::from(x));
                let bound = (4.0 + 2.0 * f64::from(x * x)) * f64::from(f32::EPSILON) * expected + 1e-44;
                assert!((f64::from(y) - expected).abs() < bound, "erfc({x}) = {y:e}, expected {expected:e}");
            }
            assert_eq!(apply(level, Function::Erfc, &[30.0, f32::INFINITY]), [0.0, 0.0]);
        }
    }

    #[test]
    fn all_levels_give_the_same_bits() {
        let x: Vec<f32> = (-20_000..20_000).map(|i| i as f32 * 5.3e-3).collect();
        for function in [Function::Exp, Function::Erfc] {
            let x: Vec<f32> = match function {
                Function::Exp => x.clone(),
                Function::Erfc => x.iter().map(|x| x.abs()).collect(),
            };
            let bits = |level| apply(level, function, &x).iter().map(|y| y.to_bits()).collect::<Vec<_>>();
            let portable = bits(SimdLevel::Portable);
            for level in levels() {
                assert!(bits(level) == portable, "{level}");
            }
        }
    }
}

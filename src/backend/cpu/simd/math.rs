//! Exponential, complementary error function and the activations, in vectors.

use super::Simd;
use crate::config::Activation;
use crate::element::Element;

/// e^x as `2^n * e^r` with `n = round(x / ln 2)`: the classic reduction with ln 2 in two parts, then
/// a polynomial `1 + r + r^2 q(r)`. `q` interpolates at Chebyshev nodes (relative error 1.1e-8).
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
    let p = s.fma(s.mul(r, r), q, s.add(r, one));
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

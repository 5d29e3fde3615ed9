//! What a sample says of the mean, the ratio or the share that it was drawn from, and of the difference of two
//! systems that answered the same questions.
//!
//! Values are in whatever unit the caller has; all intervals are of 95 %. A value that is not finite makes the
//! results NaN, except where it is an error ([`paired`]).

use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::error::{Error, Result};
use crate::rng::{Purpose, Rng};

/// Where an interval of 95 % ends, as a quantile.
const UPPER: f64 = 0.975;
/// The [`UPPER`] quantile of the standard normal distribution.
const Z: f64 = 1.959_963_984_540_054;
/// Degrees of freedom from which on quantiles are those of the normal distribution with corrections.
const MANY: f64 = 1000.0;
/// Sums that differ by so much of the sum of magnitudes count as the same: far more than rounding can make.
const SAME: f64 = 1e-12;

/// A mean and the interval in which it lies.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// Number of values.
    pub n: usize,
    pub mean: f64,
    /// Standard deviation of the sample (divided by n - 1); 0 for fewer than two values.
    pub sd: f64,
    pub low: f64,
    pub high: f64,
}

/// The mean of `values` with its Student-t interval of n - 1 degrees; for one value the interval is that value, for
/// none all is 0.
pub fn estimate(values: &[f64]) -> Estimate {
    let n = values.len();
    let (mean, sd) = moments(values);
    let half = half_width(sd / (n.max(1) as f64).sqrt(), n);
    Estimate { n, mean, sd, low: mean - half, high: mean + half }
}

/// A ratio of sums and the interval in which it lies.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ratio {
    pub value: f64,
    pub standard_error: f64,
    pub low: f64,
    pub high: f64,
}

/// The sum of the first numbers of `items` over the sum of the second: a mean in which items weigh as much as their
/// denominators. The standard error is by the residuals of a ratio of sums (Cochran, "Sampling techniques", section
/// 6.4), 0 for fewer than two items; the interval is Student's with n - 1 degrees. All is 0 where the denominators
/// add up to 0.
pub fn ratio(items: &[(f64, f64)]) -> Ratio {
    let n = items.len();
    let below: f64 = items.iter().map(|item| item.1).sum();
    if below == 0.0 {
        return Ratio::default();
    }
    let value = items.iter().map(|item| item.0).sum::<f64>() / below;
    let mut standard_error = 0.0;
    if n > 1 {
        let squares: f64 = items.iter().map(|(above, below)| (above - value * below).powi(2)).sum();
        standard_error = (squares / (n - 1) as f64 * n as f64).sqrt() / below.abs();
    }
    let half = half_width(standard_error, n);
    Ratio { value, standard_error, low: value - half, high: value + half }
}

/// The score interval of a share, within 0 and 1 (Wilson, "Probable inference, the law of succession, and
/// statistical inference", 1927). `successes` of `n` may be a fraction, as the sum of scores between 0 and 1 is; a
/// share of nothing, or one that is NaN, can be anything.
pub fn wilson(successes: f64, n: usize) -> (f64, f64) {
    if n == 0 || successes.is_nan() {
        return (0.0, 1.0);
    }
    let n = n as f64;
    let share = (successes / n).clamp(0.0, 1.0);
    let centre = share + Z * Z / (2.0 * n);
    let half = Z * (share * (1.0 - share) / n + (Z / (2.0 * n)).powi(2)).sqrt();
    let scale = 1.0 + Z * Z / n;
    let low = if share == 0.0 { 0.0 } else { ((centre - half) / scale).max(0.0) };
    let high = if share == 1.0 { 1.0 } else { ((centre + half) / scale).min(1.0) };
    (low, high)
}

/// Two systems, `a` and `b`, compared on the same items.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Paired {
    /// Number of pairs.
    pub n: usize,
    pub mean_a: f64,
    pub mean_b: f64,
    /// The mean of b - a.
    pub difference: f64,
    /// Standard deviation of the differences (divided by n - 1).
    pub sd: f64,
    /// Interval of the mean difference: percentiles of means of differences that are drawn again.
    pub low: f64,
    pub high: f64,
    /// How probable a mean difference at least as far from 0 is where there is none, by the bootstrap.
    pub p_bootstrap: f64,
    /// Student's t of the differences; infinite where all are the same but not 0.
    pub t: f64,
    /// The same probability by Student's t with n - 1 degrees.
    pub p_t: f64,
}

/// Compares `b` with `a`, item by item.
///
/// Both the interval and the probability are those of a bootstrap over items (Efron and Tibshirani, "An introduction
/// to the bootstrap", 1993, chapters 13 and 16): means are drawn again `resamples` times, for the probability after
/// the mean difference was taken away, and the observed one counts as one of the draws. The result depends on `seed`
/// and the values alone.
///
/// # Errors
/// [`Error::Request`] for different lengths, fewer than two pairs, no resamples, or numbers that are not finite or
/// whose differences are beyond the range of 64-bit numbers.
pub fn paired(a: &[f64], b: &[f64], resamples: u32, seed: u64) -> Result<Paired> {
    if a.len() != b.len() {
        return Err(Error::request(format!(
            "pairs: expected as many of both, got {} and {}",
            a.len(),
            b.len()
        )));
    }
    let n = u32::try_from(a.len()).ok().filter(|n| *n > 1);
    let n = n.ok_or_else(|| Error::request(format!("pairs: expected 2 to {}, got {}", u32::MAX, a.len())))?;
    if resamples == 0 {
        return Err(Error::request("resamples: expected at least 1, got 0"));
    }
    for (name, values) in [("a", a), ("b", b)] {
        if let Some((i, value)) = values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Err(Error::request(format!("pair {i}, {name}: expected a finite number, got {value}")));
        }
    }
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    let (difference, sd) = moments(&differences);
    let ((mean_a, _), (mean_b, _)) = (moments(a), moments(b));
    if ![difference, sd, mean_a, mean_b].iter().all(|number| number.is_finite()) {
        return Err(Error::request("pairs: expected differences of 64-bit numbers, got some beyond them"));
    }
    let count = f64::from(n);
    let (t, p_t) = if difference == 0.0 {
        (0.0, 1.0)
    } else {
        // Infinite where sd is 0.
        let t = difference / (sd / count.sqrt());
        (t, two_sided(t, count - 1.0))
    };
    // Sums instead of means: of scores that are whole numbers they are exact, so that draws as far off as the
    // observed difference are told from others.
    let sum: f64 = differences.iter().sum();
    let magnitude: f64 = differences.iter().map(|d| d.abs()).sum();
    let bound = sum.abs() - SAME * magnitude;
    let rng = Rng::new(seed);
    let mut sums: Vec<f64> = (0..resamples).map(|step| resampled(&differences, n, &rng, step)).collect();
    let extreme = sums.iter().filter(|drawn| (**drawn - sum).abs() >= bound).count();
    sums.sort_unstable_by(f64::total_cmp);
    Ok(Paired {
        n: a.len(),
        mean_a,
        mean_b,
        difference,
        sd,
        low: quantile(&sums, 1.0 - UPPER) / count,
        high: quantile(&sums, UPPER) / count,
        p_bootstrap: (extreme as f64 + 1.0) / (f64::from(resamples) + 1.0),
        t,
        p_t,
    })
}

/// The sum of `n` of the `n` values, drawn with replacement: draw i is by word i mod 4 of position i / 4.
fn resampled(values: &[f64], n: u32, rng: &Rng, step: u32) -> f64 {
    let mut sum = 0.0;
    for block in 0..n.div_ceil(4) {
        let words = rng.words(Purpose::Measure, 0, step, block);
        for word in words.into_iter().take((n - 4 * block) as usize) {
            let place = (u64::from(word) * u64::from(n)) >> 32;
            sum += values.get(place as usize).copied().unwrap_or_default();
        }
    }
    sum
}

/// Mean, and standard deviation of a sample; both 0 where there are too few values. The mean is corrected by the
/// mean of the residuals, so that of equal values it is that value, and the deviation is 0.
fn moments(values: &[f64]) -> (f64, f64) {
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let n = values.len() as f64;
    let first = values.iter().sum::<f64>() / n;
    let mean = first + values.iter().map(|value| value - first).sum::<f64>() / n;
    if values.len() < 2 {
        return (mean, 0.0);
    }
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0)).sqrt())
}

/// How far an interval of 95 % reaches to either side, by the standard error of something that `n` items tell of.
fn half_width(standard_error: f64, n: usize) -> f64 {
    if n < 2 { 0.0 } else { upper_quantile((n - 1) as f64) * standard_error }
}

/// The [`UPPER`] quantile of Student's t.
fn upper_quantile(degrees: f64) -> f64 {
    if degrees < MANY {
        return StudentsT::new(0.0, 1.0, degrees).map_or(f64::NAN, |student| student.inverse_cdf(UPPER));
    }
    // From the normal distribution's, by powers of 1 / degrees (Abramowitz and Stegun, "Handbook of mathematical
    // functions", 26.7.5): the inversion of the other branch loses digits and at last does not end.
    let odd = [3, 5, 7].map(|power| Z.powi(power));
    let first = (odd[0] + Z) / 4.0;
    let second = (5.0 * odd[1] + 16.0 * odd[0] + 3.0 * Z) / 96.0;
    let third = (3.0 * odd[2] + 19.0 * odd[1] + 17.0 * odd[0] - 15.0 * Z) / 384.0;
    Z + (first + (second + third / degrees) / degrees) / degrees
}

/// The probability of a t as far from 0 as this, or further.
fn two_sided(t: f64, degrees: f64) -> f64 {
    if t.is_infinite() {
        return 0.0;
    }
    StudentsT::new(0.0, 1.0, degrees).map_or(f64::NAN, |student| (2.0 * student.sf(t.abs())).min(1.0))
}

/// A quantile of numbers in order, by the line between the two that are next to it; NaN of none.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * sorted.len().saturating_sub(1) as f64;
    let at = |place: f64| sorted.get(place as usize).copied().unwrap_or(f64::NAN);
    let (low, high) = (at(place.floor()), at(place.ceil()));
    low + (high - low) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, expected: f64, within: f64) {
        assert!((got - expected).abs() <= within, "got {got}, expected {expected}");
    }

    #[test]
    fn an_estimate_by_hand() {
        // Deviations -3 -1 -1 -1 0 0 2 4 of the mean 5: squares 9 1 1 1 0 0 4 16, sum 32; 32 / 7 = 4.571429.
        let got = estimate(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        assert_eq!((got.n, got.mean), (8, 5.0));
        close(got.sd, (32.0_f64 / 7.0).sqrt(), 1e-15);
        // t of 7 degrees is 2.364624 in tables; half = 2.364624 * 2.138090 / sqrt 8 = 1.787487.
        close(got.low, 5.0 - 1.787_487, 1e-5);
        close(got.high, 5.0 + 1.787_487, 1e-5);
    }

    #[test]
    fn estimates_of_little() {
        assert_eq!(estimate(&[]), Estimate { n: 0, mean: 0.0, sd: 0.0, low: 0.0, high: 0.0 });
        assert!(estimate(&[]).mean.is_sign_positive());
        assert_eq!(estimate(&[0.1]), Estimate { n: 1, mean: 0.1, sd: 0.0, low: 0.1, high: 0.1 });
        assert_eq!(estimate(&[0.1; 3]), Estimate { n: 3, mean: 0.1, sd: 0.0, low: 0.1, high: 0.1 });
        for value in [f64::NAN, f64::INFINITY] {
            let got = estimate(&[1.0, value]);
            assert!([got.mean, got.sd, got.low, got.high].iter().all(|x| x.is_nan()), "{got:?}");
        }
    }

    #[test]
    fn quantiles_of_students_t_as_in_tables() {
        let tables = [(2, 12.706_205), (3, 4.302_653), (11, 2.228_139), (101, 1.983_972), (1001, 1.962_339)];
        for (n, expected) in tables.into_iter().chain([(usize::MAX, Z)]) {
            close(half_width(1.0, n), expected, 1e-6);
        }
        // The first correction of a million degrees is (z^3 + z) / 4 = (7.529121 + 1.959964) / 4 of a millionth.
        close(half_width(1.0, 1_000_001), Z + 2.372_271e-6, 1e-11);
        // Both ways of the inversion meet.
        close(upper_quantile(MANY - 1e-9), upper_quantile(MANY), 1e-11);
        close(two_sided(2.228_138_852, 10.0), 0.05, 1e-9);
        close(two_sided(-12.706_204_736, 1.0), 0.05, 1e-9);
        assert_eq!(two_sided(0.0, 3.0), 1.0);
    }

    #[test]
    fn a_ratio_by_hand() {
        // 6 / 4 = 1.5; residuals 1 - 1.5, 2 - 1.5, 3 - 1.5 * 2 are -0.5, 0.5, 0, squares 0.5;
        // sqrt(0.5 / 2 * 3) / 4 = 0.216506. t of 2 degrees is 4.302653, half 0.931552.
        let got = ratio(&[(1.0, 1.0), (2.0, 1.0), (3.0, 2.0)]);
        assert_eq!(got.value, 1.5);
        close(got.standard_error, 0.75_f64.sqrt() / 4.0, 1e-15);
        close(got.low, 1.5 - 0.931_552, 1e-5);
        close(got.high, 1.5 + 0.931_552, 1e-5);
        // With denominators of 1 it is the mean.
        let (got, mean) = (ratio(&[(1.0, 1.0), (4.0, 1.0)]), estimate(&[1.0, 4.0]));
        close(got.value, mean.mean, 1e-15);
        close(got.high, mean.high, 1e-12);
    }

    #[test]
    fn ratios_of_little() {
        assert_eq!(ratio(&[]), Ratio::default());
        assert_eq!(ratio(&[(1.0, 0.0), (2.0, 0.0)]), Ratio::default());
        assert_eq!(ratio(&[(3.0, 2.0)]), Ratio { value: 1.5, standard_error: 0.0, low: 1.5, high: 1.5 });
        assert!(ratio(&[(f64::NAN, 1.0), (1.0, 1.0)]).high.is_nan());
    }

    #[test]
    fn shares() {
        // 8 of 10: z^2 = 3.841459, centre 0.8 + 0.192073, half 1.959964 * sqrt(0.016 + 0.009604) = 0.313619,
        // both over 1.384146: 0.490162 and 0.943318.
        let (low, high) = wilson(8.0, 10);
        close(low, 0.490_162, 1e-6);
        close(high, 0.943_318, 1e-6);
        // 0 of 10: z^2 / (10 + z^2) = 0.277533.
        let (low, high) = wilson(0.0, 10);
        assert_eq!(low, 0.0);
        close(high, 0.277_533, 1e-6);
        let (low, high) = wilson(10.0, 10);
        close(low, 1.0 - 0.277_533, 1e-6);
        assert_eq!(high, 1.0);
        assert_eq!(wilson(11.0, 10), wilson(10.0, 10));
        assert_eq!((wilson(0.0, 0), wilson(f64::NAN, 5)), ((0.0, 1.0), (0.0, 1.0)));
    }

    #[test]
    fn a_pairing_by_hand() {
        // Differences 1 2 3 0 4: mean 2, squares of deviations 1 0 1 4 4, sd sqrt(10 / 4), t = 2 / sqrt(2.5 / 5).
        let (a, b) = ([1.0, 1.0, 1.0, 1.0, 1.0], [2.0, 3.0, 4.0, 1.0, 5.0]);
        let got = paired(&a, &b, 4000, 1).unwrap();
        assert_eq!((got.n, got.mean_a, got.mean_b, got.difference), (5, 1.0, 3.0, 2.0));
        close(got.sd, 2.5_f64.sqrt(), 1e-15);
        close(got.t, 8.0_f64.sqrt(), 1e-14);
        // With x = t^2 / (4 + t^2) = 2 / 3 the probability of 4 degrees is 1 - sqrt x (1 + (1 - x) / 2) = 0.047421.
        close(got.p_t, 1.0 - (2.0_f64 / 3.0).sqrt() * (7.0 / 6.0), 1e-12);
        // A mean drawn again has the deviation sqrt(2 / 5) = 0.632, as differences over n have the variance 2.
        close(got.high - got.low, 2.0 * Z * 0.4_f64.sqrt(), 0.2);
        assert!(got.low > 0.0 && got.high < 4.0, "{got:?}");
        // Centred sums reach 10 or -10 only as 2 2 2 2 2 and -2 -2 -2 -2 -2, each in one of 5^5 = 3125 draws.
        close(got.p_bootstrap, 2.0 / 3125.0, 0.0015);
        assert_eq!(got, paired(&a, &b, 4000, 1).unwrap());
        let back = paired(&b, &a, 4000, 1).unwrap();
        assert_eq!((back.difference, back.t, back.p_t), (-2.0, -got.t, got.p_t));
        assert_eq!((back.low, back.high, back.p_bootstrap), (-got.high, -got.low, got.p_bootstrap));
    }

    #[test]
    fn draws_as_far_off_as_the_difference_count() {
        // Differences 1 and 0: draws sum to 0, 1, 1 or 2 and are 1 off the observed 1 in half of all cases. In tenths
        // the sums are rounded.
        for (a, b) in [([0.0, 1.0], [1.0, 1.0]), ([0.7, 0.3], [0.8, 0.3])] {
            close(paired(&a, &b, 4000, 5).unwrap().p_bootstrap, 0.5, 0.04);
        }
    }

    #[test]
    fn many_pairs_are_near_to_the_normal_distribution() {
        // Differences -1, 0, 1, 2 in turn: mean 0.5, variance 1.25 * 1000 / 999, so the interval is
        // 0.5 -+ 1.96 * sqrt(1.25 / 1000) = 0.5 -+ 0.069296.
        let (a, b): (Vec<f64>, Vec<f64>) = (0..1000).map(|i| (1.0, f64::from(i % 4))).unzip();
        let got = paired(&a, &b, 2000, 3).unwrap();
        close(got.low, 0.5 - 0.069_296, 0.006);
        close(got.high, 0.5 + 0.069_296, 0.006);
        close(got.sd, (1250.0_f64 / 999.0).sqrt(), 1e-12);
        assert_eq!(got.p_bootstrap, 1.0 / 2001.0);
        let other = paired(&a, &b, 2000, 4).unwrap();
        assert!((got.low, got.high) != (other.low, other.high), "another seed");
    }

    #[test]
    fn pairs_that_differ_by_the_same() {
        let same = paired(&[0.1, 0.2, 0.3], &[0.1, 0.2, 0.3], 99, 0).unwrap();
        assert_eq!((same.difference, same.sd, same.low, same.high), (0.0, 0.0, 0.0, 0.0));
        assert_eq!((same.p_bootstrap, same.t, same.p_t), (1.0, 0.0, 1.0));
        let more = paired(&[0.0; 3], &[0.1; 3], 99, 0).unwrap();
        assert_eq!((more.sd, more.t, more.p_t), (0.0, f64::INFINITY, 0.0));
        assert_eq!(more.p_bootstrap, 1.0 / 100.0);
        assert_eq!(paired(&[0.1; 3], &[0.0; 3], 99, 0).unwrap().t, f64::NEG_INFINITY);
    }

    #[test]
    fn pairs_that_cannot_be_compared() {
        let message = |a: &[f64], b: &[f64], resamples| paired(a, b, resamples, 0).unwrap_err().to_string();
        assert!(message(&[1.0, 2.0], &[1.0], 9).contains("2 and 1"));
        assert!(message(&[1.0], &[1.0], 9).contains("got 1") && message(&[], &[], 9).contains("got 0"));
        assert!(message(&[1.0, 2.0], &[1.0, f64::NAN], 9).contains("pair 1, b"));
        assert!(message(&[f64::INFINITY, 2.0], &[1.0, 2.0], 9).contains("pair 0, a"));
        assert!(message(&[f64::MAX, 0.0], &[f64::MIN, 0.0], 9).contains("beyond"));
        assert!(message(&[1.0, 2.0], &[1.0, 2.0], 0).contains("resamples"));
    }
}

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
/// 6.4), 0 for fewer than two items; the interval is Student's with n - 1 degrees. `None` where the denominators add
/// up to 0.
pub fn ratio(items: &[(f64, f64)]) -> Option<Ratio> {
    let n = items.len();
    let below: f64 = items.iter().map(|item| item.1).sum();
    if below == 0.0 {
        return None;
    }
    let value = items.iter().map(|item| item.0).sum::<f64>() / below;
    let mut standard_error = 0.0;
    if n > 1 {
        let squares: f64 = items.iter().map(|(above, below)| (above - value * below).powi(2)).sum();
        standard_error = (squares / (n - 1) as f64 * n as f64).sqrt() / below.abs();
    }
    let half = half_width(standard_error, n);
    Some(Ratio { value, standard_error, low: value - half, high: value + half })
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
    /// The mean of a, or its ratio of sums.
    pub mean_a: f64,
    pub mean_b: f64,
    /// The mean of b - a, or the difference of the ratios.
    pub difference: f64,
    /// Standard deviation of the differences (divided by n - 1).
    pub sd: f64,
    /// Interval of the difference: percentiles of those of items that are drawn again.
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
    let n = number_of_pairs(a.len(), b.len(), resamples)?;
    for (name, values) in [("a", a), ("b", b)] {
        if let Some((i, value)) = values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Err(Error::request(format!("pair {i}, {name}: expected a finite number, got {value}")));
        }
    }
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    let (difference, sd) = moments(&differences);
    let ((mean_a, _), (mean_b, _)) = (moments(a), moments(b));
    in_range(&[difference, sd, mean_a, mean_b])?;
    let count = f64::from(n);
    let (t, p_t) = student(difference, sd, count);
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

/// Compares the ratios of sums of `b` and `a`, of items as [`ratio`] has them.
///
/// Items are drawn again with all their numbers, and each draw has the ratios of its sums; for the probability the
/// observed difference is taken away. The t-test is of linearised items (the delta method): an item differs from the
/// difference of the ratios by its residual of `b` over the mean denominator of `b`, less the same of `a`, where a
/// residual is the numerator less the ratio times the denominator. Where all denominators of a system are the same, it
/// is [`paired`] of the items' ratios.
///
/// # Errors
/// As [`paired`]; [`Error::Request`] for a denominator that is not above 0.
pub fn paired_ratios(a: &[(f64, f64)], b: &[(f64, f64)], resamples: u32, seed: u64) -> Result<Paired> {
    let n = number_of_pairs(a.len(), b.len(), resamples)?;
    for (name, items) in [("a", a), ("b", b)] {
        let wrong = |(above, below): (f64, f64)| !above.is_finite() || !below.is_finite() || below <= 0.0;
        if let Some((i, (above, below))) = items.iter().enumerate().find(|(_, item)| wrong(**item)) {
            return Err(Error::request(format!(
                "pair {i}, {name}: expected a finite number over one above 0, got {above} over {below}"
            )));
        }
    }
    match (of_one_weight(a), of_one_weight(b)) {
        (Some(a), Some(b)) => paired(&a, &b, resamples, seed),
        _ => linearised(a, b, n, resamples, seed),
    }
}

/// The ratios of items that all have one denominator.
fn of_one_weight(items: &[(f64, f64)]) -> Option<Vec<f64>> {
    let first = items.first()?.1;
    items.iter().map(|(above, below)| (*below == first).then(|| above / first)).collect()
}

/// Items as parts of a ratio of sums.
struct Parts {
    ratio: f64,
    /// The mean denominator.
    mean: f64,
    /// The ratio with the magnitudes of the numerators.
    magnitude: f64,
    /// Residual and denominator of each item.
    items: Vec<(f64, f64)>,
}

impl Parts {
    fn of(items: &[(f64, f64)]) -> Self {
        let sum = |of: fn(&(f64, f64)) -> f64| items.iter().map(of).sum::<f64>();
        let below = sum(|item| item.1);
        let ratio = sum(|item| item.0) / below;
        Self {
            ratio,
            mean: below / items.len() as f64,
            magnitude: sum(|item| item.0.abs()) / below,
            items: items.iter().map(|&(above, below)| (above - ratio * below, below)).collect(),
        }
    }
}

/// [`paired_ratios`] of items that weigh differently.
fn linearised(a: &[(f64, f64)], b: &[(f64, f64)], n: u32, resamples: u32, seed: u64) -> Result<Paired> {
    let (a, b) = (Parts::of(a), Parts::of(b));
    let difference = b.ratio - a.ratio;
    let pairs = || a.items.iter().zip(&b.items);
    let linear: Vec<f64> = pairs().map(|(a_i, b_i)| b_i.0 / b.mean - a_i.0 / a.mean).collect();
    let (_, sd) = moments(&linear);
    in_range(&[difference, sd, a.ratio, b.ratio, a.mean, b.mean, a.magnitude, b.magnitude])?;
    let (t, p_t) = student(difference, sd, f64::from(n));
    // The residuals of drawn items over their denominators are by how much the ratio of their sums is off that of all.
    let rng = Rng::new(seed);
    let parts: Vec<_> = pairs().collect();
    let off = |step: u32| {
        let (mut above, mut below) = ([0.0; 2], [0.0; 2]);
        for (a_i, b_i) in places(n, &rng, step).filter_map(|place| parts.get(place)) {
            above = [above[0] + a_i.0, above[1] + b_i.0];
            below = [below[0] + a_i.1, below[1] + b_i.1];
        }
        above[1] / below[1] - above[0] / below[0]
    };
    let mut off: Vec<f64> = (0..resamples).map(off).collect();
    let bound = difference.abs() - SAME * (a.magnitude + b.magnitude);
    let extreme = off.iter().filter(|drawn| drawn.abs() >= bound).count();
    off.sort_unstable_by(f64::total_cmp);
    Ok(Paired {
        n: parts.len(),
        mean_a: a.ratio,
        mean_b: b.ratio,
        difference,
        sd,
        low: difference + quantile(&off, 1.0 - UPPER),
        high: difference + quantile(&off, UPPER),
        p_bootstrap: (extreme as f64 + 1.0) / (f64::from(resamples) + 1.0),
        t,
        p_t,
    })
}

/// How many pairs are compared.
fn number_of_pairs(a: usize, b: usize, resamples: u32) -> Result<u32> {
    if a != b {
        return Err(Error::request(format!("pairs: expected as many of both, got {a} and {b}")));
    }
    let n = u32::try_from(a).ok().filter(|n| *n > 1);
    let n = n.ok_or_else(|| Error::request(format!("pairs: expected 2 to {}, got {a}", u32::MAX)))?;
    if resamples == 0 {
        return Err(Error::request("resamples: expected at least 1, got 0"));
    }
    Ok(n)
}

fn in_range(numbers: &[f64]) -> Result<()> {
    match numbers.iter().all(|number| number.is_finite()) {
        true => Ok(()),
        false => Err(Error::request("pairs: expected differences of 64-bit numbers, got some beyond them")),
    }
}

/// Student's t of a mean difference, and the probability of one at least as far from 0.
fn student(difference: f64, sd: f64, count: f64) -> (f64, f64) {
    if difference == 0.0 {
        return (0.0, 1.0);
    }
    // Infinite where sd is 0.
    let t = difference / (sd / count.sqrt());
    (t, two_sided(t, count - 1.0))
}

/// The places of `n` of `n` items, drawn with replacement: draw i is by word i mod 4 of position i / 4.
fn places(n: u32, rng: &Rng, step: u32) -> impl Iterator<Item = usize> {
    let words = (0..n.div_ceil(4)).flat_map(move |block| rng.words(Purpose::Measure, 0, step, block));
    words.take(n as usize).map(move |word| ((u64::from(word) * u64::from(n)) >> 32) as usize)
}

/// The sum of `n` of the `n` values, drawn with replacement.
fn resampled(values: &[f64], n: u32, rng: &Rng, step: u32) -> f64 {
    places(n, rng, step).fold(0.0, |sum, place| sum + values.get(place).copied().unwrap_or_default())
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
#[path = "statistics_tests.rs"]
mod tests;

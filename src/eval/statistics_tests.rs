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
    let got = ratio(&[(1.0, 1.0), (2.0, 1.0), (3.0, 2.0)]).unwrap();
    assert_eq!(got.value, 1.5);
    close(got.standard_error, 0.75_f64.sqrt() / 4.0, 1e-15);
    close(got.low, 1.5 - 0.931_552, 1e-5);
    close(got.high, 1.5 + 0.931_552, 1e-5);
    // With denominators of 1 it is the mean.
    let (got, mean) = (ratio(&[(1.0, 1.0), (4.0, 1.0)]).unwrap(), estimate(&[1.0, 4.0]));
    close(got.value, mean.mean, 1e-15);
    close(got.high, mean.high, 1e-12);
}

#[test]
fn ratios_of_little() {
    assert_eq!((ratio(&[]), ratio(&[(1.0, 0.0), (2.0, 0.0)])), (None, None));
    let one = Ratio { value: 1.5, standard_error: 0.0, low: 1.5, high: 1.5 };
    assert_eq!(
        (ratio(&[(3.0, 2.0)]), ratio(&[(3.0, 2.0), (0.0, 0.0)]).map(|r| r.value)),
        (Some(one), Some(1.5))
    );
    assert!(ratio(&[(f64::NAN, 1.0), (1.0, 1.0)]).unwrap().high.is_nan());
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

#[test]
fn a_pairing_of_ratios_by_hand() {
    // Ratios of sums 8 / 4 and 10 / 4, mean denominator 2. Residuals of a are 0 and 0, of b 4 - 2.5 and 6 - 7.5, over
    // the mean 0.75 and -0.75: sd sqrt(2 * 0.5625), t = 0.5 / (sd / sqrt 2) = 2 / 3.
    let (a, b) = ([(2.0, 1.0), (6.0, 3.0)], [(4.0, 1.0), (6.0, 3.0)]);
    let got = paired_ratios(&a, &b, 4000, 1).unwrap();
    assert_eq!((got.n, got.mean_a, got.mean_b, got.difference), (2, 2.0, 2.5, 0.5));
    close(got.sd, 1.125_f64.sqrt(), 1e-15);
    close(got.t, 2.0 / 3.0, 1e-14);
    // One degree of freedom: 1 - 2 atan(t) / pi.
    close(got.p_t, 1.0 - 2.0 * (2.0_f64 / 3.0).atan() / std::f64::consts::PI, 1e-9);
    // Both items are drawn in half of all cases, the first twice in a quarter (4 - 2, off by 1.5), the second twice in a
    // quarter (2 - 2, off by -0.5).
    close(got.low, 0.0, 1e-12);
    close(got.high, 2.0, 1e-12);
    close(got.p_bootstrap, 0.5, 0.04);
    let back = paired_ratios(&b, &a, 4000, 1).unwrap();
    assert_eq!((back.difference, back.t, back.p_bootstrap), (-0.5, -got.t, got.p_bootstrap));
    let same = paired_ratios(&b, &b, 99, 1).unwrap();
    assert_eq!((same.difference, same.low, same.high), (0.0, 0.0, 0.0));
    assert_eq!((same.p_bootstrap, same.t, same.p_t), (1.0, 0.0, 1.0));
}

#[test]
fn ratios_of_one_denominator_are_compared_as_values() {
    let (a, b) = ([0.5, 1.0, 0.0, 1.0, 0.25], [1.0, 0.75, 0.25, 1.0, 1.0]);
    let values = paired(&a, &b, 500, 7).unwrap();
    let over = |values: [f64; 5], below: f64| values.map(|value| (value * below, below));
    let (a, b) = (over(a, 4.0), over(b, 8.0));
    assert_eq!(paired_ratios(&a, &b, 500, 7).unwrap(), values);
    // By sums it is the same but for rounding.
    let sums = linearised(&a, &b, 5, 500, 7).unwrap();
    for (got, expected) in [
        (sums.mean_a, values.mean_a),
        (sums.mean_b, values.mean_b),
        (sums.difference, values.difference),
        (sums.sd, values.sd),
        (sums.low, values.low),
        (sums.high, values.high),
        (sums.t, values.t),
        (sums.p_t, values.p_t),
        (sums.p_bootstrap, values.p_bootstrap),
    ] {
        close(got, expected, 1e-12);
    }
}

#[test]
fn ratios_that_cannot_be_compared() {
    let good = [(1.0, 1.0), (1.0, 2.0)];
    let message = |a: &[(f64, f64)], b: &[(f64, f64)], n| paired_ratios(a, b, n, 0).unwrap_err().to_string();
    assert!(message(&good, &good[..1], 9).contains("2 and 1"));
    assert!(message(&good[..1], &good[..1], 9).contains("got 1"));
    assert!(message(&good, &good, 0).contains("resamples"));
    assert!(message(&good, &[(1.0, 1.0), (1.0, 0.0)], 9).contains("pair 1, b"));
    assert!(message(&[(1.0, -1.0), (1.0, 2.0)], &good, 9).contains("pair 0, a"));
    assert!(message(&[(f64::NAN, 1.0), (1.0, 2.0)], &good, 9).contains("pair 0, a"));
    assert!(message(&[(1.0, f64::INFINITY), (1.0, 2.0)], &good, 9).contains("pair 0, a"));
    assert!(message(&[(f64::MAX, 1.0), (f64::MAX, 2.0)], &good, 9).contains("beyond"));
}

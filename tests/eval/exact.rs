//! The estimators of the bound against the bound itself, on texts so short that all masks can be gone through.

use lacuna::eval::bound::{Estimator, Scored, Text, Times, total};
use lacuna::eval::score::{Likelihood, Probe, Scorer};
use lacuna::rng::Rng;

use super::common::{fixture, load};

const MIN_TIME: f64 = 1e-3;

/// `1 / (1 - MIN_TIME)` times the integral of `t^(k-1) (1-t)^(n-k)` from MIN_TIME to 1, by Simpson's rule.
fn weight(k: usize, n: usize) -> f64 {
    let f = |t: f64| t.powi(k as i32 - 1) * (1.0 - t).powi((n - k) as i32);
    let steps = 20_000;
    let h = (1.0 - MIN_TIME) / f64::from(steps);
    let at = |i: i32| f(MIN_TIME + f64::from(i) * h);
    let inner: f64 = (1..steps).map(|i| at(i) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
    (at(0) + inner + at(steps)) * h / 3.0 / (1.0 - MIN_TIME)
}

/// The bound of a text in nats: every mask, with its probability over times.
fn exact(model: &mut dyn Likelihood, text: &Text, mask_id: u32) -> f64 {
    let free: Vec<usize> = (1..text.ids.len()).filter(|&at| !text.fixed[at]).collect();
    let n = free.len();
    (1u32..1 << n)
        .map(|set| {
            let mut masked = vec![false; text.ids.len()];
            for (bit, &at) in free.iter().enumerate() {
                masked[at] = set >> bit & 1 == 1;
            }
            let probe = Probe::masked(&text.ids, &masked, mask_id, true);
            let sum: f64 = model.nll(&[probe], false).unwrap()[0].iter().sum();
            sum * weight(set.count_ones() as usize, n)
        })
        .sum()
}

fn texts() -> Vec<Text> {
    let ids = [[3, 17, 5, 9, 30, 2, 11], [8, 8, 21, 4, 4, 19, 6]];
    let text =
        |ids: &[u32; 7]| Text { ids: ids.to_vec(), fixed: (0..7).map(|at| at < 1 || at == 3).collect() };
    ids.iter().map(text).collect()
}

#[test]
fn weights_are_those_of_a_uniform_time() {
    // Without the cut at MIN_TIME: k - 1 successes of n - 1 at a uniform rate, 1 / (k C(n, k)).
    assert!((weight(2, 4) - 1.0 / (2.0 * 6.0)).abs() < 2e-4);
    assert!((weight(4, 4) - 0.25).abs() < 3e-4);
}

#[test]
fn both_estimators_agree_and_their_intervals_cover_the_truth() {
    let mut model = Scorer::new(load(&fixture("golden/gpt2-tiny"), 1));
    let (mask_id, texts) = (0, texts());
    let truth: f64 = texts.iter().map(|t| exact(&mut model, t, mask_id)).sum();
    let numbered: Vec<(u32, &Text)> = (0..).zip(&texts).collect();
    let mut spread = Vec::new();
    for times in [Times::MonteCarlo, Times::Stratified] {
        let estimator = Estimator { times, draws: 64, mask_id, shift: true };
        let (mut covered, mut estimates) = (0, Vec::new());
        const SEEDS: u64 = 60;
        for seed in 0..SEEDS {
            let scored = estimator.score(&mut model, &Rng::new(seed), &numbered).unwrap();
            let bound = total(&scored, times);
            assert_eq!(bound.tokens, 10, "five of each text: the first and one more are given");
            let estimate = bound.per_token.unwrap().value * 10.0;
            covered += u64::from((estimate - truth).abs() <= bound.of_draws.unwrap() * 10.0);
            estimates.push(estimate);
        }
        // 95 % of 60 are 57; fewer than 50 would come once in ten thousand.
        assert!(covered >= 50, "{times:?}: {covered} of {SEEDS} intervals cover {truth}");
        let mean = estimates.iter().sum::<f64>() / SEEDS as f64;
        let sd = (estimates.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (SEEDS - 1) as f64).sqrt();
        // Four standard errors of the mean.
        assert!((mean - truth).abs() < 4.0 * sd / (SEEDS as f64).sqrt(), "{times:?}: {mean} for {truth}");
        spread.push(sd);
    }
    assert!(spread[1] < spread[0], "strata leave less to chance: {spread:?}");
}

#[test]
fn what_a_text_gets_does_not_depend_on_its_company() {
    let mut model = Scorer::new(load(&fixture("golden/gpt2-tiny"), 1));
    let texts = texts();
    let estimator = Estimator { times: Times::Stratified, draws: 3, mask_id: 0, shift: true };
    let rng = Rng::new(4);
    let together = estimator.score(&mut model, &rng, &[(0, &texts[0]), (1, &texts[1])]).unwrap();
    let alone: Vec<Scored> = estimator.score(&mut model, &rng, &[(1, &texts[1])]).unwrap();
    assert_eq!(together[1], alone[0]);
    assert!(estimator.score(&mut model, &rng, &[]).unwrap().is_empty());
    let none = Estimator { draws: 0, ..estimator };
    assert!(none.score(&mut model, &rng, &[]).unwrap_err().to_string().contains("1 draw"));
}

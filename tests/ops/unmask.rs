//! Drawing tokens: a naive implementation with a sort, in f64, judges the CPU's.

use std::num::NonZeroUsize;

use lacuna::Error;
use lacuna::backend::cpu::Cpu;
use lacuna::backend::cpu::unmask::{keep_mask, unmask_rows};
use lacuna::backend::{Backend, Confidence, NO_TOKEN, RowDraw, RowNoise, RowParams, Unmask, unmask_words};
use lacuna::rng::{Purpose, Rng};
use proptest::prelude::*;
use statrs::distribution::{ChiSquared, ContinuousCDF};

#[path = "../support/golden.rs"]
mod golden;
use golden::{Golden, MODELS};

const PLAIN: RowParams = RowParams::PLAIN;

/// The definition, by sorting.
struct Naive {
    /// Probabilities after temperature, before top-k and top-p.
    probs: Vec<f64>,
    /// Ids from the most to the least probable, ties to the lower id.
    ranking: Vec<usize>,
}

impl Naive {
    fn new(row: &[f32], params: &RowParams) -> Self {
        let temperature = if params.temperature == 0.0 { 1.0 } else { f64::from(params.temperature) };
        let z = |i: usize| {
            if i == params.suppress as usize { f64::NEG_INFINITY } else { f64::from(row[i]) / temperature }
        };
        let max = (0..row.len()).map(z).fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = (0..row.len()).map(|i| (z(i) - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mut ranking: Vec<usize> = (0..row.len()).collect();
        ranking.sort_by(|&a, &b| z(b).partial_cmp(&z(a)).unwrap());
        Self { probs: weights.iter().map(|w| w / sum).collect(), ranking }
    }

    /// How many of the ranking survive top-k and top-p.
    fn kept(&self, top_k: u32, top_p: f64) -> usize {
        let n = if top_k == 0 { self.ranking.len() } else { self.ranking.len().min(top_k as usize) };
        let total: f64 = self.ranking[..n].iter().map(|&i| self.probs[i]).sum();
        let mut before = 0.0;
        for (rank, &i) in self.ranking[..n].iter().enumerate() {
            if rank > 0 && before > top_p * total {
                return rank;
            }
            before += self.probs[i];
        }
        n
    }

    /// The token drawn among the first `kept` of the ranking.
    fn draw(&self, kept: usize, uniform: f64) -> usize {
        let mut ids = self.ranking[..kept].to_vec();
        ids.sort_unstable();
        let total: f64 = ids.iter().map(|&i| self.probs[i]).sum();
        let mut sum = 0.0;
        for &i in &ids {
            sum += self.probs[i];
            if sum > uniform * total {
                return i;
            }
        }
        *ids.iter().rfind(|&&i| self.probs[i] > 0.0).unwrap()
    }
}

fn draw(row: &[f32], params: &RowParams) -> RowDraw {
    let mut out = [RowDraw::default()];
    unmask_rows(row, row.len(), &[*params], &mut out).unwrap();
    out[0]
}

/// Compares the survivors and the draw of one row with the naive ones. Where a difference of 1e-6 in
/// p or in the uniform number changes the naive answer, any answer within that range is right.
fn check(row: &[f32], params: &RowParams) {
    let naive = Naive::new(row, params);
    let p = f64::from(params.top_p);
    let (few, many) = if p >= 1.0 {
        (naive.kept(params.top_k, 1.0), naive.kept(params.top_k, 1.0))
    } else {
        (naive.kept(params.top_k, p - 1e-6), naive.kept(params.top_k, p + 1e-6))
    };
    let best = naive.probs[naive.ranking[0]];
    let keep = keep_mask(row, params).unwrap();
    for (rank, &id) in naive.ranking.iter().enumerate() {
        let weight = naive.probs[id] / best * 2f64.powi(40);
        if params.temperature == 0.0 {
            assert_eq!(keep[id], rank == 0);
        } else if rank < few && weight > 1.0 + 1e-4 {
            assert!(keep[id], "{params:?}: rank {rank}, id {id}, is missing among at least {few}");
        } else if rank >= many || weight < 1.0 - 1e-4 {
            assert!(!keep[id], "{params:?}: rank {rank}, id {id}, is among at most {many}");
        }
    }
    let got = draw(row, params);
    let token = got.token as usize;
    assert!(keep[token], "{params:?}: {token} was drawn but not kept");
    if params.temperature == 0.0 {
        assert_eq!(token, naive.ranking[0]);
    } else {
        let u = f64::from(params.uniform);
        let tokens: Vec<usize> =
            [few, many].iter().flat_map(|&kept| [u - 1e-6, u + 1e-6].map(|u| naive.draw(kept, u))).collect();
        let (low, high) = (tokens.iter().min().unwrap(), tokens.iter().max().unwrap());
        assert!((low..=high).contains(&&token), "{params:?}: drew {token}, expected {low}..={high}");
    }
    check_scores(&naive, params, &got);
}

fn check_scores(naive: &Naive, params: &RowParams, got: &RowDraw) {
    let close = |got: f32, expected: f64, what: &str| {
        let error = (f64::from(got) - expected).abs();
        assert!(error <= 2e-6 * expected.abs() + 1e-6, "{params:?}: {what} {got}, expected {expected}");
    };
    // The logarithm of a probability loses what the probability's own rounding lost.
    let log_prob = naive.probs[got.token as usize].ln();
    close(got.log_prob, log_prob, "log probability");
    let confidence = match params.confidence {
        Confidence::MaxProb => log_prob,
        Confidence::Entropy => naive.probs.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum(),
        Confidence::Margin => {
            naive.probs[naive.ranking[0]] - naive.ranking.get(1).map_or(0.0, |&i| naive.probs[i])
        }
    };
    close(got.confidence, confidence, "confidence");
    if params.given == NO_TOKEN {
        assert_eq!(got.given_log_prob, 0.0);
    } else {
        let expected = naive.probs[params.given as usize].ln();
        if expected.is_finite() && expected > -600.0 {
            close(got.given_log_prob, expected, "log probability of the given token");
        } else {
            assert!(got.given_log_prob < -500.0);
        }
    }
}

fn confidence() -> impl Strategy<Value = Confidence> {
    prop_oneof![Just(Confidence::MaxProb), Just(Confidence::Entropy), Just(Confidence::Margin)]
}

fn params(vocab: u32) -> impl Strategy<Value = RowParams> {
    let temperature = prop_oneof![Just(0.0f32), Just(1.0), 0.1f32..3.0];
    let top_p = prop_oneof![Just(0.0f32), Just(1.0), Just(1e-7), Just(0.9), 0.0f32..1.0];
    let top_k = prop_oneof![Just(0u32), Just(1), 0..vocab + 2];
    let suppress = prop_oneof![Just(NO_TOKEN), 0..vocab];
    let given = prop_oneof![Just(NO_TOKEN), 0..vocab];
    (temperature, top_p, top_k, suppress, 0.0f32..1.0, confidence(), given).prop_map(
        |(temperature, top_p, top_k, suppress, uniform, confidence, given)| RowParams {
            temperature,
            top_p,
            top_k,
            suppress,
            uniform,
            confidence,
            given,
        },
    )
}

/// Rows with many ties, spread-out rows and rows with forbidden tokens.
fn row() -> impl Strategy<Value = Vec<f32>> {
    let len = prop_oneof![Just(1usize), Just(2), Just(31), Just(64), Just(65), 1usize..300];
    len.prop_flat_map(|n| {
        let ties = prop::collection::vec((-3i8..3).prop_map(f32::from), n);
        let zeros = prop::collection::vec(prop_oneof![Just(0.0f32), Just(-0.0)], n);
        let spread = prop::collection::vec(-12.0f32..12.0, n);
        let wide = prop::collection::vec(-3e38f32..3e38, n);
        let gaps = prop::collection::vec(
            prop_oneof![2 => -5.0f32..5.0, 1 => Just(f32::NEG_INFINITY), 1 => Just(1.5f32)],
            n,
        );
        prop_oneof![ties, zeros, spread, wide, gaps]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_sort((row, params) in row().prop_flat_map(|r| { let n = r.len() as u32; (Just(r), params(n)) })) {
        let drawable = row.iter().enumerate().any(|(i, z)| i != params.suppress as usize && z.is_finite());
        prop_assume!(drawable);
        check(&row, &params);
    }
}

#[test]
fn agrees_with_a_sort_on_a_large_vocabulary() {
    let rng = Rng::new(3);
    for (case, spread) in [0.0f32, 0.01, 1.0, 3.0, 9.0].into_iter().enumerate() {
        for vocab in [49_152usize, 50_257] {
            let row = normal_row(&rng, case as u32, vocab, spread);
            for (top_k, top_p) in
                [(0, 0.9), (0, 0.3), (0, 0.999), (50, 1.0), (50, 0.9), (5000, 0.9), (0, 1.0), (1, 0.5)]
            {
                let suppress = if case % 2 == 0 { 7 } else { NO_TOKEN };
                for uniform in [0.0, 0.123, 0.999_999_9] {
                    check(&row, &RowParams { top_k, top_p, suppress, uniform, given: 31, ..PLAIN });
                }
            }
        }
    }
}

/// Normally distributed logits (Box-Muller).
fn normal_row(rng: &Rng, case: u32, vocab: usize, spread: f32) -> Vec<f32> {
    (0..vocab as u32)
        .map(|i| {
            let a = 1.0 - rng.uniform(Purpose::Token, case, 0, i);
            let b = rng.uniform(Purpose::Token, case, 1, i);
            spread * (-2.0 * a.ln()).sqrt() * (std::f32::consts::TAU * b).cos()
        })
        .collect()
}

/// Top-p guesses from one block of 64 logits in sixteen where the ranking ends; here those blocks are unlike the others, so that
/// the guess is too high or too low.
#[test]
fn blocks_that_are_unlike_the_rest_do_not_mislead() {
    let rng = Rng::new(17);
    for (case, offset) in [-8.0, -2.0, 0.0, 2.0, 8.0].into_iter().enumerate() {
        for spread in [0.5, 4.0] {
            let mut row = normal_row(&rng, case as u32, 16 * 1024 + 5, spread);
            for block in row.chunks_mut(64).step_by(16) {
                block.iter_mut().for_each(|z| *z += offset);
            }
            for top_p in [0.05, 0.5, 0.9, 0.999] {
                for temperature in [0.3, 1.0, 5.0] {
                    let uniform = rng.uniform(Purpose::Token, 1, case as u32, 0);
                    check(&row, &RowParams { top_p, temperature, uniform, suppress: 70, ..PLAIN });
                }
            }
        }
    }
}

#[test]
fn mass_before_a_rank_may_equal_top_p() {
    // Eight equal tokens: rank 4 has exactly half of the mass before it and is still kept.
    let keep = |top_p, top_k| keep_mask(&[2.0f32; 8], &RowParams { top_p, top_k, ..PLAIN }).unwrap();
    assert_eq!(keep(0.5, 0), [true, true, true, true, true, false, false, false]);
    let below = f32::from_bits(0.5f32.to_bits() - 1);
    assert_eq!(keep(below, 0), [true, true, true, true, false, false, false, false]);
    assert_eq!(keep(0.0, 0), [true, false, false, false, false, false, false, false]);
    assert_eq!(keep(-1.0, 0), [true, false, false, false, false, false, false, false]);
    assert_eq!(keep(1.0, 0), [true; 8]);
    assert_eq!(keep(7.0, 0), [true; 8]);
    assert_eq!(keep(1.0, 3), [true, true, true, false, false, false, false, false]);
    // After top-k the remaining four are a quarter each.
    assert_eq!(keep(0.25, 4), [true, true, false, false, false, false, false, false]);
}

#[test]
fn the_uniform_number_picks_by_id() {
    let row = [0.0f32; 4];
    for (uniform, token) in [(0.0, 0), (0.249_999_9, 0), (0.25, 1), (0.5, 2), (0.749_999_9, 2), (0.75, 3)] {
        assert_eq!(draw(&row, &RowParams { uniform, ..PLAIN }).token, token);
        assert_eq!(draw(&row, &RowParams { uniform, top_p: 0.999, ..PLAIN }).token, token);
    }
    assert_eq!(draw(&row, &RowParams { uniform: 0.99, suppress: 3, ..PLAIN }).token, 2);
    assert_eq!(draw(&row, &RowParams { temperature: 0.0, suppress: 0, ..PLAIN }).token, 1);
}

/// Differences next to the limits of the number format, where intervals of logits have no size.
#[test]
fn extreme_logits_and_temperatures_are_handled() {
    let tiny = f32::from_bits(1);
    let rows: [&[f32]; 5] = [
        &[0.0, tiny, -tiny, 2.0 * tiny, tiny, 0.0],
        &[1e20, 1e20, f32::MIN, -1e20, 9.999_999e19, 0.0],
        &[f32::MAX, f32::MIN, f32::MAX, f32::NEG_INFINITY, 0.0, 1.0],
        &[-5.0, -5.000_000_5, -5.000_001, -5.0, -5.000_002, -5.000_000_5],
        &[1e-38, 3e-38, 2e-38, 1e-38, 0.0, -1e-38],
    ];
    for row in rows {
        for temperature in [1.0, 1.2e-38, 1e-20, 1e20, 1e30] {
            for (top_k, top_p) in [(0, 0.7), (3, 1.0), (4, 0.6), (0, 1.0), (0, 0.999_999)] {
                for uniform in [0.0, 0.42, 0.999] {
                    let params = RowParams { temperature, top_k, top_p, uniform, ..PLAIN };
                    check(row, &params);
                }
            }
        }
    }
}

#[test]
fn f64_and_f32_agree() {
    let row = normal_row(&Rng::new(8), 0, 1000, 2.0);
    let wide: Vec<f64> = row.iter().map(|&z| f64::from(z)).collect();
    for i in 0..100 {
        let params = RowParams { uniform: i as f32 / 100.0, top_p: 0.8, given: 5, ..PLAIN };
        let mut out = [RowDraw::default()];
        unmask_rows(&wide, 1000, &[params], &mut out).unwrap();
        let single = draw(&row, &params);
        assert_eq!(single.token, out[0].token);
        assert!((single.log_prob - out[0].log_prob).abs() < 1e-6);
        assert_eq!(keep_mask(&row, &params).unwrap(), keep_mask(&wide, &params).unwrap());
    }
}

#[test]
fn rows_do_not_depend_on_each_other_or_on_threads() {
    let (rows, vocab) = (37, 1031);
    let rng = Rng::new(21);
    let logits: Vec<f32> = (0..rows).flat_map(|r| normal_row(&rng, r, vocab, 0.3 * r as f32)).collect();
    let params: Vec<RowParams> = (0..rows)
        .map(|r| RowParams {
            temperature: [0.0, 1.0, 0.7][r as usize % 3],
            top_p: [1.0, 0.9, 0.5, 0.99][r as usize % 4],
            top_k: [0, 0, 40][r as usize % 3],
            uniform: rng.uniform(Purpose::Reveal, r, 0, 0),
            confidence: Confidence::Entropy,
            ..PLAIN
        })
        .collect();
    let alone: Vec<RowDraw> =
        logits.chunks(vocab).zip(&params).map(|(row, params)| draw(row, params)).collect();
    for threads in [1, 2, 4] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut out = vec![RowDraw::default(); rows as usize];
        pool.install(|| unmask_rows(&logits, vocab, &params, &mut out)).unwrap();
        assert_eq!(out, alone, "{threads} threads");
    }
}

#[test]
fn draws_follow_the_distribution() {
    let row = [0.3f32, -1.0, 2.0, 0.3, 1.1, -0.2, -4.0, 1.9];
    let rng = Rng::new(99);
    for params in
        [PLAIN, RowParams { top_p: 0.8, ..PLAIN }, RowParams { top_k: 5, temperature: 1.7, ..PLAIN }]
    {
        let naive = Naive::new(&row, &params);
        let kept = naive.kept(params.top_k, f64::from(params.top_p));
        let total: f64 = naive.ranking[..kept].iter().map(|&i| naive.probs[i]).sum();
        let draws = 40_000;
        let mut counts = [0usize; 8];
        for i in 0..draws {
            let uniform = rng.uniform(Purpose::Token, 0, 0, i);
            counts[draw(&row, &RowParams { uniform, ..params }).token as usize] += 1;
        }
        let mut statistic = 0.0;
        for (rank, &id) in naive.ranking.iter().enumerate() {
            if rank < kept {
                let expected = naive.probs[id] / total * f64::from(draws);
                statistic += (counts[id] as f64 - expected).powi(2) / expected;
            } else {
                assert_eq!(counts[id], 0);
            }
        }
        let p = 1.0 - ChiSquared::new(kept as f64 - 1.0).unwrap().cdf(statistic);
        assert!(p > 1e-3, "{params:?}: chi-square {statistic}, p = {p}");
    }
}

#[test]
fn survivors_of_top_p_equal_the_golden_ones() {
    for model in MODELS {
        let golden = Golden::open(model);
        let logits = golden.f32s("topp/logits");
        for top_p in [0.1f32, 0.5, 0.9, 0.99] {
            let expected = golden.flags(&format!("topp/keep_{top_p}"));
            for (row, expected) in logits.chunks(golden.vocab).zip(expected.chunks(golden.vocab)) {
                assert_eq!(
                    keep_mask(row, &RowParams { top_p, ..PLAIN }).unwrap(),
                    expected,
                    "{model} {top_p}"
                );
            }
        }
    }
}

#[test]
fn draws_from_golden_probabilities_equal_the_golden_tokens() {
    let mut drawn = 0;
    for model in MODELS {
        let golden = Golden::open(model);
        for case in golden.of_kind("sample") {
            let name = case["case"].as_str().unwrap();
            if !golden.has(&format!("{name}/probs0")) {
                continue;
            }
            let probs = golden.f32s(&format!("{name}/probs0"));
            let keep = golden.flags(&format!("{name}/keep0"));
            let logits: Vec<f32> = probs.iter().map(|p| p.ln()).collect();
            let rows = logits.len() / golden.vocab;
            let uniforms = &golden.f32s(&format!("{name}/u_cat"))[..rows];
            let params: Vec<RowParams> =
                uniforms.iter().map(|&uniform| RowParams { uniform, ..PLAIN }).collect();
            let mut out = vec![RowDraw::default(); rows];
            unmask_rows(&logits, golden.vocab, &params, &mut out).unwrap();
            let tokens: Vec<u32> = out.iter().map(|draw| draw.token).collect();
            assert_eq!(tokens, golden.ids(&format!("{name}/raw"))[..rows], "{model} {name}");
            for (row, keep) in logits.chunks(golden.vocab).zip(keep.chunks(golden.vocab)) {
                assert_eq!(keep_mask(row, &PLAIN).unwrap(), keep, "{model} {name}");
            }
            drawn += rows;
        }
    }
    assert!(drawn >= 300, "only {drawn} golden draws were found");
}

#[test]
fn rows_that_are_not_finite_are_named() {
    let error = |row: &[f32], params: RowParams| {
        let mut out = [RowDraw { token: 77, ..RowDraw::default() }];
        let error = unmask_rows(row, row.len(), &[params], &mut out).unwrap_err();
        assert_eq!(out[0].token, 77, "nothing is drawn from a bad row");
        assert!(matches!(error, Error::NonFinite { .. }), "{error}");
        error.to_string()
    };
    assert!(error(&[0.0, f32::NAN, 1.0], PLAIN).contains("row 0, token 1: found NaN"));
    assert!(error(&[0.0, 1.0, f32::INFINITY], PLAIN).contains("token 2: found inf"));
    assert!(error(&[0.0, f32::NAN], RowParams { suppress: 1, ..PLAIN }).contains("token 1"));
    assert!(error(&[0.0, f32::INFINITY], RowParams { temperature: 0.0, ..PLAIN }).contains("token 1"));
    assert!(error(&[f32::NEG_INFINITY; 70], PLAIN).contains("-inf"));
    assert!(error(&[f32::NEG_INFINITY, 3.0], RowParams { suppress: 1, ..PLAIN }).contains("suppressed"));
    assert!(error(&[3.0], RowParams { suppress: 0, ..PLAIN }).contains("suppressed"));
    // The first bad row is named, whichever thread meets one first.
    let mut logits = vec![0.0f32; 100];
    logits[35] = f32::NAN;
    logits[72] = f32::NAN;
    let mut out = [RowDraw::default(); 10];
    let error = unmask_rows(&logits, 10, &[PLAIN; 10], &mut out).unwrap_err().to_string();
    assert!(error.contains("row 3, token 5"), "{error}");
}

#[test]
fn parameters_out_of_range_are_refused() {
    let refuse = |params: RowParams| {
        let mut out = [RowDraw::default()];
        unmask_rows(&[0.0f32, 1.0], 2, &[params], &mut out).unwrap_err()
    };
    for temperature in [-1.0, f32::NAN, f32::INFINITY, 2e30] {
        assert!(matches!(refuse(RowParams { temperature, ..PLAIN }), Error::Request(_)));
    }
    for uniform in [-0.1, 1.0, f32::NAN] {
        assert!(matches!(refuse(RowParams { uniform, ..PLAIN }), Error::Request(_)));
    }
    assert!(matches!(refuse(RowParams { top_p: f32::NAN, ..PLAIN }), Error::Request(_)));
    assert!(matches!(refuse(RowParams { given: 2, ..PLAIN }), Error::Shape { .. }));
    let mut out = [RowDraw::default(); 2];
    let shape = |error: lacuna::Result<()>| matches!(error, Err(Error::Shape { .. }));
    assert!(shape(unmask_rows(&[0.0f32; 3], 2, &[PLAIN; 2], &mut out)));
    assert!(shape(unmask_rows(&[0.0f32; 4], 2, &[PLAIN; 1], &mut out)));
    assert!(shape(unmask_rows(&[0.0f32; 4], 0, &[PLAIN; 2], &mut out)));
    assert!(shape(keep_mask::<f32>(&[], &PLAIN).map(|_| ())));
    assert!(unmask_rows(&[0.0f32; 4], 2, &[], &mut []).is_ok());
}

#[test]
fn the_backend_draws_the_same_tokens() {
    let cpu = Cpu::<f32>::new(NonZeroUsize::new(2)).unwrap();
    let (rows, vocab) = (9, 300);
    let logits: Vec<f32> = (0..rows).flat_map(|r| normal_row(&Rng::new(4), r, vocab, 2.0)).collect();
    let params: Vec<RowParams> =
        (0..rows).map(|r| RowParams { top_p: 0.9, uniform: r as f32 / 9.0, ..PLAIN }).collect();
    let mut expected = vec![RowDraw::default(); rows as usize];
    unmask_rows(&logits, vocab, &params, &mut expected).unwrap();
    // From row 2 on, as words; the draws before stay as they are.
    let words: Vec<u32> =
        params.iter().flat_map(|p| unmask_words(vocab, p, RowNoise::Given).unwrap()).collect();
    let mut on_backend = cpu.alloc_index(words.len()).unwrap();
    cpu.write_index(&mut on_backend, &words).unwrap();
    let mut draws = cpu.alloc_draws(rows as usize).unwrap();
    let logits = cpu.upload(&logits[2 * vocab..]).unwrap();
    cpu.unmask(&logits, vocab, 2..rows as usize, &on_backend, &mut draws).unwrap();
    let mut got = vec![RowDraw::default(); rows as usize];
    cpu.read_draws(&draws, &mut got).unwrap();
    expected[..2].fill(RowDraw::default());
    assert_eq!(got, expected);
}

//! Corruption, schedules, reveal orders, annealing and losses: known values, golden vectors, and
//! distributions (chi-square) where two ways must agree.

use lacuna::Error;
use lacuna::diffusion::corrupt::{Corrupted, MaskRule, corrupt, corrupt_with};
use lacuna::diffusion::loss::{Loss, LossNorm, score, score_times};
use lacuna::diffusion::schedule::{Counts, MIN_TIME, draw_time, share_steps, time};
use lacuna::diffusion::shift;
use lacuna::rng::Rng;
use proptest::prelude::*;
use statrs::distribution::{ChiSquared, ContinuousCDF};

mod anneal;
#[path = "../support/golden.rs"]
mod golden;
mod reveal;
use golden::{Golden, MODELS, count, number};

/// The probability of a chi-square statistic at least this large.
fn p_value(statistic: f64, freedom: usize) -> f64 {
    1.0 - ChiSquared::new(freedom as f64).unwrap().cdf(statistic)
}

#[test]
fn counts_fall_from_all_to_none() {
    let linear: Vec<usize> = (0..=4).map(|n| Counts::Linear.masked_after(10, n, 4)).collect();
    assert_eq!(linear, [10, 7, 5, 2, 0]);
    // cos(pi/8), cos(pi/4), cos(3pi/8) of 10: 9.24, 7.07, 3.83.
    let cosine: Vec<usize> = (0..=4).map(|n| Counts::Cosine.masked_after(10, n, 4)).collect();
    assert_eq!(cosine, [10, 9, 7, 3, 0]);
    for counts in [Counts::Linear, Counts::Cosine] {
        assert_eq!(counts.masked_after(5, 0, 0), 0);
        assert_eq!(counts.masked_after(0, 1, 3), 0);
        assert_eq!(counts.masked_after(7, 9, 3), 0);
        for total in [1, 2, 31, 1000] {
            for steps in [1, 2, 3, 64, 5000] {
                let left: Vec<usize> = (0..=steps).map(|n| counts.masked_after(total, n, steps)).collect();
                assert_eq!((left[0], left[steps]), (total, 0));
                assert!(left.is_sorted_by(|a, b| a >= b), "{counts:?} {total} {steps}");
            }
        }
    }
}

#[test]
fn times_span_their_range() {
    assert_eq!(time(0.0), MIN_TIME);
    assert!(time(1.0 - f32::EPSILON / 2.0) <= 1.0);
    let rng = Rng::new(5);
    let mean = (0..10_000).map(|i| f64::from(draw_time(&rng, i, 0))).sum::<f64>() / 1e4;
    assert!((mean - 0.5005).abs() < 0.01, "{mean}");
    for model in MODELS {
        let golden = Golden::open(model);
        for case in golden.of_kind("loss") {
            let name = case["case"].as_str().unwrap();
            let (u, t) = (golden.f32s(&format!("{name}/u_t")), golden.f32s(&format!("{name}/t")));
            for (u, t) in u.iter().zip(t) {
                assert!((time(*u) - t).abs() <= f32::EPSILON, "{model} {name}: t({u})");
            }
        }
    }
}

#[test]
fn steps_are_shared_out_in_proportion() {
    assert_eq!(share_steps(&[32, 32, 32, 32], 128), [32, 32, 32, 32]);
    assert_eq!(share_steps(&[30, 10], 4), [3, 1]);
    assert_eq!(share_steps(&[1, 1, 1], 4), [2, 1, 1]);
    assert_eq!(share_steps(&[100, 1, 0, 1], 4), [2, 1, 0, 1]);
    assert_eq!(share_steps(&[5, 5], 1), [1, 1]);
    assert_eq!(share_steps(&[5, 0], 3), [3, 0]);
    assert_eq!(share_steps(&[], 3), [0usize; 0]);
    assert_eq!(share_steps(&[0, 0], 3), [0, 0]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn shared_steps_add_up(lengths in prop::collection::vec(0usize..200, 0..12), steps in 0usize..500) {
        let shares = share_steps(&lengths, steps);
        let blocks = lengths.iter().filter(|n| **n > 0).count();
        let expected = if blocks == 0 { 0 } else { steps.max(blocks) };
        prop_assert_eq!(shares.iter().sum::<usize>(), expected);
        for (share, length) in shares.iter().zip(&lengths) {
            prop_assert_eq!(*share > 0, *length > 0);
        }
    }

    #[test]
    fn a_position_and_its_row_belong_together(len in 1usize..50, shifted: bool) {
        for row in 0..len {
            if let Some(position) = shift::position_for(row, len, shifted) {
                prop_assert_eq!(shift::row_for(position, shifted), Some(row));
            } else {
                prop_assert!(shifted && row == len - 1);
            }
        }
        for position in 0..len {
            let row = shift::row_for(position, shifted);
            prop_assert_eq!(row.is_some(), position >= shift::first_predicted(shifted));
            prop_assert_eq!(row.and_then(|row| shift::position_for(row, len, shifted)), row.map(|_| position));
        }
    }
}

#[test]
fn masked_positions_are_matched_with_their_rows() {
    let masked = [true, false, true, true];
    let pairs = |shifted| shift::predicted(&masked, shifted).collect::<Vec<_>>();
    assert_eq!(pairs(true), [(1, 2), (2, 3)]);
    assert_eq!(pairs(false), [(0, 0), (2, 2), (3, 3)]);
}

#[test]
fn corruption_hides_free_tokens_at_rate_t() {
    let n = 20_000;
    let x0 = vec![7u32; n];
    let fixed: Vec<bool> = (0..n).map(|i| i % 4 == 0).collect();
    let rng = Rng::new(1);
    for t in [0.001f32, 0.3, 1.0] {
        let got = corrupt_with(&rng, 3, 4, &x0, &fixed, t, 99).unwrap();
        assert!(got.masked.iter().zip(&fixed).all(|(masked, fixed)| !(*masked && *fixed)));
        assert!(got.ids.iter().zip(&got.masked).all(|(&id, &masked)| id == if masked { 99 } else { 7 }));
        let hidden = got.masked.iter().filter(|m| **m).count() as f64;
        let (mean, spread) = (15_000.0 * f64::from(t), (15_000.0 * f64::from(t * (1.0 - t))).sqrt());
        assert!((hidden - mean).abs() <= 4.0 * spread + 1e-9, "t = {t}: {hidden}");
        assert_eq!(got, corrupt_with(&rng, 3, 4, &x0, &fixed, t, 99).unwrap());
    }
    assert!(matches!(corrupt(&[1, 2], &[false], 0.5, &[0.1, 0.2], 9), Err(Error::Shape { .. })));
    assert!(matches!(corrupt(&[1, 2], &[false; 2], 0.5, &[0.1], 9), Err(Error::Shape { .. })));
}

#[test]
fn corruption_and_losses_equal_the_golden_ones() {
    for model in MODELS {
        let golden = Golden::open(model);
        let mut cases = 0;
        for case in golden.of_kind("loss") {
            let name = case["case"].as_str().unwrap();
            let len = count(case, "L");
            let shifted = case["shift"].as_bool().unwrap();
            let natural = name == "loss/shift_natural_mask";
            let ids = |what: &str| golden.ids(&format!("{name}/{what}"));
            let (x0, x_t) = (ids("x0"), ids("x_t"));
            let lens = golden.has(&format!("{name}/lens")).then(|| ids("lens"));
            let (t, u) = (golden.f32s(&format!("{name}/t")), golden.f32s(&format!("{name}/u")));
            let nll = golden.f32s(&format!("{name}/token_loss"));
            let columns = len - shift::first_predicted(shifted);
            let (mut loss, mut batch_maskable) = (Loss::default(), 0);
            for b in 0..t.len() {
                let row = b * len..(b + 1) * len;
                let mut fixed = golden.flags(&format!("{name}/src_mask"))[row.clone()].to_vec();
                if let Some(lens) = &lens {
                    fixed[lens[b] as usize..].fill(true);
                }
                let got = corrupt(&x0[row.clone()], &fixed, t[b], &u[row.clone()], golden.mask_id).unwrap();
                assert_eq!(got.ids, x_t[row], "{model} {name} row {b}");
                let masked = MaskRule::ById.masked(&got, golden.mask_id);
                if !natural {
                    assert_eq!(masked, MaskRule::Explicit.masked(&got, golden.mask_id));
                }
                let scored =
                    shift::predicted(&masked, shifted).map(|(row, _)| f64::from(nll[b * columns + row]));
                let maskable =
                    (shift::first_predicted(shifted)..len).filter(|&position| !fixed[position]).count();
                batch_maskable += maskable;
                loss.add(t[b], scored, maskable);
            }
            assert_eq!(loss.masked(), count(case, "n_masked"), "{model} {name}");
            let weighted = number(case, "weighted");
            let close = |got: f64, expected: f64| (got - expected).abs() <= 1e-5 * expected;
            assert!(close(loss.weighted(LossNorm::MaskedTokens), weighted), "{model} {name}: {loss:?}");
            assert!(close(loss.unweighted(), number(case, "unweighted")), "{model} {name}: {loss:?}");
            let nelbo = weighted * loss.masked() as f64 / batch_maskable as f64;
            assert!(close(loss.nelbo(), nelbo), "{model} {name}: {loss:?}");
            cases += 1;
        }
        assert!(cases >= 7, "{model}: {cases} loss cases");
    }
}

#[test]
fn mask_rules_differ_where_the_text_holds_the_mask_id() {
    let corrupted = Corrupted { ids: vec![9, 3, 9], masked: vec![true, false, false] };
    assert_eq!(MaskRule::Explicit.masked(&corrupted, 9), [true, false, false]);
    assert_eq!(MaskRule::ById.masked(&corrupted, 9), [true, false, true]);
}

#[test]
fn scores_average_over_levels() {
    assert_eq!(score_times(4).collect::<Vec<_>>(), [1.0, 0.75, 0.5, 0.25]);
    let mut half = Loss::default();
    half.add(0.5, [2.0, 4.0], 3);
    assert_eq!(half.weighted(LossNorm::MaskedTokens), 6.0);
    assert_eq!(half.nelbo(), 4.0);
    // Nothing was masked at the other level: it counts 0.
    assert_eq!(score(&[half, Loss::default()]), 1.5);
    assert_eq!(score(&[]), 0.0);
    for model in MODELS {
        let golden = Golden::open(model);
        let levels: Vec<Loss> = golden
            .f32s("score/per_t")
            .iter()
            .zip(score_times(4))
            .map(|(&nll, t)| {
                let mut loss = Loss::default();
                loss.add(t, [f64::from(nll)], 1);
                loss
            })
            .collect();
        let mean = number(golden.of_kind("score").next().unwrap(), "mean");
        assert!((score(&levels) - mean).abs() <= 1e-6 * mean, "{model}");
    }
}

//! Commit plans, confidence orders and their noise.

use lacuna::Error;
use lacuna::diffusion::reveal::{
    CommitPlan, above_threshold, gumbel, least_confident, most_confident, original_confidence_step,
    reveal_now,
};
use lacuna::diffusion::shift;
use lacuna::rng::{Purpose, Rng};
use proptest::prelude::*;

use super::golden::{Golden, MODELS, count};
use super::p_value;

fn chi_square(counts: &[usize], expected: f64) -> f64 {
    counts.iter().map(|&n| (n as f64 - expected).powi(2) / expected).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn selection_agrees_with_a_sort(scores in prop::collection::vec(prop_oneof![
        (-3i8..3).prop_map(f32::from), -1.0f32..1.0, Just(f32::NEG_INFINITY)], 0..60), n in 0usize..70) {
        let mut ranking: Vec<u32> = (0..scores.len() as u32).collect();
        ranking.sort_by(|&a, &b| scores[b as usize].partial_cmp(&scores[a as usize]).unwrap());
        let n = n.min(scores.len());
        let sorted = |mut part: Vec<u32>| { part.sort_unstable(); part };
        let mut out = vec![99; 3];
        most_confident(&scores, n, &mut out);
        prop_assert_eq!(&out, &sorted(ranking[..n].to_vec()));
        least_confident(&scores, scores.len() - n, &mut out);
        prop_assert_eq!(&out, &sorted(ranking[n..].to_vec()));
        above_threshold(&scores, 0.25, &mut out);
        let above: Vec<u32> = (0..scores.len() as u32).filter(|&i| scores[i as usize] > 0.25).collect();
        if above.is_empty() {
            prop_assert_eq!(&out, &ranking[..scores.len().min(1)].to_vec());
        } else {
            prop_assert_eq!(&out, &above);
        }
    }
}

#[test]
fn plans_hold_every_position_once_and_in_order() {
    let plan = CommitPlan::new(vec![(4, 2), (1, 7), (4, 0), (1, 3)]);
    let steps: Vec<(u32, &[u32])> = plan.steps().collect();
    assert_eq!(steps, [(1, &[3, 7][..]), (4, &[0, 2][..])]);
    assert_eq!(plan.len(), 2);
    assert!(CommitPlan::new(Vec::new()).is_empty());

    let rng = Rng::new(12);
    let plan = CommitPlan::draw(&rng, 0, (0..500).filter(|p| p % 3 != 0), 10..74).unwrap();
    let mut seen: Vec<u32> = plan.steps().flat_map(|(_, positions)| positions.to_vec()).collect();
    assert!(plan.steps().all(|(step, _)| (10..74).contains(&step)));
    assert!(plan.steps().is_sorted_by(|a, b| a.0 < b.0));
    seen.sort_unstable();
    assert_eq!(seen, (0..500).filter(|p| p % 3 != 0).collect::<Vec<u32>>());
    // A position's step does not depend on the others.
    let alone = CommitPlan::draw(&rng, 0, [100], 10..74).unwrap();
    let step_of = |plan: &CommitPlan| plan.steps().find(|(_, p)| p.contains(&100)).unwrap().0;
    assert_eq!(step_of(&alone), step_of(&plan));
    let blocks = CommitPlan::draw_blocks(&rng, 0, [(0..50u32, 0..5), (50..100, 5..9)]).unwrap();
    assert!(blocks.steps().all(|(step, p)| p.iter().all(|&p| (p < 50) == (step < 5))));
    assert!(matches!(CommitPlan::draw(&rng, 0, [1], 3..3), Err(Error::Request(_))));
    assert!(CommitPlan::draw(&rng, 0, [], 3..3).unwrap().is_empty());
}

#[test]
fn plan_and_plain_loop_agree_in_distribution() {
    let (len, steps, runs) = (6u32, 7usize, 4000u32);
    let rng = Rng::new(2024);
    let (mut planned, mut looped) = (vec![0; steps], vec![0; steps]);
    // How many positions share the first position's step: tests independence between positions.
    let (mut planned_shared, mut looped_shared) = (vec![0; len as usize], vec![0; len as usize]);
    for sequence in 0..runs {
        let tally = |plan: &CommitPlan, counts: &mut [usize], shared: &mut [usize]| {
            for (step, positions) in plan.steps() {
                counts[step as usize] += positions.len();
                if positions[0] == 0 {
                    shared[positions.len() - 1] += 1;
                }
            }
        };
        let plan = CommitPlan::draw(&rng, sequence, 0..len, 0..steps as u32).unwrap();
        tally(&plan, &mut planned, &mut planned_shared);
        // The loop as the paper writes it: at each step, each still-masked position.
        let mut masked = vec![true; len as usize];
        let mut commits = Vec::new();
        for step in 0..steps {
            for position in 0..len {
                let u = rng.uniform(Purpose::Reveal, sequence, step as u32, position);
                if masked[position as usize] && reveal_now(u, steps - step) {
                    masked[position as usize] = false;
                    commits.push((step as u32, position));
                }
            }
        }
        assert!(masked.iter().all(|m| !m), "the last step reveals what is left");
        tally(&CommitPlan::new(commits), &mut looped, &mut looped_shared);
    }
    let expected = f64::from(runs * len) / steps as f64;
    for counts in [&planned, &looped] {
        let p = p_value(chi_square(counts, expected), steps - 1);
        assert!(p > 1e-3, "{counts:?} is not uniform: p = {p}");
    }
    // Others that share a step follow Binomial(len - 1, 1 / T).
    let others = len as usize - 1;
    let mut binomial = Vec::new();
    for k in 0..=others {
        let ways = (0..k).fold(1.0, |ways, i| ways * (others - i) as f64 / (i + 1) as f64);
        let q = 1.0 / steps as f64;
        binomial.push(ways * q.powi(k as i32) * (1.0 - q).powi((others - k) as i32) * f64::from(runs));
    }
    for shared in [&planned_shared, &looped_shared] {
        // Rare cells are put together.
        let (mut statistic, mut tail, mut tail_expected) = (0.0, 0.0, 0.0);
        for (k, expected) in binomial.iter().enumerate() {
            if k <= 2 {
                statistic += (shared[k] as f64 - expected).powi(2) / expected;
            } else {
                tail += shared[k] as f64;
                tail_expected += expected;
            }
        }
        statistic += (tail - tail_expected).powi(2) / tail_expected;
        let p = p_value(statistic, 3);
        assert!(p > 1e-3, "{shared:?} for {binomial:?}: p = {p}");
    }
}

#[test]
fn plans_from_uniforms_replay_the_golden_loops() {
    for model in MODELS {
        let golden = Golden::open(model);
        let mut cases = 0;
        for case in golden.of_kind("sample") {
            let name = case["case"].as_str().unwrap();
            let (batch, len, steps) = (count(case, "B"), count(case, "L"), count(case, "T"));
            let ids = |what: &str| golden.ids(&format!("{name}/{what}"));
            let (x, xt, x0, last) = (ids("x"), ids("xt"), ids("x0"), ids("final"));
            let given = golden.flags(&format!("{name}/src_mask"));
            let u = if steps > 1 { golden.f32s(&format!("{name}/u_unmask")) } else { Vec::new() };
            let first = shift::first_predicted(case["shift"].as_bool().unwrap());
            for b in 0..batch {
                let own = |data: &[f32]| -> Vec<f32> {
                    data.chunks(batch * len).flat_map(|step| step[b * len..(b + 1) * len].to_vec()).collect()
                };
                let free: Vec<u32> = (0..len as u32).filter(|&p| !given[b * len + p as usize]).collect();
                let plan = CommitPlan::from_uniforms(&own(&u), len, free.iter().copied(), steps).unwrap();
                let at = |k: usize, p: usize| (k * batch + b) * len + p;
                let mut canvas: Vec<u32> = (0..len)
                    .map(|p| if given[b * len + p] { x[b * len + p] } else { golden.mask_id })
                    .collect();
                for k in 0..steps {
                    assert_eq!(canvas, xt[at(k, 0)..at(k, 0) + len], "{model} {name} row {b} forward {k}");
                    for (_, positions) in plan.steps().filter(|(step, _)| *step as usize == k) {
                        for &p in positions {
                            canvas[p as usize] = x0[at(k, p as usize)];
                        }
                    }
                }
                let width = len - first;
                assert_eq!(canvas[first..], last[b * width..(b + 1) * width], "{model} {name} row {b}");
            }
            cases += 1;
        }
        assert!(cases >= 11, "{model}: {cases} sampler cases");
    }
    assert!(matches!(CommitPlan::from_uniforms(&[], 2, [0], 0), Err(Error::Request(_))));
    assert!(matches!(CommitPlan::from_uniforms(&[0.5], 2, [0], 2), Err(Error::Shape { .. })));
    assert!(matches!(CommitPlan::from_uniforms(&[0.5; 2], 2, [2], 2), Err(Error::Shape { .. })));
}

#[test]
fn the_original_confidence_order_replays_the_golden_loops() {
    for model in MODELS {
        let golden = Golden::open(model);
        let mut cases = 0;
        for case in golden.of_kind("sample_confident") {
            let name = case["case"].as_str().unwrap();
            let (batch, len, steps) = (count(case, "B"), count(case, "L"), count(case, "T"));
            let ids = |what: &str| golden.ids(&format!("{name}/{what}"));
            let (x, xt, x0) = (ids("x"), ids("xt"), ids("x0"));
            let scores = golden.f32s(&format!("{name}/score"));
            for b in 0..batch {
                let given = &golden.flags(&format!("{name}/src_mask"))[b * len..(b + 1) * len];
                let free: Vec<bool> = given.iter().map(|g| !g).collect();
                let mut masked = free.clone();
                let mut canvas: Vec<u32> =
                    (0..len).map(|p| if given[p] { x[b * len + p] } else { golden.mask_id }).collect();
                for k in 0..steps {
                    let row = |k: usize| (k * batch + b) * len..(k * batch + b + 1) * len;
                    if k > 0 {
                        let stay =
                            original_confidence_step(&scores[row(k - 1)], &free, &masked, steps - k, steps)
                                .unwrap();
                        for p in 0..len {
                            if masked[p] && !stay[p] {
                                canvas[p] = x0[row(k - 1)][p];
                            }
                        }
                        masked = stay;
                    }
                    assert_eq!(canvas, xt[row(k)], "{model} {name} row {b} forward {k}");
                }
            }
            cases += 1;
        }
        assert_eq!(cases, 2, "{model}");
    }
    assert!(matches!(
        original_confidence_step(&[0.0; 3], &[true; 2], &[true; 3], 1, 2),
        Err(Error::Shape { .. })
    ));
}

#[test]
fn gumbel_noise_makes_the_largest_a_draw_in_proportion() {
    assert!(gumbel(0.0).is_finite() && gumbel(1.0 - f32::EPSILON / 2.0).is_finite());
    assert!((gumbel(0.5) - 0.366_512_92).abs() < 1e-6);
    let probs = [0.5f32, 0.3, 0.15, 0.05];
    let rng = Rng::new(77);
    let draws = 20_000;
    let mut counts = [0usize; 4];
    for i in 0..draws {
        let noisy: Vec<f32> = (0..4)
            .map(|p| probs[p].ln() + gumbel(rng.uniform(Purpose::Confidence, 0, i, p as u32)))
            .collect();
        let mut out = Vec::new();
        most_confident(&noisy, 1, &mut out);
        counts[out[0] as usize] += 1;
    }
    let statistic: f64 = counts
        .iter()
        .zip(probs)
        .map(|(&n, p)| {
            let expected = f64::from(p) * f64::from(draws);
            (n as f64 - expected).powi(2) / expected
        })
        .sum();
    assert!(p_value(statistic, 3) > 1e-3, "{counts:?}");
}

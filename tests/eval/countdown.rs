//! The countdown game: every generated problem solves, every corrupted solution fails.

use std::collections::HashMap;

use lacuna::eval::countdown::{
    Equation, Fault, Operator, Problem, Problems, Rules, Split, check, solve, written,
};
use proptest::prelude::*;

/// Problems of a split, with their solutions.
fn some(numbers: usize, split: Split, seed: u64, count: usize) -> Vec<(Problem, Vec<Equation>)> {
    let mut problems = Problems::new(Rules::new(numbers), split, seed);
    let mut found = Vec::new();
    while found.len() < count {
        found.extend(problems.candidate().expect("there are more"));
    }
    found
}

/// Another check: the solution as one expression, whose leaves are the given numbers and whose value is the target.
fn as_expression(problem: &Problem, equations: &[Equation]) -> bool {
    // For each value at hand, the leaves that it is made of.
    let mut at_hand: Vec<(i128, Vec<u64>)> =
        problem.numbers.iter().map(|&n| (i128::from(n), vec![n])).collect();
    for e in equations {
        let mut take = |value: u64| {
            let place = at_hand.iter().position(|(v, _)| *v == i128::from(value))?;
            Some(at_hand.remove(place))
        };
        let (Some((a, mut leaves)), Some((b, more))) = (take(e.left), take(e.right)) else { return false };
        let value = match e.operator {
            Operator::Add => a + b,
            Operator::Subtract => a - b,
            Operator::Multiply => a * b,
            Operator::Divide if b != 0 && a % b == 0 => a / b,
            Operator::Divide => return false,
        };
        if value != i128::from(e.result) {
            return false;
        }
        leaves.extend(more);
        at_hand.push((value, leaves));
    }
    let [(value, leaves)] = &at_hand[..] else { return false };
    let (mut leaves, mut given) = (leaves.clone(), problem.numbers.clone());
    leaves.sort_unstable();
    given.sort_unstable();
    *value == i128::from(problem.target) && leaves == given
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_generated_problem_solves(numbers in 2usize..=4, seed in any::<u64>(), test in any::<bool>()) {
        let split = if test { Split::Test } else { Split::Train };
        for (problem, solution) in some(numbers, split, seed, 2) {
            let text = written(&solution);
            prop_assert_eq!(check(&problem, &text), Ok(solution.clone()));
            prop_assert!(as_expression(&problem, &solution));
            prop_assert_eq!(Split::of(&problem), split);
            prop_assert!((10..=100).contains(&problem.target));
            // What is written can be read again.
            prop_assert_eq!(problem.to_string().parse::<Problem>().unwrap(), problem);
        }
    }

    #[test]
    fn every_corrupted_solution_fails(numbers in 2usize..=4, seed in any::<u64>(), at in any::<prop::sample::Index>(), kind in 0usize..7) {
        for (problem, solution) in some(numbers, Split::Train, seed, 2) {
            let at = at.index(solution.len());
            let mut bad = solution.clone();
            let expected: fn(&Fault) -> bool = match kind {
                0 => {
                    bad[at].result += 1;
                    |f| matches!(f, Fault::False(_) | Fault::NotThere { .. })
                }
                1 => {
                    bad.remove(at);
                    |f| matches!(f, Fault::Count { .. } | Fault::Unreadable(_))
                }
                2 => {
                    // A number that is neither given nor a result.
                    bad[at].left = 1_000_003;
                    |f| matches!(f, Fault::NotThere { .. })
                }
                3 => {
                    let again = bad[at];
                    bad.push(again);
                    |f| matches!(f, Fault::Count { .. })
                }
                4 => {
                    // An operator that gives another result.
                    let e = bad[at];
                    let other = Operator::ALL.into_iter().find(|o| o.apply(e.left, e.right) != Some(e.result));
                    bad[at].operator = other.expect("no four operators agree");
                    |f| matches!(f, Fault::False(_))
                }
                5 => {
                    // The target is another one.
                    let moved = Problem { target: problem.target + 1, ..problem.clone() };
                    let missed = matches!(check(&moved, &written(&solution)), Err(Fault::Misses { .. }));
                    prop_assert!(missed);
                    continue;
                }
                _ => {
                    let mut text = written(&solution);
                    let place = at.min(text.len() - 1);
                    text.insert(place, 'x');
                    let unreadable = matches!(check(&problem, &text), Err(Fault::Unreadable(_)));
                    prop_assert!(unreadable, "{}", text);
                    continue;
                }
            };
            let fault = check(&problem, &written(&bad)).expect_err("corrupted");
            prop_assert!(expected(&fault), "{:?}", fault);
            prop_assert!(!as_expression(&problem, &bad) || bad.len() != solution.len());
        }
    }

    #[test]
    fn any_text_is_judged_without_a_panic(text in "\\PC{0,40}", digits in "[0-9+*/=,-]{0,60}") {
        let problem: Problem = "7,7,2,28".parse().unwrap();
        let _ = check(&problem, &text);
        if let Ok(equations) = check(&problem, &digits) {
            prop_assert!(as_expression(&problem, &equations));
        }
        let _ = text.parse::<Problem>();
    }
}

#[test]
fn both_splits_are_there_and_have_nothing_in_common() {
    let key = |p: &Problem| {
        let mut numbers = p.numbers.clone();
        numbers.sort_unstable();
        (numbers, p.target)
    };
    let train: HashMap<_, _> = some(3, Split::Train, 1, 2000).iter().map(|(p, _)| (key(p), ())).collect();
    for seed in [1, 2] {
        assert!(some(3, Split::Test, seed, 300).iter().all(|(p, _)| !train.contains_key(&key(p))));
    }
}

#[test]
fn the_share_of_tests_is_about_a_sixteenth() {
    let all =
        (1..=40u64).flat_map(|a| (1..=40u64).map(move |b| Problem { numbers: vec![a, b], target: a + b }));
    let tests = all.clone().filter(|p| Split::of(p) == Split::Test).count() as f64;
    let share = tests / all.count() as f64;
    assert!((0.04..0.09).contains(&share), "{share}");
}

#[test]
fn a_problem_without_a_solution_has_none() {
    assert_eq!(solve(&"1,1,90".parse().unwrap()), None);
    assert_eq!(written(&solve(&"90,1,91".parse().unwrap()).unwrap()), "90+1=91");
}

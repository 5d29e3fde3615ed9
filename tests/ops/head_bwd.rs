//! Cross-entropy and its gradient.

use std::ops::Range;

use lacuna::Error;
use lacuna::backend::cpu::{Buffer, Cpu, CpuElement};
use lacuna::backend::{Backend, Backward, Forward, Rows, TokenWeight};

use crate::naive;
use crate::support::*;

const TOKENS: [TokenWeight; 4] = [
    TokenWeight::NONE,
    TokenWeight { alpha: 0.25, gamma: 0.0 },
    TokenWeight { alpha: 0.25, gamma: 2.0 },
    TokenWeight { alpha: 1.5, gamma: 0.5 },
];

/// Logits of the rows `range` of a batch.
struct Case {
    vocab: usize,
    range: Range<usize>,
    logits: Vec<f64>,
    targets: Vec<u32>,
    weights: Vec<f32>,
}

impl Case {
    fn new(random: &mut Random, vocab: usize, range: Range<usize>) -> Self {
        let total = range.end + 2;
        let logits = random.numbers(range.len() * vocab).iter().map(|x| 4.0 * x).collect();
        let targets = (0..total).map(|_| random.below(vocab) as u32).collect();
        let mut weights: Vec<f32> = (0..total).map(|_| 1.25 + random.number() as f32).collect();
        if range.len() > 2 {
            weights[range.start + 1] = 0.0;
        }
        Case { vocab, range, logits, targets, weights }
    }

    fn floats<E: CpuElement>(&self, cpu: &Cpu<E>, numbers: &[f32]) -> Buffer<f32> {
        let mut floats = cpu.alloc_floats(numbers.len()).unwrap();
        cpu.write_floats(&mut floats, numbers).unwrap();
        floats
    }

    /// The gradient, and the losses of all rows of the batch, those outside the range NaN.
    fn run<E: CpuElement>(&self, cpu: &Cpu<E>, token: TokenWeight) -> (Vec<E>, Vec<f32>) {
        let (mut logits, targets) = (upload(cpu, &self.logits), index(cpu, &self.targets));
        let weights = self.floats(cpu, &self.weights);
        let mut nll = self.floats(cpu, &vec![f32::NAN; self.targets.len()]);
        let rows = self.range.clone();
        cpu.cross_entropy_backward(
            (&mut logits, Rows::dense(self.vocab)),
            self.vocab,
            rows,
            &targets,
            &weights,
            token,
            &mut nll,
        )
        .unwrap();
        (logits.as_slice().to_vec(), nll.as_slice().to_vec())
    }

    fn both<E: CpuElement>(&self, cpu: &Cpu<E>, token: TokenWeight) -> Vec<Vec<E>> {
        let (gradient, nll) = self.run(cpu, token);
        let nll = nll[self.range.clone()].iter().map(|&x| E::from_f64(x.into())).collect();
        vec![gradient, nll]
    }
}

#[test]
fn central_differences() {
    let mut random = Random::new(130);
    let cpu = fast::<f64>();
    for token in TOKENS {
        for (vocab, range) in [(2, 0..1), (5, 1..4), (61, 3..5)] {
            let case = Case::new(&mut random, vocab, range.clone());
            let targets = &case.targets[range.clone()];
            let loss = |logits: &[f64]| {
                let mut nll = vec![f64::NAN; range.len()];
                cpu.cross_entropy(&upload(&cpu, logits), vocab, targets, &mut nll).unwrap();
                let weights = &case.weights[range.clone()];
                nll.iter().zip(weights).map(|(&u, &w)| f64::from(w) * token.value(u)).sum()
            };
            let (gradient, nll) = case.run(&cpu, token);
            assert_gradient(&case.logits, &gradient, &format!("{token:?}, {vocab}, {range:?}"), loss);
            for (r, row) in case.logits.chunks(vocab).enumerate() {
                let expected = naive::cross_entropy(row, targets[r] as usize);
                assert!((f64::from(nll[range.start + r]) - expected).abs() < 1e-6 * expected.max(1.0));
            }
            let outside = (0..nll.len()).filter(|r| !range.contains(r));
            assert!(outside.map(|r| nll[r]).all(f32::is_nan), "rows outside the range are kept");
        }
    }
}

#[test]
fn a_slope_is_that_of_the_value() {
    for token in TOKENS {
        for u in [0.01, 0.3, 1.0, 5.0, 20.0] {
            let h = 1e-5 * u;
            let slope = (token.value(u + h) - token.value(u - h)) / (2.0 * h);
            assert!((slope - token.slope(u)).abs() < 1e-7 * slope.abs().max(1.0), "{token:?} at {u}");
        }
        assert!(token.slope(0.0).is_finite(), "{token:?}");
    }
}

#[test]
fn same_bits_for_any_threads_and_instructions() {
    let mut random = Random::new(131);
    for token in TOKENS {
        for (vocab, range) in [(1, 0..3), (7, 2..9), (1031, 1..38), (5, 4..4)] {
            let case = Case::new(&mut random, vocab, range.clone());
            let what = format!("{token:?}, {vocab}, {range:?}");
            assert_agrees(&what, |cpu| case.both(cpu, token), |cpu| case.both(cpu, token));
        }
    }
}

#[test]
fn a_weight_of_zero_gives_zeros_and_nan_stays_in_its_row() {
    let mut random = Random::new(132);
    let mut case = Case::new(&mut random, 33, 0..6);
    case.logits[4 * 33 + 20] = f64::NAN;
    let (gradient, nll) = case.run(&fast::<f32>(), TokenWeight::NONE);
    for (r, row) in gradient.chunks(33).enumerate() {
        assert_eq!(row.iter().all(|x| x.is_nan()), r == 4, "row {r}");
        assert_eq!(row.iter().all(|&x| x == 0.0), r == 1, "row {r}");
        assert_eq!(nll[r].is_nan(), r == 4, "row {r}");
    }
    // Hidden tokens get no gradient; a row's gradient sums to nothing.
    let mut hidden = Case::new(&mut random, 9, 0..1);
    (hidden.targets[0], hidden.logits[0]) = (3, f64::NEG_INFINITY);
    let (gradient, _) = hidden.run(&fast::<f64>(), TokenWeight { alpha: 0.25, gamma: 2.0 });
    assert_eq!(gradient[0], 0.0);
    assert!(gradient.iter().sum::<f64>().abs() < 1e-15 && gradient[3] < 0.0, "{gradient:?}");
}

#[test]
fn shapes_and_targets_that_do_not_fit_are_errors() {
    let cpu = fast::<f32>();
    let refused =
        |logits: usize, vocab: usize, rows: Range<usize>, [targets, weights, losses]: [usize; 3]| {
            let mut logits = poisoned(&cpu, logits);
            let targets = index(&cpu, &vec![4; targets]);
            let [weights, mut nll] = [weights, losses].map(|n| cpu.alloc_floats(n).unwrap());
            let token = TokenWeight::NONE;
            let result = cpu.cross_entropy_backward(
                (&mut logits, Rows::dense(vocab)),
                vocab,
                rows,
                &targets,
                &weights,
                token,
                &mut nll,
            );
            assert!(logits.as_slice().iter().all(|x| x.is_nan()), "nothing is written");
            assert!(nll.as_slice().iter().all(|&x| x == 0.0), "nothing is written");
            result.unwrap_err()
        };
    for (logits, vocab, rows, lengths) in [
        (9, 5, 1..3, [3; 3]),
        (10, 5, 1..3, [2, 3, 3]),
        (10, 5, 1..3, [3, 2, 3]),
        (10, 5, 1..3, [3, 3, 2]),
        (10, usize::MAX, 1..3, [3; 3]),
        (10, 5, Range { start: 3, end: 1 }, [3; 3]),
        (10, 5, Range { start: 1, end: usize::MAX }, [3; 3]),
    ] {
        let error = refused(logits, vocab, rows, lengths);
        assert!(matches!(error, Error::Shape { op: "cross_entropy_backward", .. }), "{error:?}");
    }
    let error = refused(8, 4, 1..3, [3; 3]);
    assert!(matches!(&error, Error::Request(m) if m.contains("target")), "{error:?}");
}

/// Rows that lie apart give the bits of rows that do not, and what lies between becomes 0.
#[test]
fn rows_apart() {
    let cpu = fast::<f32>();
    let mut random = Random::new(71);
    let case = Case::new(&mut random, 13, 0..4);
    let (dense, losses) = case.run(&cpu, TOKENS[3]);
    let (at, stride) = (3, 16);
    let mut logits = poisoned(&cpu, at + 4 * stride);
    for (r, row) in case.logits.chunks(13).enumerate() {
        for (to, &x) in logits.as_mut_slice()[at + r * stride..].iter_mut().zip(row) {
            *to = x as f32;
        }
    }
    let targets = index(&cpu, &case.targets);
    let weights = case.floats(&cpu, &case.weights);
    let mut nll = case.floats(&cpu, &vec![f32::NAN; case.targets.len()]);
    let place = (&mut logits, Rows { at, stride });
    cpu.cross_entropy_backward(place, 13, 0..4, &targets, &weights, TOKENS[3], &mut nll).unwrap();
    assert!(logits.as_slice()[..at].iter().all(|x| x.is_nan()));
    for (row, expected) in logits.as_slice()[at..].chunks(stride).zip(dense.chunks(13)) {
        assert_same(&row[..13], expected, "rows apart");
        assert!(row[13..].iter().all(|&x| x == 0.0));
    }
    assert_same(&nll.as_slice()[..4], &losses[..4], "losses");
    let place = (&mut logits, Rows { at, stride: 12 });
    let refused = cpu.cross_entropy_backward(place, 13, 0..4, &targets, &weights, TOKENS[3], &mut nll);
    assert!(matches!(refused, Err(Error::Shape { what: "stride of the logits", .. })), "{refused:?}");
}

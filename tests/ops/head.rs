//! Cross-entropy of logits.

use lacuna::Error;
use lacuna::backend::Forward;
use lacuna::backend::cpu::CpuElement;

use crate::naive;
use crate::support::*;

fn against_naive<E: CpuElement>() {
    let mut random = Random::new(60);
    for level in levels() {
        let cpu = backend::<E>(2, level);
        for (rows, vocab) in [(1, 1), (7, 33), (61, 129), (9, 5003)] {
            let logits: Vec<f64> = random.numbers(rows * vocab).iter().map(|x| 20.0 * x).collect();
            let logits: Vec<f64> = logits.iter().map(|&x| f64::from(x as f32)).collect();
            let targets: Vec<u32> = (0..rows).map(|_| random.below(vocab) as u32).collect();
            let mut out = vec![f64::NAN; rows];
            cpu.cross_entropy(&upload(&cpu, &logits), vocab, &targets, &mut out).unwrap();
            let expected: Vec<f64> = logits
                .chunks(vocab)
                .zip(&targets)
                .map(|(row, &target)| naive::cross_entropy(row, target as usize))
                .collect();
            assert_close::<E>(&out, &expected, &format!("{rows} x {vocab} {level}"));
        }
    }
}

#[test]
fn against_naive_f32() {
    against_naive::<f32>();
}

#[test]
fn against_naive_f64() {
    against_naive::<f64>();
}

#[test]
fn hidden_tokens_and_nan() {
    let cpu = fast::<f32>();
    let inf = f64::INFINITY;
    let logits = upload(&cpu, &[-inf, 0.0, 0.0, 1.0, f64::NAN, 0.0, 1e30, -1e30, 0.0]);
    let mut out = [0.0; 3];
    cpu.cross_entropy(&logits, 3, &[1, 0, 0], &mut out).unwrap();
    assert!((out[0] - 2_f64.ln()).abs() < 1e-7 && out[1].is_nan() && out[2] == 0.0, "{out:?}");
    cpu.cross_entropy(&logits, 3, &[0], &mut out[..1]).unwrap();
    assert_eq!(out[0], inf);
}

#[test]
fn shapes_and_targets_that_do_not_fit_are_errors() {
    let cpu = fast::<f32>();
    let logits = upload(&cpu, &[1.0; 10]);
    let mut out = [7.0; 2];
    assert!(matches!(cpu.cross_entropy(&logits, 5, &[0, 5], &mut out), Err(Error::Request(_))));
    for (vocab, targets) in [(5, &[0][..]), (6, &[0, 1]), (usize::MAX, &[0, 1])] {
        let result = cpu.cross_entropy(&logits, vocab, targets, &mut out);
        assert!(matches!(result, Err(Error::Shape { op: "cross_entropy", .. })), "{result:?}");
    }
    assert_eq!(out, [7.0; 2]);
}

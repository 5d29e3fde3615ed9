//! Activations: SwiGLU, and the accuracy of the exponential and of erfc behind them all.

use lacuna::Error;
use lacuna::backend::cpu::{Cpu, CpuElement};
use lacuna::backend::{Backend, Epilogue, Forward, Layout, Rows};
use lacuna::config::Activation;
use lacuna::element::Dtype;

use crate::naive;
use crate::support::*;

fn against_naive<E: CpuElement>() {
    let mut random = Random::new(40);
    for level in levels() {
        let cpu = backend::<E>(2, level);
        for (rows, width) in [(1, 1), (7, 33), (61, 129), (300, 576)] {
            let x: Vec<f64> = random.numbers(rows * 2 * width).iter().map(|x| 8.0 * x).collect();
            let mut out = poisoned(&cpu, rows * width);
            cpu.swiglu(&upload(&cpu, &x), rows, width, &mut out).unwrap();
            let mut expected = Vec::new();
            for row in x.chunks(2 * width) {
                for j in 0..width {
                    expected.push(naive::activation(Activation::Silu, row[j]) * row[width + j]);
                }
            }
            assert_close::<E>(&to_f64(&out), &expected, &format!("{rows} x {width} {level}"));
        }
    }
}

#[test]
fn swiglu_against_naive_f32() {
    against_naive::<f32>();
}

#[test]
fn swiglu_against_naive_f64() {
    against_naive::<f64>();
}

/// The activation of each number, through the product with a weight of one.
fn activate<E: CpuElement>(cpu: &Cpu<E>, kind: Activation, x: &[f64]) -> Vec<f64> {
    let (one, _) = stored(Dtype::F32, &[1, 1], &[1.0]);
    let one = cpu.matrix(&one, Layout::OutIn).unwrap();
    let mut out = poisoned(cpu, x.len());
    let epilogue = Epilogue { bias: None, activation: Some(kind), accumulate: false };
    cpu.linear((&upload(cpu, x), 0), x.len(), &one, 0..1, epilogue, &mut out, Rows::dense(1)).unwrap();
    to_f64(&out)
}

#[test]
fn each_number_is_accurate_over_the_whole_range() {
    let mut x: Vec<f64> = (-40_000..=40_000).map(|i| f64::from(i as f32 / 2000.0)).collect();
    x.extend([1e-30, -1e-30, 1e-3, 88.0, -87.0, 1e4, -1e4].map(|v: f32| f64::from(v)));
    for level in levels() {
        for kind in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf] {
            let out = activate(&backend::<f32>(1, level), kind, &x);
            for (&x, &y) in x.iter().zip(&out) {
                let expected = naive::activation(kind, x);
                // Relative to the input, as large as the output gets: four units of f32.
                let bound = 4.0 * f64::from(f32::EPSILON) * expected.abs().max(0.05 * x.abs()) + 1e-37;
                assert!(
                    (y - expected).abs() <= bound,
                    "{kind:?}({x}) = {y:e}, expected {expected:e}, {level}"
                );
            }
            let out = activate(&backend::<f64>(1, level), kind, &x);
            for (&x, &y) in x.iter().zip(&out) {
                let expected = naive::activation(kind, x);
                assert!(
                    (y - expected).abs() <= 2e-14 * (1.0 + x.abs()),
                    "{kind:?}({x}) = {y:e}, {expected:e}"
                );
            }
        }
    }
}

#[test]
fn nan_and_infinity() {
    let cpu = fast::<f32>();
    for kind in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf] {
        let out = activate(&cpu, kind, &[f64::NAN, f64::INFINITY, 0.0]);
        assert!(out[0].is_nan() && out[1] == f64::INFINITY && out[2] == 0.0, "{kind:?} {out:?}");
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let cpu = fast::<f32>();
    let x = upload(&cpu, &[1.0; 16]);
    let mut out = poisoned(&cpu, 8);
    for (rows, width) in [(3, 3), (2, 5), (usize::MAX, 2), (1 << 63, 1)] {
        let result = cpu.swiglu(&x, rows, width, &mut out);
        assert!(matches!(result, Err(Error::Shape { op: "swiglu", .. })), "{result:?}");
    }
}

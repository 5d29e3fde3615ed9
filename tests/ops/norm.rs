//! LayerNorm and RMSNorm.

use lacuna::Error;
use lacuna::backend::Forward;
use lacuna::backend::cpu::{Cpu, CpuElement};
use lacuna::config::NormKind;

use crate::naive;
use crate::support::*;

fn norm<E: CpuElement>(
    cpu: &Cpu<E>,
    kind: NormKind,
    x: &[f64],
    weight: &[f64],
    bias: Option<&[f64]>,
) -> Vec<E> {
    let mut out = poisoned(cpu, x.len());
    let (x_buffer, weight_buffer, width) = (upload(cpu, x), upload(cpu, weight), weight.len());
    let bias = bias.map(|b| upload(cpu, b));
    let rows = x.len() / width;
    cpu.norm(kind, &x_buffer, &weight_buffer, bias.as_ref(), 1e-5, rows, width, &mut out).unwrap();
    out.as_slice().to_vec()
}

fn against_naive<E: CpuElement>() {
    let mut random = Random::new(20);
    for level in levels() {
        let cpu = backend::<E>(2, level);
        for width in [1, 7, 33, 61, 64, 129, 576, 1030] {
            for rows in [1, 7, 200] {
                // A mean far from zero, where a one-pass variance would cancel.
                let x: Vec<f64> = random.numbers(rows * width).iter().map(|x| x + 30.0).collect();
                let x: Vec<f64> = x.iter().map(|&x| f64::from(x as f32)).collect();
                let (w, b) = (random.numbers(width), random.numbers(width));
                for (kind, bias) in [(NormKind::LayerNorm, Some(&b[..])), (NormKind::RmsNorm, None)] {
                    let out: Vec<f64> = norm(&cpu, kind, &x, &w, bias).iter().map(|&v| v.to_f64()).collect();
                    let expected = naive::norm(kind, &x, &w, bias, 1e-5);
                    assert_close::<E>(&out, &expected, &format!("{kind:?} {rows} x {width} {level}"));
                }
            }
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
fn same_bits_for_any_rows_threads_and_instructions() {
    let mut random = Random::new(21);
    let (rows, width) = (400, 577);
    let (x, w, b) = (random.numbers(rows * width), random.numbers(width), random.numbers(width));
    for kind in [NormKind::LayerNorm, NormKind::RmsNorm] {
        let whole = norm(&fast::<f32>(), kind, &x, &w, Some(&b));
        for level in levels() {
            for threads in [1, 4] {
                let cpu = backend::<f32>(threads, level);
                assert_same(&norm(&cpu, kind, &x, &w, Some(&b)), &whole, &format!("{level} {threads}"));
                let one = norm(&cpu, kind, &x[17 * width..18 * width], &w, Some(&b));
                assert_same(&one, &whole[17 * width..18 * width], "a row alone");
            }
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let cpu = fast::<f32>();
    let (x, w, b) = (upload(&cpu, &[1.0; 12]), upload(&cpu, &[1.0; 4]), upload(&cpu, &[1.0; 5]));
    let mut out = poisoned(&cpu, 12);
    let mut small = poisoned(&cpu, 11);
    let kind = NormKind::LayerNorm;
    for result in [
        cpu.norm(kind, &x, &w, None, 1e-5, 4, 4, &mut out),
        cpu.norm(kind, &x, &w, None, 1e-5, 3, 3, &mut out),
        cpu.norm(kind, &x, &w, Some(&b), 1e-5, 3, 4, &mut out),
        cpu.norm(kind, &x, &w, None, 1e-5, 3, 4, &mut small),
        cpu.norm(kind, &x, &w, None, 1e-5, usize::MAX, 4, &mut out),
    ] {
        assert!(matches!(result, Err(Error::Shape { op: "norm", .. })), "{result:?}");
    }
    assert!(out.as_slice().iter().all(|v| v.is_nan()));
}

//! The gradients of LayerNorm and RMSNorm.

use lacuna::Error;
use lacuna::backend::cpu::{Cpu, CpuElement};
use lacuna::backend::{Backend, Backward, Forward};
use lacuna::config::NormKind;

use crate::support::*;

const EPS: f64 = 1e-5;
const KINDS: [NormKind; 2] = [NormKind::LayerNorm, NormKind::RmsNorm];

/// The gradients of x, weight and bias, added `times` times to zeros.
fn gradients<E: CpuElement>(
    cpu: &Cpu<E>,
    kind: NormKind,
    x: &[f64],
    weight: &[f64],
    dy: &[f64],
    times: usize,
) -> Vec<Vec<E>> {
    let (width, rows) = (weight.len(), x.len() / weight.len());
    let (x, weight, dy) = (upload(cpu, x), upload(cpu, weight), upload(cpu, dy));
    let [mut dx, mut dweight, mut dbias] = [rows * width, width, width].map(|n| cpu.alloc(n).unwrap());
    for _ in 0..times {
        let (w, b) = (Some(&mut dweight), Some(&mut dbias));
        cpu.norm_backward(kind, &x, &weight, &dy, EPS, rows, width, &mut dx, w, b, &mut ()).unwrap();
    }
    [dx, dweight, dbias].iter().map(|b| b.as_slice().to_vec()).collect()
}

#[test]
fn central_differences() {
    let mut random = Random::new(110);
    let cpu = fast::<f64>();
    for kind in KINDS {
        for (rows, width) in [(1, 3), (5, 7), (3, 33), (2, 577)] {
            let [x, dy] = [0, 1].map(|_| random.numbers(rows * width));
            let [weight, bias] = [0, 1].map(|_| random.numbers(width));
            let loss = |x: &[f64], weight: &[f64], bias: &[f64]| {
                let (x, weight, bias) = (upload(&cpu, x), upload(&cpu, weight), upload(&cpu, bias));
                let mut out = poisoned(&cpu, rows * width);
                cpu.norm(kind, &x, &weight, Some(&bias), EPS, rows, width, &mut out).unwrap();
                dot(&dy, out.as_slice())
            };
            let g = gradients(&cpu, kind, &x, &weight, &dy, 1);
            let what = |of: &str| format!("{of} of {kind:?} {rows} x {width}");
            assert_gradient(&x, &g[0], &what("x"), |x| loss(x, &weight, &bias));
            assert_gradient(&weight, &g[1], &what("weight"), |weight| loss(&x, weight, &bias));
            assert_gradient(&bias, &g[2], &what("bias"), |bias| loss(&x, &weight, bias));
        }
    }
}

#[test]
fn same_bits_for_any_threads_and_instructions() {
    let mut random = Random::new(111);
    for kind in KINDS {
        for (rows, width) in [(1, 1), (7, 33), (129, 577), (201, 61), (0, 5)] {
            let (x, dy) = (random.numbers(rows * width), random.numbers(rows * width));
            let weight = random.numbers(width);
            // A row of one number has no slope to compare: it is its own deviation.
            if width == 1 {
                let g = gradients(&fast::<f32>(), kind, &x, &weight, &dy, 1);
                assert!(g.iter().flatten().all(|v| v.is_finite()), "{g:?}");
                continue;
            }
            assert_agrees(
                &format!("{kind:?} {rows} x {width}"),
                |cpu| gradients(cpu, kind, &x, &weight, &dy, 1),
                |cpu| gradients(cpu, kind, &x, &weight, &dy, 1),
            );
        }
    }
}

#[test]
fn all_three_are_added_to() {
    let mut random = Random::new(112);
    let (rows, width) = (37, 45);
    let [x, dy] = [0, 1].map(|_| random.numbers(rows * width));
    let weight = random.numbers(width);
    for kind in KINDS {
        let cpu = fast::<f64>();
        let [once, twice] = [1, 2].map(|times| gradients(&cpu, kind, &x, &weight, &dy, times));
        for (once, twice) in once.iter().zip(&twice) {
            let double: Vec<f64> = once.iter().map(|x| 2.0 * x).collect();
            assert_close::<f64>(twice, &double, "added twice");
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let cpu = fast::<f32>();
    let of = |n: usize| upload(&cpu, &vec![1.0; n]);
    for ([x, weight, dy, dx, dweight, dbias], rows, width) in [
        ([11, 4, 12, 12, 4, 4], 3, 4),
        ([12, 3, 12, 12, 4, 4], 3, 4),
        ([12, 5, 12, 12, 4, 4], 3, 4),
        ([12, 4, 11, 12, 4, 4], 3, 4),
        ([12, 4, 12, 11, 4, 4], 3, 4),
        ([12, 4, 12, 12, 3, 4], 3, 4),
        ([12, 4, 12, 12, 5, 4], 3, 4),
        ([12, 4, 12, 12, 4, 3], 3, 4),
        ([12, 4, 12, 12, 4, 4], usize::MAX, 4),
    ] {
        for kind in KINDS {
            let [mut dx, mut dweight, mut dbias] = [dx, dweight, dbias].map(|n| poisoned(&cpu, n));
            let (w, b) = (Some(&mut dweight), Some(&mut dbias));
            let result = cpu.norm_backward(
                kind,
                &of(x),
                &of(weight),
                &of(dy),
                EPS,
                rows,
                width,
                &mut dx,
                w,
                b,
                &mut (),
            );
            assert!(matches!(result, Err(Error::Shape { op: "norm_backward", .. })), "{result:?}");
            let written = [&dx, &dweight, &dbias];
            assert!(written.iter().all(|b| b.as_slice().iter().all(|v| v.is_nan())), "nothing is written");
        }
    }
}

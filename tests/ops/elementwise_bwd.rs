//! Activations alone, the gradients of activations, SwiGLU and rotation, and small change.

use lacuna::Error;
use lacuna::backend::cpu::{Cpu, CpuElement};
use lacuna::backend::{Backward, Forward, Rows};
use lacuna::config::Activation;

use crate::naive;
use crate::support::*;

const KINDS: [Activation; 3] = [Activation::Silu, Activation::GeluTanh, Activation::GeluErf];

/// The activation, over NaN, and its gradient.
fn activation<E: CpuElement>(cpu: &Cpu<E>, kind: Activation, x: &[f64], dy: &[f64]) -> Vec<Vec<E>> {
    let (mut out, mut d, len) = (poisoned(cpu, x.len()), upload(cpu, dy), x.len());
    let x = upload(cpu, x);
    cpu.activation(kind, &x, len, &mut out).unwrap();
    cpu.activation_backward(kind, &x, len, &mut d).unwrap();
    vec![out.as_slice().to_vec(), d.as_slice().to_vec()]
}

fn swiglu<E: CpuElement>(cpu: &Cpu<E>, both: &[f64], dy: &[f64], width: usize) -> Vec<Vec<E>> {
    let mut out = poisoned(cpu, both.len());
    let rows = dy.len() / width;
    cpu.swiglu_backward(&upload(cpu, both), &upload(cpu, dy), rows, width, &mut out).unwrap();
    vec![out.as_slice().to_vec()]
}

/// Heads placed among other numbers.
struct Turned {
    rows: usize,
    heads: usize,
    head_dim: usize,
    at: Rows,
    positions: Vec<u32>,
    table: Vec<f64>,
}

impl Turned {
    fn new(random: &mut Random, rows: usize, heads: usize, head_dim: usize) -> Self {
        let at = Rows { at: 5, stride: heads * head_dim + 9 };
        let mut table = Vec::new();
        for _ in 0..13 {
            let angles: Vec<f64> = (0..head_dim / 2).map(|_| 3.0 * random.number()).collect();
            table.extend(angles.iter().map(|a| a.cos()));
            table.extend(angles.iter().map(|a| a.sin()));
        }
        let positions = (0..rows).map(|_| random.below(13) as u32).collect();
        Turned { rows, heads, head_dim, at, positions, table }
    }

    fn len(&self) -> usize {
        self.at.at + self.rows * self.at.stride
    }

    fn run<E: CpuElement>(&self, cpu: &Cpu<E>, x: &[f64], back: bool) -> Vec<E> {
        let (mut x, positions, table) =
            (upload(cpu, x), index(cpu, &self.positions), upload(cpu, &self.table));
        let (at, rows, heads, d) = (self.at, self.rows, self.heads, self.head_dim);
        if back {
            cpu.rope_backward(&mut x, at, rows, heads, d, &positions, &table).unwrap();
        } else {
            cpu.rope(&mut x, at, rows, heads, d, &positions, &table).unwrap();
        }
        x.as_slice().to_vec()
    }
}

#[test]
fn central_differences_of_activations() {
    let mut random = Random::new(140);
    let cpu = fast::<f64>();
    for kind in KINDS {
        for (len, reach) in [(1, 1.0), (16, 1.0), (16, 3.0), (333, 6.0)] {
            let x: Vec<f64> = random.numbers(len).iter().map(|x| reach * x).collect();
            let dy = random.numbers(len);
            let out = activation(&cpu, kind, &x, &dy);
            let expected: Vec<f64> = x.iter().map(|&x| naive::activation(kind, x)).collect();
            assert_close::<f64>(&out[0], &expected, &format!("{kind:?}"));
            assert_gradient(&x, &out[1], &format!("{kind:?} of {len}"), |x| {
                dot(&dy, &activation(&cpu, kind, x, &dy)[0])
            });
        }
    }
}

#[test]
fn central_differences_of_swiglu() {
    let mut random = Random::new(141);
    let cpu = fast::<f64>();
    for (rows, width) in [(1, 1), (3, 7), (5, 65)] {
        let both: Vec<f64> = random.numbers(2 * rows * width).iter().map(|x| 3.0 * x).collect();
        let dy = random.numbers(rows * width);
        let loss = |both: &[f64]| {
            let mut out = poisoned(&cpu, rows * width);
            cpu.swiglu(&upload(&cpu, both), rows, width, &mut out).unwrap();
            dot(&dy, out.as_slice())
        };
        assert_gradient(&both, &swiglu(&cpu, &both, &dy, width)[0], &format!("{rows} x {width}"), loss);
    }
}

#[test]
fn central_differences_of_rope() {
    let mut random = Random::new(142);
    let cpu = fast::<f64>();
    for (rows, heads, d) in [(1, 1, 2), (4, 3, 6), (3, 2, 64), (5, 1, 34)] {
        let turned = Turned::new(&mut random, rows, heads, d);
        let (x, dy) = (random.numbers(turned.len()), random.numbers(turned.len()));
        // Numbers between the heads pass unchanged both ways.
        let gradient = turned.run(&cpu, &dy, true);
        assert_gradient(&x, &gradient, &format!("{rows} rows of {heads} x {d}"), |x| {
            dot(&dy, &turned.run(&cpu, x, false))
        });
        let forth: Vec<f64> = turned.run(&cpu, &x, false);
        assert_close::<f64>(&turned.run(&cpu, &forth, true), &x, "there and back");
    }
}

#[test]
fn same_bits_for_any_threads_and_instructions() {
    let mut random = Random::new(143);
    for (rows, width) in [(1, 1), (7, 33), (61, 577)] {
        let both: Vec<f64> = random.numbers(2 * rows * width).iter().map(|x| 6.0 * x).collect();
        let dy = random.numbers(2 * rows * width);
        let what = format!("{rows} x {width}");
        for kind in KINDS {
            assert_agrees(
                &format!("{kind:?} {what}"),
                |cpu| activation(cpu, kind, &both, &dy),
                |cpu| activation(cpu, kind, &both, &dy),
            );
        }
        let dy = &dy[..rows * width];
        let what = format!("swiglu {what}");
        assert_agrees(&what, |cpu| swiglu(cpu, &both, dy, width), |cpu| swiglu(cpu, &both, dy, width));
    }
    for (rows, heads, d) in [(1, 1, 2), (61, 3, 34), (500, 2, 80)] {
        let turned = Turned::new(&mut random, rows, heads, d);
        let dy = random.numbers(turned.len());
        let what = format!("{rows} rows of {heads} x {d}");
        assert_agrees(&what, |cpu| vec![turned.run(cpu, &dy, true)], |cpu| vec![turned.run(cpu, &dy, true)]);
    }
}

#[test]
fn far_from_zero_nothing_overflows() {
    for kind in KINDS {
        let x = [-1e4, -90.0, 0.0, 90.0, 1e4];
        let out = activation(&fast::<f32>(), kind, &x, &[1.0; 5]);
        let d: Vec<f64> = out[1].iter().map(|&x| x.into()).collect();
        for (d, expected) in d.iter().zip([0.0, 0.0, 0.5, 1.0, 1.0]) {
            assert!((d - expected).abs() < 1e-6, "{kind:?}: {out:?}");
        }
    }
}

fn small_change<E: CpuElement>() {
    let mut random = Random::new(144);
    let (len, factor) = (100_003, -0.3);
    let (numbers, old) = (random.numbers(len + 5), random.numbers(len + 5));
    for level in levels() {
        for threads in 1..=3 {
            let cpu = backend::<E>(threads, level);
            let src = upload(&cpu, &numbers);
            let mut dst = upload(&cpu, &old);
            cpu.copy(&src, &mut dst, len).unwrap();
            let kept = &upload(&cpu, &old).as_slice()[len..].to_vec();
            assert_same(&dst.as_slice()[..len], &src.as_slice()[..len], "copy");
            assert_same(&dst.as_slice()[len..], kept, "behind the copy");
            cpu.scale(&mut dst, len, factor).unwrap();
            let scaled: Vec<E> = src.as_slice()[..len].iter().map(|&x| x * E::from_f64(factor)).collect();
            assert_same(&dst.as_slice()[..len], &scaled, "scale");
            assert_same(&dst.as_slice()[len..], kept, "behind the scaled");
            let mut nan = poisoned(&cpu, len + 5);
            cpu.zero(&mut nan, len).unwrap();
            assert_same(&nan.as_slice()[..len], &vec![E::zero(); len], "zero");
            assert!(nan.as_slice()[len..].iter().all(|x| x.is_nan()), "behind the zeros");
        }
    }
}

#[test]
fn zero_copy_and_scale_are_exact() {
    small_change::<f32>();
    small_change::<f64>();
}

#[test]
fn shapes_and_positions_that_do_not_fit_are_errors() {
    #[track_caller]
    fn refused(result: lacuna::Result<()>, op: &str) {
        assert!(matches!(result, Err(Error::Shape { op: of, .. }) if of == op), "{op}: {result:?}");
    }
    let cpu = fast::<f32>();
    let (x, mut out) = (upload(&cpu, &[1.0; 12]), poisoned(&cpu, 11));
    let mut long = poisoned(&cpu, 13);
    refused(cpu.zero(&mut out, 12), "zero");
    refused(cpu.scale(&mut out, 12, 2.0), "scale");
    refused(cpu.copy(&x, &mut out, 12), "copy");
    refused(cpu.copy(&x, &mut long, 13), "copy");
    for kind in KINDS {
        refused(cpu.activation(kind, &x, 12, &mut out), "activation");
        refused(cpu.activation(kind, &x, 13, &mut long), "activation");
        refused(cpu.activation_backward(kind, &x, 12, &mut out), "activation_backward");
        refused(cpu.activation_backward(kind, &x, 13, &mut long), "activation_backward");
    }
    let small = upload(&cpu, &[1.0; 5]);
    refused(cpu.swiglu_backward(&x, &x, 3, 2, &mut out), "swiglu_backward");
    refused(cpu.swiglu_backward(&x, &small, 3, 2, &mut long), "swiglu_backward");
    refused(cpu.swiglu_backward(&small, &x, 3, 2, &mut long), "swiglu_backward");
    refused(cpu.swiglu_backward(&x, &x, usize::MAX, 2, &mut long), "swiglu_backward");
    cpu.swiglu_backward(&x, &x, 0, usize::MAX, &mut long).unwrap();
    let (table, positions) = (upload(&cpu, &[1.0; 24]), index(&cpu, &[0, 3, 4]));
    for (rows, heads, d, at) in [
        (2, 2, 3, Rows::dense(6)),
        (2, 1, 6, Rows { at: 2, stride: 6 }),
        (2, 1, 6, Rows::dense(5)),
        (2, 1, 6, Rows::dense(8)),
        (2, usize::MAX, 6, Rows::dense(6)),
        (4, 1, 2, Rows::dense(2)),
    ] {
        refused(cpu.rope_backward(&mut long, at, rows, heads, d, &positions, &table), "rope_backward");
    }
    let result = cpu.rope_backward(&mut long, Rows::dense(4), 3, 1, 6, &positions, &table);
    refused(result, "rope_backward");
    // Four positions of six numbers.
    let mut room = poisoned(&cpu, 18);
    let result = cpu.rope_backward(&mut room, Rows::dense(6), 3, 1, 6, &positions, &table);
    assert!(matches!(&result, Err(Error::Request(m)) if m.contains("position")), "{result:?}");
    for buffer in [&out, &long, &room] {
        assert!(buffer.as_slice().iter().all(|v| v.is_nan()), "nothing is written");
    }
}

//! Rotary positions.

use lacuna::Error;
use lacuna::backend::cpu::CpuElement;
use lacuna::backend::{Forward, Rows};
use lacuna::config::{Rope, RopeScaling};

use crate::naive;
use crate::support::*;

/// Cosines and sines of `positions` positions, `[positions, head_dim]`.
fn table(positions: usize, head_dim: usize) -> Vec<f64> {
    let rope = Rope { theta: 10000.0, scaling: RopeScaling::None };
    let frequencies = rope.frequencies(head_dim);
    let mut table = Vec::new();
    for p in 0..positions {
        table.extend(frequencies.iter().map(|f| (p as f64 * f).cos()));
        table.extend(frequencies.iter().map(|f| (p as f64 * f).sin()));
    }
    table
}

fn against_naive<E: CpuElement>() {
    let mut random = Random::new(30);
    for level in levels() {
        let cpu = backend::<E>(2, level);
        for (rows, heads, d) in [(1, 1, 2), (7, 3, 6), (33, 2, 64), (61, 4, 80), (700, 3, 64), (5, 1, 34)] {
            let at = Rows { at: 5, stride: heads * d + 9 };
            let x = random.numbers(5 + rows * at.stride);
            let table = table(97, d);
            let positions: Vec<u32> = (0..rows).map(|_| random.below(97) as u32).collect();
            let mut expected = x.clone();
            for t in 0..rows {
                for h in 0..heads {
                    let head = &mut expected[at.at + t * at.stride + h * d..][..d];
                    head.copy_from_slice(&naive::rope(head, &table[positions[t] as usize * d..][..d]));
                }
            }
            let mut out = upload(&cpu, &x);
            let (positions, table) = (index(&cpu, &positions), upload(&cpu, &table));
            cpu.rope(&mut out, at, rows, heads, d, &positions, &table).unwrap();
            let what = format!("{rows} rows of {heads} x {d}, {level}");
            assert_close::<E>(&to_f64(&out), &expected, &what);
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
fn shapes_and_positions_that_do_not_fit_are_errors() {
    let cpu = fast::<f32>();
    let table = upload(&cpu, &table(4, 6));
    let positions = index(&cpu, &[0, 3, 4]);
    let mut x = upload(&cpu, &[1.0; 36]);
    let at = Rows::dense(12);
    assert!(matches!(cpu.rope(&mut x, at, 3, 2, 6, &positions, &table), Err(Error::Request(_))));
    for (rows, heads, d, at) in
        [(2, 4, 3, at), (4, 2, 6, at), (2, 2, 6, Rows { at: 30, stride: 12 }), (2, 2, 6, Rows::dense(6))]
    {
        let result = cpu.rope(&mut x, at, rows, heads, d, &positions, &table);
        assert!(matches!(result, Err(Error::Shape { op: "rope", .. })), "{result:?}");
    }
    assert!(x.as_slice().iter().all(|&v| v == 1.0), "nothing is written");
    cpu.rope(&mut x, at, 2, 2, 6, &positions, &table).unwrap();
}

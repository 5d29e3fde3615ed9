//! Cases of `cuda/activation.cu`.

use super::embedding::judge_numbers;
use super::{Case, DTYPES, Grid, Rig, Verdict, judge, judge_exact, round};
use crate::backend::cuda::{Buffer, Device};
use crate::backend::{Backend, Forward};
use crate::config::Activation;
use crate::element::Dtype;
use crate::error::Result;

const KINDS: [(Activation, &str); 3] =
    [(Activation::GeluTanh, "gelu_tanh"), (Activation::GeluErf, "gelu_erf"), (Activation::Silu, "silu")];

pub fn cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    let counts = grid.choose(&[67, 33], &[4096, 10_001]);
    let shapes = grid.choose(&[(3, 64), (2, 33), (1, 1)], &[(5, 3072), (2, 1001), (1, 11_008)]);
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for (kind, name) in KINDS {
            let kernel = format!("activation_{name}_{dtype}");
            for (&count, in_place) in counts.iter().flat_map(|count| [(count, false), (count, true)]) {
                let shape = format!("count {count}{}", if in_place { ", in place" } else { "" });
                cases.push(Case::new("activation", kernel.clone(), shape, move |rig: &Rig<'_, D>| {
                    flat(rig, dtype, kind, count, in_place)
                }));
            }
            cases.push(Case::new("activation", kernel, "special numbers", move |rig: &Rig<'_, D>| {
                special(rig, dtype, kind)
            }));
        }
        for &(rows, width) in &shapes {
            let (kernel, shape) =
                (format!("activation_swiglu_{dtype}"), format!("rows {rows}, width {width}"));
            cases.push(Case::new("activation", kernel, shape, move |rig: &Rig<'_, D>| {
                swiglu(rig, dtype, rows, width)
            }));
        }
    }
    cases
}

/// In f64 from the textbook, or with every result rounded to `dtype`.
fn activate(kind: Activation, x: f64, r: impl Fn(f64) -> f64) -> f64 {
    match kind {
        Activation::Silu => r(x / r(1.0 + r((-x).exp()))),
        Activation::GeluTanh => {
            let inner = r((2.0 / std::f64::consts::PI).sqrt() * r(x + r(0.044715 * r(x * x * x))));
            r(r(0.5 * x) * r(1.0 + r(inner.tanh())))
        }
        Activation::GeluErf => r(r(0.5 * x) * r(1.0 + r(libm::erf(r(x * std::f64::consts::FRAC_1_SQRT_2))))),
    }
}

fn flat<D: Device>(
    rig: &Rig<'_, D>,
    dtype: Dtype,
    kind: Activation,
    count: usize,
    in_place: bool,
) -> Result<Verdict> {
    let (x, mut x_device) = rig.input(1, dtype, count, 6.0)?;
    let mut out = rig.poisoned(dtype, count)?;
    if in_place {
        rig.cuda.activate(dtype, kind, None, &mut x_device, count)?;
    } else {
        rig.cuda.activate(dtype, kind, Some(&x_device), &mut out, count)?;
    }
    let out = if in_place { x_device } else { out };
    let expected: Vec<f64> = x.iter().map(|&x| activate(kind, x, |y| y)).collect();
    let naive: Vec<f64> = x.iter().map(|&x| activate(kind, x, |y| round(dtype, y))).collect();
    judge(rig, dtype, &out, &expected, &naive)
}

/// Numbers whose result is exact: they stay as they are, vanish, or are no numbers.
fn special<D: Device>(rig: &Rig<'_, D>, dtype: Dtype, kind: Activation) -> Result<Verdict> {
    let x = [0.0, -0.0, 100.0, 60_000.0, f32::INFINITY, f32::NAN];
    let x_device = Buffer::floats(rig.device(), dtype, &x)?;
    let mut out = rig.poisoned(dtype, x.len())?;
    rig.cuda.activate(dtype, kind, Some(&x_device), &mut out, x.len())?;
    let expected: Vec<f64> = x.iter().map(|&x| round(dtype, x.into())).collect();
    let kept = judge_numbers(rig, &out, &expected)?;

    let x = [-150.0, -1000.0, -60_000.0];
    let x_device = Buffer::floats(rig.device(), dtype, &x)?;
    let mut out = rig.poisoned(dtype, x.len())?;
    rig.cuda.activate(dtype, kind, Some(&x_device), &mut out, x.len())?;
    // Of either sign: an approximate quotient need not say.
    let gone: Vec<u8> = out.to_f32(rig.device())?.iter().map(|&y| (y == 0.0).into()).collect();
    Ok(kept.and(judge_exact(&gone, &[1; 3])))
}

fn swiglu<D: Device>(rig: &Rig<'_, D>, dtype: Dtype, rows: usize, width: usize) -> Result<Verdict> {
    let (both, both_device) = rig.input(1, dtype, 2 * rows * width, 5.0)?;
    let mut out = rig.poisoned(dtype, rows * width)?;
    rig.cuda.swiglu(dtype, &both_device, rows, width, &mut out)?;
    let cpu = rig.cpu;
    let mut expected = cpu.alloc(rows * width)?;
    cpu.swiglu(&cpu.upload(&both)?, rows, width, &mut expected)?;
    let naive: Vec<f64> = both
        .chunks(2 * width)
        .flat_map(|row| row[..width].iter().zip(&row[width..]))
        .map(|(&gate, &up)| round(dtype, activate(Activation::Silu, gate, |y| round(dtype, y)) * up))
        .collect();
    judge(rig, dtype, &out, expected.as_slice(), &naive)
}

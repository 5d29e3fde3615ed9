//! Cases of `cuda/activation.cu`.

use super::embedding::judge_numbers;
use super::{Case, DTYPES, Grid, Rig, Verdict, judge, judge_exact, round};
use crate::backend::cuda::{Buffer, Device};
use crate::backend::{Backend, Backward, Forward};
use crate::config::Activation;
use crate::element::Dtype;
use crate::error::{Error, Result};

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
            let kernel = format!("activation_{name}_backward_{dtype}");
            for &count in &counts {
                let shape = format!("count {count}");
                cases.push(Case::new("activation", kernel.clone(), shape, move |rig: &Rig<'_, D>| {
                    flat_backward(rig, dtype, kind, count)
                }));
            }
            cases.push(Case::new("activation", kernel, "special numbers", move |rig: &Rig<'_, D>| {
                special_slopes(rig, dtype, kind)
            }));
        }
        for &(rows, width) in &shapes {
            let (kernel, shape) =
                (format!("activation_swiglu_{dtype}"), format!("rows {rows}, width {width}"));
            cases.push(Case::new("activation", kernel, shape, move |rig: &Rig<'_, D>| {
                swiglu(rig, dtype, rows, width)
            }));
            let (kernel, shape) =
                (format!("activation_swiglu_backward_{dtype}"), format!("rows {rows}, width {width}"));
            cases.push(Case::new("activation", kernel, shape, move |rig: &Rig<'_, D>| {
                swiglu_backward(rig, dtype, rows, width)
            }));
        }
    }
    cases.push(Case::new("activation", "activation_backward", "arguments that do not fit", refusals));
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

/// The derivative from the textbook, with every result rounded to `dtype`.
fn naive_slope(dtype: Dtype, kind: Activation, x: f64) -> f64 {
    use std::f64::consts::{FRAC_1_SQRT_2, PI};
    let r = |x| round(dtype, x);
    match kind {
        Activation::Silu => {
            let s = r(1.0 / r(1.0 + r((-x).exp())));
            r(s * r(1.0 + r(x * r(1.0 - s))))
        }
        Activation::GeluTanh => {
            let c = (2.0 / PI).sqrt();
            let t = r(r(c * r(x + r(0.044715 * r(x * x * x)))).tanh());
            let inner = r(c * r(1.0 + r(3.0 * 0.044715 * r(x * x))));
            r(r(0.5 * r(1.0 + t)) + r(r(0.5 * x) * r(r(1.0 - r(t * t)) * inner)))
        }
        Activation::GeluErf => {
            let phi = r(0.5 * r(1.0 + r(libm::erf(r(x * FRAC_1_SQRT_2)))));
            r(phi + r(x * r(r((-r(r(x * x) * 0.5)).exp()) * r(1.0 / (2.0 * PI).sqrt()))))
        }
    }
}

fn flat_backward<D: Device>(
    rig: &Rig<'_, D>,
    dtype: Dtype,
    kind: Activation,
    count: usize,
) -> Result<Verdict> {
    let (x, x_device) = rig.input(1, dtype, count, 6.0)?;
    let (d, mut d_device) = rig.input(2, dtype, count, 2.0)?;
    rig.cuda.activation_backward(dtype, kind, &x_device, count, &mut d_device)?;
    let cpu = rig.cpu;
    let mut expected = cpu.upload(&d)?;
    Backward::activation_backward(cpu, kind, &cpu.upload(&x)?, count, &mut expected)?;
    let naive: Vec<f64> =
        x.iter().zip(&d).map(|(&x, d)| round(dtype, d * naive_slope(dtype, kind, x))).collect();
    judge(rig, dtype, &d_device, expected.as_slice(), &naive)
}

/// Far out the slope is 0 or 1, at 0 a half; NaN stays.
fn special_slopes<D: Device>(rig: &Rig<'_, D>, dtype: Dtype, kind: Activation) -> Result<Verdict> {
    let x_device = Buffer::floats(rig.device(), dtype, &[0.0, -0.0])?;
    let mut d = Buffer::floats(rig.device(), dtype, &[3.0; 2])?;
    rig.cuda.activation_backward(dtype, kind, &x_device, 2, &mut d)?;
    let half = judge(rig, Dtype::F32, &d, &[1.5; 2], &[])?;

    let x_device = Buffer::floats(rig.device(), dtype, &[100.0, 60_000.0, f32::NAN])?;
    let mut d = Buffer::floats(rig.device(), dtype, &[3.0; 3])?;
    rig.cuda.activation_backward(dtype, kind, &x_device, 3, &mut d)?;
    let kept = judge_numbers(rig, &d, &[3.0, 3.0, f64::NAN])?;

    let x = [-150.0, -1000.0, -60_000.0];
    let x_device = Buffer::floats(rig.device(), dtype, &x)?;
    let mut d = Buffer::floats(rig.device(), dtype, &[3.0; 3])?;
    rig.cuda.activation_backward(dtype, kind, &x_device, 3, &mut d)?;
    let gone: Vec<u8> = d.to_f32(rig.device())?.iter().map(|&y| (y == 0.0).into()).collect();
    Ok(half.and(kept).and(judge_exact(&gone, &[1; 3])))
}

fn swiglu_backward<D: Device>(rig: &Rig<'_, D>, dtype: Dtype, rows: usize, width: usize) -> Result<Verdict> {
    let (both, both_device) = rig.input(1, dtype, 2 * rows * width, 5.0)?;
    let (d, d_device) = rig.input(2, dtype, rows * width, 2.0)?;
    let mut out = rig.poisoned(dtype, 2 * rows * width)?;
    rig.cuda.swiglu_backward(dtype, &both_device, &d_device, rows, width, &mut out)?;
    let cpu = rig.cpu;
    let mut expected = cpu.alloc(2 * rows * width)?;
    Backward::swiglu_backward(cpu, &cpu.upload(&both)?, &cpu.upload(&d)?, rows, width, &mut expected)?;
    let r = |x| round(dtype, x);
    let mut naive = Vec::new();
    for (row, d) in both.chunks(2 * width).zip(d.chunks(width)) {
        let (gate, up) = row.split_at(width);
        let slopes = gate.iter().map(|&g| naive_slope(dtype, Activation::Silu, g));
        naive.extend(slopes.zip(up).zip(d).map(|((slope, u), d)| r(r(d * u) * slope)));
        naive.extend(gate.iter().zip(d).map(|(&g, d)| r(d * activate(Activation::Silu, g, r))));
    }
    judge(rig, dtype, &out, expected.as_slice(), &naive)
}

/// What the launches refuse: one output for each, 1 where it does.
fn refusals<D: Device>(rig: &Rig<'_, D>) -> Result<Verdict> {
    let (cuda, dtype, silu) = (rig.cuda, Dtype::Bf16, Activation::Silu);
    let x = rig.poisoned(dtype, 12)?;
    let (mut d, mut both) = (rig.poisoned(dtype, 6)?, rig.poisoned(dtype, 12)?);
    let refused = [
        cuda.activation_backward(dtype, silu, &x, 7, &mut d),
        cuda.activation_backward(dtype, silu, &d.share(0, 5)?, 6, &mut both),
        cuda.activation_backward(Dtype::F16, silu, &x, 6, &mut d),
        cuda.swiglu_backward(dtype, &x, &d.share(0, 5)?, 2, 3, &mut both),
        cuda.swiglu_backward(dtype, &x.share(0, 11)?, &d.share(0, 6)?, 2, 3, &mut both),
        cuda.swiglu_backward(dtype, &x, &x, 2, 3, &mut d),
        cuda.swiglu_backward(dtype, &x, &x, usize::MAX, 3, &mut both),
    ];
    let refused = refused.map(|result| u32::from(matches!(result, Err(Error::Shape { .. }))));
    Ok(judge_exact(&refused, &[1; 7]))
}

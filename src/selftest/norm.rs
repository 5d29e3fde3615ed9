//! Cases of `cuda/norm.cu`.

use super::{Case, DTYPES, Grid, Rig, Verdict, judge, round};
use crate::backend::cuda::Device;
use crate::backend::{Backend, Forward};
use crate::config::NormKind;
use crate::element::Dtype;
use crate::error::Result;

const EPS: f64 = 1e-5;

pub fn cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    let shapes =
        grid.choose(&[(3, 64), (2, 33), (1, 1)], &[(5, 768), (2, 1000), (1, 4096), (7, 576), (1, 2049)]);
    let mut cases = Vec::new();
    for kind in [NormKind::LayerNorm, NormKind::RmsNorm] {
        let name = if kind == NormKind::LayerNorm { "norm_layer" } else { "norm_rms" };
        for dtype in DTYPES {
            for &(rows, width) in &shapes {
                for fused in [false, true] {
                    let shape =
                        format!("rows {rows}, width {width}{}", if fused { ", residual" } else { "" });
                    cases.push(Case::new(
                        "norm",
                        format!("{name}_{dtype}"),
                        shape,
                        move |rig: &Rig<'_, D>| norm(rig, kind, dtype, rows, width, fused),
                    ));
                }
            }
        }
    }
    cases
}

fn norm<D: Device>(
    rig: &Rig<'_, D>,
    kind: NormKind,
    dtype: Dtype,
    rows: usize,
    width: usize,
    fused: bool,
) -> Result<Verdict> {
    let (x, x_device) = rig.input(1, dtype, rows * width, 2.0)?;
    let (residual, mut residual_device) = rig.input(2, dtype, rows * width, 3.0)?;
    let (weight, weight_device) = rig.input(3, dtype, width, 1.0)?;
    let (bias, bias_device) = rig.input(4, dtype, width, 1.0)?;
    let with_bias = kind == NormKind::LayerNorm;
    let mut out = rig.poisoned(dtype, rows * width)?;
    rig.cuda.norm(
        dtype,
        kind,
        &x_device,
        fused.then_some(&mut residual_device),
        &weight_device,
        with_bias.then_some(&bias_device),
        EPS as f32,
        rows,
        width,
        &mut out,
    )?;

    let stream: Vec<f64> =
        if fused { x.iter().zip(&residual).map(|(a, b)| round(dtype, a + b)).collect() } else { x };
    let cpu = rig.cpu;
    let mut expected = cpu.alloc(rows * width)?;
    let (stream_cpu, weight_cpu, bias_cpu) = (cpu.upload(&stream)?, cpu.upload(&weight)?, cpu.upload(&bias)?);
    let bias_cpu = with_bias.then_some(&bias_cpu);
    cpu.norm(kind, &stream_cpu, &weight_cpu, bias_cpu, EPS, rows, width, &mut expected)?;
    let naive: Vec<f64> =
        stream.chunks(width).flat_map(|row| naive(dtype, kind, row, &weight, &bias)).collect();
    let verdict = judge(rig, dtype, &out, expected.as_slice(), &naive)?;
    if fused {
        let sum = judge(rig, dtype, &residual_device, &stream, &stream)?;
        return Ok(verdict.and(sum));
    }
    Ok(verdict)
}

/// Every intermediate result rounded.
fn naive(dtype: Dtype, kind: NormKind, row: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let r = |x| round(dtype, x);
    let mean = match kind {
        NormKind::LayerNorm => r(row.iter().sum::<f64>() / row.len() as f64),
        NormKind::RmsNorm => 0.0,
    };
    let centred: Vec<f64> = row.iter().map(|x| r(x - mean)).collect();
    let variance = r(centred.iter().map(|x| r(x * x)).sum::<f64>() / row.len() as f64);
    let scale = r(1.0 / r(variance + EPS).sqrt());
    let bias = |i: usize| if kind == NormKind::LayerNorm { bias[i] } else { 0.0 };
    centred.iter().enumerate().map(|(i, x)| r(r(r(x * scale) * weight[i]) + bias(i))).collect()
}

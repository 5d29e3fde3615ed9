//! Cases of the gradients in `cuda/norm.cu`.

use super::columns::naive_sum;
use super::{Case, DTYPES, Grid, Rig, Verdict, judge, judge_exact, round};
use crate::backend::cuda::{Buffer, Cuda, Device};
use crate::backend::{Backend, Backward};
use crate::config::NormKind;
use crate::element::Dtype;
use crate::error::{Error, Result};

const EPS: f64 = 1e-5;

/// What is asked for beside `dx`: the weight's gradient, the bias'.
type Wanted = (bool, bool);

pub fn cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    // On 16 bytes and not, a warp a row and a block a row, a part and several.
    let shapes = grid.choose(
        &[(3, 64), (2, 33), (1, 1), (2, 1032), (37, 24)],
        &[(70, 768), (34, 1000), (3, 4096), (5, 1024), (2, 8192), (3, 1026), (33, 2048)],
    );
    let mut cases = Vec::new();
    for kind in [NormKind::LayerNorm, NormKind::RmsNorm] {
        let name = if kind == NormKind::LayerNorm { "norm_layer_backward" } else { "norm_rms_backward" };
        for (dtype, &(rows, width)) in DTYPES.iter().flat_map(|&d| shapes.iter().map(move |s| (d, s))) {
            let wanted: &[Wanted] = match (kind, width) {
                (_, 33) => &[(true, true), (true, false), (false, true), (false, false)],
                (NormKind::LayerNorm, _) => &[(true, true)],
                (NormKind::RmsNorm, _) => &[(true, false)],
            };
            for &wanted in wanted {
                let shape = format!("rows {rows}, width {width}, sums {wanted:?}");
                cases.push(Case::new("norm", format!("{name}_{dtype}"), shape, move |rig: &Rig<'_, D>| {
                    norm(rig, kind, dtype, rows, width, wanted)
                }));
            }
        }
    }
    cases.push(Case::new("norm", "norm_backward", "arguments that do not fit", refusals));
    cases
}

fn norm<D: Device>(
    rig: &Rig<'_, D>,
    kind: NormKind,
    dtype: Dtype,
    rows: usize,
    width: usize,
    wanted: Wanted,
) -> Result<Verdict> {
    let (x, x_device) = rig.input(1, dtype, rows * width, 2.0)?;
    let (weight, weight_device) = rig.input(2, dtype, width, 1.0)?;
    let (dy, dy_device) = rig.input(3, dtype, rows * width, 1.5)?;
    let (dx, mut dx_device) = rig.input(4, dtype, rows * width, 1.0)?;
    // Large enough to be sums of more rows than there are.
    let (dweight, mut dweight_device) = rig.input(5, Dtype::F32, width, 2.0)?;
    let (dbias, mut dbias_device) = rig.input(6, Dtype::F32, width, 2.0)?;
    let outputs = usize::from(wanted.0) + usize::from(wanted.1);
    let mut partial = rig.poisoned(Dtype::F32, outputs * Cuda::<D>::column_parts(rows) * width)?;
    rig.cuda.norm_backward(
        dtype,
        kind,
        &x_device,
        &weight_device,
        &dy_device,
        EPS as f32,
        rows,
        width,
        &mut dx_device,
        &mut partial,
        wanted.0.then_some(&mut dweight_device),
        wanted.1.then_some(&mut dbias_device),
    )?;

    let cpu = rig.cpu;
    let mut expected = [cpu.upload(&dx)?, cpu.upload(&dweight)?, cpu.upload(&dbias)?];
    let [dx_cpu, dweight_cpu, dbias_cpu] = &mut expected;
    cpu.norm_backward(
        kind,
        &cpu.upload(&x)?,
        &cpu.upload(&weight)?,
        &cpu.upload(&dy)?,
        EPS,
        rows,
        width,
        dx_cpu,
        wanted.0.then_some(dweight_cpu),
        wanted.1.then_some(dbias_cpu),
        &mut (),
    )?;
    let naive = naive(dtype, kind, [&x, &weight, &dy, &dx], width);
    let [dx_cpu, dweight_cpu, dbias_cpu] = &expected;
    let verdict = judge(rig, dtype, &dx_device, dx_cpu.as_slice(), &naive)?;
    // f32, whatever the format of the rows, and what is not wanted is as it was.
    let of_weight = judge(rig, Dtype::F32, &dweight_device, dweight_cpu.as_slice(), &[])?;
    let of_bias = judge(rig, Dtype::F32, &dbias_device, dbias_cpu.as_slice(), &[])?;
    Ok(verdict.and(of_weight).and(of_bias))
}

/// `dx` with every intermediate result rounded.
fn naive(dtype: Dtype, kind: NormKind, [x, weight, dy, dx]: [&[f64]; 4], width: usize) -> Vec<f64> {
    let r = |x| round(dtype, x);
    let count = width as f64;
    let mean_of = |numbers: &[f64]| r(numbers.iter().sum::<f64>() / count);
    let layer = kind == NormKind::LayerNorm;
    let mut out = Vec::new();
    for (t, row) in x.chunks(width).enumerate() {
        let mean = if layer { mean_of(row) } else { 0.0 };
        let centred: Vec<f64> = row.iter().map(|x| r(x - mean)).collect();
        let variance = mean_of(&centred.iter().map(|x| r(x * x)).collect::<Vec<_>>());
        let scale = r(1.0 / r(variance + EPS).sqrt());
        let normed: Vec<f64> = centred.iter().map(|x| r(x * scale)).collect();
        let g: Vec<f64> =
            dy[t * width..(t + 1) * width].iter().zip(weight).map(|(dy, w)| r(dy * w)).collect();
        let all = if layer { mean_of(&g) } else { 0.0 };
        let along = mean_of(&g.iter().zip(&normed).map(|(g, n)| r(g * n)).collect::<Vec<_>>());
        out.extend(g.iter().zip(&normed).zip(&dx[t * width..]).map(|((g, n), dx)| {
            let value = r(scale * r(r(g - all) - r(n * along)));
            naive_sum(dtype, *dx, std::iter::once(value))
        }));
    }
    out
}

/// What the launch refuses: one output for each, 1 where it does. What is refused changes nothing.
fn refusals<D: Device>(rig: &Rig<'_, D>) -> Result<Verdict> {
    let dtype = Dtype::Bf16;
    let (rows, width) = (33, 8);
    let total = rows * width;
    // Lengths of x, weight, dy, dx, partial, dweight, dbias; formats of the sums; width.
    let good = ([total, width, total, total, 4 * width, width, width], Dtype::F32, width);
    let mut wrong = Vec::new();
    for i in 0..7 {
        let mut one = good;
        one.0[i] -= 1;
        wrong.push(one);
    }
    wrong.push((good.0, dtype, width));
    wrong.push(([33 * 8193; 7], Dtype::F32, 8193));
    let mut refused: Vec<u32> = Vec::new();
    for (lengths, sums, width) in wrong {
        let buffer = |i: usize, dtype| Buffer::<D>::new(rig.device(), dtype, lengths[i]);
        let (_, mut dx) = rig.input(1, dtype, lengths[3], 1.0)?;
        let before = dx.to_f32(rig.device())?;
        let result = rig.cuda.norm_backward(
            dtype,
            NormKind::LayerNorm,
            &buffer(0, dtype)?,
            &buffer(1, dtype)?,
            &buffer(2, dtype)?,
            EPS as f32,
            rows,
            width,
            &mut dx,
            &mut buffer(4, Dtype::F32)?,
            Some(&mut buffer(5, sums)?),
            Some(&mut buffer(6, Dtype::F32)?),
        );
        let as_before = dx.to_f32(rig.device())? == before;
        refused.push((matches!(result, Err(Error::Shape { .. })) && as_before).into());
    }
    Ok(judge_exact(&refused, &vec![1; refused.len()]))
}

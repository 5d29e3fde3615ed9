//! Cases of `cuda/columns.cu`.

use super::{Case, DTYPES, Grid, Rig, Verdict, judge, judge_exact, round};
use crate::backend::cuda::{Buffer, Cuda, Device};
use crate::backend::{Backend, Backward, Layout, Rows};
use crate::element::Dtype;
use crate::error::{Error, Result};

pub fn cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    let shapes = grid.choose(
        &[(3, 64), (70, 33), (1, 1), (41, 264)],
        &[(300, 768), (1000, 40), (33, 2304), (65, 1001), (17_000, 3), (5, 4096)],
    );
    let mut cases = Vec::new();
    for (dtype, &(rows, columns)) in DTYPES.iter().flat_map(|&d| shapes.iter().map(move |s| (d, s))) {
        for placed in [false, true] {
            let shape =
                format!("rows {rows}, columns {columns}, {}", if placed { "placed" } else { "dense" });
            let kernel = format!("columns_partial_{dtype}");
            cases.push(Case::new("columns", kernel, shape, move |rig: &Rig<'_, D>| {
                sums(rig, dtype, rows, columns, placed)
            }));
        }
    }
    cases.push(Case::new("columns", "columns_partial", "arguments that do not fit", refusals));
    cases
}

/// The sum of rounded numbers, rounded after each addition.
pub(super) fn naive_sum(dtype: Dtype, start: f64, numbers: impl Iterator<Item = f64>) -> f64 {
    numbers.fold(start, |sum, x| round(dtype, sum + x))
}

/// Added to what is there. The output is f32 and sums are, whatever the format of the rows: all are held to the bound of f32.
fn sums<D: Device>(
    rig: &Rig<'_, D>,
    dtype: Dtype,
    rows: usize,
    columns: usize,
    placed: bool,
) -> Result<Verdict> {
    let at = if placed { Rows { at: 3, stride: columns + 5 } } else { Rows::dense(columns) };
    let (dy, dy_device) = rig.input(1, dtype, at.at + (rows - 1) * at.stride + columns, 2.0)?;
    let (out, mut out_device) = rig.input(2, Dtype::F32, columns, 3.0)?;
    let mut partial = rig.poisoned(Dtype::F32, Cuda::<D>::column_parts(rows) * columns)?;
    rig.cuda.column_sums(dtype, (&dy_device, at), rows, columns, &mut partial, &mut out_device)?;
    let cpu = rig.cpu;
    let mut expected = cpu.upload(&out)?;
    let (dy, x) = (cpu.upload(&dy)?, cpu.upload(&vec![0.0; rows])?);
    cpu.linear_backward_weight(
        (&x, 0),
        (&dy, at),
        rows,
        1,
        columns,
        Layout::OutIn,
        None,
        Some(&mut expected),
        &mut (),
    )?;
    judge(rig, Dtype::F32, &out_device, expected.as_slice(), &out)
}

/// What the launch refuses: one output for each, 1 where it does. What is refused changes nothing.
fn refusals<D: Device>(rig: &Rig<'_, D>) -> Result<Verdict> {
    let (cuda, dtype) = (rig.cuda, Dtype::Bf16);
    let buffer = |dtype, len| Buffer::<D>::new(rig.device(), dtype, len);
    let (rows, columns, dense) = (33, 8, Rows::dense(8));
    let dy = buffer(dtype, rows * columns)?;
    let (mut partial, mut out) = (buffer(Dtype::F32, 2 * columns)?, buffer(Dtype::F32, columns)?);
    let (mut small, mut few) = (buffer(Dtype::F32, 2 * columns - 1)?, buffer(Dtype::F32, columns - 1)?);
    let mut halves = buffer(dtype, 2 * columns)?;
    let places = [Rows { at: 1, stride: 8 }, Rows { at: 0, stride: 9 }, Rows { at: 0, stride: usize::MAX }];
    let mut refused = Vec::new();
    for at in places {
        refused.push(cuda.column_sums(dtype, (&dy, at), rows, columns, &mut partial, &mut out));
    }
    refused.push(cuda.column_sums(dtype, (&dy, dense), rows + 1, columns, &mut partial, &mut out));
    refused.push(cuda.column_sums(Dtype::F16, (&dy, dense), rows, columns, &mut partial, &mut out));
    refused.push(cuda.column_sums(dtype, (&dy, dense), rows, columns, &mut small, &mut out));
    refused.push(cuda.column_sums(dtype, (&dy, dense), rows, columns, &mut halves, &mut out));
    refused.push(cuda.column_sums(dtype, (&dy, dense), rows, columns, &mut partial, &mut few));
    refused.push(cuda.column_sums(dtype, (&dy, dense), rows, columns, &mut partial, &mut halves));
    let refused: Vec<u32> = refused.iter().map(|r| matches!(r, Err(Error::Shape { .. })).into()).collect();
    Ok(judge_exact(&refused, &vec![1; refused.len()]))
}

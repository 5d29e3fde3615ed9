//! Cases of `cuda/rope.cu`.

use super::embedding::judge_numbers;
use super::{Case, DTYPES, Grid, Rig, Verdict, judge, round};
use crate::backend::cuda::{Buffer, Cuda, Device, Format};
use crate::backend::{Backend, Backward, Forward, HeadShape, Rows};
use crate::element::Dtype;
use crate::error::Result;

/// Rows of the table of angles.
const LIMIT: usize = 23;

/// Rows, heads, key heads, head width.
type Shape = (usize, usize, usize, usize);

/// Where the fused kernel puts keys and values.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Target {
    /// Buffers of their own, row t to row t.
    Dense,
    /// Rows of k | v in one buffer, named by an index.
    Cache,
    /// The same without rotation.
    Unturned,
}

pub fn cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    let shapes: Vec<Shape> = grid.choose(
        &[(3, 2, 1, 32), (2, 3, 3, 6), (1, 1, 1, 64)],
        &[(5, 12, 12, 64), (3, 8, 2, 128), (2, 32, 8, 80), (4, 3, 1, 34), (2, 9, 3, 96), (17, 2, 2, 2)],
    );
    let mut cases = Vec::new();
    for (dtype, &shape) in DTYPES.iter().flat_map(|&d| shapes.iter().map(move |s| (d, s))) {
        let (rows, heads, kv_heads, head_dim) = shape;
        let name = format!("rows {rows}, heads {heads}, width {head_dim}");
        for placed in [false, true] {
            let name = format!("{name}, {}", if placed { "placed" } else { "dense" });
            for (kernel, back) in [("rope_rotate", false), ("rope_back", true)] {
                let kernel = format!("{kernel}_{dtype}");
                cases.push(Case::new("rope", kernel, name.clone(), move |rig: &Rig<'_, D>| {
                    rotate(rig, dtype, shape, placed, back)
                }));
            }
        }
        for target in [Target::Dense, Target::Cache, Target::Unturned] {
            let name = format!("{name}, key heads {kv_heads}, {target:?}");
            let kernel = format!("rope_qkv_{dtype}");
            cases.push(Case::new("rope", kernel, name, move |rig: &Rig<'_, D>| {
                split(rig, dtype, shape, target)
            }));
        }
    }
    cases
}

/// Cosines and sines of any angles, `[LIMIT, head_dim]`.
fn table<D: Device>(rig: &Rig<'_, D>, head_dim: usize) -> Result<(Vec<f64>, Buffer<D>)> {
    let mut random = rig.random(90);
    let mut table = vec![0.0f32; LIMIT * head_dim];
    for row in table.chunks_mut(head_dim) {
        for i in 0..head_dim / 2 {
            let angle = random.number() * 3.0;
            (row[i], row[head_dim / 2 + i]) = (angle.cos() as f32, angle.sin() as f32);
        }
    }
    let buffer = Buffer::of(rig.device(), Dtype::F32, &table)?;
    Ok((table.into_iter().map(f64::from).collect(), buffer))
}

/// One position beyond the table where there are three rows or more.
fn positions<D: Device>(rig: &Rig<'_, D>, rows: usize) -> Result<(Vec<u32>, Buffer<D>)> {
    let mut random = rig.random(91);
    let mut positions: Vec<u32> = (0..rows).map(|_| random.below(LIMIT) as u32).collect();
    if rows > 2 {
        positions[random.below(rows)] = [LIMIT as u32, u32::MAX][random.below(2)];
    }
    let buffer = Buffer::of(rig.device(), Format::U32, &positions)?;
    Ok((positions, buffer))
}

/// The heads in `row`, each turned by the table's row `position`: in f32 and rounded at the end, or, naively, after
/// every operation.
fn turn(dtype: Dtype, row: &mut [f64], head_dim: usize, table: &[f64], position: u32, naive: bool) {
    let half = head_dim / 2;
    let inner = if naive { dtype } else { Dtype::F32 };
    let r = |x: f64| round(inner, x);
    let Some(angles) = table.chunks(head_dim).nth(position as usize) else { return row.fill(f64::NAN) };
    for head in row.chunks_mut(head_dim) {
        for i in 0..half {
            let (x, y, c, s) = (head[i], head[half + i], r(angles[i]), r(angles[half + i]));
            head[i] = round(dtype, r(r(x * c) - r(y * s)));
            // Fused: the product is not rounded, and f64 holds it.
            let sum = if naive {
                r(r(y * c) + r(x * s))
            } else {
                f64::from((y as f32).mul_add(c as f32, r(x * s) as f32))
            };
            head[half + i] = round(dtype, sum);
        }
    }
}

fn rotate<D: Device>(
    rig: &Rig<'_, D>,
    dtype: Dtype,
    (rows, heads, _, head_dim): Shape,
    placed: bool,
    back: bool,
) -> Result<Verdict> {
    let width = heads * head_dim;
    let at = if placed { Rows { at: width + 1, stride: 2 * width + 3 } } else { Rows::dense(width) };
    let (x, mut x_device) = rig.input(1, dtype, at.at + (rows - 1) * at.stride + width, 2.0)?;
    let (table, table_device) = table(rig, head_dim)?;
    let (positions, positions_device) = positions(rig, rows)?;
    let turn_all = if back { Cuda::rope_backward } else { Cuda::rope };
    turn_all(rig.cuda, dtype, &mut x_device, at, rows, heads, head_dim, &positions_device, &table_device)?;

    // The negative angle has the negative sine.
    let mut angles = table.clone();
    if back {
        angles.chunks_mut(head_dim).for_each(|row| row[head_dim / 2..].iter_mut().for_each(|s| *s = -*s));
    }
    let turned = |naive: bool| {
        let mut x = x.clone();
        for (t, &position) in positions.iter().enumerate() {
            turn(dtype, &mut x[at.at + t * at.stride..][..width], head_dim, &angles, position, naive);
        }
        x
    };
    let exact = judge_numbers(rig, &x_device, &turned(false))?;
    if rows > 2 {
        return Ok(exact);
    }
    // All numbers are finite: the CPU judges.
    let cpu = rig.cpu;
    let (mut expected, table) = (cpu.upload(&x)?, cpu.upload(&table)?);
    let mut index = cpu.alloc_index(rows)?;
    cpu.write_index(&mut index, &positions)?;
    if back {
        cpu.rope_backward(&mut expected, at, rows, heads, head_dim, &index, &table)?;
    } else {
        cpu.rope(&mut expected, at, rows, heads, head_dim, &index, &table)?;
    }
    Ok(exact.and(judge(rig, dtype, &x_device, expected.as_slice(), &turned(true))?))
}

fn split<D: Device>(rig: &Rig<'_, D>, dtype: Dtype, shape: Shape, target: Target) -> Result<Verdict> {
    let (rows, heads, kv_heads, head_dim) = shape;
    let (q_width, kv_width) = (heads * head_dim, kv_heads * head_dim);
    let width = q_width + 2 * kv_width;
    let at = if target == Target::Cache { Rows { at: 5, stride: width + 4 } } else { Rows::dense(width) };
    let (qkv, qkv_device) = rig.input(1, dtype, at.at + (rows - 1) * at.stride + width, 2.0)?;
    let (table, table_device) = table(rig, head_dim)?;
    let (positions, positions_device) = positions(rig, rows)?;
    let angles = (target != Target::Unturned).then_some((&positions_device, &table_device));
    let shape = HeadShape { heads, kv_heads, head_dim, scale: 1.0 };
    let mut q = rig.poisoned(dtype, rows * q_width)?;

    let parts = |t: usize| {
        let row = &qkv[at.at + t * at.stride..][..width];
        let (mut both, values) = (row[..q_width + kv_width].to_vec(), row[q_width + kv_width..].to_vec());
        if target != Target::Unturned {
            turn(dtype, &mut both, head_dim, &table, positions[t], false);
        }
        let keys = both.split_off(q_width);
        (both, keys, values)
    };
    let queries: Vec<f64> = (0..rows).flat_map(|t| parts(t).0).collect();
    if target == Target::Dense {
        let (mut k, mut v) = (rig.poisoned(dtype, rows * kv_width)?, rig.poisoned(dtype, rows * kv_width)?);
        let dense = Rows::dense(kv_width);
        rig.cuda.rope_qkv(
            dtype,
            (&qkv_device, at),
            rows,
            shape,
            angles,
            &mut q,
            (&mut k, dense),
            (Some(&mut v), dense),
            None,
        )?;
        let keys: Vec<f64> = (0..rows).flat_map(|t| parts(t).1).collect();
        let values: Vec<f64> = (0..rows).flat_map(|t| parts(t).2).collect();
        let verdict = judge_numbers(rig, &q, &queries)?.and(judge_numbers(rig, &k, &keys)?);
        return Ok(verdict.and(judge_numbers(rig, &v, &values)?));
    }
    // Rows of k | v in an order of their own, one of them beyond the end.
    let height = rows + 3;
    let pair = Rows { at: 0, stride: 2 * kv_width };
    let (mut cache, mut cache_device) = rig.input(2, dtype, height * pair.stride, 1.0)?;
    let rows_out: Vec<u32> =
        (0..rows as u32).map(|t| if t == 1 { height as u32 } else { height as u32 - 1 - t }).collect();
    let rows_device = Buffer::of(rig.device(), Format::U32, &rows_out)?;
    let (k, v) = ((&mut cache_device, pair), (None, Rows { at: kv_width, ..pair }));
    rig.cuda.rope_qkv(dtype, (&qkv_device, at), rows, shape, angles, &mut q, k, v, Some(&rows_device))?;
    for (t, &row) in rows_out.iter().enumerate().filter(|(_, row)| (**row as usize) < height) {
        let (_, keys, values) = parts(t);
        cache[row as usize * pair.stride..][..pair.stride].copy_from_slice(&[keys, values].concat());
    }
    Ok(judge_numbers(rig, &q, &queries)?.and(judge_numbers(rig, &cache_device, &cache)?))
}

//! Cases of `cuda/embedding.cu`.

use super::{Case, DTYPES, Grid, Random, Rig, Verdict, judge_exact, round};
use crate::backend::Rows;
use crate::backend::cuda::{Buffer, Device, Format};
use crate::element::Dtype;
use crate::error::Result;

pub fn cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    let shapes =
        grid.choose(&[(3, 64), (2, 33), (1, 1)], &[(5, 768), (3, 1000), (2, 4096), (40, 7), (1, 2049)]);
    let mut cases = Vec::new();
    for (dtype, &(rows, width)) in DTYPES.iter().flat_map(|&d| shapes.iter().map(move |s| (d, s))) {
        let mut case = |name: &str,
                        shape: String,
                        run: fn(&Rig<'_, D>, Dtype, usize, usize, bool) -> Result<Verdict>,
                        flag| {
            let kernel = format!("embedding_{name}_{dtype}");
            cases.push(Case::new("embedding", kernel, shape, move |rig: &Rig<'_, D>| {
                run(rig, dtype, rows, width, flag)
            }));
        };
        let shape = format!("rows {rows}, width {width}");
        case("embed", shape.clone(), embed, false);
        case("embed", format!("{shape}, positions"), embed, true);
        for (name, run) in [("gather", gather as fn(&Rig<'_, D>, _, _, _, _) -> _), ("scatter", scatter)] {
            case(name, format!("{shape}, dense"), run, false);
            case(name, format!("{shape}, placed"), run, true);
        }
    }
    cases
}

/// Whether all numbers agree to the bit, a NaN with any NaN.
pub(super) fn judge_numbers<D: Device>(
    rig: &Rig<'_, D>,
    out: &Buffer<D>,
    expected: &[f64],
) -> Result<Verdict> {
    let bits = |x: f32| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
    let got: Vec<u32> = out.to_f32(rig.device())?.into_iter().map(bits).collect();
    let expected: Vec<u32> = expected.iter().map(|&x| bits(x as f32)).collect();
    Ok(judge_exact(&got, &expected))
}

/// `rows` numbers below `limit`, some of them at or beyond it; the first is the last row, where reading too far shows.
fn wild(random: &mut Random, rows: usize, limit: usize) -> Vec<u32> {
    let beyond = [limit as u32, limit as u32 + 1, 1 << 31, u32::MAX];
    let one = |random: &mut Random| match random.below(8) {
        0 if rows > 1 => beyond[random.below(4)],
        _ => random.below(limit) as u32,
    };
    let mut rows: Vec<u32> = (0..rows).map(|_| one(random)).collect();
    rows[0] = limit as u32 - 1;
    rows
}

/// Row `row` of a matrix, NaN if it has none.
fn row(matrix: &[f64], width: usize, row: u32) -> Vec<f64> {
    matrix.chunks(width).nth(row as usize).map_or_else(|| vec![f64::NAN; width], <[f64]>::to_vec)
}

fn embed<D: Device>(
    rig: &Rig<'_, D>,
    dtype: Dtype,
    rows: usize,
    width: usize,
    positions: bool,
) -> Result<Verdict> {
    const VOCAB: usize = 11;
    let (table, table_device) = rig.input(1, dtype, VOCAB * width, 2.0)?;
    let (second, second_device) = rig.input(2, dtype, (rows + 2) * width, 2.0)?;
    let mut random = rig.random(3);
    let (ids, at) = (wild(&mut random, rows, VOCAB), wild(&mut random, rows, rows + 2));
    let ids_device = Buffer::of(rig.device(), Format::U32, &ids)?;
    let at_device = Buffer::of(rig.device(), Format::U32, &at)?;
    let mut out = rig.poisoned(dtype, rows * width)?;
    let pair = positions.then_some((&second_device, &at_device));
    rig.cuda.embed(dtype, &table_device, &ids_device, pair, rows, width, &mut out)?;
    let add = |(a, b): (f64, f64)| round(dtype, f64::from(a as f32 + b as f32));
    let expected: Vec<f64> = ids
        .iter()
        .zip(&at)
        .flat_map(|(&id, &at)| {
            let token = row(&table, width, id);
            if positions { token.into_iter().zip(row(&second, width, at)).map(add).collect() } else { token }
        })
        .collect();
    judge_numbers(rig, &out, &expected)
}

/// Dense, or a column range of wider rows.
fn placement(placed: bool, width: usize) -> Rows {
    if placed { Rows { at: width + 3, stride: 2 * width + 5 } } else { Rows::dense(width) }
}

fn gather<D: Device>(
    rig: &Rig<'_, D>,
    dtype: Dtype,
    rows: usize,
    width: usize,
    placed: bool,
) -> Result<Verdict> {
    const HEIGHT: usize = 9;
    let at = placement(placed, width);
    let len = at.at + (HEIGHT - 1) * at.stride + width;
    let (src, src_device) = rig.input(1, dtype, len, 2.0)?;
    let index = wild(&mut rig.random(2), rows, HEIGHT);
    let index_device = Buffer::of(rig.device(), Format::U32, &index)?;
    let mut dst = rig.poisoned(dtype, rows * width)?;
    rig.cuda.gather(dtype, (&src_device, at), &index_device, rows, width, &mut dst)?;
    let table: Vec<f64> =
        (0..HEIGHT).flat_map(|r| src[at.at + r * at.stride..][..width].iter().copied()).collect();
    let expected: Vec<f64> = index.iter().flat_map(|&r| row(&table, width, r)).collect();
    judge_numbers(rig, &dst, &expected)
}

fn scatter<D: Device>(
    rig: &Rig<'_, D>,
    dtype: Dtype,
    rows: usize,
    width: usize,
    placed: bool,
) -> Result<Verdict> {
    let height = 2 * rows + 1;
    let (at, to) = (placement(placed, width), placement(placed, width));
    let (src, src_device) = rig.input(1, dtype, at.at + (rows - 1) * at.stride + width, 2.0)?;
    let (mut expected, mut dst) = rig.input(2, dtype, to.at + (height - 1) * to.stride + width, 1.0)?;
    // Every row once at most, in no order; some beyond the end.
    let mut random = rig.random(3);
    let mut index: Vec<u32> = (0..height as u32 + 2).collect();
    for i in 0..rows {
        let other = i + random.below(index.len() - i);
        index.swap(i, other);
    }
    index.truncate(rows);
    let index_device = Buffer::of(rig.device(), Format::U32, &index)?;
    rig.cuda.scatter(dtype, (&src_device, at), &index_device, rows, width, (&mut dst, to))?;
    for (r, &row) in index.iter().enumerate().filter(|(_, row)| (**row as usize) < height) {
        let from = &src[at.at + r * at.stride..][..width];
        expected[to.at + row as usize * to.stride..][..width].copy_from_slice(from);
    }
    judge_numbers(rig, &dst, &expected)
}

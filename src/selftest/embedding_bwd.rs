//! Cases of the gradient in `cuda/embedding.cu`.

use super::{Case, DTYPES, Grid, Rig, Verdict, judge, judge_exact};
use crate::backend::cuda::{Buffer, Device, Format};
use crate::backend::{Backend, Backward};
use crate::element::Dtype;
use crate::error::{Error, Result};

/// What ids are like.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Half of them are one id, some lie beyond the table.
    Masked,
    /// 0, 1, 2, ... again and again.
    Positions,
    /// Each once.
    Different,
}

pub fn cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    // Rows, width, rows of the table. More rows than a block looks at in one go; more of one id than warps take at once.
    let shapes: Vec<(usize, usize, usize, Kind)> = grid.choose(
        &[
            (3, 64, 5, Kind::Masked),
            (43, 33, 7, Kind::Masked),
            (1, 1, 1, Kind::Different),
            (34, 300, 10, Kind::Positions),
        ],
        &[(70, 768, 20, Kind::Masked), (1100, 8, 300, Kind::Masked), (40, 1000, 50, Kind::Different)],
    );
    let mut cases = Vec::new();
    for (dtype, &(rows, width, height, kind)) in
        DTYPES.iter().flat_map(|&d| shapes.iter().map(move |s| (d, s)))
    {
        let kernel = format!("embedding_backward_{dtype}");
        let shape = format!("rows {rows}, width {width}, ids {kind:?}");
        cases.push(Case::new("embedding", kernel, shape, move |rig: &Rig<'_, D>| {
            embed(rig, dtype, rows, width, height, kind)
        }));
    }
    cases.push(Case::new("embedding", "embedding_backward", "arguments that do not fit", refusals));
    cases
}

/// Added to what is there. The output is f32 and sums are, whatever the format of the rows: all are held to the bound of f32.
fn embed<D: Device>(
    rig: &Rig<'_, D>,
    dtype: Dtype,
    rows: usize,
    width: usize,
    height: usize,
    kind: Kind,
) -> Result<Verdict> {
    let (dx, dx_device) = rig.input(1, dtype, rows * width, 2.0)?;
    let (table, mut table_device) = rig.input(2, Dtype::F32, height * width, 1.0)?;
    let mut random = rig.random(3);
    let ids: Vec<u32> = (0..rows)
        .map(|t| match (kind, random.below(10)) {
            (Kind::Masked, 0..5) => height as u32 - 1,
            (Kind::Masked, 5) => [height as u32, u32::MAX][random.below(2)],
            (Kind::Masked, _) => random.below(height) as u32,
            (Kind::Positions, _) => (t % height) as u32,
            (Kind::Different, _) => ((t * 7 + 3) % height) as u32,
        })
        .collect();
    let ids_device = Buffer::of(rig.device(), Format::U32, &ids)?;
    rig.cuda.embed_backward(dtype, &dx_device, rows, width, &mut table_device, height, &ids_device)?;
    // The CPU knows no ids beyond the table: those rows are given one more, which is cut off.
    let cpu = rig.cpu;
    let mut expected = cpu.upload(&[&table[..], &vec![0.0; width]].concat())?;
    let inside: Vec<u32> = ids.iter().map(|&id| id.min(height as u32)).collect();
    let mut index = cpu.alloc_index(rows)?;
    cpu.write_index(&mut index, &inside)?;
    let place = Some((&mut expected, height + 1, &index));
    Backward::embed_backward(cpu, &cpu.upload(&dx)?, rows, width, place, None)?;
    judge(rig, Dtype::F32, &table_device, &expected.as_slice()[..height * width], &[])
}

/// What the launch refuses: one output for each, 1 where it does.
fn refusals<D: Device>(rig: &Rig<'_, D>) -> Result<Verdict> {
    let (cuda, dtype) = (rig.cuda, Dtype::Bf16);
    let dx = rig.poisoned(dtype, 12)?;
    let (ids, mut table) =
        (Buffer::of(rig.device(), Format::U32, &[0u32; 3])?, rig.poisoned(Dtype::F32, 20)?);
    let mut halves = rig.poisoned(dtype, 20)?;
    let refused = [
        cuda.embed_backward(dtype, &dx, 4, 4, &mut table, 5, &ids),
        cuda.embed_backward(dtype, &dx, 4, 3, &mut table, 5, &ids),
        cuda.embed_backward(Dtype::F16, &dx, 3, 4, &mut table, 5, &ids),
        cuda.embed_backward(dtype, &dx, 3, 4, &mut table, 6, &ids),
        cuda.embed_backward(dtype, &dx, 3, 4, &mut halves, 5, &ids),
        cuda.embed_backward(dtype, &dx, 3, 4, &mut table, 5, &dx),
        cuda.embed_backward(dtype, &dx, usize::MAX, 4, &mut table, 5, &ids),
    ];
    let refused = refused.map(|result| u32::from(matches!(result, Err(Error::Shape { .. }))));
    Ok(judge_exact(&refused, &[1; 7]))
}

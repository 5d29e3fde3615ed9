//! Cases of `cuda/compact.cu`: the rows are those of `diffusion::shift`.

use super::{Case, Grid, Rig, Verdict, judge_exact};
use crate::backend::cuda::{Buffer, Device, Format};
use crate::diffusion::shift;
use crate::error::Result;

const POISON: u32 = u32::MAX;

/// Which tokens are masked.
#[derive(Clone, Copy, Debug)]
enum Flags {
    None,
    All,
    Some,
}

pub fn cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    // Lengths of sequences, and tokens behind the last.
    let quick: [(&'static [usize], usize); 4] = [(&[37, 0, 1, 90], 0), (&[5], 20), (&[], 3), (&[0, 0], 0)];
    let more: [(&'static [usize], usize); 4] =
        [(&[1; 300], 1), (&[1024, 77, 3000], 0), (&[8192, 5, 8187, 40], 9), (&[65_536], 0)];
    let mut cases = Vec::new();
    for (lengths, spare) in grid.choose(&quick, &more) {
        let total: usize = lengths.iter().sum();
        for (flags, shift) in
            [Flags::None, Flags::All, Flags::Some].into_iter().flat_map(|f| [(f, true), (f, false)])
        {
            for capacity in [total, total / 3] {
                let count = lengths.len();
                let shape = format!(
                    "{count} sequences of {total} + {spare} tokens, {flags:?} masked, shift {shift}, room for {capacity}"
                );
                cases.push(Case::new("compact", "compact_rows", shape, move |rig: &Rig<'_, D>| {
                    compact(rig, lengths, spare, flags, shift, capacity)
                }));
            }
        }
    }
    cases
}

fn compact<D: Device>(
    rig: &Rig<'_, D>,
    lengths: &[usize],
    spare: usize,
    flags: Flags,
    shifted: bool,
    capacity: usize,
) -> Result<Verdict> {
    let device = rig.device();
    let mut random = rig.random(1);
    let total: usize = lengths.iter().sum();
    let masked: Vec<u8> = (0..total + spare)
        .map(|_| match flags {
            Flags::None => 0,
            Flags::All => 1,
            Flags::Some => [0, 0, 1, 128, 255][random.below(5)],
        })
        .collect();
    let (mut starts, mut offsets) = (vec![0u32], vec![0u32]);
    let (mut rows, mut positions) = (Vec::new(), Vec::new());
    for &length in lengths {
        let start = starts[starts.len() - 1] as usize;
        let here: Vec<bool> = masked[start..start + length].iter().map(|&m| m != 0).collect();
        for (row, position) in shift::predicted(&here, shifted) {
            rows.push((start + row) as u32);
            positions.push(position as u32);
        }
        starts.push((start + length) as u32);
        offsets.push(rows.len() as u32);
    }
    // Beyond the last entry nothing is written.
    rows.resize(capacity, POISON);
    positions.resize(capacity, POISON);

    let masked_device = Buffer::of(device, Format::U8, &masked)?;
    let starts_device = Buffer::of(device, Format::U32, &starts)?;
    let (mut rows_device, mut positions_device) =
        (rig.poisoned(Format::U32, capacity)?, rig.poisoned(Format::U32, capacity)?);
    let mut offsets_device = rig.poisoned(Format::U32, offsets.len())?;
    rig.cuda.compact(
        &masked_device,
        &starts_device,
        masked.len(),
        lengths.len(),
        shifted,
        &mut rows_device,
        &mut positions_device,
        capacity,
        &mut offsets_device,
    )?;
    let verdict = judge_exact(&rows_device.to_vec::<u32>(device)?, &rows);
    let verdict = verdict.and(judge_exact(&positions_device.to_vec::<u32>(device)?, &positions));
    Ok(verdict.and(judge_exact(&offsets_device.to_vec::<u32>(device)?, &offsets)))
}

//! Cases of `cuda/mask.cu`: the bits are those of `diffusion::anneal`.

use super::{Case, Grid, Rig, Verdict, judge_exact};
use crate::backend::cuda::{Buffer, Device, Format};
use crate::diffusion::anneal;
use crate::error::Result;
use crate::rng::Rng;

pub fn cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    // The smallest probabilities, digits that end in zeros, one that rounds up, none and all.
    let ratios = [
        0.0,
        1.0,
        1.0 / 65_536.0,
        0.25,
        65_535.0 / 65_536.0,
        0.3,
        0.75 / 65_536.0,
        0.999_999,
        f32::NAN,
        -1.0,
    ];
    let lengths = grid.choose(&[(1, 0), (33, 1), (70, 0)], &[(128, 0), (257, 2), (512, 0)]);
    let mut cases = Vec::new();
    for &(len, extra) in &lengths {
        // The longest with one ratio only: the numbers take a while.
        for ratio in ratios.into_iter().filter(|&ratio| len < 500 || ratio == 0.3) {
            for on_device in [false, true] {
                let place = if on_device { ", settings on the device" } else { "" };
                let shape = format!("length {len}, {extra} words more, ratio {ratio}{place}");
                cases.push(Case::new("mask", "mask_annealed", shape, move |rig: &Rig<'_, D>| {
                    annealed(rig, len, extra, ratio, on_device)
                }));
            }
        }
    }
    cases
}

fn annealed<D: Device>(
    rig: &Rig<'_, D>,
    len: usize,
    extra: usize,
    ratio: f32,
    on_device: bool,
) -> Result<Verdict> {
    let mut random = rig.random(1);
    let (seed, step) = (random.bits(), random.bits() as u32);
    let needed = anneal::stride(len);
    let stride = needed + extra;
    let mut words = rig.poisoned(Format::U32, len * stride)?;
    if on_device {
        let settings = Buffer::of(rig.device(), Format::U32, &[ratio.to_bits(), step])?;
        rig.cuda.annealed_mask_from(&settings, seed, len, stride, &mut words)?;
    } else {
        rig.cuda.annealed_mask(seed, step, ratio, len, stride, &mut words)?;
    }
    let mut expected = Vec::new();
    for row in anneal::annealed_words(&Rng::new(seed), step, len, ratio).chunks(needed) {
        expected.extend_from_slice(row);
        expected.resize(expected.len() + extra, 0);
    }
    Ok(judge_exact(&words.to_vec::<u32>(rig.device())?, &expected))
}

//! Cases of `cuda/random.cu`: the numbers of `src/synthetic.rs`, bit for bit.

use super::{Case, DTYPES, Grid, Rig, Verdict, judge_exact};
use crate::backend::cuda::Device;
use crate::element::Dtype;
use crate::error::Result;
use crate::synthetic::{Fill, SyntheticTensor};

pub fn cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    let counts = grid.choose(&[1, 77, 2048], &[16, 4099, 70_001]);
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for &count in &counts {
            let kernel = format!("random_weights_{dtype}");
            let run = move |rig: &Rig<'_, D>| weights(rig, dtype, count);
            cases.push(Case::new("random", kernel, format!("count {count}"), run));
        }
    }
    cases
}

fn weights<D: Device>(rig: &Rig<'_, D>, dtype: Dtype, count: usize) -> Result<Verdict> {
    let mut random = rig.random(1);
    let (seed, parameter, std) = (random.bits(), random.below(500) as u32, 0.02);
    let mut out = rig.poisoned(dtype, count)?;
    rig.cuda.random_weights(dtype, seed, parameter, std, &mut out)?;
    let fill = Fill::Normal { std };
    let expected = SyntheticTensor { shape: vec![count], seed, parameter, fill }.stored(dtype)?;
    let bits = |numbers: Vec<f32>| numbers.into_iter().map(f32::to_bits).collect::<Vec<u32>>();
    Ok(judge_exact(&bits(out.to_f32(rig.device())?), &bits(expected.to_vec())))
}

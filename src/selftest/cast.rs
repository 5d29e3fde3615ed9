//! Cases of `cuda/cast.cu`.

use super::{Case, DTYPES, Grid, Rig, Verdict, judge_exact, round};
use crate::backend::cuda::{Buffer, Device};
use crate::element::Dtype;
use crate::error::Result;

pub fn cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    // Count, first number of either buffer.
    let shapes = grid.choose(&[(33, 0, 0), (64, 8, 0), (7, 1, 2)], &[(1, 0, 0), (4099, 0, 8), (2048, 3, 0)]);
    let mut cases = Vec::new();
    for from in DTYPES {
        for to in DTYPES.into_iter().filter(|&to| to != from) {
            for &(count, at, to_at) in &shapes {
                let shape = format!("count {count}, at {at} to {to_at}");
                cases.push(Case::new(
                    "cast",
                    format!("cast_{from}_to_{to}"),
                    shape,
                    move |rig: &Rig<'_, D>| cast(rig, from, to, count, at, to_at),
                ));
            }
        }
    }
    cases
}

/// Bit for bit, numbers at the edges of the formats included.
fn cast<D: Device>(
    rig: &Rig<'_, D>,
    from: Dtype,
    to: Dtype,
    count: usize,
    at: usize,
    to_at: usize,
) -> Result<Verdict> {
    const EDGES: [f32; 10] =
        [0.0, -0.0, f32::INFINITY, -1e30, 65519.9, 65520.0, 6.1e-5, 5.96e-8, -2.9e-8, 3.4e38];
    let mut random = rig.random(1);
    let numbers: Vec<f32> = (0..at + count)
        .map(|i| match EDGES.get(i.wrapping_sub(at)) {
            Some(&edge) => edge,
            // All magnitudes from 2^-32 to 2^31.
            None => (random.number() * 2f64.powi(random.below(64) as i32 - 32)) as f32,
        })
        .map(|x| round(from, f64::from(x)) as f32)
        .collect();
    let source = Buffer::floats(rig.device(), from, &numbers)?;
    let mut out = rig.poisoned(to, to_at + count)?;
    rig.cuda.cast((&source, from, at), (&mut out, to, to_at), count)?;
    let got = out.to_f32(rig.device())?;
    let expected: Vec<u32> =
        numbers[at..].iter().map(|&x| (round(to, f64::from(x)) as f32).to_bits()).collect();
    let bits: Vec<u32> = got[to_at..].iter().map(|x| x.to_bits()).collect();
    let before = got[..to_at].iter().filter(|x| !x.is_nan()).count();
    let verdict = judge_exact(&bits, &expected);
    Ok(Verdict { error: verdict.error + before as f64, ..verdict })
}

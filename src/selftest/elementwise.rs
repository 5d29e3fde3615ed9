//! Cases of `cuda/elementwise.cu`.

use super::{Case, DTYPES, Grid, Rig, Verdict, judge, judge_exact, round};
use crate::backend::cuda::{Buffer, Device, Format};
use crate::backend::{Backend, Backward};
use crate::element::Dtype;
use crate::error::{Error, Result};

const FORMATS: [Format; 3] = [Format::Float(Dtype::Bf16), Format::U32, Format::U64];

pub fn cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    // Count, first number of either buffer: on 16 bytes in every format, or not.
    let shapes = grid.choose(
        &[(67, 0, 0), (4101, 16, 16), (33, 3, 0), (5, 0, 1)],
        &[(1, 0, 0), (20_000, 0, 32), (16_384, 0, 0), (2050, 1, 1)],
    );
    let mut cases = Vec::new();
    for &place in &shapes {
        let (count, at, to) = place;
        for format in FORMATS {
            let kernel = format!("elementwise_copy_{}", format.size());
            let shape = format!("count {count}, at {at} to {to}");
            cases.push(Case::new("elementwise", kernel, shape, move |rig: &Rig<'_, D>| {
                match format.size() {
                    2 => copy(rig, format, place, |bits| bits as u16),
                    4 => copy(rig, format, place, |bits| bits as u32),
                    _ => copy(rig, format, place, |bits| bits),
                }
            }));
        }
        for dtype in DTYPES {
            let kernel = format!("elementwise_scale_{dtype}");
            cases.push(Case::new(
                "elementwise",
                kernel,
                format!("count {count}"),
                move |rig: &Rig<'_, D>| scale(rig, dtype, count),
            ));
        }
    }
    cases.push(Case::new("elementwise", "elementwise_zero", "some of a buffer", zero));
    cases.push(Case::new("elementwise", "elementwise_copy", "arguments that do not fit", refusals));
    cases
}

/// Any bits, bit for bit; what lies before and behind stays as it was.
fn copy<D: Device, T: bytemuck::Pod + PartialEq>(
    rig: &Rig<'_, D>,
    format: Format,
    (count, at, to): (usize, usize, usize),
    number: fn(u64) -> T,
) -> Result<Verdict> {
    const BEHIND: usize = 5;
    let mut random = rig.random(1);
    let from: Vec<T> = (0..at + count).map(|_| number(random.bits())).collect();
    let mut expected: Vec<T> = (0..to + count + BEHIND).map(|_| number(random.bits())).collect();
    let src = Buffer::of(rig.device(), format, &from)?;
    let mut dst = Buffer::of(rig.device(), format, &expected)?;
    rig.cuda.copy(format, &src, at, &mut dst, to, count)?;
    expected[to..to + count].copy_from_slice(&from[at..]);
    Ok(judge_exact(&dst.to_vec::<T>(rig.device())?, &expected))
}

fn scale<D: Device>(rig: &Rig<'_, D>, dtype: Dtype, count: usize) -> Result<Verdict> {
    let factor = 0.7f32;
    let (mut x, mut x_device) = rig.input(1, dtype, count + 3, 5.0)?;
    rig.cuda.scale(dtype, &mut x_device, count, factor)?;
    let cpu = rig.cpu;
    let mut expected = cpu.upload(&x)?;
    Backward::scale(cpu, &mut expected, count, factor.into())?;
    x[..count].iter_mut().for_each(|x| *x = round(dtype, *x * f64::from(factor)));
    judge(rig, dtype, &x_device, expected.as_slice(), &x)
}

fn zero<D: Device>(rig: &Rig<'_, D>) -> Result<Verdict> {
    let mut verdicts = Vec::new();
    for dtype in DTYPES {
        let (x, mut x_device) = rig.input(1, dtype, 37, 5.0)?;
        rig.cuda.zero(&mut x_device, 0)?;
        rig.cuda.zero(&mut x_device, 21)?;
        let got = x_device.to_f32(rig.device())?;
        let expected: Vec<f32> =
            x.iter().enumerate().map(|(i, &x)| if i < 21 { 0.0 } else { x as f32 }).collect();
        verdicts.push(judge_exact(&got, &expected));
    }
    let [a, b, c] = verdicts[..] else {
        return Ok(Verdict { error: 1.0, bound: 0.0, fingerprint: 0 });
    };
    Ok(a.and(b).and(c))
}

/// What the launches refuse: one output for each, 1 where it does.
fn refusals<D: Device>(rig: &Rig<'_, D>) -> Result<Verdict> {
    let (cuda, dtype) = (rig.cuda, Dtype::Bf16);
    let src = rig.poisoned(dtype, 9)?;
    let mut dst = rig.poisoned(dtype, 8)?;
    let (bytes, mut to) = (rig.poisoned(Format::U8, 8)?, rig.poisoned(Format::U8, 8)?);
    let refused = [
        cuda.copy(Format::U8, &bytes, 0, &mut to, 0, 8),
        cuda.copy(dtype, &src, 2, &mut dst, 0, 8),
        cuda.copy(dtype, &src, 0, &mut dst, 0, 9),
        cuda.copy(dtype, &src, 10, &mut dst, 0, 0),
        cuda.copy(Dtype::F32, &src, 0, &mut dst, 0, 8),
        cuda.copy(Format::U32, &src, 0, &mut dst, 0, 4),
        cuda.copy(dtype, &src, usize::MAX, &mut dst, 0, 8),
        cuda.scale(dtype, &mut dst, 9, 1.0),
        cuda.scale(Dtype::F16, &mut dst, 8, 1.0),
        cuda.zero(&mut dst, 9),
    ];
    let refused = refused.map(|result| u32::from(matches!(result, Err(Error::Shape { .. }))));
    Ok(judge_exact(&refused, &[1; 10]))
}

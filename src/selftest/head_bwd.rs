//! Cases of the gradient in `cuda/head.cu`.

use super::embedding::judge_numbers;
use super::{Case, DTYPES, Grid, Rig, Verdict, judge, judge_exact, round};
use crate::backend::cuda::{Buffer, Device, Format};
use crate::backend::{Backend, Backward, Rows, TokenWeight};
use crate::element::Dtype;
use crate::error::{Error, Result};

const TOKENS: [TokenWeight; 3] =
    [TokenWeight::NONE, TokenWeight { alpha: 0.25, gamma: 2.0 }, TokenWeight { alpha: 2.0, gamma: 0.5 }];

/// Where rows lie.
#[derive(Clone, Copy, Debug)]
enum Place {
    Dense,
    /// Room up to the next 64 numbers, from a number on 16 bytes on.
    Padded,
    /// At any alignment.
    Odd,
}

impl Place {
    fn rows(self, vocab: usize) -> Rows {
        match self {
            Place::Dense => Rows::dense(vocab),
            Place::Padded => Rows { at: 16, stride: (vocab + 3).next_multiple_of(64) },
            Place::Odd => Rows { at: 3, stride: vocab + 5 },
        }
    }
}

pub fn cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    let shapes =
        grid.choose(&[(3, 64), (4, 65), (2, 7), (1, 1)], &[(2, 50_257), (1, 33_000), (2, 4096), (3, 10_009)]);
    let mut cases = Vec::new();
    for dtype in DTYPES {
        let kernel = format!("head_gradient_{dtype}");
        for (i, &(rows, vocab)) in shapes.iter().enumerate() {
            for place in [Place::Dense, Place::Padded, Place::Odd] {
                let token = TOKENS[i % TOKENS.len()];
                let shape = format!("rows {rows}, vocab {vocab}, {place:?}, gamma {}", token.gamma);
                cases.push(Case::new("head", kernel.clone(), shape, move |rig: &Rig<'_, D>| {
                    gradient(rig, dtype, rows, vocab, place, token)
                }));
            }
        }
        for vocab in [5, 1003] {
            let shape = format!("vocab {vocab}, special rows");
            cases.push(Case::new("head", kernel.clone(), shape, move |rig: &Rig<'_, D>| {
                special(rig, dtype, vocab)
            }));
        }
    }
    cases.push(Case::new("head", "head_gradient", "arguments that do not fit", refusals));
    cases
}

fn gradient<D: Device>(
    rig: &Rig<'_, D>,
    dtype: Dtype,
    rows: usize,
    vocab: usize,
    place: Place,
    token: TokenWeight,
) -> Result<Verdict> {
    const START: usize = 2;
    let at = place.rows(vocab);
    let (logits, mut logits_device) = rig.input(1, dtype, at.at + rows * at.stride, 4.0)?;
    let (weights, weights_device) = rig.input(2, Dtype::F32, START + rows, 2.0)?;
    let mut random = rig.random(3);
    let targets: Vec<u32> = (0..START + rows).map(|_| random.below(vocab) as u32).collect();
    let targets_device = Buffer::of(rig.device(), Format::U32, &targets)?;
    let mut nll = rig.poisoned(Dtype::F32, START + rows)?;
    let range = START..START + rows;
    // The loss alone, of the same logits: the same bits.
    let mut alone = rig.poisoned(Dtype::F32, rows)?;
    let wanted = targets_device.share(START, rows)?;
    rig.cuda.cross_entropy(dtype, (&logits_device, at), vocab, &wanted, rows, &mut alone)?;
    let placed = (&mut logits_device, at);
    rig.cuda.cross_entropy_backward(
        dtype,
        placed,
        vocab,
        range.clone(),
        &targets_device,
        &weights_device,
        token,
        &mut nll,
    )?;

    let cpu = rig.cpu;
    let row = |r: usize| &logits[at.at + r * at.stride..][..vocab];
    let mut dense = cpu.upload(&(0..rows).flat_map(|r| row(r).to_vec()).collect::<Vec<_>>())?;
    let mut index = cpu.alloc_index(targets.len())?;
    cpu.write_index(&mut index, &targets)?;
    let mut factors = cpu.alloc_floats(weights.len())?;
    cpu.write_floats(&mut factors, &weights.iter().map(|&w| w as f32).collect::<Vec<_>>())?;
    let mut losses = cpu.alloc_floats(weights.len())?;
    let rows_of_cpu = (&mut dense, Rows::dense(vocab));
    Backward::cross_entropy_backward(cpu, rows_of_cpu, vocab, range, &index, &factors, token, &mut losses)?;

    // Zeros behind each row.
    let padded = |row: &[f64]| [row, &vec![0.0; at.stride - vocab]].concat();
    let expected: Vec<f64> = dense.as_slice().chunks(vocab).flat_map(padded).collect();
    let naive: Vec<f64> = (0..rows)
        .flat_map(|r| {
            let factor = (weights[START + r], token);
            padded(&naive(dtype, row(r), targets[START + r] as usize, factor))
        })
        .collect();
    let verdict = judge(rig, dtype, &logits_device.share(at.at, rows * at.stride)?, &expected, &naive)?;
    let before: Vec<f64> = logits[..at.at].to_vec();
    let kept = judge_numbers(rig, &logits_device.share(0, at.at)?, &before)?;
    let losses: Vec<f64> = losses.as_slice()[START..].iter().map(|&u| f64::from(u)).collect();
    let nll = nll.share(START, rows)?;
    let of_loss = judge(rig, Dtype::F32, &nll, &losses, &[])?;
    let same = judge_exact(&nll.to_vec::<u32>(rig.device())?, &alone.to_vec::<u32>(rig.device())?);
    Ok(verdict.and(kept).and(of_loss).and(same))
}

/// The gradient of a row with every intermediate result rounded.
fn naive(dtype: Dtype, row: &[f64], target: usize, (weight, token): (f64, TokenWeight)) -> Vec<f64> {
    let r = |x| round(dtype, x);
    let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = row.iter().map(|x| r(r(x - top).exp())).collect();
    let sum = r(exponentials.iter().sum());
    let u = r(r(sum.ln()) + r(top - row[target]));
    let factor = r(weight * r(token.slope(u)));
    let one = |(j, e): (usize, &f64)| r(factor * r(r(e / sum) - if j == target { 1.0 } else { 0.0 }));
    exponentials.iter().enumerate().map(one).collect()
}

/// Rows that are NaN everywhere, for one number or for their target; one whose target is impossible, one that counts
/// nothing, one without doubt.
fn special<D: Device>(rig: &Rig<'_, D>, dtype: Dtype, vocab: usize) -> Result<Verdict> {
    let last = vocab - 1;
    let flat =
        |i: usize, value: f32| (0..vocab).map(|j| if j == i { value } else { 0.5 }).collect::<Vec<f32>>();
    let only = |i: usize| (0..vocab).map(|j| if j == i { 2.0 } else { f32::NEG_INFINITY }).collect();
    let rows: [(Vec<f32>, usize, f32); 9] = [
        (flat(0, f32::NAN), 1, 1.0),
        (flat(last, f32::NAN), last, 0.0),
        (flat(last / 2, f32::INFINITY), 1, 1.0),
        (flat(1, 0.5), vocab, 1.0),
        (flat(1, 0.5), u32::MAX as usize, 1.0),
        (vec![f32::NEG_INFINITY; vocab], 0, 1.0),
        (only(1), 0, 2.0),
        (flat(1, 3.0), 0, 0.0),
        (only(last), last, 2.0),
    ];
    let at = Rows { at: 0, stride: vocab + 3 };
    let numbers: Vec<f32> = rows.iter().flat_map(|row| [&row.0[..], &[f32::NAN; 3]].concat()).collect();
    let targets: Vec<u32> = rows.iter().map(|row| row.1 as u32).collect();
    let weights: Vec<f32> = rows.iter().map(|row| row.2).collect();
    let mut logits = Buffer::floats(rig.device(), dtype, &numbers)?;
    let targets = Buffer::of(rig.device(), Format::U32, &targets)?;
    let weights = Buffer::of(rig.device(), Dtype::F32, &weights)?;
    let mut nll = rig.poisoned(Dtype::F32, rows.len())?;
    let token = TokenWeight { alpha: 1.0, gamma: 2.0 };
    let placed = (&mut logits, at);
    rig.cuda.cross_entropy_backward(
        dtype,
        placed,
        vocab,
        0..rows.len(),
        &targets,
        &weights,
        token,
        &mut nll,
    )?;

    let mut expected = Vec::new();
    for r in 0..rows.len() {
        match r {
            0..6 => expected.extend(vec![f64::NAN; vocab]),
            // Infinite: the slope is alpha.
            6 => expected.extend((0..vocab).map(|j| [-2.0, 2.0].get(j).copied().unwrap_or(0.0))),
            _ => expected.extend(vec![0.0; vocab]),
        }
        expected.extend([0.0; 3]);
    }
    // A zero of either sign.
    let got: Vec<f64> =
        logits.to_f32(rig.device())?.into_iter().map(|x| if x == 0.0 { 0.0 } else { f64::from(x) }).collect();
    let same = |(a, b): (&f64, &f64)| u32::from(a == b || (a.is_nan() && b.is_nan()));
    let same: Vec<u32> = got.iter().zip(&expected).map(same).collect();
    let losses: Vec<f32> = nll.to_f32(rig.device())?;
    let kinds = [
        losses[..6].iter().all(|u| u.is_nan()),
        losses[6] == f32::INFINITY,
        losses[7].is_finite() && losses[7] > 2.0,
        losses[8] == 0.0,
    ];
    Ok(judge_exact(&same, &vec![1; expected.len()]).and(judge_exact(&kinds.map(u32::from), &[1; 4])))
}

/// What the launch refuses: one output for each, 1 where it does.
fn refusals<D: Device>(rig: &Rig<'_, D>) -> Result<Verdict> {
    let dtype = Dtype::Bf16;
    let device = rig.device();
    let index = Buffer::of(device, Format::U32, &[0u32; 4])?;
    let floats = Buffer::<D>::new(device, Dtype::F32, 4)?;
    let mut refused: Vec<u32> = Vec::new();
    let mut attempt =
        |dtype, len: usize, at: Rows, vocab, rows, targets, weights, nll: usize| -> Result<()> {
            let mut logits = Buffer::<D>::new(device, Dtype::Bf16, len)?;
            let mut nll = Buffer::<D>::new(device, Dtype::F32, nll)?;
            let result = rig.cuda.cross_entropy_backward(
                dtype,
                (&mut logits, at),
                vocab,
                rows,
                targets,
                weights,
                TokenWeight::NONE,
                &mut nll,
            );
            refused.push(matches!(result, Err(Error::Shape { .. })).into());
            Ok(())
        };
    let at = Rows { at: 0, stride: 8 };
    attempt(dtype, 15, at, 7, 0..2, &index, &floats, 4)?;
    attempt(dtype, 16, Rows { at: 1, stride: 8 }, 7, 0..2, &index, &floats, 4)?;
    attempt(dtype, 16, Rows { at: 0, stride: 6 }, 7, 0..2, &index, &floats, 4)?;
    attempt(dtype, 16, Rows { at: 0, stride: usize::MAX }, 7, 0..2, &index, &floats, 4)?;
    attempt(dtype, 16, at, 0, 0..2, &index, &floats, 4)?;
    attempt(dtype, 16, at, usize::MAX, 0..2, &index, &floats, 4)?;
    attempt(Dtype::F16, 16, at, 7, 0..2, &index, &floats, 4)?;
    #[allow(clippy::reversed_empty_ranges)]
    attempt(dtype, 16, at, 7, 2..0, &index, &floats, 4)?;
    attempt(dtype, 16, at, 7, 3..5, &index, &floats, 5)?;
    attempt(dtype, 16, at, 7, 0..2, &floats, &floats, 4)?;
    attempt(dtype, 16, at, 7, 0..2, &index, &index, 4)?;
    attempt(dtype, 16, at, 7, 0..2, &index, &floats, 1)?;
    Ok(judge_exact(&refused, &vec![1; refused.len()]))
}

//! Cases of `cuda/head.cu`.

use super::embedding::judge_numbers;
use super::{Case, DTYPES, Grid, Rig, Verdict, judge, judge_exact};
use crate::backend::cuda::{Buffer, Device, Format};
use crate::backend::{Backend, Forward, Rows};
use crate::element::Dtype;
use crate::error::Result;

pub fn cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    let shapes =
        grid.choose(&[(3, 64), (9, 65), (2, 3), (1, 1)], &[(3, 50_257), (2, 32_000), (2, 4096), (5, 10_009)]);
    let mut cases = Vec::new();
    for dtype in DTYPES {
        let kernel = format!("head_nll_{dtype}");
        for (&(rows, vocab), placed) in shapes.iter().flat_map(|shape| [(shape, false), (shape, true)]) {
            let shape = format!("rows {rows}, vocab {vocab}, {}", if placed { "placed" } else { "dense" });
            cases.push(Case::new("head", kernel.clone(), shape, move |rig: &Rig<'_, D>| {
                nll(rig, dtype, rows, vocab, placed)
            }));
        }
        for vocab in [5, 1003] {
            cases.push(Case::new(
                "head",
                kernel.clone(),
                format!("vocab {vocab}, special rows"),
                move |rig: &Rig<'_, D>| special(rig, dtype, vocab),
            ));
            cases.push(Case::new(
                "head",
                kernel.clone(),
                format!("vocab {vocab}, anywhere"),
                move |rig: &Rig<'_, D>| anywhere(rig, dtype, vocab),
            ));
        }
    }
    cases
}

fn run<D: Device>(
    rig: &Rig<'_, D>,
    dtype: Dtype,
    logits: (&Buffer<D>, Rows),
    vocab: usize,
    targets: &[u32],
) -> Result<Buffer<D>> {
    let targets_device = Buffer::of(rig.device(), Format::U32, targets)?;
    let mut out = rig.poisoned(Dtype::F32, targets.len())?;
    rig.cuda.cross_entropy(dtype, logits, vocab, &targets_device, targets.len(), &mut out)?;
    Ok(out)
}

/// The output is f32 and sums are, whatever the format of the logits: all are held to the bound of f32.
fn nll<D: Device>(
    rig: &Rig<'_, D>,
    dtype: Dtype,
    rows: usize,
    vocab: usize,
    placed: bool,
) -> Result<Verdict> {
    let at = if placed { Rows { at: 3, stride: vocab + 5 } } else { Rows::dense(vocab) };
    let (logits, logits_device) = rig.input(1, dtype, at.at + (rows - 1) * at.stride + vocab, 12.0)?;
    let mut random = rig.random(2);
    let targets: Vec<u32> = (0..rows).map(|_| random.below(vocab) as u32).collect();
    let out = run(rig, dtype, (&logits_device, at), vocab, &targets)?;
    let dense: Vec<f64> =
        (0..rows).flat_map(|r| logits[at.at + r * at.stride..][..vocab].iter().copied()).collect();
    let mut expected = vec![0.0; rows];
    rig.cpu.cross_entropy(&rig.cpu.upload(&dense)?, vocab, &targets, &mut expected)?;
    judge(rig, Dtype::F32, &out, &expected, &expected)
}

/// Rows with one logit that is NaN, infinite or so high that all others vanish; all equal; all but one impossible; a
/// target that does not exist.
fn special<D: Device>(rig: &Rig<'_, D>, dtype: Dtype, vocab: usize) -> Result<Verdict> {
    let last = vocab - 1;
    let one =
        |i: usize, value: f32| (0..vocab).map(|j| if j == i { value } else { 0.5 }).collect::<Vec<f32>>();
    let only = |i: usize| (0..vocab).map(|j| if j == i { 2.0 } else { f32::NEG_INFINITY }).collect();
    let rows: [(Vec<f32>, usize, f64); 9] = [
        (one(0, f32::NAN), 1, f64::NAN),
        (one(last, f32::NAN), last, f64::NAN),
        (one(last / 2, f32::INFINITY), 1, f64::NAN),
        (one(1, 0.5), vocab, f64::NAN),
        (one(1, 0.5), u32::MAX as usize, f64::NAN),
        (vec![f32::NEG_INFINITY; vocab], 0, f64::NAN),
        (only(last), last, 0.0),
        (only(1), 0, f64::INFINITY),
        (one(last, 1000.5), 0, 1000.0),
    ];
    let numbers: Vec<f32> = rows.iter().flat_map(|row| row.0.iter().copied()).collect();
    let targets: Vec<u32> = rows.iter().map(|row| row.1 as u32).collect();
    // 1000.5 has fewer digits in bf16: what is expected is what the logit became.
    let high = super::round(dtype, 1000.5) - 0.5;
    let expected: Vec<f64> = rows.iter().map(|row| if row.2 == 1000.0 { high } else { row.2 }).collect();
    let logits = Buffer::floats(rig.device(), dtype, &numbers)?;
    judge_numbers(rig, &run(rig, dtype, (&logits, Rows::dense(vocab)), vocab, &targets)?, &expected)
}

/// One row of logits at every alignment: the same bits.
fn anywhere<D: Device>(rig: &Rig<'_, D>, dtype: Dtype, vocab: usize) -> Result<Verdict> {
    const COPIES: usize = 9;
    let (row, _) = rig.input(1, dtype, vocab, 8.0)?;
    // A number more from copy to copy.
    let at = Rows { at: 2, stride: vocab.next_multiple_of(8) + 1 };
    let mut logits = vec![0.0f32; at.at + (COPIES - 1) * at.stride + vocab];
    for copy in 0..COPIES {
        let here = &mut logits[at.at + copy * at.stride..][..vocab];
        here.iter_mut().zip(&row).for_each(|(to, from)| *to = *from as f32);
    }
    let logits = Buffer::floats(rig.device(), dtype, &logits)?;
    let out = run(rig, dtype, (&logits, at), vocab, &[1; COPIES])?.to_vec::<u32>(rig.device())?;
    Ok(judge_exact(&out, &[out[0]; COPIES]))
}

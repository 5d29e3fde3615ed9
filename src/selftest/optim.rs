//! Cases of `cuda/optim.cu`: several steps against the CPU's, bit for bit. Sums of squares are in another order than there; in
//! the rare case that the factor of clipping, rounded to f32, differs for that, a case with clipping would fail.

use std::num::NonZeroUsize;
use std::ops::Range;

use super::{Case, DTYPES, Grid, Rig, Verdict, hash, judge_exact, round};
use crate::backend::cpu::Cpu;
use crate::backend::cuda::{Buffer, Cuda, Device};
use crate::backend::{AdamW, Backend, MomentFormat, Optimise, Outcome, Trainable};
use crate::element::Dtype;
use crate::error::Result;
use crate::rng::Rng;

const MOMENTS: [(MomentFormat, &str); 3] =
    [(MomentFormat::F32, "f32"), (MomentFormat::Bf16, "bf16"), (MomentFormat::Q8, "q8")];

pub fn cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    // Numbers, and where in their buffers parameter and gradient begin.
    let shapes = grid
        .choose(&[(65, 0), (300, 1)], &[(1, 0), (63, 0), (64, 0), (255, 1), (256, 0), (257, 0), (5000, 0)]);
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for (moments, name) in MOMENTS {
            for &(len, at) in &shapes {
                let kernel = format!("optim_adamw_{dtype}_{name}");
                let run = move |rig: &Rig<'_, D>| steps(rig, dtype, moments, len, at);
                cases.push(Case::new("optim", kernel, format!("numbers {len}, at {at}"), run));
            }
        }
    }
    for (len, at) in grid.choose(&[(1, 0), (3000, 1)], &[(32_768, 0), (32_769, 0), (70_001, 0), (33_000, 3)])
    {
        let run = move |rig: &Rig<'_, D>| squares(rig, len, at);
        cases.push(Case::new("optim", "optim_squares_f32", format!("numbers {len}, at {at}"), run));
    }
    for rows in grid.choose(&[3, 300], &[1, 257, 3000]) {
        let run = move |rig: &Rig<'_, D>| watch(rig, rows);
        cases.push(Case::new("optim", "optim_watch", format!("rows {rows}"), run));
    }
    for (gradients, clip) in grid.choose(&[(1, 0.5), (3, 0.0)], &[(300, 0.5), (7, 1e9)]) {
        let run = move |rig: &Rig<'_, D>| settle(rig, gradients, clip);
        cases.push(Case::new("optim", "optim_settle", format!("gradients {gradients}, clip {clip}"), run));
    }
    cases
}

fn judge_cpu() -> Result<Cpu<f32>> {
    Cpu::new(NonZeroUsize::new(1))
}

fn settings(step: u64, clip: f64) -> AdamW {
    AdamW {
        lr: 3e-3,
        betas: [0.9, 0.98],
        eps: 1e-8,
        decay: 0.1,
        clip,
        unscale: 0.25,
        step,
        rng: Rng::new(0x0123_4567_89AB_CDEF),
    }
}

/// Numbers of many magnitudes, and zeros for a while.
fn gradient<D: Device>(rig: &Rig<'_, D>, stream: u64, len: usize) -> Vec<f32> {
    let mut random = rig.random(stream);
    let number = |i: usize| {
        let x = random.number() * 2f64.powi(random.below(40) as i32 - 30);
        if i / 256 == 1 && stream % 2 == 1 { 0.0 } else { x as f32 }
    };
    (0..len).map(number).collect()
}

/// Numbers in the middle of a longer buffer.
fn placed<D: Device>(rig: &Rig<'_, D>, dtype: Dtype, at: usize, numbers: &[f32]) -> Result<Buffer<D>> {
    let mut all = vec![f32::NAN; at];
    all.extend(numbers);
    Buffer::floats(rig.device(), dtype, &all)?.share(at, numbers.len())
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

/// Four steps, one of them skipped: master copy, weights and moments.
fn steps<D: Device>(
    rig: &Rig<'_, D>,
    dtype: Dtype,
    moments: MomentFormat,
    len: usize,
    at: usize,
) -> Result<Verdict> {
    let (cpu, cuda) = (judge_cpu()?, Cuda::with_dtype(rig.device().clone(), dtype));
    let numbers: Vec<f32> = rig.input(1, dtype, len, 1.0)?.0.into_iter().map(|x| x as f32).collect();
    let mut weights = placed(rig, dtype, at, &numbers)?;
    let mut expected = cpu.upload(&numbers)?;
    let mut state = cuda.state(Trainable::Vector(&mut weights), moments)?;
    let mut expected_state = cpu.state(Trainable::Vector(&mut expected), moments)?;
    let (mut control, mut expected_control) = (cuda.control(&[len])?, cpu.control(&[len])?);
    for step in 1..=4 {
        let clip = if step % 2 == 0 { 0.5 } else { 0.0 };
        let mut numbers = gradient(rig, 2 + step, len);
        if step == 3 {
            numbers[len / 2] = f32::NAN;
        }
        let (given, there) = (cpu.upload(&numbers)?, placed(rig, Dtype::F32, at, &numbers)?);
        let (a, parameter, decays) = (settings(step, clip), 7, step != 4);
        cpu.prepare(&mut expected_control, a)?;
        cpu.measure(&mut expected_control, 0, &given)?;
        cpu.settle(&mut expected_control)?;
        let vector = Trainable::Vector(&mut expected);
        cpu.step(vector, &given, &mut expected_state, &expected_control, parameter, decays)?;
        cuda.prepare(&mut control, a)?;
        cuda.measure(&mut control, 0, &there)?;
        cuda.settle(&mut control)?;
        cuda.step(Trainable::Vector(&mut weights), &there, &mut state, &control, parameter, decays)?;
    }
    let master = cuda.read_parameter(Trainable::Vector(&mut weights), Some(&state))?;
    let verdict = judge_exact(&bits(&master), &bits(expected.as_slice()));
    let rounded: Vec<f32> = expected.as_slice().iter().map(|&x| round(dtype, x.into()) as f32).collect();
    let verdict = verdict.and(judge_exact(&bits(&weights.to_f32(rig.device())?), &bits(&rounded)));
    let (_, [m, v]) = cuda.read_moments(&state)?;
    let (_, [expected_m, expected_v]) = cpu.read_moments(&expected_state)?;
    Ok(verdict.and(judge_exact(&m, &expected_m)).and(judge_exact(&v, &expected_v)))
}

fn relative(got: f64, expected: f64) -> Verdict {
    let error = if got == expected { 0.0 } else { ((got - expected) / expected).abs() };
    Verdict { error, bound: 1e-13, fingerprint: hash(&got.to_bits().to_le_bytes()) }
}

fn squares<D: Device>(rig: &Rig<'_, D>, len: usize, at: usize) -> Result<Verdict> {
    let mut numbers = gradient(rig, 2, len);
    let expected: f64 = numbers.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let sum = |numbers: &[f32]| rig.cuda.sum_of_squares(&placed(rig, Dtype::F32, at, numbers)?, len);
    let verdict = relative(sum(&numbers)?, expected);
    // Too large for a square in f32, and no numbers.
    numbers[len - 1] = 2f32.powi(100);
    let large = relative(sum(&numbers)?, 2f64.powi(200));
    numbers[len / 2] = f32::NEG_INFINITY;
    let infinite = sum(&numbers)?;
    numbers[len - 1] = f32::NAN;
    let no_number = sum(&numbers)?;
    let special = judge_exact(&[u8::from(infinite == f64::INFINITY), u8::from(no_number.is_nan())], &[1, 1]);
    Ok(verdict.and(large).and(special))
}

/// A bad loss at the first row, at the last, and behind the rows that are looked at; and a good one after a bad one.
fn watch<D: Device>(rig: &Rig<'_, D>, rows: usize) -> Result<Verdict> {
    let cuda = rig.cuda;
    let mut control = cuda.control(&[])?;
    let mut skipped = Vec::new();
    for (bad, place) in
        [(f32::NAN, 0), (f32::INFINITY, rows - 1), (f32::NAN, rows), (f32::NEG_INFINITY, rows / 2)]
    {
        cuda.prepare(&mut control, settings(1, 0.0))?;
        for place in [place, rows] {
            let mut losses = vec![1.5; rows + 1];
            losses[place] = bad;
            cuda.watch(&mut control, &Buffer::of(rig.device(), Dtype::F32, &losses)?, rows)?;
        }
        cuda.settle(&mut control)?;
        skipped.push(u8::from(cuda.outcome(&control)?.skipped));
    }
    Ok(judge_exact(&skipped, &[1, 1, 0, 1]))
}

/// The length of many gradients together, and what is done about one that is not finite or not measured.
fn settle<D: Device>(rig: &Rig<'_, D>, gradients: usize, clip: f64) -> Result<Verdict> {
    let (cpu, cuda) = (judge_cpu()?, rig.cuda);
    let lens: Vec<usize> = (0..gradients).map(|i| 1 + i % 5).collect();
    let (mut control, mut expected_control) = (cuda.control(&lens)?, cpu.control(&lens)?);
    let before = cuda.outcome(&control)?;
    let mut measured = |bad: bool, which: Range<usize>| -> Result<[Outcome; 2]> {
        cuda.prepare(&mut control, settings(1, clip))?;
        cpu.prepare(&mut expected_control, settings(1, clip))?;
        for i in which {
            let mut numbers = gradient(rig, 2 * i as u64, lens[i]);
            if bad {
                numbers[0] = f32::INFINITY;
            }
            cuda.measure(&mut control, i, &Buffer::of(rig.device(), Dtype::F32, &numbers)?)?;
            cpu.measure(&mut expected_control, i, &cpu.upload(&numbers)?)?;
        }
        cuda.settle(&mut control)?;
        cpu.settle(&mut expected_control)?;
        Ok([cuda.outcome(&control)?, cpu.outcome(&expected_control)?])
    };
    let [good, expected] = measured(false, 0..gradients)?;
    let [bad, expected_bad] = measured(true, gradients - 1..gradients)?;
    let [partly, expected_partly] = measured(false, 0..1)?;
    let skips = [before, good, bad, partly].map(|outcome| u8::from(outcome.skipped));
    let expected_skips = [true, false, expected_bad.skipped, false].map(u8::from);
    Ok(relative(good.gradient, expected.gradient)
        .and(relative(partly.gradient, expected_partly.gradient))
        .and(judge_exact(&skips, &expected_skips)))
}

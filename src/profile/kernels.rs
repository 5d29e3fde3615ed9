//! Runs the cases of [`super::grid`].

use std::cell::Cell;
use std::ops::ControlFlow;

use super::Timing;
use super::grid::{Case, POSITIONS, Rule, Work, cases};
use super::inputs::opinion;
use super::training::Training;
use crate::backend::cuda::{
    Buffer, Cuda, Device, DeviceMask, Draws, Format, LinearEpilogue, Matrix, RowNoise, Segments, unmask_words,
};
use crate::backend::{Confidence, HeadShape, NO_TOKEN, RowParams, Rows, Segment};
use crate::config::{Activation, NormKind};
use crate::element::Dtype;
use crate::error::{Error, Result};

const WARM_UP: usize = 3;
/// Runs of a case: this many, and more while they have taken less than [`ENOUGH_US`].
const LEAST_RUNS: usize = 20;
const MOST_RUNS: usize = 100;
const ENOUGH_US: f64 = 20_000.0;
/// Overwritten between runs: twice the largest second-level cache of a card (126 MB).
const FLUSH: usize = 1 << 28;
/// On the SIMT machine, which has no cache to empty.
const FLUSH_SIMT: usize = 1 << 12;

/// Times the cases whose kernel file, kernel or sizes contain `filter`, and hands each to `each` until that breaks off.
/// `quick`: the small cases. With a matrix library, products are its. A case that fails is left out and the others go on, unless the device is lost.
///
/// # Errors
/// After the last case the first error of any: [`Error::Memory`] for one that does not fit, [`Error::NonFinite`] for a kernel
/// that gives numbers that are none, whose time says nothing. [`Error::Device`] at once.
pub fn kernels<D: Device>(
    cuda: &Cuda<D>,
    filter: &str,
    quick: bool,
    mut each: impl FnMut(&Timing) -> ControlFlow<()>,
) -> Result<()> {
    let flush = if cuda.device().facts().driver.is_some() { FLUSH } else { FLUSH_SIMT };
    let mut bench = Bench::new(cuda, flush)?;
    let listed = cases(quick).into_iter().filter(|c| c.matches(filter));
    let library = cuda.library();
    let kernel = |case: &Case| match (&library, case.work) {
        (Some(library), Work::Linear { .. } | Work::Training(Training::Weight { .. }))
            if case.dtype != Dtype::F32 =>
        {
            library.clone()
        }
        _ => case.kernel(),
    };
    one_by_one(listed, kernel, |case| bench.case(case), &mut each)
}

/// Times `listed`, whose kernels are named by `kernel`, by `time`, as [`kernels`] says.
fn one_by_one(
    listed: impl Iterator<Item = Case>,
    kernel: impl Fn(&Case) -> String,
    mut time: impl FnMut(&Case) -> Result<Vec<f64>>,
    each: &mut impl FnMut(&Timing) -> ControlFlow<()>,
) -> Result<()> {
    let mut failed = None;
    for case in listed {
        let microseconds = match time(&case) {
            Ok(microseconds) => microseconds,
            Err(error @ Error::Device { .. }) => return Err(error),
            Err(error) => {
                failed.get_or_insert(error);
                continue;
            }
        };
        let timing = Timing {
            stem: case.stem(),
            kernel: kernel(&case),
            shape: case.shape(),
            dtype: case.dtype,
            bytes: case.bytes(),
            flops: case.flops(),
            workspace: case.workspace(),
            microseconds,
        };
        if each(&timing).is_break() {
            return Ok(());
        }
    }
    failed.map_or(Ok(()), Err)
}

pub(super) struct Bench<'a, D: Device> {
    pub(super) cuda: &'a Cuda<D>,
    /// What is overwritten between runs.
    flush: Buffer<D>,
    /// Inputs made for this case.
    pub(super) inputs: Cell<u32>,
}

impl<'a, D: Device> Bench<'a, D> {
    pub(super) fn new(cuda: &'a Cuda<D>, flush: usize) -> Result<Self> {
        Ok(Self { cuda, flush: Buffer::new(cuda.device(), Format::U8, flush)?, inputs: Cell::new(0) })
    }

    /// Times `work`, in microseconds.
    pub(super) fn time(&mut self, mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
        let device = self.cuda.device();
        for _ in 0..WARM_UP {
            work()?;
        }
        device.synchronize()?;
        let (mut times, mut spent) = (Vec::with_capacity(MOST_RUNS), 0.0);
        while times.len() < LEAST_RUNS || (times.len() < MOST_RUNS && spent < ENOUGH_US) {
            self.flush.fill(device, times.len() as u8)?;
            let from = device.record()?;
            work()?;
            let to = device.record()?;
            let time = f64::from(device.elapsed_ms(&from, &to)?) * 1e3;
            spent += time;
            times.push(time);
        }
        Ok(times)
    }

    fn case(&mut self, case: &Case) -> Result<Vec<f64>> {
        let dtype = case.dtype;
        self.inputs.set(0);
        match case.work {
            Work::Events => self.time(|| Ok(())),
            Work::Attention { batch, heads, length, head_dim } => {
                self.attention(case, [batch, heads, length, head_dim])
            }
            Work::Linear { .. } => self.linear(case),
            Work::Norm { kind, rows, width, residual } => self.norm(case, kind, rows, width, residual),
            Work::Rope { rows, heads, head_dim } => self.rope(case, rows, heads, head_dim),
            Work::Swiglu { rows, width } => {
                let x = self.floats(dtype, 2 * rows * width, |x| x)?;
                let mut out = self.room(dtype, rows * width)?;
                let cuda = self.cuda;
                let times = self.time(|| cuda.swiglu(dtype, &x, rows, width, &mut out))?;
                self.look(case, &out)?;
                Ok(times)
            }
            Work::Gelu { rows, width } => {
                let x = self.floats(dtype, rows * width, |x| x)?;
                let mut out = self.room(dtype, rows * width)?;
                let cuda = self.cuda;
                let times = self
                    .time(|| cuda.activate(dtype, Activation::GeluTanh, Some(&x), &mut out, rows * width))?;
                self.look(case, &out)?;
                Ok(times)
            }
            Work::Embed { rows, width, vocab, positions } => self.embed(case, rows, width, vocab, positions),
            Work::Unmask { rule, rows, vocab } => self.unmask(case, rule, rows, vocab),
            Work::CrossEntropy { rows, vocab } => {
                let logits = self.floats(dtype, rows * vocab, opinion)?;
                let targets = self.below(rows, vocab)?;
                let mut nll = self.room(Dtype::F32, rows)?;
                let (cuda, at) = (self.cuda, Rows::dense(vocab));
                let times =
                    self.time(|| cuda.cross_entropy(dtype, (&logits, at), vocab, &targets, rows, &mut nll))?;
                self.look(case, &nll)?;
                Ok(times)
            }
            Work::Cast { to, count } => {
                let x = self.floats(dtype, count, |x| x)?;
                let mut out = self.room(to, count)?;
                let cuda = self.cuda;
                let times = self.time(|| cuda.cast((&x, dtype, 0), (&mut out, to, 0), count))?;
                self.look(case, &out)?;
                Ok(times)
            }
            Work::Training(work) => self.training(case, work),
        }
    }

    fn attention(&mut self, case: &Case, sizes: [usize; 4]) -> Result<Vec<f64>> {
        let (cuda, dtype, [batch, heads, length, head_dim]) = (self.cuda, case.dtype, sizes);
        let (rows, width) = (batch * length, heads * head_dim);
        let qkv = self.floats(dtype, rows * 3 * width, |x| x)?;
        let mut out = self.room(dtype, rows * width)?;
        let places: Vec<Segment> = (0..batch)
            .map(|s| Segment { q_start: s * length, q_len: length, k_start: s * length, k_len: length })
            .collect();
        let segments = Segments::new(cuda.device(), &places)?;
        let positions = self.positions(rows, length)?;
        let scale = 1.0 / (head_dim as f64).sqrt();
        let shape = HeadShape { heads, kv_heads: heads, head_dim, scale };
        let part = |i| (&qkv, Rows { at: i * width, stride: 3 * width });
        let times = self.time(|| {
            let mask = DeviceMask::Full;
            let (q, k, v) = (part(0), part(1), part(2));
            cuda.attention(dtype, q, k, v, shape, &segments, &positions, mask, &mut out, None)
        })?;
        self.look(case, &out)?;
        Ok(times)
    }

    fn linear(&mut self, case: &Case) -> Result<Vec<f64>> {
        let Work::Linear { rows, inputs, outputs, layout } = case.work else {
            return Ok(Vec::new());
        };
        let (cuda, dtype) = (self.cuda, case.dtype);
        let x = self.floats(dtype, rows * inputs, |x| x)?;
        let weight = self.floats(dtype, inputs * outputs, |x| 0.05 * x)?;
        let weight = Matrix::of(weight, dtype, layout, [inputs, outputs])?;
        let mut out = self.room(dtype, rows * outputs)?;
        let times = self.time(|| {
            let (x, out) = ((&x, Rows::dense(inputs)), (&mut out, Rows::dense(outputs)));
            cuda.linear(dtype, x, rows, &weight, 0..outputs, LinearEpilogue::NONE, out, dtype)
        })?;
        self.look(case, &out)?;
        Ok(times)
    }

    fn norm(
        &mut self,
        case: &Case,
        kind: NormKind,
        rows: usize,
        width: usize,
        residual: bool,
    ) -> Result<Vec<f64>> {
        let (cuda, dtype) = (self.cuda, case.dtype);
        let x = self.floats(dtype, rows * width, |x| x)?;
        // A residual stream grows by x in each of some hundred runs.
        let mut stream = if residual { Some(self.floats(dtype, rows * width, |x| x)?) } else { None };
        let weight = self.floats(dtype, width, |x| 1.0 + 0.1 * x)?;
        let bias = match kind {
            NormKind::LayerNorm => Some(self.floats(dtype, width, |x| x)?),
            NormKind::RmsNorm => None,
        };
        let mut out = self.room(dtype, rows * width)?;
        let times = self.time(|| {
            let (stream, bias) = (stream.as_mut(), bias.as_ref());
            cuda.norm(dtype, kind, &x, stream, &weight, bias, 1e-5, rows, width, &mut out)
        })?;
        self.look(case, &out)?;
        Ok(times)
    }

    fn rope(&mut self, case: &Case, rows: usize, heads: usize, head_dim: usize) -> Result<Vec<f64>> {
        let (cuda, dtype, width) = (self.cuda, case.dtype, heads * head_dim);
        let qkv = self.floats(dtype, rows * 3 * width, |x| x)?;
        let mut q = self.room(dtype, rows * width)?;
        let mut kv = self.room(dtype, rows * 2 * width)?;
        let positions = self.positions(rows, POSITIONS)?;
        let half = head_dim / 2;
        let table: Vec<f32> = (0..POSITIONS * head_dim)
            .map(|i| {
                let (position, column) = (i / head_dim, i % head_dim);
                let angle = position as f64 * 10_000_f64.powf(-((column % half) as f64) / half as f64);
                (if column < half { angle.cos() } else { angle.sin() }) as f32
            })
            .collect();
        let table = Buffer::floats(cuda.device(), Dtype::F32, &table)?;
        let shape = HeadShape { heads, kv_heads: heads, head_dim, scale: 1.0 };
        let times = self.time(|| {
            let at = |at| Rows { at, stride: 2 * width };
            let (from, angles) = ((&qkv, Rows::dense(3 * width)), Some((&positions, &table)));
            let (k, v) = ((&mut kv, at(0)), (None, at(width)));
            cuda.rope_qkv(dtype, from, rows, shape, angles, &mut q, k, v, None)
        })?;
        self.look(case, &q)?;
        self.look(case, &kv)?;
        Ok(times)
    }

    fn embed(
        &mut self,
        case: &Case,
        rows: usize,
        width: usize,
        vocab: usize,
        positions: bool,
    ) -> Result<Vec<f64>> {
        let (cuda, dtype) = (self.cuda, case.dtype);
        let table = self.floats(dtype, vocab * width, |x| x)?;
        let ids = self.below(rows, vocab)?;
        let places = self.floats(dtype, POSITIONS * width, |x| x)?;
        let place_ids = self.positions(rows, POSITIONS)?;
        let mut out = self.room(dtype, rows * width)?;
        let times = self.time(|| {
            let places = positions.then_some((&places, &place_ids));
            cuda.embed(dtype, &table, &ids, places, rows, width, &mut out)
        })?;
        self.look(case, &out)?;
        Ok(times)
    }

    fn unmask(&mut self, case: &Case, rule: Rule, rows: usize, vocab: usize) -> Result<Vec<f64>> {
        let (cuda, dtype) = (self.cuda, case.dtype);
        let logits = self.floats(dtype, rows * vocab, opinion)?;
        let (temperature, top_p, top_k) = rule.numbers();
        let mut words = Vec::new();
        for row in 0..rows {
            let uniform = (row as f32 + 0.5) / rows as f32;
            let (suppress, given, confidence) = (NO_TOKEN, NO_TOKEN, Confidence::MaxProb);
            let params = RowParams { temperature, top_p, top_k, suppress, uniform, confidence, given };
            words.extend(unmask_words(vocab, &params, RowNoise::Given)?);
        }
        let words = Buffer::of(cuda.device(), Format::U32, &words)?;
        let mut draws = Draws::new(cuda.device(), rows)?;
        let times = self.time(|| cuda.unmask(dtype, &logits, 0, vocab, vocab, rows, &words, &mut draws))?;
        let tokens = draws.tokens.to_vec::<u32>(cuda.device())?;
        let flags = draws.flags.to_vec::<u32>(cuda.device())?;
        if flags.iter().any(|&f| f != 0) || tokens.iter().any(|&t| t as usize >= vocab) {
            return Err(unusable(case, "rows without a token"));
        }
        Ok(times)
    }
}

pub(super) fn unusable(case: &Case, found: &str) -> Error {
    Error::NonFinite {
        place: format!("{} ({})", case.kernel(), case.shape()),
        found: found.to_owned(),
        hint: "the time of a kernel that computes something else says nothing; run lacuna selftest".into(),
    }
}

#[cfg(all(test, feature = "simt"))]
mod tests {
    use super::*;
    use crate::backend::cuda::simt::{Options, Simt};

    fn simt() -> Cuda<Simt> {
        Cuda::new(Simt::new(Options { seed: 0, check: true }))
    }

    #[test]
    fn every_case_runs_and_is_handed_over_once() {
        let mut seen = Vec::new();
        kernels(&simt(), "", true, |timing| {
            assert!(timing.microseconds.len() >= LEAST_RUNS, "{timing:?}");
            assert!(timing.microseconds.iter().all(|&t| t.is_finite() && t >= 0.0), "{timing:?}");
            seen.push((timing.stem, timing.kernel.clone(), timing.shape.clone()));
            ControlFlow::Continue(())
        })
        .unwrap();
        let expected: Vec<_> = cases(true).iter().map(|c| (c.stem(), c.kernel(), c.shape())).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_filter_and_a_break_are_followed() {
        let mut seen = Vec::new();
        let mut first = |timing: &Timing| {
            seen.push(timing.kernel.clone());
            ControlFlow::Break(())
        };
        kernels(&simt(), "norm", true, &mut first).unwrap();
        kernels(&simt(), "nothing of the kind", true, &mut first).unwrap();
        assert_eq!(seen, ["norm_layer_bf16"]);
    }

    #[test]
    fn a_case_that_fails_keeps_no_other_from_running_unless_the_device_is_lost() {
        let run = |lost: bool| {
            let (mut asked, mut seen) = (0, 0);
            let time = |case: &Case| {
                asked += 1;
                match asked {
                    2 | 3 => Err(unusable(case, "nothing but zeros")),
                    5 if lost => {
                        let (device, what, hint) = ("a card".into(), "lost".into(), String::new());
                        Err(Error::Device { device, what, hint })
                    }
                    _ => Ok(vec![1.0]),
                }
            };
            let outcome = one_by_one(cases(true).into_iter(), Case::kernel, time, &mut |_| {
                seen += 1;
                ControlFlow::Continue(())
            });
            (outcome.unwrap_err(), seen)
        };
        let (error, seen) = run(false);
        let second = cases(true)[1].kernel();
        assert!(matches!(&error, Error::NonFinite { place, .. } if place.starts_with(&second)), "{error}");
        assert_eq!(seen, cases(true).len() - 2);
        let (error, seen) = run(true);
        assert!(matches!(error, Error::Device { .. }) && seen == 2, "{error}, {seen}");
    }
}

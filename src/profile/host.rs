//! Runs the cases of [`super::host_grid`], by the traits that the engine goes through.
//!
//! Before every run buffers larger than a last-level cache are copied, so that inputs come from memory.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::time::Instant;

use super::Timing;
use super::grid::{POSITIONS, Rule, Work};
use super::host_grid::{HostCase, host_cases};
use super::inputs::{opinion, random};
use super::training::Training;
use crate::backend::{
    AdamW, Attended, Backend, Backward, Confidence, Epilogue, HeadShape, Layout, Mask, NO_TOKEN, Optimise,
    RowDraw, RowNoise, RowParams, Rows, Segment, TokenWeight, Trainable, Unmask, WorkSize, unmask_words,
};
use crate::config::{Activation, NormKind};
use crate::element::{Dtype, StoredTensor};
use crate::error::{Error, Result};
use crate::rng::{Rng, unit};

/// Runs of a case: this many, and more while they have taken less than [`ENOUGH_S`].
const LEAST_RUNS: usize = 5;
const MOST_RUNS: usize = 50;
const ENOUGH_S: f64 = 0.1;
/// Numbers of each of the two buffers that are copied between runs: 64 MiB together.
const FLUSH: usize = 1 << 23;
const FLUSH_WIDTH: usize = 1 << 12;

/// Times the cases whose kernel file, kernel or sizes contain `filter`, and hands each to `each` until that breaks off.
///
/// # Errors
/// [`Error::Memory`] for a case that does not fit, [`Error::NonFinite`] for an operation that gives numbers that are none.
pub fn host_kernels<B>(
    backend: &B,
    filter: &str,
    quick: bool,
    mut each: impl FnMut(&Timing) -> ControlFlow<()>,
) -> Result<()>
where
    B: Unmask + Optimise<Control: Sync> + Backward + Backend<Elem = f32>,
{
    let flush = if quick { FLUSH_WIDTH } else { FLUSH };
    let mut bench = Bench::new(backend, flush)?;
    for case in host_cases(quick).into_iter().filter(|c| c.matches(filter)) {
        let seconds = bench.case(&case)?;
        let timing = Timing {
            stem: case.case.stem(),
            kernel: case.case.kernel(),
            shape: case.shape(),
            dtype: Dtype::F32,
            bytes: case.bytes(),
            flops: case.case.flops(),
            workspace: 0,
            microseconds: seconds.into_iter().map(|s| 1e6 * s).collect(),
        };
        if each(&timing).is_break() {
            return Ok(());
        }
    }
    Ok(())
}

struct Bench<'a, B: Backend> {
    backend: &'a B,
    /// What is copied between runs.
    from: B::Buffer,
    to: B::Buffer,
    index: B::Index,
    flush: usize,
    /// Inputs made.
    inputs: Cell<u32>,
}

impl<'a, B: Unmask + Optimise<Control: Sync> + Backward + Backend<Elem = f32>> Bench<'a, B> {
    fn new(backend: &'a B, flush: usize) -> Result<Self> {
        let rows: Vec<u32> = (0..(flush / FLUSH_WIDTH) as u32).collect();
        let mut index = backend.alloc_index(rows.len())?;
        backend.write_index(&mut index, &rows)?;
        let (from, to) = (backend.upload(&vec![1.0; flush])?, backend.alloc(flush)?);
        Ok(Self { backend, from, to, index, flush, inputs: Cell::new(0) })
    }

    /// Seconds of each run of `work`.
    fn time(&mut self, mut work: impl FnMut() -> Result<()> + Send) -> Result<Vec<f64>> {
        work()?;
        let (mut times, mut spent) = (Vec::with_capacity(MOST_RUNS), 0.0);
        while times.len() < LEAST_RUNS || (times.len() < MOST_RUNS && spent < ENOUGH_S) {
            let (from, rows) = ((&self.from, Rows::dense(FLUSH_WIDTH)), self.flush / FLUSH_WIDTH);
            self.backend.gather(from, &self.index, rows, FLUSH_WIDTH, &mut self.to)?;
            // From inside the pool, as a pass does it.
            let seconds = self.backend.run(|| {
                let start = Instant::now();
                work().map(|()| start.elapsed().as_secs_f64())
            })?;
            spent += seconds;
            times.push(seconds);
        }
        Ok(times)
    }

    /// `len` numbers `shape(x)`, x uniform in -1 .. 1.
    fn numbers(&self, len: usize, shape: impl Fn(f32) -> f32) -> Vec<f32> {
        self.inputs.set(self.inputs.get() + 1);
        random(len, self.inputs.get(), |word| shape(2.0 * unit(word) - 1.0))
    }

    fn floats(&self, len: usize) -> Result<B::Buffer> {
        self.backend.upload(&self.numbers(len, |x| x))
    }

    /// A weight as a checkpoint holds it.
    fn weight(&self, dtype: Dtype, inputs: usize, outputs: usize, layout: Layout) -> Result<B::Matrix> {
        let numbers = self.numbers(inputs * outputs, |x| 0.05 * x);
        let bytes: Vec<u8> = match dtype {
            Dtype::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Dtype::F16 => numbers.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
            Dtype::Bf16 => numbers.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        };
        let shape = if layout == Layout::OutIn { vec![outputs, inputs] } else { vec![inputs, outputs] };
        self.backend.matrix(&StoredTensor::new(dtype, shape, bytes.into())?, layout)
    }

    fn ids(&self, numbers: &[u32]) -> Result<B::Index> {
        let mut index = self.backend.alloc_index(numbers.len())?;
        self.backend.write_index(&mut index, numbers)?;
        Ok(index)
    }

    fn below(rows: usize, vocab: usize) -> Vec<u32> {
        random(rows, 0, |word| ((u64::from(word) * vocab as u64) >> 32) as u32)
    }

    fn positions(&self, rows: usize, length: usize) -> Result<B::Index> {
        self.ids(&(0..rows).map(|t| (t % length) as u32).collect::<Vec<_>>())
    }

    /// Whether the first numbers of an output are numbers, and not all zero.
    fn look(&self, case: &HostCase, out: &B::Buffer) -> Result<()> {
        let mut numbers = vec![0.0; self.backend.capacity(out).min(4096)];
        self.backend.read(out, 0, &mut numbers)?;
        if numbers.iter().all(|x| x.is_finite()) && numbers.iter().any(|&x| x != 0.0) {
            return Ok(());
        }
        Err(unusable(case, "numbers that are not finite, or nothing but zeros"))
    }

    fn case(&mut self, case: &HostCase) -> Result<Vec<f64>> {
        let backend = self.backend;
        match case.case.work {
            // The list has neither.
            Work::Events | Work::Cast { .. } => self.time(|| Ok(())),
            Work::Attention { batch, heads, length, head_dim } => {
                self.attention(case, [batch, heads, length, head_dim], false)
            }
            Work::Linear { rows, inputs, outputs, layout } => {
                let x = self.floats(rows * inputs)?;
                let weight = self.weight(case.weights, inputs, outputs, layout)?;
                let mut out = backend.alloc_logits(rows * outputs)?;
                let at = Rows::dense(outputs);
                let times = self.time(|| {
                    backend.linear((&x, 0), rows, &weight, 0..outputs, Epilogue::NONE, &mut out, at)
                })?;
                self.look(case, &out)?;
                Ok(times)
            }
            Work::Norm { kind, rows, width, .. } => {
                let (x, mut out) = (self.floats(rows * width)?, backend.alloc(rows * width)?);
                let (weight, bias) = (self.floats(width)?, self.floats(width)?);
                let bias = (kind == NormKind::LayerNorm).then_some(&bias);
                let times =
                    self.time(|| backend.norm(kind, &x, &weight, bias, 1e-5, rows, width, &mut out))?;
                self.look(case, &out)?;
                Ok(times)
            }
            Work::Rope { rows, heads, head_dim } => self.rope(case, rows, heads, head_dim),
            Work::Swiglu { rows, width } => {
                let (x, mut out) = (self.floats(2 * rows * width)?, backend.alloc(rows * width)?);
                let times = self.time(|| backend.swiglu(&x, rows, width, &mut out))?;
                self.look(case, &out)?;
                Ok(times)
            }
            Work::Gelu { rows, width } => {
                let (x, mut out) = (self.floats(rows * width)?, backend.alloc(rows * width)?);
                let times =
                    self.time(|| backend.activation(Activation::GeluTanh, &x, rows * width, &mut out))?;
                self.look(case, &out)?;
                Ok(times)
            }
            Work::Embed { rows, width, vocab, positions } => {
                let table = self.weight(case.weights, width, vocab, Layout::OutIn)?;
                let places = self.weight(case.weights, width, POSITIONS, Layout::OutIn)?;
                let (ids, at) = (self.ids(&Self::below(rows, vocab))?, self.positions(rows, POSITIONS)?);
                let mut out = backend.alloc(rows * width)?;
                let places = positions.then_some((&places, &at));
                let times = self.time(|| backend.embed(&table, &ids, places, rows, width, &mut out))?;
                self.look(case, &out)?;
                Ok(times)
            }
            Work::Unmask { rule, rows, vocab } => self.unmask(case, rule, rows, vocab),
            Work::CrossEntropy { rows, vocab } => {
                let logits = backend.upload(&self.numbers(rows * vocab, opinion))?;
                let (targets, mut nll) = (Self::below(rows, vocab), vec![f64::NAN; rows]);
                let times = self.time(|| backend.cross_entropy(&logits, vocab, &targets, &mut nll))?;
                if nll.iter().any(|x| !x.is_finite()) {
                    return Err(unusable(case, "losses that are not finite"));
                }
                Ok(times)
            }
            Work::Training(work) => self.training(case, work),
        }
    }

    /// Forward, or with `backward` the gradient.
    fn attention(&mut self, case: &HostCase, sizes: [usize; 4], backward: bool) -> Result<Vec<f64>> {
        let (backend, [batch, heads, length, head_dim]) = (self.backend, sizes);
        let (rows, width) = (batch * length, heads * head_dim);
        let (qkv, d_out) = (self.floats(rows * 3 * width)?, self.floats(rows * width)?);
        let places: Vec<Segment> = (0..batch)
            .map(|s| Segment { q_start: s * length, q_len: length, k_start: s * length, k_len: length })
            .collect();
        let mut segments = backend.alloc_segments(batch)?;
        backend.write_segments(&mut segments, &places)?;
        let (positions, mask) = (self.positions(rows, length)?, backend.mask(Mask::Full)?);
        let shape = HeadShape { heads, kv_heads: heads, head_dim, scale: 1.0 / (head_dim as f64).sqrt() };
        let at = [0, 1, 2].map(|i| Rows { at: i * width, stride: 3 * width });
        let [q, k, v] = at.map(|at| (&qkv, at));
        let mut out = backend.alloc(rows * width)?;
        if !backward {
            let times =
                self.time(|| backend.attention(q, k, v, shape, &segments, &positions, &mask, &mut out))?;
            self.look(case, &out)?;
            return Ok(times);
        }
        let mut log_sum = backend.alloc_logits(heads * rows)?;
        backend.attention_saving(q, k, v, shape, &segments, &positions, &mask, &mut out, &mut log_sum)?;
        let mut d_qkv = backend.alloc(rows * 3 * width)?;
        let mut work = backend.workspace(WorkSize { rows, columns: 1, heads })?;
        let times = self.time(|| {
            let kept = Attended { q, k, v, out: &out, log_sum: &log_sum };
            let (to, work) = (&mut d_qkv, &mut work);
            backend.attention_backward(kept, &d_out, shape, &segments, &positions, &mask, to, at, work)
        })?;
        self.look(case, &d_qkv)?;
        Ok(times)
    }

    fn rope(&mut self, case: &HostCase, rows: usize, heads: usize, head_dim: usize) -> Result<Vec<f64>> {
        let (backend, width, half) = (self.backend, heads * head_dim, head_dim / 2);
        let mut qkv = self.floats(rows * 3 * width)?;
        let positions = self.positions(rows, POSITIONS)?;
        let table: Vec<f32> = (0..POSITIONS * head_dim)
            .map(|i| {
                let (position, column) = (i / head_dim, i % head_dim);
                let angle = position as f64 * 10_000_f64.powf(-((column % half) as f64) / half as f64);
                (if column < half { angle.cos() } else { angle.sin() }) as f32
            })
            .collect();
        let table = backend.upload(&table)?;
        let times = self.time(|| {
            for at in [0, width] {
                let at = Rows { at, stride: 3 * width };
                backend.rope(&mut qkv, at, rows, heads, head_dim, &positions, &table)?;
            }
            Ok(())
        })?;
        self.look(case, &qkv)?;
        Ok(times)
    }

    fn unmask(&mut self, case: &HostCase, rule: Rule, rows: usize, vocab: usize) -> Result<Vec<f64>> {
        let backend = self.backend;
        let logits = if case.flat {
            self.numbers(rows * vocab, |x| 0.1 * x)
        } else {
            self.numbers(rows * vocab, opinion)
        };
        let logits = backend.upload(&logits)?;
        let (temperature, top_p, top_k) = rule.numbers();
        let mut words = Vec::new();
        for row in 0..rows {
            let uniform = (row as f32 + 0.5) / rows as f32;
            let (suppress, given, confidence) = (NO_TOKEN, NO_TOKEN, Confidence::MaxProb);
            let params = RowParams { temperature, top_p, top_k, suppress, uniform, confidence, given };
            words.extend(unmask_words(vocab, &params, RowNoise::Given)?);
        }
        let (words, mut draws) = (self.ids(&words)?, backend.alloc_draws(rows)?);
        let times = self.time(|| backend.unmask(&logits, vocab, 0..rows, &words, &mut draws))?;
        let mut drawn = vec![RowDraw::default(); rows];
        backend.read_draws(&draws, &mut drawn)?;
        if drawn.iter().any(|d| d.token as usize >= vocab) {
            return Err(unusable(case, "rows without a token"));
        }
        Ok(times)
    }

    fn training(&mut self, case: &HostCase, work: Training) -> Result<Vec<f64>> {
        let backend = self.backend;
        match work {
            Training::Attention { batch, heads, length, head_dim } => {
                self.attention(case, [batch, heads, length, head_dim], true)
            }
            Training::MaskedLoss { masked, width, vocab, .. } => self.masked_loss(case, masked, width, vocab),
            Training::Weight { rows, inputs, outputs, layout } => {
                let (x, dy) = (self.floats(rows * inputs)?, self.floats(rows * outputs)?);
                let mut d_weight = backend.alloc_gradient(inputs * outputs)?;
                let mut work = backend.workspace(WorkSize { rows, columns: 1, heads: 1 })?;
                let times = self.time(|| {
                    let (x, dy, dw) = ((&x, 0), (&dy, Rows::dense(outputs)), Some(&mut d_weight));
                    backend.linear_backward_weight(x, dy, rows, inputs, outputs, layout, dw, None, &mut work)
                })?;
                self.look(case, &d_weight)?;
                Ok(times)
            }
            Training::Norm { kind, rows, width } => {
                let (x, dy) = (self.floats(rows * width)?, self.floats(rows * width)?);
                let (weight, mut dx) = (self.floats(width)?, self.floats(rows * width)?);
                let (mut dw, mut db) = (backend.alloc_gradient(width)?, backend.alloc_gradient(width)?);
                let mut work = backend.workspace(WorkSize { rows, columns: 2 * width, heads: 1 })?;
                let times = self.time(|| {
                    let db = (kind == NormKind::LayerNorm).then_some(&mut db);
                    let (dx, dw, work) = (&mut dx, Some(&mut dw), &mut work);
                    backend.norm_backward(kind, &x, &weight, &dy, 1e-5, rows, width, dx, dw, db, work)
                })?;
                self.look(case, &dx)?;
                Ok(times)
            }
            Training::AdamW { count, moments } => {
                let mut parameter = self.floats(count)?;
                let gradient = backend.upload(&self.numbers(count, |x| 0.01 * x))?;
                let mut state = backend.state(Trainable::Vector(&mut parameter), moments)?;
                let mut control = backend.control(&[count])?;
                let (lr, betas, eps, rng) = (1e-5, [0.9, 0.95], 1e-8, Rng::new(0));
                let step = AdamW { lr, betas, eps, decay: 0.1, clip: 1.0, unscale: 1.0, step: 1, rng };
                backend.prepare(&mut control, step)?;
                backend.measure(&mut control, 0, &gradient)?;
                backend.settle(&mut control)?;
                let times = self.time(|| {
                    let parameter = Trainable::Vector(&mut parameter);
                    Optimise::step(backend, parameter, &gradient, &mut state, &control, 0, true)
                })?;
                self.look(case, &parameter)?;
                Ok(times)
            }
        }
    }

    /// As a training pass does it (`model/train_pass.rs`), in one chunk.
    fn masked_loss(
        &mut self,
        case: &HostCase,
        masked: usize,
        width: usize,
        vocab: usize,
    ) -> Result<Vec<f64>> {
        let backend = self.backend;
        let (hidden, layout) = (self.floats(masked * width)?, Layout::OutIn);
        let weight = self.weight(case.weights, width, vocab, layout)?;
        let targets = self.ids(&Self::below(masked, vocab))?;
        let mut weights = backend.alloc_floats(masked)?;
        backend.write_floats(&mut weights, &vec![1.0 / masked as f32; masked])?;
        let at = Rows { at: 0, stride: backend.logits_stride(vocab) };
        let mut logits = backend.alloc_logits(masked * at.stride)?;
        let mut nll = backend.alloc_floats(masked)?;
        let (mut d_hidden, mut d_weight) =
            (backend.alloc(masked * width)?, backend.alloc_gradient(width * vocab)?);
        let mut work = backend.workspace(WorkSize { rows: masked, columns: 1, heads: 1 })?;
        let times = self.time(|| {
            let (x, token) = ((&hidden, 0), TokenWeight::NONE);
            backend.linear(x, masked, &weight, 0..vocab, Epilogue::NONE, &mut logits, at)?;
            let into = (&mut logits, at);
            backend.cross_entropy_backward(into, vocab, 0..masked, &targets, &weights, token, &mut nll)?;
            let dy = (&logits, at);
            backend.linear_backward_input(dy, masked, &weight, 0..vocab, false, (&mut d_hidden, 0))?;
            let dw = Some(&mut d_weight);
            backend.linear_backward_weight(x, dy, masked, width, vocab, layout, dw, None, &mut work)
        })?;
        self.look(case, &d_hidden)?;
        self.look(case, &d_weight)?;
        Ok(times)
    }
}

fn unusable(case: &HostCase, found: &str) -> Error {
    super::kernels::unusable(&case.case, found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;

    #[test]
    fn every_small_case_is_timed() {
        let mut seen = 0;
        host_kernels(&Cpu::<f32>::new(None).unwrap(), "", true, |timing| {
            assert!(timing.microseconds.len() >= LEAST_RUNS && timing.median_us() > 0.0, "{timing:?}");
            seen += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(seen, host_cases(true).len());
    }
}

//! The time of each kernel at the shapes of the paper's models. Between runs a buffer larger than any card's second-level
//! cache is overwritten, so that inputs come from memory.

use std::ops::ControlFlow;

use crate::backend::cuda::{
    Buffer, Cuda, Device, DeviceMask, Draws, Format, LinearEpilogue, Matrix, Segments,
};
use crate::backend::{
    Confidence, HeadShape, Layout, NO_TOKEN, RowNoise, RowParams, Rows, Segment, UNMASK_WORDS, unmask_words,
};
use crate::config::{Activation, NormKind};
use crate::element::Dtype;
use crate::error::Result;

/// Runs that are timed, after two that are not.
const RUNS: usize = 20;
/// Bytes that are overwritten between runs.
const FLUSH: usize = 96 << 20;

/// A kernel at a shape.
#[derive(Clone, Debug)]
pub struct Timing {
    /// The kernel file.
    pub stem: &'static str,
    pub shape: String,
    pub dtype: Dtype,
    /// Bytes read and written at least, and floating-point operations of products.
    pub bytes: f64,
    pub flops: f64,
    pub microseconds: Vec<f64>,
}

type Each<'a> = &'a mut dyn FnMut(&Timing) -> ControlFlow<()>;

struct Bench<'a, D: Device> {
    cuda: &'a Cuda<D>,
    dtype: Dtype,
    flush: Buffer<D>,
    runs: usize,
    filter: &'a str,
    stopped: bool,
    each: Each<'a>,
}

/// Times the kernels whose stem or shape contains `filter` and tells of each; `quick`: two runs of small shapes.
///
/// # Errors
/// Those of the device.
pub fn kernels<D: Device>(cuda: &Cuda<D>, filter: &str, quick: bool, each: Each<'_>) -> Result<()> {
    let flush = Buffer::new(cuda.device(), Format::U8, if quick { 1 << 10 } else { FLUSH })?;
    let (dtype, runs) = (cuda.dtype(), if quick { 2 } else { RUNS });
    let mut bench = Bench { cuda, dtype, flush, runs, filter, stopped: false, each };
    // Heads, width of one, sequences, length.
    let attention: &[[usize; 4]] = if quick {
        &[[2, 64, 2, 33]]
    } else {
        &[
            [12, 64, 1, 512],
            [12, 64, 8, 512],
            [16, 64, 1, 1024],
            [16, 64, 8, 1024],
            [32, 128, 1, 512],
            [32, 128, 1, 1024],
            [32, 128, 1, 2048],
            [32, 128, 8, 1024],
            [32, 128, 8, 2048],
        ]
    };
    for &[heads, head_dim, sequences, length] in attention {
        bench.attention(heads, head_dim, sequences, length)?;
    }
    // Rows, inputs, outputs, layout: GPT-2 stores a weight [in, out], LLaMA [out, in].
    let products: &[(usize, usize, usize, Layout)] = if quick {
        &[(5, 64, 96, Layout::InOut), (17, 64, 64, Layout::OutIn)]
    } else {
        &[
            (512, 768, 2304, Layout::InOut),
            (512, 768, 3072, Layout::InOut),
            (512, 3072, 768, Layout::InOut),
            (8, 768, 50_257, Layout::OutIn),
            (1024, 1024, 4096, Layout::InOut),
            (1024, 4096, 1024, Layout::InOut),
            (1, 4096, 4096, Layout::OutIn),
            (16, 4096, 32_000, Layout::OutIn),
            (1024, 4096, 4096, Layout::OutIn),
            (1024, 4096, 11_008, Layout::OutIn),
            (1024, 11_008, 4096, Layout::OutIn),
            (8192, 8192, 8192, Layout::OutIn),
        ]
    };
    for &(rows, inputs, outputs, layout) in products {
        bench.product(rows, inputs, outputs, layout)?;
    }
    let rows: &[(usize, usize)] = if quick { &[(3, 64)] } else { &[(512, 768), (8192, 768), (8192, 4096)] };
    for &(rows, width) in rows {
        bench.norm(rows, width)?;
        bench.swiglu(rows, width)?;
        bench.embed(rows, width)?;
    }
    let vocabularies: &[(usize, usize)] =
        if quick { &[(2, 600)] } else { &[(8, 50_257), (256, 50_257), (16, 32_000), (512, 32_000)] };
    for &(rows, vocab) in vocabularies {
        bench.unmask(rows, vocab)?;
    }
    Ok(())
}

/// Numbers in -1 .. 1: a short sequence, repeated.
fn numbers(len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

impl<D: Device> Bench<'_, D> {
    fn floats(&self, len: usize) -> Result<Buffer<D>> {
        Buffer::floats(self.cuda.device(), self.dtype, &numbers(len))
    }

    /// Times `run`, unless it is not wanted.
    fn time(
        &mut self,
        stem: &'static str,
        shape: String,
        [bytes, flops]: [f64; 2],
        mut run: impl FnMut(&Cuda<D>) -> Result<()>,
    ) -> Result<()> {
        let device = self.cuda.device();
        let mut microseconds = Vec::with_capacity(self.runs);
        for i in 0..self.runs + 2 {
            self.flush.fill(device, i as u8)?;
            let from = device.record()?;
            run(self.cuda)?;
            let to = device.record()?;
            let ms = device.elapsed_ms(&from, &to)?;
            if i >= 2 {
                microseconds.push(f64::from(ms) * 1e3);
            }
        }
        let timing = Timing { stem, shape, dtype: self.dtype, bytes, flops, microseconds };
        self.stopped |= (self.each)(&timing).is_break();
        Ok(())
    }

    fn wants(&self, stem: &str, shape: &str) -> bool {
        !self.stopped && (stem.contains(self.filter) || shape.contains(self.filter))
    }

    fn attention(&mut self, heads: usize, head_dim: usize, sequences: usize, length: usize) -> Result<()> {
        let shape = format!("batch {sequences}, heads {heads}, length {length}, width {head_dim}");
        if !self.wants("attention", &shape) {
            return Ok(());
        }
        let (tokens, width) = (sequences * length, heads * head_dim);
        let qkv = self.floats(tokens * 3 * width)?;
        let mut out = Buffer::new(self.cuda.device(), self.dtype, tokens * width)?;
        let q_pos = Buffer::new(self.cuda.device(), Format::U32, tokens)?;
        let place =
            |s: usize| Segment { q_start: s * length, q_len: length, k_start: s * length, k_len: length };
        let places: Vec<Segment> = (0..sequences).map(place).collect();
        let segments = Segments::new(self.cuda.device(), &places)?;
        let heads = HeadShape { heads, kv_heads: heads, head_dim, scale: 1.0 / (head_dim as f64).sqrt() };
        let at = |column: usize| Rows { at: column * width, stride: 3 * width };
        let bytes = (tokens * 4 * width * self.dtype.size()) as f64;
        let flops = 4.0 * (tokens * length * width) as f64;
        let dtype = self.dtype;
        self.time("attention", shape, [bytes, flops], |cuda| {
            let (q, k, v) = ((&qkv, at(0)), (&qkv, at(1)), (&qkv, at(2)));
            cuda.attention(dtype, q, k, v, heads, &segments, &q_pos, DeviceMask::Full, &mut out, None)
        })
    }

    fn product(&mut self, rows: usize, inputs: usize, outputs: usize, layout: Layout) -> Result<()> {
        let stored = if layout == Layout::OutIn { "[out, in]" } else { "[in, out]" };
        let shape = format!("rows {rows}, in {inputs}, out {outputs}, stored {stored}");
        if !self.wants("matmul", &shape) {
            return Ok(());
        }
        let x = self.floats(rows * inputs)?;
        let weight = Matrix::of(self.floats(inputs * outputs)?, self.dtype, layout, [inputs, outputs])?;
        let mut out = Buffer::new(self.cuda.device(), self.dtype, rows * outputs)?;
        let numbers = rows * inputs + inputs * outputs + rows * outputs;
        let flops = 2.0 * rows as f64 * inputs as f64 * outputs as f64;
        let (dtype, dense) = (self.dtype, Rows::dense(outputs));
        self.time("matmul", shape, [(numbers * dtype.size()) as f64, flops], |cuda| {
            let x = (&x, Rows::dense(inputs));
            cuda.linear(dtype, x, rows, &weight, 0..outputs, LinearEpilogue::NONE, (&mut out, dense), dtype)
        })
    }

    fn norm(&mut self, rows: usize, width: usize) -> Result<()> {
        let shape = format!("RMSNorm, rows {rows}, width {width}");
        if !self.wants("norm", &shape) {
            return Ok(());
        }
        let (x, weight) = (self.floats(rows * width)?, self.floats(width)?);
        let mut out = Buffer::new(self.cuda.device(), self.dtype, rows * width)?;
        let (dtype, bytes) = (self.dtype, (2 * rows * width * self.dtype.size()) as f64);
        self.time("norm", shape, [bytes, 0.0], |cuda| {
            cuda.norm(dtype, NormKind::RmsNorm, &x, None, &weight, None, 1e-5, rows, width, &mut out)
        })
    }

    fn swiglu(&mut self, rows: usize, width: usize) -> Result<()> {
        let shape = format!("{:?} gate, rows {rows}, width {width}", Activation::Silu);
        if !self.wants("activation", &shape) {
            return Ok(());
        }
        let gate_up = self.floats(2 * rows * width)?;
        let mut out = Buffer::new(self.cuda.device(), self.dtype, rows * width)?;
        let (dtype, bytes) = (self.dtype, (3 * rows * width * self.dtype.size()) as f64);
        self.time("activation", shape, [bytes, 0.0], |cuda| {
            cuda.swiglu(dtype, &gate_up, rows, width, &mut out)
        })
    }

    fn embed(&mut self, rows: usize, width: usize) -> Result<()> {
        const VOCAB: usize = 1000;
        let shape = format!("rows {rows}, width {width}");
        if !self.wants("embedding", &shape) {
            return Ok(());
        }
        let table = self.floats(VOCAB * width)?;
        let ids: Vec<u32> = (0..rows).map(|r| (r * 7 % VOCAB) as u32).collect();
        let ids = Buffer::of(self.cuda.device(), Format::U32, &ids)?;
        let mut out = Buffer::new(self.cuda.device(), self.dtype, rows * width)?;
        let (dtype, bytes) = (self.dtype, (2 * rows * width * self.dtype.size()) as f64);
        self.time("embedding", shape, [bytes, 0.0], |cuda| {
            cuda.embed(dtype, &table, &ids, None, rows, width, &mut out)
        })
    }

    fn unmask(&mut self, rows: usize, vocab: usize) -> Result<()> {
        let shape = format!("top-p 0.9, rows {rows}, vocabulary {vocab}");
        if !self.wants("unmask", &shape) {
            return Ok(());
        }
        let wide: Vec<f32> = numbers(rows * vocab).iter().map(|x| 4.0 * x).collect();
        let logits = Buffer::of(self.cuda.device(), Dtype::F32, &wide)?;
        let params = RowParams {
            temperature: 1.0,
            top_p: 0.9,
            top_k: 0,
            suppress: NO_TOKEN,
            uniform: 0.5,
            confidence: Confidence::MaxProb,
            given: NO_TOKEN,
        };
        let words = unmask_words(vocab, &params, RowNoise::Given)?;
        let words: Vec<u32> = words.iter().copied().cycle().take(rows * UNMASK_WORDS).collect();
        let words = Buffer::of(self.cuda.device(), Format::U32, &words)?;
        let mut draws = Draws::new(self.cuda.device(), rows)?;
        self.time("unmask", shape, [(4 * rows * vocab) as f64, 0.0], |cuda| {
            cuda.unmask(Dtype::F32, &logits, 0, vocab, vocab, rows, &words, &mut draws)
        })
    }
}

#[cfg(all(test, feature = "simt"))]
mod tests {
    use super::*;
    use crate::backend::cuda::simt::{Options, Simt};

    #[test]
    fn every_stem_is_timed_and_a_break_ends_it() {
        let cuda = Cuda::with_dtype(Simt::new(Options { seed: 0, check: false }), Dtype::Bf16);
        let mut stems = Vec::new();
        kernels(&cuda, "", true, &mut |timing| {
            assert_eq!(timing.microseconds.len(), 2);
            assert!(timing.bytes > 0.0 && timing.microseconds.iter().all(|t| *t > 0.0), "{timing:?}");
            stems.push(timing.stem);
            ControlFlow::Continue(())
        })
        .unwrap();
        stems.dedup();
        assert_eq!(stems, ["attention", "matmul", "norm", "activation", "embedding", "unmask"]);
        let mut seen = 0;
        kernels(&cuda, "matmul", true, &mut |_| {
            seen += 1;
            ControlFlow::Break(())
        })
        .unwrap();
        assert_eq!(seen, 1);
    }
}

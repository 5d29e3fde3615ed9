//! Runs the cases of [`super::training`], by the traits that the trainer goes through.

use super::grid::Case;
use super::kernels::Bench;
use super::training::{CHUNK, Training};
use crate::backend::cuda::{Buffer, Cuda, Device, DeviceMask, MaskOnDevice, Matrix, Segments, logits_stride};
use crate::backend::{
    AdamW, Attended, Backward, Epilogue, Forward, HeadShape, Layout, MomentFormat, Optimise, Rows, Segment,
    TokenWeight, Trainable, WorkSize,
};
use crate::config::NormKind;
use crate::element::Dtype;
use crate::error::Result;
use crate::rng::Rng;

impl<D: Device> Bench<'_, D> {
    pub(super) fn training(&mut self, case: &Case, work: Training) -> Result<Vec<f64>> {
        // The traits compute in the format of the machine.
        let cuda = self.cuda.in_format(case.dtype);
        match work {
            Training::Attention { batch, heads, length, head_dim } => {
                self.attention_backward(case, &cuda, [batch, heads, length, head_dim])
            }
            Training::MaskedLoss { masked, width, vocab, .. } => {
                self.masked_loss(case, &cuda, masked, width, vocab)
            }
            Training::Weight { rows, inputs, outputs, layout } => {
                self.weight_gradient(case, &cuda, rows, [inputs, outputs], layout)
            }
            Training::Norm { kind, rows, width } => self.norm_backward(case, &cuda, kind, rows, width),
            Training::AdamW { count, moments } => self.adamw(case, &cuda, count, moments),
        }
    }

    fn attention_backward(&mut self, case: &Case, cuda: &Cuda<D>, sizes: [usize; 4]) -> Result<Vec<f64>> {
        let (dtype, [batch, heads, length, head_dim]) = (case.dtype, sizes);
        let (rows, width) = (batch * length, heads * head_dim);
        let qkv = self.floats(dtype, rows * 3 * width, |x| x)?;
        let d_out = self.floats(dtype, rows * width, |x| x)?;
        let places: Vec<Segment> = (0..batch)
            .map(|s| Segment { q_start: s * length, q_len: length, k_start: s * length, k_len: length })
            .collect();
        let segments = Segments::new(cuda.device(), &places)?;
        let positions = self.positions(rows, length)?;
        let scale = 1.0 / (head_dim as f64).sqrt();
        let shape = HeadShape { heads, kv_heads: heads, head_dim, scale };
        let [q, k, v] = [0, 1, 2].map(|i| Rows { at: i * width, stride: 3 * width });
        let mut out = self.room(dtype, rows * width)?;
        let mut log_sum = self.room(Dtype::F32, heads * rows)?;
        let saved = Some(&mut log_sum);
        let (q_part, k_part, v_part) = ((&qkv, q), (&qkv, k), (&qkv, v));
        let mask = DeviceMask::Full;
        cuda.attention(dtype, q_part, k_part, v_part, shape, &segments, &positions, mask, &mut out, saved)?;
        let mut d_qkv = self.room(dtype, rows * 3 * width)?;
        let mut work = cuda.workspace(WorkSize { rows, columns: 1, heads })?;
        let times = self.time(|| {
            let kept = Attended::<Cuda<D>> { q: q_part, k: k_part, v: v_part, out: &out, log_sum: &log_sum };
            let (mask, places) = (&MaskOnDevice::Full, [q, k, v]);
            Backward::attention_backward(
                cuda, kept, &d_out, shape, &segments, &positions, mask, &mut d_qkv, places, &mut work,
            )
        })?;
        self.look(case, &d_qkv)?;
        Ok(times)
    }

    /// As a training pass does it (`model/train_pass.rs`).
    fn masked_loss(
        &mut self,
        case: &Case,
        cuda: &Cuda<D>,
        masked: usize,
        width: usize,
        vocab: usize,
    ) -> Result<Vec<f64>> {
        let (dtype, device) = (case.dtype, cuda.device());
        let hidden = self.floats(dtype, masked * width, |x| x)?;
        let weight = self.floats(dtype, width * vocab, |x| 0.05 * x)?;
        let weight = Matrix::of(weight, dtype, Layout::OutIn, [width, vocab])?;
        let targets = self.below(masked, vocab)?;
        let weights = Buffer::floats(device, Dtype::F32, &vec![1.0 / masked as f32; masked])?;
        let (chunk, stride) = (masked.min(CHUNK), logits_stride(vocab));
        let mut logits = self.room(dtype, chunk * stride)?;
        let mut nll = self.room(Dtype::F32, masked)?;
        let mut d_hidden = self.room(dtype, masked * width)?;
        let mut d_weight = cuda.alloc_gradient(width * vocab)?;
        let mut work = cuda.workspace(WorkSize { rows: chunk, columns: 1, heads: 1 })?;
        let times = self.time(|| {
            for first in (0..masked).step_by(chunk.max(1)) {
                let count = chunk.min(masked - first);
                let (x, at) = ((&hidden, first * width), Rows { at: 0, stride });
                Forward::linear(cuda, x, count, &weight, 0..vocab, Epilogue::NONE, &mut logits, at)?;
                let (rows, token) = (first..first + count, TokenWeight::NONE);
                let into = (&mut logits, at);
                Backward::cross_entropy_backward(
                    cuda, into, vocab, rows, &targets, &weights, token, &mut nll,
                )?;
                let (dy, dx) = ((&logits, at), (&mut d_hidden, first * width));
                Backward::linear_backward_input(cuda, dy, count, &weight, 0..vocab, false, dx)?;
                let (layout, dw) = (Layout::OutIn, Some(&mut d_weight));
                Backward::linear_backward_weight(
                    cuda, x, dy, count, width, vocab, layout, dw, None, &mut work,
                )?;
            }
            Ok(())
        })?;
        self.look(case, &nll)?;
        self.look(case, &d_hidden)?;
        self.look(case, &d_weight)?;
        Ok(times)
    }

    fn weight_gradient(
        &mut self,
        case: &Case,
        cuda: &Cuda<D>,
        rows: usize,
        [inputs, outputs]: [usize; 2],
        layout: Layout,
    ) -> Result<Vec<f64>> {
        let x = self.floats(case.dtype, rows * inputs, |x| x)?;
        let dy = self.floats(case.dtype, rows * outputs, |x| x)?;
        let mut d_weight = cuda.alloc_gradient(inputs * outputs)?;
        let mut work = cuda.workspace(WorkSize { rows, columns: 1, heads: 1 })?;
        let times = self.time(|| {
            let (x, dy, dw) = ((&x, 0), (&dy, Rows::dense(outputs)), Some(&mut d_weight));
            Backward::linear_backward_weight(cuda, x, dy, rows, inputs, outputs, layout, dw, None, &mut work)
        })?;
        self.look(case, &d_weight)?;
        Ok(times)
    }

    fn norm_backward(
        &mut self,
        case: &Case,
        cuda: &Cuda<D>,
        kind: NormKind,
        rows: usize,
        width: usize,
    ) -> Result<Vec<f64>> {
        let dtype = case.dtype;
        let x = self.floats(dtype, rows * width, |x| x)?;
        let dy = self.floats(dtype, rows * width, |x| x)?;
        let weight = self.floats(dtype, width, |x| 1.0 + 0.1 * x)?;
        // A gradient grows in each of some hundred runs.
        let mut dx = self.floats(dtype, rows * width, |x| x)?;
        let mut d_weight = cuda.alloc_gradient(width)?;
        let mut d_bias = match kind {
            NormKind::LayerNorm => Some(cuda.alloc_gradient(width)?),
            NormKind::RmsNorm => None,
        };
        let mut work = cuda.workspace(WorkSize { rows, columns: 2 * width, heads: 1 })?;
        let times = self.time(|| {
            let (dw, db) = (Some(&mut d_weight), d_bias.as_mut());
            Backward::norm_backward(
                cuda, kind, &x, &weight, &dy, 1e-5, rows, width, &mut dx, dw, db, &mut work,
            )
        })?;
        self.look(case, &dx)?;
        self.look(case, &d_weight)?;
        Ok(times)
    }

    fn adamw(
        &mut self,
        case: &Case,
        cuda: &Cuda<D>,
        count: usize,
        moments: MomentFormat,
    ) -> Result<Vec<f64>> {
        let mut parameter = self.floats(case.dtype, count, |x| x)?;
        let gradient = self.floats(Dtype::F32, count, |x| 0.01 * x)?;
        let mut state = cuda.state(Trainable::Vector(&mut parameter), moments)?;
        let mut control = cuda.control(&[count])?;
        let (lr, betas, eps, rng) = (1e-5, [0.9, 0.95], 1e-8, Rng::new(0));
        let step = AdamW { lr, betas, eps, decay: 0.1, clip: 1.0, unscale: 1.0, step: 1, rng };
        cuda.prepare(&mut control, step)?;
        cuda.measure(&mut control, 0, &gradient)?;
        cuda.settle(&mut control)?;
        let times = self.time(|| {
            cuda.step(Trainable::Vector(&mut parameter), &gradient, &mut state, &control, 0, true)
        })?;
        self.look(case, &parameter)?;
        Ok(times)
    }
}

//! [`Backend`] and [`Forward`] by the kernels: what they need in addition to the launches of each stem.

use std::ops::Range;

use super::{Buffer, Cuda, Device, DeviceMask, Format, LinearEpilogue, Matrix, Segments};
use crate::backend::{Backend, Epilogue, Forward, HeadShape, Layout, Mask, Rows, Segment, SegmentBounds};
use crate::config::NormKind;
use crate::element::{Dtype, StoredTensor};
use crate::error::{Error, Result};
use crate::synthetic::{Fill, SyntheticTensor};

/// Steps that are asked for before somebody who watches is shown one.
const RUN_AHEAD: usize = 8;

/// A mask whose bits, where it has any, are on the device.
#[derive(Debug)]
pub enum MaskOnDevice<D: Device> {
    Full,
    Causal,
    /// As [`DeviceMask::Annealed`].
    Annealed {
        words: Buffer<D>,
        stride: usize,
    },
    /// As [`DeviceMask::Bits`].
    Bits {
        words: Buffer<D>,
        segment_stride: usize,
        query_stride: usize,
    },
}

impl<'a, D: Device> From<&'a MaskOnDevice<D>> for DeviceMask<'a, D> {
    fn from(mask: &'a MaskOnDevice<D>) -> Self {
        match mask {
            MaskOnDevice::Full => DeviceMask::Full,
            MaskOnDevice::Causal => DeviceMask::Causal,
            MaskOnDevice::Annealed { words, stride } => DeviceMask::Annealed { words, stride: *stride },
            MaskOnDevice::Bits { words, segment_stride, query_stride } => {
                DeviceMask::Bits { words, segment_stride: *segment_stride, query_stride: *query_stride }
            }
        }
    }
}

impl<D: Device> Cuda<D> {
    /// A buffer of zeros.
    fn zeroed(&self, format: impl Into<Format>, len: usize) -> Result<Buffer<D>> {
        let mut buffer = Buffer::new(&self.device, format, len)?;
        buffer.fill(&self.device, 0)?;
        Ok(buffer)
    }

    /// The numbers of a tensor in the format of activations, by way of the device where they are stored in another.
    fn load(&self, tensor: &StoredTensor) -> Result<Buffer<D>> {
        let (stored, wanted) = (tensor.dtype(), self.dtype);
        let mut buffer = Buffer::new(&self.device, stored, tensor.len())?;
        buffer.send_bytes(&self.device, tensor.bytes())?;
        if stored == wanted {
            return Ok(buffer);
        }
        let mut converted = Buffer::new(&self.device, wanted, tensor.len())?;
        self.cast((&buffer, stored, 0), (&mut converted, wanted, 0), tensor.len())?;
        Ok(converted)
    }
}

impl<D: Device> Backend for Cuda<D> {
    type Elem = f32;
    type Buffer = Buffer<D>;
    type Index = Buffer<D>;
    type Floats = Buffer<D>;
    type Matrix = Matrix<D>;
    type Segments = Segments<D>;
    type Mask = MaskOnDevice<D>;
    type Recording = D::Graph;

    fn alloc(&self, len: usize) -> Result<Buffer<D>> {
        self.zeroed(self.dtype, len)
    }

    fn alloc_logits(&self, len: usize) -> Result<Buffer<D>> {
        self.zeroed(Dtype::F32, len)
    }

    fn upload(&self, src: &[f32]) -> Result<Buffer<D>> {
        Buffer::of(&self.device, Dtype::F32, src)
    }

    fn alloc_index(&self, len: usize) -> Result<Buffer<D>> {
        self.zeroed(Format::U32, len)
    }

    fn alloc_floats(&self, len: usize) -> Result<Buffer<D>> {
        self.zeroed(Dtype::F32, len)
    }

    fn capacity(&self, buffer: &Buffer<D>) -> usize {
        buffer.len()
    }

    fn write_index(&self, dst: &mut Buffer<D>, src: &[u32]) -> Result<()> {
        dst.send(&self.device, 0, src)
    }

    fn write_floats(&self, dst: &mut Buffer<D>, src: &[f32]) -> Result<()> {
        dst.send(&self.device, 0, src)
    }

    fn read(&self, src: &Buffer<D>, at: usize, dst: &mut [f32]) -> Result<()> {
        match src.format() {
            Format::Float(Dtype::F32) => src.read(&self.device, at, dst),
            _ => {
                let all = src.share(at, dst.len())?.to_f32(&self.device)?;
                dst.copy_from_slice(&all);
                Ok(())
            }
        }
    }

    fn read_index(&self, src: &Buffer<D>, at: usize, dst: &mut [u32]) -> Result<()> {
        src.read(&self.device, at, dst)
    }

    fn read_floats(&self, src: &Buffer<D>, at: usize, dst: &mut [f32]) -> Result<()> {
        src.read(&self.device, at, dst)
    }

    fn matrix(&self, tensor: &StoredTensor, layout: Layout) -> Result<Matrix<D>> {
        let &[rows, columns] = tensor.shape() else {
            let got = tensor.shape().len();
            return Err(Error::Shape { op: "matrix", what: "dimensions of a weight", expected: 2, got });
        };
        let sizes = match layout {
            Layout::OutIn => [columns, rows],
            Layout::InOut => [rows, columns],
        };
        Matrix::of(self.load(tensor)?, self.dtype, layout, sizes)
    }

    fn vector(&self, tensor: &StoredTensor) -> Result<Buffer<D>> {
        self.load(tensor)
    }

    fn synthetic_matrix(&self, tensor: &SyntheticTensor, layout: Layout) -> Result<Matrix<D>> {
        let (&[rows, columns], Fill::Normal { std }) = (tensor.shape.as_slice(), tensor.fill) else {
            return self.matrix(&tensor.stored(Dtype::Bf16)?, layout);
        };
        let sizes = match layout {
            Layout::OutIn => [columns, rows],
            Layout::InOut => [rows, columns],
        };
        let count = tensor.count()?;
        // As a checkpoint in bf16 would hold them, whatever is computed in: the same numbers on every machine.
        let mut buffer = Buffer::new(&self.device, Dtype::Bf16, count)?;
        self.random_weights(Dtype::Bf16, tensor.seed, tensor.parameter, std, &mut buffer)?;
        if self.dtype != Dtype::Bf16 {
            let mut converted = Buffer::new(&self.device, self.dtype, count)?;
            self.cast((&buffer, Dtype::Bf16, 0), (&mut converted, self.dtype, 0), count)?;
            buffer = converted;
        }
        Matrix::of(buffer, self.dtype, layout, sizes)
    }

    fn synthetic_vector(&self, tensor: &SyntheticTensor) -> Result<Buffer<D>> {
        self.vector(&tensor.stored(Dtype::Bf16)?)
    }

    fn copied_bytes(&self, matrix: &Matrix<D>) -> usize {
        matrix.buffer().len() * matrix.dtype().size()
    }

    fn alloc_segments(&self, sequences: usize) -> Result<Segments<D>> {
        Segments::with_room(&self.device, sequences)
    }

    fn write_segments(&self, dst: &mut Segments<D>, segments: &[Segment]) -> Result<()> {
        dst.upload(&self.device, segments)
    }

    fn bound_segments(&self, dst: &mut Segments<D>, bounds: SegmentBounds) -> Result<()> {
        dst.bound(bounds)
    }

    fn mask(&self, mask: Mask<'_>) -> Result<MaskOnDevice<D>> {
        let upload = |words: &[u32]| Buffer::of(&self.device, Format::U32, words);
        Ok(match mask {
            Mask::Full => MaskOnDevice::Full,
            Mask::Causal => MaskOnDevice::Causal,
            Mask::Annealed { words, stride } => MaskOnDevice::Annealed { words: upload(words)?, stride },
            Mask::Explicit { allow, len, shared } => {
                let stride = len.div_ceil(32);
                let row = |row: &[u8]| {
                    let word = |bits: &[u8]| {
                        bits.iter().enumerate().fold(0, |word, (i, &b)| word | u32::from(b != 0) << i)
                    };
                    row.chunks(32).map(word).collect::<Vec<u32>>()
                };
                let words: Vec<u32> = allow.chunks_exact(len.max(1)).flat_map(row).collect();
                let segment_stride = if shared { 0 } else { stride * len };
                MaskOnDevice::Bits { words: upload(&words)?, segment_stride, query_stride: stride }
            }
        })
    }

    fn number_bytes(&self) -> [usize; 2] {
        [self.dtype.size(), Dtype::F32.size()]
    }

    fn synchronize(&self) -> Result<()> {
        self.device.synchronize()
    }

    fn free_memory(&self) -> Option<u64> {
        self.device.free_memory().ok()
    }

    /// Up to 64 rows to a multiple of 8, beyond that to one of an eighth of the next power of two.
    fn round_rows(&self, rows: usize) -> usize {
        rows.next_multiple_of((rows.next_power_of_two() / 8).max(8))
    }

    fn run_ahead(&self) -> usize {
        RUN_AHEAD
    }

    fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Option<D::Graph>> {
        self.device.capture(work).map(Some)
    }

    unsafe fn replay(&self, recording: &D::Graph) -> Result<()> {
        // SAFETY: the caller's promise is the device's.
        unsafe { self.device.replay(recording) }
    }

    fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        f()
    }
}

impl<D: Device> Forward for Cuda<D> {
    fn embed(
        &self,
        table: &Matrix<D>,
        ids: &Buffer<D>,
        positions: Option<(&Matrix<D>, &Buffer<D>)>,
        rows: usize,
        width: usize,
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let positions = positions.map(|(table, ids)| (table.buffer(), ids));
        self.embed(self.dtype, table.buffer(), ids, positions, rows, width, out)
    }

    fn norm(
        &self,
        kind: NormKind,
        x: &Buffer<D>,
        weight: &Buffer<D>,
        bias: Option<&Buffer<D>>,
        eps: f64,
        rows: usize,
        width: usize,
        out: &mut Buffer<D>,
    ) -> Result<()> {
        self.norm(self.dtype, kind, x, None, weight, bias, eps as f32, rows, width, out)
    }

    fn linear(
        &self,
        (x, at): (&Buffer<D>, usize),
        rows: usize,
        weight: &Matrix<D>,
        outputs: Range<usize>,
        epilogue: Epilogue<'_, Self>,
        out: &mut Buffer<D>,
        out_rows: Rows,
    ) -> Result<()> {
        let Epilogue { bias, activation, accumulate } = epilogue;
        let epilogue = LinearEpilogue { bias, activation, accumulate };
        let x = (x, Rows { at, stride: weight.inputs() });
        let out_dtype = match out.format() {
            Format::Float(Dtype::F32) => Dtype::F32,
            _ => self.dtype,
        };
        self.linear(self.dtype, x, rows, weight, outputs, epilogue, (out, out_rows), out_dtype)
    }

    fn rope(
        &self,
        x: &mut Buffer<D>,
        at: Rows,
        rows: usize,
        heads: usize,
        head_dim: usize,
        positions: &Buffer<D>,
        table: &Buffer<D>,
    ) -> Result<()> {
        self.rope(self.dtype, x, at, rows, heads, head_dim, positions, table)
    }

    fn swiglu(&self, gate_up: &Buffer<D>, rows: usize, width: usize, out: &mut Buffer<D>) -> Result<()> {
        self.swiglu(self.dtype, gate_up, rows, width, out)
    }

    fn attention(
        &self,
        q: (&Buffer<D>, Rows),
        k: (&Buffer<D>, Rows),
        v: (&Buffer<D>, Rows),
        shape: HeadShape,
        segments: &Segments<D>,
        q_pos: &Buffer<D>,
        mask: &MaskOnDevice<D>,
        out: &mut Buffer<D>,
    ) -> Result<()> {
        self.attention(self.dtype, q, k, v, shape, segments, q_pos, mask.into(), out, None)
    }

    fn gather(
        &self,
        src: (&Buffer<D>, Rows),
        rows: &Buffer<D>,
        count: usize,
        width: usize,
        dst: &mut Buffer<D>,
    ) -> Result<()> {
        self.gather(self.dtype, src, rows, count, width, dst)
    }

    fn scatter(
        &self,
        src: (&Buffer<D>, Rows),
        rows: &Buffer<D>,
        count: usize,
        width: usize,
        dst: (&mut Buffer<D>, Rows),
    ) -> Result<()> {
        self.scatter(self.dtype, src, rows, count, width, dst)
    }

    fn cross_entropy(
        &self,
        logits: &Buffer<D>,
        vocab: usize,
        targets: &[u32],
        out: &mut [f64],
    ) -> Result<()> {
        const OP: &str = "cross_entropy";
        if out.len() != targets.len() {
            return Err(Error::Shape { op: OP, what: "out", expected: targets.len(), got: out.len() });
        }
        if let Some(target) = targets.iter().find(|&&t| t as usize >= vocab) {
            return Err(Error::Request(format!(
                "{OP}: target: expected a token id below {vocab}, got {target}"
            )));
        }
        let rows = targets.len();
        let targets = Buffer::of(&self.device, Format::U32, targets)?;
        let mut nll = Buffer::new(&self.device, Dtype::F32, rows)?;
        self.cross_entropy(Dtype::F32, (logits, Rows::dense(vocab)), vocab, &targets, rows, &mut nll)?;
        let mut narrow = vec![0.0_f32; rows];
        nll.read(&self.device, 0, &mut narrow)?;
        out.iter_mut().zip(narrow).for_each(|(out, nll)| *out = nll.into());
        Ok(())
    }
}

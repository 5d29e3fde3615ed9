//! [`Backend`] on a device.

use super::matmul::sizes;
use super::{Buffer, Cuda, Device, DeviceMask, Format, Matrix, Segments};
use crate::backend::{Backend, Layout, Mask, Segment, SegmentBounds};
use crate::element::{Dtype, StoredTensor};
use crate::error::Result;
use crate::meter;
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
    pub(super) fn zeroed(&self, format: impl Into<Format>, len: usize) -> Result<Buffer<D>> {
        let mut buffer = Buffer::new(&self.device, format, len)?;
        buffer.fill(&self.device, 0)?;
        Ok(buffer)
    }

    /// The numbers of `stored` in the format of activations.
    pub(super) fn converted(&self, stored: Buffer<D>, dtype: Dtype) -> Result<Buffer<D>> {
        if dtype == self.dtype {
            return Ok(stored);
        }
        self.cast_of(&stored, dtype, self.dtype)
    }

    /// The numbers of `from` in another format than their own.
    pub(super) fn cast_of(&self, from: &Buffer<D>, dtype: Dtype, to: Dtype) -> Result<Buffer<D>> {
        let mut cast = Buffer::new(&self.device, to, from.len())?;
        self.cast((from, dtype, 0), (&mut cast, to, 0), from.len())?;
        Ok(cast)
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
        Matrix::of(self.vector(tensor)?, self.dtype, layout, sizes(tensor.shape(), layout)?)
    }

    fn vector(&self, tensor: &StoredTensor) -> Result<Buffer<D>> {
        self.converted(Buffer::stored(&self.device, tensor)?, tensor.dtype())
    }

    /// As a checkpoint in bf16 would hold them, whatever is computed in: the same numbers on every machine.
    fn synthetic_matrix(&self, tensor: &SyntheticTensor, layout: Layout) -> Result<Matrix<D>> {
        const STORED: Dtype = Dtype::Bf16;
        let Fill::Normal { std } = tensor.fill else {
            return self.matrix(&tensor.stored(STORED)?, layout);
        };
        let mut made = Buffer::new(&self.device, STORED, tensor.count()?)?;
        self.random_weights(STORED, tensor.seed, tensor.parameter, std, &mut made)?;
        Matrix::of(self.converted(made, STORED)?, self.dtype, layout, sizes(&tensor.shape, layout)?)
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

    /// Some waves of the largest tiles over every multiprocessor, of whatever product of a network.
    fn worthwhile_rows(&self) -> usize {
        1 << 16
    }

    /// Up to 64 rows to a multiple of 8, beyond that to one of an eighth of the next power of two.
    fn round_rows(&self, rows: usize) -> usize {
        rows.next_multiple_of((rows.next_power_of_two() / 8).max(8))
    }

    fn run_ahead(&self) -> usize {
        RUN_AHEAD
    }

    fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Option<D::Graph>> {
        // Kernels in a graph cannot be timed one by one.
        if meter::is_on() { Ok(None) } else { self.device.capture(work).map(Some) }
    }

    fn settle_meter(&self) -> Result<()> {
        self.settle_timeline()
    }

    unsafe fn replay(&self, recording: &D::Graph) -> Result<()> {
        // SAFETY: the caller's promise is the device's.
        unsafe { self.device.replay(recording) }
    }

    fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        f()
    }
}

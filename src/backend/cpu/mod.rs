//! The CPU backend: hand-written SIMD kernels on a thread pool.
//!
//! Every number an operation produces has one fixed order of arithmetic. It does not depend on how
//! many rows share the call, on the number of threads, on how the work was cut into tasks, or on the
//! instruction set ([`SimdLevel`]): the same input row gives the same bits everywhere.

mod activation;
mod attention;
mod attention_bwd;
mod backward;
mod buffer;
mod check;
mod denoise;
mod elementwise;
mod embedding;
mod embedding_bwd;
mod few;
mod forward;
mod gemm;
mod head;
mod head_bwd;
mod mask;
mod matmul;
mod matmul_bwd;
mod norm;
mod norm_bwd;
mod optim;
mod rope;
mod simd;
pub mod unmask;
mod weight;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

pub use buffer::Buffer;
pub use mask::OwnedMask;
pub use optim::{OptimControl, OptimState};
pub use simd::{CpuElement, SimdLevel};
use simd::{Isa, Kernel};
use unmask::UnmaskElement;

use super::{Backend, Layout, Mask, Segment, SegmentBounds};
use crate::element::{Dtype, StoredTensor};
use crate::error::{Error, Result};

/// Most threads of a pool: far more than any machine has a use for.
pub const MAX_THREADS: usize = 1024;

/// The CPU with activations in `E` (`f32`; `f64` for tests). Cheap to clone; clones share the
/// thread pool.
pub struct Cpu<E: CpuElement> {
    shared: Arc<Inner<E>>,
}

struct Inner<E: CpuElement> {
    pool: rayon::ThreadPool,
    isa: Isa,
    /// Working memory of each thread of the pool.
    scratch: Vec<Mutex<Buffer<E>>>,
    ranking: Mutex<denoise::Ranking>,
}

/// Numbers of working memory a thread has. What an operation does not touch costs nothing.
const SCRATCH: usize = 128 * 1024;

impl<E: CpuElement> Clone for Cpu<E> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<E: CpuElement> std::fmt::Debug for Cpu<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cpu({} threads, {})", self.threads(), self.level())
    }
}

impl<E: CpuElement> Cpu<E> {
    /// A backend with its own pool of `threads` threads; without a number, one for each core that
    /// the process may use.
    ///
    /// # Errors
    /// [`Error::Request`] for more than [`MAX_THREADS`] threads, or when they cannot be started.
    pub fn new(threads: Option<NonZeroUsize>) -> Result<Self> {
        Self::with_level(threads, SimdLevel::detect())
    }

    /// As [`Cpu::new`], with the kernels of a given instruction set. The results are the same bits.
    ///
    /// # Errors
    /// [`Error::Request`] when this machine lacks the instruction set.
    pub fn with_level(threads: Option<NonZeroUsize>, level: SimdLevel) -> Result<Self> {
        let Some(isa) = Isa::new(level) else {
            return Err(Error::Request(format!(
                "this machine cannot run {level} instructions; the best it can is {}",
                SimdLevel::detect()
            )));
        };
        if let Some(threads) = threads.filter(|t| t.get() > MAX_THREADS) {
            return Err(Error::Request(format!(
                "CPU threads: expected 1 to {MAX_THREADS}, got {threads}; the cores of the machine are enough"
            )));
        }
        let mut builder = rayon::ThreadPoolBuilder::new().thread_name(|i| format!("lacuna-cpu-{i}"));
        if let Some(threads) = threads {
            builder = builder.num_threads(threads.get());
        }
        let pool = builder.build().map_err(|e| {
            Error::Request(format!("cannot start the CPU threads: {e}; ask for fewer with --threads"))
        })?;
        let scratch = (0..pool.current_num_threads())
            .map(|_| Buffer::zeroed(SCRATCH).map(Mutex::new))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { shared: Arc::new(Inner { pool, isa, scratch, ranking: Mutex::default() }) })
    }

    /// Threads in the pool.
    pub fn threads(&self) -> usize {
        self.shared.pool.current_num_threads()
    }

    /// The instruction set in use.
    pub fn level(&self) -> SimdLevel {
        self.shared.isa.level()
    }

    /// Runs `f(0) .. f(tasks - 1)`, each once, on the pool; on the calling thread when there is
    /// nothing to share out. Allocates nothing when called inside [`Backend::run`].
    pub(crate) fn for_each(&self, tasks: usize, f: impl Fn(usize) + Send + Sync) {
        if tasks <= 1 || self.threads() == 1 {
            (0..tasks).for_each(f);
        } else {
            self.shared.pool.install(|| (0..tasks).into_par_iter().with_max_len(1).for_each(f));
        }
    }

    /// As [`for_each`](Self::for_each); each task borrows its thread's working memory of
    /// [`SCRATCH`] numbers, which holds anything. `f` must not share out work itself.
    /// Without `worth` everything runs on the calling thread.
    fn for_each_with_scratch(&self, tasks: usize, worth: bool, f: impl Fn(usize, &mut [E]) + Send + Sync) {
        let pool = &self.shared.pool;
        let one = |task: usize| {
            let thread = pool.current_thread_index().unwrap_or(0);
            if let Some(scratch) = self.shared.scratch.get(thread) {
                f(task, scratch.lock().unwrap_or_else(PoisonError::into_inner).as_mut_slice());
            }
        };
        if tasks <= 1 || !worth || self.threads() == 1 {
            // Outside the pool this borrows thread 0's memory: the lock keeps that right.
            (0..tasks).for_each(one);
        } else {
            pool.install(|| (0..tasks).into_par_iter().with_max_len(1).for_each(one));
        }
    }

    fn ranking(&self) -> MutexGuard<'_, denoise::Ranking> {
        self.shared.ranking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `kernel` compiled for this backend's instruction set.
    #[inline]
    fn dispatch<K: Kernel<E>>(&self, kernel: K) -> K::Out {
        E::dispatch(self.shared.isa, kernel)
    }
}

/// A weight in its stored dtype and layout: in place in the file map, or in memory of its own.
#[derive(Debug)]
pub struct Matrix {
    storage: Storage,
    layout: Layout,
    inputs: usize,
    outputs: usize,
}

impl Matrix {
    /// Numbers a row of the input has.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Numbers a row of the result has.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The format of the stored numbers.
    #[inline]
    pub fn dtype(&self) -> Dtype {
        match &self.storage {
            Storage::Stored(tensor) => tensor.dtype(),
            Storage::F32(_) => Dtype::F32,
            Storage::Bf16(_) => Dtype::Bf16,
        }
    }

    /// The stored numbers, little-endian and row-major; `[outputs, inputs]` or `[inputs, outputs]` by layout.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match &self.storage {
            Storage::Stored(tensor) => tensor.bytes(),
            Storage::F32(numbers) => bytemuck::cast_slice(numbers.as_slice()),
            Storage::Bf16(numbers) => bytemuck::cast_slice(numbers.as_slice()),
        }
    }
}

/// Where the numbers of a weight are. Those in memory of its own are little-endian, as in a file.
#[derive(Debug)]
enum Storage {
    Stored(StoredTensor),
    F32(Buffer<f32>),
    Bf16(Buffer<u16>),
}

/// Inputs and outputs of a weight of this shape.
fn sides(op: &'static str, tensor: &StoredTensor, layout: Layout) -> Result<(usize, usize)> {
    let &[rows, columns] = tensor.shape() else {
        let got = tensor.shape().len();
        return Err(Error::Shape { op, what: "dimensions of a weight", expected: 2, got });
    };
    Ok(match layout {
        Layout::OutIn => (columns, rows),
        Layout::InOut => (rows, columns),
    })
}

/// Copies `src` to the start of `dst`.
fn write<T: bytemuck::Pod>(op: &'static str, dst: &mut Buffer<T>, src: &[T]) -> Result<()> {
    let got = dst.len();
    let Some(head) = dst.as_mut_slice().get_mut(..src.len()) else {
        return Err(Error::Shape { op, what: "numbers of the buffer", expected: src.len(), got });
    };
    head.copy_from_slice(src);
    Ok(())
}

/// Copies numbers of `src` from number `at` on.
fn read<T: bytemuck::Pod>(op: &'static str, src: &Buffer<T>, at: usize, dst: &mut [T]) -> Result<()> {
    let range = at..at.saturating_add(dst.len());
    let Some(part) = src.as_slice().get(range.clone()) else {
        return Err(Error::Shape { op, what: "buffer", expected: range.end, got: src.len() });
    };
    dst.copy_from_slice(part);
    Ok(())
}

impl<E: CpuElement> Backend for Cpu<E> {
    type Elem = E;
    type Buffer = Buffer<E>;
    type Index = Buffer<u32>;
    type Floats = Buffer<f32>;
    type Matrix = Matrix;
    type Segments = Vec<Segment>;
    type Mask = OwnedMask;
    type Recording = std::convert::Infallible;

    fn alloc(&self, len: usize) -> Result<Buffer<E>> {
        Buffer::zeroed(len)
    }

    fn upload(&self, src: &[E]) -> Result<Buffer<E>> {
        Buffer::from_slice(src)
    }

    fn alloc_index(&self, len: usize) -> Result<Buffer<u32>> {
        Buffer::zeroed(len)
    }

    fn alloc_floats(&self, len: usize) -> Result<Buffer<f32>> {
        Buffer::zeroed(len)
    }

    fn capacity(&self, buffer: &Buffer<E>) -> usize {
        buffer.len()
    }

    fn write_index(&self, dst: &mut Buffer<u32>, src: &[u32]) -> Result<()> {
        write("write_index", dst, src)
    }

    fn write_floats(&self, dst: &mut Buffer<f32>, src: &[f32]) -> Result<()> {
        write("write_floats", dst, src)
    }

    fn read(&self, src: &Buffer<E>, at: usize, dst: &mut [E]) -> Result<()> {
        read("read", src, at, dst)
    }

    fn read_index(&self, src: &Buffer<u32>, at: usize, dst: &mut [u32]) -> Result<()> {
        read("read_index", src, at, dst)
    }

    fn read_floats(&self, src: &Buffer<f32>, at: usize, dst: &mut [f32]) -> Result<()> {
        read("read_floats", src, at, dst)
    }

    fn matrix(&self, tensor: &StoredTensor, layout: Layout) -> Result<Matrix> {
        let (inputs, outputs) = sides("matrix", tensor, layout)?;
        Ok(Matrix { storage: Storage::Stored(tensor.clone()), layout, inputs, outputs })
    }

    fn vector(&self, tensor: &StoredTensor) -> Result<Buffer<E>> {
        let mut buffer = Buffer::zeroed(tensor.len())?;
        for (i, x) in buffer.as_mut_slice().iter_mut().enumerate() {
            *x = E::from_f32(tensor.get(i));
        }
        Ok(buffer)
    }

    fn copied_bytes(&self, matrix: &Matrix) -> usize {
        match &matrix.storage {
            Storage::Stored(_) => 0,
            Storage::F32(_) | Storage::Bf16(_) => matrix.bytes().len(),
        }
    }

    fn alloc_segments(&self, sequences: usize) -> Result<Vec<Segment>> {
        Ok(Vec::with_capacity(sequences))
    }

    fn write_segments(&self, dst: &mut Vec<Segment>, segments: &[Segment]) -> Result<()> {
        dst.clear();
        dst.extend_from_slice(segments);
        Ok(())
    }

    fn bound_segments(&self, _: &mut Vec<Segment>, _: SegmentBounds) -> Result<()> {
        Ok(())
    }

    fn mask(&self, mask: Mask<'_>) -> Result<OwnedMask> {
        Ok(mask.into())
    }

    fn record(&self, _: impl FnOnce() -> Result<()>) -> Result<Option<Self::Recording>> {
        Ok(None)
    }

    unsafe fn replay(&self, recording: &Self::Recording) -> Result<()> {
        match *recording {}
    }

    fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        self.shared.pool.install(f)
    }
}

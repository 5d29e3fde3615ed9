//! The seam between the model and the machine it runs on: buffers, and the fused operations on
//! them ([`Forward`], [`Unmask`]). It is not a tensor type: buffers are flat, and every operation
//! takes its dimensions as integers. A model is generic over [`Backend`] and statically
//! dispatched.

pub mod cpu;
pub mod cuda;
mod forward;
mod unmask;

pub use forward::{Epilogue, Forward, HeadShape, Mask, Rows, Segment};
pub use unmask::{Confidence, NO_TOKEN, RowDraw, RowParams, Unmask};

use crate::element::{Element, StoredTensor};
use crate::error::Result;

/// How a stored matrix relates inputs to outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[out, in]`: `torch.nn.Linear`, embeddings.
    OutIn,
    /// `[in, out]`: GPT-2's Conv1D.
    InOut,
}

/// A machine: its memory and the types that live there.
pub trait Backend: Clone + Send + Sync + 'static {
    /// What activations are computed in.
    type Elem: Element;
    /// A flat buffer of `Elem`.
    type Buffer: Send + Sync;
    /// A flat buffer of `u32` (token ids, positions, row numbers).
    type Index: Send + Sync;
    /// A weight matrix in its stored dtype and layout.
    type Matrix: Send + Sync;

    /// A buffer of `len` zeros.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) when it does not fit.
    fn alloc(&self, len: usize) -> Result<Self::Buffer>;
    /// A buffer that holds a copy of `src`.
    fn upload(&self, src: &[Self::Elem]) -> Result<Self::Buffer>;
    fn alloc_index(&self, len: usize) -> Result<Self::Index>;
    /// Elements that `buffer` can hold.
    fn capacity(&self, buffer: &Self::Buffer) -> usize;
    /// Copies `src` to the start of `dst`.
    fn write_index(&self, dst: &mut Self::Index, src: &[u32]) -> Result<()>;
    /// Copies `dst.len()` numbers of `src`, from number `at` on, to the host.
    fn read(&self, src: &Self::Buffer, at: usize, dst: &mut [Self::Elem]) -> Result<()>;
    /// Takes a two-dimensional stored tensor as a weight; in place where the machine can.
    fn matrix(&self, tensor: &StoredTensor, layout: Layout) -> Result<Self::Matrix>;
    /// Takes a stored tensor as activations (norm weights, biases), widened.
    fn vector(&self, tensor: &StoredTensor) -> Result<Self::Buffer>;
    /// Bytes of `matrix` that live outside the file map.
    fn copied_bytes(&self, matrix: &Self::Matrix) -> usize;
    /// Runs `f` where this backend's operations are cheapest to call (for the CPU: inside its
    /// thread pool). Operations work outside `run` too.
    fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R;
}

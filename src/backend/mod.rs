//! The seam between the model and the machine it runs on: buffers, and the fused operations on
//! them ([`Forward`], [`Unmask`]; for training [`Backward`], [`Optimise`]). It is not a tensor type: buffers are flat, and every operation
//! takes its dimensions as integers. A model is generic over [`Backend`] and statically
//! dispatched.

mod backward;
pub mod cpu;
pub mod cuda;
mod denoise;
mod forward;
mod optim;
mod unmask;
mod work;

pub use backward::{AnnealedDraw, Attended, Backward, TokenWeight, WorkSize};
pub use denoise::{
    Canvases, CanvasesSize, Denoise, DrawingWords, RANK_WORDS, RankWords, Stage, StepShape, THRESHOLD_WORDS,
    WANT_WORDS, Want, WantKind, threshold_words,
};
pub use forward::{Epilogue, Forward, HeadShape, Inputs, Mask, Rows, Segment, SegmentBounds};
pub use optim::{AdamW, AdamWFactors, MOMENT_BLOCK, MomentFormat, Optimise, Outcome, Trainable};
pub use unmask::{
    Confidence, NO_TOKEN, NoiseAddress, RowDraw, RowNoise, RowParams, UNMASK_WORDS, Unmask, unmask_words,
};

use crate::element::{Dtype, Element, StoredTensor};
use crate::error::Result;
use crate::synthetic::SyntheticTensor;

/// How a stored matrix relates inputs to outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[out, in]`: `torch.nn.Linear`, embeddings.
    OutIn,
    /// `[in, out]`: GPT-2's Conv1D.
    InOut,
}

/// A machine: its memory and the types that live there.
///
/// Operations are asked for in order and done in that order; what is read back has waited for all that was asked for
/// before. On a card they are under way when the call returns.
pub trait Backend: Clone + Send + Sync + 'static {
    /// What numbers are read back as. On the CPU it is what activations are computed in.
    type Elem: Element;
    /// A flat buffer of activations.
    type Buffer: Send + Sync;
    /// A flat buffer of `u32` (token ids, positions, row numbers).
    type Index: Send + Sync;
    /// A flat buffer of `f32`, whatever activations are computed in.
    type Floats: Send + Sync;
    /// A weight matrix in its stored dtype and layout.
    type Matrix: Send + Sync;
    /// Where the queries and keys of sequences lie in packed rows.
    type Segments: Send + Sync;
    /// Which keys a query may see.
    type Mask: Send + Sync;
    /// Recorded operations.
    type Recording: Send;

    /// A buffer of `len` zeros.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) when it does not fit.
    fn alloc(&self, len: usize) -> Result<Self::Buffer>;
    /// A buffer for `len` logits: as exact as the machine's matrix product gives them.
    fn alloc_logits(&self, len: usize) -> Result<Self::Buffer> {
        self.alloc(len)
    }
    /// A buffer that holds a copy of `src`, not rounded to the format of activations.
    fn upload(&self, src: &[Self::Elem]) -> Result<Self::Buffer>;
    /// A buffer of `len` zeros.
    fn alloc_index(&self, len: usize) -> Result<Self::Index>;
    /// A buffer of `len` zeros.
    fn alloc_floats(&self, len: usize) -> Result<Self::Floats>;
    /// Elements that `buffer` can hold.
    fn capacity(&self, buffer: &Self::Buffer) -> usize;
    /// Copies `src` to the start of `dst`; `src` has been read on return.
    fn write_index(&self, dst: &mut Self::Index, src: &[u32]) -> Result<()>;
    /// Copies `src` to the start of `dst`; `src` has been read on return.
    fn write_floats(&self, dst: &mut Self::Floats, src: &[f32]) -> Result<()>;
    /// Copies `dst.len()` numbers of `src`, from number `at` on, to the host.
    fn read(&self, src: &Self::Buffer, at: usize, dst: &mut [Self::Elem]) -> Result<()>;
    /// Copies `dst.len()` numbers of `src`, from number `at` on, to the host.
    fn read_index(&self, src: &Self::Index, at: usize, dst: &mut [u32]) -> Result<()>;
    /// Copies `dst.len()` numbers of `src`, from number `at` on, to the host.
    fn read_floats(&self, src: &Self::Floats, at: usize, dst: &mut [f32]) -> Result<()>;
    /// Takes a two-dimensional stored tensor as a weight; in place where the machine can.
    fn matrix(&self, tensor: &StoredTensor, layout: Layout) -> Result<Self::Matrix>;
    /// Takes a stored tensor as activations (norm weights, biases), widened.
    fn vector(&self, tensor: &StoredTensor) -> Result<Self::Buffer>;
    /// A weight that is made up, as the machine would store it.
    fn synthetic_matrix(&self, tensor: &SyntheticTensor, layout: Layout) -> Result<Self::Matrix> {
        self.matrix(&tensor.stored(Dtype::Bf16)?, layout)
    }
    /// Made-up norm weights and biases.
    fn synthetic_vector(&self, tensor: &SyntheticTensor) -> Result<Self::Buffer> {
        self.vector(&tensor.stored(Dtype::Bf16)?)
    }
    /// Bytes of `matrix` that live outside the file map.
    fn copied_bytes(&self, matrix: &Self::Matrix) -> usize;
    /// Room for the places of `sequences` sequences.
    fn alloc_segments(&self, sequences: usize) -> Result<Self::Segments>;
    /// Other places in the same memory.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) when the queries of a sequence do not begin after those of the one before.
    fn write_segments(&self, dst: &mut Self::Segments, segments: &[Segment]) -> Result<()>;
    /// Says how far the places that an operation is about to write ([`Denoise::select_needs`]) may reach.
    fn bound_segments(&self, dst: &mut Self::Segments, bounds: SegmentBounds) -> Result<()>;
    /// A mask where attention finds it.
    fn mask(&self, mask: Mask<'_>) -> Result<Self::Mask>;

    /// Bytes of one activation, and of one logit.
    fn number_bytes(&self) -> [usize; 2] {
        [size_of::<Self::Elem>(); 2]
    }
    /// Waits until all that was asked for is done.
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    /// What is left of the machine's memory, where it is known.
    fn free_memory(&self) -> Option<u64> {
        None
    }
    /// Rows of a forward pass up to which it pays to take more sequences in.
    fn worthwhile_rows(&self) -> usize {
        2048
    }
    /// Rows that a step with `rows` rows is padded to, so that few different shapes are recorded.
    fn round_rows(&self, rows: usize) -> usize {
        rows
    }
    /// Steps to ask for before looking at what came of them, where somebody wants to look.
    fn run_ahead(&self) -> usize {
        1
    }
    /// Records the operations of `work` instead of doing them; `None`, with `work` not called, where that is not to be had
    /// (and while the [meter](crate::meter) is on).
    fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Option<Self::Recording>>;
    /// Tells the [meter](crate::meter) the times of what was asked for, where the machine has a clock of its own; waits for it.
    fn settle_meter(&self) -> Result<()> {
        Ok(())
    }
    /// Does what was recorded.
    ///
    /// # Safety
    /// The buffers that the recorded operations name are still there, and no one else uses them.
    unsafe fn replay(&self, recording: &Self::Recording) -> Result<()>;
    /// Runs `f` where this backend's operations are cheapest to call (for the CPU: inside its
    /// thread pool). Operations work outside `run` too.
    fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R;
}

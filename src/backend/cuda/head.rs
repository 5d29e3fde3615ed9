//! Launches of `cuda/head.cu`.

use std::ops::Range;

use super::embedding::span;
use super::kernel_for;
use super::{Buffer, Cuda, Device, Format, Launch, product};
use crate::backend::{Rows, TokenWeight};
use crate::element::Dtype;
use crate::error::{Error, Result};

const THREADS: u32 = 512;
/// Most logits of a row.
const MOST: usize = 1 << 30;
/// Bytes of shared memory of the gradient beside the row (`HEAD_WORK` floats in the kernel file).
const WORK_BYTES: usize = 80;

impl<D: Device> Cuda<D> {
    /// Negative log-likelihood in nats of `targets[r]` (U32) under row r of `rows` rows of `vocab` logits of format `dtype`,
    /// placed by `logits.1`, into `nll[r]` (f32). NaN where a logit is NaN or +inf, or the target is not below `vocab`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `vocab` is 0 or above 2^30, or a buffer is too short or of another format; those of the device.
    pub fn cross_entropy(
        &self,
        dtype: Dtype,
        (logits, at): (&Buffer<D>, Rows),
        vocab: usize,
        targets: &Buffer<D>,
        rows: usize,
        nll: &mut Buffer<D>,
    ) -> Result<()> {
        let kernel = kernel_for!(dtype, "head_nll");
        if rows == 0 {
            return Ok(());
        }
        // The kernel counts a stretch of threads beyond the end.
        if vocab == 0 || vocab > MOST {
            return Err(Error::Shape {
                op: kernel,
                what: "vocab",
                expected: vocab.clamp(1, MOST),
                got: vocab,
            });
        }
        let mut launch =
            Launch::new(kernel, [rows, 1, 1], THREADS, THREADS as usize / 32 * size_of::<f32>())?;
        launch.read("logits", logits, dtype, at.at, span(kernel, "logits", at, rows, vocab)?)?;
        launch.read("targets", targets, Format::U32, 0, rows)?;
        launch.write("nll", nll, Dtype::F32, 0, rows)?;
        launch.size("vocab", vocab)?.size("stride", at.stride)?;
        // SAFETY: a block a row; the kernel reads `vocab` numbers of its row, and 16-byte pieces that lie in it.
        unsafe { self.launch(&launch) }
    }

    /// Cross-entropy of `rows.len()` rows of `vocab` logits of format `dtype`, placed by `logits.1`, and its gradient in their
    /// place: with u the negative log-likelihood of `targets[rows.start + r]` (U32) under row r, `nll[rows.start + r] = u`,
    /// and row r becomes `weights[rows.start + r] token'(u) (softmax(row) - onehot)`, the numbers behind it, up to the
    /// stride, 0: the buffer holds `rows.len()` strides from `logits.1.at` on. `weights` and `nll` are f32. A row with a
    /// NaN or +inf, without any finite number, or whose target is not below `vocab`, gives NaN.
    ///
    /// # Errors
    /// [`Error::Shape`] when `vocab` is 0, rows overlap, a stride is above 2^30, `rows` ends before it starts, or a buffer is
    /// too short or of another format; those of the device.
    #[allow(clippy::too_many_arguments)]
    pub fn cross_entropy_backward(
        &self,
        dtype: Dtype,
        (logits, at): (&mut Buffer<D>, Rows),
        vocab: usize,
        rows: Range<usize>,
        targets: &Buffer<D>,
        weights: &Buffer<D>,
        token: TokenWeight,
        nll: &mut Buffer<D>,
    ) -> Result<()> {
        let kernel = kernel_for!(dtype, "head_gradient");
        if rows.start > rows.end {
            let (expected, got) = (rows.start, rows.end);
            return Err(Error::Shape { op: kernel, what: "end of the rows", expected, got });
        }
        if vocab == 0 || vocab > MOST {
            let expected = vocab.clamp(1, MOST);
            return Err(Error::Shape { op: kernel, what: "vocab", expected, got: vocab });
        }
        if at.stride < vocab || at.stride > MOST {
            let expected = at.stride.clamp(vocab, MOST);
            return Err(Error::Shape { op: kernel, what: "stride of the logits", expected, got: at.stride });
        }
        let count = rows.len();
        if count == 0 {
            return Ok(());
        }
        let kept = self.packs_kept(dtype, vocab);
        let mut launch = Launch::new(kernel, [count, 1, 1], THREADS, WORK_BYTES + 16 * kept)?;
        launch.update("logits", logits, dtype, at.at, product(kernel, "logits", count, at.stride)?)?;
        launch.read("targets", targets, Format::U32, rows.start, count)?;
        launch.read("weights", weights, Dtype::F32, rows.start, count)?;
        launch.write("nll", nll, Dtype::F32, rows.start, count)?;
        launch.size("vocab", vocab)?.u64(at.stride as u64).size("packs kept", kept)?;
        launch.f32(token.alpha as f32).f32(token.gamma as f32).u32((token == TokenWeight::NONE).into());
        // SAFETY: a block a row; the kernel reads `vocab` numbers of its row and writes `stride`, and has room for `kept` packs.
        unsafe { self.launch(&launch) }
    }

    /// How many packs of 16 bytes of a row the gradient keeps in shared memory: as many as leave room for two blocks on a
    /// multiprocessor, which has 1 KiB more than a block may ask for and takes 1 KiB for each block itself.
    fn packs_kept(&self, dtype: Dtype, vocab: usize) -> usize {
        let half = (self.device.facts().shared_per_block as usize).saturating_sub(1024) / 2;
        vocab.div_ceil(16 / dtype.size()).min(half.saturating_sub(WORK_BYTES) / 16)
    }
}

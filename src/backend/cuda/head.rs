//! Launches of `cuda/head.cu`.

use super::embedding::span;
use super::kernel_for;
use super::{Buffer, Cuda, Device, Format, Launch};
use crate::backend::Rows;
use crate::element::Dtype;
use crate::error::{Error, Result};

const THREADS: u32 = 512;
/// Most logits of a row.
const MOST: usize = 1 << 30;

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
        unsafe { self.device.launch(&launch) }
    }
}

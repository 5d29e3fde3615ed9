//! Launches of `cuda/unmask.cu`.

use super::kernel_for;
use super::{Buffer, Cuda, Device, Format, Launch, product};
use crate::backend::UNMASK_WORDS;
use crate::backend::unmask::check_vocab;
use crate::element::Dtype;
use crate::error::{Error, Result};

const THREADS: u32 = 512;

/// Bytes of shared memory beside the row (`UNMASK_WORK_BYTES` in the kernel file), and of the packs that a streaming row keeps.
const WORK_BYTES: usize = 10_560;
const STREAMING_BYTES: usize = 3 * 16;

/// What was drawn from rows of logits: a number a row in each buffer.
#[derive(Debug)]
pub struct Draws<D: Device> {
    /// U32; [`NO_TOKEN`](crate::backend::NO_TOKEN) where nothing was drawn.
    pub tokens: Buffer<D>,
    /// F32, like the next two; NaN where nothing was drawn.
    pub log_prob: Buffer<D>,
    pub confidence: Buffer<D>,
    pub given_log_prob: Buffer<D>,
    /// U32: 0 drawn, 1 a logit is NaN or +inf, 2 all logits are -inf or suppressed, 3 the parameters in device memory
    /// are out of range.
    pub flags: Buffer<D>,
    /// The memory of all five, one behind the other.
    together: Buffer<D>,
}

impl<D: Device> Draws<D> {
    /// Room for `rows` draws.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(device: &D, rows: usize) -> Result<Self> {
        let together = Buffer::new(device, Format::U32, product("draws", "numbers", rows, 5)?)?;
        Ok(Self {
            tokens: together.share(0, rows)?,
            log_prob: together.share_as(Dtype::F32, rows, rows)?,
            confidence: together.share_as(Dtype::F32, 2 * rows, rows)?,
            given_log_prob: together.share_as(Dtype::F32, 3 * rows, rows)?,
            flags: together.share(4 * rows, rows)?,
            together,
        })
    }

    /// The bits of all numbers, by one copy: tokens, log probabilities, confidences, given log probabilities and flags of as many
    /// rows as there is room for.
    ///
    /// # Errors
    /// Those of the device.
    pub(super) fn read(&self, device: &D) -> Result<Vec<u32>> {
        self.together.to_vec(device)
    }
}

/// How the kernel reads a row. The results are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmaskVariant {
    /// Once, into shared memory.
    Resident,
    /// Once a pass, from global memory or the second-level cache.
    Streaming,
}

impl<D: Device> Draws<D> {
    /// Other names for draws `at .. at + rows`.
    pub(super) fn share(&self, at: usize, rows: usize) -> Result<Self> {
        Ok(Self {
            tokens: self.tokens.share(at, rows)?,
            log_prob: self.log_prob.share(at, rows)?,
            confidence: self.confidence.share(at, rows)?,
            given_log_prob: self.given_log_prob.share(at, rows)?,
            flags: self.flags.share(at, rows)?,
            together: self.together.share(0, self.together.len())?,
        })
    }
}

impl<D: Device> Cuda<D> {
    /// The variant that [`unmask`](Self::unmask) takes: resident where a row fits in a block's shared memory.
    pub fn unmask_variant(&self, dtype: Dtype, vocab: usize) -> UnmaskVariant {
        let fits = resident_bytes(dtype, vocab) <= self.device.facts().shared_per_block as usize;
        if fits { UnmaskVariant::Resident } else { UnmaskVariant::Streaming }
    }

    /// Draws one token from each of `rows` rows of logits of format `dtype`: row r is the `vocab` numbers of `logits` from
    /// number `at + r * stride` on. `params` U32 `[rows, 12]` holds each row's [`unmask_words`](crate::backend::unmask_words), `out` has room for `rows`
    /// draws. A row's result depends on that row alone, and is that of the CPU's
    /// [`unmask_rows`](crate::backend::cpu::unmask::unmask_rows) on the same numbers, token for token.
    ///
    /// # Errors
    /// [`Error::Shape`] when a buffer is too short or of another format, or `vocab` is 0 or 2^24 and more; those of the
    /// device. A row that cannot be drawn from is no error here: see [`Draws::flags`].
    #[allow(clippy::too_many_arguments)]
    pub fn unmask(
        &self,
        dtype: Dtype,
        logits: &Buffer<D>,
        at: usize,
        stride: usize,
        vocab: usize,
        rows: usize,
        params: &Buffer<D>,
        out: &mut Draws<D>,
    ) -> Result<()> {
        self.unmask_as(self.unmask_variant(dtype, vocab), dtype, logits, at, stride, vocab, rows, params, out)
    }

    /// As [`unmask`](Self::unmask), by a variant of one's own choice.
    ///
    /// # Errors
    /// Those of [`unmask`](Self::unmask), and [`Error::Shape`] where a row to be resident does not fit in shared memory.
    #[allow(clippy::too_many_arguments)]
    pub fn unmask_as(
        &self,
        variant: UnmaskVariant,
        dtype: Dtype,
        logits: &Buffer<D>,
        at: usize,
        stride: usize,
        vocab: usize,
        rows: usize,
        params: &Buffer<D>,
        out: &mut Draws<D>,
    ) -> Result<()> {
        let (kernel, shared) = match variant {
            UnmaskVariant::Resident => (kernel_for!(dtype, "unmask_resident"), resident_bytes(dtype, vocab)),
            UnmaskVariant::Streaming => {
                (kernel_for!(dtype, "unmask_streaming"), WORK_BYTES + STREAMING_BYTES)
            }
        };
        check_vocab(vocab)?;
        if rows == 0 {
            return Ok(());
        }
        let limit = self.device.facts().shared_per_block as usize;
        if shared > limit {
            return Err(Error::Shape {
                op: kernel,
                what: "bytes of a resident row",
                expected: limit,
                got: shared,
            });
        }
        // From the first row's start to the last one's end.
        let span = product(kernel, "logits", rows - 1, stride)?.saturating_add(vocab);
        let words = product(kernel, "params", rows, UNMASK_WORDS)?;
        let mut launch = Launch::new(kernel, [rows, 1, 1], THREADS, shared)?;
        launch.read("logits", logits, dtype, at, span)?;
        launch.u64(stride as u64).size("vocab", vocab)?;
        launch.read("params", params, Format::U32, 0, words)?;
        launch.write("tokens", &mut out.tokens, Format::U32, 0, rows)?;
        launch.write("log_prob", &mut out.log_prob, Dtype::F32, 0, rows)?;
        launch.write("confidence", &mut out.confidence, Dtype::F32, 0, rows)?;
        launch.write("given_log_prob", &mut out.given_log_prob, Dtype::F32, 0, rows)?;
        launch.write("flags", &mut out.flags, Format::U32, 0, rows)?;
        // SAFETY: a block a row; the kernel reads `vocab` numbers from its row's start on, which all lie in the span, and
        // the row's words, and writes one number of each output. Words out of range make it write a flag.
        unsafe { self.launch(&launch) }
    }
}

/// The work memory and the row in packs of 16 bytes, wherever in a pack it begins.
fn resident_bytes(dtype: Dtype, vocab: usize) -> usize {
    let lost = 16 / dtype.size() - 1;
    let row = vocab.saturating_add(lost).saturating_mul(dtype.size());
    WORK_BYTES.saturating_add(row.div_ceil(16).saturating_mul(16))
}

//! Launches of `cuda/mask.cu`.

use super::{Buffer, Cuda, Device, Format, Launch, product};
use crate::error::{Error, Result};

const THREADS: usize = 256;

/// How much of the future an annealed mask shows, and which draw it is.
enum Settings<'a, D: Device> {
    Given(f32, u32),
    OnDevice(&'a Buffer<D>),
}

impl<D: Device> Cuda<D> {
    /// The random bits of annealed attention of
    /// [`annealed_words`](crate::diffusion::anneal::annealed_words) for the generator of `seed`, bit for bit, into `words`
    /// `[len, stride]` (U32); words of a row beyond `ceil(len / 32)` are 0.
    ///
    /// # Errors
    /// [`Error::Shape`] when `stride` is too small, there are 2^31 words or more, or `words` is too short or of another
    /// format; those of the device.
    pub fn annealed_mask(
        &self,
        seed: u64,
        step: u32,
        ratio: f32,
        len: usize,
        stride: usize,
        words: &mut Buffer<D>,
    ) -> Result<()> {
        self.fill_mask(Settings::Given(ratio, step), seed, len, stride, words)
    }

    /// [`annealed_mask`](Self::annealed_mask) with ratio (the bits of an f32) and step in `settings` `[2]` (U32), read when
    /// the kernel runs: a recorded graph can be replayed with others.
    ///
    /// # Errors
    /// As [`annealed_mask`](Self::annealed_mask).
    pub fn annealed_mask_from(
        &self,
        settings: &Buffer<D>,
        seed: u64,
        len: usize,
        stride: usize,
        words: &mut Buffer<D>,
    ) -> Result<()> {
        self.fill_mask(Settings::OnDevice(settings), seed, len, stride, words)
    }

    fn fill_mask(
        &self,
        settings: Settings<'_, D>,
        seed: u64,
        len: usize,
        stride: usize,
        words: &mut Buffer<D>,
    ) -> Result<()> {
        const OP: &str = "mask_annealed";
        let needed = len.div_ceil(32);
        if stride < needed {
            return Err(Error::Shape { op: OP, what: "words of a row", expected: needed, got: stride });
        }
        let total = product(OP, "words", len, stride)?;
        if total == 0 {
            return Ok(());
        }
        if total > i32::MAX as usize {
            return Err(Error::Shape { op: OP, what: "words", expected: i32::MAX as usize, got: total });
        }
        let mut launch = Launch::new(OP, [total.div_ceil(THREADS), 1, 1], THREADS as u32, 0)?;
        match settings {
            Settings::Given(ratio, step) => launch.null().f32(ratio).u32(step),
            Settings::OnDevice(settings) => {
                launch.read("settings", settings, Format::U32, 0, 2)?.f32(0.0).u32(0)
            }
        };
        launch.u64(seed).write("words", words, Format::U32, 0, total)?;
        launch.size("len", len)?.size("stride", stride)?;
        // SAFETY: the kernel writes the `len * stride` words and reads two of `settings`.
        unsafe { self.launch(&launch) }
    }
}

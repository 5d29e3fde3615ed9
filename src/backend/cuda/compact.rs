//! Launches of `cuda/compact.cu`.

use super::{Buffer, Cuda, Device, Format, Launch};
use crate::error::{Error, Result};

const THREADS: usize = 512;
/// Most tokens.
const MOST: usize = 1 << 30;

impl<D: Device> Cuda<D> {
    /// The rows of logits that predict masked tokens, in ascending order. `masked` `[tokens]` (U8) says which tokens of the
    /// packed sequences are masked; sequence s has tokens `starts[s] .. starts[s + 1]` of `starts` `[sequences + 1]`
    /// (U32). `rows[i]` becomes the row (through the `shift`; see [`crate::diffusion::shift`]) and `positions[i]` the
    /// position within its sequence of the i-th of them, for i below `capacity`; `offsets[s]` `[sequences + 1]` how many lie in
    /// the sequences before s, so that all are `offsets[sequences]`, those beyond the capacity counted too. All U32.
    ///
    /// # Errors
    /// [`Error::Shape`] when a buffer is too short or of another format, or there are more than 2^30 tokens; those of
    /// the device.
    #[allow(clippy::too_many_arguments)]
    pub fn compact(
        &self,
        masked: &Buffer<D>,
        starts: &Buffer<D>,
        tokens: usize,
        sequences: usize,
        shift: bool,
        rows: &mut Buffer<D>,
        positions: &mut Buffer<D>,
        capacity: usize,
        offsets: &mut Buffer<D>,
    ) -> Result<()> {
        const OP: &str = "compact_rows";
        if tokens > MOST {
            return Err(Error::Shape { op: OP, what: "tokens", expected: MOST, got: tokens });
        }
        let ends = sequences.saturating_add(1);
        // Without tokens the offsets are still to be written.
        let mut launch = Launch::new(OP, [1, 1, 1], THREADS as u32, (THREADS / 32 + 2 * THREADS) * 4)?;
        launch.read("masked", masked, Format::U8, 0, tokens)?;
        launch.read("starts", starts, Format::U32, 0, ends)?;
        launch.update("rows", rows, Format::U32, 0, capacity)?;
        launch.update("positions", positions, Format::U32, 0, capacity)?;
        launch.write("offsets", offsets, Format::U32, 0, ends)?;
        launch
            .size("tokens", tokens)?
            .size("sequences", sequences)?
            .u32(shift.into())
            .size("capacity", capacity)?;
        // SAFETY: the kernel reads `tokens` flags and the starts, writes the offsets and, of rows and positions, numbers
        // below `capacity`, whatever the starts are.
        unsafe { self.launch(&launch) }
    }
}

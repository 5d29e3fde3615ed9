//! Launches of `cuda/needs.cu`.

use super::{Buffer, Cuda, Device, Format, Launch, product};
use crate::backend::denoise::{DRAWING_WORDS, WANT_WORDS};
use crate::backend::{Inputs, UNMASK_WORDS};
use crate::element::Dtype;
use crate::error::Result;

const THREADS: u32 = 256;
const SHARED: usize = 64;

/// Which rows are to be found: buffers of U32, but for the uniform numbers.
#[derive(Debug)]
pub struct Wanted<'a, D: Device> {
    /// `[tokens]`: 1 where a mask stands; 1 at positions to be filled.
    pub masked: &'a Buffer<D>,
    pub free: &'a Buffer<D>,
    /// `[sequences + 1]`.
    pub starts: &'a Buffer<D>,
    pub sequences: usize,
    /// [`Want`](crate::backend::Want) of each sequence `[sequences, 8]`.
    pub wants: &'a Buffer<D>,
    /// [`DrawingWords`](crate::backend::DrawingWords) of each sequence `[sequences, 12]`.
    pub drawing: &'a Buffer<D>,
    /// `[sequences]`: 1 where nothing is needed any more.
    pub complete: Option<&'a Buffer<D>>,
    pub list: Option<&'a Buffer<D>>,
    /// F32.
    pub uniforms: Option<&'a Buffer<D>>,
    pub shift: bool,
    /// Rows to write.
    pub rows: usize,
}

/// Where they go: buffers of U32.
#[derive(Debug)]
pub struct Found<'a, D: Device> {
    pub needs: &'a mut Buffer<D>,
    /// As long as `needs`.
    pub slots: &'a mut Buffer<D>,
    /// `[rows]`.
    pub rows: &'a mut Buffer<D>,
    pub row_positions: &'a mut Buffer<D>,
    /// `[rows, 12]`.
    pub params: &'a mut Buffer<D>,
    /// `[sequences, 4]`.
    pub places: &'a mut Buffer<D>,
    /// `[sequences]`.
    pub passes: &'a mut Buffer<D>,
}

impl<D: Device> Cuda<D> {
    /// Copies the next of `steps` steps, of `stage.len()` words each, from `tape` (U32: a cursor, then the steps) to `stage`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) when the tape is too short; those of the device.
    pub fn stage_step(
        &self,
        tape: &mut Buffer<D>,
        steps: usize,
        stride: usize,
        stage: &mut Buffer<D>,
    ) -> Result<()> {
        const KERNEL: &str = "needs_stage";
        let words = product(KERNEL, "tape", steps, stride)?.saturating_add(1);
        let mut launch = Launch::new(KERNEL, [1, 1, 1], THREADS, 0)?;
        launch.update("tape", tape, Format::U32, 0, words)?;
        launch.size("steps", steps)?.size("stride", stride)?;
        launch.write("stage", stage, Format::U32, 0, stride)?;
        // SAFETY: the kernel reads the cursor and, where that is below `steps`, the step's words.
        unsafe { self.launch(&launch) }
    }

    /// Finds the rows that a step needs, as `cuda/needs.cu` has it; `ids` U32 `[tokens]` are the canvas.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) when buffers do not fit together; those of the device.
    pub fn select_needs(&self, ids: &Buffer<D>, wanted: &Wanted<'_, D>, found: Found<'_, D>) -> Result<()> {
        const KERNEL: &str = "needs_select";
        let (sequences, tokens, rows) = (wanted.sequences, ids.len(), wanted.rows);
        if sequences == 0 {
            return Ok(());
        }
        let word = Format::U32;
        let mut launch = Launch::new(KERNEL, [sequences, 1, 1], THREADS, SHARED)?;
        launch.read("ids", ids, word, 0, tokens)?;
        launch.read("masked", wanted.masked, word, 0, tokens)?;
        launch.read("free", wanted.free, word, 0, tokens)?;
        launch.read("starts", wanted.starts, word, 0, sequences + 1)?;
        launch.size("tokens", tokens)?.size("sequences", sequences)?;
        launch.read("wants", wanted.wants, word, 0, product(KERNEL, "wants", sequences, WANT_WORDS)?)?;
        launch.read(
            "drawing",
            wanted.drawing,
            word,
            0,
            product(KERNEL, "drawing", sequences, DRAWING_WORDS)?,
        )?;
        launch.read_or_null("complete", wanted.complete, word, 0, sequences)?;
        let list_len = wanted.list.map_or(0, Buffer::len);
        launch.read_or_null("list", wanted.list, word, 0, list_len)?.size("list", list_len)?;
        let given = wanted.uniforms.map_or(0, Buffer::len);
        launch.read_or_null("uniforms", wanted.uniforms, Dtype::F32, 0, given)?.size("uniforms", given)?;
        launch.u32(wanted.shift.into());
        let needs = found.needs.len();
        launch.update("needs", found.needs, word, 0, needs)?;
        launch.update("slots", found.slots, word, 0, needs)?.size("needs", needs)?;
        launch.update("rows", found.rows, word, 0, rows)?;
        launch.update("row_positions", found.row_positions, word, 0, rows)?;
        launch.update("params", found.params, word, 0, product(KERNEL, "params", rows, UNMASK_WORDS)?)?;
        launch.size("rows", rows)?;
        launch.write("places", found.places, word, 0, product(KERNEL, "places", sequences, 4)?)?;
        launch.update("passes", found.passes, word, 0, sequences)?;
        // SAFETY: a block a sequence; positions, places of the list, uniform numbers, needs and rows that lie outside of the
        // buffers are skipped by the kernel, whatever the words say.
        unsafe { self.launch(&launch) }
    }
}

/// The parts of a forward pass's inputs that [`Cuda::select_needs`] reads and writes.
pub(super) struct Parts<'a, D: Device> {
    pub ids: &'a Buffer<D>,
    pub rows: &'a mut Buffer<D>,
    pub row_positions: &'a mut Buffer<D>,
    pub places: &'a mut Buffer<D>,
}

impl<'a, D: Device> Parts<'a, D> {
    pub fn of(inputs: &'a mut Inputs<Cuda<D>>) -> Self {
        Self {
            ids: &inputs.ids,
            rows: &mut inputs.wanted,
            row_positions: &mut inputs.wanted_positions,
            places: inputs.wanted_segments.places_mut(),
        }
    }
}

//! Launches of `cuda/columns.cu`: sums over rows.

use super::embedding::span;
use super::kernel_for;
use super::{Buffer, Cuda, Device, Launch, product};
use crate::backend::Rows;
use crate::element::Dtype;
use crate::error::{Error, Result};

const THREADS: usize = 256;
/// Columns of a block of the second stage.
const ADD_COLUMNS: usize = 32;
/// Rows of a part at least, and most parts.
const ROWS: usize = 32;
const MOST_PARTS: usize = 512;

impl<D: Device> Cuda<D> {
    /// Parts in which sums over `rows` rows are taken: [`column_sums`](Self::column_sums) needs room for `parts * columns`
    /// f32 numbers, [`norm_backward`](Self::norm_backward) for twice as many.
    pub fn column_parts(rows: usize) -> usize {
        rows.div_ceil(ROWS).min(MOST_PARTS)
    }

    /// `out[c] += sum_t dy[t, c]` for `rows` rows of `columns` numbers of format `dtype`, placed by `dy.1`; `partial`, which
    /// is overwritten, and `out` are f32. The order of a sum depends on `rows` alone.
    ///
    /// # Errors
    /// [`Error::Shape`] when a buffer is too short or of another format; those of the device.
    pub fn column_sums(
        &self,
        dtype: Dtype,
        (dy, at): (&Buffer<D>, Rows),
        rows: usize,
        columns: usize,
        partial: &mut Buffer<D>,
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let kernel = kernel_for!(dtype, "columns_partial");
        if rows == 0 || columns == 0 {
            return Ok(());
        }
        let parts = Self::column_parts(rows);
        let total = product(kernel, "partial", parts, columns)?;
        check_sums(kernel, "out", out, columns)?;
        let width = 32 * 16 / dtype.size();
        let shared = THREADS / 32 * width * size_of::<f32>();
        let grid = [parts, columns.div_ceil(width), 1];
        let mut launch = Launch::new(kernel, grid, THREADS as u32, shared)?;
        launch.read("dy", dy, dtype, at.at, span(kernel, "dy", at, rows, columns)?)?;
        launch.write("partial", partial, Dtype::F32, 0, total)?;
        launch.size("rows", rows)?.size("columns", columns)?.u64(at.stride as u64);
        // SAFETY: the kernel reads `columns` numbers of each of `rows` rows and writes `columns` numbers a part.
        unsafe { self.launch(&launch) }?;
        self.add_parts(partial, parts, columns, [Some(out), None])
    }

    /// `outs[i][c] += sum_p partial[i, p, c]` for the outputs that there are; `partial` `[outputs, parts, columns]`.
    pub(super) fn add_parts(
        &self,
        partial: &Buffer<D>,
        parts: usize,
        columns: usize,
        outs: [Option<&mut Buffer<D>>; 2],
    ) -> Result<()> {
        let kernel = "columns_add";
        let count = outs.iter().flatten().count();
        let total = product(kernel, "partial", parts, columns)?;
        let grid = [columns.div_ceil(ADD_COLUMNS), count, 1];
        let shared = THREADS * 4 * size_of::<f32>();
        let mut launch = Launch::new(kernel, grid, THREADS as u32, shared)?;
        launch.read("partial", partial, Dtype::F32, 0, product(kernel, "partial", count, total)?)?;
        for out in outs.into_iter().flatten() {
            launch.update("out", out, Dtype::F32, 0, columns)?;
        }
        for _ in count..2 {
            launch.null();
        }
        launch.size("parts", parts)?.size("columns", columns)?;
        // SAFETY: of each output's parts the kernel reads `columns` numbers; it changes `columns` numbers of each output.
        unsafe { self.launch(&launch) }
    }
}

/// What the second launch would refuse: asked before the first one writes anything.
pub(super) fn check_sums<D: Device>(
    op: &'static str,
    what: &'static str,
    out: &Buffer<D>,
    columns: usize,
) -> Result<()> {
    let (expected, got) = if out.format() == Dtype::F32.into() {
        (columns, out.len())
    } else {
        (Dtype::F32.size(), out.format().size())
    };
    if got < expected || out.format() != Dtype::F32.into() {
        return Err(Error::Shape { op, what, expected, got });
    }
    Ok(())
}

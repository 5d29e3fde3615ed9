//! Launches of `cuda/embedding.cu`.

use super::kernel_for;
use super::{Buffer, Cuda, Device, Format, Launch, product};
use crate::backend::Rows;
use crate::element::Dtype;
use crate::error::{Error, Result};

const THREADS: usize = 128;
/// Of the gradient, the packs of a stretch of columns, and the most rows, of which a block counts some beyond the end.
const GATHER_THREADS: usize = 256;
const GATHER_PACKS: usize = 32;
const MOST_ROWS: usize = 1 << 30;

/// Blocks for `rows` rows of `width` numbers, a thread 16 bytes of a row.
fn grid(dtype: Dtype, rows: usize, width: usize) -> [usize; 3] {
    [rows, width.div_ceil(THREADS * (16 / dtype.size())), 1]
}

/// How many whole rows of `width` numbers, placed by `at`, lie in `len` numbers; as many as a u32 can name where all
/// lie on one another.
pub(super) fn rows_within(at: Rows, width: usize, len: usize) -> usize {
    match len.checked_sub(at.at).and_then(|n| n.checked_sub(width)) {
        Some(rest) => {
            rest.checked_div(at.stride).map_or(u32::MAX as usize, |n| (n + 1).min(u32::MAX as usize))
        }
        None => 0,
    }
}

/// Numbers from the first row's beginning to the last row's end.
pub(super) fn span(
    op: &'static str,
    what: &'static str,
    at: Rows,
    rows: usize,
    width: usize,
) -> Result<usize> {
    if rows == 0 { Ok(0) } else { Ok(product(op, what, rows - 1, at.stride)?.saturating_add(width)) }
}

impl<D: Device> Cuda<D> {
    /// `out[t, :] = table[ids[t], :] (+ positions.0[positions.1[t], :])` for `rows` rows of `width` numbers of format
    /// `dtype`; the tables are `[vocab, width]` and `[limit, width]` with the heights that their lengths give, ids U32. A
    /// token id or position beyond its table makes the row NaN.
    ///
    /// # Errors
    /// [`Error::Shape`] when a buffer is too short or of another format; those of the device.
    #[allow(clippy::too_many_arguments)]
    pub fn embed(
        &self,
        dtype: Dtype,
        table: &Buffer<D>,
        ids: &Buffer<D>,
        positions: Option<(&Buffer<D>, &Buffer<D>)>,
        rows: usize,
        width: usize,
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let kernel = kernel_for!(dtype, "embedding_embed");
        let total = product(kernel, "out", rows, width)?;
        if total == 0 {
            return Ok(());
        }
        let height = |table: &Buffer<D>| (table.len() / width).min(u32::MAX as usize);
        let vocab = height(table);
        let limit = positions.map_or(0, |(table, _)| height(table));
        let mut launch = Launch::new(kernel, grid(dtype, rows, width), THREADS as u32, 0)?;
        launch.read("table", table, dtype, 0, vocab * width)?;
        launch.read("ids", ids, Format::U32, 0, rows)?;
        launch.read_or_null("positions", positions.map(|p| p.0), dtype, 0, limit * width)?;
        launch.read_or_null("position ids", positions.map(|p| p.1), Format::U32, 0, rows)?;
        launch.write("out", out, dtype, 0, total)?;
        launch.size("width", width)?.u32(vocab as u32).u32(limit as u32);
        // SAFETY: the kernel reads id and position of each of `rows` rows, rows below `vocab` and `limit` of the
        // tables, and writes `width` numbers a row.
        unsafe { self.launch(&launch) }
    }

    /// `dst[r, :] = src[rows[r], :]` for `count` rows of `width` numbers of format `dtype`; `rows` is U32, `dst` dense. A
    /// row that does not lie in `src` whole makes that of `dst` NaN.
    ///
    /// # Errors
    /// [`Error::Shape`] when `rows` or `dst` is too short, or a buffer of another format; those of the device.
    pub fn gather(
        &self,
        dtype: Dtype,
        (src, at): (&Buffer<D>, Rows),
        rows: &Buffer<D>,
        count: usize,
        width: usize,
        dst: &mut Buffer<D>,
    ) -> Result<()> {
        let kernel = kernel_for!(dtype, "embedding_gather");
        let total = product(kernel, "dst", count, width)?;
        if total == 0 {
            return Ok(());
        }
        let limit = rows_within(at, width, src.len());
        let mut launch = Launch::new(kernel, grid(dtype, count, width), THREADS as u32, 0)?;
        launch.read("src", src, dtype, at.at.min(src.len()), span(kernel, "src", at, limit, width)?)?;
        launch.read("rows", rows, Format::U32, 0, count)?;
        launch.write("dst", dst, dtype, 0, total)?;
        launch.size("width", width)?.size("stride", at.stride)?.u32(limit as u32);
        // SAFETY: the kernel reads `count` row numbers and, of `src`, rows below `limit`, all of which lie in it.
        unsafe { self.launch(&launch) }
    }

    /// `dst[rows[r], :] = src[r, :]` for `count` rows of `width` numbers of format `dtype`; `rows` is U32. A row that
    /// does not lie in `dst` whole is left out. No row may be named twice: what it then holds is not defined.
    ///
    /// # Errors
    /// [`Error::Shape`] when `rows` or `src` is too short, rows of `dst` overlap, or a buffer is of another format;
    /// those of the device.
    pub fn scatter(
        &self,
        dtype: Dtype,
        (src, at): (&Buffer<D>, Rows),
        rows: &Buffer<D>,
        count: usize,
        width: usize,
        (dst, to): (&mut Buffer<D>, Rows),
    ) -> Result<()> {
        let kernel = kernel_for!(dtype, "embedding_scatter");
        if count == 0 || width == 0 {
            return Ok(());
        }
        if to.stride < width {
            return Err(Error::Shape { op: kernel, what: "stride of dst", expected: width, got: to.stride });
        }
        let limit = rows_within(to, width, dst.len());
        let start = to.at.min(dst.len());
        let mut launch = Launch::new(kernel, grid(dtype, count, width), THREADS as u32, 0)?;
        launch.read("src", src, dtype, at.at, span(kernel, "src", at, count, width)?)?;
        launch.read("rows", rows, Format::U32, 0, count)?;
        launch.update("dst", dst, dtype, start, span(kernel, "dst", to, limit, width)?)?;
        launch.size("width", width)?.size("stride of src", at.stride)?.size("stride of dst", to.stride)?;
        launch.u32(limit as u32);
        // SAFETY: the kernel reads `count` row numbers and rows of `src`, and writes, of `dst`, rows below `limit`, all
        // of which lie in it.
        unsafe { self.launch(&launch) }
    }

    /// The gradient of [`embed`](Self::embed) for one table: `d_table[ids[t], :] += dx[t, :]` for `rows` rows of `width` numbers
    /// of format `dtype`; `d_table` is `[table_rows, width]` f32, ids U32. The rows of an id are summed up in f32 and added
    /// once, in an order that depends on `ids` alone. An id that is not below `table_rows` counts nowhere.
    ///
    /// # Errors
    /// [`Error::Shape`] when a buffer is too short or of another format; those of the device.
    #[allow(clippy::too_many_arguments)]
    pub fn embed_backward(
        &self,
        dtype: Dtype,
        dx: &Buffer<D>,
        rows: usize,
        width: usize,
        d_table: &mut Buffer<D>,
        table_rows: usize,
        ids: &Buffer<D>,
    ) -> Result<()> {
        let kernel = kernel_for!(dtype, "embedding_backward");
        let total = product(kernel, "dx", rows, width)?;
        let table = product(kernel, "d_table", table_rows, width)?;
        if total == 0 || table == 0 {
            return Ok(());
        }
        if rows > MOST_ROWS {
            return Err(Error::Shape { op: kernel, what: "rows", expected: MOST_ROWS, got: rows });
        }
        let stretch = GATHER_PACKS * 16 / dtype.size();
        // Counts of the warps by turns, the numbers of rows that have an id, and each warp's sums.
        let warps = GATHER_THREADS / 32;
        let words = 2 * warps + 4 * GATHER_THREADS + warps * stretch;
        let grid = [rows, width.div_ceil(stretch), 1];
        let mut launch = Launch::new(kernel, grid, GATHER_THREADS as u32, words * size_of::<u32>())?;
        launch.read("dx", dx, dtype, 0, total)?;
        launch.read("ids", ids, Format::U32, 0, rows)?;
        launch.update("d_table", d_table, Dtype::F32, 0, table)?;
        launch.size("rows", rows)?.size("width", width)?.u32(table_rows.min(u32::MAX as usize) as u32);
        // SAFETY: the kernel reads `rows` ids and rows of `width` numbers, and changes rows below `table_rows`.
        unsafe { self.launch(&launch) }
    }
}

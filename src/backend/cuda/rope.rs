//! Launches of `cuda/rope.cu`.

use super::embedding::{rows_within, span};
use super::kernel_for;
use super::{Buffer, Cuda, Device, Format, Launch, product};
use crate::backend::{HeadShape, Rows};
use crate::element::Dtype;
use crate::error::{Error, Result};

const THREADS: usize = 128;

/// Blocks for `rows` rows of `width` numbers in pairs of 16-byte pieces.
fn grid(dtype: Dtype, rows: usize, width: usize) -> [usize; 3] {
    let pairs = width / (2 * 16 / dtype.size());
    [rows, pairs.div_ceil(THREADS).max(1), 1]
}

fn even(op: &'static str, head_dim: usize) -> Result<()> {
    if head_dim.is_multiple_of(2) {
        return Ok(());
    }
    Err(Error::Shape { op, what: "head width, which must be even", expected: head_dim + 1, got: head_dim })
}

/// `got`, which must be at least `expected`.
fn at_least(op: &'static str, what: &'static str, expected: usize, got: usize) -> Result<()> {
    if got < expected { Err(Error::Shape { op, what, expected, got }) } else { Ok(()) }
}

impl<D: Device> Cuda<D> {
    /// Rotates `heads` heads of width `head_dim`, placed by `at`, in place: pair `(i, i + head_dim / 2)` of row t turns
    /// by the angle whose cosine is `table[positions[t], i]` and whose sine is `table[positions[t], head_dim / 2 + i]`. `x`
    /// is of format `dtype`, `positions` U32, `table` `[P, head_dim]` f32. A position beyond the table makes its row NaN.
    ///
    /// # Errors
    /// [`Error::Shape`] when `head_dim` is odd, rows overlap, or a buffer is too short or of another format; those of
    /// the device.
    #[allow(clippy::too_many_arguments)]
    pub fn rope(
        &self,
        dtype: Dtype,
        x: &mut Buffer<D>,
        at: Rows,
        rows: usize,
        heads: usize,
        head_dim: usize,
        positions: &Buffer<D>,
        table: &Buffer<D>,
    ) -> Result<()> {
        let kernel = kernel_for!(dtype, "rope_rotate");
        self.turn(kernel, dtype, x, at, rows, heads, head_dim, positions, table)
    }

    /// The gradient of [`rope`](Self::rope), in place: every pair turns by the negative angle.
    ///
    /// # Errors
    /// As [`rope`](Self::rope).
    #[allow(clippy::too_many_arguments)]
    pub fn rope_backward(
        &self,
        dtype: Dtype,
        dx: &mut Buffer<D>,
        at: Rows,
        rows: usize,
        heads: usize,
        head_dim: usize,
        positions: &Buffer<D>,
        table: &Buffer<D>,
    ) -> Result<()> {
        let kernel = kernel_for!(dtype, "rope_back");
        self.turn(kernel, dtype, dx, at, rows, heads, head_dim, positions, table)
    }

    #[allow(clippy::too_many_arguments)]
    fn turn(
        &self,
        kernel: &'static str,
        dtype: Dtype,
        x: &mut Buffer<D>,
        at: Rows,
        rows: usize,
        heads: usize,
        head_dim: usize,
        positions: &Buffer<D>,
        table: &Buffer<D>,
    ) -> Result<()> {
        even(kernel, head_dim)?;
        let width = product(kernel, "heads", heads, head_dim)?;
        if rows == 0 || width == 0 {
            return Ok(());
        }
        if rows > 1 {
            at_least(kernel, "stride", width, at.stride)?;
        }
        let limit = (table.len() / head_dim).min(u32::MAX as usize);
        let mut launch = Launch::new(kernel, grid(dtype, rows, width), THREADS as u32, 0)?;
        launch.update("x", x, dtype, at.at, span(kernel, "x", at, rows, width)?)?;
        launch.read("positions", positions, Format::U32, 0, rows)?;
        launch.read("table", table, Dtype::F32, 0, limit * head_dim)?;
        launch
            .size("stride", at.stride)?
            .size("heads", heads)?
            .size("head width", head_dim)?
            .u32(limit as u32);
        // SAFETY: the kernel changes `width` numbers of each of `rows` rows and reads rows below `limit` of the table.
        unsafe { self.launch(&launch) }
    }

    /// Splits `rows` rows of q | k | v, placed by `qkv.1`, and turns queries and keys as [`rope`](Self::rope) does by
    /// `angles` (positions U32, table f32; not at all without). Queries go to `q` `[rows, heads * head_dim]` dense; keys
    /// and values to rows `rows_out[t]` (U32; t without) of what `k.1` and `v.1` place in `k.0` and in `v.0`, in `k.0` too
    /// where `v.0` is none. A row that does not lie there whole is left out; none may be named twice. Buffers are of
    /// format `dtype`; `shape.scale` is not looked at.
    ///
    /// # Errors
    /// [`Error::Shape`] when `head_dim` is odd, rows overlap, or a buffer is too short or of another format; those of
    /// the device.
    #[allow(clippy::too_many_arguments)]
    pub fn rope_qkv(
        &self,
        dtype: Dtype,
        (qkv, at): (&Buffer<D>, Rows),
        rows: usize,
        shape: HeadShape,
        angles: Option<(&Buffer<D>, &Buffer<D>)>,
        q: &mut Buffer<D>,
        k: (&mut Buffer<D>, Rows),
        v: (Option<&mut Buffer<D>>, Rows),
        rows_out: Option<&Buffer<D>>,
    ) -> Result<()> {
        let kernel = kernel_for!(dtype, "rope_qkv");
        let HeadShape { heads, kv_heads, head_dim, .. } = shape;
        even(kernel, head_dim)?;
        let q_width = product(kernel, "heads", heads, head_dim)?;
        let kv_width = product(kernel, "kv_heads", kv_heads, head_dim)?;
        let width = q_width.saturating_add(kv_width.saturating_mul(2));
        if rows == 0 || width == 0 {
            return Ok(());
        }
        if width > i32::MAX as usize {
            return Err(Error::Shape {
                op: kernel,
                what: "width of q | k | v",
                expected: i32::MAX as usize,
                got: width,
            });
        }
        let ((k, k_at), (v, v_at)) = (k, v);
        at_least(kernel, "stride of k", kv_width, k_at.stride)?;
        at_least(kernel, "stride of v", kv_width, v_at.stride)?;
        let v_len = v.as_ref().map_or(k.len(), |v| v.len());
        let mut limit_out = rows_within(k_at, kv_width, k.len()).min(rows_within(v_at, kv_width, v_len));
        if rows_out.is_none() {
            at_least(kernel, "rows of k and v", rows, limit_out)?;
            limit_out = rows;
        }
        let k_span = span(kernel, "k", k_at, limit_out, kv_width)?;
        let v_span = span(kernel, "v", v_at, limit_out, kv_width)?;
        let limit = angles.map_or(0, |(_, table)| (table.len() / head_dim).min(u32::MAX as usize));

        let mut launch = Launch::new(kernel, grid(dtype, rows, width), THREADS as u32, 0)?;
        launch.read("qkv", qkv, dtype, at.at, span(kernel, "qkv", at, rows, width)?)?;
        launch.read_or_null("positions", angles.map(|a| a.0), Format::U32, 0, rows)?;
        launch.read_or_null("table", angles.map(|a| a.1), Dtype::F32, 0, limit * head_dim)?;
        launch.read_or_null("rows_out", rows_out, Format::U32, 0, rows)?;
        launch.write("q", q, dtype, 0, rows * q_width)?;
        let (k_offset, v_offset) = match v {
            Some(v) => {
                let (k_start, v_start) = (k_at.at.min(k.len()), v_at.at.min(v.len()));
                launch.update("k", k, dtype, k_start, k_span)?.update("v", v, dtype, v_start, v_span)?;
                (0, 0)
            }
            None => {
                disjoint(kernel, k_at, v_at, kv_width, k_span, v_span)?;
                let first = k_at.at.min(v_at.at).min(k.len());
                let end = (k_at.at + k_span).max(v_at.at + v_span).min(k.len());
                launch.update("k | v", k, dtype, first, end - first)?.null();
                // Not looked at where no row lies in the buffer.
                (k_at.at.saturating_sub(first), v_at.at.saturating_sub(first))
            }
        };
        launch.size("stride", at.stride)?.size("heads", heads)?.size("kv_heads", kv_heads)?;
        launch.size("head width", head_dim)?.u64(k_offset as u64).u64(v_offset as u64);
        launch.size("stride of k", k_at.stride)?.size("stride of v", v_at.stride)?;
        launch.u32(limit as u32).u32(limit_out as u32);
        // SAFETY: the kernel reads `width` numbers of each of `rows` rows and rows below `limit` of the table; it writes
        // `rows` rows of q and, of k and v, rows below `limit_out`, all of which lie in the parts named.
        unsafe { self.launch(&launch) }
    }
}

/// Rows of keys and rows of values in one buffer do not overlap: they lie beside or behind one another.
fn disjoint(op: &'static str, k: Rows, v: Rows, width: usize, k_span: usize, v_span: usize) -> Result<()> {
    let apart = k.at.abs_diff(v.at);
    let behind = apart >= if k.at < v.at { k_span } else { v_span };
    let beside = k.stride == v.stride && apart >= width && apart + width <= k.stride;
    if behind || beside {
        Ok(())
    } else {
        Err(Error::Shape { op, what: "distance of k and v", expected: width, got: apart })
    }
}

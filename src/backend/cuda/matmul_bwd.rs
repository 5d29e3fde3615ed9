//! The gradients of a matrix product: of its input, a product with the weight's axes in each other's place, and of its
//! weight, the `tn` kernels of `cuda/matmul.cu` and `cuda/matmul_f32.cu`.

use std::ops::Range;

use super::kernel_for;
use super::matmul::{F32_SHAPE, Product, begins_on_packs, extent};
use super::{Buffer, Cuda, Device, Format, GemmCall, Launch, LinearEpilogue, Matrix, Tile};
use crate::backend::{Layout, Rows};
use crate::element::Dtype;
use crate::error::{Error, Result};

const INPUT: &str = "linear_backward_input";
const WEIGHT: &str = "linear_backward_weight";

/// A factor of a weight's gradient: rows of `width` numbers, one for each that is summed over.
struct Factor<'a, D: Device> {
    name: &'static str,
    buffer: &'a Buffer<D>,
    at: usize,
    stride: usize,
    width: usize,
}

impl<D: Device> Factor<'_, D> {
    /// Numbers from the first one of `rows` rows on that the kernels which copy 16 bytes at a time read: whole packs, where
    /// rows begin on 16 bytes and the last pack of the last one lies in the buffer. What lies behind a row's own numbers
    /// may be anything: it is multiplied into what is not stored.
    fn in_packs(&self, dtype: Dtype, rows: usize) -> Option<usize> {
        let stride = if rows == 1 { 0 } else { self.stride };
        let whole = self.width.next_multiple_of(16 / dtype.size());
        let read = extent(WEIGHT, self.name, rows, self.stride, whole).ok()?;
        let fits = self.at.checked_add(read)? <= self.buffer.len();
        (fits && begins_on_packs(dtype, self.buffer.address(self.at), stride)).then_some(read)
    }
}

/// Of the `tn` kernels.
fn kernel(tile: Tile, dtype: Dtype) -> &'static str {
    match (dtype, tile) {
        (Dtype::F32, _) => "matmul_tn_f32",
        (_, Tile::Large) => kernel_for!(dtype, "matmul_tn_large"),
        (_, Tile::Medium) => kernel_for!(dtype, "matmul_tn_medium"),
        // It has no few: nothing is gained with few rows of the weight, all of which are written.
        (_, Tile::Small | Tile::Few) => kernel_for!(dtype, "matmul_tn_small"),
        (_, Tile::Any) => kernel_for!(dtype, "matmul_tn_any"),
    }
}

impl<D: Device> Cuda<D> {
    /// The gradient of the input of a [`linear`](Self::linear): `dx[t, i] = sum_j dy[t, j] W[i, outputs.start + j]`, or `+=`
    /// with `accumulate`, for `rows` rows. `dy` has `outputs.len()` columns and `dx` `weight.inputs()`, both placed by
    /// their [`Rows`]; dy and weight are of format `dtype`, dx of the same or f32. The order of a sum depends on nothing but
    /// `outputs.len()`.
    ///
    /// With `padded` the caller promises that what lies in the buffer behind a row of `dy`, up to a multiple of 8 columns,
    /// is finite: it is multiplied by zeros. With it and rows that begin on 16 bytes, 50 257 columns of logits are read as
    /// quickly as 50 264, where the weight is `[outputs, inputs]`; without it number by number.
    ///
    /// # Errors
    /// [`Error::Shape`] when a buffer is too short or of another format, or rows of `dx` overlap; those of the device.
    #[allow(clippy::too_many_arguments)]
    pub fn linear_backward_input(
        &self,
        dtype: Dtype,
        dy: (&Buffer<D>, Rows),
        padded: bool,
        rows: usize,
        weight: &Matrix<D>,
        outputs: Range<usize>,
        accumulate: bool,
        dx: (&mut Buffer<D>, Rows),
    ) -> Result<()> {
        self.linear_backward_input_by(None, dtype, dy, padded, rows, weight, outputs, accumulate, dx)
    }

    /// [`linear_backward_input`](Self::linear_backward_input) with a tile of the caller's choice, where its conditions hold.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn linear_backward_input_by(
        &self,
        tile: Option<Tile>,
        dtype: Dtype,
        dy: (&Buffer<D>, Rows),
        padded: bool,
        rows: usize,
        weight: &Matrix<D>,
        outputs: Range<usize>,
        accumulate: bool,
        dx: (&mut Buffer<D>, Rows),
    ) -> Result<()> {
        let wrong = |what, expected, got| Err(Error::Shape { op: INPUT, what, expected, got });
        if outputs.start > outputs.end || outputs.end > weight.outputs() {
            return wrong("columns of the weight", weight.outputs(), outputs.end.max(outputs.start));
        }
        if weight.dtype() != dtype {
            return wrong("bytes of a number of the weight", dtype.size(), weight.dtype().size());
        }
        let out_dtype = match dx.0.format() {
            Format::Float(Dtype::F32) => Dtype::F32,
            _ => dtype,
        };
        // What was a row of the weight's product is now a column, and the other way round.
        let (first, layout, stride) = match weight.layout() {
            Layout::OutIn => (outputs.start * weight.inputs(), Layout::InOut, weight.inputs()),
            Layout::InOut => (outputs.start, Layout::OutIn, weight.outputs()),
        };
        let product = Product {
            op: INPUT,
            dtype,
            names: ["dy", "dx"],
            x: dy,
            padded,
            rows,
            columns: weight.inputs(),
            inputs: outputs.len(),
            weight: (weight.buffer(), first),
            layout,
            stride,
            epilogue: LinearEpilogue { bias: None, activation: None, accumulate },
            first_column: 0,
            out: dx,
            out_dtype,
        };
        self.multiply(tile, product)
    }

    /// The gradient of the weight of a [`linear`](Self::linear): `dW[i, j] += sum_t x[t, i] dy[t, j]` for `rows` rows, x of
    /// `inputs` columns and dy of `outputs`, placed by their [`Rows`], of format `dtype`. `dweight` is f32, dense, and laid out
    /// as `layout` says; the sum over the rows is added to it and rounded once. The order of a sum depends on nothing but
    /// `rows`.
    ///
    /// # Errors
    /// [`Error::Shape`] when x or dy is too short or of another format, or `dweight` is not `inputs * outputs` numbers of
    /// f32; those of the device.
    #[allow(clippy::too_many_arguments)]
    pub fn linear_backward_weight(
        &self,
        dtype: Dtype,
        x: (&Buffer<D>, Rows),
        dy: (&Buffer<D>, Rows),
        rows: usize,
        inputs: usize,
        outputs: usize,
        layout: Layout,
        dweight: &mut Buffer<D>,
    ) -> Result<()> {
        self.linear_backward_weight_by(None, dtype, x, dy, rows, inputs, outputs, layout, dweight)
    }

    /// [`linear_backward_weight`](Self::linear_backward_weight) with a tile of the caller's choice, where its conditions hold.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn linear_backward_weight_by(
        &self,
        tile: Option<Tile>,
        dtype: Dtype,
        (x, x_rows): (&Buffer<D>, Rows),
        (dy, dy_rows): (&Buffer<D>, Rows),
        rows: usize,
        inputs: usize,
        outputs: usize,
        layout: Layout,
        dweight: &mut Buffer<D>,
    ) -> Result<()> {
        let expected = super::product(WEIGHT, "dweight", inputs, outputs)?;
        if dweight.len() != expected {
            let got = dweight.len();
            return Err(Error::Shape { op: WEIGHT, what: "dweight", expected, got });
        }
        if rows == 0 || expected == 0 {
            return Ok(());
        }
        let factor = |name, buffer, Rows { at, stride }: Rows, width| {
            // The stride of a single row is of no account.
            Factor { name, buffer, at, stride: if rows == 1 { width } else { stride }, width }
        };
        let (x, dy) = (factor("x", x, x_rows, inputs), factor("dy", dy, dy_rows, outputs));
        // Rows and columns of the gradient, as it is laid out.
        let (a, b) = match layout {
            Layout::InOut => (x, dy),
            Layout::OutIn => (dy, x),
        };
        let packed = a.in_packs(dtype, rows).zip(b.in_packs(dtype, rows)).filter(|_| dtype != Dtype::F32);
        let best = || Tile::choose_of_many(a.width, b.width, self.device.facts().multiprocessors);
        let chosen = tile.is_some();
        let tile = match packed {
            Some(_) => tile.unwrap_or_else(best),
            None => Tile::Any,
        };
        let shape = match (dtype, tile) {
            (Dtype::F32, _) => F32_SHAPE,
            (_, Tile::Few) => Tile::Small.shape(),
            _ => tile.shape(),
        };
        let (a_read, b_read) = match packed.filter(|_| tile != Tile::Any) {
            Some(read) => read,
            None => (
                extent(WEIGHT, a.name, rows, a.stride, a.width)?,
                extent(WEIGHT, b.name, rows, b.stride, b.width)?,
            ),
        };
        let (down, across) = (a.width.div_ceil(shape.rows), b.width.div_ceil(shape.columns));
        let blocks = super::product(WEIGHT, "tiles", down, across)?;

        let mut launch = Launch::new(kernel(tile, dtype), [blocks, 1, 1], shape.threads, shape.shared)?;
        launch.read(a.name, a.buffer, dtype, a.at, a_read)?;
        launch.read(b.name, b.buffer, dtype, b.at, b_read)?;
        let out = dweight.address(0);
        launch.update("dweight", dweight, Dtype::F32, 0, expected)?;
        launch.size("rows of dweight", a.width)?.size("columns of dweight", b.width)?.size("rows", rows)?;
        launch.size("stride", a.stride)?.size("stride", b.stride)?;
        if let Some(library) = self.library.as_ref().filter(|_| !chosen) {
            let call = GemmCall {
                dtype,
                out_dtype: Dtype::F32,
                rows: a.width,
                columns: b.width,
                inputs: rows,
                x: a.buffer.address(a.at),
                x_stride: a.stride,
                x_layout: Layout::InOut,
                weight: b.buffer.address(b.at),
                weight_stride: b.stride,
                layout: Layout::InOut,
                bias: None,
                activation: None,
                accumulate: true,
                out,
                out_stride: b.width,
            };
            // SAFETY: the launch, which is of the same numbers, was put together, so they lie in their buffers.
            if unsafe { library.multiply(&call) }? {
                return Ok(());
            }
        }
        // SAFETY: rows and columns of both factors and of dweight that the sizes name lie in the parts above; the kernels
        // that copy 16 bytes at a time are launched only on rows that allow it, with what they read declared.
        unsafe { self.device.launch(&launch) }
    }
}

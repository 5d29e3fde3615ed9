//! The gradients of a matrix product: of its input, a product with the weight's axes in each other's place, and of its
//! weight, the `tn` kernels of `cuda/matmul.cu` and `cuda/matmul_f32.cu`.

use std::ops::Range;

use super::kernel_for;
use super::matmul::{Product, begins_on_packs, extent};
use super::tile::F32_SHAPE;
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
        unsafe { self.launch(&launch) }
    }
}

#[cfg(all(test, feature = "simt"))]
mod simt_tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::backend::cuda::simt::{Options, Simt};

    const BF16: Dtype = Dtype::Bf16;

    fn refusal(done: Result<()>) -> &'static str {
        match done {
            Ok(()) => "",
            Err(Error::Shape { what, .. }) => what,
            Err(e) => panic!("{e}"),
        }
    }

    #[test]
    fn gradients_that_do_not_fit_are_refused() {
        let device = Simt::new(Options::default());
        let cuda = Cuda::new(device.clone());
        let buffer = |dtype, len| Buffer::floats(&device, dtype, &vec![1.0; len]).unwrap();
        let dy = buffer(BF16, 12);
        let matrix = Matrix::of(buffer(BF16, 32), BF16, Layout::InOut, [8, 4]).unwrap();
        let input = |dtype, rows, outputs, at: usize, dx: Rows, out| {
            let mut to = Buffer::new(&device, out, 24).unwrap();
            let dy = (&dy, Rows { at, stride: 4 });
            refusal(cuda.linear_backward_input(dtype, dy, true, rows, &matrix, outputs, false, (&mut to, dx)))
        };
        let (f32, f16, dense) = (Dtype::F32, Dtype::F16, Rows::dense(8));
        assert_eq!(input(BF16, 3, 0..4, 0, dense, BF16), "");
        assert_eq!(input(BF16, 3, 0..4, 0, dense, f32), "");
        assert_eq!(input(BF16, 0, 0..4, 0, dense, BF16), "");
        assert_eq!(input(BF16, 3, 2..2, 0, dense, BF16), "");
        assert_eq!(input(BF16, 4, 0..4, 0, dense, BF16), "dy");
        assert_eq!(input(BF16, 3, 0..4, 1, dense, BF16), "dy");
        assert_eq!(input(BF16, 3, 0..4, usize::MAX, dense, BF16), "dy");
        assert_eq!(input(BF16, 3, 0..4, 0, Rows::dense(9), BF16), "dx");
        assert_eq!(input(BF16, 3, 0..4, 0, Rows::dense(7), BF16), "stride of dx");
        assert_eq!(input(BF16, 3, 0..4, 0, dense, f16), "dx");
        assert_eq!(input(BF16, 3, 1..5, 0, dense, BF16), "columns of the weight");
        assert_eq!(input(f32, 3, 0..4, 0, dense, f32), "bytes of a number of the weight");

        let x = buffer(BF16, 24);
        let weight = |dtype, rows, inputs, at: usize, out, len| {
            let mut to = Buffer::floats(&device, out, &vec![0.0; len]).unwrap();
            let (x, dy) = ((&x, Rows { at, stride: 8 }), (&dy, Rows::dense(4)));
            refusal(cuda.linear_backward_weight(dtype, x, dy, rows, inputs, 4, Layout::OutIn, &mut to))
        };
        assert_eq!(weight(BF16, 3, 8, 0, f32, 32), "");
        assert_eq!(weight(BF16, 0, 8, 0, f32, 32), "");
        assert_eq!(weight(BF16, 3, 0, 0, f32, 0), "");
        assert_eq!(weight(BF16, 3, 8, 1, f32, 32), "x");
        assert_eq!(weight(BF16, 3, 8, usize::MAX, f32, 32), "x");
        assert_eq!(weight(BF16, 4, 4, 0, f32, 16), "dy");
        assert_eq!(weight(BF16, usize::MAX, 4, 0, f32, 16), "dy");
        assert_eq!(weight(f16, 3, 8, 0, f32, 32), "dy");
        assert_eq!(weight(BF16, 3, 8, 0, BF16, 32), "dweight");
        assert_eq!(weight(BF16, 3, 8, 0, f32, 33), "dweight");
        assert_eq!(weight(BF16, 3, usize::MAX, 0, f32, 33), "dweight");
    }

    /// Kernels and the bytes of their first two arguments, of the gradients of three rows of 41 numbers of logits, 48 apart.
    fn launched(end: usize, padded: bool, layout: Layout) -> Vec<(String, [u64; 2])> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let watch = move |launch: &mut Launch<'_>| {
            let bytes = |i: usize| launch.arguments()[i].memory.unwrap().1;
            log.lock().unwrap().push((launch.kernel.to_owned(), [bytes(0), bytes(1)]));
        };
        let device = Simt::with_bugs(Options::default(), "", Some(Box::new(watch)));
        let cuda = Cuda::new(device.clone());
        let ones = |dtype, len| Buffer::floats(&device, dtype, &vec![1.0; len]).unwrap();
        let (x, dy) = (ones(BF16, 24), ones(BF16, end));
        let dy = (&dy, Rows::dense(48));
        let matrix = Matrix::of(ones(BF16, 8 * 41), BF16, layout, [8, 41]).unwrap();
        let (mut dx, mut dweight) = (ones(BF16, 24), ones(Dtype::F32, 8 * 41));
        let to = (&mut dx, Rows::dense(8));
        cuda.linear_backward_input(BF16, dy, padded, 3, &matrix, 0..41, false, to).unwrap();
        assert_eq!(dx.to_f32(&device).unwrap(), [41.0; 24]);
        let x = (&x, Rows::dense(8));
        cuda.linear_backward_weight(BF16, x, dy, 3, 8, 41, layout, &mut dweight).unwrap();
        assert_eq!(dweight.to_f32(&device).unwrap(), [4.0; 8 * 41]);
        let all = seen.lock().unwrap().clone();
        all.into_iter().filter(|(kernel, _)| kernel.starts_with("matmul")).collect()
    }

    #[test]
    fn rows_that_are_padded_are_read_in_packs() {
        let case = |kernel: &str, first: usize, second: usize| {
            (format!("matmul_{kernel}_bf16"), [2 * first as u64, 2 * second as u64])
        };
        let (whole, cut) = (2 * 48 + 48, 2 * 48 + 41);
        let (out_in, in_out) = (Layout::OutIn, Layout::InOut);
        let packed = 2 * 48 + 48;
        assert_eq!(
            launched(whole, true, out_in),
            [case("nn_few", packed, 41 * 8), case("tn_small", packed, 24)]
        );
        // No promise, or no room behind the last row.
        assert_eq!(launched(whole, false, out_in)[0], case("nn_any", cut, 41 * 8));
        assert_eq!(launched(cut, true, out_in), [case("nn_any", cut, 41 * 8), case("tn_any", cut, 24)]);
        // Rows of the weight do not begin on 16 bytes; those of its gradient need not.
        assert_eq!(
            launched(whole, true, in_out),
            [case("nt_any", cut, 41 * 8), case("tn_small", 24, packed)]
        );
    }

    #[test]
    fn logits_in_padded_rows_are_those_in_dense_ones() {
        let device = Simt::new(Options::default());
        let cuda = Cuda::new(device.clone());
        let numbers = |len: usize| -> Vec<f32> { (0..len).map(|i| (i * 7 % 11) as f32 - 5.0).collect() };
        let x = Buffer::floats(&device, BF16, &numbers(5 * 16)).unwrap();
        let weight = Buffer::floats(&device, BF16, &numbers(41 * 16)).unwrap();
        let matrix = Matrix::of(weight, BF16, Layout::OutIn, [16, 41]).unwrap();
        for out_dtype in [BF16, Dtype::F32] {
            let run = |stride: usize| {
                let mut out = Buffer::floats(&device, out_dtype, &vec![0.0; 5 * stride]).unwrap();
                let (x, to) = ((&x, Rows::dense(16)), (&mut out, Rows::dense(stride)));
                cuda.linear(BF16, x, 5, &matrix, 0..41, LinearEpilogue::NONE, to, out_dtype).unwrap();
                out.to_f32(&device).unwrap()
            };
            let (dense, padded) = (run(41), run(64));
            for (row, wide) in dense.chunks(41).zip(padded.chunks(64)) {
                assert_eq!(row, &wide[..41]);
                assert_eq!(wide[41..], [0.0; 23]);
            }
        }
    }
}

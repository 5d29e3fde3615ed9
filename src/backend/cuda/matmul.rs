//! Launches of `cuda/matmul.cu` and `cuda/matmul_f32.cu`.

use std::ops::Range;

use super::tile::{F32_SHAPE, Tile};
use super::{Buffer, Cuda, Device, GemmCall, Launch};
use crate::backend::{Layout, Rows};
use crate::config::Activation;
use crate::element::{Dtype, StoredTensor};
use crate::error::{Error, Result};

/// A weight on a device, as it is stored.
#[derive(Debug)]
pub struct Matrix<D: Device> {
    buffer: Buffer<D>,
    dtype: Dtype,
    layout: Layout,
    inputs: usize,
    outputs: usize,
    /// Of a weight that is to be trained in 16 bits, its numbers in f32, until an optimiser takes them.
    original: Option<Buffer<D>>,
}

impl<D: Device> Matrix<D> {
    /// A copy of a two-dimensional tensor, `[outputs, inputs]` or `[inputs, outputs]` by `layout`, in its own format.
    ///
    /// # Errors
    /// [`Error::Shape`] when the tensor has not two dimensions; [`Error::Memory`].
    pub fn upload(device: &D, tensor: &StoredTensor, layout: Layout) -> Result<Self> {
        let sizes = sizes(tensor.shape(), layout)?;
        Self::of(Buffer::stored(device, tensor)?, tensor.dtype(), layout, sizes)
    }

    /// A matrix out of a buffer of exactly its numbers; `[inputs, outputs]` are its sizes in either layout.
    ///
    /// # Errors
    /// [`Error::Shape`] when the buffer is of another length or format.
    pub fn of(
        buffer: Buffer<D>,
        dtype: Dtype,
        layout: Layout,
        [inputs, outputs]: [usize; 2],
    ) -> Result<Self> {
        let expected = super::product("matrix", "numbers", inputs, outputs)?;
        if buffer.len() != expected {
            return Err(Error::Shape { op: "matrix", what: "numbers", expected, got: buffer.len() });
        }
        if buffer.format() != dtype.into() {
            let (expected, got) = (dtype.size(), buffer.format().size());
            return Err(Error::Shape { op: "matrix", what: "bytes of a number", expected, got });
        }
        Ok(Self { buffer, dtype, layout, inputs, outputs, original: None })
    }

    /// The same with its numbers in f32 beside them, for an optimiser.
    ///
    /// # Errors
    /// [`Error::Shape`] when they are of another length or format.
    pub(super) fn with_original(self, original: Buffer<D>) -> Result<Self> {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let original = Self::of(original, Dtype::F32, self.layout, [inputs, outputs])?.buffer;
        Ok(Self { original: Some(original), ..self })
    }

    /// The numbers, to be changed, and those in f32 where an optimiser has not taken them.
    pub(super) fn parts_mut(&mut self) -> (&mut Buffer<D>, &mut Option<Buffer<D>>) {
        (&mut self.buffer, &mut self.original)
    }

    /// The numbers, in the stored order.
    pub fn buffer(&self) -> &Buffer<D> {
        &self.buffer
    }

    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    pub fn inputs(&self) -> usize {
        self.inputs
    }

    pub fn outputs(&self) -> usize {
        self.outputs
    }
}

/// `[inputs, outputs]` of a weight whose stored shape is `shape`.
///
/// # Errors
/// [`Error::Shape`] when that has not two dimensions.
pub(super) fn sizes(shape: &[usize], layout: Layout) -> Result<[usize; 2]> {
    let &[rows, columns] = shape else {
        let (expected, got) = (2, shape.len());
        return Err(Error::Shape { op: "matrix", what: "dimensions of a weight", expected, got });
    };
    Ok(match layout {
        Layout::OutIn => [columns, rows],
        Layout::InOut => [rows, columns],
    })
}

/// What happens to a matrix product before it is stored: `out = activation(x W + bias)`, or `out += x W + bias` with
/// `accumulate`.
#[derive(Debug)]
pub struct LinearEpilogue<'a, D: Device> {
    /// One number an output column of the *whole* matrix, in the activations' format.
    pub bias: Option<&'a Buffer<D>>,
    /// Applied after the bias; not together with `accumulate`.
    pub activation: Option<Activation>,
    /// Adds to what `out` holds instead of overwriting it; the sum is rounded once.
    pub accumulate: bool,
}

impl<D: Device> LinearEpilogue<'_, D> {
    /// `out = x W`.
    pub const NONE: Self = Self { bias: None, activation: None, accumulate: false };
}

/// As in `cuda/common/gemm.cuh`.
fn flags<D: Device>(epilogue: &LinearEpilogue<'_, D>, widened: bool) -> u32 {
    const ACCUMULATE: u32 = 4;
    const OUT_F32: u32 = 8;
    let activation = match epilogue.activation {
        None => 0,
        Some(Activation::GeluTanh) => 1,
        Some(Activation::GeluErf) => 2,
        Some(Activation::Silu) => 3,
    };
    activation | if epilogue.accumulate { ACCUMULATE } else { 0 } | if widened { OUT_F32 } else { 0 }
}

const OP: &str = "linear";

/// Numbers from the first one of `rows` rows of `width`, `stride` apart, to the last.
pub(super) fn extent(
    op: &'static str,
    what: &'static str,
    rows: usize,
    stride: usize,
    width: usize,
) -> Result<usize> {
    let over = Error::Shape { op, what, expected: usize::MAX, got: stride };
    match rows.checked_sub(1) {
        Some(before) if width > 0 => {
            before.checked_mul(stride).and_then(|n| n.checked_add(width)).ok_or(over)
        }
        _ => Ok(0),
    }
}

/// Whether rows from `address` on, `stride` numbers of `dtype` apart, all begin on 16 bytes.
pub(super) fn begins_on_packs(dtype: Dtype, address: u64, stride: usize) -> bool {
    address.is_multiple_of(16) && stride.is_multiple_of(16 / dtype.size())
}

/// A product of rows with a matrix as the kernels see it: [`Cuda::linear`] and the gradient of its input.
pub(super) struct Product<'a, D: Device> {
    pub op: &'static str,
    pub dtype: Dtype,
    /// What a refusal names x and `out`.
    pub names: [&'static str; 2],
    pub x: (&'a Buffer<D>, Rows),
    /// Numbers behind a row of x, up to a multiple of 8, may be read where they lie in its buffer: they are finite.
    pub padded: bool,
    pub rows: usize,
    pub columns: usize,
    /// What is summed over.
    pub inputs: usize,
    /// The weight, and where its first number lies.
    pub weight: (&'a Buffer<D>, usize),
    /// `[columns, inputs]` or `[inputs, columns]`, rows so many numbers apart.
    pub layout: Layout,
    pub stride: usize,
    /// The bias begins with the column of this number.
    pub epilogue: LinearEpilogue<'a, D>,
    pub first_column: usize,
    pub out: (&'a mut Buffer<D>, Rows),
    pub out_dtype: Dtype,
}

impl<D: Device> Cuda<D> {
    /// Matrix product of `rows` rows of `x`, `weight.inputs()` columns placed by their [`Rows`], with the columns
    /// `outputs` of the weight: `out[t, j] = sum_k x[t, k] W[k, outputs.start + j]`, then the epilogue, into rows of
    /// `outputs.len()` columns of `out`. `x`, weight and bias are of format `dtype`, `out` is of `out_dtype`: the same, or f32.
    ///
    /// # Errors
    /// [`Error::Shape`] when a buffer is too short or of another format, a bias has not one number an output of the whole
    /// weight, rows of `out` overlap, or an activation meets `accumulate`; those of the device.
    #[allow(clippy::too_many_arguments)]
    pub fn linear(
        &self,
        dtype: Dtype,
        x: (&Buffer<D>, Rows),
        rows: usize,
        weight: &Matrix<D>,
        outputs: Range<usize>,
        epilogue: LinearEpilogue<'_, D>,
        out: (&mut Buffer<D>, Rows),
        out_dtype: Dtype,
    ) -> Result<()> {
        self.linear_by(None, dtype, x, rows, weight, outputs, epilogue, out, out_dtype)
    }

    /// [`linear`](Self::linear) with a tile of the caller's choice, where its conditions hold.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn linear_by(
        &self,
        tile: Option<Tile>,
        dtype: Dtype,
        x: (&Buffer<D>, Rows),
        rows: usize,
        weight: &Matrix<D>,
        outputs: Range<usize>,
        epilogue: LinearEpilogue<'_, D>,
        out: (&mut Buffer<D>, Rows),
        out_dtype: Dtype,
    ) -> Result<()> {
        let (inputs, columns) = (weight.inputs, outputs.len());
        let wrong = |what, expected, got| Err(Error::Shape { op: OP, what, expected, got });
        if outputs.start > outputs.end || outputs.end > weight.outputs {
            return wrong("columns of the weight", weight.outputs, outputs.end.max(outputs.start));
        }
        if weight.dtype != dtype {
            return wrong("bytes of a number of the weight", dtype.size(), weight.dtype.size());
        }
        if out_dtype != dtype && out_dtype != Dtype::F32 {
            return wrong("bytes of a number of out", dtype.size(), out_dtype.size());
        }
        if let Some(bias) = epilogue.bias.filter(|b| b.len() != weight.outputs) {
            return wrong("bias", weight.outputs, bias.len());
        }
        if epilogue.accumulate && epilogue.activation.is_some() {
            return wrong("activations of an accumulation", 0, 1);
        }
        // Where the columns lie in the weight, and how its rows do.
        let (first, stride) = match weight.layout {
            Layout::OutIn => (outputs.start * inputs, inputs),
            Layout::InOut => (outputs.start, weight.outputs),
        };
        let product = Product {
            op: OP,
            dtype,
            names: ["x", "out"],
            x,
            padded: false,
            rows,
            columns,
            inputs,
            weight: (&weight.buffer, first),
            layout: weight.layout,
            stride,
            epilogue,
            first_column: outputs.start,
            out,
            out_dtype,
        };
        self.multiply(tile, product)
    }

    /// By the library, where there is one and no tile is asked for, or by our kernels.
    ///
    /// # Errors
    /// [`Error::Shape`] when rows of `out` overlap or something does not lie in its buffer; those of the device.
    pub(super) fn multiply(&self, tile: Option<Tile>, product: Product<'_, D>) -> Result<()> {
        let Product { op, dtype, rows, columns, inputs, layout, stride, epilogue, out_dtype, .. } = product;
        let ((x, x_rows), (weight, first)) = (product.x, product.weight);
        let ((out, out_rows), [x_name, out_name]) = (product.out, product.names);
        if rows > 1 && out_rows.stride < columns {
            let (expected, got) = (columns, out_rows.stride);
            let what = if out_name == "out" { "stride of out" } else { "stride of dx" };
            return Err(Error::Shape { op, what, expected, got });
        }
        if rows == 0 || columns == 0 {
            return Ok(());
        }
        // Addresses are looked at before the launch has checked the whole.
        for (what, expected, got) in [(x_name, x_rows.at, x.len()), (out_name, out_rows.at, out.len())] {
            if expected > got {
                return Err(Error::Shape { op, what, expected, got });
            }
        }
        let (lines, width) = if layout == Layout::OutIn { (columns, inputs) } else { (inputs, columns) };
        // The stride of a single row is of no account.
        let (x_stride, out_stride) =
            if rows == 1 { (inputs, columns) } else { (x_rows.stride, out_rows.stride) };

        let in_packs = |width: usize| width.is_multiple_of(16 / dtype.size());
        let aligned = begins_on_packs(dtype, x.address(x_rows.at), if rows == 1 { 0 } else { x_stride })
            && begins_on_packs(dtype, weight.address(first), stride)
            && in_packs(width);
        // Rows of x whose last 16 bytes are not all of the product's: read whole with `nn`, where they meet zeros.
        let whole = inputs.next_multiple_of(16 / dtype.size());
        let in_whole = product.padded
            && layout == Layout::InOut
            && extent(op, x_name, rows, x_stride, whole)
                .is_ok_and(|len| x_rows.at.checked_add(len).is_some_and(|end| end <= x.len()));
        let packed = aligned && (in_packs(inputs) || in_whole);
        let best = || Tile::choose(rows, columns, self.device.facts().multiprocessors);
        let (chosen, out_address) = (tile.is_some(), out.address(out_rows.at));
        let tile = if packed { tile.unwrap_or_else(best) } else { Tile::Any };
        let (kernel, shape) = match (dtype, layout) {
            (Dtype::F32, Layout::OutIn) => ("matmul_nt_f32", F32_SHAPE),
            (Dtype::F32, Layout::InOut) => ("matmul_nn_f32", F32_SHAPE),
            (_, layout) => (tile.kernel(dtype, layout), tile.shape()),
        };
        let blocks = super::product(op, "tiles", rows.div_ceil(shape.rows), columns.div_ceil(shape.columns))?;

        let read = if dtype != Dtype::F32 && tile != Tile::Any { whole } else { inputs };
        let mut launch = Launch::new(kernel, [blocks, 1, 1], shape.threads, shape.shared)?;
        launch.read(x_name, x, dtype, x_rows.at, extent(op, x_name, rows, x_stride, read)?)?;
        launch.read("weight", weight, dtype, first, extent(op, "weight", lines, stride, width)?)?;
        launch.read_or_null("bias", epilogue.bias, dtype, product.first_column, columns)?;
        let written = extent(op, out_name, rows, out_stride, columns)?;
        if epilogue.accumulate || out_stride != columns {
            launch.update(out_name, out, out_dtype, out_rows.at, written)?;
        } else {
            launch.write(out_name, out, out_dtype, out_rows.at, written)?;
        }
        launch.size("rows", rows)?.size("columns", columns)?.size("inputs", inputs)?;
        launch
            .size("stride of x", x_stride)?
            .size("stride of the weight", stride)?
            .size("stride of out", out_stride)?;
        launch.u32(flags(&epilogue, out_dtype != dtype));
        if let Some(library) = self.library.as_ref().filter(|_| !chosen) {
            let call = GemmCall {
                dtype,
                out_dtype,
                rows,
                columns,
                inputs,
                x: x.address(x_rows.at),
                x_stride,
                x_layout: Layout::OutIn,
                weight: weight.address(first),
                weight_stride: stride,
                layout,
                bias: epilogue.bias.map(|bias| bias.address(product.first_column)),
                activation: epilogue.activation,
                accumulate: epilogue.accumulate,
                out: out_address,
                out_stride,
            };
            let multiply = || {
                // SAFETY: the launch, which is of the same numbers, was put together, so they lie in their buffers.
                unsafe { library.multiply(&call) }
            };
            if self.timed("cublaslt", multiply)? {
                return Ok(());
            }
        }
        // SAFETY: rows and columns of x, weight, bias and out that the sizes name lie in the parts above; the kernels
        // that copy 16 bytes at a time are launched only on rows that allow it.
        unsafe { self.launch(&launch) }
    }
}

#[cfg(all(test, feature = "simt"))]
mod simt_tests {
    use super::*;
    use crate::backend::cuda::simt::{Options, Simt};
    use bytes::Bytes;

    #[test]
    fn an_unaligned_tensor_is_copied_whole() {
        let device = Simt::new(Options::default());
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let all: Vec<u8> = (0..=dtype.size() * 6).map(|i| i as u8).collect();
            let tensor = StoredTensor::new(dtype, vec![2, 3], Bytes::from(all.clone()).slice(1..)).unwrap();
            let matrix = Matrix::upload(&device, &tensor, Layout::OutIn).unwrap();
            assert_eq!((matrix.inputs(), matrix.outputs()), (3, 2));
            let got: Vec<u8> = match dtype {
                Dtype::F32 => bytemuck::cast_slice(&matrix.buffer().to_vec::<u32>(&device).unwrap()).to_vec(),
                _ => bytemuck::cast_slice(&matrix.buffer().to_vec::<u16>(&device).unwrap()).to_vec(),
            };
            assert_eq!(got, all[1..]);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let device = Simt::new(Options::default());
        let cuda = Cuda::new(device.clone());
        let dtype = Dtype::Bf16;
        let buffer = |len| Buffer::new(&device, dtype, len).unwrap();
        let (x, bias, short) = (buffer(16), buffer(4), buffer(3));
        let matrix = Matrix::of(buffer(32), dtype, Layout::InOut, [8, 4]).unwrap();
        let with = |bias, activation, accumulate| LinearEpilogue { bias, activation, accumulate };
        let run = |dtype, rows, outputs, epilogue, stride, out_dtype| {
            let mut out = Buffer::new(&device, out_dtype, 8).unwrap();
            let place = (&mut out, Rows::dense(stride));
            let done =
                cuda.linear(dtype, (&x, Rows::dense(8)), rows, &matrix, outputs, epilogue, place, out_dtype);
            match done {
                Ok(()) => "",
                Err(Error::Shape { what, .. }) => what,
                Err(e) => panic!("{e}"),
            }
        };
        let (f32, f16) = (Dtype::F32, Dtype::F16);
        let silu = Some(Activation::Silu);
        assert_eq!(run(dtype, 2, 0..4, with(Some(&bias), silu, false), 4, dtype), "");
        assert_eq!(run(dtype, 2, 4..4, LinearEpilogue::NONE, 4, dtype), "");
        assert_eq!(run(dtype, 0, 0..4, LinearEpilogue::NONE, 4, f32), "");
        assert_eq!(run(dtype, 3, 0..4, LinearEpilogue::NONE, 4, dtype), "x");
        assert_eq!(run(dtype, 2, 0..4, LinearEpilogue::NONE, 5, dtype), "out");
        assert_eq!(run(dtype, 2, 0..4, LinearEpilogue::NONE, 3, dtype), "stride of out");
        assert_eq!(run(dtype, 2, 1..5, LinearEpilogue::NONE, 4, dtype), "columns of the weight");
        assert_eq!(run(dtype, 2, 0..4, LinearEpilogue::NONE, 4, f16), "bytes of a number of out");
        assert_eq!(run(f32, 2, 0..4, LinearEpilogue::NONE, 4, f32), "bytes of a number of the weight");
        assert_eq!(run(dtype, 2, 0..4, with(Some(&short), None, false), 4, dtype), "bias");
        assert_eq!(run(dtype, 2, 0..4, with(None, silu, true), 4, dtype), "activations of an accumulation");
        assert!(Matrix::of(buffer(31), dtype, Layout::InOut, [8, 4]).is_err());
        assert!(Matrix::of(buffer(32), f16, Layout::InOut, [8, 4]).is_err());
    }
}

//! Launches of `cuda/norm.cu`.

use super::columns::check_sums;
use super::kernel_for;
use super::{Buffer, Cuda, Device, Launch, product};
use crate::config::NormKind;
use crate::element::Dtype;
use crate::error::{Error, Result};

const THREADS: u32 = 256;
/// Of a block of the backward pass with a warp a row, and the widest rows that a warp and that a block take.
const WARP_THREADS: u32 = 128;
const WARP_WIDTH: usize = 1024;
const WIDEST: usize = 8192;

impl<D: Device> Cuda<D> {
    /// Normalises each of `rows` rows of `x` `[rows, width]` into `out`. With `residual` `[rows, width]`, `x` is added to
    /// it first and the sum is what is normalised. Buffers are of format `dtype`.
    ///
    /// # Errors
    /// [`Error::Shape`] when a buffer is too short or of another format; those of the device.
    #[allow(clippy::too_many_arguments)]
    pub fn norm(
        &self,
        dtype: Dtype,
        kind: NormKind,
        x: &Buffer<D>,
        residual: Option<&mut Buffer<D>>,
        weight: &Buffer<D>,
        bias: Option<&Buffer<D>>,
        eps: f32,
        rows: usize,
        width: usize,
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let kernel = match kind {
            NormKind::LayerNorm => kernel_for!(dtype, "norm_layer"),
            NormKind::RmsNorm => kernel_for!(dtype, "norm_rms"),
        };
        let total = product(kernel, "x", rows, width)?;
        if total == 0 {
            return Ok(());
        }
        let shared = (width + THREADS as usize / 32) * size_of::<f32>();
        let mut launch = Launch::new(kernel, [rows, 1, 1], THREADS, shared)?;
        launch.read("x", x, dtype, 0, total)?;
        match residual {
            Some(residual) => launch.update("residual", residual, dtype, 0, total)?,
            None => launch.null(),
        };
        launch.read("weight", weight, dtype, 0, width)?;
        launch.read_or_null("bias", bias, dtype, 0, width)?;
        launch.write("out", out, dtype, 0, total)?;
        launch.size("width", width)?.f32(eps);
        // SAFETY: a block a row; the kernel touches `width` numbers of its row, of `weight` and of `bias`.
        unsafe { self.launch(&launch) }
    }

    /// The gradient of [`norm`](Self::norm) without a residual, for `rows` rows of `width` numbers of format `dtype`: `dx`
    /// `+= ...`, f32(dx) plus the value rounded once; `dweight += ...`, `dbias += ...`, f32. `partial`, f32, is overwritten:
    /// `width` numbers for each of the two that is wanted and each of [`column_parts`](Self::column_parts) parts. The order
    /// of a sum over rows depends on `rows` and `width` alone.
    ///
    /// # Errors
    /// [`Error::Shape`] when a buffer is too short or of another format, or rows are wider than 8192 numbers; those of the
    /// device.
    #[allow(clippy::too_many_arguments)]
    pub fn norm_backward(
        &self,
        dtype: Dtype,
        kind: NormKind,
        x: &Buffer<D>,
        weight: &Buffer<D>,
        dy: &Buffer<D>,
        eps: f32,
        rows: usize,
        width: usize,
        dx: &mut Buffer<D>,
        partial: &mut Buffer<D>,
        dweight: Option<&mut Buffer<D>>,
        dbias: Option<&mut Buffer<D>>,
    ) -> Result<()> {
        let wide = width > WARP_WIDTH;
        let kernel = match (kind, wide) {
            (NormKind::LayerNorm, false) => kernel_for!(dtype, "norm_layer_backward"),
            (NormKind::LayerNorm, true) => kernel_for!(dtype, "norm_layer_backward_wide"),
            (NormKind::RmsNorm, false) => kernel_for!(dtype, "norm_rms_backward"),
            (NormKind::RmsNorm, true) => kernel_for!(dtype, "norm_rms_backward_wide"),
        };
        if width > WIDEST {
            return Err(Error::Shape { op: kernel, what: "width", expected: WIDEST, got: width });
        }
        let total = product(kernel, "x", rows, width)?;
        if total == 0 {
            return Ok(());
        }
        for (what, sums) in [("dweight", &dweight), ("dbias", &dbias)] {
            if let Some(sums) = sums {
                check_sums(kernel, what, sums, width)?;
            }
        }
        let parts = Self::column_parts(rows);
        let outputs = usize::from(dweight.is_some()) + usize::from(dbias.is_some());
        // Sums of columns for each warp that has rows of its own; what the warps of a wide row share.
        let (threads, floats) = if wide {
            (THREADS, outputs * width + 2 * THREADS as usize / 32)
        } else {
            (WARP_THREADS, outputs * width * WARP_THREADS as usize / 32)
        };
        let mut launch = Launch::new(kernel, [parts, 1, 1], threads, floats * size_of::<f32>())?;
        launch.read("x", x, dtype, 0, total)?;
        launch.read("weight", weight, dtype, 0, width)?;
        launch.read("dy", dy, dtype, 0, total)?;
        launch.update("dx", dx, dtype, 0, total)?;
        launch.write(
            "partial",
            partial,
            Dtype::F32,
            0,
            product(kernel, "partial", outputs * parts, width)?,
        )?;
        launch.size("rows", rows)?.size("width", width)?.f32(eps);
        launch.u32(dweight.is_some().into()).u32(dbias.is_some().into());
        // SAFETY: the kernel touches `width` numbers of each of `rows` rows and of `weight`, and writes `width` numbers of
        // each output for each block.
        unsafe { self.launch(&launch) }?;
        self.add_parts(partial, parts, width, [dweight, dbias])
    }
}

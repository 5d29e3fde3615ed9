//! Launches of `cuda/norm.cu`.

use super::kernel_for;
use super::{Buffer, Cuda, Device, Launch, product};
use crate::config::NormKind;
use crate::element::Dtype;
use crate::error::Result;

const THREADS: u32 = 256;

impl<D: Device> Cuda<D> {
    /// Normalises each of `rows` rows of `x` `[rows, width]` into `out`. With `residual` `[rows, width]`, `x` is added to
    /// it first and the sum is what is normalised. Buffers are of format `dtype`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) when a buffer is too short or of another format; those of the device.
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
        unsafe { self.device.launch(&launch) }
    }
}

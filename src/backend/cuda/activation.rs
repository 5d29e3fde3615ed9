//! Launches of `cuda/activation.cu`.

use super::kernel_for;
use super::{Buffer, Cuda, Device, Launch, product};
use crate::config::Activation;
use crate::element::Dtype;
use crate::error::Result;

const THREADS: usize = 256;

impl<D: Device> Cuda<D> {
    /// `out[i] = f(x[i])` for the first `count` numbers of format `dtype`; without `x`, `out[i] = f(out[i])`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) when a buffer is too short or of another format; those of the device.
    pub fn activate(
        &self,
        dtype: Dtype,
        kind: Activation,
        x: Option<&Buffer<D>>,
        out: &mut Buffer<D>,
        count: usize,
    ) -> Result<()> {
        let kernel = match kind {
            Activation::GeluTanh => kernel_for!(dtype, "activation_gelu_tanh"),
            Activation::GeluErf => kernel_for!(dtype, "activation_gelu_erf"),
            Activation::Silu => kernel_for!(dtype, "activation_silu"),
        };
        if count == 0 {
            return Ok(());
        }
        let blocks = count.div_ceil(THREADS * (16 / dtype.size()));
        let mut launch = Launch::new(kernel, [blocks, 1, 1], THREADS as u32, 0)?;
        launch.read_or_null("x", x, dtype, 0, count)?;
        match x {
            Some(_) => launch.write("out", out, dtype, 0, count)?,
            None => launch.update("out", out, dtype, 0, count)?,
        };
        launch.u64(count as u64);
        // SAFETY: the kernel touches the first `count` numbers of either buffer.
        unsafe { self.device.launch(&launch) }
    }

    /// `out[t, j] = silu(gate_up[t, j]) * gate_up[t, width + j]` for `gate_up` `[rows, 2 * width]` of format `dtype`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) when a buffer is too short or of another format; those of the device.
    pub fn swiglu(
        &self,
        dtype: Dtype,
        gate_up: &Buffer<D>,
        rows: usize,
        width: usize,
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let kernel = kernel_for!(dtype, "activation_swiglu");
        let total = product(kernel, "out", rows, width)?;
        if total == 0 {
            return Ok(());
        }
        let grid = [rows, width.div_ceil(THREADS * (16 / dtype.size())), 1];
        let mut launch = Launch::new(kernel, grid, THREADS as u32, 0)?;
        launch.read("gate_up", gate_up, dtype, 0, product(kernel, "gate_up", total, 2)?)?;
        launch.write("out", out, dtype, 0, total)?;
        launch.size("width", width)?;
        // SAFETY: the kernel reads `2 width` numbers of each of `rows` rows and writes `width`.
        unsafe { self.device.launch(&launch) }
    }
}

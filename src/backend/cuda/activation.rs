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
        unsafe { self.launch(&launch) }
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
        unsafe { self.launch(&launch) }
    }

    /// `d[i] = d[i] f'(x[i])` for the first `len` numbers of format `dtype`, in place.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) when a buffer is too short or of another format; those of the device.
    pub fn activation_backward(
        &self,
        dtype: Dtype,
        kind: Activation,
        x: &Buffer<D>,
        len: usize,
        d: &mut Buffer<D>,
    ) -> Result<()> {
        let kernel = match kind {
            Activation::GeluTanh => kernel_for!(dtype, "activation_gelu_tanh_backward"),
            Activation::GeluErf => kernel_for!(dtype, "activation_gelu_erf_backward"),
            Activation::Silu => kernel_for!(dtype, "activation_silu_backward"),
        };
        if len == 0 {
            return Ok(());
        }
        let blocks = len.div_ceil(THREADS * (16 / dtype.size()));
        let mut launch = Launch::new(kernel, [blocks, 1, 1], THREADS as u32, 0)?;
        launch.read("x", x, dtype, 0, len)?.update("d", d, dtype, 0, len)?.u64(len as u64);
        // SAFETY: the kernel touches the first `len` numbers of either buffer.
        unsafe { self.launch(&launch) }
    }

    /// The gradient of [`swiglu`](Self::swiglu): from `gate_up` `[rows, 2 * width]` and `d_out` `[rows, width]`, `d_gate_up`
    /// `[rows, 2 * width]`, all of format `dtype`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) when a buffer is too short or of another format; those of the device.
    pub fn swiglu_backward(
        &self,
        dtype: Dtype,
        gate_up: &Buffer<D>,
        d_out: &Buffer<D>,
        rows: usize,
        width: usize,
        d_gate_up: &mut Buffer<D>,
    ) -> Result<()> {
        let kernel = kernel_for!(dtype, "activation_swiglu_backward");
        let total = product(kernel, "d_out", rows, width)?;
        let both = product(kernel, "gate_up", total, 2)?;
        if total == 0 {
            return Ok(());
        }
        let grid = [rows, width.div_ceil(THREADS * (16 / dtype.size())), 1];
        let mut launch = Launch::new(kernel, grid, THREADS as u32, 0)?;
        launch.read("gate_up", gate_up, dtype, 0, both)?;
        launch.read("d_out", d_out, dtype, 0, total)?;
        launch.write("d_gate_up", d_gate_up, dtype, 0, both)?;
        launch.size("width", width)?;
        // SAFETY: of each of `rows` rows the kernel reads `2 width` and `width` numbers and writes `2 width`.
        unsafe { self.launch(&launch) }
    }
}

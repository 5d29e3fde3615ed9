//! Matrix products by a library of the device's vendor, instead of the kernels of `cuda/matmul.cu`.

use crate::backend::Layout;
use crate::config::Activation;
use crate::element::Dtype;
use crate::error::Result;

/// A matrix product, ready to be done: `out = activation(x W + bias)`, or `out += x W + bias`. Gradients of weights are
/// such products too, of two factors that both lie with what is summed over as their rows. Everything it reads and writes has
/// been checked to lie in its buffers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GemmCall {
    /// Of x, weight and bias.
    pub dtype: Dtype,
    /// `dtype`, or f32.
    pub out_dtype: Dtype,
    pub rows: usize,
    /// Of the weight and of `out`.
    pub columns: usize,
    /// What is summed over.
    pub inputs: usize,
    /// Device address of `[rows, inputs]`, or with [`Layout::InOut`] `[inputs, rows]`, by `x_layout`, whose rows are
    /// `x_stride` numbers apart.
    pub x: u64,
    pub x_stride: usize,
    pub x_layout: Layout,
    /// Of `[columns, inputs]` or `[inputs, columns]` by `layout`, whose rows are `weight_stride` numbers apart.
    pub weight: u64,
    pub weight_stride: usize,
    pub layout: Layout,
    /// Of one number a column.
    pub bias: Option<u64>,
    pub activation: Option<Activation>,
    /// Adds to `out`, which is rounded once.
    pub accumulate: bool,
    /// Of `[rows, columns]`, whose rows are `out_stride` numbers apart.
    pub out: u64,
    pub out_stride: usize,
}

/// A library that multiplies matrices on a device: see [`Device::gemm_library`](super::Device::gemm_library).
pub trait GemmLibrary: Send + Sync {
    /// As in `cuBLASLt 13.1.0`.
    fn name(&self) -> String;

    /// Asks for the product, after what was asked for before. False where the library has no way to do it; nothing happens
    /// then.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) when the library fails.
    ///
    /// # Safety
    /// The numbers that the call names are in memory of the device, and the kernels' rules hold: no one else writes them.
    unsafe fn multiply(&self, call: &GemmCall) -> Result<bool>;
}

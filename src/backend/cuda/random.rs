//! Launches of `cuda/random.cu`.

use super::kernel_for;
use super::{Buffer, Cuda, Device, Launch};
use crate::element::Dtype;
use crate::error::Result;
use crate::synthetic::scale;

const THREADS: usize = 256;
const NUMBERS: usize = 8;

impl<D: Device> Cuda<D> {
    /// Fills `out` with the numbers of [`crate::synthetic`], of standard deviation `std`, rounded to its format `dtype`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) when `out` is of another format or too large; those of the device.
    pub fn random_weights(
        &self,
        dtype: Dtype,
        seed: u64,
        parameter: u32,
        std: f32,
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let kernel = kernel_for!(dtype, "random_weights");
        let count = out.len();
        if count == 0 {
            return Ok(());
        }
        let mut launch = Launch::new(kernel, [count.div_ceil(THREADS * NUMBERS), 1, 1], THREADS as u32, 0)?;
        launch.write("out", out, dtype, 0, count)?;
        launch.u64(count as u64).u64(seed).u32(parameter).f32(scale(std));
        // SAFETY: the kernel writes the `count` numbers.
        unsafe { self.launch(&launch) }
    }
}

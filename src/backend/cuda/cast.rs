//! Launches of `cuda/cast.cu`.

use super::{Buffer, Cuda, Device, Launch};
use crate::element::Dtype;
use crate::error::{Error, Result};

const THREADS: usize = 256;
const NUMBERS: usize = 8;

impl<D: Device> Cuda<D> {
    /// Converts `count` numbers of format `from.1`, from number `from.2` of `from.0` on, to numbers of format `to.1` from
    /// number `to.2` of `to.0` on; rounds to nearest even.
    ///
    /// # Errors
    /// [`Error::Shape`] when a buffer is too short or of another format, or both formats are the same; those of the device.
    pub fn cast(
        &self,
        from: (&Buffer<D>, Dtype, usize),
        to: (&mut Buffer<D>, Dtype, usize),
        count: usize,
    ) -> Result<()> {
        let kernel = match (from.1, to.1) {
            (Dtype::F32, Dtype::F16) => "cast_f32_to_f16",
            (Dtype::F32, Dtype::Bf16) => "cast_f32_to_bf16",
            (Dtype::F16, Dtype::F32) => "cast_f16_to_f32",
            (Dtype::F16, Dtype::Bf16) => "cast_f16_to_bf16",
            (Dtype::Bf16, Dtype::F32) => "cast_bf16_to_f32",
            (Dtype::Bf16, Dtype::F16) => "cast_bf16_to_f16",
            (Dtype::F32, Dtype::F32) | (Dtype::F16, Dtype::F16) | (Dtype::Bf16, Dtype::Bf16) => {
                return Err(Error::Shape { op: "cast", what: "formats", expected: 2, got: 1 });
            }
        };
        if count == 0 {
            return Ok(());
        }
        let mut launch = Launch::new(kernel, [count.div_ceil(THREADS * NUMBERS), 1, 1], THREADS as u32, 0)?;
        launch.read("in", from.0, from.1, from.2, count)?;
        launch.write("out", to.0, to.1, to.2, count)?;
        launch.u64(count as u64);
        // SAFETY: the kernel touches `count` numbers of either buffer.
        unsafe { self.launch(&launch) }
    }
}

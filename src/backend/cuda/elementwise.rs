//! Launches of `cuda/elementwise.cu`, and zeros.

use super::kernel_for;
use super::{Buffer, Cuda, Device, Format, Launch};
use crate::element::Dtype;
use crate::error::{Error, Result};

const THREADS: u32 = 256;
/// Bytes of a block.
const BYTES: usize = 4 * 16 * THREADS as usize;

impl<D: Device> Cuda<D> {
    /// Copies `len` numbers of one format (any but U8) from number `src_at` of `src` to number `dst_at` of `dst`.
    ///
    /// # Errors
    /// [`Error::Shape`] when a buffer is too short or of another format; those of the device.
    pub fn copy(
        &self,
        format: impl Into<Format>,
        src: &Buffer<D>,
        src_at: usize,
        dst: &mut Buffer<D>,
        dst_at: usize,
        len: usize,
    ) -> Result<()> {
        let format = format.into();
        let kernel = match format.size() {
            2 => "elementwise_copy_2",
            4 => "elementwise_copy_4",
            8 => "elementwise_copy_8",
            got => return Err(Error::Shape { op: "copy", what: "bytes of a number", expected: 2, got }),
        };
        let mut launch = Launch::new(kernel, [len.div_ceil(BYTES / format.size()), 1, 1], THREADS, 0)?;
        launch.read("src", src, format, src_at, len)?.write("dst", dst, format, dst_at, len)?;
        launch.u64(len as u64);
        if len == 0 {
            return Ok(());
        }
        // SAFETY: the kernel touches `len` numbers of either buffer, of the size that the format has.
        unsafe { self.launch(&launch) }
    }

    /// `x[i] = x[i] * factor` for the first `len` numbers of format `dtype`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the buffer is too short or of another format; those of the device.
    pub fn scale(&self, dtype: Dtype, x: &mut Buffer<D>, len: usize, factor: f32) -> Result<()> {
        let kernel = kernel_for!(dtype, "elementwise_scale");
        let mut launch = Launch::new(kernel, [len.div_ceil(BYTES / dtype.size()), 1, 1], THREADS, 0)?;
        launch.update("x", x, dtype, 0, len)?.u64(len as u64).f32(factor);
        if len == 0 {
            return Ok(());
        }
        // SAFETY: the kernel changes the first `len` numbers.
        unsafe { self.launch(&launch) }
    }

    /// Sets the first `len` numbers, of any format, to 0.
    ///
    /// # Errors
    /// [`Error::Shape`] when there are not so many; those of the device.
    pub fn zero(&self, x: &mut Buffer<D>, len: usize) -> Result<()> {
        self.timed("memset", || x.fill_part(&self.device, 0, len, 0))
    }
}

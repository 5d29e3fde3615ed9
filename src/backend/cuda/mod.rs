//! NVIDIA cards: the kernels of `cuda/`, and the code that launches them, a file a stem. Everything is
//! generic over the [`Device`] that runs the kernels, so that the same launches run on a card and on the host SIMT
//! machine.

mod activation;
mod attention;
mod cast;
mod commit;
mod compact;
mod device;
pub mod driver;
mod embedding;
#[cfg(feature = "simt")]
mod fault;
mod head;
mod mask;
mod matmul;
mod norm;
mod probe;
mod rope;
#[cfg(feature = "simt")]
pub mod simt;
mod unmask;

pub use super::{NoiseAddress, RowNoise, UNMASK_WORDS, unmask_words};
pub use attention::{DeviceMask, Segments};
pub use commit::{Canvas, Needs, RANK_WORDS, Record, THRESHOLD_WORDS, rank_words, threshold_words};
pub(crate) use device::kernel_for;
pub use device::{Access, Argument, Buffer, Device, Facts, Format, Launch, MAX_ARGUMENTS};
pub(crate) use matmul::Tile;
pub use matmul::{LinearEpilogue, Matrix};
pub use unmask::{Draws, UnmaskVariant};

use crate::error::{Error, Result};

/// The kernels on a device. Operations are methods, each in the file of its stem; they start the kernel and return.
#[derive(Clone)]
pub struct Cuda<D: Device> {
    device: D,
}

impl<D: Device> Cuda<D> {
    pub fn new(device: D) -> Self {
        Self { device }
    }

    pub fn device(&self) -> &D {
        &self.device
    }
}

/// `a * b`, or an error that names the buffer `what` whose size it would be.
fn product(op: &'static str, what: &'static str, a: usize, b: usize) -> Result<usize> {
    a.checked_mul(b).ok_or(Error::Shape { op, what, expected: usize::MAX, got: a })
}

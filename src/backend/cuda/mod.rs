//! NVIDIA cards: the kernels of `cuda/`, and the code that launches them, a file a stem. Everything is
//! generic over the [`Device`] that runs the kernels, so that the same launches run on a card and on the host SIMT
//! machine.

mod activation;
mod attention;
mod attention_bwd;
mod backend;
mod backward;
mod cast;
mod columns;
mod commit;
mod compact;
mod counts;
mod cublaslt;
mod denoise;
mod device;
pub mod driver;
mod elementwise;
mod embedding;
#[cfg(feature = "simt")]
mod fault;
mod forward;
mod gemm;
mod head;
mod launch;
mod mask;
mod matmul;
mod matmul_bwd;
mod needs;
mod norm;
mod optim;
mod probe;
mod random;
mod rope;
#[cfg(feature = "simt")]
pub mod simt;
mod tile;
mod timeline;
mod unmask;

use std::sync::Arc;

pub use super::{NoiseAddress, RowNoise, UNMASK_WORDS, unmask_words};
pub use attention::{DeviceMask, Segments};
pub use backend::MaskOnDevice;
pub use backward::Workspace;
pub(crate) use backward::{LOGITS_AT_ONCE, logits_stride};
pub use commit::{Canvas, Needs, Record};
pub(crate) use cublaslt::is_named as library_is_named;
pub(crate) use device::kernel_for;
pub use device::{Access, Argument, Buffer, Counts, Device, Facts, Format, Launch, MAX_ARGUMENTS};
pub use gemm::{GemmCall, GemmLibrary};
pub use matmul::{LinearEpilogue, Matrix};
pub use needs::{Found, Wanted};
pub use optim::{OptimControl, OptimState};
pub(crate) use tile::Tile;
pub use unmask::{Draws, UnmaskVariant};

use crate::element::Dtype;
use crate::error::{Error, Result};

/// The kernels on a device. Operations are methods, each in the file of its stem; they start the kernel and return.
///
/// As a [`Backend`](super::Backend) it computes in one format, f32 unless said otherwise. Weights that are stored in another
/// are converted when they are loaded; logits are f32.
#[derive(Clone)]
pub struct Cuda<D: Device> {
    device: D,
    dtype: Dtype,
    /// For products in 16 bits; without it, and where it has no way to do one, our own kernels.
    library: Option<Arc<dyn GemmLibrary>>,
    /// For the meter.
    timeline: Arc<timeline::Timeline<D>>,
}

impl<D: Device> Cuda<D> {
    pub fn new(device: D) -> Self {
        Self::with_dtype(device, Dtype::F32)
    }

    /// The kernels on a device, with activations in `dtype`.
    pub fn with_dtype(device: D, dtype: Dtype) -> Self {
        Self { device, dtype, library: None, timeline: Arc::default() }
    }

    /// Matrix products in 16 bits by the device's library instead of the kernels of `cuda/matmul.cu`. The order in which
    /// it sums may depend on how many rows a product has, so that the tokens of a request may depend on what it shares
    /// a batch with; ours does not.
    ///
    /// # Errors
    /// Those of [`Device::gemm_library`].
    pub fn with_library(self) -> Result<Self> {
        let library = Some(self.device.gemm_library()?);
        Ok(Self { library, ..self })
    }

    /// What multiplies matrices in 16 bits, as in `cuBLASLt 13.1.0`; `None` for our own kernels.
    pub fn library(&self) -> Option<String> {
        self.library.as_ref().map(|library| library.name())
    }

    /// The same device and library, with activations in `dtype`.
    pub fn in_format(&self, dtype: Dtype) -> Self {
        Self { dtype, ..self.clone() }
    }

    /// What activations are computed in.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    pub fn device(&self) -> &D {
        &self.device
    }
}

/// `a * b`, or an error that names the buffer `what` whose size it would be.
fn product(op: &'static str, what: &'static str, a: usize, b: usize) -> Result<usize> {
    a.checked_mul(b).ok_or(Error::Shape { op, what, expected: usize::MAX, got: a })
}

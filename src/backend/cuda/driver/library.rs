//! cuBLASLt on a card.

use std::sync::Arc;

use super::{Card, Inner, Memory, lock};
use crate::backend::cuda::Device;
use crate::backend::cuda::cublaslt::{CublasLt, WORKSPACE};
use crate::backend::cuda::device::count;
use crate::backend::cuda::{GemmCall, GemmLibrary};
use crate::error::Result;

/// The library with a handle for a card's context, and memory there. Fields go in this order.
struct OnCard {
    library: CublasLt,
    _workspace: Memory,
    inner: Arc<Inner>,
}

/// Finds it for `card`.
///
/// # Errors
/// Those of [`CublasLt::open`].
pub(super) fn open(card: &Card) -> Result<Arc<dyn GemmLibrary>> {
    let inner = Arc::clone(&card.inner);
    inner.not_recording("gemm_library")?;
    inner.enter()?;
    // SAFETY: the stream is of the context that was just made current, and stays as long as `inner`.
    let mut library = unsafe { CublasLt::open(&inner.label, inner.stream.cast()) }?;
    let workspace = card.allocate(WORKSPACE)?;
    // SAFETY: it is nobody else's, and goes after the library.
    unsafe { library.set_workspace(Card::address(&workspace)) };
    Ok(Arc::new(OnCard { library, _workspace: workspace, inner }))
}

impl GemmLibrary for OnCard {
    fn name(&self) -> String {
        self.library.name()
    }

    unsafe fn multiply(&self, call: &GemmCall) -> Result<bool> {
        let inner = &self.inner;
        inner.enter()?;
        // SAFETY: the caller's promise; the context is current.
        let done = unsafe { self.library.multiply(call) }?;
        if done {
            let recording = lock(&inner.recording).is_some();
            count(if recording { &inner.counters.recorded } else { &inner.counters.launches });
            count(&inner.counters.library);
            *lock(&inner.last) = "cuBLASLt's";
        }
        Ok(done)
    }
}

impl Drop for OnCard {
    fn drop(&mut self) {
        // For the library, which goes after this. What fails here goes with the process.
        let _ = self.inner.enter();
    }
}

//! A matrix library on the SIMT machine: one that works on memory of the host, as the stand-in of the tests does
//! (`tests/support/libcublaslt.c`). With it, what cuBLASLt is asked for by a model is computed and compared.

use std::sync::Arc;

use super::{Memory, Simt, Work, lock};
use crate::backend::cuda::Device;
use crate::backend::cuda::cublaslt::{CublasLt, WORKSPACE};
use crate::backend::cuda::device::count;
use crate::backend::cuda::{GemmCall, GemmLibrary};
use crate::error::{Error, Result};

/// The library, and its memory. Fields go in this order.
pub(super) struct OnHost {
    library: CublasLt,
    _workspace: Memory,
}

impl OnHost {
    /// # Safety
    /// As for [`GemmLibrary::multiply`].
    pub(super) unsafe fn multiply(&self, call: &GemmCall) -> Result<bool> {
        // SAFETY: the caller's promise; no context is needed on the host.
        unsafe { self.library.multiply(call) }
    }
}

/// What a machine and its graphs share.
struct OnSimt {
    library: Arc<OnHost>,
    machine: Simt,
}

/// Finds it for `machine`.
///
/// # Errors
/// Those of [`CublasLt::open`], and [`Error::Device`] for a library that is for cards.
pub(super) fn open(machine: &Simt) -> Result<Arc<dyn GemmLibrary>> {
    machine.not_recording("gemm_library")?;
    // SAFETY: there is no stream.
    let mut library = unsafe { CublasLt::open("simt", std::ptr::null_mut()) }?;
    if !library.works_on_the_host() {
        return Err(Error::Device {
            device: "simt".into(),
            what: format!("{} is for memory of a card", library.name()),
            hint: "use --gemm own".into(),
        });
    }
    let workspace = machine.allocate(WORKSPACE)?;
    // SAFETY: it is nobody else's, and goes after the library.
    unsafe { library.set_workspace(Simt::address(&workspace)) };
    let library = Arc::new(OnHost { library, _workspace: workspace });
    Ok(Arc::new(OnSimt { library, machine: machine.clone() }))
}

impl GemmLibrary for OnSimt {
    fn name(&self) -> String {
        self.library.library.name()
    }

    unsafe fn multiply(&self, call: &GemmCall) -> Result<bool> {
        let shared = &self.machine.shared;
        if let Some(work) = &mut *lock(&shared.recording) {
            if !self.library.library.knows(call)? {
                return Ok(false);
            }
            work.push(Work::Product { library: Arc::clone(&self.library), call: *call });
            count(&shared.counters.recorded);
            count(&shared.counters.library);
            return Ok(true);
        }
        self.machine.alive()?;
        // SAFETY: the caller's promise.
        let done = unsafe { self.library.multiply(call) }?;
        if done {
            count(&shared.counters.launches);
            count(&shared.counters.library);
            count(&shared.run);
        }
        Ok(done)
    }
}

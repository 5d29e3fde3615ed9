//! The machine's memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::simt_free;
use crate::error::{Error, Result};

/// Memory that ends at a page which is not there.
pub struct Memory {
    pub(super) start: *mut u8,
    pub(super) bytes: usize,
    /// Bytes of all that is allocated on the machine.
    pub(super) used: Arc<AtomicU64>,
}

impl Memory {
    /// The address of byte `at`, if `bytes` bytes from there on are in it.
    pub(super) fn part(&self, at: usize, bytes: usize) -> Result<*mut u8> {
        if at.saturating_add(bytes) > self.bytes {
            let (expected, got) = (at.saturating_add(bytes), self.bytes);
            return Err(Error::Shape { op: "copy", what: "bytes of the allocation", expected, got });
        }
        Ok(self.start.wrapping_add(at))
    }
}

// SAFETY: plain memory, owned.
unsafe impl Send for Memory {}
// SAFETY: shared references only copy from it.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: came from `simt_allocate` with this size, freed once.
        unsafe { simt_free(self.start, self.bytes as u64) };
        self.used.fetch_sub(self.bytes as u64, Ordering::Relaxed);
    }
}

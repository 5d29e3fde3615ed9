//! Counting what is asked of a device.

use std::sync::atomic::{AtomicU64, Ordering};

/// What was asked of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Kernels started one by one.
    pub launches: u64,
    /// Kernels recorded.
    pub recorded: u64,
    /// Of both, those of the matrix library.
    pub library: u64,
    /// Recordings replayed.
    pub replays: u64,
    /// Copies to the device that nobody waits for.
    pub sends: u64,
    /// Copies to and from the device that the host waits for.
    pub uploads: u64,
    pub downloads: u64,
    /// Times that the host waits for the device: the copies above are among them.
    pub synchronizations: u64,
    pub allocations: u64,
}

impl std::ops::Sub for Counts {
    type Output = Counts;

    fn sub(self, earlier: Counts) -> Counts {
        Counts {
            launches: self.launches - earlier.launches,
            recorded: self.recorded - earlier.recorded,
            library: self.library - earlier.library,
            replays: self.replays - earlier.replays,
            sends: self.sends - earlier.sends,
            uploads: self.uploads - earlier.uploads,
            downloads: self.downloads - earlier.downloads,
            synchronizations: self.synchronizations - earlier.synchronizations,
            allocations: self.allocations - earlier.allocations,
        }
    }
}

/// [`Counts`] that several threads add to.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub launches: AtomicU64,
    pub recorded: AtomicU64,
    pub library: AtomicU64,
    pub replays: AtomicU64,
    pub sends: AtomicU64,
    pub uploads: AtomicU64,
    pub downloads: AtomicU64,
    pub synchronizations: AtomicU64,
    pub allocations: AtomicU64,
}

/// One more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    pub fn get(&self) -> Counts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            launches: get(&self.launches),
            recorded: get(&self.recorded),
            library: get(&self.library),
            replays: get(&self.replays),
            sends: get(&self.sends),
            uploads: get(&self.uploads),
            downloads: get(&self.downloads),
            synchronizations: get(&self.synchronizations),
            allocations: get(&self.allocations),
        }
    }
}

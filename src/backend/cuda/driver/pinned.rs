//! Memory of the host that the card reads by itself: copies through it go on while the host does something else.

use std::ffi::c_void;

use super::Inner;
use super::api::{CUdeviceptr, CUevent};
use crate::backend::cuda::device::count;
use crate::error::Result;

/// A slot is filled while the card reads the others.
const SLOTS: usize = 4;
const SLOT_BYTES: usize = 8 << 20;
/// What a thread copies, at least, and most threads.
const PART: usize = 1 << 20;
const THREADS: usize = 4;

/// Copies on threads of its own: on those of a pool the thread that holds the ring could be given another's copy to wait for.
fn copy(src: &[u8], dst: &mut [u8]) {
    let part = src.len().div_ceil(THREADS).max(PART);
    if part >= src.len() {
        return dst.copy_from_slice(src);
    }
    std::thread::scope(|scope| {
        for (src, dst) in src.chunks(part).zip(dst.chunks_mut(part)) {
            scope.spawn(|| dst.copy_from_slice(src));
        }
    });
}

/// Slots of pinned memory, filled one after the other.
pub(super) struct Ring {
    start: *mut u8,
    /// Of each slot: passed when the card has read it. Whether it is to be waited for.
    events: [(CUevent, bool); SLOTS],
    slot: usize,
    /// Bytes of the slot that are filled.
    used: usize,
}

// SAFETY: as for `Inner`; the memory is the ring's alone.
unsafe impl Send for Ring {}

impl Ring {
    /// `None` where there is no pinned memory to be had.
    pub fn new(inner: &Inner) -> Option<Self> {
        let mut start: *mut c_void = std::ptr::null_mut();
        // SAFETY: writes an address; the context is current, by the caller.
        unsafe { (inner.api.host_allocate)(&raw mut start, SLOTS * SLOT_BYTES, 0) }.ok().ok()?;
        let mut ring =
            Self { start: start.cast(), events: [(std::ptr::null_mut(), false); SLOTS], slot: 0, used: 0 };
        for (event, _) in &mut ring.events {
            const DISABLE_TIMING: u32 = 2;
            // SAFETY: writes an event.
            if unsafe { (inner.api.event_create)(event, DISABLE_TIMING) }.ok().is_err() {
                ring.free(inner);
                return None;
            }
        }
        Some(ring)
    }

    /// Copies `src` to the card; it has been read on return. The context is current.
    pub fn send(&mut self, inner: &Inner, to: CUdeviceptr, src: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < src.len() {
            if self.used == SLOT_BYTES {
                self.next(inner)?;
            }
            let n = (SLOT_BYTES - self.used).min(src.len() - done);
            // SAFETY: the slot has room for `n` bytes from `used` on, which the card is not reading: `next` waited for it, and
            // what was sent since lies before. The ring is borrowed alone.
            let room = unsafe {
                std::slice::from_raw_parts_mut(self.start.add(self.slot * SLOT_BYTES + self.used), n)
            };
            copy(&src[done..done + n], room);
            // SAFETY: the caller checked the range on the card; the pinned memory stays as it is until the slot's event.
            let code = unsafe { (inner.api.upload)(to + done as u64, room.as_ptr().cast(), n, inner.stream) };
            inner.check(format_args!("cannot copy {n} bytes to the card"), code)?;
            done += n;
            self.used = (self.used + n).next_multiple_of(64).min(SLOT_BYTES);
        }
        Ok(())
    }

    /// Goes on to the next slot, once the card has read what was in it.
    fn next(&mut self, inner: &Inner) -> Result<()> {
        let (event, pending) = &mut self.events[self.slot];
        // SAFETY: event and stream are of this context.
        let code = unsafe { (inner.api.event_record)(*event, inner.stream) };
        inner.check("cannot record an event", code)?;
        *pending = true;
        self.slot = (self.slot + 1) % SLOTS;
        self.used = 0;
        let (event, pending) = &mut self.events[self.slot];
        if std::mem::take(pending) {
            count(&inner.counters.synchronizations);
            // SAFETY: the event was recorded.
            inner.check("waiting for the card", unsafe { (inner.api.event_synchronize)(*event) })?;
        }
        Ok(())
    }

    /// Gives everything back, after the stream's work. The context is current.
    pub fn free(&mut self, inner: &Inner) {
        for (event, _) in &mut self.events {
            if !event.is_null() {
                // SAFETY: made in this context, destroyed once.
                let _ = unsafe { (inner.api.event_destroy)(*event) };
                *event = std::ptr::null_mut();
            }
        }
        // SAFETY: came from the driver, freed once.
        let _ = unsafe { (inner.api.host_free)(self.start.cast()) };
    }
}

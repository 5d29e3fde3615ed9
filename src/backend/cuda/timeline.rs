//! Kernels' times for the meter: while it is on, every launch lies between two events of the device, and what they say is
//! read once there is nothing else to do.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Cuda, Device, Launch};
use crate::error::Result;
use crate::meter::{self, Op};

/// Launches that are kept before they are read.
const MOST: usize = 1 << 14;

struct Timed<E> {
    op: Option<Op>,
    name: &'static str,
    /// Not the first kernel of its operation.
    more: bool,
    events: [E; 2],
}

/// Launches whose times have not been read.
pub(super) struct Timeline<D: Device> {
    launches: Mutex<Launches<D::Event>>,
}

struct Launches<E> {
    /// An event at a time of the meter's clock.
    zero: Option<(E, Duration)>,
    timed: Vec<Timed<E>>,
}

impl<D: Device> Default for Timeline<D> {
    fn default() -> Self {
        Self { launches: Mutex::new(Launches { zero: None, timed: Vec::new() }) }
    }
}

impl<D: Device> Cuda<D> {
    /// Starts a kernel.
    ///
    /// # Errors
    /// Those of [`Device::launch`].
    ///
    /// # Safety
    /// As for [`Device::launch`].
    pub(super) unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.timed(launch.kernel, || {
            // SAFETY: the caller's promise.
            unsafe { self.device.launch(launch) }
        })
    }

    /// Does `work`, which asks the device for something called `name`.
    ///
    /// # Errors
    /// Those of `work` and of the device's events.
    #[inline]
    pub(super) fn timed<T>(&self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if meter::is_on() { self.between_events(name, work) } else { work() }
    }

    #[cold]
    fn between_events<T>(&self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut launches = self.timeline.launches.lock().unwrap_or_else(PoisonError::into_inner);
        if launches.zero.is_none() {
            self.device.synchronize()?;
            let zero = self.device.record()?;
            launches.zero = meter::clock(Instant::now()).map(|at| (zero, at));
        }
        let from = self.device.record()?;
        let done = work()?;
        let events = [from, self.device.record()?];
        let op = meter::current();
        let more = op.is_some() && meter::launches_another();
        launches.timed.push(Timed { op, name, more, events });
        let full = launches.timed.len() >= MOST;
        drop(launches);
        if full {
            self.settle_timeline()?;
        }
        Ok(done)
    }

    /// Waits for what was launched and tells the meter its times.
    ///
    /// # Errors
    /// Those of the device.
    pub(super) fn settle_timeline(&self) -> Result<()> {
        let mut launches = self.timeline.launches.lock().unwrap_or_else(PoisonError::into_inner);
        let Launches { zero, timed } = &mut *launches;
        let span = |from: &D::Event, to: &D::Event| -> Result<Duration> {
            let ms = f64::from(self.device.elapsed_ms(from, to)?);
            Ok(Duration::from_nanos((ms.max(0.0) * 1e6) as u64))
        };
        if let Some((zero, at)) = zero.take() {
            for Timed { op, name, more, events: [from, to] } in timed.drain(..) {
                meter::kernel(op, name, !more, at + span(&zero, &from)?, span(&from, &to)?);
            }
        }
        timed.clear();
        Ok(())
    }
}

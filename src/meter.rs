//! Where the time of a run goes. The backends say what each of their operations is about as they begin it ([`op`]), the layers above
//! what a stretch of work is part of ([`range`]); while metering is on ([`start`] to [`stop`]) both are timed. While it is off, which is
//! the rule, that costs one look at a flag: no clock is read, nothing is described, nothing is allocated.
//!
//! An operation of the CPU is over when it returns, and its time is the host's. On a card it is only asked for: then the kernels launched inside
//! it are timed by the card's own clock ([`kernel`]), and the time of the operation itself is that of asking.
//!
//! With the feature `nvtx` operations and ranges are also NVTX ranges of these names, which Nsight Systems and `ncu --nvtx` see.
//!
//! There is one meter for the process. Operations of two threads at the same time are added up.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// An operation of a backend: its name in the traits, its sizes, and the least work it can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Op {
    pub name: &'static str,
    /// Rows and widths, as the operation takes them; 0 where it has fewer.
    pub dims: [usize; 3],
    /// Floating-point operations of products and attention: two for a multiplication and an addition. 0 for what only moves bytes.
    pub flops: u64,
    /// Bytes that must be read or written, each once.
    pub bytes: u64,
}

/// Whose clock a time is by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Track {
    Host,
    Device,
}

/// Something that took some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The operation, or the name of the range.
    pub op: Op,
    /// The kernel, on the device's track.
    pub kernel: Option<&'static str>,
    /// A range, and its number among its like (the layer, the step).
    pub range: Option<u32>,
    pub track: Track,
    /// The thread of the host, numbered from 0 as they first come; of a kernel 0.
    pub thread: u32,
    /// Since [`start`].
    pub from: Duration,
    pub took: Duration,
}

/// What is added up: the times of one operation at one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub op: &'static str,
    pub kernel: Option<&'static str>,
    pub dims: [usize; 3],
    pub track: Track,
}

/// Sums over the calls of a [`Key`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    pub calls: u64,
    pub time: Duration,
    pub flops: u64,
    pub bytes: u64,
}

/// What was measured between [`start`] and [`stop`].
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Operations, and kernels on the device's track, in the order in which they first came.
    pub ops: Vec<(Key, Total)>,
    /// Ranges, in the order in which they first ended.
    pub ranges: Vec<(&'static str, Total)>,
    /// Each single one, as far as they were wanted.
    pub events: Vec<Event>,
    /// Those beyond the number wanted.
    pub dropped: u64,
    pub wall: Duration,
}

struct Sink {
    from: Instant,
    most: usize,
    places: HashMap<Key, usize>,
    measured: Measured,
}

static ON: AtomicBool = AtomicBool::new(false);
static SINK: Mutex<Option<Sink>> = Mutex::new(None);
static THREADS: AtomicU32 = AtomicU32::new(0);

thread_local! {
    /// The operation that this thread is in; what it does inside is part of it.
    static CURRENT: Cell<Option<Op>> = const { Cell::new(None) };
    /// Whether it has launched a kernel.
    static LAUNCHED: Cell<bool> = const { Cell::new(false) };
    static THREAD: u32 = THREADS.fetch_add(1, Ordering::Relaxed);
}

fn sink() -> MutexGuard<'static, Option<Sink>> {
    SINK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether metering is on.
#[inline]
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Begins to measure, anew if it was on; keeps at most `events` single events beside the sums.
pub fn start(events: usize) {
    let mut sink = sink();
    *sink = Some(Sink {
        from: Instant::now(),
        most: events,
        places: HashMap::new(),
        measured: Measured::default(),
    });
    ON.store(true, Ordering::Relaxed);
}

/// Ends it; `None` when it was not on.
pub fn stop() -> Option<Measured> {
    let mut sink = sink();
    ON.store(false, Ordering::Relaxed);
    sink.take().map(|sink| Measured { wall: sink.from.elapsed(), ..sink.measured })
}

/// Metering is off until this is dropped; then it is as it was.
#[must_use = "it lasts until it is dropped"]
pub struct Pause(bool);

/// Leaves what follows out: what is done to measure, not for the work.
pub fn pause() -> Pause {
    Pause(ON.swap(false, Ordering::Relaxed))
}

impl Drop for Pause {
    fn drop(&mut self) {
        if self.0 && sink().is_some() {
            ON.store(true, Ordering::Relaxed);
        }
    }
}

impl Sink {
    fn add(&mut self, event: Event) {
        let Event { op, kernel, range, track, took, .. } = event;
        let total = if range.is_some() {
            let ranges = &mut self.measured.ranges;
            let at = ranges.iter().position(|(name, _)| *name == op.name).unwrap_or_else(|| {
                ranges.push((op.name, Total::default()));
                ranges.len() - 1
            });
            &mut ranges[at].1
        } else {
            let (key, ops) = (Key { op: op.name, kernel, dims: op.dims, track }, &mut self.measured.ops);
            let at = *self.places.entry(key).or_insert_with(|| {
                ops.push((key, Total::default()));
                ops.len() - 1
            });
            &mut ops[at].1
        };
        total.calls += 1;
        total.time += took;
        total.flops = total.flops.saturating_add(op.flops);
        total.bytes = total.bytes.saturating_add(op.bytes);
        if self.measured.events.len() < self.most {
            self.measured.events.push(event);
        } else {
            self.measured.dropped += 1;
        }
    }
}

/// The time from its making to its end is measured.
#[must_use = "it measures until it is dropped"]
pub struct Span {
    began: Option<Began>,
}

struct Began {
    op: Op,
    range: Option<u32>,
    /// An operation inside another is part of that.
    inner: bool,
    at: Instant,
}

impl Span {
    #[inline]
    #[cfg_attr(not(feature = "nvtx"), allow(unused_variables))]
    fn new(began: Option<Began>, name: &'static str) -> Self {
        #[cfg(feature = "nvtx")]
        nvtx::range_push!("{name}");
        Self { began }
    }
}

impl Drop for Span {
    #[inline]
    fn drop(&mut self) {
        #[cfg(feature = "nvtx")]
        nvtx::range_pop!();
        if let Some(began) = self.began.take() {
            began.end();
        }
    }
}

impl Began {
    #[cold]
    fn end(self) {
        let Self { op, range, inner, at } = self;
        if inner {
            return;
        }
        let took = at.elapsed();
        if range.is_none() {
            CURRENT.set(None);
        }
        if let Some(sink) = sink().as_mut() {
            // What began before the meter is of no interest.
            let from = at.saturating_duration_since(sink.from);
            let thread = THREAD.with(|n| *n);
            sink.add(Event { op, kernel: None, range, track: Track::Host, thread, from, took });
        }
    }
}

/// An operation named `name` (a string literal, as in the traits) begins; `describe` is asked for the rest where anybody wants to know.
#[inline]
pub fn op(name: &'static str, describe: impl FnOnce() -> Op) -> Span {
    let began = is_on().then(|| begin(Op { name, ..describe() }, None));
    Span::new(began, name)
}

/// A stretch of work begins: number `number` of its like.
#[inline]
pub fn range(name: &'static str, number: u32) -> Span {
    let began = is_on().then(|| begin(Op { name, dims: [0; 3], flops: 0, bytes: 0 }, Some(number)));
    Span::new(began, name)
}

#[cold]
fn begin(op: Op, range: Option<u32>) -> Began {
    let inner = range.is_none() && CURRENT.get().is_some();
    if range.is_none() && !inner {
        CURRENT.set(Some(op));
        LAUNCHED.set(false);
    }
    Began { op, range, inner, at: Instant::now() }
}

/// The operation that this thread is in. On a card a kernel belongs to it.
pub fn current() -> Option<Op> {
    if is_on() { CURRENT.get() } else { None }
}

/// Notes that the operation launches a kernel, and says whether it has launched one before.
pub fn launches_another() -> bool {
    LAUNCHED.replace(true)
}

/// Where `at` lies on the meter's clock; `None` while it is off.
pub fn clock(at: Instant) -> Option<Duration> {
    sink().as_ref().map(|sink| at.saturating_duration_since(sink.from))
}

/// A kernel, launched by `op`, ran on the device `from` (on the meter's clock) for `took`. `first`: it stands for the operation's work, where that has
/// several kernels.
pub fn kernel(op: Option<Op>, name: &'static str, first: bool, from: Duration, took: Duration) {
    let none = Op { name: "other", dims: [0; 3], flops: 0, bytes: 0 };
    let op = op.unwrap_or(none);
    let op = if first { op } else { Op { flops: 0, bytes: 0, ..op } };
    if let Some(sink) = sink().as_mut() {
        sink.add(Event { op, kernel: Some(name), range: None, track: Track::Device, thread: 0, from, took });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The meter is one for the process, so that all of it is tested in one test. Other tests may meanwhile add what they do.
    #[test]
    fn what_is_measured_adds_up() {
        let describe = || Op { name: "", dims: [2, 3, 0], flops: 10, bytes: 7 };
        drop(op("meter test", || unreachable!("described while the meter is off")));
        assert_eq!(current(), None);
        start(usize::MAX);
        {
            let _outer = range("meter range", 4);
            for _ in 0..3 {
                let _op = op("meter test", describe);
                let _inside = op("meter inside", || Op { name: "", dims: [0; 3], flops: 1, bytes: 1 });
                assert_eq!(current().map(|op| op.name), Some("meter test"));
                let kernels = [(); 2].map(|()| (current(), launches_another()));
                for (n, (op, again)) in kernels.into_iter().enumerate() {
                    assert_eq!(again, n > 0);
                    kernel(
                        op,
                        ["first", "second"][n],
                        !again,
                        Duration::from_millis(1),
                        Duration::from_millis(2),
                    );
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let measured = stop().unwrap();
        assert!(!is_on() && stop().is_none());
        let of = |op: &str, kernel: Option<&str>| {
            let found = measured.ops.iter().find(|(key, _)| key.op == op && key.kernel == kernel);
            found.map(|(_, total)| *total)
        };
        let host = of("meter test", None).unwrap();
        assert_eq!((host.calls, host.flops, host.bytes), (3, 30, 21));
        assert!(host.time >= Duration::from_millis(3) && host.time <= measured.wall);
        // What is inside an operation is part of it.
        assert_eq!(of("meter inside", None), None);
        let [first, second] = ["first", "second"].map(|name| of("meter test", Some(name)).unwrap());
        assert_eq!((first.calls, first.time, first.flops), (3, Duration::from_millis(6), 30));
        assert_eq!((second.calls, second.flops, second.bytes), (3, 0, 0));
        let (_, whole) = measured.ranges.iter().find(|(name, _)| *name == "meter range").unwrap();
        assert!(whole.calls == 1 && whole.time >= host.time);
        let mine = |e: &&Event| e.op.name.starts_with("meter");
        assert_eq!(measured.events.iter().filter(mine).count(), 3 + 6 + 1);
        let outer = measured.events.iter().find(|e| e.range == Some(4)).unwrap();
        for event in measured.events.iter().filter(|e| e.op.name == "meter test" && e.kernel.is_none()) {
            assert!(event.from >= outer.from && event.from + event.took <= outer.from + outer.took);
            assert_eq!(event.thread, outer.thread);
        }
        // What is paused is left out, and the rest goes on.
        start(0);
        {
            let _pause = pause();
            drop(op("meter test", || unreachable!("described while the meter pauses")));
        }
        drop(op("meter test", describe));
        let measured = stop().unwrap();
        assert_eq!(measured.ops.iter().find(|(key, _)| key.op == "meter test").unwrap().1.calls, 1);
        assert!(!is_on());
        // Sums stay where single events are not wanted.
        start(1);
        (0..3).for_each(|_| drop(op("meter test", describe)));
        let measured = stop().unwrap();
        assert_eq!(measured.events.len(), 1);
        assert!(measured.dropped >= 2);
    }
}

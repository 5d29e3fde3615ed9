//! An NVIDIA card as a [`Device`], through the driver library (libcuda) and nothing else: one context, one stream,
//! the kernels that the build embedded. `open.rs` finds and opens a card, `graph.rs` records,
//! `api.rs` has the driver's functions.

mod api;
mod graph;
mod library;
mod open;
mod pinned;

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::{Api, CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUmodule, CUstream, Code};
pub use graph::Graph;
use graph::Recording;
pub use open::{available, built_in};
use pinned::Ring;

use super::GemmLibrary;
use super::device::{Counters, Counts, Device, Facts, Launch, MAX_ARGUMENTS, count};
use crate::error::{Error, Result};

/// A card. Cheap to clone; clones share context, stream and kernels, which go when the last of them, of its memory, its
/// graphs and its events is dropped.
#[derive(Clone)]
pub struct Card {
    inner: Arc<Inner>,
}

/// A kernel, and what a launch of it must keep to.
struct Kernel {
    function: CUfunction,
    /// Threads of a block, at most.
    threads: u32,
    /// Bytes of dynamic shared memory, at most.
    shared: u32,
    /// Bytes of each parameter, where the driver says (CUDA 12.4 on).
    parameters: Option<Box<[u32]>>,
}

struct Inner {
    api: &'static Api,
    device: CUdevice,
    context: CUcontext,
    stream: CUstream,
    modules: Vec<CUmodule>,
    /// All kernels, by name; filled when the card is opened, so that a launch is a look-up.
    kernels: HashMap<&'static str, Kernel>,
    facts: Facts,
    /// As in `cuda:0 (NVIDIA H100)`.
    label: String,
    /// While a graph is recorded: the memory to be freed afterwards.
    recording: Mutex<Option<Vec<CUdeviceptr>>>,
    /// The kernel started last, for errors that come later than their cause.
    last: Mutex<&'static str>,
    counters: Counters,
    /// Made when it is first wanted; nothing where there is no pinned memory to be had.
    ring: Mutex<Option<Option<Ring>>>,
}

// SAFETY: the driver's handles are of the process, not of a thread; every call makes the context current first.
unsafe impl Send for Inner {}
// SAFETY: the driver's functions may be called from several threads at once, and what else changes is behind a mutex.
unsafe impl Sync for Inner {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Card {
    /// Opens card `ordinal` (as `CUDA_VISIBLE_DEVICES` numbers them) and loads the kernels.
    ///
    /// # Errors
    /// [`Error::Device`] that says what is missing, too old or does not fit.
    pub fn open(ordinal: usize) -> Result<Self> {
        Inner::open(ordinal).map(|inner| Self { inner: Arc::new(inner) })
    }
}

impl std::fmt::Debug for Card {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Card({}, {} kernels)", self.inner.label, self.inner.kernels.len())
    }
}

impl Inner {
    /// Makes the context the calling thread's.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained as long as `self` lives.
        let code = unsafe { (self.api.context_set)(self.context) };
        code.ok().map_err(|code| self.failed("cannot use the context", code))
    }

    /// The error for a call that returned `code`.
    fn failed(&self, what: impl Display, code: Code) -> Error {
        let described = self.api.describe(code);
        let last = *lock(&self.last);
        let (what, hint) = if code.is_of_a_kernel() {
            let last = if last.is_empty() {
                String::new()
            } else {
                format!("; the kernel started last was {last} (it or one before it failed)")
            };
            let hint = match code {
                Code::ECC_UNCORRECTABLE => "the card's memory is faulty; see nvidia-smi -q",
                Code::LAUNCH_TIMEOUT => "a kernel ran too long for a card that also drives a display",
                _ => "the process must end; compute-sanitizer finds the place (docs/gpu/README.md)",
            };
            (format!("{what}: {described}{last}"), hint)
        } else {
            (format!("{what}: {described}"), "see docs/gpu/README.md")
        };
        Error::Device { device: self.label.clone(), what, hint: hint.into() }
    }

    fn check(&self, what: impl Display, code: Code) -> Result<()> {
        code.ok().map_err(|code| self.failed(what, code))
    }

    fn defect(&self, kernel: &str, what: impl Display) -> Error {
        Error::Device {
            device: self.label.clone(),
            what: format!("{kernel}: {what}"),
            hint: "this is a defect of a kernel or of its launch code".into(),
        }
    }

    fn not_recording(&self, what: &str) -> Result<()> {
        if lock(&self.recording).is_some() {
            return Err(self.defect(what, "not possible while a graph is being recorded"));
        }
        Ok(())
    }

    /// Frees memory after the work that was asked for, or after the recording.
    fn free(&self, address: CUdeviceptr) {
        if let Some(late) = &mut *lock(&self.recording) {
            late.push(address);
            return;
        }
        if self.enter().is_ok() {
            // SAFETY: `address` came from the driver in this context and is freed once. The driver waits for work that
            // uses it. After a failed kernel this fails too, and the process's end frees everything.
            let _ = unsafe { (self.api.memory_free)(address) };
        }
    }

    fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream lives as long as `self`.
        self.check("waiting for the card", unsafe { (self.api.stream_synchronize)(self.stream) })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.enter().is_err() {
            return;
        }
        // SAFETY: each is of this context, there, and given back once; nothing else holds them any more. What fails here
        // cannot be mended, and goes with the process.
        unsafe {
            if !self.stream.is_null() {
                let _ = (self.api.stream_synchronize)(self.stream);
            }
        }
        let ring = self.ring.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut ring) = ring.flatten() {
            ring.free(self);
        }
        // SAFETY: as above.
        unsafe {
            if !self.stream.is_null() {
                let _ = (self.api.stream_destroy)(self.stream);
            }
            for &module in &self.modules {
                let _ = (self.api.module_unload)(module);
            }
            let _ = (self.api.context_release)(self.device);
        }
    }
}

impl Kernel {
    /// What is wrong with a launch.
    fn objection(&self, launch: &Launch<'_>) -> Option<String> {
        let threads = launch.block.iter().fold(1_u32, |a, &b| a.saturating_mul(b));
        if threads == 0 || threads > self.threads {
            return Some(format!("launched with {threads} threads a block, it takes 1 to {}", self.threads));
        }
        if launch.shared > self.shared {
            return Some(format!("asks for {} bytes of shared memory, of {}", launch.shared, self.shared));
        }
        let sizes = self.parameters.as_deref()?;
        let arguments = launch.arguments();
        let fit = sizes.len() == arguments.len() && sizes.iter().zip(arguments).all(|(s, a)| *s == a.size);
        (!fit).then(|| {
            let got: Vec<u32> = arguments.iter().map(|a| a.size).collect();
            format!("its parameters are of {sizes:?} bytes, the arguments of {got:?}")
        })
    }
}

/// Memory of a card.
pub struct Memory {
    inner: Arc<Inner>,
    address: CUdeviceptr,
    bytes: usize,
}

impl Memory {
    /// The address of byte `at`, if `bytes` bytes from there on are in it.
    fn part(&self, at: usize, bytes: usize) -> Result<CUdeviceptr> {
        let expected = at.saturating_add(bytes);
        if expected > self.bytes {
            return Err(Error::Shape {
                op: "copy",
                what: "bytes of the allocation",
                expected,
                got: self.bytes,
            });
        }
        Ok(self.address + at as u64)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.inner.free(self.address);
    }
}

/// A point in the stream.
pub struct Event {
    inner: Arc<Inner>,
    event: CUevent,
}

// SAFETY: as for `Inner`.
unsafe impl Send for Event {}

impl Drop for Event {
    fn drop(&mut self) {
        if self.inner.enter().is_ok() {
            // SAFETY: made in this context, destroyed once.
            let _ = unsafe { (self.inner.api.event_destroy)(self.event) };
        }
    }
}

impl Device for Card {
    type Memory = Memory;
    type Graph = Graph;
    type Event = Event;

    fn facts(&self) -> &Facts {
        &self.inner.facts
    }

    fn has_kernel(&self, name: &str) -> bool {
        self.inner.kernels.contains_key(name)
    }

    /// Memory of its own for each buffer, not from a pool: compute-sanitizer sees where a buffer ends, and
    /// the driver waits for the work that uses it before it is freed.
    fn allocate(&self, bytes: usize) -> Result<Memory> {
        let inner = &self.inner;
        inner.not_recording("allocate")?;
        inner.enter()?;
        count(&inner.counters.allocations);
        let mut address: CUdeviceptr = 0;
        // SAFETY: writes an address. No bytes are refused by the driver, so it is one at least.
        match unsafe { (inner.api.memory_allocate)(&raw mut address, bytes.max(1)) } {
            Code::SUCCESS => {}
            Code::OUT_OF_MEMORY => {
                let (mut free, mut total) = (0, 0);
                // SAFETY: writes two sizes.
                let _ = unsafe { (inner.api.memory_info)(&raw mut free, &raw mut total) };
                return Err(Error::Memory {
                    what: format!("a buffer on {}", inner.label),
                    needed: bytes as u128,
                    limit: format!("of {total} there {free} are free"),
                    hint: "use a shorter length, a smaller batch or a smaller model".into(),
                });
            }
            code => return Err(inner.failed(format_args!("cannot allocate {bytes} bytes"), code)),
        }
        let memory = Memory { inner: Arc::clone(inner), address, bytes };
        if cfg!(debug_assertions) {
            self.fill(&memory, 0, bytes, 0xff)?;
        }
        Ok(memory)
    }

    fn address(memory: &Memory) -> u64 {
        memory.address
    }

    /// Returns when `src` has been read: of copies from memory that is not pinned the driver does not promise
    /// earlier that it may change.
    fn upload(&self, dst: &Memory, at: usize, src: &[u8]) -> Result<()> {
        let inner = &self.inner;
        inner.not_recording("upload")?;
        let to = dst.part(at, src.len())?;
        if src.is_empty() {
            return Ok(());
        }
        inner.enter()?;
        count(&inner.counters.uploads);
        count(&inner.counters.synchronizations);
        // SAFETY: `part` checked the range on the card; `src` stays until the stream is done, here below.
        let code = unsafe { (inner.api.upload)(to, src.as_ptr().cast(), src.len(), inner.stream) };
        inner.check(format_args!("cannot copy {} bytes to the card", src.len()), code)?;
        inner.synchronize()
    }

    fn send(&self, dst: &Memory, at: usize, src: &[u8]) -> Result<()> {
        let inner = &self.inner;
        inner.not_recording("send")?;
        let to = dst.part(at, src.len())?;
        if src.is_empty() {
            return Ok(());
        }
        inner.enter()?;
        let mut ring = lock(&inner.ring);
        match ring.get_or_insert_with(|| Ring::new(inner)) {
            Some(ring) => {
                count(&inner.counters.sends);
                ring.send(inner, to, src)
            }
            None => {
                drop(ring);
                self.upload(dst, at, src)
            }
        }
    }

    fn gemm_library(&self) -> Result<Arc<dyn GemmLibrary>> {
        library::open(self)
    }

    fn free_memory(&self) -> Result<u64> {
        let inner = &self.inner;
        inner.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two sizes.
        let code = unsafe { (inner.api.memory_info)(&raw mut free, &raw mut total) };
        inner.check("cannot ask for the free memory", code)?;
        Ok(free as u64)
    }

    fn counts(&self) -> Counts {
        self.inner.counters.get()
    }

    fn download(&self, src: &Memory, at: usize, dst: &mut [u8]) -> Result<()> {
        let inner = &self.inner;
        inner.not_recording("download")?;
        let from = src.part(at, dst.len())?;
        if dst.is_empty() {
            return Ok(());
        }
        inner.enter()?;
        count(&inner.counters.downloads);
        count(&inner.counters.synchronizations);
        // SAFETY: `part` checked the range on the card; `dst` is borrowed alone until the stream is done, here below.
        let code = unsafe { (inner.api.download)(dst.as_mut_ptr().cast(), from, dst.len(), inner.stream) };
        inner.check(format_args!("cannot copy {} bytes from the card", dst.len()), code)?;
        inner.synchronize()
    }

    fn fill(&self, dst: &Memory, at: usize, bytes: usize, value: u8) -> Result<()> {
        let inner = &self.inner;
        let to = dst.part(at, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        inner.enter()?;
        // SAFETY: `part` checked the range.
        inner.check("cannot fill memory", unsafe { (inner.api.fill)(to, value, bytes, inner.stream) })
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let inner = &self.inner;
        let Some(kernel) = inner.kernels.get(launch.kernel) else {
            return Err(inner.defect(launch.kernel, "there is no kernel of this name for this card"));
        };
        if let Some(objection) = kernel.objection(launch) {
            return Err(inner.defect(launch.kernel, objection));
        }
        if launch.is_empty() {
            return Ok(());
        }
        let recording = lock(&inner.recording).is_some();
        count(if recording { &inner.counters.recorded } else { &inner.counters.launches });
        let mut parameters = [std::ptr::null_mut::<c_void>(); MAX_ARGUMENTS];
        for (parameter, argument) in parameters.iter_mut().zip(launch.arguments()) {
            // Four bytes are the lower ones: cards and their hosts are little-endian.
            *parameter = (&raw const argument.bits).cast_mut().cast();
        }
        inner.enter()?;
        let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
        // SAFETY: the function is of a loaded module; each parameter points to the bytes of an argument, which the driver
        // copies; they are as many and as large as the kernel's (checked where the driver says, and by the SIMT machine
        // everywhere). That the kernel touches only the named parts of buffers is the promise of the caller.
        let code = unsafe {
            (inner.api.launch)(
                kernel.function,
                gx,
                gy,
                gz,
                bx,
                by,
                bz,
                launch.shared,
                inner.stream,
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        // An error here may be that of an earlier kernel.
        inner.check(format_args!("cannot start {}", launch.kernel), code)?;
        *lock(&inner.last) = launch.kernel;
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        self.inner.not_recording("synchronize")?;
        count(&self.inner.counters.synchronizations);
        self.inner.enter()?;
        self.inner.synchronize()
    }

    fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let inner = &self.inner;
        let recording = Recording::begin(inner)?;
        work()?;
        Graph::new(inner, recording)
    }

    unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        let inner = &self.inner;
        inner.not_recording("replay")?;
        if !Arc::ptr_eq(inner, &graph.inner) {
            return Err(inner.defect("replay", "the graph was recorded on another device"));
        }
        inner.enter()?;
        // SAFETY: the graph is of this context; its buffers are there and used by no one else, by the caller's promise.
        count(&inner.counters.replays);
        inner.check("cannot start a graph", unsafe { (inner.api.graph_launch)(graph.exec, inner.stream) })?;
        *lock(&inner.last) = "one of a graph";
        Ok(())
    }

    fn record(&self) -> Result<Event> {
        let inner = &self.inner;
        inner.not_recording("record")?;
        inner.enter()?;
        let mut event: CUevent = std::ptr::null_mut();
        // SAFETY: writes an event, with timing.
        inner.check("cannot make an event", unsafe { (inner.api.event_create)(&raw mut event, 0) })?;
        let event = Event { inner: Arc::clone(inner), event };
        // SAFETY: event and stream are of this context.
        let code = unsafe { (inner.api.event_record)(event.event, inner.stream) };
        inner.check("cannot record an event", code)?;
        Ok(event)
    }

    fn elapsed_ms(&self, from: &Event, to: &Event) -> Result<f32> {
        let inner = &self.inner;
        inner.not_recording("elapsed_ms")?;
        count(&inner.counters.synchronizations);
        inner.enter()?;
        let mut ms = 0.0;
        for event in [from, to] {
            // SAFETY: the event lives as long as it is borrowed.
            let code = unsafe { (inner.api.event_synchronize)(event.event) };
            inner.check("waiting for the card", code)?;
        }
        // SAFETY: writes a number; both events were recorded, with timing.
        let code = unsafe { (inner.api.event_elapsed)(&raw mut ms, from.event, to.event) };
        inner.check("cannot take the time", code)?;
        Ok(ms)
    }
}

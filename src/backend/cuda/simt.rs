//! The host SIMT machine as a [`Device`]: the kernels of `cuda/` compiled for the CPU, every access watched.
//! See docs/simt.md.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::device::{Access, Argument, Counters, Counts, Device, Facts, Launch, count};
pub use super::fault::Fault;
use super::fault::{RawFault, report, text};
use super::gemm::{GemmCall, GemmLibrary};
use crate::error::{Error, Result};

mod library;
mod memory;

pub use memory::Memory;

include!(concat!(env!("OUT_DIR"), "/simt_kernels.rs"));

// As in cuda/simt/machine.hpp.
#[repr(C)]
struct Extent {
    start: u64,
    bytes: u64,
    access: u32,
    name: *const c_char,
}

#[repr(C)]
struct RawOptions {
    seed: u64,
    check: u32,
    stop_after: u32,
    report: extern "C" fn(*mut c_void, *const RawFault),
    context: *mut c_void,
}

unsafe extern "C" {
    fn simt_kernels(
        context: *mut c_void,
        each: extern "C" fn(*mut c_void, *const c_char, *const c_char, u32),
    );
    fn simt_allocate(bytes: u64) -> *mut u8;
    fn simt_free(start: *mut u8, bytes: u64);
    fn simt_launch(
        name: *const c_char,
        grid: *const u32,
        block: *const u32,
        shared_bytes: u32,
        parameters: *const *const c_void,
        sizes: *const u32,
        parameter_count: u32,
        extents: *const Extent,
        extent_count: u32,
        options: *const RawOptions,
    ) -> u32;
}

/// How the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Of the schedule. 0: a warp runs on until a barrier; otherwise threads take turns at random.
    pub seed: u64,
    /// Whether every access is watched (two to three times slower); without it only accesses outside of all memory and
    /// misuse of barriers, warps and copies are found.
    pub check: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 0, check: true }
    }
}

/// Block size and dynamic shared memory that a kernel was launched with, at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Geometry {
    pub threads: u32,
    pub shared: u32,
}

/// What the names of kernels begin with whose accesses are not announced.
const UNWATCHED: &str = "unwatched_";

/// Whether this machine has the instructions of the copies of the kernels that announce no access.
fn runs_unwatched() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    has || !FUSED
}

/// What is done to launches before they start.
pub type Change = Box<dyn Fn(&mut Launch<'_>) + Send + Sync>;
type Tamper = Arc<dyn Fn(&mut Launch<'_>) + Send + Sync>;

/// The machine. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Simt {
    shared: Arc<Shared>,
}

struct Shared {
    facts: Facts,
    kernels: BTreeSet<String>,
    options: Options,
    /// Put before kernel names: runs mutants.
    prefix: String,
    tamper: Option<Tamper>,
    /// While recording: what to do later.
    recording: Mutex<Option<Vec<Work>>>,
    plan: Mutex<BTreeMap<&'static str, Geometry>>,
    faults: Mutex<Vec<Fault>>,
    counters: Counters,
    limits: Limits,
    /// Bytes allocated.
    used: Arc<AtomicU64>,
    /// Kernels run.
    run: AtomicU64,
}

/// What a machine lacks, for tests of what happens then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Kernels that run before the machine is lost, as a card is whose driver failed: every call fails from then on.
    pub lose_after: Option<u64>,
}

#[derive(Clone)]
enum Work {
    Launch(Box<Launch<'static>>),
    Fill { address: u64, bytes: usize, value: u8 },
    Product { library: Arc<library::OnHost>, call: GemmCall },
}

impl Simt {
    pub fn new(options: Options) -> Self {
        Self::build(options, String::new(), None, Limits::default())
    }

    /// A machine that lacks something.
    pub fn with_limits(options: Options, limits: Limits) -> Self {
        Self::build(options, String::new(), None, limits)
    }

    /// A machine that runs the mutants whose names begin with `prefix`, and changes launches by `tamper` before they
    /// start: for tests of the machine itself.
    pub fn with_bugs(options: Options, prefix: &str, tamper: Option<Change>) -> Self {
        Self::build(options, prefix.to_owned(), tamper.map(Arc::from), Limits::default())
    }

    fn build(options: Options, prefix: String, tamper: Option<Tamper>, limits: Limits) -> Self {
        link_kernel_files();
        let facts = Facts {
            name: "host SIMT machine".into(),
            capability: (8, 0),
            multiprocessors: 1,
            memory: limits.memory.unwrap_or(8 << 30),
            shared_per_block: 163 << 10,
            driver: None,
        };
        let shared = Shared {
            facts,
            kernels: Self::kernels().into_iter().map(|(name, ..)| name).collect(),
            options,
            prefix,
            tamper,
            recording: Mutex::new(None),
            plan: Mutex::default(),
            faults: Mutex::default(),
            counters: Counters::default(),
            limits,
            used: Arc::default(),
            run: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The names of all kernels, mutants and faulty ones left out, with the file each is in and its threads a block.
    pub fn kernels() -> Vec<(String, String, u32)> {
        extern "C" fn each(context: *mut c_void, name: *const c_char, file: *const c_char, threads: u32) {
            // SAFETY: `context` is the vector below, borrowed by no one else during the call.
            let list = unsafe { &mut *context.cast::<Vec<(String, String, u32)>>() };
            list.push((text(name), text(file), threads));
        }
        link_kernel_files();
        let mut list: Vec<(String, String, u32)> = Vec::new();
        // SAFETY: `each` takes the context for what it is, and is called before this returns.
        unsafe { simt_kernels((&raw mut list).cast(), each) };
        list.retain(|(_, file, _)| !file.starts_with("cuda/simt/"));
        list.retain(|(name, ..)| !name.starts_with("plant_") && !name.starts_with(UNWATCHED));
        list.sort();
        list
    }

    /// Block size and shared memory of every kernel launched so far.
    pub fn plan(&self) -> BTreeMap<&'static str, Geometry> {
        lock(&self.shared.plan).clone()
    }

    /// The faults found so far, and forgets them.
    pub fn take_faults(&self) -> Vec<Fault> {
        std::mem::take(&mut *lock(&self.shared.faults))
    }

    /// Fails once the machine is lost.
    fn alive(&self) -> Result<()> {
        match self.shared.limits.lose_after {
            Some(most) if self.shared.run.load(Ordering::Relaxed) >= most => Err(Error::Device {
                device: "simt".into(),
                what: "CUDA_ERROR_LAUNCH_FAILED (the machine was lost, as it was asked to be)".into(),
                hint: "the process must end".into(),
            }),
            _ => Ok(()),
        }
    }

    fn do_launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.alive()?;
        count(&self.shared.run);
        let mut launch = launch.clone();
        if let Some(tamper) = &self.shared.tamper {
            tamper(&mut launch);
        }
        let threads = launch.block.iter().product();
        let mut plan = lock(&self.shared.plan);
        let geometry = plan.entry(launch.kernel).or_default();
        geometry.threads = geometry.threads.max(threads);
        geometry.shared = geometry.shared.max(launch.shared);
        drop(plan);
        let limit = self.shared.facts.shared_per_block;
        if launch.shared > limit {
            return Err(refused(
                launch.kernel,
                format!("asks for {} bytes of shared memory, of {limit}", launch.shared),
            ));
        }
        if launch.is_empty() {
            return Ok(());
        }
        let arguments = launch.arguments();
        let parameters: Vec<*const c_void> =
            arguments.iter().map(|a: &Argument| (&raw const a.bits).cast()).collect();
        let sizes: Vec<u32> = arguments.iter().map(|a| a.size).collect();
        let named: Vec<(CString, u64, u64, Access)> = arguments
            .iter()
            .filter_map(|a| a.memory.map(|(name, bytes, access)| (c_string(name), a.bits, bytes, access)))
            .collect();
        let extents: Vec<Extent> = named
            .iter()
            .map(|(name, start, bytes, access)| Extent {
                start: *start,
                bytes: *bytes,
                access: *access as u32,
                name: name.as_ptr(),
            })
            .collect();
        let mut faults: Vec<Fault> = Vec::new();
        let options = RawOptions {
            seed: self.shared.options.seed,
            check: self.shared.options.check.into(),
            stop_after: 8,
            report,
            context: (&raw mut faults).cast(),
        };
        let start = |name: &CStr| {
            // SAFETY: every pointer is to something that lives until the call returns; parameters are as many as their
            // sizes. That the kernel touches only the named parts of buffers is the promise of `launch`'s caller.
            unsafe {
                simt_launch(
                    name.as_ptr(),
                    launch.grid.as_ptr(),
                    launch.block.as_ptr(),
                    launch.shared,
                    parameters.as_ptr(),
                    sizes.as_ptr(),
                    sizes.len() as u32,
                    extents.as_ptr(),
                    extents.len() as u32,
                    &raw const options,
                )
            }
        };
        let prefix = if self.shared.prefix.is_empty() && !self.shared.options.check && runs_unwatched() {
            UNWATCHED
        } else {
            self.shared.prefix.as_str()
        };
        let mut found = start(&c_string(&format!("{prefix}{}", launch.kernel)));
        if found == u32::MAX && !prefix.is_empty() {
            // A kernel of a file that has no mutant.
            found = start(&c_string(launch.kernel));
        }
        match found {
            u32::MAX => Err(refused(launch.kernel, "there is no kernel of this name".into())),
            n if n == u32::MAX - 1 => Err(refused(
                launch.kernel,
                format!("its parameters are not the {} arguments of {sizes:?} bytes", sizes.len()),
            )),
            0 => Ok(()),
            _ => {
                let text: Vec<String> = faults.iter().map(ToString::to_string).collect();
                lock(&self.shared.faults).append(&mut faults);
                Err(refused(launch.kernel, text.join("; ")))
            }
        }
    }

    fn not_recording(&self, what: &str) -> Result<()> {
        if lock(&self.shared.recording).is_some() {
            return Err(refused(what, "not possible while a graph is being recorded".into()));
        }
        Ok(())
    }
}

fn refused(kernel: &str, what: String) -> Error {
    Error::Device {
        device: "simt".into(),
        what: format!("{kernel}: {what}"),
        hint: "this is a defect of a kernel or of its launch code".into(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names come from string literals without NUL.
fn c_string(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

/// What a capture recorded.
pub struct Graph(Vec<Work>);

impl Device for Simt {
    type Memory = Memory;
    type Graph = Graph;
    type Event = Instant;

    fn facts(&self) -> &Facts {
        &self.shared.facts
    }

    fn has_kernel(&self, name: &str) -> bool {
        self.shared.kernels.contains(name)
    }

    fn allocate(&self, bytes: usize) -> Result<Memory> {
        self.alive()?;
        count(&self.shared.counters.allocations);
        let free = self.free_memory()?;
        let start = if bytes as u64 > free {
            std::ptr::null_mut()
        } else {
            // SAFETY: any size may be asked for.
            unsafe { simt_allocate(bytes as u64) }
        };
        if start.is_null() {
            return Err(Error::Memory {
                what: "a buffer on the SIMT machine".into(),
                needed: bytes as u128,
                limit: format!("of {} there {free} are free", self.shared.facts.memory),
                hint: "use a shorter length, a smaller batch or a smaller model".into(),
            });
        }
        self.shared.used.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(Memory { start, bytes, used: Arc::clone(&self.shared.used) })
    }

    fn address(memory: &Memory) -> u64 {
        memory.start as u64
    }

    fn upload(&self, dst: &Memory, at: usize, src: &[u8]) -> Result<()> {
        self.not_recording("upload")?;
        self.alive()?;
        count(&self.shared.counters.uploads);
        count(&self.shared.counters.synchronizations);
        let to = dst.part(at, src.len())?;
        // SAFETY: `part` checked the range; `src` is the host's, and the machine's memory is its own.
        unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), to, src.len()) };
        Ok(())
    }

    fn send(&self, dst: &Memory, at: usize, src: &[u8]) -> Result<()> {
        self.not_recording("send")?;
        self.alive()?;
        count(&self.shared.counters.sends);
        let to = dst.part(at, src.len())?;
        // SAFETY: `part` checked the range; `src` is the host's, and the machine's memory is its own.
        unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), to, src.len()) };
        Ok(())
    }

    fn download(&self, src: &Memory, at: usize, dst: &mut [u8]) -> Result<()> {
        self.not_recording("download")?;
        self.alive()?;
        count(&self.shared.counters.downloads);
        count(&self.shared.counters.synchronizations);
        let from = src.part(at, dst.len())?;
        // SAFETY: `part` checked the range; `dst` is borrowed alone.
        unsafe { std::ptr::copy_nonoverlapping(from, dst.as_mut_ptr(), dst.len()) };
        Ok(())
    }

    fn fill(&self, dst: &Memory, at: usize, bytes: usize, value: u8) -> Result<()> {
        let to = dst.part(at, bytes)?;
        if let Some(work) = &mut *lock(&self.shared.recording) {
            work.push(Work::Fill { address: to as u64, bytes, value });
            return Ok(());
        }
        // SAFETY: `part` checked the range.
        unsafe { std::ptr::write_bytes(to, value, bytes) };
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        if let Some(work) = &mut *lock(&self.shared.recording) {
            work.push(Work::Launch(Box::new(launch.detached())));
            count(&self.shared.counters.recorded);
            return Ok(());
        }
        count(&self.shared.counters.launches);
        self.do_launch(launch)
    }

    fn gemm_library(&self) -> Result<Arc<dyn GemmLibrary>> {
        library::open(self)
    }

    fn free_memory(&self) -> Result<u64> {
        self.alive()?;
        Ok(self.shared.facts.memory.saturating_sub(self.shared.used.load(Ordering::Relaxed)))
    }

    fn counts(&self) -> Counts {
        self.shared.counters.get()
    }

    fn synchronize(&self) -> Result<()> {
        count(&self.shared.counters.synchronizations);
        self.alive()
    }

    fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.not_recording("capture")?;
        *lock(&self.shared.recording) = Some(Vec::new());
        let done = work();
        let recorded = lock(&self.shared.recording).take().unwrap_or_default();
        done.map(|()| Graph(recorded))
    }

    unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        self.not_recording("replay")?;
        count(&self.shared.counters.replays);
        for work in &graph.0 {
            match work {
                Work::Launch(launch) => self.do_launch(launch)?,
                Work::Fill { address, bytes, value } => {
                    // SAFETY: the range was checked when it was recorded, and the caller of `replay` promises that
                    // the memory is still there.
                    unsafe { std::ptr::write_bytes(*address as *mut u8, *value, *bytes) };
                }
                Work::Product { library, call } => {
                    self.alive()?;
                    count(&self.shared.run);
                    // SAFETY: it was the caller's promise when this was recorded, and memory is still there.
                    unsafe { library.multiply(call) }?;
                }
            }
        }
        Ok(())
    }

    fn record(&self) -> Result<Instant> {
        Ok(Instant::now())
    }

    fn elapsed_ms(&self, from: &Instant, to: &Instant) -> Result<f32> {
        count(&self.shared.counters.synchronizations);
        Ok(to.duration_since(*from).as_secs_f32() * 1e3)
    }
}

//! What a process does to itself between its start and that of Python.

use std::io;
use std::os::fd::RawFd;

use libc::c_int;

use super::filter::Filters;
use crate::eval::sandbox::Limits;

/// Open files, pipes included.
const FILES: u64 = 64;
/// Bytes of a stack, so that programs do not depend on what the user's are allowed to be.
const STACK: u64 = 8 << 20;
/// Bytes of stack that the rest of the start takes at most.
const STACK_HERE: usize = 32 << 10;

/// What is done, in order.
#[derive(Clone, Copy, Debug)]
enum Step {
    Session,
    Parent,
    Files,
    Pipe,
    Limits,
    Capabilities,
    Filters,
}

impl Step {
    const ALL: [Step; 7] = [
        Step::Session,
        Step::Parent,
        Step::Files,
        Step::Pipe,
        Step::Limits,
        Step::Capabilities,
        Step::Filters,
    ];
    /// A step is told in the bits above those of the system's error number.
    const SHIFT: u32 = 16;

    const fn name(self) -> &'static str {
        match self {
            Step::Session => "lead a session of its own (setsid)",
            Step::Parent => "be made to end with its parent (prctl)",
            Step::Files => "close its parent's files (close_range)",
            Step::Pipe => "keep its pipe (fcntl)",
            Step::Limits => "set limits (setrlimit)",
            Step::Capabilities => "give up capabilities (capset)",
            Step::Filters => "install system call filters (seccomp)",
        }
    }
}

/// A limit: which, from where on there are signals or errors, and the most that it can be raised to.
#[derive(Clone, Copy, Debug)]
struct Limit(c_int, u64, u64);

/// All that the process needs to know, made before it is there.
#[derive(Debug)]
pub struct Confinement {
    parent: u32,
    /// The one descriptor besides the standard streams that it keeps.
    report: RawFd,
    limits: [Limit; 6],
    filters: Filters,
}

impl Confinement {
    /// To be made by the process that will be the parent.
    pub fn new(limits: &Limits, report: RawFd, filters: Filters) -> Self {
        // The clock ends it first, unless the parent cannot.
        let seconds = limits.seconds.ceil() as u64 + 1;
        let limits = [
            Limit(libc::RLIMIT_CPU as c_int, seconds, seconds + 5),
            Limit(libc::RLIMIT_FSIZE as c_int, limits.file, limits.file),
            // One byte turns core dumps off; none would still start a program that collects them.
            Limit(libc::RLIMIT_CORE as c_int, 1, 1),
            Limit(libc::RLIMIT_NOFILE as c_int, FILES, FILES),
            Limit(libc::RLIMIT_STACK as c_int, STACK, STACK),
            // The last: what a large parent left here is already beyond it.
            Limit(libc::RLIMIT_AS as c_int, limits.memory, limits.memory),
        ];
        Self { parent: std::process::id(), report, limits, filters }
    }

    /// Confines the process for good. Makes system calls and writes to memory of its own; allocates nothing and takes
    /// no lock, so that it may be called in a process that was split off one with threads.
    ///
    /// # Errors
    /// The system's, with the step in it: see [`explain`].
    pub fn enter(&mut self) -> io::Result<()> {
        // The stack cannot grow any more behind the limit on memory.
        std::hint::black_box(&mut [0_u8; STACK_HERE]);
        // SAFETY: no memory is passed.
        check(Step::Session, unsafe { libc::setsid() })?;
        // SAFETY: this option takes a signal.
        check(Step::Parent, unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) })?;
        // SAFETY: no memory is passed.
        if unsafe { libc::getppid() } as u32 != self.parent {
            // It ended before it could be said that this ends with it.
            return Err(failed(Step::Parent, libc::ESRCH));
        }
        close_others()?;
        // SAFETY: this command takes flags.
        check(Step::Pipe, unsafe { libc::fcntl(self.report, libc::F_SETFD, 0) })?;
        for &limit in &self.limits {
            limit.set()?;
        }
        drop_capabilities()?;
        // SAFETY: no memory is passed.
        self.filters.set_process(unsafe { libc::getpid() } as u32);
        for filter in [&self.filters.forbidden, &self.filters.needed] {
            if seccompiler::apply_filter(filter).is_err() {
                return Err(last(Step::Filters));
            }
        }
        Ok(())
    }
}

impl Limit {
    /// Sets it, or as much of it as is allowed.
    fn set(self) -> io::Result<()> {
        let Limit(which, soft, hard) = self;
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // The type of `which` differs between C libraries.
        // SAFETY: `limit` is there to be written.
        check(Step::Limits, unsafe { libc::getrlimit(which as _, &mut limit) })?;
        limit = libc::rlimit { rlim_cur: soft.min(limit.rlim_max), rlim_max: hard.min(limit.rlim_max) };
        // SAFETY: `limit` is there to be read.
        check(Step::Limits, unsafe { libc::setrlimit(which as _, &limit) })
    }
}

/// Has all files but the standard streams closed when Python starts, and not before: one of them tells the parent of
/// a failure.
fn close_others() -> io::Result<()> {
    // SAFETY: no memory is passed.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, c_int::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 {
        return Ok(());
    }
    // Linux before 5.11 cannot do that.
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is there to be written.
    check(Step::Files, unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    for file in 3..limit.rlim_cur.min(1 << 20) as c_int {
        // SAFETY: this command takes flags; for a file that is not open it is an error without consequence.
        unsafe { libc::fcntl(file, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(())
}

/// Gives up what a superuser may do. Python, started later by the same user, gets none of it back: `no_new_privs` is
/// set with the filters.
fn drop_capabilities() -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        process: c_int,
    }
    /// Third version of the interface: two words of each set, low one first.
    const VERSION: u32 = 0x2008_0522;
    let header = Header { version: VERSION, process: 0 };
    let none = [0_u32; 6];
    // SAFETY: a header and two times three words, as this version of the interface reads them.
    let done = unsafe { libc::syscall(libc::SYS_capset, &header, none.as_ptr()) };
    check(Step::Capabilities, done as c_int)
}

fn check(step: Step, done: c_int) -> io::Result<()> {
    if done < 0 { Err(last(step)) } else { Ok(()) }
}

fn last(step: Step) -> io::Error {
    failed(step, io::Error::last_os_error().raw_os_error().unwrap_or_default())
}

/// A number is all that reaches the parent.
fn failed(step: Step, number: c_int) -> io::Error {
    io::Error::from_raw_os_error(((step as c_int + 1) << Step::SHIFT) | number)
}

/// The step that failed and why, of an error that [`Confinement::enter`] returned in the other process.
pub fn explain(error: &io::Error) -> Option<(&'static str, io::Error)> {
    let number = error.raw_os_error()?;
    let step = usize::try_from(number >> Step::SHIFT).ok()?.checked_sub(1)?;
    let number = number & ((1 << Step::SHIFT) - 1);
    Some((Step::ALL.get(step)?.name(), io::Error::from_raw_os_error(number)))
}

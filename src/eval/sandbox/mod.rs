//! Running Python programs that nobody has read: in a process of their own, with limits on time and memory, that
//! can start no other process, reach no network, write no file and send no signal to others.
//!
//! A program is run by a small harness in a process that, before Python starts in it,
//!
//! - leads a session of its own, ends with the thread that started it, and loses all capabilities;
//! - gets limits on address space, processor time, open files and the size of a file;
//! - keeps no open file of its parent but its pipes;
//! - gets two seccomp filters for good. The first ends it at once for system calls that no program under test has
//!   a use for ([`Verdict::Forbidden`]); the second lets through those that Python needs and has all others answered
//!   as unknown to the system.
//!
//! The parent ends it when its time is over, drains what it writes, keeps the last of it, and has waited for it when
//! [`Sandbox::run`] returns: since it can start nothing, nothing of it is left.
//!
//! What this does not do:
//!
//! - A program can read what its user can read. It has no way to pass that on but its last words.
//! - Whether it passed is told by a random token that the harness writes when the program is through, not by the exit
//!   code, so a program that ends early, or closes or replaces standard streams, has not passed. The harness is in the
//!   same interpreter, though: a program that is out to cheat can find the token in the frames below its own, as it
//!   can make objects that are equal to everything.
//! - Harmless programs fail too if they use packages beyond the standard library, files of their own, or `asyncio`,
//!   whose loops begin with a pair of sockets. Hashes of strings are the same in every run.
//! - It relies on the kernel to be without faults. For programs of an adversary use a virtual machine.

#[cfg_attr(
    not(all(
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64"),
        target_pointer_width = "64"
    )),
    path = "elsewhere.rs"
)]
mod machine;
#[cfg(test)]
mod tests;

use std::path::Path;

use crate::error::{Error, Result};
use machine::Machine;

/// Longest time a program may be given, in seconds.
const LONGEST: f64 = 86_400.0;

/// What a program may use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Seconds on the clock, the start of Python included.
    pub seconds: f64,
    /// Bytes of address space, those of Python itself included.
    pub memory: u64,
    /// Bytes of a file. No file can be opened for writing: this is a second bar for what the first should miss.
    pub file: u64,
    /// Bytes of standard error that are kept, the last ones.
    pub output: usize,
}

impl Default for Limits {
    /// 10 seconds, 1 GiB, files of 16 MiB, 64 KiB of output.
    fn default() -> Self {
        Self { seconds: 10.0, memory: 1 << 30, file: 16 << 20, output: 64 << 10 }
    }
}

impl Limits {
    fn check(&self) -> Result<()> {
        let Limits { seconds, memory, file, output } = *self;
        if !(seconds > 0.0 && seconds <= LONGEST) {
            return Err(Error::request(format_args!(
                "the time limit of a program is {seconds} s: expected more than 0 and at most {LONGEST}"
            )));
        }
        let sizes = [("memory", memory), ("file", file), ("output", output as u64)];
        match sizes.into_iter().find(|&(_, size)| size == 0) {
            Some((name, _)) => Err(Error::request(format_args!(
                "the {name} limit of a program is 0 bytes: expected more than 0"
            ))),
            None => Ok(()),
        }
    }
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It came to its end without an exception.
    Passed,
    /// An exception, an early exit, or no valid program.
    Failed,
    /// Its time was over.
    TimedOut,
    /// It wanted more memory than allowed, or the system had no more.
    OutOfMemory,
    /// It made a system call that is not allowed (a process, a connection, a file to write, a signal to another
    /// process and the like), or too many threads.
    Forbidden,
    /// Another signal ended it, such as that of a crash.
    Killed,
}

impl Verdict {
    /// All, in the order of tables.
    pub const ALL: [Verdict; 6] = [
        Verdict::Passed,
        Verdict::Failed,
        Verdict::TimedOut,
        Verdict::OutOfMemory,
        Verdict::Forbidden,
        Verdict::Killed,
    ];

    /// A word for tables.
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::Failed => "failed",
            Verdict::TimedOut => "timed-out",
            Verdict::OutOfMemory => "out-of-memory",
            Verdict::Forbidden => "forbidden",
            Verdict::Killed => "killed",
        }
    }
}

/// What became of a program.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// How it ended.
    pub verdict: Verdict,
    /// Seconds from its start to its end.
    pub seconds: f64,
    /// The last line of standard error, or, without one, what there is to say about the end; at most 200 characters,
    /// none of them a control character. Empty for most programs that pass.
    pub message: String,
}

/// Runs programs, also from several threads at once. See the [module](self) for what it keeps them from.
#[derive(Debug)]
pub struct Sandbox {
    machine: Machine,
    limits: Limits,
}

impl Sandbox {
    /// Finds Python (`python3` on the search path, if none is named) and tries the sandbox with two small programs,
    /// one that must pass and one that must be ended for starting a process.
    ///
    /// # Errors
    /// [`Error::Request`] for a limit that is not positive and finite; where there is no Python 3.8 or newer; where
    /// the system lacks something the sandbox needs, or is another one than Linux on x86-64 or arm64; and where the
    /// limits are too low for Python. [`Error::Io`] where the process cannot be started or waited for.
    pub fn new(python: Option<&Path>, limits: Limits) -> Result<Self> {
        limits.check()?;
        let mut sandbox = Self { machine: Machine::new(python)?, limits };
        for (program, expected) in [("pass", Verdict::Passed), ("import os\nos.fork()", Verdict::Forbidden)] {
            let Outcome { verdict, message, .. } = sandbox.run(program)?;
            if verdict != expected {
                return Err(Error::request(format_args!(
                    "the sandbox does not work here: the program {program:?} {}, expected that it {} ({message}); the \
                     limits are {} s and {} bytes of memory, which may be too low",
                    ended(verdict),
                    ended(expected),
                    limits.seconds,
                    limits.memory
                )));
            }
        }
        // The next program may be far off: a model is loaded first.
        sandbox.machine.clear();
        Ok(sandbox)
    }

    /// What a program may use.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Version of the Python that runs the programs, such as `3.11.7`.
    pub fn version(&self) -> &str {
        self.machine.version()
    }

    /// Runs a program to its end.
    ///
    /// The process ends with the calling thread, should that end first.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Request`] where the process cannot be started or waited for; whatever the program
    /// does is an [`Outcome`].
    pub fn run(&self, program: &str) -> Result<Outcome> {
        self.machine.run(&self.limits, program)
    }
}

const fn ended(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "passed",
        Verdict::Failed => "failed",
        Verdict::TimedOut => "timed out",
        Verdict::OutOfMemory => "ran out of memory",
        Verdict::Forbidden => "was ended by the filter",
        Verdict::Killed => "was killed",
    }
}

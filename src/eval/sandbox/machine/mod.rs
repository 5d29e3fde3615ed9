//! The sandbox on Linux.

mod confine;
mod filter;

use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, PipeReader, Read, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use self::confine::{Confinement, explain};
use self::filter::Filters;
use super::{Limits, Outcome, Verdict};
use crate::error::{Error, Result};

/// Runs a program that comes on standard input.
const HARNESS: &str = include_str!("../harness.py");
/// Tells what an interpreter is, and where: what is found on a search path may be a script that starts another.
const ABOUT: &str = "import sys\nprint(sys.executable)\nprint('.'.join(map(str, sys.version_info[:3])))";
/// Nothing but the standard library, and nothing is written. Isolated mode (`-I`) would have it pass over the
/// environment, which is made here; with it strings would have other hashes, and sets another order, every time.
const OPTIONS: [&str; 4] = ["-s", "-S", "-B", "-c"];
/// Oldest Python.
const OLDEST: (u32, u32) = (3, 8);
/// Threads of a program at most.
const MOST_THREADS: u64 = 256;
/// How long to wait at most before looking at threads and end again; and, once all pipes are closed, at the end.
const TICK: Duration = Duration::from_millis(50);
const SHORT_TICK: Duration = Duration::from_millis(2);
/// Bytes that can be written to a pipe that is ready without waiting.
const PIPE_PART: usize = 4096;
/// Characters of a message.
const MESSAGE: usize = 200;

/// An interpreter and what confines it.
#[derive(Debug)]
pub struct Machine {
    python: PathBuf,
    version: String,
    /// Where programs are run, from the first one on. Nothing can be written, so it is empty for each.
    folder: OnceLock<TempDir>,
    filters: Filters,
}

impl Machine {
    /// # Errors
    /// [`Error::Request`] without a Python that is new enough.
    pub fn new(python: Option<&Path>) -> Result<Self> {
        let (python, version) = find(python.unwrap_or(Path::new("python3")))?;
        Ok(Self { python, version, folder: OnceLock::new(), filters: Filters::new()? })
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    /// Where programs are run: made for the first one.
    ///
    /// # Errors
    /// [`Error::Io`] without a temporary folder.
    pub fn folder(&self) -> Result<&Path> {
        if let Some(folder) = self.folder.get() {
            return Ok(folder.path());
        }
        let folder = tempfile::Builder::new().prefix("lacuna-").tempdir();
        let folder = folder.map_err(|e| Error::io("make a folder in", std::env::temp_dir(), e))?;
        // Of those that several threads make at once one stays, and the others are removed.
        Ok(self.folder.get_or_init(|| folder).path())
    }

    /// Removes the folder until there is another program: a process that ends in between leaves nothing behind.
    pub fn clear(&mut self) {
        drop(self.folder.take());
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Request`] where the process cannot be started or waited for.
    pub fn run(&self, limits: &Limits, program: &str) -> Result<Outcome> {
        let fail = |e| Error::io("run", self.python.clone(), e);
        let token = token();
        let (report, to_report) = io::pipe().map_err(fail)?;
        let started = Instant::now();
        let mut running = self.start(limits, to_report.as_raw_fd())?;
        drop(to_report);
        // If the system runs out of memory it should take this one. It is a hint.
        let _ = fs::write(format!("/proc/{}/oom_score_adj", running.0.id()), "1000");
        let mut pipes = Pipes {
            input: running.0.stdin.take(),
            pending: format!("{token}\n{program}").into_bytes(),
            written: 0,
            report: Some(report),
            reported: Vec::new(),
            token: token.into_bytes(),
            errors: running.0.stderr.take(),
            tail: Tail { bytes: Vec::new(), most: limits.output },
        };
        let deadline = started + Duration::try_from_secs_f64(limits.seconds).unwrap_or_default();
        let end = supervise(&mut running, &mut pipes, deadline).map_err(fail)?;
        drop(running);
        Ok(outcome(end, started.elapsed().as_secs_f64(), limits, pipes.tail.last_line()))
    }

    fn start(&self, limits: &Limits, report: RawFd) -> Result<Running> {
        let mut confinement = Confinement::new(limits, report, self.filters.clone());
        let mut command = Command::new(&self.python);
        command.args(OPTIONS).arg(HARNESS).arg(report.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.current_dir(self.folder()?).env_clear();
        // A home that is looked up otherwise would have the C library connect to a name service.
        let environment =
            [("PYTHONHASHSEED", "0"), ("LC_ALL", "C.UTF-8"), ("HOME", "/"), ("MALLOC_ARENA_MAX", "1")];
        command.envs(environment);
        // Some builds of Python do not find their library without.
        if let Some(folders) = std::env::var_os("LD_LIBRARY_PATH") {
            command.env("LD_LIBRARY_PATH", folders);
        }
        // SAFETY: between the split and the start of Python this makes system calls and writes to memory that it
        // owns; it neither allocates nor takes a lock that a thread of the parent might have held.
        unsafe { command.pre_exec(move || confinement.enter()) };
        match command.spawn() {
            Ok(child) => Ok(Running(child)),
            Err(e) => Err(match explain(&e) {
                Some((step, why)) => Error::request(format_args!(
                    "the sandbox does not work here: a process could not {step}: {why}"
                )),
                None => Error::io("start", self.python.clone(), e),
            }),
        }
    }
}

/// The interpreter itself and its version.
fn find(python: &Path) -> Result<(PathBuf, String)> {
    let oldest = format!("Python {}.{} or newer", OLDEST.0, OLDEST.1);
    let wrong = |got: &dyn std::fmt::Display| {
        Error::request(format_args!(
            "programs need {oldest}: {} {got}; name an interpreter that works",
            python.display()
        ))
    };
    let mut command = Command::new(python);
    command.args(OPTIONS).arg(ABOUT).stdin(Stdio::null());
    let output = command.output().map_err(|e| wrong(&format_args!("cannot be started: {e}")))?;
    if !output.status.success() {
        return Err(wrong(&format_args!("does not say its version: {}", output.status)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines().map(str::trim);
    let (Some(path), Some(version)) = (lines.next(), lines.next()) else {
        return Err(wrong(&"does not say its version"));
    };
    let mut numbers = version.split('.').map_while(|part| part.parse::<u32>().ok());
    if numbers.next().zip(numbers.next()).is_none_or(|version| version < OLDEST) {
        return Err(wrong(&format_args!("is {version:.40}")));
    }
    if !Path::new(path).is_absolute() {
        return Err(wrong(&"does not know where it is"));
    }
    Ok((PathBuf::from(path), version.to_owned()))
}

/// Something that a program does not come upon by chance.
fn token() -> String {
    format!("{:016x}{:016x}", RandomState::new().hash_one(0_u8), RandomState::new().hash_one(1_u8))
}

/// A process that ends, and has been waited for, when this goes.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only where it has ended before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How the wait for a process ended.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The token was written.
    Reported,
    /// The time was over.
    Late,
    /// There were too many threads.
    Threads,
    /// It ended by itself or was ended.
    Exited(ExitStatus),
}

/// Waits until a process ends or has to be ended.
fn supervise(running: &mut Running, pipes: &mut Pipes, deadline: Instant) -> io::Result<End> {
    let threads = format!("/proc/{}/task", running.0.id());
    let mut look = Instant::now() + TICK;
    loop {
        if pipes.is_reported() {
            return Ok(End::Reported);
        }
        if let Some(status) = running.0.try_wait()? {
            // What it wrote last.
            while pipes.pass(Duration::ZERO)? {}
            return Ok(if pipes.is_reported() { End::Reported } else { End::Exited(status) });
        }
        let now = Instant::now();
        if now >= deadline {
            return Ok(End::Late);
        }
        if now >= look {
            // A folder has two links of its own, and one for each folder in it.
            if fs::metadata(&threads).is_ok_and(|folder| folder.nlink() > MOST_THREADS + 2) {
                return Ok(End::Threads);
            }
            look = now + TICK;
        }
        let most = if pipes.are_closed() { SHORT_TICK } else { TICK };
        pipes.pass(most.min(deadline - now))?;
    }
}

/// What goes to and comes from a process. A pipe whose other end is closed is `None`.
struct Pipes {
    input: Option<ChildStdin>,
    pending: Vec<u8>,
    /// Bytes of `pending` that are on their way.
    written: usize,
    report: Option<PipeReader>,
    reported: Vec<u8>,
    token: Vec<u8>,
    errors: Option<ChildStderr>,
    tail: Tail,
}

impl Pipes {
    fn is_reported(&self) -> bool {
        self.reported == self.token
    }

    fn are_closed(&self) -> bool {
        self.report.is_none() && self.errors.is_none()
    }

    /// Passes on what can be passed on at once, or else within `most`; whether that was anything.
    fn pass(&mut self, most: Duration) -> io::Result<bool> {
        let pipe = |file: Option<RawFd>, events| libc::pollfd { fd: file.unwrap_or(-1), events, revents: 0 };
        let mut wanted = [
            pipe(self.input.as_ref().map(|f| f.as_raw_fd()), libc::POLLOUT),
            pipe(self.report.as_ref().map(|f| f.as_raw_fd()), libc::POLLIN),
            pipe(self.errors.as_ref().map(|f| f.as_raw_fd()), libc::POLLIN),
        ];
        // Rounded up, so as not to ask again and again in the last millisecond.
        let most = most.as_micros().div_ceil(1000) as libc::c_int;
        // SAFETY: so many entries are there to be read and written; those with a negative file are passed over.
        let ready = unsafe { libc::poll(wanted.as_mut_ptr(), wanted.len() as libc::nfds_t, most) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(false) } else { Err(error) };
        }
        let [input, report, errors] = wanted.map(|pipe| pipe.revents != 0);
        if input {
            self.write();
        }
        let mut buffer = [0; 16 << 10];
        if report {
            let read = read(&mut self.report, &mut buffer);
            // One byte more than the token is enough to be wrong.
            let room = (self.token.len() + 1).saturating_sub(self.reported.len());
            self.reported.extend(read.iter().take(room));
        }
        if errors {
            self.tail.push(read(&mut self.errors, &mut buffer));
        }
        Ok(input || report || errors)
    }

    /// Writes a part that does not wait.
    fn write(&mut self) {
        let Some(input) = &mut self.input else { return };
        let rest = self.pending.get(self.written..).unwrap_or_default();
        let part = rest.get(..PIPE_PART).unwrap_or(rest);
        match input.write(part) {
            Ok(n) => self.written += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // The reader is gone: its end tells more.
            Err(_) => self.written = self.pending.len(),
        }
        if self.written == self.pending.len() {
            self.input = None;
        }
    }
}

/// Reads what is there from a pipe that is ready, and closes it where that is nothing.
fn read<'a>(from: &mut Option<impl Read>, buffer: &'a mut [u8]) -> &'a [u8] {
    let n = match from.as_mut().map(|pipe| pipe.read(buffer)) {
        Some(Err(e)) if e.kind() == io::ErrorKind::Interrupted => return &[],
        Some(Ok(n)) => n,
        _ => 0,
    };
    if n == 0 {
        *from = None;
    }
    buffer.get(..n).unwrap_or_default()
}

/// The last bytes of a stream.
struct Tail {
    bytes: Vec<u8>,
    most: usize,
}

impl Tail {
    /// Holds twice as much for a while, so that little is moved.
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > self.most.saturating_mul(2) {
            self.bytes.drain(..self.bytes.len() - self.most);
        }
    }

    /// The last line that is not blank.
    fn last_line(&self) -> String {
        let kept = self.bytes.get(self.bytes.len().saturating_sub(self.most)..).unwrap_or_default();
        let text = String::from_utf8_lossy(kept);
        let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let plain = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
        line.trim_end().chars().map(plain).take(MESSAGE).collect()
    }
}

fn outcome(end: End, seconds: f64, limits: &Limits, last_line: String) -> Outcome {
    let memory = last_line == "MemoryError" || last_line.starts_with("MemoryError:");
    let (verdict, note) = match end {
        End::Reported => (Verdict::Passed, String::new()),
        End::Late => (Verdict::TimedOut, format!("no end within {} s", limits.seconds)),
        End::Threads => (Verdict::Forbidden, format!("more than {MOST_THREADS} threads")),
        End::Exited(status) => match status.signal() {
            Some(libc::SIGSYS) => (Verdict::Forbidden, "a system call that is not allowed".to_owned()),
            Some(libc::SIGXCPU) => {
                (Verdict::TimedOut, format!("more processor time than {} s", limits.seconds))
            }
            // Not by this process.
            Some(libc::SIGKILL) => (Verdict::OutOfMemory, "ended by the system".to_owned()),
            Some(signal) => (Verdict::Killed, format!("signal {signal}")),
            None if memory => (Verdict::OutOfMemory, String::new()),
            None => {
                let code = status.code().unwrap_or_default();
                (Verdict::Failed, format!("exit with code {code} before its end"))
            }
        },
    };
    Outcome { verdict, seconds, message: if last_line.is_empty() { note } else { last_line } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::sandbox::Sandbox;

    #[test]
    fn a_folder_is_there_from_the_first_program_to_the_end() {
        let Ok(sandbox) = Sandbox::new(None, Limits::default()) else { return };
        assert!(sandbox.machine.folder.get().is_none(), "trials leave none");
        sandbox.run("pass").unwrap();
        let folder = sandbox.machine.folder.get().unwrap().path().to_owned();
        sandbox.run("pass").unwrap();
        assert_eq!(sandbox.machine.folder().unwrap(), folder);
        assert!(folder.is_dir());
        drop(sandbox);
        assert!(!folder.exists());
    }
}

//! What the SIMT machine reports.

use std::ffi::{CStr, c_char, c_void};

/// What the machine found wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// "race: read after write", "global memory out of bounds", "deadlock", ...
    pub kind: String,
    pub text: String,
    pub kernel: String,
    pub block: [u32; 3],
    pub thread: [u32; 3],
    /// Source file and line, innermost first.
    pub place: Option<(String, u32)>,
    /// The other party of a race: its thread's number in the block, and its place.
    pub other: Option<(u32, Option<(String, u32)>)>,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, text, kernel, block, thread, place, other } = self;
        write!(f, "{kind} in {kernel}, block {block:?}, thread {thread:?}")?;
        if let Some((file, line)) = place {
            write!(f, ", {file}:{line}")?;
        }
        write!(f, ": {text}")?;
        if let Some((thread, place)) = other {
            write!(f, "; the other party is thread {thread}")?;
            if let Some((file, line)) = place {
                write!(f, " at {file}:{line}")?;
            }
        }
        Ok(())
    }
}

// As in cuda/simt/machine.hpp.
#[repr(C)]
pub(super) struct RawFault {
    kind: *const c_char,
    text: *const c_char,
    kernel: *const c_char,
    block: [u32; 3],
    thread: [u32; 3],
    file: *const c_char,
    line: i32,
    pc: *const c_void,
    other_thread: i64,
    other_file: *const c_char,
    other_line: i32,
    other_pc: *const c_void,
}

/// A string of the machine's.
pub(super) fn text(c: *const c_char) -> String {
    if c.is_null() {
        return String::new();
    }
    // SAFETY: not null, and all strings that the machine hands out end with NUL and live through the call.
    unsafe { CStr::from_ptr(c) }.to_string_lossy().into_owned()
}

/// Adds a fault to the vector that is the context.
pub(super) extern "C" fn report(context: *mut c_void, fault: *const RawFault) {
    // SAFETY: the machine passes on the context of the launch, a vector that nothing else touches until the launch
    // returns, and a fault that lives through this call.
    let (faults, fault) = unsafe { (&mut *context.cast::<Vec<Fault>>(), &*fault) };
    let other = u32::try_from(fault.other_thread)
        .ok()
        .map(|thread| (thread, place(fault.other_file, fault.other_line, fault.other_pc)));
    faults.push(Fault {
        kind: text(fault.kind),
        text: text(fault.text),
        kernel: text(fault.kernel),
        block: fault.block,
        thread: fault.thread,
        place: place(fault.file, fault.line, fault.pc),
        other,
    });
}

/// File and line, as the machine knows them or as the program's debug information says of an address.
fn place(file: *const c_char, line: i32, pc: *const c_void) -> Option<(String, u32)> {
    if !file.is_null() {
        return Some((text(file), u32::try_from(line).unwrap_or(0)));
    }
    if pc.is_null() {
        return None;
    }
    let mut found = None;
    // The address is that of a return: the access is just before.
    let before = pc.cast::<u8>().wrapping_sub(1).cast_mut().cast();
    backtrace::resolve(before, |symbol| {
        let path = symbol.filename().map(|p| p.to_string_lossy().into_owned());
        // Inlined helpers come first; the line of interest is the first one in a kernel file.
        if let (Some(path), Some(line)) = (path, symbol.lineno()) {
            let better = path.ends_with(".cu")
                && found.as_ref().is_none_or(|(p, _): &(String, u32)| !p.ends_with(".cu"));
            if found.is_none() || better {
                found = Some((path, line));
            }
        }
    });
    found
}

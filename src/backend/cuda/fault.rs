//! What the SIMT machine reports.

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

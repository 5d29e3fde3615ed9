//! The one error type of the crate, and the process exit code each error maps to.
//!
//! Every message says what was attempted, what was expected, what was found and, where there is
//! one, the thing to try next.

use std::path::PathBuf;

/// Result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },

    /// A safetensors file or its index is malformed, or holds something other than the model needs.
    #[error("{}: {what}: expected {expected}, got {got}", path.display())]
    Checkpoint { path: PathBuf, what: String, expected: String, got: String },

    /// `config.json` (or another model JSON file) holds a value this engine cannot honour.
    #[error("{}: {field}: expected {expected}, got {got}", path.display())]
    Config { path: PathBuf, field: String, expected: String, got: String },

    /// The tokenizer is missing, malformed, or does not fit the model.
    #[error("tokenizer: {0}")]
    Tokenizer(String),

    /// A request or a command-line value that cannot be honoured with this model.
    #[error("{0}")]
    Request(String),

    /// Input data (a JSONL line, a replay file) is malformed.
    #[error("{origin}: {what}: expected {expected}, got {got}")]
    Input { origin: String, what: String, expected: String, got: String },

    /// Two buffers handed to an operation do not fit one another.
    #[error("{op}: {what}: expected {expected}, got {got}")]
    Shape { op: &'static str, what: &'static str, expected: usize, got: usize },

    /// A weight or a logit is NaN or infinite.
    #[error("{place}: found {found}, expected finite numbers; {hint}")]
    NonFinite { place: String, found: String, hint: String },

    /// What was asked for does not fit in memory.
    #[error("{what} needs {needed} bytes, {limit}; {hint}")]
    Memory { what: String, needed: u128, limit: String, hint: String },

    /// A model could not be fetched from a Hugging Face hub.
    #[error("{id}: {what}; {hint}")]
    Hub { id: String, what: String, hint: String },

    /// A device is missing, too old, or failed; or a kernel was refused or found faulty.
    #[error("{device}: {what}; {hint}")]
    Device { device: String, what: String, hint: String },

    /// A comparison of measurements found some that are slower than allowed.
    #[error("{0}")]
    Slower(String),

    /// The work was stopped by Ctrl-C or by a callback.
    #[error("interrupted")]
    Cancelled,
}

impl Error {
    /// An I/O error with the verb and path it concerns.
    pub fn io(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Error::Io { action, path: path.into(), source }
    }

    /// A request error from anything that prints.
    pub fn request(message: impl std::fmt::Display) -> Self {
        Error::Request(message.to_string())
    }

    /// The process exit code of this error: 2 usage or request, 3 input/output, 4 model files,
    /// 5 numbers that are not finite, 6 hub, 7 memory, 8 device, 9 slower than before, 1 anything else, 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Request(_) | Error::Input { .. } => 2,
            Error::Io { .. } => 3,
            Error::Checkpoint { .. } | Error::Config { .. } | Error::Tokenizer(_) => 4,
            Error::NonFinite { .. } => 5,
            Error::Hub { .. } => 6,
            Error::Memory { .. } => 7,
            Error::Device { .. } => 8,
            Error::Slower(_) => 9,
            Error::Shape { .. } => 1,
            Error::Cancelled => 130,
        }
    }
}

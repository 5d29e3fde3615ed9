//! What kind of screen there is: width, colours, and writing that survives a closed pipe.

use std::io::{IsTerminal, Write};

use crate::error::{Error, Result};

/// What the two output streams can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Standard error is a terminal: progress may be redrawn in place.
    pub live: bool,
    /// Standard output is a terminal.
    pub stdout: bool,
    /// Colours are wanted (no `NO_COLOR`, not `TERM=dumb`).
    pub color: bool,
}

impl Terminal {
    /// Looks at the streams and at `NO_COLOR` and `TERM`.
    pub fn detect() -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Self {
            live: std::io::stderr().is_terminal() && !dumb,
            stdout: std::io::stdout().is_terminal(),
            color: !plain && !dumb,
        }
    }

    /// Columns and rows of the terminal; 80 x 24 when it does not say.
    pub fn size() -> (usize, usize) {
        match crossterm::terminal::size() {
            Ok((w, h)) if w > 0 && h > 0 => (usize::from(w), usize::from(h)),
            _ => (80, 24),
        }
    }
}

/// A look: an escape sequence, written only where colours are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Plain,
    /// Given text.
    Dim,
    /// Committed in the last step.
    Fresh,
    /// Still masked.
    Masked,
    /// Went back to the mask in the last step.
    Remasked,
    /// Filled text shown among given text.
    Filled,
    /// A figure that is worse than it was.
    Worse,
}

impl Style {
    /// The SGR sequence that starts this look.
    pub const fn start(self) -> &'static str {
        match self {
            Style::Plain => "",
            Style::Dim => "\x1b[2m",
            Style::Fresh => "\x1b[1;4;32m",
            Style::Masked => "\x1b[34m",
            Style::Remasked => "\x1b[35m",
            Style::Filled => "\x1b[1;36m",
            Style::Worse => "\x1b[1;31m",
        }
    }

    /// `text` in this look, or as it is without colours.
    pub fn paint(self, text: &str, color: bool) -> String {
        if !color || self == Style::Plain || text.is_empty() {
            text.to_owned()
        } else {
            format!("{}{text}\x1b[0m", self.start())
        }
    }
}

/// Makes the cursor visible again. Failures are ignored: nobody is left to tell.
pub fn show_cursor() {
    let mut err = std::io::stderr().lock();
    if err.is_terminal() {
        let _ = err.write_all(b"\x1b[?25h\x1b[0m");
        let _ = err.flush();
    }
}

/// Writes `text` to standard output and flushes.
///
/// # Errors
/// [`Error::Io`]; a closed pipe comes back as one with `BrokenPipe`, on which the program ends
/// quietly (see [`is_closed_pipe`]).
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Error::io("write", "standard output", e))
}

/// [`print`] of a generated text: as it is, but on a terminal nothing in it may act on the screen.
///
/// # Errors
/// As [`print`].
pub fn show_text(text: &str, terminal: Terminal) -> Result<()> {
    if terminal.stdout { print(&printable(text)) } else { print(text) }
}

/// [`print`] with a line end.
///
/// # Errors
/// As [`print`].
pub fn println(text: &str) -> Result<()> {
    print(&format!("{text}\n"))
}

/// Writes a line for people to standard error; a closed standard error is not a failure.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Whether `error` only says that the reader of our output has gone away (`lacuna ... | head`).
pub fn is_closed_pipe(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::BrokenPipe)
}

/// `text` without control characters that could move the cursor or change the terminal's state:
/// line ends and tabs stay, others become U+FFFD.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{FFFD}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paint_is_plain_without_colours() {
        assert_eq!(Style::Fresh.paint("x", false), "x");
        assert_eq!(Style::Fresh.paint("x", true), "\x1b[1;4;32mx\x1b[0m");
        assert_eq!(Style::Plain.paint("x", true), "x");
    }

    #[test]
    fn printable_disarms_escape_sequences() {
        assert_eq!(printable("a\x1b[2Jb\n\tc"), "a\u{FFFD}[2Jb\n\tc");
    }

    #[test]
    fn closed_pipe_is_told_from_other_failures() {
        let e = |k| Error::io("write", "standard output", std::io::Error::from(k));
        assert!(is_closed_pipe(&e(std::io::ErrorKind::BrokenPipe)));
        assert!(!is_closed_pipe(&e(std::io::ErrorKind::StorageFull)));
        assert!(!is_closed_pipe(&Error::Cancelled));
    }
}

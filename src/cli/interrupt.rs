//! Ctrl-C: the first press asks the work to stop at the next step, the second ends the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// Whether the person at the keyboard (or a supervisor, by SIGTERM) asked to stop. Cheap to clone;
/// all clones see the same answer.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Installs the signal handler. The first signal raises the flag; a second one restores the
    /// cursor and ends the process with code 130.
    ///
    /// # Errors
    /// [`Error::Request`] when the operating system refuses the handler, or one is installed
    /// already.
    pub fn install() -> Result<Self> {
        let flag = Self::default();
        let raised = flag.clone();
        ctrlc::set_handler(move || {
            if raised.0.swap(true, Ordering::SeqCst) {
                super::terminal::show_cursor();
                std::process::exit(130);
            }
        })
        .map_err(|e| Error::request(format!("cannot watch for Ctrl-C: {e}")))?;
        Ok(flag)
    }

    /// `true` once a stop was asked for.
    pub fn raised(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Asks for a stop, as Ctrl-C does.
    pub fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// [`Error::Cancelled`] once a stop was asked for: for loops that do no denoising.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn check(&self) -> Result<()> {
        if self.raised() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_see_the_same_flag() {
        let a = Interrupt::default();
        let b = a.clone();
        assert!(b.check().is_ok());
        a.raise();
        assert!(matches!(b.check(), Err(Error::Cancelled)));
    }
}

//! Ctrl-C: while there is work that is worth keeping, the first press asks it to stop at the next
//! step and the second ends the program; before that, the first one does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Whether the person at the keyboard (or a supervisor, by SIGTERM) asked to stop. Cheap to clone;
/// all clones see the same answer.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    /// When the first signal came.
    raised: OnceLock<Instant>,
    held: AtomicBool,
}

/// Signals that come so soon after the first are the same wish: supervisors such as `timeout` signal
/// a program and then its whole group.
const ECHO: Duration = Duration::from_millis(300);

impl Interrupt {
    /// Installs the signal handler. A signal raises the flag while [`held`](Self::hold); without
    /// that, and the second time, it restores the cursor and ends the process with code 130.
    ///
    /// # Errors
    /// [`Error::Request`] when the operating system refuses the handler, or one is installed
    /// already.
    pub fn install() -> Result<Self> {
        let flag = Self::default();
        let raised = flag.clone();
        ctrlc::set_handler(move || {
            if raised.signal() {
                super::terminal::show_cursor();
                super::terminal::note("interrupted");
                std::process::exit(130);
            }
        })
        .map_err(|e| Error::request(format!("cannot watch for Ctrl-C: {e}")))?;
        Ok(flag)
    }

    /// From now on there is something to keep: the first signal waits for the step at hand. Until
    /// then (while input is awaited, or a model is fetched or loaded) it ends the program.
    pub fn hold(&self) {
        self.0.held.store(true, Ordering::SeqCst);
    }

    /// Takes a signal; `true` if the program is to end at once.
    fn signal(&self) -> bool {
        let now = Instant::now();
        let first = *self.0.raised.get_or_init(|| now);
        let again = now.saturating_duration_since(first) >= ECHO;
        again || !self.0.held.load(Ordering::SeqCst)
    }

    /// `true` once a stop was asked for.
    pub fn raised(&self) -> bool {
        self.0.raised.get().is_some()
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
    fn a_signal_waits_for_the_step_at_hand_only_while_there_is_work() {
        let a = Interrupt::default();
        assert!(a.signal(), "nothing to keep yet");
        let a = Interrupt::default();
        let b = a.clone();
        b.hold();
        assert!(b.check().is_ok());
        assert!(!a.signal(), "the first is heard by the work");
        assert!(matches!(b.check(), Err(Error::Cancelled)));
        assert!(!a.signal(), "the same signal, to the whole group");
        std::thread::sleep(ECHO);
        assert!(a.signal(), "the second ends the program");
    }
}

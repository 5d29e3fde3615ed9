//! Operations that a machine has recorded, so that a step is a few replays instead of thousands of launches.

use crate::backend::Backend;
use crate::error::Result;
use crate::model::PassShape;

/// Recordings that are kept. The one that was not used for longest makes room for another.
const MOST: usize = 24;

/// Which keys a query sees, as far as it decides which operations are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MaskKind {
    Full,
    Causal,
    Drawn,
}

/// What is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Gradients become 0.
    Clear,
    Pass {
        shape: PassShape,
        mask: MaskKind,
        learn: bool,
    },
    /// Length of the gradients, clipping, a step of every parameter.
    Update,
}

/// Recordings of one learner, for the buffers that it owns.
pub(super) struct Recorded<B: Backend> {
    kept: Vec<Kept<B>>,
    clock: u64,
    /// The machine records nothing.
    never: bool,
}

struct Kept<B: Backend> {
    part: Part,
    used: u64,
    /// None for a part that was done once.
    recording: Option<B::Recording>,
}

impl<B: Backend> Default for Recorded<B> {
    fn default() -> Self {
        Self { kept: Vec::new(), clock: 0, never: false }
    }
}

impl<B: Backend> Recorded<B> {
    /// Does `work`, which is operations and nothing else: as it stands the first time, recorded the second, replayed from
    /// there on.
    ///
    /// # Errors
    /// Those of `work` and the machine.
    ///
    /// # Safety
    /// Whenever this is called for a part again, the buffers that `work` named the second time are still there, and no one
    /// else uses them.
    pub(super) unsafe fn run(
        &mut self,
        backend: &B,
        part: Part,
        mut work: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        if self.never {
            return work();
        }
        self.clock += 1;
        let Some(kept) = self.kept.iter_mut().find(|kept| kept.part == part) else {
            work()?;
            if self.kept.len() >= MOST
                && let Some(oldest) = (0..self.kept.len()).min_by_key(|&i| self.kept.get(i).map(|k| k.used))
            {
                self.kept.swap_remove(oldest);
            }
            self.kept.push(Kept { part, used: self.clock, recording: None });
            return Ok(());
        };
        kept.used = self.clock;
        if kept.recording.is_none() {
            kept.recording = backend.record(&mut work)?;
        }
        match &kept.recording {
            // SAFETY: the caller's promise.
            Some(recording) => unsafe { backend.replay(recording) },
            None => {
                self.never = true;
                work()
            }
        }
    }
}

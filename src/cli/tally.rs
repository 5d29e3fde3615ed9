//! What the rounds of a run add up to, and how a run ends: the trace, the summary, the exit code.

use super::Context;
use super::args::OutputArgs;
use super::common::Speller;
use super::run::summary;
use super::terminal::note;
use super::trace::{Recording, Run};
use crate::error::{Error, Result};

/// What has come of a run so far.
#[derive(Default)]
pub struct Tally {
    /// What the trace is made of; empty when there is none.
    pub runs: Vec<Run>,
    pub tokens: usize,
    pub nfe: usize,
    /// Samples that something was printed of.
    pub shown: usize,
    /// The first failure.
    pub failed: Option<Error>,
}

impl Tally {
    /// Takes note of a failure; the first one counts.
    pub fn fail(&mut self, error: Error) {
        self.failed.get_or_insert(error);
    }

    /// Writes the trace and the summary.
    ///
    /// # Errors
    /// The first failure of the run; [`Error::Io`] when the trace cannot be written.
    pub fn end(
        self,
        output: &OutputArgs,
        context: &Context,
        model: &str,
        speller: Speller<'_>,
        seconds: f64,
        seed: u64,
    ) -> Result<()> {
        if let Some(path) = &output.trace {
            Recording {
                model,
                runs: &self.runs,
                piece: &|id| speller.piece(id),
                special: &|id| speller.is_special(id),
            }
            .write(path)?;
        }
        if !output.quiet && self.tokens > 0 {
            note(&summary(self.tokens, self.nfe, seconds, seed));
        }
        match self.failed {
            None => Ok(()),
            Some(error) => {
                // Every failure has its line already.
                context.set_reported(output.json && self.shown > 0);
                Err(error)
            }
        }
    }
}

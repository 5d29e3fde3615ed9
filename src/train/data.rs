//! Training sequences and the order in which they come.
//!
//! The order is a pure function of the seed and a [`Cursor`], which is small and can be stored: a
//! run that is resumed from it reads what an uninterrupted one would have read, to the token.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// One training sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The tokens.
    pub ids: Vec<u32>,
    /// For each token, whether it is given: never masked (a prompt). Same length as `ids`.
    pub fixed: Vec<bool>,
    /// Lengths of the documents in `ids`, in order, none of them 0; their sum is the length of
    /// `ids`. The first may be the rest of a document, the last the beginning of one.
    pub documents: Vec<usize>,
}

impl Example {
    /// An example in which every token may be masked, with a document ending at each `eos`.
    pub(super) fn of_text(ids: Vec<u32>, eos: u32) -> Self {
        let documents = ids.split_inclusive(|&id| id == eos).map(<[u32]>::len).collect();
        Self { fixed: vec![false; ids.len()], documents, ids }
    }
}

/// Where the order stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Examples taken so far.
    pub examples: u64,
    /// Examples taken so far from each source; their sum is `examples`.
    pub per_source: Vec<u64>,
}

impl Cursor {
    /// Nothing taken yet.
    pub(super) fn zero(sources: usize) -> Self {
        Self { examples: 0, per_source: vec![0; sources] }
    }

    /// Checks that this is a cursor over `sources` sources.
    ///
    /// # Errors
    /// [`Error::Request`].
    pub(super) fn check(&self, sources: usize) -> Result<()> {
        let sum = self.per_source.iter().try_fold(0u64, |sum, &n| sum.checked_add(n));
        if self.per_source.len() == sources && sum == Some(self.examples) && self.examples < u64::MAX {
            return Ok(());
        }
        Err(Error::request(format_args!(
            "the position in the training data does not belong to this data: expected counts of {sources} \
             sources that add up, got {} of {:?}; go on with the same data, or begin anew",
            self.examples, self.per_source
        )))
    }
}

/// An endless sequence of examples: epoch after epoch, each in an order of its own.
pub trait Examples: Send + Sync {
    /// The example at `cursor`, which is moved on. Equal cursors give equal examples.
    ///
    /// # Errors
    /// [`Error::Request`] when the cursor does not belong to this data; [`Error::Input`] when a
    /// file changed since it was opened. The cursor is then as it was.
    fn next(&self, cursor: &mut Cursor) -> Result<Example>;

    /// The cursor before the first example.
    fn start(&self) -> Cursor;

    /// Tokens of the data, each counted once, padding left out.
    fn tokens(&self) -> u64;

    /// Examples in an epoch: as many as the data has, each source counted once.
    fn epoch(&self) -> u64;

    /// What the data is, for people: one line.
    fn describe(&self) -> String;
}

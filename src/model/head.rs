//! The head: logits of the hidden rows that a forward pass left, a bounded chunk at a time, so
//! that `batch x length x vocabulary` is never formed.

use std::ops::Range;

use super::{Arena, Batch, Model};
use crate::backend::{Epilogue, Forward, Mask, RowDraw, RowParams, Rows, Unmask};
use crate::error::{Error, Result};

impl<B: Forward> Model<B> {
    /// Calls `each` with consecutive ranges of the wanted rows of the last pass, each with its
    /// logits `[range.len(), V]`.
    pub fn head(
        &self,
        rows: usize,
        arena: &mut Arena<B>,
        mut each: impl FnMut(Range<usize>, &B::Buffer) -> Result<()>,
    ) -> Result<()> {
        if rows > arena.size.rows {
            return Err(Error::Shape {
                op: "head",
                what: "rows, at most",
                expected: arena.size.rows,
                got: rows,
            });
        }
        let (be, width, vocab) = (&self.backend, self.config.width, self.config.vocab_size);
        let weight = self.parameters.head.as_ref().unwrap_or(&self.parameters.embedding);
        let mut first = 0;
        while first < rows {
            let count = arena.head_rows.min(rows - first);
            arena.head_index_host.clear();
            arena.head_index_host.extend((first..first + count).map(|r| r as u32));
            be.write_index(&mut arena.head_index, &arena.head_index_host)?;
            let hidden = (&arena.hidden, Rows::dense(width));
            be.gather(hidden, &arena.head_index, count, width, &mut arena.head_in)?;
            let dense = Rows::dense(vocab);
            be.linear(&arena.head_in, count, weight, 0..vocab, Epilogue::NONE, &mut arena.logits, dense)?;
            each(first..first + count, &arena.logits)?;
            first += count;
        }
        Ok(())
    }

    /// Logits of all wanted rows of `batch`, `[rows, V]`: for comparing and testing. Sampling uses
    /// [`Model::draw`], which never holds them all.
    pub fn logits(&self, batch: &Batch, arena: &mut Arena<B>, mask: Mask<'_>) -> Result<Vec<B::Elem>> {
        self.forward(batch, arena, mask)?;
        let vocab = self.config.vocab_size;
        let mut out = vec![B::Elem::default(); batch.rows() * vocab];
        self.head(batch.rows(), arena, |range, logits| {
            self.backend.read(logits, 0, &mut out[range.start * vocab..range.end * vocab])
        })?;
        Ok(out)
    }

    /// Negative log-likelihood in nats of `targets[r]` at wanted row r of the last pass.
    pub fn nll(&self, targets: &[u32], arena: &mut Arena<B>) -> Result<Vec<f64>> {
        let vocab = self.config.vocab_size;
        let mut out = vec![0.0; targets.len()];
        self.head(targets.len(), arena, |range, logits| {
            self.backend.cross_entropy(logits, vocab, &targets[range.clone()], &mut out[range])
        })?;
        Ok(out)
    }
}

impl<B: Forward + Unmask> Model<B> {
    /// Draws a token from each wanted row of the last pass; `out[r]` belongs to `params[r]`.
    pub fn draw(&self, params: &[RowParams], arena: &mut Arena<B>, out: &mut [RowDraw]) -> Result<()> {
        let vocab = self.config.vocab_size;
        self.head(params.len(), arena, |range, logits| {
            self.backend.unmask(logits, vocab, &params[range.clone()], &mut out[range])
        })
    }
}

//! The head: logits of the hidden rows that a forward pass left, a bounded chunk at a time, so
//! that `batch x length x vocabulary` is never formed.

use std::ops::Range;

use super::{Arena, Batch, Model};
use crate::backend::{
    Epilogue, Forward, Mask, RowDraw, RowNoise, RowParams, Rows, UNMASK_WORDS, Unmask, unmask_words,
};
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
            let hidden = (&arena.hidden, first * width);
            let dense = Rows::dense(vocab);
            be.linear(hidden, count, weight, 0..vocab, Epilogue::NONE, &mut arena.logits, dense)?;
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

/// Parameters and draws of rows, for [`Model::draw`].
pub struct Drawing<B: Unmask> {
    params: B::Index,
    pub(crate) draws: B::Draws,
    words: Vec<u32>,
    rows: usize,
}

impl<B: Unmask> Drawing<B> {
    /// Room for `rows` rows.
    ///
    /// # Errors
    /// [`Error::Memory`] when it does not fit.
    pub fn new(backend: &B, rows: usize) -> Result<Self> {
        Ok(Self {
            params: backend.alloc_index(rows * UNMASK_WORDS)?,
            draws: backend.alloc_draws(rows)?,
            words: Vec::with_capacity(rows * UNMASK_WORDS),
            rows,
        })
    }
}

impl<B: Forward + Unmask> Model<B> {
    /// Draws a token from each wanted row of the last pass; `out[r]` belongs to `params[r]`.
    ///
    /// # Errors
    /// [`Error::NonFinite`] for logits that cannot be drawn from; [`Error::Shape`] when the rows do not fit;
    /// those of [`RowParams::check`].
    pub fn draw(
        &self,
        params: &[RowParams],
        arena: &mut Arena<B>,
        drawing: &mut Drawing<B>,
        out: &mut [RowDraw],
    ) -> Result<()> {
        self.load_params(params, drawing)?;
        self.draw_loaded(params.len(), arena, drawing)?;
        self.backend.read_draws(&drawing.draws, out)
    }

    /// Puts the parameters of rows where [`draw_loaded`](Self::draw_loaded) finds them.
    pub(crate) fn load_params(&self, params: &[RowParams], drawing: &mut Drawing<B>) -> Result<()> {
        let rows = params.len();
        if rows > drawing.rows {
            return Err(Error::Shape {
                op: "draw",
                what: "rows, at most",
                expected: drawing.rows,
                got: rows,
            });
        }
        drawing.words.clear();
        for params in params {
            drawing.words.extend(unmask_words(self.config.vocab_size, params, RowNoise::Given)?);
        }
        self.backend.write_index(&mut drawing.params, &drawing.words)
    }

    /// Draws from each of the first `rows` wanted rows of the last pass; can be recorded.
    pub(crate) fn draw_loaded(
        &self,
        rows: usize,
        arena: &mut Arena<B>,
        drawing: &mut Drawing<B>,
    ) -> Result<()> {
        self.draw_rows(rows, arena, &drawing.params, &mut drawing.draws)
    }

    /// Draws from each of the first `rows` wanted rows of the last pass by the words in `params`; can be recorded.
    pub(crate) fn draw_rows(
        &self,
        rows: usize,
        arena: &mut Arena<B>,
        params: &B::Index,
        draws: &mut B::Draws,
    ) -> Result<()> {
        let vocab = self.config.vocab_size;
        self.head(rows, arena, |range, logits| self.backend.unmask(logits, vocab, range, params, draws))
    }
}

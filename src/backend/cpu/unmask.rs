//! Drawing tokens on the CPU, a row a position: [`unmask_rows`].
//!
//! Two vector passes read the row: block maxima, then masses (fixed-point exponentials,
//! whose sums are exact). Top-k gathers the tokens at least as large as the k-th largest block maximum. Top-p guesses, from one
//! block in sixteen, two logits that the end of the ranking lies between, which is then checked: above them a third pass takes
//! the sum of masses, and only tokens between them are gathered. Among the gathered the end is found by histogram. The token is the
//! first in id order at which the running sum of kept masses exceeds `uniform` times their total.
//! Top-p is nucleus sampling (Holtzman et al., "The curious case of neural text degeneration",
//! ICLR 2020).

mod cut;
mod mass;
mod passes;
mod row;

pub use passes::UnmaskElement;

use std::ops::Range;

use rayon::prelude::*;

use super::{Buffer, Cpu, CpuElement};
use crate::backend::unmask::{check_vocab, row_of_words};
use crate::backend::{Backend, RowDraw, RowNoise, RowParams, UNMASK_WORDS, Unmask, work};
use crate::error::{Error, Result};
use crate::rng::{Purpose, Rng};

impl<E: CpuElement + UnmaskElement> Unmask for Cpu<E> {
    type Draws = Buffer<RowDraw>;

    fn alloc_draws(&self, rows: usize) -> Result<Self::Draws> {
        Buffer::zeroed(rows)
    }

    fn unmask(
        &self,
        logits: &Self::Buffer,
        vocab: usize,
        rows: Range<usize>,
        params: &Self::Index,
        out: &mut Self::Draws,
    ) -> Result<()> {
        let _op = work::unmask(rows.len(), vocab, size_of::<E>());
        let (params, _) = params.as_slice().as_chunks::<UNMASK_WORDS>();
        let got = params.len().min(out.len());
        let (Some(params), Some(out)) = (params.get(rows.clone()), out.as_mut_slice().get_mut(rows.clone()))
        else {
            return Err(Error::Shape { op: "unmask", what: "draws", expected: rows.end, got });
        };
        self.run(|| unmask_each(logits.as_slice(), vocab, params, of_words, out))
    }

    fn read_draws(&self, draws: &Self::Draws, out: &mut [RowDraw]) -> Result<()> {
        let _op = work::read_draws(out.len());
        super::read("read_draws", draws, 0, out)
    }
}

/// A row's parameters, its uniform number drawn.
fn of_words(words: &[u32; UNMASK_WORDS]) -> Result<RowParams> {
    match row_of_words(words) {
        Some((params, RowNoise::Given)) => Ok(params),
        Some((params, RowNoise::Philox(at))) => {
            let uniform = Rng::new(at.seed).uniform(Purpose::Token, at.sequence, at.step, at.position);
            Ok(RowParams { uniform, ..params })
        }
        _ => Err(Error::request("unmask: the CPU draws by a uniform number, not by Gumbel noise")),
    }
}

/// Draws one token from each of `params.len()` rows of `logits` `[rows, vocab]` (row-major), rows in
/// parallel in the current rayon pool. See [`Unmask::unmask`].
///
/// Masses are integers on a scale of 2^40: a token less probable than 2^-40 times the best one is
/// never drawn. The first call with a larger vocabulary than before sets memory aside on every thread
/// of the pool; later ones allocate nothing.
///
/// # Errors
/// - [`Error::NonFinite`] when a row holds NaN or +inf, or nothing but -inf; with several such rows,
///   the first is named.
/// - [`Error::Shape`] when `logits` or `out` is too short, `vocab` is 0 or 2^24 and more, or a given
///   token lies outside it.
/// - [`Error::Request`] for a temperature outside `0..=1e30`, a `top_p` that is not a number or a
///   `uniform` outside `0..1`.
pub fn unmask_rows<E: UnmaskElement>(
    logits: &[E],
    vocab: usize,
    params: &[RowParams],
    out: &mut [RowDraw],
) -> Result<()> {
    unmask_each(logits, vocab, params, |params| Ok(*params), out)
}

/// [`unmask_rows`] with parameters in another form.
fn unmask_each<E: UnmaskElement, P: Sync>(
    logits: &[E],
    vocab: usize,
    params: &[P],
    meaning: impl Fn(&P) -> Result<RowParams> + Sync,
    out: &mut [RowDraw],
) -> Result<()> {
    check_vocab(vocab)?;
    if out.len() != params.len() {
        return Err(Error::Shape { op: "unmask", what: "draws", expected: params.len(), got: out.len() });
    }
    let needed = params.len().saturating_mul(vocab);
    let Some(logits) = logits.get(..needed) else {
        return Err(Error::Shape { op: "unmask", what: "logits", expected: needed, got: logits.len() });
    };
    // Threads of a pool are prepared together, so this thread's memory speaks for all.
    if !E::with_scratch(|scratch| scratch.is_ready(vocab)) {
        E::with_scratch(|scratch| scratch.prepare(vocab));
        rayon::broadcast(|_| E::with_scratch(|scratch| scratch.prepare(vocab)));
    }
    let failed = logits
        .par_chunks_exact(vocab)
        .zip_eq(params)
        .zip_eq(&mut *out)
        .enumerate()
        .filter_map(|(r, ((row, params), out))| {
            *out = match meaning(params).and_then(|p| E::with_scratch(|scratch| scratch.draw(row, r, &p))) {
                Ok(draw) => draw,
                Err(error) => return Some((r, error)),
            };
            None
        })
        .min_by_key(|(r, _)| *r);
    match failed {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// Which tokens of one row may be drawn under `params` (at temperature 0: the argmax).
///
/// # Errors
/// As [`unmask_rows`].
pub fn keep_mask<E: UnmaskElement>(row: &[E], params: &RowParams) -> Result<Vec<bool>> {
    check_vocab(row.len())?;
    E::with_scratch(|scratch| scratch.keep_mask(row, params))
}

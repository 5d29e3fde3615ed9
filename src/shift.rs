//! Which row of logits predicts which position: the one place that knows.
//!
//! A model adapted from a left-to-right one keeps its habit (`shift`): row i predicts position
//! i + 1. Position 0 is then predicted by no row; a sampler leaves there what the input holds, and a
//! loss never scores it, even if it is masked. The last row predicts nothing. Without shift, row i
//! predicts position i.
//!
//! Left-to-right decoding always shifts.

/// The row that predicts `position`, if any.
#[inline]
pub fn row_for(position: usize, shift: bool) -> Option<usize> {
    if shift { position.checked_sub(1) } else { Some(position) }
}

/// The position that row `row` of a sequence of `len` predicts, if any.
#[inline]
pub fn position_for(row: usize, len: usize, shift: bool) -> Option<usize> {
    let position = row.checked_add(usize::from(shift))?;
    (position < len).then_some(position)
}

/// The first position that any row predicts.
#[inline]
pub fn first_predicted(shift: bool) -> usize {
    usize::from(shift)
}

/// The (row, position) pairs of the masked positions that a row predicts, in order.
pub fn predicted(masked: &[bool], shift: bool) -> impl Iterator<Item = (usize, usize)> + '_ {
    masked
        .iter()
        .enumerate()
        .filter(|(_, masked)| **masked)
        .filter_map(move |(position, _)| Some((row_for(position, shift)?, position)))
}

//! The next-token shift: the one module that knows that the logits of row i predict position i + 1.

/// The row whose logits predict `position`; none for position 0 under shift.
pub fn row_for(position: usize, shift: bool) -> Option<usize> {
    if shift { position.checked_sub(1) } else { Some(position) }
}

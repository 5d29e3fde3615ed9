//! Shape checks that the operations share: every access of a kernel follows from one of these.

use crate::backend::{HeadShape, Rows};
use crate::error::{Error, Result};

/// `got` numbers are there; at least `expected` are needed.
pub(super) fn at_least(op: &'static str, what: &'static str, expected: usize, got: usize) -> Result<()> {
    if got < expected { Err(Error::Shape { op, what, expected, got }) } else { Ok(()) }
}

/// `got` must be `expected`.
pub(super) fn equal(op: &'static str, what: &'static str, expected: usize, got: usize) -> Result<()> {
    if got != expected { Err(Error::Shape { op, what, expected, got }) } else { Ok(()) }
}

/// The product, or an error instead of an overflow.
pub(super) fn product(op: &'static str, what: &'static str, a: usize, b: usize) -> Result<usize> {
    a.checked_mul(b).ok_or(Error::Shape { op, what, expected: usize::MAX, got: a.max(b) })
}

/// Numbers that a buffer must hold for `rows` rows of `width` columns placed by `at`.
pub(super) fn extent(
    op: &'static str,
    what: &'static str,
    at: Rows,
    rows: usize,
    width: usize,
) -> Result<usize> {
    if rows == 0 {
        return Ok(0);
    }
    let over = Error::Shape { op, what, expected: usize::MAX, got: at.stride };
    (rows - 1).checked_mul(at.stride).and_then(|n| n.checked_add(at.at)?.checked_add(width)).ok_or(over)
}

/// Rows of `width` columns placed by `at` lie in a buffer of `len` numbers. Written rows must not
/// overlap: with `disjoint`, the stride is at least the width.
pub(super) fn placed(
    op: &'static str,
    what: &'static str,
    at: Rows,
    rows: usize,
    width: usize,
    len: usize,
    disjoint: bool,
) -> Result<()> {
    if disjoint && rows > 1 {
        at_least(op, what, width, at.stride)?;
    }
    at_least(op, what, extent(op, what, at, rows, width)?, len)
}

/// The first `count` numbers of `index` are below `limit`.
pub(super) fn indices<'a>(
    op: &'static str,
    what: &'static str,
    index: &'a [u32],
    count: usize,
    limit: usize,
) -> Result<&'a [u32]> {
    let Some(used) = index.get(..count) else {
        return Err(Error::Shape { op, what, expected: count, got: index.len() });
    };
    match used.iter().find(|&&i| i as usize >= limit) {
        Some(&i) => Err(Error::Request(format!("{op}: {what}: expected a number below {limit}, got {i}"))),
        None => Ok(used),
    }
}

/// An attention's heads: not wider than `widest`, and so many query heads to each key/value head.
pub(super) fn heads(op: &'static str, shape: HeadShape, widest: usize) -> Result<()> {
    let HeadShape { heads, kv_heads, head_dim, .. } = shape;
    if head_dim == 0 || head_dim > widest {
        return Err(Error::Shape { op, what: "head width, at most", expected: widest, got: head_dim });
    }
    if kv_heads == 0 || heads % kv_heads != 0 {
        let what = "query heads, a multiple of the key/value heads,";
        return Err(Error::Shape { op, what, expected: kv_heads, got: heads });
    }
    Ok(())
}

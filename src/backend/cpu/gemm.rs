//! The register tile that every matrix product is made of: `M` rows by `NV` vectors of columns.
//!
//! Each number of a tile is one chain of fused multiply-adds over k in order, from zero; vectors run
//! over columns, never over k. So its bits depend on its own row and column alone.

use super::simd::Simd;
use crate::element::{Dtype, Element};

/// `sum_p a[i * lda + p] * b[p * ldb + j]` for `M` rows and `NV` vectors of columns, `p` in `0..k`.
///
/// # Safety
/// `k` numbers can be read from each of `M` rows at `a`, and `NV * LANES` from each of `k` rows at `b`.
#[inline(always)]
pub(super) unsafe fn tile<E: Element, S: Simd<E>, const M: usize, const NV: usize>(
    s: S,
    k: usize,
    a: *const E,
    lda: usize,
    b: *const E,
    ldb: usize,
) -> [[S::V; NV]; M] {
    let mut acc = [[s.splat(E::zero()); NV]; M];
    // SAFETY: the same promise.
    unsafe { tile_onto(s, &mut acc, k, a, lda, b, ldb) };
    acc
}

/// As [`tile`], going on from the chains in `acc`.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
pub(super) unsafe fn tile_onto<E: Element, S: Simd<E>, const M: usize, const NV: usize>(
    s: S,
    acc: &mut [[S::V; NV]; M],
    k: usize,
    a: *const E,
    lda: usize,
    b: *const E,
    ldb: usize,
) {
    for p in 0..k {
        // SAFETY: `p < k`, rows below `M`, vectors below `NV`: within the caller's promise.
        unsafe {
            let mut columns = [s.splat(E::zero()); NV];
            for (j, c) in columns.iter_mut().enumerate() {
                *c = s.load(b.add(p * ldb + j * S::LANES));
            }
            step(s, acc, a.add(p), lda, columns);
        }
    }
}

/// As [`tile`], with `b` as it is stored: rows `row_bytes` apart, at any alignment. The
/// columns behind these are asked for beforehand: the next tile of them, and on the same pages.
///
/// # Safety
/// As [`tile`], for stored numbers.
#[inline(always)]
pub(super) unsafe fn tile_stored<E: Element, S: Simd<E>, const M: usize, const NV: usize>(
    s: S,
    k: usize,
    a: *const E,
    lda: usize,
    dtype: Dtype,
    b: *const u8,
    row_bytes: usize,
) -> [[S::V; NV]; M] {
    let mut acc = [[s.splat(E::zero()); NV]; M];
    for p in 0..k {
        // SAFETY: `p < k`, rows below `M`, vectors below `NV`: within the caller's promise.
        unsafe {
            let row = b.add(p * row_bytes);
            let bytes = NV * S::LANES * dtype.size();
            for line in (0..bytes).step_by(64) {
                s.prefetch(row.wrapping_add(bytes + line));
            }
            let mut columns = [s.splat(E::zero()); NV];
            for (j, c) in columns.iter_mut().enumerate() {
                *c = s.load_stored(dtype, row.add(j * S::LANES * dtype.size()));
            }
            step(s, &mut acc, a.add(p), lda, columns);
        }
    }
    acc
}

/// As [`tile`], with `a` the other way round: `sum_p a[p * lda + i] * b[p * ldb + j]`.
///
/// # Safety
/// `M` numbers can be read from each of `k` rows at `a`, and `NV * LANES` from each of `k` rows at `b`.
#[inline(always)]
pub(super) unsafe fn tile_across<E: Element, S: Simd<E>, const M: usize, const NV: usize>(
    s: S,
    k: usize,
    a: *const E,
    lda: usize,
    b: *const E,
    ldb: usize,
) -> [[S::V; NV]; M] {
    let mut acc = [[s.splat(E::zero()); NV]; M];
    for p in 0..k {
        // SAFETY: `p < k`, rows below `M`, vectors below `NV`: within the caller's promise.
        unsafe {
            let mut columns = [s.splat(E::zero()); NV];
            for (j, c) in columns.iter_mut().enumerate() {
                *c = s.load(b.add(p * ldb + j * S::LANES));
            }
            step(s, &mut acc, a.add(p * lda), 1, columns);
        }
    }
    acc
}

/// One step of k of every chain.
///
/// # Safety
/// A number can be read at `a + i * lda` for each of `M` rows.
#[inline(always)]
unsafe fn step<E: Element, S: Simd<E>, const M: usize, const NV: usize>(
    s: S,
    acc: &mut [[S::V; NV]; M],
    a: *const E,
    lda: usize,
    columns: [S::V; NV],
) {
    for (i, row) in acc.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let x = s.splat(unsafe { *a.add(i * lda) });
        for (sum, c) in row.iter_mut().zip(&columns) {
            *sum = s.fma(x, *c, *sum);
        }
    }
}

/// Evaluates `$call` with the constant `$m_name` equal to `$m`, which is in `1..=$max`, at most 12.
macro_rules! with_rows {
    ($m:expr, $max:expr, $m_name:ident => $call:expr) => {
        match $m {
            1 => {
                const $m_name: usize = 1;
                $call
            }
            2 => {
                const $m_name: usize = 2;
                $call
            }
            3 => {
                const $m_name: usize = 3;
                $call
            }
            4 => {
                const $m_name: usize = 4;
                $call
            }
            5 if $max >= 5 => {
                const $m_name: usize = 5;
                $call
            }
            6 if $max >= 6 => {
                const $m_name: usize = 6;
                $call
            }
            7 if $max >= 7 => {
                const $m_name: usize = 7;
                $call
            }
            8 if $max >= 8 => {
                const $m_name: usize = 8;
                $call
            }
            9 if $max >= 9 => {
                const $m_name: usize = 9;
                $call
            }
            10 if $max >= 10 => {
                const $m_name: usize = 10;
                $call
            }
            11 if $max >= 11 => {
                const $m_name: usize = 11;
                $call
            }
            12 if $max >= 12 => {
                const $m_name: usize = 12;
                $call
            }
            _ => unreachable!("a tile has 1 to 12 rows"),
        }
    };
}
pub(super) use with_rows;

/// Cuts `rows` into tiles of nearly equal height, at most `most` each: how many, and where tile `i`
/// of them begins.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    rows: usize,
    pub parts: usize,
}

impl Cut {
    pub fn new(rows: usize, most: usize) -> Self {
        Self { rows, parts: rows.div_ceil(most) }
    }

    /// First row of part `i`; `rows` for `i == parts`.
    pub fn start(self, i: usize) -> usize {
        i * self.rows / self.parts.max(1)
    }
}

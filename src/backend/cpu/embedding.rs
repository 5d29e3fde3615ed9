//! Rows copied from one place to another: token embeddings, gather and scatter.
//!
//! Contract: `out[t, :] = table[ids[t], :] (+ positions[p[t], :])`; `dst[r, :] = src[rows[r], :]`;
//! `dst[rows[r], :] = src[r, :]` (of rows named twice, the last wins).

use super::buffer::Shared;
use super::check;
use super::gemm::Cut;
use super::simd::{CpuElement, Kernel, Simd, load_one};
use super::{Buffer, Cpu, Matrix};
use crate::backend::{Layout, Rows};
use crate::element::{Dtype, Element};
use crate::error::{Error, Result};

/// Numbers that a task copies at least.
const MIN_WORK: usize = 1 << 16;
/// Columns are shared out in units of this many: whole vectors, and cache lines that no two tasks write.
const COLUMNS: usize = 32;

impl<E: CpuElement> Cpu<E> {
    pub(super) fn embed_impl(
        &self,
        table: &Matrix,
        ids: &Buffer<u32>,
        positions: Option<(&Matrix, &Buffer<u32>)>,
        rows: usize,
        width: usize,
        out: &mut Buffer<E>,
    ) -> Result<()> {
        const OP: &str = "embed";
        for (matrix, what) in
            [(Some(table), "width of the table"), (positions.map(|p| p.0), "width of the position table")]
        {
            if let Some(matrix) = matrix {
                check::equal(OP, what, width, matrix.inputs())?;
                if matrix.layout() != Layout::OutIn {
                    return Err(Error::Shape { op: OP, what: "transposed tables", expected: 0, got: 1 });
                }
            }
        }
        let ids = check::indices(OP, "token id", ids.as_slice(), rows, table.outputs())?;
        let positions = match positions {
            Some((m, p)) => Some((m, check::indices(OP, "position", p.as_slice(), rows, m.outputs())?)),
            None => None,
        };
        check::at_least(OP, "out", check::product(OP, "out", rows, width)?, out.len())?;
        let shared = Shared::new(out.as_mut_slice());
        self.for_row_blocks(rows, width, |first, end| {
            // SAFETY: rows `first .. end` of `out` are this task's alone, and lie in it.
            let out = unsafe { shared.part(first * width, (end - first) * width) };
            self.dispatch(Embed {
                table,
                ids: &ids[first..end],
                positions: positions.map(|(m, p)| (m, &p[first..end])),
                width,
                out,
            });
        });
        Ok(())
    }

    pub(super) fn gather_impl(
        &self,
        (src, at): (&Buffer<E>, Rows),
        rows: &Buffer<u32>,
        count: usize,
        width: usize,
        dst: &mut Buffer<E>,
    ) -> Result<()> {
        const OP: &str = "gather";
        let rows = check::indices(OP, "row", rows.as_slice(), count, usize::MAX)?;
        if let Some(&last) = rows.iter().max() {
            check::placed(OP, "src", at, last as usize + 1, width, src.len(), false)?;
        }
        check::at_least(OP, "dst", check::product(OP, "dst", count, width)?, dst.len())?;
        let (src, shared) = (src.as_slice(), Shared::new(dst.as_mut_slice()));
        self.for_row_blocks(count, width, |first, end| {
            for (r, &row) in (first..end).zip(&rows[first..end]) {
                let from = at.at + row as usize * at.stride;
                // SAFETY: row r of `dst` is this task's alone, and lies in it.
                unsafe { shared.part(r * width, width) }.copy_from_slice(&src[from..from + width]);
            }
        });
        Ok(())
    }

    pub(super) fn scatter_impl(
        &self,
        (src, at): (&Buffer<E>, Rows),
        rows: &Buffer<u32>,
        count: usize,
        width: usize,
        (dst, to): (&mut Buffer<E>, Rows),
    ) -> Result<()> {
        const OP: &str = "scatter";
        let rows = check::indices(OP, "row", rows.as_slice(), count, usize::MAX)?;
        check::placed(OP, "src", at, count, width, src.len(), false)?;
        if let Some(&last) = rows.iter().max() {
            check::placed(OP, "dst", to, last as usize + 1, width, dst.len(), true)?;
        }
        let (src, dst) = (src.as_slice(), dst.as_mut_slice());
        // In order on one thread: a row may be named twice, and there are few.
        for (r, &row) in rows.iter().enumerate() {
            let (from, into) = (at.at + r * at.stride, to.at + row as usize * to.stride);
            dst[into..into + width].copy_from_slice(&src[from..from + width]);
        }
        Ok(())
    }

    /// Cuts the columns of `rows` rows into tasks `f(from, to)` worth sharing out, for sums over rows: a column's rows
    /// stay in order whatever the threads. Borders are multiples of [`COLUMNS`].
    pub(super) fn for_column_blocks(
        &self,
        rows: usize,
        columns: usize,
        f: impl Fn(usize, usize) + Send + Sync,
    ) {
        let units = Cut::new(columns, COLUMNS).parts;
        let tasks = (rows.saturating_mul(columns) / MIN_WORK).clamp(1, self.threads()).min(units.max(1));
        let cut = Cut::new(units, units.div_ceil(tasks).max(1));
        self.for_each(cut.parts, |task| {
            f(COLUMNS * cut.start(task), (COLUMNS * cut.start(task + 1)).min(columns));
        });
    }

    /// Cuts `rows` rows of `width` numbers into tasks `f(first, end)` worth sharing out.
    pub(super) fn for_row_blocks(&self, rows: usize, width: usize, f: impl Fn(usize, usize) + Send + Sync) {
        let tasks = (rows.saturating_mul(width) / MIN_WORK).clamp(1, 4 * self.threads()).min(rows.max(1));
        self.for_each(tasks, |task| f(task * rows / tasks, (task + 1) * rows / tasks));
    }
}

struct Embed<'a, E> {
    table: &'a Matrix,
    ids: &'a [u32],
    positions: Option<(&'a Matrix, &'a [u32])>,
    width: usize,
    out: &'a mut [E],
}

impl<E: Element> Kernel<E> for Embed<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let width = self.width;
        let row = |matrix: &Matrix, i: u32| -> (Dtype, *const u8) {
            let dtype = matrix.dtype();
            (dtype, matrix.bytes().as_ptr().wrapping_add(i as usize * width * dtype.size()))
        };
        for (t, &id) in self.ids.iter().enumerate() {
            let (dtype, from) = row(self.table, id);
            let position = self.positions.map(|(m, p)| row(m, p[t]));
            let out = self.out[t * width..][..width].as_mut_ptr();
            let mut i = 0;
            // SAFETY: ids and positions were checked against the tables, whose rows hold `width`
            // numbers, as does row t of `out`; vectors stop at the last whole one.
            unsafe {
                while i + S::LANES <= width {
                    let mut v = s.load_stored(dtype, from.add(i * dtype.size()));
                    if let Some((dtype, from)) = position {
                        v = s.add(v, s.load_stored(dtype, from.add(i * dtype.size())));
                    }
                    s.store(out.add(i), v);
                    i += S::LANES;
                }
                for i in i..width {
                    let mut v: E = load_one(dtype, from.add(i * dtype.size()));
                    if let Some((dtype, from)) = position {
                        v += load_one::<E>(dtype, from.add(i * dtype.size()));
                    }
                    *out.add(i) = v;
                }
            }
        }
    }
}

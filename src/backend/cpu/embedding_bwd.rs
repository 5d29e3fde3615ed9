//! The gradient of token and position embeddings.
//!
//! Contract: `table[ids[t], :] += dx[t, :]`, `positions[p[t], :] += dx[t, :]`, rows in order. A task has columns of its
//! own and goes through all rows, so that rows named twice are added in the same order whatever the threads.

use super::buffer::Shared;
use super::check;
use super::gemm::Cut;
use super::simd::CpuElement;
use super::{Buffer, Cpu};
use crate::error::Result;

/// Columns are shared out in units of this many.
const UNIT: usize = 32;
/// Fewer numbers than this are not worth another task.
const MIN_WORK: usize = 1 << 15;

impl<E: CpuElement> Cpu<E> {
    pub(super) fn embed_backward_impl(
        &self,
        dx: &Buffer<E>,
        rows: usize,
        width: usize,
        table: Option<(&mut Buffer<E>, usize, &Buffer<u32>)>,
        positions: Option<(&mut Buffer<E>, usize, &Buffer<u32>)>,
    ) -> Result<()> {
        const OP: &str = "embed_backward";
        let size = check::product(OP, "dx", rows, width)?;
        check::at_least(OP, "dx", size, dx.len())?;
        let dx = &dx.as_slice()[..size];
        for (what, index, target) in
            [("rows of the table", "token id", table), ("rows of the position table", "position", positions)]
        {
            let Some((out, count, indices)) = target else { continue };
            check::equal(OP, what, check::product(OP, what, count, width)?, out.len())?;
            let indices = check::indices(OP, index, indices.as_slice(), rows, count)?;
            if size == 0 {
                continue;
            }
            let units = Cut::new(width, UNIT).parts;
            let tasks = (size / MIN_WORK).clamp(1, self.threads()).min(units);
            let cut = Cut::new(units, units.div_ceil(tasks));
            let shared = Shared::new(out.as_mut_slice());
            self.for_each(cut.parts, |task| {
                let (from, to) = (UNIT * cut.start(task), (UNIT * cut.start(task + 1)).min(width));
                for (row, &index) in dx.chunks_exact(width).zip(indices) {
                    // SAFETY: `index < count`; columns `from .. to` are this task's alone.
                    let out = unsafe { shared.part(index as usize * width + from, to - from) };
                    for (sum, x) in out.iter_mut().zip(&row[from..to]) {
                        *sum += *x;
                    }
                }
            });
        }
        Ok(())
    }
}

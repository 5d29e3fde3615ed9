//! The gradient of token and position embeddings.
//!
//! Contract: `table[ids[t], :] += dx[t, :]`, `positions[p[t], :] += dx[t, :]`, rows in order. A task has columns of its
//! own and goes through all rows, so that rows named twice are added in the same order whatever the threads.

use super::buffer::Shared;
use super::check;
use super::simd::CpuElement;
use super::{Buffer, Cpu};
use crate::error::Result;

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
            let shared = Shared::new(out.as_mut_slice());
            self.for_column_blocks(rows, width, |from, to| {
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

//! Softmax attention by blocks of keys with an online softmax (Milakov and Gimelshein 2018; Dao et al.,
//! "FlashAttention", 2022): no `[L, L]` matrix is formed.
//!
//! Contract: `q`, `k`, `v` are packed rows at a stride, `out` `[q rows, heads * head_dim]` dense. Keys are
//! taken in blocks of [`KEYS`] from the first of the sequence. Order of arithmetic of one query row: the
//! query is scaled; a score is one chain of fused multiply-adds over the head; for each block, the
//! weighted sum of values is one chain over its keys, and the running sum is rescaled and added to.
//! Blocks that a query does not see change nothing, so its result depends on its own sequence alone.

use super::buffer::Shared;
use super::check;
use super::gemm::{Cut, tile, with_rows};
use super::mask;
use super::simd::{CpuElement, Kernel, Simd};
use super::{Buffer, Cpu, SCRATCH};
use crate::backend::{HeadShape, Mask, Rows, Segment};
use crate::element::Element;
use crate::error::{Error, Result};

/// Keys in a block. Part of the definition of the result.
const KEYS: usize = 128;
/// Widest head.
const MAX_HEAD_DIM: usize = 256;
/// Most lanes of a vector, and most rows of a tile, of any element.
const MAX_LANES: usize = 16;
const MAX_ROWS: usize = 12;
/// Fewer multiplications than this are not worth sharing out.
const MIN_WORK: usize = 1 << 17;

/// Query rows (heads times queries) of a task.
const fn row_limit(head_dim: usize) -> usize {
    if head_dim > 128 { 96 } else { 192 }
}
const _: () = assert!(scratch_needed(128) <= SCRATCH && scratch_needed(MAX_HEAD_DIM) <= SCRATCH);

/// Numbers of working memory for the largest task: queries, sums of values, scores, keys, values,
/// maximum and sum of each row.
const fn scratch_needed(head_dim: usize) -> usize {
    let padded = head_dim.next_multiple_of(MAX_LANES);
    row_limit(head_dim) * (head_dim + padded + 2) + MAX_ROWS * KEYS + KEYS * (head_dim + padded)
}

impl<E: CpuElement> Cpu<E> {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn attention_impl(
        &self,
        (q, q_at): (&Buffer<E>, Rows),
        (k, k_at): (&Buffer<E>, Rows),
        (v, v_at): (&Buffer<E>, Rows),
        shape: HeadShape,
        segments: &[Segment],
        q_pos: &Buffer<u32>,
        mask: Mask<'_>,
        out: &mut Buffer<E>,
        log_sum: Option<&mut Buffer<E>>,
    ) -> Result<()> {
        const OP: &str = "attention";
        let HeadShape { heads, kv_heads, head_dim, .. } = shape;
        check::heads(OP, shape, MAX_HEAD_DIM)?;
        let width = check::product(OP, "heads", heads, head_dim)?;
        let kv_width = kv_heads * head_dim;
        let over = |what| Error::Shape { op: OP, what, expected: usize::MAX, got: usize::MAX };
        let (mut q_rows, mut k_rows, mut longest, mut work) = (0, 0, 0, 0_usize);
        for s in segments.iter().filter(|s| s.q_len > 0) {
            // In order and apart, so that no two segments write the same row.
            check::at_least(OP, "start of a segment's queries", q_rows, s.q_start)?;
            q_rows = s.q_start.checked_add(s.q_len).ok_or_else(|| over("q"))?;
            if s.k_len > 0 {
                k_rows = k_rows.max(s.k_start.checked_add(s.k_len).ok_or_else(|| over("k"))?);
            }
            longest = longest.max(s.q_len);
            work = work.saturating_add(s.q_len.saturating_mul(s.k_len).saturating_mul(width));
        }
        check::placed(OP, "q", q_at, q_rows, width, q.len(), false)?;
        check::placed(OP, "k", k_at, k_rows, kv_width, k.len(), false)?;
        check::placed(OP, "v", v_at, k_rows, kv_width, v.len(), false)?;
        check::at_least(OP, "out", check::product(OP, "out", q_rows, width)?, out.len())?;
        let q_pos = check::indices(OP, "query position", q_pos.as_slice(), q_rows, usize::MAX)?;
        for (i, s) in segments.iter().enumerate().filter(|(_, s)| s.q_len > 0) {
            mask::check(mask, i, s, &q_pos[s.q_start..s.q_start + s.q_len])?;
        }
        if let Some(log_sum) = &log_sum {
            check::at_least(OP, "log_sum", check::product(OP, "log_sum", q_rows, heads)?, log_sum.len())?;
        }
        if longest == 0 {
            return Ok(());
        }
        let log_sums = log_sum.map(|log_sum| Shared::new(log_sum.as_mut_slice()));

        // A task is some query heads of one key/value head, by some queries of one segment.
        let group = heads / kv_heads;
        let limit = row_limit(head_dim);
        let head_cut = Cut::new(group, limit);
        let mut block = (limit / group.div_ceil(head_cut.parts)).min(longest);
        let lanes = segments.len() * kv_heads * head_cut.parts;
        while block > 32 && lanes * longest.div_ceil(block) < 4 * self.threads() {
            block = block.div_ceil(2);
        }
        let blocks = Cut::new(longest, block);
        let shared = Shared::new(out.as_mut_slice());
        let tasks = lanes * blocks.parts;
        self.for_each_with_scratch(tasks, work >= MIN_WORK, |task, scratch| {
            let (rest, i) = (task / blocks.parts, task % blocks.parts);
            let (rest, part) = (rest / head_cut.parts, rest % head_cut.parts);
            let (index, kv_head) = (rest / kv_heads, rest % kv_heads);
            let segment = segments[index];
            let first = (i * block).min(segment.q_len);
            let count = block.min(segment.q_len - first);
            if count == 0 {
                return;
            }
            let first_head = kv_head * group + head_cut.start(part);
            let row = segment.q_start + first;
            self.dispatch(Task {
                q: &q.as_slice()[q_at.at + row * q_at.stride + first_head * head_dim..],
                q_stride: q_at.stride,
                k: from(k, k_at, segment, kv_head * head_dim),
                k_stride: k_at.stride,
                v: from(v, v_at, segment, kv_head * head_dim),
                v_stride: v_at.stride,
                heads: head_cut.start(part + 1) - head_cut.start(part),
                head_dim,
                scale: E::from_f64(shape.scale),
                positions: &q_pos[row..row + count],
                keys: segment.k_len,
                segment: index,
                mask,
                out: shared.at(row * width + first_head * head_dim),
                out_stride: width,
                log_sum: log_sums.as_ref().map(|log_sums| log_sums.at(row * heads + first_head)),
                log_sum_stride: heads,
                scratch,
            });
        });
        Ok(())
    }
}

/// The numbers of `buffer` from the first key of `segment` and `column` on; none without keys.
fn from<E: CpuElement>(buffer: &Buffer<E>, at: Rows, segment: Segment, column: usize) -> &[E] {
    if segment.k_len == 0 {
        return &[];
    }
    &buffer.as_slice()[at.at + segment.k_start * at.stride + column..]
}

struct Task<'a, E> {
    /// From the first query of the first head on.
    q: &'a [E],
    q_stride: usize,
    /// From the first key (value) of the head on.
    k: &'a [E],
    k_stride: usize,
    v: &'a [E],
    v_stride: usize,
    heads: usize,
    head_dim: usize,
    scale: E,
    /// Position in the sequence of each query.
    positions: &'a [u32],
    /// Keys of the sequence.
    keys: usize,
    /// Which segment, for the explicit mask.
    segment: usize,
    mask: Mask<'a>,
    /// Row of the first query, column of the first head.
    out: *mut E,
    out_stride: usize,
    /// Row of the first query, first head; where the logarithms of the sums are wanted.
    log_sum: Option<*mut E>,
    log_sum_stride: usize,
    scratch: &'a mut [E],
}

/// Working memory of a task; rows are (head, query), head by head.
struct State<'a, E> {
    /// Scaled queries, `[rows, head_dim]`.
    q: &'a mut [E],
    /// Sums of values, `[rows, padded]`.
    sums: &'a mut [E],
    /// Largest score so far, and sum of exponentials, of each row.
    max: &'a mut [E],
    total: &'a mut [E],
    /// Scores, then weights, of a tile: `[MAX_ROWS, KEYS]`.
    scores: &'a mut [E],
    /// Transposed keys of a block, in panels `[head_dim, panel width]`.
    keys: &'a mut [E],
    /// Values of a block, `[keys, padded]`, where their width is not whole vectors.
    values: &'a mut [E],
    padded: usize,
}

/// A block of keys: where it begins, and how many.
#[derive(Clone, Copy)]
struct Span {
    at: usize,
    len: usize,
}

impl<E: Element> Kernel<E> for Task<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<E>>(mut self, s: S) {
        let (d, count) = (self.head_dim, self.positions.len());
        let rows = self.heads * count;
        let padded = d.next_multiple_of(S::LANES);
        let scratch = std::mem::take(&mut self.scratch);
        let (q, scratch) = scratch.split_at_mut(rows * d);
        let (sums, scratch) = scratch.split_at_mut(rows * padded);
        let (max, scratch) = scratch.split_at_mut(rows);
        let (total, scratch) = scratch.split_at_mut(rows);
        let (scores, scratch) = scratch.split_at_mut(MAX_ROWS * KEYS);
        let (keys, values) = scratch.split_at_mut(KEYS * d);
        let mut state = State { q, sums, max, total, scores, keys, values, padded };
        state.sums.fill(E::zero());
        state.max.fill(E::neg_infinity());
        state.total.fill(E::zero());
        for (row, to) in state.q.chunks_exact_mut(d).enumerate() {
            let from = &self.q[row % count * self.q_stride + row / count * d..][..d];
            for (to, from) in to.iter_mut().zip(from) {
                *to = *from * self.scale;
            }
        }

        let seen = match self.mask {
            Mask::Causal => {
                let last = self.positions.iter().max().map_or(0, |&p| p as usize);
                self.keys.min(last + 1)
            }
            _ => self.keys,
        };
        for at in (0..seen).step_by(KEYS) {
            let span = Span { at, len: KEYS.min(seen - at) };
            // SAFETY: keys `span` exist in `k` and `v` (`seen <= keys`).
            unsafe { self.pack(s, &mut state, span) };
            let cut = Cut::new(rows, S::TILE_ROWS);
            for i in 0..cut.parts {
                let (row, end) = (cut.start(i), cut.start(i + 1));
                // SAFETY: rows `row .. end` exist; the block was packed.
                unsafe {
                    with_rows!(end - row, S::TILE_ROWS, M => self.step::<S, M>(s, &mut state, span, row));
                }
            }
        }

        for row in 0..rows {
            let total = state.total[row];
            let inverse = if total == E::zero() { E::zero() } else { E::one() / total };
            if let Some(log_sum) = self.log_sum {
                // SAFETY: row `row % count`, head `row / count` is this task's alone, and exists.
                unsafe {
                    *log_sum.add(row % count * self.log_sum_stride + row / count) =
                        state.max[row] + total.ln()
                };
            }
            let to = self.out.wrapping_add(row % count * self.out_stride + row / count * d);
            for i in (0..d).step_by(S::LANES) {
                let n = S::LANES.min(d - i);
                // SAFETY: row `row % count`, head `row / count` of `out` is this task's alone;
                // `padded >= i + LANES` sums exist.
                unsafe {
                    let v = s.load(state.sums.as_ptr().add(row * padded + i));
                    s.store_part(to.add(i), s.mul(v, s.splat(inverse)), n);
                }
            }
        }
    }
}

impl<E: Element> Task<'_, E> {
    /// Transposes the keys of a block, and pads its values where they are not whole vectors.
    ///
    /// # Safety
    /// The keys `span` exist.
    #[inline(always)]
    unsafe fn pack<S: Simd<E>>(&self, s: S, state: &mut State<'_, E>, span: Span) {
        let d = self.head_dim;
        let width = S::LANES * S::TILE_VECTORS;
        for i in (0..span.len).step_by(S::LANES) {
            let (panel, lane) = (i / width, i % width);
            let n = S::LANES.min(span.len - i);
            // SAFETY: keys `span.at + i` plus `n` exist, `d` numbers each; the panel lies within
            // `KEYS * d` numbers, since `KEYS` is a multiple of `width`.
            unsafe {
                let from = self.k.as_ptr().add((span.at + i) * self.k_stride);
                let to = state.keys.as_mut_ptr().add(panel * width * d + lane);
                s.transpose(from, self.k_stride, n, d, to, width);
            }
        }
        if d < state.padded {
            for (i, to) in state.values.chunks_exact_mut(state.padded).take(span.len).enumerate() {
                let (head, tail) = to.split_at_mut(d);
                head.copy_from_slice(&self.v[(span.at + i) * self.v_stride..][..d]);
                tail.fill(E::zero());
            }
        }
    }

    /// One block of keys for `M` rows from `row` on.
    ///
    /// # Safety
    /// The rows exist, and the keys `span` are packed.
    #[inline(always)]
    unsafe fn step<S: Simd<E>, const M: usize>(
        &self,
        s: S,
        state: &mut State<'_, E>,
        span: Span,
        row: usize,
    ) {
        let (d, padded) = (self.head_dim, state.padded);
        let width = S::LANES * S::TILE_VECTORS;
        let scores = state.scores.as_mut_ptr();
        for j in (0..span.len).step_by(width) {
            // SAFETY: `M` scaled queries from `row` on and a packed panel exist; `scores` takes
            // `M <= MAX_ROWS` rows of `KEYS`, and `j + width <= KEYS`.
            unsafe {
                let a = state.q.as_ptr().add(row * d);
                let b = state.keys.as_ptr().add(j * d);
                if S::TILE_VECTORS == 2 {
                    store::<E, S, M, 2>(s, tile::<E, S, M, 2>(s, d, a, d, b, width), scores.add(j));
                } else {
                    store::<E, S, M, 1>(s, tile::<E, S, M, 1>(s, d, a, d, b, width), scores.add(j));
                }
            }
        }

        let mut rescale = [E::zero(); M];
        for (i, rescale) in rescale.iter_mut().enumerate() {
            let row = row + i;
            let line = &mut state.scores[i * KEYS..][..KEYS];
            let position = self.positions[row % self.positions.len()] as usize;
            let (max, total) = (&mut state.max[row], &mut state.total[row]);
            *rescale = self.softmax(s, line, span, position, max, total);
        }

        let (values, stride) = if d < padded {
            (state.values.as_ptr(), padded)
        } else {
            (self.v.as_ptr().wrapping_add(span.at * self.v_stride), self.v_stride)
        };
        let mut j = 0;
        while j < padded {
            // SAFETY: `span.len` values of `padded` numbers from `values` on; `j` plus the vectors
            // of a tile is at most `padded`; sums of `M` rows exist.
            unsafe {
                let b = values.add(j);
                let sums = state.sums.as_mut_ptr().add(row * padded + j);
                if S::TILE_VECTORS == 2 && j + 2 * S::LANES <= padded {
                    let v = tile::<E, S, M, 2>(s, span.len, scores, KEYS, b, stride);
                    rescale_add::<E, S, M, 2>(s, v, &rescale, sums, padded);
                    j += 2 * S::LANES;
                } else {
                    let v = tile::<E, S, M, 1>(s, span.len, scores, KEYS, b, stride);
                    rescale_add::<E, S, M, 1>(s, v, &rescale, sums, padded);
                    j += S::LANES;
                }
            }
        }
    }

    /// Turns the scores of one query against a block of keys into weights; the factor by which what was
    /// summed before has to be multiplied.
    #[inline(always)]
    fn softmax<S: Simd<E>>(
        &self,
        s: S,
        scores: &mut [E],
        span: Span,
        position: usize,
        max: &mut E,
        total: &mut E,
    ) -> E {
        let lowest = s.splat(E::neg_infinity());
        let all = match self.mask {
            Mask::Full => true,
            Mask::Causal => span.at + span.len <= position + 1,
            _ => false,
        };
        let mut highest = lowest;
        for (i, part) in scores.chunks_exact_mut(S::LANES).enumerate() {
            let at = i * S::LANES;
            if at >= span.len {
                break;
            }
            // SAFETY: `part` holds LANES numbers.
            unsafe {
                let mut v = s.load(part.as_ptr());
                if !all || at + S::LANES > span.len {
                    let valid = mask::low_bits(S::LANES.min(span.len - at));
                    let bits = if all {
                        valid
                    } else {
                        valid & mask::visible(self.mask, self.segment, position, span.at + at, S::LANES)
                    };
                    v = s.select(bits, v, lowest);
                    s.store(part.as_mut_ptr(), v);
                }
                highest = s.max(v, highest);
            }
        }
        let block_max = s.maximum(highest);
        let old = *max;
        let new = if block_max > old { block_max } else { old };
        *max = new;
        // Before any key is seen every exponent is -inf, whatever finite number it is taken from.
        let from = s.splat(if new == E::neg_infinity() { E::zero() } else { new });
        let mut sum = s.splat(E::zero());
        for (i, part) in scores.chunks_exact_mut(S::LANES).enumerate() {
            if i * S::LANES >= span.len {
                break;
            }
            // SAFETY: `part` holds LANES numbers.
            unsafe {
                let v = s.exp(s.sub(s.load(part.as_ptr()), from));
                s.store(part.as_mut_ptr(), v);
                sum = s.add(sum, v);
            }
        }
        let rescale = s.first(s.exp(s.sub(s.splat(old), from)));
        *total = total.mul_add(rescale, s.sum(sum));
        rescale
    }
}

/// Stores a tile of scores, rows [`KEYS`] apart.
///
/// # Safety
/// `M` rows of `NV` vectors can be written.
#[inline(always)]
unsafe fn store<E: Element, S: Simd<E>, const M: usize, const NV: usize>(
    s: S,
    tile: [[S::V; NV]; M],
    to: *mut E,
) {
    for (i, line) in tile.iter().enumerate() {
        for (j, v) in line.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { s.store(to.add(i * KEYS + j * S::LANES), *v) };
        }
    }
}

/// `sums = sums * rescale + tile`, rows `stride` apart.
///
/// # Safety
/// `M` rows of `NV` vectors can be read and written.
#[inline(always)]
unsafe fn rescale_add<E: Element, S: Simd<E>, const M: usize, const NV: usize>(
    s: S,
    tile: [[S::V; NV]; M],
    rescale: &[E; M],
    sums: *mut E,
    stride: usize,
) {
    for (i, line) in tile.iter().enumerate() {
        for (j, v) in line.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let p = sums.add(i * stride + j * S::LANES);
                s.store(p, s.fma(s.load(p), s.splat(rescale[i]), *v));
            }
        }
    }
}

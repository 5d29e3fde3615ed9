//! The gradient of attention, by blocks, with the scores computed again (Dao et al., "FlashAttention", 2022, appendix B;
//! the order of loops is that of FlashAttention-2: keys outside, queries inside).
//!
//! Contract: [`Backward::attention_backward`](crate::backend::Backward::attention_backward). With `p = exp(s - log_sum)`,
//! `dp = d_out v^T`, `D = sum(d_out out)`: `ds = p (dp - D)`, `dv = p^T d_out`, `dk = ds^T (scale q)`, `dq = scale ds k`.
//! A task is one key/value head of one segment: its keys in blocks of [`KEYS`] from the first on; for each, its query
//! heads in order, and queries in blocks of [`QUERIES`]. A number of a gradient is a chain of fused multiply-adds a block,
//! and blocks are added in that order, so threads have no say.

use super::buffer::Shared;
use super::check;
use super::gemm::{Cut, tile, tile_across, with_rows};
use super::mask;
use super::simd::{CpuElement, Kernel, Simd};
use super::{Buffer, Cpu, SCRATCH};
use crate::backend::{Attended, HeadShape, Mask, Rows, Segment};
use crate::element::Element;
use crate::error::{Error, Result};

/// Keys, and queries, in a block. Part of the definition of the result.
const KEYS: usize = 64;
const QUERIES: usize = 48;
/// Widest head.
const MAX_HEAD_DIM: usize = 256;
/// Fewer multiplications than this are not worth sharing out.
const MIN_WORK: usize = 1 << 16;
const _: () = assert!(6 * KEYS * MAX_HEAD_DIM + 2 * QUERIES * (MAX_HEAD_DIM + KEYS + 1) <= SCRATCH);

impl<E: CpuElement> Cpu<E> {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn attention_backward_impl(
        &self,
        kept: Attended<'_, Self>,
        d_out: &Buffer<E>,
        shape: HeadShape,
        segments: &[Segment],
        q_pos: &Buffer<u32>,
        mask: Mask<'_>,
        d_qkv: &mut Buffer<E>,
        places: [Rows; 3],
    ) -> Result<()> {
        const OP: &str = "attention_backward";
        let HeadShape { heads, kv_heads, head_dim, .. } = shape;
        check::heads(OP, shape, MAX_HEAD_DIM)?;
        let width = check::product(OP, "heads", heads, head_dim)?;
        let kv_width = check::product(OP, "key/value heads", kv_heads, head_dim)?;
        let over = |what| Error::Shape { op: OP, what, expected: usize::MAX, got: usize::MAX };
        let (mut q_rows, mut k_rows, mut work) = (0, 0, 0_usize);
        for s in segments {
            // In order and apart, so that no two segments write the same row.
            if s.q_len > 0 {
                check::at_least(OP, "start of a segment's queries", q_rows, s.q_start)?;
                q_rows = s.q_start.checked_add(s.q_len).ok_or_else(|| over("q"))?;
            }
            if s.k_len > 0 {
                check::at_least(OP, "start of a segment's keys", k_rows, s.k_start)?;
                k_rows = s.k_start.checked_add(s.k_len).ok_or_else(|| over("k"))?;
            }
            work = work.saturating_add(s.q_len.saturating_mul(s.k_len).saturating_mul(width));
        }
        let (q, k, v) = (kept.q, kept.k, kept.v);
        check::placed(OP, "q", q.1, q_rows, width, q.0.len(), false)?;
        check::placed(OP, "k", k.1, k_rows, kv_width, k.0.len(), false)?;
        check::placed(OP, "v", v.1, k_rows, kv_width, v.0.len(), false)?;
        let dense = check::product(OP, "out", q_rows, width)?;
        check::at_least(OP, "out", dense, kept.out.len())?;
        check::at_least(OP, "d_out", dense, d_out.len())?;
        check::at_least(OP, "log_sum", q_rows.saturating_mul(heads), kept.log_sum.len())?;
        let sizes = [(q_rows, width), (k_rows, kv_width), (k_rows, kv_width)];
        for (place, (rows, width)) in places.iter().zip(sizes) {
            check::placed(OP, "d_qkv", *place, rows, width, d_qkv.len(), true)?;
        }
        apart(OP, places, [width, kv_width, kv_width])?;
        let q_pos = check::indices(OP, "query position", q_pos.as_slice(), q_rows, usize::MAX)?;
        for (i, s) in segments.iter().enumerate().filter(|(_, s)| s.q_len > 0) {
            mask::check(mask, i, s, &q_pos[s.q_start..s.q_start + s.q_len])?;
        }

        let group = heads / kv_heads;
        let shared = Shared::new(d_qkv.as_mut_slice());
        self.for_each_with_scratch(segments.len() * kv_heads, work >= MIN_WORK, |task, scratch| {
            let (index, kv_head) = (task / kv_heads, task % kv_heads);
            let segment = segments[index];
            let first = kv_head * group;
            let column = kv_head * head_dim;
            self.dispatch(Task {
                q: (from(q.0, q.1, segment.q_start, segment.q_len, first * head_dim), q.1.stride),
                k: (from(k.0, k.1, segment.k_start, segment.k_len, column), k.1.stride),
                v: (from(v.0, v.1, segment.k_start, segment.k_len, column), v.1.stride),
                out: dense_from(kept.out, segment, width, first * head_dim),
                d_out: dense_from(d_out, segment, width, first * head_dim),
                out_stride: width,
                log_sum: dense_from(kept.log_sum, segment, heads, first),
                log_sum_stride: heads,
                group,
                head_dim,
                scale: E::from_f64(shape.scale),
                positions: if segment.q_len == 0 { &[] } else { &q_pos[segment.q_start..][..segment.q_len] },
                keys: segment.k_len,
                segment: index,
                mask,
                dq: (at(&shared, places[0], segment.q_start, first * head_dim), places[0].stride),
                dk: (at(&shared, places[1], segment.k_start, column), places[1].stride),
                dv: (at(&shared, places[2], segment.k_start, column), places[2].stride),
                scratch,
            });
        });
        Ok(())
    }
}

/// The three places are columns of the same rows, and share none.
fn apart(op: &'static str, places: [Rows; 3], widths: [usize; 3]) -> Result<()> {
    let mut spans: Vec<(usize, usize)> =
        places.iter().zip(widths).map(|(p, w)| (p.at, p.at.saturating_add(w))).collect();
    spans.sort_unstable();
    let stride = places[0].stride;
    let ordered = spans.windows(2).all(|pair| pair[0].1 <= pair[1].0);
    let within = spans[2].1 <= spans[0].0.saturating_add(stride);
    if ordered && within && places.iter().all(|p| p.stride == stride) {
        return Ok(());
    }
    Err(Error::Shape { op, what: "numbers shared by the three gradients", expected: 0, got: 1 })
}

/// The numbers of `buffer` from a row and column on; none without rows.
fn from<E: CpuElement>(buffer: &Buffer<E>, at: Rows, row: usize, rows: usize, column: usize) -> &[E] {
    if rows == 0 { &[] } else { &buffer.as_slice()[at.at + row * at.stride + column..] }
}

/// As [`from`], for the queries of a segment in rows of `width`.
fn dense_from<E: CpuElement>(buffer: &Buffer<E>, segment: Segment, width: usize, column: usize) -> &[E] {
    from(buffer, Rows::dense(width), segment.q_start, segment.q_len, column)
}

fn at<E>(shared: &Shared<'_, E>, place: Rows, row: usize, column: usize) -> *mut E {
    // Of a segment without rows this may lie behind the end; it is not written through then.
    let number = row.wrapping_mul(place.stride).wrapping_add(place.at).wrapping_add(column);
    shared.at(0).wrapping_add(number)
}

/// One key/value head of one segment. Slices begin at its first row and column; strides go with them.
struct Task<'a, E> {
    q: (&'a [E], usize),
    k: (&'a [E], usize),
    v: (&'a [E], usize),
    out: &'a [E],
    d_out: &'a [E],
    out_stride: usize,
    log_sum: &'a [E],
    log_sum_stride: usize,
    /// Query heads of the key/value head.
    group: usize,
    head_dim: usize,
    scale: E,
    /// Position in the sequence of each query.
    positions: &'a [u32],
    keys: usize,
    /// Which segment, for the explicit mask.
    segment: usize,
    mask: Mask<'a>,
    dq: (*mut E, usize),
    dk: (*mut E, usize),
    dv: (*mut E, usize),
    scratch: &'a mut [E],
}

/// Working memory of a task.
struct State<'a, E> {
    /// Transposed keys and values of a block, in panels `[head_dim, panel width]`.
    keys_across: &'a mut [E],
    values_across: &'a mut [E],
    /// Keys of a block, `[keys, padded]`.
    keys: &'a mut [E],
    /// Gradients of a block of keys and values, `[KEYS, padded]`.
    dk: &'a mut [E],
    dv: &'a mut [E],
    /// Scaled queries, and gradients of outputs, of a block, `[QUERIES, padded]`.
    q: &'a mut [E],
    d_out: &'a mut [E],
    /// `[QUERIES, KEYS]`.
    p: &'a mut [E],
    ds: &'a mut [E],
    /// `D`, and the logarithm of the sum, of each query.
    delta: &'a mut [E],
    log_sum: &'a mut [E],
    padded: usize,
}

impl<E: Element> Kernel<E> for Task<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd<E>>(mut self, s: S) {
        let d = self.head_dim;
        let padded = d.next_multiple_of(S::LANES);
        let scratch = std::mem::take(&mut self.scratch);
        let block = KEYS * padded;
        let (keys_across, scratch) = scratch.split_at_mut(block);
        let (values_across, scratch) = scratch.split_at_mut(block);
        let (keys, scratch) = scratch.split_at_mut(block);
        let (dk, scratch) = scratch.split_at_mut(block);
        let (dv, scratch) = scratch.split_at_mut(block);
        let (q, scratch) = scratch.split_at_mut(QUERIES * padded);
        let (d_out, scratch) = scratch.split_at_mut(QUERIES * padded);
        let (p, scratch) = scratch.split_at_mut(QUERIES * KEYS);
        let (ds, scratch) = scratch.split_at_mut(QUERIES * KEYS);
        let (delta, scratch) = scratch.split_at_mut(QUERIES);
        let (log_sum, _) = scratch.split_at_mut(QUERIES);
        let mut state =
            State { keys_across, values_across, keys, dk, dv, q, d_out, p, ds, delta, log_sum, padded };
        let count = self.positions.len();
        for query in 0..count {
            // SAFETY: the query's gradients, of all heads of the group, are this task's alone.
            let row =
                unsafe { std::slice::from_raw_parts_mut(self.dq.0.add(query * self.dq.1), self.group * d) };
            row.fill(E::zero());
        }
        for first in (0..self.keys).step_by(KEYS) {
            let len = KEYS.min(self.keys - first);
            // SAFETY: keys `first .. first + len` exist.
            unsafe { self.pack(s, &mut state, first, len) };
            state.dk.fill(E::zero());
            state.dv.fill(E::zero());
            for head in 0..self.group {
                for query in (0..count).step_by(QUERIES) {
                    let queries = QUERIES.min(count - query);
                    let last = self.positions[query..query + queries].iter().max();
                    if matches!(self.mask, Mask::Causal) && last.is_none_or(|&p| (p as usize) < first) {
                        continue;
                    }
                    self.load(s, &mut state, head, query, queries);
                    // SAFETY: the block of keys is packed, the block of queries loaded.
                    unsafe { self.block(s, &mut state, (first, len), head, (query, queries)) };
                }
            }
            for key in 0..len {
                for (from, (to, stride)) in [(&*state.dk, self.dk), (&*state.dv, self.dv)] {
                    // SAFETY: the key's gradients are this task's alone.
                    let row = unsafe { std::slice::from_raw_parts_mut(to.add((first + key) * stride), d) };
                    row.copy_from_slice(&from[key * padded..][..d]);
                }
            }
        }
    }
}

impl<E: Element> Task<'_, E> {
    /// Transposes keys and values of a block, and copies its keys.
    ///
    /// # Safety
    /// The keys exist.
    #[inline(always)]
    unsafe fn pack<S: Simd<E>>(&self, s: S, state: &mut State<'_, E>, first: usize, len: usize) {
        let d = self.head_dim;
        let width = S::LANES * S::TILE_VECTORS;
        for i in (0..len).step_by(S::LANES) {
            let (panel, lane) = (i / width, i % width);
            let n = S::LANES.min(len - i);
            let to = panel * width * d + lane;
            // SAFETY: keys `first + i` plus `n` exist, `d` numbers each; the panel lies within `KEYS * padded` numbers,
            // since `KEYS` is a multiple of `width`.
            unsafe {
                let key = self.k.0.as_ptr().add((first + i) * self.k.1);
                s.transpose(key, self.k.1, n, d, state.keys_across.as_mut_ptr().add(to), width);
                let value = self.v.0.as_ptr().add((first + i) * self.v.1);
                s.transpose(value, self.v.1, n, d, state.values_across.as_mut_ptr().add(to), width);
            }
        }
        for (i, to) in state.keys.chunks_exact_mut(state.padded).take(len).enumerate() {
            let (head, tail) = to.split_at_mut(d);
            head.copy_from_slice(&self.k.0[(first + i) * self.k.1..][..d]);
            tail.fill(E::zero());
        }
    }

    /// Scales the queries of a block, and takes what belongs to them.
    #[inline(always)]
    fn load<S: Simd<E>>(&self, s: S, state: &mut State<'_, E>, head: usize, query: usize, queries: usize) {
        let (d, padded) = (self.head_dim, state.padded);
        for i in 0..queries {
            let row = query + i;
            let q = &self.q.0[row * self.q.1 + head * d..][..d];
            let out = &self.out[row * self.out_stride + head * d..][..d];
            let d_out = &self.d_out[row * self.out_stride + head * d..][..d];
            let (to_q, to_d) =
                (&mut state.q[i * padded..][..padded], &mut state.d_out[i * padded..][..padded]);
            to_q[d..].fill(E::zero());
            to_d[d..].fill(E::zero());
            let mut sum = s.splat(E::zero());
            for at in (0..d).step_by(S::LANES) {
                let n = S::LANES.min(d - at);
                // SAFETY: `n` numbers from `at` on exist in each.
                unsafe {
                    let v = s.load_part(d_out.as_ptr().add(at), n);
                    s.store_part(to_d.as_mut_ptr().add(at), v, n);
                    sum = s.fma(v, s.load_part(out.as_ptr().add(at), n), sum);
                    let v = s.mul(s.load_part(q.as_ptr().add(at), n), s.splat(self.scale));
                    s.store_part(to_q.as_mut_ptr().add(at), v, n);
                }
            }
            state.delta[i] = s.sum(sum);
            state.log_sum[i] = self.log_sum[row * self.log_sum_stride + head];
        }
    }

    /// One block of queries against one of keys.
    ///
    /// # Safety
    /// The keys are packed and the queries loaded; both exist.
    #[inline(always)]
    unsafe fn block<S: Simd<E>>(
        &self,
        s: S,
        state: &mut State<'_, E>,
        (first, len): (usize, usize),
        head: usize,
        (query, queries): (usize, usize),
    ) {
        let (d, padded) = (self.head_dim, state.padded);
        let cut = Cut::new(queries, S::TILE_ROWS);
        for i in 0..cut.parts {
            let (row, end) = (cut.start(i), cut.start(i + 1));
            // SAFETY: rows `row .. end` of the block were loaded.
            unsafe {
                with_rows!(end - row, S::TILE_ROWS, M => {
                    if S::TILE_VECTORS == 2 {
                        self.scores::<S, M, 2>(s, state, len, row)
                    } else {
                        self.scores::<S, M, 1>(s, state, len, row)
                    }
                });
            }
            for row in row..end {
                self.weigh(s, state, (first, len), row, self.positions[query + row] as usize);
            }
        }
        // dv += p^T d_out, dk += ds^T q.
        let keys = Cut::new(len, S::TILE_ROWS);
        for (weights, rows, sums) in
            [(&*state.p, &*state.d_out, &mut *state.dv), (&*state.ds, &*state.q, &mut *state.dk)]
        {
            for i in 0..keys.parts {
                let (key, end) = (keys.start(i), keys.start(i + 1));
                for j in (0..padded).step_by(S::LANES) {
                    // SAFETY: `queries` rows of `KEYS` weights and of `padded` numbers exist, as do the sums.
                    unsafe {
                        let (a, b) = (weights.as_ptr().add(key), rows.as_ptr().add(j));
                        let to = sums.as_mut_ptr().add(key * padded + j);
                        with_rows!(end - key, S::TILE_ROWS, M => {
                            let acc = tile_across::<E, S, M, 1>(s, queries, a, KEYS, b, padded);
                            for (i, [v]) in acc.iter().enumerate() {
                                let to = to.add(i * padded);
                                s.store(to, s.add(s.load(to), *v));
                            }
                        });
                    }
                }
            }
        }
        // dq += scale ds k.
        let scale = s.splat(self.scale);
        for i in 0..cut.parts {
            let (row, end) = (cut.start(i), cut.start(i + 1));
            for j in (0..d).step_by(S::LANES) {
                let n = S::LANES.min(d - j);
                // SAFETY: rows of `KEYS` numbers, of which `len` were written, and `len` keys of `padded` numbers exist;
                // these columns of the queries' gradients are this task's alone.
                unsafe {
                    let (a, b) = (state.ds.as_ptr().add(row * KEYS), state.keys.as_ptr().add(j));
                    let to = self.dq.0.add((query + row) * self.dq.1 + head * d + j);
                    with_rows!(end - row, S::TILE_ROWS, M => {
                        let acc = tile::<E, S, M, 1>(s, len, a, KEYS, b, padded);
                        for (i, [v]) in acc.iter().enumerate() {
                            let to = to.add(i * self.dq.1);
                            s.store_part(to, s.fma(*v, scale, s.load_part(to, n)), n);
                        }
                    });
                }
            }
        }
    }

    /// Scores, and products of values with gradients, of `M` queries from `row` on.
    ///
    /// # Safety
    /// The rows were loaded, and `len` keys are packed.
    #[inline(always)]
    unsafe fn scores<S: Simd<E>, const M: usize, const NV: usize>(
        &self,
        s: S,
        state: &mut State<'_, E>,
        len: usize,
        row: usize,
    ) {
        let (d, padded) = (self.head_dim, state.padded);
        let width = NV * S::LANES;
        for j in (0..len).step_by(width) {
            for (a, across, to) in [
                (&*state.q, &*state.keys_across, &mut *state.p),
                (&*state.d_out, &*state.values_across, &mut *state.ds),
            ] {
                // SAFETY: `M` rows of `d` numbers, a panel of `d` rows, and `M` rows of `KEYS` numbers exist, and
                // `j + width <= KEYS`.
                unsafe {
                    let a = a.as_ptr().add(row * padded);
                    let acc = tile::<E, S, M, NV>(s, d, a, padded, across.as_ptr().add(j * d), width);
                    for (i, line) in acc.iter().enumerate() {
                        for (v, vector) in line.iter().enumerate() {
                            s.store(to.as_mut_ptr().add((row + i) * KEYS + j + v * S::LANES), *vector);
                        }
                    }
                }
            }
        }
    }

    /// Turns the scores of a query into weights, and the products into gradients of scores.
    #[inline(always)]
    fn weigh<S: Simd<E>>(
        &self,
        s: S,
        state: &mut State<'_, E>,
        (first, len): (usize, usize),
        row: usize,
        position: usize,
    ) {
        let lowest = s.splat(E::neg_infinity());
        let log_sum = state.log_sum[row];
        // A query that sees nothing has only weights of 0, whatever finite number is taken from -inf.
        let from = s.splat(if log_sum == E::neg_infinity() { E::zero() } else { log_sum });
        let delta = s.splat(state.delta[row]);
        for at in (0..len).step_by(S::LANES) {
            let n = S::LANES.min(len - at);
            let seen = mask::visible(self.mask, self.segment, position, first + at, S::LANES);
            let bits = mask::low_bits(n) & seen;
            // SAFETY: `at + LANES <= KEYS` numbers of the row exist in both.
            unsafe {
                let (p, ds) =
                    (state.p.as_mut_ptr().add(row * KEYS + at), state.ds.as_mut_ptr().add(row * KEYS + at));
                let weight = s.exp(s.sub(s.select(bits, s.load(p), lowest), from));
                // What lies behind the last key is anything, NaN too.
                let slope = s.select(bits, s.sub(s.load(ds), delta), s.splat(E::zero()));
                s.store(p, weight);
                s.store(ds, s.mul(weight, slope));
            }
        }
    }
}

// Gradient of softmax attention, 16-bit formats: from d_out, those of q, k and v. Scores are computed again blockwise from q, k
// and the log-sum-exps that the forward kernel kept; no [queries, keys] matrix is formed.
//
//   p = exp(scale q k^T - lse), 0 where the mask hides a key;  ds = p (d_out v^T - dots), dots = rowsum(d_out out)
//   dv = p^T d_out,  dk = scale ds^T q,  dq = scale ds k
//
// Contract. T is bf16 or f16; D, the head width, is 32, 48, 64, 80, 96 or 128.
//   q, k, v, segments, q_pos, words, mode and the mask's sizes: those of attention_fwd.cu, and read by the same functions. The keys of
//       two sequences are apart too.
//   out, d_out [q rows, heads * D] dense; lse [heads, q_rows] f32, as the forward kernel wrote it: natural, -inf for a query that
//       sees no key.
//   dots [heads, q_rows] f32: scratch, written by the first kernel for all queries of the sequences, read by the others.
//   d_qkv: gradients in T, =, in rows d_stride bytes apart, each on 16 bytes: dq [q rows, heads * D] from the q kernel's pointer on,
//       dk and dv [k rows, heads / group * D] dk_at and dv_at numbers behind the kv kernel's pointer. All rows of the sequences are
//       written, and nothing else. Zeros for a query that sees no key, and a key that no query sees.
//   A query whose position the words do not know has NaN in lse: dq is NaN, and so are dk and dv of the keys that position 0 sees;
//       those of other keys of the sequence may be.
//   scale_log2 = scale * log2(e), above 0.
// Products by mma.sync with sums in f32; p and ds are rounded to T before they multiply d_out, q and k.
//
// Order of sums, whatever the grid: dk and dv of a key go through the query heads of its group in order, and for each through blocks
// of 64 (D = 128: 32) queries from the sequence's first on; dq of a query through blocks of 64 (above D = 80: 32) keys from the first on. Blocks
// that are skipped add nothing: the bits of a sequence depend on it alone.
//
// Grids: dots: see Dots. kv: x tiles of 64 keys of the longest sequence, y key/value heads, z sequences. q: x (tiles of 64 queries) *
// group, y key/value heads, z sequences. Blocks of 4 warps, 16 rows of a tile to each.
// Dynamic shared memory: kv: 64 rows of k and of v, two blocks of q and of d_out, of Tile<T, D>, then two QueryBlocks. q: 64 rows
// of q and of d_out, two blocks of k and of v.
//
// Dao et al., "FlashAttention", 2022, appendix B, in the order of loops of Dao, "FlashAttention-2", 2023; dq has a kernel of its own,
// so that no sum is shared by blocks.
#include "common/attention_bwd.cuh"

KERNEL_FILE(attention_bwd)

constexpr int ROWS = 64, WARP_ROWS = 16;

// The warp's sums, times `factors` of its rows lane / 4 and lane / 4 + 8, to its own rows of a tile, and from there to row `from` of
// `to` and the next ones.
template <class T, int D>
DEVICE void store_sums(T* to, int stride, int from, int end, const float (&g)[1][D / 8][4], float upper, float lower,
                       T* rows) {
  typedef Tile<T, D> Rows;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
      const float factor = half == 0 ? upper : lower;
      const uint32_t pair = pack2<T>(g[0][n][2 * half] * factor, g[0][n][2 * half + 1] * factor);
      memcpy(rows + Rows::at(8 * half + lane / 4, n) + lane % 4 * 2, &pair, 4);
    }
  __syncwarp();
  store_rows<T, D, WARP_ROWS>(to, stride, from, end, rows);
}

// The warp's rows of a tile as fragments, where they stay in registers.
template <class T, int D, int KEPT>
DEVICE void keep(uint32_t (&fragments)[KEPT][1][4], const T* own) {
  const int lane = threadIdx.x % 32;
  if constexpr (KEPT > 1) {
#pragma unroll
    for (int kk = 0; kk < KEPT; kk++) ldmatrix_x4(fragments[kk][0], own + Tile<T, D>::at(lane % 16, 2 * kk + lane / 16));
  }
}

// A block of queries against the warp's 16 keys: s becomes p^T, and 2^-inf = 0 where a key is hidden.
template <int QUERIES>
DEVICE void soften_across(float (&s)[1][QUERIES / 8][4], const QueryBlock<QUERIES>& queries, bool all, float scale_log2) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = lane % 4 * 2;
  if (!all) {
    const uint32_t* const seen = queries.seen[warp / 2] + column;
    const int bit = warp % 2 * 16 + lane / 4;
#pragma unroll
    for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const uint32_t bits = seen[8 * n + e] >> bit;
        if (!(bits & 1)) s[0][n][e] = -INFINITY;
        if (!(bits & 1 << 8)) s[0][n][2 + e] = -INFINITY;
      }
  }
#pragma unroll
  for (int n = 0; n < QUERIES / 8; n++) {
    const float2 log_sum = *reinterpret_cast<const float2*>(queries.log_sum + 8 * n + column);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      s[0][n][2 * half] = exp2_approx(__fmaf_rn(s[0][n][2 * half], scale_log2, -log_sum.x));
      s[0][n][2 * half + 1] = exp2_approx(__fmaf_rn(s[0][n][2 * half + 1], scale_log2, -log_sum.y));
    }
  }
}

template <class T, int D, int QUERIES, bool KEEPS>
DEVICE void gradient_of_keys(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                             const T* __restrict__ d_out, const float* __restrict__ lse, const float* __restrict__ dots,
                             const uint32_t* __restrict__ segments, const MaskPlan& plan, T* __restrict__ d_qkv,
                             const GradientPlan& to, int q_stride, int k_stride, int v_stride, int group, int q_rows,
                             float scale, float scale_log2) {
  typedef Tile<T, D> Rows;
  typedef QueryBlock<QUERIES> Queries;
  constexpr int TILE = ROWS * Rows::STRIDE, BLOCK = QUERIES * Rows::STRIDE, KEPT = KEEPS ? D / 16 : 1;
  DYN_SMEM(T, shared);
  const Sequence at = load_sequence(segments, blockIdx.z);
  const int first = blockIdx.x * ROWS;
  if (first >= at.k_len) return;
  const int warp = threadIdx.x / 32;
  T* const k_own = shared + warp * WARP_ROWS * Rows::STRIDE;
  T* const v_own = k_own + TILE;
  T* const blocks_at = shared + 2 * TILE;  // q and d_out of one block, then of the other
  Queries* const known = reinterpret_cast<Queries*>(blocks_at + 4 * BLOCK);

  Rows::template load<ROWS, BACKWARD_THREADS>(shared, k + blockIdx.y * D, k_stride, at.k_start + first, at.k_start + at.k_len);
  Rows::template load<ROWS, BACKWARD_THREADS>(shared + TILE, v + blockIdx.y * D, v_stride, at.k_start + first,
                                              at.k_start + at.k_len);
  cp_async_commit();
  const int skipped = first_block_of_queries<QUERIES>(plan, at, first, known[0].seen[0]);
  const int d_out_stride = gridDim.y * group * D * static_cast<int>(sizeof(T));

  // The next block that is copied: of which query head, and which.
  int head = blockIdx.y * group, block = skipped;
  const int blocks = (at.q_len + QUERIES - 1) / QUERIES, total = (blocks - skipped) * group;
  const auto load_block = [&](T* to) {
    const int row = at.q_start + block * QUERIES, end = at.q_start + at.q_len;
    Rows::template load<QUERIES, BACKWARD_THREADS>(to, q + head * D, q_stride, row, end);
    Rows::template load<QUERIES, BACKWARD_THREADS>(to + BLOCK, d_out + head * D, d_out_stride, row, end);
    cp_async_commit();
  };
  const auto fetch = [&](const QueryMask& mask) {
    return Queries::fetch(plan, at, mask, lse, dots, static_cast<int64_t>(head) * q_rows, block, first);
  };
  const auto step = [&] {
    if (++block == blocks) {
      block = skipped;
      head++;
    }
  };
  QueryMask mask(plan, at, block * QUERIES + Queries::row());
  if (total > 0) {
    load_block(blocks_at);
    known[0].put(plan, at, mask, fetch(mask), first);
    step();
    mask = QueryMask(plan, at, block * QUERIES + Queries::row());
  }

  uint32_t k_fragments[KEPT][1][4], v_fragments[KEPT][1][4];
  float dk[1][D / 8][4], dv[1][D / 8][4];
#pragma unroll
  for (int n = 0; n < D / 8; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) dk[0][n][e] = dv[0][n][e] = 0.0f;

  for (int i = 0; i < total; i++) {
    const bool more = i + 1 < total;
    const Queries& queries = known[i % 2];
    const T* const q_tile = blocks_at + i % 2 * 2 * BLOCK;
    const T* const o_tile = q_tile + BLOCK;
    cp_async_wait<0>();
    __syncthreads();  // this block is there for all; the one before is done with
    // What the threads have to know of the next block is on its way while this one is worked on, and the positions of the one after.
    typename Queries::Part part = {};
    const QueryMask part_mask = mask;
    if (more) {
      load_block(blocks_at + (i + 1) % 2 * 2 * BLOCK);
      part = fetch(mask);
      step();
      mask = QueryMask(plan, at, block * QUERIES + Queries::row());
    }
    if (i == 0) {
      keep<T, D>(k_fragments, k_own);
      keep<T, D>(v_fragments, v_own);
    }
    if (queries.any_sees(warp / 2)) {
      float s[1][QUERIES / 8][4], ds[1][QUERIES / 8][4];
      scores<T, D>(s, k_fragments, k_own, q_tile);
      soften_across<QUERIES>(s, queries, queries.all_see(warp / 2), scale_log2);
      add_values<T, D>(dv, s, o_tile);
      scores<T, D>(ds, v_fragments, v_own, o_tile);
#pragma unroll
      for (int n = 0; n < QUERIES / 8; n++) {
        const float2 dot = *reinterpret_cast<const float2*>(queries.dots + 8 * n + threadIdx.x % 4 * 2);
#pragma unroll
        for (int half = 0; half < 2; half++) {
          ds[0][n][2 * half] = __fmul_rn(s[0][n][2 * half], __fsub_rn(ds[0][n][2 * half], dot.x));
          ds[0][n][2 * half + 1] = __fmul_rn(s[0][n][2 * half + 1], __fsub_rn(ds[0][n][2 * half + 1], dot.y));
        }
      }
      add_values<T, D>(dk, ds, q_tile);
    }
    if (more) known[(i + 1) % 2].put(plan, at, part_mask, part, first);
  }

  cp_async_wait<0>();
  __syncthreads();  // where there was no query: copies into the rows that are now written
  const int64_t from = static_cast<int64_t>(blockIdx.y) * D;
  const int row = at.k_start + first + warp * WARP_ROWS, end = at.k_start + at.k_len;
  store_sums<T, D>(d_qkv + to.k_at + from, to.stride, row, end, dk, scale, scale, k_own);
  store_sums<T, D>(d_qkv + to.v_at + from, to.stride, row, end, dv, 1.0f, 1.0f, v_own);
}

template <class T, int D, int KEYS, bool KEEPS>
DEVICE void gradient_of_queries(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                                const T* __restrict__ d_out, const float* __restrict__ lse,
                                const float* __restrict__ dots, const uint32_t* __restrict__ segments,
                                const MaskPlan& plan, T* __restrict__ d_qkv, int d_stride, int q_stride, int k_stride,
                                int v_stride, int group, int q_rows, float scale, float scale_log2) {
  typedef Tile<T, D> Rows;
  constexpr int TILE = ROWS * Rows::STRIDE, BLOCK = KEYS * Rows::STRIDE, WORDS = KEYS / 32, KEPT = KEEPS ? D / 16 : 1;
  DYN_SMEM(T, shared);
  const Sequence at = load_sequence(segments, blockIdx.z);
  const auto [head, first] = part_of_block<ROWS>(group, plan.mode);
  if (first >= at.q_len) return;
  const int lane = threadIdx.x % 32, warp_at = threadIdx.x / 32 * WARP_ROWS;
  T* const q_own = shared + warp_at * Rows::STRIDE;
  T* const o_own = q_own + TILE;
  T* const blocks_at = shared + 2 * TILE;  // k and v of one block, then of the other

  const auto load_block = [&](T* to, int block) {
    const int row = at.k_start + block * KEYS, end = at.k_start + at.k_len;
    Rows::template load<KEYS, BACKWARD_THREADS>(to, k + blockIdx.y * D, k_stride, row, end);
    Rows::template load<KEYS, BACKWARD_THREADS>(to + BLOCK, v + blockIdx.y * D, v_stride, row, end);
    cp_async_commit();
  };
  const int blocks = key_blocks<ROWS, KEYS>(plan, at, first);
  if (blocks > 0) {
    const int row = at.q_start + first, end = at.q_start + at.q_len;
    Rows::template load<ROWS, BACKWARD_THREADS>(shared, q + head * D, q_stride, row, end);
    Rows::template load<ROWS, BACKWARD_THREADS>(shared + TILE, d_out + head * D,
                                                gridDim.y * group * D * static_cast<int>(sizeof(T)), row, end);
    load_block(blocks_at, 0);
  }

  const QueryMask mask(plan, at, first + warp_at + lane % WARP_ROWS);
  float log_sum[2], dot[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int query = first + warp_at + 8 * half + lane / 4;
    const int64_t place = static_cast<int64_t>(head) * q_rows + at.q_start + query;
    log_sum[half] = log2_of(query < at.q_len ? lse[place] : -INFINITY);
    dot[half] = query < at.q_len ? dots[place] : 0.0f;
  }
  uint32_t q_fragments[KEPT][1][4], o_fragments[KEPT][1][4];
  float dq[1][D / 8][4];
#pragma unroll
  for (int n = 0; n < D / 8; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) dq[0][n][e] = 0.0f;

  for (int block = 0; block < blocks; block++) {
    uint32_t bits[WORDS];
    bool any = false, all = true;
#pragma unroll
    for (int word = 0; word < WORDS; word++) {
      const int key = block * KEYS + 32 * word;
      bits[word] = mask.seen_of(plan, at.k_len, key, mask.drawn(plan, blockIdx.z, at.k_len, key));
      any |= bits[word] != 0;
      all &= bits[word] == ~0u;
    }
    const T* const k_tile = blocks_at + block % 2 * 2 * BLOCK;
    const T* const v_tile = k_tile + BLOCK;
    cp_async_wait<0>();
    __syncthreads();  // this block is there for all; the one before is done with
    if (block + 1 < blocks) load_block(blocks_at + (block + 1) % 2 * 2 * BLOCK, block + 1);
    if (block == 0) {
      keep<T, D>(q_fragments, q_own);
      keep<T, D>(o_fragments, o_own);
    }
    any = __any_sync(ATTENTION_WARP, any);
    all = __all_sync(ATTENTION_WARP, all || !mask.inside());
    if (!any) continue;

    float s[1][KEYS / 8][4], ds[1][KEYS / 8][4];
    scores<T, D>(s, q_fragments, q_own, k_tile);
    if (!all) hide(s, bits);
    scores<T, D>(ds, o_fragments, o_own, v_tile);
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const float p = exp2_approx(__fmaf_rn(s[0][n][e], scale_log2, -log_sum[e / 2]));
        ds[0][n][e] = __fmul_rn(p, __fsub_rn(ds[0][n][e], dot[e / 2]));
      }
    add_values<T, D>(dq, ds, k_tile);
  }

  const float fit = mask.known(plan) ? scale : NAN;
  const float upper = __shfl_sync(ATTENTION_WARP, fit, lane / 4), lower = __shfl_sync(ATTENTION_WARP, fit, lane / 4 + 8);
  __syncwarp();  // the warp's rows of q are read by all lanes before they are written
  store_sums<T, D>(d_qkv + head * D, d_stride, at.q_start + first + warp_at, at.q_start + at.q_len, dq, upper, lower, q_own);
}

#define BACKWARD_KERNELS(T, SUFFIX, D, KEEPS, QUERIES, KV_BLOCKS, KEYS, Q_BLOCKS)                                          \
  KERNEL(BACKWARD_THREADS, 4, attention_bwd_dots_d##D##_##SUFFIX,                                                          \
         (const T* out, const T* d_out, const uint32_t* segments, float* dots, int q_rows)) {                              \
    Dots<T, D>::run(out, d_out, segments, dots, q_rows);                                                                   \
  }                                                                                                                        \
  KERNEL(BACKWARD_THREADS, KV_BLOCKS, attention_bwd_kv_d##D##_##SUFFIX,                                                    \
         (const T* q, const T* k, const T* v, const uint32_t* segments, const uint32_t* q_pos, const uint32_t* words,      \
          const T* d_out, const float* lse, const float* dots, T* d_qkv, int q_stride, int k_stride, int v_stride,         \
          int group, int q_rows, int mode, int mask_queries, int query_stride, int segment_stride, float scale,            \
          float scale_log2, int d_stride, int dk_at, int dv_at)) {                                                         \
    const MaskPlan plan = {q_pos, words, mode, mask_queries, query_stride, segment_stride};                                \
    gradient_of_keys<T, D, QUERIES, KEEPS>(q, k, v, d_out, lse, dots, segments, plan, d_qkv, {d_stride, dk_at, dv_at},     \
                                           q_stride, k_stride, v_stride, group, q_rows, scale, scale_log2);                \
  }                                                                                                                        \
  KERNEL(BACKWARD_THREADS, Q_BLOCKS, attention_bwd_q_d##D##_##SUFFIX,                                                      \
         (const T* q, const T* k, const T* v, const uint32_t* segments, const uint32_t* q_pos, const uint32_t* words,      \
          const T* d_out, const float* lse, const float* dots, T* d_qkv, int q_stride, int k_stride, int v_stride,         \
          int group, int q_rows, int mode, int mask_queries, int query_stride, int segment_stride, float scale,            \
          float scale_log2, int d_stride)) {                                                                               \
    const MaskPlan plan = {q_pos, words, mode, mask_queries, query_stride, segment_stride};                                \
    gradient_of_queries<T, D, KEYS, KEEPS>(q, k, v, d_out, lse, dots, segments, plan, d_qkv, d_stride, q_stride, k_stride, \
                                           v_stride, group, q_rows, scale, scale_log2);                                    \
  }
// Whether the rows of a warp stay in registers; queries of a block of kv, and blocks that a multiprocessor holds of it at least; keys
// of a block of q, and how many it holds of that.
#define ALL_BACKWARD_KERNELS(T, SUFFIX)                  \
  BACKWARD_KERNELS(T, SUFFIX, 32, true, 64, 3, 64, 3)    \
  BACKWARD_KERNELS(T, SUFFIX, 48, true, 64, 2, 64, 3)    \
  BACKWARD_KERNELS(T, SUFFIX, 64, true, 64, 2, 64, 3)    \
  BACKWARD_KERNELS(T, SUFFIX, 80, false, 64, 2, 64, 2)   \
  BACKWARD_KERNELS(T, SUFFIX, 96, false, 64, 2, 32, 3)   \
  BACKWARD_KERNELS(T, SUFFIX, 128, false, 32, 2, 32, 3)
ALL_BACKWARD_KERNELS(f16, f16)
ALL_BACKWARD_KERNELS(bf16, bf16)

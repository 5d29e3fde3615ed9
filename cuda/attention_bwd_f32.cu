// Gradient of softmax attention, f32: as attention_bwd.cu, whose contract holds with T = float, without tensor cores.
//
// Where it differs. Probabilities and their gradients are not rounded. Queries of the kv kernel and keys of the q kernel come in
// blocks of 32, one at a time. In a warp, which has 16 rows of a tile, lane l has rows l / 8 + 4 i (i < 4), of their scores
// those of the block's rows l % 8 + 8 j, of their gradients those of columns VECTOR (l % 8 + 8 j) and the next VECTOR - 1.
// Scores become factors of gradients by way of shared memory, a warp's own part of it.
//
// Dynamic shared memory: 192 rows of Tile<float, D>, 64 rows of Tile<float, 32>; kv: and a QueryBlock<32>.
#include "common/attention_bwd.cuh"

KERNEL_FILE(attention_bwd_f32)

constexpr int ROWS = 64, WARP_ROWS = 16, BLOCK = 32;

// s[i][j] = the product of row i of this lane's, of a, and row j of this lane's, of b.
template <int D>
DEVICE void products(float (&s)[4][BLOCK / 8], const float* a_rows, const float* b_rows) {
  constexpr int STRIDE = Tile<float, D>::STRIDE;
  const int lane = threadIdx.x % 32;
  a_rows += lane / 8 * STRIDE;
  b_rows += lane % 8 * STRIDE;
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < BLOCK / 8; j++) s[i][j] = 0.0f;
#pragma unroll 2
  for (int d = 0; d < D; d += 4) {
    float4 a[4];
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = load_float4(a_rows + 4 * i * STRIDE + d);
#pragma unroll
    for (int j = 0; j < BLOCK / 8; j++) {
      const float4 b = load_float4(b_rows + 8 * j * STRIDE + d);
#pragma unroll
      for (int i = 0; i < 4; i++)
        s[i][j] = __fmaf_rn(a[i].w, b.w, __fmaf_rn(a[i].z, b.z, __fmaf_rn(a[i].y, b.y, __fmaf_rn(a[i].x, b.x, s[i][j]))));
    }
  }
}

// Columns that a lane has next to each other.
template <int D> constexpr int VECTOR = D % 32 == 0 ? 4 : 2;

// g += s b, by way of `weights`, the warp's own [WARP_ROWS, BLOCK].
template <int D>
DEVICE void add_rows(float (&g)[4][D / 8], const float (&s)[4][BLOCK / 8], float* weights, const float* b_rows) {
  constexpr int STRIDE = Tile<float, D>::STRIDE, ACROSS = Tile<float, BLOCK>::STRIDE, V = VECTOR<D>;
  const int row_at = threadIdx.x % 32 / 8, column_at = threadIdx.x % 8;
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < BLOCK / 8; j++) weights[(row_at + 4 * i) * ACROSS + column_at + 8 * j] = s[i][j];
  __syncwarp();  // the other lanes' weights
#pragma unroll 2
  for (int n = 0; n < BLOCK; n += 4) {
    float p[4][4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float4 x = load_float4(weights + (row_at + 4 * i) * ACROSS + n);
      p[i][0] = x.x, p[i][1] = x.y, p[i][2] = x.z, p[i][3] = x.w;
    }
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
      for (int c = 0; c < D / 8; c += V) {
        const float* from = b_rows + (n + m) * STRIDE + V * column_at + 8 * c;
        float b[4];
        if constexpr (V == 4) {
          const float4 x = load_float4(from);
          b[0] = x.x, b[1] = x.y, b[2] = x.z, b[3] = x.w;
        } else {
          const float2 x = *reinterpret_cast<const float2*>(from);
          b[0] = x.x, b[1] = x.y;
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
          for (int e = 0; e < V; e++) g[i][c + e] = __fmaf_rn(p[i][m], b[e], g[i][c + e]);
      }
  }
  __syncwarp();  // before the next weights
}

// The warp's sums, times `factors`, to its own rows of a tile, and from there to row `from` of `to` and the next ones.
template <int D>
DEVICE void store_sums(float* to, int stride, int from, int end, const float (&g)[4][D / 8], const float (&factors)[4],
                       float* rows) {
  constexpr int STRIDE = Tile<float, D>::STRIDE, V = VECTOR<D>;
  const int row_at = threadIdx.x % 32 / 8, column_at = threadIdx.x % 8;
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int c = 0; c < D / 8; c += V)
#pragma unroll
      for (int e = 0; e < V; e++)
        rows[(row_at + 4 * i) * STRIDE + V * column_at + 8 * c + e] = __fmul_rn(g[i][c + e], factors[i]);
  __syncwarp();
  store_rows<float, D, WARP_ROWS>(to, stride, from, end, rows);
}

template <int D>
DEVICE void gradient_of_keys(const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v,
                             const float* __restrict__ d_out, const float* __restrict__ lse,
                             const float* __restrict__ dots, const uint32_t* __restrict__ segments, const MaskPlan& plan,
                             float* __restrict__ d_qkv, const GradientPlan& to, int q_stride, int k_stride, int v_stride,
                             int group, int q_rows, float scale, float scale_log2) {
  typedef Tile<float, D> Rows;
  typedef QueryBlock<BLOCK> Queries;
  DYN_SMEM(float, shared);
  const Sequence at = load_sequence(segments, blockIdx.z);
  const int first = blockIdx.x * ROWS, k_end = at.k_start + at.k_len;
  if (first >= at.k_len) return;
  const int warp = threadIdx.x / 32, warp_at = warp * WARP_ROWS, row_at = threadIdx.x % 32 / 8, column_at = threadIdx.x % 8;
  float* const k_tile = shared;
  float* const v_tile = k_tile + ROWS * Rows::STRIDE;
  float* const q_tile = v_tile + ROWS * Rows::STRIDE;
  float* const o_tile = q_tile + BLOCK * Rows::STRIDE;
  float* const weights = o_tile + BLOCK * Rows::STRIDE + warp_at * Tile<float, BLOCK>::STRIDE;
  Queries* const queries = reinterpret_cast<Queries*>(o_tile + BLOCK * Rows::STRIDE + ROWS * Tile<float, BLOCK>::STRIDE);

  Rows::template load<ROWS, BACKWARD_THREADS>(k_tile, k + blockIdx.y * D, k_stride, at.k_start + first, k_end);
  Rows::template load<ROWS, BACKWARD_THREADS>(v_tile, v + blockIdx.y * D, v_stride, at.k_start + first, k_end);
  cp_async_commit();
  const int skipped = first_block_of_queries<BLOCK>(plan, at, first, queries->seen[0]);
  const int width = gridDim.y * group * D, q_end = at.q_start + at.q_len;

  float dk[4][D / 8] = {}, dv[4][D / 8] = {};
  for (int head = blockIdx.y * group; head < static_cast<int>(blockIdx.y + 1) * group; head++)
    for (int block = skipped; block * BLOCK < at.q_len; block++) {
      const int row = at.q_start + block * BLOCK;
      const QueryMask mask(plan, at, block * BLOCK + Queries::row());
      const auto part =
          Queries::fetch(plan, at, mask, lse, dots, static_cast<int64_t>(head) * q_rows, block, first);
      __syncthreads();  // the block before is done with
      Rows::template load<BLOCK, BACKWARD_THREADS>(q_tile, q + head * D, q_stride, row, q_end);
      Rows::template load<BLOCK, BACKWARD_THREADS>(o_tile, d_out + head * D, width * 4, row, q_end);
      cp_async_commit();
      queries->put(plan, at, mask, part, first);
      cp_async_wait<0>();
      __syncthreads();  // this block is there for all
      if (!queries->any_sees(warp / 2)) continue;

      const bool all = queries->all_see(warp / 2);
      float p[4][BLOCK / 8], ds[4][BLOCK / 8];
      products<D>(p, k_tile + warp_at * Rows::STRIDE, q_tile);
#pragma unroll
      for (int j = 0; j < BLOCK / 8; j++) {
        const uint32_t seen = all ? ~0u : queries->seen[warp / 2][column_at + 8 * j] >> (warp % 2 * 16 + row_at);
        const float log_sum = queries->log_sum[column_at + 8 * j];
#pragma unroll
        for (int i = 0; i < 4; i++)
          p[i][j] = exp2_approx(__fmaf_rn(seen >> (4 * i) & 1 ? p[i][j] : -INFINITY, scale_log2, -log_sum));
      }
      add_rows<D>(dv, p, weights, o_tile);
      products<D>(ds, v_tile + warp_at * Rows::STRIDE, o_tile);
#pragma unroll
      for (int j = 0; j < BLOCK / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
          ds[i][j] = __fmul_rn(p[i][j], __fsub_rn(ds[i][j], queries->dots[column_at + 8 * j]));
      add_rows<D>(dk, ds, weights, q_tile);
    }

  cp_async_wait<0>();
  __syncthreads();  // where there was no query: copies into the rows that are now written
  const int64_t from = static_cast<int64_t>(blockIdx.y) * D;
  const float factors[4] = {scale, scale, scale, scale}, ones[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  float* const own = shared + warp_at * Rows::STRIDE;
  const int row = at.k_start + first + warp_at;
  store_sums<D>(d_qkv + to.k_at + from, to.stride, row, k_end, dk, factors, own);
  store_sums<D>(d_qkv + to.v_at + from, to.stride, row, k_end, dv, ones, own + ROWS * Rows::STRIDE);
}

template <int D>
DEVICE void gradient_of_queries(const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v,
                                const float* __restrict__ d_out, const float* __restrict__ lse,
                                const float* __restrict__ dots, const uint32_t* __restrict__ segments,
                                const MaskPlan& plan, float* __restrict__ d_qkv, int d_stride, int q_stride, int k_stride,
                                int v_stride, int group, int q_rows, float scale, float scale_log2) {
  typedef Tile<float, D> Rows;
  DYN_SMEM(float, shared);
  const Sequence at = load_sequence(segments, blockIdx.z);
  const auto [head, first] = part_of_block<ROWS>(group, plan.mode);
  if (first >= at.q_len) return;
  const int lane = threadIdx.x % 32, warp_at = threadIdx.x / 32 * WARP_ROWS, row_at = lane / 8, column_at = lane % 8;
  float* const own = shared + warp_at * Rows::STRIDE;
  float* const o_tile = shared + ROWS * Rows::STRIDE;
  float* const k_tile = o_tile + ROWS * Rows::STRIDE;
  float* const v_tile = k_tile + BLOCK * Rows::STRIDE;
  float* const weights = v_tile + BLOCK * Rows::STRIDE + warp_at * Tile<float, BLOCK>::STRIDE;

  const int blocks = key_blocks<ROWS, BLOCK>(plan, at, first), k_end = at.k_start + at.k_len;
  const int row = at.q_start + first, q_end = at.q_start + at.q_len, width = gridDim.y * group * D;
  if (blocks > 0) {
    Rows::template load<ROWS, BACKWARD_THREADS>(shared, q + head * D, q_stride, row, q_end);
    Rows::template load<ROWS, BACKWARD_THREADS>(o_tile, d_out + head * D, width * 4, row, q_end);
    cp_async_commit();
  }
  const QueryMask mask(plan, at, first + warp_at + lane % WARP_ROWS);
  float log_sum[4], dot[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int query = first + warp_at + row_at + 4 * i;
    const int64_t place = static_cast<int64_t>(head) * q_rows + at.q_start + query;
    log_sum[i] = log2_of(query < at.q_len ? lse[place] : -INFINITY);
    dot[i] = query < at.q_len ? dots[place] : 0.0f;
  }

  float dq[4][D / 8] = {};
  for (int block = 0; block < blocks; block++) {
    const uint32_t bits = mask.seen(plan, blockIdx.z, at.k_len, block * BLOCK);
    __syncthreads();  // the block before is done with
    const int key = at.k_start + block * BLOCK;
    Rows::template load<BLOCK, BACKWARD_THREADS>(k_tile, k + blockIdx.y * D, k_stride, key, k_end);
    Rows::template load<BLOCK, BACKWARD_THREADS>(v_tile, v + blockIdx.y * D, v_stride, key, k_end);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();  // this block is there for all
    if (!__any_sync(ATTENTION_WARP, bits != 0)) continue;

    float p[4][BLOCK / 8], ds[4][BLOCK / 8];
    products<D>(p, own, k_tile);
    products<D>(ds, own + ROWS * Rows::STRIDE, v_tile);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t seen = __shfl_sync(ATTENTION_WARP, bits, row_at + 4 * i) >> column_at;
#pragma unroll
      for (int j = 0; j < BLOCK / 8; j++) {
        const float score = seen >> (8 * j) & 1 ? p[i][j] : -INFINITY;
        ds[i][j] = __fmul_rn(exp2_approx(__fmaf_rn(score, scale_log2, -log_sum[i])), __fsub_rn(ds[i][j], dot[i]));
      }
    }
    add_rows<D>(dq, ds, weights, k_tile);
  }

  float factors[4];
#pragma unroll
  for (int i = 0; i < 4; i++)
    factors[i] = scale * __shfl_sync(ATTENTION_WARP, mask.known(plan) ? 1.0f : NAN, row_at + 4 * i);
  store_sums<D>(d_qkv + head * D, d_stride, row + warp_at, q_end, dq, factors, own);
}

#define BACKWARD_F32_KERNELS(D, MIN_BLOCKS)                                                                               \
  KERNEL(BACKWARD_THREADS, 4, attention_bwd_dots_d##D##_f32,                                                              \
         (const float* out, const float* d_out, const uint32_t* segments, float* dots, int q_rows)) {                     \
    Dots<float, D>::run(out, d_out, segments, dots, q_rows);                                                              \
  }                                                                                                                       \
  KERNEL(BACKWARD_THREADS, MIN_BLOCKS, attention_bwd_kv_d##D##_f32,                                                       \
         (const float* q, const float* k, const float* v, const uint32_t* segments, const uint32_t* q_pos,                \
          const uint32_t* words, const float* d_out, const float* lse, const float* dots, float* d_qkv, int q_stride,     \
          int k_stride, int v_stride, int group, int q_rows, int mode, int mask_queries, int query_stride,                \
          int segment_stride, float scale, float scale_log2, int d_stride, int dk_at, int dv_at)) {                       \
    const MaskPlan plan = {q_pos, words, mode, mask_queries, query_stride, segment_stride};                               \
    gradient_of_keys<D>(q, k, v, d_out, lse, dots, segments, plan, d_qkv, {d_stride, dk_at, dv_at}, q_stride, k_stride,   \
                        v_stride, group, q_rows, scale, scale_log2);                                                      \
  }                                                                                                                       \
  KERNEL(BACKWARD_THREADS, MIN_BLOCKS, attention_bwd_q_d##D##_f32,                                                        \
         (const float* q, const float* k, const float* v, const uint32_t* segments, const uint32_t* q_pos,                \
          const uint32_t* words, const float* d_out, const float* lse, const float* dots, float* d_qkv, int q_stride,     \
          int k_stride, int v_stride, int group, int q_rows, int mode, int mask_queries, int query_stride,                \
          int segment_stride, float scale, float scale_log2, int d_stride)) {                                             \
    const MaskPlan plan = {q_pos, words, mode, mask_queries, query_stride, segment_stride};                               \
    gradient_of_queries<D>(q, k, v, d_out, lse, dots, segments, plan, d_qkv, d_stride, q_stride, k_stride, v_stride,      \
                           group, q_rows, scale, scale_log2);                                                             \
  }
BACKWARD_F32_KERNELS(32, 3)
BACKWARD_F32_KERNELS(48, 3)
BACKWARD_F32_KERNELS(64, 3)
BACKWARD_F32_KERNELS(80, 2)
BACKWARD_F32_KERNELS(96, 2)
BACKWARD_F32_KERNELS(128, 2)

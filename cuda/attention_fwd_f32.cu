// Softmax attention, forward, f32: as attention_fwd.cu, whose contract holds with T = float, without tensor cores.
//
// Where it differs. Probabilities are not rounded. Keys come in blocks of 64 up to D = 64, else of 32. There is one height of
// tile: 64 queries, 16 to each of 4 warps. In a warp lane l has rows l / 8 + 4 i (i < 4), of their scores those of keys
// l % 8 + 8 j, of their outputs those of columns VECTOR (l % 8 + 8 j) and the next VECTOR - 1. Scores become outputs' factors
// by way of shared memory, a warp's own part of it.
//
// Grid: x (tiles of queries of the longest sequence) * group, y key/value heads, z sequences.
// Dynamic shared memory: 64 + 2 KEYS rows of Tile<float, D>, and 64 rows of Tile<float, KEYS>.
#include "common/attention.cuh"

KERNEL_FILE(attention_fwd_f32)

constexpr int ATTENTION_F32_THREADS = 128;
constexpr float LN_2 = 0.693147180559945309f;

template <int D>
DEVICE void attention_tile_f32(const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v,
                               const uint32_t* __restrict__ segments, const MaskPlan& plan, float* __restrict__ out,
                               float* __restrict__ lse, int q_stride, int k_stride, int v_stride, int group, int q_rows,
                               float scale_log2) {
  constexpr int KEYS = D <= 64 ? 64 : 32, QUERIES = 64, WARP_ROWS = 16, THREADS = ATTENTION_F32_THREADS;
  constexpr int VECTOR = D % 32 == 0 ? 4 : 2, COLUMNS = D / 8, WORDS = KEYS / 32;
  typedef Tile<float, D> Rows;
  typedef Tile<float, KEYS> Weights;
  DYN_SMEM(float, shared);
  const Sequence at = load_sequence(segments, blockIdx.z);
  const auto [head, first] = part_of_block<QUERIES>(group, plan.mode);
  if (first >= at.q_len) return;
  const int warp_at = threadIdx.x / 32 * WARP_ROWS, lane = threadIdx.x % 32, row_at = lane / 8, column_at = lane % 8;
  float* const own = shared + warp_at * Rows::STRIDE;
  float* const k_tile = shared + QUERIES * Rows::STRIDE;
  float* const v_tile = k_tile + KEYS * Rows::STRIDE;
  float* const weights = v_tile + KEYS * Rows::STRIDE + warp_at * Weights::STRIDE;

  q += head * D;
  k += blockIdx.y * D;
  v += blockIdx.y * D;
  const int blocks = key_blocks<QUERIES, KEYS>(plan, at, first), k_end = at.k_start + at.k_len;
  if (blocks > 0) {
    Rows::template load<QUERIES, THREADS>(shared, q, q_stride, at.q_start + first, at.q_start + at.q_len);
    Rows::template load<KEYS, THREADS>(k_tile, k, k_stride, at.k_start, k_end);
    cp_async_commit();
  }

  const QueryMask mask(plan, at, first + warp_at + lane % WARP_ROWS);
  float o[4][COLUMNS] = {}, peak[4], total[4] = {};
#pragma unroll
  for (int i = 0; i < 4; i++) peak[i] = -INFINITY;

  for (int block = 0; block < blocks; block++) {
    uint32_t bits[WORDS];
    bool any = false, all = true;
#pragma unroll
    for (int word = 0; word < WORDS; word++) {
      bits[word] = mask.seen(plan, blockIdx.z, at.k_len, block * KEYS + 32 * word);
      any |= bits[word] != 0;
      all &= bits[word] == ~0u;
    }
    any = __any_sync(ATTENTION_WARP, any);
    all = __all_sync(ATTENTION_WARP, all || !mask.inside());
    cp_async_wait<0>();
    __syncthreads();  // k is there for all; the v before is done with
    Rows::template load<KEYS, THREADS>(v_tile, v, v_stride, at.k_start + block * KEYS, k_end);
    cp_async_commit();

    float s[4][KEYS / 8] = {};
    if (any) {
#pragma unroll 2
      for (int d = 0; d < D; d += 4) {
        float4 a[4];
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = load_float4(own + (row_at + 4 * i) * Rows::STRIDE + d);
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) {
          const float4 b = load_float4(k_tile + (column_at + 8 * j) * Rows::STRIDE + d);
#pragma unroll
          for (int i = 0; i < 4; i++)
            s[i][j] = __fmaf_rn(a[i].w, b.w, __fmaf_rn(a[i].z, b.z, __fmaf_rn(a[i].y, b.y, __fmaf_rn(a[i].x, b.x, s[i][j]))));
        }
      }
    }
    cp_async_wait<0>();
    __syncthreads();  // v is there; k is done with
    if (block + 1 < blocks) {
      Rows::template load<KEYS, THREADS>(k_tile, k, k_stride, at.k_start + (block + 1) * KEYS, k_end);
      cp_async_commit();
    }
    if (!any) continue;

    if (!all) {
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int word = 0; word < WORDS; word++) {
          const uint32_t row = __shfl_sync(ATTENTION_WARP, bits[word], row_at + 4 * i) >> column_at;
#pragma unroll
          for (int j = 0; j < 4; j++)
            if (!(row >> (8 * j) & 1)) s[i][4 * word + j] = -INFINITY;
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float top = s[i][0];
#pragma unroll
      for (int j = 1; j < KEYS / 8; j++) top = fmaxf(top, s[i][j]);
#pragma unroll
      for (int step = 1; step < 8; step *= 2) top = fmaxf(top, __shfl_xor_sync(ATTENTION_WARP, top, step));
      const float now = fmaxf(peak[i], top);
      // Before any key is seen every exponent is -inf, whatever finite number it is taken from.
      const float from = now == -INFINITY ? 0.0f : now;
      const float shrink = exp2_approx(__fmul_rn(__fsub_rn(peak[i], from), scale_log2));
      peak[i] = now;
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++) {
        const float p = exp2_approx(__fmul_rn(__fsub_rn(s[i][j], from), scale_log2));
        sum = __fadd_rn(sum, p);
        weights[(row_at + 4 * i) * Weights::STRIDE + column_at + 8 * j] = p;
      }
      total[i] = __fmaf_rn(total[i], shrink, sum);
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) o[i][c] = __fmul_rn(o[i][c], shrink);
    }
    __syncwarp();  // the other lanes' weights
#pragma unroll 2
    for (int key = 0; key < KEYS; key += 4) {
      float p[4][4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float4 x = load_float4(weights + (row_at + 4 * i) * Weights::STRIDE + key);
        p[i][0] = x.x;
        p[i][1] = x.y;
        p[i][2] = x.z;
        p[i][3] = x.w;
      }
#pragma unroll
      for (int n = 0; n < 4; n++)
#pragma unroll
        for (int c = 0; c < COLUMNS; c += VECTOR) {
          const float* from = v_tile + (key + n) * Rows::STRIDE + VECTOR * column_at + 8 * c;
          float b[4];
          if constexpr (VECTOR == 4) {
            const float4 x = load_float4(from);
            b[0] = x.x, b[1] = x.y, b[2] = x.z, b[3] = x.w;
          } else {
            const float2 x = *reinterpret_cast<const float2*>(from);
            b[0] = x.x, b[1] = x.y;
          }
#pragma unroll
          for (int i = 0; i < 4; i++)
#pragma unroll
            for (int e = 0; e < VECTOR; e++) o[i][c + e] = __fmaf_rn(p[i][n], b[e], o[i][c + e]);
        }
    }
    __syncwarp();  // before the next block's weights
  }

  const float fit = mask.known(plan) ? 1.0f : NAN;
  const int64_t width = static_cast<int64_t>(gridDim.y) * group * D;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int row = row_at + 4 * i, query = first + warp_at + row;
    float sum = total[i];
#pragma unroll
    for (int step = 1; step < 8; step *= 2) sum += __shfl_xor_sync(ATTENTION_WARP, sum, step);
    const float row_fit = __shfl_sync(ATTENTION_WARP, fit, row);
    const float inverse = (sum == 0.0f ? 0.0f : 1.0f / sum) * row_fit;
    if (query >= at.q_len) continue;
    float* const to = out + (at.q_start + query) * width + head * D + VECTOR * column_at;
#pragma unroll
    for (int c = 0; c < COLUMNS; c += VECTOR) {
      if constexpr (VECTOR == 4)
        store_16_global(to + 8 * c, make_uint4(__float_as_uint(o[i][c] * inverse), __float_as_uint(o[i][c + 1] * inverse),
                                        __float_as_uint(o[i][c + 2] * inverse), __float_as_uint(o[i][c + 3] * inverse)));
      else
        *reinterpret_cast<float2*>(to + 8 * c) = make_float2(o[i][c] * inverse, o[i][c + 1] * inverse);
    }
    if (lse && column_at == 0)
      lse[static_cast<int64_t>(head) * q_rows + at.q_start + query] =
          __fmaf_rn(__fmul_rn(peak[i], scale_log2), LN_2, logf(sum)) * row_fit;
  }
}

#define ATTENTION_F32_KERNEL(D, MIN_BLOCKS)                                                                            \
  KERNEL(ATTENTION_F32_THREADS, MIN_BLOCKS, attention_fwd_d##D##_f32,                                                  \
         (const float* q, const float* k, const float* v, const uint32_t* segments, const uint32_t* q_pos,             \
          const uint32_t* words, float* out, float* lse, int q_stride, int k_stride, int v_stride, int group,          \
          int q_rows, int mode, int mask_queries, int query_stride, int segment_stride, float scale_log2)) {           \
    const MaskPlan plan = {q_pos, words, mode, mask_queries, query_stride, segment_stride};                            \
    attention_tile_f32<D>(q, k, v, segments, plan, out, lse, q_stride, k_stride, v_stride, group, q_rows, scale_log2); \
  }
ATTENTION_F32_KERNEL(32, 3)
ATTENTION_F32_KERNEL(48, 3)
ATTENTION_F32_KERNEL(64, 2)
ATTENTION_F32_KERNEL(80, 3)
ATTENTION_F32_KERNEL(96, 2)
ATTENTION_F32_KERNEL(128, 2)

// Softmax attention, forward, 16-bit formats: out = softmax(scale q k^T + mask) v, blockwise with an online softmax; no
// [queries, keys] matrix is formed.
//
// Contract. T is bf16 or f16; D, the head width, is 32, 48, 64, 80, 96 or 128.
//   q [q rows, heads * D], k, v [k rows, heads / group * D]: rows q_stride (k_stride, v_stride) bytes apart, each row's
//       start on 16 bytes; query head h reads key/value head h / group. They may be columns of one buffer.
//   segments [gridDim.z, 4]: first query row, queries, first key row, keys of each sequence; below 2^31, query rows of two
//       sequences apart. No keys: zeros. No queries: nothing.
//   q_pos [q rows]: position of a query in its sequence (keys are counted from 0). Not read where mode is 0.
//   mode: 0 every key of the sequence is seen; MASK_CAUSAL keys <= q_pos; MASK_WORDS keys whose bit is set, bit key % 32 of
//       words[segment * segment_stride + q_pos * query_stride + key / 32]; both: keys that either lets through. Words are read up
//       to that of the sequence's last key. A query with q_pos >= mask_queries gets NaN, and reads the words of position 0.
//   out [q rows, heads * D] dense, =. Zeros for a query that sees no key.
//   lse [heads, q_rows] f32, =, may be null: ln of the sum of exp(scale q k) over the keys seen; -inf without any.
//   scale_log2 = scale * log2(e), above 0.
// No scratch. Products by mma.sync with sums in f32; probabilities are rounded to T before they multiply v.
// Keys come in blocks of 64 from the sequence's first on, and the arithmetic of a row is the same in every tile: its bits
// depend neither on other sequences, nor on other rows of the tile, nor on the tile's height (blocks that a row does not
// see change nothing, so that it does not matter which are skipped).
//
// Grid: x (tiles of queries of the longest sequence) * group, y key/value heads, z sequences. A block of 4 warps has a tile of
// 64 or 128 queries, a warp 16 or 32 of them (MT mma tiles); 128 need half the shared-memory reads of k and v.
// Dynamic shared memory: (queries + 64 * tiles) rows of Tile<T, D>, tiles = 4 (two blocks of k and v) up to D = 64, else 2.
//
// Dao, "FlashAttention-2: faster attention with better parallelism and work partitioning", 2023; the online softmax is
// Milakov and Gimelshein's, 2018.
#include "common/attention.cuh"

KERNEL_FILE(attention_fwd)

constexpr int ATTENTION_THREADS = 128;
constexpr int ATTENTION_KEYS = 64;
constexpr float LN_2 = 0.693147180559945309f;

// Turns scores into 2^(scale_log2 s - peak), peak the largest of the row so far; takes `o` and `total` to the new peak.
// `total` is of this lane's keys alone.
template <int D, int MT>
DEVICE void soften(float (&s)[MT][8][4], float (&o)[MT][D / 8][4], float (&peak)[MT][2], float (&total)[MT][2],
                   float scale_log2) {
#pragma unroll
  for (int i = 0; i < MT; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int e = 2 * half;
      float top = -INFINITY;
#pragma unroll
      for (int n = 0; n < 8; n++) top = fmaxf(top, fmaxf(s[i][n][e], s[i][n][e + 1]));
      top = fmaxf(top, __shfl_xor_sync(ATTENTION_WARP, top, 1));
      top = fmaxf(top, __shfl_xor_sync(ATTENTION_WARP, top, 2));
      const float now = fmaxf(peak[i][half], __fmul_rn(top, scale_log2));
      // Before any key is seen every exponent is -inf, whatever finite number it is taken from.
      const float from = now == -INFINITY ? 0.0f : now;
      const float shrink = exp2_approx(__fsub_rn(peak[i][half], from));
      peak[i][half] = now;
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < 8; n++)
#pragma unroll
        for (int x = e; x < e + 2; x++) {
          s[i][n][x] = exp2_approx(__fmaf_rn(s[i][n][x], scale_log2, -from));
          sum = __fadd_rn(sum, s[i][n][x]);
        }
      total[i][half] = __fmaf_rn(total[i][half], shrink, sum);
#pragma unroll
      for (int n = 0; n < D / 8; n++) {
        o[i][n][e] *= shrink;
        o[i][n][e + 1] *= shrink;
      }
    }
}

// Divides the sums of v and writes them by way of `own`, the warp's rows of the q tile, of which the first is query `first` of
// the sequence. `known` is of row lane % (16 MT). Where the sequence lies is read again: the loop has no registers for it.
template <class T, int D, int MT>
DEVICE void write_rows(T* own, float (&o)[MT][D / 8][4], const float (&peak)[MT][2], const float (&total)[MT][2],
                       bool known, const uint32_t* segments, int head, int first, T* __restrict__ out,
                       float* __restrict__ lse, int group, int q_rows) {
  typedef Tile<T, D> Rows;
  const uint4 at = load_16_streaming(segments + 4 * static_cast<int64_t>(blockIdx.z));
  const int q_start = static_cast<int>(at.x), q_len = static_cast<int>(at.y), lane = threadIdx.x % 32;
  const float fit = known ? 1.0f : NAN;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < MT; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = 16 * i + 8 * half + lane / 4;
      float sum = total[i][half];
      sum += __shfl_xor_sync(ATTENTION_WARP, sum, 1);
      sum += __shfl_xor_sync(ATTENTION_WARP, sum, 2);
      const float row_fit = __shfl_sync(ATTENTION_WARP, fit, row);
      const float inverse = (sum == 0.0f ? 0.0f : 1.0f / sum) * row_fit;
#pragma unroll
      for (int n = 0; n < D / 8; n++) {
        const uint32_t pair = pack2<T>(o[i][n][2 * half] * inverse, o[i][n][2 * half + 1] * inverse);
        memcpy(own + Rows::at(row, n) + lane % 4 * 2, &pair, 4);
      }
      const int query = first + row;
      if (lse && lane % 4 == 0 && query < q_len)
        lse[static_cast<int64_t>(head) * q_rows + q_start + query] =
            __fmaf_rn(peak[i][half], LN_2, logf(sum)) * row_fit;
    }
  __syncwarp();
  const int64_t width = static_cast<int64_t>(gridDim.y) * group * D;
#pragma unroll
  for (int n = lane; n < 16 * MT * Rows::CHUNKS; n += 32) {
    const int row = n / Rows::CHUNKS, chunk = n % Rows::CHUNKS, query = first + row;
    if (query < q_len)
      store_16_global(out + (q_start + query) * width + head * D + chunk * 8, load_16(own + Rows::at(row, chunk)));
  }
}

template <class T, int D, int MT>
DEVICE void attention_tile(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                           const uint32_t* __restrict__ segments, const MaskPlan& plan, T* __restrict__ out,
                           float* __restrict__ lse, int q_stride, int k_stride, int v_stride, int group, int q_rows,
                           float scale_log2) {
  typedef Tile<T, D> Rows;
  constexpr int QUERIES = 64 * MT, WARP_ROWS = 16 * MT, KEYS = ATTENTION_KEYS, BLOCK = KEYS * Rows::STRIDE;
  // Up to D = 64 q stays in registers, and a block of k and v is copied while the one before is worked on, which takes one
  // barrier a block. Beyond, v is copied under q k^T and the next k under the rest.
  constexpr bool TWO_BLOCKS = D <= 64;
  DYN_SMEM(T, shared);
  const Sequence at = load_sequence(segments, blockIdx.z);
  const auto [head, first] = part_of_block<QUERIES>(group, plan.mode);
  if (first >= at.q_len) return;
  const int warp_at = threadIdx.x / 32 * WARP_ROWS, lane = threadIdx.x % 32;
  T* const own = shared + warp_at * Rows::STRIDE;
  T* const blocks_at = shared + QUERIES * Rows::STRIDE;

  q += head * D;
  k += blockIdx.y * D;
  v += blockIdx.y * D;
  const auto load_k = [&](T* to, int block) {
    Rows::template load<KEYS, ATTENTION_THREADS>(to, k, k_stride, at.k_start + block * KEYS, at.k_start + at.k_len);
  };
  const auto load_v = [&](T* to, int block) {
    Rows::template load<KEYS, ATTENTION_THREADS>(to, v, v_stride, at.k_start + block * KEYS, at.k_start + at.k_len);
  };
  const int blocks = key_blocks<QUERIES, KEYS>(plan, at, first);
  if (blocks > 0) {
    Rows::template load<QUERIES, ATTENTION_THREADS>(shared, q, q_stride, at.q_start + first, at.q_start + at.q_len);
    load_k(blocks_at, 0);
    if (TWO_BLOCKS) load_v(blocks_at + BLOCK, 0);
    cp_async_commit();
  }

  const QueryMask mask(plan, at, first + warp_at + lane % WARP_ROWS);
  constexpr int KEPT = TWO_BLOCKS ? D / 16 : 1;
  uint32_t fragments[KEPT][MT][4];
  float o[MT][D / 8][4], peak[MT][2], total[MT][2];
#pragma unroll
  for (int i = 0; i < MT; i++) {
    peak[i][0] = peak[i][1] = -INFINITY;
    total[i][0] = total[i][1] = 0.0f;
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) o[i][n][e] = 0.0f;
  }

  for (int block = 0; block < blocks; block++) {
    const uint32_t bits[2] = {mask.seen(plan, blockIdx.z, at.k_len, block * KEYS),
                              mask.seen(plan, blockIdx.z, at.k_len, block * KEYS + 32)};
    T* const k_tile = blocks_at + (TWO_BLOCKS ? block % 2 * 2 * BLOCK : 0);
    T* const v_tile = k_tile + BLOCK;
    cp_async_wait<0>();
    __syncthreads();  // this block is there for all; the one before is done with
    if (TWO_BLOCKS) {
      if (block + 1 < blocks) {
        T* const next = blocks_at + (block + 1) % 2 * 2 * BLOCK;
        load_k(next, block + 1);
        load_v(next + BLOCK, block + 1);
        cp_async_commit();
      }
    } else {
      load_v(v_tile, block);
      cp_async_commit();
    }
    if constexpr (TWO_BLOCKS) {
      if (block == 0) {
#pragma unroll
        for (int kk = 0; kk < D / 16; kk++)
#pragma unroll
          for (int i = 0; i < MT; i++)
            ldmatrix_x4(fragments[kk][i], own + Rows::at(16 * i + lane % 16, 2 * kk + lane / 16));
      }
    }
    // A warp none of whose rows sees any of these keys has nothing to do. Wider heads have no registers for so long a branch:
    // they pass over v only.
    const bool any = __any_sync(ATTENTION_WARP, (bits[0] | bits[1]) != 0), work = any || !TWO_BLOCKS;
    const bool all = __all_sync(ATTENTION_WARP, (bits[0] & bits[1]) == ~0u || !mask.inside());
    float s[MT][8][4];
    if (work) scores<T, D>(s, fragments, own, k_tile);
    if (!TWO_BLOCKS) {
      cp_async_wait<0>();
      __syncthreads();  // v is there; k is done with
      if (block + 1 < blocks) {
        load_k(k_tile, block + 1);
        cp_async_commit();
      }
    }
    if (work) {
      if (!all) hide(s, bits);
      soften<D, MT>(s, o, peak, total, scale_log2);
      if (any) add_values<T, D>(o, s, v_tile);
    }
  }

  write_rows<T, D, MT>(own, o, peak, total, mask.known(plan), segments, head, first + warp_at, out, lse, group, q_rows);
}

#define ATTENTION_KERNEL(T, SUFFIX, D, MT, QUERIES, MIN_BLOCKS)                                                     \
  KERNEL(ATTENTION_THREADS, MIN_BLOCKS, attention_fwd_d##D##_m##QUERIES##_##SUFFIX,                                 \
         (const T* q, const T* k, const T* v, const uint32_t* segments, const uint32_t* q_pos, const uint32_t* words, \
          T* out, float* lse, int q_stride, int k_stride, int v_stride, int group, int q_rows, int mode,            \
          int mask_queries, int query_stride, int segment_stride, float scale_log2)) {                         \
    const MaskPlan plan = {q_pos, words, mode, mask_queries, query_stride, segment_stride};                         \
    attention_tile<T, D, MT>(q, k, v, segments, plan, out, lse, q_stride, k_stride, v_stride, group, q_rows,        \
                             scale_log2);                                                                           \
  }
// Blocks that a multiprocessor holds at least: as many as registers for the sums of v and for the scores let it.
#define ATTENTION_KERNELS(T, SUFFIX)            \
  ATTENTION_KERNEL(T, SUFFIX, 32, 1, 64, 4)     \
  ATTENTION_KERNEL(T, SUFFIX, 48, 1, 64, 4)     \
  ATTENTION_KERNEL(T, SUFFIX, 64, 1, 64, 4)     \
  ATTENTION_KERNEL(T, SUFFIX, 80, 1, 64, 3)     \
  ATTENTION_KERNEL(T, SUFFIX, 96, 1, 64, 3)     \
  ATTENTION_KERNEL(T, SUFFIX, 128, 1, 64, 3)    \
  ATTENTION_KERNEL(T, SUFFIX, 32, 2, 128, 3)    \
  ATTENTION_KERNEL(T, SUFFIX, 48, 2, 128, 2)    \
  ATTENTION_KERNEL(T, SUFFIX, 64, 2, 128, 2)    \
  ATTENTION_KERNEL(T, SUFFIX, 80, 2, 128, 2)    \
  ATTENTION_KERNEL(T, SUFFIX, 96, 2, 128, 2)    \
  ATTENTION_KERNEL(T, SUFFIX, 128, 2, 128, 2)
ATTENTION_KERNELS(f16, f16)
ATTENTION_KERNELS(bf16, bf16)

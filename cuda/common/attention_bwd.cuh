// What the kernels of attention's gradient share beside attention.cuh: D, what blocks know of their queries, stores.
#pragma once
#include "attention.cuh"

constexpr int BACKWARD_THREADS = 128;
constexpr float LOG2_E = 1.4426950408889634f;

// Where the gradients lie: rows `stride` bytes apart, of q from the pointer on, of k and v that many numbers behind it.
struct GradientPlan {
  int stride, k_at, v_at;
};

// dots[head, row] = sum of d_out out over the head's columns: one order, whatever the grid. A few lanes have a row, lane l
// its chunks l, l + LANES, ..; then lanes 1, 2, .. apart are added.
// Grid: x (queries of the longest sequence in steps of ROWS), y query heads, z sequences.
template <class T, int D>
struct Dots {
  static constexpr int CHUNKS = D * sizeof(T) / 16, LANES = CHUNKS & -CHUNKS, PASS = BACKWARD_THREADS / LANES;
  static constexpr int PASSES = 4, ROWS = PASSES * PASS;

  static DEVICE void run(const T* __restrict__ out, const T* __restrict__ d_out, const uint32_t* __restrict__ segments,
                         float* __restrict__ dots, int q_rows) {
    const Sequence at = load_sequence(segments, blockIdx.z);
    const int row = blockIdx.x * ROWS + threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const int64_t width = static_cast<int64_t>(gridDim.y) * D;
    const int64_t from = (at.q_start + static_cast<int64_t>(row)) * width + blockIdx.y * D + lane * (16 / sizeof(T));
    float sums[PASSES];
#pragma unroll
    for (int i = 0; i < PASSES; i++) {
      sums[i] = 0.0f;
      if (row + i * PASS >= at.q_len) continue;
#pragma unroll
      for (int chunk = 0; chunk < CHUNKS; chunk += LANES) {
        const int64_t place = from + i * PASS * width + chunk * static_cast<int>(16 / sizeof(T));
        const Pack<T> a = load_pack_streaming(out + place), b = load_pack_streaming(d_out + place);
#pragma unroll
        for (int j = 0; j < Pack<T>::N; j++) sums[i] = __fmaf_rn(a.get(j), b.get(j), sums[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < PASSES; i++) {
#pragma unroll
      for (int step = 1; step < LANES; step *= 2)
        sums[i] = __fadd_rn(sums[i], __shfl_xor_sync(ATTENTION_WARP, sums[i], step));
      if (lane == 0 && row + i * PASS < at.q_len)
        dots[static_cast<int64_t>(blockIdx.y) * q_rows + at.q_start + row + i * PASS] = sums[i];
    }
  }
};

// The first block of QUERIES queries of the sequence with one that sees key `first` or a later one, as far as the causal part
// alone says so. The same for all threads, all of which call; `scratch` holds a number a warp, and is free again on return.
template <int QUERIES>
DEVICE int first_block_of_queries(const MaskPlan& plan, const Sequence& at, int first, uint32_t* scratch) {
  if (plan.mode != MASK_CAUSAL) return 0;
  unsigned least = at.q_len;
#pragma unroll 4
  for (unsigned row = threadIdx.x; row < static_cast<unsigned>(at.q_len); row += BACKWARD_THREADS)
    if (plan.q_pos[at.q_start + row] >= static_cast<unsigned>(first)) least = min(least, row);
  least = __reduce_min_sync(ATTENTION_WARP, least);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = least;
  __syncthreads();
#pragma unroll
  for (int warp = 0; warp < BACKWARD_THREADS / 32; warp++) least = min(least, scratch[warp]);
  __syncthreads();
  return least == static_cast<unsigned>(at.q_len) ? (at.q_len + QUERIES - 1) / QUERIES : least / QUERIES;
}

// Logarithm of a query's sum, in base 2, such that 2^(score - log) is 0 where the query sees nothing, whatever the score.
DEVICE float log2_of(float lse) { return lse == -INFINITY ? INFINITY : __fmul_rn(lse, LOG2_E); }

// Of a block of QUERIES queries, in shared memory, for a tile of 64 keys. Thread t < 2 QUERIES cares for query t % QUERIES: t /
// QUERIES = 0 for its sum and for keys 0 .. 32 of the tile, 1 for its dot and for the other keys.
template <int QUERIES>
struct QueryBlock {
  static constexpr int WARPS = QUERIES / 32;  // that care for a word of keys
  float log_sum[QUERIES], dots[QUERIES];
  uint32_t seen[2][QUERIES];  // bit i of word w: key 32 w + i of the tile is seen
  uint32_t some[2][WARPS], all[2][WARPS];

  // What a thread fetches for it, some time before it is written.
  struct Part {
    float number;
    uint32_t drawn;
  };
  static DEVICE bool helps() { return threadIdx.x < 2 * QUERIES; }
  static DEVICE int row() { return threadIdx.x % QUERIES; }
  static DEVICE int word() { return threadIdx.x / QUERIES; }

  static DEVICE Part fetch(const MaskPlan& plan, const Sequence& at, const QueryMask& mask, const float* lse,
                           const float* dots, int64_t head_at, int block, int first) {
    Part part = {word() == 0 ? -INFINITY : 0.0f, 0u};
    if (!helps() || !mask.inside()) return part;
    part.number = (word() == 0 ? lse : dots)[head_at + at.q_start + block * QUERIES + row()];
    part.drawn = mask.drawn(plan, blockIdx.z, at.k_len, first + 32 * word());
    return part;
  }
  DEVICE void put(const MaskPlan& plan, const Sequence& at, const QueryMask& mask, Part part, int first) {
    if (!helps()) return;
    const uint32_t bits = mask.seen_of(plan, at.k_len, first + 32 * word(), part.drawn);
    if (word() == 0)
      log_sum[row()] = log2_of(part.number);
    else
      dots[row()] = part.number;
    seen[word()][row()] = bits;
    const bool any = __any_sync(ATTENTION_WARP, bits != 0);
    const bool whole = __all_sync(ATTENTION_WARP, bits == ~0u || !mask.inside());
    if (threadIdx.x % 32 == 0) {
      some[word()][row() / 32] = any;
      all[word()][row() / 32] = whole;
    }
  }
  // Whether some query sees some of the 32 keys; whether all queries see all of them.
  DEVICE bool any_sees(int word) const {
    uint32_t any = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) any |= some[word][i];
    return any != 0;
  }
  DEVICE bool all_see(int word) const {
    uint32_t whole = 1;
#pragma unroll
    for (int i = 0; i < WARPS; i++) whole &= all[word][i];
    return whole != 0;
  }
};

// A warp stores its `ROWS` rows of a tile, 16 bytes at a time: to row `from` of `to` and the next ones below `end`, rows `stride`
// bytes apart. All lanes have written the rows before a __syncwarp.
template <class T, int D, int ROWS>
DEVICE void store_rows(T* to, int stride, int from, int end, const T* rows) {
  typedef Tile<T, D> Rows;
#pragma unroll
  for (int n = threadIdx.x % 32; n < ROWS * Rows::CHUNKS; n += 32) {
    const int row = n / Rows::CHUNKS, chunk = n % Rows::CHUNKS;
    if (from + row < end)
      store_16_global(reinterpret_cast<char*>(to + chunk * Rows::CHUNK) + static_cast<int64_t>(from + row) * stride,
                      load_16(rows + Rows::at(row, chunk)));
  }
}

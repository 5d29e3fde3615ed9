// What the attention kernels share: where a sequence lies, which keys a query sees, tiles in shared memory.
#pragma once
#include "kernel.cuh"

constexpr unsigned ATTENTION_WARP = 0xffffffffu;
// Of `mode`: the causal part, the drawn bits. Neither: every key is seen; both: a key that either lets through.
enum : int { MASK_CAUSAL = 1, MASK_WORDS = 2 };

DEVICE float4 load_float4(const float* p) {
  const uint4 u = load_16(p);
  return make_float4(__uint_as_float(u.x), __uint_as_float(u.y), __uint_as_float(u.z), __uint_as_float(u.w));
}

// A row of `segments`.
struct Sequence {
  int q_start, q_len, k_start, k_len;
};
DEVICE Sequence load_sequence(const uint32_t* segments, int index) {
  const uint4 s = load_16(segments + 4 * static_cast<int64_t>(index));
  return {static_cast<int>(s.x), static_cast<int>(s.y), static_cast<int>(s.z), static_cast<int>(s.w)};
}

// What a block of the grid works on: x is a tile of queries and one of the `group` query heads of a key/value head (which
// are neighbours, so that they find its keys in the cache), y the key/value head, z the sequence.
struct Part {
  int head, first;  // query head; first query of the tile, counted within the sequence
};
template <int QUERIES>
DEVICE Part part_of_block(unsigned group, int mode) {
  // Where queries see what is before them, the tiles that see the most come first.
  const unsigned x = mode == MASK_CAUSAL ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
  return {static_cast<int>(blockIdx.y * group + x % group), static_cast<int>(x / group * QUERIES)};
}

// The lowest n bits; none for n <= 0, all for n >= 32.
DEVICE uint32_t low_bits(int n) { return n >= 32 ? ~0u : n <= 0 ? 0u : (1u << n) - 1; }

// The mask's parameters, as kernels get them.
struct MaskPlan {
  const uint32_t* q_pos;
  const uint32_t* words;
  int mode;
  int queries;  // positions that `words` has bits for
  int query_stride, segment_stride;
};

// What one query may see. In the tile kernels lane l of a warp keeps that of the warp's row l, works out the bits of a
// block of keys, and hands them to the lanes that hold the row's scores.
struct QueryMask {
  int position;  // -1 beyond the sequence's last query

  DEVICE QueryMask(const MaskPlan& plan, const Sequence& at, int row) : position(0) {
    if (row >= at.q_len)
      position = -1;
    else if (plan.mode != 0)
      position = static_cast<int>(min(plan.q_pos[at.q_start + row], 0x7ffffffeu));
  }
  DEVICE bool inside() const { return position >= 0; }
  // The mask knows the query.
  DEVICE bool known(const MaskPlan& plan) const {
    return !(plan.mode & MASK_WORDS) || position < plan.queries;
  }
  // The word of the draw for keys from `key`, a multiple of 32, on, of `keys`; 0 where it has none.
  DEVICE uint32_t drawn(const MaskPlan& plan, int segment, int keys, int key) const {
    if (!(plan.mode & MASK_WORDS) || !inside() || key >= keys) return 0u;
    return plan.words[static_cast<int64_t>(segment) * plan.segment_stride +
                      static_cast<int64_t>(known(plan) ? position : 0) * plan.query_stride + key / 32];
  }
  // Bit i: key + i, of `keys`, is seen, given the word that was drawn for these.
  DEVICE uint32_t seen_of(const MaskPlan& plan, int keys, int key, uint32_t drawn) const {
    uint32_t bits = plan.mode == 0 ? ~0u : 0u;
    if (plan.mode & MASK_CAUSAL) bits = low_bits(position + 1 - key);
    return inside() ? (bits | drawn) & low_bits(keys - key) : 0u;
  }
  // Both at once. Written out: the forward kernels have no register to spare for a word that is known before its use.
  DEVICE uint32_t seen(const MaskPlan& plan, int segment, int keys, int key) const {
    uint32_t bits = plan.mode == 0 ? ~0u : 0u;
    if (plan.mode & MASK_CAUSAL) bits = low_bits(position + 1 - key);
    if ((plan.mode & MASK_WORDS) && inside() && key < keys)
      bits |= plan.words[static_cast<int64_t>(segment) * plan.segment_stride +
                         static_cast<int64_t>(known(plan) ? position : 0) * plan.query_stride + key / 32];
    return inside() ? bits & low_bits(keys - key) : 0u;
  }
};

// Blocks of KEYS keys that some of the sequence's rows first .. first + ROWS may see. The same in all lanes.
template <int ROWS, int KEYS>
DEVICE int key_blocks(const MaskPlan& plan, const Sequence& at, int first) {
  int keys = at.k_len;
  if (plan.mode == MASK_CAUSAL) {
    unsigned last = 0;
    for (int row = first + static_cast<int>(threadIdx.x % 32); row < min(first + ROWS, at.q_len); row += 32)
      last = max(last, plan.q_pos[at.q_start + row]);
    last = __reduce_max_sync(ATTENTION_WARP, last);
    keys = static_cast<int>(min(static_cast<unsigned>(keys), min(last, 0x7ffffffeu) + 1));
  }
  return (keys + KEYS - 1) / KEYS;
}

// Rows of D numbers in shared memory, read and written 16 bytes (a chunk) at a time without bank conflicts: eight lanes
// that take the same chunk of eight rows, or eight chunks of a row. Rows whose length is a multiple of eight chunks are
// swizzled; the others are an even number of chunks long, and one chunk apart.
template <class T, int D>
struct Tile {
  static constexpr int CHUNK = 16 / sizeof(T), CHUNKS = D / CHUNK;
  static constexpr bool SWIZZLED = sizeof(T) == 2 && CHUNKS % 8 == 0;
  static constexpr int STRIDE = SWIZZLED ? D : D + CHUNK;
  static DEVICE int at(int row, int chunk) {
    return row * STRIDE + CHUNK * (SWIZZLED ? chunk ^ (row & 7) : chunk);
  }
  // From the place of a row and of chunk 0 or 1 to that `rows`, a multiple of 8, and `chunks`, an even number, on.
  static DEVICE int on(int place, int rows, int chunks) {
    if (SWIZZLED) return (place ^ (CHUNK * (chunks & 7))) + CHUNK * (chunks & ~7) + rows * STRIDE;
    return place + CHUNK * chunks + rows * STRIDE;
  }

  // Starts copying rows from .. from + ROWS of `src`, whose rows lie `stride` bytes apart, of which those from `end` on
  // become zeros. Lanes take neighbouring chunks; a thread's places in the tile are constants apart.
  template <int ROWS, int THREADS>
  static DEVICE void load(T* tile, const T* src, int stride, int from, int end) {
    constexpr int LANES = CHUNKS & -CHUNKS, PASS = THREADS / LANES;
    static_assert(ROWS % PASS == 0 && (!SWIZZLED || PASS % 8 == 0), "whole passes; a thread keeps its row's swizzle");
    const int row = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const char* chunks = reinterpret_cast<const char*>(src + lane * CHUNK) + static_cast<int64_t>(from + row) * stride;
    const int left = end - from - row;
#pragma unroll
    for (int i = 0; i < ROWS; i += PASS) {
#pragma unroll
      for (int chunk = 0; chunk < CHUNKS; chunk += LANES)
        cp_async_16(tile + at(row + i, lane + chunk), chunks + chunk * 16, i < left);
      chunks += static_cast<int64_t>(PASS) * stride;
    }
  }
};

// s[i][n] = q k^T by tensor cores: rows 16 i .. of q, rows 8 n .. of k. `fragments` is q's where it is kept in registers.
template <class T, int D, int MT, int N, int KEPT>
DEVICE void scores(float (&s)[MT][N][4], const uint32_t (&fragments)[KEPT][MT][4], const T* q, const T* k) {
  const int lane = threadIdx.x % 32;
  const int q_place = Tile<T, D>::at(lane % 16, lane / 16);
  const int k_place = Tile<T, D>::at(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
  for (int i = 0; i < MT; i++)
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) s[i][n][e] = 0.0f;
#pragma unroll
  for (int kk = 0; kk < D / 16; kk++) {
    uint32_t a[MT][4];
#pragma unroll
    for (int i = 0; i < MT; i++) {
      if constexpr (KEPT > 1) {
#pragma unroll
        for (int e = 0; e < 4; e++) a[i][e] = fragments[kk][i][e];
      } else {
        ldmatrix_x4(a[i], q + Tile<T, D>::on(q_place, 16 * i, 2 * kk));
      }
    }
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t b[4];
      ldmatrix_x4(b, k + Tile<T, D>::on(k_place, 8 * n, 2 * kk));
#pragma unroll
      for (int i = 0; i < MT; i++) {
        mma_m16n8k16(T{}, s[i][n], a[i], b[0], b[1]);
        mma_m16n8k16(T{}, s[i][n + 1], a[i], b[2], b[3]);
      }
    }
  }
}

// o[i][n] += p v by tensor cores: rows 16 i .., columns 8 n .., p [.., 8 N] rounded to T, rows of v from its first on.
template <class T, int D, int MT, int N>
DEVICE void add_values(float (&o)[MT][D / 8][4], const float (&p)[MT][N][4], const T* v) {
  const int lane = threadIdx.x % 32, place = Tile<T, D>::at(lane % 16, lane / 16);
#pragma unroll
  for (int kk = 0; kk < N / 2; kk++) {
    uint32_t a[MT][4];
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const float* pair = p[i][2 * kk + e / 2] + e % 2 * 2;
        a[i][e] = pack2<T>(pair[0], pair[1]);
      }
#pragma unroll
    for (int n = 0; n < D / 8; n += 2) {
      uint32_t b[4];
      ldmatrix_x4_trans(b, v + Tile<T, D>::on(place, 16 * kk, n));
#pragma unroll
      for (int i = 0; i < MT; i++) {
        mma_m16n8k16(T{}, o[i][n], a[i], b[0], b[1]);
        mma_m16n8k16(T{}, o[i][n + 1], a[i], b[2], b[3]);
      }
    }
  }
}

// Scores of keys that a row does not see become -inf. Lane r has the bits of row r in `bits`.
template <int MT, int N, int WORDS>
DEVICE void hide(float (&s)[MT][N][4], const uint32_t (&bits)[WORDS]) {
  static_assert(N == 4 * WORDS, "a bit a key");
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < MT; i++)
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int word = 0; word < WORDS; word++) {
        const uint32_t row = __shfl_sync(ATTENTION_WARP, bits[word], 16 * i + 8 * half + lane / 4) >> (lane % 4 * 2);
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
          for (int e = 0; e < 2; e++)
            if (!(row >> (8 * n + e) & 1)) s[i][4 * word + n][2 * half + e] = -INFINITY;
      }
}

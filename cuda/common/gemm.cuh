// Pieces that matrix products share: what happens to a sum before it is stored, and the order of tiles.
#pragma once
#include "kernel.cuh"

// Flags of a launch, as in src/backend/cuda/matmul.rs.
enum : unsigned { GELU_TANH = 1, GELU_ERF = 2, SILU = 3, ACTIVATION = 3, ACCUMULATE = 4, OUT_F32 = 8 };

// x / (1 + e^-u)
DEVICE float times_sigmoid(float x, float u) { return __fdividef(x, __fadd_rn(1.0f, expf(-u))); }

// Every product and sum here is rounded as written: a fused one would be free to differ from kernel to kernel.
template <int N> DEVICE void activate(float (&v)[N], unsigned activation) {
  if (activation == GELU_TANH) {
    // (1 + tanh u) / 2 = 1 / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
#pragma unroll
    for (int j = 0; j < N; j++) {
      const float inner = __fmaf_rn(__fmul_rn(0.044715f, __fmul_rn(v[j], v[j])), v[j], v[j]);
      v[j] = times_sigmoid(v[j], __fmul_rn(1.5957691216057308f, inner));
    }
  } else if (activation == GELU_ERF) {
#pragma unroll
    for (int j = 0; j < N; j++)
      v[j] = __fmul_rn(__fmul_rn(0.5f, v[j]), __fadd_rn(1.0f, erff(__fmul_rn(0.70710678118654752f, v[j]))));
  } else if (activation == SILU) {
#pragma unroll
    for (int j = 0; j < N; j++) v[j] = times_sigmoid(v[j], v[j]);
  }
}

// One number: `sum` becomes what is stored.
template <class T, class O> DEVICE void store_one(O* out, float sum, float bias, unsigned flags) {
  float v[1] = {__fadd_rn(sum, bias)};
  if (flags & ACCUMULATE) v[0] = __fadd_rn(to_float(*out), v[0]);
  else activate(v, flags & ACTIVATION);
  *out = from_float<O>(v[0]);
}

// The tile of a block. Tiles go down in groups of eight rows of tiles, so that the blocks that run at one time share
// both rows of x and columns of the weight in the second-level cache.
struct TilePlace {
  int row, column;  // first ones
};
template <int ROWS, int COLUMNS> DEVICE TilePlace tile_place(int rows, int columns) {
  constexpr int GROUP = 8;
  const int down = (rows - 1) / ROWS + 1, across = (columns - 1) / COLUMNS + 1;
  const int block = blockIdx.x, group = block / (GROUP * across), within = block % (GROUP * across);
  const int height = min(GROUP, down - group * GROUP);
  return {(group * GROUP + within % height) * ROWS, within / height * COLUMNS};
}

// Floats from a row of staged sums to the next: fragments are then written, and rows read, without bank conflicts.
template <int WIDTH> constexpr int STAGED_STRIDE = WIDTH + 8;

// One warp stores its tile: `sums` [ROWS, WIDTH] in shared memory, rows STAGED_STRIDE<WIDTH> apart; `rows` and `columns` of
// it exist. `bias` (or null) and `out` are those of the tile's first number. 16 bytes at a time where rows of `out`
// begin on 16 bytes, else number by number with neighbouring lanes at neighbouring numbers.
template <class T, class O, bool ADDS, int ROWS, int WIDTH>
DEVICE void store_tile(const float* sums, const T* bias, O* out, int64_t stride, int rows, int columns, unsigned flags) {
  constexpr int N = Pack<O>::N, LANES = WIDTH / N, AT_ONCE = 32 / LANES, COUNT = ROWS / AT_ONCE;
  // Additions read their old values for several rows ahead.
  constexpr int BATCH = ADDS ? (COUNT < 4 ? COUNT : 4) : 1;
  static_assert(ROWS % AT_ONCE == 0 && COUNT % BATCH == 0, "whole rounds");
  const int lane = threadIdx.x % 32;
  if (!packs_fit(out, stride)) {
#pragma unroll 1
    for (int i = lane; i < ROWS * WIDTH; i += 32) {
      const int row = i / WIDTH, column = i % WIDTH;
      if (row >= rows || column >= columns) continue;
      const float b = bias ? to_float(bias[column]) : 0.0f;
      store_one<T>(out + row * stride + column, sums[row * STAGED_STRIDE<WIDTH> + column], b, flags);
    }
    return;
  }
  const int column = lane % LANES * N, count = columns - column;
  float b[N];
#pragma unroll
  for (int j = 0; j < N; j++) b[j] = bias && j < count ? to_float(bias[column + j]) : 0.0f;
#pragma unroll 1
  for (int i = 0; i < COUNT; i += BATCH) {
    Pack<O> old[BATCH];
#pragma unroll
    for (int k = 0; ADDS && k < BATCH; k++) {
      const int row = lane / LANES + (i + k) * AT_ONCE;
      if (row < rows && count >= N) old[k] = load_pack(out + row * stride + column);
    }
#pragma unroll
    for (int k = 0; k < BATCH; k++) {
      const int row = lane / LANES + (i + k) * AT_ONCE;
      if (row >= rows) break;
      const float* from = sums + row * STAGED_STRIDE<WIDTH> + column;
      O* to = out + row * stride + column;
      if (count >= N) {
        float v[N];
#pragma unroll
        for (int j = 0; j < N; j += 4) {
          const Pack<float> four = load_pack(from + j);
#pragma unroll
          for (int l = 0; l < 4; l++) v[j + l] = __fadd_rn(four.get(l), b[j + l]);
        }
        if (ADDS) {
#pragma unroll
          for (int j = 0; j < N; j++) v[j] = __fadd_rn(old[k].get(j), v[j]);
        } else {
          activate(v, flags & ACTIVATION);
        }
        Pack<O> all;
#pragma unroll
        for (int j = 0; j < N; j++) all.set(j, v[j]);
        store_pack(to, all);
      } else {
#pragma unroll
        for (int j = 0; j < N; j++)
          if (j < count) store_one<T>(to + j, from[j], b[j], flags);
      }
    }
  }
}

// Matrix products of rows with a weight, in f32 throughout: for proofs and for models that are wanted in f32.
//
// Contract: that of matmul.cu with T = float; nt, nn and tn, one kernel each, without conditions on alignment, and without
// reads of other numbers. A sum is one chain of fused multiply-adds over k in rising order from zero, so an output's bits do
// not depend on the other rows.
//
// A block of 256 threads computes 64 x 64, a thread 4 x 4. Slices of 16 numbers of k of both factors stand in shared
// memory with k as the row, in two buffers: the next slice is in registers while this one is multiplied.
//
// Dynamic shared memory: 64 x 72 floats.
#include "common/gemm.cuh"

KERNEL_FILE(matmul_f32)

constexpr int F32_THREADS = 256, F32_TILE = 64, F32_SLICE = 16, F32_ROW = F32_TILE + 4;

// One thread's part of a slice, 4 numbers. ALONG_K: rows of the matrix are rows (or columns) of the tile and k runs along
// them; else rows are k.
template <bool ALONG_K> struct Quad {
  const float* from;
  int64_t step;
  int row, column;
  bool packed;
  float v[4];

  // `first` is the first number of the tile.
  DEVICE Quad(const float* first, int64_t stride) {
    constexpr int LANES = (ALONG_K ? F32_SLICE : F32_TILE) / 4;
    row = threadIdx.x / LANES;
    column = threadIdx.x % LANES * 4;
    from = first + row * stride + column;
    step = ALONG_K ? F32_SLICE : F32_SLICE * stride;
    packed = packs_fit(first, stride);
  }
  // Of the slice, `rows` rows and `columns` columns exist (or more): zeros elsewhere.
  DEVICE void load(int rows, int columns) {
    if (packed && row < rows && column + 4 <= columns) {
      const Pack<float> four = load_pack(from);
#pragma unroll
      for (int j = 0; j < 4; j++) v[j] = four.get(j);
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++) v[j] = row < rows && column + j < columns ? from[j] : 0.0f;
    }
    from += step;
  }
  // Into [F32_SLICE, F32_ROW].
  DEVICE void store(float* slice) const {
#pragma unroll
    for (int j = 0; j < 4; j++) slice[ALONG_K ? (column + j) * F32_ROW + row : row * F32_ROW + column + j] = v[j];
  }
};

// The sums of a block's tile at `at`, in shared memory in rows STAGED_STRIDE<F32_TILE> apart: those of a warp's eight rows,
// which are the warp's own. X_ALONG, W_ALONG: k runs along the rows of x and of the weight, as they are stored.
template <bool X_ALONG, bool W_ALONG>
DEVICE void multiply_f32(float* shared, const float* __restrict__ x, const float* __restrict__ weight, TilePlace at, int rows,
                         int columns, int inputs, int x_stride, int weight_stride) {
  Quad<X_ALONG> a(x + (X_ALONG ? static_cast<int64_t>(at.row) * x_stride : at.row), x_stride);
  Quad<W_ALONG> b(weight + (W_ALONG ? static_cast<int64_t>(at.column) * weight_stride : at.column), weight_stride);
  const int across = threadIdx.x % 16 * 4, down = threadIdx.x / 16 * 4;
  constexpr int SLICE = F32_SLICE * F32_ROW;

  float sums[4][4] = {};
  const int slices = inputs > 0 ? (inputs - 1) / F32_SLICE + 1 : 0;
  const auto load = [&](int i) {
    const int left = inputs - i * F32_SLICE;
    const int height = rows - at.row, width = columns - at.column;
    a.load(X_ALONG ? height : left, X_ALONG ? left : height);
    b.load(W_ALONG ? width : left, W_ALONG ? left : width);
  };
  if (slices > 0) load(0);
#pragma unroll 1
  for (int i = 0; i < slices; i++) {
    float* slice = shared + i % 2 * 2 * SLICE;
    a.store(slice);
    b.store(slice + SLICE);
    // Behind it all threads have finished with the slice before, so the other buffer is free.
    __syncthreads();
    if (i + 1 < slices) load(i + 1);
#pragma unroll
    for (int k = 0; k < F32_SLICE; k++) {
      const Pack<float> p = load_pack(slice + k * F32_ROW + down), q = load_pack(slice + SLICE + k * F32_ROW + across);
#pragma unroll
      for (int m = 0; m < 4; m++)
#pragma unroll
        for (int n = 0; n < 4; n++) sums[m][n] = __fmaf_rn(p.v[m], q.v[n], sums[m][n]);
    }
  }

  __syncthreads();
  constexpr int STRIDE = STAGED_STRIDE<F32_TILE>;
#pragma unroll
  for (int m = 0; m < 4; m++)
    store_16(shared + (down + m) * STRIDE + across, as_uint4(Pack<float>{{sums[m][0], sums[m][1], sums[m][2], sums[m][3]}}));
  __syncwarp();
}

template <bool NT>
DEVICE void linear_f32(const float* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias,
                       float* out, int rows, int columns, int inputs, int x_stride, int weight_stride, int out_stride,
                       unsigned flags) {
  DYN_SMEM(float, shared);
  const TilePlace at = tile_place<F32_TILE, F32_TILE>(rows, columns);
  multiply_f32<true, NT>(shared, x, weight, at, rows, columns, inputs, x_stride, weight_stride);
  // A warp stores the eight rows that it computed.
  const int first = threadIdx.x / 32 * 8, row = at.row + first;
  const float* staged = shared + first * STAGED_STRIDE<F32_TILE>;
  const float* b0 = bias ? bias + at.column : nullptr;
  out += static_cast<int64_t>(row) * out_stride + at.column;
  if (flags & ACCUMULATE)
    store_tile<float, float, true, 8, F32_TILE>(staged, b0, out, out_stride, rows - row, columns - at.column, flags);
  else
    store_tile<float, float, false, 8, F32_TILE>(staged, b0, out, out_stride, rows - row, columns - at.column, flags);
}

#define LINEAR_F32(LAYOUT, NT)                                                                                    \
  KERNEL(F32_THREADS, 2, matmul_##LAYOUT##_f32,                                                                   \
         (const float* x, const float* weight, const float* bias, float* out, int rows, int columns, int inputs,  \
          int x_stride, int weight_stride, int out_stride, unsigned flags)) {                                     \
    linear_f32<NT>(x, weight, bias, out, rows, columns, inputs, x_stride, weight_stride, out_stride, flags);      \
  }
LINEAR_F32(nt, true)
LINEAR_F32(nn, false)

KERNEL(F32_THREADS, 2, matmul_tn_f32,
       (const float* x, const float* weight, float* out, int rows, int columns, int inputs, int x_stride,
        int weight_stride)) {
  DYN_SMEM(float, shared);
  const TilePlace at = tile_place<F32_TILE, F32_TILE>(rows, columns);
  multiply_f32<false, false>(shared, x, weight, at, rows, columns, inputs, x_stride, weight_stride);
  const int first = threadIdx.x / 32 * 8, row = at.row + first;
  out += static_cast<int64_t>(row) * columns + at.column;
  store_tile<float, float, true, 8, F32_TILE>(shared + first * STAGED_STRIDE<F32_TILE>, nullptr, out, columns, rows - row,
                                              columns - at.column, ACCUMULATE);
}

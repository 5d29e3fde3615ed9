// Sums over rows, a column each: gradients of biases, in two stages of fixed order.
//
// Contract.
//   partial: partial[p, c] = sum of dy[t, c] over the rows t of part p; dy [rows, columns] of format T, rows `stride` apart;
//            partial [parts, columns] f32, dense. Part p has rows p each .. (p + 1) each, each = ceil(rows / parts), none
//            behind the last; `parts` is a function of `rows` alone.
//   add:     first[c] += sum over p of partial[p, c], f32. With a grid of two rows, second[c] += the same of the [parts,
//            columns] numbers behind those.
// partial is =, add is +=. The caller owns `partial`. Order of sums: of a part's rows warp w of 8 takes rows w, w + 8, ... in
// rising order and the warps are added in rising order; of the parts group g of 32 takes parts g, g + 32, ... in rising order,
// and the groups are added in rising order. 16 bytes a thread where rows begin on 16 bytes, else number by number, in the
// same order.
// grid: partial (parts, ceil(columns / (32 packs))); add (ceil(columns / 32), outputs).
//
// Dynamic shared memory: partial 8 times 32 packs of floats, as many floats as numbers; add 32 x 32 floats.
#include "common/reduce.cuh"

KERNEL_FILE(columns)

constexpr int COLUMNS_THREADS = 256, COLUMNS_WARPS = COLUMNS_THREADS / 32;
constexpr int ADD_GROUPS = 32, ADD_COLUMNS = 32;

// N numbers from column `first` on of a row of `columns`; 0 beyond its end.
template <class T, int N>
DEVICE void load_columns(float (&x)[N], const T* row, int first, int columns, bool packs) {
  if (packs && first + N <= columns) {
    const Pack<T> p = load_pack_streaming(row + first);
#pragma unroll
    for (int j = 0; j < N; j++) x[j] = p.get(j);
    return;
  }
#pragma unroll
  for (int j = 0; j < N; j++) x[j] = first + j < columns ? to_float(row[first + j]) : 0.0f;
}

template <class T>
DEVICE void part_of_columns(const T* __restrict__ dy, float* __restrict__ partial, int rows, int columns, int64_t stride) {
  DYN_SMEM(float, sums);
  constexpr int N = Pack<T>::N, WIDTH = 32 * N, AHEAD = 4;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int each = (rows + gridDim.x - 1) / gridDim.x;
  const int begin = blockIdx.x * each, end = min(begin + each, rows);
  const int column = blockIdx.y * WIDTH, first = column + lane * N;
  const bool packs = packs_fit(dy, stride);

  float sum[N];
#pragma unroll
  for (int j = 0; j < N; j++) sum[j] = 0.0f;
  if (first < columns) {
    int t = begin + warp;
    // Some rows on their way at once.
#pragma unroll 1
    for (; packs && first + N <= columns && t + (AHEAD - 1) * COLUMNS_WARPS < end; t += AHEAD * COLUMNS_WARPS) {
      Pack<T> x[AHEAD];
#pragma unroll
      for (int i = 0; i < AHEAD; i++) x[i] = load_pack_streaming(dy + (t + i * COLUMNS_WARPS) * stride + first);
#pragma unroll
      for (int i = 0; i < AHEAD; i++)
#pragma unroll
        for (int j = 0; j < N; j++) sum[j] += x[i].get(j);
    }
#pragma unroll 1
    for (; t < end; t += COLUMNS_WARPS) {
      float x[N];
      load_columns(x, dy + t * stride, first, columns, packs);
#pragma unroll
      for (int j = 0; j < N; j++) sum[j] += x[j];
    }
  }
  // Number j of every lane side by side.
#pragma unroll
  for (int j = 0; j < N; j++) sums[warp * WIDTH + j * 32 + lane] = sum[j];
  __syncthreads();
  partial += static_cast<int64_t>(blockIdx.x) * columns + column;
  const bool whole = packs_fit(partial, columns);
  for (int c = threadIdx.x * 4; c < WIDTH && column + c < columns; c += COLUMNS_THREADS * 4) {
    Pack<float> total;
#pragma unroll
    for (int j = 0; j < 4; j++) total.v[j] = 0.0f;
#pragma unroll
    for (int w = 0; w < COLUMNS_WARPS; w++)
#pragma unroll
      for (int j = 0; j < 4; j++) total.v[j] += sums[w * WIDTH + (c % N + j) * 32 + c / N];
    if (whole && column + c + 4 <= columns) {
      store_pack(partial + c, total);
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (column + c + j < columns) partial[c + j] = total.v[j];
    }
  }
}

#define COLUMNS_KERNEL(T, SUFFIX)                                                                          \
  KERNEL(COLUMNS_THREADS, 4, columns_partial_##SUFFIX,                                                     \
         (const T* dy, float* partial, int rows, int columns, uint64_t stride)) {                          \
    part_of_columns(dy, partial, rows, columns, static_cast<int64_t>(stride));                             \
  }
COLUMNS_KERNEL(float, f32)
COLUMNS_KERNEL(f16, f16)
COLUMNS_KERNEL(bf16, bf16)

KERNEL(COLUMNS_THREADS, 4, columns_add, (const float* partial, float* first, float* second, int parts, int columns)) {
  DYN_SMEM(float, sums);
  constexpr int N = Pack<float>::N, LANES = ADD_COLUMNS / N;
  static_assert(LANES * ADD_GROUPS == COLUMNS_THREADS, "a thread 16 bytes of a part");
  const int group = threadIdx.x / LANES, column = blockIdx.x * ADD_COLUMNS + threadIdx.x % LANES * N;
  float* out = blockIdx.y == 0 ? first : second;
  partial += static_cast<int64_t>(blockIdx.y) * parts * columns;
  const bool packs = packs_fit(partial, columns);

  float sum[N] = {0.0f, 0.0f, 0.0f, 0.0f};
  if (packs && column + N <= columns) {
#pragma unroll 8
    for (int p = group; p < parts; p += ADD_GROUPS) {
      const Pack<float> x = load_pack_streaming(partial + static_cast<int64_t>(p) * columns + column);
#pragma unroll
      for (int j = 0; j < N; j++) sum[j] += x.v[j];
    }
  } else if (column < columns) {
#pragma unroll 1
    for (int p = group; p < parts; p += ADD_GROUPS) {
      float x[N];
      load_columns(x, partial + static_cast<int64_t>(p) * columns, column, columns, false);
#pragma unroll
      for (int j = 0; j < N; j++) sum[j] += x[j];
    }
  }
#pragma unroll
  for (int j = 0; j < N; j++) sums[group * ADD_COLUMNS + threadIdx.x % LANES * N + j] = sum[j];
  __syncthreads();
  const int c = blockIdx.x * ADD_COLUMNS + threadIdx.x;
  if (threadIdx.x < ADD_COLUMNS && c < columns) {
    float total = 0.0f;
#pragma unroll 8
    for (int g = 0; g < ADD_GROUPS; g++) total += sums[g * ADD_COLUMNS + threadIdx.x];
    out[c] += total;
  }
}

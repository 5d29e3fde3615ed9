// LayerNorm and RMSNorm of rows, with the residual add in front fused in.
//
// Contract. x, out [rows, width] dense; weight, bias [width]; all of one format T; width >= 1.
//   residual null:      h = x                      (x is read only)
//   residual [rows, width]: h = x + residual, rounded to T, and residual = h    (+=; the residual stream)
//   LayerNorm: out = (h - mean) / sqrt(var + eps) * weight + bias   (bias may be null: 0)
//   RMSNorm:   out = h / sqrt(mean(h^2) + eps) * weight
// out is =. Sums are in f32 in an order that depends on the width alone. No scratch. A block a row; a row is kept in
// shared memory between its passes (mean, variance around it, result), so it is read from global memory once.
// Ba et al., "Layer normalization", 2016; Zhang and Sennrich, "Root mean square layer normalization", 2019.
//
// backward: with n = (x - mean) r (RMSNorm: x r), r the inverse deviation, and g = dy weight:
//   dx += r (g - mean(g) - n mean(g n))    (RMSNorm: without mean(g)), f32(dx) plus the value, rounded to T once
//   partial[0, p, c] = sum of dy n, partial[1, p, c] = sum of dy over the rows of part p, which columns_add (columns.cu)
//   adds up; f32 [1 or 2, parts, width]: without of_weight the first is left out, without of_bias the second.
// x, dy, dx [rows, width] dense, of format T like weight; mean and r are computed again from x. Part p, a block, has rows
// p each .. (p + 1) each, each = ceil(rows / gridDim.x); the grid is a function of `rows` alone. dx is +=, partial is =
// and the caller's. A row is kept in registers, 32 numbers a thread, so that x and dy are read from global memory once: a
// warp a row to width 1024 (a block's 4 warps take rows in turn), a block a row to width 8192 (_wide). Where rows do not
// begin on 16 bytes they are read number by number, once a pass, and may be of any width. Sums of a row have an order that
// depends on width, format and alignment alone; those of a column go through each warp's rows, then the warps, rising.
//
// Dynamic shared memory: width floats and 8 floats; backward 4 (of_weight + of_bias) width floats, _wide 16 floats and
// (of_weight + of_bias) width floats.
#include "common/reduce.cuh"

KERNEL_FILE(norm)

constexpr int NORM_THREADS = 256;

// Numbers of a thread to and from shared memory, 16 bytes at a time.
template <int N> DEVICE void put(float* row, const float (&x)[N]) {
#pragma unroll
  for (int j = 0; j < N; j += 4) {
    Pack<float> p;
#pragma unroll
    for (int l = 0; l < 4; l++) p.v[l] = x[j + l];
    store_16(row + j, as_uint4(p));
  }
}
template <int N> DEVICE void get(float (&x)[N], const float* row) {
#pragma unroll
  for (int j = 0; j < N; j += 4) {
    const Pack<float> p = load_pack(row + j);
#pragma unroll
    for (int l = 0; l < 4; l++) x[j + l] = p.v[l];
  }
}

template <class T, bool LAYER>
DEVICE void norm_row(const T* __restrict__ x, T* __restrict__ residual, const T* __restrict__ weight,
                     const T* __restrict__ bias, T* __restrict__ out, int width, float eps) {
  DYN_SMEM(float, scratch);
  float* row = scratch + NORM_THREADS / 32;
  constexpr int N = Pack<T>::N;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * width;
  x += at;
  out += at;
  if (residual) residual += at;
  // Whole packs where rows begin on 16 bytes, single numbers otherwise and at the end.
  const bool aligned = packs_fit(x, width) && packs_fit(out, width) && packs_fit(residual, width) &&
                       packs_fit(weight, 0) && packs_fit(bias, 0);
  const int packed = aligned ? width / N * N : 0;

  float sum = 0.0f;
#pragma unroll 2
  for (int i = threadIdx.x * N; i < packed; i += NORM_THREADS * N) {
    Pack<T> h = load_pack(x + i);
    if (residual) {
      const Pack<T> r = load_pack(residual + i);
#pragma unroll
      for (int j = 0; j < N; j++) h.set(j, h.get(j) + r.get(j));
      store_pack(residual + i, h);
    }
    float numbers[N];
#pragma unroll
    for (int j = 0; j < N; j++) sum += numbers[j] = h.get(j);
    put(row + i, numbers);
  }
#pragma unroll 1
  for (int i = packed + threadIdx.x; i < width; i += NORM_THREADS) {
    float h = to_float(x[i]);
    if (residual) {
      const T rounded = from_float<T>(h + to_float(residual[i]));
      residual[i] = rounded;
      h = to_float(rounded);
    }
    row[i] = h;
    sum += h;
  }
  const float mean = LAYER ? block_reduce(sum, Sum(), 0.0f, scratch) / width : 0.0f;

  // A thread reads what it wrote itself, here and below.
  float squares = 0.0f;
#pragma unroll 1
  for (int i = threadIdx.x * N; i < packed; i += NORM_THREADS * N) {
    float h[N];
    get(h, row + i);
#pragma unroll
    for (int j = 0; j < N; j++) squares += (h[j] - mean) * (h[j] - mean);
  }
#pragma unroll 1
  for (int i = packed + threadIdx.x; i < width; i += NORM_THREADS) squares += (row[i] - mean) * (row[i] - mean);
  const float variance = block_reduce(squares, Sum(), 0.0f, scratch) / width;
  const float scale = 1.0f / sqrtf(variance + eps);

#pragma unroll 1
  for (int i = threadIdx.x * N; i < packed; i += NORM_THREADS * N) {
    const Pack<T> w = load_pack(weight + i);
    Pack<T> b = w, y;
    if (bias) b = load_pack(bias + i);
    float h[N];
    get(h, row + i);
#pragma unroll
    for (int j = 0; j < N; j++) y.set(j, (h[j] - mean) * scale * w.get(j) + (bias ? b.get(j) : 0.0f));
    store_pack(out + i, y);
  }
#pragma unroll 1
  for (int i = packed + threadIdx.x; i < width; i += NORM_THREADS)
    out[i] = from_float<T>((row[i] - mean) * scale * to_float(weight[i]) + (bias ? to_float(bias[i]) : 0.0f));
}

#define NORM_KERNELS(T, SUFFIX)                                                                                       \
  KERNEL(NORM_THREADS, 2, norm_layer_##SUFFIX,                                                                        \
         (const T* x, T* residual, const T* weight, const T* bias, T* out, int width, float eps)) {                   \
    norm_row<T, true>(x, residual, weight, bias, out, width, eps);                                                    \
  }                                                                                                                   \
  KERNEL(NORM_THREADS, 2, norm_rms_##SUFFIX,                                                                          \
         (const T* x, T* residual, const T* weight, const T* bias, T* out, int width, float eps)) {                   \
    norm_row<T, false>(x, residual, weight, bias, out, width, eps);                                                   \
  }
NORM_KERNELS(float, f32)
NORM_KERNELS(f16, f16)
NORM_KERNELS(bf16, bf16)

// ---- gradients ----

constexpr int NORM_WARP_THREADS = 128;  // of a block with a warp a row
constexpr int NORM_NUMBERS = 32;        // of a row, in a thread's registers

// Sums of `a` and of `b` over the threads of a row: a warp, or the whole block, which shares `scratch` (a float2 a warp).
template <bool BLOCK> DEVICE void row_sums(float& a, float& b, float2* scratch) {
  a = warp_reduce(a, Sum());
  b = warp_reduce(b, Sum());
  if (!BLOCK) return;
  const int lane = threadIdx.x % 32;
  if (lane == 0) scratch[threadIdx.x / 32] = make_float2(a, b);
  __syncthreads();
  float2 mine = make_float2(0.0f, 0.0f);
  if (lane < NORM_THREADS / 32) mine = scratch[lane];
  a = warp_reduce(mine.x, Sum());
  b = warp_reduce(mine.y, Sum());
  __syncthreads();
}

struct NormPart {
  int width;
  float eps;
  // Of the block's sums, which are in shared memory: [groups of threads, regions, width].
  int regions, weight_region, bias_region;
};

// The rows `first`, `first` + `apart`, ... below `end` in the registers of a row's threads.
template <class T, bool LAYER, bool BLOCK>
DEVICE void norm_packs(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ dy, T* __restrict__ dx,
                       const NormPart& part, int begin, int end, int apart, float* sums, float2* scratch) {
  constexpr int N = Pack<T>::N, PACKS = NORM_NUMBERS / N, THREADS = BLOCK ? NORM_THREADS : 32;
  const int width = part.width, own = threadIdx.x % THREADS * N;
  float sum_weight[PACKS][N], sum_bias[PACKS][N];
#pragma unroll
  for (int p = 0; p < PACKS; p++)
#pragma unroll
    for (int j = 0; j < N; j++) sum_weight[p][j] = sum_bias[p][j] = 0.0f;

#pragma unroll 1
  for (int t = begin; t < end; t += apart) {
    const int64_t at = static_cast<int64_t>(t) * width;
    // Packs at own + p THREADS N, as far as the row goes.
    Pack<T> row[PACKS], d[PACKS];
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
      const int first = own + p * THREADS * N;
      if (first >= width) continue;
      row[p] = load_pack(x + at + first);
      d[p] = load_pack(dy + at + first);
    }
    float mean = 0.0f, squares = 0.0f, none = 0.0f;
    if (LAYER) {
#pragma unroll
      for (int p = 0; p < PACKS; p++) {
        if (own + p * THREADS * N >= width) continue;
#pragma unroll
        for (int j = 0; j < N; j++) mean += row[p].get(j);
      }
      row_sums<BLOCK>(mean, none, scratch);
      mean /= width;
    }
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
      if (own + p * THREADS * N >= width) continue;
#pragma unroll
      for (int j = 0; j < N; j++) squares += (row[p].get(j) - mean) * (row[p].get(j) - mean);
    }
    row_sums<BLOCK>(squares, none, scratch);
    const float scale = 1.0f / sqrtf(squares / width + part.eps);

    // Of g, and of g n; and the columns' own.
    float all = 0.0f, along = 0.0f;
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
      const int first = own + p * THREADS * N;
      if (first >= width) continue;
      const Pack<T> w = load_pack(weight + first);
#pragma unroll
      for (int j = 0; j < N; j++) {
        const float n = (row[p].get(j) - mean) * scale, y = d[p].get(j), g = y * w.get(j);
        all += g;
        along += g * n;
        sum_weight[p][j] += y * n;
        sum_bias[p][j] += y;
      }
    }
    row_sums<BLOCK>(all, along, scratch);
    all = LAYER ? all / width : 0.0f;
    along /= width;

#pragma unroll
    for (int p = 0; p < PACKS; p++) {
      const int first = own + p * THREADS * N;
      if (first >= width) continue;
      const Pack<T> w = load_pack(weight + first);
      Pack<T> out = load_pack(static_cast<const T*>(dx + at + first));
#pragma unroll
      for (int j = 0; j < N; j++) {
        const float n = (row[p].get(j) - mean) * scale;
        out.set(j, out.get(j) + scale * (d[p].get(j) * w.get(j) - all - n * along));
      }
      store_pack(dx + at + first, out);
    }
  }

#pragma unroll
  for (int p = 0; p < PACKS; p++) {
    const int first = own + p * THREADS * N;
    if (first >= width) continue;
    if (part.weight_region >= 0) put(sums + part.weight_region * width + first, sum_weight[p]);
    if (part.bias_region >= 0) put(sums + part.bias_region * width + first, sum_bias[p]);
  }
}

// The same number by number: rows are read again for each pass, and the columns' sums are kept in shared memory, where a
// thread has columns of its own.
template <class T, bool LAYER, bool BLOCK>
DEVICE void norm_numbers(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ dy, T* __restrict__ dx,
                         const NormPart& part, int begin, int end, int apart, float* sums, float2* scratch) {
  constexpr int THREADS = BLOCK ? NORM_THREADS : 32;
  const int width = part.width, own = threadIdx.x % THREADS;
#pragma unroll 1
  for (int r = 0; r < part.regions; r++)
#pragma unroll 1
    for (int i = own; i < width; i += THREADS) sums[r * width + i] = 0.0f;
#pragma unroll 1
  for (int t = begin; t < end; t += apart) {
    const int64_t at = static_cast<int64_t>(t) * width;
    float mean = 0.0f, squares = 0.0f, none = 0.0f;
    if (LAYER) {
#pragma unroll 1
      for (int i = own; i < width; i += THREADS) mean += to_float(x[at + i]);
      row_sums<BLOCK>(mean, none, scratch);
      mean /= width;
    }
#pragma unroll 1
    for (int i = own; i < width; i += THREADS) squares += (to_float(x[at + i]) - mean) * (to_float(x[at + i]) - mean);
    row_sums<BLOCK>(squares, none, scratch);
    const float scale = 1.0f / sqrtf(squares / width + part.eps);

    float all = 0.0f, along = 0.0f;
#pragma unroll 1
    for (int i = own; i < width; i += THREADS) {
      const float n = (to_float(x[at + i]) - mean) * scale, y = to_float(dy[at + i]), g = y * to_float(weight[i]);
      all += g;
      along += g * n;
      if (part.weight_region >= 0) sums[part.weight_region * width + i] += y * n;
      if (part.bias_region >= 0) sums[part.bias_region * width + i] += y;
    }
    row_sums<BLOCK>(all, along, scratch);
    all = LAYER ? all / width : 0.0f;
    along /= width;
#pragma unroll 1
    for (int i = own; i < width; i += THREADS) {
      const float n = (to_float(x[at + i]) - mean) * scale, g = to_float(dy[at + i]) * to_float(weight[i]);
      dx[at + i] = from_float<T>(to_float(dx[at + i]) + scale * (g - all - n * along));
    }
  }
}

// One part of the rows: a block a row, or a warp a row, the warps in turn.
template <bool LAYER, bool BLOCK, class T>
DEVICE void norm_part(const T* x, const T* weight, const T* dy, T* dx, float* partial, int rows, int width, float eps,
                      bool of_weight, bool of_bias) {
  DYN_SMEM(float, shared);
  constexpr int THREADS = BLOCK ? NORM_THREADS : 32, GROUPS = BLOCK ? 1 : NORM_WARP_THREADS / 32;
  float* sums = shared + (BLOCK ? 2 * NORM_THREADS / 32 : 0);
  const int regions = (of_weight ? 1 : 0) + (of_bias ? 1 : 0), group = threadIdx.x / THREADS;
  const NormPart part = {width, eps, regions, of_weight ? 0 : -1, of_bias ? regions - 1 : -1};
  const int each = (rows + gridDim.x - 1) / gridDim.x, first = blockIdx.x * each, end = min(first + each, rows);
  const bool packs = packs_fit(x, width) && packs_fit(weight, 0) && packs_fit(dy, 0) && packs_fit(dx, 0);
  float* own = sums + group * regions * width;
  float2* scratch = reinterpret_cast<float2*>(shared);
  if (packs)
    norm_packs<T, LAYER, BLOCK>(x, weight, dy, dx, part, first + group, end, GROUPS, own, scratch);
  else
    norm_numbers<T, LAYER, BLOCK>(x, weight, dy, dx, part, first + group, end, GROUPS, own, scratch);

  __syncthreads();
  partial += static_cast<int64_t>(blockIdx.x) * width;
  const bool whole = packs_fit(partial, width);
  for (int r = 0; r < regions; r++) {
    float* out = partial + r * static_cast<int64_t>(gridDim.x) * width;
    const float* from = sums + r * width;
    const int packed = whole ? width / 4 * 4 : 0;
#pragma unroll 1
    for (int i = threadIdx.x * 4; i < packed; i += THREADS * GROUPS * 4) {
      Pack<float> total = load_pack(from + i);
#pragma unroll
      for (int g = 1; g < GROUPS; g++) {
        const Pack<float> more = load_pack(from + g * regions * width + i);
#pragma unroll
        for (int l = 0; l < 4; l++) total.v[l] += more.v[l];
      }
      store_pack(out + i, total);
    }
#pragma unroll 1
    for (int i = packed + threadIdx.x; i < width; i += THREADS * GROUPS) {
      float total = from[i];
#pragma unroll
      for (int g = 1; g < GROUPS; g++) total += from[g * regions * width + i];
      out[i] = total;
    }
  }
}

#define NORM_PART_KERNEL(T, LAYER, BLOCK, THREADS, BLOCKS, NAME)                                                      \
  KERNEL(THREADS, BLOCKS, NAME,                                                                                       \
         (const T* x, const T* weight, const T* dy, T* dx, float* partial, int rows, int width, float eps,            \
          int of_weight, int of_bias)) {                                                                              \
    norm_part<LAYER, BLOCK>(x, weight, dy, dx, partial, rows, width, eps, of_weight != 0, of_bias != 0);           \
  }
#define NORM_BACKWARD_KERNELS(T, SUFFIX)                                                                              \
  NORM_PART_KERNEL(T, true, false, NORM_WARP_THREADS, 3, norm_layer_backward_##SUFFIX)                                \
  NORM_PART_KERNEL(T, true, true, NORM_THREADS, 1, norm_layer_backward_wide_##SUFFIX)                                 \
  NORM_PART_KERNEL(T, false, false, NORM_WARP_THREADS, 3, norm_rms_backward_##SUFFIX)                                 \
  NORM_PART_KERNEL(T, false, true, NORM_THREADS, 1, norm_rms_backward_wide_##SUFFIX)
NORM_BACKWARD_KERNELS(float, f32)
NORM_BACKWARD_KERNELS(f16, f16)
NORM_BACKWARD_KERNELS(bf16, bf16)

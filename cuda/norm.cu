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
// Dynamic shared memory: width floats and 8 floats.
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

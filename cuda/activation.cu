// The MLP's non-linearities, the gate of SwiGLU, and their gradients.
//
// Contract. All of one format T; arithmetic in f32, rounded once.
//   gelu_tanh, gelu_erf, silu: out[i] = f(x[i]) for `count` numbers; x null: out[i] = f(out[i]).
//   swiglu: out[t, j] = silu(gate_up[t, j]) * gate_up[t, width + j], gate_up [rows, 2 width], out [rows, width], dense.
//   ..._backward: d[i] = d[i] f'(x[i]) for `count` numbers, in place.
//   swiglu_backward: with g | u = gate_up[t], d = d_out[t]: d_gate_up[t, j] = d u silu'(g), d_gate_up[t, width + j] =
//           d silu(g); d_out [rows, width], d_gate_up [rows, 2 width], dense.
// out, d_gate_up are =. No scratch, no shared memory. A thread 16 bytes; number by number at the end and where rows do not begin on
// 16 bytes. grid: ceil(count / (256 packs)) blocks; swiglu (rows, ceil(width / (256 packs))).
// The functions are those of the CPU (src/backend/cpu/simd/math.rs): GELU by tanh as x sigmoid(2 sqrt(2 / pi) (x +
// 0.044715 x^3)), GELU by erf as x erfc(-x / sqrt 2) / 2, without the cancellation of their usual forms. Derivatives: of x s(v), s a
// sigmoid, s + x s (1 - s) v'; of GELU by erf the normal distribution's Phi(x) + x phi(x).
// Hendrycks and Gimpel, "Gaussian error linear units", 2016; Shazeer, "GLU variants improve transformer", 2020.
#include "common/kernel.cuh"

KERNEL_FILE(activation)

constexpr int ACTIVATION_THREADS = 256;

enum Function { GELU_TANH, GELU_ERF, SILU };

// x / (1 + e^-z). Where e^-z is beyond 2^126 the quotient is a zero.
DEVICE float times_sigmoid(float x, float z) { return __fdividef(x, 1.0f + expf(-z)); }

// erfc(z), z >= 0: t exp(P(t) - z^2), t = 1 / (1 + z / 2); relative error below 2e-7 + z^2 2^-23.
DEVICE float erfc_positive(float z) {
  const float t = __fdividef(1.0f, 1.0f + 0.5f * z);
  float p = 0.16221651f;
  p = p * t - 0.77353085f;
  p = p * t + 1.3710548f;
  p = p * t - 0.9757169f;
  p = p * t + 0.14543768f;
  p = p * t - 0.115397915f;
  p = p * t + 0.07304037f;
  p = p * t + 0.37888607f;
  p = p * t + 0.999499f;
  p = p * t - 1.2654887f;
  return t * expf(p - z * z);
}

template <Function F> DEVICE float activate(float x) {
  if (F == SILU) return times_sigmoid(x, x);
  if (F == GELU_TANH) return times_sigmoid(x, 1.5957691216f * (x + 0.044715f * (x * x * x)));
  const float half = 0.5f * erfc_positive(fabs(x) * 0.70710678119f);
  return x * (x < 0.0f ? half : 1.0f - half);
}

// The derivative of x s(v) by x, with `slope` that of v. Where the sigmoid has no slope left `slope` must be finite.
DEVICE float sigmoid_slope(float x, float v, float slope) {
  const float s = __fdividef(1.0f, 1.0f + expf(-v));
  return s + x * (s * (1.0f - s)) * slope;
}

template <Function F> DEVICE float activation_slope(float x) {
  if (F == SILU) return sigmoid_slope(x, x, 1.0f);
  if (F == GELU_TANH) {
    const float c = 1.5957691216f, square = x * x;
    // Far out the square is infinite: a product of 0 and that must not be seen.
    const float slope = fminf((square * 0.134145f + 1.0f) * c, 1e30f);
    return sigmoid_slope(x, x * (square * 0.044715f + 1.0f) * c, slope);
  }
  const float z = fabs(x) * 0.70710678119f, half = 0.5f * erfc_positive(z);
  return (x < 0.0f ? half : 1.0f - half) + x * expf(-(z * z)) * 0.39894228040f;
}

template <class T, Function F> DEVICE void activate_flat(const T* x, T* out, uint64_t count) {
  constexpr int N = Pack<T>::N;
  const uint64_t first = (static_cast<uint64_t>(blockIdx.x) * ACTIVATION_THREADS + threadIdx.x) * N;
  if (first >= count) return;
  if (!x) x = out;
  if (first + N <= count && packs_fit(x, 0) && packs_fit(out, 0)) {
    Pack<T> p = load_pack(x + first);
#pragma unroll
    for (int j = 0; j < N; j++) p.set(j, activate<F>(p.get(j)));
    store_pack(out + first, p);
    return;
  }
  const uint64_t end = first + N < count ? first + N : count;
#pragma unroll 1
  for (uint64_t i = first; i < end; i++) out[i] = from_float<T>(activate<F>(to_float(x[i])));
}

template <class T, Function F> DEVICE void slope_flat(const T* __restrict__ x, T* __restrict__ d, uint64_t count) {
  constexpr int N = Pack<T>::N;
  const uint64_t first = (static_cast<uint64_t>(blockIdx.x) * ACTIVATION_THREADS + threadIdx.x) * N;
  if (first >= count) return;
  if (first + N <= count && packs_fit(x, 0) && packs_fit(d, 0)) {
    const Pack<T> p = load_pack(x + first);
    Pack<T> y = load_pack(static_cast<const T*>(d) + first);
#pragma unroll
    for (int j = 0; j < N; j++) y.set(j, y.get(j) * activation_slope<F>(p.get(j)));
    store_pack(d + first, y);
    return;
  }
  const uint64_t end = first + N < count ? first + N : count;
#pragma unroll 1
  for (uint64_t i = first; i < end; i++) d[i] = from_float<T>(to_float(d[i]) * activation_slope<F>(to_float(x[i])));
}

// g, u, d: gate, up and the gradient of their product; g and u become their own.
DEVICE void gate_slopes(float& g, float& u, float d) {
  const float s = __fdividef(1.0f, 1.0f + expf(-g)), slope = s + g * (s * (1.0f - s));
  const float d_gate = d * u * slope;
  u = d * (g * s);
  g = d_gate;
}

template <class T>
DEVICE void gate_backward_row(const T* __restrict__ gate, const T* __restrict__ d, T* __restrict__ out, int width) {
  constexpr int N = Pack<T>::N;
  const int first = (blockIdx.y * ACTIVATION_THREADS + threadIdx.x) * N;
  if (first >= width) return;
  const bool packs = packs_fit(gate, width) && packs_fit(d, 0) && packs_fit(out, 0);
  gate += static_cast<int64_t>(blockIdx.x) * 2 * width;
  d += static_cast<int64_t>(blockIdx.x) * width;
  out += static_cast<int64_t>(blockIdx.x) * 2 * width;
  if (packs && first + N <= width) {
    Pack<T> g = load_pack(gate + first), u = load_pack(gate + width + first);
    const Pack<T> y = load_pack(d + first);
#pragma unroll
    for (int j = 0; j < N; j++) {
      float a = g.get(j), b = u.get(j);
      gate_slopes(a, b, y.get(j));
      g.set(j, a);
      u.set(j, b);
    }
    store_pack(out + first, g);
    store_pack(out + width + first, u);
    return;
  }
  const int end = min(first + N, width);
#pragma unroll 1
  for (int i = first; i < end; i++) {
    float a = to_float(gate[i]), b = to_float(gate[width + i]);
    gate_slopes(a, b, to_float(d[i]));
    out[i] = from_float<T>(a);
    out[width + i] = from_float<T>(b);
  }
}

template <class T> DEVICE void gate_row(const T* __restrict__ gate, T* __restrict__ out, int width) {
  constexpr int N = Pack<T>::N;
  const int first = (blockIdx.y * ACTIVATION_THREADS + threadIdx.x) * N;
  if (first >= width) return;
  const bool packs = packs_fit(gate, width) && packs_fit(out, 0);
  gate += static_cast<int64_t>(blockIdx.x) * 2 * width;
  out += static_cast<int64_t>(blockIdx.x) * width;
  const T* up = gate + width;
  if (packs && first + N <= width) {
    Pack<T> g = load_pack(gate + first);
    const Pack<T> u = load_pack(up + first);
#pragma unroll
    for (int j = 0; j < N; j++) g.set(j, activate<SILU>(g.get(j)) * u.get(j));
    store_pack(out + first, g);
    return;
  }
  const int end = min(first + N, width);
#pragma unroll 1
  for (int i = first; i < end; i++) out[i] = from_float<T>(activate<SILU>(to_float(gate[i])) * to_float(up[i]));
}

#define ACTIVATION_KERNELS(T, SUFFIX)                                                                                 \
  KERNEL(ACTIVATION_THREADS, 4, activation_gelu_tanh_##SUFFIX, (const T* x, T* out, uint64_t count)) {                \
    activate_flat<T, GELU_TANH>(x, out, count);                                                                       \
  }                                                                                                                   \
  KERNEL(ACTIVATION_THREADS, 4, activation_gelu_erf_##SUFFIX, (const T* x, T* out, uint64_t count)) {                 \
    activate_flat<T, GELU_ERF>(x, out, count);                                                                        \
  }                                                                                                                   \
  KERNEL(ACTIVATION_THREADS, 4, activation_silu_##SUFFIX, (const T* x, T* out, uint64_t count)) {                     \
    activate_flat<T, SILU>(x, out, count);                                                                            \
  }                                                                                                                   \
  KERNEL(ACTIVATION_THREADS, 4, activation_swiglu_##SUFFIX, (const T* gate_up, T* out, int width)) {                  \
    gate_row<T>(gate_up, out, width);                                                                                 \
  }
ACTIVATION_KERNELS(float, f32)
ACTIVATION_KERNELS(f16, f16)
ACTIVATION_KERNELS(bf16, bf16)

#define ACTIVATION_BACKWARD_KERNELS(T, SUFFIX)                                                                        \
  KERNEL(ACTIVATION_THREADS, 4, activation_gelu_tanh_backward_##SUFFIX, (const T* x, T* d, uint64_t count)) {         \
    slope_flat<T, GELU_TANH>(x, d, count);                                                                            \
  }                                                                                                                   \
  KERNEL(ACTIVATION_THREADS, 4, activation_gelu_erf_backward_##SUFFIX, (const T* x, T* d, uint64_t count)) {          \
    slope_flat<T, GELU_ERF>(x, d, count);                                                                             \
  }                                                                                                                   \
  KERNEL(ACTIVATION_THREADS, 4, activation_silu_backward_##SUFFIX, (const T* x, T* d, uint64_t count)) {              \
    slope_flat<T, SILU>(x, d, count);                                                                                 \
  }                                                                                                                   \
  KERNEL(ACTIVATION_THREADS, 4, activation_swiglu_backward_##SUFFIX,                                                  \
         (const T* gate_up, const T* d, T* out, int width)) {                                                         \
    gate_backward_row<T>(gate_up, d, out, width);                                                                     \
  }
ACTIVATION_BACKWARD_KERNELS(float, f32)
ACTIVATION_BACKWARD_KERNELS(f16, f16)
ACTIVATION_BACKWARD_KERNELS(bf16, bf16)

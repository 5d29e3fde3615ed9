// Cross-entropy of rows of logits.
//
// Contract. logits of format T, `vocab` >= 1 numbers a row, rows `stride` apart, at any alignment; targets u32.
//   nll[r] = ln sum_j exp(logits[r, j]) - logits[r, targets[r]], f32, =.
// A NaN or +inf among a row's logits gives NaN, and so does a target >= vocab; -inf counts as probability 0. No scratch.
// A block a row, which is read once: every thread keeps a running maximum and the sum of exp(x - maximum) of its numbers
// (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018), then the block's are joined in fixed order.
// 16 bytes a load. Thread and order of a number follow from its place in the row alone: where a row does not begin on 16
// bytes, a thread takes its numbers out of two aligned loads, so that the result does not depend on where the row lies.
//
// Dynamic shared memory: 16 floats.
#include "common/reduce.cuh"

KERNEL_FILE(head)

constexpr int HEAD_THREADS = 512;
constexpr float LOG2E = 1.4426950408889634f;

// e^(x - top); 0 for x = -inf.
DEVICE float exp_below(float x, float top) { return exp2_approx((x - top) * LOG2E); }
// What to subtract: the maximum, or 0 where all numbers so far are -inf.
DEVICE float finite_top(float maximum) { return maximum == __uint_as_float(0xff800000u) ? 0.0f : maximum; }

// The 16 bytes from byte `skew` on of 32.
DEVICE uint4 bytes_from(uint4 a, uint4 b, int skew) {
  uint32_t w[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
  if (skew & 8) {
#pragma unroll
    for (int i = 0; i < 6; i++) w[i] = w[i + 2];
  }
  if (skew & 4) {
#pragma unroll
    for (int i = 0; i < 5; i++) w[i] = w[i + 1];
  }
  const int bits = skew % 4 * 8;
  return make_uint4(__funnelshift_r(w[0], w[1], bits), __funnelshift_r(w[1], w[2], bits),
                    __funnelshift_r(w[2], w[3], bits), __funnelshift_r(w[3], w[4], bits));
}

template <class T>
DEVICE void nll_row(const T* __restrict__ logits, const uint32_t* __restrict__ targets, float* __restrict__ nll, int vocab,
                    int stride) {
  DYN_SMEM(float, scratch);
  constexpr int N = Pack<T>::N;
  const float lowest = __uint_as_float(0xff800000u);
  const T* row = logits + static_cast<int64_t>(blockIdx.x) * stride;
  const int skew = static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16);
  const T* aligned = row - skew / static_cast<int>(sizeof(T));

  float maximum = lowest, sum = 0.0f;
  for (int first = threadIdx.x * N; first < vocab; first += HEAD_THREADS * N) {
    float x[N];
    if (skew == 0 && first + N <= vocab) {
      const Pack<T> p = load_pack_streaming(row + first);
#pragma unroll
      for (int j = 0; j < N; j++) x[j] = p.get(j);
    } else if (first > 0 && first + 2 * N <= vocab) {
      // Both loads lie within the row: the first begins behind its first number, the second ends before its last.
      const Pack<T> p = as_pack<T>(bytes_from(load_16(aligned + first), load_16(aligned + first + N), skew));
#pragma unroll
      for (int j = 0; j < N; j++) x[j] = p.get(j);
    } else {
#pragma unroll
      for (int j = 0; j < N; j++) x[j] = first + j < vocab ? to_float(row[first + j]) : lowest;
    }
    float top = maximum;
#pragma unroll
    for (int j = 0; j < N; j++) top = fmaxf(top, x[j]);
    const float old = maximum;
    maximum = top;
    top = finite_top(top);
#pragma unroll
    for (int j = 0; j < N; j++) x[j] = exp_below(x[j], top);
#pragma unroll
    for (int step = N / 2; step > 0; step /= 2)
#pragma unroll
      for (int j = 0; j < step; j++) x[j] += x[j + step];
    sum = sum * exp_below(old, top) + x[0];
  }

  const float top = block_reduce(maximum, Max(), lowest, scratch);
  sum = block_reduce(sum * exp_below(maximum, finite_top(top)), Sum(), 0.0f, scratch);
  if (threadIdx.x == 0) {
    const uint32_t target = targets[blockIdx.x];
    nll[blockIdx.x] = target < static_cast<uint32_t>(vocab) ? logf(sum) + (top - to_float(row[target]))
                                                            : __uint_as_float(0x7fffffffu);
  }
}

#define HEAD_KERNELS(T, SUFFIX)                                                                                       \
  KERNEL(HEAD_THREADS, 2, head_nll_##SUFFIX,                                                                          \
         (const T* logits, const uint32_t* targets, float* nll, int vocab, int stride)) {                             \
    nll_row(logits, targets, nll, vocab, stride);                                                                     \
  }
HEAD_KERNELS(float, f32)
HEAD_KERNELS(f16, f16)
HEAD_KERNELS(bf16, bf16)

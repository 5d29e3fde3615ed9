// Cross-entropy of rows of logits, and its gradient in their place.
//
// Contract. logits of format T, `vocab` >= 1 numbers a row, rows `stride` apart, at any alignment; targets u32.
//   nll[r] = ln sum_j exp(logits[r, j]) - logits[r, targets[r]], f32, =.
// A NaN or +inf among a row's logits gives NaN, and so does a target >= vocab; -inf counts as probability 0. No scratch.
// A block a row, which is read once: every thread keeps a running maximum and the sum of exp(x - maximum) of its numbers
// (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018), then the block's are joined in fixed order.
// 16 bytes a load. Thread and order of a number follow from its place in the row alone: where a row does not begin on 16
// bytes, a thread takes its numbers out of two aligned loads, so that the result does not depend on where the row lies.
//
// gradient: nll[r] = u as above and, with p = softmax(logits[r]) and f = weights[r] d/du (alpha (1 - e^-u)^gamma u),
//   logits[r, j] = f (p[j] - (j == targets[r])), rounded once, for j < vocab; 0 for vocab <= j < stride.
// In place: row r is the `stride` numbers from logits + r stride on, all of which are written. Where u is NaN the vocab
// numbers are NaN. u has the bits that nll gives. A block a row. The first `kept` packs of a row stay in shared memory
// from the pass for maximum and sum to the pass that writes; what is behind them is read again. Where rows do not begin on 16 bytes, number by number. The results do not depend on `kept`.
//
// Dynamic shared memory: nll 16 floats; gradient 20 floats and `kept` packs.
#include "common/reduce.cuh"

KERNEL_FILE(head)

constexpr int HEAD_THREADS = 512;
constexpr float LOG2E = 1.4426950408889634f;

// e^(x - top); 0 for x = -inf.
DEVICE float exp_below(float x, float top) { return exp2_approx((x - top) * LOG2E); }
// What to subtract: the maximum, or 0 where all numbers so far are -inf.
DEVICE float finite_top(float maximum) { return maximum == __uint_as_float(0xff800000u) ? 0.0f : maximum; }

// The maximum of the numbers so far and the sum of exp(x - maximum).
struct Running {
  float maximum = __uint_as_float(0xff800000u), sum = 0.0f;

  template <int N> DEVICE void take(float (&x)[N]) {
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
  // The block's maximum and sum, for all threads.
  DEVICE void join(float& top, float& total, float* scratch) const {
    top = block_reduce(maximum, Max(), __uint_as_float(0xff800000u), scratch);
    total = block_reduce(sum * exp_below(maximum, finite_top(top)), Sum(), 0.0f, scratch);
  }
};

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

  Running running;
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
    running.take(x);
  }

  float top, sum;
  running.join(top, sum, scratch);
  if (threadIdx.x == 0) {
    const uint32_t target = targets[blockIdx.x];
    nll[blockIdx.x] = target < static_cast<uint32_t>(vocab) ? logf(sum) + (top - to_float(row[target]))
                                                            : __uint_as_float(0x7fffffffu);
  }
}

// What the loss u of a token counts: alpha (1 - e^-u)^gamma u. Its derivative by u; 1 for `plain`.
DEVICE float loss_slope(float u, float alpha, float gamma, bool plain) {
  if (plain || gamma == 0.0f) return plain ? 1.0f : alpha;
  const float miss = fmaxf(-expm1f(-u), 0.0f), hit = expf(-u);
  // An infinite loss has a slope too.
  const float second = miss == 0.0f || hit == 0.0f ? 0.0f : gamma * powf(miss, gamma - 1.0f) * hit * u;
  return alpha * (powf(miss, gamma) + second);
}

constexpr int HEAD_WORK = 20;  // floats of shared memory before the packs

template <class T>
DEVICE void gradient_row(T* logits, const uint32_t* __restrict__ targets, const float* __restrict__ weights,
                         float* __restrict__ nll, int vocab, int64_t stride, int kept, float alpha, float gamma,
                         bool plain) {
  DYN_SMEM(float, work);
  constexpr int N = Pack<T>::N;
  const float lowest = __uint_as_float(0xff800000u), nan = __uint_as_float(0x7fffffffu);
  T* packs = reinterpret_cast<T*>(work + HEAD_WORK);
  T* row = logits + blockIdx.x * stride;
  const bool aligned = packs_fit(logits, stride);
  const uint32_t target = targets[blockIdx.x];
  // Before anything is written: barriers follow.
  const float hit = target < static_cast<uint32_t>(vocab) ? to_float(row[target]) : nan;

  // A thread has packs q = threadIdx.x, threadIdx.x + 512, ..., and reads of shared memory what it put there itself.
  const int count = (vocab + N - 1) / N, whole = vocab / N, resident = min(kept, count);
  // Pack q of the row as it was, -inf behind its end.
  const auto load = [&](int q) {
    if (aligned && q < whole) return load_pack(static_cast<const T*>(row) + q * N);
    Pack<T> x;
#pragma unroll
    for (int j = 0; j < N; j++) x.v[j] = q * N + j < vocab ? row[q * N + j] : from_float<T>(lowest);
    return x;
  };
  const auto copy = [&](int q) {
    if (aligned && q < whole)
      cp_async_16(packs + q * N, row + q * N);
    else
      store_16(packs + q * N, as_uint4(load(q)));
  };
  Running running;
  const auto look = [&](const Pack<T>& p) {
    float x[N];
#pragma unroll
    for (int j = 0; j < N; j++) x[j] = p.get(j);
    running.take(x);
  };
  // What is kept is on its way at once, and the first half is looked at while the second comes in.
  const int half = (resident + 2 * HEAD_THREADS - 1) / (2 * HEAD_THREADS) * HEAD_THREADS;
  int q = threadIdx.x;
  for (; q < half && q < resident; q += HEAD_THREADS) copy(q);
  cp_async_commit();
  for (; q < resident; q += HEAD_THREADS) copy(q);
  cp_async_commit();
  cp_async_wait<1>();
  for (q = threadIdx.x; q < half && q < resident; q += HEAD_THREADS) look(load_pack(static_cast<const T*>(packs) + q * N));
  cp_async_wait<0>();
  for (; q < resident; q += HEAD_THREADS) look(load_pack(static_cast<const T*>(packs) + q * N));
  for (; q < count; q += HEAD_THREADS) look(load(q));

  float top, sum;
  running.join(top, sum, work);
  if (threadIdx.x == 0) {
    const float u = logf(sum) + (top - hit);
    nll[blockIdx.x] = u;
    work[16] = u == u ? weights[blockIdx.x] * loss_slope(u, alpha, gamma, plain) : nan;
  }
  __syncthreads();
  const float factor = work[16], share = factor / sum;
  top = finite_top(top);

  const int all = static_cast<int>((stride + N - 1) / N);
  for (q = threadIdx.x; q < all; q += HEAD_THREADS) {
    Pack<T> x;
    if (q < count) {
      x = q < resident ? load_pack(static_cast<const T*>(packs) + q * N) : load(q);
      const int place = static_cast<int>(target) - q * N;
#pragma unroll
      for (int j = 0; j < N; j++) {
        const float y = share * exp_below(x.get(j), top);
        x.set(j, q * N + j >= vocab ? 0.0f : j == place ? y - factor : y);
      }
    } else {
#pragma unroll
      for (int j = 0; j < N; j++) x.set(j, 0.0f);
    }
    if (aligned) {
      store_pack(row + q * N, x);
    } else {
#pragma unroll
      for (int j = 0; j < N; j++)
        if (q * N + j < stride) row[q * N + j] = x.v[j];
    }
  }
}

#define GRADIENT_KERNEL(T, SUFFIX)                                                                                    \
  KERNEL(HEAD_THREADS, 2, head_gradient_##SUFFIX,                                                                     \
         (T* logits, const uint32_t* targets, const float* weights, float* nll, int vocab, uint64_t stride, int kept, \
          float alpha, float gamma, int plain)) {                                                                     \
    gradient_row(logits, targets, weights, nll, vocab, static_cast<int64_t>(stride), kept, alpha, gamma, plain != 0); \
  }
GRADIENT_KERNEL(float, f32)
GRADIENT_KERNEL(f16, f16)
GRADIENT_KERNEL(bf16, bf16)

#define HEAD_KERNELS(T, SUFFIX)                                                                                       \
  KERNEL(HEAD_THREADS, 2, head_nll_##SUFFIX,                                                                          \
         (const T* logits, const uint32_t* targets, float* nll, int vocab, int stride)) {                             \
    nll_row(logits, targets, nll, vocab, stride);                                                                     \
  }
HEAD_KERNELS(float, f32)
HEAD_KERNELS(f16, f16)
HEAD_KERNELS(bf16, bf16)

// Flat copies and products with a factor.
//
// Contract. Flat buffers; every number is touched once, no sum is taken.
//   copy:  dst[i] = src[i] for `count` numbers of 2, 4 or 8 bytes (copy_2, copy_4, copy_8), bit for bit. The buffers do not
//          overlap.
//   scale: x[i] = x[i] * factor for `count` numbers of format T, in place; the product in f32, rounded once.
// copy is =. No scratch, no shared memory. A thread four times 16 bytes, a block's width apart, all loads before the first
// store; number by number where a buffer does not begin on 16 bytes and at the end.
// grid: ceil(count / (1024 packs)) blocks.
#include "common/kernel.cuh"

KERNEL_FILE(elementwise)

constexpr int ELEMENTWISE_THREADS = 256, ELEMENTWISE_PACKS = 4;

// A block's numbers: from `first` on, to `end` at most. f(uint4) is what becomes of 16 bytes, g of a number.
template <class T, class F, class G>
DEVICE void each_number(const T* src, T* dst, uint64_t count, F f, G g) {
  constexpr int N = 16 / sizeof(T), STRETCH = ELEMENTWISE_THREADS * N;
  const uint64_t first = static_cast<uint64_t>(blockIdx.x) * (STRETCH * ELEMENTWISE_PACKS);
  const uint64_t end = first + STRETCH * ELEMENTWISE_PACKS < count ? first + STRETCH * ELEMENTWISE_PACKS : count;
  uint64_t single = first;
  if (packs_fit(src, 0) && packs_fit(dst, 0)) {
    uint4 kept[ELEMENTWISE_PACKS];
#pragma unroll
    for (int p = 0; p < ELEMENTWISE_PACKS; p++) {
      const uint64_t at = first + p * STRETCH + threadIdx.x * N;
      if (at + N <= end) kept[p] = load_16(src + at);
    }
#pragma unroll
    for (int p = 0; p < ELEMENTWISE_PACKS; p++) {
      const uint64_t at = first + p * STRETCH + threadIdx.x * N;
      if (at + N <= end) store_16_global(dst + at, f(kept[p]));
    }
    single = first + (end - first) / N * N;
  }
#pragma unroll 1
  for (uint64_t i = single + threadIdx.x; i < end; i += ELEMENTWISE_THREADS) dst[i] = g(src[i]);
}

template <class T> DEVICE void copy_numbers(const T* src, T* dst, uint64_t count) {
  each_number(src, dst, count, [](uint4 pack) { return pack; }, [](T x) { return x; });
}

template <class T> DEVICE void scale_numbers(T* x, uint64_t count, float factor) {
  const auto one = [=](T number) { return from_float<T>(to_float(number) * factor); };
  const auto all = [=](uint4 pack) {
    Pack<T> numbers = as_pack<T>(pack);
#pragma unroll
    for (int j = 0; j < Pack<T>::N; j++) numbers.set(j, numbers.get(j) * factor);
    return as_uint4(numbers);
  };
  each_number(static_cast<const T*>(x), x, count, all, one);
}

#define COPY_KERNEL(T, SIZE)                                                                         \
  KERNEL(ELEMENTWISE_THREADS, 4, elementwise_copy_##SIZE, (const T* src, T* dst, uint64_t count)) { \
    copy_numbers(src, dst, count);                                                                   \
  }
COPY_KERNEL(uint16_t, 2)
COPY_KERNEL(uint32_t, 4)
COPY_KERNEL(uint64_t, 8)

#define SCALE_KERNEL(T, SUFFIX)                                                                       \
  KERNEL(ELEMENTWISE_THREADS, 4, elementwise_scale_##SUFFIX, (T* x, uint64_t count, float factor)) { \
    scale_numbers(x, count, factor);                                                                  \
  }
SCALE_KERNEL(float, f32)
SCALE_KERNEL(f16, f16)
SCALE_KERNEL(bf16, bf16)

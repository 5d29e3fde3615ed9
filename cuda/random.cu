// Synthetic weights: numbers that depend on the seed, the parameter and the place alone, the same bits as on the CPU.
//
// Contract. out [count] of one format; out is =. Element i of parameter n is made of half a Philox block (src/synthetic.rs): block
// [i / 2 low, i / 2 high, n, PURPOSE_WEIGHTS], words 0 and 1 for an even i, 2 and 3 for an odd one. The four 16-bit halves of the two
// words, added up, less their mean 131070: a whole number of 18 bits, exact in f32; times `scale`, rounded once; rounded to the
// format, to nearest even. (The sum of four uniform numbers is near normal: Irwin-Hall.)
//
// A thread makes 8 numbers of 4 blocks, stored 128 bits at a time where out begins on 16 bytes. No shared memory.
#include "common/philox.cuh"

KERNEL_FILE(random)

constexpr int RANDOM_THREADS = 256, RANDOM_NUMBERS = 8;

DEVICE float weight_of(uint32_t a, uint32_t b, float scale) {
  const uint32_t sum = (a & 0xffffu) + (a >> 16) + (b & 0xffffu) + (b >> 16);
  return __fmul_rn(static_cast<float>(static_cast<int>(sum) - 131070), scale);
}

template <class T> DEVICE void random_weights(T* out, uint64_t count, uint64_t seed, uint32_t parameter, float scale) {
  const uint64_t at = (static_cast<uint64_t>(blockIdx.x) * RANDOM_THREADS + threadIdx.x) * RANDOM_NUMBERS;
  if (at >= count) return;
  float v[RANDOM_NUMBERS];
#pragma unroll
  for (int i = 0; i < RANDOM_NUMBERS; i += 2) {
    const uint64_t block = (at + i) / 2;
    const uint4 words =
        philox(seed, PURPOSE_WEIGHTS, parameter, static_cast<uint32_t>(block >> 32), static_cast<uint32_t>(block));
    v[i] = weight_of(words.x, words.y, scale);
    v[i + 1] = weight_of(words.z, words.w, scale);
  }
  if (packs_fit(out, 0) && count - at >= RANDOM_NUMBERS) {
#pragma unroll
    for (int i = 0; i < RANDOM_NUMBERS; i += Pack<T>::N) {
      Pack<T> p;
#pragma unroll
      for (int j = 0; j < Pack<T>::N; j++) p.set(j, v[i + j]);
      store_pack(out + at + i, p);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < RANDOM_NUMBERS; i++)
    if (at + i < count) out[at + i] = from_float<T>(v[i]);
}

#define RANDOM_KERNEL(T, SUFFIX)                                                                                     \
  KERNEL(RANDOM_THREADS, 4, random_weights_##SUFFIX,                                                                 \
         (T * out, uint64_t count, uint64_t seed, uint32_t parameter, float scale)) {                                \
    random_weights(out, count, seed, parameter, scale);                                                              \
  }
RANDOM_KERNEL(float, f32)
RANDOM_KERNEL(f16, f16)
RANDOM_KERNEL(bf16, bf16)

// Conversion of numbers from one format to another.
//
// Contract. in [count] of one format, out [count] of another; out is =. Widening is exact; narrowing rounds to nearest even;
// between the 16-bit formats by way of f32, which holds both. NaN stays NaN, what is too large becomes infinite.
//
// A thread converts 8 numbers with 128-bit accesses where both buffers begin on 16 bytes, else one by one. No shared memory.
#include "common/kernel.cuh"

KERNEL_FILE(cast)

constexpr int CAST_THREADS = 256, CAST_NUMBERS = 8;

template <class I, class O> DEVICE void cast(const I* __restrict__ in, O* __restrict__ out, uint64_t count) {
  const uint64_t at = (static_cast<uint64_t>(blockIdx.x) * CAST_THREADS + threadIdx.x) * CAST_NUMBERS;
  if (at >= count) return;
  if (packs_fit(in, 0) && packs_fit(out, 0) && count - at >= CAST_NUMBERS) {
    float v[CAST_NUMBERS];
#pragma unroll
    for (int i = 0; i < CAST_NUMBERS; i += Pack<I>::N) {
      const Pack<I> p = load_pack_streaming(in + at + i);
#pragma unroll
      for (int j = 0; j < Pack<I>::N; j++) v[i + j] = p.get(j);
    }
#pragma unroll
    for (int i = 0; i < CAST_NUMBERS; i += Pack<O>::N) {
      Pack<O> p;
#pragma unroll
      for (int j = 0; j < Pack<O>::N; j++) p.set(j, v[i + j]);
      store_pack(out + at + i, p);
    }
    return;
  }
#pragma unroll 1
  for (uint64_t i = at; i < count && i < at + CAST_NUMBERS; i++) out[i] = from_float<O>(to_float(in[i]));
}

#define CAST_KERNEL(I, FROM, O, TO) \
  KERNEL(CAST_THREADS, 4, cast_##FROM##_to_##TO, (const I* in, O* out, uint64_t count)) { cast(in, out, count); }
CAST_KERNEL(float, f32, f16, f16)
CAST_KERNEL(float, f32, bf16, bf16)
CAST_KERNEL(f16, f16, float, f32)
CAST_KERNEL(f16, f16, bf16, bf16)
CAST_KERNEL(bf16, bf16, float, f32)
CAST_KERNEL(bf16, bf16, f16, f16)

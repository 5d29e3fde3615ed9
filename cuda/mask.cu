// The random bits of annealed attention, bit for bit those of src/diffusion/anneal.rs.
//
// Contract. words [len, stride], len stride < 2^31, stride >= ceil(len / 32), all written (=): bit k % 32 of
// words[q, k / 32] is 1 with probability R / 65536, R = round(65536 ratio); bits of keys beyond `len` are 0. settings null:
// ratio and step are the arguments; else settings[0] is the ratio (f32 bits) and settings[1] the step, so that a recorded
// graph reads new ones.
// No scratch, no shared memory. A thread a word; grid = ceil(len stride / 256) blocks.
//
// A word is spelt out from the binary digits of R, the least significant first: bits = w | bits where the digit is 1, w & bits
// where it is 0, with a fresh random word w for each, so that 16 words make 32 bits of any probability. w(0) .. w(15) are those
// of the Philox blocks [query, step, 4 word + b, ATTENTION], b = 0 .. 3. Up to the lowest 1 the bits stay 0: blocks of
// digits before it are skipped.
#include "common/philox.cuh"

KERNEL_FILE(mask)

constexpr int MASK_THREADS = 256;

KERNEL(MASK_THREADS, 4, mask_annealed,
       (const uint32_t* settings, float ratio, uint32_t step, uint64_t seed, uint32_t* words, int len, int stride)) {
  const uint32_t i = blockIdx.x * MASK_THREADS + threadIdx.x, width = static_cast<uint32_t>(stride);
  if (i >= len * width) return;
  const uint32_t query = i / width, word = i % width;
  if (settings) {
    ratio = __uint_as_float(settings[0]);
    step = settings[1];
  }
  // Exact: a power of two. NaN counts as 0.
  const uint32_t scaled = ratio >= 1.0f ? 65536u : ratio > 0.0f ? static_cast<uint32_t>(roundf(ratio * 65536.0f)) : 0u;
  uint32_t bits = scaled >= 65536u ? 0xffffffffu : 0u;
  if (scaled > 0 && scaled < 65536u) {
    const int lowest = __ffs(static_cast<int>(scaled)) - 1;
#pragma unroll 1
    for (uint32_t block = lowest / 4; block < 4; block++) {
      const uint4 w = philox(seed, PURPOSE_ATTENTION, 4 * word + block, step, query);
      const uint32_t digits = scaled >> (4 * block);
      bits = digits & 1 ? w.x | bits : w.x & bits;
      bits = digits & 2 ? w.y | bits : w.y & bits;
      bits = digits & 4 ? w.z | bits : w.z & bits;
      bits = digits & 8 ? w.w | bits : w.w & bits;
    }
  }
  const int keys = len - static_cast<int>(word) * 32;
  words[i] = keys >= 32 ? bits : keys > 0 ? bits & ((1u << keys) - 1) : 0u;
}

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), as in src/rng.rs: counter
// words [position, step, sequence, purpose], key = the 64-bit seed, low word first.
#pragma once
#include "kernel.cuh"

// Purposes, as in src/rng.rs.
enum : uint32_t { PURPOSE_TOKEN = 1, PURPOSE_CONFIDENCE = 3, PURPOSE_ATTENTION = 6, PURPOSE_GUMBEL = 7, PURPOSE_WEIGHTS = 8,
                PURPOSE_ROUNDING = 11 };

DEVICE uint4 philox(uint4 counter, uint2 key) {
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const uint32_t low0 = 0xD2511F53u * counter.x, high0 = __umulhi(0xD2511F53u, counter.x);
    const uint32_t low1 = 0xCD9E8D57u * counter.z, high1 = __umulhi(0xCD9E8D57u, counter.z);
    counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
    key.x += 0x9E3779B9u;
    key.y += 0xBB67AE85u;
  }
  return counter;
}

DEVICE uint4 philox(uint64_t seed, uint32_t purpose, uint32_t sequence, uint32_t step, uint32_t position) {
  return philox(make_uint4(position, step, sequence, purpose),
                make_uint2(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)));
}

// The top 24 bits of a word as a number in [0, 1): exact.
DEVICE float unit(uint32_t word) { return static_cast<float>(word >> 8) * (1.0f / 16777216.0f); }

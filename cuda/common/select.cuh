// Selection by histogram instead of sorting: keys in order, 64-bit sums of bins, running sums over a block.
//
// A histogram's sums are integers, so they do not depend on the order in which threads add to it.
#pragma once
#include "reduce.cuh"

// As integers in the order of f32::total_cmp: -0 before +0, a NaN beyond the infinity of its sign.
DEVICE uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}
DEVICE float from_ordered(uint32_t key) { return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu)); }

// A place in a ranking: greater numbers first, of equal ones the lower index. Never 0 for a number. With CANONICAL
// -0 equals +0.
template <bool CANONICAL> DEVICE uint64_t rank_of(float x, uint32_t index) {
  return static_cast<uint64_t>(ordered(CANONICAL ? __fadd_rn(x, 0.0f) : x)) << 32 | ~index;
}
DEVICE float rank_number(uint64_t rank) { return from_ordered(static_cast<uint32_t>(rank >> 32)); }
DEVICE uint32_t rank_index(uint64_t rank) { return ~static_cast<uint32_t>(rank); }

constexpr int NO_BIN = -1;

// Sums of bins in shared memory, 2 bins a thread. The halves of a sum are two words: an addition of 64 bits to shared
// memory is a loop of compare-and-swap on sm_80 and sm_90, one of 32 bits is an instruction.
template <int THREADS> struct Bins {
  static constexpr int COUNT = 2 * THREADS;
  uint32_t low[COUNT], high[COUNT];

  // Every thread clears the bins that it will read. A barrier must follow before any addition.
  DEVICE void clear() {
    const int i = 2 * threadIdx.x;
    low[i] = low[i + 1] = high[i] = high[i + 1] = 0;
  }
  // Exact: each addition that makes the low word wrap around carries one.
  DEVICE void add(int bin, uint64_t x) {
    const uint32_t mine = static_cast<uint32_t>(x), old = atomicAdd(&low[bin], mine);
    const uint32_t carried = static_cast<uint32_t>(x >> 32) + (old + mine < mine ? 1 : 0);
    if (carried) atomicAdd(&high[bin], carried);
  }
  // Counts stay below 2^32.
  DEVICE void add_one(int bin) { atomicAdd(&low[bin], 1u); }
  DEVICE uint64_t get(int bin) const { return static_cast<uint64_t>(high[bin]) << 32 | low[bin]; }
};

// Where a running sum first exceeds a limit, and the sum before it.
struct Crossing {
  int bin;  // NO_BIN: nowhere
  uint64_t before;
};

// The sum of `x` over the threads before this one. `scratch` holds one number a warp and is free again on return.
template <int THREADS> DEVICE uint64_t block_prefix(uint64_t x, uint64_t* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint64_t sum = x;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint64_t below = __shfl_up_sync(WHOLE_WARP, sum, step);
    if (lane >= step) sum += below;
  }
  if (lane == 31) scratch[warp] = sum;
  __syncthreads();
  uint64_t before = sum - x;
  for (int w = 0; w < warp; w++) before += scratch[w];
  __syncthreads();
  return before;
}

// The bin in which the running sum of all bins, from bin 0 on, first exceeds `limit`. All additions lie before a
// barrier. `found` is shared memory, free again once all threads have passed the next barrier after this.
template <int THREADS>
DEVICE Crossing find_crossing(const Bins<THREADS>& bins, uint64_t limit, uint64_t* scratch, Crossing* found) {
  const int i = 2 * threadIdx.x;
  const uint64_t first = bins.get(i), both = first + bins.get(i + 1);
  const uint64_t before = block_prefix<THREADS>(both, scratch);
  if (before <= limit && limit - before < both) {
    const bool second = limit - before >= first;
    found->bin = i + (second ? 1 : 0);
    found->before = second ? before + first : before;
  } else if (threadIdx.x == THREADS - 1 && before + both <= limit) {
    found->bin = NO_BIN;
    found->before = before + both;
  }
  __syncthreads();
  return {found->bin, found->before};
}

// floor(share * of), exactly; a share outside 0 .. 1 counts as the nearer end.
DEVICE uint64_t fraction(float share, uint64_t of) {
  if (share >= 1.0f) return of;
  const uint32_t bits = share > 0.0f ? __float_as_uint(share) : 0u;
  const uint32_t exponent = bits >> 23, digits = bits & 0x007fffffu;
  // share = mantissa / 2^shift, for subnormal numbers too; shift is 24 to 149.
  const uint64_t mantissa = exponent == 0 ? digits : digits | 0x00800000u;
  const uint32_t shift = exponent == 0 ? 149 : 150 - exponent;
  const uint64_t low = mantissa * of, high = __umul64hi(mantissa, of);
  if (shift < 64) return high << (64 - shift) | low >> shift;
  return shift < 128 ? high >> (shift - 64) : 0;
}

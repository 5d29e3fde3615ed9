// The parameters of a row as the unmask kernels read them, and what a block keeps in shared memory beside the row.
#pragma once
#include "philox.cuh"
#include "unmask_row.cuh"

constexpr int UNMASK_LIST = UNMASK_THREADS / 4;
constexpr int UNMASK_WORK_BYTES = 10560;
constexpr uint32_t NO_TOKEN = 0xffffffffu;

enum UnmaskWord { TEMPERATURE, TOP_P, TOP_K, SUPPRESS, GIVEN, KIND, UNIFORM, SEED_LOW, SEED_HIGH, SEQUENCE, STEP, POSITION, UNMASK_WORDS };
// KIND: confidence in the low byte, then where the randomness comes from.
enum { CONFIDENCE_MAX_PROB, CONFIDENCE_ENTROPY, CONFIDENCE_MARGIN };
enum { NOISE_GIVEN, NOISE_PHILOX, NOISE_GUMBEL };
enum { FLAG_DRAWN, FLAG_NOT_FINITE, FLAG_NOTHING, FLAG_PARAMETERS };

struct UnmaskWork {
  Bins<UNMASK_THREADS> bins;
  uint64_t rank[UNMASK_LIST], weight[UNMASK_LIST];  // some tokens, in any order
  uint64_t sums[UNMASK_WARPS];                      // by warp's share of the row, ascending
  uint64_t scratch[UNMASK_WARPS];
  Crossing crossing;
  uint64_t found;
  uint64_t total, spread;  // of the whole row, for the end
  float second;
  uint32_t count;
  float scale, scale_low, lowest;
  uint32_t unused;
};
static_assert(sizeof(UnmaskWork) == UNMASK_WORK_BYTES && UNMASK_WORK_BYTES % 16 == 0, "see the contract");

template <class T> DEVICE T unmask_reduce_max(T x, T least, UnmaskWork& work) {
  return block_reduce(x, Max(), least, reinterpret_cast<T*>(work.scratch));
}
DEVICE uint64_t unmask_reduce_sum(uint64_t x, UnmaskWork& work) {
  return block_reduce(x, Sum(), uint64_t(0), work.scratch);
}

DEVICE uint64_t unmask_sum_of_shares(const UnmaskWork& work) {
  uint64_t total = 0;
  for (int w = 0; w < UNMASK_WARPS; w++) total += work.sums[w];
  return total;
}

// Whether the parameters of a row are what the CPU sampler accepts.
DEVICE bool unmask_sound(const uint32_t* words, int vocab) {
  const float temperature = __uint_as_float(words[TEMPERATURE]), top_p = __uint_as_float(words[TOP_P]);
  const float uniform = __uint_as_float(words[UNIFORM]);
  return temperature >= 0.0f && temperature <= 1e30f && top_p == top_p && uniform >= 0.0f && uniform < 1.0f &&
         (words[GIVEN] == NO_TOKEN || words[GIVEN] < static_cast<uint32_t>(vocab)) &&
         (words[KIND] & 255u) <= CONFIDENCE_MARGIN && words[KIND] >> 8 <= NOISE_GUMBEL;
}

DEVICE float unmask_uniform(const uint32_t* words) {
  if (words[KIND] >> 8 == NOISE_GIVEN) return __uint_as_float(words[UNIFORM]);
  return unit(philox(make_uint4(words[POSITION], words[STEP], words[SEQUENCE], PURPOSE_TOKEN),
                     make_uint2(words[SEED_LOW], words[SEED_HIGH])).x);
}

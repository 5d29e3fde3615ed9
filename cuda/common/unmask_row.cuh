// One row of logits as the unmask kernels see it, and masses: probabilities as integers.
#pragma once
#include "select.cuh"

constexpr int UNMASK_THREADS = 512, UNMASK_WARPS = UNMASK_THREADS / 32;

DEVICE float minus_infinity() { return __uint_as_float(0xff800000u); }

// A row of `vocab` logits, cut into packs of 16 bytes where memory is aligned so: the first and the last pack may reach
// over the row's ends, there they hold -inf, and so does the place of the suppressed token. A resident row
// is kept in shared memory like that. A streaming row is read from global memory at each pass; only those up to three
// packs that differ from it are in shared memory.
template <class T, bool RESIDENT> struct Row {
  static constexpr int N = Pack<T>::N;
  static constexpr int STREAMING_PACKS = 3;
  const T* logits;
  unsigned char* kept;  // 16 bytes a pack
  int vocab, pad, packs, suppress;

  DEVICE Row(const T* logits, unsigned char* kept, int vocab, uint32_t suppress)
      : logits(logits), kept(kept), vocab(vocab),
        pad(static_cast<int>(reinterpret_cast<uintptr_t>(logits) % 16 / sizeof(T))), packs((pad + vocab + N - 1) / N),
        suppress(suppress < static_cast<uint32_t>(vocab) ? static_cast<int>(suppress) : -16) {}

  // The id of a pack's first number.
  DEVICE int first_id(int q) const { return q * N - pad; }
  // Where pack q is in shared memory; -1: nowhere.
  DEVICE int slot(int q) const {
    if (RESIDENT) return q;
    if (q == 0) return 0;
    if (q == packs - 1) return 1;
    return static_cast<unsigned>(suppress - first_id(q)) < static_cast<unsigned>(N) ? 2 : -1;
  }

  // Starts this thread's copy of pack q. It lands at the thread's cp.async wait.
  DEVICE void copy(int q) const {
    const int first = first_id(q), at = slot(q);
    if (at < 0) return;
    if (first >= 0 && first + N <= vocab) {
      cp_async_16(kept + at * 16, logits + first);
      return;
    }
    Pack<T> x;
#pragma unroll
    for (int j = 0; j < N; j++) {
      const int id = first + j;
      x.v[j] = id >= 0 && id < vocab ? logits[id] : from_float<T>(minus_infinity());
    }
    store_16(kept + at * 16, as_uint4(x));
  }
  // Removes the suppressed token from pack q, which is `x` in the thread's registers and its own copy.
  DEVICE void remove_suppressed(int q, Pack<T>& x) const {
    const int place = suppress - first_id(q);
    if (place < 0 || place >= N) return;
#pragma unroll
    for (int j = 0; j < N; j++)
      if (j == place) x.set(j, minus_infinity());
    store_16(kept + slot(q) * 16, as_uint4(x));
  }
  DEVICE Pack<T> pack(int q) const {
    const int at = slot(q);
    return as_pack<T>(at >= 0 ? load_16(kept + at * 16) : load_16(logits + first_id(q)));
  }
  DEVICE float at(int id) const {
    if constexpr (RESIDENT) return to_float(reinterpret_cast<const T*>(kept)[pad + id]);
    return id == suppress ? minus_infinity() : to_float(logits[id]);
  }

  // A warp's share: packs first .. last, of `share` packs.
  DEVICE int share() const { return (packs + UNMASK_WARPS - 1) / UNMASK_WARPS; }

  // f(id, z) for every number of this warp's share; pads are -inf and have no id.
  template <class F> DEVICE void each(F f) const {
    const int first = static_cast<int>(threadIdx.x) / 32 * share(), last = min(first + share(), packs);
#pragma unroll 1
    for (int q = first + static_cast<int>(threadIdx.x) % 32; q < last; q += 32) {
      const Pack<T> x = pack(q);
#pragma unroll
      for (int j = 0; j < N; j++) f(first_id(q) + j, x.get(j));
    }
  }
};

// The mass of a token is exp((z - max) / temperature) in fixed point, 2^40 being the most probable token's: the definition
// of src/backend/cpu/unmask/mass.rs, to the bit.
struct Temper {
  float max;
  // log2(e) / temperature and what rounding it lost; where differences from the maximum are cut off.
  float scale, scale_low, lowest;

  // All but the maximum.
  DEVICE void set(float temperature) {
    const double exact = __dmul_rn(1.4426950408889634, 1.0 / static_cast<double>(temperature));
    scale = static_cast<float>(exact);
    scale_low = static_cast<float>(exact - static_cast<double>(scale));
    lowest = static_cast<float>(-64.0 / exact);
  }
  DEVICE float below_max(float z) const {
    const float d = __fsub_rn(z, max);
    return d > lowest ? d : lowest;
  }
  // The least logit that can have a mass; finite.
  DEVICE float floor() const {
    const float z = __fadd_rn(max, lowest);
    return z > -3.4028234663852886e38f ? z : -3.4028234663852886e38f;
  }
  // exp(d / temperature) = 2^(n + f): n by adding 1.5 * 2^23, 2^f by its Taylor polynomial.
  DEVICE float weight(float d) const {
    const float shifted = __fmaf_rn(d, scale, 12582912.0f);
    const float n = __fsub_rn(shifted, 12582912.0f);
    const float f = __fmaf_rn(d, scale_low, __fmaf_rn(d, scale, -n));
    float p = 0.000015252734f;
    p = __fmaf_rn(p, f, 0.0001540353f);
    p = __fmaf_rn(p, f, 0.0013333558f);
    p = __fmaf_rn(p, f, 0.009618129f);
    p = __fmaf_rn(p, f, 0.05550411f);
    p = __fmaf_rn(p, f, 0.2402265f);
    p = __fmaf_rn(p, f, 0.6931471805599453f);
    p = __fmaf_rn(p, f, 1.0f);
    // The low bits of 1.5 * 2^23 are 0, so those of `shifted` are n's.
    return __uint_as_float(__float_as_uint(p) + (__float_as_uint(shifted) << 23));
  }
  // floor(w * 2^40) for w in 0 .. 1.
  DEVICE static uint64_t fixed(float w) {
    const uint32_t bits = __float_as_uint(w), shift = 127u - (bits >> 23);
    return (static_cast<uint64_t>((bits & 0x007fffffu) | 0x00800000u) << 17) >> (shift < 63u ? shift : 63u);
  }
  DEVICE uint64_t mass(float z) const { return fixed(weight(below_max(z))); }
};

// Where a ranking is cut: what comes before and the token itself are kept.
struct Cut {
  float z;        // the logit of the last token kept
  uint32_t last;  // the highest id kept among those of that logit

  DEVICE static Cut none() { return {minus_infinity(), 0xffffffffu}; }
  DEVICE static Cut at(uint64_t rank) { return {rank_number(rank), rank_index(rank)}; }
  DEVICE bool keeps(int id, float z) const {
    return z > this->z || (z == this->z && static_cast<uint32_t>(id) <= last);
  }
};

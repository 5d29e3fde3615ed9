// The optimiser: sums of squares of gradients, what follows from them, and steps of AdamW (Loshchilov and Hutter, "Decoupled
// weight decay regularization", 2019) with moments in f32, bf16 or 8 bits.
//
// Contract. `settings` [16] and `results` [8] are 32-bit words, places below; f64 are two words, the low one first. The host
// writes both before a step: `results` 0 but for SKIP, which is 1 until optim_settle has run. Both begin on 16 bytes.
//
// optim_squares: x [count] f32; partials [count / 32768 rounded up] f64, =. A block sums the squares (exact in f64) of 32768
//   numbers: thread t those of fours t, t + 256, ... in order, then the threads as block_reduce has it.
// optim_watch: nll [rows] f32; results[WATCHED] becomes 1 where one of them is not finite, else it stays.
// optim_settle: partials [count] f64 of all gradients. results LENGTH = unscale sqrt(sum), thread t summing partials
//   t, t + 256, ... in order, then as above; SCALE = unscale min(1, clip / (LENGTH + 1e-6)), without the minimum where clip is 0; SKIP = 1
//   where LENGTH is not finite or WATCHED is not 0, else 0. In f64, every operation rounded by itself.
// optim_adamw: nothing where results[SKIP] is not 0. Else, with g = SCALE gradient:
//     m = fma(b1, m, (1 - b1) g)   v = fma(b2, v, ((1 - b2) g) g)   p = p keep - (rate m) / (sqrt(v unbias) + eps)
//   in f32, rounded as written, which is what the CPU does: equal bits. weights [count] are p itself in f32, or p rounded to
//   nearest even beside it in master [count] f32 (else null). gradient [count] f32 is read. decays 0: keep is 1.
//   m and v [count]:
//     f32   as they are.
//     bf16  rounded stochastically: 16 random bits are added below the bits that are kept.
//     q8    codes of a byte, with scales [count / 256 rounded up] f32 (else null), as MomentFormat in src/backend/optim.rs has it;
//           blocks of 256 with a scale each are from Dettmers et al., "8-bit optimizers via block-wise quantization", 2021.
//   The random bits of element i are word i / 16 % 4 of Philox block i / 64 * 16 + i % 16 (AdamW::rounding in src/backend/
//   optim.rs), the low half for m and the high half for v. The maximum that makes a scale has no order.
//
// A thread of optim_adamw has 8 elements side by side (4 where all is in f32), a warp the 256 of a block of codes; 128-bit
// accesses (64 bits for 8 codes) where every pointer begins on 16 bytes, else one by one. Shared memory: a word an element
// for the random bits, which a warp makes for itself; partial sums of warps.
#include "common/philox.cuh"
#include "common/reduce.cuh"

KERNEL_FILE(optim)

constexpr int OPTIM_THREADS = 256;
// Numbers of a partial sum.
constexpr int OPTIM_CHUNK = 32768;
// Numbers that share a scale.
constexpr int OPTIM_BLOCK = 256;

// Words of `settings`: clip and unscale; the seed, the step and keep; b1, b2, 1 - b1, 1 - b2; rate, unbias, eps.
enum Setting : int { CLIP = 0, UNSCALE = 2, SEED = 4, STEP = 6, KEEP = 7, BETAS = 8, RATE = 12 };
// Words of `results`.
enum Result : int { LENGTH = 0, SCALE = 2, SKIP = 3, WATCHED = 4 };

DEVICE double square(float x) { return __dmul_rn(static_cast<double>(x), static_cast<double>(x)); }

KERNEL(OPTIM_THREADS, 4, optim_squares_f32, (const float* x, uint64_t count, double* partials)) {
  DYN_SMEM(double, scratch);
  const uint64_t first = static_cast<uint64_t>(blockIdx.x) * OPTIM_CHUNK;
  const uint64_t end = count - first < OPTIM_CHUNK ? count : first + OPTIM_CHUNK;
  const bool packed = packs_fit(x, 0);
  double sum = 0;
#pragma unroll 4
  for (uint64_t i = first + 4 * threadIdx.x; i < end; i += 4 * OPTIM_THREADS) {
    if (packed && i + 4 <= end) {
      const Pack<float> p = load_pack_streaming(x + i);
#pragma unroll
      for (int j = 0; j < 4; j++) sum = __dadd_rn(sum, square(p.v[j]));
    } else {
      for (uint64_t j = i; j < end && j < i + 4; j++) sum = __dadd_rn(sum, square(x[j]));
    }
  }
  sum = block_reduce(sum, Sum(), 0.0, scratch);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

KERNEL(OPTIM_THREADS, 1, optim_watch, (const float* nll, uint64_t rows, uint32_t* results)) {
  DYN_SMEM(int, scratch);
  int found = 0;
#pragma unroll 4
  for (uint64_t i = threadIdx.x; i < rows; i += OPTIM_THREADS) found |= !isfinite(nll[i]);
  found = block_reduce(found, Max(), 0, scratch);
  if (threadIdx.x == 0 && found) results[WATCHED] = 1;
}

DEVICE double double_of(const uint32_t* words) {
  const uint64_t bits = words[0] | static_cast<uint64_t>(words[1]) << 32;
  double x;
  memcpy(&x, &bits, 8);
  return x;
}

KERNEL(OPTIM_THREADS, 1, optim_settle, (const double* partials, uint64_t count, const uint32_t* settings, uint32_t* results)) {
  DYN_SMEM(double, scratch);
  double sum = 0;
#pragma unroll 4
  for (uint64_t i = threadIdx.x; i < count; i += OPTIM_THREADS) sum = __dadd_rn(sum, partials[i]);
  sum = block_reduce(sum, Sum(), 0.0, scratch);
  if (threadIdx.x != 0) return;
  const double clip = double_of(settings + CLIP), unscale = double_of(settings + UNSCALE);
  const double length = __dmul_rn(unscale, sqrt(sum));
  double factor = 1;
  if (clip > 0) {
    const double shorter = __ddiv_rn(clip, __dadd_rn(length, 1e-6));
    if (shorter < 1) factor = shorter;
  }
  uint64_t bits;
  memcpy(&bits, &length, 8);
  results[LENGTH] = static_cast<uint32_t>(bits);
  results[LENGTH + 1] = static_cast<uint32_t>(bits >> 32);
  results[SCALE] = __float_as_uint(__double2float_rn(__dmul_rn(unscale, factor)));
  results[SKIP] = !isfinite(length) || results[WATCHED] != 0;
}

// Numbers at..at + N, of which n exist; packed: all do, 16 bytes at a time.
template <class T, int N> DEVICE void load_numbers(const T* from, int n, bool packed, float (&to)[N]) {
  if (packed) {
#pragma unroll
    for (int i = 0; i < N; i += Pack<T>::N) {
      const Pack<T> p = load_pack(from + i);
#pragma unroll
      for (int j = 0; j < Pack<T>::N; j++) to[i + j] = p.get(j);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < N; i++) to[i] = i < n ? to_float(from[i]) : 0.0f;
}
template <class T, int N> DEVICE void store_numbers(T* to, int n, bool packed, const float (&from)[N]) {
  if (packed) {
#pragma unroll
    for (int i = 0; i < N; i += Pack<T>::N) {
      Pack<T> p;
#pragma unroll
      for (int j = 0; j < Pack<T>::N; j++) p.set(j, from[i + j]);
      store_pack(to + i, p);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < N; i++)
    if (i < n) to[i] = from_float<T>(from[i]);
}

struct F32Moment {
  typedef float Number;
  static constexpr bool RANDOM = false;
  template <int N> DEVICE static void load(const float* from, float, int n, bool packed, float (&to)[N]) {
    load_numbers(from, n, packed, to);
  }
  template <int N>
  DEVICE static void store(float* to, float*, int n, bool packed, const float (&from)[N], const uint32_t (&)[N], int) {
    store_numbers(to, n, packed, from);
  }
};

// One of the two bf16 around x; finite stays finite.
DEVICE uint32_t stochastic_bf16(float x, uint32_t random) {
  constexpr uint32_t EXPONENT = 0x7f800000u;
  const uint32_t bits = __float_as_uint(x), up = bits + random;
  const bool over = (up & EXPONENT) == EXPONENT || (bits & EXPONENT) == EXPONENT;
  return over ? bits >> 16 | (isnan(x) ? 0x40u : 0u) : up >> 16;
}

struct Bf16Moment {
  typedef uint16_t Number;
  static constexpr bool RANDOM = true;
  DEVICE static void load(const uint16_t* from, float, int n, bool packed, float (&to)[8]) {
    if (packed) {
      const uint4 words = load_16(from);
      const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int i = 0; i < 4; i++) {
        to[2 * i] = __uint_as_float(pairs[i] << 16);
        to[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) to[i] = __uint_as_float(i < n ? static_cast<uint32_t>(from[i]) << 16 : 0u);
  }
  DEVICE static void store(uint16_t* to, float*, int n, bool packed, const float (&from)[8], const uint32_t (&words)[8],
                           int shift) {
    uint32_t numbers[8];
#pragma unroll
    for (int i = 0; i < 8; i++) numbers[i] = stochastic_bf16(from[i], words[i] >> shift & 0xffffu);
    if (packed) {
      store_16_global(to, make_uint4(numbers[0] | numbers[1] << 16, numbers[2] | numbers[3] << 16, numbers[4] | numbers[5] << 16,
                                     numbers[6] | numbers[7] << 16));
      return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (i < n) to[i] = static_cast<uint16_t>(numbers[i]);
  }
};

// Codes: EXPONENT bits of exponent, 3 of mantissa, and a sign where that leaves a bit. 2^-DOWN lines up a number over its scale.
template <int EXPONENT, int DOWN> struct Codes {
  static constexpr uint32_t LARGEST = (8u << EXPONENT) - 1;
  static constexpr bool SIGNED = EXPONENT < 5;
  DEVICE static float decode(uint32_t code, float scale) {
    const float up = __uint_as_float((127u + DOWN) << 23);
    const float magnitude = __fmul_rn(__fmul_rn(__uint_as_float((code & LARGEST) << 20), up), scale);
    return SIGNED ? __uint_as_float(__float_as_uint(magnitude) | code >> 7 << 31) : magnitude;
  }
  DEVICE static uint32_t encode(float x, float scale, uint32_t random) {
    const float down = __uint_as_float((127u - DOWN) << 23);
    const uint32_t bits = __float_as_uint(x), magnitude = bits & 0x7fffffffu;
    const uint32_t lined = __float_as_uint(__fmul_rn(__fdiv_rn(__uint_as_float(magnitude), scale), down)) & 0x7fffffffu;
    uint32_t code = min((lined + (random << 4)) >> 20, LARGEST);
    // 0 over the scale of a block of zeros is no number.
    if (magnitude == 0) code = 0;
    // A second moment above 0 stays above it.
    return SIGNED ? code | bits >> 31 << 7 : __uint_as_float(magnitude) > 0 && code == 0 ? 1u : code;
  }
};

template <class C> struct Q8Moment {
  typedef uint8_t Number;
  static constexpr bool RANDOM = true;
  DEVICE static void load(const uint8_t* from, float scale, int n, bool packed, float (&to)[8]) {
    uint32_t codes[8];
    if (packed) {
      const uint2 words = *reinterpret_cast<const uint2*>(from);
#pragma unroll
      for (int i = 0; i < 8; i++) codes[i] = (i < 4 ? words.x : words.y) >> 8 * (i % 4) & 0xffu;
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++) codes[i] = i < n ? from[i] : 0u;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) to[i] = C::decode(codes[i], scale);
  }
  // All lanes of the warp: they share the scale.
  DEVICE static void store(uint8_t* to, float* scale_out, int n, bool packed, const float (&from)[8], const uint32_t (&words)[8],
                           int shift) {
    // Magnitudes are ordered as their bits are, NaN above all.
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (i < n) largest = max(largest, __float_as_uint(from[i]) & 0x7fffffffu);
    largest = warp_reduce(largest, Max());
    const float scale = __fdiv_rn(__uint_as_float(largest), 1.875f);
    if (threadIdx.x % 32 == 0) *scale_out = scale;
    uint32_t codes[8];
#pragma unroll
    for (int i = 0; i < 8; i++) codes[i] = C::encode(from[i], scale, words[i] >> shift & 0xffffu);
    if (packed) {
      *reinterpret_cast<uint2*>(to) = make_uint2(codes[0] | codes[1] << 8 | codes[2] << 16 | codes[3] << 24,
                                                 codes[4] | codes[5] << 8 | codes[6] << 16 | codes[7] << 24);
      return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (i < n) to[i] = static_cast<uint8_t>(codes[i]);
  }
};

struct F32Moments {
  typedef F32Moment First;
  typedef F32Moment Second;
};
struct Bf16Moments {
  typedef Bf16Moment First;
  typedef Bf16Moment Second;
};
struct Q8Moments {
  typedef Q8Moment<Codes<4, 112>> First;
  typedef Q8Moment<Codes<5, 96>> Second;
};

// The random words of the warp's 256 elements from `first` on: 64 Philox blocks, two a lane, by way of the warp's shared words.
// `start` is seed and step.
DEVICE void rounding_words(uint32_t* mine, uint4 start, uint32_t parameter, uint64_t first, uint32_t (&words)[8]) {
  const int lane = threadIdx.x % 32;
  const uint64_t seed = start.x | static_cast<uint64_t>(start.y) << 32;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int block = lane + 32 * half;
    const uint4 four = philox(seed, PURPOSE_ROUNDING, parameter, start.z, static_cast<uint32_t>(first / 4) + block);
    uint32_t* to = mine + block / 16 * 64 + block % 16;
    to[0] = four.x;
    to[16] = four.y;
    to[32] = four.z;
    to[48] = four.w;
  }
  __syncwarp();
  const uint4 low = load_16(mine + 8 * lane), high = load_16(mine + 8 * lane + 4);
  words[0] = low.x, words[1] = low.y, words[2] = low.z, words[3] = low.w;
  words[4] = high.x, words[5] = high.y, words[6] = high.z, words[7] = high.w;
}

DEVICE float* numbers_of(float* weights, float*) { return weights; }
template <class T> DEVICE float* numbers_of(T*, float* master) { return master; }

template <int N, class M, class T>
DEVICE void adamw(T* weights, float* master, const float* gradient, typename M::First::Number* m_all,
                  typename M::Second::Number* v_all, float* m_scales, float* v_scales, const uint32_t* settings,
                  const uint32_t* results, uint64_t count, uint32_t parameter, uint32_t decays) {
  DYN_SMEM(uint32_t, shared);
  const int warp = threadIdx.x / 32;
  const uint64_t first = (static_cast<uint64_t>(blockIdx.x) * (OPTIM_THREADS / 32) + warp) * (32 * N);
  const uint4 result = load_16(results);
  if (first >= count || result.w != 0) return;
  const uint64_t at = first + threadIdx.x % 32 * N;
  const int n = at >= count ? 0 : count - at < N ? static_cast<int>(count - at) : N;
  float* numbers = numbers_of(weights, master);
  const bool packed = n == N && packs_fit(weights, 0) && packs_fit(numbers, 0) && packs_fit(gradient, 0) && packs_fit(m_all, 0) &&
                      packs_fit(v_all, 0);
  const uint64_t block = first / OPTIM_BLOCK;
  float p[N], g[N], m[N], v[N];
  load_numbers(gradient + at, n, packed, g);
  load_numbers(numbers + at, n, packed, p);
  M::First::load(m_all + at, m_scales ? m_scales[block] : 0.0f, n, packed, m);
  M::Second::load(v_all + at, v_scales ? v_scales[block] : 0.0f, n, packed, v);
  const uint4 start = load_16(settings + SEED);
  uint32_t words[N] = {};
  // The scales of the warp's block have been read by all lanes behind this.
  if constexpr (M::First::RANDOM) rounding_words(shared + warp * (32 * N), start, parameter, first, words);

  const uint4 betas = load_16(settings + BETAS), rest = load_16(settings + RATE);
  const float scale = __uint_as_float(result.z), keep = decays ? __uint_as_float(start.w) : 1.0f;
  const float b1 = __uint_as_float(betas.x), b2 = __uint_as_float(betas.y);
  const float c1 = __uint_as_float(betas.z), c2 = __uint_as_float(betas.w);
  const float rate = __uint_as_float(rest.x), unbias = __uint_as_float(rest.y), eps = __uint_as_float(rest.z);
#pragma unroll
  for (int i = 0; i < N; i++) {
    const float scaled = __fmul_rn(scale, g[i]);
    m[i] = __fmaf_rn(b1, m[i], __fmul_rn(c1, scaled));
    v[i] = __fmaf_rn(b2, v[i], __fmul_rn(__fmul_rn(c2, scaled), scaled));
    const float root = __fadd_rn(__fsqrt_rn(__fmul_rn(v[i], unbias)), eps);
    p[i] = __fsub_rn(__fmul_rn(p[i], keep), __fdiv_rn(__fmul_rn(rate, m[i]), root));
  }
  store_numbers(numbers + at, n, packed, p);
  if (sizeof(T) < sizeof(float)) store_numbers(weights + at, n, packed, p);
  M::First::store(m_all + at, m_scales + block, n, packed, m, words, 0);
  M::Second::store(v_all + at, v_scales + block, n, packed, v, words, 16);
}

#define ADAMW_KERNEL(N, T, PARAMETER, M, MOMENTS)                                                                           \
  KERNEL(OPTIM_THREADS, 2, optim_adamw_##PARAMETER##_##MOMENTS,                                                             \
         (T * weights, float* master, const float* gradient, M::First::Number* m, M::Second::Number* v, float* m_scales,    \
          float* v_scales, const uint32_t* settings, const uint32_t* results, uint64_t count, uint32_t parameter,           \
          uint32_t decays)) {                                                                                               \
    adamw<N, M>(weights, master, gradient, m, v, m_scales, v_scales, settings, results, count, parameter, decays);          \
  }
ADAMW_KERNEL(4, float, f32, F32Moments, f32)
ADAMW_KERNEL(8, float, f32, Bf16Moments, bf16)
ADAMW_KERNEL(8, float, f32, Q8Moments, q8)
ADAMW_KERNEL(8, f16, f16, F32Moments, f32)
ADAMW_KERNEL(8, f16, f16, Bf16Moments, bf16)
ADAMW_KERNEL(8, f16, f16, Q8Moments, q8)
ADAMW_KERNEL(8, bf16, bf16, F32Moments, f32)
ADAMW_KERNEL(8, bf16, bf16, Bf16Moments, bf16)
ADAMW_KERNEL(8, bf16, bf16, Q8Moments, q8)

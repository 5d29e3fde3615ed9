// What a warp's units do: number formats, asynchronous copies, matrices, votes, atomics.
#include "machine.hpp"

namespace simt {

static float float_of(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
static uint32_t bits_of(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}

float bf16_to_float(uint16_t bits) { return float_of(static_cast<uint32_t>(bits) << 16); }

uint16_t float_to_bf16(float x) {
  const uint32_t u = bits_of(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

float f16_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 1023;
  if (exponent == 31) return float_of(sign | 0x7f800000u | mantissa << 13);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t float_to_f16(float x) {
  const uint32_t u = bits_of(x), magnitude = u & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>(u >> 16 & 0x8000);
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00;  // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {                       // below 2^-14: subnormal, in units of 2^-24
    // Adding 2^23 units' worth of magic rounds to nearest even.
    const float scaled = float_of(magnitude) * 0x1p24f;
    const float rounded = (scaled + 0x1p23f) - 0x1p23f;
    return sign | static_cast<uint16_t>(rounded);
  }
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return sign | static_cast<uint16_t>((rounded - 0x38000000u) >> 13);
}

float exp2_approx(float x) {
  const float y = std::exp2(x);
  return std::fpclassify(y) == FP_SUBNORMAL ? 0.0f : y;
}

// ---- shuffles ----
struct ShuffleArgument {
  uint64_t in, out;
  int source;
};
static void execute_shuffle(void** lanes, uint32_t mask) {
  for (int l = 0; l < 32; l++) {
    if (!(mask >> l & 1)) continue;
    auto* mine = static_cast<ShuffleArgument*>(lanes[l]);
    // A lane outside the mask has nothing to give: the device leaves the result undefined.
    mine->out = (mask >> mine->source & 1) ? static_cast<ShuffleArgument*>(lanes[mine->source])->in : 0x7fffdead7fffdead;
  }
}
uint64_t shuffle_bits(uint32_t mask, uint64_t value, int source, Place place) {
  ShuffleArgument a{value, value, source};
  warp_collective(mask, SHUFFLE, &a, execute_shuffle, place);
  return a.out;
}

// ---- votes ----
struct VoteArgument {
  uint32_t in, out;
  Reduction operation;
};
static void execute_ballot(void** lanes, uint32_t mask) {
  uint32_t bits = 0;
  for (int l = 0; l < 32; l++)
    if ((mask >> l & 1) && static_cast<VoteArgument*>(lanes[l])->in) bits |= 1u << l;
  for (int l = 0; l < 32; l++)
    if (mask >> l & 1) static_cast<VoteArgument*>(lanes[l])->out = bits;
}
static void execute_reduce(void** lanes, uint32_t mask) {
  uint32_t result = 0;
  bool first = true;
  for (int l = 0; l < 32; l++) {
    if (!(mask >> l & 1)) continue;
    const auto* a = static_cast<VoteArgument*>(lanes[l]);
    const uint32_t v = a->in;
    if (first) {
      result = v;
      first = false;
      continue;
    }
    switch (a->operation) {
      case ADD: result += v; break;
      case MAX: result = v > result ? v : result; break;
      case MIN: result = v < result ? v : result; break;
      case OR: result |= v; break;
      case AND: result &= v; break;
    }
  }
  for (int l = 0; l < 32; l++)
    if (mask >> l & 1) static_cast<VoteArgument*>(lanes[l])->out = result;
}
uint32_t ballot(uint32_t mask, bool predicate, Place place) {
  VoteArgument a{predicate, 0, ADD};
  warp_collective(mask, BALLOT, &a, execute_ballot, place);
  return a.out;
}
uint32_t reduce(uint32_t mask, uint32_t value, Reduction operation, Place place) {
  VoteArgument a{value, 0, operation};
  warp_collective(mask, REDUCE, &a, execute_reduce, place);
  return a.out;
}

// ---- cp.async: lands at the wait, and not before ----
void cp_async(void* dst, const void* src, unsigned bytes, bool pred, Place place) {
  maybe_yield(8);
  if (!in_shared(dst, bytes)) {
    report("cp.async outside shared memory", Where::at(place), "destination at offset %td of %u",
           static_cast<unsigned char*>(dst) - machine->shared, machine->shared_bytes);
    abandon_block();
  }
  if (reinterpret_cast<uintptr_t>(dst) % bytes || (pred && reinterpret_cast<uintptr_t>(src) % bytes)) {
    report("cp.async misaligned", Where::at(place), "shared offset %td, global address ...%03zx",
           static_cast<unsigned char*>(dst) - machine->shared, reinterpret_cast<uintptr_t>(src) & 0xfff);
    abandon_block();
  }
  check_access(dst, bytes, WRITE_IN_FLIGHT, Where::at(place));
  if (pred) check_access(src, bytes, READ, Where::at(place));
  memset(dst, 0xff, bytes);
  static_cast<Fiber*>(thread)->open.push_back({dst, src, bytes, pred, place});
}
void cp_async_commit() {
  Fiber* f = static_cast<Fiber*>(thread);
  f->groups.push_back(std::move(f->open));
  f->open.clear();
}
void cp_async_wait(unsigned newest) {
  Fiber* f = static_cast<Fiber*>(thread);
  maybe_yield(8);
  while (f->groups.size() > newest) {
    for (const Copy& c : f->groups.front()) {
      if (c.pred) memcpy(c.dst, c.src, c.bytes);
      else memset(c.dst, 0, c.bytes);
      check_access(c.dst, c.bytes, WRITE, Where::at(c.place));
    }
    f->groups.erase(f->groups.begin());
  }
}

// ---- matrices ----
struct LdmatrixArgument {
  uint32_t* r;
  const unsigned char* row;
  bool trans;
};
static void execute_ldmatrix(void** lanes, uint32_t) {
  for (int i = 0; i < 4; i++) {
    uint16_t m[8][8];
    for (int r = 0; r < 8; r++) memcpy(m[r], static_cast<LdmatrixArgument*>(lanes[i * 8 + r])->row, 16);
    const bool trans = static_cast<LdmatrixArgument*>(lanes[0])->trans;
    for (int l = 0; l < 32; l++) {
      const int r = l >> 2, c = (l & 3) * 2;
      const uint16_t low = trans ? m[c][r] : m[r][c], high = trans ? m[c + 1][r] : m[r][c + 1];
      static_cast<LdmatrixArgument*>(lanes[l])->r[i] = low | static_cast<uint32_t>(high) << 16;
    }
  }
}
void ldmatrix_x4(uint32_t* r, const void* row, bool trans, Place place) {
  maybe_yield(8);
  if (!in_shared(row, 16) || reinterpret_cast<uintptr_t>(row) % 16) {
    report(in_shared(row, 16) ? "ldmatrix misaligned" : "ldmatrix outside shared memory", Where::at(place),
           "offset %td of %u", static_cast<const unsigned char*>(row) - machine->shared, machine->shared_bytes);
    abandon_block();
  }
  check_access(row, 16, READ, Where::at(place));
  LdmatrixArgument a{r, static_cast<const unsigned char*>(row), trans};
  warp_collective(~0u, LDMATRIX, &a, execute_ldmatrix, place);
}

struct MmaArgument {
  float (*widen)(uint16_t);
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};
static void execute_mma(void** lanes, uint32_t) {
  alignas(32) float A[16][16], B[16][8], C[16][8];
  const auto widen = static_cast<MmaArgument*>(lanes[0])->widen;
  for (int l = 0; l < 32; l++) {
    const auto& m = *static_cast<MmaArgument*>(lanes[l]);
    const int g = l >> 2, t = (l & 3) * 2;
    for (int i = 0; i < 4; i++) {
      const int r = g + (i & 1) * 8, k = t + (i >> 1) * 8;
      A[r][k] = widen(static_cast<uint16_t>(m.a[i]));
      A[r][k + 1] = widen(static_cast<uint16_t>(m.a[i] >> 16));
    }
    for (int i = 0; i < 2; i++) {
      B[t + i * 8][g] = widen(static_cast<uint16_t>(m.b[i]));
      B[t + i * 8 + 1][g] = widen(static_cast<uint16_t>(m.b[i] >> 16));
    }
    for (int i = 0; i < 4; i++) C[g + (i >> 1) * 8][t + (i & 1)] = m.d[i];
  }
  typedef float Row __attribute__((vector_size(32)));
  for (int i = 0; i < 16; i++) {
    Row sum = *reinterpret_cast<Row*>(C[i]);
    for (int k = 0; k < 16; k++) sum += A[i][k] * *reinterpret_cast<Row*>(B[k]);
    *reinterpret_cast<Row*>(C[i]) = sum;
  }
  for (int l = 0; l < 32; l++) {
    auto& m = *static_cast<MmaArgument*>(lanes[l]);
    const int g = l >> 2, t = (l & 3) * 2;
    for (int i = 0; i < 4; i++) m.d[i] = C[g + (i >> 1) * 8][t + (i & 1)];
  }
}
void mma_m16n8k16(float (*widen)(uint16_t), float* d, const uint32_t* a, uint32_t b0, uint32_t b1, Place place) {
  MmaArgument m{widen, d, a, {b0, b1}};
  warp_collective(~0u, MMA, &m, execute_mma, place);
}

// ---- atomics ----
// Fibers of a block share a system thread and a launch runs its blocks in turn, so plain code is indivisible here.
uint32_t atomic32(uint32_t* p, uint32_t value, Atomic operation, bool is_signed, Place place) {
  maybe_yield(16);
  check_access(p, 4, ATOMIC_ACCESS, Where::at(place));
  const uint32_t old = *p;
  const auto less = [&](uint32_t a, uint32_t b) {
    return is_signed ? static_cast<int32_t>(a) < static_cast<int32_t>(b) : a < b;
  };
  switch (operation) {
    case ATOMIC_ADD: *p = old + value; break;
    case ATOMIC_MAX: *p = less(old, value) ? value : old; break;
    case ATOMIC_MIN: *p = less(value, old) ? value : old; break;
    case ATOMIC_OR: *p = old | value; break;
    case ATOMIC_EXCHANGE: *p = value; break;
  }
  return old;
}
uint64_t atomic64(uint64_t* p, uint64_t value, Atomic operation, Place place) {
  maybe_yield(16);
  check_access(p, 8, ATOMIC_ACCESS, Where::at(place));
  const uint64_t old = *p;
  switch (operation) {
    case ATOMIC_ADD: *p = old + value; break;
    case ATOMIC_MAX: *p = old < value ? value : old; break;
    case ATOMIC_MIN: *p = value < old ? value : old; break;
    case ATOMIC_OR: *p = old | value; break;
    case ATOMIC_EXCHANGE: *p = value; break;
  }
  return old;
}
float atomic_add_float(float* p, float value, Place place) {
  maybe_yield(16);
  check_access(p, 4, ATOMIC_ACCESS, Where::at(place));
  const float old = *p;
  *p = old + value;
  return old;
}
uint32_t atomic_cas(uint32_t* p, uint32_t compare, uint32_t value, Place place) {
  maybe_yield(16);
  check_access(p, 4, ATOMIC_ACCESS, Where::at(place));
  const uint32_t old = *p;
  if (old == compare) *p = value;
  return old;
}

}  // namespace simt

// The host side of kernel files: CUDA's words, types and intrinsics, on the SIMT machine of this folder.
// docs/simt.md says what it does and what it cannot see.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
// Always: of functions left out of line the linker keeps one of a name for all files, be it a mutant's or another stem's.
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __restrict__ __restrict

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
inline float2 make_float2(float a, float b) { return {a, b}; }
inline float4 make_float4(float a, float b, float c, float d) { return {a, b, c, d}; }
inline uint2 make_uint2(unsigned a, unsigned b) { return {a, b}; }
inline uint4 make_uint4(unsigned a, unsigned b, unsigned c, unsigned d) { return {a, b, c, d}; }

// ---- 16-bit formats: bits, and conversions that round to nearest even ----
struct __nv_bfloat16 { uint16_t bits; };
struct __half { uint16_t bits; };
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
struct alignas(4) __half2 { __half x, y; };

namespace simt {
float bf16_to_float(uint16_t bits);
float f16_to_float(uint16_t bits);
uint16_t float_to_bf16(float x);
uint16_t float_to_f16(float x);
}  // namespace simt

inline float __bfloat162float(__nv_bfloat16 h) { return simt::bf16_to_float(h.bits); }
inline __nv_bfloat16 __float2bfloat16(float f) { return {simt::float_to_bf16(f)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {__float2bfloat16(a), __float2bfloat16(b)}; }
inline float __half2float(__half h) { return simt::f16_to_float(h.bits); }
inline __half __float2half(float f) { return {simt::float_to_f16(f)}; }
inline __half2 __floats2half2_rn(float a, float b) { return {__float2half(a), __float2half(b)}; }

namespace simt {

// Where in the source something happens: a default argument of what kernels call.
struct Place {
  const char* file;
  int line;
};
#define SIMT_HERE simt::Place here = {__builtin_FILE(), __builtin_LINE()}

// Threads of a block never leave the system thread that runs the block.
dim3 thread_index();
dim3 block_index();
dim3 block_dim();
dim3 grid_dim();
int lane();
unsigned char* shared_memory();

// ---- warp and block ----
enum Collective { SYNCWARP, SHUFFLE, BALLOT, REDUCE, LDMATRIX, MMA };
// Runs once, by the last lane to arrive; `lanes[l]` is the argument of lane l.
typedef void (*Execute)(void** lanes, uint32_t mask);
void warp_collective(uint32_t mask, Collective, void* argument, Execute, Place);
void block_barrier(int id, int threads, Place);  // threads < 0: all

uint64_t shuffle_bits(uint32_t mask, uint64_t value, int source, Place);
template <class T> T shuffle(uint32_t mask, T value, int source, Place place) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "registers of 32 or 64 bits are shuffled");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = shuffle_bits(mask, bits, source, place);
  memcpy(&value, &bits, sizeof(T));
  return value;
}
enum Reduction { ADD, MAX, MIN, OR, AND };
uint32_t ballot(uint32_t mask, bool predicate, Place);
uint32_t reduce(uint32_t mask, uint32_t value, Reduction, Place);

// ---- asynchronous copies, matrices ----
void cp_async(void* dst, const void* src, unsigned bytes, bool pred, Place);
void cp_async_commit();
void cp_async_wait(unsigned newest);
void ldmatrix_x4(uint32_t* r, const void* row, bool trans, Place);
void mma_m16n8k16(float (*widen)(uint16_t), float* d, const uint32_t* a, uint32_t b0, uint32_t b1, Place);
float exp2_approx(float);

// ---- atomics: indivisible, unordered; seen by the checks ----
enum Atomic { ATOMIC_ADD, ATOMIC_MAX, ATOMIC_MIN, ATOMIC_OR, ATOMIC_EXCHANGE };
uint32_t atomic32(uint32_t* p, uint32_t value, Atomic, bool is_signed, Place);
uint64_t atomic64(uint64_t* p, uint64_t value, Atomic, Place);
float atomic_add_float(float* p, float value, Place);
uint32_t atomic_cas(uint32_t* p, uint32_t compare, uint32_t value, Place);

// ---- the table of kernels ----
struct Registration {
  const char* name;
  const char* file;
  unsigned threads;                       // of __launch_bounds__
  unsigned parameters;
  const uint32_t* sizes;                  // bytes of each parameter
  void (*call)(void (*)(), void** parameters);
  void (*entry)();
  const Registration* next;
  template <class... A> Registration(const char* name, const char* file, unsigned threads, void (*kernel)(A...))
      : name(name), file(file), threads(threads), parameters(sizeof...(A)), sizes(Sizes<A...>::value),
        call(Caller<A...>::call), entry(reinterpret_cast<void (*)()>(kernel)) {
    add();
  }

 private:
  template <class... A> struct Sizes {
    static constexpr uint32_t value[sizeof...(A) + 1] = {sizeof(A)..., 0};
  };
  template <class... A> struct Caller {
    template <size_t... I>
    __attribute__((no_sanitize_thread)) static void spread(void (*kernel)(A...), void** p, std::index_sequence<I...>) {
      kernel(*static_cast<std::remove_reference_t<A>*>(p[I])...);
    }
    __attribute__((no_sanitize_thread)) static void call(void (*kernel)(), void** p) {
      spread(reinterpret_cast<void (*)(A...)>(kernel), p, std::index_sequence_for<A...>{});
    }
  };
  void add();
};

}  // namespace simt

#define threadIdx (simt::thread_index())
#define blockIdx (simt::block_index())
#define blockDim (simt::block_dim())
#define gridDim (simt::grid_dim())

inline void __syncthreads(SIMT_HERE) { simt::block_barrier(0, -1, here); }
inline void __syncwarp(uint32_t mask = ~0u, SIMT_HERE) {
  simt::warp_collective(mask, simt::SYNCWARP, nullptr, nullptr, here);
}
template <class T> T __shfl_sync(uint32_t mask, T v, int source, int width = 32, SIMT_HERE) {
  return simt::shuffle(mask, v, (simt::lane() & ~(width - 1)) | (source & (width - 1)), here);
}
template <class T> T __shfl_xor_sync(uint32_t mask, T v, int bits, int width = 32, SIMT_HERE) {
  const int lane = simt::lane(), other = lane ^ bits;
  return simt::shuffle(mask, v, (other & ~(width - 1)) > (lane & ~(width - 1)) ? lane : other, here);
}
template <class T> T __shfl_down_sync(uint32_t mask, T v, int by, int width = 32, SIMT_HERE) {
  const int lane = simt::lane();
  return simt::shuffle(mask, v, (lane & (width - 1)) + by < width ? lane + by : lane, here);
}
template <class T> T __shfl_up_sync(uint32_t mask, T v, int by, int width = 32, SIMT_HERE) {
  const int lane = simt::lane();
  return simt::shuffle(mask, v, (lane & (width - 1)) - by >= 0 ? lane - by : lane, here);
}
inline uint32_t __ballot_sync(uint32_t mask, int p, SIMT_HERE) { return simt::ballot(mask, p != 0, here); }
inline int __any_sync(uint32_t mask, int p, SIMT_HERE) { return simt::ballot(mask, p != 0, here) != 0; }
inline int __all_sync(uint32_t mask, int p, SIMT_HERE) { return simt::ballot(mask, p == 0, here) == 0; }
inline uint32_t __reduce_add_sync(uint32_t mask, uint32_t v, SIMT_HERE) { return simt::reduce(mask, v, simt::ADD, here); }
inline uint32_t __reduce_max_sync(uint32_t mask, uint32_t v, SIMT_HERE) { return simt::reduce(mask, v, simt::MAX, here); }
inline uint32_t __reduce_min_sync(uint32_t mask, uint32_t v, SIMT_HERE) { return simt::reduce(mask, v, simt::MIN, here); }
inline uint32_t __reduce_or_sync(uint32_t mask, uint32_t v, SIMT_HERE) { return simt::reduce(mask, v, simt::OR, here); }
inline uint32_t __reduce_and_sync(uint32_t mask, uint32_t v, SIMT_HERE) { return simt::reduce(mask, v, simt::AND, here); }

inline unsigned atomicAdd(unsigned* p, unsigned v, SIMT_HERE) { return simt::atomic32(p, v, simt::ATOMIC_ADD, false, here); }
inline int atomicAdd(int* p, int v, SIMT_HERE) {
  return static_cast<int>(simt::atomic32(reinterpret_cast<uint32_t*>(p), static_cast<uint32_t>(v), simt::ATOMIC_ADD, true, here));
}
inline unsigned long long atomicAdd(unsigned long long* p, unsigned long long v, SIMT_HERE) {
  return simt::atomic64(reinterpret_cast<uint64_t*>(p), v, simt::ATOMIC_ADD, here);
}
inline float atomicAdd(float* p, float v, SIMT_HERE) { return simt::atomic_add_float(p, v, here); }
inline unsigned atomicMax(unsigned* p, unsigned v, SIMT_HERE) { return simt::atomic32(p, v, simt::ATOMIC_MAX, false, here); }
inline unsigned atomicMin(unsigned* p, unsigned v, SIMT_HERE) { return simt::atomic32(p, v, simt::ATOMIC_MIN, false, here); }
inline unsigned long long atomicMax(unsigned long long* p, unsigned long long v, SIMT_HERE) {
  return simt::atomic64(reinterpret_cast<uint64_t*>(p), v, simt::ATOMIC_MAX, here);
}
inline unsigned long long atomicMin(unsigned long long* p, unsigned long long v, SIMT_HERE) {
  return simt::atomic64(reinterpret_cast<uint64_t*>(p), v, simt::ATOMIC_MIN, here);
}
inline unsigned atomicOr(unsigned* p, unsigned v, SIMT_HERE) { return simt::atomic32(p, v, simt::ATOMIC_OR, false, here); }
inline unsigned atomicExch(unsigned* p, unsigned v, SIMT_HERE) { return simt::atomic32(p, v, simt::ATOMIC_EXCHANGE, false, here); }
inline unsigned atomicCAS(unsigned* p, unsigned compare, unsigned v, SIMT_HERE) { return simt::atomic_cas(p, compare, v, here); }

// ---- arithmetic ----
// Exactly rounded and never fused with a neighbour, as on the device. This code is compiled without contraction.
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
// Within 2 units in the last place on the device, and 0 by divisors above 2^126.
inline float __fdividef(float a, float b) { return std::fabs(b) > 0x1p126f && std::isfinite(b) ? 0.0f * a : a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __double2float_rn(double a) { return static_cast<float>(a); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
using std::fabs;
using std::isfinite;
using std::isnan;
template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }

inline uint32_t __float_as_uint(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}
inline float __uint_as_float(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
inline int __float_as_int(float f) { return static_cast<int>(__float_as_uint(f)); }
inline float __int_as_float(int i) { return __uint_as_float(static_cast<uint32_t>(i)); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32); }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t by) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (by & 31));
}
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
template <class T> T __ldg(const T* p) { return *p; }

// Number formats of activations (float, bf16, f16) and 128-bit accesses.
#pragma once

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bf16 x) { return __bfloat162float(x); }
DEVICE float to_float(f16 x) { return __half2float(x); }

// Rounds to nearest even.
template <class T> DEVICE T from_float(float x);
template <> DEVICE float from_float<float>(float x) { return x; }
template <> DEVICE bf16 from_float<bf16>(float x) { return __float2bfloat16(x); }
template <> DEVICE f16 from_float<f16>(float x) { return __float2half(x); }

// Two 16-bit numbers in one register, `a` in the low half.
template <class T> DEVICE uint32_t pack2(float a, float b);
template <> DEVICE uint32_t pack2<bf16>(float a, float b) {
  __nv_bfloat162 h = __floats2bfloat162_rn(a, b);
  uint32_t u;
  memcpy(&u, &h, 4);
  return u;
}
template <> DEVICE uint32_t pack2<f16>(float a, float b) {
  __half2 h = __floats2half2_rn(a, b);
  uint32_t u;
  memcpy(&u, &h, 4);
  return u;
}

// 16 bytes of numbers.
template <class T> struct alignas(16) Pack {
  static constexpr int N = 16 / sizeof(T);
  T v[N];
  DEVICE float get(int i) const { return to_float(v[i]); }
  DEVICE void set(int i, float x) { v[i] = from_float<T>(x); }
};

template <class T> DEVICE Pack<T> as_pack(uint4 u) {
  Pack<T> p;
  memcpy(&p, &u, 16);
  return p;
}
template <class T> DEVICE uint4 as_uint4(const Pack<T>& p) {
  uint4 u;
  memcpy(&u, &p, 16);
  return u;
}
// `p` is 16-byte aligned.
template <class T> DEVICE Pack<T> load_pack(const T* p) { return as_pack<T>(load_16(p)); }
template <class T> DEVICE Pack<T> load_pack_streaming(const T* p) { return as_pack<T>(load_16_streaming(p)); }
// To global memory.
template <class T> DEVICE void store_pack(T* p, const Pack<T>& x) { store_16_global(p, as_uint4(x)); }

// Whether rows that start at `p` and lie `stride` numbers apart can be read 16 bytes at a time.
template <class T> DEVICE bool packs_fit(const T* p, int64_t stride) {
  return (reinterpret_cast<uintptr_t>(p) | static_cast<uintptr_t>(stride * sizeof(T))) % 16 == 0;
}

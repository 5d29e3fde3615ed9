// Rotary position embedding, in place and fused with the split of q | k | v rows.
//
// Contract. Pair (i, i + head_dim / 2) of a head of row t turns by the angle whose cosine is table[positions[t], i] and whose
// sine is table[positions[t], head_dim / 2 + i]; table [limit, head_dim] f32; head_dim even. A position >= limit makes
// the turned heads of its row NaN. x, qkv, q, k, v of one format T; arithmetic in f32, rounded once.
//   rotate:  `heads` heads of x, in place, side by side from x on; rows `stride` apart.
//   back:    the same by the negative angle: the gradient of rotate.
//   qkv:     qkv [rows, (heads + 2 kv_heads) head_dim] as q | k | v, rows `stride` apart. q = [rows, heads head_dim] dense,
//            turned; keys, turned, and values, copied, go to row rows_out[t] (t where null) of k and of v, which begin at
//            number k_at of k and v_at of v (of k where v is null), rows k_stride and v_stride apart; a row >= limit_out is
//            left out. With table null nothing is turned. Of a row named twice one or the other or a mixture is kept.
// q, k, v are =. No scratch, no shared memory. grid = (rows, some): the threads of all blocks of a row share its pairs of
// 16-byte pieces (i of the first half, i of the second), or of single numbers where pieces do not begin on 16 bytes.
// Su et al., "RoFormer: enhanced transformer with rotary position embedding", 2021; half-split layout of Hugging Face.
#include "common/kernel.cuh"

KERNEL_FILE(rope)

constexpr int ROPE_THREADS = 128;

// x, y <- x cos - y sin, y cos + x sin; rounded as the CPU does.
DEVICE void turn(float& x, float& y, float c, float s) {
  const float a = __fsub_rn(__fmul_rn(x, c), __fmul_rn(y, s));
  y = __fmaf_rn(y, c, __fmul_rn(x, s));
  x = a;
}

// N numbers of both halves of a head, from number i of each on: loaded from `from`, turned if `angles` (cosines, then
// sines) or, with BACK, turned back, made NaN if !known, stored to `to`. `from` and `to` may be the same.
template <class T, int N, bool BACK = false>
DEVICE void turn_pair(const T* from, T* to, int i, int half, const float* __restrict__ angles, bool known) {
  if constexpr (N == 1) {
    float x = to_float(from[i]), y = to_float(from[half + i]);
    if (angles) {
      if (known)
        turn(x, y, angles[i], BACK ? -angles[half + i] : angles[half + i]);
      else
        x = y = __uint_as_float(0x7fffffffu);
    }
    to[i] = from_float<T>(x);
    to[half + i] = from_float<T>(y);
  } else {
    Pack<T> a = load_pack(from + i), b = load_pack(from + half + i);
    if (angles) {
#pragma unroll
      for (int j = 0; j < N; j += 4) {
        float4 c, s;
        if (known) {
          c = *reinterpret_cast<const float4*>(angles + i + j);
          s = *reinterpret_cast<const float4*>(angles + half + i + j);
        } else {
          c = s = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
        const float cosines[4] = {c.x, c.y, c.z, c.w}, sines[4] = {s.x, s.y, s.z, s.w};
#pragma unroll
        for (int l = 0; l < 4; l++) {
          float x = a.get(j + l), y = b.get(j + l);
          turn(x, y, cosines[l], BACK ? -sines[l] : sines[l]);
          a.set(j + l, known ? x : __uint_as_float(0x7fffffffu));
          b.set(j + l, known ? y : __uint_as_float(0x7fffffffu));
        }
      }
    }
    store_pack(to + i, a);
    store_pack(to + half + i, b);
  }
}

template <class T, int N, bool BACK>
DEVICE void rotate_row(T* x, const float* __restrict__ angles, int heads, int head_dim, bool known) {
  const int half = head_dim / 2, pieces = half / N;
  for (int item = blockIdx.y * ROPE_THREADS + threadIdx.x; item < heads * pieces; item += gridDim.y * ROPE_THREADS) {
    T* head = x + static_cast<int64_t>(item / pieces) * head_dim;
    turn_pair<T, N, BACK>(head, head, item % pieces * N, half, angles, known);
  }
}

template <bool BACK, class T>
DEVICE void rotate(T* x, const uint32_t* __restrict__ positions, const float* __restrict__ table, int stride, int heads,
                   int head_dim, uint32_t limit) {
  constexpr int N = Pack<T>::N;
  const uint32_t position = positions[blockIdx.x];
  const bool known = position < limit, packs = packs_fit(x, stride) && head_dim % (2 * N) == 0 && packs_fit(table, 0);
  const float* angles = known ? table + static_cast<int64_t>(position) * head_dim : table;
  x += static_cast<int64_t>(blockIdx.x) * stride;
  if (packs)
    rotate_row<T, N, BACK>(x, angles, heads, head_dim, known);
  else
    rotate_row<T, 1, BACK>(x, angles, heads, head_dim, known);
}

// One row: its heads of q, k and v one behind the other. k and v are null where the row is to be left out.
template <class T, int N>
DEVICE void split_row(const T* __restrict__ qkv, const float* __restrict__ angles, bool known, T* q, T* k, T* v, int heads,
                      int kv_heads, int head_dim) {
  const int half = head_dim / 2, pieces = half / N, items = (heads + 2 * kv_heads) * pieces;
  for (int item = blockIdx.y * ROPE_THREADS + threadIdx.x; item < items; item += gridDim.y * ROPE_THREADS) {
    const int head = item / pieces, key = head - heads, value = key - kv_heads;
    T* to = key < 0 ? q + head * head_dim : value < 0 ? k : v;
    if (!to) continue;
    if (key >= 0) to += (value < 0 ? key : value) * head_dim;
    turn_pair<T, N>(qkv + head * head_dim, to, item % pieces * N, half, value < 0 ? angles : nullptr, known);
  }
}

template <class T>
DEVICE void split(const T* __restrict__ qkv, const uint32_t* __restrict__ positions, const float* __restrict__ table,
                  const uint32_t* __restrict__ rows_out, T* q, T* k, T* v, int stride, int heads, int kv_heads,
                  int head_dim, uint64_t k_at, uint64_t v_at, int k_stride, int v_stride, uint32_t limit,
                  uint32_t limit_out) {
  constexpr int N = Pack<T>::N;
  v = (v ? v : k) + v_at;
  k += k_at;
  const int64_t t = blockIdx.x;
  const bool packs = packs_fit(qkv, stride) && packs_fit(q, 0) && packs_fit(k, k_stride) && packs_fit(v, v_stride) &&
                     packs_fit(table, 0) && head_dim % (2 * N) == 0;
  const uint32_t position = table ? positions[t] : 0, row = rows_out ? rows_out[t] : static_cast<uint32_t>(t);
  const bool known = position < limit;
  const float* angles = known ? table + static_cast<int64_t>(position) * head_dim : table;
  if (!table) angles = nullptr;
  qkv += t * stride;
  q += t * heads * head_dim;
  k = row < limit_out ? k + static_cast<int64_t>(row) * k_stride : nullptr;
  v = row < limit_out ? v + static_cast<int64_t>(row) * v_stride : nullptr;
  if (packs)
    split_row<T, N>(qkv, angles, known, q, k, v, heads, kv_heads, head_dim);
  else
    split_row<T, 1>(qkv, angles, known, q, k, v, heads, kv_heads, head_dim);
}

#define ROPE_KERNELS(T, SUFFIX)                                                                                       \
  KERNEL(ROPE_THREADS, 4, rope_rotate_##SUFFIX,                                                                       \
         (T* x, const uint32_t* positions, const float* table, int stride, int heads, int head_dim, uint32_t limit)) { \
    rotate<false>(x, positions, table, stride, heads, head_dim, limit);                                               \
  }                                                                                                                   \
  KERNEL(ROPE_THREADS, 4, rope_back_##SUFFIX,                                                                         \
         (T* x, const uint32_t* positions, const float* table, int stride, int heads, int head_dim, uint32_t limit)) { \
    rotate<true>(x, positions, table, stride, heads, head_dim, limit);                                                \
  }                                                                                                                   \
  KERNEL(ROPE_THREADS, 4, rope_qkv_##SUFFIX,                                                                          \
         (const T* qkv, const uint32_t* positions, const float* table, const uint32_t* rows_out, T* q, T* k, T* v,    \
          int stride, int heads, int kv_heads, int head_dim, uint64_t k_at, uint64_t v_at, int k_stride,              \
          int v_stride, uint32_t limit, uint32_t limit_out)) {                                                        \
    split(qkv, positions, table, rows_out, q, k, v, stride, heads, kv_heads, head_dim, k_at, v_at, k_stride,          \
          v_stride, limit, limit_out);                                                                                \
  }
ROPE_KERNELS(float, f32)
ROPE_KERNELS(f16, f16)
ROPE_KERNELS(bf16, bf16)

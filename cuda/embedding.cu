// Rows copied from one place to another: token embeddings, gather and scatter.
//
// Contract. All numbers of one format T; ids and row numbers u32; width >= 1; every row pointer is that of row 0.
//   embed:   out[t, :] = table[ids[t], :] (+ positions[position_ids[t], :], rounded once), out [rows, width] dense,
//            table [vocab, width], positions [limit, width] or null. An id >= vocab or a position >= limit makes the row NaN.
//   gather:  dst[r, :] = src[rows[r], :], dst [count, width] dense, rows of src `stride` apart. A row >= limit: NaN.
//   scatter: dst[rows[r], :] = src[r, :], rows of either `stride` apart. A row >= limit is left out. Of a row named twice
//            one or the other or a mixture is kept: the caller names none twice.
// Everything is =. No scratch, no shared memory. grid = (rows, ceil(width / (128 packs))): a thread 16 bytes of a row,
// number by number where rows do not begin on 16 bytes and at a row's end.
#include "common/kernel.cuh"

KERNEL_FILE(embedding)

constexpr int EMBEDDING_THREADS = 128;

// This thread's numbers, first to end, of a row of `width`; none if first >= end. N numbers a thread.
template <int N> DEVICE int first_number() { return (blockIdx.y * EMBEDDING_THREADS + threadIdx.x) * N; }

template <class T> DEVICE T not_a_number() { return from_float<T>(__uint_as_float(0x7fffffffu)); }

// dst[first ..] = src[first ..] or, with src null, NaN. Up to N numbers, to the row's end.
template <class T> DEVICE void copy_numbers(T* dst, const T* src, int first, int width, bool packs) {
  constexpr int N = Pack<T>::N;
  if (packs && first + N <= width) {
    Pack<T> x;
    if (src) {
      x = load_pack(src + first);
    } else {
#pragma unroll
      for (int j = 0; j < N; j++) x.v[j] = not_a_number<T>();
    }
    store_pack(dst + first, x);
    return;
  }
  const int end = min(first + N, width);
#pragma unroll 1
  for (int i = first; i < end; i++) dst[i] = src ? src[i] : not_a_number<T>();
}

template <class T>
DEVICE void embed_row(const T* __restrict__ table, const uint32_t* __restrict__ ids, const T* __restrict__ positions,
                      const uint32_t* __restrict__ position_ids, T* __restrict__ out, int width, uint32_t vocab,
                      uint32_t limit) {
  constexpr int N = Pack<T>::N;
  const int first = first_number<N>();
  if (first >= width) return;
  const int64_t t = blockIdx.x;
  const uint32_t id = ids[t], position = positions ? position_ids[t] : 0;
  out += t * width;
  const bool known = id < vocab && (!positions || position < limit);
  const T* from = known ? table + static_cast<int64_t>(id) * width : nullptr;
  const bool packs = packs_fit(table, width) && packs_fit(positions, 0) && packs_fit(out, 0);
  if (!known || !positions) return copy_numbers(out, from, first, width, packs);
  positions += static_cast<int64_t>(position) * width;
  if (packs && first + N <= width) {
    Pack<T> x = load_pack(from + first);
    const Pack<T> p = load_pack(positions + first);
#pragma unroll
    for (int j = 0; j < N; j++) x.set(j, x.get(j) + p.get(j));
    store_pack(out + first, x);
    return;
  }
  const int end = min(first + N, width);
#pragma unroll 1
  for (int i = first; i < end; i++) out[i] = from_float<T>(to_float(from[i]) + to_float(positions[i]));
}

template <class T>
DEVICE void gather_row(const T* __restrict__ src, const uint32_t* __restrict__ rows, T* __restrict__ dst, int width,
                       int stride, uint32_t limit) {
  const int first = first_number<Pack<T>::N>();
  if (first >= width) return;
  const int64_t r = blockIdx.x;
  const uint32_t row = rows[r];
  const T* from = row < limit ? src + static_cast<int64_t>(row) * stride : nullptr;
  copy_numbers(dst + r * width, from, first, width, packs_fit(src, stride) && packs_fit(dst, width));
}

template <class T>
DEVICE void scatter_row(const T* __restrict__ src, const uint32_t* __restrict__ rows, T* __restrict__ dst, int width,
                        int src_stride, int dst_stride, uint32_t limit) {
  const int first = first_number<Pack<T>::N>();
  if (first >= width) return;
  const int64_t r = blockIdx.x;
  const uint32_t row = rows[r];
  if (row >= limit) return;
  copy_numbers(dst + static_cast<int64_t>(row) * dst_stride, src + r * src_stride, first, width,
               packs_fit(src, src_stride) && packs_fit(dst, dst_stride));
}

#define EMBEDDING_KERNELS(T, SUFFIX)                                                                                  \
  KERNEL(EMBEDDING_THREADS, 8, embedding_embed_##SUFFIX,                                                              \
         (const T* table, const uint32_t* ids, const T* positions, const uint32_t* position_ids, T* out, int width,   \
          uint32_t vocab, uint32_t limit)) {                                                                          \
    embed_row(table, ids, positions, position_ids, out, width, vocab, limit);                                         \
  }                                                                                                                   \
  KERNEL(EMBEDDING_THREADS, 8, embedding_gather_##SUFFIX,                                                             \
         (const T* src, const uint32_t* rows, T* dst, int width, int stride, uint32_t limit)) {                       \
    gather_row(src, rows, dst, width, stride, limit);                                                                 \
  }                                                                                                                   \
  KERNEL(EMBEDDING_THREADS, 8, embedding_scatter_##SUFFIX,                                                            \
         (const T* src, const uint32_t* rows, T* dst, int width, int src_stride, int dst_stride, uint32_t limit)) {   \
    scatter_row(src, rows, dst, width, src_stride, dst_stride, limit);                                                \
  }
EMBEDDING_KERNELS(float, f32)
EMBEDDING_KERNELS(f16, f16)
EMBEDDING_KERNELS(bf16, bf16)

// Rows copied from one place to another: token embeddings, gather and scatter; and the gradient of embeddings.
//
// Contract. All numbers of one format T; ids and row numbers u32; width >= 1; every row pointer is that of row 0.
//   embed:   out[t, :] = table[ids[t], :] (+ positions[position_ids[t], :], rounded once), out [rows, width] dense,
//            table [vocab, width], positions [limit, width] or null. An id >= vocab or a position >= limit makes the row NaN.
//   gather:  dst[r, :] = src[rows[r], :], dst [count, width] dense, rows of src `stride` apart. A row >= limit: NaN.
//   scatter: dst[rows[r], :] = src[r, :], rows of either `stride` apart. A row >= limit is left out. Of a row named twice
//            one or the other or a mixture is kept: the caller names none twice.
// Everything is =. No scratch, no shared memory. grid = (rows, ceil(width / (128 packs))): a thread 16 bytes of a row,
// number by number where rows do not begin on 16 bytes and at a row's end.
//
//   backward: d_table[i, :] += sum of dx[t, :] over the rows t with ids[t] = i; dx [rows, width] of format T, dense,
//             d_table [limit, width] f32. An id >= limit counts nowhere.
// += of one f32 sum. No sort, no scratch, no atomics: block (t, stretch of 32 packs of columns) gives way where an earlier
// row has row t's id; the first row's block adds up all rows of its id. Their numbers go to a list in shared memory in rising
// order, 1024 ids at a time; the k-th of a list is added by warp k % 8, each warp in rising order, and at the end the warps'
// sums in rising order. Ids are read 4 at a time where they begin on 16 bytes.
// grid = (rows, ceil(width / (32 packs))). Dynamic shared memory: 16 + 1024 words, and 8 times 32 packs of floats, as many
// floats as numbers.
#include "common/reduce.cuh"

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

constexpr int GATHER_THREADS = 256, GATHER_WARPS = GATHER_THREADS / 32, GATHER_IDS = 4 * GATHER_THREADS;

// Ids 4 i .. 4 i + 4 of `rows`; `none` beyond their end.
DEVICE uint4 four_ids(const uint32_t* __restrict__ ids, int i, int rows, uint32_t none, bool packs) {
  if (packs && 4 * i + 4 <= rows) return load_16(ids + 4 * i);
  uint4 four;
  four.x = 4 * i < rows ? ids[4 * i] : none;
  four.y = 4 * i + 1 < rows ? ids[4 * i + 1] : none;
  four.z = 4 * i + 2 < rows ? ids[4 * i + 2] : none;
  four.w = 4 * i + 3 < rows ? ids[4 * i + 3] : none;
  return four;
}

// Bit j: id j of the four is `id`, and its row one of first .. end.
DEVICE uint32_t matches(uint4 four, uint32_t id, int row, int first, int end) {
  const uint32_t bits = (four.x == id ? 1u : 0u) | (four.y == id ? 2u : 0u) | (four.z == id ? 4u : 0u) |
                        (four.w == id ? 8u : 0u);
  const uint32_t below = row + 4 <= end ? 15u : row < end ? (1u << (end - row)) - 1u : 0u;
  const uint32_t above = row >= first ? 15u : row + 4 > first ? 15u << (first - row) : 0u;
  return bits & below & above;
}

template <class T>
DEVICE void embed_sums(const T* __restrict__ dx, const uint32_t* __restrict__ ids, float* __restrict__ d_table, int rows,
                       int width, uint32_t limit) {
  DYN_SMEM(uint32_t, shared);
  constexpr int N = Pack<T>::N, WIDTH = 32 * N, AHEAD = 8;
  uint32_t *counts = shared, *list = shared + 2 * GATHER_WARPS;
  float* sums = reinterpret_cast<float*>(list + GATHER_IDS);
  const int t = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t id = ids[t];
  if (id >= limit) return;
  const bool four = packs_fit(ids, 0);

  // Counts of the warps' matches: written by turns to two places, so that one barrier a round is enough.
  int turn = 0;
  const auto count_all = [&](uint32_t mine, uint32_t& before) {
    uint32_t* here = counts + turn * GATHER_WARPS;
    turn ^= 1;
    const uint32_t own = __reduce_add_sync(WHOLE_WARP, mine);
    if (lane == 0) here[warp] = own;
    __syncthreads();
    uint32_t total = 0;
    before = 0;
#pragma unroll
    for (int w = 0; w < GATHER_WARPS; w++) {
      const uint32_t other = here[w];
      if (w < warp) before += other;
      total += other;
    }
    return total;
  };

  // Whether an earlier row has the id: from row t's own ids backwards.
  uint32_t before;
  const int own_round = t / GATHER_IDS;
  uint4 next = four_ids(ids, own_round * GATHER_THREADS + threadIdx.x, rows, ~id, four);
#pragma unroll 1
  for (int round = own_round; round >= 0; round--) {
    const uint4 now = next;
    const int at = round * GATHER_THREADS + threadIdx.x;
    if (round > 0) next = four_ids(ids, at - GATHER_THREADS, rows, ~id, four);
    if (count_all(__popc(matches(now, id, 4 * at, 0, t)), before) > 0) return;
  }

  const int column = blockIdx.y * WIDTH, first = column + lane * N;
  const bool packs = packs_fit(dx, width);
  float sum[N];
#pragma unroll
  for (int j = 0; j < N; j++) sum[j] = 0.0f;
  const int rounds = (rows + GATHER_IDS - 1) / GATHER_IDS;
  next = four_ids(ids, own_round * GATHER_THREADS + threadIdx.x, rows, ~id, four);
#pragma unroll 1
  for (int round = own_round; round < rounds; round++) {
    const uint4 now = next;
    const int at = round * GATHER_THREADS + threadIdx.x;
    if (round + 1 < rounds) next = four_ids(ids, at + GATHER_THREADS, rows, ~id, four);
    const uint32_t found = matches(now, id, 4 * at, t, rows);
    const int n = static_cast<int>(count_all(__popc(found), before));
    if (n == 0) continue;
    // Behind those of earlier warps and lanes.
    uint32_t place = before, mine = __popc(found), running = mine;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const uint32_t below = __shfl_up_sync(WHOLE_WARP, running, step);
      if (lane >= step) running += below;
    }
    place += running - mine;
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (found >> j & 1u) list[place++] = static_cast<uint32_t>(4 * at + j);
    __syncthreads();
    int k = warp;
    if (packs && first + N <= width) {
      // Some rows on their way at once.
#pragma unroll 1
      for (; k + (AHEAD - 1) * GATHER_WARPS < n; k += AHEAD * GATHER_WARPS) {
        Pack<T> x[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
          x[i] = load_pack_streaming(dx + static_cast<int64_t>(list[k + i * GATHER_WARPS]) * width + first);
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
#pragma unroll
          for (int j = 0; j < N; j++) sum[j] += x[i].get(j);
      }
#pragma unroll 1
      for (; k < n; k += GATHER_WARPS) {
        const Pack<T> x = load_pack_streaming(dx + static_cast<int64_t>(list[k]) * width + first);
#pragma unroll
        for (int j = 0; j < N; j++) sum[j] += x.get(j);
      }
    }
#pragma unroll 1
    for (; k < n; k += GATHER_WARPS) {
      const T* row = dx + static_cast<int64_t>(list[k]) * width;
#pragma unroll
      for (int j = 0; j < N; j++)
        if (first + j < width) sum[j] += to_float(row[first + j]);
    }
    // The next round's counts lie between these reads of the list and its next writes.
  }

  // Number j of every lane side by side.
#pragma unroll
  for (int j = 0; j < N; j++) sums[warp * WIDTH + j * 32 + lane] = sum[j];
  __syncthreads();
  float* out = d_table + static_cast<int64_t>(id) * width + column;
  const bool whole = packs_fit(out, width);
  for (int c = threadIdx.x * 4; c < WIDTH && column + c < width; c += GATHER_THREADS * 4) {
    float total[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int w = 0; w < GATHER_WARPS; w++)
#pragma unroll
      for (int j = 0; j < 4; j++) total[j] += sums[w * WIDTH + (c % N + j) * 32 + c / N];
    if (whole && column + c + 4 <= width) {
      Pack<float> x = load_pack(static_cast<const float*>(out) + c);
#pragma unroll
      for (int j = 0; j < 4; j++) x.v[j] += total[j];
      store_pack(out + c, x);
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (column + c + j < width) out[c + j] += total[j];
    }
  }
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

#define EMBEDDING_BACKWARD_KERNEL(T, SUFFIX)                                                                          \
  KERNEL(GATHER_THREADS, 3, embedding_backward_##SUFFIX,                                                              \
         (const T* dx, const uint32_t* ids, float* d_table, int rows, int width, uint32_t limit)) {                   \
    embed_sums(dx, ids, d_table, rows, width, limit);                                                                 \
  }
EMBEDDING_BACKWARD_KERNEL(float, f32)
EMBEDDING_BACKWARD_KERNEL(f16, f16)
EMBEDDING_BACKWARD_KERNEL(bf16, bf16)

// Which rows of logits are wanted: those that predict masked positions, in order.
//
// Contract. Sequences lie packed: sequence s has tokens starts[s] .. starts[s + 1] (u32, ascending; empty ones are allowed);
// tokens before starts[0] and from starts[sequences] on belong to none and count as not masked. masked [tokens] u8, not 0
// where masked. With shift (src/diffusion/shift.rs) token t is predicted by row t - 1 and the first of a sequence by none;
// without by row t. Of the predicted masked tokens, in ascending order, numbers 0 .. capacity - 1:
//   rows[i] = the row that predicts it, counted through all sequences; positions[i] = its position within its sequence.
// offsets [sequences + 1], all written: how many lie in the sequences before s, those beyond the capacity counted too: a
// sequence has offsets[s + 1] - offsets[s], all have offsets[sequences]. Everything is =. Where starts do not ascend the
// numbers mean nothing, but nothing outside the buffers is touched.
// No global scratch; 512 threads in one block take 8192 tokens at a time, 16 a thread, in order: the count before a token
// is that of earlier tiles (in a register), of earlier warps (in shared memory) and of earlier lanes (a scan by shuffles).
//
// Dynamic shared memory: 16 + 2 * 512 words.
#include "common/reduce.cuh"

KERNEL_FILE(compact)

constexpr int COMPACT_THREADS = 512, COMPACT_WARPS = COMPACT_THREADS / 32, COMPACT_OWN = 16;
constexpr int COMPACT_TILE = COMPACT_THREADS * COMPACT_OWN;

// Bit i: whether token first + i is masked.
DEVICE uint32_t masked_bits(const uint8_t* __restrict__ masked, int first, int tokens) {
  uint32_t bits = 0;
  if (first + COMPACT_OWN <= tokens && packs_fit(masked, 0)) {
    const uint4 u = load_16(masked + first);
    const uint32_t words[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
    for (int i = 0; i < COMPACT_OWN; i++) bits |= (words[i / 4] >> (i % 4 * 8) & 255) != 0 ? 1u << i : 0u;
    return bits;
  }
#pragma unroll 1
  for (int i = 0; i < min(COMPACT_OWN, tokens - first); i++) bits |= masked[first + i] != 0 ? 1u << i : 0u;
  return bits;
}

// The last sequence that begins at token t or before; starts[0] <= t < starts[sequences].
DEVICE int sequence_of(const uint32_t* __restrict__ starts, int sequences, uint32_t t) {
  int low = 0, high = sequences;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (starts[middle] <= t)
      low = middle;
    else
      high = middle;
  }
  return low;
}

KERNEL(COMPACT_THREADS, 1, compact_rows,
       (const uint8_t* masked, const uint32_t* starts, uint32_t* rows, uint32_t* positions, uint32_t* offsets, int tokens,
        int sequences, int shift, int capacity)) {
  DYN_SMEM(uint32_t, totals);                    // of each warp
  uint32_t* before = totals + COMPACT_WARPS;     // [thread]: chosen tokens before its own
  uint32_t* chosen = before + COMPACT_THREADS;   // [thread]: which of its own are chosen
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t begin = starts[0], end = starts[sequences];
  uint32_t running = 0;
  for (int base = 0; base == 0 || base < tokens; base += COMPACT_TILE) {
    const int first = base + threadIdx.x * COMPACT_OWN;
    uint32_t bits = first < tokens ? masked_bits(masked, first, tokens) : 0u;
    int sequence = -1;  // of the first masked token
    for (uint32_t rest = bits, s = 0; rest; rest &= rest - 1) {
      const uint32_t bit = rest & (0u - rest), t = first + __ffs(static_cast<int>(rest)) - 1;
      if (t < begin || t >= end) {
        bits &= ~bit;
        continue;
      }
      if (sequence < 0) s = sequence = sequence_of(starts, sequences, t);
      while (s + 1 < static_cast<uint32_t>(sequences) && starts[s + 1] <= t) s++;
      if (shift && starts[s] == t) bits &= ~bit;
    }

    uint32_t count = __popc(bits), sum = count;
#pragma unroll
    for (int by = 1; by < 32; by *= 2) {
      const uint32_t left = __shfl_up_sync(WHOLE_WARP, sum, by);
      if (lane >= by) sum += left;
    }
    if (lane == 31) totals[warp] = sum;
    __syncthreads();
    uint32_t at = running + sum - count;
    for (int w = 0; w < COMPACT_WARPS; w++) {
      if (w < warp) at += totals[w];
      running += totals[w];
    }
    before[threadIdx.x] = at;
    chosen[threadIdx.x] = bits;
    uint32_t s = sequence < 0 ? 0 : sequence;
    for (uint32_t rest = bits; rest; rest &= rest - 1, at++) {
      const uint32_t t = first + __ffs(static_cast<int>(rest)) - 1;
      while (s + 1 < static_cast<uint32_t>(sequences) && starts[s + 1] <= t) s++;
      if (at >= static_cast<uint32_t>(capacity)) break;
      rows[at] = t - shift;
      positions[at] = t - starts[s];
    }
    __syncthreads();

    // The sequences that begin in this tile; in the last one also those that begin behind it.
    const uint32_t tile_end = base + COMPACT_TILE < tokens ? base + COMPACT_TILE : 0xffffffffu;
    for (int i = threadIdx.x; i <= sequences; i += COMPACT_THREADS) {
      const uint32_t inside = starts[i] - base;
      if (starts[i] < static_cast<uint32_t>(base) || (starts[i] >= tile_end && tile_end != 0xffffffffu)) continue;
      offsets[i] = inside < COMPACT_TILE
                       ? before[inside / COMPACT_OWN] + __popc(chosen[inside / COMPACT_OWN] & ((1u << inside % COMPACT_OWN) - 1))
                       : running;
    }
    __syncthreads();
  }
}

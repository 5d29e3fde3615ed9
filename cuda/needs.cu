// Which rows a denoising step needs, found on the device: the first kernels of a step whose plan was made beforehand.
//
// needs_stage   tape: word 0 is a cursor k, then come steps of `stride` words each. stage [stride] = the words of step k, and the
//               cursor goes on by one; from step `steps` on stage = 0 and the cursor stays. One block.
// needs_select  a block a sequence. The canvas is that of commit.cu (ids, masked [tokens], starts [sequences + 1], all U32); free [tokens]
//               is 1 at positions to be filled. wants [sequences, 8] (WantWord) says what each sequence needs:
//                 KIND 0 nothing; 1 the positions list[LOW .. HIGH]; 2 its masked free positions in LOW .. HIGH; 3 all its free ones
//                 there. Positions are counted in the sequence and ascend. STEP goes into the random numbers.
//                 Needs have numbers FIRST_NEED .. + NEEDS, rows FIRST_ROW .. + ROWS: no more are written.
//               complete [sequences] or null: where it is 1, the sequence needs nothing (as KIND 0, but its rows are written).
//               drawing [sequences, 12] (DrawingWord): how rows are drawn from; by given uniform numbers where its mode is 0.
//               = needs[n]: position on the canvas; slots[n]: the row that predicts it (src/shift.rs), NONE where none does. What a
//                 sequence has room for and does not use becomes NONE.
//               = rows[r]: that row of the canvas; row_positions[r]: its position in the sequence; params [rows, 12]: the words of
//                 unmask.cu. Rows that a sequence has room for and does not use, and those behind the last sequence's up to
//                 row_count, become idle: row 0, whose best token is drawn and goes nowhere.
//               = places [sequences, 4]: where attention finds queries and keys: FIRST_ROW, ROWS (0 where nothing is needed), start, length.
//               += passes [sequences]: 1 where something is needed.
// Whatever words and starts hold, nothing outside of tokens, list_len, uniform_count, need_count and row_count is touched.
// Order by a scan: ballots within a warp, counts of warps in shared memory, 256 positions a round. Shared memory: 64 bytes. No scratch.
#include "common/reduce.cuh"

KERNEL_FILE(needs)

constexpr int NEEDS_THREADS = 256, NEEDS_WARPS = NEEDS_THREADS / 32;
constexpr uint32_t NONE = 0xffffffffu;

enum WantWord { KIND, LOW, HIGH, STEP, FIRST_NEED, NEEDS, FIRST_ROW, ROWS, WANT_WORDS };
enum DrawingWord { TEMPERATURE, TOP_P, TOP_K, SUPPRESS, HOW, SEED_LOW, SEED_HIGH, SEQUENCE, UNIFORMS_AT, DRAWING_WORDS = 12 };
enum Kind { NOTHING, LISTED, MASKED, FREE };
// As unmask.cu reads them.
constexpr int ROW_WORDS = 12;

// The part of first .. first + count that lies below limit.
struct Range {
  uint32_t first, end;
  DEVICE Range(uint32_t first, uint32_t count, uint32_t limit) : first(Min()(first, limit)), end(first) {
    end = count < limit - this->first ? this->first + count : limit;
  }
};

DEVICE void idle_row(uint32_t r, uint32_t* rows, uint32_t* row_positions, uint32_t* params) {
  rows[r] = 0;
  row_positions[r] = 0;
  const uint32_t words[ROW_WORDS] = {0, __float_as_uint(1.0f), 0, NONE, NONE, 0, 0, 0, 0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < ROW_WORDS; i++) params[static_cast<int64_t>(r) * ROW_WORDS + i] = words[i];
}

KERNEL(NEEDS_THREADS, 4, needs_stage, (uint32_t* tape, unsigned steps, unsigned stride, uint32_t* stage)) {
  const uint32_t k = tape[0];
  const uint32_t* words = tape + 1 + static_cast<int64_t>(k < steps ? k : 0) * stride;
  for (uint32_t i = threadIdx.x; i < stride; i += NEEDS_THREADS) stage[i] = k < steps ? words[i] : 0u;
  __syncthreads();
  if (threadIdx.x == 0 && k < steps) tape[0] = k + 1;
}

KERNEL(NEEDS_THREADS, 4, needs_select,
       (const uint32_t* ids, const uint32_t* masked, const uint32_t* free, const uint32_t* starts, unsigned tokens,
        unsigned sequences, const uint32_t* wants, const uint32_t* drawing, const uint32_t* complete, const uint32_t* list,
        unsigned list_len, const float* uniforms, unsigned uniform_count, unsigned shift, uint32_t* needs, uint32_t* slots,
        unsigned need_count, uint32_t* rows, uint32_t* row_positions, uint32_t* params, unsigned row_count, uint32_t* places,
        uint32_t* passes)) {
  DYN_SMEM(uint32_t, totals);
  const uint32_t s = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  wants += static_cast<int64_t>(s) * WANT_WORDS;
  drawing += static_cast<int64_t>(s) * DRAWING_WORDS;
  const uint32_t start = Min()(starts[s], tokens);
  const uint32_t length = Max()(Min()(starts[s + 1], tokens), start) - start;
  const bool active = wants[KIND] != NOTHING && !(complete && complete[s]);
  const uint32_t kind = active ? wants[KIND] : uint32_t(NOTHING);
  const Range own_needs(wants[FIRST_NEED], wants[NEEDS], need_count);
  const Range own_rows(wants[FIRST_ROW], wants[ROWS], row_count);
  const uint32_t end = !active ? 0u : Min()(wants[HIGH], kind == LISTED ? list_len : length);
  const uint32_t low = wants[LOW];

  // Of place i: the position if it is a need, else NONE.
  const auto need_at = [&](uint32_t i) {
    if (i >= end) return NONE;
    if (kind == LISTED) return list[i] < length ? list[i] : NONE;
    return free[start + i] && (kind == FREE || masked[start + i]) ? i : NONE;
  };
  // Position 0 has no row under shift; if it is a need, it is the first one.
  const uint32_t rowless = shift && need_at(low) == 0 ? 1u : 0u;
  uint32_t found = 0;
  for (uint32_t base = low; base < end; base += NEEDS_THREADS) {
    const uint32_t p = need_at(base + threadIdx.x);
    const uint32_t votes = __ballot_sync(WHOLE_WARP, p != NONE);
    if (lane == 0) totals[warp] = __popc(votes);
    __syncthreads();
    uint32_t number = found + __popc(votes & ((1u << lane) - 1));
    for (uint32_t w = 0; w < NEEDS_WARPS; w++) {
      if (w < warp) number += totals[w];
      found += totals[w];
    }
    __syncthreads();
    if (p == NONE || number >= own_needs.end - own_needs.first) continue;
    const uint32_t n = own_needs.first + number, at = start + p;
    needs[n] = at;
    const bool has_row = !(shift && p == 0);
    const uint32_t r = own_rows.first + number - rowless;
    if (!has_row || r >= own_rows.end) {
      slots[n] = NONE;
      continue;
    }
    slots[n] = r;
    const uint32_t from = p - shift;
    rows[r] = start + from;
    row_positions[r] = from;
    float uniform = 0.0f;
    if (drawing[HOW] >> 8 == 0 && uniforms) {
      const uint64_t i = drawing[UNIFORMS_AT] + static_cast<uint64_t>(wants[STEP]) * length + from;
      if (i < uniform_count) uniform = uniforms[i];
    }
    const uint32_t words[ROW_WORDS] = {drawing[TEMPERATURE],
                                       drawing[TOP_P],
                                       drawing[TOP_K],
                                       drawing[SUPPRESS],
                                       masked[at] ? NONE : ids[at],
                                       drawing[HOW],
                                       __float_as_uint(uniform),
                                       drawing[SEED_LOW],
                                       drawing[SEED_HIGH],
                                       drawing[SEQUENCE],
                                       wants[STEP],
                                       p};
#pragma unroll
    for (int i = 0; i < ROW_WORDS; i++) params[static_cast<int64_t>(r) * ROW_WORDS + i] = words[i];
  }

  const uint32_t listed = Min()(found, own_needs.end - own_needs.first);
  for (uint32_t n = own_needs.first + listed + threadIdx.x; n < own_needs.end; n += NEEDS_THREADS) needs[n] = slots[n] = NONE;
  const uint32_t used = Min()(listed - (listed ? rowless : 0u), own_rows.end - own_rows.first);
  const uint32_t idle_end = s + 1 == sequences ? row_count : own_rows.end;
  for (uint32_t r = own_rows.first + used + threadIdx.x; r < idle_end; r += NEEDS_THREADS)
    idle_row(r, rows, row_positions, params);
  if (threadIdx.x == 0) {
    uint32_t* place = places + static_cast<int64_t>(s) * 4;
    place[0] = active ? own_rows.first : 0;
    place[1] = active ? own_rows.end - own_rows.first : 0;
    place[2] = active ? start : 0;
    place[3] = active ? length : 0;
    if (active) passes[s] += 1;
  }
}

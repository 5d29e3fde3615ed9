// Commits drawn tokens to canvases in device memory: masks become tokens (and, when remasking, tokens masks).
//
// Contract. A canvas holds packed sequences: sequence s is positions starts[s] .. starts[s + 1] of ids and masked
// (both U32 [tokens], masked 1 = [M] stands there); starts [sequences + 1] ascends. Draws [rows] are what unmask.cu writes: token,
// log_prob, confidence, given_log_prob, flag; a draw whose flag is not 0 is never committed. ids, masked and the record are
// changed in place where something is committed or remasked, and nowhere else. The record (committed_at U32,
// record_log_prob F32, [tokens], and steps [sequences]; null together) gets steps[s] + 1 and the draw's log_prob at each
// commit. Positions, rows and sequences out of range are skipped. No scratch.
//
// commit_plan       row r is committed to where logits row targets[r] of the canvas predicts: position targets[r] +
//                   shift, if that lies in the same sequence (src/diffusion/shift.rs). Then position 0 of each of the
//                   sequences firsts[0 .. first_count], which under shift no row predicts, becomes
//                   first_tokens[sequence]. A thread a commit; no position twice.
// The other three take a block a sequence. The needs of sequence s are need_starts[s] .. need_starts[s + 1] of needs
// (positions of the canvas, ascending) and of slots (the draw of each; 0xffffffff: no row predicts it, it takes
// first_tokens[s], its score is infinite).
// commit_ranked     words [sequences, 8] (RankWord): of the needs, `take` with the greatest scores are to be tokens: the masked
//                   ones among them are committed, of the others those that are tokens are remasked (if `remask`). Score:
//                   confidence where masked, given_log_prob where not, plus noise * Gumbel. Greater by
//                   f32::total_cmp, of equal ones the lower index: commit_ranked of src/backend/cpu/denoise.rs.
//                   Shared memory: RankWork and 8 bytes a need, `longest` at most in a sequence (one with more is left as it is).
// commit_threshold  words [sequences, 2] (ThresholdWord): commits each masked need whose score is above tau, the best one if there
//                   is none. Score: confidence, or with `exp` its exponential. Shared memory: 64 bytes.
// commit_answer     out [3, sequences] = of each sequence: the first position (counted in the sequence) from answers[s] on where
//                   eos[s] stands committed, else 0xffffffff; complete, whether there is one and nothing before it is masked; left, the
//                   number of masked positions. answers or eos 0xffffffff: none. Shared memory: 64 bytes.
#include "common/philox.cuh"
#include "common/select.cuh"

KERNEL_FILE(commit)

constexpr int COMMIT_THREADS = 256, COMMIT_WARPS = COMMIT_THREADS / 32;
constexpr uint32_t NONE = 0xffffffffu;

enum RankWord { TAKE, NOISE, REMASK, SEED_LOW, SEED_HIGH, SEQUENCE, STEP, RANK_WORDS = 8 };
enum ThresholdWord { TAU, EXP, THRESHOLD_WORDS };

struct Canvas {
  uint32_t *ids, *masked;
  uint32_t tokens;
  const uint32_t* steps;
  uint32_t* committed_at;
  float* log_prob;

  DEVICE void commit(uint32_t position, uint32_t sequence, uint32_t token, float log_prob_of_it) const {
    ids[position] = token;
    masked[position] = 0;
    if (!committed_at) return;
    committed_at[position] = steps[sequence] + 1;
    log_prob[position] = log_prob_of_it;
  }
};

struct Drawn {
  const uint32_t* tokens;
  const float *log_prob, *confidence, *given_log_prob;
  const uint32_t* flags;
  uint32_t rows;
};

// One position that a step is about.
struct Need {
  bool valid;  // it is on the canvas, and something was drawn for it
  bool masked;
  uint32_t position, slot;
};

// The needs of this block's sequence.
struct Needs {
  const uint32_t *positions, *slots;
  uint32_t count;

  DEVICE Needs(const uint32_t* starts, const uint32_t* positions, const uint32_t* slots, uint32_t len)
      : positions(positions + starts[blockIdx.x]), slots(slots + starts[blockIdx.x]) {
    const uint32_t begin = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    count = begin <= end && end <= len ? end - begin : 0;
  }
  DEVICE Need get(uint32_t i, const Canvas& canvas, const Drawn& drawn) const {
    Need need = {false, false, positions[i], slots[i]};
    if (need.position >= canvas.tokens || (need.slot != NONE && need.slot >= drawn.rows)) return need;
    need.valid = need.slot == NONE || drawn.flags[need.slot] == 0;
    need.masked = canvas.masked[need.position] != 0;
    return need;
  }
};

DEVICE void commit_need(const Need& need, const Canvas& canvas, const Drawn& drawn, const uint32_t* first_tokens) {
  const bool rowless = need.slot == NONE;
  canvas.commit(need.position, blockIdx.x, rowless ? first_tokens[blockIdx.x] : drawn.tokens[need.slot],
                rowless ? 0.0f : drawn.log_prob[need.slot]);
}

struct RankWork {
  Bins<COMMIT_THREADS> bins;
  uint64_t scratch[COMMIT_WARPS];
  Crossing crossing;
};
constexpr int RANK_WORK_BYTES = 4176;
static_assert(sizeof(RankWork) == RANK_WORK_BYTES && RANK_WORK_BYTES % 8 == 0, "see src/backend/cuda/commit.rs");

// Standard Gumbel noise of a uniform number of 24 bits, in double precision as on the CPU.
DEVICE float commit_gumbel(float uniform) {
  const double u = static_cast<double>(uniform) + 0.5 / 16777216.0;
  return static_cast<float>(-log(-log(u)));
}

// The take-th greatest of `count` ranks, which differ where they are not 0; 0 is no rank. Of all if there are fewer; all ones
// if take is 0. A thread looks at every 256th rank: those that it wrote itself.
DEVICE uint64_t commit_kth(const uint64_t* ranks, uint32_t count, uint32_t take, RankWork& work) {
  uint64_t low = ~uint64_t(0), high = 0, valid = 0;
  for (uint32_t i = threadIdx.x; i < count; i += COMMIT_THREADS) {
    if (ranks[i] == 0) continue;
    low = Min()(low, ranks[i]), high = Max()(high, ranks[i]), valid++;
  }
  low = block_reduce(low, Min(), ~uint64_t(0), work.scratch);
  high = block_reduce(high, Max(), uint64_t(0), work.scratch);
  valid = block_reduce(valid, Sum(), uint64_t(0), work.scratch);
  if (take == 0) return ~uint64_t(0);
  if (take >= valid) return low;
  uint64_t limit = take - 1;
  // Equal intervals of the range that holds it, until it holds nothing else.
  while (low < high) {
    constexpr int BITS = 9;
    static_assert(Bins<COMMIT_THREADS>::COUNT == 1 << BITS, "bits of a rank a round");
    const int bits = 64 - __clzll(static_cast<long long>(high - low)), shift = bits > BITS ? bits - BITS : 0;
    work.bins.clear();
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < count; i += COMMIT_THREADS)
      if (ranks[i] >= low && ranks[i] <= high) work.bins.add_one(static_cast<int>((high - ranks[i]) >> shift));
    __syncthreads();
    const Crossing next = find_crossing(work.bins, limit, work.scratch, &work.crossing);
    if (next.bin == NO_BIN) break;
    limit -= next.before;
    high -= static_cast<uint64_t>(next.bin) << shift;
    const uint64_t width = (uint64_t(1) << shift) - 1;
    low = high - low > width ? high - width : low;
  }
  return high;
}

KERNEL(COMMIT_THREADS, 4, commit_plan,
       (const uint32_t* drawn_tokens, const float* drawn_log_prob, const uint32_t* flags, const uint32_t* targets, unsigned rows,
        const uint32_t* firsts, unsigned first_count, const uint32_t* first_tokens, const uint32_t* starts,
        unsigned sequences, unsigned shift, unsigned tokens, uint32_t* ids, uint32_t* masked, const uint32_t* steps,
        uint32_t* committed_at, float* record_log_prob)) {
  const Canvas canvas = {ids, masked, tokens, steps, committed_at, record_log_prob};
  const uint32_t r = blockIdx.x * COMMIT_THREADS + threadIdx.x;
  if (r >= rows) {
    if (r - rows >= first_count) return;
    const uint32_t s = firsts[r - rows];
    if (s >= sequences || starts[s] >= starts[s + 1] || starts[s] >= tokens) return;
    canvas.commit(starts[s], s, first_tokens[s], 0.0f);
    return;
  }
  const uint32_t row = targets[r];
  if (flags[r] != 0 || row >= tokens || row < starts[0]) return;
  // The last sequence that begins at or before the row.
  uint32_t s = 0, end = sequences;
  while (end - s > 1) {
    const uint32_t middle = s + (end - s) / 2;
    if (starts[middle] <= row) s = middle;
    else end = middle;
  }
  const uint32_t position = row + shift;
  if (row >= starts[s + 1] || position >= starts[s + 1] || position >= tokens) return;
  canvas.commit(position, s, drawn_tokens[r], drawn_log_prob[r]);
}

KERNEL(COMMIT_THREADS, 4, commit_ranked,
       (const uint32_t* drawn_tokens, const float* drawn_log_prob, const float* confidence, const float* given_log_prob,
        const uint32_t* flags, unsigned rows, const uint32_t* need_starts, const uint32_t* needs, const uint32_t* slots,
        unsigned need_count, unsigned longest, const uint32_t* first_tokens, const uint32_t* words, const uint32_t* starts,
        unsigned tokens, unsigned mask_id, uint32_t* ids, uint32_t* masked, const uint32_t* steps, uint32_t* committed_at,
        float* record_log_prob)) {
  DYN_SMEM(RankWork, shared);
  uint64_t* ranks = reinterpret_cast<uint64_t*>(shared + 1);
  const Canvas canvas = {ids, masked, tokens, steps, committed_at, record_log_prob};
  const Drawn drawn = {drawn_tokens, drawn_log_prob, confidence, given_log_prob, flags, rows};
  const Needs list(need_starts, needs, slots, need_count);
  if (list.count == 0 || list.count > longest) return;
  words += static_cast<int64_t>(blockIdx.x) * RANK_WORDS;
  const float noise = __uint_as_float(words[NOISE]);
  const uint32_t start = starts[blockIdx.x];

  for (uint32_t i = threadIdx.x; i < list.count; i += COMMIT_THREADS) {
    const Need need = list.get(i, canvas, drawn);
    uint64_t rank = 0;
    if (need.valid) {
      float score = __uint_as_float(0x7f800000u);
      if (need.slot != NONE) score = need.masked ? confidence[need.slot] : given_log_prob[need.slot];
      if (noise > 0.0f) {
        const uint4 random = philox(make_uint4(need.position - start, words[STEP], words[SEQUENCE], PURPOSE_CONFIDENCE),
                                    make_uint2(words[SEED_LOW], words[SEED_HIGH]));
        score = __fadd_rn(score, __fmul_rn(noise, commit_gumbel(unit(random.x))));
      }
      rank = rank_of<false>(score, i);
    }
    ranks[i] = rank;
  }
  const uint64_t least = commit_kth(ranks, list.count, words[TAKE], *shared);
  for (uint32_t i = threadIdx.x; i < list.count; i += COMMIT_THREADS) {
    if (ranks[i] == 0) continue;
    const Need need = list.get(i, canvas, drawn);
    const bool chosen = ranks[i] >= least;
    if (chosen && need.masked) commit_need(need, canvas, drawn, first_tokens);
    if (!chosen && !need.masked && words[REMASK]) {
      ids[need.position] = mask_id;
      masked[need.position] = 1;
    }
  }
}

KERNEL(COMMIT_THREADS, 4, commit_threshold,
       (const uint32_t* drawn_tokens, const float* drawn_log_prob, const float* confidence, const uint32_t* flags, unsigned rows,
        const uint32_t* need_starts, const uint32_t* needs, const uint32_t* slots, unsigned need_count,
        const uint32_t* first_tokens, const uint32_t* words, unsigned tokens, uint32_t* ids, uint32_t* masked,
        const uint32_t* steps, uint32_t* committed_at, float* record_log_prob)) {
  DYN_SMEM(uint64_t, scratch);
  const Canvas canvas = {ids, masked, tokens, steps, committed_at, record_log_prob};
  const Drawn drawn = {drawn_tokens, drawn_log_prob, confidence, nullptr, flags, rows};
  const Needs list(need_starts, needs, slots, need_count);
  const float tau = __uint_as_float(words[blockIdx.x * THRESHOLD_WORDS + TAU]);
  const bool exponential = words[blockIdx.x * THRESHOLD_WORDS + EXP] != 0;
  // By way of double precision, which is the correctly rounded exponential but for one case in 2^28 or so.
  const auto score_of = [&](const Need& need) {
    if (need.slot == NONE) return __uint_as_float(0x7f800000u);
    const float c = confidence[need.slot];
    return exponential ? static_cast<float>(exp(static_cast<double>(c))) : c;
  };
  uint64_t best = 0;
  uint32_t above = 0;
  for (uint32_t i = threadIdx.x; i < list.count; i += COMMIT_THREADS) {
    const Need need = list.get(i, canvas, drawn);
    if (!need.valid || !need.masked) continue;
    const float score = score_of(need);
    best = Max()(best, rank_of<false>(score, i));
    if (score > tau) above++;
  }
  best = block_reduce(best, Max(), uint64_t(0), scratch);
  const bool none = block_reduce(above, Sum(), 0u, reinterpret_cast<uint32_t*>(scratch)) == 0;
  for (uint32_t i = threadIdx.x; i < list.count; i += COMMIT_THREADS) {
    const Need need = list.get(i, canvas, drawn);
    if (!need.valid || !need.masked) continue;
    const float score = score_of(need);
    if (none ? rank_of<false>(score, i) == best : score > tau) commit_need(need, canvas, drawn, first_tokens);
  }
}

KERNEL(COMMIT_THREADS, 4, commit_answer,
       (const uint32_t* ids, const uint32_t* masked, const uint32_t* starts, unsigned tokens, const uint32_t* answers,
        const uint32_t* eos, uint32_t* out)) {
  DYN_SMEM(uint32_t, scratch);
  const uint32_t s = blockIdx.x, begin = starts[s];
  const uint32_t end = starts[s + 1] <= tokens && begin <= starts[s + 1] ? starts[s + 1] : begin;
  const uint32_t answer = eos[s] == NONE ? NONE : answers[s];
  uint32_t found = NONE, hidden = NONE, count = 0;
  for (uint32_t p = threadIdx.x; p < end - begin; p += COMMIT_THREADS) {
    if (masked[begin + p]) {
      count++;
      hidden = Min()(hidden, p);
    } else if (p >= answer && ids[begin + p] == eos[s]) {
      found = Min()(found, p);
    }
  }
  found = block_reduce(found, Min(), NONE, scratch);
  hidden = block_reduce(hidden, Min(), NONE, scratch);
  count = block_reduce(count, Sum(), 0u, scratch);
  if (threadIdx.x != 0) return;
  out[s] = found;
  out[gridDim.x + s] = found != NONE && hidden > found ? 1 : 0;
  out[2 * gridDim.x + s] = count;
}

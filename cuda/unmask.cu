// Draws one token from each row of logits: temperature, exact top-k and top-p without a sort, inverse CDF or
// Gumbel-max, log probabilities and a confidence. Token for token what src/backend/cpu/unmask draws.
//
// Contract. logits: row r begins at logits + r * stride, `vocab` numbers of format T, aligned to T only; 1 <= vocab <
// 2^24. params [rows, 12] words (UnmaskWord of common/unmask_work.cuh). Outputs [rows], all =:
//   token           the token drawn; 0xffffffff where flag is not 0
//   log_prob        its log probability after temperature, before top-k and top-p (nats); NaN where flag is not 0
//   confidence      log_prob, minus the entropy, or the best probability minus the second best; likewise
//   given_log_prob  that of params' `given` token, 0 without one; likewise
//   flag            0 drawn, 1 a logit is NaN or +inf, 2 all are -inf or suppressed, 3 parameters out of range
// A block a row; a row's results depend on that row alone. Rows may hold any bits. No scratch in global memory.
//
// Everything that decides is an integer: masses in fixed point, exact sums, ranks (logit, then the lower id). So neither
// the order of additions nor the alignment of a row can change a result.
//
// unmask_resident_*   the row is copied to shared memory once; shared memory: UnmaskWork, 16 bytes a pack
// unmask_streaming_*  each pass reads the row again; shared memory: UnmaskWork and 48 bytes
// The same bits from both. UNMASK_WORK_BYTES is the size of UnmaskWork (src/backend/cuda/unmask.rs has it too).
//
// Top-p: Holtzman et al., "The curious case of neural text degeneration", ICLR 2020. docs/kernels/unmask.md.
#include "common/unmask_work.cuh"

KERNEL_FILE(unmask)

// The best token as a rank, all ones where a number is NaN or +inf; and the best logit that this thread saw.
template <class T, bool RESIDENT>
DEVICE uint64_t unmask_peak(const Row<T, RESIDENT>& row, UnmaskWork& work, float& own_peak) {
  float peak = minus_infinity();
  int where = threadIdx.x;
  bool finite = true;
  // A thread looks at packs that it copied itself.
  const auto look = [&](int q) {
    Pack<T> x = row.pack(q);
#pragma unroll
    for (int j = 0; j < Row<T, RESIDENT>::N; j++) finite &= x.get(j) < __uint_as_float(0x7f800000u);
    row.remove_suppressed(q, x);
    float best = x.get(0);
#pragma unroll
    for (int j = 1; j < Row<T, RESIDENT>::N; j++) best = x.get(j) > best ? x.get(j) : best;
    if (best > peak) peak = best, where = q;
  };
  // Of a resident row everything is on its way at once, and the first half is looked at while the second comes in.
  const int half = (row.packs + 2 * UNMASK_THREADS - 1) / (2 * UNMASK_THREADS) * UNMASK_THREADS;
  int q = threadIdx.x;
  for (; q < half && q < row.packs; q += UNMASK_THREADS) row.copy(q);
  cp_async_commit();
  for (; q < row.packs; q += UNMASK_THREADS) row.copy(q);
  cp_async_commit();
  cp_async_wait<1>();
  for (q = threadIdx.x; q < half && q < row.packs; q += UNMASK_THREADS) look(q);
  cp_async_wait<0>();
  for (; q < row.packs; q += UNMASK_THREADS) look(q);
  own_peak = peak;
  uint64_t rank = 0;
  if (where < row.packs) {
    const Pack<T> x = row.pack(where);
#pragma unroll
    for (int j = Row<T, RESIDENT>::N - 1; j >= 0; j--)
      if (x.get(j) == peak) rank = rank_of<true>(peak, static_cast<uint32_t>(row.first_id(where) + j));
  }
  return unmask_reduce_max(finite ? rank : ~uint64_t(0), uint64_t(0), work);
}

// The mass of each warp's share to work.sums, of what the cut keeps. Returns the whole row's.
template <class T, bool RESIDENT>
DEVICE uint64_t unmask_masses(const Row<T, RESIDENT>& row, const Temper& temper, const Cut& cut, UnmaskWork& work) {
  uint64_t sum = 0;
  row.each([&](int id, float z) {
    if (cut.keeps(id, z)) sum += temper.mass(z);
  });
  sum = warp_reduce(sum, Sum());
  if (threadIdx.x % 32 == 0) work.sums[threadIdx.x / 32] = sum;
  __syncthreads();
  return unmask_sum_of_shares(work);
}

// The same for the whole row, and with ENTROPY the sum of p * -log2 p, p being a mass relative to the best one's, in the
// same fixed point.
template <bool ENTROPY, class T, bool RESIDENT>
DEVICE uint64_t unmask_weigh(const Row<T, RESIDENT>& row, const Temper& temper, UnmaskWork& work, uint64_t& spread) {
  uint64_t sum = 0, depth = 0;
  row.each([&](int, float z) {
    const float d = temper.below_max(z), w = temper.weight(d);
    sum += Temper::fixed(w);
    // At most log2(e) / e: about 0.53.
    if (ENTROPY) depth += Temper::fixed(__fmul_rn(w, __fmul_rn(-d, temper.scale)));
  });
  sum = warp_reduce(sum, Sum());
  if (threadIdx.x % 32 == 0) work.sums[threadIdx.x / 32] = sum;
  spread = ENTROPY ? unmask_reduce_sum(depth, work) : 0;
  __syncthreads();
  return unmask_sum_of_shares(work);
}

// The first id of the row at which the running sum of f(id, z) exceeds `limit`, given the sums of the warps' shares in
// work.sums, which exceed it in all.
template <class T, bool RESIDENT, class F>
DEVICE uint32_t unmask_locate(const Row<T, RESIDENT>& row, uint64_t limit, UnmaskWork& work, F f) {
  int warp = 0;
  while (warp + 1 < UNMASK_WARPS && work.sums[warp] <= limit) limit -= work.sums[warp++];
  // The packs of that share, some in a row for each thread.
  const int begin = warp * row.share(), end = min(begin + row.share(), row.packs);
  const int each = (row.share() + UNMASK_THREADS - 1) / UNMASK_THREADS;
  const int first = begin + static_cast<int>(threadIdx.x) * each, last = min(first + each, end);
  uint64_t sum = 0;
  for (int q = first; q < last; q++) {
    const Pack<T> x = row.pack(q);
#pragma unroll
    for (int j = 0; j < Row<T, RESIDENT>::N; j++) sum += f(row.first_id(q) + j, x.get(j));
  }
  uint64_t running = block_prefix<UNMASK_THREADS>(sum, work.scratch);
  if (running <= limit && limit - running < sum) {
    bool over = false;
    for (int q = first; q < last && !over; q++) {
      const Pack<T> x = row.pack(q);
#pragma unroll
      for (int j = 0; j < Row<T, RESIDENT>::N; j++) {
        const int id = row.first_id(q) + j;
        running += f(id, x.get(j));
        if (running > limit && !over) {
          over = true;
          work.found = static_cast<uint64_t>(id);
        }
      }
    }
  }
  __syncthreads();
  return static_cast<uint32_t>(work.found);
}

// Puts the tokens for which f(id, z) holds into the list, in any order, as many as it has room for, and returns how many there are.
template <class T, bool RESIDENT, class F>
DEVICE int unmask_gather(const Row<T, RESIDENT>& row, UnmaskWork& work, F f) {
  if (threadIdx.x == 0) work.count = 0;
  __syncthreads();
  row.each([&](int id, float z) {
    if (!f(id, z)) return;
    const uint32_t slot = atomicAdd(&work.count, 1u);
    if (slot < UNMASK_LIST) work.rank[slot] = rank_of<true>(z, static_cast<uint32_t>(id));
  });
  __syncthreads();
  return static_cast<int>(work.count);
}

// f(rank) becomes the weight of each token of the list. Returns their sum.
template <class F> DEVICE uint64_t unmask_weights(int n, UnmaskWork& work, F f) {
  uint64_t weight = 0;
  if (static_cast<int>(threadIdx.x) < n) work.weight[threadIdx.x] = weight = f(work.rank[threadIdx.x]);
  return unmask_reduce_sum(weight, work);
}

// Of a list of n tokens the one at which the running sum of weights, in ranking order or BY_ID, first exceeds `limit`; rank 0
// where the sum never does. Each token adds up what comes before it: four threads a token.
template <bool BY_ID> DEVICE uint64_t unmask_find(int n, uint64_t limit, UnmaskWork& work) {
  const int item = threadIdx.x / 4;
  const uint64_t mine = item < n ? work.rank[item] : 0;
  uint64_t before = 0;
  for (int j = threadIdx.x % 4; j < n; j += 4) {
    const uint64_t other = work.rank[j];
    const bool earlier = BY_ID ? rank_index(other) < rank_index(mine) : other > mine;
    if (earlier) before += work.weight[j];
  }
  before += __shfl_xor_sync(WHOLE_WARP, before, 1);
  before += __shfl_xor_sync(WHOLE_WARP, before, 2);
  if (threadIdx.x == 0) work.found = 0;
  __syncthreads();
  if (threadIdx.x % 4 == 0 && item < n && before <= limit && limit - before < work.weight[item]) work.found = mine;
  __syncthreads();
  return work.found;
}

// Cuts the ranking of the tokens of at least `least` that `within` keeps: keeps each before which the weights (masses, or
// to count 1 each) sum to at most `limit`. False where the sum of all is not above it.
template <class T, bool RESIDENT>
DEVICE bool unmask_select(const Row<T, RESIDENT>& row, const Temper& temper, bool count, const Cut& within, float least,
                          uint64_t limit, UnmaskWork& work, Cut& cut) {
  typedef Bins<UNMASK_THREADS> Histogram;
  static_assert(Histogram::COUNT == 1 << 10, "10 bits of a key a round");
  const auto weight = [&](float z) { return count ? uint64_t(1) : temper.mass(z); };
  // Equal intervals of logits. Subtraction and multiplication round monotonically: a greater logit is never in a later bin.
  const float scale = (Histogram::COUNT - 1) / (temper.max - least);
  const auto bin_of = [&](float z) {
    const float place = (temper.max - z) * scale;
    // Not a number only where a difference of 0 meets an infinite scale.
    const float from = place > 0.0f ? place : 0.0f, last = Histogram::COUNT - 1;
    return static_cast<int>(from < last ? from : last);
  };
  work.bins.clear();
  __syncthreads();
  row.each([&](int id, float z) {
    if (z >= least && within.keeps(id, z)) work.bins.add(bin_of(z), weight(z));
  });
  __syncthreads();
  const Crossing first = find_crossing(work.bins, limit, work.scratch, &work.crossing);
  if (first.bin == NO_BIN) return false;
  limit -= first.before;
  const auto in_bin = [&](int id, float z) { return z >= least && within.keeps(id, z) && bin_of(z) == first.bin; };
  const int n = unmask_gather(row, work, in_bin);
  if (n <= UNMASK_LIST) {
    unmask_weights(n, work, [&](uint64_t rank) { return weight(rank_number(rank)); });
    cut = Cut::at(unmask_find<false>(n, limit, work));
    return true;
  }

  // Too many for the list: intervals of keys, until one key is left.
  uint32_t low = 0xffffffffu, high = 0;
  row.each([&](int id, float z) {
    if (!in_bin(id, z)) return;
    const uint32_t key = static_cast<uint32_t>(rank_of<true>(z, 0) >> 32);
    low = min(low, key), high = max(high, key);
  });
  low = ~unmask_reduce_max(~low, 0u, work);
  high = unmask_reduce_max(high, 0u, work);
  while (low < high) {
    const int bits = 32 - __clz(static_cast<int>(high - low));
    const int shift = bits > 10 ? bits - 10 : 0;
    work.bins.clear();
    __syncthreads();
    row.each([&](int id, float z) {
      const uint32_t key = static_cast<uint32_t>(rank_of<true>(z, 0) >> 32);
      if (key >= low && key <= high && within.keeps(id, z)) work.bins.add(static_cast<int>((high - key) >> shift), weight(z));
    });
    __syncthreads();
    const Crossing next = find_crossing(work.bins, limit, work.scratch, &work.crossing);
    if (next.bin == NO_BIN) return false;
    limit -= next.before;
    high -= static_cast<uint32_t>(next.bin) << shift;
    const uint32_t width = (1u << shift) - 1;
    low = high - low > width ? high - width : low;
  }
  // Equal logits, by id.
  const float z = from_ordered(low);
  const uint64_t one = weight(z);
  const auto tie = [&](int id, float other) { return other == z && within.keeps(id, other) ? one : 0; };
  uint64_t sum = 0;
  row.each([&](int id, float other) { sum += tie(id, other); });
  sum = warp_reduce(sum, Sum());
  if (threadIdx.x % 32 == 0) work.sums[threadIdx.x / 32] = sum;
  __syncthreads();
  cut = {z, unmask_locate(row, limit, work, tie)};
  return true;
}

// A logit that at least k tokens reach, k <= threads, or one that all reach that have a mass: the k-th best of the
// threads' best ones, or a little less.
DEVICE float unmask_bound(float own_peak, int k, const Temper& temper, UnmaskWork& work) {
  const float least = temper.floor();
  const float scale = (Bins<UNMASK_THREADS>::COUNT - 1) / (temper.max - least);
  const float place = (temper.max - own_peak) * scale, last = Bins<UNMASK_THREADS>::COUNT - 1;
  const float from = place > 0.0f ? place : 0.0f;
  const int bin = static_cast<int>(from < last ? from : last);
  work.bins.clear();
  __syncthreads();
  if (own_peak >= least) work.bins.add_one(bin);
  __syncthreads();
  const Crossing kth = find_crossing(work.bins, static_cast<uint64_t>(k - 1), work.scratch, &work.crossing);
  if (kth.bin == NO_BIN) return least;
  const bool among = own_peak >= least && bin <= kth.bin;
  return -unmask_reduce_max(among ? -own_peak : minus_infinity(), minus_infinity(), work);
}

// A logit of which tokens below it are too few and too light to hold a share of 1 - top_p.
DEVICE float unmask_light(float top_p, uint64_t total, int vocab, const Temper& temper) {
  const float share = (1.0f - (top_p > 0.0f ? top_p : 0.0f)) * (static_cast<float>(total) * 0x1p-40f) / vocab;
  const float least = temper.max + (logf(share) - 1e-3f) * 1.442695041f / temper.scale;
  return least > temper.floor() ? least : temper.floor();
}

// What top-k and top-p keep. `listed`: how many tokens there are in the list, if all that are kept are there; else -1.
template <class T, bool RESIDENT>
DEVICE Cut unmask_filter(const Row<T, RESIDENT>& row, const Temper& temper, const uint32_t* words, float own_peak, UnmaskWork& work,
                         int& listed) {
  const uint32_t top_k = words[TOP_K];
  Cut cut = Cut::none();
  listed = -1;
  const bool by_count = top_k > 0 && top_k < static_cast<uint32_t>(row.vocab);
  if (by_count) {
    const float least =
        top_k <= UNMASK_THREADS ? unmask_bound(own_peak, static_cast<int>(top_k), temper, work) : temper.floor();
    cut = {least, 0xffffffffu};
    if (top_k <= UNMASK_LIST) {
      const int n = unmask_gather(row, work, [&](int, float z) { return z >= least; });
      if (n <= UNMASK_LIST) {
        listed = n;
        unmask_weights(n, work, [](uint64_t) { return uint64_t(1); });
        const uint64_t rank = unmask_find<false>(n, top_k - 1, work);
        if (rank) cut = Cut::at(rank);
      }
    }
  }
  const float top_p = __uint_as_float(words[TOP_P]);
  const bool by_mass = top_p < 1.0f;
  if (listed >= 0 && by_mass) {
    const uint64_t kept = unmask_weights(listed, work, [&](uint64_t rank) {
      const float z = rank_number(rank);
      return cut.keeps(static_cast<int>(rank_index(rank)), z) ? temper.mass(z) : 0;
    });
    return Cut::at(unmask_find<false>(listed, fraction(top_p, kept), work));
  }
  // What was not done with the list: by count, then by mass among what that keeps. Should rounding have it that there is
  // more below `least` than reckoned, all are looked at.
  Cut within = Cut::none();
  float least = cut.z;
  uint64_t limit = top_k - 1;
#pragma unroll 1
  for (int turn = by_count ? 0 : 1; listed < 0 && turn < (by_mass ? 3 : 1); turn++) {
    if (turn == 1) {
      within = cut;
      least = cut.z;
      const uint64_t total = by_count ? unmask_masses(row, temper, cut, work) : unmask_sum_of_shares(work);
      if (!by_count) least = unmask_light(top_p, total, row.vocab, temper);
      limit = fraction(top_p, total);
    }
    if (turn == 2) least = temper.floor();
    if (unmask_select(row, temper, turn == 0, within, least, limit, work, cut) && turn == 1) break;
  }
  return cut;
}

// The token of the list, or of the row, at which the running mass of kept tokens exceeds `uniform` of their total.
template <class T, bool RESIDENT>
DEVICE uint32_t unmask_draw(const Row<T, RESIDENT>& row, const Temper& temper, const Cut& cut, int listed, float uniform,
                            UnmaskWork& work) {
  if (listed >= 0) {
    const uint64_t kept = unmask_weights(listed, work, [&](uint64_t rank) {
      const float z = rank_number(rank);
      return cut.keeps(static_cast<int>(rank_index(rank)), z) ? temper.mass(z) : 0;
    });
    return rank_index(unmask_find<true>(listed, fraction(uniform, kept), work));
  }
  // Without a cut the sums are there already.
  const uint64_t total =
      cut.z > minus_infinity() ? unmask_masses(row, temper, cut, work) : unmask_sum_of_shares(work);
  return unmask_locate(row, fraction(uniform, total), work,
                       [&](int id, float z) { return cut.keeps(id, z) ? temper.mass(z) : 0; });
}

// Gumbel-max: the token kept with the greatest (z - max) / temperature + noise, of equal ones the lowest id.
// Noise of token i: word i % 4 of Philox(seed; position, step, sequence, PURPOSE_GUMBEL + 256 * (i / 4)); with k its
// top 23 bits, u = (2 k + 1) / 2^24 (exact) and noise = -log(-log(u)), in f32. It lies between -2.81 and 16.64, so a token
// 20 below the best one is never drawn and needs none.
template <class T, bool RESIDENT>
DEVICE uint32_t unmask_gumbel(const Row<T, RESIDENT>& row, const Temper& temper, const Cut& cut, const uint32_t* words,
                              UnmaskWork& work) {
  const float inverse = static_cast<float>(1.0 / static_cast<double>(__uint_as_float(words[TEMPERATURE])));
  uint64_t best = 0;
  for (int group = threadIdx.x; group < (row.vocab + 3) / 4; group += UNMASK_THREADS) {
    float score[4];
    bool any = false;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int id = 4 * group + j;
      const float z = id < row.vocab ? row.at(id) : minus_infinity();
      const float below = __fmul_rn(temper.below_max(z), inverse);
      const bool live = below >= -20.0f && cut.keeps(id, z);
      score[j] = live ? below : minus_infinity();
      any |= live;
    }
    if (!any) continue;
    const uint4 random = philox(make_uint4(words[POSITION], words[STEP], words[SEQUENCE],
                                           PURPOSE_GUMBEL + 256u * static_cast<uint32_t>(group)),
                                make_uint2(words[SEED_LOW], words[SEED_HIGH]));
    const uint32_t bits[4] = {random.x, random.y, random.z, random.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (!(score[j] > minus_infinity())) continue;
      const float u = static_cast<float>(2 * (bits[j] >> 9) + 1) * (1.0f / 16777216.0f);
      const float noisy = __fsub_rn(score[j], logf(-logf(u)));
      best = Max()(best, rank_of<true>(noisy, static_cast<uint32_t>(4 * group + j)));
    }
  }
  return rank_index(unmask_reduce_max(best, uint64_t(0), work));
}

// The second largest logit, -inf when there is but one.
template <class T, bool RESIDENT>
DEVICE float unmask_second(const Row<T, RESIDENT>& row, const Temper& temper, UnmaskWork& work) {
  float below = minus_infinity();
  uint64_t best = 0;
  row.each([&](int, float z) {
    best += z == temper.max ? 1 : 0;
    below = z < temper.max && z > below ? z : below;
  });
  best = unmask_reduce_sum(best, work);
  below = unmask_reduce_max(below, minus_infinity(), work);
  return best > 1 ? temper.max : below;
}

template <class T, bool RESIDENT>
DEVICE void unmask_row(const T* logits, uint64_t stride, int vocab, const uint32_t* params, uint32_t* token_out,
                       float* log_prob_out, float* confidence_out, float* given_out, uint32_t* flag_out) {
  DYN_SMEM(UnmaskWork, shared);
  UnmaskWork& work = *shared;
  const int64_t r = blockIdx.x;
  const Row<T, RESIDENT> row(logits + r * static_cast<int64_t>(stride), reinterpret_cast<unsigned char*>(shared + 1),
                             vocab, params[r * UNMASK_WORDS + SUPPRESS]);
  // Read again where they are needed: registers are scarce in between.
  const uint32_t* words = params + r * UNMASK_WORDS;
  const bool sound = unmask_sound(words, vocab);
  // Below the least normal number: the best token, and the distribution at temperature 1.
  const bool greedy = __uint_as_float(words[TEMPERATURE]) < 1.17549435e-38f;

  if (threadIdx.x == 0) {
    Temper temper;
    temper.set(sound && !greedy ? __uint_as_float(words[TEMPERATURE]) : 1.0f);
    work.scale = temper.scale, work.scale_low = temper.scale_low, work.lowest = temper.lowest;
  }
  float own_peak;
  const uint64_t best = unmask_peak(row, work, own_peak);
  const Temper temper = {rank_number(best), work.scale, work.scale_low, work.lowest};
  uint32_t flag = FLAG_DRAWN, token = rank_index(best);
  if (best == ~uint64_t(0)) flag = FLAG_NOT_FINITE;
  else if (!(temper.max > minus_infinity())) flag = FLAG_NOTHING;
  if (!sound) flag = FLAG_PARAMETERS;
  if (flag != FLAG_DRAWN) {
    if (threadIdx.x == 0) {
      const float nan = __uint_as_float(0x7fffffffu);
      token_out[r] = NO_TOKEN;
      log_prob_out[r] = confidence_out[r] = given_out[r] = nan;
      flag_out[r] = flag;
    }
    return;
  }

  uint64_t spread;
  const uint32_t confidence = words[KIND] & 255u;
  const uint64_t total = confidence == CONFIDENCE_ENTROPY ? unmask_weigh<true>(row, temper, work, spread)
                                                          : unmask_weigh<false>(row, temper, work, spread);
  const float second = confidence == CONFIDENCE_MARGIN ? unmask_second(row, temper, work) : 0.0f;
  if (threadIdx.x == 0) work.total = total, work.spread = spread, work.second = second;
  if (!greedy) {
    int listed;
    const Cut cut = unmask_filter(row, temper, words, own_peak, work, listed);
    token = words[KIND] >> 8 == NOISE_GUMBEL ? unmask_gumbel(row, temper, cut, words, work)
                                             : unmask_draw(row, temper, cut, listed, unmask_uniform(words), work);
  }

  if (threadIdx.x != 0) return;
  const uint32_t given = words[GIVEN];
  const double temperature = static_cast<double>(greedy ? 1.0f : __uint_as_float(words[TEMPERATURE]));
  const double inverse = 1.0 / temperature, max = static_cast<double>(temper.max);
  const double sum = static_cast<double>(work.total) * 0x1p-40, log_sum = log(sum);
  const double log_prob = (static_cast<double>(row.at(static_cast<int>(token))) - max) * inverse - log_sum;
  double score = log_prob;
  if (confidence == CONFIDENCE_ENTROPY) score = -(static_cast<double>(work.spread) * 0x1p-40 * 0.6931471805599453) / sum - log_sum;
  if (confidence == CONFIDENCE_MARGIN) score = (1.0 - exp((static_cast<double>(work.second) - max) * inverse)) / sum;
  double given_log_prob = 0.0;
  if (given != NO_TOKEN) given_log_prob = (static_cast<double>(row.at(static_cast<int>(given))) - max) * inverse - log_sum;
  token_out[r] = token;
  log_prob_out[r] = static_cast<float>(log_prob);
  confidence_out[r] = static_cast<float>(score);
  given_out[r] = static_cast<float>(given_log_prob);
  flag_out[r] = FLAG_DRAWN;
}

#define UNMASK_KERNELS(T, SUFFIX)                                                                                        \
  KERNEL(UNMASK_THREADS, 2, unmask_resident_##SUFFIX,                                                                    \
         (const T* logits, uint64_t stride, int vocab, const uint32_t* params, uint32_t* token, float* log_prob,         \
          float* confidence, float* given_log_prob, uint32_t* flag)) {                                                   \
    unmask_row<T, true>(logits, stride, vocab, params, token, log_prob, confidence, given_log_prob, flag);               \
  }                                                                                                                      \
  KERNEL(UNMASK_THREADS, 2, unmask_streaming_##SUFFIX,                                                                   \
         (const T* logits, uint64_t stride, int vocab, const uint32_t* params, uint32_t* token, float* log_prob,         \
          float* confidence, float* given_log_prob, uint32_t* flag)) {                                                   \
    unmask_row<T, false>(logits, stride, vocab, params, token, log_prob, confidence, given_log_prob, flag);              \
  }
UNMASK_KERNELS(float, f32)
UNMASK_KERNELS(f16, f16)
UNMASK_KERNELS(bf16, bf16)

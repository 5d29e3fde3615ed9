// Probes: one small kernel for each wrapper of an instruction and each helper in cuda/common, with outputs that are
// exact (or bounded) and deterministic. On a card they show in seconds whether the hardware and the host SIMT machine
// mean the same by them; src/selftest/probe.rs judges both by plain integer code.
//
// Contract. All take (a, b, out), words of 32 bits; block i works on its own part of each, of the sizes that
// src/backend/cuda/probe.rs lists; b may be null where it lists none. out is = but for the global atomics (changed in
// place: block 0's part by every block).
// Dynamic shared memory: as listed there.
#include "common/philox.cuh"
#include "common/reduce.cuh"

KERNEL_FILE(probe)

#define PARTS(A, B, OUT)                              \
  a += static_cast<int64_t>(blockIdx.x) * (A);        \
  if (b) b += static_cast<int64_t>(blockIdx.x) * (B); \
  out += static_cast<int64_t>(blockIdx.x) * (OUT)
// In one function for all kernels: in an extern "C" one the array would have another linkage than in a template.
DEVICE uint32_t* shared_words() {
  DYN_SMEM(uint32_t, words);
  return words;
}
#define PROBE(THREADS, NAME) KERNEL(THREADS, 1, NAME, (const uint32_t* a, const uint32_t* b, uint32_t* out))

// ---- matrices ----
// a: 32 rows of 8 16-bit numbers; b: the row whose address each lane gives; out[lane][4].
template <bool TRANS> DEVICE void probe_ldmatrix_rows(const uint32_t* a, const uint32_t* b, uint32_t* out) {
  uint32_t* tile = shared_words();
  const int lane = threadIdx.x;
  PARTS(128, 32, 128);
  store_16(tile + 4 * lane, load_16(a + 4 * lane));
  __syncwarp();
  uint32_t r[4];
  if (TRANS)
    ldmatrix_x4_trans(r, tile + 4 * (b[lane] % 32));
  else
    ldmatrix_x4(r, tile + 4 * (b[lane] % 32));
  store_16(out + 4 * lane, make_uint4(r[0], r[1], r[2], r[3]));
}
PROBE(32, probe_ldmatrix) { probe_ldmatrix_rows<false>(a, b, out); }
PROBE(32, probe_ldmatrix_trans) { probe_ldmatrix_rows<true>(a, b, out); }

// a: [16, 16] row-major; b: [8 columns, 16] (column-major), then [16, 8] f32 to add to; out [16, 8] f32. Registers are
// filled number by number, after the PTX manual's figure of the fragments.
template <class T> DEVICE void probe_mma_tile(const uint32_t* a, const uint32_t* b, uint32_t* out) {
  PARTS(128, 64 + 128, 128);
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  const uint32_t fragment[4] = {a[g * 8 + t], a[(g + 8) * 8 + t], a[g * 8 + t + 4], a[(g + 8) * 8 + t + 4]};
  const int at[4] = {g * 8 + 2 * t, g * 8 + 2 * t + 1, (g + 8) * 8 + 2 * t, (g + 8) * 8 + 2 * t + 1};
  float d[4];
#pragma unroll
  for (int i = 0; i < 4; i++) d[i] = __uint_as_float(b[64 + at[i]]);
  mma_m16n8k16(T(), d, fragment, b[g * 8 + t], b[g * 8 + t + 4]);
#pragma unroll
  for (int i = 0; i < 4; i++) out[at[i]] = __float_as_uint(d[i]);
}
PROBE(32, probe_mma_f16) { probe_mma_tile<f16>(a, b, out); }
PROBE(32, probe_mma_bf16) { probe_mma_tile<bf16>(a, b, out); }

// The two together, as products of tiles use them: a [16, 16] row-major; b [16, 16] row-major (k by n, through trans), then
// b' [16, 16] column-major (n by k, without); out: a b, then a b', each [16, 16] f32.
PROBE(32, probe_tile_bf16) {
  uint32_t* tiles = shared_words();  // three of 128 words
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  PARTS(128, 256, 512);
#pragma unroll
  for (int i = 0; i < 3; i++)
    store_16(tiles + i * 128 + 4 * lane, load_16(i == 0 ? a + 4 * lane : b + (i - 1) * 128 + 4 * lane));
  __syncwarp();
  // Lane l points at row l % 16 and, from lane 16 on, at the right half.
  const int straight = (lane % 16) * 8 + (lane / 16) * 4;
  // Row-major in n: the matrices in the order k 0-7 and 8-15 of n 0-7, then of n 8-15.
  const int by_column = (lane % 8 + lane / 16 * 8) * 8 + (lane / 8 % 2) * 4;
  uint32_t left[4], right[4];
  ldmatrix_x4(left, tiles + straight);
#pragma unroll
  for (int which = 0; which < 2; which++) {
    if (which == 0)
      ldmatrix_x4_trans(right, tiles + 128 + straight);
    else
      ldmatrix_x4(right, tiles + 256 + by_column);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      mma_m16n8k16(bf16(), d, left, right[2 * half], right[2 * half + 1]);
#pragma unroll
      for (int i = 0; i < 4; i++)
        out[which * 256 + (g + i / 2 * 8) * 16 + half * 8 + 2 * t + i % 2] = __float_as_uint(d[i]);
    }
  }
}

// ---- asynchronous copies ----
// Four groups of one copy a thread. a: [4][threads] of 16 bytes; b: a thread's bit i says whether copy i reads (its source
// is null otherwise, and it writes zeros); out like a, each part read by the next thread once its group has landed.
PROBE(128, probe_cp_async) {
  uint32_t* slots = shared_words();
  const int t = threadIdx.x, next = (t + 1) % 128;
  PARTS(4 * 128 * 4, 128, 4 * 128 * 4);
  const uint32_t reads = b[t];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const bool pred = reads >> i & 1;
    cp_async_16(slots + (i * 128 + t) * 4, pred ? a + (i * 128 + t) * 4 : nullptr, pred);
    cp_async_commit();
  }
  cp_async_wait<3>();
  __syncthreads();
  store_16(out + next * 4, load_16(slots + next * 4));
  cp_async_wait<1>();
  __syncthreads();
  store_16(out + (128 + next) * 4, load_16(slots + (128 + next) * 4));
  store_16(out + (256 + next) * 4, load_16(slots + (256 + next) * 4));
  cp_async_wait<0>();
  __syncthreads();
  store_16(out + (384 + next) * 4, load_16(slots + (384 + next) * 4));
}

PROBE(256, probe_load_streaming) {
  PARTS(1024, 0, 1024);
  store_16_global(out + 4 * threadIdx.x, load_16_streaming(a + 4 * threadIdx.x));
}

// ---- barriers: two groups of 64 threads, each turned round 7 times behind barriers of its own ----
PROBE(128, probe_named_barrier) {
  uint32_t* cells = shared_words();
  PARTS(128, 0, 128);
  const int t = threadIdx.x, group = t / 64;
  uint32_t v = a[t];
  for (int round = 0; round < 7; round++) {
    const int id = 1 + 2 * round + group;
    cells[t] = v;
    named_barrier(id, 64);
    v = cells[group * 64 + (t + 37) % 64] + round;
    named_barrier(id, 64);
  }
  out[t] = v;
}

// ---- reductions ----
// out[thread]: sum, maximum, minimum of the block's words, the sum of their low 10 bits as floats; then the same of the warp.
PROBE(256, probe_reduce) {
  uint32_t* scratch = shared_words();
  PARTS(256, 0, 2048);
  const uint32_t v = a[threadIdx.x];
  const float f = static_cast<float>(v & 1023);
  uint4 r;
  r.x = block_reduce(v, Sum(), 0u, scratch);
  r.y = block_reduce(v, Max(), 0u, scratch);
  r.z = block_reduce(v, Min(), ~0u, scratch);
  r.w = __float_as_uint(block_reduce(f, Sum(), 0.0f, reinterpret_cast<float*>(scratch)));
  store_16(out + 8 * threadIdx.x, r);
  r = make_uint4(warp_reduce(v, Sum()), warp_reduce(v, Max()), warp_reduce(v, Min()), __float_as_uint(warp_reduce(f, Sum())));
  store_16(out + 8 * threadIdx.x + 4, r);
}

// ---- shuffles and votes ----
// out[lane][10].
PROBE(32, probe_shuffle) {
  PARTS(32, 32, 320);
  const int lane = threadIdx.x;
  const uint32_t v = a[lane], w = b[lane];
  out += 10 * lane;
  const int source = static_cast<int>(w % 32);
  out[0] = __shfl_sync(WHOLE_WARP, v, source);
  out[1] = __shfl_sync(WHOLE_WARP, v, source, 8);
  out[2] = __shfl_xor_sync(WHOLE_WARP, v, 5);
  out[3] = __shfl_xor_sync(WHOLE_WARP, v, 6, 4);
  out[4] = __shfl_up_sync(WHOLE_WARP, v, 3);
  out[5] = __shfl_up_sync(WHOLE_WARP, v, 3, 8);
  out[6] = __shfl_down_sync(WHOLE_WARP, v, 9);
  out[7] = __shfl_down_sync(WHOLE_WARP, v, 2, 4);
  const uint64_t pair = __shfl_sync(WHOLE_WARP, static_cast<uint64_t>(v) << 32 | w, 31 - lane);
  out[8] = static_cast<uint32_t>(pair);
  out[9] = static_cast<uint32_t>(pair >> 32);
}

DEVICE void vote(uint32_t mask, uint32_t v, uint32_t w, uint32_t* out) {
  out[0] = __ballot_sync(mask, v & 1);
  out[1] = __any_sync(mask, (v & 15) == 15) != 0;
  out[2] = __all_sync(mask, (v & 15) != 15) != 0;
  out[3] = __shfl_sync(mask, w, __ffs(static_cast<int>(mask)) - 1);
  out[4] = __reduce_add_sync(mask, v);
  out[5] = __reduce_max_sync(mask, v);
  out[6] = __reduce_min_sync(mask, v);
  out[7] = __reduce_or_sync(mask, v & w);
  out[8] = __reduce_and_sync(mask, v | w);
}

// out[lane][18]: of the whole warp, then of the lanes on this lane's side of a branch.
PROBE(32, probe_vote) {
  PARTS(32, 32, 32 * 18);
  const int lane = threadIdx.x;
  const uint32_t v = a[lane], w = b[lane];
  out += 18 * lane;
  vote(WHOLE_WARP, v, w, out);
  const uint32_t thirds = 0x49249249u;  // lanes 0, 3, 6, ...
  if (lane % 3 == 0)
    vote(thirds, v, w, out + 9);
  else
    vote(~thirds, v, w, out + 9);
}

// ---- atomics ----
// Cells of an outcome that does not depend on the order: 0 count, 1 sum of the counts found, 2 maximum, 3 minimum, 4 or,
// 5 sum of small floats, 6 signed sum, 7 count by compare-and-swap; 64 bits wide: 8 sum, 10 maximum, 12 minimum.
DEVICE void probe_atomics(uint32_t* cells, uint32_t v) {
  const unsigned long long wide = static_cast<unsigned long long>(v) << 20 | (v & 0xfffff);
  atomicAdd(cells + 1, atomicAdd(cells, 1u));
  atomicMax(cells + 2, v);
  atomicMin(cells + 3, v);
  atomicOr(cells + 4, 1u << (v % 32));
  atomicAdd(reinterpret_cast<float*>(cells + 5), static_cast<float>(v % 64));
  atomicAdd(reinterpret_cast<int*>(cells + 6), static_cast<int>(v % 64) - 40);
  unsigned expected = 0, found;
  while ((found = atomicCAS(cells + 7, expected, expected + 1)) != expected) expected = found;
  atomicAdd(reinterpret_cast<unsigned long long*>(cells + 8), wide);
  atomicMax(reinterpret_cast<unsigned long long*>(cells + 10), wide);
  atomicMin(reinterpret_cast<unsigned long long*>(cells + 12), wide);
}

// b: what 16 cells begin with; out: 16 cells, then what each thread found in a cell of its own, where it put a.
PROBE(256, probe_atomics_shared) {
  uint32_t* cells = shared_words();
  PARTS(256, 16, 16 + 256);
  const int t = threadIdx.x;
  if (t < 16) cells[t] = b[t];
  cells[16 + t] = 3 * t;
  __syncthreads();
  probe_atomics(cells, a[t]);
  out[16 + t] = atomicExch(cells + 16 + (t + 77) % 256, a[t]);
  __syncthreads();
  if (t < 16) out[t] = cells[t];
}
// out as above, but all blocks share the 16 cells of block 0, whose beginnings stand there already, as do those of the
// threads' own cells.
PROBE(256, probe_atomics_global) {
  uint32_t* shared_cells = out;
  PARTS(256, 0, 16 + 256);
  const int t = threadIdx.x;
  probe_atomics(shared_cells, a[t]);
  uint32_t* own = out + 16 + t;
  const uint32_t found = atomicExch(own, a[t]);
  atomicAdd(own, found);
}

// ---- numbers ----
PROBE(256, probe_exp2) {
  PARTS(256, 0, 256);
  out[threadIdx.x] = __float_as_uint(exp2_approx(__uint_as_float(a[threadIdx.x])));
}

DEVICE uint32_t bits(bf16 x) {
  uint16_t u;
  memcpy(&u, &x, 2);
  return u;
}
DEVICE uint32_t bits(f16 x) {
  uint16_t u;
  memcpy(&u, &x, 2);
  return u;
}

// out[thread][3]: bf16 and, above, f16 of a; both bf16 and both f16 of (a, -a).
PROBE(256, probe_narrow) {
  PARTS(256, 0, 768);
  const float x = __uint_as_float(a[threadIdx.x]);
  out += 3 * threadIdx.x;
  out[0] = bits(from_float<bf16>(x)) | bits(from_float<f16>(x)) << 16;
  out[1] = pack2<bf16>(x, -x);
  out[2] = pack2<f16>(x, -x);
}

// out[thread][2]: the low half of a as bf16 and as f16, widened.
PROBE(256, probe_widen) {
  PARTS(256, 0, 512);
  const uint16_t low = static_cast<uint16_t>(a[threadIdx.x]);
  bf16 x;
  f16 y;
  memcpy(&x, &low, 2);
  memcpy(&y, &low, 2);
  out[2 * threadIdx.x] = __float_as_uint(to_float(x));
  out[2 * threadIdx.x + 1] = __float_as_uint(to_float(y));
}

// a[thread][6]: counter and key; out[thread][9]: the block, the block again by the named words, a number in [0, 1).
PROBE(256, probe_philox) {
  PARTS(256 * 6, 0, 256 * 9);
  a += 6 * threadIdx.x;
  out += 9 * threadIdx.x;
  const uint4 one = philox(make_uint4(a[0], a[1], a[2], a[3]), make_uint2(a[4], a[5]));
  const uint64_t seed = static_cast<uint64_t>(a[5]) << 32 | a[4];
  const uint4 two = philox(seed, a[3], a[2], a[1], a[0]);
  out[0] = one.x, out[1] = one.y, out[2] = one.z, out[3] = one.w;
  out[4] = two.x, out[5] = two.y, out[6] = two.z, out[7] = two.w;
  out[8] = __float_as_uint(unit(one.x));
}

// a[thread][3]: numbers x, y, z. out[thread][12].
PROBE(256, probe_arithmetic) {
  PARTS(256 * 3, 0, 256 * 12);
  a += 3 * threadIdx.x;
  out += 12 * threadIdx.x;
  const float x = __uint_as_float(a[0]), y = __uint_as_float(a[1]), z = __uint_as_float(a[2]);
  out[0] = __float_as_uint(__fmaf_rn(x, y, z));
  out[1] = __float_as_uint(__fadd_rn(__fmul_rn(x, y), z));
  out[2] = __float_as_uint(__fsub_rn(x, y));
  out[3] = __float_as_uint(__fdiv_rn(x, y));
  out[4] = __float_as_uint(__fsqrt_rn(fabs(x)));
  out[5] = __float_as_uint(__frcp_rn(z));
  out[6] = __umulhi(a[0], a[1]);
  const uint64_t wide = static_cast<uint64_t>(a[0]) << 32 | a[1];
  out[7] = static_cast<uint32_t>(__umul64hi(wide, wide ^ a[2]) >> 32);
  out[8] = static_cast<uint32_t>(__clz(static_cast<int>(a[0] >> a[1] % 32)));
  out[9] = static_cast<uint32_t>(__clzll(static_cast<long long>(wide >> a[2] % 64)));
  out[10] = static_cast<uint32_t>(__ffs(static_cast<int>(a[0] << a[1] % 32)));
  out[11] = static_cast<uint32_t>(__popc(a[2]));
}

DEVICE void put(uint32_t* out, double x) {
  unsigned long long u;
  memcpy(&u, &x, 8);
  out[0] = static_cast<uint32_t>(u);
  out[1] = static_cast<uint32_t>(u >> 32);
}
DEVICE double get(const uint32_t* a) {
  const unsigned long long u = static_cast<unsigned long long>(a[1]) << 32 | a[0];
  double x;
  memcpy(&x, &u, 8);
  return x;
}

// a[thread][3]: 64-bit numbers x, y, z. out[thread]: five of 64 bits, one of 32.
PROBE(256, probe_wide_arithmetic) {
  PARTS(256 * 6, 0, 256 * 11);
  a += 6 * threadIdx.x;
  out += 11 * threadIdx.x;
  const double x = get(a), y = get(a + 2), z = get(a + 4);
  put(out, __fma_rn(x, y, z));
  put(out + 2, __dadd_rn(__dmul_rn(x, y), z));
  put(out + 4, __ddiv_rn(x, y));
  put(out + 6, __dadd_rn(x, z));
  put(out + 8, __dmul_rn(y, z));
  out[10] = __float_as_uint(__double2float_rn(x));
}

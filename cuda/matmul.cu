// Matrix products of rows with a weight, in bf16 and f16 on tensor cores, sums in f32.
//
// Contract of nt and nn. x [rows, inputs], rows x_stride apart; out [rows, columns], rows out_stride apart; bias [columns]
// or null; all of one format T, with OUT_F32 out is float. The weight, as it is stored:
//   nt: [columns, inputs], rows weight_stride apart      (torch Linear, embeddings)
//   nn: [inputs, columns], rows weight_stride apart      (GPT-2 Conv1D)
//   out = activation(x W + bias)       the activation is in flags; 0: none
//   out += x W + bias                  with ACCUMULATE; f32(out) + (sum + bias) is rounded once
// rows, columns >= 1; inputs >= 0. The gradient of a product's input is such a product too, with the weight's axes in each
// other's place.
// Contract of tn, the gradient of a weight. x [inputs, rows], rows x_stride apart; weight [inputs, columns], rows
// weight_stride apart; both of format T; out [rows, columns] dense, float:
//   out += xT W                        out + sum is rounded once
// Nothing but these numbers is read or written, but for what is said next. No scratch.
//
// Kernels differ in their tile alone: large 128 x 128, medium 64 x 128, small 64 x 64, few 16 x 32 (rows x columns; not for
// tn). They copy 16 bytes at a time and need: rows of x and of the weight begin on 16 bytes and are a multiple of 8 numbers
// long. Two kinds of rows may be shorter, by up to 7 numbers, which are then read: rows of x of nn, if those numbers are finite
// (they meet zeros); and all rows of tn (they meet what is not stored). `any` (64 x 64) needs nothing.
//
// A sum is one chain: sixteen numbers of k an instruction, in rising order, from zero up to inputs rounded up to 32 (past
// inputs a factor at least is zero). It is the same in every kernel, so an output's bits depend neither on the tile nor on
// the other rows of the launch.
//
// A block computes a tile. Slices of BK numbers of k of both factors pass through STAGES buffers, filled by cp.async
// STAGES - 1 slices ahead; one barrier a slice says that a slice has landed and that the one before is free. 16-byte chunks
// of a row are permuted by an XOR with its number, so that neither copies nor ldmatrix meet bank conflicts. Fragments for
// the next step are read before this step's products. Sums go through shared memory to stores of 16 bytes.
// The shape of the loop is that of the multistage kernels for sm_80 of CUTLASS (github.com/NVIDIA/cutlass).
//
// Dynamic shared memory: Tile::SHARED bytes.
#include "common/gemm.cuh"

KERNEL_FILE(matmul)

template <int BM_, int BN_, int BK_, int WM_, int WN_, int STAGES_, bool PACKED_> struct Tile {
  // Of a block, a slice, a warp.
  static constexpr int BM = BM_, BN = BN_, BK = BK_, WM = WM_, WN = WN_, STAGES = STAGES_;
  static constexpr bool PACKED = PACKED_;
  static constexpr int WARPS_ACROSS = BN / WN, WARPS = BM / WM * WARPS_ACROSS, THREADS = 32 * WARPS;
  static constexpr int STAGE = (BM + BN) * BK;
  static constexpr int STAGED = WM * STAGED_STRIDE<WN>;
  static constexpr int PIPELINE_BYTES = STAGES * STAGE * 2, STAGED_BYTES = WARPS * STAGED * 4;
  static constexpr int SHARED = PIPELINE_BYTES > STAGED_BYTES ? PIPELINE_BYTES : STAGED_BYTES;
};
// As in src/backend/cuda/matmul.rs.
typedef Tile<128, 128, 32, 64, 64, 4, true> Large;
typedef Tile<64, 128, 32, 32, 64, 4, true> Medium;
typedef Tile<64, 64, 32, 32, 32, 4, true> Small;
typedef Tile<16, 32, 64, 16, 16, 8, true> Few;
typedef Tile<64, 64, 32, 32, 32, 4, false> Any;
static_assert(Large::SHARED == 73728 && Medium::SHARED == 49152 && Small::SHARED == 32768 && Few::SHARED == 49152 &&
                  Any::SHARED == 32768,
              "as in src/backend/cuda/matmul.rs");

// Where chunk `chunk` (8 numbers) of row `row` of a slice lies, in rows of CHUNKS chunks. Any 8 rows that follow one
// another have one and the same chunk in 8 different groups of 4 banks.
template <int CHUNKS> DEVICE int swizzled(int row, int chunk) {
  static_assert(CHUNKS == 4 || CHUNKS % 8 == 0, "rows of 64 bytes, or of whole lines of 128");
  return (row * CHUNKS + (chunk ^ (CHUNKS == 4 ? row >> 1 & 3 : row & 7))) * 8;
}

// One thread's part of the copies of a [ROWS, CHUNKS * 8] slice of a row-major matrix.
template <class T, int ROWS, int CHUNKS, int THREADS, bool PACKED> struct Copier {
  static constexpr int APART = THREADS / CHUNKS, COUNT = ROWS / APART;
  static_assert(APART % 8 == 0 && ROWS % APART == 0, "a thread's chunks lie at multiples of 8 rows: one permutation");
  const T* from;
  int64_t stride;
  int row, column, to;

  // `first` is the slice's first number.
  DEVICE Copier(const T* first, int64_t stride) : stride(stride) {
    row = threadIdx.x / CHUNKS;
    column = threadIdx.x % CHUNKS * 8;
    to = swizzled<CHUNKS>(row, column / 8);
    from = first + row * stride + column;
  }
  // Of the slice, `rows` rows and `columns` columns exist (or more): zeros elsewhere.
  DEVICE void copy(T* slice, int rows, int columns) const {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const T* source = from + i * APART * stride;
      T* target = slice + to + i * APART * CHUNKS * 8;
      const bool exists = row + i * APART < rows;
      if (PACKED) {
        cp_async_16(target, source, exists && column < columns);
      } else {
        Pack<T> pack;
#pragma unroll
        for (int j = 0; j < 8; j++) pack.v[j] = exists && column + j < columns ? source[j] : from_float<T>(0.0f);
        store_16(target, as_uint4(pack));
      }
    }
  }
};

// How a factor is stored: k runs along its rows, or from row to row.
enum Stored { K_ALONG, K_DOWN };

// The fragments of one step of 16 numbers of k.
template <class C> struct Fragments {
  uint32_t a[C::WM / 16][4];
  uint32_t b[C::WN / 16][4];  // of two tiles of 8 columns

  template <Stored X, Stored W, class T> DEVICE void load(const T* slice, int warp_row, int warp_column, int step) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < C::WM / 16; i++) {
      if constexpr (X == K_ALONG)
        ldmatrix_x4(a[i], slice + swizzled<C::BK / 8>(warp_row + i * 16 + lane % 16, step * 2 + lane / 16));
      else
        ldmatrix_x4_trans(a[i], slice + swizzled<C::BM / 8>(step * 16 + lane / 16 * 8 + lane % 8,
                                                            warp_row / 8 + i * 2 + lane / 8 % 2));
    }
    const T* weight = slice + C::BM * C::BK;
#pragma unroll
    for (int j = 0; j < C::WN / 16; j++) {
      const int half = lane / 8 % 2, tile = lane / 16, line = lane % 8;  // of k, of columns, within 8
      if (W == K_ALONG)
        ldmatrix_x4(b[j], weight + swizzled<C::BK / 8>(warp_column + j * 16 + tile * 8 + line, step * 2 + half));
      else
        ldmatrix_x4_trans(b[j], weight + swizzled<C::BN / 8>(step * 16 + half * 8 + line, warp_column / 8 + j * 2 + tile));
    }
  }
};

// A block's copies of one factor: the columns (or rows) from `first` on of its tile, slice by slice of k.
template <class C, int WIDTH, Stored F, class T>
struct Slices : Copier<T, F == K_ALONG ? WIDTH : C::BK, (F == K_ALONG ? C::BK : WIDTH) / 8, C::THREADS, C::PACKED> {
  typedef Copier<T, F == K_ALONG ? WIDTH : C::BK, (F == K_ALONG ? C::BK : WIDTH) / 8, C::THREADS, C::PACKED> Copies;

  DEVICE Slices(const T* factor, int first, int stride)
      : Copies(factor + (F == K_ALONG ? static_cast<int64_t>(first) * stride : first), stride) {}
  // The next slice, of which `width` and `left` numbers exist (or more).
  DEVICE void next(T* slice, int width, int left) {
    this->copy(slice, F == K_ALONG ? width : left, F == K_ALONG ? left : width);
    this->from += F == K_ALONG ? C::BK : static_cast<int64_t>(C::BK) * this->stride;
  }
};

// The sums of a warp's part of the tile at `at`. Behind it, other warps may still read the shared memory.
template <class C, Stored X, Stored W, class T>
DEVICE void multiply(T* shared, const T* __restrict__ x, const T* __restrict__ weight, TilePlace at, int warp_row,
                     int warp_column, int rows, int columns, int inputs, int x_stride, int weight_stride,
                     float (&sums)[C::WM / 16][C::WN / 8][4]) {
  constexpr int STEPS = C::BK / 16;
  static_assert(STEPS % 2 == 0, "the two sets of fragments take turns");
  Slices<C, C::BM, X, T> a(x, at.row, x_stride);
  Slices<C, C::BN, W, T> b(weight, at.column, weight_stride);
  int left = inputs;  // of k, from the next slice to copy on
  const auto copy = [&](int stage) {
    T* slice = shared + stage * C::STAGE;
    a.next(slice, rows - at.row, left);
    b.next(slice + C::BM * C::BK, columns - at.column, left);
    left -= C::BK;
  };

  Fragments<C> fragments[2];
  const int slices = (inputs - 1) / C::BK + 1;  // one of zeros where inputs is 0
#pragma unroll 1
  for (int i = 0; i < C::STAGES - 1; i++) {
    if (i < slices) copy(i);
    cp_async_commit();
  }
  cp_async_wait<C::STAGES - 2>();
  __syncthreads();
  fragments[0].template load<X, W>(shared, warp_row, warp_column, 0);
  int current = 0, free = C::STAGES - 1;
#pragma unroll 1
  for (int i = 0; i < slices; i++) {
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      if (step + 1 < STEPS) {
        fragments[(step + 1) % 2].template load<X, W>(shared + current * C::STAGE, warp_row, warp_column, step + 1);
      } else if (i + 1 < slices) {
        current = current + 1 == C::STAGES ? 0 : current + 1;
        // The next slice has landed, here and (barrier) for all threads; and all have read the last of this one.
        cp_async_wait<C::STAGES - 2>();
        __syncthreads();
        fragments[0].template load<X, W>(shared + current * C::STAGE, warp_row, warp_column, 0);
      }
      if (step == 0) {
        // The slice before this one was read before the last barrier.
        if (i + C::STAGES - 1 < slices) copy(free);
        cp_async_commit();
        free = free + 1 == C::STAGES ? 0 : free + 1;
      }
      // Slices longer than 32 stop where those of 32 do.
      if (C::BK == 32 || i * C::BK + step / 2 * 32 < inputs) {
        const Fragments<C>& f = fragments[step % 2];
#pragma unroll
        for (int m = 0; m < C::WM / 16; m++)
#pragma unroll
          for (int n = 0; n < C::WN / 8; n++)
            mma_m16n8k16(T(), sums[m][n], f.a[m], f.b[n / 2][n % 2 * 2], f.b[n / 2][n % 2 * 2 + 1]);
      }
    }
  }
}

// A warp's sums, row by row in shared memory of its own.
template <class C> DEVICE void stage(float* staged, const float (&sums)[C::WM / 16][C::WN / 8][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < C::WM / 16; m++)
#pragma unroll
    for (int n = 0; n < C::WN / 8; n++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float* to = staged + (m * 16 + half * 8 + lane / 4) * STAGED_STRIDE<C::WN> + n * 8 + lane % 4 * 2;
        *reinterpret_cast<float2*>(to) = make_float2(sums[m][n][half * 2], sums[m][n][half * 2 + 1]);
      }
  __syncwarp();
}

template <class C, Stored W, class T>
DEVICE void linear(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias, void* out, int rows,
                   int columns, int inputs, int x_stride, int weight_stride, int out_stride, unsigned flags) {
  DYN_SMEM(T, shared);
  const int warp = threadIdx.x / 32;
  const int warp_row = warp / C::WARPS_ACROSS * C::WM, warp_column = warp % C::WARPS_ACROSS * C::WN;
  const TilePlace at = tile_place<C::BM, C::BN>(rows, columns);
  float sums[C::WM / 16][C::WN / 8][4] = {};
  multiply<C, K_ALONG, W>(shared, x, weight, at, warp_row, warp_column, rows, columns, inputs, x_stride, weight_stride, sums);
  // The buffers are free for the sums when all warps have read their last fragments.
  __syncthreads();
  float* staged = reinterpret_cast<float*>(shared) + warp * C::STAGED;
  stage<C>(staged, sums);
  const int row = at.row + warp_row, column = at.column + warp_column;
  const T* b0 = bias ? bias + column : nullptr;
  const int64_t first = static_cast<int64_t>(row) * out_stride + column;
  const auto store = [&](auto* to) {
    typedef std::remove_pointer_t<decltype(to)> O;
    if (flags & ACCUMULATE)
      store_tile<T, O, true, C::WM, C::WN>(staged, b0, to, out_stride, rows - row, columns - column, flags);
    else
      store_tile<T, O, false, C::WM, C::WN>(staged, b0, to, out_stride, rows - row, columns - column, flags);
  };
  if (flags & OUT_F32) store(static_cast<float*>(out) + first);
  else store(static_cast<T*>(out) + first);
}

template <class C, class T>
DEVICE void add_outer(const T* __restrict__ x, const T* __restrict__ weight, float* out, int rows, int columns, int inputs,
                      int x_stride, int weight_stride) {
  DYN_SMEM(T, shared);
  const int warp = threadIdx.x / 32;
  const int warp_row = warp / C::WARPS_ACROSS * C::WM, warp_column = warp % C::WARPS_ACROSS * C::WN;
  const TilePlace at = tile_place<C::BM, C::BN>(rows, columns);
  float sums[C::WM / 16][C::WN / 8][4] = {};
  multiply<C, K_DOWN, K_DOWN>(shared, x, weight, at, warp_row, warp_column, rows, columns, inputs, x_stride, weight_stride,
                              sums);
  __syncthreads();  // as in `linear`
  float* staged = reinterpret_cast<float*>(shared) + warp * C::STAGED;
  stage<C>(staged, sums);
  const int row = at.row + warp_row, column = at.column + warp_column;
  out += static_cast<int64_t>(row) * columns + column;
  store_tile<T, float, true, C::WM, C::WN>(staged, nullptr, out, columns, rows - row, columns - column, ACCUMULATE);
}

#define LINEAR_KERNEL(TILE, BLOCKS, NAME, LAYOUT, STORED, T, SUFFIX)                                                   \
  KERNEL(TILE::THREADS, BLOCKS, matmul_##LAYOUT##_##NAME##_##SUFFIX,                                                   \
         (const T* x, const T* weight, const T* bias, void* out, int rows, int columns, int inputs, int x_stride,      \
          int weight_stride, int out_stride, unsigned flags)) {                                                        \
    linear<TILE, STORED>(x, weight, bias, out, rows, columns, inputs, x_stride, weight_stride, out_stride, flags);     \
  }
#define LINEAR_KERNELS(LAYOUT, STORED, T, SUFFIX)                  \
  LINEAR_KERNEL(Large, 2, large, LAYOUT, STORED, T, SUFFIX)        \
  LINEAR_KERNEL(Medium, 3, medium, LAYOUT, STORED, T, SUFFIX)      \
  LINEAR_KERNEL(Small, 4, small, LAYOUT, STORED, T, SUFFIX)        \
  LINEAR_KERNEL(Few, 4, few, LAYOUT, STORED, T, SUFFIX)            \
  LINEAR_KERNEL(Any, 3, any, LAYOUT, STORED, T, SUFFIX)
LINEAR_KERNELS(nt, K_ALONG, bf16, bf16)
LINEAR_KERNELS(nn, K_DOWN, bf16, bf16)
LINEAR_KERNELS(nt, K_ALONG, f16, f16)
LINEAR_KERNELS(nn, K_DOWN, f16, f16)

#define OUTER_KERNEL(TILE, BLOCKS, NAME, T, SUFFIX)                                                                   \
  KERNEL(TILE::THREADS, BLOCKS, matmul_tn_##NAME##_##SUFFIX,                                                          \
         (const T* x, const T* weight, float* out, int rows, int columns, int inputs, int x_stride, int weight_stride)) { \
    add_outer<TILE>(x, weight, out, rows, columns, inputs, x_stride, weight_stride);                                  \
  }
#define OUTER_KERNELS(T, SUFFIX)               \
  OUTER_KERNEL(Large, 2, large, T, SUFFIX)     \
  OUTER_KERNEL(Medium, 3, medium, T, SUFFIX)   \
  OUTER_KERNEL(Small, 4, small, T, SUFFIX)     \
  OUTER_KERNEL(Any, 3, any, T, SUFFIX)
OUTER_KERNELS(bf16, bf16)
OUTER_KERNELS(f16, f16)

// Sums and maxima over a warp and a block, always in the same order.
#pragma once
#include "kernel.cuh"

constexpr unsigned WHOLE_WARP = 0xffffffffu;

struct Sum {
  template <class T> DEVICE T operator()(T a, T b) const { return a + b; }
};
struct Max {
  template <class T> DEVICE T operator()(T a, T b) const { return a > b ? a : b; }
};
struct Min {
  template <class T> DEVICE T operator()(T a, T b) const { return a < b ? a : b; }
};

// All lanes get the result. For commutative operations every lane's order is the same up to exchange of operands.
template <class Op, class T> DEVICE T warp_reduce(T x, Op op) {
  for (int step = 16; step > 0; step /= 2) x = op(x, __shfl_xor_sync(WHOLE_WARP, x, step));
  return x;
}

// All threads of the block get the result. `scratch` holds one T a warp; it is free again on return. blockDim.x is a
// multiple of 32, at most 1024, and every thread of the block calls this.
template <class Op, class T> DEVICE T block_reduce(T x, Op op, T identity, T* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  x = warp_reduce(x, op);
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  x = warp_reduce(lane < warps ? scratch[lane] : identity, op);
  __syncthreads();
  return x;
}

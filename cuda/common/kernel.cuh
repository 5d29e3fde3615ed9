// What every kernel file includes first: the two worlds that it is compiled for.
//
// nvcc makes device code of a kernel file. A C++ compiler makes host code of the same file against
// cuda/simt, a machine that runs a block's threads as fibers. Kernel files hold no #if about it.
//
//   KERNEL_FILE(norm)                                  once a file, with the file's stem
//   KERNEL(256, 2, norm_layer_f32, (const float* x, ...)) { ... }
//                                                      a kernel: threads a block, blocks an SM at least
//   DYN_SMEM(float, tile);                             dynamic shared memory, 128-byte aligned. The only kind that
//                                                      kernels use: the host machine poisons and watches it.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define KERNEL_FILE(STEM)
#define KERNEL(THREADS, MIN_BLOCKS, NAME, PARAMS) \
  extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) NAME PARAMS
extern __shared__ __align__(128) unsigned char dynamic_smem[];
#define DYN_SMEM(T, NAME) T* NAME = reinterpret_cast<T*>(dynamic_smem)
#else
#include "../simt/simt.hpp"

#define KERNEL_FILE(STEM) \
  extern "C" void simt_file_##STEM() {}
// Mutants of a file (build/simt.rs) have other names than the file's own kernels.
#ifndef KERNEL_PREFIX
#define KERNEL_PREFIX
#endif
#define KERNEL(THREADS, MIN_BLOCKS, NAME, PARAMS) SIMT_EXPAND(KERNEL_PREFIX, THREADS, NAME, PARAMS)
#define SIMT_EXPAND(PREFIX, THREADS, NAME, PARAMS) SIMT_PASTE(PREFIX, THREADS, NAME, PARAMS)
#define SIMT_PASTE(PREFIX, THREADS, NAME, PARAMS) SIMT_KERNEL(PREFIX##NAME, THREADS, PARAMS)
#define SIMT_KERNEL(NAME, THREADS, PARAMS)                                                  \
  extern "C" void NAME PARAMS;                                                              \
  static const simt::Registration simt_registration_##NAME(#NAME, __FILE__, THREADS, NAME); \
  extern "C" void NAME PARAMS
#define DYN_SMEM(T, NAME) T* NAME = reinterpret_cast<T*>(simt::shared_memory())
#endif

#define DEVICE __device__ __forceinline__

typedef __nv_bfloat16 bf16;
typedef __half f16;

#include "ptx.cuh"
#include "types.cuh"

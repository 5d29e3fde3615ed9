// Kernels with one fault each, and a few that look faulty and are not: tests/simt/machine.rs expects the machine to
// tell which is which. A fault is reported at the line marked HERE, with the line marked OTHER as its other party.
// Built for the SIMT machine only.
#include "common/reduce.cuh"

KERNEL_FILE(faulty)

// ---- shared memory ----
KERNEL(64, 1, faulty_read_before_write, (float* out)) {
  DYN_SMEM(float, s);
  s[threadIdx.x] = 1.0f;  // OTHER faulty_read_before_write
  out[threadIdx.x] = s[63 - threadIdx.x];  // HERE faulty_read_before_write
}
KERNEL(64, 1, faulty_write_after_read, (float* out)) {
  DYN_SMEM(float, s);
  s[threadIdx.x] = 1.0f;
  __syncthreads();
  const float x = s[63 - threadIdx.x];  // OTHER faulty_write_after_read
  s[threadIdx.x] = 2.0f;  // HERE faulty_write_after_read
  out[threadIdx.x] = x;
}
KERNEL(64, 1, faulty_write_write, (float* out)) {
  DYN_SMEM(float, s);
  s[threadIdx.x / 2] = 1.0f;  // HERE faulty_write_write OTHER faulty_write_write
  out[threadIdx.x] = 0.0f;
}
KERNEL(32, 1, faulty_shuffle_is_no_fence, (float* out)) {
  DYN_SMEM(float, s);
  s[threadIdx.x] = 1.0f;  // OTHER faulty_shuffle_is_no_fence
  const float x = __shfl_sync(WHOLE_WARP, 1.0f, 0);
  out[threadIdx.x] = x + s[31 - threadIdx.x];  // HERE faulty_shuffle_is_no_fence
}
KERNEL(64, 1, faulty_syncwarp_across_warps, (float* out)) {
  DYN_SMEM(float, s);
  s[threadIdx.x] = 1.0f;  // OTHER faulty_syncwarp_across_warps
  __syncwarp();
  out[threadIdx.x] = s[63 - threadIdx.x];  // HERE faulty_syncwarp_across_warps
}
KERNEL(32, 1, faulty_never_written, (float* out)) {
  DYN_SMEM(float, s);
  if (threadIdx.x < 31) s[threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];  // HERE faulty_never_written
}
KERNEL(32, 1, faulty_shared_overrun, (float* out)) {
  DYN_SMEM(float, s);
  s[threadIdx.x + 1] = 1.0f;  // HERE faulty_shared_overrun
  out[threadIdx.x] = 1.0f;
}
KERNEL(32, 1, faulty_misaligned, (float* out)) {
  DYN_SMEM(float, s);
  store_16(s + 1 + 0 * threadIdx.x, make_uint4(0, 0, 0, 0));  // HERE faulty_misaligned
  out[threadIdx.x] = 1.0f;
}

// ---- asynchronous copies ----
KERNEL(32, 1, faulty_copy_not_waited_for, (const float* x, float* out)) {
  DYN_SMEM(float, s);
  cp_async_16(s + threadIdx.x * 4, x + threadIdx.x * 4);  // OTHER faulty_copy_not_waited_for
  cp_async_commit();
  out[threadIdx.x] = s[threadIdx.x * 4];  // HERE faulty_copy_not_waited_for
  cp_async_wait<0>();
}
KERNEL(64, 1, faulty_copy_without_barrier, (const float* x, float* out)) {
  DYN_SMEM(float, s);
  cp_async_16(s + threadIdx.x * 4, x + threadIdx.x * 4);  // OTHER faulty_copy_without_barrier
  cp_async_commit();
  cp_async_wait<0>();
  out[threadIdx.x] = s[(63 - threadIdx.x) * 4];  // HERE faulty_copy_without_barrier
}
KERNEL(32, 1, faulty_copy_never_waited_for, (const float* x, float* out)) {
  DYN_SMEM(float, s);
  cp_async_16(s + threadIdx.x * 4, x + threadIdx.x * 4);  // HERE faulty_copy_never_waited_for
  cp_async_commit();
  out[threadIdx.x] = 1.0f;
}

// ---- global memory ----
KERNEL(32, 1, faulty_read_past_the_end, (const float* x, float* out)) {
  out[threadIdx.x] = x[threadIdx.x + 1];  // HERE faulty_read_past_the_end
}
KERNEL(32, 1, faulty_write_to_input, (const float* x, float* out)) {
  const_cast<float*>(x)[threadIdx.x] = 1.0f;  // HERE faulty_write_to_input
  out[threadIdx.x] = 1.0f;
}
KERNEL(32, 1, faulty_output_not_written, (float* out)) {
  if (threadIdx.x != 7) out[threadIdx.x] = 1.0f;
}
KERNEL(32, 1, faulty_blocks_race, (float* out)) {
  out[threadIdx.x] = 1.0f;  // HERE faulty_blocks_race OTHER faulty_blocks_race
}

// ---- barriers and warps ----
KERNEL(64, 1, faulty_divergent_barrier, (float* out)) {
  if (threadIdx.x < 32) {
    __syncthreads();  // EITHER faulty_divergent_barrier
  } else {
    __syncthreads();  // EITHER faulty_divergent_barrier
  }
  out[threadIdx.x] = 1.0f;
}
KERNEL(64, 1, faulty_barrier_after_exit, (float* out)) {
  out[threadIdx.x] = 1.0f;
  if (threadIdx.x >= 32) return;
  __syncthreads();  // HERE faulty_barrier_after_exit
}
KERNEL(32, 1, faulty_divergent_shuffle, (float* out)) {
  float x = 1.0f;
  if (threadIdx.x < 16) {
    x = __shfl_sync(WHOLE_WARP, x, 0);  // EITHER faulty_divergent_shuffle
  } else {
    x = __shfl_sync(WHOLE_WARP, x, 1);  // EITHER faulty_divergent_shuffle
  }
  out[threadIdx.x] = x;
}
KERNEL(32, 1, faulty_wrong_mask, (float* out)) {
  out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1.0f, 1);  // HERE faulty_wrong_mask
}
KERNEL(32, 1, faulty_mask_of_exited_lanes, (float* out)) {
  out[threadIdx.x] = 1.0f;
  if (threadIdx.x >= 16) return;
  out[threadIdx.x] = __shfl_xor_sync(WHOLE_WARP, 1.0f, 1);  // HERE faulty_mask_of_exited_lanes
}

// ---- not faulty ----
KERNEL(64, 1, faultless_subset_first, (float* out)) {
  // Half a warp meets by itself, then with the others.
  float x = 1.0f;
  if (threadIdx.x % 32 >= 16) x = __shfl_xor_sync(0xffff0000u, x, 1);
  out[threadIdx.x] = __shfl_xor_sync(WHOLE_WARP, x, 16);
}
KERNEL(64, 1, faultless_atomics, (unsigned* out)) {
  DYN_SMEM(unsigned, s);
  if (threadIdx.x == 0) s[0] = 0;
  __syncthreads();
  atomicAdd(s, 1u);
  __syncthreads();
  out[threadIdx.x] = s[0];
}
KERNEL(64, 1, faultless_named_barrier, (float* out)) {
  DYN_SMEM(float, s);
  s[threadIdx.x] = 1.0f;
  named_barrier(1 + threadIdx.x / 32, 32);
  out[threadIdx.x] = s[threadIdx.x / 32 * 32 + 31 - threadIdx.x % 32];
}
KERNEL(64, 1, faultless_own_bytes, (bf16* out)) {
  // Neighbours' bytes are not shared: two threads write one 32-bit word.
  DYN_SMEM(bf16, s);
  s[threadIdx.x] = from_float<bf16>(1.0f);
  out[threadIdx.x] = s[threadIdx.x];
}

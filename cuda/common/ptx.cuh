// All inline PTX, one function an instruction; on the host each is the SIMT machine's own version.
// Names follow the PTX ISA. Nothing else in cuda/ may use asm.
#pragma once

#ifdef __CUDACC__

DEVICE uint32_t smem_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// cp.async: 16 bytes from global to shared memory, both 16-byte aligned; zeros where !pred (src is then not read).
DEVICE void cp_async_16(void* dst, const void* src, bool pred = true) {
  int n = pred ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(smem_address(dst)), "l"(src), "r"(n) : "memory");
}
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Until at most N of this thread's newest groups are in flight.
template <int N>
DEVICE void cp_async_wait() { asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory"); }

// ldmatrix: four 8 x 8 matrices of 16-bit numbers; lane l gives the address of row l % 8 of matrix l / 8,
// and gets of matrix i, in r[i], the numbers 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 (or of column l / 4 with trans).
DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(smem_address(row))
               : "memory");
}
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(smem_address(row))
               : "memory");
}

// mma.sync m16n8k16: d += a b, a [16, 16] row-major, b [16, 8] column-major, d [16, 8] in f32.
DEVICE void mma_m16n8k16(bf16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};\n"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void mma_m16n8k16(f16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};\n"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 2^x, relative error about 2^-22; subnormals count as zero.
DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// bar.sync: `threads` of the block, those that name barrier `id` (1 to 15).
DEVICE void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

// One access of 16 bytes, to 16-byte aligned memory of any kind.
DEVICE uint4 load_16(const void* p) { return *reinterpret_cast<const uint4*>(p); }
DEVICE void store_16(void* p, uint4 v) { *reinterpret_cast<uint4*>(p) = v; }
// To global memory. The compiler takes a plain store of a structure apart again where it knows the numbers in it.
DEVICE void store_16_global(void* p, uint4 v) {
  asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};\n" ::"l"(__cvta_generic_to_global(p)), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}
// From global memory that this launch does not write and that no one will read again soon: not kept in the first-level cache.
DEVICE uint4 load_16_streaming(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

#else

inline void cp_async_16(void* dst, const void* src, bool pred = true, SIMT_HERE) { simt::cp_async(dst, src, 16, pred, here); }
inline void cp_async_commit() { simt::cp_async_commit(); }
template <int N>
inline void cp_async_wait() { simt::cp_async_wait(N); }
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, SIMT_HERE) { simt::ldmatrix_x4(r, row, false, here); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, SIMT_HERE) { simt::ldmatrix_x4(r, row, true, here); }
inline void mma_m16n8k16(bf16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, SIMT_HERE) {
  simt::mma_m16n8k16(simt::bf16_to_float, d, a, b0, b1, here);
}
inline void mma_m16n8k16(f16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, SIMT_HERE) {
  simt::mma_m16n8k16(simt::f16_to_float, d, a, b0, b1, here);
}
inline float exp2_approx(float x) { return simt::exp2_approx(x); }
inline void named_barrier(int id, int threads, SIMT_HERE) { simt::block_barrier(id, threads, here); }
// One access for the compiler's hooks, too.
typedef uint32_t Bytes16 __attribute__((vector_size(16), may_alias));
inline uint4 load_16(const void* p) {
  const Bytes16 v = *static_cast<const Bytes16*>(p);
  return make_uint4(v[0], v[1], v[2], v[3]);
}
inline void store_16(void* p, uint4 v) { *static_cast<Bytes16*>(p) = Bytes16{v.x, v.y, v.z, v.w}; }
inline void store_16_global(void* p, uint4 v) { store_16(p, v); }
inline uint4 load_16_streaming(const void* p) { return load_16(p); }

#endif

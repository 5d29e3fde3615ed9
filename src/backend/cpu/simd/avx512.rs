//! A vector as one 512-bit register: AVX-512 F, BW, DQ, VL.

use std::arch::x86_64::*;

use super::{Kernel, Simd, math, pack_rows_scalar};
use crate::element::Dtype;

/// 16 `f32` in one register. A value exists only inside [`call`].
#[derive(Clone, Copy)]
pub struct Avx512(());

/// Runs `kernel` compiled with these instructions.
///
/// # Safety
/// The CPU has AVX-512 F, BW, DQ and VL, AVX2, FMA and F16C.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn call<K: Kernel<f32>>(kernel: K) -> K::Out {
    kernel.run(Avx512(()))
}

/// Defines lane-wise methods by one intrinsic.
macro_rules! lanewise {
    ($($name:ident($($arg:ident),*) = $intrinsic:ident;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Self::V),*) -> Self::V {
            // SAFETY: `self` exists only where AVX-512 does (`call`).
            unsafe { $intrinsic($($arg),*) }
        }
    )*};
}

impl Simd<f32> for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    const TILE_ROWS: usize = 12;
    const TILE_VECTORS: usize = 2;

    lanewise! {
        add(a, b) = _mm512_add_ps;
        sub(a, b) = _mm512_sub_ps;
        mul(a, b) = _mm512_mul_ps;
        div(a, b) = _mm512_div_ps;
        max(a, b) = _mm512_max_ps;
        min(a, b) = _mm512_min_ps;
        fma(a, b, c) = _mm512_fmadd_ps;
        abs(a) = _mm512_abs_ps;
        sqrt(a) = _mm512_sqrt_ps;
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` exists only where AVX-512 does.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn select(self, bits: u32, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` exists only where AVX-512 does.
        unsafe { _mm512_mask_blend_ps(bits as __mmask16, b, a) }
    }
    #[inline(always)]
    fn where_negative(self, x: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` exists only where AVX-512 does.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_setzero_ps()), b, a) }
    }
    #[inline(always)]
    fn exp(self, x: __m512) -> __m512 {
        math::exp_f32(self, x, round, scale)
    }
    #[inline(always)]
    fn erfc(self, x: __m512) -> __m512 {
        math::erfc_f32(self, x)
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: the caller vouches for 16 readable numbers; AVX-512 is there.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        // SAFETY: the caller vouches for 16 writable numbers; AVX-512 is there.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> __m512 {
        // SAFETY: masked-off lanes are not accessed; the caller vouches for the other `n`.
        unsafe { _mm512_maskz_loadu_ps(((1u32 << n) - 1) as __mmask16, p) }
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, v: __m512, n: usize) {
        // SAFETY: masked-off lanes are not accessed; the caller vouches for the other `n`.
        unsafe { _mm512_mask_storeu_ps(p, ((1u32 << n) - 1) as __mmask16, v) }
    }
    #[inline(always)]
    unsafe fn load_stored(self, dtype: Dtype, p: *const u8) -> __m512 {
        // SAFETY: the caller vouches for 16 stored numbers; these loads need no alignment.
        unsafe {
            match dtype {
                Dtype::F32 => _mm512_loadu_ps(p.cast()),
                Dtype::F16 => _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())),
                Dtype::Bf16 => {
                    let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn pack_rows(
        self,
        dtype: Dtype,
        src: *const u8,
        row_bytes: usize,
        rows: usize,
        k: usize,
        dst: *mut f32,
        ld: usize,
        ahead: usize,
    ) {
        // SAFETY: the caller's promises; a block reads 64 bytes that end at or before number `k`
        // of rows below `rows`, and writes lanes `0 .. 16` of the same rows of `dst`.
        unsafe {
            let per_block = 64 / dtype.size();
            if k < per_block {
                return pack_rows_scalar(dtype, src, row_bytes, rows, k, dst, ld, 16);
            }
            let mut i = 0;
            while i < k {
                // The last block overlaps the one before it rather than running over.
                let at = i.min(k - per_block);
                let mut block = [_mm512_setzero_ps(); 16];
                for (lane, v) in block.iter_mut().enumerate() {
                    let row = lane.min(rows - 1);
                    let from = src.add(row * row_bytes + at * dtype.size());
                    if ahead != 0 {
                        self.prefetch(from.wrapping_add(ahead));
                    }
                    *v = _mm512_loadu_ps(from.cast());
                }
                let words = transpose16(block);
                let to = dst.add(at * ld);
                match dtype {
                    Dtype::F32 => {
                        for (j, v) in words.into_iter().enumerate() {
                            _mm512_storeu_ps(to.add(j * ld), v);
                        }
                    }
                    // A word holds two neighbours of a row: the first in its low half.
                    Dtype::F16 => {
                        for (j, v) in words.into_iter().enumerate() {
                            let v = _mm512_castps_si512(v);
                            let low = _mm512_cvtepi32_epi16(v);
                            let high = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(v));
                            _mm512_storeu_ps(to.add(2 * j * ld), _mm512_cvtph_ps(low));
                            _mm512_storeu_ps(to.add((2 * j + 1) * ld), _mm512_cvtph_ps(high));
                        }
                    }
                    Dtype::Bf16 => {
                        for (j, v) in words.into_iter().enumerate() {
                            let v = _mm512_castps_si512(v);
                            let low = _mm512_slli_epi32::<16>(v);
                            let high = _mm512_and_si512(v, _mm512_set1_epi32(0xFFFF_0000_u32 as i32));
                            _mm512_storeu_ps(to.add(2 * j * ld), _mm512_castsi512_ps(low));
                            _mm512_storeu_ps(to.add((2 * j + 1) * ld), _mm512_castsi512_ps(high));
                        }
                    }
                }
                i += per_block;
            }
        }
    }
    #[inline(always)]
    unsafe fn transpose(
        self,
        src: *const f32,
        stride: usize,
        rows: usize,
        k: usize,
        dst: *mut f32,
        ld: usize,
    ) {
        // SAFETY: the same promises; an `f32` in memory is its stored form on x86.
        unsafe { self.pack_rows(Dtype::F32, src.cast(), 4 * stride, rows, k, dst, ld, 0) }
    }
    #[inline(always)]
    fn first(self, v: Self::V) -> f32 {
        // SAFETY: `self` exists only where AVX-512 does.
        unsafe { _mm512_cvtss_f32(v) }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a prefetch touches no memory that the program could see, at any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        // SAFETY: `self` exists only where AVX-512 does.
        unsafe {
            let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    fn maximum(self, v: __m512) -> f32 {
        // SAFETY: `self` exists only where AVX-512 does.
        unsafe {
            let v = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }
    }
}

#[inline(always)]
fn round(_: Avx512, v: __m512) -> __m512 {
    // SAFETY: an `Avx512` exists only where AVX-512 does.
    unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
}

#[inline(always)]
fn scale(_: Avx512, p: __m512, n: __m512) -> __m512 {
    // SAFETY: an `Avx512` exists only where AVX-512 does.
    unsafe { _mm512_scalef_ps(p, n) }
}

/// Transposes a 16 x 16 block: neighbours, pairs, then the 128-bit quarters twice.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose16(r: [__m512; 16]) -> [__m512; 16] {
    let mut pair = r;
    for i in (0..16).step_by(2) {
        pair[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        pair[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    // quad[4 g + c] holds, in quarter q, column 4 q + c of rows 4 g .. 4 g + 4.
    let mut quad = r;
    for i in (0..16).step_by(4) {
        quad[i] = _mm512_shuffle_ps::<0x44>(pair[i], pair[i + 2]);
        quad[i + 1] = _mm512_shuffle_ps::<0xEE>(pair[i], pair[i + 2]);
        quad[i + 2] = _mm512_shuffle_ps::<0x44>(pair[i + 1], pair[i + 3]);
        quad[i + 3] = _mm512_shuffle_ps::<0xEE>(pair[i + 1], pair[i + 3]);
    }
    let mut out = r;
    for c in 0..4 {
        let (a, b) = (quad[c], quad[4 + c]);
        let (d, e) = (quad[8 + c], quad[12 + c]);
        let ab_even = _mm512_shuffle_f32x4::<0x88>(a, b);
        let ab_odd = _mm512_shuffle_f32x4::<0xDD>(a, b);
        let de_even = _mm512_shuffle_f32x4::<0x88>(d, e);
        let de_odd = _mm512_shuffle_f32x4::<0xDD>(d, e);
        out[c] = _mm512_shuffle_f32x4::<0x88>(ab_even, de_even);
        out[8 + c] = _mm512_shuffle_f32x4::<0xDD>(ab_even, de_even);
        out[4 + c] = _mm512_shuffle_f32x4::<0x88>(ab_odd, de_odd);
        out[12 + c] = _mm512_shuffle_f32x4::<0xDD>(ab_odd, de_odd);
    }
    out
}

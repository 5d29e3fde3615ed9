//! A vector as two 256-bit registers: AVX2, FMA, F16C.

use std::arch::x86_64::*;

use super::portable::Portable;
use super::{Kernel, Simd, math, pack_rows_scalar};
use crate::element::Dtype;

/// 16 `f32` in two registers. A value exists only inside [`call`].
#[derive(Clone, Copy)]
pub struct Avx2(());

/// Runs `kernel` compiled with these instructions.
///
/// # Safety
/// The CPU has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn call<K: Kernel<f32>>(kernel: K) -> K::Out {
    kernel.run(Avx2(()))
}

/// Runs the portable code of `kernel` compiled with these instructions.
///
/// # Safety
/// The CPU has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn call_portable<K: Kernel<f64>>(kernel: K) -> K::Out {
    kernel.run(Portable)
}

/// Defines lane-wise methods by one intrinsic on both halves.
macro_rules! lanewise {
    ($($name:ident($($arg:ident),*) = $intrinsic:ident;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Self::V),*) -> Self::V {
            // SAFETY: `self` exists only where AVX2 and FMA do (`call`).
            unsafe { ($intrinsic($($arg.0),*), $intrinsic($($arg.1),*)) }
        }
    )*};
}

impl Simd<f32> for Avx2 {
    type V = (__m256, __m256);
    const LANES: usize = 16;
    const TILE_ROWS: usize = 6;
    const TILE_VECTORS: usize = 1;

    lanewise! {
        add(a, b) = _mm256_add_ps;
        sub(a, b) = _mm256_sub_ps;
        mul(a, b) = _mm256_mul_ps;
        div(a, b) = _mm256_div_ps;
        max(a, b) = _mm256_max_ps;
        min(a, b) = _mm256_min_ps;
        fma(a, b, c) = _mm256_fmadd_ps;
        abs(a) = abs8;
        sqrt(a) = _mm256_sqrt_ps;
        where_negative(x, a, b) = where_negative8;
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: `self` exists only where AVX2 does.
        let v = unsafe { _mm256_set1_ps(x) };
        (v, v)
    }
    #[inline(always)]
    fn select(self, bits: u32, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` exists only where AVX2 does.
        unsafe {
            let (low, high) = (lane_mask(bits), lane_mask(bits >> 8));
            (_mm256_blendv_ps(b.0, a.0, low), _mm256_blendv_ps(b.1, a.1, high))
        }
    }
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        math::exp_f32(self, x, round, scale)
    }
    #[inline(always)]
    fn erfc(self, x: Self::V) -> Self::V {
        math::erfc_f32(self, x)
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::V {
        // SAFETY: the caller vouches for 16 readable numbers; AVX2 is there.
        unsafe { (_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::V) {
        // SAFETY: the caller vouches for 16 writable numbers; AVX2 is there.
        unsafe {
            _mm256_storeu_ps(p, v.0);
            _mm256_storeu_ps(p.add(8), v.1);
        }
    }
    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> Self::V {
        let bits = (1u32 << n) - 1;
        // SAFETY: masked-off lanes are not accessed; the caller vouches for the other `n`.
        unsafe {
            if n == 16 {
                return self.load(p);
            }
            let (low, high) = (lane_mask(bits), lane_mask(bits >> 8));
            (
                _mm256_maskload_ps(p, _mm256_castps_si256(low)),
                _mm256_maskload_ps(p.wrapping_add(8), _mm256_castps_si256(high)),
            )
        }
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, v: Self::V, n: usize) {
        let bits = (1u32 << n) - 1;
        // SAFETY: masked-off lanes are not accessed; the caller vouches for the other `n`.
        unsafe {
            if n == 16 {
                return self.store(p, v);
            }
            let (low, high) = (lane_mask(bits), lane_mask(bits >> 8));
            _mm256_maskstore_ps(p, _mm256_castps_si256(low), v.0);
            _mm256_maskstore_ps(p.wrapping_add(8), _mm256_castps_si256(high), v.1);
        }
    }
    #[inline(always)]
    unsafe fn load_stored(self, dtype: Dtype, p: *const u8) -> Self::V {
        // SAFETY: the caller vouches for 16 stored numbers.
        unsafe { (load8(dtype, p), load8(dtype, p.add(8 * dtype.size()))) }
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
        // SAFETY: the caller's promises; a block reads numbers `i .. i + 8 <= k` (of bf16 `i .. i + 16 <= k`) of rows
        // below `rows` and writes lanes `0 .. 16` of the same rows of `dst`.
        unsafe {
            if k < 8 {
                return pack_rows_scalar(dtype, src, row_bytes, rows, k, dst, ld, 16);
            }
            let mut i = 0;
            if dtype == Dtype::Bf16 {
                // Two numbers in a word: words are transposed, then taken apart.
                while i + 16 <= k {
                    for half in 0..2 {
                        let mut block = [_mm256_setzero_ps(); 8];
                        for (lane, v) in block.iter_mut().enumerate() {
                            let row = (8 * half + lane).min(rows - 1);
                            let from = src.add(row * row_bytes + 2 * i);
                            if ahead != 0 && i.is_multiple_of(32) {
                                self.prefetch(from.wrapping_add(ahead));
                            }
                            *v = _mm256_loadu_ps(from.cast());
                        }
                        let to = dst.add(i * ld + 8 * half);
                        for (j, words) in transpose8(block).into_iter().enumerate() {
                            let (first, second) = words_of_bf16(words);
                            _mm256_storeu_ps(to.add(2 * j * ld), first);
                            _mm256_storeu_ps(to.add((2 * j + 1) * ld), second);
                        }
                    }
                    i += 16;
                }
            }
            while i < k {
                // The last block overlaps the one before it rather than running over.
                let at = i.min(k - 8);
                for half in 0..2 {
                    let mut block = [_mm256_setzero_ps(); 8];
                    for (lane, v) in block.iter_mut().enumerate() {
                        let row = (8 * half + lane).min(rows - 1);
                        let from = src.add(row * row_bytes + at * dtype.size());
                        if ahead != 0 && (at * dtype.size()).is_multiple_of(64) {
                            self.prefetch(from.wrapping_add(ahead));
                        }
                        *v = load8(dtype, from);
                    }
                    for (j, v) in transpose8(block).into_iter().enumerate() {
                        _mm256_storeu_ps(dst.add((at + j) * ld + 8 * half), v);
                    }
                }
                i += 8;
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
        // SAFETY: `self` exists only where AVX2 does.
        unsafe { _mm256_cvtss_f32(v.0) }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a prefetch touches no memory that the program could see, at any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        // SAFETY: `self` exists only where AVX2 does.
        unsafe {
            let v = _mm256_add_ps(v.0, v.1);
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    fn maximum(self, v: Self::V) -> f32 {
        // SAFETY: `self` exists only where AVX2 does.
        unsafe {
            let v = _mm256_max_ps(v.0, v.1);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn abs8(a: __m256) -> __m256 {
    _mm256_andnot_ps(_mm256_set1_ps(-0.0), a)
}

#[inline]
#[target_feature(enable = "avx2")]
fn where_negative8(x: __m256, a: __m256, b: __m256) -> __m256 {
    _mm256_blendv_ps(b, a, _mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_setzero_ps()))
}

/// All ones in lane i where bit i of the low eight is set.
#[inline]
#[target_feature(enable = "avx2")]
fn lane_mask(bits: u32) -> __m256 {
    let bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    let set = _mm256_and_si256(_mm256_set1_epi32(bits as i32), bit);
    _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, bit))
}

#[inline(always)]
fn round(_: Avx2, v: (__m256, __m256)) -> (__m256, __m256) {
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    // SAFETY: an `Avx2` exists only where AVX2 does.
    unsafe { (_mm256_round_ps::<NEAREST>(v.0), _mm256_round_ps::<NEAREST>(v.1)) }
}

#[inline(always)]
fn scale(_: Avx2, p: (__m256, __m256), n: (__m256, __m256)) -> (__m256, __m256) {
    // SAFETY: an `Avx2` exists only where AVX2 does.
    unsafe { (scale8(p.0, n.0), scale8(p.1, n.1)) }
}

/// `p * 2^n` in two factors, each a normal number; the first product is exact.
#[inline]
#[target_feature(enable = "avx2")]
fn scale8(p: __m256, n: __m256) -> __m256 {
    let n = _mm256_cvtps_epi32(n);
    let first = _mm256_srai_epi32::<1>(n);
    let bias = _mm256_set1_epi32(127);
    let a = _mm256_slli_epi32::<23>(_mm256_add_epi32(first, bias));
    let b = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_sub_epi32(n, first), bias));
    _mm256_mul_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(a)), _mm256_castsi256_ps(b))
}

/// Eight stored numbers, widened.
///
/// # Safety
/// `8 * dtype.size()` bytes can be read at `p`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn load8(dtype: Dtype, p: *const u8) -> __m256 {
    // SAFETY: the caller vouches for the bytes; these loads need no alignment.
    unsafe {
        match dtype {
            Dtype::F32 => _mm256_loadu_ps(p.cast()),
            Dtype::F16 => _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
            Dtype::Bf16 => {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            }
        }
    }
}

/// The two bf16 of each word, widened: the one stored first, and the one behind it.
#[inline]
#[target_feature(enable = "avx2")]
fn words_of_bf16(words: __m256) -> (__m256, __m256) {
    let bits = _mm256_castps_si256(words);
    let second = _mm256_and_si256(bits, _mm256_set1_epi32(0xffff_0000_u32 as i32));
    (_mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits)), _mm256_castsi256_ps(second))
}

/// Transposes an 8 x 8 block.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose8(r: [__m256; 8]) -> [__m256; 8] {
    let mut pair = r;
    for i in (0..8).step_by(2) {
        pair[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        pair[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    let mut quad = r;
    for i in (0..8).step_by(4) {
        quad[i] = _mm256_shuffle_ps::<0x44>(pair[i], pair[i + 2]);
        quad[i + 1] = _mm256_shuffle_ps::<0xEE>(pair[i], pair[i + 2]);
        quad[i + 2] = _mm256_shuffle_ps::<0x44>(pair[i + 1], pair[i + 3]);
        quad[i + 3] = _mm256_shuffle_ps::<0xEE>(pair[i + 1], pair[i + 3]);
    }
    let mut out = r;
    for i in 0..4 {
        out[i] = _mm256_permute2f128_ps::<0x20>(quad[i], quad[i + 4]);
        out[i + 4] = _mm256_permute2f128_ps::<0x31>(quad[i], quad[i + 4]);
    }
    out
}

//! Vectors as arrays: plain Rust that any machine runs, and the judge of the others.

use super::{Simd, load_one, math, pack_rows_scalar};
use crate::element::Dtype;

/// Arrays of 16 `f32` or 8 `f64`.
#[derive(Clone, Copy)]
pub struct Portable;

macro_rules! portable {
    ($t:ty, $lanes:literal, $rows:literal, $exp:expr, $erfc:expr) => {
        impl Simd<$t> for Portable {
            type V = [$t; $lanes];
            const LANES: usize = $lanes;
            const TILE_ROWS: usize = $rows;
            const TILE_VECTORS: usize = 1;

            #[inline(always)]
            fn splat(self, x: $t) -> Self::V {
                [x; $lanes]
            }
            #[inline(always)]
            fn add(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] + b[i])
            }
            #[inline(always)]
            fn sub(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] - b[i])
            }
            #[inline(always)]
            fn mul(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] * b[i])
            }
            #[inline(always)]
            fn div(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] / b[i])
            }
            #[inline(always)]
            fn max(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
            }
            #[inline(always)]
            fn min(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
            }
            #[inline(always)]
            fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
            }
            #[inline(always)]
            fn abs(self, a: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i].abs())
            }
            #[inline(always)]
            fn sqrt(self, a: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i].sqrt())
            }
            #[inline(always)]
            fn select(self, bits: u32, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| if bits >> i & 1 != 0 { a[i] } else { b[i] })
            }
            #[inline(always)]
            fn where_negative(self, x: Self::V, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| if x[i] < 0.0 { a[i] } else { b[i] })
            }
            #[inline(always)]
            fn exp(self, x: Self::V) -> Self::V {
                $exp(self, x)
            }
            #[inline(always)]
            fn erfc(self, x: Self::V) -> Self::V {
                $erfc(self, x)
            }
            #[inline(always)]
            unsafe fn load(self, p: *const $t) -> Self::V {
                // SAFETY: the caller vouches for `LANES` readable numbers.
                unsafe { p.cast::<Self::V>().read_unaligned() }
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut $t, v: Self::V) {
                // SAFETY: the caller vouches for `LANES` writable numbers.
                unsafe { p.cast::<Self::V>().write_unaligned(v) }
            }
            #[inline(always)]
            unsafe fn load_part(self, p: *const $t, n: usize) -> Self::V {
                if n == $lanes {
                    // SAFETY: the caller vouches for `n` readable numbers.
                    return unsafe { self.load(p) };
                }
                let mut v = [0.0; $lanes];
                for (i, x) in v.iter_mut().enumerate().take(n) {
                    // SAFETY: the caller vouches for `n` readable numbers.
                    *x = unsafe { p.add(i).read() };
                }
                v
            }
            #[inline(always)]
            unsafe fn store_part(self, p: *mut $t, v: Self::V, n: usize) {
                if n == $lanes {
                    // SAFETY: the caller vouches for `n` writable numbers.
                    return unsafe { self.store(p, v) };
                }
                for (i, x) in v.iter().enumerate().take(n) {
                    // SAFETY: the caller vouches for `n` writable numbers.
                    unsafe { p.add(i).write(*x) };
                }
            }
            #[inline(always)]
            unsafe fn load_stored(self, dtype: Dtype, p: *const u8) -> Self::V {
                // SAFETY: the caller vouches for `LANES` stored numbers.
                std::array::from_fn(|i| unsafe { load_one(dtype, p.add(i * dtype.size())) })
            }
            #[inline(always)]
            unsafe fn pack_rows(
                self,
                dtype: Dtype,
                src: *const u8,
                row_bytes: usize,
                rows: usize,
                k: usize,
                dst: *mut $t,
                ld: usize,
                _ahead: usize,
            ) {
                // SAFETY: the same promises.
                unsafe { pack_rows_scalar(dtype, src, row_bytes, rows, k, dst, ld, $lanes) }
            }
            #[inline(always)]
            unsafe fn transpose(
                self,
                src: *const $t,
                stride: usize,
                rows: usize,
                k: usize,
                dst: *mut $t,
                ld: usize,
            ) {
                for lane in 0..$lanes {
                    // SAFETY: row `min(lane, rows - 1)` holds `k` numbers, and `dst` takes `LANES`
                    // at each of its `k` rows (caller's promise).
                    unsafe {
                        let row = src.add(lane.min(rows - 1) * stride);
                        for i in 0..k {
                            *dst.add(i * ld + lane) = *row.add(i);
                        }
                    }
                }
            }
            #[inline(always)]
            fn first(self, v: Self::V) -> $t {
                v[0]
            }
            #[inline(always)]
            fn prefetch(self, _p: *const u8) {}
            #[inline(always)]
            fn sum(self, mut v: Self::V) -> $t {
                let mut half = $lanes / 2;
                while half > 0 {
                    for i in 0..half {
                        v[i] += v[i + half];
                    }
                    half /= 2;
                }
                v[0]
            }
            #[inline(always)]
            fn maximum(self, v: Self::V) -> $t {
                v.iter().fold(<$t>::NEG_INFINITY, |m, &x| if x > m { x } else { m })
            }
        }
    };
}

portable!(f32, 16, 4, exp_f32, math::erfc_f32);
portable!(f64, 8, 4, exp_f64, erfc_f64);

#[inline(always)]
fn exp_f32(s: Portable, x: [f32; 16]) -> [f32; 16] {
    math::exp_f32(
        s,
        x,
        |_, v| v.map(f32::round_ties_even),
        |_, p, n| {
            std::array::from_fn(|i| {
                // Two factors, so that each is a normal number; the first product is exact.
                let n = n[i] as i32;
                let first = n >> 1;
                p[i] * power_of_two(first) * power_of_two(n - first)
            })
        },
    )
}

/// 2^n for -126 <= n <= 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

#[inline(always)]
fn exp_f64(_: Portable, x: [f64; 8]) -> [f64; 8] {
    x.map(libm::exp)
}

#[inline(always)]
fn erfc_f64(_: Portable, x: [f64; 8]) -> [f64; 8] {
    x.map(libm::erfc)
}

//! The vector operations that the kernels are written in, once for all instruction sets.
//!
//! A vector has the same logical width everywhere: 16 `f32` or 8 `f64` (one 512-bit register, two
//! 256-bit ones, or an array). Together with fused multiply-adds everywhere this makes every kernel,
//! horizontal sums included, give the same bits on every instruction set.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod math;
mod portable;

pub(in crate::backend::cpu) use math::{activate, activation_slope};

use crate::element::{Dtype, Element};

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SimdLevel {
    /// What the compiler makes of plain Rust; runs everywhere.
    Portable,
    /// x86-64 with AVX2, FMA and F16C (2013 and later).
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl SimdLevel {
    /// All levels, the slowest first.
    pub const ALL: [SimdLevel; 3] = [SimdLevel::Portable, SimdLevel::Avx2, SimdLevel::Avx512];

    /// The fastest level of this machine.
    pub fn detect() -> Self {
        Self::ALL.into_iter().rev().find(|l| l.is_available()).unwrap_or(SimdLevel::Portable)
    }

    /// Whether this machine has the instructions.
    pub fn is_available(self) -> bool {
        match self {
            SimdLevel::Portable => true,
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512 => {
                SimdLevel::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// "portable", "avx2" or "avx512".
    pub const fn name(self) -> &'static str {
        match self {
            SimdLevel::Portable => "portable",
            SimdLevel::Avx2 => "avx2",
            SimdLevel::Avx512 => "avx512",
        }
    }
}

impl std::fmt::Display for SimdLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A level that was found available: holding one is the proof that its instructions can run.
#[derive(Clone, Copy, Debug)]
pub struct Isa(SimdLevel);

impl Isa {
    /// The proof, or `None` where the machine lacks the instructions.
    pub fn new(level: SimdLevel) -> Option<Self> {
        level.is_available().then_some(Self(level))
    }

    pub fn level(self) -> SimdLevel {
        self.0
    }
}

/// A piece of work written for any vector type. `run` must be `#[inline(always)]`, so that it is
/// compiled with the instructions of each level.
pub trait Kernel<E> {
    type Out;
    fn run<S: Simd<E>>(self, simd: S) -> Self::Out;
}

/// An element type that has kernels: `f32` and `f64`.
pub trait CpuElement: Element {
    /// Runs `kernel` compiled for `isa`.
    #[doc(hidden)]
    fn dispatch<K: Kernel<Self>>(isa: Isa, kernel: K) -> K::Out;
}

impl CpuElement for f32 {
    #[inline]
    fn dispatch<K: Kernel<f32>>(isa: Isa, kernel: K) -> K::Out {
        match isa.0 {
            SimdLevel::Portable => kernel.run(portable::Portable),
            // SAFETY: an `Isa` of this level is made only where AVX2, FMA and F16C were detected.
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2 => unsafe { avx2::call(kernel) },
            // SAFETY: an `Isa` of this level is made only where AVX-512 F, BW, DQ, VL were detected.
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512 => unsafe { avx512::call(kernel) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => kernel.run(portable::Portable),
        }
    }
}

impl CpuElement for f64 {
    #[inline]
    fn dispatch<K: Kernel<f64>>(isa: Isa, kernel: K) -> K::Out {
        match isa.0 {
            SimdLevel::Portable => kernel.run(portable::Portable),
            // The portable code, compiled with fused multiply-adds: f64 is the oracle of tests.
            // SAFETY: an `Isa` of these levels is made only where AVX2, FMA and F16C were detected.
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2 | SimdLevel::Avx512 => unsafe { avx2::call_portable(kernel) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => kernel.run(portable::Portable),
        }
    }
}

/// Vectors of [`LANES`](Simd::LANES) numbers. A value of the implementing type exists only where its
/// instructions can run, which makes the arithmetic safe; only memory accesses are `unsafe`.
///
/// Binary `max` and `min` give the second operand when either is NaN (as x86 does).
pub trait Simd<E>: Copy {
    type V: Copy;
    /// Numbers in a vector: 16 for `f32`, 8 for `f64`, whatever the instruction set.
    const LANES: usize;
    /// Most rows of a matrix-product tile; rows times vectors fit the registers.
    const TILE_ROWS: usize;
    /// Vectors in a row of a matrix-product tile: 1 or 2.
    const TILE_VECTORS: usize;

    fn splat(self, x: E) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a > b ? a : b`
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? a : b`
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    fn abs(self, a: Self::V) -> Self::V;
    /// Correctly rounded, as `div` is.
    fn sqrt(self, a: Self::V) -> Self::V;
    /// Lane i of `a` where bit i of `bits` is set, else of `b`.
    fn select(self, bits: u32, a: Self::V, b: Self::V) -> Self::V;
    /// Lanes of `a` where `x` is negative (sign bit of a number, -0 excluded), else of `b`.
    fn where_negative(self, x: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// e to the power of each lane: `f32` within 1.1 units in the last place, -inf to 0, NaN to NaN.
    fn exp(self, x: Self::V) -> Self::V;
    /// The complementary error function of lanes that are not negative.
    fn erfc(self, x: Self::V) -> Self::V;

    /// # Safety
    /// `LANES` numbers can be read at `p` (any alignment).
    unsafe fn load(self, p: *const E) -> Self::V;
    /// # Safety
    /// `LANES` numbers can be written at `p` (any alignment).
    unsafe fn store(self, p: *mut E, v: Self::V);
    /// The first `n <= LANES` numbers at `p`, zeros behind them.
    ///
    /// # Safety
    /// `n` numbers can be read at `p`.
    unsafe fn load_part(self, p: *const E, n: usize) -> Self::V;
    /// # Safety
    /// The first `n <= LANES` numbers can be written at `p`.
    unsafe fn store_part(self, p: *mut E, v: Self::V, n: usize);
    /// `LANES` stored numbers at `p`, widened (exact).
    ///
    /// # Safety
    /// `LANES * dtype.size()` bytes can be read at `p` (any alignment).
    unsafe fn load_stored(self, dtype: Dtype, p: *const u8) -> Self::V;
    /// Widens and transposes `rows <= LANES` rows of `k` stored numbers, `row_bytes` apart, into
    /// `dst[i * ld + row]`; lanes `rows .. LANES` repeat the last row. What lies `ahead` bytes further
    /// on is asked for beforehand, unless `ahead` is 0.
    ///
    /// # Safety
    /// `rows >= 1`; `k` numbers can be read from each row (any alignment), and `LANES` numbers
    /// written at `dst + i * ld` for `i < k`.
    #[allow(clippy::too_many_arguments)]
    unsafe fn pack_rows(
        self,
        dtype: Dtype,
        src: *const u8,
        row_bytes: usize,
        rows: usize,
        k: usize,
        dst: *mut E,
        ld: usize,
        ahead: usize,
    );
    /// Transposes `rows <= LANES` rows of `k` numbers, `stride` apart, into `dst[i * ld + row]`; lanes
    /// `rows .. LANES` repeat the last row.
    ///
    /// # Safety
    /// As [`pack_rows`](Self::pack_rows).
    unsafe fn transpose(self, src: *const E, stride: usize, rows: usize, k: usize, dst: *mut E, ld: usize);
    /// Asks for the cache line at `p`, which may be any address, to be brought nearer.
    fn prefetch(self, p: *const u8);
    /// Lane 0.
    fn first(self, v: Self::V) -> E;
    /// Sum of the lanes, as a balanced tree over neighbours at distance LANES/2, LANES/4, ... 1.
    fn sum(self, v: Self::V) -> E;
    /// Maximum of the lanes.
    fn maximum(self, v: Self::V) -> E;
}

/// Widens and transposes one number at a time; for corners of a matrix.
///
/// # Safety
/// As [`Simd::pack_rows`], for `lanes` numbers a row of `dst`.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn pack_rows_scalar<E: Element>(
    dtype: Dtype,
    src: *const u8,
    row_bytes: usize,
    rows: usize,
    k: usize,
    dst: *mut E,
    ld: usize,
    lanes: usize,
) {
    for lane in 0..lanes {
        // SAFETY: row `min(lane, rows - 1)` exists and holds `k` numbers; `dst` takes `lanes`
        // numbers at each of its `k` rows (caller's promise).
        unsafe {
            let row = src.add(lane.min(rows - 1) * row_bytes);
            for i in 0..k {
                *dst.add(i * ld + lane) = load_one(dtype, row.add(i * dtype.size()));
            }
        }
    }
}

/// One stored number, widened (exact).
///
/// # Safety
/// `dtype.size()` bytes can be read at `p` (any alignment).
#[inline(always)]
pub(in crate::backend::cpu) unsafe fn load_one<E: Element>(dtype: Dtype, p: *const u8) -> E {
    // SAFETY: the caller vouches for the bytes; `read_unaligned` needs no alignment.
    unsafe {
        match dtype {
            Dtype::F32 => E::from_f32(f32::from_bits(u32::from_le(p.cast::<u32>().read_unaligned()))),
            Dtype::F16 => {
                E::from_f32(half::f16::from_bits(u16::from_le(p.cast::<u16>().read_unaligned())).to_f32())
            }
            Dtype::Bf16 => {
                let bits = u16::from_le(p.cast::<u16>().read_unaligned());
                E::from_f32(f32::from_bits(u32::from(bits) << 16))
            }
        }
    }
}

//! Moments in their formats: memory, the bytes of checkpoints, and how a block of them becomes f32 and back.

use super::BLOCK;
use super::kernels::widen;
use crate::backend::cpu::Buffer;
use crate::backend::cpu::buffer::Shared;
use crate::backend::{MOMENT_BLOCK, MomentFormat};
use crate::error::Result;

const _: () = assert!(BLOCK == MOMENT_BLOCK, "a block of a pass is one of 8-bit moments");

/// A code of an 8-bit moment: the bits of an f32 from this one on.
const CUT: u32 = 20;
const MAGNITUDE: u32 = 0x7FFF_FFFF;

/// Which moment, and so which codes ([`MomentFormat::Q8`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    First,
    Second,
}

impl Which {
    /// What makes the exponents of numbers over their scale those of f32 at the bottom of its range, and back.
    #[inline(always)]
    fn factors(self) -> [f32; 2] {
        let down = match self {
            Which::First => 112,
            Which::Second => 96,
        };
        [f32::from_bits((127 - down) << 23), f32::from_bits((127 + down) << 23)]
    }

    #[inline(always)]
    fn largest(self) -> u32 {
        match self {
            Which::First => 0x7F,
            Which::Second => 0xFF,
        }
    }
}

/// A moment of a parameter.
#[derive(Debug)]
pub enum Moment {
    F32(Buffer<f32>),
    Bf16(Buffer<u16>),
    Q8 { codes: Buffer<u8>, scales: Buffer<f32>, which: Which },
}

/// A moment that several tasks write at once, each its own range.
pub enum SharedMoment<'a> {
    F32(Shared<'a, f32>),
    Bf16(Shared<'a, u16>),
    Q8 { codes: Shared<'a, u8>, scales: Shared<'a, f32>, which: Which },
}

/// A range of a moment that begins with a block.
pub enum MomentPart<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [u16]),
    Q8 { codes: &'a mut [u8], scales: &'a mut [f32], which: Which },
}

impl Moment {
    pub fn zeroed(format: MomentFormat, which: Which, len: usize) -> Result<Self> {
        Ok(match format {
            MomentFormat::F32 => Moment::F32(Buffer::zeroed(len)?),
            MomentFormat::Bf16 => Moment::Bf16(Buffer::zeroed(len)?),
            MomentFormat::Q8 => {
                let scales = Buffer::zeroed(len.div_ceil(MOMENT_BLOCK))?;
                Moment::Q8 { codes: Buffer::zeroed(len)?, scales, which }
            }
        })
    }

    pub fn share(&mut self) -> SharedMoment<'_> {
        match self {
            Moment::F32(x) => SharedMoment::F32(Shared::new(x.as_mut_slice())),
            Moment::Bf16(x) => SharedMoment::Bf16(Shared::new(x.as_mut_slice())),
            Moment::Q8 { codes, scales, which } => SharedMoment::Q8 {
                codes: Shared::new(codes.as_mut_slice()),
                scales: Shared::new(scales.as_mut_slice()),
                which: *which,
            },
        }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let floats = |x: &Buffer<f32>| x.as_slice().iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        match self {
            Moment::F32(x) => floats(x),
            Moment::Bf16(x) => x.as_slice().iter().flat_map(|x| x.to_le_bytes()).collect(),
            Moment::Q8 { codes, scales, .. } => [codes.as_slice(), &floats(scales)].concat(),
        }
    }

    /// As many bytes as [`to_bytes`](Self::to_bytes) gives.
    pub fn copy_from(&mut self, bytes: &[u8]) {
        let floats = |to: &mut Buffer<f32>, bytes: &[u8]| {
            for (x, bytes) in to.as_mut_slice().iter_mut().zip(bytes.as_chunks().0) {
                *x = f32::from_le_bytes(*bytes);
            }
        };
        match self {
            Moment::F32(x) => floats(x, bytes),
            Moment::Bf16(x) => {
                for (x, bytes) in x.as_mut_slice().iter_mut().zip(bytes.as_chunks().0) {
                    *x = u16::from_le_bytes(*bytes);
                }
            }
            Moment::Q8 { codes, scales, .. } => {
                let (code_bytes, scale_bytes) = bytes.split_at(codes.len().min(bytes.len()));
                codes.as_mut_slice().iter_mut().zip(code_bytes).for_each(|(to, code)| *to = *code);
                floats(scales, scale_bytes);
            }
        }
    }
}

impl SharedMoment<'_> {
    /// Numbers `at .. at + n`.
    ///
    /// # Safety
    /// As [`Shared::part`], for the blocks that the range lies in; `at` is a multiple of [`BLOCK`].
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, at: usize, n: usize) -> MomentPart<'_> {
        // SAFETY: the caller's promise; the range's blocks are its own, since it begins with one.
        unsafe {
            match self {
                SharedMoment::F32(x) => MomentPart::F32(x.part(at, n)),
                SharedMoment::Bf16(x) => MomentPart::Bf16(x.part(at, n)),
                SharedMoment::Q8 { codes, scales, which } => MomentPart::Q8 {
                    codes: codes.part(at, n),
                    scales: scales.part(at / MOMENT_BLOCK, n.div_ceil(MOMENT_BLOCK)),
                    which: *which,
                },
            }
        }
    }
}

impl MomentPart<'_> {
    /// Whether it is rounded stochastically.
    pub fn is_rounded(&self) -> bool {
        !matches!(self, MomentPart::F32(_))
    }

    /// Where elements `at .. at + n` of a block are as f32: in place, or widened in `block`.
    #[inline(always)]
    pub fn open(&mut self, at: usize, n: usize, block: &mut [f32; BLOCK]) -> *mut f32 {
        match self {
            MomentPart::F32(x) => return x[at..at + n].as_mut_ptr(),
            MomentPart::Bf16(x) => {
                for (to, x) in block.iter_mut().zip(&x[at..at + n]) {
                    *to = widen(*x);
                }
            }
            MomentPart::Q8 { codes, scales, which } => {
                let (scale, [_, up]) = (scales[at / BLOCK], which.factors());
                let sign = which.largest() >> 7 ^ 1;
                for (to, code) in block.iter_mut().zip(&codes[at..at + n]) {
                    let code = u32::from(*code);
                    let magnitude = f32::from_bits((code & which.largest()) << CUT) * up * scale;
                    *to = f32::from_bits(magnitude.to_bits() | (code >> 7 & sign) << 31);
                }
            }
        }
        block.as_mut_ptr()
    }

    /// Rounds what `open` widened, with the 16 bits from bit `shift` on of each word.
    #[inline(always)]
    pub fn close(&mut self, at: usize, n: usize, block: &[f32; BLOCK], words: &[u32; BLOCK], shift: u32) {
        match self {
            MomentPart::F32(_) => {}
            MomentPart::Bf16(x) => {
                for ((to, x), word) in x[at..at + n].iter_mut().zip(block).zip(words) {
                    *to = stochastic(*x, (word >> shift) as u16);
                }
            }
            MomentPart::Q8 { codes, scales, which } => {
                // Magnitudes are ordered as their bits are, NaN above all.
                let mut largest = 0;
                for x in &block[..n] {
                    largest = largest.max(x.to_bits() & MAGNITUDE);
                }
                let scale = f32::from_bits(largest) / 1.875;
                scales[at / BLOCK] = scale;
                for ((to, x), word) in codes[at..at + n].iter_mut().zip(block).zip(words) {
                    *to = encode(*which, *x, scale, word >> shift & 0xFFFF);
                }
            }
        }
    }
}

/// One of the two bf16 around `x`, the one above with the probability of its nearness when `random` is uniform.
/// A finite number stays finite.
#[inline(always)]
fn stochastic(x: f32, random: u16) -> u16 {
    const EXPONENT: u32 = 0x7F80_0000;
    let bits = x.to_bits();
    let up = bits.wrapping_add(random.into());
    let over = up & EXPONENT == EXPONENT || bits & EXPONENT == EXPONENT;
    let quiet = if x.is_nan() { 0x40 } else { 0 };
    (if over { bits >> 16 | quiet } else { up >> 16 }) as u16
}

/// One of the two codes around `x / scale`, as [`stochastic`] has it.
#[inline(always)]
fn encode(which: Which, x: f32, scale: f32, random: u32) -> u8 {
    let [down, _] = which.factors();
    let (bits, magnitude) = (x.to_bits(), f32::from_bits(x.to_bits() & MAGNITUDE));
    let lined = (magnitude / scale * down).to_bits() & MAGNITUDE;
    let code = (lined.wrapping_add(random << 4) >> CUT).min(which.largest());
    // 0 over the scale of a block of zeros is no number.
    let code = if magnitude == 0.0 { 0 } else { code };
    let code = match which {
        Which::First => code | bits >> 31 << 7,
        Which::Second => code.max((magnitude > 0.0).into()),
    };
    code as u8
}

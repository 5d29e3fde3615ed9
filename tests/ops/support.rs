//! Random inputs, comparisons, and the backends to be judged.

use std::num::NonZeroUsize;

use half::{bf16, f16};
use lacuna::backend::Backend;
use lacuna::backend::cpu::{Buffer, Cpu, CpuElement, SimdLevel};
use lacuna::element::{Dtype, StoredTensor};

/// A generator of test numbers (SplitMix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in -1 .. 1, exact in f32.
    pub fn number(&mut self) -> f64 {
        f64::from((self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0)
    }

    pub fn numbers(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.number()).collect()
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }
}

/// What is called with each element type, level and number of threads.
pub fn backend<E: CpuElement>(threads: usize, level: SimdLevel) -> Cpu<E> {
    Cpu::with_level(NonZeroUsize::new(threads), level).expect("an available level")
}

/// The levels of this machine.
pub fn levels() -> impl Iterator<Item = SimdLevel> {
    SimdLevel::ALL.into_iter().filter(|l| l.is_available())
}

/// The fastest backend with two threads.
pub fn fast<E: CpuElement>() -> Cpu<E> {
    backend(2, SimdLevel::detect())
}

/// A buffer with these numbers.
pub fn upload<E: CpuElement>(cpu: &Cpu<E>, numbers: &[f64]) -> Buffer<E> {
    let numbers: Vec<E> = numbers.iter().map(|&x| E::from_f64(x)).collect();
    cpu.upload(&numbers).expect("memory")
}

pub fn index<E: CpuElement>(cpu: &Cpu<E>, numbers: &[u32]) -> Buffer<u32> {
    let mut index = cpu.alloc_index(numbers.len()).expect("memory");
    cpu.write_index(&mut index, numbers).expect("room");
    index
}

/// A buffer of NaN: what an operation forgets to write shows.
pub fn poisoned<E: CpuElement>(cpu: &Cpu<E>, len: usize) -> Buffer<E> {
    cpu.upload(&vec![E::nan(); len]).expect("memory")
}

pub fn to_f64<E: CpuElement>(buffer: &Buffer<E>) -> Vec<f64> {
    buffer.as_slice().iter().map(|&x| x.to_f64()).collect()
}

/// `numbers` stored as `dtype`, one byte off any alignment; and what they are after rounding.
pub fn stored(dtype: Dtype, shape: &[usize], numbers: &[f64]) -> (StoredTensor, Vec<f64>) {
    let mut bytes = vec![0xA5_u8];
    let mut rounded = Vec::new();
    for &x in numbers {
        match dtype {
            Dtype::F32 => {
                bytes.extend((x as f32).to_le_bytes());
                rounded.push(f64::from(x as f32));
            }
            Dtype::F16 => {
                bytes.extend(f16::from_f64(x).to_le_bytes());
                rounded.push(f16::from_f64(x).to_f64());
            }
            Dtype::Bf16 => {
                bytes.extend(bf16::from_f64(x).to_le_bytes());
                rounded.push(bf16::from_f64(x).to_f64());
            }
        }
    }
    let bytes = bytes::Bytes::from(bytes).slice(1..);
    (StoredTensor::new(dtype, shape.to_vec(), bytes).expect("a shape that fits"), rounded)
}

/// ‖out − expected‖ / ‖expected‖ is within the bound of the element type.
#[track_caller]
pub fn assert_close<E: CpuElement>(out: &[f64], expected: &[f64], what: &str) {
    assert_eq!(out.len(), expected.len(), "{what}");
    let bound = if E::NAME == "f32" { 1e-5 } else { 1e-12 };
    let error: f64 = out.iter().zip(expected).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    let norm = expected.iter().map(|x| x * x).sum::<f64>().sqrt();
    assert!(error <= bound * norm, "{what} ({}): error {error:e} of norm {norm:e}", E::NAME);
}

/// The same bits.
#[track_caller]
pub fn assert_same<E: CpuElement>(out: &[E], expected: &[E], what: &str) {
    assert_eq!(out.len(), expected.len(), "{what}");
    for (i, (a, b)) in out.iter().zip(expected).enumerate() {
        assert!(
            bytemuck::bytes_of(a) == bytemuck::bytes_of(b),
            "{what}: number {i} of {}: {a:?} and {b:?} differ",
            out.len()
        );
    }
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// At some coordinates of `x`, `gradient` is what central differences of `loss` say. The step is exact in f32 too, for
/// numbers of [`Random`].
#[track_caller]
pub fn assert_gradient(x: &[f64], gradient: &[f64], what: &str, loss: impl Fn(&[f64]) -> f64) {
    assert_eq!(x.len(), gradient.len(), "{what}");
    const STEP: f64 = 1.0 / (1 << 14) as f64;
    const SAMPLE: usize = 16;
    let mut random = Random::new(x.len() as u64);
    let (mut error, mut norm) = (0.0, 0.0);
    for i in 0..x.len().min(SAMPLE) {
        let at = if x.len() <= SAMPLE { i } else { random.below(x.len()) };
        let moved = |by: f64| {
            let mut x = x.to_vec();
            x[at] += by;
            loss(&x)
        };
        let slope = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
        error += (slope - gradient[at]).powi(2);
        norm += gradient[at].powi(2);
    }
    let (error, norm) = (f64::sqrt(error), f64::sqrt(norm));
    assert!(error <= 1e-6 * norm, "{what}: error {error:e} of norm {norm:e}");
}

/// Each result in f32 is close to that in f64, and both have the same bits at every level and number of threads. An
/// operation is generic over the element type, which a closure cannot be.
#[track_caller]
pub fn assert_agrees(
    what: &str,
    narrow: impl Fn(&Cpu<f32>) -> Vec<Vec<f32>>,
    wide: impl Fn(&Cpu<f64>) -> Vec<Vec<f64>>,
) {
    let (single, double) = (narrow(&fast()), wide(&fast()));
    assert_eq!(single.len(), double.len(), "{what}");
    for (i, (a, b)) in single.iter().zip(&double).enumerate() {
        let a: Vec<f64> = a.iter().map(|&x| x.into()).collect();
        assert_close::<f32>(&a, b, &format!("{what}, result {i}"));
    }
    for level in levels() {
        for threads in 1..=3 {
            let what = format!("{what}, {level}, {threads} threads");
            for (a, b) in narrow(&backend(threads, level)).iter().zip(&single) {
                assert_same(a, b, &what);
            }
            for (a, b) in wide(&backend(threads, level)).iter().zip(&double) {
                assert_same(a, b, &what);
            }
        }
    }
}

//! Every kernel against the CPU backend on fresh random inputs, over a grid of shapes: what a user runs on a
//! new card (`lacuna selftest`), and what the tests run on the host SIMT machine.
//!
//! The judge is the CPU backend in f64 (itself judged by naive loops in `tests/ops`), on inputs rounded to the
//! kernel's format. In f32 ‖out - expected‖ / ‖expected‖ must stay below 1e-5; in 16-bit formats below twice the error
//! of a naive implementation that rounds every intermediate result to that format, and below 1e-2 (f16: 2e-3). Each
//! case runs twice on poisoned outputs and must give the same bits.

mod activation;
mod attention;
mod attention_bwd;
mod cast;
mod columns;
mod commit;
mod compact;
pub mod cpu;
mod elementwise;
mod embedding;
mod embedding_bwd;
mod head;
mod head_bwd;
mod mask;
mod matmul;
mod matmul_bwd;
mod needs;
mod norm;
mod norm_bwd;
mod optim;
mod probe;
mod random;
mod rope;
mod unmask;

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::backend::cpu::Cpu;
use crate::backend::cuda::{Buffer, Cuda, Device, Format};
use crate::element::Dtype;
use crate::error::{Error, Result};

/// The formats of activations that kernels exist for.
pub const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

/// How many shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grid {
    /// A few shapes a kernel, small ones: under the compute-sanitizer, or under many schedules.
    Quick,
    /// All of them.
    Full,
}

impl Grid {
    /// `quick` and, in the full grid, `more`.
    pub fn choose<T: Clone>(self, quick: &[T], more: &[T]) -> Vec<T> {
        match self {
            Grid::Quick => quick.to_vec(),
            Grid::Full => [quick, more].concat(),
        }
    }
}

/// What a case runs on.
pub struct Rig<'a, D: Device> {
    pub cuda: &'a Cuda<D>,
    /// The same with the device's matrix library, if there is one.
    library: Option<&'a Cuda<D>>,
    /// The judge.
    pub cpu: &'a Cpu<f64>,
    seed: u64,
}

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// ‖out - expected‖ / ‖expected‖, or the number of outputs that differ where bits must agree.
    pub error: f64,
    /// The most that `error` may be.
    pub bound: f64,
    /// Of all output bits.
    pub fingerprint: u64,
}

type Run<D> = Box<dyn Fn(&Rig<'_, D>) -> Result<Verdict> + Send + Sync>;

/// One kernel at one shape.
pub struct Case<D: Device> {
    /// The kernel file.
    pub stem: &'static str,
    /// Kernel and format, as in `norm_layer_bf16`.
    pub kernel: String,
    /// As in `rows 3, width 768`.
    pub shape: String,
    run: Run<D>,
}

impl<D: Device> Case<D> {
    pub fn new(
        stem: &'static str,
        kernel: impl Into<String>,
        shape: impl Into<String>,
        run: impl Fn(&Rig<'_, D>) -> Result<Verdict> + Send + Sync + 'static,
    ) -> Self {
        Self { stem, kernel: kernel.into(), shape: shape.into(), run: Box::new(run) }
    }

    fn contains(&self, filter: &str) -> bool {
        self.stem.contains(filter) || self.kernel.contains(filter) || self.shape.contains(filter)
    }

    /// Runs the case twice.
    ///
    /// # Errors
    /// Those of the kernel, and [`Error::Device`] when the two runs differ.
    pub fn run(&self, rig: &Rig<'_, D>) -> Result<Verdict> {
        let first = (self.run)(rig)?;
        let second = (self.run)(rig)?;
        if first.fingerprint != second.fingerprint {
            return Err(Error::Device {
                device: rig.cuda.device().facts().name.clone(),
                what: format!("{}: two runs on the same input gave different bits", self.kernel),
                hint: "a kernel must not depend on the order in which blocks or threads run".into(),
            });
        }
        Ok(first)
    }
}

/// All cases of a grid whose stem, kernel or shape contains `filter`.
pub fn cases<D: Device>(grid: Grid, filter: &str) -> Vec<Case<D>> {
    let all = [
        probe::cases(grid),
        embedding::cases(grid),
        embedding_bwd::cases(grid),
        norm::cases(grid),
        norm_bwd::cases(grid),
        rope::cases(grid),
        activation::cases(grid),
        mask::cases(grid),
        attention::cases(grid),
        attention_bwd::cases(grid),
        cast::cases(grid),
        elementwise::cases(grid),
        columns::cases(grid),
        random::cases(grid),
        matmul::cases(grid),
        matmul_bwd::cases(grid),
        head::cases(grid),
        head_bwd::cases(grid),
        compact::cases(grid),
        unmask::cases(grid),
        needs::cases(grid),
        commit::cases(grid),
        optim::cases(grid),
    ];
    all.into_iter().flatten().filter(|c| c.contains(filter)).collect()
}

/// All cases of the device's matrix library whose stem, kernel or shape contains `filter`.
pub fn library_cases<D: Device>(grid: Grid, filter: &str) -> Vec<Case<D>> {
    let all = [matmul::library_cases(grid), matmul_bwd::library_cases(grid)];
    all.into_iter().flatten().filter(|c| c.contains(filter)).collect()
}

impl<'a, D: Device> Rig<'a, D> {
    /// Inputs depend on `seed` and on nothing else.
    pub fn new(cuda: &'a Cuda<D>, cpu: &'a Cpu<f64>, seed: u64) -> Self {
        Self { cuda, library: None, cpu, seed }
    }

    /// With what [`library_cases`] need.
    pub fn with_library(self, library: &'a Cuda<D>) -> Self {
        Self { library: Some(library), ..self }
    }

    fn library(&self) -> Result<&'a Cuda<D>> {
        self.library.ok_or_else(|| Error::Device {
            device: self.device().facts().name.clone(),
            what: "no matrix library was opened".into(),
            hint: "this is a defect of the self-test".into(),
        })
    }

    pub fn device(&self) -> &D {
        self.cuda.device()
    }

    /// A generator for input number `stream`.
    pub fn random(&self, stream: u64) -> Random {
        Random(self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ stream.wrapping_mul(0xD1B5_4A32_D192_ED03))
    }

    /// Input `stream`: `len` numbers in -scale .. scale, rounded to `dtype`, on the host and on the device.
    pub fn input(&self, stream: u64, dtype: Dtype, len: usize, scale: f64) -> Result<(Vec<f64>, Buffer<D>)> {
        let mut random = self.random(stream);
        let numbers: Vec<f64> = (0..len).map(|_| round(dtype, random.number() * scale)).collect();
        let narrow: Vec<f32> = numbers.iter().map(|&x| x as f32).collect();
        let buffer = Buffer::floats(self.device(), dtype, &narrow)?;
        Ok((numbers, buffer))
    }

    /// A buffer of 0xff bytes (NaN): what a kernel forgets to write shows.
    pub fn poisoned(&self, format: impl Into<Format>, len: usize) -> Result<Buffer<D>> {
        let mut buffer = Buffer::new(self.device(), format, len)?;
        buffer.fill(self.device(), 0xff)?;
        Ok(buffer)
    }
}

/// A generator of inputs (SplitMix64).
pub struct Random(u64);

impl Random {
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

    /// Uniform in 0 .. n.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n.max(1) as u64) as usize
    }
}

/// `x` rounded to a format, to nearest even.
pub fn round(dtype: Dtype, x: f64) -> f64 {
    match dtype {
        Dtype::F32 => f64::from(x as f32),
        // By way of f32, as kernels do.
        Dtype::F16 => f64::from(half::f16::from_f32(x as f32)),
        Dtype::Bf16 => f64::from(half::bf16::from_f32(x as f32)),
    }
}

/// ‖out - expected‖ / ‖expected‖; infinite where a number is not finite that should be, or the lengths differ.
pub fn relative_error(out: &[f64], expected: &[f64]) -> f64 {
    if out.len() != expected.len() {
        return f64::INFINITY;
    }
    let (mut error, mut norm) = (0.0, 0.0);
    for (&a, &b) in out.iter().zip(expected) {
        if a == b {
            norm += if b.is_finite() { b * b } else { 0.0 };
            continue;
        }
        if !a.is_finite() || !b.is_finite() {
            return f64::INFINITY;
        }
        error += (a - b) * (a - b);
        norm += b * b;
    }
    if error == 0.0 { 0.0 } else { (error / norm).sqrt() }
}

/// Judges the numbers of a kernel. `naive` is what an implementation gives that rounds every intermediate result
/// to `dtype` (not looked at for f32).
pub fn judge<D: Device>(
    rig: &Rig<'_, D>,
    dtype: Dtype,
    out: &Buffer<D>,
    expected: &[f64],
    naive: &[f64],
) -> Result<Verdict> {
    let got: Vec<f64> = out.to_f32(rig.device())?.into_iter().map(f64::from).collect();
    let bound = match dtype {
        Dtype::F32 => 1e-5,
        Dtype::F16 => (2.0 * relative_error(naive, expected)).min(2e-3),
        Dtype::Bf16 => (2.0 * relative_error(naive, expected)).min(1e-2),
    };
    Ok(Verdict { error: relative_error(&got, expected), bound, fingerprint: fingerprint(&got) })
}

/// Judges outputs that must agree exactly: the number of those that do not.
pub fn judge_exact<T: PartialEq + Copy + bytemuck::Pod>(out: &[T], expected: &[T]) -> Verdict {
    let differ = out.iter().zip(expected).filter(|(a, b)| a != b).count();
    let error = (differ + out.len().abs_diff(expected.len())) as f64;
    Verdict { error, bound: 0.0, fingerprint: hash(bytemuck::cast_slice(out)) }
}

impl Verdict {
    pub fn passed(&self) -> bool {
        self.error <= self.bound
    }

    /// Both: the worse error relative to its bound, and both fingerprints.
    pub fn and(self, other: Verdict) -> Verdict {
        // A bound of 0 asks for an error of 0.
        let share = |v: &Verdict| if v.bound > 0.0 { v.error / v.bound } else { v.error * f64::MAX };
        let worse = if share(&other) > share(&self) || other.error.is_nan() { other } else { self };
        let mut state = DefaultHasher::new();
        (self.fingerprint, other.fingerprint).hash(&mut state);
        Verdict { fingerprint: state.finish(), ..worse }
    }
}

/// Of the bits of numbers.
pub fn fingerprint(numbers: &[f64]) -> u64 {
    hash(bytemuck::cast_slice(numbers))
}

fn hash(bytes: &[u8]) -> u64 {
    let mut state = DefaultHasher::new();
    bytes.hash(&mut state);
    state.finish()
}

//! The CPU backend against itself: its kernels in f32, on every instruction set that this machine has, against the same
//! operations in f64 without any.
//!
//! In ‖out - expected‖ / ‖expected‖ f32 must stay below 1e-5; tokens must be the same; and every instruction set and number
//! of threads must give the bits of plain code on one thread.

use std::num::NonZeroUsize;

use bytes::Bytes;

use super::{Grid, Random, Verdict, fingerprint, judge_exact, relative_error};
use crate::backend::cpu::unmask::{UnmaskElement, unmask_rows};
use crate::backend::cpu::{Buffer, Cpu, CpuElement, SimdLevel};
use crate::backend::{
    Backend, Confidence, Epilogue, Forward, HeadShape, Layout, Mask, NO_TOKEN, RowDraw, RowParams, Rows,
    Segment,
};
use crate::config::{Activation, NormKind};
use crate::element::{Dtype, Element, StoredTensor};
use crate::error::{Error, Result};

/// The most that f32 may be off.
const BOUND: f64 = 1e-5;

/// The machines that cases run on.
pub struct Lab {
    judge: Cpu<f64>,
    plain: Cpu<f32>,
    levels: Vec<Cpu<f32>>,
}

impl Lab {
    /// # Errors
    /// Those of [`Cpu::with_level`].
    pub fn new() -> Result<Self> {
        let levels = levels().map(|level| Cpu::with_level(None, level)).collect::<Result<_>>()?;
        Ok(Self {
            judge: Cpu::with_level(None, SimdLevel::Portable)?,
            plain: Cpu::with_level(NonZeroUsize::new(1), SimdLevel::Portable)?,
            levels,
        })
    }

    /// Threads that each operation runs on.
    pub fn threads(&self) -> usize {
        self.judge.threads()
    }
}

/// The instruction sets of this machine.
pub fn levels() -> impl Iterator<Item = SimdLevel> {
    SimdLevel::ALL.into_iter().filter(|level| level.is_available())
}

/// One operation at one shape on one instruction set.
pub struct Case {
    /// The file in `src/backend/cpu`.
    pub stem: &'static str,
    /// Operation and instruction set, as in `linear_avx2`; the operation alone where it does not depend on that.
    pub kernel: String,
    pub shape: String,
    level: SimdLevel,
    op: Op,
}

impl Case {
    /// Runs the case twice.
    ///
    /// # Errors
    /// Those of the operation, and [`Error::Device`] when the two runs differ.
    pub fn run(&self, lab: &Lab, seed: u64) -> Result<Verdict> {
        let Some(cpu) = lab.levels.iter().find(|cpu| cpu.level() == self.level) else {
            return Err(Error::Device {
                device: "cpu".into(),
                what: format!("this machine cannot run {}", self.level),
                hint: "leave it out".into(),
            });
        };
        let run = || self.op.run(cpu, seed);
        let (out, again) = (run()?, run()?);
        if out.bits() != again.bits() {
            return Err(Error::Device {
                device: "cpu".into(),
                what: format!("{}: two runs on the same input gave different bits", self.kernel),
                hint: "an operation must not depend on the order in which threads run".into(),
            });
        }
        let (expected, plain) = (self.op.run(&lab.judge, seed)?, self.op.run(&lab.plain, seed)?);
        let verdict = Verdict {
            error: relative_error(&out.numbers, &expected.numbers),
            bound: BOUND,
            fingerprint: fingerprint(&out.numbers),
        };
        Ok(verdict
            .and(judge_exact(&out.tokens, &expected.tokens))
            .and(judge_exact(&out.bits(), &plain.bits())))
    }
}

/// What an operation gave.
struct Output {
    numbers: Vec<f64>,
    tokens: Vec<u32>,
}

impl Output {
    fn bits(&self) -> Vec<u64> {
        self.numbers.iter().map(|x| x.to_bits()).chain(self.tokens.iter().map(|&t| t.into())).collect()
    }

    fn of<E: CpuElement>(buffer: &Buffer<E>) -> Self {
        Self { numbers: widened(buffer), tokens: Vec::new() }
    }
}

/// All cases of a grid whose stem, kernel or shape contains `filter`.
pub fn cases(grid: Grid, filter: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for op in ops(grid) {
        let (stem, name) = op.names();
        let alike = matches!(op, Op::Gather { .. } | Op::Scatter { .. } | Op::Unmask { .. });
        for level in levels().filter(|&level| !alike || level == SimdLevel::detect()) {
            let kernel = if alike { name.to_owned() } else { format!("{name}_{}", level.name()) };
            let shape = op.shape();
            cases.push(Case { stem, kernel, shape, level, op: op.clone() });
        }
    }
    cases.retain(|c| c.stem.contains(filter) || c.kernel.contains(filter) || c.shape.contains(filter));
    cases
}

/// What is computed, on which shape.
#[derive(Clone, Debug)]
enum Op {
    Embed { rows: usize, width: usize },
    Norm { kind: NormKind, rows: usize, width: usize },
    Linear { rows: usize, inputs: usize, outputs: usize, dtype: Dtype, layout: Layout },
    Rope { rows: usize, heads: usize, head_dim: usize },
    Swiglu { rows: usize, width: usize },
    Attention { heads: usize, kv_heads: usize, head_dim: usize, lengths: Vec<usize>, causal: bool },
    Gather { rows: usize, width: usize },
    Scatter { rows: usize, width: usize },
    CrossEntropy { rows: usize, vocab: usize },
    Unmask { rows: usize, vocab: usize },
}

fn ops(grid: Grid) -> Vec<Op> {
    let mut ops = Vec::new();
    for (rows, width) in grid.choose(&[(3, 33)], &[(17, 768), (1, 1)]) {
        ops.extend([Op::Embed { rows, width }, Op::Gather { rows, width }, Op::Scatter { rows, width }]);
    }
    for kind in [NormKind::LayerNorm, NormKind::RmsNorm] {
        for (rows, width) in grid.choose(&[(3, 64), (2, 33)], &[(5, 768), (1, 4096)]) {
            ops.push(Op::Norm { kind, rows, width });
        }
    }
    for layout in [Layout::OutIn, Layout::InOut] {
        for dtype in super::DTYPES {
            let more = [(1, 768, 1003), (37, 300, 129)];
            for (rows, inputs, outputs) in grid.choose(&[(1, 65, 40), (9, 64, 33)], &more) {
                ops.push(Op::Linear { rows, inputs, outputs, dtype, layout });
            }
        }
    }
    for (rows, heads, head_dim) in grid.choose(&[(3, 2, 16)], &[(9, 12, 64)]) {
        ops.push(Op::Rope { rows, heads, head_dim });
    }
    for (rows, width) in grid.choose(&[(3, 33)], &[(7, 1536)]) {
        ops.push(Op::Swiglu { rows, width });
    }
    let more: [(usize, usize, usize, &[usize]); 2] = [(4, 2, 64, &[129, 1, 64]), (3, 1, 128, &[65])];
    for (heads, kv_heads, head_dim, lengths) in grid.choose(&[(2, 1, 32, &[7, 33][..])], &more) {
        for causal in [false, true] {
            ops.push(Op::Attention { heads, kv_heads, head_dim, lengths: lengths.to_vec(), causal });
        }
    }
    for (rows, vocab) in grid.choose(&[(3, 100)], &[(5, 50_257)]) {
        ops.extend([Op::CrossEntropy { rows, vocab }, Op::Unmask { rows, vocab }]);
    }
    ops
}

/// Numbers in -scale .. scale that f32 has.
struct Numbers(Random);

impl Numbers {
    fn new(seed: u64) -> Self {
        Self(Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xC9))
    }

    fn vec(&mut self, len: usize, scale: f64) -> Vec<f64> {
        (0..len).map(|_| f64::from((self.0.number() * scale) as f32)).collect()
    }

    fn buffer<E: CpuElement>(&mut self, cpu: &Cpu<E>, len: usize, scale: f64) -> Result<Buffer<E>> {
        upload(cpu, &self.vec(len, scale))
    }

    fn below(&mut self, len: usize, n: usize) -> Vec<u32> {
        (0..len).map(|_| self.0.below(n) as u32).collect()
    }

    /// A weight as a file holds it.
    fn matrix<E: CpuElement>(
        &mut self,
        cpu: &Cpu<E>,
        dtype: Dtype,
        shape: [usize; 2],
        layout: Layout,
    ) -> Result<<Cpu<E> as Backend>::Matrix> {
        let mut bytes = Vec::new();
        for x in self.vec(shape[0] * shape[1], 1.0) {
            match dtype {
                Dtype::F32 => bytes.extend((x as f32).to_le_bytes()),
                Dtype::F16 => bytes.extend(half::f16::from_f64(x).to_le_bytes()),
                Dtype::Bf16 => bytes.extend(half::bf16::from_f64(x).to_le_bytes()),
            }
        }
        cpu.matrix(&StoredTensor::new(dtype, shape.to_vec(), Bytes::from(bytes))?, layout)
    }
}

fn upload<E: CpuElement>(cpu: &Cpu<E>, numbers: &[f64]) -> Result<Buffer<E>> {
    cpu.upload(&numbers.iter().map(|&x| E::from_f64(x)).collect::<Vec<_>>())
}

fn index<E: CpuElement>(cpu: &Cpu<E>, numbers: &[u32]) -> Result<Buffer<u32>> {
    let mut index = cpu.alloc_index(numbers.len())?;
    cpu.write_index(&mut index, numbers)?;
    Ok(index)
}

/// What an operation forgets to write is NaN.
fn poisoned<E: CpuElement>(cpu: &Cpu<E>, len: usize) -> Result<Buffer<E>> {
    cpu.upload(&vec![E::nan(); len])
}

fn widened<E: CpuElement>(buffer: &Buffer<E>) -> Vec<f64> {
    buffer.as_slice().iter().map(|&x| Element::to_f64(x)).collect()
}

impl Op {
    /// Stem and operation.
    fn names(&self) -> (&'static str, &'static str) {
        match self {
            Op::Embed { .. } => ("embedding", "embed"),
            Op::Gather { .. } => ("embedding", "gather"),
            Op::Scatter { .. } => ("embedding", "scatter"),
            Op::Norm { kind: NormKind::LayerNorm, .. } => ("norm", "norm_layer"),
            Op::Norm { kind: NormKind::RmsNorm, .. } => ("norm", "norm_rms"),
            Op::Linear { .. } => ("matmul", "linear"),
            Op::Rope { .. } => ("rope", "rope"),
            Op::Swiglu { .. } => ("activation", "swiglu"),
            Op::Attention { .. } => ("attention", "attention"),
            Op::CrossEntropy { .. } => ("head", "cross_entropy"),
            Op::Unmask { .. } => ("unmask", "unmask"),
        }
    }

    fn shape(&self) -> String {
        match self {
            Op::Embed { rows, width }
            | Op::Gather { rows, width }
            | Op::Scatter { rows, width }
            | Op::Norm { rows, width, .. }
            | Op::Swiglu { rows, width } => format!("rows {rows}, width {width}"),
            Op::Linear { rows, inputs, outputs, dtype, layout } => {
                let layout = if *layout == Layout::OutIn { "[out, in]" } else { "[in, out]" };
                format!("rows {rows}, {inputs} to {outputs}, weight {dtype} {layout}")
            }
            Op::Rope { rows, heads, head_dim } => format!("rows {rows}, heads {heads} of {head_dim}"),
            Op::Attention { heads, kv_heads, head_dim, lengths, causal } => {
                let mask = if *causal { ", causal" } else { "" };
                format!("lengths {lengths:?}, heads {heads}/{kv_heads} of {head_dim}{mask}")
            }
            Op::CrossEntropy { rows, vocab } | Op::Unmask { rows, vocab } => {
                format!("rows {rows}, vocabulary {vocab}")
            }
        }
    }

    /// All outputs, of inputs that depend on `seed` alone.
    fn run<E: CpuElement + UnmaskElement>(&self, cpu: &Cpu<E>, seed: u64) -> Result<Output> {
        let mut random = Numbers::new(seed);
        match *self {
            Op::Embed { rows, width } => {
                let table = random.matrix(cpu, Dtype::F32, [50, width], Layout::OutIn)?;
                let places = random.matrix(cpu, Dtype::F32, [40, width], Layout::OutIn)?;
                let ids = index(cpu, &random.below(rows, 50))?;
                let at = index(cpu, &random.below(rows, 40))?;
                let mut out = poisoned(cpu, rows * width)?;
                cpu.embed(&table, &ids, Some((&places, &at)), rows, width, &mut out)?;
                Ok(Output::of(&out))
            }
            Op::Gather { rows, width } => {
                let place = Rows { at: 2, stride: width + 3 };
                let source = random.buffer(cpu, 2 + 60 * (width + 3), 2.0)?;
                let numbers = index(cpu, &random.below(rows, 60))?;
                let mut out = poisoned(cpu, rows * width)?;
                cpu.gather((&source, place), &numbers, rows, width, &mut out)?;
                Ok(Output::of(&out))
            }
            Op::Scatter { rows, width } => {
                let place = Rows { at: 1, stride: width + 2 };
                let source = random.buffer(cpu, rows * width, 2.0)?;
                // Every row once, in another order; what lies between stays.
                let numbers: Vec<u32> = (0..rows as u32).rev().collect();
                let mut out = random.buffer(cpu, 1 + rows * (width + 2), 2.0)?;
                let numbers = index(cpu, &numbers)?;
                cpu.scatter((&source, Rows::dense(width)), &numbers, rows, width, (&mut out, place))?;
                Ok(Output::of(&out))
            }
            Op::Norm { kind, rows, width } => {
                let x = random.buffer(cpu, rows * width, 2.0)?;
                let (weight, bias) = (random.buffer(cpu, width, 1.0)?, random.buffer(cpu, width, 1.0)?);
                let bias = (kind == NormKind::LayerNorm).then_some(&bias);
                let mut out = poisoned(cpu, rows * width)?;
                cpu.norm(kind, &x, &weight, bias, 1e-5, rows, width, &mut out)?;
                Ok(Output::of(&out))
            }
            Op::Linear { rows, inputs, outputs, dtype, layout } => {
                let shape = if layout == Layout::OutIn { [outputs, inputs] } else { [inputs, outputs] };
                let weight = random.matrix(cpu, dtype, shape, layout)?;
                let x = random.buffer(cpu, rows * inputs, 1.0)?;
                let bias = random.buffer(cpu, outputs, 1.0)?;
                let place = Rows { at: 0, stride: outputs };
                let mut out = poisoned(cpu, rows * outputs)?;
                let activation = Some(Activation::GeluTanh);
                let epilogue = Epilogue { bias: Some(&bias), activation, accumulate: false };
                cpu.linear((&x, 0), rows, &weight, 0..outputs, epilogue, &mut out, place)?;
                let mut sum = random.buffer(cpu, rows * outputs, 1.0)?;
                let epilogue = Epilogue { bias: None, activation: None, accumulate: true };
                cpu.linear((&x, 0), rows, &weight, 0..outputs, epilogue, &mut sum, place)?;
                Ok(Output { numbers: [widened(&out), widened(&sum)].concat(), tokens: Vec::new() })
            }
            Op::Rope { rows, heads, head_dim } => {
                let place = Rows { at: 1, stride: heads * head_dim + 5 };
                let mut x = random.buffer(cpu, 1 + rows * place.stride, 2.0)?;
                let positions = index(cpu, &random.below(rows, 30))?;
                let table = random.buffer(cpu, 30 * head_dim, 1.0)?;
                cpu.rope(&mut x, place, rows, heads, head_dim, &positions, &table)?;
                Ok(Output::of(&x))
            }
            Op::Swiglu { rows, width } => {
                let x = random.buffer(cpu, rows * 2 * width, 4.0)?;
                let mut out = poisoned(cpu, rows * width)?;
                cpu.swiglu(&x, rows, width, &mut out)?;
                Ok(Output::of(&out))
            }
            Op::Attention { heads, kv_heads, head_dim, ref lengths, causal } => {
                let stride = (heads + 2 * kv_heads) * head_dim;
                let rows: usize = lengths.iter().sum();
                let qkv = random.buffer(cpu, rows * stride, 2.0)?;
                let (mut segments, mut positions) = (Vec::new(), Vec::new());
                for &length in lengths {
                    let start = positions.len();
                    segments.push(Segment { q_start: start, q_len: length, k_start: start, k_len: length });
                    positions.extend(0..length as u32);
                }
                let place = |at| (&qkv, Rows { at, stride });
                let (k, v) = (heads * head_dim, (heads + kv_heads) * head_dim);
                let shape = HeadShape { heads, kv_heads, head_dim, scale: 1.0 / (head_dim as f64).sqrt() };
                let mask = if causal { Mask::Causal } else { Mask::Full };
                let positions = index(cpu, &positions)?;
                let mut out = poisoned(cpu, rows * heads * head_dim)?;
                cpu.attention(
                    place(0),
                    place(k),
                    place(v),
                    shape,
                    &segments,
                    &positions,
                    &mask.into(),
                    &mut out,
                )?;
                Ok(Output::of(&out))
            }
            Op::CrossEntropy { rows, vocab } => {
                let logits = random.buffer(cpu, rows * vocab, 8.0)?;
                let targets = random.below(rows, vocab);
                let mut out = vec![f64::NAN; rows];
                cpu.cross_entropy(&logits, vocab, &targets, &mut out)?;
                Ok(Output { numbers: out, tokens: Vec::new() })
            }
            Op::Unmask { rows, vocab } => {
                let logits = random.buffer(cpu, rows * vocab, 8.0)?;
                let kinds = [Confidence::MaxProb, Confidence::Entropy, Confidence::Margin];
                let params: Vec<RowParams> = (0..rows)
                    .map(|row| RowParams {
                        temperature: [1.0, 0.7, 0.0][row % 3],
                        top_p: [0.9, 1.0][row % 2],
                        top_k: [0, 20, 3][row % 3],
                        suppress: if row % 2 == 0 { 0 } else { NO_TOKEN },
                        uniform: (random.0.bits() >> 40) as f32 / (1 << 24) as f32,
                        confidence: kinds[row % 3],
                        given: 1,
                    })
                    .collect();
                let mut out = vec![RowDraw::default(); rows];
                cpu.run(|| unmask_rows(logits.as_slice(), vocab, &params, &mut out))?;
                let numbers = |d: &RowDraw| [d.log_prob.into(), d.confidence.into(), d.given_log_prob.into()];
                Ok(Output {
                    numbers: out.iter().flat_map(numbers).collect(),
                    tokens: out.iter().map(|d| d.token).collect(),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quick_grid_passes() {
        let lab = Lab::new().expect("machines");
        for case in cases(Grid::Quick, "") {
            let verdict =
                case.run(&lab, 3).unwrap_or_else(|e| panic!("{} ({}): {e}", case.kernel, case.shape));
            assert!(verdict.passed(), "{} ({}): {verdict:?}", case.kernel, case.shape);
        }
    }

    #[test]
    fn a_wrong_number_is_seen() {
        let lab = Lab::new().expect("machines");
        let op = Op::Norm { kind: NormKind::RmsNorm, rows: 2, width: 40 };
        let mut out = op.run(&lab.plain, 1).expect("it runs").numbers;
        let expected = op.run(&lab.judge, 1).expect("it runs").numbers;
        assert!(relative_error(&out, &expected) <= BOUND);
        out[7] += 1e-3;
        assert!(relative_error(&out, &expected) > BOUND);
    }
}

//! Launches of `cuda/optim.cu`: [`Optimise`] on a device. All that changes from step to step lies in the device memory of an
//! [`OptimControl`], so that what comes between [`Optimise::prepare`] and [`Optimise::outcome`] can be recorded.

use super::matmul::sizes;
use super::{Buffer, Cuda, Device, Format, Launch, Matrix};
use crate::backend::{AdamW, Layout, MOMENT_BLOCK, MomentFormat, Optimise, Outcome, Trainable, work};
use crate::element::{Dtype, StoredTensor};
use crate::error::{Error, Result};

// As in `cuda/optim.cu`.
const THREADS: usize = 256;
const CHUNK: usize = 32_768;
/// Words of the settings, and of the results behind them.
const SETTINGS: usize = 16;
const RESULTS: usize = 8;
/// Places in the results.
const LENGTH: usize = 0;
const SKIP: usize = 3;
/// Bytes of shared memory: an f64 a warp.
const SUMS: usize = THREADS / 32 * 8;

/// A moment of a parameter.
#[derive(Debug)]
struct Moment<D: Device> {
    numbers: Buffer<D>,
    /// Of 8-bit moments.
    scales: Option<Buffer<D>>,
}

/// Moments of one parameter, and its master copy where the parameter is in 16 bits.
#[derive(Debug)]
pub struct OptimState<D: Device> {
    len: usize,
    format: MomentFormat,
    moments: [Moment<D>; 2],
    master: Option<Buffer<D>>,
}

/// The settings of a step, partial sums and what follows from them, on the device.
#[derive(Debug)]
pub struct OptimControl<D: Device> {
    /// Numbers of each gradient, and where its partial sums begin.
    gradients: Vec<(usize, usize)>,
    /// Settings, then results.
    words: Buffer<D>,
    settings: Buffer<D>,
    results: Buffer<D>,
    partials: Buffer<D>,
}

/// Where a parameter's numbers are.
struct Numbers<'a, D: Device> {
    buffer: &'a mut Buffer<D>,
    dtype: Dtype,
    original: Option<&'a mut Option<Buffer<D>>>,
}

fn equal(op: &'static str, what: &'static str, expected: usize, got: usize) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::Shape { op, what, expected, got }) }
}

fn number_format(format: MomentFormat) -> Format {
    match format {
        MomentFormat::F32 => Dtype::F32.into(),
        MomentFormat::Bf16 => Dtype::Bf16.into(),
        MomentFormat::Q8 => Format::U8,
    }
}

impl<'a, D: Device> Numbers<'a, D> {
    fn of(op: &'static str, trainable: Trainable<'a, Cuda<D>>) -> Result<Self> {
        let (buffer, original) = match trainable {
            Trainable::Vector(buffer) => (buffer, None),
            Trainable::Matrix(matrix) => {
                let (buffer, original) = matrix.parts_mut();
                (buffer, Some(original))
            }
        };
        match buffer.format() {
            Format::Float(dtype) => Ok(Self { buffer, dtype, original }),
            other => Err(Error::Shape {
                op,
                what: "bytes of a parameter's number",
                expected: 4,
                got: other.size(),
            }),
        }
    }

    /// The state is one for such a parameter.
    fn fits(&self, op: &'static str, state: &OptimState<D>) -> Result<()> {
        equal(op, "state", self.buffer.len(), state.len)?;
        let wanted = self.dtype != Dtype::F32;
        equal(op, "master copies", wanted.into(), state.master.is_some().into())
    }
}

impl<D: Device> Moment<D> {
    fn zeroed(cuda: &Cuda<D>, format: MomentFormat, len: usize) -> Result<Self> {
        let scales = match format {
            MomentFormat::Q8 => Some(cuda.zeroed(Dtype::F32, len.div_ceil(MOMENT_BLOCK))?),
            MomentFormat::F32 | MomentFormat::Bf16 => None,
        };
        Ok(Self { numbers: cuda.zeroed(number_format(format), len)?, scales })
    }

    fn to_bytes(&self, device: &D) -> Result<Vec<u8>> {
        let floats = |x: &Buffer<D>| -> Result<Vec<u8>> {
            Ok(x.to_vec::<f32>(device)?.iter().flat_map(|x| x.to_le_bytes()).collect())
        };
        let mut bytes = match self.numbers.format() {
            Format::U8 => self.numbers.to_vec::<u8>(device)?,
            Format::Float(Dtype::Bf16) => {
                self.numbers.to_vec::<u16>(device)?.iter().flat_map(|x| x.to_le_bytes()).collect()
            }
            _ => floats(&self.numbers)?,
        };
        if let Some(scales) = &self.scales {
            bytes.extend(floats(scales)?);
        }
        Ok(bytes)
    }

    /// As many bytes as [`to_bytes`](Self::to_bytes) gives.
    fn copy_from(&mut self, device: &D, bytes: &[u8]) -> Result<()> {
        let floats = |bytes: &[u8]| -> Vec<f32> {
            bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        let (numbers, scales) =
            bytes.split_at(bytes.len().min(self.numbers.len() * self.numbers.format().size()));
        match self.numbers.format() {
            Format::U8 => self.numbers.write(device, 0, numbers)?,
            Format::Float(Dtype::Bf16) => {
                let numbers: Vec<u16> =
                    numbers.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
                self.numbers.write(device, 0, &numbers)?;
            }
            _ => self.numbers.write(device, 0, &floats(numbers))?,
        }
        match &mut self.scales {
            Some(to) => to.write(device, 0, &floats(scales)),
            None => Ok(()),
        }
    }
}

/// The low word, then the high one.
fn halves(bits: u64) -> [u32; 2] {
    [bits as u32, (bits >> 32) as u32]
}

impl<D: Device> Cuda<D> {
    /// Partial sums of the squares of the first `len` numbers of `x` (f32), from partial `at` on.
    fn squares(&self, x: &Buffer<D>, len: usize, partials: &mut Buffer<D>, at: usize) -> Result<()> {
        let blocks = len.div_ceil(CHUNK);
        let mut launch = Launch::new("optim_squares_f32", [blocks, 1, 1], THREADS as u32, SUMS)?;
        launch.read("x", x, Dtype::F32, 0, len)?.u64(len as u64);
        launch.write("partials", partials, Format::F64, at, blocks)?;
        if launch.is_empty() {
            return Ok(());
        }
        // SAFETY: a block reads its numbers below `len`, and writes one partial sum.
        unsafe { self.launch(&launch) }
    }
}

fn kernel(dtype: Dtype, moments: MomentFormat) -> &'static str {
    match (dtype, moments) {
        (Dtype::F32, MomentFormat::F32) => "optim_adamw_f32_f32",
        (Dtype::F32, MomentFormat::Bf16) => "optim_adamw_f32_bf16",
        (Dtype::F32, MomentFormat::Q8) => "optim_adamw_f32_q8",
        (Dtype::F16, MomentFormat::F32) => "optim_adamw_f16_f32",
        (Dtype::F16, MomentFormat::Bf16) => "optim_adamw_f16_bf16",
        (Dtype::F16, MomentFormat::Q8) => "optim_adamw_f16_q8",
        (Dtype::Bf16, MomentFormat::F32) => "optim_adamw_bf16_f32",
        (Dtype::Bf16, MomentFormat::Bf16) => "optim_adamw_bf16_bf16",
        (Dtype::Bf16, MomentFormat::Q8) => "optim_adamw_bf16_q8",
    }
}

impl<D: Device> Optimise for Cuda<D> {
    type State = OptimState<D>;
    type Control = OptimControl<D>;

    /// In the format of activations, whatever `dtype` is; where that is 16 bits wide, the numbers in f32 are kept for the
    /// master copy.
    fn trainable_matrix(&self, tensor: &StoredTensor, layout: Layout, _dtype: Dtype) -> Result<Matrix<D>> {
        let sizes = sizes(tensor.shape(), layout)?;
        let (stored, dtype) = (Buffer::stored(&self.device, tensor)?, tensor.dtype());
        if self.dtype == Dtype::F32 {
            return Matrix::of(self.converted(stored, dtype)?, self.dtype, layout, sizes);
        }
        let (computed, original) = if dtype == Dtype::F32 {
            (self.cast_of(&stored, dtype, self.dtype)?, stored)
        } else {
            let original = self.cast_of(&stored, dtype, Dtype::F32)?;
            (self.converted(stored, dtype)?, original)
        };
        Matrix::of(computed, self.dtype, layout, sizes)?.with_original(original)
    }

    /// The master copy of a parameter that was not loaded to be trained, or whose numbers in f32 another state has taken, is
    /// what it is now.
    fn state(&self, parameter: Trainable<'_, Self>, format: MomentFormat) -> Result<OptimState<D>> {
        let Numbers { buffer, dtype, original } = Numbers::of("state", parameter)?;
        let len = buffer.len();
        let moments = [Moment::zeroed(self, format, len)?, Moment::zeroed(self, format, len)?];
        let master = match dtype {
            Dtype::F32 => None,
            Dtype::F16 | Dtype::Bf16 => match original.and_then(Option::take) {
                Some(original) => Some(original),
                None => Some(self.cast_of(buffer, dtype, Dtype::F32)?),
            },
        };
        Ok(OptimState { len, format, moments, master })
    }

    fn sum_of_squares(&self, x: &Buffer<D>, len: usize) -> Result<f64> {
        let _op = work::sum_of_squares(len, 4);
        let mut partials = Buffer::new(&self.device, Format::F64, len.div_ceil(CHUNK))?;
        self.squares(x, len, &mut partials, 0)?;
        Ok(partials.to_vec::<f64>(&self.device)?.into_iter().fold(0.0, |sum, x| sum + x))
    }

    fn control(&self, lens: &[usize]) -> Result<OptimControl<D>> {
        let (mut gradients, mut at) = (Vec::with_capacity(lens.len()), 0_usize);
        for &len in lens {
            gradients.push((len, at));
            at = at.saturating_add(len.div_ceil(CHUNK));
        }
        let mut words = Buffer::new(&self.device, Format::U32, SETTINGS + RESULTS)?;
        let mut unsettled = [0_u32; SETTINGS + RESULTS];
        unsettled[SETTINGS + SKIP] = 1;
        words.write(&self.device, 0, &unsettled)?;
        Ok(OptimControl {
            gradients,
            settings: words.share(0, SETTINGS)?,
            results: words.share(SETTINGS, RESULTS)?,
            words,
            // One at least, of which nothing comes.
            partials: self.zeroed(Format::F64, at.max(1))?,
        })
    }

    fn prepare(&self, control: &mut OptimControl<D>, step: AdamW) -> Result<()> {
        let f = step.factors()?;
        let mut words = [0_u32; SETTINGS + RESULTS];
        for (i, bits) in
            [step.clip.to_bits(), step.unscale.to_bits(), step.rng.seed()].into_iter().enumerate()
        {
            words[2 * i..2 * i + 2].copy_from_slice(&halves(bits));
        }
        words[6] = step.step as u32;
        let factors =
            [f.keep, f.betas[0], f.betas[1], f.rest[0], f.rest[1], f.rate, f.unbias, f.eps].map(f32::to_bits);
        words[7..15].copy_from_slice(&factors);
        words[SETTINGS + SKIP] = 1;
        control.words.send(&self.device, 0, &words)?;
        control.partials.fill(&self.device, 0)
    }

    fn watch(&self, control: &mut OptimControl<D>, nll: &Buffer<D>, rows: usize) -> Result<()> {
        let _op = work::watch(rows);
        let mut launch = Launch::new("optim_watch", [1, 1, 1], THREADS as u32, SUMS / 2)?;
        launch.read("nll", nll, Dtype::F32, 0, rows)?.u64(rows as u64);
        launch.update("results", &mut control.results, Format::U32, 0, RESULTS)?;
        // SAFETY: one block, which reads `rows` numbers and writes one word of the results.
        unsafe { self.launch(&launch) }
    }

    fn measure(&self, control: &mut OptimControl<D>, number: usize, gradient: &Buffer<D>) -> Result<()> {
        let _op = work::measure(control.gradients.get(number).map_or(0, |g| g.0), 4);
        let Some(&(len, at)) = control.gradients.get(number) else {
            let (expected, got) = (number.saturating_add(1), control.gradients.len());
            return Err(Error::Shape { op: "measure", what: "gradients", expected, got });
        };
        self.squares(gradient, len, &mut control.partials, at)
    }

    fn settle(&self, control: &mut OptimControl<D>) -> Result<()> {
        let _op = work::settle(control.gradients.len());
        let mut launch = Launch::new("optim_settle", [1, 1, 1], THREADS as u32, SUMS)?;
        let count = control.partials.len();
        launch.read("partials", &control.partials, Format::F64, 0, count)?.u64(count as u64);
        launch.read("settings", &control.settings, Format::U32, 0, SETTINGS)?;
        launch.update("results", &mut control.results, Format::U32, 0, RESULTS)?;
        // SAFETY: one block, which reads `count` partial sums and the settings, and writes words of the results.
        unsafe { self.launch(&launch) }
    }

    /// The gradient is f32.
    fn step(
        &self,
        trainable: Trainable<'_, Self>,
        gradient: &Buffer<D>,
        state: &mut OptimState<D>,
        control: &OptimControl<D>,
        parameter: u32,
        decays: bool,
    ) -> Result<()> {
        let _op = work::step(state.len, state.master.is_some(), state.format);
        const OP: &str = "step";
        let numbers = Numbers::of(OP, trainable)?;
        numbers.fits(OP, state)?;
        let (len, format) = (state.len, state.format);
        equal(OP, "gradient", len, gradient.len())?;
        let plain = numbers.dtype == Dtype::F32 && format == MomentFormat::F32;
        let each = THREADS * if plain { 4 } else { 8 };
        // A random word for each number.
        let shared = if format == MomentFormat::F32 { 0 } else { each * 4 };
        let kernel = kernel(numbers.dtype, format);
        let mut launch = Launch::new(kernel, [len.div_ceil(each), 1, 1], THREADS as u32, shared)?;
        launch.update("weights", numbers.buffer, numbers.dtype, 0, len)?;
        match &mut state.master {
            Some(master) => launch.update("master", master, Dtype::F32, 0, len)?,
            None => launch.null(),
        };
        launch.read("gradient", gradient, Dtype::F32, 0, len)?;
        let [m, v] = &mut state.moments;
        launch.update("m", &mut m.numbers, number_format(format), 0, len)?;
        launch.update("v", &mut v.numbers, number_format(format), 0, len)?;
        for (name, scales) in [("scales of m", &mut m.scales), ("scales of v", &mut v.scales)] {
            match scales {
                Some(scales) => launch.update(name, scales, Dtype::F32, 0, len.div_ceil(MOMENT_BLOCK))?,
                None => launch.null(),
            };
        }
        launch.read("settings", &control.settings, Format::U32, 0, SETTINGS)?;
        launch.read("results", &control.results, Format::U32, 0, RESULTS)?;
        launch.u64(len as u64).u32(parameter).u32(decays.into());
        if launch.is_empty() {
            return Ok(());
        }
        // SAFETY: threads touch elements below `len` of weights, master copy, gradient and moments, and scales of their blocks;
        // `fits` has found a master copy where the weights are not f32.
        unsafe { self.launch(&launch) }
    }

    fn outcome(&self, control: &OptimControl<D>) -> Result<Outcome> {
        let words = control.results.to_vec::<u32>(&self.device)?;
        let word = |i: usize| words.get(i).copied().map_or(0, u64::from);
        let gradient = f64::from_bits(word(LENGTH) | word(LENGTH + 1) << 32);
        Ok(Outcome { gradient, skipped: word(SKIP) != 0 })
    }

    fn read_parameter(
        &self,
        parameter: Trainable<'_, Self>,
        state: Option<&OptimState<D>>,
    ) -> Result<Vec<f32>> {
        const OP: &str = "read_parameter";
        let numbers = Numbers::of(OP, parameter)?;
        if let Some(state) = state {
            numbers.fits(OP, state)?;
            if let Some(master) = &state.master {
                return master.to_f32(&self.device);
            }
        }
        let original = numbers.original.and_then(|original| original.as_ref());
        original.unwrap_or(numbers.buffer).to_f32(&self.device)
    }

    fn write_parameter(
        &self,
        parameter: Trainable<'_, Self>,
        state: Option<&mut OptimState<D>>,
        numbers: &[f32],
    ) -> Result<()> {
        const OP: &str = "write_parameter";
        let to = Numbers::of(OP, parameter)?;
        equal(OP, "numbers", to.buffer.len(), numbers.len())?;
        if let Some(state) = state {
            to.fits(OP, state)?;
            if let Some(master) = &mut state.master {
                master.write(&self.device, 0, numbers)?;
            }
        }
        if let Some(original) = to.original.and_then(Option::as_mut) {
            original.write(&self.device, 0, numbers)?;
        }
        to.buffer.write_rounded(&self.device, numbers)
    }

    fn read_moments(&self, state: &OptimState<D>) -> Result<(MomentFormat, [Vec<u8>; 2])> {
        let [m, v] = &state.moments;
        Ok((state.format, [m.to_bytes(&self.device)?, v.to_bytes(&self.device)?]))
    }

    fn write_moments(&self, state: &mut OptimState<D>, moments: [&[u8]; 2]) -> Result<()> {
        for bytes in moments {
            equal("write_moments", "bytes of a moment", state.format.bytes(state.len), bytes.len())?;
        }
        for (moment, bytes) in state.moments.iter_mut().zip(moments) {
            moment.copy_from(&self.device, bytes)?;
        }
        Ok(())
    }
}

#[cfg(all(test, feature = "simt"))]
mod simt_tests;

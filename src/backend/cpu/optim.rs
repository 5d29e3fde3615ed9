//! Parameters that change: a step of AdamW in one pass over memory, and the norm of gradients.
//!
//! Contract: a parameter, its gradient, its moments and its master copy have the same number of elements, in stored
//! order. Elements are independent of one another; every element's arithmetic is the same on every instruction set
//! (division and square root are rounded correctly), and random bits are addressed by element, so that neither
//! threads nor instructions show in the result.

mod kernels;

use super::buffer::Shared;
use super::check;
use super::{Buffer, Cpu, Matrix, Storage, sides};
use crate::backend::{AdamW, Layout, MomentFormat, Optimise, Trainable};
use crate::element::{Dtype, StoredTensor};
use crate::error::{Error, Result};
use kernels::{Convert, Part, Squares, Step, little, nearest, widen};

/// Elements of a block: those that 16 blocks of random bits serve ([`AdamW::rounding`]).
const BLOCK: usize = 64;
/// Elements of a task; whole blocks.
const TASK: usize = 1 << 15;

/// A moment of a parameter.
#[derive(Debug)]
enum Moment {
    F32(Buffer<f32>),
    Bf16(Buffer<u16>),
}

impl Moment {
    fn zeroed(format: MomentFormat, len: usize) -> Result<Self> {
        Ok(match format {
            MomentFormat::F32 => Moment::F32(Buffer::zeroed(len)?),
            MomentFormat::Bf16 => Moment::Bf16(Buffer::zeroed(len)?),
        })
    }

    fn share(&mut self) -> Part<Shared<'_, f32>, Shared<'_, u16>> {
        match self {
            Moment::F32(x) => Part::F32(Shared::new(x.as_mut_slice())),
            Moment::Bf16(x) => Part::Bf16(Shared::new(x.as_mut_slice())),
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        match self {
            Moment::F32(x) => x.as_slice().iter().flat_map(|x| x.to_le_bytes()).collect(),
            Moment::Bf16(x) => x.as_slice().iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }

    fn copy_from(&mut self, bytes: &[u8]) {
        match self {
            Moment::F32(x) => {
                for (x, bytes) in x.as_mut_slice().iter_mut().zip(bytes.as_chunks().0) {
                    *x = f32::from_le_bytes(*bytes);
                }
            }
            Moment::Bf16(x) => {
                for (x, bytes) in x.as_mut_slice().iter_mut().zip(bytes.as_chunks().0) {
                    *x = u16::from_le_bytes(*bytes);
                }
            }
        }
    }
}

/// Moments of one parameter, and its master copy where the weight is bf16.
#[derive(Debug)]
pub struct OptimState {
    len: usize,
    format: MomentFormat,
    moments: [Moment; 2],
    master: Option<Buffer<f32>>,
}

impl OptimState {
    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        let moment = match self.format {
            MomentFormat::F32 => 4,
            MomentFormat::Bf16 => 2,
        };
        self.len * (2 * moment + if self.master.is_some() { 4 } else { 0 })
    }
}

/// A parameter's numbers: in f32, or in bf16 beside a master copy.
enum Numbers<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [u16]),
}

impl<'a> Numbers<'a> {
    fn of(op: &'static str, parameter: Trainable<'a, Cpu<f32>>) -> Result<Self> {
        match parameter {
            Trainable::Vector(buffer) => Ok(Numbers::F32(buffer.as_mut_slice())),
            Trainable::Matrix(matrix) => match &mut matrix.storage {
                Storage::F32(numbers) => Ok(Numbers::F32(numbers.as_mut_slice())),
                Storage::Bf16(numbers) => Ok(Numbers::Bf16(numbers.as_mut_slice())),
                Storage::Stored(_) => Err(Error::Request(format!(
                    "{op}: this weight lies in its file and cannot change; load it as one to be trained"
                ))),
            },
        }
    }

    fn len(&self) -> usize {
        match self {
            Numbers::F32(x) => x.len(),
            Numbers::Bf16(x) => x.len(),
        }
    }

    /// The state is one for such a parameter.
    fn fits(&self, op: &'static str, state: &OptimState) -> Result<()> {
        check::equal(op, "state", self.len(), state.len)?;
        let wanted = matches!(self, Numbers::Bf16(_));
        check::equal(op, "master copies", wanted.into(), state.master.is_some().into())
    }
}

impl Optimise for Cpu<f32> {
    type State = OptimState;

    fn trainable_matrix(&self, tensor: &StoredTensor, layout: Layout, dtype: Dtype) -> Result<Matrix> {
        const OP: &str = "trainable_matrix";
        let (inputs, outputs) = sides(OP, tensor, layout)?;
        let (len, bytes) = (tensor.len(), tensor.bytes().as_ref());
        let from = (tensor.dtype(), bytes);
        let storage = match dtype {
            Dtype::F32 => {
                let mut numbers = Buffer::zeroed(len)?;
                let to = Shared::new(numbers.as_mut_slice());
                self.for_ranges(len, |at, n| {
                    // SAFETY: this task's range alone, within `len`.
                    self.dispatch(Convert { from, at, to: Part::F32(unsafe { to.part(at, n) }) });
                });
                Storage::F32(numbers)
            }
            Dtype::Bf16 => {
                let mut numbers = Buffer::zeroed(len)?;
                let to = Shared::new(numbers.as_mut_slice());
                self.for_ranges(len, |at, n| {
                    // SAFETY: this task's range alone, within `len`.
                    self.dispatch(Convert { from, at, to: Part::Bf16(unsafe { to.part(at, n) }) });
                });
                Storage::Bf16(numbers)
            }
            Dtype::F16 => {
                return Err(Error::Request(format!("{OP}: a weight to be trained is f32 or bf16, not f16")));
            }
        };
        Ok(Matrix { storage, layout, inputs, outputs })
    }

    fn state(&self, parameter: Trainable<'_, Self>, format: MomentFormat) -> Result<OptimState> {
        let numbers = Numbers::of("state", parameter)?;
        let len = numbers.len();
        let master = match &numbers {
            Numbers::F32(_) => None,
            Numbers::Bf16(x) => {
                let mut master = Buffer::zeroed(len)?;
                for (to, x) in master.as_mut_slice().iter_mut().zip(x.iter()) {
                    *to = widen(u16::from_le(*x));
                }
                Some(master)
            }
        };
        let moments = [Moment::zeroed(format, len)?, Moment::zeroed(format, len)?];
        Ok(OptimState { len, format, moments, master })
    }

    fn sum_of_squares(&self, x: &Buffer<f32>, len: usize) -> Result<f64> {
        const OP: &str = "sum_of_squares";
        check::at_least(OP, "x", len, x.len())?;
        let mut sums = Buffer::<f64>::zeroed(len.div_ceil(TASK))?;
        let shared = Shared::new(sums.as_mut_slice());
        self.for_ranges(len, |at, n| {
            let sum = self.dispatch(Squares(&x.as_slice()[at..at + n]));
            // SAFETY: this task's number alone, one of `len / TASK` rounded up.
            unsafe { shared.part(at / TASK, 1)[0] = sum };
        });
        Ok(sums.as_slice().iter().sum())
    }

    fn step(
        &self,
        parameter: Trainable<'_, Self>,
        gradient: &Buffer<f32>,
        state: &mut OptimState,
        step: AdamW,
    ) -> Result<()> {
        const OP: &str = "step";
        let plain = matches!(parameter, Trainable::Vector(_));
        let numbers = Numbers::of(OP, parameter)?;
        numbers.fits(OP, state)?;
        let len = numbers.len();
        check::equal(OP, "gradient", len, gradient.len())?;
        let factors = step.factors()?;
        let (weights, rounded) = match (numbers, &mut state.master) {
            (Numbers::F32(x), _) => (Shared::new(x), None),
            (Numbers::Bf16(x), Some(master)) => (Shared::new(master.as_mut_slice()), Some(Shared::new(x))),
            // `fits` has found a master copy.
            (Numbers::Bf16(_), None) => return check::equal(OP, "master copies", 1, 0),
        };
        // A vector and a master copy are native; a matrix is as in a file.
        let swap = cfg!(target_endian = "big") && rounded.is_none() && !plain;
        let [m, v] = state.moments.each_mut().map(Moment::share);
        self.for_ranges(len, |at, n| {
            // SAFETY: this task's range alone, within `len`, which all of these have.
            unsafe {
                self.dispatch(Step {
                    at,
                    weights: weights.part(at, n),
                    rounded: rounded.as_ref().map(|r| r.part(at, n)),
                    gradient: &gradient.as_slice()[at..at + n],
                    m: m.part(at, n),
                    v: v.part(at, n),
                    factors,
                    step,
                    swap,
                });
            }
        });
        Ok(())
    }

    fn read_parameter(&self, parameter: Trainable<'_, Self>, state: Option<&OptimState>) -> Result<Vec<f32>> {
        const OP: &str = "read_parameter";
        let plain = matches!(parameter, Trainable::Vector(_));
        let numbers = Numbers::of(OP, parameter)?;
        if let Some(state) = state {
            numbers.fits(OP, state)?;
            if let Some(master) = &state.master {
                return Ok(master.as_slice().to_vec());
            }
        }
        Ok(match numbers {
            Numbers::F32(x) if plain => x.to_vec(),
            Numbers::F32(x) => x.iter().map(|&x| little(x)).collect(),
            Numbers::Bf16(x) => x.iter().map(|&x| widen(u16::from_le(x))).collect(),
        })
    }

    fn write_parameter(
        &self,
        parameter: Trainable<'_, Self>,
        state: Option<&mut OptimState>,
        numbers: &[f32],
    ) -> Result<()> {
        const OP: &str = "write_parameter";
        let plain = matches!(parameter, Trainable::Vector(_));
        let to = Numbers::of(OP, parameter)?;
        check::equal(OP, "numbers", to.len(), numbers.len())?;
        if let Some(state) = state {
            to.fits(OP, state)?;
            if let Some(master) = &mut state.master {
                master.as_mut_slice().copy_from_slice(numbers);
            }
        }
        match to {
            Numbers::F32(to) if plain => to.copy_from_slice(numbers),
            Numbers::F32(to) => to.iter_mut().zip(numbers).for_each(|(to, &x)| *to = little(x)),
            Numbers::Bf16(to) => to.iter_mut().zip(numbers).for_each(|(to, &x)| *to = nearest(x).to_le()),
        }
        Ok(())
    }

    fn read_moments(&self, state: &OptimState) -> Result<(MomentFormat, [Vec<u8>; 2])> {
        Ok((state.format, state.moments.each_ref().map(Moment::to_bytes)))
    }

    fn write_moments(&self, state: &mut OptimState, moments: [&[u8]; 2]) -> Result<()> {
        let size = match state.format {
            MomentFormat::F32 => 4,
            MomentFormat::Bf16 => 2,
        };
        for bytes in moments {
            check::equal("write_moments", "bytes of a moment", size * state.len, bytes.len())?;
        }
        for (moment, bytes) in state.moments.iter_mut().zip(moments) {
            moment.copy_from(bytes);
        }
        Ok(())
    }
}

impl Cpu<f32> {
    /// Cuts `len` elements into tasks `f(first, count)` of [`TASK`], whatever the number of threads.
    fn for_ranges(&self, len: usize, f: impl Fn(usize, usize) + Send + Sync) {
        self.for_each(len.div_ceil(TASK), |task| f(task * TASK, TASK.min(len - task * TASK)));
    }
}

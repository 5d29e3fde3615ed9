//! Parameters that change: a step of AdamW in one pass over memory, and the norm of gradients.
//!
//! Contract: a parameter, its gradient, its moments and its master copy have the same number of elements, in stored
//! order. Elements are independent of one another; every element's arithmetic is the same on every instruction set
//! (division and square root are rounded correctly), and random bits are addressed by element, so that neither
//! threads nor instructions show in the result.

mod kernels;
mod moments;

use super::buffer::Shared;
use super::check;
use super::{Buffer, Cpu, Matrix, Storage, sides};
use crate::backend::{AdamW, AdamWFactors, Layout, MomentFormat, Optimise, Outcome, Trainable, work};
use crate::element::{Dtype, StoredTensor};
use crate::error::{Error, Result};
use kernels::{Convert, Part, Squares, Step, little, nearest, widen};
use moments::{Moment, Which};

/// Elements of a block: those that share a scale of 8-bit moments, and four times those that 16 blocks of random bits
/// serve ([`AdamW::rounding`]).
const BLOCK: usize = 256;
/// Elements of a task; whole blocks.
const TASK: usize = 1 << 15;

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
        2 * self.format.bytes(self.len) + if self.master.is_some() { 4 * self.len } else { 0 }
    }
}

/// What is measured before a step, and what follows from it.
#[derive(Debug)]
pub struct OptimControl {
    lens: Vec<usize>,
    /// Sum of squares of each gradient.
    squares: Vec<f64>,
    step: Option<(AdamW, AdamWFactors)>,
    /// No loss that was watched was not finite.
    finite: bool,
    /// What came of it, and the factor on gradients.
    settled: Option<(Outcome, f32)>,
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
    type Control = OptimControl;

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
        let moments =
            [Moment::zeroed(format, Which::First, len)?, Moment::zeroed(format, Which::Second, len)?];
        Ok(OptimState { len, format, moments, master })
    }

    fn sum_of_squares(&self, x: &Buffer<f32>, len: usize) -> Result<f64> {
        let _op = work::sum_of_squares(len, 4);
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

    fn control(&self, lens: &[usize]) -> Result<OptimControl> {
        let squares = vec![0.0; lens.len()];
        Ok(OptimControl { lens: lens.to_vec(), squares, step: None, finite: true, settled: None })
    }

    fn prepare(&self, control: &mut OptimControl, step: AdamW) -> Result<()> {
        control.step = Some((step, step.factors()?));
        control.squares.fill(0.0);
        (control.finite, control.settled) = (true, None);
        Ok(())
    }

    fn watch(&self, control: &mut OptimControl, nll: &Buffer<f32>, rows: usize) -> Result<()> {
        let _op = work::watch(rows);
        check::at_least("watch", "nll", rows, nll.len())?;
        control.finite &= nll.as_slice()[..rows].iter().all(|x| x.is_finite());
        Ok(())
    }

    fn measure(&self, control: &mut OptimControl, number: usize, gradient: &Buffer<f32>) -> Result<()> {
        let _op = work::measure(control.lens.get(number).copied().unwrap_or(0), 4);
        let (Some(&len), Some(squares)) = (control.lens.get(number), control.squares.get_mut(number)) else {
            return check::at_least("measure", "gradients", number.saturating_add(1), control.lens.len());
        };
        *squares = self.sum_of_squares(gradient, len)?;
        Ok(())
    }

    fn settle(&self, control: &mut OptimControl) -> Result<()> {
        let _op = work::settle(control.lens.len());
        let Some((step, _)) = &control.step else {
            return Err(Error::request("optimiser: settled before it was prepared"));
        };
        let gradient = step.unscale * control.squares.iter().fold(0.0, |sum, x| sum + x).sqrt();
        let skipped = !(gradient.is_finite() && control.finite);
        control.settled = Some((Outcome { gradient, skipped }, step.scale(gradient) as f32));
        Ok(())
    }

    fn step(
        &self,
        trainable: Trainable<'_, Self>,
        gradient: &Buffer<f32>,
        state: &mut OptimState,
        control: &OptimControl,
        parameter: u32,
        decays: bool,
    ) -> Result<()> {
        let _op = work::step(state.len, state.master.is_some(), state.format);
        const OP: &str = "step";
        let plain = matches!(trainable, Trainable::Vector(_));
        let numbers = Numbers::of(OP, trainable)?;
        numbers.fits(OP, state)?;
        let len = numbers.len();
        check::equal(OP, "gradient", len, gradient.len())?;
        let (Some((step, mut factors)), Some((outcome, scale))) = (control.step, control.settled) else {
            return Err(unsettled());
        };
        if outcome.skipped {
            return Ok(());
        }
        if !decays {
            factors.keep = 1.0;
        }
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
                    scale,
                    step,
                    parameter,
                    swap,
                });
            }
        });
        Ok(())
    }

    fn outcome(&self, control: &OptimControl) -> Result<Outcome> {
        control.settled.map(|(outcome, _)| outcome).ok_or_else(unsettled)
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
        for bytes in moments {
            let expected = state.format.bytes(state.len);
            check::equal("write_moments", "bytes of a moment", expected, bytes.len())?;
        }
        for (moment, bytes) in state.moments.iter_mut().zip(moments) {
            moment.copy_from(bytes);
        }
        Ok(())
    }
}

fn unsettled() -> Error {
    Error::request("optimiser: a step before its gradients were settled")
}

impl Cpu<f32> {
    /// Cuts `len` elements into tasks `f(first, count)` of [`TASK`], whatever the number of threads.
    fn for_ranges(&self, len: usize, f: impl Fn(usize, usize) + Send + Sync) {
        self.for_each(len.div_ceil(TASK), |task| f(task * TASK, TASK.min(len - task * TASK)));
    }
}

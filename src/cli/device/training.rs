//! What training runs on.

use super::super::args::DeviceArgs;
use super::{Place, by, check, cpu, describe, dtype_of_card, with_gemm};
use crate::backend::cuda::driver::Card;
use crate::backend::cuda::{Cuda, Device};
use crate::backend::{Backend, Backward, Optimise};
use crate::element::Dtype;
use crate::error::Result;

/// Something that learns, on whatever machine.
pub trait Training {
    /// Does it on `backend`, which `device` names in a line.
    ///
    /// # Errors
    /// What goes wrong.
    fn run<B: Optimise + Backward + Backend<Elem = f32>>(self, backend: B, device: &str) -> Result<()>;
}

/// Runs `training` on the machine that `--device` names.
///
/// # Errors
/// Those of [`check`] and of the training.
pub fn train(args: &DeviceArgs, training: impl Training) -> Result<()> {
    check(args)?;
    let dtype = dtype_of_card(args)?.unwrap_or(Dtype::F32);
    match Place::named(&args.device)? {
        Place::Cpu => {
            let cpu = cpu(args)?;
            let device = format!("cpu, {} threads, {}", cpu.threads(), cpu.level());
            training.run(cpu, &device)
        }
        Place::Simt => simt(dtype, args, training),
        Place::Cuda(ordinal) => {
            let cuda = with_gemm(Cuda::with_dtype(Card::open(ordinal)?, dtype), args)?;
            let device = format!("cuda:{ordinal}, {}, {dtype}{}", describe(cuda.device().facts()), by(&cuda));
            training.run(cuda, &device)
        }
    }
}

#[cfg(feature = "simt")]
fn simt(dtype: Dtype, args: &DeviceArgs, training: impl Training) -> Result<()> {
    let cuda = with_gemm(Cuda::with_dtype(super::simt_machine()?, dtype), args)?;
    let device = format!("host SIMT machine, {dtype}{}", by(&cuda));
    training.run(cuda, &device)
}

#[cfg(not(feature = "simt"))]
fn simt(_: Dtype, _: &DeviceArgs, _: impl Training) -> Result<()> {
    Place::named("simt").map(drop)
}

//! What training runs on.

use super::super::args::DeviceArgs;
use super::{Place, card_and_line, check, cpu_and_line, dtype_of_card};
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
            let (cpu, device) = cpu_and_line(args)?;
            training.run(cpu, &device)
        }
        Place::Simt => simt(dtype, args, training),
        Place::Cuda(ordinal) => {
            let (cuda, device) = card_and_line(ordinal, dtype, args)?;
            training.run(cuda, &device)
        }
    }
}

#[cfg(feature = "simt")]
fn simt(dtype: Dtype, args: &DeviceArgs, training: impl Training) -> Result<()> {
    let (cuda, device) = super::simt_and_line(dtype, args)?;
    training.run(cuda, &device)
}

#[cfg(not(feature = "simt"))]
fn simt(_: Dtype, _: &DeviceArgs, _: impl Training) -> Result<()> {
    Place::named("simt").map(drop)
}

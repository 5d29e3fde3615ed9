//! Where kernels are timed.

use std::ops::ControlFlow;

use super::super::args::DeviceArgs;
use super::{Place, check, cpu_and_line, with_gemm};
use crate::backend::cuda::driver::Card;
use crate::backend::cuda::{Cuda, Device};
use crate::element::Dtype;
use crate::error::Result;
use crate::profile::{self, Ceilings, Timing};

/// Which kernels are timed.
#[derive(Clone, Copy, Debug)]
pub struct KernelWork<'a> {
    /// Those of which a name or the shape contains this.
    pub filter: &'a str,
    /// A few small shapes.
    pub quick: bool,
    /// Whether the machine's ceilings are measured first.
    pub ceilings: bool,
}

/// What there is to tell of them.
#[derive(Debug)]
pub enum KernelEvent<'a> {
    /// Before the first: the machine, what it computes its ceilings in, and how many there are.
    Start {
        device: String,
        dtype: Dtype,
        ceilings: Option<Ceilings>,
        cases: usize,
    },
    Timed(&'a Timing),
}

/// Is told, and says whether to go on.
type Each<'a> = dyn FnMut(KernelEvent<'_>) -> ControlFlow<()> + 'a;

/// Times the kernels of the machine that `--device` names: a card's and the SIMT machine's with a card's shapes, the CPU's
/// operations with shapes for a CPU.
///
/// # Errors
/// Those of [`check`], [`profile::kernels`] and [`profile::host_kernels`].
pub fn kernels(args: &DeviceArgs, work: KernelWork<'_>, each: &mut Each<'_>) -> Result<()> {
    check(args)?;
    match Place::named(&args.device)? {
        Place::Cpu => {
            let (cpu, device) = cpu_and_line(args)?;
            let cases = profile::host_cases(work.quick).iter().filter(|c| c.matches(work.filter)).count();
            let ceilings = if work.ceilings { Some(profile::ceilings(&cpu)?) } else { None };
            if each(KernelEvent::Start { device, dtype: Dtype::F32, ceilings, cases }).is_break() {
                return Ok(());
            }
            profile::host_kernels(&cpu, work.filter, work.quick, |t| each(KernelEvent::Timed(t)))
        }
        Place::Cuda(ordinal) => on_device(with_gemm(Cuda::new(Card::open(ordinal)?), args)?, work, each),
        Place::Simt => simt(args, work, each),
    }
}

fn on_device<D: Device>(cuda: Cuda<D>, work: KernelWork<'_>, each: &mut Each<'_>) -> Result<()> {
    let device = cuda.device().facts().name.clone();
    let cases = profile::cases(work.quick).iter().filter(|c| c.matches(work.filter)).count();
    let dtype = Dtype::Bf16;
    let ceilings = if work.ceilings { Some(profile::ceilings(&cuda.in_format(dtype))?) } else { None };
    if each(KernelEvent::Start { device, dtype, ceilings, cases }).is_break() {
        return Ok(());
    }
    profile::kernels(&cuda, work.filter, work.quick, |t| each(KernelEvent::Timed(t)))
}

#[cfg(feature = "simt")]
fn simt(args: &DeviceArgs, work: KernelWork<'_>, each: &mut Each<'_>) -> Result<()> {
    use crate::backend::cuda::simt::{Options, Simt};

    on_device(with_gemm(Cuda::new(Simt::new(Options { seed: 0, check: false })), args)?, work, each)
}

#[cfg(not(feature = "simt"))]
fn simt(_: &DeviceArgs, _: KernelWork<'_>, _: &mut Each<'_>) -> Result<()> {
    Place::named("simt").map(drop)
}

//! `lacuna bench kernels`: each kernel by itself.

use std::ops::ControlFlow;

use clap::Args as ClapArgs;

use super::super::args::DeviceArgs;
use super::super::device::{self, KernelEvent, KernelWork};
use super::line::{Kind, Line, Machine};
use super::output::{OutputArgs, Sheet};
use crate::error::{Error, Result};
use crate::profile::Timing;

#[derive(Debug, ClapArgs)]
pub struct KernelsArgs {
    /// Only kernel files, kernels and shapes that contain this; inference or training: only what is part of that
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// A few small shapes: whether it works
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Runs it.
///
/// # Errors
/// Those of the machine and of the kernels; [`Error::Cancelled`](crate::Error::Cancelled) after Ctrl-C.
pub fn run(args: &KernelsArgs, sheet: &mut Sheet<'_>) -> Result<()> {
    let context = sheet.context;
    device::check(&args.device)?;
    let threads = device::threads(&args.device)?;
    context.interrupt.hold();
    let bar = context.progress(0, args.output.json());
    let (mut broken, mut machine) = (None, None);
    let mut each = |event: KernelEvent<'_>| {
        let added = match event {
            KernelEvent::Start { device, dtype, ceilings, cases } => {
                bar.set_length(cases as u64);
                let dtype = dtype.name().to_owned();
                let here = machine.insert(Machine { device, dtype, threads, gemm: "own".into(), ceilings });
                bar.suspend(|| sheet.ceilings(here))
            }
            KernelEvent::Timed(timing) => {
                bar.inc(1);
                let line = machine.as_ref().map(|machine| line(timing, machine));
                line.map_or(Ok(()), |line| bar.suspend(|| sheet.add(line)))
            }
        };
        broken = added.err();
        if broken.is_some() || context.interrupt.raised() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let work = KernelWork { filter: &args.filter, quick: args.quick, ceilings: !args.output.no_ceilings };
    let done = device::kernels(&args.device, work, &mut each);
    bar.finish_and_clear();
    if let Some(error) = broken {
        return Err(error);
    }
    done?;
    context.interrupt.check()?;
    if !sheet.has(Kind::Kernel) {
        return Err(Error::request(format!(
            "--filter {}: no kernel file, kernel or shape contains this; without --filter all are measured",
            args.filter
        )));
    }
    Ok(())
}

fn line(timing: &Timing, machine: &Machine) -> Line {
    let name = format!("{}: {}", timing.kernel, timing.shape);
    // A library's products have its name in place of the kernel's.
    let gemm = if timing.kernel.contains(' ') { timing.kernel.as_str() } else { "own" };
    let machine = Machine { dtype: timing.dtype.name().to_owned(), gemm: gemm.to_owned(), ..machine.clone() };
    let mut line = Line::new(Kind::Kernel, &name, &machine);
    let seconds: Vec<f64> = timing.microseconds.iter().map(|us| us * 1e-6).collect();
    line.times(&seconds)
        .work(timing.flops as f64, timing.bytes as f64, machine.ceilings)
        .set("stem", timing.stem)
        .set("kernel", timing.kernel.as_str())
        .set("shape", timing.shape.as_str())
        .set("median_us", timing.median_us())
        .set("min_us", timing.min_us())
        .set("workspace_bytes", timing.workspace);
    line
}

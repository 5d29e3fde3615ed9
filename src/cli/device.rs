//! The one place that knows which machines there are.

use std::sync::Arc;

use super::Context;
use super::args::DeviceArgs;
use crate::backend::cpu::{Cpu, MAX_THREADS};
use crate::error::{Error, Result};
use crate::io::ModelFiles;
use crate::model::{LoadOptions, Model};

/// What the command line computes on.
pub type Machine = Cpu<f32>;

/// The machine that `--device` names.
///
/// # Errors
/// Those of [`check`].
pub fn machine(args: &DeviceArgs) -> Result<Machine> {
    check(args)?;
    Cpu::new(args.threads)
}

/// Whether there can be such a machine, without making it.
///
/// # Errors
/// [`Error::Request`] for a name that this build does not have, or too many threads.
pub fn check(args: &DeviceArgs) -> Result<()> {
    match args.threads {
        Some(n) if n.get() > MAX_THREADS => {
            Err(Error::request(format!("--threads {n}: expected 1 to {MAX_THREADS}")))
        }
        _ => check_name(&args.device),
    }
}

fn check_name(name: &str) -> Result<()> {
    match name {
        "cpu" => Ok(()),
        gpu if gpu == "cuda" || gpu.starts_with("cuda:") || gpu == "gpu" => Err(Error::request(format!(
            "--device {gpu}: this build computes on the CPU only; use --device cpu"
        ))),
        other => Err(Error::request(format!("--device {other}: expected cpu"))),
    }
}

/// Loads the weights of `files`; every number is checked to be finite.
///
/// # Errors
/// Those of [`Model::load`].
pub fn load(args: &DeviceArgs, files: &ModelFiles, context: &Context) -> Result<Arc<Model<Machine>>> {
    let machine = machine(args)?;
    context.interrupt.check()?;
    Model::load(machine, files, LoadOptions { check_finite: true }).map(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_machines_are_named() {
        assert!(check_name("cpu").is_ok());
        for name in ["cuda", "cuda:1", "gpu"] {
            let message = check_name(name).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains("CPU only"), "{message}");
        }
        assert!(check_name("tpu").unwrap_err().to_string().contains("expected cpu"));
    }
}

//! The one place that knows which machines there are.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Context;
use super::args::DeviceArgs;
use crate::backend::cpu::{Cpu, MAX_THREADS};
use crate::backend::cuda::driver::{self, Card};
use crate::backend::cuda::{Device, Facts};
use crate::error::{Error, Result};
use crate::io::ModelFiles;
use crate::model::{LoadOptions, Model};

/// What the command line computes models on.
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
/// [`Error::Request`] for a name that is none, or too many threads; [`Error::Device`] for a card.
pub fn check(args: &DeviceArgs) -> Result<()> {
    match args.threads {
        Some(n) if n.get() > MAX_THREADS => {
            Err(Error::request(format!("--threads {n}: expected 1 to {MAX_THREADS}")))
        }
        _ => check_name(&args.device),
    }
}

fn check_name(name: &str) -> Result<()> {
    match Place::parse(name) {
        Some(Place::Cpu) => Ok(()),
        Some(Place::Simt) => {
            Err(Error::request("--device simt: it runs kernels in lacuna selftest only; use --device cpu"))
        }
        Some(Place::Cuda(ordinal)) => {
            let hint = "models are computed on the CPU only in this version; use --device cpu".to_owned();
            let (device, what) = match driver::available(ordinal) {
                Ok(name) => {
                    let what = "its kernels can be tested (lacuna selftest --device cuda), and no more";
                    (format!("cuda:{ordinal} ({name})"), what.to_owned())
                }
                Err(Error::Device { device, what, .. }) => (device, what),
                Err(error) => return Err(error),
            };
            Err(Error::Device { device, what, hint })
        }
        None => Err(Error::request(format!("--device {name}: expected cpu"))),
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

/// Where `lacuna selftest` tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Cpu,
    /// The host SIMT machine.
    Simt,
    /// A card, by number.
    Cuda(usize),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Cpu => f.write_str("cpu"),
            Place::Simt => f.write_str("simt"),
            Place::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl Place {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "cpu" => Some(Place::Cpu),
            "simt" => Some(Place::Simt),
            "cuda" => Some(Place::Cuda(0)),
            other => other.strip_prefix("cuda:")?.parse().ok().map(Place::Cuda),
        }
    }

    /// The place that `--device` names.
    ///
    /// # Errors
    /// [`Error::Request`] for a name that is none, and for `simt` in a build without it.
    pub fn named(name: &str) -> Result<Self> {
        match Self::parse(name) {
            Some(Place::Simt) if !cfg!(feature = "simt") => Err(Error::request(
                "--device simt: this program was built without the SIMT machine; build it with --features simt",
            )),
            Some(place) => Ok(place),
            None => Err(Error::request(format!("--device {name}: expected cpu, simt, cuda or cuda:N"))),
        }
    }

    /// The best place for testing kernels that there is, and why it is that one.
    pub fn best() -> (Self, String) {
        let lack = match driver::available(0) {
            Ok(name) => return (Place::Cuda(0), format!("there is a card, {name}, and kernels for it")),
            Err(Error::Device { what, .. }) => what,
            Err(error) => error.to_string(),
        };
        if cfg!(feature = "simt") {
            return (Place::Simt, format!("{lack}; the kernels run on the host SIMT machine"));
        }
        let why = format!(
            "{lack}, and this program was built without the SIMT machine (--features simt); only the CPU's own code is tested"
        );
        (Place::Cpu, why)
    }
}

/// How kernels run on the SIMT machine.
#[derive(Clone, Copy, Debug)]
pub struct SimtRun {
    /// Schedules with seeds 0 to this, excluded.
    pub schedules: u64,
    /// Whether every access is watched.
    #[cfg_attr(not(feature = "simt"), expect(dead_code))]
    pub check: bool,
}

/// What is to be tested.
pub trait Tests {
    /// Tests the CPU backend.
    ///
    /// # Errors
    /// What keeps it from being tested; not a test that fails.
    fn cpu(&mut self) -> Result<()>;

    /// Tests the kernels on a device; on the SIMT machine with the schedule of this seed.
    ///
    /// # Errors
    /// As [`cpu`](Self::cpu).
    fn kernels<D: Device>(&mut self, device: D, schedule: Option<u64>) -> Result<()>;

    /// Whether there is no use in another run.
    #[cfg_attr(not(feature = "simt"), expect(dead_code))]
    fn stopped(&self) -> bool;
}

/// Most threads a block and bytes of dynamic shared memory that each kernel was launched with.
pub type Plan = BTreeMap<&'static str, (u32, u32)>;

/// Runs `tests` at a place. The plan is of the SIMT machine; elsewhere it is empty.
///
/// # Errors
/// [`Error::Device`] when there is no such card or it does not fit; those of [`Tests`].
pub fn test(place: Place, simt: SimtRun, tests: &mut impl Tests) -> Result<Plan> {
    match place {
        Place::Cpu => tests.cpu().map(|()| Plan::new()),
        Place::Cuda(ordinal) => tests.kernels(Card::open(ordinal)?, None).map(|()| Plan::new()),
        Place::Simt => test_simt(simt, tests),
    }
}

#[cfg(feature = "simt")]
fn test_simt(run: SimtRun, tests: &mut impl Tests) -> Result<Plan> {
    use crate::backend::cuda::simt::{Options, Simt};

    let mut plan = Plan::new();
    for seed in 0..run.schedules {
        if tests.stopped() {
            break;
        }
        let device = Simt::new(Options { seed, check: run.check });
        tests.kernels(device.clone(), Some(seed))?;
        for (kernel, geometry) in device.plan() {
            let (threads, shared) = plan.entry(kernel).or_default();
            *threads = geometry.threads.max(*threads);
            *shared = geometry.shared.max(*shared);
        }
    }
    Ok(plan)
}

#[cfg(not(feature = "simt"))]
fn test_simt(_run: SimtRun, _tests: &mut impl Tests) -> Result<Plan> {
    Place::named("simt").map(|_| Plan::new())
}

/// The cases of a grid by stem, kernel and shape: those of the kernels are the same on every device.
pub fn kernel_cases(grid: crate::selftest::Grid, filter: &str) -> Vec<(&'static str, String, String)> {
    let cases = crate::selftest::cases::<Card>(grid, filter);
    cases.into_iter().map(|c| (c.stem, c.kernel, c.shape)).collect()
}

/// A device in a line.
pub fn describe(facts: &Facts) -> String {
    let Facts { name, capability: (major, minor), multiprocessors, memory, driver, .. } = facts;
    let Some((cuda, point)) = driver else { return name.clone() };
    format!(
        "{name}, compute capability {major}.{minor}, {multiprocessors} multiprocessors, {}, driver for CUDA {cuda}.{point}",
        indicatif::HumanBytes(*memory)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_machines_are_named() {
        assert!(check_name("cpu").is_ok());
        for name in ["tpu", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda0"] {
            let error = check_name(name).unwrap_err();
            assert!(
                error.to_string().contains(name) && error.to_string().contains("expected cpu"),
                "{error}"
            );
            assert_eq!(error.exit_code(), 2);
            assert!(Place::named(name).unwrap_err().to_string().contains("cuda:N"));
        }
    }

    #[test]
    fn cards_do_not_compute_models_yet() {
        for (name, device) in [("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:99", "cuda:99")] {
            let error = check_name(name).unwrap_err();
            let message = error.to_string();
            assert!(message.starts_with(device), "{message}");
            assert!(message.ends_with("on the CPU only in this version; use --device cpu"), "{message}");
            assert_eq!(error.exit_code(), 8);
        }
        assert!(check_name("simt").unwrap_err().to_string().contains("lacuna selftest"));
    }

    #[test]
    fn places_for_tests() {
        assert_eq!(Place::named("cpu").unwrap(), Place::Cpu);
        assert_eq!(Place::named("cuda").unwrap(), Place::Cuda(0));
        assert_eq!(Place::named("cuda:3").unwrap(), Place::Cuda(3));
        assert_eq!(Place::named("simt").is_ok(), cfg!(feature = "simt"));
        let (best, why) = Place::best();
        assert!(!why.is_empty());
        if let Err(error) = driver::available(0) {
            assert_eq!(best, if cfg!(feature = "simt") { Place::Simt } else { Place::Cpu }, "{error}");
        }
    }
}

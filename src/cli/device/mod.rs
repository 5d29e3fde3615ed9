//! The one place that knows which machines there are.

mod ceilings;
mod kernels;
mod testing;
mod training;

use std::sync::Arc;
use std::time::Instant;

pub use self::ceilings::ceilings;
pub use self::kernels::{KernelEvent, KernelWork, kernels};
pub use self::testing::{Plan, SimtRun, Tests, kernel_cases, library_cases, test};
pub use self::training::{Training, train};
use super::Context;
use super::args::{DeviceArgs, GemmName};
use super::engine::{Engine, Loaded};
use super::terminal::note;
use crate::backend::cpu::{Cpu, MAX_THREADS};
use crate::backend::cuda::driver::{self, Card};
pub(crate) use crate::backend::cuda::library_is_named;
use crate::backend::cuda::{Cuda, Device, Facts};
use crate::backend::{Backend, Denoise, Forward};
use crate::element::Dtype;
use crate::error::{Error, Result};
use crate::io::ModelFiles;
use crate::model::{LoadOptions, MemoryReport, Model, NetworkShape};

/// The CPU, for what is done on it in any case.
///
/// # Errors
/// [`Error::Request`] for too many threads.
pub fn cpu(args: &DeviceArgs) -> Result<Cpu<f32>> {
    check_threads(args)?;
    Cpu::new(args.threads)
}

fn check_threads(args: &DeviceArgs) -> Result<()> {
    match args.threads {
        Some(n) if n.get() > MAX_THREADS => {
            Err(Error::request(format!("--threads {n}: expected 1 to {MAX_THREADS}")))
        }
        _ => Ok(()),
    }
}

/// Whether there can be such a machine, without making it.
///
/// # Errors
/// [`Error::Request`] for a name that is none, a format that the machine does not compute in, or too many threads;
/// [`Error::Device`] for a card that is not there or will not do.
pub fn check(args: &DeviceArgs) -> Result<()> {
    check_threads(args)?;
    let card = dtype_of_card(args)?;
    if args.gemm == GemmName::CublasLt && card.is_none_or(|dtype| dtype == Dtype::F32) {
        return Err(Error::request(match card {
            None => "--gemm cublaslt: it multiplies on a card, and --device is cpu; leave it out",
            Some(_) => {
                "--gemm cublaslt: it is used in bf16 and f16, and this is f32; leave it out, or give --dtype bf16"
            }
        }));
    }
    match (Place::named(&args.device)?, args.dtype.map(Dtype::from)) {
        (Place::Cpu, None | Some(Dtype::F32)) | (Place::Simt, _) => Ok(()),
        (Place::Cpu, Some(dtype)) => Err(Error::request(format!(
            "--dtype {dtype}: the CPU computes in f32 (weights stay as they are stored); leave it out"
        ))),
        (Place::Cuda(ordinal), _) => match driver::available(ordinal) {
            Ok(_) => Ok(()),
            Err(Error::Device { device, what, hint }) if !hint.contains("--device cpu") => {
                Err(Error::Device { device, what, hint: format!("{hint}; or use --device cpu") })
            }
            Err(error) => Err(error),
        },
    }
}

/// What the card that `--device` names computes in, whether it is there or not; `None` for the CPU.
///
/// # Errors
/// [`Error::Request`] for a name that is none.
pub fn dtype_of_card(args: &DeviceArgs) -> Result<Option<Dtype>> {
    let default = match Place::named(&args.device)? {
        Place::Cpu => return Ok(None),
        Place::Simt => Dtype::F32,
        Place::Cuda(_) => Dtype::Bf16,
    };
    Ok(Some(args.dtype.map_or(default, Dtype::from)))
}

/// Threads that the CPU computes with, where that is what `--device` names.
///
/// # Errors
/// [`Error::Request`] for a name that is none.
pub fn threads(args: &DeviceArgs) -> Result<Option<usize>> {
    Ok(match Place::named(&args.device)? {
        // A pool without a number has as many as the one that is there already.
        Place::Cpu => Some(args.threads.map_or_else(rayon::current_num_threads, std::num::NonZeroUsize::get)),
        Place::Simt | Place::Cuda(_) => None,
    })
}

/// Where weights come from.
#[derive(Clone, Copy)]
enum Weights<'a> {
    /// Files, whose every number is checked to be finite.
    Files(&'a ModelFiles),
    /// A shape and a seed.
    Synthetic(&'a NetworkShape, u64),
}

/// Loads the weights of `files` onto the machine that `--device` names; every number is checked to be finite.
///
/// # Errors
/// Those of [`check`] and [`Model::load`].
pub fn load(args: &DeviceArgs, files: &ModelFiles, context: &Context) -> Result<Box<dyn Engine>> {
    engine(args, Weights::Files(files), context)
}

/// Makes up weights on that machine.
///
/// # Errors
/// Those of [`check`] and [`Model::synthetic`].
pub fn synthetic(
    args: &DeviceArgs,
    shape: &NetworkShape,
    seed: u64,
    context: &Context,
) -> Result<Box<dyn Engine>> {
    engine(args, Weights::Synthetic(shape, seed), context)
}

fn engine(args: &DeviceArgs, weights: Weights<'_>, context: &Context) -> Result<Box<dyn Engine>> {
    check(args)?;
    let dtype = dtype_of_card(args)?.unwrap_or(Dtype::F32);
    match Place::named(&args.device)? {
        Place::Cpu => {
            let (cpu, device) = cpu_and_line(args)?;
            load_on(cpu, device, None, args, weights, context)
        }
        Place::Simt => simt(dtype, args, weights, context),
        Place::Cuda(ordinal) => {
            let (cuda, device) = card_and_line(ordinal, dtype, args)?;
            let gemm = cuda.library();
            load_on(cuda, device, gemm, args, weights, context)
        }
    }
}

/// The CPU, and what it is in a line.
fn cpu_and_line(args: &DeviceArgs) -> Result<(Cpu<f32>, String)> {
    let cpu = cpu(args)?;
    let line = format!("cpu, {} threads, {}", cpu.threads(), cpu.level());
    Ok((cpu, line))
}

/// A card that computes in `dtype`, and what it is in a line.
fn card_and_line(ordinal: usize, dtype: Dtype, args: &DeviceArgs) -> Result<(Cuda<Card>, String)> {
    let cuda = with_gemm(Cuda::with_dtype(Card::open(ordinal)?, dtype), args)?;
    let line = format!("cuda:{ordinal}, {}, {dtype}{}", describe(cuda.device().facts()), by(&cuda));
    Ok((cuda, line))
}

/// With the matrix library, if it is wanted. Of itself it is looked for in 16 bits on a card; for the SIMT machine there is none
/// but that of the tests.
fn with_gemm<D: Device>(cuda: Cuda<D>, args: &DeviceArgs) -> Result<Cuda<D>> {
    let looked_for = cuda.dtype() != Dtype::F32 && cuda.device().facts().driver.is_some();
    match args.gemm {
        GemmName::Own => Ok(cuda),
        GemmName::Auto if !looked_for => Ok(cuda),
        GemmName::CublasLt => cuda.with_library(),
        GemmName::Auto => match cuda.clone().with_library() {
            Err(error) if library_is_named() => Err(error),
            Err(error) => {
                if args.verbose {
                    note(&format!("matrix products by our own kernels: {error}"));
                }
                Ok(cuda)
            }
            with => with,
        },
    }
}

/// What multiplies matrices, for a line on the device.
fn by<D: Device>(cuda: &Cuda<D>) -> String {
    cuda.library().map_or(String::new(), |library| format!(", products by {library}"))
}

/// The SIMT machine that computes in `dtype`, with the limits that the environment sets for tests, and what it is in a line.
#[cfg(feature = "simt")]
fn simt_and_line(
    dtype: Dtype,
    args: &DeviceArgs,
) -> Result<(Cuda<crate::backend::cuda::simt::Simt>, String)> {
    use crate::backend::cuda::simt::{Limits, Options, Simt};

    let number = |name: &str| -> Result<Option<u64>> {
        let Ok(text) = std::env::var(name) else { return Ok(None) };
        let wrong = |_| Error::request(format!("{name}={text}: expected a whole number"));
        text.parse().map(Some).map_err(wrong)
    };
    let limits =
        Limits { memory: number("LACUNA_SIMT_MEMORY")?, lose_after: number("LACUNA_SIMT_LOSE_AFTER")? };
    let machine = Simt::with_limits(Options { seed: 0, check: false }, limits);
    let cuda = with_gemm(Cuda::with_dtype(machine, dtype), args)?;
    let line = format!("host SIMT machine, {dtype}{}", by(&cuda));
    Ok((cuda, line))
}

#[cfg(feature = "simt")]
fn simt(dtype: Dtype, args: &DeviceArgs, weights: Weights<'_>, context: &Context) -> Result<Box<dyn Engine>> {
    let (cuda, device) = simt_and_line(dtype, args)?;
    let gemm = cuda.library();
    load_on(cuda, device, gemm, args, weights, context)
}

#[cfg(not(feature = "simt"))]
fn simt(_: Dtype, _: &DeviceArgs, _: Weights<'_>, _: &Context) -> Result<Box<dyn Engine>> {
    Err(Error::request("--device simt: this program was built without the SIMT machine"))
}

fn load_on<B: Forward + Denoise + Backend<Elem = f32>>(
    backend: B,
    device: String,
    gemm: Option<String>,
    args: &DeviceArgs,
    weights: Weights<'_>,
    context: &Context,
) -> Result<Box<dyn Engine>> {
    context.interrupt.check()?;
    let start = Instant::now();
    let model = match weights {
        Weights::Files(files) => Model::load(backend, files, LoadOptions { check_finite: true })?,
        Weights::Synthetic(shape, seed) => Model::synthetic(backend, shape.clone(), seed)?,
    };
    // What was sent to a card is there once it has nothing left to do.
    model.backend().synchronize()?;
    if args.verbose {
        let MemoryReport { parameters, copied_bytes, mapped_bytes } = model.memory();
        let (seconds, bytes) = (start.elapsed().as_secs_f64(), copied_bytes + mapped_bytes);
        note(&format!("computing on {device}"));
        note(&format!(
            "{parameters} parameters, {} loaded in {seconds:.2} s, {:.2} GB/s",
            indicatif::HumanBytes(bytes),
            bytes as f64 / 1e9 / seconds.max(1e-9)
        ));
    }
    let dtype = dtype_of_card(args)?.unwrap_or(Dtype::F32);
    Ok(Box::new(Loaded { model: Arc::new(model), device, dtype, gemm, verbose: args.verbose.into() }))
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
    use super::super::args::DtypeName;
    use super::*;

    fn check_name(name: &str) -> Result<()> {
        check(&DeviceArgs { device: name.into(), ..DeviceArgs::default() })
    }

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
    fn the_cpu_computes_in_f32() {
        let args = |dtype| DeviceArgs { device: "cpu".into(), dtype: Some(dtype), ..DeviceArgs::default() };
        assert!(check(&args(DtypeName::F32)).is_ok());
        let error = check(&args(DtypeName::Bf16)).unwrap_err();
        assert!(error.to_string().contains("--dtype bf16"), "{error}");
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn cards_that_are_not_there_are_named() {
        for (name, device) in [("cuda:99", "cuda:99"), ("cuda:12345", "cuda:12345")] {
            let error = check_name(name).unwrap_err();
            assert!(error.to_string().starts_with(device), "{error}");
            assert_eq!(error.exit_code(), 8);
        }
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

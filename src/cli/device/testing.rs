//! Where the self-test runs.

use std::collections::BTreeMap;

use super::Place;
use crate::backend::cuda::driver::Card;
use crate::backend::cuda::{Device, library_is_named};
use crate::error::Result;

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

/// The cases of a matrix library, where one is looked for; the same on every device.
pub fn library_cases(
    place: Place,
    grid: crate::selftest::Grid,
    filter: &str,
) -> Vec<(&'static str, String, String)> {
    if !looks_for_library(place) {
        return Vec::new();
    }
    let cases = crate::selftest::library_cases::<Card>(grid, filter);
    cases.into_iter().map(|c| (c.stem, c.kernel, c.shape)).collect()
}

/// Whether a matrix library is tested if it is there.
fn looks_for_library(place: Place) -> bool {
    match place {
        Place::Cpu => false,
        // One that works on memory of the host has to be named.
        Place::Simt => library_is_named(),
        Place::Cuda(_) => true,
    }
}

//! Bugs planted into the real kernels (`cuda/simt/plants.txt`) and into launches: the SIMT machine must name each.
#![cfg(feature = "simt")]

use lacuna::backend::cpu::Cpu;
use lacuna::backend::cuda::simt::{Fault, Options, Simt};
use lacuna::backend::cuda::{Cuda, Launch};
use lacuna::selftest::{self, Grid, Rig};

/// The faults that the cases of a kernel (names that begin with `kernel`) meet on `simt`; stops at the first case that does.
fn first_faults(simt: Simt, kernel: &str) -> Vec<Fault> {
    let cuda = Cuda::new(simt);
    let cpu = Cpu::new(std::num::NonZeroUsize::new(1)).unwrap();
    let rig = Rig::new(&cuda, &cpu, 3);
    let cases = selftest::cases(Grid::Quick, "");
    let mut ran = false;
    for case in cases.iter().filter(|c| c.kernel.starts_with(kernel)) {
        ran = true;
        let result = case.run(&rig);
        let faults = cuda.device().take_faults();
        if !faults.is_empty() {
            assert!(result.is_err(), "{}: {faults:?}, but {result:?}", case.kernel);
            return faults;
        }
    }
    assert!(ran, "no cases of {kernel}");
    Vec::new()
}

/// The plant is found under every schedule, as `kind`, in its own kernel and file.
#[track_caller]
fn planted(plant: &str, kernel: &str, file: &str, kind: &str) {
    for seed in [0, 1, 2] {
        let prefix = format!("plant_{plant}_");
        let simt = Simt::with_bugs(Options { seed, check: true }, &prefix, None);
        // Kernels of other files than the mutant's are the real ones.
        let faults = first_faults(simt, kernel);
        let found = faults.iter().find(|f| f.kind == kind);
        let fault =
            found.unwrap_or_else(|| panic!("{plant}, seed {seed}: expected {kind}, found {faults:?}"));
        assert!(fault.kernel.starts_with(&format!("{prefix}{kernel}")), "{fault}");
        if let Some((path, _)) = &fault.place {
            assert!(path.contains(file) || path.contains("cuda/common/"), "{fault}");
        }
    }
}

/// A launch changed by `change` is found as `kind`.
#[track_caller]
fn tampered(kernel: &str, kind: &str, change: fn(&mut Launch<'_>)) {
    for seed in [0, 1] {
        let simt = Simt::with_bugs(Options { seed, check: true }, "", Some(Box::new(change)));
        let faults = first_faults(simt, kernel);
        let found = faults.iter().any(|f| f.kind == kind && f.kernel.starts_with(kernel));
        assert!(found, "{kernel}, seed {seed}: expected {kind}, found {faults:?}");
    }
}

#[test]
fn too_little_shared_memory() {
    tampered("norm_layer", "shared memory out of bounds", |launch| launch.shared -= 4);
}

#[test]
fn a_grid_too_small() {
    tampered("norm_layer", "output not written", |launch| launch.grid[0] -= 1);
}

#[test]
fn a_grid_too_large() {
    tampered("norm_rms", "global memory out of bounds", |launch| launch.grid[0] += 1);
}

#[test]
fn too_many_threads() {
    tampered("norm_rms", "too many threads", |launch| launch.block[0] *= 2);
}

/// Without any bug there is nothing to find.
#[test]
fn no_bug_no_fault() {
    assert!(first_faults(Simt::with_bugs(Options::default(), "", None), "norm").is_empty());
}

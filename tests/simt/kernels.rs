//! The kernels on the host SIMT machine: each stem's self-test, watched, under several schedules.

use lacuna::backend::cpu::Cpu;
use lacuna::backend::cuda::Cuda;
use lacuna::backend::cuda::simt::{Options, Simt};
use lacuna::selftest::{self, Grid, Rig};

/// The quick grid under several schedules, and the full grid under one.
fn run(stem: &str) {
    let cpu = Cpu::new(std::num::NonZeroUsize::new(1)).unwrap();
    for (grid, seed) in [(Grid::Full, 0), (Grid::Quick, 1), (Grid::Quick, 2)] {
        let cuda = Cuda::new(Simt::new(Options { seed, check: true }));
        let rig = Rig::new(&cuda, &cpu, 7 + seed);
        let cases = selftest::cases(grid, "");
        let mut count = 0;
        for case in cases.iter().filter(|c| c.stem == stem) {
            count += 1;
            let verdict = case.run(&rig).unwrap_or_else(|e| panic!("{} ({}): {e}", case.kernel, case.shape));
            let (error, bound) = (verdict.error, verdict.bound);
            assert!(verdict.passed(), "{} ({}): error {error:e}, at most {bound:e}", case.kernel, case.shape);
        }
        assert!(count > 0, "no cases of {stem}");
    }
}

#[test]
fn probe() {
    run("probe");
}

#[test]
fn embedding() {
    run("embedding");
}

#[test]
fn norm() {
    run("norm");
}

#[test]
fn rope() {
    run("rope");
}

#[test]
fn activation() {
    run("activation");
}

#[test]
fn mask() {
    run("mask");
}

#[test]
fn matmul() {
    run("matmul");
}

#[test]
fn cast() {
    run("cast");
}

#[test]
fn elementwise() {
    run("elementwise");
}

#[test]
fn columns() {
    run("columns");
}

#[test]
fn compact() {
    run("compact");
}

#[test]
fn head() {
    run("head");
}

#[test]
fn attention() {
    run("attention");
}

#[test]
fn attention_bwd() {
    run("attention_bwd");
}

#[test]
fn unmask() {
    run("unmask");
}

#[test]
fn random() {
    run("random");
}

#[test]
fn needs() {
    run("needs");
}

#[test]
fn commit() {
    run("commit");
}

#[test]
fn optim() {
    run("optim");
}

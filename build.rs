//! Compiles the kernels in `cuda/`: by nvcc for NVIDIA cards where there is one (else the binary computes on the CPU
//! only), and with the feature `simt` by a C++ compiler for the host SIMT machine. Also tells the
//! program which commit it is.

#[path = "build/commit.rs"]
mod commit;
#[path = "build/nvcc.rs"]
mod nvcc;
#[cfg(feature = "simt")]
#[path = "build/simt.rs"]
mod simt;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn variable(name: &str) -> Result<PathBuf, String> {
    std::env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("cargo did not set {name}"))
}

fn build() -> Result<(), String> {
    let root = variable("CARGO_MANIFEST_DIR")?;
    let out = variable("OUT_DIR")?;
    let cuda = root.join("cuda");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    commit::tell(&root);
    kernels(&cuda, &out)?;
    #[cfg(feature = "simt")]
    simt::compile(&cuda, &out)?;
    Ok(())
}

fn kernels(cuda: &Path, out: &Path) -> Result<(), String> {
    let nvcc = nvcc::find()?;
    let modules = match &nvcc {
        Some(nvcc) => nvcc::compile_all(nvcc, cuda, out)?,
        None => {
            println!(
                "cargo:warning=no nvcc: this build computes on the CPU only; tools/setup-cuda installs nvcc, then build again"
            );
            Vec::new()
        }
    };
    nvcc::registry(&modules, nvcc.as_ref(), out)
}
